//! Segment files: their names, their directory, and what is known of each without reading its batches.

use std::io;
use std::path::{Path, PathBuf};

use super::disk::{Disk, DiskFile};
use super::frame::{FORMAT, HeaderRead, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::{OpenError, hex};
use crate::record::Position;

/// Digits of a segment's name, so that names sort as numbers do.
const NAME_DIGITS: usize = 20;
const SUFFIX: &str = ".seg";
/// The file that is allocated ahead of its use.
pub const SPARE_NAME: &str = "spare.tmp";

/// What is known of a segment in the index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Number in its name; never reused.
    pub seq: u64,
    /// Position of its first record.
    pub base: Position,
    /// Event records before `base`.
    pub events_before: u64,
    /// The run that wrote it; zero if its header is destroyed.
    pub incarnation: [u8; 16],
    /// Unix milliseconds of its creation.
    pub created_ms: u64,
    /// Bytes of its file that count: up to the last batch (or allocated, for the open one).
    pub bytes: u64,
    /// Nothing of it can be read: it stands for the gap before the next segment, whose `base` it has.
    pub is_unreadable: bool,
}

/// Paths of one journal.
#[derive(Clone, Debug)]
pub struct Paths {
    /// `<data_dir>/journal`.
    pub journal: PathBuf,
    /// `<data_dir>/damaged`.
    pub damaged: PathBuf,
    /// `<data_dir>/parked`.
    pub parked: PathBuf,
}

impl Paths {
    /// The paths below a data directory.
    pub fn new(data_dir: &Path) -> Paths {
        Paths { journal: data_dir.join("journal"), damaged: data_dir.join("damaged"), parked: data_dir.join("parked") }
    }

    /// Path of a segment.
    pub fn segment(&self, seq: u64) -> PathBuf {
        self.journal.join(segment_name(seq))
    }

    /// Creates a directory of the journal, so that its name survives a power cut.
    pub fn make(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        disk.create_dir(dir)?;
        dir.parent().map_or(Ok(()), |parent| disk.sync_dir(parent))
    }

    /// Path of the segment allocated ahead.
    pub fn spare(&self) -> PathBuf {
        self.journal.join(SPARE_NAME)
    }

    /// Path of the identity file.
    pub fn identity(&self) -> PathBuf {
        self.journal.join("journal.json")
    }

    /// Path of the room kept back for the writes that free room.
    pub fn reserve(&self) -> PathBuf {
        self.journal.join("reserve")
    }

    /// Path of the local copy of the cursor.
    pub fn cursor(&self) -> PathBuf {
        self.journal.join("cursor.json")
    }
}

/// `00000000000000000042.seg`.
pub fn segment_name(seq: u64) -> String {
    format!("{seq:0NAME_DIGITS$}{SUFFIX}")
}

/// The number in a segment's name; `None` for any other file (editors and desktops leave strays).
pub fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let well_formed = digits.len() == NAME_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    if well_formed { digits.parse().ok() } else { None }
}

/// Numbers and lengths of all segments, ascending.
pub fn list(disk: &dyn Disk, paths: &Paths) -> io::Result<Vec<(u64, u64)>> {
    let mut segments: Vec<(u64, u64)> = disk
        .list(&paths.journal)?
        .into_iter()
        .filter_map(|(name, bytes)| parse_segment_name(&name).map(|seq| (seq, bytes)))
        .collect();
    segments.sort_unstable();
    Ok(segments)
}

/// Reads the header of a segment. A newer format is an error, a destroyed one is `None`.
pub fn read_header(file: &dyn DiskFile, path: &Path) -> Result<Option<SegmentHeader>, OpenError> {
    let block = read_up_to(file, 0, SEGMENT_HEADER_BYTES as usize).map_err(|source| OpenError::io(path, source))?;
    match SegmentHeader::decode(&block) {
        HeaderRead::Valid(header) => Ok(Some(header)),
        HeaderRead::Newer(found) => Err(OpenError::Newer { path: path.to_path_buf(), found, supported: FORMAT }),
        HeaderRead::Bad => Ok(None),
    }
}

/// Reads `bytes` at `offset`, fewer only at the end of the file.
pub fn read_up_to(file: &dyn DiskFile, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let filled = fill(file, offset, &mut buffer)?;
    buffer.truncate(filled);
    Ok(buffer)
}

/// Fills `buffer` from `offset`; returns how much there was.
pub fn fill(file: &dyn DiskFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The journal's identity, made once and kept beside its segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Random, made with the journal.
    pub journal_id: [u8; 16],
}

#[derive(serde::Serialize, serde::Deserialize)]
struct IdentityFile {
    format: u32,
    journal_id: String,
}

impl Identity {
    /// Reads `journal.json`; `None` if there is none or it is unreadable (segments carry a copy).
    pub fn read(disk: &dyn Disk, paths: &Paths) -> Result<Option<Identity>, OpenError> {
        let path = paths.identity();
        let bytes = match disk.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(OpenError::io(&path, source)),
        };
        let Ok(file) = serde_json::from_slice::<IdentityFile>(&bytes) else { return Ok(None) };
        if file.format > FORMAT {
            return Err(OpenError::Newer { path, found: file.format, supported: FORMAT });
        }
        Ok(hex::decode(&file.journal_id).map(|journal_id| Identity { journal_id }))
    }

    /// The journal's directory and this in it, durable before anything else is; `is_made`: this is there by now.
    pub fn make(&self, disk: &dyn Disk, paths: &Paths, is_made: &mut bool) -> io::Result<()> {
        paths.make(disk, &paths.journal)?;
        if !*is_made {
            self.write(disk, paths)?;
            *is_made = true;
        }
        Ok(())
    }

    /// Writes `journal.json`.
    pub fn write(&self, disk: &dyn Disk, paths: &Paths) -> io::Result<()> {
        let file = IdentityFile { format: FORMAT, journal_id: hex::encode(&self.journal_id) };
        disk.replace(&paths.identity(), &serde_json::to_vec(&file)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_wrong_in_each_way() {
        assert_eq!(parse_segment_name(&segment_name(42)), Some(42));
        for bad in [
            "42.seg",
            "00000000000000000042",
            "00000000000000000042.log",
            "00000000000000000042.seg.tmp",
            "0000000000000000004x.seg",
            "+0000000000000000042.seg",
            "99999999999999999999.seg",
            ".DS_Store",
            SPARE_NAME,
            "",
        ] {
            assert_eq!(parse_segment_name(bad), None, "{bad}");
        }
    }
}
