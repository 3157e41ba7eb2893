//! openraft's own suite for storage, on our log and a toy state machine.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::cluster::{Told, open_log};
use super::toy::Toy;
use crate::apply::{AppliedClock, FatalReporter, StateMachineAdapter};
use crate::counters::Counters;
use crate::log_adapter::LogAdapter;
use crate::raft_types::TypeConfig;

struct Builder;

impl StoreBuilder<TypeConfig, LogAdapter, StateMachineAdapter, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogAdapter, StateMachineAdapter), StorageError<TypeConfig>>
    {
        let directory = tempfile::tempdir().unwrap();
        let counters = Arc::new(Counters::default());
        let log = open_log(&directory.path().join("log"), 1);
        let (adapter, _thread) = StateMachineAdapter::with_thread(
            Arc::new(Toy::open(&directory.path().join("toy"))),
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
