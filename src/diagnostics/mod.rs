//! What became of each pixel's requests lately: for the page owner who asks why nothing arrives.
//!
//! This node's view, in memory, since its start. Workers note on their own and hand over twice a second, so that the
//! hot path shares nothing. Everything is bounded: the pixels remembered (the ones not heard of for longest make room),
//! hours, and what is kept of rejected requests. Ids that aren't known have a table of their own, so that a flood of
//! them costs known pixels nothing.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::event::rejection::Rejection;
use crate::event::{Warning, Warnings};
use crate::pixel::PixelId;
use crate::time::{Clock, Timestamp};

/// Known pixels that are remembered: some 2 MiB in ordinary use, 48 MiB if each is attacked at every hour.
pub const PIXELS_MAX: usize = 2048;
/// Unknown ids that are remembered.
pub const UNKNOWN_MAX: usize = 256;
/// Hours that are counted, the present one included.
const HOURS: u64 = 24;
const HOUR_MS: u64 = 3_600_000;
/// Rejected requests that are kept of one pixel.
const REJECTS: usize = 10;
/// What they may take together; the oldest go first.
const REJECTS_MAX_BYTES: usize = 16 << 10;
/// Rejected requests that one worker writes down between two hand-overs: in a flood not all are looked at.
const REJECTS_AT_ONCE: usize = 32;
/// Pixels that one worker notes before it hands over early.
const PENDING_MAX: usize = 512;
/// How late a note may be.
const PERIOD: Duration = Duration::from_millis(500);

/// Places of a count: accepted, trials among them, what visitors declined, each reason, each warning.
const ACCEPTED: usize = 0;
const TRIALS: usize = 1;
const DECLINED: usize = 2;
const REASONS: usize = DECLINED + Declined::ALL.len();
const WARNINGS: usize = REASONS + Rejection::ALL.len();
const PLACES: usize = WARNINGS + Warning::ALL.len();

/// Why an event is answered and not recorded: the visitor's wish, by the pixel's policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Declined {
    /// `Sec-GPC: 1`.
    Gpc,
    /// `consent=denied`.
    Consent,
}

impl Declined {
    /// All of them.
    pub const ALL: [Declined; 2] = [Declined::Gpc, Declined::Consent];

    /// As in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Declined::Gpc => "gpc",
            Declined::Consent => "consent",
        }
    }
}

/// All pixels' histories. One for the process.
pub struct Diagnostics {
    /// This node's name.
    pub node_id: String,
    clock: Arc<dyn Clock>,
    knows: Box<dyn Fn(PixelId) -> bool + Send + Sync>,
    /// Held to merge one worker's notes or to copy one history.
    tables: Mutex<Tables>,
}

struct Tables {
    known: Table,
    unknown: Table,
}

/// What is remembered of one pixel.
#[derive(Clone, Debug)]
pub struct History {
    /// From when on everything is counted.
    pub since: Timestamp,
    /// The newest accepted event and its record.
    pub last_accepted: Option<(Timestamp, [u8; 16])>,
    /// The newest rejected request.
    pub last_rejected: Option<(Timestamp, Rejection)>,
    /// JSON of the newest rejected requests, oldest first.
    pub rejects: VecDeque<Box<[u8]>>,
    /// By hour, oldest first; at most [`HOURS`] hours of [`PLACES`] places.
    cells: Vec<Cell>,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    /// Since 1970.
    hour: u32,
    place: u8,
    count: u32,
}

/// Counts of one hour, or of several.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counts([u64; PLACES]);

impl Counts {
    /// Accepted events, trials included.
    pub fn accepted(&self) -> u64 {
        self.0[ACCEPTED]
    }

    /// Events with `test=1`.
    pub fn trials(&self) -> u64 {
        self.0[TRIALS]
    }

    /// Events not recorded by the visitor's wish, without zeros.
    pub fn declined(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = Declined::ALL.into_iter().zip(&self.0[DECLINED..REASONS]);
        counts.map(|(why, count)| (why.as_str(), *count)).filter(|(_, count)| *count > 0)
    }

    /// Rejected requests by reason, without zeros.
    pub fn rejected(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = Rejection::ALL.into_iter().zip(&self.0[REASONS..WARNINGS]);
        counts.map(|(rejection, count)| (rejection.reason(), *count)).filter(|(_, count)| *count > 0)
    }

    /// Accepted events by warning, without zeros.
    pub fn warnings(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = Warning::ALL.into_iter().zip(&self.0[WARNINGS..]);
        counts.map(|(warning, count)| (warning.as_str(), *count)).filter(|(_, count)| *count > 0)
    }
}

impl History {
    /// Of a pixel of which nothing is remembered.
    pub fn none(since: Timestamp) -> History {
        History::new(since)
    }

    fn new(since: Timestamp) -> History {
        History { since, last_accepted: None, last_rejected: None, rejects: VecDeque::new(), cells: Vec::new() }
    }

    /// Counts of each hour that had any, with its begin, oldest first.
    pub fn hours(&self, now: Timestamp) -> Vec<(Timestamp, Counts)> {
        let mut hours: Vec<(Timestamp, Counts)> = Vec::new();
        for cell in self.cells.iter().filter(|cell| cell.counts_at(now)) {
            let begin = Timestamp(u64::from(cell.hour) * HOUR_MS);
            let at = match hours.iter().position(|(hour, _)| *hour == begin) {
                Some(at) => at,
                None => {
                    hours.push((begin, Counts([0; PLACES])));
                    hours.len() - 1
                }
            };
            hours[at].1.0[usize::from(cell.place)] += u64::from(cell.count);
        }
        hours.sort_by_key(|(begin, _)| *begin);
        hours
    }

    /// Counts of all of them.
    pub fn total(&self, now: Timestamp) -> Counts {
        let mut total = Counts([0; PLACES]);
        for cell in self.cells.iter().filter(|cell| cell.counts_at(now)) {
            total.0[usize::from(cell.place)] += u64::from(cell.count);
        }
        total
    }

    fn merge(&mut self, note: Note, now: Timestamp) {
        self.last_accepted = note.last_accepted.max(self.last_accepted);
        if let Some(rejected) = note.last_rejected {
            self.last_rejected = Some(rejected);
        }
        self.cells.retain(|cell| cell.counts_at(now));
        let hour = (now.0 / HOUR_MS) as u32;
        for (place, count) in note.counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let place = place as u8;
            // The present hour is at the end.
            match self.cells.iter_mut().rev().find(|cell| cell.hour == hour && cell.place == place) {
                Some(cell) => cell.count = cell.count.saturating_add(count),
                None => self.cells.push(Cell { hour, place, count }),
            }
        }
        self.rejects.extend(note.rejects);
        let mut bytes: usize = self.rejects.iter().map(|reject| reject.len()).sum();
        while self.rejects.len() > REJECTS || bytes > REJECTS_MAX_BYTES {
            bytes -= self.rejects.pop_front().map_or(0, |reject| reject.len());
        }
    }
}

impl Cell {
    /// Whether its hour is the present one or one of those before. One to come is of a clock that was set back.
    fn counts_at(self, now: Timestamp) -> bool {
        let (hour, present) = (u64::from(self.hour), now.0 / HOUR_MS);
        hour <= present && present < hour + HOURS
    }
}

impl Diagnostics {
    /// Nothing yet. `knows` tells known pixels from unknown ids.
    pub fn new(
        node_id: String,
        clock: Arc<dyn Clock>,
        knows: impl Fn(PixelId) -> bool + Send + Sync + 'static,
    ) -> Arc<Diagnostics> {
        let since = clock.now();
        let (known, unknown) = (Table::new(PIXELS_MAX, since), Table::new(UNKNOWN_MAX, since));
        let tables = Mutex::new(Tables { known, unknown });
        Arc::new(Diagnostics { node_id, clock, knows: Box::new(knows), tables })
    }

    /// One more worker. Its notes are handed over by [`Worker::run`].
    pub fn worker(self: &Arc<Diagnostics>) -> Worker {
        Worker { shared: Arc::clone(self), pending: Rc::default() }
    }

    /// What is remembered of an id; `None` if nothing is.
    pub fn of(&self, id: PixelId) -> Option<History> {
        let tables = self.lock();
        tables.known.get(id).or_else(|| tables.unknown.get(id)).cloned()
    }

    /// From when on a pixel would be remembered of which nothing is.
    pub fn since(&self) -> Timestamp {
        self.lock().known.since
    }

    /// The clock by which hours are counted.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        // A panic amid a merge leaves counts that lack something.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn merge(&self, notes: impl Iterator<Item = (PixelId, Note)>) {
        let now = self.clock.now();
        let notes: Vec<_> = notes.map(|(id, note)| ((self.knows)(id), id, note)).collect();
        let mut tables = self.lock();
        let Tables { known, unknown } = &mut *tables;
        for (is_known, id, note) in notes {
            let history = match is_known {
                // What was seen of it before it was known is a part of its story.
                true => known.entry(id, now, |since| unknown.get(id).cloned().unwrap_or(History::new(since))),
                false => unknown.entry(id, now, History::new),
            };
            history.merge(note, now);
        }
    }
}

impl std::fmt::Debug for Diagnostics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Diagnostics").field("node_id", &self.node_id).finish_non_exhaustive()
    }
}

/// A bounded map that forgets what was not heard of for long (the clock algorithm: each turn of the hand spares what
/// was heard of again since the last).
struct Table {
    max: usize,
    entries: Vec<Entry>,
    index: HashMap<PixelId, usize, ahash::RandomState>,
    hand: usize,
    /// From when on nothing was forgotten of a pixel that is not here.
    since: Timestamp,
}

struct Entry {
    id: PixelId,
    heard: bool,
    history: History,
}

impl Table {
    fn new(max: usize, since: Timestamp) -> Table {
        Table { max, entries: Vec::new(), index: HashMap::default(), hand: 0, since }
    }

    fn get(&self, id: PixelId) -> Option<&History> {
        self.index.get(&id).map(|at| &self.entries[*at].history)
    }

    fn entry(&mut self, id: PixelId, now: Timestamp, new: impl FnOnce(Timestamp) -> History) -> &mut History {
        let at = match self.index.get(&id) {
            Some(at) => {
                self.entries[*at].heard = true;
                *at
            }
            None => {
                let at = self.place(now);
                let entry = Entry { id, heard: false, history: new(self.since) };
                match self.entries.get_mut(at) {
                    Some(old) => drop(std::mem::replace(old, entry)),
                    None => self.entries.push(entry),
                }
                self.index.insert(id, at);
                at
            }
        };
        &mut self.entries[at].history
    }

    /// Where a new entry goes: a place behind the last, or one that is freed.
    fn place(&mut self, now: Timestamp) -> usize {
        if self.entries.len() < self.max {
            return self.entries.len();
        }
        // Ends within two turns: the first takes back all marks.
        loop {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.max;
            let entry = &mut self.entries[at];
            if !std::mem::take(&mut entry.heard) {
                self.index.remove(&entry.id);
                // The one that is forgotten may come back, so whoever is new was perhaps here before.
                self.since = now;
                return at;
            }
        }
    }
}

/// What a worker noted of one pixel since it handed over.
struct Note {
    last_accepted: Option<(Timestamp, [u8; 16])>,
    last_rejected: Option<(Timestamp, Rejection)>,
    counts: [u32; PLACES],
    rejects: Vec<Box<[u8]>>,
}

#[derive(Default)]
struct Pending {
    /// At most [`PENDING_MAX`].
    notes: HashMap<PixelId, Note, ahash::RandomState>,
    /// How many rejected requests they keep.
    rejects: usize,
}

/// One worker's notes. Stays on its thread.
#[derive(Clone)]
pub struct Worker {
    shared: Arc<Diagnostics>,
    pending: Rc<RefCell<Pending>>,
}

impl Worker {
    /// An event goes to the journal as this record; a duplicate has none, and counts by its warning only.
    pub fn accepted(&self, id: PixelId, record: Option<[u8; 16]>, is_trial: bool, warnings: Warnings) {
        self.note(id, |note, _| {
            if let Some(record) = record {
                note.last_accepted = Some((time_of(record), record));
                note.counts[ACCEPTED] += 1;
                note.counts[TRIALS] += u32::from(is_trial);
            }
            for warning in warnings.iter() {
                note.counts[WARNINGS + (warning as u16).trailing_zeros() as usize] += 1;
            }
        });
    }

    /// An event is not recorded by the visitor's wish.
    pub fn declined(&self, id: PixelId, why: Declined) {
        self.note(id, |note, _| note.counts[DECLINED + why as usize] += 1);
    }

    /// A request was refused; `record` writes what of it may be shown, and is asked if there is room.
    pub fn rejected(&self, id: PixelId, reason: Rejection, record: impl FnOnce() -> Option<Vec<u8>>) {
        let now = self.shared.clock.now();
        self.note(id, |note, rejects| {
            note.last_rejected = Some((now, reason));
            note.counts[REASONS + reason as usize] += 1;
            if *rejects < REJECTS_AT_ONCE {
                *rejects += 1;
                note.rejects.extend(record().map(Vec::into));
            }
        });
    }

    fn note(&self, id: PixelId, change: impl FnOnce(&mut Note, &mut usize)) {
        let mut pending = self.pending.borrow_mut();
        if pending.notes.len() == PENDING_MAX && !pending.notes.contains_key(&id) {
            drop(pending);
            self.hand_over();
            pending = self.pending.borrow_mut();
        }
        let Pending { notes, rejects } = &mut *pending;
        let new = || Note { last_accepted: None, last_rejected: None, counts: [0; PLACES], rejects: Vec::new() };
        change(notes.entry(id).or_insert_with(new), rejects);
    }

    fn hand_over(&self) {
        let mut pending = self.pending.borrow_mut();
        if !pending.notes.is_empty() {
            pending.rejects = 0;
            self.shared.merge(pending.notes.drain());
        }
    }

    /// Hands over as long as it is polled.
    pub async fn run(self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            self.hand_over();
        }
    }
}

/// The time of a UUIDv7.
fn time_of(record: [u8; 16]) -> Timestamp {
    let ms = record[..6].iter().fold(0, |ms, byte| ms << 8 | u64::from(*byte));
    Timestamp(ms)
}

#[cfg(test)]
mod tests;
