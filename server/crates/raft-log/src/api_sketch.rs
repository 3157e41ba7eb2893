//! The surface that `consensus` codes against (to be split into modules by the author).
#![allow(missing_docs)]
use bytes::Bytes;

/// One entry of the log. The payload is opaque to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    pub index: u64,
    pub term: u64,
    pub payload: Bytes,
}

/// Position of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    pub term: u64,
    pub index: u64,
}

/// What the log holds; a cheap copy of the in-memory state.
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

/// Called exactly once, on the writer thread, after everything up to and including the request is
/// durable (Ok) or the log has failed for good (Err).
pub type Completion = Box<dyn FnOnce(std::io::Result<()>) + Send>;

/*
impl RaftLog {   // Clone, Send + Sync: a handle; the writer thread ends when the last handle drops
    pub fn open(disk: Arc<dyn Disk>, directory: &Path, identity: LogIdentity{cluster_id, member_id}, options: LogOptions) -> Result<RaftLog, LogError>;
    pub fn state(&self) -> LogState;
    /// Entries become readable before this returns; `done` after fdatasync. Indexes must continue the log.
    pub fn append(&self, entries: Vec<LogEntry>, done: Completion);
    pub fn save_vote(&self, vote: Bytes, done: Completion);
    pub fn save_committed(&self, committed: LogPosition);           // unsynced hint, no completion
    pub fn truncate_after(&self, last_kept: Option<LogPosition>, done: Completion);
    pub fn purge(&self, up_to: LogPosition, done: Completion);      // may be beyond the last entry (snapshot install)
    /// Entries of [from, to), in order, stopping after max_bytes but never returning fewer than one when `from` exists.
    /// Err(Purged) when from <= purged, Err(Missing) when beyond the end. Reads the cache, then segment files.
    pub fn read(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<LogEntry>, LogError>;
    pub fn close(&self);  // flush + join
}
*/
