//! CPU, memory and disk of the measured processes, from `/proc`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Unit of `st_blocks`, whatever the block size of the file system is.
const STAT_BLOCK_BYTES: u64 = 512;

/// What has been used up to one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    at: Instant,
    client: Duration,
    servers: Duration,
    machine: Duration,
    threads: BTreeMap<String, Duration>,
}

/// What was used between two samples.
#[derive(Clone, Debug)]
pub struct Usage {
    /// Wall time between the samples.
    pub elapsed: Duration,
    /// CPU time of this process, the load program.
    pub client: Duration,
    /// CPU time of the measured processes, added up.
    pub servers: Duration,
    /// Share of the machine's CPU time taken by anything else: the noise of the measurement.
    /// 0 to 1.
    pub foreign_share: f64,
    /// CPU time of the measured processes by thread name; numbers at the end of a name are cut, so
    /// that the threads of a pool are one line.
    pub threads: BTreeMap<String, Duration>,
}

impl Sample {
    /// Reads the counters of this process, of `servers` (process ids) and of the machine. A process
    /// that is gone counts as zero.
    pub fn take(servers: &[u32]) -> Self {
        let mut threads = BTreeMap::new();
        for pid in servers {
            add_threads(*pid, &mut threads);
        }
        Self {
            at: Instant::now(),
            client: own_cpu(),
            servers: servers.iter().map(|pid| process_cpu(*pid)).sum(),
            machine: machine_cpu(),
            threads,
        }
    }

    /// What was used since `earlier`.
    pub fn since(&self, earlier: &Self) -> Usage {
        let elapsed = self.at - earlier.at;
        let client = self.client.saturating_sub(earlier.client);
        let servers = self.servers.saturating_sub(earlier.servers);
        let machine = self.machine.saturating_sub(earlier.machine);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let foreign = machine.saturating_sub(client + servers).as_secs_f64();
        let threads = self
            .threads
            .iter()
            .map(|(name, used)| {
                let before = earlier.threads.get(name).copied().unwrap_or_default();
                (name.clone(), used.saturating_sub(before))
            })
            .filter(|(_, used)| !used.is_zero())
            .collect();
        Usage {
            elapsed,
            client,
            servers,
            foreign_share: foreign / (elapsed.as_secs_f64() * cores as f64),
            threads,
        }
    }
}

/// Resident memory of a process in bytes: now, and at its highest.
pub fn resident_bytes(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| {
                rest.trim()
                    .trim_end_matches("kB")
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .unwrap_or_default()
            * 1024
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// Bytes allocated on disk for everything below `path`. A file with several names counts once, files that
/// disappear meanwhile count as nothing.
pub fn disk_bytes(path: &Path) -> u64 {
    disk_bytes_beside(path, &mut HashSet::new())
}

fn disk_bytes_beside(path: &Path, counted: &mut HashSet<u64>) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    if !counted.insert(metadata.ino()) {
        return 0;
    }
    let own = metadata.blocks() * STAT_BLOCK_BYTES;
    if !metadata.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries
        .map(|entry| disk_bytes_beside(&entry.path(), counted))
        .sum::<u64>()
}

fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

fn ticks(count: u64) -> Duration {
    Duration::from_secs_f64(count as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// User and system time of a process, its ended threads included.
fn process_cpu(pid: u32) -> Duration {
    stat_cpu(Path::new(&format!("/proc/{pid}/stat")))
}

/// User and system time in the `stat` file of a process or a thread.
fn stat_cpu(path: &Path) -> Duration {
    let stat = fs::read_to_string(path).unwrap_or_default();
    // The name, in parentheses, may itself hold spaces and parentheses.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // utime and stime are fields 14 and 15 of the line; the first one here is field 3.
    ticks(numbers(after_name.split_whitespace().skip(11).take(2)).sum())
}

/// Time that all cores together were neither idle nor waiting for I/O nor taken by the host.
fn machine_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> = numbers(line.split_whitespace().skip(1)).collect();
    // user, nice, system, (idle, iowait,) irq, softirq.
    let busy = fields
        .iter()
        .take(3)
        .chain(fields.iter().skip(5).take(2))
        .sum();
    ticks(busy)
}

fn numbers<'text>(fields: impl Iterator<Item = &'text str>) -> impl Iterator<Item = u64> {
    fields.map(|field| field.parse().unwrap_or_default())
}

fn add_threads(pid: u32, threads: &mut BTreeMap<String, Duration>) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    for task in tasks {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let name = name
            .trim()
            .trim_end_matches(|c: char| c.is_ascii_digit() || c == '-')
            .to_owned();
        *threads.entry(name).or_default() += stat_cpu(&task.path().join("stat"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_work_is_seen_as_own_work() {
        let pid = std::process::id();
        let before = Sample::take(&[pid]);
        let mut sum = 0u64;
        while before.at.elapsed() < Duration::from_millis(100) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let usage = Sample::take(&[pid]).since(&before);
        // A busy machine may give less than the whole core.
        assert!(usage.client > Duration::from_millis(5), "{usage:?}");
        assert!(usage.servers > Duration::ZERO, "{usage:?}");
        assert!(!usage.threads.is_empty());
        assert!(resident_bytes(pid).1 >= resident_bytes(pid).0 / 2);
    }

    #[test]
    fn disk_use_counts_what_is_below_a_directory() {
        let directory =
            std::env::temp_dir().join(format!("metastore-bench-{}", std::process::id()));
        fs::create_dir_all(directory.join("below")).unwrap();
        fs::write(directory.join("below/file"), vec![1; 100_000]).unwrap();
        fs::File::open(directory.join("below/file"))
            .unwrap()
            .sync_all()
            .unwrap();
        let bytes = disk_bytes(&directory);
        fs::hard_link(
            directory.join("below/file"),
            directory.join("below/second-name"),
        )
        .unwrap();
        let with_second_name = disk_bytes(&directory);
        fs::remove_dir_all(&directory).unwrap();
        assert!(bytes >= 100_000, "{bytes}");
        assert!(with_second_name < bytes + 100_000, "{with_second_name}");
    }
}
