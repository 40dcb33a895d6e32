//! A record as Kafka gets it, beside its value: the key, and with `kafka.cloudevents` the headers.
//!
//! Headers make each record a CloudEvent as well, in the binary mode of the Kafka binding: attributes in headers, the
//! value as it is. What they say is in the record's head, so nothing is parsed.

use rdkafka::message::{Header, OwnedHeaders};
use uuid::Uuid;

use super::{Encoding, Key, encoding};
use crate::journal::Entry;
use crate::record::Kind;
use crate::time::Timestamp;

/// The Kafka key of a record, in `text` if it must be written.
pub(super) fn key_of<'a>(key: Key, entry: &Entry<'a>, text: &'a mut [u8; 36]) -> Option<&'a [u8]> {
    match key {
        _ if entry.key.is_empty() => None,
        Key::PixelId => Some(entry.key),
        Key::RecordId => Some(Uuid::from_bytes(entry.head.id).hyphenated().encode_lower(text).as_bytes()),
    }
}

/// `ce_source` of a journal, by the name that it has in Kafka.
pub(super) fn source(identity: &str) -> String {
    format!("/{identity}")
}

/// The headers of a record of this source, with a value of this encoding.
pub(super) fn headers(source: &str, encoding: Option<&Encoding>, entry: &Entry<'_>) -> OwnedHeaders {
    let (kind, schema) = match entry.head.kind {
        Kind::Event => ("pixelgate.event.v1", "urn:pixelgate:schema:pixelgate.event.v1"),
        Kind::Rejected => ("pixelgate.rejected.v1", "urn:pixelgate:schema:pixelgate.rejected.v1"),
    };
    let (mut id, time) = ([0; 36], Timestamp(entry.head.time_ms).rfc3339());
    let id = Uuid::from_bytes(entry.head.id).hyphenated().encode_lower(&mut id).as_bytes();
    let attributes: [(&str, &[u8]); 7] = [
        ("content-type", encoding::content_type(encoding).as_bytes()),
        ("ce_specversion", b"1.0"),
        ("ce_type", kind.as_bytes()),
        ("ce_source", source.as_bytes()),
        ("ce_id", id),
        ("ce_time", &time),
        ("ce_dataschema", schema.as_bytes()),
    ];
    attributes.into_iter().fold(OwnedHeaders::new_with_capacity(attributes.len()), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    })
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers;

    use super::*;
    use crate::record::{Head, Position};

    fn entry<'a>(kind: Kind, key: &'a [u8]) -> Entry<'a> {
        Entry { position: Position(0), head: Head { kind, id: [0xab; 16], time_ms: 1 }, key, body: b"{}" }
    }

    const ID: &str = "abababab-abab-abab-abab-abababababab";

    #[test]
    fn records_without_a_key_have_none_whatever_the_key_is() {
        let mut text = [0; 36];
        assert_eq!(key_of(Key::PixelId, &entry(Kind::Event, b"42"), &mut text), Some(&b"42"[..]));
        assert_eq!(key_of(Key::RecordId, &entry(Kind::Event, b"42"), &mut text), Some(ID.as_bytes()));
        assert_eq!(key_of(Key::RecordId, &entry(Kind::Event, b""), &mut text), None);
    }

    #[test]
    fn headers_are_a_cloud_event_s_attributes() {
        for (kind, word) in [(Kind::Event, "pixelgate.event.v1"), (Kind::Rejected, "pixelgate.rejected.v1")] {
            let headers = headers(&source("pixelgate.gw-1.00ff"), None, &entry(kind, b""));
            let found: Vec<(&str, &str)> =
                headers.iter().map(|header| (header.key, str::from_utf8(header.value.unwrap()).unwrap())).collect();
            let schema = format!("urn:pixelgate:schema:{word}");
            let expected = [
                ("content-type", "application/json"),
                ("ce_specversion", "1.0"),
                ("ce_type", word),
                ("ce_source", "/pixelgate.gw-1.00ff"),
                ("ce_id", ID),
                ("ce_time", "1970-01-01T00:00:00.001Z"),
                ("ce_dataschema", &schema),
            ];
            assert_eq!(found, expected);
        }
    }
}
