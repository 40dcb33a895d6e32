//! The first-party visitor id: a cookie of the gateway's own, and Meta's `_fbp` and `_fbc` beside it (decision 0015).
//!
//! Pure: what a request brought goes in, what its reply sets comes out. A cookie's value is a stranger's text: what is
//! not of the exact form is as if it weren't there, and nothing of it is sent back.

use std::time::Duration;

use super::encode::id_text;
use super::{Client, Consent, Event};
use crate::time::Timestamp;

/// Browsers keep no cookie longer.
pub const MAX_AGE_MAX_DAYS: u64 = 400;
/// As Meta's own script: 90 days.
const META_MAX_AGE: Duration = Duration::from_secs(90 * 24 * 3600);
/// As Meta's own script: a longer one is none.
const CLICK_MAX_BYTES: usize = 500;

/// When visitors get an id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// After `consent=granted`.
    OnConsent,
    /// Unless refused.
    On,
}

/// The cookie's attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// When.
    pub mode: Mode,
    /// Its name.
    pub name: String,
    /// `None`: for the gateway's host alone.
    pub domain: Option<String>,
    /// Lifetime, from each event on.
    pub max_age: Duration,
    /// As the header has it: `Lax`, `Strict`, `None`.
    pub same_site: &'static str,
    /// https only.
    pub secure: bool,
    /// The host that pages ask, for Meta's count of labels where there is no domain.
    pub host: String,
}

/// The options, ready for use.
#[derive(Clone, Debug)]
pub struct Rules {
    mode: Mode,
    name: String,
    own: String,
    gone: String,
    meta: String,
    /// Cookies that come are the very ones that would be set.
    renews: bool,
    /// Meta's second part: labels of the cookie's domain behind the first.
    labels: usize,
}

impl Rules {
    /// From checked options.
    pub fn new(options: &Options) -> Rules {
        let Options { mode, name, domain, max_age, same_site, secure, host } = options;
        let tail = |max_age: Duration, is_own: bool| {
            let domain = domain.as_ref().map_or_else(String::new, |domain| format!("; Domain={domain}"));
            let (secure, own) = (if *secure { "; Secure" } else { "" }, if is_own { "; HttpOnly" } else { "" });
            format!("; Path=/{domain}; Max-Age={}; SameSite={same_site}{secure}{own}", max_age.as_secs())
        };
        let at = domain.as_ref().unwrap_or(host);
        let is_name = at.split('.').next_back().is_some_and(|last| last.bytes().any(|byte| byte.is_ascii_alphabetic()));
        Rules {
            mode: *mode,
            name: name.clone(),
            own: tail(*max_age, true),
            gone: tail(Duration::ZERO, true),
            meta: tail(META_MAX_AGE, false),
            renews: domain.is_some(),
            // Without a name there is nothing to count, and Meta wants 1 of servers that don't know.
            labels: if is_name { at.split('.').count() - 1 } else { 1 },
        }
    }
}

/// By what one request's visitor is recognised again. The ids of its records, in Meta's words and in ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Marks {
    /// `browser_id`.
    pub id: [u8; 36],
    /// `fbp` where no parameter tells it.
    pub fbp: Option<String>,
    /// `fbc` where no parameter tells it.
    pub fbc: Option<String>,
    sets_fbp: bool,
    sets_fbc: bool,
}

/// What the last event with a say in it wants of the cookie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Nothing,
    Set,
    Gone,
}

/// One request, whose events are all one visitor's.
#[derive(Debug)]
pub struct Visit<'a> {
    rules: Option<&'a Rules>,
    cookie: &'a [u8],
    referer: &'a [u8],
    marks: Option<Marks>,
    wanted: Wanted,
}

impl<'a> Visit<'a> {
    /// Nothing is looked at before an event asks. Without rules nothing ever is.
    pub fn new(rules: Option<&'a Rules>, client: &Client<'a>) -> Visit<'a> {
        let (cookie, referer) = (client.cookie.unwrap_or_default(), client.referer.unwrap_or_default());
        Visit { rules, cookie, referer, marks: None, wanted: Wanted::Nothing }
    }

    /// Whether visitors get ids at all.
    pub fn is_on(&self) -> bool {
        self.rules.is_some()
    }

    /// An event whose visitor doesn't want to be recognised.
    pub fn refuse(&mut self) {
        let has_one = |rules: &Rules| values(self.cookie, &rules.name).next().is_some();
        self.wanted = if self.rules.is_some_and(has_one) { Wanted::Gone } else { Wanted::Nothing };
    }

    /// What an event's record may have, once its pixel's policy has been heard.
    pub fn mark(
        &mut self,
        event: &Event<'_>,
        client: &Client<'_>,
        now: Timestamp,
        random: impl FnOnce() -> [u8; 24],
    ) -> Option<&Marks> {
        let rules = self.rules?;
        if client.gpc || client.anonymous || event.consent == Some(Consent::Denied) {
            self.refuse();
            return None;
        }
        if rules.mode == Mode::OnConsent && event.consent.is_none() {
            return None;
        }
        let (cookie, referer) = (self.cookie, self.referer);
        let marks = self.marks.get_or_insert_with(|| Marks::of(rules, cookie, event, now, random()));
        let page = event.page_url.as_deref().map_or(referer, str::as_bytes);
        if let Some(click) = click_of(page).filter(|click| !marks.has_click(click)) {
            let click = String::from_utf8_lossy(click);
            marks.fbc = Some(format!("fb.{}.{}.{click}", rules.labels, now.0));
            marks.sets_fbc = true;
        }
        Some(marks)
    }

    /// The event that was marked has a record.
    pub fn keep(&mut self) {
        if self.marks.is_some() {
            self.wanted = Wanted::Set;
        }
    }

    /// What the reply sets: values of `Set-Cookie`.
    pub fn cookies(self) -> Vec<String> {
        let Some(rules) = self.rules else { return Vec::new() };
        match (self.wanted, self.marks) {
            (Wanted::Set, Some(marks)) => {
                // Of digits and letters, all of them.
                let id = String::from_utf8_lossy(&marks.id);
                let mut set = vec![format!("{}={id}{}", rules.name, rules.own)];
                for (name, value, sets) in [("_fbp", &marks.fbp, marks.sets_fbp), ("_fbc", &marks.fbc, marks.sets_fbc)]
                {
                    set.extend(value.as_ref().filter(|_| sets).map(|value| format!("{name}={value}{}", rules.meta)));
                }
                set
            }
            (Wanted::Gone, _) => vec![format!("{}={}", rules.name, rules.gone)],
            _ => Vec::new(),
        }
    }
}

impl Marks {
    fn of(rules: &Rules, cookie: &[u8], event: &Event<'_>, now: Timestamp, random: [u8; 24]) -> Marks {
        let (id, rest) = random.split_at(16);
        let known = values(cookie, &rules.name).find_map(own_id);
        let made =
            || id_text(uuid::Builder::from_random_bytes(id.try_into().expect("16 of 24")).into_uuid().into_bytes());
        let (fbp, fbc) = (meta_id(cookie, "_fbp", is_fbp), meta_id(cookie, "_fbc", is_fbc));
        let has_fbp = fbp.is_some() || event.fbp.is_some();
        let number = u64::from_le_bytes(rest.try_into().expect("8 of 24")) % (1 << 31);
        Marks {
            id: known.unwrap_or_else(made),
            sets_fbp: if has_fbp { rules.renews && fbp.is_some() } else { true },
            sets_fbc: rules.renews && fbc.is_some(),
            fbp: fbp.or_else(|| (!has_fbp).then(|| format!("fb.{}.{}.{number}", rules.labels, now.0))),
            fbc,
        }
    }

    /// Whether `_fbc` is of this click. Meta's SDKs put a part behind it.
    fn has_click(&self, click: &[u8]) -> bool {
        let known = self.fbc.as_ref().and_then(|fbc| fbc.splitn(4, '.').nth(3)).map(str::as_bytes);
        known.and_then(|known| known.strip_prefix(click)).is_some_and(|rest| rest.is_empty() || rest[0] == b'.')
    }
}

/// The values of a cookie in a `Cookie` header: there may be one of the host and one of its domain.
pub fn values<'a>(header: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> {
    header.split(|byte| *byte == b';').filter_map(move |pair| {
        let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        (!value.is_empty()).then_some(value)
    })
}

/// An id as `Marks` makes it, and nothing that only looks like it: a UUIDv4 in lower case.
fn own_id(value: &[u8]) -> Option<[u8; 36]> {
    let text: [u8; 36] = value.try_into().ok()?;
    let uuid = uuid::Uuid::try_parse_ascii(&text).ok()?;
    (uuid.get_version_num() == 4 && id_text(uuid.into_bytes()) == text).then_some(text)
}

fn meta_id(header: &[u8], name: &str, is_one: fn(&str) -> bool) -> Option<String> {
    let texts = values(header, name).filter_map(|value| std::str::from_utf8(value).ok());
    texts.into_iter().find(|text| is_one(text)).map(str::to_owned)
}

/// `fb.1.1596403881668.1116446470`; newer SDKs put a short part of their own behind it.
fn is_fbp(text: &str) -> bool {
    meta_parts(text).is_some_and(|rest| {
        let (number, own) = rest.split_once('.').unwrap_or((rest, "AQ"));
        is_number(number, 1..=20) && own.len() <= 8 && is_click(own.as_bytes()) && !own.contains(['.', '%'])
    })
}

/// `fb.1.1596403881668.IwAR…`, with such a part behind it or not.
fn is_fbc(text: &str) -> bool {
    meta_parts(text).is_some_and(|rest| is_click(rest.as_bytes()))
}

/// The payload of an id of Meta's format.
fn meta_parts(text: &str) -> Option<&str> {
    let mut parts = text.splitn(4, '.');
    let is_sound = parts.next() == Some("fb") && is_number(parts.next()?, 1..=2) && is_number(parts.next()?, 10..=14);
    parts.next().filter(|_| is_sound)
}

fn is_number(text: &str, lengths: std::ops::RangeInclusive<usize>) -> bool {
    lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A click id: whatever a URL and a cookie can both carry as it is.
fn is_click(text: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'%');
    (1..=CLICK_MAX_BYTES + 10).contains(&text.len()) && text.iter().all(plain)
}

/// The click that brought the visitor to a page: `fbclid` of its URL, unchanged, as its case matters.
fn click_of(url: &[u8]) -> Option<&[u8]> {
    let start = memchr::memchr(b'?', url)? + 1;
    let query = url[start..].split(|byte| *byte == b'#').next()?;
    let click = query.split(|byte| *byte == b'&').find_map(|pair| pair.strip_prefix(b"fbclid="))?;
    (click.len() <= CLICK_MAX_BYTES && is_click(click)).then_some(click)
}
