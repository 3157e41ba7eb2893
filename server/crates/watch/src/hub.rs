//! The hub: its threads, and the handle through which the server drives it.

use std::sync::Arc;
use std::time::Duration;

use metastore_store::EngineError;
use parking_lot::{Condvar, Mutex};

use crate::catch_up;
use crate::core::{Core, StreamId};
use crate::event::RevisionEvents;
use crate::history::History;
use crate::inbox::Inbox;
use crate::stream::Stream;

/// Shortest interval of periodic progress, as in etcd.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Limits of the hub.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Bytes that may wait for one stream's client before its watchers have to read the history
    /// later. Default 1 MiB; one single revision may exceed it.
    pub stream_queue_bytes_max: usize,
    /// Bytes of the past in one response, apart from a larger single revision. etcd has no such limit, and
    /// clients with gRPC's default one of 4 MiB fail there; with this they do not. Default 4 MiB less
    /// 64 KiB.
    pub history_bytes_max: usize,
    /// Recent events that are kept for watchers a little behind. Default 65 536.
    pub recent_events_max: usize,
    /// Bytes of recent events. Default 16 MiB.
    pub recent_bytes_max: usize,
    /// Bytes that may wait between the apply thread and the hub; beyond, everybody reads the
    /// history. Default 64 MiB.
    pub inbox_bytes_max: usize,
    /// Size below which responses of watchers with `fragment` stay: `max-request-bytes` and
    /// 512 KiB. Default 2 MiB.
    pub fragment_bytes: usize,
    /// Time between two progress notifications of a quiet watcher (up to a tenth more). Default
    /// 10 min, at least 100 ms.
    pub progress_interval: Duration,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            stream_queue_bytes_max: 1 << 20,
            history_bytes_max: (4 << 20) - (64 << 10),
            recent_events_max: 64 << 10,
            recent_bytes_max: 16 << 20,
            inbox_bytes_max: 64 << 20,
            fragment_bytes: 2 << 20,
            progress_interval: Duration::from_secs(600),
        }
    }
}

impl HubOptions {
    /// Bytes of events that are put together into one response, apart from a larger single
    /// revision: half of a stream's queue, so that there is always room for the next one while one
    /// is being sent.
    pub(crate) fn chunk_bytes_max(&self) -> usize {
        self.stream_queue_bytes_max / 2
    }
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HubStatistics {
    /// Open streams (`etcd_debugging_mvcc_watch_stream_total`).
    pub streams: usize,
    /// Watchers (`etcd_debugging_mvcc_watcher_total`).
    pub watchers: usize,
    /// Watchers that are catching up or wait for their client
    /// (`etcd_debugging_mvcc_slow_watcher_total`).
    pub slow_watchers: usize,
    /// Responses with events since the start.
    pub responses_sent: u64,
    /// Bytes that wait for clients.
    pub queued_bytes: usize,
    /// Events that wait for clients, without what connections have taken already
    /// (`etcd_debugging_mvcc_pending_events_total`).
    pub queued_events: usize,
    /// Bytes between the apply thread and the hub.
    pub inbox_bytes: usize,
    /// Bytes of recent events.
    pub recent_bytes: usize,
}

pub(crate) struct Shared {
    inbox: Arc<Inbox>,
    core: Mutex<Core>,
    catch_up: Mutex<CatchUpSignal>,
    catch_up_wake: Condvar,
}

#[derive(Default)]
struct CatchUpSignal {
    work: bool,
    drained: Vec<StreamId>,
    closed: bool,
}

/// Handle of the hub; clones are the same hub.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

impl Hub {
    /// A hub that starts at the history's revision. Nothing is delivered before threads run
    /// [`run`](Self::run) and [`run_catch_up`](Self::run_catch_up).
    pub fn new(history: impl History, mut options: HubOptions) -> Self {
        options.progress_interval = options.progress_interval.max(PROGRESS_INTERVAL_MIN);
        let history: Arc<dyn History> = Arc::new(history);
        let inbox = Arc::new(Inbox::new(history.revision(), options.inbox_bytes_max));
        Self {
            shared: Arc::new(Shared {
                core: Mutex::new(Core::new(history, options, Arc::clone(&inbox))),
                inbox,
                catch_up: Mutex::default(),
                catch_up_wake: Condvar::new(),
            }),
        }
    }

    /// The apply thread has committed these changes, and `revision` is the published revision now.
    /// To be called in order, by one thread, after readers can see the changes and before clients
    /// get their answers. Never waits for a client; drops everything when nobody watches.
    pub fn publish(&self, committed: Vec<RevisionEvents>, revision: i64) {
        self.shared.inbox.publish(committed, revision);
    }

    /// Delivers changes as they come, until [`close`](Self::close). For one OS thread.
    ///
    /// # Errors
    /// When the engine failed; the member has to stop. The hub is closed then.
    pub fn run(&self) -> Result<(), EngineError> {
        while self.shared.inbox.wait() {
            self.dispatch_step().inspect_err(|_| self.close())?;
        }
        Ok(())
    }

    /// Reads the history for watchers that are behind, until [`close`](Self::close). For one OS
    /// thread, or more: each scan is by one.
    ///
    /// # Errors
    /// When the engine failed; the member has to stop. The hub is closed then.
    pub fn run_catch_up(&self) -> Result<(), EngineError> {
        loop {
            {
                let mut signal = self.shared.catch_up.lock();
                while !signal.work && signal.drained.is_empty() && !signal.closed {
                    self.shared.catch_up_wake.wait(&mut signal);
                }
                if signal.closed {
                    return Ok(());
                }
                signal.work = false;
            }
            while self.catch_up_step().inspect_err(|_| self.close())? {
                if self.shared.catch_up.lock().closed {
                    return Ok(());
                }
            }
        }
    }

    /// One step of [`run`](Self::run): false when there is nothing to deliver. For simulations.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn dispatch_step(&self) -> Result<bool, EngineError> {
        self.shared.with_core(Core::dispatch)
    }

    /// One step of [`run_catch_up`](Self::run_catch_up): false when nobody is behind. For
    /// simulations.
    ///
    /// # Errors
    /// As [`run_catch_up`](Self::run_catch_up).
    pub fn catch_up_step(&self) -> Result<bool, EngineError> {
        let drained = std::mem::take(&mut self.shared.catch_up.lock().drained);
        if !drained.is_empty() {
            let mut core = self.shared.core.lock();
            for stream in drained {
                core.resume_stream(stream);
            }
        }
        let worked = catch_up::step(&self.shared.core);
        let wakers = std::mem::take(&mut self.shared.core.lock().wakers);
        for waker in wakers {
            waker.wake();
        }
        worked
    }

    /// Sends the periodic progress that is due. `now`: monotonic time since any fixed start. To be
    /// called several times within the progress interval.
    pub fn tick(&self, now: Duration) {
        self.shared.with_core(|core| core.tick(now));
    }

    /// Ends all streams and the threads.
    pub fn close(&self) {
        self.shared.inbox.close();
        self.shared.catch_up.lock().closed = true;
        self.shared.catch_up_wake.notify_all();
        self.shared.with_core(Core::close);
    }

    /// Goes on with another history, which a snapshot brought; its revision must not be lower. What
    /// came between the old and the new revision is read there. To be called by the thread that
    /// publishes.
    pub fn replace_reader(&self, history: impl History) {
        let history: Arc<dyn History> = Arc::new(history);
        self.shared.with_core(|core| core.replace_history(history));
    }

    /// A new stream without watchers.
    pub fn open_stream(&self) -> Stream {
        let (id, queue) = self.shared.with_core(Core::open_stream);
        Stream::new(Arc::clone(&self.shared), id, queue)
    }

    /// Current numbers. Visits every stream and what is queued for it.
    pub fn statistics(&self) -> HubStatistics {
        let core = self.shared.core.lock();
        HubStatistics {
            streams: core.stream_count(),
            watchers: core.watchers.len(),
            slow_watchers: core.watchers.len() - core.synced_count(),
            responses_sent: core.events_sent,
            queued_bytes: core.queued_bytes(),
            queued_events: core.queued_events(),
            inbox_bytes: self.shared.inbox.bytes(),
            recent_bytes: core.ring.bytes(),
        }
    }
}

impl Shared {
    /// Does something under the lock; afterwards wakes who has to be woken.
    pub(crate) fn with_core<R>(&self, act: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = self.core.lock();
        let result = act(&mut core);
        let wakers = std::mem::take(&mut core.wakers);
        let behind = !core.catch_up.is_empty();
        drop(core);
        for waker in wakers {
            waker.wake();
        }
        if behind {
            self.catch_up.lock().work = true;
            self.catch_up_wake.notify_one();
        }
        result
    }

    /// The client of a stream with paused watchers has read.
    pub(crate) fn drained(&self, stream: StreamId) {
        self.catch_up.lock().drained.push(stream);
        self.catch_up_wake.notify_one();
    }
}
