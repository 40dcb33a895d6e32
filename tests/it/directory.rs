//! What happens to the data directory itself: wiped, put back from an old copy, cloned with both running.

use std::fs;
use std::path::Path;

use super::audit::{CLEAN, Findings, audit, balanced_stat, export};
use super::broker::Broker;
use super::gateway::Site;
use super::load::Ledger;
use super::scene::{self, values, visitors, wait_for, wait_published, wait_until_published};

/// Some events, all published.
fn published(site: &Site, run: &'static str, events: u64) -> Ledger {
    let gateway = site.start();
    let load = visitors(site, run);
    load.wait_for(events);
    let ledger = load.finish();
    wait_until_published(site, &gateway);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    ledger
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn after_a_wiped_directory_nothing_is_skipped() {
    let broker = Broker::shared();
    let site = scene::site(&broker.address(), "wiped", "");
    site.reconfigure("data_dir =", "node_id = \"same\"\ndata_dir =");
    let mut ledger = published(&site, "a", 300);
    let before = ledger.acknowledged.len() as u64;
    fs::remove_dir_all(site.data()).unwrap();
    // Fewer than before: a cursor that was found again would be ahead of all of them.
    ledger.absorb(published(&site, "b", 50));
    assert_eq!(audit(&ledger, &values(&broker, "wiped")), CLEAN, "{}", site.log());
    assert!(balanced_stat(&site)["published"].as_u64() < Some(before));
}

#[test]
fn an_old_copy_that_was_published_doubles_nothing() {
    let broker = Broker::shared();
    let site = scene::site(&broker.address(), "restored.published", "");
    let mut ledger = published(&site, "a", 50);
    let kept = tempfile::tempdir().unwrap();
    copy(&site.data(), kept.path());
    ledger.absorb(published(&site, "b", 150));
    fs::remove_dir_all(site.data()).unwrap();
    copy(kept.path(), &site.data());
    assert!(!site.log().contains("does not hold"), "{}", site.log());
    ledger.absorb(published(&site, "c", 50));
    assert!(site.log().contains("does not hold"), "it says what it found: {}", site.log());
    // Once more, now that it has gone on from there: all is as usual again.
    ledger.absorb(published(&site, "d", 50));
    assert_eq!(audit(&ledger, &values(&broker, "restored.published")), CLEAN, "{}", site.log());
    assert_eq!(site.log().matches("does not hold").count(), 1, "{}", site.log());
}

#[test]
fn an_old_copy_with_a_backlog_doubles_only_that() {
    let broker = Broker::shared();
    let site = scene::site(&broker.address(), "restored.backlog", "");
    let brokers = format!("brokers = [\"{}\"]", broker.address());
    site.reconfigure(&brokers, "brokers = []");
    let gateway = site.start();
    let load = visitors(&site, "a");
    load.wait_for(100);
    let mut ledger = load.finish();
    assert_eq!(gateway.stop(), Some(0));
    let backlog = export(&site).len();
    site.reconfigure("brokers = []", &brokers);
    let kept = tempfile::tempdir().unwrap();
    copy(&site.data(), kept.path());
    ledger.absorb(published(&site, "b", 100));
    fs::remove_dir_all(site.data()).unwrap();
    copy(kept.path(), &site.data());
    ledger.absorb(published(&site, "c", 100));
    let findings = audit(&ledger, &values(&broker, "restored.backlog"));
    assert_eq!(findings, Findings { doubled: backlog, ..CLEAN }, "{}", site.log());
    assert!(site.log().contains("does not hold"), "{}", site.log());
}

#[test]
fn of_a_clone_and_its_original_one_stops_publishing_and_loses_nothing() {
    let broker = Broker::shared();
    let topic = "cloned";
    let (original, clone) = (scene::site(&broker.address(), topic, ""), scene::site(&broker.address(), topic, ""));
    let before = published(&original, "a", 50);
    copy(&original.data(), &clone.data());

    let (first, second) = (original.start(), clone.start());
    let loads = (visitors(&original, "o"), visitors(&clone, "c"));
    let fenced = "publish_blocked{cause=\"fenced\"}";
    let is_fenced = |gateway: &super::gateway::Gateway<'_>| gateway.metric(fenced) == Some(1.0);
    wait_for("one is fenced", &original, || is_fenced(&first) || is_fenced(&second));
    let original_is_fenced = is_fenced(&first);
    let (loser, winner) = if original_is_fenced { (&original, &clone) } else { (&clone, &original) };
    let (loser_runs, winner_runs) = if original_is_fenced { (first, second) } else { (second, first) };
    assert!(loser.log().contains("another process publishes with this node's identity"), "{}", loser.log());

    // It goes on taking events, and the other publishes its own.
    loads.0.wait_for(50);
    loads.1.wait_for(50);
    wait_published(winner, &winner_runs, 50);
    assert_eq!((loser_runs.readiness(), winner_runs.readiness()), (Some(200), Some(200)));
    assert_eq!((is_fenced(&loser_runs), is_fenced(&winner_runs)), (true, false));
    let ledgers = (loads.0.finish(), loads.1.finish());
    let (lost_side, mut kept_side) = if original_is_fenced { ledgers } else { (ledgers.1, ledgers.0) };
    scene::assert_unnoticed(&lost_side);
    assert_eq!(loser_runs.stop(), Some(0));
    let held = balanced_stat(loser)["pending"].as_u64().unwrap();
    assert!(held >= 50, "what it took stays in its journal: {held}");

    // The survivor is restarted, alone: all of its own events arrive, once.
    assert_eq!(winner_runs.stop(), Some(0));
    kept_side.absorb(published(winner, "w", 50));
    let mut all = before;
    all.absorb(kept_side);
    let seen = values(&broker, topic);
    let findings = audit(&all, &seen);
    assert_eq!((findings.lost, findings.doubled), (0, 0), "{findings:?}\n{}\n{}", loser.log(), winner.log());

    // Then the other one alone: what it holds arrives, too.
    all.absorb(lost_side);
    all.absorb(published(loser, "l", 50));
    let findings = audit(&all, &values(&broker, topic));
    assert_eq!(findings, CLEAN, "{}", loser.log());
}
