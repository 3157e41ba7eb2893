//! Unary gRPC calls without a framework: one message in, one message out.
//!
//! The hot calls (Range, Put, DeleteRange, Txn) are 5 to 10 µs cheaper than through tonic, and the
//! errors of the framing itself (too large, compressed) get the codes and texts that grpc-go sends.
//! Streams and rare calls use tonic.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use metastore_proto::error_text::EtcdError;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};
use tonic::{Code, Status};

use super::services::RequestBody;
use crate::client_limits::{ClientKey, ClientLimits, HeldBytes, Resource, Share};
use crate::node::Node;
use crate::observe::metrics::grpc::{AnswerBody, Call, Method};
use crate::slow_requests::{self, Loggable, RequestStats};

/// Flag and length in front of each message.
pub const PREFIX_BYTES: usize = 5;
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS_OK: HeaderValue = HeaderValue::from_static("0");
/// From this size on a message is not kept until its answer. Below it, keeping it is cheaper than
/// putting together what the log might tell.
const LARGE_MESSAGE_BYTES: usize = 16 * 1024;

/// The body of an answer on the client port.
pub enum ResponseBody {
    /// One gRPC message and its trailers.
    Unary(UnaryBody),
    /// A watch stream.
    Watch(Box<super::watch::WatchBody>),
    /// An error that nobody counts: the call was never one.
    Tonic(tonic::body::Body),
    /// A stream, or a call that tonic answers.
    Counted(AnswerBody),
    /// Plain HTTP.
    Plain(http_body_util::Full<Bytes>),
    /// Plain HTTP that comes piece by piece.
    Pieces(http_body_util::combinators::UnsyncBoxBody<Bytes, Status>),
}

/// One gRPC message and its trailers.
pub struct UnaryBody {
    message: Option<Bytes>,
    trailers: bool,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::Unary(body) => {
                if let Some(message) = body.message.take() {
                    return Poll::Ready(Some(Ok(Frame::data(message))));
                }
                if std::mem::take(&mut body.trailers) {
                    let mut trailers = HeaderMap::with_capacity(1);
                    trailers.insert(GRPC_STATUS, STATUS_OK);
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Poll::Ready(None)
            }
            Self::Watch(body) => Pin::new(&mut **body).poll_frame(context),
            Self::Tonic(body) => Pin::new(body).poll_frame(context),
            Self::Counted(body) => Pin::new(body).poll_frame(context),
            Self::Plain(body) => Pin::new(body)
                .poll_frame(context)
                .map_err(|never| match never {}),
            Self::Pieces(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Unary(body) => body.message.is_none() && !body.trailers,
            Self::Watch(body) => body.is_end_stream(),
            Self::Tonic(body) => body.is_end_stream(),
            Self::Counted(body) => body.is_end_stream(),
            Self::Plain(body) => body.is_end_stream(),
            Self::Pieces(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Unary(_) | Self::Watch(_) => SizeHint::default(),
            Self::Tonic(body) => body.size_hint(),
            Self::Counted(body) => body.size_hint(),
            Self::Plain(body) => body.size_hint(),
            Self::Pieces(body) => body.size_hint(),
        }
    }
}

impl ResponseBody {
    /// Holds this until the message of a unary call has been sent.
    #[must_use]
    pub fn holding<T: Send + 'static>(mut self, held: T) -> Self {
        if let Self::Unary(body) = &mut self
            && let Some(message) = body.message.take()
        {
            body.message = Some(HeldBytes::hold(message, held));
        }
        self
    }
}

/// The answer to a failed call.
pub fn failure(status: Status) -> Response<ResponseBody> {
    status
        .into_http::<tonic::body::Body>()
        .map(ResponseBody::Tonic)
}

fn success(message: Bytes) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Unary(UnaryBody {
        message: Some(message),
        trailers: true,
    }));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

/// Reads the message of a unary call.
///
/// # Errors
/// With the texts of grpc-go.
pub async fn read_message(mut body: impl RequestBody, bytes_max: usize) -> Result<Bytes, Status> {
    let mut received = BytesMut::new();
    let mut expected = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| status_of(error.into()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        // A small call is one frame: no copy.
        if received.is_empty() && data.len() >= PREFIX_BYTES {
            let length = message_length(&data, bytes_max)?;
            if data.len() == PREFIX_BYTES + length {
                return Ok(data.slice(PREFIX_BYTES..));
            }
            received.reserve(PREFIX_BYTES + length);
            expected = Some(length);
        }
        received.extend_from_slice(&data);
        if expected.is_none() && received.len() >= PREFIX_BYTES {
            expected = Some(message_length(&received, bytes_max)?);
        }
        if let Some(length) = expected
            && received.len() >= PREFIX_BYTES + length
        {
            received.advance(PREFIX_BYTES);
            received.truncate(length);
            return Ok(received.freeze());
        }
    }
    // What grpc-go's reader of the body says.
    Err(Status::unknown(match received.is_empty() {
        true => "EOF",
        false => "unexpected EOF",
    }))
}

/// The status that a body carries as its error; another error is a client that went away.
fn status_of(error: Box<dyn std::error::Error + Send + Sync>) -> Status {
    match error.downcast::<Status>() {
        Ok(status) => *status,
        Err(error) => Status::new(Code::Cancelled, error.to_string()),
    }
}

/// The length of the message that begins with these bytes, at least its prefix.
///
/// # Errors
/// With the texts of grpc-go.
pub fn message_length(received: &[u8], bytes_max: usize) -> Result<usize, Status> {
    let mut prefix = &received[..PREFIX_BYTES];
    let flag = prefix.get_u8();
    let length = prefix.get_u32() as usize;
    if length > bytes_max {
        return Err(too_large(length, bytes_max));
    }
    match flag {
        0 => Ok(length),
        1 => Err(Status::internal(
            "grpc: compressed flag set with identity or empty encoding",
        )),
        other => Err(Status::internal(format!(
            "grpc: received unexpected payload format {other}"
        ))),
    }
}

/// The refusal of a message that is too large, with grpc-go's text.
pub fn too_large(bytes: usize, bytes_max: usize) -> Status {
    Status::resource_exhausted(format!(
        "grpc: received message larger than max ({bytes} vs. {bytes_max})"
    ))
}

/// The answer to a call of a method that the service does not have, with grpc-go's text.
pub fn unknown_method(path: &str) -> Response<ResponseBody> {
    let (service, method) = path
        .trim_start_matches('/')
        .rsplit_once('/')
        .unwrap_or_default();
    failure(Status::unimplemented(format!(
        "unknown method {method} for service {service}"
    )))
}

/// Decodes what a Go server decodes: a field whose wire type is not the declared one counts as
/// unknown there, and fails the whole message in prost. Only for messages that failed.
///
/// # Errors
/// When the bytes are no protobuf at all.
fn decode_known_fields<Q: Message + Default>(message: &Bytes) -> Result<Q, prost::DecodeError> {
    let mut request = Q::default();
    let mut rest = message.clone();
    while rest.has_remaining() {
        let before = rest.clone();
        let (tag, wire_type) = decode_key(&mut rest)?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
        let field = before.slice(..before.len() - rest.len());
        // A field by itself is a message too, and merging messages joins their fields. A field with
        // a length that does not decode is a damaged message inside this one.
        match Q::decode(field.clone()) {
            Ok(_) => request.merge(field)?,
            Err(error) if wire_type == WireType::LengthDelimited => return Err(error),
            Err(_) => {}
        }
    }
    Ok(request)
}

fn encode<A: Message>(answer: &A) -> Bytes {
    let length = answer.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    // Answers above 4 GiB cannot be framed; an engine cannot produce one within its memory.
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    answer.encode_raw(&mut bytes);
    bytes.freeze()
}

/// What every call of a connection is served with.
#[derive(Clone)]
pub struct CallOptions {
    /// The largest message.
    pub bytes_max: usize,
    /// A call that takes longer is logged.
    pub warning_duration: Duration,
    /// Who called.
    pub remote: Option<SocketAddr>,
    /// Knows what one client may use; nothing: nobody counts.
    pub limited: Option<Arc<Node>>,
}

impl CallOptions {
    /// Takes what a request of so many bytes has of its client's limit; nothing without one.
    ///
    /// # Errors
    /// `too many requests`.
    fn in_flight(&self, parts: &Parts, bytes: usize) -> Result<Option<Box<InFlight>>, Status> {
        match self.client(&parts.headers, &parts.extensions) {
            None => Ok(None),
            Some((limits, client)) => Ok(Some(Box::new(InFlight {
                _request: limits.take(&client, Resource::Bytes, bytes as u64)?,
                limits,
                client,
            }))),
        }
    }

    /// Who a request comes from, for the limits; nothing without any.
    pub fn client(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Option<(Arc<ClientLimits>, ClientKey)> {
        let node = self.limited.as_ref()?;
        let limits = Arc::clone(node.client_limits.as_ref()?);
        Some((limits, node.client_key(headers, extensions, self.remote)))
    }

    /// Takes a stream of the client's limit.
    ///
    /// # Errors
    /// `too many requests`.
    pub fn stream_share<B>(&self, request: &Request<B>) -> Result<Option<Share>, Status> {
        match self.client(request.headers(), request.extensions()) {
            None => Ok(None),
            Some((limits, client)) => Ok(Some(limits.take(&client, Resource::Streams, 1)?)),
        }
    }
}

/// Serves one call: reads and decodes the request, runs the handler, frames its answer.
pub async fn serve<B, Q, A, F>(
    method: &'static Method,
    request: Request<B>,
    options: CallOptions,
    handler: impl FnOnce(Parts, Q) -> F,
) -> Response<ResponseBody>
where
    B: RequestBody,
    Q: Message + Default + Loggable<A>,
    A: Message,
    F: Future<Output = Result<A, Status>>,
{
    let (parts, body) = request.into_parts();
    let message = match read_message(body, options.bytes_max).await {
        Ok(message) => message,
        Err(status) => return failure(status),
    };
    // On the heap, so that calls without limits stay as small as they are.
    let in_flight = match options.in_flight(&parts, message.len()) {
        Ok(in_flight) => in_flight,
        Err(status) => return failure(status),
    };
    let request = match Q::decode(message.clone()).or_else(|_| decode_known_fields(&message)) {
        Ok(request) => request,
        Err(error) => {
            return failure(Status::internal(format!(
                "grpc: error unmarshalling request: {error}"
            )));
        }
    };
    // As in grpc-go, a request that cannot be read is no call.
    let mut call = Call::start(method, &parts.headers);
    call.received(1, message.len());
    let kept = Kept::of::<A>(message, &request);
    let started = Instant::now();
    let answer = call.run(pin!(handler(parts, request))).await;
    let took = started.elapsed();
    if took > options.warning_duration {
        log_slow(&kept, answer.as_ref().ok(), took, options.remote);
    }
    match answer {
        Ok(answer) => {
            let mut answer = encode(&answer);
            match in_flight.map(|in_flight| in_flight.take(answer.len())) {
                None => {}
                // Until the client has taken the answer.
                Some(Ok(share)) => answer = HeldBytes::hold(answer, share),
                Some(Err(error)) => {
                    let status = Status::from(error);
                    call.end(status.code());
                    return failure(status);
                }
            }
            call.sent(1, answer.len() - PREFIX_BYTES);
            call.end(Code::Ok);
            success(answer)
        }
        Err(status) => {
            call.end(status.code());
            failure(status)
        }
    }
}

/// What a request has of its client's limit while it is answered.
struct InFlight {
    limits: Arc<ClientLimits>,
    client: ClientKey,
    _request: Share,
}

impl InFlight {
    /// Takes what its answer has, beside the request.
    fn take(&self, bytes: usize) -> Result<Share, EtcdError> {
        let Self { limits, client, .. } = self;
        limits.take(client, Resource::Bytes, bytes as u64)
    }
}

/// What is kept of a request while it is answered, for the case that this takes long. The handler
/// consumes the request itself.
enum Kept<Q> {
    /// The message, to be decoded once more.
    Message(Bytes),
    /// What the log would tell after either answer: the bytes of a large message are free as soon as
    /// the handler has encoded its command, not only when the members have agreed on it.
    Sketches(Box<[Option<RequestStats>; 2]>, PhantomData<Q>),
}

impl<Q> Kept<Q> {
    fn of<A>(message: Bytes, request: &Q) -> Self
    where
        Q: Loggable<A>,
    {
        if message.len() < LARGE_MESSAGE_BYTES {
            return Self::Message(message);
        }
        let sketches = [request.sketch(false), request.sketch(true)];
        Self::Sketches(Box::new(sketches), PhantomData)
    }

    fn stats<A>(&self, answer: Option<&A>) -> RequestStats
    where
        Q: Message + Default + Loggable<A>,
    {
        match self {
            Self::Message(message) => match Q::decode(message.clone()) {
                Ok(request) => request.stats(answer),
                Err(_) => RequestStats::UNKNOWN,
            },
            Self::Sketches(sketches, _) => answer
                .and_then(|answer| {
                    let sketch = sketches[usize::from(Q::succeeded(answer))].clone()?;
                    Some(Q::complete(sketch, answer))
                })
                .unwrap_or(RequestStats::UNKNOWN),
        }
    }
}

/// Logs a slow call.
#[cold]
fn log_slow<Q, A>(kept: &Kept<Q>, answer: Option<&A>, took: Duration, remote: Option<SocketAddr>)
where
    Q: Message + Default + Loggable<A>,
{
    slow_requests::warn_of_unary(Q::METHOD, remote, took, &kept.stats(answer));
}

/// Whatever bytes come are a request or are none, and what looks at requests before they are executed takes
/// every request.
#[cfg(any(test, feature = "fuzzing"))]
fn assert_hot_request_or_none(message: &Bytes) {
    use metastore_proto::etcdserverpb::{
        DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest, WatchRequest,
    };
    use metastore_store::validate;
    if let Ok(range) = decode_known_fields::<RangeRequest>(message) {
        let _ = validate::range(&range);
        let _ = validate::range_stream(&range).is_ok();
        let _ = range.sketch(true);
    }
    if let Ok(put) = decode_known_fields::<PutRequest>(message) {
        let _ = validate::put(&put);
        let _ = (crate::quota::put_cost(&put), put.sketch(true));
    }
    if let Ok(delete) = decode_known_fields::<DeleteRangeRequest>(message) {
        let _ = validate::delete_range(&delete);
        let _ = delete.sketch(true);
    }
    if let Ok(txn) = decode_known_fields::<TxnRequest>(message) {
        let _ = validate::txn(&txn, 128);
        let _ = (crate::quota::txn_cost(&txn), validate::is_read_only(&txn));
        let _ = (txn.sketch(false), txn.sketch(true));
    }
    let _ = decode_known_fields::<WatchRequest>(message);
}

/// What fuzzers call: it must hold for every input.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    use metastore_proto::etcdserverpb::*;
    use metastore_proto::v3electionpb::{
        CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest,
    };
    use metastore_proto::v3lockpb::{LockRequest, UnlockRequest};

    use super::*;

    /// A message that is one stays the same when it is written and read again.
    fn assert_round_trip<Q>(message: &Bytes)
    where
        Q: Message + Default + PartialEq + std::fmt::Debug,
    {
        if let Ok(request) = decode_known_fields::<Q>(message) {
            let again = Bytes::from(request.encode_to_vec());
            assert_eq!(again.len(), request.encoded_len());
            let read = Q::decode(again).expect("our own message");
            assert!(read == request, "{request:?} became {read:?}");
        }
    }

    type Check = fn(&Bytes);

    macro_rules! checks {
        ($($request:ty),* $(,)?) => {
            &[assert_hot_request_or_none as Check, $(assert_round_trip::<$request> as Check),*]
        };
    }

    const CHECKS: &[Check] = checks![
        RangeRequest,
        PutRequest,
        DeleteRangeRequest,
        TxnRequest,
        CompactionRequest,
        WatchRequest,
        LeaseGrantRequest,
        LeaseRevokeRequest,
        LeaseKeepAliveRequest,
        LeaseTimeToLiveRequest,
        LeaseLeasesRequest,
        MemberAddRequest,
        MemberRemoveRequest,
        MemberUpdateRequest,
        MemberListRequest,
        MemberPromoteRequest,
        AlarmRequest,
        StatusRequest,
        DefragmentRequest,
        HashRequest,
        HashKvRequest,
        SnapshotRequest,
        MoveLeaderRequest,
        DowngradeRequest,
        AuthEnableRequest,
        AuthDisableRequest,
        AuthStatusRequest,
        AuthenticateRequest,
        AuthUserAddRequest,
        AuthUserGetRequest,
        AuthUserListRequest,
        AuthUserDeleteRequest,
        AuthUserChangePasswordRequest,
        AuthUserGrantRoleRequest,
        AuthUserRevokeRoleRequest,
        AuthRoleAddRequest,
        AuthRoleGetRequest,
        AuthRoleListRequest,
        AuthRoleDeleteRequest,
        AuthRoleGrantPermissionRequest,
        AuthRoleRevokePermissionRequest,
        LockRequest,
        UnlockRequest,
        CampaignRequest,
        ProclaimRequest,
        LeaderRequest,
        ResignRequest,
    ];

    /// A message of the request with this number, counted round and round.
    pub fn request_message(number: usize, message: &[u8]) {
        CHECKS[number % CHECKS.len()](&Bytes::copy_from_slice(message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metastore_proto::etcdserverpb::PutRequest;

    #[test]
    fn a_field_of_a_wrong_wire_type_counts_as_unknown() {
        // Field 1 (key) as a 32-bit number, then field 2 (value) as it should be.
        let bytes = Bytes::from_static(b"\x0d\0\0\0\0\x12\x01v");
        assert!(PutRequest::decode(bytes.clone()).is_err());
        let request: PutRequest = decode_known_fields(&bytes).expect("well-formed fields");
        assert!(request.key.is_empty());
        assert_eq!(request.value, "v");
    }

    /// Whatever bytes come are a request or are none, and what looks at requests before they are executed
    /// takes every request.
    #[test]
    fn mutated_messages_are_requests_or_none() {
        use metastore_proto::etcdserverpb::{
            Compare, DeleteRangeRequest, RangeRequest, RequestOp, TxnRequest, request_op,
        };
        let key = || Bytes::from_static(b"key");
        let range = RangeRequest {
            key: key(),
            range_end: Bytes::from_static(b"\0"),
            limit: -1,
            revision: i64::MAX,
            sort_order: 7,
            ..RangeRequest::default()
        };
        let put = PutRequest {
            key: key(),
            value: vec![7; 300].into(),
            lease: i64::MIN,
            prev_kv: true,
            ..PutRequest::default()
        };
        let delete = DeleteRangeRequest {
            key: key(),
            range_end: key(),
            prev_kv: true,
        };
        let op = |request| RequestOp {
            request: Some(request),
        };
        let mut txn = TxnRequest {
            compare: vec![Compare {
                key: key(),
                ..Compare::default()
            }],
            success: vec![op(request_op::Request::RequestPut(put.clone()))],
            failure: vec![op(request_op::Request::RequestDeleteRange(delete.clone()))],
        };
        for _ in 0..3 {
            txn = TxnRequest {
                success: vec![
                    op(request_op::Request::RequestTxn(txn)),
                    RequestOp::default(),
                ],
                ..TxnRequest::default()
            };
        }
        let corpus = [
            range.encode_to_vec(),
            put.encode_to_vec(),
            delete.encode_to_vec(),
            txn.encode_to_vec(),
        ];
        let corpus: Vec<&[u8]> = corpus.iter().map(Vec::as_slice).collect();
        let words: [&[u8]; 8] = [
            b"\x0a\x00",
            b"\x12\xff\xff\xff\xff\x0f",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x08",
            b"\x1b",
            b"\x1c",
            b"\x0a\x05key\0x",
            b"\x22\x02\x0a\x00",
        ];
        crate::mutation::mutated(&corpus, &words, |message| {
            assert_hot_request_or_none(&Bytes::copy_from_slice(message));
        });
    }

    #[test]
    fn a_large_request_is_logged_as_a_small_one_and_not_kept() {
        use metastore_proto::etcdserverpb::{
            DeleteRangeRequest, PutResponse, RequestOp, TxnRequest, TxnResponse, request_op,
        };
        let put = |length: usize| PutRequest {
            key: Bytes::from_static(b"key"),
            value: vec![7; length].into(),
            ..PutRequest::default()
        };
        let op = |request| RequestOp {
            request: Some(request),
        };
        let delete = op(request_op::Request::RequestDeleteRange(
            DeleteRangeRequest {
                key: Bytes::from_static(b"key"),
                ..DeleteRangeRequest::default()
            },
        ));
        let txn = TxnRequest {
            success: vec![
                op(request_op::Request::RequestPut(put(LARGE_MESSAGE_BYTES))),
                delete.clone(),
            ],
            failure: vec![delete],
            ..TxnRequest::default()
        };
        for succeeded in [false, true] {
            let answer = TxnResponse {
                succeeded,
                ..TxnResponse::default()
            };
            let message = Bytes::from(txn.encode_to_vec());
            let kept = Kept::of::<TxnResponse>(message.clone(), &txn);
            assert!(matches!(kept, Kept::Sketches(..)));
            let again = Kept::<TxnRequest>::Message(message);
            assert_eq!(kept.stats(Some(&answer)), again.stats(Some(&answer)));
            assert_eq!(kept.stats::<TxnResponse>(None), RequestStats::UNKNOWN);
        }
        let small = put(10);
        let kept = Kept::of::<PutResponse>(small.encode_to_vec().into(), &small);
        assert!(matches!(kept, Kept::Message(_)));
        // Nobody but the request itself holds the bytes of a large one.
        let message = Bytes::from(put(LARGE_MESSAGE_BYTES).encode_to_vec());
        let request = PutRequest::decode(message.clone()).expect("a message");
        let _kept = Kept::of::<PutResponse>(message, &request);
        drop(request.key);
        assert!(request.value.is_unique());
    }

    #[test]
    fn bytes_that_are_no_protobuf_are_refused() {
        for bytes in [&b"\x08"[..], b"\x0a\x05ab", b"\xff\xff\xff\xff"] {
            assert!(decode_known_fields::<PutRequest>(&Bytes::copy_from_slice(bytes)).is_err());
        }
    }
}
