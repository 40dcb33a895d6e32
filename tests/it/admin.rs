//! What an administrator does to a cluster under the gateway's feet: topics, settings, groups, rights.

use std::future::Future;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::broker::{Broker, java};
use super::gateway::until;

/// Everything without a right is this principal.
const ANYBODY: &str = "User:ANONYMOUS";

fn with_admin<R>(broker: &Broker, act: impl AsyncFnOnce(&AdminClient<DefaultClientContext>, &AdminOptions) -> R) -> R {
    let mut config = ClientConfig::new();
    let admin: AdminClient<DefaultClientContext> = config.set("bootstrap.servers", broker.address()).create().unwrap();
    let patience = Some(Duration::from_secs(30));
    let options = AdminOptions::new().request_timeout(patience).operation_timeout(patience);
    block_on(act(&admin, &options))
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

impl Broker {
    /// Makes a topic with these settings.
    pub fn create_topic(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
        let made = with_admin(self, async |admin, options| admin.create_topics(&[new], options).await);
        made.unwrap().remove(0).unwrap();
        // It is made when the controller says so; the broker knows a little later.
        until("the topic is seen", || !self.leaders(topic).is_empty());
    }

    /// Deletes a topic with its records.
    pub fn delete_topic(&self, topic: &str) {
        let gone = with_admin(self, async |admin, options| admin.delete_topics(&[topic], options).await);
        gone.unwrap().remove(0).unwrap();
    }

    /// Replaces all settings of a topic.
    pub fn set_topic(&self, topic: &str, settings: &[(&str, &str)]) {
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic));
        let change = settings.iter().fold(change, |change, (name, value)| change.set(name, value));
        let done = with_admin(self, async |admin, options| admin.alter_configs(&[change], options).await);
        done.unwrap().remove(0).unwrap();
    }

    /// A setting of a topic.
    pub fn topic_setting(&self, topic: &str, name: &str) -> String {
        let asked = [ResourceSpecifier::Topic(topic)];
        let told = with_admin(self, async |admin, options| admin.describe_configs(&asked, options).await);
        told.unwrap().remove(0).unwrap().get(name).and_then(|entry| entry.value.clone()).unwrap_or_default()
    }

    /// Gives a topic one more partition, unless it has `most`.
    pub fn add_partition(&self, topic: &str, most: usize) {
        let count = self.leaders(topic).len();
        if count < most {
            self.add_partitions(topic, count + 1);
        }
    }

    /// Who leads each partition of a topic, as this broker knows.
    pub fn leaders(&self, topic: &str) -> Vec<i32> {
        let mut config = ClientConfig::new();
        let consumer: BaseConsumer = config.set("bootstrap.servers", self.address()).create().unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30)).unwrap();
        metadata.topics()[0].partitions().iter().map(|partition| partition.leader()).collect()
    }

    /// Makes a topic have so many partitions.
    pub fn add_partitions(&self, topic: &str, count: usize) {
        let change = NewPartitions::new(topic, count);
        let done = with_admin(self, async |admin, options| admin.create_partitions(&[change], options).await);
        done.unwrap().remove(0).unwrap();
    }

    /// Forgets a group with its offsets, as the broker does by itself when they expire.
    pub fn delete_group(&self, group: &str) {
        let gone = with_admin(self, async |admin, options| admin.delete_groups(&[group], options).await);
        gone.unwrap().remove(0).unwrap();
    }

    /// Forbids everything on a resource (`--topic NAME`, `--group NAME`, `--transactional-id NAME`) but one operation.
    pub fn allow_only(&self, resource: [&str; 2], operation: &str) {
        self.acls(&["--add", "--allow-principal", ANYBODY, "--operation", operation], resource);
    }

    /// Takes back `allow_only`.
    pub fn allow_all(&self, resource: [&str; 2]) {
        self.acls(&["--remove", "--force"], resource);
    }

    fn acls(&self, arguments: &[&str], resource: [&str; 2]) {
        let mut command = java("org.apache.kafka.tools.AclCommand");
        command.args(["--bootstrap-server", &self.address()]).args(arguments).args(resource);
        let output = command.output().unwrap();
        let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && !said.contains("Error"), "{arguments:?} {resource:?}: {said}{complaint}");
    }
}
