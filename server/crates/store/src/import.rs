//! Filling an empty engine from a copy in another format.
//!
//! The copy has the history and the leases; what a store keeps beside them follows from the history
//! alone: the newest row of each key, the attached keys of the leases, the counted blocks, the sizes.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use metastore_proto::EncodedKeyValue;
use metastore_revision_model::{KeyRange, LatestRow, Revision, RevisionRecord};

use crate::compaction::record_bytes;
use crate::encoding;
use crate::engine::{Direction, EngineError, RowParts, SharedEngine, Table, WriteBatch};
use crate::export::StoreNumbers;
use crate::key_counts::{BLOCK_KEYS, KeyCounts};
use crate::lease_rows::{self, LEASE_BYTES, LeaseRecord};
use crate::shared::{COLLECTED_ROW, CollectedState, STATE_ROW, StoreState};

/// Records that are looked up and written together.
const BATCH_RECORDS: usize = 4096;
/// Bytes of pairs after which a batch is written even with fewer records.
const BATCH_BYTES: usize = 4 << 20;

/// Fills an empty engine.
pub struct Importer {
    engine: SharedEngine,
    /// The compact revision of the copy: what its records may name as their predecessor.
    compact_revision: i64,
    leases: HashSet<i64>,
    last: Revision,
    pending: Vec<(Revision, bool, EncodedKeyValue)>,
    pending_bytes: usize,
    rows: Vec<(Table, Bytes, Option<Bytes>)>,
    bytes_added: i64,
}

impl Importer {
    /// An importer into `engine`, which is empty, of a copy with this compact revision (-1: never
    /// compacted).
    pub fn new(engine: SharedEngine, compact_revision: i64) -> Self {
        Self {
            engine,
            compact_revision,
            leases: HashSet::new(),
            last: Revision::NONE,
            pending: Vec::new(),
            pending_bytes: 0,
            rows: Vec::new(),
            bytes_added: 0,
        }
    }

    /// Adds a lease. All leases come before the first record.
    pub fn lease(&mut self, lease: LeaseRecord) {
        self.leases.insert(lease.id);
        self.bytes_added += LEASE_BYTES;
        let row = LeaseRecord::row_key(lease.id);
        self.rows.push((Table::Lease, row, Some(lease.encode())));
    }

    /// Adds a row of a table that is not the store's.
    pub fn row(&mut self, table: Table, key: Bytes, value: Bytes) {
        self.rows.push((table, key, Some(value)));
    }

    /// Adds the next record of the history. A record without a key stands for a revision at which
    /// nothing is stored; etcd's tools write one to raise the revision.
    ///
    /// # Errors
    /// [`EngineError`] for a record that is not behind the one before or is no pair, and when the
    /// engine fails.
    pub fn record(
        &mut self,
        revision: Revision,
        tombstone: bool,
        key_value: Bytes,
    ) -> Result<(), EngineError> {
        if revision <= self.last {
            return Err(EngineError::Storage(format!(
                "revision {revision} follows revision {} in the copy: it is damaged",
                self.last
            )));
        }
        self.last = revision;
        self.pending_bytes += key_value.len();
        self.pending
            .push((revision, tombstone, EncodedKeyValue(key_value)));
        if self.pending.len() == BATCH_RECORDS || self.pending_bytes >= BATCH_BYTES {
            self.write_batch()?;
        }
        Ok(())
    }

    fn write_batch(&mut self) -> Result<(), EngineError> {
        let pending = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let mut latest = self.latest_rows(&pending)?;
        let mut batch = WriteBatch {
            rows: std::mem::take(&mut self.rows),
            ..WriteBatch::default()
        };
        for (revision, tombstone, key_value) in pending {
            let fields = encoding::fields(&key_value)?;
            let mut previous = Revision::NONE;
            if !fields.key.is_empty() {
                let key = encoding::key(&key_value)?;
                let before = latest.get(&key).and_then(Option::as_ref);
                previous = self.previous_of(before);
                self.move_attachment(&mut batch.rows, &key, before, fields.lease);
                let row = LatestRow {
                    revision,
                    create_revision: fields.create_revision,
                    version: fields.version,
                    lease: fields.lease,
                    previous,
                    tombstone,
                    key_value: (!tombstone).then(|| key_value.clone()),
                };
                latest.insert(key, Some(row));
            }
            let record = RevisionRecord {
                previous,
                key_value,
            };
            self.bytes_added += record_bytes(&record);
            batch.put_revisions.push((revision, tombstone, record));
        }
        batch.latest = latest.into_iter().collect();
        self.engine.write(batch)
    }

    /// What the engine has of the keys of the records.
    fn latest_rows(
        &self,
        pending: &[(Revision, bool, EncodedKeyValue)],
    ) -> Result<BTreeMap<Bytes, Option<LatestRow>>, EngineError> {
        let mut keys = Vec::with_capacity(pending.len());
        for (_, _, key_value) in pending {
            let key = encoding::key(key_value)?;
            if !key.is_empty() {
                keys.push(key);
            }
        }
        keys.sort_unstable();
        keys.dedup();
        let rows = self.engine.multi_get_latest(&keys, RowParts::Metadata)?;
        Ok(keys.into_iter().zip(rows).collect())
    }

    /// As the executor does it: a tombstone that a compaction may have taken is no predecessor.
    fn previous_of(&self, before: Option<&LatestRow>) -> Revision {
        match before {
            Some(row) if !(row.tombstone && row.revision.main <= self.compact_revision) => {
                row.revision
            }
            _ => Revision::NONE,
        }
    }

    /// Attachments to leases that do not exist are left out, as etcd does when it starts.
    fn move_attachment(
        &self,
        rows: &mut Vec<(Table, Bytes, Option<Bytes>)>,
        key: &[u8],
        before: Option<&LatestRow>,
        lease: i64,
    ) {
        let from = before.map_or(0, |row| row.lease);
        if from == lease {
            return;
        }
        if self.leases.contains(&from) {
            rows.push((Table::LeaseKeys, lease_rows::attachment(from, key), None));
        }
        if self.leases.contains(&lease) {
            let row = lease_rows::attachment(lease, key);
            rows.push((Table::LeaseKeys, row, Some(Bytes::new())));
        }
    }

    /// Writes the rest and makes all of it durable, if the engine has files.
    ///
    /// # Errors
    /// [`EngineError`] when the numbers contradict the records, and when the engine fails.
    pub fn finish(mut self, numbers: StoreNumbers) -> Result<SharedEngine, EngineError> {
        let StoreNumbers {
            revision,
            compact_revision,
            finished_compact_revision,
        } = numbers;
        if self.last.main > revision || compact_revision != self.compact_revision {
            return Err(EngineError::Storage(format!(
                "the copy contradicts itself: its last record has revision {}, and it says that the \
                 revision is {revision} and the compact revision {compact_revision}",
                self.last
            )));
        }
        self.write_batch()?;
        let state = StoreState {
            revision,
            compact_revision,
            bytes_added: self.bytes_added,
        };
        let collected = CollectedState {
            finished: finished_compact_revision,
            bytes_removed: 0,
        };
        let mut batch = WriteBatch::default();
        batch
            .rows
            .push((Table::Meta, STATE_ROW, Some(state.encode())));
        batch
            .rows
            .push((Table::Meta, COLLECTED_ROW, Some(collected.encode())));
        self.count_keys(&mut batch)?;
        self.engine.write(batch)?;
        self.engine.flush()?;
        Ok(self.engine)
    }

    fn count_keys(&self, batch: &mut WriteBatch) -> Result<(), EngineError> {
        let mut fence = Bytes::new();
        let mut in_block = 0;
        let mut put = |fence: Bytes, count: u64| {
            let row = (Table::KeyCounts, fence, Some(KeyCounts::encode(count)));
            batch.rows.push(row);
        };
        self.engine.scan_latest(
            &KeyRange::all(),
            Direction::Forward,
            RowParts::Metadata,
            &mut |key, row| {
                if row.tombstone {
                    return ControlFlow::Continue(());
                }
                if in_block == BLOCK_KEYS {
                    let next = Bytes::copy_from_slice(key);
                    put(std::mem::replace(&mut fence, next), in_block);
                    in_block = 0;
                }
                in_block += 1;
                ControlFlow::Continue(())
            },
        )?;
        put(fence, in_block);
        Ok(())
    }
}
