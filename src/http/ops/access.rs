//! Who may look at records: a management token, or somebody on this very machine.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, web};

use crate::http::management;
use crate::registry::tokens::{self, Grant, TokenHash};
use crate::registry::{self, Registry};

/// What a request may see.
#[derive(Clone, Debug)]
pub(super) enum Access {
    /// Everything: it comes from this machine.
    Local,
    /// What its token allows; the hash, to ask again later.
    Token(TokenHash, Grant),
}

/// Why it may see nothing.
#[derive(Debug)]
pub(super) enum Denied {
    /// Neither local nor a token.
    Missing,
    /// The token is unknown or revoked.
    Invalid,
    /// Tokens can't be read.
    Unavailable(registry::Error),
}

/// Headers of something in front: then the peer says nothing about who asks.
const FORWARDING: [&str; 5] = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];

/// Decides. A token is preferred to being local, as it may be for some ad accounts only.
pub(super) async fn of(
    request: &HttpRequest,
    listener: SocketAddr,
    registry: &Arc<Registry>,
) -> Result<Access, Denied> {
    let given = request.headers().get(header::AUTHORIZATION);
    let Some(hash) = given.and_then(|value| management::presented(value.as_bytes())).map(tokens::hash) else {
        let uri_host = request.uri().authority().map(|authority| authority.as_str());
        let peer = request.peer_addr().map(|peer| peer.ip());
        let local = is_local(listener.ip(), peer, uri_host, request.headers());
        return if local { Ok(Access::Local) } else { Err(Denied::Missing) };
    };
    check(registry, hash).await.map(|grant| Access::Token(hash, grant))
}

/// What a token allows now.
pub(super) async fn check(registry: &Arc<Registry>, hash: TokenHash) -> Result<Grant, Denied> {
    let registry = registry.clone();
    // Asks SQLite: not on the serving thread. It fails only when the program ends.
    let found = web::block(move || registry.check_token(&hash)).await.unwrap_or(Ok(None));
    found.map_err(Denied::Unavailable)?.ok_or(Denied::Invalid)
}

/// Listener, peer and `Host` are loopback. The last is against DNS rebinding: a page whose name was pointed at this
/// machine comes from a local browser, but asks for its own name. Nor may another site's page have caused the request.
fn is_local(listener: IpAddr, peer: Option<IpAddr>, uri_host: Option<&str>, headers: &HeaderMap) -> bool {
    let is_loopback = |ip: IpAddr| ip.to_canonical().is_loopback();
    let mut hosts = headers.get_all(header::HOST).map(HeaderValue::to_str);
    let one_local_host = matches!((hosts.next(), hosts.next()), (Some(Ok(host)), None) if is_loopback_host(host));
    let caused_here = match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        None => !headers.contains_key(header::ORIGIN),
        Some(site) => matches!(site, b"none" | b"same-origin"),
    };
    is_loopback(listener)
        && peer.is_some_and(is_loopback)
        && one_local_host
        && uri_host.is_none_or(is_loopback_host)
        && caused_here
        && !FORWARDING.iter().any(|name| headers.contains_key(*name))
}

/// `127.0.0.0/8`, `[::1]` or `localhost`, with or without a port.
fn is_loopback_host(host: &str) -> bool {
    let (name, port) = match host.rfind(']') {
        Some(end) => host.split_at(end + 1),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port_is_fine = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    let bracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let ip: Option<IpAddr> = match bracketed {
        Some(inside) => inside.parse().ok().map(IpAddr::V6),
        None => name.parse().ok().map(IpAddr::V4),
    };
    port_is_fine && (name.eq_ignore_ascii_case("localhost") || ip.is_some_and(|ip| ip.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_local() {
        for host in ["localhost", "LocalHost:8081", "127.0.0.1", "127.8.9.1:1", "[::1]", "[::1]:8081"] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in [
            "",
            ":8081",
            "localhost.",
            "localhost:",
            "localhost:x",
            "localhost:99999",
            "localhost.evil.example",
            "evil.example",
            "127.1",
            "127.0.0.1.evil.example",
            "0127.0.0.1",
            "128.0.0.1",
            "10.0.0.1:8081",
            "0.0.0.0",
            "[::]",
            "[::2]:80",
            "[::1",
            "::1",
            "[::1]8081",
            "[127.0.0.1]",
            "user@localhost",
            "localhost/",
        ] {
            assert!(!is_loopback_host(host), "{host}");
        }
    }

    fn local(listener: &str, peer: &str, uri_host: Option<&str>, headers: &[(&str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(header::HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        is_local(listener.parse().unwrap(), Some(peer.parse().unwrap()), uri_host, &map)
    }

    #[test]
    fn all_three_must_be_loopback_and_nothing_in_between() {
        let host = ("host", "localhost:8081");
        assert!(local("127.0.0.1", "127.0.0.1", None, &[host]));
        assert!(local("::1", "::1", Some("[::1]:8081"), &[("host", "[::1]:8081")]));
        assert!(local("127.0.0.1", "::ffff:127.0.0.1", None, &[host, ("sec-fetch-site", "same-origin")]));
        assert!(!local("0.0.0.0", "127.0.0.1", None, &[host]));
        assert!(!local("127.0.0.1", "192.0.2.1", None, &[host]));
        assert!(!local("127.0.0.1", "127.0.0.1", None, &[]));
        assert!(!local("127.0.0.1", "127.0.0.1", None, &[host, host]));
        assert!(!local("127.0.0.1", "127.0.0.1", None, &[("host", "rebound.example")]));
        assert!(!local("127.0.0.1", "127.0.0.1", Some("rebound.example"), &[host]));
        assert!(!local("127.0.0.1", "127.0.0.1", None, &[host, ("origin", "https://evil.example")]));
        assert!(!local("127.0.0.1", "127.0.0.1", None, &[host, ("sec-fetch-site", "cross-site")]));
        for name in FORWARDING {
            assert!(!local("127.0.0.1", "127.0.0.1", None, &[host, (name, "x")]), "{name}");
        }
        assert!(!is_local("127.0.0.1".parse().unwrap(), None, None, &HeaderMap::new()));
    }
}
