//! `MetaStoreCluster`: what the operator sees. A cache: everything in it can be rebuilt.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube_derive::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator saw last.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// The generation of the spec that was considered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people. Programs use the conditions.
    #[serde(default)]
    pub phase: Phase,
    /// Ready members of wanted ones, such as `2/3`.
    #[serde(default)]
    pub ready: String,
    /// The id of the cluster, hexadecimal, as etcdctl prints it.
    #[serde(rename = "clusterID", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Name of the leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// The oldest version of the server that runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Version of the data, as members report it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_version: Option<String>,
    /// Members that exist, for the scale subresource.
    #[serde(default)]
    pub replicas: i32,
    /// Members that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Members that vote.
    #[serde(default)]
    pub voters: i32,
    /// Members that do not vote yet.
    #[serde(default)]
    pub learners: i32,
    /// Labels of the members' Pods, for the scale subresource.
    #[serde(default)]
    pub selector: String,
    /// The members by name.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub members: Vec<MemberStatus>,
    /// What is being done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationStatus>,
    /// Sizes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<CapacityStatus>,
    /// Alarms that members raised.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// Backups of this cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupSummary>,
    /// Certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<CertificatesStatus>,
    /// Where clients connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<EndpointsStatus>,
    /// The conditions; all of them are always there.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One word for people.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Phase {
    /// Nothing is known yet.
    #[default]
    Pending,
    /// The first member starts.
    Forming,
    /// All is well.
    Running,
    /// Members are added, removed or restarted.
    Updating,
    /// A member is missing.
    Degraded,
    /// There is no majority.
    Unavailable,
    /// Everything is stopped on purpose.
    Hibernated,
    /// The operator does nothing on purpose.
    Paused,
    /// The operator does nothing, because something contradicts itself.
    Frozen,
    /// The spec cannot be followed.
    Rejected,
}

/// One member.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Its name, also that of its StatefulSet.
    pub name: String,
    /// Its id, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its part in the cluster.
    #[serde(default)]
    pub role: MemberRole,
    /// How it is.
    #[serde(default)]
    pub state: MemberState,
    /// Since when it is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Version of its server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Revision of its data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// Entries of the log that it has not applied yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raft_lag: Option<u64>,
    /// Size of its database in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub db_size_bytes: Option<i64>,
    /// Bytes of it that are used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub db_in_use_bytes: Option<i64>,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Part of a member in its cluster.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum MemberRole {
    /// Not known.
    #[default]
    Unknown,
    /// It decides the order.
    Leader,
    /// It votes.
    Follower,
    /// It copies.
    Learner,
}

/// How a member is.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum MemberState {
    /// Not known.
    #[default]
    Unknown,
    /// Its Pod starts.
    Starting,
    /// It serves.
    Ready,
    /// It serves, and is far behind the others or answers late.
    Slow,
    /// It does not answer as it should.
    Unhealthy,
    /// It is stopped on purpose.
    Stopped,
    /// It is stopped until it is replaced.
    Fenced,
}

/// What is being done.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    /// The reason of the condition Progressing.
    #[serde(rename = "type")]
    pub operation: String,
    /// The step, in words.
    #[serde(default)]
    pub step: String,
    /// The member it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
}

/// Sizes.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CapacityStatus {
    /// Quota in bytes.
    #[serde(default)]
    pub quota_bytes: i64,
    /// The largest database of a member, for people.
    #[serde(default)]
    pub db_size_max: String,
    /// Its share of the quota.
    #[serde(default)]
    pub quota_used_percent: i64,
}

/// Backups of a cluster.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupSummary {
    /// Name of the last one that is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_successful: Option<String>,
    /// Its revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_revision: Option<i64>,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_point: Option<Time>,
    /// Name of the last one that was verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_verified: Option<String>,
}

/// Certificates.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificatesStatus {
    /// When the first of them ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_expiry: Option<Time>,
}

/// Where clients connect.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointsStatus {
    /// For everything.
    pub client: String,
    /// For reads.
    pub read: String,
}
