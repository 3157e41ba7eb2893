//! The rows of the table: what is measured, in which order, and what is required of it.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use metastore_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DefragmentRequest, DefragmentResponse, StatusRequest,
    StatusResponse,
};
use rustix::process::Signal;
use tokio::time::sleep;

use crate::client::{CallError, Connection, Endpoint};
use crate::load::{KeySpace, LoadOptions, LoadReport, Operation, run_for, run_until};
use crate::servers::{Cluster, Program, ServerError};

/// Puts in a transaction that loads keys where the loading itself is not measured.
const FILL_BATCH: u64 = 100;

/// Clients that load keys.
const FILL_CLIENTS: usize = 64;

/// Time a server gets before its memory or its disk is read: for its garbage collection, its flushes, old files.
const SETTLE: Duration = Duration::from_secs(3);

/// Puts per second while a compaction or a defragment runs. A rate that both servers hold easily:
/// the row asks what maintenance does to a client, not how much the server can take meanwhile.
const MAINTENANCE_RATE: f64 = 1000.0;

/// Clients of these puts.
const MAINTENANCE_CLIENTS: usize = 64;

/// Shortest time over which the latency during maintenance is measured: work may go on in the
/// background when the call has been answered.
const MAINTENANCE_MIN: Duration = Duration::from_secs(3);

/// gRPC status of a method that the server does not have (yet).
const UNIMPLEMENTED: &str = "12";

/// Rows that share a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Group {
    /// One member, 100 000 keys.
    One,
    /// Three members, 100 000 keys.
    Three,
    /// One member, a million keys.
    Large,
}

impl Group {
    /// Heading of the group's table.
    pub fn title(self) -> &'static str {
        match self {
            Self::One => "One member",
            Self::Three => "Three members",
            Self::Large => "One member after a large load",
        }
    }

    fn members(self) -> usize {
        if self == Self::Three { 3 } else { 1 }
    }
}

/// What one row measured on one server.
#[derive(Clone, Debug, serde::Serialize)]
pub enum Values {
    /// A load.
    Load(Box<LoadReport>),
    /// A single figure and its unit.
    Number(f64, &'static str),
    /// The server cannot do it.
    Absent,
}

/// One row, measured.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Where it belongs.
    pub group: Group,
    /// Its name, as `--only` takes it.
    pub row: &'static str,
    /// What was measured.
    pub values: Values,
}

/// The figure that a requirement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Operations per second, ours divided by etcd's.
    Rate,
    /// Median latency, ours divided by etcd's.
    P50,
    /// CPU of the servers per operation, ours divided by etcd's.
    Cpu,
    /// The single figure of the row, ours divided by etcd's.
    Number,
    /// The single figure of the row, ours alone.
    OwnNumber,
}

/// What is required of a row.
#[derive(Clone, Copy, Debug)]
pub struct Requirement {
    /// The figure.
    pub metric: Metric,
    /// Whether the figure must not be lower (true) or not be higher (false) than the bound.
    pub at_least: bool,
    /// The bound.
    pub bound: f64,
}

const fn at_least(metric: Metric, bound: f64) -> Requirement {
    Requirement {
        metric,
        at_least: true,
        bound,
    }
}

const fn at_most(metric: Metric, bound: f64) -> Requirement {
    Requirement {
        metric,
        at_least: false,
        bound,
    }
}

/// What is required of a row; empty: the row is information.
pub fn requirements(group: Group, row: &str) -> Vec<Requirement> {
    use Metric::{Cpu, Number, OwnNumber, P50, Rate};
    let put_rate = if group == Group::Three { 2.5 } else { 2.0 };
    match row {
        "put-1" => vec![at_most(P50, 0.9)],
        "put-64" | "put-256" | "put-1000" => vec![at_least(Rate, put_rate), at_most(Cpu, 0.45)],
        "get-64" | "get-256" | "get-serializable-64" | "get-serializable-256" => {
            vec![at_least(Rate, 1.8), at_most(Cpu, 0.5)]
        }
        "page-1m" | "count-1m" => vec![at_least(Rate, 20.0)],
        "watch" | "keep-alive-64" | "keep-alive-256" => vec![at_least(Rate, 1.2)],
        "memory" => vec![at_most(Number, 0.35)],
        "restart" | "restart-after-kill" => vec![at_most(Number, 0.25)],
        "compaction-growth" | "defragment-growth" => vec![at_most(OwnNumber, 1.5)],
        _ => Vec::new(),
    }
}

/// A row that is one load.
struct LoadRow {
    name: &'static str,
    title: &'static str,
    operation: Operation,
    clients: usize,
    /// Only the leader is asked (false) or all members in turn (true).
    spread: bool,
    /// Part of the quick table of one and of three members.
    quick: (bool, bool),
}

const fn row(
    name: &'static str,
    title: &'static str,
    operation: Operation,
    clients: usize,
    spread: bool,
    quick: (bool, bool),
) -> LoadRow {
    LoadRow {
        name,
        title,
        operation,
        clients,
        spread,
        quick,
    }
}

const NEVER: (bool, bool) = (false, false);
const ONE: (bool, bool) = (true, false);
const BOTH: (bool, bool) = (true, true);

/// The loads on one and on three members.
const LOAD_ROWS: &[LoadRow] = &[
    row("put-1", "put, 1 client", Operation::Put, 1, false, BOTH),
    row("put-64", "put, 64 clients", Operation::Put, 64, false, ONE),
    row(
        "put-256",
        "put, 256 clients",
        Operation::Put,
        256,
        false,
        BOTH,
    ),
    row(
        "put-1000",
        "put, 1000 clients",
        Operation::Put,
        1000,
        false,
        NEVER,
    ),
    row(
        "put-256-all",
        "put, 256 clients, on all members",
        Operation::Put,
        256,
        true,
        NEVER,
    ),
    row(
        "get-1",
        "linearizable get, 1 client",
        Operation::Get,
        1,
        true,
        NEVER,
    ),
    row(
        "get-64",
        "linearizable get, 64 clients",
        Operation::Get,
        64,
        true,
        BOTH,
    ),
    row(
        "get-256",
        "linearizable get, 256 clients",
        Operation::Get,
        256,
        true,
        NEVER,
    ),
    row(
        "get-serializable-64",
        "serializable get, 64 clients",
        Operation::GetSerializable,
        64,
        true,
        ONE,
    ),
    row(
        "get-serializable-256",
        "serializable get, 256 clients",
        Operation::GetSerializable,
        256,
        true,
        NEVER,
    ),
    row(
        "txn-64",
        "compare-and-swap, 64 clients",
        Operation::TxnCas,
        64,
        false,
        NEVER,
    ),
    row(
        "txn-256",
        "compare-and-swap, 256 clients",
        Operation::TxnCas,
        256,
        false,
        ONE,
    ),
    row(
        "mixed-64",
        "3 gets to 1 put, 64 clients",
        Operation::Mixed,
        64,
        false,
        NEVER,
    ),
    row(
        "list",
        "500-key pages of 10 000 keys, 16 clients",
        Operation::List,
        16,
        true,
        ONE,
    ),
    row(
        "watch",
        "events to 100 watchers on 10 streams",
        Operation::Watch,
        64,
        true,
        ONE,
    ),
    row(
        "keep-alive-64",
        "lease keep-alive, 64 clients",
        Operation::KeepAlive,
        64,
        false,
        ONE,
    ),
    row(
        "keep-alive-256",
        "lease keep-alive, 256 clients",
        Operation::KeepAlive,
        256,
        false,
        NEVER,
    ),
];

/// The rows of the large group, with their titles, in the order in which they are measured.
const LARGE_ROWS: &[(&str, &str)] = &[
    ("load", "put all keys in order, 64 clients"),
    ("memory", "resident memory after the load"),
    ("memory-peak", "highest resident memory during the load"),
    ("disk", "disk space after the load"),
    ("page-1m", "first 500 keys of all, 4 clients"),
    ("page-1m-random", "500 keys from a random key on, 4 clients"),
    ("count-1m", "count of all keys, 4 clients"),
    ("restart", "restart after SIGTERM until ready"),
    ("restart-memory", "resident memory after the restart"),
    ("restart-after-kill", "restart after SIGKILL until ready"),
    (
        "compaction-seconds",
        "physical compaction of the whole history",
    ),
    (
        "compaction-before",
        "put p99 before it, at 1000 puts per second",
    ),
    ("compaction-during", "put p99 during it"),
    ("compaction-max", "slowest put during it"),
    ("compaction-growth", "put p99 during a compaction / before"),
    ("defragment-seconds", "defragment"),
    (
        "defragment-before",
        "put p99 before it, at 1000 puts per second",
    ),
    ("defragment-during", "put p99 during it"),
    ("defragment-max", "slowest put during it"),
    ("defragment-growth", "put p99 during a defragment / before"),
    ("disk-after", "disk space after both"),
];

/// What a row is called in the table.
pub fn title(row: &str) -> &'static str {
    let loads = LOAD_ROWS.iter().map(|row| (row.name, row.title));
    loads
        .chain(LARGE_ROWS.iter().copied())
        .chain(SECOND_OPINION_ROWS.iter().map(|row| (row.name, row.title)))
        .find(|(name, _)| *name == row)
        .map_or("", |(_, title)| title)
}

/// All names that `--only` may select.
pub fn names() -> Vec<&'static str> {
    let loads = LOAD_ROWS.iter().map(|row| row.name);
    loads
        .chain(LARGE_ROWS.iter().map(|(name, _)| *name))
        .chain(SECOND_OPINION_ROWS.iter().map(|row| row.name))
        .collect()
}

/// What is measured, and how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rows whose names are these, or begin with one of these and a dash; empty: all.
    pub only: Vec<String>,
    /// A subset, for development.
    pub quick: bool,
    /// Measured time of each load.
    pub duration: Duration,
    /// Keys of the large group.
    pub large_keys: u64,
    /// etcd's own load tool, when its rows are wanted.
    pub benchmark_tool: Option<std::path::PathBuf>,
    /// Calls of each of its rows.
    pub benchmark_calls: usize,
}

impl Plan {
    /// Whether a row is to be measured.
    fn wants(&self, row: &str) -> bool {
        self.only.is_empty()
            || self.only.iter().any(|only| {
                row == only
                    || row
                        .strip_prefix(only.as_str())
                        .is_some_and(|rest| rest.starts_with('-'))
            })
    }

    fn wants_load(&self, group: Group, row: &LoadRow) -> bool {
        let quick = if group == Group::Three {
            row.quick.1
        } else {
            row.quick.0
        };
        let several = group == Group::Three || row.name != "put-256-all";
        several && self.wants(row.name) && (quick || !self.quick || !self.only.is_empty())
    }

    /// Whether anything of a group is to be measured.
    pub fn wants_group(&self, group: Group) -> bool {
        match group {
            Group::Large => LARGE_ROWS.iter().any(|(name, _)| self.wants(name)),
            _ => {
                LOAD_ROWS.iter().any(|row| self.wants_load(group, row))
                    || (group == Group::One && self.benchmark_tool.is_some())
            }
        }
    }
}

/// Measures the rows of a group on one program, on a fresh cluster. `found` gets each outcome at
/// once, so that an error loses nothing.
///
/// # Errors
/// When the cluster cannot be started or prepared.
pub async fn measure_group(
    plan: &Plan,
    group: Group,
    program: &Program,
    directory: &Path,
    found: &mut impl FnMut(Outcome),
) -> Result<(), ServerError> {
    let mut cluster = Cluster::start(program, directory, group.members()).await?;
    let mut found = |row, values| found(Outcome { group, row, values });
    match group {
        Group::One | Group::Three => {
            measure_loads(plan, group, &cluster, &mut found).await?;
            if group == Group::One {
                second_opinion(plan, &cluster, &mut found).await?;
            }
        }
        Group::Large => measure_large(plan, &mut cluster, &mut found).await?,
    }
    cluster.stop(Signal::TERM).await
}

async fn measure_loads(
    plan: &Plan,
    group: Group,
    cluster: &Cluster,
    found: &mut impl FnMut(&'static str, Values),
) -> Result<(), ServerError> {
    let endpoints = cluster.endpoints().await?;
    let usual = LoadOptions::new(Operation::Fill, endpoints[..1].to_vec()).keys;
    let list = KeySpace {
        prefix: "list/".to_owned(),
        keys: 10_000,
    };
    for keys in [usual.clone(), list.clone()] {
        fill(&endpoints[0], keys, FILL_BATCH).await?;
    }
    for row in LOAD_ROWS.iter().filter(|row| plan.wants_load(group, row)) {
        // A leader may have changed since the last row.
        let endpoints = cluster.endpoints().await?;
        let endpoints = if row.spread {
            endpoints
        } else {
            endpoints[..1].to_vec()
        };
        let mut options = LoadOptions::new(row.operation, endpoints);
        options.clients = row.clients;
        options.server_pids = cluster.pids();
        match row.operation {
            Operation::List => options.keys = list.clone(),
            // Keys of its own: what the gets read stays as it was loaded.
            Operation::TxnCas => options.keys.prefix = "swap/".to_owned(),
            _ => {}
        }
        found(row.name, load(&options, plan.duration).await?);
    }
    Ok(())
}

async fn measure_large(
    plan: &Plan,
    cluster: &mut Cluster,
    found: &mut impl FnMut(&'static str, Values),
) -> Result<(), ServerError> {
    let endpoints = cluster.endpoints().await?;
    let keys = KeySpace {
        prefix: "large/".to_owned(),
        keys: plan.large_keys,
    };
    let mut options = LoadOptions::new(Operation::Fill, endpoints.clone());
    options.keys = keys.clone();
    options.clients = FILL_CLIENTS;
    options.server_pids = cluster.pids();
    found("load", load(&options, plan.duration).await?);
    sleep(SETTLE).await;
    let (now, peak) = cluster.resident_bytes();
    found("memory", mebibytes(now));
    found("memory-peak", mebibytes(peak));
    found("disk", mebibytes(cluster.disk_bytes()));

    let reads = [
        ("page-1m", Operation::Page),
        ("page-1m-random", Operation::PageRandom),
        ("count-1m", Operation::Count),
    ];
    for (name, operation) in reads.into_iter().filter(|(name, _)| plan.wants(name)) {
        options.operation = operation;
        options.clients = 4;
        found(name, load(&options, plan.duration).await?);
    }

    let restarts = [
        ("restart", Signal::TERM),
        ("restart-after-kill", Signal::KILL),
    ];
    for (name, signal) in restarts.into_iter().filter(|(name, _)| plan.wants(name)) {
        cluster.stop(signal).await?;
        let time = cluster.start_again().await?;
        found(name, Values::Number(time.as_secs_f64() * 1e3, "ms"));
        if signal == Signal::TERM {
            found("restart-memory", mebibytes(cluster.resident_bytes().0));
        }
    }

    if plan.wants("compaction-growth") || plan.wants("defragment-growth") {
        // A history to compact, and holes to defragment: a fifth of the keys once more.
        let again = KeySpace {
            keys: (keys.keys / 5).max(1),
            ..keys.clone()
        };
        fill(&endpoints[0], again, FILL_BATCH).await?;
        options.server_pids = cluster.pids();
        if plan.wants("compaction-growth") {
            measure_maintenance(plan, &options, &COMPACTION, found).await?;
        }
        if plan.wants("defragment-growth") {
            measure_maintenance(plan, &options, &DEFRAGMENT, found).await?;
        }
        // Both servers give space back behind the answer, too.
        sleep(SETTLE).await;
        found("disk-after", mebibytes(cluster.disk_bytes()));
    }
    Ok(())
}

/// A maintenance call and the names of its rows.
struct Maintenance {
    is_compaction: bool,
    seconds: &'static str,
    before: &'static str,
    during: &'static str,
    max: &'static str,
    growth: &'static str,
}

const COMPACTION: Maintenance = Maintenance {
    is_compaction: true,
    seconds: "compaction-seconds",
    before: "compaction-before",
    during: "compaction-during",
    max: "compaction-max",
    growth: "compaction-growth",
};

const DEFRAGMENT: Maintenance = Maintenance {
    is_compaction: false,
    seconds: "defragment-seconds",
    before: "defragment-before",
    during: "defragment-during",
    max: "defragment-max",
    growth: "defragment-growth",
};

/// Puts at a steady rate, before and during a maintenance call.
async fn measure_maintenance(
    plan: &Plan,
    options: &LoadOptions,
    maintenance: &Maintenance,
    found: &mut impl FnMut(&'static str, Values),
) -> Result<(), ServerError> {
    let mut options = options.clone();
    options.operation = Operation::Put;
    options.clients = MAINTENANCE_CLIENTS;
    options.rate = Some(MAINTENANCE_RATE);
    let before = run_for(&options, plan.duration.max(MAINTENANCE_MIN)).await?;

    let mut connection = Endpoint::new(&options.endpoints[0]).connect().await?;
    let mut outcome = Ok(());
    let mut seconds = 0.0;
    let during = run_until(&options, async {
        let started = Instant::now();
        outcome = maintenance.call(&mut connection).await;
        seconds = started.elapsed().as_secs_f64();
        sleep(MAINTENANCE_MIN.saturating_sub(started.elapsed())).await;
    })
    .await?;

    match outcome {
        Err(CallError::Status { code, .. }) if code == UNIMPLEMENTED => {
            for row in [maintenance.seconds, maintenance.before, maintenance.during] {
                found(row, Values::Absent);
            }
            found(maintenance.max, Values::Absent);
            found(maintenance.growth, Values::Absent);
            return Ok(());
        }
        other => other?,
    }
    warn_of_errors(&before);
    warn_of_errors(&during);
    found(maintenance.seconds, Values::Number(seconds, "s"));
    found(maintenance.before, milliseconds(before.p99_us));
    found(maintenance.during, milliseconds(during.p99_us));
    found(maintenance.max, milliseconds(during.max_us));
    let growth = during.p99_us as f64 / before.p99_us.max(1) as f64;
    found(maintenance.growth, Values::Number(growth, "×"));
    Ok(())
}

impl Maintenance {
    async fn call(&self, connection: &mut Connection) -> Result<(), CallError> {
        if !self.is_compaction {
            let _: DefragmentResponse = connection
                .unary(
                    "etcdserverpb.Maintenance/Defragment",
                    &DefragmentRequest::default(),
                )
                .await?;
            return Ok(());
        }
        let status: StatusResponse = connection
            .unary("etcdserverpb.Maintenance/Status", &StatusRequest::default())
            .await?;
        let revision = status.header.map_or(0, |header| header.revision);
        let request = CompactionRequest {
            revision,
            physical: true,
        };
        let _: CompactionResponse = connection
            .unary("etcdserverpb.KV/Compact", &request)
            .await?;
        Ok(())
    }
}

async fn fill(endpoint: &str, keys: KeySpace, batch: u64) -> Result<(), ServerError> {
    let mut options = LoadOptions::new(Operation::Fill, vec![endpoint.to_owned()]);
    options.clients = FILL_CLIENTS;
    options.keys = keys;
    options.batch = batch;
    let report = run_for(&options, Duration::MAX).await?;
    match report.first_error {
        None => Ok(()),
        Some(error) => Err(CallError::Unexpected(format!("loading keys: {error}")).into()),
    }
}

async fn load(options: &LoadOptions, duration: Duration) -> Result<Values, ServerError> {
    let report = run_for(options, duration).await?;
    warn_of_errors(&report);
    // Without a single success there is nothing to compare.
    Ok(if report.operations == 0 {
        Values::Absent
    } else {
        Values::Load(Box::new(report))
    })
}

fn warn_of_errors(report: &LoadReport) {
    if let Some(error) = &report.first_error {
        eprintln!(
            "  {:?}: {} calls failed, first: {error}",
            report.operation, report.errors
        );
    }
}

fn mebibytes(bytes: u64) -> Values {
    Values::Number(bytes as f64 / f64::from(1 << 20), "MiB")
}

fn milliseconds(microseconds: u64) -> Values {
    Values::Number(microseconds as f64 / 1e3, "ms")
}

/// A row measured with etcd's own load tool.
struct SecondOpinionRow {
    name: &'static str,
    title: &'static str,
    clients: usize,
    arguments: &'static [&'static str],
}

/// etcd's tool, with the same keys and values. It needs 50 to 65 µs of CPU per call on the shared
/// cores, so its ratios are lower than ours.
const SECOND_OPINION_ROWS: &[SecondOpinionRow] = &[
    SecondOpinionRow {
        name: "benchmark-put-256",
        title: "etcd's `benchmark put`, 256 clients",
        clients: 256,
        arguments: &[
            "put",
            "--key-size=26",
            "--key-space-size=100000",
            "--val-size=256",
        ],
    },
    SecondOpinionRow {
        name: "benchmark-range-256",
        title: "etcd's `benchmark range`, one key, linearizable, 256 clients",
        clients: 256,
        arguments: &["range", "bench/00000000000000000007", "--consistency=l"],
    },
    SecondOpinionRow {
        name: "benchmark-range-serializable-256",
        title: "etcd's `benchmark range`, one key, serializable, 256 clients",
        clients: 256,
        arguments: &["range", "bench/00000000000000000007", "--consistency=s"],
    },
];

async fn second_opinion(
    plan: &Plan,
    cluster: &Cluster,
    found: &mut impl FnMut(&'static str, Values),
) -> Result<(), ServerError> {
    let Some(tool) = &plan.benchmark_tool else {
        return Ok(());
    };
    let endpoint = cluster.endpoints().await?.remove(0);
    for row in SECOND_OPINION_ROWS {
        let output = tokio::process::Command::new(tool)
            .arg(format!("--endpoints={endpoint}"))
            .arg("--conns=16")
            .arg(format!("--clients={}", row.clients))
            .args(row.arguments)
            .arg(format!("--total={}", plan.benchmark_calls))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let rate = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Requests/sec:"))
            .and_then(|rate| rate.trim().parse().ok());
        found(
            row.name,
            rate.map_or(Values::Absent, |rate| Values::Number(rate, "/s")),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_selects_a_row_or_a_family_of_rows() {
        let plan = |only: &[&str]| Plan {
            only: only.iter().map(ToString::to_string).collect(),
            quick: false,
            duration: Duration::from_secs(1),
            large_keys: 1,
            benchmark_tool: None,
            benchmark_calls: 1,
        };
        assert!(plan(&[]).wants("put-256"));
        assert!(plan(&["put"]).wants("put-256"));
        assert!(plan(&["put-256"]).wants("put-256"));
        assert!(!plan(&["put-25"]).wants("put-256"));
        assert!(!plan(&["get"]).wants("put-256"));
        assert!(!plan(&["put"]).wants_group(Group::Large));
        assert!(plan(&["restart"]).wants_group(Group::Large));
    }

    #[test]
    fn each_row_has_a_name_of_its_own_and_a_title() {
        let mut all = names();
        assert!(all.iter().all(|name| !title(name).is_empty()));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
