//! Entries of etcd's log as entries of ours.
//!
//! What a member of etcd had in its log and not yet in its database was perhaps acknowledged. It goes
//! into our log with its index and term, and whether it is committed is decided as always: by the
//! members together.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use metastore_backup_file::etcd_log::{EtcdConfChange, EtcdEntry};
use metastore_proto::internal::{
    ClusterVersionSet, Command, DowngradeInfoSet, LeaseRevokeCommand, MemberPublish, MemberRecord,
    MemberUpdate, MembershipCommand, UserAddCommand, UserChangePasswordCommand, command::Request,
    membership_command::Change,
};
use metastore_proto::peer;
use metastore_raft_log::LogEntry;
use prost::Message;

use super::etcd_messages::{EtcdConfChangeContext, EtcdRequest};
use super::import::ImportError;

const NORMAL: i32 = 0;
const CONF_CHANGE: i32 = 1;

const ADD_VOTER: i32 = 0;
const REMOVE: i32 = 1;
const UPDATE: i32 = 2;
const ADD_LEARNER: i32 = 3;

/// Who votes and who does not, as it changes along the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Voters {
    /// The members that vote.
    pub voters: BTreeSet<u64>,
    /// The members that do not.
    pub learners: BTreeSet<u64>,
}

impl Voters {
    /// The form in which consensus stores it.
    pub fn to_message(&self) -> peer::Membership {
        peer::Membership {
            configurations: vec![peer::VoterSet {
                voters: self.voters.iter().copied().collect(),
            }],
            members: self.voters.union(&self.learners).copied().collect(),
        }
    }
}

/// Translates the entries behind a state in which `voters` were the members. `lease_ttl_min` is what
/// the shortest lease gets, in seconds.
///
/// # Errors
/// [`ImportError::Refused`] for an entry that MetaStore has no equal for.
pub fn translate(
    entries: &[EtcdEntry],
    mut voters: Voters,
    lease_ttl_min: i64,
) -> Result<Vec<LogEntry>, ImportError> {
    let mut translated = Vec::with_capacity(entries.len());
    for entry in entries {
        let index = entry.index.unwrap_or_default();
        let data = entry.data.clone().unwrap_or_default();
        let payload = match entry.kind.unwrap_or_default() {
            // A leader's first entry of its term.
            NORMAL if data.is_empty() => peer::EntryPayload::default(),
            NORMAL => command(request(data, index, lease_ttl_min)?),
            CONF_CHANGE => conf_change(data, index, &mut voters)?,
            _ => return Err(unknown(index, "a change of the members in several steps")),
        };
        translated.push(LogEntry {
            // etcd counts entries from 1, openraft from 0.
            index: index - 1,
            term: entry.term.unwrap_or_default(),
            payload: payload.encode_to_vec().into(),
        });
    }
    Ok(translated)
}

fn command(command: Command) -> peer::EntryPayload {
    peer::EntryPayload {
        command: Some(command.encode_to_vec().into()),
        membership: None,
    }
}

fn unknown(index: u64, what: &str) -> ImportError {
    ImportError::Refused(format!(
        "entry {index} of etcd's log is {what}, which its database does not have yet and which \
         cannot be taken over: start etcd once more on this directory and stop it with SIGTERM, or \
         restore a snapshot"
    ))
}

fn request(data: Bytes, index: u64, lease_ttl_min: i64) -> Result<Command, ImportError> {
    let request =
        EtcdRequest::decode(data).map_err(|error| unknown(index, &format!("damaged ({error})")))?;
    let has_no_effect = request.has_no_effect();
    let auth_change = auth_request(&request, index)?;
    let header = request.header.unwrap_or_default();
    let translated = if let Some(put) = request.put {
        Some(Request::Put(put))
    } else if let Some(delete) = request.delete_range {
        Some(Request::DeleteRange(delete))
    } else if let Some(txn) = request.txn {
        Some(Request::Txn(txn))
    } else if let Some(compaction) = request.compaction {
        Some(Request::Compaction(compaction))
    } else if let Some(mut grant) = request.lease_grant {
        // etcd raises a short TTL when it applies the entry.
        grant.ttl = grant.ttl.max(lease_ttl_min);
        Some(Request::LeaseGrant(grant))
    } else if let Some(revoke) = request.lease_revoke {
        Some(Request::LeaseRevoke(LeaseRevokeCommand {
            id: revoke.id,
            expired_in_term: 0,
        }))
    } else if let Some(checkpoint) = request.lease_checkpoint {
        Some(Request::LeaseCheckpoint(checkpoint))
    } else if let Some(alarm) = request.alarm {
        Some(Request::Alarm(alarm))
    } else if let Some(set) = request.cluster_version_set {
        let version = set.version;
        Some(Request::ClusterVersionSet(ClusterVersionSet { version }))
    } else if let Some(set) = request.member_attributes_set {
        let attributes = set.attributes.unwrap_or_default();
        Some(Request::MemberPublish(MemberPublish {
            id: set.member_id,
            name: attributes.name,
            client_urls: attributes.client_urls,
        }))
    } else if let Some(set) = request.downgrade_info_set {
        Some(Request::DowngradeInfoSet(DowngradeInfoSet {
            enabled: set.enabled,
            target_version: match set.enabled {
                true => set.version,
                false => String::new(),
            },
        }))
    } else if has_no_effect {
        None
    } else if let Some(change) = auth_change {
        Some(change)
    } else {
        return Err(unknown(index, "a request of an unknown kind"));
    };
    Ok(Command {
        origin_member: 0,
        request_id: 0,
        username: header.username,
        auth_revision: header.auth_revision,
        request: translated,
    })
}

/// A change of users and roles.
fn auth_request(request: &EtcdRequest, index: u64) -> Result<Option<Request>, ImportError> {
    // etcd puts the hash of a password into the log, in base64.
    let password_hash = |hash: &str| {
        BASE64
            .decode(hash)
            .map(Bytes::from)
            .map_err(|error| unknown(index, &format!("damaged ({error})")))
    };
    Ok(if let Some(enable) = request.auth_enable {
        Some(Request::AuthEnable(enable))
    } else if let Some(disable) = request.auth_disable {
        Some(Request::AuthDisable(disable))
    } else if let Some(add) = request.auth_user_add.clone() {
        Some(Request::AuthUserAdd(UserAddCommand {
            password_hash: password_hash(&add.hashed_password)?,
            name: add.name,
            options: add.options,
        }))
    } else if let Some(delete) = request.auth_user_delete.clone() {
        Some(Request::AuthUserDelete(delete))
    } else if let Some(change) = request.auth_user_change_password.clone() {
        Some(Request::AuthUserChangePassword(UserChangePasswordCommand {
            password_hash: password_hash(&change.hashed_password)?,
            name: change.name,
        }))
    } else if let Some(grant) = request.auth_user_grant_role.clone() {
        Some(Request::AuthUserGrantRole(grant))
    } else if let Some(revoke) = request.auth_user_revoke_role.clone() {
        Some(Request::AuthUserRevokeRole(revoke))
    } else if let Some(add) = request.auth_role_add.clone() {
        Some(Request::AuthRoleAdd(add))
    } else if let Some(delete) = request.auth_role_delete.clone() {
        Some(Request::AuthRoleDelete(delete))
    } else if let Some(grant) = request.auth_role_grant_permission.clone() {
        Some(Request::AuthRoleGrantPermission(grant))
    } else {
        request
            .auth_role_revoke_permission
            .clone()
            .map(Request::AuthRoleRevokePermission)
    })
}

fn conf_change(
    data: Bytes,
    index: u64,
    voters: &mut Voters,
) -> Result<peer::EntryPayload, ImportError> {
    let damaged = |error: &dyn std::fmt::Display| unknown(index, &format!("damaged ({error})"));
    let change = EtcdConfChange::decode(data).map_err(|error| damaged(&error))?;
    let id = change.node_id.unwrap_or_default();
    let context = change.context.unwrap_or_default();
    let context: EtcdConfChangeContext = match context.is_empty() {
        true => EtcdConfChangeContext::default(),
        false => serde_json::from_slice(&context).map_err(|error| damaged(&error))?,
    };
    let member = MemberRecord {
        id,
        ..MemberRecord::from(context.member)
    };
    let kind = change.kind.unwrap_or_default();
    let directory_change = match kind {
        UPDATE => {
            let update = MemberUpdate {
                id,
                peer_urls: member.peer_urls,
            };
            return Ok(command(Command {
                request: Some(Request::MemberUpdate(update)),
                ..Command::default()
            }));
        }
        ADD_VOTER if context.is_promote => Change::Promote(id),
        ADD_VOTER | ADD_LEARNER => Change::Add(MemberRecord {
            is_learner: kind == ADD_LEARNER,
            ..member
        }),
        REMOVE => Change::Remove(id),
        _ => return Err(unknown(index, "a change of the members of an unknown kind")),
    };
    voters.voters.remove(&id);
    voters.learners.remove(&id);
    match kind {
        ADD_VOTER => _ = voters.voters.insert(id),
        ADD_LEARNER => _ = voters.learners.insert(id),
        _ => {}
    }
    let membership_command = MembershipCommand {
        origin_member: 0,
        request_id: 0,
        change: Some(directory_change),
    };
    Ok(peer::EntryPayload {
        command: Some(membership_command.encode_to_vec().into()),
        membership: Some(voters.to_message()),
    })
}
