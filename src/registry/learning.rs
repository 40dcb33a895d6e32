//! Proxy mode: who may teach this registry which pixels, and how sure it is that it knows them all.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use subtle::ConstantTimeEq;

use super::directory::Directory;
use super::report::Report;
use super::store::{Origin, Store, Stored};
use super::tokens::{self, TokenHash};
use super::{Error, Inner, Mode, Registry};
use crate::pixel::{Pixel, PixelId};
use crate::secret::Secret;
use crate::time::Timestamp;

/// How pixels are learnt from an upstream.
#[derive(Clone, Debug)]
pub struct Learning {
    /// `registry.ad_accounts`: synced, and learnt from anybody's replies.
    pub ad_accounts: Vec<String>,
    /// `registry.learn` is `any`: from every authorised reply.
    pub any: bool,
    /// `registry.upstream_token`: for syncing; replies to it teach, too.
    pub token: Option<Secret>,
    /// `registry.sync_interval`.
    pub sync_interval: Duration,
    /// `registry.grace`: how long a pixel that is no longer listed stays known.
    pub grace: Duration,
    /// `registry.report_last_events`.
    pub report: Report,
}

impl Learning {
    /// Nothing is learnt.
    pub fn none() -> Learning {
        let (sync_interval, grace) = (Duration::from_secs(60), Duration::from_secs(86_400));
        let (ad_accounts, report) = (Vec::new(), Report::Never);
        Learning { ad_accounts, any: false, token: None, sync_interval, grace, report }
    }
}

/// How complete the known set is. Written by the sync, read for ids that are not known.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    /// Monotonic milliseconds up to which every account's list is fresh enough to call an id unknown.
    complete_until_ms: AtomicU64,
    /// Unix milliseconds of the sync of the account that waits longest.
    oldest_sync_ms: AtomicU64,
    sync_errors: AtomicU64,
    /// Pixels found no room, so an id that is not known may be one of them.
    overflown: AtomicBool,
}

impl Freshness {
    pub(super) fn is_complete(&self, now: Duration) -> bool {
        !self.overflown.load(Relaxed) && (now.as_millis() as u64) < self.complete_until_ms.load(Relaxed)
    }

    pub(super) fn synced(&self, complete_until: Duration, oldest: Timestamp) {
        self.complete_until_ms.store(complete_until.as_millis() as u64, Relaxed);
        self.oldest_sync_ms.store(oldest.0, Relaxed);
    }

    pub(super) fn failed(&self) {
        self.sync_errors.fetch_add(1, Relaxed);
    }
}

impl Registry {
    /// Whether a reply may teach: of a configured account, to the gateway's own token, or to any with
    /// `registry.learn = "any"`.
    pub fn teaches(&self, ad_account: Option<&str>, token: Option<&TokenHash>) -> bool {
        let learning = &self.inner.options.learning;
        let listed = ad_account.is_some_and(|account| learning.ad_accounts.iter().any(|listed| listed == account));
        let own = learning.token.as_ref().map(|own| tokens::hash(own.expose().as_bytes()));
        let is_own = own.zip(token).is_some_and(|(own, token)| bool::from(own.ct_eq(token)));
        listed || is_own || (learning.any && token.is_some())
    }

    /// Takes over pixels that an authority names: stored, then known, then returns how many found no room. With an
    /// upstream a store that can't be written costs nothing but the memory of a restart.
    pub fn learn(&self, pixels: Vec<Pixel>) -> Result<usize, Error> {
        let (without_room, mut accounts) = self.take_over(pixels)?;
        accounts.retain(|account| self.inner.options.learning.ad_accounts.contains(account));
        self.inner.retaught().append(&mut accounts);
        Ok(without_room)
    }

    /// The same from the list of an ad account. Returns the ad accounts of what was new, too.
    pub(super) fn take_over(&self, mut pixels: Vec<Pixel>) -> Result<(usize, BTreeSet<String>), Error> {
        let mut store = self.inner.lock();
        if self.inner.options.mode == Mode::Local {
            store.require_writable()?;
            return self.inner.learn(&mut store, pixels, Origin::Learnt).map(|accounts| (0, accounts));
        }
        let directory = self.inner.directory.load_full();
        let mut room = self.inner.options.max_pixels.saturating_sub(directory.len());
        let given = pixels.len();
        pixels.retain(|pixel| {
            let known = directory.find(pixel.id).is_some();
            let fits = known || room > 0;
            room -= usize::from(fits && !known);
            fits
        });
        for pixel in &mut pixels {
            // One that two accounts list stays with the first, or each sync would change it.
            let owner = directory.get(pixel.id).and_then(|entry| entry.pixel.ad_account_id.clone());
            pixel.ad_account_id = owner.or(pixel.ad_account_id.take());
        }
        let without_room = given - pixels.len();
        if without_room > 0 && !self.inner.freshness.overflown.swap(true, Relaxed) {
            tracing::warn!("registry.max_pixels is reached: events of pixels that find no room are accepted unchecked");
        }
        let accounts = self.inner.learn(&mut store, pixels, Origin::Learnt)?;
        Ok((without_room, accounts))
    }

    /// Forgets learnt pixels that their upstream no longer has. Static ones and those created here stay.
    pub(super) fn forget(&self, ids: &[PixelId]) -> Result<(), Error> {
        let mut store = self.inner.lock();
        let gone = store.forget(ids)?;
        let old = self.inner.directory.load_full();
        self.inner.directory.store(Arc::new(old.without(&gone)));
        self.inner.freshness.overflown.store(false, Relaxed);
        Ok(())
    }

    /// When the account that waits longest was synced; `None` before all were, and where there is none to sync.
    pub fn oldest_sync(&self) -> Option<Timestamp> {
        Some(Timestamp(self.inner.freshness.oldest_sync_ms.load(Relaxed))).filter(|time| time.0 > 0)
    }

    /// `registry.sync_interval`.
    pub fn sync_interval(&self) -> Duration {
        self.inner.options.learning.sync_interval
    }

    /// How many syncs failed.
    pub fn sync_errors(&self) -> u64 {
        self.inner.freshness.sync_errors.load(Relaxed)
    }
}

impl Inner {
    /// Completes pixels by what is already known of them and installs those that changed. Returns their ad accounts.
    pub(super) fn learn(
        &self,
        store: &mut Store,
        pixels: Vec<Pixel>,
        origin: Origin,
    ) -> Result<BTreeSet<String>, Error> {
        let directory = self.directory.load_full();
        let complete = |pixel: Pixel| {
            let known = directory.get(pixel.id);
            let old = known.map(|entry| &entry.pixel);
            let pixel = Pixel {
                id: pixel.id,
                name: pixel.name.or_else(|| old?.name.clone()),
                tag: pixel.tag.or_else(|| old?.tag.clone()),
                ad_account_id: pixel.ad_account_id.or_else(|| old?.ad_account_id.clone()),
                archived: pixel.archived,
            };
            // Static ones are always stored: what is known of them may be so from an earlier try on a failing disk.
            if old == Some(&pixel) && origin != Origin::Config && !self.unstored().contains(&pixel.id) {
                return None;
            }
            let creator = match (known, origin, &pixel.ad_account_id) {
                (Some(entry), ..) => entry.creator.clone(),
                (None, Origin::Config, Some(account)) => format!("{account} (config)"),
                _ => String::new(),
            };
            Some(Stored { pixel, creator, origin, last_event: None })
        };
        let new: Vec<Stored> = pixels.into_iter().filter_map(complete).collect();
        let accounts: HashSet<&String> = new.iter().filter_map(|stored| stored.pixel.ad_account_id.as_ref()).collect();
        let accounts = accounts.into_iter().cloned().collect();
        self.install(store, new)?;
        Ok(accounts)
    }

    /// The one door: store, then swap.
    pub(super) fn install(&self, store: &mut Store, pixels: Vec<Stored>) -> Result<(), Error> {
        if pixels.is_empty() {
            return Ok(());
        }
        let mut directory = Directory::clone(&self.directory.load());
        for stored in &pixels {
            directory.put(stored.pixel.clone(), stored.creator.clone(), None);
        }
        if directory.len() > self.options.max_pixels {
            return Err(Error::Full(self.options.max_pixels));
        }
        match store.put(&pixels, self.clock.now()) {
            // The config's pixels need no disk: they come back with the config.
            Err(Error::Unwritable { .. }) if pixels.iter().all(|stored| stored.origin == Origin::Config) => {}
            // An upstream's come back with the next sync, and an event of one must not wait for this disk.
            Err(error) if self.options.mode == Mode::Proxy => {
                let mut unstored = self.unstored();
                if unstored.is_empty() {
                    tracing::warn!(%error, "pixels are learnt, and can't be stored: a restart forgets them");
                }
                unstored.extend(pixels.iter().map(|stored| stored.pixel.id));
            }
            result => {
                result?;
                let mut unstored = self.unstored();
                if !unstored.is_empty() {
                    unstored.retain(|id| !pixels.iter().any(|stored| stored.pixel.id == *id));
                }
            }
        }
        self.directory.store(Arc::new(directory));
        Ok(())
    }
}
