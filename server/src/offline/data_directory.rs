//! Opening the data directory of a member that does not run, and `inspect`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use metastore_backup_file::BoltFile;
use metastore_consensus::state_machine::AppliedState;
use metastore_proto::internal::MemberRecord;
use metastore_proto::peer;
use metastore_raft_log::{LogIdentity, LogOptions, RaftLog, RealDisk};
use metastore_store::{Reader, StoreOptions};
use prost::Message;
use serde_json::{Value, json};

use super::{EXIT_ERROR, Failure};
use crate::application::read_applied_from;
use crate::backup::etcd_directory::{EtcdDirectory, read_members};
use crate::backup::etcd_messages::StoredMember;
use crate::config::Engine;
use crate::engines::EngineDirectory;
use crate::identity_file::{self, Identity};
use crate::member_directory::Directory;

/// A data directory, opened as its member would open it.
pub(super) struct OpenDirectory {
    pub identity: Identity,
    pub engine: Engine,
    pub reader: Reader,
    pub applied: AppliedState,
    pub log: RaftLog,
}

impl OpenDirectory {
    /// Opens `<data-dir>`, whose log is elsewhere if `wal_directory` is set.
    pub fn open(path: &Path, wal_directory: Option<&Path>) -> Result<Self, Failure> {
        let member_directory = path.join("member");
        let Some(identity) = identity_file::read(&member_directory)? else {
            return Err(Failure {
                text: format!(
                    "{} is no data directory of MetaStore: it has no member/identity.json",
                    path.display()
                ),
                status: EXIT_ERROR,
            });
        };
        let engine = engine_of(&member_directory);
        let log_directory = match wal_directory {
            Some(directory) => directory.to_owned(),
            None => member_directory.join("log"),
        };
        if !log_directory.is_dir() {
            return Err(Failure {
                text: format!(
                    "the log directory {} is missing; name it with --wal-dir",
                    log_directory.display()
                ),
                status: EXIT_ERROR,
            });
        }
        // Its lock also keeps a member from starting meanwhile.
        let log = RaftLog::open_inline(
            Arc::new(RealDisk),
            &log_directory,
            LogIdentity {
                cluster_id: identity.cluster_id,
                member_id: identity.member_id,
            },
            LogOptions::default(),
        )?;
        let opened = EngineDirectory::new(engine, &member_directory)?.open()?;
        let (_, reader) = metastore_store::open(opened, StoreOptions::default())?;
        let applied = read_applied_from(&reader)?;
        Ok(Self {
            identity,
            engine,
            reader,
            applied,
            log,
        })
    }

    /// Entries that are in the log and not in the store.
    pub fn unapplied(&self) -> u64 {
        let next = self
            .applied
            .position
            .map_or(0, |position| position.index + 1);
        let end = self.log.state().last.map_or(0, |last| last.index + 1);
        end.saturating_sub(next)
    }

    /// Says that the store is not the whole truth.
    pub fn warn_about_unapplied(&self) {
        let entries = self.unapplied();
        if entries > 0 {
            tracing::warn!(
                entries,
                "the log holds entries that the store does not have yet: the member applies them when \
                 it starts"
            );
        }
    }
}

fn engine_of(member_directory: &Path) -> Engine {
    let has_generation = fs::read_dir(member_directory.join("store"))
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.path().is_dir()));
    match has_generation {
        true => Engine::RocksDb,
        false => Engine::Memory,
    }
}

/// Prints who and where a directory or file is.
pub(super) fn inspect(path: &Path, wal_directory: Option<&Path>) -> Result<(), Failure> {
    let etcds = EtcdDirectory::new(path, wal_directory);
    let found = if !path.is_dir() {
        of_file(path)?
    } else if etcds.database().exists() && identity_file::read(&etcds.member_directory)?.is_none() {
        of_etcd_directory(&etcds)?
    } else {
        of_directory(&OpenDirectory::open(path, wal_directory)?)?
    };
    println!("{found:#}");
    Ok(())
}

fn of_directory(directory: &OpenDirectory) -> Result<Value, Failure> {
    let state = directory.log.state();
    let vote = match &state.vote {
        Some(stored) => peer::Vote::decode(stored.clone())?,
        None => peer::Vote::default(),
    };
    let members = Directory::load(&directory.reader)?;
    let last = state.last;
    // openraft counts entries from 0, etcd from 1.
    let applied = directory.applied.position;
    let committed = state.committed.map(|position| position.index + 1);
    let size = directory.reader.size()?;
    Ok(json!({
        "kind": "data directory",
        "memberId": format!("{:x}", directory.identity.member_id),
        "clusterId": format!("{:x}", directory.identity.cluster_id),
        "engine": match directory.engine {
            Engine::RocksDb => "rocksdb",
            Engine::Memory => "memory",
        },
        "term": vote.term.max(last.map_or(0, |last| last.term)),
        "index": last.map_or(0, |last| last.index + 1),
        "indexTerm": last.map_or(0, |last| last.term),
        "appliedIndex": applied.map_or(0, |position| position.index + 1),
        "appliedTerm": applied.map_or(0, |position| position.term),
        "committedIndex": committed.unwrap_or(0),
        "firstIndex": state.purged.map_or(1, |purged| purged.index + 2),
        "votedFor": format!("{:x}", vote.member),
        "revision": directory.reader.revision(),
        "compactRevision": directory.reader.compact_revision(),
        "sizeBytes": size.logical_bytes,
        "clusterVersion": members.cluster_version,
        "members": members_to_json(members.members.values()),
        "removedMembers": removed_to_json(&members),
    }))
}

/// A data directory of etcd: what a start on it would take over.
fn of_etcd_directory(directory: &EtcdDirectory) -> Result<Value, Failure> {
    let (_, member) = directory.read(0)?;
    let mut found = of_file(&directory.database())?;
    let last = member.entries.last();
    for (name, value) in [
        ("kind", json!("data directory of etcd")),
        (
            "memberId",
            json!(format!("{:x}", member.identity.member_id)),
        ),
        (
            "clusterId",
            json!(format!("{:x}", member.identity.cluster_id)),
        ),
        ("term", json!(member.vote.0)),
        (
            "index",
            json!(last.map_or(member.position.index, |last| last.index) + 1),
        ),
        (
            "indexTerm",
            json!(last.map_or(member.position.term, |last| last.term)),
        ),
        ("appliedIndex", json!(member.position.index + 1)),
        ("appliedTerm", json!(member.position.term)),
        ("committedIndex", json!(member.committed.index + 1)),
        ("votedFor", json!(format!("{:x}", member.vote.1))),
    ] {
        found[name] = value;
    }
    Ok(found)
}

fn of_file(path: &Path) -> Result<Value, Failure> {
    let file = BoltFile::open(path)?;
    let number = |name: &str| -> Result<u64, Failure> {
        let stored = file.row("meta", name.as_bytes())?;
        Ok(stored
            .and_then(|stored| stored.try_into().ok())
            .map_or(0, u64::from_be_bytes))
    };
    let members = read_members(&file)?;
    let compact_revision = super::hash_kv::compact_revision(&file)?;
    let mut revision = compact_revision.max(1);
    super::hash_kv::scan(&file, &mut |at, _, _| {
        revision = revision.max(at.main);
        Ok(())
    })?;
    let version = file
        .row("meta", b"storageVersion")?
        .map(|version| String::from_utf8_lossy(&version).into_owned());
    Ok(json!({
        "kind": "snapshot",
        "term": number("term")?,
        "index": number("consistent_index")?,
        "revision": revision,
        "compactRevision": compact_revision,
        "sizeBytes": file.database_bytes(),
        "storageVersion": version,
        "clusterVersion": members.cluster_version,
        "members": members_to_json(members.members.values()),
        "removedMembers": removed_to_json(&members),
    }))
}

fn members_to_json<'a>(members: impl Iterator<Item = &'a MemberRecord>) -> Value {
    members
        .map(|member| {
            let StoredMember {
                id,
                peer_urls,
                is_learner,
                name,
                client_urls,
            } = StoredMember::from(member);
            json!({
                "id": format!("{id:x}"),
                "name": name,
                "peerURLs": peer_urls,
                "clientURLs": client_urls,
                "isLearner": is_learner,
            })
        })
        .collect()
}

fn removed_to_json(directory: &Directory) -> Value {
    let ids = directory.removed.iter();
    ids.map(|id| Value::from(format!("{id:x}"))).collect()
}
