//! The lease under which keys are owned, and what other proxies say about them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{HeaderMap, HeaderValue};
use metastore_proto::etcdserverpb::request_op::Request;
use metastore_proto::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, RangeRequest, TxnRequest, WatchCreateRequest,
};
use metastore_proto::mvccpb::Event;
use metastore_proto::mvccpb::event::EventType;
use metastore_proto::repeat::is_lost;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::ownership::Claim;
use super::{Leasing, WANTED_BACK, compare, is_refused, operation};
use crate::observe::metrics::grpc::method;
use metastore_proto::etcdserverpb::compare::{CompareTarget, TargetUnion};

/// For how long keys stay owned by a proxy that is gone; clientv3's.
const LEASE_SECONDS: i64 = 60;
/// Renewals in the life of a lease; clientv3's.
const RENEWALS_PER_LIFE: u32 = 3;
/// Longest wait for an answer to a call of the session itself.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Claims that are given up at the same time.
const GIVE_BACKS_AT_ONCE: usize = 64;
/// Pause before something that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Pause before another session is tried, at most: a cluster that asks for names takes none.
const SESSION_PAUSE_MAX: Duration = Duration::from_secs(30);

fn too_late() -> Status {
    Status::deadline_exceeded("no answer in time")
}

impl Leasing {
    /// Keeps a session for ever.
    pub(super) async fn run(self: Arc<Self>, mut to_give_up: mpsc::Receiver<Claim>) {
        let mut pause = RETRY_PAUSE;
        loop {
            let begun = Instant::now();
            let Err(error) = self.session(&mut to_give_up).await;
            if begun.elapsed() > Duration::from_secs(LEASE_SECONDS.unsigned_abs()) {
                pause = RETRY_PAUSE;
            }
            tracing::warn!(error = error.message(), "this proxy owns no keys for now");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(SESSION_PAUSE_MAX);
        }
    }

    /// Owns keys under one lease, until it cannot any more; says why.
    async fn session(&self, to_give_up: &mut mpsc::Receiver<Claim>) -> Result<Infallible, Status> {
        let asked = Instant::now();
        let grant = LeaseGrantRequest {
            ttl: LEASE_SECONDS,
            id: 0,
        };
        let upstream = &self.keys.upstream;
        let granted = upstream.ask(method::LEASE_GRANT.path(), &grant);
        let granted: LeaseGrantResponse = tokio::time::timeout(CALL_LIMIT, granted)
            .await
            .map_err(|_| too_late())??;
        let life = Duration::from_secs(granted.ttl.max(1).unsigned_abs());
        let begin = granted.header.unwrap_or_default().revision + 1;
        // Claims of the session before are gone with their lease.
        while to_give_up.try_recv().is_ok() {}
        self.ownership
            .lock()
            .begin_session(granted.id, asked + life);
        let ended = tokio::select! {
            ended = self.follow(granted.id, begin) => ended,
            ended = self.renew(granted.id, asked + life, life) => ended,
            ended = self.give_back_all(to_give_up) => ended,
            () = self.too_many_given_up.notified() => {
                Err(Status::resource_exhausted("too many keys are to be given up"))
            }
        };
        self.ownership.lock().end_session();
        // Nobody is to wait for the rest of its life. If this fails, they do.
        let revoke = LeaseRevokeRequest { id: granted.id };
        let revoked = upstream.ask(method::LEASE_REVOKE.path(), &revoke);
        let revoked: Result<Result<LeaseRevokeResponse, _>, _> =
            tokio::time::timeout(CALL_LIMIT, revoked).await;
        if !matches!(revoked, Ok(Ok(_))) {
            tracing::debug!("the lease of a session was not revoked");
        }
        ended
    }

    /// Renews the lease until it has ended.
    async fn renew(
        &self,
        id: i64,
        mut valid_until: Instant,
        life: Duration,
    ) -> Result<Infallible, Status> {
        let mut pause = life / RENEWALS_PER_LIFE;
        loop {
            tokio::time::sleep(pause).await;
            let sent = Instant::now();
            let renewed =
                tokio::time::timeout(CALL_LIMIT, self.keys.upstream.renew_lease(id)).await;
            pause = match renewed.unwrap_or_else(|_| Err(too_late())) {
                Ok(seconds) if seconds <= 0 => {
                    return Err(Status::not_found("the lease has ended"));
                }
                Ok(seconds) => {
                    self.check_access().await?;
                    let life = Duration::from_secs(seconds.unsigned_abs());
                    valid_until = sent + life;
                    self.ownership.lock().renewed(valid_until);
                    life / RENEWALS_PER_LIFE
                }
                Err(error) if Instant::now() >= valid_until => return Err(error),
                Err(error) => {
                    tracing::debug!(error = error.message(), "failed to renew the lease");
                    RETRY_PAUSE
                }
            };
        }
    }

    /// Whether everybody may still read: what is known here is shown to everybody.
    async fn check_access(&self) -> Result<(), Status> {
        let request = RangeRequest {
            key: self.prefix.everything().0,
            serializable: true,
            count_only: true,
            ..Default::default()
        };
        let nobody = HeaderMap::new();
        let asked = tokio::time::timeout(CALL_LIMIT, self.read(&nobody, request)).await;
        match asked {
            Ok(Err(error)) if is_refused(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Learns what happens to claims from a revision on.
    async fn follow(&self, lease: i64, mut begin: i64) -> Result<Infallible, Status> {
        loop {
            match self.follow_from(lease, &mut begin).await {
                Err(error) if is_lost(&error) => {
                    tracing::debug!(error = error.message(), "the watch of claims broke");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                ended => return ended,
            }
        }
    }

    async fn follow_from(&self, lease: i64, begin: &mut i64) -> Result<Infallible, Status> {
        let (key, range_end) = self.claims.everything();
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: *begin,
            // So that a watch that begins again does not begin before a compaction.
            progress_notify: true,
            ..Default::default()
        };
        // A member that has lost the others does not tell.
        let mut headers = HeaderMap::new();
        headers.insert("hasleader", HeaderValue::from_static("true"));
        let mut watch = self.keys.upstream.watch(&headers, create).await?;
        loop {
            let answer = watch.next().await?;
            if answer.canceled {
                // Refused, or the past is gone: what happened to claims is not known.
                return Err(Status::aborted(answer.cancel_reason));
            }
            if answer.created {
                self.ownership.lock().watched();
                tracing::info!(lease, "this proxy may own keys");
                continue;
            }
            for event in &answer.events {
                if let Some(at) = self.happened(lease, event) {
                    *begin = (*begin).max(at + 1);
                }
            }
            if answer.events.is_empty() {
                let revision = answer.header.unwrap_or_default().revision;
                *begin = (*begin).max(revision + 1);
            }
        }
    }

    /// Takes a change of a claim. Returns its revision.
    fn happened(&self, lease: i64, event: &Event) -> Option<i64> {
        let claim = event.kv.as_ref()?.decode().ok()?;
        let at = claim.mod_revision;
        let key = claim.key.slice_ref(self.claims.strip(&claim.key)?);
        let mut ownership = self.ownership.lock();
        match event.r#type() {
            EventType::Delete => ownership.ended(&key, at),
            EventType::Put if claim.lease != lease => ownership.ended(&key, claim.create_revision),
            EventType::Put if claim.value == WANTED_BACK => {
                let claim = Claim {
                    key,
                    created: claim.create_revision,
                };
                ownership.wanted_back(&claim, at, Instant::now());
                drop(ownership);
                self.give_up(vec![claim]);
            }
            // Our own claim.
            EventType::Put => {}
        }
        Some(at)
    }

    /// Deletes claims that are to be given up. Ends when the cluster refuses it.
    async fn give_back_all(
        &self,
        to_give_up: &mut mpsc::Receiver<Claim>,
    ) -> Result<Infallible, Status> {
        let mut pending = FuturesUnordered::new();
        loop {
            tokio::select! {
                claim = to_give_up.recv(), if pending.len() < GIVE_BACKS_AT_ONCE => match claim {
                    Some(claim) => pending.push(self.give_back(claim)),
                    None => return Err(Status::cancelled("the proxy ends")),
                },
                Some(given_back) = pending.next() => given_back?,
            }
        }
    }

    async fn give_back(&self, claim: Claim) -> Result<(), Status> {
        let key = self.claim_of(&claim.key);
        let delete = DeleteRangeRequest {
            key: key.clone(),
            range_end: Bytes::new(),
            prev_kv: false,
        };
        let created = TargetUnion::CreateRevision(claim.created);
        let request = TxnRequest {
            compare: vec![compare(key, CompareTarget::Create, created)],
            success: vec![operation(Request::RequestDeleteRange(delete))],
            failure: Vec::new(),
        };
        let nobody = HeaderMap::new();
        loop {
            let asked = tokio::time::timeout(CALL_LIMIT, self.ask(&nobody, request.clone())).await;
            match asked.unwrap_or_else(|_| Err(too_late())) {
                Ok(_) => return Ok(()),
                Err(error) if is_refused(&error) || error.code() == Code::Unimplemented => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::debug!(error = error.message(), "a claim was not given up");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }
}
