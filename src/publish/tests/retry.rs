//! Parked records that are offered again.

use super::*;
use crate::publish::parked;
use crate::publish::retry::Retried;

/// A journal with these bodies published, those with `LARGE` in them parked.
fn with_parked(dir: &Path, bodies: &[&str]) -> (Cluster, Journal) {
    let (cluster, journal) = (Cluster::default(), open(dir));
    cluster.state().refuses = Some(|body| body.contains("LARGE").then_some(Code::MessageSizeTooLarge));
    append(&journal, 0, bodies);
    let running = Running::start(&cluster, &journal);
    running.settle();
    running.stop();
    (cluster, journal)
}

fn retry(cluster: &Cluster, journal: &Journal) -> Result<Retried, Doubt> {
    work(cluster, journal).retry()
}

fn counts(journal: &Journal) -> (u64, u64, u64) {
    let counts = journal.stats().counts;
    assert_eq!(counts.accepted, counts.published + counts.pending + counts.parked, "{counts:?}");
    (counts.published, counts.pending, counts.parked)
}

#[test]
fn what_goes_through_is_no_longer_parked_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = with_parked(dir.path(), &["LARGE 0", "a", "LARGE 2", "LARGE 3", "b"]);
    assert_eq!(counts(&journal), (2, 0, 3));
    cluster.state().refuses = Some(|body| body.contains("LARGE 2").then_some(Code::MessageSizeTooLarge));
    let retried = retry(&cluster, &journal).unwrap();
    assert_eq!((retried.delivered, retried.refused.len(), retried.refused[0].0), (2, 1, Position(2)));
    assert_eq!(cluster.bodies(), ["a", "b", "LARGE 0", "LARGE 3"]);
    assert_eq!(counts(&journal), (4, 0, 1));
    cluster.state().refuses = None;
    assert_eq!(retry(&cluster, &journal).unwrap(), Retried { delivered: 1, refused: vec![] });
    assert_eq!(retry(&cluster, &journal).unwrap(), Retried::default());
    assert_eq!(counts(&journal), (5, 0, 0));
    // Publishing goes on as if nothing had been.
    append(&journal, 5, &["c"]);
    let running = Running::start(&cluster, &journal);
    running.settle();
    running.stop();
    assert_eq!(cluster.bodies(), ["a", "b", "LARGE 0", "LARGE 3", "LARGE 2", "c"]);
}

#[test]
fn a_crash_after_the_commit_sends_nothing_twice_whoever_comes_next() {
    for next_is_the_gateway in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, journal) = with_parked(dir.path(), &["LARGE 0", "a", "LARGE 2"]);
        {
            let mut state = cluster.state();
            state.refuses = None;
            state.fates.push_back(Fate::CommitUnknown(Code::OperationTimedOut));
        }
        // The answer is lost: as after a crash, the files are still there.
        assert!(retry(&cluster, &journal).is_err());
        assert_eq!(parked::positions(dir.path()).unwrap(), [Position(0), Position(2)]);
        append(&journal, 3, &["b"]);
        if next_is_the_gateway {
            let running = Running::start(&cluster, &journal);
            running.settle();
            running.stop();
        }
        assert_eq!(retry(&cluster, &journal).unwrap(), Retried::default());
        let running = Running::start(&cluster, &journal);
        running.settle();
        running.stop();
        assert_eq!(cluster.bodies(), ["a", "LARGE 0", "LARGE 2", "b"]);
        assert_eq!(counts(&journal), (4, 0, 0));
    }
}

#[test]
fn a_commit_that_is_not_there_leaves_everything_parked() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, journal) = with_parked(dir.path(), &["LARGE 0", "a"]);
    cluster.state().refuses = None;
    for fate in [
        Fate::Connect(Code::AllBrokersDown),
        Fate::Standing(Code::GroupAuthorizationFailed),
        Fate::Deliver(Code::MessageTimedOut),
        Fate::CommitLost(Code::OperationTimedOut),
    ] {
        cluster.state().fates.push_back(fate);
        assert!(retry(&cluster, &journal).is_err(), "{fate:?}");
        assert_eq!(counts(&journal), (1, 0, 1));
    }
    assert_eq!(retry(&cluster, &journal).unwrap().delivered, 1);
    assert_eq!(cluster.bodies(), ["a", "LARGE 0"]);
}

#[test]
fn many_are_offered_together_and_an_unreadable_file_is_told_and_left() {
    let dir = tempfile::tempdir().unwrap();
    let bodies: Vec<String> = (0..250).map(|number| format!("LARGE {number}")).chain(["x".into()]).collect();
    let (cluster, journal) = with_parked(dir.path(), &bodies.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(counts(&journal), (1, 0, 250));
    std::fs::write(dir.path().join("parked/7.json"), "{}").unwrap();
    cluster.state().refuses = Some(|body| (body == "LARGE 99").then_some(Code::MessageSizeTooLarge));
    let commits = cluster.state().commits;
    let retried = retry(&cluster, &journal).unwrap();
    let left: Vec<u64> = retried.refused.iter().map(|(position, _)| position.0).collect();
    assert_eq!((retried.delivered, left), (248, vec![7, 99]));
    assert!(cluster.state().commits - commits < 15);
    assert_eq!(counts(&journal), (249, 0, 2));
}
