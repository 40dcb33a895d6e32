//! What an operator lays over pixels: which pages may report for one, and what a visitor's refusal means for it.
//!
//! Pure: bytes of headers in, decisions out. Bounded by the config's own bounds ([`PIXELS_MAX`], [`ORIGINS_MAX`]).

use std::net::Ipv6Addr;

use ahash::AHashMap;

use crate::pixel::PixelId;

/// Most pixels with an overlay: more are a database, not a config file.
pub const PIXELS_MAX: usize = 10_000;
/// Most origins of one pixel: they are looked through one by one, per event.
pub const ORIGINS_MAX: usize = 100;
/// The word for requests that name no page at all, as in nginx's `valid_referers`.
const NO_PAGE: &str = "none";

/// What a visitor's refusal does to an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Treatment {
    /// Nothing.
    Ignore,
    /// It is recorded without what recognises the visitor again: `browser_id`, `fbp`, `fbc`, click ids.
    Anonymise,
    /// It is answered as accepted, and no record is made.
    Drop,
}

impl Treatment {
    /// All of them with the config's words.
    pub const ALL: [(&str, Treatment); 3] =
        [("ignore", Treatment::Ignore), ("anonymise", Treatment::Anonymise), ("drop", Treatment::Drop)];

    /// The config's word.
    pub fn as_str(self) -> &'static str {
        Treatment::ALL.iter().find(|(_, treatment)| *treatment == self).map_or("", |(word, _)| word)
    }
}

/// Hosts of pages that may report for a pixel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origins {
    /// In lower case; those that begin with a dot stand for all hosts that end so.
    hosts: Vec<String>,
    /// Whether requests without any page are allowed.
    no_page: bool,
}

impl Origins {
    /// What [`Origins::parse`] takes, for people.
    pub const ALLOWED: &str = "allowed are hosts without scheme, port and path, such as shop.example or *.shop.example \
                               (its subdomains), and none (requests that name no page)";

    /// From the operator's words; the first that is none.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Origins, &'a str> {
        let mut origins = Origins { hosts: Vec::new(), no_page: false };
        for word in words {
            let below = word.strip_prefix("*.");
            match (word == NO_PAGE, below.unwrap_or(word)) {
                (true, _) => origins.no_page = true,
                (false, host) if is_host(host, below.is_none()) => {
                    let dot = if below.is_some() { "." } else { "" };
                    origins.hosts.push(format!("{dot}{}", host.to_ascii_lowercase()));
                }
                _ => return Err(word),
            }
        }
        Ok(origins)
    }

    /// As the operator would write them.
    pub fn words(&self) -> impl Iterator<Item = String> {
        let host = |host: &String| if host.starts_with('.') { format!("*{host}") } else { host.clone() };
        self.hosts.iter().map(host).chain(self.no_page.then(|| NO_PAGE.to_owned()))
    }

    /// Whether a request may report. `Origin` speaks for it, and `Referer` only where `Origin` is absent or `null`,
    /// which says that the browser withholds it.
    pub fn allow(&self, origin: Option<&[u8]>, referer: Option<&[u8]>) -> bool {
        let named = |header: Option<&[u8]>| {
            let header = header.filter(|header| !header.is_empty() && *header != b"null")?;
            Some(host_of(header).is_some_and(|host| self.has(host)))
        };
        named(origin).or_else(|| named(referer)).unwrap_or(self.no_page)
    }

    /// The origin of a page that may report, for who tries the pixel out; `None` where no page needs to be named, or
    /// none may report.
    pub fn page(&self) -> Option<String> {
        let host = self.hosts.first().filter(|_| !self.no_page)?;
        Some(format!("https://{}{host}", if host.starts_with('.') { "www" } else { "" }))
    }

    fn has(&self, host: &[u8]) -> bool {
        self.hosts.iter().any(|allowed| {
            let allowed = allowed.as_bytes();
            match allowed.first() {
                // At least a letter before the dot: the host itself is none of its subdomains.
                Some(b'.') => {
                    let end = host.len().checked_sub(allowed.len()).filter(|end| *end > 0);
                    end.is_some_and(|end| host[end..].eq_ignore_ascii_case(allowed))
                }
                _ => host.eq_ignore_ascii_case(allowed),
            }
        })
    }
}

/// The host of a URL.
pub fn host(url: &str) -> Option<&str> {
    host_of(url.as_bytes()).and_then(|host| std::str::from_utf8(host).ok())
}

/// The host of a URL, without a port, a user and the dot of its root.
fn host_of(url: &[u8]) -> Option<&[u8]> {
    let start = memchr::memmem::find(url, b"://")? + 3;
    let authority = url[start..].split(|byte| matches!(byte, b'/' | b'?' | b'#' | b'\\')).next()?;
    let host = authority.rsplit(|byte| *byte == b'@').next()?;
    let end = match host.first() {
        Some(b'[') => host.iter().position(|byte| *byte == b']')? + 1,
        _ => host.iter().position(|byte| *byte == b':').unwrap_or(host.len()),
    };
    let host = &host[..end];
    Some(host.strip_suffix(b".").unwrap_or(host)).filter(|host| !host.is_empty())
}

/// A name of labels, or an address if that may be one.
fn is_host(text: &str, or_address: bool) -> bool {
    if let Some(inside) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return or_address && inside.parse::<Ipv6Addr>().is_ok();
    }
    is_name(text)
}

/// A host's name: labels of letters, digits, `-` and `_`.
pub fn is_name(text: &str) -> bool {
    let in_label = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(in_label);
    text.len() <= 253 && text.split('.').all(is_label)
}

/// What is laid over one pixel, or over all. What is not set is as it is for all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Overlay {
    /// Pages that may report.
    pub origins: Option<Origins>,
    /// What `Sec-GPC: 1` does.
    pub gpc: Option<Treatment>,
    /// What `consent=denied` does.
    pub consent: Option<Treatment>,
}

/// All pixels' rules.
#[derive(Clone, Debug)]
pub struct Policies {
    own: AHashMap<PixelId, Overlay>,
    all: Overlay,
    gpc: Treatment,
}

/// The rules of one pixel.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// Pages that may report; `None`: any.
    pub origins: Option<&'a Origins>,
    gpc: Treatment,
    consent: Treatment,
}

/// What a visitor said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wishes {
    /// `Sec-GPC: 1`.
    pub gpc: bool,
    /// `consent=denied`.
    pub denied: bool,
}

/// What is done about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// A record; `gpc`: the signal is honoured; `anonymous`: without what recognises the visitor again.
    Record {
        /// `Sec-GPC: 1` was sent and means something here.
        gpc: bool,
        /// For whatever reason.
        anonymous: bool,
    },
    /// No record, by `Sec-GPC: 1`.
    DropByGpc,
    /// No record, by `consent=denied`.
    DropByConsent,
}

impl Policies {
    /// `gpc` is what holds where neither `all` nor a pixel's own overlay says anything.
    pub fn new(own: impl IntoIterator<Item = (PixelId, Overlay)>, all: Overlay, gpc: Treatment) -> Policies {
        Policies { own: own.into_iter().collect(), all, gpc }
    }

    /// The rules of a pixel, or of requests that name none.
    pub fn of(&self, pixel: Option<PixelId>) -> Policy<'_> {
        let own = pixel.filter(|_| !self.own.is_empty()).and_then(|pixel| self.own.get(&pixel));
        let (own, all) = (own.unwrap_or(&self.all), &self.all);
        Policy {
            origins: own.origins.as_ref().or(all.origins.as_ref()),
            gpc: own.gpc.or(all.gpc).unwrap_or(self.gpc),
            consent: own.consent.or(all.consent).unwrap_or(Treatment::Anonymise),
        }
    }
}

impl Policy<'_> {
    /// What a visitor's wishes mean. A refusal by both means is counted as one of consent, which is the visitor's own
    /// word to this page.
    pub fn decide(&self, wishes: Wishes) -> Decision {
        let consent = if wishes.denied { self.consent } else { Treatment::Ignore };
        let gpc = if wishes.gpc { self.gpc } else { Treatment::Ignore };
        match (consent, gpc) {
            (Treatment::Drop, _) => Decision::DropByConsent,
            (_, Treatment::Drop) => Decision::DropByGpc,
            (consent, gpc) => {
                let (denied, gpc) = (consent == Treatment::Anonymise, gpc == Treatment::Anonymise);
                Decision::Record { gpc, anonymous: gpc || denied }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origins(words: &[&'static str]) -> Origins {
        Origins::parse(words.iter().copied()).unwrap()
    }

    fn allows(words: &[&'static str], origin: &str, referer: &str) -> bool {
        let header = |text: &'_ str| (!text.is_empty()).then(|| text.as_bytes().to_vec());
        let (origin, referer) = (header(origin), header(referer));
        origins(words).allow(origin.as_deref(), referer.as_deref())
    }

    #[test]
    fn the_page_that_it_names_is_allowed() {
        for words in [&["shop.example"][..], &["*.example.com", "a.example"], &["[::1]"]] {
            let origins = origins(words);
            let page = origins.page().unwrap();
            assert!(origins.allow(Some(page.as_bytes()), None), "{page}");
        }
        assert_eq!(origins(&["shop.example", "none"]).page(), None);
        assert_eq!(origins(&[]).page(), None);
    }

    #[test]
    fn hosts_match_whole_and_below_a_star() {
        let words = &["shop.example", "*.example.com", "[::1]"];
        for origin in [
            "https://shop.example",
            "http://SHOP.example:8080",
            "https://shop.example.",
            "https://a.example.com",
            "https://a.b.Example.Com:1",
            "http://[::1]:3000",
        ] {
            assert!(allows(words, origin, ""), "{origin}");
            assert!(allows(words, "", &format!("{origin}/page?x=https://other.example/")), "{origin}");
            assert!(allows(words, "null", &format!("{origin}/")), "{origin}");
        }
        for origin in [
            "https://example.com",
            "https://xexample.com",
            "https://shop.example.evil.example",
            "https://evil.example/#https://shop.example",
            "https://evil.example?://shop.example",
            "https://shop.example@evil.example",
            "https://evil.example\\@shop.example",
            "https://.example.com",
            "shop.example",
            "https://",
            "https://:80",
            "garbage",
        ] {
            assert!(!allows(words, origin, "https://shop.example/"), "the Origin speaks, not the Referer: {origin}");
            assert!(!allows(words, "", origin), "{origin}");
        }
    }

    #[test]
    fn a_request_that_names_no_page_needs_a_word_of_the_operator() {
        for (origin, referer) in [("", ""), ("null", "")] {
            assert!(!allows(&["shop.example"], origin, referer));
            assert!(allows(&["shop.example", "none"], origin, referer));
        }
        assert!(!allows(&["none"], "https://evil.example", ""));
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for bad in [
            "",
            "*",
            "*.",
            "*.*.example",
            "a.*.example",
            "https://shop.example",
            "shop.example:443",
            "shop.example/",
            "bücher.example",
            "a..b",
            ".example",
            "a b",
            "[::1",
            "*.[::1]",
            "[x]",
        ] {
            assert_eq!(Origins::parse([bad]), Err(bad));
        }
        let written: Vec<String> = origins(&["Shop.example", "*.X.example", "none"]).words().collect();
        assert_eq!(written, ["shop.example", "*.x.example", "none"]);
    }

    #[test]
    fn a_pixel_s_own_word_goes_before_that_for_all() {
        let (seven, eight) = (PixelId::parse(b"7").unwrap(), PixelId::parse(b"8").unwrap());
        let own = Overlay { gpc: Some(Treatment::Drop), ..Overlay::default() };
        let all = Overlay {
            origins: Some(origins(&["a.example"])),
            gpc: Some(Treatment::Ignore),
            consent: Some(Treatment::Drop),
        };
        let policies = Policies::new([(seven, own)], all, Treatment::Anonymise);
        let both = Wishes { gpc: true, denied: true };
        let gpc = Wishes { gpc: true, denied: false };
        assert_eq!(policies.of(Some(seven)).decide(gpc), Decision::DropByGpc);
        assert_eq!(policies.of(Some(seven)).decide(both), Decision::DropByConsent);
        assert!(policies.of(Some(seven)).origins.is_some());
        assert_eq!(policies.of(Some(eight)).decide(gpc), Decision::Record { gpc: false, anonymous: false });
        let plain = Policies::new([], Overlay::default(), Treatment::Anonymise);
        assert_eq!(plain.of(None).decide(both), Decision::Record { gpc: true, anonymous: true });
        let denied = Wishes { gpc: false, denied: true };
        assert_eq!(plain.of(None).decide(denied), Decision::Record { gpc: false, anonymous: true });
    }

    proptest! {
        #[test]
        fn no_header_is_too_strange(origin: Vec<u8>, referer: Vec<u8>, host in "[a-z]{1,9}\\.[a-z]{1,9}") {
            let allowed = Origins::parse([&*host]).unwrap();
            // Nothing that doesn't hold the host is allowed, whatever it is.
            let holds = |bytes: &[u8]| {
                bytes.to_ascii_lowercase().windows(host.len()).any(|part| part == host.as_bytes())
            };
            let allows = allowed.allow(Some(&origin), Some(&referer));
            prop_assert!(!allows || holds(&origin) || holds(&referer));
            let url = format!("https://{host}/");
            prop_assert!(allowed.allow(Some(url.as_bytes()), Some(&referer)));
        }
    }
}
