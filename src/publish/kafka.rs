//! The librdkafka client: every property that we rely on is set here.
//!
//! No decisions: an error is a `Doubt` with its class, and the caller aborts or drops the client.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{Offset, TopicPartitionList};

use super::cursor::{KafkaCursor, Standing};
use super::encoding::Encoder;
use super::fault::{self, Doubt, Fault};
use super::message::{self, headers, key_of};
use super::sink::{Care, Session, Sink};
use super::topics::{ASK, make_sure_of};
use super::wait::{STEPS, WATCHDOG_GRACE, Wait};
use super::within::CALLS;
use super::{Delivery, Options};
use crate::journal::{Entry, Journal};
use crate::record::{Kind, Position};

/// Questions that a new client asks at most: metadata, cluster, topic (and a topic to be made), standing.
const QUESTIONS: u32 = 8;
/// Events of an idle client that are looked at in one go.
const IDLE_EVENTS: usize = 64;
/// How long a failed connection is asked for its reason.
const LOOK: Duration = Duration::from_millis(100);

/// The library's logs of what its calls return as errors, too; and of properties that are only for producers.
const TOLD: [&str; 4] = ["TXNERR", "GETPID", "CONFWARN", "FATAL"];
/// Bytes of a small batch.
const SMALL: &str = "65536";

/// What librdkafka told aside, until the next transaction.
#[derive(Default)]
struct Noted {
    /// The first delivery that failed, and the first that failed because of another.
    failed: Option<Code>,
    aftermath: Option<Code>,
    /// Which record failed first.
    record: Option<Position>,
    /// Credentials or TLS refused: calls only time out then.
    access: Option<Doubt>,
}

impl Noted {
    fn is_clean(&self) -> bool {
        self.failed.is_none() && self.aftermath.is_none()
    }
}

#[derive(Clone, Default)]
struct Context(Arc<Mutex<Noted>>);

impl Context {
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Context {
    /// What a call or a report tells as well, and what we set on purpose, is only for who looks for it.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        use RDKafkaLogLevel::{Alert, Critical, Emerg, Error, Warning};
        if matches!(level, Emerg | Alert | Critical | Error | Warning) && !TOLD.contains(&facility) {
            tracing::warn!(target: "librdkafka", facility, "{}", message.escape_debug());
        } else {
            tracing::debug!(target: "librdkafka", facility, "{}", message.escape_debug());
        }
    }

    fn error(&self, error: KafkaError, _: &str) {
        let doubt = Doubt::of("connecting", &error);
        if doubt.fault == Fault::Authentication {
            self.noted().access.get_or_insert(doubt);
        }
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    /// The record's position.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, position: usize) {
        if let Err((error, _)) = result {
            let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
            let mut noted = self.noted();
            if fault::is_aftermath(code) {
                noted.aftermath.get_or_insert(code);
            } else if noted.failed.is_none() {
                (noted.failed, noted.record) = (Some(code), Some(Position(position as u64)));
            }
        }
    }
}

/// The cluster of the config.
pub(super) struct Cluster {
    options: Options,
    /// `transactional.id` and `group.id`.
    identity: String,
    journal: Journal,
    /// Made once a run: a registry that goes away then changes nothing.
    encoder: Option<Arc<Encoder>>,
}

impl Cluster {
    pub(super) fn new(options: Options, identity: String, journal: Journal) -> Cluster {
        Cluster { options, identity, journal, encoder: None }
    }

    fn encoder(&mut self) -> Result<Option<Arc<Encoder>>, Doubt> {
        if let (Some(encoding), None) = (&self.options.encoding, &self.encoder) {
            let encoder = Encoder::connect(encoding, &self.options.events_topic, Kind::Event)?;
            self.encoder = Some(Arc::new(encoder));
        }
        Ok(self.encoder.clone())
    }
}

impl Sink for Cluster {
    fn connect(&mut self, care: Care) -> Result<Box<dyn Session>, Doubt> {
        let encoder = self.encoder()?;
        let (options, identity, journal) = (self.options.clone(), self.identity.clone(), self.journal.clone());
        // Each of its questions has a limit of its own; this is for those that the library doesn't keep to.
        let limit = QUESTIONS * ASK + 4 * self.options.transaction_timeout + WATCHDOG_GRACE;
        let client = within("connecting", limit, move || Client::connect(&options, &identity, &journal, care));
        Ok(Box::new(Client { encoder, ..client? }))
    }
}

/// The address and what the operator added.
pub(super) fn base(options: &Options) -> ClientConfig {
    let mut base = ClientConfig::new();
    // A topic is made here, as configured, or not at all: else the broker makes one when it is asked for it.
    base.set("bootstrap.servers", options.brokers.join(",")).set("allow.auto.create.topics", "false");
    for (name, property) in options.client.iter() {
        base.set(name, property.expose());
    }
    base
}

/// A producer's properties, but for its identity.
pub(super) fn producer(base: &ClientConfig, options: &Options) -> ClientConfig {
    let mut producer = base.clone();
    producer
        .set("message.timeout.ms", options.transaction_timeout.as_millis().to_string())
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("queue.buffering.max.kbytes", "32768")
        .set("queue.buffering.max.messages", "0")
        .set("delivery.report.only.error", "true");
    if !options.client.has_any(&["linger.ms", "queue.buffering.max.ms"]) {
        producer.set("linger.ms", "5");
    }
    if !options.client.has_any(&["compression.type", "compression.codec"]) {
        producer.set("compression.type", "lz4");
    }
    producer
}

/// A connected client.
struct Client {
    options: Options,
    identity: String,
    producer: Arc<BaseProducer<Context>>,
    /// Never subscribes: it reads the cursor and lends its group's name to the transaction.
    consumer: Arc<BaseConsumer<Context>>,
    context: Context,
    cluster_id: String,
    care: Care,
    /// A transaction has begun.
    open: bool,
    /// `ce_source`, with `kafka.cloudevents`.
    source: Option<String>,
    /// Of values that aren't what lies in the journal.
    encoder: Option<Arc<Encoder>>,
}

impl Client {
    fn connect(options: &Options, identity: &str, journal: &Journal, care: Care) -> Result<Client, Doubt> {
        let (base, context) = (base(options), Context::default());
        let mut consumer = base.clone();
        consumer.set("group.id", identity).set("enable.auto.commit", "false").set("isolation.level", "read_committed");
        let consumer: BaseConsumer<Context> =
            consumer.create_with_context(context.clone()).map_err(|error| Doubt::of("consumer", &error))?;
        if let Err(error) = consumer.fetch_metadata(None, ASK) {
            look_aside(&consumer, LOOK);
            return Err(context.noted().access.take().unwrap_or_else(|| Doubt::of("connecting", &error)));
        }
        let cluster_id = consumer.client().fetch_cluster_id(ASK).unwrap_or_default();
        make_sure_of(&options.events_topic, &base, consumer.client(), options)?;
        let was_exactly_once = journal.cursor().is_some_and(|cursor| cursor.mode == Delivery::ExactlyOnce.word());
        if was_exactly_once && options.delivery == Delivery::AtLeastOnce {
            // What an earlier run left open is decided first, else the cursor says too little.
            let options = Options { delivery: Delivery::ExactlyOnce, ..options.clone() };
            drop(connect_producer(&base, &options, identity, &context, care)?);
            *context.noted() = Noted::default();
        }
        let producer = connect_producer(&base, options, identity, &context, care)?;
        let (options, identity) = (options.clone(), identity.to_owned());
        let (consumer, source) = (Arc::new(consumer), options.cloudevents.then(|| message::source(&identity)));
        let (open, encoder) = (false, None);
        Ok(Client { options, identity, producer, consumer, context, cluster_id, care, open, source, encoder })
    }

    fn is_transactional(&self) -> bool {
        self.options.delivery == Delivery::ExactlyOnce
    }

    /// What went wrong so far, and whether the client is stuck.
    fn check(&self, wait: &mut Wait) -> Result<(), Doubt> {
        let (failed, aftermath, record) = {
            let noted = self.context.noted();
            (noted.failed, noted.aftermath, noted.record)
        };
        if let Some(code) = failed.or(aftermath) {
            let doubt = self.cause_of(code);
            let is_alone = self.care == Care::Single || code == Code::InvalidRecord;
            let culprit = record.filter(|_| is_alone && doubt.fault == Fault::Record);
            return Err(doubt.by(culprit));
        }
        if wait.is_stuck(self.producer.in_flight_count()) {
            return Err(Doubt::code("no delivery report for too long", Code::MessageTimedOut));
        }
        Ok(())
    }

    /// Why a delivery failed. Reports of single records only say that the transaction had failed (purged), or blame the
    /// record (invalid record) for what the partition refused (invalid timestamp): the transaction itself knows.
    fn cause_of(&self, code: Code) -> Doubt {
        if let Some(root) = self.root().filter(|root| root.fault != Fault::Doubt) {
            return root;
        }
        let doubt = Doubt::code("delivery", code);
        if code == Code::InvalidRecord && !self.is_transactional() {
            // Without a transaction there is nobody to ask, and a clock's fault must not park.
            return doubt.into_fault(Fault::Quota);
        }
        doubt
    }

    /// The error of the transaction itself, if it has one.
    fn root(&self) -> Option<Doubt> {
        if !self.is_transactional() {
            return None;
        }
        // Within a transaction this changes nothing: it is refused, with the transaction's own error if it has one.
        let error = self.producer.begin_transaction().err()?;
        (error.rdkafka_error_code() != Some(Code::State)).then(|| Doubt::of("the transaction failed", &error))
    }

    /// Why the cursor could not be sent: records on their way may have failed the transaction before.
    fn why(&mut self, error: Doubt) -> Doubt {
        let root = self.root().filter(|root| root.fault != Fault::Doubt);
        if root.as_ref().is_some_and(|root| root.fault == Fault::Record)
            && let Err(doubt) = self.delivered()
        {
            return doubt;
        }
        self.producer.poll(Duration::ZERO);
        if let Err(doubt) = self.check(&mut Wait::new(&self.options)) {
            return doubt;
        }
        let is_alone = self.producer.in_flight_count() == 0;
        match root {
            Some(root) => root,
            None if error.fault == Fault::CursorPartition && !is_alone => error.into_fault(Fault::Doubt),
            None => error,
        }
    }

    fn offsets(&self, standing: &Standing) -> Result<TopicPartitionList, Doubt> {
        let mut offsets = TopicPartitionList::new();
        let mut element = offsets.add_partition(&self.options.events_topic, 0);
        element
            .set_offset(Offset::Offset(standing.cursor.position.0 as i64))
            .map_err(|error| Doubt::of("the cursor's offset", &error))?;
        element.set_metadata(standing.metadata());
        Ok(offsets)
    }

    fn send_cursor(&self, standing: &Standing) -> Result<(), Doubt> {
        let no_group = || Doubt::text(Fault::Doubt, "no group metadata".into());
        let group = self.consumer.group_metadata().ok_or_else(no_group)?;
        let (producer, offsets) = (self.producer.clone(), self.offsets(standing)?);
        let (doing, timeout) = ("sending the cursor", self.options.transaction_timeout);
        let sent = CALLS.within(timeout + WATCHDOG_GRACE, move || {
            producer.send_offsets_to_transaction(&offsets, &group, timeout).map_err(|error| of_cursor(doing, &error))
        });
        sent.unwrap_or_else(|| Err(Doubt::code(doing, Code::OperationTimedOut).into_fault(Fault::CursorPartition)))
    }

    /// Outside of transactions: by the consumer. Bounded by the client's own limits for session and socket.
    fn commit_cursor(&self, standing: &Standing) -> Result<(), Doubt> {
        let (consumer, offsets) = (self.consumer.clone(), self.offsets(standing)?);
        let doing = "committing the cursor";
        within(doing, self.options.transaction_timeout + ASK + WATCHDOG_GRACE, move || {
            consumer.commit(&offsets, CommitMode::Sync).map_err(|error| of_cursor(doing, &error))
        })
    }
}

impl Session for Client {
    fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    fn standing(&self) -> Result<Option<Standing>, Doubt> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition(&self.options.events_topic, 0);
        let doing = "reading the cursor";
        let consumer = self.consumer.clone();
        let answer = within(doing, ASK + WATCHDOG_GRACE, move || {
            consumer.committed_offsets(asked, ASK).map_err(|error| of_cursor(doing, &error))
        })?;
        let Some(element) = answer.find_partition(&self.options.events_topic, 0) else { return Ok(None) };
        element.error().map_err(|error| of_cursor(doing, &error))?;
        match element.offset() {
            // An offset that we didn't write is like one of another journal: the journal won't bear it out.
            Offset::Offset(offset) => Ok(Some(Standing::parse(offset, element.metadata()).unwrap_or_else(nowhere))),
            _ => Ok(None),
        }
    }

    /// Waits for room in the client's queue.
    fn send(&mut self, entry: &Entry<'_>) -> Result<(), Doubt> {
        if self.is_transactional() && !self.open {
            self.producer.begin_transaction().map_err(|error| Doubt::of("begin", &error))?;
            self.open = true;
        }
        let encoded = self.encoder.as_ref().map(|encoder| encoder.encode(entry)).transpose()?;
        let mut text = [0; 36];
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&self.options.events_topic, entry.position.0 as usize)
                .payload(encoded.as_deref().unwrap_or(entry.body))
                .timestamp(entry.head.time_ms as i64);
        if let Some(key) = key_of(self.options.key, entry, &mut text) {
            record = record.key(key);
        }
        if let Some(source) = &self.source {
            record = record.headers(headers(source, self.options.encoding.as_ref(), entry));
        }
        let mut wait = Wait::new(&self.options);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((error, back)) if error.rdkafka_error_code() == Some(Code::QueueFull) => {
                    record = back;
                    wait.step();
                    self.producer.poll(Duration::ZERO);
                    self.check(&mut wait)?;
                }
                Err((error, _)) => {
                    // After an earlier record failed, the client refuses them all.
                    self.check(&mut wait)?;
                    let doubt = self.root().unwrap_or_else(|| Doubt::of("sending", &error));
                    return Err(doubt.by(Some(entry.position)));
                }
            }
        }
    }

    /// `flush` would poll in steps of 100 ms.
    fn delivered(&mut self) -> Result<(), Doubt> {
        let mut wait = Wait::new(&self.options);
        while self.producer.in_flight_count() > 0 {
            wait.step();
            self.producer.poll(Duration::ZERO);
            self.check(&mut wait)?;
        }
        self.producer.poll(Duration::ZERO);
        self.check(&mut wait)
    }

    fn commit(&mut self, standing: &Standing) -> Result<(), Doubt> {
        if !self.is_transactional() {
            self.delivered()?;
            return self.commit_cursor(standing);
        }
        if !self.open {
            self.producer.begin_transaction().map_err(|error| Doubt::of("begin", &error))?;
        }
        // While the last records are under way: their coordinator is another, and the transaction holds all or nothing.
        if let Err(error) = self.send_cursor(standing) {
            return Err(self.why(error));
        }
        self.delivered()?;
        self.open = false;
        let (producer, timeout) = (self.producer.clone(), self.options.transaction_timeout);
        within("commit", timeout + WATCHDOG_GRACE, move || {
            producer.commit_transaction(timeout).map_err(|error| Doubt::of("commit", &error))
        })
    }

    fn abort(&mut self) -> Result<(), Doubt> {
        let is_whole = self.producer.in_flight_count() == 0 && self.context.noted().is_clean();
        if is_whole && self.open {
            self.open = false;
            let (producer, timeout) = (self.producer.clone(), self.options.transaction_timeout);
            return within("abort", timeout + WATCHDOG_GRACE, move || {
                producer.abort_transaction(timeout).map_err(|error| Doubt::of("abort", &error))
            });
        }
        self.renew(self.care)
    }

    fn renew(&mut self, care: Care) -> Result<(), Doubt> {
        // A refusal leaves a gap in the producer's sequence, at which the next transaction would fail: a new producer
        // aborts what is open, and has none.
        (self.open, self.care) = (false, care);
        self.producer = connect_producer(&base(&self.options), &self.options, &self.identity, &self.context, care)?;
        *self.context.noted() = Noted::default();
        Ok(())
    }

    fn idle(&mut self) {
        look_aside(&self.consumer, STEPS.0);
        self.producer.poll(Duration::ZERO);
    }
}

/// Serves what waits in a consumer's queue: broker errors, of which one more comes with each lost connection. Within
/// no time at all a poll serves only the first, which is seldom the one that tells why.
fn look_aside(consumer: &BaseConsumer<Context>, time: Duration) {
    for _ in 0..IDLE_EVENTS {
        if consumer.poll(time).is_none() {
            return;
        }
    }
}

/// A producer for `options.delivery`; a transactional one has aborted what an earlier one left open.
fn connect_producer(
    base: &ClientConfig,
    options: &Options,
    identity: &str,
    context: &Context,
    care: Care,
) -> Result<Arc<BaseProducer<Context>>, Doubt> {
    let (timeout, mut config) = (options.transaction_timeout, producer(base, options));
    match care {
        // An operator's own size is taken for small.
        Care::Small if !options.client.has_any(&["batch.size"]) => config.set("batch.size", SMALL),
        Care::Single => config.set("batch.num.messages", "1"),
        Care::Large | Care::Small => &mut config,
    };
    if options.delivery == Delivery::ExactlyOnce {
        config.set("transactional.id", identity).set("transaction.timeout.ms", timeout.as_millis().to_string());
    }
    let producer: BaseProducer<Context> =
        config.create_with_context(context.clone()).map_err(|error| Doubt::of("producer", &error))?;
    let producer = Arc::new(producer);
    if options.delivery == Delivery::ExactlyOnce {
        let (producer, doing) = (producer.clone(), "init_transactions");
        within(doing, 2 * timeout + WATCHDOG_GRACE, move || {
            producer.init_transactions(2 * timeout).map_err(|error| Doubt::of(doing, &error))
        })?;
    }
    Ok(producer)
}

/// A call of the library that is given up after `limit`, whatever it says itself.
fn within<R: Send + 'static>(
    doing: &str,
    limit: Duration,
    call: impl FnOnce() -> Result<R, Doubt> + Send + 'static,
) -> Result<R, Doubt> {
    let gave_up = || Err(Doubt::code(doing, Code::OperationTimedOut));
    CALLS.within(limit, call).unwrap_or_else(gave_up)
}

/// An error of the calls that go to the group's coordinator.
fn of_cursor(doing: &str, error: &KafkaError) -> Doubt {
    let doubt = Doubt::of(doing, error);
    if doubt.fault == Fault::Doubt { doubt.into_fault(Fault::CursorPartition) } else { doubt }
}

fn nowhere() -> Standing {
    let cursor = KafkaCursor { position: Position(0), incarnation: [0; 16], record_id: [0; 16] };
    Standing { cursor, retried: Vec::new() }
}
