//! A small circuit breaker: after some failures in a row the upstream is left alone, and then tried by one call at a
//! time. Pure: the time is given.

use std::time::Duration;

/// Failures in a row that open it. A few, so that one lost connection opens nothing.
const FAILURES: u32 = 5;
/// How long it rests at first; doubled at each failed trial.
const REST: Duration = Duration::from_secs(1);
/// Bound of the doubling.
const REST_MAX: Duration = Duration::from_secs(16);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    rest: Duration,
    /// When the next trial may begin.
    until: Duration,
    /// One is under way.
    trial: bool,
}

impl Breaker {
    /// Whether a call may be made now. A trial keeps others out until it is told of, or for one more rest.
    pub(super) fn admits(&mut self, now: Duration) -> bool {
        match &mut self.open {
            None => true,
            Some(open) if now < open.until => false,
            Some(open) => {
                open.trial = true;
                open.until = now + open.rest;
                true
            }
        }
    }

    /// A call was answered, with whatever status.
    pub(super) fn succeeded(&mut self) {
        *self = Breaker::default();
    }

    /// A call was not answered.
    pub(super) fn failed(&mut self, now: Duration) {
        self.failures = self.failures.saturating_add(1);
        match &mut self.open {
            None if self.failures < FAILURES => {}
            None => self.open = Some(Open { rest: REST, until: now + REST, trial: false }),
            Some(open) if open.trial => {
                let rest = (open.rest * 2).min(REST_MAX);
                *open = Open { rest, until: now + rest, trial: false };
            }
            // Calls from before it opened, which fail one after the other, prove nothing new.
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            for _ in 1..FAILURES {
                breaker.failed(at(0));
            }
            assert!(breaker.admits(at(0)));
            breaker.succeeded();
        }
        for _ in 0..FAILURES {
            breaker.failed(at(0));
        }
        assert!(!breaker.admits(at(0)));
    }

    #[test]
    fn one_trial_at_a_time_and_each_failed_one_doubles_the_rest() {
        let mut breaker = Breaker::default();
        for _ in 0..200 {
            breaker.failed(at(10));
        }
        assert!(breaker.admits(at(11)), "two hundred that hung together are one failure");
        assert!(!breaker.admits(at(11)), "the trial is under way");
        breaker.failed(at(11));
        assert!(!breaker.admits(at(12)));
        assert!(breaker.admits(at(13)));
        assert!(breaker.admits(at(15)), "a trial that never told must not keep it open");
        breaker.succeeded();
        assert!(breaker.admits(at(15)) && breaker.admits(at(15)));
    }

    #[test]
    fn rests_are_bounded() {
        let mut breaker = Breaker::default();
        let mut now = at(0);
        for _ in 0..FAILURES {
            breaker.failed(now);
        }
        for _ in 0..100 {
            now += REST_MAX;
            assert!(breaker.admits(now), "{now:?}");
            breaker.failed(now);
        }
    }
}
