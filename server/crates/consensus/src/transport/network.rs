//! The transport as openraft sees it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EmptyNode, OptionalSend};

use super::Peers;
use super::append::{AppendClient, unreachable};
use super::control::{self, method};
use super::peers::Link;
use super::snapshot;
use crate::raft_types::{RaftVote, TypeConfig};
use crate::state_machine::SnapshotFiles;

/// Pauses between attempts to reach a member: short at first, since most outages are a restart.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LAST: Duration = Duration::from_millis(500);

/// Gives openraft a client for each member.
pub(crate) struct NetworkFactory {
    pub(crate) peers: Arc<Peers>,
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> PeerNetwork {
        let link = self.peers.link(target);
        PeerNetwork {
            append: AppendClient::new(link.clone()),
            link,
        }
    }
}

/// openraft's client for one member and one purpose, with an append connection of its own.
pub(crate) struct PeerNetwork {
    append: AppendClient,
    link: Arc<Link>,
}

impl PeerNetwork {
    async fn control<M: prost::Message + Default>(
        &self,
        method: u32,
        request: &impl prost::Message,
        timeout: Duration,
    ) -> Result<M, RPCError<TypeConfig>> {
        let body = control::encode(request);
        let answer = self
            .link
            .control(method, body, timeout)
            .await
            .map_err(unreachable)?;
        control::decode(answer).map_err(unreachable)
    }
}

impl RaftNetworkV2<TypeConfig> for PeerNetwork {
    type SnapshotData = SnapshotFiles;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let input = Box::pin(futures::stream::once(async { rpc }));
        let mut answers = self.append.stream(input).await?;
        let answer = answers
            .next()
            .await
            .ok_or_else(|| unreachable("the append has no answer"))??;
        Ok(answer.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(self.append.stream(input))
    }

    // A vote's deadline ends before openraft's own, which would drop the call unseen: only a call
    // that times out here gives up a connection that is dead.
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = control::vote_request_to_message(&rpc);
        let answer = self
            .control(method::VOTE, &request, option.soft_ttl())
            .await?;
        control::vote_answer_from_message(answer).map_err(unreachable)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = control::vote_request_to_message(&rpc);
        let answer = self
            .control(method::PRE_VOTE, &request, option.soft_ttl())
            .await?;
        control::vote_answer_from_message(answer).map_err(unreachable)
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: SnapshotOf<TypeConfig, SnapshotFiles>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            sent = snapshot::send(&self.link, vote, snapshot) => sent,
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = control::transfer_request_to_message(&req);
        let timeout = self.link.dialer.timeouts.transfer;
        let answer = self
            .control(method::TRANSFER_LEADER, &request, timeout)
            .await?;
        control::transfer_answer_from_message(answer).map_err(unreachable)
    }

    fn backoff(&self) -> Option<Backoff> {
        let pauses = std::iter::successors(Some(BACKOFF_FIRST), |pause| {
            Some((*pause * 2).min(BACKOFF_LAST))
        });
        Some(Backoff::new(pauses))
    }
}
