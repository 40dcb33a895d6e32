//! Programs that tests run beside the gateway: readers of its topics, registries.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

/// A process that is killed at the end.
pub struct Running(Child);

impl Running {
    /// Starts it; what it prints goes to the end of `log`.
    pub fn start(command: &mut Command, log: &Path) -> Running {
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Running(command.spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Waits for a program that starts slowly on a busy machine.
pub fn wait(what: &str, log: &Path, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        let said = || fs::read_to_string(log).unwrap_or_default();
        assert!(Instant::now() < deadline, "never: {what}; it said: {}", said());
        thread::sleep(Duration::from_millis(50));
    }
}

/// A directory for what they write.
pub fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("consumer-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}
