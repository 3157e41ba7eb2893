//! What etcd's Go package `concurrency` does, for the Lock and Election services: a waiter is a key
//! below the name, attached to the waiter's lease; the one created first owns.
//!
//! The keys and their order are those of the Go package, so its `Mutex` and `Election` contend with
//! our services for the same name.

use bytes::Bytes;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse,
    PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse, WatchResponse,
    compare, range_request, request_op, response_op,
};
use metastore_proto::mvccpb::event::EventType;
use metastore_proto::{EncodedKeyValue, KeyValue};
use prost::Message;
use tonic::{Code, Status};

use super::in_process::{Answers, Caller};
use super::services::BaseServices;

/// TTL of the lease that a caller without one gets; etcd's `defaultSessionTTL`.
const SESSION_TTL_SECONDS: i64 = 60;

const RANGE_PATH: &str = "/etcdserverpb.KV/Range";
const TXN_PATH: &str = "/etcdserverpb.KV/Txn";
const DELETE_RANGE_PATH: &str = "/etcdserverpb.KV/DeleteRange";
const LEASE_GRANT_PATH: &str = "/etcdserverpb.Lease/LeaseGrant";

/// Texts that etcd's client does not recognise, so that they keep their code on the way through it.
const UNRECOGNISED: [EtcdError; 6] = [
    EtcdError::InvalidClientAPIVersion,
    EtcdError::PermissionNotGiven,
    EtcdError::Canceled,
    EtcdError::DeadlineExceeded,
    EtcdError::WatchCanceled,
    EtcdError::TimeoutWaitAppliedIndex,
];

/// The operations that both services are made of, in the name of one client.
#[derive(Clone)]
pub struct Session {
    caller: Caller<BaseServices>,
}

/// As etcd's services answer: they call the store through its own client, which turns the errors
/// that it knows into values without a code, so that they arrive as Unknown. An end of the server
/// keeps its code: it tells clients to go elsewhere.
fn outward(status: Status) -> Status {
    let known = EtcdError::ALL
        .iter()
        .any(|error| error.text() == status.message() && !UNRECOGNISED.contains(error));
    if known && status.message() != EtcdError::Stopped.text() {
        return Status::unknown(status.message());
    }
    status
}

impl Session {
    /// Calls on behalf of whoever sent `request`.
    pub fn new<T>(services: BaseServices, request: &tonic::Request<T>) -> Self {
        Self {
            caller: Caller::on_behalf_of(services, request),
        }
    }

    /// The lease of a waiter: the caller's own, or a new one that nobody renews.
    ///
    /// # Errors
    /// As LeaseGrant.
    pub async fn lease(&self, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let request = LeaseGrantRequest {
            ttl: SESSION_TTL_SECONDS,
            id: 0,
        };
        let granted: LeaseGrantResponse = self
            .caller
            .unary(LEASE_GRANT_PATH, &request)
            .await
            .map_err(outward)?;
        Ok(granted.id)
    }

    /// Range.
    ///
    /// # Errors
    /// As Range.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.caller
            .unary(RANGE_PATH, &request)
            .await
            .map_err(outward)
    }

    /// Txn.
    ///
    /// # Errors
    /// As Txn.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        self.caller.unary(TXN_PATH, &request).await.map_err(outward)
    }

    /// Deletes one key.
    ///
    /// # Errors
    /// As DeleteRange.
    pub async fn delete(&self, key: Bytes) -> Result<DeleteRangeResponse, Status> {
        let request = DeleteRangeRequest {
            key,
            ..Default::default()
        };
        self.caller
            .unary(DELETE_RANGE_PATH, &request)
            .await
            .map_err(outward)
    }

    /// Waits until no key below `prefix` is older than `created_max`.
    ///
    /// # Errors
    /// As Range and Watch.
    pub async fn wait_for_older(&self, prefix: &Bytes, created_max: i64) -> Result<(), Status> {
        loop {
            let mut request = edge_of(prefix, range_request::SortOrder::Descend);
            request.max_create_revision = created_max;
            let response = self.range(request).await?;
            let Some(last) = response.kvs.first() else {
                return Ok(());
            };
            let revision = response.header.map_or(0, |header| header.revision);
            let mut watch = self
                .watch(decode(last)?.key, Bytes::new(), revision)
                .await?;
            while !watch
                .next()
                .await?
                .ok_or_else(|| Status::unknown("lost watcher waiting for delete"))?
                .events
                .iter()
                .any(|event| event.r#type == EventType::Delete as i32)
            {}
        }
    }

    /// Watches from a revision on.
    ///
    /// # Errors
    /// None yet; they come with the answers.
    pub async fn watch(
        &self,
        key: Bytes,
        range_end: Bytes,
        start_revision: i64,
    ) -> Result<Watch, Status> {
        let answers = self.caller.watch(key, range_end, start_revision).await;
        Ok(Watch { answers })
    }
}

/// One watch of this process.
pub struct Watch {
    answers: Answers,
}

impl Watch {
    /// The next answer with events; nothing once the stream has ended.
    ///
    /// # Errors
    /// Why the watch was cancelled, as etcd's client says it.
    pub async fn next(&mut self) -> Result<Option<WatchResponse>, Status> {
        while let Some(message) = self.answers.next_message().await {
            let response = WatchResponse::decode(message.map_err(outward)?)
                .map_err(|error| Status::internal(error.to_string()))?;
            if response.compact_revision != 0 {
                return Err(Status::unknown(EtcdError::Compacted.text()));
            }
            if response.canceled {
                let reason = outward(Status::failed_precondition(response.cancel_reason));
                return Err(reason);
            }
            if !response.events.is_empty() {
                return Ok(Some(response));
            }
        }
        Ok(None)
    }
}

/// The fields of a pair.
///
/// # Errors
/// When the store holds bytes that are none, which its checksums exclude.
pub fn decode(pair: &EncodedKeyValue) -> Result<KeyValue, Status> {
    pair.decode()
        .map_err(|error| Status::internal(error.to_string()))
}

/// The name with the separator that ends it.
pub fn prefix_of(name: &[u8]) -> Bytes {
    Bytes::from([name, b"/"].concat())
}

/// A waiter's key: the prefix and its lease, in Go's `%x`.
pub fn waiter_key(prefix: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    Bytes::from(
        [
            prefix,
            format!("{sign}{:x}", lease.unsigned_abs()).as_bytes(),
        ]
        .concat(),
    )
}

/// The end of the range of all keys with this prefix.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let kept = prefix
        .iter()
        .rposition(|byte| *byte != u8::MAX)
        .map_or(0, |last| last + 1);
    let Some((last, rest)) = prefix[..kept].split_last() else {
        // Everything from the key on.
        return Bytes::from_static(b"\0");
    };
    Bytes::from([rest, &[last + 1]].concat())
}

/// Reads the key below `prefix` that was created first (ascending) or last.
pub fn edge_of(prefix: &Bytes, order: range_request::SortOrder) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: prefix_end(prefix),
        limit: 1,
        sort_order: order.into(),
        sort_target: range_request::SortTarget::Create.into(),
        ..Default::default()
    }
}

/// Whether the key was created at this revision; 0: does not exist.
pub fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Create.into(),
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(compare::TargetUnion::CreateRevision(revision)),
    }
}

/// An operation that reads.
pub fn get(request: RangeRequest) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestRange(request)),
    }
}

/// An operation that reads one key.
pub fn get_key(key: &Bytes) -> RequestOp {
    get(RangeRequest {
        key: key.clone(),
        ..Default::default()
    })
}

/// An operation that writes a key of this lease.
pub fn put(key: &Bytes, value: Bytes, lease: i64) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestPut(PutRequest {
            key: key.clone(),
            value,
            lease,
            ..Default::default()
        })),
    }
}

/// An operation that deletes one key.
pub fn delete(key: &Bytes) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestDeleteRange(
            DeleteRangeRequest {
                key: key.clone(),
                ..Default::default()
            },
        )),
    }
}

/// The first pair that the range at `position` of a transaction found.
///
/// # Errors
/// As [`decode`].
pub fn found(response: &TxnResponse, position: usize) -> Result<Option<KeyValue>, Status> {
    match response
        .responses
        .get(position)
        .and_then(|op| op.response.as_ref())
    {
        Some(response_op::Response::ResponseRange(range)) => {
            range.kvs.first().map(decode).transpose()
        }
        _ => Ok(None),
    }
}

/// Takes a waiter out of the queue when its client goes away while it waits.
///
/// Dropping a handler is how the connection says that the client cancelled its call. Nobody else
/// knows of the key then, and it would block those behind it until its lease ends.
pub struct Withdrawal {
    session: Session,
    request: Option<TxnRequest>,
}

impl Withdrawal {
    /// Runs `request` unless [`Withdrawal::disarm`] is called.
    pub fn armed(session: &Session, request: TxnRequest) -> Self {
        Self {
            session: session.clone(),
            request: Some(request),
        }
    }

    /// The wait is over and the key is wanted.
    pub fn disarm(mut self) {
        self.request = None;
    }

    /// The wait failed: takes the key away at once.
    pub async fn now(mut self) {
        if let Some(request) = self.request.take() {
            // The caller gets the error that led here; the lease ends the key if this fails too.
            let _ = self.session.txn(request).await;
        }
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        let Some(request) = self.request.take() else {
            return;
        };
        // Outside of a runtime the process is ending, and leases do the rest.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let session = self.session.clone();
            runtime.spawn(async move { session.txn(request).await });
        }
    }
}

/// The status of an error that has a text and no code.
pub fn plain_error(text: &str) -> Status {
    Status::new(Code::Unknown, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_have_the_keys_of_the_go_package() {
        assert_eq!(waiter_key(b"name/", 0x694d_71dd), "name/694d71dd");
        assert_eq!(waiter_key(b"/", -1), "/-1");
        assert_eq!(waiter_key(b"n/", i64::MIN), "n/-8000000000000000");
    }

    #[test]
    fn the_end_of_a_prefix_is_the_next_one() {
        for (prefix, end) in [
            (&b"a/"[..], &b"a0"[..]),
            (b"a\xff/", b"a\xff0"),
            (b"a\xff", b"b"),
            (b"\xff\xff", b"\0"),
        ] {
            assert_eq!(prefix_end(prefix), end);
        }
    }

    #[test]
    fn known_errors_lose_their_code_as_in_etcd() {
        let lost = outward(EtcdError::LeaseNotFound.into());
        assert_eq!(lost.code(), Code::Unknown);
        assert_eq!(lost.message(), EtcdError::LeaseNotFound.text());
        let kept = outward(EtcdError::PermissionNotGiven.into());
        assert_eq!(kept.code(), Code::InvalidArgument);
    }
}
