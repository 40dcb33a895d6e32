//! `kafka.client.*`: which librdkafka properties are the operator's, which are ours, and which are secrets.
//!
//! A property that a promise rests on is refused with the reason; one that librdkafka doesn't take is refused by asking
//! librdkafka itself.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;

use crate::secret::Secret;

/// Properties that are ours to set, and why.
const OURS: &[(&[&str], &str)] = &[
    (
        &["acks", "request.required.acks", "enable.idempotence", "enable.gapless.guarantee", "transactional.id"],
        "exactly once rests on it",
    ),
    (
        &["max.in.flight", "max.in.flight.requests.per.connection", "retries", "message.send.max.retries"],
        "order and exactly once rest on it",
    ),
    (&["transaction.timeout.ms", "message.timeout.ms", "delivery.timeout.ms"], "kafka.transaction_timeout sets it"),
    (&["bootstrap.servers", "metadata.broker.list"], "kafka.brokers sets it"),
    (&["allow.auto.create.topics"], "topics are made as kafka.partitions and kafka.replication_factor say"),
    (&["partitioner"], "records go where a Java producer would send them"),
    (
        &["group.id", "isolation.level", "enable.auto.commit", "enable.auto.offset.store"],
        "the cursor in Kafka rests on it",
    ),
    (
        &["queue.buffering.max.kbytes", "queue.buffering.max.messages", "delivery.report.only.error"],
        "pixelgate bounds its memory by it",
    ),
];

/// Names with an underscore, which the environment would otherwise write with a dot.
const WITH_UNDERSCORE: &[&str] = &["log_level"];

/// One property's value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Property {
    /// Anybody may see it.
    Plain(String),
    /// Nobody may.
    Secret(Secret),
}

impl Property {
    /// The text for librdkafka.
    pub fn expose(&self) -> &str {
        match self {
            Property::Plain(text) => text,
            Property::Secret(secret) => secret.expose(),
        }
    }
}

/// Shows what may be seen.
impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Property::Plain(text) => f.write_str(text),
            Property::Secret(secret) => secret.fmt(f),
        }
    }
}

/// The operator's properties by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Properties(BTreeMap<String, Property>);

impl Properties {
    /// Sets a property; secrets are known by their names.
    pub fn insert(&mut self, name: String, text: String) {
        let property = if is_secret(&name) { Property::Secret(Secret::new(text)) } else { Property::Plain(text) };
        self.0.insert(name, property);
    }

    /// All, in order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Property)> {
        self.0.iter().map(|(name, property)| (name.as_str(), property))
    }

    /// One by its name.
    pub fn get(&self, name: &str) -> Option<&Property> {
        self.0.get(name)
    }

    /// Whether one of these names is set: librdkafka has several for some properties.
    pub fn has_any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.0.contains_key(*name))
    }
}

/// Whether a property's value is a secret.
pub fn is_secret(name: &str) -> bool {
    const WORDS: [&str; 5] = ["password", "passphrase", "secret", "key.pem", "oauthbearer.config"];
    WORDS.iter().any(|word| name.contains(word)) || name == "ssl_key"
}

/// The property that the end of a variable's name means: `SASL_PASSWORD` is `sasl.password`.
pub fn from_variable(end: &str) -> String {
    let lower = end.to_ascii_lowercase();
    if WITH_UNDERSCORE.contains(&lower.as_str()) { lower } else { lower.replace('_', ".") }
}

/// Whether librdkafka has a property of this name.
pub fn is_known(name: &str) -> bool {
    // Not every property takes this text, but only an unknown one is refused for its name.
    !matches!(try_out(name, "1"), Some(description) if description.starts_with("No such configuration property"))
}

/// What is wrong with a property, if anything. Never shows a secret.
pub fn problem(name: &str, text: &str) -> Option<String> {
    if let Some((_, why)) = OURS.iter().find(|(names, _)| names.contains(&name)) {
        return Some(format!("set by pixelgate, as {why}; remove it"));
    }
    let description = try_out(name, text)?;
    if !is_known(name) {
        return Some("librdkafka has no such property; allowed are those of its CONFIGURATION.md".into());
    }
    if is_secret(name) {
        return Some("librdkafka does not take this value".into());
    }
    Some(format!("{}; allowed is what librdkafka's CONFIGURATION.md says", description.escape_debug()))
}

/// librdkafka's complaint, if it has one.
fn try_out(name: &str, text: &str) -> Option<String> {
    if name.contains('\0') || text.contains('\0') {
        return Some("a NUL is in it".into());
    }
    match ClientConfig::new().set(name, text).create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(_, description, ..)) => Some(description),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_a_promise_or_is_unknown_is_refused_with_the_reason() {
        for (names, _) in OURS {
            for name in *names {
                assert!(problem(name, "1").unwrap().starts_with("set by pixelgate, as "), "{name}");
            }
        }
        assert!(problem("sasl.pasword", "hunter2").unwrap().contains("no such property"));
        assert!(problem("socket.timeout.ms", "soon").unwrap().contains("socket.timeout.ms"));
        assert!(problem("a\0b", "1").is_some());
        for (name, text) in [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanisms", "SCRAM-SHA-512"),
            ("sasl.mechanism", "OAUTHBEARER"),
            ("compression.type", "zstd"),
            ("log_level", "7"),
            ("ssl.ca.location", "/etc/ssl/ca.pem"),
        ] {
            assert_eq!(problem(name, text), None, "{name}");
        }
    }

    #[test]
    fn secrets_are_known_by_name_and_never_shown() {
        for name in [
            "sasl.password",
            "ssl.key.password",
            "ssl.key.pem",
            "ssl.keystore.password",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.config",
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "sasl.oauthbearer.assertion.private.key.pem",
        ] {
            assert!(is_known(name) && is_secret(name), "{name}");
            let mut properties = Properties::default();
            properties.insert(name.into(), "hunter2".into());
            assert!(!format!("{properties:?}").contains("hunter2"));
            let (_, property) = properties.iter().next().unwrap();
            assert_eq!((property.to_string().as_str(), property.expose()), ("[redacted]", "hunter2"));
        }
        assert!(!is_secret("sasl.username") && !is_secret("ssl.ca.location"));
    }

    #[test]
    fn variables_name_properties() {
        assert_eq!(from_variable("SASL_PASSWORD"), "sasl.password");
        assert_eq!(from_variable("LOG_LEVEL"), "log_level");
    }
}
