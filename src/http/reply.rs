//! Replies of event routes: never cached, never breaking a page, always saying why (contract §3).

use std::time::{Duration, UNIX_EPOCH};

use actix_web::body::MessageBody;
use actix_web::http::header::{self, HeaderName, HeaderValue, HttpDate};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpResponse, HttpResponseBuilder};

use super::facts::Facts;
use crate::event::Warnings;
use crate::event::encode::id_text;
use crate::event::rejection::Rejection;
use crate::ingest::Denied;
use crate::limits::Over;
use crate::time::{Clock, SystemClock, Timestamp};

/// The 43-byte transparent GIF with a complete LZW stream, as nginx's `empty_gif` sends it.
pub const GIF: &[u8; 43] =
    b"GIF89a\x01\x00\x01\x00\x80\x01\x00\x00\x00\x00\xff\xff\xff\x21\xf9\x04\x01\x00\x00\x01\x00\x2c\
\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x4c\x01\x00\x3b";

const RECORD_ID: HeaderName = HeaderName::from_static("x-pixelgate-record-id");
const REASON: HeaderName = HeaderName::from_static("x-pixelgate-reason");
const WARNING: HeaderName = HeaderName::from_static("x-pixelgate-warning");
const EXPOSED: &str =
    "X-Pixelgate-Record-Id, X-Pixelgate-Reason, X-Pixelgate-Warning, Retry-After, RateLimit, RateLimit-Policy";

/// What of the request shapes the reply. Borrowed: most of it matters to few replies only.
#[derive(Clone, Copy)]
pub struct Shape<'a> {
    is_image: bool,
    accept: &'a [u8],
    origin: Option<&'a [u8]>,
}

impl<'a> Shape<'a> {
    /// From a request's head.
    pub(super) fn of(method: &Method, facts: &Facts<'a>) -> Shape<'a> {
        Shape {
            is_image: matches!(*method, Method::GET | Method::HEAD),
            accept: facts.accept.unwrap_or_default(),
            origin: facts.origin,
        }
    }

    /// To keep behind the request.
    pub(super) fn keep(&self) -> Kept {
        Kept { is_image: self.is_image, wants_json: wants_json(self.accept), origin: self.origin.map(Box::from) }
    }

    /// What every reply of an event route carries.
    fn begin(&self, status: StatusCode) -> HttpResponseBuilder {
        let mut reply = HttpResponse::build(status);
        reply
            .insert_header((header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")))
            .insert_header((
                HeaderName::from_static("cross-origin-resource-policy"),
                HeaderValue::from_static("cross-origin"),
            ))
            .insert_header((HeaderName::from_static("timing-allow-origin"), HeaderValue::from_static("*")))
            .insert_header((header::VARY, HeaderValue::from_static("Origin")));
        if let Some(Ok(origin)) = self.origin.map(HeaderValue::from_bytes) {
            reply
                .insert_header((header::ACCESS_CONTROL_ALLOW_ORIGIN, origin))
                .insert_header((header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")))
                .insert_header((header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED)));
        }
        reply
    }

    pub(super) fn accepted_status(&self) -> StatusCode {
        if self.is_image { StatusCode::OK } else { StatusCode::NO_CONTENT }
    }

    /// The same bytes as `write` makes of `accepted`, without a map of headers between.
    pub(super) fn write_accepted(
        &self,
        out: &mut Vec<u8>,
        taken: &Taken<'_>,
        besides: &[u8],
        date: &Date,
        is_last: bool,
    ) {
        let Taken { id, warnings, cookies } = *taken;
        out.extend_from_slice(if self.is_image { IMAGE_HEAD } else { NOTHING_HEAD });
        if is_last {
            out.extend_from_slice(LAST);
        }
        out.extend_from_slice(ALWAYS);
        if let Some(origin) = self.origin {
            out.extend_from_slice(b"access-control-allow-origin: ");
            out.extend_from_slice(origin);
            out.extend_from_slice(b"\r\naccess-control-allow-credentials: true\r\naccess-control-expose-headers: ");
            out.extend_from_slice(EXPOSED.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        if let Some(id) = id {
            out.extend_from_slice(b"x-pixelgate-record-id: ");
            out.extend_from_slice(&id_text(id));
            out.extend_from_slice(b"\r\n");
        }
        if !warnings.is_empty() {
            out.extend_from_slice(b"x-pixelgate-warning: ");
            for (index, warning) in warnings.iter().enumerate() {
                out.extend_from_slice(if index > 0 { b"," } else { b"" });
                out.extend_from_slice(warning.as_str().as_bytes());
            }
            out.extend_from_slice(b"\r\n");
        }
        for cookie in cookies {
            for part in [b"set-cookie: ", cookie.as_bytes(), b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        out.extend_from_slice(besides);
        out.extend_from_slice(b"date: ");
        out.extend_from_slice(date);
        out.extend_from_slice(b"\r\n\r\n");
        if self.is_image {
            out.extend_from_slice(GIF);
        }
    }

    /// 2xx: the event is in the journal, or is none (`id` absent).
    pub fn accepted(&self, id: Option<[u8; 16]>, warnings: Warnings) -> HttpResponse {
        self.accepted_all(id.as_slice(), warnings)
    }

    /// As `accepted`, for all events of a batch.
    pub fn accepted_all(&self, ids: &[[u8; 16]], warnings: Warnings) -> HttpResponse {
        let mut reply = self.begin(self.accepted_status());
        let ids: Vec<[u8; 36]> = ids.iter().map(|id| id_text(*id)).collect();
        if let (false, Ok(ids)) = (ids.is_empty(), HeaderValue::from_bytes(&ids.join(&b','))) {
            reply.insert_header((RECORD_ID, ids));
        }
        if !warnings.is_empty() {
            let words: Vec<&str> = warnings.iter().map(|warning| warning.as_str()).collect();
            reply.insert_header((WARNING, words.join(",")));
        }
        self.image_or_nothing(reply)
    }

    fn image_or_nothing(&self, mut reply: HttpResponseBuilder) -> HttpResponse {
        if self.is_image {
            reply.insert_header((header::CONTENT_TYPE, HeaderValue::from_static("image/gif"))).body(&GIF[..])
        } else {
            reply.finish()
        }
    }

    /// The answer to a preflight.
    pub fn preflight(&self) -> HttpResponse {
        let mut reply = self.begin(StatusCode::NO_CONTENT);
        reply
            .insert_header((header::ALLOW, "GET, HEAD, POST, OPTIONS"))
            .insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, OPTIONS"))
            .insert_header((header::ACCESS_CONTROL_ALLOW_HEADERS, "Content-Type"))
            .insert_header((header::ACCESS_CONTROL_MAX_AGE, "86400"));
        reply.finish()
    }

    /// Not accepted: the reason in a header always, in the body where a person or program reads it.
    pub fn rejected(&self, denied: &Denied) -> HttpResponse {
        let rejection = denied.refusal.reason;
        let status = StatusCode::from_u16(rejection.status()).expect("the table holds valid statuses");
        let mut reply = self.begin(status);
        reply.insert_header((REASON, HeaderValue::from_static(rejection.reason())));
        match &denied.over {
            Some(over) => over_limit(&mut reply, over),
            None => {
                if let Some(seconds) = rejection.retry_after_seconds() {
                    reply.insert_header((header::RETRY_AFTER, HeaderValue::from(seconds)));
                }
            }
        }
        if rejection == Rejection::MethodNotAllowed {
            reply.insert_header((header::ALLOW, "GET, HEAD, POST, OPTIONS"));
        }
        if self.is_image && !wants_json(self.accept) {
            return self.image_or_nothing(reply);
        }
        reply
            .insert_header((header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json")))
            .body(problem(rejection))
    }
}

const IMAGE_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 43\r\ncontent-type: image/gif\r\n";
const NOTHING_HEAD: &[u8] = b"HTTP/1.1 204 No Content\r\n";
const LAST: &[u8] = b"connection: close\r\n";
const ALWAYS: &[u8] = b"cache-control: no-store\r\nx-content-type-options: nosniff\r\n\
    cross-origin-resource-policy: cross-origin\r\ntiming-allow-origin: *\r\nvary: Origin\r\n";

/// What an event that was taken is told.
pub(super) struct Taken<'a> {
    pub(super) id: Option<[u8; 16]>,
    pub(super) warnings: Warnings,
    pub(super) cookies: &'a [String],
}

/// Adds a line for each cookie.
pub(super) fn set_cookies(reply: &mut HttpResponse, cookies: &[String]) {
    for cookie in cookies {
        let value = HeaderValue::from_str(cookie).expect("made of checked options and checked ids");
        reply.headers_mut().append(header::SET_COOKIE, value);
    }
}

/// A `Shape` that owns what it needs.
pub(super) struct Kept {
    is_image: bool,
    wants_json: bool,
    origin: Option<Box<[u8]>>,
}

impl Kept {
    pub(super) fn shape(&self) -> Shape<'_> {
        let accept = if self.wants_json { b"application/json" } else { &b""[..] };
        Shape { is_image: self.is_image, accept, origin: self.origin.as_deref() }
    }
}

/// The `Date` of a moment.
pub(super) type Date = [u8; 29];

/// See `Date`.
pub(super) fn date(now: Timestamp) -> Date {
    let text = HttpDate::from(UNIX_EPOCH + Duration::from_millis(now.0)).to_string();
    text.as_bytes().try_into().expect("an HTTP date has 29 bytes")
}

/// Writes a whole reply, as actix would. `besides` are further lines, each with its end.
pub(super) fn write(out: &mut Vec<u8>, reply: HttpResponse, besides: &[u8], date: &Date, is_last: bool) {
    let (reply, body) = reply.into_parts();
    // All bodies of these routes are made of bytes.
    let body = body.try_into_bytes().unwrap_or_default();
    out.extend_from_slice(format!("HTTP/1.1 {}\r\n", reply.status()).as_bytes());
    if reply.status() != StatusCode::NO_CONTENT {
        out.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    if is_last {
        out.extend_from_slice(LAST);
    }
    for (name, value) in reply.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    for part in [besides, b"date: ", &date[..], b"\r\n\r\n", &body] {
        out.extend_from_slice(part);
    }
}

/// Whether `Accept` names the problem's type, by its own name or as what it is.
fn wants_json(accept: &[u8]) -> bool {
    // Nearly always there is no such letter in it.
    if memchr::memchr(b'j', accept).is_none() {
        return false;
    }
    let names = |name: &[u8]| memchr::memmem::find(accept, name).is_some();
    names(b"json") && (names(b"application/json") || names(b"application/problem+json"))
}

/// What a 429 carries: `Retry-After`, and `RateLimit` and `RateLimit-Policy` as in
/// draft-ietf-httpapi-ratelimit-headers-10.
pub(super) fn over_limit(reply: &mut HttpResponseBuilder, over: &Over) {
    let Over { limit, quota, window_seconds, retry_seconds } = over;
    reply
        .insert_header((header::RETRY_AFTER, HeaderValue::from(*retry_seconds)))
        .insert_header(("RateLimit", format!("\"{limit}\";r=0;t={retry_seconds}")))
        .insert_header(("RateLimit-Policy", format!("\"{limit}\";q={quota};w={window_seconds}")));
}

/// Whether an answer is of the HTTP parser's own: a status, a date, and nothing more.
pub(super) fn is_bare(answer: &[u8]) -> bool {
    let Some(lines) = answer.strip_suffix(b"\r\n\r\n") else { return false };
    let own: [&[u8]; 3] = [b"content-length: 0", b"connection: close", b"date: "];
    let lines = lines.split(|byte| *byte == b'\n').skip(1).map(<[u8]>::trim_ascii);
    lines.into_iter().all(|line| own.iter().any(|own| line.starts_with(own)))
}

/// A refusal that closes the connection, as bytes, for requests that never reach a route. Whether they had an `Origin`
/// isn't known.
pub(super) fn closing(reason: Rejection, is_image: bool) -> Vec<u8> {
    let status = StatusCode::from_u16(reason.status()).expect("the table holds valid statuses");
    let problem = problem(reason);
    let (kind, body) = match is_image {
        true => ("image/gif", &GIF[..]),
        false => ("application/problem+json", problem.as_bytes()),
    };
    let date = date(SystemClock.now());
    let date = String::from_utf8_lossy(&date);
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\ncontent-type: {kind}\r\n\
         cache-control: no-store\r\nx-content-type-options: nosniff\r\ncross-origin-resource-policy: cross-origin\r\n\
         timing-allow-origin: *\r\nvary: Origin\r\n{REASON}: {}\r\ndate: {date}\r\n\r\n",
        body.len(),
        reason.reason(),
    );
    [head.as_bytes(), body].concat()
}

/// RFC 9457.
fn problem(rejection: Rejection) -> String {
    let problem = serde_json::json!({
        "type": "about:blank",
        "title": rejection.title(),
        "status": rejection.status(),
        "reason": rejection.reason(),
    });
    problem.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Warning;

    fn sorted(answer: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
        let end = memchr::memmem::find(answer, b"\r\n\r\n").unwrap();
        let mut lines: Vec<_> =
            answer[..end].split(|byte| *byte == b'\n').map(|line| line.trim_ascii().to_vec()).collect();
        lines[1..].sort();
        (lines, answer[end..].to_vec())
    }

    #[test]
    fn both_ways_of_writing_an_acceptance_say_the_same() {
        let date = date(Timestamp(1_795_496_441_123));
        assert_eq!(&date, b"Tue, 24 Nov 2026 05:00:41 GMT");
        let mut some = Warnings::default();
        some.add(Warning::ALL[0]);
        some.add(Warning::ALL[3]);
        for is_image in [false, true] {
            for origin in [None, Some(&b"https://www.shop.example"[..])] {
                for warnings in [Warnings::default(), some] {
                    for is_last in [false, true] {
                        for (id, cookies) in
                            [(None, vec![]), (Some([7; 16]), vec!["a=b; Path=/".to_owned(), "c=d".to_owned()])]
                        {
                            let shape = Shape { is_image, accept: b"*/*", origin };
                            let (mut one, mut other) = (Vec::new(), Vec::new());
                            let mut reply = shape.accepted(id, warnings);
                            set_cookies(&mut reply, &cookies);
                            let besides = b"strict-transport-security: max-age=1\r\n";
                            write(&mut one, reply, besides, &date, is_last);
                            let taken = Taken { id, warnings, cookies: &cookies };
                            shape.keep().shape().write_accepted(&mut other, &taken, besides, &date, is_last);
                            assert_eq!(sorted(&one), sorted(&other));
                        }
                    }
                }
            }
        }
    }
}
