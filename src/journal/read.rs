//! Reading committed records, from any position on, of a live journal or of a directory on disk. Never writes.
//!
//! A reader holds one window and one batch, whatever the backlog. It sees only durable records, each checked again.

use std::io;
use std::sync::Arc;

use super::damage::Damage;
use super::disk::{Disk, DiskFile};
use super::frame::{self, BATCH_HEADER_BYTES, BatchHeader, SEGMENT_HEADER_BYTES};
use super::scan::{self, Window};
use super::segment::{self, Paths, Segment, fill};
use super::view::{Snapshot, View};
use crate::record::{Head, Position};

/// Reading failed at a place.
#[derive(Debug, thiserror::Error)]
#[error("journal segment {segment}: {source}")]
pub struct ReadError {
    /// Name of the segment file.
    pub segment: String,
    /// What the file system said.
    pub source: io::Error,
}

/// What comes next.
#[derive(Debug)]
pub enum Next {
    /// Records.
    Batch(Batch),
    /// Records that are lost; the reader stands behind them.
    Damage(Damage),
    /// Records were removed by retention before they were read; the reader stands at the first that is left.
    Expired(Position),
    /// Nothing more is durable yet.
    End,
}

/// Records that were written together.
#[derive(Debug)]
pub struct Batch {
    /// Incarnation of the segment.
    pub incarnation: [u8; 16],
    /// Unix milliseconds of writing.
    pub time_ms: u64,
    from: Position,
    header: BatchHeader,
    payload: Vec<u8>,
}

/// One record of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// Its number.
    pub position: Position,
    /// Kind, id and time.
    pub head: Head,
    /// Kafka key; empty = none.
    pub key: &'a [u8],
    /// The record itself.
    pub body: &'a [u8],
}

impl Batch {
    /// The records from where the reader was asked to begin.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let (mut rest, mut position) = (&self.payload[..], self.header.base);
        let all = std::iter::from_fn(move || {
            let view = frame::next_record(rest)?;
            rest = &rest[view.bytes..];
            let entry = Entry { position, head: view.head, key: view.key, body: view.body };
            position = Position(position.0 + 1);
            Some(entry)
        });
        let from = self.from;
        all.filter(move |entry| entry.position >= from)
    }

    /// Position of the first of them.
    pub fn first(&self) -> Position {
        self.from.max(self.header.base)
    }

    /// Position after the last of them.
    pub fn next(&self) -> Position {
        self.header.next()
    }

    /// Event records of the whole batch before `position`, counted from the journal's start.
    pub fn events_before(&self, position: Position) -> u64 {
        let (mut rest, mut at, mut events) = (&self.payload[..], self.header.base, self.header.events_before);
        while at < position {
            let Some(view) = frame::next_record(rest) else { break };
            rest = &rest[view.bytes..];
            at = Position(at.0 + 1);
            events += u64::from(view.head.kind == crate::record::Kind::Event);
        }
        events
    }
}

struct Open {
    segment: Segment,
    file: Box<dyn DiskFile>,
    seed: u32,
    offset: u64,
}

/// See the module.
pub struct Reader {
    disk: Arc<dyn Disk>,
    paths: Paths,
    journal_id: [u8; 16],
    view: Arc<View>,
    /// Where the caller wants to go on.
    from: Position,
    /// Where the next batch should begin, and the event records before it.
    expected: Position,
    events: u64,
    open: Option<Open>,
    window: Window,
    /// Where the last head was taken on trust: offset, position, events. The next head or the end bears it out.
    trusted: Option<(u64, Position, u64)>,
    /// The next batch must be read whole.
    distrust: bool,
    /// Where the last damage begins in its segment.
    damaged_offset: u64,
    /// Buffers of batches that were given back, for the next ones.
    spares: Vec<Vec<u8>>,
}

/// Buffers kept for further batches: as many as a transaction of the longest batches has in hand.
const SPARES: usize = 3;

/// A batch's head and where its payload lies.
struct Step {
    header: BatchHeader,
    incarnation: [u8; 16],
}

enum Walk {
    Batch(Step),
    Damage(Damage),
    Expired(Position),
    End,
}

impl Reader {
    /// A reader of a view, beginning at `from` or at the oldest record that is left.
    pub fn new(disk: Arc<dyn Disk>, paths: Paths, journal_id: [u8; 16], view: Arc<View>, from: Position) -> Reader {
        Reader {
            disk,
            paths,
            journal_id,
            view,
            from,
            expected: from,
            events: 0,
            open: None,
            window: Window::new(),
            trusted: None,
            distrust: false,
            damaged_offset: 0,
            spares: Vec::new(),
        }
    }

    /// Position of the record that comes next.
    pub fn position(&self) -> Position {
        self.from
    }

    /// The next batch, damage, or the end. Doesn't wait.
    pub fn read_next(&mut self) -> Result<Next, ReadError> {
        loop {
            match self.walk(true)? {
                Walk::Batch(step) => {
                    if step.header.next() <= self.from {
                        continue;
                    }
                    let payload = self.payload(&step.header)?;
                    let from = self.from;
                    self.from = step.header.next();
                    return Ok(Next::Batch(Batch {
                        incarnation: step.incarnation,
                        time_ms: step.header.time_ms,
                        from,
                        header: step.header,
                        payload,
                    }));
                }
                Walk::Damage(damage) => {
                    if damage.next <= self.from {
                        continue;
                    }
                    self.from = damage.next;
                    return Ok(Next::Damage(damage));
                }
                Walk::Expired(position) => {
                    self.from = position;
                    return Ok(Next::Expired(position));
                }
                Walk::End => return Ok(Next::End),
            }
        }
    }

    /// Takes back a batch that is no longer needed, so that its memory serves the next: a backlog would otherwise make
    /// and free megabytes for each, and an allocator keeps what was freed.
    pub fn recycle(&mut self, batch: Batch) {
        if self.spares.len() < SPARES {
            self.spares.push(batch.payload);
        }
    }

    /// Event records before `from`, and the time of the batch that holds it; walks heads only.
    pub fn tally(&mut self) -> Result<(u64, Option<u64>), ReadError> {
        loop {
            match self.walk(false)? {
                Walk::Batch(step) if step.header.next() > self.from => {
                    let mut events = step.header.events_before;
                    if self.from > step.header.base {
                        if !self.is_whole(&step.header)? {
                            self.doubt();
                            continue;
                        }
                        let payload = self.payload(&step.header)?;
                        let batch = Batch {
                            incarnation: step.incarnation,
                            time_ms: step.header.time_ms,
                            from: self.from,
                            header: step.header,
                            payload,
                        };
                        events = batch.events_before(self.from);
                    }
                    // Stand before this batch again, as the next tally may end in it.
                    self.trusted = None;
                    self.expected = step.header.base;
                    self.events = step.header.events_before;
                    if let Some(open) = &mut self.open {
                        open.offset -= step.header.bytes() as u64;
                    }
                    return Ok((events, Some(step.header.time_ms)));
                }
                Walk::Damage(damage) if damage.next > self.from => {
                    // Stand before it again.
                    (self.expected, self.events) = (damage.first, damage.events_before);
                    let open = self.open.as_mut().expect("damage was found in it");
                    open.offset = self.damaged_offset;
                    // All of it is lost, so the count inside of it is taken as behind it.
                    let lost = if self.from > damage.first { damage.events } else { 0 };
                    return Ok((damage.events_before + lost, Some(open.segment.created_ms)));
                }
                Walk::Batch(_) | Walk::Damage(_) => {}
                Walk::Expired(position) => self.from = self.from.max(position),
                Walk::End => return Ok((self.events, None)),
            }
        }
    }

    /// Whether the batch just stepped over is what was sealed, read afresh.
    fn is_whole(&mut self, header: &BatchHeader) -> Result<bool, ReadError> {
        let open = self.open.as_ref().expect("a segment is open");
        self.window.clear();
        let offset = open.offset - header.bytes() as u64;
        let found = scan::batch_at(&*open.file, &mut self.window, offset, open.seed)
            .map_err(|source| ReadError { segment: segment::segment_name(open.segment.seq), source })?;
        Ok(found.as_ref() == Some(header))
    }

    /// Goes back to the head that was taken on trust, if there is one, to read its batch whole.
    fn doubt(&mut self) -> bool {
        let (Some(trusted), Some(open)) = (self.trusted.take(), &mut self.open) else { return false };
        (open.offset, self.expected, self.events) = trusted;
        self.distrust = true;
        true
    }

    /// Moves on, for [`Reader::tally`]. Never back.
    pub fn seek(&mut self, position: Position) {
        self.from = self.from.max(position);
    }

    /// One step: the next batch with records, whether or not the caller wants it.
    fn walk(&mut self, check: bool) -> Result<Walk, ReadError> {
        loop {
            let snapshot = self.view.snapshot();
            let oldest = snapshot.segments.first().map_or(snapshot.end, |segment| segment.base);
            if self.from < oldest {
                (self.open, self.expected, self.trusted) = (None, oldest, None);
                return Ok(Walk::Expired(oldest));
            }
            if self.open.is_none() && !self.open_segment(&snapshot)? {
                return Ok(Walk::End);
            }
            let open = self.open.as_ref().expect("opened above");
            let later = snapshot.segments.iter().find(|segment| segment.seq > open.segment.seq);
            let (end, end_events) =
                later.map_or((snapshot.end, snapshot.events), |segment| (segment.base, segment.events_before));
            if self.expected >= end {
                if (self.expected, self.events) != (end, end_events) && self.doubt() {
                    continue;
                }
                self.trusted = None;
                (self.expected, self.events) = (end, end_events);
                if later.is_none() {
                    return Ok(Walk::End);
                }
                self.open = None;
                self.from = self.from.max(end);
                continue;
            }
            match self.batch(check, end)? {
                Some(step) if step.header.count == 0 => {}
                Some(step) => return Ok(Walk::Batch(step)),
                None => return self.damage(end, end_events).map(Walk::Damage),
            }
        }
    }

    /// Opens the segment that holds `expected`; `false` if there is no segment at all.
    fn open_segment(&mut self, snapshot: &Snapshot) -> Result<bool, ReadError> {
        let holds = snapshot.segments.iter().rev().find(|segment| segment.base <= self.expected);
        let Some(segment) = holds.or(snapshot.segments.first()) else { return Ok(false) };
        let path = self.paths.segment(segment.seq);
        let file = match self.disk.open(&path, false) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.segment_went(segment.seq) => {
                return self.open_segment(&self.view.snapshot());
            }
            Err(source) => return Err(ReadError { segment: segment::segment_name(segment.seq), source }),
        };
        self.expected = segment.base;
        self.events = segment.events_before;
        self.window.clear();
        let seed = frame::seed(&self.journal_id, segment.seq);
        self.open = Some(Open { segment: segment.clone(), file, seed, offset: SEGMENT_HEADER_BYTES });
        Ok(true)
    }

    fn segment_went(&self, seq: u64) -> bool {
        self.view.snapshot().segments.iter().all(|segment| segment.seq != seq)
    }

    /// The batch at the present offset, stepping over it; `None` if there is none where one must be.
    fn batch(&mut self, check: bool, end: Position) -> Result<Option<Step>, ReadError> {
        let check = std::mem::take(&mut self.distrust) || check;
        let open = self.open.as_mut().expect("a segment is open");
        let failed = |source| ReadError { segment: segment::segment_name(open.segment.seq), source };
        let mut found = None;
        if check {
            found = scan::batch_at(&*open.file, &mut self.window, open.offset, open.seed).map_err(failed)?;
        } else {
            let mut head = [0; BATCH_HEADER_BYTES];
            fill(&*open.file, open.offset, &mut head).map_err(failed)?;
            if let Some(header) = BatchHeader::peek(&head) {
                let own = header.incarnation == open.segment.incarnation[..8] && header.next() <= end;
                let follows = (header.base, header.events_before) == (self.expected, self.events);
                found = (own && follows).then_some(header);
            }
            if found.is_some() {
                self.trusted = Some((open.offset, self.expected, self.events));
            } else if self.doubt() {
                return self.batch(true, end);
            }
        }
        let open = self.open.as_mut().expect("a segment is open");
        let failed = |source| ReadError { segment: segment::segment_name(open.segment.seq), source };
        if found.is_none_or(|header| header.base != self.expected) {
            // What the window holds may be from before the batch was written.
            self.window.clear();
            found = scan::batch_at(&*open.file, &mut self.window, open.offset, open.seed).map_err(failed)?;
        }
        let Some(header) = found.filter(|header| header.base == self.expected) else { return Ok(None) };
        open.offset += header.bytes() as u64;
        self.expected = header.next();
        self.events = header.events_after();
        Ok(Some(Step { header, incarnation: open.segment.incarnation }))
    }

    /// Payload of the batch just stepped over.
    fn payload(&mut self, header: &BatchHeader) -> Result<Vec<u8>, ReadError> {
        let open = self.open.as_ref().expect("a segment is open");
        let offset = open.offset - u64::from(header.payload_bytes);
        let bytes = self
            .window
            .get(&*open.file, offset, header.payload_bytes as usize)
            .map_err(|source| ReadError { segment: segment::segment_name(open.segment.seq), source })?;
        let mut payload = self.spares.pop().unwrap_or_default();
        payload.clear();
        payload.extend_from_slice(bytes);
        Ok(payload)
    }

    /// Names what is unreadable up to the next batch, or to the end of the segment, and stands behind it.
    fn damage(&mut self, end: Position, end_events: u64) -> Result<Damage, ReadError> {
        let open = self.open.as_mut().expect("a segment is open");
        let segment = segment::segment_name(open.segment.seq);
        let mut offset = open.offset;
        let mut next = (end, end_events, None);
        while let Some((at, header)) = scan::next_batch(&*open.file, &mut self.window, offset, open.seed)
            .map_err(|source| ReadError { segment: segment.clone(), source })?
        {
            // At what is expected, if the bytes between hold no records: then nothing is lost.
            if header.base >= self.expected && header.base <= end {
                next = (header.base, header.events_before, Some(at));
                break;
            }
            offset = at + header.bytes() as u64;
        }
        let length = open.file.length().map_err(|source| ReadError { segment: segment.clone(), source })?;
        let until = next.2.unwrap_or(length);
        let mut damage = Damage {
            first: self.expected,
            next: next.0,
            events: next.1.saturating_sub(self.events),
            events_before: self.events,
            segment,
            byte: open.offset,
            bytes: until.saturating_sub(open.offset),
        };
        let destroyed = self.view.snapshot().segments.iter().find(|segment| segment.seq > open.segment.seq).cloned();
        if let Some(destroyed) = destroyed.filter(|segment| damage.bytes == 0 && segment.is_unreadable) {
            damage.segment = segment::segment_name(destroyed.seq);
            (damage.byte, damage.bytes) = (0, destroyed.bytes);
        }
        self.damaged_offset = open.offset;
        open.offset = until;
        (self.expected, self.events) = (next.0, next.1);
        Ok(damage)
    }
}
