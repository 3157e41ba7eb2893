//! What the API server cannot refuse, and what people do to the operator's objects: the cluster goes on, and its status
//! says what is wrong.

use metastore_tests::eventually;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::kubelet::signal;
use crate::life::everybody_serves;
use crate::stage::{LIMIT, Stage, condition, example, is_running};
use crate::writers::{Access, Writer};

const NAME: &str = "example";
/// In the ConfigMap of a member.
const CONFIG_FILE: &str = "metastore.yaml";

/// A spec that cannot be followed changes nothing but the condition Accepted; one that can be goes on.
pub async fn specs_that_cannot_be_followed(stage: &Stage) {
    stage.apply(&example("cluster.yaml").replace("replicas: 3", "replicas: 1"));
    stage
        .wait_for(NAME, "one member serves", is_running(1))
        .await;
    let writer = Writer::start(stage, &Access::plain(), NAME, "writer/");
    let member = stage.members(NAME).await.into_iter().next().unwrap();
    let pod = format!("{member}-0");
    let before = stage.incarnation(&pod).await;
    for (change, undo, reason, words) in [
        (
            json!({"podOverlay": {"spec": {"containers": "many"}}}),
            json!({"podOverlay": null}),
            "InvalidOverlay",
            "spec.podOverlay does not fit a Pod",
        ),
        (
            json!({"auth": {"enabled": true, "rootSecretRef": {"name": "nowhere"}}}),
            json!({"auth": null}),
            "SecretNotFound",
            "the Secret nowhere has no key password",
        ),
        (
            json!({"tls": {"issuer": {"certManager": {"issuerRef": {"name": "nobody"}}}}}),
            json!({"tls": null}),
            "CertManagerMissing",
            "the API cert-manager.io/v1 is not there",
        ),
        (
            json!({"maintenance": {"window": {"schedule": "at night", "duration": "1h"}}}),
            json!({"maintenance": null}),
            "InvalidSpec",
            "at night",
        ),
        (
            json!({"version": "99.0.0"}),
            json!({"version": null}),
            "VersionJumpRefused",
            "99.0.0 is neither the same minor version nor the next",
        ),
    ] {
        stage.patch(NAME, &json!({"spec": change}).to_string());
        is_not_accepted(stage, NAME, reason, words).await;
        stage.patch(NAME, &json!({"spec": undo}).to_string());
        stage
            .wait_for(NAME, "the spec is followed again", everybody_serves(1))
            .await;
    }
    assert_eq!(stage.incarnation(&pod).await, before, "it was left alone");

    // An overlay that fits is followed.
    let container = json!({"name": "metastore", "env": [{"name": "OVERLAID", "value": "yes"}]});
    let overlay = json!({"spec": {"podOverlay": {"spec": {"containers": [container]}}}});
    stage.patch(NAME, &overlay.to_string());
    stage
        .wait_for(NAME, "the overlay is there", everybody_serves(1))
        .await;
    let found = stage.get("pod", &pod)["spec"]["containers"][0].clone();
    let found_variables = found["env"].as_array().unwrap();
    assert!(
        found_variables.contains(&json!({"name": "OVERLAID", "value": "yes"})),
        "{found}"
    );
    assert_eq!(found["command"], json!(["metastore"]), "the rest stays");
    writer.take_gap("bad specs");
    writer
        .stop()
        .await
        .check(stage, &Access::plain(), NAME)
        .await;
}

/// A storage class that does not let volumes grow, and a role that is too small: the API server refuses the action,
/// and when the reason is gone, it is done.
pub async fn actions_that_are_refused(stage: &Stage) {
    let class = |expands: bool| {
        stage.apply(&format!(
            "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: fixed}}\n\
             provisioner: test.metastore.io/folder\nallowVolumeExpansion: {expands}\n"
        ));
    };
    class(false);
    stage.apply(
        "apiVersion: metastore.io/v1alpha1\nkind: MetaStoreCluster\nmetadata: {name: fixed}\n\
         spec: {replicas: 1, storage: {size: 1Gi, storageClassName: fixed}}\n",
    );
    stage
        .wait_for("fixed", "one member serves", is_running(1))
        .await;
    stage.patch("fixed", r#"{"spec":{"storage":{"size":"2Gi"}}}"#);
    is_not_accepted(stage, "fixed", "InvalidSpec", "the API server refuses it").await;
    class(true);
    stage
        .wait_for("fixed", "the volume has grown", everybody_serves(1))
        .await;
    stage.delete_cluster("fixed").await;

    let role = stage.get("clusterrole", "test");
    let mut small = role.clone();
    for rule in small["rules"].as_array_mut().unwrap() {
        let resources = rule["resources"].to_string();
        if resources.contains("persistentvolumeclaims") {
            rule["verbs"] = json!(["list"]);
        }
    }
    let rules = |role: &Value| json!({"rules": role["rules"]});
    stage.patch_object("clusterrole", "test", &rules(&small));
    stage.kubectl(&["scale", "msc", NAME, "--replicas=3"]);
    is_not_accepted(stage, NAME, "ForbiddenByRBAC", "persistentvolumeclaims").await;
    stage.patch_object("clusterrole", "test", &rules(&role));
    stage
        .wait_for(NAME, "three members serve", everybody_serves(3))
        .await;
}

/// Objects of the operator are changed and deleted by hand, and the status is thrown away.
pub async fn objects_that_others_change(stage: &Stage) {
    let access = Access::plain();
    let writer = Writer::start(stage, &access, NAME, "hands/");
    let members = stage.members(NAME).await;
    let member = members.iter().next().unwrap();

    let change = json!({"spec": {"selector": {"metastore.io/cluster": "other"}}});
    stage.patch_object("service", NAME, &change);
    stage.kubectl(&["delete", "service", "example-read"]);
    stage.kubectl(&["delete", "poddisruptionbudget", NAME]);
    let change = json!({"spec": {"replicas": 2}});
    stage.patch_object("statefulset", member, &change);
    let change = json!({"data": {(CONFIG_FILE): "name: nobody\n"}});
    let config = stage.get("configmap", member)["data"].clone();
    stage.patch_object("configmap", member, &change);
    let other = members.iter().nth(1).unwrap();
    stage.kubectl(&["delete", "configmap", other]);
    stage.kubectl(&[
        "patch",
        "msc",
        NAME,
        "--subresource=status",
        "--type=json",
        "--patch",
        r#"[{"op": "remove", "path": "/status"}]"#,
    ]);

    eventually("everything is as it was", LIMIT, || async {
        let selector = &stage.get("service", NAME)["spec"]["selector"];
        let is_so = [
            selector["metastore.io/cluster"] == NAME,
            stage.get("service", "example-read").is_object(),
            stage.get("poddisruptionbudget", NAME).is_object(),
            stage.get("statefulset", member)["spec"]["replicas"] == 1,
            stage.get("configmap", member)["data"] == config,
            stage.get("configmap", other).is_object(),
        ];
        match is_so.iter().all(|is_so| *is_so) {
            true => Ok(()),
            false => Err(format!("{is_so:?}")),
        }
    })
    .await;
    stage
        .wait_for(NAME, "the status is there again", everybody_serves(3))
        .await;
    assert_eq!(stage.members(NAME).await, members);
    writer.take_gap("changes by hand");
    writer.stop().await.check(stage, &access, NAME).await;
}

/// The API server hangs for longer than the operator waits for an answer, and is killed in the middle of a change: the
/// members serve meanwhile, and what was under way is done afterwards.
pub async fn api_server_that_hangs_and_restarts(stage: &mut Stage) {
    let access = Access::plain();
    let writer = Writer::start(stage, &access, NAME, "alone/");
    stage.patch(NAME, r#"{"spec":{"config":{"logLevel":"warn"}}}"#);
    let apiserver = stage.plane.apiserver_id();
    signal(apiserver, Signal::STOP);
    eventually("the operator waits no longer", LIMIT, || async {
        // Not of its pass: between two passes none may be under way, and without its Lease it begins no other.
        let log = stage.operator_log();
        match log.contains("the Lease was not renewed") && log.contains("client error") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
    writer.take_gap("an API server that hangs");
    signal(apiserver, Signal::CONT);
    stage
        .wait_for(NAME, "the roll is over", everybody_serves(3))
        .await;
    stage.kubectl(&["scale", "msc", NAME, "--replicas=5"]);
    let before = stage.members(NAME).await;
    eventually("a member is added", LIMIT, || async {
        match stage.members(NAME).await.len() > before.len() {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        }
    })
    .await;
    stage.plane.restart_apiserver().await;
    stage
        .wait_for(NAME, "five members serve", everybody_serves(5))
        .await;
    writer.take_gap("an API server that is killed");
    stage.kubectl(&["scale", "msc", NAME, "--replicas=3"]);
    stage
        .wait_for(NAME, "three members are left", everybody_serves(3))
        .await;
    writer.stop().await.check(stage, &access, NAME).await;
}

/// With `deletion.policy: Delete` a cluster takes its data with it.
pub async fn cluster_that_takes_its_data_with_it(stage: &Stage) {
    let left = || {
        let kinds = "persistentvolumeclaims,configmaps,secrets,statefulsets,services";
        stage.kubectl(&[
            "get",
            kinds,
            "-l",
            "metastore.io/cluster=example",
            "-o",
            "name",
        ])
    };
    assert!(left().contains("persistentvolumeclaim/"), "{}", left());
    stage.patch(NAME, r#"{"spec":{"deletion":{"policy":"Delete"}}}"#);
    let what = "the object waits for the operator before it goes";
    stage
        .wait_for_object("msc", NAME, what, |cluster| {
            cluster["metadata"]["finalizers"][0] == "metastore.io/delete-data"
        })
        .await;
    stage.delete_cluster(NAME).await;
    eventually("nothing is left", LIMIT, || async {
        match left().trim() {
            "" => Ok(()),
            left => Err(left.to_owned()),
        }
    })
    .await;
}

/// Waits for the condition; what runs must go on.
async fn is_not_accepted(stage: &Stage, name: &str, reason: &str, words: &str) {
    stage
        .wait_for(name, &format!("it is told: {reason}"), |cluster| {
            let status = cluster.status.clone().unwrap_or_default();
            let mut conditions = status.conditions.iter();
            let accepted = conditions.find(|condition| condition.type_ == "Accepted");
            accepted.is_some_and(|accepted| {
                accepted.status == "False"
                    && accepted.reason == reason
                    && accepted.message.contains(words)
            }) && condition(cluster, "Available") == "True"
        })
        .await;
}
