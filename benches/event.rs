//! Parsing and encoding of one event beside the ordinary crates doing the same kind of work in the same run.
//!
//! `cargo bench --bench event`. The baselines: `form_urlencoded` into a list, and `serde_json` writing a map.

use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pixelgate::event::encode::{self, Stamp};
use pixelgate::event::parse::parse;
use pixelgate::event::privacy::{ClientIp, Options, UrlQuery};
use pixelgate::event::{Body, Client, RawEvent};
use pixelgate::pixel::{Pixel, PixelId};
use pixelgate::time::Timestamp;

const PIXEL_REQUEST: &[u8] = b"id=6010000000001&value=24.99&currency=EUR&order=81723";
const RICH_REQUEST: &[u8] =
    b"id=6010000000001&value=1249.00&currency=usd&ev=Purchase&eid=order-81723&dl=https%3A%2F%2F\
www.shop.example%2Fcheckout%2Fthanks%3Futm_source%3Dnews%26order%3D81723&rl=https%3A%2F%2Fsearch.example%2F&ts=17954964\
41123&st=1795496441300&fbp=fb.1.1795496441000.1234567890&cd%5Bcontents%5D=shoe%2042&cd%5Bnum%5D=2";
const AGENT: &[u8] =
    b"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0";
const REFERER: &[u8] = b"https://www.shop.example/checkout/thanks?utm_source=news&order=81723";

fn raw(query: &[u8]) -> RawEvent<'_> {
    RawEvent { query, body: Body::None, ..RawEvent::default() }
}

fn parsing(criterion: &mut Criterion) {
    for (name, query) in [("pixel", PIXEL_REQUEST), ("rich", RICH_REQUEST)] {
        let mut group = criterion.benchmark_group(format!("parse/{name}"));
        group.throughput(Throughput::Bytes(query.len() as u64));
        group.bench_function("pixelgate", |bench| bench.iter(|| parse(raw(black_box(query)), false)));
        group.bench_function("form_urlencoded", |bench| {
            bench.iter(|| form_urlencoded::parse(black_box(query)).into_owned().collect::<Vec<_>>());
        });
        group.finish();
    }
}

fn encoding(criterion: &mut Criterion) {
    let id = PixelId::parse(b"6010000000001").expect("thirteen digits");
    let text = |text: &str| Some(text.to_owned());
    let pixel = Pixel { id, name: text("Checkout"), tag: text("checkout"), ad_account_id: text("8"), archived: false };
    let rules = Options { client_ip: ClientIp::Truncated, url_query: UrlQuery::Allowlist };
    let ip = Some(Ipv4Addr::new(203, 0, 113, 77).into());
    let client = Client { ip, user_agent: Some(AGENT), referer: Some(REFERER), ..Client::default() };
    let stamp = Stamp { id: [7; 16], received: Timestamp(1_795_496_441_123), node_id: "node-0123456789ab" };
    for (name, query) in [("pixel", PIXEL_REQUEST), ("rich", RICH_REQUEST)] {
        let event = parse(raw(query), false).expect("the bench's own request");
        let mut out = Vec::new();
        encode::event(&mut out, &stamp, &event, &client, &pixel, &rules);
        let value: serde_json::Value = serde_json::from_slice(&out).expect("a record is JSON");
        let mut group = criterion.benchmark_group(format!("encode/{name}"));
        group.throughput(Throughput::Bytes(out.len() as u64));
        group.bench_function("pixelgate", |bench| {
            bench.iter(|| {
                out.clear();
                encode::event(&mut out, &stamp, black_box(&event), &client, &pixel, &rules);
                out.len()
            });
        });
        group.bench_function("serde_json", |bench| {
            bench.iter(|| {
                out.clear();
                serde_json::to_writer(&mut out, black_box(&value)).map(|()| out.len())
            });
        });
        group.finish();
    }
}

criterion_group!(benches, parsing, encoding);
criterion_main!(benches);
