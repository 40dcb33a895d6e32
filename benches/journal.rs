//! The journal alone: what a record costs in CPU time, beside a plain file written and synced in the same batches; how
//! long a start on a backlog takes; how fast a reader is. Run by `cargo bench --bench journal`.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark ends where it fails, and prints")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use pixelgate::journal::{Acknowledge, Commit, Driver, Journal, Next, Observer, OnDamage, Options, Receipt, Refused};
use pixelgate::record::{Head, Kind, Position};
use pixelgate::time::SystemClock;

/// Length of a record as it lies in the journal.
const RECORD_BYTES: usize = 350;
/// Records handed over at once: what 64 to 4096 requests in flight make of one commit.
const BATCHES: [usize; 3] = [64, 512, 4096];
const RECORDS: usize = 2_000_000;
const BACKLOG_BYTES: u64 = 2 << 30;

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

fn options(dir: &Path) -> Options {
    Options {
        data_dir: dir.to_path_buf(),
        acknowledge: Acknowledge::Synced,
        max_bytes: 8 << 30,
        segment_bytes: 64 << 20,
        retention: Duration::from_secs(86_400),
        on_damage: OnDamage::Skip,
        publishes: true,
    }
}

fn open(dir: &Path) -> Journal {
    Journal::open(options(dir), Arc::new(SystemClock), Arc::new(Silent)).unwrap()
}

/// CPU seconds of the whole process, the committer's included.
fn cpu_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

fn wait(driver: &mut Driver, mut receipt: Receipt, waker: &Waker) {
    let mut context = Context::from_waker(waker);
    loop {
        let _ = Pin::new(&mut *driver).poll(&mut context);
        if let Poll::Ready(outcome) = Pin::new(&mut receipt).poll(&mut context) {
            return outcome.unwrap();
        }
        std::thread::park();
    }
}

fn append(journal: &Journal, records: usize, batch: usize) {
    let (appender, mut driver) = journal.appender();
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let body = [b'x'; RECORD_BYTES - 32 - 8];
    let mut number: u64 = 0;
    while (number as usize) < records {
        let mut last = None;
        for _ in 0..batch {
            let head = Head { kind: Kind::Event, id: u128::from(number).to_be_bytes(), time_ms: number };
            let receipt = loop {
                match appender.append(head, b"10000000", |out| out.extend_from_slice(&body)) {
                    Ok(receipt) => break receipt,
                    // The next segment is being allocated.
                    Err(Refused::Busy) => std::thread::sleep(Duration::from_micros(100)),
                    Err(refused) => panic!("{refused:?}"),
                }
            };
            last = Some(receipt);
            number += 1;
        }
        wait(&mut driver, last.unwrap(), &waker);
    }
}

/// The same bytes in the same batches to one allocated file.
fn baseline(dir: &Path, records: usize, batch: usize) {
    let path = dir.join("plain");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path).unwrap();
    let all = (records * RECORD_BYTES) as u64;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, all).unwrap();
    let body = [b'x'; RECORD_BYTES];
    let (mut buffer, mut offset) = (Vec::new(), 0);
    for _ in 0..records / batch {
        buffer.clear();
        (0..batch).for_each(|_| buffer.extend_from_slice(&body));
        file.write_all_at(&buffer, offset).unwrap();
        file.sync_data().unwrap();
        offset += buffer.len() as u64;
    }
    std::fs::remove_file(path).unwrap();
}

fn measured(name: &str, batch: usize, run: impl FnOnce(usize)) {
    let records = RECORDS.min(batch * 4000) / batch * batch;
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    run(records);
    let (wall, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let (per_core, per_second) = (records as f64 / cpu, records as f64 / wall);
    println!("{name:<8} batches of {batch:>4}: {per_core:>10.0} records/s/core, {per_second:>9.0} records/s");
}

fn main() {
    // `cargo bench` hands over `--bench`; there is nothing to choose.
    let dir = tempfile::tempdir_in(".").unwrap();
    for batch in BATCHES {
        measured("plain", batch, |records| baseline(dir.path(), records, batch));
        let own = dir.path().join(batch.to_string());
        let journal = open(&own);
        measured("journal", batch, |records| append(&journal, records, batch));
        assert!(journal.close(Duration::from_secs(10), &SystemClock));
        std::fs::remove_dir_all(own).unwrap();
    }
    backlog(&dir.path().join("backlog"));
}

fn backlog(dir: &Path) {
    let journal = open(dir);
    append(&journal, BACKLOG_BYTES as usize / RECORD_BYTES, 4096);
    assert!(journal.close(Duration::from_secs(10), &SystemClock));
    let begun = Instant::now();
    let again = open(dir);
    println!("start on {} MB of backlog: {:.1} ms", BACKLOG_BYTES >> 20, begun.elapsed().as_secs_f64() * 1e3);
    let (mut reader, mut records) = (again.reader(Position(0)), 0_u64);
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    loop {
        match reader.read_next().unwrap() {
            Next::Batch(batch) => records += batch.entries().count() as u64,
            Next::End => break,
            other => panic!("{other:?}"),
        }
    }
    let (wall, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let megabytes = records as f64 * RECORD_BYTES as f64 / 1e6;
    let per_core = records as f64 / cpu;
    println!("reader: {per_core:.0} records/s/core, {:.0} MB/s, {records} records", megabytes / wall);
    assert!(again.close(Duration::from_secs(10), &SystemClock));
}
