//! Records read from the journal and not yet committed to Kafka: kept, so that a refused transaction is tried in parts
//! without reading again.

use std::collections::VecDeque;

use super::cursor::KafkaCursor;
use super::fault::Doubt;
use crate::journal::{Batch, Entry, Journal, Next, OnDamage, Reader};
use crate::record::{Kind, Position};

/// See the module. Holds at most what a transaction may carry, and one batch.
pub(super) struct Ahead {
    reader: Reader,
    batches: VecDeque<Batch>,
    /// Everything before it is committed.
    at: Position,
    /// Damage, behind which only a person goes on.
    wall: bool,
}

impl Ahead {
    pub(super) fn new(journal: &Journal, at: Position) -> Ahead {
        Ahead { reader: journal.reader(at), batches: VecDeque::new(), at, wall: false }
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
        self.batches.is_empty()
    }

    /// Whether reading ended at damage, by `journal.on_damage = "stop"`.
    pub(super) fn is_at_wall(&self) -> bool {
        self.wall
    }

    /// The batch of an index, reading on if it isn't here yet. `None` if there is no more.
    pub(super) fn batch(&mut self, index: usize, journal: &Journal) -> Result<Option<&Batch>, Doubt> {
        while index >= self.batches.len() && !self.wall {
            match self.reader.read_next().map_err(|error| Doubt::journal(&error))? {
                Next::Batch(batch) => self.batches.push_back(batch),
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
        Ok(self.batches.get(index))
    }

    /// Records that are not committed yet, with their segments' incarnations.
    pub(super) fn left(&self) -> impl Iterator<Item = (Entry<'_>, [u8; 16])> {
        let at = self.at;
        let all = self.batches.iter().flat_map(|batch| batch.entries().map(|entry| (entry, batch.incarnation)));
        all.filter(move |(entry, _)| entry.position >= at)
    }

    /// The record of a position.
    pub(super) fn find(&self, position: Position) -> Option<Entry<'_>> {
        self.left().map(|(entry, _)| entry).find(|entry| entry.position == position)
    }

    /// The smallest event behind a position that is smaller than the one there.
    pub(super) fn smaller_than(&self, refused: &Entry<'_>) -> Option<Entry<'_>> {
        let size = |entry: &Entry<'_>| entry.key.len() + entry.body.len();
        let later = self.left().map(|(entry, _)| entry);
        let later = later.filter(|entry| entry.position > refused.position && entry.head.kind == Kind::Event);
        later.min_by_key(size).filter(|entry| size(entry) < size(refused))
    }

    /// Forgets what is committed.
    pub(super) fn pass(&mut self, position: Position) {
        self.at = position;
        while self.batches.front().is_some_and(|batch| batch.next() <= position) {
            if let Some(batch) = self.batches.pop_front() {
                self.reader.recycle(batch);
            }
        }
    }
}

/// The cursor behind a record.
pub(super) fn behind(entry: &Entry<'_>, incarnation: [u8; 16]) -> KafkaCursor {
    KafkaCursor { position: Position(entry.position.0 + 1), incarnation, record_id: entry.head.id }
}
