//! The state machine behind consensus: decodes committed commands, executes them, publishes.
//!
//! Runs on the apply thread only. What it publishes leaves in this order: storage, revision, watch
//! hub, leases, waiting requests; so a client that sees its put can read and watch it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use metastore_consensus::state_machine::{
    AppliedState, CommittedEntry, EntryPayload, Responder, SnapshotFiles, StateMachine,
    StateMachineError,
};
use metastore_proto::error_text::EtcdError;
use metastore_proto::internal::{Command, MemberRecord, MembershipCommand, command::Request};
use metastore_store::engine::{EngineError, SharedEngine, Table};
use metastore_store::{Applier, CommandResponse, Reader, StoreOptions};
use metastore_watch::{Hub, HubOptions};
use parking_lot::Mutex;
use prost::Message;

use crate::applied_position;
use crate::compaction::Compaction;
use crate::engines::EngineDirectory;
use crate::lease_manager::LeaseManager;
use crate::member_directory::{Directory, MemberDirectory};
use crate::waiters::Waiters;

/// Where the applied position stands in [`Table::Meta`].
pub(crate) const APPLIED_KEY: &[u8] = b"server/applied";

/// What applying one command answered.
pub type Applied = Result<Response, EtcdError>;

/// The answer to an applied command.
#[derive(Clone, Debug)]
pub enum Response {
    /// A key-value or lease command.
    Store(CommandResponse),
    /// A member change: the members after it.
    Members(Vec<MemberRecord>),
    /// A command without an answer of its own.
    Done,
}

/// The state machine of a member.
pub struct Application {
    member_id: u64,
    applier: Mutex<Applier>,
    reader: ArcSwap<Reader>,
    applied: ArcSwap<AppliedState>,
    engines: EngineDirectory,
    snapshot: Mutex<Option<SnapshotFiles>>,
    /// Members by id, as of the last applied command.
    pub directory: Arc<MemberDirectory>,
    /// Forwarded requests that wait for their apply here.
    pub waiters: Arc<Waiters>,
    /// The watch hub.
    pub hub: Hub,
    /// Expiry of leases.
    pub leases: Arc<LeaseManager>,
    /// Deletion of what compactions made dead.
    pub compaction: Compaction,
}

impl Application {
    /// Opens the state machine over the engine of `engines`.
    pub fn open(
        member_id: u64,
        engines: EngineDirectory,
        waiters: Arc<Waiters>,
        leases: Arc<LeaseManager>,
        hub_options: HubOptions,
    ) -> Result<Self, EngineError> {
        let engine = engines.open()?;
        let snapshot = engines.newest_snapshot()?;
        let (applier, reader) = open_store(engine)?;
        let applied = read_applied_from(&reader)?;
        leases.load(&reader)?;
        Ok(Self {
            member_id,
            directory: Arc::new(MemberDirectory::new(Directory::load(&reader)?)),
            applier: Mutex::new(applier),
            hub: Hub::new(reader.clone(), hub_options),
            reader: ArcSwap::from_pointee(reader),
            applied: ArcSwap::from_pointee(applied),
            engines,
            snapshot: Mutex::new(snapshot),
            waiters,
            leases,
            compaction: Compaction::default(),
        })
    }

    /// Reads of the published state.
    pub fn reader(&self) -> Arc<Reader> {
        self.reader.load_full()
    }

    /// The index of the last applied entry as Status shows it; openraft counts from 0, etcd from 1.
    pub fn applied_index(&self) -> u64 {
        self.applied
            .load()
            .position
            .map_or(0, |position| position.index + 1)
    }

    fn execute(
        &self,
        applier: &mut Applier,
        command: Command,
        term: u64,
    ) -> Result<Applied, EngineError> {
        let result = match command.request {
            Some(Request::MemberPublish(publish)) => {
                self.directory.apply_publish(applier, publish);
                Ok(Response::Done)
            }
            Some(Request::MemberUpdate(update)) => self
                .directory
                .apply_update(applier, update)
                .map(Response::Members),
            Some(Request::ClusterVersionSet(set)) => {
                self.directory.apply_cluster_version(applier, set.version);
                Ok(Response::Done)
            }
            Some(Request::Bootstrap(bootstrap)) => {
                self.directory.apply_bootstrap(applier, bootstrap);
                Ok(Response::Done)
            }
            // Alarms come with a later issue; an entry of one can only be of a newer version.
            Some(Request::Alarm(_)) | None => Ok(Response::Done),
            Some(_) => applier.execute(&command, term)?.map(Response::Store),
        };
        Ok(result)
    }
}

struct Pending {
    responder: Option<Responder>,
    forwarded: Option<u64>,
    applied: Applied,
}

impl Application {
    fn apply_entries(
        &self,
        entries: Vec<CommittedEntry>,
        memberships: Vec<Bytes>,
    ) -> Result<(), EngineError> {
        let mut decoded = Vec::with_capacity(entries.len());
        for entry in entries {
            let payload = match entry.payload {
                EntryPayload::Blank => Decoded::Blank,
                EntryPayload::Command(bytes) => {
                    Decoded::Command(Command::decode(bytes).map_err(|error| damaged(&error))?)
                }
                EntryPayload::Membership(bytes) => Decoded::Membership(
                    MembershipCommand::decode(bytes).map_err(|error| damaged(&error))?,
                ),
            };
            decoded.push((entry.position, payload, entry.responder));
        }

        let mut applier = self.applier.lock();
        applier.prefetch(decoded.iter().filter_map(|(_, payload, _)| match payload {
            Decoded::Command(command) => Some(command),
            _ => None,
        }))?;

        let mut state = AppliedState::clone(&self.applied.load());
        let mut memberships = memberships.into_iter();
        let mut pending = Vec::with_capacity(decoded.len());
        let mut compacted = false;
        for (position, payload, responder) in decoded {
            assert!(
                state
                    .position
                    .is_none_or(|applied| applied.index + 1 == position.index),
                "entry {position:?} does not follow the applied {:?}: the log and the state \
                 machine of this member are out of step",
                state.position
            );
            state.position = Some(position);
            let (origin, request_id, applied) = match payload {
                Decoded::Blank => (0, 0, Ok(Response::Done)),
                Decoded::Command(command) => (
                    command.origin_member,
                    command.request_id,
                    self.execute(&mut applier, command, position.term)?,
                ),
                Decoded::Membership(command) => {
                    state.membership = memberships
                        .next()
                        .expect("consensus passes one encoding for each membership entry");
                    (
                        command.origin_member,
                        command.request_id,
                        self.directory
                            .apply_membership(&mut applier, command)
                            .map(Response::Members),
                    )
                }
            };
            compacted |= matches!(applied, Ok(Response::Store(CommandResponse::Compaction(_))));
            let forwarded = (responder.is_none() && origin == self.member_id).then_some(request_id);
            if responder.is_some() || forwarded.is_some() {
                pending.push(Pending {
                    responder,
                    forwarded,
                    applied,
                });
            }
        }

        applier.put_row(
            Table::Meta,
            Bytes::from_static(APPLIED_KEY),
            applied_position::encode(&state),
        );
        let committed = applier.commit()?;
        drop(applier);

        self.applied.store(Arc::new(state));
        self.leases.apply(&committed.lease_changes);
        self.hub.publish(committed.events, committed.revision);
        if compacted {
            self.compaction.wake();
        }
        for Pending {
            responder,
            forwarded,
            applied,
        } in pending
        {
            if let Some(responder) = responder {
                responder(Box::new(applied));
            } else if let Some(request_id) = forwarded {
                self.waiters.complete(request_id, applied);
            }
        }
        Ok(())
    }

    fn build(&self) -> Result<SnapshotFiles, EngineError> {
        let engine = self.reader().engine();
        // Most of the work happens here, while apply goes on; what is left for the lock is small.
        engine.flush()?;
        let applier = self.applier.lock();
        let applied = AppliedState::clone(&self.applied.load());
        let index = applied.position.map_or(0, |position| position.index);
        let directory = self.engines.new_snapshot_directory(index)?;
        engine.checkpoint(&directory)?;
        drop(applier);
        self.engines.complete_snapshot(&directory, &applied)?;
        let files = SnapshotFiles { applied, directory };
        let previous = self.snapshot.lock().replace(files.clone());
        if let Some(previous) = previous
            && previous.directory != files.directory
        {
            self.engines.retire_snapshot(&previous.directory);
        }
        Ok(files)
    }

    fn install(&self, directory: &Path, applied: &AppliedState) -> Result<(), EngineError> {
        let mut applier = self.applier.lock();
        let engine = self.engines.install(directory, applied)?;
        let (new_applier, new_reader) = open_store(engine)?;
        let applied = read_applied_from(&new_reader)?;
        self.directory.replace(Directory::load(&new_reader)?);
        self.leases.load(&new_reader)?;
        *applier = new_applier;
        self.reader.store(Arc::new(new_reader.clone()));
        self.applied.store(Arc::new(applied));
        self.hub.replace_reader(new_reader);
        Ok(())
    }
}

enum Decoded {
    Blank,
    Command(Command),
    Membership(MembershipCommand),
}

fn damaged(error: &prost::DecodeError) -> EngineError {
    EngineError::Storage(format!(
        "a committed log entry cannot be decoded ({error}): it was written by a newer version or \
         damaged; start the newer version, or restore this member from a snapshot"
    ))
}

fn open_store(engine: SharedEngine) -> Result<(Applier, Reader), EngineError> {
    metastore_store::open(engine, StoreOptions::default())
}

pub(crate) fn read_applied_from(reader: &Reader) -> Result<AppliedState, EngineError> {
    let stored = reader.get_row(Table::Meta, APPLIED_KEY)?;
    applied_position::decode(stored.unwrap_or_default()).map_err(|error| {
        EngineError::Storage(format!(
            "the stored applied position is damaged ({error}): restore this member from a snapshot"
        ))
    })
}

fn fatal(error: EngineError) -> StateMachineError {
    StateMachineError(error.to_string())
}

impl StateMachine for Application {
    fn applied(&self) -> AppliedState {
        AppliedState::clone(&self.applied.load())
    }

    fn apply(
        &self,
        entries: Vec<CommittedEntry>,
        memberships: Vec<Bytes>,
    ) -> Result<(), StateMachineError> {
        self.apply_entries(entries, memberships).map_err(fatal)
    }

    fn build_snapshot(&self) -> Result<SnapshotFiles, StateMachineError> {
        self.build().map_err(fatal)
    }

    fn current_snapshot(&self) -> Option<SnapshotFiles> {
        self.snapshot.lock().clone()
    }

    fn incoming_directory(&self) -> Result<PathBuf, StateMachineError> {
        self.engines.incoming_directory().map_err(fatal)
    }

    fn install_snapshot(
        &self,
        directory: &Path,
        applied: AppliedState,
    ) -> Result<(), StateMachineError> {
        self.install(directory, &applied).map_err(fatal)?;
        let installed = self.applied();
        assert!(
            installed.position == applied.position,
            "the installed snapshot holds {:?}, but its sender said {:?}",
            installed.position,
            applied.position
        );
        Ok(())
    }
}
