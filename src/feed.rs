//! The live feed: records as they become durable, for a few people who watch.
//!
//! A thread reads the journal behind the events' back, only while somebody listens, so that the event routes pay
//! nothing for it and a line is shown when its fact is true. Refused requests that the journal doesn't keep are handed
//! in by the routes, which ask [`Feed::listens`] (one relaxed load) first.
//!
//! Bounds: [`READERS_MAX`] readers, [`INBOX_BYTES`] each. Who is slower than that is dropped and counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use crate::journal::{Batch, Journal, Next};
use crate::pixel::PixelId;
use crate::record::{Kind, Position};

/// A console or two, and scripts. More than these copy the topic from Kafka instead.
pub const READERS_MAX: usize = 16;
/// What may wait for one reader: some 4,000 ordinary records, so all readers together hold 32 MiB at most.
pub const INBOX_BYTES: usize = 2 << 20;
/// How long the thread waits for records before it looks whether anybody still listens.
const IDLE: Duration = Duration::from_millis(200);

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Accepted or rejected.
    pub kind: Kind,
    /// Its `record_id`.
    pub id: [u8; 16],
    /// Its JSON.
    pub body: Bytes,
}

/// Which records a reader wants, by the pixel they name.
pub type Wanted = Box<dyn Fn(Option<PixelId>) -> bool + Send + Sync>;
/// Ends the connection of a reader that doesn't read.
pub type Cut = Box<dyn Fn() + Send + Sync>;

/// Why nobody more can listen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// [`READERS_MAX`] do.
    Full,
    /// The program is stopping.
    Closed,
}

/// The running feed.
pub struct Feed {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    /// Whether there is a reader, for the event routes.
    listens: AtomicBool,
    dropped: AtomicU64,
    /// Taken for a few list operations. Lock order: state, then a reader's inbox.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    readers: Vec<Arc<Seat>>,
    closed: bool,
}

/// A reader as the feed sees it.
struct Seat {
    /// Records from here on: what became durable before it came is not shown.
    from: Position,
    wanted: Wanted,
    cut: Cut,
    inbox: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    lines: VecDeque<Line>,
    bytes: usize,
    ended: bool,
    waker: Option<Waker>,
}

/// A reader's end. Dropping it leaves the feed.
pub struct Reader {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
}

impl Feed {
    /// Starts the thread.
    pub fn start(journal: Journal) -> std::io::Result<Feed> {
        let shared = Arc::new(Shared {
            listens: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let own = shared.clone();
        let thread = std::thread::Builder::new().name("feed".into()).spawn(move || own.run(&journal))?;
        Ok(Feed { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Whether anybody listens.
    pub fn listens(&self) -> bool {
        self.shared.listens.load(Relaxed)
    }

    /// Readers dropped because they were too slow.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// A reader more, of what becomes durable from position `from` on.
    pub fn join(&self, from: Position, wanted: Wanted, cut: Cut) -> Result<Reader, Refused> {
        let mut state = self.shared.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.readers.len() >= READERS_MAX {
            return Err(Refused::Full);
        }
        let seat = Arc::new(Seat { from, wanted, cut, inbox: Mutex::default() });
        state.readers.push(seat.clone());
        self.shared.listens.store(true, Relaxed);
        self.shared.changed.notify_all();
        Ok(Reader { shared: self.shared.clone(), seat })
    }

    /// Shows a refused request that the journal doesn't keep.
    pub fn show_rejected(&self, pixel: Option<PixelId>, id: [u8; 16], body: Vec<u8>) {
        let line = Line { kind: Kind::Rejected, id, body: body.into() };
        let seats = self.shared.lock().readers.clone();
        for seat in seats {
            if (seat.wanted)(pixel) {
                self.shared.give(&seat, line.clone());
            }
        }
    }

    /// Ends all readers at once, and takes no more.
    pub fn close(&self) {
        let mut state = self.shared.lock();
        state.closed = true;
        for seat in state.readers.drain(..) {
            seat.end();
        }
        self.shared.listens.store(false, Relaxed);
        self.shared.changed.notify_all();
    }

    /// Waits for the thread of a closed feed.
    pub fn join_thread(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the live feed's thread ended by a fault");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole list operations only: a panic leaves whole values.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, journal: &Journal) {
        while let Some(from) = self.wait_for_readers() {
            let mut reader = journal.reader(from);
            while self.listens.load(Relaxed) {
                journal.wait(reader.position(), IDLE);
                match reader.read_next() {
                    Ok(Next::Batch(batch)) => self.spread(&batch),
                    // Both are the publisher's to tell; here they are a gap.
                    Ok(Next::Damage(_) | Next::Expired(_) | Next::End) => {}
                    Err(error) => {
                        tracing::warn!(%error, "the live feed can't read the journal");
                        std::thread::sleep(IDLE);
                    }
                }
            }
        }
    }

    /// Where the first of those who listen wants to begin; `None` when the feed is closed.
    fn wait_for_readers(&self) -> Option<Position> {
        let state = self.lock();
        let idle = |state: &mut State| state.readers.is_empty() && !state.closed;
        let state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        state.readers.iter().map(|seat| seat.from).min()
    }

    fn spread(&self, batch: &Batch) {
        let seats = self.lock().readers.clone();
        for entry in batch.entries() {
            let pixel = PixelId::parse(entry.key);
            let mut line = None;
            for seat in seats.iter().filter(|seat| entry.position >= seat.from && (seat.wanted)(pixel)) {
                let line = line.get_or_insert_with(|| Line {
                    kind: entry.head.kind,
                    id: entry.head.id,
                    body: Bytes::copy_from_slice(entry.body),
                });
                self.give(seat, line.clone());
            }
        }
    }

    /// Puts a line into a reader's inbox, or drops the reader.
    fn give(&self, seat: &Arc<Seat>, line: Line) {
        if seat.take(line) {
            return;
        }
        if self.leave(seat) {
            self.dropped.fetch_add(1, Relaxed);
            seat.end();
            (seat.cut)();
        }
    }

    /// Takes a reader off the list; whether it was there.
    fn leave(&self, seat: &Arc<Seat>) -> bool {
        let mut state = self.lock();
        let before = state.readers.len();
        state.readers.retain(|other| !Arc::ptr_eq(other, seat));
        self.listens.store(!state.readers.is_empty(), Relaxed);
        state.readers.len() < before
    }
}

impl Seat {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false` if there is no room.
    fn take(&self, line: Line) -> bool {
        let mut inbox = self.inbox();
        if inbox.ended {
            return true;
        }
        // A record alone always fits: it is far smaller than an inbox.
        if inbox.bytes + line.body.len() > INBOX_BYTES {
            return false;
        }
        inbox.bytes += line.body.len();
        inbox.lines.push_back(line);
        let waker = inbox.waker.take();
        drop(inbox);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Nothing more comes; what waits is let go.
    fn end(&self) {
        let mut inbox = self.inbox();
        *inbox = Inbox { ended: true, waker: inbox.waker.take(), ..Inbox::default() };
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
    }
}

impl Reader {
    /// The next line; `None` when the feed has ended or dropped this reader.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Line>> {
        let mut inbox = self.seat.inbox();
        if let Some(line) = inbox.lines.pop_front() {
            inbox.bytes -= line.body.len();
            return Poll::Ready(Some(line));
        }
        if inbox.ended {
            return Poll::Ready(None);
        }
        inbox.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.leave(&self.seat);
    }
}

#[cfg(test)]
mod tests;
