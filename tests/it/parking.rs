//! A real topic with a low limit: what is too large is parked, holds nothing up, and arrives once when it is raised.

use super::audit::balanced_stat;
use super::broker::Broker;
use super::client::Client;
use super::gateway::{Gateway, PIXEL, Site};
use super::random::Random;
use super::scene::{self, assert_unnoticed, values, visitors, wait_for, wait_published, wait_until_published};

/// An event of about 6 KiB that doesn't compress.
fn fire_large(site: &Site, random: &mut Random) -> String {
    let noise: String = (0..12).map(|part| format!("&p{part}={}", noise(random))).collect();
    let mut client = Client::connect(site.public).unwrap();
    let reply = client.get(&format!("/offsite_event.php?id={PIXEL}&value=1{noise}")).unwrap();
    assert_eq!(reply.status, 200);
    reply.header("x-pixelgate-record-id").expect("accepted").to_owned()
}

fn noise(random: &mut Random) -> String {
    (0..31).map(|_| format!("{:016x}", random.next())).collect()
}

fn parked(gateway: &Gateway<'_>) -> Option<f64> {
    gateway.metric("journal_parked_events")
}

#[test]
fn records_above_the_topics_limit_are_parked_and_arrive_once_when_it_is_raised() {
    let (broker, topic) = (Broker::shared(), "parking.limit");
    let mut random = Random::from_environment();
    // Lower than a batch of ordinary records, higher than each of them.
    broker.create_topic(topic, 3, &[("max.message.bytes", "2500")]);
    let site = scene::site(&broker.address(), topic, "");
    let gateway = site.start();
    let load = visitors(&site, "a");
    wait_published(&site, &gateway, 50);
    let mut large: Vec<String> = (0..2).map(|_| fire_large(&site, &mut random)).collect();
    wait_for("they are parked", &site, || parked(&gateway) == Some(2.0));
    wait_published(&site, &gateway, 100);
    // Crashes in the midst of it.
    for _ in 0..3 {
        let running = site.run(&["parked", "retry"]);
        assert_eq!(running.status.code(), Some(2), "the gateway runs");
    }
    gateway.kill();
    let gateway = site.start();
    large.extend((0..2).map(|_| fire_large(&site, &mut random)));
    gateway.kill();
    let gateway = site.start();
    wait_for("all are parked", &site, || parked(&gateway) == Some(4.0));
    let ledger = load.finish();
    wait_until_published(&site, &gateway);
    assert_eq!(gateway.stop(), Some(0));
    assert!(ledger.refused.is_empty());
    let output = site.run(&["parked", "retry"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    broker.set_topic(topic, &[]);
    let output = site.run(&["parked", "retry"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let stat = balanced_stat(&site);
    assert_eq!(stat["parked"], 0, "{stat}");
    let values = values(&broker, topic);
    assert_eq!(stat["published"].as_u64(), Some(values.len() as u64), "{stat}");
    for id in large.iter().chain(ledger.acknowledged.keys()) {
        assert_eq!(values.iter().filter(|value| value.contains(id.as_str())).count(), 1, "{id}");
    }
}

#[test]
fn a_topic_that_takes_nothing_parks_nothing() {
    let (broker, topic) = (Broker::shared(), "parking.nothing");
    broker.create_topic(topic, 3, &[("max.message.bytes", "100")]);
    let site = scene::site(&broker.address(), topic, "");
    // A backlog first, so that there is something to compare with.
    let gateway = site.start();
    let load = visitors(&site, "");
    scene::wait_blocked(&site, &gateway, "quota");
    load.wait_for(50);
    let few = parked(&gateway).unwrap();
    assert!(few <= 16.0, "{few} parked");
    broker.set_topic(topic, &[]);
    wait_published(&site, &gateway, 50);
    let ledger = load.finish();
    assert_unnoticed(&ledger);
    wait_until_published(&site, &gateway);
    assert_eq!(gateway.stop(), Some(0));
    let output = site.run(&["parked", "retry"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let values = values(&broker, topic);
    assert_eq!(values.len(), ledger.acknowledged.len());
}
