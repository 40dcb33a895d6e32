//! Start and stop, each in one place and in order. Everything that runs is owned here, and its end ends the program.
//!
//! Start: directory → sockets → journal → registry → publisher → serve → ready; the directory first, so that a second
//! process is told who has it and not that an address is in use. Stop: unready → delay → stop listening → what is in
//! flight → last commit → exit.

mod heed;
mod listeners;

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::{App, HttpResponse, HttpServer, web};
use anyhow::Context;
use futures_util::future::join_all;

use self::listeners::{Listeners, Security};
use crate::config::{self, Config};
use crate::dedup::{Dedup, Rebuild};
use crate::diagnostics::Diagnostics;
use crate::feed::Feed;
use crate::http::client::Proxies;
use crate::http::collect::{self, Bounds};
use crate::http::door::{self, Served};
use crate::http::leave::{Exit, Serving};
use crate::http::listen::Passed;
use crate::http::management::proxy;
use crate::http::ops::pulse::Pulse;
use crate::http::ops::{Life, Phase};
use crate::http::tls::{Renewal, Tls};
use crate::http::{management, ops, tag};
use crate::ingest::Ingest;
use crate::journal::{Health, Journal, OpenError};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::node::{ClaimError, Node};
use crate::policy::Policies;
use crate::publish::frontier::{Frontier, Member};
use crate::publish::{self, Publisher};
use crate::registry::sync::{self, Sync};
use crate::registry::{self, Registry};
use crate::rejects::Allowance;
use crate::time::{Clock, SystemClock};
use crate::upstream::{Connector, Gate};

/// How often the journal's health is looked at.
const WATCH: Duration = Duration::from_millis(100);

/// The part of `server.shutdown_timeout` that is kept for the last commit and the publisher, a quarter at most: commits
/// and transactions take some tens of milliseconds, on a bad day a second or two.
const FOR_THE_REST: Duration = Duration::from_secs(3);
/// The last commit gets this time in any case: without it the end is no clean one.
const LAST_COMMIT: Duration = Duration::from_secs(1);

/// The start waits so long for the event ids of earlier runs, no longer.
const FOR_EVENT_IDS: Duration = Duration::from_millis(300);

/// Most connections of the operators' listener: probes, scrapes, and the live feed's readers.
const OPS_CONNECTIONS: usize = 256;

/// An error that is the operator's to mend, and no new start: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Refusal(pub anyhow::Error);

impl Refusal {
    /// Of a directory: in use, another node's.
    pub fn of_claim(error: ClaimError) -> anyhow::Error {
        match error {
            ClaimError::Io { .. } => error.into(),
            _ => Refusal(error.into()).into(),
        }
    }

    /// Of a journal: a newer program's, another journal's.
    pub fn of_journal(error: OpenError) -> anyhow::Error {
        match error {
            OpenError::Newer { .. } | OpenError::Foreign { .. } => Refusal(error.into()).into(),
            _ => error.into(),
        }
    }

    /// Of a registry: a newer program's.
    fn of_registry(error: registry::Error) -> anyhow::Error {
        match error {
            registry::Error::Newer { .. } => Refusal(error.into()).into(),
            _ => anyhow::Error::from(error).context("the registry can't be opened"),
        }
    }
}

/// A gateway that serves.
pub struct Running {
    /// The public listener's address.
    pub public: SocketAddr,
    /// The operators' listener's address.
    pub ops: SocketAddr,
    /// The address of management's own listener, if it has one.
    pub management: Option<SocketAddr>,
    public_exit: Exit,
    management_exit: Option<Exit>,
    ops_server: ServerHandle,
    journal: Journal,
    registry: Arc<Registry>,
    publisher: Option<Arc<Publisher>>,
    sync: Option<Arc<Sync>>,
    life: Arc<Life>,
    feed: Arc<Feed>,
    rebuild: Option<Rebuild>,
    renewal: Option<Arc<Renewal>>,
    config: Config,
    node: Node,
}

/// Management's own listener.
fn serve_management(
    config: &Config,
    listener: TcpListener,
    tls: Option<Tls>,
    pixels: &Arc<management::State>,
) -> anyhow::Result<Serving> {
    let pixels = pixels.clone();
    let app = move || {
        let app = App::new()
            .configure(|services| management::configure(services, pixels.clone()))
            .default_service(web::to(|| async { HttpResponse::NotFound().finish() }));
        Served { app, events: None }
    };
    let connections = door::Options { workers: 1, serves_events: false, ..connections(config) };
    door::serve(connections, listener, tls, app).context("management.listen")
}

/// How the public listener's connections are served.
fn connections(config: &Config) -> door::Options {
    let server = &config.server;
    door::Options {
        workers: server.workers,
        serves_events: true,
        max_connections: server.max_connections,
        behind_proxies: server.trusted_proxies.as_ref().is_some_and(|proxies| !proxies.is_empty()),
        body: (server.body().pause, server.body().longest()),
        shutdown_timeout: for_requests(server.shutdown_timeout),
    }
}

impl Running {
    /// Starts everything; returns when requests are served. Must run inside an actix system.
    pub fn start(mut config: Config, passed: Passed) -> anyhow::Result<Running> {
        config.listen_on(passed.addresses());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        heed::all(&config)?;
        let node = Node::claim(&config.data_dir, config.node_id.as_deref()).map_err(Refusal::of_claim)?;
        let Listeners { public: (public, public_address), ops: (ops, ops_address), management } =
            Listeners::open(&config, passed)?;
        let (management, management_address) = management.unzip();
        let metrics = Arc::new(Metrics::new(clock.now(), connections(&config).most_connections()));
        // An older program leaves a newer one's directory as it is: asked before the journal opens a segment in it.
        registry::tokens::refuse_newer(&config.data_dir).map_err(Refusal::of_registry)?;
        let journal =
            Journal::open(config.journal.clone(), clock.clone(), metrics.clone()).map_err(Refusal::of_journal)?;
        journal.inflight().bound(config.server.max_inflight_bytes);
        let security = Security::new(&config, &metrics, journal.inflight())?;
        let (dedup, rebuild) = remember(&config, &journal, &*clock)?;
        let registry = Registry::open(config.registry.clone(), clock.clone()).map_err(Refusal::of_registry)?;
        let mut publisher = None;
        if !config.kafka.brokers.is_empty() {
            let started = Publisher::start(config.kafka.clone(), &node.node_id, journal.clone(), clock.clone());
            publisher = Some(Arc::new(started.context("the publisher can't be started")?));
        }
        let (life, pulse) = (Arc::new(Life::default()), Pulse::new(config.server.workers));
        let limits = Arc::new(Limits::new(&config.limits));
        let proxies = Arc::new(Proxies::new(config.server.trusted_proxies.clone()));
        let feed = Arc::new(Feed::start(journal.clone()).context("the live feed can't be started")?);
        let frontier = publisher.as_ref().and_then(|publisher| publisher.frontier.clone());
        let policies = config.ingest.policies.clone();
        let parts =
            Parts { journal, registry, limits, policies, proxies, metrics, clock, life, pulse, feed, dedup, frontier };
        let pixels = parts.management(&config, &node)?;
        let sync = pixels.proxy.as_ref().map(|proxy| parts.sync(proxy)).transpose()?;
        let (tls, renewal) = security.map(|security| (security.tls, security.renewal)).unzip();
        let serve = |listener| serve_management(&config, listener, tls.clone(), &pixels);
        let management_server = management.map(serve).transpose()?;
        wait_for(rebuild.as_ref(), &*parts.clock);
        let public_server = parts.serve_public(&config, (public, tls), &node, pixels.clone())?;
        let publishing = publisher.as_ref().map(|publisher| publisher.stats.clone());
        let ops_server = parts.serve_ops(ops, (ops_address, public_address), publishing, renewal.clone(), pixels)?;
        let Parts { journal, registry, life, feed, .. } = parts;
        if let Some(renewal) = &renewal {
            actix_web::rt::spawn(renewal.clone().run());
        }
        let run = |serving: Serving| {
            actix_web::rt::spawn(serving.server);
            serving.exit
        };
        let (public_exit, management_exit) = (run(public_server), management_server.map(run));
        // Last: it tells of workers, and those of the public listener are there once it has begun.
        let ops_handle = ops_server.handle();
        actix_web::rt::spawn(ops_server);
        Ok(Running {
            public: public_address,
            ops: ops_address,
            management: management_address,
            public_exit,
            management_exit,
            ops_server: ops_handle,
            journal,
            registry,
            publisher,
            sync,
            life,
            feed,
            rebuild,
            renewal,
            config,
            node,
        })
    }

    /// From now on `/readyz` says so.
    pub fn ready(&self) {
        self.life.enter(Phase::Serving);
        let (node_id, public, ops) = (&self.node.node_id, self.public, self.ops);
        match self.management {
            Some(management) => tracing::info!(node_id, %public, %ops, %management, "serving"),
            None => tracing::info!(node_id, %public, %ops, "serving"),
        }
    }

    /// Whether visitors come by TLS.
    pub fn is_tls(&self) -> bool {
        self.renewal.is_some()
    }

    /// Reads what may change while it runs: the certificate.
    pub async fn reload(&self) {
        match &self.renewal {
            Some(renewal) => renewal.clone().look_aside(true).await,
            None => tracing::info!("there is no certificate to read anew; a config is read at a start only"),
        }
    }

    /// Waits for the journal to fail, by its device or by a fault of this program. Returns only then.
    pub async fn failed(&self) {
        let publishes = || self.publisher.as_ref().is_none_or(|publisher| publisher.is_sound());
        while self.journal.health() != Health::Poisoned && self.journal.is_sound() && publishes() {
            actix_web::rt::time::sleep(WATCH).await;
            // A full disk may have kept a first start from storing its name. Trying is nothing once it is stored.
            let _ = self.node.store();
        }
    }

    /// The contract's order of stopping, all of it within one `server.shutdown_timeout` after the delay. `true` if
    /// everything acknowledged is on disk and closed in time.
    pub async fn stop(self) -> bool {
        self.life.enter(Phase::Stopping);
        self.feed.close();
        let server = &self.config.server;
        actix_web::rt::time::sleep(server.shutdown_delay).await;
        let deadline = SystemClock.monotonic() + server.shutdown_timeout;
        let listeners: Vec<&Exit> = [&self.public_exit].into_iter().chain(&self.management_exit).collect();
        let graceful = async {
            join_all(listeners.iter().map(|listener| listener.close())).await;
            join_all(listeners.iter().map(|listener| listener.stop(true))).await;
        };
        if actix_web::rt::time::timeout(for_requests(server.shutdown_timeout), graceful).await.is_err() {
            tracing::warn!("server.shutdown_timeout is nearly over: requests in flight are dropped");
            // Not awaited: the servers end by the same timeout, and the process soon after.
            listeners.iter().for_each(|listener| drop(listener.stop(false)));
        }
        let left = move || deadline.saturating_sub(SystemClock.monotonic());
        let journal = self.journal.clone();
        let closed = web::block(move || journal.close(left().max(LAST_COMMIT), &SystemClock)).await.unwrap_or(false);
        if let Some(publisher) = self.publisher.clone() {
            if let Some(frontier) = publisher.frontier.as_ref().filter(|_| closed) {
                frontier.close();
            }
            let stopped = web::block(move || publisher.stop(left(), &SystemClock)).await.unwrap_or(false);
            if !stopped {
                tracing::warn!("the publisher did not stop in time; the next start asks Kafka what it has");
            }
        }
        if let Some(rebuild) = self.rebuild {
            let _ = web::block(move || rebuild.stop()).await;
        }
        if let Some(sync) = self.sync.clone() {
            let _ = web::block(move || sync.stop()).await;
        }
        if let Err(error) = self.registry.close() {
            tracing::warn!(%error, "the registry could not be closed");
        }
        self.ops_server.stop(false).await;
        let feed = self.feed.clone();
        // Ended long ago; a fault in it is logged.
        let _ = web::block(move || feed.join_thread()).await;
        closed
    }
}

/// Deduplication, and the thread that reads what earlier runs took.
fn remember(
    config: &Config,
    journal: &Journal,
    clock: &dyn Clock,
) -> anyhow::Result<(Option<Arc<Dedup>>, Option<Rebuild>)> {
    if !config.dedup.is_on() {
        return Ok((None, None));
    }
    let dedup = Arc::new(Dedup::new(config.dedup, clock.monotonic()));
    let rebuild = Rebuild::start(dedup.clone(), config.dedup.max_ids, journal.clone(), clock.now());
    Ok((Some(dedup), Some(rebuild.context("the thread that reads event ids can't be started")?)))
}

/// Gives the thread that reads event ids a moment: most journals are read by then, and who connects waits that long.
fn wait_for(rebuild: Option<&Rebuild>, clock: &dyn Clock) {
    let deadline = clock.monotonic() + FOR_EVENT_IDS;
    while rebuild.is_some_and(|rebuild| !rebuild.is_done()) && clock.monotonic() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What requests in flight get of `server.shutdown_timeout`: who stalls must not use up the time of the last commit and
/// of the publisher.
fn for_requests(shutdown_timeout: Duration) -> Duration {
    shutdown_timeout - (shutdown_timeout / 4).min(FOR_THE_REST)
}

/// What both listeners share.
struct Parts {
    journal: Journal,
    registry: Arc<Registry>,
    limits: Arc<Limits>,
    policies: Arc<Policies>,
    proxies: Arc<Proxies>,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    life: Arc<Life>,
    pulse: Arc<Pulse>,
    feed: Arc<Feed>,
    dedup: Option<Arc<Dedup>>,
    frontier: Option<Arc<Frontier>>,
}

/// A worker's part in saying up to when all is in Kafka.
fn member(frontier: &Arc<Frontier>, worker: Rc<collect::Worker>) -> Member {
    frontier.join(Box::new(move |moment| {
        let ticket = worker.ingest.not_before(moment);
        Box::new(move || ticket.outcome().is_some())
    }))
}

impl Parts {
    fn management(&self, config: &Config, node: &Node) -> anyhow::Result<Arc<management::State>> {
        let server = &config.server;
        let (value, currency) = config.snippet.clone();
        let registry = self.registry.clone();
        let snippet = management::wire::Snippet::new(&server.public_url, value, currency);
        Ok(Arc::new(management::State {
            is_tls: server.tls.is_some(),
            proxy: config.upstream.as_ref().map(|upstream| self.upstream(upstream, config)).transpose()?,
            body: server.body(),
            inflight: self.journal.inflight(),
            metrics: self.metrics.clone(),
            diagnostics: Diagnostics::new(node.node_id.clone(), self.clock.clone(), move |id| {
                registry.find(id).is_some()
            }),
            limits: self.limits.clone(),
            proxies: self.proxies.clone(),
            ..management::State::new(self.registry.clone(), snippet, self.clock.clone())
        }))
    }

    /// Events, and management unless it has its own listener.
    fn serve_public(
        &self,
        config: &Config,
        (listener, tls): (TcpListener, Option<Tls>),
        node: &Node,
        pixels: Arc<management::State>,
    ) -> anyhow::Result<Serving> {
        let server = config.server.clone();
        let bounds = Bounds {
            max_header_bytes: server.max_header_bytes,
            max_uri_bytes: server.max_uri_bytes,
            body: server.body(),
        };
        let has_own = config.own_management().is_some();
        let (options, node_id): (_, Arc<str>) = (config.ingest.clone(), node.node_id.as_str().into());
        let rejects = Allowance::new(server.workers, config.journal.max_bytes, config.journal.retention);
        let (journal, registry, feed) = (self.journal.clone(), self.registry.clone(), self.feed.clone());
        let (limits, proxies) = (self.limits.clone(), self.proxies.clone());
        let (metrics, clock, pulse) = (self.metrics.clone(), self.clock.clone(), self.pulse.clone());
        let tags: Arc<[_]> = tag::tags(&config.loader_path).into();
        let dedup = self.dedup.clone();
        let diagnostics = pixels.diagnostics.clone();
        let frontier = self.frontier.clone();
        let app = move || {
            let (appender, driver) = journal.appender();
            actix_web::rt::spawn(driver);
            actix_web::rt::spawn(pulse.heart().run());
            let (options, registry, clock) = (options.clone(), registry.clone(), clock.clone());
            let (limits, rejects) = (limits.clone(), rejects.clone());
            let ingest = Ingest::new(options, node_id.clone(), registry, limits, appender, clock, rejects);
            let ingest = ingest.remembering(dedup.clone());
            let (proxies, feed, inflight, metrics) =
                (proxies.clone(), feed.clone(), journal.inflight(), metrics.worker());
            let tags = tags.clone();
            let diagnostics = diagnostics.worker();
            actix_web::rt::spawn(diagnostics.clone().run());
            let worker =
                Rc::new(collect::Worker { ingest, proxies, bounds, inflight, feed, metrics, tags, diagnostics });
            if let Some(frontier) = &frontier {
                actix_web::rt::spawn(member(frontier, worker.clone()).run());
            }
            let events = Some(worker.clone());
            let app = App::new().configure(|services| collect::configure(services, worker));
            let app = match has_own {
                true => app,
                false => app.configure(|services| management::configure(services, pixels.clone())),
            };
            Served { app, events }
        };
        door::serve(connections(config), listener, tls, app).context("server.listen")
    }

    fn sync(&self, proxy: &proxy::Options) -> anyhow::Result<Arc<Sync>> {
        let gate = Gate::new(sync::CALLS, self.clock.clone(), self.metrics.clone());
        let (upstream, connector) = (proxy.upstream.clone(), proxy.connector.clone());
        let sync = Sync::start(self.registry.clone(), upstream, connector, gate);
        Ok(Arc::new(sync.context("the sync of pixels can't be started")?))
    }

    fn upstream(&self, upstream: &config::Upstream, config: &Config) -> anyhow::Result<proxy::Options> {
        let connector = Connector::new(&upstream.options.base).context("registry.upstream: TLS")?;
        Ok(proxy::Options {
            upstream: upstream.options.clone(),
            connector,
            gate: Gate::new(proxy::CALLS, self.clock.clone(), self.metrics.clone()),
            forward_cookies: upstream.forward_cookies.clone(),
            max_uri_bytes: config.server.max_uri_bytes,
        })
    }

    fn serve_ops(
        &self,
        listener: TcpListener,
        (address, public): (SocketAddr, SocketAddr),
        publishing: Option<Arc<publish::Stats>>,
        renewal: Option<Arc<Renewal>>,
        management: Arc<management::State>,
    ) -> anyhow::Result<Server> {
        let state = Arc::new(ops::State {
            journal: self.journal.clone(),
            registry: self.registry.clone(),
            limits: self.limits.clone(),
            proxies: self.proxies.clone(),
            feed: self.feed.clone(),
            heartbeat: ops::HEARTBEAT,
            address,
            public,
            policies: self.policies.clone(),
            renewal,
            management,
            publishing,
            metrics: self.metrics.clone(),
            clock: self.clock.clone(),
            life: self.life.clone(),
            pulse: self.pulse.clone(),
            scraping: Arc::default(),
        });
        let http = HttpServer::new(move || {
            let state = state.clone();
            actix_web::rt::spawn(state.pulse.clone().run());
            App::new().configure(|services| ops::configure(services, state))
        })
        .workers(1)
        .max_connections(OPS_CONNECTIONS)
        .on_connect(ops::remember_connection)
        // A reader of the live feed that closed its side has gone: its place must be free at once.
        .h1_allow_half_closed(false)
        .disable_signals()
        .listen(listener)
        .context("ops.listen")?;
        Ok(http.run())
    }
}
