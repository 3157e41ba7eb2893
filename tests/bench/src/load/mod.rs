//! One run of one kind of load, and what it measured.
//!
//! A run is a closed loop by default: `clients` calls are outstanding at any time, each client
//! sends its next request when it has the answer to the last. With a rate it is an open loop: calls
//! have their time, and a call that could not be sent in time counts its waiting as latency, so a
//! server that stands still for a second shows it in every call of that second.

mod body;
mod keep_alive;
mod operation;
mod recorder;
mod watch;
mod wire;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

pub use body::KeySpace;

use crate::client::{CallError, Connection, Endpoint};
use crate::measure::{Sample, Usage};
use operation::Worker;
use recorder::{Recorder, Shared};

/// Time that calls in flight get to come back when a run ends.
const GRACE: Duration = Duration::from_secs(60);

/// A client that sees this many errors in a row gives up, so that a dead server ends the run.
const ERRORS_IN_A_ROW_MAX: u32 = 100;

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Put one key.
    Put,
    /// Put each key of the key space once, in order; `batch` of them in one transaction.
    Fill,
    /// Linearizable read of one key.
    Get,
    /// Serializable read of one key.
    GetSerializable,
    /// Compare-and-swap of one key on its mod revision.
    TxnCas,
    /// Walk the key space page by page; the later pages at the revision of the first, as
    /// Kubernetes does it. One page is one call.
    List,
    /// The first page of the whole key space, again and again.
    Page,
    /// A page from a random key to the end of the key space.
    PageRandom,
    /// Count the key space.
    Count,
    /// Puts on a prefix that `watchers` watch; one delivered event is one operation.
    Watch,
    /// Keep-alive of one lease for each client, on a stream for each client.
    KeepAlive,
    /// Three linearizable reads for each put.
    Mixed,
}

/// The order in which keys are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyOrder {
    /// Any key of the key space, evenly.
    Random,
    /// One after the other, over all clients, and around again.
    Sequential,
}

/// A run.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// What the clients do.
    pub operation: Operation,
    /// `host:port` of each server; connections are dealt out over them in turn.
    pub endpoints: Vec<String>,
    /// Outstanding calls.
    pub clients: usize,
    /// Connections at most; never more than clients.
    pub connections: usize,
    /// The keys. Operations other than puts expect them to exist.
    pub keys: KeySpace,
    /// How keys are chosen.
    pub key_order: KeyOrder,
    /// Length of a value.
    pub value_bytes: usize,
    /// Keys in a page of a list.
    pub page: u64,
    /// Keys in a transaction of [`Operation::Fill`]; 1 means plain puts.
    pub batch: u64,
    /// Watchers of [`Operation::Watch`].
    pub watchers: usize,
    /// Streams that the watchers share.
    pub streams: usize,
    /// Calls per second over all clients; `None`: as fast as answers come.
    pub rate: Option<f64>,
    /// Time before the measurement begins. Not used by [`Operation::Fill`].
    pub warm_up: Duration,
    /// Processes whose CPU time is measured.
    pub server_pids: Vec<u32>,
}

impl LoadOptions {
    /// A run with the usual keys and values.
    pub fn new(operation: Operation, endpoints: Vec<String>) -> Self {
        Self {
            operation,
            endpoints,
            clients: 1,
            connections: 16,
            keys: KeySpace {
                prefix: "bench/".to_owned(),
                keys: 100_000,
            },
            key_order: KeyOrder::Random,
            value_bytes: 256,
            page: 500,
            batch: 1,
            watchers: 100,
            streams: 10,
            rate: None,
            warm_up: Duration::from_millis(500),
            server_pids: Vec::new(),
        }
    }
}

/// What a run measured.
#[derive(Clone, Debug, Serialize)]
pub struct LoadReport {
    /// What was done.
    pub operation: Operation,
    /// Outstanding calls.
    pub clients: usize,
    /// Operations completed inside the measured time.
    pub operations: u64,
    /// The measured time.
    pub seconds: f64,
    /// Operations per second.
    pub rate: f64,
    /// Median latency in microseconds.
    pub p50_us: u64,
    /// 99 % of the calls were not slower.
    pub p99_us: u64,
    /// 99.9 % of the calls were not slower.
    pub p999_us: u64,
    /// The slowest call.
    pub max_us: u64,
    /// Calls that failed, over the whole run.
    pub errors: u64,
    /// The text of the first failure.
    pub first_error: Option<String>,
    /// Compare-and-swaps that met another revision than expected.
    pub conflicts: u64,
    /// CPU time of the load program per operation, in microseconds.
    pub client_cpu_us: f64,
    /// CPU time of the measured processes per operation, in microseconds.
    pub server_cpu_us: f64,
    /// Share of the machine that something else used, 0 to 1.
    pub foreign_share: f64,
    /// CPU time per operation of the measured processes by thread name, in microseconds.
    pub threads_us: BTreeMap<String, f64>,
}

/// Runs for `duration` after the warm-up; [`Operation::Fill`] until it is done.
///
/// # Errors
/// When no connection can be made or the preparation fails. Failed calls are counted instead.
pub async fn run_for(options: &LoadOptions, duration: Duration) -> Result<LoadReport, CallError> {
    if options.operation == Operation::Fill {
        run_until(options, std::future::pending()).await
    } else {
        // Made inside the block: the time of a sleep counts from where it is made.
        run_until(options, async { sleep(duration).await }).await
    }
}

/// Runs until `end` resolves, or all is done; `end` is first polled after the warm-up.
///
/// # Errors
/// As [`run_for`].
pub async fn run_until(
    options: &LoadOptions,
    end: impl Future<Output = ()>,
) -> Result<LoadReport, CallError> {
    let shared = Arc::new(Shared::default());
    let mut tasks = JoinSet::new();
    match options.operation {
        Operation::Watch => watch::spawn(options, &shared, &mut tasks).await?,
        Operation::KeepAlive => keep_alive::spawn(options, &shared, &mut tasks).await?,
        _ => spawn_workers(options, &shared, &mut tasks).await?,
    }
    if options.operation != Operation::Fill {
        sleep(options.warm_up).await;
    }

    let before = Sample::take(&options.server_pids);
    shared.start_measuring();
    let mut total = Recorder::new(&shared);
    let all_done = async {
        while let Some(recorder) = tasks.join_next().await {
            total.add(recorder.expect("a client does not panic"));
        }
    };
    tokio::select! {
        () = end => {}
        () = all_done => {}
    }
    let usage = Sample::take(&options.server_pids).since(&before);
    shared.stop();
    let stragglers = async {
        while let Some(recorder) = tasks.join_next().await {
            total.add(recorder.expect("a client does not panic"));
        }
    };
    if timeout(GRACE, stragglers).await.is_err() {
        total.fail(&CallError::Unexpected(format!(
            "calls without an answer after {GRACE:?}"
        )));
    }
    Ok(report(options, &total, &usage))
}

/// Opens the connections of a run, dealt out over its endpoints.
async fn connect(options: &LoadOptions, wanted: usize) -> Result<Vec<Connection>, CallError> {
    let mut connections = Vec::new();
    for index in 0..options.connections.min(wanted).max(1) {
        let endpoint = &options.endpoints[index % options.endpoints.len()];
        connections.push(Endpoint::new(endpoint).connect().await?);
    }
    Ok(connections)
}

async fn spawn_workers(
    options: &LoadOptions,
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<Recorder>,
) -> Result<(), CallError> {
    let connections = connect(options, options.clients).await?;
    let started = Instant::now();
    for client in 0..options.clients {
        let connection = connections[client % connections.len()].clone();
        let worker = Worker::new(options, client, connection, shared);
        let pace = Pace::new(options, client, started);
        tasks.spawn(run_client(worker, pace, Arc::clone(shared)));
    }
    Ok(())
}

async fn run_client(mut worker: Worker, mut pace: Pace, shared: Arc<Shared>) -> Recorder {
    let mut recorder = Recorder::new(&shared);
    let mut errors_in_a_row = 0;
    while !shared.stopped() {
        let started = pace.next().await;
        match worker.step(&mut recorder).await {
            Ok(0) => break,
            Ok(operations) => {
                recorder.done(operations, started);
                errors_in_a_row = 0;
            }
            Err(error) => {
                recorder.fail(&error);
                errors_in_a_row += 1;
                if errors_in_a_row == ERRORS_IN_A_ROW_MAX {
                    break;
                }
            }
        }
    }
    recorder
}

/// When the calls of one client are due.
struct Pace {
    due: Instant,
    interval: Option<Duration>,
}

impl Pace {
    fn new(options: &LoadOptions, client: usize, started: Instant) -> Self {
        let between_calls = options.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        let offset = between_calls.unwrap_or_default() * u32::try_from(client).unwrap_or(u32::MAX);
        let clients = u32::try_from(options.clients).unwrap_or(u32::MAX);
        Self {
            due: started + offset,
            interval: between_calls.map(|between| between * clients),
        }
    }

    /// Waits until the next call is due and returns the moment its latency counts from: when it was
    /// due, if the client was late because its last call took so long; else now, because the
    /// coarseness of the timer is not the server's fault.
    async fn next(&mut self) -> Instant {
        let now = Instant::now();
        let Some(interval) = self.interval else {
            return now;
        };
        let due = self.due;
        self.due += interval;
        if due < now {
            return due;
        }
        tokio::time::sleep_until(due).await;
        Instant::now()
    }
}

fn report(options: &LoadOptions, total: &Recorder, usage: &Usage) -> LoadReport {
    let seconds = usage.elapsed.as_secs_f64();
    let per_operation = |time: Duration| time.as_secs_f64() * 1e6 / total.operations.max(1) as f64;
    LoadReport {
        operation: options.operation,
        clients: options.clients,
        operations: total.operations,
        seconds,
        rate: total.operations as f64 / seconds,
        p50_us: total.latency_us(0.5),
        p99_us: total.latency_us(0.99),
        p999_us: total.latency_us(0.999),
        max_us: total.latency_us(1.0),
        errors: total.errors,
        first_error: total.first_error.clone(),
        conflicts: total.conflicts,
        client_cpu_us: per_operation(usage.client),
        server_cpu_us: per_operation(usage.servers),
        foreign_share: usage.foreign_share,
        threads_us: usage
            .threads
            .iter()
            .map(|(name, time)| (name.clone(), per_operation(*time)))
            .collect(),
    }
}
