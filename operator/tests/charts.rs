//! The charts without any Kubernetes: helm's own checks, what each value changes, and values that do not exist.
//!
//! helm comes from `tests/kubernetes/install.sh --helm`, which `make test` runs. That a real API server takes what they
//! render is the matter of `make e2e-kubernetes`, that it works of `make e2e-nodes`.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// A chart, and for each of its values a change of it, as `--set-json` takes it.
fn charts() -> Vec<(&'static str, Vec<(&'static str, String)>)> {
    let text = |value: &str| format!("\"{value}\"");
    let truth = || "true".to_owned();
    let lie = || "false".to_owned();
    let json = str::to_owned;
    let pod_fields = || {
        vec![
            ("nodeSelector", json(r#"{"disk": "fast"}"#)),
            ("tolerations", json(r#"[{"operator": "Exists"}]"#)),
            ("affinity", json(r#"{"nodeAffinity": {}}"#)),
            ("priorityClassName", text("system-cluster-critical")),
            ("podAnnotations", json(r#"{"a": "b"}"#)),
            ("podLabels", json(r#"{"a": "b"}"#)),
            ("commonLabels", json(r#"{"a": "b"}"#)),
            ("commonAnnotations", json(r#"{"a": "b"}"#)),
            ("extraArgs", json(r#"["--extra"]"#)),
            ("podSecurityContext.runAsUser", json("1000")),
            ("podSecurityContext.runAsGroup", json("1000")),
            ("podSecurityContext.runAsNonRoot", lie()),
            (
                "podSecurityContext.seccompProfile",
                json(r#"{"type": "Unconfined"}"#),
            ),
            ("containerSecurityContext.allowPrivilegeEscalation", truth()),
            ("containerSecurityContext.readOnlyRootFilesystem", lie()),
            (
                "containerSecurityContext.capabilities",
                json(r#"{"drop": []}"#),
            ),
            (
                "extraObjects",
                json(
                    r#"[{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extra"}}]"#,
                ),
            ),
            ("global.imageRegistry", text("registry.example.com")),
            ("image.registry", text("registry.example.com")),
            ("image.repository", text("other/image")),
            ("image.tag", text("1.2.3")),
            ("image.digest", text(DIGEST)),
            ("image.pullPolicy", text("Always")),
            ("image.pullSecrets", json(r#"["registry"]"#)),
            ("logLevel", text("debug")),
            ("networkPolicy.enabled", truth()),
            ("resources", json(r#"{"limits": {"memory": "1Gi"}}"#)),
        ]
    };
    let mut operator = pod_fields();
    operator.extend([
        ("serverImage.registry", text("registry.example.com")),
        ("serverImage.repository", text("other/server")),
        ("serverImage.version", text("1.2.3")),
        ("replicas", json("2")),
        ("watch.namespaces", json(r#"["one", "two"]"#)),
        ("rbac.create", lie()),
        ("rbac.aggregateClusterRoles", lie()),
        ("serviceAccount.create", lie()),
        ("serviceAccount.name", text("own")),
        ("serviceAccount.annotations", json(r#"{"a": "b"}"#)),
        ("logFormat", text("text")),
        ("extraEnv", json(r#"[{"name": "A", "value": "b"}]"#)),
        ("monitoring.podMonitor", truth()),
        ("monitoring.prometheusRule", truth()),
        ("monitoring.dashboard", truth()),
    ]);
    let mut alone = pod_fields();
    alone.extend([
        ("replicaCount", json("5")),
        ("clusterDomain", text("example.local")),
        ("initialClusterToken", text("token")),
        ("extraEnvVars", json(r#"[{"name": "A", "value": "b"}]"#)),
        ("autoCompactionMode", text("revision")),
        ("autoCompactionRetention", text("1h")),
        ("quotaBackendBytes", json("4294967296")),
        (
            "auth.client",
            json(r#"{"secureTransport": true, "enableAuthentication": true, "existingSecret": "client"}"#),
        ),
        (
            "auth.peer",
            json(r#"{"secureTransport": true, "existingSecret": "peer"}"#),
        ),
        ("persistence.enabled", lie()),
        ("persistence.storageClass", text("fast")),
        ("persistence.size", text("20Gi")),
        ("persistence.annotations", json(r#"{"a": "b"}"#)),
        ("persistentVolumeClaimRetentionPolicy.whenDeleted", text("Delete")),
        ("persistentVolumeClaimRetentionPolicy.whenScaled", text("Delete")),
        ("service.type", text("NodePort")),
        ("service.annotations", json(r#"{"a": "b"}"#)),
        ("pdb.create", lie()),
        ("metrics.podMonitor.enabled", truth()),
        ("metrics.prometheusRule.enabled", truth()),
        (
            "topologySpreadConstraints",
            json(r#"[{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]"#),
        ),
        ("podSecurityContext.fsGroup", json("1000")),
        ("podSecurityContext.fsGroupChangePolicy", text("Always")),
        ("terminationGracePeriodSeconds", json("30")),
    ]);
    vec![
        (
            "metastore-operator-crds",
            vec![("keep", lie()), ("annotations", json(r#"{"a": "b"}"#))],
        ),
        ("metastore-operator", operator),
        (
            "metastore-cluster",
            vec![
                ("name", text("other")),
                ("labels", json(r#"{"a": "b"}"#)),
                ("annotations", json(r#"{"a": "b"}"#)),
                ("spec.replicas", json("5")),
                ("spec.storage", json(r#"{"size": "20Gi"}"#)),
                (
                    "spec.tls",
                    json(r#"{"client": {"mode": "Required"}, "issuer": {"operatorCA": {}}}"#),
                ),
                (
                    "backups",
                    json(
                        r#"{"nightly": {"schedule": "0 3 * * *", "store": {"pvc": {"claimName": "backups"}}}}"#,
                    ),
                ),
                ("test.image", text("registry.example.com/metastore:1.2.3")),
            ],
        ),
        ("metastore", alone),
    ]
}

/// Values that are handed on to Kubernetes as they are, so that anything may stand in them.
const FREE: [&str; 5] = [
    "global",
    "resources",
    "spec",
    "podSecurityContext",
    "containerSecurityContext",
];

struct Helm(PathBuf);

impl Helm {
    /// helm, where it is installed.
    fn find() -> Option<Self> {
        let output = Command::new(root().join("tests/kubernetes/install.sh"))
            .arg("--check-helm")
            .output()
            .ok()?;
        if !output.status.success() {
            eprintln!(
                "not run: helm is not installed, `tests/kubernetes/install.sh --helm` does it"
            );
            return None;
        }
        let folder = String::from_utf8(output.stdout).ok()?;
        Some(Self(Path::new(folder.trim()).join("helm")))
    }

    fn run(&self, arguments: &[&str], chart: &str) -> Result<String, String> {
        let output = Command::new(&self.0)
            .args(arguments)
            .arg(root().join("charts").join(chart))
            .output()
            .expect("helm runs");
        let text = String::from_utf8(output.stdout).unwrap();
        match output.status.success() {
            true => Ok(text),
            false => Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    fn render(&self, chart: &str, change: Option<&str>) -> Result<String, String> {
        let mut arguments = vec!["template", "try", "--namespace", "there"];
        if let Some(change) = change {
            arguments.extend(["--set-json", change]);
        }
        self.run(&arguments, chart)
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Lines that only one of the texts has, or has more often.
fn difference(before: &str, after: &str) -> String {
    let count = |text: &str| {
        let mut counts = BTreeMap::<String, i32>::new();
        for line in text.lines() {
            *counts.entry(line.to_owned()).or_default() += 1;
        }
        counts
    };
    let lines = |sign: char, text: &str, other: &str| {
        let mut spare = count(other);
        let mut lines = Vec::new();
        for line in text.lines() {
            match spare.get_mut(line) {
                Some(left) if *left > 0 => *left -= 1,
                _ => lines.push(format!("{sign} {line}\n")),
            }
        }
        lines.concat()
    };
    lines('-', before, after) + &lines('+', after, before)
}

/// The paths of values: of each, or, where anything may stand in a value, of that.
fn paths(values: &Value, prefix: &str, wants_objects: bool, paths: &mut Vec<String>) {
    for (name, value) in values.as_object().into_iter().flatten() {
        let path = format!("{prefix}{name}");
        let is_object = value.as_object().is_some_and(|fields| !fields.is_empty());
        if is_object {
            self::paths(value, &format!("{path}."), wants_objects, paths);
        }
        if is_object == wants_objects {
            paths.push(path);
        }
    }
}

fn values(chart: &str) -> Value {
    let text = fs::read_to_string(root().join("charts").join(chart).join("values.yaml")).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

#[test]
fn each_value_of_a_chart_changes_what_it_says() {
    let Some(helm) = Helm::find() else {
        return;
    };
    for (chart, changes) in charts() {
        helm.run(&["lint", "--strict"], chart).unwrap();
        let before = helm.render(chart, None).unwrap();
        let mut report = String::new();
        for (name, value) in &changes {
            let after = helm.render(chart, Some(&format!("{name}={value}")));
            let after =
                after.unwrap_or_else(|error| panic!("{chart} with {name}={value}: {error}"));
            let difference = difference(&before, &after);
            assert!(
                !difference.is_empty(),
                "{chart}: {name}={value} changes nothing"
            );
            report += &format!("# {name}={value}\n{difference}\n");
        }
        let mut all = Vec::new();
        paths(&values(chart), "", false, &mut all);
        let is_tried = |path: &String| {
            let of = |name: &str| path == name || path.starts_with(&format!("{name}."));
            changes
                .iter()
                .any(|(name, _)| of(name) || name.starts_with(&format!("{path}.")))
        };
        let missing: Vec<_> = all.iter().filter(|path| !is_tried(path)).collect();
        assert!(missing.is_empty(), "{chart}: no change of {missing:?}");
        // The definitions are a generated file already.
        if chart != "metastore-operator-crds" {
            insta::assert_snapshot!(format!("{chart}"), before);
        }
        insta::assert_snapshot!(format!("{chart}, changed"), report);
    }
}

#[test]
fn a_value_that_does_not_exist_is_refused_wherever_it_stands() {
    let Some(helm) = Helm::find() else {
        return;
    };
    for (chart, _) in charts() {
        let mut objects = vec![String::new()];
        paths(&values(chart), "", true, &mut objects);
        for object in objects {
            let first = object.split('.').next().unwrap();
            if FREE.contains(&first) {
                continue;
            }
            let path = format!("{object}.nonsense");
            let path = path.trim_start_matches('.');
            let refusal = helm.render(chart, Some(&format!("{path}=1")));
            let refusal = refusal.expect_err(&format!("{chart} takes {path}"));
            assert!(refusal.contains("nonsense"), "{chart}: {refusal}");
        }
    }
}

/// An alert leads to a part of the guide that is there.
#[test]
fn alerts_name_runbooks_that_exist() {
    let Some(helm) = Helm::find() else {
        return;
    };
    let rules = helm
        .render("metastore-operator", Some("monitoring.prometheusRule=true"))
        .unwrap();
    let guide = fs::read_to_string(root().join("docs/operator-guide.md")).unwrap();
    let anchors: Vec<_> = guide
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .map(|title| {
            title
                .trim_start_matches(['#', ' '])
                .to_lowercase()
                .replace(' ', "-")
        })
        .collect();
    let runbooks: Vec<_> = rules
        .lines()
        .filter_map(|line| line.split_once("runbook: docs/operator-guide.md#"))
        .map(|(_, anchor)| anchor.to_owned())
        .collect();
    assert!(runbooks.len() > 8, "{runbooks:?}");
    for runbook in runbooks {
        assert!(anchors.contains(&runbook), "no runbook {runbook}");
    }
    let alerts = rules
        .lines()
        .filter_map(|line| line.split_once("- alert: "));
    for (_, alert) in alerts {
        assert!(
            guide.contains(&format!("`{alert}`")),
            "{alert} is not in the guide"
        );
    }
}
