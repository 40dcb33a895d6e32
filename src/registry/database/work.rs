//! What is asked of the database and said to it, in SQL. Each change is one transaction with its row in the audit log.
//!
//! Every change of a pixel first takes the next revision from the one row that counts them. That row is locked until
//! the commit, so changes are serial, and revisions become visible in their order: who has read up to one has missed
//! none.

use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, Row, Transaction};

use crate::pixel::{Pixel, PixelId};
use crate::registry::Error;
use crate::registry::audit::{self, By, Line, Note, ROWS_MAX};
use crate::registry::manage::Edit;
use crate::registry::schema::{self, MIGRATIONS};
use crate::registry::store::{Origin, Stored};
use crate::registry::tokens::{Grant, TOKENS_MAX, Token, TokenHash};
use crate::time::Timestamp;

/// Of migrations: any number that nobody else uses in this database.
const LOCK: i64 = 0x7069_7865_6c67_6174;
/// Settings of each session. Whoever waits longer has been given up on by then.
const SESSION: &str = "
    SET statement_timeout = '60s';
    SET lock_timeout = '4s';
    SET idle_in_transaction_session_timeout = '10s';
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// Why work was not done.
pub(in crate::registry) enum Fault {
    /// It was understood and refused; the connection is good.
    Refused(Error),
    /// Anything else: whether it was done is not known, and the connection is not used again.
    Doubt(String),
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Fault {
        Fault::Doubt(words(&error))
    }
}

/// What the database says. Its errors name statements and constraints; a connection's never hold the password.
pub(super) fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => {
            std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
        }
    }
}

fn is_taken(error: &tokio_postgres::Error, constraint: &str) -> bool {
    let is_it = |said: &DbError| *said.code() == SqlState::UNIQUE_VIOLATION && said.constraint() == Some(constraint);
    error.as_db_error().is_some_and(is_it)
}

/// Makes a new connection ready: settings, and the schema if it is not there yet.
pub(super) async fn prepare(client: &mut Client) -> Result<(), Fault> {
    client.batch_execute(SESSION).await?;
    let row = client.query_one("SELECT current_setting('server_encoding'), pg_is_in_recovery()", &[]).await?;
    let (encoding, is_standby): (String, bool) = (row.get(0), row.get(1));
    if is_standby {
        return Err(Fault::Doubt("it is a standby, which can't be written".to_owned()));
    }
    if encoding != "UTF8" {
        return Err(Fault::Doubt(format!("its encoding is {encoding}; it must be UTF8")));
    }
    if version(client).await? == MIGRATIONS.len() {
        return Ok(());
    }
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    let found = version(&transaction).await?;
    if found > MIGRATIONS.len() {
        let (path, known) = ("registry.database".into(), MIGRATIONS.len());
        return Err(Fault::Refused(Error::Newer { path, found, known }));
    }
    for step in &MIGRATIONS[found..] {
        transaction.batch_execute(&schema::for_postgres(step)).await?;
    }
    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string();
    for (key, value) in [("database_id", id.as_str()), ("revision", "0"), ("tokens_revision", "0")] {
        transaction.execute("INSERT INTO meta VALUES ($1, $2) ON CONFLICT DO NOTHING", &[&key, &value]).await?;
    }
    let sql = "INSERT INTO meta VALUES ('schema_version', $1) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    transaction.execute(sql, &[&MIGRATIONS.len().to_string()]).await?;
    Ok(transaction.commit().await?)
}

async fn version(client: &impl tokio_postgres::GenericClient) -> Result<usize, Fault> {
    let is_there: bool = client.query_one("SELECT to_regclass('meta') IS NOT NULL", &[]).await?.get(0);
    if !is_there {
        return Ok(0);
    }
    let row = match client.query_opt("SELECT value FROM meta WHERE key = 'schema_version'", &[]).await {
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_COLUMN) => None,
        row => row?,
    };
    let text: Option<String> = row.and_then(|row| row.try_get(0).ok());
    let foreign =
        || Fault::Doubt("its table meta is another program's; give pixelgate a database of its own".to_owned());
    text.and_then(|text| text.parse().ok()).ok_or_else(foreign)
}

/// The next number of a counter. Holds the row until the end of the transaction.
async fn next(transaction: &Transaction<'_>, counter: &str) -> Result<i64, Fault> {
    let sql = "UPDATE meta SET value = (value::bigint + 1)::text WHERE key = $1 RETURNING value::bigint";
    Ok(transaction.query_one(sql, &[&counter]).await?.get(0))
}

async fn note(transaction: &Transaction<'_>, note: &Note, now: Timestamp) -> Result<(), Fault> {
    let Note { actor, action, pixel_id, ad_account_id, token, before, after, request_id } = note;
    let at = now.0 as i64;
    transaction
        .execute(audit::INSERT, &[&at, actor, action, pixel_id, ad_account_id, token, before, after, request_id])
        .await?;
    transaction.execute(audit::PRUNE, &[&ROWS_MAX]).await?;
    Ok(())
}

/// Creates a pixel; false if its id is taken.
pub(in crate::registry) async fn create(
    client: &mut Client,
    stored: &Stored,
    row: &Note,
    now: Timestamp,
) -> Result<bool, Fault> {
    let transaction = client.transaction().await?;
    let revision = next(&transaction, "revision").await?;
    match insert(&transaction, stored, revision, now).await {
        Ok(()) => {}
        Err(error) if is_taken(&error, "pixels_name") => return Err(Fault::Refused(Error::NameTaken)),
        Err(error) if is_taken(&error, "pixels_id_key") => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    note(&transaction, row, now).await?;
    transaction.commit().await?;
    Ok(true)
}

async fn insert(
    transaction: &Transaction<'_>,
    Stored { pixel, creator, last_event, .. }: &Stored,
    revision: i64,
    now: Timestamp,
) -> Result<(), tokio_postgres::Error> {
    let sql = "INSERT INTO pixels (id, ad_account_id, name, tag, creator, archived, origin, created_ms, last_event_ms, \
               revision) VALUES ($1, $2, $3, $4, $5, $6, 'local', $7, $8, $9)";
    let (id, name) = (pixel.id.to_string(), pixel.name.as_deref().map(outward));
    let (archived, at) = (i64::from(pixel.archived), now.0 as i64);
    let last_event = last_event.map(|time| time.0 as i64);
    transaction
        .execute(sql, &[&id, &pixel.ad_account_id, &name, &pixel.tag, creator, &archived, &at, &last_event, &revision])
        .await
        .map(drop)
}

/// Changes a pixel as it is at that moment.
pub(in crate::registry) async fn edit(
    client: &mut Client,
    id: PixelId,
    edit: &Edit,
    by: &By,
    now: Timestamp,
) -> Result<(), Fault> {
    let transaction = client.transaction().await?;
    let revision = next(&transaction, "revision").await?;
    let digits = id.to_string();
    let row = transaction.query_opt(&format!("{PIXELS} WHERE id = $1"), &[&digits]).await?;
    let old = row.as_ref().and_then(pixel).ok_or(Fault::Refused(Error::UnknownPixel))?.pixel;
    let new = edit.apply(&old);
    if new == old {
        return Ok(());
    }
    let sql = "UPDATE pixels SET name = $2, tag = $3, archived = $4, revision = $5 WHERE id = $1";
    let (name, archived) = (new.name.as_deref().map(outward), i64::from(new.archived));
    match transaction.execute(sql, &[&digits, &name, &new.tag, &archived, &revision]).await {
        Ok(_) => {}
        Err(error) if is_taken(&error, "pixels_name") => return Err(Fault::Refused(Error::NameTaken)),
        Err(error) => return Err(error.into()),
    }
    note(&transaction, &Note::changed(by, &old, &new), now).await?;
    Ok(transaction.commit().await?)
}

/// What a follower knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::registry) struct Known {
    /// Made with the database: another one has another.
    pub(in crate::registry) database_id: String,
    /// Pixels are known up to this.
    pub(in crate::registry) revision: i64,
    /// Tokens are known as of this; `None`: not at all.
    pub(in crate::registry) tokens_revision: Option<i64>,
}

/// What is new to a follower.
pub(in crate::registry) struct News {
    pub(in crate::registry) known: Known,
    /// In order of creation.
    pub(in crate::registry) pixels: Vec<Stored>,
    /// All of them, if any changed.
    pub(in crate::registry) tokens: Option<Vec<Token>>,
    /// The database is another one, or went back.
    pub(in crate::registry) is_other: bool,
}

/// Reads what changed since, or everything. From another database than before nothing is read unless all of it is.
pub(in crate::registry) async fn news(client: &mut Client, known: Known, whole: bool) -> Result<News, Fault> {
    let sql = "SELECT key, value FROM meta WHERE key IN ('database_id', 'revision', 'tokens_revision')";
    let mut now = Known::default();
    for row in client.query(sql, &[]).await? {
        let (key, value): (String, String) = (row.get(0), row.get(1));
        match &*key {
            "database_id" => now.database_id = value,
            "revision" => now.revision = value.parse().unwrap_or_default(),
            _ => now.tokens_revision = value.parse().ok(),
        }
    }
    let is_other = now.database_id != known.database_id || now.revision < known.revision;
    if is_other && !whole {
        return Ok(News { known: now, pixels: Vec::new(), tokens: None, is_other });
    }
    let since = if whole { -1 } else { known.revision };
    let mut pixels = Vec::new();
    if now.revision > since {
        for row in client.query(&format!("{PIXELS} WHERE revision > $1 ORDER BY seq"), &[&since]).await? {
            now.revision = now.revision.max(row.get(8));
            pixels.extend(pixel(&row));
        }
    }
    let mut tokens = None;
    if whole || now.tokens_revision != known.tokens_revision {
        let rows = client.query(&format!("{TOKENS} ORDER BY id"), &[]).await?;
        tokens = Some(rows.iter().filter_map(token).collect());
    }
    Ok(News { known: now, pixels, tokens, is_other })
}

const PIXELS: &str =
    "SELECT id, ad_account_id, name, tag, creator, archived, origin, last_event_ms, revision FROM pixels";

fn pixel(row: &Row) -> Option<Stored> {
    let id = PixelId::parse(row.get::<_, &str>(0).as_bytes())?;
    let (name, archived): (Option<&str>, i64) = (row.get(2), row.get(5));
    let last_event: Option<i64> = row.get(7);
    Some(Stored {
        pixel: Pixel {
            id,
            ad_account_id: row.get(1),
            name: name.map(inward),
            tag: row.get(3),
            archived: archived != 0,
        },
        creator: row.get(4),
        origin: Origin::Learnt,
        last_event: last_event.map(|ms| Timestamp(ms as u64)),
    })
}

/// The newest events that were stored after a moment.
pub(in crate::registry) async fn events(
    client: &mut Client,
    after_ms: i64,
) -> Result<Vec<(PixelId, Timestamp)>, Fault> {
    let rows = client.query("SELECT id, last_event_ms FROM pixels WHERE last_event_ms > $1", &[&after_ms]).await?;
    let event =
        |row: &Row| Some((PixelId::parse(row.get::<_, &str>(0).as_bytes())?, Timestamp(row.get::<_, i64>(1) as u64)));
    Ok(rows.iter().filter_map(event).collect())
}

/// Stores the newest events of pixels where they are newer.
pub(in crate::registry) async fn touch(client: &mut Client, events: &[(PixelId, Timestamp)]) -> Result<(), Fault> {
    let ids: Vec<String> = events.iter().map(|(id, _)| id.to_string()).collect();
    let times: Vec<i64> = events.iter().map(|(_, time)| time.0 as i64).collect();
    let transaction = client.transaction().await?;
    // In one order, so that two authorities never wait for each other.
    transaction.execute("SELECT 1 FROM pixels WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE", &[&ids]).await?;
    let sql = "UPDATE pixels SET last_event_ms = e.ms \
               FROM (SELECT unnest($1::text[]) AS id, unnest($2::bigint[]) AS ms) e \
               WHERE pixels.id = e.id AND (last_event_ms IS NULL OR last_event_ms < e.ms)";
    transaction.execute(sql, &[&ids, &times]).await?;
    Ok(transaction.commit().await?)
}

/// Fills a database that nobody has used yet with the pixels and tokens of a registry that was a file; how many pixels.
pub(in crate::registry) async fn adopt(
    client: &mut Client,
    pixels: &[Stored],
    tokens: &[Token],
    now: Timestamp,
) -> Result<Option<usize>, Fault> {
    let transaction = client.transaction().await?;
    let revision = next(&transaction, "revision").await?;
    let sql = "SELECT EXISTS (SELECT 1 FROM pixels) OR EXISTS (SELECT 1 FROM tokens)";
    if transaction.query_one(sql, &[]).await?.get(0) {
        return Ok(None);
    }
    for stored in pixels {
        insert(&transaction, stored, revision, now).await?;
    }
    next(&transaction, "tokens_revision").await?;
    for token in tokens {
        insert_token(&transaction, &token.grant, &token.hash, token.created, token.revoked).await?;
    }
    let first = "INSERT INTO meta VALUES ('first_token_ms', $1) ON CONFLICT DO NOTHING";
    transaction.execute(first, &[&now.0.to_string()]).await?;
    transaction.commit().await?;
    Ok(Some(pixels.len()))
}

const TOKENS: &str = "SELECT id, name, hash, ad_accounts, read_only, created_ms, revoked_ms FROM tokens";

fn token(row: &Row) -> Option<Token> {
    let (accounts, read_only): (&str, i64) = (row.get(3), row.get(4));
    let (created, revoked): (i64, Option<i64>) = (row.get(5), row.get(6));
    Some(Token {
        id: row.get(0),
        grant: Grant {
            name: row.get(1),
            ad_accounts: accounts.split(',').filter(|account| !account.is_empty()).map(str::to_owned).collect(),
            read_only: read_only != 0,
        },
        hash: row.get::<_, &[u8]>(2).try_into().ok()?,
        created: Timestamp(created as u64),
        revoked: revoked.map(|ms| Timestamp(ms as u64)),
    })
}

async fn insert_token(
    transaction: &Transaction<'_>,
    grant: &Grant,
    hash: &TokenHash,
    created: Timestamp,
    revoked: Option<Timestamp>,
) -> Result<(), tokio_postgres::Error> {
    let sql = "INSERT INTO tokens (name, hash, ad_accounts, read_only, created_ms, revoked_ms) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    let (accounts, read_only, at) = (grant.ad_accounts.join(","), i64::from(grant.read_only), created.0 as i64);
    let revoked = revoked.map(|time| time.0 as i64);
    transaction.execute(sql, &[&grant.name, &&hash[..], &accounts, &read_only, &at, &revoked]).await.map(drop)
}

/// Makes a token.
pub(in crate::registry) async fn create_token(
    client: &mut Client,
    grant: &Grant,
    hash: &TokenHash,
    by: &By,
    now: Timestamp,
) -> Result<(), Fault> {
    let refused = |text: String| Fault::Refused(Error::Token(text));
    let transaction = client.transaction().await?;
    next(&transaction, "tokens_revision").await?;
    let count: i64 = transaction.query_one("SELECT count(*) FROM tokens", &[]).await?.get(0);
    if count >= TOKENS_MAX {
        return Err(refused(format!("{TOKENS_MAX} tokens are enough: revoked ones count, too")));
    }
    match insert_token(&transaction, grant, hash, now, None).await {
        Ok(()) => {}
        Err(error) if is_taken(&error, "tokens_name") => {
            return Err(refused(format!("a token named {:?} exists already", grant.name)));
        }
        Err(error) => return Err(error.into()),
    }
    note(&transaction, &Note::token_created(by, grant), now).await?;
    Ok(transaction.commit().await?)
}

/// Makes the first token, unless another authority has; whether this one did.
pub(in crate::registry) async fn create_first_token(
    client: &mut Client,
    grant: &Grant,
    hash: &TokenHash,
    now: Timestamp,
) -> Result<bool, Fault> {
    let transaction = client.transaction().await?;
    next(&transaction, "tokens_revision").await?;
    let sql = "INSERT INTO meta VALUES ('first_token_ms', $1) ON CONFLICT DO NOTHING";
    if transaction.execute(sql, &[&now.0.to_string()]).await? == 0 {
        return Ok(false);
    }
    insert_token(&transaction, grant, hash, now, None).await?;
    note(&transaction, &Note::token_created(&By::start(), grant), now).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Whether the first token was made, by whomever.
pub(in crate::registry) async fn has_first_token(client: &mut Client) -> Result<bool, Fault> {
    let sql = "SELECT EXISTS (SELECT 1 FROM meta WHERE key = 'first_token_ms')";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

/// All tokens in order of creation.
pub(in crate::registry) async fn tokens(client: &mut Client) -> Result<Vec<Token>, Fault> {
    let rows = client.query(&format!("{TOKENS} ORDER BY id"), &[]).await?;
    Ok(rows.iter().filter_map(token).collect())
}

/// Revokes the token of this name that still works; false if there is none.
pub(in crate::registry) async fn revoke_token(
    client: &mut Client,
    name: &str,
    by: &By,
    now: Timestamp,
) -> Result<bool, Fault> {
    let transaction = client.transaction().await?;
    next(&transaction, "tokens_revision").await?;
    let sql = "UPDATE tokens SET revoked_ms = $2 WHERE name = $1 AND revoked_ms IS NULL";
    if transaction.execute(sql, &[&name, &(now.0 as i64)]).await? == 0 {
        return Ok(false);
    }
    note(&transaction, &Note::token_revoked(by, name), now).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Rows of the audit log after one, in their order; at most so many.
pub(in crate::registry) async fn audit(client: &mut Client, after: i64, most: i64) -> Result<Vec<Line>, Fault> {
    let sql = format!("SELECT * FROM ({}) rows WHERE seq > $1 LIMIT $2", audit::SELECT);
    let rows = client.query(&sql, &[&after, &most]).await?;
    let json = |row: &Row, index: usize| row.get::<_, Option<String>>(index).map(audit::parsed);
    let line = |row: &Row| Line {
        seq: row.get(0),
        at: Timestamp(row.get::<_, i64>(1) as u64).to_rfc3339(),
        actor: row.get(2),
        action: row.get(3),
        pixel_id: row.get(4),
        ad_account_id: row.get(5),
        token: row.get(6),
        old: json(row, 7),
        new: json(row, 8),
        request_id: row.get(9),
    };
    Ok(rows.iter().map(line).collect())
}

/// A name as PostgreSQL can hold it: U+0000, which its texts can't, becomes `\0`, and so `\` becomes `\\`.
fn outward(name: &str) -> String {
    name.replace('\\', "\\\\").replace('\0', "\\0")
}

fn inward(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut letters = name.chars();
    while let Some(letter) = letters.next() {
        match (letter, letter == '\\') {
            (_, true) => out.push(if letters.next() == Some('0') { '\0' } else { '\\' }),
            (letter, false) => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_name_can_be_held_and_comes_back(name in "(\\\\|0|\u{0}|.){0,20}") {
            let held = outward(&name);
            prop_assert!(!held.contains('\0'));
            prop_assert_eq!(inward(&held), name);
        }
    }
}
