//! Calls from this process to its own gRPC services, for what is built on top of them: the Lock and
//! Election services, the JSON gateway, the plain HTTP API.
//!
//! A call takes the way of a client's call without the socket, so that every rule that holds for a
//! client (validation, permissions, limits, counters) holds here without being written again.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::Stream;
use futures::future::BoxFuture;
use http::{Extensions, HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, Full};
use metastore_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, watch_request};
use prost::Message;
use tonic::body::Body;
use tonic::{Code, Status};

use super::services::{BaseServices, GrpcServices};
use super::unary::ResponseBody;

const WATCH_PATH: &str = "/etcdserverpb.Watch/Watch";
/// Flag and length in front of each message.
const PREFIX_BYTES: usize = 5;
/// The headers by which a client says who it is.
const CREDENTIAL_HEADERS: [&str; 2] = ["authorization", "token"];

/// Services that can be called.
pub trait Callee: Clone + Send + Sync + 'static {
    /// Answers a call.
    fn answer(&self, request: Request<Body>) -> BoxFuture<'static, Response<ResponseBody>>;
}

impl Callee for BaseServices {
    fn answer(&self, request: Request<Body>) -> BoxFuture<'static, Response<ResponseBody>> {
        self.call(request, None)
    }
}

impl Callee for GrpcServices {
    fn answer(&self, request: Request<Body>) -> BoxFuture<'static, Response<ResponseBody>> {
        self.call(request, None)
    }
}

/// Calls services in the name of one client.
#[derive(Clone)]
pub struct Caller<S> {
    services: S,
    headers: HeaderMap,
    extensions: Extensions,
}

impl<S: Callee> Caller<S> {
    /// Calls with these headers as gRPC metadata, and what the connection knows about the client.
    pub fn new(services: S, headers: HeaderMap, extensions: Extensions) -> Self {
        Self {
            services,
            headers,
            extensions,
        }
    }

    /// Calls with the credentials of a client's request and nothing else of it.
    pub fn on_behalf_of<T>(services: S, request: &tonic::Request<T>) -> Self {
        let mut headers = HeaderMap::new();
        for name in CREDENTIAL_HEADERS {
            for value in request.metadata().as_ref().get_all(name) {
                headers.append(name, value.clone());
            }
        }
        Self::new(services, headers, request.extensions().clone())
    }

    /// A call with one message and one answer.
    ///
    /// # Errors
    /// The status that a client would get.
    pub async fn unary<Q, A>(&self, path: &'static str, request: &Q) -> Result<A, Status>
    where
        Q: Message,
        A: Message + Default,
    {
        let mut answers = self.call(path, one_message(request)).await;
        let message = answers.only().await?;
        A::decode(message).map_err(|error| Status::internal(error.to_string()))
    }

    /// One watch of a range, with its answers.
    pub async fn watch(&self, key: Bytes, range_end: Bytes, start_revision: i64) -> Answers {
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision,
            ..Default::default()
        };
        let request = WatchRequest {
            request_union: Some(watch_request::RequestUnion::CreateRequest(create)),
        };
        self.call(WATCH_PATH, one_message(&request)).await
    }

    /// A call with a stream of framed messages as its body.
    pub async fn call(&self, path: &str, body: Body) -> Answers {
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        // Paths are constants of ours, or come from the descriptors of the services.
        *request.uri_mut() = path.parse().expect("the path of a gRPC method is a URI");
        *request.headers_mut() = self.headers.clone();
        *request.extensions_mut() = self.extensions.clone();
        request.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        Answers::new(self.services.answer(request).await)
    }
}

/// A request body of one message.
pub fn one_message(message: &impl Message) -> Body {
    Body::new(Full::new(framed(&message.encode_to_vec())))
}

/// A message with its prefix.
pub fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    frame.put_u8(0);
    // A message above 4 GiB cannot be made: every body that a client sends is bounded.
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// The answers to a call, as they come.
pub struct Answers {
    body: ResponseBody,
    received: BytesMut,
    /// How the call ended, once it has.
    end: Option<Status>,
    ended: bool,
}

impl Answers {
    /// The answers in a response.
    pub fn new(response: Response<ResponseBody>) -> Self {
        let (parts, body) = response.into_parts();
        Self {
            body,
            received: BytesMut::new(),
            end: Status::from_header_map(&parts.headers),
            ended: false,
        }
    }

    /// The next message; nothing at the end of a call that succeeded.
    pub async fn next_message(&mut self) -> Option<Result<Bytes, Status>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// The message of a call that has one.
    ///
    /// # Errors
    /// The status of a call that failed.
    pub async fn only(&mut self) -> Result<Bytes, Status> {
        let message = self
            .next_message()
            .await
            .unwrap_or_else(|| Err(Status::internal("the call ended without an answer")))?;
        match self.next_message().await {
            None => Ok(message),
            Some(Err(status)) => Err(status),
            Some(Ok(_)) => Err(Status::internal("more than one answer")),
        }
    }

    fn take_message(&mut self) -> Option<Bytes> {
        let mut prefix = self.received.get(..PREFIX_BYTES)?;
        prefix.advance(1);
        let length = prefix.get_u32() as usize;
        if self.received.len() < PREFIX_BYTES + length {
            return None;
        }
        self.received.advance(PREFIX_BYTES);
        Some(self.received.split_to(length).freeze())
    }
}

impl Stream for Answers {
    type Item = Result<Bytes, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(message) = this.take_message() {
                return Poll::Ready(Some(Ok(message)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            if let Some(status) = this.end.take() {
                this.ended = true;
                return Poll::Ready((status.code() != Code::Ok).then_some(Err(status)));
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.received.extend_from_slice(&data),
                    Err(frame) => {
                        this.end = frame
                            .trailers_ref()
                            .and_then(Status::from_header_map)
                            .or_else(|| Some(Status::unknown("the call ended without a status")));
                    }
                },
                Some(Err(status)) => this.end = Some(status),
                None => {
                    this.end = Some(Status::unknown("the call ended without a status"));
                }
            }
        }
    }
}

/// A body of frames that come from a stream.
pub fn streamed(frames: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    let frames = futures::StreamExt::map(frames, |frame| {
        Ok::<_, Status>(http_body::Frame::data(frame))
    });
    Body::new(http_body_util::StreamBody::new(frames).boxed_unsync())
}
