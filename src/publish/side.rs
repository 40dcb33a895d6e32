//! What the lanes beside that of events have in common: rejected records (`super::rejects`) and progress
//! (`super::progress`) go by plain producers, best effort, each on a thread of its own.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;

use super::stats::Stats;

/// A step of waiting.
const STEP: Duration = Duration::from_millis(1);

/// Which of the counters.
type Counter = fn(&Stats) -> &AtomicU64;

/// Deliveries of a producer that failed: the reason of the last, and how many in a counter.
#[derive(Clone, Default)]
pub(super) struct Failures {
    last: Arc<Mutex<Option<Code>>>,
    counter: Option<(Arc<Stats>, Counter)>,
}

impl Failures {
    /// Counted there.
    pub(super) fn counted(stats: Arc<Stats>, counter: Counter) -> Failures {
        Failures { last: Arc::default(), counter: Some((stats, counter)) }
    }

    /// The reason of the last one since this was asked before.
    pub(super) fn take(&self) -> Option<Code> {
        self.last().take()
    }

    fn last(&self) -> MutexGuard<'_, Option<Code>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Failures {
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            *self.last() = error.rdkafka_error_code();
            if let Some((stats, counter)) = &self.counter {
                counter(stats).fetch_add(1, Relaxed);
            }
        }
    }
}

/// Waits for a lane's thread, no longer than `limit`: one that is just connecting is left to its fate.
pub(super) fn join_within(thread: &JoinHandle<()>, limit: Duration) {
    let mut waited = Duration::ZERO;
    while !thread.is_finished() && waited < limit {
        std::thread::sleep(STEP);
        waited += STEP;
    }
}
