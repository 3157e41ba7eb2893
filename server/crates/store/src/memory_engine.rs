//! The engine that keeps all rows in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use metastore_revision_model::{KeyRange, LatestRow, RangeEnd, Revision, RevisionRecord};
use parking_lot::RwLock;

use crate::engine::{
    Direction, Engine, EngineError, EngineSize, LatestVisitor, ReadView, RevisionVisitor, RowParts,
    RowVisitor, Table, ViewVisitor, WriteBatch,
};
use crate::snapshot_file;

/// Rows that a scan copies while it holds the lock: about 50 µs, the longest that a writer waits
/// for a reader. The visitor runs without the lock, so it may call the engine.
const CHUNK_ROWS_MAX: usize = 1024;
/// Rows of a scan's first chunk: most scans want a page or less.
const CHUNK_ROWS_FIRST: usize = 32;
/// What a row costs beside its bytes: the struct, its share of the tree, allocation headers.
const ROW_OVERHEAD_BYTES: i64 = 200;

/// The engine that keeps all rows in memory. Its durable form is the snapshot file that
/// [`Engine::checkpoint`] writes; what came after it is in the member's log.
#[derive(Default)]
pub struct MemoryEngine {
    rows: RwLock<Rows>,
    bytes: AtomicI64,
}

/// All tables.
#[derive(Default)]
pub(crate) struct Rows {
    pub latest: BTreeMap<Bytes, LatestRow>,
    pub revisions: BTreeMap<Revision, (bool, RevisionRecord)>,
    pub tables: [BTreeMap<Bytes, Bytes>; Table::ALL.len()],
    /// Views that are being read, by the number of their begin.
    views: BTreeSet<u64>,
    /// How many views there were.
    last_view: u64,
    /// Records that were deleted while views are read, and the last view that began before. They are
    /// gone for everybody but that view and older ones.
    held_back: HashMap<Revision, u64>,
}

/// The rows at one moment: the tables are copied, the records are those up to `newest` that were
/// not deleted before `number`.
struct MemoryView<'a> {
    engine: &'a MemoryEngine,
    number: u64,
    newest: Option<Revision>,
    tables: [BTreeMap<Bytes, Bytes>; Table::ALL.len()],
}

impl MemoryEngine {
    /// An empty engine.
    pub fn new() -> Self {
        Self::default()
    }

    /// The engine that [`Engine::checkpoint`] wrote into `directory`.
    ///
    /// # Errors
    /// [`EngineError`] when the file is missing or damaged; its text says what to do.
    pub fn open_checkpoint(directory: &Path) -> Result<Self, EngineError> {
        let rows = snapshot_file::read(directory)?;
        let bytes = rows.bytes();
        Ok(Self {
            rows: RwLock::new(rows),
            bytes: AtomicI64::new(bytes),
        })
    }

    fn view(&self) -> MemoryView<'_> {
        let mut rows = self.rows.write();
        rows.last_view += 1;
        let number = rows.last_view;
        rows.views.insert(number);
        MemoryView {
            engine: self,
            number,
            newest: rows.revisions.last_key_value().map(|(newest, _)| *newest),
            tables: rows.tables.clone(),
        }
    }

    /// Calls `copy` for chunk after chunk, each time under the lock. It gets the rows and how many
    /// it may copy, and returns whether there may be more.
    fn chunks(&self, mut copy: impl FnMut(&Rows, usize) -> bool, mut emit: impl FnMut() -> bool) {
        let mut chunk_rows = CHUNK_ROWS_FIRST;
        loop {
            let more = copy(&self.rows.read(), chunk_rows);
            if !emit() || !more {
                return;
            }
            chunk_rows = (chunk_rows * 4).min(CHUNK_ROWS_MAX);
        }
    }
}

impl Engine for MemoryEngine {
    fn get_latest(&self, key: &[u8], _: RowParts) -> Result<Option<LatestRow>, EngineError> {
        Ok(self.rows.read().latest.get(key).cloned())
    }

    fn multi_get_latest(
        &self,
        keys: &[Bytes],
        _: RowParts,
    ) -> Result<Vec<Option<LatestRow>>, EngineError> {
        let rows = self.rows.read();
        Ok(keys
            .iter()
            .map(|key| rows.latest.get(key).cloned())
            .collect())
    }

    fn scan_latest(
        &self,
        range: &KeyRange,
        direction: Direction,
        _: RowParts,
        visit: &mut LatestVisitor<'_>,
    ) -> Result<(), EngineError> {
        if range.is_empty() {
            return Ok(());
        }
        let mut start = Bound::Included(range.start.clone());
        let mut end = match &range.end {
            RangeEnd::Single => Bound::Included(range.start.clone()),
            RangeEnd::Open => Bound::Unbounded,
            RangeEnd::Before(end) => Bound::Excluded(end.clone()),
        };
        let chunk = std::cell::RefCell::new(Vec::new());
        self.chunks(
            |rows, chunk_rows| {
                let mut chunk = chunk.borrow_mut();
                let found = rows.latest.range((start.clone(), end.clone()));
                let copied = |(key, row): (&Bytes, &LatestRow)| (key.clone(), row.clone());
                match direction {
                    Direction::Forward => chunk.extend(found.take(chunk_rows).map(copied)),
                    Direction::Backward => chunk.extend(found.rev().take(chunk_rows).map(copied)),
                }
                let last: Option<&(Bytes, LatestRow)> = chunk.last();
                let Some((last, _)) = last else { return false };
                match direction {
                    Direction::Forward => start = Bound::Excluded(last.clone()),
                    Direction::Backward => end = Bound::Excluded(last.clone()),
                }
                // An excluded start at an included or excluded equal end is no range.
                chunk.len() == chunk_rows && !matches!(range.end, RangeEnd::Single)
            },
            || {
                let mut chunk = chunk.take().into_iter();
                chunk.all(|(key, row)| visit(&key, row).is_continue())
            },
        );
        Ok(())
    }

    fn get_revision(
        &self,
        revision: Revision,
    ) -> Result<Option<(bool, RevisionRecord)>, EngineError> {
        Ok(self.rows.read().revision(revision))
    }

    fn multi_get_revisions(
        &self,
        revisions: &[Revision],
    ) -> Result<Vec<Option<(bool, RevisionRecord)>>, EngineError> {
        let mut found = Vec::with_capacity(revisions.len());
        for chunk in revisions.chunks(CHUNK_ROWS_MAX) {
            let rows = self.rows.read();
            found.extend(chunk.iter().map(|revision| rows.revision(*revision)));
        }
        Ok(found)
    }

    fn scan_revisions(
        &self,
        from: Revision,
        to: Revision,
        visit: &mut RevisionVisitor<'_>,
    ) -> Result<(), EngineError> {
        if from > to {
            return Ok(());
        }
        let mut from = Bound::Included(from);
        let chunk = std::cell::RefCell::new(Vec::new());
        self.chunks(
            |rows, chunk_rows| {
                let mut chunk = chunk.borrow_mut();
                let found = rows.revisions.range((from, Bound::Included(to)));
                let mut last = None;
                let mut taken = 0;
                for (revision, (tombstone, record)) in found.take(chunk_rows) {
                    last = Some(*revision);
                    taken += 1;
                    if !rows.is_held_back(*revision) {
                        chunk.push((*revision, *tombstone, record.clone()));
                    }
                }
                let Some(last) = last else { return false };
                from = Bound::Excluded(last);
                // An excluded start at an equal included end is no range.
                taken == chunk_rows && last < to
            },
            || {
                let mut chunk = chunk.take().into_iter();
                chunk.all(|(revision, tombstone, record)| {
                    visit(revision, tombstone, record).is_continue()
                })
            },
        );
        Ok(())
    }

    fn get_row(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.rows.read().tables[table as usize].get(key).cloned())
    }

    fn scan_rows(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        let mut start = Bound::Included(Bytes::copy_from_slice(prefix.max(from)));
        let chunk = std::cell::RefCell::new(Vec::new());
        self.chunks(
            |rows, chunk_rows| {
                let mut chunk = chunk.borrow_mut();
                chunk.extend(
                    rows.tables[table as usize]
                        .range((start.clone(), Bound::Unbounded))
                        .take_while(|(key, _)| key.starts_with(prefix))
                        .take(chunk_rows)
                        .map(|(key, value)| (key.clone(), value.clone())),
                );
                let last: Option<&(Bytes, Bytes)> = chunk.last();
                let Some((last, _)) = last else { return false };
                start = Bound::Excluded(last.clone());
                chunk.len() == chunk_rows
            },
            || {
                let mut chunk = chunk.take().into_iter();
                chunk.all(|(key, value)| visit(&key, &value).is_continue())
            },
        );
        Ok(())
    }

    fn write(&self, batch: WriteBatch) -> Result<(), EngineError> {
        let WriteBatch {
            latest,
            put_revisions,
            delete_revisions,
            rows: table_rows,
        } = batch;
        let mut change = 0;
        let mut freed = Vec::new();
        {
            let mut rows = self.rows.write();
            for (key, row) in latest {
                change += rows.set_latest(key, row);
            }
            for (revision, tombstone, record) in put_revisions {
                change += record_bytes(&record);
                rows.revisions.insert(revision, (tombstone, record));
            }
            for (revision, _) in delete_revisions {
                freed.extend(rows.delete_revision(revision));
            }
            for (table, key, value) in table_rows {
                change += rows.set_row(table, key, value);
            }
        }
        // The records are dropped without the lock: giving memory back takes longer than the rest.
        change -= freed.iter().map(record_bytes).sum::<i64>();
        self.bytes.fetch_add(change, Ordering::Relaxed);
        Ok(())
    }

    fn flush(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn with_view(&self, read: &mut ViewVisitor<'_>) -> Result<(), EngineError> {
        read(&self.view())
    }

    fn checkpoint(
        &self,
        into: &Path,
        table: Table,
        key: &[u8],
    ) -> Result<Option<Bytes>, EngineError> {
        let view = self.view();
        snapshot_file::write(into, &view.tables, |from, chunk| {
            view.next_records(from, chunk)
        })?;
        Ok(view.tables[table as usize].get(key).cloned())
    }

    fn compact_files(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn size(&self) -> Result<EngineSize, EngineError> {
        let bytes = self.bytes.load(Ordering::Relaxed);
        Ok(EngineSize {
            physical_bytes: u64::try_from(bytes).unwrap_or(0),
            latest_bytes: 0,
        })
    }

    fn is_persistent(&self) -> bool {
        false
    }
}

impl MemoryView<'_> {
    /// Appends the next records; returns the last one that was looked at when there may be more.
    fn next_records(
        &self,
        from: Bound<Revision>,
        chunk: &mut Vec<(Revision, bool, RevisionRecord)>,
    ) -> Option<Revision> {
        let newest = self.newest?;
        let rows = self.engine.rows.read();
        let found = rows.revisions.range((from, Bound::Included(newest)));
        let mut last = None;
        for (revision, (tombstone, record)) in found.take(CHUNK_ROWS_MAX) {
            last = Some(*revision);
            let deleted_before = rows.held_back.get(revision);
            if deleted_before.is_none_or(|last_view| *last_view >= self.number) {
                chunk.push((*revision, *tombstone, record.clone()));
            }
        }
        last.filter(|last| *last < newest)
    }
}

impl ReadView for MemoryView<'_> {
    fn scan_revisions(&self, visit: &mut RevisionVisitor<'_>) -> Result<(), EngineError> {
        let mut from = Bound::Unbounded;
        let mut chunk = Vec::new();
        loop {
            let last = self.next_records(from, &mut chunk);
            for (revision, tombstone, record) in chunk.drain(..) {
                if visit(revision, tombstone, record).is_break() {
                    return Ok(());
                }
            }
            match last {
                Some(last) => from = Bound::Excluded(last),
                None => return Ok(()),
            }
        }
    }

    fn scan_rows(
        &self,
        table: Table,
        prefix: &[u8],
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        let start = Bytes::copy_from_slice(prefix);
        let mut rows = self.tables[table as usize]
            .range(start..)
            .take_while(|(key, _)| key.starts_with(prefix));
        let _ = rows.try_for_each(|(key, value)| visit(key, value));
        Ok(())
    }
}

impl Drop for MemoryView<'_> {
    fn drop(&mut self) {
        let mut freed = Vec::new();
        {
            let mut rows = self.engine.rows.write();
            rows.views.remove(&self.number);
            let oldest = rows.views.first().copied().unwrap_or(u64::MAX);
            let unseen: Vec<Revision> = rows
                .held_back
                .iter()
                .filter(|(_, last_view)| **last_view < oldest)
                .map(|(revision, _)| *revision)
                .collect();
            for revision in unseen {
                rows.held_back.remove(&revision);
                freed.extend(rows.revisions.remove(&revision).map(|(_, record)| record));
            }
        }
        let bytes = freed.iter().map(record_bytes).sum::<i64>();
        self.engine.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Rows {
    fn is_held_back(&self, revision: Revision) -> bool {
        !self.held_back.is_empty() && self.held_back.contains_key(&revision)
    }

    fn revision(&self, revision: Revision) -> Option<(bool, RevisionRecord)> {
        let (tombstone, record) = self.revisions.get(&revision)?;
        match self.is_held_back(revision) {
            true => None,
            false => Some((*tombstone, record.clone())),
        }
    }

    fn delete_revision(&mut self, revision: Revision) -> Option<RevisionRecord> {
        if !self.views.is_empty() {
            if self.revisions.contains_key(&revision) {
                let last_view = self.last_view;
                self.held_back.entry(revision).or_insert(last_view);
            }
            return None;
        }
        self.revisions.remove(&revision).map(|(_, record)| record)
    }

    /// Returns by how many bytes the table grew. The pair's bytes are shared with the record and
    /// counted there.
    fn set_latest(&mut self, key: Bytes, row: Option<LatestRow>) -> i64 {
        let Some(row) = row else {
            return match self.latest.remove(&key) {
                Some(_) => -latest_bytes(&key),
                None => 0,
            };
        };
        if let Some(present) = self.latest.get_mut(&key) {
            *present = row;
            return 0;
        }
        // The given key is a slice of the pair: keeping it would keep the first value for ever.
        let change = latest_bytes(&key);
        self.latest.insert(Bytes::copy_from_slice(&key), row);
        change
    }

    fn set_row(&mut self, table: Table, key: Bytes, value: Option<Bytes>) -> i64 {
        let row_bytes = |key: &[u8], value: &[u8]| (key.len() + value.len()) as i64;
        let rows = &mut self.tables[table as usize];
        match value {
            Some(value) => {
                let length = row_bytes(&key, &value);
                match rows.insert(key.clone(), value) {
                    Some(old) => length - row_bytes(&key, &old),
                    None => length + ROW_OVERHEAD_BYTES,
                }
            }
            None => match rows.remove(&key) {
                Some(old) => -row_bytes(&key, &old) - ROW_OVERHEAD_BYTES,
                None => 0,
            },
        }
    }

    fn bytes(&self) -> i64 {
        let latest: i64 = self.latest.keys().map(|key| latest_bytes(key)).sum();
        let revisions: i64 = self
            .revisions
            .values()
            .map(|(_, record)| record_bytes(record))
            .sum();
        let rows: i64 = self
            .tables
            .iter()
            .flatten()
            .map(|(key, value)| (key.len() + value.len()) as i64 + ROW_OVERHEAD_BYTES)
            .sum();
        latest + revisions + rows
    }
}

fn latest_bytes(key: &[u8]) -> i64 {
    key.len() as i64 + ROW_OVERHEAD_BYTES
}

fn record_bytes(record: &RevisionRecord) -> i64 {
    record.key_value.0.len() as i64 + ROW_OVERHEAD_BYTES
}

const _: () = {
    // `tables` is indexed by `Table as usize`.
    let mut index = 0;
    while index < Table::ALL.len() {
        assert!(
            Table::ALL[index] as usize == index,
            "Table::ALL is in the order of the enum"
        );
        index += 1;
    }
};
