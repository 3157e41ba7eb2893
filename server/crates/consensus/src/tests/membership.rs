//! Members that come and go.

use std::time::Duration;

use bytes::Bytes;

use super::cluster::{Cluster, eventually, in_time, test_options};
use super::toy::ToyReply;
use crate::{ChangeError, ConsensusOptions, MembershipChange, ReadIndexError};

async fn change(
    cluster: &Cluster,
    leader: u64,
    change: MembershipChange,
    command: &str,
) -> Result<ToyReply, ChangeError> {
    let command = Bytes::copy_from_slice(command.as_bytes());
    in_time(
        "a membership change",
        cluster.consensus(leader).change_membership(change, command),
    )
    .await
    .map(ToyReply::of)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_one_grows_to_three_by_learners() {
    let mut cluster = Cluster::of(1, test_options()).await;
    cluster.propose_many(100).await;
    for member in [2, 3] {
        cluster.start(member);
        change(&cluster, 1, MembershipChange::AddLearner(member), "add")
            .await
            .unwrap();
        let last = cluster.propose(format!("learner {member}")).await.position;
        eventually("the learner has caught up", || {
            let progress = cluster.consensus(1).progress();
            let learner = progress.iter().find(|peer| peer.id == member)?;
            (learner.matched? >= last).then_some(())
        })
        .await;
        eventually("the learner knows what it is", || {
            let status = cluster.consensus(member).status();
            (status.is_learner && status.leader == Some(1)).then_some(())
        })
        .await;
        // Learners serve linearizable reads, too, as far as consensus is concerned.
        assert!(!cluster.read(member).await.is_empty());
        change(&cluster, 1, MembershipChange::Promote(member), "promote")
            .await
            .unwrap();
    }
    cluster.converge().await;
    let status = cluster.consensus(1).status();
    assert_eq!(status.voters, [1, 2, 3].into());
    assert!(status.learners.is_empty());
    cluster.propose("with three").await;
    cluster.stop(1).await;
    cluster.leader().await;
    assert_eq!(cluster.read(2).await.len(), 103);
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_changes_are_refused_with_their_reason() {
    let mut cluster = Cluster::of(1, test_options()).await;
    use MembershipChange::{AddLearner, Promote, Remove};
    for (impossible, error) in [
        (AddLearner(1), ChangeError::Exists(1)),
        (Promote(1), ChangeError::NotLearner(1)),
        (Promote(5), ChangeError::NotFound(5)),
        (Remove(5), ChangeError::NotFound(5)),
        (Remove(1), ChangeError::LastVoter),
    ] {
        assert_eq!(
            change(&cluster, 1, impossible, "").await,
            Err(error),
            "{impossible:?}"
        );
    }
    cluster.start(2);
    change(&cluster, 1, AddLearner(2), "add").await.unwrap();
    eventually("the learner hears of the leader", || {
        (cluster.consensus(2).leader() == Some(1)).then_some(())
    })
    .await;
    assert_eq!(
        change(&cluster, 2, Remove(1), "").await,
        Err(ChangeError::NotLeader { leader: Some(1) })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_without_a_majority_times_out() {
    let options = ConsensusOptions {
        change_timeout: Duration::from_millis(500),
        ..test_options()
    };
    let cluster = Cluster::of(1, options).await;
    // Member 9 does not run, so the new majority of two is never there.
    change(&cluster, 1, MembershipChange::AddLearner(9), "")
        .await
        .unwrap();
    assert_eq!(
        change(&cluster, 1, MembershipChange::Promote(9), "").await,
        Err(ChangeError::TimedOut)
    );
    // The sole voter's short cut must not answer any more.
    let read = in_time("a read", cluster.consensus(1).read_index()).await;
    assert!(
        matches!(
            read,
            Err(ReadIndexError::TimedOut | ReadIndexError::NoLeader)
        ),
        "{read:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_voter_is_told() {
    let cluster = Cluster::of(3, test_options()).await;
    let leader = cluster.leader().await;
    let removed = leader % 3 + 1;
    change(
        &cluster,
        leader,
        MembershipChange::Remove(removed),
        &format!("remove {removed}"),
    )
    .await
    .unwrap();
    eventually("the removed member is told", || {
        (*cluster.member(removed).told.removed.lock()).then_some(())
    })
    .await;
    cluster
        .consensus(leader)
        .propose(Bytes::from_static(b"on"))
        .await
        .unwrap();
    assert!(!*cluster.member(leader).told.removed.lock());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_learner_is_told() {
    let mut cluster = Cluster::of(1, test_options()).await;
    cluster.start(2);
    change(&cluster, 1, MembershipChange::AddLearner(2), "add")
        .await
        .unwrap();
    eventually("the learner hears of the leader", || {
        (cluster.consensus(2).leader() == Some(1)).then_some(())
    })
    .await;
    change(&cluster, 1, MembershipChange::Remove(2), "remove 2")
        .await
        .unwrap();
    eventually("the removed learner is told", || {
        (*cluster.member(2).told.removed.lock()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_removes_itself_makes_room() {
    let cluster = Cluster::of(3, test_options()).await;
    let leader = cluster.leader().await;
    change(
        &cluster,
        leader,
        MembershipChange::Remove(leader),
        &format!("remove {leader}"),
    )
    .await
    .unwrap();
    // It leads for a moment longer.
    assert_eq!(
        change(&cluster, leader, MembershipChange::AddLearner(4), "add 4").await,
        Err(ChangeError::NotLeader { leader: None }),
        "a removed leader changes nothing"
    );
    let others: Vec<u64> = (1..=3).filter(|member| *member != leader).collect();
    let next = eventually("the others have a leader", || {
        let named = cluster.consensus(others[0]).leader()?;
        (named != leader && cluster.consensus(others[1]).leader() == Some(named)).then_some(named)
    })
    .await;
    in_time(
        "a proposal",
        cluster.consensus(next).propose(Bytes::from_static(b"on")),
    )
    .await
    .unwrap();
    eventually("the removed leader is told", || {
        (*cluster.member(leader).told.removed.lock()).then_some(())
    })
    .await;
}
