//! What a leader does for leases. Apart from the rest of a member, so that the simulated cluster runs the
//! same.

use std::time::Duration;

use bytes::Bytes;
use metastore_consensus::{Consensus, ReadIndexError};
use metastore_proto::internal::{Command, LeaseRevokeCommand, command::Request};
use prost::Message;

use crate::lease_manager::{LeaseManager, Renewed};

/// Pause before a leader that could not confirm itself tries again.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(50);

/// Makes the leader of `term` the one who judges leases: every lease gets its whole time again and
/// `extend` on top. Everything that earlier leaders granted has to be known before, so it is confirmed
/// with a majority what that is, until that succeeds or this member does not lead in `term` any more.
///
/// Returns whether it leads.
pub async fn take_over(
    consensus: &Consensus,
    leases: &LeaseManager,
    term: u64,
    extend: Duration,
) -> bool {
    let leads = || consensus.term() == term && consensus.is_leader();
    while leads() {
        match consensus.read_index().await {
            Ok(read) => {
                consensus.wait_applied(read.index).await;
                if !leads() {
                    return false;
                }
                leases.promote(extend);
                return true;
            }
            Err(ReadIndexError::Stopped) => return false,
            Err(_) => tokio::time::sleep(CONFIRM_INTERVAL).await,
        }
    }
    false
}

/// Renews a lease if this member leads, and is sure that it still does.
///
/// The contact clock makes the leader unknown when no quorum answered within an election time-out, so a
/// cut-off leader stops promising lives that it cannot keep.
pub fn renew(consensus: &Consensus, leases: &LeaseManager, id: i64) -> Renewed {
    if consensus.is_leader() {
        leases.renew(id)
    } else {
        Renewed::NotLeader
    }
}

/// Revokes the leases whose time is over, at most `limit`; returns how many were revoked. Nothing
/// happens when this member does not lead in `term`: another leader may have renewed them since.
pub async fn revoke_due(
    consensus: &Consensus,
    leases: &LeaseManager,
    term: u64,
    timeout: Duration,
    limit: usize,
) -> u64 {
    let mut offered = 0;
    let mut revoked = 0;
    while offered < limit {
        // The queue offers only as many as may be pending at one time.
        let due = leases.due(limit - offered);
        if due.is_empty() {
            break;
        }
        offered += due.len();
        let revokes = due
            .into_iter()
            .map(|id| revoke_expired(consensus, leases, id, term, timeout));
        let outcomes = futures::future::join_all(revokes).await;
        revoked += outcomes.into_iter().map(u64::from).sum::<u64>();
    }
    revoked
}

async fn revoke_expired(
    consensus: &Consensus,
    leases: &LeaseManager,
    id: i64,
    term: u64,
    timeout: Duration,
) -> bool {
    let command = Command {
        request: Some(Request::LeaseRevoke(LeaseRevokeCommand {
            id,
            expired_in_term: term,
        })),
        ..Command::default()
    };
    let proposal = consensus.propose_in_term(Bytes::from(command.encode_to_vec()), term);
    let committed = matches!(tokio::time::timeout(timeout, proposal).await, Ok(Ok(_)));
    if !committed {
        // As far as is known: it will be offered again if the lease still exists.
        leases.revoke_failed(id);
    }
    committed
}
