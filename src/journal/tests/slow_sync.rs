//! Syncs behind the writer's back, done and told of at moments that a test draws.

use std::io;
use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;

use super::super::behind::Behind;
use super::super::disk::DiskFile;

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
