//! The log of a member: records of the form `kind ‖ group ‖ length ‖ content` behind the head of a real segment, with
//! right checksums unless the group's highest bit is set. What is opened can be read and goes on.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use metastore_raft_log::simulation::SimulatedDisk;
use metastore_raft_log::{LogEntry, LogIdentity, LogOptions, RaftLog};

const DIRECTORY: &str = "/log";
const IDENTITY: LogIdentity = LogIdentity {
    cluster_id: 1,
    member_id: 2,
};
/// Head of a segment, as in `segment.rs`.
const HEAD_BYTES: usize = 8192;
const RECORD_HEADER_BYTES: usize = 24;

fn open(disk: &SimulatedDisk) -> Option<RaftLog> {
    let options = LogOptions {
        segment_bytes: LogOptions::SEGMENT_BYTES_MIN,
        cache_bytes: 0,
        ..LogOptions::default()
    };
    RaftLog::open_inline(Arc::new(disk.clone()), Path::new(DIRECTORY), IDENTITY, options).ok()
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let disk = SimulatedDisk::new();
    let path = Path::new(DIRECTORY).join("0000000000000001.log");
    drop(open(&disk).expect("an empty disk"));
    let mut segment = disk.content(&path).expect("the first segment");
    // Some inputs begin where the records begin, the others where the state does.
    let (first, records) = input.split_first().unwrap_or((&0, &[]));
    let start = if *first % 2 == 0 { HEAD_BYTES } else { 128 };
    write_records(&mut segment, start, records);
    disk.put_content(&path, segment);
    let Some(log) = open(&disk) else {
        return;
    };
    let state = log.state();
    if let Some(last) = state.last {
        // A log from which nothing was purged begins with entry 0 or 1.
        let from = match state.purged {
            Some(purged) => purged.index + 1,
            None => u64::from(log.read(0, 1, 1).is_err()),
        };
        if from <= last.index {
            let mut next = from;
            while next <= last.index {
                let entries = log.read(next, last.index + 1, 1 << 20).expect("what is there can be read");
                assert!(!entries.is_empty());
                for entry in entries {
                    assert_eq!(entry.index, next);
                    next += 1;
                }
            }
        }
    }
    let next = state.last.map_or(0, |last| last.index.saturating_add(1));
    let term = state.last.map_or(1, |last| last.term);
    if next < u64::MAX / 2 && state.purged.is_none_or(|purged| purged.index < next) {
        let entry = LogEntry {
            index: next,
            term,
            payload: vec![7; 100].into(),
        };
        log.append(vec![entry], Box::new(|written| written.expect("a disk with room")));
        drop(log);
        let again = open(&disk).expect("what was opened once can be opened again");
        assert_eq!(again.state().last.map(|last| last.index), Some(next));
    }
});

fn write_records(segment: &mut [u8], start: usize, mut input: &[u8]) {
    let mut at = start;
    let mut group = 1_u64;
    let mut group_start = start;
    while let [kind, step, length, rest @ ..] = input {
        let length = usize::from(*length).min(rest.len());
        let (content, behind) = rest.split_at(length);
        input = behind;
        let size = (RECORD_HEADER_BYTES + length).next_multiple_of(8);
        let Some(place) = segment.get_mut(at..at + size) else {
            return;
        };
        if step & 0x7f != 0 {
            group += u64::from(step & 0x7f);
            group_start = at;
        }
        place.fill(0);
        place[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        place[8] = *kind;
        place[12..16].copy_from_slice(&(group_start as u32).to_le_bytes());
        place[16..24].copy_from_slice(&group.to_le_bytes());
        place[24..24 + length].copy_from_slice(content);
        // The seed is the sequence of the segment.
        let sum = crc32c::crc32c_append(1, &place[4..]);
        let sum = if step & 0x80 == 0 { sum } else { !sum };
        place[..4].copy_from_slice(&sum.to_le_bytes());
        at += size;
    }
}
