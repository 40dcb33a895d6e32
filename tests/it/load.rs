//! Load with a ledger: what was sent, what was acknowledged under which record id, what was refused.
//!
//! The obligation begins with the 2xx and not before; a request without an answer may have become a record or not.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::{Client, Reply};
use super::gateway::{PATIENCE, PIXEL};
#[cfg(feature = "e2e")]
use super::oracle;

/// What the senders know at the end.
#[derive(Default)]
pub struct Ledger {
    /// Every nonce that left.
    pub sent: HashSet<String>,
    /// Those among them whose events `oracle` made.
    pub numbered: HashSet<String>,
    /// Record id of each acknowledged request, with its nonce.
    pub acknowledged: HashMap<String, String>,
    /// Nonces whose reply says that nothing was recorded.
    pub refused: HashMap<String, String>,
    /// Nonces without an answer, or with one that leaves it open.
    pub open: HashSet<String>,
    /// The longest that an answer took.
    pub slowest: Duration,
}

impl Ledger {
    /// Adds what others know.
    pub fn absorb(&mut self, other: Ledger) {
        self.sent.extend(other.sent);
        self.numbered.extend(other.numbered);
        for (id, nonce) in other.acknowledged {
            let earlier = self.acknowledged.insert(id, nonce);
            assert_eq!(earlier, None, "two requests were answered with one record id");
        }
        self.refused.extend(other.refused);
        self.open.extend(other.open);
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// Sends a request and reads its answer: of a sender's so-many-th event, with this nonce in it.
type Offer = fn(&mut Client, u64, &str) -> io::Result<Reply>;

/// Running senders.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    senders: Vec<JoinHandle<Ledger>>,
    numbered: bool,
}

impl Load {
    /// Starts senders that go on, over restarts of the gateway, until `finish`.
    pub fn start(address: SocketAddr, senders: u64) -> Load {
        Load::paced(address, senders, Duration::ZERO, "")
    }

    /// As `start`, each sender resting for `gap` after an answer. `run` begins the nonces: loads of one audit differ
    /// in it.
    pub fn paced(address: SocketAddr, senders: u64, gap: Duration, run: &'static str) -> Load {
        Load::offering(address, senders, gap, run, offer)
    }

    /// As `paced`, with events of all forms, whose content `oracle` can tell and `audit` holds their records against.
    #[cfg(feature = "e2e")]
    pub fn numbered(address: SocketAddr, senders: u64, gap: Duration, run: &'static str) -> Load {
        let mut load = Load::offering(address, senders, gap, run, oracle::offer);
        load.numbered = true;
        load
    }

    fn offering(address: SocketAddr, senders: u64, gap: Duration, run: &'static str, offer: Offer) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let start = |sender| {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            thread::spawn(move || send(address, &format!("{run}{sender}"), gap, &stop, &acknowledged, offer))
        };
        let senders = (0..senders).map(start).collect();
        Load { stop, acknowledged, senders, numbered: false }
    }

    /// How many are acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more are acknowledged.
    pub fn wait_for(&self, more: u64) {
        let goal = self.acknowledged() + more;
        let deadline = Instant::now() + PATIENCE;
        while self.acknowledged() < goal {
            assert!(Instant::now() < deadline, "{} of {goal} acknowledged in time", self.acknowledged());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops the senders, each after its last answer, and adds up what they know.
    pub fn finish(mut self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Ledger::default();
        for sender in std::mem::take(&mut self.senders) {
            all.absorb(sender.join().expect("a sender panicked"));
        }
        if self.numbered {
            all.numbered.clone_from(&all.sent);
        }
        all
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // A test that failed leaves nobody behind who disturbs the next one.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn send(
    address: SocketAddr,
    sender: &str,
    gap: Duration,
    stop: &AtomicBool,
    acknowledged: &AtomicU64,
    offer: Offer,
) -> Ledger {
    let mut ledger = Ledger::default();
    let mut connection: Option<Client> = None;
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let Some(client) = &mut connection else {
            connection = Client::connect(address).ok();
            if connection.is_none() {
                thread::sleep(Duration::from_millis(2)); // nobody listens: don't keep a core from the one who starts
            }
            continue;
        };
        number += 1;
        let nonce = format!("{sender}-{number}");
        ledger.sent.insert(nonce.clone());
        let begun = Instant::now();
        let reply = offer(client, number, &nonce);
        ledger.slowest = ledger.slowest.max(begun.elapsed());
        thread::sleep(gap);
        if !note(&mut ledger, nonce, reply.as_ref().ok(), acknowledged) {
            connection = None;
        }
    }
    ledger
}

/// Every fourth is a POST, so that both ways are under load.
fn offer(client: &mut Client, number: u64, nonce: &str) -> io::Result<Reply> {
    let pairs = format!("id={PIXEL}&value={}.50&currency=GBP&nonce={nonce}", number % 1000);
    match number % 4 {
        0 => client.post("/offsite_event.php", "application/x-www-form-urlencoded", &pairs),
        _ => client.get(&format!("/offsite_event.php?{pairs}")),
    }
}

/// Enters one answer; false if the connection is of no further use.
fn note(ledger: &mut Ledger, nonce: String, reply: Option<&Reply>, acknowledged: &AtomicU64) -> bool {
    let Some(reply) = reply else {
        ledger.open.insert(nonce);
        return false;
    };
    let closes = reply.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    match (reply.status, reply.record_id(), reply.reason()) {
        (200 | 204, Some(id), None) => {
            let earlier = ledger.acknowledged.insert(id.to_owned(), nonce);
            assert_eq!(earlier, None, "two requests were answered with one record id");
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        (503, _, Some("journal_unavailable")) => {
            ledger.open.insert(nonce);
        }
        (status, _, Some(reason)) if status >= 400 => {
            ledger.refused.insert(nonce, reason.to_owned());
            thread::sleep(Duration::from_millis(1)); // it was told to come later
        }
        _ => panic!("an answer that says neither yes nor no: {reply:?}"),
    }
    !closes
}
