//! What `/metrics` shows.
//!
//! ```text
//! catalog (names, labels, help) ◄── handles ◄── code that counts
//!          ▲                           │
//!          └── families ◄── collect ◄──┴── render ◄── GET /metrics
//!                              ▲
//!                 counters of the crates, the node, /proc
//! ```
//!
//! What happens on every request is counted at a fixed address or through a handle that was made
//! once. Everything that some part of the server knows anyway is read when somebody looks.

pub mod catalog;
pub(crate) mod client_versions;
mod collect;
mod families;
pub mod grpc;
mod kinds;
pub(crate) mod process;
pub(crate) mod runtimes;

use std::sync::LazyLock;
use std::time::Duration;

use metastore_raft_log::Observer;
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use self::catalog::Kind;
use self::families::Families;
pub use self::kinds::{
    ALARM, AUTH_ROLE_GET, AUTH_ROLE_LIST, AUTH_STATUS, AUTH_USER_GET, AUTH_USER_LIST, Durations,
    RANGE, READ_ONLY_TXN, request_kind,
};
use crate::node::Node;

/// The content type of the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// The handles. A member is a process, so there is one set.
pub static METRICS: LazyLock<Handles> = LazyLock::new(Handles::new);

/// One handle for each metric that the server counts by itself. Names follow the metrics'.
#[allow(missing_docs)]
pub struct Handles {
    registry: Registry,
    pub request_duration: Durations,
    pub apply_duration: Durations,
    pub range_duration: [Histogram; 2],
    pub linearizable_read_wait: Histogram,
    pub apply_batch_entries: Histogram,
    pub proposals_pending: IntGauge,
    pub proposals_failed: IntCounter,
    pub slow_applies: IntCounter,
    pub snapshot_apply_in_progress: IntGauge,
    pub learner_promote_successes: IntCounter,
    pub learner_promote_failures: IntCounterVec,
    pub health_successes: IntCounter,
    pub health_failures: IntCounter,
    pub health_check: IntGaugeVec,
    pub health_checks: IntCounterVec,
    pub scrapes_in_flight: IntGauge,
    pub scrapes: IntCounterVec,
    pub stream_failures: IntCounterVec,
    pub disconnected_peers: IntCounterVec,
    pub peer_round_trip: HistogramVec,
    pub log_sync: Histogram,
    pub log_write: Histogram,
    pub log_write_bytes: IntGauge,
    pub log_sync_records: Histogram,
    pub log_segments_started: IntCounter,
    pub engine_commit: Histogram,
    pub engine_defragmentation: Histogram,
    pub engine_snapshot: Histogram,
    pub defragmentation_in_progress: IntGauge,
    pub snapshot_flush: Histogram,
    pub snapshot_save: Histogram,
    pub received_snapshot_install: Histogram,
    pub hash: Histogram,
    pub hash_revision: Histogram,
    pub compaction_pause_milliseconds: Histogram,
    pub compaction_total_milliseconds: Histogram,
    pub compaction_last: IntGauge,
    pub watch_events: IntCounter,
    pub watch_frame: Histogram,
    pub watch_frame_per_event: Histogram,
    pub watch_control_frame: Histogram,
    pub watch_progress: Histogram,
    pub leases_granted: IntCounter,
    pub leases_revoked: IntCounter,
    pub leases_renewed: IntCounter,
    pub leases_expired: IntCounter,
    pub lease_ttl: Histogram,
    pub client_limit_refusals: IntCounterVec,
    handling_seconds: HistogramVec,
}

impl Handles {
    fn new() -> Self {
        let registry = Registry::new();
        let make = Maker(&registry);
        let range_duration = make.histograms("etcd_server_range_duration_seconds");
        Self {
            request_duration: Durations::new(
                make.histograms("etcd_server_request_duration_seconds"),
                |vector, kind, success| vector.with_label_values(&[kind, success]),
            ),
            apply_duration: Durations::new(
                make.histograms("etcd_server_apply_duration_seconds"),
                |vector, kind, success| vector.with_label_values(&["v3", kind, success]),
            ),
            range_duration: ["false", "true"]
                .map(|success| range_duration.with_label_values(&[success])),
            linearizable_read_wait: make.histogram("metastore_linearizable_read_wait_seconds"),
            apply_batch_entries: make.histogram("metastore_apply_batch_entries"),
            proposals_pending: make.gauge("etcd_server_proposals_pending"),
            proposals_failed: make.counter("etcd_server_proposals_failed_total"),
            slow_applies: make.counter("etcd_server_slow_apply_total"),
            snapshot_apply_in_progress: make.gauge("etcd_server_snapshot_apply_in_progress_total"),
            learner_promote_successes: make.counter("etcd_server_learner_promote_successes"),
            learner_promote_failures: make.counters("etcd_server_learner_promote_failures"),
            health_successes: make.counter("etcd_server_health_success"),
            health_failures: make.counter("etcd_server_health_failures"),
            health_check: make.gauges("etcd_server_healthcheck"),
            health_checks: make.counters("etcd_server_healthchecks_total"),
            scrapes_in_flight: make.gauge("promhttp_metric_handler_requests_in_flight"),
            scrapes: scrapes_by_code(make.counters("promhttp_metric_handler_requests_total")),
            stream_failures: make.counters("etcd_network_server_stream_failures_total"),
            disconnected_peers: make.counters("etcd_network_disconnected_peers_total"),
            peer_round_trip: make.histograms("etcd_network_peer_round_trip_time_seconds"),
            log_sync: make.histogram("etcd_disk_wal_fsync_duration_seconds"),
            log_write: make.histogram("etcd_disk_wal_write_duration_seconds"),
            log_write_bytes: make.gauge("etcd_disk_wal_write_bytes_total"),
            log_sync_records: make.histogram("metastore_log_sync_records"),
            log_segments_started: make.counter("metastore_log_segments_started_total"),
            engine_commit: make.histogram("etcd_disk_backend_commit_duration_seconds"),
            engine_defragmentation: make.histogram("etcd_disk_backend_defrag_duration_seconds"),
            engine_snapshot: make.histogram("etcd_disk_backend_snapshot_duration_seconds"),
            defragmentation_in_progress: make.gauge("etcd_disk_defrag_inflight"),
            snapshot_flush: make.histogram("etcd_snap_fsync_duration_seconds"),
            snapshot_save: make.histogram("etcd_debugging_snap_save_total_duration_seconds"),
            received_snapshot_install: make.histogram("etcd_snap_db_save_total_duration_seconds"),
            hash: make.histogram("etcd_mvcc_hash_duration_seconds"),
            hash_revision: make.histogram("etcd_mvcc_hash_rev_duration_seconds"),
            compaction_pause_milliseconds: make
                .histogram("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds"),
            compaction_total_milliseconds: make
                .histogram("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds"),
            compaction_last: make.gauge("etcd_debugging_mvcc_db_compaction_last"),
            watch_events: make.counter("etcd_debugging_mvcc_events_total"),
            watch_frame: make
                .histogram("etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds"),
            watch_frame_per_event: make.histogram(
                "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds",
            ),
            watch_control_frame: make
                .histogram("etcd_debugging_server_watch_send_loop_control_stream_duration_seconds"),
            watch_progress: make
                .histogram("etcd_debugging_server_watch_send_loop_progress_duration_seconds"),
            leases_granted: make.counter("etcd_debugging_lease_granted_total"),
            leases_revoked: make.counter("etcd_debugging_lease_revoked_total"),
            leases_renewed: make.counter("etcd_debugging_lease_renewed_total"),
            leases_expired: make.counter("etcd_debugging_server_lease_expired_total"),
            lease_ttl: make.histogram("etcd_debugging_lease_ttl_total"),
            client_limit_refusals: make.counters("metastore_client_limit_refusals_total"),
            handling_seconds: make.histograms("grpc_server_handling_seconds"),
            registry,
        }
    }

    /// Measures the durations of gRPC calls from now on: `--metrics=extensive`.
    pub fn measure_calls(&self) {
        grpc::measure_durations(|labels| self.handling_seconds.with_label_values(labels));
    }
}

/// Makes registered handles by the catalog.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn register<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<C>,
    ) -> C {
        let made = made.expect("the catalog holds valid names");
        self.0
            .register(Box::new(made.clone()))
            .expect("a name has one handle");
        made
    }

    fn options(name: &str) -> Opts {
        let metric = catalog::find(name);
        Opts::new(metric.name, metric.help)
    }

    fn histogram_options(name: &str) -> HistogramOpts {
        let Kind::Histogram(buckets) = catalog::find(name).kind else {
            panic!("{name} is no histogram");
        };
        HistogramOpts::from(Self::options(name)).buckets(buckets.bounds())
    }

    fn counter(&self, name: &str) -> IntCounter {
        self.register(IntCounter::with_opts(Self::options(name)))
    }

    fn counters(&self, name: &str) -> IntCounterVec {
        let labels = catalog::find(name).labels;
        self.register(IntCounterVec::new(Self::options(name), labels))
    }

    fn gauge(&self, name: &str) -> IntGauge {
        self.register(IntGauge::with_opts(Self::options(name)))
    }

    fn gauges(&self, name: &str) -> IntGaugeVec {
        let labels = catalog::find(name).labels;
        self.register(IntGaugeVec::new(Self::options(name), labels))
    }

    fn histogram(&self, name: &str) -> Histogram {
        self.register(Histogram::with_opts(Self::histogram_options(name)))
    }

    fn histograms(&self, name: &str) -> HistogramVec {
        let labels = catalog::find(name).labels;
        self.register(HistogramVec::new(Self::histogram_options(name), labels))
    }
}

/// The counter with the codes that can come, which Go's handler shows from the start.
fn scrapes_by_code(scrapes: IntCounterVec) -> IntCounterVec {
    for code in ["200", "500", "503"] {
        scrapes.with_label_values(&[code]);
    }
    scrapes
}

/// Measurements of the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogObserver;

/// A sync of the log that takes longer is worth a warning; etcd's `warnSyncDuration`.
const SYNC_EXPECTED: Duration = Duration::from_secs(1);

impl Observer for LogObserver {
    fn written(&self, bytes: u64, records: u64, duration: Duration) {
        METRICS.log_write.observe(duration.as_secs_f64());
        METRICS
            .log_write_bytes
            .add(i64::try_from(bytes).unwrap_or(i64::MAX));
        METRICS.log_sync_records.observe(records as f64);
    }

    fn synced(&self, duration: Duration) {
        METRICS.log_sync.observe(duration.as_secs_f64());
        if duration > SYNC_EXPECTED {
            // Etcd's words: guides about slow disks tell people to look for them.
            tracing::warn!(
                took = ?duration,
                "expected-duration" = ?SYNC_EXPECTED,
                "slow fdatasync"
            );
        }
    }

    fn segment_started(&self, _sequence: u64) {
        METRICS.log_segments_started.inc();
    }
}

/// Everything, in the text format.
///
/// # Errors
/// The engine does not say how large it is: the member is about to end.
pub fn render(node: &Node) -> Result<Vec<u8>, metastore_store::EngineError> {
    let mut families = Families::default();
    collect::collect(node, &mut families)?;
    grpc::collect(&mut families);
    client_versions::collect(&mut families);
    process::collect(&mut families);
    runtimes::collect(&mut families);
    Ok(encode(&families.merge(METRICS.registry.gather())))
}

/// The calls of clients, the process, and what a program that is no member counts by itself.
pub fn render_without_member(registry: &Registry) -> Vec<u8> {
    let mut families = Families::default();
    grpc::collect(&mut families);
    process::collect(&mut families);
    encode(&families.merge(registry.gather()))
}

fn encode(families: &[MetricFamily]) -> Vec<u8> {
    let mut text = Vec::with_capacity(256 * 1024);
    TextEncoder::new()
        .encode(families, &mut text)
        .expect("writing to memory never fails, and no family is empty");
    text
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_sync_of_the_log_is_warned_of() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            LogObserver.synced(SYNC_EXPECTED);
            assert!(lines.0.lock().is_empty(), "one second is expected");
            LogObserver.synced(Duration::from_millis(1500));
        });
        let line = String::from_utf8(lines.0.lock().clone()).expect("text");
        for part in ["WARN", "slow fdatasync", "\"took\":\"1.5s\"", "\"1s\""] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    #[test]
    fn every_handle_has_a_row_in_the_catalog() {
        // Making them looks every name up.
        METRICS.slow_applies.inc();
        let names: Vec<_> = catalog::GROUPS
            .iter()
            .flat_map(|(_, metrics)| *metrics)
            .map(|metric| metric.name)
            .collect();
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len(), "a name stands twice");
    }
}
