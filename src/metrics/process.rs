//! The process's own figures, from `/proc` and two system calls, under the names that Prometheus clients share.
//!
//! A reader of our own: the one in the `prometheus` crate counts CPU time in whole seconds and brings two more crates.

use std::fs;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Figures of now. What can't be read (no `/proc` mounted) is 0.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Process {
    /// User and system time.
    pub cpu_seconds: f64,
    /// Resident set.
    pub resident_bytes: u64,
    /// Address space.
    pub virtual_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// How many there may be.
    pub max_fds: u64,
    /// Threads.
    pub threads: u64,
}

impl Process {
    /// Reads them.
    pub fn read() -> Process {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let max_fds = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        // Listing the directory opens one itself; where that is refused, none is left.
        let open_fds = match fs::read_dir("/proc/self/fd") {
            Ok(entries) => entries.count().saturating_sub(1) as u64,
            Err(error) if Errno::from_io_error(&error) == Some(Errno::MFILE) => max_fds,
            Err(_) => 0,
        };
        Process {
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            resident_bytes: field(&status, "VmRSS:") * 1024,
            virtual_bytes: field(&status, "VmSize:") * 1024,
            open_fds,
            max_fds,
            threads: field(&status, "Threads:"),
        }
    }
}

/// The number behind a field's name.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status = "Name:\tpixelgate\nVmRSS:\t    4096 kB\nRssAnon:\t 7 kB\nThreads:\t12\n";
        assert_eq!((field(status, "VmRSS:"), field(status, "Threads:"), field(status, "VmSize:")), (4096, 12, 0));
    }

    #[test]
    fn a_running_process_has_all_of_them() {
        let held: Vec<_> = (0..5).map(|_| fs::File::open("/proc/self/status").unwrap()).collect();
        let now = Process::read();
        assert!(now.resident_bytes > 1 << 20 && now.virtual_bytes >= now.resident_bytes, "{now:?}");
        assert!(now.open_fds >= 5 + 3 && now.max_fds > now.open_fds, "{now:?}");
        assert!(now.threads >= 1 && now.cpu_seconds > 0.0, "{now:?}");
        drop(held);
    }
}
