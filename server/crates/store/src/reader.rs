//! The readers' side of the store: answers at a revision while the apply thread goes on.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use metastore_proto::EncodedKeyValue;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::request_op::Request;
use metastore_proto::etcdserverpb::response_op::Response;
use metastore_proto::etcdserverpb::{
    RangeRequest, RangeResponse, ResponseOp, TxnRequest, TxnResponse,
};
use metastore_revision_model::{KeyRange, Revision, RevisionRecord};

use crate::applier::{branch, header};
use crate::compaction;
use crate::counters::StoreCounterValues;
use crate::encoding::{self, Fields};
use crate::engine::{EngineError, SharedEngine, Table};
use crate::hash;
use crate::key_counts::BLOCK_KEYS;
use crate::lease_rows::{self, LeaseRecord};
use crate::range;
use crate::response::{RevisionEvents, StoredEvent};
use crate::shared::Shared;
use crate::txn::{self, StateAt};
use crate::validate;
use crate::view::{ScanError, count_live};

/// Revisions behind the present at which a count is still corrected from the history. Beyond it
/// the keys are visited.
const CORRECTED_REVISIONS_MAX: i64 = 100_000;
/// Keys that could be visited in the time of looking at one record of the history.
const KEYS_PER_RECORD: i64 = 2;
/// How often a read that named no revision begins again because a compaction overtook it. Each
/// time a compaction to a newer revision was proposed while the read ran; nobody does that often.
const ATTEMPTS_MAX: usize = 100;

/// Why a read was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The client gets this error.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// The engine failed: the member must stop.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What a store without keys counts as used: its records of revisions and members. etcd counts the pages of its
/// empty tables; clients divide by this number.
const EMPTY_STORE_BYTES: u64 = 4096;

/// Answers reads from the committed state. Cheap to clone; any thread may use it.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Shared>,
}

/// A piece of a streamed range.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RangeChunk {
    /// The next pairs in key order.
    pub kvs: Vec<EncodedKeyValue>,
    /// Whether this is the last piece. The fields below are set only then.
    pub done: bool,
    /// Whether the request's limit cut something off.
    pub more: bool,
    /// All keys in the range, as in the answer to a Range.
    pub count: i64,
    /// The current revision when the stream began, for the header.
    pub revision: i64,
}

/// A range that is answered in pieces, all at the revision at which it began.
pub struct RangeCursor {
    reader: Reader,
    /// The rest of the range, with the fixed revision.
    request: RangeRequest,
    current: i64,
    streamed: i64,
    /// The client's limit; 0: none.
    limit: i64,
}

/// What a scan of the history found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventScan {
    /// The wanted events, whole revisions at a time.
    pub batches: Vec<RevisionEvents>,
    /// The first revision that the scan did not cover.
    pub next: i64,
}

/// The answer to HashKV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// The hash, equal on all members and on etcd for an equal history.
    pub hash: u32,
    /// The current revision.
    pub revision: i64,
    /// The compact revision that the hash belongs to; -1: never compacted.
    pub compact_revision: i64,
    /// The revision up to which was hashed.
    pub hash_revision: i64,
}

/// How large the store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreSize {
    /// Bytes of the records that are kept, with a fixed overhead for each, and of the leases: what
    /// quotas look at. Equal on members that have collected equally much; compaction alone makes it
    /// smaller.
    pub logical_bytes: u64,
    /// Bytes that the engine occupies, without the newest rows that it keeps beside the history; never
    /// shown as less than the logical bytes, which compression would do. What it has more than these is
    /// what a defragmentation can give back.
    pub physical_bytes: u64,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The main revision of the last published write.
    pub fn revision(&self) -> i64 {
        self.shared.revision()
    }

    /// The revision below which nothing can be read; -1: never compacted.
    pub fn compact_revision(&self) -> i64 {
        self.shared.compact_revision()
    }

    /// The compact revision up to which everything dead is deleted on this member; -1: none.
    pub fn finished_compact_revision(&self) -> i64 {
        self.shared
            .finished_compact_revision
            .load(Ordering::Acquire)
    }

    /// Live keys at the published revision.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn key_count(&self) -> Result<i64, EngineError> {
        self.count_at(&KeyRange::all(), self.revision())
            .map_err(ScanError::into_engine_error)
    }

    /// What this member has executed since its start.
    pub fn counters(&self) -> StoreCounterValues {
        self.shared.counters.values()
    }

    /// The engine under this store.
    pub fn engine(&self) -> SharedEngine {
        self.shared.engine.clone()
    }

    /// Answers a Range that [`validate::range`] let pass.
    ///
    /// # Errors
    /// [`EtcdError::FutureRev`] and [`EtcdError::Compacted`] for a revision that cannot be read;
    /// an engine error means that the member must stop.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ReadError> {
        self.shared.counters.count_ranges(1);
        self.read_at(request.revision, |current, revision| {
            self.range_at(request, current, revision)
        })
    }

    /// Begins a RangeStream that [`validate::range_stream`] let pass. The revision is fixed here.
    ///
    /// # Errors
    /// As [`Reader::range`].
    pub fn range_stream_start(&self, request: &RangeRequest) -> Result<RangeCursor, ReadError> {
        let current = self.revision();
        let revision = readable(request.revision, current, self.compact_revision())?;
        Ok(RangeCursor {
            reader: self.clone(),
            request: RangeRequest {
                revision,
                ..request.clone()
            },
            current,
            streamed: 0,
            limit: request.limit.max(0),
        })
    }

    /// Answers a transaction for which [`validate::is_read_only`] is true.
    ///
    /// # Errors
    /// As [`Reader::range`], with the errors of revisions inside transactions.
    ///
    /// # Panics
    /// When the transaction writes.
    pub fn read_only_txn(&self, request: &TxnRequest) -> Result<TxnResponse, ReadError> {
        assert!(
            validate::is_read_only(request),
            "a transaction that writes is executed by the apply thread"
        );
        self.read_at(0, |current, _| {
            let mut state = StateAt {
                view: &*self.shared,
                revision: current,
                reads: 0,
            };
            let mut path = txn::Path::new();
            txn::choose_path(&mut state, request, &mut path)?;
            let succeeded = txn::next_branch(&mut path.iter());
            let ops = branch(request, succeeded);
            let ranges = || {
                ops.iter().filter_map(|op| match &op.request {
                    Some(Request::RequestRange(range)) => Some(range),
                    _ => None,
                })
            };
            for range in ranges() {
                txn::check_range(range, current, self.compact_revision())?;
            }
            self.shared
                .counters
                .count_ranges(state.reads + ranges().count() as u64);
            let mut responses = Vec::with_capacity(ops.len());
            for range in ranges() {
                let response = self.range_in_txn(range, current)?;
                responses.push(ResponseOp {
                    response: Some(Response::ResponseRange(response)),
                });
            }
            Ok(TxnResponse {
                header: header(current),
                succeeded,
                responses,
            })
        })
    }

    /// The wanted events of the revisions from `from` to `to`, both included. Ends after the
    /// revision at which `max_bytes` of pairs were collected, so at least one revision is covered.
    ///
    /// # Errors
    /// [`EtcdError::Compacted`] when `from` is below the compact revision.
    pub fn events(
        &self,
        from: i64,
        to: i64,
        max_bytes: usize,
        wanted: &dyn Fn(&[u8]) -> bool,
        with_previous: bool,
    ) -> Result<EventScan, ReadError> {
        let from = from.max(0);
        let to = to.min(self.revision());
        let check = || match from < self.compact_revision() {
            true => Err(ReadError::Etcd(EtcdError::Compacted)),
            false => Ok(()),
        };
        check()?;
        if from > to {
            return Ok(EventScan {
                batches: Vec::new(),
                next: from,
            });
        }
        let mut collector = EventCollector::new(max_bytes, from);
        let mut failure = None;
        self.shared.engine.scan_revisions(
            Revision::new(from, 0),
            Revision::new(to, i64::MAX),
            &mut |revision, tombstone, record| match collector
                .add(revision, tombstone, record, wanted)
            {
                Ok(flow) => flow,
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            },
        )?;
        if let Some(error) = failure {
            return Err(ReadError::Engine(error));
        }
        let mut scan = collector.finish(to);
        hide_superseded(&mut scan, self.compact_revision());
        self.show_previous(&mut scan, with_previous)?;
        // What was compacted while the scan ran may be missing from it.
        check()?;
        Ok(scan)
    }

    /// The pair at [`StoredEvent::previous`]; `None` when it has been compacted away.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn previous_key_value(
        &self,
        previous: Revision,
    ) -> Result<Option<EncodedKeyValue>, EngineError> {
        if previous.is_none() {
            return Ok(None);
        }
        let found = self.shared.engine.get_revision(previous)?;
        Ok(found.and_then(|(tombstone, record)| (!tombstone).then_some(record.key_value)))
    }

    /// Whether the apply thread reads the previous pair of every change, because some watcher
    /// wants them. Takes effect with the next command.
    pub fn want_previous(&self, wanted: bool) {
        self.shared.want_previous.store(wanted, Ordering::Relaxed);
    }

    /// HashKV at a revision; 0 for the current one.
    ///
    /// # Errors
    /// [`EtcdError::Compacted`] and [`EtcdError::FutureRev`] for a revision that cannot be hashed.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, ReadError> {
        for _ in 0..ATTEMPTS_MAX {
            let finished = self.finished_compact_revision();
            let compact_revision = self.compact_revision();
            let current = self.revision();
            if revision > 0 && revision < compact_revision {
                return Err(EtcdError::Compacted.into());
            }
            if revision > current {
                return Err(EtcdError::FutureRev.into());
            }
            // As in etcd only 0 means "now": below it there is nothing to hash.
            let hash_revision = match revision {
                0 => current,
                named => named,
            };
            let engine = &*self.shared.engine;
            let purpose = hash::Purpose::Call;
            let hash = hash::hash_at(engine, hash_revision, compact_revision, finished, purpose)?;
            if self.compact_revision() == compact_revision {
                return Ok(HashKv {
                    hash,
                    revision: current,
                    compact_revision,
                    hash_revision,
                });
            }
        }
        Err(overtaken().into())
    }

    /// The hash that etcd makes while it carries out a compaction at `revision` after one at `previous`
    /// (−1: the first one). To be asked before anything is deleted because of it.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn hash_of_compaction(&self, previous: i64, revision: i64) -> Result<u32, EngineError> {
        let finished = self.finished_compact_revision();
        let purpose = hash::Purpose::Compaction;
        hash::hash_at(&*self.shared.engine, revision, previous, finished, purpose)
    }

    /// A hash of everything that clients can change, for tests and operators: equal before and
    /// after a restart.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn hash(&self) -> Result<u32, EngineError> {
        hash::hash_all(&*self.shared.engine)
    }

    /// A lease; `None` when it does not exist.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn lease(&self, id: i64) -> Result<Option<LeaseRecord>, EngineError> {
        let key = LeaseRecord::row_key(id);
        match self.shared.engine.get_row(Table::Lease, &key)? {
            Some(row) => Ok(Some(LeaseRecord::decode(&key, &row)?)),
            None => Ok(None),
        }
    }

    /// All leases. Their order has no meaning.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn leases(&self) -> Result<Vec<LeaseRecord>, EngineError> {
        let rows = self.scan_rows(Table::Lease, b"")?;
        rows.iter()
            .map(|(key, value)| Ok(LeaseRecord::decode(key, value)?))
            .collect()
    }

    /// The keys that are attached to a lease, in order.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, EngineError> {
        let rows = self.scan_rows(Table::LeaseKeys, &id.to_be_bytes())?;
        rows.iter()
            .map(|(key, _)| Ok(lease_rows::attached_key(key)?))
            .collect()
    }

    /// A committed row of another table.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn get_row(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.shared.engine.get_row(table, key)
    }

    /// The committed rows of another table whose keys start with `prefix`, in order.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn scan_rows(
        &self,
        table: Table,
        prefix: &[u8],
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let mut rows = Vec::new();
        let engine = &self.shared.engine;
        engine.scan_rows(table, prefix, prefix, &mut |key, value| {
            rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    /// How large the store is. An empty one has a size, too.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn size(&self) -> Result<StoreSize, EngineError> {
        let logical_bytes = self.logical_bytes() + EMPTY_STORE_BYTES;
        let engine = self.shared.engine.size()?;
        let physical_bytes = engine.physical_bytes.saturating_sub(engine.latest_bytes);
        Ok(StoreSize {
            logical_bytes,
            physical_bytes: physical_bytes.max(logical_bytes),
        })
    }

    /// [`StoreSize::logical_bytes`] alone, which costs two loads.
    pub fn logical_bytes(&self) -> u64 {
        let added = self.shared.bytes_added.load(Ordering::Relaxed);
        let removed = self.shared.bytes_removed.load(Ordering::Relaxed);
        u64::try_from(added - removed).unwrap_or(0)
    }

    /// Deletes what the scheduled compaction made dead: one step of at most `batch_revisions`
    /// records. Returns false when nothing is left to do. For a background thread, which paces the
    /// steps.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails: the member must stop.
    pub fn collect_garbage_step(&self, batch_revisions: usize) -> Result<bool, EngineError> {
        compaction::collect_step(&self.shared, batch_revisions, i64::MAX)
    }

    /// As [`collect_garbage_step`](Self::collect_garbage_step), of compactions up to `revision` only.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn collect_garbage_step_up_to(
        &self,
        revision: i64,
        batch_revisions: usize,
    ) -> Result<bool, EngineError> {
        compaction::collect_step(&self.shared, batch_revisions, revision)
    }

    /// Reads at a revision that no compaction passes meanwhile. `read` gets the current revision
    /// and the one to read at; it is called again when a compaction overtook it and no revision
    /// was named.
    fn read_at<T>(
        &self,
        named: i64,
        mut read: impl FnMut(i64, i64) -> Result<T, Failure>,
    ) -> Result<T, ReadError> {
        for _ in 0..ATTEMPTS_MAX {
            let current = self.revision();
            let revision = readable(named, current, self.compact_revision())?;
            let result = read(current, revision);
            if self.compact_revision() > revision {
                match named {
                    ..=0 => continue,
                    _ => return Err(EtcdError::Compacted.into()),
                }
            }
            return match result {
                Ok(answer) => Ok(answer),
                Err(Failure::Etcd(error)) => Err(error.into()),
                Err(Failure::Scan(error)) => Err(error.into_engine_error().into()),
            };
        }
        Err(overtaken().into())
    }

    fn range_at(
        &self,
        request: &RangeRequest,
        current: i64,
        revision: i64,
    ) -> Result<RangeResponse, Failure> {
        let mut counter = |range: &KeyRange| self.count_at(range, revision);
        let answer = range::execute(&*self.shared, request, revision, &mut counter)?;
        Ok(RangeResponse {
            header: header(current),
            kvs: answer.key_values,
            more: answer.more,
            count: answer.count,
        })
    }

    /// A range of a read-only transaction at `current`, or at the older revision that it names.
    fn range_in_txn(&self, request: &RangeRequest, current: i64) -> Result<RangeResponse, Failure> {
        let named = request.revision;
        if named <= 0 {
            return self.range_at(request, current, current);
        }
        let result = self.range_at(request, current, named);
        match named < self.compact_revision() {
            true => Err(Failure::Etcd(EtcdError::Compacted)),
            false => result,
        }
    }

    /// The live keys of a range at a revision: the counted blocks, corrected by what was created
    /// and deleted since, or, when that was a lot, by visiting the keys.
    fn count_at(&self, range: &KeyRange, revision: i64) -> Result<i64, ScanError> {
        let view = &*self.shared;
        if range.is_single() {
            return count_live(view, range, revision);
        }
        // The block sums and their revision belong together.
        let (sum, counted) = {
            let counts = self.shared.counts.read();
            (counts.sum(range), counts.revision)
        };
        let newer = counted - revision;
        let keys = sum.whole_keys + (sum.partial.len() as u64 * BLOCK_KEYS) as i64;
        let correct = newer == 0
            || newer <= CORRECTED_REVISIONS_MAX && newer.saturating_mul(KEYS_PER_RECORD) <= keys;
        if sum.whole_keys == 0 || !correct {
            return count_live(view, range, revision);
        }
        let mut count = sum.whole_keys;
        for partial in &sum.partial {
            count += count_live(view, partial, counted)?;
        }
        if newer > 0 {
            count -= self.live_key_change(range, revision, counted)?;
        }
        Ok(count)
    }

    /// How many more keys of the range are live at `to` than at `from`.
    fn live_key_change(&self, range: &KeyRange, from: i64, to: i64) -> Result<i64, ScanError> {
        let mut change = 0;
        let mut failure = None;
        self.shared.engine.scan_revisions(
            Revision::new(from + 1, 0),
            Revision::new(to, i64::MAX),
            &mut |_, tombstone, record| {
                match encoding::fields(&record.key_value) {
                    Ok(fields) if !range.contains(fields.key) => {}
                    Ok(_) if tombstone => change -= 1,
                    Ok(fields) => change += i64::from(fields.version == 1),
                    Err(error) => {
                        failure = Some(error);
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            },
        )?;
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(change),
        }
    }

    /// Makes [`StoredEvent::previous`] of stored records what a watcher is shown: the key's state
    /// one main revision before, if that can still be read.
    fn show_previous(&self, scan: &mut EventScan, with_pairs: bool) -> Result<(), EngineError> {
        let compact_revision = self.compact_revision();
        let mut shown: Vec<&mut StoredEvent> = Vec::new();
        for event in scan.batches.iter_mut().flat_map(|batch| &mut batch.events) {
            let main = event.revision.main;
            // etcd reads at main - 1: what is compacted there is not shown even if it is stored.
            if event.created || main - 1 < compact_revision {
                event.previous = Revision::NONE;
            }
            // A transaction can change a key twice; behind its own changes may be a tombstone.
            let stepped_back = event.previous.main == main;
            while event.previous.main == main {
                event.previous = match self.shared.engine.get_revision(event.previous)? {
                    Some((_, record)) => record.previous,
                    None => Revision::NONE,
                };
            }
            if !event.previous.is_none() && (with_pairs || stepped_back) {
                shown.push(event);
            }
        }
        let wanted: Vec<Revision> = shown.iter().map(|event| event.previous).collect();
        let records = self.shared.engine.multi_get_revisions(&wanted)?;
        for (event, record) in shown.into_iter().zip(records) {
            match record {
                Some((false, record)) => event.previous_key_value = Some(record.key_value),
                Some((true, _)) | None => event.previous = Revision::NONE,
            }
        }
        Ok(())
    }
}

impl RangeCursor {
    /// The next piece: at most `limit_keys` pairs, at least one if there are any. The caller tunes
    /// the number to the bytes that it wants to send at once.
    ///
    /// # Errors
    /// [`EtcdError::Compacted`] when a compaction passed the stream's revision.
    pub fn next_chunk(&mut self, limit_keys: usize) -> Result<RangeChunk, ReadError> {
        let current = self.current;
        if self.request.count_only {
            let response = self.reader.range(&self.request)?;
            return Ok(RangeChunk {
                done: true,
                count: response.count,
                revision: current,
                ..RangeChunk::default()
            });
        }
        let left = match self.limit {
            0 => i64::MAX,
            limit => limit - self.streamed,
        };
        self.reader.shared.counters.count_ranges(1);
        let asked = i64::try_from(limit_keys.max(1)).unwrap_or(i64::MAX);
        self.request.limit = asked.min(left);
        let (answer, remaining) = self.reader.read_at(self.request.revision, |_, revision| {
            self.read_chunk(revision, asked >= left)
        })?;
        self.streamed += answer.key_values.len() as i64;
        let done = !answer.more || self.streamed == self.limit;
        if !done {
            self.request.key = next_key(&answer)?.unwrap_or_default();
        }
        Ok(RangeChunk {
            done,
            more: done && answer.more,
            count: if done { self.streamed + remaining } else { 0 },
            revision: if done { current } else { 0 },
            kvs: answer.key_values,
        })
    }

    /// The pairs, and how many keys are behind them if this piece is `last` by the limit.
    fn read_chunk(&self, revision: i64, last: bool) -> Result<(range::Answer, i64), Failure> {
        let view = &*self.reader.shared;
        // Whatever the answer says about the count is replaced below.
        let answer = range::execute(view, &self.request, revision, &mut |_| Ok(0))?;
        let mut remaining = 0;
        if last
            && answer.more
            && let Some(key) = next_key(&answer)?
        {
            let rest = KeyRange::new(key, self.request.range_end.clone());
            if !rest.is_empty() {
                self.reader.shared.counters.count_ranges(1);
                remaining = self.reader.count_at(&rest, revision)?;
            }
        }
        Ok((answer, remaining))
    }
}

/// Hides changes that another change of the same, compacted revision superseded: whether they are
/// still stored depends on how far the garbage collector came, and must not be seen.
fn hide_superseded(scan: &mut EventScan, compact_revision: i64) {
    let Some(batch) = scan.batches.first_mut() else {
        return;
    };
    if batch.revision == compact_revision {
        let superseded: HashSet<Revision> = batch.events.iter().map(|e| e.previous).collect();
        batch
            .events
            .retain(|event| !superseded.contains(&event.revision));
    }
}

/// The first key that can follow the answer's last one.
fn next_key(answer: &range::Answer) -> Result<Option<Bytes>, EngineError> {
    let Some(last) = answer.key_values.last() else {
        return Ok(None);
    };
    let key = encoding::fields(last)?.key;
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    Ok(Some(next.into()))
}

/// Why an attempt to read failed.
enum Failure {
    Etcd(EtcdError),
    Scan(ScanError),
}

impl From<EtcdError> for Failure {
    fn from(error: EtcdError) -> Self {
        Self::Etcd(error)
    }
}

impl From<ScanError> for Failure {
    fn from(error: ScanError) -> Self {
        Self::Scan(error)
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Scan(error.into())
    }
}

/// The revision to read at.
fn readable(named: i64, current: i64, compacted: i64) -> Result<i64, EtcdError> {
    match named {
        ..=0 => Ok(current),
        named if named > current => Err(EtcdError::FutureRev),
        named if named < compacted => Err(EtcdError::Compacted),
        named => Ok(named),
    }
}

fn overtaken() -> EngineError {
    EngineError::Storage(format!(
        "compactions overtook a read {ATTEMPTS_MAX} times in a row"
    ))
}

/// Groups records into whole revisions.
struct EventCollector {
    batches: Vec<RevisionEvents>,
    bytes: usize,
    max_bytes: usize,
    /// The revision of the last record.
    current: i64,
    /// Set when the bytes are used up: the first revision that is not covered.
    stopped_at: Option<i64>,
}

impl EventCollector {
    fn new(max_bytes: usize, from: i64) -> Self {
        Self {
            batches: Vec::new(),
            bytes: 0,
            max_bytes,
            current: from,
            stopped_at: None,
        }
    }

    fn add(
        &mut self,
        revision: Revision,
        tombstone: bool,
        record: RevisionRecord,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> Result<ControlFlow<()>, EngineError> {
        if revision.main != self.current {
            if self.bytes >= self.max_bytes && !self.batches.is_empty() {
                self.stopped_at = Some(revision.main);
                return Ok(ControlFlow::Break(()));
            }
            self.current = revision.main;
        }
        let fields = encoding::fields(&record.key_value)?;
        if !wanted(fields.key) {
            return Ok(ControlFlow::Continue(()));
        }
        self.bytes += record.key_value.0.len();
        let key = record.key_value.0.slice_ref(fields.key);
        let created = !tombstone && fields.version == 1;
        let key_value = match tombstone {
            true => Fields {
                key: &key,
                mod_revision: revision.main,
                ..Fields::default()
            }
            .encode(),
            false => record.key_value,
        };
        let event = StoredEvent {
            key,
            revision,
            tombstone,
            created,
            key_value,
            previous: record.previous,
            previous_key_value: None,
        };
        match self.batches.last_mut() {
            Some(batch) if batch.revision == revision.main => batch.events.push(event),
            _ => self.batches.push(RevisionEvents {
                revision: revision.main,
                events: vec![event],
            }),
        }
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, to: i64) -> EventScan {
        EventScan {
            batches: self.batches,
            next: self.stopped_at.unwrap_or(to + 1),
        }
    }
}
