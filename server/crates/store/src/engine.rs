//! What an engine has to do: hold rows and give them back in order.
//!
//! Everything that makes a row mean something (revisions, versions, leases, compaction) is in the
//! executor above this trait, so that two engines cannot disagree about it.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use metastore_revision_model::{KeyRange, LatestRow, RecordError, Revision, RevisionRecord};

/// The tables beside `latest` and `revisions`: small rows of bytes under keys of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// First key of a block of live keys → how many live keys are in it.
    KeyCounts,
    /// Lease id → granted TTL and checkpoint.
    Lease,
    /// Lease id and key → nothing: the keys that are attached to a lease.
    LeaseKeys,
    /// Users, roles, the auth revision and whether authentication is on.
    Auth,
    /// The member directory, removed ids, cluster version.
    Members,
    /// Member and alarm type → nothing.
    Alarms,
    /// Names → the applied position, current and compact revisions, logical size, format version.
    Meta,
}

impl Table {
    /// Every table, in the order in which snapshots carry them.
    pub const ALL: [Self; 7] = [
        Self::KeyCounts,
        Self::Lease,
        Self::LeaseKeys,
        Self::Auth,
        Self::Members,
        Self::Alarms,
        Self::Meta,
    ];

    /// The table's name on disk and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KeyCounts => "key_counts",
            Self::Lease => "lease",
            Self::LeaseKeys => "lease_keys",
            Self::Auth => "auth",
            Self::Members => "members",
            Self::Alarms => "alarms",
            Self::Meta => "meta",
        }
    }
}

/// Why an engine could not do what it was asked. Every one ends the process: after a failed write
/// or a damaged row the member cannot know what its disk holds.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A stored row is no row.
    #[error(transparent)]
    Damaged(#[from] RecordError),
    /// The disk or the database library failed.
    #[error("storage engine: {0}")]
    Storage(String),
    /// A file operation failed.
    #[error("storage engine: {context}: {source}")]
    Io {
        /// What was tried, on which file.
        context: String,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// Direction of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Ascending keys.
    Forward,
    /// Descending keys.
    Backward,
}

/// How much of a latest row a reader needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowParts {
    /// `key_value` is set when the engine keeps it with the row.
    All,
    /// `key_value` may be `None` even then.
    Metadata,
}

/// The rows of one atomic change, in the order in which they are to be applied.
#[derive(Debug, Default)]
pub struct WriteBatch {
    /// Rows of `latest`; `None` removes the row. The rows of live keys carry their pair; an engine
    /// for which storing it twice is too dear drops it.
    pub latest: Vec<(Bytes, Option<LatestRow>)>,
    /// New records of `revisions`; the flag says whether the record is a tombstone.
    pub put_revisions: Vec<(Revision, bool, RevisionRecord)>,
    /// Records of `revisions` to remove; the flag says whether the record is a tombstone.
    pub delete_revisions: Vec<(Revision, bool)>,
    /// Rows of the other tables; `None` removes the row.
    pub rows: Vec<(Table, Bytes, Option<Bytes>)>,
}

impl WriteBatch {
    /// Whether the batch changes nothing.
    pub fn is_empty(&self) -> bool {
        self.latest.is_empty()
            && self.put_revisions.is_empty()
            && self.delete_revisions.is_empty()
            && self.rows.is_empty()
    }
}

/// Sizes of the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineSize {
    /// Bytes that the engine occupies on disk, or in memory if it has no files.
    pub physical_bytes: u64,
    /// Those of `physical_bytes` that hold the newest rows beside the history. They are needed as long as
    /// their keys live, and what they repeat is counted once in the logical size: nothing gives them back.
    pub latest_bytes: u64,
}

/// Visitor of a scan of `latest`: key and row. Break ends the scan.
pub type LatestVisitor<'a> = dyn FnMut(&[u8], LatestRow) -> ControlFlow<()> + 'a;
/// Visitor of a scan of `revisions`: revision, whether it is a tombstone, record.
pub type RevisionVisitor<'a> = dyn FnMut(Revision, bool, RevisionRecord) -> ControlFlow<()> + 'a;
/// Visitor of a scan of another table: key and value.
pub type RowVisitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Reader of a view.
pub type ViewVisitor<'a> = dyn FnMut(&dyn ReadView) -> Result<(), EngineError> + 'a;

/// The rows of one moment, whatever is written afterwards. For exports, which have to be one state.
pub trait ReadView {
    /// Visits the whole history, ascending.
    fn scan_revisions(&self, visit: &mut RevisionVisitor<'_>) -> Result<(), EngineError>;

    /// Visits the rows of another table whose key starts with `prefix`, ascending.
    fn scan_rows(
        &self,
        table: Table,
        prefix: &[u8],
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError>;
}

/// An ordered store of rows.
///
/// One thread writes through [`Engine::write`] what commands change; a background thread may write
/// batches that only hold `delete_revisions` and rows of [`Table::Meta`] that no command touches.
/// Any thread reads, at any time. A scan sees a state that is not older than the last write that
/// had returned when it began; it need not be one single state (readers resolve rows that are newer
/// than their revision through `previous`), but a row is never missed because it was rewritten
/// while the scan ran.
pub trait Engine: Send + Sync + 'static {
    /// The newest row of a key; `None` when the key never existed or its tombstone was collected.
    fn get_latest(&self, key: &[u8], parts: RowParts) -> Result<Option<LatestRow>, EngineError>;

    /// The newest rows of several keys, in the order of the keys.
    fn multi_get_latest(
        &self,
        keys: &[Bytes],
        parts: RowParts,
    ) -> Result<Vec<Option<LatestRow>>, EngineError>;

    /// Visits the newest rows of a range in key order, tombstones included.
    fn scan_latest(
        &self,
        range: &KeyRange,
        direction: Direction,
        parts: RowParts,
        visit: &mut LatestVisitor<'_>,
    ) -> Result<(), EngineError>;

    /// One record of the history with its tombstone flag; `None` when it was never written or has
    /// been compacted away.
    fn get_revision(
        &self,
        revision: Revision,
    ) -> Result<Option<(bool, RevisionRecord)>, EngineError>;

    /// Several records, in the order of the revisions. The default asks one by one.
    fn multi_get_revisions(
        &self,
        revisions: &[Revision],
    ) -> Result<Vec<Option<(bool, RevisionRecord)>>, EngineError> {
        revisions
            .iter()
            .map(|revision| self.get_revision(*revision))
            .collect()
    }

    /// Visits the records of the history from `from` on (included), ascending, up to `to`
    /// (included).
    fn scan_revisions(
        &self,
        from: Revision,
        to: Revision,
        visit: &mut RevisionVisitor<'_>,
    ) -> Result<(), EngineError>;

    /// A row of another table.
    fn get_row(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Visits the rows of another table whose key starts with `prefix`, ascending, beginning at
    /// `from` (included) when that is later. An empty prefix is the whole table.
    fn scan_rows(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError>;

    /// Calls `read` with the state as it is at one moment between two batches. Writers go on
    /// meanwhile; what they remove stays stored until `read` returns.
    fn with_view(&self, read: &mut ViewVisitor<'_>) -> Result<(), EngineError>;

    /// Applies a batch as a whole. It need not be durable when this returns.
    fn write(&self, batch: WriteBatch) -> Result<(), EngineError>;

    /// Makes every write that has returned durable. For the memory engine: does nothing, its
    /// durable form is the snapshot file.
    fn flush(&self) -> Result<(), EngineError>;

    /// Writes a durable copy of the whole state, as it is at one moment between two batches, into
    /// the new directory `into`. Writers go on meanwhile; the row at `key` of `table`, as the copy has
    /// it, tells the caller which moment that is.
    fn checkpoint(
        &self,
        into: &Path,
        table: Table,
        key: &[u8],
    ) -> Result<Option<Bytes>, EngineError>;

    /// Reclaims the space of removed rows, online and in steps with pauses, so that reads and writes
    /// go on undisturbed. Returns when done. Nothing to do for an engine that keeps no removed rows.
    fn compact_files(&self) -> Result<(), EngineError>;

    /// How large the database is.
    fn size(&self) -> Result<EngineSize, EngineError>;

    /// Whether the state survives a restart without the snapshot file: true for RocksDB.
    fn is_persistent(&self) -> bool;
}

/// An engine of either kind.
pub type SharedEngine = Arc<dyn Engine>;
