//! The Watch service: one body for each stream, polled by the connection, no task and no channel of
//! its own. What is queued for the stream leaves as one HTTP/2 frame.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body::{Body as HttpBody, Frame};
use metastore_proto::codec::SmallBufferCodec;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse, watch_request::RequestUnion,
};
use metastore_watch::WatchOutput;
use prost::Message;
use tonic::codec::Codec;
use tonic::{Code, Status, Streaming};

use super::services::RequestBody;
use super::unary::{self, CallOptions, ResponseBody};
use super::{OnLearner, check_stream, leader_lost};
use crate::auth::Credentials;
use crate::client_limits::{Resource, Share};
use crate::node::Node;
use crate::observe::metrics::METRICS;
use crate::observe::metrics::grpc::{Call, method};

/// Bytes of responses that go into one HTTP/2 data frame before the connection gets its turn.
const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Flag and length in front of each message.
const PREFIX_BYTES: usize = 5;

/// The reason of a watch that its client's limit refuses, as a status is printed in Go.
const TOO_MANY_WATCHES: &str =
    "rpc error: code = ResourceExhausted desc = etcdserver: too many requests";

/// The Watch service of a member.
#[derive(Clone)]
pub struct WatchService {
    node: Arc<Node>,
}

impl WatchService {
    /// The service of `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Answers a call of the Watch service; `known`: of its only method.
    pub fn call<B: RequestBody>(
        &self,
        request: Request<B>,
        known: bool,
        options: &CallOptions,
    ) -> Response<ResponseBody> {
        if !known {
            return unary::unknown_method(request.uri().path());
        }
        let shares = match Shares::of(options, &request) {
            Ok(shares) => shares,
            Err(status) => return unary::failure(status),
        };
        let mut call = Call::start(&method::WATCH, request.headers());
        let requires_leader = match check_stream(&self.node, request.headers(), OnLearner::Refused)
        {
            Ok(requires_leader) => requires_leader,
            Err(status) => {
                call.end(status.code());
                return unary::failure(status);
            }
        };
        let credentials = Credentials::read(request.headers(), request.extensions());
        let decoder = SmallBufferCodec::<WatchResponse, WatchRequest>::default().decoder();
        let requests = Streaming::new_request(
            decoder,
            request.into_body(),
            None,
            Some(self.node.receive_bytes_max()),
        );
        let node = Arc::clone(&self.node);
        let mut body = WatchBody::new(node, requests, credentials, requires_leader, call);
        body.shares = shares;
        let mut response = Response::new(ResponseBody::Watch(Box::new(body)));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        response
    }
}

/// One watch stream.
pub struct WatchBody {
    node: Arc<Node>,
    requests: Option<Streaming<WatchRequest>>,
    credentials: Credentials,
    /// The create request whose permission is being found out. Later requests wait for it.
    asking: Option<BoxFuture<'static, Asked>>,
    outputs: metastore_watch::Stream,
    leader_lost: Option<BoxFuture<'static, ()>>,
    stopping: BoxFuture<'static, ()>,
    end: End,
    call: Call,
    /// What it has of its client's limits, if there are any.
    shares: Option<Shares>,
}

/// What a watch stream has of its client's limits.
struct Shares {
    watches: Share,
    _stream: Share,
}

impl Shares {
    fn of<B>(options: &CallOptions, request: &Request<B>) -> Result<Option<Self>, Status> {
        let Some((limits, client)) = options.client(request.headers(), request.extensions()) else {
            return Ok(None);
        };
        Ok(Some(Self {
            _stream: limits.take(&client, Resource::Streams, 1)?,
            watches: limits.share(client, Resource::Watches),
        }))
    }

    /// Gives the watch back that is over with this output, or was refused. One that the limit refused was
    /// never taken, nor one whose start cannot be.
    fn settle(&mut self, output: &WatchOutput) {
        let never_taken = output.created
            && (output.cancel_reason == TOO_MANY_WATCHES
                || output.cancel_reason == EtcdError::Compacted.text());
        if output.canceled && !never_taken {
            self.watches.shrink(1);
        }
    }
}

/// A create request and why the client may not.
type Asked = (WatchCreateRequest, Result<(), EtcdError>);

enum End {
    Open,
    Failed(Status),
    Sent,
}

impl WatchBody {
    fn new(
        node: Arc<Node>,
        requests: Streaming<WatchRequest>,
        credentials: Credentials,
        requires_leader: bool,
        call: Call,
    ) -> Self {
        Self {
            credentials,
            asking: None,
            outputs: node.application.hub.open_stream(),
            leader_lost: requires_leader.then(|| leader_lost(Arc::clone(&node)).boxed()),
            stopping: node.stopped().boxed(),
            requests: Some(requests),
            node,
            end: End::Open,
            call,
            shares: None,
        }
    }

    fn accept(&mut self, request: WatchRequest) {
        self.call.received(1, request.encoded_len());
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => self.outputs.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.outputs.request_progress(),
            // etcd ignores what it does not know.
            None => {}
        }
    }

    fn create(&mut self, create: WatchCreateRequest) {
        // A start that cannot be is answered before anything else and never becomes a watch.
        if let Some(shares) = &mut self.shares
            && create.start_revision >= 0
            && shares.watches.grow(1).is_err()
        {
            return self.outputs.reject(&create, TOO_MANY_WATCHES);
        }
        // A start that cannot be is answered before anybody asks who the client is, as in etcd.
        if !self.node.auth().is_enabled() || create.start_revision < 0 {
            return self.outputs.create(&create);
        }
        let node = Arc::clone(&self.node);
        let credentials = self.credentials.clone();
        self.asking = Some(Box::pin(async move {
            let permitted = node
                .authorize(&credentials, |state, identity| {
                    // No key means from the first one on.
                    let key = match &create.key[..] {
                        [] => b"\0",
                        key => key,
                    };
                    state.check_range(identity, key, &create.range_end)
                })
                .await;
            (create, permitted.map(|_| ()))
        }));
    }

    /// Goes on with the create request whose permission was asked for; false while it is open.
    fn poll_asking(&mut self, context: &mut Context<'_>) -> bool {
        let Some(asking) = &mut self.asking else {
            return true;
        };
        let Poll::Ready((create, permitted)) = asking.poll_unpin(context) else {
            return false;
        };
        self.asking = None;
        match permitted {
            Ok(()) => self.outputs.create(&create),
            Err(error) => self.outputs.reject(&create, refusal(error)),
        }
        true
    }

    /// Takes in what the client asks, until it has nothing more to say for now.
    fn poll_requests(&mut self, context: &mut Context<'_>) {
        // A client that does not read its answers is not listened to either.
        while self.poll_asking(context)
            && self.outputs.takes_requests()
            && let Some(requests) = &mut self.requests
        {
            match requests.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(request))) => self.accept(request),
                Poll::Ready(Some(Err(status))) => {
                    self.requests = None;
                    let receiving = ["receive", "watch"];
                    METRICS.stream_failures.with_label_values(&receiving).inc();
                    // A connection that broke is a client that went away.
                    if matches!(status.code(), Code::Unknown | Code::Unavailable) {
                        self.call.end(Code::Cancelled);
                    }
                    self.end = End::Failed(status);
                }
                // The client closed its side; it still gets its events.
                Poll::Ready(None) => self.requests = None,
                Poll::Pending => return,
            }
        }
    }

    fn poll_end(&mut self, context: &mut Context<'_>) {
        if self.stopping.poll_unpin(context).is_ready() {
            self.end = End::Failed(EtcdError::Stopped.into());
        }
        if let Some(lost) = &mut self.leader_lost
            && lost.poll_unpin(context).is_ready()
        {
            self.leader_lost = None;
            self.end = End::Failed(EtcdError::NoLeader.into());
        }
    }

    fn encode(&self, output: &WatchOutput, buffer: &mut BytesMut) {
        let node = &self.node;
        let term = node.term();
        let length = output.encoded_len(node.cluster_id, node.member_id, term);
        buffer.reserve(PREFIX_BYTES + length);
        buffer.put_u8(0);
        // One response is bounded by what one revision or one catch-up chunk holds.
        buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        output.encode(node.cluster_id, node.member_id, term, buffer);
        self.call.sent(1, length);
    }
}

impl HttpBody for WatchBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if matches!(this.end, End::Open) {
            this.poll_requests(context);
            this.poll_end(context);
        }
        let mut buffer = BytesMut::new();
        let mut events = 0;
        let started = Instant::now();
        while matches!(this.end, End::Open) && buffer.len() < FRAME_BYTES_MAX {
            match this.outputs.poll_next(context) {
                Poll::Ready(Some(output)) => {
                    if let Some(shares) = &mut this.shares {
                        shares.settle(&output);
                    }
                    this.encode(&output, &mut buffer);
                    events += output.event_count();
                }
                Poll::Ready(None) => this.end = End::Failed(EtcdError::Stopped.into()),
                Poll::Pending => break,
            }
        }
        if !buffer.is_empty() {
            observe_frame(started.elapsed(), events);
            return Poll::Ready(Some(Ok(Frame::data(buffer.freeze()))));
        }
        match std::mem::replace(&mut this.end, End::Sent) {
            End::Open => {
                this.end = End::Open;
                Poll::Pending
            }
            End::Failed(status) => {
                this.call.end(status.code());
                Poll::Ready(Some(Ok(Frame::trailers(trailers(&status)))))
            }
            End::Sent => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.end, End::Sent)
    }
}

/// Notes what was put together for a client.
fn observe_frame(took: Duration, events: usize) {
    let seconds = took.as_secs_f64();
    if events == 0 {
        METRICS.watch_control_frame.observe(seconds);
        return;
    }
    METRICS.watch_events.inc_by(events as u64);
    METRICS.watch_frame.observe(seconds);
    METRICS
        .watch_frame_per_event
        .observe(seconds / events as f64);
}

/// The reason of a refused watch: what Go prints of the status.
fn refusal(error: EtcdError) -> String {
    let told = match error {
        EtcdError::InvalidAuthToken | EtcdError::AuthOldRevision | EtcdError::UserEmpty => error,
        _ => EtcdError::PermissionDenied,
    };
    format!("rpc error: code = {:?} desc = {told}", told.code())
}

/// A status as trailers.
fn trailers(status: &Status) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(2);
    if status.add_header(&mut headers).is_err() {
        // The text had characters that no header takes; the code alone still says what to do.
        headers.insert(
            HeaderName::from_static("grpc-status"),
            HeaderValue::from(status.code() as i32),
        );
    }
    headers
}
