//! A bad network in front of Kafka: a TCP proxy that passes, delays, holds everything back, or cuts; and that knows the
//! requests of Kafka's protocol, so that something can happen at a certain one.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

const STEP: Duration = Duration::from_millis(20);

/// What happens to bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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

/// A request of Kafka's protocol, by its number there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i16)]
pub enum Api {
    /// Records.
    Produce = 0,
    /// `init_transactions`.
    InitProducerId = 22,
    /// The first record of a partition in a transaction.
    AddPartitionsToTxn = 24,
    /// The cursor's group joins the transaction.
    AddOffsetsToTxn = 25,
    /// Commit or abort.
    EndTxn = 26,
    /// The cursor.
    TxnOffsetCommit = 28,
}

/// All of them, in the order of a transaction.
pub const APIS: [Api; 6] = [
    Api::InitProducerId,
    Api::AddPartitionsToTxn,
    Api::Produce,
    Api::AddOffsetsToTxn,
    Api::TxnOffsetCommit,
    Api::EndTxn,
];

/// On which side of the broker's work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// The broker has not seen it.
    Asked,
    /// The broker has done it, and the client doesn't know.
    Answered,
}

/// What happens then, instead of passing it on.
#[derive(Clone, Copy)]
pub enum Deed {
    /// `kill -9` of this process, once.
    Kill(u32),
    /// It disappears, and each one that follows.
    Swallow,
    /// The connection is cut, once.
    Cut,
    /// Half of it passes, and then the connection is cut, once.
    CutWithin,
}

struct Trap {
    api: Api,
    when: When,
    deed: Deed,
}

struct Shared {
    network: AtomicU8,
    trap: Mutex<Option<Trap>>,
    sprung: AtomicU64,
}

/// A running proxy.
pub struct Proxy {
    shared: Arc<Shared>,
    door: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens at `at` and forwards to `to`.
    pub fn start((to, at): (SocketAddr, SocketAddr)) -> Proxy {
        let listener = TcpListener::bind(at).unwrap();
        listener.set_nonblocking(true).unwrap();
        let network = AtomicU8::new(Network::Good as u8);
        let shared = Arc::new(Shared { network, trap: Mutex::default(), sprung: AtomicU64::new(0) });
        let of_door = Arc::clone(&shared);
        let door = thread::spawn(move || {
            while Network::of(&of_door.network) != Network::Ended {
                match listener.accept() {
                    Ok((client, _)) if Network::of(&of_door.network) != Network::Cut => join(client, to, &of_door),
                    Ok(_) => {}
                    Err(_) => thread::sleep(STEP),
                }
            }
        });
        Proxy { shared, door: Some(door) }
    }

    /// From now on the network is like this.
    pub fn set(&self, network: Network) {
        self.shared.network.store(network as u8, Ordering::Relaxed);
    }

    /// At the next such request this happens.
    pub fn trap(&self, api: Api, when: When, deed: Deed) {
        *self.shared.trap.lock().unwrap() = Some(Trap { api, when, deed });
    }

    /// Nothing happens any more.
    pub fn release(&self) {
        *self.shared.trap.lock().unwrap() = None;
    }

    /// How often something happened so far.
    pub fn sprung(&self) -> u64 {
        self.shared.sprung.load(Ordering::SeqCst)
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

/// What becomes of a frame.
#[derive(PartialEq, Eq)]
enum Fate {
    Passes,
    Disappears,
    Cuts,
    CutsWithin,
}

impl Shared {
    fn fate(&self, api: i16, when: When) -> Fate {
        let mut trap = self.trap.lock().unwrap();
        let Some(deed) = trap.as_ref().filter(|trap| trap.api as i16 == api && trap.when == when).map(|trap| trap.deed)
        else {
            return Fate::Passes;
        };
        if !matches!(deed, Deed::Swallow) {
            *trap = None;
        }
        self.sprung.fetch_add(1, Ordering::SeqCst);
        match deed {
            Deed::Kill(id) => {
                kill_process(Pid::from_raw(id as i32).expect("a process id"), Signal::KILL).ok();
                Fate::Disappears
            }
            Deed::Swallow => Fate::Disappears,
            Deed::Cut => Fate::Cuts,
            Deed::CutWithin => Fate::CutsWithin,
        }
    }
}

/// Requests of one connection that are not answered: by correlation id, which.
type Open = Arc<Mutex<HashMap<[u8; 4], i16>>>;

/// Two threads carry a connection; they end with it.
fn join(client: TcpStream, to: SocketAddr, shared: &Arc<Shared>) {
    let Ok(server) = TcpStream::connect(to) else { return };
    client.set_nonblocking(false).unwrap();
    let open = Open::default();
    for (from, into, when) in [(&client, &server, When::Asked), (&server, &client, When::Answered)] {
        from.set_read_timeout(Some(STEP)).unwrap();
        let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
        let (shared, open) = (Arc::clone(shared), Arc::clone(&open));
        thread::spawn(move || {
            carry(&from, &into, when, &shared, &open);
            from.shutdown(Shutdown::Both).ok();
            into.shutdown(Shutdown::Both).ok();
        });
    }
}

fn carry(mut from: &TcpStream, mut into: &TcpStream, when: When, shared: &Shared, open: &Open) {
    let mut bytes = [0; 16 * 1024];
    let mut waiting = Vec::new();
    loop {
        match Network::of(&shared.network) {
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
            Ok(read) => waiting.extend_from_slice(&bytes[..read]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
        while let Some(length) = frame(&waiting) {
            let frame: Vec<u8> = waiting.drain(..length).collect();
            match shared.fate(api(&frame, when, open), when) {
                Fate::Passes if into.write_all(&frame).is_err() => return,
                Fate::Passes | Fate::Disappears => {}
                Fate::Cuts => return,
                Fate::CutsWithin => {
                    into.write_all(&frame[..frame.len() / 2]).ok();
                    return;
                }
            }
        }
    }
}

/// Length of the first frame, if all of it is there.
fn frame(bytes: &[u8]) -> Option<usize> {
    let length = 4 + u32::from_be_bytes(bytes.get(..4)?.try_into().unwrap()) as usize;
    (bytes.len() >= length).then_some(length)
}

/// Which request a frame is, or answers; -1 if that is not known.
fn api(frame: &[u8], when: When, open: &Open) -> i16 {
    let four = |at: usize| frame.get(at..at + 4).map(|bytes| <[u8; 4]>::try_from(bytes).unwrap());
    let mut open = open.lock().unwrap();
    match when {
        When::Asked => {
            let api = four(4).map_or(-1, |bytes| i16::from_be_bytes([bytes[0], bytes[1]]));
            four(8).map(|correlation| open.insert(correlation, api));
            api
        }
        When::Answered => four(4).and_then(|correlation| open.remove(&correlation)).unwrap_or(-1),
    }
}
