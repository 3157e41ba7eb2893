//! check perf and check datascale.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metastore_proto::etcdserverpb as pb;
use parking_lot::Mutex;
use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Command, Context, command};
use crate::client::{Client, ClientOptions};
use crate::failure::{ExitCode, Failure};
use crate::flags::{FlagSpec, Kind, flag};
use crate::keys::prefix_end;
use crate::quote::quote;
use crate::terminal::say;

/// How long `check perf` writes.
const PERF_TIME: Duration = Duration::from_secs(60);
/// Part of the wanted throughput that is enough.
const THROUGHPUT_SHARE: f64 = 0.9;
/// The slowest request may take so long.
const SLOWEST_SECONDS: f64 = 0.5;
/// The standard deviation may be so large.
const DEVIATION_SECONDS: f64 = 0.1;
/// Limit of the clean-up and of what follows it.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(30);

const AUTO_COMPACT_FLAG: FlagSpec = flag(
    "auto-compact",
    Kind::Boolean,
    "false",
    "Compact storage with last revision after test is finished.",
);
const AUTO_DEFRAG_FLAG: FlagSpec = flag(
    "auto-defrag",
    Kind::Boolean,
    "false",
    "Defragment storage after test is finished.",
);

pub(super) const COMMANDS: &[Command] = &[
    command(
        &["check", "perf"],
        "[options]",
        "Check the performance of the cluster",
        &[
            flag(
                "load",
                Kind::Text,
                "s",
                "The performance check's workload model. Accepted workloads: s(small), m(medium), l(large), xl(xLarge).",
            ),
            flag(
                "prefix",
                Kind::Text,
                "/etcdctl-check-perf/",
                "The prefix for writing the performance check's keys.",
            ),
            AUTO_COMPACT_FLAG,
            AUTO_DEFRAG_FLAG,
        ],
        |context| Box::pin(perf(context)),
    ),
    command(
        &["check", "datascale"],
        "[options]",
        "Check the memory usage of holding data for different workloads on a given server endpoint",
        &[
            flag(
                "load",
                Kind::Text,
                "s",
                "The datascale check's workload model. Accepted workloads: s(small), m(medium), l(large), xl(xLarge)",
            ),
            flag(
                "prefix",
                Kind::Text,
                "/etcdctl-check-datascale/",
                "The prefix for writing the datascale check's keys.",
            ),
            AUTO_COMPACT_FLAG,
            AUTO_DEFRAG_FLAG,
        ],
        |context| Box::pin(datascale(context)),
    ),
];

/// The position of a load among s, m, l and xl.
fn load_position(load: &str) -> Result<usize, Failure> {
    match load {
        "s" | "small" => Ok(0),
        "m" | "medium" => Ok(1),
        "l" | "large" => Ok(2),
        "xl" | "xLarge" => Ok(3),
        other => Err(Failure::new(
            ExitCode::BadFeature,
            format!("unknown load option {other}"),
        )),
    }
}

/// What the writers saw.
#[derive(Default)]
struct Report {
    seconds: Vec<f64>,
    errors: std::collections::BTreeMap<String, u64>,
}

impl Report {
    fn slowest(&self) -> f64 {
        self.seconds.iter().copied().fold(0.0, f64::max)
    }

    fn deviation(&self) -> f64 {
        let count = self.seconds.len().max(1) as f64;
        let mean = self.seconds.iter().sum::<f64>() / count;
        let squares: f64 = self
            .seconds
            .iter()
            .map(|seconds| (seconds - mean).powi(2))
            .sum();
        (squares / count).sqrt()
    }

    /// Shows errors; true if there are any.
    fn show_errors(&self) -> bool {
        if self.errors.is_empty() {
            return false;
        }
        say("FAIL: too many errors");
        for (error, count) in &self.errors {
            say(format!("FAIL: ERROR({error}) -> {count}"));
        }
        true
    }
}

async fn connect_all(options: &ClientOptions, count: usize) -> Result<Vec<Client>, Failure> {
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        clients.push(Client::connect(options).await?);
    }
    Ok(clients)
}

/// Refuses to write among keys that somebody needs.
async fn refuse_existing(client: &Client, prefix: &str) -> Result<(), Failure> {
    let request = pb::RangeRequest {
        key: prefix.to_owned().into(),
        range_end: prefix_end(prefix.as_bytes()).into(),
        limit: 1,
        ..Default::default()
    };
    let answer = client.within(client.kv().range(request)).await?;
    if answer.kvs.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        ExitCode::InvalidInput,
        format!(
            "prefix {} has keys. Delete with 'metastorectl del --prefix {prefix}' first",
            quote(prefix.as_bytes())
        ),
    ))
}

fn random_key(prefix: &str, bytes: usize) -> Bytes {
    let mut key = prefix.as_bytes().to_vec();
    let start = key.len();
    key.resize(start + bytes, 0);
    key[start..start + 8].copy_from_slice(&rand::rng().random::<u64>().to_le_bytes());
    key.into()
}

/// Writes with all clients until `next` gives no more keys.
async fn write_all(
    clients: &[Client],
    value_bytes: usize,
    next: async_channel::Receiver<Bytes>,
) -> Report {
    let report = Arc::new(Mutex::new(Report::default()));
    let value = Bytes::from(vec![0; value_bytes]);
    let writers: Vec<_> = clients
        .iter()
        .map(|client| {
            let (client, next, value) = (client.clone(), next.clone(), value.clone());
            let report = Arc::clone(&report);
            tokio::spawn(async move {
                while let Some(key) = next.recv().await {
                    let started = Instant::now();
                    let request = pb::PutRequest {
                        key,
                        value: value.clone(),
                        ..Default::default()
                    };
                    let result = client.kv().put(request).await;
                    let mut report = report.lock();
                    report.seconds.push(started.elapsed().as_secs_f64());
                    if let Err(status) = result {
                        *report
                            .errors
                            .entry(status.message().to_owned())
                            .or_default() += 1;
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        // A writer that panicked has shown why.
        let _ = writer.await;
    }
    std::mem::take(&mut *report.lock())
}

/// A channel with several receivers.
mod async_channel {
    use std::sync::Arc;

    use tokio::sync::{Mutex, mpsc};

    /// One of the receivers.
    pub struct Receiver<T>(Arc<Mutex<mpsc::Receiver<T>>>);

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Self {
            Self(Arc::clone(&self.0))
        }
    }

    impl<T> Receiver<T> {
        /// The next item; nothing when the sender is gone.
        pub async fn recv(&self) -> Option<T> {
            self.0.lock().await.recv().await
        }
    }

    /// A channel that holds `capacity` items.
    pub fn bounded<T>(capacity: usize) -> (mpsc::Sender<T>, Receiver<T>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (sender, Receiver(Arc::new(Mutex::new(receiver))))
    }
}

async fn perf(context: Context) -> Result<(), Failure> {
    const LOADS: [(u32, usize); 4] = [(150, 50), (1000, 200), (8000, 500), (15_000, 1000)];
    let (limit, client_count) = LOADS[load_position(context.arguments.text("load"))?];
    let prefix = context.arguments.text("prefix").to_owned();
    let clients = connect_all(&context.options, client_count).await?;
    refuse_existing(&clients[0], &prefix).await?;
    let (keys, next) = async_channel::bounded(client_count);
    let pace = tokio::spawn({
        let prefix = prefix.clone();
        async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / limit);
            let end = tokio::time::Instant::now() + PERF_TIME;
            while tokio::time::Instant::now() < end {
                ticks.tick().await;
                if keys.send(random_key(&prefix, 256)).await.is_err() {
                    return;
                }
            }
        }
    });
    let started = Instant::now();
    let report = tokio::select! {
        report = write_all(&clients, 1024, next) => report,
        _ = tokio::signal::ctrl_c() => {
            clean_up(&context, &clients[0], &prefix).await?;
            return Err(Failure::error("interrupted"));
        }
    };
    let rate = report.seconds.len() as f64 / started.elapsed().as_secs_f64();
    pace.abort();
    clean_up(&context, &clients[0], &prefix).await?;
    judge(&report, rate, f64::from(limit))
}

fn judge(report: &Report, rate: f64, limit: f64) -> Result<(), Failure> {
    let mut passed = !report.show_errors();
    let mut check = |good: bool, pass: String, fail: String| {
        say(if good { pass } else { fail });
        passed &= good;
    };
    let shown = rate as u64 + 1;
    check(
        rate / limit > THROUGHPUT_SHARE,
        format!("PASS: Throughput is {shown} writes/s"),
        format!("FAIL: Throughput too low: {shown} writes/s"),
    );
    let slowest = report.slowest();
    check(
        slowest <= SLOWEST_SECONDS,
        format!("PASS: Slowest request took {slowest:.6}s"),
        format!("Slowest request took too long: {slowest:.6}s"),
    );
    let deviation = report.deviation();
    check(
        deviation <= DEVIATION_SECONDS,
        format!("PASS: Stddev is {deviation:.6}s"),
        format!("Stddev too high: {deviation:.6}s"),
    );
    say(if passed { "PASS" } else { "FAIL" });
    match passed {
        true => Ok(()),
        false => Err(Failure::silent(1)),
    }
}

/// Deletes what was written, and compacts and defragments if that was asked for.
async fn clean_up(context: &Context, client: &Client, prefix: &str) -> Result<(), Failure> {
    let patient = client.clone().patient(CLEAN_UP_TIMEOUT);
    let request = pb::DeleteRangeRequest {
        key: prefix.to_owned().into(),
        range_end: prefix_end(prefix.as_bytes()).into(),
        ..Default::default()
    };
    let answer = match patient.within(patient.kv().delete_range(request)).await {
        Ok(answer) => answer,
        Err(failure) => {
            say(format!(
                "FAIL: Cleanup failed during key deletion: ERROR({})",
                failure.message
            ));
            return Ok(());
        }
    };
    if context.arguments.boolean("auto-compact") {
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        say(format!("Compacting with revision {revision}"));
        let request = pb::CompactionRequest {
            revision,
            physical: true,
        };
        patient.within(patient.kv().compact(request)).await?;
        say(format!("Compacted with revision {revision}"));
    }
    if context.arguments.boolean("auto-defrag") {
        for endpoint in &context.options.endpoints {
            say(format!("Defragmenting {}", quote(endpoint.as_bytes())));
            let each = Client::connect(&context.options.at(endpoint))
                .await?
                .patient(CLEAN_UP_TIMEOUT);
            each.within(each.maintenance().defragment(pb::DefragmentRequest {}))
                .await?;
            say(format!("Defragmented {}", quote(endpoint.as_bytes())));
        }
    }
    Ok(())
}

async fn datascale(context: Context) -> Result<(), Failure> {
    const LOADS: [(usize, usize); 4] = [
        (10_000, 50),
        (100_000, 200),
        (1_000_000, 500),
        (3_000_000, 1000),
    ];
    const PAIR_BYTES: usize = 1024;
    const HALF_BYTES: usize = 512;
    let (limit, client_count) = LOADS[load_position(context.arguments.text("load"))?];
    let prefix = context.arguments.text("prefix").to_owned();
    let clients = connect_all(&context.options, client_count).await?;
    refuse_existing(&clients[0], &prefix).await?;
    let before = resident_bytes(&clients[0].endpoint(), "before").await?;
    say(format!(
        "Start data scale check for work load [{limit} key-value pairs, {PAIR_BYTES} bytes per key-value, {client_count} concurrent clients]."
    ));
    let (keys, next) = async_channel::bounded(client_count);
    let prefix_of_keys = prefix.clone();
    tokio::spawn(async move {
        for _ in 0..limit {
            if keys
                .send(random_key(&prefix_of_keys, HALF_BYTES))
                .await
                .is_err()
            {
                return;
            }
        }
    });
    let report = write_all(&clients, HALF_BYTES, next).await;
    let after = resident_bytes(&clients[0].endpoint(), "after").await?;
    clean_up(&context, &clients[0], &prefix).await?;
    if report.show_errors() {
        return Err(Failure::silent(1));
    }
    say(format!(
        "PASS: Approximate system memory used : {:.2} MB.",
        (after - before) / (1024.0 * 1024.0)
    ));
    Ok(())
}

/// The member's memory, from its metrics.
async fn resident_bytes(endpoint: &str, when: &str) -> Result<f64, Failure> {
    const NAME: &str = "process_resident_memory_bytes ";
    let missing = || {
        say(format!(
            "FAIL: Could not read process_resident_memory_bytes {when} the put operations."
        ));
        Failure::silent(1)
    };
    let Some(text) = fetch_metrics(endpoint).await else {
        return Err(missing());
    };
    text.lines()
        .find_map(|line| line.strip_prefix(NAME))
        .and_then(|value| value.trim().parse().ok())
        .ok_or_else(missing)
}

/// `/metrics` over plain HTTP.
async fn fetch_metrics(endpoint: &str) -> Option<String> {
    let address = endpoint
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    let mut stream = tokio::net::TcpStream::connect(&address).await.ok()?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}
