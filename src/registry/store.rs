//! The registry on disk: one SQLite file, brought to its schema, and rows of pixels.
//!
//! A commit is durable before a function returns (WAL with `synchronous = FULL`). The schema only grows, in numbered
//! steps; a file with more steps than this program knows is refused and left untouched. When the file can't be
//! written it is read; when it can't even be created, an empty one in memory stands in and refuses writes too.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::Error;
use super::audit::{self, Note};
use super::schema::MIGRATIONS;
use super::tokens::Token;
use crate::pixel::{Pixel, PixelId};
use crate::time::Timestamp;

/// Name of the file in the data directory.
pub const FILE: &str = "registry.sqlite";

/// How long a statement waits for another process (`pixelgate token`) that holds the write lock.
const BUSY: Duration = Duration::from_secs(5);

/// Bounds the WAL at about 400 KiB, so that it doesn't take the last room of a small disk.
const CHECKPOINT_PAGES: u32 = 100;

/// The door by which a pixel came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// Created through the management API.
    Local,
    /// Static, from the config; known only as long as the config names it.
    Config,
    /// Seen in an answer of the upstream.
    Learnt,
}

impl Origin {
    fn as_str(self) -> &'static str {
        match self {
            Origin::Local => "local",
            Origin::Config => "config",
            Origin::Learnt => "learnt",
        }
    }

    fn parse(text: &str) -> Origin {
        match text {
            "local" => Origin::Local,
            "config" => Origin::Config,
            _ => Origin::Learnt,
        }
    }
}

/// A pixel as stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Stored {
    pub(super) pixel: Pixel,
    pub(super) creator: String,
    pub(super) origin: Origin,
    pub(super) last_event: Option<Timestamp>,
}

/// What can be done with the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// All is well.
    Writable,
    /// The file can be read, not written; why.
    ReadOnly(String),
    /// There is no file and none can be made; why.
    Memory(String),
}

/// The open file. Used under the registry's lock.
pub(super) struct Store {
    pub(super) connection: Connection,
    pub(super) access: Access,
    path: PathBuf,
    /// The tokens as of `PRAGMA data_version`.
    pub(super) tokens: Option<(i64, Vec<Token>)>,
}

impl Store {
    /// Opens the registry of a data directory, in the best way that works.
    pub(super) fn open(data_dir: &Path, now: Timestamp) -> Result<Store, Error> {
        let path = data_dir.join(FILE);
        let why = match open_writable(&path, Some(now)) {
            Ok(connection) => return Ok(Store { connection, access: Access::Writable, path, tokens: None }),
            Err(Error::Unwritable { why, .. }) => why,
            Err(other) => return Err(other),
        };
        Store::open_degraded(path, why)
    }

    /// Opens the registry where it can't be written.
    pub(super) fn open_degraded(path: PathBuf, why: String) -> Result<Store, Error> {
        // A file of no bytes is what a full disk leaves of a first start.
        let exists = fs::metadata(&path).is_ok_and(|meta| meta.len() > 0);
        if exists && let Some(connection) = open_readable(&path)? {
            return Ok(Store { connection, access: Access::ReadOnly(why), path, tokens: None });
        }
        let mut connection = Connection::open_in_memory().map_err(|error| fault(&path, error))?;
        migrate(&mut connection, &path)?;
        Ok(Store { connection, access: Access::Memory(why), path, tokens: None })
    }

    /// Tries to write again; true if that works now and the rows must be read anew.
    pub(super) fn recover(&mut self, now: Timestamp) -> bool {
        if self.access == Access::Writable {
            return false;
        }
        // Connections of one process share the index of the WAL: as long as the old one has it open for reading, no
        // new one can write.
        let Ok(placeholder) = Connection::open_in_memory() else { return false };
        self.tokens = None;
        drop(std::mem::replace(&mut self.connection, placeholder));
        if let Ok(connection) = open_writable(&self.path, Some(now)) {
            self.connection = connection;
            self.access = Access::Writable;
            return true;
        }
        let why = match &self.access {
            Access::ReadOnly(why) | Access::Memory(why) => why.clone(),
            Access::Writable => unreachable!("returned above"),
        };
        if let Ok(store) = Store::open_degraded(self.path.clone(), why) {
            *self = store;
        }
        false
    }

    /// An error unless the store can be written.
    pub(super) fn require_writable(&self) -> Result<(), Error> {
        match &self.access {
            Access::Writable => Ok(()),
            Access::ReadOnly(why) | Access::Memory(why) => {
                Err(Error::Unwritable { path: self.path.clone(), why: why.clone() })
            }
        }
    }

    /// Names the file in an error.
    pub(super) fn fault(&self, source: rusqlite::Error) -> Error {
        fault(&self.path, source)
    }

    /// All pixels in order of creation.
    pub(super) fn pixels(&self) -> Result<Vec<Stored>, Error> {
        let sql =
            "SELECT id, ad_account_id, name, tag, creator, archived, origin, last_event_ms FROM pixels ORDER BY seq";
        let mut statement = self.connection.prepare(sql).map_err(|error| self.fault(error))?;
        let rows = statement.query_map([], read_pixel).map_err(|error| self.fault(error))?;
        // An id that doesn't parse was written by something else; it could never be fired.
        rows.filter_map(Result::transpose).collect::<Result<_, _>>().map_err(|error| self.fault(error))
    }

    /// Whether there is a row of this id.
    pub(super) fn holds(&self, id: PixelId) -> Result<bool, Error> {
        let sql = "SELECT EXISTS (SELECT 1 FROM pixels WHERE id = ?1)";
        self.connection.query_row(sql, [id.to_string()], |row| row.get(0)).map_err(|error| self.fault(error))
    }

    /// Adds pixels or replaces what is known of them, all or none. Their place in the order and their events stay.
    pub(super) fn put(&mut self, pixels: &[Stored], now: Timestamp) -> Result<(), Error> {
        self.require_writable()?;
        put(&mut self.connection, pixels, None, now).map_err(|error| self.refusal(error))
    }

    /// As [`Store::put`], for what somebody asked for: with its row in the audit log, or neither.
    pub(super) fn change(&mut self, pixel: &Stored, note: &Note, now: Timestamp) -> Result<(), Error> {
        self.require_writable()?;
        let pixel = std::slice::from_ref(pixel);
        put(&mut self.connection, pixel, Some(note), now).map_err(|error| self.refusal(error))
    }

    fn refusal(&self, error: rusqlite::Error) -> Error {
        match error.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation) => Error::NameTaken,
            _ => self.fault(error),
        }
    }

    /// Of which database this file is a copy, and up to which revision; of none at first.
    pub(super) fn copied(&self) -> Result<(String, i64), Error> {
        let word = |key: &str| -> rusqlite::Result<Option<String>> {
            let sql = "SELECT value FROM meta WHERE key = ?1";
            self.connection.query_row(sql, [key], |row| row.get(0)).optional()
        };
        let id = word("copied_database_id").map_err(|error| self.fault(error))?;
        let revision = word("copied_revision").map_err(|error| self.fault(error))?;
        Ok((id.unwrap_or_default(), revision.and_then(|text| text.parse().ok()).unwrap_or_default()))
    }

    /// Copies rows of a database, and up to which revision that is. They are no longer this file's own, so its rule
    /// for names doesn't hold them: the database has.
    pub(super) fn copy(&mut self, pixels: &[Stored], id: &str, revision: i64, now: Timestamp) -> Result<(), Error> {
        self.require_writable()?;
        let run = |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for stored in pixels {
                let sql = "UPDATE pixels SET origin = 'learnt' WHERE id = ?1 AND origin = 'local'";
                transaction.prepare_cached(sql)?.execute([stored.pixel.id.to_string()])?;
            }
            write(&transaction, pixels, now)?;
            for (key, value) in [("copied_database_id", id), ("copied_revision", &revision.to_string())] {
                let sql = "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
                transaction.prepare_cached(sql)?.execute([key, value])?;
            }
            transaction.commit()
        };
        run(&mut self.connection).map_err(|error| self.fault(error))
    }

    /// Deletes learnt pixels; those that were there.
    pub(super) fn forget(&mut self, ids: &[PixelId]) -> Result<Vec<PixelId>, Error> {
        self.require_writable()?;
        let run = |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut gone = Vec::new();
            for id in ids {
                let sql = "DELETE FROM pixels WHERE id = ?1 AND origin = 'learnt'";
                if transaction.execute(sql, [id.to_string()])? > 0 {
                    gone.push(*id);
                }
            }
            transaction.commit().map(|()| gone)
        };
        run(&mut self.connection).map_err(|error| self.fault(error))
    }

    /// Stores the newest events of pixels.
    pub(super) fn touch(&mut self, events: &[(PixelId, Timestamp)]) -> Result<(), Error> {
        self.require_writable()?;
        let run = |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut update = transaction.prepare_cached("UPDATE pixels SET last_event_ms = ?2 WHERE id = ?1")?;
                for (id, time) in events {
                    update.execute(params![id.to_string(), time.0 as i64])?;
                }
            }
            transaction.commit()
        };
        run(&mut self.connection).map_err(|error| self.fault(error))
    }
}

fn read_pixel(row: &Row<'_>) -> rusqlite::Result<Option<Stored>> {
    let id: String = row.get(0)?;
    let Some(id) = PixelId::parse(id.as_bytes()) else { return Ok(None) };
    let pixel = Pixel { id, ad_account_id: row.get(1)?, name: row.get(2)?, tag: row.get(3)?, archived: row.get(5)? };
    let origin: String = row.get(6)?;
    let last_event: Option<i64> = row.get(7)?;
    Ok(Some(Stored {
        pixel,
        creator: row.get(4)?,
        origin: Origin::parse(&origin),
        last_event: last_event.map(|ms| Timestamp(ms as u64)),
    }))
}

fn put(connection: &mut Connection, pixels: &[Stored], note: Option<&Note>, now: Timestamp) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    write(&transaction, pixels, now)?;
    if let Some(note) = note {
        audit::write(&transaction, note, now)?;
    }
    transaction.commit()
}

fn write(transaction: &Transaction<'_>, pixels: &[Stored], now: Timestamp) -> rusqlite::Result<()> {
    // The origin of a known pixel stays: one created here outlives its line in the config.
    let mut insert = transaction.prepare_cached(
        "INSERT INTO pixels (id, ad_account_id, name, tag, creator, archived, origin, created_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (id) DO UPDATE SET ad_account_id = excluded.ad_account_id, name = excluded.name,
         tag = excluded.tag, creator = excluded.creator, archived = excluded.archived",
    )?;
    for Stored { pixel, creator, origin, .. } in pixels {
        insert.execute(params![
            pixel.id.to_string(),
            pixel.ad_account_id,
            pixel.name,
            pixel.tag,
            creator,
            pixel.archived,
            origin.as_str(),
            now.0 as i64
        ])?;
    }
    Ok(())
}

/// Opens and migrates; with `probe`, also writes a word, since a full disk shows only then.
pub(super) fn open_writable(path: &Path, probe: Option<Timestamp>) -> Result<Connection, Error> {
    make_private(path).map_err(|error| Error::Unwritable { path: path.into(), why: error.to_string() })?;
    let open = || -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        Ok(connection)
    };
    let refused = |error| fault(path, error);
    let mut connection = open().map_err(refused)?;
    // SQLite falls back to reading by itself.
    if connection.is_readonly("main").map_err(refused)? {
        return Err(Error::Unwritable { path: path.into(), why: "it may only be read".into() });
    }
    let found = version(&connection).map_err(refused)?;
    if found > MIGRATIONS.len() {
        return Err(newer(path, found));
    }
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).map_err(refused)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(refused)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES).map_err(refused)?;
    connection.pragma_update(None, "trusted_schema", false).map_err(refused)?;
    migrate(&mut connection, path)?;
    if let Some(now) = probe {
        let sql = "INSERT INTO meta VALUES ('opened_ms', ?1) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        connection.execute(sql, [now.0.to_string()]).map_err(refused)?;
    }
    Ok(connection)
}

/// Opens for reading; `None` if nothing was ever stored there.
pub(super) fn open_readable(path: &Path) -> Result<Option<Connection>, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> rusqlite::Result<(Connection, usize)> {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        let version = version(&connection)?;
        Ok((connection, version))
    };
    // Reading a WAL needs its index beside it. Where that can't be made and the last stop was clean, the file alone
    // holds everything: `immutable` reads it without.
    let (connection, found) = match open() {
        Ok(opened) => opened,
        Err(error) if wal_is_empty(path) => open_immutable(path).map_err(|_| fault(path, error))?,
        Err(error) => return Err(fault(path, error)),
    };
    match found {
        0 => Ok(None),
        found if found > MIGRATIONS.len() => Err(newer(path, found)),
        _ => Ok(Some(connection)),
    }
}

/// Refuses a file of a newer program, and changes nothing: after a clean stop not even the files are made that reading
/// a WAL needs. Any other trouble is for who opens it.
pub(super) fn refuse_newer(path: &Path) -> Result<(), Error> {
    if !wal_is_empty(path) {
        return match open_readable(path) {
            Err(error @ Error::Newer { .. }) => Err(error),
            _ => Ok(()),
        };
    }
    match open_immutable(path) {
        Ok((_, found)) if found > MIGRATIONS.len() => Err(newer(path, found)),
        _ => Ok(()),
    }
}

pub(super) fn open_immutable(path: &Path) -> rusqlite::Result<(Connection, usize)> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => uri.push(*byte as char),
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri, flags)?;
    let version = version(&connection)?;
    Ok((connection, version))
}

fn wal_is_empty(path: &Path) -> bool {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    fs::metadata(PathBuf::from(wal)).map_or(true, |meta| meta.len() == 0)
}

/// Makes the file, readable by its owner only (SQLite gives its side files the same mode).
fn make_private(path: &Path) -> io::Result<()> {
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => sync_directory(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes the name of a file durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(parent)?.sync_all()
}

fn version(connection: &Connection) -> rusqlite::Result<usize> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), Error> {
    let mut run = || -> rusqlite::Result<usize> {
        if version(connection)? == MIGRATIONS.len() {
            return Ok(MIGRATIONS.len());
        }
        // Read again under the write lock: another process may be at it.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found = version(&transaction)?;
        if found > MIGRATIONS.len() {
            return Ok(found);
        }
        for step in &MIGRATIONS[found..] {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
        transaction.commit()?;
        Ok(MIGRATIONS.len())
    };
    match run().map_err(|error| fault(path, error))? {
        found if found > MIGRATIONS.len() => Err(newer(path, found)),
        _ => Ok(()),
    }
}

fn newer(path: &Path, found: usize) -> Error {
    Error::Newer { path: path.into(), found, known: MIGRATIONS.len() }
}

/// Tells a disk that can't be written from a file that isn't ours or is damaged.
pub(super) fn fault(path: &Path, source: rusqlite::Error) -> Error {
    match source.sqlite_error_code() {
        Some(
            ErrorCode::PermissionDenied
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::ReadOnly
            | ErrorCode::SystemIoFailure
            | ErrorCode::DiskFull
            | ErrorCode::CannotOpen,
        ) => Error::Unwritable { path: path.into(), why: source.to_string() },
        _ => Error::Sqlite { path: path.into(), source },
    }
}
