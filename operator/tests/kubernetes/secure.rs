//! TLS from the operator's own authority, and authentication, with a client that writes all the time.

use std::time::Duration;

use metastore_tests::eventually;

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
