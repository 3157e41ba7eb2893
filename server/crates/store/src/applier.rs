//! The apply thread's side of the store: executes commands on an overlay and commits them.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use metastore_proto::EncodedKeyValue;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::request_op::Request as OpRequest;
use metastore_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    LeaseCheckpointRequest, LeaseCheckpointResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseRevokeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, TxnRequest,
};
use metastore_proto::internal::command::Request;
use metastore_proto::internal::{Command, LeaseRevokeCommand};
use metastore_revision_model::{KeyRange, LatestRow, Revision, RevisionRecord};

use crate::compaction::record_bytes;
use crate::counters::Tally;
use crate::encoding::{self, Fields};
use crate::engine::{Direction, EngineError, RowParts, SharedEngine, Table};
use crate::key_counts::{BLOCK_KEYS, BlockChanges, KeyCounts, SPLIT_KEYS};
use crate::lease_rows::{self, LEASE_BYTES, LeaseRecord};
use crate::metadata_cache::{Metadata, MetadataCache};
use crate::overlay::{ChangedKey, Overlay};
use crate::range;
use crate::response::{
    CommandResponse, CommandResult, Committed, LeaseChange, RevisionEvents, StoredEvent,
};
use crate::shared::{SERVER_META_PREFIX, STATE_ROW, Shared, StoreOptions, StoreState};
use crate::validate::LEASE_TTL_MAX_SECONDS;
use crate::view::{ScanError, View, count_live};

/// Collected tombstones whose rows of `latest` one commit removes. Each costs a look-up in the
/// apply thread, so a large compaction must not come back as one long pause.
const CANDIDATES_PER_COMMIT: usize = 256;

/// Executes commands. Owned by the apply thread; everything it does is a function of the state and
/// the command alone, so that all members do the same.
pub struct Applier {
    shared: Arc<Shared>,
    /// The numbers including uncommitted commands.
    state: StoreState,
    pub(crate) overlay: Overlay,
    events: Vec<RevisionEvents>,
    lease_changes: Vec<LeaseChange>,
    leases: HashMap<i64, LeaseRecord>,
    cache: MetadataCache,
    /// Keys that prefetching did not find, so that a creation need not look again.
    absent: HashSet<Bytes>,
    want_previous: bool,
    pub(crate) tally: Tally,
}

/// The changes of the command that is being executed: one main revision, if there are any.
pub(crate) struct Write {
    begin: i64,
    events: Vec<StoredEvent>,
}

impl Write {
    /// The revision that a read inside the command sees, and that its header names.
    pub fn revision(&self) -> i64 {
        self.begin + i64::from(!self.events.is_empty())
    }

    /// The revision that the command's changes get.
    pub fn main(&self) -> i64 {
        self.begin + 1
    }

    fn next(&self) -> Revision {
        Revision::new(self.main(), self.events.len() as i64)
    }
}

pub(crate) fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..ResponseHeader::default()
    })
}

impl Applier {
    pub(crate) fn new(
        shared: Arc<Shared>,
        state: StoreState,
        leases: HashMap<i64, LeaseRecord>,
        options: &StoreOptions,
    ) -> Self {
        Self {
            overlay: Overlay::new(shared.clone()),
            shared,
            state,
            events: Vec::new(),
            lease_changes: Vec::new(),
            leases,
            cache: MetadataCache::new(options.metadata_cache_bytes),
            absent: HashSet::new(),
            want_previous: false,
            tally: Tally::default(),
        }
    }

    /// Reads the latest rows of the keys of the coming commands with one multi-get. A hint: it
    /// changes no result.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn prefetch<'a>(
        &mut self,
        commands: impl Iterator<Item = &'a Command>,
    ) -> Result<(), EngineError> {
        if !self.shared.engine.is_persistent() {
            // A look-up in memory costs as much now as later.
            return Ok(());
        }
        let mut keys = HashSet::new();
        for command in commands {
            match &command.request {
                Some(Request::Put(put)) => self.want_key(&mut keys, &put.key),
                Some(Request::DeleteRange(delete)) if delete.range_end.is_empty() => {
                    self.want_key(&mut keys, &delete.key);
                }
                Some(Request::Txn(txn)) => self.want_keys_of_txn(&mut keys, txn),
                _ => {}
            }
        }
        if keys.is_empty() {
            return Ok(());
        }
        // The keys are looked up in order, which is kind to the disk.
        let mut keys: Vec<Bytes> = keys.into_iter().collect();
        keys.sort_unstable();
        let rows = self
            .shared
            .engine
            .multi_get_latest(&keys, RowParts::Metadata)?;
        for (key, row) in keys.into_iter().zip(rows) {
            match row {
                Some(row) => self.cache.insert(&key, Metadata::from(&row)),
                None => {
                    self.absent.insert(key);
                }
            }
        }
        Ok(())
    }

    fn want_keys_of_txn(&self, keys: &mut HashSet<Bytes>, txn: &TxnRequest) {
        for compare in &txn.compare {
            if compare.range_end.is_empty() {
                self.want_key(keys, &compare.key);
            }
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match &op.request {
                Some(OpRequest::RequestPut(put)) => self.want_key(keys, &put.key),
                Some(OpRequest::RequestDeleteRange(delete)) if delete.range_end.is_empty() => {
                    self.want_key(keys, &delete.key);
                }
                Some(OpRequest::RequestTxn(nested)) => self.want_keys_of_txn(keys, nested),
                _ => {}
            }
        }
    }

    fn want_key(&self, keys: &mut HashSet<Bytes>, key: &Bytes) {
        if !self.cache.contains(key) && !self.overlay.keys.contains_key(key) {
            keys.insert(key.clone());
        }
    }

    /// Executes a command on top of everything that was executed before. `term` is the term of its
    /// log entry. Alarms and members are not the store's: such a command must not come here.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails: the member must stop, since the command may have been
    /// executed in part. An error that the client gets is inside the result.
    ///
    /// # Panics
    /// When the command is not the store's.
    pub fn execute(&mut self, command: &Command, term: u64) -> Result<CommandResult, EngineError> {
        self.want_previous = self.shared.want_previous.load(Ordering::Relaxed);
        let result = self.execute_request(command, term);
        self.tally.finish_command();
        result
    }

    fn execute_request(
        &mut self,
        command: &Command,
        term: u64,
    ) -> Result<CommandResult, EngineError> {
        match &command.request {
            Some(Request::Put(put)) => self.execute_put(put),
            Some(Request::DeleteRange(delete)) => self.execute_delete_range(delete),
            Some(Request::Txn(txn)) => self.execute_txn(txn),
            Some(Request::Compaction(compaction)) => Ok(self.execute_compaction(compaction)),
            Some(Request::LeaseGrant(grant)) => Ok(self.execute_lease_grant(grant)),
            Some(Request::LeaseRevoke(revoke)) => self.execute_lease_revoke(revoke, term),
            Some(Request::LeaseCheckpoint(checkpoint)) => {
                Ok(self.execute_lease_checkpoint(checkpoint))
            }
            _ => panic!("this command is not the store's: the server executes it itself"),
        }
    }

    /// A row of another table, with what uncommitted commands changed.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn get_row(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.overlay.get_row(table, key)
    }

    /// Writes a row of another table in the next batch. In `meta` only names that begin with
    /// `server/` are the caller's.
    pub fn put_row(&mut self, table: Table, key: Bytes, value: Bytes) {
        assert_row_is_servers(table, &key);
        self.overlay.set_row(table, key, Some(value));
    }

    /// Removes a row of another table in the next batch.
    pub fn delete_row(&mut self, table: Table, key: Bytes) {
        assert_row_is_servers(table, &key);
        self.overlay.set_row(table, key, None);
    }

    /// The rows of another table whose keys start with `prefix`, with what uncommitted commands
    /// changed, in the order of their keys.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn scan_rows(
        &self,
        table: Table,
        prefix: &[u8],
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.overlay.scan_rows(table, prefix)
    }

    /// The main revision of the last write, committed or not.
    pub fn revision(&self) -> i64 {
        self.state.revision
    }

    /// The revision below which nothing can be read, committed or not; -1: never compacted.
    pub fn compact_revision(&self) -> i64 {
        self.state.compact_revision
    }

    /// Whether the lease exists, uncommitted grants and revokes included.
    pub fn lease(&self, id: i64) -> Option<LeaseRecord> {
        self.leases.get(&id).copied()
    }

    /// The keys that are attached to a lease, in order, with uncommitted changes.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails.
    pub fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, EngineError> {
        let rows = self
            .overlay
            .scan_rows(Table::LeaseKeys, &id.to_be_bytes())?;
        rows.iter()
            .map(|(key, _)| Ok(lease_rows::attached_key(key)?))
            .collect()
    }

    /// Writes everything since the last commit as one batch, then publishes it to readers.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails: the member must stop.
    pub fn commit(&mut self) -> Result<Committed, EngineError> {
        self.absent.clear();
        self.tally.publish(&self.shared.counters);
        let changes = {
            let counts = self.shared.counts.read();
            counts.changes(self.overlay.keys.iter().filter_map(|(key, changed)| {
                let is_live = !changed.row.tombstone;
                (is_live != changed.was_live).then_some((key, is_live))
            }))
        };
        for (fence, count) in &changes {
            let row = count.map(KeyCounts::encode);
            self.overlay.set_row(Table::KeyCounts, fence.clone(), row);
        }
        let collected = self.collected_tombstones()?;
        let compacted = self.state.compact_revision != self.shared.compact_revision();
        let resized = self.state.bytes_added != self.shared.bytes_added.load(Ordering::Relaxed);
        if self.state.revision != self.overlay.committed_revision || compacted || resized {
            let state = self.state.encode();
            self.overlay.set_row(Table::Meta, STATE_ROW, Some(state));
        }
        let mut batch = self.overlay.take_batch();
        batch
            .latest
            .extend(collected.into_iter().map(|key| (key, None)));
        if !batch.is_empty() {
            self.shared.engine.write(batch)?;
        }
        self.publish(changes)?;
        Ok(Committed {
            revision: self.state.revision,
            events: std::mem::take(&mut self.events),
            lease_changes: std::mem::take(&mut self.lease_changes),
        })
    }

    fn publish(&mut self, changes: BlockChanges) -> Result<(), EngineError> {
        let published = self.shared.revision();
        assert!(
            self.state.revision >= published,
            "the revision went back from {published} to {}",
            self.state.revision
        );
        let StoreState {
            revision,
            compact_revision,
            bytes_added,
        } = self.state;
        let grown: Vec<Bytes> = changes
            .iter()
            .filter(|(_, count)| count.is_some_and(|count| count >= SPLIT_KEYS))
            .map(|(fence, _)| fence.clone())
            .collect();
        {
            // Counts and revision change together, so that the kvs and the count of a list belong
            // to one revision.
            let mut counts = self.shared.counts.write();
            counts.apply(changes);
            counts.revision = revision;
            self.shared.revision.store(revision, Ordering::Release);
        }
        self.overlay.committed_revision = revision;
        self.shared
            .bytes_added
            .store(bytes_added, Ordering::Relaxed);
        self.shared
            .compact_revision
            .store(compact_revision, Ordering::Release);
        for fence in grown {
            self.split_block(fence)?;
        }
        Ok(())
    }

    /// Cuts a block into blocks of [`BLOCK_KEYS`]. The rows follow with the next batch: until then
    /// the stored block is the larger one, which is as true.
    fn split_block(&mut self, fence: Bytes) -> Result<(), EngineError> {
        let range = self.shared.counts.read().range_of(&fence);
        let mut blocks: Vec<(Bytes, u64)> = vec![(fence, 0)];
        self.shared.engine.scan_latest(
            &range,
            Direction::Forward,
            RowParts::Metadata,
            &mut |key, row| {
                if row.tombstone {
                    return ControlFlow::Continue(());
                }
                match blocks.last_mut() {
                    Some((_, count)) if *count < BLOCK_KEYS => *count += 1,
                    _ => blocks.push((Bytes::copy_from_slice(key), 1)),
                }
                ControlFlow::Continue(())
            },
        )?;
        let changes: BlockChanges = blocks
            .into_iter()
            .map(|(fence, count)| (fence, Some(count)))
            .collect();
        for (fence, count) in &changes {
            let row = count.map(KeyCounts::encode);
            self.overlay.set_row(Table::KeyCounts, fence.clone(), row);
        }
        self.shared.counts.write().apply(changes);
        Ok(())
    }

    /// Keys whose row of `latest` is a tombstone that the history no longer holds.
    fn collected_tombstones(&mut self) -> Result<Vec<Bytes>, EngineError> {
        let mut candidates = self.shared.candidates.take(CANDIDATES_PER_COMMIT);
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        // A key that this very batch writes again keeps its row.
        candidates.retain(|(key, _)| !self.overlay.keys.contains_key(key));
        let keys: Vec<Bytes> = candidates.iter().map(|(key, _)| key.clone()).collect();
        let rows = self
            .shared
            .engine
            .multi_get_latest(&keys, RowParts::Metadata)?;
        let mut collected = Vec::new();
        for ((key, revision), row) in candidates.into_iter().zip(rows) {
            if row.is_some_and(|row| row.tombstone && row.revision == revision) {
                self.cache.remove(&key);
                collected.push(key);
            }
        }
        Ok(collected)
    }

    // ---- writes of keys ---------------------------------------------------------------------

    pub(crate) fn begin(&self) -> Write {
        Write {
            begin: self.state.revision,
            events: Vec::new(),
        }
    }

    /// Takes the revision, if anything was written. Returns the revision after the command.
    pub(crate) fn finish(&mut self, write: Write) -> i64 {
        let revision = write.revision();
        if !write.events.is_empty() {
            self.state.revision = revision;
            self.events.push(RevisionEvents {
                revision,
                events: write.events,
            });
        }
        revision
    }

    fn execute_put(&mut self, put: &PutRequest) -> Result<CommandResult, EngineError> {
        if let Err(error) = self.check_put(put)? {
            return Ok(Err(error));
        }
        let mut write = self.begin();
        let response = self.put(&mut write, put)?;
        self.finish(write);
        Ok(Ok(CommandResponse::Put(response)))
    }

    /// Whether the put can be done in the current state.
    pub(crate) fn check_put(
        &mut self,
        put: &PutRequest,
    ) -> Result<Result<(), EtcdError>, EngineError> {
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Ok(Err(EtcdError::LeaseNotFound));
        }
        if put.ignore_value || put.ignore_lease || put.prev_kv {
            self.tally.ranges += 1;
        }
        if (put.ignore_value || put.ignore_lease) && self.live_metadata(&put.key)?.is_none() {
            return Ok(Err(EtcdError::KeyNotFound));
        }
        Ok(Ok(()))
    }

    /// Writes a key. The caller has checked it.
    pub(crate) fn put(
        &mut self,
        write: &mut Write,
        put: &PutRequest,
    ) -> Result<PutResponse, EngineError> {
        let before = self.metadata(&put.key)?;
        let live = before.filter(|metadata| !metadata.tombstone);
        let previous_pair = match live {
            Some(live) if put.prev_kv || put.ignore_value || self.want_previous => {
                Some(self.pair_at(live.revision)?)
            }
            _ => None,
        };
        let old_value = match &previous_pair {
            Some(pair) if put.ignore_value => encoding::fields(pair)?.value,
            _ => &[],
        };
        let value = match put.ignore_value {
            true => old_value,
            false => &put.value[..],
        };
        self.tally.puts += 1;
        self.tally.put_bytes += (put.key.len() + value.len()) as u64;
        let lease = match put.ignore_lease {
            true => live.map_or(0, |live| live.lease),
            false => put.lease,
        };
        let revision = write.next();
        let version = live.map_or(1, |live| live.version + 1);
        let create_revision = live.map_or(revision.main, |live| live.create_revision);
        let pair = Fields {
            key: &put.key,
            create_revision,
            mod_revision: revision.main,
            version,
            value,
            lease,
        }
        .encode();
        // The key as a slice of the pair: one allocation holds both, and none of it pins the
        // buffer that the command came in.
        let key = encoding::key(&pair)?;
        self.move_attachment(&key, live.map_or(0, |live| live.lease), lease);
        let previous = self.previous_of(before);
        let row = LatestRow {
            revision,
            create_revision,
            version,
            lease,
            previous,
            tombstone: false,
            key_value: Some(pair.clone()),
        };
        let event = StoredEvent {
            key: key.clone(),
            revision,
            tombstone: false,
            created: version == 1,
            key_value: pair.clone(),
            previous: match version {
                1 => Revision::NONE,
                _ => self.visible_previous(previous, revision.main)?,
            },
            previous_key_value: None,
        };
        self.record(write, key, row, pair, event, previous_pair.as_ref(), live)?;
        Ok(PutResponse {
            header: header(write.main()),
            prev_kv: previous_pair.filter(|_| put.prev_kv),
        })
    }

    fn execute_delete_range(
        &mut self,
        delete: &DeleteRangeRequest,
    ) -> Result<CommandResult, EngineError> {
        let mut write = self.begin();
        let response = self.delete_range(&mut write, delete)?;
        self.finish(write);
        Ok(Ok(CommandResponse::DeleteRange(response)))
    }

    pub(crate) fn delete_range(
        &mut self,
        write: &mut Write,
        delete: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, EngineError> {
        self.tally.deletes += 1;
        self.tally.ranges += u64::from(delete.prev_kv);
        let range = KeyRange::new(delete.key.clone(), delete.range_end.clone());
        let keys = self.live_keys(&range)?;
        let mut previous_pairs = Vec::new();
        let deleted = keys.len() as i64;
        for (key, live) in keys {
            let pair = match delete.prev_kv || self.want_previous {
                true => Some(self.pair_at(live.revision)?),
                false => None,
            };
            self.delete(write, &key, live, pair.as_ref())?;
            if delete.prev_kv {
                previous_pairs.extend(pair);
            }
        }
        Ok(DeleteRangeResponse {
            header: header(write.revision()),
            deleted,
            prev_kvs: previous_pairs,
        })
    }

    fn delete(
        &mut self,
        write: &mut Write,
        key: &[u8],
        live: Metadata,
        previous_pair: Option<&EncodedKeyValue>,
    ) -> Result<(), EngineError> {
        let revision = write.next();
        let stored = Fields {
            key,
            ..Fields::default()
        }
        .encode();
        let shown = Fields {
            key,
            mod_revision: revision.main,
            ..Fields::default()
        }
        .encode();
        let key = encoding::key(&stored)?;
        self.move_attachment(&key, live.lease, 0);
        let row = LatestRow {
            revision,
            create_revision: 0,
            version: 0,
            lease: 0,
            previous: live.revision,
            tombstone: true,
            key_value: None,
        };
        let event = StoredEvent {
            key: key.clone(),
            revision,
            tombstone: true,
            created: false,
            key_value: shown,
            previous: self.visible_previous(live.revision, revision.main)?,
            previous_key_value: None,
        };
        self.record(write, key, row, stored, event, previous_pair, Some(live))
    }

    /// Puts a change into the overlay, the cache and the events.
    #[allow(clippy::too_many_arguments)]
    fn record(
        &mut self,
        write: &mut Write,
        key: Bytes,
        row: LatestRow,
        pair: EncodedKeyValue,
        mut event: StoredEvent,
        previous_pair: Option<&EncodedKeyValue>,
        live: Option<Metadata>,
    ) -> Result<(), EngineError> {
        let revision = row.revision;
        let tombstone = row.tombstone;
        if !event.previous.is_none() {
            let known =
                previous_pair.filter(|_| live.is_some_and(|live| live.revision == event.previous));
            event.previous_key_value = match known {
                Some(pair) => Some(pair.clone()),
                None if self.want_previous => Some(self.pair_at(event.previous)?),
                None => None,
            };
        }
        let record = RevisionRecord {
            previous: row.previous,
            key_value: pair,
        };
        self.state.bytes_added += record_bytes(&record);
        self.cache.insert(&key, Metadata::from(&row));
        match self.overlay.keys.get_mut(&key) {
            Some(changed) => changed.row = row,
            None => {
                let was_live = live.is_some();
                self.overlay.keys.insert(key, ChangedKey { row, was_live });
            }
        }
        debug_assert!(
            self.overlay
                .history
                .last()
                .is_none_or(|(last, _, _)| *last < revision),
            "revisions ascend"
        );
        self.overlay.history.push((revision, tombstone, record));
        write.events.push(event);
        Ok(())
    }

    /// What the record of a key names as its predecessor. A tombstone at or below the compact
    /// revision is none: it may or may not still be stored, and all members must write the same.
    fn previous_of(&self, before: Option<Metadata>) -> Revision {
        match before {
            Some(before)
                if !(before.tombstone && before.revision.main <= self.state.compact_revision) =>
            {
                before.revision
            }
            _ => Revision::NONE,
        }
    }

    /// The record that `prev_kv` of a watch shows for a change at `main`: the key's state at
    /// `main` - 1, which is not the record just before when a transaction changed the key twice.
    fn visible_previous(&self, mut previous: Revision, main: i64) -> Result<Revision, EngineError> {
        if previous.main != main {
            // The record just before, as nearly always: what it is, the caller knows.
            return Ok(previous);
        }
        while previous.main == main {
            previous = self.record_at(previous)?.1.previous;
        }
        // Only a tombstone before `main` means that the key did not exist: one inside the same
        // transaction has what it deleted behind it.
        if !previous.is_none() && self.record_at(previous)?.0 {
            return Ok(Revision::NONE);
        }
        Ok(previous)
    }

    fn move_attachment(&mut self, key: &[u8], from: i64, to: i64) {
        if from == to {
            return;
        }
        if from != 0 {
            let row = lease_rows::attachment(from, key);
            self.overlay.set_row(Table::LeaseKeys, row, None);
        }
        if to != 0 {
            let row = lease_rows::attachment(to, key);
            self.overlay
                .set_row(Table::LeaseKeys, row, Some(Bytes::new()));
        }
    }

    // ---- reads of the current state ---------------------------------------------------------

    /// The newest row of a key without its value, from the cache if possible.
    pub(crate) fn metadata(&mut self, key: &[u8]) -> Result<Option<Metadata>, EngineError> {
        if let Some(changed) = self.overlay.keys.get(key) {
            return Ok(Some(Metadata::from(&changed.row)));
        }
        if let Some(cached) = self.cache.get(key) {
            return Ok(Some(cached));
        }
        if !self.absent.is_empty() && self.absent.contains(key) {
            return Ok(None);
        }
        let row = self.shared.engine.get_latest(key, RowParts::Metadata)?;
        let metadata = row.as_ref().map(Metadata::from);
        if let Some(metadata) = metadata {
            self.cache.insert(key, metadata);
        }
        Ok(metadata)
    }

    pub(crate) fn live_metadata(&mut self, key: &[u8]) -> Result<Option<Metadata>, EngineError> {
        Ok(self.metadata(key)?.filter(|metadata| !metadata.tombstone))
    }

    fn live_keys(&mut self, range: &KeyRange) -> Result<Vec<(Bytes, Metadata)>, EngineError> {
        if range.is_single() {
            let live = self.live_metadata(&range.start)?;
            return Ok(live
                .map(|live| (range.start.clone(), live))
                .into_iter()
                .collect());
        }
        let mut keys = Vec::new();
        self.overlay.scan(
            range,
            Direction::Forward,
            RowParts::Metadata,
            &mut |key, row| {
                if !row.tombstone {
                    keys.push((Bytes::copy_from_slice(key), Metadata::from(&row)));
                }
                ControlFlow::Continue(())
            },
        )?;
        Ok(keys)
    }

    /// The pair of a record that compaction cannot have taken.
    pub(crate) fn pair_at(&self, revision: Revision) -> Result<EncodedKeyValue, EngineError> {
        Ok(self.record_at(revision)?.1.key_value)
    }

    fn record_at(&self, revision: Revision) -> Result<(bool, RevisionRecord), EngineError> {
        self.overlay
            .revision(revision)?
            .ok_or_else(|| ScanError::Gone(revision).into_engine_error())
    }

    /// A range inside a transaction, which has checked its revision.
    pub(crate) fn range(
        &self,
        write: &Write,
        request: &RangeRequest,
    ) -> Result<RangeResponse, EngineError> {
        let current = write.revision();
        let (revision, at_present) = match request.revision {
            ..=0 => (current, true),
            named => (named, named == current),
        };
        let mut count = |range: &KeyRange| match at_present {
            true => self.count(range),
            false => count_live(&self.overlay, range, revision),
        };
        let answer = range::execute(&self.overlay, request, revision, &mut count)
            .map_err(ScanError::into_engine_error)?;
        Ok(RangeResponse {
            header: header(current),
            kvs: answer.key_values,
            more: answer.more,
            count: answer.count,
        })
    }

    /// The live keys of a range, uncommitted changes included.
    fn count(&self, range: &KeyRange) -> Result<i64, ScanError> {
        if range.is_single() {
            return count_live(&self.overlay, range, i64::MAX);
        }
        let sum = self.shared.counts.read().sum(range);
        let mut count = sum.whole_keys + self.overlay.live_key_change(range);
        for partial in &sum.partial {
            count += count_live(&*self.shared, partial, i64::MAX)?;
        }
        Ok(count)
    }

    // ---- compaction and leases --------------------------------------------------------------

    fn execute_compaction(&mut self, compaction: &CompactionRequest) -> CommandResult {
        if compaction.revision <= self.state.compact_revision {
            return Err(EtcdError::Compacted);
        }
        if compaction.revision > self.state.revision {
            return Err(EtcdError::FutureRev);
        }
        self.state.compact_revision = compaction.revision;
        // etcd reads a key to learn the revision for the header, and counts that.
        self.tally.ranges += 1;
        Ok(CommandResponse::Compaction(CompactionResponse {
            header: header(self.state.revision),
        }))
    }

    fn execute_lease_grant(&mut self, grant: &LeaseGrantRequest) -> CommandResult {
        if grant.id == 0 {
            return Err(EtcdError::LeaseNotFound);
        }
        if grant.ttl > LEASE_TTL_MAX_SECONDS {
            return Err(EtcdError::LeaseTTLTooLarge);
        }
        if self.leases.contains_key(&grant.id) {
            return Err(EtcdError::LeaseExist);
        }
        self.state.bytes_added += LEASE_BYTES;
        self.set_lease(LeaseRecord {
            id: grant.id,
            granted_ttl: grant.ttl,
            remaining_ttl: 0,
        });
        self.lease_changes.push(LeaseChange::Granted {
            id: grant.id,
            ttl: grant.ttl,
        });
        Ok(CommandResponse::LeaseGrant(LeaseGrantResponse {
            header: header(self.state.revision),
            id: grant.id,
            ttl: grant.ttl,
            error: String::new(),
        }))
    }

    fn execute_lease_revoke(
        &mut self,
        revoke: &LeaseRevokeCommand,
        term: u64,
    ) -> Result<CommandResult, EngineError> {
        // A leader that was deposed may have believed that the lease expired while its successor
        // renewed it (etcd #15247).
        if revoke.expired_in_term != 0 && revoke.expired_in_term != term {
            return Ok(Err(EtcdError::LeaderChanged));
        }
        if self.leases.remove(&revoke.id).is_none() {
            return Ok(Err(EtcdError::LeaseNotFound));
        }
        let mut write = self.begin();
        for key in self.lease_keys(revoke.id)? {
            let Some(live) = self.live_metadata(&key)? else {
                return Err(EngineError::Storage(format!(
                    "lease {:016x} holds a key that does not exist: stop this member, keep its \
                     data directory, and restore it from a snapshot or re-add it as a new member",
                    revoke.id
                )));
            };
            let pair = match self.want_previous {
                true => Some(self.pair_at(live.revision)?),
                false => None,
            };
            self.delete(&mut write, &key, live, pair.as_ref())?;
            self.tally.deletes += 1;
        }
        let row = LeaseRecord::row_key(revoke.id);
        self.overlay.set_row(Table::Lease, row, None);
        self.state.bytes_added -= LEASE_BYTES;
        self.lease_changes
            .push(LeaseChange::Revoked { id: revoke.id });
        let revision = self.finish(write);
        Ok(Ok(CommandResponse::LeaseRevoke(LeaseRevokeResponse {
            header: header(revision),
        })))
    }

    fn execute_lease_checkpoint(&mut self, request: &LeaseCheckpointRequest) -> CommandResult {
        for checkpoint in &request.checkpoints {
            // A lease that was revoked meanwhile needs no checkpoint, as in etcd.
            let Some(lease) = self.leases.get(&checkpoint.id) else {
                continue;
            };
            let remaining_ttl = checkpoint.remaining_ttl;
            self.set_lease(LeaseRecord {
                remaining_ttl,
                ..*lease
            });
            self.lease_changes.push(LeaseChange::Checkpointed {
                id: checkpoint.id,
                remaining_ttl,
            });
        }
        Ok(CommandResponse::LeaseCheckpoint(LeaseCheckpointResponse {
            header: header(self.state.revision),
        }))
    }

    fn set_lease(&mut self, lease: LeaseRecord) {
        self.leases.insert(lease.id, lease);
        let row = LeaseRecord::row_key(lease.id);
        self.overlay
            .set_row(Table::Lease, row, Some(lease.encode()));
    }

    /// The engine under this store.
    pub fn engine(&self) -> SharedEngine {
        self.shared.engine.clone()
    }
}

fn assert_row_is_servers(table: Table, key: &[u8]) {
    let is_servers = match table {
        Table::Auth | Table::Members | Table::Alarms => true,
        Table::Meta => key.starts_with(SERVER_META_PREFIX),
        Table::KeyCounts | Table::Lease | Table::LeaseKeys => false,
    };
    assert!(
        is_servers,
        "rows of {} that the store owns are written by commands only",
        table.name()
    );
}

/// The operations of the branch of a transaction that was chosen.
pub(crate) fn branch(txn: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    match succeeded {
        true => &txn.success,
        false => &txn.failure,
    }
}
