//! What a journal may and must hold, as a plain list: which record lies at which position, and what was answered.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::RngExt;
use rand::rngs::StdRng;

use super::super::damage::Ledger;
use super::oracle::Verdict;
use super::*;

/// Runs of all histories, so that each incarnation is seen to be of one.
static RUNS: AtomicU64 = AtomicU64::new(1);

/// Content of a record, made of its number; never zeros, which half a write would leave, too.
pub fn body(number: u64, bytes: usize) -> Vec<u8> {
    let mut body = vec![0x80 | number as u8; bytes];
    let named = bytes.min(8);
    body[..named].copy_from_slice(&number.to_be_bytes()[8 - named..]);
    body
}

/// Kind of a record, made of its number.
pub fn kind(number: u64) -> Kind {
    if number % 3 == 2 { Kind::Rejected } else { Kind::Event }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    number: u64,
    run: u64,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Truth {
    pub journal_id: Option<[u8; 16]>,
    /// Bytes of each record that was ever offered, by number.
    offered: Vec<usize>,
    refused: BTreeSet<u64>,
    /// By position.
    placed: Vec<Place>,
    /// All before this is promised to survive a power cut.
    sure: u64,
    /// All before this is promised to survive the end of the process.
    written: u64,
    /// The disk could not be written at the start: less is shown than is durable, as no batch tells of it.
    unrepaired: bool,
    /// Offered after `placed`, fate unknown: some first part of it may be found.
    doubtful: Vec<u64>,
    run: u64,
    incarnations: BTreeMap<u64, [u8; 16]>,
    cursor: u64,
    /// What the stored cursor may be, after an attempt to store it that failed.
    cursors: BTreeSet<u64>,
    expires: bool,
    expired_events: u64,
    oldest: u64,
    /// Positions that can't be read, and those of them that are counted as lost.
    unreadable: BTreeSet<u64>,
    noted: BTreeSet<u64>,
    /// Of these it is not known whether a restart still knows them.
    maybe_noted: BTreeSet<u64>,
    pub parked: BTreeSet<u64>,
    /// Whose file may be there or not, as an attempt failed.
    pub maybe_parked: BTreeSet<u64>,
    /// Positions of batches that rotted since the last start.
    rot: Option<BTreeSet<u64>>,
    reading: u64,
}

impl Truth {
    /// A record is offered; returns its number.
    pub fn appended(&mut self, bytes: usize) -> u64 {
        self.offered.push(bytes);
        self.offered.len() as u64 - 1
    }

    pub fn refused(&mut self, number: u64, refused: Refused) {
        assert_ne!(refused, Refused::Closed, "it is open");
        self.refused.insert(number);
    }

    /// The committer has answered.
    pub fn settled(&mut self, done: &[u64], lost: &[u64], next: u64, synced: u64, poisoned: bool) {
        for number in done {
            self.place(*number);
        }
        if poisoned {
            self.doubtful.extend(lost);
            self.durable_doubtful(synced);
        } else {
            let written = next.checked_sub(self.placed.len() as u64).expect("positions never go back");
            assert!(written <= lost.len() as u64, "only what was offered is written");
            for number in &lost[..written as usize] {
                self.place(*number);
            }
        }
        self.written = self.placed.len() as u64;
        self.synced(synced);
    }

    fn place(&mut self, number: u64) {
        self.placed.push(Place { number, run: self.run });
    }

    /// Of what has no answer a first part may be durable all the same: a segment was closed behind it.
    fn durable_doubtful(&mut self, synced: u64) {
        let durable = synced.saturating_sub(self.placed.len() as u64) as usize;
        for number in self.doubtful.drain(..durable).collect::<Vec<_>>() {
            self.place(number);
        }
    }

    fn synced(&mut self, synced: u64) {
        if self.unrepaired && synced < self.sure {
            return;
        }
        self.unrepaired = false;
        assert!(self.sure <= synced && synced <= self.placed.len() as u64, "{} {synced}", self.sure);
        self.sure = synced;
    }

    /// The run is over. After a clean close everything is durable.
    pub fn ended(&mut self, unanswered: &[u64], clean: bool, synced: u64) {
        self.doubtful.extend(unanswered);
        self.durable_doubtful(synced);
        self.synced(synced);
        if clean {
            self.sure = self.placed.len() as u64;
        }
    }

    pub fn power_lost(&mut self) {
        self.written = self.sure;
    }

    /// These positions' batches (or marks: none) rotted.
    pub fn rotted(&mut self, positions: impl Iterator<Item = u64>) {
        self.rot.get_or_insert_default().extend(positions);
    }

    /// A start: what is found is held against what was promised. `synced` is promised now: all that is found, if the
    /// disk could be written; else what was durable before.
    pub fn opened(&mut self, id: [u8; 16], on_disk: Option<[u8; 16]>, cursor: u64, verdict: &Verdict, synced: u64) {
        match on_disk {
            Some(on_disk) => assert_eq!(on_disk, id),
            None => assert_eq!(self.sure, 0, "the journal is gone"),
        }
        if on_disk.is_some() && self.journal_id.is_some() {
            assert_eq!(self.journal_id, Some(id), "the identity stays");
        }
        self.journal_id = Some(id);
        self.cursor_found(cursor);
        let (rot, end) = (self.rot.take(), verdict.end);
        // What was never durable may be gone, too, and is no torn tail where rot hides that nothing durable follows.
        let sure = self.sure;
        let excused = |position: u64| rot.as_ref().is_some_and(|rot| rot.contains(&position) || position >= sure);
        for position in verdict.damaged.iter().flat_map(Range::clone) {
            let may = excused(position);
            assert!(may || self.unreadable.contains(&position), "{position} is lost without cause: {verdict:?}");
            self.unreadable.insert(position);
        }
        if end < self.written {
            let cause = rot.as_ref().is_some_and(|rot| rot.contains(&end));
            assert!(cause, "{end} found, {} written, {} sure", self.written, self.sure);
        }
        let known = self.placed.len() as u64;
        let more = end.saturating_sub(known) as usize;
        assert!(more <= self.doubtful.len(), "{end} found, {known} known, {} doubtful", self.doubtful.len());
        for number in std::mem::take(&mut self.doubtful).into_iter().take(more) {
            self.place(number);
        }
        self.placed.truncate(end as usize);
        self.unreadable.retain(|position| *position < end);
        // What is lost before the oldest segment is no reader's to find.
        for position in cursor..verdict.oldest.max(cursor) {
            let may = self.unreadable.contains(&position) || excused(position);
            assert!(may, "{position} is lost without cause, before {}", verdict.oldest);
            self.unreadable.insert(position);
            self.noted.insert(position);
        }
        assert!(cursor <= synced.max(verdict.oldest) && synced <= end, "{cursor} {synced} {end}");
        self.unrepaired = synced < end;
        (self.sure, self.written) = (synced.max(self.sure.min(end)), end);
        self.run = RUNS.fetch_add(1, Ordering::Relaxed);
    }

    /// Files that a start finds in `parked`; `is_saved`: from then on they are what a power cut leaves, too.
    pub fn parked_found(&mut self, found: BTreeSet<u64>, is_saved: bool) {
        let mut differing = self.parked.symmetric_difference(&found);
        assert!(differing.all(|position| self.maybe_parked.contains(position)), "{:?} {found:?}", self.parked);
        self.parked = found;
        if is_saved {
            self.maybe_parked.clear();
        }
    }

    fn cursor_found(&mut self, cursor: u64) {
        if self.cursor != cursor && !self.cursors.contains(&cursor) {
            assert!(self.expires && cursor > self.cursor, "cursor {cursor} was never stored");
            self.expire_to(cursor);
        }
        self.cursor = cursor;
        self.cursors = BTreeSet::from([cursor]);
    }

    pub fn begin_reading(&mut self, from: u64) {
        self.reading = from;
    }

    /// A batch: next in order, and each record as it was offered.
    pub fn read(&mut self, batch: &Batch) {
        for entry in batch.entries() {
            let position = entry.position.0;
            assert_eq!(position, self.reading, "positions are dense");
            assert!(!self.unreadable.contains(&position), "{position} was destroyed");
            let Place { number, run } = self.placed[position as usize];
            let bytes = self.offered[number as usize];
            assert!(!self.refused.contains(&number), "{number} was refused");
            assert_eq!(entry.head, head(kind(number), number), "at {position}");
            assert_eq!((entry.key, entry.body), (&b"key"[..], &body(number, bytes)[..]), "at {position}");
            if batch.incarnation != [0; 16] {
                let incarnation = *self.incarnations.entry(run).or_insert(batch.incarnation);
                assert_eq!(incarnation, batch.incarnation, "of run {run}");
            }
            self.reading += 1;
        }
    }

    pub fn read_damage(&mut self, damage: &Damage) {
        assert_eq!(damage.first.0, self.reading, "damage begins where reading stopped");
        assert!(damage.first < damage.next, "damage without a loss: {damage}");
        for position in damage.first.0..damage.next.0 {
            assert!(self.unreadable.contains(&position), "{position} is well: {damage}");
        }
        assert_eq!(damage.events, self.events(damage.first.0..damage.next.0), "{damage}");
        self.reading = damage.next.0;
    }

    pub fn end_reading(&mut self, end: u64) {
        assert_eq!(self.reading, end, "reading ends at the durable end");
        let distinct: BTreeSet<_> = self.incarnations.values().collect();
        assert_eq!(distinct.len(), self.incarnations.len(), "each run has its own incarnation");
    }

    /// Damage is reported: it counts if it was not published.
    pub fn noted(&mut self, damage: &Damage, is_saved: bool) {
        let positions = damage.first.0.max(self.cursor)..damage.next.0;
        if !is_saved {
            self.maybe_noted.extend(positions.clone().filter(|position| !self.noted.contains(position)));
        }
        self.noted.extend(positions);
    }

    /// A start: what of the damage is on record.
    pub fn ledger_found(&mut self, ledger: &Ledger) {
        for position in std::mem::take(&mut self.maybe_noted) {
            if !ledger.covers(Position(position)) {
                self.noted.remove(&position);
            }
        }
    }

    /// The publisher has read a batch from `from` on.
    pub fn published(&mut self, from: u64, batch: &Batch) {
        assert_eq!(batch.first().0, from);
        self.begin_reading(from);
        self.read(batch);
        assert_eq!(batch.next().0, self.reading);
        assert_eq!(batch.events_before(Position(from)), self.events(0..from), "before {from}");
    }

    /// Position of the oldest record that is left.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Whether the record at a position is there to be read.
    pub fn is_readable(&self, position: u64) -> bool {
        let known = position >= self.oldest && position < self.placed.len() as u64;
        known && !self.unreadable.contains(&position)
    }

    /// The cursor was moved, or an attempt to do so failed.
    pub fn advanced(&mut self, position: u64, moved: bool) {
        self.cursors.insert(position);
        if moved {
            self.cursor = position;
            self.cursors = BTreeSet::from([position]);
        }
    }

    /// Without Kafka the oldest may go, which moves the cursor.
    pub fn expired(&mut self, oldest: u64, cursor: u64, publishes: bool) {
        assert!(oldest >= self.oldest || oldest == 0, "what is gone stays gone");
        self.oldest = oldest;
        self.expires |= !publishes;
        if !publishes && cursor > self.cursor {
            self.expire_to(cursor);
        }
        let passed = (self.cursor..oldest).all(|position| self.unreadable.contains(&position));
        assert!(publishes || passed, "removed only when the cursor passed it");
    }

    fn expire_to(&mut self, cursor: u64) {
        let passed = self.events(self.cursor..cursor);
        let parked = self.parked_events(self.cursor..cursor);
        self.expired_events += passed - self.noted_events(self.cursor..cursor) - parked;
        self.cursor = cursor;
        self.cursors = BTreeSet::from([cursor]);
    }

    /// An event that the publisher may find refused.
    pub fn parkable(&self, rng: &mut StdRng) -> Option<u64> {
        let end = self.sure.min(self.cursor + 20);
        if self.cursor >= end {
            return None;
        }
        let position = rng.random_range(self.cursor..end);
        let is_event = kind(self.placed[position as usize].number) == Kind::Event;
        (is_event && self.is_readable(position)).then_some(position)
    }

    /// Numbers of all records that can be read.
    pub fn numbers(&self) -> Vec<u64> {
        let positions = (self.oldest..self.placed.len() as u64).filter(|position| self.is_readable(*position));
        positions.map(|position| self.placed[position as usize].number).collect()
    }

    fn events(&self, range: Range<u64>) -> u64 {
        let placed = self.placed.iter().take(range.end as usize).skip(range.start as usize);
        placed.filter(|place| kind(place.number) == Kind::Event).count() as u64
    }

    fn noted_events(&self, range: Range<u64>) -> u64 {
        self.noted.range(range).map(|position| self.events(*position..position + 1)).sum()
    }

    /// Parked, and not counted as damaged.
    fn parked_events(&self, range: Range<u64>) -> u64 {
        self.parked.range(range).filter(|position| !self.noted.contains(position)).count() as u64
    }

    /// The figures add up and are the truth's.
    pub fn check(&self, stats: &Stats) {
        if stats.health == Health::Poisoned {
            return;
        }
        let (end, cursor) = (self.placed.len() as u64, self.cursor);
        assert_eq!((stats.next_position.0, stats.publish_position.0), (end, cursor));
        let parked = self.parked_events(0..cursor);
        let (below, above) = (self.noted_events(0..cursor), self.noted_events(cursor..u64::MAX));
        let expected = Counts {
            accepted: self.events(0..end),
            published: self.events(0..cursor) - self.expired_events - parked - below,
            pending: self.events(cursor..end) - above,
            parked,
            expired: self.expired_events,
            damaged: below + above,
        };
        assert_eq!(stats.counts, expected);
        let Counts { accepted, published, pending, parked, expired, damaged } = stats.counts;
        assert_eq!(accepted, published + pending + parked + expired + damaged);
    }
}
