//! What the fault run leaves out, as it takes more than one gateway or a topic of its own: a node that dies in the
//! middle of a transaction and stays dead, and one whose clock is two hours ahead.

use std::thread;
use std::time::{Duration, Instant};

use super::audit::{CLEAN, audit, balanced_stat};
use super::broker::Broker;
use super::proxy::{Api, Deed, Proxy, When};
use super::scene::{
    self, assert_exactly_once, assert_unnoticed, values, visitors, wait_blocked, wait_for, wait_published,
};
use super::shim::Shim;

/// `kafka.transaction_timeout` of the dead node.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The broker looks for transactions that ran out of time once a second; the rest is a busy machine.
const LOOK: Duration = Duration::from_secs(30);

#[test]
fn a_dead_node_holds_consumers_back_no_longer_than_its_transaction_may_last() {
    let (broker, topic) = (Broker::start(""), "dead");
    let proxy = Proxy::start(broker.detour());
    let timeout = format!("transaction_timeout = \"{}s\"\n", TIMEOUT.as_secs());
    let dead = scene::site(&broker.detour().1.to_string(), topic, &timeout);
    let other = scene::site(&broker.address(), topic, "");
    let (mut dying, living) = (dead.start(), other.start());
    let loads = (visitors(&dead, "d"), visitors(&other, "o"));
    wait_published(&dead, &dying, 20);
    wait_published(&other, &living, 20);
    // Records are in the topic, and nobody ends their transaction.
    proxy.trap(Api::EndTxn, When::Asked, Deed::Kill(dying.id()));
    wait_for("it dies", &dead, || dying.has_ended().is_some());
    let died = Instant::now();
    let dead_ledger = loads.0.finish();
    drop(dying);
    // What the other one publishes from now on is behind the open transaction.
    wait_published(&other, &living, 50);
    let ledger = loads.1.finish();
    assert_unnoticed(&ledger);
    let is_seen = |values: &[String]| audit(&ledger, values).lost == 0;
    wait_for("consumers get on", &other, || {
        let seen = is_seen(&values(&broker, topic));
        assert!(seen || died.elapsed() < TIMEOUT + LOOK, "held back for {:?}", died.elapsed());
        seen
    });
    eprintln!(
        "a dead node held consumers back for {:.1} s of at most {} s",
        died.elapsed().as_secs_f64(),
        TIMEOUT.as_secs()
    );
    assert_eq!(living.stop(), Some(0), "{}", other.log());

    // It comes back after all, and what it holds arrives, once.
    let back = dead.start();
    scene::wait_until_published(&dead, &back);
    assert_eq!(back.stop(), Some(0), "{}", dead.log());
    let mut all = dead_ledger;
    all.absorb(ledger);
    assert_eq!(audit(&all, &values(&broker, topic)), CLEAN, "{}", dead.log());
}

#[test]
fn a_node_two_hours_ahead_is_blocked_by_its_clock_and_parks_nothing() {
    let (broker, topic, shim) = (Broker::shared(), "dead.clock", Shim::new());
    // Kafka's default takes no record that is more than an hour ahead.
    let mut site = scene::site(&broker.address(), topic, "transaction_timeout = \"3s\"\n");
    site.environment = shim.environment(&site.data());
    let gateway = site.start();
    let load = visitors(&site, "");
    wait_published(&site, &gateway, 50);
    shim.shift_clock(2 * 3_600_000);
    wait_blocked(&site, &gateway, "clock");
    load.wait_for(50);
    thread::sleep(Duration::from_secs(2));
    wait_blocked(&site, &gateway, "clock");
    // The clock is right again, but the records from ahead wait until their time, or until a person allows them.
    shim.shift_clock(0);
    load.wait_for(50);
    wait_blocked(&site, &gateway, "clock");
    assert_eq!(balanced_stat(&site)["parked"], 0, "the records are not to blame");
    broker.set_topic(topic, &[("message.timestamp.after.max.ms", "10800000")]);
    wait_published(&site, &gateway, 50);
    let ledger = load.finish();
    assert_unnoticed(&ledger);
    assert_exactly_once(&broker, topic, &site, gateway, &ledger);
    assert_eq!(balanced_stat(&site)["parked"], 0);
}
