//! Watches: those of many clients that look at the same keys share one of the cluster's.
//!
//! ```text
//! client streams ─► receivers ─┐
//!                              ├─► broadcast ─► one watch of the cluster
//! client streams ─► receivers ─┘      (one group of broadcasts for each subject)
//! ```
//!
//! A new watch is always opened in the cluster, which says whether it may be and where it begins. As soon as
//! another broadcast of the same subject is not ahead of it, its receivers move there. Each receiver knows which
//! revision it needs next, so nothing is told twice and nothing is left out.
//!
//! A watch of the cluster that is lost is opened again behind what it has told: clients do not notice. Only those
//! with the same credentials share a watch, so that nobody sees by another's permission.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{
    ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse,
    watch_create_request::FilterType, watch_request::RequestUnion,
};
use metastore_proto::mvccpb::{Event, event::EventType};
use metastore_proto::repeat::is_lost;
use parking_lot::Mutex;
use prometheus::IntCounter;
use prost::Message;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tonic::Status;
use tonic::body::Body;

use super::namespace::Namespace;
use super::upstream::{Upstream, trailers};
use crate::rpc::in_process::framed;
use crate::rpc::services::RequestBody;
use crate::rpc::unary::{self, PREFIX_BYTES};

/// The largest message of a client; grpc-go's default.
pub const RECEIVE_BYTES_MAX: usize = 4 << 20;
/// Answers that wait for a client; etcd's number. One that reads more slowly comes again by itself.
const QUEUE_ANSWERS_MAX: usize = 1024;
/// Pause before a watch of the cluster is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);
/// Size above which answers are cut for clients that ask for it: etcd's largest request and its overhead.
const FRAGMENT_BYTES: usize = (3 << 19) + (512 << 10);
/// The number of a watch that was never created.
const NO_WATCH_ID: i64 = -1;
/// Etcd's text.
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// Serves watches.
#[derive(Clone)]
pub struct WatchProxy(Arc<Inner>);

struct Inner {
    upstream: Arc<Upstream>,
    namespace: Namespace,
    groups: Mutex<HashMap<Subject, Arc<Mutex<Group>>>>,
    /// The last number of a receiver or broadcast.
    numbers: AtomicU64,
    /// Events that the cluster did not have to send again.
    events_coalesced: IntCounter,
}

/// What is watched, and by whom.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Subject {
    key: Bytes,
    range_end: Bytes,
    prev_kv: bool,
    credentials: Vec<(&'static str, HeaderValue)>,
}

impl Subject {
    fn new(headers: &HeaderMap, namespace: &Namespace, request: &WatchCreateRequest) -> Self {
        let mut credentials = Vec::new();
        for name in ["token", "authorization"] {
            let values = headers.get_all(name).iter();
            credentials.extend(values.map(|value| (name, value.clone())));
        }
        let (key, range_end) = match namespace.is_empty() {
            true => (request.key.clone(), request.range_end.clone()),
            false => (
                namespace.key(&request.key),
                namespace.range_end(&request.range_end),
            ),
        };
        Self {
            key,
            range_end,
            prev_kv: request.prev_kv,
            credentials,
        }
    }

    /// A watch of a member without a leader tells nothing, so another member is better.
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.credentials {
            headers.append(*name, value.clone());
        }
        headers.insert("hasleader", HeaderValue::from_static("true"));
        headers
    }
}

/// The broadcasts of one subject.
#[derive(Default)]
struct Group {
    broadcasts: Vec<Broadcast>,
}

/// One watch of the cluster and who hears of it.
struct Broadcast {
    number: u64,
    /// The lowest revision of which nothing was told yet; 0: the cluster has not said where it begins.
    next_revision: i64,
    is_created: bool,
    receivers: HashMap<u64, Receiver>,
    _follower: Follower,
}

/// The task that follows a watch; it ends with its broadcast.
#[derive(Default)]
struct Follower(Option<AbortHandle>);

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// One watch of one client.
struct Receiver {
    stream: Arc<ClientStream>,
    watch_id: i64,
    /// Events before this are not for it; 0: it begins where its broadcast does.
    next_revision: i64,
    wants_progress: bool,
    wants_fragments: bool,
    filters: Vec<EventType>,
    /// Who waits for the cluster's word on the watch; nothing once it has come.
    created: Option<oneshot::Sender<()>>,
    last_header: Option<ResponseHeader>,
}

/// A client's stream.
struct ClientStream {
    answers: mpsc::Sender<Bytes>,
    /// How the stream ends, once it does.
    end: watch::Sender<Option<Status>>,
    requires_leader: bool,
    watches: Mutex<Watches>,
}

/// The watches of a client's stream.
#[derive(Default)]
struct Watches {
    /// What each watch looks at, and the number of its receiver.
    opened: HashMap<i64, (Subject, u64)>,
    /// Where the search for a free number begins: numbers are not used twice, as in etcd.
    next_id: i64,
}

impl ClientStream {
    /// Queues an answer. A client that does not read has its stream ended, and begins again where it is.
    fn send(&self, answer: &WatchResponse) {
        let framed = framed(&answer.encode_to_vec());
        if let Err(mpsc::error::TrySendError::Full(_)) = self.answers.try_send(framed) {
            self.fail(Status::unavailable(
                "the client reads its watches too slowly",
            ));
        }
    }

    fn fail(&self, status: Status) {
        self.end.send_if_modified(|end| {
            let is_first = end.is_none();
            end.get_or_insert(status);
            is_first
        });
    }

    /// The number of a new watch: the wanted one, or the next that is free; nothing if it is taken.
    fn choose_id(&self, wanted: i64) -> Option<i64> {
        let mut watches = self.watches.lock();
        if wanted != 0 {
            return Some(wanted).filter(|id| !watches.opened.contains_key(id));
        }
        let free = (watches.next_id..).find(|id| !watches.opened.contains_key(id))?;
        watches.next_id = free + 1;
        Some(free)
    }
}

/// Forgets a client's watches when its stream has ended.
struct StreamGuard {
    proxy: WatchProxy,
    stream: Arc<ClientStream>,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.proxy.forget(&self.stream);
    }
}

impl WatchProxy {
    /// Watches of this cluster.
    pub fn new(
        upstream: Arc<Upstream>,
        namespace: Namespace,
        events_coalesced: IntCounter,
    ) -> Self {
        Self(Arc::new(Inner {
            upstream,
            namespace,
            groups: Mutex::default(),
            numbers: AtomicU64::new(0),
            events_coalesced,
        }))
    }

    /// Watches of clients that share one of the cluster's with another.
    pub fn coalesced(&self) -> usize {
        let groups: Vec<_> = self.0.groups.lock().values().cloned().collect();
        groups
            .iter()
            .map(|group| {
                let group = group.lock();
                let receivers = group.broadcasts.iter().map(|one| one.receivers.len());
                receivers
                    .map(|count| count.saturating_sub(1))
                    .sum::<usize>()
            })
            .sum()
    }

    /// Serves a client's stream.
    pub fn serve(&self, headers: HeaderMap, body: impl RequestBody) -> Response<Body> {
        let (answers, mut queue) = mpsc::channel(QUEUE_ANSWERS_MAX);
        let (end, mut ended) = watch::channel(None);
        let stream = Arc::new(ClientStream {
            answers,
            end,
            requires_leader: headers.get("hasleader").is_some_and(|it| it == "true"),
            watches: Mutex::default(),
        });
        let guard = StreamGuard {
            proxy: self.clone(),
            stream: Arc::clone(&stream),
        };
        tokio::spawn(self.clone().read(headers, body, stream));
        let frames = async_stream::stream! {
            let _guard = guard;
            loop {
                let answer = tokio::select! {
                    biased;
                    () = is_ended(&mut ended) => None,
                    answer = queue.recv() => answer,
                };
                match answer {
                    Some(answer) => yield Ok(Frame::data(answer)),
                    None => break,
                }
            }
            let status = ended.borrow().clone();
            let status = status.unwrap_or_else(|| Status::ok(""));
            yield trailers(&status).map(Frame::trailers);
        };
        let mut response = Response::new(Body::new(StreamBody::new(frames)));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        response
    }

    /// Reads what a client wants, until it goes away. One thing after the other: clients know their watches by
    /// the order of the answers.
    async fn read(self, headers: HeaderMap, body: impl RequestBody, stream: Arc<ClientStream>) {
        let mut requests = Requests::new(body);
        loop {
            let request = tokio::select! {
                biased;
                // What was opened while the stream ended is forgotten here.
                () = stream.answers.closed() => return self.forget(&stream),
                request = requests.next() => request,
            };
            match request {
                Some(Ok(request)) => self.handle(&headers, request, &stream).await,
                Some(Err(status)) => return stream.fail(status),
                // As in etcd's proxy, a client that has said everything wants no more answers.
                None => return stream.fail(Status::cancelled("context canceled")),
            }
        }
    }

    async fn handle(&self, headers: &HeaderMap, request: WatchRequest, stream: &Arc<ClientStream>) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                let created = self.create(headers, create, stream);
                tokio::select! {
                    () = created => {}
                    () = stream.answers.closed() => {}
                }
            }
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id, stream),
            Some(RequestUnion::ProgressRequest(_)) | None => {
                tracing::debug!("not supported request type by gRPC proxy");
            }
        }
    }

    /// Opens a watch, and waits until the cluster has said what becomes of it.
    async fn create(
        &self,
        headers: &HeaderMap,
        create: WatchCreateRequest,
        stream: &Arc<ClientStream>,
    ) {
        let Some(watch_id) = stream.choose_id(create.watch_id) else {
            stream.send(&WatchResponse {
                header: Some(ResponseHeader::default()),
                watch_id: NO_WATCH_ID,
                created: true,
                canceled: true,
                cancel_reason: DUPLICATE_ID.to_owned(),
                ..Default::default()
            });
            return;
        };
        let subject = Subject::new(headers, &self.0.namespace, &create);
        let (sender, created) = oneshot::channel();
        let receiver = Receiver {
            stream: Arc::clone(stream),
            watch_id,
            next_revision: create.start_revision,
            wants_progress: create.progress_notify,
            wants_fragments: create.fragment,
            filters: filters(&create),
            created: Some(sender),
            last_header: None,
        };
        self.add(subject, receiver, create.start_revision);
        // The sender goes when the receiver does.
        let _ = created.await;
    }

    /// Forgets all watches of a client.
    fn forget(&self, stream: &ClientStream) {
        let watches = std::mem::take(&mut stream.watches.lock().opened);
        for (subject, number) in watches.into_values() {
            self.remove(&subject, number);
        }
    }

    fn next_number(&self) -> u64 {
        self.0.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn add(&self, subject: Subject, receiver: Receiver, start_revision: i64) {
        let number = self.next_number();
        let stream = Arc::clone(&receiver.stream);
        let watches = (subject.clone(), number);
        stream
            .watches
            .lock()
            .opened
            .insert(receiver.watch_id, watches);
        let mut groups = self.0.groups.lock();
        let group = Arc::clone(groups.entry(subject.clone()).or_default());
        let mut locked = group.lock();
        let broadcast = self.next_number();
        let follow = self
            .clone()
            .follow(subject, Arc::clone(&group), broadcast, start_revision);
        locked.broadcasts.push(Broadcast {
            number: broadcast,
            next_revision: start_revision,
            is_created: false,
            receivers: HashMap::from([(number, receiver)]),
            _follower: Follower(Some(tokio::spawn(follow).abort_handle())),
        });
    }

    fn cancel(&self, watch_id: i64, stream: &Arc<ClientStream>) {
        let Some((subject, number)) = stream.watches.lock().opened.remove(&watch_id) else {
            return;
        };
        if let Some(receiver) = self.remove(&subject, number) {
            stream.send(&WatchResponse {
                header: receiver.last_header,
                watch_id,
                canceled: true,
                ..Default::default()
            });
        }
    }

    fn remove(&self, subject: &Subject, number: u64) -> Option<Receiver> {
        let mut groups = self.0.groups.lock();
        let group = Arc::clone(groups.get(subject)?);
        let mut locked = group.lock();
        let receiver = locked.remove(number);
        if locked.broadcasts.is_empty() {
            groups.remove(subject);
        }
        receiver
    }

    /// Follows a watch of the cluster to its end, through the loss of members.
    async fn follow(
        self,
        subject: Subject,
        group: Arc<Mutex<Group>>,
        number: u64,
        start_revision: i64,
    ) {
        let mut start_revision = start_revision;
        while let Some(status) = self
            .follow_once(&subject, &group, number, start_revision)
            .await
        {
            match group.lock().lost(number, &status) {
                Some(next_revision) => start_revision = next_revision,
                None => break,
            }
            tokio::time::sleep(REOPEN_PAUSE).await;
        }
        let mut groups = self.0.groups.lock();
        if group.lock().broadcasts.is_empty()
            && groups
                .get(&subject)
                .is_some_and(|current| Arc::ptr_eq(current, &group))
        {
            groups.remove(&subject);
        }
    }

    /// Follows a watch until its member is lost, which has a status, or nobody needs it any more.
    async fn follow_once(
        &self,
        subject: &Subject,
        group: &Mutex<Group>,
        number: u64,
        start_revision: i64,
    ) -> Option<Status> {
        let create = WatchCreateRequest {
            key: subject.key.clone(),
            range_end: subject.range_end.clone(),
            start_revision,
            progress_notify: true,
            prev_kv: subject.prev_kv,
            ..Default::default()
        };
        let opened = self.0.upstream.watch(&subject.headers(), create).await;
        let mut watch = match opened {
            Ok(watch) => watch,
            Err(status) => return Some(status),
        };
        loop {
            let mut answer = match watch.next().await {
                Ok(answer) => answer,
                Err(status) => return Some(status),
            };
            if !self.0.namespace.is_empty() {
                for event in &mut answer.events {
                    self.0.namespace.strip_event(event);
                }
            }
            let is_needed = group.lock().tell(number, answer, &self.0.events_coalesced);
            if !is_needed {
                return None;
            }
        }
    }
}

async fn is_ended(ended: &mut watch::Receiver<Option<Status>>) {
    // The sender lives as long as the stream.
    let _ = ended.wait_for(Option::is_some).await;
}

fn filters(create: &WatchCreateRequest) -> Vec<EventType> {
    create
        .filters()
        .map(|filter| match filter {
            FilterType::Noput => EventType::Put,
            FilterType::Nodelete => EventType::Delete,
        })
        .collect()
}

impl Group {
    fn position(&self, number: u64) -> Option<usize> {
        self.broadcasts.iter().position(|one| one.number == number)
    }

    fn remove(&mut self, receiver: u64) -> Option<Receiver> {
        let position = self
            .broadcasts
            .iter()
            .position(|one| one.receivers.contains_key(&receiver))?;
        let removed = self.broadcasts[position].receivers.remove(&receiver);
        if self.broadcasts[position].receivers.is_empty() {
            self.broadcasts.swap_remove(position);
        }
        removed
    }

    /// Where a lost watch goes on; nothing when it does not.
    fn lost(&mut self, number: u64, status: &Status) -> Option<i64> {
        let position = self.position(number)?;
        let broadcast = &mut self.broadcasts[position];
        if status.message() == EtcdError::NoLeader.text() {
            // Their watches are forgotten when their streams have ended.
            for receiver in broadcast.receivers.values_mut() {
                if receiver.stream.requires_leader {
                    receiver.stream.fail(EtcdError::NoLeader.into());
                    receiver.created = None;
                }
            }
            return Some(broadcast.next_revision);
        }
        if is_lost(status) {
            return Some(broadcast.next_revision);
        }
        let answer = WatchResponse {
            header: Some(ResponseHeader::default()),
            cancel_reason: status.message().to_owned(),
            ..Default::default()
        };
        for receiver in self
            .broadcasts
            .swap_remove(position)
            .receivers
            .into_values()
        {
            receiver.canceled(&answer);
        }
        None
    }

    /// Tells the receivers of a broadcast. Returns whether somebody still needs its watch.
    fn tell(&mut self, number: u64, answer: WatchResponse, coalesced: &IntCounter) -> bool {
        let Some(position) = self.position(number) else {
            return false;
        };
        if answer.canceled {
            for receiver in self
                .broadcasts
                .swap_remove(position)
                .receivers
                .into_values()
            {
                receiver.canceled(&answer);
            }
            return false;
        }
        self.broadcasts[position].tell(answer, coalesced);
        self.join(number)
    }

    /// Moves the receivers of a broadcast to another one that is not ahead of it, if there is one. Returns whether
    /// they stay.
    fn join(&mut self, number: u64) -> bool {
        let Some(position) = self.position(number) else {
            return false;
        };
        let next_revision = self.broadcasts[position].next_revision;
        let other = self.broadcasts.iter().find(|other| {
            other.number != number && other.is_created && other.next_revision <= next_revision
        });
        let Some(other) = other.map(|other| other.number) else {
            return true;
        };
        let moved = std::mem::take(&mut self.broadcasts[position].receivers);
        self.broadcasts.swap_remove(position);
        let other = self.position(other).expect("it was just found");
        self.broadcasts[other].receivers.extend(moved);
        false
    }
}

impl Broadcast {
    fn tell(&mut self, answer: WatchResponse, coalesced: &IntCounter) {
        let behind = answer.header.as_ref().map_or(0, |header| header.revision) + 1;
        if answer.created {
            self.is_created = true;
            if self.next_revision == 0 {
                self.next_revision = behind;
            }
            for receiver in self.receivers.values_mut() {
                receiver.created(answer.header, self.next_revision);
            }
            return;
        }
        if answer.events.is_empty() {
            self.next_revision = self.next_revision.max(behind);
            for receiver in self.receivers.values_mut() {
                receiver.progress(answer.header);
            }
            return;
        }
        let events: Vec<(i64, Event)> = answer
            .events
            .into_iter()
            .map(|event| (revision_of(&event), event))
            .collect();
        if let Some((last, _)) = events.last() {
            self.next_revision = self.next_revision.max(last + 1);
        }
        for receiver in self.receivers.values_mut() {
            receiver.events(answer.header, &events);
        }
        let spared = self.receivers.len().saturating_sub(1) as u64;
        coalesced.inc_by(spared);
    }
}

fn revision_of(event: &Event) -> i64 {
    let pair = event.kv.as_ref().and_then(|pair| pair.decode().ok());
    pair.map_or(0, |pair| pair.mod_revision)
}

impl Receiver {
    fn created(&mut self, header: Option<ResponseHeader>, next_revision: i64) {
        // A watch that is opened again was created before, for its client.
        let Some(waiting) = self.created.take() else {
            return;
        };
        if self.next_revision == 0 {
            self.next_revision = next_revision;
        }
        self.last_header = header;
        self.stream.send(&WatchResponse {
            header,
            watch_id: self.watch_id,
            created: true,
            ..Default::default()
        });
        // Nobody waits when the client has gone.
        let _ = waiting.send(());
    }

    fn progress(&mut self, header: Option<ResponseHeader>) {
        if self.wants_progress && self.created.is_none() {
            self.last_header = header;
            self.stream.send(&WatchResponse {
                header,
                watch_id: self.watch_id,
                ..Default::default()
            });
        }
    }

    fn events(&mut self, header: Option<ResponseHeader>, events: &[(i64, Event)]) {
        let wanted: Vec<Event> = events
            .iter()
            .filter(|(revision, event)| {
                *revision >= self.next_revision && !self.filters.contains(&event.r#type())
            })
            .map(|(_, event)| event.clone())
            .collect();
        if let Some((last, _)) = events.last() {
            self.next_revision = self.next_revision.max(last + 1);
        }
        if wanted.is_empty() {
            return;
        }
        self.last_header = header;
        let answer = WatchResponse {
            header,
            watch_id: self.watch_id,
            events: wanted,
            ..Default::default()
        };
        if self.wants_fragments {
            for piece in fragments(answer) {
                self.stream.send(&piece);
            }
        } else {
            self.stream.send(&answer);
        }
    }

    /// The watch has ended, by the word of the cluster.
    fn canceled(self, answer: &WatchResponse) {
        let was_created = self.created.is_none();
        self.stream.watches.lock().opened.remove(&self.watch_id);
        self.stream.send(&WatchResponse {
            header: answer.header,
            watch_id: match was_created {
                true => self.watch_id,
                false => NO_WATCH_ID,
            },
            created: !was_created,
            canceled: true,
            compact_revision: answer.compact_revision,
            cancel_reason: text_of(&answer.cancel_reason).to_owned(),
            ..Default::default()
        });
    }
}

/// The text of an error inside a reason: a member writes the code before it, etcd's proxy does not.
fn text_of(reason: &str) -> &str {
    match reason.strip_prefix("rpc error: code = ") {
        Some(rest) => rest.split_once(" desc = ").map_or(reason, |(_, text)| text),
        None => reason,
    }
}

/// Cuts an answer that is too large between its events.
fn fragments(answer: WatchResponse) -> Vec<WatchResponse> {
    if answer.encoded_len() < FRAGMENT_BYTES {
        return vec![answer];
    }
    let empty = WatchResponse {
        events: Vec::new(),
        fragment: true,
        ..answer
    };
    let mut pieces = vec![empty.clone()];
    let mut bytes = 0;
    for event in answer.events {
        let added = event.encoded_len();
        if bytes > 0 && bytes + added >= FRAGMENT_BYTES {
            pieces.push(empty.clone());
            bytes = 0;
        }
        bytes += added;
        let piece = pieces.last_mut().expect("there is always one");
        piece.events.push(event);
    }
    let last = pieces.last_mut().expect("there is always one");
    last.fragment = false;
    pieces
}

/// The messages of a client's stream.
struct Requests<B> {
    body: B,
    received: BytesMut,
}

impl<B: RequestBody> Requests<B> {
    fn new(body: B) -> Self {
        Self {
            body,
            received: BytesMut::new(),
        }
    }

    async fn next(&mut self) -> Option<Result<WatchRequest, Status>> {
        loop {
            if self.received.len() >= PREFIX_BYTES {
                let length = match unary::message_length(&self.received, RECEIVE_BYTES_MAX) {
                    Ok(length) => length,
                    Err(status) => return Some(Err(status)),
                };
                if self.received.len() >= PREFIX_BYTES + length {
                    self.received.advance(PREFIX_BYTES);
                    let message = self.received.split_to(length).freeze();
                    return Some(WatchRequest::decode(message).map_err(|error| {
                        Status::internal(format!("grpc: error unmarshalling request: {error}"))
                    }));
                }
            }
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.received.extend_from_slice(&data);
                    }
                }
                Err(_) => return None,
            }
        }
    }
}
