//! What consensus needs of a log.

use std::io;

use metastore_raft_log::{Completion, LogEntry, LogPosition, LogState, RaftLog};

/// An ordered, durable log of entries and votes; [`metastore_raft_log`] is the real one.
///
/// All writes, votes included, become durable in the order in which they were made.
pub trait EntryLog: Send + Sync + 'static {
    /// What the log holds, as an in-memory read.
    fn state(&self) -> LogState;
    /// Appends entries that continue the log. They can be read when this returns; `done` is called
    /// after the sync.
    fn append(&self, entries: Vec<LogEntry>, done: Completion);
    /// Saves a vote.
    fn save_vote(&self, vote: bytes::Bytes, done: Completion);
    /// Notes the committed position; need not be synced.
    fn save_committed(&self, committed: LogPosition);
    /// Drops the entries behind `last_kept`.
    fn truncate_after(&self, last_kept: Option<LogPosition>, done: Completion);
    /// Drops the entries up to `up_to`, which may be beyond the end of the log.
    fn purge(&self, up_to: LogPosition, done: Completion);
    /// Entries of `[from, to)` in order, stopping after `max_bytes` but never before the first.
    ///
    /// # Errors
    /// When one of them is not in the log or cannot be read.
    fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<LogEntry>>;
    /// Whether the caller of a write waits for the disk and runs its completion, which is cheaper
    /// than a thread of the log for a caller who has nothing else to do. Default: no effect.
    fn set_caller_writes(&self, _caller_writes: bool) {}
    /// Called once per heartbeat interval: writes what [`EntryLog::save_committed`] still holds
    /// back. Default: nothing to do.
    fn write_hints(&self) {}
    /// Flushes and ends the log's threads.
    fn close(&self);
}

impl EntryLog for RaftLog {
    fn state(&self) -> LogState {
        self.state()
    }

    fn append(&self, entries: Vec<LogEntry>, done: Completion) {
        self.append(entries, done);
    }

    fn save_vote(&self, vote: bytes::Bytes, done: Completion) {
        self.save_vote(vote, done);
    }

    fn save_committed(&self, committed: LogPosition) {
        self.save_committed(committed);
    }

    fn truncate_after(&self, last_kept: Option<LogPosition>, done: Completion) {
        self.truncate_after(last_kept, done);
    }

    fn purge(&self, up_to: LogPosition, done: Completion) {
        self.purge(up_to, done);
    }

    fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        self.read(from, to, max_bytes).map_err(io::Error::other)
    }

    fn set_caller_writes(&self, caller_writes: bool) {
        self.set_caller_writes(caller_writes);
    }

    fn write_hints(&self) {
        self.write_hints();
    }

    fn close(&self) {
        self.close();
    }
}
