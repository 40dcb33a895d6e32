//! `registry.upstream` by https: a certificate counts if a known authority signed it for this name.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslAcceptor, SslMethod};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Name};

use super::client::Client;
use super::forward::ask;
use super::gateway::{Site, binary, until};
use super::upstream::with_length;

/// A key and a certificate for a name; without one, of an authority.
pub struct Identity {
    /// Its key.
    pub key: PKey<Private>,
    /// Its certificate.
    pub certificate: X509,
}

/// One that is good for two days, signed by `issuer` or by itself.
pub fn identity(name: Option<&str>, issuer: Option<&Identity>) -> Identity {
    identity_for(name, issuer, -1..2)
}

/// As `identity`, good for these days from today on.
pub fn identity_for(name: Option<&str>, issuer: Option<&Identity>, days: Range<i64>) -> Identity {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut subject = X509Name::builder().unwrap();
    subject.append_entry_by_text("CN", name.unwrap_or("test authority")).unwrap();
    let subject = subject.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    let serial = BigNum::from_u32(1 + u32::from(name.is_some())).unwrap().to_asn1_integer().unwrap();
    builder.set_serial_number(&serial).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_issuer_name(issuer.map_or(&*subject, |issuer| issuer.certificate.subject_name())).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let day = |day| Asn1Time::from_unix(now + day * 86_400).unwrap();
    builder.set_not_before(&day(days.start)).unwrap();
    builder.set_not_after(&day(days.end)).unwrap();
    builder.set_pubkey(&key).unwrap();
    match name {
        None => builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap(),
        Some(name) => {
            let names = SubjectAlternativeName::new().dns(name).build(&builder.x509v3_context(None, None)).unwrap();
            builder.append_extension(names).unwrap();
        }
    }
    builder.sign(issuer.map_or(&key, |issuer| &issuer.key), MessageDigest::sha256()).unwrap();
    Identity { key, certificate: builder.build() }
}

/// Answers every request with an empty list, and counts connections. The port.
pub fn serve(identity: &Identity, connections: &Arc<AtomicUsize>) -> u16 {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    acceptor.set_private_key(&identity.key).unwrap();
    acceptor.set_certificate(&identity.certificate).unwrap();
    let acceptor = Arc::new(acceptor.build());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::clone(connections);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            connections.fetch_add(1, Ordering::Relaxed);
            let acceptor = Arc::clone(&acceptor);
            thread::spawn(move || {
                let Ok(mut stream) = acceptor.accept(stream) else { return };
                while stream.read(&mut [0; 65_536]).is_ok_and(|read| read > 0) {
                    let reply = format!("HTTP/1.1 200 OK\r\nX-Tls: yes\r\n{}", with_length("[]"));
                    stream.write_all(reply.as_bytes()).unwrap();
                }
            });
        }
    });
    port
}

/// A gateway that knows one authority of certificates.
struct Knowing(Child);

impl Knowing {
    fn start(site: &Site, upstream: &str, authorities: &Path) -> Knowing {
        let mut command = binary();
        command.args(["serve", "--config"]).arg(site.config()).env("SSL_CERT_FILE", authorities);
        command.env("PIXELGATE_REGISTRY__MODE", "proxy").env("PIXELGATE_REGISTRY__UPSTREAM", upstream);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let knowing = Knowing(child);
        let ready =
            || Client::connect(site.ops).is_ok_and(|mut client| client.get("/readyz").is_ok_and(|r| r.status == 200));
        until("the gateway is ready", ready);
        knowing
    }
}

impl Drop for Knowing {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn only_certificates_of_known_authorities_for_the_name_are_believed() {
    let authority = identity(None, None);
    let stranger = identity(None, None);
    let serve = |identity: Identity| serve(&identity, &Arc::default());
    let good = serve(identity(Some("localhost"), Some(&authority)));
    let other_name = serve(identity(Some("other.example"), Some(&authority)));
    let unknown = serve(identity(Some("localhost"), Some(&stranger)));
    for (port, status) in [(good, 200), (other_name, 502), (unknown, 502)] {
        let site = Site::new("");
        let authorities = site.config().with_file_name("authorities.pem");
        fs::write(&authorities, authority.certificate.to_pem().unwrap()).unwrap();
        let _gateway = Knowing::start(&site, &format!("https://localhost:{port}"), &authorities);
        for _ in 0..3 {
            let reply = ask(&site, "GET /offsitepixels HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(reply.status, status);
            assert_eq!(reply.header("x-tls").is_some(), status == 200);
        }
    }
}
