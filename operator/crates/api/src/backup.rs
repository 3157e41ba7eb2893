//! `MetaStoreBackup`: one backup, an immutable record.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster::{LocalReference, RetainPolicy};

/// One backup of a cluster.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[kube(
    group = "metastore.io",
    version = "v1alpha1",
    kind = "MetaStoreBackup",
    plural = "metastorebackups",
    shortname = "msb",
    category = "metastore",
    namespaced,
    status = "BackupStatus",
    derive = "PartialEq",
    crates(kube_core = "::kube_core"),
    doc = "One backup of a MetaStoreCluster. It may outlive the cluster.",
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".spec.clusterRef.name"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".status.revision"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.sizeBytes"),
    printcolumn(
        name = "Verified",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Verified\")].status"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("self.clusterRef == oldSelf.clusterRef && self.store == oldSelf.store && self.verify == oldSelf.verify").message("a backup is an immutable record; only deletionPolicy may change"))]
#[serde(rename_all = "camelCase")]
pub struct BackupSpec {
    /// The cluster, in the same namespace. Immutable.
    pub cluster_ref: LocalReference,
    /// Where it is stored. Immutable.
    pub store: BackupStore,
    /// Is it restored in scratch space and compared with the live data? Immutable.
    #[serde(default = "default_verify")]
    pub verify: bool,
    /// What happens to the artifact when this object is deleted. Mutable.
    #[serde(default)]
    pub deletion_policy: RetainPolicy,
}

pub(crate) fn default_verify() -> bool {
    true
}

/// A store for backups: exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("[has(self.s3), has(self.gcs), has(self.azure), has(self.pvc)].filter(x, x).size() == 1").message("exactly one of s3, gcs, azure and pvc must be set"))]
#[serde(rename_all = "camelCase")]
pub struct BackupStore {
    /// Amazon S3 and everything that speaks its protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Store>,
    /// Google Cloud Storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gcs: Option<GcsStore>,
    /// Azure Blob Storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub azure: Option<AzureStore>,
    /// A volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pvc: Option<PvcStore>,
}

/// Amazon S3 and everything that speaks its protocol.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct S3Store {
    /// The bucket.
    #[schemars(length(min = 1, max = 255))]
    pub bucket: String,
    /// Folder in the bucket. Empty: the root.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub prefix: String,
    /// URL of the service. Empty: Amazon's.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub endpoint: String,
    /// Region. Empty: `us-east-1`.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub region: String,
    /// Secret with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`. Absent: the identity of the Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<LocalReference>,
}

/// Google Cloud Storage.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GcsStore {
    /// The bucket.
    #[schemars(length(min = 1, max = 255))]
    pub bucket: String,
    /// Folder in the bucket. Empty: the root.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub prefix: String,
    /// Secret with `GOOGLE_SERVICE_ACCOUNT_KEY`. Absent: the identity of the Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<LocalReference>,
}

/// Azure Blob Storage.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AzureStore {
    /// The storage account.
    #[schemars(length(min = 1, max = 63))]
    pub account: String,
    /// The container.
    #[schemars(length(min = 1, max = 63))]
    pub container: String,
    /// Folder in the container. Empty: the root.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub prefix: String,
    /// URL of the service. Empty: Azure's.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub endpoint: String,
    /// Secret with `AZURE_STORAGE_ACCOUNT_KEY`. Absent: the identity of the Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<LocalReference>,
}

/// A volume.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PvcStore {
    /// The volume claim, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// Folder in the volume. Empty: its root.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub prefix: String,
}

/// What became of a backup.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct BackupStatus {
    /// The generation of the spec that was considered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people.
    #[serde(default)]
    pub phase: JobPhase,
    /// Path of the artifact below the store's prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    /// Its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Its checksum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Revision of the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// HashKV at that revision, as the server counted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_kv: Option<u32>,
    /// Id of the cluster, hexadecimal.
    #[serde(rename = "clusterID", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Version of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it was complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// How long the verification took to restore it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_seconds: Option<i64>,
    /// The conditions Complete and Verified.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Where something that is done once stands.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum JobPhase {
    /// Not begun.
    #[default]
    Pending,
    /// It runs.
    Running,
    /// The artifact is there and is being checked.
    Verifying,
    /// Done.
    Succeeded,
    /// Given up.
    Failed,
    /// Never begun, because it must not be done.
    Rejected,
}
