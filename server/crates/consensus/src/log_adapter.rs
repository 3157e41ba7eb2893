//! The log as openraft sees it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::Stream;
use metastore_raft_log as raft_log;
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use prost::Message;
use tokio::sync::oneshot;

use crate::counters::Counters;
use crate::entry_log::EntryLog;
use crate::raft_types::{
    Entry, LogId, Payload, RaftVote, TypeConfig, log_id, vote_from_message, vote_to_message,
};

/// Most bytes of entries in one message to a follower and in one read for apply; etcd's limit.
/// An entry that is larger travels alone.
pub(crate) const READ_BYTES_MAX: usize = 1024 * 1024;
/// Most entries in one read for apply.
const READ_ENTRIES_MAX: u64 = 256;

/// openraft's view of an [`EntryLog`]; cheap to clone.
#[derive(Clone)]
pub(crate) struct LogAdapter {
    log: Arc<dyn EntryLog>,
    counters: Arc<Counters>,
}

impl LogAdapter {
    pub(crate) fn new(log: Arc<dyn EntryLog>, counters: Arc<Counters>) -> Self {
        Self { log, counters }
    }

    /// As many entries of `[from, to)` as fit, at least one if there is one.
    fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        self.log
            .read(from, to, max_bytes)?
            .into_iter()
            .map(|entry| {
                let payload = Payload::decode(entry.payload).map_err(|error| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("entry {} of the log: {error}", entry.index),
                    )
                })?;
                Ok(Entry::new(log_id(entry.term, entry.index), payload))
            })
            .collect()
    }

    /// The part of `range` that the log has, as `[from, to)`.
    fn clip<RB: RangeBounds<u64>>(&self, range: &RB) -> (u64, u64) {
        let from = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let state = self.log.state();
        let first = state.purged.map_or(0, |purged| purged.index + 1);
        let end = state.last.map_or(0, |last| last.index + 1);
        (from.max(first), to.min(end))
    }

    fn stored_vote(&self) -> io::Result<Option<RaftVote>> {
        let Some(encoded) = self.log.state().vote else {
            return Ok(None);
        };
        let message = metastore_proto::peer::Vote::decode(encoded)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Some(vote_from_message(message)))
    }
}

impl RaftLogReader<TypeConfig> for LogAdapter {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (mut from, to) = self.clip(&range);
        let mut entries = Vec::new();
        while from < to {
            let part = self.read(from, to, usize::MAX)?;
            from = next_after(&part, from);
            entries.extend(part);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        self.stored_vote()
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        // Not clipped at the front: openraft asks for entries that the log must have, and an answer
        // that begins later would be taken for a purged log.
        self.read(start, end, READ_BYTES_MAX)
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (mut from, to) = self.clip(&range);
        let log = self.clone();
        async_stream::stream! {
            while from < to {
                match log.read(from, to.min(from + READ_ENTRIES_MAX), READ_BYTES_MAX) {
                    Ok(part) => {
                        from = next_after(&part, from);
                        for entry in part {
                            yield Ok(entry);
                        }
                    }
                    Err(error) => {
                        yield Err(error);
                        return;
                    }
                }
            }
        }
    }
}

/// Index behind a part of the log that was read from `from` on.
fn next_after(part: &[Entry], from: u64) -> u64 {
    let last = part.last();
    last.unwrap_or_else(|| panic!("the log has entry {from} but does not return it"))
        .log_id
        .index
        + 1
}

/// A completion and the future that waits for it.
fn completion() -> (raft_log::Completion, impl Future<Output = io::Result<()>>) {
    let (sender, receiver) = oneshot::channel();
    let done: raft_log::Completion = Box::new(move |result| {
        // Nobody waits any more only when the core has stopped.
        let _ = sender.send(result);
    });
    (done, async move {
        receiver
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the log has stopped")))
    })
}

fn log_position(log_id: LogId) -> raft_log::LogPosition {
    raft_log::LogPosition {
        term: log_id.leader_id.term,
        index: log_id.index,
    }
}

impl RaftLogStorage<TypeConfig> for LogAdapter {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.log.state();
        let to_log_id = |position: raft_log::LogPosition| log_id(position.term, position.index);
        Ok(LogState {
            last_purged_log_id: state.purged.map(to_log_id),
            last_log_id: state.last.map(to_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        let (done, saved) = completion();
        self.log
            .save_vote(vote_to_message(vote).encode_to_vec().into(), done);
        saved.await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.log.save_committed(log_position(committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let state = self.log.state();
        // The hint is written without a sync and apart from the entries, so it may name an entry
        // that did not survive.
        let last = state.last.map(|last| last.index);
        Ok(state
            .committed
            .filter(|committed| Some(committed.index) <= last)
            .map(|committed| log_id(committed.term, committed.index)))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<raft_log::LogEntry> = entries
            .into_iter()
            .map(|entry| raft_log::LogEntry {
                index: entry.log_id.index,
                term: entry.log_id.leader_id.term,
                payload: entry.payload.encoded().clone(),
            })
            .collect();
        self.counters
            .entries_appended
            .fetch_add(entries.len() as u64, Ordering::Relaxed);
        self.log.append(
            entries,
            Box::new(move |result| callback.io_completed(result)),
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let (done, truncated) = completion();
        self.log.truncate_after(last_log_id.map(log_position), done);
        truncated.await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        // Not awaited, so that the core does not stand still for a sync that nobody needs: purges
        // are ordered with the other writes, and a log that failed says so at the next append.
        self.log.purge(
            log_position(log_id),
            Box::new(|result| {
                if let Err(error) = result {
                    tracing::error!(%error, "cannot purge the log");
                }
            }),
        );
        Ok(())
    }
}
