//! The command line: exit codes, what `check` says, and the directories it refuses.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::audit::export;
use super::client::Client;
use super::gateway::{PIXEL, Site, binary, free_address};

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A site whose config file is exactly this text, with a data directory of its own.
fn site_with_config(text: &str) -> Site {
    let site = Site::new("");
    let data = site.data();
    fs::write(site.config(), format!("data_dir = {data:?}\ndata_dir_unsafe = true\n{text}")).unwrap();
    site
}

#[test]
fn wrong_usage_exits_2() {
    for arguments in [&["nonsense"][..], &["journal"], &["journal", "publish"], &["serve", "--no-such-flag"]] {
        let output = binary().args(arguments).output().unwrap();
        assert_eq!(code(&output), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stdout(&output).is_empty(), "complaints belong on stderr: {arguments:?}");
    }
}

#[test]
fn help_and_version_exit_0_on_stdout() {
    for flag in ["--help", "--version"] {
        let output = binary().arg(flag).output().unwrap();
        assert_eq!(code(&output), Some(0));
        assert!(stdout(&output).contains("pixelgate"));
    }
}

#[test]
fn a_missing_config_file_exits_2_and_names_it() {
    let output = binary().args(["check", "--config", "no-such-file.toml"]).output().unwrap();
    assert_eq!(code(&output), Some(2));
    assert!((stdout(&output) + &stderr(&output)).contains("no-such-file.toml"));
}

#[test]
fn check_accepts_a_good_config() {
    let site = Site::new("");
    let output = site.run(&["check"]);
    assert_eq!(code(&output), Some(0), "{}{}", stdout(&output), stderr(&output));
}

#[test]
fn check_prints_every_problem_on_a_line_of_its_own() {
    let site = site_with_config(
        "[server]\nlisten = \"nowhere\"\nworkers = \"many\"\n[journal]\nacknowledge = \"maybe\"\n\
         max_bytes = \"10 parsecs\"\n[kafka]\ndelivery = \"at_most_once\"\n[limits]\nper_ip = \"often\"\n",
    );
    let output = site.run(&["check"]);
    assert_eq!(code(&output), Some(2));
    let said = stdout(&output);
    for key in [
        "server.listen: ",
        "server.workers: ",
        "journal.acknowledge: ",
        "journal.max_bytes: ",
        "kafka.delivery: ",
        "limits.per_ip: ",
    ] {
        assert_eq!(said.lines().filter(|line| line.contains(key)).count(), 1, "{key} in\n{said}");
    }
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest_one() {
    let site = site_with_config("[journal]\nmax_byte = \"1GiB\"\n");
    let output = site.run(&["check"]);
    assert_eq!(code(&output), Some(2));
    let said = stdout(&output);
    assert!(said.contains("journal.max_byte: ") && said.contains("journal.max_bytes"), "{said}");
    assert_eq!(code(&site.run(&["serve"])), Some(2), "serve refuses what check calls an error");
}

#[test]
fn unknown_environment_is_refused_but_for_what_kubernetes_sets() {
    let site = Site::new("");
    let check = |name: &str, value: &str| {
        let mut command = binary();
        command.arg("check").arg("--config").arg(site.config()).env(name, value);
        command.output().unwrap()
    };
    let output = check("PIXELGATE_JOURNAL__MAX_BYTE", "1GiB");
    assert_eq!(code(&output), Some(2));
    assert!(stdout(&output).contains("MAX_BYTES") || stdout(&output).contains("max_bytes"), "{}", stdout(&output));
    assert_eq!(code(&check("PIXELGATE_PORT", "tcp://10.0.0.1:80")), Some(0));
    assert_eq!(code(&check("PIXELGATE_SERVICE_HOST", "10.0.0.1")), Some(0));
    assert_eq!(code(&check("PIXELGATE_JOURNAL__MAX_BYTES", "9GiB")), Some(0));
}

#[test]
fn a_second_process_exits_2_and_names_the_holder() {
    let site = Site::new("");
    let gateway = site.start();
    let again = site.run(&["serve"]);
    assert_eq!(code(&again), Some(2), "the same config again");
    assert!(stderr(&again).contains(&gateway.id().to_string()), "the holder comes first: {}", stderr(&again));
    let mut command = binary();
    command.arg("serve").arg("--config").arg(site.config());
    command.env("PIXELGATE_SERVER__LISTEN", free_address().to_string());
    let output = command.env("PIXELGATE_OPS__LISTEN", free_address().to_string()).output().unwrap();
    assert_eq!(code(&output), Some(2), "ports of its own, the same directory");
    let said = stderr(&output);
    assert!(said.contains(&gateway.id().to_string()), "the message names process {}: {said}", gateway.id());
    assert_eq!(gateway.readiness(), Some(200), "the first goes on");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn an_address_in_use_exits_1_and_names_the_key() {
    let site = Site::new("");
    let taken = TcpListener::bind(site.ops).unwrap();
    let output = site.run(&["serve"]);
    assert_eq!(code(&output), Some(1), "a later start may find it free: {}", stderr(&output));
    assert!(stderr(&output).contains("ops.listen: "), "{}", stderr(&output));
    drop(taken);
}

#[test]
fn a_registry_that_is_none_exits_1_and_a_bad_node_id_2() {
    let site = Site::new("");
    assert_eq!(site.start().stop(), Some(0));
    // A log that is left would heal it.
    for end in ["-wal", "-shm"] {
        fs::remove_file(site.data().join(format!("registry.sqlite{end}"))).ok();
    }
    fs::write(site.data().join("registry.sqlite"), "no database, whatever its name says ".repeat(200)).unwrap();
    let output = site.run(&["serve"]);
    assert_eq!(code(&output), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("registry"), "{}", stderr(&output));
    fs::write(site.data().join("node_id"), "two words\n").unwrap();
    let output = site.run(&["serve"]);
    assert_eq!(code(&output), Some(2), "{}", stderr(&output));
}

#[test]
fn another_node_s_directory_exits_2() {
    let site = Site::new("");
    assert_eq!(site.start().stop(), Some(0));
    let mut command = binary();
    command.arg("serve").arg("--config").arg(site.config()).env("PIXELGATE_NODE_ID", "somebody-else");
    let output = command.output().unwrap();
    assert_eq!(code(&output), Some(2));
    assert!(stderr(&output).contains("somebody-else"), "{}", stderr(&output));
}

#[test]
fn a_newer_journal_exits_2_and_nothing_is_touched() {
    let site = Site::new("");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    assert_eq!(client.get(&format!("/offsite_event.php?id={PIXEL}")).unwrap().status, 200);
    drop(client);
    assert_eq!(gateway.stop(), Some(0));
    for entry in fs::read_dir(site.data().join("journal")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "seg") {
            make_newer(&path);
        }
    }
    let before = contents(&site.data().join("journal"));
    let output = site.run(&["serve"]);
    assert_eq!(code(&output), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("newer"), "{}", stderr(&output));
    assert_eq!(code(&site.run(&["journal", "export"])), Some(2));
    let checked = site.run(&["check"]);
    assert_eq!(code(&checked), Some(2));
    assert!(stdout(&checked).lines().any(|line| line.starts_with("data_dir: ") && line.contains("newer")));
    assert!(before == contents(&site.data().join("journal")), "the older program changed a newer directory");
}

/// Raises the format number in both copies of a segment's header (docs/journal-format.md).
fn make_newer(segment: &Path) {
    let mut bytes = fs::read(segment).unwrap();
    for start in [0, 2048] {
        bytes[start + 8..start + 12].copy_from_slice(&1000_u32.to_le_bytes());
        let sum = crc32c::crc32c(&bytes[start..start + 80]);
        bytes[start + 80..start + 84].copy_from_slice(&sum.to_le_bytes());
    }
    fs::write(segment, bytes).unwrap();
}

fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

#[test]
fn journal_commands_read_positions_kinds_and_the_tail() {
    let site = Site::new("");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    for number in 0..15 {
        let reply = client.get(&format!("/offsite_event.php?id={PIXEL}&n={number}")).unwrap();
        assert_eq!(reply.status, 200);
    }
    assert_eq!(client.get("/offsite_event.php?id=77").unwrap().reason(), Some("unknown_pixel"));
    drop(client);
    assert_eq!(gateway.stop(), Some(0));

    let all = export(&site);
    assert_eq!(all.len(), 15);
    let tail = stdout(&site.run(&["journal", "tail"]));
    assert_eq!(tail.lines().collect::<Vec<_>>(), all[5..].iter().map(String::as_str).collect::<Vec<_>>());
    let from = stdout(&site.run(&["journal", "export", "--from", "13", "--positions"]));
    let positions: Vec<_> = from.lines().map(|line| line.split_once('\t').unwrap().0).collect();
    assert_eq!(positions, ["13", "14"]);
    let rejected = stdout(&site.run(&["journal", "export", "--kind", "rejected"]));
    assert_eq!(rejected.lines().count(), 1);
    assert!(rejected.contains(r#""reason":"unknown_pixel""#), "{rejected}");
    assert_eq!(stdout(&site.run(&["journal", "export", "--kind", "all"])).lines().count(), 16);
    assert_eq!(code(&site.run(&["journal", "export", "--kind", "nothing"])), Some(2));
}

#[test]
fn a_position_below_the_oldest_exits_2_and_names_the_oldest() {
    let site = Site::new("[journal]\nsegment_bytes = \"1MiB\"\nmax_bytes = \"4MiB\"\n");
    let gateway = site.start();
    let filler = "x".repeat(1900);
    let gone = || code(&site.run(&["journal", "export", "--from", "0"])) == Some(2);
    let mut sent = 0;
    while !gone() {
        let mut client = Client::connect(site.public).unwrap();
        for _ in 0..200 {
            let reply = client.get(&format!("/offsite_event.php?id={PIXEL}&a={filler}&b={filler}")).unwrap();
            assert_eq!(reply.status, 200, "without Kafka the oldest expires: {reply:?}");
            sent += 1;
        }
        assert!(sent < 20_000, "nothing expired");
    }
    assert_eq!(gateway.stop(), Some(0));
    let output = site.run(&["journal", "export", "--from", "0"]);
    let first = stdout(&site.run(&["journal", "export", "--positions"]));
    let oldest = first.split_once('\t').unwrap().0;
    assert!(stderr(&output).contains(oldest), "names {oldest}: {}", stderr(&output));
}

#[test]
fn a_directory_without_a_journal_exits_2() {
    let site = Site::new("");
    for command in ["stat", "verify", "tail", "export"] {
        assert_eq!(code(&site.run(&["journal", command])), Some(2), "{command}");
        assert!(!site.data().join("journal").exists(), "{command} wrote");
    }
}

#[test]
fn a_first_start_writes_a_token_file_that_only_its_owner_reads() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new("");
    let gateway = site.start();
    let token = site.data().join("management-token");
    assert_eq!(fs::metadata(&token).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = fs::read_to_string(&token).unwrap();
    assert!(!site.log().contains(secret.trim()), "the token is never logged");
    assert_eq!(gateway.stop(), Some(0));
}
