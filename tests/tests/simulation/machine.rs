//! The state machine of a simulated member: the store on the memory engine, and its watchers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use metastore_consensus::state_machine::{
    AppliedState, CommittedEntry, EntryPayload, Reply, SnapshotFiles, StateMachine,
    StateMachineError,
};
use metastore_proto::etcdserverpb::WatchCreateRequest;
use metastore_proto::internal::{Bootstrap, Command, MemberRecord, MembershipCommand};
use metastore_server::lease_manager::LeaseManager;
use metastore_server::member_directory::{Directory, MemberDirectory};
use metastore_store::engine::Table;
use metastore_store::{Applier, LeaseChange, MemoryEngine, Reader, StoreOptions};
use metastore_watch::{Hub, HubOptions, WatchOutput};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::mpsc;

use crate::leases::LeaseEnds;
use crate::member::{ELECTION_TIMEOUT, FIRST_MEMBERS};

/// What of a member's state machine survives the end of its process.
#[derive(Default)]
pub(crate) struct Kept {
    snapshot: Option<SnapshotFiles>,
    next_directory: u64,
    pub(crate) installed: u64,
}

/// The state machine of one process.
pub(crate) struct Machine {
    directory: PathBuf,
    kept: Arc<Mutex<Kept>>,
    state: Mutex<State>,
    /// The server's own list of members, replicated as in the server.
    pub(crate) members: MemberDirectory,
    /// The server's own judgement of who expires when.
    pub(crate) leases: LeaseManager,
    /// When leases ended, for whoever knows when they must not.
    ends: Arc<LeaseEnds>,
    hub: Hub,
}

struct State {
    applied: AppliedState,
    applier: Applier,
    reader: Reader,
}

/// Delivers all that can be delivered, as the hub's threads do in a real process.
fn settle(hub: &Hub) -> Result<(), StateMachineError> {
    while hub.dispatch_step().map_err(failed)? | hub.catch_up_step().map_err(failed)? {}
    Ok(())
}

fn failed(error: impl ToString) -> StateMachineError {
    StateMachineError(error.to_string())
}

fn open(engine: MemoryEngine) -> Result<(Applier, Reader), StateMachineError> {
    metastore_store::open(Arc::new(engine), StoreOptions::default()).map_err(failed)
}

impl Machine {
    /// The state of the last snapshot; the log has the rest.
    pub(crate) fn open(
        directory: PathBuf,
        kept: Arc<Mutex<Kept>>,
        ends: Arc<LeaseEnds>,
    ) -> Result<Self, StateMachineError> {
        let snapshot = kept.lock().snapshot.clone();
        let (engine, applied) = match snapshot {
            Some(files) => {
                let engine = MemoryEngine::open_checkpoint(&files.directory).map_err(failed)?;
                (engine, files.applied)
            }
            None => (MemoryEngine::new(), AppliedState::default()),
        };
        let (applier, reader) = open(engine)?;
        let hub = Hub::new(reader.clone(), HubOptions::default());
        let members = MemberDirectory::new(Directory::load(&reader).map_err(failed)?);
        let leases = LeaseManager::new(ELECTION_TIMEOUT, false);
        leases.load(&reader).map_err(failed)?;
        let state = Mutex::new(State {
            applied,
            applier,
            reader,
        });
        Ok(Self {
            directory,
            kept,
            state,
            members,
            leases,
            ends,
            hub,
        })
    }

    pub(crate) fn reader(&self) -> Reader {
        self.state.lock().reader.clone()
    }

    /// Starts to watch all keys with previous values, and sends every response.
    pub(crate) async fn watch(
        &self,
        start_revision: i64,
        seen: mpsc::UnboundedSender<WatchOutput>,
    ) {
        let mut stream = self.hub.open_stream();
        stream.create(&WatchCreateRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            start_revision,
            prev_kv: true,
            ..WatchCreateRequest::default()
        });
        loop {
            // The watcher is behind at first: nobody else would read the history for it.
            settle(&self.hub).expect("an engine in memory does not fail");
            let next = std::future::poll_fn(|context| stream.poll_next(context)).await;
            let Some(output) = next else { return };
            if seen.send(output).is_err() {
                return;
            }
        }
    }

    /// The first membership has no command: it is that of the members that form the cluster. Later ones
    /// without a command give votes to members that were added as voters.
    fn change_members(
        &self,
        applier: &mut Applier,
        command: Bytes,
    ) -> Result<(), StateMachineError> {
        if command.is_empty() && !self.members.current().members.is_empty() {
            return Ok(());
        }
        if command.is_empty() {
            let members = FIRST_MEMBERS.map(|id| MemberRecord {
                id,
                ..MemberRecord::default()
            });
            let bootstrap = Bootstrap {
                members: members.into(),
                ..Bootstrap::default()
            };
            self.members.apply_bootstrap(applier, bootstrap);
            return Ok(());
        }
        let command = MembershipCommand::decode(command).map_err(failed)?;
        let applied = self.members.apply_membership(applier, command);
        applied.map(|_| ()).map_err(failed)
    }

    fn fresh_directory(&self) -> PathBuf {
        let mut kept = self.kept.lock();
        kept.next_directory += 1;
        self.directory.join(kept.next_directory.to_string())
    }
}

impl StateMachine for Machine {
    fn applied(&self) -> AppliedState {
        self.state.lock().applied.clone()
    }

    fn apply(
        &self,
        entries: Vec<CommittedEntry>,
        memberships: Vec<Bytes>,
    ) -> Result<(), StateMachineError> {
        let mut state = self.state.lock();
        let mut memberships = memberships.into_iter();
        let mut answers: Vec<(_, Reply)> = Vec::new();
        for entry in entries {
            let next = state.applied.position.map_or(0, |before| before.index + 1);
            if entry.position.index != next {
                return Err(failed(format!(
                    "{:?} follows index {next} - 1",
                    entry.position
                )));
            }
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Command(bytes) => {
                    let command = Command::decode(bytes).map_err(failed)?;
                    let term = entry.position.term;
                    let result = state.applier.execute(&command, term).map_err(failed)?;
                    let responder = entry.responder;
                    answers.extend(responder.map(|responder| (responder, Box::new(result) as _)));
                }
                EntryPayload::Membership(command) => {
                    self.change_members(&mut state.applier, command)?;
                    let responder = entry.responder;
                    answers.extend(responder.map(|responder| (responder, Box::new(()) as _)));
                    let membership = memberships.next();
                    state.applied.membership =
                        membership.ok_or_else(|| failed("a membership is missing"))?;
                }
            }
            state.applied.position = Some(entry.position);
        }
        let committed = state.applier.commit().map_err(failed)?;
        self.leases.apply(&committed.lease_changes);
        for change in &committed.lease_changes {
            if let LeaseChange::Revoked { id } = change {
                self.ends.note(*id);
            }
        }
        drop(state);
        self.hub.publish(committed.events, committed.revision);
        settle(&self.hub)?;
        for (responder, result) in answers {
            responder(result);
        }
        Ok(())
    }

    fn build_snapshot(&self) -> Result<SnapshotFiles, StateMachineError> {
        let state = self.state.lock();
        let directory = self.fresh_directory();
        state
            .reader
            .engine()
            .checkpoint(&directory, Table::Meta, b"")
            .map_err(failed)?;
        let files = SnapshotFiles {
            applied: state.applied.clone(),
            directory,
        };
        self.kept.lock().snapshot = Some(files.clone());
        Ok(files)
    }

    fn current_snapshot(&self) -> Option<SnapshotFiles> {
        self.kept.lock().snapshot.clone()
    }

    fn incoming_directory(&self) -> Result<PathBuf, StateMachineError> {
        let directory = self.fresh_directory();
        std::fs::create_dir_all(&directory).map_err(failed)?;
        Ok(directory)
    }

    fn install_snapshot(
        &self,
        directory: &Path,
        applied: AppliedState,
    ) -> Result<(), StateMachineError> {
        // The transport cleans up what it received.
        let own = self.fresh_directory();
        std::fs::rename(directory, &own).map_err(failed)?;
        let engine = MemoryEngine::open_checkpoint(&own).map_err(failed)?;
        let (applier, reader) = open(engine)?;
        let members = Directory::load(&reader).map_err(failed)?;
        self.members.replace(members);
        self.leases.load(&reader).map_err(failed)?;
        let mut kept = self.kept.lock();
        kept.snapshot = Some(SnapshotFiles {
            applied: applied.clone(),
            directory: own,
        });
        kept.installed += 1;
        self.hub.replace_reader(reader.clone());
        *self.state.lock() = State {
            applied,
            applier,
            reader,
        };
        drop(kept);
        settle(&self.hub)
    }
}
