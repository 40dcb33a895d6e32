//! Directories that real older versions wrote: the program as it is opens each, takes events, and publishes everything
//! once. What a newer version wrote it refuses before it changes a byte.
//!
//! `.ci/upgrade` runs an older binary and this one on the same directory; see `older`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rdkafka::mocking::MockCluster;
use serde_json::Value;

use super::audit::balanced_stat;
use super::client::Client;
use super::gateway::{Site, until};

fn fixtures() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/upgrade");
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

pub fn copy(from: &Path, into: &Path) {
    fs::create_dir_all(into).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        match path.is_dir() {
            true => copy(&path, &into.join(name)),
            false => drop(fs::copy(&path, into.join(name)).unwrap()),
        }
    }
}

/// Every file of a directory but the one that tells a second process who holds it.
pub fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.file_name().is_some_and(|name| name != "lock") {
            found.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap());
        }
    }
    found
}

/// A site whose directory is a fixture's; its records don't expire however long ago they were made.
fn site(fixture: &Path, brokers: &str) -> Site {
    let kafka = format!("[kafka]\nbrokers = [{brokers}]\ntransaction_timeout = \"3s\"\n");
    let site = Site::new(&format!("[journal]\nretention = \"3650d\"\n{kafka}"));
    copy(&fixture.join("data"), &site.data());
    site
}

fn said(site: &Site, arguments: &[&str]) -> String {
    let output = site.run(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_directory_of_each_older_version_opens_and_everything_in_it_is_published_once() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 3, "one for each schema of the registry: {fixtures:?}");
    for fixture in fixtures {
        let cluster = MockCluster::new(1).unwrap();
        for topic in ["pixelgate.events", "pixelgate.rejected"] {
            cluster.create_topic(topic, 1, 1).unwrap();
        }
        let site = site(&fixture, &format!("{:?}", cluster.bootstrap_servers()));
        let facts: Value = serde_json::from_slice(&fs::read(fixture.join("facts.json")).unwrap()).unwrap();
        let fact = |name: &str| facts[name].as_u64().unwrap_or_else(|| panic!("{name} in {facts}"));
        let text = |name: &str| facts[name].as_str().unwrap_or_else(|| panic!("{name} in {facts}")).to_owned();
        let stat = balanced_stat(&site);
        for name in ["accepted", "published", "pending", "parked"] {
            assert_eq!(stat[name], facts[name], "{name}: {}", fixture.display());
        }
        assert!(fact("published") > 0 && fact("pending") > 0 && fact("parked") == 1, "{facts}");
        let export = fs::read_to_string(fixture.join("export.ndjson")).unwrap();
        assert_eq!(said(&site, &["journal", "export", "--kind", "all", "--positions"]), export);

        let gateway = site.start();
        let mut client = Client::connect(site.public).unwrap();
        let reply = client.get(&format!("/offsite_event.php?id={}&value=1", text("pixel"))).unwrap();
        assert_eq!((reply.status, reply.header("x-pixelgate-warning")), (200, Some("missing_currency")));
        let list = "GET /offsitepixels?fb_ad_account_id=8 HTTP/1.1\r\nHost: a\r\nAuthorization: OAuth";
        client.send(format!("{list} {}\r\n\r\n", text("token")).as_bytes()).unwrap();
        let reply = client.reply().unwrap();
        let names = String::from_utf8(reply.body).unwrap();
        assert!(reply.status == 200 && names.contains("\"Bought before\""), "{names}");
        until("nothing is pending", || gateway.metric("journal_pending_events") == Some(0.0));
        assert_eq!(gateway.stop(), Some(0), "{}", site.log());
        said(&site, &["parked", "retry"]);
        let stat = balanced_stat(&site);
        assert_eq!(stat["published"].as_u64(), Some(fact("accepted") + 1), "{stat}: {}", fixture.display());
    }
}

#[test]
fn what_a_newer_version_wrote_is_refused_with_2_and_not_a_byte_changes() {
    let newest = fixtures().pop().unwrap();
    let newer_registry = |data: &Path| {
        let registry = rusqlite::Connection::open(data.join("registry.sqlite")).unwrap();
        registry.execute_batch("PRAGMA user_version = 99").unwrap();
    };
    let newer_journal = |data: &Path| {
        let path = data.join("journal/journal.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"format\":1"), "{text}");
        fs::write(path, text.replace("\"format\":1", "\"format\":99")).unwrap();
    };
    for newer in [&newer_registry as &dyn Fn(&Path), &newer_journal] {
        let site = site(&newest, "");
        newer(&site.data());
        let before = contents(&site.data());
        let output = site.run(&["serve"]);
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(words.contains("newer"), "{words}");
        let after = contents(&site.data());
        let changed: Vec<_> = after.keys().filter(|path| before.get(*path) != after.get(*path)).collect();
        assert!(changed.is_empty() && before.len() == after.len(), "{changed:?}");
        assert_eq!(site.run(&["check"]).status.code(), Some(2));
    }
}
