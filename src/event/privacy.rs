//! What may be kept of a visitor: applied before anything is stored, to the event and to rejected requests alike.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How much of the visitor's address is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientIp {
    /// All of it.
    Full,
    /// IPv4 /24, IPv6 /48.
    Truncated,
    /// Nothing.
    None,
}

/// What is kept of the query of a URL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UrlQuery {
    /// `utm_*` and click ids.
    Allowlist,
    /// All of it.
    Keep,
    /// Nothing.
    Drop,
}

/// The rules.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address.
    pub client_ip: ClientIp,
    /// Queries of URLs.
    pub url_query: UrlQuery,
}

/// Parameters by which ad networks recognise a click.
const CLICK_IDS: &[&str] =
    &["fbclid", "gclid", "gbraid", "wbraid", "dclid", "msclkid", "ttclid", "twclid", "li_fat_id", "yclid", "epik"];

/// Whether a parameter is a click id.
pub fn is_click_id(name: &str) -> bool {
    CLICK_IDS.contains(&name)
}

impl Options {
    /// The address as it may be kept. An IPv4 address mapped into IPv6 counts as IPv4.
    pub fn address(&self, ip: IpAddr) -> Option<IpAddr> {
        match (self.client_ip, ip.to_canonical()) {
            (ClientIp::None, _) => None,
            (ClientIp::Full, ip) => Some(ip),
            (ClientIp::Truncated, IpAddr::V4(ip)) => {
                let [a, b, c, _] = ip.octets();
                Some(IpAddr::V4(Ipv4Addr::new(a, b, c, 0)))
            }
            (ClientIp::Truncated, IpAddr::V6(ip)) => {
                let [a, b, c, ..] = ip.segments();
                Some(IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)))
            }
        }
    }

    /// A URL as it may be kept; `anonymous` says that click ids go too.
    /// The fragment goes with all but `keep`, as it may carry the same. Text that is no http(s) URL is left alone.
    pub fn url<'a>(&self, url: &'a str, anonymous: bool) -> Cow<'a, str> {
        if !is_url(url) || (self.url_query == UrlQuery::Keep && !anonymous) {
            return Cow::Borrowed(url);
        }
        let keeps = self.url_query == UrlQuery::Keep;
        let (rest, fragment) = url.split_once('#').map_or((url, None), |(rest, fragment)| (rest, Some(fragment)));
        let (base, query) = rest.split_once('?').map_or((rest, ""), |parts| parts);
        let mut kept = String::from(base);
        let mut separator = '?';
        for pair in query.split('&') {
            let name = pair.split('=').next().unwrap_or_default();
            let lower = name.to_ascii_lowercase();
            let wanted = match self.url_query {
                UrlQuery::Keep => !is_click_id(&lower),
                UrlQuery::Allowlist => lower.starts_with("utm_") || (is_click_id(&lower) && !anonymous),
                UrlQuery::Drop => false,
            };
            if wanted && !pair.is_empty() {
                kept.push(separator);
                kept.push_str(pair);
                separator = '&';
            }
        }
        if let (true, Some(fragment)) = (keeps, fragment) {
            kept.push('#');
            kept.push_str(fragment);
        }
        Cow::Owned(kept)
    }
}

/// Whether a text is an http(s) URL.
pub fn is_url(text: &str) -> bool {
    let begins = |scheme: &str| {
        text.as_bytes().get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme.as_bytes()))
    };
    begins("http://") || begins("https://")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(url_query: UrlQuery) -> Options {
        Options { client_ip: ClientIp::Truncated, url_query }
    }

    #[test]
    fn addresses_are_cut_to_their_network() {
        let rules = rules(UrlQuery::Allowlist);
        let check = |ip: &str, kept: &str| {
            assert_eq!(rules.address(ip.parse().unwrap()), Some(kept.parse().unwrap()), "{ip}");
        };
        check("203.0.113.77", "203.0.113.0");
        check("::ffff:203.0.113.77", "203.0.113.0");
        check("2001:db8:1:2:3::4", "2001:db8:1::");
        let none = Options { client_ip: ClientIp::None, ..rules.clone() };
        assert_eq!(none.address("203.0.113.77".parse().unwrap()), None);
    }

    #[test]
    fn urls_lose_what_is_not_allowed() {
        let url = "https://s.example/p?email=a%40b&utm_source=x&fbclid=AbC&k#token=1";
        assert_eq!(rules(UrlQuery::Allowlist).url(url, false), "https://s.example/p?utm_source=x&fbclid=AbC");
        assert_eq!(rules(UrlQuery::Allowlist).url(url, true), "https://s.example/p?utm_source=x");
        assert_eq!(rules(UrlQuery::Drop).url(url, false), "https://s.example/p");
        assert_eq!(rules(UrlQuery::Keep).url(url, false), url);
        assert_eq!(rules(UrlQuery::Drop).url("a?b=c", false), "a?b=c");
    }
}
