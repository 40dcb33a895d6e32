//! Three brokers, as in production: they are restarted one after the other, and one falls, under load.

use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::broker::Broker;
use super::gateway::free_address;
use super::load::Load;
use super::oracle::Oracle;
use super::scene::{self, assert_unnoticed, wait_published};
use super::stage::{self, Expect, Row};

const PATIENCE: Duration = Duration::from_secs(90);

fn start() -> Vec<Broker> {
    let controllers: Vec<String> = (0..3).map(|_| free_address().to_string()).collect();
    let voters: Vec<String> = controllers.iter().zip(1..).map(|(address, id)| format!("{id}@{address}")).collect();
    let format = |(controller, id): (&String, u32)| {
        Broker::formatted(
            &format!(
                "node.id={id}\ncontroller.quorum.voters={}\n\
                 listeners=PLAINTEXT://{{address}},CONTROLLER://{controller}\n\
                 advertised.listeners=PLAINTEXT://{{address}}\noffsets.topic.replication.factor=3\n\
                 transaction.state.log.replication.factor=3\ntransaction.state.log.min.isr=2\n\
                 default.replication.factor=3\nmin.insync.replicas=2",
                voters.join(",")
            ),
            |_| {},
        )
    };
    let brokers: Vec<Broker> = controllers.iter().zip(1..).map(format).collect();
    brokers.iter().for_each(Broker::launch);
    brokers.iter().for_each(Broker::wait);
    brokers
}

/// Waits until each partition has all its replicas in sync.
fn wait_in_sync(broker: &Broker) {
    let deadline = Instant::now() + PATIENCE;
    let mut config = ClientConfig::new();
    let consumer: BaseConsumer = config.set("bootstrap.servers", broker.address()).create().unwrap();
    loop {
        let metadata = consumer.fetch_metadata(None, Duration::from_secs(10)).unwrap();
        let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        if metadata.brokers().len() == 3 && partitions.all(|partition| partition.isr().len() == 3) {
            return;
        }
        assert!(Instant::now() < deadline, "replicas don't come back");
        thread::sleep(Duration::from_millis(200));
    }
}

/// A line of the fault run's table.
pub fn row(seed: u64) -> Row {
    stage::row("three brokers: restarted one after the other, one killed", Expect::Clean, || {
        let brokers = start();
        let addresses: Vec<String> = brokers.iter().map(Broker::address).collect();
        let (topic, oracle) = ("trio", Oracle::new(seed));
        let site = scene::site(&addresses.join("\", \""), topic, "");
        let gateway = site.start();
        let load = Load::offering(site.public, 3, Duration::from_millis(10), "", oracle.offers());
        wait_published(&site, &gateway, 50);
        wait_in_sync(&brokers[0]);
        for broker in &brokers {
            broker.stop();
            wait_published(&site, &gateway, 50);
            broker.restart();
            wait_in_sync(broker);
        }
        brokers[1].kill();
        wait_published(&site, &gateway, 50);
        brokers[1].restart();
        wait_published(&site, &gateway, 50);
        let ledger = load.finish();
        assert_unnoticed(&ledger);
        let (verdict, fresh) = stage::end((&site, gateway), (&brokers[0], topic), Expect::Clean, oracle, ledger);
        (verdict, "3 restarts and a kill, unnoticed by websites".to_owned(), fresh)
    })
}
