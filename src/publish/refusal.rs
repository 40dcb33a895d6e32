//! One transaction, and what to do if Kafka refuses it for the size or content of a record.
//!
//! A refused transaction is tried again in smaller batches, at last of one record each, and, if it isn't known then
//! which record it is, in halves; until one is refused in a transaction of its own. It is parked if a smaller record
//! goes through, or, as long as nothing smaller waits, if it isn't one of many in a row: what refuses every record is
//! the topic's fault, not the records' (docs/decisions/0006-parking.md).

use std::time::Duration;

use super::ahead::{Ahead, Record, behind};
use super::cursor::KafkaCursor;
use super::fault::{Doubt, Fault};
use super::parked::Parked;
use super::room::NO_LIMIT;
use super::sink::{Care, Session};
use super::work::{Work, disk};
use crate::journal::{Batch, Entry};
use crate::record::{Kind, Position};

/// Longest a transaction gathers records.
const TRANSACTION_TIME: Duration = Duration::from_millis(500);
/// Most bytes of records in a transaction, which lie in the client until they are delivered: this bounds its memory. A
/// commit costs some ten milliseconds in which nothing is sent.
const TRANSACTION_BYTES: u64 = 14 * 1024 * 1024;
/// Records that are parked in a row without a delivery, and without a smaller record to compare with.
const UNPROVEN: u32 = 16;
/// Parking is said at once, then once in this time with its number.
const SAY: Duration = Duration::from_secs(60);

/// How long batches stay small after a refusal that was no single record's, at first and at most: the topic's limit is
/// low, and each try with large ones costs a new producer.
const CAREFUL: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// How long they stay so after a record was parked: where one is, others may be.
const AFTER_PARKING: Duration = Duration::from_secs(10);

/// What refusals have taught.
#[derive(Debug)]
pub(super) struct Caution {
    care: Care,
    careful_until: Duration,
    careful_for: Duration,
    /// To be tried alone.
    culprit: Option<Position>,
    /// Most records in a transaction.
    limit: u64,
    /// Records of a refused transaction that have not gone through since: one of them may be the cause.
    suspects: u64,
    /// Parked since the last delivery without proof that the topic takes anything.
    unproven: u32,
    /// Parked and not yet said, and when that was done last.
    unsaid: u64,
    said: Option<Duration>,
}

impl Default for Caution {
    fn default() -> Caution {
        Caution {
            care: Care::Large,
            careful_until: Duration::ZERO,
            careful_for: CAREFUL.0,
            culprit: None,
            limit: NO_LIMIT,
            suspects: 0,
            unproven: 0,
            unsaid: 0,
            said: None,
        }
    }
}

impl Caution {
    pub(super) fn care(&self) -> Care {
        self.care
    }

    fn went_through(&mut self, sent: u64) {
        if sent > 0 {
            self.unproven = 0;
        }
        self.suspects = self.suspects.saturating_sub(sent);
        if self.suspects == 0 && sent > 0 {
            self.limit = (self.limit * 2).min(NO_LIMIT);
        }
    }

    /// Many were refused together: what is tried next.
    fn learn(&mut self, sent: u64, culprit: Option<Position>, now: Duration) {
        self.suspects = sent;
        match self.care {
            _ if culprit.is_some() => self.culprit = culprit,
            Care::Large => {
                let is_relapse = now < self.careful_until + CAREFUL.0;
                self.careful_for = if is_relapse { (2 * self.careful_for).min(CAREFUL.1) } else { CAREFUL.0 };
                (self.care, self.careful_until) = (Care::Small, now + self.careful_for);
            }
            Care::Small => self.care = Care::Single,
            Care::Single => self.limit = sent / 2,
        }
    }

    fn may_relax(&self, now: Duration) -> bool {
        self.care != Care::Large && self.suspects == 0 && self.culprit.is_none() && now >= self.careful_until
    }
}

/// What a transaction holds so far.
#[derive(Default)]
struct Round {
    /// It passes a record that was parked.
    passes_parked: bool,
    sent: u64,
    bytes: u64,
    only: Option<Position>,
    last: Option<KafkaCursor>,
    /// For the side lane, once the cursor has passed them.
    rejected: Vec<Record>,
}

impl Work {
    /// Publishes what is there, in one transaction. `false` if there was nothing.
    pub(super) fn step(&mut self, client: &mut dyn Session, ahead: &mut Ahead) -> Result<bool, Doubt> {
        if self.caution.may_relax(self.clock.monotonic()) {
            self.caution.care = Care::Large;
            client.renew(Care::Large)?;
        }
        let (mut round, begun) = (Round::default(), self.clock.monotonic());
        let done = match (self.fill(client, ahead, &mut round), round.last) {
            (Ok(()), None) => return Ok(false),
            (Ok(()), Some(cursor)) => self.commit(client, ahead, cursor, &round.rejected),
            (Err(doubt), _) => Err(doubt),
        };
        let took = self.clock.monotonic().saturating_sub(begun);
        match done {
            Ok(()) => {
                if round.only == self.caution.culprit {
                    self.caution.culprit = None;
                }
                self.caution.went_through(round.sent);
                self.room.went_through(round.sent, took, self.options.transaction_timeout);
                Ok(true)
            }
            Err(doubt) if doubt.fault == Fault::Record => {
                self.refused(client, ahead, &round, doubt)?;
                Ok(true)
            }
            Err(doubt) => {
                // Fenced is what our own time-out looks like, too.
                if matches!(doubt.fault, Fault::Doubt | Fault::Fenced) {
                    self.room.failed(round.sent, took, self.options.transaction_timeout);
                }
                Err(doubt)
            }
        }
    }

    /// Sends while reading.
    fn fill(&mut self, client: &mut dyn Session, ahead: &mut Ahead, round: &mut Round) -> Result<(), Doubt> {
        let begun = self.clock.monotonic();
        while round.bytes < TRANSACTION_BYTES && self.clock.monotonic().saturating_sub(begun) < TRANSACTION_TIME {
            let batch = match ahead.take(&self.journal) {
                Ok(Some(batch)) => batch,
                Ok(None) => return Ok(()),
                // What lies before an unreadable place leaves first.
                Err(_) if round.last.is_some() => return Ok(()),
                Err(doubt) => return Err(doubt),
            };
            if !self.send(client, &batch, ahead.at(), round)? {
                ahead.give_back_rest(batch);
                return Ok(());
            }
            ahead.give_back(batch);
        }
        Ok(())
    }

    /// Sends what a batch has from a position on. `false` if the transaction takes no more before its end.
    fn send(&self, client: &mut dyn Session, batch: &Batch, from: Position, round: &mut Round) -> Result<bool, Doubt> {
        for entry in batch.entries().filter(|entry| entry.position >= from) {
            let is_parked = self.parked.contains(&entry.position);
            round.passes_parked |= is_parked;
            if entry.head.kind == Kind::Rejected {
                round.rejected.push(Record::new(&entry));
            } else if !is_parked {
                // The cursor passes a parked record before anything else can go wrong; a culprit is tried alone.
                let most = self.caution.limit.min(self.room.records());
                let is_full = round.sent == most || round.sent == 1 && round.only == self.caution.culprit;
                let is_culprit = round.sent > 0 && self.caution.culprit == Some(entry.position);
                if is_full || is_culprit || round.passes_parked {
                    return Ok(false);
                }
                round.sent += 1;
                round.only = Some(entry.position);
                client.send(&entry)?;
            }
            round.bytes += entry.body.len() as u64;
            round.last = Some(behind(&entry, batch.incarnation));
        }
        Ok(true)
    }

    fn refused(
        &mut self,
        client: &mut dyn Session,
        ahead: &mut Ahead,
        round: &Round,
        doubt: Doubt,
    ) -> Result<(), Doubt> {
        if let Some(kind) = doubt.kind {
            self.stats.count(kind);
        }
        ahead.begin_again(&self.journal);
        match (round.sent, round.only) {
            (1, Some(position)) => {
                client.abort()?;
                self.refused_alone(client, ahead, position, doubt)
            }
            (sent, _) if sent > 1 => {
                self.caution.learn(sent, doubt.culprit, self.clock.monotonic());
                client.renew(self.caution.care)
            }
            // Nothing was sent: it is not a record that is refused.
            _ => Err(doubt.into_fault(Fault::Quota)),
        }
    }

    fn refused_alone(
        &mut self,
        client: &mut dyn Session,
        ahead: &mut Ahead,
        position: Position,
        doubt: Doubt,
    ) -> Result<(), Doubt> {
        (self.caution.suspects, self.caution.culprit) = (0, None);
        let Some((refused, smaller)) = ahead.find(position, TRANSACTION_BYTES, &self.journal)? else {
            return Err(doubt.into_fault(Fault::Quota));
        };
        let proven = smaller.is_some();
        if let Some(witness) = smaller {
            self.goes_through(client, &witness.entry())?;
        }
        if !proven && self.caution.unproven >= UNPROVEN {
            return Err(Doubt::text(Fault::Quota, format!("every record is refused: {doubt}")));
        }
        self.caution.unproven = if proven { 0 } else { self.caution.unproven + 1 };
        let parked = Parked::new(&refused.entry(), doubt.to_string(), self.clock.now());
        let written = self.journal.spend_reserve(|| parked.write(self.journal.data_dir()));
        let bytes = written.map_err(|error| disk(&error))?;
        self.journal.park(position, bytes);
        self.parked.insert(position);
        self.caution.careful_until = self.clock.monotonic() + AFTER_PARKING;
        self.say_parked(&parked);
        Ok(())
    }

    /// Offers a record and takes it back. An error if Kafka refuses this one, too.
    fn goes_through(&mut self, client: &mut dyn Session, witness: &Entry<'_>) -> Result<(), Doubt> {
        let offered = client.send(witness).and_then(|()| client.delivered());
        match offered {
            Ok(()) => client.abort(),
            Err(doubt) if doubt.fault == Fault::Record => {
                Err(Doubt::text(Fault::Quota, format!("records are refused, also small ones: {doubt}")))
            }
            Err(doubt) => Err(doubt),
        }
    }

    fn say_parked(&mut self, parked: &Parked) {
        let now = self.clock.monotonic();
        self.caution.unsaid += 1;
        if self.caution.said.is_none_or(|said| now.saturating_sub(said) >= SAY) {
            let (position, records, bytes) = (parked.position, self.caution.unsaid, parked.body.len());
            tracing::error!(
                %position, bytes, reason = parked.reason, records,
                "publishing: Kafka refuses records alone for their size or content; they are parked \
                 (`pixelgate parked list`), the rest goes on"
            );
            (self.caution.said, self.caution.unsaid) = (Some(now), 0);
        }
    }
}
