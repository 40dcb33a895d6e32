//! The only file of the journal that touches the file system: a seam, so that tests can lose, tear and flip bytes.
//!
//! No retries and no interpretation here: errors go up with their kind, and whoever owns the file decides.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::Advice;

/// One open file. Offsets are explicit, so that a reader and a writer never share a position.
pub trait DiskFile: Send + Sync {
    /// Reads at most `buffer.len()` bytes at `offset`; 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes written bytes (and the length needed to read them) durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Writes zeros over allocated room that nobody has written to, and begins to bring them to the disk: a sync of
    /// what comes later in their place is that of its bytes alone. `false` where that would gain nothing.
    fn zero(&self, _offset: u64, _bytes: u64) -> io::Result<bool> {
        Ok(false)
    }
}

/// What the journal needs of a file system.
pub trait Disk: Send + Sync {
    /// Names and lengths of the files directly in `dir`.
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>>;
    /// Creates a directory with its parents; fine if it is there.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Creates (or empties) a file and allocates `bytes` of zeros, so that later writes need no new room.
    fn create(&self, path: &Path, bytes: u64) -> io::Result<Box<dyn DiskFile>>;
    /// Opens an existing file, for writing too if `write`.
    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>>;
    /// The whole content of a small file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Replaces a small file: temporary file, sync, rename, sync of the directory. All or nothing after a crash.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Renames within one directory; durable after `sync_dir`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes created, renamed and removed names of a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that an unprivileged writer could still allocate.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// File systems (linux/magic.h) that note in their own journal when an allocated block is first written, and write over
/// it from then on: ext4, XFS. Others write each time elsewhere (btrfs, ZFS), or are not known.
const OVERWRITES: [u64; 2] = [0xef53, 0x5846_5342];
static ZEROS: [u8; 256 * 1024] = [0; 256 * 1024];

/// The machine's file system.
#[derive(Clone, Copy, Debug)]
pub struct RealDisk;

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        File::set_len(self, bytes)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<bool> {
        let kind = rustix::fs::fstatfs(self)?.f_type as u64 & 0xffff_ffff;
        if !OVERWRITES.contains(&kind) {
            return Ok(false);
        }
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let piece = ((end - at) as usize).min(ZEROS.len());
            self.write_all_at(&ZEROS[..piece], at)?;
            at += piece as u64;
        }
        // What is said not to be needed begins to be written, and nobody waits; as it is not clean yet, it stays.
        rustix::fs::fadvise(self, offset, NonZeroU64::new(bytes), Advice::DontNeed)?;
        Ok(true)
    }
}

impl Disk for RealDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            // A name that is not UTF-8 is none of ours; a file may be removed by its owner while we look.
            let (Ok(name), Ok(metadata)) = (entry.file_name().into_string(), entry.metadata()) else { continue };
            if metadata.is_file() {
                files.push((name, metadata.len()));
            }
        }
        Ok(files)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        if bytes > 0 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
                Ok(()) => {}
                // A file system without allocation (such as ZFS): the room is then not promised, only the length.
                Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(write).open(path)?))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        self.sync_dir(parent)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Whether an error says "no room" (or "not writable at all") rather than "this device fails".
pub fn is_out_of_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::PermissionDenied
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_ahead_change_nothing_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = RealDisk.create(&path, 1 << 20).unwrap();
        file.write_at(b"a record", 65_528).unwrap();
        // Whether it gains something is the file system's matter.
        file.zero(65_536, 700_000).unwrap();
        file.write_at(b"another", 65_536).unwrap();
        file.sync().unwrap();
        let content = std::fs::read(&path).unwrap();
        assert_eq!((content.len(), &content[65_528..65_543]), (1 << 20, &b"a recordanother"[..]));
        assert!(content[..65_528].iter().chain(&content[65_543..]).all(|byte| *byte == 0));
    }
}
