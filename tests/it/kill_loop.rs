//! The proof: load, `kill -9` of the gateway again and again and of the broker, and an audit of what a `read_committed`
//! consumer sees against what was acknowledged. README says how to run it for longer.

use std::time::{Duration, Instant};
use std::{env, thread};

use serde_json::Value;

use super::audit::{CLEAN, audit, balanced_stat, export};
use super::broker::Broker;
use super::consumer::read_committed;
use super::gateway::{PIXEL, Site};
use super::load::Load;
use super::random::Random;
use super::scene::wait_until_published;

const SENDERS: u64 = 6;
/// Kills of the gateway that a run must at least have.
const KILLS: u32 = 8;

fn seconds() -> u64 {
    let given = env::var("PIXELGATE_E2E_SECONDS").ok();
    given.map_or(60, |text| text.parse::<u64>().expect("PIXELGATE_E2E_SECONDS is a number").max(10))
}

#[test]
fn exactly_once_through_kill_9_of_gateway_and_broker() {
    let mut random = Random::from_environment();
    let broker = Broker::start("");
    let site = Site::new(&format!(
        "[journal]\nsegment_bytes = \"8MiB\"\n[kafka]\nbrokers = [\"{}\"]\npartitions = 4\n",
        broker.address()
    ));
    let seconds = seconds();
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut broker_falls = Instant::now() + random.millis(seconds * 400, seconds * 600);
    let (mut kills, mut broker_kills) = (0, 0);
    let load = Load::start(site.public, SENDERS);
    let mut gateway = site.start();
    while Instant::now() < end || kills < KILLS || broker_kills == 0 {
        thread::sleep(pause(seconds, &mut random));
        let broker_is_down = Instant::now() >= broker_falls;
        if broker_is_down {
            // Under the gateway's hands, in the middle of a transaction; then the gateway dies without Kafka, too.
            broker.kill();
            broker_kills += 1;
            thread::sleep(random.millis(500, 2000));
        }
        gateway.kill();
        kills += 1;
        gateway = site.start();
        if broker_is_down {
            broker.restart();
            broker_falls = Instant::now() + Duration::from_secs(45);
        }
    }
    let ledger = load.finish();
    wait_until_published(&site, &gateway);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());

    let consumed = read_committed(&broker.address(), "pixelgate.events");
    for record in &consumed {
        let event: Value = serde_json::from_str(&record.value).unwrap();
        assert_eq!(record.key.as_deref(), Some(PIXEL));
        assert_eq!(event["received_at"], rfc3339(record.time_ms), "Kafka's time is received_at");
    }
    let values: Vec<String> = consumed.into_iter().map(|record| record.value).collect();
    let findings = audit(&ledger, &values);
    let stat = balanced_stat(&site);
    eprintln!(
        "{seconds} s, {kills} kills of the gateway, {broker_kills} of the broker; {} acknowledged, {} refused, \
         {} open; {} consumed; {findings:?}; {stat}",
        ledger.acknowledged.len(),
        ledger.refused.len(),
        ledger.open.len(),
        values.len()
    );
    assert_eq!(findings, CLEAN, "{}", site.log());
    assert_eq!(stat["published"].as_u64(), Some(values.len() as u64), "{stat}");

    // The journal says the same, record by record.
    let mut kept = export(&site);
    let mut seen = values;
    kept.sort_unstable();
    seen.sort_unstable();
    assert!(kept == seen, "the journal holds {} records, the topic {}", kept.len(), seen.len());
}

/// Time between two kills: so that a run of any length has more than `KILLS` of them.
fn pause(seconds: u64, random: &mut Random) -> Duration {
    let longest = (seconds * 1000 / 12).min(6000);
    random.millis(longest / 10, longest)
}

fn rfc3339(time_ms: i64) -> Value {
    pixelgate::time::Timestamp(time_ms as u64).to_rfc3339().into()
}
