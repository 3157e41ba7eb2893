//! Plain HTTP on the client and peer ports: `/version`, `/health`, and `/members` among peers.

mod debug;
mod metrics;

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};

use crate::error::RequestError;
use crate::node::Node;
use crate::version;

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

/// Answers plain HTTP for a member.
#[derive(Clone)]
pub struct HttpService {
    node: Arc<Node>,
}

type Answer = Response<Full<Bytes>>;

fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}

fn not_found() -> Answer {
    text(
        StatusCode::NOT_FOUND,
        "text/plain; charset=utf-8",
        "404 page not found\n",
    )
}

fn method_not_allowed() -> Answer {
    let mut response = text(
        StatusCode::METHOD_NOT_ALLOWED,
        "text/plain; charset=utf-8",
        "Method Not Allowed\n",
    );
    response
        .headers_mut()
        .insert(header::ALLOW, header::HeaderValue::from_static("GET"));
    response
}

fn query_flag(request: &Request<Incoming>, name: &str, wanted: &str) -> bool {
    request.uri().query().is_some_and(|query| {
        url::form_urlencoded::parse(query.as_bytes())
            .any(|(key, value)| key == name && value == wanted)
    })
}

impl HttpService {
    /// The service of `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Answers a request on the client port.
    pub async fn call(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/version" | "/health" if request.method() != Method::GET => method_not_allowed(),
            "/version" => self.version(),
            "/health" => self.health(&request).await,
            "/metrics" => metrics::answer(Arc::clone(&self.node)).await,
            path if path.starts_with("/debug/") => debug::answer(&self.node, &request).await,
            _ => not_found(),
        }
    }

    /// Answers a request on a port of `--listen-metrics-urls`: health and metrics, nothing else.
    pub async fn call_metrics(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let first = path.split('/').nth(1).unwrap_or_default();
        if matches!(first, "health" | "livez" | "readyz" | "metrics") {
            return self.call(request).await;
        }
        not_found()
    }

    /// Answers a request on the peer port.
    pub fn call_peer(&self, request: &Request<Incoming>) -> Answer {
        let mut answer = match request.uri().path() {
            "/version" => self.version(),
            "/members" if request.method() == Method::GET => self.members(),
            "/members" => method_not_allowed(),
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
            Ok(body) => text(StatusCode::OK, "application/json", body + "\n"),
            Err(error) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "text/plain; charset=utf-8",
                error.to_string(),
            ),
        }
    }

    async fn health(&self, request: &Request<Incoming>) -> Answer {
        let serializable = query_flag(request, "serializable", "true");
        let alarm = self
            .node
            .application
            .alarms
            .list(0)
            .into_iter()
            .find(|alarm| {
                let name = alarm.alarm().as_str_name();
                !query_flag(request, "exclude", name)
            });
        let reason = if let Some(alarm) = alarm {
            tracing::warn!(
                alarm = crate::alarms::text(&alarm),
                "serving /health false due to an alarm"
            );
            Some(format!("ALARM {}", alarm.alarm().as_str_name()))
        } else if !serializable && self.node.leader().is_none() {
            Some("RAFT NO LEADER".to_owned())
        } else if serializable {
            None
        } else {
            let read: Result<(), RequestError> = self.node.linearize().await;
            read.err().map(|error| format!("RANGE ERROR:{error}"))
        };
        let (status, health, reason) = match reason {
            None => (StatusCode::OK, "true", String::new()),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, "false", reason),
        };
        let body = serde_json::json!({ "health": health, "reason": reason }).to_string();
        text(status, "application/json", body)
    }
}
