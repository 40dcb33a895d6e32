//! `pixelgate check`: tells the config's problems and then tries reality, as `serve` will find it.
//!
//! Problems and warnings are the result, so they go to stdout, one a line. What a check leaves behind is nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::app::Refusal;
use crate::config::{Config, Problem};
use crate::journal::disk::{Disk, RealDisk};
use crate::journal::look::Log;
use crate::journal::{self, OpenError};
use crate::node::{self, ClaimError};
use crate::preflight::{self, Finding};
use crate::publish::ask;
use crate::registry::{self, tokens};

/// How long Kafka may take for one answer.
const ASK: Duration = Duration::from_secs(3);
/// What is written to see whether writing works: a block, so that it needs room.
const PROBE: [u8; 4096] = [0; 4096];

/// What was found. A line is `key: what is wrong, what is allowed`.
#[derive(Default)]
struct Findings {
    problems: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    fn problem(&mut self, line: String) {
        self.problems.push(line);
    }

    fn add(&mut self, finding: Option<Finding>) {
        match finding {
            Some(Finding::Problem(line)) => self.problem(line),
            Some(Finding::Warning(line)) => self.warning(line),
            None => {}
        }
    }

    fn warning(&mut self, line: String) {
        self.warnings.push(line);
    }
}

/// Prints all findings; an error if there is a problem. Parts of the config with problems are not tried.
pub fn run(config: &Config, problems: &[Problem], out: &mut impl Write) -> anyhow::Result<()> {
    let mut found = Findings::default();
    found.problems.extend(problems.iter().map(Problem::to_string));
    let is_sound = |start: &str| !problems.iter().any(|problem| problem.key.starts_with(start));
    if is_sound("--config") && is_sound("data_dir") {
        found.add(preflight::file_system(config));
        data_dir(config, &mut found);
    }
    if let Err(problem) = preflight::certificate(config, |warning| found.warnings.push(warning)) {
        found.problem(problem);
    }
    found.add(preflight::management(config));
    found.add(preflight::upstream(config));
    found.add(preflight::upstream_answers(config));
    if is_sound("registry.") {
        found.add(preflight::database(config));
    }
    found.add(preflight::proxies(config));
    found.add(preflight::cookie(config));
    if !config.kafka.brokers.is_empty() && is_sound("kafka.") {
        preflight::schema_registry(config).into_iter().for_each(|finding| found.add(Some(finding)));
        found.add(ask::own_limit(&config.kafka).and_then(|limit| preflight::kafka(config, &limit)));
        match preflight::kafka_client(config) {
            None => found.add(preflight::kafka(config, &ask::longest_message(&config.kafka, ASK))),
            problem => found.add(problem),
        }
    }
    // Control characters in a path or in an error's text must not break the line.
    for line in &found.problems {
        writeln!(out, "{}", one_line(line))?;
    }
    for line in &found.warnings {
        writeln!(out, "warning: {}", one_line(line))?;
    }
    out.flush()?;
    match found.problems.len() {
        0 => Ok(()),
        1 => Err(Refusal(anyhow::anyhow!("1 problem")).into()),
        count => Err(Refusal(anyhow::anyhow!("{count} problems")).into()),
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

fn data_dir(config: &Config, found: &mut Findings) {
    let path = config.data_dir.display();
    let made = match make(&config.data_dir) {
        Ok(made) => made,
        Err(error) => {
            let allowed = "allowed is a directory that can be made";
            return found.problem(format!("data_dir: {path} can't be made: {error}; {allowed}"));
        }
    };
    contents(config, found);
    let is_full = room(config, found);
    if let Err(error) = probe(&config.data_dir)
        && !(is_full && error.kind() == io::ErrorKind::StorageFull)
    {
        let allowed = "allowed is a directory that this user can write and sync, on a disk with room";
        found.problem(format!("data_dir: {path} can't be written: {error}; {allowed}"));
    }
    // From the deepest up; what somebody put there meanwhile stays.
    for made in made.iter().rev() {
        if fs::remove_dir(made).is_err() {
            break;
        }
    }
}

/// Makes a directory with its parents; names those that were not there, the uppermost first.
fn make(path: &Path) -> io::Result<Vec<PathBuf>> {
    let missing: Vec<PathBuf> = path
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .map(Path::to_path_buf)
        .collect();
    fs::create_dir_all(path)?;
    Ok(missing.into_iter().rev().collect())
}

/// Whose directory it is, and whether this program can read what is in it.
fn contents(config: &Config, found: &mut Findings) {
    match node::holder(&config.data_dir) {
        Ok(Some(holder)) => {
            let _ = writeln!(io::stderr(), "pixelgate: {} is in use by {holder}", config.data_dir.display());
        }
        Ok(None) => {}
        Err(error) => found.problem(error.to_string()),
    }
    match (node::stored_name(&config.data_dir), &config.node_id) {
        (Ok(Some(stored)), Some(configured)) if stored != *configured => {
            let (path, configured) = (config.data_dir.clone(), configured.clone());
            found.problem(ClaimError::OtherNode { path, configured, stored }.to_string());
        }
        (Ok(_), _) => {}
        (Err(error), _) => found.problem(error.to_string()),
    }
    match Log::open(&config.data_dir) {
        Ok(_) | Err(OpenError::Missing { .. }) => {}
        Err(error) => found.problem(format!("data_dir: {error}; allowed is a journal that this version can read")),
    }
    match tokens::list(&config.data_dir) {
        Ok(_) => {}
        Err(registry::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => found.problem(format!("data_dir: {error}; allowed is a registry that this version can read")),
    }
}

/// Writes, syncs and removes a file.
fn probe(data_dir: &Path) -> io::Result<()> {
    let path = data_dir.join(format!("check-{}.tmp", std::process::id()));
    let written = OpenOptions::new().write(true).create_new(true).open(&path).and_then(|mut file| {
        file.write_all(&PROBE)?;
        file.sync_data()
    });
    let removed = fs::remove_file(&path);
    written.and(removed)?;
    File::open(data_dir)?.sync_all()
}

/// Bytes for people, rounded down.
fn about(bytes: u64) -> String {
    match bytes {
        0..0x100000 => format!("{}KiB", bytes >> 10),
        0x100000..0x40000000 => format!("{}MiB", bytes >> 20),
        _ => format!("{}GiB", bytes >> 30),
    }
}

/// Whether a segment fits, and whether all of `journal.max_bytes` would. `true` on a full disk.
fn room(config: &Config, found: &mut Findings) -> bool {
    let (path, journal) = (config.data_dir.display(), &config.journal);
    let free = match RealDisk.free_bytes(&config.data_dir) {
        Ok(free) => free,
        Err(error) => {
            found.warning(format!("data_dir: {path}: its free room can't be asked: {error}"));
            return false;
        }
    };
    let held: u64 =
        RealDisk.list(&config.data_dir.join("journal")).map_or(0, |files| files.iter().map(|(_, bytes)| *bytes).sum());
    match enough(free, held, journal) {
        Some(Finding::Problem(text)) => {
            found.problem(format!("data_dir: {path}: {text}"));
            return true;
        }
        Some(Finding::Warning(text)) => found.warning(format!("data_dir: {path}: {text}")),
        None => {}
    }
    false
}

/// Judges free bytes and those that the journal holds already: full of its own segments it has what it needs.
fn enough(free: u64, held: u64, journal: &journal::Options) -> Option<Finding> {
    let segment = journal.segment_bytes.min(journal.max_bytes / 4);
    let room = free.saturating_add(held);
    if free < segment && held < 2 * segment {
        let (free, segment) = (about(free), about(segment));
        let allowed = format!("allowed is room for at least one segment, {segment}");
        return Some(Finding::Problem(format!("the disk is full, {free} are free; {allowed}")));
    }
    let (has, max) = (about(room), about(journal.max_bytes));
    (room < journal.max_bytes)
        .then(|| Finding::Warning(format!("the disk has {has} for journal.max_bytes = {max}; it will be full first")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_full_disk_is_a_problem_and_a_small_one_a_warning() {
        const GIB: u64 = 1 << 30;
        let options = journal::Options {
            data_dir: PathBuf::new(),
            acknowledge: journal::Acknowledge::Synced,
            max_bytes: 10 * GIB,
            segment_bytes: 64 << 20,
            retention: Duration::ZERO,
            on_damage: journal::OnDamage::Skip,
            publishes: true,
        };
        for (free, held) in [(0, 0), (63 << 20, 0), (0, 64 << 20)] {
            assert!(matches!(enough(free, held, &options), Some(Finding::Problem(_))), "{free} {held}");
        }
        for (free, held) in [(64 << 20, 0), (0, 5 * GIB), (9 * GIB, GIB - 1)] {
            assert!(matches!(enough(free, held, &options), Some(Finding::Warning(_))), "{free} {held}");
        }
        for (free, held) in [(10 * GIB, 0), (0, 10 * GIB), (u64::MAX, u64::MAX)] {
            assert_eq!(enough(free, held, &options), None, "{free} {held}");
        }
    }

    #[test]
    fn a_finding_is_one_line() {
        assert_eq!(one_line("a\nb\u{1b}[31m"), "a b [31m");
    }
}
