//! The background deletion of what a compaction made dead.
//!
//! A compaction takes effect when its log entry is applied: older revisions cannot be read any
//! more. Deleting them is this member's own affair, done in paced steps so that it disturbs nobody.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metastore_store::EngineError;
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::application::Application;
use crate::observe::metrics::METRICS;

/// Hashes of compactions that are kept, the newest ones; etcd's `hashStorageMaxSize`.
const HASHES_MAX: usize = 10;
/// Largest store whose compactions are hashed: a hash reads everything, a compaction only what changed. Reading
/// this much takes a few tenths of a second of one thread.
const HASHED_BYTES_MAX: u64 = 64 << 20;

/// The wake-up call of the compaction thread, the revision up to which it has deleted, and the hashes that
/// etcd would have made meanwhile.
pub struct Compaction {
    work: Mutex<Work>,
    woken: Condvar,
    finished: watch::Sender<i64>,
    hashes: Mutex<BTreeMap<i64, CompactionHash>>,
}

/// The HashKV of everything up to a compaction, as it was before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionHash {
    /// The hash.
    pub hash: u32,
    /// The compaction before; −1: there was none.
    pub compact_revision: i64,
}

#[derive(Default)]
struct Work {
    pending: bool,
    closed: bool,
    /// Compactions that are to be hashed, each with the one before.
    unhashed: VecDeque<(i64, i64)>,
}

impl Default for Compaction {
    fn default() -> Self {
        Self {
            work: Mutex::default(),
            woken: Condvar::new(),
            finished: watch::Sender::new(0),
            hashes: Mutex::default(),
        }
    }
}

impl Compaction {
    /// A compaction at `revision` after one at `previous` is about to be committed: its hash is wanted before
    /// anything is deleted.
    pub fn announce(&self, previous: i64, revision: i64) {
        let mut work = self.work.lock();
        work.unhashed.push_back((previous, revision));
        if work.unhashed.len() > HASHES_MAX {
            work.unhashed.pop_front();
        }
    }

    /// The hash of a compaction at this revision, if it is kept.
    pub fn hash(&self, revision: i64) -> Option<CompactionHash> {
        self.hashes.lock().get(&revision).copied()
    }

    /// Hashes the compactions up to `visible`.
    fn hash_up_to(&self, application: &Application, visible: i64) -> Result<(), EngineError> {
        loop {
            let next = {
                let mut work = self.work.lock();
                match work.unhashed.front() {
                    Some((_, revision)) if *revision <= visible => work.unhashed.pop_front(),
                    Some(_) | None => None,
                }
            };
            let Some((compact_revision, revision)) = next else {
                return Ok(());
            };
            let reader = application.reader();
            if reader.logical_bytes() > HASHED_BYTES_MAX {
                continue;
            }
            let hash = reader.hash_of_compaction(compact_revision, revision)?;
            let mut hashes = self.hashes.lock();
            hashes.insert(
                revision,
                CompactionHash {
                    hash,
                    compact_revision,
                },
            );
            if hashes.len() > HASHES_MAX {
                hashes.pop_first();
            }
        }
    }

    /// There is something to delete.
    pub fn wake(&self) {
        self.work.lock().pending = true;
        self.woken.notify_one();
    }

    /// Ends the thread after its current step.
    pub fn close(&self) {
        self.work.lock().closed = true;
        self.woken.notify_one();
    }

    /// Waits until everything that a compaction at `revision` made dead is deleted here.
    pub async fn wait_finished(&self, revision: i64) {
        let mut finished = self.finished.subscribe();
        // The sender lives as long as the node; when it is gone nobody waits for the answer.
        let _ = finished.wait_for(|finished| *finished >= revision).await;
    }

    /// Waits for work, or for `pause` to pass; false when closed.
    fn wait(&self, pause: Option<Duration>) -> bool {
        let mut work = self.work.lock();
        match pause {
            Some(pause) => {
                if !work.closed {
                    self.woken.wait_for(&mut work, pause);
                }
            }
            None => {
                while !work.pending && !work.closed {
                    self.woken.wait(&mut work);
                }
                work.pending = false;
            }
        }
        !work.closed
    }
}

/// Steps in which a batch is deleted, with their share of the pause after each: a put waits for one of them
/// at most.
const STEPS_PER_BATCH: usize = 10;

/// The body of the compaction thread: batches of `batch_revisions` with `pause` between them (etcd's
/// `--compaction-batch-limit` and `--compaction-sleep-interval`).
pub fn run(
    application: &Arc<Application>,
    batch_revisions: usize,
    pause: Duration,
    fatal: impl Fn(String),
) {
    let step_revisions = batch_revisions.div_ceil(STEPS_PER_BATCH);
    let pause = pause / STEPS_PER_BATCH as u32;
    // A compaction that a crash cut short goes on at start.
    application.compaction.wake();
    while application.compaction.wait(None) {
        let started = Instant::now();
        for step in 1_usize.. {
            let step_started = Instant::now();
            let reader = application.reader();
            // What is committed after this look is neither hashed nor deleted in this step.
            let visible = reader.compact_revision();
            let hashed = application.compaction.hash_up_to(application, visible);
            let delete = || reader.collect_garbage_step_up_to(visible, step_revisions);
            let more = match hashed.and_then(|()| delete()) {
                Ok(more) => more,
                Err(error) => {
                    fatal(format!("compaction failed: {error}"));
                    return;
                }
            };
            METRICS
                .compaction_pause_milliseconds
                .observe(step_started.elapsed().as_millis() as f64);
            if !more || step.is_multiple_of(STEPS_PER_BATCH) {
                application.note_size();
            }
            if !more {
                METRICS
                    .compaction_total_milliseconds
                    .observe(started.elapsed().as_millis() as f64);
                METRICS.compaction_last.set(seconds_since_1970());
                application
                    .compaction
                    .finished
                    .send_replace(reader.finished_compact_revision());
                break;
            }
            if !application.compaction.wait(Some(pause)) {
                return;
            }
        }
    }
}

fn seconds_since_1970() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}
