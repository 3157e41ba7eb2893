//! Watchers that are behind read the history, together where they can.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use metastore_store::EngineError;
use parking_lot::{Mutex, MutexGuard};

use crate::chunk::{Chunk, ChunkBuilder};
use crate::core::{Core, EventEncoder, RESPONSE_REVISIONS_MAX, Watcher, WatcherState};
use crate::event::{RevisionEvents, memory_bytes};
use crate::history::{History, HistoryError};
use crate::index::Index;
use crate::selector::Selector;
use crate::slab::SlabKey;

/// Watchers that share one scan, as in etcd.
const WATCHERS_PER_SCAN_MAX: usize = 512;

/// Revisions from the ring that are handled without giving the lock away. With this the last step
/// before a watcher is synced cannot be overtaken by new changes for ever.
const LOCKED_REVISIONS_MAX: usize = 64;

/// Revisions that one turn looks through: the next watcher's turn must come, however rarely the keys of
/// this one change.
const TURN_REVISIONS_MAX: i64 = 64 << 10;

/// Watchers that wait for their turn: first come, first served, and by revision to find company.
#[derive(Debug, Default)]
pub(crate) struct CatchUpQueue {
    order: BTreeMap<u64, SlabKey>,
    by_next: BTreeSet<(i64, u64)>,
    next_ticket: u64,
}

impl CatchUpQueue {
    pub(crate) fn push(&mut self, watcher: SlabKey, next: i64) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.order.insert(ticket, watcher);
        self.by_next.insert((next, ticket));
        ticket
    }

    pub(crate) fn remove(&mut self, next: i64, ticket: u64) {
        self.order.remove(&ticket);
        self.by_next.remove(&(next, ticket));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn first(&self) -> Option<SlabKey> {
        self.order.first_key_value().map(|(_, key)| *key)
    }

    /// Watchers whose next revision is in `from..to`, by revision.
    fn company(&self, from: i64, to: i64) -> Vec<SlabKey> {
        self.by_next
            .range((from, 0)..(to, 0))
            .take(WATCHERS_PER_SCAN_MAX)
            .map(|(_, ticket)| self.order[ticket])
            .collect()
    }
}

/// One turn for some watchers: as much as goes into one response for each of them, read piece by piece.
struct Plan {
    epoch: u64,
    history: Arc<dyn History>,
    from: i64,
    /// First revision that was not read yet.
    next: i64,
    /// Last revision to read: what new changes do not bring by themselves.
    to: i64,
    /// Of all groups' events together, apart from a larger single revision.
    bytes_max: usize,
    bytes: usize,
    /// There is no room for the next revision.
    full: bool,
    piece: Piece,
    readers: Vec<PlanReader>,
    groups: Vec<PlanGroup>,
    index: Index<usize>,
}

/// What is read at once.
enum Piece {
    Ring {
        revisions: Vec<Arc<RevisionEvents>>,
        next: i64,
    },
    Store {
        to: i64,
        bytes_max: usize,
    },
}

impl Piece {
    fn choose(core: &Core, next: i64, to: i64) -> Self {
        let to = to.min(next + RESPONSE_REVISIONS_MAX as i64 - 1);
        let bytes_max = core.options.chunk_bytes_max();
        if core.ring.covers(next) {
            let (revisions, next) = core.ring.read(next, to, bytes_max);
            Self::Ring { revisions, next }
        } else {
            Self::Store { to, bytes_max }
        }
    }
}

struct PlanReader {
    watcher: SlabKey,
    ticket: u64,
    next: i64,
    group: usize,
}

struct PlanGroup {
    selector: Selector,
    builder: ChunkBuilder,
    /// The first revision with events for the group that does not fit into one response.
    next: Option<i64>,
}

/// What a turn gave a group, and the first revision that is not in it.
struct Scanned {
    chunk: Chunk,
    next: i64,
}

/// Takes the watcher that waits longest and those near it one step further. False when nobody
/// waits.
pub(crate) fn step(core: &Mutex<Core>) -> Result<bool, EngineError> {
    let mut core = core.lock();
    let Some(mut plan) = plan(&mut core) else {
        return Ok(false);
    };
    loop {
        let short = matches!(&plan.piece, Piece::Ring { revisions, .. } if revisions.len() <= LOCKED_REVISIONS_MAX);
        let read = if short {
            plan.read_piece()
        } else {
            MutexGuard::unlocked(&mut core, || plan.read_piece())
        };
        if core.epoch != plan.epoch {
            // The history was replaced meanwhile, and the old one may be gone: its answer, also an
            // error, means nothing.
            start_over(&mut core, &plan);
            return Ok(true);
        }
        match read {
            Ok(()) if plan.wants_more() => plan.piece = Piece::choose(&core, plan.next, plan.to),
            // What was read before the compaction is whole; the next turn cancels.
            Err(HistoryError::Compacted) if plan.next == plan.from => {
                finish_compacted(&mut core, &plan);
                return Ok(true);
            }
            Ok(()) | Err(HistoryError::Compacted) => {
                finish(&mut core, &mut plan);
                return Ok(true);
            }
            Err(HistoryError::Engine(error)) => return Err(error),
        }
    }
}

/// Decides who reads what next. Watchers that need no reading are synced or canceled on the way.
fn plan(core: &mut Core) -> Option<Plan> {
    let from = loop {
        let first = core.catch_up.first()?;
        let WatcherState::Queued { next, ticket } = core.watchers[first].state else {
            unreachable!("watchers in the queue are queued");
        };
        let compact_revision = core.history.compact_revision();
        if next > core.processed {
            core.catch_up.remove(next, ticket);
            core.sync(first, next);
        } else if !core.ring.covers(next) && next < compact_revision {
            core.catch_up.remove(next, ticket);
            core.cancel_compacted(first, compact_revision);
        } else {
            break next;
        }
    };
    let to = core.processed.min(from + TURN_REVISIONS_MAX - 1);
    let mut plan = Plan {
        epoch: core.epoch,
        history: Arc::clone(&core.history),
        from,
        next: from,
        to,
        bytes_max: core.history_bytes_max(),
        bytes: 0,
        full: false,
        piece: Piece::choose(core, from, to),
        readers: Vec::new(),
        groups: Vec::new(),
        index: Index::new(),
    };
    let mut group_of = HashMap::new();
    let company_to = (to + 1).min(from + RESPONSE_REVISIONS_MAX as i64);
    for key in core.catch_up.company(from, company_to) {
        let Watcher { state, group, .. } = core.watchers[key];
        let WatcherState::Queued { next, ticket } = state else {
            unreachable!("watchers in the queue are queued");
        };
        core.catch_up.remove(next, ticket);
        core.watchers[key].state = WatcherState::Reading { next, ticket };
        let group = *group_of
            .entry(group)
            .or_insert_with(|| plan.add_group(core.groups[group].selector.clone()));
        plan.readers.push(PlanReader {
            watcher: key,
            ticket,
            next,
            group,
        });
    }
    Some(plan)
}

impl Plan {
    fn add_group(&mut self, selector: Selector) -> usize {
        let group = self.groups.len();
        self.index.insert(&selector.range, group);
        self.groups.push(PlanGroup {
            selector,
            builder: ChunkBuilder::default(),
            next: None,
        });
        group
    }

    fn wants_more(&self) -> bool {
        self.next <= self.to && !self.full && self.groups.iter().any(|group| group.next.is_none())
    }

    /// Reads the piece and puts its events into the groups that want them.
    fn read_piece(&mut self) -> Result<(), HistoryError> {
        let compact_revision = self.history.compact_revision();
        let nothing = Piece::Store {
            to: 0,
            bytes_max: 0,
        };
        match std::mem::replace(&mut self.piece, nothing) {
            Piece::Ring { revisions, next } => {
                let revisions = revisions.iter().map(Arc::as_ref);
                self.collect_all(revisions, next, compact_revision)?;
            }
            Piece::Store { to, bytes_max } => {
                let with_previous = self.groups.iter().any(|group| group.selector.previous);
                let scan = self.history.events(
                    self.next,
                    to,
                    bytes_max,
                    &|key| self.index.matches(key),
                    with_previous,
                )?;
                // While the scan ran a compaction may have begun to delete what it had to read.
                if self.next < self.history.compact_revision() {
                    return Err(HistoryError::Compacted);
                }
                self.collect_all(scan.batches.iter(), scan.next, compact_revision)?;
            }
        }
        Ok(())
    }

    /// Collects revisions as long as there is room; `next` is the first one behind them.
    fn collect_all<'a>(
        &mut self,
        revisions: impl Iterator<Item = &'a RevisionEvents>,
        next: i64,
        compact_revision: i64,
    ) -> Result<(), EngineError> {
        for revision in revisions {
            if self.bytes > 0 && self.bytes + memory_bytes(revision) > self.bytes_max {
                self.full = true;
                self.next = revision.revision;
                return Ok(());
            }
            self.collect(revision, compact_revision)?;
        }
        self.next = next;
        Ok(())
    }

    fn collect(
        &mut self,
        revision: &RevisionEvents,
        compact_revision: i64,
    ) -> Result<(), EngineError> {
        let Self {
            history,
            groups,
            index,
            bytes,
            ..
        } = self;
        for event in &revision.events {
            let mut encoder = EventEncoder::new(event, Some(compact_revision));
            let mut failure = None;
            index.matching(&event.key, |group| {
                let group = &mut groups[group];
                if group.next.is_some() || !group.selector.lets_through(event) {
                    return;
                }
                if group
                    .builder
                    .is_full_for(revision.revision, RESPONSE_REVISIONS_MAX)
                {
                    group.next = Some(revision.revision);
                    return;
                }
                match encoder.get(group.selector.previous, history.as_ref()) {
                    Ok(encoded) => {
                        *bytes += encoded.len();
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
}

/// Hands out what was read, to the watchers that still want it.
fn finish(core: &mut Core, plan: &mut Plan) {
    let behind = plan.next;
    let scanned: Vec<Scanned> = plan
        .groups
        .iter_mut()
        .map(|group| Scanned {
            chunk: core.large_chunks.note(group.builder.finish()),
            next: group.next.unwrap_or(behind),
        })
        .collect();
    for reader in &plan.readers {
        if !still_reading(core, reader) {
            continue;
        }
        let scanned = &scanned[reader.group];
        let events = scanned.chunk.since(reader.next);
        if !events.is_empty() && !core.push_history(reader.watcher, scanned.next - 1, events) {
            core.pause(reader.watcher, reader.next);
            continue;
        }
        let next = scanned.next.max(reader.next);
        if next > core.processed {
            core.sync(reader.watcher, next);
        } else {
            core.enqueue(reader.watcher, next);
        }
    }
}

/// The history does not reach back to the start of the plan any more.
fn finish_compacted(core: &mut Core, plan: &Plan) {
    let compact_revision = core.history.compact_revision();
    for reader in &plan.readers {
        if !still_reading(core, reader) {
            continue;
        }
        if reader.next < compact_revision {
            core.cancel_compacted(reader.watcher, compact_revision);
        } else {
            core.enqueue(reader.watcher, reader.next);
        }
    }
}

fn start_over(core: &mut Core, plan: &Plan) {
    for reader in &plan.readers {
        if still_reading(core, reader) {
            core.enqueue(reader.watcher, reader.next);
        }
    }
}

/// Whether the watcher was neither removed nor moved since the plan.
fn still_reading(core: &Core, reader: &PlanReader) -> bool {
    let expected = WatcherState::Reading {
        next: reader.next,
        ticket: reader.ticket,
    };
    core.watchers
        .get(reader.watcher)
        .is_some_and(|watcher| watcher.state == expected)
}
