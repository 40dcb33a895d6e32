//! Calls of the client library that may never return, each on a thread of its own and with a limit.
//!
//! `send_offsets_to_transaction` waits for ever if the group's coordinator leaves the cluster, whatever its time-out
//! says (librdkafka 2.12.1, its issues 5456 and 5511). And where `waits.c` is not (musl), all of its waits are by the
//! wall clock: one that is set back by two hours makes each that has begun two hours longer. Who gives up on a
//! call drops the client and connects again; the thread keeps its share of the old client until the call returns. A new
//! client fences the old one, so that nothing that such a call still does can count.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

/// Calls at once, those that nobody waits for any more included: each keeps a thread and a client.
const MOST: usize = 16;

/// The number of calls that have not returned.
pub(super) struct Calls(AtomicUsize);

/// Those of this process.
pub(super) static CALLS: Calls = Calls::none();

/// One call, counted for as long as it runs.
struct Running(&'static Calls);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Calls {
    const fn none() -> Calls {
        Calls(AtomicUsize::new(0))
    }

    fn enter(&'static self) -> Option<Running> {
        let room = |running| (running < MOST).then_some(running + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        Some(Running(self))
    }

    /// What the call returns, if it does so in time. `None` at once if too many have not returned yet.
    pub(super) fn within<R: Send + 'static>(
        &'static self,
        limit: Duration,
        call: impl FnOnce() -> R + Send + 'static,
    ) -> Option<R> {
        let running = self.enter()?;
        let (tell, told) = sync_channel(1);
        let thread = thread::Builder::new().name("kafka call".into()).spawn(move || {
            let result = call();
            drop(running);
            // Nobody may be waiting any more.
            let _ = tell.send(result);
        });
        thread.ok()?;
        told.recv_timeout(limit).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_hangs_is_given_up_and_their_number_is_bounded() {
        static THESE: Calls = Calls::none();
        let long = Duration::from_secs(20);
        assert_eq!(THESE.within(long, || 7), Some(7));
        let mut let_go = Vec::new();
        for _ in 0..MOST {
            let (free, held) = sync_channel::<()>(0);
            let_go.push(free);
            assert_eq!(THESE.within(Duration::from_millis(1), move || held.recv().is_ok()), None);
        }
        assert_eq!(THESE.within(long, || 7), None, "no room for another");
        drop(let_go);
        let mut tries = (0..2000).map(|_| {
            thread::sleep(Duration::from_millis(5));
            THESE.within(long, || 7)
        });
        assert!(tries.any(|answer| answer == Some(7)), "room again when they have returned");
    }
}
