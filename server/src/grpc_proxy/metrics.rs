//! What `/proxy/metrics` shows: etcd's `etcd_grpc_proxy_…`, the calls of clients, and the process.

use prometheus::{IntCounter, IntGauge, Registry};

/// The handles.
#[derive(Clone)]
pub struct ProxyMetrics {
    registry: Registry,
    pub watchers_coalescing: IntGauge,
    pub events_coalescing: IntCounter,
    pub cache_keys: IntGauge,
    pub cache_hits: IntGauge,
    pub cache_misses: IntGauge,
}

impl ProxyMetrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(format!("etcd_grpc_proxy_{name}"), help);
            let gauge = gauge.expect("the name is valid");
            let registered = registry.register(Box::new(gauge.clone()));
            registered.expect("a name has one handle");
            gauge
        };
        let events_coalescing = IntCounter::new(
            "etcd_grpc_proxy_events_coalescing_total",
            "Total number of events coalescing",
        )
        .expect("the name is valid");
        registry
            .register(Box::new(events_coalescing.clone()))
            .expect("a name has one handle");
        Self {
            watchers_coalescing: gauge(
                "watchers_coalescing_total",
                "Total number of current watchers coalescing",
            ),
            events_coalescing,
            cache_keys: gauge("cache_keys_total", "Total number of keys/ranges cached"),
            cache_hits: gauge("cache_hits_total", "Total number of cache hits"),
            cache_misses: gauge("cache_misses_total", "Total number of cache misses"),
            registry,
        }
    }

    /// Everything, in the text format.
    pub fn render(&self) -> Vec<u8> {
        crate::observe::metrics::render_without_member(&self.registry)
    }
}
