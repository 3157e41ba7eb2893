//! The operators beside ours: cert-manager and the one of Prometheus. Their kinds are the real ones; what they do
//! about them is played by the test.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use metastore_operator_api::ClusterSpec;
use metastore_operator_resources::{Capabilities, Cluster, Images, shared_objects};
use metastore_tests::certificates::{Authority, request};
use metastore_tests::eventually;
use serde_json::{Value, json};

use crate::control_plane::root;
use crate::stage::{LIMIT, NAMESPACE, Stage, condition, is_running};
use crate::writers::{Access, any_store};

const NAME: &str = "managed";
/// Server, peer and client.
const CERTIFICATES: usize = 3;

/// A cluster whose certificates cert-manager makes, looked at by Prometheus.
pub async fn cert_manager_and_prometheus(stage: &Stage) {
    for definition in definitions() {
        let file = definition.display().to_string();
        stage.kubectl(&["apply", "--server-side", "-f", &file]);
    }
    everything_fits_their_schemas(stage);
    stage.apply(&cluster().to_string());
    // The operator looks for the kinds of others once a minute.
    let certificates = eventually("the operator asks for certificates", LIMIT, || async {
        let text = stage.kubectl(&["get", "certificates.cert-manager.io", "-o", "json"]);
        let list: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        match items.len() {
            CERTIFICATES => Ok(items),
            count => Err(format!("{count} certificates")),
        }
    })
    .await;
    stage
        .wait_for(NAME, "it waits for the certificates", |cluster| {
            condition(cluster, "CertificatesReady") == "False"
        })
        .await;
    play_cert_manager(stage, &certificates);
    stage
        .wait_for(
            NAME,
            "a member serves with what cert-manager signed",
            |cluster| is_running(1)(cluster) && condition(cluster, "CertificatesReady") == "True",
        )
        .await;
    let access = Access::encrypted(stage, NAME).await;
    let store = any_store(stage, &access, NAME).await;
    store.put("signed", "by cert-manager").await.unwrap();
    let monitor = stage
        .wait_for_object("podmonitor", NAME, "there is a monitor", Value::is_object)
        .await;
    assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["port"], "metrics");
    stage.delete_cluster(NAME).await;
    stage
        .wait_for_object("podmonitor", NAME, "the monitor is gone", Value::is_null)
        .await;
}

/// The definitions, made from the Go types that the projects publish.
fn definitions() -> Vec<PathBuf> {
    let script = root().join("tests/kubernetes/install-definitions.sh");
    let output = Command::new("bash").arg(script).output().unwrap();
    assert!(
        output.status.success(),
        "install-definitions.sh failed: run it by hand"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let folder = PathBuf::from(text.lines().last().unwrap());
    let files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(files.len() >= 4, "{files:?}");
    files
}

fn cluster() -> Value {
    json!({
        "apiVersion": "metastore.io/v1alpha1",
        "kind": "MetaStoreCluster",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "storage": {"size": "1Gi"},
            "tls": {
                "client": {"mode": "Required", "clientAuth": true},
                "peer": {"mode": "Required"},
                "issuer": {"certManager": {"issuerRef": {"name": "ca", "kind": "ClusterIssuer"}}},
            },
        },
    })
}

/// An API server takes objects with fields that nobody knows, and forgets them. Asked to be strict, it refuses.
fn everything_fits_their_schemas(stage: &Stage) {
    let spec: ClusterSpec = serde_json::from_value(cluster()["spec"].clone()).unwrap();
    let images = Images {
        server_repository: "a".into(),
        server_version: "0.1.0".into(),
        operator_image: "b".into(),
    };
    let builder = Cluster {
        name: NAME,
        namespace: NAMESPACE,
        uid: "0000",
        spec: &spec,
        images: &images,
    };
    let all = Capabilities {
        cert_manager: true,
        prometheus: true,
    };
    let foreign: Vec<_> = shared_objects(&builder, 1, true, all)
        .into_iter()
        .filter(|object| {
            let version = object["apiVersion"].as_str().unwrap();
            version.contains("cert-manager.io") || version.contains("coreos.com")
        })
        .collect();
    assert_eq!(foreign.len(), CERTIFICATES + 1, "{foreign:?}");
    for object in foreign {
        try_strictly(stage, &object.to_string());
        // The check itself can fail.
        let mut wrong = object;
        wrong["spec"]["nonsense"] = json!(1);
        let (ok, text) = strictly(stage, &wrong.to_string());
        assert!(!ok && text.contains("nonsense"), "{text}");
    }
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
        let output = Command::new(stage.plane.programs.join("helm"))
            .args([
                "template",
                "try",
                "--namespace",
                NAMESPACE,
                "--skip-tests",
                "--set",
                switch,
            ])
            .arg(root().join("charts").join(chart))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("kind: PrometheusRule"), "{text}");
        try_strictly(stage, &text);
    }
}

fn strictly(stage: &Stage, yaml: &str) -> (bool, String) {
    let file = stage.plane.path("strict.yaml");
    fs::write(&file, yaml).unwrap();
    let file = file.display().to_string();
    stage.plane.kubectl(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        &file,
    ])
}

fn try_strictly(stage: &Stage, yaml: &str) {
    let (ok, text) = strictly(stage, yaml);
    assert!(ok, "{text}\n{yaml}");
}

/// Signs what the Certificates ask for, into the Secrets that they name.
fn play_cert_manager(stage: &Stage, certificates: &[Value]) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("cert-manager");
    for certificate in certificates {
        let spec = &certificate["spec"];
        let name = spec["secretName"].as_str().unwrap();
        let hosts: Vec<_> = spec["dnsNames"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|host| host.as_str().unwrap())
            .collect();
        let wanted = request(spec["commonName"].as_str().unwrap()).hosts(&hosts);
        let pair = authority.issue(folder.path(), name, wanted);
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "stringData": {
                "ca.crt": authority.pem(),
                "tls.crt": fs::read_to_string(pair.cert).unwrap(),
                "tls.key": fs::read_to_string(pair.key).unwrap(),
            },
        });
        stage.apply(&secret.to_string());
    }
}
