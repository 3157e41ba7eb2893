//! The KV service.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use http::{Request, Response};
use metastore_proto::codec::SmallBufferCodec;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
    request_op,
};
use metastore_proto::internal::command::Request as Proposal;
use metastore_store::CommandResponse;
use metastore_store::validate::{self, StreamRefusal};
use prost::Message;
use tonic::Status;
use tonic::server::{Grpc, ServerStreamingService};

use super::services::RequestBody;
use super::unary::{self, ResponseBody};
use super::{OnLearner, check_call};
use crate::error::RequestError;
use crate::node::Node;

/// Keys in the first chunk of a stream; etcd's `initialStreamChunkLimit`.
const FIRST_CHUNK_KEYS: i64 = 10;
/// A range of at most this many keys is read on the client's own runtime thread; a larger one goes
/// to the blocking pool, where it holds up nobody.
const INLINE_KEYS_MAX: i64 = 1000;

/// A method of the KV service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Method {
    Range,
    RangeStream,
    Put,
    DeleteRange,
    Txn,
    Compact,
    Unknown,
}

impl Method {
    /// The method of this name.
    pub fn parse(name: &str) -> Self {
        match name {
            "Range" => Self::Range,
            "RangeStream" => Self::RangeStream,
            "Put" => Self::Put,
            "DeleteRange" => Self::DeleteRange,
            "Txn" => Self::Txn,
            "Compact" => Self::Compact,
            _ => Self::Unknown,
        }
    }
}

/// The KV service of a member.
#[derive(Clone)]
pub struct KeyValueService {
    node: Arc<Node>,
}

impl KeyValueService {
    /// The service of `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    fn unexpected(response: &CommandResponse) -> RequestError {
        RequestError::Unknown(format!("unexpected result of a command: {response:?}"))
    }

    /// Range.
    ///
    /// # Errors
    /// As etcd's Range.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, RequestError> {
        validate::range(&request)?;
        if !request.serializable {
            self.node.linearize().await?;
        }
        let mut response = self.read(request).await?;
        self.node.fill(&mut response.header);
        Ok(response)
    }

    async fn read(&self, request: RangeRequest) -> Result<RangeResponse, RequestError> {
        let reader = self.node.reader();
        if is_small(&request) {
            return Ok(reader.range(&request)?);
        }
        Box::pin(blocking(move || Ok(reader.range(&request)?))).await
    }

    /// Put.
    ///
    /// # Errors
    /// As etcd's Put.
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse, RequestError> {
        validate::put(&request)?;
        match self.node.propose_store(Proposal::Put(request)).await? {
            CommandResponse::Put(mut response) => {
                self.node.fill(&mut response.header);
                Ok(response)
            }
            other => Err(Self::unexpected(&other)),
        }
    }

    /// DeleteRange.
    ///
    /// # Errors
    /// As etcd's DeleteRange.
    pub async fn delete_range(
        &self,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, RequestError> {
        validate::delete_range(&request)?;
        match self
            .node
            .propose_store(Proposal::DeleteRange(request))
            .await?
        {
            CommandResponse::DeleteRange(mut response) => {
                self.node.fill(&mut response.header);
                Ok(response)
            }
            other => Err(Self::unexpected(&other)),
        }
    }

    /// Txn.
    ///
    /// # Errors
    /// As etcd's Txn.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, RequestError> {
        validate::txn(&request, self.node.config.max_txn_ops)?;
        let mut response = if is_read_only(&request) {
            if !is_serializable(&request) {
                self.node.linearize().await?;
            }
            let reader = self.node.reader();
            blocking(move || Ok(reader.read_only_txn(&request)?)).await?
        } else {
            match self.node.propose_store(Proposal::Txn(request)).await? {
                CommandResponse::Txn(response) => response,
                other => return Err(Self::unexpected(&other)),
            }
        };
        self.node.fill(&mut response.header);
        Ok(response)
    }

    /// Compact.
    ///
    /// # Errors
    /// As etcd's Compact.
    pub async fn compact(
        &self,
        request: CompactionRequest,
    ) -> Result<CompactionResponse, RequestError> {
        let physical = request.physical;
        let revision = request.revision;
        let mut response = match self
            .node
            .propose_store(Proposal::Compaction(request))
            .await?
        {
            CommandResponse::Compaction(response) => response,
            other => return Err(Self::unexpected(&other)),
        };
        if physical {
            self.node
                .application
                .compaction
                .wait_finished(revision)
                .await;
        }
        response.header = Some(self.node.header());
        Ok(response)
    }
}

/// Runs a read that may take long where it holds up nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
) -> Result<T, RequestError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(EtcdError::Stopped.into()),
    }
}

fn is_small(request: &RangeRequest) -> bool {
    request.range_end.is_empty()
        || (request.count_only && request.revision <= 0)
        || (request.limit > 0
            && request.limit <= INLINE_KEYS_MAX
            && request.sort_order == 0
            && request.min_mod_revision == 0
            && request.max_mod_revision == 0
            && request.min_create_revision == 0
            && request.max_create_revision == 0)
}

/// Whether a transaction holds only ranges at its top level (etcd sends any nested one through the
/// log).
fn is_read_only(request: &TxnRequest) -> bool {
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| matches!(op.request, Some(request_op::Request::RequestRange(_))))
}

/// Whether every range of a read-only transaction is serializable.
fn is_serializable(request: &TxnRequest) -> bool {
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| match &op.request {
            Some(request_op::Request::RequestRange(range)) => range.serializable,
            _ => false,
        })
}

impl KeyValueService {
    /// Answers a call of the KV service.
    pub async fn call<B: RequestBody>(
        &self,
        request: Request<B>,
        method: Method,
    ) -> Response<ResponseBody> {
        let bytes_max = self.node.receive_bytes_max();
        let node = &self.node;
        match method {
            Method::Range => {
                unary::serve(
                    request,
                    bytes_max,
                    |headers, range: RangeRequest| async move {
                        let on_learner = if range.serializable {
                            OnLearner::Allowed
                        } else {
                            OnLearner::Refused
                        };
                        check_call(node, &headers, on_learner)?;
                        Ok(self.range(range).await?)
                    },
                )
                .await
            }
            Method::Put => {
                unary::serve(request, bytes_max, |headers, put| async move {
                    check_call(node, &headers, OnLearner::Refused)?;
                    Ok(self.put(put).await?)
                })
                .await
            }
            Method::Txn => {
                unary::serve(request, bytes_max, |headers, txn| async move {
                    check_call(node, &headers, OnLearner::Refused)?;
                    Ok(self.txn(txn).await?)
                })
                .await
            }
            Method::DeleteRange => {
                unary::serve(request, bytes_max, |headers, delete| async move {
                    check_call(node, &headers, OnLearner::Refused)?;
                    Ok(self.delete_range(delete).await?)
                })
                .await
            }
            Method::Compact => {
                unary::serve(request, bytes_max, |headers, compaction| async move {
                    check_call(node, &headers, OnLearner::Refused)?;
                    Ok(self.compact(compaction).await?)
                })
                .await
            }
            Method::RangeStream => {
                let streaming = RangeStreaming(self.clone());
                Box::pin(async move {
                    Grpc::new(SmallBufferCodec::default())
                        .apply_max_message_size_config(Some(bytes_max), None)
                        .server_streaming(streaming, request)
                        .await
                })
                .await
                .map(ResponseBody::Tonic)
            }
            Method::Unknown => unary::failure(Status::unimplemented(
                "unknown method for service etcdserverpb.KV",
            )),
        }
    }
}

/// RangeStream as tonic wants it.
struct RangeStreaming(KeyValueService);

type RangeChunks = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

impl ServerStreamingService<RangeRequest> for RangeStreaming {
    type Response = RangeStreamResponse;
    type ResponseStream = RangeChunks;
    type Future =
        Pin<Box<dyn Future<Output = Result<tonic::Response<RangeChunks>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<RangeRequest>) -> Self::Future {
        let node = Arc::clone(&self.0.node);
        Box::pin(async move {
            check_call(&node, request.metadata().as_ref(), OnLearner::Refused)?;
            let request = request.into_inner();
            validate::range_stream(&request).map_err(|refusal| match refusal {
                StreamRefusal::Invalid(error) => Status::from(error),
                StreamRefusal::Unimplemented(text) => Status::unimplemented(text),
            })?;
            if !request.serializable {
                node.linearize().await?;
            }
            let chunks: RangeChunks = Box::pin(stream_range(node, request));
            Ok(tonic::Response::new(chunks))
        })
    }
}

/// The chunks of a RangeStream: one revision for all, header, `more` and `count` on the last only.
fn stream_range(
    node: Arc<Node>,
    mut request: RangeRequest,
) -> impl Stream<Item = Result<RangeStreamResponse, Status>> + Send {
    let chunk_bytes = node.config.max_request_bytes;
    async_stream::try_stream! {
        if request.count_only {
            let reader = node.reader();
            let counted = blocking(move || Ok(reader.range(&request)?)).await?;
            let mut header = counted.header;
            node.fill(&mut header);
            yield RangeStreamResponse {
                range_response: Some(RangeResponse { header, count: counted.count, ..Default::default() }),
            };
            return;
        }
        let wanted = if request.limit > 0 { request.limit } else { i64::MAX };
        let mut chunk_keys = FIRST_CHUNK_KEYS.min(wanted);
        let mut sent = 0;
        let mut pinned = 0;
        loop {
            request.limit = chunk_keys;
            let reader = node.reader();
            let part = request.clone();
            let chunk = blocking(move || Ok(reader.range(&part)?)).await?;
            if pinned == 0 {
                pinned = chunk.header.as_ref().map_or(0, |header| header.revision);
                if request.revision <= 0 {
                    request.revision = pinned;
                }
            }
            sent += i64::try_from(chunk.kvs.len()).unwrap_or(i64::MAX);
            let done = !chunk.more || sent >= wanted;
            let size = chunk.encoded_len();
            let next_key = chunk.kvs.last().and_then(|kv| {
                let key = metastore_proto::encoded_field_bytes(&kv.0, 1)?;
                Some(bytes::Bytes::from([key, b"\0"].concat()))
            });
            let mut out = RangeResponse { kvs: chunk.kvs, ..Default::default() };
            if done {
                let mut header = chunk.header;
                if let Some(header) = &mut header {
                    header.revision = pinned;
                }
                node.fill(&mut header);
                out.header = header;
                out.more = chunk.more;
                // `count` of a chunk counts from its own first key on.
                out.count = sent - i64::try_from(out.kvs.len()).unwrap_or(0) + chunk.count;
            }
            yield RangeStreamResponse { range_response: Some(out) };
            if done {
                return;
            }
            let Some(next_key) = next_key else { return };
            request.key = next_key;
            // Chunks double or halve towards the size of the largest request.
            if size < chunk_bytes / 2 {
                chunk_keys = chunk_keys.saturating_mul(2);
            } else if size > chunk_bytes * 2 {
                chunk_keys = (chunk_keys / 2).max(1);
            }
            chunk_keys = chunk_keys.min(wanted - sent);
        }
    }
}
