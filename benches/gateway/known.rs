//! Known pixels, in the gateway's own registry as if they had been created there: what it costs to know so many.

use std::time::{Duration, Instant};

use crate::report::Report;
use crate::requests::{Kind, PIXEL};
use crate::rounds::{self, Case};
use crate::servers::Server;
use crate::wish;

const COUNTS: [u64; 4] = [10, 1_000, 100_000, 1_000_000];
/// Different pixels asked for, in turn: more than a processor's small caches hold of a large table.
const ASKED: u64 = 997;

/// The id of one of them.
fn id(index: u64) -> u64 {
    PIXEL.parse::<u64>().unwrap() + 1000 + index
}

/// Pixels that are asked for when there are `count`, spread over all of them.
pub(crate) fn ids(count: u64) -> impl Iterator<Item = String> {
    let (asked, created) = (ASKED.min(count - 1), count - 1);
    (0..asked).map(move |index| id(index * created / asked).to_string())
}

/// A gateway that knows so many, started on them; how long it took to answer.
fn gateway(count: u64) -> (Server, Duration) {
    let mut server = Server::gateway(&wish("synced"));
    server.stop();
    // Its tables are there since the first start.
    let registry = rusqlite::Connection::open(server.data().join(pixelgate::registry::FILE)).unwrap();
    let sql = "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1)
               INSERT INTO pixels (id, ad_account_id, name, tag, creator, archived, origin, created_ms)
               SELECT CAST(?2 + i AS TEXT), '8', 'Checkout ' || i, 'checkout', '8', 0, 'local', 1700000000000 FROM n";
    // One more is in the config file.
    registry.execute(sql, (count as i64 - 1, id(0) as i64)).unwrap();
    drop(registry);
    let begun = Instant::now();
    let mut server = server.again();
    let took = begun.elapsed();
    server.name = format!("pixelgate, {count} pixels");
    (server, took)
}

/// Rounds over gateways that know more and more.
pub(crate) fn run(report: &mut Report, connections: usize) {
    let mut starts = Vec::new();
    for count in COUNTS {
        // Each beside its own measure: the same requests.
        let (server, took) = gateway(count);
        starts.push(format!("{count} pixels {:.0} ms", took.as_secs_f64() * 1e3));
        let title = format!("{count} known pixels, {} of them asked for", ASKED.min(count - 1));
        let case = Case { title, kind: Kind::Spread(count), connections, is_fresh: false };
        rounds::run(report, &case, &[Server::constant(1), server]);
    }
    report.say(&format!("\nFrom the start to the first answer: {}.", starts.join(", ")));
}
