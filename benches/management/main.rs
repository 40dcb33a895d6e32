//! What the management side costs, and what of it events notice: each figure beside its own baseline, in one run.
//!
//! `cargo bench --bench management`. The gateway's threads share CPU 0; load and upstream share CPU 1. Rounds are
//! interleaved and medians reported, so that what else the machine does hits both alike. Settings:
//! `PIXELGATE_BENCH_ROUNDS` (7), `_MILLIS` (1500, per round and side), `_ACCOUNTS` (1000, of 100 pixels each).
#![expect(clippy::print_stdout, reason = "the table is the result")]
#![expect(clippy::unwrap_used, reason = "a bench that can't run should say where it stopped")]

#[expect(dead_code, reason = "the bench of the gateway also has an open loop")]
#[path = "../gateway/load.rs"]
mod load;
mod site;
mod upstream;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use load::{Done, Workload};
use site::{Site, until};
use upstream::{PER_ACCOUNT, Upstream};

/// Calls that hang at once.
const HANGING: usize = 200;
/// Connections that send events.
const EVENTS: usize = 8;

fn setting(name: &str, default: u64) -> u64 {
    let given = std::env::var(format!("PIXELGATE_BENCH_{name}")).ok();
    given.map_or(default, |text| text.parse().expect("settings of the bench are numbers"))
}

/// How long each side of a round is.
fn time() -> Duration {
    Duration::from_millis(setting("MILLIS", 1500))
}

fn main() {
    site::pin(1);
    let rounds = setting("ROUNDS", 7) as usize;
    println!("{rounds} rounds of {:?} a side; gateway on CPU 0, load and upstream on CPU 1", time());
    proxied_call(rounds);
    hanging_upstream(rounds);
    many_pixels(rounds, setting("ACCOUNTS", 1000) as usize);
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn p99_ms(done: &Done) -> f64 {
    assert_eq!(done.refused, 0, "of {} requests some were not answered with 2xx", done.answered);
    done.quantile(0.99) / 1e3
}

/// Runs two sides by turns; prints both medians, and of each round's pair the difference and the ratio.
fn compare(what: &str, rounds: usize, mut base: impl FnMut() -> f64, mut other: impl FnMut() -> f64) {
    let pairs: Vec<(f64, f64)> = (0..rounds).map(|_| (base(), other())).collect();
    let median_of = |figure: fn(&(f64, f64)) -> f64| median(pairs.iter().map(figure).collect());
    println!(
        "{what}: p99 {:.3} ms and {:.3} ms; difference {:.3} ms, ratio {:.2} (medians of rounds)",
        median_of(|pair| pair.0),
        median_of(|pair| pair.1),
        median_of(|pair| pair.1 - pair.0),
        median_of(|pair| pair.1 / pair.0),
    );
}

fn proxied_call(rounds: usize) {
    let upstream = Upstream::prompt();
    let site = Site::new(upstream.address, "");
    let _gateway = site.start_and_wait();
    let target = "/offsitepixels/6000000000100";
    for connections in [1, 8] {
        let direct = |address: SocketAddr| {
            let (requests, wrap) = (vec![site::request(target)], load::plain as load::Wrap);
            let workload = Workload { address, requests, connections, is_fresh: false, wrap };
            p99_ms(&load::run(&workload, time()))
        };
        let what = format!("one pixel, {connections} connections, direct and through the gateway");
        compare(&what, rounds, || direct(upstream.address), || direct(site.address));
    }
}

fn hanging_upstream(rounds: usize) {
    let upstream = Upstream::hanging();
    let pixel = "pixels = [{ id = \"6010000000001\", name = \"Checkout\", tag = \"checkout\" }]";
    let site = Site::new(upstream.address, &format!("upstream_timeout = \"10m\"\n{pixel}"));
    let event = "/offsite_event.php?id=6010000000001&value=24.99&currency=EUR";
    // A gateway for each side: a call whose client has left still hangs.
    let events = |calls: usize| {
        let before = upstream.open();
        let _gateway = site.start_and_wait();
        let call = |_| {
            let mut stream = TcpStream::connect(site.address).unwrap();
            stream.write_all(&site::request("/offsitepixels")).unwrap();
            stream
        };
        let _calls: Vec<TcpStream> = (0..calls).map(call).collect();
        until("all calls hang", || upstream.open() == before + calls);
        site.load(event, EVENTS, time() / 5);
        let p99 = p99_ms(&site.load(event, EVENTS, time()));
        assert_eq!(upstream.open(), before + calls, "some calls were given up");
        p99
    };
    let quiet = || {
        until("no call is left", || upstream.open() == 0);
        events(0)
    };
    let what = format!("events, none and {HANGING} calls open at a hanging upstream");
    compare(&what, rounds, quiet, || events(HANGING));
}

fn many_pixels(rounds: usize, accounts: usize) {
    let upstream = Upstream::prompt();
    let names: Vec<String> = (1..=accounts).map(|account| format!("\"{account}\"")).collect();
    let lines = |interval: &str| {
        format!("upstream_token = \"t\"\nsync_interval = \"{interval}\"\nad_accounts = [{}]", names.join(","))
    };
    let site = Site::new(upstream.address, &lines("1h"));
    let all = (accounts * PER_ACCOUNT) as f64;
    let begun = Instant::now();
    let gateway = site.start_and_wait();
    until("all pixels are known", || site.metric("pixelgate_registry_pixels ") == Some(all));
    println!("{all} pixels of {accounts} ad accounts: first sync in {:.1} s", begun.elapsed().as_secs_f64());
    drop(gateway);
    let last = upstream::id(accounts, PER_ACCOUNT - 1);
    let start = |_| {
        let begun = Instant::now();
        let _gateway = site.start();
        until("an event is accepted", || site.accepts(&last));
        begun.elapsed().as_secs_f64() * 1e3
    };
    println!("their start, to an accepted event: {:.0} ms (median of 7)", median((0..7).map(start).collect()));
    let event = format!("/offsite_event.php?id={last}&value=24.99&currency=EUR");
    // One gateway at a time: two would share the CPU.
    let events = |upstream: &Upstream, interval: &str| {
        site.configure(upstream.address, &lines(interval));
        let _gateway = site.start_and_wait();
        let synced = || site.metric("pixelgate_registry_last_sync_timestamp_seconds ").is_some_and(|time| time > 0.0);
        until("all lists are synced", synced);
        site.load(&event, EVENTS, time() / 5);
        p99_ms(&site.load(&event, EVENTS, time()))
    };
    let what = format!("events, without and with {accounts} lists synced each second");
    compare(&what, rounds, || events(&upstream, "1h"), || events(&upstream, "1s"));
    let changing = Upstream::changing();
    let what = format!("events, without and with {accounts} lists synced each second, each with a pixel renamed");
    compare(&what, rounds, || events(&upstream, "1h"), || events(&changing, "1s"));
}
