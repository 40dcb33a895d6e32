//! A connection in the hands of actix: watched, and what actix refuses in a word answered as the contract has it.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready as some};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::reply;
use super::watch::Line;
use super::wire::Stream;

/// Most that is read of a refused sender, so that closing doesn't take the answer away from it.
const LINGER_BYTES: usize = 1 << 20;

/// A watched connection.
pub(super) struct Guarded {
    stream: Stream,
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
    /// A connection of which `before` was read already.
    pub(super) fn new(stream: Stream, line: Rc<Line>, before: Vec<u8>) -> Guarded {
        Guarded { stream, line, before, refusal: None }
    }

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
