//! Clients that write, read and watch while something breaks, and record what they see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metastore_proto::etcdserverpb as pb;
use metastore_proto::mvccpb;
use pb::request_op::Request;
use pb::watch_request::RequestUnion;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use crate::client::{Client, decode, revision, surely_not_done};
use crate::history::{Action, Change, History, Recorded, Value, WatchRecord, WatchSeen};
use crate::patience::eventually;

/// All keys of the load begin with it.
pub const PREFIX: &str = "load/";
/// A call that takes longer has an unknown outcome.
const CALL_LIMIT: Duration = Duration::from_millis(1500);
/// After a failed call, before the next member is asked.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// A store that lives again answers within this time.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
/// How often a watcher asks for progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What the load is made of.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Clients that write and read.
    pub clients: u32,
    /// Keys that they share.
    pub keys: u32,
    /// Pause of each client between two operations.
    pub pause: Duration,
    /// Seed of what they do.
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            clients: 8,
            keys: 6,
            pause: Duration::from_millis(4),
            seed: crate::seed(),
        }
    }
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Vec<Recorded>>>,
    watchers: Vec<JoinHandle<Vec<WatchRecord>>>,
    options: LoadOptions,
}

#[derive(Debug)]
struct Shared {
    endpoints: Vec<String>,
    watched: Vec<String>,
    start: Instant,
    stop: AtomicBool,
    last_revision: AtomicU64,
    next_value: AtomicU64,
    acknowledged: AtomicU64,
}

impl Shared {
    fn now(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_nanos()).expect("tests are shorter than 292 years")
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Load {
    /// Starts clients over all endpoints, and one watcher for each endpoint.
    pub fn start(endpoints: Vec<String>, options: LoadOptions) -> Self {
        Self::start_beside(endpoints.clone(), endpoints, options)
    }

    /// As [`start`](Self::start), with the watchers somewhere else: they need answers about their progress.
    pub fn start_beside(
        endpoints: Vec<String>,
        watched: Vec<String>,
        options: LoadOptions,
    ) -> Self {
        let shared = Arc::new(Shared {
            endpoints,
            watched,
            start: Instant::now(),
            stop: AtomicBool::new(false),
            last_revision: AtomicU64::new(u64::MAX),
            next_value: AtomicU64::new(1),
            acknowledged: AtomicU64::new(0),
        });
        let clients = (0..options.clients)
            .map(|id| tokio::spawn(client(shared.clone(), id, options)))
            .collect();
        let watchers = (0..shared.watched.len())
            .map(|at| tokio::spawn(watcher(shared.clone(), at)))
            .collect();
        Self {
            shared,
            clients,
            watchers,
            options,
        }
    }

    /// How many writes were acknowledged up to now.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until `count` more writes were acknowledged: the store works.
    pub async fn progress(&self, count: u64, reason: &str) {
        let before = self.acknowledged();
        eventually(reason, RECOVERY_LIMIT, || async {
            let now = self.acknowledged();
            if now >= before + count {
                Ok(())
            } else {
                Err(format!("{} writes", now - before))
            }
        })
        .await;
    }

    /// Stops the load and reads the whole history from the store, all of whose members must live.
    pub async fn stop(self) -> History {
        self.shared.stop.store(true, Ordering::Relaxed);
        let id = self.options.clients;
        let mut operations = Vec::new();
        for client in self.clients {
            operations.extend(client.await.expect("a client does not panic"));
        }
        let client = Client::with_timeout(&self.shared.endpoints[0], CALL_LIMIT);
        let mut tries = Vec::new();
        let last = eventually("the last write is acknowledged", RECOVERY_LIMIT, || {
            let value = self.shared.next_value.fetch_add(1, Ordering::Relaxed);
            // Each try has a key of its own, so that one which was lost is told from a repetition.
            let key = format!("{PREFIX}~{value}");
            let action = Action::Put {
                value,
                revision: None,
            };
            let call = self.shared.now();
            tries.push(Recorded {
                client: id,
                call,
                end: call,
                key: key.clone(),
                action,
            });
            let client = &client;
            async move {
                client
                    .put(key, value.to_string())
                    .await
                    .map_err(|e| e.to_string())
            }
        })
        .await;
        if let Some(done) = tries.last_mut() {
            done.end = self.shared.now();
            if let Action::Put { revision, .. } = &mut done.action {
                *revision = Some(last);
            }
        }
        operations.extend(tries);
        self.shared
            .last_revision
            .store(last.unsigned_abs(), Ordering::Relaxed);
        let mut watches = Vec::new();
        for watcher in self.watchers {
            let seen = tokio::time::timeout(crate::deadline(RECOVERY_LIMIT), watcher)
                .await
                .expect("each watcher reaches the last revision")
                .expect("a watcher does not panic");
            watches.extend(seen);
        }
        let record = watch_until(&self.shared, &self.shared.watched[0], 1)
            .await
            .expect("a healthy member");
        let events = record
            .responses
            .into_iter()
            .flat_map(|response| response.changes)
            .collect();
        History {
            operations,
            events,
            watches,
        }
    }

    /// As [`stop`](Self::stop), and checks the history.
    ///
    /// # Panics
    ///
    /// When it is wrong; names the seed.
    pub async fn stop_and_check(self) -> History {
        let seed = self.options.seed;
        let history = self.stop().await;
        let result = history
            .check_operations()
            .and_then(|()| history.check_watches());
        if let Err(broken) = result {
            let mut shown = broken;
            shown.truncate(20_000);
            panic!(
                "SEED={seed} ({} operations): {shown}",
                history.operations.len()
            );
        }
        history
    }
}

async fn client(shared: Arc<Shared>, id: u32, options: LoadOptions) -> Vec<Recorded> {
    let mut random = StdRng::seed_from_u64(options.seed.wrapping_add(u64::from(id)));
    let clients: Vec<_> = shared
        .endpoints
        .iter()
        .map(|endpoint| Client::with_timeout(endpoint, CALL_LIMIT))
        .collect();
    let mut at = usize::try_from(id).expect("few clients");
    let mut known: Vec<i64> = vec![0; usize::try_from(options.keys).expect("few keys")];
    let mut recorded = Vec::new();
    let mut pace = tokio::time::interval(options.pause);
    while !shared.stopped() {
        pace.tick().await;
        let number = random.random_range(0..known.len());
        let key = format!("{PREFIX}{number}");
        let value = shared.next_value.fetch_add(1, Ordering::Relaxed);
        let client = &clients[at % clients.len()];
        let call = shared.now();
        let answer = match random.random_range(0..20) {
            0..8 => put(client, &key, value).await,
            8..14 => get(client, &key).await,
            14..19 => swap(client, &key, known[number], value).await,
            _ => delete(client, &key).await,
        };
        let end = shared.now();
        let action = match answer {
            Ok(action) => {
                if !matches!(action, Action::Get { .. }) {
                    shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                action
            }
            Err((status, action)) => {
                // Another member may live.
                at += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
                match action {
                    Some(action) if !surely_not_done(&status) => action,
                    _ => continue,
                }
            }
        };
        match action {
            Action::Get { seen, .. } => known[number] = seen.map_or(0, |(_, revision)| revision),
            Action::Put {
                revision: Some(revision),
                ..
            }
            | Action::Swap {
                answer: Some((true, revision)),
                ..
            } => known[number] = revision,
            _ => {}
        }
        recorded.push(Recorded {
            client: id,
            call,
            end,
            key,
            action,
        });
    }
    recorded
}

/// What was done; or why not, and what may have been done nevertheless.
type Done = Result<Action, (Status, Option<Action>)>;

async fn put(client: &Client, key: &str, value: Value) -> Done {
    match client.put(key.to_owned(), value.to_string()).await {
        Ok(revision) => Ok(Action::Put {
            value,
            revision: Some(revision),
        }),
        Err(status) => Err((
            status,
            Some(Action::Put {
                value,
                revision: None,
            }),
        )),
    }
}

async fn get(client: &Client, key: &str) -> Done {
    match client.get(key.to_owned()).await {
        Ok((pair, revision)) => {
            let seen = pair.map(|pair| (number(&pair.value), pair.mod_revision));
            Ok(Action::Get { seen, revision })
        }
        Err(status) => Err((status, None)),
    }
}

async fn swap(client: &Client, key: &str, expected: i64, value: Value) -> Done {
    let compare = pb::Compare {
        result: pb::compare::CompareResult::Equal.into(),
        target: pb::compare::CompareTarget::Mod.into(),
        key: Bytes::from(key.to_owned()),
        target_union: Some(pb::compare::TargetUnion::ModRevision(expected)),
        ..Default::default()
    };
    let put = pb::PutRequest {
        key: Bytes::from(key.to_owned()),
        value: value.to_string().into(),
        ..Default::default()
    };
    let request = pb::TxnRequest {
        compare: vec![compare],
        success: vec![pb::RequestOp {
            request: Some(Request::RequestPut(put)),
        }],
        failure: Vec::new(),
    };
    match client.kv.clone().txn(request).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            let answer = Some((answer.succeeded, revision(answer.header)));
            Ok(Action::Swap {
                expected,
                value,
                answer,
            })
        }
        Err(status) => Err((
            status,
            Some(Action::Swap {
                expected,
                value,
                answer: None,
            }),
        )),
    }
}

async fn delete(client: &Client, key: &str) -> Done {
    let request = pb::DeleteRangeRequest {
        key: Bytes::from(key.to_owned()),
        ..Default::default()
    };
    match client.kv.clone().delete_range(request).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            Ok(Action::Delete {
                answer: Some((answer.deleted == 1, revision(answer.header))),
            })
        }
        Err(status) => Err((status, Some(Action::Delete { answer: None }))),
    }
}

fn number(value: &[u8]) -> Value {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .expect("our own values")
}

/// Watches at one member until the last revision, resuming when the stream breaks.
async fn watcher(shared: Arc<Shared>, at: usize) -> Vec<WatchRecord> {
    let mut records: Vec<WatchRecord> = Vec::new();
    let mut next = 1;
    loop {
        let record = watch_until(&shared, &shared.watched[at], next).await;
        let complete = record.is_ok();
        let record = record.unwrap_or_else(|record| record);
        if let Some(last) = record
            .responses
            .iter()
            .flat_map(|seen| &seen.changes)
            .next_back()
        {
            next = last.revision + 1;
        }
        records.push(record);
        if complete {
            return records;
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// One watch from `start_revision` until the last revision of the load.
///
/// # Errors
///
/// The record up to the point where the stream broke.
async fn watch_until(
    shared: &Shared,
    endpoint: &str,
    start_revision: i64,
) -> Result<WatchRecord, WatchRecord> {
    let mut record = WatchRecord {
        name: endpoint.to_owned(),
        prefix: PREFIX.into(),
        start_revision,
        with_previous: true,
        responses: Vec::new(),
    };
    let mut client = Client::new(endpoint);
    let (requests, receiver) = mpsc::unbounded_channel();
    let create = pb::WatchCreateRequest {
        key: Bytes::from_static(PREFIX.as_bytes()),
        range_end: Bytes::from_static(b"load0"),
        start_revision,
        prev_kv: true,
        ..Default::default()
    };
    let send = |request| {
        let _ = requests.send(pb::WatchRequest {
            request_union: Some(request),
        });
    };
    send(RequestUnion::CreateRequest(create));
    let mut answers = match client
        .watch
        .watch(UnboundedReceiverStream::new(receiver))
        .await
    {
        Ok(answers) => answers.into_inner(),
        Err(_) => return Err(record),
    };
    let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
    loop {
        let response = tokio::select! {
            response = answers.message() => response,
            _ = progress.tick() => {
                send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
                continue;
            }
        };
        let Ok(Some(response)) = response else {
            return Err(record);
        };
        assert!(
            !response.canceled,
            "{endpoint} cancelled a watch from {start_revision}: {} (compact revision {})",
            response.cancel_reason, response.compact_revision
        );
        if response.created {
            continue;
        }
        let changes: Vec<_> = response.events.iter().map(change).collect();
        // A progress notification tells that everything up to its revision has come.
        let header = revision(response.header);
        let seen = changes.last().map_or(header, |change| change.revision);
        record.responses.push(WatchSeen {
            revision: header,
            changes,
        });
        if seen.unsigned_abs() >= shared.last_revision.load(Ordering::Relaxed) {
            return Ok(record);
        }
    }
}

fn change(event: &mvccpb::Event) -> Change {
    let pair = event.kv.as_ref().map(decode).unwrap_or_default();
    Change {
        revision: pair.mod_revision,
        key: String::from_utf8_lossy(&pair.key).into_owned(),
        value: (event.r#type == 0).then(|| number(&pair.value)),
        created: pair.version == 1,
        previous: event
            .prev_kv
            .as_ref()
            .map(|previous| number(&decode(previous).value)),
    }
}
