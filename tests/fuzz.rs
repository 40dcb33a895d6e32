//! Fuzzing on a stable compiler: whatever bytes come, the parsers neither panic nor leave their bounds.
//!
//! Each target is fed its corpus (`tests/corpus/<target>/`), then mutations of it, a fixed number; the seed is printed,
//! and `PIXELGATE_TEST_SEED` repeats it. `PIXELGATE_FUZZ_SECONDS=600 cargo test --test fuzz` looks for longer. What
//! breaks a target is printed and written to a file: it belongs into the corpus, with the fix.
#![expect(clippy::unwrap_used, reason = "a helper that fails ends its test, as the test itself would")]
#![expect(clippy::print_stderr, reason = "seeds and offenders belong in the output of a failed test")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use actix_web::test::TestRequest;
use pixelgate::event::encode::{self, Stamp};
use pixelgate::event::parse::parse;
use pixelgate::event::privacy::{ClientIp, Options, UrlQuery};
use pixelgate::event::{Body, Client, RawEvent, Source};
use pixelgate::http::client::Proxies;
use pixelgate::journal::frame::{self, BatchHeader, HeaderRead, SegmentHeader};
use pixelgate::pixel::{Pixel, PixelId};
use pixelgate::record::{Head, Kind, Position};
use pixelgate::time::Timestamp;
use random::Random;

#[path = "it/random.rs"]
#[expect(dead_code, reason = "other tests use all of it")]
mod random;

/// Inputs of a target, unless more time is given; of configs, which are large and slow, fewer.
const INPUTS: u32 = 12_000;
/// See `INPUTS`.
const CONFIGS: u32 = 1_000;
/// Longest input.
const MAX_BYTES: usize = 64 * 1024;
/// A record is never longer: 12 KiB of text, six bytes a character at worst, and the client's headers.
const MAX_RECORD_BYTES: usize = 112 * 1024;
/// What means something to one of the parsers.
const TOKENS: [&str; 32] = [
    "id=6010000000001",
    "&",
    "=",
    "amp;",
    "%",
    "%00",
    "%FF",
    "%26amp%3B",
    "+",
    "value=",
    "currency=",
    "cd[",
    "]",
    "{",
    "}",
    "[",
    "\"",
    "\\u0000",
    "\\ud800",
    "null",
    "1e999",
    "--B\r\n",
    "\r\n\r\n",
    "Content-Disposition: form-data; name=\"id\"",
    ",",
    "::1",
    "[2001:db8::1]:80",
    "127.0.0.1",
    "[server]\n",
    "#",
    "'''",
    "\u{feff}",
];

/// The target's bytes, all of them, must be taken in silence.
fn fuzz(name: &str, inputs: u32, target: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let mut corpus: Vec<(String, Vec<u8>)> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect();
    corpus.sort();
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for (file, input) in &corpus {
        feed(name, file, target, input);
    }
    let seconds = std::env::var("PIXELGATE_FUZZ_SECONDS").ok().map(|text| text.parse().unwrap());
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut random = Random::from_environment();
    let mut count = 0;
    while end.map_or(count < inputs, |end| Instant::now() < end) {
        let mut input = corpus[random.next() as usize % corpus.len()].1.clone();
        for _ in 0..1 + random.next() % 6 {
            mutate(&mut input, &corpus, &mut random);
        }
        input.truncate(MAX_BYTES);
        feed(name, "a mutation", target, &input);
        count += 1;
    }
    eprintln!("{name}: {count} inputs");
}

fn feed(name: &str, origin: &str, target: fn(&[u8]), input: &[u8]) {
    if catch_unwind(|| target(input)).is_err() {
        let found = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
        fs::write(&found, input).unwrap();
        panic!("{name} breaks at {origin}, kept in {}: {}", found.display(), input.escape_ascii());
    }
}

fn mutate(input: &mut Vec<u8>, corpus: &[(String, Vec<u8>)], random: &mut Random) {
    let mut at = |length: usize| random.next() as usize % (length + 1);
    let (from, to) = (at(input.len()), at(input.len()));
    let (from, to) = (from.min(to), from.max(to));
    match at(7) {
        0 if from < input.len() => input[from] ^= 1 << at(7),
        1 if from < input.len() => input[from] = at(255) as u8,
        2 => drop(input.drain(from..to)),
        3 => {
            let piece = input[from..to].to_vec();
            let repeats = 1 + at(40);
            let place = at(input.len());
            input.splice(place..place, piece.repeat(repeats).into_iter().take(MAX_BYTES));
        }
        4 => {
            let other = &corpus[at(corpus.len() - 1)].1;
            let cut = at(other.len());
            input.splice(from..to, other[cut..].iter().copied());
        }
        5 => input.truncate(from),
        _ => drop(input.splice(from..from, TOKENS[at(TOKENS.len() - 1)].bytes())),
    }
}

/// A request becomes a record or a refusal; either is one line of JSON, of bounded length, whatever it was made of.
fn take_event(raw: RawEvent<'_>) {
    let id = PixelId::parse(b"6010000000001").unwrap();
    let text = |text: &str| Some(text.to_owned());
    let pixel = Pixel { id, name: text("<b>"), tag: text("checkout"), ad_account_id: text("8"), archived: false };
    let stamp = Stamp { id: [7; 16], received: Timestamp(1_795_496_441_123), node_id: "node" };
    let some = &raw.query[..raw.query.len().min(4096)];
    let client = Client {
        ip: Some(Ipv4Addr::new(203, 0, 113, 77).into()),
        user_agent: Some(some),
        referer: Some(some),
        ..Client::default()
    };
    for (rules, strict) in [
        (Options { client_ip: ClientIp::Truncated, url_query: UrlQuery::Allowlist }, false),
        (Options { client_ip: ClientIp::Full, url_query: UrlQuery::Keep }, true),
    ] {
        let mut out = Vec::new();
        match parse(raw, strict) {
            Ok(event) => encode::event(&mut out, &stamp, &event, &client, &pixel, &rules),
            Err(refusal) => encode::rejected(&mut out, &stamp, refusal, &raw, &client, &rules),
        }
        assert!(out.len() <= MAX_RECORD_BYTES, "{} bytes", out.len());
        assert!(!out.iter().any(|byte| *byte < b' '), "a control character in a line");
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert!(value["record_id"].is_string());
        assert!(value.as_object().unwrap().values().all(|value| !value.is_null()), "no nulls: {value}");
    }
}

#[test]
fn queries() {
    fuzz("query", INPUTS, |input| {
        take_event(RawEvent { query: input, ..RawEvent::default() });
        take_event(RawEvent { query: input, route: Source::Tr, ..RawEvent::default() });
    });
}

#[test]
fn bodies() {
    fuzz("body", INPUTS, |input| {
        // What is before the first line's end is the query.
        let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        let (query, body) = input.split_at(end);
        for body in [Body::Form(body), Body::Json(body), Body::Text(body), Body::Multipart(body, "B")] {
            take_event(RawEvent { query, body, ..RawEvent::default() });
        }
    });
}

#[test]
fn journal_frames() {
    fuzz("frame", INPUTS, |input| {
        // As found on a disk: a header, a batch, records; each is taken or not, and never read beyond its end.
        if let HeaderRead::Valid(header) = SegmentHeader::decode(input) {
            assert_eq!(SegmentHeader::decode(&header.encode()), HeaderRead::Valid(header));
        }
        if let Some(header) = BatchHeader::peek(input) {
            header.verify(&input[..input.len().min(header.bytes())], 7);
        }
        let mut rest = input;
        while let Some(record) = frame::next_record(rest) {
            assert!(record.bytes > 0 && record.bytes <= rest.len());
            rest = &rest[record.bytes..];
        }
        let (bytes, records, events) = frame::fitting(input, MAX_BYTES);
        assert!(bytes <= input.len() && events <= records);
        // As written: one flipped bit anywhere is noticed.
        let mut payload = Vec::new();
        let head = Head { kind: Kind::Event, id: [3; 16], time_ms: 5 };
        let body = &input[..input.len().min(2000)];
        frame::push_record(&mut payload, head, b"key", |out| out.extend_from_slice(body));
        let header = BatchHeader {
            base: Position(9),
            events_before: 9,
            synced_to: Position(9),
            time_ms: 5,
            payload_bytes: payload.len() as u32,
            count: 1,
            events: 1,
            incarnation: [1; 8],
        };
        let mut batch = vec![0; header.bytes() - payload.len()];
        batch.extend_from_slice(&payload);
        header.seal(&mut batch, 7);
        assert_eq!(BatchHeader::peek(&batch).unwrap(), header);
        assert!(header.verify(&batch, 7) && !header.verify(&batch, 8));
        let at = input.iter().fold(0, |sum: usize, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        batch[at / 8 % header.bytes()] ^= 1 << (at % 8);
        let is_noticed =
            BatchHeader::peek(&batch).is_none_or(|seen| seen.bytes() != batch.len() || !seen.verify(&batch, 7));
        assert!(is_noticed, "a flipped bit");
    });
}

#[test]
fn configs() {
    // The program reads its config on the main thread, whose stack is larger than a test's.
    let run = std::thread::Builder::new().stack_size(8 << 20).spawn(|| fuzz("config", CONFIGS, take_config));
    run.unwrap().join().unwrap();
}

fn take_config(input: &[u8]) {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(file.path(), input).unwrap();
    let (config, problems) = pixelgate::config::load(Some(file.path()), []);
    // Each problem is one line that names its place, and what is printed of a config can be read again.
    for problem in &problems {
        let text = problem.to_string();
        assert!(text.contains(": ") && !text.contains(['\n', '\u{1b}']), "{text:?}");
    }
    if problems.is_empty() {
        config.to_toml().parse::<toml::Table>().unwrap();
    }
}

#[test]
fn forwarded_addresses() {
    fn is_trusted(ip: std::net::IpAddr) -> bool {
        match ip {
            std::net::IpAddr::V4(ip) => ip.octets()[0] == 10,
            std::net::IpAddr::V6(ip) => ip.octets()[0] == 0xfd,
        }
    }
    fuzz("forwarded", INPUTS, |input| {
        let trusted = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        for peer in ["10.1.2.3:9", "203.0.113.9:9", "[::ffff:10.1.2.3]:9"] {
            let peer: SocketAddr = peer.parse().unwrap();
            let mut request = TestRequest::default().peer_addr(peer);
            for line in input.split(|byte| *byte == b'\n') {
                let Ok(value) = actix_web::http::header::HeaderValue::from_bytes(line) else { continue };
                request = request.append_header(("X-Forwarded-For", value));
            }
            let visitor = Proxies::new(Some(trusted.clone())).visitor(&request.to_http_request());
            let (ip, peer) = (visitor.ip.unwrap(), peer.ip().to_canonical());
            assert!(is_trusted(peer) || ip == peer, "a stranger's word counts for nothing: {ip}");
            assert_eq!(ip, ip.to_canonical());
        }
    });
}
