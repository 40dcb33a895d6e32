//! The audit log: one row for each change that somebody made through management or a command, written in the change's
//! own transaction, so that neither is there without the other.
//!
//! A row names who (a token's name, or the user of a command), never a token's text. What restarts, syncs and the
//! config do is no change of anybody's and is not here.

use std::fs;
use std::io;
use std::path::Path;

use rusqlite::{Connection, Row, Transaction, params};
use serde::Serialize;
use serde_json::{Value, json};

use super::Error;
use super::store::{self, FILE};
use super::tokens::Grant;
use crate::pixel::Pixel;
use crate::time::Timestamp;

/// Rows that are kept; older ones go with the next change. Each has some hundred bytes.
pub const ROWS_MAX: i64 = 100_000;

/// Who asks for a change, and in which request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct By {
    actor: String,
    request_id: Option<String>,
}

impl By {
    /// The token of this name, by a management request with this `X-Request-Id`.
    pub fn token(name: &str, request_id: &str) -> By {
        By { actor: format!("token:{name}"), request_id: Some(request_id.to_owned()) }
    }

    /// The user of this number, by a command.
    pub fn user(id: u32) -> By {
        By { actor: format!("uid:{id}"), request_id: None }
    }

    /// The gateway itself: the first token.
    pub(super) fn start() -> By {
        By { actor: "start".to_owned(), request_id: None }
    }
}

/// A row to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Note {
    pub(super) actor: String,
    pub(super) action: &'static str,
    pub(super) pixel_id: Option<String>,
    pub(super) ad_account_id: Option<String>,
    pub(super) token: Option<String>,
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
    pub(super) request_id: Option<String>,
}

impl Note {
    fn new(by: &By, action: &'static str) -> Note {
        let (pixel_id, ad_account_id, token, before, after) = (None, None, None, None, None);
        let (actor, request_id) = (by.actor.clone(), by.request_id.clone());
        Note { actor, action, pixel_id, ad_account_id, token, before, after, request_id }
    }

    /// A pixel was made.
    pub(super) fn created(by: &By, pixel: &Pixel) -> Note {
        let after = Some(image(pixel).to_string());
        Note { after, ..Note::of_pixel(by, "pixel.created", pixel) }
    }

    /// A pixel was changed. Only what differs is told.
    pub(super) fn changed(by: &By, old: &Pixel, new: &Pixel) -> Note {
        let action = match (old.archived, new.archived) {
            (false, true) => "pixel.archived",
            (true, false) => "pixel.restored",
            _ => "pixel.changed",
        };
        let (mut before, mut after) = (image(old), image(new));
        if let (Value::Object(before), Value::Object(after)) = (&mut before, &mut after) {
            before.retain(|key, value| after.get(key) != Some(value) || after.remove(key).is_none());
        }
        let (before, after) = (Some(before.to_string()), Some(after.to_string()));
        Note { before, after, ..Note::of_pixel(by, action, new) }
    }

    fn of_pixel(by: &By, action: &'static str, pixel: &Pixel) -> Note {
        let pixel_id = Some(pixel.id.to_string());
        Note { pixel_id, ad_account_id: pixel.ad_account_id.clone(), ..Note::new(by, action) }
    }

    /// A token was made.
    pub(super) fn token_created(by: &By, grant: &Grant) -> Note {
        let after = json!({ "ad_accounts": grant.ad_accounts, "read_only": grant.read_only });
        Note { token: Some(grant.name.clone()), after: Some(after.to_string()), ..Note::new(by, "token.created") }
    }

    /// A token was revoked.
    pub(super) fn token_revoked(by: &By, name: &str) -> Note {
        Note { token: Some(name.to_owned()), ..Note::new(by, "token.revoked") }
    }
}

fn image(pixel: &Pixel) -> Value {
    json!({ "name": pixel.name, "tag": pixel.tag, "archived": pixel.archived })
}

/// A row as `pixelgate registry audit` prints it. Absent fields are left out.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Line {
    /// Number, never reused; gaps are what was cut off at the old end.
    pub seq: i64,
    /// When, RFC 3339.
    pub at: String,
    /// Who: `token:NAME`, `uid:NUMBER` of a command, `start`.
    pub actor: String,
    /// What.
    pub action: String,
    /// Which pixel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixel_id: Option<String>,
    /// Of which ad account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ad_account_id: Option<String>,
    /// Which token, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// What was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    /// What is there now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
    /// `X-Request-Id` of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// Columns of a row, in the order of [`Line`].
pub(super) const SELECT: &str = "SELECT seq, at_ms, actor, action, pixel_id, ad_account_id, token, before_json, \
                                 after_json, request_id FROM audit ORDER BY seq";
/// In the order of [`Note`]'s fields, after the time.
pub(super) const INSERT: &str = "INSERT INTO audit (at_ms, actor, action, pixel_id, ad_account_id, token, \
                                 before_json, after_json, request_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
/// Keeps the newest [`ROWS_MAX`].
pub(super) const PRUNE: &str = "DELETE FROM audit WHERE seq <= (SELECT max(seq) FROM audit) - $1";

/// Writes a row as part of a change.
pub(super) fn write(transaction: &Transaction<'_>, note: &Note, now: Timestamp) -> rusqlite::Result<()> {
    let Note { actor, action, pixel_id, ad_account_id, token, before, after, request_id } = note;
    let at = now.0 as i64;
    let values = params![at, actor, action, pixel_id, ad_account_id, token, before, after, request_id];
    transaction.prepare_cached(INSERT)?.execute(values)?;
    transaction.prepare_cached(PRUNE)?.execute([ROWS_MAX])?;
    Ok(())
}

/// Hands every row of a data directory's log to `each`, the oldest first. Works beside a running gateway.
pub fn read(data_dir: &Path, each: &mut dyn FnMut(Line) -> io::Result<()>) -> Result<(), Error> {
    let path = data_dir.join(FILE);
    let failed = |source| Error::Io { path: path.clone(), source };
    fs::metadata(&path).map_err(failed)?;
    // A registry of an earlier version has no log yet.
    let Some(connection) = store::open_readable(&path)?.filter(has_log) else { return Ok(()) };
    let refused = |error| store::fault(&path, error);
    let mut statement = connection.prepare(SELECT).map_err(refused)?;
    for line in statement.query_map([], line).map_err(refused)? {
        each(line.map_err(refused)?).map_err(|source| Error::Io { path: "stdout".into(), source })?;
    }
    Ok(())
}

fn has_log(connection: &Connection) -> bool {
    connection.table_exists(None, "audit").unwrap_or(false)
}

/// A row of [`SELECT`].
fn line(row: &Row<'_>) -> rusqlite::Result<Line> {
    let at: i64 = row.get(1)?;
    let json = |index| -> rusqlite::Result<Option<Value>> {
        let text: Option<String> = row.get(index)?;
        Ok(text.map(parsed))
    };
    Ok(Line {
        seq: row.get(0)?,
        at: Timestamp(at as u64).to_rfc3339(),
        actor: row.get(2)?,
        action: row.get(3)?,
        pixel_id: row.get(4)?,
        ad_account_id: row.get(5)?,
        token: row.get(6)?,
        old: json(7)?,
        new: json(8)?,
        request_id: row.get(9)?,
    })
}

/// What an older or newer program wrote is shown as it is.
pub(super) fn parsed(text: String) -> Value {
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixel::PixelId;

    fn pixel(name: &str, archived: bool) -> Pixel {
        let id = PixelId::parse(b"7").unwrap();
        Pixel { id, name: Some(name.into()), tag: Some("other".into()), ad_account_id: Some("9".into()), archived }
    }

    #[test]
    fn a_change_tells_what_differs() {
        let by = By::token("Jo", "r");
        let check = |old: &Pixel, new: &Pixel, expected: [&str; 3]| {
            let note = Note::changed(&by, old, new);
            assert_eq!([note.action, &note.before.unwrap(), &note.after.unwrap()], expected);
        };
        let (a, b, c) = (pixel("a", false), pixel("b", false), pixel("a", true));
        check(&a, &b, ["pixel.changed", r#"{"name":"a"}"#, r#"{"name":"b"}"#]);
        check(&a, &c, ["pixel.archived", r#"{"archived":false}"#, r#"{"archived":true}"#]);
        check(&c, &b, ["pixel.restored", r#"{"name":"a","archived":true}"#, r#"{"name":"b","archived":false}"#]);
        assert_eq!(Note::changed(&by, &a, &b).actor, "token:Jo");
    }
}
