//! Connections from clients: accepts them, spreads them over the client threads, tells gRPC from
//! plain HTTP.
//!
//! Each client thread runs a runtime of its own. A wake-up between threads costs more than a small
//! request, and a request that stays on one thread needs none on its way in.

mod connection;
mod endpoints;
mod executor;
mod grpc_refusal;
pub mod peer_certificate;
pub mod sockets;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use metastore_consensus::completion::Mailbox;
use tokio::sync::mpsc;

use crate::client_limits::ClientAddress;
use crate::config::Config;
use crate::http::{HttpRoutes, HttpService};
use crate::node::Node;
use crate::observe::metrics::runtimes;
use crate::rpc::compression;
use crate::rpc::services::GrpcServices;
use crate::rpc::unary::ResponseBody;

pub use connection::{ClientEndpoint, ConnectionOptions, OverTls};
pub use endpoints::{EndpointPlan, Traffic, plan};
pub use peer_certificate::PeerCertificate;

pub(crate) use connection::{Serving, serve};
use sockets::{DetachedSocket, Socket};

/// How often a client thread wakes without need. Must be less than the time limits of requests.
const PULSE_INTERVAL: Duration = Duration::from_secs(1);
/// Connections that may wait for their client thread.
const PENDING_CONNECTIONS_MAX: usize = 1024;

/// Answers the requests of connections.
pub(crate) trait ConnectionService: Send + Sync + 'static {
    /// Answers a request that came from `remote` to a socket for this traffic.
    fn call(
        self: &Arc<Self>,
        request: Request<Incoming>,
        remote: Option<SocketAddr>,
        traffic: Traffic,
    ) -> BoxFuture<'static, Response<ResponseBody>>;
}

/// What a client connection talks to.
struct Services {
    grpc: GrpcServices,
    http: HttpService,
}

impl ConnectionService for Services {
    fn call(
        self: &Arc<Self>,
        request: Request<Incoming>,
        remote: Option<SocketAddr>,
        traffic: Traffic,
    ) -> BoxFuture<'static, Response<ResponseBody>> {
        if !is_grpc(&request) || matches!(traffic, Traffic::Http | Traffic::Metrics) {
            let mut request = request;
            if let Some(remote) = remote {
                request.extensions_mut().insert(ClientAddress(remote));
            }
            return Arc::clone(self).call_http(request, traffic).boxed();
        }
        if let Some(refusal) = grpc_refusal::refusal(&request) {
            return std::future::ready(refusal).boxed();
        }
        if compression::is_announced(&request) {
            let grpc = self.grpc.clone();
            let bytes_max = grpc.receive_bytes_max();
            let answer = move |request| grpc.call(request, remote);
            return compression::call(request, bytes_max, answer).boxed();
        }
        self.grpc.call(request, remote)
    }
}

impl Services {
    async fn call_http(
        self: Arc<Self>,
        request: Request<Incoming>,
        traffic: Traffic,
    ) -> Response<ResponseBody> {
        let routes = match traffic {
            Traffic::Grpc => return not_grpc(&request),
            Traffic::Metrics => HttpRoutes::Metrics,
            Traffic::Both | Traffic::Http => HttpRoutes::Client,
        };
        let secure = request.extensions().get::<OverTls>().is_some();
        self.http.call(request, routes, secure).await
    }
}

/// grpc-go's answer to a request that is no gRPC.
fn not_grpc(request: &Request<Incoming>) -> Response<ResponseBody> {
    let content_type = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let text = format!("invalid gRPC request content-type {content_type:?}");
    let mut response = tonic::Status::invalid_argument(text)
        .into_http::<tonic::body::Body>()
        .map(ResponseBody::Tonic);
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// The answer to a gRPC request that no service gets; `None` for all others.
pub(crate) fn refusal(request: &Request<Incoming>) -> Option<Response<ResponseBody>> {
    grpc_refusal::refusal(request)
}

/// Whether a request is gRPC: as in etcd, over HTTP/2 only, and by its content type.
pub(crate) fn is_grpc(request: &Request<Incoming>) -> bool {
    if request.version() != Version::HTTP_2 {
        return false;
    }
    let Some(content_type) = request.headers().get(header::CONTENT_TYPE) else {
        return false;
    };
    match content_type.as_bytes().strip_prefix(b"application/grpc") {
        // A subtype or parameters may follow, but not, for instance, `-web`.
        Some([] | [b'+' | b';', ..]) => true,
        Some(_) | None => false,
    }
}

fn connection_options(config: &Config) -> ConnectionOptions {
    ConnectionOptions {
        max_concurrent_streams: config.max_concurrent_streams,
        ping_interval_min: config.grpc_keepalive_min_time,
        ping_interval: config.grpc_keepalive_interval,
        ping_timeout: config.grpc_keepalive_timeout,
    }
}

/// Keeps a timer in a runtime that ends before those of its requests.
///
/// A timer that is the first to end makes tokio interrupt its own sleep, by a system call. A client thread
/// with nothing to wait for has none when it falls asleep, and so each request that sets a time limit would
/// pay that call: 16 of them for 16 puts of one read.
async fn pulse() {
    loop {
        tokio::time::sleep(PULSE_INTERVAL).await;
    }
}

/// A connection for a client thread.
type Dealt = (DetachedSocket, Arc<ClientEndpoint>);

/// The threads that serve clients.
pub struct ClientThreads {
    connections: Vec<mpsc::Sender<Dealt>>,
}

impl ClientThreads {
    /// Starts `count` threads that serve `node`.
    ///
    /// # Errors
    /// When the operating system gives no more threads.
    pub fn start(node: &Arc<Node>, count: usize) -> std::io::Result<Self> {
        let grpc = GrpcServices::new(node);
        let services = Services {
            http: HttpService::for_clients(Arc::clone(node), &grpc),
            grpc,
        };
        let serving = Arc::new(Serving::new(services, &connection_options(&node.config)));
        let mut connections = Vec::with_capacity(count);
        for number in 0..count.max(1) {
            let (sender, mut receiver) = mpsc::channel::<Dealt>(PENDING_CONNECTIONS_MAX);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtimes::register(&runtime);
            let serving = Arc::clone(&serving);
            thread::Builder::new()
                .name(format!("client-{number}"))
                .spawn(move || {
                    runtime.block_on(async move {
                        Mailbox::open();
                        tokio::spawn(pulse());
                        while let Some((socket, endpoint)) = receiver.recv().await {
                            tokio::spawn(serve(socket, endpoint, Arc::clone(&serving)));
                        }
                    });
                })?;
            connections.push(sender);
        }
        Ok(Self { connections })
    }

    /// Accepts connections of `socket` for ever and deals them out in turn.
    pub async fn accept(&self, socket: Socket, endpoint: Arc<ClientEndpoint>) {
        for target in self.connections.iter().cycle() {
            let stream = loop {
                match socket.accept().await {
                    Ok(stream) => break stream,
                    // Out of file descriptors or a connection that was reset before we took it:
                    // neither ends the listener.
                    Err(error) => {
                        tracing::warn!(%error, "failed to accept a client connection");
                        tokio::time::sleep(sockets::ACCEPT_RETRY_INTERVAL).await;
                    }
                }
            };
            let stream = match stream.detach() {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "failed to prepare a client connection");
                    continue;
                }
            };
            if target.send((stream, Arc::clone(&endpoint))).await.is_err() {
                return;
            }
        }
    }
}
