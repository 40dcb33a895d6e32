//! A secured connection, as the short way and the parsers need it.

use std::io::{self, BufRead, IoSlice, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server;

use crate::http::wire::Wire;

/// See the module.
pub(in crate::http) struct TlsStream(pub(super) server::TlsStream<TcpStream>);

impl Wire for TlsStream {
    fn peer(&self) -> Option<SocketAddr> {
        self.0.get_ref().0.peer_addr().ok()
    }

    fn hurry(&self) {
        let _ = self.0.get_ref().0.set_nodelay(true);
    }

    fn try_say(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (socket, session) = self.0.get_mut();
        let taken = session.writer().write(bytes)?;
        while session.wants_write() {
            match session.write_tls(&mut AtOnce(socket)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                // The rest goes out with a flush.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    fn has_said_all(&self) -> bool {
        !self.0.get_ref().1.wants_write()
    }

    fn part(&mut self) {
        let (socket, session) = self.0.get_mut();
        session.send_close_notify();
        // Who doesn't take it now is not waited for.
        let _ = session.write_tls(&mut AtOnce(socket));
    }

    fn poll_heard(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (socket, session) = self.0.get_mut();
        if session.reader().fill_buf().is_ok() {
            return Poll::Ready(());
        }
        socket.poll_read_ready(context).map(drop)
    }
}

/// Writes what the socket takes now.
struct AtOnce<'a>(&'a TcpStream);

impl Write for AtOnce<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }
}
