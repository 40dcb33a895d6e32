//! Jars from Maven Central, below the target directory, downloaded once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// What tests need that run Java.
pub const INSTALL: &str = "the e2e tests need Java 17 and Maven: apt-get install openjdk-17-jre-headless maven";

/// Held while downloading: one at a time, since they share Maven's own store.
pub static DOWNLOADING: Mutex<()> = Mutex::new(());

/// The directory with the jars of `group:artifact:version` and all that they need. `name` is the directory's.
pub fn jars(name: &str, artifacts: &[String]) -> PathBuf {
    let _guard = DOWNLOADING.lock().unwrap_or_else(PoisonError::into_inner);
    let jars = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join(name).join("libs");
    if !jars.exists() {
        download(&jars, artifacts);
    }
    jars
}

/// Runs it to its end.
pub fn run(maven: &mut Command) {
    let output = maven.output().expect(INSTALL);
    assert!(output.status.success(), "{INSTALL}; Maven said: {}", String::from_utf8_lossy(&output.stdout));
}

/// Moves what was downloaded, whole or not at all; another process may have been quicker.
pub fn take(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    if fs::rename(from, to).is_err() {
        assert!(to.exists(), "what was downloaded can't be moved to {}", to.display());
    }
}

fn download(jars: &Path, artifacts: &[String]) {
    let dependency = |artifact: &String| {
        let parts: Vec<&str> = artifact.split(':').collect();
        let [group, artifact, version] = parts[..] else { panic!("not group:artifact:version: {artifact}") };
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>\
             </dependency>"
        )
    };
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let project = directory.path().join("pom.xml");
    let text = format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>pixelgate</groupId><artifactId>tests</artifactId><version>1</version><packaging>pom</packaging>\
         <dependencies>{}</dependencies></project>",
        artifacts.iter().map(dependency).collect::<String>()
    );
    fs::write(&project, text).unwrap();
    let into = directory.path().join("libs");
    let mut maven = Command::new("mvn");
    maven.args(["-q", "-B", "-f"]).arg(&project).arg("dependency:copy-dependencies");
    run(maven.arg(format!("-DoutputDirectory={}", into.display())));
    take(&into, jars);
}
