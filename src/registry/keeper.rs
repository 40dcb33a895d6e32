//! The registry's own thread: stores event times every few seconds, and tries a failed store again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use super::Inner;

/// How much of the newest event times a crash can lose, and how soon a repaired disk is noticed.
const PERIOD: Duration = Duration::from_secs(2);

/// The running thread.
pub(super) struct Keeper {
    stopping: Arc<AtomicBool>,
    thread: Thread,
    /// Taken by the first stop.
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    pub(super) fn start(inner: Arc<Inner>) -> std::io::Result<Keeper> {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let handle = thread::Builder::new().name("registry-keeper".into()).spawn(move || run(&inner, &stop))?;
        Ok(Keeper { stopping, thread: handle.thread().clone(), handle: Mutex::new(Some(handle)) })
    }

    /// Has it store what changed now.
    pub(super) fn wake(&self) {
        self.thread.unpark();
    }

    /// Ends it and waits for that.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.thread.unpark();
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if handle.is_some_and(|handle| handle.join().is_err()) {
            tracing::error!("the registry's keeper thread panicked");
        }
    }
}

fn run(inner: &Inner, stopping: &AtomicBool) {
    let mut failing = false;
    while !stopping.load(Ordering::Acquire) {
        thread::park_timeout(PERIOD);
        // Not on the way out: what is known must still be stored, but nobody asks for a repair.
        if !stopping.load(Ordering::Acquire) {
            match inner.recover() {
                Ok(true) => tracing::info!("the registry can be written again"),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "the registry could be opened again, but not used"),
            }
        }
        // Told once per change: a full disk would fill the log, too.
        match inner.persist() {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "the newest event times of pixels can't be stored");
            }
            Err(_) => {}
        }
    }
}
