//! The journal's book-keeping beside its records: cursor, parked and damaged records, and the figures made of them.
//!
//! accepted = published + pending + parked + expired + damaged, counting event records only, across restarts.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::cursor::{Cursor, StoredCursor};
use super::damage::{Damage, Ledger};
use super::disk::Disk;
use super::read::Reader;
use super::reserve::Reserve;
use super::segment::{Paths, Segment};
use super::view::{Snapshot, View};
use crate::record::Position;

/// Figures of event records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Ever taken.
    pub accepted: u64,
    /// Passed by the cursor and delivered.
    pub published: u64,
    /// Not yet passed by the cursor.
    pub pending: u64,
    /// Refused by Kafka and kept aside.
    pub parked: u64,
    /// Removed by retention without Kafka.
    pub expired: u64,
    /// Lost to the disk.
    pub damaged: u64,
}

/// See the module.
pub struct Books {
    disk: Arc<dyn Disk>,
    paths: Paths,
    cursor: StoredCursor,
    /// What any cursor that may be on disk has passed: one whose writing failed may be there all the same.
    passed: Position,
    ledger: Ledger,
    parked: BTreeMap<Position, u64>,
    journal_id: [u8; 16],
    view: Arc<View>,
    tally: Reader,
    reserve: Arc<Reserve>,
}

impl Books {
    /// The books of a directory.
    pub fn open(
        disk: Arc<dyn Disk>,
        paths: Paths,
        journal_id: [u8; 16],
        view: Arc<View>,
        cursor: StoredCursor,
        reserve: Arc<Reserve>,
    ) -> io::Result<Books> {
        let ledger = Ledger::load(&*disk, &paths)?;
        let parked = parked_files(&*disk, &paths)?;
        let tally = Reader::new(disk.clone(), paths.clone(), journal_id, view.clone(), cursor.position);
        let passed = cursor.position;
        Ok(Books { disk, paths, cursor, passed, ledger, parked, journal_id, view, tally, reserve })
    }

    /// Where publishing stands.
    pub fn cursor(&self) -> &StoredCursor {
        &self.cursor
    }

    /// What may go: everything before it was passed by whatever cursor is on disk.
    pub fn passed(&self) -> Position {
        self.passed
    }

    /// Writes a cursor, durably.
    fn store(&mut self, cursor: StoredCursor) -> io::Result<()> {
        if let Err(error) = self.reserve.spend(|| cursor.write(&*self.disk, &self.paths)) {
            self.passed = self.passed.min(cursor.position);
            return Err(error);
        }
        (self.passed, self.cursor) = (cursor.position, cursor);
        Ok(())
    }

    /// Bytes of parked records.
    pub fn parked_bytes(&self) -> u64 {
        self.parked.values().sum()
    }

    /// Notes a parked record.
    pub fn park(&mut self, position: Position, bytes: u64) {
        self.parked.insert(position, bytes);
    }

    /// A parked record was delivered after all.
    pub fn unpark(&mut self, position: Position) {
        self.parked.remove(&position);
    }

    /// Notes damage, once; returns whether it is news. What the cursor has passed was published, hence is not lost.
    pub fn damaged(&mut self, damage: &Damage) -> io::Result<bool> {
        match damage.after(self.cursor.position, self.cursor.events) {
            Some(lost) => self.ledger.note(&*self.disk, &self.paths, &lost),
            None => Ok(false),
        }
    }

    /// Moves the cursor, durably.
    pub fn advance(&mut self, published: Cursor) -> io::Result<()> {
        if published.position < self.tally.position() {
            // Back: publishing goes on from an older point (another cluster, a restored copy).
            self.tally = Reader::new(
                self.disk.clone(),
                self.paths.clone(),
                self.journal_id,
                self.view.clone(),
                published.position,
            );
        }
        self.ledger.save(&*self.disk, &self.paths)?;
        self.tally.seek(published.position);
        let events = if published.position == self.cursor.position {
            self.cursor.events
        } else {
            self.tally.tally().map_err(io::Error::other)?.0
        };
        let cursor = StoredCursor {
            position: published.position,
            events,
            expired_events: self.cursor.expired_events,
            expired_to: self.cursor.expired_to,
            published: Some(published),
        };
        self.store(cursor)
    }

    /// The oldest segment goes without having been published: the cursor passes it, durably.
    pub fn expire(&mut self, next: &Segment) -> io::Result<u64> {
        self.ledger.save(&*self.disk, &self.paths)?;
        let passed = next.events_before.saturating_sub(self.cursor.events);
        let damaged = self.ledger.events_before(next.base) - self.ledger.events_before(self.cursor.position);
        // Parked ones are kept, though nothing publishes any more.
        let parked = self.parked.range(self.cursor.position..next.base);
        let parked = parked.filter(|(position, _)| !self.ledger.covers(**position)).count() as u64;
        let expired = passed.saturating_sub(damaged + parked);
        let cursor = StoredCursor {
            position: next.base,
            events: next.events_before,
            expired_events: self.cursor.expired_events + expired,
            expired_to: next.base,
            published: self.cursor.published.clone(),
        };
        self.store(cursor)?;
        Ok(expired)
    }

    /// Unix milliseconds at which the oldest unpublished record was written.
    pub fn oldest_pending_ms(&mut self) -> Option<u64> {
        if self.view.end() <= self.cursor.position {
            return None;
        }
        self.tally.seek(self.cursor.position);
        // A device that can't be read is found by the publisher, who says so.
        self.tally.tally().ok().and_then(|(_, time_ms)| time_ms)
    }

    /// The figures, given how many event records were ever taken.
    pub fn counts(&self, accepted: u64) -> Counts {
        count(&self.cursor, &self.ledger, self.parked.keys(), accepted)
    }
}

/// The figures of given books.
pub fn count<'a>(
    cursor: &StoredCursor,
    ledger: &Ledger,
    parked: impl Iterator<Item = &'a Position>,
    accepted: u64,
) -> Counts {
    // A record is parked before the cursor passes it; until then it counts as pending. One that was damaged before the
    // cursor passed it is counted already.
    let counts = |position: &Position| *position < cursor.position && !ledger.covers(*position);
    let parked = parked.filter(|position| counts(position)).count() as u64;
    let below = ledger.events_before(cursor.position);
    let damaged = ledger.events();
    Counts {
        accepted,
        published: cursor.events.saturating_sub(cursor.expired_events + parked + below),
        pending: accepted.saturating_sub(cursor.events + (damaged - below)),
        parked,
        expired: cursor.expired_events,
        damaged,
    }
}

/// Positions and lengths of the files in `<data_dir>/parked`.
pub fn parked_files(disk: &dyn Disk, paths: &Paths) -> io::Result<BTreeMap<Position, u64>> {
    let files = match disk.list(&paths.parked) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let position = |name: &str| name.strip_suffix(".json")?.parse().ok().map(Position);
    Ok(files.iter().filter_map(|(name, bytes)| Some((position(name)?, *bytes))).collect())
}

/// Bytes of segments that the cursor has not passed; a segment that it is in counts by its share of records.
pub fn unpublished_bytes(snapshot: &Snapshot, cursor: Position) -> u64 {
    let mut sum = 0;
    for (index, segment) in snapshot.segments.iter().enumerate() {
        let end = snapshot.segments.get(index + 1).map_or(snapshot.end, |next| next.base);
        let (all, left) = (end.0.saturating_sub(segment.base.0), end.0.saturating_sub(cursor.0.max(segment.base.0)));
        if all > 0 {
            sum += (u128::from(segment.bytes) * u128::from(left) / u128::from(all)) as u64;
        }
    }
    sum
}
