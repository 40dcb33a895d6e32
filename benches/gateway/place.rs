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

/// Between two syncs of [`beside`]: about what a gateway under load leaves.
const PACE: Duration = Duration::from_millis(1);
/// What each of them writes: about a commit.
const BYTES: usize = 8 << 10;

/// Does something, and meanwhile writes and syncs on the servers' CPU, in a program of its own thread that does nothing
/// else. What came of it, and the microseconds of each write with its fdatasync, sorted.
pub(crate) fn beside<T>(doing: impl FnOnce() -> T) -> (T, Vec<u32>) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let syncs = scope.spawn(|| {
            pin(0);
            sync_until(&over)
        });
        let done = doing();
        over.store(true, Ordering::Relaxed);
        let mut times = syncs.join().unwrap();
        times.sort_unstable();
        (done, times)
    })
}

fn sync_until(over: &AtomicBool) -> Vec<u32> {
    let file: File = tempfile::tempfile_in(directory()).unwrap();
    // Allocated, as the journal's are.
    const LENGTH: usize = 64 << 20;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, LENGTH as u64).unwrap();
    file.sync_all().unwrap();
    let (block, mut times) = (vec![1; BYTES], Vec::new());
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        file.write_all_at(&block, (times.len() * BYTES % LENGTH) as u64).unwrap();
        file.sync_data().unwrap();
        times.push(begun.elapsed().as_micros() as u32);
        std::thread::sleep(PACE.saturating_sub(begun.elapsed()));
    }
    times
}
