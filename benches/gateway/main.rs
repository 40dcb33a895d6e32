//! What the whole gateway costs, beside servers that do less, in one run.
//!
//! `cargo bench --bench gateway [-- WORD…]`. Without a word: the pixel over 256 connections, and the start; with `all`
//! everything, which takes half an hour. Words: `get` (64, 512 and 4096 connections), `fresh` (a connection per
//! request), `beacon`, `json`, `form`, `mix` (a tenth rejected), `workers` (two), `parameters`, `pixels` (10 to
//! 1,000,000 known ones), `kafka` (a real broker; needs Java and Maven), `tls`, `latency` (open loop at half load),
//! `large` (the longest events, Kafka away), `behind` (Kafka away, behind 2 GB), `backlog` (2 GB leave for Kafka),
//! `start`.
//!
//! All threads of a server share CPU 0; load, and the broker, have CPU 1. Rounds are interleaved and medians reported,
//! so that what else the machine does hits all alike. Baselines send the gateway's own reply headers and body bytes.
//! Settings: `PIXELGATE_BENCH_ROUNDS` (5), `_SECONDS` (3, per round and server), `_CONNECTIONS` (256); `_RUN`, a word
//! for the kind of machine, has the tables written to `benches/runs/` as well.
#![expect(clippy::print_stdout, reason = "the tables are the result")]
#![expect(clippy::unwrap_used, reason = "a bench that can't run should say where it stopped")]

mod backlog;
mod baseline;
#[path = "../../tests/it/broker.rs"]
#[expect(dead_code, reason = "the tests do more with it")]
mod broker;
mod known;
mod load;
#[path = "../../tests/it/maven.rs"]
mod maven;
mod place;
mod report;
mod requests;
mod rounds;
mod secured;
mod servers;
mod usage;

use std::time::Duration;

use report::Report;
use requests::Kind;
use rounds::{Case, median};
use secured::Security;
use servers::{Server, Wish};

/// Where the broker's module looks for it.
mod gateway {
    pub(crate) use crate::servers::free_address;
}

/// Nobody listens there: Kafka is away.
const NOWHERE: &str = "127.0.0.1:9";

/// A number among the settings.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    let given = std::env::var(format!("PIXELGATE_BENCH_{name}")).ok();
    given.map_or(default, |text| text.parse().expect("settings of the bench are numbers"))
}

/// What is known beside a gateway's answer mode.
fn wish(acknowledge: &'static str) -> Wish {
    Wish { acknowledge, workers: 1, kafka: None, security: Security::Plain }
}

/// The baselines, and the gateway in both modes.
fn field(workers: usize) -> Vec<Server> {
    let mut servers = vec![Server::constant(workers)];
    servers.extend(Server::nginx(workers, Security::Plain));
    for acknowledge in ["written", "synced"] {
        servers.push(Server::gateway(&Wish { workers, ..wish(acknowledge) }));
    }
    servers
}

fn main() {
    if baseline::is_wanted() {
        return baseline::run();
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let all = words.iter().any(|word| word == "all");
    let asked = |word: &str| all || words.iter().any(|asked| asked == word);
    servers::pin(1);
    let mut report = Report::begin(&words);
    let connections = setting("CONNECTIONS", 256) as usize;
    let of = |title: &str, kind, connections| Case { title: title.into(), kind, connections, is_fresh: false };
    if words.is_empty() || all {
        the_pixel(&mut report, &[connections]);
    }
    if asked("get") {
        the_pixel(&mut report, &[64, 512, 4096]);
    }
    if asked("fresh") {
        let case = Case { is_fresh: true, ..of("A connection per request", Kind::Get, 64) };
        rounds::run(&mut report, &case, &field(1));
    }
    for (word, title, kind) in [
        ("beacon", "sendBeacon of a string", Kind::Beacon),
        ("json", "JSON", Kind::Json),
        ("form", "A form", Kind::Form),
        ("mix", "The pixel, a tenth rejected", Kind::Mix),
    ] {
        if asked(word) {
            rounds::run(&mut report, &of(title, kind, connections), &field(1));
        }
    }
    if asked("workers") {
        rounds::run(&mut report, &of("Two workers on the one core", Kind::Get, connections), &field(2));
    }
    if asked("parameters") {
        let field = [Server::constant(1), Server::gateway(&wish("synced"))];
        for count in [0, 8, 32] {
            let case = of(&format!("{count} parameters more"), Kind::Parameters(count), connections);
            rounds::run(&mut report, &case, &field);
        }
    }
    if asked("pixels") {
        known::run(&mut report, connections);
    }
    if asked("kafka") {
        with_kafka(&mut report, &of("The pixel, published", Kind::Get, connections));
    }
    if asked("tls") {
        tls(&mut report, connections);
    }
    if asked("latency") {
        rounds::latency(&mut report, connections, &field(1));
    }
    if asked("large") {
        let field = [Server::gateway(&wish("synced")), backlog::without_kafka()];
        rounds::run(&mut report, &of("The longest events; the second with Kafka away", Kind::Large, 64), &field);
    }
    if asked("behind") {
        backlog::wait_behind(&mut report, connections);
    }
    if asked("backlog") {
        backlog::run(&mut report);
    }
    if words.is_empty() || asked("start") {
        start(&mut report);
    }
    report.end();
}

/// The plain pixel over so many connections, one server each for all of it.
fn the_pixel(report: &mut Report, connections: &[usize]) {
    let field = field(1);
    for count in connections {
        let case = Case { title: "The pixel".into(), kind: Kind::Get, connections: *count, is_fresh: false };
        rounds::run(report, &case, &field);
    }
}

/// From nothing to the first answer.
fn start(report: &mut Report) {
    let times = (0..11).map(|_| Server::time_to_first_event().as_secs_f64() * 1e3).collect();
    report.say(&format!(
        "\nStart in an empty directory to the first accepted request: {:.1} ms, median of 11. The binary: {:.1} MiB.",
        median(times),
        std::fs::metadata(env!("CARGO_BIN_EXE_pixelgate")).unwrap().len() as f64 / 1048576.0
    ));
}

/// What TLS costs: over connections that are kept, and with a handshake for each request.
fn tls(report: &mut Report, connections: usize) {
    let mut field: Vec<Server> = Server::nginx(1, Security::Tls).into_iter().collect();
    for security in [Security::Plain, Security::Tls] {
        field.push(Server::gateway(&Wish { security, ..wish("synced") }));
    }
    let case = Case { title: "The pixel, TLS".into(), kind: Kind::Get, connections, is_fresh: false };
    rounds::run(report, &case, &field);
    let case = Case { title: "A handshake per request".into(), connections: 64, is_fresh: true, ..case };
    rounds::run(report, &case, &field);
}

/// CPU time until everything has left for Kafka; the naive handler is the measure there.
fn with_kafka(report: &mut Report, case: &Case) {
    let broker = broker::Broker::start("");
    let kafka = Some((broker.address(), "exactly_once"));
    let mut field = vec![Server::naive(1, &broker.address()), Server::constant(1)];
    field.extend(["written", "synced"].map(|mode| Server::gateway(&Wish { kafka: kafka.clone(), ..wish(mode) })));
    // A cold broker is slow.
    for server in &field {
        let _ = rounds::round(server, case, Duration::from_secs(2));
    }
    rounds::run(report, case, &field);
}
