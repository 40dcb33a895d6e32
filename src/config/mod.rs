//! The operator's words, checked: TOML file, then environment, then flags. All problems are found before any ends it.
//!
//! `keys` has one row per key; `source` finds the operator's value, `kind` checks it, `words` holds what came of it,
//! and `Config::build`, which can't fail, hands it to the components' `Options`. `reference` writes configs.

mod keys;
mod kind;
mod overlay;
pub mod reference;
mod rules;
mod source;
#[cfg(test)]
mod tests;
pub mod units;
mod words;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
pub use source::Problem;
use source::Source;
use words::Words;

use crate::event::privacy::{self, ClientIp, UrlQuery};
use crate::event::visitor;
use crate::http::{body, client, tls};
use crate::ingest::{self, UnknownPixel};
use crate::policy::{self, Policies, Treatment};
use crate::registry::database::Address;
use crate::registry::report::Report;
use crate::{dedup, journal, limits, publish, registry, upstream};

/// The effective configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `data_dir`.
    pub data_dir: PathBuf,
    /// `data_dir_unsafe`.
    pub data_dir_unsafe: bool,
    /// `node_id`.
    pub node_id: Option<String>,
    /// `server.*` and `limits.max_body_bytes`.
    pub server: Server,
    /// `ops.listen`.
    pub ops_listen: SocketAddr,
    /// `management.listen`.
    pub management_listen: Option<SocketAddr>,
    /// `journal.*`.
    pub journal: journal::Options,
    /// `kafka.*`.
    pub kafka: publish::Options,
    /// `registry.*`.
    pub registry: registry::Options,
    /// `registry.snippet_value` and `.snippet_currency`.
    pub snippet: (String, String),
    /// `tag.loader_path`.
    pub loader_path: String,
    /// `dedup.*`.
    pub dedup: dedup::Options,
    /// `limits.*`, but for the body's size.
    pub limits: limits::Options,
    /// `registry.upstream*` and `registry.forward_cookies`; only with `registry.mode = "proxy"`.
    pub upstream: Option<Upstream>,
    /// `validation.*` and `privacy.*`.
    pub ingest: ingest::Options,
    /// `privacy.browser_id` and `cookie.*`; `None` if no visitor gets an id.
    pub visitor: Option<visitor::Options>,
    /// `log.level`.
    pub log_level: String,
    /// `log.format` is `json`.
    pub log_json: bool,
    words: Words,
}

/// The public listener.
#[derive(Clone, Debug)]
pub struct Server {
    /// `server.listen`.
    pub listen: SocketAddr,
    /// `server.workers`.
    pub workers: usize,
    /// `server.public_url`, without a trailing slash.
    pub public_url: String,
    /// `server.tls.*`, if there is a certificate.
    pub tls: Option<tls::Options>,
    /// `server.trusted_proxies`; `None` if nobody said.
    pub trusted_proxies: Option<Vec<IpNet>>,
    /// `server.max_connections`, per process.
    pub max_connections: usize,
    /// `server.max_header_bytes`.
    pub max_header_bytes: usize,
    /// `server.max_inflight_bytes`.
    pub max_inflight_bytes: u64,
    /// `server.max_uri_bytes`.
    pub max_uri_bytes: usize,
    /// `limits.max_body_bytes`.
    pub max_body_bytes: usize,
    /// `server.body_timeout`.
    pub body_timeout: Duration,
    /// `server.shutdown_delay`.
    pub shutdown_delay: Duration,
    /// `server.shutdown_timeout`.
    pub shutdown_timeout: Duration,
}

/// Another authority, which answers management requests.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Where it is and how long it may take.
    pub options: upstream::Options,
    /// `registry.forward_cookies`.
    pub forward_cookies: Vec<String>,
}

/// Reads a file (if any), the environment, and builds the whole. A key with a problem has its default: only for
/// finding more problems.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> (Config, Vec<Problem>) {
    let mut source = Source::default();
    if let Some(file) = file {
        match std::fs::read_to_string(file) {
            Ok(text) => source.toml(&text),
            Err(error) => {
                source.problem("--config", format!("{}: {error}; allowed is a readable file", file.display()))
            }
        }
    }
    source.environment(environment);
    let (words, problems) = Words::read(source);
    (Config::build(words), problems)
}

impl Config {
    /// The effective config as TOML, secrets redacted.
    pub fn to_toml(&self) -> String {
        reference::effective(&self.words)
    }

    /// The address of management if it has its own listener. Set to the public one's, it has not.
    pub fn own_management(&self) -> Option<SocketAddr> {
        self.management_listen.filter(|listen| *listen != self.server.listen)
    }

    /// Public, ops and management listen where sockets were handed over, whatever the keys say.
    pub fn listen_on(&mut self, [public, ops, management]: [Option<SocketAddr>; 3]) {
        let own_management = self.own_management();
        if let Some(public) = public {
            let derived = |listen| words::public_url(listen, self.server.tls.is_some());
            if self.server.public_url == derived(self.server.listen) {
                self.server.public_url = derived(public);
            }
            self.server.listen = public;
        }
        // What said that management is public on purpose goes on saying it.
        let meant = self.management_listen.filter(|_| own_management.is_none()).map(|_| self.server.listen);
        self.management_listen = management.or(own_management).or(meant);
        self.ops_listen = ops.unwrap_or(self.ops_listen);
    }

    fn build(words: Words) -> Config {
        let from = &words;
        let data_dir = PathBuf::from(from.text("data_dir"));
        let kafka = kafka(from);
        Config {
            data_dir_unsafe: from.truth("data_dir_unsafe"),
            node_id: from.optional_text("node_id").map(str::to_owned),
            server: server(from),
            ops_listen: from.address("ops.listen"),
            management_listen: from.optional_address("management.listen"),
            journal: journal(from, &data_dir),
            dedup: dedup::Options { window: from.span("dedup.window"), max_ids: from.count("dedup.max_ids") },
            limits: limits(from),
            ingest: ingest(from, kafka.rejected_topic.is_some()),
            kafka,
            registry: registry::Options {
                mode: registry_mode(from),
                data_dir: data_dir.clone(),
                pixels: from.pixels("registry.pixels"),
                max_pixels: from.count("registry.max_pixels"),
                learning: learning(from),
                database: from.optional_secret("registry.database").and_then(|url| Address::parse(url.expose())),
            },
            upstream: upstream(from),
            visitor: visitor(from),
            data_dir,
            snippet: (from.text("registry.snippet_value"), from.text("registry.snippet_currency")),
            loader_path: from.text("tag.loader_path"),
            log_level: from.text("log.level"),
            log_json: from.choice("log.format", &[("text", false), ("json", true)]),
            words,
        }
    }
}

fn server(from: &Words) -> Server {
    Server {
        listen: from.address("server.listen"),
        workers: from.count("server.workers"),
        public_url: from.text("server.public_url").trim_end_matches('/').to_owned(),
        tls: tls(from),
        trusted_proxies: from
            .optional_list("server.trusted_proxies")
            .map(|nets| nets.iter().filter_map(|net| client::parse_net(net)).collect()),
        max_connections: from.count("server.max_connections"),
        max_header_bytes: from.size("server.max_header_bytes") as usize,
        max_inflight_bytes: from.size("server.max_inflight_bytes"),
        max_uri_bytes: from.size("server.max_uri_bytes") as usize,
        max_body_bytes: from.size("limits.max_body_bytes") as usize,
        body_timeout: from.span("server.body_timeout"),
        shutdown_delay: from.span("server.shutdown_delay"),
        shutdown_timeout: from.span("server.shutdown_timeout"),
    }
}

fn tls(from: &Words) -> Option<tls::Options> {
    let certificate = from.optional_text("server.tls.certificate")?.into();
    let key = from.optional_text("server.tls.key")?.into();
    let age = from.span("server.tls.hsts_max_age").as_secs();
    let below = if from.truth("server.tls.hsts_include_subdomains") { "; includeSubDomains" } else { "" };
    Some(tls::Options {
        files: tls::Files { certificate, key },
        only_13: from.choice("server.tls.min_version", &[("1.2", false), ("1.3", true)]),
        hsts: (age > 0).then(|| format!("max-age={age}{below}")),
    })
}

impl Server {
    /// Bounds of a body, on each listener.
    pub fn body(&self) -> body::Bounds {
        body::Bounds { max_bytes: self.max_body_bytes, pause: self.body_timeout }
    }
}

fn limits(from: &Words) -> limits::Options {
    let rate = |path| {
        let limit = from.limit(path)?;
        Some(limits::Rate { count: limit.rate, period: limit.per, burst: limit.burst })
    };
    limits::Options {
        mode: from.choice(
            "limits.mode",
            &[("enforce", limits::Mode::Enforce), ("observe", limits::Mode::Observe), ("off", limits::Mode::Off)],
        ),
        per_ip: rate("limits.per_ip"),
        per_pixel: rate("limits.per_pixel"),
        management: rate("limits.management"),
    }
}

fn journal(from: &Words, data_dir: &Path) -> journal::Options {
    journal::Options {
        data_dir: data_dir.to_path_buf(),
        acknowledge: from.choice(
            "journal.acknowledge",
            &[("synced", journal::Acknowledge::Synced), ("written", journal::Acknowledge::Written)],
        ),
        max_bytes: from.size("journal.max_bytes"),
        segment_bytes: from.size("journal.segment_bytes"),
        retention: from.span("journal.retention"),
        on_damage: from
            .choice("journal.on_damage", &[("skip", journal::OnDamage::Skip), ("stop", journal::OnDamage::Stop)]),
        publishes: !from.list("kafka.brokers").is_empty(),
    }
}

fn kafka(from: &Words) -> publish::Options {
    publish::Options {
        brokers: from.list("kafka.brokers"),
        delivery: from.choice(
            "kafka.delivery",
            &[("exactly_once", publish::Delivery::ExactlyOnce), ("at_least_once", publish::Delivery::AtLeastOnce)],
        ),
        key: from.choice("kafka.key", &[("pixel_id", publish::Key::PixelId), ("record_id", publish::Key::RecordId)]),
        events_topic: from.text("kafka.events_topic"),
        rejected_topic: Some(from.text("kafka.rejected_topic")).filter(|topic| !topic.is_empty()),
        progress_topic: Some(from.text("kafka.progress_topic")).filter(|topic| !topic.is_empty()),
        partitions: from.number("kafka.partitions") as i32,
        replication_factor: from.number("kafka.replication_factor") as i32,
        encoding: encoding(from),
        cloudevents: from.truth("kafka.cloudevents"),
        transaction_timeout: from.span("kafka.transaction_timeout"),
        client: from.properties("kafka.client"),
    }
}

/// None for JSON: the registry is not asked then.
fn encoding(from: &Words) -> Option<publish::Encoding> {
    let formats =
        [("json", None), ("avro", Some(publish::Format::Avro)), ("protobuf", Some(publish::Format::Protobuf))];
    let format = from.choice("kafka.format", &formats)?;
    let base = upstream::Base::parse(from.optional_text("kafka.schema_registry.url")?)?;
    let user = from.optional_text("kafka.schema_registry.username").map(str::to_owned);
    let password = from.optional_secret("kafka.schema_registry.password").cloned();
    let auto_register = from.truth("kafka.schema_registry.auto_register");
    let registry = publish::SchemaRegistry { base, credentials: user.zip(password), auto_register };
    Some(publish::Encoding { format, registry })
}

fn learning(from: &Words) -> registry::Learning {
    registry::Learning {
        ad_accounts: from.list("registry.ad_accounts"),
        any: from.choice("registry.learn", &[("listed", false), ("any", true)]),
        token: from.optional_secret("registry.upstream_token").cloned(),
        sync_interval: from.span("registry.sync_interval"),
        grace: from.span("registry.grace"),
        report: from.choice(
            "registry.report_last_events",
            &[("auto", Report::Auto), ("always", Report::Always), ("never", Report::Never)],
        ),
    }
}

fn registry_mode(from: &Words) -> registry::Mode {
    from.choice("registry.mode", &[("local", registry::Mode::Local), ("proxy", registry::Mode::Proxy)])
}

fn upstream(from: &Words) -> Option<Upstream> {
    let base = from.optional_text("registry.upstream").filter(|_| registry_mode(from) == registry::Mode::Proxy)?;
    let base = upstream::Base::parse(base).expect("the row's rule allows nothing else");
    Some(Upstream {
        options: upstream::Options { base, timeout: from.span("registry.upstream_timeout") },
        forward_cookies: from.list("registry.forward_cookies"),
    })
}

fn policies(from: &Words) -> Policies {
    let mut own = from.overlays("pixels.*");
    let all = own.remove(&None).unwrap_or_default();
    let gpc = if from.truth("privacy.honor_gpc") { Treatment::Anonymise } else { Treatment::Ignore };
    Policies::new(own.into_iter().filter_map(|(pixel, overlay)| Some((pixel?, overlay))), all, gpc)
}

fn visitor(from: &Words) -> Option<visitor::Options> {
    let modes = [("off", None), ("on_consent", Some(visitor::Mode::OnConsent)), ("on", Some(visitor::Mode::On))];
    Some(visitor::Options {
        mode: from.choice("privacy.browser_id", &modes)?,
        name: from.text("cookie.name"),
        domain: from.optional_text("cookie.domain").map(str::to_ascii_lowercase),
        max_age: from.span("cookie.max_age"),
        same_site: from.choice("cookie.same_site", &[("lax", "Lax"), ("strict", "Strict"), ("none", "None")]),
        secure: from.truth("cookie.secure"),
        host: policy::host(&from.text("server.public_url")).unwrap_or_default().to_owned(),
    })
}

fn ingest(from: &Words, journal_rejected: bool) -> ingest::Options {
    let rules = privacy::Options {
        client_ip: from.choice(
            "privacy.client_ip",
            &[("truncated", ClientIp::Truncated), ("full", ClientIp::Full), ("none", ClientIp::None)],
        ),
        url_query: from.choice(
            "privacy.url_query",
            &[("allowlist", UrlQuery::Allowlist), ("keep", UrlQuery::Keep), ("drop", UrlQuery::Drop)],
        ),
    };
    ingest::Options {
        strict: from.truth("validation.strict"),
        unknown_pixel: from
            .choice("validation.unknown_pixel", &[("reject", UnknownPixel::Reject), ("flag", UnknownPixel::Flag)]),
        privacy: rules,
        policies: Arc::new(policies(from)),
        visitor: visitor(from).as_ref().map(visitor::Rules::new),
        journal_rejected,
    }
}
