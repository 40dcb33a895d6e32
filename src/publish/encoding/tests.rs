//! What is encoded, read by other hands: Apache's Avro library, and a Protobuf library that is told nothing but the
//! schema file.

use proptest::prelude::*;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::*;
use crate::record::{Head, Position};
use crate::time::Timestamp;

const ID: u32 = 0x0102_0304;

fn encode(format: Format, record: &Value, kind: Kind) -> Result<Vec<u8>, Doubt> {
    let body = record.to_string();
    let time = record["received_at"].as_str().and_then(Timestamp::parse).unwrap_or_default();
    let head = Head { kind, id: [0; 16], time_ms: time.0 };
    Encoder::new(format, ID).encode(&Entry { position: Position(5), head, key: b"1", body: body.as_bytes() })
}

fn avro_schema(kind: Kind) -> apache_avro::Schema {
    apache_avro::Schema::parse_str(schema(Format::Avro, kind)).unwrap()
}

/// The JSON record that an Avro value stands for.
fn of_avro(mut bytes: &[u8], kind: Kind) -> Value {
    assert_eq!(bytes[..5], [0, 1, 2, 3, 4]);
    bytes = &bytes[5..];
    let value = apache_avro::from_avro_datum(&avro_schema(kind), &mut bytes, None).unwrap();
    assert!(bytes.is_empty(), "{} bytes are left", bytes.len());
    let apache_avro::types::Value::Record(members) = value else { panic!("{value:?}") };
    without_empty(members.into_iter().map(|(name, value)| (name, plain(value))))
}

fn plain(value: apache_avro::types::Value) -> Value {
    use apache_avro::types::Value as Avro;
    match value {
        Avro::Null => Value::Null,
        Avro::Boolean(holds) => holds.into(),
        Avro::String(text) => text.into(),
        Avro::Union(_, value) => plain(*value),
        Avro::TimestampMillis(ms) => Timestamp(ms as u64).to_rfc3339().into(),
        Avro::Array(items) => items.into_iter().map(plain).collect(),
        Avro::Map(members) => members.into_iter().map(|(name, value)| (name, plain(value))).collect(),
        Avro::Decimal(decimal) => {
            let bytes: Vec<u8> = decimal.try_into().unwrap();
            let sign = if bytes[0] < 0x80 { 0 } else { 0xff };
            let mut wide = [sign; 16];
            wide[16 - bytes.len()..].copy_from_slice(&bytes);
            let number = i128::from_be_bytes(wide);
            let digits = format!("{:09}", number.unsigned_abs());
            let (whole, fraction) = digits.split_at(digits.len() - 8);
            format!("{}{whole}.{fraction}", if number < 0 { "-" } else { "" }).into()
        }
        other => panic!("{other:?}"),
    }
}

fn descriptor(kind: Kind) -> MessageDescriptor {
    let (file, name) = match kind {
        Kind::Event => ("event.v1.proto", "pixelgate.v1.Event"),
        Kind::Rejected => ("rejected.v1.proto", "pixelgate.v1.Rejected"),
    };
    let schemas = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/schema");
    let pool = DescriptorPool::from_file_descriptor_set(protox::compile([file], [schemas]).unwrap()).unwrap();
    pool.get_message_by_name(name).unwrap()
}

/// The JSON record that a Protobuf value stands for.
fn of_protobuf(bytes: &[u8], descriptor: &MessageDescriptor) -> Value {
    use prost_reflect::Value as Proto;
    assert_eq!(bytes[..6], [0, 1, 2, 3, 4, 0]);
    let message = DynamicMessage::decode(descriptor.clone(), &bytes[6..]).unwrap();
    assert_eq!(message.unknown_fields().count(), 0);
    without_empty(message.fields().map(|(field, value)| {
        let value = match value {
            Proto::I64(ms) => Timestamp(*ms as u64).to_rfc3339().into(),
            Proto::Bool(holds) => (*holds).into(),
            Proto::String(text) => text.as_str().into(),
            Proto::List(items) => items.iter().map(|item| Value::from(item.as_str().unwrap())).collect(),
            Proto::Map(members) => {
                let each = |(name, value): (&prost_reflect::MapKey, &Proto)| {
                    (name.as_str().unwrap().to_owned(), Value::from(value.as_str().unwrap()))
                };
                members.iter().map(each).collect()
            }
            other => panic!("{other:?}"),
        };
        (field.name().trim_end_matches("_ms").to_owned(), value)
    }))
}

/// As records are: what says nothing is left out.
fn without_empty(members: impl Iterator<Item = (String, Value)>) -> Value {
    let says =
        |value: &Value| !(value.is_null() || *value == json!(false) || *value == json!([]) || *value == json!({}));
    members.filter(|(_, value)| says(value)).collect::<Map<_, _>>().into()
}

/// A record as encodings keep it: they name it themselves, and Avro has numbers where JSON has their text.
fn kept(record: &Value, format: Format) -> Value {
    let mut kept = record.clone();
    kept.as_object_mut().unwrap().remove("schema");
    if let (Format::Avro, Some(value)) = (format, kept.get_mut("value")) {
        let (whole, fraction) = value.as_str().unwrap().split_once('.').unwrap_or((value.as_str().unwrap(), ""));
        let text = format!("{whole}.{fraction:0<8}");
        let is_zero = text.bytes().all(|byte| b"-0.".contains(&byte));
        *value = if is_zero { "0.00000000".into() } else { text.into() };
    }
    kept
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-z0-9]{1,20}", "\\PC{0,8}", any::<String>(), "[a]{120,300}"]
}

fn records(kind: Kind) -> impl Strategy<Value = Value> {
    const OPTIONAL: [&str; 14] = [
        "pixel_name",
        "pixel_tag",
        "ad_account_id",
        "event_name",
        "event_id",
        "currency",
        "client_ip",
        "user_agent",
        "referrer",
        "page_url",
        "browser_id",
        "fbp",
        "fbc",
        "consent",
    ];
    let optional = proptest::collection::vec(proptest::option::of(texts()), OPTIONAL.len());
    let times = (0..=Timestamp::MAX.0, proptest::option::of(0..=Timestamp::MAX.0));
    let value = proptest::option::of("-?(0|[1-9][0-9]{0,14})(\\.[0-9]{1,8})?");
    let lists =
        (proptest::collection::btree_map(texts(), texts(), 0..4), proptest::collection::vec("[a-z_]{1,12}", 0..3));
    let rest = (any::<[bool; 2]>(), proptest::option::of(texts()), any::<bool>());
    (optional, times, value, lists, rest).prop_map(move |(optional, times, value, (params, warnings), rest)| {
        let mut record = json!({"schema": "x", "record_id": "r", "node_id": "n"});
        record["received_at"] = Timestamp(times.0).to_rfc3339().into();
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                record[name] = value;
            }
        };
        set("occurred_at", times.1.map(|ms| Timestamp(ms).to_rfc3339().into()));
        for (name, text) in OPTIONAL.into_iter().zip(optional) {
            set(name, text.map(Value::from));
        }
        set("value", value.map(Value::from));
        set("params", (!params.is_empty()).then(|| json!(params)));
        set("warnings", (!warnings.is_empty()).then(|| json!(warnings)));
        let ([gpc, test], raw, has_pixel) = rest;
        set("gpc", gpc.then(|| true.into()));
        set("test", test.then(|| true.into()));
        let is_event = kind == Kind::Event;
        set("pixel_id", (is_event || has_pixel).then(|| "7".into()));
        set("source", (is_event || has_pixel).then(|| "tr".into()));
        set("reason", (!is_event).then(|| "invalid_id".into()));
        set("raw", raw.filter(|_| !is_event).map(Value::from));
        record
    })
}

fn assert_kept(record: &Value, kind: Kind, descriptor: &MessageDescriptor) {
    let avro = encode(Format::Avro, record, kind).unwrap();
    assert_eq!(of_avro(&avro, kind), kept(record, Format::Avro));
    let protobuf = encode(Format::Protobuf, record, kind).unwrap();
    assert_eq!(of_protobuf(&protobuf, descriptor), kept(record, Format::Protobuf));
    assert!(avro.len() < record.to_string().len() && protobuf.len() < record.to_string().len());
}

#[test]
fn other_libraries_read_what_was_written() {
    for kind in [Kind::Event, Kind::Rejected] {
        let descriptor = descriptor(kind);
        proptest!(|(record in records(kind))| assert_kept(&record, kind, &descriptor));
    }
}

#[test]
fn schemas_have_the_members_of_the_json_schema() {
    for (kind, file) in [(Kind::Event, "event"), (Kind::Rejected, "rejected")] {
        let path = format!("{}/docs/schema/{file}.v1.json", env!("CARGO_MANIFEST_DIR"));
        let json: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut wanted: Vec<&str> = json["properties"].as_object().unwrap().keys().map(|name| &**name).collect();
        wanted.retain(|name| *name != "schema");
        wanted.sort_unstable();
        let apache_avro::Schema::Record(avro) = avro_schema(kind) else { panic!("no record") };
        let mut avro: Vec<&str> = avro.fields.iter().map(|field| &*field.name).collect();
        avro.sort_unstable();
        assert_eq!(avro, wanted);
        let descriptor = descriptor(kind);
        let mut protobuf: Vec<String> =
            descriptor.fields().map(|field| field.name().trim_end_matches("_ms").to_owned()).collect();
        protobuf.sort_unstable();
        assert_eq!(protobuf, wanted);
    }
}

#[test]
fn what_is_no_record_of_ours_is_named_and_its_content_is_not() {
    let good = json!({"record_id": "r", "received_at": "2026-01-02T03:04:05.678Z", "node_id": "n", "pixel_id": "7",
        "source": "tr"});
    let check = |change: &dyn Fn(&mut Value), kind, part: &str| {
        let mut record = good.clone();
        change(&mut record);
        let doubt = encode(Format::Avro, &record, kind).unwrap_err();
        assert_eq!((doubt.fault, doubt.culprit), (Fault::Record, Some(Position(5))));
        assert!(doubt.to_string().contains(part), "{doubt}");
    };
    check(&|record| drop(record.as_object_mut().unwrap().remove("pixel_id")), Kind::Event, "pixel_id is missing");
    check(&|record| drop(record.as_object_mut().unwrap().remove("record_id")), Kind::Event, "record_id");
    check(&|record| record["occurred_at"] = "secret".into(), Kind::Event, "occurred_at is no RFC 3339 timestamp");
    for value in ["", "-", "1.123456789", "1e5", "1.2.3", ".5"] {
        check(&|record| record["value"] = value.into(), Kind::Event, "value is no decimal");
    }
    check(&|_| (), Kind::Rejected, "reason is missing");
    check(&|record| record["params"] = json!({"a": 1}), Kind::Event, "line 1");
}

#[test]
fn decimals_take_as_few_bytes_as_hold_them() {
    let check = |text: &str, bytes: &[u8]| {
        let mut value = Vec::new();
        avro::Avro(&mut value).decimal(10, Some(text)).unwrap();
        assert_eq!(value[1], 2 * bytes.len() as u8, "{text}");
        assert_eq!(&value[2..], bytes, "{text}");
    };
    check("0", &[0]);
    check("0.00000127", &[0x7f]);
    check("0.00000128", &[0, 0x80]);
    check("-0.00000001", &[0xff]);
    check("-0.00000128", &[0x80]);
    check("-0.00000129", &[0xff, 0x7f]);
    check("-999999999999999.99999999", &[0xea, 0xd2, 0xfd, 0x38, 0x1e, 0xb5, 0x09, 0x80, 0, 1]);
}

#[test]
fn the_same_record_gives_the_same_bytes() {
    let record = json!({"record_id": "r", "node_id": "n", "pixel_id": "7", "source": "tr",
        "params": {"b": "1", "a": "2", "c": "3"}});
    for format in [Format::Avro, Format::Protobuf] {
        let first = encode(format, &record, Kind::Event).unwrap();
        assert_eq!(encode(format, &record, Kind::Event).unwrap(), first);
    }
}

/// A text field of a later version, as it is encoded behind those of today.
const LATER: &str = "later";

/// The Avro schema as a later version may have it.
fn later_avro(kind: Kind) -> apache_avro::Schema {
    let mut schema: Value = serde_json::from_str(schema(Format::Avro, kind)).unwrap();
    let field = json!({"name": "a_later_field", "type": ["null", "string"], "default": null});
    schema["fields"].as_array_mut().unwrap().push(field);
    apache_avro::Schema::parse_str(&schema.to_string()).unwrap()
}

#[test]
fn readers_of_this_version_read_later_records_and_later_readers_read_these() {
    use apache_avro::from_avro_datum;
    for kind in [Kind::Event, Kind::Rejected] {
        let (v1, later, descriptor) = (avro_schema(kind), later_avro(kind), descriptor(kind));
        proptest!(ProptestConfig::with_cases(64), |(mut record in records(kind))| {
            // This library can't resolve decimals (its check of their precision is wrong); that fastavro does is shown
            // by `schemas::` in tests/it.
            record.as_object_mut().unwrap().remove("value");
            let avro = encode(Format::Avro, &record, kind).unwrap();
            let field = [&[2, 2 * LATER.len() as u8], LATER.as_bytes()].concat();
            let newer = [&avro[5..], &field].concat();
            let read = |mut bytes: &[u8], writer, reader| from_avro_datum(writer, &mut bytes, Some(reader)).unwrap();
            assert_eq!(read(&newer, &later, &v1), read(&avro[5..], &v1, &v1), "what a reader of v1 sees");
            let apache_avro::types::Value::Record(members) = read(&avro[5..], &v1, &later) else { panic!("no record") };
            let (name, value) = members.last().unwrap();
            assert_eq!((&**name, plain(value.clone())), ("a_later_field", Value::Null));

            let protobuf = encode(Format::Protobuf, &record, kind).unwrap();
            // Field 1000, with a length.
            let field = [&[0xc2, 0x3e, LATER.len() as u8], LATER.as_bytes()].concat();
            let newer = DynamicMessage::decode(descriptor.clone(), &[&protobuf[6..], &field].concat()[..]).unwrap();
            let now = DynamicMessage::decode(descriptor.clone(), &protobuf[6..]).unwrap();
            assert!(newer.fields().eq(now.fields()), "what a reader of v1 sees");
            assert_eq!(newer.unknown_fields().map(|field| field.number()).collect::<Vec<_>>(), [1000]);
        });
    }
}

#[test]
fn a_required_field_more_would_break_readers_and_is_noticed() {
    let mut broken: Value = serde_json::from_str(schema(Format::Avro, Kind::Event)).unwrap();
    broken["fields"].as_array_mut().unwrap().push(json!({"name": "needed", "type": "string"}));
    let broken = apache_avro::Schema::parse_str(&broken.to_string()).unwrap();
    let record = json!({"record_id": "r", "node_id": "n", "pixel_id": "7", "source": "tr"});
    let avro = encode(Format::Avro, &record, Kind::Event).unwrap();
    apache_avro::from_avro_datum(&avro_schema(Kind::Event), &mut &avro[5..], Some(&broken)).unwrap_err();
}
