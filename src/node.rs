//! One process per data directory, and the directory's name: the lock and `node_id`. Both are held for life.
//!
//! A disk without room doesn't stop the start: the name is then kept in memory until [`Node::store`] succeeds.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A data directory that is ours while this value lives.
#[derive(Debug)]
pub struct Node {
    /// The node's name in records and Kafka identities.
    pub node_id: String,
    data_dir: PathBuf,
    is_stored: AtomicBool,
    _lock: File,
}

/// The directory can't be ours. All but `Io` are the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another process has it.
    #[error("{path}: in use by {holder}; one process per data directory")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// What the holder wrote about itself.
        holder: String,
    },
    /// The directory belongs to another node.
    #[error("node_id: {configured:?} is configured, but {path} belongs to node {stored:?}; use its own directory")]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// What the config says.
        configured: String,
        /// What the directory says.
        stored: String,
    },
    /// What should be its name is none.
    #[error("node_id: {path} holds no node id; allowed are 1 to 64 letters, digits, '.', '_' and '-'")]
    BadName {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("data_dir: {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A lock that is taken is tried for again a few times: `check` holds it for a moment to see whether it is taken.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);
/// The file of the directory's name.
pub const NAME: &str = "node_id";
/// Longest node id: it is part of every record and of Kafka's transactional id.
pub const MAX_NODE_ID_BYTES: usize = 64;

/// Whether a text can be a node id: letters, digits, `.`, `_` and `-`, as Kafka allows in names.
pub fn is_node_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !text.is_empty() && text.len() <= MAX_NODE_ID_BYTES && text.bytes().all(allowed)
}

impl Node {
    /// Locks a directory (made if missing) and finds or makes its node id.
    pub fn claim(data_dir: &Path, configured: Option<&str>) -> Result<Node, ClaimError> {
        let failed = |source| ClaimError::Io { path: data_dir.to_path_buf(), source };
        std::fs::create_dir_all(data_dir).map_err(failed)?;
        let mut tries = 0;
        let lock = loop {
            match lock(data_dir)? {
                Ok(lock) => break lock,
                Err(holder) if tries == TRIES => {
                    return Err(ClaimError::InUse { path: data_dir.to_path_buf(), holder });
                }
                Err(_) => tries += 1,
            }
            std::thread::sleep(PAUSE);
        };
        // Only for the message of a second process; a disk that can't be written must not stop the start.
        let _ = std::fs::write(data_dir.join("lock"), format!("process {}\n", std::process::id()));
        let stored = stored_name(data_dir)?;
        if let (Some(stored), Some(configured)) = (&stored, configured)
            && stored != configured
        {
            let (path, configured) = (data_dir.to_path_buf(), configured.to_owned());
            return Err(ClaimError::OtherNode { path, configured, stored: stored.clone() });
        }
        let is_stored = AtomicBool::new(stored.is_some());
        let node_id = stored.unwrap_or_else(|| configured.map_or_else(random_name, str::to_owned));
        let node = Node { node_id, data_dir: data_dir.to_path_buf(), is_stored, _lock: lock };
        match node.store() {
            Err(error) if !is_out_of_room(&error) => Err(failed(error)),
            _ => Ok(node),
        }
    }

    /// Keeps the name, if that is not done: once a full disk has room again.
    pub fn store(&self) -> io::Result<()> {
        if !self.is_stored.load(Ordering::Relaxed) {
            write_durably(&self.data_dir, &self.data_dir.join(NAME), &self.node_id)?;
            self.is_stored.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Whether another process has the directory, and what it says about itself.
pub fn holder(data_dir: &Path) -> Result<Option<String>, ClaimError> {
    Ok(lock(data_dir)?.err())
}

/// The lock, or who has it. The directory itself is locked: that works on a full or read-only disk, too.
fn lock(data_dir: &Path) -> Result<Result<File, String>, ClaimError> {
    let failed = |source| ClaimError::Io { path: data_dir.to_path_buf(), source };
    let lock = File::open(data_dir).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(Ok(lock)),
        Err(TryLockError::WouldBlock) => {
            let holder = std::fs::read_to_string(data_dir.join("lock")).unwrap_or_default();
            let holder = holder.trim().escape_debug().to_string();
            Ok(Err(if holder.is_empty() { "another process".into() } else { holder }))
        }
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// The name that a directory has, if it has one.
pub fn stored_name(data_dir: &Path) -> Result<Option<String>, ClaimError> {
    let path = data_dir.join(NAME);
    let name = match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(ClaimError::BadName { path }),
        Err(source) => return Err(ClaimError::Io { path, source }),
    };
    match name.is_empty() {
        true => Ok(None),
        false if is_node_id(&name) => Ok(Some(name)),
        false => Err(ClaimError::BadName { path }),
    }
}

/// No room, or not writable at all; the device itself doesn't fail.
fn is_out_of_room(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem | PermissionDenied)
}

fn write_durably(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, format!("{text}\n"))?;
    File::open(&temporary)?.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

fn random_name() -> String {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).expect("the operating system has random bytes");
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("node-{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder_and_one_name() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::claim(dir.path(), None).unwrap();
        let error = Node::claim(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        let name = node.node_id.clone();
        drop(node);
        assert!(matches!(Node::claim(dir.path(), Some("other")), Err(ClaimError::OtherNode { .. })));
        assert_eq!(Node::claim(dir.path(), Some(&name)).unwrap().node_id, name);
        assert_eq!(holder(dir.path()).unwrap(), None);
        std::fs::write(dir.path().join(NAME), "a b\n").unwrap();
        let error = Node::claim(dir.path(), None).unwrap_err();
        assert!(matches!(error, ClaimError::BadName { .. }), "a name that is none is not replaced in silence: {error}");
    }
}
