//! Random histories of a journal on a simulated disk, held against a plain list of what was appended and answered.
//!
//! No thread and no real time: the committer is turned by hand, so a seed replays exactly. A failure prints its seed:
//! `PIXELGATE_MODEL_SEED=<seed> cargo test --lib journal::tests::model`. For longer:
//! `PIXELGATE_MODEL_RUNS=20000 cargo test --lib journal::tests::model`.

use std::path::Path;

use rand::RngExt;

use super::oracle;
use super::truth::{body, kind};
use super::world::{DIR, World};
use super::*;

/// Histories per ordinary test run: a few seconds.
const RUNS: u64 = 200;
/// Actions in one history.
const ACTIONS: usize = 40;

impl World {
    /// Reads some as the publisher does and moves the cursor; sometimes back, as for another cluster.
    fn publish(&mut self) {
        let back = self.rng.random_bool(0.1);
        let Some(run) = self.run.as_mut().filter(|run| run.journal.0.common.options.publishes) else { return };
        if back {
            let (oldest, now) = (run.journal.oldest_to_publish().0, run.publisher.position().0);
            let position = self.rng.random_range(oldest.min(now)..=now);
            if self.truth.is_readable(position) {
                run.publisher = run.journal.reader(Position(position));
            }
        }
        for _ in 0..self.rng.random_range(0..6) {
            let before = run.publisher.position().0;
            match run.publisher.read_next().unwrap() {
                Next::Batch(batch) => self.truth.published(before, &batch),
                Next::Damage(damage) => {
                    let is_saved = run.journal.damaged(&damage).is_ok();
                    self.truth.noted(&damage, is_saved);
                }
                Next::Expired(position) => assert!(before < position.0 && position == run.journal.oldest()),
                Next::End => break,
            }
        }
        let mut position = run.publisher.position().0;
        let is_left = position > run.journal.oldest().0;
        if is_left && self.rng.random_bool(0.2) && self.truth.is_readable(position - 1) {
            // In the midst of a batch: a transaction holds only so much.
            position -= 1;
            run.publisher = run.journal.reader(Position(position));
        }
        let moved = run.journal.advance(cursor_at(position)).is_ok();
        assert!(moved || self.disk.is_troubled(), "the cursor must be stored");
        self.truth.advanced(position, moved);
        if !moved {
            run.publisher = run.journal.reader(run.journal.stats().publish_position);
        }
    }

    /// As the publisher does; without one nothing is parked.
    fn park(&mut self) {
        let Some(run) = self.run.as_ref().filter(|run| run.journal.0.common.options.publishes) else { return };
        let Some(position) = self.truth.parkable(&mut self.rng) else { return };
        let paths = Paths::new(Path::new(DIR));
        let path = paths.parked.join(format!("{position}.json"));
        self.truth.maybe_parked.insert(position);
        let kept = self.disk.create_dir(&paths.parked).and_then(|()| self.disk.sync_dir(Path::new(DIR)));
        if kept.and_then(|()| self.disk.replace(&path, b"refused")).is_ok() {
            run.journal.park(Position(position), 7);
            self.truth.parked.insert(position);
            self.truth.maybe_parked.remove(&position);
        }
    }

    fn unpark(&mut self) {
        let Some(run) = &self.run else { return };
        let Some(position) = self.truth.parked.first().copied() else { return };
        let paths = Paths::new(Path::new(DIR));
        self.truth.maybe_parked.insert(position);
        let gone = self.disk.remove(&paths.parked.join(format!("{position}.json")));
        if gone.and_then(|()| self.disk.sync_dir(&paths.parked)).is_ok() {
            run.journal.unpark(Position(position));
            self.truth.parked.remove(&position);
            self.truth.maybe_parked.remove(&position);
        }
    }

    /// Bits rot in the bytes of a closed journal.
    fn rot(&mut self) {
        assert!(self.run.is_none(), "rot is found at the next start");
        let (journal, id) = (self.journal_dir(), self.truth.journal_id.unwrap_or([0; 16]));
        let layouts = oracle::layouts(&self.disk, &journal, &id);
        if layouts.is_empty() {
            return;
        }
        let newest = layouts[layouts.len() - 1].seq;
        let layout = &layouts[self.rng.random_range(0..layouts.len())];
        self.truth.rotted(std::iter::empty());
        let path = journal.join(segment::segment_name(layout.seq));
        // Of records that can't be read only the next segment tells. If that is gone, too, nobody knows of them.
        let is_witness = layout.base > self.truth.oldest() && !self.truth.is_readable(layout.base - 1);
        if self.rng.random_bool(0.1) && !is_witness {
            // Never the same byte of both: that may look like a newer format, which is for a person to judge.
            let (first, apart) = (self.rng.random_range(0..84), self.rng.random_range(1..84));
            for at in [first, 2048 + (first + apart) % 84] {
                self.disk.flip(&path, at * 8);
            }
        }
        for _ in 0..self.rng.random_range(0..3) {
            if layout.batches.is_empty() {
                break;
            }
            let (offset, batch) = &layout.batches[self.rng.random_range(0..layout.batches.len())];
            // The same of the last batch, where records before it rotted earlier.
            let is_last = layout.seq == newest && Some(*offset) == layout.batches.last().map(|(offset, _)| *offset);
            if is_last && (self.truth.oldest()..batch.base.0).any(|position| !self.truth.is_readable(position)) {
                continue;
            }
            // Heads are small, and what they say of others is worth more.
            let bits = if self.rng.random_bool(0.3) { 512 } else { batch.bytes() * 8 };
            self.disk.flip(&path, offset * 8 + self.rng.random_range(0..bits));
            self.truth.rotted(batch.base.0..batch.next().0.max(batch.base.0 + 1));
        }
    }

    fn act(&mut self) {
        if self.run.is_none() {
            match self.rng.random_range(0..10) {
                0 => self.rot(),
                1 => self.options.publishes = self.rng.random_bool(0.7),
                2 => self.cut_power(),
                3..6 => self.make_well(),
                _ => {}
            }
            return self.open();
        }
        match self.rng.random_range(0..100) {
            0..40 => {
                self.append();
                self.turn();
            }
            40..45 => self.append(),
            45..55 => self.idle(),
            55..70 => self.publish(),
            70..73 => self.park(),
            73..75 => self.unpark(),
            75..78 => self.fail_somewhere(),
            78..80 => self.disk.heal(),
            80..83 => self.disk.set_capacity(self.disk.used() + self.rng.random_range(0..300_000)),
            83..86 => self.disk.set_capacity(u64::MAX),
            86..87 => self.disk.set_read_only(true),
            87..89 => self.disk.set_read_only(false),
            89..91 => self.read_all(),
            91..94 => self.close(),
            94..96 => self.crash(false),
            _ => self.crash(true),
        }
        self.check();
    }

    /// Whatever happened, a healthy disk with room makes a journal that takes records.
    fn must_work_again(&mut self) {
        self.make_well();
        self.options.publishes = true;
        self.close();
        self.open();
        for _ in 0..200 {
            self.pass(2000);
            self.turn();
            self.idle();
            self.publish();
            self.check();
            let run = self.run.as_ref().expect("nothing fails");
            if run.journal.health() == Health::Ready && run.publisher.position() == run.journal.synced() {
                break;
            }
        }
        assert_eq!(self.run.as_ref().expect("nothing fails").journal.health(), Health::Ready);
        let number = self.truth.appended(100);
        let run = self.run.as_mut().expect("nothing fails");
        let body = body(number, 100);
        let (appender, _, held) = &mut run.appenders[0];
        let receipt = appender.append(head(kind(number), number), b"key", |out| out.extend_from_slice(&body));
        held.push((number, receipt.unwrap()));
        self.turn();
        while self.run.as_ref().is_some_and(|run| run.journal.synced() < run.journal.written()) {
            self.idle();
        }
        self.read_all();
        self.check();
        assert_eq!(self.truth.numbers().last(), Some(&number), "the last record is there");
        self.close();
    }
}

pub(super) fn cursor_at(position: u64) -> Cursor {
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

fn history(seed: u64) {
    let mut world = World::new(seed);
    let mut backup: Option<World> = None;
    for _ in 0..ACTIONS {
        world.act();
        if world.run.is_none() {
            match world.rng.random_range(0..20) {
                0 => backup = Some(world.copy()),
                // Back to the older copy: what came since is of another history.
                1 => {
                    if let Some(older) = backup.take() {
                        world = older;
                    }
                }
                // A clone: both go on.
                2 => {
                    let mut clone = world.copy();
                    for _ in 0..5 {
                        clone.act();
                    }
                    clone.must_work_again();
                }
                3 if world.rng.random_bool(0.3) => {
                    let id = world.truth.journal_id;
                    world = World::new(world.rng.random());
                    world.open();
                    assert_ne!(world.truth.journal_id, id, "a fresh volume is another journal");
                }
                _ => {}
            }
        }
    }
    world.must_work_again();
}

#[test]
fn random_histories_keep_every_promise() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    if let Some(seed) = number("PIXELGATE_MODEL_SEED") {
        return history(seed);
    }
    // The same each time, so that nobody is surprised by a find in another's work; longer runs look further.
    let runs = number("PIXELGATE_MODEL_RUNS");
    let first = if runs.is_some() { rand::random::<u64>() >> 16 } else { 1 };
    for seed in first..first + runs.unwrap_or(RUNS) {
        if let Err(panic) = std::panic::catch_unwind(|| history(seed)) {
            eprintln!("replay with PIXELGATE_MODEL_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
