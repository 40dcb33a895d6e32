//! Deduplication at the door: the same pixel, event name and event id within a window make one record.
//!
//! Exact per node while the bounds hold. A key is remembered when its record is in the worker's buffer, under the lock
//! of its shard, so that of two copies at the same moment one is the first. Who comes second waits for what becomes of
//! the first, and is told the same. Beyond `max_ids` the oldest keys are forgotten early: a double may pass then, and
//! nothing is ever taken for a double that is none (docs/decisions/0013-deduplication.md has the odds).
//!
//! Time is monotonic: a clock that jumps changes nothing. After a start [`rebuild`] reads the journal.

mod rebuild;
mod table;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ahash::AHashMap;
use sha2::{Digest, Sha256};

pub use self::rebuild::Rebuild;
use self::table::Table;
use crate::journal::{Receipt, Ticket};
use crate::pixel::PixelId;

/// How much is remembered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// How long a key is remembered.
    pub window: Duration,
    /// How many keys are.
    pub max_ids: usize,
}

impl Options {
    /// Whether anything is remembered at all.
    pub fn is_on(&self) -> bool {
        !self.window.is_zero() && self.max_ids > 0
    }
}

/// The longest window: seconds must fit the lower half of 32 bits.
pub const WINDOW_MAX_DAYS: u64 = 400;
/// Tables this small are in one piece, so that the oldest of all keys is forgotten first. Larger ones are split.
const IN_ONE_PIECE: usize = 1 << 16;
/// Of a large table. Workers hold a shard's lock for the encoding of one record, a few microseconds.
const SHARDS: usize = 64;
/// The process began at this second, so that there is room for keys from before it.
const START_SECOND: u32 = 1 << 31;
/// Keys whose time is over are forgotten at this pace, so that no event pays for many.
const EXPIRE_AT_ONCE: usize = 4;

/// What names an event: a keyed hash, 128 bits of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key(table::Key);

/// See the module.
pub struct Dedup {
    /// Held while one record is encoded into its worker's buffer; no other lock is taken under it.
    shards: Box<[Mutex<Shard>]>,
    /// Primed with a secret of this run, so that nobody can choose ids that collide.
    hasher: Sha256,
    window_seconds: u32,
    /// Monotonic time at which [`START_SECOND`] was.
    epoch: Duration,
}

struct Shard {
    table: Table,
    /// What is not known to be durable yet, by place. Bounded by the records in flight.
    open: AHashMap<u32, Ticket>,
    /// Settled tickets are swept out when there are so many.
    sweep_at: usize,
}

/// Whether an event was there before.
pub enum Once {
    /// It is the first.
    First(Receipt),
    /// It is not; the ticket of the first while its fate is open.
    Again(Option<Ticket>),
}

impl Dedup {
    /// An empty memory at the monotonic time `now`.
    pub fn new(options: Options, now: Duration) -> Dedup {
        let mut secret = [0; 64];
        getrandom::fill(&mut secret).expect("the operating system has random bytes");
        let shards = if options.max_ids < IN_ONE_PIECE { 1 } else { SHARDS };
        let shard = || {
            let table = Table::new(options.max_ids.div_ceil(shards));
            Mutex::new(Shard { table, open: AHashMap::new(), sweep_at: SHARDS })
        };
        Dedup {
            shards: (0..shards).map(|_| shard()).collect(),
            hasher: Sha256::new_with_prefix(secret),
            window_seconds: u32::try_from(options.window.as_secs_f64().ceil() as u64).unwrap_or(u32::MAX),
            epoch: now,
        }
    }

    /// The key of an event. A trial is another event than the real one.
    pub fn key(&self, pixel: PixelId, name: Option<&str>, id: &str, test: bool) -> Key {
        let mut hasher = self.hasher.clone();
        let name_bytes = name.map_or(u32::MAX, |name| name.len() as u32);
        let mut head = [0; 21];
        head[..16].copy_from_slice(&pixel.to_le_bytes());
        head[16..20].copy_from_slice(&name_bytes.to_le_bytes());
        head[20] = u8::from(test);
        hasher.update(head);
        hasher.update(name.unwrap_or_default());
        hasher.update(id);
        let hash = hasher.finalize();
        let word = |at: usize| u32::from_le_bytes([hash[at], hash[at + 1], hash[at + 2], hash[at + 3]]);
        Key([word(0), word(4), word(8), word(12)])
    }

    /// Appends an event unless it was there before. An append that is refused is remembered by nobody.
    pub fn once<E>(&self, key: Key, now: Duration, append: impl FnOnce() -> Result<Receipt, E>) -> Result<Once, E> {
        let second = self.second(now);
        let mut shard = self.shard(key);
        shard.expire(second, self.window_seconds);
        if let Some(found) = shard.table.find(key.0) {
            if second.saturating_sub(found.second) <= self.window_seconds {
                match shard.fate(found.place) {
                    Fate::Kept => return Ok(Once::Again(None)),
                    Fate::Open(ticket) => return Ok(Once::Again(Some(ticket))),
                    // The journal's failure ends it; a copy is refused by the journal itself.
                    Fate::Lost => {}
                }
            }
            shard.table.forget(key.0);
        }
        let receipt = append()?;
        shard.add(key, second, receipt.ticket());
        Ok(Once::First(receipt))
    }

    /// A key that is older than all that are remembered, from before the start; `false` if there is no room for it.
    fn remember(&self, key: Key, age: Duration) -> bool {
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        if age > self.window_seconds {
            return true;
        }
        let mut shard = self.shard(key);
        shard.table.push_oldest(key.0, START_SECOND - age) || !shard.table.is_full()
    }

    /// How many keys are remembered.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).table.len()).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn second(&self, now: Duration) -> u32 {
        let since = u32::try_from(now.saturating_sub(self.epoch).as_secs()).unwrap_or(START_SECOND);
        START_SECOND.saturating_add(since)
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, Shard> {
        // Another word than the one that the table goes by.
        lock(&self.shards[key.0[1] as usize % self.shards.len()])
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // A panic while encoding leaves a table without the key, which is true of it.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of a record.
enum Fate {
    Kept,
    Open(Ticket),
    Lost,
}

impl Shard {
    fn expire(&mut self, second: u32, window_seconds: u32) {
        for _ in 0..EXPIRE_AT_ONCE {
            let oldest = self.table.oldest_second();
            if oldest.is_none_or(|oldest| second.saturating_sub(oldest) <= window_seconds) {
                break;
            }
            if let Some(place) = self.table.pop_oldest() {
                self.open.remove(&place);
            }
        }
    }

    fn fate(&mut self, place: u32) -> Fate {
        let Some(ticket) = self.open.get(&place) else { return Fate::Kept };
        match ticket.outcome() {
            None => return Fate::Open(ticket.clone()),
            Some(Ok(())) => {}
            Some(Err(_)) => return Fate::Lost,
        }
        self.open.remove(&place);
        Fate::Kept
    }

    fn add(&mut self, key: Key, second: u32, ticket: Ticket) {
        let (place, forgotten) = self.table.push_newest(key.0, second);
        if let Some(forgotten) = forgotten {
            self.open.remove(&forgotten);
        }
        self.open.insert(place, ticket);
        if self.open.len() >= self.sweep_at {
            self.open.retain(|_, ticket| ticket.outcome() != Some(Ok(())));
            self.sweep_at = (self.open.len() * 2).max(SHARDS);
        }
    }
}

#[cfg(test)]
mod tests;
