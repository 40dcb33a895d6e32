//! Connecting, committing, and what follows from errors.

use super::*;

#[test]
fn records_arrive_once_and_in_order_whatever_fails() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    cluster.state().fates.extend([
        Fate::Connect(Code::BrokerTransportFailure),
        Fate::Standing(Code::GroupAuthorizationFailed),
        Fate::Deliver(Code::MessageTimedOut),
        Fate::CommitLost(Code::OperationTimedOut),
        Fate::CommitUnknown(Code::OperationTimedOut),
        Fate::Deliver(Code::OutOfOrderSequenceNumber),
    ]);
    append(&journal, 0, &["a", "b"]);
    let running = Running::start(&cluster, &journal);
    running.settle();
    append(&journal, 2, &["c", "d"]);
    running.settle();
    assert_eq!(cluster.bodies(), ["a", "b", "c", "d"]);
    let errors = [ErrorKind::Timeout, ErrorKind::Abortable, ErrorKind::Refused, ErrorKind::Fatal];
    assert_eq!(errors.map(|kind| running.stats.errors(kind)), [4, 1, 1, 0]);
    assert_eq!(running.stats.restarts.load(std::sync::atomic::Ordering::Relaxed), 4, "of connected clients");
    assert_eq!(running.stats.blocked(), None);
    running.stop();
    assert_eq!(journal.cursor().unwrap().position, Position(4));
    let counts = journal.stats().counts;
    assert_eq!((counts.accepted, counts.published, counts.pending), (4, 4, 0));
}

#[test]
fn each_cause_is_shown_while_it_lasts_and_cleared_by_the_next_commit() {
    for (fate, cause) in [
        (Fate::Connect(Code::AllBrokersDown), "unreachable"),
        (Fate::Connect(Code::SaslAuthenticationFailed), "authentication"),
        (Fate::Deliver(Code::TopicAuthorizationFailed), "authorization"),
        (Fate::Deliver(Code::UnknownTopicOrPartition), "unknown_topic"),
        (Fate::Deliver(Code::InvalidTimestamp), "clock"),
        (Fate::Deliver(Code::PolicyViolation), "quota"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, journal) = (Cluster::default(), open(dir.path()));
        cluster.state().fates.extend([fate; 100]);
        append(&journal, 0, &["a"]);
        let running = Running::start(&cluster, &journal);
        until(cause, || running.stats.blocked() == Some(cause));
        cluster.state().fates.clear();
        running.settle();
        until("it is cleared", || running.stats.blocked().is_none());
        assert_eq!(cluster.bodies(), ["a"]);
        running.stop();
    }
}

#[test]
fn fenced_by_our_own_timeout_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    let running = Running::start(&cluster, &journal);
    append(&journal, 0, &["a"]);
    running.settle();
    // As after SIGSTOP for longer than the transaction timeout: the coordinator aborted, and the cursor stands.
    cluster.state().fates.extend([Fate::CommitLost(Code::InvalidProducerEpoch); 2]);
    append(&journal, 1, &["b"]);
    running.settle();
    assert_eq!(cluster.bodies(), ["a", "b"]);
    assert_eq!(running.stats.errors(ErrorKind::Fenced), 2);
    // The same, but the commit had gone through before.
    cluster.state().fates.push_back(Fate::CommitUnknown(Code::ProducerFenced));
    append(&journal, 2, &["c"]);
    running.settle();
    append(&journal, 3, &["d"]);
    running.settle();
    assert_eq!(cluster.bodies(), ["a", "b", "c", "d"]);
    running.stop();
}

#[test]
fn fenced_at_the_first_connection_is_no_twin() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    append(&journal, 0, &["a", "b"]);
    let running = Running::start(&cluster, &journal);
    running.settle();
    running.stop();
    cluster.state().fates.push_back(Fate::Connect(Code::ProducerFenced));
    append(&journal, 2, &["c"]);
    let running = Running::start(&cluster, &journal);
    running.settle();
    assert_eq!(cluster.bodies(), ["a", "b", "c"]);
    running.stop();
}

#[test]
fn a_twin_stops_this_one_which_goes_on_accepting() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    let running = Running::start(&cluster, &journal);
    append(&journal, 0, &["a"]);
    running.settle();
    cluster.state().fates.push_back(Fate::Twin(2));
    append(&journal, 1, &["b"]);
    until("the twin is seen", || running.stats.blocked() == Some("fenced"));
    append(&journal, 2, &["c"]);
    assert_eq!(cluster.bodies(), ["a"]);
    running.stop();
    assert_eq!(journal.stats().counts.pending, 2);
}

#[test]
fn a_restart_goes_on_where_kafka_stands_also_after_a_commit_whose_answer_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    append(&journal, 0, &["a", "b"]);
    cluster.state().fates.extend([Fate::CommitUnknown(Code::OperationTimedOut)]);
    cluster.state().fates.extend([Fate::Connect(Code::AllBrokersDown); 100]);
    let running = Running::start(&cluster, &journal);
    until("it is away", || running.stats.blocked() == Some("unreachable"));
    running.stop();
    assert_eq!(journal.cursor(), None, "the local copy is behind");
    cluster.state().fates.clear();
    let running = Running::start(&cluster, &journal);
    running.settle();
    assert_eq!(journal.stats().counts.pending, 0, "also without anything new");
    append(&journal, 2, &["c"]);
    running.settle();
    running.stop();
    assert_eq!(cluster.bodies(), ["a", "b", "c"]);
}

#[test]
fn rejects_take_the_side_lane_once_the_cursor_has_passed_them() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    cluster.state().fates.extend([Fate::CommitLost(Code::OperationTimedOut), Fate::Deliver(Code::MessageTimedOut)]);
    append(&journal, 0, &["R0", "a", "R1", "b", "R2"]);
    let running = Running::start(&cluster, &journal);
    running.settle();
    append(&journal, 5, &["R3"]);
    running.settle();
    assert_eq!(cluster.bodies(), ["a", "b"]);
    assert_eq!(*running.rejects.lock().unwrap(), ["R0", "R1", "R2", "R3"]);
    running.stop();
    assert_eq!(journal.cursor().unwrap().position, Position(6), "rejects alone move the cursor, too");
}

#[test]
fn a_stop_publishes_what_is_left_but_never_waits_for_a_kafka_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    let running = Running::start(&cluster, &journal);
    append(&journal, 0, &["a"]);
    running.settle();
    append(&journal, 1, &["b"]);
    running.stop();
    assert_eq!(cluster.bodies(), ["a", "b"]);
    let publisher = Publisher::start(
        Options { brokers: vec!["127.0.0.1:1".into()], ..options() },
        "test",
        journal.clone(),
        Arc::new(SystemClock),
    );
    let publisher = publisher.unwrap();
    let begun = SystemClock.monotonic();
    assert!(publisher.stop(PATIENCE, &SystemClock));
    assert!(SystemClock.monotonic() - begun < PATIENCE / 2);
}

/// A cluster whose client breaks.
struct Broken;

impl Sink for Broken {
    fn connect(&mut self, _: Care) -> Result<Box<dyn Session>, Doubt> {
        panic!("a fault of this program, for the test");
    }
}

#[test]
fn a_publisher_that_ends_by_a_fault_is_noticed_and_one_that_was_stopped_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let mut broken = work(&Cluster::default(), &journal);
    broken.sink = Box::new(Broken);
    let publisher = Publisher::spawn(broken).unwrap();
    until("it is noticed", || !publisher.is_sound());
    assert!(!publisher.stop(PATIENCE, &SystemClock));
    let publisher = Publisher::spawn(work(&Cluster::default(), &journal)).unwrap();
    assert!(publisher.is_sound());
    assert!(publisher.stop(PATIENCE, &SystemClock));
    assert!(publisher.is_sound());
}

/// Flips a bit in the middle of the only segment with records.
fn damage(dir: &Path) {
    let mut segments: Vec<_> =
        std::fs::read_dir(dir.join("journal")).unwrap().map(|file| file.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    segments.sort();
    let segment = segments.pop().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = (4096 + bytes.iter().rposition(|byte| *byte != 0).unwrap()) / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
}

#[test]
fn what_lies_before_damage_leaves_before_publishing_stops_there() {
    for on_damage in [OnDamage::Skip, OnDamage::Stop] {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, journal) = (Cluster::default(), open(dir.path()));
        for number in 0..30 {
            append(&journal, number, &[&format!("{number:0100}")]);
        }
        assert!(journal.close(PATIENCE, &SystemClock));
        damage(dir.path());
        let options = crate::journal::Options { on_damage, ..journal_options(dir.path()) };
        let journal = Journal::open(options, Arc::new(SystemClock), Arc::new(Quiet)).unwrap();
        let lost = journal.stats().counts.damaged;
        assert!((1..5).contains(&lost), "{lost}");
        let running = Running::start(&cluster, &journal);
        let published = if on_damage == OnDamage::Stop {
            until("it stops", || running.stats.blocked() == Some("damage"));
            cluster.bodies().len() as u64
        } else {
            running.settle();
            cluster.bodies().len() as u64 + lost
        };
        assert!(if on_damage == OnDamage::Stop { (5..25).contains(&published) } else { published == 30 });
        running.stop();
        let counts = journal.stats().counts;
        assert_eq!(counts.accepted, counts.published + counts.pending + counts.damaged, "{counts:?}");
    }
}

#[test]
fn what_can_not_be_delivered_in_time_is_delivered_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = (Cluster::default(), open(dir.path()));
    cluster.state().in_time = Some(30);
    let bodies: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    append(&journal, 0, &bodies.iter().map(String::as_str).collect::<Vec<_>>());
    let running = Running::start(&cluster, &journal);
    running.settle();
    assert_eq!(cluster.bodies(), bodies);
    let commits = cluster.state().commits;
    let tries = cluster.state().connections;
    assert!(commits < 60, "{commits} transactions of at most 30 for 500");
    assert!(tries < 16, "{tries} connections: each costs a time-out");
    // As soon as it can be, transactions are large again.
    cluster.state().in_time = None;
    append(&journal, 500, &["x"; 1000]);
    running.settle();
    running.stop();
    let more = cluster.state().commits - commits;
    assert!(more < 70, "{more} transactions for 1000");
    assert_eq!(cluster.bodies().len(), 1500);
    assert_eq!(cluster.state().connections, tries);
}
