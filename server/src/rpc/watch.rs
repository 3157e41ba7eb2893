//! The Watch service: one body for each stream, polled by the connection, no task and no channel of
//! its own. What is queued for the stream leaves as one HTTP/2 frame.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body::{Body as HttpBody, Frame};
use metastore_proto::codec::SmallBufferCodec;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{WatchRequest, WatchResponse, watch_request::RequestUnion};
use metastore_watch::WatchOutput;
use tonic::codec::Codec;
use tonic::{Status, Streaming};

use super::services::RequestBody;
use super::unary::{self, ResponseBody};
use super::{OnLearner, check_call, leader_lost};
use crate::node::Node;

/// Bytes of responses that go into one HTTP/2 data frame before the connection gets its turn.
const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Flag and length in front of each message.
const PREFIX_BYTES: usize = 5;

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
    pub fn call<B: RequestBody>(&self, request: Request<B>, known: bool) -> Response<ResponseBody> {
        if !known {
            return unary::failure(Status::unimplemented(
                "unknown method for service etcdserverpb.Watch",
            ));
        }
        let requires_leader = match check_call(&self.node, request.headers(), OnLearner::Refused) {
            Ok(requires_leader) => requires_leader,
            Err(status) => return unary::failure(status),
        };
        let decoder = SmallBufferCodec::<WatchResponse, WatchRequest>::default().decoder();
        let requests = Streaming::new_request(
            decoder,
            request.into_body(),
            None,
            Some(self.node.receive_bytes_max()),
        );
        let body = WatchBody::new(Arc::clone(&self.node), requests, requires_leader);
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
    outputs: metastore_watch::Stream,
    leader_lost: Option<BoxFuture<'static, ()>>,
    stopping: BoxFuture<'static, ()>,
    end: End,
}

enum End {
    Open,
    Failed(Status),
    Sent,
}

impl WatchBody {
    fn new(node: Arc<Node>, requests: Streaming<WatchRequest>, requires_leader: bool) -> Self {
        Self {
            outputs: node.application.hub.open_stream(),
            leader_lost: requires_leader.then(|| leader_lost(Arc::clone(&node)).boxed()),
            stopping: node.stopped().boxed(),
            requests: Some(requests),
            node,
            end: End::Open,
        }
    }

    fn accept(&mut self, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.outputs.create(&create),
            Some(RequestUnion::CancelRequest(cancel)) => self.outputs.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.outputs.request_progress(),
            // etcd ignores what it does not know.
            None => {}
        }
    }

    /// Takes in what the client asks, until it has nothing more to say for now.
    fn poll_requests(&mut self, context: &mut Context<'_>) {
        // A client that does not read its answers is not listened to either.
        while self.outputs.takes_requests()
            && let Some(requests) = &mut self.requests
        {
            match requests.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(request))) => self.accept(request),
                Poll::Ready(Some(Err(status))) => {
                    self.requests = None;
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
        while matches!(this.end, End::Open) && buffer.len() < FRAME_BYTES_MAX {
            match this.outputs.poll_next(context) {
                Poll::Ready(Some(output)) => this.encode(&output, &mut buffer),
                Poll::Ready(None) => this.end = End::Failed(EtcdError::Stopped.into()),
                Poll::Pending => break,
            }
        }
        if !buffer.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(buffer.freeze()))));
        }
        match std::mem::replace(&mut this.end, End::Sent) {
            End::Open => {
                this.end = End::Open;
                Poll::Pending
            }
            End::Failed(status) => Poll::Ready(Some(Ok(Frame::trailers(trailers(&status))))),
            End::Sent => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.end, End::Sent)
    }
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
