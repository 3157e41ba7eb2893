//! Reading the state of the store at a revision, over rows that may be newer.
//!
//! A row of `latest` that is not newer than the revision is the answer; from a newer one the
//! `previous` pointers lead to it.

use std::ops::ControlFlow;

use bytes::Bytes;
use metastore_proto::EncodedKeyValue;
use metastore_revision_model::{KeyRange, LatestRow, RangeEnd, Revision, RevisionRecord};

use crate::encoding::{self, Fields};
use crate::engine::{Direction, EngineError, LatestVisitor, RowParts};
use crate::shared::Shared;

/// Keys that a scan collects before it looks up what is not in the rows themselves. Bounds the
/// memory of a long scan and makes its look-ups one multi-get.
const SCAN_CHUNK_KEYS: usize = 1024;

/// Where rows come from: the engine alone, or the engine under uncommitted changes.
pub(crate) trait View {
    /// Tombstones below this revision may have been deleted from the history.
    fn collected_below(&self) -> i64;

    fn latest(&self, key: &[u8], parts: RowParts) -> Result<Option<LatestRow>, EngineError>;

    fn scan(
        &self,
        range: &KeyRange,
        direction: Direction,
        parts: RowParts,
        visit: &mut LatestVisitor<'_>,
    ) -> Result<(), EngineError>;

    fn revisions(
        &self,
        revisions: &[Revision],
    ) -> Result<Vec<Option<(bool, RevisionRecord)>>, EngineError>;
}

impl View for Shared {
    fn collected_below(&self) -> i64 {
        self.compact_revision()
    }

    fn latest(&self, key: &[u8], parts: RowParts) -> Result<Option<LatestRow>, EngineError> {
        self.engine.get_latest(key, parts)
    }

    fn scan(
        &self,
        range: &KeyRange,
        direction: Direction,
        parts: RowParts,
        visit: &mut LatestVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.engine.scan_latest(range, direction, parts, visit)
    }

    fn revisions(
        &self,
        revisions: &[Revision],
    ) -> Result<Vec<Option<(bool, RevisionRecord)>>, EngineError> {
        match revisions {
            [one] => Ok(vec![self.engine.get_revision(*one)?]),
            _ => self.engine.multi_get_revisions(revisions),
        }
    }
}

/// Why a scan could not answer.
#[derive(Debug)]
pub(crate) enum ScanError {
    /// A record that a `previous` pointer names is not there: compaction passed the revision while
    /// the scan ran, or, if it did not, the history is damaged.
    Gone(Revision),
    /// The engine failed.
    Engine(EngineError),
}

impl From<EngineError> for ScanError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<metastore_revision_model::RecordError> for ScanError {
    fn from(error: metastore_revision_model::RecordError) -> Self {
        Self::Engine(error.into())
    }
}

impl ScanError {
    /// The error of a scan that no compaction can have disturbed.
    pub fn into_engine_error(self) -> EngineError {
        match self {
            Self::Engine(error) => error,
            Self::Gone(revision) => EngineError::Storage(format!(
                "the record of revision {revision} is missing from the history: stop this member, \
                 keep its data directory, and restore it from a snapshot or re-add it as a new \
                 member"
            )),
        }
    }
}

/// What a reader needs of each live key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// That it is there.
    Existence,
    /// Versions, revisions, lease; no pair.
    Metadata,
    /// Metadata, and a pair without value and lease, as etcd answers `keys_only` from its index.
    KeyOnlyPair,
    /// Metadata and the stored pair.
    Pair,
}

/// A key that is live at the revision that is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LiveKey {
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    pub lease: i64,
    /// Set for [`Want::KeyOnlyPair`] and [`Want::Pair`].
    pub key_value: EncodedKeyValue,
}

impl LiveKey {
    /// The value; empty unless the pair was wanted.
    pub fn value(&self) -> Bytes {
        match encoding::fields(&self.key_value) {
            Ok(fields) => self.key_value.0.slice_ref(fields.value),
            Err(_) => Bytes::new(),
        }
    }
}

/// A live key, or the record that will tell.
struct Slot {
    live: LiveKey,
    pending: Option<Revision>,
}

/// The state of one key.
pub(crate) fn get_live(
    view: &impl View,
    key: &[u8],
    revision: i64,
    want: Want,
) -> Result<Option<LiveKey>, ScanError> {
    let Some(row) = view.latest(key, parts(want))? else {
        return Ok(None);
    };
    let Some(slot) = classify(key, row, revision, want) else {
        return Ok(None);
    };
    let mut slots = vec![slot];
    resolve(view, &mut slots, revision, want)?;
    Ok(slots.pop().map(|slot| slot.live))
}

/// Visits every key of the range that is live at `revision`, in order. `expected` is how many keys
/// the visitor will take before it breaks, 0 when it takes all.
pub(crate) fn scan_live(
    view: &impl View,
    range: &KeyRange,
    direction: Direction,
    revision: i64,
    want: Want,
    expected: usize,
    visit: &mut dyn FnMut(LiveKey) -> ControlFlow<()>,
) -> Result<(), ScanError> {
    if range.is_single() {
        if let Some(live) = get_live(view, &range.start, revision, want)? {
            let _ = visit(live);
        }
        return Ok(());
    }
    let chunk_keys = match expected {
        0 => SCAN_CHUNK_KEYS,
        expected => expected.min(SCAN_CHUNK_KEYS),
    };
    let mut range = range.clone();
    let mut slots = Vec::new();
    loop {
        let mut resume_at: Option<Vec<u8>> = None;
        let mut stopped = false;
        view.scan(&range, direction, parts(want), &mut |key, row| {
            match classify(key, row, revision, want) {
                None => return ControlFlow::Continue(()),
                // Existence has no order, so that a count needs no memory.
                Some(slot) if want == Want::Existence && slot.pending.is_none() => {
                    stopped = visit(slot.live).is_break();
                    return match stopped {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    };
                }
                Some(slot) => slots.push(slot),
            }
            if slots.len() < chunk_keys {
                return ControlFlow::Continue(());
            }
            resume_at = Some(key.to_vec());
            ControlFlow::Break(())
        })?;
        if stopped {
            return Ok(());
        }
        resolve(view, &mut slots, revision, want)?;
        for slot in slots.drain(..) {
            if visit(slot.live).is_break() {
                return Ok(());
            }
        }
        match resume_at {
            None => return Ok(()),
            Some(key) => range = rest_of(&range, direction, key),
        }
    }
}

/// How many keys of the range are live at `revision`, by visiting them.
pub(crate) fn count_live(
    view: &impl View,
    range: &KeyRange,
    revision: i64,
) -> Result<i64, ScanError> {
    let mut count = 0;
    scan_live(
        view,
        range,
        Direction::Forward,
        revision,
        Want::Existence,
        0,
        &mut |_| {
            count += 1;
            ControlFlow::Continue(())
        },
    )?;
    Ok(count)
}

/// What is left of the range behind `key`.
pub(crate) fn rest_of(range: &KeyRange, direction: Direction, mut key: Vec<u8>) -> KeyRange {
    match direction {
        Direction::Forward => {
            key.push(0);
            KeyRange {
                start: key.into(),
                end: range.end.clone(),
            }
        }
        Direction::Backward => KeyRange {
            start: range.start.clone(),
            end: RangeEnd::Before(key.into()),
        },
    }
}

fn parts(want: Want) -> RowParts {
    match want {
        Want::Pair => RowParts::All,
        Want::Existence | Want::Metadata | Want::KeyOnlyPair => RowParts::Metadata,
    }
}

/// What a row says about its key at `revision`; `None`: the key is not live then.
fn classify(key: &[u8], row: LatestRow, revision: i64, want: Want) -> Option<Slot> {
    let pending = |pending| {
        Some(Slot {
            live: LiveKey::default(),
            pending: Some(pending),
        })
    };
    if row.revision.main > revision {
        return match row.previous.is_none() {
            true => None,
            false => pending(row.previous),
        };
    }
    if row.tombstone {
        return None;
    }
    let key_value = match (want, row.key_value) {
        (Want::Existence | Want::Metadata, _) => EncodedKeyValue::default(),
        (Want::KeyOnlyPair, _) => Fields {
            key,
            create_revision: row.create_revision,
            mod_revision: row.revision.main,
            version: row.version,
            ..Fields::default()
        }
        .encode(),
        (Want::Pair, Some(key_value)) => key_value,
        (Want::Pair, None) => return pending(row.revision),
    };
    Some(Slot {
        live: LiveKey {
            create_revision: row.create_revision,
            mod_revision: row.revision.main,
            version: row.version,
            lease: row.lease,
            key_value,
        },
        pending: None,
    })
}

/// Follows the pending records, one multi-get for each step back, and drops the keys that were not
/// live at `revision`.
fn resolve(
    view: &impl View,
    slots: &mut Vec<Slot>,
    revision: i64,
    want: Want,
) -> Result<(), ScanError> {
    loop {
        let wanted: Vec<Revision> = slots.iter().filter_map(|slot| slot.pending).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let mut records = wanted.iter().zip(view.revisions(&wanted)?);
        let mut failure = None;
        slots.retain_mut(|slot| {
            if slot.pending.is_none() || failure.is_some() {
                return true;
            }
            let (at, record) = records.next().expect("one record for each pending slot");
            match step(view, slot, *at, record, revision, want) {
                Ok(keep) => keep,
                Err(error) => {
                    failure = Some(error);
                    true
                }
            }
        });
        if let Some(error) = failure {
            return Err(error);
        }
    }
}

/// Looks at the record `at`; returns whether the key may still be live.
fn step(
    view: &impl View,
    slot: &mut Slot,
    at: Revision,
    record: Option<(bool, RevisionRecord)>,
    revision: i64,
    want: Want,
) -> Result<bool, ScanError> {
    let Some((tombstone, record)) = record else {
        // What was live at the compact revision is kept, so this was a tombstone: the key was
        // written again before the compaction, and that record still names it.
        return match at.main <= revision && at.main < view.collected_below() {
            true => Ok(false),
            false => Err(ScanError::Gone(at)),
        };
    };
    if at.main > revision {
        slot.pending = Some(record.previous);
        return Ok(!record.previous.is_none());
    }
    slot.pending = None;
    if tombstone {
        return Ok(false);
    }
    let fields = encoding::fields(&record.key_value)?;
    slot.live = LiveKey {
        create_revision: fields.create_revision,
        mod_revision: fields.mod_revision,
        version: fields.version,
        lease: fields.lease,
        key_value: match want {
            Want::Existence | Want::Metadata => EncodedKeyValue::default(),
            Want::KeyOnlyPair => Fields {
                value: &[],
                lease: 0,
                ..fields
            }
            .encode(),
            Want::Pair => record.key_value,
        },
    };
    Ok(true)
}
