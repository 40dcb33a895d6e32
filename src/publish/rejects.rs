//! The side lane of rejected records: best effort, so that trouble with their topic never holds back events.
//!
//! Its own thread, client and bounded queue. It is handed a record only after the cursor passed it, so that nothing is
//! sent twice; what it can't deliver is counted and gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::encoding::Encoder;
use super::fault::{Doubt, Fault};
use super::side::{self, Failures};
use super::stats::Stats;
use super::topics::make_sure_of;
use super::{Options, kafka, message};
use crate::journal::Entry;
use crate::record::{Kind, Position};
use crate::time::Clock;

/// Records that may wait for the lane: four seconds' worth of what a gateway keeps at most.
const WAITING: usize = 4096;
/// Longest that one call waits for room in a queue that moves.
const PATIENCE: Duration = Duration::from_millis(100);
/// Bytes that the client may hold.
const CLIENT_KBYTES: &str = "4096";
/// Pause before the lane connects again.
const RETRY: Duration = Duration::from_secs(10);
/// Trouble is said once in this time.
const SAY: Duration = Duration::from_secs(300);
/// A look at the client when nothing comes, and a last one at the end.
const IDLE: Duration = Duration::from_millis(200);
const FLUSH: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(1);

/// A record on its way.
struct Reject {
    entry: (crate::record::Head, Vec<u8>, Vec<u8>),
}

/// See the module.
pub(super) struct Lane {
    sender: Option<SyncSender<Reject>>,
    thread: Option<JoinHandle<()>>,
    stats: Arc<Stats>,
    /// The queue was full and did not move: until it does, nothing waits for it.
    stalled: bool,
}

impl Lane {
    /// Starts the lane, if there is a topic for it.
    pub(super) fn start(
        options: &Options,
        identity: &str,
        stats: Arc<Stats>,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Option<Lane>> {
        let Some(topic) = options.rejected_topic.clone() else { return Ok(None) };
        let (sender, receiver) = sync_channel(WAITING);
        let (options, source) = (options.clone(), options.cloudevents.then(|| message::source(identity)));
        let worker = Worker { options, topic, source, receiver, stats: stats.clone(), clock, said: None };
        let thread = std::thread::Builder::new().name("rejects".into()).spawn(move || worker.run())?;
        Ok(Some(Lane { sender: Some(sender), thread: Some(thread), stats, stalled: false }))
    }

    /// Takes a record, or counts it as dropped.
    pub(super) fn offer(&mut self, entry: &Entry<'_>) {
        let Some(sender) = &self.sender else { return };
        let mut reject = Reject { entry: (entry.head, entry.key.to_vec(), entry.body.to_vec()) };
        let mut waited = Duration::ZERO;
        loop {
            match sender.try_send(reject) {
                Ok(()) => return self.stalled = false,
                Err(TrySendError::Full(back)) if !self.stalled && waited < PATIENCE => {
                    reject = back;
                    std::thread::sleep(STEP);
                    waited += STEP;
                }
                Err(_) => {
                    self.stalled = true;
                    self.stats.rejects_dropped.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.sender = None;
        let Some(thread) = self.thread.take() else { return };
        // What it then still holds is best effort.
        side::join_within(&thread, FLUSH);
    }
}

struct Worker {
    options: Options,
    topic: String,
    /// `ce_source`, with `kafka.cloudevents`.
    source: Option<String>,
    receiver: Receiver<Reject>,
    stats: Arc<Stats>,
    clock: Arc<dyn Clock>,
    /// When trouble was said last.
    said: Option<Duration>,
}

impl Worker {
    fn run(mut self) {
        let mut encoder = None;
        let failed = Failures::counted(self.stats.clone(), |stats| &stats.rejects_dropped);
        loop {
            match self.connect(failed.clone(), &mut encoder) {
                Ok(producer) => {
                    if self.serve(&producer, encoder.as_ref(), &failed) {
                        // The end: what is under way has a moment left.
                        let _ = producer.flush(FLUSH);
                        return;
                    }
                }
                Err(doubt) => self.say(&doubt),
            }
            if self.drop_for(RETRY) {
                return;
            }
        }
    }

    /// The encoder is made once.
    fn connect(&self, failed: Failures, encoder: &mut Option<Encoder>) -> Result<BaseProducer<Failures>, Doubt> {
        if let (Some(encoding), None) = (&self.options.encoding, &*encoder) {
            *encoder = Some(Encoder::connect(encoding, &self.topic, Kind::Rejected)?);
        }
        let base = kafka::base(&self.options);
        let mut config = kafka::producer(&base, &self.options);
        // Plain: without transactions there is nothing that a sequence could save.
        config.set("enable.idempotence", "false").set("queue.buffering.max.kbytes", CLIENT_KBYTES);
        let producer: BaseProducer<Failures> =
            config.create_with_context(failed).map_err(|error| Doubt::of("producer", &error))?;
        make_sure_of(&self.topic, &base, producer.client(), &self.options)?;
        Ok(producer)
    }

    /// Sends what comes. `true` at the end, `false` if the client or the topic is no longer usable.
    fn serve(&mut self, producer: &BaseProducer<Failures>, encoder: Option<&Encoder>, failed: &Failures) -> bool {
        loop {
            match self.receiver.recv_timeout(IDLE) {
                Ok(reject) => {
                    if let Err(doubt) = self.send(producer, encoder, &reject) {
                        self.stats.rejects_dropped.fetch_add(1, Ordering::Relaxed);
                        self.say(&doubt);
                        if doubt.fault != Fault::Record {
                            return false;
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return true,
            }
            producer.poll(Duration::ZERO);
            if let Some(code) = failed.take() {
                self.say(&Doubt::code("delivery", code));
            }
        }
    }

    fn send(&self, producer: &BaseProducer<Failures>, encoder: Option<&Encoder>, reject: &Reject) -> Result<(), Doubt> {
        let (head, key, body) = &reject.entry;
        let entry = Entry { position: Position(0), head: *head, key, body };
        let encoded = encoder.map(|encoder| encoder.encode(&entry)).transpose()?;
        let value = encoded.as_deref().unwrap_or(entry.body);
        let mut text = [0; 36];
        let mut record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(&self.topic).payload(value).timestamp(head.time_ms as i64);
        if let Some(key) = message::key_of(self.options.key, &entry, &mut text) {
            record = record.key(key);
        }
        if let Some(source) = &self.source {
            record = record.headers(message::headers(source, self.options.encoding.as_ref(), &entry));
        }
        loop {
            match producer.send(record) {
                Ok(()) => return Ok(()),
                // Deliveries time out, so that there will be room.
                Err((error, back)) if error.rdkafka_error_code() == Some(Code::QueueFull) => {
                    record = back;
                    // Not by the library's own waits: see `within`.
                    std::thread::sleep(STEP);
                    producer.poll(Duration::ZERO);
                }
                Err((error, _)) => return Err(Doubt::of("sending", &error)),
            }
        }
    }

    /// Drops what comes meanwhile. `true` at the end.
    fn drop_for(&mut self, time: Duration) -> bool {
        let mut waited = Duration::ZERO;
        while waited < time {
            match self.receiver.try_recv() {
                Ok(_) => {
                    self.stats.rejects_dropped.fetch_add(1, Ordering::Relaxed);
                }
                Err(std::sync::mpsc::TryRecvError::Empty) => {
                    std::thread::sleep(IDLE);
                    waited += IDLE;
                }
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return true,
            }
        }
        false
    }

    fn say(&mut self, doubt: &Doubt) {
        let now = self.clock.monotonic();
        if self.said.is_none_or(|said| now.saturating_sub(said) >= SAY) {
            self.said = Some(now);
            tracing::warn!(error = %doubt, "publishing: rejected records are dropped (events are not concerned)");
        }
    }
}
