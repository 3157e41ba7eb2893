//! `/health`, `/livez` and `/readyz`, as etcd's `etcdhttp` answers them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use http::{HeaderValue, Method, Request, StatusCode, header};
use metastore_proto::etcdserverpb::{AlarmType, RangeRequest};

use super::answer::{self, Answer, PLAIN_TEXT, method_not_allowed, text};
use crate::error::RequestError;
use crate::node::Node;
use crate::observe::metrics::METRICS;

/// One thing that `/livez` or `/readyz` looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

/// Whether the process should be restarted.
const LIVE: &[Check] = &[Check::SerializableRead];
/// Whether clients should be sent here.
const READY: &[Check] = &[
    Check::DataCorruption,
    Check::SerializableRead,
    Check::LinearizableRead,
    Check::NonLearner,
];

impl Check {
    const fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    async fn run(self, node: &Arc<Node>) -> Result<(), String> {
        match self {
            Self::DataCorruption => {
                if alarms(node).contains(&AlarmType::Corrupt) {
                    return Err("alarm activated: CORRUPT".into());
                }
                Ok(())
            }
            Self::SerializableRead => read(node, true).await.map_err(|error| error.to_string()),
            Self::LinearizableRead => read(node, false).await.map_err(|error| error.to_string()),
            Self::NonLearner if node.is_learner() => Err("not supported for learner".into()),
            Self::NonLearner => Ok(()),
        }
    }
}

/// The alarms of the cluster, whoever raised them.
fn alarms(node: &Arc<Node>) -> Vec<AlarmType> {
    let raised = node.application.alarms.list(0);
    raised.into_iter().map(|alarm| alarm.alarm()).collect()
}

/// Reads something, from this member's own state or from the cluster's.
async fn read(node: &Arc<Node>, serializable: bool) -> Result<(), RequestError> {
    if !serializable {
        node.linearize().await?;
    }
    let request = RangeRequest {
        limit: 1,
        keys_only: true,
        serializable: true,
        ..Default::default()
    };
    node.reader().range(&request)?;
    Ok(())
}

/// The values of a query parameter.
fn parameters<B>(request: &Request<B>, name: &str) -> BTreeSet<String> {
    let query = request.uri().query().unwrap_or_default();
    url::form_urlencoded::parse(query.as_bytes())
        .filter(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
        .collect()
}

/// Answers a request about health; nothing for another path.
pub async fn answer<B>(node: &Arc<Node>, request: &Request<B>) -> Option<Answer> {
    let path = request.uri().path();
    let checks = match path {
        "/health" => &[][..],
        "/livez" => LIVE,
        "/readyz" => READY,
        _ => one_check(path)?,
    };
    if request.method() != Method::GET {
        let code = StatusCode::METHOD_NOT_ALLOWED.as_u16();
        match path {
            "/health" => tracing::warn!("status-code" = code, "/health error"),
            path => tracing::warn!(path, "status-code" = code, "Health request error"),
        }
        return Some(method_not_allowed("GET"));
    }
    if path == "/health" {
        return Some(health(node, request).await);
    }
    let mut excluded = BTreeSet::new();
    if checks.len() > 1 || path == "/livez" {
        excluded = parameters(request, "exclude");
    }
    warn_of_strangers(checks, &excluded);
    Some(run_checks(node, request, checks, &excluded).await)
}

/// Says which checks cannot be excluded because there are none of these names.
fn warn_of_strangers(checks: &[Check], excluded: &BTreeSet<String>) {
    let strangers: Vec<_> = excluded
        .iter()
        .filter(|name| !name.is_empty() && checks.iter().all(|check| check.name() != **name))
        .map(|name| format!("{name:?}"))
        .collect();
    if !strangers.is_empty() {
        let strangers = strangers.join(",");
        tracing::warn!(
            "missing-health-checks" = strangers,
            "some health checks cannot be excluded"
        );
    }
}

/// `/livez/NAME` or `/readyz/NAME`.
fn one_check(path: &str) -> Option<&'static [Check]> {
    let (all, name) = match path.strip_prefix("/livez/") {
        Some(name) => (LIVE, name),
        None => (READY, path.strip_prefix("/readyz/")?),
    };
    let position = all.iter().position(|check| check.name() == name)?;
    Some(&all[position..=position])
}

/// Counts one check of `/livez` or `/readyz`, as etcd's `recordMetrics`.
fn count_check(kind: &str, name: &str, success: bool) {
    METRICS
        .health_check
        .with_label_values(&[kind, name])
        .set(i64::from(success));
    let status = if success { "success" } else { "error" };
    METRICS
        .health_checks
        .with_label_values(&[kind, name, status])
        .inc();
}

async fn run_checks<B>(
    node: &Arc<Node>,
    request: &Request<B>,
    checks: &[Check],
    excluded: &BTreeSet<String>,
) -> Answer {
    let kind = if request.uri().path().starts_with("/livez") {
        "livez"
    } else {
        "readyz"
    };
    let mut report = String::new();
    let mut failed = false;
    for check in checks {
        let name = check.name();
        if excluded.contains(name) {
            continue;
        }
        let result = check.run(node).await;
        count_check(kind, name, result.is_ok());
        // Writing to a string cannot fail.
        let _ = match result {
            Ok(()) => writeln!(report, "[+]{name} ok"),
            Err(reason) => {
                failed = true;
                writeln!(report, "[-]{name} failed: {reason}")
            }
        };
    }
    let path = request.uri().path();
    if failed {
        let code = StatusCode::SERVICE_UNAVAILABLE.as_u16();
        // A member that waits for a leader is nothing that a log should call an error.
        tracing::warn!(
            path,
            reason = report,
            "status-code" = code,
            "Health check error"
        );
        return answer::error(StatusCode::SERVICE_UNAVAILABLE, &report);
    }
    if parameters(request, "verbose").is_empty() {
        report.clear();
    }
    let mut response = text(StatusCode::OK, PLAIN_TEXT, report + "ok\n");
    response.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

async fn health<B>(node: &Arc<Node>, request: &Request<B>) -> Answer {
    let excluded = parameters(request, "exclude");
    // Of several values the first one counts.
    let query = request.uri().query().unwrap_or_default();
    let serializable = url::form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == "serializable")
        .is_some_and(|(_, value)| value == "true");
    let alarm = alarms(node)
        .into_iter()
        .find(|alarm| !excluded.contains(alarm.as_str_name()));
    let reason = if let Some(alarm) = alarm {
        let alarm = alarm.as_str_name();
        tracing::warn!(alarm, "serving /health false due to an alarm");
        Some(format!("ALARM {alarm}"))
    } else if !serializable && node.leader().is_none() {
        tracing::warn!("serving /health false; no leader");
        Some("RAFT NO LEADER".to_owned())
    } else {
        let read = read(node, serializable).await;
        read.err().map(|error| {
            tracing::warn!(%error, "serving /health false; Range fails");
            format!("RANGE ERROR:{error}")
        })
    };
    match &reason {
        None => METRICS.health_successes.inc(),
        Some(_) => METRICS.health_failures.inc(),
    }
    match reason {
        None => text(
            StatusCode::OK,
            PLAIN_TEXT,
            r#"{"health":"true","reason":""}"#,
        ),
        Some(reason) => {
            let reason = serde_json::Value::String(reason);
            let body = format!(r#"{{"health":"false","reason":{reason}}}"#);
            let code = StatusCode::SERVICE_UNAVAILABLE.as_u16();
            tracing::warn!(output = body, "status-code" = code, "/health error");
            answer::error(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}
