//! The build script: compiles `src/publish/waits.c`, and tells the program which commit it is built from, for
//! `pixelgate_build_info`.
//!
//! `BUILD_COMMIT` in the environment wins (container builds don't see `.git`). Otherwise release builds ask git;
//! others don't, so that a commit alone rebuilds nothing while developing.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=.ci/build.rs");
    waits();
    println!("cargo:rerun-if-env-changed=BUILD_COMMIT");
    let given = std::env::var("BUILD_COMMIT").ok().filter(|commit| !commit.is_empty());
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if let Some(commit) = given.or_else(|| if is_release { asked() } else { None }) {
        println!("cargo:rustc-env=BUILD_COMMIT={}", commit.escape_default());
    }
}

/// As an object of its own and not in a library, from which a linker would take it only if it were missing. Not for
/// musl, whose conditions can't be told which clock to wait by.
fn waits() {
    const SOURCE: &str = "src/publish/waits.c";
    println!("cargo:rerun-if-changed={SOURCE}");
    let target = |key: &str| std::env::var(format!("CARGO_CFG_TARGET_{key}")).unwrap_or_default();
    if (&*target("OS"), &*target("ENV")) == ("linux", "gnu") {
        for object in cc::Build::new().file(SOURCE).warnings_into_errors(true).compile_intermediates() {
            println!("cargo:rustc-link-arg={}", object.display());
        }
    }
}

/// The commit of this working copy, if it is one of its own and not a directory in another.
fn asked() -> Option<String> {
    git(&["rev-parse", "--show-prefix"]).filter(|prefix| prefix.is_empty())?;
    println!("cargo:rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
