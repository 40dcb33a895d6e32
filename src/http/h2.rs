//! HTTP/2, on a secured connection only: hyper speaks it, the worker's app answers, and the connection is watched as
//! any.
//!
//! Requests of a connection are answered side by side, so what is bounded per connection elsewhere is bounded here per
//! stream: their number, the room that their heads take, and the time that each has for its answer. A connection is
//! never just cut off: its other end is told first, and what it has sent by then is answered.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use actix_http::{Request, Response};
use actix_web::HttpResponse;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::Service;
use futures_util::future::LocalBoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::collect::Worker;
use super::facts::Facts;
use super::h2_message::{self, Answer};
use super::reply::Shape;
use super::tls::TlsStream;
use super::watch::Line;
use super::wire::Wire;
use crate::event::rejection::Rejection;
use crate::inflight::Inflight;

/// Streams that a connection may have at once: a page's events and scripts, with room.
const MAX_STREAMS: u32 = 64;
/// What may come of one body, and of all of a connection, before it is read.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// What is held of an answer that the other end does not take.
const SEND_BYTES: usize = 64 << 10;
/// Streams that the other end opened and took back before they were looked at, and that we broke off for its faults:
/// more, and the connection is closed (CVE-2023-44487).
const MAX_RESETS: usize = 20;
const MAX_FAULTS: usize = 128;
/// What a head may have beyond the bounds of an event's and still gets the contract's answer; more is a bare 431.
const BEYOND: usize = 64 << 10;

/// A worker's app, whatever its type.
pub(super) type App = Rc<dyn Fn(Request) -> LocalBoxFuture<'static, Response<BoxBody>>>;

/// What a worker's connections share.
pub(super) struct H2 {
    builder: Builder<Here>,
    app: App,
    inflight: Arc<Inflight>,
    events: Option<Rc<Worker>>,
    stopping: Cell<bool>,
    /// Sweeps until a connection without a first request, and without a further one, is closed.
    first: u32,
    next: u32,
}

/// What tells apart the listeners.
pub(super) struct Options {
    pub(super) inflight: Arc<Inflight>,
    pub(super) events: Option<Rc<Worker>>,
    /// Bytes of a head that the contract has an answer for.
    pub(super) max_head_bytes: usize,
    pub(super) first: u32,
    pub(super) next: u32,
}

/// A stream's place in what is watched, until it is answered or given up.
pub(super) struct Place {
    line: Rc<Line>,
    index: usize,
    idle: u32,
}

/// Runs streams on the worker's own loop.
#[derive(Clone)]
struct Here;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, stream: F) {
        actix_web::rt::spawn(stream);
    }
}

/// A worker's app as requests of HTTP/2 find it.
pub(super) fn app<S, B>(service: Rc<S>) -> App
where
    S: Service<Request, Response = Response<B>, Error = HttpResponse> + 'static,
    S::Future: 'static,
    B: MessageBody + 'static,
{
    Rc::new(move |request| {
        let answer = service.call(request);
        Box::pin(async move {
            match answer.await {
                Ok(reply) => reply.map_into_boxed_body(),
                Err(reply) => reply.into(),
            }
        })
    })
}

impl H2 {
    pub(super) fn new(app: App, options: Options) -> H2 {
        let mut builder = Builder::new(Here);
        builder
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BYTES)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(MAX_FAULTS)
            .max_header_list_size(u32::try_from(options.max_head_bytes + BEYOND).unwrap_or(u32::MAX));
        let Options { inflight, events, first, next, .. } = options;
        H2 { builder, app, inflight, events, stopping: Cell::new(false), first, next }
    }

    /// From now on connections are told that they are about to be closed.
    pub(super) fn stop(&self) {
        self.stopping.set(true);
    }

    /// A connection, to its end.
    pub(super) async fn serve(self: Rc<H2>, stream: TlsStream, line: Rc<Line>) {
        let (peer, h2, streams) = (stream.peer(), self.clone(), line.clone());
        line.multiplexes(self.first);
        let service = service_fn(move |request| {
            let place = Place { line: streams.clone(), index: streams.begins(), idle: h2.next };
            let h2 = h2.clone();
            async move { Ok::<_, Infallible>(h2.answer(request, peer, place).await) }
        });
        let mut connection = pin!(self.builder.serve_connection(TokioIo::new(stream), service));
        let mut is_told = false;
        poll_fn(|context| {
            if self.stopping.get() && !is_told {
                line.leave();
            }
            if line.takes_leave() && !is_told {
                is_told = true;
                connection.as_mut().graceful_shutdown();
            }
            if line.check().is_err() {
                return Poll::Ready(());
            }
            let polled = connection.as_mut().poll(context).map(drop);
            if polled.is_pending() {
                line.park(context);
            }
            polled
        })
        .await;
    }

    async fn answer(
        &self,
        request: hyper::Request<Incoming>,
        peer: Option<SocketAddr>,
        place: Place,
    ) -> hyper::Response<Answer> {
        let place = Rc::new(place);
        let is_head = request.method() == hyper::Method::HEAD;
        let mut room = self.inflight.body();
        let head_bytes = h2_message::head_bytes(&request);
        let reply = match h2_message::translated(request, peer, place.clone()) {
            None => HttpResponse::BadRequest().finish().into(),
            // Heads of streams that wait for their bodies are many for few connections.
            Some(request) if !room.grow(head_bytes) => self.overloaded(&request),
            Some(request) => (self.app)(request).await,
        };
        h2_message::answered(reply, is_head, place)
    }

    fn overloaded(&self, request: &Request) -> Response<BoxBody> {
        let reason = Rejection::Overloaded;
        if let Some(worker) = &self.events {
            worker.metrics.rejected(reason);
        }
        let head = request.head();
        Shape::of(&head.method, &Facts::of(&head.headers)).rejected(&reason.into()).into()
    }
}

impl Place {
    /// More of the request has come; with `answers`, more of its answer leaves.
    pub(super) fn goes_on(&self, answers: bool) {
        self.line.goes_on(self.index, answers);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.ends(self.index, self.idle);
    }
}
