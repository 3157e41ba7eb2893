//! What the apply thread publishes and every reader sees, and how a store is opened.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use bytes::Bytes;
use metastore_revision_model::{KeyRange, RecordError, Revision};
use parking_lot::{Mutex, RwLock};
use prost::encoding::{decode_varint, encode_varint};

use crate::applier::Applier;
use crate::compaction::{Candidates, Garbage};
use crate::counters::StoreCounters;
use crate::engine::{Direction, EngineError, RowParts, SharedEngine, Table};
use crate::key_counts::{BLOCK_KEYS, KeyCounts};
use crate::lease_rows::LeaseRecord;
use crate::reader::Reader;

/// Row of `meta` that the apply thread writes in every batch that changes what it says.
pub(crate) const STATE_ROW: Bytes = Bytes::from_static(b"store/state");
/// Row of `meta` that the garbage collector writes.
pub(crate) const COLLECTED_ROW: Bytes = Bytes::from_static(b"store/collected");
/// Names in `meta` that belong to the server begin with this.
pub(crate) const SERVER_META_PREFIX: &[u8] = b"server/";

/// Revision of a store in which nothing was written, as in etcd.
const FIRST_REVISION: i64 = 1;
/// Compact revision of a store that was never compacted, as in etcd: `Compact(0)` passes once.
const NEVER_COMPACTED: i64 = -1;
/// First byte of both rows. A later layout takes another number.
const FORMAT: u8 = 1;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Memory of the apply thread's cache of key metadata in bytes. Default 16 MiB, which is at least
    /// 114 000 keys. 0 turns it off.
    pub metadata_cache_bytes: usize,
    /// Where operations are counted. Default: counters of its own.
    pub counters: Arc<StoreCounters>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            metadata_cache_bytes: 16 << 20,
            counters: Arc::default(),
        }
    }
}

/// The replicated numbers of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreState {
    /// Main revision of the last write.
    pub revision: i64,
    /// The revision below which nothing can be read: the scheduled compaction.
    pub compact_revision: i64,
    /// Bytes of all records that were ever written, and of the leases that exist.
    pub bytes_added: i64,
}

/// How far the garbage collector came on this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CollectedState {
    /// The compact revision up to which everything dead is deleted.
    pub finished: i64,
    /// Bytes of all records that were ever deleted.
    pub bytes_removed: i64,
}

/// What the apply thread publishes.
pub(crate) struct Shared {
    pub engine: SharedEngine,
    /// Changed together with `revision`, under its lock.
    pub counts: RwLock<KeyCounts>,
    pub revision: AtomicI64,
    pub compact_revision: AtomicI64,
    pub finished_compact_revision: AtomicI64,
    pub want_previous: AtomicBool,
    pub bytes_added: AtomicI64,
    pub bytes_removed: AtomicI64,
    pub garbage: Mutex<Garbage>,
    pub candidates: Candidates,
    pub counters: Arc<StoreCounters>,
}

impl Shared {
    pub fn revision(&self) -> i64 {
        self.revision.load(Ordering::Acquire)
    }

    pub fn compact_revision(&self) -> i64 {
        self.compact_revision.load(Ordering::Acquire)
    }
}

/// Opens the store in an engine, empty or not.
///
/// # Errors
/// [`EngineError`] when the engine fails or its rows contradict each other: the member must not
/// start.
pub fn open(engine: SharedEngine, options: StoreOptions) -> Result<(Applier, Reader), EngineError> {
    let state = match engine.get_row(Table::Meta, &STATE_ROW)? {
        Some(stored) => StoreState::decode(&stored)?,
        None => StoreState::new(),
    };
    let collected = match engine.get_row(Table::Meta, &COLLECTED_ROW)? {
        Some(stored) => CollectedState::decode(&stored)?,
        None => CollectedState::new(),
    };
    check_state(&engine, &state, &collected)?;
    let counts = load_counts(&engine, state.revision)?;
    let leases = load_leases(&engine)?;
    let shared = Arc::new(Shared {
        engine,
        counts: RwLock::new(counts),
        revision: AtomicI64::new(state.revision),
        compact_revision: AtomicI64::new(state.compact_revision),
        finished_compact_revision: AtomicI64::new(collected.finished),
        want_previous: AtomicBool::new(false),
        bytes_added: AtomicI64::new(state.bytes_added),
        bytes_removed: AtomicI64::new(collected.bytes_removed),
        garbage: Mutex::new(Garbage::default()),
        candidates: Candidates::default(),
        counters: options.counters.clone(),
    });
    let applier = Applier::new(shared.clone(), state, leases, &options);
    Ok((applier, Reader::new(shared)))
}

fn check_state(
    engine: &SharedEngine,
    state: &StoreState,
    collected: &CollectedState,
) -> Result<(), EngineError> {
    let mut newest = None;
    let from = Revision::new(state.revision + 1, 0);
    let to = Revision::new(i64::MAX, i64::MAX);
    engine.scan_revisions(from, to, &mut |revision, _, _| {
        newest = Some(revision);
        ControlFlow::Break(())
    })?;
    let contradiction = |what: String| {
        Err(EngineError::Storage(format!(
            "the store contradicts itself: {what}; stop this member, keep its data directory, and \
             restore it from a snapshot or re-add it as a new member"
        )))
    };
    if let Some(newest) = newest {
        return contradiction(format!(
            "it holds revision {newest} but says that {} is its last",
            state.revision
        ));
    }
    if state.compact_revision > state.revision || collected.finished > state.compact_revision {
        return contradiction(format!(
            "compaction to {} (finished: {}) is ahead of revision {}",
            state.compact_revision, collected.finished, state.revision
        ));
    }
    Ok(())
}

/// Reads the counted blocks, or counts all keys when there are none although there are keys: the
/// table is only an accelerator, and an imported database has none.
fn load_counts(engine: &SharedEngine, revision: i64) -> Result<KeyCounts, EngineError> {
    let mut counts = KeyCounts::new(revision);
    let mut failure = None;
    engine.scan_rows(
        Table::KeyCounts,
        b"",
        b"",
        &mut |fence, stored| match KeyCounts::decode(stored) {
            Ok(count) => {
                counts.set(Bytes::copy_from_slice(fence), count);
                ControlFlow::Continue(())
            }
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        },
    )?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    if counts.is_empty() {
        count_all(engine, &mut counts)?;
    }
    Ok(counts)
}

fn count_all(engine: &SharedEngine, counts: &mut KeyCounts) -> Result<(), EngineError> {
    let mut fence = Bytes::new();
    let mut in_block = 0;
    engine.scan_latest(
        &KeyRange::all(),
        Direction::Forward,
        RowParts::Metadata,
        &mut |key, row| {
            if !row.tombstone {
                if in_block == BLOCK_KEYS {
                    let next = Bytes::copy_from_slice(key);
                    counts.set(std::mem::replace(&mut fence, next), in_block);
                    in_block = 0;
                }
                in_block += 1;
            }
            ControlFlow::Continue(())
        },
    )?;
    counts.set(fence, in_block);
    Ok(())
}

fn load_leases(engine: &SharedEngine) -> Result<HashMap<i64, LeaseRecord>, EngineError> {
    let mut leases = HashMap::new();
    let mut failure = None;
    engine.scan_rows(
        Table::Lease,
        b"",
        b"",
        &mut |key, value| match LeaseRecord::decode(key, value) {
            Ok(lease) => {
                leases.insert(lease.id, lease);
                ControlFlow::Continue(())
            }
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        },
    )?;
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(leases),
    }
}

impl StoreState {
    /// The state of an empty store.
    pub fn new() -> Self {
        Self {
            revision: FIRST_REVISION,
            compact_revision: NEVER_COMPACTED,
            bytes_added: 0,
        }
    }

    pub fn encode(&self) -> Bytes {
        let Self {
            revision,
            compact_revision,
            bytes_added,
        } = *self;
        encode_numbers(&[revision, compact_revision, bytes_added])
    }

    pub fn decode(stored: &[u8]) -> Result<Self, RecordError> {
        let [revision, compact_revision, bytes_added] = decode_numbers("state row", stored)?;
        Ok(Self {
            revision,
            compact_revision,
            bytes_added,
        })
    }
}

impl CollectedState {
    /// The state of a store that was never compacted.
    pub fn new() -> Self {
        Self {
            finished: NEVER_COMPACTED,
            bytes_removed: 0,
        }
    }

    pub fn encode(&self) -> Bytes {
        let Self {
            finished,
            bytes_removed,
        } = *self;
        encode_numbers(&[finished, bytes_removed])
    }

    pub fn decode(stored: &[u8]) -> Result<Self, RecordError> {
        let [finished, bytes_removed] = decode_numbers("collector row", stored)?;
        Ok(Self {
            finished,
            bytes_removed,
        })
    }
}

fn encode_numbers(numbers: &[i64]) -> Bytes {
    let mut bytes = Vec::with_capacity(1 + 10 * numbers.len());
    bytes.push(FORMAT);
    for number in numbers {
        encode_varint(*number as u64, &mut bytes);
    }
    bytes.into()
}

fn decode_numbers<const N: usize>(
    what: &'static str,
    stored: &[u8],
) -> Result<[i64; N], RecordError> {
    let error = RecordError {
        what,
        bytes: stored.len(),
    };
    let Some((&FORMAT, mut rest)) = stored.split_first() else {
        return Err(error);
    };
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = decode_varint(&mut rest).map_err(|_| error.clone())? as i64;
    }
    Ok(numbers)
}
