//! The gateway's own calls of its upstream: what they carry, and reading their answers within bounds.

use super::Registry;
use crate::upstream::{Body, Call, HeaderMap, HeaderValue, Method, PathAndQuery, header};

/// A call with the gateway's token and name.
pub(super) fn call(registry: &Registry, method: Method, target: &str) -> Result<Call, String> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("pixelgate/", env!("CARGO_PKG_VERSION"))));
    if let Some(token) = &registry.inner.options.learning.token {
        let value = HeaderValue::from_str(&format!("OAuth {}", token.expose()));
        let mut value = value.map_err(|_| "registry.upstream_token can't be sent".to_owned())?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    let target: PathAndQuery = target.parse().map_err(|_| "the target is no path".to_owned())?;
    Ok(Call { method, target, headers, body: Default::default() })
}

/// A whole body.
pub(super) async fn read(mut body: Body, max_bytes: usize) -> Result<Vec<u8>, String> {
    let mut whole = Vec::new();
    while let Some(chunk) = body.chunk().await.map_err(|error| error.to_string())? {
        if whole.len() + chunk.len() > max_bytes {
            return Err(format!("its answer has more than {max_bytes} bytes"));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole)
}
