//! Deduplication from outside: copies of an event, one after the other and at once, over several connections and runs.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;

use super::client::{Client, Reply};
use super::exposition::Page;
use super::gateway::{PIXEL, Site, until};
use super::random::Random;

const DUPLICATE: &str = "duplicate";

fn send(client: &mut Client, query: &str) -> Reply {
    client.get(&format!("/offsite_event.php?id={PIXEL}&value=1&currency=EUR&{query}")).unwrap()
}

fn is_copy(reply: &Reply) -> bool {
    assert!(matches!(reply.status, 200 | 204), "a copy is answered like any event: {reply:?}");
    let warnings = reply.header("x-pixelgate-warning").unwrap_or_default();
    let copy = warnings.split(',').any(|warning| warning == DUPLICATE);
    assert_eq!(reply.record_id().is_none(), copy, "it has no record of its own: {reply:?}");
    copy
}

/// How many records each event id has.
fn records(site: &Site) -> HashMap<String, usize> {
    let output = site.run(&["journal", "export"]);
    let mut found = HashMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        *found.entry(record["event_id"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    found
}

#[test]
fn a_second_copy_of_an_event_makes_no_record() {
    let site = Site::new("");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let cases = [
        ("ev=Purchase&eid=1", false),
        ("ev=Purchase&eid=1", true),
        ("ev=Purchase&eid=1&value=2", true),
        ("ev=Lead&eid=1", false),
        ("eid=1", false),
        ("eid=1", true),
        ("ev=Purchase&eid=2", false),
        ("ev=Purchase&eid=1&test=1", false),
        ("ev=Purchase&eid=1&test=1", true),
        ("ev=Purchase", false),
        ("ev=Purchase", false),
        // What stands for other texts, too, names nothing.
        ("eid=%FF", false),
        ("eid=%FE", false),
    ];
    for (query, copy) in cases {
        assert_eq!(is_copy(&send(&mut client, query)), copy, "{query}");
    }
    let long = format!("eid={}", "x".repeat(3000));
    for _ in 0..2 {
        assert!(!is_copy(&send(&mut client, &long)));
    }
    let body = format!("{{\"id\":\"{PIXEL}\",\"ev\":\"Purchase\",\"eid\":\"1\"}}");
    let posted = client.post("/offsite_event", "application/json", &body).unwrap();
    assert_eq!((posted.status, posted.header("x-pixelgate-warning")), (204, Some(DUPLICATE)));
    let page = Page::of(&site);
    let count = |outcome| page.value("pixelgate_events_total", &[("outcome", outcome), ("reason", "")]);
    assert_eq!((count("accepted"), count("duplicate"), count("ignored")), (11.0, 5.0, 0.0));
    assert_eq!(page.value("pixelgate_event_warnings_total", &[("warning", DUPLICATE)]), 5.0);
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(records(&site).values().sum::<usize>(), 11);
}

#[test]
fn of_many_copies_at_once_one_makes_a_record() {
    let site = Site::new("");
    let gateway = site.start();
    let address = site.public;
    const IDS: usize = 200;
    let senders: Vec<_> = (0..8)
        .map(|sender| {
            thread::spawn(move || {
                let mut client = Client::connect(address).unwrap();
                let mut copies = 0;
                for number in 0..IDS {
                    // Half go by the short way, half by the web framework, which reads chunks.
                    let reply = match sender % 2 {
                        0 => send(&mut client, &format!("eid={number}")),
                        _ => {
                            let target = format!("/offsite_event.php?id={PIXEL}&eid={number}");
                            let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked");
                            client.send(format!("{head}\r\n\r\n0\r\n\r\n").as_bytes()).unwrap();
                            client.reply().unwrap()
                        }
                    };
                    copies += usize::from(is_copy(&reply));
                }
                copies
            })
        })
        .collect();
    let copies: usize = senders.into_iter().map(|sender| sender.join().unwrap()).sum();
    assert_eq!(copies, 7 * IDS);
    assert_eq!(gateway.stop(), Some(0));
    let records = records(&site);
    assert!(records.len() == IDS && records.values().all(|count| *count == 1), "{records:?}");
}

#[test]
fn what_was_acknowledged_before_a_kill_is_a_copy_after_it() {
    let site = Site::new("[journal]\nsegment_bytes = \"256KiB\"\nmax_bytes = \"64MiB\"\n[log]\nlevel = \"debug\"\n");
    let mut random = Random::from_environment();
    let (mut next, mut acknowledged) = (0, Vec::new());
    // A start waits for the ids of earlier runs no longer than a moment; they are known a little later.
    let knows = |starts: usize| {
        until("ids are known", || site.log().matches("event ids of earlier runs are known").count() >= starts);
    };
    for run in 1..=6 {
        let gateway = site.start();
        knows(run);
        let mut client = Client::connect(site.public).unwrap();
        // A visitor's page sends again what it isn't sure of, and some that it is.
        for _ in 0..10 {
            if !acknowledged.is_empty() {
                let old: &String = &acknowledged[(random.next() as usize) % acknowledged.len()];
                assert!(is_copy(&send(&mut client, &format!("eid={old}"))), "{old}");
            }
        }
        let from = next;
        next += 2000;
        let count = Arc::new(AtomicUsize::new(0));
        let (counted, mut client) = (Arc::clone(&count), Client::connect(site.public).unwrap());
        let sender = thread::spawn(move || {
            let mut acknowledged = Vec::new();
            for number in from..from + 2000 {
                let filler = "y".repeat(300);
                let target = format!("/offsite_event.php?id={PIXEL}&eid={number}&x={filler}");
                match client.get(&target) {
                    Ok(reply) if reply.status == 200 => {
                        acknowledged.push(number.to_string());
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => break,
                }
            }
            acknowledged
        });
        until("some are acknowledged", || count.load(Ordering::Relaxed) >= 20);
        thread::sleep(random.millis(0, 400));
        gateway.kill();
        acknowledged.extend(sender.join().unwrap());
    }
    let gateway = site.start();
    knows(7);
    let mut client = Client::connect(site.public).unwrap();
    for id in &acknowledged {
        assert!(is_copy(&send(&mut client, &format!("eid={id}"))), "{id}");
    }
    assert_eq!(gateway.stop(), Some(0));
    let records = records(&site);
    assert!(records.values().all(|count| *count == 1), "{records:?}");
    assert!(acknowledged.iter().all(|id| records.contains_key(id)) && acknowledged.len() > 100);
}

#[test]
fn the_oldest_ids_are_forgotten_first_and_it_can_be_off() {
    let site = Site::new("[dedup]\nmax_ids = 3\n");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let mut copies = |ids: &str| {
        ids.chars()
            .map(|id| if is_copy(&send(&mut client, &format!("eid={id}"))) { '=' } else { '+' })
            .collect::<String>()
    };
    assert_eq!(copies("abcabcdcda"), "+++===+==+");
    assert_eq!(gateway.stop(), Some(0));
    for off in ["max_ids = 0", "window = \"0s\""] {
        let site = Site::new(&format!("[dedup]\n{off}\n"));
        let gateway = site.start();
        let mut client = Client::connect(site.public).unwrap();
        assert!(!is_copy(&send(&mut client, "eid=a")) && !is_copy(&send(&mut client, "eid=a")), "{off}");
        assert_eq!(gateway.stop(), Some(0));
    }
}

#[test]
fn a_window_ends() {
    let site = Site::new("[dedup]\nwindow = \"1s\"\n");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    assert!(!is_copy(&send(&mut client, "eid=a")));
    super::gateway::until("the window is over", || !is_copy(&send(&mut client, "eid=a")));
    assert_eq!(gateway.stop(), Some(0));
}
