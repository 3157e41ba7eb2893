//! Watchers, groups and streams, and what happens to them. Everything here runs under the hub's
//! lock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use metastore_proto::etcdserverpb::WatchCreateRequest;
use metastore_store::EngineError;

use crate::catch_up::CatchUpQueue;
use crate::chunk::{ChunkBuilder, LargeChunks};
use crate::event::{RevisionEvents, StoredEvent, encode};
use crate::history::History;
use crate::hub::HubOptions;
use crate::inbox::Inbox;
use crate::index::Index;
use crate::output::WatchOutput;
use crate::ring::Ring;
use crate::selector::Selector;
use crate::slab::{Slab, SlabKey};
use crate::stream_queue::StreamQueue;

/// The watch id of responses that belong to no watcher: refusals, and progress of a whole stream.
pub const WATCH_ID_OF_NO_WATCHER: i64 = -1;
/// Why a negative start revision is refused.
pub const REASON_COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
/// Why a range that ends before it begins is refused.
pub const REASON_EMPTY_RANGE: &str = "mvcc: watcher range is empty";
/// Why an id that is in use on the stream is refused.
pub const REASON_DUPLICATE_WATCH_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// Most revisions that go into one response, as in etcd.
pub(crate) const RESPONSE_REVISIONS_MAX: usize = 1000;

/// Most revisions that come in a response each, though they are published together. Etcd sends a response for
/// each change to a watcher that keeps up, and clients count on it that read an answer after each of their
/// writes; from members under such load that this many changes come at once nobody can.
const REVISIONS_APART_MAX: usize = 16;

/// Bytes of responses of the past that are larger than those of the present and wait for their clients.
/// Beyond, responses are small: clients that do not read must not add up.
const LARGE_CHUNK_BYTES_MAX: usize = 64 << 20;

/// Queued bytes at which a stream gets no periodic progress: its client does not read, and progress
/// would only pile up.
const PROGRESS_BACKLOG_BYTES_MAX: usize = 64 << 10;

pub(crate) type StreamId = u64;

/// Where a watcher stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WatcherState {
    /// Gets every change as it comes; `position` among the members of its group. Left for `Paused`
    /// when its stream is full, for `Queued` when the hub lost changes.
    Synced { position: usize },
    /// Waits for its turn to read the history from `next` on.
    Queued { next: i64, ticket: u64 },
    /// The catch-up reads the history for it right now. Its ticket tells this turn from others.
    Reading { next: i64, ticket: u64 },
    /// Its stream is full; `Queued` when the client has read.
    Paused { next: i64 },
}

#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) stream: StreamId,
    pub(crate) watch_id: i64,
    pub(crate) group: SlabKey,
    pub(crate) state: WatcherState,
    pub(crate) fragment: bool,
    progress_notify: bool,
    /// No events since the last turn of periodic progress.
    quiet: bool,
    /// First revision at which progress says something about this watcher.
    progress_from: i64,
}

/// A synced watcher, as delivery needs it.
#[derive(Debug)]
struct Member {
    watcher: SlabKey,
    queue: Arc<StreamQueue>,
    watch_id: i64,
    /// Changes below are not for it: its start lies in the future, or it has them.
    min_revision: i64,
    fragment: bool,
    progress_notify: bool,
}

/// Watchers that get the same bytes.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) selector: Selector,
    /// The synced ones.
    members: Vec<Member>,
    /// All, synced or not: the group goes with the last.
    watchers: usize,
    builder: ChunkBuilder,
}

#[derive(Debug)]
struct StreamState {
    queue: Arc<StreamQueue>,
    watchers: HashMap<i64, SlabKey>,
    /// Ids of watchers that were canceled because of compaction: etcd still answers a cancel
    /// request for them, and refuses the id until then.
    compacted: HashSet<i64>,
    next_watch_id: i64,
    /// Watchers that wait for the queue to drain; may name some that are gone.
    paused: Vec<SlabKey>,
    progress_interval: Duration,
}

pub(crate) struct Core {
    pub(crate) options: HubOptions,
    pub(crate) history: Arc<dyn History>,
    /// Counts replacements of the history.
    pub(crate) epoch: u64,
    inbox: Arc<Inbox>,
    /// Every change up to here was given to the synced watchers.
    pub(crate) processed: i64,
    pub(crate) ring: Ring,
    pub(crate) watchers: Slab<Watcher>,
    pub(crate) groups: Slab<Group>,
    group_of: HashMap<Selector, SlabKey>,
    /// Groups with synced members.
    index: Index<SlabKey>,
    streams: HashMap<StreamId, StreamState>,
    next_stream: StreamId,
    pub(crate) catch_up: CatchUpQueue,
    pub(crate) large_chunks: LargeChunks,
    /// Streams that asked for progress, and the revision that was visible then.
    progress_asked: Vec<(StreamId, i64)>,
    progress_due: BinaryHeap<Reverse<(Duration, StreamId)>>,
    now: Duration,
    previous_wanted: usize,
    synced: usize,
    pub(crate) events_sent: u64,
    closed: bool,
    /// Connections to wake when the lock is released.
    pub(crate) wakers: Vec<Waker>,
    /// Groups with something in their builder; only filled within a round.
    touched: Vec<SlabKey>,
}

impl Core {
    pub(crate) fn new(history: Arc<dyn History>, options: HubOptions, inbox: Arc<Inbox>) -> Self {
        let processed = history.revision();
        Self {
            ring: Ring::new(
                processed + 1,
                options.recent_events_max,
                options.recent_bytes_max,
            ),
            large_chunks: LargeChunks::above(options.chunk_bytes_max()),
            options,
            history,
            epoch: 0,
            inbox,
            processed,
            watchers: Slab::new(),
            groups: Slab::new(),
            group_of: HashMap::new(),
            index: Index::new(),
            streams: HashMap::new(),
            next_stream: 0,
            catch_up: CatchUpQueue::default(),
            progress_asked: Vec::new(),
            progress_due: BinaryHeap::new(),
            now: Duration::ZERO,
            previous_wanted: 0,
            synced: 0,
            events_sent: 0,
            closed: false,
            wakers: Vec::new(),
            touched: Vec::new(),
        }
    }

    // Streams and requests.

    pub(crate) fn open_stream(&mut self) -> (StreamId, Arc<StreamQueue>) {
        let id = self.next_stream;
        self.next_stream += 1;
        let queue = Arc::new(StreamQueue::new(self.options.stream_queue_bytes_max));
        if self.closed {
            queue.close(&mut self.wakers);
        }
        let progress_interval = with_jitter(self.options.progress_interval, id);
        self.progress_due
            .push(Reverse((self.now + progress_interval, id)));
        self.streams.insert(
            id,
            StreamState {
                queue: Arc::clone(&queue),
                watchers: HashMap::new(),
                compacted: HashSet::new(),
                next_watch_id: 0,
                paused: Vec::new(),
                progress_interval,
            },
        );
        (id, queue)
    }

    pub(crate) fn remove_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        for key in stream.watchers.into_values() {
            self.remove_watcher(key);
        }
    }

    /// Answers a create request that the server refused.
    pub(crate) fn reject(
        &mut self,
        stream: StreamId,
        request: &WatchCreateRequest,
        reason: std::borrow::Cow<'static, str>,
    ) {
        // etcd looks at the revision before it looks at permissions.
        let reason = if request.start_revision < 0 {
            REASON_COMPACTED.into()
        } else {
            reason
        };
        let output = WatchOutput {
            watch_id: WATCH_ID_OF_NO_WATCHER,
            header_revision: self.visible_revision(),
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..WatchOutput::default()
        };
        self.push_control(stream, output);
    }

    pub(crate) fn create(&mut self, stream_id: StreamId, request: &WatchCreateRequest) {
        let selector = Selector::new(request);
        let refusal = if request.start_revision < 0 {
            Some(REASON_COMPACTED)
        } else if selector.range.is_empty() {
            Some(REASON_EMPTY_RANGE)
        } else {
            None
        };
        if let Some(reason) = refusal {
            return self.reject(stream_id, request, reason.into());
        }
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return;
        };
        let Some(watch_id) = stream.assign_watch_id(request.watch_id) else {
            return self.reject(stream_id, request, REASON_DUPLICATE_WATCH_ID.into());
        };
        let (published, first) = self.inbox.add_watcher();
        if first {
            self.processed = published;
            self.ring.restart(published + 1);
        }
        let visible = published.max(self.history.revision());
        let created = WatchOutput {
            watch_id,
            header_revision: visible,
            created: true,
            ..WatchOutput::default()
        };
        stream.queue.push_control(created, &mut self.wakers);

        let start = request.start_revision;
        let previous = selector.previous;
        let group = self.join_group(selector);
        let watcher = self.watchers.insert(Watcher {
            stream: stream_id,
            watch_id,
            group,
            state: WatcherState::Paused { next: start },
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            quiet: true,
            progress_from: if start == 0 { visible } else { start },
        });
        if let Some(stream) = self.streams.get_mut(&stream_id) {
            stream.watchers.insert(watch_id, watcher);
        }
        if previous {
            self.want_previous();
        }
        self.place(watcher, start, visible);
    }

    /// Puts a new watcher where it belongs by its start revision.
    fn place(&mut self, watcher: SlabKey, start: i64, visible: i64) {
        let compact_revision = self.history.compact_revision();
        if start == 0 {
            self.sync(watcher, visible + 1);
        } else if start <= visible && start < compact_revision {
            self.cancel_compacted(watcher, compact_revision);
        } else if start <= self.processed {
            self.enqueue(watcher, start);
        } else {
            self.sync(watcher, start);
        }
    }

    pub(crate) fn cancel(&mut self, stream_id: StreamId, watch_id: i64) {
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return;
        };
        match stream.watchers.remove(&watch_id) {
            Some(watcher) => self.remove_watcher(watcher),
            None if stream.compacted.remove(&watch_id) => {}
            None => return,
        }
        let output = WatchOutput {
            watch_id,
            header_revision: self.visible_revision(),
            canceled: true,
            ..WatchOutput::default()
        };
        self.push_control(stream_id, output);
    }

    /// A progress request: answered once the hub has done what is visible now, so that the
    /// answer is not older than anything the client has read elsewhere on this member.
    pub(crate) fn request_progress(&mut self, stream: StreamId) {
        let visible = self.visible_revision();
        if self.processed >= visible {
            self.answer_progress(stream);
        } else if !self.progress_asked.iter().any(|asked| asked.0 == stream) {
            self.progress_asked.push((stream, visible));
        }
    }

    /// The revision that a client may have read on this member. Readers see a commit a little
    /// earlier than it is published here; what a client knows must not reach it as news.
    fn visible_revision(&self) -> i64 {
        self.inbox.published().max(self.history.revision())
    }

    fn answer_progress(&mut self, stream_id: StreamId) {
        let Some(stream) = self.streams.get(&stream_id) else {
            return;
        };
        let all_reached = stream
            .watchers
            .values()
            .all(|watcher| self.has_reached(&self.watchers[*watcher]));
        if all_reached && !stream.watchers.is_empty() {
            let output = WatchOutput::progress(WATCH_ID_OF_NO_WATCHER, self.processed);
            stream.queue.push_control(output, &mut self.wakers);
        }
    }

    fn has_reached(&self, watcher: &Watcher) -> bool {
        matches!(watcher.state, WatcherState::Synced { .. })
            && self.processed >= watcher.progress_from
    }

    /// Sends the periodic progress that is due.
    pub(crate) fn tick(&mut self, now: Duration) {
        self.now = self.now.max(now);
        while let Some(Reverse((due, id))) = self.progress_due.peek().copied() {
            if due > now {
                break;
            }
            self.progress_due.pop();
            if let Some(stream) = self.streams.get(&id) {
                let next = (due + stream.progress_interval).max(now);
                self.progress_due.push(Reverse((next, id)));
                self.send_periodic_progress(id);
            }
        }
    }

    fn send_periodic_progress(&mut self, stream_id: StreamId) {
        let stream = &self.streams[&stream_id];
        let reads = stream.queue.bytes() <= PROGRESS_BACKLOG_BYTES_MAX;
        let mut keys: Vec<SlabKey> = stream.watchers.values().copied().collect();
        keys.sort_unstable();
        for key in keys {
            let watcher = &self.watchers[key];
            if !watcher.progress_notify {
                continue;
            }
            if watcher.quiet && reads && self.has_reached(watcher) {
                let output = WatchOutput::progress(watcher.watch_id, self.processed);
                stream.queue.push_control(output, &mut self.wakers);
            }
            self.watchers[key].quiet = true;
        }
    }

    pub(crate) fn close(&mut self) {
        self.closed = true;
        for stream in self.streams.values() {
            stream.queue.close(&mut self.wakers);
        }
    }

    fn push_control(&mut self, stream: StreamId, output: WatchOutput) {
        if let Some(stream) = self.streams.get(&stream) {
            stream.queue.push_control(output, &mut self.wakers);
        }
    }

    // Delivery of new changes.

    /// Gives what the inbox holds, up to one response's worth, to the synced watchers. False when
    /// there was nothing.
    pub(crate) fn dispatch(&mut self) -> Result<bool, EngineError> {
        let bytes_max = self.options.chunk_bytes_max();
        let taken = self
            .inbox
            .take(self.processed, bytes_max, RESPONSE_REVISIONS_MAX);
        let worked = !taken.revisions.is_empty() || taken.resume_at.is_some();
        let first = self.processed + 1;
        for revision in taken.revisions {
            self.collect(&revision)?;
            self.ring.push(Arc::new(revision));
        }
        self.deliver(first);
        self.processed = taken.covered;
        if let Some(resume_at) = taken.resume_at {
            self.lose_sync(resume_at);
        }
        self.answer_asked_progress();
        Ok(worked)
    }

    /// Puts the events of a revision into the builders of the groups that want them.
    fn collect(&mut self, revision: &RevisionEvents) -> Result<(), EngineError> {
        for event in &revision.events {
            let mut encoder = EventEncoder::new(event, None);
            let mut failure = None;
            self.index.matching(&event.key, |key| {
                let group = &mut self.groups[key];
                if !group.selector.lets_through(event) {
                    return;
                }
                match encoder.get(group.selector.previous, self.history.as_ref()) {
                    Ok(encoded) => {
                        if group.builder.is_empty() {
                            self.touched.push(key);
                        }
                        group.builder.push(revision.revision, encoded);
                    }
                    Err(error) => failure = Some(error),
                }
            });
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Sends what the builders hold; `first` is the first revision that can be in them.
    fn deliver(&mut self, first: i64) {
        let mut full = Vec::new();
        for key in std::mem::take(&mut self.touched) {
            let group = &mut self.groups[key];
            let chunk = group.builder.finish();
            for member in &group.members {
                let mut next = first.max(member.min_revision);
                for (revision, events) in chunk.responses(next, REVISIONS_APART_MAX) {
                    let output = WatchOutput {
                        watch_id: member.watch_id,
                        header_revision: revision,
                        events,
                        ..WatchOutput::default()
                    };
                    let fragment_limit = member.fragment.then_some(self.options.fragment_bytes);
                    if !member
                        .queue
                        .push_events(output, fragment_limit, &mut self.wakers)
                    {
                        full.push((member.watcher, next));
                        break;
                    }
                    next = revision + 1;
                    self.events_sent += 1;
                    if member.progress_notify {
                        self.watchers[member.watcher].quiet = false;
                    }
                }
            }
        }
        for (watcher, next) in full {
            self.unsync(watcher);
            self.pause(watcher, next);
        }
    }

    fn answer_asked_progress(&mut self) {
        if self.progress_asked.is_empty() {
            return;
        }
        let (ready, waiting) = std::mem::take(&mut self.progress_asked)
            .into_iter()
            .partition(|(_, visible)| self.processed >= *visible);
        self.progress_asked = waiting;
        let ready: Vec<(StreamId, i64)> = ready;
        for (stream, _) in ready {
            self.answer_progress(stream);
        }
    }

    /// Changes between `processed` and `resume_at` are only in the history: everybody reads there.
    fn lose_sync(&mut self, resume_at: i64) {
        let behind: Vec<SlabKey> = self
            .watchers
            .iter()
            .filter(|(_, watcher)| matches!(watcher.state, WatcherState::Synced { .. }))
            .map(|(key, _)| key)
            .collect();
        for key in behind {
            let min_revision = self.unsync(key);
            self.enqueue(key, min_revision.max(self.processed + 1));
        }
        self.processed = resume_at;
        self.ring.restart(resume_at + 1);
    }

    /// Goes on with another history (a snapshot was installed), at its revision.
    pub(crate) fn replace_history(&mut self, history: Arc<dyn History>) {
        let revision = history.revision();
        self.history = history;
        self.epoch += 1;
        if self.previous_wanted > 0 {
            self.history.want_previous(true);
        }
        self.inbox.restart(revision);
        self.lose_sync(revision);
        self.answer_asked_progress();
    }

    // Moves of watchers between their states.

    fn join_group(&mut self, selector: Selector) -> SlabKey {
        let key = match self.group_of.get(&selector) {
            Some(key) => *key,
            None => {
                let key = self.groups.insert(Group {
                    selector: selector.clone(),
                    members: Vec::new(),
                    watchers: 0,
                    builder: ChunkBuilder::default(),
                });
                self.group_of.insert(selector, key);
                key
            }
        };
        self.groups[key].watchers += 1;
        key
    }

    fn leave_group(&mut self, key: SlabKey) {
        let group = &mut self.groups[key];
        group.watchers -= 1;
        if group.watchers == 0
            && let Some(group) = self.groups.remove(key)
        {
            self.group_of.remove(&group.selector);
        }
    }

    fn want_previous(&mut self) {
        self.previous_wanted += 1;
        if self.previous_wanted == 1 {
            self.history.want_previous(true);
        }
    }

    /// From now on the watcher gets every change from `min_revision` on as it comes. Everything
    /// that was processed must have reached it.
    pub(crate) fn sync(&mut self, key: SlabKey, min_revision: i64) {
        debug_assert!(min_revision > self.processed);
        let watcher = &mut self.watchers[key];
        let Some(stream) = self.streams.get(&watcher.stream) else {
            return;
        };
        let group = &mut self.groups[watcher.group];
        if group.members.is_empty() {
            self.index.insert(&group.selector.range, watcher.group);
        }
        watcher.state = WatcherState::Synced {
            position: group.members.len(),
        };
        group.members.push(Member {
            watcher: key,
            queue: Arc::clone(&stream.queue),
            watch_id: watcher.watch_id,
            min_revision,
            fragment: watcher.fragment,
            progress_notify: watcher.progress_notify,
        });
        self.synced += 1;
    }

    /// Takes a synced watcher out of delivery; returns its minimum revision. The caller gives it
    /// its next state.
    fn unsync(&mut self, key: SlabKey) -> i64 {
        let WatcherState::Synced { position } = self.watchers[key].state else {
            unreachable!("only synced watchers are taken out of delivery");
        };
        let group_key = self.watchers[key].group;
        let group = &mut self.groups[group_key];
        let member = group.members.swap_remove(position);
        debug_assert_eq!(member.watcher, key);
        if let Some(moved) = group.members.get(position) {
            self.watchers[moved.watcher].state = WatcherState::Synced { position };
        }
        if group.members.is_empty() {
            self.index.remove(&group.selector.range, group_key);
            group.members.shrink_to_fit();
        }
        self.synced -= 1;
        member.min_revision
    }

    pub(crate) fn enqueue(&mut self, key: SlabKey, next: i64) {
        let ticket = self.catch_up.push(key, next);
        self.watchers[key].state = WatcherState::Queued { next, ticket };
    }

    /// Leaves the watcher alone until its stream has room.
    pub(crate) fn pause(&mut self, key: SlabKey, next: i64) {
        let Some(stream) = self.streams.get_mut(&self.watchers[key].stream) else {
            return;
        };
        if stream.queue.pause() {
            return self.enqueue(key, next);
        }
        stream.paused.push(key);
        self.watchers[key].state = WatcherState::Paused { next };
    }

    /// The stream has room again.
    pub(crate) fn resume_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        for key in std::mem::take(&mut stream.paused) {
            if let Some(Watcher {
                state: WatcherState::Paused { next },
                ..
            }) = self.watchers.get(key)
            {
                self.enqueue(key, *next);
            }
        }
    }

    /// Sends events of the history to a watcher that is not synced. False when there is no room.
    pub(crate) fn push_history(&mut self, key: SlabKey, revision: i64, events: Bytes) -> bool {
        let watcher = &mut self.watchers[key];
        let Some(stream) = self.streams.get(&watcher.stream) else {
            return true;
        };
        let output = WatchOutput {
            watch_id: watcher.watch_id,
            header_revision: revision,
            events,
            ..WatchOutput::default()
        };
        let fragment_limit = watcher.fragment.then_some(self.options.fragment_bytes);
        let accepted = stream
            .queue
            .push_events(output, fragment_limit, &mut self.wakers);
        if accepted {
            watcher.quiet = false;
            self.events_sent += 1;
        }
        accepted
    }

    /// Bytes of the past that may go into one response now.
    pub(crate) fn history_bytes_max(&self) -> usize {
        let usual = self.options.chunk_bytes_max();
        if self.large_chunks.bytes() < LARGE_CHUNK_BYTES_MAX {
            usual.max(self.options.history_bytes_max)
        } else {
            usual
        }
    }

    /// Ends a watcher whose events are gone.
    pub(crate) fn cancel_compacted(&mut self, key: SlabKey, compact_revision: i64) {
        let Watcher {
            stream, watch_id, ..
        } = self.watchers[key];
        self.remove_watcher(key);
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.watchers.remove(&watch_id);
            stream.compacted.insert(watch_id);
        }
        let output = WatchOutput {
            watch_id,
            canceled: true,
            compact_revision,
            ..WatchOutput::default()
        };
        self.push_control(stream, output);
    }

    /// Removes a watcher from everything but the table of its stream.
    fn remove_watcher(&mut self, key: SlabKey) {
        match self.watchers[key].state {
            WatcherState::Synced { .. } => {
                self.unsync(key);
            }
            WatcherState::Queued { next, ticket } => self.catch_up.remove(next, ticket),
            WatcherState::Reading { .. } | WatcherState::Paused { .. } => {}
        }
        let Some(watcher) = self.watchers.remove(key) else {
            return;
        };
        if self.groups[watcher.group].selector.previous {
            self.previous_wanted -= 1;
            if self.previous_wanted == 0 {
                self.history.want_previous(false);
            }
        }
        self.leave_group(watcher.group);
        self.inbox.remove_watcher();
    }

    // Numbers.

    pub(crate) fn stream_count(&self) -> usize {
        self.streams.len()
    }

    pub(crate) fn synced_count(&self) -> usize {
        self.synced
    }

    /// Bytes that are queued for all streams.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.streams
            .values()
            .map(|stream| stream.queue.bytes())
            .sum()
    }

    pub(crate) fn queued_events(&self) -> usize {
        self.streams
            .values()
            .map(|stream| stream.queue.event_count())
            .sum()
    }
}

impl StreamState {
    /// The id of a new watcher: the asked one, or the next free one for 0. `None` when the asked
    /// one is in use.
    fn assign_watch_id(&mut self, asked: i64) -> Option<i64> {
        let in_use =
            |stream: &Self, id| stream.watchers.contains_key(&id) || stream.compacted.contains(&id);
        if asked != 0 {
            return (!in_use(self, asked)).then_some(asked);
        }
        while in_use(self, self.next_watch_id) {
            self.next_watch_id += 1;
        }
        self.next_watch_id += 1;
        Some(self.next_watch_id - 1)
    }
}

/// Encodes an event at most once in each form.
pub(crate) struct EventEncoder<'a> {
    event: &'a StoredEvent,
    /// At and below it the previous value is compacted away.
    compact_revision: i64,
    plain: Option<Bytes>,
    with_previous: Option<Bytes>,
}

impl<'a> EventEncoder<'a> {
    /// `compact_revision`: set where the event comes from the history, so that every member
    /// answers alike, however far it is with deleting.
    pub(crate) fn new(event: &'a StoredEvent, compact_revision: Option<i64>) -> Self {
        Self {
            event,
            compact_revision: compact_revision.unwrap_or(0),
            plain: None,
            with_previous: None,
        }
    }

    pub(crate) fn get(
        &mut self,
        previous: bool,
        history: &dyn History,
    ) -> Result<Bytes, EngineError> {
        let event = self.event;
        let has_previous = !event.created
            && !event.previous.is_none()
            && event.revision.main > self.compact_revision;
        if !previous || !has_previous {
            let plain = self.plain.get_or_insert_with(|| encode(event, None));
            return Ok(plain.clone());
        }
        if let Some(encoded) = &self.with_previous {
            return Ok(encoded.clone());
        }
        let encoded = match &event.previous_key_value {
            Some(pair) => encode(event, Some(pair)),
            None => {
                let pair = history.previous_key_value(event.previous)?;
                encode(event, pair.as_ref())
            }
        };
        self.with_previous = Some(encoded.clone());
        Ok(encoded)
    }
}

/// The interval and up to a tenth more, different for each stream, so that clients that came
/// together do not get their progress together. Taken from the stream's number: no randomness here.
fn with_jitter(interval: Duration, stream: StreamId) -> Duration {
    let mixed = (stream + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let share = mixed as f64 / f64::from(u32::MAX);
    interval + interval.mul_f64(share / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_at_most_a_tenth_and_differs() {
        let interval = Duration::from_secs(600);
        let all: HashSet<Duration> = (0..100).map(|id| with_jitter(interval, id)).collect();
        assert!(all.len() > 90);
        assert!(
            all.iter()
                .all(|it| *it >= interval && *it <= interval + interval / 10)
        );
    }
}
