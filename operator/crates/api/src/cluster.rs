//! `MetaStoreCluster`: what people want.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration};
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backup::BackupStore;
use crate::cluster_status::ClusterStatus;
use crate::scalars::{DurationText, QuantityText};

/// Wanted state of one cluster.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[kube(
    group = "metastore.io",
    version = "v1alpha1",
    kind = "MetaStoreCluster",
    plural = "metastoreclusters",
    shortname = "msc",
    category = "metastore",
    namespaced,
    status = "ClusterStatus",
    derive = "PartialEq",
    derive = "Default",
    crates(kube_core = "::kube_core"),
    doc = "A replicated key-value store that speaks the etcd v3 API, kept alive by the operator.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.ready",
        description = "Ready members of wanted ones."
    ),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.leader"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "DB",
        type_ = "string",
        json_path = ".status.capacity.dbSizeMax",
        priority = "1"
    ),
    printcolumn(
        name = "Quota%",
        type_ = "integer",
        json_path = ".status.capacity.quotaUsedPercent",
        priority = "1"
    ),
    printcolumn(
        name = "Last-Backup",
        type_ = "string",
        json_path = ".status.backup.lastSuccessful",
        priority = "1"
    ),
    printcolumn(
        name = "Cluster-ID",
        type_ = "string",
        json_path = ".status.clusterID",
        priority = "1"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("self.replicas in [1, 3, 5, 7]").message("replicas must be 1, 3, 5 or 7: an even number survives no more failures than the odd number below it").field_path(".replicas"))]
#[x_kube(validation = Rule::new("self.bootstrap == oldSelf.bootstrap").message("bootstrap is immutable: it says how the cluster came to be. Make a new cluster instead").field_path(".bootstrap"))]
#[x_kube(validation = Rule::new("self.clusterDomain == oldSelf.clusterDomain").message("clusterDomain is immutable: it is part of the members' addresses").field_path(".clusterDomain"))]
#[x_kube(validation = Rule::new("!(self.hibernated && oldSelf.hibernated && self.replicas != oldSelf.replicas)").message("replicas cannot change while the cluster hibernates: there is no member that could agree to it").field_path(".replicas"))]
#[x_kube(validation = Rule::new("!has(self.config.quota) || quantity(self.config.quota).compareTo(quantity(self.storage.size)) <= 0").message("config.quota must not be larger than storage.size").field_path(".config.quota"))]
#[serde(rename_all = "camelCase")]
pub struct ClusterSpec {
    /// Voting members: 1, 3, 5 or 7. Three survive the loss of one, five of two. Mutable; members are
    /// added and removed one at a time.
    #[serde(default = "default_replicas")]
    pub replicas: i32,
    /// Version of the server, which is the tag of its image. Absent: the version of the operator.
    /// Mutable, to the same minor version or the next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        regex(pattern = r"^v?[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?$"),
        length(max = 64)
    )]
    pub version: Option<String>,
    /// Where the image of the server comes from.
    #[serde(default)]
    pub image: ImageSpec,
    /// Only observe and report; change nothing. Mutable.
    #[serde(default)]
    pub paused: bool,
    /// Stop every member and keep the volumes. Mutable.
    #[serde(default)]
    pub hibernated: bool,
    /// Domain of the Kubernetes cluster, such as `cluster.local`. Empty: addresses end with `.svc`, which
    /// every Pod resolves. Immutable.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub cluster_domain: String,
    /// How the cluster comes to be. Immutable.
    #[serde(default)]
    pub bootstrap: BootstrapSpec,
    /// The volume of each member.
    #[serde(default)]
    pub storage: StorageSpec,
    /// CPU and memory of each member. Absent: no requests and no limits. Mutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Which nodes members run on.
    #[serde(default)]
    pub scheduling: SchedulingSpec,
    /// A fragment of a PodTemplateSpec (`metadata`, `spec`) that is merged over the template of members.
    /// A fragment that does not fit sets the condition Accepted to False and changes nothing. Mutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "opaque_object")]
    pub pod_overlay: Option<serde_json::Value>,
    /// Configuration of the server. Mutable; members restart one by one.
    #[serde(default)]
    pub config: ServerConfig,
    /// Encryption. Absent: none, for clients and between members.
    #[serde(default)]
    pub tls: TlsSpec,
    /// Users and permissions.
    #[serde(default)]
    pub auth: AuthSpec,
    /// How versions change.
    #[serde(default)]
    pub upgrade: UpgradeSpec,
    /// What is done about failures.
    #[serde(default)]
    pub recovery: RecoverySpec,
    /// What is done from time to time.
    #[serde(default)]
    pub maintenance: MaintenanceSpec,
    /// The Service for clients.
    #[serde(default)]
    pub service: ServiceSpec,
    /// The PodDisruptionBudget.
    #[serde(default)]
    pub pdb: PdbSpec,
    /// The NetworkPolicy.
    #[serde(default)]
    pub network_policy: NetworkPolicySpec,
    /// What Prometheus sees.
    #[serde(default)]
    pub monitoring: MonitoringSpec,
    /// What happens to the volumes when this object is deleted.
    #[serde(default)]
    pub deletion: DeletionSpec,
    /// Time after which an operation that does not advance sets Progressing to False. It goes on.
    #[serde(default = "default_progress_deadline")]
    pub progress_deadline: DurationText,
}

fn default_replicas() -> i32 {
    3
}

fn default_progress_deadline() -> DurationText {
    "10m".into()
}

/// An object whose fields the API server keeps without looking at them.
fn opaque_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// Where an image comes from.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// Registry and repository. Empty: what the operator was started with.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub repository: String,
    /// `sha256:…`, which then counts instead of the version as tag. Empty: the tag counts.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub digest: String,
    /// When the kubelet pulls it.
    #[serde(default)]
    pub pull_policy: PullPolicy,
    /// Names of Secrets for the registry.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub pull_secrets: Vec<String>,
}

/// When an image is pulled.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum PullPolicy {
    /// When it is not on the node.
    #[default]
    IfNotPresent,
    /// At every start.
    Always,
    /// Never.
    Never,
}

/// How a cluster comes to be: exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("has(self.new) != has(self.restore)").message("exactly one of new and restore must be set"))]
#[serde(rename_all = "camelCase")]
pub struct BootstrapSpec {
    /// An empty cluster.
    #[serde(rename = "new", skip_serializing_if = "Option::is_none")]
    pub empty: Option<NewBootstrap>,
    /// A new cluster with the data of a backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreBootstrap>,
}

impl Default for BootstrapSpec {
    fn default() -> Self {
        Self {
            empty: Some(NewBootstrap {}),
            restore: None,
        }
    }
}

/// An empty cluster: there is nothing to say about it.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NewBootstrap {}

/// Where the data comes from: exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("has(self.backupRef) != has(self.source)").message("exactly one of backupRef and source must be set"))]
#[serde(rename_all = "camelCase")]
pub struct RestoreBootstrap {
    /// A MetaStoreBackup in the same namespace that is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_ref: Option<LocalReference>,
    /// An artifact in a store, also without an object that describes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<RestoreSource>,
    /// Added to every revision, so that clients which saw the old cluster never see a revision twice.
    /// 0: nothing is added.
    #[serde(default = "default_bump_revision")]
    #[schemars(range(min = 0))]
    pub bump_revision: i64,
}

/// More revisions than an old cluster writes between its last backup and its end.
pub const DEFAULT_BUMP_REVISION: i64 = 1_000_000_000;

fn default_bump_revision() -> i64 {
    DEFAULT_BUMP_REVISION
}

/// An artifact in a store.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSource {
    /// The store.
    pub store: BackupStore,
    /// Path of the artifact below the store's prefix, as in a backup's `status.artifact`.
    #[schemars(length(min = 1, max = 1024))]
    pub artifact: String,
}

/// An object in the same namespace.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct LocalReference {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The volume of each member.
#[derive(KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0").message("size may only grow: volumes cannot shrink").field_path(".size"))]
#[x_kube(validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)").message("storageClassName is immutable").field_path(".storageClassName"))]
#[x_kube(validation = Rule::new("!has(self.autoGrow) || quantity(self.autoGrow.maxSize).compareTo(quantity(self.size)) >= 0").message("autoGrow.maxSize must not be smaller than size").field_path(".autoGrow.maxSize"))]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// Size of the volume. May only grow; the storage class must allow expansion then.
    #[serde(default = "default_storage_size")]
    pub size: QuantityText,
    /// Storage class. Absent: the default of the Kubernetes cluster. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
    /// Let the volumes grow by themselves when the store is full. Absent: they do not. Mutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_grow: Option<AutoGrow>,
    /// What happens to volumes of members that are no more.
    #[serde(default)]
    pub retain: RetainSpec,
}

/// Growth of the volumes when the store is full, and dropping history and reclaiming space did not help. The quota
/// grows with them, unless `config.quota` is set: then nothing grows. `size` stays as it is written; what the
/// volumes have grown to counts while it is more. The storage class must allow expansion.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AutoGrow {
    /// No volume grows beyond it.
    pub max_size: QuantityText,
    /// By how much of its size a volume grows at once.
    #[serde(default = "default_step_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub step_percent: u32,
}

fn default_step_percent() -> u32 {
    25
}

fn default_storage_size() -> QuantityText {
    "10Gi".into()
}

impl Default for StorageSpec {
    fn default() -> Self {
        Self {
            size: default_storage_size(),
            storage_class_name: None,
            auto_grow: None,
            retain: RetainSpec::default(),
        }
    }
}

/// What happens to the volume of a member that left the cluster.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetainSpec {
    /// When the member was replaced or removed.
    #[serde(default = "default_delete")]
    pub when_replaced: RetainPolicy,
}

fn default_delete() -> RetainPolicy {
    RetainPolicy::Delete
}

impl Default for RetainSpec {
    fn default() -> Self {
        Self {
            when_replaced: default_delete(),
        }
    }
}

/// Is data kept?
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum RetainPolicy {
    /// It stays.
    #[default]
    Retain,
    /// It is deleted.
    Delete,
}

/// Which nodes members run on.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SchedulingSpec {
    /// Are members kept apart?
    #[serde(default)]
    pub spread: Spread,
    /// Labels of nodes over which they are spread. With `Required`, nodes without one of them are not used.
    #[serde(default = "default_topology_keys")]
    #[schemars(length(max = 4))]
    pub topology_keys: Vec<String>,
    /// Priority class of the Pods. Empty: none.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub priority_class_name: String,
    /// Labels that nodes must have.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are tolerated.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Affinity of the Pods, in the words of Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "opaque_object")]
    pub affinity: Option<Affinity>,
}

fn default_topology_keys() -> Vec<String> {
    vec![
        "topology.kubernetes.io/zone".into(),
        "kubernetes.io/hostname".into(),
    ]
}

impl Default for SchedulingSpec {
    fn default() -> Self {
        Self {
            spread: Spread::default(),
            topology_keys: default_topology_keys(),
            priority_class_name: String::new(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            affinity: None,
        }
    }
}

/// Are members kept apart?
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Spread {
    /// No.
    Off,
    /// Where it is possible.
    #[default]
    Preferred,
    /// Always: a member that cannot be kept apart does not start, and nodes without one of the labels are not
    /// used.
    Required,
}

/// Configuration of the server.
#[derive(KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("self.extraConfig.all(key, !(key in ['name', 'data-dir', 'wal-dir', 'initial-cluster', 'initial-cluster-state', 'initial-cluster-token', 'initial-advertise-peer-urls', 'advertise-client-urls', 'listen-client-urls', 'listen-peer-urls', 'listen-metrics-urls', 'force-new-cluster', 'client-transport-security', 'peer-transport-security', 'discovery', 'discovery-srv']))").message("extraConfig must not name keys that the operator sets: identity, addresses, TLS and bootstrap").field_path(".extraConfig"))]
#[x_kube(validation = Rule::new("[duration(self.heartbeatInterval)].all(beat, beat + beat + beat + beat + beat <= duration(self.electionTimeout))").message("electionTimeout must be at least five heartbeats").field_path(".electionTimeout"))]
#[serde(rename_all = "camelCase")]
pub struct ServerConfig {
    /// Size of the store above which writes are refused. Absent: nine tenths of `storage.size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuantityText>,
    /// Compaction of the history by the server itself.
    #[serde(default)]
    pub compaction: CompactionSpec,
    /// Interval of heartbeats between members.
    #[serde(default = "default_heartbeat_interval")]
    pub heartbeat_interval: DurationText,
    /// Time without a leader after which members elect one; at least five heartbeats.
    #[serde(default = "default_election_timeout")]
    pub election_timeout: DurationText,
    /// Level of the log.
    #[serde(default)]
    pub log_level: LogLevel,
    /// Further keys of the server's configuration file, as texts. Keys about identity, addresses, TLS and
    /// bootstrap are refused.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 64))]
    pub extra_config: BTreeMap<String, String>,
    /// Further environment variables of the server.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 64))]
    pub extra_environment: BTreeMap<String, String>,
}

fn default_heartbeat_interval() -> DurationText {
    "100ms".into()
}

fn default_election_timeout() -> DurationText {
    "1s".into()
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            quota: None,
            compaction: CompactionSpec::default(),
            heartbeat_interval: default_heartbeat_interval(),
            election_timeout: default_election_timeout(),
            log_level: LogLevel::default(),
            extra_config: BTreeMap::new(),
            extra_environment: BTreeMap::new(),
        }
    }
}

/// Compaction of the history by the server itself.
#[derive(KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("self.mode != 'Revision' || self.retention.matches('^[0-9]+$')").message("retention must be a number without a unit when mode is Revision").field_path(".retention"))]
#[serde(rename_all = "camelCase")]
pub struct CompactionSpec {
    /// By time, by number of revisions, or not at all.
    #[serde(default)]
    pub mode: CompactionMode,
    /// How much history stays: a duration (`1h`) for Periodic, a number (`10000`) for Revision. `0`: the
    /// server does not compact, which is right under a kube-apiserver, because that compacts.
    #[serde(default = "default_compaction_retention")]
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h)?$"), length(max = 32))]
    pub retention: String,
}

fn default_compaction_retention() -> String {
    "0".into()
}

impl Default for CompactionSpec {
    fn default() -> Self {
        Self {
            mode: CompactionMode::default(),
            retention: default_compaction_retention(),
        }
    }
}

/// What the retention counts.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum CompactionMode {
    /// Time.
    #[default]
    Periodic,
    /// Revisions.
    Revision,
}

/// Level of the log.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What happens.
    #[default]
    Info,
    /// What should not happen.
    Warn,
    /// What went wrong.
    Error,
}

/// Encryption.
#[derive(KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("(self.client.mode == 'Disabled' && self.peer.mode == 'Disabled') || has(self.issuer)").message("issuer must be set when TLS is on").field_path(".issuer"))]
#[x_kube(validation = Rule::new("self.peer.mode == oldSelf.peer.mode").message("peer.mode is immutable: members of both kinds could not speak to each other").field_path(".peer.mode"))]
#[serde(rename_all = "camelCase")]
pub struct TlsSpec {
    /// Between clients and members.
    #[serde(default)]
    pub client: ClientTls,
    /// Between members. Immutable.
    #[serde(default)]
    pub peer: PeerTls,
    /// Who signs the certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<TlsIssuer>,
    /// How long before its end a certificate is renewed.
    #[serde(default = "default_renew_before")]
    pub renew_before: DurationText,
    /// For how long the operator's own authority signs certificates.
    #[serde(default = "default_certificate_duration")]
    pub duration: DurationText,
}

fn default_renew_before() -> DurationText {
    "720h".into()
}

fn default_certificate_duration() -> DurationText {
    "2160h".into()
}

impl Default for TlsSpec {
    fn default() -> Self {
        Self {
            client: ClientTls::default(),
            peer: PeerTls::default(),
            issuer: None,
            renew_before: default_renew_before(),
            duration: default_certificate_duration(),
        }
    }
}

/// TLS for clients.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("self.mode == oldSelf.mode || self.mode == 'Permissive' || oldSelf.mode == 'Permissive'").message("mode changes between Disabled and Required only through Permissive: clients and members would not understand each other meanwhile").field_path(".mode"))]
#[serde(rename_all = "camelCase")]
pub struct ClientTls {
    /// Is TLS spoken? Changing it restarts the members one by one. A cluster in use goes from `Disabled` over
    /// `Permissive` to `Required`, or back, and its clients change in between.
    #[serde(default)]
    pub mode: ClientTlsMode,
    /// Must clients show a certificate of the authority? Those that speak plain text cannot.
    #[serde(default)]
    pub client_auth: bool,
}

/// What is spoken to clients?
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum ClientTlsMode {
    /// Plain text.
    #[default]
    Disabled,
    /// Plain text and TLS, on one port.
    Permissive,
    /// TLS.
    Required,
}

impl ClientTlsMode {
    /// Are there certificates?
    pub fn is_encrypted(self) -> bool {
        self != Self::Disabled
    }

    /// The schemes of URLs that are served; first the one that is to be used.
    pub fn schemes(self) -> &'static [&'static str] {
        match self {
            Self::Disabled => &["http"],
            Self::Permissive => &["https", "http"],
            Self::Required => &["https"],
        }
    }
}

/// TLS between members. Both sides show certificates.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerTls {
    /// Is TLS spoken?
    #[serde(default)]
    pub mode: TlsMode,
}

/// Is TLS spoken?
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum TlsMode {
    /// No.
    #[default]
    Disabled,
    /// Nothing else is spoken.
    Required,
}

/// Who signs: exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("[has(self.certManager), has(self.operatorCA), has(self.secrets)].filter(x, x).size() == 1").message("exactly one of certManager, operatorCA and secrets must be set"))]
#[serde(rename_all = "camelCase")]
pub struct TlsIssuer {
    /// cert-manager makes and renews the certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_manager: Option<CertManagerIssuer>,
    /// The operator has an authority for this cluster, in the Secret `<cluster>-ca`.
    #[serde(rename = "operatorCA", skip_serializing_if = "Option::is_none")]
    pub operator_ca: Option<OperatorAuthority>,
    /// Secrets with `tls.crt`, `tls.key` and `ca.crt` that somebody else fills and renews.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<GivenSecrets>,
}

/// An issuer of cert-manager.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertManagerIssuer {
    /// The issuer.
    pub issuer_ref: IssuerReference,
}

/// Which issuer.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IssuerReference {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// `Issuer` or `ClusterIssuer`.
    #[serde(default = "default_issuer_kind")]
    #[schemars(length(max = 63))]
    pub kind: String,
}

fn default_issuer_kind() -> String {
    "Issuer".into()
}

/// The operator's own authority.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OperatorAuthority {
    /// Raise it to replace the authority. That also happens by itself a year before its end. Members trust both
    /// the old and the new one first, then get certificates of the new one, then forget the old one.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub rotation: i64,
    /// Time between these steps: longer than the kubelets take to hand a changed Secret to Pods, which is two
    /// minutes, and than your clients take to read their authorities anew.
    #[serde(default = "default_rotation_pause")]
    pub rotation_pause: DurationText,
}

fn default_rotation_pause() -> DurationText {
    "24h".into()
}

impl Default for OperatorAuthority {
    fn default() -> Self {
        Self {
            rotation: 0,
            rotation_pause: default_rotation_pause(),
        }
    }
}

/// Secrets that somebody else fills.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GivenSecrets {
    /// For clients: valid for the Service's names and the members' names.
    #[schemars(length(min = 1, max = 253))]
    pub server: String,
    /// For the other members: valid for the members' names, for both sides of a connection.
    #[schemars(length(min = 1, max = 253))]
    pub peer: String,
    /// With which the operator and its Jobs show who they are.
    #[schemars(length(min = 1, max = 253))]
    pub client: String,
}

/// Users and permissions.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthSpec {
    /// Must clients log in? When it becomes true, the operator makes the user `root` and switches
    /// authentication on. When it becomes false, authentication is switched off; users and roles stay.
    /// Mutable.
    #[serde(default)]
    pub enabled: bool,
    /// The Secret with the password of `root` in the key `password`. Absent: `<cluster>-root`, which the
    /// operator makes with a random password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_secret_ref: Option<LocalReference>,
}

/// How versions change.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UpgradeSpec {
    /// May the version become an older one of the same minor version?
    #[serde(default)]
    pub allow_downgrade: bool,
}

/// What is done about failures.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecoverySpec {
    /// Replacement of members that do not come back.
    #[serde(default)]
    pub member_replacement: MemberReplacement,
    /// What is done about alarms.
    #[serde(default)]
    pub alarms: AlarmPolicy,
}

/// Replacement of members that do not come back.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberReplacement {
    /// Are they replaced?
    #[serde(default = "default_true")]
    pub enabled: bool,
    /// How long a member must not answer, or the node of a new one not react to its Pod.
    #[serde(default = "default_unhealthy_after")]
    pub unhealthy_after: DurationText,
    /// How long a member that serves may be slow before it is replaced: each time that it is asked it is more than
    /// 50000 entries of the log behind, or takes more than a second to say how it is, and the other voters are not.
    /// The new member is added first. `0s`: never.
    #[serde(default = "default_slow_after")]
    pub slow_after: DurationText,
    /// How long a learner may take to catch up before it is given up.
    #[serde(default = "default_learner_stuck_after")]
    pub learner_stuck_after: DurationText,
    /// How many members may be replaced in one hour.
    #[serde(default = "default_max_per_hour")]
    #[schemars(range(min = 0, max = 100))]
    pub max_per_hour: u32,
}

fn default_true() -> bool {
    true
}

fn default_unhealthy_after() -> DurationText {
    "5m".into()
}

fn default_slow_after() -> DurationText {
    "30m".into()
}

fn default_learner_stuck_after() -> DurationText {
    "1h".into()
}

fn default_max_per_hour() -> u32 {
    1
}

impl Default for MemberReplacement {
    fn default() -> Self {
        Self {
            enabled: true,
            unhealthy_after: default_unhealthy_after(),
            slow_after: default_slow_after(),
            learner_stuck_after: default_learner_stuck_after(),
            max_per_hour: default_max_per_hour(),
        }
    }
}

/// What is done about alarms.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AlarmPolicy {
    /// The store is full.
    #[serde(default)]
    pub nospace: NospacePolicy,
    /// A member's data differs.
    #[serde(default)]
    pub corrupt: CorruptPolicy,
}

/// The store is full.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum NospacePolicy {
    /// Compact, reclaim space member by member, and clear the alarm when the store is below its quota.
    #[default]
    Auto,
    /// Report it.
    Manual,
}

/// A member's data differs.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum CorruptPolicy {
    /// Stop the member and replace it.
    #[default]
    ReplaceMember,
    /// Report it.
    Manual,
}

/// What is done from time to time.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceSpec {
    /// When members may be restarted and defragmented by the operator's own decision. Absent: always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<MaintenanceWindow>,
    /// When space is reclaimed.
    #[serde(default)]
    pub defrag: DefragSpec,
}

/// A time in which disturbing work may be done.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceWindow {
    /// When it opens, as a cron expression with five fields.
    #[schemars(length(min = 1, max = 100))]
    pub schedule: String,
    /// How long it stays open.
    pub duration: DurationText,
    /// Time zone of the schedule, such as `Europe/Berlin`.
    #[serde(default = "default_time_zone")]
    #[schemars(length(max = 64))]
    pub time_zone: String,
}

pub(crate) fn default_time_zone() -> String {
    "UTC".into()
}

/// When space is reclaimed.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DefragSpec {
    /// Share of the database that must be free. 0: never by itself.
    #[serde(default = "default_when_free_percent")]
    #[schemars(range(min = 0, max = 100))]
    pub when_free_percent: u32,
    /// Bytes that must be free as well.
    #[serde(default = "default_min_free")]
    pub min_free_bytes: QuantityText,
}

fn default_when_free_percent() -> u32 {
    45
}

fn default_min_free() -> QuantityText {
    "100Mi".into()
}

impl Default for DefragSpec {
    fn default() -> Self {
        Self {
            when_free_percent: default_when_free_percent(),
            min_free_bytes: default_min_free(),
        }
    }
}

/// The Service for clients.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Its type.
    #[serde(rename = "type", default)]
    pub service_type: ServiceType,
    /// Annotations of the Service.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// Type of a Service.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum ServiceType {
    /// Inside the Kubernetes cluster.
    #[default]
    ClusterIP,
    /// On a port of every node.
    NodePort,
    /// Behind a load balancer.
    LoadBalancer,
}

/// The PodDisruptionBudget.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PdbSpec {
    /// Is there one? It keeps a majority of the voters. A cluster of one never has one.
    #[serde(default = "default_true")]
    pub enabled: bool,
}

impl Default for PdbSpec {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// The NetworkPolicy.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicySpec {
    /// Is there one? Members then accept each other, and clients on the client and metrics ports.
    #[serde(default)]
    pub enabled: bool,
    /// Labels of the Pods in this namespace that may be clients. Empty: everybody may.
    #[serde(default)]
    pub client_pod_labels: BTreeMap<String, String>,
}

/// What Prometheus sees.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MonitoringSpec {
    /// A PodMonitor of the Prometheus operator.
    #[serde(default)]
    pub pod_monitor: MonitorMode,
}

/// Is a monitor made?
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum MonitorMode {
    /// When the API of the Prometheus operator is there.
    #[default]
    Auto,
    /// No.
    Off,
}

/// What happens to the volumes when the object is deleted.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeletionSpec {
    /// Retain: volumes, identity and authority stay, and a cluster with the same name takes them up
    /// again. Delete: everything goes.
    #[serde(default)]
    pub policy: RetainPolicy,
}
