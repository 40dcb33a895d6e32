//! Figures of TLS: handshakes, and the certificate that is served.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::page::Page;
use crate::time::Timestamp;

/// What became of a handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handshake {
    /// The connection is secured.
    Completed,
    /// The two sides have nothing in common, or the other one gave up or is no TLS.
    Failed,
    /// It took too long.
    TimedOut,
}

/// What is told of the certificate's files at a scrape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// When the one that is served ceases to be valid.
    pub expires: Timestamp,
    /// Changed pairs taken since the start.
    pub taken: u64,
    /// Changed pairs refused since the start.
    pub refused: u64,
    /// What is in the files now was refused.
    pub is_refused: bool,
}

/// Counts of handshakes.
#[derive(Debug, Default)]
pub(super) struct Handshakes([AtomicU64; 3]);

impl Handshake {
    const ALL: [(Handshake, &str); 3] =
        [(Handshake::Completed, "completed"), (Handshake::Failed, "failed"), (Handshake::TimedOut, "timed_out")];
}

impl Handshakes {
    pub(super) fn add(&self, outcome: Handshake) {
        self.0[outcome as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn show(&self, certificate: Option<Certificate>, page: &mut Page) {
        let mut family = page.counter("pixelgate_tls_handshakes_total", "TLS handshakes, by what became of them.");
        for (outcome, word) in Handshake::ALL {
            family.add(&[("outcome", word)], self.0[outcome as usize].load(Relaxed) as f64);
        }
        let help =
            "Certificates found changed in their files since the start: taken, or refused and the one before kept.";
        let mut family = page.counter("pixelgate_tls_certificate_reloads_total", help);
        family.add(&[("outcome", "taken")], certificate.map_or(0, |certificate| certificate.taken) as f64);
        family.add(&[("outcome", "refused")], certificate.map_or(0, |certificate| certificate.refused) as f64);
        let help = "1 while what is in the certificate's files is refused and the one before is served.";
        let is_refused = certificate.is_some_and(|certificate| certificate.is_refused);
        page.gauge("pixelgate_tls_certificate_refused", help).is(f64::from(u8::from(is_refused)));
        let help = "Unix time at which the certificate that is served ceases to be valid; 0 without server.tls.";
        let expires = certificate.map_or(0, |certificate| certificate.expires.0) as f64 / 1000.0;
        page.gauge("pixelgate_tls_certificate_expiry_timestamp_seconds", help).is(expires);
    }
}
