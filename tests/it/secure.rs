//! TLS and SASL: events leave through both, what is wrong with either shows, and no secret is ever told.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::broker::{Broker, java};
use super::client::Client;
use super::gateway::{Gateway, Site, free_address};
use super::scene::{self, assert_exactly_once, assert_unnoticed, visitors, wait_blocked, wait_published};

const RIGHT: &str = "right-secret-4711";
const WRONG: &str = "wrong-secret-0815";

/// A broker's key and certificate, and the certificate alone for clients.
fn make_certificate(root: &Path) {
    let keystore = root.join("keystore.p12");
    let keytool = |arguments: &[&str]| {
        let mut command = Command::new("keytool");
        command.args(arguments).args(["-storepass", "changeit", "-alias", "broker", "-keystore"]).arg(&keystore);
        let output = command.output().expect("keytool comes with Java");
        assert!(output.status.success(), "keytool: {}", String::from_utf8_lossy(&output.stdout));
    };
    let name = ["-genkeypair", "-keyalg", "RSA", "-dname", "CN=127.0.0.1", "-ext", "SAN=ip:127.0.0.1"];
    keytool(&[&name[..], &["-storetype", "PKCS12", "-validity", "30"]].concat());
    let certificate = root.join("ca.pem");
    keytool(&["-exportcert", "-rfc", "-file", certificate.to_str().unwrap()]);
}

/// A broker with a listener that wants TLS and SCRAM, at `secure`.
fn start_broker(secure: &str) -> Broker {
    let listeners = format!(
        "listeners=PLAINTEXT://{{address}},SECURE://{secure},CONTROLLER://{{controller}}\n\
         advertised.listeners=PLAINTEXT://{{address}},SECURE://{secure}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT\n\
         listener.name.secure.sasl.enabled.mechanisms=SCRAM-SHA-512\n\
         listener.name.secure.scram-sha-512.sasl.jaas.config=\
         org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
         ssl.keystore.location={{root}}/keystore.p12\nssl.keystore.password=changeit\nssl.keystore.type=PKCS12"
    );
    let broker = Broker::prepared(&listeners, make_certificate);
    let mut command = java("kafka.admin.ConfigCommand");
    command.args(["--bootstrap-server", &broker.address(), "--alter", "--add-config"]);
    command.arg(format!("SCRAM-SHA-512=[password={RIGHT}]")).args([
        "--entity-type",
        "users",
        "--entity-name",
        "gateway",
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    broker
}

/// One start with something wrong: it shows, and websites notice nothing.
fn refused(site: &Site, run: &'static str) -> super::load::Ledger {
    let gateway = site.start();
    let load = visitors(site, run);
    wait_blocked(site, &gateway, "authentication");
    load.wait_for(20);
    let ledger = load.finish();
    assert_unnoticed(&ledger);
    assert_secret(site, &gateway);
    assert_eq!(gateway.stop(), Some(0));
    ledger
}

/// Nothing that the program tells has a password in it.
fn assert_secret(site: &Site, gateway: &Gateway<'_>) {
    let metrics = Client::connect(site.ops).unwrap().get("/metrics").unwrap().body;
    let mut told = site.log() + &String::from_utf8(metrics).unwrap();
    for command in ["config", "check"] {
        let output = site.run(&[command]);
        assert!(command == "check" || !output.stdout.is_empty(), "it prints something");
        told += &String::from_utf8_lossy(&output.stdout);
        told += &String::from_utf8_lossy(&output.stderr);
    }
    for secret in [RIGHT, WRONG] {
        assert!(!told.contains(secret), "a password is told");
    }
    assert_eq!(gateway.readiness(), Some(200));
}

#[test]
fn events_leave_through_tls_and_sasl_and_no_secret_is_told() {
    let (topic, secure) = ("secure", free_address().to_string());
    let broker = start_broker(&secure);
    let authority = broker.root().join("ca.pem");
    let site = scene::site(
        &secure,
        topic,
        "[kafka.client]\n\"security.protocol\" = \"sasl_ssl\"\n\
         \"sasl.mechanisms\" = \"SCRAM-SHA-512\"\n\"sasl.username\" = \"gateway\"\nsasl.password = \"WRONG\"\n",
    );
    site.reconfigure("WRONG", WRONG);
    // The broker's certificate is signed by nobody that the machine knows.
    let mut ledger = refused(&site, "a");
    site.reconfigure("[kafka.client]", &format!("[kafka.client]\nssl.ca.location = {authority:?}"));
    ledger.absorb(refused(&site, "b"));
    site.reconfigure(WRONG, RIGHT);
    let gateway = site.start();
    let load = visitors(&site, "c");
    wait_published(&site, &gateway, ledger.acknowledged.len() as u64 + 50);
    ledger.absorb(load.finish());
    assert_unnoticed(&ledger);
    assert_secret(&site, &gateway);
    assert_exactly_once(&broker, topic, &site, gateway, &ledger);
    assert!(!fs::read_to_string(site.config()).unwrap().contains(WRONG));
}
