//! Records that Kafka refused alone, kept in `<data_dir>/parked/<position>.json` until somebody retries them.
//!
//! A file counts only once the cursor in Kafka has passed its position: until then the record is pending, the file is
//! the trace of an attempt, and the next start removes it. Knows no Kafka.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::journal::disk::{Disk, RealDisk};
use crate::journal::segment::Paths;
use crate::journal::{Entry, hex};
use crate::record::{Head, Kind, Position};
use crate::time::Timestamp;

const FORMAT: u32 = 1;
const SUFFIX: &str = ".json";

/// A parked record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parked {
    /// Its position in the journal.
    pub position: Position,
    /// Kind, id and time of receipt.
    pub head: Head,
    /// Its key in the journal.
    pub key: Vec<u8>,
    /// The record itself, byte for byte.
    pub body: Vec<u8>,
    /// What Kafka said.
    pub reason: String,
    /// When it was parked.
    pub parked_at: Timestamp,
}

/// The file. Bodies are JSON; anything else is kept in hexadecimal digits.
#[derive(Serialize, Deserialize)]
struct File<'a> {
    format: u32,
    position: u64,
    record_id: String,
    received_ms: u64,
    parked_at: String,
    parked_ms: u64,
    reason: String,
    size: usize,
    key: String,
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    record: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    record_hex: Option<String>,
}

/// A parked file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ParkedError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The content is not what we write.
    #[error("{path}: not a parked record of this version: {text}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        text: String,
    },
}

impl Parked {
    /// A record as it lies in the journal.
    pub fn new(entry: &Entry<'_>, reason: String, parked_at: Timestamp) -> Parked {
        let (key, body) = (entry.key.to_vec(), entry.body.to_vec());
        Parked { position: entry.position, head: entry.head, key, body, reason, parked_at }
    }

    /// As an entry again.
    pub fn entry(&self) -> Entry<'_> {
        Entry { position: self.position, head: self.head, key: &self.key, body: &self.body }
    }

    /// Text of its `record_id`.
    pub fn record_id(&self) -> String {
        uuid::Uuid::from_bytes(self.head.id).hyphenated().to_string()
    }

    /// Writes the file, durably; returns its length.
    pub fn write(&self, data_dir: &Path) -> io::Result<u64> {
        let text = std::str::from_utf8(&self.body).ok();
        let raw = text.and_then(|text| serde_json::from_str::<&RawValue>(text).ok().filter(|raw| raw.get() == text));
        let file = File {
            format: FORMAT,
            position: self.position.0,
            record_id: self.record_id(),
            received_ms: self.head.time_ms,
            parked_at: self.parked_at.to_rfc3339(),
            parked_ms: self.parked_at.0,
            reason: self.reason.clone(),
            size: self.body.len(),
            key: digits(&self.key),
            record: raw,
            record_hex: raw.is_none().then(|| digits(&self.body)),
        };
        let (paths, bytes) = (Paths::new(data_dir), serde_json::to_vec(&file)?);
        if !paths.parked.exists() {
            RealDisk.create_dir(&paths.parked)?;
            RealDisk.sync_dir(data_dir)?;
        }
        RealDisk.replace(&path_of(&paths, self.position), &bytes)?;
        Ok(bytes.len() as u64)
    }

    fn parse(bytes: &[u8], position: Position) -> Result<Parked, String> {
        let file: File<'_> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if file.format != FORMAT || file.position != position.0 {
            return Err(format!("format {}, position {}", file.format, file.position));
        }
        let body = match (file.record, &file.record_hex) {
            (Some(raw), None) => Some(raw.get().as_bytes().to_vec()),
            (None, Some(text)) => bytes_of(text),
            _ => None,
        };
        let id = hex::decode(&file.record_id.replace('-', "")).ok_or("record_id")?;
        Ok(Parked {
            position,
            head: Head { kind: Kind::Event, id, time_ms: file.received_ms },
            key: bytes_of(&file.key).ok_or("key")?,
            body: body.filter(|body| body.len() == file.size).ok_or("record")?,
            reason: file.reason,
            parked_at: Timestamp(file.parked_ms),
        })
    }
}

/// Positions of all files, ascending. Only the names are read.
pub fn positions(data_dir: &Path) -> Result<Vec<Position>, ParkedError> {
    let paths = Paths::new(data_dir);
    match crate::journal::books::parked_files(&RealDisk, &paths) {
        Ok(files) => Ok(files.into_keys().collect()),
        Err(source) => Err(ParkedError::Io { path: paths.parked, source }),
    }
}

/// Reads one file.
pub fn read(data_dir: &Path, position: Position) -> Result<Parked, ParkedError> {
    let path = path_of(&Paths::new(data_dir), position);
    let bytes = RealDisk.read(&path).map_err(|source| ParkedError::Io { path: path.clone(), source })?;
    Parked::parse(&bytes, position).map_err(|text| ParkedError::Content { path, text })
}

/// Removes a file, durably; fine if it is gone.
pub fn remove(data_dir: &Path, position: Position) -> Result<(), ParkedError> {
    let paths = Paths::new(data_dir);
    let path = path_of(&paths, position);
    let removed = match RealDisk.remove(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other,
    };
    removed.and_then(|()| RealDisk.sync_dir(&paths.parked)).map_err(|source| ParkedError::Io { path, source })
}

fn path_of(paths: &Paths, position: Position) -> PathBuf {
    paths.parked.join(format!("{position}{SUFFIX}"))
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok().filter(|_| pair.len() == 2)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(body: &[u8]) -> Parked {
        let head = Head { kind: Kind::Event, id: [7; 16], time_ms: 1_700_000_000_000 };
        let entry = Entry { position: Position(42), head, key: b"6010", body };
        Parked::new(&entry, "too large: \"x\"\n\u{1b}[2J".into(), Timestamp(1_700_000_000_001))
    }

    #[test]
    fn a_record_comes_back_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        for body in [&br#"{"a":1.50,  "b":"\u00e9\/"}"#[..], b"no json", b"\xff\x00", b"", b" {} "] {
            let written = parked(body);
            let bytes = written.write(dir.path()).unwrap();
            assert_eq!(read(dir.path(), Position(42)).unwrap(), written);
            assert_eq!(positions(dir.path()).unwrap(), [Position(42)]);
            assert_eq!(std::fs::metadata(dir.path().join("parked/42.json")).unwrap().len(), bytes);
        }
        remove(dir.path(), Position(42)).unwrap();
        remove(dir.path(), Position(42)).unwrap();
        assert_eq!(positions(dir.path()).unwrap(), []);
    }

    #[test]
    fn a_file_that_is_not_ours_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path(), Position(1)), Err(ParkedError::Io { .. })));
        parked(b"{}").write(dir.path()).unwrap();
        let path = dir.path().join("parked/42.json");
        let text = std::fs::read_to_string(&path).unwrap();
        for bad in ["", "{}", &text.replace("\"size\":2", "\"size\":3"), &text.replace(":42,", ":43,"), &text[1..]] {
            std::fs::write(&path, bad).unwrap();
            let error = read(dir.path(), Position(42)).unwrap_err().to_string();
            assert!(error.contains("42.json"), "{error}");
        }
    }
}
