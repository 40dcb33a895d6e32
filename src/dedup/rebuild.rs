//! What the journal still has is remembered again after a start: newest segment first, on a thread of its own, within
//! the window and the bound. Until it is done a double of an earlier run may pass; nothing waits for it for long.
//!
//! Only records from before the start are read. Memory: one segment's keys, at most `max_ids`.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Deserialize;

use super::{Dedup, Key};
use crate::journal::{Journal, Next, ReadError};
use crate::pixel::PixelId;
use crate::record::{Kind, Position};
use crate::time::Timestamp;

/// Where an event id stands in a record, if it has one. Elsewhere the quotes would be escaped, or it is a parameter's.
const EVENT_ID: &[u8] = b"\"event_id\":\"";
/// Texts that may stand for others: such an event was not deduplicated.
const CHANGED: [&str; 2] = ["truncated_parameter", "invalid_utf8"];

/// The parts of a record that name its event.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    pixel_id: Cow<'a, str>,
    #[serde(borrow, default)]
    event_name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    event_id: Cow<'a, str>,
    #[serde(default)]
    test: bool,
    #[serde(borrow, default)]
    warnings: Vec<Cow<'a, str>>,
}

/// The thread.
pub struct Rebuild {
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Rebuild {
    /// Starts it. Before events are taken, so that it knows what is from before the start.
    pub fn start(dedup: Arc<Dedup>, max_ids: usize, journal: Journal, now: Timestamp) -> std::io::Result<Rebuild> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut work = Work { dedup, journal, now, stop: stop.clone(), max_ids, room: true };
        let end = work.journal.synced();
        let thread = std::thread::Builder::new().name("dedup".into()).spawn(move || {
            if let Err(error) = work.run(end) {
                tracing::warn!(%error, "event ids of earlier runs could not all be read: doubles of them may pass");
            }
            tracing::debug!(ids = work.dedup.len(), "event ids of earlier runs are known");
        })?;
        Ok(Rebuild { stop, thread: Mutex::new(Some(thread)) })
    }

    /// Whether it is done.
    pub fn is_done(&self) -> bool {
        self.thread().as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends it, done or not.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that reads event ids of earlier runs ended by a fault");
        }
    }

    fn thread(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Work {
    dedup: Arc<Dedup>,
    journal: Journal,
    now: Timestamp,
    stop: Arc<AtomicBool>,
    max_ids: usize,
    /// A key found room when the last segment was remembered.
    room: bool,
}

impl Work {
    fn run(&mut self, end: Position) -> Result<(), ReadError> {
        let mut end = end;
        for base in self.journal.bases().into_iter().rev().filter(|base| *base < end).collect::<Vec<_>>() {
            if !self.room || self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            // A segment whose newest record is too old ends it, too.
            let Some(keys) = self.keys(base, end)? else { return Ok(()) };
            self.room = keys.into_iter().rev().fold(true, |_, (key, age)| self.dedup.remember(key, age));
            end = base;
        }
        Ok(())
    }

    /// Keys of the records of a part, oldest first; `None` if all are from before the window.
    fn keys(&self, from: Position, end: Position) -> Result<Option<VecDeque<(Key, Duration)>>, ReadError> {
        let (mut keys, mut any) = (VecDeque::new(), false);
        let mut reader = self.journal.reader(from);
        while reader.position() < end && !self.stop.load(Ordering::Relaxed) {
            let batch = match reader.read_next()? {
                Next::Batch(batch) => batch,
                Next::Damage(_) | Next::Expired(_) => continue,
                Next::End => break,
            };
            for entry in batch.entries().filter(|entry| entry.position < end) {
                let age = Duration::from_millis(self.now.0.saturating_sub(entry.head.time_ms));
                any |= age.as_secs() <= u64::from(self.dedup.window_seconds);
                if entry.head.kind == Kind::Event
                    && let Some(key) = self.key(entry.body)
                {
                    if keys.len() >= self.max_ids {
                        keys.pop_front();
                    }
                    keys.push_back((key, age));
                }
            }
        }
        Ok(any.then_some(keys))
    }

    fn key(&self, body: &[u8]) -> Option<Key> {
        memchr::memmem::find(body, EVENT_ID)?;
        let named: Named<'_> = serde_json::from_slice(body).ok()?;
        let changed = named.warnings.iter().any(|warning| CHANGED.contains(&&**warning));
        if named.event_id.is_empty() || changed {
            return None;
        }
        let pixel = PixelId::parse(named.pixel_id.as_bytes())?;
        Some(self.dedup.key(pixel, named.event_name.as_deref(), &named.event_id, named.test))
    }
}
