//! Members that die, are cut off, or lie.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use metastore_raft_log::{Completion, LogEntry, LogPosition, LogState, RaftLog};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::cluster::{
    CLUSTER, Cluster, ECHO, PATIENCE, eventually, in_time, open_log, start_member,
    start_member_with, test_options,
};
use crate::{ConsensusOptions, EntryLog, PeerAddress, PeerError, ReadIndexError, TransferError};

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_away_catches_up() {
    let mut cluster = Cluster::of(3, test_options()).await;
    let leader = cluster.leader().await;
    let follower = leader % 3 + 1;
    cluster.propose_many(10).await;
    cluster.stop(follower).await;
    cluster.propose_many(500).await;
    cluster.start(follower);
    cluster.converge().await;
    assert_eq!(cluster.member(follower).toy.commands().len(), 510);
    assert_eq!(
        cluster.leader().await,
        leader,
        "a returning follower disturbs nobody"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leader_is_replaced_and_returns_as_a_follower() {
    let mut cluster = Cluster::of(3, test_options()).await;
    let leader = cluster.leader().await;
    cluster.propose_many(50).await;
    cluster.stop(leader).await;
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    cluster.propose_many(50).await;
    cluster.start(leader);
    cluster.converge().await;
    assert_eq!(cluster.member(leader).toy.commands().len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_restart_with_everything() {
    let mut cluster = Cluster::of(3, test_options()).await;
    cluster.propose_many(300).await;
    for member in 1..=3 {
        cluster.stop(member).await;
    }
    for member in 1..=3 {
        cluster.start(member);
    }
    cluster.leader().await;
    assert_eq!(cluster.read(2).await.len(), 300);
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_follower_is_tried_again_with_pauses() {
    let mut cluster = Cluster::of(3, test_options()).await;
    let leader = cluster.leader().await;
    let follower = leader % 3 + 1;
    cluster.stop(follower).await;
    let attempts = |cluster: &Cluster| {
        let peer = cluster.consensus(leader).counters().peers[&follower].clone();
        peer.append_streams + peer.connect_failures
    };
    // Past the first quick attempts.
    let before = attempts(&cluster);
    eventually("the leader notices", || {
        (attempts(&cluster) > before + 5).then_some(())
    })
    .await;
    let (before, started) = (attempts(&cluster), Instant::now());
    while started.elapsed() < Duration::from_secs(2) {
        cluster.propose("meanwhile").await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let rate = (attempts(&cluster) - before) as f64 / started.elapsed().as_secs_f64();
    // A heartbeat each 100 ms and a replication each 500 ms, two counts for each: 24 per second.
    assert!(rate < 60.0, "{rate} attempts per second");
    assert_eq!(
        cluster.leader_among(vec![leader, follower % 3 + 1]).await,
        leader
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_leader_reports_no_leader_and_follows_after_the_repair() {
    let cluster = Cluster::of(3, test_options()).await;
    let leader = cluster.leader().await;
    cluster.propose("before").await;
    cluster.network.isolate(leader);
    eventually("the isolated leader knows that it is alone", || {
        let status = cluster.consensus(leader).status();
        (status.leader.is_none() && !status.is_leader).then_some(())
    })
    .await;
    let read = in_time("a read on it fails", cluster.consensus(leader).read_index()).await;
    assert!(
        matches!(
            read,
            Err(ReadIndexError::TimedOut
                | ReadIndexError::LeaderChanged
                | ReadIndexError::NoLeader)
        ),
        "{read:?}"
    );
    let others: Vec<u64> = (1..=3).filter(|member| *member != leader).collect();
    let next = cluster.leader_among(others).await;
    cluster
        .consensus(next)
        .propose(Bytes::from_static(b"during"))
        .await
        .unwrap();
    cluster.network.heal();
    cluster.converge().await;
    assert_eq!(cluster.leader().await, next);
    assert_eq!(cluster.member(leader).toy.commands(), ["before", "during"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_follower_reports_no_leader_and_disturbs_nobody() {
    let cluster = Cluster::of(3, test_options()).await;
    let leader = cluster.leader().await;
    let follower = leader % 3 + 1;
    let term = cluster.consensus(leader).term();
    cluster.network.isolate(follower);
    eventually("the follower knows that it is alone", || {
        cluster.consensus(follower).leader().is_none().then_some(())
    })
    .await;
    assert_eq!(
        in_time("a read on it", cluster.consensus(follower).read_index()).await,
        Err(ReadIndexError::NoLeader)
    );
    // Long enough for some campaigns.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        cluster
            .consensus(leader)
            .propose(Bytes::from_static(b"meanwhile"))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.network.heal();
    cluster.converge().await;
    assert_eq!(cluster.leader().await, leader);
    assert_eq!(
        cluster.consensus(follower).term(),
        term,
        "pre-vote keeps the term"
    );
    // Heartbeats come through again, on a new connection: the old one is a black hole.
    eventually("the leader hears the follower's heartbeats", || {
        let progress = cluster.consensus(leader).progress();
        let peer = progress.iter().find(|peer| peer.id == follower)?;
        (peer.active_for? > 2 * test_options().election_timeout).then_some(())
    })
    .await;
    eventually("the follower hears the leader's", || {
        (cluster.consensus(follower).leader() == Some(leader)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_a_dead_connection_fails_soon_and_the_next_one_works() {
    let cluster = Cluster::of(3, test_options()).await;
    let caller = cluster.consensus(1);
    let call = || caller.call_peer(2, ECHO, Bytes::from_static(b"hello"), PATIENCE);
    assert_eq!(call().await.unwrap(), "hello");
    cluster.network.isolate(2);
    let started = Instant::now();
    let lost = call().await;
    assert!(
        matches!(
            lost,
            Err(PeerError::ConnectionLost | PeerError::Unreachable { .. })
        ),
        "{lost:?}"
    );
    assert!(started.elapsed() < PATIENCE / 3, "{:?}", started.elapsed());
    cluster.network.heal();
    assert_eq!(call().await.unwrap(), "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leadership_is_not_handed_to_a_member_that_does_not_answer() {
    let cluster = Cluster::of(3, test_options()).await;
    let leader = cluster.leader().await;
    let target = leader % 3 + 1;
    cluster.network.isolate(target);
    eventually("the leader misses the target", || {
        let progress = cluster.consensus(leader).progress();
        let target = progress.iter().find(|peer| peer.id == target)?;
        target
            .last_contact
            .is_none_or(|age| age > test_options().election_timeout)
            .then_some(())
    })
    .await;
    assert_eq!(
        cluster
            .consensus(leader)
            .transfer_leader(target, PATIENCE)
            .await,
        Err(TransferError::Unreachable(target))
    );
    cluster.propose("still").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_transfer_does_not_stop_writes() {
    let cluster = Cluster::of(3, test_options()).await;
    let leader = cluster.leader().await;
    let target = leader % 3 + 1;
    // The target is still thought to be well when the transfer begins.
    cluster.network.isolate(target);
    let timeout = Duration::from_millis(400);
    let result = cluster
        .consensus(leader)
        .transfer_leader(target, timeout)
        .await;
    assert!(
        matches!(
            result,
            Err(TransferError::TimedOut(_) | TransferError::Unreachable(_))
        ),
        "{result:?}"
    );
    cluster.network.heal();
    cluster.propose("after").await;
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_follower_gets_nothing_and_does_not_break_the_leader() {
    let mut cluster = Cluster::of(3, test_options()).await;
    let leader = cluster.leader().await;
    let follower = leader % 3 + 1;
    cluster.propose_many(50).await;
    cluster.converge().await;
    cluster.stop(follower).await;
    cluster.wipe(follower);
    cluster.start(follower);
    let before = cluster.consensus(leader).counters().peers[&follower].append_failures;
    eventually("the leader refuses the wiped member", || {
        let failures = cluster.consensus(leader).counters().peers[&follower].append_failures;
        (failures > before + 10).then_some(())
    })
    .await;
    cluster.propose("after").await;
    assert!(cluster.member(follower).toy.commands().is_empty());
    assert_eq!(*cluster.member(leader).told.fatal.lock(), None);
    assert_eq!(cluster.leader_among(vec![leader]).await, leader);
}

/// A log whose disk fails at some time.
struct FailingLog {
    log: RaftLog,
    failed: Arc<AtomicBool>,
}

impl EntryLog for FailingLog {
    fn append(&self, entries: Vec<LogEntry>, done: Completion) {
        if self.failed.load(Ordering::Relaxed) {
            done(Err(io::Error::other("the disk is gone")));
        } else {
            self.log.append(entries, done);
        }
    }

    fn state(&self) -> LogState {
        self.log.state()
    }

    fn save_vote(&self, vote: Bytes, done: Completion) {
        self.log.save_vote(vote, done);
    }

    fn save_committed(&self, committed: LogPosition) {
        self.log.save_committed(committed);
    }

    fn truncate_after(&self, last_kept: Option<LogPosition>, done: Completion) {
        self.log.truncate_after(last_kept, done);
    }

    fn purge(&self, up_to: LogPosition, done: Completion) {
        self.log.purge(up_to, done);
    }

    fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        EntryLog::read(&self.log, from, to, max_bytes)
    }

    fn close(&self) {
        self.log.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_log_is_fatal_and_acknowledges_nothing() {
    let mut cluster = Cluster::new(test_options());
    let directory = cluster.directory.path().join("1");
    let failed = Arc::new(AtomicBool::new(false));
    let log = FailingLog {
        log: open_log(&directory.join("log"), 1),
        failed: failed.clone(),
    };
    let network = &cluster.network;
    let member = start_member_with(&test_options(), 1, &directory, network, log).unwrap();
    member.consensus.initialize([1].into()).await.unwrap();
    cluster.members.insert(1, member);
    cluster.propose("before").await;
    failed.store(true, Ordering::Relaxed);
    let proposed = cluster.consensus(1).propose(Bytes::from_static(b"after"));
    assert!(in_time("an answer", proposed).await.is_err());
    let message = eventually("the owner is told", || {
        cluster.member(1).told.fatal.lock().clone()
    })
    .await;
    assert!(message.contains("the disk is gone"), "{message}");
    assert_eq!(cluster.member(1).toy.commands(), ["before"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_another_cluster_is_refused() {
    let cluster = Cluster::of(1, test_options()).await;
    let elsewhere = tempfile::tempdir().unwrap();
    // Own data directory, same network: its directory says that member 1 is its peer.
    let options = ConsensusOptions {
        cluster_id: CLUSTER + 1,
        ..test_options()
    };
    let foreign = start_member(&options, 2, elsewhere.path(), &cluster.network).unwrap();
    foreign.consensus.initialize([1, 2].into()).await.unwrap();
    eventually("the foreign member is refused", || {
        (cluster.consensus(1).counters().connections_refused > 0).then_some(())
    })
    .await;
    assert!(!*foreign.told.removed.lock());
    assert_eq!(foreign.consensus.leader(), None);
    cluster.propose("unimpressed").await;
    foreign.consensus.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_another_protocol_goes_to_the_owner_untouched() {
    let cluster = Cluster::of(1, test_options()).await;
    let Some(PeerAddress::Tcp { host, port, .. }) = cluster.network.address(1) else {
        panic!("the test network is TCP");
    };
    for request in [&b"GET /version HTTP/1.1\r\n\r\n"[..], b"metastore-peex"] {
        *cluster.member(1).told.foreign.lock() = None;
        let mut stream = TcpStream::connect((host.as_str(), port)).await.unwrap();
        stream.write_all(request).await.unwrap();
        eventually("the owner reads all of it", || {
            let seen = cluster.member(1).told.foreign.lock().clone();
            seen.filter(|seen| seen == request)
        })
        .await;
    }
    // Nonsense behind the magic line is dropped.
    let mut stream = TcpStream::connect((host.as_str(), port)).await.unwrap();
    stream.write_all(crate::PEER_MAGIC).await.unwrap();
    stream.write_all(&[0xff; 64]).await.unwrap();
    cluster.propose("unimpressed").await;
}
