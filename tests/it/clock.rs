//! A wall clock that is set back while the publisher waits for Kafka.

use std::thread;
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::client::Client;
use super::gateway::{PIXEL, Site, until};
use super::shim::Shim;

const HOUR: i64 = 3_600_000;

#[test]
fn publishing_goes_on_at_once_when_the_clock_is_set_back() {
    let mock: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).unwrap();
    mock.create_topic("pixelgate.events", 1, 1).unwrap();
    let shim = Shim::new();
    let mut site =
        Site::new(&format!("[kafka]\ntransaction_timeout = \"1s\"\nbrokers = \"{}\"\n", mock.bootstrap_servers()));
    site.environment = shim.environment(&site.data());
    let gateway = site.start();
    for round in 1..=2 {
        mock.broker_down(1).unwrap();
        shim.shift_clock(2 * HOUR);
        let mut client = Client::connect(site.public).unwrap();
        assert_eq!(client.get(&format!("/offsite_event.php?id={PIXEL}&value={round}")).unwrap().status, 200);
        until("Kafka is missed", || gateway.metric("publish_blocked{cause=\"unreachable\"}") == Some(1.0));
        // Each wait of the client library that began before is over by now, as none takes longer than a second.
        thread::sleep(Duration::from_millis(1500));
        shim.shift_clock(0);
        mock.broker_up(1).unwrap();
        until("it is published", || gateway.metric("journal_pending_events") == Some(0.0));
    }
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
}
