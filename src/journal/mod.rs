//! Durable log of opaque records: what is acknowledged is on disk, in order, each with a dense position.
//!
//! # On disk
//! `<data_dir>/journal` holds `journal.json` (identity), segments `<20 digits>.seg` of at most `segment_bytes`,
//! `spare.tmp` (the next segment, allocated ahead) and `cursor.json` (where publishing stands). A segment is a header
//! block and batches; a batch is a checksummed head and records (docs/journal-format.md). Every start opens a new
//! segment with a fresh incarnation; nothing is appended to what an earlier run wrote.
//!
//! # Invariants
//! 1. A receipt completes after fdatasync of its batch (`synced`) or after the write (`written`).
//! 2. Readers see only fdatasync'ed records, in both modes, and never write.
//! 3. Positions are dense and never reused; each batch carries the running count of event records.
//! 4. Each batch says what was durable when it was written (`synced_to`): bad bytes at or beyond the highest of these
//!    are a torn tail and cut; below it they are damage: counted exactly, copied to `<data_dir>/damaged`, stepped over.
//! 5. Room is reserved before a record is taken, from segments that are already allocated. No room is `Full`, and
//!    harmless; a failing device poisons: nothing more is taken until the next start finds out what is there.
//! 6. A segment is unlinked only when the cursor that passed it is fsynced.
//!
//! # Who does what
//! Workers: `append` (encode, hand over once a tick). The committer thread: `commit` (owner of the directory, through
//! `writer`). Anyone: `read`. At start: `recover`. `books` adds up accepted = published + pending + parked + expired +
//! damaged. `disk` is the only file that calls the file system. Knows nothing of events, HTTP, Kafka or TOML.

pub mod append;
mod behind;
pub mod books;
mod commit;
pub mod cursor;
pub mod damage;
pub mod disk;
mod error;
pub mod frame;
pub mod hex;
pub mod look;
mod queue;
pub mod read;
mod recover;
pub mod reserve;
mod retain;
mod scan;
pub mod segment;
mod view;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub use append::{Appender, Driver, Lost, Receipt, Refused, Ticket, Told};
use behind::SyncThread;
use books::{Books, Counts};
use commit::{Committer, Common, Pace};
pub use cursor::Cursor;
pub use damage::Damage;
use disk::{Disk, RealDisk, is_out_of_room};
pub use error::OpenError;
use queue::Shared;
pub use read::{Batch, Entry, Next, ReadError, Reader};
use reserve::Reserve;
use segment::{Identity, Paths};
use view::View;
use writer::{Sizes, Writer};

use crate::inflight::Inflight;
use crate::record::Position;
use crate::time::Clock;

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
    /// Size at which a segment is closed; a quarter of `max_bytes` if that is less.
    pub segment_bytes: u64,
    /// How long published segments are kept while room lasts; without Kafka, how long any are kept.
    pub retention: Duration,
    /// What damage means for publishing.
    pub on_damage: OnDamage,
    /// Whether records leave by Kafka. Without it the oldest segment expires by age or size.
    pub publishes: bool,
}

/// The smallest `max_bytes`: four of the smallest segments.
pub const MIN_MAX_BYTES: u64 = 4 * MIN_SEGMENT_BYTES;
/// The smallest segment: twice the longest record, with its headers.
pub const MIN_SEGMENT_BYTES: u64 = 256 * 1024;

/// What the journal tells about its commits. Called on the committer thread, so it must be quick.
pub trait Observer: Send + Sync {
    /// Once per commit: after durability as configured, before receipts complete.
    fn committed(&self, commit: &Commit);
}

/// One commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Commit {
    /// Event records in it.
    pub events: u64,
    /// Rejected records in it.
    pub rejected: u64,
    /// Bytes of records.
    pub bytes: u64,
    /// Write and sync together.
    pub duration: Duration,
}

/// Whether the journal takes records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// It does.
    Ready,
    /// No room: by `max_bytes` or on the file system. Ends at 10 % room.
    Full,
    /// The device failed. Ends with the next start.
    Poisoned,
}

/// Figures at one moment.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Event records by fate.
    pub counts: Counts,
    /// Position of the next record.
    pub next_position: Position,
    /// Position of the next record to publish.
    pub publish_position: Position,
    /// Position of the oldest record that is left.
    pub oldest_position: Position,
    /// Bytes of all files, those allocated ahead included.
    pub bytes: u64,
    /// Bytes of segments that the cursor has not passed.
    pub unpublished_bytes: u64,
    /// Bytes of parked records.
    pub parked_bytes: u64,
    /// The configured bound.
    pub max_bytes: u64,
    /// What the file system has left; 0 if it can't be asked.
    pub free_bytes: u64,
    /// Unix milliseconds at which the oldest unpublished record was written.
    pub oldest_pending_ms: Option<u64>,
    /// Whether records are taken.
    pub health: Health,
}

/// A record that is still in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its id.
    pub id: [u8; 16],
    /// Incarnation of its segment.
    pub incarnation: [u8; 16],
}

struct Handle {
    common: Arc<Common>,
    disk: Arc<dyn Disk>,
    paths: Paths,
    journal_id: [u8; 16],
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The running journal. Cheap to clone; the last `close` ends its thread.
#[derive(Clone)]
pub struct Journal(Arc<Handle>);

impl Journal {
    /// Recovers the directory and starts the committer. Returns when records are taken, or when it is known that
    /// there is no room for them yet (a full or read-only disk: reading and publishing work all the same).
    pub fn open(options: Options, clock: Arc<dyn Clock>, observer: Arc<dyn Observer>) -> Result<Journal, OpenError> {
        Journal::open_on(Arc::new(RealDisk), options, clock, observer)
    }

    /// The same on any disk.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        options: Options,
        clock: Arc<dyn Clock>,
        observer: Arc<dyn Observer>,
    ) -> Result<Journal, OpenError> {
        let (journal, mut committer) = prepare(disk, options, clock, observer)?;
        let no_thread = |source| OpenError::io(&journal.0.paths.journal, source);
        if journal.0.common.options.acknowledge == Acknowledge::Written {
            committer.writer.sync_by(Box::new(SyncThread::start().map_err(no_thread)?));
        }
        // A failure here is the committer's state by now: it will refuse records and say why.
        let _ = committer.upkeep(false);
        let thread =
            std::thread::Builder::new().name("journal".into()).spawn(move || committer.run()).map_err(no_thread)?;
        *journal.thread() = Some(thread);
        Ok(journal)
    }

    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.0.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.common.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker's way in, and the future that the worker must run beside its requests.
    pub fn appender(&self) -> (Appender, Driver) {
        Appender::new(self.0.common.shared.clone())
    }

    /// What waits for the disk, under a bound that it may share with others.
    pub fn inflight(&self) -> Arc<Inflight> {
        self.0.common.shared.inflight().clone()
    }

    /// Reads durable records from `from` on.
    pub fn reader(&self, from: Position) -> Reader {
        let Handle { disk, paths, journal_id, common, .. } = &*self.0;
        Reader::new(disk.clone(), paths.clone(), *journal_id, common.view.clone(), from)
    }

    /// Waits until more than `from` is durable, at most `timeout`; returns the durable end.
    pub fn wait(&self, from: Position, timeout: Duration) -> Position {
        self.0.common.view.wait(from, timeout)
    }

    /// Ends all waiting of readers, as at a stop.
    pub fn wake_readers(&self) {
        self.0.common.view.wake();
    }

    /// Position after the last durable record.
    pub fn synced(&self) -> Position {
        self.0.common.view.end()
    }

    /// Position after the last record written, durable or not yet.
    pub fn written(&self) -> Position {
        Position(self.0.common.next.load(Ordering::Acquire))
    }

    /// Positions at which segments begin, oldest first.
    pub fn bases(&self) -> Vec<Position> {
        self.0.common.view.snapshot().segments.iter().map(|segment| segment.base).collect()
    }

    /// Position of the oldest record that is left.
    pub fn oldest(&self) -> Position {
        let snapshot = self.0.common.view.snapshot();
        snapshot.segments.first().map_or(snapshot.end, |segment| segment.base)
    }

    /// Position of the oldest record that is left to publish: what has expired is counted as such, also if a crash left
    /// its segment there.
    pub fn oldest_to_publish(&self) -> Position {
        let expired_to = self.books().cursor().expired_to;
        self.oldest().max(expired_to)
    }

    /// The journal's random identity.
    pub fn id(&self) -> [u8; 16] {
        self.0.journal_id
    }

    /// The publisher's local copy, as of the last `advance`; `None` if nothing was ever published from here.
    pub fn cursor(&self) -> Option<Cursor> {
        let books = self.books();
        let mut cursor = books.cursor().published.clone()?;
        // Without Kafka the oldest records may have expired since.
        cursor.position = cursor.position.max(books.cursor().position);
        Some(cursor)
    }

    /// Moves the local copy of the cursor, durably, and lets retention run.
    pub fn advance(&self, cursor: Cursor) -> io::Result<()> {
        self.books().advance(cursor)?;
        self.0.common.shared.poke();
        Ok(())
    }

    /// Who lies at `position`; `None` if it is no longer (or not yet) there, or damaged.
    pub fn holds(&self, position: Position) -> Result<Option<Held>, ReadError> {
        match self.reader(position).read_next()? {
            Next::Batch(batch) => Ok(batch
                .entries()
                .next()
                .filter(|entry| entry.position == position)
                .map(|entry| Held { id: entry.head.id, incarnation: batch.incarnation })),
            Next::Damage(_) | Next::Expired(_) | Next::End => Ok(None),
        }
    }

    /// Notes damage that a reader came upon: copied, counted once. Returns whether it is news.
    pub fn damaged(&self, damage: &Damage) -> io::Result<bool> {
        self.books().damaged(damage)
    }

    /// Notes a record in `<data_dir>/parked`, after its file is fsynced.
    pub fn park(&self, position: Position, bytes: u64) {
        self.books().park(position, bytes);
    }

    /// Writes what must be written before room can be freed: without room, the reserve is spent on it.
    pub fn spend_reserve<T>(&self, write: impl Fn() -> io::Result<T>) -> io::Result<T> {
        self.0.common.reserve.spend(write)
    }

    /// Notes that a parked record is gone from there, delivered.
    pub fn unpark(&self, position: Position) {
        self.books().unpark(position);
        self.0.common.shared.poke();
    }

    /// What readers of damage must do.
    pub fn on_damage(&self) -> OnDamage {
        self.0.common.options.on_damage
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.0.common.options.data_dir
    }

    /// Whether records are taken.
    pub fn health(&self) -> Health {
        let shared = &self.0.common.shared;
        match (shared.is_poisoned(), shared.is_full()) {
            (true, _) => Health::Poisoned,
            (false, true) => Health::Full,
            (false, false) => Health::Ready,
        }
    }

    /// Whether the committer does its work, or ended as it should: closed, or poisoned by the device. Otherwise it ends
    /// only by a fault of this program, and nothing that waits for it is ever answered.
    pub fn is_sound(&self) -> bool {
        let ended = self.thread().as_ref().is_some_and(JoinHandle::is_finished);
        let shared = &self.0.common.shared;
        !ended || shared.is_poisoned() || shared.is_closing()
    }

    /// Figures. Reads a few hundred bytes from disk.
    pub fn stats(&self) -> Stats {
        let common = &self.0.common;
        let snapshot = common.view.snapshot();
        let accepted = common.events.load(Ordering::Acquire);
        let mut books = self.books();
        let publish_position = books.cursor().position;
        Stats {
            counts: books.counts(accepted),
            next_position: Position(common.next.load(Ordering::Acquire)),
            publish_position,
            oldest_position: snapshot.segments.first().map_or(snapshot.end, |segment| segment.base),
            bytes: common.bytes.load(Ordering::Acquire) + books.parked_bytes(),
            unpublished_bytes: books::unpublished_bytes(&snapshot, publish_position),
            parked_bytes: books.parked_bytes(),
            max_bytes: common.options.max_bytes,
            free_bytes: self.0.disk.free_bytes(&common.options.data_dir).unwrap_or(0),
            oldest_pending_ms: books.oldest_pending_ms(),
            health: self.health(),
        }
    }

    /// Refuses new records, commits what waits and ends the thread. `false` if that took longer than `timeout`
    /// or the journal had failed.
    pub fn close(&self, timeout: Duration, clock: &dyn Clock) -> bool {
        self.0.common.shared.close();
        let deadline = clock.monotonic() + timeout;
        let Some(thread) = self.thread().take() else { return true };
        while !thread.is_finished() {
            if clock.monotonic() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        thread.join().is_ok() && self.health() != Health::Poisoned
    }
}

/// Everything up to the thread.
fn prepare(
    disk: Arc<dyn Disk>,
    options: Options,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
) -> Result<(Journal, Committer), OpenError> {
    let paths = Paths::new(&options.data_dir);
    let mut recovered = recover::inspect(&*disk, &paths)?;
    let identity = Identity { journal_id: recovered.journal_id.unwrap_or_else(random) };
    let mut identified = recovered.journal_id.is_some() && Identity::read(&*disk, &paths)?.is_some();
    let view = Arc::new(View::new(&recovered.state.segments, recovered.state.next, recovered.state.events));
    let cursor = recovered.cursor.clone();
    let reserve = Arc::new(Reserve::find(disk.clone(), &paths));
    let books = Books::open(disk.clone(), paths.clone(), identity.journal_id, view.clone(), cursor, reserve.clone());
    let mut books = books.map_err(|source| OpenError::io(&paths.parked, source))?;
    // Before the repair, which may cut what is copied here.
    report(&recovered, &mut books);
    let made = identity.make(&*disk, &paths, &mut identified);
    let repaired = made.and_then(|()| recover::repair(&*disk, &paths, &mut recovered));
    // What it removed must not be looked for.
    view.replace(&recovered.state.segments);
    let state = recovered.state.clone();
    // What a failed repair leaves may be only in the page cache: nobody reads it before it is made good.
    view.advance(state.synced, state.synced_events);
    let mut unrepaired = None;
    if let Err(error) = repaired {
        if !is_out_of_room(&error) {
            return Err(OpenError::io(&paths.journal, error));
        }
        tracing::warn!(%error, "journal: the data directory can't be written; nothing is accepted until it can");
        unrepaired = Some(recovered);
    }
    let (first_seq_of_run, pace) = (state.newest_seq + 1, Pace::new(&*clock));
    let segment_bytes = options.segment_bytes.min(options.max_bytes / 4).max(MIN_SEGMENT_BYTES);
    let sizes = Sizes { segment_bytes, max_bytes: options.max_bytes };
    let common = Arc::new(Common {
        options,
        shared: Arc::new(Shared::new()),
        view,
        books: Mutex::new(books),
        next: AtomicU64::new(state.next.0),
        events: AtomicU64::new(state.events),
        bytes: AtomicU64::new(0),
        reserve,
    });
    let writer = Writer::new(disk.clone(), paths.clone(), sizes, identity.journal_id, random(), state);
    let handle = Handle {
        common: common.clone(),
        disk: disk.clone(),
        paths: paths.clone(),
        journal_id: identity.journal_id,
        thread: Mutex::new(None),
    };
    let committer = Committer {
        common,
        disk,
        paths,
        identity,
        writer,
        clock,
        observer,
        unrepaired,
        identified,
        first_seq_of_run,
        shown_seq: first_seq_of_run - 1,
        pace,
    };
    Ok((Journal(Arc::new(handle)), committer))
}

/// Says what was found, and notes what is lost.
fn report(recovered: &recover::Recovered, books: &mut Books) {
    if let Some(tail) = recovered.tail.filter(|tail| tail.torn) {
        let segment = segment::segment_name(tail.seq);
        tracing::info!(segment, byte = tail.end_offset, "journal: torn tail of an unsynced batch cut");
    }
    for damage in &recovered.damage {
        match books.damaged(damage) {
            Ok(is_news) if is_news || damage.first == damage.next => tracing::error!(%damage, "journal: damage"),
            Ok(_) => {}
            Err(error) => tracing::error!(%damage, %error, "journal: damage, and no copy of it could be made"),
        }
    }
}

fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system has random bytes");
    bytes
}
