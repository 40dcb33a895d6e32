//! A start with a large backlog: requests are taken at once, memory stays as it is, and all of it arrives once.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pixelgate::journal::append::Refused;
use pixelgate::journal::{Acknowledge, Commit, Journal, Observer, OnDamage, Options};
use pixelgate::record::{Head, Kind};
use pixelgate::time::{Clock, SystemClock};
use rdkafka::Message;

use super::broker::Broker;
use super::client::Client;
use super::consumer::each_committed;
use super::gateway::{PATIENCE, PIXEL, Site};
use super::random::Random;
use super::scene::{self, wait_until_published};

/// Bytes of each record's filler: as large as a request's body may be.
const FILLER: usize = 60_000;
/// Far above what a gateway needs, far below what a backlog in memory would.
const MEMORY_MIB: u64 = 128;

fn megabytes() -> u64 {
    let given = std::env::var("PIXELGATE_E2E_BACKLOG_MB").ok();
    given.map_or(200, |text| text.parse().expect("PIXELGATE_E2E_BACKLOG_MB is a number"))
}

#[test]
fn a_backlog_costs_neither_time_nor_memory() {
    let (broker, topic) = (Broker::shared(), "backlog");
    let site = scene::site(&broker.address(), topic, "");
    site.reconfigure("segment_bytes = \"1MiB\"", "segment_bytes = \"64MiB\"");
    assert_eq!(site.start().stop(), Some(0)); // the directory gets its names
    let records = fill(&site, megabytes());

    let begun = Instant::now();
    let gateway = site.launch();
    let id = first_acknowledged(&site, begun);
    let first_after = begun.elapsed();
    wait_until_published(&site, &gateway);
    let took = begun.elapsed();
    let peak = peak_mib(gateway.id());
    eprintln!(
        "a backlog of {} MB in {records} records: first event acknowledged {first_after:?} after the start, all \
         published after {took:?}, peak of resident memory {peak} MiB",
        megabytes()
    );
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());

    let mut seen = HashSet::new();
    each_committed(&broker.address(), topic, |message| {
        let value = std::str::from_utf8(message.payload().unwrap()).unwrap();
        let (_, rest) = value.split_once("\"record_id\":\"").expect("each record has its id");
        assert!(seen.insert(rest[..36].to_owned()), "doubled: {}", &rest[..36]);
    });
    assert!((0..records).all(|number| seen.remove(&name(number))), "one is lost");
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [id], "and the one that came meanwhile");
    assert!(peak < MEMORY_MIB, "{peak} MiB of memory");
}

/// Asks until it answers; the record id of the first acknowledged event.
fn first_acknowledged(site: &Site, begun: Instant) -> String {
    loop {
        assert!(begun.elapsed() < PATIENCE, "{}", site.log());
        let reply =
            Client::connect(site.public).and_then(|mut client| client.get(&format!("/offsite_event?id={PIXEL}")));
        match reply {
            Ok(reply) if reply.status == 200 => return reply.record_id().unwrap().to_owned(),
            _ => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// The highest that the process's resident memory ever was.
fn peak_mib(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

fn name(number: u64) -> String {
    format!("00000000-0000-7000-8000-{number:012x}")
}

struct Quiet;

impl Observer for Quiet {
    fn committed(&self, _: &Commit) {}
}

/// Writes a backlog straight into the journal, as its own library does: requests of this size would take minutes.
fn fill(site: &Site, megabytes: u64) -> u64 {
    let options = Options {
        data_dir: site.data(),
        acknowledge: Acknowledge::Synced,
        max_bytes: 10 << 30,
        segment_bytes: 64 << 20,
        retention: Duration::from_secs(3600),
        on_damage: OnDamage::Skip,
        publishes: true,
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let journal = Journal::open(options, clock.clone(), Arc::new(Quiet)).unwrap();
    let (appender, _driver) = journal.appender();
    let mut random = Random::from_environment();
    let filler: String = (0..2 * FILLER).map(|_| char::from(b'0' + (random.next() % 75) as u8)).collect();
    let filler = filler.replace('\\', "/");
    let records = megabytes * 1_000_000 / FILLER as u64;
    for number in 0..records {
        let id = 0x7000_8000_0000_0000_0000 | u128::from(number);
        let head = Head { kind: Kind::Event, id: id.to_be_bytes(), time_ms: clock.now().0 };
        let from = (random.next() % FILLER as u64) as usize;
        let body = format!("{{\"record_id\":\"{}\",\"filler\":\"{}\"}}", name(number), &filler[from..from + FILLER]);
        while let Err(refused) =
            appender.append(head, PIXEL.as_bytes(), |buffer| buffer.extend_from_slice(body.as_bytes()))
        {
            assert_eq!(refused, Refused::Busy);
            appender.flush();
            thread::sleep(Duration::from_millis(1));
        }
        appender.flush();
    }
    assert!(journal.close(PATIENCE, &*clock));
    records
}
