//! What pages in the wild send, and the record that it makes: each line is one way to say it wrong, or right.

use serde_json::{Value, json};

use super::client::Client;
use super::gateway::{PIXEL, Site};

/// What of a record tells how the request was read.
fn read(line: &str) -> Value {
    let record: Value = serde_json::from_str(line).unwrap();
    let names = ["value", "currency", "event_name", "event_id", "params", "warnings", "source", "page_url"];
    let told = names.into_iter().filter_map(|name| Some((name.to_owned(), record.get(name)?.clone())));
    let told = told.filter(|(name, value)| !(name == "source" && value == "offsite_event"));
    Value::Object(told.collect())
}

fn records(site: &Site) -> Vec<Value> {
    String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap().lines().map(read).collect()
}

#[test]
fn queries_of_real_pages() {
    let cases = [
        ("value=0.01&currency=GBP", json!({"value": "0.01", "currency": "GBP"})),
        // An escaped & in a script.
        ("amp;value=5&amp;currency=USD", json!({"value": "5", "currency": "USD"})),
        ("amp%3Bvalue=5&amp%3bcurrency=USD", json!({"value": "5", "currency": "USD"})),
        // Empty, and only what is left counts.
        ("value=&currency=", json!({})),
        ("value=&value=7&currency=EUR&currency=", json!({"value": "7", "currency": "EUR"})),
        ("value=1&value=2&currency=EUR", json!({"value": "2", "currency": "EUR", "warnings": ["repeated_parameter"]})),
        // 2012: no currency yet.
        ("value=0", json!({"value": "0", "warnings": ["missing_currency"]})),
        ("currency=usd", json!({"currency": "USD"})),
        // Numbers as people write them.
        ("value=+007.50&currency=GBP", json!({"value": "7.50", "currency": "GBP"})),
        ("value=%2B007.50&currency=GBP", json!({"value": "7.50", "currency": "GBP"})),
        ("value=%200.00%0A&currency=%20gbp%20", json!({"value": "0.00", "currency": "GBP"})),
        ("value=-5&currency=GBP", json!({"value": "-5", "currency": "GBP", "warnings": ["negative_value"]})),
        (
            "value=1,234.50&currency=BRL",
            json!({"currency": "BRL", "params": {"value": "1,234.50"}, "warnings": ["invalid_value"]}),
        ),
        (
            "value=12%2C50&currency=Dhs",
            json!({
                "params": {"value": "12,50", "currency": "Dhs"},
                "warnings": ["invalid_value", "invalid_currency"],
            }),
        ),
        (
            "value=[CONV_VALUE]&currency=[CURRENCY]&ord=[ord]",
            json!({
                "params": {"value": "[CONV_VALUE]", "currency": "[CURRENCY]", "ord": "[ord]"},
                "warnings": ["invalid_value", "invalid_currency"],
            }),
        ),
        (
            "value=1e3&currency=GBP",
            json!({"currency": "GBP", "params": {"value": "1e3"}, "warnings": ["invalid_value"]}),
        ),
        // Custom data, as fp.js and by hand.
        (
            "cd[order]=81%2F7&cd%5Bitems%5D=%5B1%2C2%5D&cd[a%5Db]=x+y",
            json!({"params": {"cd[order]": "81/7", "cd[items]": "[1,2]", "cd[a]b]": "x y"}}),
        ),
        ("ev=Purchase&eid=o-1&pg=fp1", json!({"event_name": "Purchase", "event_id": "o-1", "source": "fp_js"})),
        ("x=%FF%41&y=%&z=%4", json!({"params": {"x": "\u{fffd}A", "y": "%", "z": "%4"}, "warnings": ["invalid_utf8"]})),
        ("&&=&=a&b&c=", json!({})),
        (
            "dl=https%3A%2F%2Fs.example%2Fa%3Futm_source%3Dx%26k%3Dv",
            json!({"page_url": "https://s.example/a?utm_source=x"}),
        ),
    ];
    let site = Site::new("");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    for (query, _) in &cases {
        let reply = client.get(&format!("/offsite_event.php?id={PIXEL}&{query}")).unwrap();
        assert_eq!(reply.status, 200, "{query}: {reply:?}");
    }
    assert_eq!(gateway.stop(), Some(0));
    let records = records(&site);
    assert_eq!(records.len(), cases.len());
    for (record, (query, expected)) in records.iter().zip(&cases) {
        assert_eq!(record, expected, "{query}");
    }
}

#[test]
fn bodies_of_every_kind() {
    const FORM: &str = "application/x-www-form-urlencoded;charset=UTF-8";
    const JSON: &str = "application/json; charset=utf-8";
    const TEXT: &str = "text/plain;charset=UTF-8";
    const PARTS: &str = "Multipart/Form-Data; boundary=\"----x\"";
    let id = PIXEL;
    let part = |name: &str, value: &str| {
        format!("------x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let parts = [part("id", id), part("value", "9.90"), part("currency", "EUR"), part("cd%5Bk%5D", "a b+c")].concat();
    let plain = json!({"value": "1.10", "currency": "EUR"});
    let cases = [
        ("", FORM, format!("id={id}&value=1.10&currency=EUR"), plain.clone()),
        ("", TEXT, format!("id={id}&value=1.10&currency=EUR"), plain.clone()),
        ("", "", format!("id={id}&value=1.10&currency=EUR"), plain.clone()),
        // Numbers keep their text.
        ("", JSON, format!("{{\"id\":{id},\"value\":1.10,\"currency\":\"EUR\"}}"), plain.clone()),
        ("", TEXT, format!(" {{\"id\":\"{id}\",\"value\":1.10,\"currency\":\"eur\"}}"), plain.clone()),
        (
            "",
            JSON,
            format!("{{\"id\":\"{id}\",\"a\":true,\"b\":null,\"c\":{{\"d\": [1, 2.0]}},\"e\":1e2,\"f\":\"\"}}"),
            json!({"params": {"a": "true", "c": "{\"d\":[1,2.0]}", "e": "1e2"}}),
        ),
        (
            "",
            PARTS,
            format!("{parts}------x--\r\n"),
            json!({"value": "9.90", "currency": "EUR", "params": {"cd%5Bk%5D": "a b+c"}}),
        ),
        // The query goes first.
        (
            "?value=3&currency=GBP",
            FORM,
            format!("id={id}&value=1.10"),
            json!({"value": "3", "currency": "GBP", "warnings": ["repeated_parameter"]}),
        ),
    ];
    let site = Site::new("");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    for (query, kind, body, _) in &cases {
        let line = if kind.is_empty() { String::new() } else { format!("Content-Type: {kind}\r\n") };
        let head = format!("POST /offsite_event{query} HTTP/1.1\r\nHost: gateway.test\r\n{line}");
        client.send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
        let reply = client.reply().unwrap();
        assert_eq!(reply.status, 204, "{kind} {body}: {reply:?}");
    }
    assert_eq!(gateway.stop(), Some(0));
    let records = records(&site);
    assert_eq!(records.len(), cases.len());
    for (record, (query, kind, body, expected)) in records.iter().zip(&cases) {
        assert_eq!(record, expected, "{query} {kind} {body}");
    }
}
