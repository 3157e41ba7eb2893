//! `migrate`: from a stopped member of etcd to ours, and from a snapshot to a member of etcd.

use std::path::Path;
use std::time::Duration;

use super::progress::Progress;
use super::restore::{Restored, open, refuse_existing};
use super::{Failure, MigrateArguments};
use crate::backup::etcd_directory::EtcdDirectory;
use crate::backup::etcd_messages::StoredMember;
use crate::backup::etcd_output::{EtcdOutput, make_directory};
use crate::backup::import::{Target, import};

/// etcd's defaults, which decide about the shortest lease.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(100);
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes the directory that was asked for.
pub(super) fn run(arguments: &MigrateArguments) -> Result<(), Failure> {
    refuse_existing(&arguments.data_dir, arguments.wal_dir.as_deref())?;
    match (&arguments.from_etcd, &arguments.from_snapshot) {
        (Some(etcd), _) => from_etcd(arguments, etcd),
        (None, Some(snapshot)) => to_etcd(arguments, snapshot),
        (None, None) => Err(Failure::bad_arguments(
            "one of --from-etcd and --from-snapshot is required",
        )),
    }
}

fn from_etcd(arguments: &MigrateArguments, etcd: &Path) -> Result<(), Failure> {
    let source = EtcdDirectory::new(etcd, arguments.from_wal_dir.as_deref());
    let ttl_min = metastore_lease::minimum_ttl_seconds(HEARTBEAT_INTERVAL, ELECTION_TIMEOUT);
    let (database, member) = source.read(ttl_min)?;
    let member_directory = arguments.data_dir.join("member");
    make_directory(&member_directory)?;
    let target = Target {
        member_directory: &member_directory,
        wal_directory: arguments.wal_dir.as_deref(),
        engine: arguments.engine,
    };
    let mut progress = Progress::of(database.database_bytes());
    let imported = import(&database, &member, &target, &mut |bytes| {
        progress.add(bytes)
    })?;
    drop(progress);
    tracing::info!(
        "data-dir" = %arguments.data_dir.display(),
        "member-id" = format!("{:x}", member.identity.member_id),
        "cluster-id" = format!("{:x}", member.identity.cluster_id),
        revision = imported.numbers.revision,
        "unapplied-entries" = member.entries.len(),
        "migrated the member of etcd; its own directory is unchanged"
    );
    Ok(())
}

fn to_etcd(arguments: &MigrateArguments, snapshot: &Path) -> Result<(), Failure> {
    let restored = Restored::new(&arguments.member)?;
    let database = open(snapshot, arguments.member.skip_hash_check)?;
    let member_directory = arguments.data_dir.join("member");
    let snapshots = member_directory.join("snap");
    let log = match &arguments.wal_dir {
        Some(directory) => directory.clone(),
        None => member_directory.join("wal"),
    };
    make_directory(&snapshots)?;
    make_directory(&log)?;
    let output = EtcdOutput {
        member_id: restored.member_id,
        cluster_id: restored.cluster_id,
        members: restored.members.iter().map(StoredMember::from).collect(),
        revision_bump: restored.revision_bump,
    };
    output.write(&database, &snapshots, &log)?;
    tracing::info!(
        "data-dir" = %arguments.data_dir.display(),
        "member-id" = format!("{:x}", restored.member_id),
        "cluster-id" = format!("{:x}", restored.cluster_id),
        "made a data directory of etcd"
    );
    Ok(())
}
