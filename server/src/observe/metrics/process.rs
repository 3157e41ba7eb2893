//! What the operating system says about this process, under the names of Go's collector.
//!
//! Read from Linux's `/proc`; where that is missing these metrics are missing too.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::families::Families;

/// Fields of `/proc/self/stat` behind the program's name, counted from 0 (proc(5) counts from 3).
mod field {
    pub const USER_TICKS: usize = 11;
    pub const SYSTEM_TICKS: usize = 12;
    pub const THREADS: usize = 17;
    pub const START_TICKS: usize = 19;
    pub const VIRTUAL_BYTES: usize = 20;
    pub const RESIDENT_PAGES: usize = 21;
}

/// Adds what can be read.
pub(super) fn collect(families: &mut Families) {
    collect_stat(families);
    collect_limits(families);
    collect_network(families);
}

/// Number of open file descriptors.
pub(crate) fn open_files() -> Option<u64> {
    // The directory that is being read is one of them.
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

/// The limit on file descriptors; `None` when there is none.
pub(crate) fn open_files_max() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Resident memory in bytes.
pub(crate) fn resident_bytes() -> Option<u64> {
    Some(stat()?.get(field::RESIDENT_PAGES)? * page_size() as u64)
}

/// The numbers of `/proc/self/stat`.
fn stat() -> Option<Vec<u64>> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name is in parentheses and may hold anything.
    let (_, numbers) = text.rsplit_once(')')?;
    Some(
        numbers
            .split_whitespace()
            .map(|number| number.parse().unwrap_or(0))
            .collect(),
    )
}

fn collect_stat(families: &mut Families) {
    let Some(stat) = stat() else { return };
    let number = |field: usize| stat.get(field).copied().unwrap_or(0) as f64;
    let ticks = clock_ticks_per_second() as f64;
    families.add(
        "process_cpu_seconds_total",
        (number(field::USER_TICKS) + number(field::SYSTEM_TICKS)) / ticks,
    );
    families.add("go_threads", number(field::THREADS));
    families.add("process_virtual_memory_bytes", number(field::VIRTUAL_BYTES));
    families.add(
        "process_resident_memory_bytes",
        number(field::RESIDENT_PAGES) * page_size() as f64,
    );
    if let Some(boot) = boot_time_seconds() {
        families.add(
            "process_start_time_seconds",
            boot + number(field::START_TICKS) / ticks,
        );
    }
}

/// When the machine was started, since 1970.
fn boot_time_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    let boot: f64 = line.trim().parse().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    // A machine whose clock was set back has no boot time worth showing.
    (boot <= now.as_secs_f64()).then_some(boot)
}

fn collect_limits(families: &mut Families) {
    // Go shows "no limit" as the largest number.
    let limit = |resource| getrlimit(resource).current.unwrap_or(u64::MAX) as f64;
    let files = limit(Resource::Nofile);
    families.add("process_max_fds", files);
    families.add("os_fd_limit", files);
    families.add("process_virtual_memory_max_bytes", limit(Resource::As));
    if let Some(open) = open_files() {
        families.add("process_open_fds", open as f64);
        families.add("os_fd_used", open as f64);
    }
}

/// Bytes of the network namespace, which is what Go's collector shows too.
fn collect_network(families: &mut Families) {
    let Ok(text) = fs::read_to_string("/proc/self/net/netstat") else {
        return;
    };
    for (metric, column) in [
        ("process_network_receive_bytes_total", "InOctets"),
        ("process_network_transmit_bytes_total", "OutOctets"),
    ] {
        if let Some(value) = netstat_column(&text, "IpExt:", column) {
            families.add(metric, value);
        }
    }
}

fn netstat_column(text: &str, section: &str, column: &str) -> Option<f64> {
    let mut lines = text.lines().filter(|line| line.starts_with(section));
    let names = lines.next()?.split_whitespace();
    let values = lines.next()?.split_whitespace();
    let (_, value) = names.zip(values).find(|(name, _)| *name == column)?;
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_found_by_its_name() {
        let text = "TcpExt: A B\nTcpExt: 1 2\nIpExt: InOctets OutOctets\nIpExt: 33 44\n";
        assert_eq!(netstat_column(text, "IpExt:", "OutOctets"), Some(44.0));
        assert_eq!(netstat_column(text, "IpExt:", "Missing"), None);
    }
}
