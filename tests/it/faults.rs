//! Every fault alone: what is done, until when, and what must be seen on the way. The judge speaks in `stage`.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, prlimit};

use super::audit::balanced_stat;
use super::broker::Broker;
use super::client::Client;
use super::fault_run::is_wanted;
use super::gateway::{Gateway, PIXEL, until};
use super::proxy::{APIS, Api, Deed, Network, Proxy, When};
use super::random::Random;
use super::scene::{wait_blocked, wait_for, wait_published};
use super::shim::{Call, EIO, ENOSPC, EROFS, Moment, Shim};
use super::stage::{Expect, Row, Stage, TRANSACTION, act, reborn};

/// Longer than a transaction may last.
const LONGER: Duration = Duration::from_secs(TRANSACTION.as_secs() + 1);
const UNREACHABLE: &str = "publish_blocked{cause=\"unreachable\"}";

/// Calls that the journal and the cursor's copy make their promises by. Numbers: so many go well first.
pub const CALLS: [(Call, Moment, &str, i32); 14] = [
    (Call::Write, Moment::Before, ".seg", 5),
    (Call::Write, Moment::Half, ".seg", 5),
    (Call::Write, Moment::After, ".seg", 5),
    (Call::Sync, Moment::Before, ".seg", 5),
    (Call::Sync, Moment::After, ".seg", 5),
    (Call::Allocate, Moment::After, "spare", 0),
    (Call::Rename, Moment::Before, ".seg", 0),
    (Call::Rename, Moment::After, ".seg", 0),
    (Call::SyncDir, Moment::Before, "journal", 0),
    // Kafka has committed, and the copy doesn't say so yet.
    (Call::Write, Moment::Before, "cursor", 1),
    (Call::Write, Moment::Half, "cursor", 1),
    (Call::Sync, Moment::Before, "cursor", 1),
    (Call::Rename, Moment::Before, "cursor.json", 1),
    (Call::Rename, Moment::After, "cursor.json", 1),
];

type Played<'s> = (Gateway<'s>, String);
type Clean = for<'s> fn(&Stage<'s>, Gateway<'s>) -> Played<'s>;

/// A scenario of which nothing may be wrong at the end: name, further lines of the table `journal`, what is done.
type Scene = (&'static str, &'static str, Clean);

const OF_GATEWAY: [Scene; 14] = [
    ("kill -9 at random moments", "", kill_at_random),
    ("kill -9 within calls of the journal", "", kill_in_calls),
    ("kill -9 around requests of the publisher", "", kill_at_requests),
    ("gateway SIGSTOP, longer than a transaction", "", freeze),
    ("SIGTERM under load, with slow clients", "", terminate),
    ("power cut: unsynced pages and names are lost", "", cut_power),
    ("disk full", "", fill_disk),
    ("disk read-only", "", read_only),
    ("fdatasync fails with EIO", "", |stage, gateway| fail(stage, gateway, Shim::fail_syncs)),
    ("write fails with EIO", "", |stage, gateway| fail(stage, gateway, Shim::fail_writes)),
    ("fdatasync takes 0.3 s", "", slow_syncs),
    ("wall clock jumps by half an hour", "", jump),
    ("clock two hours ahead, which Kafka refuses", "", run_ahead),
    ("no file descriptor left", "", exhaust_descriptors),
];

const OF_KAFKA: [Scene; 11] = [
    ("network slow", "", |stage, gateway| network(stage, gateway, Network::Slow)),
    ("connections refused and reset", "", |stage, gateway| network(stage, gateway, Network::Cut)),
    ("network silent, as when packets are dropped", "", |stage, gateway| network(stage, gateway, Network::Silent)),
    ("connections cut before, within and behind each request and answer", "", cut_requests),
    ("produce requests are never answered", "", swallow),
    ("Kafka away until journal.max_bytes is reached", "max_bytes = \"4MiB\"\n", fill_journal),
    ("partitions added", "", add_partitions),
    ("max.message.bytes lowered below every record", "", lower_limit),
    ("broker SIGSTOP, longer than a transaction", "", freeze_broker),
    ("broker kill -9 and restart", "", kill_broker),
    ("broker clean restart", "", restart_broker),
];

/// Faults of the gateway, its disk and its clock.
pub fn of_the_gateway(place: (&Broker, &Proxy), mut random: impl FnMut() -> Random) -> Vec<Row> {
    let mut rows: Vec<Row> = OF_GATEWAY
        .iter()
        .filter(|(name, ..)| is_wanted(name))
        .map(|(name, journal, play)| act(name, journal, Expect::Clean, place, random(), play))
        .collect();
    let name = "bits flipped in unpublished records";
    if is_wanted(name) {
        rows.push(act(name, "", Expect::Damage, place, random(), flip));
    }
    rows
}

/// Faults of network and broker, which must be nobody else's.
pub fn of_kafka(place: (&Broker, &Proxy), mut random: impl FnMut() -> Random) -> Vec<Row> {
    OF_KAFKA
        .iter()
        .filter(|(name, ..)| is_wanted(name))
        .map(|(name, journal, play)| act(name, journal, Expect::Clean, place, random(), play))
        .collect()
}

fn kill_at_random<'s>(stage: &Stage<'s>, mut gateway: Gateway<'s>) -> Played<'s> {
    for _ in 0..6 {
        thread::sleep(stage.millis(50, 900));
        gateway.kill();
        gateway = stage.site.start();
    }
    (gateway, "6 kills".into())
}

fn kill_in_calls<'s>(stage: &Stage<'s>, mut gateway: Gateway<'s>) -> Played<'s> {
    for (call, moment, name, after) in CALLS {
        stage.shim.crash_at(call, moment, name, after);
        let what = format!("killed {moment:?} {call:?} of {name}");
        // What happens only at a start is met by the next one.
        if name == "spare" || (call == Call::Rename && name == ".seg") || call == Call::SyncDir {
            gateway.kill();
            gateway = stage.site.launch();
        }
        wait_for(&what, stage.site, || gateway.has_ended().is_some());
        assert_eq!(gateway.wait().code(), None, "{what}: {}", stage.site.log());
        stage.shim.crash_no_more();
        gateway = stage.site.start();
        stage.load.wait_for(10);
    }
    (gateway, format!("{} kills", CALLS.len()))
}

fn kill_at_requests<'s>(stage: &Stage<'s>, mut gateway: Gateway<'s>) -> Played<'s> {
    let mut kills = 0;
    for (api, when) in APIS.into_iter().flat_map(|api| [(api, When::Asked), (api, When::Answered)]) {
        stage.proxy.trap(api, when, Deed::Kill(gateway.id()));
        if api == Api::InitProducerId {
            // Asked once per client.
            gateway.kill();
            gateway = stage.site.launch();
            stage.proxy.trap(api, when, Deed::Kill(gateway.id()));
        }
        gateway = reborn(stage, gateway, &format!("killed with {api:?} {when:?}"));
        kills += 1;
    }
    (gateway, format!("{kills} kills"))
}

fn freeze<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    for _ in 0..2 {
        gateway.signal(Signal::STOP);
        thread::sleep(LONGER);
        gateway.signal(Signal::CONT);
        wait_published(stage.site, &gateway, 20);
    }
    (gateway, "2 naps".into())
}

fn terminate<'s>(stage: &Stage<'s>, mut gateway: Gateway<'s>) -> Played<'s> {
    for round in 0..3 {
        // Heads and bodies that are on their way and never end: once, as all of the time to stop is given to them.
        let texts = if round == 0 { &["", "value=", "GET /offs"][..] } else { &[] };
        let slow: Vec<Client> = texts.iter().filter_map(|sent| half_sent(stage, sent)).collect();
        thread::sleep(stage.millis(20, 300));
        assert_eq!(gateway.stop(), Some(0), "{}", stage.site.log());
        drop(slow);
        gateway = stage.site.start();
        stage.load.wait_for(20);
    }
    (gateway, "3 stops, each with exit code 0".into())
}

fn half_sent(stage: &Stage<'_>, sent: &str) -> Option<Client> {
    let mut client = Client::connect(stage.site.public).ok()?;
    let head = format!("POST /offsite_event.php?id={PIXEL} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n");
    let bytes = if sent.starts_with("GET") { sent.to_owned() } else { head + sent };
    client.send(bytes.as_bytes()).ok()?;
    Some(client)
}

fn cut_power<'s>(stage: &Stage<'s>, mut gateway: Gateway<'s>) -> Played<'s> {
    for _ in 0..5 {
        thread::sleep(stage.millis(50, 900));
        gateway.kill();
        stage.cut_power();
        gateway = stage.site.start();
    }
    (gateway, "5 cuts".into())
}

fn fill_disk<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    // Neither a segment nor the cursor's copy finds room, so nothing is removed either.
    stage.shim.fail_allocations(ENOSPC);
    stage.shim.fail_changes(ENOSPC);
    let crowd = stage.crowd("c");
    let refused = "events_total{outcome=\"rejected\",reason=\"journal_full\"}";
    wait_for("journal_full", stage.site, || gateway.metric(refused).is_some_and(|count| count > 0.0));
    for what in ["can't be allocated", "local copy of the cursor can't"] {
        assert!(stage.site.log().matches(what).count() <= 2, "said more than once: {}", stage.site.log());
    }
    stage.shim.fail_changes(0);
    stage.shim.fail_allocations(0);
    crowd.wait_for(20);
    stage.others.borrow_mut().absorb(crowd.finish());
    wait_for("it is ready", stage.site, || gateway.readiness() == Some(200));
    (gateway, "journal_full, then room".into())
}

fn read_only<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    for errno in [EROFS, 0] {
        stage.shim.fail_changes(errno);
        stage.shim.fail_allocations(errno);
        stage.shim.fail_writes(errno);
        if errno != 0 {
            let refused = "events_total{outcome=\"rejected\",reason=\"journal_full\"}";
            wait_for("journal_full", stage.site, || gateway.metric(refused).is_some_and(|count| count > 0.0));
        }
    }
    stage.load.wait_for(20);
    wait_for("it is ready", stage.site, || gateway.readiness() == Some(200));
    (gateway, "journal_full, then writable".into())
}

fn fail<'s>(stage: &Stage<'s>, mut gateway: Gateway<'s>, set: fn(&Shim, i32)) -> Played<'s> {
    for _ in 0..2 {
        set(stage.shim, EIO);
        assert_eq!(gateway.wait().code(), Some(1), "{}", stage.site.log());
        set(stage.shim, 0);
        gateway = stage.site.start();
        stage.load.wait_for(20);
    }
    (gateway, "2 ends with exit code 1".into())
}

fn slow_syncs<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    stage.shim.delay_syncs(300);
    stage.load.wait_for(30);
    stage.shim.delay_syncs(0);
    (gateway, "30 events on the slow disk".into())
}

fn jump<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    for minutes in [30, -30, 0] {
        stage.shim.shift_clock(minutes * 60_000);
        wait_published(stage.site, &gateway, 50);
    }
    (gateway, "+30 min, -60 min, +30 min".into())
}

fn run_ahead<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    stage.shim.shift_clock(2 * 3_600_000);
    wait_blocked(stage.site, &gateway, "clock");
    stage.load.wait_for(20);
    stage.shim.shift_clock(0);
    // Else what was received meanwhile would wait until its time.
    stage.broker.set_topic(stage.topic, &[("message.timestamp.after.max.ms", "10800000")]);
    wait_published(stage.site, &gateway, 20);
    assert_eq!(gateway.metric("journal_parked_events"), Some(0.0));
    (gateway, "nothing parked".into())
}

/// Nobody can connect, nor can the publisher; who is connected is served.
fn exhaust_descriptors<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    let pid = rustix::process::Pid::from_raw(gateway.id() as i32);
    let limit = |current| prlimit(pid, Resource::Nofile, Rlimit { current, ..getrlimit(Resource::Nofile) }).unwrap();
    // Its connections to Kafka go, and there is nothing to make new ones of: the lowest free number is too high.
    stage.proxy.set(Network::Cut);
    wait_blocked(stage.site, &gateway, "unreachable");
    let open: Vec<String> = fs::read_dir(format!("/proc/{}/fd", gateway.id()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let lowest = (0..).find(|number: &u64| !open.contains(&number.to_string())).expect("numbers don't end");
    let good = limit(Some(lowest)).current;
    stage.proxy.set(Network::Good);
    let published = || balanced_stat(stage.site)["published"].as_u64();
    let before = published();
    stage.load.wait_for(300);
    assert_eq!(published(), before, "without a descriptor nobody publishes");
    limit(good);
    wait_published(stage.site, &gateway, 20);
    (gateway, format!("none above {lowest} for 300 events"))
}

fn flip<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    stage.proxy.set(Network::Cut);
    wait_blocked(stage.site, &gateway, "unreachable");
    stage.load.wait_for(300);
    let pending = balanced_stat(stage.site)["pending"].as_u64().unwrap();
    let mut newest = newest_segment(stage);
    wait_for("batches in the newest segment", stage.site, || {
        newest = newest_segment(stage);
        newest.1 > 64 << 10
    });
    let (segment, length) = newest;
    gateway.kill();
    // Well before the last batch, and behind what is published.
    let file = fs::OpenOptions::new().read(true).write(true).open(segment).unwrap();
    for at in [length / 2, length * 3 / 4] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    }
    let gateway = stage.site.start();
    stage.proxy.set(Network::Good);
    (gateway, format!("2 bits among {pending} records"))
}

/// The segment being written, and how many bytes of it are.
fn newest_segment(stage: &Stage<'_>) -> (PathBuf, u64) {
    let files = fs::read_dir(stage.site.data().join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let newest = files.filter(|path| path.extension().is_some_and(|end| end == "seg")).max().expect("there is one");
    let bytes = fs::read(&newest).unwrap();
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64);
    (newest, length)
}

fn network<'s>(stage: &Stage<'s>, gateway: Gateway<'s>, network: Network) -> Played<'s> {
    stage.proxy.set(network);
    if network == Network::Slow {
        thread::sleep(LONGER);
        wait_published(stage.site, &gateway, 20);
    } else {
        wait_blocked(stage.site, &gateway, "unreachable");
        stage.load.wait_for(50);
        assert_eq!(gateway.metric(UNREACHABLE), Some(1.0));
    }
    stage.proxy.set(Network::Good);
    (gateway, "and good again".into())
}

fn cut_requests<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    let mut cuts = 0;
    for (api, when) in APIS[1..].iter().flat_map(|api| [(*api, When::Asked), (*api, When::Answered)]) {
        for deed in [Deed::Cut, Deed::CutWithin] {
            let before = stage.proxy.sprung();
            stage.proxy.trap(api, when, deed);
            wait_for(&format!("{api:?} {when:?} cut"), stage.site, || stage.proxy.sprung() > before);
            wait_published(stage.site, &gateway, 10);
            cuts += 1;
        }
    }
    (gateway, format!("{cuts} cuts"))
}

/// A broker that takes records and never says what became of them: the client is given up and made again.
fn swallow<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    let restarts = || gateway.metric("publisher_restarts_total");
    let mut before = None;
    until("figures", || {
        before = restarts();
        before.is_some()
    });
    stage.proxy.trap(Api::Produce, When::Asked, Deed::Swallow);
    wait_for("the client is made again", stage.site, || restarts() > before);
    stage.proxy.release();
    wait_published(stage.site, &gateway, 20);
    (gateway, format!("{} requests lost", stage.proxy.sprung()))
}

fn fill_journal<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    stage.proxy.set(Network::Cut);
    wait_blocked(stage.site, &gateway, "unreachable");
    let crowd = stage.crowd("c");
    let refused = "events_total{outcome=\"rejected\",reason=\"journal_full\"}";
    wait_for("journal_full", stage.site, || gateway.metric(refused).is_some_and(|count| count > 0.0));
    assert_eq!(gateway.readiness(), Some(503));
    // Longer than what others send: what is shorter may still fit.
    let long = format!("/offsite_event?id={PIXEL}&a={0}&b={0}&c={0}", "x".repeat(1000));
    let reply = Client::connect(stage.site.public).and_then(|mut client| client.get(&long));
    let reply = reply.expect("it answers");
    let wait: Option<u64> = reply.header("retry-after").and_then(|seconds| seconds.parse().ok());
    assert!(reply.status == 503 && wait.is_some_and(|seconds| (1..=3600).contains(&seconds)), "{reply:?}");
    stage.proxy.set(Network::Good);
    wait_for("it is ready", stage.site, || gateway.readiness() == Some(200));
    crowd.wait_for(50);
    stage.others.borrow_mut().absorb(crowd.finish());
    (gateway, "journal_full, then ready by itself".into())
}

fn add_partitions<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    stage.broker.add_partitions(stage.topic, 7);
    wait_published(stage.site, &gateway, 200);
    (gateway, "7 partitions".into())
}

fn lower_limit<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    stage.broker.set_topic(stage.topic, &[("max.message.bytes", "100")]);
    wait_blocked(stage.site, &gateway, "quota");
    stage.load.wait_for(20);
    let parked = gateway.metric("journal_parked_events").unwrap();
    stage.broker.set_topic(stage.topic, &[]);
    wait_published(stage.site, &gateway, 20);
    // The first few may be taken for the ones to blame, before it is clear that every record is refused.
    assert!(parked <= 16.0, "{parked} parked");
    assert_eq!(gateway.stop(), Some(0), "{}", stage.site.log());
    let retry = stage.site.run(&["parked", "retry"]);
    assert_eq!(retry.status.code(), Some(0), "{}", String::from_utf8_lossy(&retry.stderr));
    (stage.site.start(), format!("blocked; {parked} parked and retried"))
}

fn freeze_broker<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    stage.broker.freeze();
    thread::sleep(LONGER);
    wait_blocked(stage.site, &gateway, "unreachable");
    stage.broker.thaw();
    (gateway, "and on".into())
}

fn kill_broker<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    for _ in 0..2 {
        stage.broker.kill();
        thread::sleep(stage.millis(100, 4000));
        stage.broker.restart();
        wait_published(stage.site, &gateway, 20);
    }
    (gateway, "2 kills".into())
}

fn restart_broker<'s>(stage: &Stage<'s>, gateway: Gateway<'s>) -> Played<'s> {
    stage.broker.stop();
    stage.load.wait_for(20);
    stage.broker.restart();
    (gateway, "1 restart".into())
}
