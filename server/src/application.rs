//! The state machine behind consensus: decodes committed commands, executes them, publishes.
//!
//! Runs on the apply thread only. What it publishes leaves in this order: storage, revision, watch
//! hub, leases, waiting requests; so a client that sees its put can read and watch it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use metastore_consensus::state_machine::{
    AppliedState, CommittedEntry, EntryPayload, LogPosition, Responder, SnapshotFiles,
    StateMachine, StateMachineError,
};
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::AlarmMember;
use metastore_proto::internal::{Command, MemberRecord, MembershipCommand, command::Request};
use metastore_store::engine::{EngineError, SharedEngine, Table};
use metastore_store::{
    Applier, CommandResponse, CommandResult, LeaseChange, ReadError, Reader, StoreCounters,
    StoreOptions,
};
use metastore_watch::{Hub, HubOptions};
use parking_lot::Mutex;
use prost::Message;

use crate::alarms::Alarms;
use crate::applied_position;
use crate::auth::{AuthApplied, AuthBatch, AuthManager};
use crate::compaction::Compaction;
use crate::engines::EngineDirectory;
use crate::lease_manager::LeaseManager;
use crate::member_directory::{Directory, MemberDirectory};
use crate::observe::metrics::{self, METRICS};
use crate::slow_requests;
use crate::space::SpaceGauge;
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
    /// A command of users, roles and tokens.
    Auth(AuthApplied),
    /// A member change: the members after it.
    Members(Vec<MemberRecord>),
    /// An alarm request: the alarms that it was about.
    Alarms(Vec<AlarmMember>),
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
    /// Survives the replacement of the store by a snapshot.
    counters: Arc<StoreCounters>,
    /// Members by id, as of the last applied command.
    pub directory: Arc<MemberDirectory>,
    /// Forwarded requests that wait for their apply here.
    pub waiters: Arc<Waiters>,
    /// What is wrong with the cluster.
    pub alarms: Alarms,
    /// How much of the quota is used.
    pub space: SpaceGauge,
    /// A command that takes longer to execute is logged.
    warning_apply_duration: Duration,
    /// The watch hub.
    pub hub: Hub,
    /// Expiry of leases.
    pub leases: Arc<LeaseManager>,
    /// Users, roles and tokens.
    pub auth: AuthManager,
    /// Deletion of what compactions made dead.
    pub compaction: Compaction,
}

impl Application {
    /// Opens the state machine over the engine of `engines`.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part that the application owns from here on"
    )]
    pub fn open(
        member_id: u64,
        engines: EngineDirectory,
        waiters: Arc<Waiters>,
        leases: Arc<LeaseManager>,
        auth: AuthManager,
        hub_options: HubOptions,
        space: SpaceGauge,
        warning_apply_duration: Duration,
    ) -> Result<Self, EngineError> {
        let engine = engines.open()?;
        let snapshot = engines.newest_snapshot()?;
        let counters = Arc::default();
        let (applier, reader) = open_store(engine, &counters)?;
        let applied = read_applied_from(&reader)?;
        leases.load(&reader)?;
        space.set(reader.logical_bytes());
        auth.load(&reader)?;
        Ok(Self {
            member_id,
            directory: Arc::new(MemberDirectory::new(Directory::load(&reader)?)),
            applier: Mutex::new(applier),
            alarms: Alarms::load(&reader)?,
            space,
            warning_apply_duration,
            hub: Hub::new(reader.clone(), hub_options),
            reader: ArcSwap::from_pointee(reader),
            applied: ArcSwap::from_pointee(applied),
            engines,
            snapshot: Mutex::new(snapshot),
            counters,
            waiters,
            leases,
            auth,
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

    /// Brings the gauge of the quota up to date; after a change of the logical size.
    pub fn note_size(&self) {
        self.space.set(self.reader.load().logical_bytes());
    }

    fn execute(
        &self,
        applier: &mut Applier,
        auth: &mut AuthBatch,
        command: Command,
        position: LogPosition,
    ) -> Result<Applied, EngineError> {
        if let Some(request) = &command.request
            && let Some(refusal) = self.alarms.refusal(request)
        {
            return Ok(Err(refusal));
        }
        match auth.check(applier, &command) {
            Ok(()) => {}
            Err(ReadError::Etcd(error)) => return Ok(Err(error)),
            Err(ReadError::Engine(error)) => return Err(error),
        }
        if let Some(request) = &command.request
            && let Some(applied) = auth.apply(applier, request, position.index)
        {
            return Ok(applied.map(Response::Auth));
        }
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
            Some(Request::Alarm(request)) => {
                Ok(Response::Alarms(self.alarms.apply(applier, &request)))
            }
            Some(Request::DowngradeInfoSet(set)) => {
                self.directory.apply_downgrade(applier, set);
                Ok(Response::Done)
            }
            None => Ok(Response::Done),
            Some(_) => self
                .execute_store(applier, &command, position.term)?
                .map(Response::Store),
        };
        Ok(result)
    }

    fn execute_store(
        &self,
        applier: &mut Applier,
        command: &Command,
        term: u64,
    ) -> Result<CommandResult, EngineError> {
        let started = Instant::now();
        let result = applier.execute(command, term)?;
        let took = started.elapsed();
        if took > self.warning_apply_duration {
            let expected = self.warning_apply_duration;
            slow_requests::warn_of_command(took, expected, command, &result);
        }
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
        let mut memberships = memberships.into_iter();
        let mut rest = decoded;
        while !rest.is_empty() {
            let after = rest.split_off(batch_len(&rest));
            self.apply_batch(rest, &mut memberships)?;
            rest = after;
        }
        Ok(())
    }

    /// Applies entries as one change of the store.
    fn apply_batch(
        &self,
        decoded: Vec<DecodedEntry>,
        memberships: &mut impl Iterator<Item = Bytes>,
    ) -> Result<(), EngineError> {
        METRICS.apply_batch_entries.observe(decoded.len() as f64);
        let mut changes = Vec::new();
        let mut last_compaction = self.reader().compact_revision();
        let mut applier = self.applier.lock();
        applier.prefetch(decoded.iter().filter_map(|(_, payload, _)| match payload {
            Decoded::Command(command) => Some(command),
            _ => None,
        }))?;

        let mut state = AppliedState::clone(&self.applied.load());
        let mut pending = Vec::with_capacity(decoded.len());
        let mut compacted = false;
        let mut before = Instant::now();
        let mut auth = self.auth.begin();
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
                Decoded::Command(command) => {
                    let (origin, request_id) = (command.origin_member, command.request_id);
                    let kind = command.request.as_ref().map(metrics::request_kind);
                    let applied = self.execute(&mut applier, &mut auth, command, position)?;
                    observe_apply(kind, &applied, &mut before);
                    (origin, request_id, applied)
                }
                Decoded::Membership(command) => {
                    state.membership = memberships
                        .next()
                        .expect("consensus passes one encoding for each membership entry");
                    let (origin, request_id) = (command.origin_member, command.request_id);
                    let members = self.directory.apply_membership(&mut applier, command);
                    // Consensus gives up on a change that takes long; who asked for it here does not.
                    if responder.is_some() && origin == self.member_id {
                        changes.push((request_id, members.clone()));
                    }
                    (origin, request_id, members.map(Response::Members))
                }
            };
            if matches!(applied, Ok(Response::Store(CommandResponse::Compaction(_)))) {
                compacted = true;
                let revision = applier.compact_revision();
                self.compaction.announce(last_compaction, revision);
                last_compaction = revision;
            }
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
        let started = Instant::now();
        let committed = applier.commit()?;
        drop(applier);
        METRICS
            .engine_commit
            .observe(started.elapsed().as_secs_f64());

        self.auth.publish(auth);
        self.applied.store(Arc::new(state));
        self.note_size();
        let grew = !committed.events.is_empty() || !committed.lease_changes.is_empty();
        if grew && !self.alarms.is_full() {
            self.space.report_if_overfull();
        }
        self.leases.apply(&committed.lease_changes);
        count_leases(&committed.lease_changes);
        self.hub.publish(committed.events, committed.revision);
        if compacted {
            self.compaction.wake();
        }
        for (request_id, members) in changes {
            self.waiters
                .complete(request_id, members.map(Response::Members));
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
        let started = Instant::now();
        // Apply goes on meanwhile; the copy itself says how far it reaches.
        let unfinished = self.engines.new_snapshot_directory()?;
        let stored = engine.checkpoint(&unfinished, Table::Meta, APPLIED_KEY)?;
        METRICS
            .snapshot_flush
            .observe(started.elapsed().as_secs_f64());
        let applied = decode_applied(stored)?;
        let directory = self.engines.complete_snapshot(&unfinished, &applied)?;
        METRICS
            .snapshot_save
            .observe(started.elapsed().as_secs_f64());
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
        let (new_applier, new_reader) = open_store(engine, &self.counters)?;
        let applied = read_applied_from(&new_reader)?;
        self.directory.replace(Directory::load(&new_reader)?);
        self.leases.load(&new_reader)?;
        self.alarms.reload(&new_reader)?;
        self.auth.load(&new_reader)?;
        *applier = new_applier;
        self.reader.store(Arc::new(new_reader.clone()));
        self.note_size();
        self.applied.store(Arc::new(applied));
        self.hub.replace_reader(new_reader);
        Ok(())
    }
}

/// Notes how long a command took. One look at the clock serves as the end of one command and as the
/// begin of the next.
fn observe_apply(kind: Option<usize>, applied: &Applied, before: &mut Instant) {
    let now = Instant::now();
    let took = now - std::mem::replace(before, now);
    if let Some(kind) = kind {
        let success = matches!(applied, Ok(_) | Err(EtcdError::Compacted));
        METRICS
            .apply_duration
            .observe(kind, success, took.as_secs_f64());
    }
}

fn count_leases(changes: &[LeaseChange]) {
    for change in changes {
        match change {
            LeaseChange::Granted { ttl, .. } => {
                METRICS.leases_granted.inc();
                METRICS.lease_ttl.observe(*ttl as f64);
            }
            LeaseChange::Revoked { .. } => METRICS.leases_revoked.inc(),
            LeaseChange::Checkpointed { .. } => {}
        }
    }
}

/// A committed entry, decoded.
type DecodedEntry = (LogPosition, Decoded, Option<Responder>);

/// How many of the entries may be published at one time.
///
/// A change of users and roles goes alone: readers look at users and at keys one after the other, and
/// must not see one of before the change with the other of after it.
fn batch_len(entries: &[DecodedEntry]) -> usize {
    let changes_users = |(_, payload, _): &DecodedEntry| match payload {
        Decoded::Command(command) => command
            .request
            .as_ref()
            .is_some_and(metastore_auth::changes_users),
        _ => false,
    };
    match entries.iter().position(changes_users) {
        Some(0) => 1,
        Some(before) => before,
        None => entries.len(),
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

fn open_store(
    engine: SharedEngine,
    counters: &Arc<StoreCounters>,
) -> Result<(Applier, Reader), EngineError> {
    let options = StoreOptions {
        counters: Arc::clone(counters),
        ..StoreOptions::default()
    };
    metastore_store::open(engine, options)
}

pub(crate) fn read_applied_from(reader: &Reader) -> Result<AppliedState, EngineError> {
    decode_applied(reader.get_row(Table::Meta, APPLIED_KEY)?)
}

fn decode_applied(stored: Option<Bytes>) -> Result<AppliedState, EngineError> {
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
        let started = Instant::now();
        METRICS.snapshot_apply_in_progress.set(1);
        let result = self.install(directory, &applied);
        METRICS.snapshot_apply_in_progress.set(0);
        result.map_err(fatal)?;
        METRICS
            .received_snapshot_install
            .observe(started.elapsed().as_secs_f64());
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
