//! Connections from clients: accepts them, spreads them over the client threads, tells gRPC from
//! plain HTTP.
//!
//! Each client thread runs a runtime of its own. A wake-up between threads costs more than a small
//! request, and a request that stays on one thread needs none on its way in.

pub mod peer_certificate;
pub mod sockets;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use metastore_consensus::completion::Mailbox;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::http::{HttpRoutes, HttpService};
use crate::node::Node;
use crate::rpc::services::GrpcServices;
use crate::rpc::unary::ResponseBody;

/// Flow-control window of one stream. The default of 64 KiB stops a 1.5 MiB put many times.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Flow-control window of a connection: one slow stream must not stop the others.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Connections that may wait for their client thread.
const PENDING_CONNECTIONS_MAX: usize = 1024;

/// What a client connection talks to.
struct Services {
    grpc: GrpcServices,
    http: HttpService,
}

impl Services {
    async fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
        remote: Option<SocketAddr>,
    ) -> Response<ResponseBody> {
        if !is_grpc(&request) {
            return Box::pin(self.http.call(request, HttpRoutes::Client, false)).await;
        }
        self.grpc.call(request, remote).await
    }
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

async fn serve_connection(stream: TcpStream, services: Arc<Services>, streams_max: u32) {
    let remote = stream.peer_addr().ok();
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = Arc::clone(&services).call(request, remote);
        // On the heap at once: HTTP/2 moves the future several times before it runs.
        Box::pin(async move { Ok::<_, Infallible>(answer.await) })
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
        tracing::debug!(%error, ?remote, "client connection ended");
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
        let grpc = GrpcServices::new(node);
        let services = Arc::new(Services {
            http: HttpService::for_clients(Arc::clone(node), &grpc),
            grpc,
        });
        let streams_max = node.config.max_concurrent_streams;
        let mut connections = Vec::with_capacity(count);
        for number in 0..count.max(1) {
            let (sender, mut receiver) =
                mpsc::channel::<std::net::TcpStream>(PENDING_CONNECTIONS_MAX);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let services = Arc::clone(&services);
            thread::Builder::new()
                .name(format!("client-{number}"))
                .spawn(move || {
                    runtime.block_on(async move {
                        Mailbox::open();
                        while let Some(stream) = receiver.recv().await {
                            tokio::spawn(serve(stream, Arc::clone(&services), streams_max));
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
            let stream = match stream.set_nodelay(true).and_then(|()| stream.into_std()) {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "failed to prepare a client connection");
                    continue;
                }
            };
            if target.send(stream).await.is_err() {
                return;
            }
        }
    }
}

async fn serve(stream: std::net::TcpStream, services: Arc<Services>, streams_max: u32) {
    match TcpStream::from_std(stream) {
        Ok(stream) => serve_connection(stream, services, streams_max).await,
        Err(error) => tracing::warn!(%error, "failed to register a connection"),
    }
}
