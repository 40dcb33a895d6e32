//! `journal publish` and `parked`: what they refuse, and what they do with a cluster that librdkafka mocks in here.

use std::fs;
use std::process::Output;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use serde_json::Value;

use super::audit::balanced_stat;
use super::client::Client;
use super::gateway::{PIXEL, Site, free_address, until};

/// A cluster within this process.
pub type Mock = MockCluster<'static, DefaultProducerContext>;

/// Longer than the client may send with `SMALL`, and shorter than a request may be.
const LARGE: usize = 4000;
/// What the client may send at most: a long event is not taken.
pub const SMALL: &str = "[kafka.client]\n\"message.max.bytes\" = \"3000\"\n\"batch.size\" = \"2500\"\n";

/// One with the topics of a gateway.
pub fn mock() -> Mock {
    let mock = MockCluster::new(1).unwrap();
    for topic in ["pixelgate.events", "pixelgate.rejected"] {
        mock.create_topic(topic, 1, 1).unwrap();
    }
    mock
}

fn site(brokers: &str, extra: &str) -> Site {
    Site::new(&format!("[kafka]\nbrokers = [{brokers}]\ntransaction_timeout = \"3s\"\n{extra}"))
}

fn fire(site: &Site, count: usize, longer: usize) {
    let mut client = Client::connect(site.public).unwrap();
    let long: String = (0..longer / 500).map(|part| format!("&p{part}={}", "x".repeat(500))).collect();
    for number in 0..count {
        let reply = client.get(&format!("/offsite_event.php?id={PIXEL}&value={number}{long}")).unwrap();
        assert_eq!(reply.status, 200);
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn figures(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error} in {}", said(output)))
}

const PUBLISH: [&str; 3] = ["journal", "publish", "--until-empty"];

#[test]
fn what_can_only_be_mended_by_a_person_exits_2_and_changes_nothing() {
    let site = site("", "");
    let refused = |arguments: &[&str], word: &str| {
        let output = site.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(word), "{}", said(&output));
        assert!(output.stdout.is_empty());
    };
    refused(&["journal", "publish"], "--until-empty");
    refused(&["journal", "publish", "--until-empty", "--retire"], "kafka.progress_topic");
    refused(&PUBLISH, "kafka.brokers");
    refused(&["parked", "retry"], "kafka.brokers");
    site.reconfigure("brokers = []", &format!("brokers = [\"{}\"]", free_address()));
    refused(&PUBLISH, "no journal here");
    refused(&["parked", "retry"], "no journal here");
    refused(&["parked", "list"], "no journal here");
    assert!(!site.data().exists(), "nothing is made by a look");
    let gateway = site.start();
    refused(&PUBLISH, "in use");
    refused(&["parked", "retry"], "in use");
    assert_eq!(gateway.stop(), Some(0));
    let name = fs::read(site.data().join("node_id")).unwrap();
    fs::remove_file(site.data().join("node_id")).unwrap();
    refused(&PUBLISH, "node_id");
    assert!(!site.data().join("node_id").exists(), "another name would be another cursor");
    fs::write(site.data().join("node_id"), name).unwrap();
    let output = site.run(&["parked", "retry"]);
    assert_eq!(figures(&output)["delivered"], 0);
}

#[test]
fn a_stranded_directory_is_emptied_and_says_what_keeps_it_from_that() {
    let mock = mock();
    let site = site("", "");
    let gateway = site.start();
    fire(&site, 30, 0);
    gateway.kill();
    site.reconfigure("brokers = []", &format!("brokers = [\"{}\"]", free_address()));
    let output = site.run(&["journal", "publish", "--until-empty", "--timeout", "1"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("30 events are left"), "{}", said(&output));
    let nowhere = fs::read_to_string(site.config()).unwrap();
    let start = nowhere.find("brokers = [").unwrap();
    let line = nowhere[start..].lines().next().unwrap().to_owned();
    site.reconfigure(&line, &format!("brokers = [\"{}\"]", mock.bootstrap_servers()));
    let output = site.run(&PUBLISH);
    assert_eq!(figures(&output)["published"], 30, "{}", said(&output));
    assert_eq!(balanced_stat(&site)["published"], 30);
    let output = site.run(&PUBLISH);
    assert_eq!(figures(&output)["published"], 0, "{}", said(&output));
}

#[test]
fn a_parked_record_is_listed_and_retried_once_kafka_takes_it() {
    let mock = mock();
    let site = site(&format!("\"{}\"", mock.bootstrap_servers()), SMALL);
    let gateway = site.start();
    fire(&site, 3, 0);
    fire(&site, 3, LARGE);
    fire(&site, 3, 0);
    until("the small ones are published", || gateway.metric("journal_published_events") == Some(6.0));
    assert_eq!(gateway.metric("journal_parked_events"), Some(3.0));
    let files = std::fs::read_dir(site.data().join("parked")).unwrap();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(gateway.metric("journal_parked_bytes"), Some(bytes as f64));
    let list = site.run(&["parked", "list", "--records"]);
    assert_eq!(list.status.code(), Some(0), "{}", said(&list));
    let lines: Vec<Value> =
        list.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert_eq!(lines.len(), 3, "{}", said(&list));
    for (line, position) in lines.iter().zip([3, 4, 5]) {
        assert_eq!(line["position"], position);
        assert_eq!(line["record_id"], line["record"]["record_id"]);
        assert!(line["reason"].as_str().unwrap().contains("MessageSizeTooLarge"), "{line}");
        assert!(line["size"].as_u64().unwrap() > LARGE as u64);
    }
    assert_eq!(gateway.stop(), Some(0));
    // As docs/privacy.md has one erased.
    let files = std::fs::read_dir(site.data().join("parked")).unwrap().map(|file| file.unwrap().path());
    fs::remove_file(files.max().unwrap()).unwrap();
    let stat = balanced_stat(&site);
    assert_eq!((&stat["parked"], &stat["published"]), (&2.into(), &7.into()), "{stat}");
    // Still too large: told, and nothing changes.
    let output = site.run(&["parked", "retry"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(balanced_stat(&site)["parked"], 2);
    site.reconfigure(SMALL, "");
    let output = site.run(&["parked", "retry"]);
    assert_eq!(figures(&output)["delivered"], 2);
    let stat = balanced_stat(&site);
    assert_eq!((&stat["parked"], &stat["published"]), (&0.into(), &9.into()), "{stat}");
    assert!(site.run(&["parked", "list"]).stdout.is_empty());
}

#[test]
fn a_node_with_parked_records_is_not_retired() {
    let mock = mock();
    mock.create_topic("progress", 1, 1).unwrap();
    let brokers = format!("\"{}\"", mock.bootstrap_servers());
    let site = site(&brokers, &format!("progress_topic = \"progress\"\n{SMALL}"));
    let gateway = site.start();
    fire(&site, 1, LARGE);
    until("it is parked", || gateway.metric("journal_parked_events") == Some(1.0));
    assert_eq!(gateway.stop(), Some(0));
    let output = site.run(&["journal", "publish", "--until-empty", "--retire"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("not retired: 1 events are parked here"), "{}", said(&output));
    site.reconfigure(SMALL, "");
    assert_eq!(figures(&site.run(&["parked", "retry"]))["delivered"], 1);
    let output = site.run(&["journal", "publish", "--until-empty", "--retire"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}
