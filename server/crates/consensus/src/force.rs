//! Memberships that nobody is asked for: the first one of a cluster, and that of a single survivor.

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc;

use bytes::Bytes;
use metastore_proto::peer;
use metastore_raft_log::{Completion, LogEntry};
use openraft::entry::RaftPayload;
use prost::Message;

use crate::entry_log::EntryLog;
use crate::raft_types::{Command, Payload, membership};

/// The term of the first membership. In etcd the first members are changes of the membership in it, so that
/// the first leader is that of the next term: who compares terms with those of etcd finds the same ones.
const FORMING_TERM: u64 = 1;

/// Writes the first membership of a new cluster into the log of a member that is not running yet. Each of
/// the voters does it with the same ones. No effect on a log that has entries.
///
/// The member's vote in the term of that entry is its own, so nobody can be elected in it.
///
/// # Errors
/// The log's: nothing may be started then.
pub fn form_cluster(log: &dyn EntryLog, member_id: u64, voters: BTreeSet<u64>) -> io::Result<()> {
    let state = log.state();
    if state.last.is_some() {
        return Ok(());
    }
    // A vote without entries is left of a start that was cut short here.
    if state.vote.is_none() {
        let vote = peer::Vote {
            term: FORMING_TERM,
            member: member_id,
            committed: false,
        };
        wait(|done| log.save_vote(vote.encode_to_vec().into(), done))?;
    }
    let payload = Payload::blank().with_membership(membership(voters, &[].into()));
    let entry = LogEntry {
        index: 0,
        term: FORMING_TERM,
        payload: payload.encoded().clone(),
    };
    wait(|done| log.append(vec![entry], done))
}

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
