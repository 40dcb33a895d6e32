//! Records that Kafka refuses: parked if they are refused alone, and only then.

use super::*;
use crate::publish::parked;

fn too_large(body: &str) -> Option<Code> {
    body.contains("LARGE").then_some(Code::MessageSizeTooLarge)
}

fn conserved(journal: &Journal) -> (u64, u64, u64) {
    let counts = journal.stats().counts;
    assert_eq!(counts.accepted, counts.published + counts.pending + counts.parked, "{counts:?}");
    (counts.published, counts.pending, counts.parked)
}

#[test]
fn the_one_record_that_is_refused_is_parked_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    cluster.state().refuses = Some(too_large);
    let bodies: Vec<String> = (0..100).map(|n| if n == 61 { "LARGE 61".into() } else { n.to_string() }).collect();
    append(&journal, 0, &bodies.iter().map(String::as_str).collect::<Vec<_>>());
    let running = Running::start(&cluster, &journal);
    running.settle();
    let expected: Vec<String> = bodies.iter().filter(|body| !body.contains("LARGE")).cloned().collect();
    assert_eq!(cluster.bodies(), expected);
    assert_eq!(conserved(&journal), (99, 0, 1));
    let record = parked::read(dir.path(), Position(61)).unwrap();
    assert_eq!((&record.body[..], record.head.id, &record.key[..]), (&b"LARGE 61"[..], id_of(61), &b"42"[..]));
    assert!(record.reason.contains("MessageSizeTooLarge"), "{}", record.reason);
    assert!(journal.stats().parked_bytes > 0);
    let aborts = cluster.state().aborts;
    assert!(aborts <= 10, "{aborts} attempts for one of a hundred");
    // Afterwards transactions are as large as ever.
    append(&journal, 100, &["x"; 200]);
    running.settle();
    running.stop();
    assert_eq!(conserved(&journal), (299, 0, 1));
    assert_eq!(cluster.state().connections, 1);
}

#[test]
fn a_refused_record_is_parked_also_as_the_first_the_last_and_the_only_one() {
    for (bodies, parked) in [
        (&["LARGE", "a", "b"][..], 1),
        (&["a", "b", "LARGE"][..], 1),
        (&["LARGE"][..], 1),
        (&["LARGE", "LARGE 2", "a", "LARGE 3"][..], 3),
        (&["R LARGE", "LARGE", "R LARGE"][..], 1),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, journal) = (Cluster::default(), open(dir.path()));
        cluster.state().refuses = Some(too_large);
        append(&journal, 0, bodies);
        let running = Running::start(&cluster, &journal);
        running.settle();
        running.stop();
        let events = bodies.iter().filter(|body| !body.starts_with('R')).count() as u64;
        assert_eq!(conserved(&journal), (events - parked, 0, parked), "{bodies:?}");
        assert_eq!(journal.cursor().unwrap().position, Position(bodies.len() as u64));
    }
}

#[test]
fn nothing_is_parked_for_rights_topics_clocks_quotas_or_time() {
    for (code, cause) in [
        (Code::TopicAuthorizationFailed, "authorization"),
        (Code::UnknownTopicOrPartition, "unknown_topic"),
        (Code::InvalidTimestamp, "clock"),
        (Code::ThrottlingQuotaExceeded, "quota"),
        (Code::PolicyViolation, "quota"),
        (Code::MessageTimedOut, "unreachable"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, journal) = (Cluster::default(), open(dir.path()));
        cluster.state().fates.extend([Fate::Deliver(code); 100]);
        append(&journal, 0, &["a", "b"]);
        let running = Running::start(&cluster, &journal);
        until(cause, || running.stats.blocked() == Some(cause));
        cluster.state().fates.clear();
        assert_eq!(parked::positions(dir.path()).unwrap(), []);
        running.settle();
        running.stop();
        assert_eq!(conserved(&journal), (2, 0, 0));
    }
}

#[test]
fn a_topic_that_refuses_every_record_parks_none_if_smaller_ones_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    cluster.state().refuses = Some(|_| Some(Code::MessageSizeTooLarge));
    cluster.state().relents_at = Some(5);
    append(&journal, 0, &["aaaa", "bb", "c"]);
    let running = Running::start(&cluster, &journal);
    until("it is said", || running.stats.blocked() == Some("quota"));
    running.settle();
    assert_eq!(cluster.state().connections, 5);
    running.stop();
    assert_eq!(cluster.bodies(), ["aaaa", "bb", "c"]);
    assert_eq!(conserved(&journal), (3, 0, 0));
}

#[test]
fn records_of_one_size_that_are_all_refused_are_parked_up_to_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    cluster.state().refuses = Some(|_| Some(Code::InvalidRecord));
    append(&journal, 0, &["same"; 40]);
    let running = Running::start(&cluster, &journal);
    until("it is said", || running.stats.blocked() == Some("quota"));
    until("it is tried again", || cluster.state().connections > 2);
    assert_eq!(parked::positions(dir.path()).unwrap().len(), 16);
    // A smaller one that goes through shows that it is the records, not the topic.
    cluster.state().refuses = Some(|body| (body.len() > 3).then_some(Code::InvalidRecord));
    append(&journal, 40, &["ok"]);
    running.settle();
    running.stop();
    assert_eq!(conserved(&journal), (1, 0, 40));
    assert_eq!(cluster.bodies(), ["ok"]);
}

#[test]
fn a_topic_with_a_low_limit_gets_small_batches_and_not_a_refusal_each() {
    // The broker's limit is for a batch: each record alone is fine, many together are not.
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    cluster.state().batch = Some(8);
    let running = Running::start(&cluster, &journal);
    for round in 0..20 {
        append(&journal, 64 * round, &["x"; 64]);
        running.settle();
    }
    running.stop();
    assert_eq!(conserved(&journal), (1280, 0, 0));
    assert_eq!(cluster.state().aborts, 1);
}

#[test]
fn a_refused_record_is_found_behind_a_low_limit_too() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    cluster.state().refuses = Some(too_large);
    cluster.state().batch = Some(8);
    let bodies: Vec<String> =
        (0..100).map(|n| if n % 20 == 7 { format!("LARGE {n}") } else { n.to_string() }).collect();
    append(&journal, 0, &bodies.iter().map(String::as_str).collect::<Vec<_>>());
    let running = Running::start(&cluster, &journal);
    running.settle();
    running.stop();
    assert_eq!(conserved(&journal), (95, 0, 5));
    let expected: Vec<String> = bodies.into_iter().filter(|body| !body.contains("LARGE")).collect();
    assert_eq!(cluster.bodies(), expected);
}

#[test]
fn a_crash_between_parking_and_the_commit_neither_loses_nor_doubles() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    cluster.state().refuses = Some(too_large);
    append(&journal, 0, &["LARGE"]);
    cluster.state().fates.push_back(Fate::CommitLost(Code::OperationTimedOut));
    cluster.state().fates.extend([Fate::Connect(Code::AllBrokersDown); 100]);
    let running = Running::start(&cluster, &journal);
    until("it is parked and not committed", || running.stats.blocked() == Some("unreachable"));
    running.stop();
    assert_eq!(parked::positions(dir.path()).unwrap(), [Position(0)]);
    assert_eq!(conserved(&journal), (0, 1, 0), "it counts as pending");
    // Meanwhile the topic takes it: it is published, and the file must not be retried.
    {
        let mut state = cluster.state();
        state.fates.clear();
        state.refuses = None;
    }
    let running = Running::start(&cluster, &journal);
    running.settle();
    running.stop();
    assert_eq!(parked::positions(dir.path()).unwrap(), []);
    assert_eq!(conserved(&journal), (1, 0, 0));
    assert_eq!(cluster.bodies(), ["LARGE"]);
}

#[test]
fn a_record_that_cannot_be_parked_holds_publishing_up() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    cluster.state().refuses = Some(too_large);
    // A file where the directory should be: nothing can be written there.
    std::fs::write(dir.path().join("parked"), "").unwrap();
    append(&journal, 0, &["LARGE", "a"]);
    let running = Running::start(&cluster, &journal);
    until("it is said", || running.stats.blocked() == Some("damage"));
    assert_eq!(cluster.bodies(), [] as [&str; 0]);
    std::fs::remove_file(dir.path().join("parked")).unwrap();
    running.settle();
    running.stop();
    assert_eq!(conserved(&journal), (1, 0, 1));
}
