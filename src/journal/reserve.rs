//! Room kept back for the few small writes that free room: the local cursor, which must be durable before segments go,
//! and a parked record. Without it a file system that is full to the last block would stay so for ever.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::disk::{Disk, is_out_of_room};
use super::segment::Paths;

/// Holds the longest parked record (112 KiB of text, twice that as hexadecimal digits) and a cursor.
pub const RESERVE_BYTES: u64 = 256 * 1024;

/// The allocated file, and whether it is there. Not counted in `max_bytes`.
pub struct Reserve {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    held: AtomicBool,
}

impl Reserve {
    /// Finds what an earlier run left.
    pub fn find(disk: Arc<dyn Disk>, paths: &Paths) -> Reserve {
        let path = paths.reserve();
        let length = disk.open(&path, false).and_then(|file| file.length());
        let held = length.is_ok_and(|bytes| bytes == RESERVE_BYTES);
        Reserve { disk, path, held: held.into() }
    }

    /// Makes it if it isn't there. To be called when there is room; without, the next call tries again.
    pub fn keep(&self) {
        if self.held.load(Ordering::Acquire) {
            return;
        }
        match self.disk.create(&self.path, RESERVE_BYTES) {
            Ok(_) => self.held.store(true, Ordering::Release),
            // What a failed allocation left is room that others need.
            Err(_) => drop(self.disk.remove(&self.path)),
        }
    }

    /// Writes; if there is no room for it, gives the reserve up and tries once more.
    pub fn spend<T>(&self, write: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match write() {
            Err(error) if is_out_of_room(&error) && self.give_up() => write(),
            written => written,
        }
    }

    fn give_up(&self) -> bool {
        self.held.swap(false, Ordering::AcqRel) && self.disk.remove(&self.path).is_ok()
    }
}
