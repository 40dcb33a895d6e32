//! A clock that moves only when told, wall and monotonic time apart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::time::{Clock, Timestamp};

/// Moves only when told.
pub struct ManualClock {
    wall_ms: AtomicU64,
    monotonic_ms: AtomicU64,
}

impl ManualClock {
    /// Some day in 2004.
    pub fn new() -> ManualClock {
        ManualClock { wall_ms: AtomicU64::new(1 << 40), monotonic_ms: AtomicU64::new(1000) }
    }

    /// Both go on.
    pub fn pass(&self, ms: u64) {
        self.monotonic_ms.fetch_add(ms, Ordering::Relaxed);
        self.wall_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Somebody sets the wall clock.
    pub fn jump_to(&self, ms: u64) {
        self.wall_ms.store(ms, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.wall_ms.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.monotonic_ms.load(Ordering::Relaxed))
    }
}
