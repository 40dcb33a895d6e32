//! Where publishing goes on: the cursor in Kafka, the local copy, and which of them the journal bears out.
//!
//! Kafka's is committed with the records, so it is the truth about what Kafka has, if it speaks of *this* journal: the
//! record before it must lie here with the same id, written by the same run. A restored backup, a clone or another
//! history fails that, and then the local copy counts. The larger of the two is never taken blindly: the copy's only
//! if it tells of a later stay at another topic or cluster, whose records must not be sent again here.

use crate::journal::{Cursor, Held, Journal, ReadError, hex};
use crate::record::Position;

/// The cursor as Kafka keeps it: an offset and its metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KafkaCursor {
    /// Next record to publish.
    pub position: Position,
    /// Incarnation of the segment of the last published record.
    pub incarnation: [u8; 16],
    /// Id of the last published record.
    pub record_id: [u8; 16],
}

/// What the cursor in Kafka says, all of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Where publishing stands.
    pub cursor: KafkaCursor,
    /// Parked records that the same commit delivered after all: their files must go, or they would be sent again.
    pub retried: Vec<Position>,
}

/// Begins the word of metadata that lists [`Standing::retried`].
const RETRIED: &str = "retried=";

impl Standing {
    /// `v1 <incarnation> <record_id>`, and `retried=<position>,…` if there are any.
    pub fn metadata(&self) -> String {
        let cursor = &self.cursor;
        let mut text = format!("v1 {} {}", hex::encode(&cursor.incarnation), hex::encode(&cursor.record_id));
        for (index, position) in self.retried.iter().enumerate() {
            text.push_str(if index == 0 { " retried=" } else { "," });
            text.push_str(&position.to_string());
        }
        text
    }

    /// Reads offset and metadata; `None` for anything that [`Standing::metadata`] didn't write. Further words are for
    /// later versions.
    pub fn parse(offset: i64, metadata: &str) -> Option<Standing> {
        let mut words = metadata.split(' ');
        let (version, incarnation, record_id) = (words.next()?, words.next()?, words.next()?);
        let position = Position(u64::try_from(offset).ok()?);
        let cursor =
            KafkaCursor { position, incarnation: hex::decode(incarnation)?, record_id: hex::decode(record_id)? };
        let listed = words.find_map(|word| word.strip_prefix(RETRIED));
        let retried = listed.into_iter().flat_map(|list| list.split(',')).map(|number| number.parse().ok());
        let retried: Option<Vec<u64>> = retried.collect();
        (version == "v1").then_some(Standing { cursor, retried: retried?.into_iter().map(Position).collect() })
    }
}

/// Where records go now.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Empty if the cluster doesn't tell.
    pub cluster_id: &'a str,
    /// The topic of events.
    pub events_topic: &'a str,
}

impl Place<'_> {
    fn is_left_for(self, local: &Cursor) -> bool {
        let both_known = !self.cluster_id.is_empty() && !local.cluster_id.is_empty();
        local.events_topic != self.events_topic || (both_known && local.cluster_id != self.cluster_id)
    }
}

/// Where to go on, and what the operator should know of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The next record to publish.
    pub position: Position,
    /// Said once, if something is unusual.
    pub notice: Option<&'static str>,
}

/// What the choice needs of a journal.
pub trait History {
    /// The record at a position, if it is still there.
    fn held(&self, position: Position) -> Result<Option<Held>, ReadError>;
    /// The oldest position that is left to publish.
    fn oldest(&self) -> Position;
}

impl History for Journal {
    fn held(&self, position: Position) -> Result<Option<Held>, ReadError> {
        self.holds(position)
    }

    fn oldest(&self) -> Position {
        self.oldest_to_publish()
    }
}

/// Decides where publishing goes on.
pub fn choose(
    kafka: Option<&KafkaCursor>,
    local: Option<&Cursor>,
    here: Place<'_>,
    history: &impl History,
) -> Result<Choice, ReadError> {
    let oldest = history.oldest();
    let fallback = local.map_or(oldest, |local| local.position.max(oldest));
    let Some(kafka) = kafka else { return Ok(Choice { position: fallback, notice: None }) };
    let before = kafka.position.0.checked_sub(1).map(Position);
    let held = before.map(|before| history.held(before)).transpose()?.flatten();
    let borne_out = match held {
        Some(held) => (held.id, held.incarnation) == (kafka.record_id, kafka.incarnation),
        // The record has left by retention, which waits for the local copy: then both say the same.
        None => local.is_some_and(|local| {
            (local.position, local.incarnation, local.record_id) == (kafka.position, kafka.incarnation, kafka.record_id)
        }),
    };
    let later = local.filter(|local| local.position > kafka.position && here.is_left_for(local));
    Ok(if let Some(later) = later.filter(|_| borne_out) {
        let notice =
            "the cursor in Kafka is from before records went to another topic or cluster; going on behind those";
        Choice { position: later.position.max(oldest), notice: Some(notice) }
    } else if borne_out {
        Choice { position: kafka.position.max(oldest), notice: None }
    } else {
        let notice = "the cursor in Kafka speaks of records that this journal does not hold (a restored backup, or a \
                      cloned directory that published); going on from the local copy: doubles are possible, \
                      loss is not";
        Choice { position: fallback, notice: Some(notice) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records from `oldest` to `end`, record n having id n, all of one run.
    struct Range {
        oldest: u64,
        end: u64,
    }

    const RUN: [u8; 16] = [1; 16];
    const HERE: Place<'_> = Place { cluster_id: "here", events_topic: "events" };

    fn id(number: u64) -> [u8; 16] {
        u128::from(number).to_be_bytes()
    }

    impl History for Range {
        fn held(&self, position: Position) -> Result<Option<Held>, ReadError> {
            let is_there = (self.oldest..self.end).contains(&position.0);
            Ok(is_there.then(|| Held { id: id(position.0), incarnation: RUN }))
        }

        fn oldest(&self) -> Position {
            Position(self.oldest)
        }
    }

    fn kafka(position: u64, incarnation: [u8; 16]) -> KafkaCursor {
        KafkaCursor { position: Position(position), incarnation, record_id: id(position - 1) }
    }

    fn local(position: u64) -> Cursor {
        Cursor {
            position: Position(position),
            incarnation: RUN,
            record_id: id(position - 1),
            cluster_id: HERE.cluster_id.into(),
            events_topic: HERE.events_topic.into(),
            rejected_topic: String::new(),
            mode: String::new(),
        }
    }

    #[test]
    fn only_what_the_journal_bears_out_is_believed() {
        let history = Range { oldest: 10, end: 100 };
        let check = |kafka: Option<KafkaCursor>, local: Option<Cursor>, position: u64, told: bool| {
            let choice = choose(kafka.as_ref(), local.as_ref(), HERE, &history).unwrap();
            assert_eq!((choice.position.0, choice.notice.is_some()), (position, told), "{kafka:?} {local:?}");
        };
        check(None, None, 10, false);
        check(None, Some(local(50)), 50, false);
        // The local copy is behind, as after kill -9 between commit and fsync; or ahead, as after Kafka lost a commit.
        check(Some(kafka(60, RUN)), Some(local(50)), 60, false);
        check(Some(kafka(40, RUN)), Some(local(50)), 40, false);
        check(Some(kafka(60, RUN)), None, 60, false);
        // Another run's, another record's, beyond the end, gone by retention.
        check(Some(kafka(60, [2; 16])), Some(local(50)), 50, true);
        check(Some(KafkaCursor { record_id: [9; 16], ..kafka(60, RUN) }), Some(local(50)), 50, true);
        check(Some(kafka(160, RUN)), Some(local(50)), 50, true);
        check(Some(kafka(160, RUN)), None, 10, true);
        check(Some(kafka(10, RUN)), Some(local(10)), 10, false);
        check(Some(kafka(5, RUN)), Some(local(20)), 20, true);
        // Back from another topic or cluster: only what went there is passed over, and only if it is known to have.
        for (cluster_id, events_topic, position) in
            [("there", "events", 50), ("here", "others", 50), ("", "events", 40), ("here", "events", 40)]
        {
            let elsewhere =
                |end| Cursor { cluster_id: cluster_id.into(), events_topic: events_topic.into(), ..local(end) };
            check(Some(kafka(40, RUN)), Some(elsewhere(50)), position, position == 50);
            check(Some(kafka(60, RUN)), Some(elsewhere(50)), 60, false);
            check(None, Some(elsewhere(50)), 50, false);
        }
    }

    #[test]
    fn metadata_is_read_as_written() {
        let cursor = kafka(7, RUN);
        for retried in [vec![], vec![Position(3)], vec![Position(3), Position(u64::MAX)]] {
            let standing = Standing { cursor, retried };
            assert_eq!(Standing::parse(7, &standing.metadata()), Some(standing));
        }
        let written = Standing { cursor, retried: vec![] }.metadata();
        assert!(Standing::parse(7, &format!("{written} later=1")).is_some(), "later versions may add words");
        for bad in ["", "v1", "v2 00 00", "v1 x y", "v1 01010101010101010101010101010101"] {
            assert_eq!(Standing::parse(7, bad), None, "{bad}");
        }
        assert_eq!(Standing::parse(7, &format!("{written} retried=1,x")), None);
        assert_eq!(Standing::parse(-1001, &written), None);
    }
}
