//! The ways that a worker has for a connection: the short one, actix, and HTTP/2.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;

use actix_web::dev::Service;
use tokio::net::TcpStream;

use super::guard::Guarded;
use super::h2::H2;
use super::lane::{Lane, Leaving, Visit};
use super::tls::Tls;
use super::watch::{Line, Watch};
use super::wire::{Stream, Wire};
use crate::metrics;

/// What actix gets: a connection, and its peer.
pub(super) type Connected = (Guarded, Option<SocketAddr>);

/// See the module.
pub(super) struct Ways<H> {
    /// actix, for one connection of HTTP/1.1.
    pub(super) http: H,
    pub(super) lane: Option<Rc<Lane>>,
    pub(super) watch: Watch,
    /// What counts connections, of the public listener.
    pub(super) figures: Option<metrics::Worker>,
    pub(super) tls: Option<Tls>,
    /// With `tls` only: browsers speak it on no other connection.
    pub(super) h2: Option<Rc<H2>>,
}

impl<H: Service<Connected>> Ways<H> {
    /// Serves a connection to its end.
    pub(super) async fn serve(self: Rc<Self>, stream: TcpStream) -> Result<(), ()> {
        let _open = self.figures.as_ref().map(metrics::Worker::connection);
        match &self.tls {
            None => self.speak(stream, self.watch.line()).await,
            // On the heap: without TLS no connection comes here.
            Some(tls) => Box::pin(self.secure(tls, stream)).await,
        }
    }

    async fn secure(&self, tls: &Tls, stream: TcpStream) -> Result<(), ()> {
        stream.hurry();
        // Who doesn't get so far was counted, and is nobody to answer.
        let Ok(secured) = tls.accept(stream).await else { return Ok(()) };
        let line = self.watch.line();
        match &self.h2 {
            Some(h2) if secured.is_h2 => h2.clone().serve(secured.stream, line).await,
            _ => return self.speak(secured.stream, line).await,
        }
        Ok(())
    }

    /// HTTP/1.1.
    async fn speak<S: Wire + Into<Stream> + 'static>(&self, stream: S, line: Rc<Line>) -> Result<(), ()> {
        let leaving = match &self.lane {
            Some(lane) => Visit::new(lane, line.clone(), stream).await,
            None => Some(Leaving { stream, read: Vec::new() }),
        };
        let Some(Leaving { stream, read }) = leaving else { return Ok(()) };
        // An answer of several writes, such as a proxied one, must not wait until the client acknowledges the first,
        // which takes 40 ms.
        stream.hurry();
        let peer = stream.peer();
        let guarded = Guarded::new(stream.into(), line, read);
        poll_fn(|context| self.http.poll_ready(context)).await.map_err(drop)?;
        // On the heap: most connections never come here.
        Box::pin(self.http.call((guarded, peer))).await.map_err(drop)?;
        Ok(())
    }

    /// From now on each answer is its connection's last.
    pub(super) fn stop(&self) {
        self.lane.iter().for_each(|lane| lane.stop());
        self.h2.iter().for_each(|h2| h2.stop());
        self.watch.wake();
    }
}
