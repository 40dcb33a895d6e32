//! Faults in random combination: several at once, mended in random order, again and again, from one seed.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::broker::Broker;
use super::fault_run::is_wanted;
use super::faults::CALLS;
use super::gateway::Gateway;
use super::proxy::{APIS, Deed, Network, Proxy, When};
use super::random::Random;
use super::shim::{EIO, ENOSPC, EROFS};
use super::stage::{Expect, Row, Stage, act};

/// A row per so much time, so that a long run has several.
const STRETCH: Duration = Duration::from_secs(60);

/// One fault that others may join.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    Kill,
    KillInCall,
    KillAtRequest,
    PowerCut,
    Stop,
    Freeze,
    SlowDisk,
    FullDisk,
    ReadOnlyDisk,
    FailingDisk,
    FailingWrites,
    Clock,
    SlowNetwork,
    SilentNetwork,
    CutNetwork,
    CutRequest,
    SwallowedRequests,
    PartitionAdded,
    BrokerFrozen,
    BrokerKilled,
    BrokerStopped,
}

const ALL: [Fault; 21] = [
    Fault::Kill,
    Fault::KillInCall,
    Fault::KillAtRequest,
    Fault::PowerCut,
    Fault::Stop,
    Fault::Freeze,
    Fault::SlowDisk,
    Fault::FullDisk,
    Fault::ReadOnlyDisk,
    Fault::FailingDisk,
    Fault::FailingWrites,
    Fault::Clock,
    Fault::SlowNetwork,
    Fault::SilentNetwork,
    Fault::CutNetwork,
    Fault::CutRequest,
    Fault::SwallowedRequests,
    Fault::PartitionAdded,
    Fault::BrokerFrozen,
    Fault::BrokerKilled,
    Fault::BrokerStopped,
];

/// Combines faults for so long.
pub fn run(place: (&Broker, &Proxy), mut random: Random, time: Duration) -> Vec<Row> {
    let end = Instant::now() + time;
    let mut rows = Vec::new();
    while Instant::now() < end && is_wanted("random combination") {
        let until = end.min(Instant::now() + STRETCH);
        let name = format!("random combination {}", rows.len() + 1);
        let random = Random::new(random.next());
        rows.push(act(&name, "", Expect::Clean, place, random, |stage, gateway| combine(stage, gateway, until)));
    }
    rows
}

fn combine<'s>(stage: &Stage<'s>, gateway: Gateway<'s>, until: Instant) -> (Gateway<'s>, String) {
    let mut counts: BTreeMap<Fault, u32> = BTreeMap::new();
    let mut gateway = Some(gateway);
    while Instant::now() < until {
        let mut faults: Vec<Fault> = (0..1 + stage.below(3)).map(|_| ALL[stage.below(ALL.len())]).collect();
        // A broker can end only once.
        faults.sort_by_key(|fault| (*fault >= Fault::BrokerFrozen, *fault));
        faults.dedup_by(|left, right| left == right || *left >= Fault::BrokerFrozen && *right >= Fault::BrokerFrozen);
        for fault in &faults {
            *counts.entry(*fault).or_default() += 1;
        }
        eprintln!("{faults:?}");
        for fault in &faults {
            begin(stage, &mut gateway, *fault);
            thread::sleep(stage.millis(0, 300));
        }
        thread::sleep(stage.millis(200, 3500));
        while !faults.is_empty() {
            mend(stage, &mut gateway, faults.swap_remove(stage.below(faults.len())));
            thread::sleep(stage.millis(0, 300));
        }
        gateway = Some(revive(stage, gateway.take()));
        thread::sleep(stage.millis(0, 1000));
    }
    let counts: Vec<String> = counts.iter().map(|(fault, count)| format!("{count} {fault:?}")).collect();
    (gateway.expect("it runs"), counts.join(", "))
}

fn begin<'s>(stage: &Stage<'s>, gateway: &mut Option<Gateway<'s>>, fault: Fault) {
    let ended = gateway.as_mut().is_none_or(|gateway| gateway.has_ended().is_some());
    let running = gateway.as_ref().filter(|_| !ended);
    match (fault, running) {
        (Fault::Kill | Fault::PowerCut, Some(running)) => running.signal(Signal::KILL),
        (Fault::Stop, Some(running)) => running.ask_to_stop(),
        (Fault::Freeze, Some(running)) => running.signal(Signal::STOP),
        (Fault::KillAtRequest, Some(running)) => {
            let when = [When::Asked, When::Answered][stage.below(2)];
            stage.proxy.trap(APIS[stage.below(APIS.len())], when, Deed::Kill(running.id()));
        }
        (Fault::KillInCall, _) => {
            let (call, moment, name, _) = CALLS[stage.below(CALLS.len())];
            stage.shim.crash_at(call, moment, name, stage.below(20) as i32);
        }
        (Fault::SlowDisk, _) => stage.shim.delay_syncs(200),
        (Fault::FullDisk, _) => {
            stage.shim.fail_allocations(ENOSPC);
            stage.shim.fail_changes(ENOSPC);
        }
        (Fault::ReadOnlyDisk, _) => {
            stage.shim.fail_writes(EROFS);
            stage.shim.fail_allocations(EROFS);
            stage.shim.fail_changes(EROFS);
        }
        (Fault::FailingDisk, _) => stage.shim.fail_syncs(EIO),
        (Fault::FailingWrites, _) => stage.shim.fail_writes(EIO),
        (Fault::Clock, _) => stage.shim.shift_clock(stage.below(3_000_000) as i64 - 1_500_000),
        (Fault::SlowNetwork, _) => stage.proxy.set(Network::Slow),
        (Fault::SilentNetwork, _) => stage.proxy.set(Network::Silent),
        (Fault::CutNetwork, _) => stage.proxy.set(Network::Cut),
        (Fault::CutRequest, _) => {
            let when = [When::Asked, When::Answered][stage.below(2)];
            let deed = [Deed::Cut, Deed::CutWithin][stage.below(2)];
            stage.proxy.trap(APIS[stage.below(APIS.len())], when, deed);
        }
        (Fault::SwallowedRequests, _) => {
            stage.proxy.trap(APIS[stage.below(APIS.len())], When::Asked, Deed::Swallow);
        }
        // Each makes the next ones' fan wider, so there are not too many of them.
        (Fault::PartitionAdded, _) => stage.broker.add_partition(stage.topic, 12),
        (Fault::BrokerFrozen, _) => stage.broker.freeze(),
        (Fault::BrokerKilled, _) => stage.broker.kill(),
        (Fault::BrokerStopped, _) => stage.broker.stop(),
        // It ended by another fault already.
        (Fault::Kill | Fault::PowerCut | Fault::Stop | Fault::Freeze | Fault::KillAtRequest, None) => {}
    }
    if fault == Fault::PowerCut
        && let Some(ended) = gateway.take()
    {
        ended.wait();
        stage.cut_power();
    }
}

fn mend(stage: &Stage<'_>, gateway: &mut Option<Gateway<'_>>, fault: Fault) {
    match fault {
        Fault::Kill | Fault::PowerCut | Fault::Stop | Fault::Clock | Fault::PartitionAdded => {}
        Fault::Freeze => {
            // It may have been killed meanwhile; who is gone takes no signals.
            if let Some(gateway) = gateway
                && gateway.has_ended().is_none()
            {
                gateway.signal(Signal::CONT);
            }
        }
        Fault::KillInCall => stage.shim.crash_no_more(),
        Fault::SlowDisk => stage.shim.delay_syncs(0),
        Fault::FullDisk | Fault::ReadOnlyDisk | Fault::FailingWrites => {
            stage.shim.fail_writes(0);
            stage.shim.fail_allocations(0);
            stage.shim.fail_changes(0);
        }
        Fault::FailingDisk => stage.shim.fail_syncs(0),
        Fault::SlowNetwork | Fault::SilentNetwork | Fault::CutNetwork => stage.proxy.set(Network::Good),
        Fault::KillAtRequest | Fault::CutRequest | Fault::SwallowedRequests => stage.proxy.release(),
        Fault::BrokerFrozen => stage.broker.thaw(),
        Fault::BrokerKilled | Fault::BrokerStopped => stage.broker.restart(),
    }
}

/// With everything mended, it runs or is started again.
fn revive<'s>(stage: &Stage<'s>, gateway: Option<Gateway<'s>>) -> Gateway<'s> {
    let Some(mut gateway) = gateway else { return stage.site.start() };
    let deadline = Instant::now() + Duration::from_secs(120);
    // Ready, or on its way to the end.
    while gateway.has_ended().is_none() {
        if gateway.readiness() == Some(200) {
            // A signal to stop may be waiting behind the one to go on.
            thread::sleep(Duration::from_millis(300));
            if gateway.has_ended().is_none() && gateway.readiness() == Some(200) {
                return gateway;
            }
        }
        assert!(Instant::now() < deadline, "neither ready nor ended: {}", stage.site.log());
        thread::sleep(Duration::from_millis(20));
    }
    let status = gateway.wait();
    assert!(matches!(status.code(), None | Some(0 | 1)), "{status}: {}", stage.site.log());
    stage.site.start()
}
