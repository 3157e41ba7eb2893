//! Puts one kind of load on running servers and prints one JSON line.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use metastore_bench::load::{KeyOrder, KeySpace, LoadOptions, Operation, run_for};

/// A lean load program for servers of the etcd v3 API.
#[derive(Parser)]
#[command(name = "load")]
struct Arguments {
    /// What the clients do.
    operation: Operation,
    /// host:port of each server, comma-separated.
    #[arg(long, default_value = "127.0.0.1:2379", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// Outstanding calls.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Connections at most.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Seconds of measurement; `fill` ends when all keys are written.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds of load before the measurement.
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Number of keys.
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// What keys begin with.
    #[arg(long, default_value = "bench/")]
    prefix: String,
    /// How keys are chosen.
    #[arg(long, default_value = "random")]
    key_order: KeyOrder,
    /// Length of values.
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// Keys in a page of a list.
    #[arg(long, default_value_t = 500)]
    page: u64,
    /// Keys in a transaction of `fill`; 1: plain puts.
    #[arg(long, default_value_t = 1)]
    batch: u64,
    /// Watchers of `watch`.
    #[arg(long, default_value_t = 100)]
    watchers: usize,
    /// Streams that the watchers share.
    #[arg(long, default_value_t = 10)]
    streams: usize,
    /// Calls per second; absent: as fast as answers come.
    #[arg(long)]
    rate: Option<f64>,
    /// Process ids whose CPU time is measured, comma-separated.
    #[arg(long, value_delimiter = ',')]
    server_pids: Vec<u32>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = LoadOptions {
        operation: arguments.operation,
        endpoints: arguments.endpoints,
        clients: arguments.clients,
        connections: arguments.connections,
        keys: KeySpace {
            prefix: arguments.prefix,
            keys: arguments.keys,
        },
        key_order: arguments.key_order,
        value_bytes: arguments.value_bytes,
        page: arguments.page,
        batch: arguments.batch,
        watchers: arguments.watchers,
        streams: arguments.streams,
        rate: arguments.rate,
        warm_up: Duration::from_secs_f64(arguments.warm_up),
        server_pids: arguments.server_pids,
    };
    match run_for(&options, Duration::from_secs_f64(arguments.seconds)).await {
        Ok(report) => {
            println!(
                "{}",
                serde_json::to_string(&report).expect("a report is plain data")
            );
            if report.errors == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}
