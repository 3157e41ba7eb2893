//! Leases on this member: who expires when, while it leads.

use std::time::Duration;

use metastore_lease::{
    CHECKPOINT_BATCH_MAX, ExpiryOptions, ExpiryQueue, LeaseState, RenewError, Renewal,
    revoke_retry_interval,
};
use metastore_proto::etcdserverpb::LeaseCheckpoint;
use metastore_store::engine::EngineError;
use metastore_store::{LeaseChange, Reader};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::observe::metrics::METRICS;

/// What became of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// It lives for this many seconds from now; 0: there is no such lease.
    Ttl(i64),
    /// Its time was over and its revoke is on its way; ask again when it is gone.
    Expired,
    /// A checkpoint of 0 has to be applied first.
    ClearCheckpointFirst,
    /// This member does not lead.
    NotLeader,
}

/// The expiry queue behind a lock, on this process' monotonic clock.
pub struct LeaseManager {
    started: Instant,
    queue: Mutex<ExpiryQueue>,
    /// Told when a lease is gone, for renewals that wait for an expired one.
    gone: Notify,
}

impl LeaseManager {
    /// A manager that follows; nothing expires until [`LeaseManager::promote`].
    ///
    /// `checkpoints` is the gate LeaseCheckpoint.
    pub fn new(election_timeout: Duration, checkpoints: bool) -> Self {
        let options = ExpiryOptions {
            checkpoints,
            revoke_retry: revoke_retry_interval(election_timeout),
            ..ExpiryOptions::default()
        };
        Self {
            started: Instant::now(),
            queue: Mutex::new(ExpiryQueue::new(options)),
            gone: Notify::new(),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Starts from the stored leases.
    ///
    /// # Errors
    /// The engine's.
    pub fn load(&self, reader: &Reader) -> Result<(), EngineError> {
        let leases = reader.leases()?;
        self.queue
            .lock()
            .load(leases.into_iter().map(|lease| LeaseState {
                id: lease.id,
                granted_ttl: lease.granted_ttl,
                remaining_ttl: lease.remaining_ttl,
            }));
        Ok(())
    }

    /// Follows what was applied.
    pub fn apply(&self, changes: &[LeaseChange]) {
        if changes.is_empty() {
            return;
        }
        let now = self.now();
        let mut queue = self.queue.lock();
        for change in changes {
            match change {
                LeaseChange::Granted { id, ttl } => queue.grant(*id, *ttl, now),
                LeaseChange::Revoked { id } => queue.revoke(*id),
                LeaseChange::Checkpointed { id, remaining_ttl } => {
                    queue.checkpoint(*id, *remaining_ttl, now);
                }
            }
        }
        drop(queue);
        self.gone.notify_waiters();
    }

    /// This member leads now: every lease gets its whole time again and `extend` on top.
    pub fn promote(&self, extend: Duration) {
        self.queue.lock().promote(self.now(), extend);
    }

    /// This member does not lead any more.
    pub fn demote(&self) {
        self.queue.lock().demote();
        self.gone.notify_waiters();
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.queue.lock().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Renews a lease.
    pub fn renew(&self, id: i64) -> Renewed {
        match self.queue.lock().renew(id, self.now()) {
            Ok(Renewal::Renewed { ttl }) => {
                METRICS.leases_renewed.inc();
                Renewed::Ttl(ttl)
            }
            Ok(Renewal::ClearCheckpointFirst) => Renewed::ClearCheckpointFirst,
            Err(RenewError::NotPrimary) => Renewed::NotLeader,
            Err(RenewError::NotFound) => Renewed::Ttl(0),
            Err(RenewError::Expired) => Renewed::Expired,
        }
    }

    /// Ends when some lease is gone or the leadership moved, from this call on.
    pub fn changed(&self) -> Notified<'_> {
        self.gone.notified()
    }

    /// Seconds that a lease still has, and its granted TTL; `None` for an unknown lease or when
    /// this member does not lead.
    pub fn remaining(&self, id: i64) -> Option<(i64, i64)> {
        let remaining = self.queue.lock().remaining(id, self.now())?;
        // etcd cuts off the fraction of a second.
        let seconds = remaining.remaining?.as_secs();
        Some((
            i64::try_from(seconds).unwrap_or(i64::MAX),
            remaining.granted_ttl,
        ))
    }

    /// Ids, those that end first come first.
    pub fn by_expiry(&self) -> Vec<i64> {
        self.queue.lock().ids_by_expiry()
    }

    /// Leases whose time is over and whose revoke should be proposed now.
    pub fn due(&self, limit: usize) -> Vec<i64> {
        self.queue.lock().due(self.now(), limit)
    }

    /// Leases whose remaining time is to be recorded now, at most as many as fit into one command.
    pub fn due_checkpoints(&self) -> Vec<LeaseCheckpoint> {
        self.queue
            .lock()
            .due_checkpoints(self.now(), CHECKPOINT_BATCH_MAX)
            .into_iter()
            .map(|due| LeaseCheckpoint {
                id: due.id,
                remaining_ttl: due.remaining_ttl,
            })
            .collect()
    }

    /// A proposed revoke was not committed.
    pub fn revoke_failed(&self, id: i64) {
        self.queue.lock().revoke_failed(id, self.now());
    }
}
