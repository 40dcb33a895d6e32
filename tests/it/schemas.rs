//! Avro and Protobuf by hands that aren't ours: a real schema registry (Apicurio's, with Confluent's interface) and the
//! readers of docs/consumers.md, run as they stand there.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, PoisonError};

use rdkafka::Message;
use rdkafka::message::Headers;
use serde_json::{Value, json};

use super::broker::Broker;
use super::client::Client;
use super::consumer::each_committed;
use super::consumers::produce;
use super::document::{block, requirements, words};
use super::gateway::{PIXEL, Site, free_address};
use super::maven;
use super::python;
use super::running::{Running, directory, wait};
use super::scene::{self, wait_until_published};

/// `io.apicurio:apicurio-registry-app`.
const REGISTRY: &str = "io.apicurio:apicurio-registry-app:3.0.9:tar.gz:all";

/// The directory with what is in the archive, downloaded once.
fn home() -> PathBuf {
    let _guard = maven::DOWNLOADING.lock().unwrap_or_else(PoisonError::into_inner);
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("apicurio-3.0.9");
    if !place.exists() {
        let directory = directory();
        let into = directory.path().join("unpacked");
        let mut command = Command::new("mvn");
        command.args(["-q", "-B", "dependency:unpack"]).arg(format!("-Dartifact={REGISTRY}"));
        maven::run(command.arg(format!("-DoutputDirectory={}", into.display())).current_dir(directory.path()));
        maven::take(&into, &place);
    }
    place
}

/// A registry in memory.
struct Registry {
    address: SocketAddr,
    _process: Running,
}

impl Registry {
    fn start(directory: &Path) -> Registry {
        let (address, log) = (free_address(), directory.join("registry.log"));
        let mut command = Command::new("java");
        command.args(["-Xmx256m", "-XX:+UseSerialGC", "-Dquarkus.http.host=127.0.0.1"]);
        command.arg(format!("-Dquarkus.http.port={}", address.port()));
        command.arg("-jar").arg(home().join("apicurio-registry-app-3.0.9-runner.jar")).current_dir(directory);
        let process = Running::start(&mut command, &log);
        let registry = Registry { address, _process: process };
        wait("the registry answers", &log, || registry.get("/subjects").is_some());
        registry
    }

    /// The JSON at a path below Confluent's interface.
    fn get(&self, path: &str) -> Option<Value> {
        let reply = Client::connect(self.address).ok()?.get(&format!("/apis/ccompat/v7{path}")).ok()?;
        (reply.status == 200).then(|| serde_json::from_slice(&reply.body).unwrap())
    }

    /// What a request with a body answers: status and JSON.
    fn tell(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let head = format!("{method} /apis/ccompat/v7{path} HTTP/1.1\r\nHost: registry\r\n");
        let kind = "Content-Type: application/vnd.schemaregistry.v1+json\r\n";
        let mut client = Client::connect(self.address).unwrap();
        client.send(format!("{head}{kind}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
        let reply = client.reply().unwrap();
        (reply.status, serde_json::from_slice(&reply.body).unwrap_or_default())
    }
}

/// What a reader of the page prints, a line of JSON each, once it has printed so many.
fn read(program: &str, broker: &Broker, registry: &Registry, topic: &str, count: usize) -> Vec<Value> {
    let interpreter = python::with("schemas", &requirements("pip-schemas"));
    let directory = directory();
    let mut generate = Command::new(&interpreter);
    let mut arguments = words("protoc");
    assert_eq!(arguments.remove(0), "python");
    generate.args(arguments).current_dir(directory.path());
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema/event.v1.proto");
    fs::copy(schemas, directory.path().join("event.v1.proto")).unwrap();
    let output = generate.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = block(program)
        .replace("localhost:9092", &broker.address())
        .replace("localhost:8081", &format!("{}/apis/ccompat/v7", registry.address))
        .replace("pixelgate.events", topic);
    let (file, log) = (directory.path().join("read.py"), directory.path().join("log"));
    fs::write(&file, text).unwrap();
    let mut command = Command::new(&interpreter);
    let reader = Running::start(command.arg("-u").arg(&file).current_dir(directory.path()), &log);
    let printed = || fs::read_to_string(&log).unwrap_or_default();
    wait("all are printed", &log, || printed().lines().count() >= count);
    drop(reader);
    printed().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// A record as the page's readers print it.
fn expected(line: &str, is_avro: bool) -> Value {
    let record: Value = serde_json::from_str(line).unwrap();
    let value = record["value"].as_str().map(|text| {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if is_avro { format!("{whole}.{fraction:0<8}") } else { text.to_owned() }
    });
    json!({
        "record_id": record["record_id"], "received_at": record["received_at"], "value": value,
        "params": record.get("params").cloned().unwrap_or(json!({})),
    })
}

fn publish(broker: &Broker, registry: &Registry, format: &str, topic: &str) -> Vec<String> {
    let url = format!("http://{}/apis/ccompat/v7", registry.address);
    let site: Site = scene::site(
        &broker.address(),
        topic,
        &format!("format = \"{format}\"\ncloudevents = true\n[kafka.schema_registry]\nurl = \"{url}\"\n"),
    );
    let queries = [
        "ev=Purchase&eid=order-1&value=12.3400&currency=gbp&cd[ids]=[%22A1%22,%22%C3%A9%22]",
        "ev=Purchase&value=999999999999999.12345678&currency=GBP",
        "ev=Purchase&value=-0.00000001&currency=GBP&test=1&ts=1700000000000&st=1700000000500",
        "ev=Lead",
    ];
    // By two runs: the second finds the schema that the first registered.
    for half in queries.chunks(2) {
        let gateway = site.start();
        let mut client = Client::connect(site.public).unwrap();
        for query in half {
            assert_eq!(client.get(&format!("/offsite_event.php?id={PIXEL}&{query}")).unwrap().status, 200);
        }
        drop(client);
        wait_until_published(&site, &gateway);
        assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    }
    let export = String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap();
    export.lines().map(str::to_owned).collect()
}

/// Each record has the headers of a CloudEvent, and a real broker keeps them.
fn assert_cloud_events(broker: &Broker, topic: &str, format: &str, lines: &[String]) {
    let mut seen = BTreeSet::new();
    each_committed(&broker.address(), topic, |message| {
        let headers = message.headers().unwrap();
        let of = |name: &str| {
            let header = headers.iter().find(|header| header.key == name).unwrap_or_else(|| panic!("no {name}"));
            String::from_utf8(header.value.unwrap().to_vec()).unwrap()
        };
        assert_eq!(of("content-type"), format!("application/vnd.confluent.{format}"));
        assert_eq!((&*of("ce_specversion"), &*of("ce_type")), ("1.0", "pixelgate.event.v1"));
        assert!(seen.insert((of("ce_id"), of("ce_time"))), "{} is there twice", of("ce_id"));
    });
    let expected = lines.iter().map(|line| {
        let record: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| record[name].as_str().unwrap().to_owned();
        (text("record_id"), text("received_at"))
    });
    assert_eq!(seen, expected.collect());
}

#[test]
fn readers_with_a_schema_registry_see_each_record_with_its_types() {
    let (broker, place): (Arc<Broker>, _) = (Broker::shared(), directory());
    let registry = Registry::start(place.path());
    for (format, kind) in [("avro", "AVRO"), ("protobuf", "PROTOBUF")] {
        let topic = format!("schemas.{format}");
        let lines = publish(&broker, &registry, format, &topic);
        assert_eq!(registry.get(&format!("/subjects/{topic}-value/versions")), Some(json!([1])));
        let version = registry.get(&format!("/subjects/{topic}-value/versions/1")).unwrap();
        assert!(version["schemaType"] == kind || kind == "AVRO", "{version}");
        assert_cloud_events(&broker, &topic, format, &lines);
        let seen = read(&format!("python-{format}"), &broker, &registry, &topic, lines.len());
        let of = |values: Vec<Value>| values.iter().map(Value::to_string).collect::<BTreeSet<_>>();
        assert_eq!(of(seen), of(lines.iter().map(|line| expected(line, format == "avro")).collect()));
    }
}

/// A text field of a later version, as it is encoded behind those of today: Avro's second branch of a union; Protobuf's
/// field 1000.
const LATER: [(&str, &[u8]); 2] = [("avro", b"\x02\x0alater"), ("protobuf", b"\xc2\x3e\x05later")];

/// The schema as a later version may have it, and as none may within v1.
fn later(format: &str) -> (String, String) {
    let file = if format == "avro" { "event.v1.avsc" } else { "event.v1.proto" };
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema").join(file)).unwrap();
    if format == "avro" {
        let with = |field: Value| {
            let mut schema: Value = serde_json::from_str(&text).unwrap();
            schema["fields"].as_array_mut().unwrap().push(field);
            schema.to_string()
        };
        let more = json!({"name": "a_later_field", "type": ["null", "string"], "default": null});
        return (with(more), with(json!({"name": "needed", "type": "string"})));
    }
    let begin = "message Event {\n";
    assert!(text.contains(begin) && text.contains("string record_id = 1;"));
    let more = text.replace(begin, &format!("{begin}  string a_later_field = 1000;\n"));
    (more, text.replace("string record_id = 1;", "int64 record_id = 1;"))
}

#[test]
fn a_registry_takes_a_later_schema_and_readers_of_today_read_its_records() {
    let (broker, place): (Arc<Broker>, _) = (Broker::shared(), directory());
    let registry = Registry::start(place.path());
    for (format, field) in LATER {
        let (topic, newer) = (format!("later.{format}"), format!("later.{format}.newer"));
        let lines = publish(&broker, &registry, format, &topic);
        let subject = format!("{topic}-value");
        let (status, said) = registry.tell("PUT", &format!("/config/{subject}"), &json!({"compatibility": "FULL"}));
        assert_eq!(status, 200, "{said}");
        let register = |schema: &str| {
            let body = json!({"schema": schema, "schemaType": format.to_uppercase()});
            registry.tell("POST", &format!("/subjects/{subject}/versions"), &body)
        };
        let (more, broken) = later(format);
        let (status, said) = register(&broken);
        assert_eq!(status, 409, "{format}: {said}");
        let (status, said) = register(&more);
        assert_eq!(status, 200, "{format}: {said}");
        let id = (said["id"].as_u64().unwrap() as u32).to_be_bytes();
        let mut values = Vec::new();
        each_committed(&broker.address(), &topic, |message| {
            let value = message.payload().unwrap();
            assert_ne!(value[1..5], id, "the later schema has an id of its own");
            values.push([&[0], &id[..], &value[5..], field].concat());
        });
        assert_eq!(values.len(), lines.len());
        produce(&broker, &newer, &values);
        let seen = read(&format!("python-{format}"), &broker, &registry, &newer, lines.len());
        let of = |values: Vec<Value>| values.iter().map(Value::to_string).collect::<BTreeSet<_>>();
        assert_eq!(of(seen), of(lines.iter().map(|line| expected(line, format == "avro")).collect()));
    }
}
