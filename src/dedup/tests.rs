//! Against a plain memory of everything, with real journals and several workers; and what a start knows again.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::*;
use crate::journal::tests as journal;
use crate::journal::{Appender, Driver, Journal, Lost};
use crate::record::{Head, Kind};
use crate::time::{Clock, SystemClock, Timestamp};

const SECOND: Duration = Duration::from_secs(1);

fn dedup(window: u32, max_ids: usize) -> Dedup {
    Dedup::new(Options { window: window * SECOND, max_ids }, 7 * SECOND)
}

fn pixel() -> PixelId {
    PixelId::parse(b"7").unwrap()
}

fn key(dedup: &Dedup, id: &str) -> Key {
    dedup.key(pixel(), None, id, false)
}

fn append(appender: &Appender, body: &str) -> Result<Receipt, crate::journal::Refused> {
    let head = Head { kind: Kind::Event, id: [1; 16], time_ms: 0 };
    appender.append(head, b"7", |out| out.extend_from_slice(body.as_bytes()))
}

/// Offers an id; whether it is the first.
fn offer(dedup: &Dedup, appender: &Appender, id: &str, now: Duration) -> bool {
    let once = dedup.once(key(dedup, id), now, || append(appender, id)).unwrap();
    matches!(once, Once::First(_))
}

#[test]
fn what_names_an_event_is_all_of_it() {
    let dedup = dedup(1, 1);
    let keys = [
        dedup.key(pixel(), None, "ab", false),
        dedup.key(pixel(), Some(""), "ab", false),
        dedup.key(pixel(), Some("a"), "b", false),
        dedup.key(pixel(), Some("ab"), "", false),
        dedup.key(pixel(), None, "ab", true),
        dedup.key(PixelId::parse(b"8").unwrap(), None, "ab", false),
    ];
    for (index, key) in keys.iter().enumerate() {
        assert_eq!(keys.iter().position(|other| other == key), Some(index));
    }
    assert_eq!(keys[2], dedup.key(pixel(), Some("a"), "b", false));
    assert_ne!(keys[0], self::dedup(1, 1).key(pixel(), None, "ab", false), "each run has a secret of its own");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// With room for all, a copy within the window makes no record and one behind it does. With less room, too many
    /// records may be made, never too few.
    #[test]
    fn a_copy_within_the_window_makes_no_record(
        max_ids in prop_oneof![1usize..40, Just(1 << 17)],
        steps in prop::collection::vec((0u8..60, 0u32..4), 1..300),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let open = journal::open(journal::options(dir.path()));
        let (appender, mut driver) = open.appender();
        let dedup = dedup(20, max_ids);
        let (mut now, mut firsts) = (7 * SECOND, HashMap::<u8, (Duration, usize)>::new());
        let mut made = 0;
        for (number, pause) in steps {
            now += pause * SECOND;
            let is_first = offer(&dedup, &appender, &number.to_string(), now);
            let known = firsts.get(&number).filter(|(first, _)| now - *first <= 20 * SECOND);
            // Those that came since have pushed it out if they are as many as there is room for.
            let remembered = known.is_some_and(|(_, before)| made - before < max_ids);
            prop_assert!(!remembered || !is_first, "{number} is a copy");
            prop_assert!(known.is_some() || is_first, "{number} is no copy of anything");
            if is_first {
                firsts.insert(number, (now, made));
                made += 1;
            }
        }
        prop_assert!(dedup.len() <= max_ids.max(1));
        let _ = Pin::new(&mut driver).poll(&mut Context::from_waker(Waker::noop()));
        drop((appender, driver));
        prop_assert!(open.close(10 * SECOND, &SystemClock));
        prop_assert_eq!(open.stats().counts.accepted, made as u64);
    }
}

/// Runs a worker until a receipt is done.
fn finish(driver: &mut Driver, receipt: Receipt) -> Result<(), Lost> {
    journal::wait(driver, receipt)
}

#[test]
fn of_copies_at_the_same_moment_on_several_workers_one_is_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let open = journal::open(journal::options(dir.path()));
    let dedup = dedup(60, 1 << 17);
    const IDS: usize = 500;
    let start = std::sync::Barrier::new(4);
    let firsts: usize = std::thread::scope(|scope| {
        let worker = || {
            let (appender, mut driver) = open.appender();
            start.wait();
            let mut firsts = 0;
            for number in 0..IDS {
                let id = number.to_string();
                let once = dedup.once(key(&dedup, &id), 8 * SECOND, || append(&appender, &id)).unwrap();
                let receipt = match once {
                    Once::First(receipt) => {
                        firsts += 1;
                        receipt
                    }
                    // Its answer waits for another worker's commit, and comes.
                    Once::Again(ticket) => appender.share(ticket),
                };
                if number % 3 == 0 {
                    finish(&mut driver, receipt).unwrap();
                }
            }
            firsts
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert_eq!((firsts, dedup.len()), (IDS, IDS));
    assert!(open.close(10 * SECOND, &SystemClock));
    assert_eq!(open.stats().counts.accepted, IDS as u64);
}

#[test]
fn a_copy_shares_the_fate_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let open = journal::open(journal::options(dir.path()));
    let ((one, mut of_one), (other, mut of_other)) = (open.appender(), open.appender());
    let dedup = dedup(60, 10);
    let again = |appender: &Appender, id: &str| {
        let once = dedup.once(key(&dedup, id), 8 * SECOND, || append(appender, id));
        match once.unwrap() {
            Once::First(_) => panic!("{id} is a copy"),
            Once::Again(ticket) => appender.share(ticket),
        }
    };
    let poll = |receipt: &mut Receipt| Pin::new(receipt).poll(&mut Context::from_waker(Waker::noop()));
    assert!(offer(&dedup, &one, "a", 8 * SECOND));
    let (mut here, mut there) = (again(&one, "a"), again(&other, "a"));
    assert!(poll(&mut here).is_pending() && poll(&mut there).is_pending(), "nothing is handed over yet");
    let _ = finish(&mut of_one, here);
    assert_eq!(finish(&mut of_other, there), Ok(()));
    assert_eq!(poll(&mut again(&other, "a")), Poll::Ready(Ok(())), "it is durable");
    // The journal ends while a record waits in its worker's buffer.
    assert!(offer(&dedup, &one, "b", 8 * SECOND));
    let (here, there) = (again(&one, "b"), again(&other, "b"));
    assert!(open.close(10 * SECOND, &SystemClock));
    one.flush();
    assert_eq!((finish(&mut of_one, here), finish(&mut of_other, there)), (Err(Lost), Err(Lost)));
    let refused = dedup.once(key(&dedup, "b"), 8 * SECOND, || append(&other, "b"));
    assert!(refused.is_err(), "the first is lost, so a copy is an event of its own; the journal refuses it");
}

#[test]
fn what_is_refused_is_not_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let open = journal::open(journal::options(dir.path()));
    let (appender, driver) = open.appender();
    let dedup = dedup(60, 10);
    assert!(dedup.once(key(&dedup, "a"), 8 * SECOND, || Err(())).is_err());
    assert!(dedup.is_empty() && offer(&dedup, &appender, "a", 8 * SECOND));
    drop((appender, driver));
    journal::close(open);
}

/// A journal with these records, of which each is so old.
fn recorded(dir: &std::path::Path, records: &[(String, Duration)], now: Timestamp) -> Journal {
    let open = journal::open(journal::options(dir));
    let (appender, mut driver) = open.appender();
    for (body, age) in records {
        let time_ms = now.0.saturating_sub(age.as_millis() as u64);
        let head = Head { kind: Kind::Event, id: [1; 16], time_ms };
        let receipt = appender.append(head, b"7", |out| out.extend_from_slice(body.as_bytes())).unwrap();
        finish(&mut driver, receipt).unwrap();
    }
    open
}

fn record(id: &str, more: &str) -> String {
    format!("{{\"schema\":\"pixelgate.event.v1\",\"pixel_id\":\"7\",\"event_id\":\"{id}\"{more}}}")
}

fn rebuilt(open: &Journal, options: Options, now: Timestamp) -> std::sync::Arc<Dedup> {
    let dedup = std::sync::Arc::new(Dedup::new(options, 7 * SECOND));
    let rebuild = Rebuild::start(dedup.clone(), options.max_ids, open.clone(), now).unwrap();
    while !rebuild.is_done() {
        std::thread::yield_now();
    }
    rebuild.stop();
    dedup
}

#[test]
fn a_start_knows_what_the_journal_has_within_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemClock.now();
    let minutes = |minutes: u32| 60 * minutes * SECOND;
    let open = recorded(
        dir.path(),
        &[
            (record("too old", ""), minutes(61)),
            (record("old", ""), minutes(59)),
            (record("named", ",\"event_name\":\"Buy\""), minutes(30)),
            (record("cut", ",\"warnings\":[\"truncated_parameter\"]"), minutes(20)),
            (record("\\u00e9\\\"", ",\"params\":{\"x\":\"y\"}"), minutes(10)),
            ("{\"pixel_id\":\"7\",\"params\":{\"a\":\"b\",\"event_id\":\"a parameter\"}}".into(), minutes(5)),
            ("no JSON,\"event_id\":\"x\"".into(), minutes(5)),
            // The clock has gone back since.
            (record("of the future", ""), Duration::ZERO),
        ],
        Timestamp(now.0),
    );
    let options = Options { window: minutes(60), max_ids: 1 << 17 };
    let dedup = rebuilt(&open, options, Timestamp(now.0 - 1000));
    let (appender, driver) = open.appender();
    let is_new = |id: &str, at: Duration| offer(&dedup, &appender, id, 7 * SECOND + at);
    for known in ["old", "é\"", "of the future"] {
        assert!(!is_new(known, Duration::ZERO), "{known}");
    }
    assert!(dedup.once(dedup.key(pixel(), Some("Buy"), "named", false), 7 * SECOND, || Err(())).is_ok());
    for unknown in ["too old", "cut", "a parameter", "named", "x"] {
        assert!(is_new(unknown, Duration::ZERO), "{unknown}");
    }
    assert!(is_new("old", minutes(2)), "its window ends by its own age");
    assert!(!is_new("é\"", minutes(2)));
    drop((appender, driver));
    journal::close(open);
}

#[test]
fn a_start_prefers_the_newest_and_what_came_since() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemClock.now();
    // Several segments, the smallest there are.
    let filler = format!(",\"x\":\"{}\"", "y".repeat(2000));
    let records: Vec<_> = (0..400).map(|id| (record(&id.to_string(), &filler), SECOND * (400 - id))).collect();
    let open = recorded(dir.path(), &records, now);
    assert!(open.bases().len() > 2, "{:?}", open.bases());
    let dedup = rebuilt(&open, Options { window: 3600 * SECOND, max_ids: 300 }, now);
    assert_eq!(dedup.len(), 300);
    let (appender, driver) = open.appender();
    for id in 0..100 {
        let found = dedup.once(key(&dedup, &id.to_string()), 7 * SECOND, || Err(()));
        assert!(found.is_err(), "{id} is forgotten");
    }
    for id in 100..400 {
        assert!(dedup.once(key(&dedup, &id.to_string()), 7 * SECOND, || Err(())).is_ok(), "{id}");
    }
    // The oldest of the remembered is the first to go.
    assert!(offer(&dedup, &appender, "new", 7 * SECOND));
    assert!(dedup.once(key(&dedup, "100"), 7 * SECOND, || Err(())).is_err());
    assert!(dedup.once(key(&dedup, "101"), 7 * SECOND, || Err(())).is_ok());
    drop((appender, driver));
    journal::close(open);
}
