//! A worker's connections, looked at once a second: how long each has been quiet, or without its answer.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use super::head::Head;
use super::lane::Lane;
use super::reply;
use crate::event::rejection::Rejection;

/// How often connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);
/// Sweeps that a refused sender has to notice the answer.
const LINGER_SWEEPS: u32 = 2;

/// Sweeps that a connection may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Without a byte either way.
    pub(super) quiet: u32,
    /// From a request's first byte to the answer's.
    pub(super) unanswered: u32,
}

/// A worker's connections. Those that are gone stay in it until the next sweep, no longer.
#[derive(Clone)]
pub(super) struct Watch {
    lines: Rc<RefCell<Vec<Weak<Line>>>>,
    serves_events: bool,
}

impl Watch {
    pub(super) fn start(patience: Patience, serves_events: bool, lane: Option<Rc<Lane>>) -> Watch {
        let lines = Rc::new(RefCell::new(Vec::<Weak<Line>>::new()));
        let swept = lines.clone();
        actix_web::rt::spawn(async move {
            loop {
                actix_web::rt::time::sleep(SWEEP).await;
                lane.iter().for_each(|lane| lane.tick());
                swept.borrow_mut().retain(|line| line.upgrade().is_some_and(|line| line.age(patience)));
            }
        });
        Watch { lines, serves_events }
    }

    /// A connection more.
    pub(super) fn line(&self) -> Rc<Line> {
        let line = Rc::new(Line { serves_events: self.serves_events, ..Line::default() });
        self.lines.borrow_mut().push(Rc::downgrade(&line));
        line
    }

    /// Has all connections look around.
    pub(super) fn wake(&self) {
        self.lines.borrow().iter().filter_map(Weak::upgrade).for_each(|line| line.wake());
    }
}

/// What is known of a connection.
#[derive(Default)]
pub(super) struct Line {
    serves_events: bool,
    quiet: Cell<u32>,
    unanswered: Cell<u32>,
    overdue: Cell<bool>,
    /// Refused and about to be closed.
    pub(super) lingers: Cell<bool>,
    /// Bytes of a request have come since the last byte of an answer.
    asks: Cell<bool>,
    pub(super) head: Cell<Head>,
    /// Quiet sweeps before it is closed while it has no request, if that is not for actix to time.
    idle: Cell<Option<u32>>,
    /// Its other end is told before it is closed, and gets some time to go by itself.
    is_polite: Cell<bool>,
    leaves: Cell<bool>,
    /// Requests that are answered side by side: sweeps since the last byte of each answer.
    streams: RefCell<Vec<Option<u32>>>,
    waker: RefCell<Option<Waker>>,
}

impl Line {
    /// One sweep later; false if nothing is left to watch.
    fn age(&self, patience: Patience) -> bool {
        self.quiet.set(self.quiet.get() + 1);
        self.unanswered.set(if self.asks.get() { self.unanswered.get() + 1 } else { 0 });
        for waits in self.streams.borrow_mut().iter_mut().flatten() {
            *waits += 1;
            self.unanswered.set(self.unanswered.get().max(*waits));
        }
        let quiet = if self.lingers.get() { LINGER_SWEEPS } else { self.idle.get().unwrap_or(patience.quiet) };
        let overdue = self.quiet.get() > quiet || self.unanswered.get() > patience.unanswered;
        if overdue && self.is_polite.replace(false) && !self.has_streams() {
            self.leave();
            return true;
        }
        if overdue {
            self.overdue.set(true);
            self.wake();
        }
        !overdue
    }

    /// It carries several requests at a time, and its other end can be told that it is about to be closed. `idle` is as
    /// for `idles`.
    pub(super) fn multiplexes(&self, idle: u32) {
        self.is_polite.set(true);
        self.idles(Some(idle));
    }

    /// Its other end is to be told that it is about to be closed.
    pub(super) fn leave(&self) {
        self.is_polite.set(false);
        self.leaves.set(true);
        self.quiet.set(0);
        if !self.has_streams() {
            self.idles(Some(LINGER_SWEEPS));
        }
        self.wake();
    }

    /// Whether it is to be told so; once.
    pub(super) fn takes_leave(&self) -> bool {
        self.leaves.take()
    }

    /// One of several requests has come; the place that it has.
    pub(super) fn begins(&self) -> usize {
        self.quiet.set(0);
        self.idle.set(None);
        let mut streams = self.streams.borrow_mut();
        let place = streams.iter().position(Option::is_none).unwrap_or_else(|| {
            streams.push(None);
            streams.len() - 1
        });
        streams[place] = Some(0);
        place
    }

    /// More of such a request has come; with `answers`, more of its answer leaves.
    pub(super) fn goes_on(&self, place: usize, answers: bool) {
        self.quiet.set(0);
        if let (true, Some(stream)) = (answers, self.streams.borrow_mut().get_mut(place)) {
            *stream = Some(0);
        }
    }

    /// Such a request is answered or given up. `idle` is as for `idles`, if it was the last.
    pub(super) fn ends(&self, place: usize, idle: u32) {
        self.quiet.set(0);
        if let Some(stream) = self.streams.borrow_mut().get_mut(place) {
            *stream = None;
        }
        if !self.has_streams() {
            self.idle.set(Some(if self.is_polite.get() { idle } else { LINGER_SWEEPS }));
        }
    }

    fn has_streams(&self) -> bool {
        self.streams.borrow().iter().any(Option::is_some)
    }

    /// Has its task look around.
    pub(super) fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// How long it may be quiet before a request comes; `None` leaves that to actix.
    pub(super) fn idles(&self, sweeps: Option<u32>) {
        self.idle.set(sweeps);
    }

    /// A whole request has come.
    pub(super) fn asks(&self) {
        self.quiet.set(0);
        self.asks.set(true);
        self.idle.set(None);
    }

    /// An error once it has taken too long.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.overdue.get() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// Remembers whom to wake.
    pub(super) fn park(&self, context: &Context<'_>) {
        let mut parked = self.waker.borrow_mut();
        if !parked.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *parked = Some(context.waker().clone());
        }
    }

    /// Bytes have come. A reason if they are not for the parser.
    pub(super) fn heard(&self, bytes: &[u8]) -> Option<Rejection> {
        self.quiet.set(0);
        if !self.asks.replace(true) {
            self.head.set(Head::of(bytes));
        }
        let mut head = self.head.get();
        if head.is_whole {
            return None;
        }
        let is_over = head.take(bytes) && self.serves_events;
        self.head.set(head);
        is_over.then_some(if head.lines == 0 { Rejection::UriTooLong } else { Rejection::HeaderTooLarge })
    }

    /// Bytes of an answer have left.
    pub(super) fn said(&self) {
        self.quiet.set(0);
        self.asks.set(false);
    }

    /// The contract's answer in the place of a bare one of the parser's.
    pub(super) fn instead_of(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let is_bare = self.serves_events && bytes.starts_with(b"HTTP/1.1 431 ") && reply::is_bare(bytes);
        is_bare.then(|| reply::closing(Rejection::HeaderTooLarge, self.head.get().is_get))
    }
}
