//! A file system that is full to its last byte: publishing must be able to empty it.

use std::path::Path;

use super::super::queue::Queue;
use super::clock::ManualClock;
use super::sim::SimDisk;
use super::world::DIR;
use super::*;

fn cursor_behind(batch: &Batch) -> Cursor {
    Cursor {
        position: batch.next(),
        incarnation: batch.incarnation,
        record_id: batch.entries().last().unwrap().head.id,
        cluster_id: "cluster".into(),
        events_topic: "events".into(),
        rejected_topic: String::new(),
        mode: "exactly_once".into(),
    }
}

/// Appends until there is no room; returns how many records were taken.
fn fill(journal: &Journal, committer: &mut Committer) -> u64 {
    let (appender, _driver) = journal.appender();
    let mut batch = Queue::default();
    for number in 0..10_000 {
        match appender.append(head(Kind::Event, number), b"key", |out| out.resize(out.len() + 20_000, b'x')) {
            Ok(_) => appender.flush(),
            Err(Refused::Full { .. }) => return number,
            Err(refused) => panic!("{refused:?}"),
        }
        let _ = committer.turn(&mut batch);
    }
    panic!("it never fills up");
}

#[test]
fn publishing_empties_a_disk_without_a_byte_left() {
    let (disk, clock) = (SimDisk::new(1, Path::new(DIR)), Arc::new(ManualClock::new()));
    let options = Options { max_bytes: 64 << 20, ..options(Path::new(DIR)) };
    let (journal, mut committer) =
        prepare(Arc::new(disk.clone()), options, clock.clone(), Arc::new(Told::default())).unwrap();
    committer.upkeep(false).unwrap();
    disk.set_capacity(disk.used() + 2_000_000);
    let taken = fill(&journal, &mut committer);
    assert!(taken > 50, "{taken}");
    assert_eq!(journal.health(), Health::Full);
    // Others have written what was left, and write whatever becomes free.
    disk.set_capacity(disk.used());

    let mut reader = journal.reader(journal.oldest());
    while let Next::Batch(batch) = reader.read_next().unwrap() {
        journal.advance(cursor_behind(&batch)).expect("the reserve is for this");
    }
    clock.pass(2000);
    committer.upkeep(false).unwrap();
    assert_eq!(journal.stats().counts.pending, 0);
    disk.set_capacity(u64::MAX);
    clock.pass(2000);
    committer.upkeep(false).unwrap();
    assert_eq!(journal.health(), Health::Ready);
    committer.finish();
}

#[test]
fn the_reserve_is_found_again_and_made_again() {
    let disk = SimDisk::new(2, Path::new(DIR));
    let paths = Paths::new(Path::new(DIR));
    disk.create_dir(&paths.journal).unwrap();
    let reserve = || super::super::reserve::Reserve::find(Arc::new(disk.clone()), &paths);
    reserve().keep();
    let used = disk.used();
    disk.set_capacity(used);
    let file = |bytes: usize| disk.replace(&paths.cursor(), &vec![b'x'; bytes]);
    assert!(file(1000).is_err(), "without the reserve there is no room");
    let again = reserve();
    again.spend(|| file(1000)).unwrap();
    again.keep();
    assert!(again.spend(|| file(100_000_000)).is_err(), "no reserve holds this");
    disk.set_capacity(u64::MAX);
    again.keep();
    assert!(disk.used() > used, "made again");
}
