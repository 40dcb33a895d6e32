//! TLS in the binary: who is let in by what, and certificates that are replaced under load.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use openssl::pkey::PKey;
use openssl::ssl::SslVersion;
use rustix::process::Signal;

use super::audit::{CLEAN, audit, balanced_stat, export};
use super::client::Client;
use super::forward_tls::identity_for;
use super::gateway::{PATIENCE, PIXEL, binary, output, until};
use super::load::Ledger;
use super::tls_site::{HOST, TlsSite, connect, served};

fn event(nonce: &str) -> String {
    format!("/offsite_event.php?id={PIXEL}&value=1.50&currency=GBP&nonce={nonce}")
}

#[test]
fn events_come_in_by_http_1_1_in_one_piece_or_many_and_each_answer_is_secured() {
    let secured =
        TlsSite::new("tls.hsts_max_age = \"365d\"\ntls.hsts_include_subdomains = true\ntrusted_proxies = []", "");
    let gateway = secured.site.start();
    let mut client = secured.connect().unwrap();
    let reply = client.get(&event("a")).unwrap();
    let hsts = Some("max-age=31536000; includeSubDomains");
    assert_eq!((reply.status, reply.header("strict-transport-security")), (200, hsts));
    let pairs = format!("id={PIXEL}&nonce=b");
    let reply = client.post("/offsite_event", "application/x-www-form-urlencoded", &pairs).unwrap();
    assert_eq!((reply.status, reply.header("strict-transport-security")), (204, hsts));
    let reply = client.get("/offsite_event.php?id=0").unwrap();
    assert_eq!((reply.reason(), reply.header("strict-transport-security")), (Some("invalid_id"), hsts));
    // Several at once on the short way, then one in pieces on the long one, which keeps the connection.
    let request = |nonce: &str| format!("GET {} HTTP/1.1\r\nHost: {HOST}\r\n\r\n", event(nonce));
    client.send((request("c") + &request("d") + &request("e")).as_bytes()).unwrap();
    for _ in 0..3 {
        assert_eq!(client.reply().unwrap().status, 200);
    }
    let pieces = request("f");
    let (head, rest) = pieces.split_at(20);
    client.send(head.as_bytes()).unwrap();
    client.send(rest.as_bytes()).unwrap();
    let reply = client.reply().unwrap();
    assert_eq!((reply.status, reply.header("strict-transport-security")), (200, hsts));
    let reply = client.get("/fp.js").unwrap();
    assert_eq!((reply.status, reply.header("strict-transport-security")), (200, hsts));
    // Longer than what the short way reads at once.
    let body = format!("id={PIXEL}&nonce=g&filler={}", "x".repeat(40_000));
    let mut second = secured.connect().unwrap();
    assert_eq!(second.post("/offsite_event", "text/plain", &body).unwrap().status, 204);
    assert_eq!(gateway.metric("tls_handshakes_total{outcome=\"completed\"}"), Some(2.0));
    let printed = fs::read_to_string(secured.site.config().with_file_name("stdout.log")).unwrap();
    assert!(printed.contains(&format!("curl -k -i \"https://{}/", secured.site.public)), "{printed}");
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(export(&secured.site).len(), 7);
}

#[test]
fn the_snippet_and_whom_it_is_asked_by_are_https() {
    let secured = TlsSite::new("", "");
    let gateway = secured.site.start();
    let token = fs::read_to_string(secured.site.data().join("management-token")).unwrap();
    let mut client = secured.connect().unwrap();
    let body = "fb_ad_account_id=9&name=Shoes&tag=CHECKOUT";
    let head = format!("POST /offsitepixels HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: OAuth {}\r\n", token.trim());
    let kind = "Content-Type: application/x-www-form-urlencoded";
    client.send(format!("{head}{kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    assert_eq!(client.reply().unwrap().status, 200);
    client
        .send(
            format!(
                "GET /offsitepixels?fb_ad_account_id=9 HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: OAuth {}\r\n\r\n",
                token.trim()
            )
            .as_bytes(),
        )
        .unwrap();
    let pixels = String::from_utf8(client.reply().unwrap().body).unwrap();
    assert!(pixels.contains(&format!("https://{}", secured.site.public)), "{pixels}");
    // The console's trial goes the same way.
    let mut console = Client::connect(secured.site.ops).unwrap();
    let trial = format!("POST /api/trial?id={PIXEL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    console.send(trial.as_bytes()).unwrap();
    let told = String::from_utf8(console.reply().unwrap().body).unwrap();
    assert!(told.contains("accepted, record"), "{told}");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn handshakes_without_common_ground_fail_and_those_without_an_end_are_ended() {
    let secured = TlsSite::new("", "");
    let gateway = secured.site.start();
    let failed = || gateway.metric("tls_handshakes_total{outcome=\"failed\"}").unwrap();
    // Held meanwhile: silent, half a greeting, and a request that never ends on a connection that is secured.
    let silent = TcpStream::connect(secured.site.public).unwrap();
    let mut half = TcpStream::connect(secured.site.public).unwrap();
    half.write_all(&[0x16, 0x03, 0x01, 0x01, 0x00, 0x01]).unwrap();
    let mut slow = secured.connect().unwrap();
    slow.send(b"GET /offsite_event.php HTTP/1.1\r\nX-Slow: ").unwrap();
    let idle = secured.connect().unwrap();

    let mut old = secured.trusting();
    old.set_min_proto_version(None).unwrap();
    old.set_max_proto_version(Some(SslVersion::TLS1_1)).unwrap();
    old.set_cipher_list("DEFAULT:@SECLEVEL=0").unwrap();
    assert!(connect(secured.site.public, &old.build()).is_err());
    let mut stranger = secured.trusting();
    stranger.set_alpn_protos(b"\x03foo").unwrap();
    let refused =
        connect(secured.site.public, &stranger.build()).is_err_and(|error| error.to_string().contains("alert"));
    assert!(refused, "no protocol in common");
    let mut plain = Client::connect(secured.site.public).unwrap();
    assert!(plain.get(&event("plain")).is_err());
    until("they are counted", || failed() >= 3.0);

    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let mut exactly = secured.trusting();
        exactly.set_min_proto_version(Some(version)).unwrap();
        exactly.set_max_proto_version(Some(version)).unwrap();
        let mut client = Client::over(connect(secured.site.public, &exactly.build()).unwrap());
        assert_eq!(client.get(&event("version")).unwrap().status, 200);
    }
    for mut stream in [silent, half] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        while stream.read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
    }
    until("both are counted", || gateway.metric("tls_handshakes_total{outcome=\"timed_out\"}") == Some(2.0));
    assert_eq!(slow.reply().unwrap().status, 408);
    let mut idle = idle;
    assert!(idle.reply().is_err(), "an idle connection is closed");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn handshakes_count_among_connections() {
    let secured = TlsSite::new("max_connections = 2", "");
    let gateway = secured.site.start();
    let timed_out = || gateway.metric("tls_handshakes_total{outcome=\"timed_out\"}").unwrap();
    let silent: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(secured.site.public).unwrap()).collect();
    // Those are first in the queue, so the next waits until one of them is given up, and is then served.
    let mut client = secured.connect().unwrap();
    assert!(timed_out() >= 1.0);
    assert_eq!(client.get(&event("later")).unwrap().status, 200);
    drop(silent);
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(export(&secured.site).len(), 1);
}

#[test]
fn only_1_3_if_so_configured() {
    let secured = TlsSite::new("tls.min_version = \"1.3\"", "");
    let gateway = secured.site.start();
    let mut older = secured.trusting();
    older.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
    assert!(connect(secured.site.public, &older.build()).is_err());
    let reply = secured.connect().unwrap().get(&event("a")).unwrap();
    assert_eq!((reply.status, reply.header("strict-transport-security")), (200, None), "nobody asked for it");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_pair_that_can_not_be_served_is_refused_with_2_and_told_by_check() {
    let secured = TlsSite::new("", "");
    let site = &secured.site;
    let (key, certificate) = (fs::read(secured.key()).unwrap(), fs::read(secured.certificate()).unwrap());
    let stranger = secured.issue().key.private_key_to_pem_pkcs8().unwrap();
    let encrypted = PKey::private_key_from_pem(&key).unwrap();
    let cipher = openssl::symm::Cipher::aes_256_cbc();
    let encrypted = encrypted.private_key_to_pem_pkcs8_passphrase(cipher, b"secret").unwrap();
    for (file, bytes, told) in [
        (secured.key(), &stranger[..], "server.tls.key: {}: it is not the key of the certificate"),
        (secured.key(), &b"nothing"[..], "server.tls.key: {}: it has no key that can be read"),
        (secured.key(), &encrypted[..], "server.tls.key: {}: it has no key that can be read"),
        (secured.key(), &certificate[..], "server.tls.key: {}: it has no key that can be read"),
        (secured.certificate(), &b""[..], "server.tls.certificate: {}: it has no certificate"),
        (secured.certificate(), &key[..], "server.tls.certificate: {}: it has no certificate"),
    ] {
        let before = fs::read(&file).unwrap();
        fs::write(&file, bytes).unwrap();
        let told = told.replace("{}", &file.display().to_string());
        let check = site.run(&["check"]);
        let printed = String::from_utf8(check.stdout).unwrap();
        assert_eq!(check.status.code(), Some(2), "{printed}");
        assert!(printed.contains(&told) && printed.contains("allowed is a PEM file"), "{printed}");
        let serve = site.run(&["serve"]);
        let printed = String::from_utf8(serve.stderr).unwrap();
        assert_eq!(serve.status.code(), Some(2), "{printed}");
        assert!(printed.contains(&told), "{printed}");
        fs::write(&file, before).unwrap();
    }
    fs::remove_file(secured.key()).unwrap();
    let printed = String::from_utf8(site.run(&["check"]).stdout).unwrap();
    assert!(printed.contains("key.pem: No such file"), "{printed}");
}

#[test]
fn check_warns_of_what_will_not_do_for_long() {
    let secured = TlsSite::new("", "");
    let warned = || {
        let check = secured.site.run(&["check"]);
        assert_eq!(check.status.code(), Some(0));
        String::from_utf8(check.stdout).unwrap()
    };
    for (days, told) in [(-10..-1, "it expired"), (-1..5, "it expires"), (1..90, "it is not valid before")] {
        secured.install(&identity_for(Some(HOST), Some(&secured.authority), days));
        let printed = warned();
        assert!(printed.contains("warning: server.tls.certificate: ") && printed.contains(told), "{told}: {printed}");
    }
    fs::set_permissions(secured.key(), Permissions::from_mode(0o644)).unwrap();
    assert!(warned().contains("warning: server.tls.key: "), "{}", warned());
    let site =
        super::gateway::Site::with_server("tls.certificate = \"x\"\ntls.keys = \"y\"\ntls.hsts_max_age = \"1d\"", "");
    let printed = String::from_utf8(site.run(&["check"]).stdout).unwrap();
    for told in ["server.tls.key: missing, and needed", "server.tls.keys: unknown key", "nearest is server.tls.key"] {
        assert!(printed.contains(told), "{told}: {printed}");
    }
}

#[test]
fn the_deployed_config_fits_the_program() {
    let secured = TlsSite::new("", "");
    let mut check = binary();
    check.args(["check", "--config"]).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/pixelgate-tls.toml"));
    check.env("PIXELGATE_DATA_DIR", secured.site.data());
    check.env("PIXELGATE_SERVER__TLS__CERTIFICATE", secured.certificate());
    check.env("PIXELGATE_SERVER__TLS__KEY", secured.key());
    let checked = output(check);
    let printed = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(
        (checked.status.code(), printed.matches("server.tls").count()),
        (Some(0), 1),
        "it expires soon: {printed}"
    );
}

/// A visitor after the other, each with some requests on a secured connection of its own; what could not be done.
fn visit(secured: &TlsSite, name: u64, stop: &AtomicBool, acknowledged: &AtomicU64) -> (Ledger, Vec<String>) {
    let (mut ledger, mut failures) = (Ledger::default(), Vec::new());
    let connector = secured.trusting().build();
    for visitor in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut client = match connect(secured.site.public, &connector) {
            Ok(stream) => Client::over(stream),
            Err(error) => {
                failures.push(format!("handshake: {error}"));
                continue;
            }
        };
        for request in 0..20 {
            let nonce = format!("{name}-{visitor}-{request}");
            ledger.sent.insert(nonce.clone());
            match client.get(&event(&nonce)) {
                Ok(reply) => {
                    ledger.acknowledged.insert(reply.record_id().unwrap().to_owned(), nonce);
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    ledger.open.insert(nonce);
                    failures.push(format!("request: {error}"));
                    break;
                }
            }
        }
    }
    (ledger, failures)
}

#[test]
fn certificates_are_replaced_under_load_and_bad_ones_are_not_taken() {
    // Connections are kept for longer than all of this takes.
    let secured = Arc::new(TlsSite::new("trusted_proxies = [\"127.0.0.1\"]", ""));
    let site = &secured.site;
    let gateway = site.start();
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let crowds: Vec<_> = (0..3)
        .map(|name| {
            let (secured, stop, acknowledged) = (Arc::clone(&secured), Arc::clone(&stop), Arc::clone(&acknowledged));
            thread::spawn(move || visit(&secured, name, &stop, &acknowledged))
        })
        .collect();
    let reloads = |outcome: &str| gateway.metric(&format!("tls_certificate_reloads_total{{outcome=\"{outcome}\"}}"));
    let expiry = || gateway.metric("tls_certificate_expiry_timestamp_seconds").unwrap();
    let mut lasting = secured.connect().unwrap();
    assert_eq!(lasting.get(&event("lasting-1")).unwrap().status, 200);
    let first = served(&lasting);
    let expires = expiry();

    // Found by looking, one file after the other.
    let second = identity_for(Some(HOST), Some(&secured.authority), -1..60);
    secured.install(&second);
    until("it is found", || reloads("taken") == Some(1.0));
    assert_eq!(served(&secured.connect().unwrap()).to_der().unwrap(), second.certificate.to_der().unwrap());
    let renewed = expiry();
    let later = renewed - expires - 58.0 * 86_400.0;
    assert!((0.0..600.0).contains(&later), "{later} s");

    // A key that is another's, told at once by SIGHUP.
    let stranger = secured.issue().key.private_key_to_pem_pkcs8().unwrap();
    let good = fs::read(secured.key()).unwrap();
    fs::write(secured.key(), &stranger).unwrap();
    gateway.signal(Signal::HUP);
    until("it is refused", || gateway.metric("tls_certificate_refused") == Some(1.0));
    assert_eq!((reloads("taken"), expiry()), (Some(1.0), renewed));
    assert_eq!(served(&secured.connect().unwrap()).to_der().unwrap(), second.certificate.to_der().unwrap());
    let log = site.log();
    assert!(log.contains("is refused, and the one before goes on") && log.contains("not the key of"), "{log}");
    assert!(!log.contains("PRIVATE KEY"));
    // One that has expired.
    secured.install(&identity_for(Some(HOST), Some(&secured.authority), -9..-1));
    gateway.signal(Signal::HUP);
    until("it is refused", || reloads("refused") == Some(2.0));
    assert!(site.log().contains("it expired"));
    // Good again.
    secured.install(&second);
    fs::write(secured.key(), good).unwrap();
    gateway.signal(Signal::HUP);
    until("it is taken", || gateway.metric("tls_certificate_refused") == Some(0.0));

    assert_eq!(lasting.get(&event("lasting-2")).unwrap().status, 200, "what was there before goes on");
    assert_eq!(served(&lasting).to_der().unwrap(), first.to_der().unwrap());
    let goal = acknowledged.load(Ordering::Relaxed) + 100;
    until("visitors are answered", || acknowledged.load(Ordering::Relaxed) >= goal);
    stop.store(true, Ordering::Relaxed);
    let mut ledger = Ledger::default();
    for crowd in crowds {
        let (theirs, failures) = crowd.join().unwrap();
        assert!(failures.is_empty(), "{failures:?}");
        ledger.absorb(theirs);
    }
    gateway.kill();
    ledger.sent.extend(["lasting-1", "lasting-2"].map(str::to_owned));
    assert_eq!(audit(&ledger, &export(site)), CLEAN, "what was answered is there, whatever became of the process");
    balanced_stat(site);
}
