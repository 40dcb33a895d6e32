//! `kafka.progress_topic` on a real Kafka: each report is held against what the topic of events had at that moment, by
//! the broker's own clock, through kills, clocks that are set back, outages and rest.

use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message};
use serde_json::Value;

use super::audit::balanced_stat;
use super::broker::Broker;
use super::client::Client;
use super::consumer::each_committed;
use super::document::{block, requirements};
use super::gateway::{Gateway, PIXEL, Site};
use super::load::Ledger;
use super::python;
use super::random::Random;
use super::scene::{
    self, assert_unnoticed, values, visitors, wait_blocked, wait_for, wait_published, wait_until_published,
};
use super::shim::Shim;

/// The broker stamps what it appends: so the order between two topics is known, to the millisecond.
const BY_BROKER: (&str, &str) = ("message.timestamp.type", "LogAppendTime");

/// A report, and when the broker took it.
struct Report {
    at: i64,
    /// `None`: a tombstone.
    value: Option<Value>,
}

impl Report {
    fn complete_until(&self) -> &str {
        self.value.as_ref().map_or("", |value| value["complete_until"].as_str().unwrap())
    }
}

/// Whether somebody has made the topic.
fn is_there(broker: &Broker, topic: &str) -> bool {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", broker.address()).create().unwrap();
    let metadata = consumer.fetch_metadata(None, Duration::from_secs(20)).unwrap();
    metadata.topics().iter().any(|found| found.name() == topic && !found.partitions().is_empty())
}

fn reports(broker: &Broker, topic: &str) -> Vec<Report> {
    let mut found = Vec::new();
    if !is_there(broker, topic) {
        return found;
    }
    each_committed(&broker.address(), topic, |message| {
        let value = message.payload().map(|bytes| serde_json::from_slice(bytes).unwrap());
        found.push(Report { at: message.timestamp().to_millis().unwrap(), value });
    });
    found
}

/// Received, and appended by the broker.
fn events(broker: &Broker, topic: &str) -> Vec<(String, i64)> {
    let mut found = Vec::new();
    each_committed(&broker.address(), topic, |message| {
        let value: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
        let at = message.timestamp().to_millis().unwrap();
        found.push((value["received_at"].as_str().unwrap().to_owned(), at));
    });
    found
}

fn site(broker: &Broker, topic: &str, extra: &str) -> Site {
    scene::site(&broker.address(), topic, &format!("progress_topic = \"{topic}.progress\"\n{extra}"))
}

fn node(site: &Site) -> String {
    std::fs::read_to_string(site.data().join("node_id")).unwrap().trim().to_owned()
}

/// Waits for a report that is later than a moment, or for the first.
fn wait_report(broker: &Broker, topic: &str, site: &Site, later: &str) -> String {
    let progress = format!("{topic}.progress");
    let mut last = String::new();
    wait_for(&format!("a report beyond {later:?}"), site, || {
        let all = reports(broker, &progress);
        last = all.last().map_or_else(String::new, |report| report.complete_until().to_owned());
        last.as_str() > later
    });
    last
}

fn stop(site: &Site, gateway: Gateway<'_>) {
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
}

#[test]
fn what_is_reported_as_complete_is_there_through_kills_outages_and_clocks_that_are_set_back() {
    let (broker, topic) = (Broker::shared(), "progress.chaos");
    let progress = format!("{topic}.progress");
    broker.create_topic(topic, 3, &[BY_BROKER]);
    // Not compacted either, which is told.
    broker.create_topic(&progress, 1, &[BY_BROKER]);
    let shim = Shim::new();
    let mut site = site(&broker, topic, "transaction_timeout = \"3s\"\n");
    site.environment = shim.environment(&site.data());
    let mut random = Random::from_environment();
    let mut gateway = site.start();
    let mut ledger = Ledger::default();
    wait_report(&broker, topic, &site, "");
    // Within a run; between two runs, less than what is believed; and forward again.
    for (number, shift) in [0, -600_000, -60_000, -1_200_000, 5_000].into_iter().enumerate() {
        let load = visitors(&site, ["a", "b", "c", "d", "e"][number]);
        wait_published(&site, &gateway, 100);
        shim.shift_clock(shift);
        wait_published(&site, &gateway, 100);
        thread::sleep(random.millis(0, 400));
        if number.is_multiple_of(2) {
            gateway.kill();
            gateway = site.start();
            wait_published(&site, &gateway, 50);
        }
        ledger.absorb(load.finish());
        let until = reports(&broker, &progress).last().map(|report| report.complete_until().to_owned());
        if shift >= 0 {
            // At rest it goes on.
            wait_report(&broker, topic, &site, &until.unwrap());
        }
    }
    wait_until_published(&site, &gateway);
    let newest = events(&broker, topic).into_iter().map(|(received, _)| received).max().unwrap();
    wait_report(&broker, topic, &site, &newest);
    // And one more, of which only the end of the run can tell.
    let mut client = Client::connect(site.public).unwrap();
    assert_eq!(client.get(&format!("/offsite_event?id={PIXEL}")).unwrap().status, 200);
    drop(client);
    let said = site.log().len();
    stop(&site, gateway);

    assert!(site.log().contains("the topic should be compacted"), "{}", site.log());

    let (all, events) = (reports(&broker, &progress), events(&broker, topic));
    assert!(all.len() >= 4, "{} reports", all.len());
    let mut before = "";
    for report in &all {
        let until = report.complete_until();
        let late: Vec<_> =
            events.iter().filter(|(received, at)| received.as_str() < until && *at > report.at).collect();
        assert!(late.is_empty(), "{until} was said at {}, and then came {late:?}; {}", report.at, site.log());
        assert!(until >= before, "taken back: {until} after {before}");
        before = until;
    }
    // The very last is tried once, by a client that has a second for it.
    let is_told = !site.log()[said..].contains("progress: not reported");
    let is_for_all = events.iter().all(|(received, _)| received.as_str() < before);
    assert!(is_for_all || !is_told, "the last word of a clean end is for all");
    let last = all.last().unwrap().value.as_ref().unwrap();
    let stat = balanced_stat(&site);
    if is_told {
        let said = (&last["published"], &last["position"]);
        assert_eq!(said, (&stat["published"], &stat["publish_next_position"]), "{stat}");
    }
    assert_eq!(last["node_id"].as_str(), Some(node(&site).as_str()));
    assert_eq!(events.len() as u64, stat["published"].as_u64().unwrap());
    eprintln!("{topic}: {} reports, {} events, {} acknowledged", all.len(), events.len(), ledger.acknowledged.len());
}

/// The page's program on these nodes and this time.
fn complete(broker: &Broker, topic: &str, arguments: &[&str]) -> Output {
    let text = block("complete").replace("localhost:9092", &broker.address());
    let text = text.replace("pixelgate.events", topic).replace("pixelgate.progress", &format!("{topic}.progress"));
    let mut command = Command::new(python::with("kafka", &requirements("pip-kafka")));
    command.args(["-c", &text]).args(arguments).output().unwrap()
}

#[test]
fn the_page_s_program_says_when_a_time_is_complete_and_counts_it_and_a_node_is_retired() {
    let (broker, topic) = (Broker::shared(), "progress.job");
    let site = site(&broker, topic, "");
    let gateway = site.start();
    let begin = wait_report(&broker, topic, &site, "");
    assert_eq!(broker.topic_setting(&format!("{topic}.progress"), "cleanup.policy"), "compact");
    let told = gateway.metric("progress_complete_until_timestamp_seconds").unwrap();
    let told = pixelgate::time::Timestamp((told * 1000.0).round() as u64).to_rfc3339();
    assert!(told >= begin, "{told} after {begin}");
    assert!(!site.log().contains("the topic should be compacted"), "it is");
    let mut client = Client::connect(site.public).unwrap();
    for value in ["1.10", "2.20&test=1", "3.3"] {
        let target = format!("/offsite_event.php?id={PIXEL}&currency=GBP&value={value}");
        assert_eq!(client.get(&target).unwrap().status, 200);
    }
    let name = node(&site);
    let far = complete(&broker, topic, &[&begin, "2999-01-01T00:00:00.000Z", &name]);
    assert_eq!(far.status.code(), Some(1));
    let said = String::from_utf8_lossy(&far.stderr).into_owned();
    assert!(said.contains("not complete") && said.contains(&name), "{said}");
    let received: String = values_until(&broker, topic, 3).into_iter().max().unwrap();
    let end = wait_report(&broker, topic, &site, &received);
    let unheard = complete(&broker, topic, &[&begin, &end, &name, "another"]);
    assert_eq!(unheard.status.code(), Some(1), "a node that has said nothing is waited for");
    drop(client);
    stop(&site, gateway);
    let done = complete(&broker, topic, &[&begin, &end, &name]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    let answer: Value = serde_json::from_slice(&done.stdout).expect(&said);
    assert_eq!(answer, serde_json::json!({"events": 2, "total": {"GBP": "4.40"}, "missing": 0}));

    let output = site.run(&["journal", "publish", "--until-empty", "--retire"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let all = reports(&broker, &format!("{topic}.progress"));
    assert!(all.last().unwrap().value.is_none(), "a tombstone");
    let done = complete(&broker, topic, &[&begin, "2999-01-01T00:00:00.000Z", &name]);
    assert!(done.status.success(), "who is retired is waited for no more");
}

/// When the events of a topic were received, once there are so many.
fn values_until(broker: &Broker, topic: &str, count: usize) -> Vec<String> {
    let site = Site::new("");
    let mut found = Vec::new();
    wait_for("all events", &site, || {
        found = if is_there(broker, topic) { values(broker, topic) } else { Vec::new() };
        found.len() >= count
    });
    let received = |value: &String| -> Value { serde_json::from_str(value).unwrap() };
    found.iter().map(|value| received(value)["received_at"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn trouble_with_its_topic_holds_nothing_up_and_kafka_away_makes_it_stand() {
    let (broker, topic) = (
        Broker::start(
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                            allow.everyone.if.no.acl.found=true\nsuper.users=User:nobody",
        ),
        "progress.trouble",
    );
    let progress = format!("{topic}.progress");
    broker.create_topic(&progress, 1, &[]);
    broker.allow_only(["--topic", &progress], "Describe");
    let site = site(&broker, topic, "transaction_timeout = \"3s\"\n");
    let gateway = site.start();
    let load = visitors(&site, "a");
    wait_published(&site, &gateway, 200);
    wait_for("it is said", &site, || site.log().contains("progress: not reported"));
    broker.allow_all(["--topic", &progress]);
    let until = wait_report(&broker, topic, &site, "");
    let before = reports(&broker, &progress).len();
    broker.freeze();
    wait_blocked(&site, &gateway, "unreachable");
    broker.thaw();
    wait_published(&site, &gateway, 50);
    let later = wait_report(&broker, topic, &site, &until);
    assert!(later > until && reports(&broker, &progress).len() > before);
    let ledger = load.finish();
    assert_unnoticed(&ledger);
    scene::assert_exactly_once(&broker, topic, &site, gateway, &ledger);
}
