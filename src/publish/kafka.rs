//! The librdkafka client: every property we rely on is set, and its errors are classed by code, never by text.
//!
//! No decisions: an error is a `Doubt` with its class, and the caller drops the client.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{Offset, TopicPartitionList};

use super::Options;
use super::cursor::KafkaCursor;
use crate::journal::Entry;
use crate::record::Position;

/// How long calls that only ask may take.
const ASK: Duration = Duration::from_secs(10);
/// No delivery report for this long with records under way: the client is stuck and is made again.
const WATCHDOG: Duration = Duration::from_secs(20);
/// One step of waiting for the client.
const POLL: Duration = Duration::from_millis(50);

/// What kind of error it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// Anything whose outcome is unknown or that may pass.
    Doubt,
    Fenced,
    Authentication,
    Authorization,
    UnknownTopic,
    Clock,
    Quota,
    /// Size or content.
    Record,
}

/// An error after which the client is dropped.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) fault: Fault,
    /// It is the rejected topic's, which must not hold back events.
    pub(super) of_rejected: bool,
    text: String,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Doubt {
    fn of(doing: &str, error: &KafkaError) -> Doubt {
        let fault = error.rdkafka_error_code().map_or(Fault::Doubt, class);
        Doubt { fault, of_rejected: false, text: format!("{doing}: {error}") }
    }

    fn code(doing: &str, code: Code) -> Doubt {
        Doubt { fault: class(code), of_rejected: false, text: format!("{doing}: {code}") }
    }

    /// The journal could not be read.
    pub(super) fn journal(error: &crate::journal::ReadError) -> Doubt {
        Doubt::text(error.to_string())
    }

    fn text(text: String) -> Doubt {
        Doubt { fault: Fault::Doubt, of_rejected: false, text }
    }
}

fn class(code: Code) -> Fault {
    match code {
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => Fault::Fenced,
        Code::Authentication | Code::SaslAuthenticationFailed => Fault::Authentication,
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => Fault::Authorization,
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => Fault::UnknownTopic,
        Code::InvalidTimestamp => Fault::Clock,
        Code::ThrottlingQuotaExceeded | Code::PolicyViolation => Fault::Quota,
        Code::MessageSizeTooLarge | Code::InvalidRecord | Code::InvalidMessage => Fault::Record,
        _ => Fault::Doubt,
    }
}

/// Remembers the first delivery error.
#[derive(Clone, Default)]
struct Context(Arc<Mutex<Option<(Code, String)>>>);

impl Context {
    fn first(&self) -> std::sync::MutexGuard<'_, Option<(Code, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = result {
            let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
            self.first().get_or_insert_with(|| (code, message.topic().to_owned()));
        }
    }
}

/// A connected client.
pub(super) struct Client {
    producer: BaseProducer<Context>,
    /// Never subscribes: it reads the cursor and lends its group's name to the transaction.
    consumer: BaseConsumer,
    context: Context,
    topic: String,
    rejected_topic: Option<String>,
    cluster_id: String,
    timeout: Duration,
}

impl Client {
    /// Connects, makes sure of the topics and of being the only producer of this identity.
    ///
    /// Without `rejects`, or if their topic can't be had, they are passed over.
    pub(super) fn connect(options: &Options, identity: &str, rejects: bool) -> Result<Client, Doubt> {
        let timeout = options.transaction_timeout;
        let mut base = ClientConfig::new();
        // A topic is made here, as configured, or not at all: else the broker makes one when it is asked for it.
        base.set("bootstrap.servers", options.brokers.join(",")).set("allow.auto.create.topics", "false");
        for (name, property) in options.client.iter() {
            base.set(name, property.expose());
        }
        let mut consumer = base.clone();
        consumer.set("group.id", identity).set("enable.auto.commit", "false").set("isolation.level", "read_committed");
        let consumer: BaseConsumer = consumer.create().map_err(|error| Doubt::of("consumer", &error))?;
        consumer.fetch_metadata(None, ASK).map_err(|error| Doubt::of("connecting", &error))?;
        let cluster_id = consumer.client().fetch_cluster_id(ASK).unwrap_or_default();
        make_sure_of(&options.events_topic, &base, &consumer, options)?;
        let usable = |topic: &String| match make_sure_of(topic, &base, &consumer, options) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "publishing: rejected records are passed over, as their topic can't be had");
                false
            }
        };
        let rejected_topic = options.rejected_topic.clone().filter(|topic| rejects && usable(topic));
        let timeout_ms = timeout.as_millis().to_string();
        let mut producer = base.clone();
        producer
            .set("transactional.id", identity)
            .set("transaction.timeout.ms", &timeout_ms)
            .set("message.timeout.ms", &timeout_ms)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            .set("queue.buffering.max.kbytes", "16384")
            .set("queue.buffering.max.messages", "0")
            .set("delivery.report.only.error", "true");
        if !options.client.has_any(&["linger.ms", "queue.buffering.max.ms"]) {
            producer.set("linger.ms", "5");
        }
        if !options.client.has_any(&["compression.type", "compression.codec"]) {
            producer.set("compression.type", "lz4");
        }
        let context = Context::default();
        let producer: BaseProducer<Context> =
            producer.create_with_context(context.clone()).map_err(|error| Doubt::of("producer", &error))?;
        producer.init_transactions(2 * timeout).map_err(|error| Doubt::of("init_transactions", &error))?;
        Ok(Client {
            producer,
            consumer,
            context,
            topic: options.events_topic.clone(),
            rejected_topic,
            cluster_id,
            timeout,
        })
    }

    pub(super) fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Where rejected records go, if anywhere.
    pub(super) fn rejected_topic(&self) -> Option<&str> {
        self.rejected_topic.as_deref()
    }

    /// The committed cursor; `None` only if Kafka says that there is none.
    pub(super) fn cursor(&self) -> Result<Option<KafkaCursor>, Doubt> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition(&self.topic, 0);
        let answer =
            self.consumer.committed_offsets(asked, ASK).map_err(|error| Doubt::of("reading the cursor", &error))?;
        let Some(element) = answer.find_partition(&self.topic, 0) else { return Ok(None) };
        element.error().map_err(|error| Doubt::of("reading the cursor", &error))?;
        match element.offset() {
            Offset::Offset(offset) => {
                // An offset that we didn't write is like one of another journal: the journal won't bear it out.
                let foreign = KafkaCursor { position: Position(0), incarnation: [0; 16], record_id: [0; 16] };
                Ok(Some(KafkaCursor::parse(offset, element.metadata()).unwrap_or(foreign)))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn begin(&self) -> Result<(), Doubt> {
        self.producer.begin_transaction().map_err(|error| Doubt::of("begin", &error))
    }

    pub(super) fn abort(&self) {
        // Kafka aborts by itself when the client goes; asking only spares consumers the wait.
        let _ = self.producer.abort_transaction(self.timeout);
    }

    /// Queues a record as it lies in the journal; waits for room in the client's queue.
    pub(super) fn send(&self, topic: &str, entry: &Entry<'_>) -> Result<(), Doubt> {
        let mut record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(topic).payload(entry.body).timestamp(entry.head.time_ms as i64);
        if !entry.key.is_empty() {
            record = record.key(entry.key);
        }
        let mut stuck = Stuck::new(self.producer.in_flight_count());
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((error, back)) if error.rdkafka_error_code() == Some(Code::QueueFull) => {
                    record = back;
                    self.producer.poll(POLL);
                    self.check(&mut stuck)?;
                }
                Err((error, _)) => {
                    let of_rejected = self.rejected_topic() == Some(topic);
                    return Err(Doubt { of_rejected, ..self.root().unwrap_or(Doubt::of("sending", &error)) });
                }
            }
        }
    }

    /// Waits until nothing is under way. `flush` would poll in steps of 100 ms.
    pub(super) fn wait_delivered(&self) -> Result<(), Doubt> {
        let mut stuck = Stuck::new(self.producer.in_flight_count());
        while self.producer.in_flight_count() > 0 {
            self.producer.poll(POLL);
            self.check(&mut stuck)?;
        }
        self.check(&mut stuck)
    }

    fn check(&self, stuck: &mut Stuck) -> Result<(), Doubt> {
        if let Some((code, topic)) = &*self.context.first() {
            let of_rejected = self.rejected_topic() == Some(topic);
            let root = self.root().filter(|root| root.fault != Fault::Doubt);
            return Err(Doubt { of_rejected, ..root.unwrap_or_else(|| Doubt::code("delivery", *code)) });
        }
        if stuck.is_stuck(self.producer.in_flight_count()) {
            return Err(Doubt::code("no delivery report for too long", Code::MessageTimedOut));
        }
        Ok(())
    }

    /// Why the transaction itself failed, if it did. Delivery reports only say that it did (purged), or blame records
    /// (invalid record) for what the partition refused (invalid timestamp).
    fn root(&self) -> Option<Doubt> {
        // Within a transaction this changes nothing: it is refused, with the transaction's own error if it has one.
        let error = self.producer.begin_transaction().err()?;
        (error.rdkafka_error_code() != Some(Code::State)).then(|| Doubt::of("the transaction failed", &error))
    }

    /// Commits records and cursor in one.
    pub(super) fn commit(&self, cursor: &KafkaCursor) -> Result<(), Doubt> {
        let mut offsets = TopicPartitionList::new();
        let mut element = offsets.add_partition(&self.topic, 0);
        element
            .set_offset(Offset::Offset(cursor.position.0 as i64))
            .map_err(|error| Doubt::of("the cursor's offset", &error))?;
        element.set_metadata(cursor.metadata());
        let group = self.consumer.group_metadata().ok_or_else(|| Doubt::text("no group metadata".into()))?;
        self.producer
            .send_offsets_to_transaction(&offsets, &group, self.timeout)
            .map_err(|error| Doubt::of("sending the cursor", &error))?;
        self.producer.commit_transaction(self.timeout).map_err(|error| Doubt::of("commit", &error))
    }
}

/// Notices that a number doesn't change over many polls.
struct Stuck {
    last: i32,
    polls: u32,
}

impl Stuck {
    fn new(last: i32) -> Stuck {
        Stuck { last, polls: 0 }
    }

    fn is_stuck(&mut self, now: i32) -> bool {
        self.polls = if now == self.last { self.polls + 1 } else { 0 };
        self.last = now;
        now > 0 && POLL * self.polls >= WATCHDOG
    }
}

/// A topic must exist before the first transaction: the cursor's offset is kept for one of its partitions.
fn make_sure_of(topic: &str, base: &ClientConfig, consumer: &BaseConsumer, options: &Options) -> Result<(), Doubt> {
    if exists(topic, consumer)? {
        return Ok(());
    }
    let admin: AdminClient<DefaultClientContext> = base.create().map_err(|error| Doubt::of("admin client", &error))?;
    let new = NewTopic::new(topic, options.partitions, TopicReplication::Fixed(options.replication_factor));
    let limits = AdminOptions::new().operation_timeout(Some(ASK)).request_timeout(Some(ASK));
    let made = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| Doubt::text(format!("no runtime for the admin client: {error}")))?
        .block_on(admin.create_topics(&[new], &limits))
        .map_err(|error| Doubt::of("creating a topic", &error))?;
    for result in made {
        match result {
            Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(Doubt::code(&format!("creating topic {topic}"), code)),
        }
    }
    // Brokers tell each other of a new topic a little later.
    for _ in 0..40 {
        if exists(topic, consumer)? {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
    Err(Doubt::code("waiting for a topic", Code::UnknownTopicOrPartition))
}

fn exists(topic: &str, consumer: &BaseConsumer) -> Result<bool, Doubt> {
    // Asking for all topics never makes one, as asking for one may.
    let metadata = consumer.fetch_metadata(None, ASK).map_err(|error| Doubt::of("metadata", &error))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    Ok(found.is_some_and(|found| found.error().is_none() && !found.partitions().is_empty()))
}
