//! Journal to Kafka, exactly once. Config section `kafka.*`; metrics `publish_*`.
//!
//! One thread. Connect: producer with the journal's own `transactional.id`, topics, `init_transactions`, the cursor in
//! Kafka checked against the journal (`cursor`). Then: a transaction of at most [`TRANSACTION_TIME`] or
//! [`TRANSACTION_BYTES`], which carries the records and the new cursor; after its commit the local copy is fsynced.
//! Any doubt drops the client and connects again: what the cursor in Kafka says then is what happened. Records are
//! sent as they lie in the journal; nothing is parsed.

pub mod cursor;
mod kafka;
pub mod properties;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cursor::{Choice, KafkaCursor};
use kafka::{Client, Doubt, Fault};
use properties::Properties;

use crate::journal::{Batch, Cursor, Journal, Next, OnDamage, Reader};
use crate::record::{Kind, Position};
use crate::time::Clock;

/// Longest a transaction gathers records.
const TRANSACTION_TIME: Duration = Duration::from_millis(500);
/// Most bytes of records in a transaction.
const TRANSACTION_BYTES: u64 = 4 * 1024 * 1024;
/// How long to wait for new records before looking around.
const IDLE: Duration = Duration::from_millis(200);
/// First and longest pause before connecting again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How long rejected records are passed over after their topic failed: they are best effort, events are not.
const REJECTS_PAUSE: Duration = Duration::from_secs(300);

/// How records are published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// `kafka.brokers`; empty: nothing is published.
    pub brokers: Vec<String>,
    /// `kafka.events_topic`.
    pub events_topic: String,
    /// `kafka.rejected_topic`; `None`: rejects are passed over.
    pub rejected_topic: Option<String>,
    /// `kafka.partitions` of topics that are made; -1: the broker's own.
    pub partitions: i32,
    /// `kafka.replication_factor` of topics that are made; -1: the broker's own.
    pub replication_factor: i32,
    /// `kafka.transaction_timeout`.
    pub transaction_timeout: Duration,
    /// `kafka.client`: further librdkafka properties.
    pub client: Properties,
}

/// What keeps records from leaving.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Cause {
    /// Nothing does.
    None = 0,
    /// No answer.
    Unreachable,
    /// Credentials are refused.
    Authentication,
    /// Rights are missing.
    Authorization,
    /// The topic is not there and may not be made.
    UnknownTopic,
    /// The partition that carries the cursor is not there.
    CursorPartition,
    /// Kafka refuses our time stamps.
    Clock,
    /// A quota.
    Quota,
    /// Another process publishes with this identity.
    Fenced,
    /// `journal.on_damage = "stop"`.
    Damage,
    /// A record is refused alone, for its size or content.
    Record,
}

/// Figures.
#[derive(Debug, Default)]
pub struct Stats {
    blocked: AtomicU64,
    /// Clients that were dropped and made again.
    pub restarts: AtomicU64,
    /// Unix milliseconds of the last commit.
    pub last_success_ms: AtomicU64,
}

impl Stats {
    /// The words of all causes, as metric labels.
    pub const CAUSES: [(&'static str, Cause); 9] = [
        ("unreachable", Cause::Unreachable),
        ("authentication", Cause::Authentication),
        ("authorization", Cause::Authorization),
        ("unknown_topic", Cause::UnknownTopic),
        ("cursor_partition", Cause::CursorPartition),
        ("clock", Cause::Clock),
        ("quota", Cause::Quota),
        ("fenced", Cause::Fenced),
        ("damage", Cause::Damage),
    ];

    /// Whether publishing is held up by this.
    pub fn is_blocked_by(&self, cause: Cause) -> bool {
        self.blocked.load(Ordering::Relaxed) == cause as u64
    }

    fn block(&self, cause: Cause) {
        self.blocked.store(cause as u64, Ordering::Relaxed);
    }
}

/// The running publisher.
pub struct Publisher {
    /// Figures.
    pub stats: Arc<Stats>,
    stop: Arc<AtomicBool>,
    journal: Journal,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Publisher {
    /// Starts the thread. Kafka need not be there.
    pub fn start(
        options: Options,
        node_id: &str,
        journal: Journal,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Publisher> {
        let (stats, stop) = (Arc::new(Stats::default()), Arc::new(AtomicBool::new(false)));
        let identity = format!("pixelgate.{node_id}.{}", crate::journal::hex::encode(&journal.id()));
        let work = Work {
            options,
            identity,
            journal: journal.clone(),
            stats: stats.clone(),
            stop: stop.clone(),
            clock,
            attempted: None,
            seen: None,
            fenced: false,
            rejects_from: Duration::ZERO,
        };
        let thread = std::thread::Builder::new().name("publisher".into()).spawn(move || work.run())?;
        Ok(Publisher { stats, stop, journal, thread: Mutex::new(Some(thread)) })
    }

    /// Ends the transaction in hand and the thread. `false` if that took longer than `timeout`: the transaction is
    /// then decided by Kafka, and the next start asks it.
    pub fn stop(&self, timeout: Duration, clock: &dyn Clock) -> bool {
        self.stop.store(true, Ordering::Release);
        self.journal.wake_readers();
        let deadline = clock.monotonic() + timeout;
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return true };
        while !thread.is_finished() {
            if clock.monotonic() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        thread.join().is_ok()
    }
}

struct Work {
    options: Options,
    identity: String,
    journal: Journal,
    stats: Arc<Stats>,
    stop: Arc<AtomicBool>,
    clock: Arc<dyn Clock>,
    /// The newest cursor that this process tried to commit: telling our own commits from a twin's.
    attempted: Option<KafkaCursor>,
    /// What Kafka had when it was last asked, or confirmed.
    seen: Option<KafkaCursor>,
    /// A newer producer of this identity was there, and it is not known yet whether that was ourselves.
    fenced: bool,
    /// Rejected records are passed over until then, after their topic failed.
    rejects_from: Duration,
}

/// Why a session ended without an error.
enum End {
    Stopped,
    /// Nothing will change without a person.
    Blocked(Cause),
}

impl Work {
    fn run(mut self) {
        let mut pause = BACK_OFF.0;
        loop {
            match self.session() {
                Ok(End::Stopped) => return,
                Ok(End::Blocked(cause)) => {
                    self.stats.block(cause);
                    return self.wait_for_stop();
                }
                Err(doubt) => {
                    let cause = doubt.cause();
                    self.fenced |= doubt.is_fenced();
                    if doubt.of_rejected {
                        self.rejects_from = self.clock.monotonic() + REJECTS_PAUSE;
                    }
                    if self.stats.is_blocked_by(Cause::None) {
                        pause = BACK_OFF.0; // it had worked
                    }
                    // By our own time-out, mostly; the next session finds out.
                    if cause != Cause::Fenced {
                        self.stats.block(cause);
                    }
                    self.stats.restarts.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(?cause, error = %doubt, "publishing: connecting again");
                    if self.pause(pause) {
                        return;
                    }
                    pause = (pause * 2).min(BACK_OFF.1);
                }
            }
        }
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Waits; `true` if it is time to stop.
    fn pause(&self, time: Duration) -> bool {
        let deadline = self.clock.monotonic() + time;
        while !self.stopping() && self.clock.monotonic() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.stopping()
    }

    fn wait_for_stop(&self) {
        while !self.pause(IDLE) {}
    }

    /// One client's life.
    fn session(&mut self) -> Result<End, Doubt> {
        let rejects = self.clock.monotonic() >= self.rejects_from;
        let client = Client::connect(&self.options, &self.identity, rejects)?;
        let kafka = client.cursor()?;
        let ours = kafka.is_none() || [self.attempted, self.seen, self.local_as_kafka()].contains(&kafka);
        if self.fenced && !ours {
            tracing::error!(
                identity = self.identity,
                "publishing: another process publishes with this node's identity (a cloned data directory?); \
                 this one stops publishing and keeps accepting. End one of them and restart this one"
            );
            return Ok(End::Blocked(Cause::Fenced));
        }
        let Choice { position, notice } = cursor::choose(kafka.as_ref(), self.journal.cursor().as_ref(), &self.journal)
            .map_err(|error| Doubt::journal(&error))?;
        if let Some(notice) = notice {
            tracing::warn!(%position, "publishing: {notice}");
        }
        self.fenced = false;
        self.seen = kafka;
        let mut reader = self.journal.reader(position);
        while !self.stopping() {
            self.journal.wait(reader.position(), IDLE);
            if let Some(end) = self.transaction(&client, &mut reader)? {
                return Ok(end);
            }
            // Not before: a connection alone shows nothing.
            self.stats.block(Cause::None);
        }
        Ok(End::Stopped)
    }

    fn local_as_kafka(&self) -> Option<KafkaCursor> {
        self.journal.cursor().map(|cursor| KafkaCursor {
            position: cursor.position,
            incarnation: cursor.incarnation,
            record_id: cursor.record_id,
        })
    }

    /// Publishes what is there, in one transaction. Nothing there: nothing is begun.
    fn transaction(&mut self, client: &Client, reader: &mut Reader) -> Result<Option<End>, Doubt> {
        let (begun, mut bytes, mut last) = (self.clock.monotonic(), 0, None);
        let mut open = false;
        while bytes < TRANSACTION_BYTES && self.clock.monotonic().saturating_sub(begun) < TRANSACTION_TIME {
            match reader.read_next().map_err(|error| Doubt::journal(&error))? {
                Next::Batch(batch) => {
                    if !open {
                        client.begin()?;
                        open = true;
                    }
                    bytes += self.send(client, &batch)?;
                    last = last_of(&batch).or(last);
                }
                Next::Damage(damage) => {
                    let noted = self.journal.damaged(&damage);
                    tracing::error!(%damage, copied = noted.is_ok(), "journal: damage");
                    if self.journal.on_damage() == OnDamage::Stop {
                        if open {
                            client.abort();
                        }
                        return Ok(Some(End::Blocked(Cause::Damage)));
                    }
                }
                Next::Expired(position) => tracing::warn!(%position, "publishing: older records have expired"),
                Next::End => break,
            }
        }
        let Some(cursor) = last else { return Ok(None) };
        client.wait_delivered()?;
        self.attempted = Some(cursor);
        client.commit(&cursor)?;
        self.seen = Some(cursor);
        self.stats.last_success_ms.store(self.clock.now().0, Ordering::Relaxed);
        let local = Cursor {
            position: cursor.position,
            incarnation: cursor.incarnation,
            record_id: cursor.record_id,
            cluster_id: client.cluster_id().to_owned(),
            events_topic: self.options.events_topic.clone(),
            rejected_topic: self.options.rejected_topic.clone().unwrap_or_default(),
            mode: "exactly_once".into(),
        };
        // A full or read-only disk: Kafka has the cursor, the copy is only behind, and nothing is removed meanwhile.
        if let Err(error) = self.journal.advance(local) {
            tracing::warn!(%error, "publishing: the local copy of the cursor can't be written");
        }
        Ok(None)
    }

    fn send(&self, client: &Client, batch: &Batch) -> Result<u64, Doubt> {
        let mut bytes = 0;
        for entry in batch.entries() {
            let topic = match entry.head.kind {
                Kind::Event => Some(self.options.events_topic.as_str()),
                Kind::Rejected => client.rejected_topic(),
            };
            if let Some(topic) = topic {
                client.send(topic, &entry)?;
                bytes += entry.body.len() as u64;
            }
        }
        Ok(bytes)
    }
}

fn last_of(batch: &Batch) -> Option<KafkaCursor> {
    let entry = batch.entries().last()?;
    Some(KafkaCursor {
        position: Position(entry.position.0 + 1),
        incarnation: batch.incarnation,
        record_id: entry.head.id,
    })
}

impl Doubt {
    fn cause(&self) -> Cause {
        match self.fault {
            Fault::Doubt => Cause::Unreachable,
            Fault::Fenced => Cause::Fenced,
            Fault::Authentication => Cause::Authentication,
            Fault::Authorization => Cause::Authorization,
            Fault::UnknownTopic => Cause::UnknownTopic,
            Fault::Clock => Cause::Clock,
            Fault::Quota => Cause::Quota,
            Fault::Record => Cause::Record,
        }
    }

    fn is_fenced(&self) -> bool {
        self.fault == Fault::Fenced
    }
}
