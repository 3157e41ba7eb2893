//! The vocabulary of the log.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// One entry of the log. The payload is opaque to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Position in the log; each entry has the index of its predecessor plus one.
    pub index: u64,
    /// Term of the leader that made the entry.
    pub term: u64,
    /// What the entry carries.
    pub payload: Bytes,
}

impl LogEntry {
    /// Term and index of the entry.
    pub fn position(&self) -> LogPosition {
        LogPosition {
            term: self.term,
            index: self.index,
        }
    }
}

/// Position of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// Term of the leader that made the entry.
    pub term: u64,
    /// Index of the entry.
    pub index: u64,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "index {} of term {}", self.index, self.term)
    }
}

/// What the log holds; a cheap copy of the in-memory state.
///
/// It changes when a request is made, before the request is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Last entry that was purged; None: nothing was.
    pub purged: Option<LogPosition>,
    /// Last entry in the log (or `purged` when the log is empty).
    pub last: Option<LogPosition>,
    /// Last saved vote, opaque bytes.
    pub vote: Option<Bytes>,
    /// Last saved committed hint.
    pub committed: Option<LogPosition>,
}

impl LogState {
    /// Index of the first entry that may still be read.
    pub(crate) fn first_live(&self) -> u64 {
        next_index(self.purged).unwrap_or(0)
    }
}

/// Index that follows a position; None when the log never held an entry, so that the first entry
/// may be 0 or 1.
pub(crate) fn next_index(last: Option<LogPosition>) -> Option<u64> {
    last.map(|position| position.index + 1)
}

/// Whether an entry with `index` may follow a log that ends at `last`.
pub(crate) fn may_follow(last: Option<LogPosition>, index: u64) -> bool {
    match next_index(last) {
        Some(next) => index == next,
        None => index <= 1,
    }
}

/// Called exactly once, after everything up to and including the request is durable (Ok) or the log
/// has failed for good (Err).
///
/// It runs on the writer thread, except when the request was refused at once: then it runs on the
/// caller's thread before the call returns. It must be short, and must not panic (the log fails then).
pub type Completion = Box<dyn FnOnce(std::io::Result<()>) + Send>;

/// Whose log it is. Opening another member's log is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// Id of the cluster.
    pub cluster_id: u64,
    /// Id of the member.
    pub member_id: u64,
}

/// What the writer reports about its work, for metrics. All methods do nothing by default.
///
/// Called on the writer thread between two writes, so they must be short.
pub trait Observer: Send + Sync {
    /// One group was written within `duration`: `bytes` with framing, `records` of all kinds
    /// (etcd: `etcd_disk_wal_write_duration_seconds`, `etcd_disk_wal_write_bytes_total`).
    fn written(&self, bytes: u64, records: u64, duration: Duration) {
        let _ = (bytes, records, duration);
    }

    /// One `fdatasync` of log data succeeded after `duration`
    /// (etcd: `etcd_disk_wal_fsync_duration_seconds`).
    fn synced(&self, duration: Duration) {
        let _ = duration;
    }

    /// A new segment was started.
    fn segment_started(&self, sequence: u64) {
        let _ = sequence;
    }
}

/// How the log uses files and memory.
#[derive(Clone)]
pub struct LogOptions {
    /// Size of a segment file in bytes. Default 64 MiB (as etcd). At least [`LogOptions::SEGMENT_BYTES_MIN`],
    /// below 4 GiB, a multiple of 512. It may change between two starts. An entry that does not fit
    /// gets a larger segment of its own.
    pub segment_bytes: u64,
    /// Memory for entries that are already in the files, in payload bytes plus a fixed cost for each
    /// entry. Default 8 MiB: enough for the entries that are not applied yet and for followers that
    /// keep up. 0: keep only what still waits to be written. Older entries are read from the files.
    pub cache_bytes: usize,
    /// Bytes that may wait for the disk. Default 512 MiB.
    ///
    /// The log never blocks its caller, so at this limit it can only fail for good: a disk that is
    /// this far behind has stopped working. Callers bound their own requests in flight well below it
    /// ([`RaftLog::queued_bytes`](crate::RaftLog::queued_bytes) tells how much waits).
    pub queue_bytes_max: usize,
    /// Skip every sync (etcd: `--unsafe-no-fsync`). Default false. A crash of the machine then loses
    /// acknowledged data.
    pub unsafe_no_sync: bool,
    /// Receives measurements. Default none.
    pub observer: Option<Arc<dyn Observer>>,
}

impl LogOptions {
    /// Smallest segment: room for the header, the state at its head, and a few records.
    pub const SEGMENT_BYTES_MIN: u64 = 16 * 1024;
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            cache_bytes: 8 * 1024 * 1024,
            queue_bytes_max: 512 * 1024 * 1024,
            unsafe_no_sync: false,
            observer: None,
        }
    }
}

impl fmt::Debug for LogOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            segment_bytes,
            cache_bytes,
            queue_bytes_max,
            unsafe_no_sync,
            observer,
        } = self;
        formatter
            .debug_struct("LogOptions")
            .field("segment_bytes", segment_bytes)
            .field("cache_bytes", cache_bytes)
            .field("queue_bytes_max", queue_bytes_max)
            .field("unsafe_no_sync", unsafe_no_sync)
            .field("observer", &observer.is_some())
            .finish()
    }
}
