//! One row per key: its path, what is allowed, its default, and the sentence that documents it.
//!
//! From these rows come the accepted keys, the names of environment variables, `config/pixelgate.toml` and the output
//! of `pixelgate config`. A new key is a row here, a field of its component's `Options`, a line in `Config::build`, a
//! line in docs/contract.md §2, and `PIXELGATE_WRITE_REFERENCE=1 cargo test --lib config::reference`.

use super::kind::Kind::{self, *};
use super::rules;
use crate::dedup::WINDOW_MAX_DAYS;
use crate::event::visitor::MAX_AGE_MAX_DAYS;
use crate::journal::{MIN_MAX_BYTES, MIN_SEGMENT_BYTES};

/// A key. Rows of one section stand together, in the order of the reference.
#[derive(Debug)]
pub(super) struct Key {
    /// `section.key`, or a top-level key.
    pub(super) path: &'static str,
    /// What is allowed.
    pub(super) kind: Kind,
    /// What holds when nobody says anything.
    pub(super) default: Default,
    /// Its meaning, in sentences.
    pub(super) doc: &'static str,
}

/// What holds without a word from the operator.
#[derive(Debug)]
pub(super) enum Default {
    /// This text, read as the file's would be.
    Is(&'static str),
    /// Nothing is set; the text says what then.
    Unset(&'static str),
}

const fn key(path: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { path, kind, default: Default::Is(default), doc }
}

const fn unset(path: &'static str, kind: Kind, then: &'static str, doc: &'static str) -> Key {
    Key { path, kind, default: Default::Unset(then), doc }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: u64 = 1000;
const HOUR: u64 = 3600 * SECOND;
const DAY: u64 = 24 * HOUR;

/// All keys.
pub(super) const KEYS: &[Key] = &[
    key(
        "data_dir",
        Text(rules::PATH),
        "pixelgate-data",
        "Holds everything that must survive: a local disk of its own, one per node, never shared.",
    ),
    key(
        "data_dir_unsafe",
        Truth,
        "false",
        "true: data_dir may be on tmpfs, NFS, SMB or an unknown FUSE file system, where a 2xx may be forgotten.",
    ),
    unset(
        "node_id",
        Text(rules::NODE_ID),
        "made once and kept in data_dir",
        "This node's name in records and Kafka identities. Another one than data_dir's is refused.",
    ),
    key("server.listen", Address, "127.0.0.1:8080", "Public listener: events, and management unless it has its own."),
    unset("server.workers", Number(1, 1024), "one per core", "HTTP threads."),
    unset(
        "server.public_url",
        Text(rules::URL),
        "derived from server.listen",
        "What pages load: goes into snippets, never taken from a request's Host.",
    ),
    unset(
        "server.trusted_proxies",
        List(rules::NETWORK),
        "X-Forwarded-For is ignored and counted, and limits.per_ip not enforced where it is sent",
        "Proxies whose X-Forwarded-For is believed, as 10.0.0.0/8 or 10.1.2.3. None, []: visitors connect directly.",
    ),
    unset(
        "server.tls.certificate",
        Text(rules::PATH),
        "plain HTTP",
        "PEM file with the certificate and those above it: then the public listener, and management's own, speak TLS, \
         HTTP/1.1 and HTTP/2. Read anew when it changes, and on SIGHUP.",
    ),
    unset("server.tls.key", Text(rules::PATH), "plain HTTP", "PEM file with the certificate's key."),
    key("server.tls.min_version", Choice(&["1.2", "1.3"]), "1.2", "Oldest version of TLS that is spoken."),
    key(
        "server.tls.hsts_max_age",
        Span(0, 3650 * DAY),
        "0s",
        "How long browsers shall come by https only (Strict-Transport-Security). 0s: not said.",
    ),
    key("server.tls.hsts_include_subdomains", Truth, "false", "true: that holds for all hosts below this one as well."),
    key("server.max_connections", Number(1, 1_000_000), "10000", "Open connections, all workers together."),
    key(
        "server.max_header_bytes",
        Size(KIB, 96 * KIB),
        "32KiB",
        "Longest headers of an event request in all, else 431 header_too_large.",
    ),
    key("server.max_uri_bytes", Size(256, 64 * KIB), "16KiB", "Longest request target, else 414 uri_too_long."),
    key(
        "server.body_timeout",
        Span(100, HOUR),
        "10s",
        "Longest pause between two chunks of a body, else 408 body_timeout.",
    ),
    key(
        "server.max_inflight_bytes",
        Size(64 * KIB, 16 * GIB),
        "32MiB",
        "Bodies being read and records waiting for the disk, in all, else 503 overloaded. At least \
         limits.max_body_bytes.",
    ),
    key(
        "server.shutdown_delay",
        Span(0, HOUR),
        "0s",
        "On SIGTERM: unready, still serving for this long. Longer than a load balancer takes to notice /readyz.",
    ),
    key(
        "server.shutdown_timeout",
        Span(0, HOUR),
        "20s",
        "Then: stop listening, answer what is in flight, last commit, flush; what takes longer is dropped.",
    ),
    key("ops.listen", Address, "127.0.0.1:8081", "Operators' listener: /livez, /readyz, /metrics."),
    unset(
        "management.listen",
        Address,
        "the public listener",
        "A listener of its own for /offsitepixels, which the public one then doesn't have. Set to server.listen's \
         address it says that management is public on purpose.",
    ),
    key(
        "journal.acknowledge",
        Choice(&["synced", "written"]),
        "synced",
        "Reply after fdatasync; written: after the write, synced in the background at least once a second.",
    ),
    key(
        "journal.max_bytes",
        Size(MIN_MAX_BYTES, u64::MAX / 2),
        "10GiB",
        "Room for records. Only unpublished and parked bytes, or a full disk, can cause journal_full.",
    ),
    key("journal.segment_bytes", Size(MIN_SEGMENT_BYTES, 4 * GIB), "64MiB", "Size of a segment file."),
    key(
        "journal.retention",
        Span(0, 3650 * DAY),
        "24h",
        "Published segments are kept this long while room lasts; without Kafka, any segment. The open one is closed at \
         this age (a minute at least): what is published is gone after twice this time and a minute.",
    ),
    key(
        "journal.on_damage",
        Choice(&["skip", "stop"]),
        "skip",
        "Records damaged on disk are counted and stepped over; stop: publishing waits for a person.",
    ),
    key(
        "kafka.brokers",
        List(rules::BROKER),
        "",
        "HOST:PORT of some brokers; none: records rest in the journal. Set later, everything retained is published.",
    ),
    key(
        "kafka.delivery",
        Choice(&["exactly_once", "at_least_once"]),
        "exactly_once",
        "Records and cursor in one transaction; at_least_once: without transactions, doubles share their record_id.",
    ),
    key(
        "kafka.events_topic",
        Text(rules::TOPIC),
        "pixelgate.events",
        "Where events go. Created when missing and permitted.",
    ),
    key(
        "kafka.rejected_topic",
        Text(rules::TOPIC_OR_NONE),
        "pixelgate.rejected",
        "Where rejected requests go. Empty: they are not even journaled.",
    ),
    key(
        "kafka.progress_topic",
        Text(rules::TOPIC_OR_NONE),
        "",
        "Where each node reports up to when all its events are in Kafka; compacted, by node. Empty: nowhere.",
    ),
    key("kafka.partitions", OrBrokers(10_000), "-1", "Partitions of topics that pixelgate creates."),
    key("kafka.replication_factor", OrBrokers(100), "-1", "Replicas of topics that pixelgate creates."),
    key(
        "kafka.key",
        Choice(&["pixel_id", "record_id"]),
        "pixel_id",
        "What partitions go by; record_id: hot pixels spread over all partitions.",
    ),
    key(
        "kafka.format",
        Choice(&["json", "avro", "protobuf"]),
        "json",
        "What values are. Not json: in Confluent's wire format, with an id of kafka.schema_registry.",
    ),
    unset(
        "kafka.schema_registry.url",
        Text(rules::UPSTREAM),
        "needed with kafka.format = avro or protobuf",
        "Where the schema registry is, by Confluent's interface: Confluent's, Apicurio's (/apis/ccompat/v7), Karapace.",
    ),
    unset("kafka.schema_registry.username", Text(rules::USERNAME), "no credentials", "Basic authentication."),
    unset(
        "kafka.schema_registry.password",
        Secret(rules::PASSWORD),
        "no credentials",
        "Better in a file, named by PIXELGATE_KAFKA__SCHEMA_REGISTRY__PASSWORD_FILE.",
    ),
    key(
        "kafka.schema_registry.auto_register",
        Truth,
        "true",
        "Schemas that aren't there are registered. false: they must be there.",
    ),
    key(
        "kafka.cloudevents",
        Truth,
        "false",
        "Each record is a CloudEvent as well: its attributes in headers, its value unchanged.",
    ),
    key(
        "kafka.transaction_timeout",
        Span(SECOND, HOUR),
        "15s",
        "The longest that a dead node can hold back read_committed consumers.",
    ),
    key(
        "kafka.client",
        Client,
        "",
        "Any librdkafka property, such as TLS and SASL. Secrets are better in a file, named by a variable:\n\
         PIXELGATE_KAFKA__CLIENT__SASL_PASSWORD_FILE.",
    ),
    key(
        "registry.mode",
        Choice(&["local", "proxy"]),
        "local",
        "local: pixels are created here and kept in data_dir. proxy: another authority, registry.upstream, has them.",
    ),
    unset(
        "registry.upstream",
        Text(rules::UPSTREAM),
        "needed with mode = \"proxy\"",
        "Base URL that /offsitepixels is passed on to. https, unless it is on this machine.",
    ),
    key(
        "registry.upstream_timeout",
        Span(100, 10 * 60 * SECOND),
        "15s",
        "Longest wait for the upstream's first byte, and between two chunks of its reply, else 504.",
    ),
    unset(
        "registry.upstream_token",
        Secret(rules::TOKEN),
        "ad accounts are synced without one",
        "The gateway's own token of the upstream. Better in a file, named by PIXELGATE_REGISTRY__UPSTREAM_TOKEN_FILE.",
    ),
    key(
        "registry.ad_accounts",
        List(rules::AD_ACCOUNT),
        "",
        "Ad accounts whose pixels are known here: their lists are synced, and replies about them teach.",
    ),
    key(
        "registry.sync_interval",
        Span(SECOND, HOUR),
        "60s",
        "How often each list is asked for. Good for three times as long; then unknown ids are accepted unchecked.",
    ),
    key(
        "registry.learn",
        Choice(&["listed", "any"]),
        "listed",
        "Replies that teach: about registry.ad_accounts, or to registry.upstream_token; any: every authorised one.",
    ),
    key(
        "registry.grace",
        Span(0, 365 * DAY),
        "24h",
        "How long a pixel stays known that its ad account's list no longer has.",
    ),
    key(
        "registry.report_last_events",
        Choice(&["auto", "always", "never"]),
        "auto",
        "Tells the upstream when pixels fired last, so that its status is true for a fleet; auto: if it says that it \
         is a pixelgate.",
    ),
    key(
        "registry.forward_cookies",
        List(rules::COOKIE),
        "",
        "Names of cookies that pass between clients and the upstream; all others are dropped, both ways.",
    ),
    key("registry.max_pixels", Number(1, 100_000_000), "1000000", "Bound of the known pixels."),
    unset(
        "registry.database",
        Secret(rules::DATABASE),
        "SQLite in data_dir",
        "With mode = \"local\": a PostgreSQL database that several authorities share.\n\
         postgres://user:password@host/name, better in a file, named by PIXELGATE_REGISTRY__DATABASE_FILE.",
    ),
    key(
        "registry.pixels",
        Pixels,
        "",
        "Static pixels, each with its id, and name, tag, fb_ad_account_id as far as known. All are texts: id = \"42\".",
    ),
    key("registry.snippet_value", Text(rules::VALUE), "0.00", "The value that a fresh js_pixel carries."),
    key("registry.snippet_currency", Text(rules::CURRENCY), "USD", "The currency that a fresh js_pixel carries."),
    key(
        "pixels.*",
        Overlays,
        "",
        "What is laid over single pixels of any registry, or over all: [pixels.\"*\"]. origins: hosts of the pages \
         that may report, else 403 origin_not_allowed; none among them: also requests that name no page. gpc, \
         consent: what Sec-GPC: 1 and consent=denied do; ignore, anonymise (as privacy.honor_gpc), drop (no record).",
    ),
    key(
        "limits.mode",
        Choice(&["enforce", "observe", "off"]),
        "enforce",
        "What happens over a limit: 429 rate_limited; observe: only counted; off: not even that. Limits are per node.",
    ),
    key(
        "limits.per_ip",
        Rate,
        "{ rate = \"200/s\", burst = 1000 }",
        "Event requests of one visitor's address, IPv6 by /64. Rates are per s, m or h; \"off\" for none.",
    ),
    key("limits.per_pixel", Rate, "off", "Event requests for one pixel."),
    key(
        "limits.management",
        Rate,
        "{ rate = \"50/s\", burst = 200 }",
        "Management requests per address, and per token.",
    ),
    key("limits.max_body_bytes", Size(KIB, 16 * MIB), "64KiB", "Longest body, else 413 body_too_large."),
    key(
        "dedup.window",
        Span(0, WINDOW_MAX_DAYS * DAY),
        "48h",
        "The same pixel, event name and event id within this time make one record, on one node; 0s: off. After a \
         restart, as far as the journal still has the records: see journal.retention.",
    ),
    key(
        "dedup.max_ids",
        Number(0, 100_000_000),
        "500000",
        "Event ids that are remembered, 29 bytes each, taken as they come; the oldest are forgotten first. 0: off.",
    ),
    key(
        "privacy.client_ip",
        Choice(&["truncated", "full", "none"]),
        "truncated",
        "Visitors' addresses in records: v4 to /24 and v6 to /48, whole, or none.",
    ),
    key(
        "privacy.url_query",
        Choice(&["allowlist", "keep", "drop"]),
        "allowlist",
        "Queries of URLs in records: utm_* and click ids, all, or none.",
    ),
    key(
        "privacy.honor_gpc",
        Truth,
        "true",
        "With Sec-GPC: 1 the record has no browser_id, fbp, fbc or click ids; the event still counts.",
    ),
    key(
        "privacy.browser_id",
        Choice(&["off", "on_consent", "on"]),
        "off",
        "A first-party visitor id in records, kept in a cookie that the reply sets; on_consent: after consent=granted; \
         on: unless consent=denied. Never with Sec-GPC: 1 honoured. See [cookie].",
    ),
    key(
        "cookie.name",
        Text(rules::OWN_COOKIE),
        "pgid",
        "The visitor id's cookie, HttpOnly. With __Host- or __Secure- before it browsers hold it to what that means.",
    ),
    unset(
        "cookie.domain",
        Text(rules::DOMAIN),
        "the gateway's own host alone",
        "The cookie's domain, such as shop.example: it goes to all hosts below. _fbp and _fbc get the same.",
    ),
    key("cookie.max_age", Span(SECOND, MAX_AGE_MAX_DAYS * DAY), "8760h", "Its life, from each event on."),
    key(
        "cookie.same_site",
        Choice(&["lax", "strict", "none"]),
        "lax",
        "Whether other sites' pages may bring it: none, for a gateway at another site than its pages, needs secure.",
    ),
    key("cookie.secure", Truth, "true", "Sent over https only (and to localhost)."),
    key("validation.strict", Truth, "false", "Reject an invalid value or currency instead of leaving it out."),
    key(
        "validation.unknown_pixel",
        Choice(&["reject", "flag"]),
        "reject",
        "What happens to events of unknown pixels; flag: accepted with a warning.",
    ),
    key(
        "tag.loader_path",
        Text(rules::LOADER),
        "/site.js",
        "Where pages load the tag of fbq from: a name that filter lists have no rule for.",
    ),
    key("log.format", Choice(&["text", "json"]), "text", "Logs go to stderr."),
    key("log.level", Choice(&["error", "warn", "info", "debug", "trace"]), "info", "Lines from this level on."),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn rows_are_unique_and_sections_stand_together() {
        let paths: BTreeSet<&str> = KEYS.iter().map(|key| key.path).collect();
        assert_eq!(paths.len(), KEYS.len());
        let mut sections: Vec<&str> = KEYS.iter().map(|key| key.path.split_once('.').map_or("", |(s, _)| s)).collect();
        sections.dedup();
        assert_eq!(sections.iter().collect::<BTreeSet<_>>().len(), sections.len(), "{sections:?}");
        assert_eq!(sections[0], "", "TOML's top-level keys come first");
    }
}
