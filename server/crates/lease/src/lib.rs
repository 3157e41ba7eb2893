//! Expiry of leases on the leader.
//!
//! Owns *when* a lease ends: deadlines, hand-over between leaders, the pace of revokes, checkpoints
//! of the remaining time. Never touches keys or the replicated record of a lease (that is the
//! store's), proposes nothing and has no clock: every call gets the current time.
//!
//! ```text
//! apply thread ── grant, revoke, checkpoint ──►┐
//! leadership   ── promote, demote ────────────►│ ExpiryQueue ──due──► proposals of revokes
//! keep-alive   ── renew ──────────────────────►┘             ──due_checkpoints──► proposals
//! ```

mod expiry_queue;
mod limits;

pub use expiry_queue::{
    DueCheckpoint, ExpiryOptions, ExpiryQueue, LeaseState, RemainingTime, RenewError, Renewal,
};
pub use limits::{
    CHECKPOINT_BATCH_MAX, CHECKPOINT_INTERVAL, MAXIMUM_TTL_SECONDS, PENDING_REVOKES_MAX,
    REVOKES_PER_SECOND, TtlTooLarge, granted_ttl, minimum_ttl_seconds, revoke_retry_interval,
};
