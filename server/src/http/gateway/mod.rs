//! The JSON gateway: etcd's API as HTTP and JSON under `/v3/`, byte for byte as etcd's grpc-gateway
//! answers.
//!
//! A request becomes a call of our own gRPC services inside this process, with the credentials that
//! its headers carry. Nothing here knows what a call means.
//!
//! * [`routes`]: which path is which method.
//! * [`json_stream`], [`json_tokens`], [`transcode`]: JSON to protobuf and back.
//! * [`websocket`]: streams in both directions for browsers.

mod binary_metadata;
mod json_stream;
mod json_tokens;
mod method_override;
mod routes;
mod transcode;
mod websocket;

pub(crate) use self::routes::messages_of;
pub(crate) use self::transcode::decode_for_log;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FusedFuture as _};
use futures::{FutureExt as _, Stream, StreamExt};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http::{header, request};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tonic::{Code, Status};

use self::json_stream::{JsonStream, NoValue};
use self::routes::{Form, Route};
use crate::client_limits::ClientAddress;
use crate::node::Node;
use crate::rpc::in_process::{Answers, Caller, framed, streamed};
use crate::rpc::services::{GrpcServices, RequestBody};
use crate::rpc::unary::ResponseBody;

/// Where the gateway answers.
pub const PREFIX: &str = "/v3/";
/// The old name of [`PREFIX`], which clients of etcd 3.3 use.
pub const BETA_PREFIX: &str = "/v3beta/";

/// Prefix of headers that become metadata of the call, and the other way round.
const METADATA_PREFIX: &str = "grpc-metadata-";
const TIMEOUT_HEADER: &str = "grpc-timeout";
const CALL_CONTENT_TYPE: HeaderName = HeaderName::from_static("grpc-metadata-content-type");
/// With less time than this etcd's gateway has not even asked its own server.
const TIMEOUT_MIN: Duration = Duration::from_micros(50);
/// What JSON adds to a message at most, spaces and all: base64 takes a third.
const JSON_OVERHEAD_FACTOR: usize = 2;
/// What is left for names and brackets of a small message.
const JSON_OVERHEAD_BYTES: usize = 64 * 1024;
/// A body that is too large is still read to its end, up to this size, and thrown away: a client that
/// is writing does not look for an answer.
const DISCARDED_BYTES_MAX: usize = 512 << 20;
/// The longest time for that.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest body that is read before an answer that does not need it.
const ANNOUNCED_BYTES_MAX: u64 = 64 << 10;

/// The gateway of a member.
#[derive(Clone)]
pub struct Gateway {
    node: Arc<Node>,
    services: GrpcServices,
}

impl Gateway {
    /// The gateway to `services`.
    pub fn new(node: Arc<Node>, services: GrpcServices) -> Self {
        Self { node, services }
    }

    /// Answers a request below [`PREFIX`].
    pub async fn call<B: RequestBody>(&self, request: Request<B>) -> Response<ResponseBody> {
        // Without its type: what is built of this call would have a type too deep for the compiler.
        let answer: BoxFuture<'_, _> = Box::pin(self.answer(request));
        match answer.await {
            Ok(response) => response,
            Err(status) => failure(&status),
        }
    }

    /// As [`Gateway::call`], where the client may ask for a websocket.
    pub async fn call_or_upgrade(
        &self,
        request: Request<hyper::body::Incoming>,
    ) -> Response<ResponseBody> {
        if websocket::is_upgrade(request.headers()) {
            return websocket::upgrade(self.clone(), request);
        }
        self.call(request).await
    }

    async fn answer<B: RequestBody>(
        &self,
        request: Request<B>,
    ) -> Result<Response<ResponseBody>, Status> {
        let (mut parts, body) = request.into_parts();
        if let Some(method) = method_override::method(&parts) {
            method_override::read_form(&parts, body).await?;
            parts.method = method;
            return self.answer_as(parts, Full::<Bytes>::default()).await;
        }
        self.answer_as(parts, body).await
    }

    async fn answer_as<B: RequestBody>(
        &self,
        parts: request::Parts,
        body: B,
    ) -> Result<Response<ResponseBody>, Status> {
        let route = match find_route(&parts) {
            Ok(route) => route,
            Err(status) => {
                discard_announced(body).await;
                return Err(status);
            }
        };
        let too_late = || Status::deadline_exceeded("context deadline exceeded");
        let deadline = timeout(&parts.headers)?;
        if let Err(status) = binary_metadata::check(&parts.headers) {
            discard_announced(body).await;
            return Err(status);
        }
        if deadline.is_some_and(|limit| limit < TIMEOUT_MIN) {
            discard_announced(body).await;
            return Err(too_late());
        }
        let call = self.run(route, &parts, body);
        match deadline {
            None => call.await,
            Some(limit) => tokio::time::timeout(limit, call)
                .await
                .unwrap_or_else(|_| Err(too_late())),
        }
    }

    async fn run<B: RequestBody>(
        &self,
        route: &'static Route,
        parts: &request::Parts,
        body: B,
    ) -> Result<Response<ResponseBody>, Status> {
        // What a certificate says about the client does not count here, as in etcd.
        let mut extensions = Extensions::new();
        if let Some(address) = parts.extensions.get::<ClientAddress>() {
            extensions.insert(*address);
        }
        let caller = Caller::new(self.services.clone(), metadata(&parts.headers), extensions);
        if route.form == Form::Bidirectional {
            let stream = self.stream().await;
            let (requests, malformed) = self.messages(route, body);
            let answers = caller.call(&route.grpc_path, streamed(requests)).await;
            return Ok(lines(route, answers, Some(malformed), stream).await);
        }
        let message = self.read_message(route, parts, body).await?;
        let stream = self.stream().await;
        let body = tonic::body::Body::new(Full::new(framed(&message)));
        let mut answers = caller.call(&route.grpc_path, body).await;
        if route.form == Form::ServerStream {
            return Ok(lines(route, answers, None, stream).await);
        }
        let mut json = String::new();
        let answer = answers.only().await?;
        transcode::decode(answer, &route.output, &mut json).map_err(not_a_message)?;
        let mut response = json_response(StatusCode::OK, json);
        mark_as_called(response.headers_mut());
        Ok(response)
    }

    /// Waits until the gateway may have one more stream, as long as the client likes to wait.
    async fn stream(&self) -> Option<OwnedSemaphorePermit> {
        let streams = Arc::clone(&self.node.gateway_streams);
        // It is never closed.
        streams.acquire_owned().await.ok()
    }

    fn json_bytes_max(&self) -> usize {
        self.node.receive_bytes_max() * JSON_OVERHEAD_FACTOR + JSON_OVERHEAD_BYTES
    }

    fn too_large(&self, length: usize) -> Status {
        let limit = self.node.receive_bytes_max();
        Status::resource_exhausted(format!(
            "grpc: received message larger than max ({length} vs. {limit})"
        ))
    }

    /// The message of a call that has one; an empty body is an empty message.
    async fn read_message<B: RequestBody>(
        &self,
        route: &Route,
        parts: &request::Parts,
        mut body: B,
    ) -> Result<Vec<u8>, Status> {
        let announced = parts
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        let mut json = JsonStream::default();
        if announced.is_some_and(|length| length > self.json_bytes_max()) {
            discard(body).await;
            return Err(self.too_large(announced.unwrap_or_default()));
        }
        let mut first = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Status::cancelled(error.to_string()))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            // What follows the first value is read and ignored, as in etcd.
            if first.is_some() {
                continue;
            }
            json.push(&data);
            if json.unread_bytes() > self.json_bytes_max() {
                let length = json.unread_bytes() + discard(body).await;
                return Err(self.too_large(length));
            }
            first = json.next_value().transpose();
            if first.is_some() && parts.extensions.get::<websocket::Endless>().is_some() {
                break;
            }
        }
        let value = match first {
            Some(value) => value.map_err(Status::invalid_argument)?,
            None => match json.last_value() {
                Ok(value) => value,
                Err(NoValue::End) => return Ok(Vec::new()),
                Err(NoValue::Malformed(text)) => return Err(Status::invalid_argument(text)),
            },
        };
        transcode::encode(&value, &route.input).map_err(Status::invalid_argument)
    }

    /// The messages of a call that may have several, and how reading them failed.
    fn messages<B: RequestBody>(
        &self,
        route: &'static Route,
        mut body: B,
    ) -> (
        impl Stream<Item = Bytes> + Send + 'static,
        oneshot::Receiver<Status>,
    ) {
        let (report, malformed) = oneshot::channel();
        let gateway = self.clone();
        let messages = async_stream::stream! {
            let mut json = JsonStream::default();
            let mut ended = false;
            let failure = loop {
                let value = match json.next_value() {
                    Ok(None) if ended => match json.last_value() {
                        Ok(value) => value,
                        // Dropping the sender says that there was no failure.
                        Err(NoValue::End) => return,
                        Err(NoValue::Malformed(text)) => break undecodable(&text),
                    },
                    Ok(None) => {
                        match body.frame().await {
                            Some(Ok(frame)) => {
                                if let Ok(data) = frame.into_data() {
                                    json.push(&data);
                                }
                            }
                            // The client is gone.
                            Some(Err(_)) => return,
                            None => ended = true,
                        }
                        if json.unread_bytes() > gateway.json_bytes_max() {
                            break gateway.too_large(json.unread_bytes());
                        }
                        continue;
                    }
                    Ok(Some(value)) => value,
                    Err(text) => break undecodable(&text),
                };
                match transcode::encode(&value, &route.input) {
                    Ok(message) => yield framed(&message),
                    Err(text) => break undecodable(&text),
                }
            };
            // The receiver is gone when the answers have ended.
            let _ = report.send(failure);
        };
        (messages, malformed)
    }
}

fn undecodable(text: &str) -> Status {
    Status::invalid_argument(format!("Failed to decode request: {text}"))
}

fn not_a_message(error: prost::DecodeError) -> Status {
    Status::internal(error.to_string())
}

fn find_route(parts: &request::Parts) -> Result<&'static Route, Status> {
    let route = routes::find(parts.uri.path()).ok_or_else(|| Status::not_found("Not Found"))?;
    if parts.method != Method::POST {
        return Err(Status::unimplemented("Method Not Allowed"));
    }
    Ok(route)
}

/// Reads a small body that the answer does not need, when it says how long it is. Behind an answer that comes before
/// the body of its request HTTP/2 has to reset the stream, and curl 7.88 then loses the answer.
pub async fn discard_announced<B: RequestBody>(body: B) {
    let announced = body.size_hint().exact().unwrap_or(0);
    if (1..=ANNOUNCED_BYTES_MAX).contains(&announced) {
        discard(body).await;
    }
}

/// Reads what is left of a body; how many bytes that were.
pub async fn discard<B: RequestBody>(mut body: B) -> usize {
    let mut length = 0;
    let reading = async {
        while length < DISCARDED_BYTES_MAX
            && let Some(Ok(frame)) = body.frame().await
        {
            length += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Whoever is slower than that gets its connection closed under it.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, reading).await;
    length
}

/// `Grpc-Timeout`: digits and a unit.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(TIMEOUT_HEADER) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.char_indices().next_back().and_then(|(at, unit)| {
        let number: i64 = text[..at].parse().ok()?;
        // Go's zero means no time limit; a negative one has passed.
        let number = u64::try_from(number).unwrap_or_default();
        Some(match unit {
            'H' => Duration::from_secs(number.saturating_mul(3600)),
            'M' => Duration::from_secs(number.saturating_mul(60)),
            'S' => Duration::from_secs(number),
            'm' => Duration::from_millis(number),
            'u' => Duration::from_micros(number),
            'n' => Duration::from_nanos(number),
            _ => return None,
        })
    });
    match parsed {
        Some(limit) if limit.is_zero() => Ok(None),
        Some(limit) => Ok(Some(limit)),
        None => Err(Status::invalid_argument(format!(
            "invalid grpc-timeout: {text}"
        ))),
    }
}

/// The metadata that a request's headers carry: `Authorization`, and `Grpc-Metadata-…` without its
/// prefix.
fn metadata(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers {
        let plain = value
            .as_bytes()
            .iter()
            .all(|byte| matches!(byte, 0x20..=0x7e));
        let key = if name == header::AUTHORIZATION {
            Some(header::AUTHORIZATION)
        } else {
            name.as_str()
                .strip_prefix(METADATA_PREFIX)
                .filter(|key| !is_reserved(key))
                .and_then(|key| key.parse().ok())
        };
        if let Some(key) = key
            && plain
        {
            metadata.append(key, value.clone());
        }
    }
    metadata
}

/// Metadata that gRPC itself sets.
fn is_reserved(key: &str) -> bool {
    key.starts_with("grpc-") || matches!(key, "content-type" | "te" | "user-agent" | "connection")
}

/// The headers that gRPC's own headers of a call that got through become.
fn mark_as_called(headers: &mut HeaderMap) {
    headers.insert(
        CALL_CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
}

fn json_response(status: StatusCode, json: String) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Plain(Full::new(json.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// The HTTP status that belongs to a code; grpc-gateway's table.
pub fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        // No name of its own: the client closed the request.
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A status as JSON: `google.rpc.Status` without details.
fn status_json(status: &Status) -> String {
    let mut json = format!("{{\"code\":{}", status.code() as i32);
    if !status.message().is_empty() {
        json.push_str(",\"message\":");
        transcode::write_string(status.message(), &mut json);
    }
    json.push('}');
    json
}

fn failure(status: &Status) -> Response<ResponseBody> {
    let mut response = json_response(http_status(status.code()), status_json(status));
    if status.code() == Code::Unauthenticated
        && let Ok(value) = HeaderValue::from_str(status.message())
    {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, value);
    }
    response
}

fn error_line(status: &Status) -> Bytes {
    let json = transcode::escape_for_html(&status_json(status));
    format!("{{\"error\":{json}}}\n").into()
}

fn result_line(route: &Route, message: Bytes) -> Result<Bytes, Status> {
    let mut json = String::new();
    transcode::decode(message, &route.output, &mut json).map_err(not_a_message)?;
    Ok(format!("{{\"result\":{}}}\n", transcode::escape_for_html(&json)).into())
}

/// The answers to a streaming call: a line each, and one for the error at the end.
///
/// The HTTP status is that of the first line, so this waits for it.
async fn lines(
    route: &'static Route,
    answers: Answers,
    malformed: Option<oneshot::Receiver<Status>>,
    stream: Option<OwnedSemaphorePermit>,
) -> Response<ResponseBody> {
    let malformed = async move {
        // Without a reading side, or after it has ended well, there is nothing to tell.
        match malformed {
            Some(malformed) => malformed.await.ok(),
            None => None,
        }
    };
    let mut lines = Box::pin(async_stream::stream! {
        // It is one of the gateway's until the client has the last line, or is gone.
        let _stream = stream;
        let malformed = malformed.fuse();
        tokio::pin!(malformed);
        let mut answers = answers;
        loop {
            let answer = tokio::select! {
                biased;
                Some(status) = &mut malformed, if !malformed.is_terminated() => Some(Err(status)),
                answer = answers.next() => answer,
            };
            match answer.map(|answer| answer.and_then(|message| result_line(route, message))) {
                Some(Ok(line)) => yield Ok(line),
                Some(Err(status)) => {
                    yield Err(status);
                    return;
                }
                None => {
                    // The service ends with its requests; why these ended is known by now.
                    if !malformed.is_terminated()
                        && let Some(Some(status)) = malformed.now_or_never()
                    {
                        yield Err(status);
                    }
                    return;
                }
            }
        }
    });
    let first = lines.next().await;
    let status = match &first {
        Some(Err(status)) => http_status(status.code()),
        _ => StatusCode::OK,
    };
    let pieces = futures::stream::iter(first.clone())
        .chain(lines)
        .map(|line| line.unwrap_or_else(|status| error_line(&status)))
        .map(|line| Ok::<_, Status>(http_body::Frame::data(line)));
    let mut response = Response::new(ResponseBody::Pieces(StreamBody::new(pieces).boxed_unsync()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if first.is_some() {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
    }
    if matches!(first, Some(Ok(_))) {
        mark_as_called(headers);
    }
    response
}

/// A body of the route with this number.
#[cfg(feature = "fuzzing")]
pub fn fuzz_json(route: usize, body: &[u8]) {
    transcode::assert_means_one_message(routes::numbered_input(route), body);
}
