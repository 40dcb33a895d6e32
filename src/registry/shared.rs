//! Local mode with a database that other authorities share: the truth is there, and this registry follows it.
//!
//! The file in the data directory is a copy, the last good one: events are taken by it when the database is away, at a
//! start, too. Management is not: it asks the database first, each time, and so sees at once what others changed and
//! revoked. Pixels are never deleted, so what the copy knows and the database doesn't (restored from an old backup)
//! stays known.
//!
//! Lock order: `followed`, then `store`. The database is never asked with `store` held.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::audit::{By, Note};
use super::database::work::{self, Known};
use super::database::{Address, Database, READ, WORK};
use super::directory::Directory;
use super::store::{Origin, Stored};
use super::tokens::{self, Token};
use super::{Edit, Error, Inner};
use crate::pixel::{Pixel, PixelId};
use crate::time::Timestamp;

/// How often the database is asked what is new. A pixel created elsewhere is known here after this and one answer.
pub(super) const INTERVAL: Duration = Duration::from_millis(500);
/// How long an answer is good for: a copy that is older may lack a pixel, and calls none unknown.
const GOOD_FOR: Duration = Duration::from_secs(2);
/// How often event times that others stored are read.
const EVENTS: Duration = Duration::from_secs(30);
/// Longest time for the last event times of a stop.
const LAST: Duration = Duration::from_secs(1);
/// A pixel's event time is stored once in so long: far below what a status can show.
const TOUCH_MS: u64 = 60_000;
/// Event times are read from this long before the newest one that is known: clocks differ, and commits come late.
const EVENTS_OVERLAP_MS: i64 = 5 * 60_000;

/// What is known of the database.
pub(super) struct Shared {
    pub(super) database: Database,
    /// Held for a question and the taking over of its answer, so that an older answer never follows a newer one.
    followed: Mutex<Followed>,
    /// The database was asked without success; told once per change.
    is_away: AtomicBool,
}

#[derive(Default)]
pub(super) struct Followed {
    known: Known,
    tokens: Vec<Token>,
    /// As of the last answer.
    connections: u64,
    /// The copy on disk is of this; behind `known` when it couldn't be written.
    stored: (String, i64),
    /// Asked for once, after the first answer.
    knows_first_token: bool,
    events_after_ms: i64,
    events_due: Duration,
}

impl Shared {
    pub(super) fn start(address: &Address) -> Result<Shared, Error> {
        let database = Database::start(address)?;
        Ok(Shared { database, followed: Mutex::default(), is_away: AtomicBool::new(false) })
    }

    fn followed(&self) -> MutexGuard<'_, Followed> {
        // What a panic leaves is at worst asked for again.
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Begins anew from what the copy on disk knows.
    pub(super) fn resume(&self, shared: &Shared) -> Result<(), Error> {
        let mut followed = shared.followed();
        let (id, revision) = self.lock().copied()?;
        followed.stored = (id.clone(), revision);
        followed.known = Known { database_id: id, revision, tokens_revision: None };
        Ok(())
    }

    /// Asks what is new and takes it over. Afterwards this registry knows what was committed before the call.
    pub(super) fn follow<'a>(&self, shared: &'a Shared) -> Result<MutexGuard<'a, Followed>, Error> {
        let mut followed = shared.followed();
        let began = self.clock.monotonic();
        let result = self.ask(shared, &mut followed);
        let was_away = shared.is_away.swap(result.is_err(), Relaxed);
        match &result {
            Ok(()) => self.freshness.synced(began + GOOD_FOR, self.clock.now()),
            Err(_) => self.freshness.failed(),
        }
        match (result, was_away) {
            (Ok(()), true) => tracing::info!("registry.database answers again"),
            (Err(error), false) => {
                tracing::warn!(%error, "management answers 503, and events go by the last known pixels");
                return Err(error);
            }
            (Err(error), true) => return Err(error),
            (Ok(()), false) => {}
        }
        Ok(followed)
    }

    fn ask(&self, shared: &Shared, followed: &mut Followed) -> Result<(), Error> {
        let ask = |whole: bool| {
            let known = followed.known.clone();
            let limit = if whole { READ } else { WORK };
            shared.database.call(limit, async move |client| work::news(client, known, whole).await)
        };
        let mut news = ask(false)?;
        let connections = shared.database.connections();
        let is_first = followed.known.database_id.is_empty();
        if news.is_other && is_first {
            self.adopt(shared)?;
        } else if news.is_other {
            tracing::warn!("registry.database is another one than before, or older: pixels that it lacks stay known");
        }
        // Behind another connection it may have been put back and gone on, past the revision that is known here.
        let is_whole = news.is_other || connections != followed.connections;
        if is_whole {
            news = ask(true)?;
        }
        followed.connections = connections;
        if !news.pixels.is_empty() || news.known.database_id != followed.known.database_id {
            self.take_over(&news.pixels, &news.known, is_whole, followed);
        }
        if let Some(tokens) = news.tokens {
            followed.tokens = tokens;
        }
        followed.known = news.known;
        if !followed.knows_first_token {
            followed.knows_first_token = self.ensure_shared_first_token(shared)?;
            // Its row is read with the next question.
        }
        self.hear_events(shared, followed)
    }

    /// The first use of a database: it is given what this directory had until now.
    fn adopt(&self, shared: &Shared) -> Result<(), Error> {
        let (pixels, tokens) = {
            let mut store = self.lock();
            let mut pixels = store.pixels()?;
            pixels.retain(|stored| stored.origin == Origin::Local);
            (pixels, tokens::all(&mut store)?)
        };
        if pixels.is_empty() && tokens.is_empty() {
            return Ok(());
        }
        let (count, now) = (pixels.len(), self.clock.now());
        let taken = shared.database.call(READ, async move |client| work::adopt(client, &pixels, &tokens, now).await)?;
        match taken {
            Some(count) => tracing::info!(count, "registry.database was empty: it has this directory's pixels now"),
            None if count > 0 => tracing::warn!(
                count,
                "registry.database has pixels already: those of this directory stay known, and are not managed"
            ),
            None => {}
        }
        Ok(())
    }

    /// Store, as far as that works, then swap.
    fn take_over(&self, pixels: &[Stored], known: &Known, is_whole: bool, followed: &mut Followed) {
        let mut store = self.lock();
        let mut directory = Directory::clone(&self.directory.load());
        for stored in pixels {
            directory.put(self.as_configured(&stored.pixel), stored.creator.clone(), stored.last_event);
        }
        if is_whole {
            // One that was created here as the connection broke was put last.
            directory.arrange(pixels.iter().map(|stored| stored.pixel.id));
        }
        // Only in step: what could not be written once is read and written first, by and by.
        let is_in_step = followed.stored == (followed.known.database_id.clone(), followed.known.revision);
        if is_in_step || followed.known.database_id != known.database_id {
            match store.copy(pixels, &known.database_id, known.revision, self.clock.now()) {
                Ok(()) => followed.stored = (known.database_id.clone(), known.revision),
                Err(error) => {
                    let what = "the copy of registry.database can't be written: a start without it knows less";
                    tracing::warn!(%error, "{what}");
                }
            }
        }
        self.directory.store(Arc::new(directory));
    }

    /// A pixel with the fields that the config gives for it.
    fn as_configured(&self, pixel: &Pixel) -> Pixel {
        match self.options.pixels.iter().find(|given| given.id == pixel.id) {
            None => pixel.clone(),
            Some(given) => Pixel {
                id: pixel.id,
                name: given.name.clone().or_else(|| pixel.name.clone()),
                tag: given.tag.clone().or_else(|| pixel.tag.clone()),
                ad_account_id: given.ad_account_id.clone().or_else(|| pixel.ad_account_id.clone()),
                archived: given.archived,
            },
        }
    }

    /// Makes the first token, unless one was made, here or elsewhere. True when there is one.
    fn ensure_shared_first_token(&self, shared: &Shared) -> Result<bool, Error> {
        if shared.database.call(WORK, async |client| work::has_first_token(client).await)? {
            return Ok(true);
        }
        let (file, grant) = (FirstToken::in_file(&self.options.data_dir)?, tokens::first_grant());
        let (hash, now) = (file.hash, self.clock.now());
        let is_ours = shared
            .database
            .call(WORK, async move |client| work::create_first_token(client, &grant, &hash, now).await)?;
        if !is_ours && file.is_new {
            // Another authority was faster, and has the file.
            let _ = std::fs::remove_file(self.options.data_dir.join(tokens::FIRST_TOKEN_FILE));
        }
        Ok(true)
    }

    /// Notes event times that other authorities stored.
    fn hear_events(&self, shared: &Shared, followed: &mut Followed) -> Result<(), Error> {
        let now = self.clock.monotonic();
        if now < followed.events_due {
            return Ok(());
        }
        let after = followed.events_after_ms;
        let limit = if after == 0 { READ } else { WORK };
        let events = shared.database.call(limit, async move |client| work::events(client, after).await)?;
        let directory = self.directory.load();
        let mut newest = after + EVENTS_OVERLAP_MS;
        for (id, time) in events {
            newest = newest.max(time.0 as i64);
            if let Some(entry) = directory.get(id) {
                entry.slot.hear(time);
            }
        }
        followed.events_after_ms = (newest - EVENTS_OVERLAP_MS).max(0);
        followed.events_due = now + EVENTS;
        if followed.stored.0 == followed.known.database_id {
            // What the copy lacks is read once more.
            followed.known.revision = followed.stored.1;
        }
        Ok(())
    }

    /// Stores event times in the database: of first events at once, of others once a minute, all of them at the end.
    pub(super) fn persist_shared(&self, shared: &Shared, is_last: bool) -> Result<(), Error> {
        let directory = self.directory.load_full();
        let due = |time: &Timestamp, before: u64| is_last || before == 0 || time.0.saturating_sub(before) >= TOUCH_MS;
        let mut events: Vec<(PixelId, Timestamp)> = Vec::new();
        for entry in directory.entries() {
            let time = entry.slot.unpersisted().filter(|time| due(time, entry.slot.persisted_ms()));
            events.extend(time.map(|time| (entry.pixel.id, time)));
        }
        if events.is_empty() {
            return Ok(());
        }
        // A stop waits for nothing that isn't there; a status may then be a minute off.
        if is_last && shared.is_away.load(Relaxed) {
            return Ok(());
        }
        let told = events.clone();
        shared
            .database
            .call(if is_last { LAST } else { WORK }, async move |client| work::touch(client, &told).await)?;
        for (id, time) in events {
            if let Some(entry) = directory.get(id) {
                entry.slot.persisted(time);
            }
        }
        Ok(())
    }

    /// Creates a pixel in the database; false if its id is taken there.
    pub(super) fn create_shared(&self, shared: &Shared, stored: &Stored, note: &Note) -> Result<bool, Error> {
        let (new, row, now) = (stored.clone(), note.clone(), self.clock.now());
        let made = shared.database.call(WORK, async move |client| work::create(client, &new, &row, now).await)?;
        if made && self.follow(shared).is_err() {
            // It is committed: known here now, and stored with what follows.
            let _store = self.lock();
            let mut directory = Directory::clone(&self.directory.load());
            directory.put(stored.pixel.clone(), stored.creator.clone(), None);
            self.directory.store(Arc::new(directory));
        }
        Ok(made)
    }

    /// Changes a pixel in the database.
    pub(super) fn edit_shared(&self, shared: &Shared, id: PixelId, edit: &Edit, by: &By) -> Result<(), Error> {
        let (edit, by, now) = (edit.clone(), by.clone(), self.clock.now());
        shared.database.call(WORK, async move |client| work::edit(client, id, &edit, &by, now).await)?;
        self.follow(shared).map(drop)
    }
}

impl Followed {
    pub(super) fn tokens(&self) -> &[Token] {
        &self.tokens
    }
}

/// The first token's file, and whether it was made just now.
struct FirstToken {
    hash: tokens::TokenHash,
    is_new: bool,
}

impl FirstToken {
    fn in_file(data_dir: &Path) -> Result<FirstToken, Error> {
        let is_new = !data_dir.join(tokens::FIRST_TOKEN_FILE).exists();
        let hash = tokens::first_token(data_dir)?;
        Ok(FirstToken { hash, is_new })
    }
}
