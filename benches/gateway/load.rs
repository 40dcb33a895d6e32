//! A closed loop of keep-alive connections on one thread: each sends its request again when the answer is whole.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What to send, and where.
pub(crate) struct Workload {
    pub(crate) address: SocketAddr,
    pub(crate) request: Vec<u8>,
    pub(crate) connections: usize,
}

/// What came of it.
pub(crate) struct Done {
    pub(crate) answered: u64,
    /// Answers other than 200.
    pub(crate) failed: u64,
    pub(crate) p99: Duration,
}

/// Runs a workload for a time.
pub(crate) fn run(workload: &Workload, time: Duration) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let end = Instant::now() + time;
    let tasks = tokio::task::LocalSet::new();
    runtime.block_on(tasks.run_until(async {
        let one = |_| tokio::task::spawn_local(connection(workload.address, workload.request.clone(), end));
        let running: Vec<_> = (0..workload.connections).map(one).collect();
        let (mut times, mut failed) = (Vec::new(), 0);
        for task in running {
            let (own, own_failed) = task.await.unwrap();
            times.extend(own);
            failed += own_failed;
        }
        times.sort_unstable();
        let p99 = times.get(times.len() * 99 / 100).copied().unwrap_or_default();
        Done { answered: times.len() as u64, failed, p99: Duration::from_micros(p99.into()) }
    }))
}

/// One connection's answers in microseconds each.
async fn connection(address: SocketAddr, request: Vec<u8>, end: Instant) -> (Vec<u32>, u64) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut times, mut failed) = (Vec::new(), 0);
    let mut buffer = vec![0; 4096];
    let mut begun = Instant::now();
    while begun < end {
        stream.write_all(&request).await.unwrap();
        let mut filled = 0;
        loop {
            let read = stream.read(&mut buffer[filled..]).await.unwrap();
            assert!(read > 0, "the server closed a connection");
            filled += read;
            if is_whole(&buffer[..filled]) {
                break;
            }
        }
        failed += u64::from(!buffer.starts_with(b"HTTP/1.1 200"));
        let now = Instant::now();
        times.push((now - begun).as_micros() as u32);
        begun = now;
    }
    (times, failed)
}

/// Whether an answer with a `content-length` below 100 is complete.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = memchr::memmem::find(answer, b"\r\n\r\n") else { return false };
    let name = b"content-length: ";
    let Some(at) = memchr::memmem::find(&answer[..head], name) else { return false };
    let digits = answer[at + name.len()..head].iter().take_while(|byte| byte.is_ascii_digit());
    let length = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    answer.len() >= head + 4 + length
}
