//! The calls between the consensus of two members.

use std::sync::Arc;

use bytes::Bytes;
use metastore_proto::peer;
use openraft::raft::{TransferLeaderError, TransferLeaderRequest, VoteRequest, VoteResponse};
use prost::Message;

use crate::consensus::ReadIndex;
use crate::error::ReadIndexError;
use crate::leadership::Leadership;
use crate::node::RaftNode;
use crate::raft_types::{
    TypeConfig, log_id_from_message, log_id_to_message, position, vote_from_message,
    vote_to_message,
};
use crate::read_index::ReadIndexRounds;

/// Numbers of the control calls; part of the protocol.
pub(crate) mod method {
    pub(crate) const VOTE: u32 = 1;
    pub(crate) const PRE_VOTE: u32 = 2;
    pub(crate) const TRANSFER_LEADER: u32 = 3;
    pub(crate) const READ_INDEX: u32 = 4;
    /// Does nothing: a member that hears from nobody asks whether it is still a member.
    pub(crate) const PING: u32 = 5;
}

/// What answers control calls.
pub(crate) struct ControlService {
    pub(crate) raft: RaftNode,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) rounds: ReadIndexRounds,
}

impl ControlService {
    pub(crate) async fn call(&self, method: u32, body: Bytes) -> Result<Bytes, String> {
        match method {
            method::VOTE | method::PRE_VOTE => {
                let request = vote_request_from_message(decode(body)?)?;
                let answered = if method == method::VOTE {
                    self.raft.vote(request).await
                } else {
                    self.raft.pre_vote(request).await
                };
                let answer = answered.map_err(|error| error.to_string())?;
                Ok(encode(&vote_answer_to_message(&answer)))
            }
            method::TRANSFER_LEADER => {
                let request = transfer_request_from_message(decode(body)?)?;
                let answer = self
                    .raft
                    .handle_transfer_leader(request)
                    .await
                    .map_err(|error| error.to_string())?;
                Ok(encode(&transfer_answer_to_message(answer)))
            }
            method::READ_INDEX => Ok(encode(&read_index_to_message(self.read_index().await))),
            method::PING => Ok(Bytes::new()),
            other => Err(format!("unknown control call {other}")),
        }
    }

    async fn read_index(&self) -> Result<ReadIndex, ReadIndexError> {
        if !self.leadership.role().leads {
            return Err(ReadIndexError::NoLeader);
        }
        self.rounds.join().await
    }
}

pub(crate) fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

pub(crate) fn decode<M: Message + Default>(body: Bytes) -> Result<M, String> {
    M::decode(body).map_err(|error| error.to_string())
}

pub(crate) fn vote_request_to_message(request: &VoteRequest<TypeConfig>) -> peer::VoteRequest {
    peer::VoteRequest {
        vote: Some(vote_to_message(&request.vote)),
        last_log: request.last_log_id.map(log_id_to_message),
        leadership_transfer: request.leadership_transfer,
    }
}

fn vote_request_from_message(
    message: peer::VoteRequest,
) -> Result<VoteRequest<TypeConfig>, String> {
    Ok(VoteRequest {
        vote: vote_from_message(message.vote.ok_or("a vote request without a vote")?),
        last_log_id: message.last_log.map(log_id_from_message),
        leadership_transfer: message.leadership_transfer,
    })
}

fn vote_answer_to_message(answer: &VoteResponse<TypeConfig>) -> peer::VoteAnswer {
    peer::VoteAnswer {
        vote: Some(vote_to_message(&answer.vote)),
        granted: answer.vote_granted,
        last_log: answer.last_log_id.map(log_id_to_message),
    }
}

pub(crate) fn vote_answer_from_message(
    message: peer::VoteAnswer,
) -> Result<VoteResponse<TypeConfig>, String> {
    Ok(VoteResponse {
        vote: vote_from_message(message.vote.ok_or("a vote answer without a vote")?),
        vote_granted: message.granted,
        last_log_id: message.last_log.map(log_id_from_message),
    })
}

pub(crate) fn transfer_request_to_message(
    request: &TransferLeaderRequest<TypeConfig>,
) -> peer::TransferLeaderRequest {
    peer::TransferLeaderRequest {
        from_leader: Some(vote_to_message(request.from_leader())),
        to: *request.to_node_id(),
        last_log: request.last_log_id().copied().map(log_id_to_message),
    }
}

fn transfer_request_from_message(
    message: peer::TransferLeaderRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, String> {
    Ok(TransferLeaderRequest::new(
        vote_from_message(message.from_leader.ok_or("a transfer without a vote")?),
        message.to,
        message.last_log.map(log_id_from_message),
    ))
}

fn transfer_answer_to_message(
    answer: Result<(), TransferLeaderError<TypeConfig>>,
) -> peer::TransferLeaderAnswer {
    use peer::transfer_leader_answer::Refusal;
    let refusal = match answer {
        Ok(()) => None,
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            Some(Refusal::VoteChanged(peer::VoteChanged {
                expected: Some(vote_to_message(&expected)),
                actual: Some(vote_to_message(&actual)),
            }))
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            Some(Refusal::LogNotFlushed(peer::LogNotFlushed {
                expected: expected.map(log_id_to_message),
                actual: actual.map(log_id_to_message),
            }))
        }
    };
    peer::TransferLeaderAnswer { refusal }
}

pub(crate) fn transfer_answer_from_message(
    message: peer::TransferLeaderAnswer,
) -> Result<Result<(), TransferLeaderError<TypeConfig>>, String> {
    use peer::transfer_leader_answer::Refusal;
    match message.refusal {
        None => Ok(Ok(())),
        Some(Refusal::VoteChanged(changed)) => Ok(Err(TransferLeaderError::VoteChanged {
            expected: vote_from_message(changed.expected.ok_or("no expected vote")?),
            actual: vote_from_message(changed.actual.ok_or("no actual vote")?),
        })),
        Some(Refusal::LogNotFlushed(log)) => Ok(Err(TransferLeaderError::LogNotFlushed {
            expected: log.expected.map(log_id_from_message),
            actual: log.actual.map(log_id_from_message),
        })),
    }
}

fn read_index_to_message(answer: Result<ReadIndex, ReadIndexError>) -> peer::ReadIndexAnswer {
    use peer::read_index_answer::Outcome;
    let outcome = match answer {
        Ok(_) => Outcome::Ok,
        Err(ReadIndexError::NoLeader) => Outcome::NoLeader,
        Err(ReadIndexError::LeaderChanged) => Outcome::LeaderChanged,
        Err(ReadIndexError::TimedOut) => Outcome::TimedOut,
        Err(ReadIndexError::Stopped) => Outcome::Stopped,
    };
    peer::ReadIndexAnswer {
        outcome: outcome.into(),
        term: answer.map_or(0, |read| read.term),
        index: answer
            .ok()
            .and_then(|read| read.index)
            .map(|index| peer::LogPosition {
                term: index.term,
                index: index.index,
            }),
    }
}

pub(crate) fn read_index_from_message(
    message: peer::ReadIndexAnswer,
) -> Result<ReadIndex, ReadIndexError> {
    use peer::read_index_answer::Outcome;
    match message.outcome() {
        Outcome::Ok => Ok(ReadIndex {
            index: message
                .index
                .map(|index| position(log_id_from_message(index))),
            term: message.term,
        }),
        Outcome::NoLeader => Err(ReadIndexError::NoLeader),
        Outcome::LeaderChanged => Err(ReadIndexError::LeaderChanged),
        Outcome::TimedOut => Err(ReadIndexError::TimedOut),
        // The leader is stopping, this member is not.
        Outcome::Stopped => Err(ReadIndexError::NoLeader),
    }
}
