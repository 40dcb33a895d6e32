//! Python with packages from its registry, in an environment below the target directory that is made once.
//!
//! Without Python a test that asks for it fails and says what to install.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

const INSTALL: &str = "the e2e tests need Python: apt-get install python3 python3-venv";

/// The interpreter of an environment with these packages.
pub fn with(name: &str, requirements: &[String]) -> PathBuf {
    // One at a time: the downloads are shared.
    static MAKING: Mutex<()> = Mutex::new(());
    let _guard = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let words: String = requirements.concat().chars().filter(|letter| letter.is_ascii_alphanumeric()).collect();
    let place = target.join("python").join(format!("{name}-{words}"));
    let interpreter = place.join("bin/python");
    if !interpreter.exists() {
        make(&place, requirements, &target.join("python/downloads"));
    }
    interpreter
}

fn make(place: &Path, requirements: &[String], downloads: &Path) {
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    // Whole or not at all; another process may have been quicker.
    let making = place.with_extension(std::process::id().to_string());
    let run = |command: &mut Command| {
        let output = command.output().expect(INSTALL);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{INSTALL}; it said: {said}");
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&making));
    let mut pip = Command::new(making.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--cache-dir"]).arg(downloads);
    run(pip.args(requirements));
    if fs::rename(&making, place).is_err() {
        assert!(place.exists(), "{} can't be made", place.display());
        fs::remove_dir_all(&making).unwrap();
    }
}
