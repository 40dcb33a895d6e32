//! What a gateway in `proxy` mode knows: learnt from replies and lists, kept over restarts, never emptied by a lying
//! upstream, and unsure where it should be.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::client::{Client, Reply};
use super::forward::{ask, proxy_site};
use super::gateway::{Site, until};
use super::upstream::{Act, Seen, Upstream, json, with_length};

fn fire(site: &Site, id: &str) -> Reply {
    Client::connect(site.public).unwrap().get(&format!("/offsite_event.php?id={id}")).unwrap()
}

/// How an event of an id is taken: status, and reason or warning.
fn taken(site: &Site, id: &str) -> (u16, Option<String>) {
    let reply = fire(site, id);
    let word = reply.reason().or(reply.header("x-pixelgate-warning")).map(str::to_owned);
    (reply.status, word)
}

fn known(site: &Site, id: &str) -> bool {
    taken(site, id) == (200, None)
}

fn unknown(site: &Site, id: &str) -> bool {
    taken(site, id) == (404, Some("unknown_pixel".to_owned()))
}

fn unchecked(site: &Site, id: &str) -> bool {
    taken(site, id) == (200, Some("pixel_not_checked".to_owned()))
}

fn post(token: &str, body: &str) -> String {
    let head = "POST /offsitepixels HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    format!("{head}Authorization: OAuth {token}\r\n{}", with_length(body))
}

fn is_sync(seen: &Seen) -> bool {
    seen.header("user-agent").is_some_and(|agent| agent.starts_with("pixelgate/"))
}

fn metric(site: &Site, name: &str) -> f64 {
    let page = Client::connect(site.ops).unwrap().get("/metrics").unwrap();
    let page = String::from_utf8(page.body).unwrap();
    page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap()
}

const ROW: &str = r#"[{"id":"6010000000077","name":"Listed","tag":"lead","status":"Active"}]"#;
const LISTED: &str = "6010000000077";

#[test]
fn a_pixel_created_through_the_gateway_is_accepted_in_the_next_request() {
    let next = AtomicUsize::new(0);
    let upstream = Upstream::start(move |seen| match seen.line.starts_with("POST") {
        true => json(&format!("{{\"id\":\"70000000{:05}\"}}", next.fetch_add(1, Ordering::SeqCst))),
        false => json("[]"),
    });
    let site = proxy_site(&upstream, "ad_accounts = [\"9\"]\nsync_interval = \"1h\"");
    let gateway = site.start();
    until("the first sync", || unknown(&site, "7"));
    for number in 0..50 {
        let reply = ask(&site, &post("anybody", &format!("fb_ad_account_id=9&name=N{number}&tag=CHECKOUT")));
        assert_eq!(reply.status, 200);
        assert!(known(&site, &format!("70000000{number:05}")), "{number}");
    }
    let reply = ask(&site, &post("anybody", "fb_ad_account_id=8&name=foreign&tag=CHECKOUT"));
    assert_eq!((reply.status, reply.body.as_slice()), (200, &b"{\"id\":\"7000000000050\"}"[..]));
    assert!(unknown(&site, "7000000000050"), "another account's teaches nothing");
    assert_eq!(gateway.stop(), Some(0));
    let exported = String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap();
    let last = exported.lines().last().unwrap();
    for part in [r#""pixel_name":"N49""#, r#""pixel_tag":"checkout""#, r#""ad_account_id":"9""#] {
        assert!(last.contains(part), "{part} in {last}");
    }
}

#[test]
fn own_token_and_learn_any_teach_beyond_the_listed_accounts() {
    for (lines, token, learns) in [
        ("upstream_token = \"mine\"", "mine", true),
        ("upstream_token = \"mine\"", "min", false),
        ("learn = \"any\"", "anybody", true),
        ("", "anybody", false),
    ] {
        let upstream = Upstream::start(|_| json(ROW));
        let site = proxy_site(&upstream, lines);
        let gateway = site.start();
        let get = "GET /offsitepixels?fb_ad_account_id=5 HTTP/1.1\r\nHost: a\r\n";
        assert_eq!(ask(&site, &format!("{get}Authorization: OAuth {token}\r\n\r\n")).body, ROW.as_bytes());
        assert_eq!(known(&site, LISTED), learns, "{lines}");
        assert_eq!(gateway.stop(), Some(0));
        assert!(!site.log().contains("mine"), "{}", site.log());
    }
}

#[test]
fn a_store_that_can_not_be_written_costs_no_reply_and_no_event() {
    let upstream = Upstream::start(|_| json(r#"{"id":"81"}"#));
    let site = proxy_site(&upstream, "ad_accounts = [\"9\"]");
    let gateway = site.start();
    let other = rusqlite::Connection::open(site.data().join("registry.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let reply = ask(&site, &post("anybody", "fb_ad_account_id=9&name=N&tag=LEAD"));
    assert_eq!((reply.status, reply.body.as_slice()), (200, &br#"{"id":"81"}"#[..]));
    until("it is known without the disk", || taken(&site, "81").0 == 200);
    drop(other);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_packed_reply_teaches_and_stays_packed() {
    let packed = {
        use std::io::Write;
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(ROW.as_bytes()).unwrap();
        packer.finish().unwrap()
    };
    let reply = format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", packed.len());
    let bytes = [reply.into_bytes(), packed.clone()].concat();
    let upstream = Upstream::start(move |_| Act::Say(bytes.clone()));
    let site = proxy_site(&upstream, "learn = \"any\"");
    let gateway = site.start();
    let get = "GET /offsitepixels?fb_ad_account_id=5 HTTP/1.1\r\nHost: a\r\nAuthorization: OAuth x\r\n\r\n";
    assert_eq!(ask(&site, get).body, packed);
    assert!(known(&site, LISTED));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn lists_are_synced_with_the_token_and_survive_a_restart_without_the_upstream() {
    let upstream = Upstream::start(|seen| match seen.header("if-none-match").as_deref() {
        Some("\"v1\"") => Act::Say(b"HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\n\r\n".to_vec()),
        _ => Act::Say(format!("HTTP/1.1 200 OK\r\nETag: \"v1\"\r\n{}", with_length(ROW)).into_bytes()),
    });
    let lines = "ad_accounts = [\"9\"]\nupstream_token = \"mine\"\nsync_interval = \"1s\"";
    let site = proxy_site(&upstream, lines);
    let gateway = site.start();
    until("the list is known", || known(&site, LISTED));
    until("its account is fresh", || unknown(&site, "7"));
    until("a 304", || upstream.seen().iter().filter(|seen| seen.header("if-none-match").is_some()).count() > 1);
    let first = &upstream.seen()[0];
    assert!(is_sync(first) && first.line == "GET /offsitepixels?fb_ad_account_id=9 HTTP/1.1", "{first:?}");
    assert_eq!(first.header("authorization").as_deref(), Some("OAuth mine"));
    until("a 304 is a sync, too", || unknown(&site, "7"));
    assert!(metric(&site, "pixelgate_registry_last_sync_timestamp_seconds ") > 1.7e9);
    drop(upstream);
    until("the lists are too old", || unchecked(&site, "7"));
    assert!(known(&site, LISTED));
    until("a sync failed", || metric(&site, "pixelgate_registry_sync_errors_total ") > 0.0);
    gateway.kill();

    let gateway = site.start();
    assert!(known(&site, LISTED), "known without the upstream");
    assert!(unchecked(&site, "7"), "no conversion is lost because a list is late");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn what_a_reply_taught_and_the_upstream_took_back_is_set_right_by_the_same_list() {
    for etag in ["ETag: \"v1\"\r\n", ""] {
        // Between the deletion and its proof there is no list.
        let deleted = Arc::new(AtomicBool::new(false));
        let lists_wait = Arc::clone(&deleted);
        let upstream = Upstream::start(move |seen| match seen.header("if-none-match").as_deref() {
            _ if seen.line.starts_with("DELETE") => {
                lists_wait.store(true, Ordering::SeqCst);
                Act::Say(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())
            }
            _ if lists_wait.load(Ordering::SeqCst) => {
                Act::Say(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n".to_vec())
            }
            Some("\"v1\"") => Act::Say(b"HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\n\r\n".to_vec()),
            _ => Act::Say(format!("HTTP/1.1 200 OK\r\n{etag}{}", with_length(ROW)).into_bytes()),
        });
        let site = proxy_site(&upstream, "ad_accounts = [\"9\"]\nsync_interval = \"1s\"");
        let gateway = site.start();
        until("the first sync", || known(&site, LISTED));
        let delete = format!("DELETE /offsitepixels/{LISTED} HTTP/1.1\r\nHost: a\r\nAuthorization: OAuth x\r\n\r\n");
        assert_eq!(ask(&site, &delete).status, 204);
        assert_eq!(taken(&site, LISTED).1.as_deref(), Some("archived_pixel"));
        deleted.store(false, Ordering::SeqCst);
        // Somebody restored it there; its list is what it was at first.
        until("it is accepted again", || known(&site, LISTED));
        assert_eq!(gateway.stop(), Some(0));
    }
}

#[test]
fn every_account_has_its_turn_where_a_round_takes_longer_than_the_interval() {
    let slow = |_: &Seen| {
        Act::Drip(vec![b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]".to_vec()], Duration::from_millis(400))
    };
    let upstream = Upstream::start(slow);
    let accounts: Vec<String> = (1..=50).map(|account| account.to_string()).collect();
    let site = proxy_site(&upstream, &format!("ad_accounts = {accounts:?}\nsync_interval = \"1s\""));
    let gateway = site.start();
    let asked = |account: &String| {
        let line = format!("GET /offsitepixels?fb_ad_account_id={account} HTTP/1.1");
        upstream.seen().iter().any(|seen| seen.line == line)
    };
    until("every account is asked for", || accounts.iter().all(asked));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn bad_answers_never_empty_the_set() {
    let bad: Arc<Mutex<Vec<u8>>> = Arc::default();
    let now = Arc::clone(&bad);
    let upstream = Upstream::start(move |_| match now.lock().unwrap().clone() {
        bytes if bytes.is_empty() => json(ROW),
        bytes => Act::SayAndClose(bytes),
    });
    let site = proxy_site(&upstream, "ad_accounts = [\"9\"]\nsync_interval = \"1s\"\ngrace = \"0s\"");
    let gateway = site.start();
    until("the list is known", || known(&site, LISTED));
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[]",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: /offsitepixels?x\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n[]",
        "nonsense\r\n\r\n",
    ] {
        *bad.lock().unwrap() = answer.as_bytes().to_vec();
        let before = metric(&site, "pixelgate_registry_sync_errors_total ");
        until("two failed syncs", || metric(&site, "pixelgate_registry_sync_errors_total ") > before + 1.0);
        assert!(known(&site, LISTED), "{answer}");
        bad.lock().unwrap().clear();
    }
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_pixel_that_is_no_longer_listed_goes_after_its_grace() {
    let fewer = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&fewer);
    let upstream = Upstream::start(move |_| match now.load(Ordering::SeqCst) {
        true => json(ROW),
        false => json(r#"[{"id":"6010000000077","name":"Listed"},{"id":"6010000000078","name":"Gone"}]"#),
    });
    let site = proxy_site(&upstream, "ad_accounts = [\"9\"]\nsync_interval = \"1s\"\ngrace = \"5s\"");
    let gateway = site.start();
    until("both are known", || known(&site, LISTED) && known(&site, "6010000000078"));
    fewer.store(true, Ordering::SeqCst);
    let asked = upstream.seen().len();
    until("it was listed no more", || upstream.seen().len() > asked);
    assert!(known(&site, "6010000000078"), "the grace holds");
    until("the grace is over", || unknown(&site, "6010000000078"));
    assert!(known(&site, LISTED));
    gateway.kill();
    drop(upstream);
    let gateway = site.start();
    assert!(unchecked(&site, "6010000000078") && known(&site, LISTED));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn more_pixels_than_there_is_room_for_are_accepted_unchecked() {
    let upstream = Upstream::start(|_| json(r#"[{"id":"71"},{"id":"72"},{"id":"73"},{"id":"74"}]"#));
    let site = proxy_site(&upstream, "ad_accounts = [\"9\"]\nmax_pixels = 3");
    let gateway = site.start();
    until("some are known", || known(&site, "71"));
    assert!(known(&site, "72") && unchecked(&site, "74"));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_gateway_follows_a_pixelgate_authority() {
    let authority = Site::new("");
    let running = authority.start();
    let token = fs::read_to_string(authority.data().join("management-token")).unwrap().trim().to_owned();
    let site = Site::new("");
    let config = fs::read_to_string(site.config()).unwrap();
    let lines = format!(
        "[registry]\nmode = \"proxy\"\nupstream = \"http://{}\"\nupstream_token = \"{token}\"\nad_accounts = [\"9\"]\n\
         sync_interval = \"1s\"\nreport_last_events = \"never\"\n",
        authority.public
    );
    fs::write(site.config(), config.replace("[registry]\n", &lines)).unwrap();
    let gateway = site.start();
    until("the first sync", || unknown(&site, "7"));
    let create = |site: &Site, name: &str| {
        let reply = ask(site, &post(&token, &format!("fb_ad_account_id=9&name={name}&tag=LEAD")));
        assert_eq!(reply.status, 200, "{reply:?}");
        let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        body["id"].as_str().unwrap().to_owned()
    };
    let here = create(&site, "here");
    assert!(known(&site, &here), "at once");
    let there = create(&authority, "there");
    until("the next sync", || known(&site, &there));
    let list =
        format!("GET /offsitepixels?fb_ad_account_id=9 HTTP/1.1\r\nHost: a\r\nAuthorization: OAuth {token}\r\n\r\n");
    let (through, direct) = (ask(&site, &list), ask(&authority, &list));
    assert_eq!((through.body, through.status), (direct.body, 200));
    assert_eq!(
        through.headers.iter().find(|(name, _)| name == "etag"),
        direct.headers.iter().find(|(name, _)| name == "etag")
    );
    let taken = ask(&site, &post(&token, "fb_ad_account_id=9&name=here&tag=LEAD"));
    assert_eq!(taken.status, 409);
    assert_eq!(ask(&site, &post("wrong", "fb_ad_account_id=9&name=x&tag=LEAD")).status, 401);
    running.kill();
    assert!(known(&site, &here) && known(&site, &there));
    assert_eq!(gateway.stop(), Some(0));
}
