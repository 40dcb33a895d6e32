//! Where it is measured: the machine, and the disk that journals are written to.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::servers::{directory, pin};

/// Processors, memory, kernel, file system with its options. No names of machines or places.
pub(crate) fn describe() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let count = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{count} CPUs ({model}), {} GiB, Linux {}, {}", kib >> 20, kernel.trim(), file_system())
}

/// The mount that holds the journals: the longest that their directory begins with.
fn file_system() -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let held = |line: &&str| line.split(' ').nth(1).is_some_and(|point| directory().starts_with(point));
    let mount = mounts.lines().filter(held).max_by_key(|line| line.split(' ').nth(1).map_or(0, str::len));
    let fields: Vec<&str> = mount.unwrap_or_default().split(' ').collect();
    match fields[..] {
        [device, _, kind, options, ..] => {
            let disk = device.rsplit('/').next().unwrap_or_default();
            format!("{kind} on {disk} ({options})")
        }
        _ => "unknown file system".into(),
    }
}

/// Time of the servers' CPU that the machine's host gave to others, since the start. Linux counts it in ticks
/// of 10 ms (`USER_HZ`).
pub(crate) fn stolen() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu0 ")).unwrap_or_default();
    let ticks: u64 = line.split(' ').nth(7).and_then(|ticks| ticks.parse().ok()).unwrap_or_default();
    Duration::from_millis(10 * ticks)
}

/// What a record of the plain pixel takes in the journal.
const RECORD: usize = 350;
/// Of the loop when nothing is due.
const REST: Duration = Duration::from_micros(20);

/// What a loop took that does nothing but write and sync, in microseconds, sorted.
#[derive(Default)]
pub(crate) struct Syncs {
    /// From the moment a record is due until it is durable: what no server on this disk can be better than.
    pub(crate) durable: Vec<u32>,
    /// Each write with its fdatasync, by itself.
    pub(crate) each: Vec<u32>,
}

/// Does something, and meanwhile writes records at a rate on the servers' CPU, all that are due at once, with a sync.
pub(crate) fn beside<T>(per_second: f64, doing: impl FnOnce() -> T) -> (T, Syncs) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let syncs = scope.spawn(|| {
            pin(0);
            sync_until(per_second, &over)
        });
        let done = doing();
        over.store(true, Ordering::Relaxed);
        let mut syncs = syncs.join().unwrap();
        syncs.durable.sort_unstable();
        syncs.each.sort_unstable();
        (done, syncs)
    })
}

fn sync_until(per_second: f64, over: &AtomicBool) -> Syncs {
    let file: File = tempfile::tempfile_in(directory()).unwrap();
    // Allocated, as the journal's are.
    const LENGTH: usize = 64 << 20;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, LENGTH as u64).unwrap();
    file.sync_all().unwrap();
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)).unwrap();
    let (block, mut at, mut syncs) = (vec![1; LENGTH / 16], 0, Syncs::default());
    let (begun, mut done) = (Instant::now(), 0);
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let due = ((asked - begun).as_secs_f64() * per_second) as u64;
        if due == done {
            std::thread::sleep(REST);
            continue;
        }
        let bytes = ((due - done) as usize * RECORD).min(block.len());
        at = if at + bytes > LENGTH { 0 } else { at };
        file.write_all_at(&block[..bytes], at as u64).unwrap();
        file.sync_data().unwrap();
        at += bytes;
        syncs.each.push(asked.elapsed().as_micros() as u32);
        let now = begun.elapsed().as_secs_f64();
        syncs.durable.extend((done..due).map(|record| ((now - record as f64 / per_second) * 1e6) as u32));
        done = due;
    }
    syncs
}
