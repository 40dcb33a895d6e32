//! What a start finds: identity, segments, the end of the last one, and what is lost. Repairs only the tail.
//!
//! By architecture: bad bytes at or beyond the highest `synced_to` are a torn tail (cut); below it they are damage
//! (kept in place, copied away, counted).

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use super::OpenError;
use super::cursor::{CursorRead, StoredCursor};
use super::damage::Damage;
use super::disk::{Disk, DiskFile};
use super::frame::{self, SEGMENT_HEADER_BYTES};
use super::scan::{self, Scan, Window};
use super::segment::{self, Identity, Paths, Segment};
use super::writer::State;
use crate::record::Position;

/// Bytes written again at once.
const PIECE_BYTES: usize = 256 * 1024;

/// What was found.
pub struct Recovered {
    /// The journal's identity; `None` for an empty directory.
    pub journal_id: Option<[u8; 16]>,
    /// The stored cursor, or what stands for it.
    pub cursor: StoredCursor,
    /// Where everything stands; `synced` is what is known to be durable before [`repair`], and all after it.
    pub state: State,
    /// Damage in the last segment and before the oldest.
    pub damage: Vec<Damage>,
    /// The end of the last segment.
    pub tail: Option<Tail>,
}

/// The end of the last segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tail {
    /// Number of the segment.
    pub seq: u64,
    /// Byte after the last batch that is known to have been durable.
    pub sure_offset: u64,
    /// Byte after the last batch that is kept.
    pub end_offset: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Whether what goes is more than zeros.
    pub torn: bool,
}

/// Reads a directory. Writes nothing, so that tools may call it on a running gateway's.
pub fn inspect(disk: &dyn Disk, paths: &Paths) -> Result<Recovered, OpenError> {
    let stored = StoredCursor::read(disk, paths)?;
    let mut journal_id = Identity::read(disk, paths)?.map(|identity| identity.journal_id);
    let found = headers(disk, paths, &mut journal_id)?;
    let newest_seq = found.last().map_or(0, |segment| segment.seq);
    let start = match &stored {
        CursorRead::Found(cursor) => cursor.clone(),
        CursorRead::Bad => StoredCursor::start(),
    };
    let state = State {
        segments: VecDeque::new(),
        next: start.position,
        events: start.events,
        synced: start.position,
        synced_events: start.events,
        newest_seq,
    };
    let mut recovered = Recovered { journal_id, cursor: start, state, damage: Vec::new(), tail: None };
    let Some(id) = journal_id else {
        return match found.first() {
            Some(segment) => Err(OpenError::Unidentified { path: paths.segment(segment.seq) }),
            None => Ok(recovered),
        };
    };
    let mut segments = Vec::new();
    for segment in found {
        segments.push(if segment.is_unreadable { from_batches(disk, paths, &id, segment)? } else { segment });
    }
    if let Some(last) = segments.iter().rposition(|segment| !segment.is_unreadable) {
        recover_last(disk, paths, &id, &mut recovered, &mut segments[last])?;
    }
    close_gaps(&mut segments, &mut recovered);
    recovered.state.segments = segments.into();
    before_oldest(&mut recovered, stored == CursorRead::Bad);
    Ok(recovered)
}

/// Records that the cursor has not passed and that lie before the oldest segment.
fn before_oldest(recovered: &mut Recovered, is_cursor_bad: bool) {
    let Some(oldest) = recovered.state.segments.front() else { return };
    if is_cursor_bad {
        tracing::warn!(position = %oldest.base, "journal: cursor.json is damaged; all before the oldest record counts \
            as published");
        recovered.cursor = StoredCursor::at_oldest(oldest);
    }
    let start = &recovered.cursor;
    if start.position < oldest.base {
        let seq = if oldest.is_unreadable { oldest.seq } else { oldest.seq.saturating_sub(1) };
        // Only what the cursor passed is ever removed, and the cursor is stored before.
        recovered.damage.push(Damage {
            first: start.position,
            next: oldest.base,
            events: oldest.events_before.saturating_sub(start.events),
            events_before: start.events,
            segment: segment::segment_name(seq),
            byte: 0,
            bytes: if oldest.is_unreadable { oldest.bytes } else { 0 },
        });
    }
}

/// All segments as their headers have them; those without one are marked as unreadable.
fn headers(disk: &dyn Disk, paths: &Paths, journal_id: &mut Option<[u8; 16]>) -> Result<Vec<Segment>, OpenError> {
    let files = match segment::list(disk, paths) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(OpenError::io(&paths.journal, source)),
    };
    let mut segments = Vec::new();
    for (seq, bytes) in files {
        let path = paths.segment(seq);
        let file = match disk.open(&path, false) {
            Ok(file) => file,
            // Removed by its owner since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(OpenError::io(&path, source)),
        };
        let mut segment = Segment {
            seq,
            base: Position(0),
            events_before: 0,
            incarnation: [0; 16],
            created_ms: 0,
            bytes,
            is_unreadable: true,
        };
        if let Some(header) = segment::read_header(&*file, &path)? {
            let ours = *journal_id.get_or_insert(header.journal_id) == header.journal_id && header.seq == seq;
            if !ours {
                return Err(OpenError::Foreign { path });
            }
            segment = Segment {
                base: header.base,
                events_before: header.events_before,
                incarnation: header.incarnation,
                created_ms: header.created_ms,
                is_unreadable: false,
                ..segment
            };
        }
        segments.push(segment);
    }
    Ok(segments)
}

/// What a destroyed header said, from the first batch that can still be read.
fn from_batches(disk: &dyn Disk, paths: &Paths, id: &[u8; 16], segment: Segment) -> Result<Segment, OpenError> {
    let path = paths.segment(segment.seq);
    let file = disk.open(&path, false).map_err(|source| OpenError::io(&path, source))?;
    let seed = frame::seed(id, segment.seq);
    let found = scan::next_batch(&*file, &mut Window::new(), SEGMENT_HEADER_BYTES, seed)
        .map_err(|source| OpenError::io(&path, source))?;
    let Some((_, batch)) = found else { return Ok(segment) };
    Ok(Segment {
        base: batch.base,
        events_before: batch.events_before,
        created_ms: batch.time_ms,
        is_unreadable: false,
        ..segment
    })
}

fn recover_last(
    disk: &dyn Disk,
    paths: &Paths,
    id: &[u8; 16],
    recovered: &mut Recovered,
    last: &mut Segment,
) -> Result<(), OpenError> {
    let path = paths.segment(last.seq);
    let file = disk.open(&path, false).map_err(|source| OpenError::io(&path, source))?;
    // Only durable records are published, so the cursor, too, says how far things were durable.
    let (durable, durable_events) = (recovered.state.next, recovered.state.events);
    let scan = scan::scan(&*file, frame::seed(id, last.seq), last.base, last.events_before, durable)
        .map_err(|source| OpenError::io(&path, source))?;
    let Scan { end_offset, sure_offset, sure, end, events, holes, torn } = scan;
    let segment = segment::segment_name(last.seq);
    recovered.damage.extend(holes.into_iter().map(|hole| Damage {
        first: hole.first,
        next: hole.next,
        events: hole.events,
        events_before: hole.events_before,
        segment: segment.clone(),
        byte: hole.byte,
        bytes: hole.bytes,
    }));
    let (mut next, mut next_events) = (end, events);
    if end < durable {
        recovered.damage.push(Damage {
            first: end,
            next: durable,
            events: durable_events.saturating_sub(events),
            events_before: events,
            segment,
            byte: end_offset,
            bytes: last.bytes.saturating_sub(end_offset),
        });
        (next, next_events) = (durable, durable_events.max(events));
    }
    recovered.tail = Some(Tail { seq: last.seq, sure_offset, end_offset, bytes: last.bytes, torn });
    last.bytes = end_offset.min(last.bytes);
    (recovered.state.next, recovered.state.events) = (next, next_events);
    (recovered.state.synced, recovered.state.synced_events) = if end < durable { (next, next_events) } else { sure };
    Ok(())
}

/// Gives segments of which nothing can be read the place of the next: what they held is the gap before it.
fn close_gaps(segments: &mut [Segment], recovered: &mut Recovered) {
    let newest_ms = segments.iter().map(|segment| segment.created_ms).max().unwrap_or(0);
    let mut next = (recovered.state.next, recovered.state.events, newest_ms);
    let mut is_last = true;
    for segment in segments.iter_mut().rev() {
        if !segment.is_unreadable {
            next = (segment.base, segment.events_before, segment.created_ms);
            is_last = false;
            continue;
        }
        (segment.base, segment.events_before, segment.created_ms) = next;
        if is_last {
            // No next segment tells how many it held.
            recovered.damage.push(Damage {
                first: next.0,
                next: next.0,
                events: 0,
                events_before: next.1,
                segment: segment::segment_name(segment.seq),
                byte: 0,
                bytes: segment.bytes,
            });
        }
    }
}

/// Cuts the torn tail and makes what is kept durable; drops segments without a record at the end.
pub fn repair(disk: &dyn Disk, paths: &Paths, recovered: &mut Recovered) -> io::Result<()> {
    // The cursor's name, too: segments may go because of it.
    disk.sync_dir(&paths.journal)?;
    // A file of a parked record that a killed run made or removed, and that this one counts by what it sees. The
    // directory's own name is synced by `Identity::make`, which a start calls before.
    match disk.sync_dir(&paths.parked) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(tail) = recovered.tail {
        let file = disk.open(&paths.segment(tail.seq), true)?;
        if tail.bytes > tail.end_offset {
            file.set_len(tail.end_offset)?;
        }
        // Records of a killed run may still be only in the page cache; the next segment will say they are durable.
        write_again(&*file, tail.sure_offset, tail.end_offset)?;
        file.sync()?;
    }
    while let Some(last) = recovered.state.segments.back() {
        if last.base != recovered.state.next || last.bytes > SEGMENT_HEADER_BYTES || last.is_unreadable {
            break;
        }
        disk.remove(&paths.segment(last.seq))?;
        recovered.state.segments.pop_back();
    }
    remove_if_there(disk, &paths.spare())?;
    let state = &mut recovered.state;
    (state.synced, state.synced_events) = (state.next, state.events);
    Ok(())
}

/// After a sync that failed, a system may hold pages for clean that never reached the disk: a later sync would pass
/// them over. Written again, they are dirty again.
fn write_again(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let piece = segment::read_up_to(file, at, PIECE_BYTES.min((to - at) as usize))?;
        if piece.is_empty() {
            break;
        }
        file.write_at(&piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
