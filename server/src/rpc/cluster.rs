//! The Cluster service.

use std::sync::Arc;

use metastore_proto::etcdserverpb::cluster_server::Cluster;
use metastore_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, ResponseHeader,
};
use metastore_proto::internal::MemberRecord;
use tonic::{Request, Response, Status};

use super::{OnLearner, check_call, credentials_of};
use crate::membership::parse_peer_urls;
use crate::node::Node;

/// The Cluster service of a member.
#[derive(Clone)]
pub struct ClusterService {
    node: Arc<Node>,
}

impl ClusterService {
    /// The service of `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Member calls leave the revision of their header at 0, as etcd does.
    fn header(&self) -> Option<ResponseHeader> {
        Some(self.node.header_at(0))
    }
}

fn to_member(record: MemberRecord) -> Member {
    Member {
        id: record.id,
        name: record.name,
        peer_ur_ls: record.peer_urls,
        client_ur_ls: record.client_urls,
        is_learner: record.is_learner,
    }
}

fn to_members(records: Vec<MemberRecord>) -> Vec<Member> {
    records.into_iter().map(to_member).collect()
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let credentials = credentials_of(&self.node, &request);
        let request = request.into_inner();
        parse_peer_urls(&request.peer_ur_ls)?;
        self.node.check_admin(&credentials).await?;
        let (member, members) = self
            .node
            .add_member(&request.peer_ur_ls, request.is_learner)
            .await?;
        Ok(Response::new(MemberAddResponse {
            header: self.header(),
            member: Some(to_member(member)),
            members: to_members(members),
        }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let credentials = credentials_of(&self.node, &request);
        self.node.check_admin(&credentials).await?;
        let members = self.node.remove_member(request.into_inner().id).await?;
        Ok(Response::new(MemberRemoveResponse {
            header: self.header(),
            members: to_members(members),
        }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let credentials = credentials_of(&self.node, &request);
        self.node.check_admin(&credentials).await?;
        let request = request.into_inner();
        let members = self
            .node
            .update_member(request.id, request.peer_ur_ls)
            .await?;
        Ok(Response::new(MemberUpdateResponse {
            header: self.header(),
            members: to_members(members),
        }))
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let credentials = credentials_of(&self.node, &request);
        if request.get_ref().linearizable {
            self.node.linearize().await?;
        }
        self.node.check_identified(&credentials).await?;
        let directory = self.node.application.directory.current();
        Ok(Response::new(MemberListResponse {
            header: self.header(),
            members: directory.members.values().cloned().map(to_member).collect(),
        }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let credentials = credentials_of(&self.node, &request);
        self.node.check_admin(&credentials).await?;
        let members = self.node.promote_member(request.into_inner().id).await?;
        Ok(Response::new(MemberPromoteResponse {
            header: self.header(),
            members: to_members(members),
        }))
    }
}
