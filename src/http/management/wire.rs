//! The bytes of the published Campaigns API: JSON as Rails wrote it, the snippet, ETags, parameters.
//!
//! Pure: decides nothing. The form is checked byte for byte against the published example.

use md5::{Digest, Md5};

/// What a fresh `js_pixel` carries beside the pixel.
#[derive(Clone, Debug)]
pub struct Snippet {
    /// What stands for the document's `//connect.facebook.net`.
    pub script_base: String,
    /// What stands for the document's `https://www.facebook.com`.
    pub image_base: String,
    /// `registry.snippet_value`.
    pub value: String,
    /// `registry.snippet_currency`.
    pub currency: String,
}

impl Snippet {
    /// The snippet of a gateway that websites reach as `public_url`.
    pub fn new(public_url: &str, value: String, currency: String) -> Snippet {
        let image_base = public_url.trim_end_matches('/').to_owned();
        let script_base = image_base.split_once(':').map_or(image_base.as_str(), |(_, rest)| rest).to_owned();
        Snippet { script_base, image_base, value, currency }
    }

    /// The HTML to be pasted into a page. Of the pixel's name only what can't end the comment is left.
    pub fn js_pixel(&self, id: &str, name: &str) -> String {
        let Snippet { script_base, image_base, value, currency } = self;
        let name = comment_text(name);
        format!(
            "<!-- Facebook Conversion Code for {name} -->\n<script type=\"text/javascript\">\nvar fb_param = {{}};\n\
             fb_param.pixel_id = '{id}';\nfb_param.value = '{value}';\nfb_param.currency = '{currency}';\n\
             (function(){{\n  var fpw = document.createElement('script');\n  fpw.async = true;\n  \
             fpw.src = '{script_base}/en_US/fp.js';\n  \
             var ref = document.getElementsByTagName('script')[0];\n  \
             ref.parentNode.insertBefore(fpw, ref);\n}})();\n</script>\n\
             <noscript><img height=\"1\" width=\"1\" alt=\"\" style=\"display:none\" \
             src=\"{image_base}/offsite_event.php?id={id}&amp;value={value}&amp;currency={currency}\" /></noscript>"
        )
    }
}

/// A name as the inside of an HTML comment: without `<` and `>`, and with one `-` for each run of them.
fn comment_text(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for letter in name.chars().filter(|letter| !matches!(letter, '<' | '>')) {
        if letter != '-' || !text.ends_with('-') {
            text.push(letter);
        }
    }
    text
}

/// A pixel as it is shown.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its digits.
    pub id: &'a str,
    /// As given.
    pub name: &'a str,
    /// In lower case.
    pub tag: &'a str,
    /// The published word.
    pub status: &'a str,
    /// `<fb_ad_account_id> (<token name>)`.
    pub creator: &'a str,
    /// Told, behind the published keys, only if it is so.
    pub archived: bool,
}

/// A list of pixels, one JSON object each: a bare array.
pub fn list(pixels: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut out = vec![b'['];
    for (number, pixel) in pixels.enumerate() {
        if number > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&pixel);
    }
    out.push(b']');
    out
}

/// One pixel.
pub fn single(pixel: &View<'_>, snippet: &Snippet) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write_member(&mut out, b'{', "id", pixel.id);
    write_member(&mut out, b',', "name", pixel.name);
    write_member(&mut out, b',', "tag", pixel.tag);
    write_member(&mut out, b',', "status", pixel.status);
    write_member(&mut out, b',', "creator", pixel.creator);
    write_member(&mut out, b',', "js_pixel", &snippet.js_pixel(pixel.id, pixel.name));
    if pixel.archived {
        out.extend_from_slice(b",\"archived\":true");
    }
    out.push(b'}');
    out
}

/// The answer to a creation.
pub fn created(id: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(32);
    write_member(&mut out, b'{', "id", id);
    out.push(b'}');
    out
}

/// An error: `param` names the parameter at fault.
pub fn error(kind: &str, message: &str, param: Option<&str>) -> Vec<u8> {
    let mut out = b"{\"error\":".to_vec();
    write_member(&mut out, b'{', "type", kind);
    write_member(&mut out, b',', "message", message);
    if let Some(param) = param {
        write_member(&mut out, b',', "param", param);
    }
    out.extend_from_slice(b"}}");
    out
}

/// Strong ETag: MD5 of the body in quotes, as Rack made it.
pub fn etag(body: &[u8]) -> String {
    let digest: [u8; 16] = Md5::digest(body).into();
    format!("\"{:032x}\"", u128::from_be_bytes(digest))
}

/// Whether an `If-None-Match` names this ETag (weak comparison, RFC 9110 §13.1.2).
pub fn matches(if_none_match: &[u8], etag: &str) -> bool {
    if_none_match
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .any(|candidate| candidate == b"*" || candidate.strip_prefix(b"W/").unwrap_or(candidate) == etag.as_bytes())
}

fn write_member(out: &mut Vec<u8>, before: u8, name: &str, value: &str) {
    out.push(before);
    write_string(out, name);
    out.push(b':');
    write_string(out, value);
}

/// A JSON string that is safe inside HTML, too: what ActiveSupport escapes beyond JSON's own needs.
fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut buffer = [0; 4];
    for letter in text.chars() {
        match letter {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => {
                out.extend_from_slice(format!("\\u{:04X}", u32::from(letter)).as_bytes());
            }
            _ => out.extend_from_slice(letter.encode_utf8(&mut buffer).as_bytes()),
        }
    }
    out.push(b'"');
}

/// Why parameters can't be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// A form or query that isn't UTF-8.
    Utf8,
    /// A body that isn't a JSON object.
    Json,
    /// A JSON value that is neither a string nor a number; which.
    Type(&'static str),
}

/// The parameters of the published page, and `archived`. Others are ignored; the last of several wins.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Params {
    /// `fb_ad_account_id`.
    pub fb_ad_account_id: Option<String>,
    /// `name`.
    pub name: Option<String>,
    /// `tag`.
    pub tag: Option<String>,
    /// `archived`.
    pub archived: Option<String>,
    /// One was given twice, with another value.
    pub repeated: bool,
}

impl Params {
    fn slot(&mut self, name: &str) -> Option<(&'static str, &mut Option<String>)> {
        match name {
            "fb_ad_account_id" => Some(("fb_ad_account_id", &mut self.fb_ad_account_id)),
            "name" => Some(("name", &mut self.name)),
            "tag" => Some(("tag", &mut self.tag)),
            "archived" => Some(("archived", &mut self.archived)),
            _ => None,
        }
    }

    /// Takes in a query string or form body.
    pub fn read_form(&mut self, text: &[u8]) -> Result<(), Malformed> {
        for pair in text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let end = memchr::memchr(b'=', pair).unwrap_or(pair.len());
            let name = decode(&pair[..end])?;
            if let Some((_, slot)) = self.slot(&name) {
                let value = decode(pair.get(end + 1..).unwrap_or_default())?;
                let repeated = slot.replace(value.clone()).is_some_and(|old| old != value);
                self.repeated |= repeated;
            }
        }
        Ok(())
    }

    /// Takes in a JSON object. Numbers keep their text; null is absent.
    pub fn read_json(&mut self, text: &[u8]) -> Result<(), Malformed> {
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(text).map_err(|_| Malformed::Json)?;
        for (name, value) in object {
            let Some((known, slot)) = self.slot(&name) else { continue };
            let value = match value {
                serde_json::Value::String(text) => text,
                serde_json::Value::Number(number) => number.to_string(),
                serde_json::Value::Null => continue,
                serde_json::Value::Bool(truth) if known == "archived" => truth.to_string(),
                _ => return Err(Malformed::Type(known)),
            };
            let repeated = slot.replace(value.clone()).is_some_and(|old| old != value);
            self.repeated |= repeated;
        }
        Ok(())
    }
}

/// Percent-decoding with `+` as space. A `%` that begins no escape stands for itself, as in browsers.
fn decode(text: &[u8]) -> Result<String, Malformed> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        bytes.push(match (first, tail) {
            (b'+', _) => b' ',
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    rest = after;
                    high << 4 | low
                }
                _ => b'%',
            },
            (other, _) => *other,
        });
    }
    String::from_utf8(bytes).map_err(|_| Malformed::Utf8)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn published() -> Snippet {
        Snippet {
            script_base: "//connect.facebook.net".into(),
            image_base: "https://www.facebook.com".into(),
            value: "0.01".into(),
            currency: "GBP".into(),
        }
    }

    #[test]
    fn a_name_can_neither_end_the_comment_nor_open_a_tag() {
        let check = |name: &str, kept: &str| assert_eq!(comment_text(name), kept, "{name:?}");
        check("a --> b", "a - b");
        check("-<-><- x", "- x");
        check("--!><script>alert(1)</script>", "-!scriptalert(1)/script");
        check("a-b - c", "a-b - c");
        check("–—&'\"", "–—&'\"");
    }

    #[test]
    fn parameters_that_cannot_be_read() {
        let form = |text: &[u8]| Params::default().read_form(text);
        let json = |text: &[u8]| Params::default().read_json(text);
        assert_eq!(form(b"name=%FF"), Err(Malformed::Utf8));
        assert_eq!(form(b"name=\xC0"), Err(Malformed::Utf8));
        for bad in [&b"[]"[..], b"{", b"1", b"", b"{\"name\":\"\\ud800\"}", b"{} x"] {
            assert_eq!(json(bad), Err(Malformed::Json), "{bad:?}");
        }
        for bad in [&br#"{"name":["x"]}"#[..], br#"{"name":true}"#, br#"{"name":{}}"#] {
            assert_eq!(json(bad), Err(Malformed::Type("name")));
        }
    }

    #[test]
    fn parameters_are_read_as_forms_and_json_write_them() {
        let mut params = Params::default();
        params.read_form(b"&name=Shoes+purch%61se%&tag&fb_ad_account_id=1&y=2&fb_ad_account_id=9").unwrap();
        assert_eq!(params.name.as_deref(), Some("Shoes purchase%"));
        assert_eq!(params.tag.as_deref(), Some(""));
        assert_eq!(params.fb_ad_account_id.as_deref(), Some("9"));
        let text = br#"{"fb_ad_account_id": 12345678901234567890, "name": "\u00e9", "tag": null, "z": []}"#;
        params.read_json(text).unwrap();
        assert_eq!(params.fb_ad_account_id.as_deref(), Some("12345678901234567890"));
        assert_eq!(params.name.as_deref(), Some("é"));
        assert_eq!(params.tag.as_deref(), Some(""), "null is absent");
    }

    // The published headers (852 bytes, ETag 5b5c6d08…) belong to the body before its creator was made anonymous on
    // the page, which took 7 characters away. With the original creator this function yields exactly them; here the
    // page's own body is held, by an MD5 that was computed from the page with other tools.
    #[test]
    fn the_published_example_byte_for_byte() {
        let body_by = |creator| {
            let (id, name) = ("6014360342904", "CV uploaded");
            let pixel = View { id, name, tag: "registration", status: "Inactive", creator, archived: false };
            list([single(&pixel, &published())].into_iter())
        };
        let body = body_by("101501213229501506 (John Doe)");
        assert_eq!((body.len(), &*etag(&body)), (845, "\"faba41a44ae367927e31b4f8f53d0c42\""));
        assert_eq!(body_by("101501213229501506 (John Doe)1234567").len(), 852);
        assert_eq!(list(std::iter::empty()), b"[]");
        assert_eq!(created("6014360342904"), br#"{"id":"6014360342904"}"#);
    }

    #[test]
    fn the_gateways_own_hosts_stand_for_facebooks() {
        let snippet = Snippet::new("https://px.example.com:8443/", "0.00".into(), "USD".into());
        let text = snippet.js_pixel("60", "x");
        let expected = published()
            .js_pixel("60", "x")
            .replace("//connect.facebook.net", "//px.example.com:8443")
            .replace("https://www.facebook.com", "https://px.example.com:8443")
            .replace("0.01", "0.00")
            .replace("GBP", "USD");
        assert_eq!(text, expected);
    }

    #[test]
    fn json_is_safe_inside_html() {
        let mut out = Vec::new();
        write_string(&mut out, "</script>&\u{2028}\u{0}\u{1f}\"\\\n\té/");
        let expected = r#""\u003C/script\u003E\u0026\u2028\u0000\u001F\"\\\n\té/""#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn etags_match_weakly_and_in_lists() {
        let check = |given: &str, expected| assert_eq!(matches(given.as_bytes(), "\"ab\""), expected, "{given}");
        for miss in ["", "ab", "\"abc\"", "W/ab", "\"a\",\"b\"", "w/\"ab\""] {
            check(miss, false);
        }
        for hit in ["\"ab\"", "W/\"ab\"", " \"x\" , \"ab\"", "*"] {
            check(hit, true);
        }
    }

    proptest! {
        #[test]
        fn no_name_breaks_out_of_the_snippet(name in "(-|<|>|!|/|script|'|\"|&|\n|\\PC|.){0,40}") {
            let snippet = published();
            let (text, plain) = (snippet.js_pixel("60", &name), snippet.js_pixel("60", ""));
            let (before, after) = plain.split_once(" -->").unwrap();
            let inside = text.strip_prefix(before).unwrap().strip_suffix(after).unwrap();
            let inside = inside.strip_suffix(" -->").unwrap();
            prop_assert!(!inside.contains(['<', '>']) && !inside.contains("--"), "{inside:?}");
        }

        #[test]
        fn every_name_comes_back_as_given(name: String) {
            let (tag, status) = ("other", "Active");
            let pixel = View { id: "60", name: &name, tag, status, creator: &name, archived: true };
            let body = single(&pixel, &published());
            prop_assert!(!body.iter().any(|byte| matches!(byte, b'<' | b'>' | b'&' | 0..=31)));
            let read: serde_json::Value = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(read["name"].as_str(), Some(&*name));
            prop_assert_eq!(read["creator"].as_str(), Some(&*name));
            prop_assert_eq!(&read["archived"], &serde_json::Value::Bool(true));
        }

        #[test]
        fn no_parameters_panic(text: Vec<u8>) {
            let _ = Params::default().read_form(&text);
            let _ = Params::default().read_json(&text);
            let _ = matches(&text, "\"ab\"");
        }
    }
}
