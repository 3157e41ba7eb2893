//! Power failures at every write and sync, with every kind of unsynced rest.
#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

mod support;

use std::sync::Arc;

use metastore_raft_log::simulation::SimulatedDisk;
use metastore_raft_log::{LogError, LogOptions, RaftLog};
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use support::{Driver, IDENTITY, Model, log_directory, small_options, with_seeds};

fn open(disk: &SimulatedDisk, options: &LogOptions, stepwise: bool) -> Result<RaftLog, LogError> {
    let open = if stepwise {
        RaftLog::open_stepwise
    } else {
        RaftLog::open_inline
    };
    open(
        Arc::new(disk.clone()),
        log_directory(),
        IDENTITY,
        options.clone(),
    )
}

/// How the unsynced sectors end: all lost, all there, or any.
fn restart(disk: &SimulatedDisk, random: &mut StdRng) {
    let kind = random.random_range(0..4);
    disk.restart_machine(&mut |choices| match kind {
        0 => 0,
        1 => choices - 1,
        _ => random.random_range(0..choices),
    });
}

/// Opens the log; power may fail again while it does.
fn reopen(disk: &SimulatedDisk, random: &mut StdRng, stepwise: bool) -> RaftLog {
    loop {
        let options = small_options(random);
        if random.random_range(0..3) == 0 {
            disk.lose_power_at_operation(random.random_range(1..20));
        }
        match open(disk, &options, stepwise) {
            Ok(log) => return log,
            Err(error) => assert!(!disk.has_power(), "refused after a crash: {error}"),
        }
        restart(disk, random);
    }
}

#[test]
fn acknowledged_changes_survive_power_failures() {
    with_seeds(150, |random| {
        let disk = SimulatedDisk::new();
        let stepwise = random.random();
        let mut driver = Driver::new(Model::default());
        for _ in 0..12 {
            let log = reopen(&disk, random, stepwise);
            if disk.has_power() {
                driver.reopened(&log);
            }
            // May still be pending from the opening: then it strikes even earlier.
            disk.lose_power_at_operation(random.random_range(1..200));
            for _ in 0..random.random_range(1..150) {
                driver.request(&log, random);
                if disk.has_power() && random.random() {
                    driver.model.check_read(&log, random);
                }
                if stepwise && random.random_range(0..4) == 0 {
                    log.step();
                }
                if !disk.has_power() {
                    break;
                }
            }
            drop(log);
            if random.random_range(0..4) == 0 && disk.has_power() {
                disk.kill_processes();
            } else {
                disk.lose_power();
                restart(&disk, random);
            }
        }
    });
}

/// One script, and a power failure at each of its operations.
#[test]
fn every_boundary_of_one_script_is_safe() {
    with_seeds(2, |random| {
        let script_seed: u64 = random.random();
        let run = |disk: &SimulatedDisk| {
            let mut script = StdRng::seed_from_u64(script_seed);
            let stepwise = script.random();
            let options = small_options(&mut script);
            let mut driver = Driver::new(Model::default());
            let Ok(log) = open(disk, &options, stepwise) else {
                return driver;
            };
            for _ in 0..60 {
                driver.request(&log, &mut script);
                if stepwise && script.random_range(0..3) == 0 {
                    log.step();
                }
                if !disk.has_power() {
                    break;
                }
            }
            driver
        };
        let whole = SimulatedDisk::new();
        run(&whole);
        for operation in 1..=whole.operations() {
            for _ in 0..4 {
                let disk = SimulatedDisk::new();
                disk.lose_power_at_operation(operation);
                let mut driver = run(&disk);
                assert!(!disk.has_power());
                restart(&disk, random);
                let log = open(&disk, &small_options(random), false)
                    .unwrap_or_else(|error| panic!("operation {operation}: {error}"));
                driver.reopened(&log);
                // What was opened is durable: it survives the next failure, too.
                disk.lose_power();
                drop(log);
                restart(&disk, random);
                driver.reopened(&open(&disk, &small_options(random), false).unwrap());
            }
        }
    });
}

/// A sync fails, the process restarts with what is in the page cache, and then power fails.
#[test]
fn what_is_opened_after_a_failed_sync_is_durable() {
    with_seeds(100, |random| {
        let disk = SimulatedDisk::new();
        let options = small_options(random);
        let mut driver = Driver::new(Model::default());
        let log = open(&disk, &options, true).unwrap();
        for _ in 0..random.random_range(0..30) {
            driver.request(&log, random);
            if random.random() {
                log.step();
            }
        }
        log.step();
        disk.set_sync_error(true);
        for _ in 0..random.random_range(1..10) {
            driver.request(&log, random);
        }
        log.step();
        drop(log);
        disk.set_sync_error(false);
        disk.kill_processes();
        driver.reopened(&open(&disk, &options, true).unwrap());
        disk.lose_power();
        restart(&disk, random);
        driver.reopened(&open(&disk, &options, true).unwrap());
    });
}
