//! A backlog leaving for Kafka, beside a raw transactional producer that sends the same records from memory.
//!
//! `PIXELGATE_BENCH_KAFKA=127.0.0.1:9092 cargo bench --bench publish` [-- records rounds]. The raw producer commits
//! each 100 ms and polls by itself until everything is delivered; the rounds are interleaved, medians are printed.
#![expect(clippy::print_stdout, reason = "its result")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use pixelgate::journal::append::Refused;
use pixelgate::journal::{Acknowledge, Commit, Journal, Observer, OnDamage, Options};
use pixelgate::publish::properties::Properties;
use pixelgate::publish::{self, Delivery, Key, Publisher};
use pixelgate::record::{Head, Kind};
use pixelgate::time::SystemClock;
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const BYTES: usize = 300;
const LONG: Duration = Duration::from_secs(60);

struct Quiet;

impl Observer for Quiet {
    fn committed(&self, _: &Commit) {}
}

/// A record that compresses about as events do.
fn body(number: u64) -> String {
    let text = format!(
        "{{\"schema\":\"pixelgate.event.v1\",\"record_id\":\"019ab4c0-0000-7000-8000-{number:012x}\",\"pixel_id\":\
         \"60100000{:05}\",\"value\":\"{}.99\",\"currency\":\"EUR\",\"user_agent\":\"Mozilla/5.0 \
         Chrome/{}.0\",\"params\":{{",
        number % 1000,
        number % 500,
        number % 97
    );
    format!("{text:x<width$}}}}}", width = BYTES - 2)
}

fn key(number: u64) -> String {
    format!("60100000{:05}", number % 1000)
}

fn options(brokers: &str, delivery: Delivery) -> publish::Options {
    publish::Options {
        brokers: vec![brokers.to_owned()],
        delivery,
        events_topic: "bench".into(),
        rejected_topic: None,
        partitions: 4,
        progress_topic: None,
        encoding: None,
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
                let head = Head { kind: Kind::Event, id: u128::from(number).to_be_bytes(), time_ms: 1_795_496_441_123 };
                let body = body(number);
                match appender.append(head, key(number).as_bytes(), |out| out.extend_from_slice(body.as_bytes())) {
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

fn of_the_journal(brokers: &str, records: u64, delivery: Delivery) -> f64 {
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
    let publisher = Publisher::start(options(brokers, delivery), "bench", journal.clone(), Arc::new(SystemClock))
        .expect("a thread");
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
    let bodies: Vec<(String, String)> = (0..records).map(|number| (key(number), body(number))).collect();
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
    let Ok(brokers) = std::env::var("PIXELGATE_BENCH_KAFKA") else {
        println!("PIXELGATE_BENCH_KAFKA names no broker (HOST:PORT): nothing is measured");
        return;
    };
    let mut numbers = std::env::args().filter_map(|word| word.parse::<u64>().ok());
    let (records, rounds) = (numbers.next().unwrap_or(300_000), numbers.next().unwrap_or(3));
    // A cold broker is slow, and the topic is made here.
    of_the_journal(&brokers, records / 3, Delivery::ExactlyOnce);
    let (mut exactly, mut at_least, mut raws) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        exactly.push(of_the_journal(&brokers, records, Delivery::ExactlyOnce));
        at_least.push(of_the_journal(&brokers, records, Delivery::AtLeastOnce));
        raws.push(raw(&brokers, records));
        let last = round as usize;
        println!("round {round}: {:.0} {:.0} {:.0}", exactly[last], at_least[last], raws[last]);
    }
    let (exactly, at_least, raw) = (median(exactly), median(at_least), median(raws));
    println!("{records} records of {BYTES} bytes, records/s, medians of {rounds}");
    println!("exactly_once   {exactly:9.0}  {:.2} of raw", exactly / raw);
    println!("at_least_once  {at_least:9.0}  {:.2} of raw", at_least / raw);
    println!("raw transactional producer {raw:9.0}");
}
