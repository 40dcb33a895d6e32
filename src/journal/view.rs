//! What readers may see: the index of segments and the durable end. One owner updates it, readers wait on it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::segment::Segment;
use crate::record::Position;

/// The readable part of a journal at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Segments, oldest first. Shared, as it changes only with rotation and removal.
    pub segments: Arc<Vec<Segment>>,
    /// Position after the last durable record.
    pub end: Position,
    /// Event records before `end`.
    pub events: u64,
}

/// The shared cell. The lock is held for a few assignments only; no other lock is taken under it.
#[derive(Debug)]
pub struct View {
    snapshot: Mutex<Snapshot>,
    advanced: Condvar,
}

impl View {
    /// A view of recovered or inspected state.
    pub fn new(segments: &VecDeque<Segment>, end: Position, events: u64) -> View {
        let segments = Arc::new(segments.iter().cloned().collect());
        View { snapshot: Mutex::new(Snapshot { segments, end, events }), advanced: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        // Nothing can panic between the assignments below, so a poisoned lock still guards whole values.
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the present state.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Position after the last durable record.
    pub fn end(&self) -> Position {
        self.lock().end
    }

    /// More became durable.
    pub fn advance(&self, end: Position, events: u64) {
        let mut snapshot = self.lock();
        snapshot.end = end;
        snapshot.events = events;
        drop(snapshot);
        self.advanced.notify_all();
    }

    /// Segments came or went.
    pub fn replace(&self, segments: &VecDeque<Segment>) {
        let last = segments.back().cloned();
        let segments = Arc::new(segments.iter().cloned().collect());
        let mut snapshot = self.lock();
        snapshot.segments = segments;
        // A segment is opened when all before it is durable; in `written` mode nobody may have said so yet.
        if let Some(last) = last.filter(|last| last.base > snapshot.end) {
            (snapshot.end, snapshot.events) = (last.base, last.events_before);
            drop(snapshot);
            self.advanced.notify_all();
        }
    }

    /// Waits until more than `from` is durable, at most `timeout`. Returns the durable end.
    pub fn wait(&self, from: Position, timeout: Duration) -> Position {
        let guard = self.lock();
        let (guard, _) = self
            .advanced
            .wait_timeout_while(guard, timeout, |snapshot| snapshot.end <= from)
            .unwrap_or_else(PoisonError::into_inner);
        guard.end
    }

    /// Wakes all waiters, as at closing.
    pub fn wake(&self) {
        self.advanced.notify_all();
    }
}
