//! The public listeners' connections: how many, how long each may keep us waiting, and what actix answers by itself.
//!
//! actix times a connection's first head only, and refuses a head that it can't parse in a word. So each connection is
//! watched (quiet for too long, or too long from a request's first byte to its answer), and bare refusals become the
//! contract's.

use std::fmt::Debug;
use std::future::ready;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use actix_http::{HttpService, Request, Response};
use actix_service::{IntoServiceFactory, ServiceFactoryExt, fn_factory, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, Service, ServiceFactory, fn_service};
use actix_web::http::header::{HeaderValue, STRICT_TRANSPORT_SECURITY};
use tokio::net::TcpStream;

use super::collect::Worker;
use super::h2::{self, H2};
use super::lane::Lane;
use super::leave::{Exit, Serving, Turns};
use super::tls::Tls;
use super::watch::{Patience, Watch};
use super::ways::Ways;

/// The first head of a connection has to be there by then.
const HEAD: Duration = Duration::from_secs(5);
/// What is added to the longest lawful wait before a connection counts as stuck: a commit on a slow disk, and a sweep.
const SLACK: Duration = Duration::from_secs(15);

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
    /// Connections that a worker may have. All have as many: what is left over of the division is nobody's.
    fn connections_each(&self) -> usize {
        (self.max_connections / self.workers).max(1)
    }

    /// Connections that all workers together may have.
    pub fn most_connections(&self) -> usize {
        self.connections_each() * self.workers
    }

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

    /// Sweeps until a connection without a first request, and without a further one, is closed.
    fn idle(&self) -> (u32, u32) {
        let sweeps = |wait: Duration| u32::try_from(wait.as_secs()).unwrap_or(u32::MAX);
        (sweeps(HEAD), sweeps(self.keep_alive()))
    }

    fn lane(&self, worker: Rc<Worker>, tls: Option<&Tls>) -> Lane {
        let (first, next) = self.idle();
        Lane::new(worker, tls.map(Tls::besides).unwrap_or_default(), first, next)
    }

    fn h2(&self, tls: &Tls, events: Option<Rc<Worker>>) -> h2::Options {
        let (first, next) = self.idle();
        h2::Options { inflight: tls.inflight.clone(), events, max_head_bytes: tls.max_head_bytes, first, next }
    }
}

/// What a worker serves: an app, and the event routes on the short way if there are any.
pub struct Served<I> {
    /// Everything, events included.
    pub app: I,
    /// What the app's event routes share.
    pub events: Option<Rc<Worker>>,
}

/// Serves apps, one per worker.
pub fn serve<F, I, S, B>(options: Options, listener: TcpListener, tls: Option<Tls>, app: F) -> io::Result<Serving>
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
    serve_with(options, options.patience(), listener, tls, app)
}

fn serve_with<F, I, S, B>(
    options: Options,
    patience: Patience,
    listener: TcpListener,
    tls: Option<Tls>,
    app: F,
) -> io::Result<Serving>
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
        .max_concurrent_connections(options.connections_each())
        .shutdown_timeout(options.shutdown_timeout.as_secs().max(1))
        .disable_signals();
    let stopping = builder.graceful_shutdown_signal();
    let (socket, turns) = (listener.as_raw_fd(), Turns::new());
    let workers_turns = turns.clone();
    let builder = builder.listen(address.to_string(), listener, move || {
        let (stopping, tls) = (stopping.clone(), tls.clone());
        let Served { app, events } = app();
        actix_web::rt::spawn(workers_turns.turn());
        let lane = events.clone().map(|worker| Rc::new(options.lane(worker, tls.as_ref())));
        let watch = Watch::start(patience, options.serves_events, lane.clone());
        let hsts = tls.as_ref().and_then(Tls::hsts);
        let app = app.into_factory().map_err(|error: S::Error| error.into().error_response());
        let app = map_config(app, |()| AppConfig::default());
        let app = app.map(move |reply: S::Response| strict(reply.into(), hsts.as_ref()));
        fn_factory(move || {
            let (app, stopping, tls) = (app.new_service(()), stopping.clone(), tls.clone());
            let (watch, lane, events) = (watch.clone(), lane.clone(), events.clone());
            let figures = events.as_ref().map(|worker| worker.metrics.clone());
            async move {
                let app = Rc::new(app.await.map_err(drop)?);
                let h2 = tls.as_ref().map(|tls| Rc::new(H2::new(h2::app(app.clone()), options.h2(tls, events))));
                let told = stopping.clone();
                let http = HttpService::build()
                    .graceful_shutdown_signal(move || {
                        let told = told.clone();
                        async move { told.notified().await }
                    })
                    .keep_alive(options.keep_alive())
                    .client_request_timeout(HEAD)
                    .local_addr(address)
                    .h1(fn_factory(move || ready(Ok::<_, ()>(app.clone()))))
                    .new_service(())
                    .await?;
                let ways = Rc::new(Ways { http, lane, watch, figures, tls, h2 });
                let ended = ways.clone();
                actix_web::rt::spawn(async move {
                    stopping.notified().await;
                    ended.stop();
                });
                Ok::<_, ()>(fn_service(move |stream: TcpStream| ways.clone().serve(stream)))
            }
        })
    })?;
    let server = builder.run();
    let exit = Exit::new(server.handle(), socket, turns);
    Ok(Serving { server, exit })
}

/// Tells browsers to come by https only, if they are to be told.
fn strict<B>(mut reply: Response<B>, hsts: Option<&HeaderValue>) -> Response<B> {
    if let Some(hsts) = hsts {
        reply.headers_mut().insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
    reply
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

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
        match stream.read(&mut [0; 16]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
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
        let server = serve_with(options, Patience { quiet: 4, unanswered: 4 }, listener, None, app).unwrap();
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
