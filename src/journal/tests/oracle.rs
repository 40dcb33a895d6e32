//! What recovery must conclude from the bytes, written anew from docs/journal-format.md and as plainly as can be.
//!
//! Works on whole files in memory, byte by byte; shares with the journal only the codec of headers (`frame`).

use std::ops::Range;
use std::path::Path;

use super::super::disk::Disk;
use super::super::frame::{self, BATCH_MAGIC, BatchHeader, HeaderRead, SegmentHeader};
use super::super::segment::parse_segment_name;
use super::sim::SimDisk;

/// A segment file: its number, where it begins, and its valid batches with their offsets.
pub struct Layout {
    pub seq: u64,
    pub base: u64,
    pub batches: Vec<(usize, BatchHeader)>,
}

/// The conclusion.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// First position that is not gone by retention.
    pub oldest: u64,
    /// Next position.
    pub end: u64,
    /// Readable positions, ascending, neighbours joined.
    pub readable: Vec<Range<u64>>,
    /// Positions lost to the disk.
    pub damaged: Vec<Range<u64>>,
}

/// Reads all segments. Those of which nothing is readable are left out.
pub fn layouts(disk: &SimDisk, journal: &Path, journal_id: &[u8; 16]) -> Vec<Layout> {
    let mut names: Vec<(u64, String)> = disk
        .list(journal)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(name, _)| Some((parse_segment_name(&name)?, name)))
        .collect();
    names.sort();
    let mut all = Vec::new();
    for (seq, name) in names {
        let bytes = disk.content(&journal.join(name));
        let batches = batches(&bytes, frame::seed(journal_id, seq));
        let header = match SegmentHeader::decode(&bytes) {
            HeaderRead::Valid(header) => Some(header.base.0),
            _ => None,
        };
        let Some(base) = header.or(batches.first().map(|(_, batch)| batch.base.0)) else { continue };
        all.push(Layout { seq, base, batches });
    }
    all
}

fn batches(bytes: &[u8], seed: u32) -> Vec<(usize, BatchHeader)> {
    let mut found = Vec::new();
    let mut from = 4096;
    while let Some(at) = bytes.get(from..).and_then(|rest| memchr::memmem::find(rest, &BATCH_MAGIC)) {
        let at = from + at;
        let header = BatchHeader::peek(&bytes[at..]);
        let batch = header.and_then(|header| Some((header, bytes.get(at..at + header.bytes())?)));
        match batch {
            Some((header, batch)) if header.verify(batch, seed) => {
                found.push((at, header));
                from = at + header.bytes();
            }
            _ => from = at + 1,
        }
    }
    found
}

/// The rules of docs/journal-format.md, applied to positions.
pub fn judge(layouts: &[Layout], cursor: u64) -> Verdict {
    let mut verdict = Verdict::default();
    let Some(first) = layouts.first() else {
        return Verdict { oldest: cursor, end: cursor, ..Verdict::default() };
    };
    verdict.oldest = first.base;
    let mut at = first.base;
    for (index, layout) in layouts.iter().enumerate() {
        let next = layouts.get(index + 1).map(|next| next.base);
        // All before a segment was durable when it was opened; in the last one the batches and the cursor say it.
        let synced = layout.batches.iter().map(|(_, batch)| batch.synced_to.0).fold(cursor.max(layout.base), u64::max);
        let synced = next.unwrap_or(synced);
        for (_, batch) in &layout.batches {
            if batch.base.0 < at {
                continue;
            }
            if batch.base.0 > at {
                if at >= synced {
                    break;
                }
                join(&mut verdict.damaged, at..batch.base.0);
            }
            join(&mut verdict.readable, batch.base.0..batch.next().0);
            at = batch.next().0;
        }
        let must = next.unwrap_or(synced);
        if at < must {
            join(&mut verdict.damaged, at..must);
            at = must;
        }
    }
    verdict.end = at;
    verdict
}

fn join(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        _ if range.is_empty() => {}
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
