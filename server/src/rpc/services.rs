//! All gRPC services of a member behind one call, whoever makes it: a connection, the JSON gateway,
//! or a service that is built on another one.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::Body as HttpBody;
use metastore_proto::etcdserverpb::auth_server::AuthServer;
use metastore_proto::etcdserverpb::cluster_server::ClusterServer;
use metastore_proto::etcdserverpb::lease_server::LeaseServer;
use metastore_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use metastore_proto::v3electionpb::election_server::ElectionServer;
use metastore_proto::v3lockpb::lock_server::LockServer;
use tonic::body::Body;
use tower::Service;

use super::auth::AuthService;
use super::cluster::ClusterService;
use super::election::ElectionService;
use super::key_value::{self, KeyValueService};
use super::lease::LeaseService;
use super::lock::LockService;
use super::maintenance::MaintenanceService;
use super::unary::{self, CallOptions, ResponseBody};
use super::watch::WatchService;
use crate::client_limits::ClientAddress;
use crate::node::Node;
use crate::observe::metrics::grpc::{self, CallType};
use crate::slow_requests::{self, RequestStats};

const KEY_VALUE_PATH: &str = "/etcdserverpb.KV/";
const WATCH_PATH: &str = "/etcdserverpb.Watch/";

/// Any error, as the libraries below us want it.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a request's body must be: the body of a connection, or one made in this process.
pub trait RequestBody:
    HttpBody<Data = Bytes, Error: Display + Into<BoxError> + Send> + Send + Unpin + 'static
{
}

impl<B> RequestBody for B where
    B: HttpBody<Data = Bytes, Error: Display + Into<BoxError> + Send> + Send + Unpin + 'static
{
}

/// The services that stand on the node itself.
#[derive(Clone)]
pub struct BaseServices {
    key_value: KeyValueService,
    watch: WatchService,
    lease: LeaseServer<LeaseService>,
    cluster: ClusterServer<ClusterService>,
    auth: AuthServer<AuthService>,
    maintenance: MaintenanceServer<MaintenanceService>,
    health: super::health::HealthServer,
    /// Without who called.
    options: CallOptions,
}

macro_rules! limited {
    ($server:ident, $service:expr, $receive_max:expr) => {
        $server::new($service)
            .max_decoding_message_size($receive_max)
            .max_encoding_message_size(usize::MAX)
    };
}

impl BaseServices {
    fn new(node: &Arc<Node>) -> Self {
        let receive_max = node.receive_bytes_max();
        let node = || Arc::clone(node);
        Self {
            key_value: KeyValueService::new(node()),
            watch: WatchService::new(node()),
            lease: limited!(LeaseServer, LeaseService::new(node()), receive_max),
            cluster: limited!(ClusterServer, ClusterService::new(node()), receive_max),
            auth: limited!(AuthServer, AuthService::new(node()), receive_max),
            maintenance: limited!(
                MaintenanceServer,
                MaintenanceService::new(node()),
                receive_max
            ),
            health: super::health::server(node()),
            options: CallOptions {
                bytes_max: receive_max,
                warning_duration: node().config.warning_unary_request_duration,
                remote: None,
                limited: node().client_limits.is_some().then(node),
            },
        }
    }

    /// Answers a call that `remote` made; nothing: this process itself. The key-value and watch
    /// services come first: they are asked for thousands of times a second.
    pub fn call<B: RequestBody>(
        &self,
        request: Request<B>,
        remote: Option<SocketAddr>,
    ) -> BoxFuture<'static, Response<ResponseBody>> {
        let options = CallOptions {
            remote,
            ..self.options.clone()
        };
        if let Some(method) = request.uri().path().strip_prefix(KEY_VALUE_PATH) {
            let method = key_value::Method::parse(method);
            return self.key_value.call(request, method, options);
        }
        if let Some(method) = request.uri().path().strip_prefix(WATCH_PATH) {
            let known = method == "Watch";
            return std::future::ready(self.watch.call(request, known, &options)).boxed();
        }
        counted(self.clone(), request, options).boxed()
    }
}

/// Services that tonic serves.
trait TonicServices: Send + Sync + 'static {
    /// Answers a call.
    fn serve<B>(&self, request: Request<B>) -> impl Future<Output = Response<Body>> + Send
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<BoxError> + Send + 'static;
}

/// Answers a call of a service that is not asked for thousands of times a second, and counts it.
async fn counted<B: RequestBody>(
    services: impl TonicServices,
    request: Request<B>,
    options: CallOptions,
) -> Response<ResponseBody> {
    let path = request.uri().path().to_owned();
    let started = Instant::now();
    let answer = match grpc::find(&path) {
        Some(method) => {
            let share = match method.call_type() {
                CallType::Unary => None,
                _ => match options.stream_share(&request) {
                    Ok(share) => share,
                    Err(status) => return unary::failure(status),
                },
            };
            grpc::observe(method, request, |request| services.serve(request))
                .await
                .map(|body| ResponseBody::Counted(body.holding(share)))
        }
        None if grpc::has_service(service_name(&request)) => unary::unknown_method(&path),
        None => {
            let text = format!("unknown service {}", service_name(&request));
            unary::failure(tonic::Status::unimplemented(text))
        }
    };
    // Streams answer at once, so only unary calls can be late here.
    let took = started.elapsed();
    if took > options.warning_duration {
        slow_requests::warn_of_unary(&path, options.remote, took, &RequestStats::UNKNOWN);
    }
    answer
}

impl TonicServices for BaseServices {
    async fn serve<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<BoxError> + Send + 'static,
    {
        let answer = match service_name(&request) {
            "etcdserverpb.Lease" => self.lease.clone().call(request).await,
            "etcdserverpb.Auth" => self.auth.clone().call(request).await,
            "etcdserverpb.Cluster" => self.cluster.clone().call(request).await,
            "etcdserverpb.Maintenance" => self.maintenance.clone().call(request).await,
            "grpc.health.v1.Health" => self.health.clone().call(request).await,
            unknown => {
                let text = format!("unknown service {unknown}");
                return tonic::Status::unimplemented(text).into_http();
            }
        };
        match answer {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// All services of a member.
#[derive(Clone)]
pub struct GrpcServices {
    base: BaseServices,
    lock: LockServer<LockService>,
    election: ElectionServer<ElectionService>,
}

impl GrpcServices {
    /// The services of `node`.
    pub fn new(node: &Arc<Node>) -> Self {
        let receive_max = node.receive_bytes_max();
        let base = BaseServices::new(node);
        Self {
            lock: limited!(
                LockServer,
                LockService::new(Arc::clone(node), base.clone()),
                receive_max
            ),
            election: limited!(
                ElectionServer,
                ElectionService::new(Arc::clone(node), base.clone()),
                receive_max
            ),
            base,
        }
    }

    /// The largest message that is received.
    pub fn receive_bytes_max(&self) -> usize {
        self.base.options.bytes_max
    }

    /// Answers a call that `remote` made; nothing: this process itself.
    pub fn call<B: RequestBody>(
        &self,
        request: Request<B>,
        remote: Option<SocketAddr>,
    ) -> BoxFuture<'static, Response<ResponseBody>> {
        // One comparison for the calls that come thousands of times a second.
        if !request.uri().path().starts_with("/v3") {
            return self.base.call(request, remote);
        }
        let mut request = request;
        if let Some(remote) = remote {
            // The calls that these services make count for their client.
            request.extensions_mut().insert(ClientAddress(remote));
        }
        let options = CallOptions {
            remote,
            ..self.base.options.clone()
        };
        counted(self.clone(), request, options).boxed()
    }
}

impl TonicServices for GrpcServices {
    async fn serve<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<BoxError> + Send + 'static,
    {
        let answer = match service_name(&request) {
            "v3lockpb.Lock" => self.lock.clone().call(request).await,
            "v3electionpb.Election" => self.election.clone().call(request).await,
            _ => return self.base.serve(request).await,
        };
        match answer {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

fn service_name<B>(request: &Request<B>) -> &str {
    request
        .uri()
        .path()
        .strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .map_or("", |(service, _)| service)
}
