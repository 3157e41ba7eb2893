//! Jobs that make and check backups.

use metastore_operator_api::{BackupStore, names};
use serde_json::{Value, json};

use crate::config_file::CLIENT_TLS_FOLDER;
use crate::context::Cluster;
use crate::member::{container_security, pod_security, pull_policy};

/// Where a volume for backups is mounted.
pub const BACKUP_VOLUME_FOLDER: &str = "/backups";
/// Where a verification restores to.
pub const SCRATCH_FOLDER: &str = "/scratch";
/// A Job that takes longer is given up.
const JOB_DEADLINE_SECONDS: i64 = 6 * 3600;
/// A Job that fails is tried once more; a third failure says the same as the second.
const JOB_RETRIES: i32 = 1;

/// The owner of a Job: the backup it is for.
#[derive(Clone, Debug)]
pub struct JobOwner<'a> {
    /// Name of the backup.
    pub name: &'a str,
    /// Uid of its object.
    pub uid: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
}

/// The Job that makes a backup. It reads from `member`, a follower where there is one.
pub fn backup_job(
    cluster: &Cluster<'_>,
    owner: &JobOwner<'_>,
    store: &BackupStore,
    artifact: &str,
    member: &str,
) -> Value {
    let is_encrypted = cluster.spec.tls.client.mode.is_encrypted();
    let mut settings = json!({
        "store": store,
        "artifact": artifact,
        "cluster": cluster.name,
        "endpoint": cluster.client_url(member),
        "scratchFolder": SCRATCH_FOLDER,
    });
    let (mut mounts, mut volumes, from) = store_mounts(store);
    let mut environment = Vec::new();
    if is_encrypted {
        settings["tlsFolder"] = json!(CLIENT_TLS_FOLDER);
        volumes.push(json!({"name": "client-tls", "secret": {
            "secretName": cluster.tls_secrets().client, "defaultMode": 0o440,
        }}));
        mounts
            .push(json!({"name": "client-tls", "mountPath": CLIENT_TLS_FOLDER, "readOnly": true}));
    }
    if cluster.spec.auth.enabled {
        environment.push(
            json!({"name": "METASTORE_ROOT_PASSWORD", "valueFrom": {"secretKeyRef": {
                "name": cluster.root_secret(), "key": "password",
            }}}),
        );
    }
    let job = Job {
        purpose: "backup",
        settings,
        mounts,
        volumes,
        environment,
        from,
        image: cluster.images.operator_image.clone(),
        pull_policy: pull_policy(cluster.spec.image.pull_policy),
        pull_secrets: cluster.spec.image.pull_secrets.clone(),
        labels: cluster.labels(),
    };
    job.build(owner)
}

/// The Job that restores a backup in scratch space and compares it with what the live data was.
pub fn verify_job(
    owner: &JobOwner<'_>,
    store: &BackupStore,
    artifact: &str,
    operator_image: &str,
) -> Value {
    let (mounts, volumes, from) = store_mounts(store);
    let job = Job {
        purpose: "verify",
        settings: json!({
            "store": store,
            "artifact": artifact,
            "scratchFolder": SCRATCH_FOLDER,
        }),
        mounts,
        volumes,
        environment: Vec::new(),
        from,
        image: operator_image.to_owned(),
        pull_policy: "IfNotPresent",
        pull_secrets: Vec::new(),
        labels: json!({(names::MANAGED_BY_LABEL): names::MANAGED_BY}),
    };
    job.build(owner)
}

/// The Job that deletes an artifact and its manifest.
pub fn delete_job(
    owner: &JobOwner<'_>,
    store: &BackupStore,
    artifact: &str,
    operator_image: &str,
) -> Value {
    let (mounts, volumes, from) = store_mounts(store);
    let job = Job {
        purpose: "delete",
        settings: json!({"store": store, "artifact": artifact, "scratchFolder": SCRATCH_FOLDER}),
        mounts,
        volumes,
        environment: Vec::new(),
        from,
        image: operator_image.to_owned(),
        pull_policy: "IfNotPresent",
        pull_secrets: Vec::new(),
        labels: json!({(names::MANAGED_BY_LABEL): names::MANAGED_BY}),
    };
    job.build(owner)
}

struct Job {
    purpose: &'static str,
    settings: Value,
    mounts: Vec<Value>,
    volumes: Vec<Value>,
    environment: Vec<Value>,
    from: Vec<Value>,
    image: String,
    pull_policy: &'static str,
    pull_secrets: Vec<String>,
    labels: Value,
}

impl Job {
    fn build(mut self, owner: &JobOwner<'_>) -> Value {
        self.environment.insert(
            0,
            json!({"name": "METASTORE_AGENT_SETTINGS", "value": self.settings.to_string()}),
        );
        self.volumes
            .push(json!({"name": "scratch", "emptyDir": {}}));
        self.mounts
            .push(json!({"name": "scratch", "mountPath": SCRATCH_FOLDER}));
        self.labels[names::PURPOSE_LABEL] = json!(self.purpose);
        // These Pods are no members: Services and budgets must not select them.
        self.labels["app.kubernetes.io/component"] = json!("backup");
        let secrets: Vec<_> = self
            .pull_secrets
            .iter()
            .map(|s| json!({"name": s}))
            .collect();
        json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": format!("{}-{}", owner.name, self.purpose),
                "namespace": owner.namespace,
                "labels": self.labels,
                "ownerReferences": [{
                    "apiVersion": "metastore.io/v1alpha1",
                    "kind": "MetaStoreBackup",
                    "name": owner.name,
                    "uid": owner.uid,
                    "controller": true,
                    "blockOwnerDeletion": true,
                }],
            },
            "spec": {
                "backoffLimit": JOB_RETRIES,
                "activeDeadlineSeconds": JOB_DEADLINE_SECONDS,
                "template": {
                    "metadata": {"labels": self.labels},
                    "spec": {
                        "restartPolicy": "Never",
                        "automountServiceAccountToken": false,
                        "enableServiceLinks": false,
                        "securityContext": pod_security(),
                        "imagePullSecrets": secrets,
                        "containers": [{
                            "name": "agent",
                            "image": self.image,
                            "imagePullPolicy": self.pull_policy,
                            "command": ["metastore-operator"],
                            "args": ["agent", self.purpose],
                            "env": self.environment,
                            "envFrom": self.from,
                            "securityContext": container_security(),
                            "volumeMounts": self.mounts,
                            "terminationMessagePolicy": "File",
                        }],
                        "volumes": self.volumes,
                    },
                },
            },
        })
    }
}

/// Mounts, volumes and sources of the environment that a store needs.
pub(crate) fn store_mounts(store: &BackupStore) -> (Vec<Value>, Vec<Value>, Vec<Value>) {
    let mut mounts = Vec::new();
    let mut volumes = Vec::new();
    if let Some(pvc) = &store.pvc {
        mounts.push(json!({"name": "backups", "mountPath": BACKUP_VOLUME_FOLDER}));
        volumes.push(
            json!({"name": "backups", "persistentVolumeClaim": {"claimName": pvc.claim_name}}),
        );
    }
    let credentials = [
        store
            .s3
            .as_ref()
            .and_then(|s3| s3.credentials_secret_ref.as_ref()),
        store
            .gcs
            .as_ref()
            .and_then(|gcs| gcs.credentials_secret_ref.as_ref()),
        store
            .azure
            .as_ref()
            .and_then(|azure| azure.credentials_secret_ref.as_ref()),
    ];
    let environment = credentials
        .into_iter()
        .flatten()
        .map(|reference| json!({"secretRef": {"name": reference.name}}))
        .collect();
    (mounts, volumes, environment)
}
