//! Journal to Kafka, exactly once. Config section `kafka.*`; metrics `publish_*`.
//!
//! One thread (`work`). Connect: a producer with the journal's own `transactional.id`, the topic, `init_transactions`,
//! the cursor in Kafka checked against the journal (`cursor`). Then transaction by transaction (`refusal`), each with
//! its records and the new cursor; after its commit the local copy is fsynced. Any doubt drops the client and connects
//! again: what the cursor in Kafka says then is what happened. Only a refusal of a record for its size or content is
//! handled within a session: tried in parts until one record is refused alone, which is parked (`parked`). Events are
//! sent as they lie in the journal, and nothing is parsed, unless `kafka.format` wants another `encoding`, whose
//! schemas are in the `schema_registry`. Rejected records have a side lane (`rejects`), and so have reports of what is
//! complete (`progress`, with the workers' word by `frontier`).
//!
//! `retry` offers parked records again. `sink` is the seam to Kafka, `kafka` the client library behind it, `fault` the
//! one table of its error codes.

mod ahead;
pub mod ask;
pub mod cursor;
mod encoding;
mod fault;
pub mod frontier;
mod kafka;
mod message;
pub mod parked;
pub mod progress;
pub mod properties;
mod refusal;
mod rejects;
pub mod retry;
mod room;
mod schema_registry;
mod side;
mod sink;
mod stats;
#[cfg(test)]
mod tests;
mod topics;
mod wait;
mod within;
mod work;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cursor::KafkaCursor;
pub use encoding::{Encoding, Format};
use frontier::Frontier;
use properties::Properties;
use rejects::Lane;
pub use schema_registry::SchemaRegistry;
pub use stats::{Cause, ErrorKind, Stats};
use work::{StopAt, Work};

use crate::journal::{Cursor, Journal};
use crate::time::Clock;

/// `kafka.delivery`: what a crash may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// Records and cursor in one transaction.
    ExactlyOnce,
    /// The cursor after the records: doubles are possible, and share their `record_id`.
    AtLeastOnce,
}

impl Delivery {
    /// The word of the config and of the local copy.
    pub fn word(self) -> &'static str {
        match self {
            Delivery::ExactlyOnce => "exactly_once",
            Delivery::AtLeastOnce => "at_least_once",
        }
    }
}

/// `kafka.key`: what partitions go by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// The pixel: its records keep their order.
    PixelId,
    /// The record: hot pixels spread over all partitions.
    RecordId,
}

/// How records are published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// `kafka.brokers`; empty: nothing is published.
    pub brokers: Vec<String>,
    /// `kafka.delivery`.
    pub delivery: Delivery,
    /// `kafka.events_topic`.
    pub events_topic: String,
    /// `kafka.rejected_topic`; `None`: rejects are passed over.
    pub rejected_topic: Option<String>,
    /// `kafka.progress_topic`; `None`: nothing is reported.
    pub progress_topic: Option<String>,
    /// `kafka.partitions` of topics that are made; -1: the broker's own.
    pub partitions: i32,
    /// `kafka.replication_factor` of topics that are made; -1: the broker's own.
    pub replication_factor: i32,
    /// `kafka.key`.
    pub key: Key,
    /// `kafka.format` and `kafka.schema_registry.*`; `None`: values are what lies in the journal.
    pub encoding: Option<Encoding>,
    /// `kafka.cloudevents`: records have the headers of a CloudEvent.
    pub cloudevents: bool,
    /// `kafka.transaction_timeout`.
    pub transaction_timeout: Duration,
    /// `kafka.client`: further librdkafka properties.
    pub client: Properties,
}

impl Options {
    /// What the journal keeps of a committed cursor.
    fn local_copy(&self, cursor: &KafkaCursor, cluster_id: &str) -> Cursor {
        Cursor {
            position: cursor.position,
            incarnation: cursor.incarnation,
            record_id: cursor.record_id,
            cluster_id: cluster_id.to_owned(),
            events_topic: self.events_topic.clone(),
            rejected_topic: self.rejected_topic.clone().unwrap_or_default(),
            mode: self.delivery.word().into(),
        }
    }
}

/// `transactional.id` and `group.id` of a journal.
fn identity(node_id: &str, journal: &Journal) -> String {
    format!("pixelgate.{node_id}.{}", crate::journal::hex::encode(&journal.id()))
}

/// What reports progress, if that is wanted.
fn reporter(
    options: &Options,
    node_id: &str,
    journal: &Journal,
    stats: &Arc<Stats>,
    clock: &Arc<dyn Clock>,
) -> Option<progress::Worker> {
    let topic = options.progress_topic.clone()?;
    let begin = progress::promised(journal.data_dir(), clock.now());
    stats.reports_progress.store(true, Relaxed);
    Some(progress::Worker {
        options: options.clone(),
        topic,
        node_id: node_id.to_owned(),
        journal: journal.clone(),
        stats: stats.clone(),
        clock: clock.clone(),
        frontier: Arc::new(Frontier::new(begin)),
    })
}

/// The running publisher.
pub struct Publisher {
    /// Figures.
    pub stats: Arc<Stats>,
    stop_at: Arc<StopAt>,
    journal: Journal,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// What workers join if progress is reported.
    pub frontier: Option<Arc<Frontier>>,
    progress: Option<progress::Lane>,
}

impl Publisher {
    /// Starts the thread. Kafka need not be there.
    pub fn start(
        options: Options,
        node_id: &str,
        journal: Journal,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Publisher> {
        let (stats, stop_at) = (Arc::new(Stats::default()), Arc::new(StopAt::never()));
        let identity = identity(node_id, &journal);
        let cluster = kafka::Cluster::new(options.clone(), identity.clone(), journal.clone());
        let mut lane = Lane::start(&options, &identity, stats.clone(), clock.clone())?;
        let reporter = reporter(&options, node_id, &journal, &stats, &clock);
        let work = Work::new(
            Box::new(cluster),
            options,
            identity,
            journal,
            stats,
            stop_at,
            clock,
            Box::new(move |entry| {
                if let Some(lane) = &mut lane {
                    lane.offer(entry);
                }
            }),
        );
        let mut publisher = Publisher::spawn(work)?;
        publisher.frontier = reporter.as_ref().map(|reporter| reporter.frontier.clone());
        publisher.progress = reporter.map(progress::Lane::start).transpose()?;
        Ok(publisher)
    }

    fn spawn(work: Work) -> std::io::Result<Publisher> {
        let (stats, stop_at, journal) = (work.stats.clone(), work.stop_at.clone(), work.journal.clone());
        let thread = std::thread::Builder::new().name("publisher".into()).spawn(move || work.run())?;
        Ok(Publisher { stats, stop_at, journal, thread: Mutex::new(Some(thread)), frontier: None, progress: None })
    }

    /// Whether the thread does its work or was told to stop. Otherwise it ended by a fault of this program.
    pub fn is_sound(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        self.stop_at.is_set() || !thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Whether the thread no longer publishes, until a person mends something and starts it anew.
    pub fn is_at_end(&self) -> bool {
        self.stats.is_at_end()
    }

    /// Publishes what is left, as long as it goes well and `timeout` lasts, and ends the thread. `false` if a
    /// transaction was in hand even then: Kafka decides it, and the next start asks.
    pub fn stop(&self, timeout: Duration, clock: &dyn Clock) -> bool {
        let deadline = clock.monotonic() + timeout;
        let stopped = self.stop_publishing(deadline, clock);
        if let Some(progress) = &self.progress {
            progress.stop(deadline.saturating_sub(clock.monotonic()));
        }
        stopped
    }

    fn stop_publishing(&self, deadline: Duration, clock: &dyn Clock) -> bool {
        self.stop_at.set(deadline);
        self.journal.wake_readers();
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return true };
        while !thread.is_finished() {
            if !self.stats.has_in_hand() {
                // It is connecting, with nothing in hand: there is nothing to wait for.
                return true;
            }
            if clock.monotonic() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        thread.join().is_ok()
    }
}
