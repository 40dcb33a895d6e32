//! TLS on the listeners that visitors and management use: versions, protocols, handshakes, and certificates that are
//! replaced while connections go on.
//!
//! rustls speaks the protocol; the arithmetic is the OpenSSL's that Kafka brings, so that there is one such library
//! (docs/decisions/0017-tls.md).

mod certificate;
mod renewal;
mod stream;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{HeaderValue, STRICT_TRANSPORT_SECURITY};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::ServerSessionMemoryCache;
use rustls::version::{TLS12, TLS13};
use rustls_openssl::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub use self::certificate::{Fault, Files, Pair};
pub use self::renewal::Renewal;
pub(super) use self::stream::TlsStream;
use crate::inflight::Inflight;
use crate::metrics::{Handshake, Metrics};

/// A handshake has to be done by then, as a head has.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Sessions that may be taken up again without a full handshake: what one asks of memory is below 1 KiB.
const SESSIONS: usize = 8192;
const H2: &[u8] = b"h2";

/// `server.tls`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Certificate and key.
    pub files: Files,
    /// `server.tls.min_version` is 1.3.
    pub only_13: bool,
    /// `server.tls.hsts_max_age` and `.hsts_include_subdomains`: the header's value, if there is to be one.
    pub hsts: Option<String>,
}

/// What a listener needs. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    metrics: Arc<Metrics>,
    hsts: Option<Arc<str>>,
    /// The bound of all bodies and records together.
    pub(super) inflight: Arc<Inflight>,
    /// Of a head that the contract has an answer for.
    pub(super) max_head_bytes: usize,
}

/// A connection that is secured.
pub(super) struct Secured {
    pub(super) stream: TlsStream,
    pub(super) is_h2: bool,
}

impl Tls {
    /// Serves the certificates that `renewal` has.
    pub fn new(
        options: &Options,
        renewal: &Arc<Renewal>,
        metrics: Arc<Metrics>,
        inflight: Arc<Inflight>,
        max_head_bytes: usize,
    ) -> Result<Tls, rustls::Error> {
        let versions = if options.only_13 { vec![&TLS13] } else { vec![&TLS13, &TLS12] };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&versions)?
            .with_no_client_auth()
            .with_cert_resolver(renewal.clone());
        config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        let hsts = options.hsts.as_deref().map(Arc::from);
        Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(config)), metrics, hsts, inflight, max_head_bytes })
    }

    /// The value of `Strict-Transport-Security`, if there is to be one.
    pub(super) fn hsts(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(self.hsts.as_deref()?).ok()
    }

    /// Lines of each answer, with their ends.
    pub(super) fn besides(&self) -> Vec<u8> {
        let line = |value: &str| format!("{STRICT_TRANSPORT_SECURITY}: {value}\r\n").into_bytes();
        self.hsts.as_deref().map(line).unwrap_or_default()
    }

    /// The handshake, within its time.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<Secured> {
        let shaken = timeout(HANDSHAKE, self.acceptor.accept(stream)).await;
        self.metrics.handshake(match &shaken {
            Ok(Ok(_)) => Handshake::Completed,
            Ok(Err(_)) => Handshake::Failed,
            Err(_) => Handshake::TimedOut,
        });
        let stream = shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(H2);
        Ok(Secured { stream: TlsStream(stream), is_h2 })
    }
}

/// OpenSSL's arithmetic. The fast curve first, but for the one that keeps what is recorded today secret from tomorrow's
/// machines.
fn provider() -> Arc<CryptoProvider> {
    let groups = vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1];
    Arc::new(rustls_openssl::custom_provider(rustls_openssl::available_cipher_suites(), groups))
}
