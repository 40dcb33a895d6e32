//! The committer thread: takes what waits, writes, syncs, tells; between commits it keeps room and removes what may go.
//!
//! Commits are spaced under load, as the cost is not the disk but the hand-over between threads (docs/performance.md);
//! an idle gateway commits at once.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::books::Books;
use super::disk::{Disk, is_out_of_room};
use super::queue::{Queue, Shared};
use super::recover::{self, Recovered};
use super::reserve::Reserve;
use super::retain::{Oldest, Open, Verdict};
use super::segment::{Identity, Paths, Segment};
use super::view::View;
use super::writer::{WriteError, Writer};
use super::{Acknowledge, Commit, Observer, Options};
use crate::time::Clock;

/// How often upkeep runs when nothing asks for it; with [`BEHIND`] it bounds how long `written` records stay unsynced.
const TICK: Duration = Duration::from_millis(200);
/// How often `written` records are synced under load. Each time costs as much as a commit; the more there is to sync at
/// once, the longer it is in the way of what follows, on a machine with few cores.
const BEHIND: Duration = Duration::from_millis(50);
/// A sync that takes this long is waited for: no more than about a second of `written` records may be unsynced.
const LATE: Duration = Duration::from_millis(800);
/// The same as [`TICK`] while a sync is under way and nothing comes: readers wait for its end.
const GLANCE: Duration = Duration::from_millis(5);
/// Longest time that a record waits for company.
const SPACING_MAX: Duration = Duration::from_micros(500);
/// So many bytes are made zeros ahead after a commit, which is more than one has, and in an idle moment.
const ZEROS: u64 = 128 * 1024;
const ZEROS_IDLE: u64 = 1024 * 1024;
/// How often an allocation that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Segments of earlier runs expire by age at most this often, as the wall clock may have jumped between runs.
const OLD_RUN_PACE: Duration = Duration::from_secs(60);
/// Share of `max_bytes` that must be free before a full journal calls itself ready again.
const READY_ROOM_PERCENT: u64 = 10;

/// What the handle and the committer share beside the queue.
pub struct Common {
    /// Options as given.
    pub options: Options,
    /// Workers' side.
    pub shared: Arc<Shared>,
    /// Readers' side.
    pub view: Arc<View>,
    /// Cursor and counts. Held over small file writes; never taken while committing. Lock order: books, then view.
    pub books: Mutex<Books>,
    /// Position after the last record written, and the event records before it.
    pub next: AtomicU64,
    /// See `next`.
    pub events: AtomicU64,
    /// Bytes of all files of the journal.
    pub bytes: AtomicU64,
    /// For the writes that free room.
    pub reserve: Arc<Reserve>,
}

/// See the module.
pub struct Committer {
    pub(super) common: Arc<Common>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) paths: Paths,
    pub(super) identity: Identity,
    pub(super) writer: Writer,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observer: Arc<dyn Observer>,
    /// What could not be repaired yet, for a disk that can't be written.
    pub(super) unrepaired: Option<Recovered>,
    pub(super) identified: bool,
    pub(super) first_seq_of_run: u64,
    /// Newest segment that readers know of.
    pub(super) shown_seq: u64,
    pub(super) pace: Pace,
}

/// Times of one committer, and how much it has seen outstanding of late.
pub struct Pace {
    /// Wall clock minus monotonic clock at the start, in milliseconds: a wall clock that never jumps.
    wall_offset_ms: i128,
    sync_average: Duration,
    recent: u32,
    synced_at: Duration,
    upkeep_at: Duration,
    retry_at: Duration,
    old_run_at: Duration,
    /// A write into allocated room found none (a disk that turned read-only, a file system that allocates late): when
    /// to try again whether one does.
    probe_at: Option<Duration>,
}

impl Pace {
    /// From now on.
    pub fn new(clock: &dyn Clock) -> Pace {
        let monotonic = clock.monotonic();
        Pace {
            wall_offset_ms: i128::from(clock.now().0) - monotonic.as_millis() as i128,
            sync_average: SPACING_MAX,
            recent: 0,
            synced_at: monotonic,
            upkeep_at: monotonic,
            retry_at: Duration::ZERO,
            old_run_at: Duration::ZERO,
            probe_at: None,
        }
    }

    fn wall_ms(&self, clock: &dyn Clock) -> u64 {
        (self.wall_offset_ms + clock.monotonic().as_millis() as i128).max(0) as u64
    }
}

impl Committer {
    /// Runs until the journal is closed or fails.
    pub fn run(mut self) {
        let shared = self.common.shared.clone();
        let mut batch = Queue::default();
        loop {
            if shared.waiting() == 0 {
                if shared.is_closing() {
                    break;
                }
                shared.wait_for_work(if self.writer.is_syncing() { GLANCE } else { TICK });
                if shared.waiting() == 0 {
                    if self.upkeep(true).is_err() {
                        break;
                    }
                    continue;
                }
            }
            let enough = (self.pace.recent / 2).max(1);
            if shared.waiting() < enough {
                shared.gather(enough, SPACING_MAX.min(self.pace.sync_average));
            }
            if self.turn(&mut batch).is_err() {
                break;
            }
        }
        self.finish();
    }

    /// Commits what waits and does what is due.
    pub(super) fn turn(&mut self, batch: &mut Queue) -> Result<(), ()> {
        if self.common.shared.take(batch) > 0 {
            self.commit(batch)?;
        }
        let due = self.clock.monotonic().saturating_sub(self.pace.upkeep_at) >= TICK;
        if due || !self.writer.has_spare() { self.upkeep(false) } else { Ok(()) }
    }

    /// The end: everything durable, nobody left waiting.
    pub(super) fn finish(mut self) {
        let now_ms = self.pace.wall_ms(&*self.clock);
        let shared = self.common.shared.clone();
        if !shared.is_poisoned()
            && let Err(WriteError::Failed(error)) = self.writer.close(now_ms)
        {
            self.poison("closing", &error);
        }
        self.show();
        shared.end();
        self.common.view.wake();
    }

    /// One commit: everything in `batch` is written, made durable as configured, counted and told. In that order.
    fn commit(&mut self, batch: &mut Queue) -> Result<(), ()> {
        let begun = self.clock.monotonic();
        let now_ms = self.pace.wall_ms(&*self.clock);
        let (reserved, payload_bytes) = (batch.reserved(), batch.payload_bytes());
        let written = batch.chunks.iter_mut().try_for_each(|chunk| self.writer.write(chunk, now_ms));
        self.common.next.store(self.writer.state.next.0, Ordering::Release);
        self.common.events.store(self.writer.state.events, Ordering::Release);
        self.common.shared.settle(self.writer.room(), reserved);
        let durable = match written {
            Ok(()) if self.common.options.acknowledge == Acknowledge::Synced => self.sync().map_err(WriteError::Failed),
            other => other,
        };
        match durable {
            Ok(()) => {}
            Err(WriteError::Full(error)) => {
                // Until a try goes well nobody is promised any: else each batch would end like this one.
                if self.pace.probe_at.replace(self.clock.monotonic() + RETRY).is_none() {
                    tracing::error!(%error, "journal: a write found no room in an allocated segment; trying again");
                }
                self.common.shared.settle(0, 0);
                self.common.shared.set_full();
                batch.tickets.drain(..).for_each(|(slot, number)| slot.lose(number));
                batch.clear();
                return Ok(());
            }
            Err(WriteError::Failed(error)) => {
                self.poison("writing", &error);
                batch.tickets.drain(..).for_each(|(slot, number)| slot.lose(number));
                return Err(());
            }
        }
        let duration = self.clock.monotonic().saturating_sub(begun);
        self.observer.committed(&Commit {
            events: u64::from(batch.events),
            rejected: u64::from(batch.records - batch.events),
            bytes: payload_bytes,
            duration,
        });
        for (slot, number) in batch.tickets.drain(..) {
            slot.complete(number);
        }
        let outstanding = batch.records + self.common.shared.waiting();
        self.pace.recent = outstanding.max(self.pace.recent - self.pace.recent / 8);
        self.common.shared.give_back(&mut batch.chunks);
        batch.clear();
        let ahead = self.writer.zero_ahead(ZEROS, false);
        ahead.and_then(|()| self.sync_behind()).map_err(|error| self.poison("syncing", &error))
    }

    /// Under load: syncs what is only written, while those that follow are written and answered.
    fn sync_behind(&mut self) -> io::Result<()> {
        self.poll()?;
        let since = self.clock.monotonic().saturating_sub(self.pace.synced_at);
        let is_due = since >= if self.writer.is_syncing() { LATE } else { BEHIND };
        if is_due && (self.writer.is_syncing() || !self.begin_sync()) { self.sync() } else { Ok(()) }
    }

    /// `false` if there is nobody to sync behind.
    fn begin_sync(&mut self) -> bool {
        if !self.writer.is_syncing() {
            self.pace.synced_at = self.clock.monotonic();
        }
        self.writer.begin_sync()
    }

    fn poll(&mut self) -> io::Result<()> {
        if self.writer.poll()? {
            self.tell();
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let begun = self.clock.monotonic();
        self.writer.sync()?;
        let now = self.clock.monotonic();
        self.pace.sync_average = (self.pace.sync_average * 7 + now.saturating_sub(begun)) / 8;
        self.pace.synced_at = now;
        self.tell();
        Ok(())
    }

    /// Tells readers what is durable.
    fn tell(&mut self) {
        // First the segments that lead there: a reader that saw the end without them would take for damage what lies in
        // a segment that it doesn't know yet.
        if self.shown_seq != self.writer.state.newest_seq {
            self.show();
        }
        let (synced, events) = self.writer.synced();
        self.common.view.advance(synced, events);
    }

    fn poison(&mut self, doing: &str, error: &io::Error) {
        tracing::error!(%error, "journal: {doing} failed; nothing more is accepted until the next start");
        self.common.shared.poison();
    }

    /// Between commits: sync what is only written, mark, repair, allocate, remove.
    pub(super) fn upkeep(&mut self, idle: bool) -> Result<(), ()> {
        let now_ms = self.pace.wall_ms(&*self.clock);
        self.pace.upkeep_at = self.clock.monotonic();
        if let Err(error) = if idle { self.sync_idle(now_ms) } else { Ok(()) } {
            self.poison("syncing", &error);
            return Err(());
        }
        if !self.prepare() {
            self.common.shared.set_full();
            return Ok(());
        }
        self.make_room(now_ms);
        if self.writer.has_spare() && (!self.writer.is_open() || self.is_due(now_ms)) {
            match self.writer.rotate(now_ms) {
                Ok(()) => {
                    self.tell();
                    self.make_room(now_ms);
                }
                Err(WriteError::Full(error)) => {
                    // The one before is closed, and so durable.
                    self.tell();
                    tracing::warn!(%error, "journal: no room to open a segment");
                }
                Err(WriteError::Failed(error)) => {
                    self.poison("opening a segment", &error);
                    return Err(());
                }
            }
        }
        if self.writer.has_spare() {
            self.common.reserve.keep();
        }
        self.remove_aged(now_ms);
        self.show();
        self.probe(now_ms)?;
        let can_write = self.writer.is_open() && self.pace.probe_at.is_none();
        self.common.shared.settle(if can_write { self.writer.room() } else { 0 }, 0);
        if !can_write {
            self.common.shared.set_full();
        } else if self.common.shared.is_full() && self.has_ready_room() {
            self.common.shared.clear_full();
        }
        Ok(())
    }

    /// After a write that found no room: whether one does now. Nobody's record is at stake.
    fn probe(&mut self, now_ms: u64) -> Result<(), ()> {
        let now = self.clock.monotonic();
        if self.pace.probe_at.is_none_or(|at| now < at) {
            return Ok(());
        }
        match self.writer.probe(now_ms) {
            Ok(()) => {
                tracing::info!("journal: writes find room again");
                self.pace.probe_at = None;
            }
            Err(WriteError::Full(_)) => self.pace.probe_at = Some(now + RETRY),
            Err(WriteError::Failed(error)) => {
                self.poison("writing", &error);
                return Err(());
            }
        }
        Ok(())
    }

    fn sync_idle(&mut self, now_ms: u64) -> io::Result<()> {
        self.poll()?;
        if !self.begin_sync() {
            self.sync()?;
        }
        match self.writer.mark(now_ms) {
            Ok(()) | Err(WriteError::Full(_)) => self.writer.zero_ahead(ZEROS_IDLE, true),
            Err(WriteError::Failed(error)) => Err(error),
        }
    }

    /// Identity and repair, which a full or read-only disk may have put off. `false` while it still does.
    fn prepare(&mut self) -> bool {
        if self.identified && self.unrepaired.is_none() {
            return true;
        }
        if self.clock.monotonic() < self.pace.retry_at {
            return false;
        }
        let made = self.identity.make(&*self.disk, &self.paths, &mut self.identified);
        let prepared = made.and_then(|()| match &mut self.unrepaired {
            Some(recovered) => recover::repair(&*self.disk, &self.paths, recovered),
            None => Ok(()),
        });
        match prepared {
            Ok(()) => {
                if let Some(recovered) = self.unrepaired.take() {
                    self.writer.state = recovered.state;
                    self.show();
                    self.tell();
                }
                true
            }
            Err(error) => {
                if let Some(recovered) = &self.unrepaired {
                    self.writer.state.segments = recovered.state.segments.clone();
                    self.show();
                }
                if self.common.shared.exhaust(true) {
                    tracing::warn!(%error, "journal: the data directory can't be written; trying again");
                }
                self.pace.retry_at = self.clock.monotonic() + RETRY;
                false
            }
        }
    }

    /// Sees to it that the next segment is allocated, if need be at the cost of the oldest that may go.
    fn make_room(&mut self, now_ms: u64) {
        if self.writer.has_spare() || self.clock.monotonic() < self.pace.retry_at {
            return;
        }
        let parked = self.books().parked_bytes();
        while !self.writer.has_budget(parked) {
            if !self.remove_oldest(true, now_ms) {
                if self.common.shared.exhaust(true) {
                    tracing::warn!("journal: what is unpublished or parked takes up all of max_bytes");
                }
                return;
            }
        }
        loop {
            match self.writer.allocate() {
                Ok(()) => {
                    if self.common.shared.exhaust(false) {
                        tracing::info!("journal: there is room for further segments again");
                    }
                    return;
                }
                Err(error) if is_out_of_room(&error) && self.remove_oldest(true, now_ms) => {}
                Err(error) => {
                    if self.common.shared.exhaust(true) {
                        tracing::warn!(%error, "journal: the next segment can't be allocated; trying again");
                    }
                    self.pace.retry_at = self.clock.monotonic() + RETRY;
                    return;
                }
            }
        }
    }

    /// Whether the open segment is to be closed for its age.
    fn is_due(&self, now_ms: u64) -> bool {
        let options = &self.common.options;
        self.writer.state.segments.back().is_some_and(|open| {
            let open = Open {
                base: open.base,
                next: self.writer.state.next,
                age: Duration::from_millis(now_ms.saturating_sub(open.created_ms)),
                cursor: self.books().passed(),
                publishes: options.publishes,
                retention: options.retention,
            };
            open.is_due()
        })
    }

    fn remove_aged(&mut self, now_ms: u64) {
        let of_old_run = self.writer.state.segments.front().is_some_and(|oldest| oldest.seq < self.first_seq_of_run);
        if of_old_run && self.clock.monotonic() < self.pace.old_run_at {
            return;
        }
        if self.remove_oldest(false, now_ms) && of_old_run {
            self.pace.old_run_at = self.clock.monotonic() + OLD_RUN_PACE;
        }
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.common.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the oldest segment if it may go; returns whether it did.
    fn remove_oldest(&mut self, short_of_room: bool, now_ms: u64) -> bool {
        let segments = &self.writer.state.segments;
        let (Some(_), Some(next)) = (segments.front(), segments.get(1)) else { return false };
        let next = next.clone();
        let options = &self.common.options;
        let oldest = Oldest {
            end: next.base,
            age: Duration::from_millis(now_ms.saturating_sub(next.created_ms)),
            cursor: self.books().passed(),
            short_of_room,
            publishes: options.publishes,
            retention: options.retention,
        };
        let cleared = match oldest.verdict() {
            Verdict::Keep => return false,
            Verdict::Remove => Ok(0),
            Verdict::Expire => self.books().expire(&next),
        };
        let rest: VecDeque<Segment> = self.writer.state.segments.iter().skip(1).cloned().collect();
        match cleared.and_then(|expired| {
            self.common.view.replace(&rest);
            self.writer.remove_oldest().map(|()| expired)
        }) {
            Ok(0) => true,
            Ok(expired) => {
                tracing::info!(expired_events = expired, "journal: the oldest segment expired unpublished");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "journal: the oldest segment can't be removed");
                false
            }
        }
    }

    fn has_ready_room(&self) -> bool {
        let (cursor, parked) = {
            let books = self.books();
            (books.cursor().position, books.parked_bytes())
        };
        let used = super::books::unpublished_bytes(&self.common.view.snapshot(), cursor) + parked;
        self.writer.has_spare() && used <= self.common.options.max_bytes / 100 * (100 - READY_ROOM_PERCENT)
    }

    /// Publishes index and sizes to readers and metrics.
    pub(super) fn show(&mut self) {
        self.shown_seq = self.writer.state.newest_seq;
        self.common.view.replace(&self.writer.state.segments);
        self.common.bytes.store(self.writer.bytes(), Ordering::Release);
    }
}
