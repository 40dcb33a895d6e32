//! `registry.mode = "proxy"` with an upstream that misbehaves: clients are told in time, and events don't notice.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::client::{Client, Reply};
use super::forward::{ask, proxy_site};
use super::gateway::{PIXEL, Site, until};
use super::upstream::{Act, Upstream, json};

const GET: &str = "GET /offsitepixels HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST /offsitepixels HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na=b";

fn error_type(reply: &Reply) -> String {
    let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    body["error"]["type"].as_str().unwrap().to_owned()
}

fn event(site: &Site) -> Reply {
    Client::connect(site.public).unwrap().get(&format!("/offsite_event.php?id={PIXEL}")).unwrap()
}

#[test]
fn answers_that_are_none_are_502_with_a_request_id() {
    for what in ["", "SSH-2.0-x\r\n", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"] {
        let upstream = Upstream::start(move |_| Act::SayAndClose(what.as_bytes().to_vec()));
        let site = proxy_site(&upstream, "");
        let gateway = site.start();
        let reply = ask(&site, &POST.replace("Host", "X-Request-Id: mine\r\nHost"));
        assert_eq!((reply.status, error_type(&reply).as_str()), (502, "upstream_unavailable"), "{what}");
        assert_eq!(reply.header("x-request-id"), Some("mine"));
        assert!(!String::from_utf8_lossy(&reply.body).contains("127.0.0.1"), "no addresses");
        assert_eq!(upstream.seen().len(), 1, "a write is asked once: {what}");
        assert_eq!(ask(&site, GET).status, 502);
        assert_eq!(upstream.seen().len(), 3, "a read is asked twice: {what}");
        assert_eq!(gateway.stop(), Some(0));
    }
}

#[test]
fn a_head_without_end_is_502() {
    let upstream = Upstream::start(|_| {
        let line = format!("X-A: {}\r\n", "a".repeat(1000));
        Act::SayAndClose(format!("HTTP/1.1 200 OK\r\n{}", line.repeat(1000)).into_bytes())
    });
    let site = proxy_site(&upstream, "");
    let gateway = site.start();
    assert_eq!(ask(&site, POST).status, 502);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_read_is_repeated_once_when_its_connection_was_lost() {
    let asked = AtomicUsize::new(0);
    let upstream = Upstream::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Act::SayAndClose(Vec::new()),
        _ => json("[]"),
    });
    let site = proxy_site(&upstream, "");
    let gateway = site.start();
    assert_eq!(ask(&site, GET).body, b"[]");
    assert_eq!(upstream.seen().len(), 2);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn connections_that_the_upstream_closes_cost_nothing() {
    let upstream = Upstream::start(|_| Act::SayAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]".to_vec()));
    let site = proxy_site(&upstream, "");
    let gateway = site.start();
    for _ in 0..20 {
        assert_eq!(ask(&site, GET).body, b"[]");
        assert_eq!(ask(&site, POST).body, b"[]");
    }
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_hanging_upstream_is_504_within_its_time() {
    let upstream = Upstream::start(|seen| match seen.line.starts_with("POST") {
        true => Act::Drip(vec![b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]".to_vec()], Duration::from_millis(600)),
        false => Act::Hang(b"HTTP/1.1 200".to_vec()),
    });
    let site = proxy_site(&upstream, "upstream_timeout = \"3s\"");
    let gateway = site.start();
    let began = Instant::now();
    let reply = ask(&site, GET);
    assert_eq!((reply.status, error_type(&reply).as_str()), (504, "upstream_timeout"));
    assert!(began.elapsed() >= Duration::from_secs(3));
    assert_eq!(upstream.seen().len(), 1, "who was too slow once is not asked again");
    assert_eq!(ask(&site, POST).body, b"[]", "slow, and within the limit");
    assert_eq!(gateway.stop(), Some(0));
}

/// A listener whose queue is full: it answers no further connection, as a host does that drops packets.
struct Full {
    _socket: std::os::fd::OwnedFd,
    _queued: Vec<TcpStream>,
    address: std::net::SocketAddr,
}

impl Full {
    fn start() -> Full {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listen(&socket, 0).unwrap();
        let address = std::net::SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
        let soon = Duration::from_millis(300);
        let queued = (0..8).map_while(|_| TcpStream::connect_timeout(&address, soon).ok()).collect();
        assert!(TcpStream::connect_timeout(&address, soon).is_err(), "the queue is not full");
        Full { _socket: socket, _queued: queued, address }
    }
}

#[test]
fn a_connection_that_is_not_made_is_504_within_its_time() {
    let full = Full::start();
    let upstream = Upstream::start(|_| json("[]"));
    let site = proxy_site(&upstream, "upstream_timeout = \"500ms\"");
    site.reconfigure(&upstream.address.to_string(), &full.address.to_string());
    let gateway = site.start();
    let reply = ask(&site, GET);
    assert_eq!((reply.status, error_type(&reply).as_str()), (504, "upstream_timeout"));
    assert_eq!(reply.header("x-request-id").unwrap().len(), 36);
    assert_eq!(event(&site).status, 200);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_token_is_in_no_log_error_or_figure() {
    let upstream = Upstream::start(|seen| match seen.line.starts_with("POST") {
        true => Act::SayAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[".to_vec()),
        false => Act::SayAndClose(Vec::new()),
    });
    let site = proxy_site(&upstream, "upstream_token = \"ourOwnSecret\"\nad_accounts = [\"9\"]\nlearn = \"any\"");
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), config + "[log]\nlevel = \"trace\"\n").unwrap();
    let gateway = site.start();
    let with_token = |request: &str| request.replace("Host: a", "Host: a\r\nAuthorization: OAuth theirSecret");
    let reply = ask(&site, &with_token(GET));
    assert_eq!(reply.status, 502);
    let mut client = Client::connect(site.public).unwrap();
    client.send(with_token(POST).as_bytes()).unwrap();
    assert!(client.reply().is_err());
    let page = Client::connect(site.ops).unwrap().get("/metrics").unwrap();
    let config = site.run(&["config"]);
    assert_eq!(gateway.stop(), Some(0));
    let texts = [reply.body, page.body, site.log().into_bytes(), config.stdout];
    for text in texts.map(|text| String::from_utf8(text).unwrap()) {
        assert!(!text.is_empty() && !text.contains("Secret"), "{text}");
    }
}

#[test]
fn a_body_that_breaks_off_breaks_off_for_the_client() {
    for (number, head) in ["Content-Length: 100\r\n\r\n[{\"id\"", "Transfer-Encoding: chunked\r\n\r\n6\r\n[{\"id\"\r\n"]
        .iter()
        .enumerate()
    {
        for how in 0..3 {
            let bytes = format!("HTTP/1.1 200 OK\r\n{head}").into_bytes();
            let upstream = Upstream::start(move |_| match how {
                0 => Act::SayAndClose(bytes.clone()),
                1 => Act::SayAndReset(bytes.clone()),
                _ => Act::Hang(bytes.clone()),
            });
            let site = proxy_site(&upstream, "upstream_timeout = \"3s\"");
            let gateway = site.start();
            let mut client = Client::connect(site.public).unwrap();
            client.send(GET.as_bytes()).unwrap();
            let error = client.reply().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{number} {how}: {error}");
            assert_eq!(event(&site).status, 200);
            assert_eq!(gateway.stop(), Some(0));
        }
    }
}

#[test]
fn an_upstream_that_is_down_is_left_alone_and_found_again() {
    let upstream = Upstream::start(|_| json("[]"));
    let address = upstream.address;
    let site = proxy_site(&upstream, "");
    let gateway = site.start();
    assert_eq!(ask(&site, GET).status, 200);
    drop(upstream);
    // Connections to it are refused from now on, unless somebody else takes the port.
    until("the port is free", || TcpListener::bind(address).is_ok());
    let replies: Vec<Reply> = (0..10).map(|_| ask(&site, POST)).collect();
    assert!(replies.iter().all(|reply| reply.status == 502), "{replies:?}");
    assert!(replies.iter().any(|reply| reply.header("retry-after").is_some()), "the breaker is open");
    assert_eq!(event(&site).status, 200);
    let upstream = Upstream::start_on(address, |_| json("[]"));
    until("the upstream is found again", || ask(&site, POST).status == 200);
    drop(upstream);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn events_do_not_wait_for_calls_that_hang() {
    let upstream = Upstream::start(|_| Act::Hang(Vec::new()));
    let site = proxy_site(&upstream, "upstream_timeout = \"20s\"");
    let gateway = site.start();
    let mut hanging: Vec<Client> = (0..256).map(|_| Client::connect(site.public).unwrap()).collect();
    for client in &mut hanging {
        client.send(POST.as_bytes()).unwrap();
    }
    until("all calls hang", || upstream.seen().len() == 256);
    let reply = ask(&site, POST);
    assert_eq!((reply.status, error_type(&reply).as_str()), (503, "upstream_busy"));
    let mut client = Client::connect(site.public).unwrap();
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(client.get(&format!("/offsite_event.php?id={PIXEL}")).unwrap().status, 200);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "twenty events took {:?}", began.elapsed());
    drop(hanging);
    drop(client);
    drop(upstream);
    gateway.kill();
}

#[test]
fn a_client_that_does_not_read_loses_its_reply_and_nobody_else_s() {
    // Made before it is asked for: a busy machine can take longer for it than the limit below.
    let mut large = b"HTTP/1.1 200 OK\r\nContent-Length: 60000000\r\n\r\n".to_vec();
    large.extend_from_slice("x".repeat(60_000_000).as_bytes());
    let upstream = Upstream::start(move |seen| match seen.line.contains("/1 ") {
        true => Act::Say(large.clone()),
        false => json("[]"),
    });
    let site = proxy_site(&upstream, "upstream_timeout = \"3s\"");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    client.send(b"GET /offsitepixels/1 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    until("it was asked", || !upstream.seen().is_empty());
    assert_eq!(ask(&site, GET).status, 200);
    // Longer than the limit, during which the client reads nothing.
    thread::sleep(Duration::from_secs(7));
    assert!(client.reply().is_err(), "the reply was given up");
    assert_eq!(ask(&site, GET).status, 200);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn calls_are_counted_by_class_of_status() {
    let upstream = Upstream::start(|seen| match seen.line.contains("/4 ") {
        true => Act::Say(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n".to_vec()),
        false => json("[]"),
    });
    let site = proxy_site(&upstream, "");
    let gateway = site.start();
    assert_eq!(ask(&site, GET).status, 200);
    assert_eq!(ask(&site, &GET.replace("pixels", "pixels/4")).status, 404);
    assert_eq!(ask(&site, &GET.replace("pixels", "pixels/4")).status, 404);
    let page = Client::connect(site.ops).unwrap().get("/metrics").unwrap();
    let page = String::from_utf8(page.body).unwrap();
    for (class, count) in [("2xx", 1), ("4xx", 2), ("5xx", 0)] {
        let line = format!("pixelgate_upstream_request_duration_seconds_count{{status_class=\"{class}\"}} {count}\n");
        assert!(page.contains(&line), "{line}");
    }
    assert_eq!(gateway.stop(), Some(0));
}
