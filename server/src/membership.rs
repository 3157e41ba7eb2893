//! Changes of who is a member, with etcd's checks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use metastore_consensus::{ChangeError, MembershipChange};
use metastore_proto::error_text::EtcdError;
use metastore_proto::internal::{
    MemberRecord, MemberUpdate, MembershipCommand, command::Request, membership_command::Change,
};
use prost::Message;

use crate::application::{Applied, Response};
use crate::config::{ListenUrl, identity};
use crate::error::RequestError;
use crate::node::Node;
use crate::observe::metrics::METRICS;
use crate::peer_service::{ChangeAnswer, Method};
use crate::waiters::Waiter;

/// A peer counts as connected for a change of members when it has been for this long: etcd's
/// `HealthInterval`.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// How often a leader looks for new members that can have their votes.
const VOTE_INTERVAL: Duration = Duration::from_millis(200);
/// Pause before a change that found no leader is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

impl Node {
    /// Adds a member with these peer URLs; returns it and all members.
    ///
    /// # Errors
    /// As etcd's MemberAdd.
    pub async fn add_member(
        &self,
        peer_urls: &[String],
        is_learner: bool,
    ) -> Result<(MemberRecord, Vec<MemberRecord>), RequestError> {
        let peer_urls = parse_peer_urls(peer_urls)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let member = MemberRecord {
            // etcd leaves the cluster token out of the ids of members that are added later.
            id: identity::added_member_id(&peer_urls, "", now.cast_signed()),
            name: String::new(),
            peer_urls,
            client_urls: Vec::new(),
            is_learner,
        };
        let members = self.change_members(Change::Add(member.clone())).await?;
        Ok((member, members))
    }

    /// Removes a member; returns the others.
    ///
    /// # Errors
    /// As etcd's MemberRemove.
    pub async fn remove_member(&self, id: u64) -> Result<Vec<MemberRecord>, RequestError> {
        self.change_members(Change::Remove(id)).await
    }

    /// Makes a learner a voter; returns all members.
    ///
    /// # Errors
    /// As etcd's MemberPromote.
    pub async fn promote_member(&self, id: u64) -> Result<Vec<MemberRecord>, RequestError> {
        self.change_members(Change::Promote(id)).await
    }

    /// Gives a member new peer URLs; returns all members.
    ///
    /// # Errors
    /// As etcd's MemberUpdate.
    pub async fn update_member(
        &self,
        id: u64,
        peer_urls: Vec<String>,
    ) -> Result<Vec<MemberRecord>, RequestError> {
        match self
            .propose_patiently(Request::MemberUpdate(MemberUpdate { id, peer_urls }))
            .await?
        {
            Response::Members(members) => Ok(members),
            other => Err(RequestError::Unknown(format!(
                "a member update was answered by {other:?}"
            ))),
        }
    }

    /// Has a change of the members made. Without a majority the client's patience decides how long that
    /// takes, as in etcd; only promotions, which etcd sends to the leader, end by themselves.
    async fn change_members(&self, change: Change) -> Result<Vec<MemberRecord>, RequestError> {
        // Every member of etcd judges by its own connections, and says at once that too few are left. Here
        // the leader judges; without one, nobody would before the time is over.
        if self.leader().is_none() {
            match &change {
                Change::Add(member) => self.check_may_add(member)?,
                Change::Remove(id) => self.check_may_remove(*id)?,
                Change::Promote(_) | Change::ForceSingle(_) => {}
            }
        }
        let request_id = self.application.waiters.next_id();
        let command = MembershipCommand {
            origin_member: self.member_id,
            request_id,
            change: Some(change),
        };
        let promotes = matches!(command.change, Some(Change::Promote(_)));
        let body = Bytes::from(command.encode_to_vec());
        // An entry whose leader was lost may still be committed: this member then applies it.
        let mut waiter = self.application.waiters.register(request_id);
        let attempt = async {
            loop {
                if *self.stopping.borrow() {
                    return Err(EtcdError::Stopped.into());
                }
                match self.leader() {
                    Some(leader) if leader == self.member_id => {
                        match self.change_membership_as_leader(body.clone()).await {
                            Ok(Some(members)) => return Ok(members),
                            Ok(None) => {}
                            Err(RequestError::Etcd(EtcdError::Timeout)) if !promotes => {
                                return self.applied_members(&mut waiter).await;
                            }
                            Err(error) => return Err(error),
                        }
                    }
                    Some(leader) => {
                        let answer = self
                            .consensus
                            .call_peer(
                                leader,
                                Method::ChangeMembership as u32,
                                body.clone(),
                                self.request_timeout(),
                            )
                            .await;
                        if let Ok(bytes) = answer {
                            let answer = ChangeAnswer::decode(bytes).map_err(|error| {
                                RequestError::Unknown(format!("leader's answer: {error}"))
                            })?;
                            match answer.to_error() {
                                Some(RequestError::Etcd(EtcdError::Timeout)) if !promotes => {
                                    return self.applied_members(&mut waiter).await;
                                }
                                Some(error) => return Err(error),
                                None if answer.not_leader => {}
                                None => return self.applied_members(&mut waiter).await,
                            }
                        }
                    }
                    None => {}
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        if !promotes {
            return attempt.await;
        }
        match tokio::time::timeout(self.request_timeout(), attempt).await {
            Ok(result) => result,
            // etcd asks the leader to promote, and says that there is none to be asked.
            Err(_) if self.leader().is_none() => Err(EtcdError::NoLeader.into()),
            Err(_) => Err(EtcdError::Timeout.into()),
        }
    }

    /// The members after a change that the leader made, or may have made.
    async fn applied_members(
        &self,
        waiter: &mut Waiter<'_>,
    ) -> Result<Vec<MemberRecord>, RequestError> {
        let applied = tokio::select! {
            applied = waiter.wait() => applied,
            () = self.stopped() => None,
        };
        match applied {
            Some(Ok(Response::Members(members))) => Ok(members),
            Some(Err(error)) => Err(error.into()),
            _ => Err(EtcdError::Stopped.into()),
        }
    }

    /// Does an encoded `MembershipCommand` if this member leads; `None` if it does not.
    ///
    /// # Errors
    /// As etcd's Member calls.
    pub async fn change_membership_as_leader(
        &self,
        body: Bytes,
    ) -> Result<Option<Vec<MemberRecord>>, RequestError> {
        let decoded = MembershipCommand::decode(body.clone());
        let promotes =
            decoded.is_ok_and(|command| matches!(command.change, Some(Change::Promote(_))));
        let result = self.change_membership_here(body).await;
        if promotes {
            match &result {
                Ok(Some(_)) => METRICS.learner_promote_successes.inc(),
                Ok(None) => {}
                Err(error) => METRICS
                    .learner_promote_failures
                    .with_label_values(&[error.to_string()])
                    .inc(),
            }
        }
        result
    }

    async fn change_membership_here(
        &self,
        body: Bytes,
    ) -> Result<Option<Vec<MemberRecord>>, RequestError> {
        let command = MembershipCommand::decode(body.clone())
            .map_err(|error| RequestError::Unknown(error.to_string()))?;
        let Some(change) = command.change else {
            return Err(RequestError::Unknown("an empty member change".to_owned()));
        };
        if !self.is_leader() {
            return Ok(None);
        }
        let consensus_change = match &change {
            Change::Add(member) => {
                self.check_may_add(member)?;
                // A change of the voters counts here from the entry on that makes it, in etcd only when the old
                // majority has agreed. A member that nobody can start before its addition is agreed on must
                // not be needed for that: it gets the log first, and its vote from `give_votes` when it is there.
                MembershipChange::AddLearner(member.id)
            }
            Change::Remove(id) => {
                self.check_may_remove(*id)?;
                MembershipChange::Remove(*id)
            }
            Change::Promote(id) => {
                self.check_may_promote(*id)?;
                MembershipChange::Promote(*id)
            }
            Change::ForceSingle(_) => return Err(EtcdError::MemberNotFound.into()),
        };
        self.application
            .directory
            .validate(&change, self.config.max_learners)?;
        match self
            .consensus
            .change_membership(consensus_change, body)
            .await
        {
            Ok(reply) => {
                let applied = *reply
                    .downcast::<Applied>()
                    .expect("the application answers every command with Applied");
                match applied? {
                    Response::Members(members) => Ok(Some(members)),
                    other => Err(RequestError::Unknown(format!(
                        "a member change was answered by {other:?}"
                    ))),
                }
            }
            Err(ChangeError::NotLeader { .. }) => Ok(None),
            // Another change is on its way: the caller tries again until its time is over.
            Err(ChangeError::InProgress) => Ok(None),
            Err(ChangeError::Unknown | ChangeError::TimedOut) => Err(EtcdError::Timeout.into()),
            Err(ChangeError::Stopped) => Err(EtcdError::Stopped.into()),
            Err(error) => Err(RequestError::Unknown(error.to_string())),
        }
    }

    fn check_may_add(&self, member: &MemberRecord) -> Result<(), RequestError> {
        if !self.config.strict_reconfig_check {
            return Ok(());
        }
        if !member.is_learner && !self.enough_started_with_a_new_voter() {
            return Err(EtcdError::MemberNotEnoughStarted.into());
        }
        // The new member counts as unavailable: without it a quorum of the larger cluster must be
        // connected (`isConnectedToQuorumAfterAddingNewMemberSince`).
        let voters = self.voter_ids();
        let quorum = quorum_of(voters.len() + 1);
        let alone = voters.len() == 1;
        if !alone && self.connected_since(HEALTH_INTERVAL, &voters) < quorum {
            return Err(EtcdError::Unhealthy.into());
        }
        Ok(())
    }

    /// The members that were added as voters, have no vote yet, and have come so far that they can have it.
    fn waiting_for_votes(&self) -> Vec<u64> {
        let directory = self.application.directory.current();
        let voters = self.consensus.voters();
        directory
            .voters()
            .map(|member| member.id)
            .filter(|id| !voters.contains(id))
            .filter(|id| self.peers.active_for(*id).is_some())
            .filter(|id| self.consensus.has_caught_up(*id) == Some(true))
            .collect()
    }

    fn enough_started_with_a_new_voter(&self) -> bool {
        let (started, voters) = self.started_voters(None);
        // Adding a second member to a cluster of one must be possible, or it could never grow.
        let members = voters + 1;
        (started == 1 && members == 2) || started >= quorum_of(members)
    }

    fn check_may_promote(&self, id: u64) -> Result<(), RequestError> {
        if !self
            .consensus
            .has_caught_up(id)
            .ok_or(EtcdError::MemberNotFound)?
        {
            return Err(EtcdError::LearnerNotReady.into());
        }
        if !self.config.strict_reconfig_check {
            return Ok(());
        }
        // The learner counts as a started voter of the future quorum.
        let (started, voters) = self.started_voters(None);
        let members = voters + 1;
        if started + 1 < members / 2 + 1 {
            return Err(EtcdError::MemberNotEnoughStarted.into());
        }
        Ok(())
    }

    fn check_may_remove(&self, id: u64) -> Result<(), RequestError> {
        if !self.config.strict_reconfig_check {
            return Ok(());
        }
        let directory = self.application.directory.current();
        // A learner has no part in the quorum, and an unknown id is refused later, by its name.
        if directory
            .members
            .get(&id)
            .is_none_or(|member| member.is_learner)
        {
            return Ok(());
        }
        let (started, voters) = self.started_voters(Some(id));
        if started < voters / 2 + 1 {
            return Err(EtcdError::MemberNotEnoughStarted.into());
        }
        let inactive = id != self.member_id && self.peers.active_for(id).is_none();
        if inactive {
            // It is down already, so the quorum that works does not need it.
            return Ok(());
        }
        let voters = self.voter_ids();
        let connected = self.connected_since(HEALTH_INTERVAL, &voters);
        if connected.saturating_sub(1) < 1 + (voters.len() - 1) / 2 {
            return Err(EtcdError::Unhealthy.into());
        }
        Ok(())
    }

    fn voter_ids(&self) -> BTreeSet<u64> {
        self.application
            .directory
            .current()
            .voters()
            .map(|member| member.id)
            .collect()
    }

    /// How many voters have started (published a name), and how many there are, without `except`.
    fn started_voters(&self, except: Option<u64>) -> (usize, usize) {
        let directory = self.application.directory.current();
        let voters: Vec<_> = directory
            .voters()
            .filter(|member| Some(member.id) != except)
            .collect();
        let started = voters
            .iter()
            .filter(|member| !member.name.is_empty())
            .count();
        (started, voters.len())
    }

    /// How many of `members` have been in contact for `at_least`, this one included.
    pub fn connected_since(&self, at_least: Duration, members: &BTreeSet<u64>) -> usize {
        members
            .iter()
            .filter(|id| {
                **id == self.member_id
                    || self
                        .peers
                        .active_for(**id)
                        .is_some_and(|age| age >= at_least)
            })
            .count()
    }
}

/// The URLs of a request, checked and sorted.
///
/// # Errors
/// `given member URLs are invalid`.
pub fn parse_peer_urls(urls: &[String]) -> Result<Vec<String>, EtcdError> {
    if urls.is_empty() {
        return Err(EtcdError::MemberBadURLs);
    }
    let mut parsed = urls
        .iter()
        .map(|url| ListenUrl::parse(url).map(|url| url.to_string()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| EtcdError::MemberBadURLs)?;
    parsed.sort();
    Ok(parsed)
}

/// Gives members that were added as voters their votes when they have come, while this member leads.
pub async fn give_votes(node: Arc<Node>) {
    while node.pause(VOTE_INTERVAL).await {
        if !node.is_leader() {
            continue;
        }
        for id in node.waiting_for_votes() {
            let change = MembershipChange::Promote(id);
            // An entry without a command has no answer that tells. Whatever was in the way, there is another time.
            let _ = node.consensus.change_membership(change, Bytes::new()).await;
            if node.consensus.voters().contains(&id) {
                tracing::info!(
                    "member-id" = format!("{id:x}"),
                    "the new member has caught up, and votes from now on"
                );
            }
        }
    }
}

/// The smallest majority of this many voters.
fn quorum_of(voters: usize) -> usize {
    voters / 2 + 1
}
