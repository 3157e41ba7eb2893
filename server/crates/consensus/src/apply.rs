//! Drives the state machine: one OS thread that applies, installs and answers, in order.
//!
//! ```text
//! openraft's worker ── chunks ──> apply thread ── StateMachine::apply ── responders
//!        ^                              │
//!        └────────── done ──────────────┴── AppliedClock ──> readers that wait
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{
    ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta,
};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::completion::{self, Batch};
use crate::counters::Counters;
use crate::peers::PeerHandler;
use crate::raft_types::{
    LogId, Replied, StoredMembership, TypeConfig, decode_membership, encode_membership, position,
    position_to_log_id,
};
use crate::state_machine::{
    AppliedState, CommittedEntry, EntryPayload, LogPosition, Responder, SnapshotFiles,
    StateMachine, StateMachineError,
};

/// Most entries in one call of [`StateMachine::apply`]: readers and heartbeats wait for at most
/// one chunk.
const CHUNK_ENTRIES_MAX: usize = 256;
/// Bytes of payload at which a chunk is closed.
const CHUNK_BYTES_MAX: usize = 1024 * 1024;
/// Chunks read ahead of the apply thread.
const CHUNKS_IN_FLIGHT_MAX: usize = 4;
/// Most entries that the core's thread applies by itself when there are cores for both threads:
/// about the work that two changes of thread are worth.
const INLINE_ENTRIES_MAX: usize = 8;

/// Tells the owner once that this member cannot go on.
pub(crate) struct FatalReporter {
    handler: Arc<dyn PeerHandler>,
    reported: AtomicBool,
}

impl FatalReporter {
    pub(crate) fn new(handler: Arc<dyn PeerHandler>) -> Self {
        Self {
            handler,
            reported: AtomicBool::new(false),
        }
    }

    pub(crate) fn report(&self, message: String) {
        if !self.reported.swap(true, Ordering::AcqRel) {
            tracing::error!(message, "consensus cannot go on");
            self.handler.fatal(message);
        }
    }

    /// From here on an end of the core is what was asked for.
    pub(crate) fn disarm(&self) {
        self.reported.store(true, Ordering::Release);
    }
}

/// How far the state machine is, for readers that wait for it.
#[derive(Default)]
pub(crate) struct AppliedClock {
    term: AtomicU64,
    /// Index of the next entry to be applied; 0: nothing was applied.
    next: AtomicU64,
    /// Bytes of payload that were handed to the state machine since the start.
    payload_bytes: AtomicU64,
    waiting: AtomicUsize,
    waiters: Mutex<BTreeMap<(u64, u64), completion::Sender<()>>>,
    tickets: AtomicU64,
}

impl AppliedClock {
    /// Everything up to `position` can be read. Never goes back.
    pub(crate) fn publish(&self, position: LogPosition) {
        // Index before term: whoever reads a term sees at least its first applied index.
        self.next.fetch_max(position.index + 1, Ordering::SeqCst);
        self.term.fetch_max(position.term, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let ready = {
            let mut waiters = self.waiters.lock();
            let later = waiters.split_off(&(position.index + 1, 0));
            let ready = std::mem::replace(&mut *waiters, later);
            self.waiting.store(waiters.len(), Ordering::SeqCst);
            ready
        };
        let _batch = Batch::begin();
        for sender in ready.into_values() {
            sender.send(());
        }
    }

    /// Bytes of payload that were handed to the state machine since the start.
    pub(crate) fn payload_bytes(&self) -> u64 {
        self.payload_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn position(&self) -> Option<LogPosition> {
        let term = self.term.load(Ordering::SeqCst);
        let next = self.next.load(Ordering::SeqCst);
        next.checked_sub(1).map(|index| LogPosition { term, index })
    }

    pub(crate) fn index(&self) -> Option<u64> {
        self.next.load(Ordering::SeqCst).checked_sub(1)
    }

    /// Waits until the entry at `index` was applied; for ever when that does not happen.
    pub(crate) async fn wait(&self, index: u64) {
        if self.next.load(Ordering::SeqCst) > index {
            return;
        }
        let (sender, receiver) = completion::question();
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let key = (index, ticket);
        {
            let mut waiters = self.waiters.lock();
            waiters.insert(key, sender);
            self.waiting.store(waiters.len(), Ordering::SeqCst);
            // After the registration, so that either this sees the new index or the publisher
            // sees the waiter.
            if self.next.load(Ordering::SeqCst) > index {
                waiters.remove(&key);
                self.waiting.store(waiters.len(), Ordering::SeqCst);
                return;
            }
        }
        let _forget = Forget { clock: self, key };
        if receiver.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Removes a waiter that was answered or gave up.
struct Forget<'a> {
    clock: &'a AppliedClock,
    key: (u64, u64),
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut waiters = self.clock.waiters.lock();
        if waiters.remove(&self.key).is_some() {
            self.clock.waiting.store(waiters.len(), Ordering::SeqCst);
        }
    }
}

enum Job {
    Apply {
        entries: Vec<CommittedEntry>,
        memberships: Vec<Bytes>,
    },
    Install {
        directory: PathBuf,
        applied: AppliedState,
    },
}

type Done = oneshot::Sender<Result<(), StateMachineError>>;

/// Where jobs of the state machine run.
enum Execution {
    /// On an own OS thread, which ends when the last sender is dropped.
    Thread {
        jobs: mpsc::UnboundedSender<(Job, Done)>,
        /// Jobs that the thread has not finished.
        unfinished: Arc<AtomicUsize>,
        /// Whether the calling task may apply by itself, see [`StateMachineAdapter::alone`].
        alone: Arc<AtomicBool>,
        /// Most entries that the calling task applies by itself.
        inline_entries_max: usize,
    },
    /// In the calling task: a simulation has no threads.
    Inline,
}

impl Execution {
    /// Whether the calling task does this job. Jobs stay in order: it does none while the thread
    /// has one.
    fn is_inline(&self, job: &Job) -> bool {
        match (self, job) {
            (Self::Inline, _) => true,
            (
                Self::Thread {
                    unfinished,
                    alone,
                    inline_entries_max,
                    ..
                },
                Job::Apply { entries, .. },
            ) => {
                entries.len() <= *inline_entries_max
                    && alone.load(Ordering::Relaxed)
                    && unfinished.load(Ordering::Acquire) == 0
            }
            (Self::Thread { .. }, Job::Install { .. }) => false,
        }
    }
}

/// What the apply thread needs.
struct Applier {
    state_machine: Arc<dyn StateMachine>,
    clock: Arc<AppliedClock>,
    fatal: Arc<FatalReporter>,
}

impl Applier {
    fn run(&self, job: Job) -> Result<(), StateMachineError> {
        let _reporter = PanicReporter(self.fatal.clone());
        let result = match job {
            Job::Apply {
                entries,
                memberships,
            } => {
                let _batch = Batch::begin();
                let last = entries.last().map(|entry| entry.position);
                self.state_machine
                    .apply(entries, memberships)
                    .map(|()| last)
            }
            Job::Install { directory, applied } => {
                let last = applied.position;
                self.state_machine
                    .install_snapshot(&directory, applied)
                    .map(|()| last)
            }
        };
        match result {
            Ok(last) => {
                if let Some(last) = last {
                    self.clock.publish(last);
                }
                Ok(())
            }
            Err(error) => {
                self.fatal
                    .report(format!("the state machine failed: {error}"));
                Err(error)
            }
        }
    }
}

/// Reports a panic while applying: going on without it would be a silent divergence.
struct PanicReporter(Arc<FatalReporter>);

impl Drop for PanicReporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.report("the state machine panicked".into());
        }
    }
}

/// The state machine as openraft sees it.
pub(crate) struct StateMachineAdapter {
    state_machine: Arc<dyn StateMachine>,
    applier: Arc<Applier>,
    execution: Execution,
    counters: Arc<Counters>,
    building: Arc<AtomicBool>,
    alone: Arc<AtomicBool>,
}

impl StateMachineAdapter {
    /// An adapter with an own apply thread, whose handle is returned.
    pub(crate) fn with_thread(
        state_machine: Arc<dyn StateMachine>,
        clock: Arc<AppliedClock>,
        fatal: Arc<FatalReporter>,
        counters: Arc<Counters>,
    ) -> io::Result<(Self, std::thread::JoinHandle<()>)> {
        let mut adapter = Self::inline(state_machine, clock, fatal, counters);
        let (jobs, mut receiver) = mpsc::unbounded_channel::<(Job, Done)>();
        let unfinished = Arc::new(AtomicUsize::new(0));
        let applier = adapter.applier.clone();
        let thread = std::thread::Builder::new().name("apply".into()).spawn({
            let unfinished = unfinished.clone();
            move || {
                // Sleeps at once when there is nothing to do. Channels that spin before took 3 % of
                // the server's CPU from those who had something to do.
                while let Some((job, done)) = receiver.blocking_recv() {
                    let result = applier.run(job);
                    let failed = result.is_err();
                    unfinished.fetch_sub(1, Ordering::Release);
                    // The core may have stopped meanwhile.
                    let _ = done.send(result);
                    if failed {
                        break;
                    }
                }
            }
        })?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        adapter.execution = Execution::Thread {
            jobs,
            unfinished,
            alone: adapter.alone.clone(),
            inline_entries_max: match cores {
                // Nothing is won by a second thread where the clients' thread has the other core.
                ..=2 => usize::MAX,
                _ => INLINE_ENTRIES_MAX,
            },
        };
        Ok((adapter, thread))
    }

    /// An adapter that applies in the calling task.
    pub(crate) fn inline(
        state_machine: Arc<dyn StateMachine>,
        clock: Arc<AppliedClock>,
        fatal: Arc<FatalReporter>,
        counters: Arc<Counters>,
    ) -> Self {
        if let Some(position) = state_machine.applied().position {
            clock.publish(position);
        }
        Self {
            applier: Arc::new(Applier {
                state_machine: state_machine.clone(),
                clock,
                fatal,
            }),
            state_machine,
            execution: Execution::Inline,
            counters,
            building: Arc::new(AtomicBool::new(false)),
            alone: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Set by the owner while no other member votes. Then nobody waits for heartbeats of this one,
    /// and the core's own thread may apply: a write is answered two changes of thread earlier.
    pub(crate) fn alone(&self) -> Arc<AtomicBool> {
        self.alone.clone()
    }

    /// Whether a snapshot is being built.
    pub(crate) fn building(&self) -> Arc<AtomicBool> {
        self.building.clone()
    }

    /// Hands over a job; the result arrives later.
    fn submit(&self, job: Job) -> oneshot::Receiver<Result<(), StateMachineError>> {
        let (done, result) = oneshot::channel();
        match &self.execution {
            Execution::Thread {
                jobs, unfinished, ..
            } if !self.execution.is_inline(&job) => {
                unfinished.fetch_add(1, Ordering::Relaxed);
                // Fails only when the thread has ended; then the receiver says so.
                let _ = jobs.send((job, done));
            }
            Execution::Thread { .. } | Execution::Inline => {
                // The receiver is below.
                let _ = done.send(self.applier.run(job));
            }
        }
        result
    }
}

async fn finish(result: oneshot::Receiver<Result<(), StateMachineError>>) -> io::Result<()> {
    match result.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::Error::other("the apply thread has ended")),
    }
}

/// Answers a proposer, with nothing when it is dropped.
struct Answer {
    responder: Option<ApplyResponder<TypeConfig>>,
    position: LogPosition,
    clock: Arc<AppliedClock>,
}

impl Answer {
    fn into_responder(mut self) -> Responder {
        Box::new(move |reply| {
            if let Some(responder) = self.responder.take() {
                // Whoever gets the answer may at once ask how far this member is.
                self.clock.publish(self.position);
                responder.send(Replied(Some(reply)));
            }
        })
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(responder) = self.responder.take() {
            responder.send(Replied(None));
        }
    }
}

/// Entries on their way to the apply thread.
#[derive(Default)]
struct Chunk {
    entries: Vec<CommittedEntry>,
    memberships: Vec<Bytes>,
    bytes: usize,
}

impl Chunk {
    fn push(&mut self, (entry, responder): EntryResponder<TypeConfig>, clock: &Arc<AppliedClock>) {
        let position = position(entry.log_id);
        let command = entry.payload.command();
        let bytes = command.as_ref().map_or(0, Bytes::len);
        self.bytes += bytes;
        clock
            .payload_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        let payload = match (entry.payload.membership(), command) {
            (Some(membership), command) => {
                let stored = StoredMembership::new(Some(entry.log_id), membership.clone());
                self.memberships.push(encode_membership(&stored));
                EntryPayload::Membership(command.unwrap_or_default())
            }
            (None, Some(command)) => EntryPayload::Command(command),
            (None, None) => EntryPayload::Blank,
        };
        self.entries.push(CommittedEntry {
            position,
            payload,
            responder: responder.map(|responder| {
                let answer = Answer {
                    responder: Some(responder),
                    position,
                    clock: clock.clone(),
                };
                answer.into_responder()
            }),
        });
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= CHUNK_ENTRIES_MAX || self.bytes >= CHUNK_BYTES_MAX
    }

    fn take_job(&mut self) -> Job {
        let Self {
            entries,
            memberships,
            bytes: _,
        } = std::mem::take(self);
        Job::Apply {
            entries,
            memberships,
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachineAdapter {
    type SnapshotData = SnapshotFiles;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.state_machine.applied();
        let membership = decode_membership(applied.membership)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((applied.position.map(position_to_log_id), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut in_flight = VecDeque::new();
        let mut chunk = Chunk::default();
        while let Some(item) = entries.next().await {
            chunk.push(item?, &self.applier.clock);
            if !chunk.is_full() {
                continue;
            }
            in_flight.push_back(self.submit(chunk.take_job()));
            if in_flight.len() >= CHUNKS_IN_FLIGHT_MAX
                && let Some(oldest) = in_flight.pop_front()
            {
                finish(oldest).await?;
            }
        }
        if !chunk.entries.is_empty() {
            in_flight.push_back(self.submit(chunk.take_job()));
        }
        for result in in_flight {
            finish(result).await?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<SnapshotBuilder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.building.store(true, Ordering::Release);
        SnapshotBuilder {
            state_machine: self.state_machine.clone(),
            inline: matches!(self.execution, Execution::Inline),
            counters: self.counters.clone(),
            building: self.building.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotFiles,
    ) -> Result<(), io::Error> {
        let job = Job::Install {
            directory: snapshot.directory,
            applied: AppliedState {
                position: meta.last_log_id.map(position),
                membership: encode_membership(&meta.last_membership),
            },
        };
        finish(self.submit(job)).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, SnapshotFiles>>, io::Error> {
        self.state_machine
            .current_snapshot()
            .map(to_openraft_snapshot)
            .transpose()
    }
}

fn to_openraft_snapshot(files: SnapshotFiles) -> io::Result<SnapshotOf<TypeConfig, SnapshotFiles>> {
    let membership = decode_membership(files.applied.membership.clone())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Snapshot {
        meta: SnapshotMeta {
            last_log_id: files.applied.position.map(position_to_log_id),
            last_membership: membership,
        },
        snapshot: files,
    })
}

/// Builds one snapshot on a blocking thread.
pub(crate) struct SnapshotBuilder {
    state_machine: Arc<dyn StateMachine>,
    inline: bool,
    counters: Arc<Counters>,
    building: Arc<AtomicBool>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFiles;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotFiles>, io::Error> {
        let state_machine = self.state_machine.clone();
        let files = if self.inline {
            state_machine.build_snapshot()
        } else {
            tokio::task::spawn_blocking(move || state_machine.build_snapshot())
                .await
                .map_err(io::Error::other)?
        };
        self.counters
            .snapshots_built
            .fetch_add(1, Ordering::Relaxed);
        to_openraft_snapshot(files.map_err(io::Error::other)?)
    }
}

impl Drop for SnapshotBuilder {
    fn drop(&mut self) {
        self.building.store(false, Ordering::Release);
    }
}
