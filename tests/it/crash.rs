//! `kill -9` without Kafka: what was acknowledged is in the journal once, however the program ended.

use std::fs;
use std::thread;

use super::audit::{CLEAN, audit, balanced_stat, export};
use super::client::Client;
use super::gateway::{PIXEL, Site};
use super::load::Load;
use super::random::Random;

const SMALL_SEGMENTS: &str = "[journal]\nsegment_bytes = \"1MiB\"\n";
const WRITTEN: &str = "[journal]\nsegment_bytes = \"1MiB\"\nacknowledge = \"written\"\n";

/// Kills a loaded gateway some times at random moments, then audits.
fn survive(extra: &str, rounds: u32) {
    let mut random = Random::from_environment();
    let site = Site::new(extra);
    let load = Load::start(site.public, 6);
    for _ in 0..rounds {
        let gateway = site.start();
        load.wait_for(random.next() % 400);
        thread::sleep(random.millis(0, 40));
        gateway.kill();
    }
    let ledger = load.finish();
    let verify = site.run(&["journal", "verify"]);
    let said = String::from_utf8_lossy(&verify.stdout);
    assert_eq!(verify.status.code(), Some(0), "a torn tail is no damage, but: {said}");
    let records = export(&site);
    assert_eq!(audit(&ledger, &records), CLEAN, "{}", site.log());
    let stat = balanced_stat(&site);
    assert_eq!(stat["accepted"].as_u64(), Some(records.len() as u64), "nothing expired, so all is retained");
    assert!(!ledger.acknowledged.is_empty());

    // A last, quiet run takes over the same directory and changes nothing.
    assert_eq!(site.start().stop(), Some(0));
    assert_eq!(export(&site), records);
    balanced_stat(&site);
}

#[test]
fn every_acknowledged_event_survives_kill_9_once() {
    survive(SMALL_SEGMENTS, 6);
}

#[test]
fn written_mode_survives_kill_9_of_the_process_too() {
    survive(WRITTEN, 4);
}

#[test]
fn a_record_is_exported_while_the_gateway_runs() {
    let site = Site::new("");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let reply = client.get(&format!("/offsite_event.php?id={PIXEL}&value=0.01&currency=gbp")).unwrap();
    assert_eq!((reply.status, reply.body.len()), (200, 43));
    let records = export(&site);
    assert_eq!(records.len(), 1);
    let record: serde_json::Value = serde_json::from_str(&records[0]).unwrap();
    assert_eq!(record["record_id"].as_str(), reply.record_id());
    assert_eq!(record["value"], "0.01");
    assert_eq!(record["currency"], "GBP");
    assert_eq!(balanced_stat(&site)["pending"], 1);
    gateway.kill();
}

#[test]
fn a_client_that_half_closes_still_gets_its_answer() {
    let site = Site::new("");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let request = format!("GET /offsite_event.php?id={PIXEL} HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
    client.send(request.as_bytes()).unwrap();
    client.half_close().unwrap();
    let reply = client.reply().unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(export(&site).len(), 1);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn damage_is_named_counted_and_stepped_over() {
    let site = Site::new(SMALL_SEGMENTS);
    let gateway = site.start();
    let load = Load::start(site.public, 2);
    load.wait_for(200);
    let ledger = load.finish();
    assert_eq!(gateway.stop(), Some(0));

    let segment = first_segment(&site);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[5000] ^= 0x40; // in one of the first batches: the header block ends at 4096
    fs::write(&segment, bytes).unwrap();

    let verify = site.run(&["journal", "verify"]);
    assert_eq!(verify.status.code(), Some(1));
    let said = String::from_utf8_lossy(&verify.stdout).into_owned() + &String::from_utf8_lossy(&verify.stderr);
    let name = segment.file_name().unwrap().to_string_lossy().into_owned();
    let byte: u64 = number_after(&said, "byte ").expect("verify names the byte");
    assert!(said.contains(&name) && (4096..=5000).contains(&byte), "segment and batch are named: {said}");

    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    assert_eq!(client.get(&format!("/offsite_event.php?id={PIXEL}")).unwrap().status, 200);
    assert_eq!(gateway.stop(), Some(0));
    let stat = balanced_stat(&site);
    let damaged = stat["damaged"].as_u64().unwrap();
    assert!(damaged >= 1, "{stat}");
    assert_eq!(stat["accepted"].as_u64(), Some(ledger.acknowledged.len() as u64 + 1));
}

fn number_after(text: &str, word: &str) -> Option<u64> {
    let digits = text.split_once(word)?.1.split(|letter: char| !letter.is_ascii_digit()).next()?;
    digits.parse().ok()
}

fn first_segment(site: &Site) -> std::path::PathBuf {
    let entries = fs::read_dir(site.data().join("journal")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|end| end == "seg")).min().expect("there is a segment")
}
