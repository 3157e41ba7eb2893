//! Counters of gRPC calls, as go-grpc-prometheus names and counts them.
//!
//! Every method has a set of counters at a fixed address, so that counting a call is a handful of
//! relaxed additions; labels are put together when somebody looks. What is the same for unary calls
//! (started and received, handled and sent) is counted once.

use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use opentelemetry::trace::FutureExt;
use prometheus::Histogram;
use tonic::{Code, Status};

use super::families::Families;
use crate::client_limits::Share;
use crate::observe::traces::CallSpan;

/// Number of gRPC codes.
const CODES: usize = 17;
/// Go's names of the codes, by number.
pub const CODE_NAMES: [&str; CODES] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
/// Flag and length in front of each message.
const PREFIX_BYTES: usize = 5;

/// Who sends how many messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallType {
    /// One each.
    Unary,
    /// One question, many answers.
    ServerStream,
    /// Many each.
    BidiStream,
}

impl CallType {
    const fn label(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

/// The counters of one method.
// A cache line of its own: neighbours are counted by other threads.
#[repr(align(128))]
pub struct Method {
    path: &'static str,
    call_type: CallType,
    /// etcd counts the methods of these services from the start; others appear when they are used.
    always_shown: bool,
    started: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// Messages; unused for unary calls.
    received: AtomicU64,
    sent: AtomicU64,
    handled: [AtomicU64; CODES],
    handling_seconds: OnceLock<Histogram>,
}

impl Method {
    const fn new(path: &'static str, call_type: CallType, always_shown: bool) -> Self {
        Self {
            path,
            call_type,
            always_shown,
            started: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            handled: [const { AtomicU64::new(0) }; CODES],
            handling_seconds: OnceLock::new(),
        }
    }

    /// Service and method.
    fn names(&self) -> (&'static str, &'static str) {
        self.path[1..]
            .split_once('/')
            .expect("the paths of the table have two parts")
    }

    /// The path of the method in a request.
    #[must_use]
    pub const fn path(&self) -> &'static str {
        self.path
    }

    /// Who sends how many messages.
    #[must_use]
    pub const fn call_type(&self) -> CallType {
        self.call_type
    }

    fn finished(&self) -> u64 {
        self.handled
            .iter()
            .map(|counter| counter.load(Ordering::Relaxed))
            .sum()
    }
}

macro_rules! methods {
    ($($constant:ident = $path:literal, $call_type:ident, $always_shown:literal;)*) => {
        /// Every method of the client port.
        #[allow(missing_docs)]
        pub mod method {
            use super::{CallType, Method};
            $(pub static $constant: Method =
                Method::new($path, CallType::$call_type, $always_shown);)*
        }

        static METHODS: &[&Method] = &[$(&method::$constant),*];
    };
}

methods! {
    RANGE = "/etcdserverpb.KV/Range", Unary, true;
    RANGE_STREAM = "/etcdserverpb.KV/RangeStream", ServerStream, true;
    PUT = "/etcdserverpb.KV/Put", Unary, true;
    DELETE_RANGE = "/etcdserverpb.KV/DeleteRange", Unary, true;
    TXN = "/etcdserverpb.KV/Txn", Unary, true;
    COMPACT = "/etcdserverpb.KV/Compact", Unary, true;
    WATCH = "/etcdserverpb.Watch/Watch", BidiStream, true;
    LEASE_GRANT = "/etcdserverpb.Lease/LeaseGrant", Unary, true;
    LEASE_REVOKE = "/etcdserverpb.Lease/LeaseRevoke", Unary, true;
    LEASE_KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive", BidiStream, true;
    LEASE_TIME_TO_LIVE = "/etcdserverpb.Lease/LeaseTimeToLive", Unary, true;
    LEASE_LEASES = "/etcdserverpb.Lease/LeaseLeases", Unary, true;
    MEMBER_ADD = "/etcdserverpb.Cluster/MemberAdd", Unary, true;
    MEMBER_REMOVE = "/etcdserverpb.Cluster/MemberRemove", Unary, true;
    MEMBER_UPDATE = "/etcdserverpb.Cluster/MemberUpdate", Unary, true;
    MEMBER_LIST = "/etcdserverpb.Cluster/MemberList", Unary, true;
    MEMBER_PROMOTE = "/etcdserverpb.Cluster/MemberPromote", Unary, true;
    ALARM = "/etcdserverpb.Maintenance/Alarm", Unary, true;
    STATUS = "/etcdserverpb.Maintenance/Status", Unary, true;
    DEFRAGMENT = "/etcdserverpb.Maintenance/Defragment", Unary, true;
    HASH = "/etcdserverpb.Maintenance/Hash", Unary, true;
    HASH_KV = "/etcdserverpb.Maintenance/HashKV", Unary, true;
    SNAPSHOT = "/etcdserverpb.Maintenance/Snapshot", ServerStream, true;
    MOVE_LEADER = "/etcdserverpb.Maintenance/MoveLeader", Unary, true;
    DOWNGRADE = "/etcdserverpb.Maintenance/Downgrade", Unary, true;
    AUTH_ENABLE = "/etcdserverpb.Auth/AuthEnable", Unary, true;
    AUTH_DISABLE = "/etcdserverpb.Auth/AuthDisable", Unary, true;
    AUTH_STATUS = "/etcdserverpb.Auth/AuthStatus", Unary, true;
    AUTHENTICATE = "/etcdserverpb.Auth/Authenticate", Unary, true;
    USER_ADD = "/etcdserverpb.Auth/UserAdd", Unary, true;
    USER_GET = "/etcdserverpb.Auth/UserGet", Unary, true;
    USER_LIST = "/etcdserverpb.Auth/UserList", Unary, true;
    USER_DELETE = "/etcdserverpb.Auth/UserDelete", Unary, true;
    USER_CHANGE_PASSWORD = "/etcdserverpb.Auth/UserChangePassword", Unary, true;
    USER_GRANT_ROLE = "/etcdserverpb.Auth/UserGrantRole", Unary, true;
    USER_REVOKE_ROLE = "/etcdserverpb.Auth/UserRevokeRole", Unary, true;
    ROLE_ADD = "/etcdserverpb.Auth/RoleAdd", Unary, true;
    ROLE_GET = "/etcdserverpb.Auth/RoleGet", Unary, true;
    ROLE_LIST = "/etcdserverpb.Auth/RoleList", Unary, true;
    ROLE_DELETE = "/etcdserverpb.Auth/RoleDelete", Unary, true;
    ROLE_GRANT_PERMISSION = "/etcdserverpb.Auth/RoleGrantPermission", Unary, true;
    ROLE_REVOKE_PERMISSION = "/etcdserverpb.Auth/RoleRevokePermission", Unary, true;
    HEALTH_CHECK = "/grpc.health.v1.Health/Check", Unary, true;
    HEALTH_LIST = "/grpc.health.v1.Health/List", Unary, true;
    HEALTH_WATCH = "/grpc.health.v1.Health/Watch", ServerStream, true;
    LOCK = "/v3lockpb.Lock/Lock", Unary, false;
    UNLOCK = "/v3lockpb.Lock/Unlock", Unary, false;
    CAMPAIGN = "/v3electionpb.Election/Campaign", Unary, false;
    PROCLAIM = "/v3electionpb.Election/Proclaim", Unary, false;
    LEADER = "/v3electionpb.Election/Leader", Unary, false;
    OBSERVE = "/v3electionpb.Election/Observe", ServerStream, false;
    RESIGN = "/v3electionpb.Election/Resign", Unary, false;
}

/// The method of a request's path; `None` for what nobody serves. Hot paths know their method.
#[must_use]
pub fn find(path: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.path == path).copied()
}

/// Whether somebody serves a service of this name.
#[must_use]
pub fn has_service(name: &str) -> bool {
    METHODS.iter().any(|method| method.names().0 == name)
}

/// Whether durations of calls are measured: `--metrics=extensive`.
static EXTENSIVE: AtomicBool = AtomicBool::new(false);

/// Measures the durations of calls from now on.
pub(super) fn measure_durations(histogram_of: impl Fn(&[&str]) -> Histogram) {
    for method in METHODS.iter().filter(|method| method.always_shown) {
        let (service, name) = method.names();
        method
            .handling_seconds
            .get_or_init(|| histogram_of(&[method.call_type.label(), service, name]));
    }
    EXTENSIVE.store(true, Ordering::Relaxed);
}

/// One call that is being answered. Dropped without an end, its client went away: `Canceled`.
pub struct Call {
    method: &'static Method,
    started: Option<Instant>,
    span: Option<Box<CallSpan>>,
    ended: bool,
}

impl Call {
    /// Counts the begin of a call with these headers.
    #[must_use]
    pub fn start(method: &'static Method, headers: &HeaderMap) -> Self {
        method.started.fetch_add(1, Ordering::Relaxed);
        Self {
            method,
            started: EXTENSIVE.load(Ordering::Relaxed).then(Instant::now),
            span: CallSpan::start(method.path, headers).map(Box::new),
            ended: false,
        }
    }

    /// Runs what answers the call, inside its span if there is one. Give it a pinned future: the future of
    /// this function holds its argument twice.
    pub async fn run<F: Future>(&self, answer: F) -> F::Output {
        match &self.span {
            None => answer.await,
            Some(span) => Box::pin(answer.with_context(span.context())).await,
        }
    }

    /// Counts messages from the client; for unary calls only their bytes.
    pub fn received(&self, messages: u64, bytes: usize) {
        self.method.count_received(messages, bytes);
    }

    /// Counts messages to the client; for unary calls only their bytes.
    pub fn sent(&self, messages: u64, bytes: usize) {
        if self.method.call_type != CallType::Unary {
            self.method.sent.fetch_add(messages, Ordering::Relaxed);
        }
        self.method
            .sent_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts the end of a call, once.
    pub fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.method.handled[code as usize].fetch_add(1, Ordering::Relaxed);
        if self.method.call_type == CallType::BidiStream {
            // etcd counts the receive that tells it of the end as well.
            self.method.count_received(1, 0);
        }
        if let Some(span) = &self.span {
            span.end(code);
        }
        if let (Some(started), Some(histogram)) = (self.started, self.method.handling_seconds.get())
        {
            histogram.observe(started.elapsed().as_secs_f64());
        }
    }
}

impl Method {
    fn count_received(&self, messages: u64, bytes: usize) {
        if self.call_type != CallType::Unary {
            self.received.fetch_add(messages, Ordering::Relaxed);
        }
        self.received_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// Counts a call that tonic answers: its messages in both directions and its end.
pub async fn observe<B, F, Fut>(
    method: &'static Method,
    request: Request<B>,
    serve: F,
) -> Response<AnswerBody>
where
    F: FnOnce(Request<QuestionBody<B>>) -> Fut,
    Fut: Future<Output = Response<tonic::body::Body>>,
{
    let mut call = Call::start(method, request.headers());
    let request = request.map(|inner| QuestionBody {
        inner,
        method,
        messages: MessageCounter::default(),
    });
    let (parts, inner) = call.run(pin!(serve(request))).await.into_parts();
    // An answer without a body has its status in the headers.
    if let Some(status) = Status::from_header_map(&parts.headers) {
        call.end(status.code());
    }
    let body = AnswerBody {
        inner,
        call,
        messages: MessageCounter::default(),
        share: None,
    };
    Response::from_parts(parts, body)
}

/// Finds the ends of gRPC messages in a stream of bytes.
#[derive(Debug, Default)]
struct MessageCounter {
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// Bytes of the current message that are still to come.
    left: usize,
}

impl MessageCounter {
    /// Messages that end in `data`, and their bytes.
    fn feed(&mut self, mut data: &[u8]) -> (u64, usize) {
        let (mut messages, mut bytes) = (0, 0);
        while !data.is_empty() {
            if self.prefix_bytes < PREFIX_BYTES {
                let taken = data.len().min(PREFIX_BYTES - self.prefix_bytes);
                self.prefix[self.prefix_bytes..][..taken].copy_from_slice(&data[..taken]);
                self.prefix_bytes += taken;
                data = &data[taken..];
                if self.prefix_bytes < PREFIX_BYTES {
                    break;
                }
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length) as usize;
            }
            let taken = data.len().min(self.left);
            self.left -= taken;
            bytes += taken;
            data = &data[taken..];
            if self.left == 0 {
                messages += 1;
                self.prefix_bytes = 0;
            }
        }
        (messages, bytes)
    }
}

/// The body of a request whose messages are counted.
pub struct QuestionBody<B> {
    inner: B,
    method: &'static Method,
    messages: MessageCounter,
}

impl<B: Body<Data = Bytes> + Unpin> Body for QuestionBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let (messages, bytes) = this.messages.feed(data);
            this.method.count_received(messages, bytes);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of an answer whose messages are counted, and with it the end of the call.
pub struct AnswerBody {
    inner: tonic::body::Body,
    call: Call,
    messages: MessageCounter,
    share: Option<Share>,
}

impl AnswerBody {
    /// Holds what the stream has of its client's limit, to its end.
    #[must_use]
    pub fn holding(mut self, share: Option<Share>) -> Self {
        self.share = share;
        self
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    let (messages, bytes) = this.messages.feed(data);
                    this.call.sent(messages, bytes);
                } else if let Some(trailers) = frame.trailers_ref() {
                    this.call.end(code_of(trailers));
                }
            }
            Poll::Ready(Some(Err(status))) => this.call.end(status.code()),
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn code_of(trailers: &HeaderMap) -> Code {
    Status::from_header_map(trailers).map_or(Code::Unknown, |status| status.code())
}

/// The counters of all methods.
pub(super) fn collect(families: &mut Families) {
    const LABELS: [&str; 3] = ["grpc_type", "grpc_service", "grpc_method"];
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let shown: Vec<_> = METHODS
        .iter()
        .filter(|method| method.always_shown || load(&method.started) > 0)
        .collect();
    let mut by_method = |name: &str, value: &dyn Fn(&Method) -> u64| {
        families.add_all(
            name,
            shown.iter().map(|method| {
                let (service, method_name) = method.names();
                let labels = vec![
                    (LABELS[0], method.call_type.label().to_owned()),
                    (LABELS[1], service.to_owned()),
                    (LABELS[2], method_name.to_owned()),
                ];
                (labels, value(method) as f64)
            }),
        );
    };
    by_method("grpc_server_started_total", &|method| load(&method.started));
    by_method(
        "grpc_server_msg_received_total",
        &|method| match method.call_type {
            CallType::Unary => load(&method.started),
            _ => load(&method.received),
        },
    );
    by_method(
        "grpc_server_msg_sent_total",
        &|method| match method.call_type {
            CallType::Unary => method.finished(),
            _ => load(&method.sent),
        },
    );
    families.add_all(
        "grpc_server_handled_total",
        shown.iter().flat_map(|method| {
            let (service, name) = method.names();
            let always_shown = method.always_shown;
            CODE_NAMES
                .iter()
                .zip(&method.handled)
                .map(move |(code, count)| {
                    let labels = vec![
                        (LABELS[0], method.call_type.label().to_owned()),
                        (LABELS[1], service.to_owned()),
                        (LABELS[2], name.to_owned()),
                        ("grpc_code", (*code).to_owned()),
                    ];
                    (labels, load(count) as f64)
                })
                .filter(move |(_, count)| always_shown || *count > 0.0)
        }),
    );
    let sum = |counter: fn(&Method) -> &AtomicU64| {
        METHODS
            .iter()
            .map(|method| load(counter(method)))
            .sum::<u64>() as f64
    };
    families.add(
        "etcd_network_client_grpc_received_bytes_total",
        sum(|method| &method.received_bytes),
    );
    families.add(
        "etcd_network_client_grpc_sent_bytes_total",
        sum(|method| &method.sent_bytes),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_wherever_frames_are_cut() {
        let mut stream = Vec::new();
        for length in [0_u32, 3, 300] {
            stream.push(0);
            stream.extend(length.to_be_bytes());
            stream.extend(vec![7; length as usize]);
        }
        for cut in 1..stream.len() {
            let mut counter = MessageCounter::default();
            let mut total = (0, 0);
            for chunk in stream.chunks(cut) {
                let (messages, bytes) = counter.feed(chunk);
                total = (total.0 + messages, total.1 + bytes);
            }
            assert_eq!(total, (3, 303), "chunks of {cut}");
        }
    }

    #[test]
    fn a_call_that_is_dropped_counts_as_canceled_and_others_only_once() {
        static METHOD: Method = Method::new("/a.B/C", CallType::BidiStream, false);
        let headers = HeaderMap::new();
        drop(Call::start(&METHOD, &headers));
        let mut call = Call::start(&METHOD, &headers);
        call.end(Code::Ok);
        call.end(Code::Internal);
        drop(call);
        let count = |code: Code| METHOD.handled[code as usize].load(Ordering::Relaxed);
        assert_eq!(
            (count(Code::Cancelled), count(Code::Ok), METHOD.finished()),
            (1, 1, 2)
        );
    }
}
