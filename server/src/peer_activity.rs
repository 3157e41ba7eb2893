//! Since when each other member answers this one, and the log lines by which an operator learns that one
//! does not.
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
/// Pause between two warnings about a member that does not answer: etcd's `statusErrorInterval`.
const WARNING_INTERVAL: Duration = Duration::from_secs(5);

/// Whether each member answers, and since when.
#[derive(Default)]
pub struct PeerActivity {
    contacts: Mutex<HashMap<u64, Contact>>,
}

/// What is known of one member.
#[derive(Clone, Copy)]
enum Contact {
    /// It answers without a break.
    Active { since: Instant },
    /// It does not, or did not yet.
    Silent { warn_at: Instant },
}

impl PeerActivity {
    /// How long `member` has been answering; `None`: it does not answer.
    pub fn active_for(&self, member: u64) -> Option<Duration> {
        match self.contacts.lock().get(&member) {
            Some(Contact::Active { since }) => Some(since.elapsed()),
            _ => None,
        }
    }

    fn answered(&self, member: u64) {
        let mut contacts = self.contacts.lock();
        if matches!(contacts.get(&member), Some(Contact::Active { .. })) {
            return;
        }
        let since = Instant::now();
        contacts.insert(member, Contact::Active { since });
        drop(contacts);
        tracing::info!("peer-id" = format!("{member:x}"), "peer became active");
    }

    fn silent(&self, local: u64, member: u64, error: &PeerError) {
        let now = Instant::now();
        let silent = Contact::Silent {
            warn_at: now + WARNING_INTERVAL,
        };
        let before = {
            let mut contacts = self.contacts.lock();
            match contacts.get(&member).copied() {
                Some(Contact::Silent { warn_at }) if now < warn_at => return,
                _ => contacts.insert(member, silent),
            }
        };
        // Etcd's words, which runbooks look for.
        let (local, remote) = (format!("{local:x}"), format!("{member:x}"));
        match before {
            // The others of a new cluster start at about the same time.
            None => {}
            Some(Contact::Active { .. }) => {
                METRICS
                    .disconnected_peers
                    .with_label_values(&[&local, &remote])
                    .inc();
                tracing::warn!(
                    "peer-id" = remote,
                    %error,
                    "peer became inactive (message send to peer failed)"
                );
            }
            Some(Contact::Silent { .. }) => tracing::warn!(
                "round-tripper-name" = "ROUND_TRIPPER_RAFT_MESSAGE",
                "remote-peer-id" = remote,
                %error,
                "prober detected unhealthy status"
            ),
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
            .contacts
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
    match answer {
        // A member that answers with an error, for instance while it starts, is reachable.
        Ok(_) | Err(PeerError::Remote(_)) => {
            METRICS
                .peer_round_trip
                .with_label_values(&[format!("{member:x}")])
                .observe(started.elapsed().as_secs_f64());
            node.peers.answered(member);
        }
        Err(PeerError::Stopped) => {}
        Err(error) => node.peers.silent(node.member_id, member, &error),
    }
}
