//! How many rejected requests may be kept: best effort, so that a flood neither fills the disk nor slows events.
//!
//! Per gateway at most 1,000 a second, and in bytes at most 5 % of `journal.max_bytes` within `journal.retention`.
//! Each worker has its share, so that nothing is shared on the way.

use std::time::Duration;

/// Rejected records a second, of all workers together.
const PER_SECOND: u64 = 1_000;
/// Share of `max_bytes` that a bucket holds, and that flows in per retention: both together are 5 %.
const BUCKET_PER_MILLE: u64 = 25;

/// One worker's allowance.
#[derive(Clone, Debug)]
pub struct Allowance {
    per_second: u64,
    left: u64,
    second: u64,
    bucket_bytes: f64,
    bytes: f64,
    bytes_per_second: f64,
    refilled: Duration,
}

impl Allowance {
    /// The share of one of `workers`.
    pub fn new(workers: usize, max_bytes: u64, retention: Duration) -> Allowance {
        let workers = workers.max(1) as u64;
        let bucket_bytes = (max_bytes / 1000 * BUCKET_PER_MILLE / workers) as f64;
        Allowance {
            per_second: (PER_SECOND / workers).max(1),
            left: 0,
            second: u64::MAX,
            bucket_bytes,
            bytes: bucket_bytes,
            bytes_per_second: bucket_bytes / retention.as_secs_f64().max(1.0),
            refilled: Duration::ZERO,
        }
    }

    /// Whether a record of at most `bytes` may be kept at this (monotonic) time; takes it from the allowance.
    pub fn take(&mut self, now: Duration, bytes: usize) -> bool {
        if self.second != now.as_secs() {
            (self.second, self.left) = (now.as_secs(), self.per_second);
        }
        let passed = now.saturating_sub(self.refilled).as_secs_f64();
        self.bytes = (self.bytes + passed * self.bytes_per_second).min(self.bucket_bytes);
        self.refilled = now;
        let allowed = self.left > 0 && self.bytes >= bytes as f64;
        if allowed {
            self.left -= 1;
            self.bytes -= bytes as f64;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_by_number_and_by_bytes() {
        let mut allowance = Allowance::new(2, 1 << 30, Duration::from_secs(86_400));
        let kept = (0..10_000).filter(|_| allowance.take(Duration::from_secs(5), 100)).count();
        assert_eq!(kept, 500);
        assert!(allowance.take(Duration::from_secs(6), 100));
        let mut allowance = Allowance::new(1, 4_000_000, Duration::from_secs(1000));
        let mut bytes = 0;
        for ms in 0..1_000_000u64 {
            bytes += if allowance.take(Duration::from_millis(ms), 1000) { 1000 } else { 0 };
        }
        assert!((190_000..=200_000).contains(&bytes), "{bytes} of 4 MB within one retention");
    }
}
