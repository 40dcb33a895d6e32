//! What strangers try from outside: crowds of idle connections, requests within requests, floods of ids and addresses,
//! text that means something to a log, a header or a page. Nobody else notices, and memory stays bounded.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::Value;

use super::audit::export;
use super::client::{Client, Reply};
use super::gateway::{Gateway, PATIENCE, PIXEL, Site, until};

const EVENT: &str = "/offsite_event.php";
/// Requests of each flood.
const FLOOD: u32 = 15_000;
/// Requests in one write.
const BURST: u32 = 200;
/// What a flood may leave in memory: full tables of limits and pixels, and what the allocator keeps of its peak.
const GROWTH_MIB: u64 = 48;

fn resident_mib(gateway: &Gateway<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says it");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

fn event(site: &Site) -> Reply {
    Client::connect(site.public).unwrap().get(&format!("{EVENT}?id={PIXEL}&value=1&currency=GBP")).unwrap()
}

/// Sends a flood of requests, each made from its number, over some connections, so that they share commits; all are
/// answered with one of `statuses`.
fn flood(site: &Site, statuses: &[u16], request: impl Fn(u32) -> String + Sync) {
    let send = |bursts: Range<u32>| {
        let mut client = Client::connect(site.public).unwrap();
        for burst in bursts {
            let text: String = (0..BURST).map(|number| request(burst * BURST + number)).collect();
            client.send(text.as_bytes()).unwrap();
            for _ in 0..BURST {
                let reply = client.reply().unwrap();
                assert!(statuses.contains(&reply.status), "{reply:?}");
            }
        }
    };
    const SENDERS: u32 = 15;
    const EACH: u32 = FLOOD / BURST / SENDERS;
    const { assert!(SENDERS * EACH * BURST == FLOOD) };
    thread::scope(|scope| {
        for sender in 0..SENDERS {
            let send = &send;
            scope.spawn(move || send(sender * EACH..(sender + 1) * EACH));
        }
    });
}

#[test]
fn floods_of_unknown_ids_addresses_and_parameters_leave_memory_bounded() {
    let extra =
        "[limits]\nper_ip = { rate = \"1000/s\", burst = 1000 }\nper_pixel = { rate = \"100000/s\", burst = 100000 }\n";
    let site = Site::with_server("trusted_proxies = [\"127.0.0.1/32\"]", extra);
    let gateway = site.start();
    // Warm: buffers, worker tables, the journal.
    flood(&site, &[200], |number| {
        format!("GET {EVENT}?id={PIXEL} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.9.{}.1\r\n\r\n", number % 250)
    });
    let before = resident_mib(&gateway);
    let forwarded =
        |number: u32| format!("{}.{}.{}.{}", 11 + number % 7, number >> 16, number >> 8 & 255, number & 255);
    flood(&site, &[404], |number| {
        let id = 7_000_000_000_u64 + u64::from(number);
        format!("GET {EVENT}?id={id} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {}\r\n\r\n", forwarded(number))
    });
    flood(&site, &[200], |number| {
        let (low, high) = (number & 0xffff, number >> 16);
        let address = format!("2001:db8:{high:x}:{low:x}::{number:x}");
        format!("GET {EVENT}?id={PIXEL} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {address}\r\n\r\n")
    });
    flood(&site, &[200], |number| {
        let from = forwarded(number);
        format!(
            "GET {EVENT}?id={PIXEL}&n{number}=v HTTP/1.1\r\nHost: a{number}.test\r\nX-Forwarded-For: {from}\r\n\r\n"
        )
    });
    flood(&site, &[404, 405], |number| {
        format!(
            "GET /{number}/x HTTP/1.1\r\nHost: a\r\nX-N{number}: y\r\nX-Forwarded-For: {}\r\n\r\n",
            forwarded(number)
        )
    });
    let after = resident_mib(&gateway);
    eprintln!("{before} MiB before, {after} MiB after 4 x {FLOOD} requests");
    assert!(after <= before + GROWTH_MIB, "{before} MiB became {after} MiB");
    assert_eq!(event(&site).status, 200);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
}

#[test]
fn a_flood_of_pixels_each_with_its_own_events_leaves_memory_bounded() {
    let extra = "[limits]\nmode = \"observe\"\nper_pixel = { rate = \"1/s\", burst = 1 }\n\
                 [validation]\nunknown_pixel = \"flag\"\n";
    let site = Site::new(extra);
    let gateway = site.start();
    let of_pixel = |from: u64| {
        move |number: u32| {
            let id = from + u64::from(number);
            format!("GET {EVENT}?id={id}&ev=Purchase&eid={id} HTTP/1.1\r\nHost: a\r\n\r\n")
        }
    };
    // Warm, and tables that are full of pixels.
    flood(&site, &[200], of_pixel(7_000_000_000));
    let before = resident_mib(&gateway);
    for round in 1..3 {
        flood(&site, &[200], of_pixel(7_000_000_000 + round * 100_000_000));
    }
    let after = resident_mib(&gateway);
    eprintln!("{before} MiB before, {after} MiB after 2 x {FLOOD} events, each of another pixel");
    assert!(after <= before + GROWTH_MIB, "{before} MiB became {after} MiB");
    assert_eq!(event(&site).status, 200);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
}

#[test]
fn thousands_of_idle_connections_cost_nobody_else_anything() {
    // And a few more may come, who have something to say; fewer if the system allows fewer.
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX).min(30_000);
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum }).unwrap();
    let wanted = 10_000.min(most as usize - 300);
    let site = Site::with_server("max_connections = 10_100", "");
    let gateway = site.start();
    assert_eq!(event(&site).status, 200);
    let before = resident_mib(&gateway);
    let begun = Instant::now();
    let idle: Vec<TcpStream> = (0..wanted).map(|_| TcpStream::connect(site.public).unwrap()).collect();
    for _ in 0..20 {
        assert_eq!(event(&site).status, 200);
    }
    let after = resident_mib(&gateway);
    // The gateway closes those that say nothing, in time; they have to be there while others are served.
    let is_open = |stream: &&TcpStream| {
        stream.set_nonblocking(true).unwrap();
        stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    let open = idle.iter().filter(is_open).count();
    let [counted, bound] = gateway.metrics(["http_open_connections", "http_max_connections"]).unwrap();
    // Each has five seconds to say something: who took longer than that to look sees them go.
    let is_early = begun.elapsed() < Duration::from_secs(4);
    assert!(bound <= 10_100.0 && bound > 10_000.0, "{bound}");
    assert!(counted <= idle.len() as f64 + 20.0, "{counted} are counted");
    assert!(!is_early || counted >= open as f64, "{counted} of {open} are counted");
    eprintln!("{} idle connections, {open} still open: {before} MiB became {after} MiB", idle.len());
    assert!(!is_early || open == idle.len(), "{open} of {} are still open", idle.len());
    // 16 KiB each: mostly actix' own state of a connection.
    assert!(after <= before + 32 + idle.len() as u64 * 16 / 1024, "{before} MiB became {after} MiB");
    assert_eq!(gateway.readiness(), Some(200));
    drop(idle);
    assert_eq!(event(&site).status, 200);
    until("those that went are counted out", || gateway.metric("http_open_connections") == Some(0.0));
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
}

#[test]
fn a_burst_of_connections_waits_to_be_accepted() {
    let most: usize = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let site = Site::new("");
    let gateway = site.start();
    // As when it is held up for a moment: the system takes them, and none of their first packets is dropped.
    gateway.signal(Signal::STOP);
    let burst: Vec<TcpStream> =
        (0..most.min(400)).map(|_| TcpStream::connect_timeout(&site.public, PATIENCE).unwrap()).collect();
    gateway.signal(Signal::CONT);
    let mut clients: Vec<Client> = burst.into_iter().map(Client::over).collect();
    for client in &mut clients {
        client.stream().set_read_timeout(Some(PATIENCE)).unwrap();
        client.send(format!("GET {EVENT}?id={PIXEL} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.reply().unwrap().status, 200);
    }
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
}

#[test]
fn a_request_hidden_in_another_is_no_event() {
    let site = Site::new("");
    let gateway = site.start();
    let hidden = format!("GET {EVENT}?id={PIXEL}&smuggled=1 HTTP/1.1\r\nHost: a\r\n\r\n");
    let length = hidden.len();
    let post = format!("POST {EVENT}?id={PIXEL} HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n");
    let chunked = format!("{length:x}\r\n{hidden}\r\n0\r\n\r\n");
    let ambiguous = [
        // Two lengths, of either order; two ways to say it; ways to say it wrong.
        format!("{post}Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n{chunked}"),
        format!("{post}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{hidden}"),
        format!("{post}Content-Length: {length}\r\nContent-Length: 0\r\n\r\n{hidden}"),
        format!("{post}Content-Length: +0\r\n\r\n{hidden}"),
        format!("{post}Content-Length: 0, {length}\r\n\r\n{hidden}"),
        format!("{post}Content-Length: 0x0\r\n\r\n{hidden}"),
        format!("{post}Content-Length : 0\r\n\r\n{hidden}"),
        format!("{post}Transfer-Encoding: xchunked\r\n\r\n{chunked}"),
        format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n{chunked}"),
        format!("{post}Transfer-Encoding : chunked\r\n\r\n{chunked}"),
        format!("{post}X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n-1\r\n{hidden}"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{hidden}"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n1;x=\n{hidden}"),
    ];
    for (number, bytes) in ambiguous.iter().enumerate() {
        let mut client = Client::connect(site.public).unwrap();
        client.send(bytes.as_bytes()).unwrap();
        client.half_close().unwrap();
        // It is refused, and nothing behind it is read.
        let mut answers = Vec::new();
        while let Ok(reply) = client.reply() {
            answers.push(reply.status);
        }
        assert_eq!(answers, [400], "form {number}");
    }
    assert_eq!(event(&site).status, 200);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    for record in export(&site) {
        let record: Value = serde_json::from_str(&record).unwrap();
        assert_eq!(record["params"].get("smuggled"), None, "{record}");
    }
    assert!(!site.log().contains("panicked"), "{}", site.log());
}

#[test]
fn text_that_means_something_elsewhere_means_nothing_here() {
    let evil = "%0d%0aX-Injected:%20yes%0d%0a%1b%5b31m%3Cscript%3Ealert(1)%3C/script%3E%22%27%5c%00";
    let plain = "<script>alert(1)</script>\"'";
    let site = Site::new("");
    let gateway = site.start();
    let mut watching = Client::connect(site.ops).unwrap();
    watching.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(watching.head().unwrap().0, 200);
    let targets = [
        format!("{EVENT}?id={PIXEL}&ev={evil}&eid={evil}&cd[{evil}]={evil}&dl={evil}&rl={evil}"),
        format!("{EVENT}?id={evil}"),
        format!("{EVENT}?id={PIXEL}&value={evil}&currency={evil}"),
        format!("/{evil}"),
        format!("/offsitepixels/{evil}"),
        format!("/{evil}/fp.js"),
    ];
    for target in &targets {
        for method in ["GET", "POST", "DELETE"] {
            let lines = format!("User-Agent: {plain}\r\nReferer: http://a/{plain}\r\nX-Request-Id: {plain}\r\n");
            let head = format!("{method} {target} HTTP/1.1\r\nHost: {plain}\r\nAccept: application/json\r\n{lines}");
            let mut client = Client::connect(site.public).unwrap();
            client.send(format!("{head}Origin: http://{plain}\r\nContent-Length: 0\r\n\r\n").as_bytes()).unwrap();
            let Ok(reply) = client.reply() else { continue };
            assert_eq!(reply.header("x-injected"), None, "{method} {target}: {reply:?}");
            let kind = reply.header("content-type").unwrap_or_default();
            assert!(!kind.starts_with("text/html"), "{method} {target}: {reply:?}");
            let body = String::from_utf8_lossy(&reply.body);
            // JSON may say what was wrong, in JSON's own words; nothing else may repeat it.
            let repeats = body.contains("<script>alert");
            assert!(!repeats || kind.contains("json") && reply.header("x-content-type-options").is_some(), "{body}");
        }
    }
    // The live feed says it in one line of JSON each.
    assert_eq!(event(&site).status, 200);
    let mut seen = String::new();
    until("the feed shows the last event", || {
        seen += &String::from_utf8_lossy(&watching.chunk().unwrap().expect("it goes on"));
        seen.matches("\"value\":\"1\"").count() > 0
    });
    assert!(seen.lines().all(|line| !line.starts_with("X-Injected") && !line.contains('\u{1b}')), "{seen}");
    for line in seen.lines().filter_map(|line| line.strip_prefix("data: ")) {
        serde_json::from_str::<Value>(line).unwrap();
    }
    drop(watching);
    // Every field, in a body.
    let field = format!("{plain}\r\nX-Injected: yes\u{1b}[31m");
    let names = ["ev", "eid", "dl", "rl", "fbp", "fbc", "consent", "value", "currency", "cd[a]", field.as_str()];
    let members = names.iter().map(|name| ((*name).to_owned(), Value::from(field.as_str())));
    let mut body: serde_json::Map<String, Value> = members.collect();
    body.insert("id".into(), PIXEL.into());
    let body = Value::Object(body).to_string();
    let reply = Client::connect(site.public).unwrap().post(EVENT, "application/json", &body).unwrap();
    assert_eq!(reply.header("x-injected"), None, "{reply:?}");
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    let hostile = export(&site).iter().filter(|line| line.contains("<script>alert(1)")).count();
    assert!(hostile >= 2, "it was recorded, by request and by body: {hostile}");
    let log = site.log();
    assert!(!log.contains('\u{1b}') && !log.contains("\nX-Injected"), "{log}");
    assert!(export(&site).iter().all(|line| !line.contains('\u{1b}') && !line.contains('\r')));
}

/// The parser panics at the name of a header of 64 KiB, which is refused before it unless it hides behind another
/// request. Whatever becomes of that connection, the program and everybody else go on, and the log stays in its lines.
#[test]
fn a_name_that_the_parser_panics_at_costs_its_own_connection_only() {
    let site = Site::new("");
    let gateway = site.start();
    let mut other = Client::connect(site.public).unwrap();
    let first = format!("GET {EVENT}?id={PIXEL} HTTP/1.1\r\nHost: a\r\n\r\n");
    let second = format!("GET {EVENT}?id={PIXEL} HTTP/1.1\r\nHost: a\r\n{}: x\r\n\r\n", "n".repeat(70_000));
    for _ in 0..5 {
        let mut client = Client::connect(site.public).unwrap();
        client.send((first.clone() + &second).as_bytes()).ok();
        while client.reply().is_ok() {}
        assert_eq!(other.get(&format!("{EVENT}?id={PIXEL}")).unwrap().status, 200);
    }
    assert_eq!(gateway.readiness(), Some(200));
    let log = site.log();
    assert!(!log.contains("stack backtrace") && !log.contains("RUST_BACKTRACE"), "{log}");
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
}
