//! Topics that are there, or are made when missing and permitted.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{Client, ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode as Code;

use super::Options;
use super::fault::{Doubt, Fault};

/// How long calls that only ask may take.
pub(super) const ASK: Duration = Duration::from_secs(10);
/// Looks at a new topic, and the pause between two: brokers tell each other of it a little later.
const LOOKS: (u32, Duration) = (40, Duration::from_millis(50));

/// What a topic is made with beside what the options say.
pub(super) struct Make {
    /// Instead of `kafka.partitions`.
    partitions: Option<i32>,
    settings: &'static [(&'static str, &'static str)],
}

/// One whose last record of each key is what counts. Compacted soon, as there is a record per node and round.
pub(super) const COMPACTED: Make =
    Make { partitions: Some(1), settings: &[("cleanup.policy", "compact"), ("segment.ms", "3600000")] };

/// A topic must exist before the first transaction: the cursor's offset is kept for one of its partitions.
pub(super) fn make_sure_of<C: ClientContext>(
    topic: &str,
    base: &ClientConfig,
    client: &Client<C>,
    options: &Options,
) -> Result<(), Doubt> {
    make_sure_of_as(topic, &Make { partitions: None, settings: &[] }, base, client, options)
}

/// The same, made in another way if it is not there.
pub(super) fn make_sure_of_as<C: ClientContext>(
    topic: &str,
    make: &Make,
    base: &ClientConfig,
    client: &Client<C>,
    options: &Options,
) -> Result<(), Doubt> {
    if exists(topic, client)? {
        return Ok(());
    }
    let admin: AdminClient<DefaultClientContext> = base.create().map_err(|error| Doubt::of("admin client", &error))?;
    let (partitions, replication) = (make.partitions.unwrap_or(options.partitions), options.replication_factor);
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication));
    let new = make.settings.iter().fold(new, |new, (name, value)| new.set(name, value));
    let limits = AdminOptions::new().operation_timeout(Some(ASK)).request_timeout(Some(ASK));
    let made = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| Doubt::text(Fault::Doubt, format!("no runtime for the admin client: {error}")))?
        .block_on(admin.create_topics(&[new], &limits))
        .map_err(|error| Doubt::of("creating a topic", &error))?;
    for result in made {
        match result {
            Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                let doubt = Doubt::code(&format!("creating topic {topic}"), code);
                // Whatever keeps it from being made, what holds us up is that it isn't there.
                let is_access = matches!(doubt.fault, Fault::Authorization | Fault::Authentication);
                return Err(if is_access { doubt } else { doubt.into_fault(Fault::UnknownTopic) });
            }
        }
    }
    for _ in 0..LOOKS.0 {
        if exists(topic, client)? {
            return Ok(());
        }
        std::thread::sleep(LOOKS.1);
    }
    Err(Doubt::code("waiting for a topic", Code::UnknownTopicOrPartition))
}

fn exists<C: ClientContext>(topic: &str, client: &Client<C>) -> Result<bool, Doubt> {
    // Asked by name, a topic that may not be seen is told from one that isn't there; `allow.auto.create.topics` is off.
    let metadata = client.fetch_metadata(Some(topic), ASK).map_err(|error| Doubt::of("metadata", &error))?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(false) };
    match found.error().map(|error| Doubt::code(&format!("metadata of topic {topic}"), error.into())) {
        None => Ok(!found.partitions().is_empty()),
        Some(doubt) if doubt.fault == Fault::Authorization => Err(doubt),
        Some(_) => Ok(false),
    }
}
