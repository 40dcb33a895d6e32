//! Events are answered on a short way of their own, and everything else by actix: nobody can tell which it was.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::audit::export;
use super::client::{Client, Reply};
use super::gateway::{PATIENCE, PIXEL, Site};

const EVENT: &str = "/offsite_event.php";

/// Changes nothing, and is none of an ordinary event's lines: makes a request actix's.
const ODD: &str = "Upgrade: none\r\n";

fn get(query: &str, lines: &str) -> String {
    format!("GET {EVENT}?{query} HTTP/1.1\r\nHost: gateway.test\r\n{lines}\r\n")
}

fn post(query: &str, lines: &str, body: &str) -> String {
    let length = body.len();
    let head = format!("POST {EVENT}?{query} HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: {length}\r\n");
    format!("{head}{lines}\r\n{body}")
}

fn ask(site: &Site, request: &str) -> Reply {
    let mut client = Client::connect(site.public).unwrap();
    client.send(request.as_bytes()).unwrap();
    client.reply().unwrap()
}

/// What two answers to the same question have in common.
fn said(reply: &Reply) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let own = |name: &str| matches!(name, "date" | "x-pixelgate-record-id");
    let mut headers: Vec<_> = reply.headers.clone();
    assert!(headers.iter().filter(|(name, _)| name == "date").count() == 1, "{reply:?}");
    headers.iter_mut().filter(|(name, _)| own(name)).for_each(|(_, value)| *value = "its own".into());
    headers.sort();
    (reply.status, headers, reply.body.clone())
}

#[test]
fn both_ways_say_the_same() {
    let site = Site::new("[limits]\nmax_body_bytes = \"8KiB\"\n");
    let gateway = site.start();
    let ok = format!("id={PIXEL}&value=1.50&currency=EUR");
    let origin = "Origin: https://www.shop.example\r\n";
    let agent =
        "User-Agent: Mozilla/5.0 \u{e9}\r\nReferer: https://www.shop.example/a?b=c\r\nCookie: _fbp=fb.1.2.3\r\n";
    let json = format!("{{\"id\":\"{PIXEL}\",\"value\":\"3\"}}");
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let mut events = 0;
    for (query, lines, body) in [
        (&*ok, "", None),
        (&ok, agent, None),
        (&ok, origin, None),
        (&format!("id={PIXEL}&value=1,5&currency=xyz"), "", None),
        ("", "", None),
        ("id=abc", "Accept: application/json\r\n", None),
        ("id=6010000000999", origin, None),
        (&ok, "Sec-Purpose: prefetch;prerender\r\n", None),
        (&ok, "Purpose: prefetch\r\n", None),
        (&ok, "Sec-GPC: 1\r\n", None),
        (&ok, "X-Forwarded-For: 198.51.100.7\r\n", None),
        (&ok, "Connection: Close\r\n", None),
        ("", "Content-Type: text/plain;charset=UTF-8\r\nOrigin: null\r\n", Some(&*ok)),
        ("", "Content-Type: application/json\r\n", Some(&json)),
        ("", "Content-Type: application/json\r\n", Some("{\"id\":")),
        ("", form, Some(&ok)),
        (&ok, form, Some("")),
        ("", "Content-Type: image/png\r\n", Some(&ok)),
        ("", "Content-Type: multipart/form-data; boundary=x\r\n", Some("--x--")),
        ("", form, Some(&format!("{ok}&x={}", "y".repeat(8000)))),
        ("", form, Some(&format!("{ok}&x={}", "y".repeat(8200)))),
    ] {
        let request = |lines: &str| match body {
            None => get(query, lines),
            Some(body) => post(query, lines, body),
        };
        let (one, other) = (ask(&site, &request(lines)), ask(&site, &request(&format!("{lines}{ODD}"))));
        assert_eq!(said(&one), said(&other), "{}", request(lines));
        events += usize::from(one.record_id().is_some());
        assert_eq!(one.record_id().is_some(), other.record_id().is_some());
    }
    assert_eq!(gateway.stop(), Some(0));
    // Each twice, and all that is recorded of them is the same but who they are.
    let records = export(&site);
    assert_eq!(records.len(), 2 * events);
    for pair in records.chunks(2) {
        let plain = |text: &str| {
            let mut record: Value = serde_json::from_str(text).unwrap();
            let fields = record.as_object_mut().unwrap();
            ["record_id", "received_at"].iter().for_each(|field| drop(fields.remove(*field)));
            record
        };
        assert_eq!(plain(&pair[0]), plain(&pair[1]));
    }
}

#[test]
fn many_requests_at_once_are_answered_in_their_order() {
    let site = Site::new("");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let (event, nothing) = (get(&format!("id={PIXEL}"), ""), get("", ""));
    let elsewhere = "GET /robots.txt HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
    client.send(format!("{event}{nothing}{event}{}", &event[..20]).as_bytes()).unwrap();
    let mut ids = HashSet::new();
    let mut next = |client: &mut Client, status: u16| {
        let reply = client.reply().unwrap();
        assert_eq!(reply.status, status, "{reply:?}");
        assert!(reply.record_id().is_none_or(|id| ids.insert(id.to_owned())), "an answer came twice");
    };
    [200, 400, 200].into_iter().for_each(|status| next(&mut client, status));
    client.send(format!("{}{elsewhere}{event}", &event[20..]).as_bytes()).unwrap();
    [200, 200, 200].into_iter().for_each(|status| next(&mut client, status));
    // The end of sending is no end of listening.
    let mut client = Client::connect(site.public).unwrap();
    client.send(event.as_bytes()).unwrap();
    client.half_close().unwrap();
    next(&mut client, 200);
    assert!(client.reply().is_err(), "it is closed");
    assert_eq!(gateway.stop(), Some(0));
    let id = |text: &String| serde_json::from_str::<Value>(text).unwrap()["record_id"].as_str().unwrap().to_owned();
    let recorded: HashSet<String> = export(&site).iter().map(id).collect();
    assert_eq!(recorded, ids);
}

#[test]
fn who_reads_late_gets_every_answer() {
    let site = Site::new("");
    let gateway = site.start();
    let (mut reader, count) = (Client::connect(site.public).unwrap(), 18_000);
    let mut sender = reader.another().unwrap();
    let sending = std::thread::spawn(move || {
        let refused = get("id=1", "Accept: application/json\r\n").repeat(100);
        (0..count / 100).for_each(|_| sender.send(refused.as_bytes()).unwrap());
    });
    // More than the buffers between hold: the gateway has to stop reading until we begin to.
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..count {
        assert_eq!(reader.reply().unwrap().status, 404);
    }
    sending.join().unwrap();
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn connections_are_kept_as_long_as_is_said() {
    let site = Site::new("");
    let gateway = site.start();
    let event = get(&format!("id={PIXEL}"), "");
    let (mut used, mut never) = (Client::connect(site.public).unwrap(), Client::connect(site.public).unwrap());
    used.send(event.as_bytes()).unwrap();
    assert_eq!(used.reply().unwrap().status, 200);
    let begun = Instant::now();
    assert!(used.reply().is_err() && never.reply().is_err(), "both are closed");
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(4) && took < PATIENCE, "{took:?}");
    let mut last = Client::connect(site.public).unwrap();
    last.send(get(&format!("id={PIXEL}"), "Connection: close\r\n").as_bytes()).unwrap();
    let reply = last.reply().unwrap();
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert!(last.reply().is_err(), "closed as it said");
    assert_eq!(gateway.stop(), Some(0));
}
