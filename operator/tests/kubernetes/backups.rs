//! Backups: made, verified, damaged, restored, scheduled, kept and deleted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use metastore_operator_api::MemberStatus;
use serde_json::{Value, json};

use crate::stage::{Stage, condition, example, is_running};
use crate::writers::{Access, Writer, any_store};

/// A backup is made and verified, and a new cluster starts from it.
pub async fn backup_and_restore(stage: &Stage) {
    let access = Access::plain();
    stage.apply(&example("backup.yaml"));
    stage
        .wait_for("source", "one member serves", is_running(1))
        .await;
    let store = any_store(stage, &access, "source").await;
    for number in 0..50 {
        let key = format!("key/{number}");
        store.put(&key, key.clone()).await.unwrap();
    }
    let before = store.pairs("key/").await.unwrap();
    // A backup is a moment of a store that goes on.
    let writer = Writer::start(stage, &access, "source", "writer/");
    stage.apply(&backup("first", "source", ""));
    let first = wait_for_backup(stage, "first").await;
    let written = writer.stop().await;
    let status = &first["status"];
    let artifact = artifact_path(stage, status);
    let size = fs::metadata(&artifact).unwrap().len();
    assert_eq!(status["sizeBytes"].as_u64(), Some(size));
    let verified = state_of(&first, "Verified");
    assert_eq!(verified.0, "True", "{first}");
    assert!(verified.1.contains("HashKV at revision"), "{verified:?}");
    hash_agrees(stage, &artifact, status);

    stage.apply(&example("restored-cluster.yaml"));
    let what = "a cluster serves what was restored";
    stage.wait_for("restored", what, is_running(1)).await;
    let restored = any_store(stage, &access, "restored").await;
    assert_eq!(restored.pairs("key/").await.unwrap(), before);
    let address = stage.addresses("restored").await.remove(0);
    let client = metastore_tests::Client::new(&format!("http://{address}:2379"));
    let revision = status["revision"].as_i64().unwrap();
    let (_, now) = client.get("key/0").await.unwrap();
    assert!(
        now >= revision + 1_000_000_000,
        "revisions never go back for old clients: {now}"
    );
    // It is a cluster like any other: it grows, and has an identity of its own.
    stage.patch("restored", r#"{"spec":{"replicas":3}}"#);
    let what = "the restored cluster has grown";
    stage.wait_for("restored", what, is_running(3)).await;
    let restored = any_store(stage, &access, "restored").await;
    assert_eq!(restored.pairs("key/").await.unwrap(), before);
    let id = |name: &str| stage.get("msc", name)["status"]["clusterID"].clone();
    assert_ne!(id("source"), id("restored"));
    written.check(stage, &access, "source").await;
    stage.delete_cluster("restored").await;
    damaged_backups(stage).await;
}

/// What cannot be trusted is said, and never restored.
async fn damaged_backups(stage: &Stage) {
    stage.apply(&backup("spoilt", "source", "verify: false"));
    let second = wait_for_backup(stage, "spoilt").await;
    let artifact = artifact_path(stage, &second["status"]);
    let mut bytes = fs::read(&artifact).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&artifact, bytes).unwrap();
    stage.apply(
        &example("restored-cluster.yaml")
            .replace("name: restored", "name: damaged")
            .replace("name: first", "name: spoilt"),
    );
    stage
        .wait_for("damaged", "the damage is reported", |cluster| {
            let status = cluster.status.clone().unwrap_or_default();
            let said = |member: &MemberStatus| {
                let message = member.message.as_deref().unwrap_or("");
                message.contains("is damaged: its checksum is")
            };
            status.members.iter().any(said)
        })
        .await;
    let cluster = stage.clusters().get("damaged").await.unwrap();
    assert_ne!(condition(&cluster, "Available"), "True");
    stage.delete_cluster("damaged").await;
    // A backup that does not exist is named in the condition.
    stage.apply(
        &example("restored-cluster.yaml")
            .replace("name: restored", "name: lost")
            .replace("name: first", "name: none"),
    );
    stage
        .wait_for("lost", "the missing backup is named", |cluster| {
            condition(cluster, "Accepted") == "False"
        })
        .await;
    stage.kubectl(&["delete", "msc", "lost", "--timeout=60s"]);
}

/// Backups by a timetable and on demand; old ones go, with their artifacts.
pub async fn schedules(stage: &Stage) {
    stage.patch_object(
        "msbs",
        "nightly",
        &json!({"spec": {"schedule": "* * * * *", "retention": {"keepLast": 2, "daily": 0, "monthly": 0}}}),
    );
    let schedule = stage
        .wait_for_object(
            "msbs",
            "nightly",
            "a minute has brought a backup",
            |schedule| schedule["status"]["lastSuccessful"].is_string(),
        )
        .await;
    assert_eq!(state_of(&schedule, "Ready").0, "True");
    let first = schedule["status"]["lastSuccessful"]
        .as_str()
        .unwrap()
        .to_owned();
    let first_backup = wait_for_backup(stage, &first).await;
    assert_eq!(state_of(&first_backup, "Verified").0, "True");
    let artifact = artifact_path(stage, &first_backup["status"]);
    assert!(artifact.exists());
    // No more by the timetable; two on demand push the first one out.
    stage.patch_object("msbs", "nightly", &json!({"spec": {"suspend": true}}));
    for number in 1..=2 {
        let before: Vec<_> = scheduled(stage).iter().map(name_of).collect();
        let value = format!("metastore.io/run-now={number}");
        stage.kubectl(&["annotate", "msbs", "nightly", &value, "--overwrite"]);
        let what = "a backup was made on demand";
        metastore_tests::eventually(what, crate::stage::LIMIT, || async {
            let all = scheduled(stage);
            let mut new = all.iter().filter(|b| !before.contains(&name_of(b)));
            match new.next().map(|b| b["status"]["phase"].clone()) {
                Some(phase) if phase == "Succeeded" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    stage
        .wait_for_object("msb", &first, "the oldest backup is gone", Value::is_null)
        .await;
    assert!(!artifact.exists(), "its artifact is gone, too");
    metastore_tests::eventually("two are kept", crate::stage::LIMIT, || async {
        let left = scheduled(stage);
        let exist = |b: &Value| artifact_path(stage, &b["status"]).exists();
        if left.len() == 2 && left.iter().all(exist) {
            Ok(())
        } else {
            Err(format!("{} are left", left.len()))
        }
    })
    .await;
    // The cluster tells when its last backup was.
    stage
        .wait_for("source", "the cluster knows its backup", |cluster| {
            let status = cluster.status.clone().unwrap_or_default();
            status
                .backup
                .is_some_and(|backup| backup.last_verified.is_some())
        })
        .await;
}

fn scheduled(stage: &Stage) -> Vec<Value> {
    let text = stage.kubectl(&[
        "get",
        "msb",
        "-l",
        "metastore.io/schedule=nightly",
        "-o",
        "json",
    ]);
    let list: Value = serde_json::from_str(&text).unwrap_or_default();
    list["items"].as_array().cloned().unwrap_or_default()
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or("").to_owned()
}

pub fn backup(name: &str, cluster: &str, more: &str) -> String {
    format!(
        "apiVersion: metastore.io/v1alpha1\nkind: MetaStoreBackup\nmetadata: {{name: {name}}}\n\
         spec:\n  clusterRef: {{name: {cluster}}}\n  store: {{pvc: {{claimName: backups}}}}\n  {more}\n"
    )
}

pub async fn wait_for_backup(stage: &Stage, name: &str) -> Value {
    let backup = stage
        .wait_for_object(
            "msb",
            name,
            &format!("the backup {name} is over"),
            |backup| {
                ["Succeeded", "Failed"].contains(&backup["status"]["phase"].as_str().unwrap_or(""))
            },
        )
        .await;
    assert_eq!(backup["status"]["phase"], "Succeeded", "{backup}");
    backup
}

/// Status and message of a condition.
pub fn state_of(object: &Value, kind: &str) -> (String, String) {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == kind);
    let text = |key: &str| {
        found
            .and_then(|condition| condition[key].as_str())
            .unwrap_or("missing")
            .to_owned()
    };
    (text("status"), text("message"))
}

/// Where the artifact is on this machine.
fn artifact_path(stage: &Stage, status: &Value) -> PathBuf {
    let folder = stage.shared.lock().unwrap().volumes["default/backups"].clone();
    folder.join(status["artifact"].as_str().unwrap_or("not-yet"))
}

/// The hash in the status is the one that an independent program counts.
fn hash_agrees(stage: &Stage, artifact: &Path, status: &Value) {
    let revision = status["revision"].to_string();
    // etcdutl writes to the file that it reads.
    let copy = stage.plane.path("artifact.db");
    fs::copy(artifact, &copy).unwrap();
    let output = Command::new(stage.etcd.join("etcdutl"))
        .args(["hashkv", "--rev", &revision, "--write-out=json"])
        .arg(&copy)
        .output()
        .unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert!(
        found["hash"].is_u64() && found["hash"] == status["hashKv"],
        "etcdutl says {found}, the backup {status}"
    );
}
