//! What commands do to tokens and read of the audit log, wherever the registry is: its file or a shared database.

use std::io;

use super::audit::{self, By, Line};
use super::database::{Database, READ, WORK, work};
use super::tokens::{self, Grant, Token};
use super::{Error, Options};
use crate::time::Timestamp;

/// Rows of the audit log that are asked for at once.
const ROWS: i64 = 1000;

fn shared(options: &Options) -> Result<Option<Database>, Error> {
    options.shared().map(Database::start).transpose()
}

/// Makes a token and returns its text, which is stored nowhere.
pub fn create_token(options: &Options, grant: &Grant, by: &By, now: Timestamp) -> Result<String, Error> {
    let Some(database) = shared(options)? else { return tokens::create(&options.data_dir, grant, by, now) };
    tokens::check_grant(grant)?;
    let token = tokens::random_token().map_err(|source| Error::Io { path: "getrandom".into(), source })?;
    let (grant, by, hash) = (grant.clone(), by.clone(), tokens::hash(token.as_bytes()));
    database.call(WORK, async move |client| work::create_token(client, &grant, &hash, &by, now).await)?;
    Ok(token)
}

/// All tokens, in order of creation.
pub fn list_tokens(options: &Options) -> Result<Vec<Token>, Error> {
    match shared(options)? {
        Some(database) => database.call(WORK, async |client| work::tokens(client).await),
        None => tokens::list(&options.data_dir),
    }
}

/// Revokes the token of this name that still works; false if there is none.
pub fn revoke_token(options: &Options, name: &str, by: &By, now: Timestamp) -> Result<bool, Error> {
    let Some(database) = shared(options)? else { return tokens::revoke(&options.data_dir, name, by, now) };
    let (name, by) = (name.to_owned(), by.clone());
    database.call(WORK, async move |client| work::revoke_token(client, &name, &by, now).await)
}

/// Hands every row of the audit log to `each`, the oldest first.
pub fn read_audit(options: &Options, each: &mut dyn FnMut(Line) -> io::Result<()>) -> Result<(), Error> {
    let Some(database) = shared(options)? else { return audit::read(&options.data_dir, each) };
    let mut after = 0;
    loop {
        let lines = database.call(READ, async move |client| work::audit(client, after, ROWS).await)?;
        let Some(last) = lines.last() else { return Ok(()) };
        after = last.seq;
        for line in lines {
            each(line).map_err(|source| Error::Io { path: "stdout".into(), source })?;
        }
    }
}

/// Whether the shared database, if there is one, can be used now. Blocks.
pub fn try_database(options: &Options) -> Result<(), Error> {
    shared(options)?.map_or(Ok(()), |database| database.call(WORK, async |_| Ok(())))
}
