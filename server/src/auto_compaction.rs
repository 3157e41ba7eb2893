//! Compaction by the server itself (`--auto-compaction-mode`, `--auto-compaction-retention`), with
//! etcd's rules of when and how far. Only the leader compacts; the others keep watching the revision,
//! so that a new leader need not begin anew.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::CompactionRequest;
use metastore_proto::internal::command::Request;

use crate::auth::Credentials;
use crate::config::AutoCompaction;
use crate::error::RequestError;
use crate::node::Node;

/// The longest time between two periodic compactions.
const PERIODIC_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// Looks at the revision in one interval.
const LOOKS_PER_INTERVAL: u32 = 10;
/// Time between two looks in the mode `revision`.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);

/// Keeps the history of a period.
///
/// It notes the revision ten times in an interval (the period, at most an hour) and compacts to the
/// revision of one period ago: first after one whole period, then once in each interval.
#[derive(Debug)]
struct Periodic {
    period: Duration,
    /// Revisions at the last looks; the first is the one of a period ago.
    revisions: VecDeque<i64>,
    compacted: i64,
    succeeded_at: Duration,
    /// Time that has to pass since `succeeded_at`.
    wait: Duration,
}

impl Periodic {
    fn new(period: Duration) -> Self {
        Self {
            period,
            revisions: VecDeque::new(),
            compacted: 0,
            succeeded_at: Duration::ZERO,
            wait: period,
        }
    }

    fn interval(&self) -> Duration {
        self.period.min(PERIODIC_INTERVAL_MAX)
    }

    /// Time between two looks; never 0.
    fn look_interval(&self) -> Duration {
        (self.interval() / LOOKS_PER_INTERVAL).max(Duration::from_millis(1))
    }

    fn looks_kept(&self) -> usize {
        let looks = self.period.as_nanos() / self.look_interval().as_nanos();
        usize::try_from(looks + 1).unwrap_or(usize::MAX)
    }

    fn look(&mut self, revision: i64) {
        self.revisions.push_back(revision);
        if self.revisions.len() > self.looks_kept() {
            self.revisions.pop_front();
        }
    }

    /// The revision to compact to at `now`, one look interval after the last look.
    fn due(&mut self, now: Duration) -> Option<i64> {
        let revision = *self.revisions.front()?;
        if now.saturating_sub(self.succeeded_at) < self.wait || revision == self.compacted {
            return None;
        }
        self.wait = self.interval();
        Some(revision)
    }

    fn done(&mut self, revision: i64, now: Duration) {
        self.compacted = revision;
        self.succeeded_at = now;
    }
}

/// The revision to compact to when the last `retention` revisions are to stay.
fn due_by_revision(current: i64, retention: i64, compacted: i64) -> Option<i64> {
    let revision = current.saturating_sub(retention);
    (revision > 0 && revision != compacted).then_some(revision)
}

/// Compacts from time to time, as long as the server runs.
pub async fn run(node: Arc<Node>) {
    match node.config.auto_compaction {
        AutoCompaction::Off => {}
        AutoCompaction::Periodic(period) => run_periodic(&node, period).await,
        AutoCompaction::Revision(retention) => run_by_revision(&node, retention).await,
    }
}

async fn run_periodic(node: &Arc<Node>, period: Duration) {
    let mut compactor = Periodic::new(period);
    let started = tokio::time::Instant::now();
    let look_interval = compactor.look_interval();
    loop {
        compactor.look(node.reader().revision());
        if !node.pause(look_interval).await {
            return;
        }
        if !node.is_leader() {
            continue;
        }
        let Some(revision) = compactor.due(started.elapsed()) else {
            continue;
        };
        tracing::info!(revision, "compact-period" = ?period, "starting auto periodic compaction");
        let began = started.elapsed();
        match compact(node, revision).await {
            Ok(()) => {
                compactor.done(revision, started.elapsed());
                tracing::info!(
                    revision,
                    "compact-period" = ?period,
                    took = ?(started.elapsed() - began),
                    "completed auto periodic compaction"
                );
            }
            Err(error) => tracing::warn!(
                revision,
                "compact-period" = ?period,
                "retry-interval" = ?look_interval,
                %error,
                "failed auto periodic compaction"
            ),
        }
    }
}

async fn run_by_revision(node: &Arc<Node>, retention: i64) {
    let mut compacted = 0;
    while node.pause(REVISION_INTERVAL).await {
        if !node.is_leader() {
            continue;
        }
        let current = node.reader().revision();
        let Some(revision) = due_by_revision(current, retention, compacted) else {
            continue;
        };
        tracing::info!(
            revision,
            "revision-compaction-retention" = retention,
            "starting auto revision compaction"
        );
        let began = tokio::time::Instant::now();
        match compact(node, revision).await {
            Ok(()) => {
                compacted = revision;
                tracing::info!(
                    revision,
                    "revision-compaction-retention" = retention,
                    took = ?began.elapsed(),
                    "completed auto revision compaction"
                );
            }
            Err(error) => tracing::warn!(
                revision,
                "revision-compaction-retention" = retention,
                "retry-interval" = ?REVISION_INTERVAL,
                %error,
                "failed auto revision compaction"
            ),
        }
    }
}

async fn compact(node: &Node, revision: i64) -> Result<(), RequestError> {
    let request = CompactionRequest {
        revision,
        physical: false,
    };
    match node
        .propose_store(Request::Compaction(request), &Credentials::None)
        .await
    {
        // Somebody else compacted further already.
        Ok(_) | Err(RequestError::Etcd(EtcdError::Compacted)) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Runs a compactor over looks at growing revisions, one revision each; returns when (in looks)
    /// it compacted to which revision.
    fn compactions(period: Duration, looks: u32) -> Vec<(u32, i64)> {
        let mut compactor = Periodic::new(period);
        let interval = compactor.look_interval();
        let mut found = Vec::new();
        for look in 0..looks {
            compactor.look(i64::from(look) + 1);
            let now = interval * (look + 1);
            if let Some(revision) = compactor.due(now) {
                compactor.done(revision, now);
                found.push((look + 1, revision));
            }
        }
        found
    }

    #[test]
    fn a_short_period_compacts_once_in_each_to_the_revision_of_one_ago() {
        // Ten looks are a period: after the tenth the oldest look is the first.
        assert_eq!(
            compactions(10 * MINUTE, 40),
            [(10, 1), (20, 10), (30, 20), (40, 30)]
        );
    }

    #[test]
    fn a_long_period_compacts_hourly_after_the_first_whole_one() {
        let day = Duration::from_secs(24 * 3600);
        let found = compactions(day, 270);
        assert_eq!(found, [(240, 1), (250, 10), (260, 20), (270, 30)]);
    }

    #[test]
    fn an_idle_store_is_not_compacted_again() {
        let mut compactor = Periodic::new(10 * MINUTE);
        for _ in 0..20 {
            compactor.look(7);
        }
        assert_eq!(compactor.due(10 * MINUTE), Some(7));
        compactor.done(7, 10 * MINUTE);
        assert_eq!(compactor.due(60 * MINUTE), None);
    }

    #[test]
    fn a_failed_compaction_is_tried_again_at_the_next_look() {
        let mut compactor = Periodic::new(10 * MINUTE);
        compactor.look(7);
        assert_eq!(compactor.due(9 * MINUTE), None);
        assert_eq!(compactor.due(10 * MINUTE), Some(7));
        assert_eq!(compactor.due(11 * MINUTE), Some(7));
    }

    #[test]
    fn revisions_behind_the_retention_go() {
        assert_eq!(due_by_revision(100, 100, 0), None);
        assert_eq!(due_by_revision(101, 100, 0), Some(1));
        assert_eq!(due_by_revision(101, 100, 1), None);
        assert_eq!(due_by_revision(102, 100, 1), Some(2));
    }
}
