//! What is kept of a rejected request's own text (`raw` of its record), with the privacy rules applied to it.
//!
//! A form is judged pair by pair after decoding, as the event would have been. Other bodies are looked through for
//! URLs; what can't be told apart is cut, so that a rule can't be got round by a body that doesn't parse.

use std::borrow::Cow;

use super::parse::percent_decode;
use super::privacy::{self, Options, UrlQuery};
use super::{Body, RawEvent};

/// Longest `raw`.
pub const MAX_RAW_BYTES: usize = 4096;

/// The query, or without one the body. `None` if nothing of it may be kept: identifiers can't be taken out of a body
/// that is no form when the visitor must stay `anonymous`.
pub fn kept(raw: &RawEvent<'_>, rules: &Options, anonymous: bool) -> Option<String> {
    let (bytes, is_form) = match raw.body {
        _ if !raw.query.is_empty() => (raw.query, true),
        Body::None => (&b""[..], true),
        Body::Form(bytes) => (bytes, true),
        Body::Text(bytes) => (bytes, bytes.trim_ascii_start().first() != Some(&b'{')),
        Body::Json(bytes) | Body::Multipart(bytes, _) => (bytes, false),
    };
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_RAW_BYTES)]);
    let mut text = match (is_form, anonymous) {
        (true, _) => form(&text, rules, anonymous),
        (false, true) => return None,
        (false, false) => free_text(&text, rules),
    };
    text.truncate(text.floor_char_boundary(MAX_RAW_BYTES));
    Some(text)
}

/// Whether a request that was not read to its end refuses consent. A body of any other shape than a form's that has
/// both words in it is taken to do so: it only means that less is kept.
pub fn denies_consent(raw: &RawEvent<'_>) -> bool {
    let says_so = |pair: &[u8]| {
        let at = memchr::memchr(b'=', pair).unwrap_or(pair.len());
        let (name, value) = (percent_decode(&pair[..at]), percent_decode(pair.get(at + 1..).unwrap_or_default()));
        matches!(&*name, b"consent" | b"amp;consent") && *value == *b"denied"
    };
    let form = |bytes: &[u8]| bytes.split(|byte| *byte == b'&').any(says_so);
    let has = |bytes: &[u8], word: &[u8]| memchr::memmem::find(bytes, word).is_some();
    form(raw.query)
        || match raw.body {
            Body::None => false,
            Body::Form(bytes) => form(bytes),
            Body::Text(bytes) | Body::Json(bytes) | Body::Multipart(bytes, _) => {
                form(bytes.trim_ascii()) || has(bytes, b"consent") && has(bytes, b"denied")
            }
        }
}

fn form(text: &str, rules: &Options, anonymous: bool) -> String {
    let mut kept = String::with_capacity(text.len());
    for pair in text.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decoded = percent_decode(name.as_bytes());
        let decoded = String::from_utf8_lossy(&decoded);
        let plain = decoded.strip_prefix("amp;").unwrap_or(&decoded);
        if anonymous && (privacy::is_click_id(plain) || plain == "fbp" || plain == "fbc") {
            continue;
        }
        if !kept.is_empty() {
            kept.push('&');
        }
        let url = percent_decode(value.as_bytes());
        let url = String::from_utf8_lossy(&url);
        match rules.url(&url, anonymous) {
            Cow::Owned(allowed) if allowed != url => {
                kept.push_str(&pair[..pair.len() - value.len()]);
                encode(&mut kept, &allowed);
            }
            _ => kept.push_str(pair),
        }
    }
    kept
}

/// Writes a value so that a form's reader gets it back.
fn encode(out: &mut String, text: &str) {
    for character in text.chars() {
        if matches!(character, '&' | '%' | '+' | '#' | ' ' | '\0'..='\x1f') {
            out.push_str(&format!("%{:02X}", u32::from(character)));
        } else {
            out.push(character);
        }
    }
}

/// Text of any other shape: JSON, whole or broken, or the parts of a multipart body.
fn free_text(text: &str, rules: &Options) -> String {
    if rules.url_query == UrlQuery::Keep {
        return text.to_owned();
    }
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, url, after)) = next_url(rest) {
        kept.push_str(before);
        // JSON may write `/` as `\/`. Any other escape could hide what belongs to the query.
        let plain = url.replace("\\/", "/");
        if plain.contains(['\\', '%']) {
            let end = plain.find(['?', '#', '\\']).unwrap_or(plain.len());
            let hidden = plain.to_ascii_lowercase().find("%3f").unwrap_or(plain.len());
            kept.push_str(&plain[..end.min(hidden)]);
        } else {
            kept.push_str(&rules.url(&plain, false));
        }
        rest = after;
    }
    kept.push_str(rest);
    kept
}

/// The next http(s) URL, also with its colon and slashes percent-encoded or escaped, and what stands around it.
fn next_url(text: &str) -> Option<(&str, &str, &str)> {
    let lower = text.to_ascii_lowercase();
    let mut from = 0;
    while let Some(at) = lower[from..].find("http").map(|at| from + at) {
        let scheme = lower[at + 4..].strip_prefix('s').unwrap_or(&lower[at + 4..]);
        if [":/", ":\\/", ":%2f", "%3a"].iter().any(|colon| scheme.starts_with(colon)) {
            let ends = |character: char| character.is_whitespace() || matches!(character, '"' | '\'' | '<' | '>');
            let end = text[at..].find(ends).map_or(text.len(), |length| at + length);
            return Some((&text[..at], &text[at..end], &text[end..]));
        }
        from = at + 4;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::privacy::ClientIp;
    use super::*;

    const RULES: Options = Options { client_ip: ClientIp::Truncated, url_query: UrlQuery::Allowlist };

    fn query(text: &str, anonymous: bool) -> String {
        let raw = RawEvent { query: text.as_bytes(), body: Body::None, ..RawEvent::default() };
        kept(&raw, &RULES, anonymous).unwrap()
    }

    fn json(text: &str) -> String {
        let raw = RawEvent { query: b"", body: Body::Json(text.as_bytes()), ..RawEvent::default() };
        kept(&raw, &RULES, false).unwrap()
    }

    #[test]
    fn the_queries_of_urls_are_filtered_however_they_are_written() {
        for (text, allowed) in [
            ("id=0&dl=https://s.example/p?email=a", "id=0&dl=https://s.example/p"),
            ("dl=https%3A%2F%2Fs.example%2Fp%3Femail%3Da%26utm_source%3Dx", "dl=https://s.example/p?utm_source=x"),
            ("dl=%68ttp%3a//s.example/%3femail=a", "dl=http://s.example/"),
            ("x%5B%5D=1&email=a%40b&dl=/p?email=a", "x%5B%5D=1&email=a%40b&dl=/p?email=a"),
            ("dl=https://s.example/a%252Bb?e=1", "dl=https://s.example/a%252Bb"),
        ] {
            assert_eq!(query(text, false), allowed, "{text}");
        }
        for (text, allowed) in [
            (
                r#"{"dl":"https://s.example/p?email=a&utm_source=x","b":1"#,
                r#"{"dl":"https://s.example/p?utm_source=x","b":1"#,
            ),
            (r#"{"dl":"https:\/\/s.example\/p?email=a"}"#, r#"{"dl":"https://s.example/p"}"#),
            (r#"{"dl":"https://s.example/p?utm_source=x\u0026email=a"}"#, r#"{"dl":"https://s.example/p"}"#),
            (r#"{"dl":"https://s.example/p\u003femail=a"}"#, r#"{"dl":"https://s.example/p"}"#),
            (r#"{"dl":"HTTPS%3A%2F%2Fs.example%2Fp%3Femail%3Da"}"#, r#"{"dl":"HTTPS%3A%2F%2Fs.example%2Fp"}"#),
            ("http is no URL, https://a.example/?b=c is", "http is no URL, https://a.example/ is"),
        ] {
            assert_eq!(json(text), allowed, "{text}");
        }
    }

    #[test]
    fn a_visitors_refusal_takes_identifiers_out() {
        assert_eq!(query("id=7&fbp=fb.1.2.3&amp;fbclid=x&%66bc=y&value=1", true), "id=7&value=1");
        let raw = RawEvent { query: b"", body: Body::Json(b"{\"fbp\":\"fb.1.2.3\""), ..RawEvent::default() };
        assert_eq!(kept(&raw, &RULES, true), None);
    }

    #[test]
    fn a_refusal_is_seen_in_any_body() {
        let body = |body| denies_consent(&RawEvent { body, ..RawEvent::default() });
        let query = |text: &str| denies_consent(&RawEvent { query: text.as_bytes(), ..RawEvent::default() });
        assert!(query("id=x&%63onsent=denied") && query("amp;consent=denied") && body(Body::Form(b"consent=denied")));
        assert!(body(Body::Json(b"{\"consent\":\"denied\"")) && body(Body::Text(b"a=b&consent=denied\n")));
        assert!(!query("consent=granted") && !query("consent=denied2") && !query("a=denied") && !body(Body::None));
    }

    proptest! {
        #[test]
        fn any_text_is_bounded_and_no_query_survives(bytes: Vec<u8>, tail in "[ -~]{0,30}", form: bool) {
            let mut bytes = bytes;
            bytes.extend_from_slice(format!("\" https://s.example/?email=secret {tail}").as_bytes());
            let body = if form { Body::Form(&bytes) } else { Body::Json(&bytes) };
            let text = kept(&RawEvent { query: b"", body, ..RawEvent::default() }, &RULES, false).unwrap();
            prop_assert!(text.len() <= MAX_RAW_BYTES);
            prop_assert!(form || !text.contains("email=secret"), "{text}");
        }
    }
}
