//! What a request's header lines say to the event routes, read in one pass, whoever parsed them.

use actix_web::http::header::{self, HeaderMap, HeaderValue};

/// See the module. Of a line that comes twice the first counts.
#[derive(Clone, Copy, Default)]
pub(super) struct Facts<'a> {
    /// `User-Agent`.
    pub(super) user_agent: Option<&'a [u8]>,
    /// `Referer`.
    pub(super) referer: Option<&'a [u8]>,
    /// `Cookie`.
    pub(super) cookie: Option<&'a [u8]>,
    /// `Origin`.
    pub(super) origin: Option<&'a [u8]>,
    /// `Accept`.
    pub(super) accept: Option<&'a [u8]>,
    /// `Content-Type`.
    pub(super) content_type: Option<&'a [u8]>,
    /// `Sec-GPC: 1`.
    pub(super) gpc: bool,
    /// The browser only looks ahead.
    pub(super) is_prefetch: bool,
}

impl<'a> Facts<'a> {
    /// From actix's map.
    pub(super) fn of(headers: &'a HeaderMap) -> Facts<'a> {
        let bytes = |value: Option<&'a HeaderValue>| value.map(HeaderValue::as_bytes);
        let purposes = [headers.get("sec-purpose"), headers.get("purpose")].into_iter().flatten();
        Facts {
            user_agent: bytes(headers.get(header::USER_AGENT)),
            referer: bytes(headers.get(header::REFERER)),
            cookie: bytes(headers.get(header::COOKIE)),
            origin: bytes(headers.get(header::ORIGIN)),
            accept: bytes(headers.get(header::ACCEPT)),
            content_type: bytes(headers.get(header::CONTENT_TYPE)),
            gpc: bytes(headers.get("sec-gpc")).is_some_and(is_gpc),
            is_prefetch: purposes.map(HeaderValue::as_bytes).any(names_prefetch),
        }
    }
}

/// Whether a `Sec-GPC` asks not to be sold or shared.
pub(super) fn is_gpc(value: &[u8]) -> bool {
    value == b"1"
}

/// Whether a `Sec-Purpose` or `Purpose` is a look ahead.
pub(super) fn names_prefetch(value: &[u8]) -> bool {
    memchr::memmem::find(value, b"prefetch").is_some()
}
