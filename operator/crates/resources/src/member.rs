//! What a member consists of: StatefulSet, volume claim, start configuration.

use k8s_openapi::DeepMerge;
use k8s_openapi::api::core::v1::{
    Affinity, PodAffinityTerm, PodTemplateSpec, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use metastore_operator_api::{PullPolicy, RestoreSource, Spread, TlsMode, names};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::config_file::{
    CONFIG_FILE, CONFIG_FOLDER, DATA_FOLDER, MemberStart, PEER_TLS_FOLDER, SERVER_TLS_FOLDER,
    VOLUME_FOLDER, config_file, lasting_config,
};
use crate::context::Cluster;
use crate::jobs::store_mounts;

/// User and group of every container: `nonroot` of distroless images.
pub(crate) const USER_ID: i64 = 65532;

/// The server ends by itself long before; a leader hands over first.
const TERMINATION_GRACE_SECONDS: i64 = 60;

/// The largest weight of a preference that Kubernetes accepts.
const AFFINITY_WEIGHT_MAX: i32 = 100;

/// Data of a backup that the first member starts with.
#[derive(Clone, Debug, PartialEq)]
pub struct SeedRestore {
    /// Where it is.
    pub source: RestoreSource,
    /// Added to every revision.
    pub bump_revision: i64,
}

/// The StatefulSet of a member.
///
/// # Errors
///
/// When the overlay does not fit a Pod, in words.
pub fn stateful_set(
    cluster: &Cluster<'_>,
    member: &str,
    phase: &str,
    replicas: i32,
    restore: Option<&SeedRestore>,
) -> Result<Value, String> {
    let hash = template_hash(cluster)?;
    let mut template = pod_template(cluster, member, restore)?;
    template["metadata"]["annotations"][names::TEMPLATE_HASH_ANNOTATION] = json!(hash);
    let mut metadata = cluster.metadata(member);
    metadata["labels"] = cluster.member_labels(member);
    metadata["annotations"] = json!({
        (names::TEMPLATE_HASH_ANNOTATION): hash,
        (names::PHASE_ANNOTATION): phase,
    });
    Ok(json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "serviceName": names::peer_service(cluster.name),
            // With OrderedReady a Pod that never becomes ready would keep a better template from its turn.
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate"},
            "revisionHistoryLimit": 2,
            "selector": {"matchLabels": {
                (names::CLUSTER_LABEL): cluster.name,
                (names::MEMBER_LABEL): member,
            }},
            "template": template,
        },
    }))
}

/// Hash of the template that members should have. It does not depend on the member.
///
/// # Errors
///
/// When the overlay does not fit a Pod, in words.
pub fn template_hash(cluster: &Cluster<'_>) -> Result<String, String> {
    let template = pod_template(cluster, "member", None)?;
    let config = json!(lasting_config(cluster, "member"));
    let digest = Sha256::digest(format!("{template}\n{config}").as_bytes());
    Ok(digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn pod_template(
    cluster: &Cluster<'_>,
    member: &str,
    restore: Option<&SeedRestore>,
) -> Result<Value, String> {
    let template = json!({
        "metadata": {
            "labels": cluster.member_labels(member),
            "annotations": {},
        },
        "spec": pod_spec(cluster, member, restore),
    });
    let Some(overlay) = &cluster.spec.pod_overlay else {
        return Ok(template);
    };
    let refuse = |error: serde_json::Error| format!("spec.podOverlay does not fit a Pod: {error}");
    let mut typed: PodTemplateSpec = serde_json::from_value(template).map_err(refuse)?;
    let overlay: PodTemplateSpec = serde_json::from_value(overlay.clone()).map_err(refuse)?;
    typed.merge_from(overlay);
    let mut merged = serde_json::to_value(typed).map_err(refuse)?;
    // What the operator finds Pods by cannot be overlaid.
    for (label, value) in cluster
        .member_labels(member)
        .as_object()
        .into_iter()
        .flatten()
    {
        merged["metadata"]["labels"][label] = value.clone();
    }
    if !merged["metadata"]["annotations"].is_object() {
        merged["metadata"]["annotations"] = json!({});
    }
    Ok(merged)
}

fn pod_spec(cluster: &Cluster<'_>, member: &str, restore: Option<&SeedRestore>) -> Value {
    let spec = cluster.spec;
    let mut volumes = vec![
        json!({"name": "data", "persistentVolumeClaim": {"claimName": names::claim(member)}}),
        json!({"name": "config", "configMap": {"name": member}}),
        json!({"name": "tmp", "emptyDir": {}}),
    ];
    let mut mounts = vec![
        json!({"name": "data", "mountPath": VOLUME_FOLDER}),
        json!({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": true}),
        json!({"name": "tmp", "mountPath": "/tmp"}),
    ];
    let secrets = cluster.tls_secrets();
    for (is_encrypted, name, secret, folder) in [
        (
            spec.tls.client.mode.is_encrypted(),
            "server-tls",
            secrets.server,
            SERVER_TLS_FOLDER,
        ),
        (
            spec.tls.peer.mode == TlsMode::Required,
            "peer-tls",
            secrets.peer,
            PEER_TLS_FOLDER,
        ),
    ] {
        if is_encrypted {
            volumes.push(
                json!({"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}}),
            );
            mounts.push(json!({"name": name, "mountPath": folder, "readOnly": true}));
        }
    }
    let environment: Vec<_> = spec
        .config
        .extra_environment
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    let probe = |path: &str, period_seconds: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": names::METRICS_PORT, "scheme": "HTTP"},
            "periodSeconds": period_seconds,
            "timeoutSeconds": 5,
            "failureThreshold": failures,
        })
    };
    let mut container = json!({
        "name": names::SERVER_CONTAINER,
        "image": cluster.server_image(),
        "imagePullPolicy": pull_policy(spec.image.pull_policy),
        "command": ["metastore"],
        "args": [format!("--config-file={CONFIG_FOLDER}/{CONFIG_FILE}")],
        "env": environment,
        "ports": [
            {"name": "client", "containerPort": names::CLIENT_PORT, "protocol": "TCP"},
            {"name": "peer", "containerPort": names::PEER_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": names::METRICS_PORT, "protocol": "TCP"},
        ],
        // A member that reads a large log or takes over a snapshot is alive: it gets half a day.
        "startupProbe": probe("/livez", 2, 21_600),
        "livenessProbe": probe("/livez", 10, 6),
        // Ready means that it reads with the agreement of a majority.
        "readinessProbe": probe("/readyz", 5, 2),
        "securityContext": container_security(),
        // Why it ended is then in the status of its Pod, and in the cluster's.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    });
    if let Some(resources) = &spec.resources {
        container["resources"] = json!(resources);
    }
    let mut pod = json!({
        "serviceAccountName": cluster.name,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": TERMINATION_GRACE_SECONDS,
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": volumes,
    });
    scheduling(cluster, &mut pod);
    if !spec.image.pull_secrets.is_empty() {
        let secrets: Vec<_> = spec
            .image
            .pull_secrets
            .iter()
            .map(|s| json!({"name": s}))
            .collect();
        pod["imagePullSecrets"] = json!(secrets);
    }
    if let Some(restore) = restore {
        add_restore(cluster, member, restore, &mut pod);
    }
    pod
}

fn scheduling(cluster: &Cluster<'_>, pod: &mut Value) {
    let scheduling = &cluster.spec.scheduling;
    let mut affinity = scheduling.affinity.clone();
    match scheduling.spread {
        Spread::Off => {}
        // Not by constraints that may be missed: the scheduler ignores all of them where a node lacks the label
        // of one (kubernetes #102136), and few machines outside of clouds have zones.
        Spread::Preferred => prefer_apart(cluster, affinity.get_or_insert_default()),
        Spread::Required => {
            let constraint = |key: &String| {
                json!({
                    "maxSkew": 1,
                    "topologyKey": key,
                    "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": {"matchLabels": cluster.selector()},
                })
            };
            let keys = &scheduling.topology_keys;
            pod["topologySpreadConstraints"] = keys.iter().map(constraint).collect();
        }
    }
    if let Some(affinity) = affinity {
        pod["affinity"] = json!(affinity);
    }
    if !scheduling.priority_class_name.is_empty() {
        pod["priorityClassName"] = json!(scheduling.priority_class_name);
    }
    if !scheduling.node_selector.is_empty() {
        pod["nodeSelector"] = json!(scheduling.node_selector);
    }
    if !scheduling.tolerations.is_empty() {
        pod["tolerations"] = json!(scheduling.tolerations);
    }
}

/// Each member counts against a node once for each label that it shares with it, so another zone is better than
/// another node of the same zone, and that is better than the same node. What the spec prefers stays.
fn prefer_apart(cluster: &Cluster<'_>, affinity: &mut Affinity) {
    let selector = LabelSelector {
        match_labels: serde_json::from_value(cluster.selector()).ok(),
        ..LabelSelector::default()
    };
    let term = |key: &String| WeightedPodAffinityTerm {
        weight: AFFINITY_WEIGHT_MAX,
        pod_affinity_term: PodAffinityTerm {
            label_selector: Some(selector.clone()),
            topology_key: key.clone(),
            ..PodAffinityTerm::default()
        },
    };
    let terms = cluster.spec.scheduling.topology_keys.iter().map(term);
    affinity
        .pod_anti_affinity
        .get_or_insert_default()
        .preferred_during_scheduling_ignored_during_execution
        .get_or_insert_default()
        .extend(terms);
}

/// An init container that fills the empty volume of the first member from a backup. With data there it does
/// nothing, so a restart restores nothing twice.
fn add_restore(cluster: &Cluster<'_>, member: &str, restore: &SeedRestore, pod: &mut Value) {
    let settings = json!({
        "store": restore.source.store,
        "artifact": restore.source.artifact,
        "dataFolder": DATA_FOLDER,
        "name": member,
        "peerUrl": cluster.peer_url(member),
        "configFile": format!("{CONFIG_FOLDER}/{CONFIG_FILE}"),
        "bumpRevision": restore.bump_revision,
    });
    let (mut mounts, volumes, environment) = store_mounts(&restore.source.store);
    mounts.push(json!({"name": "data", "mountPath": VOLUME_FOLDER}));
    mounts.push(json!({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": true}));
    mounts.push(json!({"name": "tmp", "mountPath": "/tmp"}));
    pod["initContainers"] = json!([{
        "name": "restore",
        "image": cluster.images.operator_image,
        "imagePullPolicy": pull_policy(cluster.spec.image.pull_policy),
        "command": ["metastore-operator"],
        "args": ["agent", "restore"],
        "env": [{"name": "METASTORE_AGENT_SETTINGS", "value": settings.to_string()}],
        "envFrom": environment,
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }]);
    if let Some(list) = pod["volumes"].as_array_mut() {
        list.extend(volumes);
    }
}

pub(crate) fn pull_policy(policy: PullPolicy) -> &'static str {
    match policy {
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Always => "Always",
        PullPolicy::Never => "Never",
    }
}

pub(crate) fn pod_security() -> Value {
    json!({
        "runAsNonRoot": true,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        // Changing the owner of a million files at each start would take minutes.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

pub(crate) fn container_security() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    })
}

/// The volume claim of a member. It has no owner: what deletes it is a decision, never a consequence.
pub fn claim(cluster: &Cluster<'_>, member: &str) -> Value {
    let storage = &cluster.spec.storage;
    let mut claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": names::claim(member),
            "namespace": cluster.namespace,
            "labels": cluster.member_labels(member),
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": storage.size.0}},
        },
    });
    if let Some(class) = &storage.storage_class_name {
        claim["spec"]["storageClassName"] = json!(class);
    }
    claim
}

/// The ConfigMap with the configuration file of a member. It is mounted as a folder, so a change reaches a
/// running Pod: a container that restarts inside its Pod already finds what it may do with an empty volume.
pub fn config_map(cluster: &Cluster<'_>, member: &str, start: &MemberStart) -> Value {
    let mut metadata = cluster.metadata(member);
    metadata["labels"] = cluster.member_labels(member);
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {(CONFIG_FILE): config_file(cluster, member, start)},
    })
}
