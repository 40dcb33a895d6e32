//! The figures are true: what was sent is what is counted, and every metric of the contract is there from the start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use pixelgate::event::Warning;
use pixelgate::event::rejection::Rejection;
use regex::Regex;

use super::client::Client;
use super::exposition::{Family, Page};
use super::gateway::{PIXEL, Site};

/// Metrics that the contract has with Kafka only.
const WITH_KAFKA: [&str; 2] =
    ["pixelgate_publish_oldest_pending_age_seconds", "pixelgate_progress_complete_until_timestamp_seconds"];

/// A metric as the contract's table has it: type, and values of each label where the row names them.
struct Promise {
    kind: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// The table of metrics in docs/contract.md.
fn promised() -> BTreeMap<String, Promise> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/contract.md")).unwrap();
    let row = Regex::new(r"(?m)^\| `(pixelgate_[a-z_]+)(?:\{([a-z_,]+)\})?` \| ([a-z]+) \|(.*)\|$").unwrap();
    let word = Regex::new("`([^`]+)`").unwrap();
    let mut all = BTreeMap::new();
    for found in row.captures_iter(&text) {
        let names = found.get(2).map_or("", |names| names.as_str()).split(',').filter(|name| !name.is_empty());
        let mut labels: BTreeMap<String, BTreeSet<String>> =
            names.map(|name| (name.to_owned(), BTreeSet::new())).collect();
        for part in found[4].split(';') {
            let Some((label, values)) = part.trim().split_once("`: ") else { continue };
            let values = word.captures_iter(values).map(|value| value[1].to_owned()).collect();
            let label = label.trim_start_matches('`').to_owned();
            assert!(labels.insert(label.clone(), values).is_some(), "{}: no label {label}", &found[1]);
        }
        all.insert(found[1].to_owned(), Promise { kind: found[3].to_owned(), labels });
    }
    let reasons = Rejection::ALL.map(Rejection::reason).into_iter().chain(["", "gpc", "consent"]);
    let warnings = Warning::ALL.map(Warning::as_str);
    let events = &mut all.get_mut("pixelgate_events_total").unwrap().labels;
    events.insert("reason".into(), reasons.map(str::to_owned).collect());
    let events = &mut all.get_mut("pixelgate_event_warnings_total").unwrap().labels;
    events.insert("warning".into(), warnings.into_iter().map(str::to_owned).collect());
    all
}

fn labels(family: &Family) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, labels) in family.samples.keys() {
        for (name, value) in labels.iter().filter(|(name, _)| *name != "le") {
            found.entry(name.clone()).or_default().insert(value.clone());
        }
    }
    found
}

#[test]
fn every_metric_of_the_contract_is_there_from_the_start_and_no_other() {
    for kafka in [false, true] {
        // Nobody listens there; metrics don't wait for Kafka.
        let site = Site::new(if kafka { "[kafka]\nbrokers = [\"127.0.0.1:1\"]\nprogress_topic = \"p\"\n" } else { "" });
        let gateway = site.start();
        let page = Page::of(&site);
        let mut promised = promised();
        if !kafka {
            for name in WITH_KAFKA {
                promised.remove(name).unwrap();
            }
        }
        let own = page.0.keys().filter(|name| !name.starts_with("process_"));
        assert_eq!(own.collect::<Vec<_>>(), promised.keys().collect::<Vec<_>>());
        for (name, promise) in promised {
            let family = &page.0[&name];
            assert_eq!(family.kind, promise.kind, "{name}");
            let mut found = labels(family);
            if name == "pixelgate_build_info" {
                // Values that no document can list.
                let version = found.insert("version".into(), BTreeSet::new()).unwrap();
                assert!(version.contains(env!("CARGO_PKG_VERSION")));
                found.insert("commit".into(), BTreeSet::new());
            }
            assert_eq!(found, promise.labels, "{name}");
            let counts = name != "pixelgate_publish_errors_total" && name != "pixelgate_publisher_restarts_total";
            if family.kind != "gauge" && counts && !name.contains("_commit_") {
                assert_eq!(page.counted(&name), BTreeMap::new(), "{name} before the first request");
            }
        }
        assert_eq!(gateway.stop(), Some(0));
    }
}

/// Sends what the figures below count.
fn send_one_of_each(site: &Site) {
    let mut client = Client::connect(site.public).unwrap();
    let target = format!("/offsite_event.php?id={PIXEL}");
    let status = |client: &mut Client, target: &str| client.get(target).unwrap().status;
    for value in 0..7 {
        assert_eq!(status(&mut client, &format!("{target}&value={value}&currency=EUR")), 200);
    }
    assert_eq!(client.post(&target, "application/json", "{\"value\":\"x\",\"currency\":\"EUR\"}").unwrap().status, 204);
    assert_eq!(status(&mut client, "/offsite_event.php?id="), 400);
    assert_eq!(status(&mut client, "/offsite_event.php?id=0"), 400);
    assert_eq!(status(&mut client, "/offsite_event.php?id=abc"), 400);
    assert_eq!(status(&mut client, "/offsite_event.php?id=9"), 404);
    assert_eq!(client.post(&target, "application/json", "[]").unwrap().status, 400);
    assert_eq!(client.post(&target, "image/png", "x").unwrap().status, 415);
    assert_eq!(status(&mut client, &format!("{target}&x={}", "y".repeat(17 << 10))), 414);
    let head = |method: &str, more: &str| format!("{method} {target} HTTP/1.1\r\nHost: gateway.test\r\n{more}\r\n");
    client.send(head("DELETE", "").as_bytes()).unwrap();
    assert_eq!(client.reply().unwrap().status, 405);
    client.send(head("OPTIONS", "").as_bytes()).unwrap();
    assert_eq!(client.reply().unwrap().status, 204);
    client.send(head("GET", "Sec-Purpose: prefetch;prerender\r\n").as_bytes()).unwrap();
    assert_eq!(client.reply().unwrap().status, 200);
    client.send(head("HEAD", "").as_bytes()).unwrap();
    assert_eq!(client.head().unwrap().0, 200);
    let mut other = Client::connect(site.public).unwrap();
    assert_eq!(other.get("/en_US/fp.js").unwrap().status, 200);
    assert_eq!(other.get("/robots.txt").unwrap().status, 200);
    assert_eq!(other.get("/nowhere").unwrap().status, 404);
    assert_eq!(other.get("/offsitepixels?fb_ad_account_id=8").unwrap().status, 401);
}

fn table<const N: usize>(rows: &[([&str; N], f64)]) -> BTreeMap<Vec<String>, f64> {
    rows.iter().map(|(labels, value)| (labels.map(str::to_owned).into(), *value)).collect()
}

#[test]
fn what_was_sent_is_what_is_counted() {
    let site = Site::new("");
    let gateway = site.start();
    send_one_of_each(&site);
    let page = Page::of(&site);
    let outcomes = [
        (["accepted", ""], 8.0),
        (["ignored", ""], 2.0),
        (["rejected", "missing_id"], 1.0),
        (["rejected", "invalid_id"], 2.0),
        (["rejected", "unknown_pixel"], 1.0),
        (["rejected", "malformed_body"], 1.0),
        (["rejected", "unsupported_media_type"], 1.0),
        (["rejected", "uri_too_long"], 1.0),
        (["rejected", "method_not_allowed"], 1.0),
    ];
    assert_eq!(page.counted("pixelgate_events_total"), table(&outcomes));
    let warnings = [(["invalid_value"], 1.0), (["prefetch"], 2.0)];
    assert_eq!(page.counted("pixelgate_event_warnings_total"), table(&warnings));
    // Labels by name: method, route, class of status.
    let requests = [
        (["GET", "offsite_event", "2xx"], 8.0),
        (["GET", "offsite_event", "4xx"], 5.0),
        (["HEAD", "offsite_event", "2xx"], 1.0),
        (["POST", "offsite_event", "2xx"], 1.0),
        (["POST", "offsite_event", "4xx"], 2.0),
        (["OPTIONS", "offsite_event", "2xx"], 1.0),
        (["DELETE", "offsite_event", "4xx"], 1.0),
        (["GET", "fp_js", "2xx"], 1.0),
        (["GET", "other", "2xx"], 1.0),
        (["GET", "other", "4xx"], 1.0),
        (["GET", "offsitepixels", "4xx"], 1.0),
    ];
    assert_eq!(page.counted("pixelgate_http_request_duration_seconds"), table(&requests));
    assert_eq!(page.value("pixelgate_journal_accepted_events", &[]), 8.0);
    // Event records wait for a commit each; rejected ones join the next.
    assert!(page.value("pixelgate_journal_commit_records_sum", &[]) >= 8.0);
    assert!(page.value("pixelgate_journal_commit_duration_seconds_count", &[]) >= 8.0);
    // Of the accepted and of what the rejected ones left.
    let appended = page.value("pixelgate_journal_appended_bytes_total", &[]);
    assert!((8.0 * 200.0..16.0 * 2000.0).contains(&appended), "{appended}");
    assert_eq!(gateway.stop(), Some(0));

    let gateway = site.start();
    let page = Page::of(&site);
    assert_eq!(page.counted("pixelgate_events_total"), BTreeMap::new(), "counters are the process' own");
    assert_eq!(page.value("pixelgate_journal_accepted_events", &[]), 8.0, "gauges stay with the journal");
    assert_eq!(page.value("pixelgate_journal_pending_events", &[]), 8.0);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn records_above_the_bounds_of_rejects_are_counted() {
    // 5 % of the smallest journal, two workers: a few records and no more.
    let site = Site::new("[journal]\nmax_bytes = \"1MiB\"\n");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    for _ in 0..200 {
        assert_eq!(client.get("/offsite_event.php?id=5").unwrap().status, 404);
    }
    let page = Page::of(&site);
    let dropped = page.value("pixelgate_rejected_records_dropped_total", &[]);
    assert!(dropped > 0.0 && dropped < 200.0, "{dropped}");
    assert_eq!(page.counted("pixelgate_events_total"), table(&[(["rejected", "unknown_pixel"], 200.0)]));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_client_that_leaves_before_its_answer_is_counted() {
    let site = Site::new("");
    let gateway = site.start();
    const LEAVERS: usize = 50;
    for _ in 0..LEAVERS {
        let mut client = Client::connect(site.public).unwrap();
        let request = format!("GET /offsite_event.php?id={PIXEL} HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
        client.send(request.as_bytes()).unwrap();
    }
    let counted = |page: &Page| page.value("pixelgate_events_total", &[("outcome", "accepted"), ("reason", "")]);
    super::gateway::until("all that were taken are counted", || {
        let page = Page::of(&site);
        // Those whose end was noticed before their request was read are no events at all; the rest must be in both.
        let (events, journal) = (counted(&page), page.value("pixelgate_journal_accepted_events", &[]));
        events == journal && events > 0.0
    });
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn alerts_select_labels_that_exist() {
    let rules = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/pixelgate.rules.yml")).unwrap();
    let selector = Regex::new(r"(pixelgate_[a-z_]+)\{([^}$]*)\}").unwrap();
    let matcher = Regex::new("([a-z_]+)=~?\"([^\"]*)\"").unwrap();
    let (promised, mut checked) = (promised(), 0);
    for found in selector.captures_iter(&rules) {
        // The series of a histogram have its name and an ending.
        let end = ["_bucket", "_count", "_sum"].iter().find_map(|end| found[1].strip_suffix(end));
        let promise = promised.get(end.unwrap_or(&found[1])).unwrap_or_else(|| panic!("no metric {}", &found[1]));
        for label in matcher.captures_iter(&found[2]) {
            let values =
                promise.labels.get(&label[1]).unwrap_or_else(|| panic!("{}: no label {}", &found[1], &label[1]));
            for value in label[2].split('|') {
                assert!(values.contains(value), "{}: {} is never {value:?}", &found[1], &label[1]);
                checked += 1;
            }
        }
    }
    assert!(checked >= 4, "the scan sees {checked} values");
}
