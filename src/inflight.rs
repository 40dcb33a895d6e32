//! Bytes in flight: bodies that are being read and records that wait for the disk, under one bound.
//!
//! What is over it is refused at once. Bodies alone may take three quarters, so that senders of slow bodies can't shut
//! out requests that have none.

use std::sync::atomic::{AtomicU64, Ordering};

/// Room until somebody says otherwise: a fifth of a second of a disk that writes 160 MB/s, far above any real rate.
pub const DEFAULT_BYTES: u64 = 32 << 20;

/// The bound and what is under it. All in one cache line: every record touches it anyway.
#[derive(Debug)]
pub struct Inflight {
    most: AtomicU64,
    bodies: AtomicU64,
    records: AtomicU64,
}

impl Default for Inflight {
    fn default() -> Inflight {
        Inflight { most: AtomicU64::new(DEFAULT_BYTES), bodies: AtomicU64::new(0), records: AtomicU64::new(0) }
    }
}

impl Inflight {
    /// Sets the bound.
    pub fn bound(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// The bytes of bodies and of records at this moment.
    pub fn now(&self) -> (u64, u64) {
        (self.bodies.load(Ordering::Relaxed), self.records.load(Ordering::Relaxed))
    }

    /// A body of no bytes yet.
    pub fn body(&self) -> Body<'_> {
        Body { inflight: self, bytes: 0 }
    }

    /// Counts a record in and returns all that wait, itself included: the caller looks whether that is too much.
    pub fn add_record(&self, bytes: u64) -> u64 {
        self.records.fetch_add(bytes, Ordering::AcqRel) + bytes
    }

    /// Whether so many bytes of records have room beside the bodies.
    pub fn has_room_for(&self, records: u64) -> bool {
        records.saturating_add(self.bodies.load(Ordering::Relaxed)) <= self.most.load(Ordering::Relaxed)
    }

    /// Records have gone: to the disk, or nowhere.
    pub fn remove_records(&self, bytes: u64) {
        self.records.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// A body's share. It is given back when this is dropped, whatever became of the request.
#[derive(Debug)]
pub struct Body<'a> {
    inflight: &'a Inflight,
    bytes: u64,
}

impl Body<'_> {
    /// Takes room for further bytes; false, and nothing taken, if there is none.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        let Inflight { most, bodies, records } = self.inflight;
        let bytes = bytes as u64;
        let all = bodies.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let most = most.load(Ordering::Relaxed);
        // One alone may have it all, else a small bound would let none in.
        let is_alone = all == self.bytes + bytes;
        let share = if is_alone { most } else { most - most / 4 };
        if all <= share && all.saturating_add(records.load(Ordering::Relaxed)) <= most {
            self.bytes += bytes;
            return true;
        }
        bodies.fetch_sub(bytes, Ordering::AcqRel);
        false
    }
}

impl Drop for Body<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.inflight.bodies.fetch_sub(self.bytes, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inflight(most: u64) -> Inflight {
        let inflight = Inflight::default();
        inflight.bound(most);
        inflight
    }

    #[test]
    fn bodies_and_records_share_one_bound() {
        let inflight = inflight(100);
        assert!(inflight.has_room_for(inflight.add_record(60)));
        let mut body = inflight.body();
        assert!(body.grow(30) && body.grow(10) && !body.grow(1));
        assert!(!inflight.has_room_for(inflight.add_record(1)));
        inflight.remove_records(1);
        assert_eq!(inflight.now(), (40, 60));
        inflight.remove_records(60);
        assert!(body.grow(60), "one alone may have it all");
        drop(body);
        assert_eq!(inflight.now(), (0, 0));
    }

    #[test]
    fn bodies_leave_a_quarter_to_requests_without() {
        let inflight = inflight(100);
        let (mut one, mut two) = (inflight.body(), inflight.body());
        assert!(one.grow(40) && two.grow(35) && !two.grow(1) && !one.grow(1));
        assert!(inflight.has_room_for(inflight.add_record(25)) && !inflight.has_room_for(inflight.add_record(1)));
        drop(one);
        assert!(two.grow(1));
    }

    #[test]
    fn what_many_take_and_give_adds_up() {
        let inflight = inflight(1000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let mut body = inflight.body();
                        let _ = body.grow(300);
                        assert!(inflight.now().0 <= 4 * 300);
                    }
                });
            }
        });
        assert_eq!(inflight.now(), (0, 0));
    }
}
