//! What tests with a real Kafka have in common: a site on a topic of its own, waiting for signs, the audit at the end.

use std::thread;
use std::time::{Duration, Instant};

use super::audit::{CLEAN, audit, balanced_stat};
use super::broker::Broker;
use super::consumer::read_committed;
use super::gateway::{Gateway, Site};
use super::load::{Ledger, Load};

/// How long a backlog may take to leave.
const DRAIN: Duration = Duration::from_secs(400);
/// A sign must show within this: longer than the publisher's longest pause and a client's time to connect together.
const SIGN: Duration = Duration::from_secs(240);
/// Slower than any machine that isn't waiting for Kafka, even beside others that write. That nobody waited for Kafka is
/// also seen by who is acknowledged while it is away.
const SLOW: Duration = Duration::from_secs(15);

/// A site that publishes to `topic` of this broker; `extra` is TOML that goes on in the table `kafka`.
pub fn site(brokers: &str, topic: &str, extra: &str) -> Site {
    Site::new(&format!(
        "[journal]\nsegment_bytes = \"1MiB\"\n[kafka]\nbrokers = [\"{brokers}\"]\nevents_topic = \"{topic}\"\n\
         rejected_topic = \"{topic}.rejected\"\npartitions = 3\n{extra}"
    ))
}

/// A few visitors who go on through everything.
pub fn visitors(site: &Site, run: &'static str) -> Load {
    Load::numbered(site.public, 3, Duration::from_millis(10), run)
}

/// Waits until a condition holds; `what` says which.
pub fn wait_for(what: &str, site: &Site, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SIGN;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}; it said:\n{}", site.log());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until publishing is held up by this cause, and websites notice nothing.
pub fn wait_blocked(site: &Site, gateway: &Gateway<'_>, cause: &str) {
    let name = format!("publish_blocked{{cause=\"{cause}\"}}");
    let is_blocked = || gateway.metric(&name) == Some(1.0);
    wait_for(&name, site, is_blocked);
    // An alarm is of use only if it stays until the reason is gone.
    for _ in 0..20 {
        assert!(is_blocked(), "{name} flickers: {}", site.log());
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(gateway.readiness(), Some(200), "Kafka is no reason to be unready");
}

/// Waits until this site has published so many more events.
pub fn wait_published(site: &Site, gateway: &Gateway<'_>, more: u64) {
    let published = || gateway.metric("journal_published_events");
    // One that wakes up closes connections, perhaps this one.
    let mut before = None;
    wait_for("an answer", site, || {
        before = published();
        before.is_some()
    });
    let goal = before.expect("it answered") + more as f64;
    wait_for(&format!("{more} more published"), site, || published().is_some_and(|now| now >= goal));
}

/// Waits until nothing is pending.
pub fn wait_until_published(site: &Site, gateway: &Gateway<'_>) {
    let deadline = Instant::now() + DRAIN;
    loop {
        let stat = balanced_stat(site);
        if stat["pending"] == 0 {
            return;
        }
        assert_eq!(gateway.readiness(), Some(200), "{}", site.log());
        assert!(Instant::now() < deadline, "not published in time: {stat}; it said:\n{}", site.log());
        thread::sleep(Duration::from_millis(100));
    }
}

/// Every request was acknowledged, and none waited for Kafka.
pub fn assert_unnoticed(ledger: &Ledger) {
    assert_eq!((ledger.refused.len(), ledger.open.len()), (0, 0), "{:?} {:?}", ledger.refused, ledger.open);
    assert!(ledger.slowest < SLOW, "a visitor waited for {:?}", ledger.slowest);
    assert!(!ledger.acknowledged.is_empty());
}

/// The values of all committed records of a topic.
pub fn values(broker: &Broker, topic: &str) -> Vec<String> {
    read_committed(&broker.address(), topic).into_iter().map(|record| record.value).collect()
}

/// Waits until all is published, stops the gateway, and audits the topic: each acknowledged event is there, once.
pub fn assert_exactly_once(broker: &Broker, topic: &str, site: &Site, gateway: Gateway<'_>, ledger: &Ledger) {
    wait_until_published(site, &gateway);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    let values = values(broker, topic);
    assert_eq!(audit(ledger, &values), CLEAN, "{}", site.log());
    let stat = balanced_stat(site);
    assert_eq!(stat["published"].as_u64(), Some(values.len() as u64), "{stat}");
    eprintln!("{topic}: {} acknowledged, {} consumed, {stat}", ledger.acknowledged.len(), values.len());
}

/// The name of the site's group and of its transactions.
pub fn identity(site: &Site) -> String {
    let node = std::fs::read_to_string(site.data().join("node_id")).unwrap();
    let journal = balanced_stat(site)["journal_id"].as_str().unwrap().to_owned();
    format!("pixelgate.{}.{journal}", node.trim())
}
