//! TLS on both ends of the load: one certificate for all servers of a run, and clients that take any.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::LazyLock;

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::ssl::{Ssl, SslConnector, SslMethod, SslVerifyMode};
use openssl::x509::{X509, X509Name};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::load::{self, Connection, Wrap};

/// What is spoken on a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Security {
    Plain,
    Tls,
}

impl Security {
    /// For a server's name.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Security::Plain => "",
            Security::Tls => ", TLS",
        }
    }
}

/// Puts certificate and key of all servers of a run into a server's directory; where they are then. Their curve is
/// elliptic, as of those that certificate authorities give out today.
pub(crate) fn install(directory: &Path) -> (PathBuf, PathBuf) {
    static PAIR: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(issue);
    let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
    std::fs::write(&certificate, &PAIR.0).unwrap();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key).unwrap();
    file.write_all(&PAIR.1).unwrap();
    (certificate, key)
}

/// Certificate and key in PEM.
fn issue() -> (Vec<u8>, Vec<u8>) {
    let key = EcKey::generate(&EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap();
    let key = PKey::from_ec_key(key).unwrap();
    let mut name = X509Name::builder().unwrap();
    name.append_entry_by_nid(Nid::COMMONNAME, "pixel.shop.example").unwrap();
    let name = name.build();
    let mut certificate = X509::builder().unwrap();
    certificate.set_version(2).unwrap();
    certificate.set_subject_name(&name).unwrap();
    certificate.set_issuer_name(&name).unwrap();
    certificate.set_pubkey(&key).unwrap();
    certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    certificate.set_not_after(&Asn1Time::days_from_now(90).unwrap()).unwrap();
    certificate.sign(&key, MessageDigest::sha256()).unwrap();
    (certificate.build().to_pem().unwrap(), key.private_key_to_pem_pkcs8().unwrap())
}

/// Secures a connection. Sessions are not resumed: each handshake is a whole one, as of a new visitor.
async fn secure(stream: TcpStream) -> SslStream<TcpStream> {
    static CONNECTOR: LazyLock<SslConnector> = LazyLock::new(|| {
        let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
        builder.set_verify(SslVerifyMode::NONE);
        builder.set_alpn_protos(b"\x08http/1.1").unwrap();
        builder.build()
    });
    let ssl: Ssl = CONNECTOR.configure().unwrap().verify_hostname(false).into_ssl("pixel.shop.example").unwrap();
    let mut stream = SslStream::new(ssl, stream).unwrap();
    Pin::new(&mut stream).connect().await.unwrap();
    stream
}

/// How connections to such a listener are made.
pub(crate) fn wrap(security: Security) -> Wrap {
    match security {
        Security::Plain => load::plain,
        Security::Tls => |stream| Box::pin(async { Box::pin(secure(stream).await) as Connection }),
    }
}
