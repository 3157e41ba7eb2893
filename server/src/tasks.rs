//! What a running member does by itself: publishes its name, lets leases expire, calls for alarms.

use std::sync::Arc;
use std::time::Duration;

use metastore_proto::etcdserverpb::LeaseCheckpointRequest;
use metastore_proto::internal::command::Request;
use metastore_proto::internal::{Bootstrap, MemberPublish};

use crate::lease_leadership;
use crate::node::Node;
use crate::observe::metrics::{METRICS, process};

/// How often a leader looks for expired leases; etcd's `500 ms`.
const LEASE_TICK: Duration = Duration::from_millis(500);
/// Expired leases that one look proposes to revoke; with [`LEASE_TICK`] 1000 per second.
const REVOKES_PER_TICK: usize = 500;
/// How often expired tokens are forgotten; how long they count is exact whatever this is.
const TOKEN_TICK: Duration = Duration::from_secs(1);
/// Looks for due progress notices in one progress interval.
const PROGRESS_LOOKS: u32 = 10;
/// How often open files are counted; etcd's interval.
const FILES_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Pause before a proposal of the member's own is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Proposes until it is committed.
async fn propose_until_done(node: &Arc<Node>, request: Request, what: &str) {
    while !*node.stopping.borrow() {
        match node.propose(request.clone()).await {
            Ok(_) => return,
            Err(error) => tracing::warn!(%error, what, "failed to propose, will try again"),
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Follows the leadership: lease hand-over and the duties of a new leader.
pub async fn follow_leadership(node: Arc<Node>, bootstrap: Option<Bootstrap>) {
    let mut status = node.watch_status();
    let mut led_term = None;
    let mut known_leader = None;
    loop {
        let (leader, is_leader, term) = {
            let current = status.borrow_and_update();
            (current.leader, current.is_leader, current.term)
        };
        if leader != known_leader {
            if leader.is_some() {
                node.note_election();
                tracing::info!(
                    "local-member-id" = format!("{:x}", node.member_id),
                    leader = leader.map(|id| format!("{id:x}")),
                    term,
                    "elected leader"
                );
            } else {
                tracing::warn!(
                    "local-member-id" = format!("{:x}", node.member_id),
                    term,
                    "lost leader"
                );
            }
            known_leader = leader;
        }
        if is_leader && led_term != Some(term) {
            led_term = Some(term);
            let node = Arc::clone(&node);
            let bootstrap = bootstrap.clone();
            tokio::spawn(async move { take_over(&node, term, bootstrap).await });
        } else if !is_leader && led_term.is_some() {
            led_term = None;
            node.application.leases.demote();
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

async fn take_over(node: &Arc<Node>, term: u64, bootstrap: Option<Bootstrap>) {
    let extend = node.config.election_timeout;
    if !lease_leadership::take_over(&node.consensus, &node.application.leases, term, extend).await {
        return;
    }
    let directory = node.application.directory.current();
    if let Some(bootstrap) = bootstrap
        && directory.members.is_empty()
    {
        propose_until_done(node, Request::Bootstrap(bootstrap), "bootstrap").await;
    }
}

/// Makes this member's name and client URLs known, once it is in the directory.
pub async fn publish(node: Arc<Node>) {
    let wanted = MemberPublish {
        id: node.member_id,
        name: node.config.name.clone(),
        client_urls: node
            .config
            .advertise_client_urls
            .iter()
            .map(ToString::to_string)
            .collect(),
    };
    while !*node.stopping.borrow() {
        let known = {
            let directory = node.application.directory.current();
            directory.members.get(&node.member_id).map(|member| {
                member.name == wanted.name && member.client_urls == wanted.client_urls
            })
        };
        match known {
            Some(true) => {
                tracing::info!(
                    "local-member-id" = format!("{:x}", node.member_id),
                    "published local member to cluster through raft"
                );
                return;
            }
            Some(false) => {
                propose_until_done(&node, Request::MemberPublish(wanted.clone()), "publish").await;
            }
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Lets leases expire while this member leads.
pub async fn expire_leases(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(LEASE_TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if *node.stopping.borrow() {
            return;
        }
        if !node.is_leader() {
            continue;
        }
        let term = node.term();
        let checkpoints = node.application.leases.due_checkpoints();
        if !checkpoints.is_empty() {
            let request = Request::LeaseCheckpoint(LeaseCheckpointRequest { checkpoints });
            let node = Arc::clone(&node);
            // A lost one does no harm: the lease has its next turn in five minutes.
            tokio::spawn(async move { node.propose(request).await.map(drop) });
        }
        let timeout = node.request_timeout();
        let leases = &node.application.leases;
        let revoked =
            lease_leadership::revoke_due(&node.consensus, leases, term, timeout, REVOKES_PER_TICK)
                .await;
        METRICS.leases_expired.inc_by(revoked);
    }
}

/// Forgets expired tokens.
pub async fn expire_tokens(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(TOKEN_TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !*node.stopping.borrow() {
        ticks.tick().await;
        node.auth().remove_expired_tokens();
    }
}

/// Lets the watch hub send the periodic progress that is due.
pub async fn report_progress(node: Arc<Node>) {
    let started = tokio::time::Instant::now();
    let mut ticks =
        tokio::time::interval(node.config.watch_progress_notify_interval / PROGRESS_LOOKS);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !*node.stopping.borrow() {
        ticks.tick().await;
        let begun = tokio::time::Instant::now();
        node.application.hub.tick(started.elapsed());
        METRICS
            .watch_progress
            .observe(begun.elapsed().as_secs_f64());
    }
}

/// Raises the alarm NOSPACE when what was applied has reached this member's quota.
pub async fn watch_space(node: Arc<Node>) {
    loop {
        tokio::select! {
            () = node.application.space.overfull() => {}
            () = node.stopped() => return,
        }
        if node.application.alarms.is_full() || node.application.space.has_room_for(0) {
            continue;
        }
        tracing::warn!(
            "quota-size-bytes" = node.config.quota_backend_bytes,
            "message exceeded backend quota; raising alarm"
        );
        if let Err(error) = node.raise_no_space().await {
            tracing::warn!(%error, "failed to raise the alarm NOSPACE");
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }
}

/// Says from time to time that connections and files will run out.
pub async fn watch_files(node: Arc<Node>) {
    loop {
        if let (Some(used), Some(limit)) = (process::open_files(), process::open_files_max())
            && used >= limit / 5 * 4
        {
            tracing::warn!(used, limit, "80% of file descriptors are used");
        }
        tokio::select! {
            () = tokio::time::sleep(FILES_INTERVAL) => {}
            () = node.stopped() => return,
        }
    }
}

/// Defragments the store at the start, when that was asked for and frees enough.
pub async fn defragment_at_start(node: Arc<Node>) {
    if let Err(error) = node.defragment_at_start().await {
        tracing::error!(%error, "failed to defragment at the start");
    }
}
