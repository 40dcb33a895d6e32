//! What a process has used, from `/proc`: CPU time of all its threads to the nanosecond, context switches, memory.

use std::fs;
use std::ops::Sub;

/// Figures so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    /// All threads, kernel included.
    pub(crate) cpu_ns: u64,
    /// Share in user mode is only known in clock ticks.
    user_ticks: u64,
    system_ticks: u64,
    /// Voluntary and involuntary.
    pub(crate) switches: u64,
}

impl Usage {
    /// User time: the precise sum, split as the ticks are.
    pub(crate) fn user_us(&self) -> f64 {
        let ticks = (self.user_ticks + self.system_ticks).max(1) as f64;
        self.cpu_ns as f64 / 1000.0 * self.user_ticks as f64 / ticks
    }
}

impl Sub for Usage {
    type Output = Usage;

    fn sub(self, before: Usage) -> Usage {
        Usage {
            cpu_ns: self.cpu_ns - before.cpu_ns,
            user_ticks: self.user_ticks - before.user_ticks,
            system_ticks: self.system_ticks - before.system_ticks,
            switches: self.switches - before.switches,
        }
    }
}

/// Of a process and its children, whose threads all live as long as it does.
pub(crate) fn of(id: u32) -> Usage {
    let mut usage = Usage::default();
    let threads = tree(id).into_iter().flat_map(|id| fs::read_dir(format!("/proc/{id}/task")).unwrap());
    for thread in threads {
        let thread = thread.unwrap().path();
        let times = fs::read_to_string(thread.join("schedstat")).unwrap();
        usage.cpu_ns += times.split(' ').next().unwrap().parse::<u64>().unwrap();
        let stat = fs::read_to_string(thread.join("stat")).unwrap();
        // Behind the name, which may hold anything: state is the first field, utime the 12th, stime the 13th.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        usage.user_ticks += fields[11].parse::<u64>().unwrap();
        usage.system_ticks += fields[12].parse::<u64>().unwrap();
        let status = fs::read_to_string(thread.join("status")).unwrap();
        usage.switches += status
            .lines()
            .filter(|line| line.contains("ctxt_switches"))
            .map(|line| line.split_whitespace().last().unwrap().parse::<u64>().unwrap())
            .sum::<u64>();
    }
    usage
}

/// A process and its children.
fn tree(id: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |child: &u32| {
        // Behind the name: state, then the parent.
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(1)?.parse().ok());
        parent == Some(id)
    };
    let mut all: Vec<u32> = processes.filter(is_child).collect();
    all.push(id);
    all
}

/// Most memory that it and its children ever had resident, shared pages counted in each.
pub(crate) fn peak_rss_mib(id: u32) -> f64 {
    tree(id).into_iter().map(peak_of_one).sum()
}

fn peak_of_one(id: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
