//! Since when each other member answers this one.
//!
//! etcd keeps a connection between every two members and judges by its age whether a change of the
//! members is safe. Consensus only hears from peers while this member leads, so a new leader would
//! take a healthy cluster for a sick one for five seconds: members ask each other instead.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metastore_consensus::PeerError;
use parking_lot::Mutex;

use crate::node::Node;
use crate::observe::metrics::METRICS;
use crate::peer_service::Method;

/// Pause between two questions.
const INTERVAL: Duration = Duration::from_millis(500);
/// A member that takes longer does not count as connected.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Since when each member answers without a break.
#[derive(Default)]
pub struct PeerActivity {
    since: Mutex<HashMap<u64, Instant>>,
}

impl PeerActivity {
    /// How long `member` has been answering; `None`: it does not answer.
    pub fn active_for(&self, member: u64) -> Option<Duration> {
        self.since.lock().get(&member).map(Instant::elapsed)
    }

    fn note(&self, local: u64, member: u64, answered: bool) {
        let mut since = self.since.lock();
        if answered {
            since.entry(member).or_insert_with(Instant::now);
        } else if since.remove(&member).is_some() {
            drop(since);
            let (local, remote) = (format!("{local:x}"), format!("{member:x}"));
            METRICS
                .disconnected_peers
                .with_label_values(&[local, remote])
                .inc();
        }
    }
}

/// Asks every other member from time to time.
pub async fn run(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !*node.stopping.borrow() {
        ticks.tick().await;
        let directory = node.application.directory.current();
        let questions = directory
            .members
            .keys()
            .filter(|id| **id != node.member_id)
            .map(|id| ask(&node, *id));
        futures::future::join_all(questions).await;
        node.peers
            .since
            .lock()
            .retain(|id, _| directory.members.contains_key(id));
    }
}

async fn ask(node: &Arc<Node>, member: u64) {
    let started = Instant::now();
    let answer = node
        .consensus
        .call_peer(member, Method::Ping as u32, Bytes::new(), ANSWER_TIMEOUT)
        .await;
    // A member that answers with an error, for instance while it starts, is reachable.
    let answered = matches!(answer, Ok(_) | Err(PeerError::Remote(_)));
    if answered {
        METRICS
            .peer_round_trip
            .with_label_values(&[format!("{member:x}")])
            .observe(started.elapsed().as_secs_f64());
    }
    node.peers.note(node.member_id, member, answered);
}
