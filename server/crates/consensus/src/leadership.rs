//! Who leads, by contact and not by hearsay.
//!
//! openraft's leader is the one of the last vote: an isolated follower would name a dead leader for
//! ever, and an isolated leader itself. Here a leader is one with whom there was contact within an
//! election time-out: on a follower an accepted append or heartbeat, on a leader an answer of a
//! majority.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::{RaftDataMetrics, RaftServerMetrics};
use openraft::type_config::alias::WatchReceiverOf;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::apply::AppliedClock;
use crate::consensus::{ConsensusStatus, PeerProgress};
use crate::raft_types::{StoredMembership, TypeConfig, position};
use crate::state_machine::LogPosition;

type Watched<T> = WatchReceiverOf<TypeConfig, T>;

/// The leader that this member last heard from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heard {
    leader: u64,
    term: u64,
    at: Instant,
}

/// The followers' part of the contact clock.
#[derive(Default)]
pub(crate) struct Contact {
    heard: Mutex<Option<Heard>>,
}

impl Contact {
    /// Notes that an append or a heartbeat of `leader` was accepted.
    pub(crate) fn heard_from(&self, leader: u64, term: u64) {
        let now = Instant::now();
        let mut heard = self.heard.lock();
        if heard.is_none_or(|before| before.term <= term) {
            *heard = Some(Heard {
                leader,
                term,
                at: now,
            });
        }
    }

    fn age(&self, leader: u64, term: u64) -> Option<Duration> {
        let heard = *self.heard.lock();
        heard
            .filter(|heard| heard.leader == leader && heard.term == term)
            .map(|heard| heard.at.elapsed())
    }

    /// Time since any leader was heard; `None`: never.
    pub(crate) fn silence(&self) -> Option<Duration> {
        let heard = *self.heard.lock();
        heard.map(|heard| heard.at.elapsed())
    }
}

/// Since when this member leads, and since when its peers answer.
#[derive(Default)]
struct Reign {
    term: u64,
    since: Option<Instant>,
    active_since: BTreeMap<u64, Instant>,
}

/// What openraft says about this member, made honest by the contact clock.
pub(crate) struct Leadership {
    member: u64,
    election_timeout: Duration,
    server: Watched<RaftServerMetrics<TypeConfig>>,
    data: Watched<RaftDataMetrics<TypeConfig>>,
    contact: Arc<Contact>,
    applied: Arc<AppliedClock>,
    reign: Mutex<Reign>,
}

/// The part of the status that hot paths need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Role {
    pub(crate) term: u64,
    /// By the last vote.
    pub(crate) leader: Option<u64>,
    pub(crate) leads: bool,
    /// Whether this member leads and no other member votes.
    pub(crate) sole_voter: bool,
}

impl Leadership {
    pub(crate) fn new(
        member: u64,
        election_timeout: Duration,
        server: Watched<RaftServerMetrics<TypeConfig>>,
        data: Watched<RaftDataMetrics<TypeConfig>>,
        contact: Arc<Contact>,
        applied: Arc<AppliedClock>,
    ) -> Self {
        Self {
            member,
            election_timeout,
            server,
            data,
            contact,
            applied,
            reign: Mutex::new(Reign::default()),
        }
    }

    /// The role by openraft's word. Some tens of nanoseconds.
    pub(crate) fn role(&self) -> Role {
        let server = self.server.borrow_watched();
        let leads = server.state == ServerState::Leader;
        let configurations = server.membership_config.membership().get_joint_config();
        Role {
            term: server.vote.leader_id.term,
            leader: server.current_leader,
            leads,
            sole_voter: leads
                && configurations.len() == 1
                && configurations[0].len() == 1
                && configurations[0].contains(&self.member),
        }
    }

    /// Whether a majority has answered this leader since its election. Before, openraft takes no
    /// proposals.
    pub(crate) fn is_confirmed(&self, role: Role) -> bool {
        role.sole_voter || self.data.borrow_watched().last_quorum_acked.is_some()
    }

    /// Whether an entry of this leader's own term is committed. Before, openraft changes no
    /// membership.
    pub(crate) fn is_settled(&self, role: Role) -> bool {
        self.committed()
            .is_some_and(|committed| committed.term == role.term)
    }

    pub(crate) fn committed(&self) -> Option<LogPosition> {
        self.data.borrow_watched().local_committed.map(position)
    }

    /// The newest membership in the log.
    pub(crate) fn membership(&self) -> Arc<StoredMembership> {
        self.server.borrow_watched().membership_config.clone()
    }

    /// Last entries of the log and of the snapshot.
    pub(crate) fn last_log(&self) -> Option<LogPosition> {
        self.data.borrow_watched().last_log.map(position)
    }

    pub(crate) fn snapshot_index(&self) -> Option<u64> {
        self.data
            .borrow_watched()
            .snapshot
            .map(|log_id| log_id.index)
    }

    /// The leader with whom there is contact.
    pub(crate) fn leader(&self) -> Option<u64> {
        self.leader_of(self.role())
    }

    fn leader_of(&self, role: Role) -> Option<u64> {
        let leader = role.leader?;
        let age = if !role.leads {
            if leader == self.member {
                // Stepped down, or restarted with the vote of its former reign.
                return None;
            }
            self.contact.age(leader, role.term)?
        } else if role.sole_voter {
            Duration::ZERO
        } else {
            self.majority_age(role.term)?
        };
        (age <= self.election_timeout).then_some(leader)
    }

    /// Time since a majority answered this leader, or since it was elected.
    fn majority_age(&self, term: u64) -> Option<Duration> {
        let acknowledged = self
            .data
            .borrow_watched()
            .last_quorum_acked
            .map(|at| openraft::Instant::elapsed(&*at));
        let reign = self.reign.lock();
        let elected = reign
            .since
            .filter(|_| reign.term == term)
            .map(|since| since.elapsed());
        match (acknowledged, elected) {
            (Some(acknowledged), Some(elected)) => Some(acknowledged.min(elected)),
            (Some(age), None) | (None, Some(age)) => Some(age),
            // Elected a moment ago: the votes of a majority are contact.
            (None, None) => Some(Duration::ZERO),
        }
    }

    pub(crate) fn status(&self) -> ConsensusStatus {
        let role = self.role();
        let leader = self.leader_of(role);
        let membership = self.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let learners: BTreeSet<u64> = membership.membership().learner_ids().collect();
        let data = self.data.borrow_watched();
        ConsensusStatus {
            term: role.term,
            leader,
            is_leader: role.leads && leader == Some(self.member),
            is_learner: learners.contains(&self.member),
            committed: data.local_committed.map(position),
            applied: self.applied.position(),
            last_log: data.last_log.map(position),
            voters,
            learners,
        }
    }

    /// Brings the reign up to date; called once per heartbeat interval and at every change.
    pub(crate) fn tick(&self) {
        let role = self.role();
        let now = Instant::now();
        let mut reign = self.reign.lock();
        if !role.leads {
            *reign = Reign::default();
            return;
        }
        if reign.since.is_none() || reign.term != role.term {
            *reign = Reign {
                term: role.term,
                since: Some(now),
                active_since: BTreeMap::new(),
            };
        }
        let data = self.data.borrow_watched();
        let Some(heartbeat) = &data.heartbeat else {
            return;
        };
        for (member, acknowledged) in heartbeat {
            let answers = acknowledged
                .is_some_and(|at| openraft::Instant::elapsed(&*at) <= self.election_timeout);
            if answers {
                reign.active_since.entry(*member).or_insert(now);
            } else {
                reign.active_since.remove(member);
            }
        }
        reign
            .active_since
            .retain(|member, _| heartbeat.contains_key(member));
    }

    pub(crate) fn progress(&self) -> Vec<PeerProgress> {
        let reign = self.reign.lock();
        let data = self.data.borrow_watched();
        let Some(replication) = &data.replication else {
            return Vec::new();
        };
        replication
            .iter()
            .filter(|(member, _)| **member != self.member)
            .map(|(member, matched)| PeerProgress {
                id: *member,
                matched: matched.map(position),
                last_contact: data
                    .heartbeat
                    .as_ref()
                    .and_then(|heartbeat| heartbeat.get(member).copied().flatten())
                    .map(|at| openraft::Instant::elapsed(&*at)),
                active_for: reign.active_since.get(member).map(|since| since.elapsed()),
            })
            .collect()
    }
}
