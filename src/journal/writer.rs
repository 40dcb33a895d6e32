//! The one owner of the journal's files: writes batches, syncs, rotates, allocates ahead, removes. No thread, no clock.
//!
//! Invariants: positions are dense; a segment is opened only when all before it is durable; a file is unlinked only
//! when the local cursor that passed it is. After an error other than "no room" the writer must not be used again.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::behind::Behind;
use super::disk::{Disk, DiskFile, is_out_of_room};
use super::frame::{self, BATCH_HEADER_BYTES, BatchHeader, MAX_BATCH_BYTES, MAX_RECORD_BYTES, SEGMENT_HEADER_BYTES};
use super::queue::Chunk;
use super::segment::{Paths, Segment};
use crate::record::Position;

/// What a file system writes at once, at most, so that zeros ahead of the last record share no block with it. Tests
/// have small segments.
const BLOCK: u64 = if cfg!(test) { 4096 } else { 64 * 1024 };

/// The open segment.
struct Active {
    file: Arc<dyn DiskFile>,
    seed: u32,
    offset: u64,
    allocated: u64,
    /// See [`Spare::zeroed`].
    zeroed: u64,
}

/// The segment that is allocated ahead.
struct Spare {
    file: Box<dyn DiskFile>,
    /// So many of its bytes were made zeros, or not tried to.
    zeroed: u64,
}

/// Why a write did not happen.
#[derive(Debug)]
pub enum WriteError {
    /// No room; nothing was written, later attempts may succeed.
    Full(io::Error),
    /// The device failed: what is on disk is unknown until the next start.
    Failed(io::Error),
}

impl WriteError {
    fn of(error: io::Error) -> WriteError {
        if is_out_of_room(&error) { WriteError::Full(error) } else { WriteError::Failed(error) }
    }
}

/// Sizes the writer keeps to.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Allocated length of a segment.
    pub segment_bytes: u64,
    /// Bound of all files together.
    pub max_bytes: u64,
}

/// Where everything stands; made by recovery.
#[derive(Clone)]
pub struct State {
    /// All segments, oldest first, the open one last.
    pub segments: VecDeque<Segment>,
    /// Position of the next record.
    pub next: Position,
    /// Event records before `next`.
    pub events: u64,
    /// Everything before this is durable.
    pub synced: Position,
    /// Event records before `synced`.
    pub synced_events: u64,
    /// Number of the newest segment ever made.
    pub newest_seq: u64,
}

/// See the module.
pub struct Writer {
    disk: Arc<dyn Disk>,
    paths: Paths,
    sizes: Sizes,
    journal_id: [u8; 16],
    incarnation: [u8; 16],
    /// See [`State`]; public to the module's owner, who publishes copies of it.
    pub state: State,
    active: Option<Active>,
    spare: Option<Spare>,
    marked: Position,
    behind: Option<Box<dyn Behind>>,
    /// What is durable when the sync that is under way is done: position and event records.
    underway: Option<(Position, u64)>,
}

impl Writer {
    /// A writer over recovered state. It has no open segment yet: see [`Writer::allocate`] and [`Writer::rotate`].
    pub fn new(
        disk: Arc<dyn Disk>,
        paths: Paths,
        sizes: Sizes,
        journal_id: [u8; 16],
        incarnation: [u8; 16],
        state: State,
    ) -> Writer {
        let marked = state.synced;
        let (active, spare, behind, underway) = (None, None, None, None);
        Writer { disk, paths, sizes, journal_id, incarnation, state, active, spare, marked, behind, underway }
    }

    /// Lets it sync behind its back: see [`Writer::begin_sync`].
    pub fn sync_by(&mut self, behind: Box<dyn Behind>) {
        self.behind = Some(behind);
    }

    /// Bytes that records can take for sure, headers of batches not counted.
    pub fn room(&self) -> u64 {
        let active = self.active.as_ref().map_or(0, |active| active.allocated.saturating_sub(active.offset));
        let whole = self.sizes.segment_bytes.saturating_sub(SEGMENT_HEADER_BYTES);
        // A record that doesn't fit the rest of the open segment leaves that rest unused.
        let spare = if self.spare.is_some() { whole.saturating_sub(MAX_RECORD_BYTES as u64) } else { 0 };
        active + spare
    }

    /// Bytes of all files, those allocated ahead included.
    pub fn bytes(&self) -> u64 {
        let spare = if self.spare.is_some() { self.sizes.segment_bytes } else { 0 };
        self.state.segments.iter().map(|segment| segment.bytes).sum::<u64>() + spare
    }

    /// Whether a segment can be allocated without exceeding the bound; `other_bytes` are parked records.
    pub fn has_budget(&self, other_bytes: u64) -> bool {
        self.bytes() + other_bytes + self.sizes.segment_bytes <= self.sizes.max_bytes
    }

    /// Whether the next segment is allocated.
    pub fn has_spare(&self) -> bool {
        self.spare.is_some()
    }

    /// Whether there is a segment to write to.
    pub fn is_open(&self) -> bool {
        self.active.is_some()
    }

    /// Allocates the next segment ahead of its use. Failing is harmless: nothing is lost and it can be tried again.
    pub fn allocate(&mut self) -> io::Result<()> {
        assert!(self.spare.is_none(), "one segment is allocated ahead, never two");
        let path = self.paths.spare();
        match self.disk.create(&path, self.sizes.segment_bytes) {
            Ok(file) => {
                self.spare = Some(Spare { file, zeroed: 0 });
                Ok(())
            }
            Err(error) => {
                // What a failed allocation left would hold room that publishing could free.
                let _ = self.disk.remove(&path);
                Err(error)
            }
        }
    }

    /// Makes the next `most` bytes of what will be written zeros, of the open segment too if `all`: where the disk
    /// can't, syncs take longer (docs/performance.md).
    pub fn zero_ahead(&mut self, most: u64, all: bool) -> io::Result<()> {
        // Who syncs behind lets nobody wait for it.
        if self.behind.is_some() {
            return Ok(());
        }
        let zero = |file: &dyn DiskFile, from: u64, end: u64| {
            let bytes = end.saturating_sub(from).min(most);
            match if bytes > 0 { file.zero(from, bytes) } else { Ok(false) } {
                Ok(true) => Ok(from + bytes),
                Ok(false) => Ok(end),
                // Nobody's record is at stake, and a write of one will find out as well.
                Err(error) if is_out_of_room(&error) => Ok(end),
                Err(error) => Err(error),
            }
        };
        let open = self.active.as_mut().filter(|active| all && active.zeroed < active.allocated);
        if let Some(Active { file, offset, allocated, zeroed, .. }) = open {
            *zeroed = zero(&**file, offset.next_multiple_of(BLOCK).max(*zeroed), *allocated)?;
        } else if let Some(Spare { file, zeroed }) = &mut self.spare {
            *zeroed = zero(&**file, *zeroed, self.sizes.segment_bytes)?;
        }
        Ok(())
    }

    /// Closes the open segment and turns the spare into the new one. Everything written before becomes durable.
    pub fn rotate(&mut self, now_ms: u64) -> Result<(), WriteError> {
        let Some(Spare { file: spare, zeroed }) = self.spare.take() else {
            return Err(WriteError::Full(io::ErrorKind::StorageFull.into()));
        };
        self.close_active().map_err(WriteError::Failed)?;
        let header = frame::SegmentHeader {
            journal_id: self.journal_id,
            incarnation: self.incarnation,
            seq: self.state.newest_seq + 1,
            base: self.state.next,
            events_before: self.state.events,
            created_ms: now_ms,
        };
        let open = || {
            spare.write_at(&header.encode(), 0)?;
            spare.sync()?;
            self.disk.rename(&self.paths.spare(), &self.paths.segment(header.seq))?;
            self.disk.sync_dir(&self.paths.journal)
        };
        // Whatever becomes of it, the number is used up.
        self.state.newest_seq = header.seq;
        open().map_err(WriteError::of)?;
        self.state.segments.push_back(Segment {
            seq: header.seq,
            base: header.base,
            events_before: header.events_before,
            incarnation: header.incarnation,
            created_ms: now_ms,
            bytes: self.sizes.segment_bytes,
            is_unreadable: false,
        });
        self.active = Some(Active {
            file: spare.into(),
            seed: frame::seed(&self.journal_id, header.seq),
            offset: SEGMENT_HEADER_BYTES,
            allocated: self.sizes.segment_bytes,
            zeroed,
        });
        self.marked = self.state.next;
        Ok(())
    }

    fn close_active(&mut self) -> io::Result<()> {
        self.join()?;
        let Some(active) = self.active.take() else { return Ok(()) };
        // A disk without room for even that keeps the rest of the allocation, as after a crash.
        let bytes = match active.file.set_len(active.offset) {
            Ok(()) => active.offset,
            Err(error) if is_out_of_room(&error) => active.allocated,
            Err(error) => return Err(error),
        };
        active.file.sync()?;
        self.all_synced();
        if let Some(segment) = self.state.segments.back_mut() {
            segment.bytes = bytes;
        }
        Ok(())
    }

    /// Writes a chunk, in one batch if the open segment has room for it. Not durable before [`Writer::sync`].
    ///
    /// Its records must be as `frame::push_record` makes them. After `Full` a first part may be in the journal.
    pub fn write(&mut self, chunk: &mut Chunk, now_ms: u64) -> Result<(), WriteError> {
        if chunk.bytes.len() <= self.room_in_batch() + BATCH_HEADER_BYTES {
            let Chunk { bytes, records, events } = chunk;
            return self.write_batch(bytes, *records, *events, now_ms);
        }
        let mut rest = &chunk.bytes[BATCH_HEADER_BYTES..];
        while !rest.is_empty() {
            let (bytes, count, events) = frame::fitting(rest, self.room_in_batch());
            if count == 0 {
                self.rotate(now_ms)?;
                continue;
            }
            let (now, later) = rest.split_at(bytes);
            let mut batch = vec![0; BATCH_HEADER_BYTES];
            batch.extend_from_slice(now);
            self.write_batch(&mut batch, count, events, now_ms)?;
            rest = later;
        }
        Ok(())
    }

    /// Bytes of records that the next batch in the open segment may have.
    fn room_in_batch(&self) -> usize {
        let room = self.active.as_ref().map_or(0, |active| active.allocated - active.offset);
        (room as usize).min(MAX_BATCH_BYTES).saturating_sub(BATCH_HEADER_BYTES)
    }

    /// `batch` begins with room for its head.
    fn write_batch(&mut self, batch: &mut [u8], count: u32, events: u32, now_ms: u64) -> Result<(), WriteError> {
        let header = BatchHeader {
            base: self.state.next,
            events_before: self.state.events,
            synced_to: self.state.synced,
            time_ms: now_ms,
            payload_bytes: (batch.len() - BATCH_HEADER_BYTES) as u32,
            count,
            events,
            incarnation: self.incarnation[..8].try_into().expect("eight of sixteen bytes"),
        };
        let active = self.active.as_mut().expect("room was found in it");
        header.seal(batch, active.seed);
        active.file.write_at(batch, active.offset).map_err(WriteError::of)?;
        active.offset += batch.len() as u64;
        self.state.next = header.next();
        self.state.events = header.events_after();
        self.marked = self.marked.max(header.synced_to);
        Ok(())
    }

    /// Makes everything written durable.
    pub fn sync(&mut self) -> io::Result<()> {
        // A failure is told once for an open file: by the sync that is under way, and not by the one that follows.
        self.join()?;
        if self.state.synced < self.state.next {
            if let Some(active) = &self.active {
                active.file.sync()?;
            }
            self.all_synced();
        }
        Ok(())
    }

    fn all_synced(&mut self) {
        (self.state.synced, self.state.synced_events) = (self.state.next, self.state.events);
    }

    /// Position behind the last durable record, and the event records before it.
    pub fn synced(&self) -> (Position, u64) {
        (self.state.synced, self.state.synced_events)
    }

    /// Begins to make durable what is written by now, if anything is to be and no sync is under way; [`Writer::poll`]
    /// tells of its end. `false` if there is nobody to do it.
    pub fn begin_sync(&mut self) -> bool {
        let Some(behind) = &mut self.behind else { return false };
        let is_due = self.underway.is_none() && self.state.synced < self.state.next;
        if let Some(active) = self.active.as_ref().filter(|_| is_due) {
            self.underway = Some((self.state.next, self.state.events));
            behind.begin(active.file.clone());
        }
        true
    }

    /// Whether a sync is under way.
    pub fn is_syncing(&self) -> bool {
        self.underway.is_some()
    }

    /// Whether a sync that was under way has come to its end.
    pub fn poll(&mut self) -> io::Result<bool> {
        let behind = self.behind.as_mut().filter(|_| self.underway.is_some());
        let Some(result) = behind.and_then(|behind| behind.poll()) else { return Ok(false) };
        self.end_sync(result).map(|()| true)
    }

    /// Waits for a sync that is under way.
    fn join(&mut self) -> io::Result<()> {
        let behind = self.behind.as_mut().filter(|_| self.underway.is_some());
        behind.map(|behind| behind.wait()).map_or(Ok(()), |result| self.end_sync(result))
    }

    fn end_sync(&mut self, result: io::Result<()>) -> io::Result<()> {
        let underway = self.underway.take();
        result?;
        if let Some((position, events)) = underway {
            (self.state.synced, self.state.synced_events) = (position, events);
        }
        Ok(())
    }

    /// Notes on disk how far things are durable, so that later damage of the last batch is not taken for a torn tail.
    /// Best effort: an empty batch without a sync of its own.
    pub fn mark(&mut self, now_ms: u64) -> Result<(), WriteError> {
        let has_room =
            self.active.as_ref().is_some_and(|active| active.offset + BATCH_HEADER_BYTES as u64 <= active.allocated);
        if self.marked < self.state.synced && has_room {
            self.write_batch(&mut [0; BATCH_HEADER_BYTES], 0, 0, now_ms)?;
        }
        Ok(())
    }

    /// Tries whether the open segment can be written: an empty batch.
    pub fn probe(&mut self, now_ms: u64) -> Result<(), WriteError> {
        let room = self.active.as_ref().map_or(0, |active| active.allocated - active.offset);
        if room < BATCH_HEADER_BYTES as u64 {
            self.rotate(now_ms)
        } else {
            self.write_batch(&mut [0; BATCH_HEADER_BYTES], 0, 0, now_ms)
        }
    }

    /// Removes the oldest segment. The open one is never removed.
    pub fn remove_oldest(&mut self) -> io::Result<()> {
        assert!(self.state.segments.len() > 1, "the newest segment stays");
        if let Some(oldest) = self.state.segments.front() {
            match self.disk.remove(&self.paths.segment(oldest.seq)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            self.state.segments.pop_front();
            // Else a power cut might bring back an older one and not the next: a gap that looks like damage.
            self.disk.sync_dir(&self.paths.journal)?;
        }
        Ok(())
    }

    /// Ends the run: everything durable, the end marked, the rest of the allocation given back.
    pub fn close(&mut self, now_ms: u64) -> Result<(), WriteError> {
        self.sync().map_err(WriteError::Failed)?;
        self.mark(now_ms)?;
        self.close_active().map_err(WriteError::Failed)?;
        if self.spare.take().is_some() {
            // A leftover is removed by the next start as well.
            let _ = self.disk.remove(&self.paths.spare());
        }
        Ok(())
    }
}
