//! What the program is made of may be shipped: each dependency's licence, as its own manifest has it, can be met with
//! licences of this list. Copyleft beyond a file is not on it.
//!
//! Advisories and yanked versions are not looked at here: both change without this repository, and need the network.
#![expect(clippy::unwrap_used, reason = "a test's helpers end the test, as its body does")]

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;
use spdx::{Expression, LicenseReq, ParseMode};

const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
/// Additions to a licence that give more rights.
const ADDITIONS: &[&str] = &["LLVM-exception"];
/// Names that are there in several versions, at most: each is compiled, shipped and mended twice.
const MOST_DOUBLED: usize = 20;

/// Packages of the lock file that are built for the platform where the tests run: name, version, licence.
fn packages() -> Vec<(String, String, Option<String>)> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform"]);
    command.arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH)).current_dir(env!("CARGO_MANIFEST_DIR"));
    let said = command.output().unwrap();
    assert!(said.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&said.stderr));
    let metadata: Value = serde_json::from_slice(&said.stdout).unwrap();
    let used: Vec<&Value> = metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| &node["id"]).collect();
    let all = metadata["packages"].as_array().unwrap().iter().filter(|package| used.contains(&&package["id"]));
    let text = |package: &Value, name: &str| package[name].as_str().map(str::to_owned);
    all.map(|package| (text(package, "name").unwrap(), text(package, "version").unwrap(), text(package, "license")))
        .collect()
}

fn is_allowed(requirement: &LicenseReq) -> bool {
    let text = requirement.to_string();
    let (licence, addition) = text.split_once(" WITH ").map_or((&*text, None), |(left, right)| (left, Some(right)));
    ALLOWED.contains(&licence) && addition.is_none_or(|addition| ADDITIONS.contains(&addition))
}

/// Why a licence doesn't do, if it doesn't.
fn offence(licence: Option<&str>) -> Option<String> {
    let Some(text) = licence else { return Some("names no licence".to_owned()) };
    match Expression::parse_mode(text, ParseMode::LAX) {
        Err(error) => Some(format!("{text:?} is no licence expression: {}", error.reason)),
        Ok(expression) if expression.evaluate(is_allowed) => None,
        Ok(_) => Some(format!("{text:?} can't be met with the licences of tests/licences.rs")),
    }
}

#[test]
fn each_dependency_may_be_shipped() {
    let packages = packages();
    assert!(packages.len() > 100, "the list has {}", packages.len());
    let offence = |(name, version, licence): &(String, String, Option<String>)| {
        offence(licence.as_deref()).map(|why| format!("{name} {version}: {why}"))
    };
    let offences: Vec<String> = packages.iter().filter_map(offence).collect();
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

#[test]
fn licences_that_ask_for_more_are_seen() {
    for fine in ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR MIT", "Apache-2.0 WITH LLVM-exception", "MIT AND Zlib"] {
        assert_eq!(offence(Some(fine)), None, "{fine}");
    }
    for bad in [
        "GPL-3.0-only",
        "AGPL-3.0-or-later",
        "LGPL-2.1-only",
        "MIT AND GPL-2.0-only",
        "SSPL-1.0",
        "BUSL-1.1",
        "MIT WITH Classpath-exception-2.0",
        "Proprietary",
        "",
    ] {
        assert!(offence(Some(bad)).is_some(), "{bad}");
    }
    assert!(offence(None).is_some());
}

#[test]
fn few_dependencies_are_there_twice() {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, version, _) in packages() {
        versions.entry(name).or_default().push(version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    assert!(versions.len() <= MOST_DOUBLED, "{versions:?}");
}
