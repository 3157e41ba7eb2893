//! What the operator creates, compared with `tests/snapshots` and read with Kubernetes' own types.
//!
//! `INSTA_UPDATE=always cargo test -p metastore-operator-resources` writes the snapshots anew.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

use std::fmt::Write as _;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use metastore_operator_api::{
    BackupStore, ClusterSpec, DurationText, PvcStore, RestoreSource, S3Store,
};
use metastore_operator_resources::{
    Capabilities, Cluster, Images, JobOwner, MemberStart, SeedRestore, backup_job, claim,
    config_map, join_list, shared_objects, stateful_set, template_hash, verify_job,
};
use serde_json::{Value, json};

fn images() -> Images {
    Images {
        server_repository: "registry/metastore".into(),
        server_version: "1.2.3".into(),
        operator_image: "registry/metastore-operator:1.2.3".into(),
    }
}

fn spec(value: Value) -> ClusterSpec {
    serde_json::from_value(value).unwrap()
}

fn with<T>(spec: &ClusterSpec, build: impl FnOnce(&Cluster<'_>) -> T) -> T {
    let images = images();
    build(&Cluster {
        name: "prod",
        namespace: "data",
        uid: "0000-1111",
        spec,
        images: &images,
    })
}

fn secure_spec() -> ClusterSpec {
    spec(json!({
        "replicas": 3,
        "version": "1.2.4",
        "storage": {"size": "20Gi", "storageClassName": "fast"},
        "resources": {"limits": {"memory": "2Gi"}},
        "config": {
            "quota": "8Gi",
            "compaction": {"mode": "Periodic", "retention": "1h"},
            "extraConfig": {"max-txn-ops": "256", "enable-pprof": "true"},
            "extraEnvironment": {"GREETING": "hello"},
        },
        "tls": {
            "client": {"mode": "Required", "clientAuth": true},
            "peer": {"mode": "Required"},
            "issuer": {"certManager": {"issuerRef": {"name": "ca"}}},
        },
        "auth": {"enabled": true},
        "networkPolicy": {"enabled": true, "clientPodLabels": {"app": "shop"}},
        "podOverlay": {"metadata": {"annotations": {"a": "b"}}, "spec": {"priority": 7}},
    }))
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

#[test]
fn a_member_with_defaults() {
    let spec = spec(json!({}));
    let text = with(&spec, |cluster| {
        let set = stateful_set(cluster, "prod-abcde", "joining", 1, None).unwrap();
        let start = MemberStart::Join {
            token: "token".into(),
            members: vec![
                ("a".into(), "http://a:2380".into()),
                ("prod-abcde".into(), "http://b:2380".into()),
            ],
        };
        let map = config_map(cluster, "prod-abcde", &start);
        serde_json::from_value::<StatefulSet>(set.clone()).unwrap();
        serde_json::from_value::<PersistentVolumeClaim>(claim(cluster, "prod-abcde")).unwrap();
        format!(
            "{}\n{}\n{}",
            pretty(&set),
            pretty(&claim(cluster, "prod-abcde")),
            map["data"]["metastore.yaml"].as_str().unwrap()
        )
    });
    insta::assert_snapshot!(text);
}

#[test]
fn what_a_spec_prefers_stays_beside_what_keeps_members_apart() {
    let preferred = json!({"weight": 1, "podAffinityTerm": {
        "topologyKey": "rack", "labelSelector": {"matchLabels": {"app": "noisy"}},
    }});
    let antiaffinity = |scheduling: Value| {
        let spec = spec(json!({"scheduling": scheduling}));
        let set = with(&spec, |cluster| {
            stateful_set(cluster, "a", "running", 1, None)
        })
        .unwrap();
        let pod = set["spec"]["template"]["spec"].clone();
        let terms =
            pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
                .clone();
        let keys = terms.as_array().into_iter().flatten();
        let keys: Vec<_> = keys
            .map(|term| {
                term["podAffinityTerm"]["topologyKey"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        (
            keys,
            pod["topologySpreadConstraints"]
                .as_array()
                .map_or(0, Vec::len),
        )
    };
    let zone_and_node = ["topology.kubernetes.io/zone", "kubernetes.io/hostname"];
    assert_eq!(
        antiaffinity(json!({})),
        (zone_and_node.map(String::from).to_vec(), 0)
    );
    let own = json!({"podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [preferred],
    }});
    assert_eq!(
        antiaffinity(json!({"affinity": own, "topologyKeys": ["kubernetes.io/hostname"]})),
        (
            vec!["rack".to_owned(), "kubernetes.io/hostname".to_owned()],
            0
        )
    );
    assert_eq!(antiaffinity(json!({"spread": "Required"})), (Vec::new(), 2));
    assert_eq!(antiaffinity(json!({"spread": "Off"})), (Vec::new(), 0));
}

#[test]
fn a_member_with_everything() {
    let spec = secure_spec();
    let store = BackupStore {
        s3: Some(S3Store {
            bucket: "b".into(),
            credentials_secret_ref: Some(metastore_operator_api::LocalReference {
                name: "keys".into(),
            }),
            ..S3Store::default()
        }),
        ..BackupStore::default()
    };
    let restore = SeedRestore {
        source: RestoreSource {
            store,
            artifact: "data/prod/1/x.db".into(),
        },
        bump_revision: 1000,
    };
    let text = with(&spec, |cluster| {
        let set = stateful_set(cluster, "prod-abcde", "forming", 1, Some(&restore)).unwrap();
        let map = config_map(cluster, "prod-abcde", &MemberStart::Run);
        serde_json::from_value::<StatefulSet>(set.clone()).unwrap();
        format!(
            "{}\n{}",
            pretty(&set),
            map["data"]["metastore.yaml"].as_str().unwrap()
        )
    });
    insta::assert_snapshot!(text);
}

#[test]
fn a_permissive_member_serves_plain_text_and_tls_on_one_port() {
    let spec =
        spec(json!({"tls": {"client": {"mode": "Permissive"}, "issuer": {"operatorCA": {}}}}));
    with(&spec, |cluster| {
        let file = config_map(cluster, "a", &MemberStart::Run)["data"]["metastore.yaml"]
            .as_str()
            .unwrap()
            .to_owned();
        for line in [
            r#"listen-client-urls: "https://0.0.0.0:2379,http://0.0.0.0:2379""#,
            r#"advertise-client-urls: "https://a-0.prod-peer.data.svc:2379,http://a-0.prod-peer.data.svc:2379""#,
            r#"listen-peer-urls: "http://0.0.0.0:2380""#,
        ] {
            assert!(file.contains(line), "{line} is not in\n{file}");
        }
        assert!(file.contains("client-transport-security"), "{file}");
        assert_eq!(
            cluster.client_url("a"),
            "https://a-0.prod-peer.data.svc:2379"
        );
        let set = stateful_set(cluster, "a", "running", 1, None).unwrap();
        assert!(pretty(&set).contains("prod-server-tls"), "it is mounted");
    });
}

#[test]
fn the_shared_objects() {
    let all = Capabilities {
        cert_manager: true,
        prometheus: true,
    };
    let spec = secure_spec();
    let objects = with(&spec, |cluster| shared_objects(cluster, 3, true, all));
    let mut text = String::new();
    for object in &objects {
        match object["kind"].as_str().unwrap() {
            "Service" => drop(serde_json::from_value::<Service>(object.clone()).unwrap()),
            "PodDisruptionBudget" => {
                drop(serde_json::from_value::<PodDisruptionBudget>(object.clone()).unwrap());
            }
            _ => {}
        }
        writeln!(text, "{}", pretty(object)).unwrap();
    }
    insta::assert_snapshot!(text);
}

#[test]
fn the_jobs_of_a_backup() {
    let spec = secure_spec();
    let store = BackupStore {
        pvc: Some(PvcStore {
            claim_name: "backups".into(),
            prefix: String::new(),
        }),
        ..BackupStore::default()
    };
    let owner = JobOwner {
        name: "first",
        uid: "2222",
        namespace: "data",
    };
    let text = with(&spec, |cluster| {
        let job = backup_job(
            cluster,
            &owner,
            &store,
            "data/prod/1/first.db",
            "prod-abcde",
        );
        let check = verify_job(
            &owner,
            &store,
            "data/prod/1/first.db",
            "registry/operator:1",
        );
        serde_json::from_value::<Job>(job.clone()).unwrap();
        serde_json::from_value::<Job>(check.clone()).unwrap();
        format!("{}\n{}", pretty(&job), pretty(&check))
    });
    insta::assert_snapshot!(text);
}

#[test]
fn nobody_is_led_to_a_cluster_before_it_is_one() {
    let spec = spec(json!({}));
    let names = |is_formed| {
        with(&spec, |cluster| {
            shared_objects(cluster, 0, is_formed, Capabilities::default())
                .iter()
                .map(|object| {
                    format!(
                        "{}/{}",
                        object["kind"].as_str().unwrap(),
                        object["metadata"]["name"].as_str().unwrap()
                    )
                })
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(
        names(false),
        [
            "ServiceAccount/prod",
            "Service/prod-peer",
            "PodDisruptionBudget/prod"
        ]
    );
    assert_eq!(names(true).len(), 5);
}

#[test]
fn every_pod_is_restricted() {
    let spec = secure_spec();
    let set = with(&spec, |cluster| {
        stateful_set(cluster, "m", "running", 1, None).unwrap()
    });
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {}, "spec": set["spec"]["template"]["spec"]}))
            .unwrap();
    let pod = pod.spec.unwrap();
    assert_eq!(pod.automount_service_account_token, Some(false));
    let security = pod.security_context.unwrap();
    assert_eq!(security.run_as_non_root, Some(true));
    assert_eq!(security.seccomp_profile.unwrap().type_, "RuntimeDefault");
    for container in pod.containers {
        let security = container.security_context.unwrap();
        assert_eq!(security.read_only_root_filesystem, Some(true));
        assert_eq!(security.allow_privilege_escalation, Some(false));
        assert_eq!(security.capabilities.unwrap().drop.unwrap(), ["ALL"]);
    }
}

#[test]
fn the_hash_changes_with_what_restarts_a_member_and_with_nothing_else() {
    let base = spec(json!({}));
    let hash = |spec: &ClusterSpec| with(spec, |cluster| template_hash(cluster).unwrap());
    let mut other = base.clone();
    other.replicas = 5;
    other.paused = true;
    other.progress_deadline = DurationText::from("1m");
    assert_eq!(hash(&base), hash(&other));
    for change in [
        json!({"config": {"logLevel": "debug"}}),
        json!({"config": {"heartbeatInterval": "200ms"}}),
        json!({"version": "1.2.9"}),
        json!({"resources": {"limits": {"memory": "1Gi"}}}),
        json!({"podOverlay": {"spec": {"priority": 1}}}),
    ] {
        assert_ne!(hash(&base), hash(&spec(change.clone())), "{change}");
    }
}

#[test]
fn an_overlay_that_fits_no_pod_is_refused_in_words() {
    let spec = spec(json!({"podOverlay": {"spec": {"containers": "many"}}}));
    let error = with(&spec, |cluster| template_hash(cluster).unwrap_err());
    assert!(error.contains("podOverlay"), "{error}");
}

#[test]
fn a_joining_member_is_told_what_is_read_back() {
    let members = vec![
        ("a".to_owned(), "http://a:2380".to_owned()),
        ("b".to_owned(), "http://b:2380".to_owned()),
    ];
    let spec = spec(json!({}));
    let start = MemberStart::Join {
        token: "t".into(),
        members: members.clone(),
    };
    let file = with(&spec, |cluster| {
        metastore_operator_resources::config_file(cluster, "b", &start)
    });
    assert_eq!(join_list(&file), members);
}
