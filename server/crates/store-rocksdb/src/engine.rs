//! The engine: every method of the trait on one database.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use metastore_revision_model::{
    KeyRange, LatestRow, REVISION_KEY_LEN, RecordError, Revision, RevisionRecord,
};
use metastore_store::engine::{
    Direction, Engine, EngineError, EngineSize, LatestVisitor, ReadView, RevisionVisitor, RowParts,
    RowVisitor, Table, ViewVisitor, WriteBatch,
};
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BottommostLevelCompaction, Cache, ColumnFamily, CompactOptions, DB, DBPinnableSlice,
    FlushOptions, ReadOptions, WriteOptions, properties,
};

use crate::error::{io_failed, open_failed, operation_failed};
use crate::old_files::OldFiles;
use crate::open::{self, sync_directory};
use crate::options::{DEFAULT, LATEST, REVISIONS, RocksDbOptions, write_options};
use crate::pace::RequestWrites;

/// Rows that a scan visits with one iterator.
///
/// An iterator pins the memtables and files that existed when it was made, so one that lives as
/// long as a slow export would keep every replaced file on the disk. The next iterator sees a newer
/// state, which the trait allows. After the first segment the scan is a big one and its blocks no
/// longer push out those that others read.
const SCAN_SEGMENT_ROWS: usize = 10_000;

/// What a record costs in a batch beside its pair, in both tables: keys, tags, lengths, numbers.
const RECORD_OVERHEAD_BYTES: usize = 160;
/// What a batch has beside records: its header, the applied position, the store's state.
const BATCH_OVERHEAD_BYTES: usize = 256;

/// First byte of a stored history record: no tombstone.
const LIVE: u8 = 0;
/// First byte of a stored history record: a tombstone.
const TOMBSTONE: u8 = 1;

/// The store's tables in one RocksDB database.
///
/// Records of the history are stored under the 17-byte key of their revision, tombstones too: a
/// reader of one revision does not know whether it is one, and so needs a single exact get. The
/// flag is the first byte of the value.
pub struct RocksDbEngine {
    directory: PathBuf,
    db: DB,
    cache: Cache,
    write_options: WriteOptions,
    inline_bytes: usize,
    /// Bytes of the batches since the last flush that was asked for: memtables grow by whole blocks
    /// of memory, so that for a small store they tell nothing about its size.
    written_bytes: AtomicU64,
    /// The same without end, for the pace of defragmentations.
    request_writes: Arc<RequestWrites>,
}

/// Bytes of memory that the engine occupies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Memtables of all column families, those that are being flushed included.
    pub memtables: u64,
    /// The block cache: blocks, filters and indexes, and the memtables, which are charged to it.
    pub cache: u64,
    /// Open table files outside the cache.
    pub table_readers: u64,
}

/// Visitor of raw rows: key and value. Break ends the scan.
type RawVisitor<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, EngineError> + 'a;

impl RocksDbEngine {
    /// Opens the database in `directory`; creates it when the directory is missing or empty.
    ///
    /// # Errors
    /// A second process has it open, it is damaged, it belongs to another program or to a later
    /// version of this one, or the file system refuses. The message says which, where, and what an
    /// operator should do; none of them goes away by trying again.
    pub fn open(directory: &Path, options: &RocksDbOptions) -> Result<Self, EngineError> {
        let translated = options
            .translate()
            .map_err(|error| open_failed(directory, &error))?;
        let db = open::open(directory, &translated)?;
        OldFiles::remove_leftovers(directory)
            .map_err(|error| io_failed("removing replaced files in", directory, error))?;
        Ok(Self {
            directory: directory.to_owned(),
            db,
            cache: translated.cache,
            write_options: write_options(),
            inline_bytes: options.inline_bytes,
            written_bytes: AtomicU64::new(0),
            request_writes: translated.request_writes,
        })
    }

    /// The directory of the database.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What stopped a flush or compaction, if anything did. RocksDB then refuses writes, so that
    /// the next one fails as well; asking here finds it on a member that is not written to.
    pub fn background_error(&self) -> Option<String> {
        let count = self.property(properties::BACKGROUND_ERRORS).unwrap_or(0);
        (count > 0).then(|| {
            format!(
                "{count} flushes or compactions of the database in {} failed: the reason is in its \
                 file LOG",
                self.directory.display()
            )
        })
    }

    /// How much memory the engine occupies now.
    ///
    /// # Errors
    /// The database does not answer.
    pub fn memory_use(&self) -> Result<MemoryUse, EngineError> {
        Ok(MemoryUse {
            memtables: self.sum(properties::CUR_SIZE_ALL_MEM_TABLES)?,
            cache: self.cache.get_usage() as u64,
            table_readers: self.sum(properties::ESTIMATE_TABLE_READERS_MEM)?,
        })
    }

    /// The handle of a column family, all of which [`RocksDbEngine::open`] has opened.
    fn family(&self, name: &str) -> &ColumnFamily {
        self.db
            .cf_handle(name)
            .expect("a database is opened with all column families")
    }

    fn family_names() -> impl Iterator<Item = &'static str> {
        [DEFAULT, LATEST, REVISIONS]
            .into_iter()
            .chain(Table::ALL.map(Table::name))
    }

    fn families(&self) -> impl Iterator<Item = &ColumnFamily> {
        Self::family_names().map(|name| self.family(name))
    }

    fn failed(&self, action: &str) -> impl Fn(rocksdb::Error) -> EngineError {
        move |error| operation_failed(action, &self.directory, &error)
    }

    fn property(&self, name: &rocksdb::properties::PropName) -> Result<u64, EngineError> {
        let value = self
            .db
            .property_int_value(name)
            .map_err(self.failed("asking the database for its state"))?;
        Ok(value.unwrap_or(0))
    }

    /// A property summed over all column families.
    fn sum(&self, name: &rocksdb::properties::PropName) -> Result<u64, EngineError> {
        self.families().try_fold(0, |sum, family| {
            Ok(sum + self.family_property(family, name)?)
        })
    }

    fn family_property(
        &self,
        family: &ColumnFamily,
        name: &rocksdb::properties::PropName,
    ) -> Result<u64, EngineError> {
        let value = self
            .db
            .property_int_value_cf(family, name)
            .map_err(self.failed("asking the database for its state"))?;
        Ok(value.unwrap_or(0))
    }

    fn get(&self, family: &str, key: &[u8]) -> Result<Option<DBPinnableSlice<'_>>, EngineError> {
        self.db
            .get_pinned_cf(self.family(family), key)
            .map_err(self.failed("reading"))
    }

    fn multi_get<T>(
        &self,
        family: &str,
        keys: &[impl AsRef<[u8]>],
        decode: impl Fn(&[u8]) -> Result<T, RecordError>,
    ) -> Result<Vec<Option<T>>, EngineError> {
        let sorted = keys.is_sorted_by_key(|key| key.as_ref());
        self.db
            .batched_multi_get_cf(
                self.family(family),
                keys.iter().map(|key| key.as_ref()),
                sorted,
            )
            .into_iter()
            .map(|found| match found {
                Ok(Some(value)) => Ok(Some(decode(&value)?)),
                Ok(None) => Ok(None),
                Err(error) => Err(operation_failed("reading", &self.directory, &error)),
            })
            .collect()
    }

    /// Visits the rows of a column family from `lower` (included) to `upper` (excluded).
    fn scan(
        &self,
        family: &str,
        lower: Vec<u8>,
        upper: Option<Vec<u8>>,
        direction: Direction,
        visit: &mut RawVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.scan_at(None, family, lower, upper, direction, visit)
    }

    /// As [`RocksDbEngine::scan`], in the state of a snapshot.
    fn scan_at(
        &self,
        snapshot: Option<&rocksdb::Snapshot<'_>>,
        family: &str,
        mut lower: Vec<u8>,
        mut upper: Option<Vec<u8>>,
        direction: Direction,
        visit: &mut RawVisitor<'_>,
    ) -> Result<(), EngineError> {
        let family = self.family(family);
        // An export reads everything once: nobody else gains from its blocks in the cache.
        let mut fill_cache = snapshot.is_none();
        while upper.as_ref().is_none_or(|upper| lower < *upper) {
            let mut options = ReadOptions::default();
            options.fill_cache(fill_cache);
            if let Some(snapshot) = snapshot {
                options.set_snapshot(snapshot);
            }
            let last =
                self.scan_segment(options, family, &lower, upper.as_deref(), direction, visit)?;
            match (last, direction) {
                (None, _) => return Ok(()),
                (Some(mut last), Direction::Forward) => {
                    last.push(0);
                    lower = last;
                }
                (Some(last), Direction::Backward) => upper = Some(last),
            }
            fill_cache = false;
        }
        Ok(())
    }

    /// Visits at most [`SCAN_SEGMENT_ROWS`] rows; the last one's key when there may be more.
    fn scan_segment(
        &self,
        mut options: ReadOptions,
        family: &ColumnFamily,
        lower: &[u8],
        upper: Option<&[u8]>,
        direction: Direction,
        visit: &mut RawVisitor<'_>,
    ) -> Result<Option<Vec<u8>>, EngineError> {
        options.set_iterate_lower_bound(lower);
        if let Some(upper) = upper {
            options.set_iterate_upper_bound(upper);
        }
        let mut iterator = self.db.raw_iterator_cf_opt(family, options);
        match direction {
            Direction::Forward => iterator.seek_to_first(),
            Direction::Backward => iterator.seek_to_last(),
        }
        let mut visited = 0;
        while let Some((key, value)) = iterator.item() {
            if visit(key, value)?.is_break() {
                return Ok(None);
            }
            visited += 1;
            if visited == SCAN_SEGMENT_ROWS {
                return Ok(Some(key.to_vec()));
            }
            match direction {
                Direction::Forward => iterator.next(),
                Direction::Backward => iterator.prev(),
            }
        }
        // An iterator that is no longer valid has come to its end or met an error.
        iterator.status().map_err(self.failed("scanning"))?;
        Ok(None)
    }

    /// The batch in RocksDB's form.
    fn translate(&self, batch: WriteBatch) -> rocksdb::WriteBatch {
        let WriteBatch {
            latest,
            put_revisions,
            delete_revisions,
            rows,
        } = batch;
        // Both tables hold the pairs of the new records.
        let pairs_bytes: usize = put_revisions
            .iter()
            .map(|(_, _, record)| record.key_value.0.len())
            .sum();
        let mut translated = rocksdb::WriteBatch::with_capacity_bytes(
            2 * pairs_bytes + put_revisions.len() * RECORD_OVERHEAD_BYTES + BATCH_OVERHEAD_BYTES,
        );
        let family = self.family(REVISIONS);
        let mut value = Vec::new();
        for (revision, tombstone, record) in put_revisions {
            value.clear();
            value.push(if tombstone { TOMBSTONE } else { LIVE });
            record.encode_to(&mut value);
            translated.put_cf(family, revision.to_key(false).as_bytes(), &value);
        }
        for (revision, _) in delete_revisions {
            translated.delete_cf(family, revision.to_key(false).as_bytes());
        }
        let family = self.family(LATEST);
        for (key, row) in latest {
            match row {
                Some(row) => {
                    value.clear();
                    row.encode_to(&mut value, self.inline_bytes);
                    translated.put_cf(family, &key, &value);
                }
                None => translated.delete_cf(family, &key),
            }
        }
        for (table, key, row) in rows {
            let family = self.family(table.name());
            match row {
                Some(row) => translated.put_cf(family, &key, &row),
                None => translated.delete_cf(family, &key),
            }
        }
        translated
    }
}

impl Engine for RocksDbEngine {
    fn get_latest(&self, key: &[u8], parts: RowParts) -> Result<Option<LatestRow>, EngineError> {
        match self.get(LATEST, key)? {
            Some(stored) => Ok(Some(decode_latest(&stored, parts)?)),
            None => Ok(None),
        }
    }

    fn multi_get_latest(
        &self,
        keys: &[Bytes],
        parts: RowParts,
    ) -> Result<Vec<Option<LatestRow>>, EngineError> {
        self.multi_get(LATEST, keys, |stored| decode_latest(stored, parts))
    }

    fn scan_latest(
        &self,
        range: &KeyRange,
        direction: Direction,
        parts: RowParts,
        visit: &mut LatestVisitor<'_>,
    ) -> Result<(), EngineError> {
        if range.is_single() {
            if let Some(row) = self.get_latest(&range.start, parts)? {
                let _ = visit(&range.start, row);
            }
            return Ok(());
        }
        self.scan(
            LATEST,
            range.start.to_vec(),
            range.end_bytes().map(Vec::from),
            direction,
            &mut |key, stored| Ok(visit(key, decode_latest(stored, parts)?)),
        )
    }

    fn get_revision(
        &self,
        revision: Revision,
    ) -> Result<Option<(bool, RevisionRecord)>, EngineError> {
        match self.get(REVISIONS, &revision.to_key(false))? {
            Some(stored) => Ok(Some(decode_revision(&stored)?)),
            None => Ok(None),
        }
    }

    fn multi_get_revisions(
        &self,
        revisions: &[Revision],
    ) -> Result<Vec<Option<(bool, RevisionRecord)>>, EngineError> {
        let keys: Vec<_> = revisions
            .iter()
            .map(|revision| revision_key(*revision))
            .collect();
        self.multi_get(REVISIONS, &keys, decode_revision)
    }

    fn scan_revisions(
        &self,
        from: Revision,
        to: Revision,
        visit: &mut RevisionVisitor<'_>,
    ) -> Result<(), EngineError> {
        // The immediate successor of the last key, as the upper bound is excluded.
        let mut upper = revision_key(to).to_vec();
        upper.push(0);
        self.scan(
            REVISIONS,
            revision_key(from).to_vec(),
            Some(upper),
            Direction::Forward,
            &mut |key, stored| visit_revision(key, stored, visit),
        )
    }

    fn get_row(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let stored = self.get(table.name(), key)?;
        Ok(stored.map(|stored| Bytes::copy_from_slice(&stored)))
    }

    fn scan_rows(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.scan(
            table.name(),
            prefix.max(from).to_vec(),
            end_of_prefix(prefix),
            Direction::Forward,
            &mut |key, value| Ok(visit(key, value)),
        )
    }

    fn write(&self, batch: WriteBatch) -> Result<(), EngineError> {
        if batch.is_empty() {
            return Ok(());
        }
        let batch = self.translate(batch);
        let bytes = batch.size_in_bytes() as u64;
        self.db
            .write_opt(batch, &self.write_options)
            .map_err(self.failed("writing"))?;
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.request_writes.add(bytes);
        Ok(())
    }

    fn flush(&self) -> Result<(), EngineError> {
        let mut wait = FlushOptions::default();
        wait.set_wait(true);
        let families: Vec<_> = self.families().collect();
        let written = self.written_bytes.load(Ordering::Relaxed);
        self.db
            .flush_cfs_opt(&families, &wait)
            .map_err(self.failed("flushing"))?;
        self.written_bytes.fetch_sub(written, Ordering::Relaxed);
        Ok(())
    }

    fn with_view(&self, read: &mut ViewVisitor<'_>) -> Result<(), EngineError> {
        read(&RocksDbView {
            engine: self,
            snapshot: self.db.snapshot(),
        })
    }

    fn checkpoint(
        &self,
        into: &Path,
        table: Table,
        key: &[u8],
    ) -> Result<Option<Bytes>, EngineError> {
        // Flushes all column families at one sequence number by itself, then links the files.
        Checkpoint::new(&self.db)
            .and_then(|checkpoint| checkpoint.create_checkpoint(into))
            .map_err(self.failed(&format!("writing a copy into {}", into.display())))?;
        let row = open::read_row(into, table, key)?;
        sync_copy(into)?;
        Ok(row)
    }

    fn compact_files(&self) -> Result<(), EngineError> {
        let _rewriting = self.request_writes.rewrite(self.size()?.physical_bytes);
        self.flush()?;
        let mut options = CompactOptions::default();
        // Automatic compactions go on beside it; writes must not wait for an operator's wish. A table as a
        // whole, not in slices: the files of the upper levels reach over all keys, and each slice would
        // rewrite the whole of the lower ones.
        options.set_exclusive_manual_compaction(false);
        // Files of the last level have nothing to reclaim; a filter would make RocksDB rewrite them all the same.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Skip);
        for family in self.families() {
            // A file system without links frees the old files as RocksDB removes them. Each table by itself: the
            // old files of all of them would take twice the space.
            let old_files = OldFiles::hold(&self.directory).ok();
            self.db
                .compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &options);
            if let Some(old_files) = old_files {
                old_files.release().map_err(|error| {
                    io_failed("removing replaced files in", &self.directory, error)
                })?;
            }
        }
        // RocksDB's C interface returns nothing from a compaction; its errors end up here.
        match self.background_error() {
            Some(error) => Err(EngineError::Storage(error)),
            None => Ok(()),
        }
    }

    fn size(&self) -> Result<EngineSize, EngineError> {
        let files = self.sum(properties::TOTAL_SST_FILES_SIZE)?;
        let memtables = self.sum(properties::CUR_SIZE_ALL_MEM_TABLES)?;
        let written = self.written_bytes.load(Ordering::Relaxed);
        let latest = |name| self.family_property(self.family(LATEST), name);
        let latest_bytes = latest(properties::ESTIMATE_LIVE_DATA_SIZE)?
            + latest(properties::CUR_SIZE_ALL_MEM_TABLES)?.min(written);
        Ok(EngineSize {
            physical_bytes: files + memtables.min(written),
            latest_bytes,
        })
    }

    fn is_persistent(&self) -> bool {
        true
    }
}

/// The rows at one sequence number of the database.
struct RocksDbView<'a> {
    engine: &'a RocksDbEngine,
    snapshot: rocksdb::Snapshot<'a>,
}

impl ReadView for RocksDbView<'_> {
    fn scan_revisions(&self, visit: &mut RevisionVisitor<'_>) -> Result<(), EngineError> {
        self.engine.scan_at(
            Some(&self.snapshot),
            REVISIONS,
            Vec::new(),
            None,
            Direction::Forward,
            &mut |key, stored| visit_revision(key, stored, visit),
        )
    }

    fn scan_rows(
        &self,
        table: Table,
        prefix: &[u8],
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.engine.scan_at(
            Some(&self.snapshot),
            table.name(),
            prefix.to_vec(),
            end_of_prefix(prefix),
            Direction::Forward,
            &mut |key, value| Ok(visit(key, value)),
        )
    }
}

fn visit_revision(
    key: &[u8],
    stored: &[u8],
    visit: &mut RevisionVisitor<'_>,
) -> Result<ControlFlow<()>, EngineError> {
    let (revision, _) = Revision::from_key(key).ok_or(RecordError {
        what: "revision key",
        bytes: key.len(),
    })?;
    let (tombstone, record) = decode_revision(stored)?;
    Ok(visit(revision, tombstone, record))
}

impl std::fmt::Debug for RocksDbEngine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("RocksDbEngine")
            .field("directory", &self.directory)
            .field("inline_bytes", &self.inline_bytes)
            .finish_non_exhaustive()
    }
}

fn decode_latest(stored: &[u8], parts: RowParts) -> Result<LatestRow, RecordError> {
    match parts {
        RowParts::All => LatestRow::decode(stored),
        RowParts::Metadata => LatestRow::decode_metadata(stored),
    }
}

fn decode_revision(stored: &[u8]) -> Result<(bool, RevisionRecord), RecordError> {
    let (tombstone, record) = match stored.split_first() {
        Some((&LIVE, record)) => (false, record),
        Some((&TOMBSTONE, record)) => (true, record),
        _ => {
            return Err(RecordError {
                what: "revision record",
                bytes: stored.len(),
            });
        }
    };
    let record = RevisionRecord::decode(Bytes::copy_from_slice(record))?;
    Ok((tombstone, record))
}

fn revision_key(revision: Revision) -> [u8; REVISION_KEY_LEN] {
    revision
        .to_key(false)
        .as_bytes()
        .try_into()
        .expect("the key of a live record has that length")
}

/// The first key after all keys with the prefix; `None` when there is none.
fn end_of_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

/// Makes a copy durable: its files, of which the linked ones are already, and its directory entries.
fn sync_copy(directory: &Path) -> Result<(), EngineError> {
    let failed = |error| io_failed("syncing the copy in", directory, error);
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        fs::File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|error| io_failed("syncing", &path, error))?;
    }
    sync_directory(directory)?;
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
        _ => sync_directory(Path::new(".")),
    }
}
