//! An upstream for a gateway in `proxy` mode that a test makes behave in any way, byte for byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::gateway::free_address;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its first line.
    pub line: String,
    /// Header lines in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Seen {
    /// All values of a header, joined.
    pub fn header(&self, name: &str) -> Option<String> {
        let values = self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let values: Vec<&str> = values.collect();
        (!values.is_empty()).then(|| values.join(", "))
    }
}

/// What it does with a request.
pub enum Act {
    /// Answers these bytes and keeps the connection.
    Say(Vec<u8>),
    /// Answers these bytes, then closes.
    SayAndClose(Vec<u8>),
    /// Answers these bytes, then sends a reset.
    SayAndReset(Vec<u8>),
    /// Answers these pieces with a pause before each.
    Drip(Vec<Vec<u8>>, Duration),
    /// Answers these bytes, and then nothing while the test runs.
    Hang(Vec<u8>),
}

/// A 200 of JSON.
pub fn json(body: &str) -> Act {
    Act::Say(format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{}", with_length(body)).into_bytes())
}

/// `Content-Length` and body.
pub fn with_length(body: &str) -> String {
    format!("Content-Length: {}\r\n\r\n{body}", body.len())
}

/// A listener that answers as told.
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    act: Box<dyn Fn(&Seen) -> Act + Send + Sync>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    stopping: AtomicBool,
}

impl Upstream {
    /// Starts on a port of its own.
    pub fn start(act: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Upstream {
        // Not one that the kernel may give to somebody's outgoing connection when this one is gone.
        Upstream::start_on(free_address(), act)
    }

    /// Starts on a port that was one's before.
    pub fn start_on(address: SocketAddr, act: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Upstream {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            act: Box::new(act),
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        });
        let of_listener = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if of_listener.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), shared) = (stream, Arc::clone(&of_listener)) else { continue };
                shared.connections.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || serve(&stream, &shared));
            }
        });
        Upstream { address, shared }
    }

    /// Everything that was asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        TcpStream::connect(self.address).ok();
    }
}

fn serve(stream: &TcpStream, shared: &Shared) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(seen) = read(&mut reader).filter(|_| !shared.stopping.load(Ordering::SeqCst)) {
        shared.seen.lock().unwrap().push(seen.clone());
        let say = |bytes: &[u8]| {
            let mut stream = stream;
            stream.write_all(bytes).and_then(|()| stream.flush()).is_ok()
        };
        match (shared.act)(&seen) {
            Act::Say(bytes) => drop(say(&bytes)),
            Act::SayAndClose(bytes) => {
                say(&bytes);
                break;
            }
            Act::SayAndReset(bytes) => {
                say(&bytes);
                reset(stream);
                return;
            }
            Act::Drip(pieces, pause) => {
                for piece in pieces {
                    thread::sleep(pause);
                    if !say(&piece) {
                        return;
                    }
                }
            }
            Act::Hang(bytes) => {
                say(&bytes);
                // Until the other side gives up.
                drop(reader.read(&mut [0]));
                return;
            }
        }
    }
    stream.shutdown(Shutdown::Both).ok();
}

/// Lingering for no time makes the kernel send a reset.
fn reset(stream: &TcpStream) {
    // What was said has to be read first, or it is taken back with the reset.
    thread::sleep(Duration::from_millis(200));
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}

fn read(reader: &mut BufReader<&TcpStream>) -> Option<Seen> {
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { line: first, headers, body })
}
