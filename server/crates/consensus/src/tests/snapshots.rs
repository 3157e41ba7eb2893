//! Snapshots and what they allow to forget.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::cluster::{Cluster, eventually, in_time, test_options};
use crate::{ConsensusOptions, MembershipChange};

fn options() -> ConsensusOptions {
    ConsensusOptions {
        snapshot_entries: 100,
        snapshot_catchup_entries: 20,
        ..test_options()
    }
}

/// Proposes until the log of the leader no longer has its first entries.
async fn outgrow_the_log(cluster: &Cluster) {
    let leader = cluster.leader().await;
    for _ in 0..4 {
        let before = cluster.consensus(leader).counters().snapshots_built;
        cluster.propose_many(150).await;
        eventually("a snapshot is built", || {
            (cluster.consensus(leader).counters().snapshots_built > before).then_some(())
        })
        .await;
    }
    eventually("the log is purged", || {
        cluster.consensus(leader).log_state().purged.map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_begins_at_the_snapshot() {
    let mut cluster = Cluster::of(1, options()).await;
    outgrow_the_log(&cluster).await;
    let before = cluster.read(1).await;
    cluster.stop(1).await;
    cluster.start(1);
    assert_eq!(cluster.read(1).await, before);
    cluster.propose("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_away_too_long_gets_a_snapshot() {
    let mut cluster = Cluster::of(3, options()).await;
    let leader = cluster.leader().await;
    let follower = leader % 3 + 1;
    cluster.propose_many(5).await;
    cluster.stop(follower).await;
    outgrow_the_log(&cluster).await;
    cluster.start(follower);
    cluster.converge().await;
    assert!(
        cluster
            .member(follower)
            .toy
            .installed
            .load(Ordering::Relaxed)
            >= 1
    );
    assert!(cluster.consensus(follower).counters().snapshots_received >= 1);
    // And it goes on from there, also after a restart.
    cluster.propose_many(10).await;
    cluster.converge().await;
    cluster.stop(follower).await;
    cluster.start(follower);
    cluster.converge().await;
    assert_eq!(cluster.read(follower).await, cluster.read(leader).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_learner_begins_with_a_snapshot() {
    let mut cluster = Cluster::of(1, options()).await;
    outgrow_the_log(&cluster).await;
    cluster.start(2);
    in_time(
        "a membership change",
        cluster
            .consensus(1)
            .change_membership(MembershipChange::AddLearner(2), Bytes::from_static(b"add")),
    )
    .await
    .unwrap();
    cluster.propose("more").await;
    cluster.converge().await;
    assert!(cluster.member(2).toy.installed.load(Ordering::Relaxed) >= 1);
    eventually("the learner knows what it is", || {
        cluster.consensus(2).status().is_learner.then_some(())
    })
    .await;
}
