//! The known pixels as one immutable snapshot: what the hot path looks up without a lock.
//!
//! A new snapshot shares the entries of the old one; only the changed pixel is new. Order is that of creation.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;

use super::status::{Slot, Status};
use crate::pixel::{Pixel, PixelId};
use crate::time::Timestamp;

/// One known pixel with all that the management API shows of it.
#[derive(Debug)]
pub struct Entry {
    /// What records carry.
    pub pixel: Pixel,
    /// `<fb_ad_account_id> (<token name>)`.
    pub creator: String,
    /// Shared with the same pixel's entry in other snapshots.
    pub(super) slot: Arc<Slot>,
}

impl Entry {
    /// When it fired last.
    pub fn last_event(&self) -> Option<Timestamp> {
        self.slot.last_event()
    }

    /// The status at a moment.
    pub fn status(&self, now: Timestamp) -> Status {
        self.slot.status(now)
    }
}

/// All known pixels at one moment. Ids are digits of any client's choosing, so the map is keyed with random seeds.
#[derive(Clone, Debug, Default)]
pub(super) struct Directory {
    /// In order of creation.
    entries: Vec<Arc<Entry>>,
    /// Index into `entries`. Bounded by `registry.max_pixels`.
    index: HashMap<PixelId, usize, ahash::RandomState>,
}

impl Directory {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Every entry, in order of creation.
    pub(super) fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    pub(super) fn find(&self, id: PixelId) -> Option<usize> {
        self.index.get(&id).copied()
    }

    pub(super) fn get(&self, id: PixelId) -> Option<&Arc<Entry>> {
        self.find(id).map(|index| &self.entries[index])
    }

    /// Adds a pixel at the end, or replaces what is known of it in its place, keeping its slot.
    pub(super) fn put(&mut self, pixel: Pixel, creator: String, last_event: Option<Timestamp>) {
        match self.find(pixel.id) {
            Some(index) => {
                let slot = Arc::clone(&self.entries[index].slot);
                self.entries[index] = Arc::new(Entry { pixel, creator, slot });
            }
            None => {
                self.index.insert(pixel.id, self.entries.len());
                let slot = Arc::new(Slot::stored(last_event));
                self.entries.push(Arc::new(Entry { pixel, creator, slot }));
            }
        }
    }

    /// Puts these in their order, behind all others in theirs.
    pub(super) fn arrange(&mut self, order: impl Iterator<Item = PixelId>) {
        let places: HashMap<PixelId, usize> = order.zip(1..).collect();
        self.entries.sort_by_key(|entry| places.get(&entry.pixel.id).copied().unwrap_or_default());
        self.index = self.entries.iter().enumerate().map(|(index, entry)| (entry.pixel.id, index)).collect();
    }

    /// Of the entries that fit, at most `most`, those with the newest events first; and how many fit.
    pub(super) fn newest(&self, most: usize, fits: impl Fn(&Entry) -> bool) -> (Vec<Arc<Entry>>, usize) {
        let mut found: Vec<_> = self.entries.iter().filter(|entry| fits(entry)).collect();
        let total = found.len();
        let newest = |entry: &&Arc<Entry>| std::cmp::Reverse((entry.last_event(), entry.pixel.id));
        if most < total {
            found.select_nth_unstable_by_key(most, newest);
            found.truncate(most);
        }
        found.sort_unstable_by_key(newest);
        (found.into_iter().cloned().collect(), total)
    }

    /// All but these.
    pub(super) fn without(&self, gone: &[PixelId]) -> Directory {
        let gone: HashSet<PixelId> = gone.iter().copied().collect();
        let entries: Vec<_> = self.entries.iter().filter(|entry| !gone.contains(&entry.pixel.id)).cloned().collect();
        let index = entries.iter().enumerate().map(|(index, entry)| (entry.pixel.id, index)).collect();
        Directory { entries, index }
    }

    /// The pixel of an ad account that has exactly this name. Archived ones leave theirs to others.
    pub(super) fn named(&self, ad_account: &str, name: &str) -> Option<PixelId> {
        let has = |pixel: &Pixel| {
            !pixel.archived && pixel.ad_account_id.as_deref() == Some(ad_account) && pixel.name.as_deref() == Some(name)
        };
        self.entries.iter().find(|entry| has(&entry.pixel)).map(|entry| entry.pixel.id)
    }
}

/// A known pixel, borrowed from the snapshot it was found in. Cheap to make (no reference count is touched); meant to
/// be held for one request's synchronous part.
pub struct Known {
    pub(super) directory: arc_swap::Guard<Arc<Directory>>,
    pub(super) index: usize,
}

impl Known {
    /// The whole entry.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.directory.entries[self.index]
    }
}

impl Deref for Known {
    type Target = Pixel;

    fn deref(&self) -> &Pixel {
        &self.entry().pixel
    }
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.entry().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixel(id: &str, name: &str) -> Pixel {
        Pixel {
            id: PixelId::parse(id.as_bytes()).unwrap(),
            name: Some(name.into()),
            tag: Some("other".into()),
            ad_account_id: Some("9".into()),
            archived: false,
        }
    }

    #[test]
    fn a_replaced_pixel_keeps_its_place_and_its_events() {
        let mut old = Directory::default();
        old.put(pixel("2", "two"), "9 (a)".into(), None);
        old.put(pixel("1", "one"), "9 (a)".into(), None);
        let mut new = old.clone();
        old.entries()[0].slot.note(Timestamp(5000));
        new.put(pixel("2", "zwei"), "9 (a)".into(), None);
        let names: Vec<_> = new.entries().iter().map(|entry| entry.pixel.name.as_deref().unwrap()).collect();
        assert_eq!(names, ["zwei", "one"]);
        assert_eq!(new.entries()[0].slot.last_event(), Some(Timestamp(5000)));
        old.entries()[0].slot.note(Timestamp(7000));
        assert_eq!(new.entries()[0].slot.last_event(), Some(Timestamp(7000)), "also noted through an older snapshot");
    }

    #[test]
    fn an_order_leaves_others_in_front() {
        let mut directory = Directory::default();
        for id in ["1", "2", "3", "4"] {
            directory.put(pixel(id, id), String::new(), None);
        }
        directory.arrange(["4", "5", "1"].iter().map(|id| PixelId::parse(id.as_bytes()).unwrap()));
        let ids: Vec<String> = directory.entries().iter().map(|entry| entry.pixel.id.to_string()).collect();
        assert_eq!(ids, ["2", "3", "4", "1"]);
        for (index, entry) in directory.entries().iter().enumerate() {
            assert_eq!(directory.find(entry.pixel.id), Some(index));
        }
    }

    #[test]
    fn names_are_taken_per_account_byte_for_byte() {
        let mut directory = Directory::default();
        directory.put(pixel("1", "one"), String::new(), None);
        assert_eq!(directory.named("9", "one"), PixelId::parse(b"1"));
        for (account, name) in [("8", "one"), ("9", "One"), ("9", "one ")] {
            assert_eq!(directory.named(account, name), None, "{account} {name}");
        }
        directory.put(Pixel { archived: true, ..pixel("1", "one") }, String::new(), None);
        assert_eq!(directory.named("9", "one"), None);
        assert!(directory.get(PixelId::parse(b"3").unwrap()).is_none());
    }
}
