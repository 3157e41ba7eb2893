//! The engine's few options, and the many of RocksDB that follow from them.

use std::sync::Arc;

use metastore_store::engine::Table;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactionPri,
    DBCompressionType, DataBlockIndexType, Env, Options, WriteBufferManager, WriteOptions,
};

use crate::pace::{PacedRewriting, RequestWrites};

/// Column family of the newest rows, under the user's keys.
pub(crate) const LATEST: &str = "latest";
/// Column family of the history, under revision keys.
pub(crate) const REVISIONS: &str = "revisions";
/// RocksDB insists on this one; it holds the format row and nothing else.
pub(crate) const DEFAULT: &str = "default";

/// Less than this and RocksDB would flush for every few batches.
const MEMORY_BYTES_MIN: usize = 4 * MEBIBYTE;
/// What the memtables may take of the memory; the block cache has the rest, and what they leave.
const MEMTABLE_SHARE_PERCENT: usize = 60;
/// Both large tables fill at about the same speed, and while one generation of memtables is being
/// flushed the next one grows: a quarter of the memtables' share each.
const MEMTABLES_AT_ONCE: usize = 2;
/// Open files. More stay closed until somebody reads them. Below the soft limit of 1024 that most
/// systems give a process, so that sockets have room.
const OPEN_FILES_MAX: i32 = 512;
/// Filters answer "no such key" without a read for all but 1 % of the keys that do not exist.
const FILTER_BITS_PER_KEY: f64 = 10.0;
/// Part of a memtable of `latest` that is its filter: some 10 bits for each row with a small value.
const MEMTABLE_FILTER_RATIO: f64 = 0.01;
/// The last level of a tree with the default number of levels.
const LAST_LEVEL: i32 = 6;
/// Data blocks of `latest`: a random get decompresses one of them and keeps it for one row.
const LATEST_BLOCK_BYTES: usize = 4 * KIBIBYTE;
/// Data blocks of `revisions`, which is mostly read in order.
const REVISIONS_BLOCK_BYTES: usize = 16 * KIBIBYTE;
/// A file is compacted soon when this many of [`DELETION_WINDOW_ROWS`] rows in sequence are
/// deletions: etcd's compaction leaves long runs of them, and a scan walks over each.
///
/// Files whose records are all dead are not dropped by `delete_file_in_range`: one of them may hold
/// the deletion of a record that lies in a lower file reaching beyond the range, and the record
/// would come back. Compaction finds them by this trigger and reads each once.
const DELETION_TRIGGER_ROWS: usize = 4096;
/// See [`DELETION_TRIGGER_ROWS`].
const DELETION_WINDOW_ROWS: usize = 8192;
/// The same for a file as a whole.
const DELETION_RATIO: f64 = 0.5;
/// Written pages go to the disk at this pace, so that the log's sync never waits for a heap of them.
const BYTES_PER_SYNC: u64 = 256 * KIBIBYTE as u64;
/// Bytes of a file that a flush or a compaction writes or reads at once: a put that meets it waits for it, 2.6 ms
/// for a MiB.
const WRITE_BYTES: u64 = 128 * KIBIBYTE as u64;
const READ_AHEAD_BYTES: usize = 128 * KIBIBYTE;
/// The background's bytes are handed out in portions of this time: a sync of the log waits behind what is left
/// of one. RocksDB's usual 100 ms made it wait behind tens of MiB.
const RATE_REFILL_MICROSECONDS: i64 = 10_000;
/// RocksDB's own log, one of [`INFO_LOG_FILES`] files.
const INFO_LOG_FILE_BYTES: usize = 4 * MEBIBYTE;
/// See [`INFO_LOG_FILE_BYTES`].
const INFO_LOG_FILES: usize = 4;

const KIBIBYTE: usize = 1024;
const MEBIBYTE: usize = 1024 * KIBIBYTE;

/// What an operator may decide about the engine.
#[derive(Clone, Debug)]
pub struct RocksDbOptions {
    /// Bytes of memory for memtables and cached blocks together; three fifths of it may be memtables.
    /// Less than 4 MiB counts as 4 MiB. Default 80 MiB. It bounds what RocksDB counts, not the
    /// process: with 128 MiB, `engine_cost` with a million keys of 256 bytes was at 73 MiB resident
    /// after loading and reached 182 MiB under random reads and overwrites, with compactions and what
    /// the allocator holds back. More makes reads of a large database faster, not writes; the filter of
    /// the newest rows wants about 1.25 bytes for each key.
    pub memory_bytes: usize,
    /// A key value of at most this many bytes is kept with the newest row of its key as well as in
    /// the history, so that a read needs one look-up. 0: never. Default 1 KiB: a larger value is
    /// read rarely enough, and written twice dearly enough, to be worth the second look-up.
    pub inline_bytes: usize,
    /// Flushes and compactions at once. Default: the number of cores, and not less than 3: one flush,
    /// one compaction, and one more while a defragmentation takes its time. 0 counts as 1.
    pub background_jobs: usize,
    /// Bytes per second that flushes and compactions together may write; flushes go first. They
    /// share the disk with the Raft log, whose syncs they would delay. 0: no limit. Default
    /// 128 MiB.
    pub background_bytes_per_second: u64,
}

impl Default for RocksDbOptions {
    fn default() -> Self {
        Self {
            memory_bytes: 80 * MEBIBYTE,
            inline_bytes: KIBIBYTE,
            background_jobs: cores().max(3),
            background_bytes_per_second: 128 * MEBIBYTE as u64,
        }
    }
}

/// The options translated for RocksDB, with the cache that all column families share.
pub(crate) struct Translated {
    pub(crate) database: Options,
    pub(crate) cache: Cache,
    /// What the engine tells about its writes, for the pace of defragmentations.
    pub(crate) request_writes: Arc<RequestWrites>,
    memtable_bytes: usize,
}

impl RocksDbOptions {
    pub(crate) fn translate(&self) -> Result<Translated, rocksdb::Error> {
        let mut environment = Env::new()?;
        let memory_bytes = self.memory_bytes.max(MEMORY_BYTES_MIN);
        let memtables_bytes = memory_bytes / 100 * MEMTABLE_SHARE_PERCENT;
        // An entry charge of 0 lets the cache find out itself: memtables are charged to it, so
        // there is no typical entry.
        let cache = Cache::new_hyper_clock_cache(memory_bytes, 0);
        // No stall: max_write_buffer_number already stops a writer that outruns the flushes, and
        // leaves it alone until then.
        let write_buffers = WriteBufferManager::new_write_buffer_manager_with_cache(
            memtables_bytes,
            false,
            cache.clone(),
        );
        let jobs = i32::try_from(self.background_jobs.max(1)).unwrap_or(i32::MAX);

        let mut database = Options::default();
        database.set_write_buffer_manager(&write_buffers);
        // Without a WAL this is what keeps the column families in step: one flush takes all of
        // them at one sequence number, so that the applied position in `meta` describes the rest.
        database.set_atomic_flush(true);
        database.set_paranoid_checks(true);
        // One thread writes: without the locking for several, a row that follows the previous one
        // (every record of the history does) is inserted without a search.
        database.set_allow_concurrent_memtable_write(false);
        database.set_max_background_jobs(jobs);
        // Compactions are never urgent and requests are. Flushes keep their priority: a writer may wait
        // for them.
        environment.lower_thread_pool_cpu_priority();
        database.set_env(&environment);
        database.set_max_subcompactions((jobs as u32 / 2).max(1));
        if self.background_bytes_per_second > 0 {
            let rate = i64::try_from(self.background_bytes_per_second).unwrap_or(i64::MAX);
            database.set_ratelimiter(rate, RATE_REFILL_MICROSECONDS, 10);
        }
        database.set_bytes_per_sync(BYTES_PER_SYNC);
        database.set_writable_file_max_buffer_size(WRITE_BYTES);
        database.set_compaction_readahead_size(READ_AHEAD_BYTES);
        // Obsolete files and memtables are freed by a background job, not by the thread that
        // happened to hold the last iterator.
        database.set_avoid_unnecessary_blocking_io(true);
        database.set_max_open_files(OPEN_FILES_MAX);
        database.set_skip_stats_update_on_db_open(true);
        database.set_stats_persist_period_sec(0);
        database.set_max_log_file_size(INFO_LOG_FILE_BYTES);
        database.set_keep_log_file_num(INFO_LOG_FILES);
        Ok(Translated {
            database,
            cache,
            request_writes: Arc::default(),
            memtable_bytes: memtables_bytes / MEMTABLES_AT_ONCE,
        })
    }
}

impl Translated {
    /// Every column family with its options.
    pub(crate) fn column_families(&self) -> Vec<ColumnFamilyDescriptor> {
        let mut families = vec![
            ColumnFamilyDescriptor::new(DEFAULT, self.small_table()),
            ColumnFamilyDescriptor::new(LATEST, self.latest()),
            ColumnFamilyDescriptor::new(REVISIONS, self.revisions()),
        ];
        families.extend(
            Table::ALL.map(|table| ColumnFamilyDescriptor::new(table.name(), self.small_table())),
        );
        families
    }

    fn latest(&self) -> Options {
        let mut blocks = self.blocks(LATEST_BLOCK_BYTES);
        // Ribbon filters take a third less memory and more CPU to build: right for the last level,
        // which holds nine tenths of the keys and is rewritten least.
        blocks.set_hybrid_ribbon_filter(FILTER_BITS_PER_KEY, LAST_LEVEL);
        blocks.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
        let mut options = self.table(&blocks);
        // A key that is new, or was not written lately, is looked for in the tables at once: a filter
        // is one cache line, a search in a memtable a dozen of them.
        options.set_memtable_prefix_bloom_ratio(MEMTABLE_FILTER_RATIO);
        options.set_memtable_whole_key_filtering(true);
        options.set_max_bytes_for_level_base(128 * MEBIBYTE as u64);
        // Hot keys die in level 0 already; merging it half as often halves the rewriting.
        options.set_level_zero_file_num_compaction_trigger(8);
        options.set_target_file_size_base(32 * MEBIBYTE as u64);
        options.set_compaction_pri(CompactionPri::MinOverlappingRatio);
        options.set_compaction_filter_factory(PacedRewriting(Arc::clone(&self.request_writes)));
        options
    }

    fn revisions(&self) -> Options {
        // No filter: whoever asks for a record knows that it exists, and as records come in ascending
        // order, the range of a file tells whether it has it.
        let blocks = self.blocks(REVISIONS_BLOCK_BYTES);
        let mut options = self.table(&blocks);
        // Records come in ascending order, so files move down whole and may be large.
        options.set_max_bytes_for_level_base(256 * MEBIBYTE as u64);
        options.set_target_file_size_base(64 * MEBIBYTE as u64);
        // One compression on all levels: a file that has to be compressed anew cannot move down as
        // it is, and rewriting the history once more costs a put more than zstd saves on disk.
        // The filter keeps RocksDB from moving files in a manual compaction; in automatic ones they do.
        options.set_compaction_filter_factory(PacedRewriting(Arc::clone(&self.request_writes)));
        options
    }

    fn small_table(&self) -> Options {
        let mut blocks = self.blocks(LATEST_BLOCK_BYTES);
        blocks.set_bloom_filter(FILTER_BITS_PER_KEY, false);
        self.table(&blocks)
    }

    fn blocks(&self, block_bytes: usize) -> BlockBasedOptions {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&self.cache);
        blocks.set_block_size(block_bytes);
        // Filters and indexes live in the cache: otherwise a large database would hold all of them
        // outside the bound. Indexes are partitioned, as they grow with the bytes stored. Filters
        // are not: a partition is one more look-up for each key and file. Single runs on a busy
        // machine did not settle what that costs a key that does not exist (from 0.3 us less to
        // 1.3 us more). Partitions are the better choice once filters outgrow the cache.
        blocks.set_cache_index_and_filter_blocks(true);
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
        blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        blocks.set_pin_top_level_index_and_filter(true);
        blocks.set_whole_key_filtering(true);
        blocks.set_optimize_filters_for_memory(true);
        blocks
    }

    fn table(&self, blocks: &BlockBasedOptions) -> Options {
        let mut options = Options::default();
        options.set_block_based_table_factory(blocks);
        options.set_write_buffer_size(self.memtable_bytes);
        // One is written, one is being flushed, one waits: then the writer waits too.
        options.set_max_write_buffer_number(3);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_level_compaction_dynamic_level_bytes(true);
        // Old files are rewritten when there is something to reclaim, not because they are old.
        options.set_periodic_compaction_seconds(0);
        options.set_ttl(0);
        options.add_compact_on_deletion_collector_factory(
            DELETION_WINDOW_ROWS,
            DELETION_TRIGGER_ROWS,
            DELETION_RATIO,
        );
        options
    }
}

/// How every batch is written: into the memtables only, since the Raft log is the WAL.
pub(crate) fn write_options() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
