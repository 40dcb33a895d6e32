//! A site with a certificate, and clients that speak TLS to it: by OpenSSL, which is not what the server speaks it
//! with.

use std::fs::{self, Permissions};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::client::SendRequest;
use openssl::ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslStream};
use openssl::x509::X509;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;

use super::client::Client;
use super::forward_tls::{Identity, identity, identity_for};
use super::gateway::{PATIENCE, Site};

/// The host that certificates are for.
pub const HOST: &str = "pixel.example";

/// A site whose public listener is secured.
pub struct TlsSite {
    /// It.
    pub site: Site,
    /// Who signs its certificates.
    pub authority: Identity,
}

impl TlsSite {
    /// With a fresh certificate, and further lines for the tables `server` and after.
    pub fn new(server: &str, extra: &str) -> TlsSite {
        let site = Site::with_server(&format!("tls.certificate = \"CERTIFICATE\"\ntls.key = \"KEY\"\n{server}"), extra);
        let secured = TlsSite { site, authority: identity_for(None, None, -1..99) };
        secured.site.reconfigure("CERTIFICATE", secured.certificate().to_str().unwrap());
        secured.site.reconfigure("KEY", secured.key().to_str().unwrap());
        secured.install(&secured.issue());
        secured
    }

    /// A fresh certificate for the host.
    pub fn issue(&self) -> Identity {
        identity(Some(HOST), Some(&self.authority))
    }

    /// Puts a pair where the gateway looks, each file by renaming.
    pub fn install(&self, pair: &Identity) {
        let key = pair.key.private_key_to_pem_pkcs8().unwrap();
        let mut chain = pair.certificate.to_pem().unwrap();
        chain.extend(self.authority.certificate.to_pem().unwrap());
        replace(&self.certificate(), &chain);
        replace(&self.key(), &key);
    }

    /// The file of the certificate.
    pub fn certificate(&self) -> PathBuf {
        self.site.config().with_file_name("certificate.pem")
    }

    /// The file of its key.
    pub fn key(&self) -> PathBuf {
        self.site.config().with_file_name("key.pem")
    }

    /// A client's side of TLS that trusts the site's authority.
    pub fn trusting(&self) -> SslConnectorBuilder {
        let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
        builder.cert_store_mut().add_cert(self.authority.certificate.clone()).unwrap();
        builder
    }

    /// A connection for HTTP/1.1.
    pub fn connect(&self) -> io::Result<Client<SslStream<TcpStream>>> {
        Ok(Client::over(connect(self.site.public, &self.trusting().build())?))
    }

    /// A connection for HTTP/2, with what drives it. Must run inside a tokio runtime.
    pub async fn connect_h2(&self) -> H2Client {
        connect_h2(self.site.public, &self.offering_h2()).await
    }

    /// A secured connection on which HTTP/2 was agreed.
    pub async fn connect_for_h2(&self) -> tokio_openssl::SslStream<tokio::net::TcpStream> {
        connect_for_h2(self.site.public, &self.offering_h2()).await
    }

    /// A client's side of TLS as a browser has it.
    pub fn offering_h2(&self) -> SslConnector {
        let mut builder = self.trusting();
        builder.set_alpn_protos(b"\x02h2\x08http/1.1").unwrap();
        builder.build()
    }
}

/// Sends requests, and what drives it.
pub type H2Client = (SendRequest<bytes::Bytes>, JoinHandle<Result<(), h2::Error>>);

/// A connection for HTTP/2. Must run inside a tokio runtime.
pub async fn connect_h2(address: SocketAddr, connector: &SslConnector) -> H2Client {
    let (client, connection) = h2::client::handshake(Parting(connect_for_h2(address, connector).await)).await.unwrap();
    (client, tokio::task::spawn_local(connection))
}

async fn connect_for_h2(
    address: SocketAddr,
    connector: &SslConnector,
) -> tokio_openssl::SslStream<tokio::net::TcpStream> {
    let ssl = connector.configure().unwrap().into_ssl(HOST).unwrap();
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut stream = tokio_openssl::SslStream::new(ssl, tcp).unwrap();
    Pin::new(&mut stream).connect().await.unwrap();
    assert_eq!(stream.ssl().selected_alpn_protocol(), Some(&b"h2"[..]));
    stream
}

/// A connection whose own last words may find nobody: where both ends part at once, OpenSSL's are an error ("unexpected
/// EOF") if the other end is gone before them. What is read, and that its end was announced, is seen as ever.
struct Parting(tokio_openssl::SslStream<tokio::net::TcpStream>);

impl AsyncRead for Parting {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl AsyncWrite for Parting {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context).map(|_| Ok(()))
    }
}

/// A handshake as this connector has it.
pub fn connect(address: SocketAddr, connector: &SslConnector) -> io::Result<SslStream<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    connector.connect(HOST, stream).map_err(|error| io::Error::other(error.to_string()))
}

/// The certificate that a connection was made with.
pub fn served(client: &Client<SslStream<TcpStream>>) -> X509 {
    client.stream().ssl().peer_certificate().unwrap()
}

/// Runs a client that does many things at once, within the time that a test has.
pub fn block_on<T>(client: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let within = Duration::from_secs(600);
    tokio::task::LocalSet::new()
        .block_on(&runtime, async { tokio::time::timeout(within, client).await.expect("a client waits for ever") })
}

fn replace(path: &std::path::Path, bytes: &[u8]) {
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes).unwrap();
    fs::set_permissions(&fresh, Permissions::from_mode(0o600)).unwrap();
    fs::rename(fresh, path).unwrap();
}
