//! What the parts of the server know, read when somebody looks.

use metastore_consensus::{CounterValues, TransferValues};
use metastore_proto::etcdserverpb::AlarmType;
use metastore_store::EngineError;

use super::families::{Families, Labels};
use crate::config::FEATURE_GATES;
use crate::node::Node;
use crate::version;

/// Adds everything.
///
/// # Errors
/// The engine does not say how large it is.
pub(super) fn collect(node: &Node, families: &mut Families) -> Result<(), EngineError> {
    identity(node, families);
    leadership(node, families);
    peers(node, families);
    consensus(&node.consensus.counters(), families);
    let timed_out = node.unconfirmed_reads.timed_out() as f64;
    families.add("etcd_server_slow_read_indexes_total", timed_out);
    store(node, families)?;
    watches(node, families);
    let auth_revision = node.application.auth.revision() as f64;
    families.add("etcd_debugging_auth_revision", auth_revision);
    let alarms = node.application.alarms.list(AlarmType::None as i32);
    families.add_all(
        "etcd_debugging_server_alarms",
        alarms.into_iter().map(|alarm| {
            let labels = vec![
                ("server_id", hex(alarm.member_id)),
                ("alarm_type", alarm.alarm().as_str_name().to_owned()),
            ];
            (labels, 1.0)
        }),
    );
    families.add("metastore_leases", node.application.leases.len() as f64);
    Ok(())
}

fn hex(id: u64) -> String {
    format!("{id:x}")
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn identity(node: &Node, families: &mut Families) {
    let one = |name: &str, label: &'static str, value: String, families: &mut Families| {
        families.add_labelled(name, vec![(label, value)], 1.0);
    };
    let server_version = version::ETCD_VERSION.to_owned();
    one(
        "etcd_server_version",
        "server_version",
        server_version,
        families,
    );
    one("etcd_server_id", "server_id", hex(node.member_id), families);
    if let Some(cluster) = &node.application.directory.current().cluster_version {
        // Major and minor only, as in etcd.
        let short = cluster
            .rsplit_once('.')
            .map_or(&**cluster, |(short, _)| short);
        one(
            "etcd_cluster_version",
            "cluster_version",
            short.to_owned(),
            families,
        );
    }
    families.add_labelled(
        "metastore_build_info",
        vec![
            ("version", version::METASTORE_VERSION.to_owned()),
            ("git_sha", version::GIT_SHA.to_owned()),
        ],
        1.0,
    );
    let gates = &node.config.feature_gates;
    families.add_all(
        "etcd_server_feature_enabled",
        [("AllAlpha", true), ("AllBeta", false)]
            .into_iter()
            .chain(FEATURE_GATES.iter().map(|gate| (gate.name, gate.is_alpha)))
            .map(|(name, is_alpha)| {
                let stage = if is_alpha { "ALPHA" } else { "BETA" };
                let labels = vec![("name", name.to_owned()), ("stage", stage.to_owned())];
                (labels, flag(gates.is_enabled(name)))
            }),
    );
}

fn leadership(node: &Node, families: &mut Families) {
    let leader = node.leader();
    let committed = node.status().committed.map_or(0, |last| last.index + 1);
    let applied = node.application.applied_index();
    // The status is a little older than the applied index, which can only be committed.
    let committed = committed.max(applied);
    for (name, value) in [
        ("etcd_server_has_leader", flag(leader.is_some())),
        (
            "etcd_server_is_leader",
            flag(leader == Some(node.member_id)),
        ),
        ("etcd_server_is_learner", flag(node.is_learner())),
        ("etcd_server_proposals_committed_total", committed as f64),
        ("etcd_server_proposals_applied_total", applied as f64),
        (
            "metastore_apply_backlog_entries",
            (committed - applied) as f64,
        ),
        (
            "etcd_server_quota_backend_bytes",
            node.config
                .quota_backend_bytes
                .map_or(-1.0, |bytes| bytes as f64),
        ),
    ] {
        families.add(name, value);
    }
}

fn between(node: &Node, other: u64) -> Labels {
    vec![("Local", hex(node.member_id)), ("Remote", hex(other))]
}

fn peers(node: &Node, families: &mut Families) {
    let directory = node.application.directory.current();
    families.add_all(
        "etcd_network_known_peers",
        directory.members.keys().map(|id| (between(node, *id), 1.0)),
    );
    let others = || directory.members.keys().filter(|id| **id != node.member_id);
    families.add_all(
        "etcd_network_active_peers",
        others().map(|id| {
            let active = node.peers.active_for(*id).is_some();
            (between(node, *id), flag(active))
        }),
    );
    let last = node.status().last_log.map_or(0, |last| last.index + 1);
    families.add_all(
        "metastore_peer_match_lag_entries",
        node.consensus.progress().into_iter().map(|peer| {
            let matched = peer.matched.map_or(0, |position| position.index + 1);
            (
                vec![("To", hex(peer.id))],
                last.saturating_sub(matched) as f64,
            )
        }),
    );
}

fn consensus(counters: &CounterValues, families: &mut Families) {
    for (name, value) in [
        (
            "etcd_server_leader_changes_seen_total",
            counters.leader_changes,
        ),
        (
            "etcd_server_heartbeat_send_failures_total",
            counters.late_heartbeats,
        ),
        (
            "etcd_server_read_indexes_failed_total",
            counters.read_index_failures,
        ),
        (
            "metastore_entries_appended_total",
            counters.entries_appended,
        ),
        (
            "metastore_read_index_rounds_total",
            counters.read_index_rounds,
        ),
        ("metastore_snapshots_built_total", counters.snapshots_built),
        (
            "metastore_peer_connections_refused_total",
            counters.connections_refused,
        ),
    ] {
        families.add(name, value as f64);
    }
    for (member, peer) in &counters.peers {
        let to = || vec![("To", hex(*member))];
        let from = || vec![("From", hex(*member))];
        let failures = peer.append_failures + peer.connect_failures;
        for (name, labels, value) in [
            ("etcd_network_peer_sent_bytes_total", to(), peer.bytes_sent),
            (
                "etcd_network_peer_received_bytes_total",
                from(),
                peer.bytes_received,
            ),
            ("etcd_network_peer_sent_failures_total", to(), failures),
            ("metastore_peer_entries_sent_total", to(), peer.entries_sent),
        ] {
            families.add_labelled(name, labels, value as f64);
        }
        if let Some(round_trip) = peer.round_trip {
            families.add_labelled(
                "metastore_peer_append_round_trip_seconds",
                to(),
                round_trip.as_secs_f64(),
            );
        }
        transfers("send", &peer.snapshots_sent, &to, families);
        transfers("receive", &peer.snapshots_received, &from, families);
    }
}

/// Snapshots in one direction; nothing until the first one.
fn transfers(
    direction: &str,
    transfers: &TransferValues,
    labels: &dyn Fn() -> Labels,
    families: &mut Families,
) {
    let TransferValues {
        in_flight,
        failed,
        buckets,
        total,
    } = transfers;
    let succeeded: u64 = buckets.iter().sum();
    let name = |what: &str| format!("etcd_network_snapshot_{direction}_{what}");
    if succeeded + failed + in_flight > 0 {
        families.add_labelled(&name("inflights_total"), labels(), *in_flight as f64);
    }
    if *failed > 0 {
        families.add_labelled(&name("failures"), labels(), *failed as f64);
    }
    if succeeded > 0 {
        families.add_labelled(&name("success"), labels(), succeeded as f64);
        families.add_histogram(
            &name("total_duration_seconds"),
            labels(),
            buckets,
            total.as_secs_f64(),
        );
    }
}

fn store(node: &Node, families: &mut Families) -> Result<(), EngineError> {
    let reader = node.reader();
    let size = reader.size()?;
    let counters = reader.counters();
    // Status shows the same two sizes.
    for (name, value) in [
        ("etcd_mvcc_range_total", counters.ranges),
        ("etcd_mvcc_put_total", counters.puts),
        ("etcd_mvcc_delete_total", counters.deletes),
        ("etcd_mvcc_txn_total", counters.transactions),
        (
            "etcd_debugging_mvcc_total_put_size_in_bytes",
            counters.put_bytes,
        ),
        (
            "etcd_debugging_mvcc_db_compaction_keys_total",
            counters.collected_records,
        ),
        ("etcd_mvcc_db_total_size_in_bytes", size.physical_bytes),
        (
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            size.logical_bytes,
        ),
    ] {
        families.add(name, value as f64);
    }
    for (name, value) in [
        ("etcd_debugging_mvcc_keys_total", reader.key_count()?),
        ("etcd_debugging_mvcc_current_revision", reader.revision()),
        (
            "etcd_debugging_mvcc_compact_revision",
            reader.compact_revision(),
        ),
    ] {
        families.add(name, value as f64);
    }
    Ok(())
}

fn watches(node: &Node, families: &mut Families) {
    let hub = node.application.hub.statistics();
    for (name, value) in [
        ("etcd_debugging_mvcc_watch_stream_total", hub.streams),
        ("etcd_debugging_mvcc_watcher_total", hub.watchers),
        ("etcd_debugging_mvcc_slow_watcher_total", hub.slow_watchers),
        (
            "etcd_debugging_mvcc_pending_events_total",
            hub.queued_events,
        ),
        ("metastore_watch_queued_bytes", hub.queued_bytes),
        ("metastore_watch_inbox_bytes", hub.inbox_bytes),
        ("metastore_watch_recent_bytes", hub.recent_bytes),
    ] {
        families.add(name, value as f64);
    }
    families.add("metastore_watch_responses_total", hub.responses_sent as f64);
}
