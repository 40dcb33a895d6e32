//! What both `check` and `serve` find wrong with a config that is well written: `serve` refuses what `check` calls a
//! problem. Told by `check` alone are a disk without room and what Kafka answers: a gateway must start on the one, and
//! without the other.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::Config;
use crate::config::units::write_bytes;
use crate::filesystem::{self, Verdict};
use crate::http::tls::Pair;
use crate::journal::frame::MAX_RECORD_BYTES;
use crate::publish::Encoding;
use crate::publish::ask::{self, Answer};
use crate::registry::{self, commands};
use crate::time::{Clock, SystemClock};
use crate::upstream;

/// A certificate that expires within this time is told: automatic renewal is long overdue by then.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// How long a check waits for a connection to the upstream.
const UPSTREAM_WAITS: Duration = Duration::from_secs(3);

/// One line of `check`: `key: what is wrong, what is allowed`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// Refused.
    Problem(String),
    /// Told.
    Warning(String),
}

/// Whether the data directory's file system keeps what it says.
pub fn file_system(config: &Config) -> Option<Finding> {
    let path = config.data_dir.display();
    let allowed = "allowed is a local disk, or data_dir_unsafe = true";
    Some(match filesystem::inspect(&config.data_dir) {
        Ok(Verdict::Good) => return None,
        Ok(Verdict::Refused(why)) if !config.data_dir_unsafe => {
            Finding::Problem(format!("data_dir: {path}: {why}; {allowed}"))
        }
        Ok(Verdict::Refused(why) | Verdict::Doubtful(why)) => Finding::Warning(format!("data_dir: {path}: {why}")),
        Err(error) => Finding::Warning(format!("data_dir: {path}: its file system can't be asked: {error}")),
    })
}

/// Whether management is open to the world without anybody having said so.
pub fn management(config: &Config) -> Option<Finding> {
    let listen = config.server.listen;
    let is_asked_for = config.management_listen.is_some() || listen.ip().to_canonical().is_loopback();
    (!is_asked_for).then(|| {
        Finding::Warning(format!(
            "management.listen: /offsitepixels is served on {listen} beside events; give it an address of its own, or \
             {listen} to say that this is meant"
        ))
    })
}

/// Whether anybody may say for whom he speaks.
pub fn proxies(config: &Config) -> Option<Finding> {
    let nets = config.server.trusted_proxies.iter().flatten();
    let all: Vec<String> = nets.filter(|net| net.prefix_len() == 0).map(|net| net.to_string()).collect();
    (!all.is_empty()).then(|| {
        let all = all.join(", ");
        Finding::Warning(format!(
            "server.trusted_proxies: {all} lets every visitor choose an address; list the proxies alone"
        ))
    })
}

/// Whether browsers take the visitor's cookie from where pages send their events. Hosts beside `public_url` may.
pub fn cookie(config: &Config) -> Option<Finding> {
    let (cookie, url) = (config.visitor.as_ref()?, &config.server.public_url);
    let host = cookie.host.to_ascii_lowercase();
    if let Some(domain) = cookie.domain.as_ref().filter(|domain| {
        host != **domain && !host.strip_suffix(domain.as_str()).is_some_and(|below| below.ends_with('.'))
    }) {
        return Some(Finding::Warning(format!(
            "cookie.domain: {domain} doesn't hold server.public_url = {url}, so browsers drop the cookie there"
        )));
    }
    let is_plain = !url.starts_with("https:") && !url.starts_with("HTTPS:");
    let is_here =
        host.ends_with("localhost") || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    (cookie.secure && is_plain && !is_here).then(|| {
        Finding::Warning(format!(
            "cookie.secure: server.public_url = {url} is no https, so browsers drop the cookie there"
        ))
    })
}

/// The certificate and its key, if there are to be any. Warnings that go with them are told to `warn`.
pub fn certificate(config: &Config, mut warn: impl FnMut(String)) -> Result<Option<Pair>, String> {
    let Some(tls) = &config.server.tls else { return Ok(None) };
    let pair = tls.files.read().map_err(|fault| fault.to_string())?;
    let (now, path) = (SystemClock.now(), tls.files.certificate.display());
    let (expires, begins) = (pair.expires.to_rfc3339(), pair.begins.to_rfc3339());
    if pair.expires <= now {
        warn(format!("server.tls.certificate: {path}: it expired {expires}; browsers refuse it, renew it"));
    } else if pair.expires.0 - now.0 < SOON.as_millis() as u64 {
        warn(format!("server.tls.certificate: {path}: it expires {expires}; renew it"));
    }
    if pair.begins > now {
        warn(format!("server.tls.certificate: {path}: it is not valid before {begins}; look at the clock"));
    }
    if pair.is_exposed {
        let key = tls.files.key.display();
        warn(format!("server.tls.key: {key}: every user of this machine may read it; chmod o= it"));
    }
    Ok(Some(pair))
}

/// Whether librdkafka makes a client of the config at all.
pub fn kafka_client(config: &Config) -> Option<Finding> {
    let why = (!config.kafka.brokers.is_empty()).then(|| ask::refusal(&config.kafka)).flatten()?;
    let allowed = "allowed is what librdkafka takes";
    Some(Finding::Problem(format!("kafka.client: no client can be made of it: {why}; {allowed}")))
}

/// Whether tokens of management would cross a network for all to read.
pub fn upstream(config: &Config) -> Option<Finding> {
    config.upstream.as_ref().filter(|upstream| upstream.options.base.is_exposed()).map(|_| {
        let text = "registry.upstream: http to another machine, so tokens cross the network in clear text; use https";
        Finding::Warning(text.to_owned())
    })
}

/// Whether the upstream can be reached. Blocks.
pub fn upstream_answers(config: &Config) -> Option<Finding> {
    let error = upstream::probe(&config.upstream.as_ref()?.options.base, UPSTREAM_WAITS).err()?;
    Some(Finding::Warning(format!("registry.upstream: it can't be reached now: {error}")))
}

/// Whether the schema registry can be reached, and its password would not cross a network for all to read. Blocks.
pub fn schema_registry(config: &Config) -> Vec<Finding> {
    let Some(Encoding { registry, .. }) = &config.kafka.encoding else { return Vec::new() };
    let said = |text: String| Finding::Warning(format!("kafka.schema_registry.url: {text}"));
    let exposed = (registry.credentials.is_some() && registry.base.is_exposed())
        .then(|| said("http to another machine, so the password crosses the network in clear text; use https".into()));
    let away = upstream::probe(&registry.base, UPSTREAM_WAITS).err();
    let away =
        away.map(|error| said(format!("it can't be reached now, and until it can nothing is published: {error}")));
    exposed.into_iter().chain(away).collect()
}

/// Whether the authorities' shared database can be used. Blocks.
pub fn database(config: &Config) -> Option<Finding> {
    match commands::try_database(&config.registry).err()? {
        error @ registry::Error::Newer { .. } => {
            Some(Finding::Problem(format!("{error}; allowed is a pixelgate that knows it")))
        }
        error => Some(Finding::Warning(format!("{error}; management answers 503 until it can be used"))),
    }
}

/// What Kafka's answer means for this config.
pub fn kafka(config: &Config, answer: &Answer) -> Option<Finding> {
    let body = config.server.max_body_bytes as u64;
    match answer {
        Answer::Unanswered(why) => {
            let brokers = config.kafka.brokers.join(", ");
            Some(Finding::Warning(format!("kafka.brokers: {brokers}: no answer, so nothing is checked there: {why}")))
        }
        Answer::LongestMessage { bytes, of } if *bytes < body => Some(Finding::Problem(format!(
            "limits.max_body_bytes: {} is more than the {} that {of} takes in a message; allowed is at most that",
            write_bytes(body),
            write_bytes(*bytes)
        ))),
        Answer::LongestMessage { bytes, of } if *bytes < MAX_RECORD_BYTES as u64 => Some(Finding::Warning(format!(
            "kafka.events_topic: {of} takes messages of {}, and a record may have {}",
            write_bytes(*bytes),
            write_bytes(MAX_RECORD_BYTES as u64)
        ))),
        Answer::LongestMessage { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn config(variables: &[(&str, &str)]) -> Config {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        let (config, problems) = config::load(None, variables);
        assert!(problems.is_empty(), "{problems:?}");
        config
    }

    fn is_problem(finding: Option<Finding>) -> Option<bool> {
        finding.map(|finding| matches!(finding, Finding::Problem(_)))
    }

    #[test]
    fn bodies_longer_than_kafka_s_messages_are_a_problem() {
        let config = config(&[("PIXELGATE_KAFKA__BROKERS", "a:1"), ("PIXELGATE_LIMITS__MAX_BODY_BYTES", "64KiB")]);
        let longest = |bytes| Answer::LongestMessage { bytes, of: "topic t".into() };
        for (bytes, expected) in [(65_535, Some(true)), (65_536, Some(false)), (1_048_588, None)] {
            assert_eq!(is_problem(kafka(&config, &longest(bytes))), expected, "{bytes}");
        }
        assert_eq!(is_problem(kafka(&config, &Answer::Unanswered("x".into()))), Some(false));
    }

    #[test]
    fn an_upstream_in_clear_text_or_away_is_told() {
        let with = |url| config(&[("PIXELGATE_REGISTRY__MODE", "proxy"), ("PIXELGATE_REGISTRY__UPSTREAM", url)]);
        assert_eq!(is_problem(upstream(&with("http://192.0.2.1"))), Some(false));
        assert_eq!(upstream(&with("https://192.0.2.1")), None);
        assert_eq!(upstream(&with("http://127.0.0.1:1")), None);
        assert_eq!(is_problem(upstream_answers(&with("http://127.0.0.1:1"))), Some(false));
        assert_eq!((upstream(&config(&[])), upstream_answers(&config(&[]))), (None, None));
    }

    #[test]
    fn trusting_everybody_is_told() {
        for (nets, is_told) in
            [("", false), ("10.0.0.0/8, ::1", false), ("10.0.0.0/8, 0.0.0.0/0", true), ("::/0", true)]
        {
            let found = proxies(&config(&[("PIXELGATE_SERVER__TRUSTED_PROXIES", nets)]));
            assert_eq!(found.is_some(), is_told, "{nets}");
        }
        assert_eq!(proxies(&config(&[])), None);
    }

    #[test]
    fn management_open_to_the_world_is_told_unless_it_is_meant() {
        for (variables, is_told) in [
            (&[("PIXELGATE_SERVER__LISTEN", "127.0.0.1:1")][..], false),
            (&[("PIXELGATE_SERVER__LISTEN", "[::1]:1")], false),
            (&[("PIXELGATE_SERVER__LISTEN", "0.0.0.0:1")], true),
            (&[("PIXELGATE_SERVER__LISTEN", "0.0.0.0:1"), ("PIXELGATE_MANAGEMENT__LISTEN", "0.0.0.0:1")], false),
            (&[("PIXELGATE_SERVER__LISTEN", "0.0.0.0:1"), ("PIXELGATE_MANAGEMENT__LISTEN", "127.0.0.1:2")], false),
        ] {
            assert_eq!(management(&config(variables)).is_some(), is_told, "{variables:?}");
        }
    }
}
