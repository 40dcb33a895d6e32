//! Rounds over several servers, and their medians.

use std::time::{Duration, Instant};

use crate::load::{self, Done, Workload};
use crate::place::{self, Syncs};
use crate::report::Report;
use crate::requests::Kind;
use crate::servers::Server;
use crate::{secured, setting, usage};

/// How long publishing may take to catch up after a round.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is asked of each server.
pub(crate) struct Case {
    pub(crate) title: String,
    pub(crate) kind: Kind,
    pub(crate) connections: usize,
    pub(crate) is_fresh: bool,
}

/// One server's figures of one round.
pub(crate) struct Round {
    cpu_us: f64,
    user_us: f64,
    per_second: f64,
    p99_us: f64,
    switches: f64,
    per_commit: Option<f64>,
    refused: f64,
}

/// Interleaved rounds over the servers that take it; the first is the measure.
pub(crate) fn run(report: &mut Report, case: &Case, servers: &[Server]) {
    let servers: Vec<&Server> = servers.iter().filter(|server| server.takes_posts || case.kind.is_get()).collect();
    let time = Duration::from_secs(setting("SECONDS", 3));
    let mut results: Vec<Vec<Round>> = servers.iter().map(|_| Vec::new()).collect();
    for _ in 0..setting("ROUNDS", 5) {
        for (server, results) in servers.iter().zip(&mut results) {
            results.push(round(server, case, time));
        }
    }
    let kept = if case.is_fresh { "new" } else { "keep-alive" };
    report.say(&format!(
        "\n{}, {} {kept} connections:\n\n\
         | server | CPU µs/req | of it user | CPU ratio, per round | req/s | p99 µs | switches/req | records/commit | \
         not 2xx | peak RSS MiB |\n|---|---|---|---|---|---|---|---|---|---|",
        case.title, case.connections
    ));
    for (index, server) in servers.iter().enumerate() {
        let of = |figure: fn(&Round) -> f64| median(results[index].iter().map(figure).collect());
        // Each round against the measure's of the same round: what drifts between rounds cancels out.
        let ratios = results[index].iter().zip(&results[0]).map(|(own, base)| own.cpu_us / base.cpu_us).collect();
        let per_commit = match results[index][0].per_commit {
            Some(_) => format!("{:.0}", of(|round| round.per_commit.unwrap_or_default())),
            None => "".into(),
        };
        report.say(&format!(
            "| {} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} | {:.3} | {per_commit} | {:.1} % | {:.0} |",
            server.name,
            of(|round| round.cpu_us),
            of(|round| round.user_us),
            median(ratios),
            of(|round| round.per_second),
            of(|round| round.p99_us),
            of(|round| round.switches),
            100.0 * of(|round| round.refused),
            usage::peak_rss_mib(server.id()),
        ));
    }
}

fn workload(server: &Server, case: &Case) -> Workload {
    let Case { kind, connections, is_fresh, .. } = *case;
    let wrap = secured::wrap(server.security);
    Workload { address: server.address, requests: kind.requests(), connections, is_fresh, wrap }
}

/// One round of one server: warm, load, and what it still has to do because of it.
pub(crate) fn round(server: &Server, case: &Case, time: Duration) -> Round {
    let workload = workload(server, case);
    // Connections, caches, the branch predictor and the journal's segment.
    load::run(&workload, time / 6);
    settle(server);
    let (before, commits) = (usage::of(server.id()), commits(server));
    let done = load::run(&workload, time);
    settle(server);
    let used = usage::of(server.id()) - before;
    let count = done.answered as f64;
    let per_commit = commits.zip(self::commits(server)).map(|(before, now)| (now.1 - before.1) / (now.0 - before.0));
    Round {
        cpu_us: used.cpu_ns as f64 / 1000.0 / count,
        user_us: used.user_us() / count,
        per_second: count / time.as_secs_f64(),
        p99_us: done.quantile(0.99),
        switches: used.switches as f64 / count,
        per_commit,
        refused: done.refused as f64 / count,
    }
}

/// Commits and their records so far.
fn commits(server: &Server) -> Option<(f64, f64)> {
    let name = "pixelgate_journal_commit_records";
    server.metric(&format!("{name}_count")).zip(server.metric(&format!("{name}_sum")))
}

/// Waits until everything is published that is to be.
fn settle(server: &Server) {
    if !server.publishes {
        return;
    }
    let begun = Instant::now();
    // The figure of a process that publishes from its own memory can't be asked for.
    while server.ops.is_none() && begun.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(50));
    }
    while server.metric("pixelgate_journal_pending_events").is_some_and(|pending| pending > 0.0) {
        assert!(begun.elapsed() < PATIENCE, "{} doesn't catch up", server.name);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Open loop at half of what each server does in a closed one.
pub(crate) fn latency(report: &mut Report, connections: usize, servers: &[Server]) {
    let time = Duration::from_secs(setting("SECONDS", 3));
    let case = Case { title: String::new(), kind: Kind::Get, connections, is_fresh: false };
    let mut results: Vec<Vec<Done>> = servers.iter().map(|_| Vec::new()).collect();
    let mut stolen: Vec<Vec<f64>> = servers.iter().map(|_| Vec::new()).collect();
    let mut rates: Vec<f64> = Vec::new();
    for server in servers {
        let done = load::run(&workload(server, &case), time);
        rates.push(done.answered as f64 / time.as_secs_f64() / 2.0);
    }
    // A sync takes what it takes on a machine that does the same: meanwhile the first server is under the last one's
    // load.
    let rate = rates.last().copied().unwrap_or_default();
    let mut syncs: Vec<Syncs> = Vec::new();
    for _ in 0..setting("ROUNDS", 5) {
        for (index, server) in servers.iter().enumerate() {
            let before = place::stolen();
            results[index].push(load::pace(&workload(server, &case), rates[index], time));
            stolen[index].push(place::stolen().saturating_sub(before).as_secs_f64());
        }
        syncs.push(place::beside(rate, || load::pace(&workload(&servers[0], &case), rate, time)).1);
    }
    report.say(&format!(
        "\nLatency at half load, open loop, from the moment a request is due; {connections} connections. The last \
         columns: p99 above nginx's in the same round; p99 without requests that waited while the load, on the other \
         CPU, was held up for more than a millisecond, as hosts do to virtual machines; the share of time in which it \
         was; and the share of the servers' CPU that the host took. The last lines: a loop that does nothing but \
         write records and sync, on the servers' CPU, while the first server is under the last one's load; \
         from the moment a record is due until it is durable, and each sync by itself:\n\n\
         | server | requests/s | p50 µs | p99 µs | p99.9 µs | above nginx | p99 µs, not held up | held up | stolen |\n\
         |---|---|---|---|---|---|---|---|---|"
    ));
    let without_a_disk = servers.iter().position(|server| server.name.starts_with("nginx"));
    for (index, server) in servers.iter().enumerate() {
        let of = |share| median(results[index].iter().map(|done| done.quantile(share)).collect());
        let (p50, p99, p999) = (of(0.5), of(0.99), of(0.999));
        let steady = median(results[index].iter().map(|done| done.steady_quantile(0.99)).collect());
        let held_up = median(results[index].iter().map(|done| done.held_up.as_secs_f64()).collect());
        let above = without_a_disk.map_or_else(String::new, |nginx| {
            let rounds = results[index].iter().zip(&results[nginx]);
            let more = rounds.map(|(done, other)| done.quantile(0.99) - other.quantile(0.99));
            format!("{:.0}", median(more.collect()))
        });
        report.say(&format!(
            "| {} | {:.0} | {p50:.0} | {p99:.0} | {p999:.0} | {above} | {steady:.0} | {:.1} % | {:.1} % |",
            server.name,
            rates[index],
            100.0 * held_up / time.as_secs_f64(),
            100.0 * median(stolen[index].clone()) / time.as_secs_f64()
        ));
    }
    for (name, times) in [
        ("nothing but records and syncs", (|syncs| &syncs.durable) as fn(&Syncs) -> &Vec<u32>),
        ("one write and fdatasync", |syncs| &syncs.each),
    ] {
        let of = |share| median(syncs.iter().map(|syncs| load::quantile(times(syncs), share)).collect());
        report.say(&format!("| {name} | | {:.0} | {:.0} | {:.0} | | | | |", of(0.5), of(0.99), of(0.999)));
    }
}

/// The middle one.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
