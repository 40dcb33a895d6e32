//! Durable log of opaque records (full page comes with the implementation).

use std::path::PathBuf;
use std::time::Duration;

/// When a receipt completes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acknowledge {
    /// After fdatasync of the batch.
    Synced,
    /// After the write; synced in the background at least once a second.
    Written,
}

/// What to do with bytes that were durable and are now unreadable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnDamage {
    /// Count, copy away, go on behind it.
    Skip,
    /// Publishing waits for a person.
    Stop,
}

/// How the journal behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// `<data_dir>`; the journal lives in `journal/`, `parked/` and `damaged/` below it.
    pub data_dir: PathBuf,
    /// When a receipt completes.
    pub acknowledge: Acknowledge,
    /// Upper bound of all segments' and parked bytes.
    pub max_bytes: u64,
    /// Size at which a segment is closed.
    pub segment_bytes: u64,
    /// How long published segments are kept while room lasts; without Kafka, how long any are kept.
    pub retention: Duration,
    /// What damage means for publishing.
    pub on_damage: OnDamage,
    /// Whether records leave by Kafka. Without it the oldest segment expires by age or size.
    pub publishes: bool,
}
