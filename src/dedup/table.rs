//! A bounded set of keys in order of age: the oldest is forgotten first. No clock and no lock; the caller has both.
//!
//! [`Entry`]s lie in one vector that grows on demand and are chained from the oldest to the newest; an index of their
//! places (open addressing, linear probing) finds a key. An entry takes 24 bytes and its place in the index 5 to 10,
//! so a full table of `n` keys takes 29 `n` bytes.

/// 128 bits, as words so that an entry has no padding.
pub(super) type Key = [u32; 4];

/// No entry.
const NONE: u32 = u32::MAX;
/// The smallest index that isn't empty.
const MIN_INDEX: usize = 64;

/// A key and when it came.
#[derive(Clone, Copy)]
struct Entry {
    key: Key,
    /// On the caller's clock.
    second: u32,
    /// The next younger one, or the next free place.
    next: u32,
}

/// See the module.
pub(super) struct Table {
    entries: Vec<Entry>,
    oldest: u32,
    newest: u32,
    free: u32,
    /// Entries in the chain, also those that are not in the index any more.
    len: usize,
    max: usize,
    /// Places of entries, by key.
    index: Vec<u32>,
}

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Found {
    /// Its place, the same until it is forgotten.
    pub(super) place: u32,
    /// When it came.
    pub(super) second: u32,
}

impl Table {
    /// Of at most `max` keys; at least one.
    pub(super) fn new(max: usize) -> Table {
        // Places are 32 bits wide.
        let max = max.clamp(1, NONE as usize / 2);
        Table { entries: Vec::new(), oldest: NONE, newest: NONE, free: NONE, len: 0, max, index: Vec::new() }
    }

    /// How many keys it holds, those forgotten by [`Table::forget`] included until their age takes them.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether one more key costs the oldest.
    pub(super) fn is_full(&self) -> bool {
        self.len >= self.max
    }

    /// Looks for a key.
    pub(super) fn find(&self, key: Key) -> Option<Found> {
        let place = self.index.get(self.slot(key)?).copied().filter(|place| *place != NONE)?;
        Some(Found { place, second: self.entries[place as usize].second })
    }

    /// Adds a key that is not in it, as the newest. Returns its place, and the place that it cost: the oldest's.
    pub(super) fn push_newest(&mut self, key: Key, second: u32) -> (u32, Option<u32>) {
        let forgotten = if self.is_full() { self.pop_oldest() } else { None };
        let place = self.take_place(Entry { key, second, next: NONE });
        match self.newest {
            NONE => self.oldest = place,
            newest => self.entries[newest as usize].next = place,
        }
        self.newest = place;
        self.link(key, place);
        (place, forgotten)
    }

    /// Adds a key that is older than all in it; `false` if there is no room or it is there already.
    pub(super) fn push_oldest(&mut self, key: Key, second: u32) -> bool {
        if self.is_full() || self.find(key).is_some() {
            return false;
        }
        let place = self.take_place(Entry { key, second, next: self.oldest });
        self.oldest = place;
        if self.newest == NONE {
            self.newest = place;
        }
        self.link(key, place);
        true
    }

    /// Forgets the oldest key; its place.
    pub(super) fn pop_oldest(&mut self) -> Option<u32> {
        let place = Some(self.oldest).filter(|place| *place != NONE)?;
        let Entry { key, next, .. } = self.entries[place as usize];
        // It may be out of the index already, and its key back in it at another place.
        if self.find(key).is_some_and(|found| found.place == place) {
            self.unlink(key);
        }
        self.oldest = next;
        if next == NONE {
            self.newest = NONE;
        }
        self.entries[place as usize].next = self.free;
        self.free = place;
        self.len -= 1;
        Some(place)
    }

    /// When the oldest came.
    pub(super) fn oldest_second(&self) -> Option<u32> {
        Some(self.oldest).filter(|place| *place != NONE).map(|place| self.entries[place as usize].second)
    }

    /// Forgets a key that is in it. Its entry stays in the chain until its turn comes.
    pub(super) fn forget(&mut self, key: Key) {
        if self.find(key).is_some() {
            self.unlink(key);
        }
    }

    /// A place with an entry in it.
    fn take_place(&mut self, entry: Entry) -> u32 {
        self.len += 1;
        self.grow_index();
        if self.free != NONE {
            let place = self.free;
            self.free = self.entries[place as usize].next;
            self.entries[place as usize] = entry;
            return place;
        }
        if self.entries.len() == self.entries.capacity() {
            // Doubled as always, but never beyond the bound.
            let more = self.entries.len().max(MIN_INDEX).min(self.max - self.entries.len());
            self.entries.reserve_exact(more);
        }
        self.entries.push(entry);
        (self.entries.len() - 1) as u32
    }

    /// Where a key belongs if nothing is in its way.
    fn home(&self, key: Key) -> usize {
        ((u64::from(key[0]) * self.index.len() as u64) >> 32) as usize
    }

    fn after(&self, slot: usize) -> usize {
        if slot + 1 == self.index.len() { 0 } else { slot + 1 }
    }

    /// Where a key is, or would be; `None` without an index.
    fn slot(&self, key: Key) -> Option<usize> {
        if self.index.is_empty() {
            return None;
        }
        let mut slot = self.home(key);
        // Ends: a fifth of the index is always empty.
        while self.index[slot] != NONE && self.entries[self.index[slot] as usize].key != key {
            slot = self.after(slot);
        }
        Some(slot)
    }

    fn link(&mut self, key: Key, place: u32) {
        if let Some(slot) = self.slot(key) {
            self.index[slot] = place;
        }
    }

    /// Takes a key out of the index and closes the gap, so that no search ends early.
    fn unlink(&mut self, key: Key) {
        let Some(mut gap) = self.slot(key) else { return };
        let mut slot = gap;
        loop {
            slot = self.after(slot);
            let place = self.index[slot];
            if place == NONE {
                break;
            }
            let home = self.home(self.entries[place as usize].key);
            let stays = if gap <= slot { gap < home && home <= slot } else { gap < home || home <= slot };
            if !stays {
                self.index[gap] = place;
                gap = slot;
            }
        }
        self.index[gap] = NONE;
    }

    /// Makes the index large enough for `len` keys.
    fn grow_index(&mut self) {
        let wanted = |keys: usize| keys + keys / 4 + 1;
        if wanted(self.len) <= self.index.len() {
            return;
        }
        let slots = (self.index.len() * 2).max(MIN_INDEX).min(wanted(self.max)).max(wanted(self.len));
        let before = std::mem::take(&mut self.index);
        self.index = vec![NONE; slots];
        for place in before.into_iter().filter(|place| *place != NONE) {
            self.link(self.entries[place as usize].key, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// The same, plainly: oldest first.
    struct Plain {
        keys: VecDeque<(Option<Key>, u32)>,
        max: usize,
    }

    impl Plain {
        fn find(&self, key: Key) -> Option<u32> {
            self.keys.iter().find(|(known, _)| *known == Some(key)).map(|(_, second)| *second)
        }
    }

    /// Few keys, and some that share their home.
    fn key(number: u8) -> Key {
        [u32::from(number % 8) << 29, 0, 0, u32::from(number)]
    }

    #[derive(Clone, Debug)]
    enum Action {
        Newest(u8),
        Oldest(u8),
        Pop,
        Forget(u8),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            6 => any::<u8>().prop_map(Action::Newest),
            3 => any::<u8>().prop_map(Action::Oldest),
            1 => Just(Action::Pop),
            2 => any::<u8>().prop_map(Action::Forget),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn it_holds_what_a_plain_list_holds(max in 1usize..200, actions in prop::collection::vec(action(), 0..600)) {
            let (mut table, mut plain) = (Table::new(max), Plain { keys: VecDeque::new(), max });
            for (second, action) in (0..).zip(actions) {
                match action {
                    Action::Newest(number) if plain.find(key(number)).is_none() => {
                        let (place, forgotten) = table.push_newest(key(number), second);
                        let full = plain.keys.len() == plain.max;
                        prop_assert_eq!(forgotten.is_some(), full);
                        if full {
                            plain.keys.pop_front();
                        }
                        plain.keys.push_back((Some(key(number)), second));
                        prop_assert_eq!(table.find(key(number)), Some(Found { place, second }));
                    }
                    Action::Oldest(number) => {
                        let fits = plain.keys.len() < plain.max && plain.find(key(number)).is_none();
                        prop_assert_eq!(table.push_oldest(key(number), second), fits);
                        if fits {
                            plain.keys.push_front((Some(key(number)), second));
                        }
                    }
                    Action::Pop => {
                        prop_assert_eq!(table.oldest_second(), plain.keys.front().map(|(_, second)| *second));
                        prop_assert_eq!(table.pop_oldest().is_some(), plain.keys.pop_front().is_some());
                    }
                    Action::Forget(number) => {
                        table.forget(key(number));
                        if let Some(entry) = plain.keys.iter_mut().find(|(known, _)| *known == Some(key(number))) {
                            entry.0 = None;
                        }
                    }
                    Action::Newest(_) => {}
                }
                prop_assert_eq!(table.len(), plain.keys.len());
                // A few at each step, all at the end.
                for number in (0..8).map(|step| (second as u8).wrapping_add(step * 31)) {
                    prop_assert_eq!(table.find(key(number)).map(|found| found.second), plain.find(key(number)));
                }
            }
            for number in 0..=255 {
                prop_assert_eq!(table.find(key(number)).map(|found| found.second), plain.find(key(number)));
            }
        }
    }

    #[test]
    fn a_full_table_takes_what_it_says() {
        let mut table = Table::new(100_000);
        assert_eq!(table.entries.capacity(), 0, "nothing before the first");
        let random = |number: u32| [number.wrapping_mul(2_654_435_761), number, 1, 2];
        for number in 0..300_000 {
            table.push_newest(random(number), number);
        }
        assert_eq!((table.len(), size_of::<Entry>()), (100_000, 24));
        let bytes = table.entries.capacity() * size_of::<Entry>() + table.index.capacity() * 4;
        assert!(bytes <= 2_900_100, "{bytes}");
        assert_eq!((table.find(random(199_999)), table.find(random(200_000)).is_some()), (None, true));
    }
}
