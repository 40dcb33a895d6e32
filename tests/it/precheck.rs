//! `check` against a real Kafka: its limits are problems of the config, and a good one is silent.

use std::process::Output;

use super::broker::Broker;
use super::gateway::{Site, binary, output};

fn check(site: &Site, broker: &Broker, topic: &str, body: &str) -> (Option<i32>, String) {
    let mut command = binary();
    command.arg("check").arg("--config").arg(site.config()).env("PIXELGATE_KAFKA__BROKERS", broker.address());
    command.env("PIXELGATE_KAFKA__EVENTS_TOPIC", topic).env("PIXELGATE_LIMITS__MAX_BODY_BYTES", body);
    let Output { status, stdout, .. } = output(command);
    // What it says of this machine's disk is another test's.
    let said = String::from_utf8(stdout).unwrap();
    (status.code(), said.lines().filter(|line| !line.starts_with("warning: data_dir: ")).collect())
}

#[test]
fn bodies_that_kafka_would_not_take_are_a_problem() {
    let broker = Broker::shared();
    let site = Site::new("");
    broker.create_topic("checked.short", 1, &[("max.message.bytes", "20000")]);
    let (code, said) = check(&site, &broker, "checked.short", "64KiB");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.starts_with("limits.max_body_bytes: 64KiB") && said.contains("topic checked.short"), "{said}");
    let (code, said) = check(&site, &broker, "checked.short", "16KiB");
    assert!(code == Some(0) && said.starts_with("warning: kafka.events_topic: "), "{code:?} {said}");
    broker.create_topic("checked.default", 1, &[]);
    assert_eq!(check(&site, &broker, "checked.default", "64KiB"), (Some(0), String::new()));
    let (code, said) = check(&site, &broker, "checked.missing", "2MiB");
    assert!(code == Some(2) && said.contains("broker 1"), "the broker's own limit: {code:?} {said}");
}
