//! Runs scripts on several stores at once and compares every answer with the first one's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use metastore_proto::etcdserverpb as pb;
use metastore_proto::mvccpb;
use metastore_proto::{EncodedKeyValue, KeyValue};
use parking_lot::Mutex;
use pb::response_op::Response as OperationResponse;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status};

use crate::client::{Client, decode};
use crate::patience::deadline;
use crate::script::{Step, Symbols, parse, split};

/// A watch stream is quiet when nothing came for this long. etcd looks for history to send every
/// 100 ms.
const QUIET: Duration = Duration::from_millis(150);
/// Stores whose watch streams have not become equal by then differ.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for any answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Values longer than this are shown by length and checksum.
const SHOWN_VALUE_BYTES: usize = 40;
/// A lease's remaining time may have become this much smaller between two stores.
const REMAINING_TOLERANCE_SECONDS: i64 = 3;

/// One store that runs scripts.
#[derive(Debug)]
pub struct Store {
    /// What failure messages call it.
    pub name: String,
    client: Client,
    member: u64,
    streams: BTreeMap<String, WatchStream>,
}

/// A step whose answer was not that of the first store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The steps up to and including the one that differed.
    pub script: String,
    /// The step.
    pub step: String,
    /// The first store's name and answer.
    pub expected: (String, String),
    /// The other store's name and answer.
    pub got: (String, String),
}

impl std::fmt::Display for Difference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "step      {}", self.step)?;
        writeln!(formatter, "{:<9} {}", self.expected.0, self.expected.1)?;
        writeln!(formatter, "{:<9} {}", self.got.0, self.got.1)?;
        write!(formatter, "script    {}", self.script)
    }
}

/// Runs `script` on all stores, which must have equal histories, and compares each answer.
///
/// Begins by deleting all keys and leases, and ends by comparing the watch streams and HashKV.
///
/// # Errors
///
/// The first difference. The stores' histories may differ after it: start new ones.
pub async fn compare(stores: &mut [Store], script: &str) -> Result<(), Box<Difference>> {
    let bases = join_all(stores.iter_mut().map(Store::reset)).await;
    let base = bases[0].clone();
    check(
        stores,
        "(reset)",
        "(reset)",
        &bases
            .iter()
            .map(|base| format!("{base:?}"))
            .collect::<Vec<_>>(),
    )?;
    let base = base.expect("the oracle can be reset");

    let mut done = String::new();
    for text in split(script) {
        let _ = write!(done, "{}{text}", if done.is_empty() { "" } else { "; " });
        if depends_on_what_watchers_saw(text) {
            settle(stores, &done).await?;
        }
        let answers = join_all(stores.iter_mut().map(|store| async move {
            let step = parse(
                text,
                Symbols {
                    base,
                    member: store.member,
                },
            );
            tokio::time::timeout(deadline(ANSWER_LIMIT), store.execute(step))
                .await
                .unwrap_or_else(|_| "NO ANSWER".into())
        }))
        .await;
        check(stores, &done, text, &answers)?;
    }
    settle(stores, &done).await?;
    let hashes = join_all(
        stores
            .iter_mut()
            .map(|store| store.execute(Step::HashKv(pb::HashKvRequest::default()))),
    )
    .await;
    check(stores, &done, "(final hashkv 0)", &hashes)
}

/// Whether the answer to a step depends on how far the watchers have come: etcd catches up in a loop
/// of 100 ms, so a watcher that is cancelled before saw nothing of its history.
fn depends_on_what_watchers_saw(step: &str) -> bool {
    ["settle", "compact", "cancel", "progress"]
        .iter()
        .any(|verb| step.starts_with(verb))
}

fn check(
    stores: &[Store],
    script: &str,
    step: &str,
    answers: &[String],
) -> Result<(), Box<Difference>> {
    match answers.iter().position(|answer| *answer != answers[0]) {
        None => Ok(()),
        Some(other) => Err(Box::new(Difference {
            script: script.to_owned(),
            step: step.to_owned(),
            expected: (stores[0].name.clone(), answers[0].clone()),
            got: (stores[other].name.clone(), answers[other].clone()),
        })),
    }
}

/// Waits until all watch streams are quiet; then they must be equal.
async fn settle(stores: &[Store], script: &str) -> Result<(), Box<Difference>> {
    if stores.iter().all(|store| store.streams.is_empty()) {
        return Ok(());
    }
    let start = Instant::now();
    loop {
        let quiet = stores
            .iter()
            .all(|store| store.streams.values().all(WatchStream::is_quiet));
        let seen: Vec<_> = stores.iter().map(Store::watched).collect();
        let result = check(stores, script, "(watch streams)", &seen);
        let over = start.elapsed() > deadline(SETTLE_LIMIT);
        if over || (quiet && result.is_ok() && start.elapsed() > QUIET) {
            return result;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Store {
    /// A store with nothing but `client`'s member.
    pub async fn new(name: &str, client: Client) -> Self {
        let status = crate::eventually("the member answers", ANSWER_LIMIT, || async {
            client.status().await.map_err(|error| error.to_string())
        })
        .await;
        let member = status.header.map_or(0, |header| header.member_id);
        Self {
            name: name.to_owned(),
            client,
            member,
            streams: BTreeMap::new(),
        }
    }

    /// Removes all keys, leases and watchers; returns the revision then.
    async fn reset(&mut self) -> Result<i64, String> {
        self.streams.clear();
        let mut client = self.client.clone();
        let text = |status: Status| status.to_string();
        let all = pb::AlarmRequest::default();
        let raised = client.maintenance.alarm(all).await.map_err(text)?;
        for alarm in raised.into_inner().alarms {
            let request = pb::AlarmRequest {
                action: pb::alarm_request::AlarmAction::Deactivate as i32,
                member_id: alarm.member_id,
                alarm: alarm.alarm,
            };
            client.maintenance.alarm(request).await.map_err(text)?;
        }
        let leases = client
            .lease
            .lease_leases(pb::LeaseLeasesRequest {})
            .await
            .map_err(text)?;
        for lease in leases.into_inner().leases {
            let request = pb::LeaseRevokeRequest { id: lease.id };
            client.lease.lease_revoke(request).await.map_err(text)?;
        }
        let all = Bytes::from_static(b"\0");
        let request = pb::DeleteRangeRequest {
            key: all.clone(),
            range_end: all,
            prev_kv: false,
        };
        let answer = client.kv.delete_range(request).await.map_err(text)?;
        Ok(crate::client::revision(answer.into_inner().header))
    }

    /// Sends one request and describes its answer.
    async fn execute(&mut self, step: Step) -> String {
        let mut client = self.client.clone();
        match step {
            Step::Range(request) => show(client.kv.range(request).await, range_response),
            Step::RangeStream(request) => range_stream(client, request).await,
            Step::Put(request) => show(client.kv.put(request).await, put_response),
            Step::Delete(request) => show(client.kv.delete_range(request).await, delete_response),
            Step::Txn(request) => show(client.kv.txn(request).await, txn_response),
            Step::Compact(request) => {
                let answer = client.kv.compact(request).await;
                if answer.is_ok() {
                    compaction_is_done(&self.client, request.revision).await;
                }
                show(answer, |answer| header(answer.header))
            }
            Step::Grant(request) => show(client.lease.lease_grant(request).await, |answer| {
                let id = if request.id == 0 {
                    "chosen".into()
                } else {
                    answer.id.to_string()
                };
                assert!(
                    request.id != 0 || answer.id > 0,
                    "a chosen lease id is positive"
                );
                format!(
                    "{} id={id} ttl={} {}",
                    header(answer.header),
                    answer.ttl,
                    answer.error
                )
            }),
            Step::Revoke(request) => show(client.lease.lease_revoke(request).await, |answer| {
                header(answer.header)
            }),
            Step::TimeToLive(request) => {
                show(client.lease.lease_time_to_live(request).await, time_to_live)
            }
            Step::Leases => show(
                client.lease.lease_leases(pb::LeaseLeasesRequest {}).await,
                |answer| {
                    let ids: Vec<_> = answer.leases.iter().map(|lease| lease.id).collect();
                    format!("{} {ids:?}", header(answer.header))
                },
            ),
            Step::KeepAlive(request) => keep_alive(client, request).await,
            Step::HashKv(request) => show(client.maintenance.hash_kv(request).await, |answer| {
                format!(
                    "{} hash={} compact={} at={}",
                    header(answer.header),
                    answer.hash,
                    answer.compact_revision,
                    answer.hash_revision
                )
            }),
            Step::Status => show(
                client.maintenance.status(pb::StatusRequest {}).await,
                status_response,
            ),
            Step::Watch { stream, request } => self.watch(stream, request).await,
            Step::Cancel { stream, id } => {
                let request = RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: id });
                self.send_and_wait(&stream, request).await
            }
            Step::Progress { stream } => {
                let request = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
                self.send_and_wait(&stream, request).await
            }
            Step::Close { stream } => {
                self.streams.remove(&stream);
                String::new()
            }
            Step::Settle => String::new(),
            Step::Members(request) => show(client.cluster.member_list(request).await, |answer| {
                members(self.member, answer.header, &answer.members)
            }),
            Step::MemberAdd(request) => show(client.cluster.member_add(request).await, |answer| {
                let added = answer
                    .member
                    .iter()
                    .map(|member| format!("{:?} learner={}", member.peer_ur_ls, member.is_learner));
                format!(
                    "added {:?} {}",
                    added.collect::<Vec<_>>(),
                    members(self.member, answer.header, &answer.members)
                )
            }),
            Step::MemberRemove(request) => {
                show(client.cluster.member_remove(request).await, |answer| {
                    members(self.member, answer.header, &answer.members)
                })
            }
            Step::MemberPromote(request) => {
                show(client.cluster.member_promote(request).await, |answer| {
                    members(self.member, answer.header, &answer.members)
                })
            }
            Step::MemberUpdate(request) => {
                show(client.cluster.member_update(request).await, |answer| {
                    members(self.member, answer.header, &answer.members)
                })
            }
            Step::MoveLeader(request) => {
                show(client.maintenance.move_leader(request).await, |answer| {
                    header(answer.header)
                })
            }
            Step::Alarm(request) => {
                let member = self.member;
                show(client.maintenance.alarm(request).await, |answer| {
                    let mut alarms: Vec<_> = answer
                        .alarms
                        .iter()
                        .map(|alarm| format!("{}:{}", alarm_member(alarm, member), alarm.alarm))
                        .collect();
                    alarms.sort();
                    format!("{} {alarms:?}", header(answer.header))
                })
            }
            Step::Downgrade(request) => {
                show(client.maintenance.downgrade(request).await, |answer| {
                    format!("{} version={}", header(answer.header), answer.version)
                })
            }
            Step::Defragment => {
                let request = pb::DefragmentRequest {};
                show(client.maintenance.defragment(request).await, |answer| {
                    header(answer.header)
                })
            }
            Step::Raw { path, message } => raw(client, &path, message).await,
        }
    }

    /// Creates a watcher and waits for the answer, so that later steps come after it.
    async fn watch(&mut self, stream: String, request: pb::WatchCreateRequest) -> String {
        if !self.streams.contains_key(&stream) {
            let opened = WatchStream::open(self.client.clone());
            self.streams.insert(stream.clone(), opened);
        }
        let stream = &self.streams[&stream];
        let answered = |log: &[pb::WatchResponse]| log.iter().filter(|r| r.created).count();
        let before = stream.count(answered);
        stream.send(RequestUnion::CreateRequest(request));
        match stream
            .wait(|log| answered(log) > before, ANSWER_LIMIT)
            .await
        {
            true => "answered".into(),
            false => "not answered".into(),
        }
    }

    /// Sends a request that may have no answer; gives the answer time to arrive.
    async fn send_and_wait(&self, stream: &str, request: RequestUnion) -> String {
        let stream = &self.streams[stream];
        let before = stream.count(<[_]>::len);
        stream.send(request);
        stream.wait(|log| log.len() > before, QUIET).await;
        // What came is compared with the streams.
        String::new()
    }

    /// All that the watch streams brought.
    fn watched(&self) -> String {
        let mut text = String::new();
        for (name, stream) in &self.streams {
            let _ = write!(text, "\n  stream {name}{}", stream.describe());
        }
        text
    }
}

/// A watch stream and everything that it brought.
#[derive(Debug)]
struct WatchStream {
    requests: mpsc::UnboundedSender<pb::WatchRequest>,
    seen: Arc<Mutex<Seen>>,
    reader: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Seen {
    responses: Vec<pb::WatchResponse>,
    end: Option<String>,
    last: Instant,
}

impl WatchStream {
    fn open(mut client: Client) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        let seen = Arc::new(Mutex::new(Seen {
            responses: Vec::new(),
            end: None,
            last: Instant::now(),
        }));
        let log = seen.clone();
        let reader = tokio::spawn(async move {
            let end = match client
                .watch
                .watch(UnboundedReceiverStream::new(receiver))
                .await
            {
                Err(status) => error(&status),
                Ok(answer) => {
                    let mut answers = answer.into_inner();
                    loop {
                        match answers.message().await {
                            Ok(Some(response)) => {
                                let mut log = log.lock();
                                log.responses.push(response);
                                log.last = Instant::now();
                            }
                            Ok(None) => break "ended".to_owned(),
                            Err(status) => break error(&status),
                        }
                    }
                }
            };
            log.lock().end = Some(end);
        });
        Self {
            requests,
            seen,
            reader,
        }
    }

    fn send(&self, request: RequestUnion) {
        // A stream that the server ended takes no more requests: its end is in the log.
        let _ = self.requests.send(pb::WatchRequest {
            request_union: Some(request),
        });
        self.seen.lock().last = Instant::now();
    }

    fn count(&self, of: impl Fn(&[pb::WatchResponse]) -> usize) -> usize {
        of(&self.seen.lock().responses)
    }

    fn is_quiet(&self) -> bool {
        self.seen.lock().last.elapsed() > QUIET
    }

    async fn wait(&self, ready: impl Fn(&[pb::WatchResponse]) -> bool, limit: Duration) -> bool {
        let start = Instant::now();
        loop {
            {
                let seen = self.seen.lock();
                if ready(&seen.responses) {
                    return true;
                }
                if seen.end.is_some() || start.elapsed() > deadline(limit) {
                    return false;
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// What each watcher saw, without the timing: how events are grouped into responses depends on
    /// when they were read. What does not depend on it is checked here: whole revisions, in order.
    fn describe(&self) -> String {
        let seen = self.seen.lock();
        let mut watchers: BTreeMap<i64, (Vec<String>, i64, bool)> = BTreeMap::new();
        for response in &seen.responses {
            let (lines, last, in_fragments) = watchers.entry(response.watch_id).or_default();
            if response.created {
                // Ids may be used again.
                *last = 0;
            }
            if response.created || response.canceled || response.events.is_empty() {
                lines.push(watch_control(response));
            }
            for (index, event) in response.events.iter().enumerate() {
                let pair = event.kv.as_ref().map(decode).unwrap_or_default();
                let first = index == 0 && !*in_fragments;
                if pair.mod_revision < *last || (first && pair.mod_revision == *last) {
                    lines.push(format!("VIOLATION: {} after {last}", pair.mod_revision));
                }
                if index == 0 && pair.mod_revision == *last {
                    lines.push(format!("revision {last} goes on in another fragment"));
                }
                *last = pair.mod_revision;
                lines.push(event_text(event, &pair));
            }
            *in_fragments = response.fragment;
            let revision = response.header.map_or(0, |header| header.revision);
            if !response.events.is_empty() && revision < *last {
                lines.push(format!("VIOLATION: header {revision} below event {last}"));
            }
        }
        let mut text = String::new();
        for (id, (lines, ..)) in watchers {
            for line in lines {
                let _ = write!(text, "\n    watch {id}: {line}");
            }
        }
        if let Some(end) = &seen.end {
            let _ = write!(text, "\n    {end}");
        }
        text
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Waits until the background work for a compaction is done: before, HashKV counts a tombstone at
/// the compact revision, and afterwards not. It is done when the hash of before has been stored.
async fn compaction_is_done(client: &Client, revision: i64) {
    crate::eventually("a compaction is done", ANSWER_LIMIT, || async {
        match client.hash_kv(revision).await {
            Ok(answer) if answer.compact_revision == revision => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

fn watch_control(response: &pb::WatchResponse) -> String {
    format!(
        "{}{}{} {} compact={} {}",
        if response.created { "created" } else { "" },
        if response.canceled { "canceled" } else { "" },
        if response.created || response.canceled {
            ""
        } else {
            "progress"
        },
        header(response.header),
        response.compact_revision,
        response.cancel_reason
    )
}

fn event_text(event: &mvccpb::Event, pair: &KeyValue) -> String {
    let kind = if event.r#type == 0 { "PUT" } else { "DELETE" };
    match &event.prev_kv {
        Some(previous) => format!("{kind} {} before {}", fields(pair), key_value(previous)),
        None => format!("{kind} {}", fields(pair)),
    }
}

fn show<T>(answer: Result<tonic::Response<T>, Status>, text: impl FnOnce(T) -> String) -> String {
    match answer {
        Ok(answer) => text(answer.into_inner()),
        Err(status) => error(&status),
    }
}

fn error(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// The parts of a header that do not depend on the cluster, and whether the others are there.
fn header(header: Option<pb::ResponseHeader>) -> String {
    let Some(header) = header else {
        return "no header".into();
    };
    let mut text = format!("rev={}", header.revision);
    for (missing, name) in [
        (header.cluster_id == 0, " no cluster"),
        (header.member_id == 0, " no member"),
        (header.raft_term == 0, " no term"),
    ] {
        if missing {
            text.push_str(name);
        }
    }
    text
}

fn bytes_text(bytes: &[u8]) -> String {
    if bytes.len() > SHOWN_VALUE_BYTES {
        let sum = bytes.iter().fold(0u32, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u32::from(*byte))
        });
        return format!("<{} bytes, sum {sum}>", bytes.len());
    }
    bytes.escape_ascii().to_string()
}

fn fields(pair: &KeyValue) -> String {
    format!(
        "{}={} (c{} m{} v{} l{})",
        bytes_text(&pair.key),
        bytes_text(&pair.value),
        pair.create_revision,
        pair.mod_revision,
        pair.version,
        pair.lease
    )
}

fn key_value(pair: &EncodedKeyValue) -> String {
    fields(&decode(pair))
}

fn key_values(pairs: &[EncodedKeyValue]) -> String {
    format!(
        "[{}]",
        pairs.iter().map(key_value).collect::<Vec<_>>().join(", ")
    )
}

fn range_response(answer: pb::RangeResponse) -> String {
    format!(
        "{} count={} more={} {}",
        header(answer.header),
        answer.count,
        answer.more,
        key_values(&answer.kvs)
    )
}

/// The merged stream. How it is cut into messages is etcd's own choice, but only the last may carry
/// header, count and more.
async fn range_stream(mut client: Client, request: pb::RangeRequest) -> String {
    let mut messages = match client.kv.range_stream(request).await {
        Err(status) => return error(&status),
        Ok(answer) => answer.into_inner(),
    };
    let mut merged = pb::RangeResponse::default();
    let mut text = String::new();
    while let Some(message) = messages.next().await {
        let part = match message {
            Err(status) => return error(&status),
            Ok(message) => message.range_response.unwrap_or_default(),
        };
        if merged.header.is_some() {
            text.push_str("a message follows the last; ");
        }
        merged.header = part.header;
        merged.count = part.count;
        merged.more = part.more;
        merged.kvs.extend(part.kvs);
    }
    text + &range_response(merged)
}

fn put_response(answer: pb::PutResponse) -> String {
    let previous = answer
        .prev_kv
        .as_ref()
        .map_or_else(|| "-".into(), key_value);
    format!("{} prev={previous}", header(answer.header))
}

fn delete_response(answer: pb::DeleteRangeResponse) -> String {
    format!(
        "{} deleted={} {}",
        header(answer.header),
        answer.deleted,
        key_values(&answer.prev_kvs)
    )
}

fn txn_response(answer: pb::TxnResponse) -> String {
    let operations: Vec<_> = answer
        .responses
        .into_iter()
        .map(|operation| match operation.response {
            None => "nothing".into(),
            Some(OperationResponse::ResponseRange(answer)) => range_response(answer),
            Some(OperationResponse::ResponsePut(answer)) => put_response(answer),
            Some(OperationResponse::ResponseDeleteRange(answer)) => delete_response(answer),
            Some(OperationResponse::ResponseTxn(answer)) => txn_response(answer),
        })
        .collect();
    format!(
        "{} succeeded={} ({})",
        header(answer.header),
        answer.succeeded,
        operations.join("; ")
    )
}

fn time_to_live(answer: pb::LeaseTimeToLiveResponse) -> String {
    let age = answer.granted_ttl - answer.ttl;
    let remaining = if answer.granted_ttl > 0 && (0..=REMAINING_TOLERANCE_SECONDS).contains(&age) {
        "all of it".into()
    } else {
        answer.ttl.to_string()
    };
    // etcd keeps them in a map without order.
    let mut keys: Vec<_> = answer.keys.iter().map(|key| bytes_text(key)).collect();
    keys.sort();
    format!(
        "{} id={} granted={} remaining={remaining} {keys:?}",
        header(answer.header),
        answer.id,
        answer.granted_ttl
    )
}

async fn keep_alive(mut client: Client, request: pb::LeaseKeepAliveRequest) -> String {
    // The request stream stays open until the answer is here.
    let (sender, receiver) = mpsc::unbounded_channel();
    let _ = sender.send(request);
    let answer = match client
        .lease
        .lease_keep_alive(UnboundedReceiverStream::new(receiver))
        .await
    {
        Err(status) => return error(&status),
        Ok(answer) => answer.into_inner().message().await,
    };
    match answer {
        Err(status) => error(&status),
        Ok(None) => "ended".into(),
        Ok(Some(answer)) => {
            format!(
                "{} id={} ttl={}",
                header(answer.header),
                answer.id,
                answer.ttl
            )
        }
    }
}

fn alarm_member(alarm: &pb::AlarmMember, own: u64) -> String {
    if alarm.member_id == own {
        return "self".to_owned();
    }
    alarm.member_id.to_string()
}

/// Errors of a status, in an order. Go's protobuf puts one or two spaces between fields, so that
/// nobody relies on it.
fn errors(errors: &[String], own: u64) -> Vec<String> {
    let mut errors: Vec<_> = errors
        .iter()
        .map(|error| {
            let words: Vec<_> = error.split_whitespace().collect();
            words.join(" ").replace(&own.to_string(), "self")
        })
        .collect();
    errors.sort();
    errors
}

fn status_response(answer: pb::StatusResponse) -> String {
    let own = answer.header.map_or(0, |header| header.member_id);
    format!(
        "{} version={} leader_is_self={} learner={} errors={:?} storage={} quota={} \
         size>0={} used<=size={} index>=applied={} applied>0={} term_is_headers={} downgrade={:?}",
        header(answer.header),
        answer.version,
        answer.leader == own,
        answer.is_learner,
        errors(&answer.errors, own),
        answer.storage_version,
        answer.db_size_quota,
        answer.db_size > 0,
        0 < answer.db_size_in_use && answer.db_size_in_use <= answer.db_size,
        answer.raft_index >= answer.raft_applied_index,
        answer.raft_applied_index > 0,
        answer
            .header
            .is_some_and(|header| header.raft_term == answer.raft_term),
        answer.downgrade_info,
    )
}

/// Member lists without ids and without the ports that each fixture chose.
fn members(own: u64, head: Option<pb::ResponseHeader>, members: &[pb::Member]) -> String {
    let sorted = members.windows(2).all(|pair| pair[0].id < pair[1].id);
    let mut lines: Vec<_> = members
        .iter()
        .map(|member| {
            let urls = if member.id == own {
                format!(
                    "own, {} and {} URLs",
                    member.peer_ur_ls.len(),
                    member.client_ur_ls.len()
                )
            } else {
                format!("{:?} {:?}", member.peer_ur_ls, member.client_ur_ls)
            };
            format!("{:?} learner={} {urls}", member.name, member.is_learner)
        })
        .collect();
    lines.sort();
    format!("{} sorted={sorted} {lines:?}", header(head))
}

/// Sends bytes that need not be a valid message. Texts of the gRPC libraries differ, their codes do
/// not.
async fn raw(client: Client, path: &str, message: Bytes) -> String {
    let mut grpc = tonic::client::Grpc::new(client.channel);
    if let Err(failure) = grpc.ready().await {
        return format!("no connection: {failure}");
    }
    let path = path.parse().expect("a path");
    match grpc
        .unary(tonic::Request::new(message), path, BytesCodec)
        .await
    {
        Ok(_) => format!("{:?}", Code::Ok),
        Err(status) => format!("{:?}", status.code()),
    }
}

/// Sends and receives messages as they are.
#[derive(Clone, Copy, Debug)]
struct BytesCodec;

impl tonic::codec::Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl tonic::codec::Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(
        &mut self,
        item: Bytes,
        buffer: &mut tonic::codec::EncodeBuf<'_>,
    ) -> Result<(), Status> {
        bytes::BufMut::put(buffer, item);
        Ok(())
    }
}

impl tonic::codec::Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(
        &mut self,
        buffer: &mut tonic::codec::DecodeBuf<'_>,
    ) -> Result<Option<Bytes>, Status> {
        let length = bytes::Buf::remaining(buffer);
        Ok(Some(bytes::Buf::copy_to_bytes(buffer, length)))
    }
}
