//! What the ways through a connection need of it, secured or not.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::tls::TlsStream;

/// A connection that can be spoken to without waiting.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// Who is at the other end.
    fn peer(&self) -> Option<SocketAddr>;

    /// Small writes are sent at once. A connection that is gone shows itself later.
    fn hurry(&self);

    /// Takes what fits at once, and sends it as far as that goes.
    fn try_say(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Whether all that was taken is sent; what is not goes out with a flush.
    fn has_said_all(&self) -> bool;

    /// Says that it is over, where there is a word for that.
    fn part(&mut self);

    /// Whether there may be something to read; if not, the task is told.
    fn poll_heard(&mut self, context: &mut Context<'_>) -> Poll<()>;
}

impl Wire for TcpStream {
    fn peer(&self) -> Option<SocketAddr> {
        self.peer_addr().ok()
    }

    fn hurry(&self) {
        let _ = self.set_nodelay(true);
    }

    fn try_say(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(bytes)
    }

    fn has_said_all(&self) -> bool {
        true
    }

    fn part(&mut self) {}

    fn poll_heard(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.poll_read_ready(context).map(drop)
    }
}

/// Either kind, where it does not matter any more.
pub(super) enum Stream {
    Plain(TcpStream),
    Secured(Box<TlsStream>),
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Stream {
        Stream::Plain(stream)
    }
}

impl From<TlsStream> for Stream {
    fn from(stream: TlsStream) -> Stream {
        Stream::Secured(Box::new(stream))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Secured(stream) => Pin::new(&mut **stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Secured(stream) => Pin::new(&mut **stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Secured(stream) => Pin::new(&mut **stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Secured(stream) => Pin::new(&mut **stream).poll_shutdown(context),
        }
    }
}
