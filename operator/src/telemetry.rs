//! Health and metrics over HTTP.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use metastore_operator_api::conditions::{CLUSTER_CONDITIONS, reasons};
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Without a pass that succeeded for so long, while passes are tried, the program is taken for stuck.
const STUCK_AFTER: Duration = Duration::from_secs(600);

/// What the program counts.
pub(crate) struct Telemetry {
    registry: Registry,
    passes: HistogramVec,
    actions: IntCounterVec,
    leads: IntGauge,
    conditions: IntGaugeVec,
    started: Instant,
    /// Milliseconds after `started`.
    last_pass_ms: AtomicU64,
    last_success_ms: AtomicU64,
}

impl Telemetry {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let registry = Registry::new();
        let passes = HistogramVec::new(
            HistogramOpts::new(
                "metastore_operator_reconcile_duration_seconds",
                "How long passes over clusters took.",
            ),
            &["outcome"],
        )?;
        let actions = IntCounterVec::new(
            Opts::new(
                "metastore_operator_actions_total",
                "Actions by kind and outcome.",
            ),
            &["action", "outcome"],
        )?;
        let leads = IntGauge::new("metastore_operator_leader", "1 while this operator leads.")?;
        let conditions = IntGaugeVec::new(
            Opts::new(
                "metastore_operator_cluster_condition",
                "Conditions of clusters: 1 true, 0 false, -1 unknown.",
            ),
            &["namespace", "cluster", "condition"],
        )?;
        registry.register(Box::new(conditions.clone()))?;
        registry.register(Box::new(passes.clone()))?;
        registry.register(Box::new(actions.clone()))?;
        registry.register(Box::new(leads.clone()))?;
        Ok(Self {
            registry,
            passes,
            actions,
            leads,
            conditions,
            started: Instant::now(),
            last_pass_ms: AtomicU64::new(0),
            last_success_ms: AtomicU64::new(0),
        })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn pass_ended(&self, duration: Duration, succeeded: bool) {
        self.passes
            .with_label_values(&[outcome(succeeded)])
            .observe(duration.as_secs_f64());
        self.last_pass_ms.store(self.now_ms(), Ordering::Relaxed);
        if succeeded {
            self.last_success_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    pub(crate) fn action_taken(&self, action: &str, succeeded: bool) {
        self.actions
            .with_label_values(&[action, outcome(succeeded)])
            .inc();
    }

    /// What is known of a cluster.
    pub(crate) fn cluster_seen(&self, namespace: &str, cluster: &str, conditions: &[Condition]) {
        for condition in conditions {
            let value = match condition.status.as_str() {
                "True" => 1,
                "False" => 0,
                _ => -1,
            };
            let labels = [namespace, cluster, condition.type_.as_str()];
            if condition.reason == reasons::HIBERNATED {
                // It sleeps on purpose: that nobody serves must not wake anybody.
                let _ = self.conditions.remove_label_values(&labels);
                continue;
            }
            self.conditions.with_label_values(&labels).set(value);
        }
    }

    /// The cluster is gone, or the matter of another operator, which then says how it is.
    pub(crate) fn cluster_forgotten(&self, namespace: &str, cluster: &str) {
        for condition in CLUSTER_CONDITIONS {
            // An error says that it was not there.
            let _ = self
                .conditions
                .remove_label_values(&[namespace, cluster, condition]);
        }
    }

    pub(crate) fn set_leads(&self, leads: bool) {
        self.leads.set(i64::from(leads));
    }

    /// Does the program get anywhere?
    pub(crate) fn is_alive(&self) -> bool {
        let tried = self.last_pass_ms.load(Ordering::Relaxed);
        let succeeded = self.last_success_ms.load(Ordering::Relaxed);
        tried.saturating_sub(succeeded) < u64::try_from(STUCK_AFTER.as_millis()).unwrap_or(u64::MAX)
    }

    /// The metrics as Prometheus reads them.
    pub(crate) fn text(&self) -> String {
        let mut buffer = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut buffer) {
            Ok(()) => String::from_utf8_lossy(&buffer).into_owned(),
            Err(error) => format!("# {error}\n"),
        }
    }
}

fn outcome(succeeded: bool) -> &'static str {
    if succeeded { "success" } else { "failure" }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]
mod tests {
    use super::*;

    fn condition(kind: &str, status: &str, reason: &str) -> Condition {
        metastore_operator_core::condition(
            kind,
            match status {
                "True" => Some(true),
                "False" => Some(false),
                _ => None,
            },
            reason,
            String::new(),
            1,
            &[],
            jiff::Timestamp::UNIX_EPOCH,
        )
    }

    #[test]
    fn conditions_are_numbers_until_the_cluster_is_gone_or_sleeps() {
        let telemetry = Telemetry::new().unwrap();
        let line = |kind: &str, value: &str| {
            format!(
                "metastore_operator_cluster_condition{{cluster=\"c\",condition=\"{kind}\",namespace=\"n\"}} {value}\n"
            )
        };
        let seen = [
            condition("Available", "True", "AsExpected"),
            condition("Degraded", "False", "AsExpected"),
            condition("BackupHealthy", "Unknown", "NoSchedule"),
        ];
        telemetry.cluster_seen("n", "c", &seen);
        let text = telemetry.text();
        for wanted in [
            line("Available", "1"),
            line("Degraded", "0"),
            line("BackupHealthy", "-1"),
        ] {
            assert!(text.contains(&wanted), "{wanted} is not in {text}");
        }
        telemetry.cluster_seen("n", "c", &[condition("Available", "False", "Hibernated")]);
        assert!(!telemetry.text().contains("condition=\"Available\""));
        telemetry.cluster_forgotten("n", "c");
        assert!(!telemetry.text().contains("cluster_condition{"));
    }
}
