//! Reports up to when everything of this node is in Kafka: `kafka.progress_topic`, compacted, one key per node.
//!
//! Its own thread and client beside the transactions, so that trouble with that topic never holds back events. Every
//! round it asks the workers for a moment ([`Frontier`]); when all that was stamped before it lies in the journal, it
//! notes the journal's end; when the publisher has passed that end, the moment is proven, and is reported. A moment is
//! kept on disk before it is reported: the next run stamps nothing earlier, also if the clock was set back meanwhile.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde::{Deserialize, Serialize};

use super::fault::{Doubt, Fault};
use super::frontier::Frontier;
use super::side::{self, Failures};
use super::stats::Stats;
use super::topics::{self, ASK, COMPACTED};
use super::{Options, ask, kafka};
use crate::journal::disk::{Disk, RealDisk};
use crate::journal::{Health, Journal, hex};
use crate::record::Position;
use crate::time::{Clock, Timestamp};

/// `schema` of a report.
pub const SCHEMA: &str = "pixelgate.progress.v1";
/// How often workers are asked; what that proves is reported at once, and anew if nothing new is proven in twice this.
const INTERVAL: Duration = Duration::from_secs(5);
/// How often the round in hand is looked at.
const STEP: Duration = Duration::from_millis(100);
/// Pause before the lane connects again, and how often trouble is said.
const RETRY: Duration = Duration::from_secs(10);
const SAY: Duration = Duration::from_secs(300);
/// The last report of a run may take so long.
const LAST: Duration = Duration::from_secs(1);
/// Rounds whose records are in the journal and not yet in Kafka. When there are more, every second is forgotten: after
/// a long outage progress comes in larger steps.
const ROUNDS_MAX: usize = 128;
/// A clock that is set back between two runs by more than this was wrong before: its claims are given up.
const BELIEVED: Duration = Duration::from_secs(3600);

/// The rounds and what they have proven.
#[derive(Default)]
pub(super) struct Rounds {
    /// Asked of the workers.
    asked: Option<Timestamp>,
    /// Everything before the moment lies before the position.
    settled: VecDeque<(Timestamp, Position)>,
    proven: Option<Timestamp>,
}

impl Rounds {
    pub(super) fn ask(&mut self, moment: Timestamp) {
        self.asked = Some(moment);
    }

    pub(super) fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    /// What was asked for is settled, and the journal's end is now there.
    pub(super) fn settle(&mut self, end: Position) {
        let Some(moment) = self.asked.take() else { return };
        self.settled.push_back((moment, end));
        if self.settled.len() > ROUNDS_MAX {
            let mut number = 0;
            self.settled.retain(|_| {
                number += 1;
                number % 2 == 1
            });
        }
    }

    /// The publisher has dealt with everything before a position. The latest moment that this proves, if any yet.
    pub(super) fn reach(&mut self, reached: Position) -> Option<Timestamp> {
        while let Some((moment, _)) = self.settled.front().filter(|(_, end)| *end <= reached) {
            self.proven = Some(*moment);
            self.settled.pop_front();
        }
        self.proven
    }
}

/// What was reported last, on disk.
#[derive(Serialize, Deserialize)]
struct Kept {
    complete_until_ms: u64,
}

fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("progress.json")
}

/// The moment before which this run must not stamp anything, by what earlier runs reported.
pub(super) fn promised(data_dir: &Path, now: Timestamp) -> Timestamp {
    let kept = match RealDisk.read(&file(data_dir)) {
        Ok(bytes) => serde_json::from_slice::<Kept>(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Timestamp(0),
        Err(error) => Err(error),
    };
    let moment = match kept {
        Ok(kept) => Timestamp(kept.complete_until_ms),
        Err(error) => {
            tracing::warn!(%error, "progress: what was reported last can't be read");
            return Timestamp(0);
        }
    };
    if moment.0.saturating_sub(now.0) <= BELIEVED.as_millis() as u64 {
        return moment;
    }
    let reported = moment.to_rfc3339();
    tracing::error!(
        reported,
        "progress: the clock is more than an hour behind what was reported as complete; reports begin again with it, \
         and records may come that are older than the last one said"
    );
    Timestamp(0)
}

/// The running lane.
pub(super) struct Lane {
    stop: Sender<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Lane {
    /// Starts it.
    pub(super) fn start(worker: Worker) -> io::Result<Lane> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("progress".into()).spawn(move || worker.run(&stopped))?;
        Ok(Lane { stop, thread: Mutex::new(Some(thread)) })
    }

    /// A last report, if it goes well within `timeout`; a lane that is just connecting is left to its fate.
    pub(super) fn stop(&self, timeout: Duration) {
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let _ = self.stop.send(());
        side::join_within(&thread, timeout.min(3 * LAST));
    }
}

struct Client {
    producer: BaseProducer<Failures>,
    failed: Failures,
}

impl Client {
    fn connect(options: &Options, topic: &str) -> Result<Client, Doubt> {
        let (base, failed) = (kafka::base(options), Failures::default());
        let mut config = kafka::producer(&base, options);
        // Plain, as for rejected records: a report that is sent twice says the same.
        config.set("enable.idempotence", "false");
        let producer: BaseProducer<Failures> =
            config.create_with_context(failed.clone()).map_err(|error| Doubt::of("producer", &error))?;
        topics::make_sure_of_as(topic, &COMPACTED, &base, producer.client(), options)?;
        Ok(Client { producer, failed })
    }

    /// Looks after what was sent.
    fn check(&self) -> Result<(), Doubt> {
        self.producer.poll(Duration::ZERO);
        let failed = self.failed.take();
        failed.map_or(Ok(()), |code| Err(Doubt::code("delivery", code)))
    }

    /// Waits for what was sent, at most `limit`; by steps, not by the library's own waits: see `within`.
    fn flush(&self, limit: Duration) -> Result<(), Doubt> {
        let mut waited = Duration::ZERO;
        while self.producer.in_flight_count() > 0 && waited < limit {
            std::thread::sleep(Duration::from_millis(1));
            waited += Duration::from_millis(1);
            self.check()?;
        }
        self.check()?;
        let done = self.producer.in_flight_count() == 0;
        if done { Ok(()) } else { Err(Doubt::code("delivery", Code::MessageTimedOut)) }
    }
}

/// What the lane's thread has.
pub(super) struct Worker {
    pub(super) options: Options,
    pub(super) topic: String,
    pub(super) node_id: String,
    pub(super) journal: Journal,
    pub(super) stats: Arc<Stats>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) frontier: Arc<Frontier>,
}

/// When what is due, and what is on disk.
struct Due {
    round: Duration,
    report: Duration,
    connect: Duration,
    kept: Option<Timestamp>,
    said: Option<Duration>,
    /// The topic's policy was looked at, which is done once a run.
    looked: bool,
}

impl Worker {
    fn run(self, stopped: &Receiver<()>) {
        let now = self.clock.monotonic();
        let mut due = Due { round: now, report: now, connect: now, kept: None, said: None, looked: false };
        let (mut rounds, mut client) = (Rounds::default(), None);
        loop {
            let stopping = !matches!(stopped.recv_timeout(STEP), Err(RecvTimeoutError::Timeout));
            if stopping {
                return self.last(&mut rounds, client, &mut due);
            }
            let (proven, now) = (self.turn(&mut rounds), self.clock.monotonic());
            if client.is_none() && now >= due.connect {
                due.connect = now + RETRY;
                client = self.told(Client::connect(&self.options, &self.topic), &mut due);
                if client.is_some() && !std::mem::replace(&mut due.looked, true) {
                    self.look_at_policy();
                }
            }
            if now >= due.round && !rounds.is_asking() {
                due.round = now + INTERVAL;
                self.ask(&mut rounds);
            }
            let Some(connected) = &client else { continue };
            let report = proven.filter(|moment| now >= due.report || due.kept < Some(*moment));
            let sent = report.map_or(Ok(()), |moment| self.report(connected, moment, &mut due));
            if self.told(sent.and_then(|()| connected.check()), &mut due).is_none() {
                client = None;
            }
        }
    }

    fn look_at_policy(&self) {
        let policy = ask::cleanup_policy(&self.options, &self.topic, ASK);
        if let Some(policy) = policy.filter(|policy| policy != "compact") {
            tracing::warn!(
                topic = self.topic,
                cleanup_policy = policy,
                "progress: the topic should be compacted: with its policy the last report of a node that is away may go"
            );
        }
    }

    fn ask(&self, rounds: &mut Rounds) {
        self.frontier.raise(self.clock.now());
        rounds.ask(self.frontier.moment());
    }

    /// Looks how far the rounds are. `None` if nothing may be said (yet).
    fn turn(&self, rounds: &mut Rounds) -> Option<Timestamp> {
        if rounds.is_asking() && self.frontier.is_settled() {
            // In this order: whoever's record has an unknown fate poisoned the journal before he was told so.
            let end = self.journal.written();
            if self.journal.health() != Health::Poisoned {
                rounds.settle(end);
            }
        }
        let proven = rounds.reach(self.stats.reached());
        // Fenced by a twin, or stopped by damage: what this one knows is no longer all.
        proven.filter(|_| !self.stats.is_at_end())
    }

    /// The end of a run: what it has published is complete as of now.
    fn last(&self, rounds: &mut Rounds, client: Option<Client>, due: &mut Due) {
        let Some(client) = client else { return };
        self.ask(rounds);
        let (goal, mut waited) = (self.frontier.moment(), Duration::ZERO);
        let mut proven = self.turn(rounds);
        while proven < Some(goal) && waited < LAST {
            std::thread::sleep(Duration::from_millis(1));
            waited += Duration::from_millis(1);
            proven = self.turn(rounds);
        }
        let Some(moment) = proven else { return };
        let sent = self.report(&client, moment, due).and_then(|()| client.flush(LAST));
        self.told(sent, due);
    }

    fn report(&self, client: &Client, moment: Timestamp, due: &mut Due) -> Result<(), Doubt> {
        due.report = self.clock.monotonic() + 2 * INTERVAL;
        if due.kept < Some(moment) {
            let kept = serde_json::json!(Kept { complete_until_ms: moment.0 }).to_string();
            RealDisk
                .replace(&file(self.journal.data_dir()), kept.as_bytes())
                .map_err(|error| Doubt::text(Fault::Disk, format!("keeping it on disk: {error}")))?;
            due.kept = Some(moment);
        }
        let (stats, now) = (self.journal.stats(), self.clock.now());
        let value = serde_json::json!({
            "schema": SCHEMA,
            "node_id": self.node_id,
            "journal_id": hex::encode(&self.journal.id()),
            "complete_until": moment.to_rfc3339(),
            "reported_at": now.to_rfc3339(),
            "position": stats.publish_position.0,
            "published": stats.counts.published,
            "parked": stats.counts.parked,
            "expired": stats.counts.expired,
            "damaged": stats.counts.damaged,
        });
        let (key, value) = (self.node_id.as_bytes(), value.to_string());
        let record = BaseRecord::to(&self.topic).key(key).payload(value.as_bytes()).timestamp(now.0 as i64);
        client.producer.send(record).map_err(|(error, _)| Doubt::of("sending", &error))?;
        self.stats.complete_until_ms.store(moment.0, Relaxed);
        Ok(())
    }

    /// The value, or trouble that is said now and then.
    fn told<T>(&self, result: Result<T, Doubt>, due: &mut Due) -> Option<T> {
        let doubt = match result {
            Ok(value) => return Some(value),
            Err(doubt) => doubt,
        };
        let now = self.clock.monotonic();
        due.connect = now + RETRY;
        if due.said.is_none_or(|said| now.saturating_sub(said) >= SAY) {
            due.said = Some(now);
            tracing::warn!(error = %doubt, "progress: not reported (events are not concerned); trying again");
        }
        None
    }
}

/// Takes back what a node reported, for good: it is empty and gone.
pub fn retire(options: &Options, topic: &str, node_id: &str) -> Result<(), String> {
    let send = || {
        let client = Client::connect(options, topic)?;
        let tombstone = BaseRecord::<[u8], [u8]>::to(topic).key(node_id.as_bytes());
        client.producer.send(tombstone).map_err(|(error, _)| Doubt::of("sending", &error))?;
        client.flush(options.transaction_timeout)
    };
    send().map_err(|doubt: Doubt| doubt.to_string())
}
