//! The record's JSON, by hand and once: this is the journal's body, Kafka's value and the feed's line.
//!
//! Field order is the contract's (§5); absent fields are left out, never null. Any text in gives valid JSON out.

use std::io::Write;

use super::privacy::{self, Options};
use super::rejection::Rejection;
use super::{Client, Event, Warning};
use crate::pixel::{Pixel, PixelId};
use crate::time::Timestamp;

/// Longest `raw` of a rejected record.
const MAX_RAW_BYTES: usize = 4096;
/// Longest header that is kept.
const MAX_HEADER_BYTES: usize = 1024;
/// Client clocks further off than this are not believed: `occurred_at` is left out and `clock_skew` added.
const MAX_AGE_MS: u64 = 7 * 24 * 3600 * 1000;

/// Identity and time of a record.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// UUIDv7.
    pub id: [u8; 16],
    /// Time of receipt.
    pub received: Timestamp,
    /// This node.
    pub node_id: &'a str,
}

/// The hyphenated text of a UUID.
pub fn id_text(id: [u8; 16]) -> [u8; 36] {
    let mut text = [0; 36];
    uuid::Uuid::from_bytes(id).hyphenated().encode_lower(&mut text);
    text
}

/// Writes JSON members, minding commas and escapes.
struct Members<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl Members<'_> {
    fn name(&mut self, name: &str) {
        self.out.push(if self.first { b'{' } else { b',' });
        self.first = false;
        string(self.out, name);
        self.out.push(b':');
    }

    fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        string(self.out, text);
    }

    fn optional(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }

    fn ascii(&mut self, name: &str, text: &[u8]) {
        self.name(name);
        self.out.push(b'"');
        self.out.extend_from_slice(text);
        self.out.push(b'"');
    }

    fn truth(&mut self, name: &str, holds: bool) {
        if holds {
            self.name(name);
            self.out.extend_from_slice(b"true");
        }
    }

    fn header(&mut self, name: &str, value: Option<&[u8]>) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            self.text(name, &header_text(value));
        }
    }

    fn display(&mut self, name: &str, value: impl std::fmt::Display) {
        self.name(name);
        // Numbers and addresses only: nothing to escape. Writing to memory can't fail.
        let _ = write!(self.out, "\"{value}\"");
    }

    fn end(self) {
        self.out.push(b'}');
    }
}

fn header_text(value: &[u8]) -> String {
    String::from_utf8_lossy(&value[..value.len().min(MAX_HEADER_BYTES)]).into_owned()
}

/// A JSON string. Bytes that need no escape are copied in runs.
fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte >= 0x20 && *byte != b'"' && *byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[copied..at]);
        copied = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                let _ = write!(out, "\\u{byte:04x}");
            }
        }
    }
    out.extend_from_slice(&bytes[copied..]);
    out.push(b'"');
}

/// The visitor's time: receipt, less how long before sending the event was, by the client's own clock.
/// `None` if the client doesn't tell both, or tells what can't be.
fn occurred(event: &Event<'_>, received: Timestamp) -> Result<Option<Timestamp>, ()> {
    let (Some(event_ms), Some(sent_ms)) = (event.event_ms, event.sent_ms) else { return Ok(None) };
    let age = sent_ms.checked_sub(event_ms).filter(|age| *age <= MAX_AGE_MS).ok_or(())?;
    received.0.checked_sub(age).map(|ms| Some(Timestamp(ms))).ok_or(())
}

/// An accepted event's record. Of a pixel that is not known, only `id` is set.
pub fn event(
    out: &mut Vec<u8>,
    stamp: &Stamp<'_>,
    event: &Event<'_>,
    client: &Client<'_>,
    pixel: &Pixel,
    rules: &Options,
) {
    let gpc = client.gpc && rules.honor_gpc;
    let mut warnings = event.warnings;
    let occurred = occurred(event, stamp.received).unwrap_or_else(|()| {
        warnings.add(Warning::ClockSkew);
        None
    });
    let mut members = Members { out, first: true };
    members.ascii("schema", b"pixelgate.event.v1");
    members.ascii("record_id", &id_text(stamp.id));
    members.ascii("received_at", &stamp.received.rfc3339());
    if let Some(occurred) = occurred {
        members.ascii("occurred_at", &occurred.rfc3339());
    }
    members.display("pixel_id", pixel.id);
    members.optional("pixel_name", pixel.name.as_deref());
    members.optional("pixel_tag", pixel.tag.as_deref());
    members.optional("ad_account_id", pixel.ad_account_id.as_deref());
    members.optional("event_name", event.event_name.as_deref());
    members.optional("event_id", event.event_id.as_deref());
    members.optional("value", event.value.as_deref());
    members.optional("currency", event.currency);
    members.ascii("source", event.source.as_str().as_bytes());
    visitor(&mut members, Some(event), client, rules, gpc);
    members.truth("test", event.test);
    if event.params.iter().any(|(name, _)| !(gpc && privacy::is_click_id(name))) {
        members.name("params");
        let mut params = Members { out: members.out, first: true };
        for (name, text) in &event.params {
            if !(gpc && privacy::is_click_id(name)) {
                params.text(name, &rules.url(text, gpc));
            }
        }
        params.end();
    }
    members.text("node_id", stamp.node_id);
    if !warnings.is_empty() {
        members.name("warnings");
        let mut separator = b'[';
        for warning in warnings.iter() {
            members.out.push(separator);
            separator = b',';
            string(members.out, warning.as_str());
        }
        members.out.push(b']');
    }
    members.end();
}

fn visitor(members: &mut Members<'_>, event: Option<&Event<'_>>, client: &Client<'_>, rules: &Options, gpc: bool) {
    if let Some(ip) = client.ip.and_then(|ip| rules.address(ip)) {
        members.display("client_ip", ip);
    }
    members.header("user_agent", client.user_agent);
    if let Some(referrer) = event.and_then(|event| event.referrer.as_deref()) {
        members.text("referrer", &rules.url(referrer, gpc));
    }
    match event.and_then(|event| event.page_url.as_deref()) {
        Some(url) => members.text("page_url", &rules.url(url, gpc)),
        None => {
            if let Some(referer) = client.referer.filter(|referer| !referer.is_empty()) {
                members.text("page_url", &rules.url(&header_text(referer), gpc));
            }
        }
    }
    if !gpc {
        for (name, cookie, parameter) in [
            ("fbp", "_fbp", event.and_then(|event| event.fbp.as_deref())),
            ("fbc", "_fbc", event.and_then(|event| event.fbc.as_deref())),
        ] {
            match parameter {
                Some(text) => members.text(name, text),
                None => members.header(name, client.cookie.and_then(|header| cookie_value(header, cookie))),
            }
        }
    }
    members.truth("gpc", gpc);
}

/// The value of a cookie in a `Cookie` header.
fn cookie_value<'a>(header: &'a [u8], name: &str) -> Option<&'a [u8]> {
    header.split(|byte| *byte == b';').find_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        (!value.is_empty()).then_some(value)
    })
}

/// A rejected request's record. `raw` is the query or the body.
pub fn rejected(
    out: &mut Vec<u8>,
    stamp: &Stamp<'_>,
    reason: Rejection,
    pixel_id: Option<PixelId>,
    raw: &[u8],
    client: &Client<'_>,
    rules: &Options,
) {
    let gpc = client.gpc && rules.honor_gpc;
    let mut members = Members { out, first: true };
    members.ascii("schema", b"pixelgate.rejected.v1");
    members.ascii("record_id", &id_text(stamp.id));
    members.ascii("received_at", &stamp.received.rfc3339());
    if let Some(id) = pixel_id {
        members.display("pixel_id", id);
    }
    members.ascii("source", b"offsite_event");
    visitor(&mut members, None, client, rules, gpc);
    members.text("node_id", stamp.node_id);
    members.ascii("reason", reason.reason().as_bytes());
    let raw = String::from_utf8_lossy(&raw[..raw.len().min(MAX_RAW_BYTES)]);
    let raw = private(&raw, rules, gpc);
    members.text("raw", &raw[..raw.floor_char_boundary(MAX_RAW_BYTES)]);
    members.end();
}

/// A request's own text with the privacy rules applied to the URLs and identifiers in it, pair by pair.
fn private(raw: &str, rules: &Options, gpc: bool) -> String {
    let mut kept = String::with_capacity(raw.len());
    for pair in raw.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = name.strip_prefix("amp;").unwrap_or(name);
        if gpc && (privacy::is_click_id(name) || name == "fbp" || name == "fbc") {
            continue;
        }
        if !kept.is_empty() {
            kept.push('&');
        }
        // An encoded URL hides its query behind %3F; what can't be told apart is cut.
        let lower = value.to_ascii_lowercase();
        let encoded_url = lower.starts_with("http%3a") || lower.starts_with("https%3a");
        let keep_all = rules.url_query == privacy::UrlQuery::Keep && !gpc;
        match lower.find("%3f").filter(|_| encoded_url && !keep_all) {
            Some(at) => kept.push_str(&pair[..pair.len() - value.len() + at]),
            None if privacy::is_url(value) => {
                kept.push_str(&pair[..pair.len() - value.len()]);
                kept.push_str(&rules.url(value, gpc));
            }
            None => kept.push_str(pair),
        }
    }
    kept
}
