//! The certificate that is served, and the look after its files: a new pair is taken once it fits together, and what
//! does not leaves the old one in place. Connections that are there keep what they were made with.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::{Fault, Files, Pair, Seen};
use crate::metrics::Certificate;
use crate::time::{Clock, SystemClock, Timestamp};

/// How often the files are looked at. They are read when two looks have seen the same change, so that a pair of which
/// one half is written is not taken for a bad one.
const LOOK: Duration = Duration::from_secs(2);

/// See the module.
pub struct Renewal {
    files: Files,
    current: ArcSwap<CertifiedKey>,
    /// In milliseconds.
    expires: AtomicU64,
    taken: AtomicU64,
    refused: AtomicU64,
    /// Held while the files are read, so that each pair is judged once.
    looks: Mutex<Looks>,
}

/// What was seen of the files.
struct Looks {
    /// When they were read last.
    read: Seen,
    /// At the last look.
    last: Seen,
    /// What was read last is not served.
    is_refused: bool,
}

impl Renewal {
    /// Begins with a pair that was read from `files`.
    pub fn new(files: Files, pair: Pair) -> Arc<Renewal> {
        let (read, last) = (pair.seen.clone(), pair.seen);
        Arc::new(Renewal {
            files,
            current: ArcSwap::new(pair.certified),
            expires: AtomicU64::new(pair.expires.0),
            taken: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            looks: Mutex::new(Looks { read, last, is_refused: false }),
        })
    }

    /// For a scrape.
    pub fn figures(&self) -> Certificate {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        Certificate {
            expires: Timestamp(self.expires.load(Relaxed)),
            taken: self.taken.load(Relaxed),
            refused: self.refused.load(Relaxed),
            is_refused: looks.is_refused,
        }
    }

    /// Reads the files if they have changed and rest, or at once. Blocks.
    pub fn look(&self, at_once: bool) {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.files.look();
        let rests = std::mem::replace(&mut looks.last, now.clone()) == now;
        if at_once || (rests && looks.read != now) {
            looks.read = now;
            let read = self.files.read().and_then(|pair| pair.still_valid(SystemClock.now()));
            looks.is_refused = read.is_err();
            match read {
                Ok(pair) => self.take(pair),
                Err(fault) => self.refuse(&fault),
            }
        }
    }

    fn take(&self, pair: Pair) {
        let expires = pair.expires;
        self.current.store(pair.certified);
        self.expires.store(expires.0, Relaxed);
        self.taken.fetch_add(1, Relaxed);
        tracing::info!("the certificate was read anew: it is served from now on and expires {}", expires.to_rfc3339());
    }

    fn refuse(&self, fault: &Fault) {
        self.refused.fetch_add(1, Relaxed);
        let expires = Timestamp(self.expires.load(Relaxed)).to_rfc3339();
        tracing::error!("the changed certificate is refused, and the one before goes on until {expires}: {fault}");
    }

    /// Looks at the files from time to time, for as long as the loop that it runs on.
    pub async fn run(self: Arc<Renewal>) {
        loop {
            actix_web::rt::time::sleep(LOOK).await;
            self.clone().look_aside(false).await;
        }
    }

    /// As `look`, but not on the loop that serves: a file system may take its time.
    pub async fn look_aside(self: Arc<Renewal>, at_once: bool) {
        let _ = actix_web::web::block(move || self.look(at_once)).await;
    }
}

impl ResolvesServerCert for Renewal {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewal").field("files", &self.files).finish_non_exhaustive()
    }
}
