//! Management tokens: made, stored as SHA-256, checked, revoked.
//!
//! The text of a token leaves this file twice only: returned by [`create`], and written to the first token's file. The
//! functions that take a data directory work beside a running gateway, which notices their commits.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Error;
use super::audit::{self, By, Note};
use super::store::{self, FILE, Store};
use crate::time::Timestamp;

/// Name of the file with the first token, and the name of that token.
pub const FIRST_TOKEN_FILE: &str = "management-token";

/// 40 of 36 letters: more than 200 bits.
const TOKEN_LETTERS: usize = 40;
/// The shortest text that an existing first-token file may hold.
const TOKEN_LETTERS_MIN: usize = 32;
/// Checked one by one at each request, so their number is bounded.
pub(super) const TOKENS_MAX: i64 = 10_000;
/// Bounds `creator` in replies.
const NAME_CHARS_MAX: usize = 100;

/// SHA-256 of a token: all that is stored of it.
pub type TokenHash = [u8; 32];

/// What a valid token allows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The token's name, for `creator`.
    pub name: String,
    /// The ad accounts it is for; empty = all.
    pub ad_accounts: Vec<String>,
    /// It may only read.
    pub read_only: bool,
}

impl Grant {
    /// Whether it is for this ad account. What belongs to no account is for tokens without a list.
    pub fn allows(&self, ad_account: Option<&str>) -> bool {
        self.ad_accounts.is_empty()
            || ad_account.is_some_and(|account| self.ad_accounts.iter().any(|allowed| allowed == account))
    }
}

/// A token as listed: all but its text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// Number, never reused.
    pub id: i64,
    /// What it allows, and its name.
    pub grant: Grant,
    /// When it was made.
    pub created: Timestamp,
    /// When it was revoked.
    pub revoked: Option<Timestamp>,
    pub(super) hash: TokenHash,
}

/// The stored form of a token.
pub fn hash(token: &[u8]) -> TokenHash {
    Sha256::digest(token).into()
}

/// Makes a token in a data directory and returns its text, which is stored nowhere.
pub fn create(data_dir: &Path, grant: &Grant, by: &By, now: Timestamp) -> Result<String, Error> {
    check_grant(grant)?;
    fs::create_dir_all(data_dir)
        .map_err(|error| Error::Unwritable { path: data_dir.into(), why: error.to_string() })?;
    let path = data_dir.join(FILE);
    let mut connection = store::open_writable(&path, None)?;
    let token = random_token().map_err(|source| Error::Io { path: path.clone(), source })?;
    match insert(&mut connection, grant, &hash(token.as_bytes()), &Note::token_created(by, grant), now) {
        Ok(true) => Ok(token),
        Ok(false) => Err(Error::Token(format!("{TOKENS_MAX} tokens are enough: revoked ones count, too"))),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            Err(Error::Token(format!("a token named {:?} exists already", grant.name)))
        }
        Err(error) => Err(store::fault(&path, error)),
    }
}

/// Refuses the registry of a data directory if a newer program wrote it, and changes nothing there.
pub fn refuse_newer(data_dir: &Path) -> Result<(), Error> {
    store::refuse_newer(&data_dir.join(FILE))
}

/// All tokens of a data directory, in order of creation.
pub fn list(data_dir: &Path) -> Result<Vec<Token>, Error> {
    let path = data_dir.join(FILE);
    fs::metadata(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    match store::open_readable(&path)? {
        Some(connection) => read_all(&connection).map_err(|error| store::fault(&path, error)),
        None => Ok(Vec::new()),
    }
}

/// Revokes the token of this name that still works; false if there is none.
pub fn revoke(data_dir: &Path, name: &str, by: &By, now: Timestamp) -> Result<bool, Error> {
    let path = data_dir.join(FILE);
    fs::metadata(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    let mut connection = store::open_writable(&path, None)?;
    let note = Note::token_revoked(by, name);
    let mut run = || {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = "UPDATE tokens SET revoked_ms = ?2 WHERE name = ?1 AND revoked_ms IS NULL";
        let changed = transaction.execute(sql, params![name, now.0 as i64])? > 0;
        if changed {
            audit::write(&transaction, &note, now)?;
        }
        transaction.commit().map(|()| changed)
    };
    run().map_err(|error| store::fault(&path, error))
}

/// Finds the grant of a token.
pub(super) fn check(store: &mut Store, presented: &TokenHash) -> Result<Option<Grant>, Error> {
    refresh(store).map_err(|error| store.fault(error))?;
    Ok(find(store.tokens.as_ref().map_or(&[][..], |(_, tokens)| tokens), presented))
}

/// The grant of a token among these. Looks at all of them, each in constant time.
pub(super) fn find(tokens: &[Token], presented: &TokenHash) -> Option<Grant> {
    let mut found = None;
    for token in tokens {
        if bool::from(token.hash.ct_eq(presented)) && token.revoked.is_none() {
            found = Some(&token.grant);
        }
    }
    found.cloned()
}

/// All tokens of an open store.
pub(super) fn all(store: &mut Store) -> Result<Vec<Token>, Error> {
    read_all(&store.connection).map_err(|error| store.fault(error))
}

/// Whether any token works.
pub(super) fn any(store: &mut Store) -> Result<bool, Error> {
    refresh(store).map_err(|error| store.fault(error))?;
    Ok(store.tokens.as_ref().is_some_and(|(_, tokens)| tokens.iter().any(|token| token.revoked.is_none())))
}

/// Reads the tokens again if another process has committed something.
fn refresh(store: &mut Store) -> rusqlite::Result<()> {
    let version: i64 = store.connection.pragma_query_value(None, "data_version", |row| row.get(0))?;
    if store.tokens.as_ref().is_none_or(|(known, _)| *known != version) {
        store.tokens = Some((version, read_all(&store.connection)?));
    }
    Ok(())
}

/// Makes the first token, once per registry: file first, so that a crash between the two steps leaves a file whose
/// token the next start takes over. A file put there beforehand is taken over in the same way.
pub(super) fn ensure_first(store: &mut Store, data_dir: &Path, now: Timestamp) -> Result<(), Error> {
    let made = "SELECT value FROM meta WHERE key = 'first_token_ms'";
    let done: Option<String> =
        store.connection.query_row(made, [], |row| row.get(0)).optional().map_err(|error| store.fault(error))?;
    if done.is_some() {
        return Ok(());
    }
    let path = data_dir.join(FIRST_TOKEN_FILE);
    let failed = |source| Error::Io { path: path.clone(), source };
    let token = match read_token_file(&path).map_err(failed)? {
        Some(token) => token,
        None if store.require_writable().is_err() => return Ok(()),
        None => write_token_file(&path).map_err(failed)?,
    };
    let (grant, hash) = (first_grant(), hash(token.as_bytes()));
    let run = |connection: &mut Connection| {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = "INSERT INTO tokens (name, hash, ad_accounts, read_only, created_ms) VALUES (?1, ?2, '', 0, ?3)
                   ON CONFLICT DO NOTHING";
        transaction.execute(sql, params![grant.name, &hash[..], now.0 as i64])?;
        audit::write(&transaction, &Note::token_created(&By::start(), &grant), now)?;
        transaction.execute("INSERT INTO meta VALUES ('first_token_ms', ?1)", [now.0.to_string()])?;
        transaction.commit()
    };
    run(&mut store.connection).map_err(|error| store.fault(error))?;
    store.tokens = None;
    Ok(())
}

/// What the first token allows: everything.
pub(super) fn first_grant() -> Grant {
    Grant { name: FIRST_TOKEN_FILE.into(), ad_accounts: Vec::new(), read_only: false }
}

/// The hash of the token in the first token's file, which is made if it is not there.
pub(super) fn first_token(data_dir: &Path) -> Result<TokenHash, Error> {
    let path = data_dir.join(FIRST_TOKEN_FILE);
    let failed = |source| Error::Io { path: path.clone(), source };
    let token = match read_token_file(&path).map_err(failed)? {
        Some(token) => token,
        None => write_token_file(&path).map_err(failed)?,
    };
    Ok(hash(token.as_bytes()))
}

/// The token in a file; an error if there is something else in it.
fn read_token_file(path: &Path) -> io::Result<Option<String>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let token = text.trim_ascii();
    let letters = token.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if token.len() < TOKEN_LETTERS_MIN || !letters {
        let why = format!("holds no token ({TOKEN_LETTERS_MIN} or more of 0-9 and a-z): remove it and start again");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    // Best effort: on a read-only disk its mode can't be narrowed.
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
    Ok(Some(token.to_owned()))
}

/// Writes a new token to its file, whole or not at all, and to the disk.
fn write_token_file(path: &Path) -> io::Result<String> {
    let token = random_token()?;
    let draft = path.with_extension("new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(format!("{token}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    store::sync_directory(path)?;
    Ok(token)
}

pub(super) fn random_token() -> io::Result<String> {
    let mut token = String::with_capacity(TOKEN_LETTERS);
    let mut bytes = [0; 64];
    while token.len() < TOKEN_LETTERS {
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        // 252 is the largest multiple of 36 in a byte: above it letters would not be equally likely.
        let letters = bytes
            .iter()
            .filter(|byte| **byte < 252)
            .map(|byte| b"0123456789abcdefghijklmnopqrstuvwxyz"[usize::from(byte % 36)]);
        token.extend(letters.map(char::from).take(TOKEN_LETTERS - token.len()));
    }
    Ok(token)
}

pub(super) fn check_grant(grant: &Grant) -> Result<(), Error> {
    let length = grant.name.chars().count();
    if grant.name.trim().is_empty() || length > NAME_CHARS_MAX || grant.name.chars().any(char::is_control) {
        let text = format!("a token's name has 1 to {NAME_CHARS_MAX} characters, none of them control characters");
        return Err(Error::Token(text));
    }
    if grant.name == FIRST_TOKEN_FILE {
        return Err(Error::Token(format!("the name {FIRST_TOKEN_FILE:?} is kept for the first token")));
    }
    match grant.ad_accounts.iter().find(|account| !super::is_ad_account(account)) {
        Some(wrong) => Err(Error::Token(format!("{wrong:?} is no ad account: 1 to 20 digits, the first not 0"))),
        None => Ok(()),
    }
}

fn insert(
    connection: &mut Connection,
    grant: &Grant,
    hash: &TokenHash,
    note: &Note,
    now: Timestamp,
) -> rusqlite::Result<bool> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let count: i64 = transaction.query_row("SELECT count(*) FROM tokens", [], |row| row.get(0))?;
    if count >= TOKENS_MAX {
        return Ok(false);
    }
    let sql = "INSERT INTO tokens (name, hash, ad_accounts, read_only, created_ms) VALUES (?1, ?2, ?3, ?4, ?5)";
    let accounts = grant.ad_accounts.join(",");
    transaction.execute(sql, params![grant.name, &hash[..], accounts, grant.read_only, now.0 as i64])?;
    audit::write(&transaction, note, now)?;
    transaction.commit()?;
    Ok(true)
}

fn read_all(connection: &Connection) -> rusqlite::Result<Vec<Token>> {
    let sql = "SELECT id, name, hash, ad_accounts, read_only, created_ms, revoked_ms FROM tokens ORDER BY id";
    let mut statement = connection.prepare_cached(sql)?;
    let tokens = statement.query_map([], |row| {
        let accounts: String = row.get(3)?;
        let ad_accounts = accounts.split(',').filter(|account| !account.is_empty()).map(str::to_owned).collect();
        let (created, revoked): (i64, Option<i64>) = (row.get(5)?, row.get(6)?);
        Ok(Token {
            id: row.get(0)?,
            grant: Grant { name: row.get(1)?, ad_accounts, read_only: row.get(4)? },
            hash: row.get(2)?,
            created: Timestamp(created as u64),
            revoked: revoked.map(|ms| Timestamp(ms as u64)),
        })
    })?;
    tokens.collect()
}
