//! `deploy/demo`, as a person would run it: a fleet on this machine, everything restarted under load, and its count.

use std::process::{Command, Stdio};

use super::gateway::{binary, free_ports};
use super::tools::root;

/// Alerts that may begin to wait while things are restarted, and must not come up: nodes, authority and Kafka are away
/// for seconds, meanwhile records pile up in a small journal, and publishers connect again.
const EXPECTED: [&str; 9] = [
    // A gateway that has just started has no list yet, and some minutes ago the authority was away.
    "PixelgateListsMissing",
    // Before Prometheus' first scrape.
    "PixelgateNotWatched",
    "PixelgateDown",
    "PixelgatePublishingBlocked",
    "PixelgateJournalFullSoon",
    "PixelgatePublisherUnsteady",
    "PixelgateUpstreamFails",
    // A disk that others write to as well.
    "PixelgateDiskSlow",
    "PixelgateSlow",
];

#[test]
fn a_rolling_restart_of_everything_refuses_loses_and_doubles_nothing() {
    let mut demo = Command::new(root().join("deploy/demo"));
    demo.env("PIXELGATE", binary().get_program()).env("PORT", free_ports(20).to_string());
    demo.env("TMPDIR", env!("CARGO_TARGET_TMPDIR")).stdin(Stdio::null());
    let said = demo.output().expect("the e2e tests need bash");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.success(), "{text}{}", String::from_utf8_lossy(&said.stderr));
    eprintln!("{text}");
    for part in ["the authority", "gateway 1", "gateway 2", "gateway 3", "broker 1", "broker 2", "broker 3", "nginx"] {
        assert!(text.contains(&format!("{part} was restarted")), "{part}: {text}");
    }
    let counts = text.lines().find_map(|line| line.split_once("  requests ")).expect("it counts").1;
    let (requests, rest) = counts.split_once(", acknowledged ").unwrap();
    assert!(requests.parse::<u64>().unwrap() > 500, "{counts}");
    assert_eq!(rest, format!("{requests}, refused 0, lost 0, doubled 0, invented 0"));
    let alerts = text.lines().find_map(|line| line.split_once("alerts that were up: ")).expect("it tells of alerts").1;
    let (up, waiting) = alerts.split_once("; that began to wait: ").unwrap();
    assert_eq!(up, "none");
    let unexpected = waiting.split(' ').filter(|name| *name != "none" && !EXPECTED.contains(name));
    assert_eq!(unexpected.collect::<Vec<_>>(), [""; 0]);
}
