//! Damaged, missing and foreign files, full and failing disks: refused with a clear message.
#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

mod support;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use metastore_raft_log::simulation::SimulatedDisk;
use metastore_raft_log::{
    Completion, LogEntry, LogError, LogIdentity, LogOptions, LogPosition, Observer, RaftLog,
    RealDisk,
};
use rand::Rng;
use support::{IDENTITY, Model, log_directory, with_seeds};

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: LogOptions::SEGMENT_BYTES_MIN,
        cache_bytes: 0,
        ..LogOptions::default()
    }
}

fn open_as(disk: &SimulatedDisk, identity: LogIdentity) -> Result<RaftLog, LogError> {
    RaftLog::open_inline(Arc::new(disk.clone()), log_directory(), identity, options())
}

fn open(disk: &SimulatedDisk) -> Result<RaftLog, LogError> {
    open_as(disk, IDENTITY)
}

fn message(result: Result<RaftLog, LogError>) -> String {
    match result {
        Ok(_) => panic!("the log was opened"),
        Err(error) => {
            assert!(error.is_fatal());
            error.to_string()
        }
    }
}

fn ignore() -> Completion {
    Box::new(|_| {})
}

/// What a request answers in the modes without a thread.
fn answer(request: impl FnOnce(Completion)) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel();
    request(Box::new(move |result| {
        sender.send(result).unwrap();
    }));
    receiver
        .recv_timeout(Duration::from_secs(60))
        .expect("the completion runs")
}

fn entry(index: u64, bytes: usize) -> LogEntry {
    LogEntry {
        index,
        term: 1,
        payload: vec![index as u8; bytes].into(),
    }
}

fn segment(sequence: u64) -> PathBuf {
    log_directory().join(format!("{sequence:016x}.log"))
}

/// A log of a few segments that ends with a committed hint behind everything that is acknowledged.
fn written_disk(entries: u64) -> (SimulatedDisk, Model) {
    let disk = SimulatedDisk::new();
    let log = open(&disk).unwrap();
    log.save_vote(Bytes::from_static(b"vote"), ignore());
    for index in 0..entries {
        log.append(vec![entry(index, 50 + index as usize % 100)], ignore());
    }
    log.save_committed(LogPosition {
        term: 1,
        index: entries - 1,
    });
    let model = Model::of(&log);
    (disk, model)
}

/// Offsets of the records of a segment, and the end of the last one.
fn record_offsets(content: &[u8]) -> Vec<usize> {
    let mut offsets = vec![128];
    loop {
        let offset = offsets[offsets.len() - 1];
        let Some(header) = content.get(offset..offset + 24) else {
            return offsets;
        };
        if !(1..=5).contains(&header[8]) {
            return offsets;
        }
        let length = u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize;
        offsets.push((offset + 24 + length).next_multiple_of(8));
    }
}

#[test]
fn a_flipped_bit_in_acknowledged_data_is_refused() {
    let (disk, model) = written_disk(400);
    let segments = (1..)
        .take_while(|sequence| disk.content(&segment(*sequence)).is_some())
        .count() as u64;
    assert!(segments >= 3, "the test needs several segments");
    drop(open(&disk).unwrap());
    with_seeds(300, |random| {
        let sequence = random.random_range(1..=segments);
        let path = segment(sequence);
        let content = disk.content(&path).unwrap();
        let offsets = record_offsets(&content);
        // In the last segment the hint is the last record: it is what proves the others.
        let end = match sequence == segments {
            true => offsets[offsets.len() - 2],
            false => offsets[offsets.len() - 1],
        };
        let offset = random.random_range(0..end) as u64;
        let bit = random.random_range(0..8);
        disk.flip_bit(&path, offset, bit);
        let message = message(open(&disk));
        assert!(
            message.contains(&path.display().to_string()),
            "the message names the file: {message}"
        );
        if offset >= 128 {
            assert!(
                message.contains("restore this member from a snapshot or re-add it as a learner"),
                "{message}"
            );
        }
        disk.flip_bit(&path, offset, bit);
        assert_eq!(Model::of(&open(&disk).unwrap()), model);
    });
}

#[test]
fn damage_at_the_very_end_is_cut_as_an_interrupted_write() {
    let (disk, model) = written_disk(10);
    let offsets = record_offsets(&disk.content(&segment(1)).unwrap());
    // Without the hint nothing proves that the last entry was acknowledged.
    for offset in &offsets[offsets.len() - 3..offsets.len() - 1] {
        disk.flip_bit(&segment(1), *offset as u64, 0);
    }
    let log = open(&disk).unwrap();
    assert_eq!(log.state().last, Some(LogPosition { term: 1, index: 8 }));
    assert_eq!(log.state().vote, model.vote);
    assert_eq!(
        answer(|done| log.append(vec![entry(9, 5)], done)).ok(),
        Some(())
    );
}

#[test]
fn the_rest_of_an_interrupted_write_never_follows_a_later_one() {
    // All records have one length, so what is left of the old write stands exactly where the log
    // goes on, and with the right indexes.
    for lost_sectors in 1..6 {
        let disk = SimulatedDisk::new();
        let log =
            RaftLog::open_stepwise(Arc::new(disk.clone()), log_directory(), IDENTITY, options())
                .unwrap();
        log.append(vec![entry(0, 1000)], ignore());
        log.step();
        disk.lose_power_at_operation(2);
        log.append((1..9).map(|index| entry(index, 1000)).collect(), ignore());
        log.step();
        assert!(!disk.has_power(), "power failed between write and sync");
        let mut sector = 0;
        disk.restart_machine(&mut |choices| {
            // The first choice is about names.
            sector += 1;
            if sector <= 1 + lost_sectors {
                0
            } else {
                choices - 1
            }
        });
        let log = open(&disk).unwrap();
        let mut model = Model::of(&log);
        assert!(model.entries.len() <= 3, "the rest is cut");
        let next = LogEntry {
            index: model.next(),
            term: 2,
            payload: vec![0xff; 1000].into(),
        };
        answer(|done| log.append(vec![next.clone()], done)).unwrap();
        model.last = Some(next.position());
        model.entries.insert(next.index, next);
        drop(log);
        assert_eq!(Model::of(&open(&disk).unwrap()), model);
    }
}

#[test]
fn damage_while_running_is_an_error_not_a_short_answer() {
    let (disk, _) = written_disk(10);
    let log = open(&disk).unwrap();
    let offsets = record_offsets(&disk.content(&segment(1)).unwrap());
    disk.flip_bit(&segment(1), offsets[5] as u64 + 40, 3);
    assert!(matches!(
        log.read(0, 10, usize::MAX),
        Err(LogError::Corrupt { .. })
    ));
}

#[test]
fn a_missing_segment_is_refused() {
    let (disk, _) = written_disk(400);
    for missing in [1, 2] {
        let copy = SimulatedDisk::new();
        for sequence in 1.. {
            match disk.content(&segment(sequence)) {
                Some(_) if sequence == missing => {}
                Some(content) => copy.put_content(&segment(sequence), content),
                None => break,
            }
        }
        let message = message(open(&copy));
        assert!(message.contains("missing, or was deleted"), "{message}");
    }
}

#[test]
fn a_truncated_file_is_refused() {
    let (disk, _) = written_disk(10);
    for length in [
        0,
        100,
        128,
        1000,
        LogOptions::SEGMENT_BYTES_MIN as usize - 1,
    ] {
        let copy = SimulatedDisk::new();
        let mut content = disk.content(&segment(1)).unwrap();
        content.truncate(length);
        copy.put_content(&segment(1), content);
        let message = message(open(&copy));
        assert!(
            message.contains("truncated") || message.contains("shorter"),
            "{message}"
        );
    }
}

#[test]
fn a_renamed_segment_is_refused() {
    let (disk, _) = written_disk(10);
    let copy = SimulatedDisk::new();
    copy.put_content(&segment(2), disk.content(&segment(1)).unwrap());
    assert!(message(open(&copy)).contains("renamed"));
}

#[test]
fn foreign_files_are_refused() {
    let disk = SimulatedDisk::new();
    disk.put_content(&segment(1), vec![b'x'; 20_000]);
    assert!(message(open(&disk)).contains("was not written by this program"));

    let disk = SimulatedDisk::new();
    disk.put_content(
        &log_directory().join("0000000000000000-0000000000000000.wal"),
        vec![1; 10],
    );
    assert!(message(open(&disk)).contains("empty directory"));
}

#[test]
fn a_newer_format_is_refused() {
    let (disk, _) = written_disk(10);
    let mut content = disk.content(&segment(1)).unwrap();
    content[8] = 2;
    disk.put_content(&segment(1), content);
    assert!(message(open(&disk)).contains("format version 2"));
}

#[test]
fn the_log_of_another_member_or_cluster_is_refused() {
    let (disk, _) = written_disk(10);
    let other_member = LogIdentity {
        member_id: 0xbad,
        ..IDENTITY
    };
    assert_eq!(
        message(open_as(&disk, other_member)),
        "raft log: /member/log/0000000000000001.log belongs to member a2, but this is member bad; check the data directory and the cluster settings"
    );
    let other_cluster = LogIdentity {
        cluster_id: 0xbad,
        ..IDENTITY
    };
    assert!(message(open_as(&disk, other_cluster)).contains("belongs to cluster c1"));
}

#[test]
fn a_full_disk_fails_the_log_and_loses_nothing() {
    let (disk, mut model) = written_disk(10);
    disk.set_capacity(Some(2 * LogOptions::SEGMENT_BYTES_MIN));
    let log = open(&disk).unwrap();
    let mut failed = None;
    for index in 10..1000 {
        let entry = entry(index, 100);
        match answer(|done| log.append(vec![entry.clone()], done)) {
            Ok(()) => {
                model.last = Some(entry.position());
                model.entries.insert(index, entry);
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let failed = failed.expect("the disk is full before the end");
    assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
    assert!(failed.to_string().contains("the disk is full"), "{failed}");
    // The first error is final, for reads as well.
    disk.set_capacity(None);
    let later = answer(|done| log.save_vote(Bytes::new(), done)).unwrap_err();
    assert_eq!(later.kind(), io::ErrorKind::StorageFull);
    assert!(matches!(log.read(0, 1, 1), Err(LogError::Failed { .. })));
    drop(log);
    let log = open(&disk).unwrap();
    assert_eq!(Model::of(&log), model);
    let next = entry(log.state().last.unwrap().index + 1, 10);
    answer(|done| log.append(vec![next], done)).unwrap();
}

#[test]
fn a_failed_sync_is_final() {
    let disk = SimulatedDisk::new();
    let log = open(&disk).unwrap();
    disk.set_sync_error(true);
    answer(|done| log.append(vec![entry(0, 10)], done)).unwrap_err();
    disk.set_sync_error(false);
    let operations = disk.operations();
    answer(|done| log.append(vec![entry(1, 10)], done)).unwrap_err();
    answer(|done| log.truncate_after(None, done)).unwrap_err();
    assert_eq!(disk.operations(), operations, "the disk is left alone");
}

#[test]
fn a_read_only_disk_is_named() {
    let (disk, _) = written_disk(10);
    disk.set_read_only(true);
    assert!(message(open(&disk)).contains("read-only"));
}

#[test]
fn without_syncs_a_power_failure_loses_acknowledged_entries() {
    // Shows that the simulated disk does lose what is not synced.
    let disk = SimulatedDisk::new();
    let options = LogOptions {
        unsafe_no_sync: true,
        ..options()
    };
    let open = || {
        RaftLog::open_inline(
            Arc::new(disk.clone()),
            log_directory(),
            IDENTITY,
            options.clone(),
        )
        .unwrap()
    };
    let log = open();
    answer(|done| log.append(vec![entry(0, 10)], done)).unwrap();
    disk.restart_machine(&mut |_| 0);
    drop(log);
    assert_eq!(open().state().last, None);
}

#[test]
fn an_entry_larger_than_a_segment_gets_its_own() {
    let disk = SimulatedDisk::new();
    let log = open(&disk).unwrap();
    for index in 0..5 {
        answer(|done| log.append(vec![entry(index, 100_000 * (index as usize % 2))], done))
            .unwrap();
    }
    let model = Model::of(&log);
    drop(log);
    assert_eq!(Model::of(&open(&disk).unwrap()), model);
}

#[test]
fn misuse_is_refused_and_changes_nothing() {
    let disk = SimulatedDisk::new();
    let log = open(&disk).unwrap();
    let refused = |request: &dyn Fn(Completion)| {
        let before = log.state();
        let error = answer(request).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(log.state(), before);
    };
    refused(&|done| log.append(vec![entry(2, 1)], done));
    answer(|done| log.append(vec![entry(1, 1), entry(2, 1)], done)).unwrap();
    refused(&|done| log.append(vec![entry(2, 1)], done));
    refused(&|done| log.append(vec![entry(3, 1), entry(5, 1)], done));
    refused(&|done| log.save_vote(vec![0; 5000].into(), done));
    answer(|done| log.purge(LogPosition { term: 1, index: 2 }, done)).unwrap();
    refused(&|done| log.truncate_after(Some(LogPosition { term: 1, index: 1 }), done));
    refused(&|done| log.truncate_after(None, done));
    // None of this is an error of the log itself.
    answer(|done| log.append(vec![entry(3, 1)], done)).unwrap();
}

#[test]
fn a_completion_may_make_the_next_request() {
    let disk = SimulatedDisk::new();
    let log = open(&disk).unwrap();
    let (sender, receiver) = mpsc::channel();
    let inner = log.clone();
    log.append(
        vec![entry(0, 1)],
        Box::new(move |result| {
            result.unwrap();
            inner.append(
                vec![entry(1, 1)],
                Box::new(move |result| sender.send(result).unwrap()),
            );
        }),
    );
    receiver
        .recv_timeout(Duration::from_secs(60))
        .unwrap()
        .unwrap();
}

#[derive(Default)]
struct Counts {
    syncs: AtomicUsize,
    records: AtomicUsize,
}

impl Observer for Counts {
    fn written(&self, _bytes: u64, records: u64, _duration: Duration) {
        self.records.fetch_add(records as usize, Ordering::Relaxed);
    }

    fn synced(&self, _duration: Duration) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_is_queued_shares_one_sync() {
    let disk = SimulatedDisk::new();
    let counts = Arc::new(Counts::default());
    let options = LogOptions {
        segment_bytes: 1024 * 1024,
        observer: Some(counts.clone()),
        ..LogOptions::default()
    };
    let log = RaftLog::open_stepwise(Arc::new(disk), log_directory(), IDENTITY, options).unwrap();
    for index in 0..100 {
        log.append(vec![entry(index, 100)], ignore());
    }
    assert!(log.step());
    assert!(!log.step());
    assert_eq!(counts.records.load(Ordering::Relaxed), 100);
    assert_eq!(counts.syncs.load(Ordering::Relaxed), 1);
    log.save_committed(LogPosition { term: 1, index: 5 });
    assert!(log.step());
    assert_eq!(
        counts.syncs.load(Ordering::Relaxed),
        1,
        "a hint is not synced"
    );
    assert_eq!(log.queued_bytes(), 0);
}

#[test]
fn a_queue_that_only_grows_fails_the_log() {
    let disk = SimulatedDisk::new();
    let options = LogOptions {
        queue_bytes_max: 10_000,
        ..options()
    };
    let log = RaftLog::open_stepwise(Arc::new(disk), log_directory(), IDENTITY, options).unwrap();
    let (sender, receiver) = mpsc::channel();
    for index in 0..20 {
        let sender = sender.clone();
        log.append(
            vec![entry(index, 1000)],
            Box::new(move |result| sender.send(result.unwrap_err().kind()).unwrap()),
        );
    }
    log.step();
    drop(sender);
    assert_eq!(receiver.iter().count(), 20, "each completion runs once");
}

#[test]
fn purged_segments_are_removed_and_recycled() {
    let disk = SimulatedDisk::new();
    let log = open(&disk).unwrap();
    for index in 0..2000 {
        log.append(vec![entry(index, 100)], ignore());
        if index % 50 == 49 {
            log.purge(
                LogPosition {
                    term: 1,
                    index: index - 20,
                },
                ignore(),
            );
        }
    }
    let segments = (1..1000).filter(|sequence| disk.content(&segment(*sequence)).is_some());
    assert!(segments.count() <= 2, "old segments are gone");
    let model = Model::of(&log);
    drop(log);
    assert_eq!(Model::of(&open(&disk).unwrap()), model);
}

const SECOND_PROCESS_DIRECTORY: &str = "RAFT_LOG_SECOND_PROCESS_DIRECTORY";

#[test]
fn a_second_process_is_refused() {
    let open =
        |path: &std::path::Path| RaftLog::open(Arc::new(RealDisk), path, IDENTITY, options());
    // This is the second process.
    if let Ok(path) = std::env::var(SECOND_PROCESS_DIRECTORY) {
        let error = open(path.as_ref()).err().expect("the log is locked");
        assert!(matches!(error, LogError::Locked { .. }), "{error}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("member/log");
    let log = open(&path).unwrap();
    assert!(matches!(open(&path), Err(LogError::Locked { .. })));
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_second_process_is_refused"])
        .env(SECOND_PROCESS_DIRECTORY, &path)
        .status()
        .unwrap();
    assert!(status.success());
    // Closing releases the lock even while handles remain.
    log.close();
    let second = open(&path).unwrap();
    assert!(answer(|done| log.append(vec![entry(0, 1)], done)).is_err());
    drop(second);
    open(&path).unwrap();
}

#[test]
fn a_panic_in_a_completion_fails_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let log = RaftLog::open(Arc::new(RealDisk), directory.path(), IDENTITY, options()).unwrap();
    log.append(vec![entry(0, 1)], Box::new(|_| panic!("on purpose")));
    // Refused or completed with an error, but answered.
    let result = answer(|done| log.append(vec![entry(1, 1)], done));
    if result.is_ok() {
        panic!("a request after the panic succeeded");
    }
}

/// Many flipped bits at once, anywhere: the log is refused with a reason, or what it still gives was
/// written so. `METASTORE_FUZZ_SECONDS` looks longer.
#[test]
fn any_damage_is_refused_or_leaves_only_what_was_written() {
    const ENTRIES: u64 = 120;
    let seconds = std::env::var("METASTORE_FUZZ_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(1);
    let started = std::time::Instant::now();
    let refused = AtomicUsize::new(0);
    while started.elapsed() < Duration::from_secs(seconds) {
        with_seeds(20, |random| {
            let (disk, _) = written_disk(ENTRIES);
            let segments: Vec<_> = (1..)
                .map(segment)
                .take_while(|path| disk.content(path).is_some())
                .collect();
            for _ in 0..random.random_range(1..12) {
                let path = &segments[random.random_range(0..segments.len())];
                let length = disk.content(path).unwrap().len() as u64;
                // Lengths and checksums matter most; runs of damage are what disks do.
                let start = random.random_range(0..length);
                for offset in start..(start + random.random_range(1..40)).min(length) {
                    disk.flip_bit(path, offset, random.random_range(0..8));
                }
            }
            match open(&disk) {
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                Ok(log) => {
                    let Ok(entries) = log.read(0, ENTRIES, usize::MAX) else {
                        return;
                    };
                    for found in entries {
                        let expected = entry(found.index, 50 + found.index as usize % 100);
                        assert_eq!(found.payload, expected.payload, "entry {}", found.index);
                    }
                }
            }
        });
    }
    assert!(refused.load(Ordering::Relaxed) > 0, "no damage was noticed");
}
