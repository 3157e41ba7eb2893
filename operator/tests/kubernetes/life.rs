//! The life of a cluster, with a client that writes all the time: nothing that was acknowledged is lost.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Api, ListParams};
use metastore_operator_api::MetaStoreCluster;
use metastore_tests::eventually;
use serde_json::json;

use crate::kubelet;
use crate::stage::{LIMIT, NAMESPACE, Stage, condition, example, is_running};
use crate::writers::{Access, Writer, any_store};

const NAME: &str = "example";

/// Forming, growing, shrinking, rolling, losing a member, losing a volume, sleeping, starting anew.
pub async fn life_of_a_cluster(stage: &mut Stage) {
    let access = Access::plain();
    stage.apply(&example("cluster.yaml"));
    stage
        .wait_for(NAME, "three members serve", is_running(3))
        .await;
    let text = stage.kubectl(&["get", "msc", NAME]);
    assert!(text.contains("3/3"), "{text}");
    let writer = Writer::start(stage, &access, NAME, "writer/");
    growing_and_shrinking(stage, &writer).await;
    rolling_without_the_first_operator(stage, &writer).await;
    losing(stage, &writer).await;
    losing_the_node_of_a_new_member(stage, &writer).await;
    losing_the_identity(stage).await;
    growing_volumes(stage, &writer).await;
    let written = writer.stop().await;
    written.check(stage, &access, NAME).await;

    stage.patch(NAME, r#"{"spec":{"hibernated":true}}"#);
    eventually("nobody runs", LIMIT, || async {
        match stage.addresses(NAME).await.len() {
            0 => Ok(()),
            count => Err(format!("{count} Pods")),
        }
    })
    .await;
    stage.patch(NAME, r#"{"spec":{"hibernated":false}}"#);
    stage
        .wait_for(NAME, "everybody is awake", is_running(3))
        .await;
    written.check(stage, &access, NAME).await;

    // A cluster that is deleted leaves its volumes, and one of the same name takes them up, under other addresses.
    stage.delete_cluster(NAME).await;
    let again = example("cluster.yaml").replace("1Gi", "2Gi") + "  clusterDomain: cluster.local\n";
    stage.apply(&again);
    stage
        .wait_for(NAME, "the old data serves again", is_running(3))
        .await;
    eventually("the cluster knows the new addresses", LIMIT, || async {
        let address = stage.addresses(NAME).await.pop().ok_or("no Pod")?;
        let client = metastore_tests::Client::new(&format!("http://{address}:2379"));
        let request = metastore_proto::etcdserverpb::MemberListRequest { linearizable: true };
        let answer = client.cluster.clone().member_list(request).await;
        let members = answer
            .map_err(|error| error.to_string())?
            .into_inner()
            .members;
        let mut urls = members.iter().flat_map(|member| &member.peer_ur_ls);
        match urls.all(|url| url.ends_with(".svc.cluster.local:2380")) {
            true => Ok(()),
            false => Err(format!("{members:?}")),
        }
    })
    .await;
    written.check(stage, &access, NAME).await;
    stage.delete_cluster(NAME).await;
}

/// A user's first minute: a cluster is applied and waited for, grows, takes a write, and goes away.
pub async fn first_cluster(stage: &Stage) {
    let access = Access::plain();
    stage.apply(&example("cluster.yaml").replace("replicas: 3", "replicas: 1"));
    let name = format!("msc/{NAME}");
    for wanted in [1, 3] {
        let replicas = format!("--replicas={wanted}");
        stage.kubectl(&["scale", "msc", NAME, &replicas]);
        let what = format!("{wanted} members serve");
        stage.wait_for(NAME, &what, is_running(wanted)).await;
        for condition in ["Available", "AllMembersReady", "Accepted"] {
            let condition = format!("--for=condition={condition}");
            stage.kubectl(&["wait", &condition, &name, "--timeout=10s"]);
        }
    }
    let store = any_store(stage, &access, NAME).await;
    store.put("greeting", "hello").await.unwrap();
    let found = store.pairs("greeting").await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let columns = stage.kubectl(&["get", "msc", NAME]);
    for word in ["READY", "LEADER", "VERSION", "PHASE", "AGE", "3/3"] {
        assert!(columns.contains(word), "{word} is not in {columns}");
    }
    stage.delete_cluster(NAME).await;
}

async fn growing_and_shrinking(stage: &Stage, writer: &Writer) {
    // Through the scale subresource, as an autoscaler does.
    stage.kubectl(&["scale", "msc", NAME, "--replicas=5"]);
    stage
        .wait_for(NAME, "five members serve", is_running(5))
        .await;
    writer.take_gap("growing");
    stage.kubectl(&["scale", "msc", NAME, "--replicas=7"]);
    stage
        .wait_for(NAME, "seven members serve", is_running(7))
        .await;
    writer.take_gap("growing to seven");
    stage.kubectl(&["scale", "msc", NAME, "--replicas=3"]);
    stage
        .wait_for(NAME, "three members are left", is_running(3))
        .await;
    writer.take_gap("shrinking");
}

/// The operator dies in the middle of a roll and another goes on.
async fn rolling_without_the_first_operator(stage: &mut Stage, writer: &Writer) {
    stage.patch(NAME, r#"{"spec":{"config":{"logLevel":"warn"}}}"#);
    eventually("the roll has begun", LIMIT, || async {
        let cluster = stage.clusters().get(NAME).await;
        let cluster = cluster.map_err(|error| error.to_string())?;
        match condition(&cluster, "AllMembersUpdated").as_str() {
            "False" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    stage.kill_operator("first");
    stage.start_operator("second");
    let what = "every member has the new configuration";
    stage.wait_for(NAME, what, is_running(3)).await;
    writer.take_gap("rolling");
}

async fn losing(stage: &Stage, writer: &Writer) {
    // kill -9: the member comes back by itself.
    let name = stage.members(NAME).await.into_iter().next().unwrap();
    let pod = format!("{name}-0");
    let process = stage.shared.lock().unwrap().processes[&pod];
    let before = stage.incarnation(&pod).await;
    kubelet::signal(process, rustix::process::Signal::KILL);
    stage.wait_for_restart(&pod, &before).await;
    let what = "the killed member serves again";
    stage.wait_for(NAME, what, is_running(3)).await;
    writer.take_gap("kill -9");

    // A volume is lost: another member takes the place.
    stage.lose_volume(&name);
    let what = "a new member has replaced the one without a volume";
    stage.wait_for(NAME, what, runs_without(&name)).await;
    writer.take_gap("lost volume");

    // A StatefulSet is deleted by hand: the member comes back with its volume.
    let before_all = stage.members(NAME).await;
    let name = before_all.iter().next().unwrap().clone();
    let pod = format!("{name}-0");
    let before = stage.incarnation(&pod).await;
    stage.kubectl(&["delete", "statefulset", &name]);
    stage.wait_for_restart(&pod, &before).await;
    let what = "the deleted StatefulSet is back";
    stage.wait_for(NAME, what, is_running(3)).await;
    assert_eq!(stage.members(NAME).await, before_all);
    writer.take_gap("lost StatefulSet");
}

/// New Pods are sent to a node that nobody knows to be lost: their members are given up, one after the other, until
/// one gets a node.
async fn losing_the_node_of_a_new_member(stage: &Stage, writer: &Writer) {
    let limit = |limit: &str| {
        let replacement = json!({"unhealthyAfter": limit});
        json!({"spec": {"recovery": {"memberReplacement": replacement}}}).to_string()
    };
    stage.patch(NAME, &limit("8s"));
    let before = stage.members(NAME).await;
    let new = || async {
        let now = stage.members(NAME).await;
        now.difference(&before).next().cloned()
    };
    stage.shared.lock().unwrap().is_lost_to_new_pods = true;
    stage.kubectl(&["scale", "msc", NAME, "--replicas=5"]);
    let lost = eventually("a new member is made", LIMIT, || async {
        new().await.ok_or_else(|| "nobody is new".to_owned())
    })
    .await;
    eventually("the lost member is given up for another", LIMIT, || async {
        match new().await {
            Some(other) if other != lost => Ok(()),
            found => Err(format!("{found:?} after {lost}")),
        }
    })
    .await;
    stage.shared.lock().unwrap().is_lost_to_new_pods = false;
    stage
        .wait_for(NAME, "five members serve", is_running(5))
        .await;
    assert!(!stage.members(NAME).await.contains(&lost), "{lost} is back");
    stage.patch(NAME, &limit("5m"));
    stage.kubectl(&["scale", "msc", NAME, "--replicas=3"]);
    stage
        .wait_for(NAME, "three members are left", is_running(3))
        .await;
    writer.take_gap("a lost node of a new member");
}

/// The spec is accepted, too.
pub fn everybody_serves(replicas: i32) -> impl Fn(&MetaStoreCluster) -> bool {
    move |cluster| condition(cluster, "Accepted") == "True" && is_running(replicas)(cluster)
}

pub fn runs_without(gone: &str) -> impl Fn(&MetaStoreCluster) -> bool {
    move |cluster| {
        let status = cluster.status.clone().unwrap_or_default();
        is_running(3)(cluster) && status.members.iter().all(|member| member.name != gone)
    }
}

/// The ConfigMap with the identity is deleted by hand: the members know who they are.
async fn losing_the_identity(stage: &Stage) {
    let name = format!("{NAME}-identity");
    let members = stage.members(NAME).await;
    let before = stage.get("configmap", &name)["data"]["clusterID"].clone();
    assert!(before.is_string(), "the identity names the cluster");
    stage.kubectl(&["delete", "configmap", &name]);
    stage
        .wait_for_object("configmap", &name, "the identity is adopted", |map| {
            map["data"]["clusterID"] == before
        })
        .await;
    let what = "the cluster goes on under its identity";
    stage.wait_for(NAME, what, is_running(3)).await;
    assert_eq!(stage.members(NAME).await, members);
}

async fn growing_volumes(stage: &Stage, writer: &Writer) {
    stage.patch(NAME, r#"{"spec":{"storage":{"size":"2Gi"}}}"#);
    let api: Api<PersistentVolumeClaim> = Api::namespaced(stage.client.clone(), NAMESPACE);
    eventually("the volumes have grown", LIMIT, || async {
        let selector = ListParams::default().labels("metastore.io/cluster=example");
        let claims = api.list(&selector).await.map_err(|e| e.to_string())?;
        let sizes: Vec<_> = claims
            .iter()
            .filter(|claim| claim.metadata.deletion_timestamp.is_none())
            .filter_map(|claim| {
                let capacity = claim.status.as_ref()?.capacity.as_ref()?;
                Some(capacity.get("storage")?.0.clone())
            })
            .collect();
        if sizes.len() >= 3 && sizes.iter().all(|size| size == "2Gi") {
            Ok(())
        } else {
            Err(format!("{sizes:?}"))
        }
    })
    .await;
    let what = "the new quota is there";
    stage.wait_for(NAME, what, is_running(3)).await;
    writer.take_gap("growing volumes");
}
