//! The local copy of where publishing stands, with the counts that must survive with it: `journal/cursor.json`.
//!
//! Replaced whole and synced before any segment it passed is removed.

use std::io;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::segment::{Paths, Segment};
use super::{OpenError, hex};
use crate::record::Position;

/// Where publishing stands, as the publisher says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// Next record to publish.
    pub position: Position,
    /// Incarnation of the segment that holds the last published record; zero if nothing was.
    pub incarnation: [u8; 16],
    /// Id of the last published record; zero if nothing was.
    pub record_id: [u8; 16],
    /// Which Kafka cluster it speaks of.
    pub cluster_id: String,
    /// Topic of events.
    pub events_topic: String,
    /// Topic of rejects; empty if none.
    pub rejected_topic: String,
    /// `exactly_once` or `at_least_once`.
    pub mode: String,
}

/// The cursor with its counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredCursor {
    /// As [`Cursor::position`].
    pub position: Position,
    /// Event records before `position`.
    pub events: u64,
    /// Event records removed by retention without having been published.
    pub expired_events: u64,
    /// What lies before it has expired, also if a crash left its segment there: counted, and not published any more.
    pub expired_to: Position,
    /// The publisher's part; `None` while nothing was ever published.
    pub published: Option<Cursor>,
}

#[derive(Serialize, Deserialize)]
struct CursorFile {
    format: u32,
    position: u64,
    events: u64,
    expired_events: u64,
    #[serde(default)]
    expired_to: u64,
    published: Option<PublishedFile>,
}

#[derive(Serialize, Deserialize)]
struct PublishedFile {
    position: u64,
    incarnation: String,
    record_id: String,
    cluster_id: String,
    events_topic: String,
    rejected_topic: String,
    mode: String,
}

const FORMAT: u32 = 1;

/// What the file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CursorRead {
    /// Where publishing stands.
    Found(StoredCursor),
    /// The file is damaged.
    Bad,
}

impl StoredCursor {
    /// The cursor of a journal that has none.
    pub fn start() -> StoredCursor {
        StoredCursor { position: Position(0), events: 0, expired_events: 0, expired_to: Position(0), published: None }
    }

    /// The cursor of a journal whose own can't be read: all that retention removed had been passed.
    pub fn at_oldest(oldest: &Segment) -> StoredCursor {
        StoredCursor { position: oldest.base, events: oldest.events_before, ..StoredCursor::start() }
    }

    /// Reads the file. Without one publishing has not begun; of one that can't be read, the journal says what is left.
    pub fn read(disk: &dyn Disk, paths: &Paths) -> Result<CursorRead, OpenError> {
        let path = paths.cursor();
        let bytes = match disk.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(CursorRead::Found(StoredCursor::start()));
            }
            Err(source) => return Err(OpenError::io(&path, source)),
        };
        let Ok(file) = serde_json::from_slice::<CursorFile>(&bytes) else { return Ok(CursorRead::Bad) };
        if file.format > FORMAT {
            return Err(OpenError::Newer { path, found: file.format, supported: FORMAT });
        }
        let published = file.published.and_then(|published| {
            Some(Cursor {
                position: Position(published.position),
                incarnation: hex::decode(&published.incarnation)?,
                record_id: hex::decode(&published.record_id)?,
                cluster_id: published.cluster_id,
                events_topic: published.events_topic,
                rejected_topic: published.rejected_topic,
                mode: published.mode,
            })
        });
        Ok(CursorRead::Found(StoredCursor {
            position: Position(file.position),
            events: file.events,
            expired_events: file.expired_events,
            expired_to: Position(file.expired_to),
            published,
        }))
    }

    /// Replaces the file, durably.
    pub fn write(&self, disk: &dyn Disk, paths: &Paths) -> io::Result<()> {
        let file = CursorFile {
            format: FORMAT,
            position: self.position.0,
            events: self.events,
            expired_events: self.expired_events,
            expired_to: self.expired_to.0,
            published: self.published.as_ref().map(|cursor| PublishedFile {
                position: cursor.position.0,
                incarnation: hex::encode(&cursor.incarnation),
                record_id: hex::encode(&cursor.record_id),
                cluster_id: cursor.cluster_id.clone(),
                events_topic: cursor.events_topic.clone(),
                rejected_topic: cursor.rejected_topic.clone(),
                mode: cursor.mode.clone(),
            }),
        };
        disk.replace(&paths.cursor(), &serde_json::to_vec_pretty(&file)?)
    }
}
