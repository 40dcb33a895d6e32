//! The registry's own threads: one stores event times every few seconds and tries a failed store again, one asks a
//! shared database what is new.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use super::shared::INTERVAL;
use super::{Error, Inner};

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
    /// Runs `work` until it is stopped.
    pub(super) fn start(inner: Arc<Inner>, name: &str, work: fn(&Inner, &AtomicBool)) -> std::io::Result<Keeper> {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let handle = thread::Builder::new().name(name.into()).spawn(move || work(&inner, &stop))?;
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

/// Asks a shared database, and keeps asking while it is away. Changes are told where they are noticed.
pub(super) fn follow(inner: &Inner, stopping: &AtomicBool) {
    let mut refused = false;
    while let Some(shared) = inner.shared.as_ref().filter(|_| !stopping.load(Ordering::Acquire)) {
        thread::park_timeout(INTERVAL);
        match inner.follow(shared) {
            Err(error @ Error::Newer { .. }) if !refused => {
                refused = true;
                tracing::error!(%error, "registry.database was brought to a newer schema: update this program");
            }
            _ => {}
        }
    }
}

/// Stores event times, repairs the store.
pub(super) fn keep(inner: &Inner, stopping: &AtomicBool) {
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
        match inner.persist(false) {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "the newest event times of pixels can't be stored");
            }
            Err(_) => {}
        }
    }
}
