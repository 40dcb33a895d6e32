//! The bytes of the published Campaigns API: JSON as Rails wrote it, the snippet, ETags, parameters.
//!
//! Pure: decides nothing. The form is checked byte for byte against the published example.

use md5::{Digest, Md5};

use crate::registry::{Entry, Status};

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

/// A list of pixels: a bare array.
pub fn list<'a>(pixels: impl Iterator<Item = (&'a Entry, Status)>, snippet: &Snippet) -> Vec<u8> {
    let mut out = vec![b'['];
    for (number, (entry, status)) in pixels.enumerate() {
        if number > 0 {
            out.push(b',');
        }
        write_pixel(&mut out, entry, status, snippet);
    }
    out.push(b']');
    out
}

/// One pixel.
pub fn single(entry: &Entry, status: Status, snippet: &Snippet) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write_pixel(&mut out, entry, status, snippet);
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

fn write_pixel(out: &mut Vec<u8>, entry: &Entry, status: Status, snippet: &Snippet) {
    let id = entry.pixel.id.to_string();
    let name = entry.pixel.name.as_deref().unwrap_or_default();
    write_member(out, b'{', "id", &id);
    write_member(out, b',', "name", name);
    write_member(out, b',', "tag", entry.pixel.tag.as_deref().unwrap_or("other"));
    write_member(out, b',', "status", status.as_str());
    write_member(out, b',', "creator", &entry.creator);
    write_member(out, b',', "js_pixel", &snippet.js_pixel(&id, name));
    out.push(b'}');
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

/// The parameters of the published page. Others are ignored; the last of several wins.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Params {
    /// `fb_ad_account_id`.
    pub fb_ad_account_id: Option<String>,
    /// `name`.
    pub name: Option<String>,
    /// `tag`.
    pub tag: Option<String>,
}

impl Params {
    fn slot(&mut self, name: &str) -> Option<(&'static str, &mut Option<String>)> {
        match name {
            "fb_ad_account_id" => Some(("fb_ad_account_id", &mut self.fb_ad_account_id)),
            "name" => Some(("name", &mut self.name)),
            "tag" => Some(("tag", &mut self.tag)),
            _ => None,
        }
    }

    /// Takes in a query string or form body.
    pub fn read_form(&mut self, text: &[u8]) -> Result<(), Malformed> {
        for pair in text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let end = memchr::memchr(b'=', pair).unwrap_or(pair.len());
            let name = decode(&pair[..end])?;
            if let Some((_, slot)) = self.slot(&name) {
                *slot = Some(decode(pair.get(end + 1..).unwrap_or_default())?);
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
            *slot = match value {
                serde_json::Value::String(text) => Some(text),
                serde_json::Value::Number(number) => Some(number.to_string()),
                serde_json::Value::Null => continue,
                _ => return Err(Malformed::Type(known)),
            };
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
