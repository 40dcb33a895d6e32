//! What an administrator does to topic, cursor and cluster: nothing that is still to be published is lost or doubled.

use super::audit::{CLEAN, Findings, audit, balanced_stat};
use super::broker::Broker;
use super::load::Ledger;
use super::scene::{
    self, assert_exactly_once, assert_unnoticed, identity, values, visitors, wait_published, wait_until_published,
};

#[test]
fn partitions_are_added_while_it_publishes() {
    let (broker, topic) = (Broker::shared(), "cluster.partitions");
    let site = scene::site(&broker.address(), topic, "");
    let gateway = site.start();
    let load = visitors(&site, "");
    wait_published(&site, &gateway, 50);
    broker.add_partitions(topic, 7);
    wait_published(&site, &gateway, 200);
    let ledger = load.finish();
    assert_unnoticed(&ledger);
    assert_exactly_once(&broker, topic, &site, gateway, &ledger);
}

#[test]
fn a_topic_deleted_under_load_is_made_again_and_gets_what_follows() {
    let (broker, topic) = (Broker::shared(), "cluster.deleted");
    let site = scene::site(&broker.address(), topic, "");
    let gateway = site.start();
    let load = visitors(&site, "a");
    wait_published(&site, &gateway, 100);
    broker.delete_topic(topic);
    wait_published(&site, &gateway, 100);
    let before = load.finish();
    assert_unnoticed(&before);
    wait_until_published(&site, &gateway);
    let load = visitors(&site, "b");
    load.wait_for(100);
    let mut after = load.finish();
    wait_until_published(&site, &gateway);
    assert_eq!(gateway.stop(), Some(0));

    let seen = values(&broker, topic);
    let nothing_lost = Findings { invented: audit(&after, &seen).invented, ..CLEAN };
    assert_eq!(audit(&after, &seen), nothing_lost, "{}", site.log());
    assert!(seen.len() < before.acknowledged.len() + after.acknowledged.len(), "what was published is not sent again");
    let first = after.acknowledged.len();
    after.absorb(before);
    let all = audit(&after, &seen);
    assert_eq!((all.doubled, all.invented), (0, 0), "{all:?}");
    let stat = balanced_stat(&site);
    eprintln!("{topic}: {} seen, {first} after it was settled, {stat}", seen.len());
}

#[test]
fn a_forgotten_cursor_is_replaced_by_the_local_copy() {
    let (broker, topic) = (Broker::shared(), "cluster.forgotten");
    let site = scene::site(&broker.address(), topic, "");
    let mut ledger = Ledger::default();
    for run in ["a", "b", "c"] {
        let gateway = site.start();
        let load = visitors(&site, run);
        load.wait_for(50);
        ledger.absorb(load.finish());
        wait_until_published(&site, &gateway);
        assert_eq!(gateway.stop(), Some(0));
        // As a broker does by itself after `offsets.retention.minutes`.
        broker.delete_group(&identity(&site));
    }
    let gateway = site.start();
    assert_exactly_once(&broker, topic, &site, gateway, &ledger);
}

#[test]
fn another_cluster_gets_what_the_first_had_not() {
    let topic = "cluster.another";
    let first = Broker::start("");
    let site = scene::site(&first.address(), topic, "");
    let gateway = site.start();
    let load = visitors(&site, "a");
    load.wait_for(100);
    let old = load.finish();
    wait_until_published(&site, &gateway);
    first.freeze();
    let load = visitors(&site, "b");
    load.wait_for(100);
    let new = load.finish();
    assert_eq!(gateway.stop(), Some(0));
    first.thaw();

    let second = Broker::start("");
    site.reconfigure(&first.address(), &second.address());
    let gateway = site.start();
    wait_until_published(&site, &gateway);
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(audit(&old, &values(&first, topic)), CLEAN, "{}", site.log());
    assert_eq!(audit(&new, &values(&second, topic)), CLEAN, "{}", site.log());
}
