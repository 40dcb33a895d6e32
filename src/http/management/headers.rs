//! What a proxy does with headers: hop-by-hop ones and cookies stay here, everything else passes unchanged.

use std::net::IpAddr;

use actix_web::http::header as actix;
use actix_web::{HttpRequest, HttpResponseBuilder};

use crate::upstream::{HeaderMap, HeaderName, HeaderValue, header};

/// Headers of one connection (RFC 9110 §7.6.1, and what is in use beyond it). A `Connection` header names more.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Headers of a request that are made anew: the body has arrived whole, and these say who asks and where.
const MADE_ANEW: [&str; 8] = [
    "content-length",
    "cookie",
    "expect",
    "host",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];

/// Names that `Connection` headers add to the hop-by-hop ones, in lower case.
fn named<'a>(connection: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let tokens = connection.flat_map(|value| value.split(|byte| *byte == b','));
    tokens.map(|token| String::from_utf8_lossy(token.trim_ascii()).to_ascii_lowercase()).collect()
}

fn is_hop(name: &str, named: &[String]) -> bool {
    HOP_BY_HOP.contains(&name) || named.iter().any(|other| other == name)
}

/// A request's headers for the upstream.
pub(super) fn to_upstream(
    request: &HttpRequest,
    client: Option<IpAddr>,
    request_id: &str,
    own_proto: &str,
    forward_cookies: &[String],
) -> HeaderMap {
    let given = request.headers();
    let named = named(given.get_all(actix::CONNECTION).map(|value| value.as_bytes()));
    let mut headers = HeaderMap::with_capacity(given.len() + MADE_ANEW.len());
    for (name, value) in given {
        let name = name.as_str();
        if !is_hop(name, &named) && !MADE_ANEW.contains(&name) {
            append(&mut headers, name, value.as_bytes());
        }
    }
    let sent = given.get_all(actix::COOKIE).flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    let kept: Vec<&[u8]> = sent.map(<[u8]>::trim_ascii).filter(|pair| is_forwarded(pair, forward_cookies)).collect();
    if !kept.is_empty() {
        append(&mut headers, "cookie", &kept.join(&b"; "[..]));
    }
    append(&mut headers, "x-request-id", request_id.as_bytes());
    if let Some(client) = client {
        append(&mut headers, "x-forwarded-for", client.to_string().as_bytes());
    }
    let (proto, host) = seen_as(request, client, own_proto);
    append(&mut headers, "x-forwarded-proto", proto);
    append(&mut headers, "x-forwarded-host", host);
    headers
}

/// Scheme and host as the client used them. What the peer says of them counts only where it is a trusted proxy, which
/// is where the client is another than the peer.
fn seen_as<'a>(request: &'a HttpRequest, client: Option<IpAddr>, own_proto: &'a str) -> (&'a [u8], &'a [u8]) {
    let trusted = client != request.peer_addr().map(|peer| peer.ip().to_canonical());
    let header = |name: &str| request.headers().get(name).map(actix::HeaderValue::as_bytes);
    let told = |name| header(name).filter(|_| trusted);
    let proto = told("x-forwarded-proto").filter(|proto| matches!(*proto, b"http" | b"https"));
    let proto = proto.unwrap_or(own_proto.as_bytes());
    (proto, told("x-forwarded-host").or_else(|| header("host")).unwrap_or_default())
}

/// Whether a cookie `name=…` may pass.
fn is_forwarded(cookie: &[u8], forward_cookies: &[String]) -> bool {
    let end = memchr::memchr2(b'=', b';', cookie).unwrap_or(cookie.len());
    let name = cookie[..end].trim_ascii();
    forward_cookies.iter().any(|forwarded| forwarded.as_bytes() == name)
}

fn append(headers: &mut HeaderMap, name: &str, value: &[u8]) {
    // Both sides take the same names and values.
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
        headers.append(name, value);
    }
}

/// An answer's headers for the client; its length is for [`length`].
pub(super) fn to_client(given: &HeaderMap, forward_cookies: &[String], reply: &mut HttpResponseBuilder) {
    let named = named(given.get_all(header::CONNECTION).iter().map(HeaderValue::as_bytes));
    for (name, value) in given {
        let drop = is_hop(name.as_str(), &named)
            || *name == header::CONTENT_LENGTH
            || (*name == header::SET_COOKIE && !is_forwarded(value.as_bytes(), forward_cookies));
        let pair =
            (actix::HeaderName::from_bytes(name.as_str().as_bytes()), actix::HeaderValue::from_bytes(value.as_bytes()));
        if let (false, (Ok(name), Ok(value))) = (drop, pair) {
            reply.append_header((name, value));
        }
    }
}

/// The length of an answer's body, if it is told and not overruled.
pub(super) fn length(given: &HeaderMap) -> Option<u64> {
    let chunked = given.contains_key(header::TRANSFER_ENCODING);
    given.get(header::CONTENT_LENGTH).filter(|_| !chunked)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::HttpResponse;
    use actix_web::test::TestRequest;
    use proptest::prelude::*;

    fn text(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    fn from(lines: &[(&'static str, &'static str)], cookies: &[&str]) -> Vec<String> {
        let mut request = TestRequest::default().peer_addr("192.0.2.7:5000".parse().unwrap());
        for line in lines {
            request = request.append_header(*line);
        }
        let cookies: Vec<String> = cookies.iter().map(|name| (*name).to_owned()).collect();
        text(&to_upstream(&request.to_http_request(), "192.0.2.7".parse().ok(), "id-1", "http", &cookies))
    }

    const OURS: [&str; 4] =
        ["x-forwarded-for: 192.0.2.7", "x-forwarded-host: px", "x-forwarded-proto: http", "x-request-id: id-1"];

    proptest! {
        /// Whatever a client sends: nothing of one connection, no cookie that isn't named, and ours said once.
        #[test]
        fn no_bytes_carry_more_to_the_upstream(
            given in prop::collection::vec((
                prop::sample::select(&[
                    "connection", "keep-alive", "te", "upgrade", "cookie", "x-a", "x-forwarded-for", "x-forwarded-host",
                    "x-request-id", "content-length", "transfer-encoding", "expect", "authorization",
                ]),
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..40),
                    prop::sample::select(&["x-a", "close, X-A", ",, x-a ,", "a=1; s=2", "s=;a", "=;;=", "a"])
                        .prop_map(|text| text.as_bytes().to_vec()),
                ],
            ), 0..12),
        ) {
            let mut request = TestRequest::default().peer_addr("192.0.2.7:5000".parse().unwrap());
            let mut hops = Vec::new();
            for (name, value) in &given {
                let Ok(line) = actix::HeaderValue::from_bytes(value) else { continue };
                request = request.append_header((*name, line));
                if *name == "connection" {
                    hops.push(value.as_slice());
                }
            }
            // Said apart from the code above.
            let names_it = |value: &&[u8]| {
                String::from_utf8_lossy(value).to_lowercase().split(',').any(|token| token.trim() == "x-a")
            };
            let is_x_a_a_hop = hops.iter().any(names_it);
            let sent = to_upstream(
                &request.to_http_request(), "192.0.2.7".parse().ok(), "id-1", "http", &["a".to_owned()],
            );
            for (name, value) in &sent {
                let ours = ["x-request-id", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "cookie"];
                let is_passed = matches!(name.as_str(), "authorization") || name == "x-a" && !is_x_a_a_hop;
                prop_assert!(is_passed || ours.contains(&name.as_str()), "{name}");
                if name == "cookie" {
                    let pairs = value.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
                    let mut names = pairs.map(|pair| pair.split(|byte| *byte == b'=').next().unwrap().trim_ascii());
                    prop_assert!(names.all(|name| name == b"a"), "{value:?}");
                }
            }
            let ours = [("x-request-id", "id-1"), ("x-forwarded-for", "192.0.2.7"), ("x-forwarded-proto", "http")];
            for (name, said) in ours {
                let all: Vec<_> = sent.get_all(name).iter().collect();
                prop_assert_eq!(all, [said]);
            }
        }
    }

    #[test]
    fn a_request_keeps_its_end_to_end_headers_only() {
        let lines = [
            ("Host", "px"),
            ("Connection", "close, X-Secret"),
            ("X-Secret", "1"),
            ("Keep-Alive", "5"),
            ("TE", "trailers"),
            ("Upgrade", "h2c"),
            ("Expect", "100-continue"),
            ("Proxy-Authorization", "x"),
            ("Cookie", "a=1; b=2"),
            ("X-Forwarded-For", "203.0.113.9"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "evil"),
            ("X-Request-Id", "other"),
        ];
        assert_eq!(from(&lines, &[]), OURS);
        let kept = from(&[("Host", "px"), ("Accept", "a"), ("Accept", "b"), ("Authorization", "OAuth t")], &[]);
        let mut expected = vec!["accept: a", "accept: b", "authorization: OAuth t"];
        expected.extend(OURS);
        assert_eq!(kept, expected);
    }

    #[test]
    fn only_named_cookies_pass() {
        let lines = [("Host", "px"), ("Cookie", "a=1; session=x=y;ab=2"), ("Cookie", "a=3")];
        assert_eq!(from(&lines, &["a"])[0], "cookie: a=1; a=3");
        assert_eq!(from(&lines, &["session"])[0], "cookie: session=x=y");
        assert_eq!(from(&lines, &["A", "b"]), OURS);
    }

    #[test]
    fn a_trusted_proxy_tells_scheme_and_host() {
        let request = TestRequest::default()
            .peer_addr("10.0.0.1:5000".parse().unwrap())
            .append_header(("Host", "inner"))
            .append_header(("X-Forwarded-Proto", "https"))
            .append_header(("X-Forwarded-Host", "px.example.com"))
            .to_http_request();
        let lines = text(&to_upstream(&request, "192.0.2.7".parse().ok(), "1", "http", &[]));
        assert!(lines.contains(&"x-forwarded-proto: https".to_owned()), "{lines:?}");
        assert!(lines.contains(&"x-forwarded-host: px.example.com".to_owned()), "{lines:?}");
    }

    #[test]
    fn a_secured_connection_is_told() {
        let request = TestRequest::default().append_header(("X-Forwarded-Proto", "http")).to_http_request();
        let lines = text(&to_upstream(&request, None, "1", "https", &[]));
        assert!(lines.contains(&"x-forwarded-proto: https".to_owned()), "{lines:?}");
    }

    #[test]
    fn an_answer_keeps_its_end_to_end_headers_only() {
        let mut given = HeaderMap::new();
        for (name, value) in [
            ("connection", "X-Hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("set-cookie", "a=1; Path=/"),
            ("set-cookie", "b=1"),
            ("etag", "\"x\""),
            ("vary", "a"),
            ("vary", "b"),
        ] {
            append(&mut given, name, value.as_bytes());
        }
        assert_eq!(length(&given), None, "chunks overrule a length");
        let mut builder = HttpResponse::Ok();
        to_client(&given, &["b".to_owned()], &mut builder);
        let reply = builder.finish();
        let mut lines: Vec<String> =
            reply.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        assert_eq!(lines, ["etag: \"x\"", "set-cookie: b=1", "vary: a", "vary: b"]);
    }
}
