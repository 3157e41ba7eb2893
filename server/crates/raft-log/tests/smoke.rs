//! The log on the real disk, with its writer thread.

use std::sync::{Arc, mpsc};

use bytes::Bytes;
use metastore_raft_log::{
    Completion, LogEntry, LogIdentity, LogOptions, LogPosition, RaftLog, RealDisk,
};

const IDENTITY: LogIdentity = LogIdentity {
    cluster_id: 1,
    member_id: 2,
};

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
    log.purge(LogPosition { term: 3, index: 499 }, completion);
    receiver.recv().unwrap().unwrap();
    let (completion, receiver) = done();
    log.truncate_after(Some(LogPosition { term: 3, index: 949 }), completion);
    receiver.recv().unwrap().unwrap();
    let state = log.state();
    log.close();
    let log = open();
    assert_eq!(log.state(), state);
    let entries = log.read(500, 2000, usize::MAX).unwrap();
    let expected: Vec<LogEntry> = (500..950).map(entry).collect();
    assert_eq!(entries, expected);
}
