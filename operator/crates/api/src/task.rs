//! `MetaStoreTask`: one operation that is done once.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backup::JobPhase;
use crate::cluster::LocalReference;

/// One operation on a cluster: exactly one of the fields beside `clusterRef` and `ttlSecondsAfterFinished`.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[kube(
    group = "metastore.io",
    version = "v1alpha1",
    kind = "MetaStoreTask",
    plural = "metastoretasks",
    shortname = "mst",
    category = "metastore",
    namespaced,
    status = "TaskStatus",
    derive = "PartialEq",
    crates(kube_core = "::kube_core"),
    doc = "One operation on a MetaStoreCluster that is done once and leaves a record.",
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".spec.clusterRef.name"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Result", type_ = "string", json_path = ".status.result"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("[has(self.defrag), has(self.compact), has(self.moveLeader), has(self.replaceMember), has(self.recoverQuorum), has(self.verifyConsistency)].filter(x, x).size() == 1").message("exactly one of defrag, compact, moveLeader, replaceMember, recoverQuorum and verifyConsistency must be set"))]
#[x_kube(validation = Rule::new("self == oldSelf").message("a task is immutable; make a new one"))]
#[serde(rename_all = "camelCase")]
pub struct TaskSpec {
    /// The cluster, in the same namespace.
    pub cluster_ref: LocalReference,
    /// Reclaim space on every member, one by one, the leader last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defrag: Option<DefragTask>,
    /// Compact the history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compact: Option<CompactTask>,
    /// Make another member the leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub move_leader: Option<MoveLeaderTask>,
    /// Replace a member by a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replace_member: Option<ReplaceMemberTask>,
    /// Go on with one surviving member after a majority was lost for good. Data that the survivor has not
    /// received is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recover_quorum: Option<RecoverQuorumTask>,
    /// Compare the data of all members at one revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify_consistency: Option<VerifyConsistencyTask>,
    /// Seconds after the end when this object is deleted.
    #[serde(default = "default_ttl_seconds")]
    #[schemars(range(min = 0))]
    pub ttl_seconds_after_finished: i64,
}

fn default_ttl_seconds() -> i64 {
    86400
}

/// Reclaim space: there is nothing to say about it.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct DefragTask {}

/// Compact the history.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CompactTask {
    /// The revision below which history is dropped. 0: the current one.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub revision: i64,
}

/// Make another member the leader.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveLeaderTask {
    /// Name of the new leader. Empty: any healthy follower.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub to: String,
}

/// Replace a member by a new one.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplaceMemberTask {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub member: String,
}

/// Go on with one surviving member.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecoverQuorumTask {
    /// The id of the cluster as in `status.clusterID`: it says that the author knows that data may be lost.
    #[schemars(length(min = 1, max = 32))]
    pub accept_data_loss: String,
    /// Name of the member to go on with.
    #[schemars(length(min = 1, max = 253))]
    pub survivor: String,
}

/// Compare the data: there is nothing to say about it.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct VerifyConsistencyTask {}

/// What became of a task.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct TaskStatus {
    /// The generation of the spec that was considered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it stands.
    #[serde(default)]
    pub phase: JobPhase,
    /// Members that are done; with `moveLeader` the one that led when it began.
    #[serde(default)]
    pub done_members: Vec<String>,
    /// What came of it, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// The condition Complete.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
