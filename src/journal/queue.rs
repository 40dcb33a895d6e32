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

/// Records handed over and not yet taken by the committer.
#[derive(Default)]
pub struct Queue {
    /// Records as they will lie on disk.
    pub payload: Vec<u8>,
    /// Their number.
    pub records: u32,
    /// Event records among them.
    pub events: u32,
    /// Who waits: the newest hand-over of each worker.
    pub tickets: Vec<(Arc<Slot>, u64)>,
}

impl Queue {
    /// Buffers larger than this are given back after a burst.
    pub const KEEP_BYTES: usize = 1024 * 1024;

    /// Bytes that were reserved for what it holds.
    pub fn reserved(&self) -> u64 {
        self.payload.len() as u64 + u64::from(self.records) * BATCH_HEADER_BYTES as u64
    }

    /// Empties it, keeping a buffer of ordinary size.
    pub fn clear(&mut self) {
        self.payload.clear();
        if self.payload.capacity() > Queue::KEEP_BYTES {
            self.payload = Vec::new();
        }
        (self.records, self.events) = (0, 0);
        self.tickets.clear();
    }
}

struct Inner {
    queue: Queue,
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

    /// A worker's records of one tick.
    pub fn hand_over(&self, payload: &[u8], records: u32, events: u32, slot: &Arc<Slot>, number: u64) {
        let mut inner = self.lock();
        if inner.ended {
            drop(inner);
            slot.lose(number);
            return;
        }
        let queue = &mut inner.queue;
        queue.payload.extend_from_slice(payload);
        queue.records += records;
        queue.events += events;
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
