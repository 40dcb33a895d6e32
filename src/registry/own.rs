//! The gateway's own calls of its upstream: what they carry, and reading their answers within bounds.

use std::sync::atomic::Ordering::Relaxed;

use super::{Registry, report};
use crate::upstream::{Answer, Body, Call, HeaderMap, HeaderName, HeaderValue, Method, PathAndQuery, header};

/// Tells an authority that is a pixelgate who asks. To any other it says nothing.
const GATEWAY: HeaderName = HeaderName::from_static("x-pixelgate-gateway");
/// What such an authority takes.
const ACCEPTS: HeaderName = HeaderName::from_static("x-pixelgate-accepts");

/// A call with the gateway's token and name.
pub(super) fn call(registry: &Registry, method: Method, target: &str) -> Result<Call, String> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("pixelgate/", env!("CARGO_PKG_VERSION"))));
    headers.insert(GATEWAY, HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
    if let Some(token) = &registry.inner.options.learning.token {
        let value = HeaderValue::from_str(&format!("OAuth {}", token.expose()));
        let mut value = value.map_err(|_| "registry.upstream_token can't be sent".to_owned())?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    let target: PathAndQuery = target.parse().map_err(|_| "the target is no path".to_owned())?;
    Ok(Call { method, target, headers, body: Default::default() })
}

/// Notes what an answer says of the authority.
pub(super) fn heed(registry: &Registry, answer: &Answer) {
    let accepts = answer.headers.get(ACCEPTS).is_some_and(|what| what == report::PATH);
    // An error may be of something in front of it.
    if accepts || answer.status < 400 {
        registry.inner.authority_listens.store(accepts, Relaxed);
    }
}

/// A whole body.
pub(super) async fn read(mut body: Body, max_bytes: usize) -> Result<Vec<u8>, String> {
    let mut whole = Vec::new();
    while let Some(chunk) = body.chunk().await.map_err(|error| error.to_string())? {
        if whole.len() + chunk.len() > max_bytes {
            return Err(format!("its answer has more than {max_bytes} bytes"));
        }
        whole.extend_from_slice(&chunk);
        // In the midst of a long list, too, workers that share this core come first (`super::sync`).
        std::thread::yield_now();
    }
    Ok(whole)
}
