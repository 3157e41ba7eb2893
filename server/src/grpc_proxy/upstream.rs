//! The cluster behind the proxy: its endpoints, and calls to whichever answers.
//!
//! Endpoints take turns; one that could not be reached lately comes last. A call that did not reach anybody is
//! sent to the next one, and so is a call that changes nothing and was lost. Nobody knows whether a write was
//! done, so a write that was sent is never repeated. That is what clientv3 does inside etcd's proxy.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body::{Body as HttpBody, Frame};
use hyper_util::rt::TokioIo;
use metastore_consensus::BoxedStream;
use metastore_proto::etcdserverpb::{
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, WatchCreateRequest, WatchRequest, WatchResponse,
    watch_request::RequestUnion,
};
use metastore_proto::repeat::{is_broken, is_lost, is_repeatable};
use parking_lot::Mutex;
use prost::Message;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use crate::observe::metrics::grpc::method;
use crate::rpc::in_process::{Answers, framed, one_message, streamed};
use crate::rpc::unary::ResponseBody;
use crate::tls::ClientTls;

/// How long a connection may take; etcd's limit.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before all endpoints are tried again; clientv3's.
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// For how long a call is tried again; clientv3's hundred pauses. Its client tries again by itself.
const RETRY_TIME_MAX: Duration = Duration::from_millis(2500);
/// For how long an endpoint that could not be reached comes last.
const FAILED_FOR: Duration = Duration::from_secs(10);
/// What a client says about itself and its call, and the cluster is told. Everything else of a request's head
/// is about the connection.
const FORWARDED_HEADERS: [&str; 5] = [
    "token",
    "authorization",
    "hasleader",
    "client-api-version",
    "grpc-timeout",
];

/// How the cluster is reached.
#[derive(Clone)]
pub struct DialOptions {
    /// TLS for endpoints that do not say `http://`; nothing: only those that say `https://` speak it.
    pub tls: Option<ClientTls>,
    /// `--dial-keepalive-time`; zero: no pings.
    pub keepalive_time: Duration,
    /// `--dial-keepalive-timeout`.
    pub keepalive_timeout: Duration,
    /// `--permit-without-stream`.
    pub pings_while_idle: bool,
    /// `--max-send-bytes`.
    pub send_bytes_max: usize,
    /// `--max-recv-bytes`.
    pub receive_bytes_max: usize,
}

impl DialOptions {
    /// What clientv3 does by default.
    pub fn new(tls: Option<ClientTls>) -> Self {
        Self {
            tls,
            keepalive_time: Duration::ZERO,
            keepalive_timeout: Duration::from_secs(20),
            pings_while_idle: false,
            send_bytes_max: 2 << 20,
            receive_bytes_max: i32::MAX as usize,
        }
    }
}

/// The headers of a request that are the cluster's business.
pub fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut forwarded = HeaderMap::new();
    for name in FORWARDED_HEADERS {
        for value in headers.get_all(name) {
            forwarded.append(name, value.clone());
        }
    }
    forwarded
}

/// The cluster.
pub struct Upstream {
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    options: DialOptions,
    /// Whose turn it is.
    turn: AtomicUsize,
}

impl Upstream {
    /// The cluster at these endpoints: URLs, or `host:port`. Nobody is called yet.
    ///
    /// # Errors
    /// An endpoint that is none.
    pub fn new(endpoints: &[String], options: DialOptions) -> Result<Self, String> {
        let endpoints = open(endpoints, &options)?;
        Ok(Self {
            endpoints: ArcSwap::from_pointee(endpoints),
            options,
            turn: AtomicUsize::new(0),
        })
    }

    /// Takes other endpoints; those that stay keep their connections.
    ///
    /// # Errors
    /// An endpoint that is none.
    pub fn replace_endpoints(&self, names: &[String]) -> Result<(), String> {
        let before = self.endpoints.load_full();
        let mut endpoints = open(names, &self.options)?;
        for endpoint in &mut endpoints {
            if let Some(known) = before.iter().find(|known| known.name == endpoint.name) {
                *endpoint = Arc::clone(known);
            }
        }
        self.endpoints.store(Arc::new(endpoints));
        Ok(())
    }

    /// Opens a connection to some endpoint for something else than gRPC. Returns it with `host:port`.
    ///
    /// # Errors
    /// The last endpoint's.
    pub async fn connect_http(&self) -> io::Result<(BoxedStream, String)> {
        let mut last = io::Error::other("no endpoint");
        for endpoint in self.in_turn() {
            let target = &endpoint.target;
            match target.clone().offering(&["http/1.1"]).connect().await {
                Ok(stream) => return Ok((stream, target.authority.clone())),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn in_turn(&self) -> Vec<Arc<Endpoint>> {
        let endpoints = self.endpoints.load();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut order: Vec<_> = (0..endpoints.len())
            .map(|step| Arc::clone(&endpoints[(first.wrapping_add(step)) % endpoints.len()]))
            .collect();
        order.sort_by_key(|endpoint| endpoint.has_failed_lately());
        order
    }

    /// How many endpoints there are.
    pub fn endpoint_count(&self) -> usize {
        self.endpoints.load().len()
    }

    /// A call with one message and one answer.
    ///
    /// # Errors
    /// The cluster's, or nobody was reached.
    pub async fn unary(
        &self,
        path: &str,
        headers: &HeaderMap,
        message: Bytes,
    ) -> Result<Bytes, Status> {
        if message.len() > self.options.send_bytes_max {
            return Err(Status::resource_exhausted(format!(
                "trying to send message larger than max ({} vs. {})",
                message.len(),
                self.options.send_bytes_max
            )));
        }
        let is_repeatable = is_repeatable(path);
        let deadline = Instant::now() + RETRY_TIME_MAX;
        let message = Raw(message);
        loop {
            let mut last = Status::unavailable("there is no address available");
            for endpoint in self.in_turn() {
                let request = request(path, headers, one_message(&message));
                match endpoint
                    .answer(request, self.options.receive_bytes_max)
                    .await
                {
                    Ok(answer) => return Ok(answer),
                    Err(Failure::Unsent(status)) => last = status,
                    Err(Failure::Answered(status)) if is_repeatable && is_lost(&status) => {
                        last = status;
                    }
                    Err(Failure::Answered(status)) => return Err(told(status)),
                }
            }
            if Instant::now() >= deadline {
                return Err(told(last));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// [`Self::unary`] of the proxy itself, with types and without credentials.
    ///
    /// # Errors
    /// As [`Self::unary`]; an answer that cannot be read.
    pub async fn ask<Q, A>(&self, path: &str, request: &Q) -> Result<A, Status>
    where
        Q: Message,
        A: Message + Default,
    {
        let message = request.encode_to_vec().into();
        let answer = self.unary(path, &HeaderMap::new(), message).await?;
        A::decode(answer).map_err(|error| Status::internal(error.to_string()))
    }

    /// Renews a lease of the proxy itself; returns how many seconds it lives on, 0 when it has ended.
    ///
    /// # Errors
    /// As [`Self::stream`].
    pub async fn renew_lease(&self, id: i64) -> Result<i64, Status> {
        let path = method::LEASE_KEEP_ALIVE.path();
        let body = one_message(&LeaseKeepAliveRequest { id });
        let response = self.stream(path, &HeaderMap::new(), body).await?;
        let mut answers = Answers::new(response.map(ResponseBody::Tonic));
        match answers.next_message().await {
            Some(message) => LeaseKeepAliveResponse::decode(message?)
                .map(|answer| answer.ttl)
                .map_err(|error| Status::internal(error.to_string())),
            None => Err(Status::unavailable("the stream ended")),
        }
    }

    /// Opens a watch.
    ///
    /// # Errors
    /// As [`Self::stream`].
    pub async fn watch(
        &self,
        headers: &HeaderMap,
        create: WatchCreateRequest,
    ) -> Result<ClusterWatch, Status> {
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        let first = stream::once(std::future::ready(framed(&request.encode_to_vec())));
        let (until_dropped, dropped) = oneshot::channel::<()>();
        let until_then = stream::once(dropped).filter_map(|_| std::future::ready(None));
        let body = streamed(first.chain(until_then));
        let response = self.stream(method::WATCH.path(), headers, body).await?;
        Ok(ClusterWatch {
            answers: Answers::new(response.map(ResponseBody::Tonic)),
            _until_dropped: until_dropped,
        })
    }

    /// A call whose answers come as a stream, and often its messages too.
    ///
    /// # Errors
    /// Nobody was reached. What the cluster says about the call is in the response.
    pub async fn stream(
        &self,
        path: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response<Body>, Status> {
        let deadline = Instant::now() + RETRY_TIME_MAX;
        // A body that nobody has read is as good as new.
        let body = Arc::new(Mutex::new(body));
        loop {
            let mut last = Status::unavailable("there is no address available");
            for endpoint in self.in_turn() {
                let body = Body::new(Shared(Arc::clone(&body)));
                match endpoint.send(request(path, headers, body)).await {
                    Ok(response) => return Ok(response),
                    Err(Failure::Unsent(status)) => last = status,
                    Err(Failure::Answered(status)) => return Err(told(status)),
                }
            }
            if Instant::now() >= deadline {
                return Err(last);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// A watch of the proxy itself. It ends when this is dropped.
pub struct ClusterWatch {
    answers: Answers,
    /// Its request ends with this. Answers that are dropped do not end it: the member would go on.
    _until_dropped: oneshot::Sender<()>,
}

impl ClusterWatch {
    /// The next answer.
    ///
    /// # Errors
    /// The watch has ended.
    pub async fn next(&mut self) -> Result<WatchResponse, Status> {
        match self.answers.next_message().await {
            Some(message) => {
                WatchResponse::decode(message?).map_err(|error| Status::internal(error.to_string()))
            }
            None => Err(Status::unavailable("the watch ended")),
        }
    }
}

/// The status as clients are told: a connection of ours that broke is nothing that their call did.
pub fn told(status: Status) -> Status {
    match is_broken(&status) {
        true => Status::unavailable(format!("error reading from server: {}", status.message())),
        false => status,
    }
}

fn request(path: &str, headers: &HeaderMap, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    // Paths are constants of ours.
    *request.uri_mut() = path.parse().expect("the path of a gRPC method is a URI");
    *request.headers_mut() = headers.clone();
    let set = request.headers_mut();
    set.insert(header::TE, HeaderValue::from_static("trailers"));
    set.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    request
}

/// A message that is encoded already.
#[derive(Clone, Debug, Default)]
struct Raw(Bytes);

impl Message for Raw {
    fn encode_raw(&self, buffer: &mut impl bytes::BufMut) {
        buffer.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        _: u32,
        _: prost::encoding::WireType,
        _: &mut impl bytes::Buf,
        _: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        unreachable!("it is only sent")
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0 = Bytes::new();
    }
}

/// Why a call has no answer.
enum Failure {
    /// Nobody got it.
    Unsent(Status),
    /// Somebody may have done it.
    Answered(Status),
}

/// A body whose owner keeps it until it is read.
struct Shared(Arc<Mutex<Body>>);

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut *self.0.lock()).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_end_stream()
    }
}

/// One endpoint with its connection, which is made when it is used first.
struct Endpoint {
    name: String,
    target: Target,
    channel: Channel,
    failed: Mutex<Option<Instant>>,
}

fn open(names: &[String], options: &DialOptions) -> Result<Vec<Arc<Endpoint>>, String> {
    names
        .iter()
        .map(|name| Endpoint::new(name, options).map(Arc::new))
        .collect()
}

impl Endpoint {
    fn new(name: &str, options: &DialOptions) -> Result<Self, String> {
        let target = Target::parse(name, options)?;
        let uri = Uri::builder()
            .scheme("http")
            .authority(target.authority.as_str())
            .path_and_query("/")
            .build()
            .map_err(|error| format!("endpoint {name}: {error}"))?;
        let mut transport = tonic::transport::Endpoint::from(uri);
        if !options.keepalive_time.is_zero() {
            transport = transport
                .http2_keep_alive_interval(metastore_proto::ping_interval(options.keepalive_time))
                .keep_alive_timeout(options.keepalive_timeout)
                .keep_alive_while_idle(options.pings_while_idle);
        }
        let dialled = target.clone().offering(&["h2"]);
        let connector = tower::service_fn(move |_: Uri| {
            let target = dialled.clone();
            async move {
                match target.connect().await {
                    Ok(stream) => Ok(TokioIo::new(stream)),
                    Err(error) => Err(DialError(error.to_string())),
                }
            }
        });
        Ok(Self {
            name: name.to_owned(),
            target,
            channel: transport.connect_with_connector_lazy(connector),
            failed: Mutex::new(None),
        })
    }

    fn has_failed_lately(&self) -> bool {
        self.failed
            .lock()
            .is_some_and(|failed| failed.elapsed() < FAILED_FOR)
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Failure> {
        let mut channel = self.channel.clone();
        let sent = async { channel.ready().await?.call(request).await };
        match sent.await {
            Ok(response) => {
                *self.failed.lock() = None;
                Ok(response)
            }
            Err(error) => match dial_error(&error) {
                Some(reason) => {
                    *self.failed.lock() = Some(Instant::now());
                    Err(Failure::Unsent(Status::unavailable(format!(
                        "connection error: desc = \"transport: Error while dialing: {reason}\""
                    ))))
                }
                None => Err(Failure::Answered(Status::unavailable(root_cause(&error)))),
            },
        }
    }

    async fn answer(
        &self,
        request: Request<Body>,
        receive_bytes_max: usize,
    ) -> Result<Bytes, Failure> {
        let response = self.send(request).await?;
        let mut answers = Answers::new(response.map(ResponseBody::Tonic));
        let answer = answers.only().await.map_err(Failure::Answered)?;
        if answer.len() > receive_bytes_max {
            return Err(Failure::Answered(crate::rpc::unary::too_large(
                answer.len(),
                receive_bytes_max,
            )));
        }
        Ok(answer)
    }
}

/// Nobody was reached.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct DialError(String);

/// Why nobody was reached, if that is the reason.
fn dial_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a DialError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(dial) = error.downcast_ref() {
            return Some(dial);
        }
        cause = error.source();
    }
    None
}

fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Where an endpoint is and what it speaks.
#[derive(Clone)]
struct Target {
    /// `host:port`, or the path of a socket.
    address: String,
    is_socket: bool,
    tls: Option<ClientTls>,
    /// What requests name as their server.
    authority: String,
}

impl Target {
    fn parse(name: &str, options: &DialOptions) -> Result<Self, String> {
        let (scheme, rest) = name.split_once("://").unwrap_or(("", name));
        let tls = match (scheme, &options.tls) {
            ("http" | "unix", _) => None,
            ("https" | "unixs", None) => {
                Some(ClientTls::open(&Default::default()).map_err(|error| error.to_string())?)
            }
            ("https" | "unixs" | "", tls) => tls.clone(),
            (other, _) => return Err(format!("endpoint {name}: scheme {other:?}")),
        };
        let is_socket = scheme.starts_with("unix");
        let address = match is_socket {
            true => rest.to_owned(),
            false => rest.split('/').next().unwrap_or_default().to_owned(),
        };
        if !is_socket && address.rsplit_once(':').is_none() {
            return Err(format!("endpoint {name}: missing port in address"));
        }
        Ok(Self {
            authority: match is_socket {
                true => "localhost".to_owned(),
                false => address.clone(),
            },
            address,
            is_socket,
            tls,
        })
    }

    fn offering(mut self, protocols: &[&str]) -> Self {
        self.tls = self.tls.map(|tls| tls.offering(protocols));
        self
    }

    fn host(&self) -> &str {
        self.authority
            .rsplit_once(':')
            .map_or(&*self.authority, |(host, _)| host)
            .trim_matches(['[', ']'])
    }

    async fn connect(&self) -> io::Result<BoxedStream> {
        let connected = async {
            let stream: BoxedStream = match self.is_socket {
                true => Box::new(UnixStream::connect(&self.address).await?),
                false => {
                    let stream = TcpStream::connect(&self.address).await?;
                    stream.set_nodelay(true)?;
                    Box::new(stream)
                }
            };
            let stream: BoxedStream = match &self.tls {
                None => stream,
                Some(tls) => Box::new(tls.connect(stream, self.host()).await?),
            };
            Ok(stream)
        };
        match tokio::time::timeout(DIAL_TIMEOUT, connected).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "i/o timeout")),
        }
    }
}

/// A body that tells its reader about an error by a status instead of breaking off.
pub struct Told(pub Body);

impl HttpBody for Told {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.get_mut().0)
            .poll_frame(context)
            .map(|frame| {
                frame.map(|frame| {
                    frame.or_else(|status| trailers(&told(status)).map(Frame::trailers))
                })
            })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// A status as the end of a stream.
///
/// # Errors
/// The status, if its text does not fit into a header.
pub fn trailers(status: &Status) -> Result<HeaderMap, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(trailers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> DialOptions {
        DialOptions::new(None)
    }

    #[test]
    fn endpoints_are_urls_or_addresses() {
        for (name, authority, host, secure) in [
            ("127.0.0.1:2379", "127.0.0.1:2379", "127.0.0.1", false),
            ("http://a.example:1/", "a.example:1", "a.example", false),
            ("https://[::1]:2379", "[::1]:2379", "::1", true),
            ("unix:///tmp/a.sock", "localhost", "localhost", false),
        ] {
            let target = Target::parse(name, &options()).expect(name);
            assert_eq!(target.authority, authority);
            assert_eq!(target.host(), host);
            assert_eq!(target.tls.is_some(), secure, "{name}");
        }
        for name in ["ftp://a:1", "a.example", "http://a.example"] {
            assert!(Target::parse(name, &options()).is_err(), "{name}");
        }
    }

    #[tokio::test]
    async fn endpoints_take_turns_and_those_that_failed_come_last() {
        let names = ["a:1", "b:1", "c:1"].map(str::to_owned);
        let upstream = Upstream::new(&names, options()).expect("endpoints");
        let order = || -> Vec<_> {
            let endpoints = upstream.in_turn();
            endpoints
                .iter()
                .map(|endpoint| endpoint.name.clone())
                .collect()
        };
        assert_eq!(order(), ["a:1", "b:1", "c:1"]);
        assert_eq!(order(), ["b:1", "c:1", "a:1"]);
        *upstream.endpoints.load()[2].failed.lock() = Some(Instant::now());
        assert_eq!(order(), ["a:1", "b:1", "c:1"]);
        assert_eq!(order(), ["a:1", "b:1", "c:1"]);
        assert_eq!(order(), ["b:1", "a:1", "c:1"]);
        upstream
            .replace_endpoints(&["d:1".to_owned()])
            .expect("an endpoint");
        assert_eq!(order(), ["d:1"]);
    }

    #[test]
    fn only_what_the_cluster_must_know_is_forwarded() {
        let mut headers = HeaderMap::new();
        for name in ["token", "te", "grpc-encoding", "user-agent", "hasleader"] {
            headers.insert(name, HeaderValue::from_static("x"));
        }
        let mut names: Vec<_> = forwarded(&headers)
            .keys()
            .map(|name| name.to_string())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["hasleader", "token"]);
    }
}
