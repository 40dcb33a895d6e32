//! Waiting for the client library in steps, and noticing that it no longer works.

use std::time::Duration;

use super::Options;

/// No delivery report for this long with records under way: the client is stuck and is made again. Records time out
/// before that, unless the client itself no longer works.
pub(super) const WATCHDOG_GRACE: Duration = Duration::from_secs(5);
/// Steps of waiting for the client.
pub(super) const STEPS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));
/// So many short steps, then long ones.
const SHORT_STEPS: u32 = 200;

/// Waiting for the client in steps, and noticing that nothing moves.
pub(super) struct Wait {
    limit: Duration,
    steps: u32,
    still: Duration,
    last: i32,
}

impl Wait {
    pub(super) fn new(options: &Options) -> Wait {
        Wait { limit: options.transaction_timeout + WATCHDOG_GRACE, steps: 0, still: Duration::ZERO, last: 0 }
    }

    /// Waits a step: by a clock that doesn't jump, which those of the library do.
    pub(super) fn step(&mut self) {
        self.steps += 1;
        let step = if self.steps <= SHORT_STEPS { STEPS.0 } else { STEPS.1 };
        self.still += step;
        std::thread::sleep(step);
    }

    pub(super) fn is_stuck(&mut self, in_flight: i32) -> bool {
        if in_flight != self.last {
            (self.last, self.still) = (in_flight, Duration::ZERO);
        }
        in_flight > 0 && self.still >= self.limit
    }
}
