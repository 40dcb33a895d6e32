//! Syncs behind the writer's back, done and told of at moments that a test draws.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;

use super::super::behind::Behind;
use super::super::disk::DiskFile;
use super::super::queue::Queue;
use super::clock::ManualClock;
use super::sim::SimDisk;
use super::world::DIR;
use super::*;

/// A sync that is done at once or not before its end; which is seen after some looking.
pub struct SlowSync {
    rng: StdRng,
    file: Option<Arc<dyn DiskFile>>,
    result: Option<io::Result<()>>,
    glances: u32,
}

impl SlowSync {
    pub fn new(rng: StdRng) -> SlowSync {
        SlowSync { rng, file: None, result: None, glances: 0 }
    }
}

impl Behind for SlowSync {
    fn begin(&mut self, file: Arc<dyn DiskFile>) {
        assert!(self.file.is_none() && self.result.is_none(), "one at a time");
        self.glances = self.rng.random_range(0..4);
        if self.rng.random_bool(0.5) {
            self.result = Some(file.sync());
        } else {
            self.file = Some(file);
        }
    }

    fn poll(&mut self) -> Option<io::Result<()>> {
        if self.glances > 0 {
            self.glances -= 1;
            return None;
        }
        Some(self.wait())
    }

    fn wait(&mut self) -> io::Result<()> {
        let late = self.file.take().map(|file| file.sync());
        self.result.take().or(late).expect("only when one is under way")
    }
}

/// Never done by itself.
struct Stuck;

impl Behind for Stuck {
    fn begin(&mut self, _: Arc<dyn DiskFile>) {}

    fn poll(&mut self) -> Option<io::Result<()>> {
        None
    }

    fn wait(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_sync_that_takes_long_is_waited_for_within_a_second() {
    let (disk, clock) = (SimDisk::new(1, Path::new(DIR)), Arc::new(ManualClock::new()));
    let options = Options { acknowledge: Acknowledge::Written, ..options(Path::new(DIR)) };
    let told = Arc::new(Told::default());
    let (journal, mut committer) = prepare(Arc::new(disk), options, clock.clone(), told).unwrap();
    committer.writer.sync_by(Box::new(Stuck));
    committer.upkeep(false).unwrap();
    let (appender, _driver) = journal.appender();
    let (mut batch, mut unsynced_since) = (Queue::default(), None);
    for number in 0..100 {
        appender.append(head(Kind::Event, number), b"key", |out| out.push(b'x')).unwrap();
        appender.flush();
        committer.turn(&mut batch).unwrap();
        let now = clock.monotonic();
        let oldest = *unsynced_since.get_or_insert(now);
        assert!(now - oldest < Duration::from_secs(1), "record {number} was acknowledged, {:?}", journal.synced());
        if journal.synced() == journal.written() {
            unsynced_since = None;
        }
        clock.pass(30);
    }
    assert!(journal.synced() > Position(50), "{}", journal.synced());
}
