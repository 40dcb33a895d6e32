//! Which segment may go: a pure decision.
//!
//! Only published segments go for age or room; without Kafka the oldest goes for either, and what it held expires.

use std::time::Duration;

use crate::record::Position;

/// What is known of the oldest segment and of the whole.
#[derive(Clone, Copy, Debug)]
pub struct Oldest {
    /// Position after its last record.
    pub end: Position,
    /// How long ago it was closed.
    pub age: Duration,
    /// Where publishing stands.
    pub cursor: Position,
    /// Room is short: `max_bytes` or the file system leaves no place for another segment.
    pub short_of_room: bool,
    /// Whether records leave by Kafka.
    pub publishes: bool,
    /// How long segments are kept.
    pub retention: Duration,
}

/// What to do with the oldest segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It stays.
    Keep,
    /// It goes; all in it was published.
    Remove,
    /// It goes; what in it was not published is counted as expired.
    Expire,
}

impl Oldest {
    /// The decision.
    pub fn verdict(&self) -> Verdict {
        let due = self.short_of_room || self.age >= self.retention;
        if !due {
            return Verdict::Keep;
        }
        match (self.end <= self.cursor, self.publishes) {
            (true, _) => Verdict::Remove,
            (false, true) => Verdict::Keep,
            (false, false) => Verdict::Expire,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unpublished_record_never_goes_while_kafka_is_set() {
        for short_of_room in [false, true] {
            let oldest = Oldest {
                end: Position(10),
                age: Duration::MAX,
                cursor: Position(9),
                short_of_room,
                publishes: true,
                retention: Duration::ZERO,
            };
            assert_eq!(oldest.verdict(), Verdict::Keep);
            assert_eq!(Oldest { publishes: false, ..oldest }.verdict(), Verdict::Expire);
            assert_eq!(Oldest { cursor: Position(10), ..oldest }.verdict(), Verdict::Remove);
        }
    }

    #[test]
    fn a_published_segment_stays_while_young_and_room_lasts() {
        let young = Oldest {
            end: Position(10),
            age: Duration::from_secs(59),
            cursor: Position(20),
            short_of_room: false,
            publishes: true,
            retention: Duration::from_secs(60),
        };
        assert_eq!(young.verdict(), Verdict::Keep);
        assert_eq!(Oldest { short_of_room: true, ..young }.verdict(), Verdict::Remove);
        assert_eq!(Oldest { age: Duration::from_secs(60), ..young }.verdict(), Verdict::Remove);
    }
}
