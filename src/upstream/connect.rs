//! Connections to the upstream: TCP, and TLS that checks the certificate against the system's authorities.
//!
//! OpenSSL is in the binary for Kafka already; a second TLS library would only add to it.

use std::io;
use std::net::ToSocketAddrs;
use std::pin::Pin;
use std::time::Duration;

use openssl::ssl::{SslConnector, SslMethod};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio_openssl::SslStream;

use super::Base;

/// Most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// A connection, whatever lies beneath.
pub(super) type Stream = Box<dyn Io>;

/// What HTTP needs of a connection.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Makes connections to one place. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    host: String,
    port: u16,
    tls: Option<SslConnector>,
}

impl Connector {
    /// Reads the authorities of certificates, if it needs them.
    pub fn new(base: &Base) -> Result<Connector, openssl::error::ErrorStack> {
        let tls = if base.is_secure() { Some(tls()?) } else { None };
        Ok(Connector { host: base.host().to_owned(), port: base.port(), tls })
    }

    pub(super) async fn connect(&self) -> io::Result<Stream> {
        let tcp = self.tcp().await?;
        // A request is one write; waiting for more of it would only add to its time.
        tcp.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(tcp)) };
        let ssl = tls.configure().and_then(|configured| configured.into_ssl(&self.host)).map_err(io::Error::other)?;
        let mut stream = SslStream::new(ssl, tcp).map_err(io::Error::other)?;
        Pin::new(&mut stream).connect().await.map_err(io::Error::other)?;
        Ok(Box::new(stream))
    }

    async fn tcp(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
        for address in lookup_host((self.host.as_str(), self.port)).await?.take(ADDRESSES_MAX) {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// Whether somebody listens there, for a check before a start. Blocks for `within` and each address once.
pub fn probe(base: &Base, within: Duration) -> io::Result<()> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for address in (base.host(), base.port()).to_socket_addrs()?.take(ADDRESSES_MAX) {
        match std::net::TcpStream::connect_timeout(&address, within) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Verifies chain and name. `SSL_CERT_FILE` and `SSL_CERT_DIR` name other authorities, as OpenSSL's users know it.
fn tls() -> Result<SslConnector, openssl::error::ErrorStack> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    // The OpenSSL in the binary does not know where this system keeps its authorities.
    let found = openssl_probe::probe();
    let mut directories = found.cert_dir.iter().filter_map(|directory| directory.to_str());
    if found.cert_file.is_some() || !found.cert_dir.is_empty() {
        builder.load_verify_locations(found.cert_file.as_deref(), directories.next().map(AsRef::as_ref))?;
    }
    builder.set_alpn_protos(b"\x08http/1.1")?;
    Ok(builder.build())
}
