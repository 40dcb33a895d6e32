//! The publisher's figures: what holds it up, what went wrong how often, and when it last went well.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::record::Position;

/// What keeps records from leaving.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Cause {
    /// Nothing does.
    None = 0,
    /// No answer.
    Unreachable,
    /// Credentials are refused.
    Authentication,
    /// Rights are missing.
    Authorization,
    /// The topic is not there and may not be made.
    UnknownTopic,
    /// The partition that carries the cursor can't be used.
    CursorPartition,
    /// Kafka refuses our time stamps.
    Clock,
    /// A quota, a policy, or a limit that no record meets.
    Quota,
    /// Another process publishes with this identity.
    Fenced,
    /// The schema registry gives no id for the records' schema.
    SchemaRegistry,
    /// `journal.on_damage = "stop"`, or a disk that can't be read.
    Damage,
}

/// How a single error is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// No answer in time.
    Timeout = 0,
    /// The transaction had to be given up.
    Abortable,
    /// The client was no longer usable.
    Fatal,
    /// Another producer of the same identity.
    Fenced,
    /// A broker said no.
    Refused,
}

/// Figures. Counters count since the start of the process.
#[derive(Debug, Default)]
pub struct Stats {
    blocked: AtomicU64,
    errors: [AtomicU64; 5],
    /// Connected clients that were dropped and made again.
    pub restarts: AtomicU64,
    /// Unix milliseconds of the last commit; 0 = none yet.
    pub last_success_ms: AtomicU64,
    /// Rejected records that were not delivered; best effort.
    pub rejects_dropped: AtomicU64,
    /// Unix milliseconds of the last `complete_until` that was reported; 0 = none yet.
    pub complete_until_ms: AtomicU64,
    /// There is a topic for such reports.
    pub reports_progress: AtomicBool,
    reached: AtomicU64,
    at_end: AtomicBool,
    in_hand: AtomicBool,
}

impl Stats {
    /// The words of all causes, as metric labels.
    pub const CAUSES: [(&'static str, Cause); 10] = [
        ("unreachable", Cause::Unreachable),
        ("authentication", Cause::Authentication),
        ("authorization", Cause::Authorization),
        ("unknown_topic", Cause::UnknownTopic),
        ("cursor_partition", Cause::CursorPartition),
        ("clock", Cause::Clock),
        ("quota", Cause::Quota),
        ("fenced", Cause::Fenced),
        ("schema_registry", Cause::SchemaRegistry),
        ("damage", Cause::Damage),
    ];

    /// The words of all kinds of errors, as metric labels.
    pub const ERRORS: [(&'static str, ErrorKind); 5] = [
        ("timeout", ErrorKind::Timeout),
        ("abortable", ErrorKind::Abortable),
        ("fatal", ErrorKind::Fatal),
        ("fenced", ErrorKind::Fenced),
        ("refused", ErrorKind::Refused),
    ];

    /// Whether publishing is held up by this.
    pub fn is_blocked_by(&self, cause: Cause) -> bool {
        self.blocked.load(Ordering::Relaxed) == cause as u64
    }

    /// The word for what holds publishing up; `None` if nothing does.
    pub fn blocked(&self) -> Option<&'static str> {
        Stats::CAUSES.iter().find(|(_, cause)| self.is_blocked_by(*cause)).map(|(word, _)| *word)
    }

    /// How many errors of a kind there were.
    pub fn errors(&self, kind: ErrorKind) -> u64 {
        self.errors[kind as usize].load(Ordering::Relaxed)
    }

    /// Everything before this position is dealt with: delivered, parked, or known to be lost.
    pub fn reached(&self) -> Position {
        Position(self.reached.load(Ordering::Acquire))
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at_end.load(Ordering::Acquire)
    }

    pub(super) fn end(&self) {
        self.at_end.store(true, Ordering::Release);
    }

    /// Whether records are with Kafka whose fate is not known yet.
    pub(super) fn has_in_hand(&self) -> bool {
        self.in_hand.load(Ordering::SeqCst)
    }

    pub(super) fn take_in_hand(&self, is: bool) {
        self.in_hand.store(is, Ordering::SeqCst);
    }

    pub(super) fn reach(&self, position: Position) {
        self.reached.store(position.0, Ordering::Release);
    }

    pub(super) fn block(&self, cause: Cause) {
        self.blocked.store(cause as u64, Ordering::Relaxed);
    }

    pub(super) fn count(&self, kind: ErrorKind) {
        self.errors[kind as usize].fetch_add(1, Ordering::Relaxed);
    }
}
