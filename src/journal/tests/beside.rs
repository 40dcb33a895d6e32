//! A reader beside the committer: at no moment does it see an end without the segments that lead there.

use std::sync::{Arc, Mutex, OnceLock};

use super::super::*;
use super::{append, options};
use crate::record::Position;
use crate::time::SystemClock;

/// Reads all that is durable in the very moment in which a commit is told, before anything else is done.
#[derive(Default)]
struct Beside {
    journal: OnceLock<Journal>,
    reader: Mutex<Option<Reader>>,
    numbers: Mutex<Vec<u64>>,
    damages: Mutex<Vec<Damage>>,
}

impl Observer for Beside {
    fn committed(&self, _: &Commit) {
        let mut reader = self.reader.lock().unwrap();
        let reader = reader.get_or_insert_with(|| self.journal.get().unwrap().reader(Position(0)));
        loop {
            match reader.read_next().unwrap() {
                Next::Batch(batch) => {
                    self.numbers.lock().unwrap().extend(batch.entries().map(|entry| entry.head.time_ms));
                }
                Next::Damage(damage) => self.damages.lock().unwrap().push(damage),
                Next::Expired(position) => panic!("nothing expires: {position}"),
                Next::End => return,
            }
        }
    }
}

#[test]
fn a_reader_sees_no_end_without_the_segments_before_it() {
    for acknowledge in [Acknowledge::Synced, Acknowledge::Written] {
        let dir = tempfile::tempdir().unwrap();
        let beside = Arc::new(Beside::default());
        let options = Options { acknowledge, max_bytes: MIN_MAX_BYTES * 64, ..options(dir.path()) };
        let journal = Journal::open(options, Arc::new(SystemClock), beside.clone()).unwrap();
        beside.journal.set(journal.clone()).ok().unwrap();
        // Several times the length of a segment, so that many commits open the next one.
        let mut numbers = 0;
        for _ in 0..60 {
            append(&journal, numbers..numbers + 16, 3_000).unwrap();
            numbers += 16;
        }
        assert!(journal.close(std::time::Duration::from_secs(20), &SystemClock));
        assert!(journal.stats().bytes > 5 * MIN_SEGMENT_BYTES, "it has as many segments");
        assert_eq!(*beside.damages.lock().unwrap(), [], "{acknowledge:?}");
        let read = beside.numbers.lock().unwrap().clone();
        assert_eq!(read, (0..read.len() as u64).collect::<Vec<_>>(), "in order, none left out");
        assert!(acknowledge == Acknowledge::Written || read.len() as u64 == numbers);
    }
}
