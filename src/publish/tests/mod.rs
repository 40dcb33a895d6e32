//! The publisher against a Kafka in memory that refuses, fences, loses answers and keeps what was committed.

mod flow;
mod mock;
mod parking;
mod progress;
mod retry;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;

use super::cursor::Standing;
use super::fault::Doubt;
use super::sink::{Care, Session, Sink};
use super::work::{StopAt, Work};
use super::*;
use crate::journal::{Acknowledge, Commit, Entry, Observer, OnDamage};
use crate::record::{Head, Kind, Position};
use crate::time::SystemClock;

/// How long anything that must happen may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a transaction may last where it is to last too long.
const SHORT: Duration = Duration::from_millis(500);

struct Quiet;

impl Observer for Quiet {
    fn committed(&self, _: &Commit) {}
}

fn journal_options(dir: &Path) -> crate::journal::Options {
    crate::journal::Options {
        data_dir: dir.to_path_buf(),
        acknowledge: Acknowledge::Synced,
        max_bytes: 64 << 20,
        segment_bytes: 1 << 20,
        retention: Duration::from_secs(3600),
        on_damage: OnDamage::Skip,
        publishes: true,
    }
}

fn open(dir: &Path) -> Journal {
    Journal::open(journal_options(dir), Arc::new(SystemClock), Arc::new(Quiet)).unwrap()
}

fn id_of(number: u64) -> [u8; 16] {
    u128::from(number).to_be_bytes()
}

/// Appends records with these bodies, numbered from `first`, in one batch. A body that begins with `R` is a reject.
fn append(journal: &Journal, first: u64, bodies: &[&str]) {
    let (appender, mut driver) = journal.appender();
    let mut last = None;
    for (number, body) in (first..).zip(bodies) {
        let kind = if body.starts_with('R') { Kind::Rejected } else { Kind::Event };
        let head = Head { kind, id: id_of(number), time_ms: 1_700_000_000_000 + number };
        last = Some(appender.append(head, b"42", |out| out.extend_from_slice(body.as_bytes())).unwrap());
    }
    let Some(receipt) = last else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::select! {
            result = receipt => { result.unwrap(); }
            () = &mut driver => {}
        }
    });
}

fn options() -> Options {
    Options {
        brokers: vec!["nowhere:1".into()],
        delivery: Delivery::ExactlyOnce,
        events_topic: "events".into(),
        rejected_topic: Some("rejected".into()),
        progress_topic: None,
        encoding: None,
        cloudevents: false,
        partitions: -1,
        replication_factor: -1,
        key: Key::PixelId,
        transaction_timeout: Duration::from_secs(5),
        client: Properties::default(),
    }
}

/// What goes wrong, at the next call of its kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Connect(Code),
    Standing(Code),
    Deliver(Code),
    /// The commit fails, and nothing of it is there.
    CommitLost(Code),
    /// The commit is there, and its answer is lost.
    CommitUnknown(Code),
    /// The commit fails, and meanwhile a twin committed this position.
    Twin(u64),
}

/// The cluster's state.
#[derive(Default)]
struct State {
    committed: Vec<(u64, String)>,
    standing: Option<Standing>,
    fates: VecDeque<Fate>,
    /// Bodies that are refused, with the code.
    refuses: Option<fn(&str) -> Option<Code>>,
    /// From the connection of this number on nothing is refused: between two tries, and in the midst of none.
    relents_at: Option<u32>,
    /// Records that a large batch may have.
    batch: Option<usize>,
    /// Records that are delivered before a transaction has lasted too long.
    in_time: Option<usize>,
    connections: u32,
    aborts: u32,
    commits: u32,
}

#[derive(Clone, Default)]
struct Cluster(Arc<Mutex<State>>);

impl Cluster {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn fate(&self, is: impl Fn(&Fate) -> Option<Code>) -> Result<(), Doubt> {
        let mut state = self.state();
        match state.fates.front().and_then(is) {
            Some(code) => {
                state.fates.pop_front();
                Err(Doubt::code("fate", code))
            }
            None => Ok(()),
        }
    }

    /// Bodies as a consumer sees them.
    fn bodies(&self) -> Vec<String> {
        self.state().committed.iter().map(|(_, body)| body.clone()).collect()
    }
}

impl Sink for Cluster {
    fn connect(&mut self, care: Care) -> Result<Box<dyn Session>, Doubt> {
        self.fate(|fate| if let Fate::Connect(code) = fate { Some(*code) } else { None })?;
        let mut state = self.state();
        state.connections += 1;
        if state.relents_at == Some(state.connections) {
            state.refuses = None;
        }
        drop(state);
        Ok(Box::new(Connection { cluster: self.clone(), sent: Vec::new(), refused: None, care }))
    }
}

struct Connection {
    cluster: Cluster,
    sent: Vec<(u64, String)>,
    refused: Option<(Code, Position)>,
    care: Care,
}

impl Session for Connection {
    fn cluster_id(&self) -> &str {
        "memory"
    }

    fn standing(&self) -> Result<Option<Standing>, Doubt> {
        self.cluster.fate(|fate| if let Fate::Standing(code) = fate { Some(*code) } else { None })?;
        Ok(self.cluster.state().standing.clone())
    }

    fn send(&mut self, entry: &Entry<'_>) -> Result<(), Doubt> {
        let body = String::from_utf8(entry.body.to_vec()).unwrap();
        let refuses = self.cluster.state().refuses;
        if let Some(code) = refuses.and_then(|refuses| refuses(&body)) {
            self.refused.get_or_insert((code, entry.position));
        }
        self.sent.push((entry.position.0, body));
        Ok(())
    }

    fn delivered(&mut self) -> Result<(), Doubt> {
        self.cluster.fate(|fate| if let Fate::Deliver(code) = fate { Some(*code) } else { None })?;
        let batch = self.cluster.state().batch;
        let in_time = self.cluster.state().in_time;
        if in_time.is_some_and(|in_time| self.sent.len() > in_time) {
            std::thread::sleep(SHORT);
            return Err(Doubt::code("delivery", Code::MessageTimedOut));
        }
        if batch.is_some_and(|batch| self.care == Care::Large && self.sent.len() > batch) {
            return Err(Doubt::code("delivery", Code::MessageSizeTooLarge));
        }
        let Some((code, position)) = self.refused else { return Ok(()) };
        let culprit = (self.care == Care::Single).then_some(position);
        Err(Doubt::code("delivery", code).by(culprit))
    }

    fn commit(&mut self, standing: &Standing) -> Result<(), Doubt> {
        self.delivered()?;
        self.cluster.fate(|fate| if let Fate::CommitLost(code) = fate { Some(*code) } else { None })?;
        let twin = self.cluster.state().fates.front().copied();
        if let Some(Fate::Twin(position)) = twin {
            let mut state = self.cluster.state();
            state.fates.pop_front();
            let cursor = KafkaCursor { position: Position(position), incarnation: [9; 16], record_id: [9; 16] };
            state.standing = Some(Standing { cursor, retried: Vec::new() });
            return Err(Doubt::code("commit", Code::ProducerFenced));
        }
        {
            let mut state = self.cluster.state();
            state.committed.append(&mut self.sent);
            state.standing = Some(standing.clone());
            state.commits += 1;
        }
        self.cluster.fate(|fate| if let Fate::CommitUnknown(code) = fate { Some(*code) } else { None })
    }

    fn abort(&mut self) -> Result<(), Doubt> {
        self.cluster.state().aborts += 1;
        self.sent.clear();
        self.refused = None;
        Ok(())
    }

    fn renew(&mut self, care: Care) -> Result<(), Doubt> {
        self.care = care;
        self.abort()
    }

    fn idle(&mut self) {}
}

/// A publisher's work, not begun.
fn work(cluster: &Cluster, journal: &Journal) -> Work {
    Work::new(
        Box::new(cluster.clone()),
        options(),
        identity("test", journal),
        journal.clone(),
        Arc::new(Stats::default()),
        Arc::new(StopAt::never()),
        Arc::new(SystemClock),
        Box::new(|_| {}),
    )
}

/// A publisher on a thread, and what it handed to the side lane.
struct Running {
    stats: Arc<Stats>,
    stop_at: Arc<StopAt>,
    rejects: Arc<Mutex<Vec<String>>>,
    journal: Journal,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(cluster: &Cluster, journal: &Journal) -> Running {
        let (stats, stop_at) = (Arc::new(Stats::default()), Arc::new(StopAt::never()));
        let rejects = Arc::new(Mutex::new(Vec::new()));
        let lane = rejects.clone();
        let mut work = work(cluster, journal);
        (work.stats, work.stop_at) = (stats.clone(), stop_at.clone());
        if cluster.state().in_time.is_some() {
            work.options.transaction_timeout = SHORT;
        }
        work.rejects = Box::new(move |entry| {
            assert_eq!(entry.head.kind, Kind::Rejected);
            lane.lock().unwrap().push(String::from_utf8(entry.body.to_vec()).unwrap());
        });
        let thread = std::thread::spawn(move || work.run());
        Running { stats, stop_at, rejects, journal: journal.clone(), thread: Some(thread) }
    }

    /// Waits until everything durable is dealt with.
    fn settle(&self) {
        until("everything is dealt with", || self.stats.reached() >= self.journal.synced());
    }

    fn stop(mut self) {
        self.stop_at.set(SystemClock.monotonic() + PATIENCE);
        self.journal.wake_readers();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Polls until it is so.
fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = SystemClock.monotonic() + PATIENCE;
    while !is() {
        assert!(SystemClock.monotonic() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
