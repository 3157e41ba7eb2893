//! Real processes that are killed, paused, starved and fed nonsense.
//!
//! `METASTORE_TEST_SUBJECT=etcd` runs the same against a real etcd, to see that the tests are right;
//! where etcd itself does less than MetaStore promises, the test says so.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use metastore_proto::etcdserverpb as pb;
use metastore_tests::load::{Load, LoadOptions};
use metastore_tests::programs::subject;
use metastore_tests::{Client, Cluster, Member, MemberBuilder, Program, deadline, eventually};

#[path = "process/bad_clients.rs"]
mod bad_clients;
#[path = "process/bad_input.rs"]
mod bad_input;
#[path = "process/disk.rs"]
mod disk;
#[path = "process/grpc_proxy.rs"]
mod grpc_proxy;
#[path = "process/leasing.rs"]
mod leasing;
#[path = "process/limits.rs"]
mod limits;
#[path = "process/membership.rs"]
mod membership;
#[path = "process/tcp_gateway.rs"]
mod tcp_gateway;

/// etcd's default, and ours.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// Writes that show that the store works again.
const SOME_WRITES: u64 = 30;
/// A test that takes longer hangs.
const TEST_LIMIT: Duration = Duration::from_secs(180);

async fn within(test: impl Future<Output = ()>) {
    metastore_tests::within(TEST_LIMIT, test).await;
}

/// systemd starts etcd's units with `Type=notify`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_init_daemon_is_told_when_a_member_is_ready() {
    within(async {
        for program in [Program::Etcd, subject()] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("notify");
            let daemon = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
            daemon
                .set_read_timeout(Some(deadline(Duration::from_secs(10))))
                .unwrap();
            let member = MemberBuilder::new(program)
                .env("NOTIFY_SOCKET", path.to_str().unwrap())
                .start()
                .await;
            let mut said = [0; 100];
            let length = daemon.recv(&mut said).unwrap();
            assert_eq!(&said[..length], b"READY=1", "{program:?}");
            drop(member);
        }
    })
    .await;
}

/// Go ignores them; scripts that rotate logs send them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_signals_do_not_end_a_member() {
    use rustix::process::Signal;
    within(async {
        for program in [Program::Etcd, subject()] {
            let mut member = Member::start(program).await;
            for (number, signal) in [Signal::USR1, Signal::USR2].into_iter().enumerate() {
                member.signal(signal);
                let value = number.to_string();
                member.client().put("a", value).await.unwrap();
            }
            assert!(member.try_exit().is_none(), "{program:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_loses_nothing_when_it_is_killed() {
    within(async {
        for engine in ["rocksdb", "memory"] {
            let mut builder = MemberBuilder::new(subject());
            if subject() == Program::MetaStore {
                builder = builder.flag(format!("--engine={engine}"));
            }
            let mut member = builder.start().await;
            let load = Load::start(vec![member.endpoint()], LoadOptions::default());
            for _ in 0..4 {
                load.progress(SOME_WRITES, "the member works").await;
                member.kill();
                member.restart().await;
            }
            load.progress(SOME_WRITES, "the member works").await;
            load.stop_and_check().await;
            member.assert_log_is_clean();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_loses_nothing_when_its_leader_is_killed() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        let load = Load::start(cluster.endpoints(), LoadOptions::default());
        for _ in 0..4 {
            load.progress(SOME_WRITES, "the cluster works").await;
            let leader = cluster.leader().await;
            cluster.members[leader].kill();
            load.progress(SOME_WRITES, "two members work").await;
            cluster.members[leader].restart().await;
        }
        load.stop_and_check().await;
        cluster.assert_equal_hashes().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_loses_nothing_when_all_members_are_killed() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        let load = Load::start(cluster.endpoints(), LoadOptions::default());
        for _ in 0..3 {
            load.progress(SOME_WRITES, "the cluster works").await;
            for member in &mut cluster.members {
                member.kill();
            }
            cluster.restart_all().await;
        }
        load.progress(SOME_WRITES, "the cluster works").await;
        load.stop_and_check().await;
        cluster.assert_equal_hashes().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_leader_shows_nothing_old_when_it_wakes() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        let load = Load::start(cluster.endpoints(), LoadOptions::default());
        for _ in 0..3 {
            load.progress(SOME_WRITES, "the cluster works").await;
            let leader = cluster.leader().await;
            cluster.members[leader].pause();
            let (other, _) = cluster.leader_except(Some(leader)).await;
            assert_ne!(other, leader);
            load.progress(SOME_WRITES, "two members work").await;
            cluster.members[leader].resume();
        }
        load.progress(SOME_WRITES, "the cluster works").await;
        load.stop_and_check().await;
        cluster.assert_equal_hashes().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_works_while_its_members_are_restarted_in_turn() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        let load = Load::start(cluster.endpoints(), LoadOptions::default());
        for index in 0..3 {
            load.progress(SOME_WRITES, "the cluster works").await;
            let status = cluster.members[index].terminate().await;
            assert_ended_by_request(status);
            cluster.members[index].restart().await;
        }
        load.progress(SOME_WRITES, "the cluster works").await;
        load.stop_and_check().await;
        cluster.assert_equal_hashes().await;
    })
    .await;
}

/// etcd ends by the signal that it got, once it has tidied up; MetaStore with status 0.
fn assert_ended_by_request(status: std::process::ExitStatus) {
    assert!(status.success() || subject() == Program::Etcd, "{status}");
}

/// Time from `since` until a running member other than `old` leads.
async fn time_to_new_leader(cluster: &Cluster, old: usize, since: Instant) -> Duration {
    let (leader, _) = cluster.leader_except(Some(old)).await;
    assert_ne!(leader, old);
    since.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_is_there_within_two_election_timeouts() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        let mut times = Vec::new();
        for _ in 0..4 {
            let leader = cluster.leader().await;
            cluster.members[leader].kill();
            times.push(time_to_new_leader(&cluster, leader, Instant::now()).await);
            cluster.members[leader].restart().await;
            cluster.members[leader].answers().await;
        }
        times.sort();
        eprintln!("new leader after {times:?}");
        // A split vote costs one more round, and this machine is busy: one of four may be late.
        assert!(times[2] <= 2 * ELECTION_TIMEOUT, "{times:?}");
        assert!(times[3] <= 4 * ELECTION_TIMEOUT, "{times:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_hands_leadership_over() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        let client = cluster.members[0].client();
        client.put("a", "1").await.unwrap();
        let leader = cluster.leader().await;
        let (_, term) = cluster.leader_except(None).await;
        let start = Instant::now();
        cluster.members[leader].signal(rustix::process::Signal::TERM);
        let (new, new_term) = loop {
            let (new, new_term) = cluster.leader_except(Some(leader)).await;
            if new != leader {
                break (new, new_term);
            }
        };
        let time = start.elapsed();
        assert_ne!(new, leader);
        assert_eq!(new_term, term + 1, "exactly one election");
        assert!(
            time < deadline(Duration::from_millis(500)),
            "the new leader came after {time:?}"
        );
        let status = cluster.members[leader]
            .wait_for_exit("it got SIGTERM", Duration::from_secs(3))
            .await;
        assert_ended_by_request(status);
        if subject() == Program::MetaStore {
            cluster.members[leader].assert_log_is_clean();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_and_sigint_end_a_single_member_with_status_zero() {
    within(async {
        for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
            let mut member = Member::start(subject()).await;
            member.client().put("a", "1").await.unwrap();
            member.signal(signal);
            let status = member
                .wait_for_exit("of a signal", Duration::from_secs(3))
                .await;
            assert_ended_by_request(status);
            member.restart().await;
            let (pair, _) = member.client().get("a").await.unwrap();
            assert_eq!(pair.unwrap().value, "1");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_quorum_only_serializable_reads_are_answered() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        let client = cluster.members[0].client();
        client.put("a", "1").await.unwrap();
        eventually("the member has the key", Duration::from_secs(5), || async {
            let (pair, _) = client
                .get_serializable("a")
                .await
                .map_err(|e| e.to_string())?;
            pair.map(drop).ok_or_else(|| "not yet".to_owned())
        })
        .await;

        let (requests, receiver) = tokio::sync::mpsc::unbounded_channel();
        let create = pb::WatchCreateRequest {
            key: "a".into(),
            ..Default::default()
        };
        requests
            .send(pb::WatchRequest {
                request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
            })
            .unwrap();
        let mut request = tonic::Request::new(
            tokio_stream::wrappers::UnboundedReceiverStream::new(receiver),
        );
        request
            .metadata_mut()
            .insert("hasleader", "true".parse().unwrap());
        let mut watch = client
            .watch
            .clone()
            .watch(request)
            .await
            .unwrap()
            .into_inner();
        assert!(watch.message().await.unwrap().unwrap().created);

        let mut lost_ids = Vec::new();
        for lost in 1..=2 {
            let status = cluster.members[lost].client().status().await.unwrap();
            lost_ids.push(status.header.unwrap().member_id);
        }
        cluster.members[1].kill();
        cluster.members[2].kill();
        let lost = Instant::now();

        // The stream ends, with etcd's words.
        let status = tokio::time::timeout(deadline(Duration::from_secs(10)), watch.message())
            .await
            .expect("a stream with hasleader ends without a leader")
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert_eq!(status.message(), "etcdserver: no leader");

        let mut request = tonic::Request::new(pb::PutRequest {
            key: "a".into(),
            ..Default::default()
        });
        request
            .metadata_mut()
            .insert("hasleader", "true".parse().unwrap());
        let status = client.kv.clone().put(request).await.unwrap_err();
        assert_eq!(status.message(), "etcdserver: no leader");

        let (pair, _) = client.get_serializable("a").await.unwrap();
        assert_eq!(pair.unwrap().value, "1");
        assert_eq!(client.status().await.unwrap().leader, 0);

        // Without hasleader a write waits for etcd's seven seconds.
        let start = Instant::now();
        let status = tokio::time::timeout(deadline(Duration::from_secs(12)), client.put("a", "2"))
            .await
            .expect("a write without quorum ends")
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
        assert_eq!(status.message(), "context deadline exceeded");
        assert!(
            start.elapsed() > Duration::from_secs(5),
            "gave up after {:?}",
            start.elapsed()
        );
        let status = tokio::time::timeout(deadline(Duration::from_secs(12)), client.get("a"))
            .await
            .expect("a linearizable read without quorum ends")
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert!(
            status
                .message()
                .starts_with("etcdserver: request timed out"),
            "{status}"
        );
        // Members judge by their own connections: a change is refused at once.
        let mut changes = client.cluster.clone();
        for is_learner in [false, true] {
            let addition = pb::MemberAddRequest {
                peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()],
                is_learner,
            };
            let status = changes.member_add(addition).await.unwrap_err();
            assert_eq!(status.message(), "etcdserver: unhealthy cluster");
        }
        let promotion = pb::MemberPromoteRequest { id: 1 };
        let status = changes.member_promote(promotion).await.unwrap_err();
        assert_eq!(status.message(), "etcdserver: no leader");
        // Other changes have all the time that the client gives them; what no client needs takes it all.
        let removal = pb::MemberRemoveRequest { id: lost_ids[0] };
        let update = pb::MemberUpdateRequest {
            id: lost_ids[1],
            peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()],
        };
        let mut removing = client.cluster.clone();
        let patience = Duration::from_millis(8500);
        let (removed, updated) = tokio::join!(
            tokio::time::timeout(patience, removing.member_remove(removal)),
            tokio::time::timeout(patience, changes.member_update(update)),
        );
        assert!(removed.is_err(), "answered: {removed:?}");
        assert!(updated.is_err(), "answered: {updated:?}");
        eprintln!("without quorum for {:?}", lost.elapsed());

        cluster.restart_all().await;
        cluster.members[0].answers().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_leases_live_and_others_end() {
    within(async {
        const TTL: i64 = 4;
        let mut cluster = Cluster::start(subject(), 3).await;
        let leader = cluster.leader().await;
        let follower = (leader + 1) % 3;
        let client = cluster.members[follower].client();
        let mut lease = client.lease.clone();
        for id in [1, 2] {
            lease
                .lease_grant(pb::LeaseGrantRequest { id, ttl: TTL })
                .await
                .unwrap();
            let put = pb::PutRequest {
                key: format!("k{id}").into(),
                lease: id,
                ..Default::default()
            };
            client.kv.clone().put(put).await.unwrap();
        }
        let granted = Instant::now();
        cluster.members[leader].kill();

        // Lease 1 is renewed at a follower, each second, until long after its TTL.
        let mut renewals = tokio::time::interval(Duration::from_secs(1));
        let mut renewed = 0;
        let mut last_renewal = Instant::now();
        let mut gone_after = None;
        while granted.elapsed() < Duration::from_secs(4 * TTL.unsigned_abs()) {
            renewals.tick().await;
            let requests = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: 1 }]);
            if let Ok(Ok(answer)) =
                tokio::time::timeout(Duration::from_secs(1), lease.lease_keep_alive(requests)).await
                && let Ok(Some(answer)) = answer.into_inner().message().await
            {
                // Where the machine paused this test for too long, the lease may end.
                let age = last_renewal.elapsed();
                assert!(
                    answer.ttl == TTL,
                    "lease 1 ended, {age:?} after it was renewed"
                );
                renewed += 1;
                last_renewal = Instant::now();
            }
            if let Ok((pair, _)) = client.get("k2").await
                && pair.is_none()
                && gone_after.is_none()
            {
                gone_after = Some(granted.elapsed());
            }
        }
        assert!(renewed > 5, "{renewed} renewals");
        let (pair, _) = client.get("k1").await.unwrap();
        assert!(pair.is_some(), "the renewed lease ended");
        let gone_after = gone_after.expect("the lease that nobody renewed ends");
        let ttl = Duration::from_secs(TTL.unsigned_abs());
        assert!(gone_after >= ttl, "ended after {gone_after:?}");
        eprintln!("a lease of {ttl:?} ended after {gone_after:?} over a leader change");
        cluster.members[leader].restart().await;
        cluster.assert_equal_hashes().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_lease_deletes_its_keys_at_one_revision() {
    within(async {
        let member = Member::start(subject()).await;
        let client = member.client();
        client
            .lease
            .clone()
            .lease_grant(pb::LeaseGrantRequest { id: 5, ttl: 2 })
            .await
            .unwrap();
        let granted = Instant::now();
        let keys = ["b", "a", "c"];
        for key in keys {
            let put = pb::PutRequest {
                key: key.into(),
                lease: 5,
                ..Default::default()
            };
            client.kv.clone().put(put).await.unwrap();
        }
        let (requests, receiver) = tokio::sync::mpsc::unbounded_channel();
        let create = pb::WatchCreateRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            ..Default::default()
        };
        requests
            .send(pb::WatchRequest {
                request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
            })
            .unwrap();
        let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
        let mut watch = client
            .watch
            .clone()
            .watch(stream)
            .await
            .unwrap()
            .into_inner();
        assert!(watch.message().await.unwrap().unwrap().created);
        let events = tokio::time::timeout(deadline(Duration::from_secs(10)), watch.message())
            .await
            .expect("the lease ends")
            .unwrap()
            .unwrap()
            .events;
        let after = granted.elapsed();
        assert!(after >= Duration::from_secs(2), "too early: {after:?}");
        assert!(
            after <= deadline(Duration::from_secs(5)),
            "too late: {after:?}"
        );
        let deleted: Vec<_> = events
            .iter()
            .map(|event| event.kv.as_ref().unwrap().decode().unwrap())
            .map(|pair| (pair.key, pair.mod_revision))
            .collect();
        assert_eq!(deleted, [("a".into(), 5), ("b".into(), 5), ("c".into(), 5)]);
    })
    .await;
}

/// Resident memory of a process, in bytes.
fn resident_bytes(member: &Member) -> u64 {
    let id = member.process_id().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kibibytes * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_watchers_cost_no_memory() {
    const VALUE_BYTES: usize = 100_000;
    const WRITES: usize = 600;
    const WATCHERS: usize = 20;
    within(async {
        let member = Member::start(subject()).await;
        let client = member.client();
        // Streams that are never read: HTTP/2's flow control stops them after 64 KiB or so.
        let mut streams = Vec::new();
        for _ in 0..WATCHERS {
            let slow = member.client();
            let (requests, receiver) = tokio::sync::mpsc::unbounded_channel();
            let create = pb::WatchCreateRequest {
                key: "big".into(),
                prev_kv: true,
                ..Default::default()
            };
            requests
                .send(pb::WatchRequest {
                    request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
                })
                .unwrap();
            let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
            let mut watch = slow.watch.clone().watch(stream).await.unwrap().into_inner();
            assert!(watch.message().await.unwrap().unwrap().created);
            streams.push((requests, watch));
        }
        let before = resident_bytes(&member);
        for number in 0..WRITES {
            let value = vec![u8::try_from(number % 251).unwrap(); VALUE_BYTES];
            client.put("big", value).await.unwrap();
        }
        let growth = resident_bytes(&member).saturating_sub(before);
        eprintln!(
            "{WATCHERS} slow watchers, {} MB written: grew by {} MB",
            VALUE_BYTES * WRITES / 1_000_000,
            growth / 1_000_000
        );
        if subject() == Program::MetaStore {
            // Unbounded queues would hold 20 × 60 MB and more. What grows is the engine's and the
            // log's caches, which have limits of their own.
            assert!(growth < 300_000_000, "grew by {growth} bytes");
        }
        // And they miss nothing.
        let (_requests, mut watch) = streams.pop().unwrap();
        let mut seen = 0;
        while seen < WRITES {
            let response = tokio::time::timeout(deadline(Duration::from_secs(20)), watch.message())
                .await
                .expect("the slow watcher catches up")
                .unwrap()
                .unwrap();
            seen += response.events.len();
        }
        assert_eq!(seen, WRITES);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_answer_linearizable_reads() {
    within(async {
        let cluster = Cluster::start(subject(), 3).await;
        let clients: Vec<Client> = cluster.clients();
        for number in 0..60_usize {
            let revision = clients[number % 3]
                .put("a", number.to_string())
                .await
                .unwrap();
            let (pair, seen) = clients[(number + 1) % 3].get("a").await.unwrap();
            assert!(
                seen >= revision,
                "read at {seen} after a write at {revision}"
            );
            assert_eq!(pair.unwrap().value, number.to_string());
        }
    })
    .await;
}
