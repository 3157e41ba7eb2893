//! The plain HTTP API: keys as resources, values as bodies, revisions as entity tags.
//!
//! It is for programs that have an HTTP client and nothing else: `curl`, shell scripts, browsers.
//! Everything goes through our own gRPC services in the name of the caller, so permissions, limits and
//! semantics are those of the key-value API. What it looks like from outside stands in
//! `docs/reference/http-api.md` and in `docs/reference/openapi.json`, which this serves.
//!
//! * [`key`]: one key, with conditions and long polls.
//! * [`list`]: many keys, page by page.
//! * [`events`]: changes as server-sent events.
//! * [`lease`]: what keys live on.
//! * [`problem`]: what went wrong, as RFC 9457 writes it.

mod conditions;
mod events;
mod key;
mod lease;
mod list;
mod path;
mod problem;
mod query;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{Extensions, HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http::{header, request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use metastore_proto::KeyValue;
use metastore_proto::etcdserverpb::{RangeRequest, RangeResponse};

use self::problem::Problem;
use crate::node::Node;
use crate::rpc::in_process::Caller;
use crate::rpc::services::GrpcServices;
use crate::rpc::unary::ResponseBody;

const RANGE_PATH: &str = "/etcdserverpb.KV/Range";
const KEYS_PATH: &str = "/kv";
const KEY_PREFIX: &str = "/kv/";
const LEASES_PATH: &str = "/leases";
const LEASE_PREFIX: &str = "/leases/";
const DESCRIPTION_PATH: &str = "/openapi.json";
const DESCRIPTION: &str = include_str!("../../../../docs/reference/openapi.json");

/// The revision of the store that an answer shows or made.
const REVISION_HEADER: &str = "metastore-revision";
/// The request headers that a page of another origin may send.
const ALLOWED_HEADERS: &str = "accept, content-type, authorization, if-match, if-none-match, \
                               last-event-id, prefer";
/// The answer headers that a page of another origin may see.
const EXPOSED_HEADERS: &str = "etag, link, location, metastore-revision, metastore-create-revision, \
                               metastore-mod-revision, metastore-version, metastore-lease, \
                               metastore-lease-ttl";

/// What answering a request gives.
type Outcome = Result<Response<ResponseBody>, Problem>;

/// Whether a path belongs to the plain HTTP API.
pub fn owns(path: &str) -> bool {
    path == KEYS_PATH
        || path == LEASES_PATH
        || path == DESCRIPTION_PATH
        || path.starts_with(KEY_PREFIX)
        || path.starts_with(LEASE_PREFIX)
}

/// The bytes that a path stands for, if its escapes are some.
#[cfg(any(test, feature = "fuzzing"))]
pub fn decode_path(path: &str) -> Option<Bytes> {
    path::decode(path).ok()
}

/// Tells browsers which headers the API knows.
pub fn allow_headers(headers: &mut HeaderMap) {
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(ALLOWED_HEADERS),
    );
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(EXPOSED_HEADERS),
    );
}

/// The plain HTTP API of a member.
#[derive(Clone)]
pub struct RestApi {
    node: Arc<Node>,
    services: GrpcServices,
}

/// One request, and the means to answer it.
struct Exchange {
    node: Arc<Node>,
    caller: Caller<GrpcServices>,
    parts: request::Parts,
}

impl RestApi {
    /// The API in front of `services`.
    pub fn new(node: Arc<Node>, services: GrpcServices) -> Self {
        Self { node, services }
    }

    /// Answers a request whose path is [ours](owns).
    pub async fn call(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let exchange = Exchange {
            node: Arc::clone(&self.node),
            caller: Caller::new(
                self.services.clone(),
                credentials(&parts.headers),
                certificate(&parts.extensions),
            ),
            parts,
        };
        let head = exchange.parts.method == Method::HEAD;
        let mut response = match exchange.answer(body).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        };
        allow_headers(response.headers_mut());
        if head {
            *response.body_mut() = ResponseBody::Plain(Full::default());
        }
        response
    }
}

/// A token is sent on; `Bearer` and the bare token are both etcd's.
fn credentials(headers: &HeaderMap) -> HeaderMap {
    let mut credentials = HeaderMap::new();
    if let Some(token) = headers.get(header::AUTHORIZATION) {
        credentials.insert(header::AUTHORIZATION, token.clone());
    }
    credentials
}

/// What the connection knows about its client.
fn certificate(extensions: &Extensions) -> Extensions {
    extensions.clone()
}

impl Exchange {
    async fn answer(&self, body: Incoming) -> Outcome {
        let path = self.parts.uri.path();
        if path == DESCRIPTION_PATH {
            self.allow(&[Method::GET, Method::HEAD])?;
            return Ok(json(StatusCode::OK, DESCRIPTION.into()));
        }
        if let Some(key) = path.strip_prefix(KEY_PREFIX) {
            let key = path::decode(key)?;
            if key.is_empty() {
                return Err(Problem::bad_request(
                    "the key is empty: list keys with /kv?prefix=",
                ));
            }
            return self.key(key, body).await;
        }
        if path == KEYS_PATH {
            return self.keys().await;
        }
        self.leases(path).await
    }

    /// Refuses a method that the resource does not have.
    fn allow(&self, methods: &[Method]) -> Result<(), Problem> {
        if methods.contains(&self.parts.method) {
            return Ok(());
        }
        Err(Problem::method_not_allowed(methods))
    }

    fn wants_events(&self) -> bool {
        self.parts
            .headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|media| media.split(';').next())
            .any(|media| media.trim().eq_ignore_ascii_case("text/event-stream"))
    }

    async fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Problem> {
        Ok(self.caller.unary(RANGE_PATH, request).await?)
    }

    /// Reads a body that may be as large as a request.
    async fn read_body(&self, mut body: Incoming) -> Result<Bytes, Problem> {
        let limit = self.node.config.max_request_bytes;
        let announced = self
            .parts
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > limit) {
            super::gateway::discard(body).await;
            return Err(Problem::too_large(limit));
        }
        let mut received = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Problem::bad_request(&error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                received.extend_from_slice(&data);
            }
            if received.len() > limit {
                super::gateway::discard(body).await;
                return Err(Problem::too_large(limit));
            }
        }
        Ok(received.freeze())
    }
}

fn fields(pair: &metastore_proto::EncodedKeyValue) -> Result<KeyValue, Problem> {
    pair.decode()
        .map_err(|error| Problem::internal(&error.to_string()))
}

fn json(status: StatusCode, body: Bytes) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Plain(Full::new(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

fn empty(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Plain(Full::default()));
    *response.status_mut() = status;
    response
}

fn set_number(headers: &mut HeaderMap, name: &'static str, number: i64) {
    headers.insert(name, HeaderValue::from(number));
}

fn set_revision(headers: &mut HeaderMap, revision: i64) {
    set_number(headers, REVISION_HEADER, revision);
}
