//! A gateway that starts on a large backlog: when it takes requests, how fast the backlog leaves, and in what memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pixelgate::journal::append::Refused;
use pixelgate::journal::{Acknowledge, Commit, Journal, Observer, OnDamage, Options};
use pixelgate::record::{Head, Kind};
use pixelgate::time::SystemClock;

use crate::report::Report;
use crate::requests::{self, PIXEL};
use crate::rounds::{self, Case};
use crate::servers::{Server, Wish};
use crate::{NOWHERE, broker, setting, usage, wish};

const LONG: Duration = Duration::from_secs(60);
/// What a record of the plain pixel takes.
const RECORD: usize = 350;

struct Quiet;

impl Observer for Quiet {
    fn committed(&self, _: &Commit) {}
}

/// Two gigabytes, unless `PIXELGATE_BENCH_BACKLOG_MB` says otherwise, in records of 350 bytes and of 60 KB.
pub(crate) fn run(report: &mut Report) {
    let broker = broker::Broker::start("");
    let bytes = setting("BACKLOG_MB", 2000) * 1_000_000;
    report.say(
        "\nA start on a backlog, until all of it is in Kafka:\n\n| backlog | records of | first answer after | \
         published in | records/s | MB/s | peak RSS MiB |\n|---|---|---|---|---|---|---|",
    );
    for size in [RECORD as u64, 60_000] {
        let kafka = Some((broker.address(), "exactly_once"));
        let mut server = Server::gateway(&Wish { kafka, ..wish("synced") });
        server.stop();
        let records = bytes / size;
        fill(&server, records, size as usize);
        let begun = Instant::now();
        let server = server.again();
        let first = begun.elapsed();
        while server.metric("pixelgate_journal_pending_events").is_none_or(|pending| pending > 0.0) {
            assert!(begun.elapsed() < 10 * LONG, "the backlog doesn't leave");
            std::thread::sleep(Duration::from_millis(100));
        }
        let took = begun.elapsed().as_secs_f64();
        report.say(&format!(
            "| {:.1} GB | {size} bytes | {:.0} ms | {took:.1} s | {:.0} | {:.0} | {:.0} |",
            bytes as f64 / 1e9,
            first.as_secs_f64() * 1e3,
            records as f64 / took,
            bytes as f64 / 1e6 / took,
            usage::peak_rss_mib(server.id()),
        ));
    }
}

/// A gateway that can't publish.
pub(crate) fn without_kafka() -> Server {
    let away = Some((NOWHERE.to_owned(), "exactly_once"));
    let mut server = Server::gateway(&Wish { kafka: away, ..wish("synced") });
    server.publishes = false;
    server
}

/// What a request costs while Kafka is away, with nothing waiting at first, and behind that backlog.
pub(crate) fn wait_behind(report: &mut Report, connections: usize) {
    let bytes = setting("BACKLOG_MB", 2000) * 1_000_000;
    let gateway = |backlog: u64| {
        let mut server = without_kafka();
        if backlog > 0 {
            server.stop();
            fill(&server, backlog / RECORD as u64, RECORD);
            server = server.again();
        }
        server.name = format!("pixelgate, {:.1} GB waiting", backlog as f64 / 1e9);
        server
    };
    let title = "The pixel, Kafka away".into();
    let case = Case { title, kind: requests::Kind::Get, connections, is_fresh: false };
    rounds::run(report, &case, &[Server::constant(1), gateway(0), gateway(bytes)]);
}

/// Writes records straight into the journal, as its own library does.
fn fill(server: &Server, records: u64, bytes: usize) {
    let options = Options {
        data_dir: server.data(),
        acknowledge: Acknowledge::Written,
        max_bytes: 8 << 30,
        segment_bytes: 64 << 20,
        retention: LONG,
        on_damage: OnDamage::Skip,
        publishes: true,
    };
    let journal = Journal::open(options, Arc::new(SystemClock), Arc::new(Quiet)).unwrap();
    let (appender, _driver) = journal.appender();
    let mut noise = 1u64;
    for number in 0..records {
        let head = Head { kind: Kind::Event, id: u128::from(number).to_be_bytes(), time_ms: 1_795_496_441_123 };
        let mut encode = |out: &mut Vec<u8>| {
            let start = out.len();
            out.extend_from_slice(format!("{{\"record_id\":\"{number:032x}\",\"note\":\"").as_bytes());
            // About as compressible as events are.
            while out.len() < start + bytes - 2 {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                out.extend_from_slice(format!("{:x} shop ", noise >> 40).as_bytes());
            }
            out.truncate(start + bytes - 2);
            out.extend_from_slice(b"\"}");
        };
        while let Err(refused) = appender.append(head, PIXEL.as_bytes(), &mut encode) {
            assert_eq!(refused, Refused::Busy);
            appender.flush();
            std::thread::sleep(Duration::from_millis(1));
        }
        if number % 64 == 0 {
            appender.flush();
        }
    }
    appender.flush();
    assert!(journal.close(LONG, &SystemClock));
}
