//! Three brokers, as in production: they are restarted one after the other, and one falls, under load.

use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::broker::Broker;
use super::gateway::free_address;
use super::scene::{self, assert_unnoticed, visitors, wait_for, wait_published};
use super::stage::{self, Expect, Row};

const PATIENCE: Duration = Duration::from_secs(240);

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
        let metadata = consumer.fetch_metadata(None, Duration::from_secs(10));
        let is_in_sync = metadata.is_ok_and(|metadata| {
            let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
            metadata.brokers().len() == 3 && partitions.all(|partition| partition.isr().len() == 3)
        });
        if is_in_sync {
            return;
        }
        assert!(Instant::now() < deadline, "replicas don't come back");
        thread::sleep(Duration::from_millis(200));
    }
}

/// A line of the fault run's table.
pub fn row() -> Row {
    stage::row("three brokers: restarted one after the other, one killed", Expect::Clean, || {
        let brokers = start();
        let addresses: Vec<String> = brokers.iter().map(Broker::address).collect();
        let topic = "trio";
        let site = scene::site(&addresses.join("\", \""), topic, "");
        let gateway = site.start();
        let load = visitors(&site, "");
        wait_published(&site, &gateway, 50);
        wait_in_sync(&brokers[0]);
        let mut moved = 0;
        for (broker, id) in brokers.iter().zip(1..) {
            let other = brokers.iter().find(|other| other.address() != broker.address()).expect("there are three");
            let led = other.leaders(topic).iter().filter(|leader| **leader == id).count();
            broker.stop();
            wait_for("others lead", &site, || !other.leaders(topic).contains(&id));
            moved += led;
            wait_published(&site, &gateway, 50);
            broker.restart();
            wait_in_sync(broker);
        }
        assert!(moved > 0, "no partition was led by a broker that stopped");
        brokers[1].kill();
        wait_published(&site, &gateway, 50);
        brokers[1].restart();
        wait_published(&site, &gateway, 50);
        let ledger = load.finish();
        assert_unnoticed(&ledger);
        let (verdict, fresh) = stage::end((&site, gateway), (&brokers[0], topic), Expect::Clean, ledger);
        (verdict, format!("3 restarts, a kill, {moved} partitions led by another; unnoticed by websites"), fresh)
    })
}
