//! Which segment may go, and when the open one is closed so that it may: pure decisions.
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

/// The shortest age at which an open segment is closed: what a new file costs then comes once a minute at most.
const OPEN_AT_LEAST: Duration = Duration::from_secs(60);

/// What is known of the open segment.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// Position of its first record.
    pub base: Position,
    /// Position of the next record.
    pub next: Position,
    /// How long ago it was opened.
    pub age: Duration,
    /// Where publishing stands.
    pub cursor: Position,
    /// Whether records leave by Kafka.
    pub publishes: bool,
    /// How long segments are kept.
    pub retention: Duration,
}

impl Open {
    /// Whether it is to be closed before it is full: the open segment never goes, so on a quiet node its records would
    /// stay for months. With this, none stays longer than twice the retention (and a minute) once it may go.
    pub fn is_due(&self) -> bool {
        // While Kafka is away nothing goes anyhow: one file more by this, not one for each retention that passes.
        let may_go = !self.publishes || self.base <= self.cursor;
        self.base < self.next && self.age >= self.retention.max(OPEN_AT_LEAST) && may_go
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

    #[test]
    fn an_open_segment_is_closed_by_age_where_that_lets_records_go() {
        let old = Open {
            base: Position(10),
            next: Position(11),
            age: Duration::from_secs(3600),
            cursor: Position(10),
            publishes: true,
            retention: Duration::from_secs(3600),
        };
        assert!(old.is_due());
        assert!(!Open { next: Position(10), ..old }.is_due(), "an empty one has nothing to forget");
        assert!(!Open { age: Duration::from_secs(3599), ..old }.is_due());
        assert!(!Open { cursor: Position(9), ..old }.is_due(), "Kafka is away: not a file for each retention");
        assert!(Open { cursor: Position(0), publishes: false, ..old }.is_due());
        let at_once = Open { retention: Duration::ZERO, age: Duration::from_secs(59), ..old };
        assert!(!at_once.is_due(), "not several files a minute");
        assert!(Open { age: Duration::from_secs(60), ..at_once }.is_due());
    }
}
