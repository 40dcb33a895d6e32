//! `kafka.format`: what a schema registry is asked, that nothing leaves without its word, and nothing is lost for it.
//! What other readers make of the values is in `schemas`.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::Message;
use rdkafka::message::Headers;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use serde_json::Value;

use super::client::Client;
use super::consumer::each_committed;
use super::gateway::{PIXEL, Site, free_address, until};
use super::upstream::{Act, Seen, Upstream, json, with_length};

/// `content-type` and value of each record of a topic.
fn values(brokers: &str, topic: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    each_committed(brokers, topic, |message| {
        let mut headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        let media = headers.find(|header| header.key == "content-type").unwrap().value.unwrap();
        found.push((String::from_utf8(media.to_vec()).unwrap(), message.payload().unwrap().to_vec()));
    });
    found
}

fn fire(site: &Site, query: &str, status: u16) {
    let mut client = Client::connect(site.public).unwrap();
    assert_eq!(client.get(&format!("/offsite_event.php?{query}")).unwrap().status, status);
}

fn refusal(status: &str, message: &str) -> Act {
    let body = format!("{{\"error_code\":1,\"message\":\"{message}\"}}");
    Act::SayAndClose(format!("HTTP/1.1 {status}\r\n{}", with_length(&body)).into_bytes())
}

/// The registry was asked for what is in docs/schema, and each value has the format's frame.
fn assert_asked_and_framed(seen: &[Seen], brokers: &str, format: &str, file: &str, frame: &[u8]) {
    for (topic, name) in [("pixelgate.events", "event"), ("pixelgate.rejected", "rejected")] {
        let asked = seen.iter().find(|seen| seen.line.contains(topic)).unwrap();
        assert_eq!(asked.line, format!("POST /apis/ccompat/v7/subjects/{topic}-value/versions HTTP/1.1"));
        assert_eq!(asked.header("authorization").unwrap(), "Basic Z2F0ZTpodXNoLWh1c2g=");
        let body: Value = serde_json::from_slice(&asked.body).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/schema/{name}.v1.{file}"));
        assert_eq!(body["schema"], std::fs::read_to_string(path).unwrap());
        assert_eq!(body.get("schemaType").is_some(), format == "protobuf");
        for (media, value) in values(brokers, topic) {
            assert_eq!(media, format!("application/vnd.confluent.{format}"));
            assert!(value.starts_with(frame), "{value:?}");
        }
    }
}

/// A mock Kafka with both topics, and a site that publishes there.
fn site(format: &str, registry: SocketAddr, extra: &str) -> (MockCluster<'static, DefaultProducerContext>, Site) {
    let mock = MockCluster::new(1).unwrap();
    for topic in ["pixelgate.events", "pixelgate.rejected"] {
        mock.create_topic(topic, 1, 1).unwrap();
    }
    let site = Site::new(&format!(
        "[kafka]\nbrokers = \"{}\"\nformat = \"{format}\"\ncloudevents = true\n{extra}[kafka.schema_registry]\n\
         url = \"http://{registry}/apis/ccompat/v7/\"\nusername = \"gate\"\npassword = \"hush-hush\"\n",
        mock.bootstrap_servers()
    ));
    (mock, site)
}

#[test]
fn nothing_leaves_without_the_registrys_word_and_nothing_is_lost_for_it() {
    let address = free_address();
    let (mock, site) = site("avro", address, "rejected_topic = \"\"\n");
    let gateway = site.start();
    fire(&site, &format!("id={PIXEL}&value=1.50&currency=EUR"), 200);
    let is_blocked = || gateway.metric("publish_blocked{cause=\"schema_registry\"}") == Some(1.0);
    until("the registry is missed", is_blocked);
    assert_eq!(gateway.readiness(), Some(200));
    let is_willing = Arc::new(AtomicBool::new(false));
    let of_registry = Arc::clone(&is_willing);
    let registry = Upstream::start_on(address, move |_| match of_registry.load(Ordering::SeqCst) {
        false => refusal("409 Conflict", "incompatible"),
        true => json("{\"id\":333}"),
    });
    until("it has refused", || !registry.seen().is_empty());
    assert!(is_blocked() && values(&mock.bootstrap_servers(), "pixelgate.events").is_empty());
    is_willing.store(true, Ordering::SeqCst);
    until("the event leaves", || values(&mock.bootstrap_servers(), "pixelgate.events").len() == 1);
    until("nothing holds it up", || !is_blocked());
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    let log = site.log();
    assert!(log.contains("kafka.schema_registry.url: can't be reached"), "{log}");
    assert!(!log.contains("hush-hush") && !log.contains("Z2F0ZTpodXNoLWh1c2g="), "{log}");
}

#[test]
fn the_registry_is_asked_once_for_what_is_in_the_documents_and_values_have_its_id() {
    for (format, file, frame) in [("avro", "avsc", &[0, 0, 0, 1, 77][..]), ("protobuf", "proto", &[0, 0, 0, 1, 77, 0])]
    {
        let registry = Upstream::start(|_| json("{\"id\":333}"));
        let (mock, site) = site(format, registry.address, "");
        let (gateway, brokers) = (site.start(), mock.bootstrap_servers());
        fire(&site, &format!("id={PIXEL}"), 200);
        until("the event leaves", || values(&brokers, "pixelgate.events").len() == 1);
        fire(&site, "id=0", 400);
        until("the reject leaves", || values(&brokers, "pixelgate.rejected").len() == 1);
        let seen = registry.seen();
        assert_eq!(seen.len(), 2, "{seen:?}");
        // What it does from now on changes nothing.
        drop(registry);
        fire(&site, &format!("id={PIXEL}"), 200);
        until("the next leaves", || values(&brokers, "pixelgate.events").len() == 2);
        assert_eq!(gateway.stop(), Some(0), "{}", site.log());
        assert_asked_and_framed(&seen, &brokers, format, file, frame);
    }
}

#[test]
fn a_registry_that_only_hands_out_is_not_written_to() {
    let registry = Upstream::start(|_| json("{\"id\":7,\"subject\":\"s\",\"version\":1}"));
    let (mock, site) = site("avro", registry.address, "rejected_topic = \"\"\n");
    site.reconfigure("[kafka.schema_registry]", "[kafka.schema_registry]\nauto_register = false");
    let gateway = site.start();
    fire(&site, &format!("id={PIXEL}"), 200);
    until("it leaves", || values(&mock.bootstrap_servers(), "pixelgate.events").len() == 1);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    let lines: Vec<String> = registry.seen().into_iter().map(|seen| seen.line).collect();
    assert_eq!(lines, ["POST /apis/ccompat/v7/subjects/pixelgate.events-value HTTP/1.1"]);
}
