//! Who is a member: names, URLs, roles, and which ids may never come back.
//!
//! The directory is replicated: it changes only when the apply thread applies a command, in the
//! same batch as the position of that command. Readers see an immutable copy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use metastore_proto::error_text::EtcdError;
use metastore_proto::internal::{
    Bootstrap, DowngradeInfoSet, MemberPublish, MemberRecord, MemberUpdate, MembershipCommand,
    membership_command,
};
use metastore_store::engine::{EngineError, Table};
use metastore_store::{Applier, Reader};
use prost::Message;

const MEMBER_PREFIX: &[u8] = b"member/";
const REMOVED_PREFIX: &[u8] = b"removed/";
const CLUSTER_VERSION_KEY: &[u8] = b"cluster_version";
const DOWNGRADE_KEY: &[u8] = b"downgrade";

/// One state of the directory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directory {
    /// Members by id; ordered, as MemberList answers.
    pub members: BTreeMap<u64, MemberRecord>,
    /// Ids that were removed. Never used again (reusing one can lose acknowledged data).
    pub removed: BTreeSet<u64>,
    /// Lowest version that all members run, `major.minor.0`; `None` until the leader decided.
    pub cluster_version: Option<String>,
    /// The version to which the cluster is being downgraded; `None`: it is not.
    pub downgrade_target: Option<String>,
}

impl Directory {
    /// The members that vote.
    pub fn voters(&self) -> impl Iterator<Item = &MemberRecord> {
        self.members.values().filter(|member| !member.is_learner)
    }

    /// Whether `id` is a learner of this cluster.
    pub fn is_learner(&self, id: u64) -> bool {
        self.members
            .get(&id)
            .is_some_and(|member| member.is_learner)
    }

    /// Reads the stored directory.
    pub fn load(reader: &Reader) -> Result<Self, EngineError> {
        Self::decode(reader.scan_rows(Table::Members, b"")?)
    }

    /// The directory that the rows of its table hold.
    ///
    /// # Errors
    /// For a damaged row.
    pub fn decode(rows: Vec<(Bytes, Bytes)>) -> Result<Self, EngineError> {
        let mut directory = Self::default();
        for (key, value) in rows {
            if let Some(id) = key.strip_prefix(MEMBER_PREFIX) {
                let record = MemberRecord::decode(value).map_err(|error| {
                    EngineError::Storage(format!(
                        "the stored record of member {id:02x?} is damaged ({error}): restore this \
                         member from a snapshot or re-add it"
                    ))
                })?;
                directory.members.insert(record.id, record);
            } else if let Some(id) = key.strip_prefix(REMOVED_PREFIX) {
                if let Ok(id) = id.try_into() {
                    directory.removed.insert(u64::from_be_bytes(id));
                }
            } else if key.as_ref() == CLUSTER_VERSION_KEY {
                directory.cluster_version = Some(String::from_utf8_lossy(&value).into_owned());
            } else if key.as_ref() == DOWNGRADE_KEY {
                directory.downgrade_target = Some(String::from_utf8_lossy(&value).into_owned());
            }
        }
        Ok(directory)
    }
}

/// The rows that hold a directory, for a store that is made anew.
pub fn rows(directory: &Directory) -> Vec<(Bytes, Bytes)> {
    let members = directory.members.values();
    let mut rows: Vec<(Bytes, Bytes)> = members
        .map(|member| (member_key(member.id), member.encode_to_vec().into()))
        .collect();
    let removed = directory.removed.iter();
    rows.extend(removed.map(|id| (removed_key(*id), Bytes::new())));
    if let Some(version) = &directory.cluster_version {
        let key = Bytes::from_static(CLUSTER_VERSION_KEY);
        rows.push((key, version.clone().into()));
    }
    if let Some(target) = &directory.downgrade_target {
        rows.push((Bytes::from_static(DOWNGRADE_KEY), target.clone().into()));
    }
    rows
}

/// The shared handle: one writer (the apply thread), many readers.
#[derive(Debug, Default)]
pub struct MemberDirectory {
    current: ArcSwap<Directory>,
}

fn member_key(id: u64) -> Bytes {
    [MEMBER_PREFIX, &id.to_be_bytes()].concat().into()
}

fn removed_key(id: u64) -> Bytes {
    [REMOVED_PREFIX, &id.to_be_bytes()].concat().into()
}

impl MemberDirectory {
    /// A handle on a loaded directory.
    pub fn new(directory: Directory) -> Self {
        Self {
            current: ArcSwap::from_pointee(directory),
        }
    }

    /// The directory as of the last applied command.
    pub fn current(&self) -> Arc<Directory> {
        self.current.load_full()
    }

    /// Whether `id` is a learner now; cheaper than [`MemberDirectory::current`].
    pub fn is_learner(&self, id: u64) -> bool {
        self.current.load().is_learner(id)
    }

    /// Replaces the directory by another, after a snapshot was installed.
    pub fn replace(&self, directory: Directory) {
        self.current.store(Arc::new(directory));
    }

    /// Applies the members that a static bootstrap starts with; ignored when there are members.
    pub fn apply_bootstrap(&self, applier: &mut Applier, bootstrap: Bootstrap) {
        if !self.current().members.is_empty() {
            return;
        }
        self.change(|directory| {
            for member in bootstrap.members {
                log_addition(&member);
                put_member(applier, &member);
                directory.members.insert(member.id, member);
            }
        });
    }

    /// Applies a change of who is a member. Checks what only the replicated state can tell; the
    /// consensus layer has made the same change to the voters whatever this answers, so the checks
    /// of [`MemberDirectory::validate`] must have passed before the proposal.
    pub fn apply_membership(
        &self,
        applier: &mut Applier,
        command: MembershipCommand,
    ) -> Result<Vec<MemberRecord>, EtcdError> {
        let Some(change) = command.change else {
            return Ok(self.list());
        };
        log_change(&change);
        self.change(|directory| match change {
            membership_command::Change::Add(member) => {
                put_member(applier, &member);
                directory.members.insert(member.id, member);
            }
            membership_command::Change::Remove(id) => {
                applier.delete_row(Table::Members, member_key(id));
                applier.put_row(Table::Members, removed_key(id), Bytes::new());
                directory.members.remove(&id);
                directory.removed.insert(id);
            }
            membership_command::Change::Promote(id) => {
                if let Some(member) = directory.members.get_mut(&id) {
                    member.is_learner = false;
                    put_member(applier, member);
                }
            }
            membership_command::Change::ForceSingle(id) => force_single(applier, directory, id),
        });
        Ok(self.list())
    }

    /// Applies a started member's name and client URLs.
    pub fn apply_publish(&self, applier: &mut Applier, publish: MemberPublish) {
        self.change(|directory| {
            if let Some(member) = directory.members.get_mut(&publish.id) {
                member.name = publish.name;
                member.client_urls = publish.client_urls;
                put_member(applier, member);
            }
        });
    }

    /// Applies a member's new peer URLs.
    pub fn apply_update(
        &self,
        applier: &mut Applier,
        update: MemberUpdate,
    ) -> Result<Vec<MemberRecord>, EtcdError> {
        let directory = self.current();
        if directory.removed.contains(&update.id) || !directory.members.contains_key(&update.id) {
            return Err(EtcdError::MemberNotFound);
        }
        let taken = directory.members.values().any(|member| {
            member.id != update.id
                && member
                    .peer_urls
                    .iter()
                    .any(|url| update.peer_urls.contains(url))
        });
        if taken {
            return Err(EtcdError::PeerURLExist);
        }
        tracing::info!(
            "updated-remote-peer-id" = format!("{:x}", update.id),
            "updated-remote-peer-urls" = ?update.peer_urls,
            "updated member"
        );
        self.change(|directory| {
            if let Some(member) = directory.members.get_mut(&update.id) {
                member.peer_urls = update.peer_urls;
                put_member(applier, member);
            }
        });
        Ok(self.list())
    }

    /// Applies the decided cluster version.
    pub fn apply_cluster_version(&self, applier: &mut Applier, version: String) {
        applier.put_row(
            Table::Members,
            Bytes::from_static(CLUSTER_VERSION_KEY),
            version.clone().into(),
        );
        let before = self.current();
        self.change(|directory| directory.cluster_version = Some(version));
        log_cluster_version(&before, &self.current());
    }

    /// Applies the begin or the end of a downgrade.
    pub fn apply_downgrade(&self, applier: &mut Applier, set: DowngradeInfoSet) {
        let key = Bytes::from_static(DOWNGRADE_KEY);
        if set.enabled {
            applier.put_row(Table::Members, key, set.target_version.clone().into());
        } else {
            applier.delete_row(Table::Members, key);
        }
        let target = set.enabled.then_some(set.target_version);
        self.change(|directory| directory.downgrade_target = target);
    }

    /// What etcd's `ValidateConfigurationChange` checks before a change of the members.
    pub fn validate(
        &self,
        change: &membership_command::Change,
        learners_max: usize,
    ) -> Result<(), EtcdError> {
        let directory = self.current();
        match change {
            membership_command::Change::Add(member) => {
                if directory.removed.contains(&member.id) {
                    return Err(EtcdError::MemberNotFound);
                }
                if directory.members.contains_key(&member.id) {
                    return Err(EtcdError::MemberExist);
                }
                let taken = directory
                    .members
                    .values()
                    .flat_map(|existing| &existing.peer_urls)
                    .any(|url| member.peer_urls.contains(url));
                if taken {
                    return Err(EtcdError::PeerURLExist);
                }
                let learners = directory.members.values().filter(|m| m.is_learner).count();
                if member.is_learner && learners >= learners_max {
                    return Err(EtcdError::TooManyLearners);
                }
                Ok(())
            }
            membership_command::Change::Remove(id) => {
                if directory.members.contains_key(id) {
                    Ok(())
                } else {
                    Err(EtcdError::MemberNotFound)
                }
            }
            membership_command::Change::Promote(id) => match directory.members.get(id) {
                None => Err(EtcdError::MemberNotFound),
                Some(member) if !member.is_learner => Err(EtcdError::MemberNotLearner),
                Some(_) => Ok(()),
            },
            // Never proposed: it is written into the log of a member that starts.
            membership_command::Change::ForceSingle(_) => Err(EtcdError::MemberNotFound),
        }
    }

    fn list(&self) -> Vec<MemberRecord> {
        self.current().members.values().cloned().collect()
    }

    fn change(&self, edit: impl FnOnce(&mut Directory)) {
        let mut directory = Directory::clone(&self.current());
        edit(&mut directory);
        self.current.store(Arc::new(directory));
    }
}

/// Says in etcd's words how the members change.
fn log_change(change: &membership_command::Change) {
    match change {
        membership_command::Change::Add(member) => log_addition(member),
        membership_command::Change::Remove(id) => tracing::info!(
            "removed-remote-peer-id" = format!("{id:x}"),
            "removed member"
        ),
        membership_command::Change::Promote(id) => {
            tracing::info!("promoted-member-id" = format!("{id:x}"), "promote member")
        }
        // Its start says so.
        membership_command::Change::ForceSingle(_) => {}
    }
}

fn log_addition(member: &MemberRecord) {
    tracing::info!(
        "added-peer-id" = format!("{:x}", member.id),
        "added-peer-peer-urls" = ?member.peer_urls,
        "added-peer-is-learner" = member.is_learner,
        "added member"
    );
}

/// Says in etcd's words that the cluster has another version, and during a downgrade that this member may
/// be replaced by the older program: tools wait for that.
fn log_cluster_version(before: &Directory, after: &Directory) {
    let Some(version) = after.version() else {
        return;
    };
    match before.version() {
        None => tracing::info!(
            "cluster-version" = version.short(),
            "set initial cluster version"
        ),
        Some(old) => tracing::info!(
            from = old.short(),
            to = version.short(),
            "updated cluster version"
        ),
    }
    if after.storage_version() == before.storage_version() {
        return;
    }
    tracing::info!(
        "new-storage-version" = version.to_string(),
        "updated storage version"
    );
    if let Some(target) = &after.downgrade_target {
        tracing::info!(
            "target-version" = target,
            "server-version" = crate::version::ETCD_VERSION,
            "The server is ready to downgrade"
        );
    }
}

/// Leaves `id` as the only member and voter.
fn force_single(applier: &mut Applier, directory: &mut Directory, id: u64) {
    let others: Vec<u64> = directory
        .members
        .keys()
        .copied()
        .filter(|other| *other != id)
        .collect();
    for other in others {
        applier.delete_row(Table::Members, member_key(other));
        applier.put_row(Table::Members, removed_key(other), Bytes::new());
        directory.members.remove(&other);
        directory.removed.insert(other);
    }
    if let Some(member) = directory.members.get_mut(&id) {
        member.is_learner = false;
        put_member(applier, member);
    }
}

fn put_member(applier: &mut Applier, member: &MemberRecord) {
    applier.put_row(
        Table::Members,
        member_key(member.id),
        member.encode_to_vec().into(),
    );
}
