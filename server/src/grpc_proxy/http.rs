//! Plain HTTP of the proxy: `/metrics`, `/health`, `/proxy/metrics`, `/proxy/health` and `/debug/pprof/`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{RangeRequest, RangeResponse, WatchCreateRequest};
use tonic::Status;

use super::metrics::ProxyMetrics;
use super::upstream::Upstream;
use super::watch::WatchProxy;
use crate::http::answer::{self, Answer, PLAIN_TEXT, method_not_allowed, not_found, text};
use crate::http::{debug, mux};
use crate::observe::metrics::CONTENT_TYPE;
use crate::observe::metrics::grpc::method;

/// How long the read of a health check may take; etcd's limit.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the watch of a health check may take; etcd's limit.
const WATCH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a member may take to show its metrics.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers plain HTTP.
pub struct HttpProxy {
    /// The cluster.
    pub upstream: Arc<Upstream>,
    /// This proxy as clients reach it; nothing: it does not say where that is.
    pub itself: Option<Upstream>,
    /// What is counted.
    pub metrics: ProxyMetrics,
    /// Knows how many watches are shared.
    pub watches: WatchProxy,
    /// `--enable-pprof`.
    pub enable_pprof: bool,
}

impl HttpProxy {
    /// Answers a request; `is_main`: on the port for clients.
    pub async fn call<B>(&self, request: &Request<B>, is_main: bool) -> Answer {
        if let Some(answer) = mux::answered_by_server(request) {
            return answer;
        }
        let path = request.uri().path();
        if is_main
            && self.enable_pprof
            && let Some(profile) = path.strip_prefix(debug::PROFILES_PATH)
        {
            return debug::profiles(profile, request.uri().query().unwrap_or_default()).await;
        }
        match path {
            "/metrics" => self.metrics_of_cluster().await,
            "/health" | "/proxy/health" if request.method() != Method::GET => {
                method_not_allowed("GET")
            }
            "/health" => health(check(&self.upstream).await),
            "/proxy/health" => health(self.check_itself().await),
            "/proxy/metrics" => {
                let coalesced = i64::try_from(self.watches.coalesced()).unwrap_or(i64::MAX);
                self.metrics.watchers_coalescing.set(coalesced);
                text(StatusCode::OK, CONTENT_TYPE, self.metrics.render())
            }
            _ => not_found(),
        }
    }

    async fn metrics_of_cluster(&self) -> Answer {
        match tokio::time::timeout(SCRAPE_TIMEOUT, self.scrape()).await {
            Ok(Ok(body)) => text(StatusCode::OK, "text/plain; version=0.0.4", body),
            Ok(Err(_)) | Err(_) => {
                answer::error(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error")
            }
        }
    }

    async fn scrape(&self) -> io::Result<Bytes> {
        let (stream, authority) = self.upstream.connect_http().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // It ends when the answer is read.
        tokio::spawn(connection);
        let request = Request::get("/metrics")
            .header(header::HOST, authority)
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let response = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(io::Error::other)?;
        Ok(body.to_bytes())
    }

    /// Whether a client of this proxy can read and watch.
    async fn check_itself(&self) -> Result<(), String> {
        let Some(itself) = &self.itself else {
            return Err("no connection to proxy".to_owned());
        };
        check(itself).await?;
        match tokio::time::timeout(WATCH_TIMEOUT, watch(itself)).await {
            // Any word is one: a watch that is refused works.
            Ok(()) => Ok(()),
            Err(_) => Err("WATCH TIMEOUT".to_owned()),
        }
    }
}

async fn check(upstream: &Upstream) -> Result<(), String> {
    let request = RangeRequest {
        key: "a".into(),
        ..Default::default()
    };
    let read = upstream.ask::<_, RangeResponse>(method::RANGE.path(), &request);
    let status = match tokio::time::timeout(READ_TIMEOUT, read).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(status)) => status,
        Err(_) => Status::deadline_exceeded("context deadline exceeded"),
    };
    match status.message() == EtcdError::PermissionDenied.text() {
        true => Ok(()),
        false => Err(format!("GET ERROR:{}", status.message())),
    }
}

async fn watch(upstream: &Upstream) {
    let create = WatchCreateRequest {
        key: "a".into(),
        ..Default::default()
    };
    if let Ok(mut watch) = upstream.watch(&HeaderMap::new(), create).await {
        let _ = watch.next().await;
    }
}

fn health(checked: Result<(), String>) -> Answer {
    match checked {
        Ok(()) => text(
            StatusCode::OK,
            PLAIN_TEXT,
            r#"{"health":"true","reason":""}"#,
        ),
        Err(reason) => {
            let reason = serde_json::Value::String(reason);
            let body = format!(r#"{{"health":"false","reason":{reason}}}"#);
            tracing::warn!(output = body, "/health error");
            answer::error(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}
