//! Parked records are offered again, exactly once: by the publisher's own identity, and with the cursor's metadata
//! naming what the same transaction delivered, so that a crash before their files are gone sends nothing twice.

use std::sync::Arc;

use super::cursor::{KafkaCursor, Standing};
use super::fault::{Doubt, Fault};
use super::parked::{self, Parked, ParkedError};
use super::sink::{Care, Session};
use super::work::{StopAt, Work};
use super::{Options, Stats, identity, kafka};
use crate::journal::Journal;
use crate::record::Position;
use crate::time::Clock;

/// Records in a transaction: their positions fit an offset's metadata (4 KiB by a broker's default).
const TOGETHER: usize = 100;

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Retried {
    /// Delivered, and no longer parked.
    pub delivered: u64,
    /// Still parked, and why.
    pub refused: Vec<(Position, String)>,
}

/// It ended early. What was delivered until then is no longer parked.
#[derive(Debug, thiserror::Error)]
#[error("{cause}: {text}")]
pub struct RetryError {
    /// A word of [`Stats::CAUSES`].
    pub cause: &'static str,
    /// What happened.
    pub text: String,
}

impl From<Doubt> for RetryError {
    fn from(doubt: Doubt) -> RetryError {
        let word = Stats::CAUSES.iter().find(|(_, cause)| *cause == doubt.cause());
        RetryError { cause: word.map_or("", |(word, _)| word), text: doubt.to_string() }
    }
}

/// Offers all parked records of a directory that is ours.
pub fn retry(options: Options, node_id: &str, journal: Journal, clock: Arc<dyn Clock>) -> Result<Retried, RetryError> {
    let identity = identity(node_id, &journal);
    let cluster = kafka::Cluster::new(options.clone(), identity.clone(), journal.clone());
    let (stats, never) = (Arc::new(Stats::default()), Arc::new(StopAt::never()));
    let work = Work::new(Box::new(cluster), options, identity, journal, stats, never, clock, Box::new(|_| {}));
    Ok(work.retry()?)
}

impl Work {
    pub(super) fn retry(mut self) -> Result<Retried, Doubt> {
        let mut client = self.sink.connect(Care::Small)?;
        let standing = client.standing()?;
        let at = self.begin_at(standing.as_ref(), client.cluster_id())?;
        let cursor = self.cursor_at(at, standing.map(|standing| standing.cursor));
        let all = parked::positions(self.journal.data_dir()).map_err(|error| disk(&error))?;
        let mut chunks: Vec<Vec<Position>> = all.chunks(TOGETHER).rev().map(<[Position]>::to_vec).collect();
        let mut retried = Retried::default();
        while let Some(chunk) = chunks.pop() {
            let Some(records) = self.read_all(&chunk, &mut retried.refused) else { continue };
            match self.deliver(&mut *client, &cursor, &records) {
                Ok(()) => retried.delivered += records.len() as u64,
                Err(doubt) if doubt.fault == Fault::Record => {
                    client.abort()?;
                    match &records[..] {
                        [record] => retried.refused.push((record.position, doubt.to_string())),
                        records => {
                            let (left, right) = chunk_of(records);
                            chunks.extend([right, left]);
                        }
                    }
                }
                Err(doubt) => return Err(doubt),
            }
        }
        retried.refused.sort();
        Ok(retried)
    }

    /// The cursor as it is, to be committed once more.
    fn cursor_at(&self, at: Position, kafka: Option<KafkaCursor>) -> KafkaCursor {
        let local = self.journal.cursor().map(|local| KafkaCursor {
            position: local.position,
            incarnation: local.incarnation,
            record_id: local.record_id,
        });
        let nowhere = KafkaCursor { position: at, incarnation: [0; 16], record_id: [0; 16] };
        [kafka, local].into_iter().flatten().find(|cursor| cursor.position == at).unwrap_or(nowhere)
    }

    /// Reads the files; those that can't be read are told and left.
    fn read_all(&self, positions: &[Position], refused: &mut Vec<(Position, String)>) -> Option<Vec<Parked>> {
        let mut records = Vec::new();
        for position in positions {
            match parked::read(self.journal.data_dir(), *position) {
                Ok(record) => records.push(record),
                Err(error) => refused.push((*position, error.to_string())),
            }
        }
        Some(records).filter(|records| !records.is_empty())
    }

    fn deliver(&mut self, client: &mut dyn Session, cursor: &KafkaCursor, records: &[Parked]) -> Result<(), Doubt> {
        for record in records {
            client.send(&record.entry())?;
        }
        client.delivered()?;
        let retried: Vec<Position> = records.iter().map(|record| record.position).collect();
        client.commit(&Standing { cursor: *cursor, retried: retried.clone() })?;
        for position in retried {
            // The next start removes what can't be removed now: Kafka has the list, until something else is committed.
            self.unpark(position).map_err(|error| disk(&error))?;
        }
        Ok(())
    }
}

fn chunk_of(records: &[Parked]) -> (Vec<Position>, Vec<Position>) {
    let positions: Vec<Position> = records.iter().map(|record| record.position).collect();
    let (left, right) = positions.split_at(positions.len() / 2);
    (left.to_vec(), right.to_vec())
}

fn disk(error: &ParkedError) -> Doubt {
    super::work::disk(error)
}
