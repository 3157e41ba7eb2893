//! Numbers for metrics: what this member has executed since its start.
//!
//! What counts as one of each is etcd's rule, because dashboards and tests compare exact numbers: the
//! reads that a put or a delete needs for a previous pair and those of compares are ranges too, and
//! whatever holds more than one operation is a transaction.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters as they are kept; they only grow. One set lives as long as the process, also when a
/// snapshot replaces the store under it.
#[derive(Debug, Default)]
pub struct StoreCounters {
    ranges: AtomicU64,
    puts: AtomicU64,
    deletes: AtomicU64,
    transactions: AtomicU64,
    put_bytes: AtomicU64,
    collected_records: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounterValues {
    /// Ranges read (`etcd_mvcc_range_total`).
    pub ranges: u64,
    /// Puts (`etcd_mvcc_put_total`).
    pub puts: u64,
    /// Deletions of a range, however many keys each held (`etcd_mvcc_delete_total`).
    pub deletes: u64,
    /// Commands of more than one operation (`etcd_mvcc_txn_total`).
    pub transactions: u64,
    /// Bytes of keys and values of the puts (`etcd_debugging_mvcc_total_put_size_in_bytes`).
    pub put_bytes: u64,
    /// Records of the history that compactions deleted
    /// (`etcd_debugging_mvcc_db_compaction_keys_total`).
    pub collected_records: u64,
}

impl StoreCounters {
    /// The counters now.
    pub fn values(&self) -> StoreCounterValues {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreCounterValues {
            ranges: load(&self.ranges),
            puts: load(&self.puts),
            deletes: load(&self.deletes),
            transactions: load(&self.transactions),
            put_bytes: load(&self.put_bytes),
            collected_records: load(&self.collected_records),
        }
    }

    pub(crate) fn count_collected(&self, records: usize) {
        self.collected_records
            .fetch_add(records as u64, Ordering::Relaxed);
    }

    /// Counts a read outside of the apply thread.
    pub(crate) fn count_ranges(&self, ranges: u64) {
        self.ranges.fetch_add(ranges, Ordering::Relaxed);
        if ranges > 1 {
            self.transactions.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What the apply thread has counted since its last commit: plain numbers, so that counting costs
/// nothing worth mentioning.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Operations of the command that is being executed.
    pub ranges: u64,
    pub puts: u64,
    pub deletes: u64,
    pub put_bytes: u64,
    finished: StoreCounterValues,
}

impl Tally {
    /// A command, or the reading part of one, has ended.
    pub fn finish_command(&mut self) {
        let Self {
            ranges,
            puts,
            deletes,
            put_bytes,
            finished,
        } = self;
        finished.transactions += u64::from(*ranges + *puts + *deletes > 1);
        finished.ranges += std::mem::take(ranges);
        finished.puts += std::mem::take(puts);
        finished.deletes += std::mem::take(deletes);
        finished.put_bytes += std::mem::take(put_bytes);
    }

    /// Adds what was counted to the shared counters.
    pub fn publish(&mut self, counters: &StoreCounters) {
        let StoreCounterValues {
            ranges,
            puts,
            deletes,
            transactions,
            put_bytes,
            collected_records: _,
        } = std::mem::take(&mut self.finished);
        for (counter, count) in [
            (&counters.ranges, ranges),
            (&counters.puts, puts),
            (&counters.deletes, deletes),
            (&counters.transactions, transactions),
            (&counters.put_bytes, put_bytes),
        ] {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}
