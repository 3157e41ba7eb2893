//! A data directory of etcd as the beginning of a member of ours.
//!
//! `etcdutl snapshot restore` makes such a directory, and so does a member of etcd that was stopped.
//! Its database and what its log has beyond it are taken over, together with its identity: the member
//! keeps its id, its cluster and its place in the log.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use metastore_backup_file::BoltFile;
use metastore_backup_file::etcd_log::EtcdLog;
use metastore_consensus::state_machine::LogPosition;
use metastore_proto::internal::MemberRecord;

use super::etcd_entries::{Voters, translate};
use super::etcd_messages::StoredMember;
use super::human_bytes::human_bytes;
use super::import::{
    ImportError, Imported, KEPT_LOG_FOLDER, NewMember, Target, import, is_etcd_log,
};
use crate::config::Config;
use crate::identity_file::{Identity, SeedMember};
use crate::member_directory::Directory;

const SNAPSHOT_FOLDER: &str = "snap";
const LOG_FOLDER: &str = "wal";
/// Where etcd's files are kept after the import.
const KEPT_SNAPSHOT_FOLDER: &str = "etcd-snap";
const DATABASE: &str = "db";

/// The files of a member of etcd.
#[derive(Clone, Debug)]
pub struct EtcdDirectory {
    /// `<data-dir>/member`.
    pub member_directory: PathBuf,
    /// Where its log is.
    pub log_directory: PathBuf,
}

impl EtcdDirectory {
    /// The files in `<data-dir>`, with the log in `wal_directory` if that is not inside.
    pub fn new(data_directory: &Path, wal_directory: Option<&Path>) -> Self {
        let member_directory = data_directory.join("member");
        let log_directory = match wal_directory {
            // An import that was interrupted may have put etcd's log aside already.
            Some(directory) => match holds_etcd_log(directory) {
                true => directory.to_owned(),
                false => directory.join(KEPT_LOG_FOLDER),
            },
            None => member_directory.join(LOG_FOLDER),
        };
        Self {
            member_directory,
            log_directory,
        }
    }

    /// etcd's database.
    pub fn database(&self) -> PathBuf {
        self.member_directory.join(SNAPSHOT_FOLDER).join(DATABASE)
    }

    /// Reads who the member is and where it stands.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn read(&self, lease_ttl_min: i64) -> Result<(BoltFile, NewMember), ImportError> {
        let database = BoltFile::open(&self.database())?;
        let applied = applied(&database)?;
        let log = EtcdLog::read(&self.log_directory, applied.index)?;
        if log.ends_torn {
            tracing::warn!(
                path = %self.log_directory.display(),
                "the last record of etcd's log is incomplete: it was never acknowledged and is left out"
            );
        }
        if log.snapshot_index > applied.index + log.entries.len() as u64 {
            return Err(ImportError::Refused(format!(
                "the database of etcd ends at entry {}, its log says that there was a snapshot at \
                 entry {}: start etcd once more on this directory and stop it with SIGTERM",
                applied.index, log.snapshot_index
            )));
        }
        let directory = read_members(&database)?;
        if !directory.members.contains_key(&log.member_id) {
            return Err(ImportError::Refused(format!(
                "the database of etcd does not name member {:x}, whose log this is: it was removed \
                 from its cluster",
                log.member_id
            )));
        }
        let member = new_member(&log, applied, directory, lease_ttl_min)?;
        Ok((database, member))
    }
}

/// An index and its term, as etcd counts.
#[derive(Clone, Copy)]
struct Applied {
    index: u64,
    term: u64,
}

fn applied(database: &BoltFile) -> Result<Applied, ImportError> {
    let number = |name: &str| -> Result<Option<u64>, ImportError> {
        let stored = database.row("meta", name.as_bytes())?;
        Ok(stored
            .and_then(|stored| stored.try_into().ok())
            .map(u64::from_be_bytes))
    };
    match (number("consistent_index")?, number("term")?) {
        (Some(index), Some(term)) if index > 0 && term > 0 => Ok(Applied { index, term }),
        _ => Err(ImportError::Refused(format!(
            "{} does not say up to which entry of the log it goes: it is no database of an etcd of \
             version 3.5 or newer",
            database.path().display()
        ))),
    }
}

fn new_member(
    log: &EtcdLog,
    applied: Applied,
    directory: Directory,
    lease_ttl_min: i64,
) -> Result<NewMember, ImportError> {
    let entries = translate(&log.entries, Voters::of(&directory), lease_ttl_min)?;
    let position = LogPosition {
        term: log.term_at.unwrap_or(applied.term),
        index: applied.index - 1,
    };
    let committed = log.state.commit.unwrap_or_default();
    let committed = entries
        .iter()
        .rfind(|entry| entry.index < committed)
        .map_or(position, |entry| LogPosition {
            term: entry.term,
            index: entry.index,
        });
    let term = log.state.term.unwrap_or_default();
    let last_term = entries.last().map_or(position.term, |entry| entry.term);
    let vote = match term >= last_term {
        true => (term, log.state.vote.unwrap_or_default()),
        false => (last_term, 0),
    };
    Ok(NewMember {
        identity: Identity {
            cluster_id: log.cluster_id,
            member_id: log.member_id,
            forms_cluster: false,
            log_exists: true,
            seeds: seeds(&directory),
        },
        directory,
        position,
        vote,
        entries,
        committed,
        revision_bump: 0,
    })
}

/// What an identity says of the members.
pub fn seeds(directory: &Directory) -> Vec<SeedMember> {
    let members = directory.members.values();
    members
        .map(|member| SeedMember {
            id: member.id,
            name: member.name.clone(),
            peer_urls: member.peer_urls.clone(),
            is_learner: member.is_learner,
        })
        .collect()
}

/// The members that a database names.
///
/// # Errors
/// For rows that are no members.
pub fn read_members(database: &BoltFile) -> Result<Directory, ImportError> {
    let mut directory = Directory::default();
    let damaged =
        |what: String| ImportError::Refused(format!("{}: {what}", database.path().display()));
    for (_, value) in database.rows("members")? {
        let member: StoredMember = serde_json::from_slice(&value)
            .map_err(|error| damaged(format!("a member is damaged ({error})")))?;
        let record = MemberRecord::from(member);
        directory.members.insert(record.id, record);
    }
    for (key, _) in database.rows("members_removed")? {
        let id = std::str::from_utf8(&key)
            .ok()
            .and_then(|text| u64::from_str_radix(text, 16).ok())
            .ok_or_else(|| damaged("a removed member has no id".to_owned()))?;
        directory.removed.insert(id);
    }
    directory.cluster_version = database
        .row("cluster", b"clusterVersion")?
        .map(|version| String::from_utf8_lossy(&version).into_owned());
    Ok(directory)
}

/// Takes over a data directory of etcd, if this is one, when a member starts. Afterwards, and also
/// when a crash prevented it the last time, puts etcd's files aside.
///
/// # Errors
/// See [`ImportError`]; nothing was changed then.
pub fn import_at_start(config: &Config, is_new: bool) -> Result<(), ImportError> {
    let source = EtcdDirectory::new(&config.data_dir, config.wal_dir.as_deref());
    let path = source.database();
    if !path.exists() {
        return Ok(());
    }
    if is_new {
        let started = Instant::now();
        tracing::info!(
            path = %path.display(),
            size = human_bytes(fs::metadata(&path).map_or(0, |data| data.len())),
            "found a data directory of etcd; importing it"
        );
        let lease_ttl_min = metastore_lease::minimum_ttl_seconds(
            config.heartbeat_interval,
            config.election_timeout,
        );
        let (database, member) = source.read(lease_ttl_min)?;
        let target = Target {
            member_directory: &source.member_directory,
            wal_directory: config.wal_dir.as_deref(),
            engine: config.engine,
        };
        let Imported { numbers } = import(&database, &member, &target, &mut |_| {})?;
        tracing::info!(
            revision = numbers.revision,
            "compact-revision" = numbers.compact_revision,
            "unapplied-entries" = member.entries.len(),
            took = ?started.elapsed(),
            "imported the data directory of etcd"
        );
    }
    put_aside(&source, config.wal_dir.is_some())
}

fn holds_etcd_log(directory: &Path) -> bool {
    fs::read_dir(directory)
        .is_ok_and(|entries| entries.flatten().any(|entry| is_etcd_log(&entry.path())))
}

fn put_aside(source: &EtcdDirectory, log_is_elsewhere: bool) -> Result<(), ImportError> {
    let member = &source.member_directory;
    if !log_is_elsewhere {
        rename(&source.log_directory, &member.join(KEPT_LOG_FOLDER))?;
    }
    // Last, because its presence is what says that there is something to put aside.
    let from = member.join(SNAPSHOT_FOLDER);
    let to = member.join(KEPT_SNAPSHOT_FOLDER);
    rename(&from, &to)?;
    tracing::info!(
        path = %to.display(),
        "etcd's files are kept aside; delete them when the member works"
    );
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<(), ImportError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImportError::Io {
            verb: "put aside",
            path: from.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}
