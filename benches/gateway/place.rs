//! Where it is measured: the machine, and the disk that journals are written to.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use crate::servers::directory;

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

/// Median and p99 of one write and fdatasync of 64 KiB into an allocated file, in microseconds.
pub(crate) fn sync_us() -> (f64, f64) {
    const BYTES: usize = 64 << 10;
    const TIMES: usize = 500;
    let file: File = tempfile::tempfile_in(directory()).unwrap();
    file.write_all_at(&vec![0; BYTES * TIMES], 0).unwrap();
    file.sync_all().unwrap();
    let block = vec![1; BYTES];
    let mut times: Vec<f64> = (0..TIMES)
        .map(|index| {
            let begun = Instant::now();
            file.write_all_at(&block, (index * BYTES) as u64).unwrap();
            file.sync_data().unwrap();
            begun.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[TIMES / 2], times[TIMES * 99 / 100])
}
