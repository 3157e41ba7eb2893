//! openraft's own suite for storage, on our log and a toy state machine.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use metastore_raft_log::{Completion, LogEntry, LogPosition, LogState, RaftLog};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::cluster::{Told, open_log};
use super::toy::Toy;
use crate::apply::{AppliedClock, FatalReporter, StateMachineAdapter};
use crate::counters::Counters;
use crate::entry_log::EntryLog;
use crate::log_adapter::LogAdapter;
use crate::raft_types::TypeConfig;

/// The suite begins some logs at index 1 or above, which openraft itself never does: it asks for
/// entry 0 and is content with what follows.
struct MayBeginAnywhere(RaftLog);

impl EntryLog for MayBeginAnywhere {
    fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        EntryLog::read(&self.0, from, to, max_bytes).or_else(|error| {
            if from == 0 && to > 1 {
                EntryLog::read(&self.0, 1, to, max_bytes)
            } else {
                Err(error)
            }
        })
    }

    fn state(&self) -> LogState {
        self.0.state()
    }

    fn append(&self, entries: Vec<LogEntry>, done: Completion) {
        if let (None, Some(first)) = (self.0.state().last, entries.first())
            && first.index > 1
        {
            let before = LogPosition {
                term: first.term,
                index: first.index - 1,
            };
            self.0.purge(before, Box::new(|result| result.unwrap()));
        }
        self.0.append(entries, done);
    }

    fn save_vote(&self, vote: Bytes, done: Completion) {
        self.0.save_vote(vote, done);
    }

    fn save_committed(&self, committed: LogPosition) {
        self.0.save_committed(committed);
    }

    fn truncate_after(&self, last_kept: Option<LogPosition>, done: Completion) {
        self.0.truncate_after(last_kept, done);
    }

    fn purge(&self, up_to: LogPosition, done: Completion) {
        self.0.purge(up_to, done);
    }

    fn close(&self) {
        self.0.close();
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, LogAdapter, StateMachineAdapter, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogAdapter, StateMachineAdapter), StorageError<TypeConfig>>
    {
        let directory = tempfile::tempdir().unwrap();
        let counters = Arc::new(Counters::default());
        let log = MayBeginAnywhere(open_log(&directory.path().join("log"), 1));
        let toy = Toy::open(&directory.path().join("toy"));
        // The suite applies what comes to its mind.
        toy.gaps_allowed.store(true, Ordering::Relaxed);
        let (adapter, _thread) = StateMachineAdapter::with_thread(
            Arc::new(toy),
            Arc::new(AppliedClock::default()),
            Arc::new(FatalReporter::new(Arc::new(Told::default()))),
            counters.clone(),
        )
        .unwrap();
        Ok((directory, LogAdapter::new(Arc::new(log), counters), adapter))
    }
}

#[test]
fn the_log_and_the_state_machine_adapter_pass_openrafts_suite() {
    tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(Suite::test_all(Builder))
        .unwrap();
}
