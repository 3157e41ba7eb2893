//! The pace of a rewriting that somebody asked for, beside requests.
//!
//! RocksDB's rate limit is one for all its writing and has to leave room for a store under full load. A
//! defragmentation at that speed takes a processor and the disk away from requests for seconds, and nobody waits
//! for it as they wait for a put. RocksDB shows each row that a compaction reads to a filter, in the thread of
//! the compaction: this filter keeps every row and, while requests write, sleeps.

use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rocksdb::compaction_filter::{CompactionFilter, Decision};
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};

/// Bytes of rows that are rewritten in a second while requests write little. On two cores of a virtual machine the
/// p99 of 1000 puts per second stayed what it was; at 32 MiB/s it was 1.6 times that, at 128 MiB/s 3 to 8 times.
const BYTES_PER_SECOND: u64 = 16 << 20;
/// A large store is rewritten faster, so that its defragmentation ends in about this time.
const SECONDS_MAX: u64 = 300;
/// And so many more for each byte that requests write: their tables must not pile up behind the rewriting.
const BYTES_PER_WRITTEN_BYTE: u64 = 4;
/// The pace is looked at after so many bytes: a third of a millisecond of work. After 256 KiB a put that met it
/// waited for a whole time slice, 2.7 ms, whatever the priorities.
const PORTION_BYTES: u64 = 32 << 10;
/// Without a write for so long nobody is disturbed, and the rewriting goes on at full speed.
const QUIET: Duration = Duration::from_millis(200);

/// What requests write, as the rewriting has to know it.
#[derive(Debug, Default)]
pub(crate) struct RequestWrites {
    bytes: AtomicU64,
    /// Bytes per second of the rewriting that somebody waits for; 0: there is none.
    rewriting: AtomicU64,
    /// Compactions that share the pace.
    paced: AtomicU64,
}

impl RequestWrites {
    pub(crate) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A rewriting of so many bytes begins, and goes on until the answer is dropped. There is one at a time.
    pub(crate) fn rewrite(&self, bytes: u64) -> Rewriting<'_> {
        let rate = BYTES_PER_SECOND.max(bytes / SECONDS_MAX);
        self.rewriting.store(rate, Ordering::Relaxed);
        Rewriting(self)
    }

    fn is_rewriting(&self) -> bool {
        self.rewriting.load(Ordering::Relaxed) > 0
    }

    /// The time for so many bytes of one of the compactions.
    fn nanoseconds(&self, bytes: u64) -> u64 {
        let rate = self.rewriting.load(Ordering::Relaxed).max(BYTES_PER_SECOND);
        let paced = self.paced.load(Ordering::Relaxed).max(1);
        bytes * 1_000_000_000 / rate * paced
    }
}

/// As long as it lives, automatic compactions begin at the pace of a rewriting, too.
pub(crate) struct Rewriting<'a>(&'a RequestWrites);

impl Drop for Rewriting<'_> {
    fn drop(&mut self) {
        self.0.rewriting.store(0, Ordering::Relaxed);
    }
}

/// Makes the filters of a column family.
pub(crate) struct PacedRewriting(pub(crate) Arc<RequestWrites>);

impl CompactionFilterFactory for PacedRewriting {
    type Filter = PacedFilter;

    fn create(&mut self, context: CompactionFilterContext) -> PacedFilter {
        // Automatic compactions keep the tables in shape for requests: they must not wait. But a rewriting
        // begins with a flush, which may be what sets one off, of as much.
        let is_paced = context.is_manual_compaction || self.0.is_rewriting();
        let pace = is_paced.then(|| Pace::new(Arc::clone(&self.0), Instant::now()));
        PacedFilter(pace)
    }

    fn name(&self) -> &CStr {
        c"metastore-paced-rewriting"
    }
}

/// Keeps every row; sleeps when its compaction is ahead of its pace.
pub(crate) struct PacedFilter(Option<Pace>);

impl CompactionFilter for PacedFilter {
    fn filter(&mut self, _level: u32, key: &[u8], value: &[u8]) -> Decision {
        if let Some(pace) = &mut self.0
            && pace.passes(key.len() + value.len())
        {
            let ahead = pace.portion_ends(Instant::now());
            if !ahead.is_zero() {
                thread::sleep(ahead);
            }
            pace.portion_begins(Instant::now());
        }
        Decision::Keep
    }

    fn name(&self) -> &CStr {
        c"metastore-paced-filter"
    }
}

/// How far one compaction is, and how far it may be.
struct Pace {
    writes: Arc<RequestWrites>,
    portion_bytes: u64,
    portion_began: Instant,
    written_before: u64,
    last_write: Option<Instant>,
}

impl Pace {
    fn new(writes: Arc<RequestWrites>, now: Instant) -> Self {
        let written_before = writes.bytes.load(Ordering::Relaxed);
        writes.paced.fetch_add(1, Ordering::Relaxed);
        Self {
            writes,
            portion_bytes: 0,
            portion_began: now,
            written_before,
            last_write: None,
        }
    }

    /// Counts a row; whether the portion is complete with it.
    fn passes(&mut self, bytes: usize) -> bool {
        self.portion_bytes += bytes as u64;
        self.portion_bytes >= PORTION_BYTES
    }

    /// How long the compaction has to sleep after its portion.
    fn portion_ends(&mut self, now: Instant) -> Duration {
        let written = self.writes.bytes.load(Ordering::Relaxed);
        let beside = written - self.written_before;
        self.written_before = written;
        if beside > 0 {
            self.last_write = Some(now);
        }
        let is_quiet = self
            .last_write
            .is_none_or(|write| now.duration_since(write) > QUIET);
        if is_quiet {
            return Duration::ZERO;
        }
        let paced_bytes = self
            .portion_bytes
            .saturating_sub(beside.saturating_mul(BYTES_PER_WRITTEN_BYTE));
        let due = Duration::from_nanos(self.writes.nanoseconds(paced_bytes));
        due.saturating_sub(now.duration_since(self.portion_began))
    }

    fn portion_begins(&mut self, now: Instant) {
        self.portion_bytes = 0;
        self.portion_began = now;
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.writes.paced.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTION: Duration =
        Duration::from_micros(PORTION_BYTES * 1_000_000 / BYTES_PER_SECOND + 1);

    /// A portion that took `took` while requests wrote `beside` bytes.
    fn sleep_after(pace: &mut Pace, began: Instant, took: Duration, beside: u64) -> Duration {
        pace.portion_begins(began);
        while !pace.passes(1024) {}
        pace.writes.add(beside);
        pace.portion_ends(began + took)
    }

    #[test]
    fn a_rewriting_without_requests_goes_at_full_speed() {
        let now = Instant::now();
        let mut pace = Pace::new(Arc::default(), now);
        let sleep = sleep_after(&mut pace, now, PORTION / 4, 0);
        assert_eq!(sleep, Duration::ZERO);
    }

    #[test]
    fn a_rewriting_beside_puts_sleeps_for_the_rest_of_its_portions_time() {
        let now = Instant::now();
        let mut pace = Pace::new(Arc::default(), now);
        let sleep = sleep_after(&mut pace, now, PORTION / 4, 1);
        let whole = PORTION - PORTION / 4;
        assert!(sleep <= whole, "{sleep:?}");
        assert!(sleep + PORTION / 4 > whole, "{sleep:?}");
    }

    #[test]
    fn an_automatic_compaction_has_a_pace_only_during_a_rewriting() {
        let writes = Arc::<RequestWrites>::default();
        let mut factory = PacedRewriting(Arc::clone(&writes));
        let mut is_paced = |is_manual_compaction| {
            let context = CompactionFilterContext {
                is_full_compaction: false,
                is_manual_compaction,
            };
            factory.create(context).0.is_some()
        };
        assert!(is_paced(true));
        assert!(!is_paced(false));
        let rewriting = writes.rewrite(0);
        assert!(is_paced(false));
        drop(rewriting);
        assert!(!is_paced(false));
    }

    #[test]
    fn compactions_share_the_pace_of_a_rewriting_and_a_large_store_has_a_faster_one() {
        let now = Instant::now();
        let writes = Arc::<RequestWrites>::default();
        let mut pace = Pace::new(Arc::clone(&writes), now);
        let alone = sleep_after(&mut pace, now, Duration::ZERO, 1);
        let other = Pace::new(Arc::clone(&writes), now);
        let both = sleep_after(&mut pace, now, Duration::ZERO, 1);
        assert!(both > alone + PORTION / 2, "{alone:?} {both:?}");
        drop(other);
        let _rewriting = writes.rewrite(2 * SECONDS_MAX * BYTES_PER_SECOND);
        let large = sleep_after(&mut pace, now, Duration::ZERO, 1);
        assert!(large < alone * 2 / 3, "{alone:?} {large:?}");
    }

    #[test]
    fn a_slow_rewriting_does_not_sleep() {
        let now = Instant::now();
        let mut pace = Pace::new(Arc::default(), now);
        let sleep = sleep_after(&mut pace, now, PORTION, 1);
        assert_eq!(sleep, Duration::ZERO);
    }

    #[test]
    fn a_rewriting_keeps_up_with_many_puts() {
        let now = Instant::now();
        let mut pace = Pace::new(Arc::default(), now);
        let beside = PORTION_BYTES / BYTES_PER_WRITTEN_BYTE;
        let sleep = sleep_after(&mut pace, now, PORTION / 4, beside);
        assert_eq!(sleep, Duration::ZERO);
    }

    #[test]
    fn the_pace_holds_between_two_puts_and_ends_after_the_last() {
        let now = Instant::now();
        let mut pace = Pace::new(Arc::default(), now);
        let took = PORTION / 4;
        assert!(!sleep_after(&mut pace, now, took, 1).is_zero());
        let soon = now + QUIET / 2;
        assert!(!sleep_after(&mut pace, soon, took, 0).is_zero());
        let later = now + QUIET * 2;
        assert!(sleep_after(&mut pace, later, took, 0).is_zero());
    }
}
