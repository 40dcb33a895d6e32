//! docs/consumers.md, run: each client that the page shows reads what a real gateway published, with aborted
//! transactions in the topic, and sees every event once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, TopicPartitionList};
use serde_json::Value;

use super::broker::{Broker, java};
use super::client::Client;
use super::consumer::each_committed;
use super::document::{block, requirements, words};
use super::gateway::{PIXEL, Site, free_address};
use super::running::{Running, directory, wait};
use super::scene::{self, wait_until_published};
use super::shim::Shim;
use super::{consumers_sql, python};

/// Events that were received two hours before they were published, and all.
pub const LATE: usize = 3;
pub const EVENTS: usize = 7;
/// `pixel_id`, `event_name`, `currency`, conversions and their sum: of the seven events one is a trial, and two are the
/// same conversion.
pub const CONVERSIONS: [(&str, &str, &str, &str, &str); 2] =
    [(PIXEL, "Lead", "", "1", ""), (PIXEL, "Purchase", "GBP", "4", "1000000000000011.46345677")];

/// What was published, for all consumers.
pub struct Published {
    pub broker: Arc<Broker>,
    pub topic: &'static str,
    /// The journal's export.
    pub lines: Vec<String>,
    /// The same events as a later version may write them: with fields that nobody knows today.
    pub newer: Vec<String>,
    /// Where they are published, too.
    pub newer_topic: &'static str,
}

impl Published {
    /// Made by the first that asks.
    pub fn shared() -> Arc<Published> {
        static SHARED: Mutex<Weak<Published>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let published = Arc::new(Published::new(Broker::shared(), "consumers"));
            *shared = Arc::downgrade(&published);
            published
        })
    }

    fn new(broker: Arc<Broker>, topic: &'static str) -> Published {
        let shim = Shim::new();
        let mut site = scene::site(&broker.address(), topic, "[dedup]\nwindow = \"0s\"\n");
        site.environment = shim.environment(&site.data());
        shim.shift_clock(-7_200_000);
        let gateway = site.start();
        let mut client = Client::connect(site.public).unwrap();
        let order = "ev=Purchase&eid=order-1&value=12.3400&currency=gbp";
        let queries = [
            order,
            order,
            "ev=Purchase&eid=order-2&value=999999999999999.12345678&currency=GBP",
            "ev=Lead",
            "ev=Purchase&value=[VALUE]&currency=GBP&cd[ids]=[%22A1%22]",
            "ev=Purchase&eid=order-3&value=5&currency=EUR&test=1",
            "ev=Purchase&eid=order-4&value=-0.00000001&currency=GBP&ts=1700000000000&st=1700000000500",
        ];
        for (number, query) in queries.iter().enumerate() {
            if number == LATE {
                abort(&broker, topic);
                wait_until_published(&site, &gateway);
                drop(client);
                assert_eq!(gateway.stop(), Some(0), "{}", site.log());
                return Published::rest(broker, topic, &site, &shim, &queries[number..]);
            }
            assert_eq!(client.get(&format!("/offsite_event.php?id={PIXEL}&{query}")).unwrap().status, 200);
        }
        unreachable!("more events than late ones")
    }

    /// The events after the clock was put right, by another run: within one time never goes back.
    fn rest(broker: Arc<Broker>, topic: &'static str, site: &Site, shim: &Shim, queries: &[&str]) -> Published {
        shim.shift_clock(0);
        let gateway = site.start();
        let mut client = Client::connect(site.public).unwrap();
        for query in queries {
            assert_eq!(client.get(&format!("/offsite_event.php?id={PIXEL}&{query}")).unwrap().status, 200);
        }
        drop(client);
        wait_until_published(site, &gateway);
        assert_eq!(gateway.stop(), Some(0), "{}", site.log());
        abort(&broker, topic);
        let export = site.run(&["journal", "export"]);
        let lines: Vec<String> = String::from_utf8(export.stdout).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), EVENTS);
        let newer: Vec<String> = lines.iter().map(|line| extended(line)).collect();
        let newer_topic = "consumers.newer";
        // Those that were late first by their time come last here, as from a node that was without Kafka.
        let (late, others) = newer.split_at(LATE);
        produce(&broker, newer_topic, others);
        produce(&broker, newer_topic, late);
        abort(&broker, newer_topic);
        Published { broker, topic, lines, newer, newer_topic }
    }

    /// A block of the page, for this broker and topic.
    pub fn adapt(&self, text: &str) -> String {
        text.replace("localhost:9092", &self.broker.address()).replace("pixelgate.events", self.topic)
    }

    /// Every record is among the lines, once.
    fn assert_each_once<'a>(&self, lines: impl Iterator<Item = &'a str>) {
        let seen: Vec<Value> = lines.map(|line| serde_json::from_str(line).expect(line)).collect();
        let all: BTreeSet<String> =
            self.lines.iter().map(|line| record_id(&serde_json::from_str(line).unwrap())).collect();
        let ids: BTreeSet<String> = seen.iter().map(record_id).collect();
        assert_eq!((seen.len(), ids), (EVENTS, all));
    }
}

/// A record with more fields and new words, as may be added within v1.
fn extended(line: &str) -> String {
    let mut record: Value = serde_json::from_str(line).unwrap();
    record["visitor"] = serde_json::json!({"id": "v-1", "visits": [1, 2], "score": 1.5, "new": true});
    record["a_later_field"] = "text".into();
    record["source"] = "a_later_route".into();
    record["warnings"] = serde_json::json!(["a_later_warning"]);
    record.to_string()
}

/// Records without a transaction, as a program of another version may write them.
pub fn produce(broker: &Broker, topic: &str, values: &[impl AsRef<[u8]>]) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", broker.address()).create().unwrap();
    for value in values {
        producer.send(BaseRecord::to(topic).key(PIXEL).payload(value.as_ref())).unwrap();
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}

fn record_id(record: &Value) -> String {
    record["record_id"].as_str().unwrap().to_owned()
}

/// A transaction that is given up: who reads uncommitted sees its records.
fn abort(broker: &Broker, topic: &str) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.address()).set("transactional.id", "given-up");
    let producer: BaseProducer = config.create().unwrap();
    let patience = Duration::from_secs(60);
    producer.init_transactions(patience).unwrap();
    producer.begin_transaction().unwrap();
    for key in ["a", "b", "c", "d"] {
        let value = format!(
            "{{\"schema\":\"pixelgate.event.v1\",\"record_id\":\"01890a5d-ac96-774b-bcce-000000000000\",\
             \"received_at\":\"2026-01-02T03:04:05.678Z\",\"pixel_id\":\"{PIXEL}\",\"event_name\":\"Aborted\",\
             \"source\":\"offsite_event\",\"node_id\":\"x\"}}"
        );
        producer.send(BaseRecord::to(topic).key(key).payload(&value)).unwrap();
    }
    producer.flush(patience).unwrap();
    producer.abort_transaction(patience).unwrap();
}

#[test]
fn the_console_consumer_shows_each_record_once() {
    let published = Published::shared();
    let mut words = words("console");
    assert_eq!(words.remove(0), "kafka-console-consumer.sh");
    let mut command = java("org.apache.kafka.tools.consumer.ConsoleConsumer");
    command.args(words.iter().map(|word| published.adapt(word)));
    // It would wait for more; what it shows by then is all.
    let output = command.args(["--timeout-ms", "40000"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // Its own word that nothing more came is a line without a key.
    let records = text.lines().filter_map(|line| line.split_once('\t'));
    published.assert_each_once(records.map(|(key, value)| {
        assert_eq!(key, PIXEL);
        value
    }));
}

#[test]
fn the_console_s_lines_answer_the_page_s_queries() {
    let published = Published::shared();
    // Those that were late come last there, with fields of a later version.
    let text = published.adapt(&block("console-lines")).replace(published.topic, published.newer_topic);
    let (line, rest) = text.split_once(" | ").unwrap();
    assert_eq!(rest, "grep '^{' > conversions.ndjson");
    let mut words: Vec<&str> = line.split(' ').collect();
    assert_eq!(words.remove(0), "kafka-console-consumer.sh");
    let output = java("org.apache.kafka.tools.consumer.ConsoleConsumer").args(words).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('{')).collect();
    published.assert_each_once(lines.iter().copied());
    consumers_sql::assert_lines(&lines);
}

/// Whether a group has committed everything up to the last event.
fn is_through(published: &Published, topic: &str, group: &str) -> bool {
    let mut last = BTreeMap::new();
    each_committed(&published.broker.address(), topic, |message| {
        last.insert(message.partition(), message.offset() + 1);
    });
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", published.broker.address()).set("group.id", group);
    let consumer: BaseConsumer = config.create().unwrap();
    let mut asked = TopicPartitionList::new();
    for partition in last.keys() {
        asked.add_partition(topic, *partition);
    }
    let Ok(found) = consumer.committed_offsets(asked, Duration::from_secs(10)) else { return false };
    found.elements().iter().all(|of| of.offset().to_raw() >= Some(last[&of.partition()]))
}

#[test]
fn the_python_consumer_stores_each_conversion_once_also_if_all_comes_again_with_fields_of_a_later_version() {
    let published = Published::shared();
    let interpreter = python::with("kafka", &requirements("pip-kafka"));
    let directory = directory();
    let (program, log) = (directory.path().join("consume.py"), directory.path().join("log"));
    let text = published.adapt(&block("python"));
    let stored = || -> Option<Vec<(String, String)>> {
        let store = rusqlite::Connection::open(directory.path().join("conversions.db")).ok()?;
        let mut rows = store.prepare("SELECT record, coalesce(value, '') FROM conversions").ok()?;
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).ok()?;
        rows.collect::<Result<_, _>>().ok()
    };
    for (group, topic) in [("conversions", published.topic), ("another", published.newer_topic)] {
        let text = text.replace("\"conversions\"", &format!("\"{group}\""));
        fs::write(&program, text.replace(&format!("\"{}\"", published.topic), &format!("\"{topic}\""))).unwrap();
        let mut command = Command::new(&interpreter);
        let consumer = Running::start(command.arg(&program).current_dir(directory.path()), &log);
        wait(&format!("{group} is through"), &log, || is_through(&published, topic, group));
        // Here it is killed, by -9.
        drop(consumer);
    }
    let rows = stored().unwrap();
    assert_eq!(rows.len(), EVENTS - 1, "all but the trial");
    let values: BTreeSet<&str> = rows.iter().map(|(_, value)| value.as_str()).collect();
    assert_eq!(values, BTreeSet::from(["", "12.3400", "999999999999999.12345678", "-0.00000001"]));
    let store = rusqlite::Connection::open(directory.path().join("conversions.db")).unwrap();
    let mut query = store.prepare(&block("sqlite-conversions")).unwrap();
    let found =
        query.query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, i64>(3)?.to_string()]));
    let found: Vec<[String; 4]> = found.unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(found, CONVERSIONS.map(|(pixel, event, currency, count, _)| [pixel, event, currency, count]));
    let mut query = store.prepare(&block("sqlite-late")).unwrap();
    let found = query.query_map([], |row| Ok((row.get(1)?, row.get(2)?))).unwrap();
    let late: Vec<(usize, i64)> = found.collect::<Result<_, _>>().unwrap();
    assert_eq!(late.iter().map(|(count, _)| count).sum::<usize>(), LATE);
    assert!(late.iter().all(|(_, seconds)| *seconds >= 7_000), "{late:?}");
    let all: Vec<Value> = published.lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.iter().all(|(record, _)| all.contains(&serde_json::from_str(record).unwrap())), "{rows:?}");
}

#[test]
fn kafka_connect_writes_each_record_once() {
    let published = Published::shared();
    let directory = directory();
    let listen = free_address().to_string();
    for (name, file) in [("connect-worker", "worker.properties"), ("connect-sink", "sink.properties")] {
        let text = published.adapt(&block(name)).replace("127.0.0.1:8083", &listen);
        // Those that were late come last there, with fields of a later version.
        let text = text.replace(&format!("topics={}", published.topic), &format!("topics={}", published.newer_topic));
        fs::write(directory.path().join(file), text).unwrap();
    }
    let mut words = words("connect");
    assert_eq!(words.remove(0), "connect-standalone.sh");
    let mut command = java("org.apache.kafka.connect.cli.ConnectStandalone");
    let log = directory.path().join("log");
    let connect = Running::start(command.args(words).current_dir(directory.path()), &log);
    let sink = directory.path().join("conversions.ndjson");
    let written = || fs::read_to_string(&sink).unwrap_or_default();
    wait("all lines", &log, || written().lines().count() >= EVENTS);
    drop(connect);
    published.assert_each_once(written().lines());
    consumers_sql::assert_lines(&written().lines().collect::<Vec<_>>());
}
