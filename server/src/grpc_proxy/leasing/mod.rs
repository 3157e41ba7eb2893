//! `--experimental-leasing-prefix`: reads of keys that this proxy owns are answered without the cluster.
//!
//! The protocol is that of clientv3's package `leasing`, so that proxies of both programs share a cluster and a prefix.
//! Who reads a key claims it: the key of the cluster that has the prefix in front gets the proxy's lease. Who writes
//! a key that another proxy has claimed writes `REVOKE` into the claim and waits until its owner deletes it, or until
//! the owner's lease ends. Every write is a transaction that compares when the claim was created, so that none gets
//! past an owner that it does not know.
//!
//! ```text
//! read ──► Ownership ── known ──► answer
//!              └─ unknown ──► claim it, or ask the cluster
//! write ─► cluster, if no other proxy has claimed the key ─► Ownership takes the new value
//! session ─ lease, renewals, watch of all claims ─► Ownership, and claims that are given up
//! ```
//!
//! Unlike clientv3's, this one never shows a value that a write of its own has overtaken, whatever became of that
//! write ([`ownership`]), nothing after its lease may have ended, and no key whose own lease may end.

mod ownership;
mod session;
mod transaction;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderValue};
use metastore_proto::KeyValue;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use metastore_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use metastore_proto::etcdserverpb::request_op::Request;
use metastore_proto::etcdserverpb::response_op::Response;
use metastore_proto::etcdserverpb::watch_create_request::FilterType;
use metastore_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
    WatchCreateRequest,
};
use metastore_proto::mvccpb::event::EventType;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tonic::{Code, Status};

use self::ownership::{Acquired, Claim, OWNED_KEYS_MAX, Outcome, Ownership, Step, shown};
use super::cache::Interval;
use super::cluster_keys::ClusterKeys;
use super::namespace::Namespace;

/// What somebody writes into a claim who wants the key; etcd's word.
const WANTED_BACK: &[u8] = b"REVOKE";
/// Claims that are waited for at the same time by one deletion of a range.
const WAITS_AT_ONCE: usize = 16;
/// Pause before a claim is looked at again whose watch broke.
const WAIT_PAUSE: Duration = Duration::from_millis(25);

/// Whether the cluster does not know who asks.
pub fn is_anonymous(headers: &HeaderMap) -> bool {
    !headers.contains_key("token") && !headers.contains_key("authorization")
}

/// Answers key-value calls.
pub struct Leasing {
    keys: Arc<ClusterKeys>,
    /// Claims as clients of this proxy name them.
    prefix: Namespace,
    /// Claims as the cluster names them.
    claims: Namespace,
    ownership: Mutex<Ownership>,
    /// Claims to give up, for the session.
    given_up: mpsc::Sender<Claim>,
    /// More is to be given up than the session remembers: it ends, and all claims with it.
    too_many_given_up: Notify,
}

fn operation(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn read_of(key: Bytes, range_end: Bytes, keys_only: bool) -> RequestOp {
    operation(Request::RequestRange(RangeRequest {
        key,
        range_end,
        keys_only,
        ..Default::default()
    }))
}

/// All these keys were created before this revision, or do not exist.
fn created_before(key: Bytes, range_end: Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Less.into(),
        target: CompareTarget::Create.into(),
        key,
        range_end,
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

fn compare(key: Bytes, target: CompareTarget, value: TargetUnion) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key,
        range_end: Bytes::new(),
        target_union: Some(value),
    }
}

/// The answer to an operation that was a read.
fn read_answer(answer: Option<ResponseOp>) -> Result<RangeResponse, Status> {
    match answer.and_then(|answer| answer.response) {
        Some(Response::ResponseRange(range)) => Ok(range),
        _ => Err(unexpected()),
    }
}

fn unexpected() -> Status {
    Status::internal("a transaction has other answers than operations")
}

fn pairs(answer: &RangeResponse) -> Result<Vec<KeyValue>, Status> {
    let pairs = answer.kvs.iter().map(|pair| pair.decode());
    pairs
        .collect::<Result<_, _>>()
        .map_err(|error| Status::internal(error.to_string()))
}

/// Whether a request was refused for its own sake, so that it was not done and never will be.
fn is_refused(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument | Code::NotFound | Code::PermissionDenied | Code::Unauthenticated
    )
}

/// Whether a read can be answered from what is known of its key.
fn is_plain(request: &RangeRequest) -> bool {
    request.range_end.is_empty()
        && !request.key.is_empty()
        && request.revision == 0
        && SortOrder::try_from(request.sort_order).is_ok()
        && SortTarget::try_from(request.sort_target).is_ok()
}

impl Leasing {
    /// Answers calls at once, and owns keys as soon as the cluster lets it.
    pub fn start(keys: Arc<ClusterKeys>, prefix: &str) -> Arc<Self> {
        let (given_up, to_give_up) = mpsc::channel(OWNED_KEYS_MAX);
        let prefix = Namespace::new(prefix);
        let leasing = Arc::new(Self {
            claims: keys.namespace.inside(&prefix),
            keys,
            prefix,
            ownership: Mutex::default(),
            given_up,
            too_many_given_up: Notify::new(),
        });
        tokio::spawn(Arc::clone(&leasing).run(to_give_up));
        leasing
    }

    /// The keys whose owners must know of a deletion. Who deletes claims ends what they stand for.
    fn concerned(&self, interval: &Interval) -> Interval {
        let (key, range_end) = self.prefix.everything();
        match interval.overlaps(&Interval { key, range_end }) {
            true => Interval {
                key: Bytes::from_static(b"\0"),
                range_end: Bytes::from_static(b"\0"),
            },
            false => interval.clone(),
        }
    }

    fn claim_of(&self, key: &[u8]) -> Bytes {
        self.prefix.key(key)
    }

    async fn ask(&self, headers: &HeaderMap, request: TxnRequest) -> Result<TxnResponse, Status> {
        let answer = self.keys.txn(headers, request).await?;
        self.ownership.lock().seen(answer.header.as_ref());
        Ok(answer)
    }

    async fn read(
        &self,
        headers: &HeaderMap,
        request: RangeRequest,
    ) -> Result<RangeResponse, Status> {
        let answer = self.keys.range(headers, request).await?;
        self.ownership.lock().seen(answer.header.as_ref());
        Ok(answer)
    }

    /// Answers a read of somebody whom the cluster does not know.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn range(
        &self,
        headers: &HeaderMap,
        request: RangeRequest,
    ) -> Result<RangeResponse, Status> {
        // Claims are written past their own claims.
        let is_claim = self.prefix.strip(&request.key).is_some();
        if !is_plain(&request) || is_claim {
            return self.read(headers, request).await;
        }
        let step = self.ownership.lock().step(&request, Instant::now());
        match step {
            Step::Answer(answer) => Ok(answer),
            Step::Ask => self.read(headers, request).await,
            Step::Acquire { lease, ticket } => {
                let attempt = Attempt {
                    leasing: self,
                    key: request.key.clone(),
                    ticket,
                };
                match self.acquire(headers, &request, lease, &attempt).await {
                    Ok(answer) => Ok(answer),
                    Err(error) => {
                        // A cluster that takes no claims, because it is full or asks for names, may be read.
                        tracing::debug!(error = error.message(), "a key was not acquired");
                        drop(attempt);
                        self.read(headers, request).await
                    }
                }
            }
        }
    }

    /// Claims the key and reads it.
    async fn acquire(
        &self,
        headers: &HeaderMap,
        request: &RangeRequest,
        lease: i64,
        attempt: &Attempt<'_>,
    ) -> Result<RangeResponse, Status> {
        let (key, claim) = (request.key.clone(), self.claim_of(&request.key));
        let read = read_of(key.clone(), Bytes::new(), false);
        let put = PutRequest {
            key: claim.clone(),
            lease,
            ..Default::default()
        };
        let txn = TxnRequest {
            compare: vec![
                compare(
                    claim.clone(),
                    CompareTarget::Create,
                    TargetUnion::CreateRevision(0),
                ),
                compare(key.clone(), CompareTarget::Lease, TargetUnion::Lease(0)),
            ],
            success: vec![read.clone(), operation(Request::RequestPut(put))],
            failure: vec![read, read_of(claim, Bytes::new(), true)],
        };
        let answer = self.ask(headers, txn).await?;
        let header = answer.header.unwrap_or_default();
        let mut answers = answer.responses.into_iter();
        let pair = pairs(&read_answer(answers.next())?)?.pop();
        let shown = shown(request, pair.as_ref(), header);
        if answer.succeeded {
            let claim = Claim {
                key,
                created: header.revision,
            };
            let given_up = self.ownership.lock().acquired(Acquired {
                claim,
                ticket: attempt.ticket,
                lease,
                pair,
            });
            self.give_up(given_up);
        } else if let Some(claimed) = pairs(&read_answer(answers.next())?)?.pop()
            && claimed.lease == lease
        {
            // A claim of our own of which we do not know what happened since.
            let claim = Claim {
                key,
                created: claimed.create_revision,
            };
            self.give_up(vec![claim]);
        }
        Ok(shown)
    }

    fn give_up(&self, claims: Vec<Claim>) {
        for claim in claims {
            if self.given_up.try_send(claim).is_err() {
                self.too_many_given_up.notify_one();
            }
        }
    }

    /// Notes that these keys are written now.
    fn begin_write(&self, written: &[Interval]) -> Write<'_> {
        let concerned: Vec<_> = written.iter().map(|keys| self.concerned(keys)).collect();
        Write {
            leasing: self,
            claims: self.ownership.lock().begin_write(&concerned),
            deletes_claims: concerned != written,
        }
    }

    /// Answers `Put`.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn put(
        &self,
        headers: &HeaderMap,
        request: PutRequest,
    ) -> Result<PutResponse, Status> {
        let key = request.key.clone();
        let request = operation(Request::RequestPut(request));
        let (answer, header) = self.modify(headers, &key, request).await?;
        let Response::ResponsePut(mut answer) = answer else {
            return Err(unexpected());
        };
        answer.header = Some(header);
        Ok(answer)
    }

    /// Answers `DeleteRange`.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn delete_range(
        &self,
        headers: &HeaderMap,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Status> {
        let interval = Interval {
            key: request.key.clone(),
            range_end: request.range_end.clone(),
        };
        let operation = operation(Request::RequestDeleteRange(request));
        let (answer, header) = match interval.is_range() {
            true => self.delete_interval(headers, &interval, operation).await?,
            false => self.modify(headers, &interval.key, operation).await?,
        };
        let Response::ResponseDeleteRange(mut answer) = answer else {
            return Err(unexpected());
        };
        answer.header = Some(header);
        Ok(answer)
    }

    /// Changes one key.
    async fn modify(
        &self,
        headers: &HeaderMap,
        key: &Bytes,
        request: RequestOp,
    ) -> Result<(Response, ResponseHeader), Status> {
        if key.is_empty() {
            return Err(EtcdError::EmptyKey.into());
        }
        let claim = self.claim_of(key);
        let written = [Interval::of_key(key)];
        loop {
            let write = self.begin_write(&written);
            let created = write.created(key);
            let mut success = vec![request.clone()];
            // Somebody who may write a key may not read it, perhaps.
            if created > 0 && is_anonymous(headers) {
                success.push(read_of(key.clone(), Bytes::new(), false));
            }
            let txn = TxnRequest {
                compare: vec![created_before(claim.clone(), Bytes::new(), created + 1)],
                success,
                failure: vec![operation(Request::RequestPut(wanted_back(claim.clone())))],
            };
            let (write, answer) = write.sent(self.ask(headers, txn).await)?;
            let header = answer.header.unwrap_or_default();
            let mut answers = answer.responses.into_iter();
            if answer.succeeded {
                let changed = answers.next().and_then(|answer| answer.response);
                let now = match answers.next() {
                    Some(answer) => {
                        vec![(key.clone(), pairs(&read_answer(Some(answer))?)?.pop())]
                    }
                    None => Vec::new(),
                };
                write.end(&Outcome::Done(header.revision, &now));
                return Ok((changed.ok_or_else(unexpected)?, header));
            }
            write.was_refused(|_| false);
            self.wait_until_given_up(headers, key, header.revision)
                .await?;
        }
    }

    /// Deletes a range of keys.
    async fn delete_interval(
        &self,
        headers: &HeaderMap,
        interval: &Interval,
        request: RequestOp,
    ) -> Result<(Response, ResponseHeader), Status> {
        if interval.key.is_empty() {
            return Err(EtcdError::EmptyKey.into());
        }
        let concerned = self.concerned(interval);
        let (first, end) = self.claims_of(&concerned);
        loop {
            let at = self.take_back(headers, &concerned).await?;
            let write = self.begin_write(std::slice::from_ref(interval));
            let txn = TxnRequest {
                compare: vec![created_before(first.clone(), end.clone(), at + 1)],
                success: vec![request.clone()],
                failure: Vec::new(),
            };
            let (write, answer) = write.sent(self.ask(headers, txn).await)?;
            let header = answer.header.unwrap_or_default();
            if answer.succeeded {
                let deleted = answer.responses.into_iter().next();
                write.end(&Outcome::Deleted(header.revision));
                let deleted = deleted.and_then(|answer| answer.response);
                return Ok((deleted.ok_or_else(unexpected)?, header));
            }
            // Somebody has claimed a key meanwhile.
            write.was_refused(|_| true);
        }
    }

    fn claims_of(&self, interval: &Interval) -> (Bytes, Bytes) {
        (
            self.claim_of(&interval.key),
            self.prefix.range_end(&interval.range_end),
        )
    }

    /// Takes all keys of a range from the proxies that own them. Returns the revision up to which it did.
    async fn take_back(&self, headers: &HeaderMap, interval: &Interval) -> Result<i64, Status> {
        let (key, range_end) = self.claims_of(interval);
        let request = RangeRequest {
            key,
            range_end,
            keys_only: true,
            ..Default::default()
        };
        let claimed = self.read(headers, request).await?;
        let own = self.ownership.lock().lease();
        let others = pairs(&claimed)?
            .into_iter()
            .filter(|claim| claim.lease != own)
            .filter_map(|claim| {
                self.prefix
                    .strip(&claim.key)
                    .map(|key| claim.key.slice_ref(key))
            });
        stream::iter(others.map(|key| self.take_back_one(headers, key)))
            .buffer_unordered(WAITS_AT_ONCE)
            .try_for_each(|()| std::future::ready(Ok(())))
            .await?;
        Ok(claimed.header.unwrap_or_default().revision)
    }

    /// Takes a key from whoever owns it.
    async fn take_back_one(&self, headers: &HeaderMap, key: Bytes) -> Result<(), Status> {
        let claim = self.claim_of(&key);
        let txn = TxnRequest {
            compare: vec![created_before(claim.clone(), Bytes::new(), 1)],
            success: Vec::new(),
            failure: vec![operation(Request::RequestPut(wanted_back(claim)))],
        };
        let answer = self.ask(headers, txn).await?;
        if answer.succeeded {
            return Ok(());
        }
        let at = answer.header.unwrap_or_default().revision;
        self.wait_until_given_up(headers, &key, at).await
    }

    /// Waits until a claim is deleted after a revision. May return early when the watch breaks.
    async fn wait_until_given_up(
        &self,
        headers: &HeaderMap,
        key: &Bytes,
        after: i64,
    ) -> Result<(), Status> {
        let create = WatchCreateRequest {
            key: self.claims.key(key),
            start_revision: after + 1,
            filters: vec![FilterType::Noput.into()],
            ..Default::default()
        };
        // A member that has lost the others would not tell.
        let mut headers = headers.clone();
        headers.insert("hasleader", HeaderValue::from_static("true"));
        let mut watch = self.keys.upstream.watch(&headers, create).await?;
        loop {
            let Ok(answer) = watch.next().await else {
                tokio::time::sleep(WAIT_PAUSE).await;
                return Ok(());
            };
            if answer.canceled {
                return match answer.compact_revision {
                    0 => Err(Status::unknown(answer.cancel_reason)),
                    _ => Ok(()),
                };
            }
            let is_deleted = |event: &metastore_proto::mvccpb::Event| {
                matches!(event.r#type(), EventType::Delete)
            };
            if answer.events.iter().any(is_deleted) {
                return Ok(());
            }
        }
    }
}

/// Asks the owner of a claim for the key.
fn wanted_back(claim: Bytes) -> PutRequest {
    PutRequest {
        key: claim,
        value: Bytes::from_static(WANTED_BACK),
        ignore_lease: true,
        ..Default::default()
    }
}

/// A claim that is being made. Whatever becomes of it, the key can be claimed again later.
struct Attempt<'a> {
    leasing: &'a Leasing,
    key: Bytes,
    ticket: u64,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut ownership = self.leasing.ownership.lock();
        ownership.not_acquired(&self.key, self.ticket, Instant::now());
    }
}

/// A write that is on its way. One that nobody waits for any more may be done all the same.
struct Write<'a> {
    leasing: &'a Leasing,
    claims: Vec<Claim>,
    deletes_claims: bool,
}

impl Write<'_> {
    /// When the claim on a key was created; 0 when this proxy does not own it.
    fn created(&self, key: &Bytes) -> i64 {
        let claim = self.claims.iter().find(|claim| claim.key == key);
        claim.map_or(0, |claim| claim.created)
    }

    /// What the cluster says. An error ends it.
    fn sent(mut self, answer: Result<TxnResponse, Status>) -> Result<(Self, TxnResponse), Status> {
        match answer {
            Ok(answer) => Ok((self, answer)),
            Err(status) => {
                if is_refused(&status) {
                    self.finish(&Outcome::NotDone);
                }
                Err(status)
            }
        }
    }

    fn end(mut self, outcome: &Outcome<'_>) {
        let outcome = match self.deletes_claims {
            true => &Outcome::Unknown,
            false => outcome,
        };
        self.finish(outcome);
    }

    /// It was not done, because of a claim. Ours that are not there any more are forgotten.
    fn was_refused(mut self, is_there: impl Fn(&Claim) -> bool) {
        let claims = self.claims.clone();
        self.finish(&Outcome::NotDone);
        let mut ownership = self.leasing.ownership.lock();
        for claim in claims.iter().filter(|claim| !is_there(claim)) {
            ownership.was_lost(claim);
        }
    }

    fn finish(&mut self, outcome: &Outcome<'_>) {
        let claims = std::mem::take(&mut self.claims);
        let given_up = self.leasing.ownership.lock().end_write(claims, outcome);
        self.leasing.give_up(given_up);
    }
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        if !self.claims.is_empty() {
            self.finish(&Outcome::Unknown);
        }
    }
}
