//! SIGTERM: a clean drain in the contract's order, within its deadline, with nothing acknowledged left behind.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::audit::{CLEAN, audit, balanced_stat, export};
use super::client::Client;
use super::forward_tls::{identity, serve};
use super::gateway::{PATIENCE, PIXEL, Site, until};
use super::load::Load;

#[test]
fn a_sigterm_under_load_ends_with_0_and_keeps_what_was_acknowledged() {
    for acknowledge in ["synced", "written"] {
        let site = Site::new(&format!("[journal]\nacknowledge = \"{acknowledge}\"\n"));
        let gateway = site.start();
        let load = Load::start(site.public, 6);
        load.wait_for(300);
        assert_eq!(gateway.stop(), Some(0), "{}", site.log());
        let ledger = load.finish();
        assert_eq!(audit(&ledger, &export(&site)), CLEAN, "{}", site.log());
        balanced_stat(&site);
    }
}

#[test]
fn during_the_delay_it_is_unready_and_still_serves() {
    let site = Site::with_server("shutdown_delay = \"8s\"", "");
    let gateway = site.start();
    gateway.ask_to_stop();
    let deadline = Instant::now() + PATIENCE;
    while gateway.readiness() != Some(503) {
        assert!(Instant::now() < deadline, "never unready");
        thread::sleep(Duration::from_millis(5));
    }
    let mut client = Client::connect(site.public).unwrap();
    let reply = client.get(&format!("/offsite_event.php?id={PIXEL}")).unwrap();
    assert_eq!(reply.status, 200, "load balancers that don't look at readiness yet lose nothing");
    drop(client);
    assert_eq!(gateway.wait().code(), Some(0));
    assert_eq!(export(&site).len(), 1);
}

#[test]
fn a_client_that_never_finishes_holds_the_stop_up_no_longer_than_the_timeout() {
    let site = Site::with_server("shutdown_timeout = \"2s\"\nbody_timeout = \"60s\"", "");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let head = format!("POST /offsite_event.php?id={PIXEL} HTTP/1.1\r\nHost: gateway.test\r\n");
    client.send(format!("{head}Content-Type: text/plain\r\nContent-Length: 100\r\n\r\nvalue=").as_bytes()).unwrap();
    let asked = Instant::now();
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    assert!(asked.elapsed() < Duration::from_secs(15), "it took {:?}", asked.elapsed());
    assert!(export(&site).is_empty());
}

#[test]
fn a_slow_client_is_served() {
    let site = Site::new("");
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let request = format!("GET /offsite_event.php?id={PIXEL}&value=5 HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
    for piece in request.as_bytes().chunks(7) {
        client.send(piece).unwrap();
        thread::sleep(Duration::from_millis(2)); // the slowness is the subject
    }
    assert_eq!(client.reply().unwrap().status, 200);
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(export(&site).len(), 1);
}

#[test]
fn after_the_end_nobody_listens() {
    let site = Site::new("");
    let gateway = site.start();
    let mut idle = TcpStream::connect(site.public).unwrap();
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(idle.read(&mut [0; 1]).unwrap_or(0), 0, "an idle connection is closed");
    assert!(TcpStream::connect(site.public).is_err());
}

#[test]
fn who_only_listens_or_idles_holds_nothing_up() {
    let site = Site::new("");
    let gateway = site.start();
    let mut used = Client::connect(site.public).unwrap();
    assert_eq!(used.get(&format!("/offsite_event.php?id={PIXEL}")).unwrap().status, 200);
    let unused = TcpStream::connect(site.public).unwrap();
    let mut watching = Client::connect(site.ops).unwrap();
    watching.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(watching.head().unwrap().0, 200);
    let asked = Instant::now();
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    // server.shutdown_timeout is 20 s.
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
    drop((used, unused, watching));
}

#[test]
fn one_timeout_holds_for_all_steps_together() {
    // A request that never ends, and a Kafka that is not there.
    let site = Site::with_server(
        "shutdown_timeout = \"8s\"\nbody_timeout = \"60s\"",
        "[kafka]\nbrokers = [\"127.0.0.1:1\"]\n",
    );
    let gateway = site.start();
    let mut client = Client::connect(site.public).unwrap();
    let target = format!("/offsite_event.php?id={PIXEL}");
    assert_eq!(client.get(&target).unwrap().status, 200);
    let head = format!("POST {target} HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: text/plain\r\n");
    let mut endless = TcpStream::connect(site.public).unwrap();
    endless.write_all(format!("{head}Expect: 100-continue\r\nContent-Length: 100\r\n\r\n").as_bytes()).unwrap();
    // Its go-ahead says that the gateway has the request in hand.
    let mut answer = [0; 12];
    endless.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100");
    endless.write_all(b"value=").unwrap();
    let asked = Instant::now();
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    let took = asked.elapsed();
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(12), "it took {took:?}");
    assert_eq!(export(&site).len(), 1);
}

#[test]
fn a_stop_while_connections_to_kafka_are_being_secured_is_a_clean_one() {
    // Nobody's certificates: each connection ends in the middle of its handshake and is tried again at once, so that at
    // any moment threads of the client library are inside of OpenSSL.
    let (stranger, connections) = (identity(Some("localhost"), None), Arc::new(AtomicUsize::new(0)));
    let brokers: Vec<String> = (0..8).map(|_| format!("\"localhost:{}\"", serve(&stranger, &connections))).collect();
    let site = Site::new(&format!(
        "[kafka]\nbrokers = [{}]\n[kafka.client]\n\"security.protocol\" = \"ssl\"\n\
         \"reconnect.backoff.ms\" = \"1\"\n\"reconnect.backoff.max.ms\" = \"2\"\n",
        brokers.join(", ")
    ));
    for _ in 0..20 {
        let before = connections.load(Ordering::Relaxed);
        let gateway = site.start();
        until("connections are tried again", || connections.load(Ordering::Relaxed) >= before + 30);
        assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    }
}
