//! A killed process leaves a prefix of its batches, in all tables alike.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use common::{counter, numbered_batch, numbered_model, open};
use metastore_store::engine::{Engine, Table};

/// Names the directory in which the test's own binary, started again, writes until it aborts.
const DIRECTORY_VARIABLE: &str = "METASTORE_CRASH_DIRECTORY";
/// How many batches it writes.
const BATCHES_VARIABLE: &str = "METASTORE_CRASH_BATCHES";
/// Replays a failed run.
const SEED_VARIABLE: &str = "METASTORE_SEED";
/// Times that the process is killed on one directory.
const CRASHES: u64 = 6;

#[test]
fn a_killed_process_leaves_whole_batches_in_all_tables() {
    if let Ok(directory) = std::env::var(DIRECTORY_VARIABLE) {
        let batches = std::env::var(BATCHES_VARIABLE).expect("set with the directory");
        write_until_abort(
            &PathBuf::from(directory),
            batches.parse().expect("a number"),
        );
    }
    let seed = seed();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let directory = directory.path().join("db");
    let mut durable = 0;
    for crash in 0..CRASHES {
        let batches = 1 + random(seed, crash) % 4000;
        let flushed = run_until_abort(&directory, batches);
        let engine = open(&directory);
        let found = counter(&engine);
        eprintln!("crash {crash}: {batches} batches written, {flushed} flushed, {found} found");
        assert!(
            found >= flushed.max(durable),
            "{SEED_VARIABLE}={seed}: batch {flushed} was flushed and {durable} found before, now {found}"
        );
        numbered_model(found).assert_equals(&engine);
        durable = found;
    }
    assert!(
        durable > 0,
        "{SEED_VARIABLE}={seed}: nothing survived, so nothing was tested"
    );
}

/// Starts this binary again as the writer; gives the last batch that it reported as flushed.
fn run_until_abort(directory: &Path, batches: u64) -> i64 {
    let output = Command::new(std::env::current_exe().expect("a test has a binary"))
        .args([
            "--exact",
            "a_killed_process_leaves_whole_batches_in_all_tables",
            "--nocapture",
        ])
        .env(DIRECTORY_VARIABLE, directory)
        .env(BATCHES_VARIABLE, batches.to_string())
        .stderr(Stdio::null())
        .output()
        .expect("the binary starts");
    assert!(!output.status.success(), "the writer was to abort");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        printed.contains("writing"),
        "the writer did not come to write: {printed}"
    );
    printed
        .lines()
        .filter_map(|line| line.strip_prefix("flushed "))
        .filter_map(|number| number.parse().ok())
        .next_back()
        .unwrap_or(0)
}

fn write_until_abort(directory: &Path, batches: u64) -> ! {
    let engine = open(directory);
    let first = counter(&engine) + 1;
    println!("\nwriting");
    for number in first..first + batches as i64 {
        engine
            .write(numbered_batch(number))
            .expect("the batch is written");
        if number % 1500 == 0 {
            engine.flush().expect("the flush succeeds");
            println!("flushed {number}");
            std::io::stdout().flush().expect("the parent reads");
        }
    }
    // Destructors would flush.
    std::process::abort()
}

#[test]
fn a_clean_end_loses_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let engine = open(directory.path());
    for number in 1..=100 {
        engine
            .write(numbered_batch(number))
            .expect("the batch is written");
    }
    drop(engine);
    numbered_model(100).assert_equals(&open(directory.path()));
}

#[test]
fn a_checkpoint_is_one_moment_while_a_writer_goes_on() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let engine = open(&directory.path().join("db"));
    let stop = AtomicBool::new(false);
    let mut before = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                engine
                    .write(numbered_batch(number))
                    .expect("the batch is written");
            }
        });
        let stop_at_the_end = StopWriter(&stop);
        for copy in 0..5 {
            let into = directory.path().join(format!("copy-{copy}"));
            // Reading the counter of each table separately needs a state that stands still, so
            // only one table is asked here.
            let floor = row_counter(&engine);
            let row = engine
                .checkpoint(&into, Table::Meta, common::COUNTER)
                .expect("the copy is made");
            assert!(!into.join("LOG").exists(), "looking leaves nothing behind");
            let copy = open(&into);
            let found = counter(&copy);
            assert_eq!(
                decode_counter(row),
                found,
                "the row is that of another moment"
            );
            assert!(
                found >= floor,
                "batch {floor} was written, the copy ends at {found}"
            );
            assert!(found >= before, "a later copy is older");
            numbered_model(found).assert_equals(&copy);
            before = found;
        }
        drop(stop_at_the_end);
    });
    assert!(before > 0, "the copies were empty");
}

/// Ends the writer also when an assertion fails, so that the test does not hang.
struct StopWriter<'a>(&'a AtomicBool);

impl Drop for StopWriter<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn row_counter(engine: &dyn Engine) -> i64 {
    let row = engine
        .get_row(metastore_store::engine::Table::Meta, common::COUNTER)
        .expect("the row reads");
    decode_counter(row)
}

fn decode_counter(row: Option<Bytes>) -> i64 {
    row.map_or(0, |row| {
        i64::from_be_bytes(row.as_ref().try_into().expect("eight bytes"))
    })
}

fn seed() -> u64 {
    match std::env::var(SEED_VARIABLE) {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("the clock is past 1970")
            .as_nanos() as u64,
    }
}

/// SplitMix64: the `index`th number of the sequence of `seed`.
fn random(seed: u64, index: u64) -> u64 {
    let mut number = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
