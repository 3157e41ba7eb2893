//! The key-value service: what is answered here, and what the cluster is asked.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeStreamResponse, RequestOp, TxnRequest, request_op::Request,
};
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use super::cache::{Cache, Interval, Kept, Question};
use super::cluster_keys::{ClusterKeys, decode, encode};
use super::leasing::{Leasing, is_anonymous};
use super::metrics::ProxyMetrics;
use super::upstream::{told, trailers};
use crate::observe::metrics::grpc::method;
use crate::rpc::in_process::{Answers, framed, one_message};
use crate::rpc::unary::ResponseBody;

/// Answers key-value calls.
pub struct KeyValueProxy {
    keys: Arc<ClusterKeys>,
    /// Keys that this proxy owns: `--experimental-leasing-prefix`.
    leasing: Option<Arc<Leasing>>,
    cache: Cache,
    metrics: ProxyMetrics,
}

impl KeyValueProxy {
    /// Asks the cluster, or for keys that it owns `leasing`.
    pub fn new(
        keys: Arc<ClusterKeys>,
        leasing: Option<Arc<Leasing>>,
        metrics: ProxyMetrics,
    ) -> Self {
        Self {
            keys,
            leasing,
            cache: Cache::default(),
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
        let is_anonymous = is_anonymous(headers);
        if !is_anonymous {
            return self.read(headers, request, message, is_anonymous).await;
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
        let answer = self.read(headers, request, message, is_anonymous).await?;
        read.answered(&answer);
        self.count_keys();
        Ok(answer)
    }

    async fn read(
        &self,
        headers: &HeaderMap,
        request: RangeRequest,
        message: Bytes,
        is_anonymous: bool,
    ) -> Result<Bytes, Status> {
        match &self.leasing {
            // Reads of whom the cluster knows are its own to permit.
            Some(leasing) if is_anonymous => Ok(encode(&leasing.range(headers, request).await?)),
            _ => self.keys.range_encoded(headers, request, message).await,
        }
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
        if !self.keys.namespace.is_empty() {
            self.keys.namespace.range(&mut request)?;
        }
        let path = method::RANGE_STREAM.path();
        let body = one_message(&request);
        let response = self.keys.upstream.stream(path, headers, body).await?;
        if self.keys.namespace.is_empty() {
            return Ok(response.map(super::upstream::Told).map(Body::new));
        }
        let namespace = self.keys.namespace.clone();
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
        let interval = Interval::of_key(&request.key);
        let path = method::PUT.path();
        let namespace = &self.keys.namespace;
        let asked = async {
            if let Some(leasing) = &self.leasing {
                return Ok(encode(&leasing.put(headers, request).await?));
            }
            if namespace.is_empty() {
                return self.keys.upstream.unary(path, headers, message).await;
            }
            namespace.put(&mut request)?;
            let message = encode(&request);
            let answer = self.keys.upstream.unary(path, headers, message).await?;
            let mut answer: PutResponse = decode(answer)?;
            namespace.strip_put(&mut answer);
            Ok(encode(&answer))
        };
        self.change(asked, &[interval]).await
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
        let namespace = &self.keys.namespace;
        let asked = async {
            if let Some(leasing) = &self.leasing {
                return Ok(encode(&leasing.delete_range(headers, request).await?));
            }
            if namespace.is_empty() {
                return self.keys.upstream.unary(path, headers, message).await;
            }
            namespace.delete_range(&mut request)?;
            let message = encode(&request);
            let answer = self.keys.upstream.unary(path, headers, message).await?;
            let mut answer: DeleteRangeResponse = decode(answer)?;
            namespace.strip_delete_range(&mut answer);
            Ok(encode(&answer))
        };
        self.change(asked, &[interval]).await
    }

    /// Answers `Txn`.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn txn(&self, headers: &HeaderMap, message: Bytes) -> Result<Bytes, Status> {
        let request: TxnRequest = decode(message.clone())?;
        let mut changed = Vec::new();
        note_changes(&request, &mut changed);
        let asked = async {
            if let Some(leasing) = &self.leasing {
                return Ok(encode(&leasing.txn(headers, request).await?));
            }
            if self.keys.namespace.is_empty() {
                let path = method::TXN.path();
                return self.keys.upstream.unary(path, headers, message).await;
            }
            Ok(encode(&self.keys.txn(headers, request).await?))
        };
        self.change(asked, &changed).await
    }

    /// Answers `Compact`.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn compact(&self, headers: &HeaderMap, message: Bytes) -> Result<Bytes, Status> {
        let request: CompactionRequest = decode(message.clone())?;
        let path = method::COMPACT.path();
        let answer = self.keys.upstream.unary(path, headers, message).await?;
        self.cache.compact(request.revision);
        Ok(answer)
    }

    async fn change(
        &self,
        asked: impl Future<Output = Result<Bytes, Status>>,
        changed: &[Interval],
    ) -> Result<Bytes, Status> {
        let change = Change {
            cache: &self.cache,
            changed,
        };
        let answer = asked.await;
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
            Some(Request::RequestPut(put)) => changed.push(Interval::of_key(&put.key)),
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
