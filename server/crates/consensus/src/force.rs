//! Making a member the only voter, without asking anybody.

use std::io;
use std::sync::mpsc;

use bytes::Bytes;
use metastore_proto::peer;
use metastore_raft_log::{Completion, LogEntry};
use openraft::entry::RaftPayload;
use prost::Message;

use crate::entry_log::EntryLog;
use crate::raft_types::{Command, Payload, membership};

/// Appends an entry to the log of a member that is not running yet: from it on `member_id` is the only
/// voter. `command` is the application's part of the entry, as of a membership change.
///
/// For a cluster that lost its majority for good. Everything in the log counts as committed
/// afterwards: nobody can tell any more what was, and what was acknowledged must not be lost.
///
/// # Errors
/// The log's: nothing may be started then.
pub fn force_single_member(log: &dyn EntryLog, member_id: u64, command: Bytes) -> io::Result<()> {
    let state = log.state();
    let voted = match state.vote {
        Some(encoded) => peer::Vote::decode(encoded).map_err(io::Error::other)?.term,
        None => 0,
    };
    // A term of its own, which no leader of the lost cluster can have used with this member's help.
    let term = state.last.map_or(0, |last| last.term).max(voted) + 1;
    let vote = peer::Vote {
        term,
        member: member_id,
        committed: false,
    };
    wait(|done| log.save_vote(vote.encode_to_vec().into(), done))?;
    let payload = Payload::blank()
        .with_normal(Command(command))
        .with_membership(membership([member_id].into(), &[].into()));
    let entry = LogEntry {
        index: state.last.map_or(0, |last| last.index + 1),
        term,
        payload: payload.encoded().clone(),
    };
    wait(|done| log.append(vec![entry], done))
}

/// Makes a request of the log and waits until it is durable.
fn wait(request: impl FnOnce(Completion)) -> io::Result<()> {
    let (sender, receiver) = mpsc::sync_channel(1);
    request(Box::new(move |result| {
        // The receiver waits below.
        let _ = sender.send(result);
    }));
    receiver
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("the log has stopped")))
}
