//! Two operators and their Lease, and the plugin of kubectl.

use std::fs;
use std::process::Command;

use metastore_tests::eventually;
use serde_json::Value;

use crate::backups::wait_for_backup;
use crate::control_plane::root;
use crate::stage::{LIMIT, Stage, example, is_running};
use crate::writers::{Access, Writer, any_store};

/// One of two operators acts; when it is killed in the middle of its work, the other goes on.
pub async fn two_operators(stage: &mut Stage) {
    eventually("the first operator leads", LIMIT, || async {
        holder(stage).ok_or_else(|| "nobody".to_owned())
    })
    .await;
    stage.start_operator("second");
    let access = Access::plain();
    stage.apply(&example("cluster.yaml").replace("replicas: 3", "replicas: 1"));
    stage
        .wait_for("example", "one member serves", is_running(1))
        .await;
    assert_eq!(holder(stage).as_deref(), Some("first"));
    let writer = Writer::start(stage, &access, "example", "writer/");
    stage.kubectl(&["scale", "msc", "example", "--replicas=3"]);
    eventually("the second member is on its way", LIMIT, || async {
        match stage.members("example").await.len() {
            0 | 1 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    stage.kill_operator("first");
    let what = "the other operator has finished the work";
    stage.wait_for("example", what, is_running(3)).await;
    assert_eq!(holder(stage).as_deref(), Some("second"));
    writer.stop().await.check(stage, &access, "example").await;
    // Nobody acted beside the holder: every Event of the time before is of the first.
    let text = stage.kubectl(&["get", "events.events.k8s.io", "-o", "json"]);
    let events: Value = serde_json::from_str(&text).unwrap();
    let of = |instance: &str| {
        let all = events["items"].as_array().unwrap();
        all.iter()
            .filter(|event| event["reportingInstance"] == instance)
            .map(|event| event["eventTime"].as_str().unwrap_or("").to_owned())
            .collect::<Vec<_>>()
    };
    let (first, second) = (of("first"), of("second"));
    assert!(
        !first.is_empty() && !second.is_empty(),
        "{first:?} {second:?}"
    );
    assert!(
        first.iter().max() < second.iter().min(),
        "{first:?} {second:?}"
    );
    // One that is asked to end gives the Lease back: nobody waits until it has run out.
    stage.start_operator("third");
    stage.stop_operator("second").await;
    eventually(
        "the third operator leads",
        std::time::Duration::from_secs(8),
        || async {
            match holder(stage).as_deref() {
                Some("third") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        },
    )
    .await;
}

fn holder(stage: &Stage) -> Option<String> {
    let lease = stage.get("lease", "metastore-operator");
    Some(lease["spec"]["holderIdentity"].as_str()?.to_owned())
}

/// Every word of `kubectl metastore`, called as kubectl calls it.
pub async fn plugin(stage: &Stage) {
    let access = Access::plain();
    let text = run(stage, &["status"]);
    assert!(text.contains("example: Running, 3/3 ready"), "{text}");
    let text = run(stage, &["plan", "example", "--local"]);
    assert!(text.contains("nothing is to be done"), "{text}");
    let change = r#"{"replicas": 5}"#;
    let text = run(stage, &["plan", "example", "--local", "--spec", change]);
    assert!(text.contains("PodDisruptionBudget/example"), "{text}");
    assert!(text.contains("ready 3/5"), "{text}");
    let claim = example("backup.yaml");
    stage.apply(claim.split("---").nth(1).unwrap());
    let made = run(
        stage,
        &["backup", "example", "--claim", "backups", "--wait"],
    );
    let name = made
        .lines()
        .find_map(|line| line.strip_prefix("metastorebackup/"))
        .and_then(|line| line.split_whitespace().next())
        .unwrap()
        .to_owned();
    wait_for_backup(stage, &name).await;
    let before = any_store(stage, &access, "example")
        .await
        .pairs("writer/")
        .await
        .unwrap();
    let text = run(stage, &["restore", &name, "--to", "again", "--wait"]);
    assert!(text.contains("metastorecluster/again"), "{text}");
    let store = any_store(stage, &access, "again").await;
    assert_eq!(store.pairs("writer/").await.unwrap(), before);
    for words in [
        &["defrag", "example"][..],
        &["compact", "example"],
        &["move-leader", "example"],
        &["verify", "example"],
    ] {
        let arguments = [words, &["--wait"]].concat();
        let text = run(stage, &arguments);
        assert!(text.contains("Succeeded"), "{text}");
    }
    let text = in_shell(stage, "example", &["put", "greeting", "hello"]).await;
    assert_eq!(text.trim(), "OK");
    let store = any_store(stage, &access, "example").await;
    let found = store.pairs("greeting").await.unwrap();
    assert_eq!(found["greeting"], "hello");
    let member = stage.members("example").await.into_iter().next().unwrap();
    let text = run(stage, &["replace", "example", &member, "--wait"]);
    assert!(text.contains("Succeeded"), "{text}");
    stage
        .wait_for(
            "example",
            "it was replaced",
            crate::life::runs_without(&member),
        )
        .await;
}

/// `kubectl metastore shell`: a command that knows where the cluster is, and as whom it speaks. The test plays
/// `kubectl port-forward`, which needs a real kubelet.
pub async fn in_shell(stage: &Stage, cluster: &str, command: &[&str]) -> String {
    use std::os::unix::fs::PermissionsExt;
    let target = format!("{}:2379", stage.addresses(cluster).await[0]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let proxy = tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = tokio::net::TcpStream::connect(&target).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let folder = stage.plane.path("bin");
    fs::create_dir_all(&folder).unwrap();
    let script =
        format!("#!/bin/sh\necho 'Forwarding from 127.0.0.1:{port} -> 2379'\nexec sleep 600\n");
    fs::write(folder.join("kubectl"), script).unwrap();
    fs::set_permissions(folder.join("kubectl"), fs::Permissions::from_mode(0o755)).unwrap();
    let program = root().join("target/debug/metastorectl");
    let program = program.display().to_string();
    let arguments = [&["shell", cluster, "--", &program][..], command].concat();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", folder.display());
    let text = tokio::task::block_in_place(|| run_with(stage, &arguments, &path));
    proxy.abort();
    text
}

fn run(stage: &Stage, arguments: &[&str]) -> String {
    run_with(stage, arguments, &std::env::var("PATH").unwrap())
}

fn run_with(stage: &Stage, arguments: &[&str], path: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kubectl-metastore"))
        .env("KUBECONFIG", stage.plane.path("admin.kubeconfig"))
        .env("PATH", path)
        .args(arguments)
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}
