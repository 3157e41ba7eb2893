//! The charts and the rules of the definitions, before anything runs.

use std::fs;
use std::process::Command;

use crate::control_plane::root;
use crate::stage::{NAMESPACE, Stage};

/// All charts: helm's own checks, every switch, unknown values, and whether the API server takes the result.
pub fn charts_are_accepted(stage: &Stage) {
    eprintln!("charts");
    let helm = |arguments: &[&str], chart: &str| {
        let output = Command::new(stage.plane.programs.join("helm"))
            .args(arguments)
            .arg(root().join("charts").join(chart))
            .output()
            .expect("helm runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text, error)
    };
    let charts: [(&str, &[&str]); 4] = [
        ("metastore-operator-crds", &["keep=false"]),
        (
            "metastore-operator",
            &[
                "networkPolicy.enabled=true",
                "watch.namespaces={default,kube-system}",
                "monitoring.dashboard=true",
                "rbac.aggregateClusterRoles=false",
                "priorityClassName=system-cluster-critical",
                "image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
                "global.imageRegistry=registry.example.com",
                "replicas=2",
            ],
        ),
        (
            "metastore-cluster",
            &[
                "name=other",
                "spec.replicas=5",
                "backups.nightly.schedule=0 3 * * *,backups.nightly.store.pvc.claimName=backups",
            ],
        ),
        (
            "metastore",
            &[
                "replicaCount=5",
                "persistence.enabled=false",
                "networkPolicy.enabled=true",
                "pdb.create=false",
                "service.type=NodePort",
                "quotaBackendBytes=4294967296",
                "autoCompactionRetention=1h",
                "auth.client.secureTransport=true,auth.client.existingSecret=a,auth.client.enableAuthentication=true",
                "auth.peer.secureTransport=true,auth.peer.existingSecret=b",
            ],
        ),
    ];
    for (chart, switches) in charts {
        let (ok, text, error) = helm(&["lint", "--strict"], chart);
        assert!(ok, "{chart}: {text}{error}");
        for switch in switches.iter().chain(&["global.any=thing"]) {
            let (ok, text, error) = helm(
                &[
                    "template",
                    "try",
                    "--namespace",
                    NAMESPACE,
                    "--skip-tests",
                    "--set",
                    switch,
                ],
                chart,
            );
            assert!(ok, "{chart} with {switch}: {error}");
            let file = stage.plane.path("chart.yaml");
            fs::write(&file, &text).unwrap();
            let file = file.display().to_string();
            let (ok, text) = stage.plane.kubectl(&[
                "apply",
                "--server-side",
                "--force-conflicts",
                "--dry-run=server",
                "-f",
                &file,
            ]);
            assert!(ok, "{chart} with {switch}: {text}");
        }
        let (ok, _, error) = helm(&["template", "try", "--set", "nonsense=1"], chart);
        assert!(
            !ok && error.contains("nonsense"),
            "{chart} takes unknown values: {error}"
        );
    }
    // With the Prometheus operator's kinds, which this API server does not know.
    for (chart, switch) in [
        (
            "metastore-operator",
            "monitoring.podMonitor=true,monitoring.prometheusRule=true",
        ),
        (
            "metastore",
            "metrics.podMonitor.enabled=true,metrics.prometheusRule.enabled=true",
        ),
    ] {
        let (ok, text, error) = helm(&["template", "try", "--set", switch], chart);
        assert!(
            ok && text.contains("PrometheusRule") && text.contains("PodMonitor"),
            "{error}"
        );
    }
}

/// Each rule refuses a bad object with its own words.
pub fn rules_of_the_definitions(stage: &Stage) {
    eprintln!("rules");
    let cluster = |spec: &str| {
        format!(
            "apiVersion: metastore.io/v1alpha1\nkind: MetaStoreCluster\nmetadata: {{name: rules}}\nspec: {spec}\n"
        )
    };
    for (spec, words) in [
        ("{replicas: 2}", "replicas must be 1, 3, 5 or 7"),
        ("{version: latest}", "spec.version"),
        ("{bootstrap: {}}", "exactly one of new and restore"),
        (
            "{bootstrap: {restore: {}}}",
            "exactly one of backupRef and source",
        ),
        (
            "{config: {quota: 20Gi}, storage: {size: 10Gi}}",
            "must not be larger than storage.size",
        ),
        (
            "{config: {extraConfig: {data-dir: /x}}}",
            "extraConfig must not name keys",
        ),
        ("{tls: {client: {mode: Required}}}", "issuer must be set"),
        (
            "{config: {heartbeatInterval: 201ms, electionTimeout: 1s}}",
            "electionTimeout must be at least five heartbeats",
        ),
        (
            "{config: {compaction: {mode: Revision, retention: 1h}}}",
            "retention must be a number without a unit",
        ),
        (
            "{storage: {size: 10Gi, autoGrow: {maxSize: 9Gi}}}",
            "autoGrow.maxSize must not be smaller than size",
        ),
        (
            "{tls: {issuer: {operatorCA: {}, certManager: {issuerRef: {name: a}}}}}",
            "exactly one of certManager",
        ),
        ("{progressDeadline: soon}", "progressDeadline"),
        ("{storage: {size: much}}", "storage.size"),
        ("{deletion: {policy: Maybe}}", "deletion.policy"),
        ("{nonsense: 1}", "nonsense"),
    ] {
        let refusal = stage.plane.apply(&cluster(spec)).unwrap_err();
        assert!(refusal.contains(words), "{spec}: {refusal}");
    }
    // Paused, so that nothing is made of it.
    stage.apply(&cluster("{paused: true, storage: {size: 10Gi}}"));
    for (spec, words) in [
        ("{paused: true, storage: {size: 5Gi}}", "may only grow"),
        (
            "{paused: true, storage: {size: 10Gi, storageClassName: x}}",
            "storageClassName is immutable",
        ),
        (
            "{paused: true, clusterDomain: a.b}",
            "clusterDomain is immutable",
        ),
        (
            "{paused: true, bootstrap: {restore: {backupRef: {name: x}}}}",
            "spec.bootstrap",
        ),
        (
            "{paused: true, tls: {peer: {mode: Required}, issuer: {operatorCA: {}}}}",
            "peer.mode is immutable",
        ),
        (
            "{paused: true, tls: {client: {mode: Required}, issuer: {operatorCA: {}}}}",
            "only through Permissive",
        ),
    ] {
        let refusal = stage.plane.apply(&cluster(spec)).unwrap_err();
        assert!(refusal.contains(words), "{spec}: {refusal}");
    }
    stage.apply(&cluster(
        "{paused: true, storage: {size: 20Gi}, replicas: 5}",
    ));
    let task = |spec: &str| {
        format!(
            "apiVersion: metastore.io/v1alpha1\nkind: MetaStoreTask\nmetadata: {{name: t}}\nspec: {spec}\n"
        )
    };
    let refusal = stage
        .plane
        .apply(&task("{clusterRef: {name: a}}"))
        .unwrap_err();
    assert!(refusal.contains("exactly one of defrag"), "{refusal}");
    let both = task("{clusterRef: {name: a}, defrag: {}, compact: {}}");
    assert!(stage.plane.apply(&both).is_err());
    let backup = "apiVersion: metastore.io/v1alpha1\nkind: MetaStoreBackup\nmetadata: {name: b}\nspec: {clusterRef: {name: a}, store: {}}\n";
    let refusal = stage.plane.apply(backup).unwrap_err();
    assert!(refusal.contains("exactly one of s3"), "{refusal}");
    stage
        .plane
        .kubectl(&["delete", "metastorecluster", "rules"]);
}
