//! More of what goes wrong with a gateway, and the alert that it raises in a real Prometheus: certificates, lists of
//! pixels, connections, restarts, disks, clocks, records. The others are in `monitoring`.

use std::fs;
use std::net::TcpStream;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use super::client::Client;
use super::fleet::{self, gateway_of};
use super::forward_tls::identity_for;
use super::gateway::{PIXEL, Site, free_address, until};
use super::load::Load;
use super::monitoring::{Prometheus, wait_firing};
use super::shim::Shim;
use super::stranded::{SMALL, mock};
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

#[test]
fn a_disk_that_is_slow_and_a_journal_larger_than_it_are_told() {
    let shim = Shim::new();
    let mut site = Site::new("[journal]\nmax_bytes = \"4096TiB\"\n");
    site.environment = shim.environment(&site.data());
    let gateway = site.start();
    let prometheus = Prometheus::impatient(site.ops);
    wait_firing(&prometheus, &["PixelgateDiskTooSmall"], || {});
    shim.delay_syncs(3000);
    let load = Load::start(site.public, 2);
    wait_firing(&prometheus, &["PixelgateDiskSlow", "PixelgateSlow"], || {});
    shim.delay_syncs(0);
    assert!(load.finish().refused.is_empty());
    // Somebody holds the registry's file.
    let other = rusqlite::Connection::open(site.data().join(pixelgate::registry::FILE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (token, body) = (fleet::first_token(&site), "fb_ad_account_id=9&name=a&tag=LEAD");
    wait_firing(&prometheus, &["PixelgateManagementFails"], || {
        let reply = fleet::post(&site, "/offsitepixels", &token, "application/x-www-form-urlencoded", body);
        assert_eq!(reply.status, 503);
    });
    drop(other);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
}

#[test]
fn events_that_wait_and_reports_and_lists_of_long_ago_are_told() {
    let authority = Site::new("");
    let elder = authority.start();
    let token = fleet::first_token(&authority);
    let pixel = fleet::create(&authority, &token, "9", "late");
    // Prometheus has another clock, for which this gateway lives twenty minutes ago.
    let shim = Shim::new();
    shim.shift_clock(-1_200_000);
    let mut site = gateway_of(&authority, &token, "");
    let kafka = format!("[kafka]\nprogress_topic = \"p\"\nbrokers = [\"{}\"]\n\n[limits]\n", free_address());
    site.reconfigure("[limits]\n", &kafka);
    site.environment = shim.environment(&site.data());
    let gateway = site.start();
    let prometheus = Prometheus::impatient(site.ops);
    wait_firing(&prometheus, &["PixelgateListsLate", "PixelgateProgressLate"], || {});
    // The authority goes, and with it who takes reports.
    elder.kill();
    assert_eq!(fleet::fire(&site, &pixel), Some(200));
    wait_firing(&prometheus, &["PixelgateReportsFail"], || {});
    shim.shift_clock(0);
    wait_firing(&prometheus, &["PixelgatePublishingLate"], || {});
    gateway.kill();
}

#[test]
fn records_that_kafka_refuses_or_the_disk_has_lost_are_told_and_descriptors_that_run_out() {
    let mock = mock();
    let nowhere = free_address().to_string();
    let site = Site::new(&format!("[kafka]\nbrokers = [\"{nowhere}\"]\ntransaction_timeout = \"3s\"\n{SMALL}"));
    let gateway = site.start();
    let prometheus = Prometheus::impatient(site.ops);
    let mut client = Client::connect(site.public).unwrap();
    let long: String = (0..8).map(|part| format!("&p{part}={}", "x".repeat(500))).collect();
    for more in ["", "", &long, ""] {
        assert_eq!(client.get(&format!("/offsite_event.php?id={PIXEL}{more}")).unwrap().status, 200);
    }
    wait_firing(&prometheus, &["PixelgatePublishingBlocked"], || {});
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    // A bit of the second record; Kafka is there now.
    let segment = site.data().join("journal/00000000000000000001.seg");
    let mut bytes = fs::read(&segment).unwrap();
    let records: Vec<usize> =
        bytes.windows(9).enumerate().filter(|(_, part)| part == b"record_id").map(|(at, _)| at).collect();
    bytes[records[1]] ^= 1;
    fs::write(&segment, bytes).unwrap();
    site.reconfigure(&nowhere, &mock.bootstrap_servers());
    let gateway = site.start();
    wait_firing(&prometheus, &["PixelgateDamage", "PixelgateParked"], || {});
    until("nothing is left to publish", || gateway.metric("journal_pending_events") == Some(0.0));
    let id = Pid::from_raw(gateway.id() as i32);
    let open = fs::read_dir(format!("/proc/{}/fd", gateway.id())).unwrap().count() as u64;
    let limit = Rlimit { current: Some(open + open / 6), ..getrlimit(Resource::Nofile) };
    prlimit(id, Resource::Nofile, limit).unwrap();
    wait_firing(&prometheus, &["PixelgateFewDescriptors"], || {});
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
}
