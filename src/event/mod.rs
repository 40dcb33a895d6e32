//! An event in three stages: bytes as received (`RawEvent`), checked fields (`Event`), one encoded record.
//!
//! Pure core: bytes in, bytes out. Knows no I/O, no clock, no framework; the caller brings time and identity.

pub mod currency;
pub mod encode;
pub mod parse;
pub mod privacy;
pub mod raw;
pub mod rejection;
pub mod tr;
pub mod value;
pub mod visitor;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::IpAddr;

use self::rejection::Rejection;
use crate::pixel::PixelId;

/// Where an event came in (`source` of the record).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Source {
    /// A plain pixel request.
    #[default]
    OffsiteEvent,
    /// Sent by the first-party tag (`pg=fp1`).
    FpJs,
    /// `/tr`, whose parameters are those of `fbq` and `_fbq`.
    Tr,
}

impl Source {
    /// The contract's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::OffsiteEvent => "offsite_event",
            Source::FpJs => "fp_js",
            Source::Tr => "tr",
        }
    }
}

/// The body of a POST, already collected and bounded, with the media type it is read as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Body<'a> {
    /// GET, HEAD, or an empty POST.
    #[default]
    None,
    /// `application/x-www-form-urlencoded`.
    Form(&'a [u8]),
    /// `multipart/form-data` with its boundary.
    Multipart(&'a [u8], &'a str),
    /// `application/json`.
    Json(&'a [u8]),
    /// `text/plain` or no `Content-Type`: JSON if it begins with `{`, else form.
    Text(&'a [u8]),
}

/// What arrived, unchecked.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawEvent<'a> {
    /// The route that it came by: [`Source::OffsiteEvent`] or [`Source::Tr`].
    pub route: Source,
    /// The query string without `?`, still percent-encoded.
    pub query: &'a [u8],
    /// The body, if any.
    pub body: Body<'a>,
}

impl Event<'_> {
    /// Its id for deduplication, if its text stands for nothing but itself.
    pub fn own_id(&self) -> Option<&str> {
        let changed =
            self.warnings.contains(Warning::TruncatedParameter) || self.warnings.contains(Warning::InvalidUtf8);
        self.event_id.as_deref().filter(|_| !changed)
    }
}

impl<'a> RawEvent<'a> {
    /// The first bytes of the query and of the body.
    pub fn shortened(&self, bytes: usize) -> RawEvent<'a> {
        let cut = |text: &'a [u8]| &text[..text.len().min(bytes)];
        let body = match self.body {
            Body::None => Body::None,
            Body::Form(text) => Body::Form(cut(text)),
            Body::Multipart(text, boundary) => Body::Multipart(cut(text), boundary),
            Body::Json(text) => Body::Json(cut(text)),
            Body::Text(text) => Body::Text(cut(text)),
        };
        RawEvent { route: self.route, query: cut(self.query), body }
    }

    /// Length of the query and the body.
    pub fn bytes(&self) -> usize {
        let body = match self.body {
            Body::None => 0,
            Body::Form(bytes) | Body::Multipart(bytes, _) | Body::Json(bytes) | Body::Text(bytes) => bytes.len(),
        };
        self.query.len() + body
    }
}

/// Why a request makes no event, and which pixel it named, if it named one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The reason that the client is told.
    pub reason: Rejection,
    /// The pixel that it named.
    pub pixel_id: Option<PixelId>,
}

/// What is known of the sender from the connection and headers, after trusted proxies (unchecked, hostile text).
#[derive(Clone, Copy, Debug, Default)]
pub struct Client<'a> {
    /// The visitor's address; absent when it can't be known.
    pub ip: Option<IpAddr>,
    /// `User-Agent`.
    pub user_agent: Option<&'a [u8]>,
    /// `Referer`.
    pub referer: Option<&'a [u8]>,
    /// `Cookie` headers' values joined by nothing: each header on its own is looked through for `_fbp` and `_fbc`.
    pub cookie: Option<&'a [u8]>,
    /// `Origin`.
    pub origin: Option<&'a [u8]>,
    /// `Sec-GPC: 1` was sent; once judged: and is honoured.
    pub gpc: bool,
    /// Once judged: nothing that recognises the visitor again is kept.
    pub anonymous: bool,
    /// Once judged: its id, where visitors get one.
    pub marks: Option<&'a visitor::Marks>,
}

/// What a visitor said about being recognised (`consent` of the record).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consent {
    /// `consent=granted`.
    Granted,
    /// `consent=denied`.
    Denied,
}

impl Consent {
    /// From the contract's word.
    pub fn parse(text: &[u8]) -> Option<Consent> {
        match text {
            b"granted" => Some(Consent::Granted),
            b"denied" => Some(Consent::Denied),
            _ => None,
        }
    }

    /// The contract's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Consent::Granted => "granted",
            Consent::Denied => "denied",
        }
    }
}

/// A set of warnings (contract §3, a closed list), as bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Warnings(u16);

/// One warning of the contract's closed list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
#[expect(missing_docs, reason = "each is the contract's word, explained in docs/contract.md")]
pub enum Warning {
    InvalidValue = 1 << 0,
    NegativeValue = 1 << 1,
    InvalidCurrency = 1 << 2,
    MissingCurrency = 1 << 3,
    RepeatedParameter = 1 << 4,
    TooManyParameters = 1 << 5,
    TruncatedParameter = 1 << 6,
    InvalidUtf8 = 1 << 7,
    UnknownPixel = 1 << 8,
    PixelNotChecked = 1 << 9,
    ClockSkew = 1 << 10,
    Duplicate = 1 << 11,
    Prefetch = 1 << 12,
}

impl Warning {
    /// All of them, in the contract's order.
    pub const ALL: [Warning; 13] = [
        Warning::InvalidValue,
        Warning::NegativeValue,
        Warning::InvalidCurrency,
        Warning::MissingCurrency,
        Warning::RepeatedParameter,
        Warning::TooManyParameters,
        Warning::TruncatedParameter,
        Warning::InvalidUtf8,
        Warning::UnknownPixel,
        Warning::PixelNotChecked,
        Warning::ClockSkew,
        Warning::Duplicate,
        Warning::Prefetch,
    ];

    /// The contract's word: record field, header and metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Warning::InvalidValue => "invalid_value",
            Warning::NegativeValue => "negative_value",
            Warning::InvalidCurrency => "invalid_currency",
            Warning::MissingCurrency => "missing_currency",
            Warning::RepeatedParameter => "repeated_parameter",
            Warning::TooManyParameters => "too_many_parameters",
            Warning::TruncatedParameter => "truncated_parameter",
            Warning::InvalidUtf8 => "invalid_utf8",
            Warning::UnknownPixel => "unknown_pixel",
            Warning::PixelNotChecked => "pixel_not_checked",
            Warning::ClockSkew => "clock_skew",
            Warning::Duplicate => "duplicate",
            Warning::Prefetch => "prefetch",
        }
    }
}

impl Warnings {
    /// Adds those of another.
    pub fn merge(&mut self, other: Warnings) {
        self.0 |= other.0;
    }

    /// Adds one.
    pub fn add(&mut self, warning: Warning) {
        self.0 |= warning as u16;
    }

    /// Whether it is among them.
    pub fn contains(self, warning: Warning) -> bool {
        self.0 & warning as u16 != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those set, in the contract's order.
    pub fn iter(self) -> impl Iterator<Item = Warning> {
        Warning::ALL.into_iter().filter(move |warning| self.contains(*warning))
    }
}

/// An event whose every field is checked. Text borrows from the request where decoding changed nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event<'a> {
    /// Which pixel it names (not yet looked up).
    pub pixel_id: PixelId,
    /// The canonical decimal (contract §5), such as `7.50`.
    pub value: Option<Cow<'a, str>>,
    /// ISO 4217, upper case.
    pub currency: Option<&'static str>,
    /// `test=1`.
    pub test: bool,
    /// `consent`.
    pub consent: Option<Consent>,
    /// The route, and `pg=fp1` or not.
    pub source: Source,
    /// `ev`, verbatim.
    pub event_name: Option<Cow<'a, str>>,
    /// `eid`, verbatim.
    pub event_id: Option<Cow<'a, str>>,
    /// `dl` (the `Referer` fallback is applied at encoding).
    pub page_url: Option<Cow<'a, str>>,
    /// `rl`.
    pub referrer: Option<Cow<'a, str>>,
    /// `ts`: client milliseconds of the event.
    pub event_ms: Option<u64>,
    /// `st`: client milliseconds of sending.
    pub sent_ms: Option<u64>,
    /// `fbp` parameter.
    pub fbp: Option<Cow<'a, str>>,
    /// `fbc` parameter.
    pub fbc: Option<Cow<'a, str>>,
    /// All other parameters in order of first appearance, decoded and bounded, each name once.
    pub params: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// What parsing repaired or left out.
    pub warnings: Warnings,
}
