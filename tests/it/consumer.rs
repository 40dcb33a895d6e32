//! What a `read_committed` consumer sees of a topic, from its beginning to its end.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

const PATIENCE: Duration = Duration::from_secs(300);
/// A transaction that was answered for is visible by then.
const MARKED: Duration = Duration::from_secs(10);

/// A record as a consumer gets it.
#[derive(Debug)]
pub struct Consumed {
    /// Kafka key.
    pub key: Option<String>,
    /// Kafka timestamp.
    #[cfg_attr(not(feature = "e2e"), expect(dead_code, reason = "mock clusters are not asked for it"))]
    pub time_ms: i64,
    /// Kafka value.
    pub value: String,
}

/// Reads all partitions of a topic up to their ends.
pub fn read_committed(brokers: &str, topic: &str) -> Vec<Consumed> {
    settle(brokers, topic);
    let mut records = Vec::new();
    each_committed(brokers, topic, |message| {
        records.push(Consumed {
            key: message.key().map(|key| String::from_utf8_lossy(key).into_owned()),
            time_ms: message.timestamp().to_millis().expect("records carry a time"),
            value: String::from_utf8(message.payload().unwrap_or_default().to_vec()).unwrap(),
        });
    });
    records
}

/// Waits until no transaction is open: a broker answers before it has written its markers. One that nobody ends is not
/// waited for.
fn settle(brokers: &str, topic: &str) {
    let deadline = Instant::now() + MARKED;
    let ends = |isolation: &str| {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("group.id", "auditor").set("isolation.level", isolation);
        let consumer: BaseConsumer = config.create().unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), MARKED).ok()?;
        let partitions = metadata.topics().first()?.partitions().iter();
        let high = |id| consumer.fetch_watermarks(topic, id, MARKED).ok().map(|(_, high)| high);
        partitions.map(|partition| high(partition.id())).collect::<Option<Vec<i64>>>()
    };
    loop {
        let (committed, all) = (ends("read_committed"), ends("read_uncommitted"));
        if (committed.is_some() && committed == all) || Instant::now() > deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As `read_committed`, for topics that are larger than memory.
pub fn each_committed(brokers: &str, topic: &str, mut take: impl FnMut(&BorrowedMessage<'_>)) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "auditor").set("enable.auto.commit", "false");
    config.set("isolation.level", "read_committed").set("enable.partition.eof", "true").set("check.crcs", "true");
    let consumer: BaseConsumer = config.set("queued.max.messages.kbytes", "16384").create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(20)).unwrap();
    let mut partitions = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        partitions.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&partitions).unwrap();
    let mut left: Vec<i32> = partitions.elements().iter().map(|element| element.partition()).collect();
    assert!(!left.is_empty(), "the topic {topic} has partitions");
    let deadline = Instant::now() + PATIENCE;
    while !left.is_empty() {
        assert!(Instant::now() < deadline, "partitions {left:?} have no end");
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Ok(message)) => take(&message),
            Some(Err(KafkaError::PartitionEOF(partition))) => left.retain(|&open| open != partition),
            Some(Err(error)) => eprintln!("consumer: {error}"),
        }
    }
}
