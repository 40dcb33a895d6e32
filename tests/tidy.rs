//! House rules that no compiler holds: sizes, words, module docs, layers, and that docs name what the code has.
//!
//! Each rule prints every offence, not the first. The table `LAYERS` is a decision: a new arrow belongs in a review.
#![expect(clippy::unwrap_used, reason = "a test's helpers end the test, as its body does")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pixelgate::event::rejection::Rejection;

const MAX_FILE_LINES: usize = 500;
const MAX_LINE_CHARS: usize = 120;
const MAX_FUNCTION_LINES: usize = 70;

/// Which modules a module of the crate may name; `*` is any. Left to right as in docs/architecture.md.
const LAYERS: &[(&str, &str)] = &[
    ("record", ""),
    ("pixel", ""),
    ("time", ""),
    ("secret", ""),
    ("event", "record pixel time"),
    ("diagnostics", "pixel time event"),
    ("limits", "pixel time"),
    ("policy", "pixel"),
    ("inflight", ""),
    ("journal", "record time inflight"),
    ("node", "time"),
    ("filesystem", ""),
    ("upstream", "time"),
    ("registry", "pixel time secret upstream"),
    ("feed", "record pixel time journal"),
    ("rejects", "time"),
    ("dedup", "record pixel time journal"),
    ("ingest", "record pixel time event limits policy journal registry feed rejects dedup"),
    ("publish", "record time secret journal upstream"),
    ("telemetry", ""),
    (
        "http",
        "record pixel time event diagnostics limits policy inflight journal registry upstream feed ingest publish \
         metrics",
    ),
    ("metrics", "record pixel time event limits journal registry upstream feed ingest publish"),
    (
        "config",
        "record pixel time secret event limits policy journal registry upstream feed dedup ingest publish http \
         telemetry node",
    ),
    ("preflight", "time journal registry upstream http publish config filesystem"),
    ("app", "*"),
    ("cli", "*"),
    ("main", "*"),
    ("lib", "*"),
];

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }

    /// The crate's module it belongs to: first part below `src`.
    fn module(&self) -> String {
        let below = self.path.strip_prefix(root().join("src")).unwrap();
        let first = below.components().next().unwrap().as_os_str().to_string_lossy();
        first.trim_end_matches(".rs").to_owned()
    }

    fn is_test(&self) -> bool {
        let name = self.name();
        name.starts_with("tests/") || name.contains("/tests/") || name.ends_with("/tests.rs")
    }

    /// The text before its unit tests.
    fn program(&self) -> &str {
        self.text.split("\n#[cfg(test)]\nmod ").next().unwrap()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below some of the repository's directories and files, with one of these endings (all if none are named).
fn files(starts: &[&str], endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = starts.iter().map(|start| root().join(start)).collect();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if endings.is_empty() || endings.iter().any(|end| path.to_string_lossy().ends_with(end)) {
            // What is no UTF-8 is a fixture.
            if let Ok(text) = fs::read_to_string(&path) {
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|left, right| left.path.cmp(&right.path));
    found
}

fn rust() -> Vec<Source> {
    files(&["src", "tests", "benches"], &[".rs"])
}

fn documents() -> Vec<Source> {
    files(&["README.md", "docs", "deploy", "config", ".ci", "benches"], &[])
}

fn none(offences: Vec<String>) {
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

#[test]
fn files_and_lines_are_short() {
    let mut offences = Vec::new();
    for source in rust() {
        let lines = source.text.lines().count();
        if lines > MAX_FILE_LINES {
            offences.push(format!("{}: {lines} lines, at most {MAX_FILE_LINES}", source.name()));
        }
        for (index, line) in source.text.lines().enumerate() {
            let chars = line.chars().count();
            if chars > MAX_LINE_CHARS {
                offences.push(format!("{}:{}: {chars} characters", source.name(), index + 1));
            }
        }
    }
    none(offences);
}

#[test]
fn functions_are_short() {
    let mut offences = Vec::new();
    for source in rust() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let Some(indent) = function_indent(line) else { continue };
            let end = format!("{}}}", " ".repeat(indent));
            let length = lines[index..].iter().position(|line| *line == end).map_or(0, |length| length + 1);
            if length > MAX_FUNCTION_LINES {
                offences.push(format!("{}:{}: a function of {length} lines", source.name(), index + 1));
            }
        }
    }
    none(offences);
}

/// Indentation of a line that begins a function with a body on further lines.
fn function_indent(line: &str) -> Option<usize> {
    let text = line.trim_start();
    let words = text.split('(').next().unwrap_or_default().split_whitespace();
    let known = ["pub", "async", "const", "unsafe", "extern"];
    let mut after = words.skip_while(|word| known.contains(word) || *word == "pub(crate)" || *word == "pub(super)");
    let is_function = after.next() == Some("fn") && !text.ends_with(';') && !text.ends_with('}');
    is_function.then_some(line.len() - text.len())
}

#[test]
fn banned_words_are_absent() {
    // In two halves, so that this file may be looked at, too.
    let words: Vec<String> = [
        ("todo", "!("),
        ("unimplemented", "!("),
        ("dbg", "!("),
        ("FIX", "ME"),
        ("XX", "X:"),
        ("TO", "DO"),
        ("#[ign", "ore"),
        ("#[al", "low("),
    ]
    .iter()
    .map(|(left, right)| format!("{left}{right}"))
    .collect();
    let mut offences = Vec::new();
    for source in rust() {
        for (index, line) in source.text.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(word.as_str())) {
                offences.push(format!("{}:{}: {word}", source.name(), index + 1));
            }
        }
    }
    none(offences);
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = |source: &Source| !source.text.starts_with("//!");
    none(rust().iter().filter(|source| silent(source)).map(|source| format!("{}: no //!", source.name())).collect());
}

#[test]
fn modules_use_only_what_is_to_their_left() {
    let mut offences = Vec::new();
    for source in files(&["src"], &[".rs"]).iter().filter(|source| !source.is_test()) {
        let module = source.module();
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
            offences.push(format!("{}: module {module} is not in the table of layers", source.name()));
            continue;
        };
        for used in crate_modules(source.program()) {
            let fine = used == module || *allowed == "*" || allowed.split(' ').any(|name| name == used);
            if !fine {
                offences.push(format!("{}: {module} may not use {used}", source.name()));
            }
        }
    }
    none(offences);
}

/// First parts of all paths that begin with `crate::`, in code.
fn crate_modules(text: &str) -> BTreeSet<String> {
    let mut code = String::new();
    for line in text.lines() {
        code.push_str(line.split("//").next().unwrap());
        code.push('\n');
    }
    let mut found = BTreeSet::new();
    for (at, start) in code.match_indices("crate::") {
        let rest = &code[at + start.len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_heads(group)),
            None => found.extend([identifier(rest)]),
        }
    }
    found.remove("");
    found
}

fn identifier(text: &str) -> String {
    text.trim_start().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// Heads of the members of `{a::b, c::{d, e}}`, from behind its first brace.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = vec![identifier(group)];
    let mut depth = 1;
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => heads.push(identifier(&group[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

#[test]
fn the_scan_for_modules_sees_groups_and_skips_comments() {
    let seen = crate_modules("use crate::a::B;\nuse crate::{b::C, c::{D, E}, f};\n// crate::g\nlet x = crate::h::I;\n");
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["a", "b", "c", "f", "h"]);
}

#[test]
fn nothing_names_a_machine_or_a_registry_host() {
    let forbidden: Vec<String> = [
        ["/wo", "rk/"],
        ["/ro", "ot/"],
        ["/ho", "me/"],
        ["/Use", "rs/"],
        ["static.crates", ".io"],
        ["index.crates", ".io"],
        ["repo1.maven", ".org"],
        ["repo.maven.ap", "ache.org"],
        ["files.python", "hosted.org"],
        ["registry.npm", "js.org"],
        ["proxy.go", "lang.org"],
    ]
    .iter()
    .map(|halves| halves.concat())
    .collect();
    let mut offences = Vec::new();
    for source in rust().into_iter().chain(documents()).chain(files(&["Cargo.toml", ".cargo"], &[".toml"])) {
        for (index, line) in source.text.lines().enumerate() {
            for text in forbidden.iter().filter(|text| line.contains(text.as_str())) {
                offences.push(format!("{}:{}: {text}", source.name(), index + 1));
            }
        }
    }
    none(offences);
}

fn contract() -> String {
    fs::read_to_string(root().join("docs/contract.md")).unwrap()
}

#[test]
fn the_contract_has_each_reason_with_its_status() {
    let contract = contract();
    let row = |rejection: Rejection| format!("| {} | `{}` |", rejection.status(), rejection.reason());
    let missing = Rejection::ALL.into_iter().map(row).filter(|row| !contract.contains(row));
    none(missing.map(|row| format!("docs/contract.md has no row {row}")).collect());
}

#[test]
fn operators_are_told_about_each_metric() {
    let contract = contract();
    let operations = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let names: Vec<String> = words_after(&contract, "\n| `pixelgate_").into_iter().collect();
    assert!(names.len() > 30, "the scan sees {names:?}");
    let missing = names.iter().filter(|name| !operations.contains(&format!("`pixelgate_{name}")));
    none(missing.map(|name| format!("docs/operations.md does not explain `pixelgate_{name}`")).collect());
}

#[test]
fn the_contract_has_a_row_for_each_key() {
    let contract = contract();
    let keys = pixelgate::config::reference::paths();
    assert!(keys.len() > 30, "{keys:?}");
    let missing = keys.iter().filter(|key| !contract.contains(&format!("\n| `{key}` |")));
    let missing = missing.filter(|key| !contract.contains(&format!("\n| `{key}.*` |")));
    none(missing.map(|key| format!("docs/contract.md has no row | `{key}` |")).collect());
}

#[test]
fn deployments_use_variables_that_the_program_knows() {
    let known = pixelgate::config::reference::variables();
    let mut offences = Vec::new();
    let mut seen = 0;
    for source in files(&["deploy"], &[]) {
        for name in words_after(&source.text, "PIXELGATE_") {
            let name = format!("PIXELGATE_{name}");
            let fits = |known: &String| name == *known || known.ends_with("__") && name.starts_with(known.as_str());
            seen += 1;
            if !known.iter().any(fits) {
                offences.push(format!("{}: the program knows no {name}", source.name()));
            }
        }
    }
    assert!(seen > 5, "the scan sees {seen} variables");
    none(offences);
}

#[test]
fn each_dependency_has_its_reason() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let reasons = fs::read_to_string(root().join("docs/decisions/0001-dependencies.md")).unwrap();
    let mut offences = Vec::new();
    for table in ["dependencies", "dev-dependencies"] {
        for name in manifest[table].as_table().unwrap().keys() {
            if !reasons.contains(&format!("\n| `{name}` | ")) {
                offences.push(format!("docs/decisions/0001-dependencies.md: no line for {name}"));
            }
        }
    }
    none(offences);
}

#[test]
fn alerts_use_metrics_of_the_contract() {
    let contract = contract();
    let rules = fs::read_to_string(root().join("deploy/pixelgate.rules.yml")).unwrap();
    let names: Vec<String> = words_after(&rules, "pixelgate_").iter().map(|rest| format!("pixelgate_{rest}")).collect();
    assert!(names.len() > 5, "the scan sees {names:?}");
    // The series of a histogram have its name and an ending.
    let metric = |name: &String| {
        let end = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
        end.unwrap_or(name).to_owned()
    };
    let is_known = |name: &String| ["`", "{"].iter().any(|end| contract.contains(&format!("`{}{end}", metric(name))));
    let unknown = names.iter().filter(|name| !is_known(name));
    none(unknown.map(|name| format!("deploy/pixelgate.rules.yml: `{name}` is not in docs/contract.md")).collect());
}

/// The identifiers that follow each occurrence of `start`.
fn words_after(text: &str, start: &str) -> BTreeSet<String> {
    text.match_indices(start).map(|(at, _)| identifier(&text[at + start.len()..])).collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut offences = Vec::new();
    for source in files(&["README.md", "docs", "deploy"], &[".md"]) {
        for (at, _) in source.text.match_indices("](") {
            let target = source.text[at + 2..].split(')').next().unwrap();
            let file = target.split('#').next().unwrap();
            let outside = target.contains("://") || file.is_empty();
            if !outside && !source.path.parent().unwrap().join(file).exists() {
                offences.push(format!("{}: {target} is not there", source.name()));
            }
        }
    }
    none(offences);
}

#[test]
fn each_promise_names_tests_that_are_there() {
    let guarantees = fs::read_to_string(root().join("docs/guarantees.md")).unwrap();
    let mut offences = Vec::new();
    let mut seen = 0;
    for name in guarantees.split('`').skip(1).step_by(2) {
        let (module, test) = match name.split_once("::") {
            Some((module, test)) if !test.contains("test") => (format!("tests/it/{module}.rs"), test),
            _ => continue,
        };
        seen += 1;
        let text = fs::read_to_string(root().join(&module)).unwrap_or_default();
        if !text.contains(&format!("#[test]\nfn {test}(")) {
            offences.push(format!("docs/guarantees.md: {name} is no test"));
        }
    }
    assert!(seen > 30, "the scan sees {seen}");
    none(offences);
}
