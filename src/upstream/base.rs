//! Where the upstream is: a URL that is taken apart once, so that nothing of a request can choose another place.

use std::net::IpAddr;

use hyper::http::HeaderValue;
use hyper::http::uri::{Authority, PathAndQuery, Uri};

/// `registry.upstream`: scheme, host, port, and the path that all targets are put behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base {
    secure: bool,
    authority: Authority,
    /// Without a trailing slash.
    path: String,
}

/// What [`Base::parse`] allows.
pub const ALLOWED: &str =
    "allowed is an http or https URL such as https://api.example.com, without user, query or fragment";

impl Base {
    /// Reads a URL; see [`ALLOWED`].
    pub fn parse(text: &str) -> Option<Base> {
        let uri: Uri = text.parse().ok().filter(|_| !text.contains('#'))?;
        let secure = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let authority = uri.authority()?.clone();
        let plain = !authority.as_str().contains('@') && !authority.host().is_empty();
        // A port that is no number is no port: `http` reads it as none.
        let port = authority.as_str().strip_prefix(authority.host())?;
        let port = port.is_empty() || port.strip_prefix(':')?.parse::<u16>().is_ok_and(|port| port > 0);
        let path = uri.path().trim_end_matches('/');
        let straight = path.is_empty() || path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."));
        (plain && port && straight && uri.query().is_none()).then(|| Base { secure, authority, path: path.to_owned() })
    }

    /// Whether it is reached by TLS.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// The name or address to connect to.
    pub(super) fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    /// The port to connect to.
    pub(super) fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.secure { 443 } else { 80 })
    }

    /// Whether requests and their tokens would cross a network in clear text.
    pub fn is_exposed(&self) -> bool {
        let host = self.host();
        let loopback = host.parse::<IpAddr>().map_or(host == "localhost", |address| address.is_loopback());
        !self.secure && !loopback
    }

    pub(super) fn host_header(&self) -> HeaderValue {
        HeaderValue::from_str(self.authority.as_str()).expect("an authority is visible ASCII")
    }

    /// The request line's target.
    pub(super) fn target(&self, below: &PathAndQuery) -> Uri {
        if self.path.is_empty() {
            return Uri::from(below.clone());
        }
        format!("{}{below}", self.path).parse().expect("a path followed by a path and query is one")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_a_plain_url() {
        for bad in [
            "",
            "api.example.com",
            "ftp://api.example.com",
            "https://",
            "https:///a",
            "https://user@api.example.com",
            "https://user:word@api.example.com",
            "https://api.example.com?a=b",
            "https://api.example.com/?",
            "https://api.example.com/#a",
            "https://api.example.com:0",
            "https://api.example.com:99999",
            "https://api.example.com:",
            "https://api.example.com/a/../b",
            "https://api.example.com//a",
            "https://api example.com",
            "/offsitepixels",
        ] {
            assert_eq!(Base::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn where_it_leads() {
        let check = |text: &str, host: &str, port, exposed| {
            let base = Base::parse(text).unwrap();
            assert_eq!((base.host(), base.port(), base.is_exposed()), (host, port, exposed), "{text}");
        };
        check("https://api.example.com", "api.example.com", 443, false);
        check("http://api.example.com/", "api.example.com", 80, true);
        check("http://127.0.0.1:9000/base/", "127.0.0.1", 9000, false);
        check("http://[::1]:9000", "::1", 9000, false);
        check("http://localhost", "localhost", 80, false);
        check("http://127.0.0.1.example.com", "127.0.0.1.example.com", 80, true);
    }

    #[test]
    fn targets_are_put_behind_the_base_as_they_are() {
        let check = |base: &str, target: &str, expected: &str| {
            let target = target.parse().unwrap();
            assert_eq!(Base::parse(base).unwrap().target(&target).to_string(), expected);
        };
        check("https://a", "/offsitepixels?x=%2F..&y='|&&=", "/offsitepixels?x=%2F..&y='|&&=");
        check("https://a/v1/", "/offsitepixels/7", "/v1/offsitepixels/7");
        assert_eq!(Base::parse("http://[::1]:9000").unwrap().host_header(), "[::1]:9000");
    }
}
