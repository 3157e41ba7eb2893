//! Making a member's data directory from a database of etcd.
//!
//! ```text
//! <data-dir>/member/importing/   everything is made here; as long as it is there, nothing else counts
//!                  store, snapshot, log     moved to their places, one by one
//!                  identity.json            written last: from then on the import is done
//! ```
//!
//! A crash before the identity is written repeats the import from the beginning.

use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use metastore_backup_file::{BoltFile, FileError};
use metastore_consensus::state_machine::{AppliedState, LogPosition};
use metastore_proto::peer;
use metastore_raft_log::{LogEntry, LogError, LogIdentity, LogOptions, RaftLog, RealDisk};
use metastore_revision_model::Revision;
use metastore_store::engine::{EngineError, SharedEngine, Table};
use metastore_store::export::StoreNumbers;
use metastore_store::{Importer, LeaseRecord};
use prost::Message;

use super::etcd_entries::Voters;
use super::etcd_messages::{StoredDowngrade, StoredLease};
use super::export::{
    AUTH_ENABLED_ROW, AUTH_REVISION_ROW, AUTH_ROLE_PREFIX, AUTH_USER_PREFIX, DOWNGRADE_ROW,
};
use crate::application::APPLIED_KEY;
use crate::applied_position;
use crate::config::Engine;
use crate::engines::EngineDirectory;
use crate::identity_file::{self, Identity};
use crate::member_directory::{self, Directory};

/// Where an import works.
const STAGING: &str = "importing";
/// What an import makes beside the log and the identity.
const PARTS: [&str; 2] = ["store", "snapshot"];
const LOG: &str = "log";
/// Where etcd's log is kept.
pub(super) const KEPT_LOG_FOLDER: &str = "etcd-wal";

/// Why a database was not imported. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file is damaged or of another kind.
    #[error(transparent)]
    File(#[from] FileError),
    /// The engine failed, or the contents contradict each other.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The log could not be made.
    #[error("cannot make the log: {0}")]
    Log(#[from] LogError),
    /// A file operation failed.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The contents cannot be taken over; the text says what to do.
    #[error("{0}")]
    Refused(String),
}

fn io_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImportError {
    let path = path.to_owned();
    move |source| ImportError::Io { verb, path, source }
}

/// Who the member is whose directory is made, and where it stands in the log.
#[derive(Clone, Debug)]
pub struct NewMember {
    /// Written last.
    pub identity: Identity,
    /// The members, as of `position`.
    pub directory: Directory,
    /// The last entry whose effect is in the database.
    pub position: LogPosition,
    /// The highest term that the member has seen, and whom it voted for in it (0: nobody).
    pub vote: (u64, u64),
    /// What is in the log behind `position`.
    pub entries: Vec<LogEntry>,
    /// The last entry that the member knows to be committed.
    pub committed: LogPosition,
    /// By how much the revision is raised; the new one is compacted then. 0: it is not.
    pub revision_bump: i64,
}

/// What became of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The store's numbers.
    pub numbers: StoreNumbers,
}

/// The directories of a member.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// `<data-dir>/member`; exists.
    pub member_directory: &'a Path,
    /// The log's directory when it is not inside.
    pub wal_directory: Option<&'a Path>,
    /// The engine.
    pub engine: Engine,
}

/// Makes the member's directory from the database. `progress` is told how many bytes were copied since
/// it was told last.
///
/// # Errors
/// See [`ImportError`].
pub fn import(
    database: &BoltFile,
    member: &NewMember,
    target: &Target<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<Imported, ImportError> {
    let staging = target.member_directory.join(STAGING);
    // What an import that did not finish has left is of no use to anybody.
    if staging.exists() {
        for part in PARTS.iter().chain([&LOG]) {
            remove(&target.member_directory.join(part))?;
        }
        if let Some(directory) = target.wal_directory {
            remove_own_log(directory)?;
        }
        remove(&staging)?;
    }
    fs::create_dir(&staging).map_err(io_error("create", &staging))?;
    let imported = fill_engine(database, member, target.engine, &staging, progress)?;
    match target.wal_directory {
        Some(directory) => make_log_elsewhere(member, directory)?,
        None => {
            make_log(member, &staging.join(LOG))?;
            rename(&staging.join(LOG), &target.member_directory.join(LOG))?;
        }
    }
    for part in PARTS {
        rename(&staging.join(part), &target.member_directory.join(part))?;
    }
    sync_directory(target.member_directory)?;
    identity_file::write(target.member_directory, &member.identity)
        .map_err(io_error("write", target.member_directory))?;
    remove(&staging)?;
    Ok(imported)
}

fn remove(path: &Path) -> Result<(), ImportError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), ImportError> {
    fs::rename(from, to).map_err(io_error("move", from))
}

/// Makes the log in a directory of its own. It may be a mount point on another disk and may hold etcd's
/// log, so files move instead of the directory: etcd's aside, then ours in.
fn make_log_elsewhere(member: &NewMember, directory: &Path) -> Result<(), ImportError> {
    let staging = directory.join(STAGING);
    remove(&staging)?;
    fs::create_dir_all(&staging).map_err(io_error("create", &staging))?;
    make_log(member, &staging)?;
    put_etcd_log_aside(directory)?;
    for entry in fs::read_dir(&staging).map_err(io_error("list", &staging))? {
        let entry = entry.map_err(io_error("list", &staging))?;
        rename(&entry.path(), &directory.join(entry.file_name()))?;
    }
    remove(&staging)?;
    sync_directory(directory)
}

fn put_etcd_log_aside(directory: &Path) -> Result<(), ImportError> {
    let kept = directory.join(KEPT_LOG_FOLDER);
    for entry in fs::read_dir(directory).map_err(io_error("list", directory))? {
        let path = entry.map_err(io_error("list", directory))?.path();
        if is_etcd_log(&path)
            && let Some(name) = path.file_name()
        {
            fs::create_dir_all(&kept).map_err(io_error("create", &kept))?;
            rename(&path, &kept.join(name))?;
        }
    }
    Ok(())
}

/// Whether a file is one of etcd's log.
pub(super) fn is_etcd_log(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "wal")
}

/// Removes what an import that did not finish has made beside etcd's files.
fn remove_own_log(directory: &Path) -> Result<(), ImportError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(io_error("list", directory))?,
    };
    for entry in entries {
        let path = entry.map_err(io_error("list", directory))?.path();
        if path.is_file() && !is_etcd_log(&path) {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}

fn sync_directory(path: &Path) -> Result<(), ImportError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync", path))
}

fn fill_engine(
    database: &BoltFile,
    member: &NewMember,
    kind: Engine,
    staging: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Imported, ImportError> {
    let engines = EngineDirectory::new(kind, staging)?;
    let engine = engines.open()?;
    let numbers = copy(database, member, &engine, progress)?;
    if !engine.is_persistent() {
        let applied = applied_state(member);
        let directory = engines.new_snapshot_directory()?;
        engine.checkpoint(&directory, Table::Meta, APPLIED_KEY)?;
        engines.complete_snapshot(&directory, &applied)?;
    }
    Ok(Imported { numbers })
}

/// Copies every bucket into the engine.
fn copy(
    database: &BoltFile,
    member: &NewMember,
    engine: &SharedEngine,
    progress: &mut dyn FnMut(u64),
) -> Result<StoreNumbers, ImportError> {
    let compactions = Compactions::read(database)?;
    let mut compact_revision = compactions.scheduled.max(compactions.finished);
    let last = last_revision(database)?;
    let bumped = (member.revision_bump > 0).then(|| last + member.revision_bump);
    compact_revision = compact_revision.max(bumped.unwrap_or(compact_revision));
    let mut importer = Importer::new(engine.clone(), compact_revision);
    copy_leases(database, &mut importer)?;
    copy_small_buckets(database, &mut importer)?;
    for (key, value) in member_directory::rows(&member.directory) {
        importer.row(Table::Members, key, value);
    }
    let applied = applied_position::encode(&applied_state(member));
    importer.row(Table::Meta, Bytes::from_static(APPLIED_KEY), applied);
    copy_history(database, &mut importer, progress)?;
    if let Some(revision) = bumped {
        importer.record(Revision::new(revision, 0), false, Bytes::new())?;
    }
    let numbers = StoreNumbers {
        revision: bumped.unwrap_or(last).max(compact_revision).max(1),
        compact_revision,
        finished_compact_revision: compactions.finished,
    };
    importer.finish(numbers)?;
    Ok(numbers)
}

fn applied_state(member: &NewMember) -> AppliedState {
    let LogPosition { term, index } = member.position;
    let voters = Voters::of(&member.directory);
    let stored = peer::StoredMembership {
        position: Some(peer::LogPosition { term, index }),
        membership: Some(voters.to_message()),
    };
    AppliedState {
        position: Some(member.position),
        membership: stored.encode_to_vec().into(),
    }
}

impl Voters {
    /// The voters and learners of a directory.
    pub fn of(directory: &Directory) -> Self {
        let ids = |is_learner: bool| {
            let members = directory.members.values();
            members
                .filter(move |member| member.is_learner == is_learner)
                .map(|member| member.id)
                .collect()
        };
        Self {
            voters: ids(false),
            learners: ids(true),
        }
    }
}

/// What the bucket `meta` says about compactions; -1: there was none.
struct Compactions {
    scheduled: i64,
    finished: i64,
}

impl Compactions {
    fn read(database: &BoltFile) -> Result<Self, ImportError> {
        let revision = |name: &str| -> Result<i64, ImportError> {
            let Some(stored) = database.row("meta", name.as_bytes())? else {
                return Ok(-1);
            };
            match Revision::from_key(&stored) {
                Some((revision, _)) => Ok(revision.main),
                None => Err(contradiction(database, &format!("{name} is no revision"))),
            }
        };
        Ok(Self {
            scheduled: revision("scheduledCompactRev")?,
            finished: revision("finishedCompactRev")?,
        })
    }
}

fn contradiction(database: &BoltFile, what: &str) -> ImportError {
    ImportError::Refused(format!(
        "{} is no database of etcd, or damaged: {what}",
        database.path().display()
    ))
}

/// Main revision of the last record; 1 when there is none.
pub(super) fn last_revision(database: &BoltFile) -> Result<i64, ImportError> {
    let mut last = 1;
    for_each(database, "key", |key, _| {
        last = revision_of(database, key)?.0.main;
        Ok(())
    })?;
    Ok(last)
}

fn revision_of(database: &BoltFile, key: &[u8]) -> Result<(Revision, bool), ImportError> {
    Revision::from_key(key)
        .ok_or_else(|| contradiction(database, "a key of the bucket `key` is no revision"))
}

/// Visits the rows of a bucket; nothing when it is missing.
fn for_each(
    database: &BoltFile,
    bucket: &str,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let Some(bucket) = database.bucket(bucket) else {
        return Ok(());
    };
    let mut outcome = Ok(());
    database.scan(bucket, &mut |key, value| {
        outcome = visit(key, value);
        Ok(match outcome {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })
    })?;
    outcome
}

fn copy_leases(database: &BoltFile, importer: &mut Importer) -> Result<(), ImportError> {
    for_each(database, "lease", |_, value| {
        let lease = StoredLease::decode(value)
            .map_err(|error| contradiction(database, &format!("a lease is damaged ({error})")))?;
        importer.lease(LeaseRecord {
            id: lease.id,
            granted_ttl: lease.ttl,
            remaining_ttl: lease.remaining_ttl,
        });
        Ok(())
    })
}

fn copy_small_buckets(database: &BoltFile, importer: &mut Importer) -> Result<(), ImportError> {
    let copied = Bytes::copy_from_slice;
    for (key, _) in database.rows("alarm")? {
        importer.row(Table::Alarms, key.into(), Bytes::new());
    }
    for (theirs, ours) in [
        ("authEnabled", AUTH_ENABLED_ROW),
        ("authRevision", AUTH_REVISION_ROW),
    ] {
        if let Some(value) = database.row("auth", theirs.as_bytes())? {
            importer.row(Table::Auth, copied(ours), value.into());
        }
    }
    for (bucket, prefix) in [
        ("authUsers", AUTH_USER_PREFIX),
        ("authRoles", AUTH_ROLE_PREFIX),
    ] {
        for_each(database, bucket, |name, value| {
            importer.row(Table::Auth, [prefix, name].concat().into(), copied(value));
            Ok(())
        })?;
    }
    if let Some(downgrade) = database.row("cluster", b"downgrade")? {
        let downgrade: StoredDowngrade = serde_json::from_slice(&downgrade)
            .map_err(|error| contradiction(database, &format!("downgrade: {error}")))?;
        if downgrade.enabled {
            let target = downgrade.target_version.into();
            importer.row(Table::Members, copied(DOWNGRADE_ROW), target);
        }
    }
    Ok(())
}

fn copy_history(
    database: &BoltFile,
    importer: &mut Importer,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ImportError> {
    for_each(database, "key", |key, value| {
        let (revision, tombstone) = revision_of(database, key)?;
        importer.record(revision, tombstone, Bytes::copy_from_slice(value))?;
        progress((key.len() + value.len()) as u64);
        Ok(())
    })
}

/// Makes a log that continues behind the member's position.
fn make_log(member: &NewMember, directory: &Path) -> Result<(), ImportError> {
    let identity = LogIdentity {
        cluster_id: member.identity.cluster_id,
        member_id: member.identity.member_id,
    };
    let log = RaftLog::open(
        Arc::new(RealDisk),
        directory,
        identity,
        LogOptions::default(),
    )?;
    let position = |LogPosition { term, index }| metastore_raft_log::LogPosition { term, index };
    let (term, voted_for) = member.vote;
    let vote = peer::Vote {
        term,
        // Having voted for nobody is as good as having voted for oneself: for no one else.
        member: match voted_for {
            0 => member.identity.member_id,
            voted_for => voted_for,
        },
        committed: false,
    };
    let (done, outcomes) = mpsc::channel();
    let completion = || -> metastore_raft_log::Completion {
        let done = done.clone();
        Box::new(move |outcome| {
            // The receiver waits for all of them.
            let _ = done.send(outcome);
        })
    };
    log.purge(position(member.position), completion());
    log.append(member.entries.clone(), completion());
    log.save_vote(vote.encode_to_vec().into(), completion());
    log.save_committed(position(member.committed));
    drop(done);
    for outcome in outcomes {
        outcome.map_err(io_error("write the log in", directory))?;
    }
    log.close();
    Ok(())
}
