//! Counting without contention: cells that one thread writes and any thread may read.
//!
//! A worker's count is a load and a store of its own cache line, no locked instruction; a scrape adds up all workers'
//! cells, so nothing is flushed and no figure is late.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A count.
#[derive(Debug, Default)]
pub struct Tally(AtomicU64);

impl Tally {
    /// Adds; for the one thread that writes this cell. Two at once would lose counts, nothing worse.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// Adds; for any number of threads.
    pub fn add_shared(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of a [`Distribution`], in its own unit.
pub type Bounds = [u64; 16];

/// 100 µs to 10 s, in nanoseconds.
pub const DURATIONS: Bounds = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Numbers of things, by powers of two.
pub const COUNTS: Bounds = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768];

/// How often which values occurred: one count for each bound, one for what is above all of them, and the sum.
#[derive(Debug, Default)]
pub struct Distribution {
    counts: [Tally; 17],
    sum: Tally,
}

/// Distributions added up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum {
    /// Values at most as large as each bound and larger than the one before; last: above all.
    pub counts: [u64; 17],
    /// Of all values.
    pub sum: u64,
}

impl Distribution {
    /// Notes a value; for the one thread that writes.
    pub fn note(&self, bounds: &Bounds, value: u64) {
        self.counts[place(bounds, value)].add(1);
        self.sum.add(value);
    }

    /// Notes a value; for any number of threads.
    pub fn note_shared(&self, bounds: &Bounds, value: u64) {
        self.counts[place(bounds, value)].add_shared(1);
        self.sum.add_shared(value);
    }

    /// Adds this one to others.
    pub fn add_to(&self, sum: &mut Sum) {
        for (all, count) in sum.counts.iter_mut().zip(&self.counts) {
            *all += count.get();
        }
        sum.sum += self.sum.get();
    }
}

fn place(bounds: &Bounds, value: u64) -> usize {
    bounds.partition_point(|bound| *bound < value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_the_first_bucket_that_is_not_below_it() {
        let check = |bounds: &Bounds, value, index| assert_eq!(place(bounds, value), index, "{value}");
        check(&DURATIONS, 0, 0);
        check(&DURATIONS, 100_000, 0);
        check(&DURATIONS, 100_001, 1);
        check(&DURATIONS, 10_000_000_000, 15);
        check(&DURATIONS, u64::MAX, 16);
        check(&COUNTS, 3, 2);
    }

    #[test]
    fn distributions_add_up() {
        let (left, right) = (Distribution::default(), Distribution::default());
        left.note(&COUNTS, 1);
        left.note(&COUNTS, 3);
        right.note_shared(&COUNTS, 1_000_000);
        let mut sum = Sum::default();
        left.add_to(&mut sum);
        right.add_to(&mut sum);
        assert_eq!((sum.counts[0], sum.counts[2], sum.counts[16], sum.sum), (1, 1, 1, 1_000_004));
    }
}
