//! `kafka.format`: what a schema registry is asked, that nothing leaves without its word, and nothing is lost for it.
//! What other readers make of the values is in `schemas`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// What comes while the lane has no connection is dropped, as rejects may be.
fn until_a_reject_leaves(site: &Site, brokers: &str) {
    until("a reject leaves", || {
        fire(site, "id=0", 400);
        !values(brokers, "pixelgate.rejected").is_empty()
    });
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

#[test]
fn nothing_leaves_without_the_registrys_word_and_all_leaves_with_it() {
    for (format, file, frame) in [("avro", "avsc", &[0, 0, 0, 1, 77][..]), ("protobuf", "proto", &[0, 0, 0, 1, 77, 0])]
    {
        let mock: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).unwrap();
        for topic in ["pixelgate.events", "pixelgate.rejected"] {
            mock.create_topic(topic, 1, 1).unwrap();
        }
        let (brokers, address) = (mock.bootstrap_servers(), free_address());
        let site = Site::new(&format!(
            "[kafka]\nbrokers = \"{brokers}\"\nformat = \"{format}\"\ncloudevents = true\n[kafka.schema_registry]\n\
             url = \"http://{address}/apis/ccompat/v7/\"\nusername = \"gate\"\npassword = \"hush-hush\"\n"
        ));
        let gateway = site.start();
        fire(&site, &format!("id={PIXEL}&value=1.50&currency=EUR"), 200);
        let is_blocked = || gateway.metric("publish_blocked{cause=\"schema_registry\"}") == Some(1.0);
        until("the registry is missed", is_blocked);
        assert_eq!(gateway.readiness(), Some(200));

        let turn = Arc::new(AtomicUsize::new(0));
        let at = Arc::clone(&turn);
        let registry = Upstream::start_on(address, move |_| match at.load(Ordering::SeqCst) {
            0 => refusal("409 Conflict", "incompatible"),
            1 => refusal("401 Unauthorized", "who?"),
            2 => json("<html>"),
            _ => json("{\"id\":333}"),
        });
        // The same trouble is said once a minute; each turn is waited for by what was asked.
        for asked in 1..=3 {
            until("it is asked", || registry.seen().len() >= 2 * asked);
            assert!(is_blocked() && values(&brokers, "pixelgate.events").is_empty());
            turn.fetch_add(1, Ordering::SeqCst);
        }
        until("the event leaves", || values(&brokers, "pixelgate.events").len() == 1);
        until("nothing holds it up", || !is_blocked());
        until_a_reject_leaves(&site, &brokers);

        // It is asked once: what it does from now on changes nothing.
        let seen = registry.seen();
        drop(registry);
        fire(&site, &format!("id={PIXEL}"), 200);
        until("the next leaves", || values(&brokers, "pixelgate.events").len() == 2);
        assert_eq!(gateway.stop(), Some(0), "{}", site.log());

        assert_asked_and_framed(&seen, &brokers, format, file, frame);
        let log = site.log();
        assert!(log.contains("kafka.schema_registry.url: can't be reached"), "{log}");
        assert!(!log.contains("hush-hush") && !log.contains("Z2F0ZTpodXNoLWh1c2g="), "{log}");
    }
}

#[test]
fn a_registry_that_only_hands_out_is_not_written_to() {
    let mock: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).unwrap();
    mock.create_topic("pixelgate.events", 1, 1).unwrap();
    let registry = Upstream::start(|_| json("{\"id\":7,\"subject\":\"s\",\"version\":1}"));
    let site = Site::new(&format!(
        "[kafka]\nbrokers = \"{}\"\nrejected_topic = \"\"\nformat = \"avro\"\ncloudevents = true\n\
         [kafka.schema_registry]\nurl = \"http://{}\"\nauto_register = false\n",
        mock.bootstrap_servers(),
        registry.address
    ));
    let gateway = site.start();
    fire(&site, &format!("id={PIXEL}"), 200);
    until("it leaves", || values(&mock.bootstrap_servers(), "pixelgate.events").len() == 1);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    let lines: Vec<String> = registry.seen().into_iter().map(|seen| seen.line).collect();
    assert_eq!(lines, ["POST /subjects/pixelgate.events-value HTTP/1.1"]);
}
