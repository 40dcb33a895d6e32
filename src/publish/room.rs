//! How many records a transaction may have so that it is over in time.
//!
//! Kafka ends a transaction that lasts longer than `kafka.transaction_timeout`, and what was sent with it. One that
//! holds more than a slow way to Kafka takes within that time would be tried for ever: so after such an end the next
//! has half as many, and it grows again as long as there is time to spare.

use std::time::Duration;

/// Limits above this are none: more records than a transaction can hold.
pub(super) const NO_LIMIT: u64 = 1 << 24;
/// Part of the time allowed that a transaction may take and the next have twice as many records: then that one is in
/// time if all of the time was the records', and most of it seldom is.
const PLENTY: u32 = 2;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Room {
    records: u64,
    /// So many were too many the last time.
    too_many: u64,
}

impl Default for Room {
    fn default() -> Room {
        Room { records: NO_LIMIT, too_many: NO_LIMIT }
    }
}

impl Room {
    /// Most records that a transaction may have.
    pub(super) fn records(self) -> u64 {
        self.records
    }

    /// So many records were not delivered. What failed before the time `allowed` was over failed for another reason.
    pub(super) fn failed(&mut self, sent: u64, took: Duration, allowed: Duration) {
        if sent > 1 && took >= allowed {
            *self = Room { records: sent / 2, too_many: sent };
        }
    }

    /// So many were, and it took a part of the time `allowed`.
    pub(super) fn went_through(&mut self, sent: u64, took: Duration, allowed: Duration) {
        if sent >= self.too_many {
            self.too_many = NO_LIMIT;
        }
        // What fewer records than it may have took tells nothing of more.
        if sent < self.records || took > allowed / 4 * 3 {
            return;
        }
        let twice = self.records * 2;
        let is_plenty = took <= allowed / PLENTY && twice < self.too_many;
        self.records = if is_plenty { twice } else { self.records + self.records.div_ceil(8) };
        self.records = self.records.min(NO_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALLOWED: Duration = Duration::from_secs(15);

    /// Offers `left` records to a way that takes so many a second; how many tries, and how many of them were in vain.
    fn deliver(room: &mut Room, mut left: u64, per_second: u64) -> (u64, u64) {
        let (mut tries, mut failures) = (0, 0);
        while left > 0 {
            tries += 1;
            let sent = left.min(room.records());
            let took = Duration::from_millis(1000 * sent / per_second);
            if took > ALLOWED {
                failures += 1;
                room.failed(sent, ALLOWED, ALLOWED);
            } else {
                left -= sent;
                room.went_through(sent, took, ALLOWED);
            }
        }
        (tries, failures)
    }

    proptest! {
        #[test]
        fn whatever_the_way_takes_all_of_it_arrives(per_second in 1u64..100_000, left in 1u64..1_000_000) {
            let mut room = Room::default();
            let (tries, failures) = deliver(&mut room, left, per_second);
            // Halved until it fits, and never again too many, since it grows only while there is time to spare.
            prop_assert!(failures <= 20, "{failures} in vain of {tries}");
            prop_assert!(tries <= 64 + left / per_second, "{tries} for {left} at {per_second}");
        }
    }

    #[test]
    fn one_record_is_always_tried_and_large_transactions_come_back() {
        let mut room = Room::default();
        for _ in 0..40 {
            room.failed(room.records(), ALLOWED, ALLOWED);
        }
        assert_eq!(room.records(), 1);
        let (tries, failures) = deliver(&mut room, 1_000_000, 10_000_000);
        assert_eq!(failures, 0);
        assert!(tries < 40, "{tries}");
    }

    #[test]
    fn a_transaction_that_takes_long_whatever_it_holds_soon_holds_much() {
        let mut room = Room::default();
        room.failed(20, ALLOWED, ALLOWED);
        for _ in 0..20 {
            room.went_through(room.records(), ALLOWED / 3, ALLOWED);
        }
        assert!(room.records() > 100_000, "{room:?}");
    }

    #[test]
    fn what_fails_at_once_bounds_nothing() {
        let mut room = Room::default();
        room.failed(2, Duration::from_millis(1), ALLOWED);
        room.failed(10_000, ALLOWED - Duration::from_millis(1), ALLOWED);
        assert_eq!(room, Room::default());
    }

    #[test]
    fn few_records_that_take_long_bound_nothing_more() {
        let mut room = Room { records: 100, too_many: 200 };
        room.went_through(10, ALLOWED, ALLOWED);
        room.went_through(10, Duration::ZERO, ALLOWED);
        assert_eq!(room, Room { records: 100, too_many: 200 });
    }
}
