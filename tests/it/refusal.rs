//! Kafka is there and says no: rights, topics, clocks. Each shows by its cause, drops nothing, and ends by itself.

use std::thread;
use std::time::Duration;

use super::audit::balanced_stat;
use super::broker::Broker;
use super::gateway::Site;
use super::scene::{self, assert_exactly_once, assert_unnoticed, identity, visitors, wait_blocked, wait_published};

/// One refusal: it begins, shows, websites notice nothing, it ends, everything arrives.
fn refuse_and_allow(
    topic: &str,
    extra: &str,
    cause: &str,
    refuse: impl FnOnce(&Broker, &Site),
    allow: impl FnOnce(&Broker, &Site),
) {
    let broker = Broker::shared();
    let site = scene::site(&broker.address(), topic, extra);
    let gateway = site.start();
    let load = visitors(&site, "");
    wait_published(&site, &gateway, 50);
    refuse(&broker, &site);
    wait_blocked(&site, &gateway, cause);
    load.wait_for(100);
    allow(&broker, &site);
    wait_published(&site, &gateway, 100);
    let ledger = load.finish();
    assert_unnoticed(&ledger);
    assert_exactly_once(&broker, topic, &site, gateway, &ledger);
    assert_eq!(balanced_stat(&site)["parked"], 0, "nothing is parked for what isn't the record's fault");
}

#[test]
fn writing_to_the_topic_is_forbidden_for_a_while() {
    let topic = "refused.topic";
    let rule = ["--topic", topic];
    refuse_and_allow(
        topic,
        "",
        "authorization",
        |broker, _| broker.allow_only(rule, "Describe"),
        |broker, _| {
            broker.allow_all(rule);
        },
    );
}

#[test]
fn the_group_is_forbidden_for_a_while() {
    refuse_and_allow(
        "refused.group",
        "",
        "authorization",
        |broker, site| broker.allow_only(["--group", &identity(site)], "Delete"),
        |broker, site| broker.allow_all(["--group", &identity(site)]),
    );
}

#[test]
fn the_transactional_id_is_forbidden_for_a_while() {
    refuse_and_allow(
        "refused.transactional",
        "",
        "authorization",
        |broker, site| broker.allow_only(["--transactional-id", &identity(site)], "Describe"),
        |broker, site| broker.allow_all(["--transactional-id", &identity(site)]),
    );
}

#[test]
fn records_older_than_the_topic_allows_wait_for_a_person() {
    let (broker, topic) = (Broker::shared(), "refused.clock");
    broker.create_topic(topic, 3, &[("message.timestamp.before.max.ms", "2000")]);
    let site = scene::site(&broker.address(), topic, "");
    let brokers = format!("brokers = [\"{}\"]", broker.address());
    site.reconfigure(&brokers, "brokers = []");
    let gateway = site.start();
    let load = visitors(&site, "a");
    load.wait_for(50);
    let mut ledger = load.finish();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(gateway.stop(), Some(0));
    site.reconfigure("brokers = []", &brokers);
    let gateway = site.start();
    let load = visitors(&site, "b");
    wait_blocked(&site, &gateway, "clock");
    load.wait_for(50);
    ledger.absorb(load.finish());
    assert_unnoticed(&ledger);
    broker.set_topic(topic, &[]);
    assert_exactly_once(&broker, topic, &site, gateway, &ledger);
    assert_eq!(balanced_stat(&site)["parked"], 0, "the records are not to blame");
}
