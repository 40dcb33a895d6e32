//! What an operator may choose for records on their way (delivery, key, topic), and what a topic's size limit does.

use serde_json::Value;

use super::audit::{CLEAN, audit, balanced_stat};
use super::broker::Broker;
use super::client::Client;
use super::consumer::read_committed;
use super::gateway::{Gateway, PIXEL, Site, until};
use super::load::Ledger;
use super::random::Random;
use super::scene::{
    self, assert_exactly_once, assert_unnoticed, values, visitors, wait_blocked, wait_for, wait_published,
    wait_until_published,
};

/// One run of the gateway with some events, ended by a clean stop.
fn run(site: &Site, nonces: &'static str) -> Ledger {
    let gateway = site.start();
    let load = visitors(site, nonces);
    load.wait_for(50);
    let ledger = load.finish();
    wait_until_published(site, &gateway);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    ledger
}

#[test]
fn delivery_is_switched_there_and_back_without_loss_or_double() {
    let (broker, topic) = (Broker::shared(), "delivery.switched");
    let site = scene::site(&broker.address(), topic, "delivery = \"exactly_once\"\n");
    let mut ledger = run(&site, "a");
    site.reconfigure("exactly_once", "at_least_once");
    ledger.absorb(run(&site, "b"));
    ledger.absorb(run(&site, "c"));
    site.reconfigure("at_least_once", "exactly_once");
    ledger.absorb(run(&site, "d"));
    assert_eq!(audit(&ledger, &values(&broker, topic)), CLEAN, "{}", site.log());
}

#[test]
fn at_least_once_loses_nothing_through_kill_9() {
    let (broker, topic) = (Broker::shared(), "delivery.at_least_once");
    let site = scene::site(&broker.address(), topic, "delivery = \"at_least_once\"\n");
    let mut random = Random::from_environment();
    let load = visitors(&site, "");
    for _ in 0..5 {
        let gateway = site.start();
        wait_published(&site, &gateway, 50);
        std::thread::sleep(random.millis(0, 300));
        gateway.kill();
    }
    let gateway = site.start();
    let ledger = load.finish();
    wait_until_published(&site, &gateway);
    assert_eq!(gateway.stop(), Some(0));
    let findings = audit(&ledger, &values(&broker, topic));
    eprintln!("{topic}: {} acknowledged, {findings:?}", ledger.acknowledged.len());
    // Doubles are allowed, and share their record id: the audit finds no nonce under two.
    assert_eq!((findings.lost, findings.invented), (0, 0), "{}", site.log());
}

#[test]
fn records_are_spread_by_their_own_id_if_asked_to() {
    let (broker, topic) = (Broker::shared(), "delivery.key");
    let site = scene::site(&broker.address(), topic, "key = \"record_id\"\n");
    let ledger = run(&site, "");
    let consumed = read_committed(&broker.address(), topic);
    for record in &consumed {
        let event: Value = serde_json::from_str(&record.value).unwrap();
        assert_eq!(event["record_id"].as_str(), record.key.as_deref());
    }
    let values: Vec<String> = consumed.into_iter().map(|record| record.value).collect();
    assert_eq!(audit(&ledger, &values), CLEAN);
}

#[test]
fn another_topic_and_back_publishes_nothing_again() {
    let (broker, topic) = (Broker::shared(), "delivery.first");
    let site = scene::site(&broker.address(), topic, "");
    let mut ledger = run(&site, "a");
    site.reconfigure(topic, "delivery.second");
    ledger.absorb(run(&site, "b"));
    site.reconfigure("delivery.second", topic);
    ledger.absorb(run(&site, "c"));
    let mut all = values(&broker, topic);
    all.extend(values(&broker, "delivery.second"));
    assert_eq!(audit(&ledger, &all), CLEAN, "{}", site.log());
}

/// An event whose record is at least so long, and can't be compressed to less.
fn send(client: &mut Client, ledger: &mut Ledger, nonce: &str, bytes: u64, random: &mut Random) {
    let letters = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";
    let mut body = format!("id={PIXEL}&nonce={nonce}");
    for number in 0..bytes.div_ceil(1500) {
        let filler: String = (0..2000).map(|_| char::from(letters[(random.next() % 64) as usize])).collect();
        body += &format!("&filler{number}={filler}");
    }
    let reply = client.post("/offsite_event", "application/x-www-form-urlencoded", &body).unwrap();
    assert_eq!(reply.status, 204, "{reply:?}");
    ledger.sent.insert(nonce.to_owned());
    ledger.acknowledged.insert(reply.record_id().unwrap().to_owned(), nonce.to_owned());
}

#[test]
fn only_records_that_are_too_large_for_the_topic_are_parked() {
    let (broker, topic) = (Broker::shared(), "delivery.sizes");
    broker.create_topic(topic, 2, &[("max.message.bytes", "6000")]);
    let site = scene::site(&broker.address(), topic, "");
    let gateway = site.start();
    let load = visitors(&site, "v");
    let (mut fitting, mut large, mut random) = (Ledger::default(), Ledger::default(), Random::from_environment());
    let mut client = Client::connect(site.public).unwrap();
    for number in 0..20 {
        send(&mut client, &mut fitting, &format!("fits-{number}"), 3000, &mut random);
        if number % 10 == 5 {
            send(&mut client, &mut large, &format!("large-{number}"), 9000, &mut random);
        }
    }
    let goal = large.acknowledged.len() as f64;
    wait_for("the large ones are parked", &site, || gateway.metric("journal_parked_events") == Some(goal));
    fitting.absorb(load.finish());
    assert_unnoticed(&fitting);
    wait_until_published(&site, &gateway);
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(audit(&fitting, &values(&broker, topic)), CLEAN, "{}", site.log());
    assert_eq!(balanced_stat(&site)["parked"], large.acknowledged.len());
    retry_parked(&broker, topic, &site, fitting, large);
}

/// The limit is raised, the parked records go.
fn retry_parked(broker: &Broker, topic: &str, site: &Site, mut all: Ledger, large: Ledger) {
    let listed = String::from_utf8(site.run(&["parked", "list"]).stdout).unwrap();
    assert!(large.acknowledged.keys().all(|id| listed.contains(id)), "{listed}");
    assert_eq!(site.run(&["parked", "retry"]).status.code(), Some(1), "they are still too large");
    broker.set_topic(topic, &[]);
    // The broker knows of it a moment after it has answered.
    until("they go", || site.run(&["parked", "retry"]).status.code() == Some(0));
    all.absorb(large);
    assert_eq!(audit(&all, &values(broker, topic)), CLEAN);
    assert_eq!(balanced_stat(site)["parked"], 0);
}

#[test]
fn a_limit_that_nothing_meets_is_waited_out() {
    let (broker, topic) = (Broker::shared(), "delivery.nothing_fits");
    let site = scene::site(&broker.address(), topic, "");
    let gateway = site.start();
    let load = visitors(&site, "");
    wait_published(&site, &gateway, 50);
    broker.set_topic(topic, &[("max.message.bytes", "100")]);
    wait_blocked(&site, &gateway, "quota");
    broker.set_topic(topic, &[]);
    wait_published(&site, &gateway, 100);
    let ledger = load.finish();
    assert_unnoticed(&ledger);
    finish_parked(&broker, topic, &site, gateway, &ledger);
}

/// The first few may be parked before it is clear that it is the topic.
fn finish_parked(broker: &Broker, topic: &str, site: &Site, gateway: Gateway<'_>, ledger: &Ledger) {
    wait_until_published(site, &gateway);
    let parked = balanced_stat(site)["parked"].as_u64().unwrap();
    assert!(parked <= 16, "{parked} parked by a topic's fault: {}", site.log());
    if parked > 0 {
        assert_eq!(gateway.stop(), Some(0));
        assert_eq!(site.run(&["parked", "retry"]).status.code(), Some(0));
        assert_exactly_once(broker, topic, site, site.start(), ledger);
    } else {
        assert_exactly_once(broker, topic, site, gateway, ledger);
    }
}
