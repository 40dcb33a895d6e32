//! Query strings and bodies into an `Event`, by the rules of contract §3. Repairs or flags, never guesses.
//!
//! Bounds: [`MAX_PARAMS`] other parameters, names of [`MAX_NAME_BYTES`], values of [`MAX_VALUE_BYTES`], and
//! [`MAX_TEXT_BYTES`] of text in all, so that no request makes a record the journal would refuse.

use std::borrow::Cow;

use futures_util::FutureExt;

use super::{Body, Consent, Event, RawEvent, Refusal, Source, Warning, Warnings, currency, tr, value};
use crate::event::rejection::Rejection;
use crate::pixel::PixelId;

/// Most parameters kept beside the known ones; Meta's largest forms have about a hundred fields.
pub const MAX_PARAMS: usize = 128;
/// Longest name of a parameter.
pub const MAX_NAME_BYTES: usize = 128;
/// Longest value: a long URL.
pub const MAX_VALUE_BYTES: usize = 2048;
/// Most text of all parameters: times six for the worst JSON escape it still fits a record.
pub const MAX_TEXT_BYTES: usize = 12 * 1024;
/// Most pairs looked at in one request; more are not even decoded.
const MAX_PAIRS: usize = 512;
/// Room for what an ordinary request has.
const ORDINARY_PAIRS: usize = 16;

pub(super) type Pair<'a> = (Cow<'a, str>, Cow<'a, str>);

/// Collects pairs: the last in the query wins, else the last in the body.
struct Pairs<'a> {
    pairs: Vec<Pair<'a>>,
    /// Of each name, in their order: a repeat is looked for among numbers, so that many names cost little each.
    marks: Vec<u32>,
    route: Source,
    in_body: bool,
    query_pairs: usize,
    warnings: Warnings,
}

impl<'a> Pairs<'a> {
    fn of(route: Source) -> Pairs<'a> {
        Pairs {
            route,
            pairs: Vec::with_capacity(ORDINARY_PAIRS),
            marks: Vec::with_capacity(ORDINARY_PAIRS),
            in_body: false,
            query_pairs: 0,
            warnings: Warnings::default(),
        }
    }

    fn push(&mut self, name: Cow<'a, str>, value: Cow<'a, str>) {
        let mut name = strip_escaped_ampersand(name);
        if self.route == Source::Tr
            && let Some(plain) = tr::custom_name(&name)
        {
            name = Cow::Owned(plain);
        }
        if name.is_empty() || value.is_empty() {
            return;
        }
        let mark = mark(&name);
        let same = |(at, known): &(usize, &u32)| **known == mark && self.pairs[*at].0 == name;
        if let Some((at, _)) = self.marks.iter().enumerate().find(same) {
            self.warnings.add(Warning::RepeatedParameter);
            if !(self.in_body && at < self.query_pairs) {
                self.pairs[at].1 = value;
            }
        } else if self.pairs.len() < MAX_PAIRS {
            self.marks.push(mark);
            self.pairs.push((name, value));
        } else {
            self.warnings.add(Warning::TooManyParameters);
        }
    }

    fn form(&mut self, bytes: &'a [u8]) {
        for (index, pair) in bytes.split(|byte| *byte == b'&').enumerate() {
            if index >= 2 * MAX_PAIRS {
                self.warnings.add(Warning::TooManyParameters);
                return;
            }
            let at = memchr::memchr(b'=', pair).unwrap_or(pair.len());
            let name = self.decode(&pair[..at]);
            let value = self.decode(pair.get(at + 1..).unwrap_or_default());
            self.push(name, value);
        }
    }

    fn decode(&mut self, bytes: &'a [u8]) -> Cow<'a, str> {
        self.text(percent_decode(bytes))
    }

    fn text(&mut self, bytes: Cow<'a, [u8]>) -> Cow<'a, str> {
        let text = match bytes {
            Cow::Borrowed(bytes) => lossy(bytes),
            Cow::Owned(bytes) => match String::from_utf8(bytes) {
                Ok(text) => return Cow::Owned(text),
                Err(error) => Cow::Owned(String::from_utf8_lossy(error.as_bytes()).into_owned()),
            },
        };
        if matches!(text, Cow::Owned(_)) {
            self.warnings.add(Warning::InvalidUtf8);
        }
        text
    }

    fn json(&mut self, bytes: &'a [u8]) -> Result<(), Rejection> {
        use serde_json::value::RawValue;
        let text = match self.text(Cow::Borrowed(bytes)) {
            Cow::Borrowed(text) => text.to_owned(),
            Cow::Owned(text) => text,
        };
        // Raw values keep the text of numbers. A list of pairs rather than a map, so that repeats are seen.
        let Object(members) = serde_json::from_str(&text).map_err(|_| Rejection::MalformedBody)?;
        for (name, raw) in members {
            let raw: Box<RawValue> = raw;
            let value = match raw.get().as_bytes().first() {
                Some(b'n') => continue,
                Some(b'"') => serde_json::from_str::<String>(raw.get()).map_err(|_| Rejection::MalformedBody)?,
                Some(b'{' | b'[') => compact(raw.get()),
                _ => raw.get().to_owned(),
            };
            self.push(Cow::Owned(name), Cow::Owned(value));
        }
        Ok(())
    }

    fn multipart(&mut self, bytes: &'a [u8], boundary: &str) -> Result<(), Rejection> {
        let body = bytes::Bytes::copy_from_slice(bytes);
        let stream = futures_util::stream::once(std::future::ready(Ok::<_, std::convert::Infallible>(body)));
        let mut parts = multer::Multipart::new(stream, boundary);
        // The body is here already, so nothing below ever waits.
        let mut fields = Vec::new();
        loop {
            let field = parts.next_field().now_or_never().ok_or(Rejection::MalformedBody)?;
            let Some(field) = field.map_err(|_| Rejection::MalformedBody)? else { break };
            let name = field.name().map(str::to_owned);
            let content = field.bytes().now_or_never().ok_or(Rejection::MalformedBody)?;
            let content = content.map_err(|_| Rejection::MalformedBody)?;
            if let (Some(name), true) = (name, fields.len() < 2 * MAX_PAIRS) {
                fields.push((name, content.to_vec()));
            }
        }
        for (name, content) in fields {
            let value = self.text(Cow::Owned(content));
            self.push(Cow::Owned(name), value);
        }
        Ok(())
    }
}

/// FNV-1a: different for nearly all different names. Who makes them alike gains a comparison for each, as without it.
fn mark(name: &str) -> u32 {
    name.bytes().fold(0x811C_9DC5, |mark, byte| (mark ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// As `String::from_utf8_lossy`, whose search for bad bytes is slow on good ones.
pub(super) fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// A form's name or value as it was before it was encoded. A `%` without two hexadecimal digits stands for itself.
pub(super) fn percent_decode(bytes: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'%', b'+', bytes).is_none() {
        return Cow::Borrowed(bytes);
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        rest = tail;
        decoded.push(match (first, tail) {
            (b'+', _) => b' ',
            (b'%', [high, low, after @ ..]) => match (hex_digit(*high), hex_digit(*low)) {
                (Some(high), Some(low)) => {
                    rest = after;
                    high << 4 | low
                }
                _ => b'%',
            },
            _ => *first,
        });
    }
    Cow::Owned(decoded)
}

/// The members of a JSON object in order, repeats included.
struct Object(Vec<(String, Box<serde_json::value::RawValue>)>);

impl<'de> serde::Deserialize<'de> for Object {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> serde::de::Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    // Past the bound members are checked as JSON, and left out.
                    if members.len() <= 2 * MAX_PAIRS {
                        members.push(member);
                    }
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

fn compact(raw: &str) -> String {
    // Outside strings, white space means nothing; numbers keep their text, which a parsed value would not promise.
    let (mut out, mut in_string, mut escaped) = (String::with_capacity(raw.len()), false, false);
    for character in raw.chars() {
        if !in_string && matches!(character, ' ' | '\n' | '\r' | '\t') {
            continue;
        }
        out.push(character);
        (in_string, escaped) = match (character, in_string, escaped) {
            (_, true, true) => (true, false),
            ('\\', true, false) => (true, true),
            ('"', _, false) => (!in_string, false),
            _ => (in_string, false),
        };
    }
    out
}

fn strip_escaped_ampersand(name: Cow<'_, str>) -> Cow<'_, str> {
    match name {
        Cow::Borrowed(name) => Cow::Borrowed(name.strip_prefix("amp;").unwrap_or(name)),
        Cow::Owned(name) => Cow::Owned(name.strip_prefix("amp;").map(str::to_owned).unwrap_or(name)),
    }
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

/// All pairs of a request, and what its body is wrong with.
fn collect<'a>(raw: &RawEvent<'a>) -> (Pairs<'a>, Result<(), Rejection>) {
    let mut pairs = Pairs::of(raw.route);
    pairs.form(raw.query);
    (pairs.in_body, pairs.query_pairs) = (true, pairs.pairs.len());
    let body = match raw.body {
        Body::None => Ok(()),
        Body::Multipart(bytes, boundary) => pairs.multipart(bytes, boundary),
        Body::Json(bytes) => pairs.json(bytes),
        Body::Text(bytes) if bytes.trim_ascii_start().first() == Some(&b'{') => pairs.json(bytes),
        Body::Text(bytes) => {
            pairs.form(bytes.trim_ascii_end());
            Ok(())
        }
        Body::Form(bytes) => {
            pairs.form(bytes);
            Ok(())
        }
    };
    (pairs, body)
}

/// The pairs of a request whose body can be read.
pub(super) fn pairs<'a>(raw: &RawEvent<'a>) -> Result<Vec<Pair<'a>>, Rejection> {
    let (pairs, body) = collect(raw);
    body.map(|()| pairs.pairs)
}

/// Reads a request. With `strict`, a bad value or currency rejects; otherwise it is flagged and kept as a parameter.
pub fn parse<'a>(raw: RawEvent<'a>, strict: bool) -> Result<Event<'a>, Refusal> {
    let (pairs, body) = collect(&raw);
    let Pairs { mut pairs, warnings, .. } = pairs;
    if raw.route == Source::Tr {
        tr::rename(&mut pairs);
    }
    let id = pairs.iter().find(|(name, _)| name == "id");
    let pixel_id = id.and_then(|(_, text)| PixelId::parse(text.as_bytes()));
    let refuse = |reason| Refusal { reason, pixel_id };
    body.map_err(refuse)?;
    let missing = if id.is_some() { Rejection::InvalidId } else { Rejection::MissingId };
    let pixel_id = pixel_id.ok_or(refuse(missing))?;
    let mut event = Event {
        pixel_id,
        value: None,
        currency: None,
        test: false,
        consent: None,
        source: raw.route,
        event_name: None,
        event_id: None,
        page_url: None,
        referrer: None,
        event_ms: None,
        sent_ms: None,
        fbp: None,
        fbc: None,
        params: Vec::new(),
        warnings,
    };
    let has_currency = pairs.iter().any(|(name, _)| name == "currency");
    let mut text_bytes = 0;
    for (name, text) in pairs {
        place(&mut event, name, text, strict, &mut text_bytes).map_err(refuse)?;
    }
    // Without the moment of sending it can't be corrected, and stays what the page told.
    if let (Some(event_ms), None) = (event.event_ms, event.sent_ms) {
        if event.params.len() < MAX_PARAMS {
            event.params.push((Cow::Borrowed("ts"), Cow::Owned(event_ms.to_string())));
        } else {
            event.warnings.add(Warning::TooManyParameters);
        }
    }
    if event.value.is_some() && !has_currency {
        event.warnings.add(Warning::MissingCurrency);
    }
    Ok(event)
}

/// Puts one pair where it belongs.
fn place<'a>(
    event: &mut Event<'a>,
    name: Cow<'a, str>,
    text: Cow<'a, str>,
    strict: bool,
    text_bytes: &mut usize,
) -> Result<(), Rejection> {
    match &*name {
        "id" => return Ok(()),
        "value" => match canonical(&text) {
            Some(value) => {
                if value.starts_with('-') {
                    event.warnings.add(Warning::NegativeValue);
                }
                event.value = Some(value);
                return Ok(());
            }
            None if strict => return Err(Rejection::InvalidValue),
            None => event.warnings.add(Warning::InvalidValue),
        },
        "currency" => match currency::parse(&text) {
            Some(currency) => {
                event.currency = Some(currency);
                return Ok(());
            }
            None if strict => return Err(Rejection::InvalidCurrency),
            None => event.warnings.add(Warning::InvalidCurrency),
        },
        "test" if text == "1" => {
            event.test = true;
            return Ok(());
        }
        "consent" if let Some(consent) = Consent::parse(text.as_bytes()) => {
            event.consent = Some(consent);
            return Ok(());
        }
        "pg" if text == "fp1" && event.source == Source::OffsiteEvent => {
            event.source = Source::FpJs;
            return Ok(());
        }
        "ts" | "st" if let Ok(ms) = text.parse::<u64>() => {
            *(if name == "ts" { &mut event.event_ms } else { &mut event.sent_ms }) = Some(ms);
            return Ok(());
        }
        _ => {}
    }
    let text = bounded(event, text, MAX_VALUE_BYTES.min(MAX_TEXT_BYTES - *text_bytes));
    *text_bytes += text.len();
    let known = match &*name {
        "ev" => &mut event.event_name,
        "eid" => &mut event.event_id,
        "dl" => &mut event.page_url,
        "rl" => &mut event.referrer,
        "fbp" => &mut event.fbp,
        "fbc" => &mut event.fbc,
        _ => {
            let name = bounded(event, name, MAX_NAME_BYTES.min(MAX_TEXT_BYTES - *text_bytes));
            if event.params.len() < MAX_PARAMS && !name.is_empty() && is_new(event, &name) {
                *text_bytes += name.len();
                event.params.push((name, text));
            } else {
                event.warnings.add(Warning::TooManyParameters);
            }
            return Ok(());
        }
    };
    *known = (!text.is_empty()).then_some(text);
    Ok(())
}

/// Whether no parameter has this name yet. Names differ, unless some were cut.
fn is_new(event: &Event<'_>, name: &str) -> bool {
    let was_cut = event.warnings.contains(Warning::TruncatedParameter);
    !was_cut || !event.params.iter().any(|(known, _)| known == name)
}

/// A value's canonical text, borrowed from the request where that is possible.
fn canonical<'a>(text: &Cow<'a, str>) -> Option<Cow<'a, str>> {
    match text {
        Cow::Borrowed(text) => value::parse(text),
        Cow::Owned(text) => value::parse(text).map(|value| Cow::Owned(value.into_owned())),
    }
}

/// Cuts a text at a character's border.
fn bounded<'a>(event: &mut Event<'_>, text: Cow<'a, str>, bytes: usize) -> Cow<'a, str> {
    if text.len() <= bytes {
        return text;
    }
    event.warnings.add(Warning::TruncatedParameter);
    let end = text.floor_char_boundary(bytes);
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(&text[..end]),
        Cow::Owned(mut text) => {
            text.truncate(end);
            Cow::Owned(text)
        }
    }
}
