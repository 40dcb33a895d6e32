//! From a request's bytes to a record's JSON: what is refused, what is repaired, what is flagged.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::encode::{Stamp, check_clock, event as encode_event, rejected};
use super::parse::parse;
use super::privacy::{ClientIp, Options, UrlQuery};
use super::rejection::Rejection;
use super::{Body, Client, RawEvent, Refusal};
use crate::pixel::{Pixel, PixelId};
use crate::time::Timestamp;

const RULES: Options = Options { client_ip: ClientIp::Truncated, url_query: UrlQuery::Allowlist };

fn encode(raw: RawEvent<'_>, client: &Client<'_>) -> Result<Value, Rejection> {
    let mut event = parse(raw, false).map_err(|refusal| refusal.reason)?;
    let pixel = Pixel { id: event.pixel_id, name: None, tag: None, ad_account_id: None, archived: false };
    let stamp = Stamp { id: [7; 16], received: Timestamp(1_795_496_441_123), node_id: "n" };
    let mut out = Vec::new();
    check_clock(&mut event, stamp.received);
    encode_event(&mut out, &stamp, &event, client, &pixel, &RULES);
    Ok(serde_json::from_slice(&out).expect("valid JSON"))
}

fn query(query: &str) -> Result<Value, Rejection> {
    encode(RawEvent { query: query.as_bytes(), body: Body::None, ..RawEvent::default() }, &Client::default())
}

fn own(record: &Value) -> Value {
    let mut record = record.clone();
    for field in ["schema", "record_id", "received_at", "node_id", "source", "pixel_id"] {
        record.as_object_mut().unwrap().remove(field);
    }
    record
}

#[test]
fn what_names_no_pixel_is_refused() {
    for (text, reason) in [
        ("", Rejection::MissingId),
        ("id=", Rejection::MissingId),
        ("value=1", Rejection::MissingId),
        ("id=0", Rejection::InvalidId),
        ("id=null", Rejection::InvalidId),
        ("id=1%20", Rejection::InvalidId),
        ("id=123456789012345678901", Rejection::InvalidId),
    ] {
        assert_eq!(query(text), Err(reason), "{text}");
    }
    for body in ["", "[]", "1", "\"x\"", "{", "{\"id\":}", "{\"id\":1}x"] {
        let raw = RawEvent { query: b"id=1", body: Body::Json(body.as_bytes()), ..RawEvent::default() };
        assert_eq!(parse(raw, false).err().map(|refusal| refusal.reason), Some(Rejection::MalformedBody), "{body}");
    }
    let named = |reason| Refusal { reason, pixel_id: PixelId::parse(b"1") };
    assert_eq!(
        parse(RawEvent { query: b"id=1&value=x", body: Body::None, ..RawEvent::default() }, true),
        Err(named(Rejection::InvalidValue))
    );
    let strict = parse(RawEvent { query: b"id=1&currency=x", body: Body::None, ..RawEvent::default() }, true);
    assert_eq!(strict, Err(named(Rejection::InvalidCurrency)));
}

#[test]
fn the_wild_is_repaired_or_flagged() {
    for (text, expected) in [
        ("id=1&value=0.01&currency=gbp", json!({"value": "0.01", "currency": "GBP"})),
        ("id=1&amp;value=5&amp;currency=USD", json!({"value": "5", "currency": "USD"})),
        ("id=1&value=&currency=", json!({})),
        ("id=1&value=5", json!({"value": "5", "warnings": ["missing_currency"]})),
        ("id=1&value=-5&currency=USD", json!({"value": "-5", "currency": "USD", "warnings": ["negative_value"]})),
        ("id=1&value=1,234.50", json!({"params": {"value": "1,234.50"}, "warnings": ["invalid_value"]})),
        ("id=1&currency=%5BC%5D", json!({"params": {"currency": "[C]"}, "warnings": ["invalid_currency"]})),
        ("id=1&a=1&a=2", json!({"params": {"a": "2"}, "warnings": ["repeated_parameter"]})),
        ("id=1&a=1&a=", json!({"params": {"a": "1"}})),
        ("id=1&a=%FF", json!({"params": {"a": "\u{fffd}"}, "warnings": ["invalid_utf8"]})),
        ("id=1&a=%zz%4", json!({"params": {"a": "%zz%4"}})),
        (
            "id=1&cd[x]=a+b%2B&ev=Buy&eid=e1&test=1",
            json!({"event_name": "Buy", "event_id": "e1", "test": true,
            "params": {"cd[x]": "a b+"}}),
        ),
        (
            "id=1&dl=https%3A%2F%2Fs.example%2F%3Femail%3Dx%26utm_a%3D1",
            json!({"page_url": "https://s.example/?utm_a=1"}),
        ),
        ("id=1&ts=1000&st=3000", json!({"occurred_at": "2026-11-24T05:00:39.123Z"})),
        ("id=1&ts=3000&st=1000", json!({"warnings": ["clock_skew"]})),
        ("id=1&ts=1000", json!({"params": {"ts": "1000"}})),
        ("id=1&st=1000", json!({})),
    ] {
        assert_eq!(own(&query(text).unwrap()), expected, "{text}");
    }
}

#[test]
fn bodies_of_every_kind() {
    let multipart = "--B\r\nContent-Disposition: form-data; name=\"id\"\r\n\r\n1\r\n--B\r\nContent-Disposition: \
                     form-data; \
                     name=\"a\"\r\n\r\nx\r\n--B--\r\n";
    for (text, body, expected) in [
        ("", Body::Form(b"id=1&a=x"), json!({"params": {"a": "x"}})),
        ("", Body::Multipart(multipart.as_bytes(), "B"), json!({"params": {"a": "x"}})),
        (
            "",
            Body::Text(b" {\"id\":1,\"a\":1.50,\"b\":true,\"c\":null,\"d\":{\"k\" : [1, \"a b\"]}}"),
            json!({"params": {"a": "1.50", "b": "true", "d": "{\"k\":[1,\"a b\"]}"}}),
        ),
        ("id=1&a=q", Body::Form(b"a=b&a=c"), json!({"params": {"a": "q"}, "warnings": ["repeated_parameter"]})),
    ] {
        let record =
            encode(RawEvent { query: text.as_bytes(), body, ..RawEvent::default() }, &Client::default()).unwrap();
        assert_eq!(own(&record), expected, "{body:?}");
    }
}

#[test]
fn gpc_takes_identifiers_out() {
    let client = Client {
        ip: Some("203.0.113.9".parse().unwrap()),
        cookie: Some(b"a=b; _fbp=fb.1.2.3"),
        gpc: true,
        anonymous: true,
        ..Client::default()
    };
    let raw = RawEvent { query: b"id=1&fbc=x&gclid=y", body: Body::None, ..RawEvent::default() };
    assert_eq!(own(&encode(raw, &client).unwrap()), json!({"client_ip": "203.0.113.0", "gpc": true}));
    let client = Client { gpc: false, anonymous: false, ..client };
    let record = own(&encode(raw, &client).unwrap());
    assert_eq!(record["fbp"], "fb.1.2.3");
    assert_eq!(record["params"]["gclid"], "y");
}

proptest! {
    #[test]
    fn any_bytes_give_valid_bounded_json_without_nulls(bytes in prop::collection::vec(any::<u8>(), 0..400),
            agent in prop::collection::vec(any::<u8>(), 0..50)) {
        let (user_agent, referer) = (Some(&agent[..]), Some(&agent[..]));
        let client = Client { user_agent, referer, cookie: Some(&bytes), ..Client::default() };
        for body in [Body::Form(&bytes), Body::Text(&bytes), Body::Json(&bytes), Body::Multipart(&bytes, "B")] {
            if let Ok(record) = encode(RawEvent { query: b"id=1", body, ..RawEvent::default() }, &client) {
                prop_assert!(record.as_object().unwrap().values().all(|value| !value.is_null()));
            }
        }
        let stamp = Stamp { id: [7; 16], received: Timestamp(0), node_id: "n" };
        let mut out = Vec::new();
        let refusal = Refusal { reason: Rejection::MissingId, pixel_id: None };
        let raw = RawEvent { query: &bytes, body: Body::None, ..RawEvent::default() };
        rejected(&mut out, &stamp, refusal, &raw, &client, &RULES);
        let record: Value = serde_json::from_slice(&out).expect("valid JSON");
        prop_assert!(record["raw"].as_str().unwrap().len() <= 4096);
    }

    #[test]
    fn the_longest_event_fits_the_journal(lengths in prop::collection::vec(1..200_usize, 0..300), byte in 0u8..32) {
        let text = format!("%{byte:02x}").repeat(300);
        let names = lengths.iter().enumerate().map(|(number, length)| format!("x{number:0length$}"));
        let query: String = names.map(|name| format!("&{name}={text}")).collect();
        let query = format!("id=1{query}");
        let raw = RawEvent { query: query.as_bytes(), body: Body::None, ..RawEvent::default() };
        let mut event = parse(raw, false).unwrap();
        let pixel = Pixel { id: event.pixel_id, name: None, tag: None, ad_account_id: None, archived: false };
        let stamp = Stamp { id: [7; 16], received: Timestamp(0), node_id: "n" };
        let mut out = Vec::new();
        check_clock(&mut event, stamp.received);
    encode_event(&mut out, &stamp, &event, &Client::default(), &pixel, &RULES);
        prop_assert!(out.len() < 100 * 1024, "{}", out.len());
    }
}
