//! Clients of the simulated cluster, and what they saw.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use metastore_consensus::ProposeError;
use metastore_proto::etcdserverpb as pb;
use metastore_proto::internal::{Command, command};
use metastore_proto::mvccpb::Event;
use metastore_proto::mvccpb::event::EventType;
use metastore_store::{CommandResponse, CommandResult};
use metastore_tests::history::{Action, Change, Recorded, Value, WatchRecord, WatchSeen};
use parking_lot::Mutex;
use pb::request_op::Request as Op;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, oneshot};

use crate::administrator::Changes;
use crate::leases::LeaseEnds;
use crate::member::{Door, Request, Running};

const KEYS: u32 = 4;
/// A call that takes longer has an unknown outcome.
const CALL_LIMIT: Duration = Duration::from_millis(800);
/// Members asked before a write is given up that nobody wanted to take.
const ATTEMPTS_MAX: u32 = 6;
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// Longest pause between two operations, in milliseconds.
const PAUSE_MAX: u64 = 30;

/// What the clients of one simulation share.
pub(crate) struct Shared {
    pub(crate) doors: Vec<Door>,
    pub(crate) stop: AtomicBool,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) operations: Mutex<Vec<Recorded>>,
    pub(crate) watches: Mutex<Vec<WatchRecord>>,
    /// What the administrator did.
    pub(crate) changes: Changes,
    pub(crate) lease_ends: Arc<LeaseEnds>,
    /// Everything happens on one thread, so a counter is a clock that never stands still.
    stamps: AtomicI64,
    values: AtomicU64,
}

impl Shared {
    pub(crate) fn new(doors: Vec<Door>, lease_ends: Arc<LeaseEnds>) -> Self {
        Self {
            doors,
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            operations: Mutex::default(),
            watches: Mutex::default(),
            changes: Changes::default(),
            lease_ends,
            stamps: AtomicI64::new(1),
            values: AtomicU64::new(1),
        }
    }

    /// A member that is up, if there is one.
    pub(crate) fn some_door(&self, random: &mut StdRng) -> Door {
        let open = |door: &&Door| door.lock().is_some();
        let open: Vec<&Door> = self.doors.iter().filter(open).collect();
        match open.len() {
            0 => self.doors[0].clone(),
            count => open[random.random_range(0..count)].clone(),
        }
    }

    fn stamp(&self) -> i64 {
        self.stamps.fetch_add(1, Ordering::Relaxed)
    }
}

/// Runs something on a member. `None`: it is down, ended meanwhile, or did not answer in time; what
/// was asked may have happened.
pub(crate) async fn ask<T: Send + 'static>(
    door: &Door,
    run: impl FnOnce(Arc<Running>) -> BoxFuture<'static, T> + Send + 'static,
) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    let request: Request = Box::new(move |running| {
        Box::pin(async move {
            // The client may have given up.
            let _ = answer.send(run(running).await);
        })
    });
    door.lock().as_ref()?.send(request).ok()?;
    tokio::time::timeout(CALL_LIMIT, answered).await.ok()?.ok()
}

/// What became of a write.
enum Written {
    Answered(CommandResult),
    Unknown,
    NotProposed,
}

struct Client {
    shared: Arc<Shared>,
    id: u32,
    random: StdRng,
    /// Mod revisions that were seen, for swaps.
    seen: HashMap<String, i64>,
}

/// One client, until it is told to stop.
pub(crate) async fn client(shared: Arc<Shared>, id: u32, seed: u64) {
    let random = StdRng::seed_from_u64(seed.wrapping_add(u64::from(id) << 32));
    let mut client = Client {
        shared,
        id,
        random,
        seen: HashMap::new(),
    };
    while !client.shared.stop.load(Ordering::Relaxed) {
        client.operate().await;
        let pause = client.random.random_range(1..=PAUSE_MAX);
        // Virtual time between two operations.
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

impl Client {
    async fn operate(&mut self) {
        let key = format!("key{}", self.random.random_range(0..KEYS));
        let call = self.shared.stamp();
        let action = match self.random.random_range(0..10) {
            0..4 => self.get(&key).await,
            4..7 => self.put(&key).await,
            7..9 => self.swap(&key).await,
            _ => self.delete(&key).await,
        };
        let Some(action) = action else { return };
        let end = self.shared.stamp();
        let recorded = Recorded {
            client: self.id,
            call,
            end,
            key,
            action,
        };
        self.shared.operations.lock().push(recorded);
    }

    fn next_value(&self) -> (Value, Bytes) {
        let value = self.shared.values.fetch_add(1, Ordering::Relaxed);
        (value, value.to_string().into())
    }

    fn some_door(&mut self) -> Door {
        self.shared.some_door(&mut self.random)
    }

    async fn get(&mut self, key: &str) -> Option<Action> {
        let request = pb::RangeRequest {
            key: key.to_owned().into(),
            ..Default::default()
        };
        let door = self.some_door();
        let response = ask(&door, move |running| {
            Box::pin(async move {
                let read = running.consensus.read_index().await.ok()?;
                running.consensus.wait_applied(read.index).await;
                Some(
                    running
                        .machine
                        .reader()
                        .range(&request)
                        .expect("a valid read"),
                )
            })
        });
        let response = response.await??;
        let revision = response.header.expect("answers have headers").revision;
        let seen = response.kvs.first().map(|pair| {
            let pair = pair.decode().expect("the store's own pair");
            (value_of(&pair.value), pair.mod_revision)
        });
        self.seen
            .insert(key.to_owned(), seen.map_or(0, |(_, revision)| revision));
        Some(Action::Get { seen, revision })
    }

    async fn put(&mut self, key: &str) -> Option<Action> {
        let (value, bytes) = self.next_value();
        let request = pb::PutRequest {
            key: key.to_owned().into(),
            value: bytes,
            ..Default::default()
        };
        let revision = match self.write(command::Request::Put(request)).await {
            Written::NotProposed => return None,
            Written::Unknown => None,
            Written::Answered(Ok(CommandResponse::Put(response))) => {
                let revision = response.header.expect("answers have headers").revision;
                self.seen.insert(key.to_owned(), revision);
                Some(revision)
            }
            Written::Answered(other) => panic!("a put was answered with {other:?}"),
        };
        Some(Action::Put { value, revision })
    }

    async fn swap(&mut self, key: &str) -> Option<Action> {
        let (value, bytes) = self.next_value();
        let expected = self.seen.get(key).copied().unwrap_or(0);
        let put = pb::PutRequest {
            key: key.to_owned().into(),
            value: bytes,
            ..Default::default()
        };
        let request = pb::TxnRequest {
            compare: vec![pb::Compare {
                result: pb::compare::CompareResult::Equal.into(),
                target: pb::compare::CompareTarget::Mod.into(),
                key: key.to_owned().into(),
                target_union: Some(pb::compare::TargetUnion::ModRevision(expected)),
                ..Default::default()
            }],
            success: vec![pb::RequestOp {
                request: Some(Op::RequestPut(put)),
            }],
            failure: Vec::new(),
        };
        let answer = match self.write(command::Request::Txn(request)).await {
            Written::NotProposed => return None,
            Written::Unknown => None,
            Written::Answered(Ok(CommandResponse::Txn(response))) => {
                let revision = response.header.expect("answers have headers").revision;
                if response.succeeded {
                    self.seen.insert(key.to_owned(), revision);
                }
                Some((response.succeeded, revision))
            }
            Written::Answered(other) => panic!("a txn was answered with {other:?}"),
        };
        Some(Action::Swap {
            expected,
            value,
            answer,
        })
    }

    async fn delete(&mut self, key: &str) -> Option<Action> {
        let request = pb::DeleteRangeRequest {
            key: key.to_owned().into(),
            ..Default::default()
        };
        let answer = match self.write(command::Request::DeleteRange(request)).await {
            Written::NotProposed => return None,
            Written::Unknown => None,
            Written::Answered(Ok(CommandResponse::DeleteRange(response))) => {
                let revision = response.header.expect("answers have headers").revision;
                Some((response.deleted > 0, revision))
            }
            Written::Answered(other) => panic!("a delete was answered with {other:?}"),
        };
        Some(Action::Delete { answer })
    }

    /// Proposes at one member after the other until one takes it.
    async fn write(&mut self, request: command::Request) -> Written {
        let command = Command {
            request: Some(request),
            ..Default::default()
        };
        let command = Bytes::from(command.encode_to_vec());
        let mut door = self.some_door();
        for _ in 0..ATTEMPTS_MAX {
            if door.lock().is_none() {
                door = self.some_door();
                continue;
            }
            let proposal = command.clone();
            let answer = ask(&door, move |running| {
                Box::pin(async move { running.consensus.propose(proposal).await })
            });
            match answer.await {
                Some(Ok(reply)) => {
                    self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                    let result = reply.downcast::<CommandResult>();
                    return Written::Answered(*result.expect("the machine answers so"));
                }
                Some(Err(ProposeError::NotLeader { leader })) => {
                    door = match leader {
                        Some(leader) => self.shared.doors[leader as usize - 1].clone(),
                        None => self.some_door(),
                    };
                    // Virtual time for an election.
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Some(Err(ProposeError::Unknown | ProposeError::Stopped)) | None => {
                    return Written::Unknown;
                }
            }
        }
        Written::NotProposed
    }
}

/// Longest time that a watcher stays with one member, in milliseconds.
const WATCH_STAY_MAX: u64 = 3_000;

/// One watcher of everything, until it is told to stop. It goes to another member when its own ends,
/// and sometimes without a reason, and resumes there behind the last revision that it saw.
pub(crate) async fn watcher(shared: Arc<Shared>, id: u32, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed.wrapping_sub((1 + u64::from(id)) << 32));
    let mut next = 1;
    while !shared.stop.load(Ordering::Relaxed) {
        let at = random.random_range(0..shared.doors.len());
        let (seen, mut responses) = mpsc::unbounded_channel();
        let request: Request = Box::new(move |running| {
            Box::pin(async move { running.machine.watch(next, seen).await })
        });
        let sent = match &*shared.doors[at].lock() {
            Some(door) => door.send(request).is_ok(),
            None => false,
        };
        if !sent {
            // Virtual time until another member may be up.
            tokio::time::sleep(RETRY_PAUSE).await;
            continue;
        }
        let place = {
            let mut watches = shared.watches.lock();
            watches.push(WatchRecord {
                name: format!("member {}", at + 1),
                prefix: String::new(),
                start_revision: next,
                with_previous: true,
                responses: Vec::new(),
            });
            watches.len() - 1
        };
        let stay = Duration::from_millis(random.random_range(1..=WATCH_STAY_MAX));
        // Ends early when the member does.
        let _ = tokio::time::timeout(stay, async {
            while let Some(output) = responses.recv().await {
                let response = output.to_response(0, 0, 0);
                assert!(!response.canceled, "nothing was compacted: {response:?}");
                if response.created {
                    continue;
                }
                let changes: Vec<Change> = response.events.iter().map(change).collect();
                next = changes.last().map_or(next, |last| last.revision + 1);
                let revision = output.header_revision;
                shared.watches.lock()[place]
                    .responses
                    .push(WatchSeen { revision, changes });
            }
        })
        .await;
    }
}

fn change(event: &Event) -> Change {
    let pair = event
        .kv
        .as_ref()
        .expect("events have a pair")
        .decode()
        .expect("the store's own pair");
    let previous = event
        .prev_kv
        .as_ref()
        .map(|pair| pair.decode().expect("the store's own pair"));
    let deleted = event.r#type() == EventType::Delete;
    Change {
        revision: pair.mod_revision,
        key: String::from_utf8(pair.key.to_vec()).expect("a client's key"),
        value: (!deleted).then(|| value_of(&pair.value)),
        created: !deleted && pair.create_revision == pair.mod_revision,
        previous: previous.map(|pair| value_of(&pair.value)),
    }
}

/// The number that a value is.
pub(crate) fn value_of(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse().ok())
        .expect("a client's value")
}
