//! `kafka.delivery` and `kafka.key` on a real Kafka: at least once through kills, and from one delivery to the other.

use std::time::Duration;
use std::{fs, thread};

use super::audit::{CLEAN, Findings, audit, balanced_stat};
use super::broker::Broker;
use super::consumer::read_committed;
use super::scene::{self, assert_unnoticed, visitors, wait_published, wait_until_published};

#[test]
fn at_least_once_loses_nothing_and_switching_neither_loses_nor_doubles() {
    let (broker, topic) = (Broker::shared(), "delivery");
    let (at_least, exactly) = ("delivery = \"at_least_once\"", "delivery = \"exactly_once\"");
    let site = scene::site(&broker.address(), topic, &format!("{at_least}\nkey = \"record_id\"\n"));
    let mut gateway = site.start();
    let load = visitors(&site, "a");
    for _ in 0..4 {
        wait_published(&site, &gateway, 50);
        thread::sleep(Duration::from_millis(173));
        gateway.kill();
        gateway = site.start();
    }
    let mut ledger = load.finish();
    wait_until_published(&site, &gateway);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    let copy = site.data().join("journal/cursor.json");
    assert!(fs::read_to_string(&copy).unwrap().contains("at_least_once"));
    let doubled = {
        let records = read_committed(&broker.address(), topic);
        assert!(
            records.iter().all(|record| record.key.as_ref().is_some_and(|key| record.value.contains(key.as_str())))
        );
        let values: Vec<String> = records.into_iter().map(|record| record.value).collect();
        let findings = audit(&ledger, &values);
        // The same record again, never the same request under another id: that would be an invention.
        assert_eq!((findings.lost, findings.invented), (0, 0), "{}", site.log());
        findings.doubled
    };
    // Each switch goes on where the other stood.
    for (from, to, run) in [(at_least, exactly, "b"), (exactly, at_least, "c"), (at_least, exactly, "d")] {
        site.reconfigure(from, to);
        let gateway = site.start();
        let load = visitors(&site, run);
        wait_published(&site, &gateway, 50);
        let more = load.finish();
        assert_unnoticed(&more);
        ledger.absorb(more);
        wait_until_published(&site, &gateway);
        assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    }
    let values: Vec<String> = read_committed(&broker.address(), topic).into_iter().map(|record| record.value).collect();
    let findings = audit(&ledger, &values);
    assert_eq!(findings, Findings { doubled, ..CLEAN }, "{}", site.log());
    let stat = balanced_stat(&site);
    eprintln!("{} acknowledged, {} consumed, {doubled} doubled; {stat}", ledger.acknowledged.len(), values.len());
}
