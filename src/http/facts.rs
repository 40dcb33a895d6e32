//! What a request's header lines say to the event routes, read in one pass, whoever parsed them.

use actix_web::http::header::{self, HeaderMap, HeaderValue};

/// See the module. Of a line that comes twice the first counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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
    sec_gpc: Option<&'a [u8]>,
    sec_purpose: Option<&'a [u8]>,
    purpose: Option<&'a [u8]>,
}

impl<'a> Facts<'a> {
    /// From actix's map.
    pub(super) fn of(headers: &'a HeaderMap) -> Facts<'a> {
        let bytes = |value: Option<&'a HeaderValue>| value.map(HeaderValue::as_bytes);
        Facts {
            user_agent: bytes(headers.get(header::USER_AGENT)),
            referer: bytes(headers.get(header::REFERER)),
            cookie: bytes(headers.get(header::COOKIE)),
            origin: bytes(headers.get(header::ORIGIN)),
            accept: bytes(headers.get(header::ACCEPT)),
            content_type: bytes(headers.get(header::CONTENT_TYPE)),
            sec_gpc: bytes(headers.get("sec-gpc")),
            sec_purpose: bytes(headers.get("sec-purpose")),
            purpose: bytes(headers.get("purpose")),
        }
    }

    /// From one line after the other. Whether the line says any of it.
    pub(super) fn take(&mut self, name: &[u8], value: &'a [u8]) -> bool {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        let field = match name.len() {
            6 if is(b"accept") => &mut self.accept,
            6 if is(b"origin") => &mut self.origin,
            6 if is(b"cookie") => &mut self.cookie,
            7 if is(b"referer") => &mut self.referer,
            7 if is(b"sec-gpc") => &mut self.sec_gpc,
            7 if is(b"purpose") => &mut self.purpose,
            10 if is(b"user-agent") => &mut self.user_agent,
            11 if is(b"sec-purpose") => &mut self.sec_purpose,
            12 if is(b"content-type") => &mut self.content_type,
            _ => return false,
        };
        field.get_or_insert(value);
        true
    }

    /// `Sec-GPC: 1`.
    pub(super) fn gpc(&self) -> bool {
        self.sec_gpc == Some(b"1")
    }

    /// The browser only looks ahead.
    pub(super) fn is_prefetch(&self) -> bool {
        let names =
            |value: Option<&[u8]>| value.is_some_and(|value| memchr::memmem::find(value, b"prefetch").is_some());
        names(self.sec_purpose) || names(self.purpose)
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderName;
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 12] = [
        "User-Agent",
        "Referer",
        "Cookie",
        "ORIGIN",
        "accept",
        "Content-Type",
        "Sec-GPC",
        "Purpose",
        "sec-purpose",
        "X-Forwarded-For",
        "Accepts",
        "Host",
    ];

    proptest! {
        /// Both ways of reading the same lines see the same.
        #[test]
        fn lines_and_map_agree(
            lines in proptest::collection::vec((0..NAMES.len(), "[ -~]{0,12}|1|prefetch;x"), 0..16),
        ) {
            let mut map = HeaderMap::new();
            let mut taken = Facts::default();
            for (name, value) in &lines {
                let value = value.trim();
                let name = NAMES[*name].as_bytes();
                map.append(HeaderName::from_bytes(name).unwrap(), HeaderValue::from_str(value).unwrap());
                taken.take(name, value.as_bytes());
            }
            prop_assert_eq!(taken, Facts::of(&map));
        }
    }
}
