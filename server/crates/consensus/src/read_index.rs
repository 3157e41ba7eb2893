//! Linearizable reads: one confirmation round in flight, everybody who waits joins the next.
//!
//! ```text
//! waiters -> [round open] -> start: take all waiters, ask the core or the leader -> answer all
//!                            meanwhile new waiters gather for the next round
//! ```
//!
//! Joining a round that has started would be a stale read: what the round confirmed may be older
//! than the reader.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::mpsc;

use crate::completion::{self, Batch};
use crate::consensus::ReadIndex;
use crate::counters::Counters;
use crate::error::ReadIndexError;
use crate::leadership::Leadership;
use crate::node::RaftNode;
use crate::raft_types::position;
use crate::transport::Peers;

type Waiter = completion::Sender<Result<ReadIndex, ReadIndexError>>;

/// Where readers register for the next round. Clones share the rounds.
#[derive(Clone)]
pub(crate) struct ReadIndexRounds {
    waiters: mpsc::UnboundedSender<Waiter>,
}

/// What one round needs.
pub(crate) struct RoundContext {
    pub(crate) member: u64,
    pub(crate) raft: RaftNode,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) counters: Arc<Counters>,
    /// How long the leader may take to answer.
    pub(crate) timeout: Duration,
}

impl RoundContext {
    /// Who waits for a leader asks again; only rounds whose readers have to be told are failures.
    fn count(&self, outcome: Result<ReadIndex, ReadIndexError>) {
        if outcome == Err(ReadIndexError::LeaderChanged) {
            self.counters
                .read_index_failures
                .fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl ReadIndexRounds {
    /// Starts the rounds on the current runtime; they end when the last clone is dropped.
    pub(crate) fn start(context: RoundContext) -> Self {
        let (waiters, receiver) = mpsc::unbounded_channel();
        tokio::spawn(run(context, receiver));
        Self { waiters }
    }

    /// Joins the next round.
    pub(crate) async fn join(&self) -> Result<ReadIndex, ReadIndexError> {
        let (sender, receiver) = completion::question();
        self.waiters
            .send(sender)
            .map_err(|_| ReadIndexError::Stopped)?;
        receiver.await.unwrap_or(Err(ReadIndexError::Stopped))
    }
}

async fn run(context: RoundContext, mut receiver: mpsc::UnboundedReceiver<Waiter>) {
    let mut waiters = Vec::new();
    while let Some(first) = receiver.recv().await {
        waiters.push(first);
        while let Ok(waiter) = receiver.try_recv() {
            waiters.push(waiter);
        }
        waiters.retain(|waiter| !waiter.is_abandoned());
        if waiters.is_empty() {
            continue;
        }
        let outcome = round(&context).await;
        context.count(outcome);
        let _batch = Batch::begin();
        for waiter in waiters.drain(..) {
            waiter.send(outcome);
        }
    }
}

/// One round, and the check that nothing changed under it.
async fn round(context: &RoundContext) -> Result<ReadIndex, ReadIndexError> {
    context
        .counters
        .read_index_rounds
        .fetch_add(1, Ordering::Relaxed);
    let before = context.leadership.role();
    let answer = if before.leads {
        ask_core(context, before.term).await?
    } else {
        let leader = context
            .leadership
            .leader()
            .filter(|leader| *leader != context.member)
            .ok_or(ReadIndexError::NoLeader)?;
        context.peers.read_index(leader, context.timeout).await?
    };
    // The answer and the change can arrive together, and then the answer may be the old leader's
    // (etcd #20418): only what holds after the answer counts.
    let after = context.leadership.role();
    let unchanged = after.term == before.term && after.leader == before.leader;
    if !unchanged || answer.term != before.term {
        return Err(ReadIndexError::LeaderChanged);
    }
    Ok(answer)
}

async fn ask_core(context: &RoundContext, term: u64) -> Result<ReadIndex, ReadIndexError> {
    let asked = context.raft.get_read_linearizer(ReadPolicy::ReadIndex);
    match tokio::time::timeout(context.timeout, asked).await {
        Ok(Ok(linearizer)) => Ok(ReadIndex {
            index: Some(position(*linearizer.read_log_id().log_id())),
            term,
        }),
        Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_)))) => {
            Err(ReadIndexError::LeaderChanged)
        }
        Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
            Err(ReadIndexError::TimedOut)
        }
        Ok(Err(RaftError::Fatal(_))) => Err(ReadIndexError::Stopped),
    }
}
