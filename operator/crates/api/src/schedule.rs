//! `MetaStoreBackupSchedule`: when backups are made, and which are kept.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backup::{BackupStore, default_verify};
use crate::cluster::{LocalReference, default_time_zone};

/// When backups are made, and which are kept.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[kube(
    group = "metastore.io",
    version = "v1alpha1",
    kind = "MetaStoreBackupSchedule",
    plural = "metastorebackupschedules",
    shortname = "msbs",
    category = "metastore",
    namespaced,
    status = "ScheduleStatus",
    derive = "PartialEq",
    crates(kube_core = "::kube_core"),
    doc = "When a MetaStoreCluster is backed up, and which backups are kept.",
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".spec.clusterRef.name"
    ),
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "Suspend", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(name = "Last", type_ = "string", json_path = ".status.lastSuccessful"),
    printcolumn(name = "Next", type_ = "date", json_path = ".status.nextScheduleTime"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("self.clusterRef == oldSelf.clusterRef").message("clusterRef is immutable").field_path(".clusterRef"))]
#[serde(rename_all = "camelCase")]
pub struct ScheduleSpec {
    /// The cluster, in the same namespace. Immutable.
    pub cluster_ref: LocalReference,
    /// When, as a cron expression with five fields. Mutable.
    #[schemars(length(min = 1, max = 100))]
    pub schedule: String,
    /// Time zone of the schedule, such as `Europe/Berlin`. Mutable.
    #[serde(default = "default_time_zone")]
    #[schemars(length(max = 64))]
    pub time_zone: String,
    /// Make no new backups. Mutable.
    #[serde(default)]
    pub suspend: bool,
    /// Make the first backup at once.
    #[serde(default)]
    pub immediate: bool,
    /// What to do when the previous backup still runs.
    #[serde(default)]
    pub concurrency_policy: ConcurrencyPolicy,
    /// Where backups are stored. Mutable: it counts for new ones.
    pub store: BackupStore,
    /// Are backups restored in scratch space and compared?
    #[serde(default = "default_verify")]
    pub verify: bool,
    /// Which backups are kept.
    #[serde(default)]
    pub retention: RetentionSpec,
}

/// What to do when the previous backup still runs.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum ConcurrencyPolicy {
    /// Skip the new one.
    #[default]
    Forbid,
    /// Make both.
    Allow,
}

/// Which backups are kept: each number keeps the newest backup of that many different hours, days, weeks or
/// months. A backup that no rule keeps is deleted, with its artifact. The newest complete one always stays.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetentionSpec {
    /// The newest ones.
    #[serde(default = "default_keep_last")]
    #[schemars(range(min = 0, max = 10000))]
    pub keep_last: u32,
    /// Hours.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub hourly: u32,
    /// Days.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub daily: u32,
    /// Weeks.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub weekly: u32,
    /// Months.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub monthly: u32,
}

fn default_keep_last() -> u32 {
    7
}

impl Default for RetentionSpec {
    fn default() -> Self {
        Self {
            keep_last: default_keep_last(),
            hourly: 0,
            daily: 0,
            weekly: 0,
            monthly: 0,
        }
    }
}

/// What the schedule did.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct ScheduleStatus {
    /// The generation of the spec that was considered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When the last backup was due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// When the next one is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Time>,
    /// Value of the annotation `metastore.io/run-now` that was obeyed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run_now: Option<String>,
    /// Name of the last backup that is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_successful: Option<String>,
    /// The condition Ready.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
