//! Instructions per event, counted by callgrind: the same on a busy machine as on an idle one, so they can be held.
//!
//! `cargo bench --bench instructions`; needs valgrind. Each step runs a thousand and two thousand times, and the
//! difference is what a thousand cost. What is above its ceiling fails, and so does what has become so cheap that the
//! ceiling says nothing any more.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is the result")]
#![expect(clippy::unwrap_used, reason = "a bench that can't run should say where it stopped")]

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::process::{Command, ExitCode};

use pixelgate::event::encode::{self, Stamp};
use pixelgate::event::parse::parse;
use pixelgate::event::privacy::{ClientIp, Options, UrlQuery};
use pixelgate::event::{Body, Client, RawEvent};
use pixelgate::pixel::{Pixel, PixelId};
use pixelgate::time::Timestamp;

const STEP: &str = "PIXELGATE_BENCH_STEP";
const THOUSAND: u64 = 1000;
/// A step may become this much cheaper before its ceiling has to follow.
const SLACK: u64 = 2;

/// Steps with the most instructions that one may take: about a fifth more than it takes.
const STEPS: [(&str, u64); 6] = [
    ("parse pixel", 5_900),
    ("parse rich", 19_000),
    ("parse json", 10_000),
    ("parse 100 parameters", 209_000),
    ("encode pixel", 6_700),
    ("encode rich", 9_100),
];

const PIXEL_REQUEST: &str = "id=6010000000001&value=24.99&currency=EUR&order=81723";
const RICH_REQUEST: &str = "id=6010000000001&value=1249.00&currency=usd&ev=Purchase&eid=order-81723&dl=https%3A%2F%2F\
     www.shop.example%2Fcheckout%2Fthanks%3Futm_source%3Dnews%26order%3D81723\
     &rl=https%3A%2F%2Fsearch.example%2F&ts=1795496441123\
     &st=1795496441300&fbp=fb.1.1795496441000.1234567890&cd%5Bcontents%5D=shoe%2042&cd%5Bnum%5D=2";
const JSON: &str = "{\"id\":\"6010000000001\",\"value\":\"24.99\",\"currency\":\"EUR\",\"order\":\"81723\"}";
const AGENT: &[u8] =
    b"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0";
const REFERER: &[u8] = b"https://www.shop.example/checkout/thanks?utm_source=news&order=81723";

fn main() -> ExitCode {
    match std::env::var(STEP) {
        Ok(step) => {
            let (step, times) = step.split_once('*').unwrap();
            run(step, times.parse().unwrap());
            ExitCode::SUCCESS
        }
        Err(_) => check(),
    }
}

/// Counts all steps and judges them.
fn check() -> ExitCode {
    println!("| step | instructions | at most |\n|---|---|---|");
    let mut is_fine = true;
    for (step, most) in STEPS {
        let one = (count(step, 2 * THOUSAND) - count(step, THOUSAND)) / THOUSAND;
        println!("| {step} | {one} | {most} |");
        if one > most {
            eprintln!(
                "{step}: {one} instructions, at most {most}: make it cheaper, or say in the commit why it costs more"
            );
            is_fine = false;
        } else if one * SLACK < most {
            eprintln!("{step}: {one} instructions, and the ceiling of {most} would not notice a doubling: lower it");
            is_fine = false;
        }
    }
    if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Instructions of a whole run of this program.
fn count(step: &str, times: u64) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(std::env::current_exe().unwrap());
    let output = valgrind.env(STEP, format!("{step}*{times}")).output();
    let output = output.expect("this bench needs valgrind: apt-get install valgrind");
    let said = String::from_utf8_lossy(&output.stderr);
    let total = said.lines().find_map(|line| line.split_once("Collected :")).map(|(_, total)| total.trim());
    total.and_then(|total| total.parse().ok()).unwrap_or_else(|| panic!("valgrind says: {said}"))
}

fn run(step: &str, times: u64) {
    let many: String = (0..100).map(|index| format!("&p{index}=value+{index}")).collect();
    let many = format!("{PIXEL_REQUEST}{many}");
    let (what, name) = step.split_once(' ').unwrap();
    let raw = match name {
        "pixel" => of_query(PIXEL_REQUEST),
        "rich" => of_query(RICH_REQUEST),
        "json" => RawEvent { query: b"", body: Body::Json(JSON.as_bytes()), ..RawEvent::default() },
        _ => of_query(&many),
    };
    match what {
        "parse" => (0..times).for_each(|_| drop(black_box(parse(black_box(raw), false)))),
        _ => encode(raw, times),
    }
}

fn of_query(query: &str) -> RawEvent<'_> {
    RawEvent { query: query.as_bytes(), body: Body::None, ..RawEvent::default() }
}

fn encode(raw: RawEvent<'_>, times: u64) {
    let id = PixelId::parse(b"6010000000001").unwrap();
    let text = |text: &str| Some(text.to_owned());
    let pixel = Pixel { id, name: text("Checkout"), tag: text("checkout"), ad_account_id: text("8"), archived: false };
    let rules = Options { client_ip: ClientIp::Truncated, url_query: UrlQuery::Allowlist };
    let ip = Some(Ipv4Addr::new(203, 0, 113, 77).into());
    let client = Client { ip, user_agent: Some(AGENT), referer: Some(REFERER), ..Client::default() };
    let stamp = Stamp { id: [7; 16], received: Timestamp(1_795_496_441_123), node_id: "node-0123456789ab" };
    let event = parse(raw, false).unwrap();
    let mut out = Vec::new();
    for _ in 0..times {
        out.clear();
        encode::event(&mut out, &stamp, black_box(&event), &client, &pixel, &rules);
        black_box(&out);
    }
}
