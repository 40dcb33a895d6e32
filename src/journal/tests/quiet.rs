//! A node that few visit: what it was told is gone in time all the same.

use std::path::Path;

use super::super::queue::Queue;
use super::clock::ManualClock;
use super::model::cursor_at;
use super::sim::SimDisk;
use super::world::DIR;
use super::*;

const HOUR_MS: u64 = 3_600_000;

struct Quiet {
    clock: Arc<ManualClock>,
    journal: Journal,
    committer: Committer,
}

fn quiet(publishes: bool, acknowledge: Acknowledge) -> Quiet {
    let disk = SimDisk::new(3, Path::new(DIR));
    let options = Options { publishes, acknowledge, ..options(Path::new(DIR)) };
    assert_eq!(options.retention, Duration::from_millis(HOUR_MS));
    let clock = Arc::new(ManualClock::new());
    let (journal, mut committer) = prepare(Arc::new(disk), options, clock.clone(), Arc::new(Told::default())).unwrap();
    committer.upkeep(false).unwrap();
    Quiet { clock, journal, committer }
}

impl Quiet {
    fn record(&mut self, number: u64) {
        let (appender, _driver) = self.journal.appender();
        appender.append(head(Kind::Event, number), b"key", |out| out.push(b'x')).unwrap();
        appender.flush();
        self.committer.turn(&mut Queue::default()).unwrap();
    }

    /// Time, with upkeep once a minute.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(60_000) {
            self.clock.pass(60_000);
            self.committer.upkeep(true).unwrap();
        }
    }

    fn kept(&self) -> Vec<u64> {
        read(self.journal.reader(self.journal.oldest())).0
    }
}

#[test]
fn a_published_event_of_a_quiet_node_is_gone_after_twice_the_retention() {
    let mut quiet = quiet(true, Acknowledge::Synced);
    quiet.record(0);
    quiet.journal.advance(cursor_at(1)).unwrap();
    quiet.pass(HOUR_MS - 60_000);
    quiet.record(1);
    quiet.journal.advance(cursor_at(2)).unwrap();
    quiet.pass(60_000);
    assert_eq!(quiet.kept(), [0, 1], "a later one is kept as long as it is to be");
    quiet.pass(HOUR_MS);
    assert_eq!(quiet.kept(), [0; 0]);
    assert_eq!(quiet.journal.stats().counts.accepted, 2);
    quiet.record(2);
    assert_eq!(quiet.kept(), [2]);
    quiet.committer.finish();
}

#[test]
fn without_kafka_it_expires_and_is_counted() {
    let mut quiet = quiet(false, Acknowledge::Synced);
    quiet.record(0);
    quiet.pass(2 * HOUR_MS);
    assert_eq!(quiet.kept(), [0; 0]);
    assert_eq!(quiet.journal.stats().counts.expired, 1);
    quiet.committer.finish();
}

#[test]
fn while_kafka_is_away_time_makes_one_file_and_takes_nothing() {
    let mut quiet = quiet(true, Acknowledge::Synced);
    for number in 0..20 {
        quiet.record(number);
        quiet.pass(HOUR_MS);
    }
    assert_eq!(quiet.kept(), (0..20).collect::<Vec<_>>());
    assert_eq!(quiet.journal.0.common.view.snapshot().segments.len(), 2, "closed once by age, and no more");
    quiet.committer.finish();
}

#[test]
fn what_was_only_written_reaches_readers_by_the_closing() {
    let mut quiet = quiet(true, Acknowledge::Written);
    quiet.record(0);
    quiet.clock.pass(HOUR_MS);
    quiet.committer.upkeep(false).unwrap();
    assert_eq!(quiet.kept(), [0]);
    quiet.committer.finish();
}
