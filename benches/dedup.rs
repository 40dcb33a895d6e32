//! Deduplication: what a key costs in time and memory, and how long a start needs to know a backlog's ids again. Run by
//! `cargo bench --bench dedup`.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark ends where it fails, and prints")]

use std::future::Future;
use std::hint::black_box;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use pixelgate::dedup::{Dedup, Options, Rebuild};
use pixelgate::journal::{self, Acknowledge, Commit, Driver, Journal, Observer, OnDamage, Receipt};
use pixelgate::pixel::PixelId;
use pixelgate::record::{Head, Kind};
use pixelgate::time::{Clock, SystemClock};

const DAY: Duration = Duration::from_secs(86_400);
const IDS: u64 = 1_000_000;
const BACKLOG_BYTES: u64 = 2 << 30;
const HAND_OVER: u64 = 2048;

struct Silent;

impl Observer for Silent {
    fn committed(&self, _: &Commit) {}
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn open(dir: &Path) -> Journal {
    let options = journal::Options {
        data_dir: dir.to_path_buf(),
        acknowledge: Acknowledge::Written,
        max_bytes: 8 << 30,
        segment_bytes: 64 << 20,
        retention: DAY,
        on_damage: OnDamage::Skip,
        publishes: true,
    };
    Journal::open(options, Arc::new(SystemClock), Arc::new(Silent)).unwrap()
}

fn wait(driver: &mut Driver, mut receipt: Receipt) {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        let _ = Pin::new(&mut *driver).poll(&mut context);
        if let Poll::Ready(outcome) = Pin::new(&mut receipt).poll(&mut context) {
            return outcome.unwrap();
        }
        std::thread::park();
    }
}

fn head(number: u64) -> Head {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    Head { kind: Kind::Event, id, time_ms: SystemClock.now().0 }
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn id(number: u64) -> String {
    format!("6f1c1b0e-0000-4000-8000-{number:012}")
}

/// Keys alone, of records that are refused or were there: the table's and the hash's own cost.
fn keys(dir: &Path) {
    let journal = open(dir);
    let (appender, mut driver) = journal.appender();
    let pixel = PixelId::parse(b"6012345678901").unwrap();
    // Shards fill unevenly, by a percent or so: with some room to spare none forgets.
    let options = Options { window: DAY, max_ids: IDS as usize * 11 / 10 };
    let dedup = Dedup::new(options, Duration::ZERO);
    let ids: Vec<String> = (0..IDS).map(id).collect();
    let begun = Instant::now();
    for id in &ids {
        let _ = black_box(dedup.key(pixel, Some("Purchase"), id, false));
    }
    let hashes = begun.elapsed();
    let (before, mut last) = (resident_bytes(), None);
    for (number, id) in (0..).zip(&ids) {
        let key = dedup.key(pixel, Some("Purchase"), id, false);
        let append = || appender.append(head(number), b"1", |out| out.push(b'x'));
        if let Ok(pixelgate::dedup::Once::First(receipt)) = dedup.once(key, Duration::ZERO, append) {
            last = Some(receipt);
        }
        if number % HAND_OVER == 0 {
            last.take().into_iter().for_each(|receipt| wait(&mut driver, receipt));
        }
    }
    last.into_iter().for_each(|receipt| wait(&mut driver, receipt));
    let grown = resident_bytes().saturating_sub(before);
    let begun = Instant::now();
    for id in &ids {
        let key = dedup.key(pixel, Some("Purchase"), id, false);
        assert!(dedup.once(key, Duration::ZERO, || Err(())).is_ok());
    }
    let copies = begun.elapsed();
    let each = |spent: Duration| spent.as_nanos() as u64 / IDS;
    println!("a hash: {} ns; a copy of one of a million: {} ns with its hash", each(hashes), each(copies));
    println!("resident memory grown by {} bytes an id, buffers of the journal included", grown / IDS);
    drop((appender, driver));
    journal.close(Duration::from_secs(60), &SystemClock);
}

/// A start on a backlog of records with ids.
fn start(dir: &Path) {
    let journal = open(dir);
    let (appender, mut driver) = journal.appender();
    let filler = "y".repeat(420);
    let (mut written, mut number) = (0, 0);
    while written < BACKLOG_BYTES {
        let mut last = None;
        for _ in 0..HAND_OVER {
            let body = format!(
                "{{\"schema\":\"pixelgate.event.v1\",\"pixel_id\":\"6012345678901\",\"event_name\":\"Purchase\",\
                 \"event_id\":\"{}\",\"value\":\"1\",\"params\":{{\"x\":\"{filler}\"}}}}",
                id(number)
            );
            written += body.len() as u64;
            last = appender.append(head(number), b"6012345678901", |out| out.extend(body.as_bytes())).ok();
            number += 1;
        }
        wait(&mut driver, last.unwrap());
    }
    drop((appender, driver));
    journal.close(Duration::from_secs(60), &SystemClock);
    let journal = open(dir);
    for max_ids in [500_000, 100_000_000] {
        let dedup = Arc::new(Dedup::new(Options { window: 2 * DAY, max_ids }, SystemClock.monotonic()));
        let begun = Instant::now();
        let rebuild = Rebuild::start(dedup.clone(), max_ids, journal.clone(), SystemClock.now()).unwrap();
        while !rebuild.is_done() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (took, found) = (begun.elapsed(), dedup.len());
        println!("{number} records, 2 GiB: the newest {found} ids known again after {} ms", took.as_millis());
        rebuild.stop();
    }
    journal.close(Duration::from_secs(60), &SystemClock);
}

fn main() {
    // `cargo test` runs benchmarks, too, by name only.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    keys(&dir.path().join("keys"));
    start(&dir.path().join("start"));
}
