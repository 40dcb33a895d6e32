//! More of what goes wrong with a gateway, and the alert that it raises in a real Prometheus: certificates, lists of
//! pixels, connections, restarts. The others are in `monitoring`.

use std::fs;
use std::net::TcpStream;

use rustix::process::Signal;

use super::client::Client;
use super::fleet::gateway_of;
use super::forward_tls::identity_for;
use super::gateway::{Site, free_address};
use super::monitoring::{Prometheus, wait_firing};
use super::tls_site::{HOST, TlsSite};

#[test]
fn a_certificate_that_ends_soon_or_is_no_good_and_clients_that_fail_are_told() {
    let secured = TlsSite::new("", "");
    secured.install(&identity_for(Some(HOST), Some(&secured.authority), -1..1));
    let gateway = secured.site.start();
    let prometheus = Prometheus::impatient(secured.site.ops);
    wait_firing(&prometheus, &["PixelgateCertificateExpires", "PixelgateCertificateExpiresSoon"], || {});
    fs::write(secured.key(), "no key").unwrap();
    gateway.signal(Signal::HUP);
    wait_firing(&prometheus, &["PixelgateCertificateRefused", "PixelgateHandshakesFail"], || {
        // Who speaks no TLS.
        let mut plain = Client::connect(secured.site.public).unwrap();
        assert!(plain.get("/").is_err());
    });
    assert_eq!(gateway.stop(), Some(0), "{}", secured.site.log());
}

#[test]
fn lists_that_never_came_and_calls_that_go_nowhere_are_told() {
    let mut nowhere = Site::new("");
    nowhere.public = free_address();
    let site = gateway_of(&nowhere, "a-token-of-nobody", "");
    let gateway = site.start();
    let prometheus = Prometheus::impatient(site.ops);
    wait_firing(&prometheus, &["PixelgateListsMissing", "PixelgateUpstreamFails"], || {
        let mut client = Client::connect(site.public).unwrap();
        let call = "GET /offsitepixels/7 HTTP/1.1\r\nHost: a\r\nAuthorization: OAuth a-token-of-nobody\r\n\r\n";
        client.send(call.as_bytes()).unwrap();
        assert_eq!(client.reply().unwrap().status, 502);
    });
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
}

#[test]
fn connections_that_are_all_taken_and_a_program_that_starts_again_and_again_are_told() {
    let site = Site::with_server("max_connections = 8", "");
    let mut gateway = Some(site.start());
    let prometheus = Prometheus::impatient(site.ops);
    let mut held: Vec<TcpStream> = Vec::new();
    wait_firing(&prometheus, &["PixelgateConnectionsFull"], || {
        held = (0..8).map(|_| TcpStream::connect(site.public).unwrap()).collect();
    });
    drop(held);
    let mut starts = 0;
    wait_firing(&prometheus, &["PixelgateRestarts"], || {
        // Once Prometheus has seen the last one.
        let seen = format!("changes(process_start_time_seconds{{job=\"pixelgate\"}}[30m]) >= {starts}");
        if prometheus.series(&seen) > 0 {
            gateway.take().unwrap().kill();
            gateway = Some(site.start());
            starts += 1;
        }
    });
    assert_eq!(gateway.unwrap().stop(), Some(0), "{}", site.log());
}
