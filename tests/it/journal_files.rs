//! Journals as files: an old one opens for ever, each kind of destruction is named by segment and byte, a newer one is
//! not touched.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::client::Client;
use super::gateway::{PIXEL, Site};

const OLDEST: &str = "00000000000000000001.seg";
const NEWEST: &str = "00000000000000000002.seg";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/journal-v1")
}

/// A site whose journal is a copy of the fixture, and whose records don't expire however long ago it was made.
fn site() -> Site {
    let site = Site::new("[journal]\nretention = \"3650d\"\n");
    let journal = site.data().join("journal");
    fs::create_dir_all(&journal).unwrap();
    for (name, bytes) in files(&fixture().join("journal")) {
        fs::write(journal.join(name), bytes).unwrap();
    }
    site
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

/// What a command prints, and its exit code.
fn run(site: &Site, arguments: &[&str]) -> (String, Option<i32>) {
    let output = site.run(arguments);
    (String::from_utf8(output.stdout).unwrap(), output.status.code())
}

#[test]
fn a_journal_of_the_first_format_opens_for_ever() {
    let site = site();
    let stat = fs::read_to_string(fixture().join("stat.json")).unwrap();
    let tail = fs::read_to_string(fixture().join("tail.ndjson")).unwrap();
    assert_eq!(run(&site, &["journal", "verify"]), ("5 records readable, 0 damaged stretches\n".into(), Some(0)));
    let (figures, code) = run(&site, &["journal", "stat"]);
    let parsed = |text: &str| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).unwrap();
    let figures = parsed(&figures);
    for (name, value) in parsed(&stat) {
        assert_eq!(figures.get(&name), Some(&value), "{name}");
    }
    assert_eq!(code, Some(0));
    assert_eq!(run(&site, &["journal", "tail", "--kind", "all", "--positions"]), (tail.clone(), Some(0)));
    let gateway = site.start();
    let target = format!("/offsite_event.php?id={PIXEL}");
    assert_eq!(Client::connect(site.public).unwrap().get(&target).unwrap().status, 200);
    assert_eq!(gateway.stop(), Some(0));
    let (all, _) = run(&site, &["journal", "export", "--kind", "all", "--positions"]);
    assert_eq!(all.strip_prefix(&tail).unwrap().split('\t').next(), Some("5"), "it goes on behind the old records");
}

/// Changes a file of the fixture's copy.
type Destroy = fn(&mut Vec<u8>);

#[test]
fn each_destruction_is_named_by_segment_and_byte() {
    // Batches of the oldest: one record each at 4096, 4521, 4949, 5405 (a reject), a mark at 5788, the end at 5852;
    // of the newest: one record at 4096, a mark at 4548, the end at 4612.
    let cases: &[(&str, &str, Destroy, &str, u32)] = &[
        (
            "flip",
            OLDEST,
            |file| file[4600] ^= 1,
            "byte 4521: 428 bytes unreadable, positions 1 to 2 lost (1 events)",
            4,
        ),
        (
            "zero",
            OLDEST,
            |file| file[4949..5788].fill(0),
            "byte 4949: 839 bytes unreadable, positions 2 to 4 lost (1 events)",
            3,
        ),
        (
            "cut",
            OLDEST,
            |file| file.truncate(5000),
            "byte 4949: 51 bytes unreadable, positions 2 to 4 lost (1 events)",
            3,
        ),
        (
            "flip the last",
            NEWEST,
            |file| file[4200] ^= 8,
            "byte 4096: 452 bytes unreadable, positions 4 to 5 lost (1 events)",
            4,
        ),
        (
            "double",
            OLDEST,
            |file| file.copy_within(4096..4521, 4521),
            "byte 4521: 428 bytes unreadable, positions 1 to 2 lost (1 events)",
            4,
        ),
        (
            "swap",
            OLDEST,
            |file| file[4096..4949].rotate_left(425),
            "byte 4096: 0 bytes unreadable, positions 0 to 1 lost (1 events)",
            4,
        ),
        ("empty", OLDEST, Vec::clear, "byte 0: 0 bytes unreadable, positions 0 to 4 lost (3 events)", 1),
        (
            "destroy the last",
            NEWEST,
            |file| file.fill(0),
            "byte 0: 4612 bytes unreadable, how many records is not known",
            4,
        ),
    ];
    for (what, segment, destroy, words, records) in cases {
        let site = site();
        let path = site.data().join("journal").join(segment);
        let mut bytes = fs::read(&path).unwrap();
        destroy(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let said = format!("damage: {segment} {words}\n{records} records readable, 1 damaged stretches\n");
        assert_eq!(run(&site, &["journal", "verify"]), (said, Some(1)), "{what}");
    }
}

#[test]
fn what_costs_no_record_is_no_damage() {
    let whole = "5 records readable, 0 damaged stretches\n".to_owned();
    let cut = format!(
        "torn tail: segment {NEWEST} byte 4096: an unsynced batch, the next start cuts it\n\
                       4 records readable, 0 damaged stretches\n"
    );
    let cases: &[(&str, &str, Destroy, &str)] = &[
        ("a header", OLDEST, |file| file[..4096].fill(0), &whole),
        ("a mark", OLDEST, |file| file[5800] ^= 1, &whole),
        ("the end of an unmarked batch", NEWEST, |file| file.truncate(4300), &cut),
    ];
    for (what, segment, destroy, said) in cases {
        let site = site();
        let path = site.data().join("journal").join(segment);
        let mut bytes = fs::read(&path).unwrap();
        destroy(&mut bytes);
        fs::write(&path, bytes).unwrap();
        assert_eq!(run(&site, &["journal", "verify"]), ((*said).to_owned(), Some(0)), "{what}");
    }
}

#[test]
fn a_missing_oldest_segment_is_counted_and_a_foreign_one_refused() {
    let missing = site();
    fs::remove_file(missing.data().join("journal").join(OLDEST)).unwrap();
    let said = format!(
        "damage: {OLDEST} byte 0: 0 bytes unreadable, positions 0 to 4 lost (3 events)\n\
         1 records readable, 1 damaged stretches\n"
    );
    assert_eq!(run(&missing, &["journal", "verify"]), (said, Some(1)));
    let foreign = site();
    let journal = foreign.data().join("journal");
    fs::copy(journal.join(OLDEST), journal.join("00000000000000000007.seg")).unwrap();
    let output = foreign.run(&["journal", "verify"]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(words.contains("00000000000000000007.seg: belongs to another journal or was renamed"), "{words}");
}

#[test]
fn a_newer_directory_is_refused_with_2_and_not_touched() {
    for newer in ["journal.json", OLDEST] {
        let site = site();
        let journal = site.data().join("journal");
        let path = journal.join(newer);
        let mut bytes = fs::read(&path).unwrap();
        if newer == OLDEST {
            (bytes[8], bytes[2048 + 8]) = (2, 2);
        } else {
            bytes = String::from_utf8(bytes).unwrap().replace("\"format\":1", "\"format\":2").into_bytes();
        }
        fs::write(&path, bytes).unwrap();
        let before = files(&journal);
        for command in [&["serve"][..], &["journal", "verify"], &["journal", "stat"]] {
            let output = site.run(command);
            let words = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{command:?}: {words}");
            assert!(words.contains("written by a newer version (format 2, this program knows 1)"), "{words}");
        }
        assert!(files(&journal) == before, "not a byte is changed");
    }
}
