//! A record of the journal, read from its JSON without copying what has no escapes, and told to a writer.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::Writer;
use crate::record::{Head, Kind};
use crate::time::Timestamp;

/// A text; within an `Option`, too, it borrows.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Members of an object, in their order.
#[derive(Default)]
struct Members<'a>(Vec<(Text<'a>, Text<'a>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Members<'a>, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members<'de>, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Each)
    }
}

/// All members that records have. One that a later version wrote and this one doesn't know is left out.
#[derive(Deserialize)]
pub(super) struct Record<'a> {
    #[serde(borrow)]
    record_id: Text<'a>,
    occurred_at: Option<Text<'a>>,
    pixel_id: Option<Text<'a>>,
    pixel_name: Option<Text<'a>>,
    pixel_tag: Option<Text<'a>>,
    ad_account_id: Option<Text<'a>>,
    event_name: Option<Text<'a>>,
    event_id: Option<Text<'a>>,
    value: Option<Text<'a>>,
    currency: Option<Text<'a>>,
    source: Option<Text<'a>>,
    client_ip: Option<Text<'a>>,
    user_agent: Option<Text<'a>>,
    referrer: Option<Text<'a>>,
    page_url: Option<Text<'a>>,
    browser_id: Option<Text<'a>>,
    fbp: Option<Text<'a>>,
    fbc: Option<Text<'a>>,
    consent: Option<Text<'a>>,
    #[serde(default)]
    gpc: bool,
    #[serde(default)]
    test: bool,
    #[serde(default)]
    params: Members<'a>,
    node_id: Text<'a>,
    #[serde(default)]
    warnings: Vec<Text<'a>>,
    reason: Option<Text<'a>>,
    raw: Option<Text<'a>>,
}

fn of<'a>(text: &'a Option<Text<'_>>) -> Option<&'a str> {
    text.as_ref().map(|text| &*text.0)
}

impl<'a> Record<'a> {
    /// Reads a body of the journal. The error's text is none of the record's.
    pub(super) fn parse(body: &'a [u8]) -> Result<Record<'a>, String> {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }

    /// Tells the members in the order of the schemas in docs/schema.
    pub(super) fn write(&self, head: Head, to: &mut impl Writer) -> Result<(), String> {
        let is_event = head.kind == Kind::Event;
        let needed = |to: &mut _, number, name, text| needed(to, number, name, text, is_event);
        let occurred_at = of(&self.occurred_at).map(|text| {
            Timestamp::parse(text).map(|time| time.0).ok_or_else(|| "occurred_at is no RFC 3339 timestamp".to_owned())
        });
        to.text(1, &self.record_id.0);
        to.time(2, head.time_ms);
        to.optional_time(3, occurred_at.transpose()?);
        needed(to, 4, "pixel_id", of(&self.pixel_id))?;
        to.optional(5, of(&self.pixel_name));
        to.optional(6, of(&self.pixel_tag));
        to.optional(7, of(&self.ad_account_id));
        to.optional(8, of(&self.event_name));
        to.optional(9, of(&self.event_id));
        to.decimal(10, of(&self.value))?;
        to.optional(11, of(&self.currency));
        needed(to, 12, "source", of(&self.source))?;
        to.optional(13, of(&self.client_ip));
        to.optional(14, of(&self.user_agent));
        to.optional(15, of(&self.referrer));
        to.optional(16, of(&self.page_url));
        to.optional(17, of(&self.browser_id));
        to.optional(18, of(&self.fbp));
        to.optional(19, of(&self.fbc));
        to.optional(20, of(&self.consent));
        to.truth(21, self.gpc);
        to.truth(22, self.test);
        to.map(23, self.params.0.iter().map(|(name, value)| (&*name.0, &*value.0)));
        to.text(24, &self.node_id.0);
        to.list(25, self.warnings.iter().map(|word| &*word.0));
        if !is_event {
            to.text(26, of(&self.reason).ok_or("reason is missing")?);
            to.optional(27, of(&self.raw));
        }
        Ok(())
    }
}

/// A member that events always have, and rejected records may have.
fn needed(to: &mut impl Writer, number: u32, name: &str, text: Option<&str>, is_event: bool) -> Result<(), String> {
    match text {
        Some(text) if is_event => to.text(number, text),
        None if is_event => return Err(format!("{name} is missing")),
        text => to.optional(number, text),
    }
    Ok(())
}
