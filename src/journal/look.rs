//! A journal directory looked at from outside, by tools: nothing is locked, repaired or written.

use std::path::Path;
use std::sync::Arc;

use super::OpenError;
use super::cursor::StoredCursor;
use super::damage::{Damage, Ledger};
use super::disk::{Disk, RealDisk};
use super::read::Reader;
use super::recover;
use super::segment::{self, Paths};
use super::view::{Snapshot, View};
use crate::record::Position;

/// A journal directory, looked at from outside: of a running gateway, of a crashed one, or a copy.
pub struct Log {
    disk: Arc<dyn Disk>,
    paths: Paths,
    journal_id: [u8; 16],
    view: Arc<View>,
    /// The local cursor, or the start.
    pub cursor: StoredCursor,
    /// Damage already noted.
    pub ledger: Ledger,
    /// Whether the last segment ends in a torn tail: its name and the byte.
    pub torn: Option<(String, u64)>,
    /// Damage that no reader comes upon: before the oldest record, or with nothing behind it.
    pub beyond: Vec<Damage>,
}

impl Log {
    /// Looks at `<data_dir>/journal`.
    pub fn open(data_dir: &Path) -> Result<Log, OpenError> {
        let (disk, paths): (Arc<dyn Disk>, _) = (Arc::new(RealDisk), Paths::new(data_dir));
        let recovered = recover::inspect(&*disk, &paths)?;
        let Some(journal_id) = recovered.journal_id else { return Err(OpenError::Missing { path: paths.journal }) };
        let ledger = Ledger::load(&*disk, &paths).map_err(|source| OpenError::io(&paths.damaged, source))?;
        let state = &recovered.state;
        let view = Arc::new(View::new(&state.segments, state.next, state.events));
        let torn = recovered.tail.filter(|tail| tail.torn);
        let torn = torn.map(|tail| (segment::segment_name(tail.seq), tail.end_offset));
        let oldest = state.segments.front();
        let is_beyond =
            |damage: &Damage| damage.first == damage.next || oldest.is_some_and(|oldest| damage.next <= oldest.base);
        let beyond = recovered.damage.iter().filter(|damage| is_beyond(damage)).cloned().collect();
        Ok(Log { disk, paths, journal_id, view, cursor: recovered.cursor, ledger, torn, beyond })
    }

    /// A reader of it.
    pub fn reader(&self, from: Position) -> Reader {
        Reader::new(self.disk.clone(), self.paths.clone(), self.journal_id, self.view.clone(), from)
    }

    /// Segments, end and counts.
    pub fn snapshot(&self) -> Snapshot {
        self.view.snapshot()
    }

    /// The journal's identity.
    pub fn id(&self) -> [u8; 16] {
        self.journal_id
    }

    /// Position of the oldest record that is left.
    pub fn oldest(&self) -> Position {
        let snapshot = self.view.snapshot();
        snapshot.segments.first().map_or(snapshot.end, |segment| segment.base)
    }

    /// Looks again, as a running gateway goes on writing.
    pub fn refresh(&mut self) -> Result<(), OpenError> {
        let recovered = recover::inspect(&*self.disk, &self.paths)?;
        self.view.replace(&recovered.state.segments);
        self.view.advance(recovered.state.next, recovered.state.events);
        self.cursor = recovered.cursor;
        Ok(())
    }
}
