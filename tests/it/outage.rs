//! Kafka away in each way that it can be, and the gateway away itself: websites notice nothing, all arrives once.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::broker::Broker;
use super::proxy::{Network, Proxy};
use super::scene::{
    self, assert_exactly_once, assert_unnoticed, visitors, wait_blocked, wait_for, wait_published, wait_until_published,
};

/// Short, so that an outage is longer than a transaction may last.
const IMPATIENT: &str = "transaction_timeout = \"3s\"\n";
const LONGER: Duration = Duration::from_secs(6);

#[test]
fn a_bad_network_is_no_matter_for_websites() {
    let broker = Broker::shared();
    let topic = "outage.network";
    let (to, at) = broker.detour();
    let site = scene::site(&at.to_string(), topic, IMPATIENT);
    // Nobody is there yet.
    let gateway = site.start();
    let load = visitors(&site, "");
    wait_blocked(&site, &gateway, "unreachable");
    let proxy = Proxy::start((to, at));
    wait_published(&site, &gateway, 100);
    for bad in [Network::Slow, Network::Cut, Network::Silent] {
        proxy.set(bad);
        thread::sleep(LONGER);
        load.wait_for(50);
        if bad == Network::Slow {
            wait_published(&site, &gateway, 100);
        } else {
            wait_blocked(&site, &gateway, "unreachable");
        }
        proxy.set(Network::Good);
        wait_published(&site, &gateway, 100);
    }
    let ledger = load.finish();
    assert_unnoticed(&ledger);
    assert_exactly_once(&broker, topic, &site, gateway, &ledger);
}

#[test]
fn a_frozen_broker_and_a_killed_one_are_waited_for() {
    let broker = Broker::start("");
    let topic = "outage.broker";
    let site = scene::site(&broker.address(), topic, IMPATIENT);
    let gateway = site.start();
    let load = visitors(&site, "");
    wait_published(&site, &gateway, 100);
    broker.freeze();
    thread::sleep(LONGER);
    wait_blocked(&site, &gateway, "unreachable");
    load.wait_for(50);
    broker.thaw();
    wait_published(&site, &gateway, 100);
    broker.kill();
    thread::sleep(LONGER);
    wait_blocked(&site, &gateway, "unreachable");
    load.wait_for(50);
    broker.restart();
    wait_published(&site, &gateway, 100);
    let ledger = load.finish();
    assert_unnoticed(&ledger);
    assert_exactly_once(&broker, topic, &site, gateway, &ledger);
}

#[test]
fn a_gateway_that_slept_through_its_transaction_goes_on() {
    let broker = Broker::shared();
    let topic = "outage.slept";
    let site = scene::site(&broker.address(), topic, IMPATIENT);
    let gateway = site.start();
    let load = visitors(&site, "");
    let slept = || site.log().matches("connecting again").count();
    let mut naps = 0;
    // Most naps begin in a transaction; two that were aborted meanwhile are enough.
    while slept() < 2 {
        naps += 1;
        assert!(naps < 40, "no nap interrupted a transaction: {}", site.log());
        wait_published(&site, &gateway, 20);
        gateway.signal(Signal::STOP);
        thread::sleep(LONGER);
        gateway.signal(Signal::CONT);
    }
    wait_published(&site, &gateway, 20);
    let ledger = load.finish();
    // It closes idle connections as it wakes, so some requests have no answer; none has a wrong one.
    assert!(ledger.refused.is_empty(), "{:?}", ledger.refused);
    assert!(!site.log().contains("another process"), "{}", site.log());
    assert_exactly_once(&broker, topic, &site, gateway, &ledger);
}

#[test]
fn a_stop_without_kafka_is_clean_and_the_next_start_goes_on() {
    let broker = Broker::start("");
    let topic = "outage.stop";
    let site = scene::site(&broker.address(), topic, IMPATIENT);
    let gateway = site.start();
    let load = visitors(&site, "a");
    wait_published(&site, &gateway, 100);
    broker.freeze();
    wait_blocked(&site, &gateway, "unreachable");
    let mut ledger = load.finish();
    assert_eq!(gateway.stop(), Some(0), "a backlog may remain: {}", site.log());
    let gateway = site.start();
    let load = visitors(&site, "b");
    load.wait_for(50);
    gateway.kill();
    broker.thaw();
    let gateway = site.start();
    load.wait_for(50);
    ledger.absorb(load.finish());
    wait_for("published again", &site, || gateway.metric("publish_blocked{cause=\"unreachable\"}") == Some(0.0));
    wait_until_published(&site, &gateway);
    assert_exactly_once(&broker, topic, &site, gateway, &ledger);
}
