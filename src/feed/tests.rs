//! The feed on a real journal: durable lines only, its bounds, and its ends.

use super::*;
use crate::journal::tests::{append, close, open, options};
use crate::time::{Clock, SystemClock};

/// A feed over a journal in a directory of its own.
struct Bench {
    journal: Journal,
    feed: Feed,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(options(dir.path()));
        let feed = Feed::start(journal.clone()).unwrap();
        Bench { journal, feed, _dir: dir }
    }

    fn reader(&self) -> Reader {
        self.feed.join(self.journal.synced(), Box::new(|_| true), Box::new(|| {})).unwrap()
    }

    fn end(self) {
        self.feed.close();
        self.feed.join_thread();
        close(self.journal);
    }
}

/// The next line, which must come in time; `None` if the reader has ended.
fn next(reader: &mut Reader) -> Option<Line> {
    let deadline = SystemClock.monotonic() + Duration::from_secs(20);
    loop {
        match reader.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(line) => return line,
            Poll::Pending => assert!(SystemClock.monotonic() < deadline, "nothing came"),
        }
        std::thread::yield_now();
    }
}

fn number(line: &Line) -> u64 {
    u64::from_be_bytes(line.id[8..].try_into().unwrap())
}

#[test]
fn a_reader_sees_what_becomes_durable_after_it_came_in_order() {
    let bench = Bench::new();
    assert!(!bench.feed.listens());
    append(&bench.journal, 0..5, 10).unwrap();
    let mut reader = bench.reader();
    assert!(bench.feed.listens());
    append(&bench.journal, 5..12, 10).unwrap();
    let mut second = bench.reader();
    append(&bench.journal, 12..15, 10).unwrap();
    let seen: Vec<Line> = (5..15).map(|_| next(&mut reader).unwrap()).collect();
    assert_eq!(seen.iter().map(number).collect::<Vec<_>>(), (5..15).collect::<Vec<_>>());
    assert_eq!((&seen[0].body[..], seen[0].kind), (&b"xxxxxxxxxx"[..], Kind::Rejected));
    assert_eq!(number(&next(&mut second).unwrap()), 12);
    drop((reader, second));
    assert!(!bench.feed.listens());
    // Nobody listened meanwhile; a later reader begins where it comes.
    append(&bench.journal, 15..20, 10).unwrap();
    let mut third = bench.reader();
    append(&bench.journal, 20..21, 10).unwrap();
    assert_eq!(number(&next(&mut third).unwrap()), 20);
    drop(third);
    bench.end();
}

#[test]
fn a_reader_that_does_not_read_is_dropped_and_others_are_not() {
    let bench = Bench::new();
    let cut = Arc::new(AtomicBool::new(false));
    let told = cut.clone();
    let wanted = || -> Wanted { Box::new(|_| true) };
    let mut slow =
        bench.feed.join(bench.journal.synced(), wanted(), Box::new(move || told.store(true, Relaxed))).unwrap();
    let mut quick = bench.reader();
    let body = vec![b'x'; 100_000];
    for id in 0..40u8 {
        bench.feed.show_rejected(None, [id; 16], body.clone());
        assert_eq!(next(&mut quick).unwrap().id, [id; 16]);
    }
    assert!(cut.load(Relaxed));
    assert_eq!(bench.feed.dropped(), 1);
    assert_eq!(next(&mut slow), None, "what waited for it is let go");
    drop((slow, quick));
    assert_eq!(bench.feed.dropped(), 1, "leaving is no fault");
    bench.end();
}

#[test]
fn readers_choose_and_their_number_is_bounded() {
    let bench = Bench::new();
    let seven = PixelId::parse(b"7");
    let join = |wanted| bench.feed.join(bench.journal.synced(), wanted, Box::new(|| {}));
    let mut one = join(Box::new(move |pixel| pixel == seven)).unwrap();
    bench.feed.show_rejected(PixelId::parse(b"8"), [8; 16], vec![b'x']);
    bench.feed.show_rejected(seven, [7; 16], vec![b'x']);
    assert_eq!(next(&mut one).unwrap().id, [7; 16]);
    let others: Vec<Reader> = (1..READERS_MAX).map(|_| bench.reader()).collect();
    assert_eq!(join(Box::new(|_| true)).err(), Some(Refused::Full));
    drop(one);
    drop(join(Box::new(|_| true)).unwrap());
    drop(others);
    bench.end();
}

#[test]
fn closing_ends_all_at_once() {
    let bench = Bench::new();
    let mut reader = bench.reader();
    bench.feed.show_rejected(None, [1; 16], vec![b'x']);
    bench.feed.close();
    assert_eq!(next(&mut reader), None);
    let refused = bench.feed.join(bench.journal.synced(), Box::new(|_| true), Box::new(|| {}));
    assert_eq!(refused.err(), Some(Refused::Closed));
    drop(reader);
    bench.end();
}
