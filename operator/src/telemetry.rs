//! Health and metrics over HTTP.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

/// Without a pass that succeeded for so long, while passes are tried, the program is taken for stuck.
const STUCK_AFTER: Duration = Duration::from_secs(600);

/// What the program counts.
pub(crate) struct Telemetry {
    registry: Registry,
    passes: HistogramVec,
    actions: IntCounterVec,
    leads: IntGauge,
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
        registry.register(Box::new(passes.clone()))?;
        registry.register(Box::new(actions.clone()))?;
        registry.register(Box::new(leads.clone()))?;
        Ok(Self {
            registry,
            passes,
            actions,
            leads,
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
