//! Errors of consensus: one enum for each thing that a caller can ask for.

use std::time::Duration;

/// Why consensus could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The options contradict each other; the text says which.
    #[error("invalid consensus options: {0}")]
    Options(String),
    /// The log or the state machine could not be read, or the two contradict each other.
    #[error("cannot start consensus: {0}")]
    Storage(String),
    /// A thread or a runtime could not be made.
    #[error("cannot start the consensus runtime: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Why the first membership could not be made.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InitializeError {
    /// This member is not among the voters.
    #[error("this member is not among the first voters")]
    NotAMember,
    /// This member's consensus has stopped.
    #[error("consensus has stopped")]
    Stopped,
}

/// Why a proposal has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was proposed: this member does not lead. Ask `leader`; `None`: no leader is known.
    #[error("not the leader (leader: {leader:?})")]
    NotLeader {
        /// The member to ask instead.
        leader: Option<u64>,
    },
    /// The entry was written, but whether it will be committed is not known (the leader changed).
    #[error("the outcome of the proposal is unknown")]
    Unknown,
    /// This member's consensus has stopped. The outcome is unknown.
    #[error("consensus has stopped")]
    Stopped,
}

/// A change of the voters and learners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// Adds a member that gets the log but has no vote.
    AddLearner(u64),
    /// Makes a learner a voter. The caller checks before, with
    /// [`crate::Consensus::progress`], that the learner has caught up: a cluster whose new voter
    /// lags can be unable to commit.
    Promote(u64),
    /// Removes a voter or learner.
    Remove(u64),
}

/// Why a membership change has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Nothing was changed: this member does not lead.
    #[error("not the leader (leader: {leader:?})")]
    NotLeader {
        /// The member to ask instead.
        leader: Option<u64>,
    },
    /// Nothing was changed: an earlier change is not committed yet, or this leader has not
    /// committed an entry of its own term. Retry later.
    #[error("another membership change is in progress")]
    InProgress,
    /// Nothing was changed: the member to add exists already.
    #[error("member {0:x} exists already")]
    Exists(u64),
    /// Nothing was changed: the member to promote or remove does not exist.
    #[error("member {0:x} does not exist")]
    NotFound(u64),
    /// Nothing was changed: the member to promote is a voter.
    #[error("member {0:x} is not a learner")]
    NotLearner(u64),
    /// Nothing was changed: the last voter cannot be removed.
    #[error("the last voter cannot be removed")]
    LastVoter,
    /// The change was not committed in time; it may be committed later.
    #[error("the membership change timed out; its outcome is unknown")]
    TimedOut,
    /// The leader changed while the change was under way; its outcome is unknown.
    #[error("the outcome of the membership change is unknown")]
    Unknown,
    /// This member's consensus has stopped. The outcome is unknown.
    #[error("consensus has stopped")]
    Stopped,
}

/// Why there is no read index. All of them can be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadIndexError {
    /// No leader is known, or the leader has lost its majority.
    #[error("no leader")]
    NoLeader,
    /// The term or the leader changed while the round was under way (etcd #20418).
    #[error("leader changed")]
    LeaderChanged,
    /// The leader or a majority did not answer in time.
    #[error("the leader did not answer in time")]
    TimedOut,
    /// This member's consensus has stopped.
    #[error("consensus has stopped")]
    Stopped,
}

/// Why the leadership was not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This member does not lead.
    #[error("not the leader (leader: {leader:?})")]
    NotLeader {
        /// The member to ask instead.
        leader: Option<u64>,
    },
    /// The target is not a voter.
    #[error("member {0:x} is not a voter")]
    BadTarget(u64),
    /// The target was not heard from within an election time-out.
    #[error("member {0:x} does not answer")]
    Unreachable(u64),
    /// The target did not become leader in time.
    #[error("leadership transfer timed out after {0:?}")]
    TimedOut(Duration),
    /// This member's consensus has stopped.
    #[error("consensus has stopped")]
    Stopped,
}

/// Why a call of another member has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The call was not sent: there is no connection to the member.
    #[error("member {member:x} is unreachable: {reason}")]
    Unreachable {
        /// The called member.
        member: u64,
        /// What happened.
        reason: String,
    },
    /// The connection broke after the call was sent; the call may have been executed.
    #[error("the connection was lost")]
    ConnectionLost,
    /// No answer in time; the call may have been executed.
    #[error("the call timed out")]
    TimedOut,
    /// The called member's handler failed with this text.
    #[error("{0}")]
    Remote(String),
    /// This member was removed from the cluster.
    #[error("this member was removed from the cluster")]
    Removed,
    /// This member's consensus has stopped.
    #[error("consensus has stopped")]
    Stopped,
}
