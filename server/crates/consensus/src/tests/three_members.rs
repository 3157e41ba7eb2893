//! Three members that are well.

use std::time::Duration;

use bytes::Bytes;

use super::cluster::{Cluster, ECHO, FORWARD, HANG, PATIENCE, eventually, in_time, test_options};
use crate::{PeerError, ProposeError, TransferError};

#[tokio::test(flavor = "multi_thread")]
async fn three_members_elect_replicate_forward_and_read_everywhere() {
    let cluster = Cluster::of(3, test_options()).await;
    let leader = cluster.leader().await;
    let follower = leader % 3 + 1;
    cluster.propose("direct").await;
    let refused = cluster.consensus(follower).propose(Bytes::new()).await;
    assert_eq!(
        refused.err(),
        Some(ProposeError::NotLeader {
            leader: cluster.consensus(follower).leader()
        })
    );
    let forwarded = cluster
        .consensus(follower)
        .call_peer(leader, FORWARD, Bytes::from_static(b"forwarded"), PATIENCE)
        .await
        .unwrap();
    let index = u64::from_le_bytes(forwarded[..].try_into().unwrap());
    for member in 1..=3 {
        let read = in_time("a read", cluster.read(member)).await;
        assert_eq!(read, ["direct", "forwarded"]);
        assert!(cluster.consensus(member).applied_index() >= index);
    }
    let progress = cluster.consensus(leader).progress();
    assert_eq!(progress.len(), 2);
    assert!(cluster.consensus(follower).progress().is_empty());
    eventually("both followers are known to be active", || {
        cluster
            .consensus(leader)
            .progress()
            .iter()
            .all(|peer| peer.active_for.is_some() && peer.last_contact.is_some())
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_read_on_a_follower_sees_the_write_before_it() {
    let cluster = Cluster::of(3, test_options()).await;
    for number in 0..50 {
        let reply = cluster.propose(format!("{number}")).await;
        let seen = cluster.read(number % 3 + 1).await.len();
        assert!(seen > reply.earlier, "a stale read on {}", number % 3 + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_sent_once_to_each_follower() {
    let cluster = Cluster::of(3, test_options()).await;
    for _ in 0..5 {
        cluster.propose_many(1000).await;
    }
    cluster.converge().await;
    let leader = cluster.leader().await;
    let counters = cluster.consensus(leader).counters();
    for (member, peer) in &counters.peers {
        let ratio = peer.entries_sent as f64 / counters.entries_appended as f64;
        assert!(ratio <= 1.1, "entries sent to {member} {ratio} times");
        assert!(peer.round_trip.is_some());
    }
    assert_eq!(counters.peers.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_the_application_are_pipelined_and_bounded() {
    let cluster = Cluster::of(3, test_options()).await;
    let caller = cluster.consensus(1).clone();
    let hanging = {
        let caller = caller.clone();
        tokio::spawn(async move {
            caller
                .call_peer(2, HANG, Bytes::new(), Duration::from_millis(300))
                .await
        })
    };
    let calls = (0..2000_u32).map(|number| {
        let body = Bytes::copy_from_slice(&number.to_le_bytes());
        caller.call_peer(2, ECHO, body, PATIENCE)
    });
    let answers = in_time("the answers", futures::future::join_all(calls)).await;
    for (number, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.unwrap()[..], (number as u32).to_le_bytes());
    }
    assert_eq!(hanging.await.unwrap(), Err(PeerError::TimedOut));
    assert_eq!(
        caller.call_peer(2, 99, Bytes::new(), PATIENCE).await,
        Err(PeerError::Remote("no method 99".into()))
    );
    assert!(matches!(
        caller.call_peer(77, ECHO, Bytes::new(), PATIENCE).await,
        Err(PeerError::Unreachable { member: 77, .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_command_travels_alone() {
    let cluster = Cluster::of(3, test_options()).await;
    let large = vec![b'x'; 5 * 1024 * 1024];
    cluster.propose(large.clone()).await;
    cluster.propose("small").await;
    cluster.converge().await;
    for member in cluster.members.values() {
        assert_eq!(member.toy.commands(), [&large[..], b"small"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leadership_is_handed_over() {
    let cluster = Cluster::of(3, test_options()).await;
    let leader = cluster.leader().await;
    let target = leader % 3 + 1;
    cluster.propose_many(100).await;
    let old = cluster.consensus(leader);
    assert_eq!(
        old.transfer_leader(9, PATIENCE).await,
        Err(TransferError::BadTarget(9))
    );
    old.transfer_leader(leader, PATIENCE).await.unwrap();
    assert_eq!(cluster.leader().await, leader);
    old.transfer_leader(target, PATIENCE).await.unwrap();
    assert_eq!(cluster.leader().await, target);
    assert_eq!(
        old.transfer_leader(leader, PATIENCE).await,
        Err(TransferError::NotLeader {
            leader: Some(target)
        })
    );
    cluster.propose("after").await;
    cluster.converge().await;
    eventually("the change is counted", || {
        (old.counters().leader_changes >= 2).then_some(())
    })
    .await;
}
