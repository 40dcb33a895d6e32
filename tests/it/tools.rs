//! Programs that tests run beside the one under test: where they are, and what to install where they are not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::gateway::output;

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A directory of a test, below the target directory.
pub fn scratch(prefix: &str) -> tempfile::TempDir {
    tempfile::Builder::new().prefix(prefix).tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Where `.ci/tools` put what it was asked for. The first time this builds, which may take minutes.
pub fn tools(names: &[&str]) -> PathBuf {
    let said = Command::new(root().join(".ci/tools")).args(names).output().expect("the e2e tests need bash");
    assert!(said.status.success(), ".ci/tools: {}", String::from_utf8_lossy(&said.stderr));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    std::env::var_os("CARGO_TARGET_DIR").map_or(target.to_owned(), PathBuf::from).join("tools")
}

/// What a command printed, which must succeed; `install` says what to do if it isn't there.
pub fn run(mut command: Command, install: &str) -> String {
    let what = format!("{command:?}");
    let said = command.output().unwrap_or_else(|error| panic!("{what}: {error}; {install}"));
    let errors = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{what}: {errors}{}", String::from_utf8_lossy(&said.stdout));
    String::from_utf8(said.stdout).unwrap()
}

/// A directory where Node.js finds this package, `name@version`, made once.
pub fn node(package: &str) -> PathBuf {
    const INSTALL: &str = "the e2e tests need Node.js: apt-get install nodejs npm";
    let name = package.trim_start_matches('@').replace(['/', '@'], "-");
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("node").join(name);
    if !place.exists() {
        let making = place.with_extension(std::process::id().to_string());
        fs::create_dir_all(&making).unwrap();
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", package]);
        npm.current_dir(&making);
        run(npm, INSTALL);
        // Whole or not at all; another process may have been quicker.
        if fs::rename(&making, &place).is_err() {
            fs::remove_dir_all(&making).unwrap();
        }
    }
    place
}

/// What a command said on stderr as it refused.
pub fn refusal(command: Command) -> String {
    let what = format!("{command:?}");
    let said = output(command);
    assert!(!said.status.success(), "{what} was not refused");
    String::from_utf8_lossy(&said.stderr).into_owned()
}

/// Polls until something holds, for as long as a busy machine may take.
pub fn patiently<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
