//! A copy of the registry as one file, made beside a running gateway: pixels, tokens' hashes, the audit log.
//!
//! The copy is of one moment (`VACUUM INTO` reads in one transaction), is checked, synced, and has its name only when
//! it is whole. Writers are not held up: with a WAL a reader never blocks them.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Error;
use super::store::{self, FILE};

/// Copies the registry of a data directory to a file that must not be there yet. Returns its length in bytes.
pub fn write(data_dir: &Path, target: &Path) -> Result<u64, Error> {
    let source = data_dir.join(FILE);
    let of = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path: path.clone(), source }
    };
    fs::metadata(&source).map_err(of(&source))?;
    let Some(connection) = store::open_readable(&source)? else {
        return Err(of(&source)(io::Error::new(io::ErrorKind::NotFound, "holds no registry yet")));
    };
    if target.symlink_metadata().is_ok() {
        return Err(of(target)(io::Error::new(io::ErrorKind::AlreadyExists, "is there already; nothing was written")));
    }
    let draft = draft_of(target);
    // What a run that was killed left behind.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(of(&draft)(error)),
        _ => {}
    }
    let made = make(&connection, &draft).and_then(|length| {
        fs::rename(&draft, target).and_then(|()| store::sync_directory(target)).map_err(of(target))?;
        Ok(length)
    });
    if made.is_err() {
        let _ = fs::remove_file(&draft);
    }
    made
}

fn make(connection: &rusqlite::Connection, draft: &Path) -> Result<u64, Error> {
    let failed = |source| Error::Io { path: draft.into(), source };
    let refused = |error| store::fault(draft, error);
    // An empty file is what SQLite may write into; only its owner may read it, as the original.
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft).map_err(failed)?;
    let text = draft.to_str().ok_or_else(|| failed(io::Error::other("its name is no UTF-8")))?;
    connection.execute("VACUUM INTO ?1", [text]).map_err(refused)?;
    let (copy, _) = store::open_immutable(draft).map_err(refused)?;
    let verdict: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(refused)?;
    if verdict != "ok" {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, format!("the copy is damaged: {verdict}"))));
    }
    file.sync_all().map_err(failed)?;
    file.metadata().map(|meta| meta.len()).map_err(failed)
}

fn draft_of(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".new");
    name.into()
}
