//! Deleting what a compaction made dead.
//!
//! Going from compact revision C₀ to C₁ reads only the records in [C₀, C₁]: each one after C₀ makes
//! exactly its `previous` dead, and a tombstone below C₁ makes itself dead. A tombstone exactly at
//! C₁ stays until the next compaction, because a watch may start at C₁ and must see the deletion
//! (etcd #19179). Deletions ascend, so a dead record never outlives the one that made it dead.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use metastore_revision_model::{Revision, RevisionRecord};
use parking_lot::Mutex;

use crate::encoding;
use crate::engine::{EngineError, Table, WriteBatch};
use crate::shared::{COLLECTED_ROW, CollectedState, Shared};

/// Tombstone rows of `latest` that wait for the apply thread. Beyond it they stay in the table,
/// where they cost some bytes and scan time until the key is written again; nothing reads them.
const CANDIDATES_MAX: usize = 1 << 20;
/// Bytes of the keys of the candidates.
const CANDIDATE_BYTES_MAX: usize = 64 << 20;

/// What a record costs beside its pair: its key in `revisions`, the row in `latest`, and what an
/// engine adds to each. Only the sum matters: it is the size that quotas look at.
const RECORD_OVERHEAD_BYTES: i64 = 64;

/// The logical size of a record.
pub(crate) fn record_bytes(record: &RevisionRecord) -> i64 {
    record.key_value.0.len() as i64 + RECORD_OVERHEAD_BYTES
}

/// The compaction that is being worked on.
#[derive(Default)]
pub(crate) struct Garbage {
    window: Option<Window>,
}

struct Window {
    /// The finished compaction at its begin, C₀.
    from: i64,
    /// The compaction that it carries out, C₁.
    to: i64,
    /// The record at which the next step begins.
    next: Revision,
}

/// Keys whose tombstone is gone from the history. Only the apply thread may remove their rows of
/// `latest`: any other thread could race with a new write of the key and delete a live row.
#[derive(Default)]
pub(crate) struct Candidates {
    queue: Mutex<CandidateQueue>,
}

#[derive(Default)]
struct CandidateQueue {
    keys: VecDeque<(Bytes, Revision)>,
    bytes: usize,
}

impl Candidates {
    fn push(&self, candidates: Vec<(Bytes, Revision)>) {
        let mut queue = self.queue.lock();
        for (key, revision) in candidates {
            if queue.keys.len() == CANDIDATES_MAX || queue.bytes + key.len() > CANDIDATE_BYTES_MAX {
                return;
            }
            queue.bytes += key.len();
            queue.keys.push_back((key, revision));
        }
    }

    /// Takes the oldest candidates, at most `max`.
    pub fn take(&self, max: usize) -> Vec<(Bytes, Revision)> {
        let mut queue = self.queue.lock();
        let count = max.min(queue.keys.len());
        let taken: Vec<_> = queue.keys.drain(..count).collect();
        queue.bytes -= taken.iter().map(|(key, _)| key.len()).sum::<usize>();
        taken
    }
}

/// One step of at most `batch_revisions` records, of compactions up to `revision_max`. Returns whether
/// anything is left to do, also of later ones.
pub(crate) fn collect_step(
    shared: &Shared,
    batch_revisions: usize,
    revision_max: i64,
) -> Result<bool, EngineError> {
    let mut garbage = shared.garbage.lock();
    let finished = shared.finished_compact_revision.load(Ordering::Acquire);
    let window = match &mut garbage.window {
        Some(window) => window,
        None => {
            let to = shared.compact_revision().min(revision_max);
            if to <= finished {
                return Ok(shared.compact_revision() > finished);
            }
            garbage.window.insert(Window {
                from: finished,
                to,
                next: Revision::new(finished.max(0), 0),
            })
        }
    };
    let read = read_window(shared, window, batch_revisions.max(1))?;
    let last = read.next.is_none();
    let bytes_removed = shared.bytes_removed.load(Ordering::Relaxed) + read.bytes;
    let state = CollectedState {
        finished: if last { window.to } else { finished },
        bytes_removed,
    };
    let records = read.dead.len();
    if last || !read.dead.is_empty() {
        shared.engine.write(WriteBatch {
            delete_revisions: read.dead,
            rows: vec![(Table::Meta, COLLECTED_ROW, Some(state.encode()))],
            ..WriteBatch::default()
        })?;
        shared.bytes_removed.store(bytes_removed, Ordering::Relaxed);
        shared.counters.count_collected(records);
    }
    shared.candidates.push(read.candidates);
    match read.next {
        Some(next) => window.next = next,
        None => {
            garbage.window = None;
            shared
                .finished_compact_revision
                .store(state.finished, Ordering::Release);
        }
    }
    Ok(!last || shared.compact_revision() > state.finished)
}

/// What a step found.
#[derive(Default)]
struct ReadWindow {
    dead: Vec<(Revision, bool)>,
    bytes: i64,
    candidates: Vec<(Bytes, Revision)>,
    /// Where the next step begins; `None` at the end of the window.
    next: Option<Revision>,
}

fn read_window(
    shared: &Shared,
    window: &Window,
    records_max: usize,
) -> Result<ReadWindow, EngineError> {
    let mut read = ReadWindow::default();
    let mut superseded = Vec::new();
    let mut records = 0;
    let mut failure = None;
    let to = Revision::new(window.to, i64::MAX);
    shared
        .engine
        .scan_revisions(window.next, to, &mut |revision, tombstone, record| {
            if records == records_max {
                read.next = Some(revision);
                return ControlFlow::Break(());
            }
            records += 1;
            if tombstone && revision.main < window.to {
                match encoding::key(&record.key_value) {
                    Ok(key) => {
                        // The key must not keep the record's block or page alive in the queue.
                        let key = Bytes::copy_from_slice(&key);
                        read.candidates.push((key, revision));
                    }
                    Err(error) => {
                        failure = Some(error);
                        return ControlFlow::Break(());
                    }
                }
                read.bytes += record_bytes(&record);
                read.dead.push((revision, true));
            }
            if revision.main > window.from && !record.previous.is_none() {
                superseded.push(record.previous);
            }
            ControlFlow::Continue(())
        })?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    // Reading them again tells their size, and whether they are still there: after a crash a
    // window is worked through a second time.
    let found = shared.engine.multi_get_revisions(&superseded)?;
    for (revision, found) in superseded.into_iter().zip(found) {
        // Tombstones below the compact revision are deleted when the scan meets them.
        if let Some((false, record)) = found {
            read.bytes += record_bytes(&record);
            read.dead.push((revision, false));
        }
    }
    read.dead.sort_unstable();
    Ok(read)
}
