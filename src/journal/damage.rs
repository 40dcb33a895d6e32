//! Damage: what was durable and can't be read. Copied to `<data_dir>/damaged`, whose file names carry the count.
//!
//! A file's name is made of the lost positions, so finding the same damage again counts nothing twice.

use std::collections::BTreeMap;
use std::io;

use super::disk::{Disk, is_out_of_room};
use super::segment::{Paths, read_up_to};
use crate::record::Position;

/// Longest copy of damaged bytes: one segment of the default size.
const COPY_BYTES: u64 = 64 * 1024 * 1024;
const SUFFIX: &str = ".damaged";

/// A stretch of lost records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// First position lost.
    pub first: Position,
    /// Position of the next readable record.
    pub next: Position,
    /// Event records lost: exact, as batches carry running counts.
    pub events: u64,
    /// Event records before `first`.
    pub events_before: u64,
    /// Name of the segment file.
    pub segment: String,
    /// First unreadable byte in it.
    pub byte: u64,
    /// Length of the unreadable stretch.
    pub bytes: u64,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Damage { first, next, events, segment, byte, bytes, .. } = self;
        if first == next {
            return write!(f, "{segment} byte {byte}: {bytes} bytes unreadable, how many records is not known");
        }
        write!(f, "{segment} byte {byte}: {bytes} bytes unreadable, positions {first} to {next} lost ({events} events)")
    }
}

impl Damage {
    /// The part that begins at `position` or later, given the event records before that; `None` if nothing is.
    pub fn after(&self, position: Position, events: u64) -> Option<Damage> {
        if self.next <= position {
            return None;
        }
        let mut part = self.clone();
        if self.first < position {
            part.first = position;
            part.events = (self.events_before + self.events).saturating_sub(events);
            part.events_before = events;
        }
        Some(part)
    }
}

/// All damage known so far. One entry a stretch: bounded by what is wrong with the disk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ledger {
    /// First position → (next position, events). Stretches don't overlap.
    known: BTreeMap<Position, (Position, u64)>,
    /// Known, but not yet on disk.
    unsaved: Vec<Damage>,
}

impl Ledger {
    /// Reads the names in `<data_dir>/damaged`.
    pub fn load(disk: &dyn Disk, paths: &Paths) -> io::Result<Ledger> {
        let files = match disk.list(&paths.damaged) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut ledger = Ledger::default();
        for (first, (next, events)) in files.iter().filter_map(|(name, _)| parse_name(name)) {
            ledger.insert(first, next, events);
        }
        Ok(ledger)
    }

    /// Returns whether it is news. A stretch that grew (its neighbour went, too) takes the place of what was known.
    fn insert(&mut self, first: Position, next: Position, events: u64) -> bool {
        let is_known = self.known.range(..=first).next_back().is_some_and(|(_, (known, _))| *known >= next);
        if is_known || first >= next {
            return false;
        }
        self.known.retain(|known, (end, _)| *known < first || *end > next);
        self.known.insert(first, (next, events));
        true
    }

    /// Notes damage; returns whether it is new. It counts at once; after an error its record on disk is still due.
    pub fn note(&mut self, disk: &dyn Disk, paths: &Paths, damage: &Damage) -> io::Result<bool> {
        let is_news = self.insert(damage.first, damage.next, damage.events);
        if is_news {
            self.unsaved.push(damage.clone());
        }
        self.save(disk, paths)?;
        Ok(is_news)
    }

    /// Puts on disk what is not there yet. The cursor must not pass damage before.
    pub fn save(&mut self, disk: &dyn Disk, paths: &Paths) -> io::Result<()> {
        while let Some(damage) = self.unsaved.last() {
            paths.make(disk, &paths.damaged)?;
            let bytes = disk
                .open(&paths.journal.join(&damage.segment), false)
                .and_then(|file| read_up_to(&*file, damage.byte, damage.bytes.min(COPY_BYTES) as usize))
                // The segment may be gone or unreadable; the count must be kept all the same.
                .unwrap_or_default();
            let path = paths.damaged.join(name(damage));
            match disk.replace(&path, &bytes) {
                // The name is the count, and needs less room than the copy.
                Err(error) if is_out_of_room(&error) => disk.replace(&path, &[])?,
                other => other?,
            }
            self.unsaved.pop();
        }
        Ok(())
    }

    /// Event records lost before `position`.
    pub fn events_before(&self, position: Position) -> u64 {
        self.known.range(..position).map(|(_, (_, events))| events).sum()
    }

    /// Whether the record of a position is counted as lost.
    pub fn covers(&self, position: Position) -> bool {
        self.known.range(..=position).next_back().is_some_and(|(_, (next, _))| position < *next)
    }

    /// Event records lost in all.
    pub fn events(&self) -> u64 {
        self.known.values().map(|(_, events)| events).sum()
    }
}

fn name(damage: &Damage) -> String {
    format!("{:020}-{:020}-{}{SUFFIX}", damage.first.0, damage.next.0, damage.events)
}

fn parse_name(name: &str) -> Option<(Position, (Position, u64))> {
    let mut parts = name.strip_suffix(SUFFIX)?.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (first, next, events) = (parts.next()??, parts.next()??, parts.next()??);
    Some((Position(first), (Position(next), events)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stretch in which all records are events.
    fn stretch(first: u64, next: u64) -> Damage {
        Damage {
            first: Position(first),
            next: Position(next),
            events: next - first,
            events_before: first,
            segment: "x.seg".into(),
            byte: 100,
            bytes: 20,
        }
    }

    #[test]
    fn a_stretch_that_grows_is_counted_once() {
        let mut ledger = Ledger::default();
        let mut insert = |first: u64, next: u64, is_news: bool, all: u64| {
            assert_eq!(ledger.insert(Position(first), Position(next), next - first), is_news, "{first} to {next}");
            assert_eq!(ledger.events(), all, "{first} to {next}");
        };
        insert(20, 30, true, 10);
        insert(20, 30, false, 10);
        insert(25, 30, false, 10);
        insert(40, 50, true, 20);
        insert(10, 30, true, 30);
        insert(10, 60, true, 50);
        insert(40, 50, false, 50);
        insert(5, 5, false, 50);
    }

    #[test]
    fn what_was_published_is_not_lost() {
        let damage = stretch(10, 20);
        assert_eq!(damage.after(Position(20), 20), None);
        assert_eq!(damage.after(Position(10), 10), Some(damage.clone()));
        assert_eq!(damage.after(Position(15), 15), Some(stretch(15, 20)));
    }

    #[test]
    fn names_carry_positions_and_count() {
        let damage = stretch(3, 9);
        assert_eq!(parse_name(&name(&damage)), Some((Position(3), (Position(9), 6))));
        for bad in ["", "1-2.damaged", "a-b-c.damaged", "1-2-3", "1-2-3-4.damaged"] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }
}
