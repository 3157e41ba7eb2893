//! The handle of a member's consensus.

use std::collections::BTreeSet;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use openraft::Precondition;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::entry::RaftPayload;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::{ClientWriteResponse, ClientWriteResult};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::apply::{AppliedClock, FatalReporter};
use crate::completion::{self, Mailbox};
use crate::counters::{CounterValues, Counters};
use crate::entry_log::EntryLog;
use crate::error::{
    ChangeError, MembershipChange, PeerError, ProposeError, ReadIndexError, StartError,
    TransferError,
};
use crate::leadership::{Leadership, Role};
use crate::node::{Node, Parts, RaftNode};
use crate::options::ConsensusOptions;
use crate::peers::{PeerDirectory, PeerHandler};
use crate::raft_types::{
    Command, CommittedLeaderId, Membership, Payload, StoredMembership, TypeConfig, membership,
};
use crate::read_index::ReadIndexRounds;
use crate::state_machine::{LogPosition, Reply, StateMachine};
use crate::transport::tcp::SharedTcpListener;
use crate::transport::{Connector, Listener, Peers, TcpConnector};

/// A member has caught up when it holds this part of the leader's log, in percent.
const CAUGHT_UP_PERCENT: u64 = 90;

/// The answer to [`Consensus::read_index`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadIndex {
    /// A read that sees everything up to here is linearizable; give it to
    /// [`Consensus::wait_applied`].
    pub index: Option<LogPosition>,
    /// Term in which the leader answered.
    pub term: u64,
}

/// What a member knows about its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsensusStatus {
    /// Highest term seen.
    pub term: u64,
    /// The leader; `None` when none is known or when there was no contact with it (on the leader:
    /// with a majority) for an election time-out.
    pub leader: Option<u64>,
    /// Whether this member leads; false as soon as `leader` is `None`.
    pub is_leader: bool,
    /// Whether this member is a learner.
    pub is_learner: bool,
    /// Last entry known to be committed.
    pub committed: Option<LogPosition>,
    /// Last applied entry.
    pub applied: Option<LogPosition>,
    /// Last entry of the log.
    pub last_log: Option<LogPosition>,
    /// Voters of the newest membership in the log.
    pub voters: BTreeSet<u64>,
    /// Learners of the newest membership in the log.
    pub learners: BTreeSet<u64>,
}

/// How far another member is, as its leader knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// The member.
    pub id: u64,
    /// Last entry known to be in its log.
    pub matched: Option<LogPosition>,
    /// Time since it last answered; `None`: never in this term.
    pub last_contact: Option<Duration>,
    /// How long it has been answering without a break; `None`: it does not answer.
    pub active_for: Option<Duration>,
}

/// A member's consensus: a handle that can be cloned and used from any runtime.
///
/// The core runs on an own OS thread with an own runtime, so that load on the caller's runtimes
/// does not delay heartbeats.
#[derive(Clone)]
pub struct Consensus {
    inner: Arc<Inner>,
}

struct Inner {
    options: ConsensusOptions,
    raft: RaftNode,
    leadership: Arc<Leadership>,
    applied: Arc<AppliedClock>,
    peers: Arc<Peers>,
    rounds: ReadIndexRounds,
    counters: Arc<Counters>,
    fatal: Arc<FatalReporter>,
    status: watch::Receiver<ConsensusStatus>,
    log: Arc<dyn EntryLog>,
    /// Set while this leader may become one of several voters; see
    /// [`Consensus::sole_voter_read_index`].
    growing: AtomicBool,
    /// Ends the Raft thread, also when it is dropped.
    stop: Mutex<Option<oneshot::Sender<()>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// How far behind the target of a leadership transfer may be when the transfer begins. openraft
/// stops writes until the target has the rest, which must not take longer than an election.
const TRANSFER_LAG_MAX: u64 = 1000;

impl Consensus {
    /// Starts this member on an own thread. `listeners` are bound peer addresses; none is fine for
    /// a cluster of one.
    ///
    /// # Errors
    /// See [`StartError`]; none of them can be retried without a change.
    pub fn start(
        options: ConsensusOptions,
        log: impl EntryLog,
        state_machine: Arc<dyn StateMachine>,
        peers: Arc<dyn PeerDirectory>,
        listeners: Vec<TcpListener>,
        handler: Arc<dyn PeerHandler>,
    ) -> Result<Self, StartError> {
        let parts = Parts {
            options: options.clone(),
            log: Arc::new(log),
            state_machine,
            directory: peers,
            handler: handler.clone(),
            connector: Arc::new(TcpConnector),
            apply_thread: true,
        };
        Self::start_thread(options, parts, move || {
            listeners
                .into_iter()
                .map(|listener| {
                    listener.set_nonblocking(true)?;
                    Ok(Box::new(SharedTcpListener {
                        listener: tokio::net::TcpListener::from_std(listener)?,
                        handler: handler.clone(),
                    }) as Box<dyn Listener>)
                })
                .collect()
        })
    }

    /// As [`Self::start`], with connections of another kind than plain TCP. `listeners` is called
    /// on the Raft thread, inside its runtime.
    ///
    /// # Errors
    /// As [`Self::start`].
    #[allow(clippy::too_many_arguments)]
    pub fn start_with_transport(
        options: ConsensusOptions,
        log: impl EntryLog,
        state_machine: Arc<dyn StateMachine>,
        peers: Arc<dyn PeerDirectory>,
        connector: Arc<dyn Connector>,
        listeners: impl FnOnce() -> io::Result<Vec<Box<dyn Listener>>> + Send + 'static,
        handler: Arc<dyn PeerHandler>,
    ) -> Result<Self, StartError> {
        let parts = Parts {
            options: options.clone(),
            log: Arc::new(log),
            state_machine,
            directory: peers,
            handler,
            connector,
            apply_thread: true,
        };
        Self::start_thread(options, parts, listeners)
    }

    /// Starts this member in the current runtime without any thread, for simulations: everything
    /// ends with the runtime, and the state machine is called from its tasks.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_here(
        options: ConsensusOptions,
        log: impl EntryLog,
        state_machine: Arc<dyn StateMachine>,
        peers: Arc<dyn PeerDirectory>,
        connector: Arc<dyn Connector>,
        listeners: Vec<Box<dyn Listener>>,
        handler: Arc<dyn PeerHandler>,
    ) -> Result<Self, StartError> {
        let parts = Parts {
            options: options.clone(),
            log: Arc::new(log),
            state_machine,
            directory: peers,
            handler,
            connector,
            apply_thread: false,
        };
        let node = Node::start(parts, listeners).await?;
        Ok(Self::from_node(options, node, None, Vec::new()))
    }

    fn start_thread(
        options: ConsensusOptions,
        parts: Parts,
        listeners: impl FnOnce() -> io::Result<Vec<Box<dyn Listener>>> + Send + 'static,
    ) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("raft-blocking")
            .build()?;
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("raft".into())
            .spawn(move || {
                runtime.block_on(async move {
                    Mailbox::open();
                    let node = match listeners() {
                        Ok(listeners) => Node::start(parts, listeners).await,
                        Err(error) => Err(error.into()),
                    };
                    let failed = node.is_err();
                    // The receiver waits until it got this.
                    let _ = started.send(node);
                    if !failed {
                        // Told to stop, or the last handle was dropped.
                        let _ = stopped.await;
                    }
                });
                // Blocking jobs (a snapshot that is being built) are left to themselves.
                runtime.shutdown_background();
            })?;
        let mut node = start
            .recv()
            .map_err(|_| StartError::Storage("the raft thread panicked".into()))??;
        let mut threads = vec![thread];
        threads.extend(node.apply_thread.take());
        Ok(Self::from_node(options, node, Some(stop), threads))
    }

    fn from_node(
        options: ConsensusOptions,
        node: Node,
        stop: Option<oneshot::Sender<()>>,
        threads: Vec<JoinHandle<()>>,
    ) -> Self {
        let Node {
            raft,
            leadership,
            applied,
            peers,
            rounds,
            counters,
            fatal,
            status,
            log,
            apply_thread: _,
        } = node;
        Self {
            inner: Arc::new(Inner {
                options,
                raft,
                leadership,
                applied,
                peers,
                rounds,
                counters,
                fatal,
                status,
                log,
                growing: AtomicBool::new(false),
                stop: Mutex::new(stop),
                threads: Mutex::new(threads),
            }),
        }
    }

    /// Makes the first membership of a new cluster. Called with the same voters on each of them;
    /// no effect on a member that has a log. For this crate's tests: a server does it before its consensus
    /// runs, with [`crate::form_cluster`], which leaves out the first term.
    #[cfg(test)]
    pub(crate) async fn initialize(
        &self,
        voters: BTreeSet<u64>,
    ) -> Result<(), crate::error::InitializeError> {
        use crate::error::InitializeError;
        use openraft::errors::InitializeError as RaftInitializeError;
        match self.inner.raft.initialize(voters).await {
            Ok(()) | Err(RaftError::APIError(RaftInitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(RaftInitializeError::NotInMembers(_))) => {
                Err(InitializeError::NotAMember)
            }
            Err(RaftError::Fatal(_)) => Err(InitializeError::Stopped),
        }
    }

    /// Builds a snapshot in the place of the one that exists, which may hold files that the store has
    /// rewritten since. Does not wait for it. No effect without a snapshot, or while one is built.
    pub async fn replace_snapshot(&self) {
        if self.inner.leadership.snapshot_index().is_some() {
            // Fails only when the core has stopped.
            let _ = self.inner.raft.trigger().snapshot().await;
        }
    }

    /// Stands for election at once: a new cluster has no leader that could be disturbed.
    pub async fn campaign(&self) {
        // Fails only when the core has stopped.
        let _ = self.inner.raft.trigger().elect(false).await;
    }

    /// Stands for election at once when this member is the only voter: nobody else could win, so
    /// waiting for an election time-out would only delay the start. No effect otherwise.
    pub async fn campaign_if_alone(&self) {
        let inner = &*self.inner;
        let alone = {
            let membership = inner.leadership.membership();
            membership.voter_ids().eq([inner.options.member_id])
        };
        if alone {
            self.campaign().await;
        }
    }

    /// Proposes a command; returns what the state machine made of it, after it was applied here.
    /// There is no time-out: when the future is dropped the command may still be committed.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, command: Bytes) -> Result<Reply, ProposeError> {
        let inner = &*self.inner;
        let pending = Pending::start(&inner.counters);
        self.until_confirmed()
            .await
            .map_err(|leader| ProposeError::NotLeader { leader })?;
        let (responder, answer) = completion::question();
        inner
            .raft
            .client_write_ff(Command(command), Some(responder))
            .await
            .map_err(|_| ProposeError::Stopped)?;
        pending.end(self.propose_answer(answer.await))
    }

    /// As [`Self::propose`], but only while this member leads in `term`.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] also when this member leads in another term.
    pub async fn propose_in_term(&self, command: Bytes, term: u64) -> Result<Reply, ProposeError> {
        let inner = &*self.inner;
        let pending = Pending::start(&inner.counters);
        self.until_confirmed()
            .await
            .map_err(|leader| ProposeError::NotLeader { leader })?;
        let (responder, answer) = completion::question();
        inner
            .raft
            .write(Command(command))
            .with_leader(CommittedLeaderId::new(term))
            .responder(responder)
            .await
            .map_err(|_| ProposeError::Stopped)?;
        pending.end(self.propose_answer(answer.await))
    }

    fn propose_answer(
        &self,
        answer: Result<ClientWriteResult<TypeConfig>, completion::Dropped>,
    ) -> Result<Reply, ProposeError> {
        match answer {
            Ok(result) => self.propose_result(result.map_err(RaftError::APIError)),
            // Dropped by a core that stops.
            Err(completion::Dropped) => Err(ProposeError::Stopped),
        }
    }

    fn propose_result(
        &self,
        result: Result<
            ClientWriteResponse<TypeConfig>,
            RaftError<TypeConfig, ClientWriteError<TypeConfig>>,
        >,
    ) -> Result<Reply, ProposeError> {
        match result {
            Ok(response) => response.data.0.ok_or(ProposeError::Unknown),
            Err(RaftError::Fatal(_)) => Err(ProposeError::Stopped),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(self.not_leader())
            }
            Err(RaftError::APIError(
                ClientWriteError::LogEntryDiscarded(_)
                | ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_),
            )) => Err(ProposeError::Unknown),
        }
    }

    fn not_leader(&self) -> ProposeError {
        ProposeError::NotLeader {
            leader: self.other_leader(),
        }
    }

    /// Checks that this member leads and that a majority has answered it, without troubling the
    /// core. Fails with the leader to ask instead.
    async fn until_confirmed(&self) -> Result<(), Option<u64>> {
        self.until_leader(Leadership::is_confirmed).await
    }

    /// Checks that this member leads and is `ready`.
    ///
    /// openraft refuses requests of a leader whom no majority has answered yet. For one that was
    /// just elected that is a matter of one round trip, so it is waited for.
    async fn until_leader(
        &self,
        ready: impl Fn(&Leadership, Role) -> bool,
    ) -> Result<(), Option<u64>> {
        let leadership = &self.inner.leadership;
        let role = leadership.role();
        if !role.leads {
            return Err(self.other_leader());
        }
        if ready(leadership, role) {
            return Ok(());
        }
        let mut changes = self.inner.raft.data_metrics();
        let becomes_ready = async {
            loop {
                let role = leadership.role();
                if !role.leads || ready(leadership, role) || changes.changed().await.is_err() {
                    return role.leads;
                }
            }
        };
        // Rare, so it takes no place in the future of each proposal.
        let limit = self.inner.options.election_timeout;
        match Box::pin(tokio::time::timeout(limit, becomes_ready)).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(self.other_leader()),
        }
    }

    /// The leader to send somebody to. Never this member: it has just refused, because it is about
    /// to lose or to hand over its leadership.
    fn other_leader(&self) -> Option<u64> {
        self.inner
            .leadership
            .leader()
            .filter(|leader| *leader != self.inner.options.member_id)
    }

    /// Changes the membership by one member; `command` is handed to the state machine in the same
    /// entry. Bounded by [`ConsensusOptions::change_timeout`].
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn change_membership(
        &self,
        change: MembershipChange,
        command: Bytes,
    ) -> Result<Reply, ChangeError> {
        let inner = &*self.inner;
        let pending = Pending::start(&inner.counters);
        self.until_leader(Leadership::is_settled)
            .await
            .map_err(|leader| ChangeError::NotLeader { leader })?;
        let before = inner.leadership.membership();
        // A leader that was removed leads for a moment longer, so that its followers learn of it.
        // It must not change what it has no part in: openraft takes such a change as impossible.
        if !before.voter_ids().any(|id| id == inner.options.member_id) {
            return Err(ChangeError::NotLeader { leader: None });
        }
        let after = change.apply(&before)?;
        let payload = if command.is_empty() {
            Payload::blank()
        } else {
            Payload::normal(Command(command))
        };
        let unchanged = Precondition::LastMembershipLogId {
            last_membership_log_id: *before.log_id(),
        };
        if after.voter_ids().count() > 1 {
            inner.growing.store(true, Ordering::SeqCst);
        }
        let changed = inner.raft.append_membership(after, payload, [unchanged]);
        match tokio::time::timeout(inner.options.change_timeout, changed).await {
            Ok(result) => pending.end(self.change_result(result)),
            Err(_) => Err(ChangeError::TimedOut),
        }
    }

    fn change_result(
        &self,
        result: Result<
            ClientWriteResponse<TypeConfig>,
            RaftError<TypeConfig, ClientWriteError<TypeConfig>>,
        >,
    ) -> Result<Reply, ChangeError> {
        match result {
            Ok(response) => response.data.0.ok_or(ChangeError::Unknown),
            Err(RaftError::Fatal(_)) => Err(ChangeError::Stopped),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(ChangeError::NotLeader {
                    leader: self.other_leader(),
                })
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => {
                Err(ChangeError::Unknown)
            }
            // The membership was changed since it was looked at, or its last change or this
            // leader's first entry is not committed.
            Err(RaftError::APIError(
                ClientWriteError::PreconditionFailed(_)
                | ClientWriteError::ChangeMembershipError(_),
            )) => Err(ChangeError::InProgress),
        }
    }

    /// Confirms with a majority how far a linearizable read must see. Works on every member:
    /// followers and learners ask the leader.
    ///
    /// # Errors
    /// See [`ReadIndexError`]; the caller retries within its own deadline.
    pub async fn read_index(&self) -> Result<ReadIndex, ReadIndexError> {
        if let Some(read) = self.sole_voter_read_index() {
            return Ok(read);
        }
        self.inner.rounds.join().await
    }

    /// The read index of a leader without other voters: nobody else can have committed anything.
    ///
    /// Every acknowledged write was applied here before it was acknowledged, so what is applied
    /// now is enough, once an entry of the own term is (entries of earlier terms may have been
    /// acknowledged before a restart).
    ///
    /// The role is a copy that the core updates between messages. It would be dangerous only if
    /// another voter were added, elected and had committed something between two updates; so
    /// nothing is answered here from the moment on at which voters are added.
    fn sole_voter_read_index(&self) -> Option<ReadIndex> {
        let inner = &*self.inner;
        if inner.growing.load(Ordering::SeqCst) {
            return None;
        }
        let role = inner.leadership.role();
        let applied = inner.applied.position()?;
        (role.sole_voter && applied.term == role.term).then_some(ReadIndex {
            index: Some(applied),
            term: role.term,
        })
    }

    /// Waits until everything up to `position` was applied here. Never ends when consensus stops
    /// before; bound it with a time-out.
    pub async fn wait_applied(&self, position: Option<LogPosition>) {
        if let Some(position) = position {
            self.inner.applied.wait(position.index).await;
        }
    }

    /// Index of the last applied entry; 0 when nothing was applied.
    pub fn applied_index(&self) -> u64 {
        self.inner.applied.index().unwrap_or(0)
    }

    /// Index of the last entry known to be committed; 0 when there is none.
    pub fn committed_index(&self) -> u64 {
        let committed = self.inner.leadership.committed();
        committed.map_or(0, |position| position.index)
    }

    /// Highest term seen. Some tens of nanoseconds.
    pub fn term(&self) -> u64 {
        self.inner.leadership.role().term
    }

    /// The leader with whom there is contact, as in [`ConsensusStatus::leader`], without copying
    /// the rest.
    pub fn leader(&self) -> Option<u64> {
        self.inner.leadership.leader()
    }

    /// Whether this member leads and is in contact with a majority.
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.inner.options.member_id)
    }

    /// What this member knows about the cluster now. Copies the member lists; hot paths use
    /// [`Self::term`], [`Self::leader`], [`Self::applied_index`] and [`Self::committed_index`].
    pub fn status(&self) -> ConsensusStatus {
        self.inner.leadership.status()
    }

    /// The status as it changes: at once when the leader, the term or the members change, else
    /// once per heartbeat interval.
    pub fn watch_status(&self) -> watch::Receiver<ConsensusStatus> {
        self.inner.status.clone()
    }

    /// How far the other members are; empty unless this member leads.
    pub fn progress(&self) -> Vec<PeerProgress> {
        self.inner.leadership.progress()
    }

    /// Whether a member holds so much of this leader's log that it may have a vote: 90 %, as in etcd.
    /// `None` when this member does not lead, or the leader sends it nothing.
    pub fn has_caught_up(&self, member: u64) -> Option<bool> {
        if member == self.inner.options.member_id {
            return self.is_leader().then_some(true);
        }
        let entries = |last: Option<LogPosition>| last.map_or(0, |position| position.index + 1);
        let progress = self.progress();
        let peer = progress.iter().find(|peer| peer.id == member)?;
        let last = entries(self.status().last_log);
        Some(entries(peer.matched) * 100 >= last * CAUGHT_UP_PERCENT)
    }

    /// The members that vote, as the log has them so far.
    pub fn voters(&self) -> BTreeSet<u64> {
        self.inner.leadership.membership().voter_ids().collect()
    }

    /// Numbers for metrics.
    pub fn counters(&self) -> CounterValues {
        self.inner.counters.read()
    }

    /// Makes the voter `to` the leader; returns when it is. Waits until it has almost the whole
    /// log first. No effect when `to` is this leader.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn transfer_leader(&self, to: u64, timeout: Duration) -> Result<(), TransferError> {
        let inner = &*self.inner;
        let started = Instant::now();
        if !inner.leadership.role().leads {
            return Err(TransferError::NotLeader {
                leader: self.other_leader(),
            });
        }
        if to == inner.options.member_id {
            return Ok(());
        }
        let voters: BTreeSet<u64> = inner.leadership.membership().voter_ids().collect();
        if !voters.contains(&to) {
            return Err(TransferError::BadTarget(to));
        }
        match tokio::time::timeout(timeout, self.caught_up(to)).await {
            Ok(result) => result?,
            Err(_) => return Err(TransferError::TimedOut(timeout)),
        }
        inner
            .raft
            .trigger()
            .transfer_leader(to)
            .await
            .map_err(|_| TransferError::Stopped)?;
        let left = timeout.saturating_sub(started.elapsed());
        match tokio::time::timeout(left, self.led_by(to)).await {
            Ok(result) => result,
            Err(_) => {
                // openraft does not give a transfer up: it would refuse writes until somebody is
                // elected, so this member stands for election itself.
                if inner.leadership.role().leader == Some(inner.options.member_id) {
                    tracing::warn!(
                        to = format_args!("{to:x}"),
                        "the transfer of the leadership failed; electing again"
                    );
                    let _ = inner.raft.trigger().elect(false).await;
                }
                Err(TransferError::TimedOut(timeout))
            }
        }
    }

    /// Waits until a voter that answers has almost the whole log.
    async fn caught_up(&self, member: u64) -> Result<(), TransferError> {
        let inner = &*self.inner;
        let mut changes = inner.raft.data_metrics();
        loop {
            if !inner.leadership.role().leads {
                return Err(TransferError::NotLeader {
                    leader: self.other_leader(),
                });
            }
            let progress = self.progress().into_iter().find(|peer| peer.id == member);
            let Some(progress) = progress else {
                return Err(TransferError::BadTarget(member));
            };
            if progress
                .last_contact
                .is_none_or(|age| age > inner.options.election_timeout)
            {
                return Err(TransferError::Unreachable(member));
            }
            let last = inner.leadership.last_log().map_or(0, |last| last.index);
            if progress
                .matched
                .is_some_and(|matched| matched.index + TRANSFER_LAG_MAX >= last)
            {
                return Ok(());
            }
            changes
                .changed()
                .await
                .map_err(|_| TransferError::Stopped)?;
        }
    }

    async fn led_by(&self, member: u64) -> Result<(), TransferError> {
        let mut changes = self.inner.raft.server_metrics();
        while self.inner.leadership.role().leader != Some(member) {
            changes
                .changed()
                .await
                .map_err(|_| TransferError::Stopped)?;
        }
        Ok(())
    }

    /// Calls [`PeerHandler::call`] of another member. Calls are pipelined on one connection.
    ///
    /// # Errors
    /// See [`PeerError`]; only after `Unreachable` and `Removed` it is certain that the call was
    /// not executed.
    pub async fn call_peer(
        &self,
        to: u64,
        method: u32,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, PeerError> {
        self.inner.peers.call(to, method, body, deadline).await
    }

    /// Stops the core, the peers and the apply thread, and closes the log. Does not hand over the
    /// leadership. Calls that are under way answer `Stopped`.
    pub async fn shutdown(&self) {
        let inner = &*self.inner;
        inner.fatal.disarm();
        if let Err(error) = inner.raft.shutdown().await {
            tracing::warn!(%error, "the consensus core did not end well");
        }
        // A receiver that is gone has stopped already.
        drop(inner.stop.lock().take());
        let threads = std::mem::take(&mut *inner.threads.lock());
        let log = inner.log.clone();
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a consensus thread panicked");
                }
            }
            log.close();
        });
        if joined.await.is_err() {
            tracing::error!("cannot close the log");
        }
    }
}

#[cfg(test)]
impl Consensus {
    pub(crate) async fn inner_rounds(&self) -> Result<ReadIndex, ReadIndexError> {
        self.inner.rounds.join().await
    }

    pub(crate) fn log_state(&self) -> metastore_raft_log::LogState {
        self.inner.log.state()
    }
}

/// Counts a proposal that has no result yet.
struct Pending<'a> {
    counters: &'a Counters,
    succeeded: bool,
}

impl<'a> Pending<'a> {
    fn start(counters: &'a Counters) -> Self {
        counters.proposals.fetch_add(1, Ordering::Relaxed);
        counters.proposals_pending.fetch_add(1, Ordering::Relaxed);
        Self {
            counters,
            succeeded: false,
        }
    }

    fn end<T, E>(mut self, result: Result<T, E>) -> Result<T, E> {
        self.succeeded = result.is_ok();
        result
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.counters
            .proposals_pending
            .fetch_sub(1, Ordering::Relaxed);
        if !self.succeeded {
            self.counters
                .proposals_failed
                .fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl MembershipChange {
    /// The membership after this change, if it is one.
    fn apply(self, before: &StoredMembership) -> Result<Membership, ChangeError> {
        let mut voters: BTreeSet<u64> = before.voter_ids().collect();
        let mut learners: BTreeSet<u64> = before.membership().learner_ids().collect();
        let exists = |member| voters.contains(&member) || learners.contains(&member);
        match self {
            Self::AddLearner(member) if exists(member) => {
                return Err(ChangeError::Exists(member));
            }
            Self::Promote(member) | Self::Remove(member) if !exists(member) => {
                return Err(ChangeError::NotFound(member));
            }
            Self::AddLearner(member) => {
                learners.insert(member);
            }
            Self::Promote(member) => {
                if !learners.remove(&member) {
                    return Err(ChangeError::NotLearner(member));
                }
                voters.insert(member);
            }
            Self::Remove(member) => {
                learners.remove(&member);
                voters.remove(&member);
                if voters.is_empty() {
                    return Err(ChangeError::LastVoter);
                }
            }
        }
        Ok(membership(voters, &learners))
    }
}
