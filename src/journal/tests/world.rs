//! A journal on a simulated disk, driven by hand: no thread, no real time. Every start and figure is checked.

use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::damage::Ledger;
use super::super::queue::Queue;
use super::clock::ManualClock;
use super::oracle;
use super::sim::{Call, SimDisk};
use super::slow_sync::SlowSync;
use super::truth::{Truth, body, kind};
use super::*;

/// Where the simulated disk has its data directory.
pub const DIR: &str = "/data/node";

/// Numbers of records with their receipts.
type Receipts = Vec<(u64, Receipt)>;

/// A journal that is open, and whoever appends to it and publishes from it.
pub struct Run {
    pub journal: Journal,
    pub committer: Committer,
    pub batch: Queue,
    pub appenders: Vec<(Appender, Driver, Receipts)>,
    /// Handed over and not answered, in that order.
    pub waiting: Receipts,
    pub publisher: Reader,
}

/// One disk with what is known of it.
pub struct World {
    pub disk: SimDisk,
    pub clock: Arc<ManualClock>,
    pub rng: StdRng,
    pub options: Options,
    pub truth: Truth,
    pub run: Option<Run>,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let options = Options {
            acknowledge: if rng.random_bool(0.7) { Acknowledge::Synced } else { Acknowledge::Written },
            max_bytes: MIN_MAX_BYTES * rng.random_range(1..4),
            publishes: rng.random_bool(0.7),
            // Short ones: the open segment is closed by age, too.
            retention: Duration::from_secs([0, 100, 3600][rng.random_range(0..3)]),
            ..super::options(Path::new(DIR))
        };
        let clock = ManualClock::new();
        let disk = SimDisk::new(rng.random(), Path::new(DIR));
        World { disk, clock: Arc::new(clock), rng, options, truth: Truth::default(), run: None }
    }

    /// Another world that begins as this one is, as a clone or a backup does. Only while the journal is closed.
    pub fn copy(&mut self) -> World {
        assert!(self.run.is_none(), "an open journal is not copied");
        let seed = self.rng.random();
        let (clock, options) = (self.clock.clone(), self.options.clone());
        let truth = self.truth.clone();
        World { disk: self.disk.copy(seed), clock, rng: StdRng::seed_from_u64(seed), options, truth, run: None }
    }

    pub fn journal_dir(&self) -> PathBuf {
        Path::new(DIR).join("journal")
    }

    /// Opens what is there and checks all of it.
    pub fn open(&mut self) {
        let paths = Paths::new(Path::new(DIR));
        let changes = self.disk.changes();
        let seen = recover::inspect(&self.disk, &paths).unwrap();
        let cursor = seen.cursor.position.0;
        assert_eq!(self.disk.changes(), changes, "looking must not write");
        let id = seen.journal_id.unwrap_or([0; 16]);
        let verdict = oracle::judge(&oracle::layouts(&self.disk, &paths.journal, &id), cursor);
        assert_eq!(seen.state.next.0, verdict.end, "the end that a look finds: {verdict:?}");
        // Before the start adds to it.
        let ledger = Ledger::load(&self.disk, &paths).unwrap();
        let opened =
            prepare(Arc::new(self.disk.clone()), self.options.clone(), self.clock.clone(), Arc::new(Told::default()));
        let (journal, mut committer) = match opened {
            Ok(opened) => opened,
            Err(error) => return assert!(self.disk.is_troubled(), "must open: {error}"),
        };
        if self.options.acknowledge == Acknowledge::Written {
            committer.writer.sync_by(Box::new(SlowSync::new(StdRng::seed_from_u64(self.rng.random()))));
        }
        let parked = books::parked_files(&self.disk, &paths).unwrap();
        let is_saved = !self.disk.is_troubled();
        self.truth.parked_found(parked.keys().map(|position| position.0).collect(), is_saved);
        self.truth.ledger_found(&ledger);
        self.truth.opened(journal.id(), seen.journal_id, cursor, &verdict, journal.synced().0);
        seen.damage.iter().for_each(|damage| self.truth.noted(damage, is_saved));
        let _ = committer.upkeep(false);
        let publisher = journal.reader(journal.stats().publish_position);
        let appenders = (0..2).map(|_| journal.appender()).map(|(appender, driver)| (appender, driver, Vec::new()));
        let appenders = appenders.collect();
        let batch = Queue::default();
        self.run = Some(Run { journal, committer, batch, appenders, waiting: Vec::new(), publisher });
        self.read_all();
        self.check();
    }

    /// Reads everything from the oldest on, as `verify` does, and reports damage as the publisher does.
    pub fn read_all(&mut self) {
        let Some(run) = &self.run else { return };
        let changes = self.disk.changes();
        let mut reader = run.journal.reader(run.journal.oldest());
        let mut damages = Vec::new();
        self.truth.begin_reading(reader.position().0);
        loop {
            match reader.read_next().unwrap() {
                Next::Batch(batch) => self.truth.read(&batch),
                Next::Damage(damage) => {
                    self.truth.read_damage(&damage);
                    damages.push(damage);
                }
                Next::Expired(position) => panic!("expired at {position} under a reader of the oldest"),
                Next::End => break,
            }
        }
        self.truth.end_reading(run.journal.synced().0);
        assert_eq!(self.disk.changes(), changes, "readers must not write");
        for damage in damages {
            let is_saved = run.journal.damaged(&damage).is_ok();
            self.truth.noted(&damage, is_saved);
        }
    }

    pub fn append(&mut self) {
        let count = if self.rng.random_bool(0.2) { 12 } else { self.rng.random_range(1..5) };
        let largest = [200, 2000, 30_000][self.rng.random_range(0..3)];
        for _ in 0..count {
            let bytes = self.rng.random_range(1..largest);
            let Some(run) = &mut self.run else { return };
            let number = self.truth.appended(bytes);
            let (waiting, shared) = (&mut run.waiting, &run.journal.0.common.shared);
            let handed_over = shared.waiting();
            let (appender, _, held) = &mut run.appenders[self.rng.random_range(0..2)];
            let body = body(number, bytes);
            match appender.append(head(kind(number), number), b"key", |out| out.extend_from_slice(&body)) {
                Ok(receipt) => held.push((number, receipt)),
                Err(refused) => self.truth.refused(number, refused),
            }
            if shared.waiting() > handed_over {
                // A full chunk goes by itself.
                waiting.append(held);
            }
        }
    }

    /// Workers hand over, in some order; then the committer has its turn.
    pub fn turn(&mut self) {
        self.hand_over();
        let Some(run) = &mut self.run else { return };
        let ended = run.committer.turn(&mut run.batch).is_err();
        self.settle();
        if ended {
            self.end();
        }
    }

    pub fn hand_over(&mut self) {
        let Some(run) = &mut self.run else { return };
        let first = self.rng.random_range(0..2);
        for index in [first, 1 - first] {
            let (appender, _, held) = &mut run.appenders[index];
            appender.flush();
            run.waiting.append(held);
        }
    }

    /// Nothing came for a while.
    pub fn idle(&mut self) {
        let jump = if self.rng.random_bool(0.1) { 3_000_000 } else { self.rng.random_range(100..2000) };
        self.pass(jump);
        let Some(run) = &mut self.run else { return };
        let ended = run.committer.upkeep(true).is_err();
        self.settle();
        if ended {
            self.end();
        }
    }

    /// One of the next calls will fail.
    pub fn fail_somewhere(&mut self) {
        let no_room = self.rng.random_bool(0.3);
        let calls: &[Call] = match no_room {
            true => &[Call::Write, Call::Create, Call::Rename, Call::Replace],
            false => &Call::ALL,
        };
        let call = calls[self.rng.random_range(0..calls.len())];
        self.disk.fail(call, self.rng.random_range(0..4), no_room);
    }

    pub fn pass(&mut self, ms: u64) {
        self.clock.pass(ms);
        if self.rng.random_bool(0.05) {
            let wall = self.clock.now().0;
            self.clock.jump_to(wall / 2 + self.rng.random_range(0..wall));
        }
    }

    /// Answers that have come since.
    pub fn settle(&mut self) {
        let Some(run) = &mut self.run else { return };
        let mut context = Context::from_waker(Waker::noop());
        let (mut done, mut lost) = (Vec::new(), Vec::new());
        run.waiting.retain_mut(|(number, receipt)| match Pin::new(receipt).poll(&mut context) {
            Poll::Ready(Ok(())) => {
                done.push(*number);
                false
            }
            Poll::Ready(Err(Lost)) => {
                lost.push(*number);
                false
            }
            Poll::Pending => true,
        });
        assert!(run.waiting.is_empty() || run.journal.health() == Health::Poisoned, "each turn answers all");
        let (next, synced) = (run.journal.stats().next_position.0, run.journal.synced().0);
        let poisoned = run.journal.health() == Health::Poisoned;
        self.truth.settled(&done, &lost, next, synced, poisoned);
        if self.options.acknowledge == Acknowledge::Synced && !done.is_empty() {
            assert_eq!(synced, next, "an answer comes after the sync");
        }
    }

    /// The committer's thread ends, by itself or at a close.
    pub fn end(&mut self) {
        let Some(mut run) = self.run.take() else { return };
        let health = run.journal.health();
        run.committer.finish();
        run.batch.clear();
        let held = run.appenders.drain(..).flat_map(|(_, _, held)| held);
        let unanswered: Vec<u64> = run.waiting.drain(..).chain(held).map(|(number, _)| number).collect();
        let clean = health != Health::Poisoned && run.journal.health() != Health::Poisoned;
        if clean {
            assert_eq!(unanswered, Vec::<u64>::new());
        }
        self.truth.ended(&unanswered, clean, run.journal.synced().0);
    }

    pub fn close(&mut self) {
        self.turn();
        if let Some(run) = &self.run {
            run.journal.0.common.shared.close();
            let refused = run.appenders[0].0.append(head(Kind::Event, 0), b"", |_| {}).err();
            assert!(matches!(refused, Some(Refused::Closed | Refused::Poisoned)), "{refused:?}");
        }
        self.end();
    }

    /// The process dies, and with `power` the page cache too.
    pub fn crash(&mut self, power: bool) {
        // Sometimes amidst a commit, or between the hand-over and its commit.
        match self.rng.random_range(0..3) {
            0 => {
                self.fail_somewhere();
                self.turn();
            }
            1 => self.hand_over(),
            _ => {}
        }
        if let Some(run) = self.run.take() {
            let held = run.appenders.into_iter().flat_map(|(_, _, held)| held);
            let unanswered: Vec<u64> = run.waiting.into_iter().chain(held).map(|(number, _)| number).collect();
            self.truth.ended(&unanswered, false, run.journal.synced().0);
        }
        self.disk.heal();
        if power {
            self.cut_power();
        }
    }

    pub fn cut_power(&mut self) {
        self.disk.crash();
        self.truth.power_lost();
    }

    pub fn make_well(&mut self) {
        self.disk.heal();
        self.disk.set_capacity(u64::MAX);
        self.disk.set_read_only(false);
    }

    /// The figures add up and say what the truth says.
    pub fn check(&mut self) {
        let Some(run) = &self.run else { return };
        let stats = run.journal.stats();
        let publishes = run.journal.0.common.options.publishes;
        self.truth.expired(stats.oldest_position.0, stats.publish_position.0, publishes);
        self.truth.check(&stats);
        assert!(stats.bytes <= stats.max_bytes + self.truth.parked.len() as u64 * 7, "{stats:?}");
    }
}
