//! What is counted where, for how long, and within which bounds.

use super::*;
use crate::time::uuid_v7;
use std::sync::atomic::{AtomicU64, Ordering};

/// A wall clock that is set.
#[derive(Default)]
struct Hands(AtomicU64);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

fn id(number: u64) -> PixelId {
    PixelId::parse(number.to_string().as_bytes()).unwrap()
}

/// Ids below a million are known.
fn start() -> (Arc<Hands>, Arc<Diagnostics>, Worker) {
    let hands = Arc::new(Hands::default());
    hands.0.store(500 * HOUR_MS, Ordering::Relaxed);
    let diagnostics = Diagnostics::new("n".into(), hands.clone(), |other| other < id(1_000_000));
    let worker = diagnostics.worker();
    (hands, diagnostics, worker)
}

fn accept(worker: &Worker, id: PixelId, ms: u64) {
    worker.accepted(id, Some(uuid_v7(Timestamp(ms), [0; 10])), false, Warnings::default());
}

#[test]
fn every_word_has_a_count_of_its_own_and_a_day_is_remembered() {
    let (hands, diagnostics, worker) = start();
    for (times, reason) in Rejection::ALL.into_iter().enumerate() {
        (0..=times).for_each(|_| worker.rejected(id(7), reason, || Some(Vec::new())));
    }
    for warning in Warning::ALL {
        let mut warnings = Warnings::default();
        warnings.add(warning);
        worker.accepted(id(7), Some(uuid_v7(Timestamp(9), [0; 10])), warning == Warning::InvalidUtf8, warnings);
    }
    assert!(diagnostics.of(id(7)).is_none(), "not handed over");
    worker.hand_over();
    let history = diagnostics.of(id(7)).unwrap();
    let total = history.total(diagnostics.now());
    assert_eq!((total.accepted(), total.trials()), (Warning::ALL.len() as u64, 1));
    assert_eq!(total.warnings().collect::<Vec<_>>(), Warning::ALL.map(|warning| (warning.as_str(), 1)));
    assert!(total.rejected().map(|(_, count)| count).eq(1..=Rejection::ALL.len() as u64));
    assert_eq!(history.last_accepted.unwrap().0, Timestamp(9));
    assert_eq!(history.last_rejected.unwrap().1, Rejection::ShuttingDown);

    hands.0.fetch_add(23 * HOUR_MS, Ordering::Relaxed);
    accept(&worker, id(7), 10);
    worker.hand_over();
    let hours = diagnostics.of(id(7)).unwrap().hours(diagnostics.now());
    let begins: Vec<u64> = hours.iter().map(|(begin, _)| begin.0 / HOUR_MS).collect();
    assert_eq!(begins, [500, 523]);
    hands.0.fetch_add(HOUR_MS, Ordering::Relaxed);
    let history = diagnostics.of(id(7)).unwrap();
    assert_eq!((history.hours(diagnostics.now()).len(), history.total(diagnostics.now()).accepted()), (1, 1));
    hands.0.store(400 * HOUR_MS, Ordering::Relaxed);
    assert_eq!(history.total(diagnostics.now()).accepted(), 0, "hours to come are of another clock");
}

#[test]
fn the_last_ten_rejects_are_kept_within_their_bytes() {
    let (_, diagnostics, worker) = start();
    for number in 0..25u8 {
        worker.rejected(id(7), Rejection::ArchivedPixel, || Some(vec![number]));
        worker.hand_over();
    }
    let kept = |id| diagnostics.of(id).unwrap().rejects.iter().map(|reject| reject[0]).collect::<Vec<_>>();
    assert_eq!(kept(id(7)), (15..25).collect::<Vec<_>>());
    for number in 0..5u8 {
        worker.rejected(id(8), Rejection::ArchivedPixel, || Some(vec![number; REJECTS_MAX_BYTES / 2]));
        worker.hand_over();
    }
    assert_eq!(kept(id(8)), [3, 4]);
    let mut written = 0;
    for number in 1..1000 {
        worker.rejected(id(number), Rejection::ArchivedPixel, || {
            written += 1;
            Some(Vec::new())
        });
    }
    assert!(written <= 2 * REJECTS_AT_ONCE, "{written}");
}

#[test]
fn pixels_that_are_heard_of_stay_and_unknown_ids_push_out_none() {
    let (_, diagnostics, worker) = start();
    assert_eq!(diagnostics.since(), Timestamp(500 * HOUR_MS));
    for number in 1..20_000 {
        accept(&worker, id(1), number);
        accept(&worker, id(number), number);
        worker.rejected(id(5_000_000 + number), Rejection::UnknownPixel, || Some(Vec::new()));
        if number % 100 == 0 {
            worker.hand_over();
        }
    }
    worker.hand_over();
    assert_eq!(diagnostics.of(id(1)).unwrap().total(diagnostics.now()).accepted(), 20_000);
    assert!(diagnostics.of(id(2)).is_none() && diagnostics.of(id(19_999)).is_some());
    let tables = diagnostics.lock();
    assert_eq!((tables.known.entries.len(), tables.unknown.entries.len()), (PIXELS_MAX, UNKNOWN_MAX));
    assert_eq!((tables.known.index.len(), tables.unknown.index.len()), (PIXELS_MAX, UNKNOWN_MAX));
}

#[test]
fn what_was_seen_before_a_pixel_was_known_stays_its_story() {
    let (_, _, _) = start();
    let hands = Arc::new(Hands::default());
    let known = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let now_known = Arc::clone(&known);
    let diagnostics = Diagnostics::new("n".into(), hands, move |_| now_known.load(Ordering::Relaxed));
    let worker = diagnostics.worker();
    worker.rejected(id(7), Rejection::UnknownPixel, || Some(Vec::new()));
    worker.hand_over();
    known.store(true, Ordering::Relaxed);
    accept(&worker, id(7), 5);
    worker.hand_over();
    let total = diagnostics.of(id(7)).unwrap().total(diagnostics.now());
    assert_eq!((total.accepted(), total.rejected().count()), (1, 1));
}
