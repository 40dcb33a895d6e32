//! A restart on sockets that somebody holds: nobody is refused, nobody's connection is cut, nothing is lost or doubled.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread;

use super::activator::{Activator, exit_code};
use super::audit::{CLEAN, audit, balanced_stat, export};
use super::client::Client;
use super::crowd::{Crowd, ask};
use super::desk::Desk;
use super::gateway::{PATIENCE, PIXEL, Site, until};
use super::tls_site::{self, TlsSite};

#[test]
fn a_restart_under_load_refuses_cuts_loses_and_doubles_nothing() {
    let activator = Activator::new(Site::new(""));
    let address = activator.public();
    restart_under_load(&activator, move || Client::connect(address));
}

#[test]
fn a_secured_one_does_not_either() {
    let secured = TlsSite::new("", "");
    let connector = secured.trusting().build();
    let activator = Activator::new(secured.site);
    let address = activator.public();
    restart_under_load(&activator, move || Ok(Client::over(tls_site::connect(address, &connector)?)));
}

fn restart_under_load<S: Read + Write>(
    activator: &Activator,
    connect: impl Fn() -> io::Result<Client<S>> + Clone + Send + 'static,
) {
    let mut gateway = activator.start();
    let crowd = Crowd::start(connect);
    for _ in 0..3 {
        crowd.wait_for(300);
        assert_eq!(gateway.stop().code(), Some(0), "{}", activator.log());
        gateway = activator.start();
        assert_eq!(gateway.readiness(), 200);
    }
    crowd.wait_for(300);
    let ledger = crowd.finish(|| activator.log());
    assert_eq!(gateway.stop().code(), Some(0));
    let records = export(activator.site());
    assert_eq!(audit(&ledger, &records), CLEAN);
    assert_eq!(records.len(), ledger.acknowledged.len(), "what was answered, and nothing else");
    balanced_stat(activator.site());
}

#[test]
fn who_comes_while_nobody_runs_waits_and_is_answered() {
    let activator = Activator::new(Site::new(""));
    let first = activator.start();
    // Connected, and silent until the end has begun.
    let mut early = Client::connect(activator.public()).unwrap();
    let mut served = Client::connect(activator.public()).unwrap();
    assert_eq!(ask(&mut served, "a", 1).unwrap().status, 200);
    let stopping = thread::scope(|scope| {
        let stopping = scope.spawn(move || first.stop());
        until("it stops", || activator.log().contains("shutdown") || stopping.is_finished());
        stopping.join().unwrap()
    });
    assert_eq!(stopping.code(), Some(0));
    assert!(ask(&mut early, "b", 1).is_err(), "who is silent for seconds is not waited for");
    let mut waiting = Client::connect(activator.public()).unwrap();
    waiting.stream().set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET /offsite_event.php?id={PIXEL}&nonce=c HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
    waiting.send(request.as_bytes()).unwrap();
    let second = activator.start();
    assert_eq!(waiting.reply().unwrap().status, 200);
    assert_eq!(second.stop().code(), Some(0));
    assert_eq!(export(activator.site()).len(), 2);
}

#[test]
fn who_creates_a_pixel_while_nobody_runs_waits_too() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // What the config says is not looked at: nobody may bind that address.
    let site = Site::new("[management]\nlisten = \"192.0.2.1:9\"\n");
    let activator = Activator::with(site, "management", listener);
    let first = activator.start();
    let desk = Desk { address, ..Desk::first(activator.site()) };
    let before = desk.create("before");
    assert_eq!(first.stop().code(), Some(0));
    let waiting = thread::spawn({
        let desk = desk.clone();
        move || desk.create("meanwhile")
    });
    let second = activator.start();
    let meanwhile = waiting.join().unwrap();
    assert_eq!(
        (&desk.single(&before)["name"], &desk.single(&meanwhile)["name"]),
        (&"before".into(), &"meanwhile".into())
    );
    assert_eq!(second.stop().code(), Some(0));
}

#[test]
fn what_can_not_be_meant_is_refused_with_2_and_said() {
    let activator = Activator::new(Site::new(""));
    let (listener, null) = (TcpListener::bind("127.0.0.1:0").unwrap(), File::open("/dev/null").unwrap());
    let connected = TcpStream::connect(activator.public()).unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listening = || listener.as_fd();
    for (third, variables, told) in [
        (null.as_fd(), "LISTEN_FDS=1", "descriptor 3 (public), handed over with LISTEN_FDS: fd 3 is not a socket"),
        (connected.as_fd(), "LISTEN_FDS=1", "it does not listen"),
        (datagrams.as_fd(), "LISTEN_FDS=1", "not a valid tcp socket"),
        (listening(), "LISTEN_FDS=7", "LISTEN_FDS = \"7\": allowed are 1 to 3"),
        (listening(), "LISTEN_FDS=2", "LISTEN_FDNAMES is missing"),
        (listening(), "LISTEN_FDS=1 LISTEN_FDNAMES=http", "\"http\"; allowed are public, ops and management"),
        (listening(), "LISTEN_FDS=2 LISTEN_FDNAMES=ops:ops", "each once"),
        (listening(), "LISTEN_FDS=1 LISTEN_PID=x", "LISTEN_PID = \"x\""),
    ] {
        let before = activator.log().len();
        assert_eq!(exit_code(activator.command(&third, &third, variables)), Some(2), "{variables}");
        let log = activator.log().split_off(before);
        assert!(log.contains(told), "{variables}: {log}");
    }
}
