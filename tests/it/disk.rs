//! The real binary on a bad disk, with a wrong clock, without descriptors, through power cuts: what was acknowledged is
//! there once, each refusal says why, and it goes on by itself or says why not.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use pixelgate::time::Timestamp;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

use super::audit::{CLEAN, audit, balanced_stat, export};
use super::client::{Client, Reply};
use super::gateway::{Gateway, PATIENCE, PIXEL, Site, until};
use super::load::Load;
use super::random::Random;
use super::shim::{Call, EIO, ENOSPC, EROFS, Moment, Shim};

const SMALL: &str = "[journal]\nsegment_bytes = \"1MiB\"\n";
/// Nothing expires, as it is still to be published.
const KEPT: &str = "[journal]\nsegment_bytes = \"256KiB\"\n[kafka]\nbrokers = [\"127.0.0.1:1\"]\n";
const WRITTEN: &str = "[journal]\nsegment_bytes = \"1MiB\"\nacknowledge = \"written\"\n";

fn site(extra: &str) -> (Site, Shim) {
    let (mut site, shim) = (Site::new(extra), Shim::new());
    site.environment = shim.environment(&site.data());
    (site, shim)
}

/// One event; each on a connection of its own.
fn fire(site: &Site) -> std::io::Result<Reply> {
    Client::connect(site.public)?.get(&format!("/offsite_event.php?id={PIXEL}&probe=1"))
}

fn reason(site: &Site) -> Option<String> {
    fire(site).ok()?.reason().map(str::to_owned)
}

fn wait_for_reason(site: &Site, wanted: Option<&str>) -> Reply {
    let mut last = None;
    let mut seen = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    while last.is_none() {
        let reply = fire(site);
        let reason = reply.as_ref().map_or("no answer", |reply| reply.reason().unwrap_or("none")).to_owned();
        *seen.entry(reason).or_insert(0) += 1;
        assert!(Instant::now() < deadline, "never {wanted:?} but {seen:?}; it said:\n{}", site.log());
        last = reply.ok().filter(|reply| reply.reason() == wanted);
    }
    last.expect("it came")
}

/// The journal holds exactly what a ledger says, and a last run changes nothing.
fn assert_kept(site: &Site, load: Load) {
    let ledger = load.finish();
    let records = export(site);
    let loaded: Vec<String> = records.iter().filter(|record| !record.contains("\"probe\"")).cloned().collect();
    assert_eq!(audit(&ledger, &loaded), CLEAN, "{}", site.log());
    balanced_stat(site);
    assert!(!ledger.acknowledged.is_empty());
    assert_eq!(site.start().stop(), Some(0), "{}", site.log());
    assert_eq!(export(site), records);
}

/// A device that fails: the answers leave open what became of the event, the program ends with 1, the next start reads.
fn fail(extra: &str, begin: impl Fn(&Shim), end: impl Fn(&Shim)) {
    let (site, shim) = site(extra);
    let gateway = site.start();
    let load = Load::start(site.public, 6);
    load.wait_for(200);
    begin(&shim);
    assert_eq!(gateway.wait().code(), Some(1), "{}", site.log());
    assert!(site.log().contains("nothing more is accepted until the next start"), "{}", site.log());
    end(&shim);
    let gateway = site.start();
    load.wait_for(200);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    assert_kept(&site, load);
}

#[test]
fn a_sync_that_fails_ends_the_program_with_1_and_the_next_start_goes_on() {
    for extra in [SMALL, WRITTEN] {
        fail(extra, |shim| shim.fail_syncs(EIO), |shim| shim.fail_syncs(0));
    }
}

#[test]
fn a_write_that_fails_ends_the_program_with_1_and_the_next_start_goes_on() {
    fail(SMALL, |shim| shim.fail_writes(EIO), |shim| shim.fail_writes(0));
}

#[test]
fn an_event_on_a_failing_disk_is_answered_with_journal_unavailable() {
    // It serves on for the delay, so that each kind of answer can be seen.
    let shim = Shim::new();
    let mut site = Site::with_server("shutdown_delay = \"5s\"", SMALL);
    site.environment = shim.environment(&site.data());
    let gateway = site.start();
    assert_eq!(reason(&site), None);
    shim.fail_syncs(EIO);
    for _ in 0..2 {
        let reply = fire(&site).unwrap();
        assert_eq!((reply.status, reply.reason()), (503, Some("journal_unavailable")), "{}", site.log());
        assert!(reply.header("retry-after").is_some());
        assert_eq!(reply.body.len(), 43, "a page never breaks");
    }
    assert_eq!(gateway.readiness(), Some(503));
    assert_eq!(gateway.wait().code(), Some(1), "{}", site.log());
    shim.fail_syncs(0);
    let gateway = site.start();
    assert_eq!(reason(&site), None);
    assert_eq!(gateway.stop(), Some(0));
    let records = export(&site).len();
    assert!((2..=3).contains(&records), "acknowledged: two; one is open: {records}");
}

#[test]
fn a_full_disk_is_said_and_left_without_help() {
    let (site, shim) = site(KEPT);
    let gateway = site.start();
    let load = Load::start(site.public, 6);
    load.wait_for(200);
    shim.fail_allocations(ENOSPC);
    let reply = wait_for_reason(&site, Some("journal_full"));
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "Retry-After: {seconds}");
    assert_eq!((reply.status, gateway.readiness()), (503, Some(503)));
    shim.fail_allocations(0);
    wait_for_reason(&site, None);
    load.wait_for(200);
    until("it is ready", || gateway.readiness() == Some(200));
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    assert_kept(&site, load);
}

#[test]
fn a_disk_that_turns_read_only_is_survived_and_started_on() {
    let (site, shim) = site(KEPT);
    let gateway = site.start();
    let load = Load::start(site.public, 6);
    load.wait_for(200);
    let read_only = |errno| {
        shim.fail_changes(errno);
        shim.fail_allocations(errno);
        shim.fail_writes(errno);
    };
    read_only(EROFS);
    wait_for_reason(&site, Some("journal_full"));
    // It tries again by itself, at nobody's cost: all this while one answer only leaves open what became of the event.
    for _ in 0..300 {
        assert_eq!(reason(&site).as_deref(), Some("journal_full"), "{}", site.log());
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(gateway.readiness(), Some(503));
    assert_eq!(site.log().matches("found no room").count(), 1, "{}", site.log());
    read_only(0);
    wait_for_reason(&site, None);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    // It starts on such a disk, too, and says what is missing until it can write.
    read_only(EROFS);
    let mut gateway = site.launch();
    wait_for_reason(&site, Some("journal_full"));
    read_only(0);
    wait_for_reason(&site, None);
    gateway.wait_ready();
    load.wait_for(100);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    assert_kept(&site, load);
}

#[test]
fn a_slow_disk_makes_answers_late_and_none_wrong() {
    let (site, shim) = site(SMALL);
    let gateway = site.start();
    let load = Load::start(site.public, 12);
    load.wait_for(100);
    shim.delay_syncs(300);
    load.wait_for(60);
    assert_eq!(gateway.readiness(), Some(200), "slow is no reason to be unready");
    shim.delay_syncs(0);
    load.wait_for(200);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    assert_kept(&site, load);
}

#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    let mut random = Random::from_environment();
    let (mut site, shim) = site(SMALL);
    site.environment = shim.recording(&site.data());
    let load = Load::start(site.public, 4);
    let mut taken = super::power::Lost::default();
    for _ in 0..8 {
        let gateway = site.start();
        load.wait_for(20 + random.next() % 300);
        gateway.kill();
        let lost = shim.cut_power(&site.data(), &mut random);
        taken.pages += lost.pages;
        taken.names += lost.names;
    }
    eprintln!("eight cuts took {taken:?}");
    assert!(taken.pages > 0, "nothing was ever lost, so nothing was tried");
    let verify = site.run(&["journal", "verify"]);
    let said = String::from_utf8_lossy(&verify.stdout);
    assert_eq!(verify.status.code(), Some(0), "what was never synced is no damage: {said}");
    assert_kept(&site, load);
}

#[test]
fn a_pixel_is_known_after_a_power_cut_right_behind_its_answer() {
    let mut random = Random::from_environment();
    let (mut site, shim) = site(SMALL);
    site.environment = shim.recording(&site.data());
    let mut pixels: Vec<String> = Vec::new();
    for round in 0..4 {
        let gateway = site.start();
        let token = fs::read_to_string(site.data().join("management-token")).unwrap();
        for pixel in &pixels {
            let reply = Client::connect(site.public).unwrap().get(&format!("/offsite_event.php?id={pixel}")).unwrap();
            assert_eq!(reply.status, 200, "pixel {pixel} is gone: {}", site.log());
        }
        for number in 0..3 {
            let body = format!("fb_ad_account_id=9&name=round {round} {number}&tag=CHECKOUT");
            let head = format!("POST /offsitepixels HTTP/1.1\r\nHost: a\r\nAuthorization: OAuth {}\r\n", token.trim());
            let kind = "Content-Type: application/x-www-form-urlencoded\r\n";
            let mut client = Client::connect(site.public).unwrap();
            client.send(format!("{head}{kind}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
            let reply = client.reply().unwrap();
            assert_eq!(reply.status, 200, "{reply:?}");
            let created: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
            let id = created["id"].as_str().map_or_else(|| created["id"].to_string(), str::to_owned);
            pixels.push(id);
        }
        gateway.kill();
        shim.cut_power(&site.data(), &mut random);
    }
}

/// `kill -9` within a call on a file: each call that the journal makes its promises by.
#[test]
fn kill_9_within_each_call_of_the_journal_loses_nothing() {
    use Call::{Allocate, Remove, Rename, Sync, SyncDir, Write};
    use Moment::{After, Before, Half};
    let points = [
        (Write, Before, ".seg", 7),
        (Write, Half, ".seg", 7),
        (Write, After, ".seg", 7),
        (Sync, Before, ".seg", 7),
        (Sync, After, ".seg", 7),
        (Allocate, Before, "spare", 0),
        (Allocate, After, "spare", 1),
        (Write, Half, "spare", 0),
        (Sync, Before, "spare", 0),
        (Rename, Before, ".seg", 0),
        (Rename, After, ".seg", 0),
        (SyncDir, Before, "journal", 0),
        (SyncDir, After, "journal", 0),
        // At the next segment, which is under load.
        (Rename, Before, ".seg", 1),
        (Rename, After, ".seg", 1),
        (Remove, Before, ".seg", 0),
        (Remove, After, ".seg", 0),
    ];
    // Without Kafka the oldest goes when its time is over.
    let (site, shim) = site("[journal]\nsegment_bytes = \"256KiB\"\nmax_bytes = \"100MiB\"\nretention = \"1s\"\n");
    let load = Load::start(site.public, 12);
    let mut expired_from = 0;
    for (call, moment, name, after) in points {
        shim.crash_at(call, moment, name, after);
        let mut gateway = site.launch();
        until(&format!("killed {moment:?} {call:?} of {name}"), || gateway.has_ended().is_some());
        assert_eq!(gateway.wait().code(), None, "{}", site.log());
        shim.crash_no_more();
        let gateway = site.start();
        load.wait_for(50);
        expired_from = gateway.metric("journal_expired_events").unwrap_or(0.0) as u64;
        gateway.kill();
    }
    let ledger = load.finish();
    let verify = site.run(&["journal", "verify"]);
    assert_eq!(verify.status.code(), Some(0), "{}", String::from_utf8_lossy(&verify.stdout));
    let stat = balanced_stat(&site);
    let (expired, accepted) = (stat["expired"].as_u64().unwrap(), stat["accepted"].as_u64().unwrap());
    let records = export(&site);
    let findings = audit(&ledger, &records);
    assert!(expired >= expired_from && expired > 0, "segments went: {stat}");
    assert_eq!((findings.doubled, findings.invented), (0, 0), "{}", site.log());
    // What expired is not there, and is counted to the record.
    assert_eq!(accepted, expired + records.len() as u64, "{stat}");
    assert!(findings.lost as u64 <= expired, "{} lost: {stat}", findings.lost);
    // And it is the oldest: nothing that was acknowledged is missing behind what is there. An id begins with its time;
    // of two workers' at the same moment either may come first.
    let kept: HashSet<String> = records.iter().map(|record| field(record, "record_id")).collect();
    let oldest = kept.iter().map(|id| id_ms(id)).min().unwrap();
    for id in ledger.acknowledged.keys().filter(|id| !kept.contains(*id)) {
        assert!(id_ms(id) <= oldest + 10_000, "{id} is lost, and the oldest is of {oldest}: {stat}");
    }
}

#[test]
fn jumps_of_the_wall_clock_change_no_answer_and_times_never_run_backwards() {
    let (site, shim) = site(SMALL);
    let gateway = site.start();
    let load = Load::start(site.public, 2);
    load.wait_for(50);
    for hours in [1, -3, 24 * 400, -24 * 400, 0] {
        shim.shift_clock(hours * 3_600_000);
        load.wait_for(100);
        assert_eq!(gateway.readiness(), Some(200));
    }
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    let times = export(&site).into_iter().map(|record| {
        let text = field(&record, "received_at");
        Timestamp::parse(&text).unwrap_or_else(|| panic!("received_at is {text}"))
    });
    // Two workers stamp and hand over each for itself, so neighbours may change places: by a tick, or by as long as a
    // busy machine leaves one of them waiting.
    times.fold(Timestamp(0), |latest, time| {
        assert!(time.0 + 10_000 >= latest.0, "{time:?} is in the journal behind {latest:?}");
        latest.max(time)
    });
    assert_kept(&site, load);
}

/// The Unix milliseconds in a record's id, a UUID of version 7.
fn id_ms(id: &str) -> u64 {
    u64::from_str_radix(&id.replace('-', "")[..12], 16).unwrap()
}

fn field(record: &str, name: &str) -> String {
    let record: serde_json::Value = serde_json::from_str(record).unwrap();
    record[name].as_str().unwrap().to_owned()
}

/// Leaves a running program so many descriptors.
fn limit_descriptors(gateway: &Gateway<'_>, limit: u64) {
    let id = Pid::from_raw(gateway.id() as i32);
    let hard = prlimit(id, Resource::Nofile, Rlimit { current: Some(limit), maximum: None });
    // Without the right to raise it, the hard limit must stay as it is.
    if hard.is_err() {
        let own = rustix::process::getrlimit(Resource::Nofile).maximum;
        prlimit(id, Resource::Nofile, Rlimit { current: Some(limit), maximum: own }).unwrap();
    }
}

#[test]
fn without_descriptors_it_waits_and_goes_on() {
    let (site, _shim) = site(SMALL);
    let gateway = site.start();
    let load = Load::start(site.public, 4);
    load.wait_for(100);
    let open = fs::read_dir(format!("/proc/{}/fd", gateway.id())).unwrap().count() as u64;
    limit_descriptors(&gateway, open + 8);
    let idle: Vec<TcpStream> = (0..60).filter_map(|_| TcpStream::connect(site.public).ok()).collect();
    assert!(idle.len() > 20, "the kernel completes them");
    // Those that have a connection go on; the journal makes no new segment, and that is no failure.
    load.wait_for(100);
    limit_descriptors(&gateway, 1024);
    drop(idle);
    wait_for_reason(&site, None);
    load.wait_for(200);
    until("it is ready", || gateway.readiness() == Some(200));
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    assert_kept(&site, load);
}

/// Each page of the registry's file in turn: the program serves, or ends with its own words; never with a panic.
#[test]
fn a_registry_with_flipped_bits_is_named_or_does_no_harm() {
    let mut random = Random::from_environment();
    let site = Site::new("");
    let gateway = site.start();
    let id = |reply: Reply| reply.record_id().expect("accepted").to_owned();
    let mut acknowledged: Vec<String> = (0..3).map(|_| id(fire(&site).unwrap())).collect();
    assert_eq!(gateway.stop(), Some(0));
    let path = fs::read_dir(site.data()).unwrap().map(|entry| entry.unwrap().path());
    let path =
        path.into_iter().find(|path| path.extension().is_some_and(|end| end == "sqlite" || end == "db")).unwrap();
    let whole = fs::read(&path).unwrap();
    // Without the log of the round before, which would be taken for the file's own.
    let put_back = || {
        for end in ["-wal", "-shm"] {
            let mut log = path.clone().into_os_string();
            log.push(end);
            fs::remove_file(log).ok();
        }
        fs::write(&path, &whole).unwrap();
    };
    let (mut served, mut refused) = (0, 0);
    for round in 0..10 {
        put_back();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        // The first round hits the file's head.
        let at = if round == 0 { 3 } else { random.next() % whole.len() as u64 };
        let flipped: Vec<u8> = (at..(at + 64).min(whole.len() as u64)).map(|byte| !whole[byte as usize]).collect();
        file.write_all_at(&flipped, at).unwrap();
        let mut gateway = site.launch();
        until("it serves or ends", || gateway.has_ended().is_some() || gateway.readiness() == Some(200));
        if gateway.has_ended().is_some() {
            // Where the schema's number was hit, it reads as that of a newer program.
            let code = gateway.wait().code();
            assert!(matches!(code, Some(1 | 2)), "{code:?} {}", site.log());
            refused += 1;
        } else {
            acknowledged.push(id(fire(&site).unwrap()));
            assert_eq!(gateway.stop(), Some(0), "{}", site.log());
            served += 1;
        }
        assert!(!site.log().contains("panicked"), "{}", site.log());
    }
    eprintln!("{served} served, {refused} refused");
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    assert!(refused > 0 && site.log().contains(&name), "the file is named: {}", site.log());
    // Put back, all is well.
    put_back();
    assert_eq!(site.start().stop(), Some(0), "{}", site.log());
    // And whatever the file said, it took no event with it.
    let kept: Vec<String> = export(&site)
        .iter()
        .map(|text| serde_json::from_str::<Value>(text).unwrap()["record_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kept, acknowledged);
}
