//! Leaving a listener so that no connection is lost: nothing more is taken from its queue, and whatever was taken is
//! being served before the server is told to stop.
//!
//! The server's own stop throws away connections that its accepting thread has handed to a worker which has not looked
//! at them yet. So it is paused first, and only stopped when each worker has had its turn.

use std::ffi::OsStr;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use tokio::sync::watch;
use tokio::task::yield_now;

/// How often the accepting thread is looked at, and how long. It has one thing to do, so only a machine that stands
/// still takes that long.
const LOOK: Duration = Duration::from_millis(2);
const LOOKS: u32 = 500;

/// A server and the way out of it.
pub struct Serving {
    /// To be run.
    pub server: Server,
    /// To be kept.
    pub exit: Exit,
}

/// See the module.
pub struct Exit {
    handle: ServerHandle,
    listener: RawFd,
    turns: Turns,
}

/// Where workers tell that they have had their turn.
#[derive(Clone)]
pub(super) struct Turns(watch::Sender<bool>);

impl Exit {
    /// The way out of a server on this socket, whose workers know `turns`.
    pub(super) fn new(handle: ServerHandle, listener: RawFd, turns: Turns) -> Exit {
        Exit { handle, listener, turns }
    }

    /// From when this returns no connection is taken any more, and all that were taken are being served.
    pub async fn close(&self) {
        self.handle.pause().await;
        for _ in 0..LOOKS {
            // Without /proc nobody can tell; a moment is nearly always enough.
            if !is_watched(self.listener).unwrap_or(false) {
                break;
            }
            actix_web::rt::time::sleep(LOOK).await;
        }
        self.turns.0.send_replace(true);
        let _ = actix_web::rt::time::timeout(LOOK * LOOKS, self.turns.0.closed()).await;
    }

    /// Stops the server: once all that is being served is answered, or now. It is told so at once.
    pub fn stop(&self, graceful: bool) -> impl Future<Output = ()> + use<> {
        self.handle.stop(graceful)
    }
}

impl Turns {
    pub(super) fn new() -> Turns {
        Turns(watch::Sender::new(false))
    }

    /// A worker's turn, to be run on its own loop.
    pub(super) fn turn(&self) -> impl Future<Output = ()> + use<> {
        let mut asked = self.0.subscribe();
        async move {
            let _ = asked.wait_for(|asked| *asked).await;
            // Behind whatever was due before on this loop, wherever it was queued.
            for _ in 0..3 {
                yield_now().await;
            }
        }
    }
}

/// Whether some poll of this process waits for connections on a socket.
fn is_watched(socket: RawFd) -> io::Result<bool> {
    for descriptor in std::fs::read_dir("/proc/self/fd")? {
        let descriptor = descriptor?;
        let is_poll = |target: &Path| target.as_os_str() == OsStr::new("anon_inode:[eventpoll]");
        // What is closed meanwhile watches nothing.
        if !std::fs::read_link(descriptor.path()).is_ok_and(|target| is_poll(&target)) {
            continue;
        }
        let info = Path::new("/proc/self/fdinfo").join(descriptor.file_name());
        let watches = |line: &str| {
            let target = line.strip_prefix("tfd:").and_then(|rest| rest.split_whitespace().next());
            target.and_then(|target| target.parse().ok()) == Some(socket)
        };
        if std::fs::read_to_string(info).is_ok_and(|info| info.lines().any(watches)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    use super::*;

    #[actix_web::test]
    async fn a_socket_is_watched_while_somebody_waits_for_its_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let socket = listener.as_raw_fd();
        assert!(!is_watched(socket).unwrap());
        let waiting = tokio::net::TcpListener::from_std(listener).unwrap();
        assert!(is_watched(socket).unwrap());
        let _listener = waiting.into_std().unwrap();
        assert!(!is_watched(socket).unwrap());
    }
}
