//! The publisher's thread: connect, find the cursor, publish round by round, and after any doubt begin again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Options;
use super::ahead::{Ahead, Record};
use super::cursor::{self, Choice, KafkaCursor, Place, Standing};
use super::fault::{Doubt, Fault};
use super::parked;
use super::refusal::Caution;
use super::room::Room;
use super::sink::{Session, Sink};
use super::stats::{Cause, Stats};
use crate::journal::{Entry, Journal};
use crate::record::Position;
use crate::time::Clock;

/// How long to wait for new records before looking around.
const IDLE: Duration = Duration::from_millis(200);
/// First and longest pause before connecting again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// The same trouble is said once in this time.
const SAY: Duration = Duration::from_secs(60);
/// Draining ends so long before the end of a stop, for the transaction in hand.
const LAST_ROUND: Duration = Duration::from_secs(1);

/// When to stop: a moment of the monotonic clock in milliseconds, or never.
pub(super) struct StopAt(AtomicU64);

impl StopAt {
    pub(super) fn never() -> StopAt {
        StopAt(AtomicU64::new(u64::MAX))
    }

    pub(super) fn set(&self, moment: Duration) {
        self.0.store(moment.as_millis() as u64, Ordering::Release);
    }

    pub(super) fn is_set(&self) -> bool {
        self.get().is_some()
    }

    fn get(&self) -> Option<Duration> {
        Some(self.0.load(Ordering::Acquire)).filter(|ms| *ms != u64::MAX).map(Duration::from_millis)
    }
}

/// See the module.
pub(super) struct Work {
    pub(super) sink: Box<dyn Sink>,
    pub(super) options: Options,
    pub(super) identity: String,
    pub(super) journal: Journal,
    pub(super) stats: Arc<Stats>,
    pub(super) stop_at: Arc<StopAt>,
    pub(super) clock: Arc<dyn Clock>,
    /// Takes rejected records once the cursor has passed them.
    pub(super) rejects: Box<dyn FnMut(&Entry<'_>) + Send>,
    /// The cursor that Kafka is known to have had last (`Some(None)`: none), and the newest that we tried to commit:
    /// telling our own commits from a twin's.
    known: Option<Option<KafkaCursor>>,
    attempted: Option<KafkaCursor>,
    /// A newer producer of this identity was there, and it is not known yet whether that was ourselves.
    fenced: bool,
    /// Files of parked records that were delivered and could not be removed.
    pub(super) retried: Vec<Position>,
    /// Records parked and not yet passed by the cursor.
    pub(super) parked: BTreeSet<Position>,
    pub(super) caution: Caution,
    pub(super) room: Room,
    back_off: Duration,
    connected: bool,
    said: Option<(Cause, Duration)>,
    /// The local copy could not be written the last time, and that was said.
    uncopied: bool,
}

/// Why a session ended without an error.
pub(super) enum End {
    Stopped,
    /// Nothing will change without a person.
    Blocked(Cause),
}

impl Work {
    #[expect(clippy::too_many_arguments, reason = "the one place where the parts meet")]
    pub(super) fn new(
        sink: Box<dyn Sink>,
        options: Options,
        identity: String,
        journal: Journal,
        stats: Arc<Stats>,
        stop_at: Arc<StopAt>,
        clock: Arc<dyn Clock>,
        rejects: Box<dyn FnMut(&Entry<'_>) + Send>,
    ) -> Work {
        Work {
            sink,
            options,
            identity,
            journal,
            stats,
            stop_at,
            clock,
            rejects,
            known: None,
            attempted: None,
            fenced: false,
            retried: Vec::new(),
            parked: BTreeSet::new(),
            caution: Caution::default(),
            room: Room::default(),
            back_off: BACK_OFF.0,
            connected: false,
            said: None,
            uncopied: false,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            let begun = self.clock.monotonic();
            let ended = self.session();
            self.stats.take_in_hand(false);
            match ended {
                Ok(End::Stopped) => return,
                Ok(End::Blocked(cause)) => {
                    self.stats.block(cause);
                    self.stats.end();
                    while !self.pause(IDLE) {}
                    return;
                }
                Err(doubt) => {
                    self.fenced |= doubt.fault == Fault::Fenced;
                    self.note(&doubt);
                    if self.clock.monotonic().saturating_sub(begun) > BACK_OFF.1 {
                        self.back_off = BACK_OFF.0;
                    }
                    if self.pause(self.back_off) {
                        return;
                    }
                    self.back_off = (self.back_off * 2).min(BACK_OFF.1);
                }
            }
        }
    }

    /// Counts and says trouble: the same not more than once a minute.
    fn note(&mut self, doubt: &Doubt) {
        let (cause, now) = (doubt.cause(), self.clock.monotonic());
        // Fenced by our own time-out, mostly; the next session finds out.
        if cause != Cause::Fenced {
            self.stats.block(cause);
        }
        if let Some(kind) = doubt.kind {
            self.stats.count(kind);
        }
        if self.connected {
            self.stats.restarts.fetch_add(1, Ordering::Relaxed);
        }
        let is_news = self.said.is_none_or(|(said, at)| said != cause || now.saturating_sub(at) >= SAY);
        if is_news {
            self.said = Some((cause, now));
            tracing::warn!(?cause, error = %doubt, "publishing: connecting again");
        }
    }

    /// Records leave again, or nothing waits to.
    fn clear(&mut self) {
        self.stats.block(Cause::None);
        if self.said.take().is_some() {
            tracing::info!("publishing goes on");
        }
    }

    fn stopping(&self) -> bool {
        self.stop_at.is_set()
    }

    /// Waits; `true` if it is time to stop.
    fn pause(&self, time: Duration) -> bool {
        let deadline = self.clock.monotonic() + time;
        while !self.stopping() && self.clock.monotonic() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.stopping()
    }

    /// One client's life.
    fn session(&mut self) -> Result<End, Doubt> {
        let connecting_failed = !std::mem::replace(&mut self.connected, false);
        let mut client = self.sink.connect(self.caution.care())?;
        let standing = client.standing()?;
        let kafka = standing.as_ref().map(|standing| standing.cursor);
        if self.fenced && self.is_moved(kafka) {
            tracing::error!(
                identity = self.identity,
                "publishing: another process publishes with this node's identity (a cloned data directory?); \
                 this one stops publishing and keeps accepting. End one of them and restart this one"
            );
            return Ok(End::Blocked(Cause::Fenced));
        }
        let at = self.begin_at(standing.as_ref(), client.cluster_id())?;
        let behind = self.journal.cursor().is_none_or(|local| local.position != at);
        if let Some(kafka) = kafka.filter(|kafka| behind && kafka.position == at) {
            // As after a crash between commit and copy: else figures would call published what is pending.
            self.keep(&kafka, client.cluster_id());
        }
        self.known = Some(kafka);
        (self.attempted, self.fenced) = (None, false);
        // Also back, if Kafka knows less than it did.
        self.stats.reach(at);
        self.connected = true;
        self.stats.take_in_hand(true);
        if connecting_failed {
            self.clear();
        }
        self.publish(&mut *client, Ahead::new(&self.journal, at))
    }

    fn is_moved(&self, kafka: Option<KafkaCursor>) -> bool {
        kafka.is_some() && self.known.is_some_and(|known| kafka != known) && kafka != self.attempted
    }

    /// Where to go on; brings `parked` in line with it.
    pub(super) fn begin_at(&mut self, standing: Option<&Standing>, cluster_id: &str) -> Result<Position, Doubt> {
        let kafka = standing.map(|standing| &standing.cursor);
        let here = Place { cluster_id, events_topic: &self.options.events_topic };
        let Choice { position, notice } = cursor::choose(kafka, self.journal.cursor().as_ref(), here, &self.journal)
            .map_err(|error| Doubt::journal(&error))?;
        match notice {
            Some(notice) => tracing::warn!(%position, "publishing: {notice}"),
            // Another history's positions mean other records.
            None => self.retried = standing.map_or(Vec::new(), |standing| standing.retried.clone()),
        }
        let retried = std::mem::take(&mut self.retried);
        self.retried = retried.into_iter().filter(|position| self.unpark(*position).is_err()).collect();
        let stale = parked::positions(self.journal.data_dir()).map_err(|error| disk(&error))?;
        for stale in stale.into_iter().filter(|stale| *stale >= position) {
            // The cursor says that it is still to be published: else it would count, or be sent, twice.
            self.unpark(stale).map_err(|error| disk(&error))?;
        }
        self.parked.clear();
        Ok(position)
    }

    /// Writes the local copy.
    fn keep(&mut self, cursor: &KafkaCursor, cluster_id: &str) {
        // A full or read-only disk: Kafka has the cursor, the copy is only behind, and nothing is removed meanwhile.
        match self.journal.advance(self.options.local_copy(cursor, cluster_id)) {
            Ok(()) if std::mem::take(&mut self.uncopied) => {
                tracing::info!("publishing: the local copy of the cursor is written again");
            }
            Ok(()) => {}
            Err(error) => {
                if !std::mem::replace(&mut self.uncopied, true) {
                    tracing::warn!(%error, "publishing: the local copy of the cursor can't be written; trying again");
                }
            }
        }
    }

    /// Removes a parked file, and notes it.
    pub(super) fn unpark(&self, position: Position) -> Result<(), parked::ParkedError> {
        parked::remove(self.journal.data_dir(), position)?;
        self.journal.unpark(position);
        Ok(())
    }

    fn publish(&mut self, client: &mut dyn Session, mut ahead: Ahead) -> Result<End, Doubt> {
        loop {
            if ahead.is_empty() && !self.stopping() {
                self.journal.wait(ahead.read_to(), IDLE);
            }
            let went = self.step(client, &mut ahead)?;
            if !went {
                if ahead.is_at_wall() {
                    self.stats.reach(ahead.read_to());
                    return Ok(End::Blocked(Cause::Damage));
                }
                self.clear();
                self.stats.reach(ahead.read_to());
                client.idle();
            }
            let Some(stop_at) = self.stop_at.get() else { continue };
            if !went || self.clock.monotonic() + LAST_ROUND >= stop_at {
                return Ok(End::Stopped);
            }
        }
    }

    /// Commits a cursor with what was sent, and everything that follows from it; `rejected` are those it passes.
    pub(super) fn commit(
        &mut self,
        client: &mut dyn Session,
        ahead: &mut Ahead,
        cursor: KafkaCursor,
        rejected: &[Record],
    ) -> Result<(), Doubt> {
        let before = self.attempted.replace(cursor);
        client.commit(&Standing { cursor, retried: self.retried.clone() }).inspect_err(|doubt| {
            if doubt.fault == Fault::Record {
                // It was not tried: a record was refused before.
                self.attempted = before;
            }
        })?;
        self.known = Some(Some(cursor));
        self.keep(&cursor, client.cluster_id());
        rejected.iter().for_each(|record| (self.rejects)(&record.entry()));
        ahead.pass(cursor.position);
        self.parked.clear();
        self.back_off = BACK_OFF.0;
        self.clear();
        self.stats.last_success_ms.store(self.clock.now().0, Ordering::Relaxed);
        // Last: who sees it reached finds nothing that still says why not.
        self.stats.reach(cursor.position);
        Ok(())
    }
}

pub(super) fn disk(error: &dyn std::fmt::Display) -> Doubt {
    Doubt::text(Fault::Disk, error.to_string())
}
