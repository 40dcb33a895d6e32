//! The worker's side: records are encoded into a worker-local buffer, handed over once per tick, and waited for.
//!
//! One hand-over and one wake per worker and commit, whatever the number of requests: that makes a commit cheap.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use atomic_waker::AtomicWaker;

use super::frame::{self, BATCH_HEADER_BYTES, MAX_RECORD_BYTES};
use super::queue::{Chunk, Shared};
use crate::record::{Head, Kind};

/// Why a record was not taken. It is not in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// No room on disk or within `max_bytes`.
    Full {
        /// When a retry may succeed.
        retry_after: Duration,
    },
    /// Too much is waiting for the disk.
    Busy,
    /// The record exceeds [`MAX_RECORD_BYTES`].
    TooLarge,
    /// The journal failed; it takes nothing more until the next start.
    Poisoned,
    /// The journal is closed.
    Closed,
}

/// The device failed under a record that was taken: whether it is in the journal is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lost;

/// Below all numbers of hand-overs: what it stands for is over, and well.
const SETTLED: u64 = 0;

/// What committer and worker share: how far the worker's hand-overs are done.
pub struct Slot {
    /// Hand-overs up to this number are over.
    done: AtomicU64,
    /// Those up to this number that were waited for at that moment have an unknown outcome.
    lost: AtomicU64,
    waker: AtomicWaker,
    /// Other workers that wait for these hand-overs, too. Taken for a list operation; whether there are any is asked
    /// first, so that a commit pays nothing for it.
    others: Mutex<Vec<Waker>>,
    has_others: AtomicBool,
}

impl Slot {
    fn new() -> Slot {
        Slot {
            done: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            waker: AtomicWaker::new(),
            others: Mutex::default(),
            has_others: AtomicBool::new(false),
        }
    }

    /// The committer's word: hand-overs up to `number` are in the journal.
    pub fn complete(&self, number: u64) {
        self.done.store(number, Ordering::Release);
        self.wake();
    }

    /// The committer's word: whether hand-overs up to `number` are in the journal can't be told. A neighbour that is
    /// in it and not yet answered is told the same, which is true of it too: an answer "unknown" promises nothing.
    pub fn lose(&self, number: u64) {
        self.lost.store(number, Ordering::Release);
        self.done.store(number, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        self.waker.wake();
        // Both sides swap: either this sees the flag, or who set it sees `done`.
        if self.has_others.swap(false, Ordering::AcqRel) {
            let others = std::mem::take(&mut *self.others.lock().unwrap_or_else(PoisonError::into_inner));
            others.into_iter().for_each(Waker::wake);
        }
    }

    fn wake_too(&self, other: Waker) {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).push(other);
        self.has_others.swap(true, Ordering::AcqRel);
    }

    fn outcome(&self, number: u64) -> Option<Result<(), Lost>> {
        if number == SETTLED {
            return Some(Ok(()));
        }
        if self.done.load(Ordering::Acquire) < number {
            return None;
        }
        Some(if self.lost.load(Ordering::Acquire) < number { Ok(()) } else { Err(Lost) })
    }
}

/// A worker's unsent records and waiting requests.
struct Local {
    chunk: Chunk,
    /// Number of the hand-over being filled.
    number: u64,
    /// Room reserved for records to come.
    prepaid: u64,
    waiters: VecDeque<(u64, Waiter)>,
    /// Who waits for another worker's record. Bounded by the worker's open requests.
    sharers: Vec<Sharer>,
    driver: Option<Waker>,
}

/// Waits for another worker's record.
struct Sharer {
    ticket: Ticket,
    waiter: Waiter,
    /// The other's slot knows whom to wake.
    is_known: bool,
}

/// A record that is on its way, for any thread to look at.
#[derive(Clone)]
pub struct Ticket {
    slot: Arc<Slot>,
    number: u64,
}

impl Ticket {
    /// What became of the record, once that is known.
    pub fn outcome(&self) -> Option<Result<(), Lost>> {
        self.slot.outcome(self.number)
    }
}

/// Who waits for a hand-over.
enum Waiter {
    Task(Waker),
    Told(Rc<dyn Told>),
}

impl Waiter {
    fn tell(self, outcome: Result<(), Lost>) {
        match self {
            Waiter::Task(waker) => waker.wake(),
            Waiter::Told(told) => {
                // A fault in one of them must not leave the others waiting for ever, as it wouldn't in a task.
                if catch_unwind(AssertUnwindSafe(|| told.told(outcome))).is_err() {
                    tracing::error!("journal: whoever was to be told of a commit panicked");
                }
            }
        }
    }
}

/// Is told what became of a record, in place of a task that waits for its receipt.
pub trait Told {
    /// Called once, on the worker's own thread. All records of a commit are told about in one go.
    fn told(self: Rc<Self>, outcome: Result<(), Lost>);
}

/// One worker's way into the journal. Not `Send`: each worker makes its own.
#[derive(Clone)]
pub struct Appender(Rc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    local: RefCell<Local>,
}

impl Appender {
    /// An appender and the future that carries its records over; the caller runs it on the worker's own executor.
    pub fn new(shared: Arc<Shared>) -> (Appender, Driver) {
        let local = Local {
            chunk: Chunk::begin(Vec::new()),
            number: 1,
            prepaid: 0,
            waiters: VecDeque::new(),
            sharers: Vec::new(),
            driver: None,
        };
        let appender = Appender(Rc::new(Inner { shared, slot: Arc::new(Slot::new()), local: RefCell::new(local) }));
        let driver = Driver { appender: appender.clone(), yielded: false };
        (appender, driver)
    }

    /// Encodes a record into the worker's buffer. `key` may be empty: then Kafka gets a null key.
    ///
    /// The room is reserved before this returns. Dropping the receipt changes nothing: the record is written.
    pub fn append(&self, head: Head, key: &[u8], encode: impl FnOnce(&mut Vec<u8>)) -> Result<Receipt, Refused> {
        let Inner { shared, local, .. } = &*self.0;
        shared.admit()?;
        let mut borrowed = local.borrow_mut();
        let Local { chunk, number, driver, prepaid, .. } = &mut *borrowed;
        let start = chunk.bytes.len();
        let bytes = frame::push_record(&mut chunk.bytes, head, key, encode);
        let refused = if bytes > MAX_RECORD_BYTES {
            Some(Refused::TooLarge)
        } else {
            // A batch header for each is more than will be needed: commits carry many.
            let needed = (bytes + BATCH_HEADER_BYTES) as u64;
            match prepaid.checked_sub(needed) {
                Some(left) => {
                    *prepaid = left;
                    None
                }
                None => shared.reserve(needed).err(),
            }
        };
        if let Some(refused) = refused {
            chunk.bytes.truncate(start);
            return Err(refused);
        }
        chunk.records += 1;
        chunk.events += u32::from(head.kind == Kind::Event);
        if let (1, Some(driver)) = (chunk.records, driver) {
            driver.wake_by_ref();
        }
        let receipt = Receipt { number: *number, appender: self.clone(), other: None };
        if chunk.bytes.len() >= Chunk::FULL_BYTES {
            drop(borrowed);
            self.flush();
        }
        Ok(receipt)
    }

    /// A receipt for a record that somebody else appended: of `None` it is durable already.
    pub fn share(&self, ticket: Option<Ticket>) -> Receipt {
        let number = ticket.as_ref().map_or(SETTLED, |ticket| ticket.number);
        let other = ticket.map(|ticket| ticket.slot).filter(|slot| !Arc::ptr_eq(slot, &self.0.slot));
        // Nothing else may make the driver look: it appended nothing.
        if let Some(driver) = &self.0.local.borrow().driver {
            driver.wake_by_ref();
        }
        Receipt { number, appender: self.clone(), other }
    }

    /// Reserves room for several records, so that none of them is refused for want of it while others are taken. They
    /// must be appended in one go; what they leave over goes back when the reservation ends.
    pub fn prepay(&self, bytes: u64) -> Result<Prepaid, Refused> {
        self.0.shared.admit()?;
        self.0.shared.reserve(bytes)?;
        self.0.local.borrow_mut().prepaid += bytes;
        Ok(Prepaid(self.clone()))
    }

    /// Hands over what the worker has, without waiting for the end of its tick.
    pub fn flush(&self) {
        let Inner { shared, slot, local } = &*self.0;
        let mut local = local.borrow_mut();
        if local.chunk.records == 0 {
            return;
        }
        let number = local.number;
        local.number += 1;
        shared.hand_over(&mut local.chunk, slot, number);
    }

    /// What was handed over so far, for any thread to look at: over when the last of it is.
    pub fn handed_over(&self) -> Ticket {
        Ticket { slot: self.0.slot.clone(), number: self.0.local.borrow().number - 1 }
    }

    /// Tells all whose commit is done.
    fn tell_done(&self) {
        let Inner { slot, local, .. } = &*self.0;
        loop {
            // Not borrowed while somebody is told: what they do next may be another record.
            let mut borrowed = local.borrow_mut();
            let Some((number, _)) = borrowed.waiters.front() else { return };
            let Some(outcome) = slot.outcome(*number) else { return };
            let waiter = borrowed.waiters.pop_front();
            drop(borrowed);
            if let Some((_, waiter)) = waiter {
                waiter.tell(outcome);
            }
        }
    }

    /// Tells those who wait for another worker's record, and has the others wake this worker.
    fn tell_sharers(&self, driver: &Waker) {
        for sharer in &mut self.0.local.borrow_mut().sharers {
            if !std::mem::replace(&mut sharer.is_known, true) {
                sharer.ticket.slot.wake_too(driver.clone());
            }
        }
        loop {
            let mut local = self.0.local.borrow_mut();
            let done = local.sharers.iter().enumerate().find_map(|(at, sharer)| Some((at, sharer.ticket.outcome()?)));
            let Some((at, outcome)) = done else { return };
            let sharer = local.sharers.swap_remove(at);
            drop(local);
            sharer.waiter.tell(outcome);
        }
    }
}

/// Room that is reserved.
pub struct Prepaid(Appender);

impl Drop for Prepaid {
    fn drop(&mut self) {
        let left = std::mem::take(&mut self.0.0.local.borrow_mut().prepaid);
        self.0.0.shared.release(left);
    }
}

/// Resolves when the record is as durable as `journal.acknowledge` says.
pub struct Receipt {
    number: u64,
    appender: Appender,
    /// The other worker's, if it is its record.
    other: Option<Arc<Slot>>,
}

impl Receipt {
    /// Has somebody told in place of waiting: by the worker's driver, after the task that appended has returned to its
    /// executor. To be called by that task before it does.
    pub fn tell(self, told: Rc<dyn Told>) {
        self.wait(Waiter::Told(told));
    }

    /// For other threads to look at.
    pub fn ticket(&self) -> Ticket {
        let slot = self.other.as_ref().unwrap_or(&self.appender.0.slot);
        Ticket { slot: slot.clone(), number: self.number }
    }

    fn outcome(&self) -> Option<Result<(), Lost>> {
        self.other.as_ref().unwrap_or(&self.appender.0.slot).outcome(self.number)
    }

    fn wait(&self, waiter: Waiter) {
        let mut local = self.appender.0.local.borrow_mut();
        if self.other.is_none() {
            return local.waiters.push_back((self.number, waiter));
        }
        local.sharers.push(Sharer { ticket: self.ticket(), waiter, is_known: false });
        if let Some(driver) = &local.driver {
            driver.wake_by_ref();
        }
    }
}

impl Future for Receipt {
    type Output = Result<(), Lost>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = self.outcome() {
            return Poll::Ready(outcome);
        }
        // Polled again while waiting (its connection had other news): a second entry wakes once too often, no more.
        // Entries are bounded by such polls within one commit.
        self.wait(Waiter::Task(context.waker().clone()));
        Poll::Pending
    }
}

/// Carries records over at the end of each tick and wakes those whose commit is done. Never ends by itself.
pub struct Driver {
    appender: Appender,
    yielded: bool,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.appender.0.slot.waker.register(context.waker());
        let filled = {
            let mut local = self.appender.0.local.borrow_mut();
            if local.driver.as_ref().is_none_or(|driver| !driver.will_wake(context.waker())) {
                local.driver = Some(context.waker().clone());
            }
            local.chunk.records > 0
        };
        if filled && !self.yielded {
            // Once around the executor: requests that are already here join this hand-over.
            self.yielded = true;
            context.waker().wake_by_ref();
        } else if filled {
            self.yielded = false;
            self.appender.flush();
        }
        self.appender.tell_done();
        self.appender.tell_sharers(context.waker());
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The worker stops: what it took must still reach the journal.
        self.appender.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::Queue;
    use super::*;

    /// Notes what it is told; panics at an odd number.
    struct Listener(u32, Rc<RefCell<Vec<(u32, bool)>>>);

    impl Told for Listener {
        fn told(self: Rc<Self>, outcome: Result<(), Lost>) {
            self.1.borrow_mut().push((self.0, outcome.is_ok()));
            assert!(self.0.is_multiple_of(2), "one of them is faulty");
        }
    }

    #[test]
    fn all_of_a_commit_are_told_once_in_order_whatever_one_does() {
        let shared = Arc::new(Shared::new());
        shared.settle(1 << 20, 0);
        let (appender, driver) = Appender::new(shared.clone());
        let (mut driver, heard) = (Box::pin(driver), Rc::new(RefCell::new(Vec::new())));
        let mut context = Context::from_waker(Waker::noop());
        let mut commit = |numbers: std::ops::Range<u32>, outcome: fn(&Slot, u64)| {
            for number in numbers {
                let head = Head { kind: Kind::Event, id: [0; 16], time_ms: 0 };
                let receipt = appender.append(head, b"key", |out| out.push(b'x')).unwrap();
                receipt.tell(Rc::new(Listener(number, heard.clone())));
            }
            (0..3).for_each(|_| assert!(driver.as_mut().poll(&mut context).is_pending()));
            let before = heard.borrow().len();
            let mut queue = Queue::default();
            shared.take(&mut queue);
            queue.tickets.drain(..).for_each(|(slot, number)| outcome(&slot, number));
            assert!(driver.as_mut().poll(&mut context).is_pending());
            (before, heard.borrow().len())
        };
        assert_eq!(commit(0..4, Slot::complete), (0, 4));
        assert_eq!(commit(4..6, Slot::lose), (4, 6));
        let expected: Vec<_> = (0..6).map(|number| (number, number < 4)).collect();
        assert_eq!(*heard.borrow(), expected);
    }
}
