//! What deploy/ has for monitoring, in a real Prometheus beside a running gateway: rules that load and hold their own
//! tests, alerts that lead to a chapter and are quiet at rest, a board whose every query has data.
//!
//! Without Prometheus these tests fail and say what to install.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use regex::Regex;
use serde_json::Value;

use super::client::Client;
use super::gateway::{Site, free_address, output};
use super::load::Load;

const INSTALL: &str = "the e2e tests need Prometheus: apt-get install prometheus";
/// Rules look back over some scrapes, and Prometheus starts slowly on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn deployed(name: &str) -> String {
    fs::read_to_string(root().join("deploy").join(name)).unwrap()
}

/// Runs `promtool`; what it says.
fn promtool(arguments: &[&str]) -> String {
    Command::new("promtool").arg("--version").output().expect(INSTALL);
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(root().join("deploy"));
    let said = output(command);
    let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{text}");
    text
}

/// Names that a file gives to something: what follows `key` on a line.
fn named(text: &str, key: &str) -> Vec<String> {
    let values = text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key));
    values.map(|value| value.trim().to_owned()).collect()
}

#[test]
fn each_alert_is_raised_in_a_test_and_leads_to_a_chapter() {
    let (rules, tests) = (deployed("pixelgate.rules.yml"), deployed("pixelgate.rules.test.yml"));
    promtool(&["check", "rules", "pixelgate.rules.yml"]);
    promtool(&["test", "rules", "pixelgate.rules.test.yml"]);
    let (alerts, runbooks) = (named(&rules, "alert:"), named(&rules, "runbook:"));
    assert!(alerts.len() > 15 && alerts.len() == runbooks.len(), "{alerts:?} {runbooks:?}");
    // A case with nothing in it raises and computes nothing.
    let cases = Regex::new(r"(?m)alertname: (\w+)\n +exp_alerts:\n").unwrap();
    let raised: BTreeSet<String> = cases.captures_iter(&tests).map(|found| found[1].to_owned()).collect();
    let quiet: BTreeSet<String> = Regex::new(r"alertname: (\w+), exp_alerts: \[\]")
        .unwrap()
        .captures_iter(&tests)
        .map(|found| found[1].to_owned())
        .collect();
    assert_eq!(alerts.iter().find(|alert| !quiet.contains(*alert)), None, "never quiet in a test");
    assert_eq!(alerts.iter().find(|alert| !raised.contains(*alert)), None, "never raised in a test");
    let samples = r"(?m)^ +- expr: '(pixelgate:[a-z_:0-9]+).*\n.*eval_time.*\n +exp_samples:(?:\n| \[\{)";
    let samples = Regex::new(samples).unwrap();
    let computed: BTreeSet<&str> = samples.captures_iter(&tests).map(|found| found.get(1).unwrap().as_str()).collect();
    let recorded = named(&rules, "record:");
    assert_eq!(recorded.iter().find(|name| !computed.contains(name.as_str())), None, "never computed in a test");
    let operations = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let chapters: BTreeMap<String, &str> = operations
        .split("\n## ")
        .map(|chapter| {
            let title = chapter.lines().next().unwrap_or_default();
            (format!("operations.md#{}", title.to_lowercase().replace(' ', "-")), chapter)
        })
        .collect();
    for (alert, runbook) in alerts.iter().zip(&runbooks) {
        let chapter = chapters.get(runbook).unwrap_or_else(|| panic!("{runbook} is not in {:?}", chapters.keys()));
        assert!(chapter.contains(&format!("`{alert}`")), "{alert} is not named in its chapter, {runbook}");
    }
}

/// A Prometheus that scrapes one gateway each second.
pub struct Prometheus {
    process: Child,
    address: SocketAddr,
    _root: tempfile::TempDir,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Prometheus {
        Prometheus::with(target, &deployed("pixelgate.rules.yml"))
    }

    /// With rules under which nobody waits before an alert is up.
    pub fn impatient(target: SocketAddr) -> Prometheus {
        let rules = deployed("pixelgate.rules.yml");
        let rules = Regex::new(r"(?m)^        for: .*\n").unwrap().replace_all(&rules, "").into_owned();
        assert!(rules.lines().all(|line| !line.trim_start().starts_with("for:")));
        Prometheus::with(target, &rules)
    }

    fn with(target: SocketAddr, rules: &str) -> Prometheus {
        let root = tempfile::Builder::new().prefix("prometheus-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let config = deployed("prometheus.yml").replace("15s", "1s\n  evaluation_interval: 1s");
        let config = config.replace("127.0.0.1:8081", &target.to_string());
        assert!(config.contains(&target.to_string()) && config.contains("evaluation_interval: 1s"), "{config}");
        fs::write(root.path().join("prometheus.yml"), config).unwrap();
        fs::write(root.path().join("pixelgate.rules.yml"), rules).unwrap();
        let address = free_address();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", root.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", root.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(root.path().join("log")).unwrap())
            .spawn()
            .expect(INSTALL);
        Prometheus { process, address, _root: root }
    }

    /// `data` of an answer of its API, once it answers.
    fn ask(&self, target: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reply = Client::connect(self.address).and_then(|mut client| client.get(target));
            if let Ok(reply) = reply
                && reply.status != 503
            {
                let text = String::from_utf8_lossy(&reply.body).into_owned();
                let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{target}: {text}"));
                assert_eq!(answer["status"], "success", "{target}: {answer}");
                return answer["data"].clone();
            }
            assert!(Instant::now() < deadline, "Prometheus does not answer {target}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How many series a query has now.
    pub fn series(&self, query: &str) -> usize {
        let query: String = form_urlencoded::byte_serialize(query.as_bytes()).collect();
        self.ask(&format!("/api/v1/query?query={query}"))["result"].as_array().map_or(0, Vec::len)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// The names of the alerts that are up.
fn firing(prometheus: &Prometheus) -> BTreeSet<String> {
    let alerts = prometheus.ask("/api/v1/alerts")["alerts"].clone();
    let up = alerts.as_array().unwrap().iter().filter(|alert| alert["state"] == "firing");
    up.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
}

/// Waits until each of these was up, and does something meanwhile.
pub fn wait_firing(prometheus: &Prometheus, names: &[&str], mut meanwhile: impl FnMut()) {
    let deadline = Instant::now() + PATIENCE;
    let mut wanted: BTreeSet<&str> = names.iter().copied().collect();
    while !wanted.is_empty() {
        let up = firing(prometheus);
        wanted.retain(|name| !up.contains(*name));
        assert!(Instant::now() < deadline, "never up: {wanted:?}; {up:?} are");
        meanwhile();
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn what_goes_wrong_with_a_gateway_raises_its_alert() {
    let kafka = free_address();
    let site = Site::new(&format!("[journal]\nmax_bytes = \"1MiB\"\n[kafka]\nbrokers = [\"{kafka}\"]\n"));
    let gateway = site.start();
    let prometheus = Prometheus::impatient(site.ops);
    wait_firing(&prometheus, &["PixelgatePublishingBlocked"], || {});
    // Websites go on until the journal is full; others ask for pixels that nobody has, through a proxy nobody told of.
    let load = Load::paced(site.public, 4, Duration::from_millis(5), "m");
    let mut stranger = Client::connect(site.public).unwrap();
    let wanted = [
        "PixelgateJournalFillsUp",
        "PixelgateRefusesEvents",
        "PixelgateOutageTooLong",
        "PixelgateRejectsJump",
        "PixelgateUntrustedForwarded",
    ];
    wait_firing(&prometheus, &wanted, || {
        for _ in 0..50 {
            let request = "GET /offsite_event.php?id=1 HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";
            let reply = stranger.send(request.as_bytes()).and_then(|()| stranger.reply());
            if reply.is_err() {
                stranger = Client::connect(site.public).unwrap();
            }
        }
    });
    drop(load.finish());
    gateway.kill();
    wait_firing(&prometheus, &["PixelgateDown"], || {});
}

/// The queries of the board, as it asks them of all nodes.
fn queries() -> Vec<String> {
    let board: Value = serde_json::from_str(&deployed("grafana-dashboard.json")).unwrap();
    let panels = board["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
    let variable = Regex::new(r"\$(job|instance)\b").unwrap();
    queries.map(|query| variable.replace_all(&query.replace("$__rate_interval", "30s"), ".*").into_owned()).collect()
}

/// The series that rules look at: metrics with the labels that they want.
fn selectors(rules: &str) -> BTreeSet<String> {
    let expressions: String = rules.lines().filter(|line| !line.contains("summary:")).collect::<Vec<_>>().join(" ");
    let selector = Regex::new(r"\b(?:pixelgate_|pixelgate:|process_)[a-z_:0-9]+(?:\{[^}]*\})?").unwrap();
    selector.find_iter(&expressions).map(|found| found.as_str().to_owned()).collect()
}

#[test]
fn every_query_of_the_board_has_data_and_no_alert_is_up_at_rest() {
    // Kafka is configured and away, so that something piles up.
    let kafka = free_address();
    let small = "[journal]\nsegment_bytes = \"256KiB\"\nmax_bytes = \"2GiB\"\n";
    let site = Site::new(&format!("{small}[kafka]\nbrokers = [\"{kafka}\"]\nprogress_topic = \"p\"\n"));
    let gateway = site.start();
    let load = Load::paced(site.public, 2, Duration::from_millis(20), "m");
    let prometheus = Prometheus::start(site.ops);
    let queries = queries();
    assert!(queries.len() > 25, "{queries:?}");
    let deadline = Instant::now() + PATIENCE;
    for query in &queries {
        assert!(!query.contains('$'), "{query}");
        while prometheus.series(query) == 0 {
            assert!(Instant::now() < deadline, "no data: {query}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    for selector in selectors(&deployed("pixelgate.rules.yml")) {
        while prometheus.series(&selector) == 0 {
            assert!(Instant::now() < deadline, "a rule looks at what no gateway has: {selector}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let groups = prometheus.ask("/api/v1/rules")["groups"].clone();
    let rules: Vec<&Value> = groups.as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap()).collect();
    for rule in &rules {
        assert_eq!((&rule["health"], &rule["lastError"]), (&Value::from("ok"), &Value::Null), "{rule}");
        let waits_for_kafka = ["PixelgatePublishingBlocked", "PixelgateJournalFullSoon", "PixelgateRestarts"];
        let is_quiet = rule["type"] == "recording" || rule["state"] == "inactive";
        // A machine with more to do than it can may begin to wait for these, and they don't come up.
        let of_the_machine = ["PixelgateDown", "PixelgateDiskSlow", "PixelgateSlow", "PixelgateOutageTooLong"];
        let is_quiet =
            is_quiet || rule["state"] == "pending" && of_the_machine.iter().any(|name| rule["name"] == *name);
        assert!(is_quiet || waits_for_kafka.iter().any(|name| rule["name"] == *name), "{rule}");
    }
    assert_eq!(
        rules.len(),
        named(&deployed("pixelgate.rules.yml"), "alert:").len()
            + named(&deployed("pixelgate.rules.yml"), "record:").len(),
        "all rules are loaded"
    );
    let ledger = load.finish();
    assert!(ledger.refused.is_empty() && !ledger.acknowledged.is_empty());
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
}
