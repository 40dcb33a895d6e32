//! Seeded numbers: the seed of a failed run is in its output and makes it run the same way again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64: enough to pick moments and sizes.
pub struct Random(u64);

impl Random {
    /// From a seed of one's own.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// From `PIXELGATE_TEST_SEED`, else from the clock; says which.
    pub fn from_environment() -> Random {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let given = std::env::var("PIXELGATE_TEST_SEED").ok();
        let seed = given.map_or_else(now, |text| text.parse().expect("PIXELGATE_TEST_SEED is a number"));
        eprintln!("seed: PIXELGATE_TEST_SEED={seed}");
        Random(seed)
    }

    /// What makes the same numbers from here on.
    #[cfg(feature = "e2e")]
    pub fn seed(&self) -> u64 {
        self.0
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A time from `low` to `high` milliseconds.
    pub fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(low + self.next() % (high - low + 1))
    }
}
