//! What people change through the management API: each change with its row in the audit log, durable, then known, then
//! answered.

use std::sync::Arc;

use super::audit::{By, Note};
use super::directory::Directory;
use super::store::{Origin, Store, Stored};
use super::{Error, Inner, Registry};
use crate::pixel::{Pixel, PixelId};

/// A pixel to be created.
#[derive(Clone, Copy, Debug)]
pub struct NewPixel<'a> {
    /// Its owner, see [`super::is_ad_account`].
    pub ad_account_id: &'a str,
    /// Its name, unique there among those that are not archived.
    pub name: &'a str,
    /// Its tag in lower case.
    pub tag: &'a str,
    /// The name of the token that asks for it, for `creator`.
    pub token_name: &'a str,
}

/// What to change of a pixel; what is absent stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Edit {
    /// Its name.
    pub name: Option<String>,
    /// Its tag in lower case.
    pub tag: Option<String>,
    /// Whether its events are refused.
    pub archived: Option<bool>,
}

/// Tries to find an id that nobody has: of 10^11 the first is free, as a rule.
const DRAWS: usize = 8;

impl Edit {
    pub(super) fn apply(&self, old: &Pixel) -> Pixel {
        Pixel {
            id: old.id,
            name: self.name.clone().or_else(|| old.name.clone()),
            tag: self.tag.clone().or_else(|| old.tag.clone()),
            ad_account_id: old.ad_account_id.clone(),
            archived: self.archived.unwrap_or(old.archived),
        }
    }
}

impl Registry {
    /// Creates a pixel with a new id.
    pub fn create(&self, new: NewPixel<'_>, by: &By) -> Result<PixelId, Error> {
        let Some(shared) = &self.inner.shared else {
            let mut store = self.inner.lock();
            store.require_writable()?;
            let (stored, note) = self.draw(&store, new, by)?;
            self.inner.change(&mut store, &stored, &note)?;
            return Ok(stored.pixel.id);
        };
        for _ in 0..DRAWS {
            let (stored, note) = self.draw(&self.inner.lock(), new, by)?;
            if self.inner.create_shared(shared, &stored, &note)? {
                return Ok(stored.pixel.id);
            }
        }
        Err(Error::Away("no free id was found".into()))
    }

    /// A pixel that could be created as far as is known here.
    fn draw(&self, store: &Store, new: NewPixel<'_>, by: &By) -> Result<(Stored, Note), Error> {
        let directory = self.inner.directory.load_full();
        if directory.named(new.ad_account_id, new.name).is_some() {
            return Err(Error::NameTaken);
        }
        if directory.len() >= self.inner.options.max_pixels {
            return Err(Error::Full(self.inner.options.max_pixels));
        }
        let pixel = Pixel {
            id: draw_id(store, &directory)?,
            name: Some(new.name.into()),
            tag: Some(new.tag.into()),
            ad_account_id: Some(new.ad_account_id.into()),
            archived: false,
        };
        let creator = format!("{} ({})", new.ad_account_id, new.token_name);
        let note = Note::created(by, &pixel);
        Ok((Stored { pixel, creator, origin: Origin::Local, last_event: None }, note))
    }

    /// Changes a pixel. What changes nothing is no change: it is answered and not written.
    pub fn edit(&self, id: PixelId, edit: &Edit, by: &By) -> Result<(), Error> {
        if self.inner.options.pixels.iter().any(|given| given.id == id) {
            return Err(Error::Static);
        }
        if let Some(shared) = &self.inner.shared {
            return self.inner.edit_shared(shared, id, edit, by);
        }
        let mut store = self.inner.lock();
        store.require_writable()?;
        let directory = self.inner.directory.load_full();
        let entry = directory.get(id).ok_or(Error::UnknownPixel)?;
        let pixel = edit.apply(&entry.pixel);
        if pixel == entry.pixel {
            return Ok(());
        }
        if let (Some(account), Some(name), false) = (&pixel.ad_account_id, &pixel.name, pixel.archived)
            && directory.named(account, name).is_some_and(|other| other != id)
        {
            return Err(Error::NameTaken);
        }
        let note = Note::changed(by, &entry.pixel, &pixel);
        // The store keeps the origin that it has.
        let stored = Stored { pixel, creator: entry.creator.clone(), origin: Origin::Local, last_event: None };
        self.inner.change(&mut store, &stored, &note)
    }
}

impl Inner {
    /// Store, then swap.
    fn change(&self, store: &mut Store, stored: &Stored, note: &Note) -> Result<(), Error> {
        store.change(stored, note, self.clock.now())?;
        let mut directory = Directory::clone(&self.directory.load());
        directory.put(stored.pixel.clone(), stored.creator.clone(), None);
        self.directory.store(Arc::new(directory));
        Ok(())
    }
}

/// 13 digits that begin with 60, as the published ones; not to be guessed from the last.
fn draw_id(store: &Store, directory: &Directory) -> Result<PixelId, Error> {
    // Ids of static pixels that left the config are in the store only, hence the second question.
    loop {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)
            .map_err(|error| Error::Io { path: "getrandom".into(), source: std::io::Error::other(error) })?;
        let digits = format!("60{:011}", u64::from_le_bytes(bytes) % 100_000_000_000);
        let id = PixelId::parse(digits.as_bytes()).expect("13 digits, the first a 6");
        if directory.find(id).is_none() && !store.holds(id)? {
            return Ok(id);
        }
    }
}
