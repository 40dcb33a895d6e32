//! Visitors who count whatever is not an answer: a connection that was refused, one that was cut.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::{Client, Reply};
use super::gateway::{PIXEL, until};
use super::load::Ledger;

/// What one of them met.
#[derive(Default)]
struct Met {
    ledger: Ledger,
    /// Connections that were not made, and requests without an answer, as the system words it.
    failures: HashMap<String, u64>,
}

/// Visitors who come all the time; some ask once and go, some stay.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    visitors: Vec<JoinHandle<Met>>,
}

impl Crowd {
    /// They come until [`Crowd::finish`].
    pub fn start<S: Read + Write>(connect: impl Fn() -> io::Result<Client<S>> + Clone + Send + 'static) -> Crowd {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let start = |(requests, name)| {
            let (connect, stop, acknowledged) = (connect.clone(), Arc::clone(&stop), Arc::clone(&acknowledged));
            thread::spawn(move || visit(connect, (name, requests), &stop, &acknowledged))
        };
        let visitors = [1, 1, 1, 4, 1000, 1000].into_iter().zip(0..).map(start).collect();
        Crowd { stop, acknowledged, visitors }
    }

    /// Waits until so many more are answered.
    pub fn wait_for(&self, more: u64) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + more;
        until("visitors are answered", || self.acknowledged.load(Ordering::Relaxed) >= goal);
    }

    /// What they know at the end. Nobody may have been refused or cut off; `log` is told if somebody was.
    pub fn finish(mut self, log: impl Fn() -> String) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let mut ledger = Ledger::default();
        for visitor in std::mem::take(&mut self.visitors) {
            let met = visitor.join().unwrap();
            assert!(met.failures.is_empty(), "{:?}: {}", met.failures, log());
            ledger.absorb(met.ledger);
        }
        ledger
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Visitors who come one after the other, each with `requests` on a connection of its own, until told to stop.
fn visit<S: Read + Write>(
    connect: impl Fn() -> io::Result<Client<S>>,
    (name, requests): (u64, u64),
    stop: &AtomicBool,
    acknowledged: &AtomicU64,
) -> Met {
    let mut met = Met::default();
    let mut visitor = 0;
    while !stop.load(Ordering::Relaxed) {
        visitor += 1;
        let mut client = match connect() {
            Ok(client) => client,
            Err(error) => {
                *met.failures.entry(format!("connect: {error}")).or_default() += 1;
                continue;
            }
        };
        let mut quiet_since = Instant::now();
        for request in 1..=requests {
            let nonce = format!("{name}-{visitor}-{request}");
            met.ledger.sent.insert(nonce.clone());
            // Connections that say nothing for a second go first.
            let was_quiet = request > 1 && quiet_since.elapsed() > Duration::from_millis(900);
            // Before it was asked is not later than the gateway's own time of the answer.
            let asked = Instant::now();
            match ask(&mut client, &nonce, request) {
                Ok(reply) => {
                    assert!(matches!(reply.status, 200 | 204), "{reply:?}");
                    let id = reply.record_id().unwrap().to_owned();
                    assert_eq!(met.ledger.acknowledged.insert(id, nonce), None);
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                    quiet_since = asked;
                    if reply.header("connection").is_some_and(|value| value == "close") {
                        break;
                    }
                }
                Err(error) => {
                    met.ledger.open.insert(nonce);
                    if was_quiet {
                        break;
                    }
                    *met.failures.entry(format!("request {request}: {error}")).or_default() += 1;
                    break;
                }
            }
        }
    }
    met
}

/// An event; every second is a POST, which no client may repeat by itself.
pub fn ask<S: Read + Write>(client: &mut Client<S>, nonce: &str, number: u64) -> io::Result<Reply> {
    let pairs = format!("id={PIXEL}&value=1.50&currency=GBP&nonce={nonce}");
    match number % 2 {
        0 => client.post("/offsite_event.php", "application/x-www-form-urlencoded", &pairs),
        _ => client.get(&format!("/offsite_event.php?{pairs}")),
    }
}
