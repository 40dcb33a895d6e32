//! A bad network: a TCP proxy that passes, delays, holds everything back, or cuts.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const STEP: Duration = Duration::from_millis(20);

/// What happens to bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Network {
    /// They go through.
    Good,
    /// Each piece a fifth of a second late.
    Slow,
    /// None goes through for now, and nobody is told: as when packets are dropped.
    Silent,
    /// Connections are reset, new ones end at once.
    Cut,
    /// The proxy ends.
    Ended,
}

impl Network {
    fn of(state: &AtomicU8) -> Network {
        let all = [Network::Good, Network::Slow, Network::Silent, Network::Cut];
        let now = state.load(Ordering::Relaxed);
        all.into_iter().find(|network| *network as u8 == now).unwrap_or(Network::Ended)
    }
}

/// A running proxy.
pub struct Proxy {
    state: Arc<AtomicU8>,
    door: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens at `at` and forwards to `to`.
    pub fn start((to, at): (SocketAddr, SocketAddr)) -> Proxy {
        let listener = TcpListener::bind(at).unwrap();
        listener.set_nonblocking(true).unwrap();
        let state = Arc::new(AtomicU8::new(Network::Good as u8));
        let shared = Arc::clone(&state);
        let door = thread::spawn(move || {
            while Network::of(&shared) != Network::Ended {
                match listener.accept() {
                    Ok((client, _)) if Network::of(&shared) != Network::Cut => join(client, to, &shared),
                    Ok(_) => {}
                    Err(_) => thread::sleep(STEP),
                }
            }
        });
        Proxy { state, door: Some(door) }
    }

    /// From now on the network is like this.
    pub fn set(&self, network: Network) {
        self.state.store(network as u8, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Network::Ended);
        if let Some(door) = self.door.take() {
            door.join().ok();
        }
    }
}

/// Two threads carry a connection; they end with it.
fn join(client: TcpStream, to: SocketAddr, state: &Arc<AtomicU8>) {
    let Ok(server) = TcpStream::connect(to) else { return };
    client.set_nonblocking(false).unwrap();
    let ends = [(&client, &server), (&server, &client)];
    for (from, into) in ends {
        from.set_read_timeout(Some(STEP)).unwrap();
        let (from, into, state) = (from.try_clone().unwrap(), into.try_clone().unwrap(), Arc::clone(state));
        thread::spawn(move || {
            carry(&from, &into, &state);
            from.shutdown(Shutdown::Both).ok();
            into.shutdown(Shutdown::Both).ok();
        });
    }
}

fn carry(mut from: &TcpStream, mut into: &TcpStream, state: &AtomicU8) {
    let mut bytes = [0; 16 * 1024];
    loop {
        match Network::of(state) {
            Network::Cut | Network::Ended => return,
            Network::Silent => {
                thread::sleep(STEP);
                continue;
            }
            Network::Good => {}
            Network::Slow => thread::sleep(10 * STEP),
        }
        match from.read(&mut bytes) {
            Ok(0) => return,
            Ok(read) => {
                if into.write_all(&bytes[..read]).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}
