//! What travels from ingest to Kafka: opaque bytes with a small typed head.
//!
//! Nothing here knows JSON, HTTP or Kafka. The head carries what publishing needs, so that no later step parses a body.

use std::fmt;

/// Dense number of a record within one journal, from 0. Both kinds share the numbering.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which stream a record belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// An accepted conversion: `pixelgate.event.v1`.
    Event = 1,
    /// A rejected request, kept best effort: `pixelgate.rejected.v1`.
    Rejected = 2,
}

impl Kind {
    /// The kind of a stored byte; `None` for a byte no version of this program wrote.
    pub fn parse(byte: u8) -> Option<Kind> {
        match byte {
            1 => Some(Kind::Event),
            2 => Some(Kind::Rejected),
            _ => None,
        }
    }
}

/// What is known of a record beside its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Which stream it belongs to.
    pub kind: Kind,
    /// The record's own UUID (`record_id`), as raw bytes.
    pub id: [u8; 16],
    /// Unix milliseconds of receipt: the Kafka timestamp.
    pub time_ms: u64,
}
