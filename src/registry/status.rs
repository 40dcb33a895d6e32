//! The status of a pixel, computed from the moment of its newest accepted event.
//!
//! Each pixel has one [`Slot`], shared by all snapshots of the directory, so that a swap loses nothing. The hot path
//! writes to it at most once a second; the registry's keeper thread persists what changed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::time::Timestamp;

/// How long one event keeps a pixel active (contract §4).
const ACTIVE_MS: u64 = 24 * 60 * 60 * 1000;
/// Within this span a newer event isn't written: keeps the slot's cache line shared between workers under load, and
/// is far below what a status can show.
const GRANULARITY_MS: u64 = 1000;
/// A busy pixel is told to the authority at most this often: its status shows days.
const TOLD_FOR_MS: u64 = 60_000;
/// `Slot` value of a pixel without an event.
const NEVER: u64 = 0;

/// What the management API calls `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// No event yet.
    Unverified,
    /// At least one event in the last 24 hours.
    Active,
    /// Events, but none in the last 24 hours.
    Inactive,
}

impl Status {
    /// The published word.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Unverified => "Unverified",
            Status::Active => "Active",
            Status::Inactive => "Inactive",
        }
    }
}

/// When a pixel fired last, and how much of that is on disk.
#[derive(Debug, Default)]
pub(super) struct Slot {
    last_event_ms: AtomicU64,
    persisted_ms: AtomicU64,
    /// As told to the authority of a fleet.
    reported_ms: AtomicU64,
}

impl Slot {
    /// A slot as stored.
    pub(super) fn stored(last_event: Option<Timestamp>) -> Slot {
        let ms = last_event.map_or(NEVER, |time| time.0);
        Slot { last_event_ms: AtomicU64::new(ms), persisted_ms: AtomicU64::new(ms), ..Slot::default() }
    }

    /// Notes an event; true if it is the pixel's first.
    pub(super) fn note(&self, now: Timestamp) -> bool {
        let last = self.last_event_ms.load(Relaxed);
        // Also written when the clock was set back, so that a pixel doesn't stay active for the length of the jump.
        if last == NEVER || now.0.abs_diff(last) >= GRANULARITY_MS {
            self.last_event_ms.store(now.0.max(NEVER + 1), Relaxed);
        }
        last == NEVER
    }

    /// Takes over an event of another node; true if it is the pixel's first. Times only go forward, as reports may come
    /// late; the caller sees to it that none is of the future.
    pub(super) fn note_elsewhere(&self, time: Timestamp) -> bool {
        time.0 > NEVER && self.last_event_ms.fetch_max(time.0, Relaxed) == NEVER
    }

    /// The newest event if it is to be told to the authority: at once, but not again within [`TOLD_FOR_MS`].
    pub(super) fn unreported(&self, now: Timestamp) -> Option<Timestamp> {
        let reported = self.reported_ms.load(Relaxed);
        let due = reported == NEVER || now.0.abs_diff(reported) >= TOLD_FOR_MS;
        self.last_event().filter(|time| time.0 != reported && due)
    }

    /// Marks an event time as told.
    pub(super) fn reported(&self, time: Timestamp) {
        self.reported_ms.store(time.0, Relaxed);
    }

    /// The newest event.
    pub(super) fn last_event(&self) -> Option<Timestamp> {
        match self.last_event_ms.load(Relaxed) {
            NEVER => None,
            ms => Some(Timestamp(ms)),
        }
    }

    /// The newest event if the store doesn't know it yet.
    pub(super) fn unpersisted(&self) -> Option<Timestamp> {
        self.last_event().filter(|time| time.0 != self.persisted_ms.load(Relaxed))
    }

    /// What was last stored; 0 if nothing.
    pub(super) fn persisted_ms(&self) -> u64 {
        self.persisted_ms.load(Relaxed)
    }

    /// Takes over an event time that another node stored.
    pub(super) fn hear(&self, time: Timestamp) {
        self.persisted_ms.fetch_max(time.0, Relaxed);
        self.last_event_ms.fetch_max(time.0, Relaxed);
    }

    /// Marks an event time as stored.
    pub(super) fn persisted(&self, time: Timestamp) {
        self.persisted_ms.store(time.0, Relaxed);
    }

    /// The status at a moment.
    pub(super) fn status(&self, now: Timestamp) -> Status {
        match self.last_event() {
            None => Status::Unverified,
            Some(last) if now.0.saturating_sub(last.0) < ACTIVE_MS => Status::Active,
            Some(_) => Status::Inactive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_follows_the_newest_event() {
        let slot = Slot::default();
        assert_eq!(slot.status(Timestamp(5_000_000_000)), Status::Unverified);
        assert!(slot.note(Timestamp(10_000)));
        assert!(!slot.note(Timestamp(10_500)), "only the first is the first");
        assert_eq!(slot.last_event(), Some(Timestamp(10_000)), "within a second nothing is written");
        assert_eq!(slot.status(Timestamp(10_000 + ACTIVE_MS - 1)), Status::Active);
        assert_eq!(slot.status(Timestamp(10_000 + ACTIVE_MS)), Status::Inactive);
        assert_eq!(slot.status(Timestamp(0)), Status::Active, "a clock set back doesn't age a pixel");
    }

    #[test]
    fn a_clock_set_back_is_followed() {
        let slot = Slot::stored(Some(Timestamp(9_000_000_000)));
        slot.note(Timestamp(1_000_000));
        assert_eq!(slot.last_event(), Some(Timestamp(1_000_000)));
    }

    #[test]
    fn events_of_other_nodes_only_move_time_forward() {
        let slot = Slot::default();
        assert!(!slot.note_elsewhere(Timestamp(0)) && slot.last_event().is_none());
        assert!(slot.note_elsewhere(Timestamp(5000)));
        assert!(!slot.note_elsewhere(Timestamp(9000)) && !slot.note_elsewhere(Timestamp(7000)));
        assert_eq!(slot.last_event(), Some(Timestamp(9000)));
    }

    #[test]
    fn a_pixel_is_told_at_once_and_then_once_a_minute() {
        let slot = Slot::stored(Some(Timestamp(5000)));
        let due = |ms| slot.unreported(Timestamp(ms)).map(|time| time.0);
        assert_eq!(due(5000), Some(5000), "also what was stored before a restart");
        slot.reported(Timestamp(5000));
        assert_eq!(due(500_000), None);
        slot.note(Timestamp(7000));
        assert_eq!(due(64_999), None);
        assert_eq!(due(65_000), Some(7000));
    }

    #[test]
    fn only_what_changed_wants_to_be_persisted() {
        let slot = Slot::stored(Some(Timestamp(5000)));
        assert_eq!(slot.unpersisted(), None);
        slot.note(Timestamp(7000));
        assert_eq!(slot.unpersisted(), Some(Timestamp(7000)));
        slot.persisted(Timestamp(7000));
        assert_eq!(slot.unpersisted(), None);
    }
}
