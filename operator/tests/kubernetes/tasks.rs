//! Tasks, alarms, and the loss of a majority.

use metastore_tests::eventually;
use serde_json::{Value, json};

use crate::backups::state_of;
use crate::life::runs_without;
use crate::stage::{LIMIT, Stage, condition, is_running};
use crate::writers::{Access, Store, Writer, any_store};

const NAME: &str = "busy";

/// Every kind of task on a cluster of three, with a client that writes all the time.
pub async fn tasks(stage: &Stage) {
    let access = Access::plain();
    stage.apply(&cluster(3, "quota: 64Mi"));
    stage
        .wait_for(NAME, "three members serve", is_running(3))
        .await;
    let writer = Writer::start(stage, &access, NAME, "writer/");
    let members = stage.members(NAME).await;

    let done = task(stage, "reclaim", json!({"defrag": {}})).await;
    assert_eq!(done["status"]["doneMembers"].as_array().unwrap().len(), 3);

    let done = task(stage, "forget", json!({"compact": {}})).await;
    assert!(result(&done).starts_with("compacted at "), "{done}");
    let client = any_member(stage).await;
    let revision = client.get("x").await.unwrap().1;
    let old = metastore_proto::etcdserverpb::RangeRequest {
        key: "writer/00000001".into(),
        revision: 2,
        ..Default::default()
    };
    let refusal = client.kv.clone().range(old).await.unwrap_err();
    assert!(refusal.message().contains("compacted"), "{refusal}");
    // A revision that is still to come cannot be compacted: the task fails and says so.
    let future = json!({"compact": {"revision": revision + 1_000_000}});
    let failed = ended_task(stage, "forget-the-future", future).await;
    assert_eq!(failed["status"]["phase"], "Failed", "{failed}");
    assert!(result(&failed).contains("future revision"), "{failed}");

    let leader = stage.get("msc", NAME)["status"]["leader"]
        .as_str()
        .unwrap()
        .to_owned();
    let next = members.iter().find(|name| **name != leader).unwrap();
    task(stage, "lead", json!({"moveLeader": {"to": next}})).await;
    let what = "the leader that the task names leads";
    let wanted = next.clone();
    stage
        .wait_for(NAME, what, move |cluster| {
            let status = cluster.status.clone().unwrap_or_default();
            status.leader.as_ref() == Some(&wanted)
        })
        .await;

    let done = task(stage, "compare", json!({"verifyConsistency": {}})).await;
    assert!(result(&done).contains("at revision"), "{done}");

    // A new member is added before the leader, which is replaced, goes.
    let done = task(stage, "replace", json!({"replaceMember": {"member": next}})).await;
    assert!(result(&done).contains("no member any more"), "{done}");
    stage
        .wait_for(NAME, "three members serve", runs_without(next))
        .await;
    let failed = ended_task(
        stage,
        "lead-nobody",
        json!({"moveLeader": {"to": "nobody"}}),
    )
    .await;
    assert_eq!(failed["status"]["phase"], "Failed", "{failed}");

    // Nothing is recovered while a majority serves.
    let id = stage.get("msc", NAME)["status"]["clusterID"].clone();
    let survivor = stage.members(NAME).await.into_iter().next().unwrap();
    let spec = json!({"recoverQuorum": {"acceptDataLoss": id, "survivor": survivor}});
    let rejected = ended_task(stage, "recover-nothing", spec).await;
    assert_eq!(rejected["status"]["phase"], "Rejected", "{rejected}");
    writer.take_gap("tasks");
    writer.stop().await.check(stage, &access, NAME).await;

    // A task that ended goes after its time.
    let mut short = task_object("short", json!({"compact": {}}));
    short["spec"]["ttlSecondsAfterFinished"] = json!(1);
    stage.apply(&short.to_string());
    stage
        .wait_for_object("mst", "short", "the task is forgotten", |object| {
            object.is_null()
        })
        .await;
}

/// The store is full of history: the operator makes room by itself. It is full of data: it says so until there
/// is more room.
pub async fn full_store(stage: &Stage) {
    let store = any_store(stage, &Access::plain(), NAME).await;
    let refusal = fill(&store, |_| "history".to_owned()).await;
    assert!(refusal.contains("database space exceeded"), "{refusal}");
    eventually("the store takes writes again", LIMIT, || async {
        store
            .put("history", "small")
            .await
            .map_err(|e| e.to_string())
    })
    .await;
    wait_for_event(stage, "Disarm").await;
    let what = "the storage is well again";
    stage
        .wait_for(NAME, what, |cluster| {
            condition(cluster, "StorageHealthy") == "True" && is_running(3)(cluster)
        })
        .await;
    let refusal = fill(&store, |number| format!("data/{number}")).await;
    assert!(refusal.contains("database space exceeded"), "{refusal}");
    stage
        .wait_for(NAME, "the full store is reported", |cluster| {
            condition(cluster, "StorageHealthy") == "False"
        })
        .await;
    stage.patch(NAME, r#"{"spec":{"config":{"quota":"256Mi"}}}"#);
    stage
        .wait_for(NAME, "more room has helped", |cluster| {
            condition(cluster, "StorageHealthy") == "True" && is_running(3)(cluster)
        })
        .await;
    let store = any_store(stage, &Access::plain(), NAME).await;
    store.put("data/last", "small").await.unwrap();
}

/// The store is full of data, and its volume may grow: it grows, and stops at its limit.
pub async fn full_store_that_grows(stage: &Stage) {
    const GROWING: &str = "growing";
    let access = Access::plain();
    stage.apply(&format!(
        "apiVersion: metastore.io/v1alpha1\nkind: MetaStoreCluster\nmetadata: {{name: {GROWING}}}\n\
         spec: {{replicas: 1, storage: {{size: 64Mi, autoGrow: {{maxSize: 100Mi, stepPercent: 25}}}}}}\n"
    ));
    stage
        .wait_for(GROWING, "one member serves", is_running(1))
        .await;
    let member = stage.members(GROWING).await.into_iter().next().unwrap();
    let claim = format!("{member}-data");
    let mut number = 0;
    for size in ["80Mi", "100Mi"] {
        // Again and again: in etcd a defragmentation makes some room, so that a full store is not full of data yet.
        eventually(&format!("the volume has {size}"), LIMIT, || {
            number += 1;
            let (access, claim) = (&access, &claim);
            async move {
                let mut value = vec![0u8; 1_000_000];
                rand::fill(&mut value[..]);
                let store = any_store(stage, access, GROWING).await;
                let put = store.put(&format!("data/{number}"), value).await;
                let found = stage.get("pvc", claim)["status"]["capacity"]["storage"].clone();
                match found == size {
                    true => Ok(()),
                    false => Err(format!("{found} after {number} puts: {put:?}")),
                }
            }
        })
        .await;
        stage
            .wait_for(GROWING, "the storage is well again", |cluster| {
                condition(cluster, "StorageHealthy") == "True" && is_running(1)(cluster)
            })
            .await;
        let store = any_store(stage, &access, GROWING).await;
        store.put("small", "one").await.unwrap();
    }
    let store = any_store(stage, &access, GROWING).await;
    fill(&store, |number| format!("data/last/{number}")).await;
    stage
        .wait_for(GROWING, "the full store is reported", |cluster| {
            condition(cluster, "StorageHealthy") == "False"
        })
        .await;
    let claim = stage.get("pvc", &claim);
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "100Mi");
    stage.delete_cluster(GROWING).await;
}

/// Puts megabytes until the store refuses; returns what it said.
async fn fill(store: &Store, key: impl Fn(u32) -> String) -> String {
    let mut number = 0;
    eventually("the store is full", LIMIT, || {
        number += 1;
        let key = key(number);
        async move {
            // The value must not be small when it is compressed.
            let mut value = vec![0u8; 1_000_000];
            rand::fill(&mut value[..]);
            match store.put(&key, value).await {
                Err(error) if error.message().contains("space exceeded") => {
                    Ok(error.message().to_owned())
                }
                other => Err(format!("{other:?}")),
            }
        }
    })
    .await
}

/// The data of a member is said to differ: it is stopped and replaced, and the alarm is cleared.
pub async fn differing_data(stage: &Stage) {
    use metastore_proto::etcdserverpb as pb;
    let access = Access::plain();
    let store = any_store(stage, &access, NAME).await;
    store.put("truth", "one").await.unwrap();
    let cluster = stage.get("msc", NAME);
    let members = cluster["status"]["members"].as_array().unwrap();
    let bad = members
        .iter()
        .find(|member| member["role"] == "Follower")
        .unwrap();
    let id = u64::from_str_radix(bad["id"].as_str().unwrap(), 16).unwrap();
    let name = bad["name"].as_str().unwrap();
    let alarm = pb::AlarmRequest {
        action: pb::alarm_request::AlarmAction::Activate as i32,
        member_id: id,
        alarm: pb::AlarmType::Corrupt as i32,
    };
    let mut client = any_member(stage).await.maintenance;
    client.alarm(alarm).await.unwrap();
    stage
        .wait_for(
            NAME,
            "the member whose data differs is replaced",
            runs_without(name),
        )
        .await;
    wait_for_event(stage, "Fence").await;
    let store = any_store(stage, &access, NAME).await;
    store.put("truth", "two").await.unwrap();
    let left = stage.get("msc", NAME)["status"]["alarms"].clone();
    assert!(left.as_array().is_none_or(Vec::is_empty), "{left}");
}

/// Two volumes of three are gone for good: the operator waits until somebody who knows the id of the cluster
/// says that it shall go on with the third.
pub async fn lost_majority(stage: &Stage) {
    let access = Access::plain();
    let store = any_store(stage, &access, NAME).await;
    for number in 0..20 {
        let key = format!("precious/{number:02}");
        store.put(&key, key.clone()).await.unwrap();
    }
    let before = store.pairs("precious/").await.unwrap();
    stage
        .wait_for(NAME, "nothing is under way", is_running(3))
        .await;
    let id = stage.get("msc", NAME)["status"]["clusterID"].clone();
    let mut members = stage.members(NAME).await.into_iter();
    let (survivor, others) = (members.next().unwrap(), members.collect::<Vec<_>>());
    for other in &others {
        stage.lose_volume(other);
    }
    stage
        .wait_for(NAME, "the loss is reported", |cluster| {
            condition(cluster, "Available") == "False"
        })
        .await;
    // Who does not know the cluster must not decide about its data.
    let wrong = json!({"recoverQuorum": {"acceptDataLoss": "1234", "survivor": survivor}});
    let rejected = ended_task(stage, "wrong-id", wrong).await;
    assert_eq!(rejected["status"]["phase"], "Rejected", "{rejected}");
    assert!(result(&rejected).contains("must be the id of the cluster"));
    let lost = json!({"recoverQuorum": {"acceptDataLoss": id, "survivor": others[0]}});
    let rejected = ended_task(stage, "lost-survivor", lost).await;
    assert_eq!(rejected["status"]["phase"], "Rejected", "{rejected}");
    let right = json!({"recoverQuorum": {"acceptDataLoss": id, "survivor": survivor}});
    task(stage, "go-on", right).await;
    let what = "three members serve after the loss of two";
    stage.wait_for(NAME, what, is_running(3)).await;
    let now = stage.members(NAME).await;
    assert!(now.contains(&survivor), "{now:?}");
    assert!(others.iter().all(|other| !now.contains(other)), "{now:?}");
    let store = any_store(stage, &access, NAME).await;
    assert_eq!(store.pairs("precious/").await.unwrap(), before);
    // The whole again writes, and its members agree.
    store.put("precious/new", "new").await.unwrap();
    task(stage, "compare-again", json!({"verifyConsistency": {}})).await;
    stage.delete_cluster(NAME).await;
}

fn cluster(replicas: u32, config: &str) -> String {
    format!(
        "apiVersion: metastore.io/v1alpha1\nkind: MetaStoreCluster\nmetadata: {{name: {NAME}}}\n\
         spec: {{replicas: {replicas}, storage: {{size: 1Gi}}, config: {{{config}}}}}\n"
    )
}

async fn any_member(stage: &Stage) -> metastore_tests::Client {
    let address = stage.addresses(NAME).await.remove(0);
    metastore_tests::Client::new(&format!("http://{address}:2379"))
}

fn task_object(name: &str, what: Value) -> Value {
    let mut spec = what;
    spec["clusterRef"] = json!({"name": NAME});
    json!({
        "apiVersion": "metastore.io/v1alpha1",
        "kind": "MetaStoreTask",
        "metadata": {"name": name},
        "spec": spec,
    })
}

async fn ended_task(stage: &Stage, name: &str, what: Value) -> Value {
    stage.apply(&task_object(name, what).to_string());
    let task = stage
        .wait_for_object("mst", name, &format!("the task {name} is over"), |task| {
            task["status"]["finishedAt"].is_string()
        })
        .await;
    let succeeded = task["status"]["phase"] == "Succeeded";
    let wanted = if succeeded { "True" } else { "False" };
    assert_eq!(state_of(&task, "Complete").0, wanted, "{task}");
    task
}

async fn task(stage: &Stage, name: &str, what: Value) -> Value {
    let task = ended_task(stage, name, what).await;
    assert_eq!(task["status"]["phase"], "Succeeded", "{task}");
    task
}

fn result(task: &Value) -> String {
    task["status"]["result"].as_str().unwrap_or("").to_owned()
}

async fn wait_for_event(stage: &Stage, reason: &str) {
    eventually(&format!("there is an Event {reason}"), LIMIT, || async {
        let text = stage.kubectl(&["get", "events.events.k8s.io", "-o", "json"]);
        let events: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let events = events["items"].as_array().cloned().unwrap_or_default();
        let found = events
            .iter()
            .any(|event| event["reason"] == reason && event["regarding"]["name"] == NAME);
        if found {
            Ok(())
        } else {
            Err("no Event".into())
        }
    })
    .await;
}
