//! A moment before which no record is stamped any more: agreed with every worker, without a lock on an event's way.
//!
//! `raise` asks for it. Each worker, on its own thread and between two requests, promises to stamp nothing earlier and
//! hands over what it has. Once what was handed over has arrived in the journal (`is_settled`), every record stamped
//! before the moment lies there. A worker that stands holds the moment up, and nothing else.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::time::Timestamp;

/// Tells whether what a worker had handed over by then is in the journal, or is known never to be.
pub type Arrival = Box<dyn Fn() -> bool + Send>;
/// What a worker does when asked: it stamps nothing earlier from now on, and hands over what it has.
pub type Promise = Box<dyn Fn(Timestamp) -> Arrival>;

/// See the module.
pub struct Frontier {
    state: Mutex<State>,
    /// The moment that is asked for. Changed under the lock of `state`.
    raised: watch::Sender<Timestamp>,
}

#[derive(Default)]
struct State {
    members: Vec<Seat>,
    /// Of workers that have ended.
    departed: Vec<Arrival>,
    numbers: u64,
    /// No worker can add anything any more.
    closed: bool,
}

struct Seat {
    number: u64,
    promised: Timestamp,
    arrived: Arrival,
}

impl Frontier {
    /// One that begins with a moment: nothing is stamped before it.
    pub fn new(begin: Timestamp) -> Frontier {
        Frontier { state: Mutex::default(), raised: watch::Sender::new(begin) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The moment that was asked for last.
    pub fn moment(&self) -> Timestamp {
        *self.raised.borrow()
    }

    /// Asks for a later moment; an earlier one changes nothing.
    pub fn raise(&self, moment: Timestamp) {
        let _state = self.state();
        self.raised.send_if_modified(|raised| {
            let is_later = moment > *raised;
            *raised = moment.max(*raised);
            is_later
        });
    }

    /// Whether everything that was or will be stamped before the moment is in the journal, or never will be.
    pub fn is_settled(&self) -> bool {
        let (moment, mut state) = (self.moment(), self.state());
        state.departed.retain(|arrived| !arrived());
        let settled = |seat: &Seat| seat.promised >= moment && (seat.arrived)();
        state.closed || (state.departed.is_empty() && state.members.iter().all(settled))
    }

    /// A worker more. To be called on its own thread before it takes any request.
    pub fn join(self: &Arc<Frontier>, promise: Promise) -> Member {
        let mut state = self.state();
        let (moment, raised) = (self.moment(), self.raised.subscribe());
        drop(promise(moment));
        state.numbers += 1;
        let number = state.numbers;
        state.members.push(Seat { number, promised: moment, arrived: Box::new(|| true) });
        Member { frontier: self.clone(), number, raised, promise }
    }

    /// The journal is closed: whatever workers still do, nothing more comes.
    pub fn close(&self) {
        self.state().closed = true;
    }
}

/// A worker's end. Dropping it says that the worker has ended.
pub struct Member {
    frontier: Arc<Frontier>,
    number: u64,
    raised: watch::Receiver<Timestamp>,
    promise: Promise,
}

impl Member {
    /// Promises what is asked for, as long as the worker's loop turns.
    pub async fn run(mut self) {
        // Ends only with the frontier, that this holds.
        while self.raised.changed().await.is_ok() {
            self.answer();
        }
    }

    pub(super) fn answer(&mut self) {
        let moment = *self.raised.borrow_and_update();
        let arrived = (self.promise)(moment);
        let mut state = self.frontier.state();
        if let Some(seat) = state.members.iter_mut().find(|seat| seat.number == self.number) {
            (seat.promised, seat.arrived) = (moment, arrived);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let arrived = (self.promise)(Timestamp(0));
        let mut state = self.frontier.state();
        state.members.retain(|seat| seat.number != self.number);
        state.departed.push(arrived);
    }
}
