//! The key-value service: namespace, cache, and order of revisions.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, RequestOp, TxnRequest, TxnResponse,
    request_op::Request,
};
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use super::cache::{Cache, Interval, Kept, Question};
use super::metrics::ProxyMetrics;
use super::namespace::Namespace;
use super::upstream::{Upstream, told, trailers};
use crate::observe::metrics::grpc::method;
use crate::rpc::in_process::{Answers, framed, one_message};
use crate::rpc::unary::ResponseBody;

/// How often each endpoint is asked for a newer revision; clientv3's number.
const ORDER_TRIES_PER_ENDPOINT: usize = 5;
/// Pause between two such questions.
const ORDER_PAUSE: Duration = Duration::from_millis(10);
/// clientv3's text.
const NO_GREATER_REVISION: &str =
    "etcdclient: no cluster members have a revision higher than the previously received revision";

/// Answers key-value calls.
pub struct KeyValueProxy {
    upstream: Arc<Upstream>,
    namespace: Namespace,
    cache: Cache,
    /// The highest revision that a read has shown; nothing: reads may go back.
    shown_revision: Option<AtomicI64>,
    metrics: ProxyMetrics,
}

fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message)
        .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))
}

fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

impl KeyValueProxy {
    /// With `keeps_order`, serializable reads do not go back: `--experimental-serializable-ordering`.
    pub fn new(
        upstream: Arc<Upstream>,
        namespace: Namespace,
        keeps_order: bool,
        metrics: ProxyMetrics,
    ) -> Self {
        Self {
            upstream,
            namespace,
            cache: Cache::default(),
            shown_revision: keeps_order.then(AtomicI64::default),
            metrics,
        }
    }

    /// Answers `Range`.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn range(&self, headers: &HeaderMap, message: Bytes) -> Result<Bytes, Status> {
        let request: RangeRequest = decode(message.clone())?;
        if request.key.is_empty() {
            return Err(EtcdError::EmptyKey.into());
        }
        // What one client may read is not for another one.
        let is_anonymous = !headers.contains_key("token") && !headers.contains_key("authorization");
        if !is_anonymous {
            return self.read(headers, request, message).await;
        }
        let question = question(&request);
        if request.serializable {
            match self.cache.get(&question) {
                Kept::Answer(answer) => {
                    self.metrics.cache_hits.inc();
                    return Ok(answer);
                }
                Kept::Compacted => {
                    self.metrics.cache_hits.inc();
                    return Err(EtcdError::Compacted.into());
                }
                Kept::Nothing => self.metrics.cache_misses.inc(),
            }
        }
        let read = self.cache.begin(question);
        let answer = self.read(headers, request, message).await?;
        read.answered(&answer);
        self.count_keys();
        Ok(answer)
    }

    async fn read(
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

    /// Answers `RangeStream`.
    ///
    /// # Errors
    /// The cluster's, when it comes at once.
    pub async fn range_stream(
        &self,
        headers: &HeaderMap,
        message: Bytes,
    ) -> Result<Response<Body>, Status> {
        let mut request: RangeRequest = decode(message)?;
        if !self.namespace.is_empty() {
            self.namespace.range(&mut request)?;
        }
        let path = method::RANGE_STREAM.path();
        let body = one_message(&request);
        let response = self.upstream.stream(path, headers, body).await?;
        if self.namespace.is_empty() {
            return Ok(response.map(super::upstream::Told).map(Body::new));
        }
        let namespace = self.namespace.clone();
        Ok(response.map(|body| {
            let answers = Answers::new(Response::new(ResponseBody::Tonic(body)));
            let frames = answers
                .map(move |message| {
                    let mut answer: RangeStreamResponse = decode(message?)?;
                    if let Some(range) = &mut answer.range_response {
                        namespace.strip_range(range);
                    }
                    Ok(framed(&answer.encode_to_vec()))
                })
                .map(Some)
                .chain(futures::stream::once(std::future::ready(None)));
            let frames = frames.map(|item: Option<Result<Bytes, Status>>| match item {
                Some(Ok(bytes)) => Ok(Frame::data(bytes)),
                Some(Err(status)) => trailers(&told(status)).map(Frame::trailers),
                None => trailers(&Status::ok("")).map(Frame::trailers),
            });
            Body::new(StreamBody::new(frames))
        }))
    }

    /// Answers `Put`.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn put(&self, headers: &HeaderMap, message: Bytes) -> Result<Bytes, Status> {
        let mut request: PutRequest = decode(message.clone())?;
        let interval = Interval {
            key: request.key.clone(),
            range_end: Bytes::new(),
        };
        let path = method::PUT.path();
        if self.namespace.is_empty() {
            return self.change(path, headers, message, &[interval]).await;
        }
        self.namespace.put(&mut request)?;
        let answer = self
            .change(path, headers, encode(&request), &[interval])
            .await?;
        let mut answer: PutResponse = decode(answer)?;
        self.namespace.strip_put(&mut answer);
        Ok(encode(&answer))
    }

    /// Answers `DeleteRange`.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn delete_range(&self, headers: &HeaderMap, message: Bytes) -> Result<Bytes, Status> {
        let mut request: DeleteRangeRequest = decode(message.clone())?;
        let interval = Interval {
            key: request.key.clone(),
            range_end: request.range_end.clone(),
        };
        let path = method::DELETE_RANGE.path();
        if self.namespace.is_empty() {
            return self.change(path, headers, message, &[interval]).await;
        }
        self.namespace.delete_range(&mut request)?;
        let answer = self
            .change(path, headers, encode(&request), &[interval])
            .await?;
        let mut answer: DeleteRangeResponse = decode(answer)?;
        self.namespace.strip_delete_range(&mut answer);
        Ok(encode(&answer))
    }

    /// Answers `Txn`.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn txn(&self, headers: &HeaderMap, message: Bytes) -> Result<Bytes, Status> {
        let mut request: TxnRequest = decode(message.clone())?;
        let mut changed = Vec::new();
        note_changes(&request, &mut changed);
        let path = method::TXN.path();
        if self.namespace.is_empty() {
            return self.change(path, headers, message, &changed).await;
        }
        self.namespace.txn(&mut request)?;
        let answer = self
            .change(path, headers, encode(&request), &changed)
            .await?;
        let mut answer: TxnResponse = decode(answer)?;
        self.namespace.strip_txn(&mut answer);
        Ok(encode(&answer))
    }

    /// Answers `Compact`.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn compact(&self, headers: &HeaderMap, message: Bytes) -> Result<Bytes, Status> {
        let request: CompactionRequest = decode(message.clone())?;
        let path = method::COMPACT.path();
        let answer = self.upstream.unary(path, headers, message).await?;
        self.cache.compact(request.revision);
        Ok(answer)
    }

    async fn change(
        &self,
        path: &str,
        headers: &HeaderMap,
        message: Bytes,
        changed: &[Interval],
    ) -> Result<Bytes, Status> {
        let change = Change {
            cache: &self.cache,
            changed,
        };
        let answer = self.upstream.unary(path, headers, message).await;
        drop(change);
        self.count_keys();
        answer
    }

    fn count_keys(&self) {
        self.metrics.cache_keys.set(self.cache.size() as i64);
    }
}

/// A change on its way. Whoever reads after it must not see what was before; that also holds for a change that
/// failed or that nobody waits for any more, because it may have been done.
struct Change<'a> {
    cache: &'a Cache,
    changed: &'a [Interval],
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        for interval in self.changed {
            self.cache.invalidate(interval);
        }
    }
}

fn question(request: &RangeRequest) -> Question {
    let encoded = RangeRequest {
        serializable: true,
        ..request.clone()
    };
    Question {
        encoded: encode(&encoded),
        interval: Interval {
            key: request.key.clone(),
            range_end: request.range_end.clone(),
        },
        revision: request.revision,
    }
}

/// What a transaction may change, whichever way it goes, and what it compares: who compares knows better than
/// the cache.
fn note_changes(request: &TxnRequest, changed: &mut Vec<Interval>) {
    changed.extend(request.compare.iter().map(|compare| Interval {
        key: compare.key.clone(),
        range_end: compare.range_end.clone(),
    }));
    for RequestOp { request } in request.success.iter().chain(&request.failure) {
        match request {
            Some(Request::RequestPut(put)) => changed.push(Interval {
                key: put.key.clone(),
                range_end: Bytes::new(),
            }),
            Some(Request::RequestDeleteRange(delete)) => changed.push(Interval {
                key: delete.key.clone(),
                range_end: delete.range_end.clone(),
            }),
            Some(Request::RequestTxn(txn)) => note_changes(txn, changed),
            Some(Request::RequestRange(_)) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_changes_what_any_of_its_branches_changes() {
        let put = |key: &'static str| RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: key.into(),
                ..Default::default()
            })),
        };
        let request = TxnRequest {
            success: vec![RequestOp {
                request: Some(Request::RequestTxn(TxnRequest {
                    failure: vec![put("a")],
                    ..Default::default()
                })),
            }],
            failure: vec![put("b")],
            ..Default::default()
        };
        let mut changed = Vec::new();
        note_changes(&request, &mut changed);
        let keys: Vec<_> = changed.iter().map(|interval| &interval.key[..]).collect();
        assert_eq!(keys, [&b"a"[..], b"b"]);
    }
}
