//! Reading the journal ahead of what is committed to Kafka. Events lie in the client until it has delivered them, so
//! nothing is kept here but rejected records; what a refused transaction held is read again.

use super::cursor::KafkaCursor;
use super::fault::Doubt;
use crate::journal::{Batch, Entry, Journal, Next, OnDamage, Reader};
use crate::record::{Head, Kind, Position};

/// A record, kept.
pub(super) struct Record {
    position: Position,
    head: Head,
    key: Vec<u8>,
    body: Vec<u8>,
}

impl Record {
    pub(super) fn new(entry: &Entry<'_>) -> Record {
        Record { position: entry.position, head: entry.head, key: entry.key.to_vec(), body: entry.body.to_vec() }
    }

    pub(super) fn entry(&self) -> Entry<'_> {
        Entry { position: self.position, head: self.head, key: &self.key, body: &self.body }
    }
}

/// See the module.
pub(super) struct Ahead {
    reader: Reader,
    /// A batch of which some is left.
    rest: Option<Batch>,
    /// Everything before it is committed.
    at: Position,
    /// Damage, behind which only a person goes on.
    wall: bool,
}

impl Ahead {
    pub(super) fn new(journal: &Journal, at: Position) -> Ahead {
        Ahead { reader: journal.reader(at), rest: None, at, wall: false }
    }

    /// Position of the first record that is not committed.
    pub(super) fn at(&self) -> Position {
        self.at
    }

    /// Where reading stands.
    pub(super) fn read_to(&self) -> Position {
        self.reader.position()
    }

    /// Whether nothing of what was read is left.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_none()
    }

    /// Whether reading ended at damage, by `journal.on_damage = "stop"`.
    pub(super) fn is_at_wall(&self) -> bool {
        self.wall
    }

    /// The next batch, which must be given back. `None` if there is no more.
    pub(super) fn take(&mut self, journal: &Journal) -> Result<Option<Batch>, Doubt> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        while !self.wall {
            match self.reader.read_next().map_err(|error| Doubt::journal(&error))? {
                Next::Batch(batch) => return Ok(Some(batch)),
                Next::Damage(damage) => {
                    let news = journal.damaged(&damage);
                    let copied = news.is_ok();
                    if !matches!(news, Ok(false)) {
                        tracing::error!(%damage, copied, "journal: damage");
                    }
                    self.wall = journal.on_damage() == OnDamage::Stop;
                }
                Next::Expired(position) => tracing::warn!(%position, "publishing: older records have expired"),
                Next::End => break,
            }
        }
        Ok(None)
    }

    /// Takes a batch back that is done with.
    pub(super) fn give_back(&mut self, batch: Batch) {
        self.reader.recycle(batch);
    }

    /// Takes a batch back of which some is left.
    pub(super) fn give_back_rest(&mut self, batch: Batch) {
        self.rest = Some(batch);
    }

    /// Everything before a position is committed now.
    pub(super) fn pass(&mut self, position: Position) {
        self.at = position;
    }

    /// Nothing of what was read behind the last commit counts: it is read again.
    pub(super) fn begin_again(&mut self, journal: &Journal) {
        *self = Ahead::new(journal, self.at);
    }

    /// The record of a position, and the smallest event behind it, within so many bytes, that is smaller.
    pub(super) fn find(
        &mut self,
        position: Position,
        within: u64,
        journal: &Journal,
    ) -> Result<Option<(Record, Option<Record>)>, Doubt> {
        let size = |entry: &Entry<'_>| entry.key.len() + entry.body.len();
        let (mut found, mut bytes): (Option<(Record, Option<Record>)>, u64) = (None, 0);
        self.begin_again(journal);
        while bytes < within {
            let Some(batch) = self.take(journal)? else { break };
            for entry in batch.entries().filter(|entry| entry.position >= position) {
                match &mut found {
                    None if entry.position == position => found = Some((Record::new(&entry), None)),
                    Some((refused, smaller)) if entry.head.kind == Kind::Event => {
                        let least = smaller.as_ref().unwrap_or(refused);
                        if size(&entry) < size(&least.entry()) {
                            *smaller = Some(Record::new(&entry));
                        }
                    }
                    _ => {}
                }
            }
            bytes += batch.entries().map(|entry| entry.body.len() as u64).sum::<u64>();
            self.give_back(batch);
        }
        self.begin_again(journal);
        Ok(found)
    }
}

/// The cursor behind a record.
pub(super) fn behind(entry: &Entry<'_>, incarnation: [u8; 16]) -> KafkaCursor {
    KafkaCursor { position: Position(entry.position.0 + 1), incarnation, record_id: entry.head.id }
}
