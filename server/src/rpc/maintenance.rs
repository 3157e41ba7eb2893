//! The Maintenance service.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures::Stream;
use metastore_consensus::TransferError;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::alarm_request::AlarmAction;
use metastore_proto::etcdserverpb::maintenance_server::Maintenance;
use metastore_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeInfo,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest,
    StatusResponse,
};
use metastore_proto::internal::command::Request as Proposal;
use tonic::{Request, Response, Status};

use super::snapshot::snapshot;
use super::{OnLearner, check_call, check_stream, credentials_of};
use crate::alarms;
use crate::application::Response as ApplyResponse;
use crate::error::RequestError;
use crate::node::Node;
use crate::observe::metrics::{self, METRICS};
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
        let directory = node.application.directory.current();
        let mut errors = Vec::new();
        if status.leader.is_none() {
            errors.push(EtcdError::NoLeader.text().to_owned());
        }
        errors.extend(node.application.alarms.list(0).iter().map(alarms::text));
        Ok(StatusResponse {
            header: Some(node.header()),
            version: version::ETCD_VERSION.to_owned(),
            db_size: size.physical_bytes.cast_signed(),
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
            storage_version: directory
                .storage_version()
                .map(|version| version.to_string())
                .unwrap_or_default(),
            db_size_quota: node.config.quota_backend_bytes.map_or(-1, u64::cast_signed),
            downgrade_info: Some(DowngradeInfo {
                enabled: directory.downgrade_target.is_some(),
                target_version: directory.downgrade_target.clone().unwrap_or_default(),
            }),
        })
    }

    /// Alarm, without gRPC.
    ///
    /// # Errors
    /// As [`Node::propose`].
    pub async fn alarm_inner(&self, request: AlarmRequest) -> Result<AlarmResponse, RequestError> {
        let node = &self.node;
        let alarms = if request.action() == AlarmAction::Get {
            // etcd sends the question through its log; waiting for what was committed sees the same.
            node.linearize_as_proposal(metrics::ALARM).await?;
            node.application.alarms.list(request.alarm)
        } else {
            match node.propose(Proposal::Alarm(request)).await? {
                ApplyResponse::Alarms(alarms) => alarms,
                other => {
                    let text = format!("an alarm request was answered by {other:?}");
                    return Err(RequestError::Unknown(text));
                }
            }
        };
        Ok(AlarmResponse {
            header: Some(node.header()),
            alarms,
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
        let credentials = credentials_of(&self.node, &request);
        match request.get_ref().action() {
            AlarmAction::Get => self.node.check_identified(&credentials).await?,
            _ => self.node.check_admin(&credentials).await?,
        }
        let response = self.alarm_inner(request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Allowed)?;
        let credentials = credentials_of(&self.node, &request);
        self.node.check_identified(&credentials).await?;
        Ok(Response::new(self.status_inner()?))
    }

    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let credentials = credentials_of(&self.node, &request);
        self.node.check_admin(&credentials).await?;
        // Somebody who no longer waits does not stop it.
        let node = Arc::clone(&self.node);
        let work = tokio::spawn(async move { node.defragment().await });
        let outcome = work.await.unwrap_or(Err(EtcdError::Stopped.into()));
        if let Err(error) = outcome {
            tracing::warn!(%error, "failed to defragment");
            return Err(error.into());
        }
        // etcd leaves the header out here.
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let credentials = credentials_of(&self.node, &request);
        self.node.check_admin(&credentials).await?;
        let reader = self.node.reader();
        let started = Instant::now();
        let (hash, revision) = blocking(move || Ok((reader.hash()?, reader.revision()))).await?;
        METRICS.hash.observe(started.elapsed().as_secs_f64());
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
        let credentials = credentials_of(&self.node, &request);
        self.node.check_admin(&credentials).await?;
        let revision = request.into_inner().revision;
        if let Some(kept) = self.node.application.compaction.hash(revision) {
            return Ok(Response::new(HashKvResponse {
                header: Some(self.node.header()),
                hash: kept.hash,
                compact_revision: kept.compact_revision,
                hash_revision: revision,
            }));
        }
        let started = Instant::now();
        let hash = self.node.hash_kv(revision).await?;
        METRICS
            .hash_revision
            .observe(started.elapsed().as_secs_f64());
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
        check_stream(&self.node, request.metadata().as_ref(), OnLearner::Allowed)?;
        let credentials = credentials_of(&self.node, &request);
        self.node.check_admin(&credentials).await?;
        let engine = self.node.reader().engine();
        let directory = self.node.application.directory.current();
        let version = directory.storage_version_of_copies();
        Ok(Response::new(Box::pin(snapshot(engine, version))))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let credentials = credentials_of(&self.node, &request);
        self.node.check_admin(&credentials).await?;
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
        let credentials = credentials_of(&self.node, &request);
        self.node.check_admin(&credentials).await?;
        let response = self.node.downgrade(request.get_ref()).await?;
        Ok(Response::new(response))
    }
}
