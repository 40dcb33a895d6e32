//! The registry as a whole, on real files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::audit::By;
use super::tokens::{FIRST_TOKEN_FILE, hash};
use super::*;

const START: u64 = 1_800_000_000_000;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Relaxed))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Relaxed))
    }
}

fn clock() -> Arc<TestClock> {
    Arc::new(TestClock(AtomicU64::new(START)))
}

fn options(data_dir: &Path) -> Options {
    Options {
        mode: Mode::Local,
        data_dir: data_dir.into(),
        pixels: Vec::new(),
        max_pixels: 1_000_000,
        learning: Learning::none(),
        database: None,
    }
}

fn open(data_dir: &Path) -> Arc<Registry> {
    Registry::open(options(data_dir), clock()).unwrap()
}

fn given(id: &str, account: Option<&str>, name: Option<&str>) -> Pixel {
    let id = PixelId::parse(id.as_bytes()).unwrap();
    Pixel { id, name: name.map(Into::into), tag: None, ad_account_id: account.map(Into::into), archived: false }
}

fn create(registry: &Registry, account: &str, name: &str) -> Result<PixelId, Error> {
    registry.create(NewPixel { ad_account_id: account, name, tag: "checkout", token_name: "t" }, &By::user(0))
}

fn names(registry: &Registry, account: &str) -> Vec<String> {
    registry.list(account).iter().map(|entry| entry.pixel.name.clone().unwrap()).collect()
}

/// Waits for something that another thread does.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

fn first_token(data_dir: &Path) -> String {
    fs::read_to_string(data_dir.join(FIRST_TOKEN_FILE)).unwrap().trim().to_owned()
}

#[test]
fn with_an_upstream_no_token_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = Options { mode: Mode::Proxy, ..options(dir.path()) };
    let registry = Registry::open(proxy, clock()).unwrap();
    assert!(dir.path().join(FILE).exists() && !dir.path().join(FIRST_TOKEN_FILE).exists());
    drop(registry);
    Registry::open(options(dir.path()), clock()).unwrap();
    assert!(dir.path().join(FIRST_TOKEN_FILE).exists(), "the first start in local mode makes it");
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x); PRAGMA user_version = 7").unwrap();
    let before = fs::read(&path).unwrap();
    let error = Registry::open(options(dir.path()), clock()).unwrap_err();
    assert!(matches!(error, Error::Newer { found: 7, known: 3, .. }), "{error:?}");
    assert!(matches!(tokens::list(dir.path()).unwrap_err(), Error::Newer { .. }));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_file_that_is_no_registry_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE), "x".repeat(8192)).unwrap();
    let error = Registry::open(options(dir.path()), clock()).unwrap_err();
    assert!(matches!(error, Error::Sqlite { .. }), "{error:?}");
}

#[test]
fn where_no_file_can_be_made_static_pixels_are_known_and_writes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("file/registry");
    fs::write(dir.path().join("file"), "").unwrap();
    let pixels = vec![given("7", Some("9"), Some("static"))];
    let registry = Registry::open(Options { pixels, ..options(&blocked) }, clock()).unwrap();
    assert!(registry.degraded().is_some());
    assert_eq!(names(&registry, "9"), ["static"]);
    assert!(matches!(create(&registry, "9", "x").unwrap_err(), Error::Unwritable { .. }));
    assert!(matches!(registry.learn(vec![given("8", None, None)]).unwrap_err(), Error::Unwritable { .. }));
    let any_token = registry.check_token(&hash(b"x"));
    assert!(matches!(any_token.unwrap_err(), Error::Unwritable { .. }), "no token could exist: not the client's fault");
    registry.note_event(PixelId::parse(b"7").unwrap(), Timestamp(START));
    assert_eq!(registry.list("9")[0].status(Timestamp(START)), Status::Active);
}

#[test]
fn an_existing_file_that_cannot_be_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let id = create(&open(dir.path()), "9", "one").unwrap();
    let token = first_token(dir.path());
    let store = Store::open_degraded(dir.path().join(FILE), "no space left".into()).unwrap();
    assert!(matches!(store.access, Access::ReadOnly(_)));
    // Its directory can't be, not even for root, so that the keeper can't repair it.
    let nowhere = dir.path().join(FILE).join("nowhere");
    let registry = Registry::with_store(store, options(&nowhere), clock()).unwrap();
    registry.keeper.stop();
    assert_eq!(registry.find(id).unwrap().pixel.name.as_deref(), Some("one"));
    assert!(registry.check_token(&hash(token.as_bytes())).unwrap().is_some());
    assert_eq!(registry.check_token(&hash(b"wrong")).unwrap(), None);
    let error = create(&registry, "9", "two").unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(names(&registry, "9"), ["one"]);
}

#[test]
fn a_file_is_read_without_its_side_files() {
    let dir = tempfile::tempdir().unwrap();
    create(&open(dir.path()), "9", "one").unwrap();
    assert!(wal_is_gone(dir.path()), "a clean stop leaves one file");
    let connection = store::open_immutable(&dir.path().join(FILE)).unwrap().0;
    let count: i64 = connection.query_row("SELECT count(*) FROM pixels", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 1);
}

fn wal_is_gone(dir: &Path) -> bool {
    !dir.join(format!("{FILE}-wal")).exists()
}

#[test]
fn what_a_crash_left_is_read_and_later_written() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = open(dir.path());
    create(&running, "9", "one").unwrap();
    assert!(!wal_is_gone(dir.path()));
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let mut store = Store::open_degraded(copy.path().join(FILE), "read-only".into()).unwrap();
    assert_eq!(store.pixels().unwrap().len(), 1, "what is in the WAL only is read, too");
    assert!(store.recover(Timestamp(START)));
    assert!(!store.recover(Timestamp(START)), "only once");
    let registry = Registry::with_store(store, options(copy.path()), clock()).unwrap();
    create(&registry, "9", "two").unwrap();
    assert_eq!(names(&registry, "9"), ["one", "two"]);
    assert!(registry.check_token(&hash(first_token(dir.path()).as_bytes())).unwrap().is_some());
}

#[test]
fn as_long_as_nothing_is_repaired_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/registry.sqlite");
    let mut store = Store::open_degraded(path, "no space left".into()).unwrap();
    assert!(!store.recover(Timestamp(START)));
    assert_eq!(store.access, Access::Memory("no space left".into()));
    assert!(store.pixels().unwrap().is_empty());
}

#[test]
fn a_repaired_disk_is_used_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_degraded(dir.path().join(FILE), "no space left".into()).unwrap();
    assert!(matches!(store.access, Access::Memory(_)));
    let pixels = vec![given("7", Some("9"), Some("static"))];
    let registry = Registry::with_store(store, Options { pixels, ..options(dir.path()) }, clock()).unwrap();
    registry.note_event(PixelId::parse(b"7").unwrap(), Timestamp(START));
    eventually("it can be written", || registry.degraded().is_none());
    create(&registry, "9", "one").unwrap();
    assert!(registry.check_token(&hash(first_token(dir.path()).as_bytes())).unwrap().is_some());
    drop(registry);
    let registry = open(dir.path());
    assert_eq!(names(&registry, "9"), ["one"], "static pixels are known as long as the config names them");
    let pixels = vec![given("7", Some("9"), Some("static"))];
    drop(registry);
    let registry = Registry::open(Options { pixels, ..options(dir.path()) }, clock()).unwrap();
    assert_eq!(names(&registry, "9"), ["static", "one"]);
    assert_eq!(registry.list("9")[0].status(Timestamp(START)), Status::Active);
}

#[test]
fn of_two_creations_of_one_name_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(dir.path());
    for round in 0..20 {
        let barrier = Barrier::new(2);
        let name = format!("name {round}");
        let results: Vec<_> = thread::scope(|scope| {
            let run = || {
                barrier.wait();
                create(&registry, "9", &name)
            };
            let threads = [scope.spawn(run), scope.spawn(run)];
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        assert_eq!(results.iter().filter(|result| matches!(result, Err(Error::NameTaken))).count(), 1, "{results:?}");
    }
    assert_eq!(registry.pixel_count(), 20);
    create(&registry, "8", "name 0").expect("another account's name is free");
}

#[test]
fn ids_have_the_published_form() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(dir.path());
    let mut ids: Vec<_> = (0..50).map(|n| create(&registry, "9", &n.to_string()).unwrap().to_string()).collect();
    assert!(ids.iter().all(|id| id.len() == 13 && id.starts_with("60")), "{ids:?}");
    let in_order = ids.clone();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 50);
    assert_ne!(ids, in_order, "not to be guessed from the last");
}

#[test]
fn a_creation_is_known_when_it_returns_and_after_a_restart_with_order_and_status() {
    let dir = tempfile::tempdir().unwrap();
    let hostile = "-->\0 \u{2028}' OR 1=1; 名前";
    let registry = open(dir.path());
    let ids: Vec<_> = ["z", hostile, "a"].iter().map(|name| create(&registry, "9", name).unwrap()).collect();
    let Lookup::Known(known) = registry.lookup(ids[1]) else { panic!("unknown") };
    assert_eq!((known.name.as_deref(), known.tag.as_deref()), (Some(hostile), Some("checkout")));
    assert!(matches!(registry.lookup(PixelId::parse(b"1").unwrap()), Lookup::Unknown));
    registry.note_event(ids[2], Timestamp(START));
    registry.note_event(PixelId::parse(b"1").unwrap(), Timestamp(START));
    registry.close().unwrap();
    registry.close().unwrap();
    drop((known, registry));

    let registry = open(dir.path());
    assert_eq!(names(&registry, "9"), ["z", hostile, "a"]);
    let statuses = |now| registry.list("9").iter().map(|entry| entry.status(Timestamp(now))).collect::<Vec<_>>();
    assert_eq!(statuses(START), [Status::Unverified, Status::Unverified, Status::Active]);
    assert_eq!(statuses(START + DAY_MS), [Status::Unverified, Status::Unverified, Status::Inactive]);
    assert_eq!(registry.find(ids[0]).unwrap().creator, "9 (t)");
    assert!(matches!(create(&registry, "9", "z"), Err(Error::NameTaken)));
}

#[test]
fn event_times_reach_the_disk_without_a_clean_stop() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(dir.path());
    let id = create(&registry, "9", "one").unwrap();
    let other = Connection::open(dir.path().join(FILE)).unwrap();
    let stored =
        || -> Option<i64> { other.query_row("SELECT last_event_ms FROM pixels", [], |row| row.get(0)).unwrap() };
    assert_eq!(stored(), None);
    for later in [0, 3_600_000] {
        registry.note_event(id, Timestamp(START + later));
        eventually("the time is stored", || stored() == Some((START + later) as i64));
    }
}

#[test]
fn an_event_noted_through_an_old_snapshot_counts() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(dir.path());
    let id = create(&registry, "9", "one").unwrap();
    let before = registry.find(id).unwrap();
    create(&registry, "9", "two").unwrap();
    registry.learn(vec![given(&id.to_string(), None, Some("uno"))]).unwrap();
    assert!(before.slot.note(Timestamp(START)));
    let after = registry.find(id).unwrap();
    assert_eq!((after.pixel.name.as_deref(), after.pixel.tag.as_deref()), (Some("uno"), Some("checkout")));
    assert_eq!(after.status(Timestamp(START)), Status::Active);
}

#[test]
fn the_config_wins_for_the_fields_that_it_gives_and_only_while_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let id = create(&open(dir.path()), "9", "one").unwrap();
    let pixels = vec![given("5", Some("9"), Some("static")), given(&id.to_string(), None, Some("uno"))];
    let registry = Registry::open(Options { pixels, ..options(dir.path()) }, clock()).unwrap();
    assert_eq!(names(&registry, "9"), ["uno", "static"]);
    let entries = registry.list("9");
    assert_eq!((&*entries[0].creator, &*entries[1].creator), ("9 (t)", "9 (config)"));
    assert!(matches!(create(&registry, "9", "static"), Err(Error::NameTaken)));
    registry.note_event(PixelId::parse(b"5").unwrap(), Timestamp(START));
    drop(registry);
    assert_eq!(names(&open(dir.path()), "9"), ["uno"], "the static one left with the config");
}

#[test]
fn no_more_than_max_pixels_are_taken_in() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(Options { max_pixels: 1, ..options(dir.path()) }, clock()).unwrap();
    create(&registry, "9", "one").unwrap();
    assert!(matches!(create(&registry, "9", "two"), Err(Error::Full(1))));
    assert!(matches!(registry.learn(vec![given("1", None, None)]), Err(Error::Full(1))));
    registry.learn(vec![given(&registry.list("9")[0].pixel.id.to_string(), None, Some("uno"))]).unwrap();
    assert_eq!(names(&registry, "9"), ["uno"]);
}

#[test]
fn the_first_token_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(dir.path());
    let path = dir.path().join(FIRST_TOKEN_FILE);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
    let token = first_token(dir.path());
    assert!(token.len() >= 32 && token.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
    let grant = registry.check_token(&hash(token.as_bytes())).unwrap().unwrap();
    assert_eq!(grant, Grant { name: FIRST_TOKEN_FILE.into(), ad_accounts: Vec::new(), read_only: false });
    for file in [FILE.to_owned(), format!("{FILE}-wal")] {
        let bytes = fs::read(dir.path().join(file)).unwrap();
        assert!(!bytes.windows(token.len()).any(|window| window == token.as_bytes()), "only its hash is stored");
    }
    drop(registry);
    fs::remove_file(&path).unwrap();
    let registry = open(dir.path());
    assert!(!path.exists(), "whoever removed it has it");
    assert!(registry.check_token(&hash(token.as_bytes())).unwrap().is_some());
}

#[test]
fn a_crash_before_the_first_token_was_stored_is_made_good() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FIRST_TOKEN_FILE);
    let left = "0123456789abcdefghijklmnopqrstuvwxyz";
    fs::write(&path, left).unwrap();
    fs::write(path.with_extension("new"), "half").unwrap();
    let registry = open(dir.path());
    assert!(registry.check_token(&hash(left.as_bytes())).unwrap().is_some());
    assert_eq!(first_token(dir.path()), left);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_first_token_file_with_anything_else_gives_no_access_and_stops_nothing() {
    let bad = |text: &str| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FIRST_TOKEN_FILE), text).unwrap();
        let registry = open(dir.path());
        assert_eq!(registry.check_token(&hash(text.as_bytes())).unwrap(), None, "{text:?}");
        fs::remove_file(dir.path().join(FIRST_TOKEN_FILE)).unwrap();
        eventually("one is made once the way is free", || dir.path().join(FIRST_TOKEN_FILE).exists());
    };
    // Each waits for a moment of its own.
    std::thread::scope(|scope| {
        for text in ["", "short", "UPPER456789abcdefghijklmnopqrstuvwxyz", "0123456789abcdefghij klmnopqrstuvwxyz"] {
            scope.spawn(move || bad(text));
        }
    });
}

fn grant(name: &str, accounts: &[&str], read_only: bool) -> Grant {
    Grant { name: name.into(), ad_accounts: accounts.iter().map(|&account| account.into()).collect(), read_only }
}

#[test]
fn tokens_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(101);
    for name in ["", " ", "a\nb", "a\tb", FIRST_TOKEN_FILE, &*long] {
        let error = tokens::create(dir.path(), &grant(name, &[], false), &By::user(0), Timestamp(START)).unwrap_err();
        assert!(matches!(error, Error::Token(_)), "{name:?}: {error:?}");
    }
    for account in ["", "0", "act_9", "9,8"] {
        let error =
            tokens::create(dir.path(), &grant("a", &[account], false), &By::user(0), Timestamp(START)).unwrap_err();
        assert!(matches!(error, Error::Token(_)), "{account:?}: {error:?}");
    }
    tokens::create(dir.path(), &grant("a", &[], false), &By::user(0), Timestamp(START)).unwrap();
    let error = tokens::create(dir.path(), &grant("a", &[], true), &By::user(0), Timestamp(START)).unwrap_err();
    assert!(error.to_string().contains("exists already"), "{error}");
    assert!(!tokens::revoke(dir.path(), "b", &By::user(0), Timestamp(START)).unwrap());
    let nowhere = dir.path().join("nowhere");
    assert!(matches!(tokens::list(&nowhere).unwrap_err(), Error::Io { .. }));
    assert!(matches!(tokens::revoke(&nowhere, "a", &By::user(0), Timestamp(START)).unwrap_err(), Error::Io { .. }));
    assert!(!nowhere.exists());
}

#[test]
fn a_running_registry_sees_new_and_revoked_tokens_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(dir.path());
    let check = |token: &str| registry.check_token(&hash(token.as_bytes())).unwrap();
    assert_eq!(check("no token"), None);
    let wanted = grant("Jo", &["9", "10"], true);
    let token = tokens::create(dir.path(), &wanted, &By::user(0), Timestamp(START)).unwrap();
    assert_eq!(check(&token), Some(wanted));
    assert_eq!(check(&token.to_uppercase()), None);
    assert!(tokens::revoke(dir.path(), "Jo", &By::user(0), Timestamp(START + 1)).unwrap());
    assert_eq!(check(&token), None);
    assert!(!tokens::revoke(dir.path(), "Jo", &By::user(0), Timestamp(START + 2)).unwrap(), "only once");
    let again = tokens::create(dir.path(), &grant("Jo", &[], false), &By::user(0), Timestamp(START)).unwrap();
    assert_eq!(check(&token), None, "a name may come again, a token not");
    assert!(check(&again).is_some());
    drop(registry);
    let registry = open(dir.path());
    assert_eq!(registry.check_token(&hash(token.as_bytes())).unwrap(), None);
    assert!(registry.check_token(&hash(again.as_bytes())).unwrap().is_some());
    let listed = tokens::list(dir.path()).unwrap();
    let listed: Vec<_> = listed.iter().map(|token| (&*token.grant.name, token.revoked)).collect();
    assert_eq!(listed, [(FIRST_TOKEN_FILE, None), ("Jo", Some(Timestamp(START + 1))), ("Jo", None)]);
}

#[test]
fn a_grant_is_for_its_accounts_only() {
    let (all, some) = (grant("a", &[], false), grant("a", &["9"], false));
    assert!(all.allows(Some("9")) && all.allows(None) && some.allows(Some("9")));
    assert!(!some.allows(Some("99")) && !some.allows(None));
}

#[test]
fn lookups_run_while_pixels_are_created() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(dir.path());
    let first = create(&registry, "9", "first").unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut looked = 0;
            while !done.load(Relaxed) || looked == 0 {
                assert!(matches!(registry.lookup(first), Lookup::Known(known) if known.id == first));
                registry.note_event(first, Timestamp(START + looked));
                looked += 1;
            }
        });
        for number in 0..30 {
            let id = create(&registry, "9", &number.to_string()).unwrap();
            assert!(matches!(registry.lookup(id), Lookup::Known(_)));
        }
        done.store(true, Relaxed);
        reader.join().unwrap();
    });
    assert_eq!(registry.find(first).unwrap().status(Timestamp(START)), Status::Active);
}

#[test]
fn the_audit_log_keeps_the_newest_rows_and_never_gives_a_number_twice() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(dir.path());
    let old = "INSERT INTO audit (seq, at_ms, actor, action) VALUES (?1, 1, 'x', 'old')";
    let other = Connection::open(dir.path().join(FILE)).unwrap();
    let newest = 2 * audit::ROWS_MAX;
    for seq in [newest - audit::ROWS_MAX, newest - audit::ROWS_MAX + 2, newest] {
        other.execute(old, [seq]).unwrap();
    }
    create(&registry, "9", "one").unwrap();
    assert!(matches!(create(&registry, "9", "one"), Err(Error::NameTaken)));
    let mut lines = Vec::new();
    audit::read(dir.path(), &mut |line| {
        lines.push((line.seq, line.action));
        Ok(())
    })
    .unwrap();
    let expected = [(newest - audit::ROWS_MAX + 2, "old"), (newest, "old"), (newest + 1, "pixel.created")];
    assert_eq!(lines, expected.map(|(seq, action)| (seq, action.to_owned())));
}
