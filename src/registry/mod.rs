//! The known pixels and the management tokens.
//!
//! One door leads in, [`Registry::learn`]: the store first (durable), then the snapshot that the hot path reads (swap),
//! then the answer. So a pixel is accepted from the moment its creation is answered, by order and not by timing. The
//! hot path ([`Registry::lookup`], [`Registry::note_event`]) takes no lock and never waits.
//!
//! Invariants: the snapshot never holds less than what was answered; lists are in order of creation; a pixel created
//! here has a name that no other pixel of its ad account has. A store that can't be written costs management writes
//! ([`Error::Unwritable`]) and nothing else; the keeper thread tries it again until it can be.
//!
//! Lock order: `store`, then nothing (of a shared database, `followed` before it). Every change of the snapshot is made
//! with `store` held.

pub mod audit;
pub mod backup;
pub mod commands;
pub mod database;
mod directory;
mod keeper;
mod learning;
pub mod lessons;
mod lists;
pub mod lookups;
mod manage;
mod own;
pub mod report;
mod schema;
mod shared;
mod status;
mod store;
pub mod sync;
pub mod tokens;
mod unknowns;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use self::database::Address;
use self::directory::Directory;
pub use self::directory::{Entry, Known};
use self::keeper::Keeper;
use self::learning::Freshness;
pub use self::learning::Learning;
pub use self::manage::{Edit, NewPixel};
use self::shared::Shared;
pub use self::status::Status;
pub use self::store::FILE;
use self::store::{Access, Origin, Store, Stored};
use self::tokens::{Grant, TokenHash};
use self::unknowns::Unknowns;
use crate::pixel::{Pixel, PixelId};
use crate::time::{Clock, Timestamp};

/// Where pixels come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// This registry is the authority.
    Local,
    /// Another one is, and this one remembers.
    Proxy,
}

/// How the registry is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// `registry.mode`.
    pub mode: Mode,
    /// Where its file is.
    pub data_dir: PathBuf,
    /// `registry.pixels`: static ones, whose given fields win over the stored ones.
    pub pixels: Vec<Pixel>,
    /// `registry.max_pixels`.
    pub max_pixels: usize,
    /// How pixels are learnt, in proxy mode.
    pub learning: Learning,
    /// `registry.database`: the truth of local mode, shared with other authorities; `None`: a file in `data_dir`.
    pub database: Option<Address>,
}

impl Options {
    /// The shared database, where it counts: with an upstream, that is the authority.
    fn shared(&self) -> Option<&Address> {
        self.database.as_ref().filter(|_| self.mode == Mode::Local)
    }
}

/// Why the registry can't do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file was written by a newer program: exit 2.
    #[error("{}: its schema {found} is newer than {known}, the newest that this binary knows", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: usize,
        /// Ours.
        known: usize,
    },
    /// The disk is full, read-only or failing, or another process holds the file.
    #[error("{}: can't be written: {why}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// Names are unique per ad account.
    #[error("the ad account already has a pixel of this name")]
    NameTaken,
    /// No pixel has this id.
    #[error("there is no pixel with this id")]
    UnknownPixel,
    /// The pixel is the config's: the next start would undo any change.
    #[error("the pixel is given by registry.pixels")]
    Static,
    /// `registry.max_pixels` are known.
    #[error("registry.max_pixels = {0} is reached")]
    Full(usize),
    /// `registry.database` can't be asked at the moment; whether a change was made may be unknown.
    #[error("registry.database: {0}")]
    Away(Arc<str>),
    /// What is wrong with a token to be made.
    #[error("{0}")]
    Token(String),
    /// The file is damaged or not ours.
    #[error("{}: {source}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// Another file can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl Error {
    /// The same for the next who asks.
    fn again(&self) -> Error {
        match self {
            Error::Newer { path, found, known } => Error::Newer { path: path.clone(), found: *found, known: *known },
            Error::Away(why) => Error::Away(Arc::clone(why)),
            other => Error::Away(other.to_string().into()),
        }
    }
}

/// What is known of an id.
#[derive(Debug)]
pub enum Lookup {
    /// A known pixel.
    Known(Known),
    /// None has this id.
    Unknown,
    /// None is known so far, but the list is not complete (proxy mode only).
    NotChecked,
}

/// What a gateway's sync says in `Prefer` (RFC 7240): a pixelgate authority then lists archived pixels, too, so that
/// they are known as such; other authorities may ignore it.
pub const PREFER_ARCHIVED: &str = "archived=any";

/// Whether a text is an ad account id: `^[1-9][0-9]{0,19}$`, as a pixel's.
pub fn is_ad_account(text: &str) -> bool {
    PixelId::parse(text.as_bytes()).is_some()
}

/// The registry. Dropping it closes it.
pub struct Registry {
    inner: Arc<Inner>,
    keeper: Keeper,
    /// Asks a shared database what is new.
    follower: Option<Keeper>,
}

/// What the registry shares with its keeper thread.
struct Inner {
    options: Options,
    clock: Arc<dyn Clock>,
    directory: ArcSwap<Directory>,
    /// Held for whole statements and their syncs, so never on a thread that serves events.
    store: Mutex<Store>,
    /// The first token's file could not be written yet.
    lacks_first_token: AtomicBool,
    freshness: Freshness,
    /// With an upstream and a token of our own.
    unknowns: Option<Unknowns>,
    lookups: lookups::Counts,
    reports: report::Counts,
    /// The upstream says that it is a pixelgate and takes reports.
    authority_listens: AtomicBool,
    /// Pixels that are known and could not be stored yet. Bounded by `registry.max_pixels`; locked after `store`.
    unstored: Mutex<BTreeSet<PixelId>>,
    /// Listed ad accounts of which somebody else's reply taught something since their list was taken over.
    retaught: Mutex<BTreeSet<String>>,
    shared: Option<Shared>,
}

impl Registry {
    /// Opens or creates the registry of a data directory. Starts, with a warning, also where it can't be written.
    pub fn open(options: Options, clock: Arc<dyn Clock>) -> Result<Arc<Registry>, Error> {
        let store = Store::open(&options.data_dir, clock.now())?;
        Registry::with_store(store, options, clock)
    }

    fn with_store(store: Store, options: Options, clock: Arc<dyn Clock>) -> Result<Arc<Registry>, Error> {
        match &store.access {
            Access::Writable => {}
            Access::ReadOnly(why) => {
                tracing::warn!(
                    why,
                    "the registry can only be read: management writes answer 503 until this is repaired"
                );
            }
            Access::Memory(why) => tracing::warn!(
                why,
                "the registry can't be created: only the config's pixels are known, and management writes answer 503"
            ),
        }
        let directory = ArcSwap::from_pointee(Directory::default());
        let asks = options.mode == Mode::Proxy && options.learning.token.is_some();
        let shared = options.shared().map(Shared::start).transpose()?;
        let inner = Arc::new(Inner {
            options,
            clock,
            directory,
            store: Mutex::new(store),
            lacks_first_token: AtomicBool::new(false),
            freshness: Freshness::default(),
            unknowns: asks.then(Unknowns::new),
            lookups: lookups::Counts::default(),
            reports: report::Counts::default(),
            authority_listens: AtomicBool::new(false),
            unstored: Mutex::default(),
            retaught: Mutex::default(),
            shared,
        });
        inner.load(&mut inner.lock())?;
        if let Some(shared) = &inner.shared {
            inner.resume(shared)?;
            // One that is away holds no start up for longer than one try; one that is newer than this program does.
            if let Err(error @ Error::Newer { .. }) = inner.follow(shared) {
                return Err(error);
            }
        }
        let failed = |source| Error::Io { path: inner.options.data_dir.clone(), source };
        let keeper = Keeper::start(Arc::clone(&inner), "registry-keeper", keeper::keep).map_err(failed)?;
        let follower = inner.shared.as_ref();
        let follower = follower.map(|_| Keeper::start(Arc::clone(&inner), "registry-follow", keeper::follow));
        let follower = follower.transpose().map_err(failed)?;
        Ok(Arc::new(Registry { inner, keeper, follower }))
    }

    /// What is known of an id. For the hot path: no lock, no reference count.
    pub fn lookup(&self, id: PixelId) -> Lookup {
        let directory = self.inner.directory.load();
        match directory.find(id) {
            Some(index) => Lookup::Known(Known { directory, index }),
            None => self.inner.unknown(id),
        }
    }

    /// Notes an accepted event that is no trial. For the hot path.
    pub fn note_event(&self, id: PixelId, now: Timestamp) {
        if let Some(entry) = self.inner.directory.load().get(id)
            && entry.slot.note(now)
        {
            // The first event of a pixel ever is worth a write of its own.
            self.keeper.wake();
        }
    }

    /// One pixel with all that is shown of it.
    pub fn find(&self, id: PixelId) -> Option<Arc<Entry>> {
        self.inner.directory.load().get(id).cloned()
    }

    /// The pixels of an ad account, in order of creation. Looks through all.
    pub fn list(&self, ad_account: &str) -> Vec<Arc<Entry>> {
        let directory = self.inner.directory.load();
        let of_account = |entry: &&Arc<Entry>| entry.pixel.ad_account_id.as_deref() == Some(ad_account);
        directory.entries().iter().filter(of_account).cloned().collect()
    }

    /// Of the pixels that fit, at most `most`, those with the newest events first; and how many fit. Looks through all.
    pub fn newest(&self, most: usize, fits: impl Fn(&Entry) -> bool) -> (Vec<Arc<Entry>>, usize) {
        self.inner.directory.load().newest(most, fits)
    }

    /// How many pixels are known.
    pub fn pixel_count(&self) -> usize {
        self.inner.directory.load().len()
    }

    /// The registry's clock, by which statuses are computed.
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// What a token allows, `None` if it is unknown or revoked. Sees at once what `pixelgate token` does. Blocks.
    pub fn check_token(&self, token: &TokenHash) -> Result<Option<Grant>, Error> {
        if let Some(shared) = &self.inner.shared {
            return Ok(tokens::find(self.inner.follow(shared)?.tokens(), token));
        }
        let mut store = self.inner.lock();
        match tokens::check(&mut store, token)? {
            Some(grant) => Ok(Some(grant)),
            // Where no token could ever be stored, saying "wrong token" would send people looking in the wrong place.
            None if matches!(store.access, Access::Memory(_)) && !tokens::any(&mut store)? => {
                store.require_writable().map(|()| None)
            }
            None => Ok(None),
        }
    }

    /// Why the registry can't be written, if it can't.
    pub fn degraded(&self) -> Option<String> {
        self.inner.lock().require_writable().err().map(|error| error.to_string())
    }

    /// Stops the keeper and stores what is not stored yet. Later calls do nothing.
    pub fn close(&self) -> Result<(), Error> {
        self.follower.iter().for_each(Keeper::stop);
        self.keeper.stop();
        self.inner.persist(true)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "the newest event times of pixels could not be stored");
        }
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("pixels", &self.pixel_count()).finish_non_exhaustive()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Store> {
        // Statements are transactions: a panic between them leaves a whole store.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be thought of an id that is not known. For the hot path.
    fn unknown(&self, id: PixelId) -> Lookup {
        if self.options.mode == Mode::Local && self.shared.is_none() {
            return Lookup::Unknown;
        }
        let now = self.clock.monotonic();
        if let Some(unknowns) = &self.unknowns {
            unknowns.saw(id, now);
        }
        let follows = self.shared.is_some() || !self.options.learning.ad_accounts.is_empty();
        if follows && !self.freshness.is_complete(now) { Lookup::NotChecked } else { Lookup::Unknown }
    }

    fn retaught(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.retaught.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unstored(&self) -> MutexGuard<'_, BTreeSet<PixelId>> {
        self.unstored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the store into the snapshot, adds the static pixels, makes the first token.
    fn load(&self, store: &mut Store) -> Result<(), Error> {
        let mut directory = Directory::clone(&self.directory.load());
        for Stored { pixel, creator, origin, last_event } in store.pixels()? {
            let still_given = || self.options.pixels.iter().any(|given| given.id == pixel.id);
            if origin != Origin::Config || still_given() {
                directory.put(pixel, creator, last_event);
            }
        }
        self.directory.store(Arc::new(directory));
        self.learn(store, self.options.pixels.clone(), Origin::Config)?;
        // With an upstream, tokens of pixels are its own; with a shared database, they are there.
        if self.options.mode == Mode::Local && self.shared.is_none() {
            self.ensure_first_token(store);
        }
        Ok(())
    }

    fn ensure_first_token(&self, store: &mut Store) {
        let made = tokens::ensure_first(store, &self.options.data_dir, self.clock.now());
        let lacked = self.lacks_first_token.swap(made.is_err(), Relaxed);
        match made {
            Err(error) if !lacked => tracing::warn!(%error, "the first management token could not be made"),
            _ => {}
        }
    }

    /// Stores the newest events that are not stored yet.
    fn persist(&self, is_last: bool) -> Result<(), Error> {
        if let Some(shared) = &self.shared {
            return self.persist_shared(shared, is_last);
        }
        let directory = self.directory.load_full();
        let changed = |entry: &Arc<Entry>| Some((entry.pixel.id, entry.slot.unpersisted()?));
        let events: Vec<_> = directory.entries().iter().filter_map(changed).collect();
        if events.is_empty() {
            return Ok(());
        }
        self.lock().touch(&events)?;
        for (id, time) in events {
            if let Some(entry) = directory.get(id) {
                entry.slot.persisted(time);
            }
        }
        Ok(())
    }

    /// Tries a store that couldn't be written; true if it can be, now.
    fn recover(&self) -> Result<bool, Error> {
        let mut store = self.lock();
        if !store.recover(self.clock.now()) {
            if self.lacks_first_token.load(Relaxed) {
                self.ensure_first_token(&mut store);
            }
            return Ok(false);
        }
        self.load(&mut store)?;
        drop(store);
        self.shared.as_ref().map_or(Ok(()), |shared| self.resume(shared))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
