//! What keeps a cluster alive: quota and alarms, defragmentation, compaction by itself, the comparison
//! of the members' data, the cluster version and its downgrade.
//!
//! `METASTORE_TEST_SUBJECT=etcd` runs what does not look into our files against a real etcd.

#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use metastore_proto::etcdserverpb as pb;
use metastore_store::engine::{Engine, WriteBatch};
use metastore_store_rocksdb::{RocksDbEngine, RocksDbOptions};
use metastore_tests::programs::subject;
use metastore_tests::{Client, Cluster, Member, MemberBuilder, Program, eventually};
use pb::AlarmType;
use pb::alarm_request::AlarmAction;
use tonic::Code;

/// Longest wait for something that takes a second or a few on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// A test that takes longer hangs.
const TEST_LIMIT: Duration = Duration::from_secs(120);

async fn within(test: impl Future<Output = ()>) {
    metastore_tests::within(TEST_LIMIT, test).await;
}

async fn alarm(
    client: &Client,
    action: AlarmAction,
    alarm: pb::AlarmMember,
) -> Vec<pb::AlarmMember> {
    let request = pb::AlarmRequest {
        action: action as i32,
        member_id: alarm.member_id,
        alarm: alarm.alarm,
    };
    let answer = client.maintenance.clone().alarm(request).await.unwrap();
    answer.into_inner().alarms
}

async fn alarms(client: &Client) -> Vec<pb::AlarmMember> {
    alarm(client, AlarmAction::Get, pb::AlarmMember::default()).await
}

async fn disarm_all(client: &Client) {
    for raised in alarms(client).await {
        alarm(client, AlarmAction::Deactivate, raised).await;
    }
}

async fn compact(client: &Client, revision: i64) {
    let request = pb::CompactionRequest {
        revision,
        physical: true,
    };
    client.kv.clone().compact(request).await.unwrap();
}

async fn defragment(client: &Client) {
    let request = pb::DefragmentRequest {};
    let answer = client.maintenance.clone().defragment(request).await;
    assert_eq!(answer.unwrap().into_inner().header, None);
}

/// The bytes of all files in the folders of this folder. What disappears meanwhile counts as nothing.
fn bytes_in_folders_of(folder: &Path) -> u64 {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries(folder)
        .flat_map(|folder| entries(&folder.path()))
        .filter_map(|file| file.metadata().ok())
        .map(|file| file.len())
        .sum()
}

/// The status line and the body of a plain HTTP request.
fn http_get(member: &Member, path: &str) -> (String, String) {
    let mut stream = std::net::TcpStream::connect(member.address()).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_raises_an_alarm_that_survives_a_restart_and_is_disarmed_after_compaction() {
    within(async {
        let mut member = MemberBuilder::new(subject())
            .flag(format!("--quota-backend-bytes={}", 13 * 4096))
            .start()
            .await;
        let client = member.client();
        client.put("small", "x".repeat(64)).await.unwrap();
        let refused = eventually("the store is full", PATIENCE, || async {
            match client.put("large", "y".repeat(4096)).await {
                Ok(_) => Err("it still fits".to_owned()),
                Err(status) => Ok(status),
            }
        })
        .await;
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(
            refused.message(),
            "etcdserver: mvcc: database space exceeded"
        );
        let status = client.status().await.unwrap();
        let own = status.header.unwrap().member_id;
        let raised = pb::AlarmMember {
            member_id: own,
            alarm: AlarmType::Nospace as i32,
        };
        assert_eq!(alarms(&client).await, [raised]);
        assert_eq!(status.errors.len(), 1);
        assert!(status.errors[0].contains("alarm:NOSPACE"), "{status:?}");
        assert_eq!(status.db_size_quota, 13 * 4096);
        let (line, body) = http_get(&member, "/health");
        assert_eq!(line, "HTTP/1.1 503 Service Unavailable");
        assert!(body.contains(r#""reason":"ALARM NOSPACE""#), "{body}");
        let (line, _) = http_get(&member, "/health?exclude=NOSPACE");
        assert_eq!(line, "HTTP/1.1 200 OK");

        member.kill();
        member.restart().await;
        let client = member.client();
        assert_eq!(alarms(&client).await, [raised]);
        client.put("small", "1").await.unwrap_err();
        let (_, revision) = client.get("small").await.unwrap();
        compact(&client, revision).await;
        defragment(&client).await;
        client.put("small", "1").await.unwrap_err();
        disarm_all(&client).await;
        client.put("small", "1").await.unwrap();
        assert!(client.status().await.unwrap().errors.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_a_smaller_quota_raises_the_alarm_for_itself() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        let index = (cluster.leader().await + 1) % 3;
        cluster.members[index].terminate().await;
        cluster.members[index].add_flag("--quota-backend-bytes=100000");
        cluster.members[index].restart().await;
        let small = cluster.members[index].client();
        let own = small.status().await.unwrap().header.unwrap().member_id;
        let other = cluster.members[(index + 1) % 3].client();
        // The other members have room, so they take it; the small one finds out when it applies it.
        let _ = other.put("large", "x".repeat(200_000)).await;
        eventually("the small member calls for help", PATIENCE, || async {
            let raised = alarms(&other).await;
            let is_own = raised.iter().any(|alarm| alarm.member_id == own);
            is_own.then_some(()).ok_or(format!("{raised:?}"))
        })
        .await;
        let refused = other.put("a", "1").await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_defragmentation_goes_on_without_the_client_that_asked_for_it() {
    within(async {
        let member = Member::start(subject()).await;
        let client = member.client();
        for number in 0..20 {
            let value: Vec<u8> = std::iter::repeat_with(rand::random).take(50_000).collect();
            client.put(format!("key-{number}"), value).await.unwrap();
        }
        for _ in 0..20 {
            let mut request = tonic::Request::new(pb::DefragmentRequest {});
            request.set_timeout(Duration::from_millis(2));
            // Too late or just in time: both are right.
            let _ = client.maintenance.clone().defragment(request).await;
        }
        eventually("nothing is being defragmented", PATIENCE, || async {
            let (_, metrics) = http_get(&member, "/metrics");
            let line = metrics
                .lines()
                .find(|line| line.starts_with("etcd_disk_defrag_inflight "))
                .map(str::to_owned);
            match line.as_deref() {
                Some("etcd_disk_defrag_inflight 0") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        defragment(&client).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defragmentation_gives_space_back_while_the_member_serves() {
    within(async {
        let member = Member::start(subject()).await;
        let client = member.client();
        let empty = client.status().await.unwrap();
        assert!(
            empty.db_size < 100_000,
            "an empty store is small: {empty:?}"
        );
        for number in 0..200 {
            // Text that does not compress, so that the files are as large as the values.
            let value: Vec<u8> = std::iter::repeat_with(rand::random).take(50_000).collect();
            client.put(format!("key-{number}"), value).await.unwrap();
        }
        let full = client.status().await.unwrap();
        assert!(full.db_size > 9_000_000, "{full:?}");
        let request = pb::DeleteRangeRequest {
            key: "key-".into(),
            range_end: "key.".into(),
            prev_kv: false,
        };
        client.kv.clone().delete_range(request).await.unwrap();
        let (_, revision) = client.get("key-1").await.unwrap();
        compact(&client, revision).await;
        let compacted = client.status().await.unwrap();
        assert!(compacted.db_size_in_use < 1_000_000, "{compacted:?}");
        assert!(
            compacted.db_size >= compacted.db_size_in_use,
            "{compacted:?}"
        );
        let writer = client.clone();
        let writes = async {
            let mut written = 0;
            loop {
                writer.put("during", format!("{written}")).await.unwrap();
                written += 1;
                tokio::task::yield_now().await;
            }
        };
        if subject() == Program::MetaStore {
            tokio::select! {
                () = defragment(&client) => {}
                () = writes => {}
            }
        } else {
            defragment(&client).await;
        }
        let after = client.status().await.unwrap();
        assert!(after.db_size < 1_000_000, "{after:?}");
        assert!(after.db_size < compacted.db_size, "{compacted:?} {after:?}");
        member.assert_log_is_clean();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_values_leave_nothing_to_give_back_after_a_defragmentation() {
    within(async {
        let member = Member::start(subject()).await;
        let client = member.client();
        for batch in 0..100 {
            let put = |number: u32| {
                let value: Vec<u8> = std::iter::repeat_with(rand::random).take(150).collect();
                pb::PutRequest {
                    key: format!("key-{batch}-{number}").into(),
                    value: value.into(),
                    ..Default::default()
                }
            };
            let operations = (0..100).map(|number| pb::RequestOp {
                request: Some(pb::request_op::Request::RequestPut(put(number))),
            });
            let request = pb::TxnRequest {
                success: operations.collect(),
                ..Default::default()
            };
            client.kv.clone().txn(request).await.unwrap();
        }
        defragment(&client).await;
        let status = client.status().await.unwrap();
        assert!(status.db_size_in_use > 2_000_000, "{status:?}");
        let free = status.db_size - status.db_size_in_use;
        assert!(free * 5 < status.db_size, "{status:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_defragmentation_gives_back_what_a_snapshot_for_followers_holds() {
    // Whether there is one, and where, is our own business.
    within(async {
        let member = MemberBuilder::new(Program::MetaStore)
            .flag("--snapshot-count=30")
            .start()
            .await;
        let client = member.client();
        let snapshots = member.data_folder().join("member/snapshot");
        let held_bytes = || bytes_in_folders_of(&snapshots);
        eventually("a snapshot is built", TEST_LIMIT, || async {
            let value: Vec<u8> = std::iter::repeat_with(rand::random).take(1 << 20).collect();
            client.put("key", value).await.unwrap();
            let held = held_bytes();
            (held > 20 << 20)
                .then_some(())
                .ok_or(format!("{held} bytes"))
        })
        .await;
        let (_, revision) = client.get("key").await.unwrap();
        compact(&client, revision).await;
        defragment(&client).await;
        eventually("the snapshot is a new one", PATIENCE, || async {
            let held = held_bytes();
            (held < 5 << 20)
                .then_some(())
                .ok_or(format!("{held} bytes"))
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_says_why_it_does_not_defragment() {
    within(async {
        let member = MemberBuilder::new(subject())
            .flag("--bootstrap-defrag-threshold-megabytes=10")
            .start()
            .await;
        eventually("the reason is logged", PATIENCE, || async {
            let log = member.log();
            log.contains("Skipping defragmentation")
                .then_some(())
                .ok_or("not yet".to_owned())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_compacts_itself_after_the_retention() {
    within(async {
        let cluster = Cluster::start_with(
            subject(),
            3,
            &[
                "--auto-compaction-mode=periodic",
                "--auto-compaction-retention=1s",
            ],
        )
        .await;
        let client = cluster.members[0].client();
        let first = client.put("a", "0").await.unwrap();
        eventually("the first value is compacted", PATIENCE, || async {
            client
                .put("a", "more")
                .await
                .map_err(|error| error.to_string())?;
            let request = pb::RangeRequest {
                key: "a".into(),
                revision: first,
                ..Default::default()
            };
            match client.kv.clone().range(request).await {
                Err(status) if status.message().contains("compacted") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let leader = &cluster.members[cluster.leader().await];
        assert!(leader.log().contains("completed auto periodic compaction"));
        client.get("a").await.unwrap();
    })
    .await;
}

/// Changes the value of one stored record of a stopped member.
fn damage(data_folder: &Path) {
    let store = data_folder.join("member/store");
    let generation = std::fs::read_to_string(store.join("CURRENT")).unwrap_or("0".into());
    let directory = store.join(generation.trim());
    let engine = RocksDbEngine::open(&directory, &RocksDbOptions::default()).unwrap();
    let mut batch = WriteBatch::default();
    let (from, to) = (revision(2), revision(3));
    engine
        .scan_revisions(from, to, &mut |revision, tombstone, mut record| {
            let mut pair = record.key_value.0.to_vec();
            *pair.last_mut().unwrap() ^= 1;
            record.key_value.0 = pair.into();
            batch.put_revisions.push((revision, tombstone, record));
            ControlFlow::Break(())
        })
        .unwrap();
    assert!(!batch.is_empty(), "there is a record to damage");
    engine.write(batch).unwrap();
    engine.flush().unwrap();
}

fn revision(main: i64) -> metastore_revision_model::Revision {
    metastore_revision_model::Revision::new(main, 0)
}

/// A cluster one of whose followers has other data; returns its place and id.
async fn cluster_with_damaged_member(flags: &[&str]) -> (Cluster, usize, u64) {
    let mut cluster = Cluster::start_with(Program::MetaStore, 3, flags).await;
    let client = cluster.members[0].client();
    for number in 0..10 {
        client.put(format!("key-{number}"), "value").await.unwrap();
    }
    let index = (cluster.leader().await + 1) % 3;
    let damaged = &mut cluster.members[index];
    let id = damaged
        .client()
        .status()
        .await
        .unwrap()
        .header
        .unwrap()
        .member_id;
    damaged.terminate().await;
    damage(damaged.data_folder());
    (cluster, index, id)
}

async fn is_named_corrupt(cluster: &Cluster, id: u64) {
    let corrupt = pb::AlarmMember {
        member_id: id,
        alarm: AlarmType::Corrupt as i32,
    };
    let client = cluster.members[cluster.leader().await].client();
    eventually("the damaged member is named", PATIENCE, || async {
        let raised = alarms(&client).await;
        (raised == [corrupt])
            .then_some(())
            .ok_or(format!("{raised:?}"))
    })
    .await;
    for client in cluster.clients() {
        let refused = client.put("a", "1").await.unwrap_err();
        assert_eq!(refused.code(), Code::DataLoss);
        assert_eq!(refused.message(), "etcdserver: corrupt cluster");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_other_data_is_named_by_the_periodic_check_and_does_not_start_again() {
    within(async {
        let (mut cluster, index, id) =
            cluster_with_damaged_member(&["--corrupt-check-time=500ms"]).await;
        cluster.members[index].restart().await;
        is_named_corrupt(&cluster, id).await;
        let (line, body) = http_get(&cluster.members[(index + 1) % 3], "/health");
        assert!(
            line.contains("503") && body.contains("ALARM CORRUPT"),
            "{line} {body}"
        );

        let damaged = &mut cluster.members[index];
        damaged.terminate().await;
        damaged.add_flag("--feature-gates=InitialCorruptCheck=true");
        damaged.respawn();
        let status = damaged.wait_for_exit("its data differs", PATIENCE).await;
        assert!(!status.success());
        let log = damaged.log();
        assert!(log.contains("found data inconsistency with peers"), "{log}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_other_data_is_named_after_a_compaction() {
    within(async {
        let flags = [
            "--feature-gates=CompactHashCheck=true",
            "--compact-hash-check-time=500ms",
        ];
        let (mut cluster, index, id) = cluster_with_damaged_member(&flags).await;
        cluster.members[index].restart().await;
        let client = cluster.members[index].client();
        let (_, revision) = client.get("key-1").await.unwrap();
        compact(&client, revision).await;
        is_named_corrupt(&cluster, id).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_cluster_passes_every_comparison() {
    within(async {
        let flags = [
            "--feature-gates=InitialCorruptCheck=true,CompactHashCheck=true",
            "--compact-hash-check-time=300ms",
            "--corrupt-check-time=300ms",
        ];
        let mut cluster = Cluster::start_with(subject(), 3, &flags).await;
        let client = cluster.members[0].client();
        let restarted = (cluster.leader().await + 1) % 3;
        cluster.members[restarted].terminate().await;
        cluster.members[restarted].restart().await;
        assert!(
            cluster.members[restarted]
                .log()
                .contains("initial corruption checking passed; no corruption")
        );
        eventually(
            "the data after a compaction was compared",
            PATIENCE,
            || async {
                let revision = client
                    .put("a", "1")
                    .await
                    .map_err(|error| error.to_string())?;
                compact(&client, revision).await;
                tokio::time::sleep(Duration::from_millis(300)).await;
                let checked = cluster.members.iter().any(|member| {
                    member
                        .log()
                        .contains("successfully checked hash on whole cluster")
                });
                checked.then_some(()).ok_or("not yet".to_owned())
            },
        )
        .await;
        assert_eq!(alarms(&client).await, []);
        cluster.assert_equal_hashes().await;
    })
    .await;
}

async fn downgrade(
    client: &Client,
    action: pb::downgrade_request::DowngradeAction,
    version: &str,
) -> pb::DowngradeResponse {
    let request = pb::DowngradeRequest {
        action: action as i32,
        version: version.into(),
    };
    let answer = client.maintenance.clone().downgrade(request).await;
    answer.unwrap().into_inner()
}

/// Waits until every member tells this version of the cluster and its storage.
async fn all_tell(cluster: &Cluster, version: &str) {
    let body = format!(r#""etcdcluster":"{version}","storage":"{version}""#);
    for member in &cluster.members {
        eventually("the member tells the cluster version", PATIENCE, || async {
            let (_, told) = http_get(member, "/version");
            told.contains(&body).then_some(()).ok_or(told)
        })
        .await;
        let status = member.client().status().await.unwrap();
        assert_eq!(status.storage_version, version);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_downgrade_lowers_the_cluster_version_and_its_cancellation_raises_it() {
    use pb::downgrade_request::DowngradeAction;
    within(async {
        let cluster = Cluster::start(subject(), 3).await;
        all_tell(&cluster, "3.7.0").await;
        let client = cluster.members[0].client();
        let enabled = downgrade(&client, DowngradeAction::Enable, "3.6").await;
        assert_eq!(enabled.version, "3.7");
        all_tell(&cluster, "3.6.0").await;
        for member in &cluster.members {
            let reason = "the log says that the older program may be started";
            eventually(reason, PATIENCE, || async {
                let log = member.log();
                let is_ready = log.contains("The server is ready to downgrade");
                is_ready.then_some(()).ok_or("not yet".to_owned())
            })
            .await;
        }
        let info = client.status().await.unwrap().downgrade_info.unwrap();
        assert!(info.enabled);
        assert_eq!(info.target_version, "3.6.0");
        // A copy of the store says so too, so that the older program takes it.
        let mut copy = client
            .maintenance
            .clone()
            .snapshot(pb::SnapshotRequest {})
            .await
            .unwrap()
            .into_inner();
        let first = copy.message().await.unwrap().unwrap();
        assert_eq!(first.version, "3.6.0");
        drop(copy);
        downgrade(&client, DowngradeAction::Cancel, "").await;
        all_tell(&cluster, "3.7.0").await;
        let info = client.status().await.unwrap().downgrade_info.unwrap();
        assert!(!info.enabled);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_snapshot_settings_work() {
    within(async {
        let flags = ["--snapshot-count=3", "--snapshot-catchup-entries=1"];
        let mut cluster = Cluster::start_with(subject(), 3, &flags).await;
        let client = cluster.members[0].client();
        let down = (cluster.leader().await + 1) % 3;
        cluster.members[down].terminate().await;
        let other = if down == 0 {
            cluster.members[1].client()
        } else {
            client
        };
        for number in 0..50 {
            other.put(format!("key-{number}"), "value").await.unwrap();
        }
        cluster.members[down].restart().await;
        cluster.assert_equal_hashes().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_of_a_lost_cluster_goes_on_alone_when_it_is_forced_to() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        let client = cluster.members[0].client();
        let revision = client.put("kept", "1").await.unwrap();
        if subject() == Program::Etcd {
            // It discards what its log does not say was agreed on, and the next write says that.
            client.put("later", "1").await.unwrap();
        }
        cluster.members[1].client().get("kept").await.unwrap();
        for member in &mut cluster.members {
            member.kill();
        }
        let mut survivor = cluster.members.remove(1);
        survivor.add_flag("--force-new-cluster");
        survivor.restart().await;
        let client = survivor.client();
        let (kept, _) = client.get("kept").await.unwrap();
        assert_eq!(kept.unwrap().value, "1");
        assert_eq!(client.members().await.unwrap().len(), 1);
        assert!(client.put("new", "2").await.unwrap() > revision);

        // It stays the only one without the option, which the last argument of the command line was.
        survivor.terminate().await;
        survivor.add_flag("--force-new-cluster=false");
        survivor.restart().await;
        let client = survivor.client();
        assert_eq!(client.members().await.unwrap().len(), 1);
        client.put("new", "3").await.unwrap();
        if subject() == Program::Etcd {
            return;
        }
        // The others are known to be removed.
        let other = &mut cluster.members[0];
        other.respawn();
        let refused = Client::with_timeout(&other.endpoint(), Duration::from_secs(1));
        refused.put("a", "1").await.unwrap_err();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_requests_are_logged_without_their_values() {
    within(async {
        let member = MemberBuilder::new(subject())
            .flag("--warning-apply-duration=1ns")
            .flag("--warning-unary-request-duration=1ns")
            .start()
            .await;
        let client = member.client();
        client.put("the-key", "the-secret").await.unwrap();
        client.get("the-key").await.unwrap();
        eventually("the requests are logged", PATIENCE, || async {
            let log = member.log();
            let wanted = [
                r#""msg":"apply request took too long""#,
                "read-only range ",
                "value_size:10",
                r#""msg":"request stats""#,
                r#""response type":"/etcdserverpb.KV/Put""#,
                "expected-duration",
            ];
            let missing: Vec<_> = wanted.iter().filter(|text| !log.contains(**text)).collect();
            match missing.is_empty() {
                true => Ok(()),
                false => Err(format!("{missing:?}")),
            }
        })
        .await;
        let log = member.log();
        assert!(log.contains("the-key") && !log.contains("the-secret"));
    })
    .await;
}
