//! Calls to members, over etcd's API. Each has a deadline, and an outcome that says what to do.

use std::fmt;
use std::time::{Duration, Instant};

use metastore_operator_core::{Alarm, AlarmKind, ListedMember, MemberAnswer};
use metastore_proto::etcdserverpb::auth_client::AuthClient;
use metastore_proto::etcdserverpb::cluster_client::ClusterClient;
use metastore_proto::etcdserverpb::kv_client::KvClient;
use metastore_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use metastore_proto::etcdserverpb::{self as pb, alarm_request::AlarmAction};
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

/// For a look at a member: three of them fit into the patience of a person.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// For a change of the members: it waits for a majority.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// For reclaiming space, which etcd does while it answers nobody.
const DEFRAGMENT_TIMEOUT: Duration = Duration::from_secs(600);

/// How a call ended that did not succeed.
#[derive(Clone, Debug)]
pub(crate) enum CallError {
    /// It may succeed later, or on another member.
    Retry(String),
    /// It must not be repeated as it is.
    Refused(String),
    /// It may have had its effect: look before anything else.
    Unknown(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry(text) | Self::Refused(text) => formatter.write_str(text),
            Self::Unknown(text) => write!(formatter, "the outcome is not known: {text}"),
        }
    }
}

impl std::error::Error for CallError {}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let text = status.message().to_owned();
        match status.code() {
            Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => {
                Self::Unknown(text)
            }
            Code::Unavailable | Code::ResourceExhausted | Code::Aborted => Self::Retry(text),
            _ => Self::Refused(text),
        }
    }
}

/// Certificates with which members are called.
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    /// The authority, PEM.
    pub(crate) authority: Vec<u8>,
    /// Our certificate, PEM.
    pub(crate) certificate: Vec<u8>,
    /// Its key, PEM.
    pub(crate) key: Vec<u8>,
}

/// One member.
#[derive(Clone, Debug)]
pub(crate) struct MemberClient {
    channel: Channel,
    token: Option<String>,
}

impl MemberClient {
    /// A client that connects when it is first used. `host` is the name that the certificate must have.
    pub(crate) fn new(
        address: &str,
        host: &str,
        tls: Option<&TlsFiles>,
    ) -> Result<Self, CallError> {
        let invalid = |error: &dyn fmt::Display| CallError::Refused(format!("{address}: {error}"));
        let mut endpoint = Endpoint::from_shared(address.to_owned())
            .map_err(|error| invalid(&error))?
            .connect_timeout(PROBE_TIMEOUT);
        if let Some(files) = tls {
            let config = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(&files.authority))
                .identity(Identity::from_pem(&files.certificate, &files.key))
                .domain_name(host);
            endpoint = endpoint
                .tls_config(config)
                .map_err(|error| invalid(&error))?;
        }
        Ok(Self {
            channel: endpoint.connect_lazy(),
            token: None,
        })
    }

    /// The same client, logged in.
    pub(crate) fn with_token(&self, token: Option<String>) -> Self {
        Self {
            channel: self.channel.clone(),
            token,
        }
    }

    fn request<T>(&self, message: T, timeout: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        if let Some(token) = self
            .token
            .as_deref()
            .and_then(|token| MetadataValue::try_from(token).ok())
        {
            request.metadata_mut().insert("token", token);
        }
        request
    }

    fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone())
    }

    fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    /// What the member says about itself.
    pub(crate) async fn status(&self) -> Result<MemberAnswer, CallError> {
        let asked = Instant::now();
        let request = self.request(pb::StatusRequest {}, PROBE_TIMEOUT);
        let answer = limited(PROBE_TIMEOUT, self.maintenance().status(request)).await?;
        let header = answer.header.unwrap_or_default();
        Ok(MemberAnswer {
            answer_time: asked.elapsed(),
            member_id: header.member_id,
            cluster_id: header.cluster_id,
            leader_id: answer.leader,
            is_learner: answer.is_learner,
            version: answer.version,
            storage_version: answer.storage_version,
            revision: header.revision,
            raft_index: answer.raft_index,
            raft_applied_index: answer.raft_applied_index,
            db_size_bytes: answer.db_size,
            db_in_use_bytes: answer.db_size_in_use,
            db_quota_bytes: answer.db_size_quota,
        })
    }

    /// The members, with the agreement of a majority.
    pub(crate) async fn members(&self) -> Result<Vec<ListedMember>, CallError> {
        let request = self.request(pb::MemberListRequest { linearizable: true }, PROBE_TIMEOUT);
        let answer = limited(PROBE_TIMEOUT, self.cluster().member_list(request)).await?;
        Ok(answer.members.into_iter().map(listed).collect())
    }

    /// Adds a member that does not vote yet. One that is there already is fine.
    pub(crate) async fn add_learner(&self, peer_url: &str) -> Result<(), CallError> {
        let message = pb::MemberAddRequest {
            peer_ur_ls: vec![peer_url.to_owned()],
            is_learner: true,
        };
        let request = self.request(message, CHANGE_TIMEOUT);
        limited(CHANGE_TIMEOUT, self.cluster().member_add(request)).await?;
        Ok(())
    }

    /// Lets a learner vote.
    pub(crate) async fn promote(&self, id: u64) -> Result<(), CallError> {
        let request = self.request(pb::MemberPromoteRequest { id }, CHANGE_TIMEOUT);
        limited(CHANGE_TIMEOUT, self.cluster().member_promote(request)).await?;
        Ok(())
    }

    /// Takes a member out.
    pub(crate) async fn remove(&self, id: u64) -> Result<(), CallError> {
        let request = self.request(pb::MemberRemoveRequest { id }, CHANGE_TIMEOUT);
        limited(CHANGE_TIMEOUT, self.cluster().member_remove(request)).await?;
        Ok(())
    }

    /// Tells the cluster where a member is reached.
    pub(crate) async fn update_peer_url(&self, id: u64, peer_url: &str) -> Result<(), CallError> {
        let message = pb::MemberUpdateRequest {
            id,
            peer_ur_ls: vec![peer_url.to_owned()],
        };
        let request = self.request(message, CHANGE_TIMEOUT);
        limited(CHANGE_TIMEOUT, self.cluster().member_update(request)).await?;
        Ok(())
    }

    /// Hands over; this member must be the leader.
    pub(crate) async fn move_leader(&self, to: u64) -> Result<(), CallError> {
        let request = self.request(pb::MoveLeaderRequest { target_id: to }, CHANGE_TIMEOUT);
        limited(CHANGE_TIMEOUT, self.maintenance().move_leader(request)).await?;
        Ok(())
    }

    /// Reclaims space on this member.
    pub(crate) async fn defragment(&self) -> Result<(), CallError> {
        let request = self.request(pb::DefragmentRequest {}, DEFRAGMENT_TIMEOUT);
        limited(DEFRAGMENT_TIMEOUT, self.maintenance().defragment(request)).await?;
        Ok(())
    }

    /// Drops history. That it is dropped already is fine.
    pub(crate) async fn compact(&self, revision: i64) -> Result<(), CallError> {
        let message = pb::CompactionRequest {
            revision,
            physical: true,
        };
        let request = self.request(message, DEFRAGMENT_TIMEOUT);
        match limited(
            DEFRAGMENT_TIMEOUT,
            KvClient::new(self.channel.clone()).compact(request),
        )
        .await
        {
            Err(CallError::Refused(text)) if text.contains("has been compacted") => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }

    /// Alarms that are raised.
    pub(crate) async fn alarms(&self) -> Result<Vec<Alarm>, CallError> {
        let message = pb::AlarmRequest {
            action: AlarmAction::Get as i32,
            member_id: 0,
            alarm: pb::AlarmType::None as i32,
        };
        let request = self.request(message, PROBE_TIMEOUT);
        let answer = limited(PROBE_TIMEOUT, self.maintenance().alarm(request)).await?;
        Ok(answer
            .alarms
            .into_iter()
            .filter_map(|alarm| {
                let kind = match pb::AlarmType::try_from(alarm.alarm) {
                    Ok(pb::AlarmType::Nospace) => AlarmKind::Nospace,
                    Ok(pb::AlarmType::Corrupt) => AlarmKind::Corrupt,
                    _ => return None,
                };
                Some(Alarm {
                    member_id: alarm.member_id,
                    kind,
                })
            })
            .collect())
    }

    /// Clears an alarm.
    pub(crate) async fn disarm(&self, alarm: Alarm) -> Result<(), CallError> {
        let kind = match alarm.kind {
            AlarmKind::Nospace => pb::AlarmType::Nospace,
            AlarmKind::Corrupt => pb::AlarmType::Corrupt,
        };
        let message = pb::AlarmRequest {
            action: AlarmAction::Deactivate as i32,
            member_id: alarm.member_id,
            alarm: kind as i32,
        };
        let request = self.request(message, CHANGE_TIMEOUT);
        limited(CHANGE_TIMEOUT, self.maintenance().alarm(request)).await?;
        Ok(())
    }

    /// Hash of the keys and values at a revision (0 for the current one), and the revision.
    pub(crate) async fn hash_kv(&self, revision: i64) -> Result<(u32, i64), CallError> {
        let request = self.request(pb::HashKvRequest { revision }, CHANGE_TIMEOUT);
        let answer = limited(CHANGE_TIMEOUT, self.maintenance().hash_kv(request)).await?;
        let revision = match answer.hash_revision {
            0 => answer.header.unwrap_or_default().revision,
            revision => revision,
        };
        Ok((answer.hash, revision))
    }

    /// A snapshot, as a stream.
    pub(crate) async fn snapshot(
        &self,
    ) -> Result<tonic::Streaming<pb::SnapshotResponse>, CallError> {
        let mut request = Request::new(pb::SnapshotRequest {});
        if let Some(token) = self
            .token
            .as_deref()
            .and_then(|token| MetadataValue::try_from(token).ok())
        {
            request.metadata_mut().insert("token", token);
        }
        let client = self.maintenance().max_decoding_message_size(usize::MAX);
        Ok({ client }.snapshot(request).await?.into_inner())
    }

    fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel.clone())
    }

    /// Logs in. `Ok(None)`: authentication is off.
    pub(crate) async fn log_in(
        &self,
        name: &str,
        password: &str,
    ) -> Result<Option<String>, CallError> {
        let message = pb::AuthenticateRequest {
            name: name.to_owned(),
            password: password.to_owned(),
        };
        let request = self.request(message, CHANGE_TIMEOUT);
        match limited(CHANGE_TIMEOUT, self.auth().authenticate(request)).await {
            Ok(answer) => Ok(Some(answer.token)),
            Err(CallError::Refused(text)) if text.contains("authentication is not enabled") => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes root with this password and switches authentication on. What is done already is fine.
    pub(crate) async fn enable_auth(&self, password: &str) -> Result<(), CallError> {
        let add = pb::AuthUserAddRequest {
            name: "root".into(),
            password: password.to_owned(),
            ..pb::AuthUserAddRequest::default()
        };
        let added = limited(
            CHANGE_TIMEOUT,
            self.auth().user_add(self.request(add, CHANGE_TIMEOUT)),
        )
        .await;
        if is_there_already(added)? {
            // A user from an earlier attempt may have another password.
            let change = pb::AuthUserChangePasswordRequest {
                name: "root".into(),
                password: password.to_owned(),
                ..pb::AuthUserChangePasswordRequest::default()
            };
            let request = self.request(change, CHANGE_TIMEOUT);
            limited(CHANGE_TIMEOUT, self.auth().user_change_password(request)).await?;
        }
        let role = pb::AuthRoleAddRequest {
            name: "root".into(),
        };
        let added = limited(
            CHANGE_TIMEOUT,
            self.auth().role_add(self.request(role, CHANGE_TIMEOUT)),
        )
        .await;
        is_there_already(added)?;
        let grant = pb::AuthUserGrantRoleRequest {
            user: "root".into(),
            role: "root".into(),
        };
        let request = self.request(grant, CHANGE_TIMEOUT);
        limited(CHANGE_TIMEOUT, self.auth().user_grant_role(request)).await?;
        let request = self.request(pb::AuthEnableRequest {}, CHANGE_TIMEOUT);
        limited(CHANGE_TIMEOUT, self.auth().auth_enable(request)).await?;
        Ok(())
    }

    /// Switches authentication off. Users and roles stay.
    pub(crate) async fn disable_auth(&self) -> Result<(), CallError> {
        let request = self.request(pb::AuthDisableRequest {}, CHANGE_TIMEOUT);
        limited(CHANGE_TIMEOUT, self.auth().auth_disable(request)).await?;
        Ok(())
    }
}

fn is_there_already<T>(result: Result<T, CallError>) -> Result<bool, CallError> {
    match result {
        Ok(_) => Ok(false),
        Err(CallError::Refused(text)) if text.contains("already exists") => Ok(true),
        Err(error) => Err(error),
    }
}

fn listed(member: pb::Member) -> ListedMember {
    ListedMember {
        id: member.id,
        name: member.name,
        peer_urls: member.peer_ur_ls,
        is_learner: member.is_learner,
    }
}

/// A call with a deadline on our side too: a server that hangs does not look at the one in the request.
async fn limited<T>(
    timeout: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(timeout, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(CallError::Unknown(format!("no answer within {timeout:?}"))),
    }
}
