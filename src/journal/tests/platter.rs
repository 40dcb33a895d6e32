//! One simulated file: what a process sees, what the disk holds, and what a power cut leaves of the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;

/// Unit in which the system writes back.
pub const PAGE: usize = 4096;
/// Unit that a disk writes whole.
const SECTOR: usize = 512;

type Page = Arc<[u8; PAGE]>;

/// Content of a file: absent pages are zeros.
#[derive(Clone, Default)]
pub struct Content {
    pub pages: BTreeMap<usize, Page>,
    pub bytes: usize,
}

impl Content {
    pub fn page(&mut self, page: usize) -> &mut [u8; PAGE] {
        Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE])))
    }

    pub fn write(&mut self, mut bytes: &[u8], mut offset: usize) {
        self.bytes = self.bytes.max(offset + bytes.len());
        while !bytes.is_empty() {
            let at = offset % PAGE;
            let now = bytes.len().min(PAGE - at);
            self.page(offset / PAGE)[at..at + now].copy_from_slice(&bytes[..now]);
            (bytes, offset) = (&bytes[now..], offset + now);
        }
    }

    pub fn read(&self, buffer: &mut [u8], offset: usize) -> usize {
        let end = self.bytes.min(offset + buffer.len());
        let mut at = offset;
        while at < end {
            let now = (end - at).min(PAGE - at % PAGE);
            let into = &mut buffer[at - offset..at - offset + now];
            match self.pages.get(&(at / PAGE)) {
                Some(page) => into.copy_from_slice(&page[at % PAGE..at % PAGE + now]),
                None => into.fill(0),
            }
            at += now;
        }
        end.saturating_sub(offset)
    }

    pub fn cut(&mut self, bytes: usize) {
        if bytes < self.bytes {
            self.pages.split_off(&bytes.div_ceil(PAGE));
            if !bytes.is_multiple_of(PAGE) && self.pages.contains_key(&(bytes / PAGE)) {
                self.page(bytes / PAGE)[bytes % PAGE..].fill(0);
            }
        }
        self.bytes = bytes;
    }
}

/// One file, named or not.
#[derive(Clone, Default)]
pub struct Inode {
    pub seen: Content,
    pub durable: Content,
    /// Pages written since the last sync.
    pub dirty: BTreeSet<usize>,
}

impl Inode {
    pub fn sync(&mut self) {
        self.durable.cut(self.seen.bytes);
        for page in std::mem::take(&mut self.dirty) {
            if let Some(content) = self.seen.pages.get(&page) {
                self.durable.pages.insert(page, content.clone());
            }
        }
    }

    /// A sync that fails: the system calls pages clean that never reached the disk.
    pub fn sync_badly(&mut self, rng: &mut StdRng) {
        self.dirty.retain(|_| rng.random_bool(0.3));
    }

    pub fn crash(&mut self, rng: &mut StdRng) {
        if self.durable.bytes != self.seen.bytes && rng.random_bool(0.5) {
            self.durable.cut(self.seen.bytes);
        }
        for page in std::mem::take(&mut self.dirty) {
            let Some(content) = self.seen.pages.get(&page).cloned() else { continue };
            if page * PAGE >= self.durable.bytes {
                continue;
            }
            match rng.random_range(0..4) {
                0 => {}
                1 | 2 => {
                    self.durable.pages.insert(page, content);
                }
                _ => {
                    let into = self.durable.page(page);
                    for sector in (0..PAGE).step_by(SECTOR).filter(|_| rng.random_bool(0.5)) {
                        into[sector..sector + SECTOR].copy_from_slice(&content[sector..sector + SECTOR]);
                    }
                }
            }
        }
        self.seen = self.durable.clone();
    }
}
