//! Damage: what was durable and can't be read. Copied to `<data_dir>/damaged`, whose file names carry the count.
//!
//! A file's name is made of the lost positions, so finding the same damage again counts nothing twice.

use std::collections::BTreeMap;
use std::io;

use super::disk::Disk;
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
    /// Name of the segment file.
    pub segment: String,
    /// First unreadable byte in it.
    pub byte: u64,
    /// Length of the unreadable stretch.
    pub bytes: u64,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Damage { first, next, events, segment, byte, bytes } = self;
        write!(f, "{segment} byte {byte}: {bytes} bytes unreadable, positions {first} to {next} lost ({events} events)")
    }
}

/// All damage known so far: first position → (next position, events).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ledger(BTreeMap<Position, (Position, u64)>);

impl Ledger {
    /// Reads the names in `<data_dir>/damaged`.
    pub fn load(disk: &dyn Disk, paths: &Paths) -> io::Result<Ledger> {
        let files = match disk.list(&paths.damaged) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Ledger(files.iter().filter_map(|(name, _)| parse_name(name)).collect()))
    }

    /// Notes damage; returns whether it is new. The copy is made before it counts.
    pub fn note(&mut self, disk: &dyn Disk, paths: &Paths, damage: &Damage) -> io::Result<bool> {
        if self.0.contains_key(&damage.first) {
            return Ok(false);
        }
        self.0.insert(damage.first, (damage.next, damage.events));
        disk.create_dir(&paths.damaged)?;
        let bytes = disk
            .open(&paths.journal.join(&damage.segment), false)
            .and_then(|file| read_up_to(&*file, damage.byte, damage.bytes.min(COPY_BYTES) as usize))
            // The segment may be gone or unreadable; the count must be kept all the same.
            .unwrap_or_default();
        disk.replace(&paths.damaged.join(name(damage)), &bytes)?;
        Ok(true)
    }

    /// Event records lost before `position`.
    pub fn events_before(&self, position: Position) -> u64 {
        self.0.range(..position).map(|(_, (_, events))| events).sum()
    }

    /// Event records lost in all.
    pub fn events(&self) -> u64 {
        self.0.values().map(|(_, events)| events).sum()
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

    #[test]
    fn names_carry_positions_and_count() {
        let damage =
            Damage { first: Position(3), next: Position(9), events: 4, segment: "x.seg".into(), byte: 100, bytes: 20 };
        assert_eq!(parse_name(&name(&damage)), Some((Position(3), (Position(9), 4))));
        for bad in ["", "1-2.damaged", "a-b-c.damaged", "1-2-3", "1-2-3-4.damaged"] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }
}
