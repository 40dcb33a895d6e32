//! What a start finds: identity, segments, the end of the last one, and what is lost. Repairs only the tail.
//!
//! By architecture: bad bytes at or beyond the highest `synced_to` are a torn tail (cut); below it they are damage
//! (kept in place, copied away, counted).

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use super::OpenError;
use super::cursor::StoredCursor;
use super::damage::Damage;
use super::disk::Disk;
use super::frame::{self, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::scan::{self, Window};
use super::segment::{self, Identity, Paths, Segment};
use super::writer::State;
use crate::record::Position;

/// What was found.
pub struct Recovered {
    /// The journal's identity; `None` for an empty directory.
    pub journal_id: Option<[u8; 16]>,
    /// Where everything stands.
    pub state: State,
    /// Damage in the last segment.
    pub damage: Vec<Damage>,
    /// Length to which the last segment must be cut, and whether anything but zeros goes.
    pub cut: Option<(u64, u64, bool)>,
}

/// Reads a directory. Writes nothing, so that tools may call it on a running gateway's.
pub fn inspect(disk: &dyn Disk, paths: &Paths, cursor: Option<&StoredCursor>) -> Result<Recovered, OpenError> {
    let mut journal_id = Identity::read(disk, paths)?.map(|identity| identity.journal_id);
    let files = match segment::list(disk, paths) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(OpenError::io(&paths.journal, source)),
    };
    let mut headers = Vec::new();
    for (seq, bytes) in files {
        let path = paths.segment(seq);
        let file = match disk.open(&path, false) {
            Ok(file) => file,
            // Removed by its owner since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(OpenError::io(&path, source)),
        };
        let header = segment::read_header(&*file, &path)?;
        if let Some(header) = &header {
            let ours = *journal_id.get_or_insert(header.journal_id) == header.journal_id && header.seq == seq;
            if !ours {
                return Err(OpenError::Foreign { path });
            }
        }
        headers.push((seq, bytes, header));
    }
    let start = (cursor.map_or(Position(0), |cursor| cursor.position), cursor.map_or(0, |cursor| cursor.events));
    let Some(id) = journal_id else {
        if let Some((seq, ..)) = headers.first() {
            return Err(OpenError::Unidentified { path: paths.segment(*seq) });
        }
        return Ok(Recovered { journal_id, state: empty_state(start, 0), damage: Vec::new(), cut: None });
    };
    let segments = index(disk, paths, &id, headers)?;
    let newest_seq = segments.back().map_or(0, |segment| segment.seq);
    let Some(last) = segments.back().cloned() else {
        return Ok(Recovered { journal_id, state: empty_state(start, newest_seq), damage: Vec::new(), cut: None });
    };
    recover_last(disk, paths, &id, segments, last, start, journal_id)
}

fn empty_state(start: (Position, u64), newest_seq: u64) -> State {
    State { segments: VecDeque::new(), next: start.0, events: start.1, synced: start.0, newest_seq }
}

/// Fills in what destroyed headers said, from the batches that can still be read.
fn index(
    disk: &dyn Disk,
    paths: &Paths,
    journal_id: &[u8; 16],
    headers: Vec<(u64, u64, Option<SegmentHeader>)>,
) -> Result<VecDeque<Segment>, OpenError> {
    let mut segments: VecDeque<Segment> = VecDeque::new();
    for (seq, bytes, header) in headers {
        let segment = match header {
            Some(header) => Segment {
                seq,
                base: header.base,
                events_before: header.events_before,
                incarnation: header.incarnation,
                created_ms: header.created_ms,
                bytes,
            },
            None => match first_batch(disk, paths, journal_id, seq)? {
                Some((base, events_before, created_ms)) => {
                    Segment { seq, base, events_before, incarnation: [0; 16], created_ms, bytes }
                }
                // Nothing of it can be read; what it held is the gap before the next segment.
                None => continue,
            },
        };
        segments.push_back(segment);
    }
    Ok(segments)
}

fn first_batch(
    disk: &dyn Disk,
    paths: &Paths,
    journal_id: &[u8; 16],
    seq: u64,
) -> Result<Option<(Position, u64, u64)>, OpenError> {
    let path = paths.segment(seq);
    let file = disk.open(&path, false).map_err(|source| OpenError::io(&path, source))?;
    let seed = frame::seed(journal_id, seq);
    let found = scan::next_batch(&*file, &mut Window::new(), SEGMENT_HEADER_BYTES, seed)
        .map_err(|source| OpenError::io(&path, source))?;
    Ok(found.map(|(_, header)| (header.base, header.events_before, header.time_ms)))
}

fn recover_last(
    disk: &dyn Disk,
    paths: &Paths,
    id: &[u8; 16],
    mut segments: VecDeque<Segment>,
    last: Segment,
    start: (Position, u64),
    journal_id: Option<[u8; 16]>,
) -> Result<Recovered, OpenError> {
    let path = paths.segment(last.seq);
    let file = disk.open(&path, false).map_err(|source| OpenError::io(&path, source))?;
    // Only durable records are published, so the cursor, too, says how far things were durable.
    let scan = scan::scan(&*file, frame::seed(id, last.seq), last.base, last.events_before, start.0)
        .map_err(|source| OpenError::io(&path, source))?;
    let name = segment::segment_name(last.seq);
    let mut damage: Vec<Damage> = scan
        .holes
        .iter()
        .map(|hole| Damage {
            first: hole.first,
            next: hole.next,
            events: hole.events,
            segment: name.clone(),
            byte: hole.byte,
            bytes: hole.bytes,
        })
        .collect();
    let (mut next, mut events) = (scan.end, scan.events);
    if next < start.0 {
        damage.push(Damage {
            first: next,
            next: start.0,
            events: start.1.saturating_sub(events),
            segment: name,
            byte: scan.end_offset,
            bytes: last.bytes.saturating_sub(scan.end_offset),
        });
        (next, events) = (start.0, start.1.max(events));
    }
    if let Some(back) = segments.back_mut() {
        back.bytes = scan.end_offset;
    }
    let cut = (last.bytes > scan.end_offset).then_some((last.seq, scan.end_offset, scan.torn));
    let newest_seq = last.seq;
    let state = State { segments, next, events, synced: next, newest_seq };
    Ok(Recovered { journal_id, state, damage, cut })
}

/// Cuts the torn tail and makes what is kept durable; drops segments without a record at the end.
pub fn repair(disk: &dyn Disk, paths: &Paths, recovered: &mut Recovered) -> io::Result<()> {
    if let Some((seq, bytes, _)) = recovered.cut {
        disk.open(&paths.segment(seq), true)?.set_len(bytes)?;
    }
    if let Some(last) = recovered.state.segments.back() {
        // Records of a killed run may still be only in the page cache; the next segment will say they are durable.
        disk.open(&paths.segment(last.seq), true)?.sync()?;
    }
    while let Some(last) = recovered.state.segments.back() {
        if last.base != recovered.state.next || last.bytes > SEGMENT_HEADER_BYTES {
            break;
        }
        disk.remove(&paths.segment(last.seq))?;
        recovered.state.segments.pop_back();
    }
    remove_if_there(disk, &paths.spare())
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
