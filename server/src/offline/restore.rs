//! `snapshot restore`.

use std::fs;
use std::path::{Path, PathBuf};

use metastore_backup_file::BoltFile;
use metastore_backup_file::digest::{self, DigestCheck};
use metastore_consensus::state_machine::LogPosition;
use metastore_proto::internal::MemberRecord;

use super::progress::Progress;
use super::{EXIT_ERROR, Failure, MemberArguments, RestoreArguments};
use crate::backup::etcd_directory::{read_members, seeds};
use crate::backup::etcd_output::make_directory;
use crate::backup::import::{NewMember, Target, import};
use crate::config::InitialCluster;
use crate::config::identity;
use crate::identity_file::Identity;
use crate::member_directory::Directory;

/// The term of the entries with which a restored cluster begins, as etcdutl makes them.
const FIRST_TERM: u64 = 1;

/// Makes a data directory of ours from a snapshot.
pub(super) fn run(arguments: &RestoreArguments) -> Result<(), Failure> {
    let RestoreArguments {
        filename,
        member,
        data_dir,
        wal_dir,
        engine,
        initial_memory_map_size: _,
    } = arguments;
    let restored = Restored::new(member)?;
    let data_directory = match data_dir {
        Some(directory) => directory.clone(),
        None => PathBuf::from(format!("{}.metastore", member.name)),
    };
    refuse_existing(&data_directory, wal_dir.as_deref())?;
    tracing::info!(
        path = %filename.display(),
        "data-dir" = %data_directory.display(),
        "restoring snapshot"
    );
    let database = open(filename, member.skip_hash_check)?;
    let member_directory = data_directory.join("member");
    make_directory(&member_directory)?;
    let target = Target {
        member_directory: &member_directory,
        wal_directory: wal_dir.as_deref(),
        engine: *engine,
    };
    let mut progress = Progress::of(database.database_bytes());
    let imported = import(
        &database,
        &restored.new_member(&database, member)?,
        &target,
        &mut |bytes| progress.add(bytes),
    )?;
    drop(progress);
    tracing::info!(
        "data-dir" = %data_directory.display(),
        "member-id" = format!("{:x}", restored.member_id),
        "cluster-id" = format!("{:x}", restored.cluster_id),
        revision = imported.numbers.revision,
        "restored snapshot"
    );
    Ok(())
}

/// Opens a snapshot after its digest was compared.
pub(super) fn open(path: &Path, skip_hash_check: bool) -> Result<BoltFile, Failure> {
    let refused = |text: String| Failure {
        text,
        status: EXIT_ERROR,
    };
    if !skip_hash_check {
        match digest::check(path)? {
            DigestCheck::Right => {}
            DigestCheck::Absent => {
                return Err(refused(
                    "snapshot missing hash but --skip-hash-check=false".to_owned(),
                ));
            }
            DigestCheck::Wrong { stored, computed } => {
                let list = |bytes: &[u8]| {
                    let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
                    format!("[{}]", numbers.join(" "))
                };
                return Err(refused(format!(
                    "expected sha256 {}, got {}: the snapshot is damaged, take another copy",
                    list(&stored),
                    list(&computed)
                )));
            }
        }
    }
    Ok(BoltFile::open(path)?)
}

/// Etcdutl's refusals of directories that exist.
pub(super) fn refuse_existing(
    data_directory: &Path,
    wal_directory: Option<&Path>,
) -> Result<(), Failure> {
    let refused = |text: String| {
        Err(Failure {
            text,
            status: EXIT_ERROR,
        })
    };
    let is_empty = match fs::read_dir(data_directory) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if !is_empty {
        return refused(format!(
            "data-dir {:?} not empty or could not be read",
            data_directory.display().to_string()
        ));
    }
    match wal_directory {
        Some(directory) if directory.exists() => refused(format!(
            "wal-dir {:?} exists",
            directory.display().to_string()
        )),
        _ => Ok(()),
    }
}

/// The cluster that a restore makes, from the command line.
pub(super) struct Restored {
    pub member_id: u64,
    pub cluster_id: u64,
    /// Sorted by id, as the entries that add them.
    pub members: Vec<MemberRecord>,
    pub revision_bump: i64,
}

impl Restored {
    /// Checks the arguments as etcdutl does.
    pub fn new(arguments: &MemberArguments) -> Result<Self, Failure> {
        if (arguments.bump_revision > 0) != arguments.mark_compacted {
            return Err(Failure::bad_arguments(
                "--mark-compacted required if --revision-bump > 0",
            ));
        }
        let refused = |text: String| Failure {
            text,
            status: EXIT_ERROR,
        };
        let revision_bump = i64::try_from(arguments.bump_revision)
            .map_err(|_| Failure::bad_arguments("--bump-revision is too large"))?;
        let cluster = InitialCluster::parse(&arguments.initial_cluster).map_err(refused)?;
        let token = &arguments.initial_cluster_token;
        let name = &arguments.name;
        let Some(own) = cluster.members.get(name) else {
            return Err(refused(format!(
                "couldn't find local name {name:?} in the initial cluster configuration"
            )));
        };
        let advertised = InitialCluster::parse(
            &arguments
                .initial_advertise_peer_urls
                .split(',')
                .map(|url| format!("{name}={url}"))
                .collect::<Vec<_>>()
                .join(","),
        )
        .map_err(refused)?;
        if advertised.members.get(name) != Some(own) {
            return Err(refused(format!(
                "--initial-cluster has other URLs for {name:?} than \
                 --initial-advertise-peer-urls={}",
                arguments.initial_advertise_peer_urls
            )));
        }
        let mut members: Vec<MemberRecord> = cluster
            .members
            .iter()
            .map(|(name, urls)| MemberRecord {
                id: identity::member_id(urls, token),
                name: name.clone(),
                peer_urls: urls.iter().map(ToString::to_string).collect(),
                client_urls: Vec::new(),
                is_learner: false,
            })
            .collect();
        members.sort_by_key(|member| member.id);
        Ok(Self {
            member_id: identity::member_id(own, token),
            cluster_id: cluster.cluster_id(token),
            members,
            revision_bump,
        })
    }

    fn new_member(
        &self,
        database: &BoltFile,
        arguments: &MemberArguments,
    ) -> Result<NewMember, Failure> {
        let members = self.members.iter().cloned();
        let directory = Directory {
            members: members.map(|member| (member.id, member)).collect(),
            cluster_version: read_members(database)?.cluster_version,
            ..Directory::default()
        };
        // As if one entry had added each member; etcd counts entries from 1, openraft from 0.
        let position = LogPosition {
            term: FIRST_TERM,
            index: self.members.len() as u64 - 1,
        };
        let first = self.members.first().map_or(0, |member| member.id);
        tracing::debug!(name = arguments.name, "restoring as this member");
        Ok(NewMember {
            identity: Identity {
                cluster_id: self.cluster_id,
                member_id: self.member_id,
                forms_cluster: false,
                log_exists: true,
                seeds: seeds(&directory),
            },
            directory,
            position,
            vote: (FIRST_TERM, first),
            entries: Vec::new(),
            committed: position,
            revision_bump: self.revision_bump,
        })
    }
}
