//! The batch form of `/tr`: each event its own record, one answer for all, and all of them or none.

use serde_json::{Value, json};

use super::client::Client;
use super::gateway::{PIXEL, Site};
use super::tr::records;

const FORM: &str = "application/x-www-form-urlencoded";

fn encode(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// The body of a batch.
fn batch(events: &[String]) -> String {
    let events = events.iter().enumerate().map(|(index, event)| format!("&events[{index}]={}", encode(event)));
    format!("batch=1{}", events.collect::<String>())
}

fn event(name: &str) -> String {
    format!("id={PIXEL}&ev={name}&cd[value]=1.50&cd[currency]=EUR&dl={}", encode("https://shop.example/a?b=c"))
}

#[test]
fn each_event_of_a_batch_is_a_record() {
    let site = Site::new("");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let events: Vec<String> = ["A", "B", "C"].into_iter().map(event).collect();
    let reply = client.post("/tr/", FORM, &batch(&events)).unwrap();
    let ids: Vec<String> = reply.record_id().unwrap().split(',').map(str::to_owned).collect();
    assert_eq!((reply.status, ids.len()), (204, 3));
    // As a query, out of order, with gaps; and as the parts that sendBeacon makes.
    let query = format!("/tr?batch=1&events[7]={}&events[2]={}", encode(&event("E")), encode(&event("D&value=-1")));
    let reply = client.get(&query).unwrap();
    assert_eq!((reply.status, reply.header("x-pixelgate-warning")), (200, Some("negative_value")));
    let part =
        |name: &str, value: &str| format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    let parts = format!("{}{}--b--\r\n", part("batch", "1"), part("events[0]", &event("F")));
    assert_eq!(client.post("/tr", "multipart/form-data; boundary=b", &parts).unwrap().status, 204);
    // A look ahead of a visit is none.
    client.send(format!("HEAD {query} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(client.head().unwrap().0, 200);
    assert_eq!(gateway.stop(), Some(0));
    let export = String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap();
    for (line, id) in export.lines().zip(&ids) {
        assert!(line.contains(id.as_str()), "{id} of {line}");
    }
    let records = records(&site);
    let names: Vec<&str> = records.iter().map(|record| record["event_name"].as_str().unwrap()).collect();
    assert_eq!(names, ["A", "B", "C", "D", "E", "F"]);
    assert_eq!(
        records[0],
        json!({
            "pixel_id": PIXEL, "event_name": "A", "value": "1.50", "currency": "EUR", "source": "tr",
            "page_url": "https://shop.example/a"
        })
    );
}

#[test]
fn a_batch_is_taken_whole_or_not_at_all() {
    let site = Site::new("[validation]\nstrict = true");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let fine = event("Fine");
    for (bad, status, reason) in [
        ("ev=PageView", 400, "missing_id"),
        ("id=6010000000002&ev=PageView", 404, "unknown_pixel"),
        (&format!("id={PIXEL}&value=x"), 400, "invalid_value"),
    ] {
        let reply = client.post("/tr/", FORM, &batch(&[fine.clone(), bad.into(), fine.clone()])).unwrap();
        assert_eq!((reply.status, reply.reason()), (status, Some(reason)), "{bad}");
    }
    let many = vec![format!("id={PIXEL}"); 33];
    let reply = client.post("/tr/", FORM, &batch(&many)).unwrap();
    assert_eq!((reply.status, reply.reason()), (413, Some("body_too_large")));
    for none in ["batch=1", "batch=1&events[]=a", "batch=1&events[x]=a"] {
        let reply = client.post("/tr/", FORM, none).unwrap();
        assert_eq!((reply.status, reply.reason()), (400, Some("malformed_body")), "{none}");
    }
    // It is one of /tr alone.
    assert_eq!(client.post("/offsite_event", FORM, &batch(&[fine])).unwrap().reason(), Some("missing_id"));
    assert_eq!(records(&site), Vec::<Value>::new());
    // Anew: an idle connection is closed soon, and looking into the journal takes a while.
    let mut client = Client::connect(site.public).unwrap();
    assert_eq!(client.post("/tr/", FORM, &batch(&many[1..])).unwrap().status, 204);
    assert_eq!(records(&site).len(), 32);
    assert_eq!(gateway.stop(), Some(0));
    let rejected = String::from_utf8(site.run(&["journal", "export", "--kind", "rejected"]).stdout).unwrap();
    // Of a batch, the event that is at fault.
    assert!(rejected.lines().any(|line| line.contains("\"raw\":\"ev=PageView\"")), "{rejected}");
}

#[test]
fn a_batch_without_room_leaves_nothing() {
    let site = Site::with_server("max_inflight_bytes = \"256KiB\"", "");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    // Each event alone has room; what all of them might need has not.
    let long = format!("{}&x={}", event("Long"), "y".repeat(1500));
    let reply = client.post("/tr/", FORM, &batch(&vec![long.clone(); 32])).unwrap();
    assert_eq!((reply.status, reply.reason()), (503, Some("overloaded")));
    assert_eq!(client.post("/tr/", FORM, &batch(&[long])).unwrap().status, 204);
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(records(&site).len(), 1);
}
