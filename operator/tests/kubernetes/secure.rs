//! TLS from the operator's own authority, and authentication, with a client that writes all the time.

use std::time::Duration;

use metastore_tests::eventually;
use serde_json::json;

use crate::stage::{LIMIT, Stage, condition, example, is_running};
use crate::writers::{Access, Writer, any_store};

const NAME: &str = "secure";

/// One member, then three, then a roll; who speaks plain text or is nobody is refused.
pub async fn secure_cluster(stage: &Stage) {
    stage.apply(&example("secure-cluster.yaml"));
    stage
        .wait_for(NAME, "a member serves with TLS", |cluster| {
            is_running(1)(cluster) && condition(cluster, "CertificatesReady") == "True"
        })
        .await;
    let address = stage.addresses(NAME).await.remove(0);
    let plain = metastore_tests::Client::with_timeout(
        &format!("http://{address}:2379"),
        Duration::from_secs(2),
    );
    let refusal = plain.put("a", "b").await;
    assert!(refusal.is_err(), "plain text must be refused");

    // Logging in succeeds once authentication is on.
    let access = Access::secure(stage, NAME).await;
    let _ = any_store(stage, &access, NAME).await;
    // With a certificate and without a password nobody may write.
    let member = stage.members(NAME).await.into_iter().next().unwrap();
    let nobody = access.as_nobody();
    let store = nobody.store(&member, &address, NAME).await.unwrap();
    let refusal = store.put("a", "b").await.unwrap_err();
    // The name in the certificate is a user then, and this one has no roles.
    assert!(refusal.message().contains("permission denied"), "{refusal}");

    let writer = Writer::start(stage, &access, NAME, "writer/");
    stage.patch(NAME, r#"{"spec":{"replicas":3}}"#);
    let what = "three members serve with TLS and authentication";
    stage.wait_for(NAME, what, is_running(3)).await;
    writer.take_gap("growing");
    stage.patch(NAME, r#"{"spec":{"config":{"logLevel":"warn"}}}"#);
    let what = "every member has the new configuration";
    stage.wait_for(NAME, what, is_running(3)).await;
    writer.take_gap("rolling");
    let name = stage.members(NAME).await.into_iter().next().unwrap();
    stage.lose_volume(&name);
    let what = "a new member has replaced the one without a volume";
    stage
        .wait_for(NAME, what, crate::life::runs_without(&name))
        .await;
    writer.take_gap("lost volume");
    writer.stop().await.check(stage, &access, NAME).await;
    // etcd reads its authorities at the start only, so its members would have to restart for a new one.
    if std::env::var("METASTORE_KUBERNETES_SERVER").as_deref() == Ok("metastore") {
        replacing_the_authority(stage).await;
    }
    switching_authentication(stage).await;

    // The plugin speaks TLS, and as root.
    let text = crate::operators::in_shell(stage, NAME, &["put", "from", "shell"]).await;
    assert_eq!(text.trim(), "OK");

    // Its policy is to delete the data.
    stage.delete_cluster(NAME).await;
    for (kind, name) in [("secret", "secure-ca"), ("configmap", "secure-identity")] {
        stage
            .wait_for_object(kind, name, "the data is deleted", |object| object.is_null())
            .await;
    }
    eventually("no volume is left", LIMIT, || async {
        let claims = "metastore.io/cluster=secure";
        let claims = stage.kubectl(&["get", "pvc", "-l", claims, "-o", "name"]);
        match claims.trim() {
            "" => Ok(()),
            left => Err(left.to_owned()),
        }
    })
    .await;
}

/// Members trust the old and the new authority, then show certificates of the new one, then forget the old one.
/// Nobody restarts, and nobody is ever refused.
async fn replacing_the_authority(stage: &Stage) {
    let trusted = || stage.get("secret", "secure-ca")["data"]["ca.crt"].clone();
    let before = trusted();
    let starts = incarnations(stage).await;
    let change = json!({"spec": {"tls": {"issuer": {"operatorCA": {
        "rotation": 1, "rotationPause": "15s",
    }}}}});
    stage.patch(NAME, &change.to_string());
    for (what, keys) in [
        (
            "a new authority is trusted, too",
            ["next.crt", "next.key"].as_slice(),
        ),
        ("the new authority signs", &["previous.crt"]),
        ("the old authority is forgotten", &[]),
    ] {
        stage
            .wait_for_object("secret", "secure-ca", what, |secret| {
                let data = secret["data"].as_object().cloned().unwrap_or_default();
                let others: Vec<_> = data
                    .keys()
                    .filter(|key| !["ca.crt", "ca.key"].contains(&key.as_str()))
                    .collect();
                others == keys
            })
            .await;
        let access = Access::secure(stage, NAME).await;
        let store = any_store(stage, &access, NAME).await;
        store.put("rotation", what).await.unwrap();
    }
    assert_ne!(trusted(), before);
    // Each member is reached by who trusts the new one only.
    eventually(
        "every member shows a certificate of the new authority",
        LIMIT,
        || async {
            let access = Access::secure(stage, NAME).await;
            for (member, address) in stage.pods(NAME).await {
                let store = access.store(&member, &address, NAME).await;
                let store = store.map_err(|error| format!("{member}: {error}"))?;
                let pairs = store.pairs("rotation").await;
                pairs.map_err(|error| format!("{member}: {error}"))?;
            }
            Ok(())
        },
    )
    .await;
    assert_eq!(incarnations(stage).await, starts);
    stage
        .wait_for(NAME, "three members serve", is_running(3))
        .await;
}

async fn incarnations(stage: &Stage) -> Vec<Option<(String, i32)>> {
    let mut all = Vec::new();
    for name in stage.members(NAME).await {
        all.push(stage.incarnation(&format!("{name}-0")).await);
    }
    all
}

async fn switching_authentication(stage: &Stage) {
    let nobody = Access::encrypted(stage, NAME).await;
    for (enabled, what) in [(false, "nobody may write"), (true, "only root may write")] {
        stage.patch(
            NAME,
            &json!({"spec": {"auth": {"enabled": enabled}}}).to_string(),
        );
        eventually(what, LIMIT, || async {
            let (member, address) = stage.pods(NAME).await.remove(0);
            let store = nobody.store(&member, &address, NAME).await;
            let store = store.map_err(|error| error.to_string())?;
            match store.put("switch", what).await {
                Ok(()) if enabled => Err("nobody may still write".to_owned()),
                Err(error) if !enabled => Err(error.to_string()),
                _ => Ok(()),
            }
        })
        .await;
    }
    let root = Access::secure(stage, NAME).await;
    let store = any_store(stage, &root, NAME).await;
    store.put("switch", "root").await.unwrap();
}

/// A cluster in use goes from plain text to TLS over both, while clients of either kind write.
pub async fn cluster_that_gets_tls(stage: &Stage) {
    const CLUSTER: &str = "example";
    let plain = Access::plain();
    stage.apply(&example("cluster.yaml"));
    stage
        .wait_for(CLUSTER, "three members serve", is_running(3))
        .await;
    let plain_writer = Writer::start(stage, &plain, CLUSTER, "plain/");
    let tls = |mode: &str| {
        json!({"spec": {"tls": {"issuer": {"operatorCA": {}}, "client": {"mode": mode}}}})
            .to_string()
    };
    stage.patch(CLUSTER, &tls("Permissive"));
    stage
        .wait_for(CLUSTER, "they serve TLS, too", is_running(3))
        .await;
    plain_writer.take_gap("TLS beside plain text");
    let encrypted = Access::encrypted(stage, CLUSTER).await;
    let writer = Writer::start(stage, &encrypted, CLUSTER, "tls/");
    any_store(stage, &plain, CLUSTER).await;
    let written_plainly = plain_writer.stop().await;
    stage.patch(CLUSTER, &tls("Required"));
    stage
        .wait_for(CLUSTER, "they serve TLS only", is_running(3))
        .await;
    writer.take_gap("TLS only");
    for (member, address) in stage.pods(CLUSTER).await {
        let store = plain.store(&member, &address, CLUSTER).await.unwrap();
        assert!(
            store.put("a", "b").await.is_err(),
            "{member} speaks plain text"
        );
    }
    let written = writer.stop().await;
    written.check(stage, &encrypted, CLUSTER).await;
    written_plainly.check(stage, &encrypted, CLUSTER).await;
    version_rule(stage, CLUSTER).await;
    stage.delete_cluster(CLUSTER).await;
}

/// A version that may not follow the one that runs changes nothing.
async fn version_rule(stage: &Stage, cluster: &str) {
    let version = |version: &str| json!({"spec": {"version": version}}).to_string();
    stage.patch(cluster, &version("0.9.0"));
    stage
        .wait_for(
            cluster,
            "a jump over minor versions is refused",
            |cluster| {
                condition(cluster, "Accepted") == "False"
                    && condition(cluster, "Available") == "True"
            },
        )
        .await;
    let next = format!("0.{}.0", 1 + minor_version());
    stage.patch(cluster, &version(&next));
    let what = "the next minor version runs";
    stage.wait_for(cluster, what, is_running(3)).await;
    for (member, _) in stage.pods(cluster).await {
        let pod = stage.get("pod", &format!("{member}-0"));
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap();
        assert!(image.ends_with(&next), "{image}");
    }
}

fn minor_version() -> u64 {
    let mut numbers = env!("CARGO_PKG_VERSION").split('.');
    numbers.nth(1).unwrap().parse().unwrap()
}
