//! docs/schema holds for real records, of both kinds and from dirty requests; and its checker checks.

use std::fs;
use std::path::Path;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use regex::Regex;
use serde_json::Value;

use super::client::Client;
use super::consumer::read_committed;
use super::gateway::{PIXEL, Site, until};

fn schema(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema").join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Checks a value; every keyword must be known here, so that no part of a schema goes unchecked.
fn violations(schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let rules = schema.as_object().expect("a schema is an object");
    for (keyword, rule) in rules {
        let fine = match keyword.as_str() {
            "$schema" | "$id" | "title" | "description" => true,
            "type" => rule == type_of(value) || (rule == "integer" && value.is_u64()),
            "const" => rule == value,
            "enum" => rule.as_array().unwrap().contains(value),
            "pattern" => value.as_str().is_none_or(|text| Regex::new(rule.as_str().unwrap()).unwrap().is_match(text)),
            "minLength" => value.as_str().is_none_or(|text| text.chars().count() as u64 >= rule.as_u64().unwrap()),
            "maxLength" => value.as_str().is_none_or(|text| text.chars().count() as u64 <= rule.as_u64().unwrap()),
            "minItems" => value.as_array().is_none_or(|list| list.len() as u64 >= rule.as_u64().unwrap()),
            "minProperties" => value.as_object().is_none_or(|map| map.len() as u64 >= rule.as_u64().unwrap()),
            "uniqueItems" => value.as_array().is_none_or(|list| (1..list.len()).all(|i| !list[..i].contains(&list[i]))),
            "required" => rule.as_array().unwrap().iter().all(|name| value.get(name.as_str().unwrap()).is_some()),
            "items" => {
                let items = value.as_array().into_iter().flatten();
                items.enumerate().for_each(|(index, item)| violations(rule, item, &format!("{at}[{index}]"), found));
                true
            }
            "properties" => {
                for (name, rule) in rule.as_object().unwrap() {
                    if let Some(member) = value.get(name) {
                        violations(rule, member, &format!("{at}.{name}"), found);
                    }
                }
                true
            }
            "additionalProperties" => {
                let others = value.as_object().into_iter().flatten().filter(|_| rule.is_object());
                others.for_each(|(name, member)| violations(rule, member, &format!("{at}.{name}"), found));
                true
            }
            other => panic!("the checker doesn't know the keyword {other}"),
        };
        if !fine {
            found.push(format!("{at}: {value} breaks {keyword} {rule}"));
        }
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

pub fn check(schema: &Value, record: &Value) -> Vec<String> {
    let mut found = Vec::new();
    violations(schema, record, "", &mut found);
    found
}

#[test]
fn real_records_keep_their_schema() {
    let site = Site::new("[privacy]\nclient_ip = \"full\"\n[validation]\nunknown_pixel = \"reject\"\n");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let events = [
        format!("/offsite_event.php?id={PIXEL}"),
        format!("/offsite_event.php?id={PIXEL}&amp;value=%2B007.50&amp;currency=gbp&test=1&ev=Purchase&eid=o-1"),
        format!("/offsite_event.php?id={PIXEL}&value=[VALUE]&currency=Dhs&cd[a]=%FF%00%22&a=1&a=2&value="),
        format!("/offsite_event.php?id={PIXEL}&value=-0.00000001&dl=https%3A%2F%2Fshop.test%2F%3Fq%3D1&pg=fp1"),
        format!("/offsite_event.php?id={PIXEL}&ts=1700000000000&st=1700000000500&rl=%E2%82%AC"),
    ];
    for target in &events {
        assert_eq!(client.get(target).unwrap().status, 200, "{target}");
    }
    let head = format!("GET /offsite_event?id={PIXEL} HTTP/1.1\r\nHost: gateway.test\r\nUser-Agent: Agent \"1\"\r\n");
    let rest = "Referer: https://shop.test/a?utm_source=x&secret=y\r\nSec-GPC: 1\r\nCookie: _fbp=fb.1.2.3\r\n\r\n";
    client.send((head + rest).as_bytes()).unwrap();
    assert_eq!(client.reply().unwrap().status, 200);
    for target in ["/offsite_event.php", "/offsite_event.php?id=0&q=%FF", "/offsite_event.php?id=42&value=1"] {
        assert!(client.get(target).unwrap().status >= 400, "{target}");
    }
    drop(client);
    assert_eq!(gateway.stop(), Some(0));

    for (kind, name, count) in [("event", "event.v1.json", 6), ("rejected", "rejected.v1.json", 3)] {
        let output = site.run(&["journal", "export", "--kind", kind]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), count, "{text}");
        for line in text.lines() {
            let mut record: Value = serde_json::from_str(line).unwrap();
            assert_eq!(check(&schema(name), &record), Vec::<String>::new(), "{line}");
            record["a_later_field"] = serde_json::json!({"of": ["any", 1, null]});
            assert_eq!(check(&schema(name), &record), Vec::<String>::new(), "later versions add fields");
        }
    }
}

#[test]
fn reports_of_progress_keep_their_schema() {
    let mock: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).unwrap();
    for topic in ["pixelgate.events", "pixelgate.rejected", "pixelgate.progress"] {
        mock.create_topic(topic, 1, 1).unwrap();
    }
    let brokers = mock.bootstrap_servers();
    let site = Site::new(&format!("[kafka]\nbrokers = \"{brokers}\"\nprogress_topic = \"pixelgate.progress\"\n"));
    let gateway = site.start();
    let reports = || read_committed(&brokers, "pixelgate.progress");
    until("a report", || !reports().is_empty());
    let mut client = Client::connect(site.public).unwrap();
    assert_eq!(client.get(&format!("/offsite_event.php?id={PIXEL}")).unwrap().status, 200);
    drop(client);
    until("it is published", || gateway.metric("journal_pending_events") == Some(0.0));
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    let reports = reports();
    for report in &reports {
        let value: Value = serde_json::from_str(&report.value).unwrap();
        assert_eq!(check(&schema("progress.v1.json"), &value), Vec::<String>::new(), "{value}");
        assert_eq!(report.key.as_deref(), value["node_id"].as_str());
    }
    let last: Value = serde_json::from_str(&reports.last().unwrap().value).unwrap();
    assert_eq!((&last["published"], &last["position"]), (&1.into(), &1.into()), "the end of a run reports: {last}");
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let good = serde_json::json!({
        "schema": "pixelgate.event.v1", "record_id": "01890a5d-ac96-774b-bcce-b302099a8057", "source": "fp_js",
        "received_at": "2026-01-02T03:04:05.678Z", "pixel_id": "6010000000001", "node_id": "n", "new_field": [null],
    });
    let schema = schema("event.v1.json");
    assert_eq!(check(&schema, &good), Vec::<String>::new());
    for (field, value) in [
        ("value", serde_json::json!(1.5)),
        ("value", serde_json::json!("+1")),
        ("value", serde_json::json!("007")),
        ("currency", serde_json::json!("gbp")),
        ("gpc", serde_json::json!(false)),
        ("params", serde_json::json!({})),
        ("params", serde_json::json!({"a": 1})),
        ("warnings", serde_json::json!(["news"])),
        ("warnings", serde_json::json!(["duplicate", "duplicate"])),
        ("received_at", serde_json::json!("2026-01-02T03:04:05Z")),
        ("pixel_id", serde_json::json!("0")),
        ("consent", serde_json::Value::Null),
    ] {
        let mut bad = good.clone();
        bad[field] = value.clone();
        assert!(!check(&schema, &bad).is_empty(), "{field} {value}");
    }
    let mut bad = good;
    bad.as_object_mut().unwrap().remove("pixel_id");
    assert_eq!(check(&schema, &bad).len(), 1);
}
