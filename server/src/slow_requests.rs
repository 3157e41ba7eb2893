//! The log of requests that took long (`--warning-apply-duration`, `--warning-unary-request-duration`),
//! in etcd's shape. Values and passwords never get into it: their sizes stand in their place.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use metastore_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use metastore_proto::etcdserverpb::request_op::Request as Operation;
use metastore_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, Compare, DeleteRangeRequest, DeleteRangeResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use metastore_proto::internal::Command;
use metastore_proto::internal::command::Request;
use metastore_store::CommandResponse;
use prost::Message;

use crate::observe::metrics::METRICS;

/// A protobuf message as text, field by field; fields that are not set are left out.
#[derive(Default)]
struct Text(String);

impl Text {
    fn raw(mut self, name: &str, value: &str) -> Self {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push_str(name);
        self.0.push(':');
        self.0.push_str(value);
        self
    }

    fn bytes(self, name: &str, value: &[u8]) -> Self {
        match value.is_empty() {
            true => self,
            false => self.raw(name, &format!("\"{}\"", value.escape_ascii())),
        }
    }

    fn size(self, name: &str, value: &[u8]) -> Self {
        self.number(name, i64::try_from(value.len()).unwrap_or(i64::MAX))
    }

    fn number(self, name: &str, value: i64) -> Self {
        match value {
            0 => self,
            value => self.raw(name, &value.to_string()),
        }
    }

    fn flag(self, name: &str, value: bool) -> Self {
        match value {
            true => self.raw(name, "true"),
            false => self,
        }
    }

    fn enumerator<T: TryFrom<i32>>(
        self,
        name: &str,
        value: i32,
        text: fn(&T) -> &'static str,
    ) -> Self {
        match (value, T::try_from(value)) {
            (0, _) => self,
            (_, Ok(known)) => self.raw(name, text(&known)),
            (unknown, Err(_)) => self.raw(name, &unknown.to_string()),
        }
    }

    fn group(self, name: &str, value: &str) -> Self {
        self.raw(name, &format!("<{value}>"))
    }
}

fn range(request: &RangeRequest) -> String {
    Text::default()
        .bytes("key", &request.key)
        .bytes("range_end", &request.range_end)
        .number("limit", request.limit)
        .number("revision", request.revision)
        .enumerator("sort_order", request.sort_order, SortOrder::as_str_name)
        .enumerator("sort_target", request.sort_target, SortTarget::as_str_name)
        .flag("serializable", request.serializable)
        .flag("keys_only", request.keys_only)
        .flag("count_only", request.count_only)
        .number("min_mod_revision", request.min_mod_revision)
        .number("max_mod_revision", request.max_mod_revision)
        .number("min_create_revision", request.min_create_revision)
        .number("max_create_revision", request.max_create_revision)
        .0
}

fn put(request: &PutRequest) -> String {
    Text::default()
        .bytes("key", &request.key)
        .size("value_size", &request.value)
        .number("lease", request.lease)
        .flag("prev_kv", request.prev_kv)
        .flag("ignore_value", request.ignore_value)
        .flag("ignore_lease", request.ignore_lease)
        .0
}

fn delete_range(request: &DeleteRangeRequest) -> String {
    Text::default()
        .bytes("key", &request.key)
        .bytes("range_end", &request.range_end)
        .flag("prev_kv", request.prev_kv)
        .0
}

fn compaction(request: &CompactionRequest) -> String {
    Text::default()
        .number("revision", request.revision)
        .flag("physical", request.physical)
        .0
}

fn txn(request: &TxnRequest) -> String {
    let compares: Vec<_> = request.compare.iter().map(compare).collect();
    let branch = |operations: &[RequestOp]| {
        let operations: Vec<_> = operations.iter().map(operation).collect();
        operations.join(" ")
    };
    format!(
        "compare:<{}> success:<{}> failure:<{}>",
        compares.join(" "),
        branch(&request.success),
        branch(&request.failure)
    )
}

fn compare(compare: &Compare) -> String {
    let text = Text::default()
        .enumerator("result", compare.result, CompareResult::as_str_name)
        .enumerator("target", compare.target, CompareTarget::as_str_name)
        .bytes("key", &compare.key);
    match &compare.target_union {
        Some(TargetUnion::Version(version)) => text.raw("version", &version.to_string()),
        Some(TargetUnion::CreateRevision(at)) => text.raw("create_revision", &at.to_string()),
        Some(TargetUnion::ModRevision(at)) => text.raw("mod_revision", &at.to_string()),
        Some(TargetUnion::Lease(lease)) => text.raw("lease", &lease.to_string()),
        Some(TargetUnion::Value(value)) => text.size("value_size", value),
        None => text,
    }
    .bytes("range_end", &compare.range_end)
    .0
}

fn operation(operation: &RequestOp) -> String {
    match &operation.request {
        Some(Operation::RequestRange(request)) => format!("request_range:<{}>", range(request)),
        Some(Operation::RequestPut(request)) => format!("request_put:<{}>", put(request)),
        Some(Operation::RequestDeleteRange(request)) => {
            format!("request_delete_range:<{}>", delete_range(request))
        }
        Some(Operation::RequestTxn(request)) => format!("request_txn:<{}>", txn(request)),
        None => String::new(),
    }
}

/// A command as etcd logs it.
fn command(command: &Command) -> String {
    let header = Text::default()
        .raw("ID", &command.request_id.to_string())
        .bytes("username", command.username.as_bytes())
        .number("auth_revision", command.auth_revision.cast_signed())
        .0;
    let text = Text::default().group("header", &header);
    match &command.request {
        Some(Request::Put(request)) => text.group("put", &put(request)),
        Some(Request::DeleteRange(request)) => text.group("delete_range", &delete_range(request)),
        Some(Request::Txn(request)) => text.group("txn", &txn(request)),
        Some(Request::Compaction(request)) => text.group("compaction", &compaction(request)),
        Some(Request::LeaseGrant(grant)) => {
            let grant = format!("ttl:{}-second id:{:016x}", grant.ttl, grant.id);
            text.group("lease_grant", &grant)
        }
        Some(Request::LeaseRevoke(revoke)) => {
            text.group("lease_revoke", &format!("id:{:016x}", revoke.id))
        }
        Some(Request::LeaseCheckpoint(request)) => text.group(
            "lease_checkpoint",
            &format!("checkpoints:{}", request.checkpoints.len()),
        ),
        // The others change little, and some hold secrets.
        Some(_) | None => text,
    }
    .0
}

fn response_size(response: &CommandResponse) -> usize {
    match response {
        CommandResponse::Put(response) => response.encoded_len(),
        CommandResponse::DeleteRange(response) => response.encoded_len(),
        CommandResponse::Txn(response) => response.encoded_len(),
        CommandResponse::Compaction(response) => response.encoded_len(),
        CommandResponse::LeaseGrant(response) => response.encoded_len(),
        CommandResponse::LeaseRevoke(response) => response.encoded_len(),
        CommandResponse::LeaseCheckpoint(response) => response.encoded_len(),
    }
}

/// Logs a command whose execution took longer than `expected`.
pub fn warn_of_command(
    took: Duration,
    expected: Duration,
    request: &Command,
    result: &Result<CommandResponse, EtcdError>,
) {
    let response = result.as_ref().map_or_else(
        |_| String::new(),
        |response| format!("size:{}", response_size(response)),
    );
    let error = result.as_ref().err().map(|error| error.text());
    warn(took, expected, "", &command(request), &response, error);
}

/// Logs a range that took longer than `expected`.
pub fn warn_of_range(
    took: Duration,
    expected: Duration,
    request: &RangeRequest,
    response: &RangeResponse,
) {
    let count = response.kvs.len();
    let response = format!(
        "range_response_count:{count} size:{}",
        response.encoded_len()
    );
    warn(
        took,
        expected,
        "read-only range ",
        &range(request),
        &response,
        None,
    );
}

/// Logs a transaction that only reads and took longer than `expected`.
pub fn warn_of_read_only_txn(
    took: Duration,
    expected: Duration,
    request: &TxnRequest,
    response: &TxnResponse,
) {
    let count = response.responses.len();
    let response = format!("responses:{count} size:{}", response.encoded_len());
    warn(
        took,
        expected,
        "read-only txn ",
        &txn(request),
        &response,
        None,
    );
}

fn warn(
    took: Duration,
    expected: Duration,
    prefix: &str,
    request: &str,
    response: &str,
    error: Option<&str>,
) {
    METRICS.slow_applies.inc();
    tracing::warn!(
        took = ?took,
        "expected-duration" = ?expected,
        prefix,
        request,
        response,
        error,
        "apply request took too long"
    );
}

/// What the log says about a unary request and its answer. −1: unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestStats {
    request_count: i64,
    request_size: i64,
    response_count: i64,
    response_size: i64,
    content: String,
}

impl RequestStats {
    /// Of a request that is not looked into.
    pub const UNKNOWN: Self = Self {
        request_count: -1,
        request_size: -1,
        response_count: -1,
        response_size: -1,
        content: String::new(),
    };

    fn new(request_count: i64, request_size: usize, content: String) -> Self {
        Self {
            request_count,
            request_size: i64::try_from(request_size).unwrap_or(i64::MAX),
            response_count: 0,
            response_size: 0,
            content,
        }
    }

    fn answered(mut self, count: i64, size: usize) -> Self {
        self.response_count = count;
        self.response_size = i64::try_from(size).unwrap_or(i64::MAX);
        self
    }
}

/// A request of which the log tells something; `A` is its answer.
pub trait Loggable<A> {
    /// Its method, as `/package.Service/Method`.
    const METHOD: &'static str;

    /// What the log tells of the request alone, if its answer is one of these: etcd shows the branch of
    /// a transaction that was run. Nothing when the log tells nothing of it.
    fn sketch(&self, succeeded: bool) -> Option<RequestStats>;

    /// The branch of a transaction that was run; always the first one of other requests.
    fn succeeded(_answer: &A) -> bool {
        true
    }

    /// Adds what the answer tells.
    fn complete(sketch: RequestStats, answer: &A) -> RequestStats;

    /// What the log tells; `answer` is nothing when the request failed.
    fn stats(&self, answer: Option<&A>) -> RequestStats {
        answer
            .and_then(|answer| {
                let sketch = self.sketch(Self::succeeded(answer))?;
                Some(Self::complete(sketch, answer))
            })
            .unwrap_or(RequestStats::UNKNOWN)
    }
}

impl Loggable<RangeResponse> for RangeRequest {
    const METHOD: &'static str = "/etcdserverpb.KV/Range";

    fn sketch(&self, _succeeded: bool) -> Option<RequestStats> {
        Some(RequestStats::new(0, self.encoded_len(), range(self)))
    }

    fn complete(sketch: RequestStats, answer: &RangeResponse) -> RequestStats {
        sketch.answered(answer.count, answer.encoded_len())
    }
}

impl Loggable<PutResponse> for PutRequest {
    const METHOD: &'static str = "/etcdserverpb.KV/Put";

    fn sketch(&self, _succeeded: bool) -> Option<RequestStats> {
        Some(RequestStats::new(1, self.encoded_len(), put(self)))
    }

    fn complete(sketch: RequestStats, answer: &PutResponse) -> RequestStats {
        sketch.answered(0, answer.encoded_len())
    }
}

impl Loggable<DeleteRangeResponse> for DeleteRangeRequest {
    const METHOD: &'static str = "/etcdserverpb.KV/DeleteRange";

    fn sketch(&self, _succeeded: bool) -> Option<RequestStats> {
        Some(RequestStats::new(0, self.encoded_len(), delete_range(self)))
    }

    fn complete(sketch: RequestStats, answer: &DeleteRangeResponse) -> RequestStats {
        sketch.answered(answer.deleted, answer.encoded_len())
    }
}

impl Loggable<TxnResponse> for TxnRequest {
    const METHOD: &'static str = "/etcdserverpb.KV/Txn";

    fn sketch(&self, succeeded: bool) -> Option<RequestStats> {
        // What was done is the size of the request, not what was left.
        let branch = match succeeded {
            true => &self.success,
            false => &self.failure,
        };
        let count = i64::try_from(branch.len()).unwrap_or(i64::MAX);
        let size = branch.iter().map(Message::encoded_len).sum();
        Some(RequestStats::new(count, size, txn(self)))
    }

    fn succeeded(answer: &TxnResponse) -> bool {
        answer.succeeded
    }

    fn complete(sketch: RequestStats, answer: &TxnResponse) -> RequestStats {
        sketch.answered(0, answer.encoded_len())
    }
}

impl Loggable<CompactionResponse> for CompactionRequest {
    const METHOD: &'static str = "/etcdserverpb.KV/Compact";

    fn sketch(&self, _succeeded: bool) -> Option<RequestStats> {
        None
    }

    fn complete(sketch: RequestStats, _answer: &CompactionResponse) -> RequestStats {
        sketch
    }
}

/// Logs a unary request that took longer than allowed.
pub fn warn_of_unary(
    method: &str,
    remote: Option<SocketAddr>,
    took: Duration,
    stats: &RequestStats,
) {
    let remote = remote.map_or_else(
        || "No remote client info.".to_owned(),
        |address| address.to_string(),
    );
    let started = SystemTime::now()
        .checked_sub(took)
        .unwrap_or(SystemTime::UNIX_EPOCH);
    tracing::warn!(
        "start time" = crate::observe::log::timestamp(started),
        "time spent" = ?took,
        remote,
        "response type" = method,
        "request count" = stats.request_count,
        "request size" = stats.request_size,
        "response count" = stats.response_count,
        "response size" = stats.response_size,
        "request content" = stats.content,
        "request stats"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret_put() -> PutRequest {
        PutRequest {
            key: "key\x00".into(),
            value: "secret".into(),
            lease: 7,
            prev_kv: true,
            ..PutRequest::default()
        }
    }

    #[test]
    fn values_are_told_by_their_size() {
        let request = TxnRequest {
            compare: vec![Compare {
                result: CompareResult::Greater as i32,
                target: CompareTarget::Value as i32,
                key: "key".into(),
                target_union: Some(TargetUnion::Value("secret".into())),
                ..Compare::default()
            }],
            success: vec![RequestOp {
                request: Some(Operation::RequestPut(secret_put())),
            }],
            ..TxnRequest::default()
        };
        let text = command(&Command {
            request_id: 5,
            username: "root".to_owned(),
            auth_revision: 3,
            request: Some(Request::Txn(request)),
            ..Command::default()
        });
        assert_eq!(
            text,
            r#"header:<ID:5 username:"root" auth_revision:3> txn:<compare:<result:GREATER target:VALUE key:"key" value_size:6> success:<request_put:<key:"key\x00" value_size:6 lease:7 prev_kv:true>> failure:<>>"#
        );
        assert!(!text.contains("secret"));
    }

    #[test]
    fn stats_are_etcds() {
        let put = secret_put();
        let stats = put.stats(Some(&PutResponse::default()));
        assert_eq!(stats.request_count, 1);
        assert_eq!(stats.request_size, put.encoded_len() as i64);
        assert!(!stats.content.contains("secret"));
        assert_eq!(put.stats(None), RequestStats::UNKNOWN);
    }
}
