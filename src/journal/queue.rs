//! Between workers and committer: the bytes that wait, the room they were promised, and when to commit.
//!
//! Bounded in bytes by what may be in flight and by the room on disk; both are reserved before a record is taken.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::append::{Refused, Slot};
use super::frame::BATCH_HEADER_BYTES;
use crate::inflight::Inflight;

/// Advice for a client that found no room: publishing frees whole segments, which takes seconds.
const FULL_RETRY: Duration = Duration::from_secs(30);

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const POISONED: u8 = 2;

/// What the committer is doing, so that workers wake it only when it is worth a system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Committer {
    /// Writing or syncing: it will look by itself.
    Busy,
    /// Waiting for anything at all.
    Idle,
    /// Waiting for this many records, or for its own time limit.
    Gathering(u32),
}

/// A batch in the making: room for its head, and records as they will lie on disk.
pub struct Chunk {
    /// [`BATCH_HEADER_BYTES`] of nothing yet, then the records.
    pub bytes: Vec<u8>,
    /// Their number.
    pub records: u32,
    /// Event records among them.
    pub events: u32,
}

impl Chunk {
    /// What is longer is handed over, and not added to: large records must not make large buffers.
    pub const FULL_BYTES: usize = 256 * 1024;

    /// An empty one, in a buffer that may have been used before.
    pub fn begin(mut bytes: Vec<u8>) -> Chunk {
        bytes.clear();
        bytes.resize(BATCH_HEADER_BYTES, 0);
        Chunk { bytes, records: 0, events: 0 }
    }

    /// Bytes of its records.
    pub fn payload_bytes(&self) -> usize {
        self.bytes.len() - BATCH_HEADER_BYTES
    }

    /// Takes the records of another if they fit.
    fn absorb(&mut self, other: &Chunk) -> bool {
        let fits = self.bytes.len() + other.payload_bytes() <= Chunk::FULL_BYTES;
        if fits {
            self.bytes.extend_from_slice(&other.bytes[BATCH_HEADER_BYTES..]);
            self.records += other.records;
            self.events += other.events;
        }
        fits
    }
}

/// Records handed over and not yet taken by the committer.
#[derive(Default)]
pub struct Queue {
    /// Batches to be, in their order.
    pub chunks: Vec<Chunk>,
    /// Number of records.
    pub records: u32,
    /// Event records among them.
    pub events: u32,
    /// Who waits: the newest hand-over of each worker.
    pub tickets: Vec<(Arc<Slot>, u64)>,
}

impl Queue {
    /// Bytes of records.
    pub fn payload_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.payload_bytes() as u64).sum()
    }

    /// Bytes that were reserved for what it holds.
    pub fn reserved(&self) -> u64 {
        self.payload_bytes() + u64::from(self.records) * BATCH_HEADER_BYTES as u64
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.chunks.clear();
        (self.records, self.events) = (0, 0);
        self.tickets.clear();
    }
}

/// Buffers kept for further chunks: what one commit writes while the next gathers, on an ordinary day.
const SPARES: usize = 4;
/// Buffers that have become larger are not kept: a full chunk and the longest record.
const SPARE_BYTES: usize = 2 * Chunk::FULL_BYTES;

struct Inner {
    queue: Queue,
    /// Empty buffers.
    spares: Vec<Vec<u8>>,
    committer: Committer,
    closing: bool,
    poked: bool,
    /// The committer has taken its last: what comes later is nobody's.
    ended: bool,
}

/// The shared state of workers and committer.
pub struct Shared {
    /// Taken by each worker once a tick and by the committer once a commit, for a memory copy. Innermost of all.
    inner: Mutex<Inner>,
    wake: Condvar,
    state: AtomicU8,
    full: AtomicBool,
    /// No further segment can be had: what room there is, is all there is. Else more is being allocated.
    exhausted: AtomicBool,
    /// Records in it are reserved: promised and not yet written.
    inflight: Arc<Inflight>,
    room: AtomicU64,
}

impl Shared {
    /// Nothing waits and there is no room yet.
    pub fn new() -> Shared {
        Shared {
            inner: Mutex::new(Inner {
                queue: Queue::default(),
                spares: Vec::new(),
                committer: Committer::Busy,
                closing: false,
                poked: false,
                ended: false,
            }),
            wake: Condvar::new(),
            state: AtomicU8::new(OPEN),
            full: AtomicBool::new(false),
            exhausted: AtomicBool::new(false),
            inflight: Arc::default(),
            room: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The only code that runs under it copies bytes; a panic there (out of memory) ends the process anyway.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, and what else is under its bound.
    pub fn inflight(&self) -> &Arc<Inflight> {
        &self.inflight
    }

    /// Whether records are taken at all.
    pub fn admit(&self) -> Result<(), Refused> {
        match self.state.load(Ordering::Acquire) {
            OPEN => Ok(()),
            CLOSED => Err(Refused::Closed),
            _ => Err(Refused::Poisoned),
        }
    }

    /// Promises room for `bytes`.
    pub fn reserve(&self, bytes: u64) -> Result<(), Refused> {
        let all = self.inflight.add_record(bytes);
        let room = self.room.load(Ordering::Acquire);
        if all <= room && self.inflight.has_room_for(all) {
            return Ok(());
        }
        self.inflight.remove_records(bytes);
        if all > room && self.exhausted.load(Ordering::Acquire) {
            self.full.store(true, Ordering::Release);
            return Err(Refused::Full { retry_after: FULL_RETRY });
        }
        Err(Refused::Busy)
    }

    /// Takes a promise back that nobody used.
    pub fn release(&self, bytes: u64) {
        self.inflight.remove_records(bytes);
    }

    /// A worker's records. Few are copied to those that wait, many change hands; the worker has an empty chunk then.
    pub fn hand_over(&self, chunk: &mut Chunk, slot: &Arc<Slot>, number: u64) {
        let mut inner = self.lock();
        if inner.ended {
            drop(inner);
            *chunk = Chunk::begin(Vec::new());
            slot.lose(number);
            return;
        }
        let Inner { queue, spares, .. } = &mut *inner;
        queue.records += chunk.records;
        queue.events += chunk.events;
        if queue.chunks.last_mut().is_some_and(|last| last.absorb(chunk)) {
            *chunk = Chunk::begin(std::mem::take(&mut chunk.bytes));
        } else {
            let next = Chunk::begin(spares.pop().unwrap_or_default());
            queue.chunks.push(std::mem::replace(chunk, next));
        }
        match queue.tickets.iter_mut().find(|(waiting, _)| Arc::ptr_eq(waiting, slot)) {
            Some(ticket) => ticket.1 = number,
            None => queue.tickets.push((slot.clone(), number)),
        }
        let waiting = queue.records;
        let wake = match inner.committer {
            Committer::Busy => false,
            Committer::Idle => true,
            Committer::Gathering(enough) => waiting >= enough,
        };
        drop(inner);
        if wake {
            self.wake.notify_one();
        }
    }

    /// The committer waits for work: until something is handed over, it is poked, or `timeout` has passed.
    pub fn wait_for_work(&self, timeout: Duration) {
        let mut inner = self.lock();
        inner.committer = Committer::Idle;
        let (mut inner, _) = self
            .wake
            .wait_timeout_while(inner, timeout, |inner| inner.queue.records == 0 && !inner.closing && !inner.poked)
            .unwrap_or_else(PoisonError::into_inner);
        inner.poked = false;
        inner.committer = Committer::Busy;
    }

    /// The committer lets a batch grow: until `enough` records wait or `timeout` has passed.
    pub fn gather(&self, enough: u32, timeout: Duration) {
        let mut inner = self.lock();
        inner.committer = Committer::Gathering(enough);
        let (mut inner, _) = self
            .wake
            .wait_timeout_while(inner, timeout, |inner| inner.queue.records < enough && !inner.closing)
            .unwrap_or_else(PoisonError::into_inner);
        inner.committer = Committer::Busy;
    }

    /// The committer takes all that waits, leaving `spare` (empty) in its place. Returns how many records it took.
    pub fn take(&self, spare: &mut Queue) -> u32 {
        debug_assert!(spare.records == 0, "what was taken before is written");
        std::mem::swap(&mut self.lock().queue, spare);
        spare.records
    }

    /// Keeps a few of the committer's buffers for the workers.
    pub fn give_back(&self, chunks: &mut Vec<Chunk>) {
        let mut inner = self.lock();
        for chunk in chunks.drain(..) {
            if inner.spares.len() < SPARES && chunk.bytes.capacity() <= SPARE_BYTES {
                inner.spares.push(chunk.bytes);
            }
        }
    }

    /// The committer's last act: nothing is taken any more, and what still waits is lost to its waiters.
    pub fn end(&self) {
        let mut rest = {
            let mut inner = self.lock();
            inner.ended = true;
            std::mem::take(&mut inner.queue)
        };
        for (slot, number) in rest.tickets.drain(..) {
            slot.lose(number);
        }
    }

    /// How many records wait.
    pub fn waiting(&self) -> u32 {
        self.lock().queue.records
    }

    /// The committer's word after writing `written` reserved bytes: what room is left.
    pub fn settle(&self, room: u64, written: u64) {
        // Room first: for a moment too little is promised, never too much.
        self.room.store(room, Ordering::Release);
        self.inflight.remove_records(written);
    }

    /// Wakes the committer for its upkeep, such as after the cursor moved.
    pub fn poke(&self) {
        self.lock().poked = true;
        self.wake.notify_one();
    }

    /// Refuses new records; what waits will still be committed.
    pub fn close(&self) {
        let _ = self.state.compare_exchange(OPEN, CLOSED, Ordering::AcqRel, Ordering::Acquire);
        self.lock().closing = true;
        self.wake.notify_one();
    }

    /// Whether closing was asked for.
    pub fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Refuses everything from now on.
    pub fn poison(&self) {
        self.state.store(POISONED, Ordering::Release);
    }

    /// Whether the journal failed.
    pub fn is_poisoned(&self) -> bool {
        self.state.load(Ordering::Acquire) == POISONED
    }

    /// Whether records were refused for room since [`Shared::clear_full`].
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// There is room again.
    pub fn clear_full(&self) {
        self.full.store(false, Ordering::Release);
    }

    /// Whether no further segment can be had. Tells whether that is news.
    pub fn exhaust(&self, exhausted: bool) -> bool {
        self.exhausted.swap(exhausted, Ordering::AcqRel) != exhausted
    }

    /// No segment could be allocated and none is open: full before anybody asked.
    pub fn set_full(&self) {
        self.exhausted.store(true, Ordering::Release);
        self.full.store(true, Ordering::Release);
    }
}
