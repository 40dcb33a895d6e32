//! The sockets of a gateway, and what secures them.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::Context;

use super::Refusal;
use crate::config::Config;
use crate::http::listen::Passed;
use crate::http::tls::{Renewal, Tls};
use crate::inflight::Inflight;
use crate::metrics::Metrics;
use crate::preflight;

/// Connections that wait to be accepted, of each listener; the system's own bound (`net.core.somaxconn`, 4,096 since
/// Linux 5.4) may be lower.
const BACKLOG: i32 = 4096;

/// Sockets that listen, each with its address.
pub(super) struct Listeners {
    pub(super) public: (TcpListener, SocketAddr),
    pub(super) ops: (TcpListener, SocketAddr),
    pub(super) management: Option<(TcpListener, SocketAddr)>,
}

impl Listeners {
    /// Takes what was handed over, and binds the rest.
    pub(super) fn open(config: &Config, passed: Passed) -> anyhow::Result<Listeners> {
        let own = config.own_management();
        Ok(Listeners {
            public: bind("server.listen", config.server.listen, passed.public)?,
            ops: bind("ops.listen", config.ops_listen, passed.ops)?,
            management: own.map(|listen| bind("management.listen", listen, passed.management)).transpose()?,
        })
    }
}

fn bind(key: &str, address: SocketAddr, passed: Option<TcpListener>) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = match passed {
        Some(listener) => {
            tracing::info!(%address, "{key}: on a socket that was handed over");
            listener
        }
        None => {
            let listener = TcpListener::bind(address).with_context(|| format!("{key}: can't listen on {address}"))?;
            // The standard library asks for 128. Beyond them a visitor's first packet is dropped, and sent again
            // after a second.
            rustix::net::listen(&listener, BACKLOG).with_context(|| format!("{key}: can't listen on {address}"))?;
            listener
        }
    };
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// The certificate of the public listener and of management's own, and what looks after it.
pub(super) struct Security {
    pub(super) tls: Tls,
    pub(super) renewal: Arc<Renewal>,
}

impl Security {
    /// `None` without `server.tls`.
    pub(super) fn new(
        config: &Config,
        metrics: &Arc<Metrics>,
        inflight: Arc<Inflight>,
    ) -> anyhow::Result<Option<Security>> {
        let pair = preflight::certificate(config, |warning| tracing::warn!("{warning}"));
        let pair = pair.map_err(|problem| Refusal(anyhow::anyhow!(problem)))?;
        let (Some(pair), Some(options)) = (pair, &config.server.tls) else { return Ok(None) };
        let server = &config.server;
        let renewal = Renewal::new(options.files.clone(), pair);
        let max_head_bytes = server.max_header_bytes + server.max_uri_bytes;
        let tls = Tls::new(options, &renewal, metrics.clone(), inflight, max_head_bytes).context("server.tls")?;
        Ok(Some(Security { tls, renewal }))
    }
}
