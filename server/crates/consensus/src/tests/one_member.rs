//! A cluster of one.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::cluster::{Cluster, eventually, in_time, test_options};
use super::toy::ToyReply;
use crate::error::InitializeError;
use crate::{ProposeError, ReadIndexError};

#[tokio::test(flavor = "multi_thread")]
async fn a_sole_member_elects_itself_proposes_and_reads() {
    let cluster = Cluster::of(1, test_options()).await;
    let consensus = cluster.consensus(1);
    let first = ToyReply::of(consensus.propose(Bytes::from_static(b"a")).await.unwrap());
    let second = ToyReply::of(consensus.propose(Bytes::from_static(b"b")).await.unwrap());
    assert_eq!((first.earlier, second.earlier), (0, 1));
    let read = consensus.read_index().await.unwrap();
    assert!(read.index.unwrap().index >= second.position.index);
    assert_eq!(cluster.read(1).await.len(), 2);
    let status = consensus.status();
    assert!(status.is_leader && !status.is_learner);
    assert_eq!(status.leader, Some(1));
    assert_eq!(status.applied.unwrap().index, second.position.index);
    assert_eq!(consensus.term(), status.term);
    assert!(consensus.progress().is_empty());
    // Initialising again changes nothing.
    consensus.initialize([1].into()).await.unwrap();
    assert_eq!(consensus.counters().proposals, 2);
    assert_eq!(consensus.counters().proposals_pending, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_a_sole_member_see_every_acknowledged_write_and_need_no_round() {
    let cluster = Cluster::of(1, test_options()).await;
    let consensus = cluster.consensus(1);
    for number in 0..200 {
        let reply = ToyReply::of(consensus.propose(format!("{number}").into()).await.unwrap());
        assert_eq!(cluster.read(1).await.len(), reply.earlier + 1);
    }
    let rounds = consensus.counters().read_index_rounds;
    assert!(rounds <= 1, "{rounds} rounds: the short cut is not taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_member_applies_its_log_again() {
    let mut cluster = Cluster::of(1, test_options()).await;
    cluster.propose_many(600).await;
    assert!(cluster.member(1).toy.largest_chunk.load(Ordering::Relaxed) <= 256);
    let before = cluster.member(1).toy.commands();
    let term = cluster.consensus(1).term();
    cluster.stop(1).await;
    cluster.start(1);
    assert_eq!(cluster.read(1).await, before);
    assert!(
        cluster.consensus(1).term() > term,
        "a restarted leader must win again"
    );
    assert_eq!(cluster.propose("after").await.earlier, before.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_for_another_term_is_refused() {
    let cluster = Cluster::of(1, test_options()).await;
    let consensus = cluster.consensus(1);
    let term = consensus.term();
    consensus
        .propose_in_term(Bytes::from_static(b"now"), term)
        .await
        .unwrap();
    let refused = consensus
        .propose_in_term(Bytes::from_static(b"then"), term - 1)
        .await
        .err();
    assert_eq!(refused, Some(ProposeError::NotLeader { leader: None }));
    assert_eq!(cluster.read(1).await, ["now"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_member_answers_stopped() {
    let mut cluster = Cluster::of(1, test_options()).await;
    let consensus = cluster.consensus(1).clone();
    cluster.stop(1).await;
    let proposed = in_time("an answer", consensus.propose(Bytes::from_static(b"late"))).await;
    assert!(matches!(
        proposed.err(),
        Some(ProposeError::Stopped | ProposeError::NotLeader { .. })
    ));
    let in_term = in_time(
        "an answer",
        consensus.propose_in_term(Bytes::from_static(b"late"), 1),
    )
    .await;
    assert_eq!(in_term.err(), Some(ProposeError::Stopped));
    let read = in_time("an answer", consensus.inner_rounds()).await;
    assert_eq!(read.err(), Some(ReadIndexError::Stopped));
    assert_eq!(
        in_time("an answer", consensus.initialize([1].into())).await,
        Err(InitializeError::Stopped)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_state_machine_is_fatal() {
    let cluster = Cluster::of(1, test_options()).await;
    let consensus = cluster.consensus(1);
    let failed = in_time("an answer", consensus.propose(Bytes::from_static(b"fail"))).await;
    assert!(matches!(
        failed.err(),
        Some(ProposeError::Unknown | ProposeError::Stopped)
    ));
    let message = eventually("the owner is told", || {
        cluster.member(1).told.fatal.lock().clone()
    })
    .await;
    assert!(message.contains("told to fail"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_not_among_the_voters_cannot_initialize() {
    let mut cluster = Cluster::new(test_options());
    cluster.start(1);
    assert_eq!(
        cluster.consensus(1).initialize([2, 3].into()).await,
        Err(InitializeError::NotAMember)
    );
}
