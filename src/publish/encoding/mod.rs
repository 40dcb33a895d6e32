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
use super::schema_registry::{self, SchemaRegistry};
use crate::journal::Entry;
use crate::record::Kind;
use record::Record;

/// `kafka.format`, where it isn't `json`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Avro in Confluent's frame.
    Avro,
    /// Protobuf in Confluent's frame.
    Protobuf,
}

/// What values are instead of what lies in the journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encoding {
    /// Their format.
    pub format: Format,
    /// Who has their schemas.
    pub registry: SchemaRegistry,
}

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
    /// An encoder for the records of a topic, with the registry's id of their schema. Asks the registry, so it blocks.
    pub(super) fn connect(encoding: &Encoding, topic: &str, kind: Kind) -> Result<Encoder, Doubt> {
        let Encoding { format, registry } = encoding;
        let id = schema_registry::id_of(registry, topic, *format, schema(*format, kind))?;
        Ok(Encoder::new(*format, id))
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
            Format::Protobuf => record.write(entry.head, &mut protobuf::Protobuf(&mut value)),
        });
        let doubt = |why| Doubt::text(Fault::Record, format!("the record can't be encoded: {why}"));
        record.map_err(|why| doubt(why).by(Some(entry.position)))?;
        Ok(value)
    }
}

/// What a value is, for the header `content-type`.
pub(super) fn content_type(encoding: Option<&Encoding>) -> &'static str {
    match encoding.map(|encoding| encoding.format) {
        None => "application/json",
        Some(Format::Avro) => "application/vnd.confluent.avro",
        Some(Format::Protobuf) => "application/vnd.confluent.protobuf",
    }
}

/// The schema of a kind of record, as the registry gets it.
fn schema(format: Format, kind: Kind) -> &'static str {
    match (format, kind) {
        (Format::Avro, Kind::Event) => include_str!("../../../docs/schema/event.v1.avsc"),
        (Format::Avro, Kind::Rejected) => include_str!("../../../docs/schema/rejected.v1.avsc"),
        (Format::Protobuf, Kind::Event) => include_str!("../../../docs/schema/event.v1.proto"),
        (Format::Protobuf, Kind::Rejected) => include_str!("../../../docs/schema/rejected.v1.proto"),
    }
}

#[cfg(test)]
mod tests;
