//! Which unknown ids are seen often, so that the upstream is asked about them: once, and never by a request.
//!
//! A fixed table counts on the hot path: one atomic word per place, no lock, no allocation, and a lost race loses a
//! sighting. An id takes another's place only when that one's count is worn down, so a flood of ids that come once each
//! doesn't hide the one that comes again and again. What is seen often goes through a bounded queue to
//! `super::lookups`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::pixel::PixelId;

/// Sightings within one [`WINDOW`] that make an id worth a question. A typing error on a page that is never loaded
/// isn't; the pixel of a page that has just gone live is, within its first visitors.
pub(super) const OFTEN: u64 = 10;
/// What sightings must lie within; then counting begins anew.
const WINDOW: Duration = Duration::from_secs(600);
/// 32 KiB in all.
const PLACES: usize = 4096;
/// Ids that wait for their question. What finds no room is counted anew.
const QUEUE: usize = 64;

/// A place's word: 32 bits that tell ids apart, 16 of the window's number, 16 of the count.
#[derive(Clone, Copy)]
struct Place {
    mark: u64,
    window: u64,
    count: u64,
}

impl Place {
    fn unpack(word: u64) -> Place {
        Place { mark: word >> 32, window: word >> 16 & 0xffff, count: word & 0xffff }
    }

    fn pack(self) -> u64 {
        self.mark << 32 | self.window << 16 | self.count
    }

    /// After one more sighting; a count above [`OFTEN`] doesn't grow.
    fn seen(self, mark: u64, window: u64) -> Place {
        match self {
            Place { window: old, .. } if old != window => Place { mark, window, count: 1 },
            Place { mark: own, count, .. } if own == mark => Place { count: (count + 1).min(OFTEN + 1), ..self },
            Place { count: 0 | 1, .. } => Place { mark, window, count: 1 },
            Place { count, .. } => Place { count: count - 1, ..self },
        }
    }
}

/// See the module.
pub(super) struct Unknowns {
    places: Box<[AtomicU64]>,
    /// Ids are any client's choice.
    hasher: ahash::RandomState,
    often: SyncSender<PixelId>,
    /// For the one who asks.
    asked_for: Mutex<Option<Receiver<PixelId>>>,
}

impl Unknowns {
    pub(super) fn new() -> Unknowns {
        let (often, receiver) = sync_channel(QUEUE);
        Unknowns {
            places: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
            hasher: ahash::RandomState::new(),
            often,
            asked_for: Mutex::new(Some(receiver)),
        }
    }

    /// Notes that an id came which is not known.
    pub(super) fn saw(&self, id: PixelId, now: Duration) {
        let hash = self.hasher.hash_one(id);
        let (mark, window) = (hash >> 32, (now.as_secs() / WINDOW.as_secs() + 1) & 0xffff);
        let place = &self.places[hash as usize % PLACES];
        let before = place.load(Relaxed);
        let after = Place::unpack(before).seen(mark, window);
        if after.pack() == before || place.compare_exchange(before, after.pack(), Relaxed, Relaxed).is_err() {
            return;
        }
        if after.count == OFTEN && after.mark == mark && self.often.try_send(id).is_err() {
            place.store(Place { count: 0, ..after }.pack(), Relaxed);
        }
    }

    /// The ids that are seen often, to whoever asks first.
    pub(super) fn take(&self) -> Option<Receiver<PixelId>> {
        self.asked_for.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> PixelId {
        PixelId::parse(number.to_string().as_bytes()).unwrap()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_seen_often_is_told_once_per_window_where_nothing_wears_it_down() {
        let unknowns = Unknowns::new();
        let often = unknowns.take().unwrap();
        assert!(unknowns.take().is_none());
        for sighting in 1..100 {
            unknowns.saw(id(7), at(5));
            assert_eq!(often.try_recv().is_ok(), sighting == OFTEN, "{sighting}");
        }
        for _ in 1..OFTEN {
            unknowns.saw(id(7), at(605));
        }
        assert!(often.try_recv().is_err(), "a new window counts anew");
        unknowns.saw(id(7), at(605));
        assert_eq!(often.try_recv(), Ok(id(7)));
    }

    #[test]
    fn a_flood_of_ids_that_come_once_tells_nothing_and_hides_nothing() {
        let unknowns = Unknowns::new();
        let often = unknowns.take().unwrap();
        for number in 0..500_000 {
            unknowns.saw(id(1_000_000 + number), at(5));
        }
        assert!(often.try_recv().is_err());
        for number in 0..500_000 {
            unknowns.saw(id(2_000_000 + number), at(5));
            // One in 500, where a place gets one in 4,096.
            if number % 500 == 0 {
                unknowns.saw(id(7), at(5));
            }
        }
        assert_eq!(often.try_recv(), Ok(id(7)));
        // Worn down and seen often again, perhaps.
        assert!(often.try_iter().all(|told| told == id(7)));
    }

    #[test]
    fn a_full_queue_loses_no_id_for_good() {
        let unknowns = Unknowns::new();
        let often = unknowns.take().unwrap();
        for number in 1..=QUEUE as u64 * 2 {
            (0..OFTEN).for_each(|_| unknowns.saw(id(number), at(5)));
        }
        let told = often.try_iter().count();
        assert_eq!(told, QUEUE);
        (0..2 * OFTEN).for_each(|_| unknowns.saw(id(QUEUE as u64 * 2), at(5)));
        assert_eq!(often.try_recv(), Ok(id(QUEUE as u64 * 2)));
    }
}
