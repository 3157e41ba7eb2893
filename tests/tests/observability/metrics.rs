//! `/metrics`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use metastore_proto::etcdserverpb as pb;
use metastore_tests::exposition::{self, Family, Labels};
use metastore_tests::{Client, Cluster, Member, MemberBuilder, Program, eventually, http};
use tokio_stream::StreamExt;

const LIMIT: Duration = Duration::from_secs(30);

/// Families of etcd that MetaStore does not have, by prefix, each with the reason.
const ONLY_ETCD: &[(&str, &str)] = &[
    ("go_gc_", "there is no garbage collector"),
    ("go_info", "there is no Go"),
    (
        "go_memstats_",
        "the allocator does not count what its callers hold; process_resident_memory_bytes says what it holds",
    ),
    ("go_sched_", "there is no scheduler of Go"),
    ("etcd_server_go_version", "there is no Go"),
    ("etcd_grpc_proxy_", "the proxy is no part of the server"),
    ("etcd_debugging_store_", "the v2 store is gone"),
    (
        "etcd_debugging_disk_backend_commit_",
        "parts of a commit of bbolt",
    ),
    (
        "etcd_debugging_mvcc_index_compaction_pause_",
        "there is no index beside the store that is compacted",
    ),
    (
        "etcd_debugging_snap_save_marshalling_",
        "snapshots are files of the engine",
    ),
    (
        "etcd_snap_db_fsync_",
        "a received snapshot is synced file by file while it arrives",
    ),
    (
        "etcd_mvcc_db_open_read_transactions",
        "reads hold no transaction open",
    ),
];

fn scrape(member: &Member) -> BTreeMap<String, Family> {
    let answer = http::get(&member.address(), "/metrics");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        answer.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
    );
    exposition::parse(&answer.text())
}

async fn start(program: Program) -> Member {
    MemberBuilder::new(program)
        .flag("--metrics=extensive")
        .start()
        .await
}

/// One operation of every kind, the same on every store.
async fn work(member: &Member) {
    let client = &member.client();
    use pb::request_op::Request as Op;
    let op = |request| pb::RequestOp {
        request: Some(request),
    };
    let put = |key: &'static str, value: &'static str| pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    };
    let range = |key: &'static str| pb::RangeRequest {
        key: key.into(),
        ..Default::default()
    };
    let compare = |key: &'static str, version: i64| pb::Compare {
        key: key.into(),
        target: pb::compare::CompareTarget::Version as i32,
        target_union: Some(pb::compare::TargetUnion::Version(version)),
        ..Default::default()
    };
    let mut kv = client.kv.clone();
    kv.put(put("a", "1")).await.unwrap();
    kv.put(put("b", "22")).await.unwrap();
    kv.put(pb::PutRequest {
        prev_kv: true,
        ..put("a", "333")
    })
    .await
    .unwrap();
    kv.put(pb::PutRequest {
        ignore_value: true,
        ..put("a", "")
    })
    .await
    .unwrap();
    kv.put(pb::PutRequest {
        ignore_value: true,
        ..put("missing", "")
    })
    .await
    .unwrap_err();
    kv.put(put("", "refused")).await.unwrap_err();
    kv.range(range("a")).await.unwrap();
    kv.range(pb::RangeRequest {
        serializable: true,
        range_end: "z".into(),
        limit: 1,
        ..range("a")
    })
    .await
    .unwrap();
    kv.range(pb::RangeRequest {
        revision: 1_000_000,
        ..range("a")
    })
    .await
    .unwrap_err();
    kv.delete_range(pb::DeleteRangeRequest {
        key: "b".into(),
        ..Default::default()
    })
    .await
    .unwrap();
    kv.delete_range(pb::DeleteRangeRequest {
        key: "b".into(),
        prev_kv: true,
        ..Default::default()
    })
    .await
    .unwrap();
    // Writes, with compares that hold and that do not; only reads; one operation alone.
    kv.txn(pb::TxnRequest {
        compare: vec![compare("a", 3), compare("b", 0)],
        success: vec![
            op(Op::RequestPut(put("c", "4"))),
            op(Op::RequestRange(range("c"))),
            op(Op::RequestDeleteRange(pb::DeleteRangeRequest {
                key: "a".into(),
                ..Default::default()
            })),
        ],
        failure: vec![op(Op::RequestPut(put("d", "5")))],
    })
    .await
    .unwrap();
    kv.txn(pb::TxnRequest {
        compare: vec![compare("c", 99), compare("c", 1)],
        success: vec![],
        failure: vec![op(Op::RequestRange(range("c")))],
    })
    .await
    .unwrap();
    kv.txn(pb::TxnRequest {
        success: vec![op(Op::RequestPut(put("e", "6")))],
        ..Default::default()
    })
    .await
    .unwrap();
    kv.txn(pb::TxnRequest {
        success: vec![op(Op::RequestPut(pb::PutRequest {
            ignore_lease: true,
            ..put("missing", "7")
        }))],
        ..Default::default()
    })
    .await
    .unwrap_err();
    kv.range_stream(range("c"))
        .await
        .unwrap()
        .into_inner()
        .collect::<Vec<_>>()
        .await;
    leases_watches_and_the_rest(client, &member.endpoint()).await;
}

async fn leases_watches_and_the_rest(client: &Client, endpoint: &str) {
    let mut lease = client.lease.clone();
    for (id, ttl) in [(7, 100), (8, 5000)] {
        lease
            .lease_grant(pb::LeaseGrantRequest { id, ttl })
            .await
            .unwrap();
    }
    client
        .kv
        .clone()
        .put(pb::PutRequest {
            key: "leased".into(),
            lease: 8,
            ..Default::default()
        })
        .await
        .unwrap();
    let renewals = [7, 7, 99].map(|id| pb::LeaseKeepAliveRequest { id });
    let answers = lease
        .lease_keep_alive(tokio_stream::iter(renewals))
        .await
        .unwrap()
        .into_inner()
        .collect::<Vec<_>>()
        .await;
    assert_eq!(answers.len(), 3);
    for id in [8, 8] {
        let _ = lease.lease_revoke(pb::LeaseRevokeRequest { id }).await;
    }
    lease
        .lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 7, keys: true })
        .await
        .unwrap();
    lease.lease_leases(pb::LeaseLeasesRequest {}).await.unwrap();
    client.members().await.unwrap();
    client.status().await.unwrap();
    client.hash_kv(0).await.unwrap();
    client
        .maintenance
        .clone()
        .hash(pb::HashRequest {})
        .await
        .unwrap();
    client
        .kv
        .clone()
        .compact(pb::CompactionRequest {
            revision: 4,
            physical: true,
        })
        .await
        .unwrap();
    // History from revision 5 on.
    let create = pb::WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision: 5,
        ..Default::default()
    };
    watch_and_leave(endpoint, create, 7).await;
}

/// Watches until this many events came, and goes away with its connection: a call whose requests go on
/// is not cancelled when only its answers are dropped.
async fn watch_and_leave(endpoint: &str, create: pb::WatchCreateRequest, events_wanted: usize) {
    let endpoint = endpoint.to_owned();
    let watching = async move {
        let client = Client::new(&endpoint);
        let create = pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
        };
        let requests = tokio_stream::once(create).chain(tokio_stream::pending());
        let mut answers = client
            .watch
            .clone()
            .watch(requests)
            .await
            .unwrap()
            .into_inner();
        assert!(answers.next().await.unwrap().unwrap().created);
        let mut events = 0;
        while events < events_wanted {
            events += answers.next().await.unwrap().unwrap().events.len();
        }
    };
    tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(watching);
    })
    .await
    .unwrap();
}

/// Waits until the cancelled watch has been noticed.
async fn watch_is_over(member: &Member) -> BTreeMap<String, Family> {
    eventually("the watch is over", LIMIT, || async {
        let families = scrape(member);
        let streams = families["etcd_debugging_mvcc_watch_stream_total"]
            .samples
            .values()
            .sum::<f64>();
        // The end of the stream counts as a message. etcd notes it a little later than that the watch is gone.
        let received = families["grpc_server_msg_received_total"]
            .samples
            .iter()
            .filter(|((_, labels), _)| labels["grpc_method"] == "Watch")
            .map(|(_, value)| value)
            .sum::<f64>();
        match (streams, received) {
            (0.0, 2.0) => Ok(families),
            other => Err(format!("{other:?} streams and messages")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_the_names_types_and_labels_of_etcd() {
    let mut seen = Vec::new();
    for program in [Program::Etcd, Program::MetaStore] {
        let member = start(program).await;
        work(&member).await;
        seen.push(watch_is_over(&member).await);
    }
    let [wanted, got] = seen.try_into().expect("two stores");
    let mut report = String::new();
    for (name, wanted) in &wanted {
        if ONLY_ETCD.iter().any(|(prefix, _)| name.starts_with(prefix)) {
            assert!(!got.contains_key(name), "{name} is no exception any more");
            continue;
        }
        let Some(got) = got.get(name) else {
            let _ = writeln!(report, "{name} is missing");
            continue;
        };
        let mut compare = |what: &str, wanted: String, got: String| {
            if wanted != got {
                let _ = writeln!(report, "{name}: {what}\n  etcd: {wanted}\n  got:  {got}");
            }
        };
        compare("type", wanted.kind.clone(), got.kind.clone());
        compare("help", wanted.help.clone(), got.help.clone());
        let labels = |family: &Family| format!("{:?}", family.label_names());
        compare("labels", labels(wanted), labels(got));
        let bounds = |family: &Family| format!("{:.6?}", family.bounds());
        compare("buckets", bounds(wanted), bounds(got));
    }
    for name in got.keys() {
        if !wanted.contains_key(name) && !name.starts_with("metastore_") {
            let _ = writeln!(report, "{name} is not etcd's");
        }
    }
    assert!(report.is_empty(), "{report}");
}

/// Families of which every sample has to change by as much as etcd's. Of histograms the counts are
/// compared. Durations of ranges are not among them: a stream that its limit ends counts the rest in its
/// last chunk, which is a read of its own in etcd.
const EXACT: &[&str] = &[
    "etcd_mvcc_range_total",
    "etcd_mvcc_put_total",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_txn_total",
    "etcd_debugging_mvcc_total_put_size_in_bytes",
    "etcd_debugging_mvcc_keys_total",
    "etcd_debugging_mvcc_current_revision",
    "etcd_debugging_mvcc_compact_revision",
    "etcd_debugging_mvcc_events_total",
    "etcd_debugging_mvcc_pending_events_total",
    "etcd_debugging_mvcc_watch_stream_total",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_debugging_mvcc_slow_watcher_total",
    "etcd_debugging_mvcc_db_compaction_keys_total",
    "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
    "etcd_debugging_lease_granted_total",
    "etcd_debugging_lease_revoked_total",
    "etcd_debugging_lease_renewed_total",
    "etcd_debugging_lease_ttl_total",
    "etcd_debugging_server_lease_expired_total",
    "etcd_mvcc_hash_duration_seconds",
    "etcd_mvcc_hash_rev_duration_seconds",
    "etcd_server_request_duration_seconds",
    "etcd_server_client_requests_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_failed_total",
    "etcd_server_proposals_pending",
    "etcd_server_has_leader",
    "etcd_server_is_leader",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_slow_apply_total",
    "etcd_server_feature_enabled",
    "etcd_server_quota_backend_bytes",
    "etcd_cluster_version",
    "etcd_server_version",
    "grpc_server_started_total",
    "grpc_server_handled_total",
    "grpc_server_msg_received_total",
    "grpc_server_msg_sent_total",
    "grpc_server_handling_seconds",
];

/// By how much the samples of the exact families changed.
fn changes(
    before: &BTreeMap<String, Family>,
    after: &BTreeMap<String, Family>,
) -> BTreeMap<(String, Labels), f64> {
    let none = Family::default();
    let mut changes = BTreeMap::new();
    for name in EXACT {
        let before = before.get(*name).unwrap_or(&none);
        let after = after
            .get(*name)
            .unwrap_or_else(|| panic!("{name} is missing"));
        let is_histogram = after.kind == "histogram";
        for ((sample, labels), value) in &after.samples {
            if is_histogram && !sample.ends_with("_count") {
                continue;
            }
            let key = (sample.clone(), labels.clone());
            let change = value - before.samples.get(&key).unwrap_or(&0.0);
            changes.insert(key, change);
        }
    }
    changes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_count_exactly_what_etcd_counts() {
    let mut seen = Vec::new();
    for program in [Program::Etcd, Program::MetaStore] {
        let member = start(program).await;
        // Deciding on the cluster's version is a proposal too, at a time of its own.
        let before = eventually("the cluster's version is decided", LIMIT, || async {
            let families = scrape(&member);
            let sum = |name: &str| {
                families
                    .get(name)
                    .map_or(0.0, |family| family.samples.values().sum::<f64>())
            };
            match (
                sum("etcd_cluster_version"),
                sum("etcd_server_proposals_pending"),
            ) {
                (decided, 0.0) if decided > 0.0 => Ok(families),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        work(&member).await;
        seen.push(changes(&before, &watch_is_over(&member).await));
    }
    let [wanted, got] = seen.try_into().expect("two stores");
    let mut report = String::new();
    for (key, wanted) in &wanted {
        let got = got.get(key);
        // What etcd shows as 0 need not be shown.
        if got.copied().unwrap_or(0.0) != *wanted {
            let _ = writeln!(report, "{key:?}: etcd {wanted}, got {got:?}");
        }
    }
    for (key, got) in &got {
        if !wanted.contains_key(key) && *got != 0.0 {
            let _ = writeln!(report, "{key:?}: not in etcd, got {got}");
        }
    }
    assert!(report.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_puts_and_a_cancelled_watch_are_counted_to_the_letter() {
    let member = Member::start(Program::MetaStore).await;
    let client = member.client();
    client.put("a", "1").await.unwrap();
    client.put("a", "2").await.unwrap();
    let create = pb::WatchCreateRequest {
        key: "a".into(),
        ..Default::default()
    };
    watch_and_leave(&member.endpoint(), create, 0).await;
    watch_is_over(&member).await;
    let text = http::get(&member.address(), "/metrics").text();
    for line in [
        "etcd_mvcc_put_total 2",
        "etcd_server_version{server_version=\"3.7.3\"} 1",
        "etcd_cluster_version{cluster_version=\"3.7\"} 1",
        "etcd_server_has_leader 1",
        "grpc_server_handled_total{grpc_code=\"Canceled\",grpc_method=\"Watch\",\
         grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 1",
        "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",\
         grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 2",
        "grpc_server_started_total{grpc_method=\"UserAdd\",\
         grpc_service=\"etcdserverpb.Auth\",grpc_type=\"unary\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(
        !text.contains("grpc_server_handling_seconds"),
        "durations only with --metrics=extensive"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_show_each_other() {
    let cluster = Cluster::start(Program::MetaStore, 3).await;
    cluster.members[0].client().put("a", "1").await.unwrap();
    let sum = |families: &BTreeMap<String, Family>, name: &str| {
        families
            .get(name)
            .map_or(0.0, |family| family.samples.values().sum())
    };
    let mut leaders = 0.0;
    for member in &cluster.members {
        let families = eventually("the others answer", LIMIT, || async {
            let families = scrape(member);
            match sum(&families, "etcd_network_active_peers") {
                2.0 => Ok(families),
                active => Err(format!("{active} active peers")),
            }
        })
        .await;
        leaders += sum(&families, "etcd_server_is_leader");
        assert_eq!(sum(&families, "etcd_network_known_peers"), 3.0);
        for name in [
            "etcd_network_peer_sent_bytes_total",
            "etcd_network_peer_received_bytes_total",
            "etcd_network_peer_round_trip_time_seconds",
            "etcd_disk_wal_fsync_duration_seconds",
            "etcd_disk_backend_commit_duration_seconds",
            "etcd_server_leader_changes_seen_total",
        ] {
            assert!(sum(&families, name) > 0.0, "{name}");
        }
        let other = families["etcd_network_peer_sent_bytes_total"]
            .samples
            .keys()
            .map(|(_, labels)| labels["To"].clone())
            .collect::<Vec<_>>();
        assert_eq!(other.len(), 2, "{other:?}");
    }
    assert_eq!(leaders, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_without_labels_is_shown_from_the_start() {
    use metastore_server::observe::metrics::catalog;
    let member = Member::start(Program::MetaStore).await;
    let families = scrape(&member);
    for metric in catalog::GROUPS.iter().flat_map(|(_, metrics)| *metrics) {
        match families.get(metric.name) {
            Some(family) => assert_eq!(family.kind, metric.kind.as_str(), "{}", metric.name),
            None => assert!(!metric.labels.is_empty(), "{} is missing", metric.name),
        }
    }
}
