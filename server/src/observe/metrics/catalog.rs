//! The one table of metrics: names, types, labels and help texts.
//!
//! Names, types, labels, help texts and buckets of everything that begins with `etcd_`, `grpc_`,
//! `os_` and `process_` are etcd 3.7's, because dashboards and alerts are written for them. What
//! only MetaStore has begins with `metastore_`. Handles, the exposition and the reference page all
//! come from here.

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What its `# HELP` line says.
    pub help: &'static str,
    /// What the help text does not say or says differently; empty for most.
    pub note: &'static str,
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram(Buckets),
}

/// The upper bounds of a histogram's buckets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Buckets {
    /// `count` bounds, each twice the one before.
    Exponential {
        /// The first bound.
        start: f64,
        /// How many there are.
        count: usize,
    },
    /// Go's default buckets.
    Default,
}

impl Buckets {
    /// The bounds, without the infinite one.
    #[must_use]
    pub fn bounds(self) -> Vec<f64> {
        match self {
            Self::Exponential { start, count } => {
                std::iter::successors(Some(start), |bound| Some(bound * 2.0))
                    .take(count)
                    .collect()
            }
            Self::Default => prometheus::DEFAULT_BUCKETS.to_vec(),
        }
    }
}

impl Kind {
    /// The word of the `# TYPE` line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

const fn exponential(start: f64, count: usize) -> Buckets {
    Buckets::Exponential { start, count }
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        labels: &[],
        help,
        note: "",
    }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric {
        kind: Kind::Gauge,
        ..counter(name, help)
    }
}

const fn histogram(name: &'static str, buckets: Buckets, help: &'static str) -> Metric {
    Metric {
        kind: Kind::Histogram(buckets),
        ..counter(name, help)
    }
}

impl Metric {
    const fn labels(mut self, labels: &'static [&'static str]) -> Self {
        self.labels = labels;
        self
    }

    const fn note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }
}

/// The metric of a name.
///
/// # Panics
/// When there is none: the name is written in the sources, and every one is looked up by a test.
#[must_use]
pub fn find(name: &str) -> &'static Metric {
    GROUPS
        .iter()
        .flat_map(|(_, metrics)| *metrics)
        .find(|metric| metric.name == name)
        .unwrap_or_else(|| panic!("the metric {name} has no row in the catalog"))
}

/// Process and build.
const PROCESS_AND_BUILD: &[Metric] = &[
    gauge(
        "etcd_cluster_version",
        "Which version is running. 1 for 'cluster_version' label with current cluster version",
    )
    .labels(&["cluster_version"]),
    gauge(
        "etcd_server_feature_enabled",
        "Whether or not a feature is enabled. 1 is enabled, 0 is not.",
    )
    .labels(&["name", "stage"]),
    gauge(
        "etcd_server_id",
        "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
    )
    .labels(&["server_id"]),
    gauge(
        "etcd_server_version",
        "Which version is running. 1 for 'server_version' label with current version.",
    )
    .labels(&["server_version"]),
    gauge("go_goroutines", "Number of goroutines that currently exist.").note(
        "Here: the tasks that wait or run, of connections, streams and work in the background. Without those of consensus.",
    ),
    gauge("go_threads", "Number of OS threads created.").note("Here: that exist."),
    gauge(
        "metastore_build_info",
        "Which build of MetaStore runs. Always 1.",
    )
    .labels(&["version", "git_sha"]),
    gauge("os_fd_limit", "The file descriptor limit."),
    gauge("os_fd_used", "The number of used file descriptors."),
    counter(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
    ),
    gauge(
        "process_max_fds",
        "Maximum number of open file descriptors.",
    ),
    counter(
        "process_network_receive_bytes_total",
        "Number of bytes received by the process over the network.",
    ),
    counter(
        "process_network_transmit_bytes_total",
        "Number of bytes sent by the process over the network.",
    ),
    gauge("process_open_fds", "Number of open file descriptors."),
    gauge(
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
    ),
    gauge(
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
    ),
    gauge(
        "process_virtual_memory_bytes",
        "Virtual memory size in bytes.",
    ),
    gauge(
        "process_virtual_memory_max_bytes",
        "Maximum amount of virtual memory available in bytes.",
    ),
    gauge(
        "promhttp_metric_handler_requests_in_flight",
        "Current number of scrapes being served.",
    ),
    counter(
        "promhttp_metric_handler_requests_total",
        "Total number of scrapes by HTTP status code.",
    )
    .labels(&["code"]),
];

/// Requests of clients.
const REQUESTS_OF_CLIENTS: &[Metric] = &[
    counter(
        "etcd_network_client_grpc_received_bytes_total",
        "The total number of bytes received from grpc clients.",
    ),
    counter(
        "etcd_network_client_grpc_sent_bytes_total",
        "The total number of bytes sent to grpc clients.",
    ),
    counter(
        "etcd_network_server_stream_failures_total",
        "The total number of stream failures from the local server.",
    )
    .labels(&["Type", "API"]),
    counter(
        "etcd_server_client_requests_total",
        "The total number of client requests per client version.",
    )
    .labels(&["type", "client_api_version"])
    .note("At most 64 versions are told apart; requests of others count as `other`."),
    counter(
        "metastore_client_limit_refusals_total",
        "Requests that were refused because of a limit on what one client may use.",
    )
    .labels(&["resource"])
    .note("`watches`, `streams` or `bytes`."),
    counter(
        "etcd_server_health_failures",
        "The total number of failed health checks",
    ),
    counter(
        "etcd_server_health_success",
        "The total number of successful health checks",
    ),
    gauge(
        "etcd_server_healthcheck",
        "The result of each kind of healthcheck.",
    )
    .labels(&["type", "name"]),
    counter(
        "etcd_server_healthchecks_total",
        "The total number of each kind of healthcheck.",
    )
    .labels(&["type", "name", "status"]),
    histogram(
        "etcd_server_request_duration_seconds",
        exponential(0.001, 14),
        "Response latency distribution in seconds for each type.",
    )
    .labels(&["type", "success"])
    .note("Failed: no result was obtained (too large, no leader, time-out). etcd counts time-outs as successes."),
    counter(
        "grpc_server_handled_total",
        "Total number of RPCs completed on the server, regardless of success or failure.",
    )
    .labels(&["grpc_type", "grpc_service", "grpc_method", "grpc_code"]),
    histogram(
        "grpc_server_handling_seconds",
        Buckets::Default,
        "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.",
    )
    .labels(&["grpc_type", "grpc_service", "grpc_method"]),
    counter(
        "grpc_server_msg_received_total",
        "Total number of RPC stream messages received on the server.",
    )
    .labels(&["grpc_type", "grpc_service", "grpc_method"]),
    counter(
        "grpc_server_msg_sent_total",
        "Total number of gRPC stream messages sent by the server.",
    )
    .labels(&["grpc_type", "grpc_service", "grpc_method"]),
    counter(
        "grpc_server_started_total",
        "Total number of RPCs started on the server.",
    )
    .labels(&["grpc_type", "grpc_service", "grpc_method"]),
];

/// Consensus and members.
const CONSENSUS_AND_MEMBERS: &[Metric] = &[
    gauge(
        "etcd_network_active_peers",
        "The current number of active peer connections.",
    )
    .labels(&["Local", "Remote"])
    .note("1 while the other member answers a question twice a second."),
    counter(
        "etcd_network_disconnected_peers_total",
        "The total number of disconnected peers.",
    )
    .labels(&["Local", "Remote"])
    .note("Times that the other member stopped to answer."),
    gauge(
        "etcd_network_known_peers",
        "The current number of known peers.",
    )
    .labels(&["Local", "Remote"]),
    counter(
        "etcd_network_peer_received_bytes_total",
        "The total number of bytes received from peers.",
    )
    .labels(&["From"]),
    histogram(
        "etcd_network_peer_round_trip_time_seconds",
        exponential(0.0001, 16),
        "Round-Trip-Time histogram between peers",
    )
    .labels(&["To"])
    .note("Measured twice a second with an empty call."),
    counter(
        "etcd_network_peer_sent_bytes_total",
        "The total number of bytes sent to peers.",
    )
    .labels(&["To"]),
    counter(
        "etcd_network_peer_sent_failures_total",
        "The total number of send failures from peers.",
    )
    .labels(&["To"])
    .note("Streams of appends that broke and connections that could not be made."),
    counter(
        "etcd_network_snapshot_receive_failures",
        "Total number of snapshot receive failures",
    )
    .labels(&["From"]),
    gauge(
        "etcd_network_snapshot_receive_inflights_total",
        "Total number of inflight snapshot receives",
    )
    .labels(&["From"]),
    counter(
        "etcd_network_snapshot_receive_success",
        "Total number of successful snapshot receives",
    )
    .labels(&["From"]),
    histogram(
        "etcd_network_snapshot_receive_total_duration_seconds",
        exponential(0.1, 10),
        "Total latency distributions of v3 snapshot receives",
    )
    .labels(&["From"]),
    counter(
        "etcd_network_snapshot_send_failures",
        "Total number of snapshot send failures",
    )
    .labels(&["To"]),
    gauge(
        "etcd_network_snapshot_send_inflights_total",
        "Total number of inflight snapshot sends",
    )
    .labels(&["To"]),
    counter(
        "etcd_network_snapshot_send_success",
        "Total number of successful snapshot sends",
    )
    .labels(&["To"]),
    histogram(
        "etcd_network_snapshot_send_total_duration_seconds",
        exponential(0.1, 10),
        "Total latency distributions of v3 snapshot sends",
    )
    .labels(&["To"]),
    gauge(
        "etcd_server_has_leader",
        "Whether or not a leader exists. 1 is existence, 0 is not.",
    ),
    counter(
        "etcd_server_heartbeat_send_failures_total",
        "The total number of leader heartbeat send failures (likely overloaded from slow disk).",
    )
    .note("Times that this leader was busy for more than a heartbeat interval when a heartbeat was due."),
    gauge(
        "etcd_server_is_leader",
        "Whether or not this member is a leader. 1 if is, 0 otherwise.",
    ),
    gauge(
        "etcd_server_is_learner",
        "Whether or not this member is a learner. 1 if is, 0 otherwise.",
    ),
    counter(
        "etcd_server_leader_changes_seen_total",
        "The number of leader changes seen.",
    ),
    counter(
        "etcd_server_learner_promote_failures",
        "The total number of failed learner promotions (likely learner not ready) while this member is leader.",
    )
    .labels(&["Reason"]),
    counter(
        "etcd_server_learner_promote_successes",
        "The total number of successful learner promotions while this member is leader.",
    ),
    gauge(
        "etcd_server_proposals_applied_total",
        "The total number of consensus proposals applied.",
    ),
    gauge(
        "etcd_server_proposals_committed_total",
        "The total number of consensus proposals committed.",
    ),
    counter(
        "etcd_server_proposals_failed_total",
        "The total number of failed proposals seen.",
    )
    .note("Requests that were not committed within the time of a request."),
    gauge(
        "etcd_server_proposals_pending",
        "The current number of pending proposals to commit.",
    ),
    counter(
        "etcd_server_read_indexes_failed_total",
        "The total number of failed read indexes seen.",
    )
    .note("Confirmations of the leader that ended because it changed."),
    counter(
        "etcd_server_slow_read_indexes_total",
        "The total number of pending read indexes not in sync with leader's or timed out read index requests.",
    )
    .note("Confirmations of the leader that got no answer within the time of a request."),
    gauge(
        "etcd_server_snapshot_apply_in_progress_total",
        "1 if the server is applying the incoming snapshot. 0 if none.",
    ),
    counter(
        "metastore_entries_appended_total",
        "Entries appended to this member's log.",
    ),
    histogram(
        "metastore_linearizable_read_wait_seconds",
        exponential(0.0001, 16),
        "Time that linearizable reads waited for the confirmation of the leader and for this member to catch up.",
    ),
    gauge(
        "metastore_peer_append_round_trip_seconds",
        "Moving average of the time from an append or a heartbeat to its answer.",
    )
    .labels(&["To"]),
    counter(
        "metastore_peer_connections_refused_total",
        "Connections of peers that were refused: foreign cluster, removed member, wrong address.",
    ),
    counter(
        "metastore_peer_entries_sent_total",
        "Entries sent to another member.",
    )
    .labels(&["To"]),
    gauge(
        "metastore_peer_match_lag_entries",
        "Entries of this leader's log that another member has not acknowledged. Only on the leader.",
    )
    .labels(&["To"]),
    counter(
        "metastore_read_index_rounds_total",
        "Confirmations of the leader on behalf of linearizable reads; those that wait share one.",
    ),
];

/// Log, engine and snapshots.
const LOG_ENGINE_AND_SNAPSHOTS: &[Metric] = &[
    histogram(
        "etcd_debugging_snap_save_total_duration_seconds",
        exponential(0.001, 14),
        "The total latency distributions of save called by snapshot.",
    )
    .note("Building one snapshot of the state machine."),
    histogram(
        "etcd_disk_backend_commit_duration_seconds",
        exponential(0.001, 14),
        "The latency distributions of commit called by backend.",
    )
    .note("One commit of the apply thread: the batch of everything that was committed meanwhile."),
    histogram(
        "etcd_disk_backend_defrag_duration_seconds",
        exponential(0.1, 13),
        "The latency distribution of backend defragmentation.",
    )
    .note("Defragmentation rewrites the files of the engine while requests go on."),
    histogram(
        "etcd_disk_backend_snapshot_duration_seconds",
        exponential(0.01, 17),
        "The latency distribution of backend snapshots.",
    ),
    gauge(
        "etcd_disk_defrag_inflight",
        "Whether or not defrag is active on the member. 1 means active, 0 means not.",
    ),
    histogram(
        "etcd_disk_wal_fsync_duration_seconds",
        exponential(0.001, 14),
        "The latency distributions of fsync called by WAL.",
    )
    .note("One sync of the log; requests that arrive meanwhile share the next one."),
    gauge(
        "etcd_disk_wal_write_bytes_total",
        "Total number of bytes written in WAL.",
    ),
    histogram(
        "etcd_disk_wal_write_duration_seconds",
        exponential(0.001, 14),
        "The latency distributions of write called by WAL.",
    ),
    histogram(
        "etcd_snap_db_save_total_duration_seconds",
        exponential(0.1, 10),
        "The total latency distributions of v3 snapshot save",
    )
    .note("Installing a snapshot that was received."),
    histogram(
        "etcd_snap_fsync_duration_seconds",
        exponential(0.001, 14),
        "The latency distributions of fsync called by snap.",
    )
    .note("The flush of the engine before a snapshot."),
    counter(
        "metastore_log_segments_started_total",
        "Segment files of the log that were started.",
    ),
    histogram(
        "metastore_log_sync_records",
        exponential(1.0, 12),
        "Records that became durable with one sync of the log.",
    ),
    counter(
        "metastore_snapshots_built_total",
        "Snapshots built on this member.",
    ),
];

/// Keys and compaction.
const KEYS_AND_COMPACTION: &[Metric] = &[
    gauge(
        "etcd_debugging_mvcc_compact_revision",
        "The revision of the last compaction in store.",
    ),
    gauge(
        "etcd_debugging_mvcc_current_revision",
        "The current revision of store.",
    ),
    counter(
        "etcd_debugging_mvcc_db_compaction_keys_total",
        "Total number of db keys compacted.",
    ),
    gauge(
        "etcd_debugging_mvcc_db_compaction_last",
        "The unix time of the last db compaction. Resets to 0 on start.",
    ),
    histogram(
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
        exponential(1.0, 13),
        "Bucketed histogram of db compaction pause duration.",
    )
    .note("One step of a compaction, the time between two pauses."),
    histogram(
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        exponential(100.0, 14),
        "Bucketed histogram of db compaction total duration.",
    ),
    gauge("etcd_debugging_mvcc_keys_total", "Total number of keys."),
    gauge(
        "etcd_debugging_mvcc_total_put_size_in_bytes",
        "The total size of put kv pairs seen by this member.",
    ),
    gauge(
        "etcd_mvcc_db_total_size_in_bytes",
        "Total size of the underlying database physically allocated in bytes.",
    )
    .note(
        "Files and memory tables of the engine, without the newest rows that it keeps beside the history. What it \
         has more than is in use is what a defragmentation can give back.",
    ),
    gauge(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Total size of the underlying database logically in use in bytes.",
    )
    .note("Bytes of the records that are kept, with a fixed overhead for each."),
    counter(
        "etcd_mvcc_delete_total",
        "Total number of deletes seen by this member.",
    ),
    histogram(
        "etcd_mvcc_hash_duration_seconds",
        exponential(0.01, 15),
        "The latency distribution of storage hash operation.",
    ),
    histogram(
        "etcd_mvcc_hash_rev_duration_seconds",
        exponential(0.01, 15),
        "The latency distribution of storage hash by revision operation.",
    ),
    counter(
        "etcd_mvcc_put_total",
        "Total number of puts seen by this member.",
    ),
    counter(
        "etcd_mvcc_range_total",
        "Total number of ranges seen by this member.",
    ),
    counter(
        "etcd_mvcc_txn_total",
        "Total number of txns seen by this member.",
    ),
    histogram(
        "etcd_server_apply_duration_seconds",
        exponential(0.0001, 20),
        "The latency distributions of v2 apply called by backend.",
    )
    .labels(&["version", "op", "success"]),
    gauge(
        "etcd_server_quota_backend_bytes",
        "Current backend storage quota size in bytes.",
    ),
    histogram(
        "etcd_server_range_duration_seconds",
        exponential(0.0001, 20),
        "The latency distributions of txn.Range",
    )
    .labels(&["success"]),
    counter(
        "etcd_server_slow_apply_total",
        "The total number of slow apply requests (likely overloaded from slow disk).",
    ),
    gauge(
        "metastore_apply_backlog_entries",
        "Entries that are committed and not yet applied on this member. At 5000 new requests are refused.",
    ),
    histogram(
        "metastore_apply_batch_entries",
        exponential(1.0, 10),
        "Entries that the apply thread executed as one batch.",
    ),
];

/// Watches.
const WATCHES: &[Metric] = &[
    counter(
        "etcd_debugging_mvcc_events_total",
        "Total number of events sent by this member.",
    ),
    gauge(
        "etcd_debugging_mvcc_pending_events_total",
        "Total number of pending events to be sent.",
    )
    .note("Events that wait in the queues of streams. etcd counts those that its send loops have not taken."),
    gauge(
        "etcd_debugging_mvcc_slow_watcher_total",
        "Total number of unsynced slow watchers.",
    )
    .note("Watchers that catch up or wait for their client."),
    gauge(
        "etcd_debugging_mvcc_watch_stream_total",
        "Total number of watch streams.",
    ),
    gauge(
        "etcd_debugging_mvcc_watcher_total",
        "Total number of watchers.",
    ),
    histogram(
        "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds",
        exponential(0.001, 14),
        "The total duration in seconds of running through the send loop control stream response.",
    )
    .note("Putting one frame of answers without events together."),
    histogram(
        "etcd_debugging_server_watch_send_loop_progress_duration_seconds",
        exponential(0.001, 14),
        "The total duration in seconds of running through the progress loop control stream response.",
    )
    .note("Sending the periodic progress that was due."),
    histogram(
        "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds",
        exponential(0.001, 14),
        "The average duration in seconds of running through the send loop watch stream response, per event.",
    )
    .note("The same, divided by the number of events."),
    histogram(
        "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds",
        exponential(0.001, 14),
        "The total duration in seconds of running through the send loop watch stream response all events.",
    )
    .note("Putting one frame of events together."),
    gauge(
        "metastore_watch_inbox_bytes",
        "Bytes between the apply thread and the watch hub.",
    ),
    gauge(
        "metastore_watch_queued_bytes",
        "Bytes that wait for clients of watches.",
    ),
    gauge(
        "metastore_watch_recent_bytes",
        "Bytes of recent events that are kept for watchers a little behind.",
    ),
    counter(
        "metastore_watch_responses_total",
        "Responses with events that were queued for watchers.",
    ),
];

/// Leases, users and alarms.
const LEASES_USERS_AND_ALARMS: &[Metric] = &[
    counter(
        "etcd_debugging_lease_granted_total",
        "The total number of granted leases.",
    ),
    counter(
        "etcd_debugging_lease_renewed_total",
        "The number of renewed leases seen by the leader.",
    ),
    counter(
        "etcd_debugging_lease_revoked_total",
        "The total number of revoked leases.",
    ),
    histogram(
        "etcd_debugging_lease_ttl_total",
        exponential(1.0, 24),
        "Bucketed histogram of lease TTLs.",
    ),
    gauge(
        "etcd_debugging_auth_revision",
        "The current revision of auth store.",
    ),
    gauge(
        "etcd_debugging_server_alarms",
        "Alarms for every member in cluster. 1 for 'server_id' label with current ID. 2 for 'alarm_type' label with type of this alarm",
    )
    .labels(&["server_id", "alarm_type"]),
    counter(
        "etcd_debugging_server_lease_expired_total",
        "The total number of expired leases.",
    ),
    gauge("metastore_leases", "Leases that exist."),
];

/// Every metric, in groups with their headlines.
pub const GROUPS: &[(&str, &[Metric])] = &[
    ("Process and build", PROCESS_AND_BUILD),
    ("Requests of clients", REQUESTS_OF_CLIENTS),
    ("Consensus and members", CONSENSUS_AND_MEMBERS),
    ("Log, engine and snapshots", LOG_ENGINE_AND_SNAPSHOTS),
    ("Keys and compaction", KEYS_AND_COMPACTION),
    ("Watches", WATCHES),
    ("Leases, users and alarms", LEASES_USERS_AND_ALARMS),
];

/// `docs/reference/metrics.md`.
#[must_use]
pub fn reference_page() -> String {
    let mut page = String::from(
        "<!-- Generated from server/src/observe/metrics/catalog.rs by `make fix`; a test fails when it is stale. -->

# Metrics

What `/metrics` on the client port shows, in Prometheus' text format. What begins with `etcd_`, `grpc_`, `os_` and
`process_` has etcd 3.7's name, type, labels, help text and buckets, so that dashboards and alerts for etcd go on
working; where it is not quite the same, the second sentence says so. What begins with `metastore_` is our own.
[User guide](../user-guide.md#watch-over-it) · [dashboard and alerts](../monitoring/README.md)

Of etcd's metrics these do not exist here, because there is nothing that they could tell: `go_*` other than
`go_goroutines` and `go_threads`, `etcd_server_go_version` (there is no Go), `etcd_grpc_proxy_*`, `etcd_debugging_store_*` (the v2 store),
`etcd_debugging_disk_backend_commit_*` (parts of a commit of bbolt),
`etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds` (there is no index in memory),
`etcd_debugging_snap_save_marshalling_duration_seconds` and `etcd_snap_db_fsync_duration_seconds` (snapshots are files of
the engine), `etcd_mvcc_db_open_read_transactions` (reads hold nothing open).

A metric with labels is shown once there is something to count. `grpc_server_handling_seconds` needs
`--metrics=extensive`.
",
    );
    for (headline, metrics) in GROUPS {
        page.push_str(&format!(
            "\n## {headline}\n\n| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n"
        ));
        for metric in *metrics {
            let labels: Vec<_> = metric
                .labels
                .iter()
                .map(|label| format!("`{label}`"))
                .collect();
            let note = if metric.note.is_empty() {
                String::new()
            } else {
                format!(" {}", metric.note)
            };
            page.push_str(&format!(
                "| `{}` | {} | {} | {}{note} |\n",
                metric.name,
                metric.kind.as_str(),
                labels.join(", "),
                sentence(metric.help),
            ));
        }
    }
    page
}

/// A help text as a sentence: some of etcd's have no full stop.
fn sentence(help: &str) -> String {
    let stop = if help.ends_with('.') { "" } else { "." };
    format!("{help}{stop}")
}
