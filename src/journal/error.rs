//! Why a journal can't be opened, with the file it is about.

use std::io;
use std::path::{Path, PathBuf};

/// A journal can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A newer program wrote it.
    #[error("{path}: written by a newer version (format {found}, this program knows {supported}); nothing was touched")]
    Newer {
        /// Which file says so.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest this program knows.
        supported: u32,
    },
    /// A segment of another journal lies among ours.
    #[error("{path}: belongs to another journal or was renamed; move it away")]
    Foreign {
        /// The segment.
        path: PathBuf,
    },
    /// There are segments but nothing that says whose.
    #[error("{path}: neither journal.json nor any segment header is readable, so the records can't be checked")]
    Unidentified {
        /// The first segment.
        path: PathBuf,
    },
    /// There is no journal.
    #[error("{path}: no journal here")]
    Missing {
        /// Where one was expected.
        path: PathBuf,
    },
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn io(path: &Path, source: io::Error) -> OpenError {
        OpenError::Io { path: path.to_path_buf(), source }
    }
}
