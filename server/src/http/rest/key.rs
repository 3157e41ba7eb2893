//! One key: GET, HEAD, PUT, DELETE.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use metastore_proto::KeyValue;
use metastore_proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, PutRequest, PutResponse, RangeRequest, RequestOp,
    TxnRequest, TxnResponse, request_op, response_op,
};
use tonic::Code;

use super::conditions::{Conditions, changed_at, entity_tag};
use super::problem::Problem;
use super::query::Query;
use super::{Exchange, Outcome, empty, fields, path, set_number, set_revision};
use crate::rpc::unary::ResponseBody;

const PUT_PATH: &str = "/etcdserverpb.KV/Put";
const TXN_PATH: &str = "/etcdserverpb.KV/Txn";
const DELETE_RANGE_PATH: &str = "/etcdserverpb.KV/DeleteRange";
const GRANT_PATH: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE_PATH: &str = "/etcdserverpb.Lease/LeaseRevoke";
/// Longest long poll: proxies give up on silent connections soon after.
const WAIT_SECONDS_MAX: i64 = 300;
const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// A key as a read found it.
struct Found {
    pair: Option<KeyValue>,
    store_revision: i64,
}

impl Found {
    /// The revision of the last change; 0 for a key that does not exist.
    fn revision(&self) -> i64 {
        self.pair.as_ref().map_or(0, |pair| pair.mod_revision)
    }
}

/// What a write asks for besides the value.
struct Life {
    lease: i64,
    /// The lease was made for this write alone, with this TTL.
    granted_ttl_seconds: Option<i64>,
}

impl Exchange {
    pub(super) async fn key(&self, key: Bytes, body: Incoming) -> Outcome {
        self.allow(&[Method::GET, Method::HEAD, Method::PUT, Method::DELETE])?;
        match self.parts.method {
            Method::PUT => self.put(key, body).await,
            Method::DELETE => self.delete(key).await,
            _ if self.wants_events() => {
                let query = Query::read(&self.parts.uri, &["since"])?;
                self.events(key, Bytes::new(), &query).await
            }
            _ => self.get(key).await,
        }
    }

    async fn get(&self, key: Bytes) -> Outcome {
        let query = Query::read(&self.parts.uri, &["revision", "serializable", "wait"])?;
        let conditions = Conditions::read(&self.parts.headers)?;
        let request = RangeRequest {
            key: key.clone(),
            revision: query.integer("revision", 0)?.unwrap_or(0),
            serializable: query.flag("serializable")?,
            ..Default::default()
        };
        let wait = self.wait(&query)?;
        let mut found = self.read(&request).await?;
        if let Some(seconds) = wait
            && conditions.is_known(found.revision())
        {
            self.wait_for_change(&key, found.store_revision, seconds)
                .await?;
            found = self.read(&request).await?;
        }
        if conditions.if_match_fails(found.revision()) {
            return Err(precondition_failed(found.revision()));
        }
        let mut response = if conditions.is_known(found.revision()) {
            empty(StatusCode::NOT_MODIFIED)
        } else {
            match &found.pair {
                Some(pair) => value(pair),
                None => {
                    return Err(
                        Problem::new(StatusCode::NOT_FOUND, "the key does not exist")
                            .with_header(header::ETAG, entity_tag(0))
                            .with_header(
                                HeaderName::from_static(super::REVISION_HEADER),
                                found.store_revision.into(),
                            ),
                    );
                }
            }
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, entity_tag(found.revision()));
        // A stored answer may be shown again only after asking whether it still holds.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        set_revision(headers, found.store_revision);
        if let Some(seconds) = wait
            && self.parts.headers.contains_key(PREFER)
            && let Ok(applied) = HeaderValue::from_str(&format!("wait={seconds}"))
        {
            headers.insert(PREFERENCE_APPLIED, applied);
        }
        Ok(response)
    }

    async fn read(&self, request: &RangeRequest) -> Result<Found, Problem> {
        let response = self.range(request).await?;
        Ok(Found {
            pair: response.kvs.first().map(fields).transpose()?,
            store_revision: response.header.map_or(0, |header| header.revision),
        })
    }

    /// Seconds that a long poll may take: the parameter, or `Prefer: wait=` (RFC 7240).
    fn wait(&self, query: &Query) -> Result<Option<i64>, Problem> {
        if let Some(seconds) = query.integer("wait", 0)? {
            return Ok(Some(seconds.min(WAIT_SECONDS_MAX)).filter(|seconds| *seconds > 0));
        }
        // A preference that is not understood is ignored: that is what makes it one.
        Ok(self
            .parts
            .headers
            .get_all(PREFER)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split([',', ';']))
            .filter_map(|preference| preference.trim().strip_prefix("wait="))
            .find_map(|seconds| seconds.trim_matches('"').parse::<i64>().ok())
            .map(|seconds| seconds.min(WAIT_SECONDS_MAX))
            .filter(|seconds| *seconds > 0))
    }

    /// Ends when the key changes after `revision`, or after the wait.
    async fn wait_for_change(
        &self,
        key: &Bytes,
        revision: i64,
        seconds: i64,
    ) -> Result<(), Problem> {
        let mut watch = self.watch(key.clone(), Bytes::new(), revision + 1).await;
        let limit = Duration::from_secs(seconds.unsigned_abs());
        let changed = async {
            while let Some(response) = watch.next_response().await? {
                if !response.events.is_empty() {
                    break;
                }
            }
            Ok(())
        };
        tokio::time::timeout(limit, changed).await.unwrap_or(Ok(()))
    }

    async fn put(&self, key: Bytes, body: Incoming) -> Outcome {
        let query = Query::read(&self.parts.uri, &["ttl", "lease"])?;
        let conditions = Conditions::read(&self.parts.headers)?;
        let value = self.read_body(body).await?;
        let life = self.life(&query).await?;
        let put = PutRequest {
            key: key.clone(),
            value,
            lease: life.lease,
            ..Default::default()
        };
        let written = if conditions.is_empty() {
            self.put_always(&put).await
        } else {
            self.put_if(&put, &conditions).await
        };
        let (created, revision) = match written {
            Ok(written) => written,
            Err(problem) => {
                self.take_back(&life).await;
                return Err(problem);
            }
        };
        let mut response = if created {
            let mut response = empty(StatusCode::CREATED);
            if let Ok(location) = format!("{}{}", super::KEY_PREFIX, path::encode(&key)).parse() {
                response.headers_mut().insert(header::LOCATION, location);
            }
            response
        } else {
            empty(StatusCode::NO_CONTENT)
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, entity_tag(revision));
        set_revision(headers, revision);
        set_life(headers, life.lease, life.granted_ttl_seconds);
        Ok(response)
    }

    /// The lease of a write: a given one, or a new one for a time to live.
    async fn life(&self, query: &Query) -> Result<Life, Problem> {
        let ttl = query.integer("ttl", 1)?;
        let lease = query.integer("lease", 1)?;
        if ttl.is_some() && lease.is_some() {
            return Err(Problem::bad_request(
                "ttl and lease exclude each other: a lease has its own time to live",
            ));
        }
        let Some(ttl) = ttl else {
            return Ok(Life {
                lease: lease.unwrap_or(0),
                granted_ttl_seconds: None,
            });
        };
        let request = LeaseGrantRequest { ttl, id: 0 };
        let granted: LeaseGrantResponse = self.caller.unary(GRANT_PATH, &request).await?;
        Ok(Life {
            lease: granted.id,
            granted_ttl_seconds: Some(granted.ttl),
        })
    }

    /// Ends a lease that was made for a write that did not happen.
    async fn take_back(&self, life: &Life) {
        if life.granted_ttl_seconds.is_some() {
            let request = LeaseRevokeRequest { id: life.lease };
            // If this fails too, the lease ends by itself.
            let _: Result<LeaseRevokeResponse, _> = self.caller.unary(REVOKE_PATH, &request).await;
        }
    }

    /// Writes; whether the key is new, and the revision.
    async fn put_always(&self, put: &PutRequest) -> Result<(bool, i64), Problem> {
        let asking = PutRequest {
            prev_kv: true,
            ..put.clone()
        };
        let written: Result<PutResponse, _> = self.caller.unary(PUT_PATH, &asking).await;
        let (new, written) = match written {
            Ok(written) => (written.prev_kv.is_none(), written),
            // Who may write but not read cannot be told whether the key was there.
            Err(status) if status.code() == Code::PermissionDenied => {
                (false, self.caller.unary(PUT_PATH, put).await?)
            }
            Err(status) => return Err(status.into()),
        };
        let revision = written.header.map_or(0, |header| header.revision);
        Ok((new, revision))
    }

    async fn put_if(
        &self,
        put: &PutRequest,
        conditions: &Conditions,
    ) -> Result<(bool, i64), Problem> {
        let write = operation(request_op::Request::RequestPut(put.clone()));
        let (written, seen) = self.change_if(&put.key, write, conditions).await?;
        Ok((seen == Some(0), revision_of(&written)))
    }

    /// Makes a change if the conditions hold; the answer, and the revision that the key is known to
    /// have had before.
    async fn change_if(
        &self,
        key: &Bytes,
        change: RequestOp,
        conditions: &Conditions,
    ) -> Result<(TxnResponse, Option<i64>), Problem> {
        let look = RangeRequest {
            key: key.clone(),
            keys_only: true,
            ..Default::default()
        };
        let mut seen = None;
        if conditions.needs_look() {
            let found = self.read(&look).await?.revision();
            if conditions.if_match_fails(found) {
                return Err(precondition_failed(found));
            }
            seen = Some(found);
        }
        let compare = conditions.compares(key, seen);
        let is_new = compare.contains(&changed_at(key, 0, true));
        let request = TxnRequest {
            compare,
            success: vec![change],
            failure: vec![operation(request_op::Request::RequestRange(look))],
        };
        let response: TxnResponse = self.caller.unary(TXN_PATH, &request).await?;
        if response.succeeded {
            return Ok((response, is_new.then_some(0)));
        }
        let current = match response.responses.first().map(|op| &op.response) {
            Some(Some(response_op::Response::ResponseRange(range))) => {
                range.kvs.first().map(fields).transpose()?
            }
            _ => None,
        };
        Err(precondition_failed(
            current.map_or(0, |pair| pair.mod_revision),
        ))
    }

    async fn delete(&self, key: Bytes) -> Outcome {
        Query::read(&self.parts.uri, &[])?;
        let conditions = Conditions::read(&self.parts.headers)?;
        let request = DeleteRangeRequest {
            key: key.clone(),
            ..Default::default()
        };
        let (deleted, revision) = if conditions.is_empty() {
            let deleted: DeleteRangeResponse =
                self.caller.unary(DELETE_RANGE_PATH, &request).await?;
            let revision = deleted.header.map_or(0, |header| header.revision);
            (deleted.deleted, revision)
        } else {
            let delete = operation(request_op::Request::RequestDeleteRange(request));
            let (done, _) = self.change_if(&key, delete, &conditions).await?;
            let deleted = match done.responses.first().map(|op| &op.response) {
                Some(Some(response_op::Response::ResponseDeleteRange(range))) => range.deleted,
                _ => 0,
            };
            (deleted, revision_of(&done))
        };
        if deleted == 0 {
            return Err(
                Problem::new(StatusCode::NOT_FOUND, "the key does not exist")
                    .with_header(header::ETAG, entity_tag(0)),
            );
        }
        let mut response = empty(StatusCode::NO_CONTENT);
        set_revision(response.headers_mut(), revision);
        Ok(response)
    }
}

fn operation(request: request_op::Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn revision_of(response: &TxnResponse) -> i64 {
    response.header.as_ref().map_or(0, |header| header.revision)
}

fn precondition_failed(revision: i64) -> Problem {
    Problem::new(
        StatusCode::PRECONDITION_FAILED,
        "the key is not in the state that the condition names; ETag says its state",
    )
    .with_header(header::ETAG, entity_tag(revision))
}

fn set_life(headers: &mut HeaderMap, lease: i64, granted_ttl_seconds: Option<i64>) {
    if lease != 0 {
        set_number(headers, "metastore-lease", lease);
    }
    if let Some(seconds) = granted_ttl_seconds {
        set_number(headers, "metastore-lease-ttl", seconds);
    }
}

fn value(pair: &KeyValue) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Plain(Full::new(pair.value.clone())));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    // Somebody else's value must not become a page of this origin.
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    set_number(headers, "metastore-create-revision", pair.create_revision);
    set_number(headers, "metastore-mod-revision", pair.mod_revision);
    set_number(headers, "metastore-version", pair.version);
    set_life(headers, pair.lease, None);
    response
}
