//! How much of the quota is used, as the hot path asks: one relaxed load.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The gauge of a member. The apply thread and the compaction thread set it, requests read it.
#[derive(Debug, Default)]
pub struct SpaceGauge {
    /// The limit in bytes; nothing: no limit.
    quota_bytes: Option<u64>,
    used_bytes: AtomicU64,
    overfull: Notify,
}

impl SpaceGauge {
    /// A gauge for a quota in bytes; `None`: no limit.
    pub fn new(quota_bytes: Option<u64>) -> Self {
        Self {
            quota_bytes,
            ..Self::default()
        }
    }

    /// Notes the logical size of the store.
    pub fn set(&self, used_bytes: u64) {
        self.used_bytes.store(used_bytes, Ordering::Relaxed);
    }

    /// The logical size of the store, as it was noted last.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Whether a request of this cost stays below the quota; etcd's rule.
    pub fn has_room_for(&self, cost: u64) -> bool {
        self.quota_bytes.is_none_or(|quota| {
            self.used_bytes.load(Ordering::Relaxed).saturating_add(cost) < quota
        })
    }

    /// Calls for an alarm when what was just applied reached the quota: other members may allow more
    /// than this one, and requests that came at the same time were judged one by one.
    pub fn report_if_overfull(&self) {
        if !self.has_room_for(0) {
            self.overfull.notify_one();
        }
    }

    /// Waits for a report of [`SpaceGauge::report_if_overfull`].
    pub async fn overfull(&self) {
        self.overfull.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_must_stay_below_the_quota() {
        let gauge = SpaceGauge::new(Some(1000));
        gauge.set(700);
        assert!(gauge.has_room_for(299));
        assert!(!gauge.has_room_for(300));
        assert!(!gauge.has_room_for(u64::MAX));
        gauge.set(100);
        assert!(gauge.has_room_for(300), "a compaction makes room");
        assert!(SpaceGauge::new(None).has_room_for(u64::MAX));
    }
}
