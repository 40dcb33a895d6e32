//! What one worker counts: fixed arrays indexed by enums, written by that worker only, added up at a scrape.

use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::cells::{DURATIONS, Distribution, Sum, Tally};
use super::labels::{Method, Route, StatusClass};
use crate::event::rejection::Rejection;
use crate::event::{Warning, Warnings};
use crate::ingest::Ignored;

const CLASSES: usize = StatusClass::ALL.len();
const METHODS: usize = Method::ALL.len();
/// Series of one route.
const PER_ROUTE: usize = METHODS * CLASSES;
/// Series of the request histogram.
const REQUESTS: usize = Route::ALL.len() * PER_ROUTE;

/// One writer's cells. Aligned so that neighbours on the heap don't share a cache line (or the pair that CPUs fetch).
#[repr(align(128))]
#[derive(Debug)]
pub struct Shard {
    rejected: [Tally; Rejection::ALL.len()],
    ignored: [Tally; Ignored::ALL.len()],
    duplicate: Tally,
    anonymised: Tally,
    warnings: [Tally; Warning::ALL.len()],
    rejects_dropped: Tally,
    connections: Tally,
    connections_closed: Tally,
    requests: [Distribution; REQUESTS],
}

impl Default for Shard {
    fn default() -> Shard {
        Shard {
            rejected: Default::default(),
            ignored: Default::default(),
            duplicate: Tally::default(),
            anonymised: Tally::default(),
            warnings: Default::default(),
            rejects_dropped: Tally::default(),
            connections: Tally::default(),
            connections_closed: Tally::default(),
            requests: std::array::from_fn(|_| Distribution::default()),
        }
    }
}

fn series(route: Route, method: Method, class: StatusClass) -> usize {
    route as usize * PER_ROUTE + method as usize * CLASSES + class as usize
}

/// The writing end of a shard. Not `Send`: it stays on its worker's thread, which makes that thread the only writer.
#[derive(Clone, Debug)]
pub struct Worker {
    shard: Arc<Shard>,
    here: PhantomData<Rc<()>>,
}

impl Worker {
    /// The caller sees to it that no other worker writes this shard.
    pub(super) fn new(shard: Arc<Shard>) -> Worker {
        Worker { shard, here: PhantomData }
    }

    /// An event request was refused.
    pub fn rejected(&self, rejection: Rejection) {
        self.shard.rejected[rejection as usize].add(1);
    }

    /// A valid request that is no event.
    pub fn ignored(&self, why: Ignored) {
        self.shard.ignored[why as usize].add(1);
    }

    /// An event that was taken before, by its `event_id`.
    pub fn duplicate(&self) {
        self.shard.duplicate.add(1);
    }

    /// An event whose record leaves out what recognises its visitor again, by the visitor's wish.
    pub fn anonymised(&self) {
        self.shard.anonymised.add(1);
    }

    /// What was repaired in a request that was not refused.
    pub fn warned(&self, warnings: Warnings) {
        for warning in warnings.iter() {
            self.shard.warnings[(warning as u16).trailing_zeros() as usize].add(1);
        }
    }

    /// A rejected request that was to be journaled and is not: its allowance or the journal's room is used up.
    pub fn reject_dropped(&self) {
        self.shard.rejects_dropped.add(1);
    }

    /// A visitor's connection begins, and ends with what this gives.
    pub fn connection(&self) -> Open<'_> {
        self.shard.connections.add(1);
        Open(self)
    }

    /// A request was answered.
    pub fn request(&self, route: Route, method: &str, status: u16, took: Duration) {
        let series = series(route, Method::of(method), StatusClass::of(status));
        self.shard.requests[series].note(&DURATIONS, took.as_nanos() as u64);
    }
}

/// A connection that is counted as open while this lives.
#[derive(Debug)]
pub struct Open<'a>(&'a Worker);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.shard.connections_closed.add(1);
    }
}

impl Shard {
    /// As [`Worker::request`], for the shard that any thread may write: routes that are not hot.
    pub(super) fn request_shared(&self, route: Route, method: &str, status: u16, took: Duration) {
        let series = series(route, Method::of(method), StatusClass::of(status));
        self.requests[series].note_shared(&DURATIONS, took.as_nanos() as u64);
    }
}

/// All shards added up.
#[derive(Debug)]
pub struct Sums {
    /// By [`Rejection`].
    pub rejected: [u64; Rejection::ALL.len()],
    /// By [`Ignored`].
    pub ignored: [u64; Ignored::ALL.len()],
    /// By `event_id`.
    pub duplicate: u64,
    /// By the visitor's wish.
    pub anonymised: u64,
    /// By [`Warning`], in the contract's order.
    pub warnings: [u64; Warning::ALL.len()],
    /// Rejected records not kept.
    pub rejects_dropped: u64,
    /// Of visitors, since the start.
    pub connections: u64,
    /// Of these, those that are over.
    pub connections_closed: u64,
    requests: Vec<Sum>,
}

impl Sums {
    /// Adds up.
    pub fn of<'a>(shards: impl Iterator<Item = &'a Shard>) -> Sums {
        let mut sums = Sums {
            rejected: Default::default(),
            ignored: Default::default(),
            duplicate: 0,
            anonymised: 0,
            warnings: Default::default(),
            rejects_dropped: 0,
            connections: 0,
            connections_closed: 0,
            requests: vec![Sum::default(); REQUESTS],
        };
        for shard in shards {
            add(&mut sums.rejected, &shard.rejected);
            add(&mut sums.warnings, &shard.warnings);
            add(&mut sums.ignored, &shard.ignored);
            sums.duplicate += shard.duplicate.get();
            sums.anonymised += shard.anonymised.get();
            sums.rejects_dropped += shard.rejects_dropped.get();
            // The end first: what is opened meanwhile must not look closed before.
            sums.connections_closed += shard.connections_closed.get();
            sums.connections += shard.connections.get();
            for (sum, requests) in sums.requests.iter_mut().zip(&shard.requests) {
                requests.add_to(sum);
            }
        }
        sums
    }

    /// Requests by route, method and class of status.
    pub fn requests(&self, route: Route, method: Method, class: StatusClass) -> &Sum {
        &self.requests[series(route, method, class)]
    }
}

fn add(sums: &mut [u64], tallies: &[Tally]) {
    for (sum, tally) in sums.iter_mut().zip(tallies) {
        *sum += tally.get();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_a_cell_of_its_own() {
        let worker = Worker::new(Arc::default());
        let other = Worker::new(Arc::default());
        for (times, rejection) in Rejection::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| worker.rejected(rejection));
        }
        let mut all = Warnings::default();
        for warning in Warning::ALL {
            all.add(warning);
            worker.warned(all);
        }
        other.rejected(Rejection::MissingId);
        other.request(Route::Event, "GET", 200, Duration::from_millis(3));
        let (first, second) = (worker.connection(), other.connection());
        drop(second);
        let sums = Sums::of([&*worker.shard, &*other.shard].into_iter());
        assert_eq!(sums.rejected[0], 1, "the other's");
        assert_eq!((sums.connections, sums.connections_closed), (2, 1));
        drop(first);
        assert_eq!(Sums::of([&*worker.shard, &*other.shard].into_iter()).connections_closed, 2);
        assert!((1..Rejection::ALL.len()).all(|index| sums.rejected[index] == index as u64));
        let count = Warning::ALL.len();
        assert!((0..count).all(|index| sums.warnings[index] == (count - index) as u64));
        let requests = sums.requests(Route::Event, Method::Get, StatusClass::C2xx);
        assert_eq!((requests.counts[5], requests.sum), (1, 3_000_000));
    }
}
