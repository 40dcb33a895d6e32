//! A certificate and its key, read from files and checked before anybody is served by them.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openssl::asn1::Asn1Time;
use openssl::x509::X509;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::time::Timestamp;

/// The key of the certificate's file, and of the key's.
const CERTIFICATE: &str = "server.tls.certificate";
const KEY: &str = "server.tls.key";
/// Chains and keys are some KiB; a wrong file does not fill memory.
const MAX_BYTES: u64 = 1 << 20;

/// Where the pair is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// `server.tls.certificate`: PEM, the server's own certificate first, then those between it and an authority.
    pub certificate: PathBuf,
    /// `server.tls.key`: PEM.
    pub key: PathBuf,
}

/// A pair that fits together.
pub struct Pair {
    pub(super) certified: Arc<CertifiedKey>,
    /// When the first certificate of the chain ceases to be valid.
    pub expires: Timestamp,
    /// From when the server's own certificate is valid.
    pub begins: Timestamp,
    /// Others than its owner and group may read the key.
    pub is_exposed: bool,
    pub(super) seen: Seen,
}

/// What is seen of the files from outside: it changes when they do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Seen([Option<Outside>; 2]);

/// Device, inode, time of the last change, and length.
type Outside = (u64, u64, i64, i64, u64);

/// `key: what is wrong, what is allowed`. Never has a word of the files' text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Files {
    /// Looks at the files without reading them.
    pub(super) fn look(&self) -> Seen {
        let seen = |path: &Path| {
            // By name: a renewal often moves a link, and the time of what it leads to may be older.
            let file = path.metadata().ok()?;
            Some((file.dev(), file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
        };
        Seen([seen(&self.certificate), seen(&self.key)])
    }

    /// Reads and checks both.
    pub fn read(&self) -> Result<Pair, Fault> {
        let seen = self.look();
        let (chain, _) = text(CERTIFICATE, &self.certificate)?;
        let (key, file) = text(KEY, &self.key)?;
        let fault = |path: &Path, name: &str, what: &str, allowed: &str| {
            Fault(format!("{name}: {}: {what}; allowed is {allowed}", path.display()))
        };
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>().unwrap_or_default();
        let of_certificate = |what: &str| {
            fault(&self.certificate, CERTIFICATE, what, "a PEM file with the server's certificate and those above it")
        };
        let parsed: Vec<X509> = chain.iter().map_while(|one| X509::from_der(one).ok()).collect();
        if parsed.is_empty() || parsed.len() < chain.len() {
            return Err(of_certificate("it has no certificate, or one that can't be read"));
        }
        let of_key = |what: &str| {
            fault(&self.key, KEY, what, "a PEM file with an unencrypted RSA, ECDSA or Ed25519 key of the certificate")
        };
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| of_key("it has no key that can be read"))?;
        let key = super::provider().key_provider.load_private_key(key);
        let key = key.map_err(|_| of_key("it has no key that can be used"))?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|_| of_key("it is not the key of the certificate"))?;
        let expires = parsed.iter().filter_map(|one| timestamp(one.not_after())).min();
        let (expires, begins) = expires.zip(timestamp(parsed[0].not_before())).unwrap_or_default();
        Ok(Pair { certified: Arc::new(certified), expires, begins, is_exposed: is_exposed(&file), seen })
    }
}

impl Pair {
    /// Itself, unless it has expired.
    pub(super) fn still_valid(self, now: Timestamp) -> Result<Pair, Fault> {
        match self.expires > now {
            true => Ok(self),
            false => {
                let expired = self.expires.to_rfc3339();
                Err(Fault(format!("{CERTIFICATE}: it expired {expired}; allowed is one that is valid now")))
            }
        }
    }
}

/// A file's bytes.
fn text(name: &str, path: &Path) -> Result<(Vec<u8>, Metadata), Fault> {
    let read = || {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok((bytes, metadata))
    };
    read().map_err(|error: std::io::Error| {
        Fault(format!("{name}: {}: {error}; allowed is a readable PEM file", path.display()))
    })
}

/// Whether anybody on the machine may read it.
fn is_exposed(file: &Metadata) -> bool {
    file.permissions().mode() & 0o004 != 0
}

fn timestamp(time: &openssl::asn1::Asn1TimeRef) -> Option<Timestamp> {
    let epoch = Asn1Time::from_unix(0).ok()?;
    let since = epoch.diff(time).ok()?;
    let seconds = i64::from(since.days) * 86_400 + i64::from(since.secs);
    Some(Timestamp(u64::try_from(seconds).unwrap_or_default() * 1000))
}
