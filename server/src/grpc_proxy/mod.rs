//! `grpc-proxy start`: a proxy in front of a cluster that speaks its API, as etcd has it.
//!
//! ```text
//! client ─► listen ─► Proxy ─┬─► key_value (namespace, cache) ─┐
//!                            ├─► watch (shared by clients) ────┼─► upstream ─► cluster
//!                            ├─► members ──────────────────────┤
//!                            └─► everything else, as it is ────┘
//! ```
//!
//! Knows the API and nothing of a member: it has no data, and what it keeps it can lose.

mod cache;
mod call_log;
mod cluster_keys;
mod http;
mod key_value;
mod leasing;
mod members;
mod metrics;
mod namespace;
mod options;
mod upstream;
mod watch;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Request, Response, header};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use metastore_proto::etcdserverpb::{
    LeaseTimeToLiveResponse, MemberListRequest, MemberListResponse,
};
use prost::Message;
use tokio::net::lookup_host;
use tonic::Status;
use tonic::body::Body;

use self::call_log::CallLog;
use self::cluster_keys::ClusterKeys;
use self::http::HttpProxy;
use self::key_value::KeyValueProxy;
use self::leasing::Leasing;
use self::members::{MemberOptions, Members};
use self::metrics::ProxyMetrics;
use self::namespace::Namespace;
use self::options::Options;
use self::upstream::{DialOptions, Told, Upstream, forwarded, trailers};
use self::watch::{RECEIVE_BYTES_MAX, WatchProxy};
use crate::config::{ListenUrl, TlsSettings};
use crate::discovery::clients::ClientRecords;
use crate::init_daemon;
use crate::listen::sockets::{ACCEPT_RETRY_INTERVAL, Address, BoundSocket, Socket};
use crate::listen::{
    ClientEndpoint, ConnectionOptions, ConnectionService, Serving, Traffic, is_grpc, refusal, serve,
};
use crate::observe::heap_profile;
use crate::observe::log::{self, LogOptions, Threshold};
use crate::observe::metrics::grpc::{self, CallType, Method, method};
use crate::rpc::compression;
use crate::rpc::in_process::framed;
use crate::rpc::services::RequestBody;
use crate::rpc::unary::{self, ResponseBody};
use crate::subcommand;
use crate::tls::{self, ClientTls, Endpoint, ServerTls};

/// The name of the sub-command.
pub const COMMAND: &str = "grpc-proxy";

/// grpc-proxy related command
#[derive(Parser)]
#[command(name = COMMAND, disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<ProxyCommand>,
}

#[derive(Subcommand)]
enum ProxyCommand {
    /// start the grpc proxy
    #[command(args_override_self = true)]
    Start(Box<Options>),
}

/// Runs the sub-command; the arguments begin with its name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let chosen = |line: CommandLine| line.command.map(|ProxyCommand::Start(options)| *options);
    subcommand::run(arguments, chosen, start)
}

fn start(options: Options) -> Result<(), String> {
    options.check()?;
    let mut log_options = LogOptions::default();
    if options.debug
        && let Some(threshold) = Threshold::parse("debug")
    {
        log_options.threshold = threshold;
    }
    log::init(&log_options).map_err(|error| error.to_string())?;
    if options.enable_pprof {
        heap_profile::start();
        tracing::info!(path = "/debug/pprof", "gRPC proxy enabled pprof");
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?
        .block_on(proxy(options))
}

async fn proxy(options: Options) -> Result<(), String> {
    let listen_tls = listen_tls(&options)?;
    let socket = bind(&options.listen_addr).await?;
    tracing::info!(
        address = options.listen_addr,
        "listening for gRPC proxy client requests"
    );
    let metrics_socket = match options.metrics_addr.as_str() {
        "" => None,
        url => Some(bind_metrics(url, listen_tls.as_ref())?),
    };
    let upstream = Arc::new(connect(&options).await?);
    let services = Proxy::new(&options, &upstream, listen_tls.as_ref())?;
    services.members.start();
    sync_endpoints(&upstream, options.endpoints_auto_sync_interval);
    let serving = Arc::new(Serving::new(
        services,
        &ConnectionOptions {
            max_concurrent_streams: options.max_concurrent_streams,
            ping_interval_min: options.grpc_keepalive_min_time,
            ping_interval: Some(options.grpc_keepalive_interval).filter(|time| !time.is_zero()),
            ping_timeout: Some(options.grpc_keepalive_timeout).filter(|time| !time.is_zero()),
        },
    ));
    if let Some((socket, endpoint)) = metrics_socket {
        let socket = socket.register().map_err(|error| error.to_string())?;
        tokio::spawn(accept(socket, Arc::new(endpoint), Arc::clone(&serving)));
    }
    let endpoint = endpoint(listen_tls.as_ref(), Traffic::Both)?;
    let socket = socket.register().map_err(|error| error.to_string())?;
    tracing::info!(address = options.listen_addr, "started gRPC proxy");
    init_daemon::notify_ready();
    accept(socket, Arc::new(endpoint), serving).await;
    Ok(())
}

/// TLS with clients, with its certificates made if they are to be.
fn listen_tls(options: &Options) -> Result<Option<TlsSettings>, String> {
    let Some(mut settings) = options.listen_tls() else {
        return Ok(None);
    };
    if settings.auto {
        let folder = Path::new(&options.data_dir).join("fixtures").join("proxy");
        let folder = std::path::absolute(folder).map_err(|error| error.to_string())?;
        let host = options
            .listen_addr
            .rsplit_once(':')
            .map_or("", |(host, _)| host)
            .trim_matches(['[', ']']);
        let hosts: Vec<_> = Some(host)
            .filter(|host| !host.is_empty())
            .map(str::to_owned)
            .into_iter()
            .collect();
        let years = options.self_signed_cert_validity;
        let generated = tls::generate(&folder, &hosts, years).map_err(|error| error.to_string())?;
        settings.use_generated(&generated.cert_file, &generated.key_file);
    }
    tracing::info!("tls-info" = %settings, "gRPC proxy server TLS");
    Ok(Some(settings))
}

fn endpoint(tls: Option<&TlsSettings>, traffic: Traffic) -> Result<ClientEndpoint, String> {
    let tls = tls
        .map(|settings| ServerTls::open(settings, Endpoint::Client, traffic.protocols()))
        .transpose()
        .map_err(|error| format!("failed to create TLS listener: {error}"))?;
    Ok(ClientEndpoint {
        traffic,
        insecure: tls.is_none(),
        tls,
        identifies_clients: false,
    })
}

async fn bind(address: &str) -> Result<BoundSocket, String> {
    // Go listens everywhere when there is no host.
    let listened = match address.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => address.to_owned(),
    };
    let found = lookup_host(&listened).await;
    let found = found.map_err(|error| format!("listen tcp: address {address}: {error}"))?;
    let mut problem = format!("listen tcp: address {address}: no such host");
    for found in found {
        match BoundSocket::bind(&Address::Tcp(found), false) {
            Ok(socket) => return Ok(socket),
            Err(error) => problem = error.to_string(),
        }
    }
    Err(problem)
}

fn bind_metrics(
    url: &str,
    tls: Option<&TlsSettings>,
) -> Result<(BoundSocket, ClientEndpoint), String> {
    let parsed = ListenUrl::parse(url).map_err(|error| format!("cannot parse {url:?}: {error}"))?;
    let secure = parsed.scheme.is_secure();
    if secure && tls.is_none() {
        return Err(format!(
            "cannot listen on TLS for {url}: KeyFile and CertFile are not presented"
        ));
    }
    let address = Address::of(&parsed).map_err(|error| error.to_string())?;
    let socket = BoundSocket::bind(&address, false).map_err(|error| error.to_string())?;
    tracing::info!(address = url, "gRPC proxy listening for metrics");
    Ok((socket, endpoint(tls.filter(|_| secure), Traffic::Metrics)?))
}

async fn connect(options: &Options) -> Result<Upstream, String> {
    let found = ClientRecords {
        domain: &options.discovery_srv,
        name: &options.discovery_srv_name,
        accepts_insecure: options.insecure_discovery,
        ca_file: &options.cacert,
    }
    .find()
    .await?;
    let endpoints = match found.is_empty() {
        true => &options.endpoints,
        false => &found,
    };
    let limit = |bytes: i64, default: usize| match usize::try_from(bytes) {
        Ok(0) | Err(_) => default,
        Ok(bytes) => bytes,
    };
    let defaults = DialOptions::new(dial_tls(options)?);
    Upstream::new(
        endpoints,
        DialOptions {
            keepalive_time: options.dial_keepalive_time,
            keepalive_timeout: options.dial_keepalive_timeout,
            pings_while_idle: options.permit_without_stream,
            send_bytes_max: limit(options.max_send_bytes, defaults.send_bytes_max),
            receive_bytes_max: limit(options.max_recv_bytes, defaults.receive_bytes_max),
            ..defaults
        },
    )
}

fn dial_tls(options: &Options) -> Result<Option<ClientTls>, String> {
    let Some(settings) = options.dial_tls() else {
        return Ok(None);
    };
    // The cluster would take everybody for the user of that name.
    if let Some(cert_file) = &settings.cert_file {
        let name = tls::common_name(cert_file).map_err(|error| error.to_string())?;
        if !name.is_empty() {
            return Err(format!(
                "cert has non empty Common Name ({name}): {}",
                cert_file.display()
            ));
        }
    }
    let opened = if options.insecure_skip_tls_verify {
        tracing::warn!(
            "--insecure-skip-tls-verify was given, this grpc proxy process skips authentication of etcd \
             server TLS certificates. This option should be enabled only for testing purposes."
        );
        ClientTls::open_blind(&settings)
    } else {
        ClientTls::open(&settings)
    };
    tracing::info!("tls-info" = %settings, "gRPC proxy client TLS");
    opened.map(Some).map_err(|error| error.to_string())
}

/// Takes the members of the cluster for its endpoints from time to time.
fn sync_endpoints(upstream: &Arc<Upstream>, interval: Duration) {
    if interval.is_zero() {
        return;
    }
    let upstream = Arc::clone(upstream);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(interval).await;
            let path = method::MEMBER_LIST.path();
            let request = MemberListRequest { linearizable: true };
            let listed: Result<MemberListResponse, _> = upstream.ask(path, &request).await;
            match listed {
                Ok(listed) => {
                    // A member without a name has not started; a learner serves little.
                    let urls: Vec<String> = listed
                        .members
                        .into_iter()
                        .filter(|member| !member.name.is_empty() && !member.is_learner)
                        .flat_map(|member| member.client_ur_ls)
                        .collect();
                    if !urls.is_empty()
                        && let Err(error) = upstream.replace_endpoints(&urls)
                    {
                        tracing::warn!(error, "auto sync endpoints failed");
                    }
                }
                Err(error) => {
                    tracing::warn!(error = error.message(), "auto sync endpoints failed");
                }
            }
        }
    });
}

/// Accepts connections for ever.
async fn accept(socket: Socket, endpoint: Arc<ClientEndpoint>, serving: Arc<Serving<Proxy>>) {
    loop {
        match socket.accept().await.and_then(|stream| stream.detach()) {
            Ok(stream) => {
                tokio::spawn(serve(stream, Arc::clone(&endpoint), Arc::clone(&serving)));
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a client connection");
                tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
            }
        }
    }
}

/// Answers clients.
struct Proxy {
    upstream: Arc<Upstream>,
    namespace: Namespace,
    key_value: KeyValueProxy,
    watches: WatchProxy,
    members: Arc<Members>,
    http: HttpProxy,
    /// `--experimental-enable-grpc-logging`.
    logs_calls: bool,
}

impl Proxy {
    fn new(
        options: &Options,
        upstream: &Arc<Upstream>,
        listen_tls: Option<&TlsSettings>,
    ) -> Result<Self, String> {
        let namespace = Namespace::new(&options.namespace);
        let metrics = ProxyMetrics::new();
        let watches = WatchProxy::new(
            Arc::clone(upstream),
            namespace.clone(),
            metrics.events_coalescing.clone(),
        );
        let advertised = options.advertise_client_url.as_str();
        let itself = match advertised {
            "" => None,
            url => {
                let tls = listen_tls.map(ClientTls::open).transpose();
                let dial = DialOptions::new(tls.map_err(|error| error.to_string())?);
                tracing::info!("grpcProxyAdvertiseClientURL" = url, "create proxy client");
                Some(Upstream::new(&[url.to_owned()], dial)?)
            }
        };
        let keys = Arc::new(ClusterKeys::new(
            Arc::clone(upstream),
            namespace.clone(),
            options.experimental_serializable_ordering,
        ));
        let leasing = match options.experimental_leasing_prefix.as_str() {
            "" => None,
            prefix => Some(Leasing::start(Arc::clone(&keys), prefix)),
        };
        Ok(Self {
            key_value: KeyValueProxy::new(keys, leasing, metrics.clone()),
            members: Members::new(
                Arc::clone(upstream),
                namespace.clone(),
                MemberOptions {
                    advertise_url: advertised.to_owned(),
                    prefix: options.resolver_prefix.clone(),
                    ttl_seconds: options.resolver_ttl,
                },
            ),
            http: HttpProxy {
                upstream: Arc::clone(upstream),
                itself,
                metrics,
                watches: watches.clone(),
                enable_pprof: options.enable_pprof,
            },
            watches,
            namespace,
            logs_calls: options.experimental_enable_grpc_logging,
            upstream: Arc::clone(upstream),
        })
    }

    /// Answers a call whose messages are not compressed.
    async fn call_grpc(
        self: Arc<Self>,
        request: Request<Body>,
        remote: Option<SocketAddr>,
    ) -> Response<ResponseBody> {
        let path = request.uri().path().to_owned();
        let Some(method) = grpc::find(&path) else {
            let service = path.trim_start_matches('/').split('/').next();
            let service = service.unwrap_or_default();
            return match grpc::has_service(service) {
                true => unary::unknown_method(&path),
                false => {
                    unary::failure(Status::unimplemented(format!("unknown service {service}")))
                }
            };
        };
        let log = self.logs_calls.then(|| CallLog::new(&path, remote));
        let request = request.map(|body| match &log {
            Some(log) => log.request(body),
            None => body,
        });
        let (this, log) = (&*self, &log);
        grpc::observe(method, request, |request| async move {
            let response = this.answer(method, request).await;
            match log {
                Some(log) => log.response(response),
                None => response,
            }
        })
        .await
        .map(ResponseBody::Counted)
    }

    async fn answer(
        &self,
        method: &'static Method,
        request: Request<impl RequestBody>,
    ) -> Response<Body> {
        let headers = forwarded(request.headers());
        let body = request.into_body();
        let answered = match method.call_type() {
            CallType::Unary => self
                .unary(method.path(), &headers, body)
                .await
                .map(one_answer),
            CallType::ServerStream if method.path() == method::RANGE_STREAM.path() => {
                match unary::read_message(body, RECEIVE_BYTES_MAX).await {
                    Ok(message) => self.key_value.range_stream(&headers, message).await,
                    Err(status) => Err(status),
                }
            }
            CallType::BidiStream if method.path() == method::WATCH.path() => {
                Ok(self.watches.serve(headers, body))
            }
            CallType::ServerStream | CallType::BidiStream => {
                let streamed = self
                    .upstream
                    .stream(method.path(), &headers, Body::new(body))
                    .await;
                streamed.map(|response| response.map(|body| Body::new(Told(body))))
            }
        };
        answered.unwrap_or_else(Status::into_http)
    }

    async fn unary(
        &self,
        path: &str,
        headers: &HeaderMap,
        body: impl RequestBody,
    ) -> Result<Bytes, Status> {
        let message = unary::read_message(body, RECEIVE_BYTES_MAX).await?;
        let key_value = &self.key_value;
        if path == method::RANGE.path() {
            return key_value.range(headers, message).await;
        }
        if path == method::PUT.path() {
            return key_value.put(headers, message).await;
        }
        if path == method::DELETE_RANGE.path() {
            return key_value.delete_range(headers, message).await;
        }
        if path == method::TXN.path() {
            return key_value.txn(headers, message).await;
        }
        if path == method::COMPACT.path() {
            return key_value.compact(headers, message).await;
        }
        if path == method::MEMBER_LIST.path() {
            return self.members.list(headers, message).await;
        }
        let answer = self.upstream.unary(path, headers, message).await?;
        if path == method::LEASE_TIME_TO_LIVE.path() && !self.namespace.is_empty() {
            return self.own_keys(answer);
        }
        Ok(answer)
    }

    /// Only the keys of the namespace, as clients know them.
    fn own_keys(&self, answer: Bytes) -> Result<Bytes, Status> {
        let mut answer = LeaseTimeToLiveResponse::decode(answer)
            .map_err(|error| Status::internal(error.to_string()))?;
        answer.keys = answer
            .keys
            .iter()
            .filter_map(|key| self.namespace.strip(key).map(|own| key.slice_ref(own)))
            .collect();
        Ok(answer.encode_to_vec().into())
    }
}

fn one_answer(message: Bytes) -> Response<Body> {
    let frames = [
        Ok(Frame::data(framed(&message))),
        trailers(&Status::ok("")).map(Frame::trailers),
    ];
    let body = StreamBody::new(futures::stream::iter(frames));
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}

impl ConnectionService for Proxy {
    fn call(
        self: &Arc<Self>,
        request: Request<Incoming>,
        remote: Option<SocketAddr>,
        traffic: Traffic,
    ) -> BoxFuture<'static, Response<ResponseBody>> {
        let proxy = Arc::clone(self);
        if traffic != Traffic::Both || !is_grpc(&request) {
            let is_main = traffic == Traffic::Both;
            return async move { proxy.http.call(&request, is_main).await }
                .map(|answer| answer.map(ResponseBody::Plain))
                .boxed();
        }
        if let Some(refusal) = refusal(&request) {
            return std::future::ready(refusal).boxed();
        }
        if compression::is_announced(&request) {
            let answer = move |request| proxy.call_grpc(request, remote);
            return compression::call(request, RECEIVE_BYTES_MAX, answer).boxed();
        }
        proxy.call_grpc(request.map(Body::new), remote).boxed()
    }
}
