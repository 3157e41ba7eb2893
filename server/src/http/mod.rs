//! Plain HTTP on the client, metrics and peer ports.
//!
//! * [`access`]: which hosts and origins may ask.
//! * [`gateway`]: etcd's API as JSON under `/v3/`.
//! * [`health`]: `/health`, `/livez`, `/readyz`.
//! * [`mux`]: what paths are before somebody answers them.
//! * [`rest`]: the plain HTTP API under `/kv/` and `/leases/`.
//!
//! `/version` and, among peers, `/members` are here.

mod access;
pub(crate) mod answer;
pub(crate) mod gateway;
mod health;
pub(crate) mod mux;
mod rest;

pub(crate) mod debug;
mod metrics;

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};

use self::access::AccessRules;
use self::answer::{Answer, method_not_allowed, not_found, text};
use self::gateway::{Gateway, discard_announced};
use self::rest::RestApi;
use crate::listen::peer_certificate::PeerCertificate;
use crate::node::Node;
use crate::rpc::services::GrpcServices;
use crate::rpc::unary::ResponseBody;
use crate::version;

/// Etcd's words to a client of the gateway whose certificate names a user.
const CERTIFICATE_IGNORED: &str = "CommonName of client sending a request against gateway will be \
    ignored and not used as expected";
/// Where a port of clients or members tells the versions.
pub const VERSION_PATH: &str = "/version";
/// Where a peer port tells whether the cluster is being downgraded.
pub const DOWNGRADE_ENABLED_PATH: &str = "/downgrade/enabled";
/// Header that names the cluster on peer answers.
pub const CLUSTER_ID_HEADER: &str = "x-etcd-cluster-id";
/// Header that names the version on peer answers.
pub const SERVER_VERSION_HEADER: &str = "x-server-version";

/// One member as `/members` of the peer port shows it; etcd's own form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpMember {
    /// Member id.
    pub id: u64,
    /// Peer URLs.
    #[serde(rename = "peerURLs", default)]
    pub peer_urls: Vec<String>,
    /// Whether it is a learner.
    #[serde(
        rename = "isLearner",
        default,
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub is_learner: bool,
    /// Name; empty before the member has started.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Client URLs; empty before the member has started.
    #[serde(rename = "clientURLs", default, skip_serializing_if = "Vec::is_empty")]
    pub client_urls: Vec<String>,
}

/// Which paths a port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpRoutes {
    /// A client port: everything.
    Client,
    /// A port of `--listen-metrics-urls`: health and metrics.
    Metrics,
}

/// Answers plain HTTP for a member.
#[derive(Clone)]
pub struct HttpService {
    node: Arc<Node>,
    access: Arc<AccessRules>,
    gateway: Option<Gateway>,
    rest: Option<RestApi>,
}

impl HttpService {
    /// The service of `node` on its peer and metrics ports.
    pub fn new(node: Arc<Node>) -> Self {
        Self {
            access: Arc::new(AccessRules::new(&node.config)),
            node,
            gateway: None,
            rest: None,
        }
    }

    /// The service of `node` on its client ports, in front of `services`.
    pub fn for_clients(node: Arc<Node>, services: &GrpcServices) -> Self {
        let config = &node.config;
        Self {
            gateway: config
                .enable_grpc_gateway
                .then(|| Gateway::new(Arc::clone(&node), services.clone())),
            rest: config
                .enable_http_api
                .then(|| RestApi::new(Arc::clone(&node), services.clone())),
            ..Self::new(Arc::clone(&node))
        }
    }

    /// Answers a request on a client or metrics port; `secure`: it came over TLS.
    pub async fn call(
        &self,
        request: Request<Incoming>,
        routes: HttpRoutes,
        secure: bool,
    ) -> Response<ResponseBody> {
        // With HTTP/1.1 hyper writes it.
        let needs_date = request.version() == Version::HTTP_2;
        let mut response = self.answer(request, routes, secure).await;
        if needs_date {
            let date = httpdate::fmt_http_date(SystemTime::now());
            let date = date.try_into().expect("a date is a header's value");
            response.headers_mut().insert(header::DATE, date);
        }
        response
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        routes: HttpRoutes,
        secure: bool,
    ) -> Response<ResponseBody> {
        let is_ours = self.rest.is_some() && rest::owns(request.uri().path());
        if !is_ours && let Some(answer) = mux::malformed(&request) {
            return answer.map(ResponseBody::Plain);
        }
        if let Some(answer) = mux::answered_by_server(&request) {
            return answer.map(ResponseBody::Plain);
        }
        if routes == HttpRoutes::Metrics {
            let answer = match mux::admit(&mut request, &[]) {
                Some(answer) => answer,
                None => self.metrics_port(&request).await,
            };
            return answer.map(ResponseBody::Plain);
        }
        access::rename_beta_path(&mut request);
        if let Some(refusal) = self.access.refusal(&request, secure) {
            discard_announced(request.into_body()).await;
            return refusal.map(ResponseBody::Plain);
        }
        if self.would_ignore_certificate(&request) {
            discard_announced(request.into_body()).await;
            return answer::error(StatusCode::BAD_REQUEST, CERTIFICATE_IGNORED)
                .map(ResponseBody::Plain);
        }
        let origin = request.headers().get(header::ORIGIN).cloned();
        let mut response = if request.method() == Method::OPTIONS {
            let mut preflight = Response::new(ResponseBody::Plain(Full::default()));
            if self.rest.is_some() && rest::owns(request.uri().path()) {
                rest::allow_headers(preflight.headers_mut());
            }
            preflight
        } else if let Some(answer) = self.admit(&mut request) {
            answer.map(ResponseBody::Plain)
        } else {
            self.client_port(request).await
        };
        self.access.allow_origin(origin, response.headers_mut());
        response
    }

    /// What Go's mux does before it looks for a handler. The plain HTTP API has no counterpart there.
    fn admit(&self, request: &mut Request<Incoming>) -> Option<Answer> {
        if self.rest.is_some() && rest::owns(request.uri().path()) {
            return None;
        }
        let pprof = self.node.config.enable_pprof.then_some("/debug/pprof/");
        let gateway = self.gateway.is_some().then_some(gateway::PREFIX);
        let trees: Vec<&str> = gateway.into_iter().chain(pprof).collect();
        mux::admit(request, &trees)
    }

    /// Whether a request to the gateway comes with a certificate that names a user. The gateway calls
    /// without it, so the client would not be whom it believes to be.
    fn would_ignore_certificate(&self, request: &Request<Incoming>) -> bool {
        request.uri().path().starts_with(gateway::PREFIX)
            && self.gateway.is_some()
            && self.node.auth().is_enabled()
            && request
                .extensions()
                .get::<PeerCertificate>()
                .and_then(|certificate| certificate.common_name.as_deref())
                .is_some_and(|name| !name.is_empty())
    }

    async fn client_port(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let path = request.uri().path();
        if path.starts_with(gateway::PREFIX)
            && let Some(gateway) = &self.gateway
        {
            return gateway.call_or_upgrade(request).await;
        }
        if rest::owns(path)
            && let Some(rest) = &self.rest
        {
            return rest.call(request).await;
        }
        let answer = match path {
            VERSION_PATH if request.method() != Method::GET => method_not_allowed("GET"),
            VERSION_PATH => self.version(),
            path if path.starts_with("/debug/") => debug::answer(&self.node, &request).await,
            _ => self.metrics_port(&request).await,
        };
        discard_announced(request.into_body()).await;
        answer.map(ResponseBody::Plain)
    }

    /// What metrics ports answer too.
    async fn metrics_port(&self, request: &Request<Incoming>) -> Answer {
        if request.uri().path() == "/metrics" {
            return metrics::answer(Arc::clone(&self.node)).await;
        }
        match health::answer(&self.node, request).await {
            Some(answer) => answer,
            None => not_found(),
        }
    }

    /// Answers a request on the peer port.
    pub fn call_peer(&self, request: &Request<Incoming>) -> Answer {
        if let Some(answer) = mux::answered_by_server(request) {
            return answer;
        }
        let mut answer = match request.uri().path() {
            VERSION_PATH | DOWNGRADE_ENABLED_PATH if request.method() != Method::GET => {
                method_not_allowed("GET")
            }
            VERSION_PATH => self.version(),
            DOWNGRADE_ENABLED_PATH => self.downgrade_enabled(),
            "/members" if request.method() == Method::GET => self.members(),
            "/members" => method_not_allowed("GET"),
            _ => not_found(),
        };
        let headers = answer.headers_mut();
        if let Ok(id) = format!("{:x}", self.node.cluster_id).parse() {
            headers.insert(CLUSTER_ID_HEADER, id);
        }
        headers.insert(
            SERVER_VERSION_HEADER,
            header::HeaderValue::from_static(version::ETCD_VERSION),
        );
        answer
    }

    fn version(&self) -> Answer {
        let directory = self.node.application.directory.current();
        let cluster = directory
            .cluster_version
            .as_deref()
            .unwrap_or("not_decided");
        let body = format!(
            r#"{{"etcdserver":"{}","etcdcluster":"{cluster}","storage":"{}"}}"#,
            version::ETCD_VERSION,
            directory
                .storage_version()
                .map_or_else(|| "unknown".to_owned(), |version| version.to_string())
        );
        text(StatusCode::OK, "application/json", body)
    }

    /// What this member knows. etcd asks for a quorum first, and a second member that joins waits until that
    /// question has timed out: there is no quorum without it.
    fn downgrade_enabled(&self) -> Answer {
        let directory = self.node.application.directory.current();
        let enabled = directory.downgrade_target.is_some().to_string();
        text(StatusCode::OK, "text/plain", enabled)
    }

    fn members(&self) -> Answer {
        let members: Vec<HttpMember> = self
            .node
            .application
            .directory
            .current()
            .members
            .values()
            .map(|member| HttpMember {
                id: member.id,
                peer_urls: member.peer_urls.clone(),
                is_learner: member.is_learner,
                name: member.name.clone(),
                client_urls: member.client_urls.clone(),
            })
            .collect();
        match serde_json::to_string(&members) {
            Ok(body) => text(StatusCode::OK, "application/json", Bytes::from(body + "\n")),
            Err(error) => answer::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }
}

/// What fuzzers call: it must hold for every input.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    pub use super::gateway::fuzz_json as gateway_json;
    pub use super::mux::assert_leads_somewhere as path;
}
