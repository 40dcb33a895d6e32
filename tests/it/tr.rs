//! `/tr`: what `fbq`, `_fbq` and their noscript images send, and the record that becomes of it.

use serde_json::{Value, json};

use super::client::{Client, Reply};
use super::gateway::{PIXEL, Site};

/// Sends each form once and gives back the records, in order, without what every record has.
pub fn records(site: &Site) -> Vec<Value> {
    let exported = site.run(&["journal", "export"]);
    assert!(exported.status.success());
    let lines = String::from_utf8(exported.stdout).unwrap();
    let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records
        .map(|mut record| {
            let members = record.as_object_mut().unwrap();
            for name in ["schema", "record_id", "received_at", "node_id", "pixel_name", "pixel_tag", "ad_account_id"] {
                members.shift_remove(name);
            }
            members.shift_remove("client_ip");
            record
        })
        .collect()
}

fn get(client: &mut Client, target: &str) -> Reply {
    client.get(target).unwrap()
}

#[test]
fn every_way_of_sending_makes_the_same_record() {
    let site = Site::new("");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let pairs = [
        ("id", PIXEL),
        ("ev", "Purchase"),
        ("dl", "https://shop.example/thanks"),
        ("rl", "https://shop.example/cart"),
        ("if", "false"),
        ("ts", "1700000000000"),
        ("cd[value]", "12.50"),
        ("cd[currency]", "eur"),
        // As the page has it: `content ids`. The script encodes the name, the form whatever it is given.
        ("cd[content%20ids]", "[\"a\",\"b\"]"),
        ("ud[em]", "f660ab912ec121d1b1e928a0bb4bc61b15f5ad44d5efdc4e1c92a25e99b8e44a"),
        ("v", "2.9.134"),
        ("fbp", "fb.1.1625813003210.1037862016.AQ"),
        ("fbc", "fb.1.1625813003210.IwAR2cAsE"),
    ];
    let query: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    let multipart: String = pairs
        .iter()
        .map(|(name, value)| format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"))
        .collect();
    let reply = get(&mut client, &format!("/tr/?eid=order-0&{}", query.join("&")));
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("image/gif")));
    assert_eq!(get(&mut client, &format!("/tr?eid=order-1&{}", query.join("&amp;"))).status, 200);
    let object: serde_json::Map<String, Value> =
        pairs.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
    let bodies = [
        ("application/x-www-form-urlencoded", form),
        ("multipart/form-data; boundary=b", format!("{multipart}--b--\r\n")),
        ("text/plain;charset=UTF-8", query.join("&")),
        ("application/json", json!(object).to_string()),
    ];
    for (index, (kind, body)) in bodies.iter().enumerate() {
        let path = if index % 2 == 0 { "/tr/" } else { "/tr" };
        let reply = client.post(&format!("{path}?eid=order-{}", index + 2), kind, body).unwrap();
        assert_eq!(reply.status, 204, "{kind}");
    }
    assert_eq!(
        gateway.metric("http_request_duration_seconds_count{route=\"tr\",method=\"POST\",status_class=\"2xx\"}"),
        Some(4.0)
    );
    assert_eq!(gateway.stop(), Some(0));
    let records = records(&site);
    assert_eq!(records.len(), 6);
    for (index, record) in records.into_iter().enumerate() {
        assert_eq!(
            record,
            json!({
                "pixel_id": PIXEL, "event_name": "Purchase",
                "event_id": format!("order-{index}"), "value": "12.50", "currency": "EUR",
                "source": "tr", "referrer": "https://shop.example/cart", "page_url": "https://shop.example/thanks",
                "fbp": "fb.1.1625813003210.1037862016.AQ", "fbc": "fb.1.1625813003210.IwAR2cAsE",
                "params": {
                    "if": "false", "cd[content ids]": "[\"a\",\"b\"]",
                    "ud[em]": "f660ab912ec121d1b1e928a0bb4bc61b15f5ad44d5efdc4e1c92a25e99b8e44a", "v": "2.9.134",
                    "ts": "1700000000000"
                }
            })
        );
    }
}

fn encode(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[test]
fn old_forms_name_their_pixel_as_they_always_did() {
    let site = Site::new("");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let money = "cd[value]=0.00&cd[currency]=USD";
    // The noscript image of fbds.js, its script, and digits beside a true id.
    assert_eq!(get(&mut client, &format!("/tr?ev={PIXEL}&{money}&noscript=1")).status, 200);
    assert_eq!(
        get(&mut client, &format!("/tr/?id=null&ev={PIXEL}&cd%5Bvalue%5D=0.00&cd%5Bcurrency%5D=USD")).status,
        200
    );
    assert_eq!(get(&mut client, &format!("/tr/?id={PIXEL}&ev=42&value=1&currency=EUR&{money}")).status, 200);
    assert_eq!(get(&mut client, &format!("/tr/?id={PIXEL}&ev=PageView&noscript=1&pg=fp1")).status, 200);
    for (query, status, reason) in [
        ("ev=PageView", 400, "missing_id"),
        ("id=null&ev=PageView", 400, "invalid_id"),
        ("id=&ev=007", 400, "invalid_id"),
        ("ev=6010000000002", 404, "unknown_pixel"),
    ] {
        let reply = get(&mut client, &format!("/tr/?{query}"));
        assert_eq!((reply.status, reply.reason()), (status, Some(reason)), "{query}");
    }
    assert_eq!(gateway.stop(), Some(0));
    let rejected = String::from_utf8(site.run(&["journal", "export", "--kind", "rejected"]).stdout).unwrap();
    assert_eq!(rejected.lines().filter(|line| line.contains("\"source\":\"tr\"")).count(), 4, "{rejected}");
    assert_eq!(
        records(&site),
        [
            json!({"pixel_id": PIXEL, "value": "0.00", "currency": "USD", "source": "tr", "params": {"noscript": "1"}}),
            json!({"pixel_id": PIXEL, "value": "0.00", "currency": "USD", "source": "tr"}),
            json!({
                "pixel_id": PIXEL, "event_name": "42", "value": "1", "currency": "EUR", "source": "tr",
                "params": {"cd[value]": "0.00", "cd[currency]": "USD"}
            }),
            json!({
                "pixel_id": PIXEL, "event_name": "PageView", "source": "tr", "params": {"noscript": "1", "pg": "fp1"}
            }),
        ]
    );
}
