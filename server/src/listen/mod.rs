//! Connections from clients: accepts them, spreads them over the client threads, tells gRPC from
//! plain HTTP.
//!
//! Each client thread runs a runtime of its own. A wake-up between threads costs more than a small
//! request, and a request that stays on one thread needs none on its way in.

mod connection;
mod endpoints;
pub mod peer_certificate;
pub mod sockets;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use http::{Request, Response, StatusCode, header};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use metastore_consensus::completion::Mailbox;
use metastore_proto::etcdserverpb::auth_server::AuthServer;
use metastore_proto::etcdserverpb::cluster_server::ClusterServer;
use metastore_proto::etcdserverpb::lease_server::LeaseServer;
use metastore_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use tokio::sync::mpsc;
use tonic::body::Body;
use tower::Service;

use crate::http::HttpService;
use crate::node::Node;
use crate::observe::metrics::grpc;
use crate::rpc::auth::AuthService;
use crate::rpc::cluster::ClusterService;
use crate::rpc::key_value::{self, KeyValueService};
use crate::rpc::lease::LeaseService;
use crate::rpc::maintenance::MaintenanceService;
use crate::rpc::unary::{CallOptions, ResponseBody};
use crate::rpc::watch::WatchService;
use crate::slow_requests::{self, RequestStats};

pub use connection::{ClientEndpoint, OverTls};
pub use endpoints::{EndpointPlan, Traffic, plan};
pub use peer_certificate::PeerCertificate;

use connection::{HttpOptions, Serving};
use sockets::{DetachedSocket, Socket};

const KEY_VALUE_PATH: &str = "/etcdserverpb.KV/";
const WATCH_PATH: &str = "/etcdserverpb.Watch/";
/// Connections that may wait for their client thread.
const PENDING_CONNECTIONS_MAX: usize = 1024;

/// The gRPC services of a member.
#[derive(Clone)]
struct GrpcServices {
    key_value: KeyValueService,
    watch: WatchService,
    lease: LeaseServer<LeaseService>,
    cluster: ClusterServer<ClusterService>,
    auth: AuthServer<AuthService>,
    maintenance: MaintenanceServer<MaintenanceService>,
    health: crate::rpc::health::HealthServer,
}

impl GrpcServices {
    fn new(node: &Arc<Node>) -> Self {
        let receive_max = node.receive_bytes_max();
        macro_rules! limited {
            ($server:ident, $service:ident) => {
                $server::new($service::new(Arc::clone(node)))
                    .max_decoding_message_size(receive_max)
                    .max_encoding_message_size(usize::MAX)
            };
        }
        Self {
            key_value: KeyValueService::new(Arc::clone(node)),
            watch: WatchService::new(Arc::clone(node)),
            lease: limited!(LeaseServer, LeaseService),
            cluster: limited!(ClusterServer, ClusterService),
            auth: limited!(AuthServer, AuthService),
            maintenance: limited!(MaintenanceServer, MaintenanceService),
            health: crate::rpc::health::server(Arc::clone(node)),
        }
    }

    /// Answers a call of a service that is not asked for thousands of times a second.
    async fn call_rare(
        &self,
        request: Request<Incoming>,
        options: CallOptions,
    ) -> Response<ResponseBody> {
        match grpc::find(request.uri().path()) {
            Some(method) => {
                let serve = |request| self.call_service(request, options);
                grpc::observe(method, request, serve)
                    .await
                    .map(ResponseBody::Counted)
            }
            None => self
                .call_service(request, options)
                .await
                .map(ResponseBody::Tonic),
        }
    }

    async fn call_service<B>(&self, request: Request<B>, options: CallOptions) -> Response<Body>
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let path = request.uri().path().to_owned();
        let started = Instant::now();
        let service = path
            .strip_prefix('/')
            .and_then(|path| path.split_once('/'))
            .map_or("", |(service, _)| service);
        let answer = match service {
            "etcdserverpb.Lease" => self.lease.clone().call(request).await,
            "etcdserverpb.Auth" => self.auth.clone().call(request).await,
            "etcdserverpb.Cluster" => self.cluster.clone().call(request).await,
            "etcdserverpb.Maintenance" => self.maintenance.clone().call(request).await,
            "grpc.health.v1.Health" => self.health.clone().call(request).await,
            _ => {
                let text = format!("unknown service {service}");
                return tonic::Status::unimplemented(text).into_http();
            }
        };
        // Streams answer at once, so only unary calls can be late here.
        let took = started.elapsed();
        if took > options.warning_duration {
            slow_requests::warn_of_unary(&path, options.remote, took, &RequestStats::UNKNOWN);
        }
        match answer {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// What a client connection talks to.
struct Services {
    grpc: GrpcServices,
    http: HttpService,
    /// Without who called.
    options: CallOptions,
}

impl Services {
    async fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
        remote: Option<SocketAddr>,
        traffic: Traffic,
    ) -> Response<ResponseBody> {
        let options = CallOptions {
            remote,
            ..self.options
        };
        if !is_grpc(&request) || matches!(traffic, Traffic::Http | Traffic::Metrics) {
            return Box::pin(self.call_http(request, traffic)).await;
        }
        if let Some(method) = request.uri().path().strip_prefix(KEY_VALUE_PATH) {
            let method = key_value::Method::parse(method);
            return self.grpc.key_value.call(request, method, options).await;
        }
        if let Some(method) = request.uri().path().strip_prefix(WATCH_PATH) {
            let known = method == "Watch";
            return self.grpc.watch.call(request, known);
        }
        Box::pin(self.grpc.call_rare(request, options)).await
    }

    async fn call_http(
        &self,
        request: Request<Incoming>,
        traffic: Traffic,
    ) -> Response<ResponseBody> {
        match traffic {
            Traffic::Grpc => not_grpc(&request),
            Traffic::Metrics => self
                .http
                .call_metrics(request)
                .await
                .map(ResponseBody::Plain),
            Traffic::Both | Traffic::Http => self.http.call(request).await.map(ResponseBody::Plain),
        }
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
        .into_http::<Body>()
        .map(ResponseBody::Tonic);
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
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
        let serving = Arc::new(Serving {
            services: Arc::new(Services {
                grpc: GrpcServices::new(node),
                http: HttpService::new(Arc::clone(node)),
                options: CallOptions {
                    bytes_max: node.receive_bytes_max(),
                    warning_duration: node.config.warning_unary_request_duration,
                    remote: None,
                },
            }),
            options: HttpOptions::new(&node.config),
        });
        let mut connections = Vec::with_capacity(count);
        for number in 0..count.max(1) {
            let (sender, mut receiver) = mpsc::channel::<Dealt>(PENDING_CONNECTIONS_MAX);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let serving = Arc::clone(&serving);
            thread::Builder::new()
                .name(format!("client-{number}"))
                .spawn(move || {
                    runtime.block_on(async move {
                        Mailbox::open();
                        while let Some((socket, endpoint)) = receiver.recv().await {
                            tokio::spawn(connection::serve(socket, endpoint, Arc::clone(&serving)));
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
