//! The Maintenance service.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use metastore_consensus::TransferError;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::maintenance_server::Maintenance;
use metastore_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeInfo,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest,
    StatusResponse,
};
use tonic::{Request, Response, Status};

use super::snapshot::snapshot;
use super::{OnLearner, check_call};
use crate::error::RequestError;
use crate::node::Node;
use crate::version;

/// The Maintenance service of a member.
#[derive(Clone)]
pub struct MaintenanceService {
    node: Arc<Node>,
}

impl MaintenanceService {
    /// The service of `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Status, without gRPC.
    ///
    /// # Errors
    /// The engine's.
    pub fn status_inner(&self) -> Result<StatusResponse, RequestError> {
        let node = &self.node;
        let status = node.status();
        let size = node.reader().size()?;
        let applied = node.application.applied_index();
        let mut errors = Vec::new();
        if status.leader.is_none() {
            errors.push(EtcdError::NoLeader.text().to_owned());
        }
        Ok(StatusResponse {
            header: Some(node.header()),
            version: version::ETCD_VERSION.to_owned(),
            db_size: size.physical_bytes.max(size.logical_bytes).cast_signed(),
            leader: status.leader.unwrap_or_default(),
            // The status is a little older than the applied index, which can only be committed.
            raft_index: status
                .committed
                .map_or(0, |position| position.index + 1)
                .max(applied),
            raft_term: status.term,
            raft_applied_index: applied,
            errors,
            db_size_in_use: size.logical_bytes.cast_signed(),
            is_learner: node.is_learner(),
            storage_version: version::STORAGE_VERSION.to_owned(),
            db_size_quota: node.config.quota_backend_bytes.map_or(-1, u64::cast_signed),
            downgrade_info: Some(DowngradeInfo::default()),
        })
    }

    /// MoveLeader, without gRPC.
    ///
    /// # Errors
    /// As etcd's MoveLeader.
    pub async fn move_leader_inner(&self, target: u64) -> Result<(), RequestError> {
        if !self.node.is_leader() {
            return Err(EtcdError::NotLeader.into());
        }
        let directory = self.node.application.directory.current();
        if directory
            .members
            .get(&target)
            .is_none_or(|member| member.is_learner)
        {
            return Err(EtcdError::BadLeaderTransferee.into());
        }
        if target == self.node.member_id {
            return Ok(());
        }
        match self
            .node
            .consensus
            .transfer_leader(target, self.node.request_timeout())
            .await
        {
            Ok(()) => Ok(()),
            Err(TransferError::NotLeader { .. }) => Err(EtcdError::NotLeader.into()),
            Err(_) => Err(RequestError::Unknown(
                "etcdserver: request timed out, leader transfer took too long".to_owned(),
            )),
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(EtcdError::Stopped.into()),
    }
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        // Nothing raises an alarm yet, so the list is truthfully empty; `etcdctl endpoint health`
        // asks for it. Raising or clearing one is not implemented.
        if request.get_ref().action == 0 {
            return Ok(Response::new(AlarmResponse {
                header: Some(self.node.header()),
                alarms: Vec::new(),
            }));
        }
        Err(RequestError::Unimplemented("Alarm").into())
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Allowed)?;
        Ok(Response::new(self.status_inner()?))
    }

    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        Err(RequestError::Unimplemented("Defragment").into())
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let reader = self.node.reader();
        let (hash, revision) = blocking(move || Ok((reader.hash()?, reader.revision()))).await?;
        Ok(Response::new(HashResponse {
            header: Some(self.node.header_at(revision)),
            hash,
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let reader = self.node.reader();
        let revision = request.into_inner().revision;
        let hash = blocking(move || Ok(reader.hash_kv(revision)?)).await?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.node.header_at(hash.revision)),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.hash_revision,
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Allowed)?;
        let engine = self.node.reader().engine();
        Ok(Response::new(Box::pin(snapshot(engine))))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        self.move_leader_inner(request.into_inner().target_id)
            .await?;
        // etcd leaves the header out here.
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        Err(RequestError::Unimplemented("Downgrade").into())
    }
}
