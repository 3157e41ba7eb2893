//! What a member's consensus is started with.

use std::time::Duration;

/// Entries applied since the last snapshot before the next one is built (etcd's
/// `--snapshot-count`).
pub const SNAPSHOT_ENTRIES_DEFAULT: u64 = 10_000;
/// Entries that stay in the log below a snapshot, so that a follower that was away for a moment
/// needs no snapshot (etcd's `SnapshotCatchUpEntries`).
pub const SNAPSHOT_CATCHUP_ENTRIES_DEFAULT: u64 = 5_000;

/// Options of [`crate::Consensus::start`].
#[derive(Clone, Debug)]
pub struct ConsensusOptions {
    /// Cluster that this member belongs to; peers of another cluster are refused.
    pub cluster_id: u64,
    /// This member.
    pub member_id: u64,
    /// Time between heartbeats of a leader; default 100 ms.
    pub heartbeat_interval: Duration,
    /// etcd's `--election-timeout` E; default 1 s. A follower campaigns between E and 4/3 E after
    /// it last heard from a leader. Must be at least 5 heartbeat intervals.
    pub election_timeout: Duration,
    /// Whether a candidate asks for a majority before it raises the term; default true.
    pub pre_vote: bool,
    /// Entries applied since the last snapshot before the next one is built; default 10 000.
    pub snapshot_entries: u64,
    /// Bytes of commands applied since the last snapshot that there must be as well; default 0. A
    /// snapshot writes everything out of memory, so many small commands should not cause many.
    pub snapshot_log_bytes: u64,
    /// Entries kept in the log below the last snapshot; default 5 000.
    pub snapshot_catchup_entries: u64,
    /// How long a membership change may take before its outcome is reported as unknown;
    /// default 5 s + 2 E.
    pub change_timeout: Duration,
    /// How long a snapshot transfer may stand still before it is given up; default 30 s. There is
    /// no limit on its total time.
    pub snapshot_progress_timeout: Duration,
    /// Seed of the election time-outs; `None` (the default) takes one from the operating system.
    /// For simulations.
    pub random_seed: Option<u64>,
}

impl ConsensusOptions {
    /// The defaults for this member of this cluster.
    pub fn new(cluster_id: u64, member_id: u64) -> Self {
        let election_timeout = Duration::from_secs(1);
        Self {
            cluster_id,
            member_id,
            heartbeat_interval: Duration::from_millis(100),
            election_timeout,
            pre_vote: true,
            snapshot_entries: SNAPSHOT_ENTRIES_DEFAULT,
            snapshot_log_bytes: 0,
            snapshot_catchup_entries: SNAPSHOT_CATCHUP_ENTRIES_DEFAULT,
            change_timeout: Duration::from_secs(5) + 2 * election_timeout,
            snapshot_progress_timeout: Duration::from_secs(30),
            random_seed: None,
        }
    }
}
