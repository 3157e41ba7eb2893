//! Numbers for metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Counters as they are kept; all of them only grow.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) proposals: AtomicU64,
    pub(crate) proposals_failed: AtomicU64,
    pub(crate) proposals_pending: AtomicU64,
    pub(crate) entries_appended: AtomicU64,
    pub(crate) leader_changes: AtomicU64,
    pub(crate) read_index_rounds: AtomicU64,
    pub(crate) read_index_failures: AtomicU64,
    pub(crate) late_heartbeats: AtomicU64,
    pub(crate) snapshots_built: AtomicU64,
    pub(crate) snapshots_sent: AtomicU64,
    pub(crate) snapshots_received: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    peers: Mutex<BTreeMap<u64, Arc<PeerCounters>>>,
}

/// Counters of one other member.
#[derive(Default)]
pub(crate) struct PeerCounters {
    pub(crate) entries_sent: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) append_streams: AtomicU64,
    pub(crate) append_failures: AtomicU64,
    pub(crate) connects: AtomicU64,
    pub(crate) connect_failures: AtomicU64,
    round_trip_micros: AtomicU64,
    pub(crate) snapshots_sent: Transfers,
    pub(crate) snapshots_received: Transfers,
}

/// Transfers of one kind and direction.
#[derive(Default)]
pub(crate) struct Transfers {
    in_flight: AtomicU64,
    failed: AtomicU64,
    /// Counts by [`TransferValues::BOUNDS_SECONDS`], the last one for everything above.
    buckets: [AtomicU64; TransferValues::BOUNDS_SECONDS.len() + 1],
    micros: AtomicU64,
}

/// A transfer that is under way; one that is dropped without an end has failed.
pub(crate) struct Transfer<'a> {
    transfers: &'a Transfers,
    started: Instant,
    succeeded: bool,
}

impl Transfers {
    pub(crate) fn start(&self) -> Transfer<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Transfer {
            transfers: self,
            started: Instant::now(),
            succeeded: false,
        }
    }

    fn read(&self) -> TransferValues {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TransferValues {
            in_flight: load(&self.in_flight),
            failed: load(&self.failed),
            buckets: self.buckets.each_ref().map(load),
            total: Duration::from_micros(load(&self.micros)),
        }
    }
}

impl Transfer<'_> {
    pub(crate) fn succeed(mut self) {
        let took = self.started.elapsed();
        let bucket = TransferValues::BOUNDS_SECONDS
            .iter()
            .position(|bound| took.as_secs_f64() <= *bound)
            .unwrap_or(TransferValues::BOUNDS_SECONDS.len());
        self.transfers.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = took.as_micros().min(u128::from(u64::MAX)) as u64;
        self.transfers.micros.fetch_add(micros, Ordering::Relaxed);
        self.succeeded = true;
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        self.transfers.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.succeeded {
            self.transfers.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl PeerCounters {
    /// Mixes a measured round trip into the average with a weight of 1/8, as TCP does.
    pub(crate) fn observe_round_trip(&self, round_trip: Duration) {
        let sample = round_trip.as_micros().min(u128::from(u64::MAX)) as u64;
        let old = self.round_trip_micros.load(Ordering::Relaxed);
        let new = if old == 0 {
            sample
        } else {
            old - old / 8 + sample / 8
        };
        self.round_trip_micros.store(new.max(1), Ordering::Relaxed);
    }
}

impl Counters {
    pub(crate) fn peer(&self, member: u64) -> Arc<PeerCounters> {
        self.peers.lock().entry(member).or_default().clone()
    }

    pub(crate) fn read(&self) -> CounterValues {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CounterValues {
            proposals: load(&self.proposals),
            proposals_failed: load(&self.proposals_failed),
            proposals_pending: load(&self.proposals_pending),
            entries_appended: load(&self.entries_appended),
            leader_changes: load(&self.leader_changes),
            read_index_rounds: load(&self.read_index_rounds),
            read_index_failures: load(&self.read_index_failures),
            late_heartbeats: load(&self.late_heartbeats),
            snapshots_built: load(&self.snapshots_built),
            snapshots_sent: load(&self.snapshots_sent),
            snapshots_received: load(&self.snapshots_received),
            connections_refused: load(&self.connections_refused),
            peers: self
                .peers
                .lock()
                .iter()
                .map(|(member, peer)| {
                    let values = PeerCounterValues {
                        entries_sent: load(&peer.entries_sent),
                        bytes_sent: load(&peer.bytes_sent),
                        bytes_received: load(&peer.bytes_received),
                        append_streams: load(&peer.append_streams),
                        append_failures: load(&peer.append_failures),
                        connects: load(&peer.connects),
                        connect_failures: load(&peer.connect_failures),
                        round_trip: Some(load(&peer.round_trip_micros))
                            .filter(|micros| *micros > 0)
                            .map(Duration::from_micros),
                        snapshots_sent: peer.snapshots_sent.read(),
                        snapshots_received: peer.snapshots_received.read(),
                    };
                    (*member, values)
                })
                .collect(),
        }
    }
}

/// Numbers for metrics; all but `proposals_pending` and round trips only grow while the member
/// runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CounterValues {
    /// Proposals made on this member, membership changes included.
    pub proposals: u64,
    /// Proposals that ended with an error.
    pub proposals_failed: u64,
    /// Proposals that have no result yet.
    pub proposals_pending: u64,
    /// Entries appended to this member's log.
    pub entries_appended: u64,
    /// Times that a leader was seen that is not the one before.
    pub leader_changes: u64,
    /// Rounds asked of the core or of the leader on behalf of linearizable reads.
    pub read_index_rounds: u64,
    /// Rounds during which the leader changed.
    pub read_index_failures: u64,
    /// Times that this leader was busy for more than a heartbeat interval when a heartbeat was due.
    pub late_heartbeats: u64,
    /// Snapshots built here.
    pub snapshots_built: u64,
    /// Snapshots sent to other members.
    pub snapshots_sent: u64,
    /// Snapshots received completely.
    pub snapshots_received: u64,
    /// Peer connections refused: foreign cluster, removed member, wrong address.
    pub connections_refused: u64,
    /// By member.
    pub peers: BTreeMap<u64, PeerCounterValues>,
}

/// Numbers about one other member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerCounterValues {
    /// Entries sent to it. More than 1.1 times the entries appended means that streams break.
    pub entries_sent: u64,
    /// Bytes sent to it, frames of all kinds.
    pub bytes_sent: u64,
    /// Bytes received from it, frames of all kinds.
    pub bytes_received: u64,
    /// Append streams opened, one for each heartbeat included.
    pub append_streams: u64,
    /// Append streams that broke.
    pub append_failures: u64,
    /// Connections made.
    pub connects: u64,
    /// Connections that could not be made.
    pub connect_failures: u64,
    /// Moving average of the time from an append or heartbeat to its answer; `None`: not measured.
    pub round_trip: Option<Duration>,
    /// Snapshots on their way to it.
    pub snapshots_sent: TransferValues,
    /// Snapshots that come from it.
    pub snapshots_received: TransferValues,
}

/// Numbers about transfers of one kind and direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferValues {
    /// Under way now.
    pub in_flight: u64,
    /// Ended without success.
    pub failed: u64,
    /// Successful ones by their duration: how many lie within each of [`Self::BOUNDS_SECONDS`] and
    /// above the one before; the last counts those above all bounds.
    pub buckets: [u64; Self::BOUNDS_SECONDS.len() + 1],
    /// Time of all successful ones together.
    pub total: Duration,
}

impl TransferValues {
    /// Upper bounds of the buckets: etcd's, 0.1 s and doubled nine times.
    pub const BOUNDS_SECONDS: [f64; 10] = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2];
}
