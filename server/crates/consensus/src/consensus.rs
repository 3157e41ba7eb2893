//! The handle of a member's consensus.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use crate::entry_log::EntryLog;
use bytes::Bytes;

use crate::error::{
    ChangeError, MembershipChange, PeerError, ProposeError, ReadIndexError, StartError,
    TransferError,
};
use crate::options::ConsensusOptions;
use crate::peers::{PeerDirectory, PeerHandler};
use crate::state_machine::{LogPosition, Reply, StateMachine};

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
}

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
        let _ = (log, state_machine, peers, listeners, handler);
        Ok(Self {
            inner: Arc::new(Inner { options }),
        })
    }

    /// Makes the first membership of a new cluster. Called with the same voters on each of them;
    /// no effect on a member that has a log.
    ///
    /// # Errors
    /// [`ProposeError::Stopped`] only.
    pub async fn initialize(&self, voters: BTreeSet<u64>) -> Result<(), ProposeError> {
        let _ = voters;
        Err(ProposeError::Stopped)
    }

    /// Proposes a command; returns what the state machine made of it, after it was applied here.
    /// There is no time-out: when the future is dropped the command may still be committed.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, command: Bytes) -> Result<Reply, ProposeError> {
        let _ = command;
        Err(ProposeError::Stopped)
    }

    /// As [`Self::propose`], but only while this member leads in `term`.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] also when this member leads in another term.
    pub async fn propose_in_term(&self, command: Bytes, term: u64) -> Result<Reply, ProposeError> {
        let _ = (command, term);
        Err(ProposeError::Stopped)
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
        let _ = (change, command);
        Err(ChangeError::Stopped)
    }

    /// Confirms with a majority how far a linearizable read must see. Works on every member:
    /// followers and learners ask the leader.
    ///
    /// # Errors
    /// See [`ReadIndexError`]; the caller retries within its own deadline.
    pub async fn read_index(&self) -> Result<ReadIndex, ReadIndexError> {
        Err(ReadIndexError::Stopped)
    }

    /// Waits until everything up to `position` was applied here. Never ends when consensus stops
    /// before; bound it with a time-out.
    pub async fn wait_applied(&self, position: Option<LogPosition>) {
        let _ = position;
    }

    /// Index of the last applied entry; 0 when nothing was applied.
    pub fn applied_index(&self) -> u64 {
        0
    }

    /// Index of the last entry known to be committed; 0 when there is none.
    pub fn committed_index(&self) -> u64 {
        0
    }

    /// Highest term seen. One atomic read.
    pub fn term(&self) -> u64 {
        0
    }

    /// What this member knows about the cluster now. Copies the member lists; hot paths use
    /// [`Self::term`], [`Self::applied_index`] and [`Self::committed_index`].
    pub fn status(&self) -> ConsensusStatus {
        ConsensusStatus::default()
    }

    /// The status as it changes: at once when the leader, the term or the members change, else
    /// once per heartbeat interval.
    pub fn watch_status(&self) -> tokio::sync::watch::Receiver<ConsensusStatus> {
        tokio::sync::watch::channel(ConsensusStatus::default()).1
    }

    /// How far the other members are; empty unless this member leads.
    pub fn progress(&self) -> Vec<PeerProgress> {
        Vec::new()
    }

    /// Makes the voter `to` the leader; returns when it is. Waits until it has the whole log first.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn transfer_leader(&self, to: u64, timeout: Duration) -> Result<(), TransferError> {
        let _ = (to, timeout);
        Err(TransferError::Stopped)
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
        let _ = (to, method, body, deadline);
        Err(PeerError::Stopped)
    }

    /// Stops the core, the peers and the apply thread, and closes the log. Does not hand over the
    /// leadership.
    pub async fn shutdown(&self) {
        let _ = &self.inner.options;
    }
}
