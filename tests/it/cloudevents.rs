//! `kafka.cloudevents`: the headers of both kinds of records, beside a value that stays what the journal has.

use std::collections::BTreeMap;

use rdkafka::Message;
use rdkafka::message::Headers;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use serde_json::Value;

use super::audit::balanced_stat;
use super::client::Client;
use super::consumer::each_committed;
use super::gateway::{PIXEL, Site, until};
use super::schema::check;

/// Headers and value of each record of a topic.
fn records(brokers: &str, topic: &str) -> Vec<(BTreeMap<String, String>, String)> {
    let mut found = Vec::new();
    each_committed(brokers, topic, |message| {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        let headers = headers.map(|header| (header.key.to_owned(), text(header.value.unwrap()))).collect();
        found.push((headers, text(message.payload().unwrap())));
    });
    found
}

/// What docs/asyncapi.json says of the headers of a kind: each is there, as it says, and no other.
fn assert_as_documented(kind: &str, headers: &BTreeMap<String, String>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/asyncapi.json");
    let document: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut schema = document["components"]["messages"][kind]["headers"].clone();
    let names: Vec<Value> = schema["properties"].as_object().unwrap().keys().map(|name| name.as_str().into()).collect();
    assert!(headers.keys().all(|name| names.contains(&name.as_str().into())), "{headers:?}");
    schema["required"] = names.into();
    assert_eq!(check(&schema, &serde_json::to_value(headers).unwrap()), [""; 0], "{kind}");
}

#[test]
fn records_are_cloud_events_if_that_is_wanted_and_their_values_are_the_journal_s() {
    for wanted in [true, false] {
        let mock: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).unwrap();
        for topic in ["pixelgate.events", "pixelgate.rejected"] {
            mock.create_topic(topic, 1, 1).unwrap();
        }
        let brokers = mock.bootstrap_servers();
        let site = Site::new(&format!("[kafka]\nbrokers = \"{brokers}\"\ncloudevents = {wanted}\n"));
        let gateway = site.start();
        let mut client = Client::connect(site.public).unwrap();
        assert_eq!(client.get(&format!("/offsite_event.php?id={PIXEL}&value=1")).unwrap().status, 200);
        assert_eq!(client.get("/offsite_event.php?id=0").unwrap().status, 400);
        drop(client);
        until("both are there", || !records(&brokers, "pixelgate.rejected").is_empty());
        assert_eq!(gateway.stop(), Some(0), "{}", site.log());
        let journal = balanced_stat(&site)["journal_id"].as_str().unwrap().to_owned();
        for kind in ["event", "rejected"] {
            let topic = if kind == "event" { "pixelgate.events" } else { "pixelgate.rejected" };
            let [(headers, value)] = &records(&brokers, topic)[..] else { panic!("one record in {topic}") };
            let export = String::from_utf8(site.run(&["journal", "export", "--kind", kind]).stdout).unwrap();
            assert_eq!(*value, export.trim_end());
            let record: Value = serde_json::from_str(value).unwrap();
            let field = |name: &str| record[name].as_str().unwrap().to_owned();
            let expected = [
                ("content-type", "application/json".to_owned()),
                ("ce_specversion", "1.0".to_owned()),
                ("ce_type", field("schema")),
                ("ce_source", format!("/pixelgate.{}.{journal}", field("node_id"))),
                ("ce_id", field("record_id")),
                ("ce_time", field("received_at")),
                ("ce_dataschema", format!("urn:pixelgate:schema:{}", field("schema"))),
            ];
            if wanted {
                assert_as_documented(kind, headers);
            }
            let expected = expected.into_iter().filter(|_| wanted).map(|(name, text)| (name.to_owned(), text));
            assert_eq!(*headers, expected.collect(), "{kind}");
        }
    }
}
