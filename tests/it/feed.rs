//! `/events` from outside: who may look, what is seen, and that nobody who looks holds anything up.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::Client;
use super::exposition::Page;
use super::gateway::{PATIENCE, PIXEL, Site, until};

/// Creates a pixel of ad account 9; the site's own belongs to another.
fn create_other(site: &Site) -> String {
    let token = std::fs::read_to_string(site.data().join("management-token")).unwrap();
    let body = "fb_ad_account_id=9&name=Other&tag=OTHER";
    let head =
        format!("POST /offsitepixels HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: OAuth {}\r\n", token.trim());
    let form =
        format!("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut client = Client::connect(site.public).unwrap();
    client.send(format!("{head}{form}").as_bytes()).unwrap();
    let reply = client.reply().unwrap();
    let text = String::from_utf8(reply.body).unwrap();
    assert_eq!(reply.status, 200, "{text}");
    text.split(|letter: char| !letter.is_ascii_digit()).find(|digits| digits.len() == 13).unwrap().to_owned()
}

/// An open stream.
struct Stream {
    client: Client,
    text: String,
}

/// One server-sent event.
#[derive(Debug)]
struct Seen {
    event: String,
    id: String,
    data: String,
}

fn ask(site: &Site, target: &str, headers: &str) -> Client {
    let mut client = Client::connect(site.ops).unwrap();
    client.send(format!("GET {target} HTTP/1.1\r\n{headers}\r\n").as_bytes()).unwrap();
    client
}

fn status(site: &Site, target: &str, headers: &str) -> u16 {
    ask(site, target, headers).head().unwrap().0
}

const LOCAL: &str = "Host: localhost:8081\r\n";

impl Stream {
    fn open(site: &Site, target: &str, headers: &str) -> Stream {
        let mut client = ask(site, target, headers);
        let (status, headers) = client.head().unwrap();
        assert_eq!(status, 200);
        for header in [("content-type", "text/event-stream"), ("cache-control", "no-store")] {
            assert!(headers.iter().any(|(name, value)| (&name[..], &value[..]) == header), "{headers:?}");
        }
        let mut stream = Stream { client, text: String::new() };
        assert!(stream.block().unwrap().starts_with(": "), "a comment, so that the client knows that it is open");
        stream
    }

    /// The next block up to an empty line; `None` at the end.
    fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                return Some(block);
            }
            let chunk = self.client.chunk().unwrap()?;
            self.text.push_str(&String::from_utf8(chunk).unwrap());
        }
    }

    fn next(&mut self) -> Option<Seen> {
        loop {
            let block = self.block()?;
            if block.starts_with(':') {
                continue;
            }
            let mut lines = block.lines();
            let mut field =
                |name: &str| lines.next().unwrap().strip_prefix(name).unwrap_or_else(|| panic!("{block}")).to_owned();
            let seen = Seen { event: field("event: "), id: field("id: "), data: field("data: ") };
            assert_eq!(lines.next(), None, "{block}");
            return Some(seen);
        }
    }
}

fn fire(site: &Site, target: &str) -> Option<String> {
    let reply = Client::connect(site.public).unwrap().get(target).unwrap();
    reply.record_id().map(str::to_owned)
}

fn records(site: &Site) -> Vec<String> {
    let output = site.run(&["journal", "export", "--kind", "all"]);
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn it_shows_records_as_they_lie_in_the_journal() {
    let site = Site::new("");
    let gateway = site.start();
    let other_pixel = create_other(&site);
    fire(&site, &format!("/offsite_event.php?id={PIXEL}&value=1")).unwrap();
    let mut all = Stream::open(&site, "/events", LOCAL);
    let mut other = Stream::open(&site, &format!("/events?pixel_id={other_pixel}"), LOCAL);
    let hostile = "%0A%0Adata:%20x%0D%0Aevent:%20y%22%5C%E2%80%A8";
    let first = fire(&site, &format!("/offsite_event.php?id={PIXEL}&value=2&x={hostile}")).unwrap();
    assert!(fire(&site, "/offsite_event.php?id=77").is_none());
    // Nobody waits for the commit of a rejected one: the next could overtake it through another worker.
    let deadline = Instant::now() + PATIENCE;
    while records(&site).len() < 3 {
        assert!(Instant::now() < deadline, "the rejected one is kept");
    }
    let third = fire(&site, &format!("/offsite_event.php?id={other_pixel}&value=3")).unwrap();
    let seen: Vec<Seen> = (0..3).map(|_| all.next().unwrap()).collect();
    assert_eq!(seen.iter().map(|seen| &seen.event[..]).collect::<Vec<_>>(), ["accepted", "rejected", "accepted"]);
    assert_eq!((&seen[0].id, &seen[2].id), (&first, &third));
    // Byte for byte, without the one from before.
    let lines: Vec<&String> = seen.iter().map(|seen| &seen.data).collect();
    assert_eq!(lines, records(&site)[1..].iter().collect::<Vec<_>>());
    for seen in &seen {
        let record: Value = serde_json::from_str(&seen.data).unwrap();
        assert_eq!(record["record_id"], seen.id.as_str());
    }
    assert_eq!(other.next().unwrap().id, third, "the others are not this pixel's");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn rejected_requests_are_shown_where_they_are_not_journaled() {
    let site = Site::new("[kafka]\nrejected_topic = \"\"\n");
    let gateway = site.start();
    let mut stream = Stream::open(&site, "/events", LOCAL);
    assert!(fire(&site, "/offsite_event.php?id=77&value=1").is_none());
    let seen = stream.next().unwrap();
    assert_eq!(seen.event, "rejected");
    let record: Value = serde_json::from_str(&seen.data).unwrap();
    assert_eq!((record["reason"].as_str(), record["pixel_id"].as_str()), (Some("unknown_pixel"), Some("77")));
    assert!(records(&site).is_empty());
    assert_eq!(gateway.stop(), Some(0));
}

fn make_token(site: &Site, name: &str, more: &[&str]) -> String {
    let mut arguments = vec!["token", "create", "--name", name];
    arguments.extend(more);
    let output = site.run(&arguments);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{complaint}");
    let token = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert!(token.len() >= 32 && !token.contains(char::is_whitespace), "{token:?}");
    token
}

#[test]
fn strangers_need_a_token_and_see_its_accounts_only() {
    let site = Site::new("");
    let gateway = site.start();
    let other_pixel = create_other(&site);
    for headers in [
        "Host: rebound.example\r\n",
        "Host: localhost:8081\r\nOrigin: https://evil.example\r\n",
        "Host: localhost:8081\r\nX-Forwarded-For: 192.0.2.1\r\n",
        "Host: localhost:8081\r\nAuthorization: OAuth 0123456789012345678901234567890123456789\r\n",
    ] {
        let mut client = ask(&site, "/events", headers);
        let reply = client.reply().unwrap();
        assert_eq!(reply.status, 401, "{headers}");
        assert!(reply.header("www-authenticate").unwrap().starts_with("OAuth realm="));
        let problem: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!((problem["status"].as_u64(), problem["reason"].as_str()), (Some(401), Some("unauthorized")));
    }
    let all = make_token(&site, "all", &[]);
    let scoped = make_token(&site, "nine", &["--ad-account", "9", "--read-only"]);
    let stranger = |scheme: &str, token: &str| format!("Host: rebound.example\r\nAuthorization: {scheme} {token}\r\n");
    assert_eq!(status(&site, "/events?pixel_id=0", &stranger("OAuth", &all)), 400);
    assert_eq!(status(&site, &format!("/events?pixel_id={PIXEL}"), &stranger("OAuth", &scoped)), 403);
    let mut everything = Stream::open(&site, "/events", &stranger("OAuth", &all));
    let mut nine = Stream::open(&site, "/events", &stranger("Bearer", &scoped));
    let first = fire(&site, &format!("/offsite_event.php?id={PIXEL}")).unwrap();
    assert!(fire(&site, "/offsite_event.php?id=x").is_none());
    assert!(fire(&site, "/offsite_event.php?id=77").is_none());
    let last = fire(&site, &format!("/offsite_event.php?id={other_pixel}")).unwrap();
    assert_eq!(everything.next().unwrap().id, first);
    assert_eq!(nine.next().unwrap().id, last, "neither another account's nor nobody's");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn readers_are_bounded_and_leave_room_when_they_go() {
    let site = Site::new("");
    let gateway = site.start();
    let mut readers: Vec<Stream> = (0..16).map(|_| Stream::open(&site, "/events", LOCAL)).collect();
    let reply = ask(&site, "/events", LOCAL).reply().unwrap();
    assert_eq!(reply.status, 503);
    assert!(reply.header("retry-after").is_some());
    assert!(String::from_utf8(reply.body).unwrap().contains("16 readers"));
    readers.pop();
    until("the one that left makes room", || status(&site, "/events", LOCAL) == 200);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_reader_that_does_not_read_is_cut_off_and_holds_nothing_up() {
    let site = Site::new("[journal]\nmax_bytes = \"64MiB\"\nsegment_bytes = \"4MiB\"\n");
    let gateway = site.start();
    let mut idle = Stream::open(&site, "/events", LOCAL);
    let mut client = Client::connect(site.public).unwrap();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let params: Vec<String> = names.iter().map(|name| format!("{name}={}", "x".repeat(1000))).collect();
    let target = format!("/offsite_event.php?id={PIXEL}&{}", params.join("&"));
    let mut sent = 0;
    until("it is dropped", || {
        for _ in 0..100 {
            assert_eq!(client.get(&target).unwrap().status, 200);
            sent += 1;
        }
        Page::of(&site).value("pixelgate_feed_dropped_total", &[]) == 1.0
    });
    // What was on its way still comes, then the connection is gone; it never sees all.
    let mut seen = 0;
    while let Ok(Some(_)) = idle.client.chunk() {
        seen += 1;
    }
    assert!(seen < sent, "{seen} of {sent}");
    let mut next = Stream::open(&site, "/events", LOCAL);
    let id = fire(&site, &format!("/offsite_event.php?id={PIXEL}")).unwrap();
    assert_eq!(next.next().unwrap().id, id);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn streams_end_at_once_when_the_gateway_is_told_to_stop() {
    let site = Site::with_server("shutdown_delay = \"10s\"", "");
    let gateway = site.start();
    let mut streams: Vec<Stream> = (0..3).map(|_| Stream::open(&site, "/events", LOCAL)).collect();
    let asked = Instant::now();
    gateway.ask_to_stop();
    for stream in &mut streams {
        assert!(stream.next().is_none());
    }
    assert!(asked.elapsed() < Duration::from_secs(8), "before the delay is over: {:?}", asked.elapsed());
    assert_eq!(status(&site, "/events", LOCAL), 503, "and no new ones");
    assert_eq!(gateway.wait().code(), Some(0));
}
