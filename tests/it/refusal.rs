//! Kafka is there and says no: rights, topics, clocks. Each shows by its cause, drops nothing, and ends by itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::audit::balanced_stat;
use super::broker::Broker;
use super::client::Client;
use super::gateway::Site;
use super::scene::{self, assert_exactly_once, assert_unnoticed, identity, visitors, wait_blocked, wait_published};

/// One refusal: it begins, shows, websites notice nothing, it ends, everything arrives.
fn refuse_and_allow(topic: &str, cause: &str, refuse: impl FnOnce(&Broker, &Site), allow: impl FnOnce(&Broker, &Site)) {
    let broker = Broker::shared();
    let site = scene::site(&broker.address(), topic, "");
    let gateway = site.start();
    let load = visitors(&site, "");
    wait_published(&site, &gateway, 50);
    refuse(&broker, &site);
    wait_blocked(&site, &gateway, cause);
    load.wait_for(100);
    // It has the same name after some more tries, however each of them fails.
    thread::sleep(Duration::from_secs(3));
    wait_blocked(&site, &gateway, cause);
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
        "authorization",
        |broker, site| broker.allow_only(["--group", &identity(site)], "Delete"),
        |broker, site| broker.allow_all(["--group", &identity(site)]),
    );
}

#[test]
fn the_transactional_id_is_forbidden_for_a_while() {
    refuse_and_allow(
        "refused.transactional",
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

/// Sets it when it goes.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn trouble_with_the_rejected_topic_holds_back_no_event() {
    let (broker, topic) = (Broker::shared(), "refused.rejects");
    let rejected = format!("{topic}.rejected");
    broker.create_topic(&rejected, 1, &[("max.message.bytes", "100")]);
    let site = scene::site(&broker.address(), topic, "");
    let gateway = site.start();
    let load = visitors(&site, "");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Whatever ends this: else the scope waits for ever.
        let stopping = Stopping(&stop);
        scope.spawn(|| {
            let mut client = Client::connect(site.public).unwrap();
            while !stop.load(Ordering::Relaxed) {
                // Nobody has this pixel.
                assert_eq!(client.get("/offsite_event.php?id=1").unwrap().status, 404);
                thread::sleep(Duration::from_millis(10));
            }
        });
        // No record fits into the topic; then nobody may write to it, and then nobody may see it.
        wait_published(&site, &gateway, 300);
        broker.allow_only(["--topic", &rejected], "Describe");
        wait_published(&site, &gateway, 300);
        broker.allow_all(["--topic", &rejected]);
        broker.allow_only(["--topic", &rejected], "DescribeConfigs");
        wait_published(&site, &gateway, 300);
        broker.allow_all(["--topic", &rejected]);
        broker.delete_topic(&rejected);
        wait_published(&site, &gateway, 300);
        drop(stopping);
    });
    let ledger = load.finish();
    assert_unnoticed(&ledger);
    assert_exactly_once(&broker, topic, &site, gateway, &ledger);
    assert_eq!(balanced_stat(&site)["parked"], 0, "rejected records are not worth parking");
}

#[test]
fn a_topic_that_is_hidden_is_a_matter_of_rights() {
    let topic = "refused.hidden";
    let rule = ["--topic", topic];
    refuse_and_allow(
        topic,
        "authorization",
        |broker, _| broker.allow_only(rule, "DescribeConfigs"),
        |broker, _| {
            broker.allow_all(rule);
        },
    );
}

#[test]
fn a_topic_that_may_not_be_made_is_waited_for() {
    let (broker, topic) = (Broker::shared(), "refused.unknown");
    let site = scene::site(&broker.address(), topic, "");
    site.reconfigure("partitions = 3", "partitions = 3\nreplication_factor = 3"); // there is one broker
    let gateway = site.start();
    let load = visitors(&site, "");
    wait_blocked(&site, &gateway, "unknown_topic");
    broker.create_topic(topic, 2, &[]);
    wait_published(&site, &gateway, 50);
    let ledger = load.finish();
    assert_unnoticed(&ledger);
    assert_exactly_once(&broker, topic, &site, gateway, &ledger);
}
