//! Tests of the journal as a whole: known situations on the real disk, random histories on a simulated one.

mod beside;
mod clock;
mod full;
mod known;
mod model;
mod oracle;
mod platter;
mod quiet;
mod sim;
mod slow_sync;
mod truth;
mod world;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use super::*;
use crate::record::{Head, Kind};
use crate::time::SystemClock;

/// Counts what it is told.
#[derive(Default)]
pub(crate) struct Told(pub Mutex<Vec<Commit>>);

impl Observer for Told {
    fn committed(&self, commit: &Commit) {
        self.0.lock().unwrap().push(*commit);
    }
}

pub(crate) fn options(data_dir: &Path) -> Options {
    Options {
        data_dir: data_dir.to_path_buf(),
        acknowledge: Acknowledge::Synced,
        max_bytes: MIN_MAX_BYTES * 4,
        segment_bytes: MIN_SEGMENT_BYTES,
        retention: Duration::from_secs(3600),
        on_damage: OnDamage::Skip,
        publishes: true,
    }
}

pub(crate) fn open(options: Options) -> Journal {
    Journal::open(options, Arc::new(SystemClock), Arc::new(Told::default())).unwrap()
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a driver and a receipt on this thread until the receipt is done.
pub(crate) fn wait(driver: &mut Driver, mut receipt: Receipt) -> Result<(), Lost> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        let _ = Pin::new(&mut *driver).poll(&mut context);
        if let Poll::Ready(outcome) = Pin::new(&mut receipt).poll(&mut context) {
            return outcome;
        }
        std::thread::park();
    }
}

pub(crate) fn head(kind: Kind, number: u64) -> Head {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    Head { kind, id, time_ms: number }
}

/// Appends records `numbers`, each of about `bytes`, and waits for the last.
pub(crate) fn append(journal: &Journal, numbers: std::ops::Range<u64>, bytes: usize) -> Result<(), Refused> {
    let (appender, mut driver) = journal.appender();
    let mut last = None;
    for number in numbers {
        let kind = if number % 3 == 2 { Kind::Rejected } else { Kind::Event };
        let body = vec![b'x'; bytes];
        match appender.append(head(kind, number), b"key", |out| out.extend_from_slice(&body)) {
            Ok(receipt) => last = Some(receipt),
            Err(refused) => {
                if let Some(receipt) = last {
                    wait(&mut driver, receipt).unwrap();
                }
                return Err(refused);
            }
        }
    }
    if let Some(receipt) = last {
        wait(&mut driver, receipt).unwrap();
    }
    Ok(())
}

/// Everything a reader sees from `from` on: the numbers of records, and damage.
pub(crate) fn read(mut reader: Reader) -> (Vec<u64>, Vec<Damage>) {
    let (mut numbers, mut damages) = (Vec::new(), Vec::new());
    loop {
        match reader.read_next().unwrap() {
            Next::Batch(batch) => numbers.extend(batch.entries().map(|entry| entry.head.time_ms)),
            Next::Damage(damage) => damages.push(damage),
            Next::Expired(_) => {}
            Next::End => return (numbers, damages),
        }
    }
}

pub(crate) fn close(journal: Journal) {
    assert!(journal.close(Duration::from_secs(10), &SystemClock));
}

/// Leaves the directory as a killed process would: nothing is closed or marked.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.metadata().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// An observer with a fault.
struct Faulty;

impl Observer for Faulty {
    fn committed(&self, _: &Commit) {
        panic!("a fault of this program, as this test wants it");
    }
}

#[test]
fn a_committer_that_ended_by_a_fault_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(options(dir.path()), Arc::new(SystemClock), Arc::new(Faulty)).unwrap();
    assert!(journal.is_sound());
    let (appender, _driver) = journal.appender();
    let head = Head { kind: Kind::Event, id: [1; 16], time_ms: 1 };
    let _receipt = appender.append(head, b"", |out| out.push(b'x')).unwrap();
    appender.flush();
    let deadline = SystemClock.monotonic() + Duration::from_secs(20);
    while journal.is_sound() {
        assert!(SystemClock.monotonic() < deadline, "never noticed");
        std::thread::yield_now();
    }
    assert!(!journal.close(Duration::from_secs(20), &SystemClock), "and the program doesn't end as if all were well");
}

#[test]
fn a_closed_journal_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(options(dir.path()));
    assert!(journal.close(Duration::from_secs(20), &SystemClock));
    assert!(journal.is_sound());
}
