//! The operator's words, checked: TOML file, then environment, then flags. All problems are found before any ends it.
//!
//! Each key is read once, in [`Config::build`], with its default and what is allowed; what is left over is unknown.

mod source;
mod units;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use source::Problem;
use source::Source;

use crate::event::privacy::{self, ClientIp, UrlQuery};
use crate::ingest::{self, UnknownPixel};
use crate::pixel::{Pixel, PixelId};
use crate::{journal, publish, registry};

/// The effective configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `data_dir`.
    pub data_dir: PathBuf,
    /// `node_id`.
    pub node_id: Option<String>,
    /// `server.*` and `limits.max_body_bytes`.
    pub server: Server,
    /// `ops.listen`.
    pub ops_listen: SocketAddr,
    /// `journal.*`.
    pub journal: journal::Options,
    /// `kafka.*`.
    pub kafka: publish::Options,
    /// `registry.*`.
    pub registry: registry::Options,
    /// `registry.snippet_value` and `.snippet_currency`.
    pub snippet: (String, String),
    /// `validation.*` and `privacy.*`.
    pub ingest: ingest::Options,
    /// `log.level`.
    pub log_level: String,
    /// `log.format` is `json`.
    pub log_json: bool,
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
    /// `server.max_connections`, per process.
    pub max_connections: usize,
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

/// librdkafka properties that are ours to set.
const PROMISES: &[&str] = &[
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "transactional.id",
    "transaction.timeout.ms",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "partitioner",
    "isolation.level",
    "group.id",
    "enable.auto.commit",
    "bootstrap.servers",
    "metadata.broker.list",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "delivery.report.only.error",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "retries",
    "message.send.max.retries",
];

/// Reads a file (if any), the environment, and builds the whole.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, Vec<Problem>> {
    let mut source = Source::default();
    if let Some(file) = file {
        match std::fs::read_to_string(file) {
            Ok(text) => source.toml(&text),
            Err(error) => source.problem("--config", format!("{}: {error}", file.display())),
        }
    }
    source.environment(environment);
    Config::build(source)
}

impl Config {
    fn build(mut source: Source) -> Result<Config, Vec<Problem>> {
        let from = &mut source;
        let data_dir = PathBuf::from(from.text("data_dir", "pixelgate-data"));
        let server = server(from);
        let kafka = kafka(from);
        let journal = journal::Options {
            data_dir: data_dir.clone(),
            acknowledge: from.choice(
                "journal.acknowledge",
                "synced",
                &[("synced", journal::Acknowledge::Synced), ("written", journal::Acknowledge::Written)],
            ),
            max_bytes: from.size("journal.max_bytes", "10GiB", journal::MIN_MAX_BYTES..=u64::MAX / 2),
            segment_bytes: from.size("journal.segment_bytes", "64MiB", journal::MIN_SEGMENT_BYTES..=4 << 30),
            retention: from.span("journal.retention", "24h"),
            on_damage: from.choice(
                "journal.on_damage",
                "skip",
                &[("skip", journal::OnDamage::Skip), ("stop", journal::OnDamage::Stop)],
            ),
            publishes: !kafka.brokers.is_empty(),
        };
        let ingest = ingest(from, kafka.rejected_topic.is_some());
        let registry = registry::Options {
            mode: from.choice("registry.mode", "local", &[("local", registry::Mode::Local)]),
            data_dir: data_dir.clone(),
            pixels: pixels(from),
            max_pixels: from.number("registry.max_pixels", 1_000_000, 1..=100_000_000) as usize,
        };
        let node_id = from.optional_text("node_id");
        if node_id.as_deref().is_some_and(|node_id| !crate::node::is_node_id(node_id)) {
            from.problem("node_id", "allowed are 1 to 64 letters, digits, '.', '_' and '-'".into());
        }
        let config = Config {
            data_dir,
            node_id,
            server,
            ops_listen: from.address("ops.listen", "127.0.0.1:8081"),
            journal,
            kafka,
            registry,
            snippet: (from.text("registry.snippet_value", "0.00"), from.text("registry.snippet_currency", "USD")),
            ingest,
            log_level: from
                .choice(
                    "log.level",
                    "info",
                    &[("error", "error"), ("warn", "warn"), ("info", "info"), ("debug", "debug"), ("trace", "trace")],
                )
                .to_owned(),
            log_json: from.choice("log.format", "text", &[("text", false), ("json", true)]),
        };
        if crate::event::value::parse(&config.snippet.0).is_none() {
            from.problem("registry.snippet_value", "must be a decimal such as 0.00".into());
        }
        if crate::event::currency::parse(&config.snippet.1).is_none() {
            from.problem("registry.snippet_currency", "must be an active ISO 4217 code".into());
        }
        source.finish(config)
    }
}

fn server(from: &mut Source) -> Server {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let listen = from.address("server.listen", "127.0.0.1:8080");
    let public_url = from.text("server.public_url", &format!("http://{listen}"));
    if !privacy::is_url(&public_url) || public_url.contains(['"', '\'', '<', '>', '\\', ' ']) {
        from.problem("server.public_url", format!("{public_url:?} is no http or https URL"));
    }
    Server {
        listen,
        workers: from.number("server.workers", cores as u64, 1..=1024) as usize,
        public_url: public_url.trim_end_matches('/').to_owned(),
        max_connections: from.number("server.max_connections", 10_000, 1..=1_000_000) as usize,
        max_uri_bytes: from.size("server.max_uri_bytes", "16KiB", 256..=64 << 10) as usize,
        max_body_bytes: from.size("limits.max_body_bytes", "64KiB", 1024..=16 << 20) as usize,
        body_timeout: from.span("server.body_timeout", "10s"),
        shutdown_delay: from.span("server.shutdown_delay", "0s"),
        shutdown_timeout: from.span("server.shutdown_timeout", "20s"),
    }
}

fn kafka(from: &mut Source) -> publish::Options {
    let kafka = publish::Options {
        brokers: from.list("kafka.brokers"),
        events_topic: from.text("kafka.events_topic", "pixelgate.events"),
        rejected_topic: Some(from.text("kafka.rejected_topic", "pixelgate.rejected")).filter(|topic| !topic.is_empty()),
        partitions: from.number("kafka.partitions", 0, 0..=10_000) as i32,
        replication_factor: from.number("kafka.replication_factor", 0, 0..=100) as i32,
        transaction_timeout: from.span("kafka.transaction_timeout", "15s"),
        client: from.map("kafka.client"),
    };
    for name in kafka.client.keys().filter(|name| PROMISES.contains(&name.as_str())) {
        from.problem(&format!("kafka.client.{name}"), "set by pixelgate, as its promises rest on it".into());
    }
    publish::Options {
        partitions: if kafka.partitions == 0 { -1 } else { kafka.partitions },
        replication_factor: if kafka.replication_factor == 0 { -1 } else { kafka.replication_factor },
        ..kafka
    }
}

fn ingest(from: &mut Source, journal_rejected: bool) -> ingest::Options {
    let rules = privacy::Options {
        client_ip: from.choice(
            "privacy.client_ip",
            "truncated",
            &[("truncated", ClientIp::Truncated), ("full", ClientIp::Full), ("none", ClientIp::None)],
        ),
        url_query: from.choice(
            "privacy.url_query",
            "allowlist",
            &[("allowlist", UrlQuery::Allowlist), ("keep", UrlQuery::Keep), ("drop", UrlQuery::Drop)],
        ),
        honor_gpc: from.truth("privacy.honor_gpc", true),
    };
    ingest::Options {
        strict: from.truth("validation.strict", false),
        unknown_pixel: from.choice(
            "validation.unknown_pixel",
            "reject",
            &[("reject", UnknownPixel::Reject), ("flag", UnknownPixel::Flag)],
        ),
        privacy: rules,
        journal_rejected,
    }
}

/// `[[registry.pixels]]`: id, and optionally name, tag, fb_ad_account_id.
fn pixels(from: &mut Source) -> Vec<Pixel> {
    let mut pixels = Vec::new();
    for (index, mut table) in from.tables("registry.pixels").into_iter().enumerate() {
        let key = format!("registry.pixels[{index}]");
        let mut text = |name: &str| table.remove(name).and_then(|value| value.as_str().map(str::to_owned));
        let (id, name, tag) = (text("id"), text("name"), text("tag"));
        let ad_account_id = text("fb_ad_account_id");
        let Some(id) = id.as_deref().and_then(|id| PixelId::parse(id.as_bytes())) else {
            from.problem(&format!("{key}.id"), "must be a text of 1 to 20 digits without a leading zero".into());
            continue;
        };
        for left in table.keys() {
            from.problem(
                &format!("{key}.{left}"),
                "unknown or no text; allowed: id, name, tag, fb_ad_account_id".into(),
            );
        }
        let tag = tag.map(|tag| tag.to_lowercase());
        pixels.push(Pixel { id, name, tag, ad_account_id, archived: false });
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(toml: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        let mut source = Source::default();
        source.toml(toml);
        source.environment(environment.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        Config::build(source).map_err(|problems| problems.iter().map(Problem::to_string).collect())
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let problems = from(
            "node_id = 'a b'\n[server]\nlisten = 'nowhere'\nworkers = 0\nbody_timeout = '10 parsecs'\nlisen = 1\n\
             [journal]\nmax_bytes = '1'\nacknowledge = 'maybe'\n[privacy]\nhonor_gpc = 'yes'\n[kafka]\nbrokers = 1\n",
            &[("PIXELGATE_LOG__LEVL", "info")],
        )
        .unwrap_err();
        assert_eq!(problems.len(), 10, "{problems:#?}");
        assert!(problems.iter().any(|line| line.starts_with("server.lisen: ") && line.contains("server.listen")));
        assert!(problems.iter().any(|line| line.contains("log.levl") && line.contains("log.level")));
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let config = from(
            "[journal]\nmax_bytes = '5GiB'\nretention = '1h'\n[[registry.pixels]]\nid = '42'\n",
            &[
                ("PIXELGATE_JOURNAL__MAX_BYTES", "2GiB"),
                ("PIXELGATE_DATA_DIR", "/d"),
                ("PIXELGATE_SERVICE_HOST", "1.2.3.4"),
                ("PIXELGATE_PORT_80_TCP", "x"),
                ("HOME", "/h"),
            ],
        )
        .unwrap();
        assert_eq!((config.journal.max_bytes, config.journal.retention), (2 << 30, Duration::from_secs(3600)));
        assert_eq!(config.data_dir, Path::new("/d"));
        assert_eq!(config.registry.pixels[0].id.to_string(), "42");
    }

    #[test]
    fn broken_toml_is_one_clear_problem() {
        let problems = from("a = [", &[]).unwrap_err();
        assert!(problems[0].starts_with("--config: "), "{problems:?}");
    }
}
