//! Values in Avro or Protobuf instead of JSON (`kafka.format`), as Confluent's clients frame them.
//!
//! A value is a zero byte, the schema's id in the registry (4 bytes, big-endian), for Protobuf the index of the message
//! (one zero byte: the first), and the encoded record
//! (<https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format>).
//! The journal keeps JSON: a record is converted as it is sent, so that the format can be changed at any time, also for
//! what waits. The same record always gives the same bytes.

mod avro;
mod protobuf;
mod record;

use super::fault::{Doubt, Fault};
use super::schema_registry;
use super::{Format, Options};
use crate::journal::Entry;
use crate::record::Kind;
use record::Record;

/// A format's writer. It is told a record's members in the schema's order; `number` is the field's in Protobuf.
trait Writer {
    /// A text that is always there.
    fn text(&mut self, number: u32, text: &str);
    /// A text that may be missing.
    fn optional(&mut self, number: u32, text: Option<&str>);
    /// Unix milliseconds.
    fn time(&mut self, number: u32, ms: u64);
    /// The same, if they are known.
    fn optional_time(&mut self, number: u32, ms: Option<u64>);
    /// A decimal as the contract writes it.
    fn decimal(&mut self, number: u32, text: Option<&str>) -> Result<(), String>;
    /// Whether something holds.
    fn truth(&mut self, number: u32, holds: bool);
    /// Names and values.
    fn map<'a>(&mut self, number: u32, entries: impl ExactSizeIterator<Item = (&'a str, &'a str)>);
    /// Words.
    fn list<'a>(&mut self, number: u32, words: impl ExactSizeIterator<Item = &'a str>);
}

/// Encodes the values of one topic.
pub(super) struct Encoder {
    format: Format,
    /// What stands before each value.
    frame: Vec<u8>,
}

impl Encoder {
    /// An encoder for the records of a topic, with the registry's id of their schema; `None` for JSON. Asks the
    /// registry, so it blocks.
    pub(super) fn connect(options: &Options, topic: &str, kind: Kind) -> Result<Option<Encoder>, Doubt> {
        let Some(registry) = &options.schema_registry else { return Ok(None) };
        let Some(schema) = schema(options.format, kind) else { return Ok(None) };
        let id = schema_registry::id_of(registry, topic, options.format, schema)?;
        Ok(Some(Encoder::new(options.format, id)))
    }

    fn new(format: Format, id: u32) -> Encoder {
        let mut frame = vec![0];
        frame.extend_from_slice(&id.to_be_bytes());
        if format == Format::Protobuf {
            frame.push(0);
        }
        Encoder { format, frame }
    }

    /// A record's value. Fails only for a record that is none of this gateway's.
    pub(super) fn encode(&self, entry: &Entry<'_>) -> Result<Vec<u8>, Doubt> {
        let mut value = Vec::with_capacity(self.frame.len() + entry.body.len());
        value.extend_from_slice(&self.frame);
        let record = Record::parse(entry.body).and_then(|record| match self.format {
            Format::Avro => record.write(entry.head, &mut avro::Avro(&mut value)),
            Format::Json | Format::Protobuf => record.write(entry.head, &mut protobuf::Protobuf(&mut value)),
        });
        let doubt = |why| Doubt::text(Fault::Record, format!("the record can't be encoded: {why}"));
        record.map_err(|why| doubt(why).by(Some(entry.position)))?;
        Ok(value)
    }
}

/// What a value is, for the header `content-type`.
pub(super) fn content_type(format: Format) -> &'static str {
    match format {
        Format::Json => "application/json",
        Format::Avro => "application/vnd.confluent.avro",
        Format::Protobuf => "application/vnd.confluent.protobuf",
    }
}

/// The schema of a kind of record, as the registry gets it; JSON has none there.
fn schema(format: Format, kind: Kind) -> Option<&'static str> {
    match (format, kind) {
        (Format::Json, _) => None,
        (Format::Avro, Kind::Event) => Some(include_str!("../../../docs/schema/event.v1.avsc")),
        (Format::Avro, Kind::Rejected) => Some(include_str!("../../../docs/schema/rejected.v1.avsc")),
        (Format::Protobuf, Kind::Event) => Some(include_str!("../../../docs/schema/event.v1.proto")),
        (Format::Protobuf, Kind::Rejected) => Some(include_str!("../../../docs/schema/rejected.v1.proto")),
    }
}

#[cfg(test)]
mod tests;
