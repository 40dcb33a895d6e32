//! The short way of an ordinary event: a whole GET or POST of an event route, in one piece, answered without actix.
//!
//! Whatever else comes on a connection (another route or method, a head or body in pieces, lines that say how a message
//! is framed, anything out of bounds) is none of it: the connection goes over to actix for the rest of its life, and
//! nothing of that request has been acted upon. What an event is and what it is told is `collect`'s, here as there.
//!
//! Nothing is held per connection but its state: bytes are read into the worker's buffer, and judged there in one step.
//! A request that waits for the disk is answered by whoever is told that it is done (`Told`), without a poll of its
//! task: the task goes on waiting for the next request.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready as some};
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::Method;
use tokio::io::ReadBuf;

use super::collect::Worker;
use super::reply::{self, Kept, Shape};
use super::request::Request;
use super::watch::Line;
use super::wire::Wire;
use crate::event::rejection::Rejection;
use crate::event::{Source, Warnings};
use crate::ingest::{Denied, Outcome};
use crate::journal::{Lost, Told};
use crate::metrics::Route;
use crate::time::{Clock, SystemClock};

/// The worker's buffer: what is longer is in pieces, and not for here.
const SCRATCH_BYTES: usize = 16 << 10;

/// At a stop, sweeps that a connection may have been quiet for before it is closed: a network's round trip and a
/// client's pause between two requests.
const LAST_CHANCE: u32 = 1;

/// What a worker's connections share.
pub(super) struct Lane {
    worker: Rc<Worker>,
    scratch: RefCell<Box<[u8]>>,
    answer: RefCell<Vec<u8>>,
    date: Cell<reply::Date>,
    stopping: Cell<bool>,
    /// A line that each answer has besides, with its end.
    besides: Box<[u8]>,
    /// Sweeps until a connection without a first request, and without a further one, is closed.
    first: u32,
    next: u32,
}

impl Lane {
    pub(super) fn new(worker: Rc<Worker>, besides: Vec<u8>, first: u32, next: u32) -> Lane {
        Lane {
            worker,
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into()),
            answer: RefCell::default(),
            date: Cell::new(reply::date(SystemClock.now())),
            stopping: Cell::new(false),
            besides: besides.into(),
            first,
            next,
        }
    }

    /// Every second.
    pub(super) fn tick(&self) {
        self.date.set(reply::date(SystemClock.now()));
    }

    /// From now on each answer is its connection's last, and who has not asked for a while goes.
    pub(super) fn stop(&self) {
        self.stopping.set(true);
    }
}

/// Where a connection is in its exchange.
enum State {
    /// Waits for a request.
    Idle,
    /// Its request waits for the disk.
    Waiting(Waiting),
    /// The rest of an answer waits for room.
    Saying(Vec<u8>),
    /// It is of no more use.
    Broken,
}

/// A request that waits for the disk, and what its answer depends on.
struct Waiting {
    id: Option<[u8; 16]>,
    warnings: Warnings,
    cookies: Vec<String>,
    begun: Duration,
    shape: Kept,
    is_post: bool,
}

/// A connection on the short way.
struct Conn<S> {
    lane: Rc<Lane>,
    line: Rc<Line>,
    peer: Option<SocketAddr>,
    stream: RefCell<S>,
    state: RefCell<State>,
    /// Read and not yet looked at.
    ahead: RefCell<Vec<u8>>,
    /// The last answer says that it is the last.
    closes: Cell<bool>,
    /// There may be more to read, for which nobody will wake the task.
    eager: Cell<bool>,
}

/// A connection's time on the short way. It ends with `None` if the connection is over.
pub(super) struct Visit<S>(Option<Rc<Conn<S>>>);

/// A connection that goes over to actix, and what was read of it.
pub(super) struct Leaving<S> {
    pub(super) stream: S,
    pub(super) read: Vec<u8>,
}

impl<S: Wire + 'static> Visit<S> {
    pub(super) fn new(lane: &Rc<Lane>, line: Rc<Line>, stream: S) -> Visit<S> {
        line.idles(Some(lane.first));
        Visit(Some(Rc::new(Conn {
            lane: lane.clone(),
            line,
            peer: stream.peer(),
            stream: RefCell::new(stream),
            state: RefCell::new(State::Idle),
            ahead: RefCell::default(),
            closes: Cell::new(false),
            eager: Cell::new(false),
        })))
    }
}

impl<S: Wire + 'static> Future for Visit<S> {
    type Output = Option<Leaving<S>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(conn) = self.0.clone() else { return Poll::Ready(None) };
        loop {
            match conn.turn(context) {
                Poll::Pending => {
                    conn.line.park(context);
                    return Poll::Pending;
                }
                Poll::Ready(Next::Again) => {}
                Poll::Ready(Next::Over) => {
                    self.0 = None;
                    return Poll::Ready(None);
                }
                Poll::Ready(Next::Leave(read)) => {
                    self.0 = None;
                    conn.line.idles(None);
                    // Nobody else has it: no request of it waits.
                    let leaving = Rc::into_inner(conn).map(|conn| Leaving { stream: conn.stream.into_inner(), read });
                    return Poll::Ready(leaving);
                }
            }
        }
    }
}

enum Next {
    Again,
    Over,
    Leave(Vec<u8>),
}

impl<S: Wire + 'static> Conn<S> {
    fn turn(self: &Rc<Conn<S>>, context: &mut Context<'_>) -> Poll<Next> {
        if self.line.check().is_err() {
            self.stream.borrow_mut().part();
            return Poll::Ready(Next::Over);
        }
        let mut state = self.state.borrow_mut();
        match &mut *state {
            State::Broken => return Poll::Ready(Next::Over),
            State::Waiting(_) => {
                // Who tells us wakes the task only if nothing else would.
                self.eager.set(self.stream.borrow_mut().poll_heard(context).is_ready());
                return Poll::Pending;
            }
            State::Saying(rest) => {
                let mut stream = self.stream.borrow_mut();
                if rest.is_empty() {
                    if some!(Pin::new(&mut *stream).poll_flush(context)).is_err() {
                        return Poll::Ready(Next::Over);
                    }
                    *state = State::Idle;
                    self.line.said();
                    return Poll::Ready(Next::Again);
                }
                match some!(Pin::new(&mut *stream).poll_write(context, rest)) {
                    Ok(0) | Err(_) => return Poll::Ready(Next::Over),
                    Ok(sent) => drop(rest.drain(..sent)),
                }
                return Poll::Ready(Next::Again);
            }
            State::Idle => {}
        }
        drop(state);
        if self.closes.get() {
            // The socket is closed with its last reference, whatever comes of this.
            return Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(context).map(|_| Next::Over);
        }
        self.listen(context)
    }

    /// The next request: of what was read before, or of what comes.
    fn listen(self: &Rc<Conn<S>>, context: &mut Context<'_>) -> Poll<Next> {
        let ahead = std::mem::take(&mut *self.ahead.borrow_mut());
        if !ahead.is_empty() {
            return Poll::Ready(self.heard(&ahead));
        }
        let mut scratch = self.lane.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        let read = Pin::new(&mut *self.stream.borrow_mut()).poll_read(context, &mut buffer);
        match read {
            Poll::Pending => {
                if self.lane.stopping.get() {
                    // Its next request may be on its way, and would be answered by a reset.
                    self.line.idles(Some(LAST_CHANCE));
                }
                Poll::Pending
            }
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => Poll::Ready(self.heard(buffer.filled())),
            Poll::Ready(_) => Poll::Ready(Next::Over),
        }
    }

    fn heard(self: &Rc<Conn<S>>, bytes: &[u8]) -> Next {
        let bounds = &self.lane.worker.bounds;
        let Some(request) = Request::parse(bytes).filter(|request| request.is_within(bounds)) else {
            return Next::Leave(bytes.to_vec());
        };
        self.line.asks();
        self.take(&request);
        if request.bytes < bytes.len() {
            *self.ahead.borrow_mut() = bytes[request.bytes..].to_vec();
        }
        Next::Again
    }

    fn take(self: &Rc<Conn<S>>, request: &Request<'_>) {
        let (worker, begun) = (&self.lane.worker, SystemClock.monotonic());
        self.closes.set(request.closes);
        let shape = Shape::of(if request.is_post { &Method::POST } else { &Method::GET }, &request.facts);
        match self.offer(request, begun) {
            Ok((Outcome::Accepted(accepted), cookies)) => {
                let (id, warnings) = (accepted.id, accepted.warnings);
                let waiting = Waiting { id, warnings, cookies, begun, shape: shape.keep(), is_post: request.is_post };
                *self.state.borrow_mut() = State::Waiting(waiting);
                accepted.receipt.tell(self.clone());
            }
            Ok((Outcome::Ignored(_, _, warnings), cookies)) => {
                let mut reply = shape.accepted(None, warnings);
                reply::set_cookies(&mut reply, &cookies);
                self.answer(reply, request.is_post, begun);
            }
            Err(denied) => {
                worker.metrics.rejected(denied.refusal.reason);
                self.answer(shape.rejected(&denied), request.is_post, begun);
            }
        }
    }

    /// As `collect` does it, but for the body, which is here. With the cookies that its reply sets.
    fn offer(&self, request: &Request<'_>, begun: Duration) -> Result<(Outcome, Vec<String>), Denied> {
        let worker = &self.lane.worker;
        let visitor = worker.proxies.find(self.peer.map(|peer| peer.ip()), &request.forwarded);
        let client = worker.admit(visitor, &request.facts, begun)?;
        let mut room = worker.inflight.body();
        let read = match room.grow(request.body.len()) {
            true => super::collect::read_as(request.body, request.facts.content_type),
            false => Err(Rejection::Overloaded),
        };
        let (mut visit, counts) = (worker.ingest.visit(&client), !request.facts.is_prefetch());
        let outcome = worker.decide(Source::OffsiteEvent, request.query, read, &client, &mut visit, counts)?;
        Ok((outcome, visit.cookies()))
    }

    fn answer(&self, reply: HttpResponse, is_post: bool, begun: Duration) {
        let status = reply.status().as_u16();
        let mut answer = self.lane.answer.borrow_mut();
        answer.clear();
        reply::write(&mut answer, reply, &self.lane.besides, &self.lane.date.get(), self.is_last());
        self.count(is_post, status, begun);
        self.say(&answer);
    }

    fn is_last(&self) -> bool {
        if self.lane.stopping.get() {
            self.closes.set(true);
        }
        self.closes.get()
    }

    fn count(&self, is_post: bool, status: u16, begun: Duration) {
        let took = SystemClock.monotonic().saturating_sub(begun);
        self.lane.worker.metrics.request(Route::Event, if is_post { "POST" } else { "GET" }, status, took);
    }

    /// Sends what fits at once; the task sends the rest.
    fn say(&self, answer: &[u8]) {
        let mut stream = self.stream.borrow_mut();
        let state = match stream.try_say(answer) {
            Ok(sent) if sent == answer.len() && stream.has_said_all() => State::Idle,
            Ok(sent) => State::Saying(answer[sent..].to_vec()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => State::Saying(answer.to_vec()),
            Err(_) => State::Broken,
        };
        self.line.said();
        self.line.idles(Some(self.lane.next));
        *self.state.borrow_mut() = state;
    }

    /// Whether the task, which waits for bytes to read, has something else to do.
    fn has_news(&self) -> bool {
        let is_idle = matches!(*self.state.borrow(), State::Idle);
        self.eager.get() || !is_idle || self.closes.get() || !self.ahead.borrow().is_empty()
    }
}

impl<S: Wire + 'static> Told for Conn<S> {
    fn told(self: Rc<Conn<S>>, outcome: Result<(), Lost>) {
        let State::Waiting(waiting) = std::mem::replace(&mut *self.state.borrow_mut(), State::Idle) else { return };
        match outcome {
            Ok(()) => {
                let mut answer = self.lane.answer.borrow_mut();
                answer.clear();
                let (besides, date, is_last) = (&self.lane.besides, self.lane.date.get(), self.is_last());
                let taken = reply::Taken { id: waiting.id, warnings: waiting.warnings, cookies: &waiting.cookies };
                let shape = waiting.shape.shape();
                shape.write_accepted(&mut answer, &taken, besides, &date, is_last);
                self.count(waiting.is_post, shape.accepted_status().as_u16(), waiting.begun);
                self.say(&answer);
            }
            Err(Lost) => {
                let reason = Rejection::JournalUnavailable;
                self.lane.worker.metrics.rejected(reason);
                self.answer(waiting.shape.shape().rejected(&reason.into()), waiting.is_post, waiting.begun);
            }
        }
        if self.has_news() {
            self.line.wake();
        }
    }
}
