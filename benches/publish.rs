//! A backlog leaving for Kafka, beside a raw transactional producer that sends the same records from memory.
//!
//! `cargo bench --bench publish` [-- records rounds] starts a broker of its own (needs Java and Maven);
//! `PIXELGATE_BENCH_KAFKA=HOST:PORT` names another. The raw producer commits each 100 ms and polls by itself until all
//! is delivered; the rounds are interleaved, medians are printed. The same records as Avro and Protobuf have a schema
//! registry that knows any schema.
#![expect(clippy::print_stdout, reason = "its result")]
#![expect(clippy::unwrap_used, reason = "a bench that can't run should say where it stopped")]

#[path = "../tests/it/broker.rs"]
#[expect(dead_code, reason = "the tests do more with it")]
mod broker;
#[path = "../tests/it/maven.rs"]
mod maven;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pixelgate::event::encode::{self, Stamp};
use pixelgate::event::parse::parse;
use pixelgate::event::privacy::{self, ClientIp, UrlQuery};
use pixelgate::event::{Client, RawEvent};
use pixelgate::journal::append::Refused;
use pixelgate::journal::{Acknowledge, Commit, Journal, Observer, OnDamage, Options};
use pixelgate::pixel::{Pixel, PixelId};
use pixelgate::publish::properties::Properties;
use pixelgate::publish::{self, Delivery, Encoding, Format, Key, Publisher, SchemaRegistry};
use pixelgate::record::{Head, Kind};
use pixelgate::time::{SystemClock, Timestamp};
use pixelgate::upstream::Base;
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

/// Where the broker's module looks for it.
mod gateway {
    pub(crate) fn free_address() -> std::net::SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }
}

const TIME_MS: u64 = 1_795_496_441_123;
const LONG: Duration = Duration::from_secs(60);

struct Quiet;

impl Observer for Quiet {
    fn committed(&self, _: &Commit) {}
}

fn id(number: u64) -> [u8; 16] {
    u128::from(number).to_be_bytes()
}

/// A plain conversion as the gateway writes it.
fn body(number: u64) -> Vec<u8> {
    let pixel = PixelId::parse(key(number).as_bytes()).expect("thirteen digits");
    let query = format!("id={pixel}&value={}.99&currency=EUR&order={number}", number % 500);
    let event = parse(RawEvent { query: query.as_bytes(), ..RawEvent::default() }, false).expect("an event");
    let agent = format!("Mozilla/5.0 (X11; Linux x86_64) Chrome/{}.0", number % 97);
    let client = Client { user_agent: Some(agent.as_bytes()), ..Client::default() };
    let pixel = Pixel { id: pixel, name: None, tag: None, ad_account_id: Some("8".to_owned()), archived: false };
    let rules = privacy::Options { client_ip: ClientIp::Truncated, url_query: UrlQuery::Allowlist };
    let stamp = Stamp { id: id(number), received: Timestamp(TIME_MS), node_id: "node-0123456789ab" };
    let mut out = Vec::new();
    encode::event(&mut out, &stamp, &event, &client, &pixel, &rules);
    out
}

fn key(number: u64) -> String {
    format!("60100000{:05}", number % 1000)
}

/// A registry whose every schema has the id 1.
fn registry() -> SchemaRegistry {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            // Whatever the request is: it has begun to come, and the rest of it is read by nobody.
            let mut some = [0; 64 << 10];
            let reply = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n{\"id\":1}";
            if stream.read(&mut some).is_ok_and(|read| read > 0) {
                stream.write_all(reply.as_bytes()).expect("an answer");
            }
        }
    });
    SchemaRegistry { base: Base::parse(&url).expect("a URL"), credentials: None, auto_register: true }
}

fn options(brokers: &str, delivery: Delivery, encoding: Option<Encoding>) -> publish::Options {
    publish::Options {
        brokers: vec![brokers.to_owned()],
        delivery,
        events_topic: "bench".into(),
        rejected_topic: None,
        partitions: 4,
        progress_topic: None,
        encoding,
        cloudevents: false,
        replication_factor: 1,
        key: Key::PixelId,
        transaction_timeout: Duration::from_secs(15),
        client: Properties::default(),
    }
}

fn fill(journal: &Journal, records: u64) {
    let (appender, mut driver) = journal.appender();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut number = 0;
        while number < records {
            let mut last = None;
            for _ in 0..2000.min(records - number) {
                let head = Head { kind: Kind::Event, id: id(number), time_ms: TIME_MS };
                let body = body(number);
                match appender.append(head, key(number).as_bytes(), |out| out.extend_from_slice(&body)) {
                    Ok(receipt) => last = Some(receipt),
                    Err(Refused::Busy) => break,
                    Err(_) => panic!("the journal takes no more"),
                }
                number += 1;
            }
            if let Some(receipt) = last {
                tokio::select! {
                    result = receipt => { result.expect("it is durable"); }
                    () = &mut driver => {}
                }
            }
        }
    });
}

fn of_the_journal(brokers: &str, records: u64, delivery: Delivery, encoding: Option<Encoding>) -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = Journal::open(
        Options {
            data_dir: dir.path().to_path_buf(),
            acknowledge: Acknowledge::Written,
            max_bytes: 8 << 30,
            segment_bytes: 64 << 20,
            retention: LONG,
            on_damage: OnDamage::Skip,
            publishes: true,
        },
        Arc::new(SystemClock),
        Arc::new(Quiet),
    )
    .expect("a journal");
    fill(&journal, records);
    while journal.synced().0 < records {
        std::thread::sleep(Duration::from_millis(10));
    }
    let options = options(brokers, delivery, encoding);
    let publisher = Publisher::start(options, "bench", journal.clone(), Arc::new(SystemClock)).expect("a thread");
    // Connecting is no part of it.
    while publisher.stats.reached().0 == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (begun, first) = (Instant::now(), publisher.stats.reached().0);
    while publisher.stats.reached().0 < records {
        std::thread::sleep(Duration::from_millis(1));
    }
    let rate = (records - first) as f64 / begun.elapsed().as_secs_f64();
    publisher.stop(LONG, &SystemClock);
    journal.close(LONG, &SystemClock);
    rate
}

fn raw(brokers: &str, records: u64) -> f64 {
    let bodies: Vec<(String, Vec<u8>)> = (0..records).map(|number| (key(number), body(number))).collect();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("transactional.id", "bench-raw").set("compression.type", "lz4");
    config.set("linger.ms", "5").set("queue.buffering.max.messages", "0").set("delivery.report.only.error", "true");
    config.set("queue.buffering.max.kbytes", "16384").set("partitioner", "murmur2_random");
    let producer: BaseProducer = config.create().expect("a producer");
    producer.init_transactions(LONG).expect("transactions");
    let (begun, mut since) = (Instant::now(), Instant::now());
    producer.begin_transaction().expect("a transaction");
    let commit = || {
        while producer.in_flight_count() > 0 {
            producer.poll(Duration::from_millis(1));
        }
        producer.commit_transaction(LONG).expect("a commit");
    };
    for (key, body) in &bodies {
        let mut record = BaseRecord::to("bench").key(key).payload(body);
        while let Err((error, back)) = producer.send(record) {
            assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull), "{error}");
            record = back;
            producer.poll(Duration::from_millis(1));
        }
        if since.elapsed() >= Duration::from_millis(100) {
            commit();
            producer.begin_transaction().expect("a transaction");
            since = Instant::now();
        }
    }
    commit();
    records as f64 / begun.elapsed().as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn main() {
    let given = std::env::var("PIXELGATE_BENCH_KAFKA").ok();
    let own = given.is_none().then(|| broker::Broker::start(""));
    let brokers = own.as_ref().map_or_else(|| given.unwrap_or_default(), broker::Broker::address);
    let mut numbers = std::env::args().filter_map(|word| word.parse::<u64>().ok());
    let (records, rounds) = (numbers.next().unwrap_or(300_000), numbers.next().unwrap_or(3));
    // A cold broker is slow, and the topic is made here.
    of_the_journal(&brokers, records / 3, Delivery::ExactlyOnce, None);
    let registry = registry();
    let in_format = |format| Some(Encoding { format, registry: registry.clone() });
    let kinds = [
        ("exactly_once", Delivery::ExactlyOnce, None),
        ("at_least_once", Delivery::AtLeastOnce, None),
        ("exactly_once, Avro", Delivery::ExactlyOnce, in_format(Format::Avro)),
        ("exactly_once, Protobuf", Delivery::ExactlyOnce, in_format(Format::Protobuf)),
    ];
    let (mut rates, mut raws) = (vec![Vec::new(); kinds.len()], Vec::new());
    for round in 0..rounds {
        for ((_, delivery, encoding), rates) in kinds.iter().zip(&mut rates) {
            rates.push(of_the_journal(&brokers, records, *delivery, encoding.clone()));
        }
        raws.push(raw(&brokers, records));
        println!("round {round} is done");
    }
    let (raw, bytes) = (median(raws), body(0).len());
    println!("{records} records of about {bytes} bytes, records/s, medians of {rounds}");
    println!("raw transactional producer, JSON {raw:9.0}");
    for ((name, ..), rates) in kinds.iter().zip(rates) {
        let rate = median(rates);
        println!("{name:32} {rate:9.0}  {:.2} of raw", rate / raw);
    }
}
