//! The Lease service.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::lease_server::Lease;
use metastore_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use metastore_proto::internal::LeaseRevokeCommand;
use metastore_proto::internal::command::Request as Proposal;
use metastore_store::CommandResponse;
use opentelemetry::KeyValue;
use rand::Rng;
use tonic::{Request, Response, Status, Streaming};

use super::{OnLearner, check_call, check_stream, credentials_of, leader_lost};
use crate::auth::Credentials;
use crate::error::RequestError;
use crate::node::Node;
use crate::observe::metrics::METRICS;
use crate::observe::traces;
use crate::quota::LEASE_COST;

/// The Lease service of a member.
#[derive(Clone)]
pub struct LeaseService {
    node: Arc<Node>,
}

impl LeaseService {
    /// The service of `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// LeaseGrant, without gRPC.
    ///
    /// # Errors
    /// As etcd's LeaseGrant.
    pub async fn grant_inner(
        &self,
        mut request: LeaseGrantRequest,
        credentials: &Credentials,
    ) -> Result<LeaseGrantResponse, RequestError> {
        self.node.check_quota(LEASE_COST).await?;
        self.node.check_identified(credentials).await?;
        while request.id == 0 {
            request.id = rand::rng().random::<i64>() & i64::MAX;
        }
        // The least TTL depends on this member's flags, so it is settled before replication: apply
        // must not look at a local setting.
        let minimum = metastore_lease::minimum_ttl_seconds(
            self.node.config.heartbeat_interval,
            self.node.config.election_timeout,
        );
        request.ttl = metastore_lease::granted_ttl(request.ttl, minimum)
            .map_err(|_| EtcdError::LeaseTTLTooLarge)?;
        let (id, ttl) = (request.id, request.ttl);
        let attributes = || vec![KeyValue::new("id", id), KeyValue::new("ttl", ttl)];
        let proposal = self
            .node
            .propose_store(Proposal::LeaseGrant(request), credentials);
        match traces::in_span("lease_grant", attributes, proposal).await? {
            CommandResponse::LeaseGrant(mut response) => {
                self.node.fill(&mut response.header);
                Ok(response)
            }
            other => Err(RequestError::Unknown(format!(
                "unexpected result of a lease grant: {other:?}"
            ))),
        }
    }

    /// LeaseRevoke, without gRPC.
    ///
    /// # Errors
    /// As etcd's LeaseRevoke.
    pub async fn revoke_inner(
        &self,
        request: LeaseRevokeRequest,
        credentials: &Credentials,
    ) -> Result<LeaseRevokeResponse, RequestError> {
        self.node.check_identified(credentials).await?;
        let command = LeaseRevokeCommand {
            id: request.id,
            expired_in_term: 0,
        };
        let attributes = || vec![KeyValue::new("id", request.id)];
        let proposal = self
            .node
            .propose_store(Proposal::LeaseRevoke(command), credentials);
        match traces::in_span("lease_revoke", attributes, proposal).await? {
            CommandResponse::LeaseRevoke(mut response) => {
                self.node.fill(&mut response.header);
                Ok(response)
            }
            other => Err(RequestError::Unknown(format!(
                "unexpected result of a lease revoke: {other:?}"
            ))),
        }
    }
}

async fn keep_alive(
    node: &Arc<Node>,
    request: LeaseKeepAliveRequest,
    credentials: &Credentials,
) -> Result<LeaseKeepAliveResponse, Status> {
    // The header is taken before the renewal: its revision must not be later than a revision at
    // which the lease might already be gone.
    let header = node.header();
    let ttl = node.renew_lease(request.id, credentials).await?;
    Ok(LeaseKeepAliveResponse {
        header: Some(header),
        id: request.id,
        ttl,
    })
}

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let credentials = credentials_of(&self.node, &request);
        let request = request.into_inner();
        Ok(Response::new(
            self.grant_inner(request, &credentials).await?,
        ))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let credentials = credentials_of(&self.node, &request);
        let request = request.into_inner();
        Ok(Response::new(
            self.revoke_inner(request, &credentials).await?,
        ))
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let requires_leader =
            check_stream(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let node = Arc::clone(&self.node);
        let credentials = Credentials::read(request.metadata().as_ref(), request.extensions());
        let mut requests = request.into_inner();
        let stopped = node.stopped();
        let answers = async_stream::stream! {
            let lost = async {
                if requires_leader {
                    leader_lost(Arc::clone(&node)).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::pin!(lost);
            tokio::pin!(stopped);
            loop {
                let request = tokio::select! {
                    request = requests.next() => request,
                    () = &mut lost => {
                        yield Err(EtcdError::NoLeader.into());
                        return;
                    }
                    () = &mut stopped => {
                        yield Err(EtcdError::Stopped.into());
                        return;
                    }
                };
                match request {
                    Some(Ok(request)) => {
                        let answer = keep_alive(&node, request, &credentials).await;
                        let failed = answer.is_err();
                        yield answer;
                        if failed {
                            return;
                        }
                    }
                    Some(Err(status)) => {
                        let receiving = ["receive", "lease-keepalive"];
                        METRICS.stream_failures.with_label_values(&receiving).inc();
                        yield Err(status);
                        return;
                    }
                    None => return,
                }
            }
        };
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let credentials = credentials_of(&self.node, &request);
        self.node.check_identified(&credentials).await?;
        let request = request.into_inner();
        let mut response = if request.keys {
            let (id, revision) = (request.id, self.node.auth().revision());
            self.node.check_lease_read(id, &credentials).await?;
            let response = self.node.lease_time_to_live(request).await?;
            self.node.check_auth_revision(revision)?;
            response
        } else {
            self.node.lease_time_to_live(request).await?
        };
        self.node.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let credentials = credentials_of(&self.node, &request);
        let leases = self.node.application.leases.by_expiry();
        self.node.check_leases_read(&leases, &credentials).await?;
        let leases = leases.into_iter().map(|id| LeaseStatus { id }).collect();
        Ok(Response::new(LeaseLeasesResponse {
            header: Some(self.node.header()),
            leases,
        }))
    }
}
