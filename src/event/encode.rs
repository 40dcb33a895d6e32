//! The record's JSON, by hand and once: this is the journal's body, Kafka's value and the feed's line.
//!
//! Field order is the contract's (§5); absent fields are left out, never null. Any text in gives valid JSON out.

use std::borrow::Cow;
use std::io::Write;
use std::net::IpAddr;

use super::parse::lossy;
use super::privacy::{self, Options};
use super::visitor::values;
use super::{Client, Consent, Event, RawEvent, Refusal, Warning, raw};
use crate::pixel::{MAX_DIGITS, Pixel};
use crate::time::Timestamp;

/// Longest header that is kept.
pub const MAX_HEADER_BYTES: usize = 1024;
/// Room asked for at once: what a record of an ordinary browser takes.
const ORDINARY_BYTES: usize = 768;
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

/// What stands before the value of one of the contract's own members, in one piece: the schema is always first, so
/// every other member follows a comma; its name needs no escape.
macro_rules! member {
    ($name:literal) => {
        concat!(",\"", $name, "\":").as_bytes()
    };
}

/// Writes JSON members, minding escapes.
struct Members<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Members<'a> {
    fn begin(out: &'a mut Vec<u8>, schema: &'static str) -> Members<'a> {
        out.reserve(ORDINARY_BYTES);
        out.extend_from_slice(schema.as_bytes());
        Members { out }
    }

    fn text(&mut self, member: &'static [u8], text: &str) {
        self.out.extend_from_slice(member);
        string(self.out, text);
    }

    fn optional(&mut self, member: &'static [u8], text: Option<&str>) {
        if let Some(text) = text {
            self.text(member, text);
        }
    }

    fn ascii(&mut self, member: &'static [u8], text: &[u8]) {
        self.out.extend_from_slice(member);
        self.out.push(b'"');
        self.out.extend_from_slice(text);
        self.out.push(b'"');
    }

    fn truth(&mut self, member: &'static [u8], holds: bool) {
        if holds {
            self.out.extend_from_slice(member);
            self.out.extend_from_slice(b"true");
        }
    }

    fn header(&mut self, member: &'static [u8], value: Option<&[u8]>) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            self.text(member, &header_text(value));
        }
    }

    fn address(&mut self, member: &'static [u8], ip: IpAddr) {
        self.out.extend_from_slice(member);
        match ip {
            IpAddr::V4(ip) => {
                let mut separator = b'"';
                for octet in ip.octets() {
                    self.out.push(separator);
                    separator = b'.';
                    if octet >= 100 {
                        self.out.push(b'0' + octet / 100);
                    }
                    if octet >= 10 {
                        self.out.push(b'0' + octet / 10 % 10);
                    }
                    self.out.push(b'0' + octet % 10);
                }
                self.out.push(b'"');
            }
            // Nothing to escape, and writing to memory can't fail.
            IpAddr::V6(ip) => {
                let _ = write!(self.out, "\"{ip}\"");
            }
        }
    }

    fn end(self) {
        self.out.push(b'}');
    }
}

fn header_text(value: &[u8]) -> Cow<'_, str> {
    lossy(&value[..value.len().min(MAX_HEADER_BYTES)])
}

/// A JSON string. Bytes that need no escape are copied in runs, eight looked at in one step.
fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = first_to_escape(rest) {
        let (plain, escaped) = rest.split_at(at);
        out.extend_from_slice(plain);
        match escaped[0] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte => {
                let _ = write!(out, "\\u{byte:04x}");
            }
        }
        rest = &escaped[1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Index of the first byte that JSON wants escaped: a control character, `"` or `\`.
fn first_to_escape(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    // Per byte: the high bit is set where it was zero. The lowest such bit is always a true one.
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let (words, tail) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        let found = control | zero(word ^ (ONES * u64::from(b'"'))) | zero(word ^ (ONES * u64::from(b'\\')));
        if found != 0 {
            return Some(index * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let at = tail.iter().position(|byte| *byte < 0x20 || *byte == b'"' || *byte == b'\\')?;
    Some(words.len() * 8 + at)
}

/// Flags a client whose times can't be, so that its record has no `occurred_at`. To be asked once the moment of
/// receipt is known, before the event is encoded.
pub fn check_clock(event: &mut Event<'_>, received: Timestamp) {
    if occurred(event, received).is_err() {
        event.warnings.add(Warning::ClockSkew);
    }
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
    let anonymous = client.anonymous;
    let mut members = Members::begin(out, r#"{"schema":"pixelgate.event.v1""#);
    members.ascii(member!("record_id"), &id_text(stamp.id));
    members.ascii(member!("received_at"), &stamp.received.rfc3339());
    if let Ok(Some(occurred)) = occurred(event, stamp.received) {
        members.ascii(member!("occurred_at"), &occurred.rfc3339());
    }
    members.ascii(member!("pixel_id"), pixel.id.digits(&mut [0; MAX_DIGITS]));
    members.optional(member!("pixel_name"), pixel.name.as_deref());
    members.optional(member!("pixel_tag"), pixel.tag.as_deref());
    members.optional(member!("ad_account_id"), pixel.ad_account_id.as_deref());
    members.optional(member!("event_name"), event.event_name.as_deref());
    members.optional(member!("event_id"), event.event_id.as_deref());
    members.optional(member!("value"), event.value.as_deref());
    members.optional(member!("currency"), event.currency);
    members.ascii(member!("source"), event.source.as_str().as_bytes());
    visitor(&mut members, Some(event), client, rules);
    members.optional(member!("consent"), event.consent.map(Consent::as_str));
    members.truth(member!("gpc"), client.gpc);
    members.truth(member!("test"), event.test);
    let mut separator: &[u8] = member!("params");
    for (name, text) in event.params.iter().filter(|(name, _)| !(anonymous && privacy::is_click_id(name))) {
        members.out.extend_from_slice(separator);
        members.out.push(if separator.len() > 1 { b'{' } else { b',' });
        string(members.out, name);
        members.out.push(b':');
        string(members.out, &rules.url(text, anonymous));
        separator = b"";
    }
    if separator.is_empty() {
        members.out.push(b'}');
    }
    members.text(member!("node_id"), stamp.node_id);
    if !event.warnings.is_empty() {
        members.out.extend_from_slice(member!("warnings"));
        let mut separator = b'[';
        for warning in event.warnings.iter() {
            members.out.push(separator);
            separator = b',';
            string(members.out, warning.as_str());
        }
        members.out.push(b']');
    }
    members.end();
}

fn visitor(members: &mut Members<'_>, event: Option<&Event<'_>>, client: &Client<'_>, rules: &Options) {
    let anonymous = client.anonymous;
    if let Some(ip) = client.ip.and_then(|ip| rules.address(ip)) {
        members.address(member!("client_ip"), ip);
    }
    members.header(member!("user_agent"), client.user_agent);
    if let Some(referrer) = event.and_then(|event| event.referrer.as_deref()) {
        members.text(member!("referrer"), &rules.url(referrer, anonymous));
    }
    match event.and_then(|event| event.page_url.as_deref()) {
        Some(url) => members.text(member!("page_url"), &rules.url(url, anonymous)),
        None => {
            if let Some(referer) = client.referer.filter(|referer| !referer.is_empty()) {
                members.text(member!("page_url"), &rules.url(&header_text(referer), anonymous));
            }
        }
    }
    if !anonymous {
        let marks = client.marks;
        if let Some(marks) = marks {
            members.ascii(member!("browser_id"), &marks.id);
        }
        for (member, cookie, parameter, own) in [
            (member!("fbp"), "_fbp", event.and_then(|event| event.fbp.as_deref()), marks.map(|marks| &marks.fbp)),
            (member!("fbc"), "_fbc", event.and_then(|event| event.fbc.as_deref()), marks.map(|marks| &marks.fbc)),
        ] {
            match parameter.or(own.and_then(Option::as_deref)) {
                Some(text) => members.text(member, text),
                None => members.header(member, client.cookie.and_then(|header| values(header, cookie).next())),
            }
        }
    }
}

/// A rejected request's record.
pub fn rejected(
    out: &mut Vec<u8>,
    stamp: &Stamp<'_>,
    refusal: Refusal,
    raw: &RawEvent<'_>,
    client: &Client<'_>,
    rules: &Options,
) {
    let anonymous = client.anonymous;
    let mut members = Members::begin(out, r#"{"schema":"pixelgate.rejected.v1""#);
    members.ascii(member!("record_id"), &id_text(stamp.id));
    members.ascii(member!("received_at"), &stamp.received.rfc3339());
    if let Some(id) = refusal.pixel_id {
        members.ascii(member!("pixel_id"), id.digits(&mut [0; MAX_DIGITS]));
    }
    members.ascii(member!("source"), raw.route.as_str().as_bytes());
    visitor(&mut members, None, client, rules);
    members.truth(member!("gpc"), client.gpc);
    members.text(member!("node_id"), stamp.node_id);
    members.ascii(member!("reason"), refusal.reason.reason().as_bytes());
    members.optional(member!("raw"), raw::kept(raw, rules, anonymous).as_deref());
    members.end();
}
