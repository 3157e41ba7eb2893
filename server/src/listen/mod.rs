//! Connections from clients: accepts them, spreads them over the client threads, tells gRPC from
//! plain HTTP.
//!
//! Each client thread runs a runtime of its own. A wake-up between threads costs more than a small
//! request, and a request that stays on one thread needs none on its way in.

pub mod sockets;

use std::convert::Infallible;
use std::sync::Arc;
use std::thread;

use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use metastore_proto::etcdserverpb::cluster_server::ClusterServer;
use metastore_proto::etcdserverpb::lease_server::LeaseServer;
use metastore_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tower::Service;

use crate::http::HttpService;
use crate::node::Node;
use crate::rpc::cluster::ClusterService;
use crate::rpc::key_value::KeyValueService;
use crate::rpc::lease::LeaseService;
use crate::rpc::maintenance::MaintenanceService;
use crate::rpc::unary::{self, ResponseBody};
use crate::rpc::watch::WatchService;

/// Flow-control window of one stream. The default of 64 KiB stops a 1.5 MiB put many times.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Flow-control window of a connection: one slow stream must not stop the others.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Connections that may wait for their client thread.
const PENDING_CONNECTIONS_MAX: usize = 1024;

/// The gRPC services of a member.
#[derive(Clone)]
struct GrpcServices {
    key_value: KeyValueService,
    watch: WatchService,
    lease: LeaseServer<LeaseService>,
    cluster: ClusterServer<ClusterService>,
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
            maintenance: limited!(MaintenanceServer, MaintenanceService),
            health: crate::rpc::health::server(Arc::clone(node)),
        }
    }

    async fn call(&mut self, request: Request<Incoming>) -> Response<ResponseBody> {
        let uri = request.uri().clone();
        let (service, method) = uri
            .path()
            .strip_prefix('/')
            .and_then(|path| path.split_once('/'))
            .unwrap_or_default();
        let answer = match service {
            "etcdserverpb.KV" => return self.key_value.call(request, method).await,
            "etcdserverpb.Watch" => return self.watch.call(request, method),
            "etcdserverpb.Lease" => self.lease.call(request).await,
            "etcdserverpb.Cluster" => self.cluster.call(request).await,
            "etcdserverpb.Maintenance" => self.maintenance.call(request).await,
            "grpc.health.v1.Health" => self.health.call(request).await,
            _ => {
                let text = format!("unknown service {service}");
                return unary::failure(tonic::Status::unimplemented(text));
            }
        };
        match answer {
            Ok(response) => response.map(ResponseBody::Tonic),
            Err(never) => match never {},
        }
    }
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

async fn serve_connection(
    stream: TcpStream,
    grpc: GrpcServices,
    http: HttpService,
    streams_max: u32,
) {
    let peer = stream.peer_addr();
    let service = service_fn(move |request: Request<Incoming>| {
        let mut grpc = grpc.clone();
        let http = http.clone();
        async move {
            let response = if is_grpc(&request) {
                grpc.call(request).await
            } else {
                http.call(request).await.map(ResponseBody::Plain)
            };
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http2()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(streams_max);
    if let Err(error) = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(%error, remote = ?peer.ok(), "client connection ended");
    }
}

/// The threads that serve clients.
pub struct ClientThreads {
    connections: Vec<mpsc::Sender<std::net::TcpStream>>,
}

impl ClientThreads {
    /// Starts `count` threads that serve `node`.
    ///
    /// # Errors
    /// When the operating system gives no more threads.
    pub fn start(node: &Arc<Node>, count: usize) -> std::io::Result<Self> {
        let mut connections = Vec::with_capacity(count);
        for number in 0..count.max(1) {
            let (sender, mut receiver) =
                mpsc::channel::<std::net::TcpStream>(PENDING_CONNECTIONS_MAX);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let node = Arc::clone(node);
            thread::Builder::new()
                .name(format!("client-{number}"))
                .spawn(move || {
                    let grpc = GrpcServices::new(&node);
                    let http = HttpService::new(Arc::clone(&node));
                    let streams_max = node.config.max_concurrent_streams;
                    runtime.block_on(async move {
                        while let Some(stream) = receiver.recv().await {
                            match TcpStream::from_std(stream) {
                                Ok(stream) => {
                                    tokio::spawn(serve_connection(
                                        stream,
                                        grpc.clone(),
                                        http.clone(),
                                        streams_max,
                                    ));
                                }
                                Err(error) => {
                                    tracing::warn!(%error, "failed to register a connection");
                                }
                            }
                        }
                    });
                })?;
            connections.push(sender);
        }
        Ok(Self { connections })
    }

    /// Accepts connections of `listener` for ever and deals them out in turn.
    pub async fn accept(&self, listener: tokio::net::TcpListener) {
        for target in self.connections.iter().cycle() {
            let stream = loop {
                match listener.accept().await {
                    Ok((stream, _)) => break stream,
                    // Out of file descriptors or a connection that was reset before we took it:
                    // neither ends the listener.
                    Err(error) => {
                        tracing::warn!(%error, "failed to accept a client connection");
                        tokio::time::sleep(sockets::ACCEPT_RETRY_INTERVAL).await;
                    }
                }
            };
            let prepared = stream.set_nodelay(true).and_then(|()| stream.into_std());
            match prepared {
                Ok(stream) => {
                    if target.send(stream).await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "failed to prepare a client connection"),
            }
        }
    }
}
