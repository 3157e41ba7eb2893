//! The dashboard and the alerts of `docs/monitoring/`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use metastore_server::observe::metrics::catalog::{self, Kind};
use metastore_tests::programs::promtool;
use serde_json::Value;

/// What a metric's name in an expression may begin with.
const PREFIXES: &[&str] = &["etcd_", "grpc_", "metastore_", "process_", "os_"];

fn documents() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// The names of the series that a server shows.
fn series() -> BTreeSet<String> {
    catalog::GROUPS
        .iter()
        .flat_map(|(_, metrics)| *metrics)
        .flat_map(|metric| match metric.kind {
            Kind::Counter | Kind::Gauge => vec![metric.name.to_owned()],
            Kind::Histogram(_) => ["bucket", "sum", "count"]
                .map(|part| format!("{}_{part}", metric.name))
                .to_vec(),
        })
        .collect()
}

/// The metrics that an expression names. Labels' values are left out: they may hold anything.
fn names(expression: &str) -> Vec<String> {
    let outside_of_quotes: String = expression.split('"').step_by(2).collect();
    outside_of_quotes
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix)))
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn assert_shown(place: &str, expression: &str) {
    // Labels of gRPC's metrics.
    const LABELS: &[&str] = &["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
    let series = series();
    for name in names(expression) {
        assert!(
            series.contains(&name) || LABELS.contains(&name.as_str()),
            "{place}: no server shows {name}: {expression}"
        );
    }
    let open = expression.matches(['(', '{', '[']).count();
    let closed = expression.matches([')', '}', ']']).count();
    assert_eq!(open, closed, "{place}: brackets of {expression}");
}

#[test]
fn alerts_read_metrics_that_exist_and_have_a_runbook() {
    let path = documents().join("monitoring/rules.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let rules: Value = serde_saphyr::from_str(&text).expect("valid YAML");
    let groups = rules["groups"].as_array().expect("groups");
    let mut alerts = BTreeSet::new();
    for rule in groups
        .iter()
        .flat_map(|group| group["rules"].as_array().expect("rules"))
    {
        let alert = rule["alert"].as_str().expect("a name");
        assert!(alerts.insert(alert.to_owned()), "{alert} stands twice");
        assert_shown(alert, rule["expr"].as_str().expect("an expression"));
        let text_at = |pointer: &str| {
            rule.pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_else(|| panic!("{alert} has no {pointer}"))
        };
        assert!(["warning", "critical"].contains(&text_at("/labels/severity")));
        text_at("/annotations/summary");
        text_at("/annotations/description");
        let (_, page) = text_at("/annotations/runbook_url")
            .split_once("/docs/runbooks/")
            .expect("a page of this repository");
        let page = documents().join("runbooks").join(page);
        assert!(page.is_file(), "{alert}: {} is missing", page.display());
    }
    assert!(alerts.len() > 10);
}

#[test]
fn prometheus_accepts_the_alerts_and_raises_them() {
    for command in [
        ["check", "rules", "rules.yaml"],
        ["test", "rules", "rules.test.yaml"],
    ] {
        let output = Command::new(promtool())
            .args(command)
            .current_dir(documents().join("monitoring"))
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success(), "promtool {command:?}: {said}");
    }
}

#[test]
fn the_dashboard_reads_metrics_that_exist() {
    let path = documents().join("monitoring/dashboard.json");
    let text = fs::read_to_string(&path).unwrap();
    let dashboard: Value = serde_json::from_str(&text).expect("valid JSON");
    let mut expressions = 0;
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_shown(title, target["expr"].as_str().expect("an expression"));
            expressions += 1;
        }
    }
    for variable in dashboard["templating"]["list"]
        .as_array()
        .expect("variables")
    {
        if let Some(query) = variable.pointer("/query/query").and_then(Value::as_str) {
            assert_shown("a variable", query);
        }
    }
    assert!(expressions > 30);
}
