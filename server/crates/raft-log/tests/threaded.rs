//! The log on the real disk, with its writer thread.
#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

mod support;

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use metastore_raft_log::{
    Completion, Disk, DiskFile, DiskLock, LogEntry, LogOptions, LogPosition, RaftLog, RealDisk,
};
use rand::Rng;
use support::{Driver, IDENTITY, Model, small_options, with_seeds};

fn done() -> (Completion, mpsc::Receiver<std::io::Result<()>>) {
    let (sender, receiver) = mpsc::channel();
    let completion: Completion = Box::new(move |result| {
        let _ = sender.send(result);
    });
    (completion, receiver)
}

fn entry(index: u64) -> LogEntry {
    LogEntry {
        index,
        term: 3,
        payload: Bytes::from(vec![index as u8; 100 + index as usize % 400]),
    }
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let options = LogOptions {
        segment_bytes: 64 * 1024,
        cache_bytes: 10_000,
        ..LogOptions::default()
    };
    let open = || {
        RaftLog::open(
            Arc::new(RealDisk),
            directory.path(),
            IDENTITY,
            options.clone(),
        )
        .unwrap()
    };
    let log = open();
    for index in 0..1000 {
        let (completion, receiver) = done();
        log.append(vec![entry(index)], completion);
        assert_eq!(log.read(index, index + 1, 0).unwrap(), [entry(index)]);
        if index % 100 == 0 {
            receiver.recv().unwrap().unwrap();
        }
    }
    let (completion, receiver) = done();
    log.save_vote(Bytes::from_static(b"vote"), completion);
    receiver.recv().unwrap().unwrap();
    let (completion, receiver) = done();
    log.purge(
        LogPosition {
            term: 3,
            index: 499,
        },
        completion,
    );
    receiver.recv().unwrap().unwrap();
    let (completion, receiver) = done();
    log.truncate_after(
        Some(LogPosition {
            term: 3,
            index: 949,
        }),
        completion,
    );
    receiver.recv().unwrap().unwrap();
    let state = log.state();
    log.close();
    let log = open();
    assert_eq!(log.state(), state);
    let entries = log.read(500, 2000, usize::MAX).unwrap();
    let expected: Vec<LogEntry> = (500..950).map(entry).collect();
    assert_eq!(entries, expected);
}

/// Requests, reads and reopenings in any order leave what the model says.
#[test]
fn the_log_equals_the_model() {
    with_seeds(6, |random| {
        let directory = tempfile::tempdir().unwrap();
        let mut driver = Driver::new(Model::default());
        for _ in 0..6 {
            let options = small_options(random);
            let log =
                RaftLog::open(Arc::new(RealDisk), directory.path(), IDENTITY, options).unwrap();
            driver.reopened(&log);
            assert_eq!(
                driver.base, driver.model,
                "a log that was closed is complete"
            );
            for _ in 0..random.random_range(1..200) {
                driver.request(&log, random);
                driver.model.check_read(&log, random);
                assert_eq!(log.state().last, driver.model.last);
                assert_eq!(log.state().purged, driver.model.purged);
            }
            assert_eq!(Model::of(&log), driver.model);
            drop(log);
            driver.base = driver.model.clone();
            driver.changes.clear();
            driver.acknowledged = Arc::default();
        }
    });
}

/// Readers beside the writer see whole entries, whatever moves from memory to files and away.
#[test]
fn readers_run_beside_the_writer() {
    let directory = tempfile::tempdir().unwrap();
    let options = LogOptions {
        segment_bytes: 64 * 1024,
        cache_bytes: 2000,
        ..LogOptions::default()
    };
    let log = RaftLog::open(Arc::new(RealDisk), directory.path(), IDENTITY, options).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let log = log.clone();
            scope.spawn(move || {
                loop {
                    let state = log.state();
                    let Some(last) = state.last else { continue };
                    let first = state.purged.map_or(0, |purged| purged.index + 1);
                    match log.read(first, last.index + 1, 10_000) {
                        Ok(entries) => {
                            for (index, found) in (first..).zip(&entries) {
                                assert_eq!(*found, entry(index));
                            }
                        }
                        Err(error) => assert!(!error.is_fatal(), "{error}"),
                    }
                    if last.index == 3999 {
                        return;
                    }
                }
            });
        }
        for index in 0..4000 {
            let (completion, receiver) = done();
            log.append(vec![entry(index)], completion);
            if index % 50 == 49 {
                receiver.recv().unwrap().unwrap();
                let up_to = LogPosition {
                    term: 3,
                    index: index - 40,
                };
                log.purge(up_to, Box::new(|result| result.unwrap()));
            }
        }
    });
}

/// The real disk, but removals of segments become durable only when the gate is open.
#[derive(Default)]
struct SlowRemovals {
    open: Mutex<bool>,
    opened: Condvar,
}

impl SlowRemovals {
    fn open_gate(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

impl Disk for SlowRemovals {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_directory(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(path)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.open(path)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.create(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        if std::thread::current().name() == Some("raft-log-remove") {
            let closed = self.open.lock().unwrap();
            drop(self.opened.wait_while(closed, |open| !*open).unwrap());
        }
        RealDisk.sync_directory(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        RealDisk.lock(path)
    }
}

/// A disk took 30 to 120 ms for that, twice in a row after each snapshot.
#[test]
fn writes_do_not_wait_for_removed_segments() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(SlowRemovals::default());
    let options = LogOptions {
        segment_bytes: 64 * 1024,
        ..LogOptions::default()
    };
    let open = || RaftLog::open(disk.clone(), directory.path(), IDENTITY, options.clone()).unwrap();
    let log = open();
    let (completion, receiver) = done();
    log.append((0..1000).map(entry).collect(), completion);
    receiver.recv().unwrap().unwrap();
    // Each of the two leaves segments without live entries.
    for index in [400, 800] {
        let (completion, receiver) = done();
        log.purge(LogPosition { term: 3, index }, completion);
        receiver.recv().unwrap().unwrap();
    }
    let (completion, receiver) = done();
    log.append(vec![entry(1000)], completion);
    let written = receiver.recv_timeout(Duration::from_secs(60));
    disk.open_gate();
    written.expect("nothing but the removal waits").unwrap();
    // Enough for new segments: they wait for what they recycle, and what was left is removed.
    for index in 1001..2000 {
        let (completion, receiver) = done();
        log.append(vec![entry(index)], completion);
        receiver.recv().unwrap().unwrap();
    }
    log.close();
    let segments = RealDisk.list(directory.path()).unwrap();
    let segments = segments
        .iter()
        .filter(|name| name.ends_with(".log"))
        .count();
    assert!(segments <= 8, "1200 entries need 6 segments: {segments}");
    let log = open();
    let expected: Vec<LogEntry> = (801..2000).map(entry).collect();
    assert_eq!(log.read(801, 2000, usize::MAX).unwrap(), expected);
}
