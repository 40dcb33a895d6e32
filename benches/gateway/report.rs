//! What is printed, and kept in `benches/runs/` if a word for the machine is given.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pixelgate::time::{Clock, SystemClock};

use crate::{place, setting};

/// The lines so far.
pub(crate) struct Report(String);

impl Report {
    pub(crate) fn begin(words: &[String]) -> Report {
        let mut report = Report(String::new());
        let settings: String = std::env::vars()
            .filter(|(name, _)| name.starts_with("PIXELGATE_BENCH_"))
            .map(|(name, value)| format!("{name}={value} "))
            .collect();
        let words: String = words.iter().map(|word| format!(" {word}")).collect();
        let words = if words.is_empty() { words } else { format!(" --{words}") };
        report.say(&format!(
            "`{settings}cargo bench --bench gateway{words}` at commit {}, {}.\n\n{}. {} rounds of {} s, interleaved; \
             medians. Servers on CPU 0, load on CPU 1; limits observed.",
            commit(),
            SystemClock.now().to_rfc3339(),
            place::describe(),
            setting("ROUNDS", 5),
            Duration::from_secs(setting("SECONDS", 3)).as_secs(),
        ));
        report
    }

    pub(crate) fn say(&mut self, text: &str) {
        println!("{text}");
        self.0.push_str(text);
        self.0.push('\n');
    }

    /// Keeps it, if that was asked for.
    pub(crate) fn end(self) {
        let Ok(machine) = std::env::var("PIXELGATE_BENCH_RUN") else { return };
        let runs = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/runs");
        std::fs::create_dir_all(&runs).unwrap();
        let day = SystemClock.now().to_rfc3339()[..10].to_owned();
        let name = (0..).map(|more| match more {
            0 => format!("{day}-{machine}.md"),
            more => format!("{day}-{machine}-{}.md", more + 1),
        });
        let file = name.map(|name| runs.join(name)).find(|file| !file.exists()).unwrap();
        std::fs::write(file, self.0).unwrap();
    }
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".into());
    let is_clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| changes.is_empty());
    if is_clean { commit } else { format!("{commit} with changes") }
}
