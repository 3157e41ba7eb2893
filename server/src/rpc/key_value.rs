//! The KV service.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use http::request::Parts;
use http::{Request, Response};
use metastore_auth::Identity;
use metastore_proto::codec::SmallBufferCodec;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
    request_op,
};
use metastore_proto::internal::command::Request as Proposal;
use metastore_store::validate::{self, StreamRefusal};
use metastore_store::{CommandResponse, Reader};
use opentelemetry::KeyValue;
use prost::Message;
use tonic::Status;
use tonic::server::{Grpc, ServerStreamingService};

use super::services::RequestBody;
use super::unary::{self, CallOptions, ResponseBody};
use super::{OnLearner, check_call, check_stream, credentials};
use crate::auth::Credentials;
use crate::client_limits::{ListBudget, ListShare};
use crate::error::RequestError;
use crate::node::Node;
use crate::observe::metrics::grpc::{self, method};
use crate::observe::metrics::{METRICS, RANGE, READ_ONLY_TXN};
use crate::observe::traces;
use crate::quota;
use crate::slow_requests;

/// Keys in the first chunk of a stream; etcd's `initialStreamChunkLimit`.
const FIRST_CHUNK_KEYS: usize = 10;
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

/// What a call has of the budget of large lists, until its answer has been sent.
type Held = parking_lot::Mutex<Option<ListShare>>;

/// Calls that may have something of the budget.
trait Holding: Future<Output = Response<ResponseBody>> + Send + Sized + 'static {
    /// The call; its answer has what the call had.
    fn hold(self, held: Option<Arc<Held>>) -> BoxFuture<'static, Response<ResponseBody>> {
        let Some(held) = held else {
            return self.boxed();
        };
        self.map(move |response| match held.lock().take() {
            None => response,
            Some(share) => response.map(|body| body.holding(share)),
        })
        .boxed()
    }
}

impl<F: Future<Output = Response<ResponseBody>> + Send + 'static> Holding for F {}

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
    pub async fn range(
        &self,
        request: RangeRequest,
        credentials: &Credentials,
        held: Option<&Held>,
    ) -> Result<RangeResponse, RequestError> {
        validate::range(&request)?;
        let started = Instant::now();
        let attributes = range_attributes(&request);
        let answer = pin!(self.range_checked(request, credentials, held, started));
        let result = traces::in_span("range", attributes, answer).await;
        METRICS
            .request_duration
            .observe(RANGE, result.is_ok(), started.elapsed().as_secs_f64());
        result
    }

    async fn range_checked(
        &self,
        request: RangeRequest,
        credentials: &Credentials,
        held: Option<&Held>,
        started: Instant,
    ) -> Result<RangeResponse, RequestError> {
        if !request.serializable {
            self.node.linearize().await?;
        }
        let identity = self
            .node
            .authorize(credentials, |state, identity| {
                state.check_range(identity, &request.key, &request.range_end)
            })
            .await?;
        let reading = Instant::now();
        let result = self.read(&request, held).await;
        observe_range(reading, result.is_ok());
        self.node.check_unchanged(identity.as_ref())?;
        let mut response = result?;
        let (took, expected) = (started.elapsed(), self.node.config.warning_apply_duration);
        if took > expected {
            slow_requests::warn_of_range(took, expected, &request, &response);
        }
        self.node.fill(&mut response.header);
        Ok(response)
    }

    async fn read(
        &self,
        request: &RangeRequest,
        held: Option<&Held>,
    ) -> Result<RangeResponse, RequestError> {
        if is_small(request) {
            return Ok(self.node.reader().range(request)?);
        }
        if let Some(budget) = &self.node.list_budget
            && !request.count_only
        {
            let ranges = std::slice::from_ref(request).iter();
            Box::pin(self.admit_lists(budget, ranges, held)).await?;
        }
        let reader = self.node.reader();
        let request = request.clone();
        let response = Box::pin(blocking(move || Ok(reader.range(&request)?))).await?;
        if let (Some(budget), Some(held)) = (&self.node.list_budget, held)
            && let Some(share) = &mut *held.lock()
        {
            budget.settle(
                share,
                response.kvs.len() as u64,
                response.encoded_len() as u64,
            );
        }
        Ok(response)
    }

    /// Waits until there is room for the lists of a request.
    async fn admit_lists<'a>(
        &self,
        budget: &ListBudget,
        ranges: impl Iterator<Item = &'a RangeRequest> + Send,
        held: Option<&Held>,
    ) -> Result<(), RequestError> {
        let reader = self.node.reader();
        let count = |key: &Bytes, range_end: &Bytes| {
            let request = RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                count_only: true,
                ..RangeRequest::default()
            };
            Ok::<_, RequestError>(u64::try_from(reader.range(&request)?.count).unwrap_or(0))
        };
        let mut keys = 0_u64;
        for range in ranges.filter(|range| !is_small(range)) {
            let found = count(&range.key, &range.range_end)?;
            let limit = u64::try_from(range.limit).ok().filter(|limit| *limit > 0);
            keys = keys.saturating_add(found.min(limit.unwrap_or(found)));
        }
        let everything = Bytes::from_static(b"\0");
        let all = count(&everything, &everything)?;
        let size = self.node.application.space.used_bytes();
        let bytes_per_key = size.checked_div(all).unwrap_or(0);
        let limit = self.node.request_timeout();
        match tokio::time::timeout(limit, budget.admit(keys, bytes_per_key)).await {
            Ok(share) => {
                if let Some(held) = held {
                    *held.lock() = share;
                }
                Ok(())
            }
            Err(_) => Err(EtcdError::RequestTooManyRequests.into()),
        }
    }

    /// Put.
    ///
    /// # Errors
    /// As etcd's Put.
    pub async fn put(
        &self,
        request: PutRequest,
        credentials: &Credentials,
    ) -> Result<PutResponse, RequestError> {
        self.node.check_quota(quota::put_cost(&request)).await?;
        validate::put(&request)?;
        let key = traces::is_on().then(|| traces::text(&request.key));
        let attributes = || vec![KeyValue::new("key", key.unwrap_or_default())];
        let proposal = pin!(self.node.propose_store(Proposal::Put(request), credentials));
        match traces::in_span("put", attributes, proposal).await? {
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
        credentials: &Credentials,
    ) -> Result<DeleteRangeResponse, RequestError> {
        validate::delete_range(&request)?;
        let range = traces::is_on().then(|| {
            vec![
                KeyValue::new("range_begin", traces::text(&request.key)),
                KeyValue::new("range_end", traces::text(&request.range_end)),
            ]
        });
        let proposal = pin!(
            self.node
                .propose_store(Proposal::DeleteRange(request), credentials)
        );
        match traces::in_span("delete_range", || range.unwrap_or_default(), proposal).await? {
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
    pub async fn txn(
        &self,
        request: TxnRequest,
        credentials: &Credentials,
        held: Option<&Held>,
    ) -> Result<TxnResponse, RequestError> {
        self.node.check_quota(quota::txn_cost(&request)).await?;
        validate::txn(&request, self.node.config.max_txn_ops)?;
        let attributes = traces::is_on().then(|| txn_attributes(&request));
        let answer = pin!(self.txn_checked(request, credentials, held));
        traces::in_span("txn", || attributes.unwrap_or_default(), answer).await
    }

    async fn txn_checked(
        &self,
        request: TxnRequest,
        credentials: &Credentials,
        held: Option<&Held>,
    ) -> Result<TxnResponse, RequestError> {
        let started = Instant::now();
        let mut response = if validate::is_read_only(&request) {
            if !validate::is_serializable(&request) {
                self.node.linearize().await?;
            }
            let reader = self.node.reader();
            let identity = self.authorize_txn(&request, &reader, credentials).await?;
            if let Some(budget) = &self.node.list_budget {
                let ranges = ranges_of(&request);
                Box::pin(self.admit_lists(budget, ranges, held)).await?;
            }
            let request = Arc::new(request);
            let shared = Arc::clone(&request);
            let reading = Instant::now();
            let result = blocking(move || Ok(reader.read_only_txn(&shared)?)).await;
            METRICS.request_duration.observe(
                READ_ONLY_TXN,
                result.is_ok(),
                reading.elapsed().as_secs_f64(),
            );
            self.node.check_unchanged(identity.as_ref())?;
            let response = result?;
            let (took, expected) = (started.elapsed(), self.node.config.warning_apply_duration);
            if took > expected {
                slow_requests::warn_of_read_only_txn(took, expected, &request, &response);
            }
            response
        } else {
            match self
                .node
                .propose_store(Proposal::Txn(request), credentials)
                .await?
            {
                CommandResponse::Txn(response) => response,
                other => return Err(Self::unexpected(&other)),
            }
        };
        self.node.fill(&mut response.header);
        Ok(response)
    }

    /// Whether a client may run a transaction that only reads; who it is.
    async fn authorize_txn(
        &self,
        request: &TxnRequest,
        reader: &Reader,
        credentials: &Credentials,
    ) -> Result<Option<Identity>, RequestError> {
        if !self.node.auth().is_enabled() {
            return Ok(None);
        }
        let identity = self.node.identify(credentials).await?;
        let state = self.node.auth().state();
        state.check_txn(identity.as_ref(), reader, request)?;
        Ok(identity)
    }

    /// Compact.
    ///
    /// # Errors
    /// As etcd's Compact.
    pub async fn compact(
        &self,
        request: CompactionRequest,
        credentials: &Credentials,
    ) -> Result<CompactionResponse, RequestError> {
        self.node.check_admin(credentials).await?;
        let physical = request.physical;
        let revision = request.revision;
        let attributes = || {
            vec![
                KeyValue::new("is_physical", physical),
                KeyValue::new("rev", revision),
            ]
        };
        let proposal = self
            .node
            .propose_store(Proposal::Compaction(request), credentials);
        let mut response = match traces::in_span("compact", attributes, proposal).await? {
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

/// The ranges of a transaction, those of nested ones left out: it has none if it only reads.
fn ranges_of(request: &TxnRequest) -> impl Iterator<Item = &RangeRequest> {
    let operations = request.success.iter().chain(&request.failure);
    operations.filter_map(|operation| match operation.request.as_ref()? {
        request_op::Request::RequestRange(range) => Some(range),
        _ => None,
    })
}

/// What etcd's span of a range tells; the texts are put together only while tracing is on.
fn range_attributes(request: &RangeRequest) -> impl FnOnce() -> Vec<KeyValue> + use<> {
    let attributes = traces::is_on().then(|| {
        vec![
            KeyValue::new("range_begin", traces::text(&request.key)),
            KeyValue::new("range_end", traces::text(&request.range_end)),
            KeyValue::new("rev", request.revision),
            KeyValue::new("limit", request.limit),
            KeyValue::new("count_only", request.count_only),
            KeyValue::new("keys_only", request.keys_only),
        ]
    });
    || attributes.unwrap_or_default()
}

fn txn_attributes(request: &TxnRequest) -> Vec<KeyValue> {
    use request_op::Request;
    let compared = request.compare.iter().map(|compare| &compare.key);
    let first_key = compared.into_iter().find(|key| !key.is_empty());
    let first = request
        .success
        .iter()
        .find_map(|op| match op.request.as_ref()? {
            Request::RequestPut(put) => Some((&put.key, "put")),
            Request::RequestRange(range) => Some((&range.key, "range")),
            Request::RequestDeleteRange(delete) => Some((&delete.key, "delete_range")),
            Request::RequestTxn(_) => None,
        });
    let first_lease = request
        .success
        .iter()
        .find_map(|op| match op.request.as_ref()? {
            Request::RequestPut(put) => Some(put.lease),
            _ => None,
        });
    let count = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
    let (key, kind) = first.map_or((String::new(), ""), |(key, kind)| (traces::text(key), kind));
    vec![
        KeyValue::new(
            "compare_first_key",
            first_key.map_or(String::new(), |key| traces::text(key)),
        ),
        KeyValue::new("success_first_key", key),
        KeyValue::new("success_first_type", kind),
        KeyValue::new("success_first_lease", first_lease.unwrap_or(-1)),
        KeyValue::new("compare_len", count(request.compare.len())),
        KeyValue::new("success_len", count(request.success.len())),
        KeyValue::new("failure_len", count(request.failure.len())),
        KeyValue::new("read_only", validate::is_read_only(request)),
    ]
}

/// Notes how long reading a range took; a stream reads one for each of its chunks, as in etcd.
fn observe_range(started: Instant, success: bool) {
    METRICS.range_duration[usize::from(success)].observe(started.elapsed().as_secs_f64());
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

impl KeyValueService {
    /// Answers a call of the KV service.
    ///
    /// Each method has a future of its own on the heap: one for all would be as large as the largest, and
    /// futures are copied.
    pub fn call<B: RequestBody>(
        &self,
        request: Request<B>,
        method: Method,
        options: CallOptions,
    ) -> BoxFuture<'static, Response<ResponseBody>> {
        let service = self.clone();
        // Made only where lists are limited.
        let held: Option<Arc<Held>> = self.node.list_budget.as_ref().map(|_| Arc::default());
        let taken = held.clone();
        match method {
            Method::Range => unary::serve(
                &method::RANGE,
                request,
                options,
                |parts, range: RangeRequest| async move {
                    let on_learner = if range.serializable {
                        OnLearner::Allowed
                    } else {
                        OnLearner::Refused
                    };
                    let credentials = service.admit(&parts, on_learner)?;
                    Ok(service.range(range, &credentials, taken.as_deref()).await?)
                },
            )
            .hold(held),
            Method::Put => unary::serve(&method::PUT, request, options, |parts, put| async move {
                let credentials = service.admit(&parts, OnLearner::Refused)?;
                Ok(service.put(put, &credentials).await?)
            })
            .boxed(),
            Method::Txn => unary::serve(&method::TXN, request, options, |parts, txn| async move {
                let credentials = service.admit(&parts, OnLearner::Refused)?;
                Ok(service.txn(txn, &credentials, taken.as_deref()).await?)
            })
            .hold(held),
            Method::DeleteRange => unary::serve(
                &method::DELETE_RANGE,
                request,
                options,
                |parts, delete| async move {
                    let credentials = service.admit(&parts, OnLearner::Refused)?;
                    Ok(service.delete_range(delete, &credentials).await?)
                },
            )
            .boxed(),
            Method::Compact => unary::serve(
                &method::COMPACT,
                request,
                options,
                |parts, compaction| async move {
                    let credentials = service.admit(&parts, OnLearner::Refused)?;
                    Ok(service.compact(compaction, &credentials).await?)
                },
            )
            .boxed(),
            Method::RangeStream => {
                let share = match options.stream_share(&request) {
                    Ok(share) => share,
                    Err(status) => return std::future::ready(unary::failure(status)).boxed(),
                };
                let streaming = RangeStreaming(service);
                grpc::observe(&method::RANGE_STREAM, request, move |request| async move {
                    Grpc::new(SmallBufferCodec::default())
                        .apply_max_message_size_config(Some(options.bytes_max), None)
                        .server_streaming(streaming, request)
                        .await
                })
                .map(|answer| answer.map(|body| ResponseBody::Counted(body.holding(share))))
                .boxed()
            }
            Method::Unknown => {
                std::future::ready(unary::unknown_method(request.uri().path())).boxed()
            }
        }
    }

    /// Whether this member serves the call now; who makes it.
    fn admit(&self, parts: &Parts, on_learner: OnLearner) -> Result<Credentials, Status> {
        check_call(&self.node, &parts.headers, on_learner)?;
        Ok(credentials(&self.node, &parts.headers, &parts.extensions))
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
            check_stream(&node, request.metadata().as_ref(), OnLearner::Refused)?;
            let credentials = Credentials::read(request.metadata().as_ref(), request.extensions());
            let request = request.into_inner();
            validate::range_stream(&request).map_err(|refusal| match refusal {
                StreamRefusal::Invalid(error) => Status::from(error),
                StreamRefusal::Unimplemented(text) => Status::unimplemented(text),
            })?;
            if !request.serializable {
                node.linearize().await?;
            }
            let identity = node
                .authorize(&credentials, |state, identity| {
                    state.check_range(identity, &request.key, &request.range_end)
                })
                .await?;
            let chunks = stream_range(Arc::clone(&node), request);
            let chunks: RangeChunks = Box::pin(unchanged_to_the_end(node, identity, chunks));
            Ok(tonic::Response::new(chunks))
        })
    }
}

/// The chunks of a stream, and at their end the error that users or roles have changed meanwhile.
fn unchanged_to_the_end(
    node: Arc<Node>,
    identity: Option<Identity>,
    chunks: impl Stream<Item = Result<RangeStreamResponse, Status>> + Send,
) -> impl Stream<Item = Result<RangeStreamResponse, Status>> + Send {
    let end = futures::stream::once(async move { node.check_unchanged(identity.as_ref()) })
        .filter_map(|checked| std::future::ready(checked.err().map(|error| Err(error.into()))));
    chunks.chain(end)
}

/// Keys of the first chunk. A negative limit is none to etcd, and it takes the smaller one of its own and
/// the client's: everything comes in one chunk.
fn first_chunk_keys(request: &RangeRequest) -> usize {
    if request.limit < 0 {
        usize::MAX
    } else {
        FIRST_CHUNK_KEYS
    }
}

/// The chunks of a RangeStream: one revision for all, header, `more` and `count` on the last only.
fn stream_range(
    node: Arc<Node>,
    request: RangeRequest,
) -> impl Stream<Item = Result<RangeStreamResponse, Status>> + Send {
    let chunk_bytes = node.config.max_request_bytes;
    async_stream::try_stream! {
        let mut cursor = node
            .reader()
            .range_stream_start(&request)
            .map_err(RequestError::from)?;
        let mut chunk_keys = first_chunk_keys(&request);
        loop {
            let reading = Instant::now();
            let (rest, chunk) = blocking(move || {
                let chunk = cursor.next_chunk(chunk_keys);
                Ok((cursor, chunk))
            })
            .await?;
            cursor = rest;
            observe_range(reading, chunk.is_ok());
            let chunk = chunk.map_err(RequestError::from)?;
            let done = chunk.done;
            let mut response = RangeResponse {
                kvs: chunk.kvs,
                more: chunk.more,
                count: chunk.count,
                ..Default::default()
            };
            let size = response.encoded_len();
            if done {
                response.header = Some(node.header_at(chunk.revision));
            }
            yield RangeStreamResponse { range_response: Some(response) };
            if done {
                return;
            }
            // Chunks double or halve towards the size of the largest request.
            if size < chunk_bytes / 2 {
                chunk_keys = chunk_keys.saturating_mul(2);
            } else if size > chunk_bytes * 2 {
                chunk_keys = (chunk_keys / 2).max(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of_answer<Argument, F: Future>(
        _: impl Fn(&'static KeyValueService, Argument) -> F,
    ) -> usize {
        size_of::<F>()
    }

    /// Futures are copied when they are made and when they become a task. No more than a page of memory each.
    #[test]
    fn futures_of_the_hot_calls_are_small() {
        let credentials: &'static Credentials = Box::leak(Box::default());
        for (name, bytes) in [
            (
                "range",
                bytes_of_answer(|service, range| service.range(range, credentials, None)),
            ),
            (
                "put",
                bytes_of_answer(|service, put| service.put(put, credentials)),
            ),
            (
                "txn",
                bytes_of_answer(|service, txn| service.txn(txn, credentials, None)),
            ),
        ] {
            assert!(bytes <= 4096, "{name}: {bytes} bytes");
        }
    }
}
