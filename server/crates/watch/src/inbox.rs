//! Where the apply thread leaves its changes for the hub.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};

use crate::event::{RevisionEvents, memory_bytes};

/// Changes that wait for the hub. Never blocks the apply thread for longer than a few pushes.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<InboxState>,
    wake: Condvar,
    bytes_max: usize,
}

#[derive(Debug)]
struct InboxState {
    published: i64,
    pending: VecDeque<(RevisionEvents, usize)>,
    bytes: usize,
    /// Without watchers nothing is kept.
    watchers: usize,
    /// First revision that was dropped because the bound was reached. Nothing is kept until the
    /// hub has noticed, so that `pending` has no gaps.
    lost_from: Option<i64>,
    closed: bool,
    hub_sleeps: bool,
}

/// What the hub took out.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) revisions: Vec<RevisionEvents>,
    /// Every change up to here has been taken.
    pub(crate) covered: i64,
    /// Changes after `covered` were dropped; the hub goes on at this revision, and watchers read
    /// the history up to it.
    pub(crate) resume_at: Option<i64>,
}

impl Inbox {
    pub(crate) fn new(published: i64, bytes_max: usize) -> Self {
        Self {
            state: Mutex::new(InboxState {
                published,
                pending: VecDeque::new(),
                bytes: 0,
                watchers: 0,
                lost_from: None,
                closed: false,
                hub_sleeps: false,
            }),
            wake: Condvar::new(),
            bytes_max,
        }
    }

    pub(crate) fn publish(&self, committed: Vec<RevisionEvents>, revision: i64) {
        let mut state = self.state.lock();
        assert!(
            revision >= state.published,
            "revision {revision} published after {}: publish is called by one thread, in order",
            state.published
        );
        state.published = revision;
        if state.watchers == 0 || state.lost_from.is_some() {
            // Freeing the events is the larger part of dropping them: not under the lock.
            drop(state);
            return;
        }
        for events in committed {
            let bytes = memory_bytes(&events);
            if state.bytes + bytes > self.bytes_max && !state.pending.is_empty() {
                state.lost_from = Some(events.revision);
                break;
            }
            state.bytes += bytes;
            state.pending.push_back((events, bytes));
        }
        if std::mem::take(&mut state.hub_sleeps) {
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Takes revisions up to the bounds, at least one if there is one; `processed` is what the hub
    /// has done so far.
    pub(crate) fn take(&self, processed: i64, bytes_max: usize, revisions_max: usize) -> Taken {
        let mut state = self.state.lock();
        let mut taken = Taken {
            covered: processed,
            ..Taken::default()
        };
        let mut total = 0;
        while let Some((_, bytes)) = state.pending.front() {
            total += bytes;
            let full = total > bytes_max || taken.revisions.len() == revisions_max;
            if full && !taken.revisions.is_empty() {
                return taken;
            }
            if let Some((events, bytes)) = state.pending.pop_front() {
                state.bytes -= bytes;
                taken.covered = events.revision;
                taken.revisions.push(events);
            }
        }
        match state.lost_from.take() {
            None => taken.covered = state.published,
            Some(first_lost) => {
                taken.covered = first_lost - 1;
                taken.resume_at = Some(state.published);
            }
        }
        taken
    }

    /// The published revision.
    pub(crate) fn published(&self) -> i64 {
        self.state.lock().published
    }

    /// A watcher more. Returns the published revision, and whether this is the first watcher: then
    /// nothing before was kept and the hub has to begin there.
    pub(crate) fn add_watcher(&self) -> (i64, bool) {
        let mut state = self.state.lock();
        state.watchers += 1;
        let first = state.watchers == 1;
        if first {
            state.clear();
        }
        (state.published, first)
    }

    pub(crate) fn remove_watcher(&self) {
        self.state.lock().watchers -= 1;
    }

    /// Forgets what is pending and starts again at `published`.
    pub(crate) fn restart(&self, published: i64) {
        let mut state = self.state.lock();
        state.clear();
        state.published = published;
    }

    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_all();
    }

    /// Sleeps until there is something to take; false when closed.
    pub(crate) fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while !state.closed && state.pending.is_empty() && state.lost_from.is_none() {
            state.hub_sleeps = true;
            self.wake.wait(&mut state);
        }
        state.hub_sleeps = false;
        !state.closed
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }
}

impl InboxState {
    fn clear(&mut self) {
        self.pending.clear();
        self.bytes = 0;
        self.lost_from = None;
    }
}
