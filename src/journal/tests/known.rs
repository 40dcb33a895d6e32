//! Known situations: each way a file can be wrong, and what must be reported.

use std::fs;
use std::path::PathBuf;

use super::*;

fn at(position: u64) -> Cursor {
    Cursor {
        position: Position(position),
        incarnation: [0; 16],
        record_id: [0; 16],
        cluster_id: "c".into(),
        events_topic: "e".into(),
        rejected_topic: String::new(),
        mode: "exactly_once".into(),
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir.join("journal")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    paths.sort();
    paths
}

fn events_in(range: std::ops::Range<u64>) -> u64 {
    range.filter(|number| number % 3 != 2).count() as u64
}

#[test]
fn a_newer_directory_is_refused_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("journal")).unwrap();
    let identity = dir.path().join("journal/journal.json");
    fs::write(&identity, r#"{"format":2,"journal_id":"x"}"#).unwrap();
    let error = Journal::open(options(dir.path()), Arc::new(SystemClock), Arc::new(Told::default())).err().unwrap();
    assert!(matches!(error, OpenError::Newer { found: 2, .. }), "{error}");
    assert_eq!(fs::read_dir(dir.path().join("journal")).unwrap().count(), 1);
}

#[test]
fn records_survive_a_restart_in_order_with_their_counts() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(options(dir.path()));
    let id = journal.id();
    // In parts: all at once take nearly all the room, of which some is promised a moment late.
    (0..1000).step_by(100).for_each(|start| append(&journal, start..start + 100, 300).unwrap());
    close(journal);
    let journal = open(options(dir.path()));
    assert_eq!(journal.id(), id);
    append(&journal, 1000..1100, 300).unwrap();
    assert_eq!(read(journal.reader(Position(0))), ((0..1100).collect(), vec![]));
    assert_eq!(read(journal.reader(Position(700))).0, (700..1100).collect::<Vec<_>>());
    assert_eq!(journal.stats().counts.accepted, events_in(0..1100));
    assert_eq!(journal.stats().counts.pending, events_in(0..1100));
    journal.advance(at(555)).unwrap();
    let counts = journal.stats().counts;
    assert_eq!((counts.published, counts.pending), (events_in(0..555), events_in(555..1100)));
    assert_eq!(journal.holds(Position(700)).unwrap().unwrap().id, head(Kind::Event, 700).id);
    close(journal);
}

#[test]
fn a_killed_run_loses_nothing_that_was_acknowledged() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let journal = open(options(dir.path()));
    for start in (0..2000).step_by(100) {
        append(&journal, start..start + 100, 300).unwrap();
    }
    copy_dir(dir.path(), copy.path());
    close(journal);
    let journal = open(options(copy.path()));
    assert_eq!(read(journal.reader(Position(0))), ((0..2000).collect(), vec![]));
    close(journal);
}

#[test]
fn a_torn_tail_is_cut_and_positions_go_on() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let journal = open(options(dir.path()));
    append(&journal, 0..10, 300).unwrap();
    append(&journal, 10..20, 300).unwrap();
    copy_dir(dir.path(), copy.path());
    close(journal);
    // The last batch loses one byte, as if its page had not reached the disk.
    let segment = segments(copy.path()).pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[last] = 0;
    fs::write(&segment, bytes).unwrap();
    let journal = open(options(copy.path()));
    append(&journal, 100..103, 300).unwrap();
    let (numbers, damages) = read(journal.reader(Position(0)));
    assert_eq!(numbers, (0..10).chain(100..103).collect::<Vec<_>>());
    assert_eq!(damages, vec![]);
    close(journal);
}

#[test]
fn a_flipped_bit_in_durable_bytes_is_damage_with_exact_counts() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(options(dir.path()));
    for start in (0..100).step_by(10) {
        append(&journal, start..start + 10, 300).unwrap();
    }
    close(journal);
    let segment = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&segment, bytes).unwrap();
    let journal = open(options(dir.path()));
    let (numbers, damages) = read(journal.reader(Position(0)));
    let [damage] = &damages[..] else { panic!("{damages:?}") };
    assert_eq!(damage.next.0 - damage.first.0, 10);
    assert_eq!(damage.events, events_in(damage.first.0..damage.next.0));
    assert!(damage.byte as usize <= middle && middle < (damage.byte + damage.bytes) as usize, "{damage}");
    let lost = damage.first.0..damage.next.0;
    assert_eq!(numbers, (0..100).filter(|number| !lost.contains(number)).collect::<Vec<_>>());
    let counts = journal.stats().counts;
    assert_eq!(counts.damaged, damage.events);
    assert_eq!(counts.accepted, counts.pending + counts.damaged);
    assert!(!journal.damaged(damage).unwrap(), "found at the start already");
    journal.advance(at(100)).unwrap();
    let counts = journal.stats().counts;
    assert_eq!((counts.pending, counts.accepted), (0, counts.published + counts.damaged));
    close(journal);
}

#[test]
fn a_destroyed_header_costs_nothing_but_the_header() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(options(dir.path()));
    append(&journal, 0..100, 300).unwrap();
    close(journal);
    let segment = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[..4096].fill(0);
    fs::write(&segment, bytes).unwrap();
    let journal = open(options(dir.path()));
    assert_eq!(read(journal.reader(Position(0))), ((0..100).collect(), vec![]));
    close(journal);
}

#[test]
fn full_refuses_and_publishing_makes_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(Options { max_bytes: MIN_MAX_BYTES, ..options(dir.path()) });
    let mut next = 0;
    loop {
        match append(&journal, next..next + 50, 2000) {
            Ok(()) => next += 50,
            Err(Refused::Busy) => std::thread::yield_now(),
            Err(refused) => break assert!(matches!(refused, Refused::Full { .. }), "{refused:?}"),
        }
        assert!(next < 10_000, "max_bytes must bound it");
    }
    assert_eq!(journal.health(), Health::Full);
    assert!(journal.stats().bytes <= MIN_MAX_BYTES);
    journal.advance(at(journal.synced().0)).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while journal.health() == Health::Full {
        assert!(std::time::Instant::now() < deadline, "room must come back");
        std::thread::yield_now();
    }
    append(&journal, 20_000..20_001, 2000).unwrap();
    close(journal);
}

#[test]
fn without_kafka_the_oldest_expires_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(Options { max_bytes: MIN_MAX_BYTES, publishes: false, ..options(dir.path()) });
    for start in (0..2000).step_by(50) {
        while let Err(refused) = append(&journal, start..start + 50, 2000) {
            assert_eq!(refused, Refused::Busy);
        }
    }
    let stats = journal.stats();
    assert!(stats.bytes <= MIN_MAX_BYTES);
    assert!(stats.counts.expired > 0);
    assert_eq!(stats.counts.accepted, stats.counts.expired + stats.counts.pending);
    let (numbers, damages) = read(journal.reader(Position(0)));
    assert_eq!((numbers.first().copied(), damages), (Some(stats.oldest_position.0), vec![]));
    close(journal);
}

#[test]
fn written_records_reach_readers_only_when_synced() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(Options { acknowledge: Acknowledge::Written, ..options(dir.path()) });
    append(&journal, 0..10, 100).unwrap();
    assert_eq!(journal.wait(Position(9), Duration::from_secs(10)), Position(10));
    close(journal);
}

#[test]
fn a_closed_journal_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(options(dir.path()));
    close(journal.clone());
    assert_eq!(append(&journal, 0..1, 10), Err(Refused::Closed));
}

#[test]
fn a_record_beyond_the_bound_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(options(dir.path()));
    assert_eq!(append(&journal, 0..1, frame::MAX_RECORD_BYTES), Err(Refused::TooLarge));
    append(&journal, 0..1, frame::MAX_RECORD_BYTES - 100).unwrap();
    close(journal);
}
