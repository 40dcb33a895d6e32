//! Syncing behind the writer's back: with `written` nobody waits for a sync, so the committer must not either.
//!
//! One file at a time. What was written before [`Behind::begin`] is durable once [`Behind::wait`] says so, or
//! [`Behind::poll`]; of what is written meanwhile nothing is known.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use super::disk::DiskFile;

/// The seam, so that tests decide how long a sync takes.
pub trait Behind: Send {
    /// Begins to sync a file. Only when none is under way.
    fn begin(&mut self, file: Arc<dyn DiskFile>);
    /// What came of it; `None` while it is under way. Only when one is.
    fn poll(&mut self) -> Option<io::Result<()>>;
    /// What came of it, waiting for it. Only when one is under way.
    fn wait(&mut self) -> io::Result<()>;
}

/// A thread that syncs. It ends with its owner.
pub struct SyncThread {
    files: SyncSender<Arc<dyn DiskFile>>,
    results: Receiver<io::Result<()>>,
}

impl SyncThread {
    /// Starts it.
    pub fn start() -> io::Result<SyncThread> {
        // One file and its result at most are ever on the way: neither side waits for the other's reading.
        let (files, asked) = mpsc::sync_channel::<Arc<dyn DiskFile>>(1);
        let (done, results) = mpsc::sync_channel(1);
        thread::Builder::new().name("journal-sync".into()).spawn(move || {
            while let Ok(file) = asked.recv() {
                if done.send(file.sync()).is_err() {
                    break;
                }
            }
        })?;
        Ok(SyncThread { files, results })
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that syncs has ended")
}

impl Behind for SyncThread {
    fn begin(&mut self, file: Arc<dyn DiskFile>) {
        // A thread that has ended is told by whoever asks for the result.
        let _ = self.files.send(file);
    }

    fn poll(&mut self) -> Option<io::Result<()>> {
        match self.results.try_recv() {
            Ok(result) => Some(result),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Err(gone())),
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        self.results.recv().unwrap_or_else(|_| Err(gone()))
    }
}
