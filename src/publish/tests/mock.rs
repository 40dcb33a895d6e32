//! The real client library against a mock cluster in this process, which answers with the errors it is told.

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Resp};
use rdkafka::{Offset, TopicPartitionList};

use super::*;
use crate::publish::parked;

struct Mock {
    cluster: MockCluster<'static, DefaultProducerContext>,
    dir: tempfile::TempDir,
    journal: Journal,
}

impl Mock {
    fn new() -> Mock {
        let dir = tempfile::tempdir().unwrap();
        let cluster = MockCluster::new(1).unwrap();
        for topic in ["events", "rejected"] {
            cluster.create_topic(topic, 1, 1).unwrap();
        }
        let journal = open(dir.path());
        Mock { cluster, dir, journal }
    }

    fn options(&self) -> Options {
        let brokers = self.cluster.bootstrap_servers().split(',').map(str::to_owned).collect();
        let mut client = Properties::default();
        client.insert("topic.metadata.refresh.interval.ms".into(), "500".into());
        Options { brokers, transaction_timeout: Duration::from_secs(2), client, ..options() }
    }

    fn start(&self) -> Publisher {
        self.start_with(self.options())
    }

    fn start_with(&self, options: Options) -> Publisher {
        Publisher::start(options, "test", self.journal.clone(), Arc::new(SystemClock)).unwrap()
    }

    fn settle(&self, publisher: &Publisher) {
        until("everything is published", || publisher.stats.reached() >= self.journal.synced());
    }

    fn stop(&self, publisher: Publisher) {
        assert!(publisher.stop(PATIENCE, &SystemClock));
    }

    /// Values and keys of the first partition. The mock knows no isolation: aborted records are seen, too.
    fn consume(&self, topic: &str, count: usize) -> Vec<(String, String)> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.cluster.bootstrap_servers()).set("group.id", "auditor");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
        consumer.assign(&partitions).unwrap();
        let deadline = SystemClock.monotonic() + PATIENCE;
        let mut found = Vec::new();
        while found.len() < count {
            assert!(SystemClock.monotonic() < deadline, "{found:?}");
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(20)) {
                let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
                found.push((text(message.payload()), text(message.key())));
            }
        }
        found
    }
}

fn blocked(publisher: &Publisher, cause: &str) {
    until(cause, || publisher.stats.blocked() == Some(cause));
}

#[test]
fn events_and_rejects_arrive_with_their_keys() {
    let mock = Mock::new();
    append(&mock.journal, 0, &["a", "R0", "b"]);
    let publisher = mock.start();
    mock.settle(&publisher);
    assert_eq!(mock.consume("events", 2), [("a".into(), "42".into()), ("b".into(), "42".into())]);
    assert_eq!(mock.consume("rejected", 1), [("R0".into(), "42".into())]);
    mock.stop(publisher);
    let publisher = mock.start_with(Options { key: Key::RecordId, ..mock.options() });
    append(&mock.journal, 7, &["c"]);
    mock.settle(&publisher);
    let key = "00000000-0000-0000-0000-000000000007";
    assert_eq!(mock.consume("events", 3)[2], ("c".into(), key.into()));
    mock.stop(publisher);
}

#[test]
fn rights_on_the_topic_that_are_taken_away_are_named_and_waited_for() {
    let mock = Mock::new();
    let publisher = mock.start();
    append(&mock.journal, 0, &["a"]);
    mock.settle(&publisher);
    mock.cluster.topic_error("events", Resp::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
    append(&mock.journal, 1, &["b"]);
    blocked(&publisher, "authorization");
    mock.cluster.topic_error("events", Resp::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    mock.settle(&publisher);
    assert_eq!(publisher.stats.blocked(), None);
    assert_eq!(parked::positions(mock.dir.path()).unwrap(), []);
    mock.stop(publisher);
}

#[test]
fn each_refusal_of_a_broker_has_its_cause() {
    for (api, error, cause) in [
        (Api::InitProducerId, Resp::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "authorization"),
        (Api::OffsetFetch, Resp::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, "authorization"),
        (Api::AddPartitionsToTxn, Resp::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, "authorization"),
        (Api::AddOffsetsToTxn, Resp::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, "authorization"),
        (Api::Produce, Resp::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, "authorization"),
        (Api::Produce, Resp::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, "clock"),
        (Api::Produce, Resp::RD_KAFKA_RESP_ERR_POLICY_VIOLATION, "quota"),
        (Api::EndTxn, Resp::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "authorization"),
    ] {
        let mock = Mock::new();
        mock.cluster.request_errors(api, &[error]);
        append(&mock.journal, 0, &["a"]);
        let publisher = mock.start();
        blocked(&publisher, cause);
        mock.settle(&publisher);
        assert_eq!(publisher.stats.errors(ErrorKind::Refused), 1, "{cause}");
        assert_eq!(parked::positions(mock.dir.path()).unwrap(), []);
        mock.stop(publisher);
    }
}

#[test]
fn fenced_while_the_cursor_stands_is_our_own_timeout() {
    for api in [Api::AddPartitionsToTxn, Api::Produce, Api::EndTxn] {
        let mock = Mock::new();
        mock.cluster.request_errors(api, &[Resp::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH]);
        append(&mock.journal, 0, &["a"]);
        let publisher = mock.start();
        mock.settle(&publisher);
        assert_eq!(publisher.stats.errors(ErrorKind::Fenced), 1, "{api:?}");
        mock.stop(publisher);
    }
}

#[test]
fn a_batch_refused_for_its_size_is_tried_in_parts_by_the_same_client() {
    let mock = Mock::new();
    mock.cluster.request_errors(Api::Produce, &[Resp::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 3]);
    append(&mock.journal, 0, &["a", "b", "c", "d", "e", "f", "g", "h"]);
    let publisher = mock.start();
    mock.settle(&publisher);
    assert_eq!(publisher.stats.restarts.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(publisher.stats.errors(ErrorKind::Refused), 3);
    let bodies: Vec<String> = mock.consume("events", 8).into_iter().map(|(body, _)| body).collect();
    assert_eq!(bodies, ["a", "b", "c", "d", "e", "f", "g", "h"]);
    assert_eq!(parked::positions(mock.dir.path()).unwrap(), []);
    mock.stop(publisher);
}

#[test]
fn a_record_that_the_client_finds_too_large_is_parked() {
    for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
        let mock = Mock::new();
        let large = "L".repeat(5000);
        append(&mock.journal, 0, &["a", "b", &large, "c"]);
        let mut options = Options { delivery, ..mock.options() };
        options.client.insert("message.max.bytes".into(), "1000".into());
        options.client.insert("batch.size".into(), "900".into());
        let publisher = mock.start_with(options);
        mock.settle(&publisher);
        assert_eq!(parked::positions(mock.dir.path()).unwrap(), [Position(2)]);
        assert_eq!(parked::read(mock.dir.path(), Position(2)).unwrap().body, large.as_bytes());
        let counts = mock.journal.stats().counts;
        assert_eq!((counts.published, counts.parked), (3, 1));
        mock.stop(publisher);
    }
}

#[test]
fn a_broker_that_stops_answering_or_goes_away_is_waited_for() {
    let mock = Mock::new();
    let publisher = mock.start();
    append(&mock.journal, 0, &["a"]);
    mock.settle(&publisher);
    mock.cluster.broker_round_trip_time(-1, Duration::from_secs(600)).unwrap();
    append(&mock.journal, 1, &["b"]);
    blocked(&publisher, "unreachable");
    // What is on its way to the client stays delayed: only a new connection is answered at once.
    mock.cluster.broker_round_trip_time(-1, Duration::ZERO).unwrap();
    mock.cluster.broker_down(-1).unwrap();
    mock.cluster.broker_up(-1).unwrap();
    mock.settle(&publisher);
    assert!(publisher.stats.errors(ErrorKind::Timeout) > 0);
    assert_eq!(publisher.stats.blocked(), None);
    mock.stop(publisher);
}

#[test]
fn trouble_with_the_rejected_topic_never_holds_back_events() {
    let mock = Mock::new();
    mock.cluster.topic_error("rejected", Resp::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
    append(&mock.journal, 0, &["R0", "a", "R1", "b"]);
    let publisher = mock.start();
    mock.settle(&publisher);
    assert_eq!(publisher.stats.blocked(), None);
    let dropped = || publisher.stats.rejects_dropped.load(std::sync::atomic::Ordering::Relaxed);
    until("the rejects are counted", || dropped() == 2);
    mock.stop(publisher);
}

#[test]
fn at_least_once_keeps_its_cursor_in_the_group() {
    let mock = Mock::new();
    let options = || Options { delivery: Delivery::AtLeastOnce, ..mock.options() };
    append(&mock.journal, 0, &["a", "b"]);
    let publisher = mock.start_with(options());
    mock.settle(&publisher);
    mock.stop(publisher);
    // The local copy is gone: the group knows.
    let copy = mock.dir.path().join("journal/cursor.json");
    assert!(std::fs::read_to_string(&copy).unwrap().contains("at_least_once"));
    std::fs::remove_file(copy).unwrap();
    assert!(mock.journal.close(PATIENCE, &SystemClock));
    let mock = Mock { journal: open(mock.dir.path()), ..mock };
    append(&mock.journal, 2, &["c"]);
    let publisher = mock.start_with(Options { delivery: Delivery::AtLeastOnce, ..mock.options() });
    mock.settle(&publisher);
    mock.stop(publisher);
    let publisher = mock.start();
    append(&mock.journal, 3, &["d"]);
    mock.settle(&publisher);
    mock.stop(publisher);
    let bodies: Vec<String> = mock.consume("events", 4).into_iter().map(|(body, _)| body).collect();
    assert_eq!(bodies, ["a", "b", "c", "d"]);
}

#[test]
fn a_switch_to_at_least_once_decides_the_open_transaction_first() {
    let mock = Mock::new();
    append(&mock.journal, 0, &["a"]);
    let publisher = mock.start();
    mock.settle(&publisher);
    mock.stop(publisher);
    mock.cluster.request_errors(Api::InitProducerId, &[Resp::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED]);
    append(&mock.journal, 1, &["b"]);
    let publisher = mock.start_with(Options { delivery: Delivery::AtLeastOnce, ..mock.options() });
    blocked(&publisher, "authorization");
    mock.settle(&publisher);
    mock.stop(publisher);
}
