//! The public listeners' connections: how many, how long each may keep us waiting, and what actix answers by itself.
//!
//! actix times a connection's first head only, and refuses a head that it can't parse in a word. So each connection is
//! watched (quiet for too long, or too long from a request's first byte to its answer), and bare refusals become the
//! contract's.

use std::fmt::Debug;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready as some};
use std::time::Duration;

use actix_http::{HttpService, Request, Response};
use actix_service::{IntoServiceFactory, ServiceFactoryExt, fn_factory, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, Service, ServiceFactory, fn_service};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::collect::Worker;
use super::lane::{Lane, Leaving, Visit};
use super::leave::{Exit, Serving, Turns};
use super::reply;
use super::watch::{Line, Patience, Watch};

/// The first head of a connection has to be there by then.
const HEAD: Duration = Duration::from_secs(5);
/// What is added to the longest lawful wait before a connection counts as stuck: a commit on a slow disk, and a sweep.
const SLACK: Duration = Duration::from_secs(15);
/// Most that is read of a refused sender, so that closing doesn't take the answer away from it.
const LINGER_BYTES: usize = 1 << 20;

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `server.workers`.
    pub workers: usize,
    /// Whether refusals of the HTTP parser take the shape that the event routes have.
    pub serves_events: bool,
    /// `server.max_connections`, of all workers.
    pub max_connections: usize,
    /// Whether proxies are in front, which keep their connections.
    pub behind_proxies: bool,
    /// The longest that a body may pause, and take.
    pub body: (Duration, Duration),
    /// `server.shutdown_timeout`.
    pub shutdown_timeout: Duration,
}

impl Options {
    /// Longer than proxies keep idle connections (60 s is common), so that no request meets a closing one. A visitor
    /// asks once and is gone.
    fn keep_alive(&self) -> Duration {
        Duration::from_secs(if self.behind_proxies { 75 } else { 5 })
    }

    fn patience(&self) -> Patience {
        let sweeps = |wait: Duration| u32::try_from(wait.saturating_add(SLACK).as_secs()).unwrap_or(u32::MAX);
        Patience {
            quiet: sweeps(self.body.0.max(self.keep_alive())),
            unanswered: sweeps(self.body.1.saturating_add(HEAD)),
        }
    }

    fn lane(&self, worker: Rc<Worker>) -> Lane {
        let sweeps = |wait: Duration| u32::try_from(wait.as_secs()).unwrap_or(u32::MAX);
        Lane::new(worker, sweeps(HEAD), sweeps(self.keep_alive()))
    }
}

/// What actix gets: a connection, and its peer.
type Connected = (Guarded, Option<SocketAddr>);

/// What a worker serves: an app, and the event routes on the short way if there are any.
pub struct Served<I> {
    /// Everything, events included.
    pub app: I,
    /// What the app's event routes share.
    pub events: Option<Rc<Worker>>,
}

/// Serves apps, one per worker.
pub fn serve<F, I, S, B>(options: Options, listener: TcpListener, app: F) -> io::Result<Serving>
where
    F: Fn() -> Served<I> + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<actix_web::Error>,
    S::InitError: Debug,
    S::Response: Into<Response<B>>,
    <S::Service as Service<Request>>::Future: 'static,
    S::Service: 'static,
    B: MessageBody + 'static,
{
    serve_with(options, options.patience(), listener, app)
}

fn serve_with<F, I, S, B>(options: Options, patience: Patience, listener: TcpListener, app: F) -> io::Result<Serving>
where
    F: Fn() -> Served<I> + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<actix_web::Error>,
    S::InitError: Debug,
    S::Response: Into<Response<B>>,
    <S::Service as Service<Request>>::Future: 'static,
    S::Service: 'static,
    B: MessageBody + 'static,
{
    let address = listener.local_addr()?;
    let builder = Server::build()
        .workers(options.workers)
        .max_concurrent_connections((options.max_connections / options.workers).max(1))
        .shutdown_timeout(options.shutdown_timeout.as_secs().max(1))
        .disable_signals();
    let stopping = builder.graceful_shutdown_signal();
    let (socket, turns) = (listener.as_raw_fd(), Turns::new());
    let workers_turns = turns.clone();
    let builder = builder.listen(address.to_string(), listener, move || {
        let stopping = stopping.clone();
        let Served { app, events } = app();
        actix_web::rt::spawn(workers_turns.turn());
        let lane = events.map(|worker| Rc::new(options.lane(worker)));
        let watch = Watch::start(patience, options.serves_events, lane.clone());
        let told = stopping.clone();
        stop_lane(lane.clone(), watch.clone(), async move { told.notified().await });
        let app = app.into_factory().map_err(|error: S::Error| error.into().error_response());
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .keep_alive(options.keep_alive())
            .client_request_timeout(HEAD)
            .local_addr(address)
            .h1(map_config(app, |()| AppConfig::default()));
        fn_factory(move || {
            let (http, watch, lane) = (http.new_service(()), watch.clone(), lane.clone());
            async move {
                let http = Rc::new(http.await?);
                Ok::<_, ()>(fn_service(move |stream: TcpStream| {
                    let (http, line, lane) = (http.clone(), watch.line(), lane.clone());
                    async move {
                        let leaving = match lane {
                            Some(lane) => Visit::new(&lane, line.clone(), stream).await,
                            None => Some(Leaving { stream, read: Vec::new() }),
                        };
                        let Some(Leaving { stream, read }) = leaving else { return Ok::<(), ()>(()) };
                        // An answer of several writes, such as a proxied one, must not wait until the client
                        // acknowledges the first, which takes 40 ms. A connection that is gone shows itself later.
                        let _ = stream.set_nodelay(true);
                        let peer = stream.peer_addr().ok();
                        let guarded = Guarded { stream, line, before: read, refusal: None };
                        poll_fn(|context| Service::<Connected>::poll_ready(&*http, context)).await.map_err(drop)?;
                        // On the heap: most connections never come here.
                        Box::pin(http.call((guarded, peer))).await.map_err(drop)
                    }
                }))
            }
        })
    })?;
    let server = builder.run();
    let exit = Exit::new(server.handle(), socket, turns);
    Ok(Serving { server, exit })
}

/// A watched connection.
struct Guarded {
    stream: TcpStream,
    line: Rc<Line>,
    /// Read before it came here.
    before: Vec<u8>,
    refusal: Option<Refusal>,
}

/// An answer on its way that closes the connection.
struct Refusal {
    answer: Vec<u8>,
    sent: usize,
    drained: usize,
}

impl Guarded {
    fn poll_next(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.before.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let taken = self.before.len().min(buffer.remaining());
        buffer.put_slice(&self.before[..taken]);
        self.before.drain(..taken);
        if self.before.is_empty() {
            self.before = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    fn refuse(&mut self, answer: Vec<u8>) {
        self.line.said();
        self.line.lingers.set(true);
        self.refusal = Some(Refusal { answer, sent: 0, drained: 0 });
    }

    fn poll_refuse(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let refused = self.poll_answer_and_drain(context);
        if refused.is_pending() {
            self.line.park(context);
        }
        refused
    }

    /// Sends the answer, says that it was the last, and reads on until the sender has noticed.
    fn poll_answer_and_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(refusal) = &mut self.refusal else { return Poll::Ready(Ok(())) };
        while refusal.sent < refusal.answer.len() {
            let rest = &refusal.answer[refusal.sent..];
            match some!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => refusal.sent += sent,
            }
        }
        some!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        let mut scratch = [0; 4096];
        while refusal.drained < LINGER_BYTES {
            let mut buffer = ReadBuf::new(&mut scratch);
            match some!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => refusal.drained += buffer.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.line.check()?;
        let before = buffer.filled().len();
        if this.refusal.is_none() {
            let read = this.poll_next(context, buffer);
            let reason = match &read {
                Poll::Pending => {
                    this.line.park(context);
                    None
                }
                Poll::Ready(Ok(())) if buffer.filled().len() > before => this.line.heard(&buffer.filled()[before..]),
                Poll::Ready(_) => None,
            };
            let Some(reason) = reason else { return read };
            this.refuse(reply::closing(reason, this.line.head.get().is_get));
            buffer.set_filled(before);
        }
        // For the parser the sender has gone, once it has its answer.
        this.poll_refuse(context)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.line.check()?;
        if this.refusal.is_none()
            && let Some(answer) = this.line.instead_of(bytes)
        {
            this.refuse(answer);
        }
        if this.refusal.is_some() {
            return this.poll_refuse(context).map_ok(|()| bytes.len());
        }
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        match &written {
            Poll::Pending => this.line.park(context),
            Poll::Ready(_) => this.line.said(),
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Has the short way's connections come to an end at a stop.
fn stop_lane(lane: Option<Rc<Lane>>, watch: Watch, stopped: impl Future<Output = ()> + 'static) {
    let Some(lane) = lane else { return };
    actix_web::rt::spawn(async move {
        stopped.await;
        lane.stop();
        watch.wake();
    });
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use actix_web::{App, HttpResponse, web};

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    fn connect(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Sends and reads one answer.
    fn ask(stream: &mut TcpStream) {
        stream.write_all(REQUEST).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"here") {
            let mut byte = [0];
            assert_eq!(stream.read(&mut byte).unwrap(), 1, "closed after {answer:?}");
            answer.push(byte[0]);
        }
    }

    fn is_closed(stream: &mut TcpStream) -> bool {
        // An end, or a reset.
        !matches!(stream.read(&mut [0; 16]), Ok(1..))
    }

    fn clients(address: SocketAddr) {
        let (mut lively, mut slow, mut silent) = (connect(address), connect(address), connect(address));
        ask(&mut lively);
        ask(&mut slow);
        ask(&mut silent);
        silent.write_all(b"GET ").unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nX-Slow: ").unwrap();
        let mut sent = 0;
        while slow.write_all(b"x").is_ok() {
            sent += 1;
            assert!(sent < 300, "a head that never ends is waited for");
            ask(&mut lively);
            std::thread::sleep(Duration::from_millis(100)); // the senders' own pace
        }
        assert!(sent > 5, "it was given time");
        assert!(is_closed(&mut slow) && is_closed(&mut silent));
        ask(&mut lively);
    }

    #[actix_web::test]
    async fn no_connection_is_held_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let second = Duration::from_secs(1);
        let options = Options {
            workers: 1,
            serves_events: true,
            max_connections: 10,
            behind_proxies: true,
            body: (second, second),
            shutdown_timeout: second,
        };
        let app = || Served {
            app: App::new().route("/", web::get().to(async || HttpResponse::Ok().body("here"))),
            events: None,
        };
        let server = serve_with(options, Patience { quiet: 2, unanswered: 2 }, listener, app).unwrap();
        let Serving { server, exit } = server;
        let served = actix_web::rt::spawn(server);
        web::block(move || clients(address)).await.unwrap();
        exit.close().await;
        exit.stop(true).await;
        served.await.unwrap().unwrap();
    }

    #[test]
    fn patience_is_longer_than_anything_lawful() {
        let body = (Duration::from_secs(10), Duration::from_secs(60));
        let options = Options {
            workers: 1,
            serves_events: true,
            max_connections: 1,
            behind_proxies: false,
            body,
            shutdown_timeout: SLACK,
        };
        let patience = options.patience();
        assert_eq!((patience.quiet, patience.unanswered), (25, 80));
        assert_eq!(Options { behind_proxies: true, ..options }.patience().quiet, 90);
        let endless = Options { body: (Duration::MAX, Duration::MAX), ..options }.patience();
        assert_eq!((endless.quiet, endless.unanswered), (u32::MAX, u32::MAX));
    }
}
