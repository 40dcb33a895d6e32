//! Questions to Kafka beside publishing: whether a client can be made of the config at all, how long a message may be,
//! and what becomes of a topic's old records. Changes nothing there.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;

use super::{Options, kafka};

/// What came of asking.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Nobody answered, or not to us.
    Unanswered(String),
    /// The longest message that the events topic takes, and who says so.
    LongestMessage {
        /// Bytes.
        bytes: u64,
        /// `topic pixelgate.events` or `broker 1`.
        of: String,
    },
}

type Clients = (BaseConsumer, AdminClient<DefaultClientContext>);

/// A config of few words: what librdkafka would say is in the answer.
fn quiet(options: &Options) -> ClientConfig {
    let mut base = kafka::base(options);
    base.set_log_level(RDKafkaLogLevel::Emerg);
    base
}

fn clients(options: &Options) -> KafkaResult<Clients> {
    let base = quiet(options);
    Ok((base.create()?, base.create()?))
}

/// Why librdkafka can't make a client, if so: a file that is missing, properties that don't go together. Asks nobody.
pub fn refusal(options: &Options) -> Option<String> {
    clients(options).err().map(|error| error.to_string())
}

/// The longest message that the operator's own properties let out, if they say.
pub fn own_limit(options: &Options) -> Option<Answer> {
    let name = "message.max.bytes";
    let bytes = options.client.get(name)?.expose().parse().ok()?;
    Some(Answer::LongestMessage { bytes, of: format!("kafka.client.{name}") })
}

/// Asks how long an event's message may be; takes at most about twice `timeout`.
pub fn longest_message(options: &Options, timeout: Duration) -> Answer {
    let (consumer, admin) = match clients(options) {
        Ok(clients) => clients,
        Err(error) => return Answer::Unanswered(error.to_string()),
    };
    let metadata = match consumer.fetch_metadata(None, timeout) {
        Ok(metadata) => metadata,
        Err(error) => return Answer::Unanswered(error.to_string()),
    };
    let exists = metadata.topics().iter().any(|topic| topic.name() == options.events_topic && topic.error().is_none());
    let resource = match metadata.brokers().first() {
        _ if exists => ResourceSpecifier::Topic(&options.events_topic),
        Some(broker) => ResourceSpecifier::Broker(broker.id()),
        None => return Answer::Unanswered("the cluster names no broker".to_owned()),
    };
    match describe(&admin, &resource, timeout) {
        Ok(resource) => longest_of(&resource),
        Err(why) => Answer::Unanswered(why),
    }
}

/// `cleanup.policy` of a topic, if it may be known; takes at most about `timeout`.
pub(super) fn cleanup_policy(options: &Options, topic: &str, timeout: Duration) -> Option<String> {
    let admin = quiet(options).create().ok()?;
    let resource = describe(&admin, &ResourceSpecifier::Topic(topic), timeout).ok()?;
    resource.get("cleanup.policy").and_then(|entry| entry.value.clone())
}

fn describe(
    admin: &AdminClient<DefaultClientContext>,
    resource: &ResourceSpecifier<'_>,
    timeout: Duration,
) -> Result<ConfigResource, String> {
    let limits = AdminOptions::new().request_timeout(Some(timeout));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|e| e.to_string())?;
    let described =
        runtime.block_on(async { tokio::time::timeout(timeout, admin.describe_configs([resource], &limits)).await });
    let mut described = described.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())?;
    let first = described.pop().ok_or("an empty answer")?;
    first.map_err(|code| format!("its configuration can't be read: {code}"))
}

fn longest_of(resource: &ConfigResource) -> Answer {
    let (name, of) = match &resource.specifier {
        OwnedResourceSpecifier::Topic(topic) => ("max.message.bytes", format!("topic {topic}")),
        OwnedResourceSpecifier::Broker(id) => ("message.max.bytes", format!("broker {id}")),
        OwnedResourceSpecifier::Group(group) => return Answer::Unanswered(format!("an answer about group {group}")),
    };
    match resource.get(name).and_then(|entry| entry.value.as_deref()?.parse().ok()) {
        Some(bytes) => Answer::LongestMessage { bytes, of },
        None => Answer::Unanswered(format!("{of} does not say its {name}")),
    }
}
