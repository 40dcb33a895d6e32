//! Walking the batches of one segment file: what is valid, and where the holes are. Never writes.
//!
//! A hole is a stretch that is no batch; whether it is a torn tail or damage is decided by `recover` and `read`.

use std::io;

use super::disk::DiskFile;
use super::frame::{BATCH_HEADER_BYTES, BATCH_MAGIC, BatchHeader, MAX_BATCH_BYTES, SEGMENT_HEADER_BYTES};
use super::segment::fill;
use crate::record::Position;

/// Bytes read at once. A window, so that a reader's memory doesn't grow with the segment.
const WINDOW_BYTES: usize = 256 * 1024;

/// A buffered look at one file.
pub struct Window {
    buffer: Vec<u8>,
    filled: usize,
    start: u64,
}

impl Window {
    /// An empty window.
    pub fn new() -> Window {
        Window { buffer: Vec::new(), filled: 0, start: 0 }
    }

    /// Forgets what was read, as the file may have grown.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// `bytes` at `offset`, fewer at the end of the file.
    pub fn get(&mut self, file: &dyn DiskFile, offset: u64, bytes: usize) -> io::Result<&[u8]> {
        let end = self.start + self.filled as u64;
        if offset < self.start || offset + bytes as u64 > end {
            if self.buffer.len() < bytes.max(WINDOW_BYTES) {
                self.buffer = vec![0; bytes.max(WINDOW_BYTES)];
            }
            (self.start, self.filled) = (offset, 0);
            self.filled = fill(file, offset, &mut self.buffer)?;
        }
        let from = (offset - self.start) as usize;
        let to = (from + bytes).min(self.filled);
        Ok(&self.buffer[from..to])
    }
}

/// The valid batch at `offset`, if there is one.
pub fn batch_at(file: &dyn DiskFile, window: &mut Window, offset: u64, seed: u32) -> io::Result<Option<BatchHeader>> {
    let head = window.get(file, offset, BATCH_HEADER_BYTES)?;
    let Some(header) = BatchHeader::peek(head) else { return Ok(None) };
    let batch = window.get(file, offset, header.bytes())?;
    Ok(header.verify(batch, seed).then_some(header))
}

/// The first valid batch at or after `offset`, with its offset. Candidates are found by their magic.
pub fn next_batch(
    file: &dyn DiskFile,
    window: &mut Window,
    mut offset: u64,
    seed: u32,
) -> io::Result<Option<(u64, BatchHeader)>> {
    let finder = memchr::memmem::Finder::new(&BATCH_MAGIC);
    loop {
        let bytes = window.get(file, offset, WINDOW_BYTES)?;
        if bytes.len() < BATCH_HEADER_BYTES {
            return Ok(None);
        }
        match finder.find(bytes) {
            Some(at) => {
                offset += at as u64;
                if let Some(header) = batch_at(file, window, offset, seed)? {
                    return Ok(Some((offset, header)));
                }
                offset += 1;
            }
            // The magic may straddle the border of the window.
            None => offset += (bytes.len() - (BATCH_MAGIC.len() - 1)) as u64,
        }
    }
}

/// What recovery learns of the last segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scan {
    /// Byte after the last batch that is kept.
    pub end_offset: u64,
    /// Byte after the last batch that is known to have been durable.
    pub sure_offset: u64,
    /// Position behind that batch, and event records before it.
    pub sure: (Position, u64),
    /// Position after the last record that is kept.
    pub end: Position,
    /// Event records before `end`.
    pub events: u64,
    /// Holes below what was durable.
    pub holes: Vec<Hole>,
    /// Bytes cut off behind `end_offset` that were no zeros: a torn tail.
    pub torn: bool,
}

/// A stretch that was durable and is unreadable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hole {
    /// First byte in the file.
    pub byte: u64,
    /// Length in the file.
    pub bytes: u64,
    /// First position lost.
    pub first: Position,
    /// Position of the next readable record.
    pub next: Position,
    /// Event records lost.
    pub events: u64,
    /// Event records before `first`.
    pub events_before: u64,
}

/// Scans a last segment from its start (`base`, `events`), knowing that everything before `durable` was synced.
///
/// Two walks, so that nothing is held per batch: the first learns how far things were durable, the second judges.
pub fn scan(file: &dyn DiskFile, seed: u32, base: Position, events: u64, durable: Position) -> io::Result<Scan> {
    let mut durable = durable.max(base);
    let mut walk = Walk::new(file, seed, base);
    let mut last = None;
    while let Some((offset, header)) = walk.next()? {
        durable = durable.max(header.synced_to);
        last = Some(offset);
    }
    let (start, mut walk) = (SEGMENT_HEADER_BYTES, Walk::new(file, seed, base));
    let mut scan = Scan {
        end_offset: start,
        sure_offset: start,
        sure: (base, events),
        end: base,
        events,
        holes: Vec::new(),
        torn: false,
    };
    // Not to the end of the file again: there may be a whole segment of zeros.
    while let Some(stop) = last
        && let Some((offset, header)) = walk.next()?
    {
        if offset == stop {
            last = None;
        }
        // Positions tell, not bytes: a mark that can't be read is no loss.
        if header.base > scan.end {
            if scan.end >= durable {
                break;
            }
            scan.holes.push(Hole {
                byte: scan.end_offset,
                bytes: offset - scan.end_offset,
                first: scan.end,
                next: header.base,
                events: header.events_before.saturating_sub(scan.events),
                events_before: scan.events,
            });
            scan.sure = (header.base, header.events_before);
        }
        scan.end_offset = offset + header.bytes() as u64;
        scan.end = header.next();
        scan.events = header.events_after();
        // The cursor may stand within a batch; it was durable as a whole.
        if header.base < durable || scan.end <= durable {
            (scan.sure_offset, scan.sure) = (scan.end_offset, (scan.end, scan.events));
        }
    }
    scan.torn = !walk.window.get(file, scan.end_offset, MAX_BATCH_BYTES)?.iter().all(|byte| *byte == 0);
    Ok(scan)
}

/// All valid batches of a segment in order; one that steps back in position is a stray copy and left out.
struct Walk<'a> {
    file: &'a dyn DiskFile,
    window: Window,
    seed: u32,
    offset: u64,
    next: Position,
}

impl<'a> Walk<'a> {
    fn new(file: &'a dyn DiskFile, seed: u32, base: Position) -> Walk<'a> {
        Walk { file, window: Window::new(), seed, offset: SEGMENT_HEADER_BYTES, next: base }
    }

    fn next(&mut self) -> io::Result<Option<(u64, BatchHeader)>> {
        while let Some((at, header)) = next_batch(self.file, &mut self.window, self.offset, self.seed)? {
            self.offset = at + header.bytes() as u64;
            if header.base >= self.next {
                self.next = header.next();
                return Ok(Some((at, header)));
            }
        }
        Ok(None)
    }
}
