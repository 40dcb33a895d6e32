//! An older binary and this one: on one directory, back and forth, and as authority and gateway of a fleet.
//!
//! `.ci/upgrade` builds the older one and names it in `PIXELGATE_OLDER_BINARY`.

use std::path::PathBuf;

use super::broker::Broker;
use super::fleet::{create, fire, first_token, gateway_of, status};
use super::gateway::{Gateway, Site, until};
use super::load::Ledger;
use super::scene::{self, assert_exactly_once, assert_unnoticed, visitors, wait_published};
use super::upgrade::contents;

fn older() -> PathBuf {
    let name = std::env::var_os("PIXELGATE_OLDER_BINARY");
    PathBuf::from(name.expect("PIXELGATE_OLDER_BINARY names no older binary: run .ci/upgrade"))
}

/// One run under load, ended with `kill -9`: what it published stays so, what it did not is the next one's.
fn round(site: &Site, gateway: Gateway<'_>, run: &'static str, ledger: &mut Ledger) {
    let load = visitors(site, run);
    wait_published(site, &gateway, 50);
    let seen = load.finish();
    assert_unnoticed(&seen);
    ledger.absorb(seen);
    gateway.kill();
}

#[test]
fn an_upgrade_and_the_way_back_lose_and_double_nothing() {
    let (broker, topic) = (Broker::shared(), "upgrade");
    let mut site = scene::site(&broker.address(), topic, "");
    let mut ledger = Ledger::default();
    site.program = Some(older());
    round(&site, site.start(), "a", &mut ledger);
    let token = first_token(&site);
    site.program = None;
    round(&site, site.start(), "b", &mut ledger);
    // Back: an older one either goes on or refuses, and then has touched nothing.
    let before = contents(&site.data());
    site.program = Some(older());
    let mut gateway = site.launch();
    let mut refused = None;
    scene::wait_for("it is ready or refuses", &site, || {
        refused = gateway.has_ended();
        refused.is_some() || gateway.readiness() == Some(200)
    });
    match refused {
        None => {
            eprintln!("the older version goes on with a directory of this one");
            round(&site, gateway, "c", &mut ledger);
        }
        Some(status) => {
            // A step of a format, which is known beforehand.
            let expected = std::env::var_os("PIXELGATE_OLDER_REFUSES").is_some();
            assert!(expected, "the way back is closed: {}", site.log());
            eprintln!("the older version refuses a directory of this one");
            assert_eq!(status.code(), Some(2), "{}", site.log());
            assert!(before == contents(&site.data()), "a refusal changes nothing");
            drop(gateway);
        }
    }
    site.program = None;
    let gateway = site.start();
    assert_eq!(first_token(&site), token);
    let load = visitors(&site, "d");
    wait_published(&site, &gateway, 50);
    ledger.absorb(load.finish());
    assert_exactly_once(&broker, topic, &site, gateway, &ledger);
}

/// An authority of one version, a gateway of another: pixels are created through it, and it tells when they fired.
fn fleet(authority: Option<PathBuf>, gateway: Option<PathBuf>) {
    let mut one = Site::new("");
    one.program = authority;
    let running = one.start();
    let token = first_token(&one);
    let mut other = gateway_of(&one, &token, "");
    other.program = gateway;
    let edge = other.start();
    let id = create(&other, &token, "9", "mixed");
    assert_eq!(fire(&other, &id), Some(200));
    until("the authority was told", || status(&one, &token, &id) == "Active");
    assert_eq!((edge.stop(), running.stop()), (Some(0), Some(0)));
}

#[test]
fn a_fleet_may_be_mixed_either_way_round() {
    fleet(Some(older()), None);
    fleet(None, Some(older()));
}
