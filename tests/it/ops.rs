//! The ops listener from outside: liveness and readiness say what the contract says, whatever Kafka and disk do.

use serde_json::{Value, json};

use super::client::Client;
use super::gateway::{PIXEL, Site, until};

fn checks(site: &Site) -> (u16, Value) {
    let reply = Client::connect(site.ops).unwrap().get("/readyz").unwrap();
    (reply.status, serde_json::from_slice(&reply.body).unwrap())
}

fn is_alive(site: &Site) -> bool {
    let reply = Client::connect(site.ops).unwrap().get("/livez").unwrap();
    if reply.status != 200 {
        eprintln!("/livez: {}", String::from_utf8_lossy(&reply.body));
    }
    reply.status == 200
}

#[test]
fn kafka_being_away_changes_nothing() {
    let site = Site::new("[kafka]\nbrokers = [\"127.0.0.1:1\"]\n");
    let gateway = site.start();
    assert_eq!(checks(&site), (200, json!({"ready": true, "checks": {"serving": "ok", "journal": "ok"}})));
    assert!(is_alive(&site));
    for path in ["/livez", "/readyz"] {
        let mut client = Client::connect(site.ops).unwrap();
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: gateway.test\r\n\r\n").as_bytes()).unwrap();
        let (status, headers) = client.head().unwrap();
        assert_eq!(status, 200);
        assert!(headers.contains(&("cache-control".into(), "no-store".into())));
    }
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_full_journal_is_unready_and_alive() {
    // With Kafka set nothing unpublished expires, so the smallest journal is soon full.
    let site = Site::new("[kafka]\nbrokers = [\"127.0.0.1:1\"]\n[journal]\nmax_bytes = \"1MiB\"\n");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let more: String = (0..7).map(|number| format!("&x{number}={}", "y".repeat(900))).collect();
    let target = format!("/offsite_event.php?id={PIXEL}{more}");
    let mut refusal = None;
    until("the journal is full", || {
        let reply = client.get(&target).unwrap();
        refusal = (reply.reason() == Some("journal_full")).then_some(reply);
        refusal.is_some()
    });
    let again = refusal.as_ref().and_then(|reply| reply.header("retry-after")).map(str::parse::<u64>);
    assert!(again.is_some_and(|seconds| seconds.is_ok_and(|seconds| (1..=3600).contains(&seconds))), "{refusal:?}");
    assert_eq!(checks(&site), (503, json!({"ready": false, "checks": {"serving": "ok", "journal": "full"}})));
    assert!(is_alive(&site));
    assert_eq!(Client::connect(site.ops).unwrap().get("/metrics").unwrap().status, 200);
    assert_eq!(gateway.stop(), Some(0));
    // The next start finds it so, and starts all the same.
    let gateway = site.launch();
    until("it serves", || gateway.readiness().is_some());
    until("it is full", || checks(&site).1["checks"] == json!({"serving": "ok", "journal": "full"}));
    assert!(is_alive(&site));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn it_answers_while_the_public_workers_are_busy() {
    let site = Site::new("");
    let gateway = site.start();
    let load = super::load::Load::start(site.public, 8);
    load.wait_for(100);
    for _ in 0..50 {
        assert!(is_alive(&site));
        assert_eq!(checks(&site).0, 200);
    }
    load.finish();
    assert_eq!(gateway.stop(), Some(0));
}
