//! Random clients, changes, compactions and interleavings against the nine guarantees of a watch:
//! ordered, unique, atomic, reliable, resumable, bookmarkable, and right in previous values,
//! creations and filters.
//!
//! `WATCH_SEED=<n>` repeats one run; `WATCH_RUNS=<n>` makes more of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use fixture::*;
use metastore_proto::EncodedKeyValue;
use metastore_proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use metastore_proto::internal::command::Request;
use metastore_proto::mvccpb::Event;
use metastore_revision_model::{KeyRange, Revision};
use metastore_store::{EngineError, EventScan, Reader};
use metastore_watch::{History, HistoryError, Hub, HubOptions};

const RUNS: u64 = 150;
const STEPS: usize = 600;
const CLIENTS: usize = 4;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

type Interruption = Box<dyn FnOnce(&Hub) + Send>;

/// What happens while a scan of the history runs, without the hub's lock.
#[derive(Clone, Default)]
struct Interruptions {
    hub: Arc<OnceLock<Hub>>,
    list: Arc<Mutex<Vec<Interruption>>>,
}

impl Interruptions {
    fn run_some(&self, all: bool) {
        let mut list = std::mem::take(&mut *self.list.lock().unwrap());
        let later = if all {
            Vec::new()
        } else {
            list.split_off(list.len() / 2)
        };
        self.list.lock().unwrap().extend(later);
        for interruption in list {
            interruption(self.hub.get().unwrap());
        }
    }
}

struct InterruptedReader {
    reader: Reader,
    interruptions: Interruptions,
}

impl History for InterruptedReader {
    fn revision(&self) -> i64 {
        self.reader.revision()
    }

    fn compact_revision(&self) -> i64 {
        self.reader.compact_revision()
    }

    fn events(
        &self,
        from: i64,
        to: i64,
        max_bytes: usize,
        wanted: &dyn Fn(&[u8]) -> bool,
        with_previous: bool,
    ) -> Result<EventScan, HistoryError> {
        self.interruptions.run_some(false);
        let scan = History::events(&self.reader, from, to, max_bytes, wanted, with_previous);
        self.interruptions.run_some(true);
        scan
    }

    fn previous_key_value(
        &self,
        previous: Revision,
    ) -> Result<Option<EncodedKeyValue>, EngineError> {
        self.reader.previous_key_value(previous)
    }

    fn want_previous(&self, wanted: bool) {
        self.reader.want_previous(wanted);
    }
}

/// An event as a watcher with `prev_kv` has to see it.
struct Expected {
    key: Bytes,
    event: Event,
}

/// A watcher as its client knows it.
struct Watcher {
    request: WatchCreateRequest,
    range: KeyRange,
    /// First revision from which events are still to come.
    cursor: i64,
    /// Its start was compacted when it was created: it must get nothing but the cancellation.
    compacted: bool,
    parts: Vec<Event>,
}

struct SimulatedClient {
    client: Client,
    asked: VecDeque<(WatchCreateRequest, bool)>,
    watchers: HashMap<i64, Watcher>,
}

struct Simulation {
    random: Random,
    store: Fixture,
    interruptions: Interruptions,
    clients: Vec<SimulatedClient>,
    /// By revision.
    expected: BTreeMap<i64, Vec<Expected>>,
    /// The present pairs.
    pairs: HashMap<Bytes, EncodedKeyValue>,
    now: Duration,
    /// Reads nothing before the end, if there is one.
    stalled_client: Option<usize>,
    queue_bytes: usize,
    history_bytes_max: usize,
    largest_revision_bytes: usize,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let queue_bytes = random.pick(&[1_000, 5_000, 1 << 20]);
        let history_bytes_max = random.pick(&[0, 3_000, 1 << 20]);
        let options = HubOptions {
            stream_queue_bytes_max: queue_bytes,
            history_bytes_max,
            recent_events_max: random.pick(&[0, 10, 100, 10_000]),
            recent_bytes_max: 1 << 20,
            inbox_bytes_max: random.pick(&[500, 5_000, 1 << 20]),
            fragment_bytes: random.pick(&[200, 1_000, 1 << 20]),
            progress_interval: Duration::from_secs(1),
        };
        let stalled_client = random.chance(50).then_some(0);
        let interruptions = Interruptions::default();
        let store = Fixture::with_history(options, |reader| InterruptedReader {
            reader,
            interruptions: interruptions.clone(),
        });
        let _ = interruptions.hub.set(store.hub.clone());
        let mut simulation = Self {
            random,
            store,
            interruptions,
            clients: Vec::new(),
            expected: BTreeMap::new(),
            pairs: HashMap::new(),
            now: Duration::ZERO,
            stalled_client,
            queue_bytes,
            history_bytes_max,
            largest_revision_bytes: 0,
        };
        for _ in 0..CLIENTS {
            let client = simulation.new_client();
            simulation.clients.push(client);
        }
        simulation
    }

    fn new_client(&self) -> SimulatedClient {
        SimulatedClient {
            client: self.store.client(),
            asked: VecDeque::new(),
            watchers: HashMap::new(),
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..25 => self.change(),
            25..40 => self.store.publish(),
            40..55 => {
                self.store.hub.dispatch_step().unwrap();
            }
            55..70 => self.catch_up(),
            70..76 => self.create(),
            76..79 => self.cancel(),
            79..82 => {
                let client = self.random.below(CLIENTS);
                self.clients[client].client.stream.request_progress();
            }
            82..94 => {
                let client = self.random.below(CLIENTS);
                let count = self.random.pick(&[1, 3, 100]);
                if self.stalled_client != Some(client) {
                    self.read(client, count);
                }
            }
            94 => self.compact(),
            95 => {
                self.store.reader.collect_garbage_step(10).unwrap();
            }
            96 | 97 => {
                self.now += Duration::from_millis(700);
                self.store.hub.tick(self.now);
            }
            98 if self.random.chance(30) => self.install_snapshot(),
            99 if self.random.chance(30) => {
                let client = self.random.below(CLIENTS);
                self.clients[client] = self.new_client();
            }
            _ => {}
        }
        let largest_answer_bytes = self.largest_revision_bytes.max(self.history_bytes_max);
        let bound = CLIENTS * (self.queue_bytes + largest_answer_bytes + 20_000);
        let statistics = self.store.hub.statistics();
        assert!(statistics.queued_bytes <= bound, "{statistics:?}");
    }

    fn random_key(&mut self) -> &'static str {
        self.random.pick(&["a", "a1", "a2", "b", "b/1", "c"])
    }

    fn change(&mut self) {
        for _ in 0..=self.random.below(4) {
            let value = "v".repeat(self.random.pick(&[1, 10, 300]));
            let request = match self.random.below(3) {
                0 => put(self.random_key(), &value),
                1 => delete(self.random_key()),
                _ => {
                    let mut changes = vec![];
                    for key in ["a", "a1", "b", "b/1"] {
                        match self.random.below(3) {
                            0 => changes.push((key, Some(value.as_str()))),
                            1 => changes.push((key, None)),
                            _ => {}
                        }
                    }
                    txn(&changes)
                }
            };
            self.commit([request]);
        }
    }

    fn commit(&mut self, requests: impl IntoIterator<Item = Request>) {
        let before = self.store.revision();
        self.store.commit(requests);
        for (revision, events) in self.store.history.range(before + 1..) {
            let list = self.expected.entry(*revision).or_default();
            let mut bytes = 0;
            for event in &events.events {
                let previous = if event.tombstone {
                    self.pairs.remove(&event.key)
                } else {
                    self.pairs
                        .insert(event.key.clone(), event.key_value.clone())
                };
                bytes += 500 + event.key_value.0.len();
                bytes += previous.as_ref().map_or(0, |pair| pair.0.len());
                list.push(Expected {
                    key: event.key.clone(),
                    event: Event {
                        r#type: i32::from(event.tombstone),
                        kv: Some(event.key_value.clone()),
                        prev_kv: previous,
                    },
                });
            }
            self.largest_revision_bytes = self.largest_revision_bytes.max(bytes);
        }
    }

    /// A step of the catch-up, in the middle of which other things happen.
    fn catch_up(&mut self) {
        let mut list: Vec<Interruption> = Vec::new();
        for _ in 0..self.random.below(4) {
            match self.random.below(5) {
                0 => list.push(Box::new(|hub| {
                    hub.dispatch_step().unwrap();
                })),
                1 => {
                    let client = &self.clients[self.random.below(CLIENTS)];
                    let ids: Vec<i64> = client.watchers.keys().copied().collect();
                    if !ids.is_empty() {
                        let id = self.random.pick(&ids);
                        let control = client.client.stream.control();
                        list.push(Box::new(move |_| control.cancel(id)));
                    }
                }
                2 => {
                    // Once, for publishing has an order.
                    if !self.store.held_back.is_empty() {
                        let events = std::mem::take(&mut self.store.held_back);
                        let revision = self.store.revision();
                        list.push(Box::new(move |hub| hub.publish(events, revision)));
                    }
                }
                // A snapshot in the middle of a scan; it holds what is committed so far.
                3 if self.random.chance(20) => {
                    self.store.held_back.clear();
                    let history = self.interrupted_reader();
                    list.push(Box::new(move |hub| hub.replace_reader(history)));
                }
                _ => {
                    let reader = self.store.reader.clone();
                    list.push(Box::new(move |_| {
                        reader.collect_garbage_step(3).unwrap();
                    }));
                }
            }
        }
        self.interruptions.list.lock().unwrap().extend(list);
        self.store.hub.catch_up_step().unwrap();
        // Without a scan they happen now.
        self.interruptions.run_some(true);
    }

    fn create(&mut self) {
        let revision = self.store.revision();
        let client = self.random.below(CLIENTS);
        if !self.clients[client].client.stream.takes_requests() {
            return;
        }
        let key = self.random_key();
        let mut request = match self.random.below(4) {
            0 => watch(key),
            1 => watch_prefix(key),
            2 => watch_prefix(""),
            _ => WatchCreateRequest {
                range_end: self.random.pick(&["\0", "b", "a2", "zz"]).into(),
                ..watch(key)
            },
        };
        request.start_revision = match self.random.below(5) {
            0 | 1 => 0,
            2 => self.random.below(revision as usize + 1) as i64,
            3 => (revision - self.random.below(10) as i64).max(0),
            _ => revision + self.random.below(10) as i64,
        };
        request.prev_kv = self.random.chance(50);
        request.fragment = self.random.chance(30);
        request.progress_notify = self.random.chance(50);
        request.watch_id = self.random.pick(&[0, 0, 0, 3, 7]);
        request.filters = self
            .random
            .pick(&[&[][..], &[], &[0], &[1], &[0, 1]])
            .to_vec();
        let start = request.start_revision;
        let compact_revision = self.store.reader.compact_revision();
        let compacted = start != 0 && start < compact_revision;
        let client = &mut self.clients[client];
        client.client.stream.create(&request);
        client.asked.push_back((request, compacted));
    }

    fn cancel(&mut self) {
        let id = self.random.pick(&[0, 1, 2, 3, 7]);
        let client = self.random.below(CLIENTS);
        self.clients[client].client.stream.cancel(id);
    }

    fn compact(&mut self) {
        let compacted = self.store.reader.compact_revision().max(0);
        let revision = self.store.revision();
        if revision > compacted {
            let steps = self.random.below((revision - compacted) as usize) as i64;
            self.commit([compaction(compacted + 1 + steps)]);
        }
    }

    /// What is held back arrives inside a snapshot.
    fn install_snapshot(&mut self) {
        self.change();
        self.store.held_back.clear();
        self.store.hub.replace_reader(self.interrupted_reader());
    }

    fn interrupted_reader(&self) -> InterruptedReader {
        InterruptedReader {
            reader: self.store.reader.clone(),
            interruptions: self.interruptions.clone(),
        }
    }

    fn read(&mut self, client: usize, count: usize) -> usize {
        for done in 0..count {
            let Some(response) = self.clients[client].client.next() else {
                return done;
            };
            self.check(client, response);
        }
        count
    }

    fn check(&mut self, client: usize, response: WatchResponse) {
        let revision = response.header.as_ref().unwrap().revision;
        let client = &mut self.clients[client];
        assert!(revision <= self.store.revision());
        if response.created {
            let (request, compacted) = client.asked.pop_front().expect("created was asked for");
            if response.canceled {
                let range = KeyRange::new(request.key.clone(), request.range_end.clone());
                assert_eq!(response.watch_id, -1);
                assert!(range.is_empty() || request.watch_id != 0, "{request:?}");
                return;
            }
            let range = KeyRange::new(
                if request.key.is_empty() {
                    "\0".into()
                } else {
                    request.key.clone()
                },
                request.range_end.clone(),
            );
            let cursor = match request.start_revision {
                0 => revision + 1,
                start => start,
            };
            let watcher = Watcher {
                compacted: compacted && request.start_revision <= revision,
                request,
                range,
                cursor,
                parts: Vec::new(),
            };
            let replaced = client.watchers.insert(response.watch_id, watcher);
            assert!(replaced.is_none(), "the id was in use");
            return;
        }
        if response.canceled {
            let watcher = client.watchers.remove(&response.watch_id);
            if response.compact_revision != 0 {
                let watcher = watcher.expect("a compacted watcher existed");
                assert_eq!(revision, 0);
                assert!(watcher.parts.is_empty());
                assert!(watcher.cursor < response.compact_revision);
                assert!(response.compact_revision <= self.store.reader.compact_revision());
            }
            return;
        }
        if response.events.is_empty() {
            let announced: Vec<&Watcher> = match response.watch_id {
                -1 => client.watchers.values().collect(),
                id => vec![&client.watchers[&id]],
            };
            assert!(!announced.is_empty());
            for watcher in announced {
                assert!(watcher.request.start_revision <= revision);
                assert!(watcher.parts.is_empty());
                let missing = wanted(&self.expected, watcher, revision).count();
                assert_eq!(missing, 0, "progress {revision} overtook events");
            }
            return;
        }
        let watcher = client
            .watchers
            .get_mut(&response.watch_id)
            .expect("events come between created and canceled");
        assert!(!watcher.compacted);
        watcher.parts.extend(response.events);
        if response.fragment {
            assert!(watcher.request.fragment);
            return;
        }
        let events = std::mem::take(&mut watcher.parts);
        let last = mod_revision(events.last().unwrap());
        assert!(last <= revision);
        let compact_revision = self.store.reader.compact_revision();
        let mut expected = wanted(&self.expected, watcher, last);
        for event in &events {
            let expected = &expected.next().expect("nothing comes twice").event;
            assert_eq!(event.r#type, expected.r#type);
            assert_eq!(event.kv, expected.kv, "a gap or a wrong pair");
            if !watcher.request.prev_kv {
                assert_eq!(event.prev_kv, None);
            } else if event.prev_kv.is_some() || mod_revision(event) > compact_revision {
                assert_eq!(event.prev_kv, expected.prev_kv);
            }
            let pair = expected.kv.as_ref().unwrap().decode().unwrap();
            let is_create = event.r#type == 0 && pair.create_revision == pair.mod_revision;
            if event.r#type == 0 {
                assert_eq!(is_create, expected.prev_kv.is_none());
            }
        }
        assert!(expected.next().is_none(), "a part of a revision is missing");
        drop(expected);
        watcher.cursor = last + 1;
    }

    /// Everybody reads, everything is delivered.
    fn finish(&mut self) {
        self.store.publish();
        self.settle();
        let revision = self.store.revision();
        for client in &self.clients {
            assert!(client.asked.is_empty());
            for (id, watcher) in &client.watchers {
                assert!(!watcher.compacted);
                let missing = wanted(&self.expected, watcher, revision).count();
                assert_eq!(missing, 0, "watcher {id} of {:?}", watcher.request);
            }
            client.client.stream.request_progress();
        }
        let statistics = self.store.hub.statistics();
        assert_eq!(statistics.slow_watchers, 0, "{statistics:?}");
        for client in &mut self.clients {
            let all_reached = client
                .watchers
                .values()
                .all(|watcher| watcher.request.start_revision <= revision);
            let expected = all_reached && !client.watchers.is_empty();
            let answers: Vec<String> = client.client.all();
            let answer = format!("-1 @{revision}: progress");
            assert_eq!(answers, vec![answer; usize::from(expected)]);
        }
        self.clients.clear();
        let statistics = self.store.hub.statistics();
        assert_eq!((statistics.watchers, statistics.streams), (0, 0));
    }

    fn settle(&mut self) {
        loop {
            self.store.settle();
            let mut read = 0;
            for client in 0..CLIENTS {
                read += self.read(client, usize::MAX);
            }
            if read == 0 {
                return;
            }
        }
    }
}

/// The events that a watcher has to get from its cursor up to a revision.
fn wanted<'a>(
    expected: &'a BTreeMap<i64, Vec<Expected>>,
    watcher: &'a Watcher,
    up_to: i64,
) -> impl Iterator<Item = &'a Expected> {
    let end = up_to.max(watcher.cursor - 1) + 1;
    expected
        .range(watcher.cursor..end)
        .flat_map(|(_, list)| list)
        .filter(|it| watcher.range.contains(&it.key))
        // NOPUT is 0 and drops type 0, NODELETE is 1 and drops type 1.
        .filter(|it| !watcher.request.filters.contains(&it.event.r#type))
}

fn mod_revision(event: &Event) -> i64 {
    event.kv.as_ref().unwrap().decode().unwrap().mod_revision
}

struct ReplayHint(u64);

impl Drop for ReplayHint {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "WATCH_SEED={} cargo test -p metastore-watch --test simulation",
                self.0
            );
        }
    }
}

fn run(seed: u64) {
    let _hint = ReplayHint(seed);
    let mut simulation = Simulation::new(seed);
    for _ in 0..STEPS {
        simulation.step();
    }
    simulation.finish();
}

#[test]
fn watches_keep_their_guarantees() {
    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|it| it.parse::<u64>().unwrap())
    };
    match number("WATCH_SEED") {
        Some(seed) => run(seed),
        None => {
            let first = RandomState::new().hash_one("seed");
            for offset in 0..number("WATCH_RUNS").unwrap_or(RUNS) {
                run(first.wrapping_add(offset));
            }
        }
    }
}
