//! Calls to `registry.upstream`, the authority behind this gateway: HTTP/1.1 over TCP or TLS, bytes as they are.
//!
//! A [`Client`] belongs to one thread and pools its connections there; all clients of one purpose share a [`Gate`],
//! which bounds how many calls are open at once and stops calling an upstream that doesn't answer. Each phase (connect,
//! first byte, pause within a body) has its limit of time. Nothing is decompressed, followed or added.
//!
//! Only reads use pooled connections: one that the other side has just closed can't be told from one that lost the
//! answer, and a read may simply be asked again. A write always gets a connection of its own and is never repeated.

mod base;
mod breaker;
mod connect;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
pub use hyper::http::uri::PathAndQuery;
pub use hyper::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

pub use self::base::{ALLOWED, Base};
use self::breaker::Breaker;
use self::connect::Stream;
pub use self::connect::{Connector, probe};
use crate::time::Clock;

/// Longest time for a connection, TLS included; `Options::timeout` may be shorter.
const CONNECT: Duration = Duration::from_secs(3);
/// Idle connections of one client. More are closed: a burst must not leave hundreds behind.
const IDLE_MAX: usize = 16;
/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(30);
/// Longest head of an answer, and the buffer that its body is read through.
const HEAD_MAX_BYTES: usize = 64 << 10;

/// How the upstream is called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// `registry.upstream`.
    pub base: Base,
    /// `registry.upstream_timeout`: to the first byte of an answer, and between two chunks of its body.
    pub timeout: Duration,
}

/// Why there is no answer. Texts name no address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// As many calls are open as may be.
    #[error("too many calls to registry.upstream are open")]
    Busy,
    /// The last calls failed; the next try is later.
    #[error("registry.upstream did not answer the last calls and is left alone for a moment")]
    Resting,
    /// No connection.
    #[error("registry.upstream can't be reached: {0}")]
    Unreachable(String),
    /// A connection, and no whole answer.
    #[error("registry.upstream broke off or does not speak HTTP: {0}")]
    Broken(String),
    /// A limit of time.
    #[error("registry.upstream did not answer in time")]
    Slow,
}

impl Error {
    /// What a proxy's client is told.
    pub fn status(&self) -> u16 {
        match self {
            Error::Busy => 503,
            Error::Slow => 504,
            Error::Resting | Error::Unreachable(_) | Error::Broken(_) => 502,
        }
    }
}

/// Told of each call that was made.
pub trait Observer: Send + Sync {
    /// The head of an answer, or 502 and 504 for none, and the time it took.
    fn called(&self, status: u16, took: Duration);
}

/// What all clients of one purpose share.
pub struct Gate {
    permits: Arc<Semaphore>,
    /// Held for a few instructions.
    breaker: Mutex<Breaker>,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
}

impl Gate {
    /// A gate for at most so many calls at once.
    pub fn new(calls: usize, clock: Arc<dyn Clock>, observer: Arc<dyn Observer>) -> Arc<Gate> {
        Arc::new(Gate {
            permits: Arc::new(Semaphore::new(calls)),
            breaker: Mutex::new(Breaker::default()),
            clock,
            observer,
        })
    }

    fn enter(&self) -> Result<OwnedSemaphorePermit, Error> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| Error::Busy)?;
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        if breaker.admits(self.clock.monotonic()) { Ok(permit) } else { Err(Error::Resting) }
    }

    fn tell(&self, result: &Result<u16, Error>, began: Duration) {
        let now = self.clock.monotonic();
        let status = match result {
            Ok(status) => *status,
            Err(error) => error.status(),
        };
        self.observer.called(status, now.saturating_sub(began));
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(_) => breaker.succeeded(),
            Err(_) => breaker.failed(now),
        }
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("permits", &self.permits.available_permits()).finish_non_exhaustive()
    }
}

/// One call. Its headers are sent as given, with `Host` and the body's length added.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Path and query, below the base.
    pub target: PathAndQuery,
    /// End-to-end headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Call {
    fn is_read(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// All its headers, hop-by-hop ones as well.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Body,
}

/// Calls the upstream from one thread, inside a `LocalSet`.
pub struct Client {
    options: Options,
    connector: Connector,
    gate: Arc<Gate>,
    pool: Rc<Pool>,
}

impl Client {
    /// A client without connections. The connector is that of the options' base.
    pub fn new(options: Options, connector: Connector, gate: Arc<Gate>) -> Client {
        let pool = Rc::new(Pool { idle: RefCell::default(), clock: gate.clock.clone() });
        Client { options, connector, gate, pool }
    }

    /// Makes a call; returns with the head of its answer.
    pub async fn call(&self, call: &Call) -> Result<Answer, Error> {
        let permit = self.gate.enter()?;
        let began = self.gate.clock.monotonic();
        let mut result = self.attempt(call).await;
        if call.is_read() && matches!(result, Err(Error::Broken(_) | Error::Unreachable(_))) {
            // Once, and on a new connection: every pooled one may be as stale.
            self.pool.idle.borrow_mut().clear();
            result = self.attempt(call).await;
        }
        self.gate.tell(&result.as_ref().map(|(answer, _)| answer.status().as_u16()).map_err(Error::clone), began);
        let (answer, sender) = result?;
        let (head, incoming) = answer.into_parts();
        let mut body = Body {
            incoming,
            timeout: self.options.timeout,
            connection: Some((sender, self.pool.clone())),
            _permit: permit,
        };
        if body.incoming.is_end_stream() {
            body.release();
        }
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }

    async fn attempt(&self, call: &Call) -> Result<(hyper::Response<Incoming>, Sender), Error> {
        let mut sender = match if call.is_read() { self.pool.take().await } else { None } {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let mut request = hyper::Request::new(Once(Some(call.body.clone())));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = self.options.base.target(&call.target);
        *request.headers_mut() = call.headers.clone();
        request.headers_mut().insert(header::HOST, self.options.base.host_header());
        let answer = timeout(self.options.timeout, sender.send_request(request)).await.map_err(|_| Error::Slow)?;
        let answer = answer.map_err(|error| Error::Broken(error.to_string()))?;
        // Nobody asked for an upgrade.
        if answer.status().is_informational() {
            return Err(Error::Broken("an answer of 1xx".to_owned()));
        }
        Ok((answer, sender))
    }

    async fn connect(&self) -> Result<Sender, Error> {
        let within = CONNECT.min(self.options.timeout);
        let stream = timeout(within, self.connector.connect()).await.map_err(|_| Error::Slow)?;
        let stream: Stream = stream.map_err(|error| Error::Unreachable(error.to_string()))?;
        let mut builder = http1::Builder::new();
        let shaken = builder.max_buf_size(HEAD_MAX_BYTES).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|error| Error::Broken(error.to_string()))?;
        // Ends with its sender; its faults come out of the sender, too.
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("options", &self.options).finish_non_exhaustive()
    }
}

type Sender = SendRequest<Once>;

/// Idle connections, the newest last.
struct Pool {
    idle: RefCell<VecDeque<(Sender, Duration)>>,
    clock: Arc<dyn Clock>,
}

impl Pool {
    async fn take(&self) -> Option<Sender> {
        loop {
            let (mut sender, since) = self.idle.borrow_mut().pop_back()?;
            let fresh = self.clock.monotonic().saturating_sub(since) < IDLE;
            // Ready at once but for the moment in which the connection finds out that its last body has ended.
            if fresh && !sender.is_closed() && matches!(timeout(CONNECT, sender.ready()).await, Ok(Ok(()))) {
                return Some(sender);
            }
        }
    }

    fn put(&self, sender: Sender) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() == IDLE_MAX {
            idle.pop_front();
        }
        idle.push_back((sender, self.clock.monotonic()));
    }
}

/// The body of an answer. Dropped before its end, it closes the connection.
pub struct Body {
    incoming: Incoming,
    timeout: Duration,
    connection: Option<(Sender, Rc<Pool>)>,
    _permit: OwnedSemaphorePermit,
}

impl Body {
    /// The next bytes; `None` is the proper end, anything else that ends it is an error.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let next = poll_fn(|context| Pin::new(&mut self.incoming).poll_frame(context));
            match timeout(self.timeout, next).await.map_err(|_| Error::Slow)? {
                None => {
                    self.release();
                    return Ok(None);
                }
                Some(Err(error)) => return Err(Error::Broken(error.to_string())),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return Ok(Some(bytes)),
                    // Trailers are hop-by-hop for a client that did not ask for them.
                    _ => {}
                },
            }
        }
    }

    fn release(&mut self) {
        if let Some((sender, pool)) = self.connection.take() {
            pool.put(sender);
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

/// A request's body, all at once.
struct Once(Option<Bytes>);

impl hyper::body::Body for Once {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        let bytes = self.0.take().filter(|bytes| !bytes.is_empty());
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
