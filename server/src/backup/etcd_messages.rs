//! What etcd stores in its database beside keys, as far as MetaStore reads and writes it.
//!
//! Members are JSON in etcd's database, everything else is protobuf. The field numbers and the names
//! are etcd's.

use metastore_proto::etcdserverpb as pb;
use metastore_proto::internal::MemberRecord;
use prost::Message;
use serde::{Deserialize, Serialize};

/// `leasepb.Lease`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct StoredLease {
    /// The lease's id.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// The granted time to live in seconds.
    #[prost(int64, tag = "2")]
    pub ttl: i64,
    /// Seconds that were left at the last checkpoint; 0: no checkpoint.
    #[prost(int64, tag = "3")]
    pub remaining_ttl: i64,
}

/// A member in the bucket `members` and in the context of a membership change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredMember {
    /// The member's id.
    pub id: u64,
    /// Its peer URLs.
    #[serde(rename = "peerURLs", deserialize_with = "nullable")]
    pub peer_urls: Vec<String>,
    /// Whether it is a learner.
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
    /// Its name; empty until it has started.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its client URLs; none until it has started.
    #[serde(
        rename = "clientURLs",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "nullable"
    )]
    pub client_urls: Vec<String>,
}

/// `raftpb.ConfState` in the bucket `meta`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredConfState {
    /// The members that vote.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub voters: Vec<u64>,
    /// The members that do not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub learners: Vec<u64>,
    /// Part of a membership change in two steps, which etcd never makes.
    pub auto_leave: bool,
}

/// The row `downgrade` of the bucket `cluster`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredDowngrade {
    /// The version to which the cluster is being downgraded.
    #[serde(rename = "target-version")]
    pub target_version: String,
    /// Whether it is.
    pub enabled: bool,
}

/// Go writes a list without items as `null`.
fn nullable<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default())
}

impl From<&MemberRecord> for StoredMember {
    fn from(record: &MemberRecord) -> Self {
        let MemberRecord {
            id,
            name,
            peer_urls,
            client_urls,
            is_learner,
        } = record.clone();
        Self {
            id,
            peer_urls,
            is_learner,
            name,
            client_urls,
        }
    }
}

impl From<StoredMember> for MemberRecord {
    fn from(member: StoredMember) -> Self {
        let StoredMember {
            id,
            peer_urls,
            is_learner,
            name,
            client_urls,
        } = member;
        Self {
            id,
            name,
            peer_urls,
            client_urls,
            is_learner,
        }
    }
}

/// The key of a member's row.
pub fn member_key(id: u64) -> String {
    format!("{id:x}")
}

/// `etcdserverpb.InternalRaftRequest`, as far as it can be taken over. At most one request is set;
/// none: a request of another kind.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdRequest {
    /// Who asked.
    #[prost(message, optional, tag = "100")]
    pub header: Option<EtcdRequestHeader>,
    /// Range; has no effect.
    #[prost(message, optional, tag = "3")]
    pub range: Option<pb::RangeRequest>,
    /// Put.
    #[prost(message, optional, tag = "4")]
    pub put: Option<pb::PutRequest>,
    /// DeleteRange.
    #[prost(message, optional, tag = "5")]
    pub delete_range: Option<pb::DeleteRangeRequest>,
    /// Txn.
    #[prost(message, optional, tag = "6")]
    pub txn: Option<pb::TxnRequest>,
    /// Compact.
    #[prost(message, optional, tag = "7")]
    pub compaction: Option<pb::CompactionRequest>,
    /// LeaseGrant.
    #[prost(message, optional, tag = "8")]
    pub lease_grant: Option<pb::LeaseGrantRequest>,
    /// LeaseRevoke.
    #[prost(message, optional, tag = "9")]
    pub lease_revoke: Option<pb::LeaseRevokeRequest>,
    /// Alarm.
    #[prost(message, optional, tag = "10")]
    pub alarm: Option<pb::AlarmRequest>,
    /// A checkpoint of leases.
    #[prost(message, optional, tag = "11")]
    pub lease_checkpoint: Option<pb::LeaseCheckpointRequest>,
    /// AuthEnable.
    #[prost(message, optional, tag = "1000")]
    pub auth_enable: Option<pb::AuthEnableRequest>,
    /// AuthDisable.
    #[prost(message, optional, tag = "1011")]
    pub auth_disable: Option<pb::AuthDisableRequest>,
    /// Gives out a token; tokens do not survive a restart.
    #[prost(message, optional, tag = "1012")]
    pub authenticate: Option<EtcdAuthenticate>,
    /// AuthStatus.
    #[prost(message, optional, tag = "1013")]
    pub auth_status: Option<EtcdRead>,
    /// AuthUserGet.
    #[prost(message, optional, tag = "1102")]
    pub auth_user_get: Option<EtcdRead>,
    /// AuthUserList.
    #[prost(message, optional, tag = "1106")]
    pub auth_user_list: Option<EtcdRead>,
    /// AuthRoleList.
    #[prost(message, optional, tag = "1107")]
    pub auth_role_list: Option<EtcdRead>,
    /// AuthRoleGet.
    #[prost(message, optional, tag = "1202")]
    pub auth_role_get: Option<EtcdRead>,
    /// AuthUserAdd.
    #[prost(message, optional, tag = "1100")]
    pub auth_user_add: Option<pb::AuthUserAddRequest>,
    /// AuthUserDelete.
    #[prost(message, optional, tag = "1101")]
    pub auth_user_delete: Option<pb::AuthUserDeleteRequest>,
    /// AuthUserChangePassword.
    #[prost(message, optional, tag = "1103")]
    pub auth_user_change_password: Option<pb::AuthUserChangePasswordRequest>,
    /// AuthUserGrantRole.
    #[prost(message, optional, tag = "1104")]
    pub auth_user_grant_role: Option<pb::AuthUserGrantRoleRequest>,
    /// AuthUserRevokeRole.
    #[prost(message, optional, tag = "1105")]
    pub auth_user_revoke_role: Option<pb::AuthUserRevokeRoleRequest>,
    /// AuthRoleAdd.
    #[prost(message, optional, tag = "1200")]
    pub auth_role_add: Option<pb::AuthRoleAddRequest>,
    /// AuthRoleDelete.
    #[prost(message, optional, tag = "1201")]
    pub auth_role_delete: Option<pb::AuthRoleDeleteRequest>,
    /// AuthRoleGrantPermission.
    #[prost(message, optional, tag = "1203")]
    pub auth_role_grant_permission: Option<pb::AuthRoleGrantPermissionRequest>,
    /// AuthRoleRevokePermission.
    #[prost(message, optional, tag = "1204")]
    pub auth_role_revoke_permission: Option<pb::AuthRoleRevokePermissionRequest>,
    /// The version that all members run.
    #[prost(message, optional, tag = "1300")]
    pub cluster_version_set: Option<EtcdClusterVersionSet>,
    /// A member's name and client URLs.
    #[prost(message, optional, tag = "1301")]
    pub member_attributes_set: Option<EtcdMemberAttributesSet>,
    /// The begin or the end of a downgrade.
    #[prost(message, optional, tag = "1302")]
    pub downgrade_info_set: Option<EtcdDowngradeInfoSet>,
}

/// `membershippb.DowngradeInfoSetRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdDowngradeInfoSet {
    /// Whether it begins.
    #[prost(bool, tag = "1")]
    pub enabled: bool,
    /// The version to go back to.
    #[prost(string, tag = "2")]
    pub version: String,
}

impl EtcdRequest {
    /// Whether the request changes nothing: etcd sends some reads through its log.
    pub fn has_no_effect(&self) -> bool {
        self.range.is_some()
            || self.authenticate.is_some()
            || self.auth_status.is_some()
            || self.auth_user_get.is_some()
            || self.auth_user_list.is_some()
            || self.auth_role_list.is_some()
            || self.auth_role_get.is_some()
    }
}

/// A request that only reads; what it asks for does not matter.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct EtcdRead {}

/// `etcdserverpb.InternalAuthenticateRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdAuthenticate {
    /// The user.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// `etcdserverpb.RequestHeader`.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdRequestHeader {
    /// The user.
    #[prost(string, tag = "2")]
    pub username: String,
    /// The auth revision at which the permission was checked.
    #[prost(uint64, tag = "3")]
    pub auth_revision: u64,
}

/// `membershippb.ClusterVersionSetRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdClusterVersionSet {
    /// The version.
    #[prost(string, tag = "1")]
    pub version: String,
}

/// `membershippb.ClusterMemberAttrSetRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdMemberAttributesSet {
    /// The member.
    #[prost(uint64, tag = "1")]
    pub member_id: u64,
    /// Its attributes.
    #[prost(message, optional, tag = "2")]
    pub attributes: Option<EtcdMemberAttributes>,
}

/// `membershippb.Attributes`.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdMemberAttributes {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The client URLs.
    #[prost(string, repeated, tag = "2")]
    pub client_urls: Vec<String>,
}

/// The JSON in a change of the members.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EtcdConfChangeContext {
    /// The member.
    #[serde(flatten)]
    pub member: StoredMember,
    /// Whether a learner becomes a voter.
    #[serde(rename = "isPromote")]
    pub is_promote: bool,
}
