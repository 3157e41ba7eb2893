//! Leases as clients ask for them: grants through the log, renewals on the leader.

use std::time::{Duration, Instant};

use bytes::Bytes;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{
    LeaseCheckpoint, LeaseCheckpointRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use metastore_proto::internal::command::Request;
use prost::Message;

use crate::auth::Credentials;
use crate::error::RequestError;
use crate::lease_leadership;
use crate::lease_manager::Renewed;
use crate::node::Node;
use crate::peer_service::{ChangeAnswer, Method};

/// Pause before a renewal that reached no leader is tried again; etcd's own.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// The longest wait for this member to catch up before a lease counts as unknown; etcd's
/// `applyTimeout`.
const APPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// The gate without which a renewal waits until everything committed is applied.
const FAST_KEEP_ALIVE_GATE: &str = "FastLeaseKeepAlive";

impl Node {
    /// Renews a lease here; the new TTL in seconds, 0 for a lease that does not exist. `None`: this
    /// member does not lead, or cannot be sure that it still does.
    ///
    /// # Errors
    /// `request timed out, waiting for the applied index took too long`.
    pub async fn renew_lease_as_leader(&self, id: i64) -> Result<Option<i64>, EtcdError> {
        let mut caught_up = false;
        if self.is_leader() && !self.config.feature_gates.is_enabled(FAST_KEEP_ALIVE_GATE) {
            self.catch_up().await?;
            caught_up = true;
        }
        loop {
            let leases = &self.application.leases;
            let gone = leases.changed();
            match lease_leadership::renew(&self.consensus, leases, id) {
                // It may still be on its way through the log: unknown only once everything
                // committed is applied.
                Renewed::Ttl(0) if !caught_up => {
                    self.catch_up().await?;
                    caught_up = true;
                }
                Renewed::Ttl(ttl) => return Ok(Some(ttl)),
                Renewed::Expired => gone.await,
                // A later leader would believe the checkpoint and end the lease too early.
                Renewed::ClearCheckpointFirst => self.clear_checkpoint(id).await?,
                Renewed::NotLeader => return Ok(None),
            }
        }
    }

    async fn clear_checkpoint(&self, id: i64) -> Result<(), EtcdError> {
        let request = LeaseCheckpointRequest {
            checkpoints: vec![LeaseCheckpoint {
                id,
                remaining_ttl: 0,
            }],
        };
        match self.propose(Request::LeaseCheckpoint(request)).await {
            Ok(_) => Ok(()),
            Err(RequestError::Etcd(error)) => Err(error),
            Err(_) => Err(EtcdError::Timeout),
        }
    }

    async fn catch_up(&self) -> Result<(), EtcdError> {
        tokio::time::timeout(APPLY_TIMEOUT, self.consensus.wait_applied(self.committed()))
            .await
            .map_err(|_| EtcdError::TimeoutWaitAppliedIndex)
    }

    /// Answers TimeToLive from this member's clock if it leads.
    ///
    /// # Errors
    /// The engine's; `request timed out, waiting for the applied index took too long`.
    pub async fn lease_time_to_live_as_leader(
        &self,
        request: &LeaseTimeToLiveRequest,
    ) -> Result<Option<LeaseTimeToLiveResponse>, RequestError> {
        if !self.is_leader() {
            return Ok(None);
        }
        // What another member has acknowledged may not be applied here yet.
        self.catch_up().await?;
        let reader = self.reader();
        let Some((remaining, granted_ttl)) = self.application.leases.remaining(request.id) else {
            return Ok(Some(unknown_lease(request.id)));
        };
        let keys = if request.keys {
            reader.lease_keys(request.id)?
        } else {
            Vec::new()
        };
        Ok(Some(LeaseTimeToLiveResponse {
            header: None,
            id: request.id,
            ttl: remaining,
            granted_ttl,
            keys,
        }))
    }

    /// Whether a client may renew a lease, that is, write all its keys.
    async fn check_lease_renew(
        &self,
        id: i64,
        credentials: &Credentials,
    ) -> Result<(), RequestError> {
        if !self.auth().is_enabled() {
            return Ok(());
        }
        // Its keys may be on their way through the log, if the lease itself is.
        if self.is_leader() && self.reader().lease(id)?.is_none() {
            self.catch_up().await?;
        }
        let revision = self.auth().revision();
        let identity = self.identify(credentials).await?;
        let state = self.auth().state();
        state.check_identified(identity.as_ref())?;
        state.check_lease_write(identity.as_ref(), &*self.reader(), id)?;
        match state.check_admin(identity.as_ref()) {
            Ok(()) => Ok(()),
            Err(_) => Ok(self.check_auth_revision(revision)?),
        }
    }

    /// Whether a client may see the keys of a lease.
    ///
    /// # Errors
    /// `invalid auth token`, `user name is empty`, `permission denied`; the engine's.
    pub async fn check_lease_read(
        &self,
        id: i64,
        credentials: &Credentials,
    ) -> Result<(), RequestError> {
        self.check_leases_read(&[id], credentials).await
    }

    /// [`Node::check_lease_read`] of several leases.
    ///
    /// # Errors
    /// As [`Node::check_lease_read`].
    pub async fn check_leases_read(
        &self,
        ids: &[i64],
        credentials: &Credentials,
    ) -> Result<(), RequestError> {
        if !self.auth().is_enabled() {
            return Ok(());
        }
        let identity = self.identify(credentials).await?;
        let state = self.auth().state();
        state.check_identified(identity.as_ref())?;
        let reader = self.reader();
        for id in ids {
            state.check_lease_read(identity.as_ref(), &*reader, *id)?;
        }
        Ok(())
    }

    /// Whether users and roles are still those of a revision, when authentication is on.
    ///
    /// # Errors
    /// `revision of auth store is old`.
    pub fn check_auth_revision(&self, revision: u64) -> Result<(), EtcdError> {
        match self.auth().is_enabled() && self.auth().revision() != revision {
            true => Err(EtcdError::AuthOldRevision),
            false => Ok(()),
        }
    }

    /// Renews a lease, here or through the leader; the TTL in seconds, 0 for an unknown lease.
    ///
    /// # Errors
    /// `no leader`, `request timed out`, `permission denied` and what else says that the client may
    /// not.
    pub async fn renew_lease(
        &self,
        id: i64,
        credentials: &Credentials,
    ) -> Result<i64, RequestError> {
        let attempt = async {
            loop {
                if *self.stopping.borrow() {
                    return Err(RequestError::from(EtcdError::Stopped));
                }
                if self.leader().is_some() {
                    self.check_lease_renew(id, credentials).await?;
                }
                match self.leader() {
                    Some(leader) if leader == self.member_id => {
                        if let Some(ttl) = self.renew_lease_as_leader(id).await? {
                            return Ok(ttl);
                        }
                    }
                    Some(leader) => {
                        let body = Bytes::copy_from_slice(&id.to_be_bytes());
                        let answer = self
                            .consensus
                            .call_peer(
                                leader,
                                Method::LeaseRenew as u32,
                                body,
                                self.request_timeout(),
                            )
                            .await;
                        let answer = answer
                            .ok()
                            .and_then(|bytes| ChangeAnswer::decode(bytes).ok());
                        if let Some(answer) = answer
                            && !answer.not_leader
                        {
                            return Ok(answer.ttl_seconds);
                        }
                    }
                    None => {}
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        match tokio::time::timeout(self.request_timeout(), attempt).await {
            Ok(result) => result,
            Err(_) if self.leader().is_none() => Err(EtcdError::NoLeader.into()),
            Err(_) => Err(EtcdError::Timeout.into()),
        }
    }

    /// A lease's time to live, asked of the leader; TTL −1 for an unknown lease.
    ///
    /// # Errors
    /// `no leader`, `request timed out`, the engine's.
    pub async fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, RequestError> {
        let started = Instant::now();
        let body = Bytes::from(request.encode_to_vec());
        while started.elapsed() < self.request_timeout() {
            match self.leader() {
                Some(leader) if leader == self.member_id => {
                    // Leases that are committed are seen (etcd waits for the applied index).
                    if let Some(response) = self.lease_time_to_live_as_leader(&request).await? {
                        return Ok(response);
                    }
                }
                Some(leader) => {
                    let answer = self
                        .consensus
                        .call_peer(
                            leader,
                            Method::LeaseTimeToLive as u32,
                            body.clone(),
                            self.request_timeout(),
                        )
                        .await;
                    if let Some(response) = answer
                        .ok()
                        .and_then(|bytes| LeaseTimeToLiveResponse::decode(bytes).ok())
                    {
                        return Ok(response);
                    }
                }
                None => {}
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
        if self.leader().is_none() {
            return Err(EtcdError::NoLeader.into());
        }
        Err(EtcdError::Timeout.into())
    }
}

fn unknown_lease(id: i64) -> LeaseTimeToLiveResponse {
    LeaseTimeToLiveResponse {
        header: None,
        id,
        ttl: -1,
        granted_ttl: 0,
        keys: Vec::new(),
    }
}
