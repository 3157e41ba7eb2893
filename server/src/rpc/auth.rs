//! The Auth service.

use std::sync::Arc;

use metastore_auth::{AuthState, Identity};
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::auth_server::Auth;
use metastore_proto::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse,
    AuthRoleAddRequest, AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse,
    AuthRoleGetRequest, AuthRoleGetResponse, AuthRoleGrantPermissionRequest,
    AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest,
    AuthStatusResponse, AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest,
    AuthUserChangePasswordResponse, AuthUserDeleteRequest, AuthUserDeleteResponse,
    AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest, AuthUserGrantRoleResponse,
    AuthUserListRequest, AuthUserListResponse, AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse, ResponseHeader,
};
use metastore_proto::internal::command::Request as Proposal;
use tonic::{Request, Response, Status};

use super::{OnLearner, check_call, credentials_of};
use crate::auth::Credentials;
use crate::node::Node;
use crate::observe::metrics;

/// The Auth service of a member.
#[derive(Clone)]
pub struct AuthService {
    node: Arc<Node>,
}

impl AuthService {
    /// The service of `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    fn check<T>(&self, request: &Request<T>) -> Result<Credentials, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        Ok(credentials_of(&self.node, request))
    }

    /// Proposes a command that answers with nothing but a header.
    async fn propose<T>(
        &self,
        request: Request<T>,
        proposal: impl FnOnce(T) -> Proposal,
    ) -> Result<Option<ResponseHeader>, Status> {
        let credentials = self.check(&request)?;
        let proposal = proposal(request.into_inner());
        let applied = self.node.propose_auth(proposal, &credentials).await?;
        Ok(Some(self.node.header_at(applied.revision)))
    }

    /// The users and roles as of everything that is committed now, for a client that may see them.
    ///
    /// etcd sends its reads through the log; this gives the same answers without an entry.
    async fn read<T>(
        &self,
        request: &Request<T>,
        kind: usize,
        check: impl FnOnce(&AuthState, Option<&Identity>) -> Result<(), EtcdError>,
    ) -> Result<(Arc<AuthState>, Option<ResponseHeader>), Status> {
        let credentials = self.check(request)?;
        let identity = self.node.identify(&credentials).await?;
        self.node.linearize_as_proposal(kind).await?;
        let state = self.node.auth().state();
        check(&state, identity.as_ref())?;
        Ok((state, Some(self.node.header())))
    }
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_enable(
        &self,
        request: Request<AuthEnableRequest>,
    ) -> Result<Response<AuthEnableResponse>, Status> {
        let header = self.propose(request, Proposal::AuthEnable).await?;
        Ok(Response::new(AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        let header = self.propose(request, Proposal::AuthDisable).await?;
        Ok(Response::new(AuthDisableResponse { header }))
    }

    async fn auth_status(
        &self,
        request: Request<AuthStatusRequest>,
    ) -> Result<Response<AuthStatusResponse>, Status> {
        let (state, header) = self
            .read(&request, metrics::AUTH_STATUS, |_, _| Ok(()))
            .await?;
        Ok(Response::new(AuthStatusResponse {
            header,
            enabled: state.enabled,
            auth_revision: state.revision,
        }))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        self.check(&request)?;
        let AuthenticateRequest { name, password } = request.into_inner();
        let (token, revision) = self.node.authenticate(&name, &password).await?;
        Ok(Response::new(AuthenticateResponse {
            header: Some(self.node.header_at(revision)),
            token,
        }))
    }

    async fn user_add(
        &self,
        request: Request<AuthUserAddRequest>,
    ) -> Result<Response<AuthUserAddResponse>, Status> {
        let credentials = self.check(&request)?;
        let request = request.into_inner();
        let added = self
            .node
            .add_user(
                request.name,
                request.password,
                request.options,
                &credentials,
            )
            .await?;
        Ok(Response::new(AuthUserAddResponse {
            header: Some(self.node.header_at(added.revision)),
        }))
    }

    async fn user_get(
        &self,
        request: Request<AuthUserGetRequest>,
    ) -> Result<Response<AuthUserGetResponse>, Status> {
        let name = request.get_ref().name.clone();
        let (state, header) = self
            .read(&request, metrics::AUTH_USER_GET, |state, identity| {
                state.check_user_get(identity, &name)
            })
            .await?;
        let user = state.user(&name).ok_or(EtcdError::UserNotFound)?;
        Ok(Response::new(AuthUserGetResponse {
            header,
            roles: user.record.roles.clone(),
        }))
    }

    async fn user_list(
        &self,
        request: Request<AuthUserListRequest>,
    ) -> Result<Response<AuthUserListResponse>, Status> {
        let (state, header) = self
            .read(&request, metrics::AUTH_USER_LIST, AuthState::check_admin)
            .await?;
        Ok(Response::new(AuthUserListResponse {
            header,
            users: state.user_names().map(str::to_owned).collect(),
        }))
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        let header = self.propose(request, Proposal::AuthUserDelete).await?;
        Ok(Response::new(AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        let credentials = self.check(&request)?;
        let request = request.into_inner();
        let changed = self
            .node
            .change_password(
                request.name,
                request.password,
                &request.hashed_password,
                &credentials,
            )
            .await?;
        Ok(Response::new(AuthUserChangePasswordResponse {
            header: Some(self.node.header_at(changed.revision)),
        }))
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        let header = self.propose(request, Proposal::AuthUserGrantRole).await?;
        Ok(Response::new(AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        let header = self.propose(request, Proposal::AuthUserRevokeRole).await?;
        Ok(Response::new(AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<AuthRoleAddRequest>,
    ) -> Result<Response<AuthRoleAddResponse>, Status> {
        let header = self.propose(request, Proposal::AuthRoleAdd).await?;
        Ok(Response::new(AuthRoleAddResponse { header }))
    }

    async fn role_get(
        &self,
        request: Request<AuthRoleGetRequest>,
    ) -> Result<Response<AuthRoleGetResponse>, Status> {
        let role = request.get_ref().role.clone();
        let (state, header) = self
            .read(&request, metrics::AUTH_ROLE_GET, |state, identity| {
                state.check_role_get(identity, &role)
            })
            .await?;
        let perm = state
            .shown_permissions(&role)
            .ok_or(EtcdError::RoleNotFound)?;
        Ok(Response::new(AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(
        &self,
        request: Request<AuthRoleListRequest>,
    ) -> Result<Response<AuthRoleListResponse>, Status> {
        let (state, header) = self
            .read(&request, metrics::AUTH_ROLE_LIST, AuthState::check_admin)
            .await?;
        Ok(Response::new(AuthRoleListResponse {
            header,
            roles: state.role_names().map(str::to_owned).collect(),
        }))
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        let header = self.propose(request, Proposal::AuthRoleDelete).await?;
        Ok(Response::new(AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        let header = self
            .propose(request, Proposal::AuthRoleGrantPermission)
            .await?;
        Ok(Response::new(AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        let header = self
            .propose(request, Proposal::AuthRoleRevokePermission)
            .await?;
        Ok(Response::new(AuthRoleRevokePermissionResponse { header }))
    }
}
