//! A whole request of an event route, parsed where it lies. Stricter than a server has to be: what is not plainly an
//! ordinary event is left to actix, so that there is one place only that has an opinion on it.

use super::collect::{Bounds, PATHS};
use super::facts::Facts;

/// More lines than browsers and proxies send; what has more is no ordinary request.
const MAX_LINES: usize = 48;

/// See the module.
pub(super) struct Request<'a> {
    pub(super) is_post: bool,
    pub(super) query: &'a [u8],
    pub(super) facts: Facts<'a>,
    /// `X-Forwarded-For`.
    pub(super) forwarded: Option<&'a [u8]>,
    pub(super) body: &'a [u8],
    /// The sender wants no further answer on this connection.
    pub(super) closes: bool,
    /// Length with its body.
    pub(super) bytes: usize,
    target_bytes: usize,
    line_bytes: usize,
}

/// What lines beside the facts say.
#[derive(Default)]
struct Framing<'a> {
    hosts: usize,
    forwarded: Option<&'a [u8]>,
    length: Option<usize>,
    closes: bool,
}

impl<'a> Request<'a> {
    /// The request that `bytes` begin with. `None` if it isn't whole, or not of the ordinary kind.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Request<'a>> {
        let is_post = bytes.starts_with(b"POST ");
        if !is_post && !bytes.starts_with(b"GET ") {
            return None;
        }
        let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
        let mut parsed = httparse::Request::new(&mut lines);
        let Ok(httparse::Status::Complete(head_bytes)) = parsed.parse(bytes) else { return None };
        let target = parsed.path?.as_bytes();
        if parsed.version != Some(1) || !target.iter().fold(true, |plain, byte| plain & is_plain(*byte)) {
            return None;
        }
        let (path, query) = match memchr::memchr(b'?', target) {
            Some(at) => (&target[..at], &target[at + 1..]),
            None => (target, &target[..0]),
        };
        if !PATHS.iter().any(|known| known.as_bytes() == path) {
            return None;
        }
        let (mut facts, mut framing, mut line_bytes) = (Facts::default(), Framing::default(), 0);
        for line in parsed.headers.iter() {
            line_bytes += line.name.len() + line.value.len() + 4;
            if !facts.take(line.name.as_bytes(), line.value) && !framing.take(line.name.as_bytes(), line.value) {
                return None;
            }
        }
        // A GET with a length is lawful and odd; a POST without one has no body or one of unknown length.
        let body_bytes = framing.length.unwrap_or_default();
        let body = bytes[head_bytes..].get(..body_bytes)?;
        (framing.hosts == 1 && is_post == framing.length.is_some()).then_some(Request {
            is_post,
            query,
            facts,
            forwarded: framing.forwarded,
            body,
            closes: framing.closes,
            bytes: head_bytes + body_bytes,
            target_bytes: target.len(),
            line_bytes,
        })
    }

    pub(super) fn is_within(&self, bounds: &Bounds) -> bool {
        self.target_bytes <= bounds.max_uri_bytes
            && self.line_bytes <= bounds.max_header_bytes
            && self.body.len() <= bounds.body.max_bytes
    }
}

/// What a target may hold that actix takes as it is: no fragment, nothing that it refuses.
fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x24..=0x3B | 0x3D | 0x3F..=0x7E)
}

impl<'a> Framing<'a> {
    /// False if a line makes the request one for actix.
    fn take(&mut self, name: &[u8], value: &'a [u8]) -> bool {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if is(b"host") => {
                self.hosts += 1;
                self.hosts == 1
            }
            6 => !is(b"expect"),
            7 => !is(b"upgrade"),
            10 if is(b"connection") => {
                self.closes |= value.eq_ignore_ascii_case(b"close");
                self.closes || value.eq_ignore_ascii_case(b"keep-alive")
            }
            14 if is(b"content-length") => {
                let length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                let is_new = self.length.is_none() && value.iter().all(u8::is_ascii_digit) && length.is_some();
                self.length = length;
                is_new
            }
            15 if is(b"x-forwarded-for") => self.forwarded.replace(value).is_none(),
            16 => !is(b"content-encoding"),
            17 => !is(b"transfer-encoding"),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(request: &str) -> Option<(usize, usize)> {
        Request::parse(request.as_bytes()).map(|request| (request.bytes, request.body.len()))
    }

    fn get(lines: &str) -> String {
        format!("GET /offsite_event.php?id=1 HTTP/1.1\r\n{lines}\r\n")
    }

    fn post(lines: &str, body: &str) -> String {
        format!("POST /offsite_event HTTP/1.1\r\nHost: x\r\n{lines}\r\n{body}")
    }

    /// Lines that mean something here, whole or not, and whatever else.
    fn lines() -> impl Strategy<Value = Vec<u8>> {
        let known = prop::sample::select(&[
            "GET /offsite_event.php?id=1 HTTP/1.1\r\n",
            "POST /offsite_event HTTP/1.1\r\n",
            "POST /tr/ HTTP/1.1\r\n",
            "Host: x\r\n",
            "Content-Length: 3\r\n",
            "Content-Length: 0",
            "Transfer-Encoding: chunked\r\n",
            "X-Forwarded-For: 1.2.3.4\r\n",
            "Connection: close\r\n",
            "Cookie: _fbp=fb.1.2.3\r\n",
            "\r\n",
            "\n",
            " ",
            ":",
            "abc",
        ]);
        let piece = prop_oneof![
            6 => known.prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..40),
        ];
        prop::collection::vec(piece, 1..10).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// Whatever comes is read without a panic, and what is taken is whole, no shorter and no longer than it says.
        #[test]
        fn any_bytes_are_left_alone_or_taken_whole(
            start in prop::sample::select(&[
                "",
                "GET /offsite_event.php?a=b HTTP/1.1\r\n",
                "POST /offsite_event HTTP/1.1\r\nHost: x\r\n",
            ]),
            rest in lines(),
            behind in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut bytes = start.as_bytes().to_vec();
            bytes.extend_from_slice(&rest);
            let length = |bytes: &[u8]| Request::parse(bytes).map(|request| (request.bytes, request.body.len()));
            if let Some((whole, body)) = length(&bytes) {
                prop_assert!(whole <= bytes.len() && body < whole);
                prop_assert_eq!(length(&bytes[..whole - 1]), None);
                bytes.truncate(whole);
                bytes.extend_from_slice(&behind);
                prop_assert_eq!(length(&bytes), Some((whole, body)));
            }
        }
    }

    #[test]
    fn ordinary_events_are_taken_with_all_that_is_theirs() {
        for request in [
            get("Host: x\r\n"),
            get("HOST: x\r\nconnection: Keep-Alive\r\nTE: trailers\r\n"),
            get("Host: x\r\nX-Forwarded-For: 1.2.3.4, 5.6.7.8\r\n"),
            post("Content-Length: 3\r\n", "abc"),
            post("Content-Length: 0\r\n", ""),
        ] {
            let whole = parse(&request).unwrap_or_else(|| panic!("{request}"));
            assert_eq!(whole.0, request.len());
            // What follows is none of it, and what is missing makes it none.
            assert_eq!(parse(&format!("{request}GET /")), Some(whole));
            assert_eq!((0..request.len()).find(|end| parse(&request[..*end]).is_some()), None, "{request}");
        }
        let request = get("Host: x\r\nConnection: Close\r\nUser-Agent: a\r\nUser-Agent: b\r\n");
        let request = Request::parse(request.as_bytes()).unwrap();
        assert!(request.closes && !request.is_post);
        assert_eq!((request.query, request.facts.user_agent), (&b"id=1"[..], Some(&b"a"[..])));
    }

    #[test]
    fn whatever_could_be_read_in_two_ways_is_left_alone() {
        let host = "Host: x\r\n";
        for lines in [
            "",
            "Host: x\r\nHost: x\r\n",
            "Host: x\r\nContent-Length: 0\r\n",
            "Host: x\r\nTransfer-Encoding: chunked\r\n",
            "Host: x\r\nTransfer-Encoding: identity\r\n",
            "Host: x\r\nConnection: upgrade\r\n",
            "Host: x\r\nConnection: keep-alive, x\r\n",
            "Host: x\r\nUpgrade: h2c\r\n",
            "Host: x\r\nExpect: 100-continue\r\n",
            "Host: x\r\nX-Forwarded-For: a\r\nX-Forwarded-For: b\r\n",
            "Host: x\r\n folded\r\n",
            "Host : x\r\n",
        ] {
            assert_eq!(parse(&get(lines)), None, "{lines}");
        }
        for lines in [
            "",
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "Content-Length: +3\r\n",
            "Content-Length: 3,3\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 3\r\nContent-Encoding: identity\r\n",
        ] {
            assert_eq!(parse(&post(lines, "abc")), None, "{lines}");
        }
        for line in [
            "HEAD /offsite_event.php HTTP/1.1",
            "get /offsite_event.php HTTP/1.1",
            "GET /offsite_event.php HTTP/1.0",
            "GET /offsite_event.php#x HTTP/1.1",
            "GET /offsite_event.php?<x> HTTP/1.1",
            "GET /offsite_event.php?\u{e9} HTTP/1.1",
            "GET /offsite_event.php/ HTTP/1.1",
            "GET //offsite_event.php HTTP/1.1",
            "GET /offsite%5fevent.php HTTP/1.1",
            "GET http://x/offsite_event.php HTTP/1.1",
            "\r\nGET /offsite_event.php HTTP/1.1",
        ] {
            assert_eq!(parse(&format!("{line}\r\n{host}\r\n")), None, "{line}");
        }
    }
}
