//! The keys of the cluster, by the names that clients of this proxy have for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use metastore_proto::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use prost::Message;
use tonic::Status;

use super::namespace::Namespace;
use super::upstream::Upstream;
use crate::observe::metrics::grpc::method;

/// How often each endpoint is asked for a newer revision; clientv3's number.
const ORDER_TRIES_PER_ENDPOINT: usize = 5;
/// Pause between two such questions.
const ORDER_PAUSE: Duration = Duration::from_millis(10);
/// clientv3's text.
const NO_GREATER_REVISION: &str =
    "etcdclient: no cluster members have a revision higher than the previously received revision";

/// Asks the cluster about keys: puts the namespace in front, and keeps the order of revisions if it is to.
pub struct ClusterKeys {
    pub upstream: Arc<Upstream>,
    pub namespace: Namespace,
    /// The highest revision that a read has shown; nothing: reads may go back.
    shown_revision: Option<AtomicI64>,
}

/// The message that these bytes are.
///
/// # Errors
/// They are none.
pub fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message)
        .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))
}

/// The bytes of a message.
pub fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

impl ClusterKeys {
    /// With `keeps_order`, reads do not go back: `--experimental-serializable-ordering`.
    pub fn new(upstream: Arc<Upstream>, namespace: Namespace, keeps_order: bool) -> Self {
        Self {
            upstream,
            namespace,
            shown_revision: keeps_order.then(AtomicI64::default),
        }
    }

    /// Reads; the message is the encoded request.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn range_encoded(
        &self,
        headers: &HeaderMap,
        mut request: RangeRequest,
        message: Bytes,
    ) -> Result<Bytes, Status> {
        let message = match self.namespace.is_empty() {
            true => message,
            false => {
                self.namespace.range(&mut request)?;
                encode(&request)
            }
        };
        let answer = self.ordered(headers, message).await?;
        if self.namespace.is_empty() {
            return Ok(answer);
        }
        let mut answer: RangeResponse = decode(answer)?;
        self.namespace.strip_range(&mut answer);
        Ok(encode(&answer))
    }

    /// Reads.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn range(
        &self,
        headers: &HeaderMap,
        request: RangeRequest,
    ) -> Result<RangeResponse, Status> {
        let message = encode(&request);
        decode(self.range_encoded(headers, request, message).await?)
    }

    /// Runs a transaction.
    ///
    /// # Errors
    /// The cluster's. Whether it was done is unknown unless the code says that the request is at fault.
    pub async fn txn(
        &self,
        headers: &HeaderMap,
        mut request: TxnRequest,
    ) -> Result<TxnResponse, Status> {
        if !self.namespace.is_empty() {
            self.namespace.txn(&mut request)?;
        }
        let path = method::TXN.path();
        let answer = self.upstream.unary(path, headers, encode(&request)).await?;
        let mut answer: TxnResponse = decode(answer)?;
        if !self.namespace.is_empty() {
            self.namespace.strip_txn(&mut answer);
        }
        Ok(answer)
    }

    /// Asks again as long as the answer is older than what was shown before.
    async fn ordered(&self, headers: &HeaderMap, message: Bytes) -> Result<Bytes, Status> {
        let path = method::RANGE.path();
        let Some(shown) = &self.shown_revision else {
            return self.upstream.unary(path, headers, message).await;
        };
        let before = shown.load(Ordering::Acquire);
        for _ in 0..ORDER_TRIES_PER_ENDPOINT * self.upstream.endpoint_count() + 1 {
            let answer = self.upstream.unary(path, headers, message.clone()).await?;
            let response: RangeResponse = decode(answer.clone())?;
            let revision = response.header.map_or(0, |header| header.revision);
            if revision >= before {
                shown.fetch_max(revision, Ordering::AcqRel);
                return Ok(answer);
            }
            tokio::time::sleep(ORDER_PAUSE).await;
        }
        Err(Status::unknown(NO_GREATER_REVISION))
    }
}
