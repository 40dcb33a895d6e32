//! The fault run: every fault alone, then in random combination, and a table of verdicts. README says how to run it for
//! longer; then the table is written to `benches/runs/`.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;
use std::{env, fs, thread};

use super::broker::Broker;
use super::combination;
use super::faults;
use super::proxy::Proxy;
use super::random::Random;
use super::stage::{HEAD, Row};
use super::trio;

/// How long faults are combined, in a run that nobody asked to be longer.
const SECONDS: u64 = 50;

/// Part of the names of the only scenarios to play, for who looks into one: `PIXELGATE_E2E_FAULT`.
pub fn is_wanted(name: &str) -> bool {
    env::var("PIXELGATE_E2E_FAULT").map_or(true, |part| name.contains(&part))
}

fn seconds() -> Option<u64> {
    env::var("PIXELGATE_E2E_SECONDS").ok().map(|text| text.parse().expect("PIXELGATE_E2E_SECONDS is a number"))
}

/// A broker with a proxy before it, and what is played there.
fn lane(seed: u64, play: impl FnOnce((&Broker, &Proxy), &mut dyn FnMut() -> Random) -> Vec<Row>) -> Vec<Row> {
    let broker = Broker::start("");
    let proxy = Proxy::start(broker.detour());
    let mut seeds = Random::new(seed);
    play((&broker, &proxy), &mut || Random::new(seeds.next()))
}

#[test]
fn nothing_is_lost_doubled_or_altered_by_any_fault_alone_or_combined() {
    let mut random = Random::from_environment();
    let seed = random.seed();
    let combine = Duration::from_secs(seconds().unwrap_or(SECONDS));
    let [first, second, third] = [random.next(), random.next(), random.next()];
    let rows = thread::scope(|scope| {
        let gateway = scope.spawn(move || lane(first, |place, random| faults::of_the_gateway(place, random)));
        let kafka = scope.spawn(move || lane(second, |place, random| faults::of_kafka(place, random)));
        let combined = scope.spawn(move || {
            let mut rows = lane(third, |place, random| combination::run(place, random(), combine));
            rows.extend(is_wanted("three brokers").then(trio::row));
            rows
        });
        let lanes = [gateway, kafka, combined].map(|lane| lane.join().expect("a scenario's panic is in its row"));
        lanes.into_iter().flatten().collect::<Vec<Row>>()
    });
    let mut table = format!("{HEAD}\n");
    rows.iter().for_each(|row| writeln!(table, "{row}").unwrap());
    eprintln!("{table}");
    if let Some(seconds) = seconds() {
        write(seed, seconds, &table);
    }
    assert!(rows.iter().all(Row::is_good), "see the table");
}

/// `benches/runs/<date>-faults.md`.
fn write(seed: u64, seconds: u64, table: &str) {
    let now = pixelgate::time::Clock::now(&pixelgate::time::SystemClock).to_rfc3339();
    let runs = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/runs");
    fs::create_dir_all(&runs).unwrap();
    let commit = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit =
        commit.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = format!(
        "# Faults, {}\n\nCommit {}, by\n\n```sh\nPIXELGATE_TEST_SEED={seed} PIXELGATE_E2E_SECONDS={seconds} \
         cargo test --features e2e --test it \
         fault_run -- --nocapture\n```\n\nEach row is a gateway of its own under load of numbered events: its faults, \
         what was answered, and what a `read_committed` consumer got at the end. `open` are requests without an \
         answer, or with `journal_unavailable`: they may have become a record, once. Each row also holds that the \
         metrics add up at the end (accepted = published + pending + parked + expired + damaged). What each fault is: \
         `tests/it/faults.rs` and `tests/it/combination.rs`.\n\n{table}",
        &now[..10],
        commit.trim()
    );
    fs::write(runs.join(format!("{}-faults.md", &now[..10])), text).unwrap();
}
