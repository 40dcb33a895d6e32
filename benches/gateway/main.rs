//! CPU time and throughput of the whole gateway beside an actix-web server that answers a constant GIF, in one run.
//!
//! `cargo bench --bench gateway`, which also times the start. All threads of a server share CPU 0, the load comes from
//! CPU 1. Rounds are interleaved and medians reported, so that what else the machine does hits all alike. The baseline
//! sends the gateway's own reply headers and body bytes. Settings: `PIXELGATE_BENCH_ROUNDS` (5), `_SECONDS` (3, per
//! round and server), `_CONNECTIONS` (256).
#![expect(clippy::print_stdout, reason = "the table is the result")]
#![expect(clippy::unwrap_used, reason = "a bench that can't run should say where it stopped")]

mod load;
mod servers;
mod usage;

use std::time::Duration;

use load::Workload;
use servers::Server;

/// One server's figures of one round.
struct Round {
    cpu_us: f64,
    user_us: f64,
    per_second: f64,
    p99_us: f64,
    switches: f64,
}

fn setting(name: &str, default: u64) -> u64 {
    let given = std::env::var(format!("PIXELGATE_BENCH_{name}")).ok();
    given.map_or(default, |text| text.parse().expect("settings of the bench are numbers"))
}

fn main() {
    if servers::is_baseline() {
        return servers::run_baseline();
    }
    let (rounds, seconds) = (setting("ROUNDS", 5), setting("SECONDS", 3));
    let connections = setting("CONNECTIONS", 256) as usize;
    servers::pin(1);
    let servers = [Server::baseline(), Server::gateway("written"), Server::gateway("synced")];
    println!(
        "{rounds} rounds of {seconds} s, {connections} keep-alive connections; servers on CPU 0, load on CPU 1; \
         journal under {}",
        servers::directory().display()
    );
    let mut results: Vec<Vec<Round>> = servers.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (server, results) in servers.iter().zip(&mut results) {
            results.push(round(server, connections, Duration::from_secs(seconds)));
        }
    }
    println!(
        "| server | CPU µs/req | of it user | ratio of CPU (per round) | req/s | p99 µs | switches/req | RSS MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (index, server) in servers.iter().enumerate() {
        let median_of = |figure: fn(&Round) -> f64| median(results[index].iter().map(figure).collect());
        // Each round against the baseline's of the same round: what drifts between rounds cancels out.
        let ratios = results[index].iter().zip(&results[0]).map(|(own, base)| own.cpu_us / base.cpu_us).collect();
        println!(
            "| {} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} | {:.3} | {:.0} |",
            server.name,
            median_of(|round| round.cpu_us),
            median_of(|round| round.user_us),
            median(ratios),
            median_of(|round| round.per_second),
            median_of(|round| round.p99_us),
            median_of(|round| round.switches),
            usage::peak_rss_mib(server.id()),
        );
    }
    drop(servers);
    print_start();
}

fn print_start() {
    let times = (0..11).map(|_| Server::time_to_first_event().as_secs_f64() * 1e3).collect();
    println!("start in an empty directory to the first accepted request: {:.1} ms (median of 11)", median(times));
}

fn round(server: &Server, connections: usize, time: Duration) -> Round {
    let workload = Workload { address: server.address, request: server.request(), connections };
    // Warm: connections, caches, the branch predictor and the journal's segment.
    load::run(&workload, time / 6);
    let before = usage::of(server.id());
    let done = load::run(&workload, time);
    let used = usage::of(server.id()) - before;
    assert_eq!(done.failed, 0, "{}: some requests were not answered with 200", server.name);
    let count = done.answered as f64;
    Round {
        cpu_us: used.cpu_ns as f64 / 1000.0 / count,
        user_us: used.user_us() / count,
        per_second: count / time.as_secs_f64(),
        p99_us: done.p99.as_secs_f64() * 1e6,
        switches: used.switches as f64 / count,
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
