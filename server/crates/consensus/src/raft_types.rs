//! openraft's types as this crate uses them, and their stored form.
//!
//! What is stored and sent is our own protobuf (`proto/internal/peer.proto`), never openraft's
//! serialization, which changes between its releases.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use metastore_proto::peer;
use openraft::OptionalSend;
use openraft::entry::RaftPayload;
use openraft::impls::{EmptyNode, leader_id_std};
use openraft::type_config::alias::{
    CommittedLeaderIdOf, EntryOf, LogIdOf, StoredMembershipOf, VoteOf,
};
use openraft::vote::RaftLeaderId;
use prost::Message;

use crate::completion;
use crate::runtime::Runtime;
use crate::state_machine::{LogPosition, Reply};

/// openraft's types as this crate uses them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig {}

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Command;
    type R = Replied;
    type NodeId = u64;
    type Node = EmptyNode;
    type Term = u64;
    type LeaderId = leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = Payload;
    type Entry = openraft::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Payload>;
    type Responder<T>
        = completion::Sender<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type AsyncRuntime = Runtime;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type LogId = LogIdOf<TypeConfig>;
pub(crate) type RaftVote = VoteOf<TypeConfig>;
pub(crate) type Entry = EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, EmptyNode>;
pub(crate) type StoredMembership = StoredMembershipOf<TypeConfig>;
pub(crate) type CommittedLeaderId = CommittedLeaderIdOf<TypeConfig>;

/// A proposed command.
#[derive(Clone, PartialEq, Eq)]
pub struct Command(pub Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "command of {} bytes", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// What the state machine made of an entry; `None` when it gave no answer.
#[derive(Debug)]
pub struct Replied(pub Option<Reply>);

/// Payload of an entry in its stored form, encoded once by whoever proposes it.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    encoded: Bytes,
    membership: Option<Box<Membership>>,
}

impl Payload {
    fn encode(command: Option<Bytes>, membership: Option<Membership>) -> Self {
        let message = peer::EntryPayload {
            command,
            membership: membership.as_ref().map(membership_to_message),
        };
        Self {
            encoded: message.encode_to_vec().into(),
            membership: membership.map(Box::new),
        }
    }

    /// A payload as it was stored or sent.
    pub(crate) fn decode(encoded: Bytes) -> Result<Self, prost::DecodeError> {
        let message = peer::EntryPayload::decode(encoded.clone())?;
        Ok(Self {
            encoded,
            membership: message
                .membership
                .map(|membership| Box::new(membership_from_message(membership))),
        })
    }

    /// The stored form.
    pub(crate) fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The command, as a slice of the stored form.
    pub(crate) fn command(&self) -> Option<Bytes> {
        peer::EntryPayload::decode(self.encoded.clone())
            .expect("the bytes were encoded here or decoded before")
            .command
    }

    pub(crate) fn membership(&self) -> Option<&Membership> {
        self.membership.as_deref()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.membership {
            Some(membership) => write!(formatter, "membership {membership}"),
            None => write!(formatter, "{} bytes", self.encoded.len()),
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

impl RaftPayload for Payload {
    type D = Command;
    type NodeId = u64;
    type Node = EmptyNode;

    fn blank() -> Self {
        Self {
            encoded: Bytes::new(),
            membership: None,
        }
    }

    fn with_normal(self, data: Command) -> Self {
        Self::encode(Some(data.0), self.membership.map(|boxed| *boxed))
    }

    fn with_membership(self, membership: Membership) -> Self {
        Self::encode(self.command(), Some(membership))
    }

    fn get_membership(&self) -> Option<Membership> {
        self.membership.as_deref().cloned()
    }
}

/// A membership of one configuration.
pub(crate) fn membership(voters: BTreeSet<u64>, learners: &BTreeSet<u64>) -> Membership {
    let nodes: BTreeMap<u64, EmptyNode> = voters
        .iter()
        .chain(learners)
        .map(|member| (*member, EmptyNode {}))
        .collect();
    Membership::new(vec![voters], nodes).expect("every voter is among the nodes")
}

fn membership_to_message(membership: &Membership) -> peer::Membership {
    peer::Membership {
        configurations: membership
            .get_joint_config()
            .iter()
            .map(|voters| peer::VoterSet {
                voters: voters.iter().copied().collect(),
            })
            .collect(),
        members: membership.nodes().map(|(member, _)| *member).collect(),
    }
}

fn membership_from_message(message: peer::Membership) -> Membership {
    let configurations: Vec<BTreeSet<u64>> = message
        .configurations
        .into_iter()
        .map(|set| set.voters.into_iter().collect())
        .collect();
    Membership::new_with_defaults(configurations, message.members)
}

pub(crate) fn stored_membership_to_message(stored: &StoredMembership) -> peer::StoredMembership {
    peer::StoredMembership {
        position: stored.log_id().map(log_id_to_message),
        membership: Some(membership_to_message(stored.membership())),
    }
}

pub(crate) fn stored_membership_from_message(message: peer::StoredMembership) -> StoredMembership {
    StoredMembership::new(
        message.position.map(log_id_from_message),
        message
            .membership
            .map(membership_from_message)
            .unwrap_or_default(),
    )
}

/// The form in which the state machine keeps the membership.
pub(crate) fn encode_membership(stored: &StoredMembership) -> Bytes {
    stored_membership_to_message(stored).encode_to_vec().into()
}

/// The inverse of [`encode_membership`]; empty bytes are the membership before the first.
pub(crate) fn decode_membership(encoded: Bytes) -> Result<StoredMembership, prost::DecodeError> {
    if encoded.is_empty() {
        return Ok(StoredMembership::default());
    }
    peer::StoredMembership::decode(encoded).map(stored_membership_from_message)
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

pub(crate) fn position(log_id: LogId) -> LogPosition {
    LogPosition {
        term: log_id.leader_id.term,
        index: log_id.index,
    }
}

pub(crate) fn position_to_log_id(position: LogPosition) -> LogId {
    log_id(position.term, position.index)
}

pub(crate) fn log_id_to_message(log_id: LogId) -> peer::LogPosition {
    peer::LogPosition {
        term: log_id.leader_id.term,
        index: log_id.index,
    }
}

pub(crate) fn log_id_from_message(message: peer::LogPosition) -> LogId {
    log_id(message.term, message.index)
}

pub(crate) fn vote_to_message(vote: &RaftVote) -> peer::Vote {
    peer::Vote {
        term: vote.leader_id.term,
        member: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(crate) fn vote_from_message(message: peer::Vote) -> RaftVote {
    if message.committed {
        RaftVote::new_committed(message.term, message.member)
    } else {
        RaftVote::new(message.term, message.member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_membership_payload_carries_the_command_and_survives_storage() {
        let members = membership([1, 2].into(), &[3].into());
        let payload =
            Payload::normal(Command(Bytes::from_static(b"add"))).with_membership(members.clone());
        let read = Payload::decode(payload.encoded().clone()).unwrap();
        assert_eq!(read.command(), Some(Bytes::from_static(b"add")));
        assert_eq!(read.get_membership(), Some(members));
    }

    #[test]
    fn a_blank_payload_is_no_command() {
        let read = Payload::decode(Payload::blank().encoded().clone()).unwrap();
        assert_eq!(read.command(), None);
        assert_eq!(
            Payload::decode(Payload::normal(Command(Bytes::new())).encoded().clone())
                .unwrap()
                .command(),
            Some(Bytes::new())
        );
    }

    #[test]
    fn the_stored_membership_survives_storage() {
        let stored =
            StoredMembership::new(Some(log_id(3, 9)), membership([1, 2].into(), &[7].into()));
        assert_eq!(
            decode_membership(encode_membership(&stored)).unwrap(),
            stored
        );
        assert_eq!(
            decode_membership(Bytes::new()).unwrap(),
            StoredMembership::default()
        );
    }
}
