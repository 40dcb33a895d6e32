//! One process per data directory, and the directory's name: the lock and `node_id`. Both are held for life.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// A data directory that is ours while this value lives.
#[derive(Debug)]
pub struct Node {
    /// The node's name in records and Kafka identities.
    pub node_id: String,
    _lock: File,
}

/// The directory can't be ours. All of these are exit code 2.
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
    /// The file system refused.
    #[error("data_dir: {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

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
        // The directory itself is locked: that works on a full or read-only disk too.
        let lock = File::open(data_dir).map_err(failed)?;
        let info = data_dir.join("lock");
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = std::fs::read_to_string(&info).unwrap_or_default();
                let holder = if holder.is_empty() { "another process".into() } else { holder.trim().to_owned() };
                return Err(ClaimError::InUse { path: data_dir.to_path_buf(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // Only for the message above; a disk that can't be written must not stop the start.
        let _ = std::fs::write(&info, format!("process {}\n", std::process::id()));
        let path = data_dir.join("node_id");
        let stored = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text.trim().to_owned()).filter(|text| is_node_id(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(failed(source)),
        };
        let node_id = match (stored, configured) {
            (Some(stored), Some(configured)) if stored != configured => {
                return Err(ClaimError::OtherNode {
                    path: data_dir.to_path_buf(),
                    configured: configured.to_owned(),
                    stored,
                });
            }
            (Some(stored), _) => stored,
            (None, configured) => {
                let node_id = configured.map_or_else(random_name, str::to_owned);
                write_durably(data_dir, &path, &node_id).map_err(failed)?;
                node_id
            }
        };
        Ok(Node { node_id, _lock: lock })
    }
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
    }
}
