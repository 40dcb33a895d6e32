//! Requests that are too large, too slow, broken, or too many at once, byte by byte: each has its answer in time.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{Client, Reply};
use super::gateway::{PIXEL, Site, until};

const EVENT: &str = "/offsite_event.php";

fn connect(site: &Site) -> Client {
    Client::connect(site.public).unwrap()
}

/// One request, byte by byte as it is, on a connection of its own.
fn ask(site: &Site, request: &str) -> Reply {
    let mut client = connect(site);
    client.send(request.as_bytes()).unwrap();
    client.reply().unwrap()
}

fn get(target: &str, lines: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: gateway.test\r\n{lines}\r\n")
}

fn post(lines: &str, body: &str) -> String {
    format!("POST {EVENT} HTTP/1.1\r\nHost: gateway.test\r\n{lines}\r\n{body}")
}

/// A form's head and its beginning, of which `missing` bytes never come.
fn partial(sent: usize, missing: usize) -> String {
    let body = format!("id={PIXEL}&x={}", "y".repeat(sent));
    let length = body.len() + missing;
    post(&format!("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n"), &body)
}

fn chunked(body: &str, chunk_bytes: usize) -> String {
    let mut chunks = String::new();
    for chunk in body.as_bytes().chunks(chunk_bytes) {
        chunks.push_str(&format!("{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap()));
    }
    let lines = "Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n";
    post(lines, &format!("{chunks}0\r\n\r\n"))
}

fn said(reply: &Reply) -> (u16, Option<&str>) {
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-resource-policy", "cross-origin"),
        ("timing-allow-origin", "*"),
        ("vary", "Origin"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{name} of {reply:?}");
    }
    if reply.header("content-type") == Some("application/problem+json") {
        let problem: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(problem["reason"].as_str(), reply.reason());
    }
    (reply.status, reply.reason())
}

#[test]
fn what_is_too_large_is_said_to_be() {
    let site = Site::new("");
    let gateway = site.start();
    let target = format!("{EVENT}?id={PIXEL}");
    let header = |bytes: usize| format!("X-Long: {}\r\n", "x".repeat(bytes));
    let reply = ask(&site, &get(&target, &header(31 << 10)));
    assert_eq!(said(&reply), (200, None));
    for lines in [header(33 << 10), header(900).repeat(40), header(60 << 10)] {
        let reply = ask(&site, &get(&target, &lines));
        assert_eq!(said(&reply), (431, Some("header_too_large")));
        assert_eq!(reply.header("content-type"), Some("image/gif"));
        let reply = ask(&site, &post(&format!("{lines}Content-Length: 0\r\n"), ""));
        assert_eq!(said(&reply), (431, Some("header_too_large")));
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    }
    let long = |bytes: usize| format!("{target}&x={}", "x".repeat(bytes - target.len() - 3));
    assert_eq!(said(&ask(&site, &get(&long(16 << 10), ""))), (200, None));
    assert_eq!(said(&ask(&site, &get(&long((16 << 10) + 1), ""))), (414, Some("uri_too_long")));
    assert_eq!(said(&ask(&site, &get(&long(60 << 10), ""))), (414, Some("uri_too_long")));
    // What is declared is believed: no byte of it is waited for.
    let declared = "Content-Type: text/plain\r\nContent-Length: 65537\r\n";
    assert_eq!(said(&ask(&site, &post(declared, ""))), (413, Some("body_too_large")));
    let body = |bytes: usize| format!("id={PIXEL}&x={}", "y".repeat(bytes - 5 - PIXEL.len() - 1));
    assert_eq!(said(&ask(&site, &chunked(&body(64 << 10), 4000))), (204, None));
    assert_eq!(said(&ask(&site, &chunked(&body((64 << 10) + 1), 4000))), (413, Some("body_too_large")));
    assert_eq!(gateway.stop(), Some(0));
    // Refused requests are kept as far as they are understood, and nothing of what was too large.
    let kept = String::from_utf8(site.run(&["journal", "export", "--kind", "rejected"]).stdout).unwrap();
    assert_eq!(kept.matches("\"reason\":\"header_too_large\"").count(), 6);
    assert_eq!(kept.matches("\"reason\":\"body_too_large\"").count(), 2);
}

#[test]
fn slow_bodies_are_not_waited_for() {
    let site = Site::with_server("body_timeout = \"400ms\"", "");
    let gateway = site.start();
    let begun = Instant::now();
    assert_eq!(said(&ask(&site, &partial(10, 1))), (408, Some("body_timeout")));
    assert!(begun.elapsed() >= Duration::from_millis(400));
    // A byte now and then is no way to stay for ever.
    let mut client = connect(&site);
    client.send(partial(10, 1000).as_bytes()).unwrap();
    let begun = Instant::now();
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(100)); // the sender's own pace
        if client.send(b"y").is_err() || begun.elapsed() > Duration::from_millis(2600) {
            break;
        }
    }
    assert_eq!(said(&client.reply().unwrap()), (408, Some("body_timeout")));
    assert_eq!(gateway.stop(), Some(0));
    // Within its time it is read, in whatever pieces.
    site.reconfigure("body_timeout = \"400ms\"", "body_timeout = \"10s\"");
    let gateway = site.start();
    let mut client = connect(&site);
    let request = partial(10, 5);
    let (head, body) = request.split_at(request.len() - 20);
    client.send(head.as_bytes()).unwrap();
    for byte in body.bytes().chain("&a=bc".bytes()) {
        client.send(&[byte]).unwrap();
        std::thread::sleep(Duration::from_millis(5)); // so that it leaves in a packet of its own
    }
    assert_eq!(said(&client.reply().unwrap()), (204, None));
    assert_eq!(gateway.stop(), Some(0));
}

/// Not merely silent.
fn assert_closed(client: &mut Client) {
    let error = client.reply().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{error}");
}

#[test]
fn heads_that_stall_or_trickle_end_in_time() {
    let site = Site::new("");
    let gateway = site.start();
    let begun = Instant::now();
    let (mut silent, mut stalled, mut trickling) = (connect(&site), connect(&site), connect(&site));
    let beginning = format!("GET {EVENT}?id={PIXEL} HTTP/1.1\r\nHost: gateway.test\r\nX-Slow: ");
    stalled.send(beginning.as_bytes()).unwrap();
    trickling.send(beginning.as_bytes()).unwrap();
    // A byte now and then is no way to stay: a head has five seconds.
    let mut bytes = 0;
    while trickling.send(b"y").is_ok() && bytes < 100 {
        std::thread::sleep(Duration::from_millis(100)); // the sender's own pace
        bytes += 1;
    }
    assert!(bytes > 3, "it had its time: {bytes}");
    for client in [&mut stalled, &mut trickling] {
        // There is no request yet that a reason could be of.
        assert_eq!(client.reply().unwrap().status, 408);
        assert_closed(client);
    }
    // Who has asked nothing has no answer.
    assert_closed(&mut silent);
    assert!(begun.elapsed() >= Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn bodies_that_are_broken_or_encoded_are_refused() {
    let site = Site::new("");
    let gateway = site.start();
    let form = format!("id={PIXEL}&value=1&currency=GBP");
    assert_eq!(said(&ask(&site, &chunked(&form, 1))), (204, None));
    let no_chunks = "Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n";
    assert_eq!(said(&ask(&site, &post(no_chunks, "5\r\nid=60\r\nxyz\r\n"))), (400, Some("malformed_body")));
    let of_type = |lines: &str| post(&format!("{lines}Content-Length: {}\r\n", form.len()), &form);
    for coding in ["gzip", "br", "identity, gzip", "GZIP", "\u{e9}"] {
        let reply = ask(&site, &of_type(&format!("Content-Encoding: {coding}\r\n")));
        assert_eq!(said(&reply), (415, Some("unsupported_media_type")), "{coding}");
    }
    for kind in ["image/png", "application/xml", "text/html", "caf\u{e9}/x", "multipart/mixed; boundary=x"] {
        let reply = ask(&site, &of_type(&format!("Content-Type: {kind}\r\n")));
        assert_eq!(said(&reply), (415, Some("unsupported_media_type")), "{kind}");
    }
    for lines in ["Content-Encoding: Identity\r\n", "", "Content-Type: text/plain;charset=UTF-8\r\n"] {
        assert_eq!(said(&ask(&site, &of_type(lines))), (204, None), "{lines}");
    }
    // Gone in the middle of its body: no event, and an answer if it still listens.
    let mut client = connect(&site);
    client.send(partial(10, 100).as_bytes()).unwrap();
    client.half_close().unwrap();
    assert_eq!(said(&client.reply().unwrap()), (400, Some("malformed_body")));
    assert_eq!(gateway.stop(), Some(0));
    let events = String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap();
    assert_eq!(events.lines().count(), 4);
}

#[test]
fn several_requests_in_one_write_are_answered_in_order() {
    let site = Site::new("");
    let gateway = site.start();
    let mut client = connect(&site);
    let form = format!("id={PIXEL}");
    let body = post(&format!("Content-Length: {}\r\n", form.len()), &form);
    let all = [get(&format!("{EVENT}?id={PIXEL}"), ""), body, get(EVENT, ""), get("/nowhere", "")].concat();
    client.send(all.as_bytes()).unwrap();
    assert_eq!(client.reply().unwrap().status, 200);
    assert_eq!(client.reply().unwrap().status, 204);
    assert_eq!(client.reply().unwrap().reason(), Some("missing_id"));
    assert_eq!(client.reply().unwrap().status, 404);
    // No more will come after this one, which is answered all the same.
    client.send(get(&format!("{EVENT}?id={PIXEL}"), "").as_bytes()).unwrap();
    client.half_close().unwrap();
    assert_eq!(client.reply().unwrap().status, 200);
    assert!(client.reply().is_err(), "and then it is closed");
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap().lines().count(), 3);
}

#[test]
fn bodies_in_flight_have_one_bound_and_give_their_room_back() {
    let server = "max_inflight_bytes = \"64KiB\"\nbody_timeout = \"1h\"";
    let site = Site::with_server(server, "");
    let gateway = site.start();
    let mut slow = Vec::new();
    // Nothing says when a body's bytes are counted, and it may be the slow one that meets the bound: so, again.
    until("there is no room for a second", || {
        let mut another = connect(&site);
        another.send(partial(40 << 10, 1).as_bytes()).unwrap();
        slow.push(another);
        let reply = ask(&site, &partial(20 << 10, 0));
        assert!(matches!(said(&reply), (204, None) | (503, Some("overloaded"))), "{reply:?}");
        assert!(reply.status != 503 || reply.header("retry-after") == Some("1"), "{reply:?}");
        reply.status == 503
    });
    assert_eq!(
        said(&ask(&site, &get(&format!("{EVENT}?id={PIXEL}"), ""))),
        (200, None),
        "without a body there is room"
    );
    drop(slow);
    until("the room is given back", || ask(&site, &partial(40 << 10, 0)).status == 204);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn what_the_parser_refuses_has_the_contracts_answer() {
    let site = Site::new("");
    let gateway = site.start();
    let target = format!("{EVENT}?id={PIXEL}");
    let many = "X-A: b\r\n".repeat(120);
    let endless = format!("X-Long: {}\r\n", "x".repeat(300 << 10));
    for lines in [&many, &endless] {
        let reply = ask(&site, &get(&target, lines));
        assert_eq!(said(&reply), (431, Some("header_too_large")));
        assert_eq!((reply.header("content-type"), reply.body.len()), (Some("image/gif"), 43));
        assert!(reply.header("date").is_some() && reply.header("connection") == Some("close"));
        let reply = ask(&site, &post(lines, ""));
        assert_eq!(said(&reply), (431, Some("header_too_large")));
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    }
    // The parser would panic at such a name.
    let name = format!("{}: x\r\n", "x".repeat(70_000));
    assert_eq!(said(&ask(&site, &get(&target, &name))), (431, Some("header_too_large")));
    for bytes in [66 << 10, 300 << 10] {
        let reply = ask(&site, &get(&format!("{target}&x={}", "x".repeat(bytes)), ""));
        assert_eq!(said(&reply), (414, Some("uri_too_long")));
        assert_eq!(reply.body.len(), 43);
    }
    // Also behind other requests of a connection.
    let mut client = connect(&site);
    client.send(get(&target, "").as_bytes()).unwrap();
    assert_eq!(client.reply().unwrap().status, 200);
    client.send(get(&target, &many).as_bytes()).unwrap();
    assert_eq!(said(&client.reply().unwrap()), (431, Some("header_too_large")));
    assert!(client.reply().is_err(), "and then it is closed");
    // What is no HTTP is told so, and that is all there is to say.
    let reply = ask(&site, "HELLO\r\n\r\n");
    assert_eq!((reply.status, reply.reason()), (400, None));
    assert_eq!(gateway.stop(), Some(0));
}
