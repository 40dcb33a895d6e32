//! Load on one thread: a closed loop, in which each connection sends again when its answer is whole, and an open one,
//! in which requests are due at their time whatever became of those before.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// How a load's connections are made once they are open: as they are, or secured.
pub(crate) type Wrap = fn(TcpStream) -> Pin<Box<dyn Future<Output = Connection>>>;
/// A connection, secured or not.
pub(crate) type Connection = Pin<Box<dyn Duplex>>;

pub(crate) trait Duplex: AsyncRead + AsyncWrite {}

impl<T: AsyncRead + AsyncWrite> Duplex for T {}

/// As it is.
pub(crate) fn plain(stream: TcpStream) -> Pin<Box<dyn Future<Output = Connection>>> {
    Box::pin(async { Box::pin(stream) as Connection })
}

/// What to send, and where.
pub(crate) struct Workload {
    pub(crate) address: SocketAddr,
    /// Sent in turn.
    pub(crate) requests: Vec<Vec<u8>>,
    pub(crate) connections: usize,
    /// A connection serves one request, which says so.
    pub(crate) is_fresh: bool,
    pub(crate) wrap: Wrap,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) answered: u64,
    /// Answers by status: 2xx, and all others.
    pub(crate) refused: u64,
    /// Microseconds of each answer, sorted.
    times: Vec<u32>,
    /// The same of those requests of an open loop during which the load was not held up itself.
    steady: Vec<u32>,
    /// How long the load was held up.
    pub(crate) held_up: Duration,
}

impl Done {
    /// A quantile in microseconds.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        quantile(&self.times, share)
    }

    /// The same of an open loop without requests that waited while the load itself, on its own CPU, was held up: then
    /// nothing on this machine went on.
    pub(crate) fn steady_quantile(&self, share: f64) -> f64 {
        quantile(&self.steady, share)
    }

    fn add(&mut self, other: Done) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.times.extend(other.times);
    }
}

pub(crate) fn quantile(sorted: &[u32], share: f64) -> f64 {
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default().into()
}

/// Runs a workload for a time.
pub(crate) fn run(workload: &Workload, time: Duration) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let end = Instant::now() + time;
    let tasks = tokio::task::LocalSet::new();
    runtime.block_on(tasks.run_until(async {
        let one = |index: usize| {
            let mut requests = workload.requests.clone();
            let count = requests.len();
            requests.rotate_left(index % count);
            tokio::task::spawn_local(connection(workload.address, workload.wrap, requests, workload.is_fresh, end))
        };
        let running: Vec<_> = (0..workload.connections).map(one).collect();
        let mut done = Done::default();
        for task in running {
            done.add(task.await.unwrap());
        }
        done.times.sort_unstable();
        done
    }))
}

async fn open(address: SocketAddr, wrap: Wrap) -> Connection {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    // Closed at once and with no trace: else a run of new connections ends when all ports are used up.
    stream.set_zero_linger().unwrap();
    wrap(stream).await
}

async fn connection(address: SocketAddr, wrap: Wrap, requests: Vec<Vec<u8>>, is_fresh: bool, end: Instant) -> Done {
    let mut done = Done::default();
    let mut stream = open(address, wrap).await;
    let mut buffer = vec![0; 4096];
    let mut begun = Instant::now();
    for request in requests.iter().cycle() {
        if begun >= end {
            break;
        }
        stream.write_all(request).await.unwrap();
        let mut filled = 0;
        while !is_whole(&buffer[..filled]) {
            let read = stream.read(&mut buffer[filled..]).await.unwrap();
            assert!(read > 0, "the server closed a connection");
            filled += read;
        }
        let now = Instant::now();
        done.note(&buffer, now - begun);
        begun = now;
        if is_fresh {
            stream = open(address, wrap).await;
        }
    }
    done
}

impl Done {
    fn note(&mut self, answer: &[u8], took: Duration) {
        self.answered += 1;
        self.refused += u64::from(!answer.starts_with(b"HTTP/1.1 2"));
        self.times.push(took.as_micros() as u32);
    }
}

/// Whether an answer is complete: a 204, or one with a `content-length`.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = memchr::memmem::find(answer, b"\r\n\r\n") else { return false };
    if answer.starts_with(b"HTTP/1.1 204") {
        return true;
    }
    let lines = answer[..head].split(|byte| *byte == b'\n');
    let name = b"content-length: ";
    let value = lines.into_iter().find_map(|line| {
        line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)).then(|| &line[name.len()..])
    });
    let digits = value.unwrap_or_default().iter().take_while(|byte| byte.is_ascii_digit());
    let length = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    answer.len() >= head + 4 + length
}

/// Between two rounds of the open loop are some microseconds. If they take this long the load did not run. Rounds
/// themselves are not looked at: a long one may be work that a server's slow answers have made.
const HELD_UP: Duration = Duration::from_millis(1);
/// Of the open loop when nothing is due and no answer is there.
const REST: Duration = Duration::from_micros(5);

/// A connection of the open loop.
struct Paced {
    stream: std::net::TcpStream,
    buffer: Vec<u8>,
    filled: usize,
    /// When its request was due, if it waits for an answer.
    due: Option<Instant>,
}

/// Sends at a rate and takes each answer's time from the moment at which its request was due, not from when it could be
/// sent: what a slow answer makes others wait for is in the figures (no "coordinated omission"). Where there is nothing
/// to do it rests for some ten microseconds: a virtual machine that uses all of its CPUs without a break may be stopped
/// by its host for a part of each 100 ms, which is then seen in every figure.
pub(crate) fn pace(workload: &Workload, per_second: f64, time: Duration) -> Done {
    let open = |_| {
        let stream = std::net::TcpStream::connect(workload.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        Paced { stream, buffer: vec![0; 4096], filled: 0, due: None }
    };
    let mut connections: Vec<Paced> = (0..workload.connections).map(open).collect();
    let mut free: Vec<usize> = (0..connections.len()).collect();
    let mut busy: Vec<usize> = Vec::new();
    let (begun, mut sent, mut done) = (Instant::now(), 0u64, Done::default());
    let total = (per_second * time.as_secs_f64()) as u64;
    // Sleeps end when they are to, not up to 50 µs later.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)).unwrap();
    let (mut last, mut held_up_until) = (begun, begun);
    while done.answered < total {
        let now = Instant::now();
        if now - last > HELD_UP {
            held_up_until = now;
            done.held_up += now - last;
        }
        let idle = (sent, done.answered);
        let due_by_now = ((now - begun).as_secs_f64() * per_second) as u64;
        while sent < due_by_now.min(total) {
            let Some(index) = free.pop() else { break };
            let request = &workload.requests[sent as usize % workload.requests.len()];
            let connection = &mut connections[index];
            connection.stream.write_all(request).unwrap();
            connection.due = Some(begun + Duration::from_secs_f64(sent as f64 / per_second));
            busy.push(index);
            sent += 1;
        }
        busy.retain(|index| {
            let is_busy = !connections[*index].take(&mut done, held_up_until);
            if !is_busy {
                free.push(*index);
            }
            is_busy
        });
        last = Instant::now();
        if idle == (sent, done.answered) {
            std::thread::sleep(REST);
        }
    }
    done.times.sort_unstable();
    done.steady.sort_unstable();
    done
}

impl Paced {
    /// Whether its answer is here.
    fn take(&mut self, done: &mut Done, held_up_until: Instant) -> bool {
        match self.stream.read(&mut self.buffer[self.filled..]) {
            Ok(0) => panic!("the server closed a connection"),
            Ok(read) => self.filled += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("{error}"),
        }
        if !is_whole(&self.buffer[..self.filled]) {
            return false;
        }
        let due = self.due.take().expect("it waits");
        let took = due.elapsed();
        done.note(&self.buffer, took);
        if due > held_up_until {
            done.steady.push(took.as_micros() as u32);
        }
        self.filled = 0;
        true
    }
}
