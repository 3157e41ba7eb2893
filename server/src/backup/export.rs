//! Writing the store as a database of etcd.
//!
//! Every bucket is filled from one view of the engine, so the file is one state: keys, leases, users,
//! members and the position in the log belong together.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use bytes::Bytes;
use metastore_backup_file::{BoltBuilder, BuildError, Layout, PageSink};
use metastore_store::engine::{EngineError, ReadView, SharedEngine, Table};
use metastore_store::export::{StoreNumbers, scan_leases};
use prost::Message;

use super::etcd_messages::{
    StoredConfState, StoredDowngrade, StoredLease, StoredMember, member_key,
};
use crate::application::APPLIED_KEY;
use crate::applied_position;
use crate::member_directory::Directory;

/// The row of the auth table that says whether authentication is on.
pub(super) const AUTH_ENABLED_ROW: &[u8] = b"enabled";
/// The row of the auth revision.
pub(super) const AUTH_REVISION_ROW: &[u8] = b"revision";
/// Rows of users, rows of roles.
pub(super) const AUTH_USER_PREFIX: &[u8] = b"user/";
pub(super) const AUTH_ROLE_PREFIX: &[u8] = b"role/";
/// The row of the member table that names the version to which the cluster is being downgraded.
pub(super) const DOWNGRADE_ROW: &[u8] = b"downgrade";
/// The auth revision before anything was changed.
const AUTH_REVISION_FIRST: u64 = 1;

/// What etcd stores under a removed member.
const REMOVED: &[u8] = b"removed";

/// Why an export ended early.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The rows make no file, or nobody takes it any more.
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl ExportError {
    /// Whether the reader of the file went away.
    pub fn is_abandoned(&self) -> bool {
        matches!(self, Self::Build(BuildError::Sink(error)) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Takes an exported file.
pub trait FileReceiver {
    /// Comes first: the length of the file.
    ///
    /// # Errors
    /// Ends the export; [`io::ErrorKind::BrokenPipe`] when nobody wants the file any more.
    fn begin(&mut self, file_bytes: u64) -> io::Result<()>;

    /// The next bytes of the file.
    ///
    /// # Errors
    /// As [`FileReceiver::begin`].
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// Writes the state of the engine at the moment of the call. Reads the engine twice: once to measure,
/// once to write; needs memory for some pages and for members, users and roles.
///
/// # Errors
/// See [`ExportError`].
pub fn export(engine: &SharedEngine, receiver: &mut dyn FileReceiver) -> Result<(), ExportError> {
    let mut outcome = Ok(());
    engine.with_view(&mut |view| {
        outcome = export_view(view, receiver);
        Ok(())
    })?;
    outcome
}

fn export_view(view: &dyn ReadView, receiver: &mut dyn FileReceiver) -> Result<(), ExportError> {
    let small = SmallBuckets::read(view)?;
    let layout = write(BoltBuilder::measure(), &small, view)?;
    receiver
        .begin(layout.file_bytes())
        .map_err(BuildError::Sink)?;
    let mut sink = |pages: &[u8]| receiver.bytes(pages);
    write(BoltBuilder::write(layout, &mut sink)?, &small, view)?;
    Ok(())
}

/// The buckets that fit into memory, ready to be written.
struct SmallBuckets {
    rows: BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl SmallBuckets {
    fn read(view: &dyn ReadView) -> Result<Self, ExportError> {
        let mut buckets = Self {
            rows: BTreeMap::new(),
        };
        for name in [
            "alarm",
            "auth",
            "authRoles",
            "authUsers",
            "cluster",
            "members",
            "members_removed",
            "meta",
        ] {
            buckets.rows.insert(name, BTreeMap::new());
        }
        let members = collect(view, Table::Members)?;
        let downgrade = members.iter().find(|(key, _)| key == DOWNGRADE_ROW);
        if let Some((_, target)) = downgrade {
            buckets.add_downgrade(&String::from_utf8_lossy(target));
        }
        let directory = Directory::decode(members)?;
        buckets.add_members(&directory);
        buckets.add_meta(view, &directory)?;
        buckets.add_auth(view)?;
        // The rows of alarms are etcd's keys.
        for (key, _) in collect(view, Table::Alarms)? {
            buckets.put("alarm", &key, Vec::new());
        }
        Ok(buckets)
    }

    fn put(&mut self, bucket: &'static str, key: &[u8], value: Vec<u8>) {
        self.rows
            .entry(bucket)
            .or_default()
            .insert(key.to_vec(), value);
    }

    fn add_members(&mut self, directory: &Directory) {
        for member in directory.members.values() {
            let stored = serde_json::to_vec(&StoredMember::from(member))
                .expect("strings and numbers are JSON");
            self.put("members", member_key(member.id).as_bytes(), stored);
        }
        for id in &directory.removed {
            self.put(
                "members_removed",
                member_key(*id).as_bytes(),
                REMOVED.to_vec(),
            );
        }
        if let Some(version) = &directory.cluster_version {
            self.put("cluster", b"clusterVersion", version.clone().into_bytes());
        }
    }

    fn add_downgrade(&mut self, target: &str) {
        let stored = StoredDowngrade {
            target_version: target.to_owned(),
            enabled: true,
        };
        let stored = serde_json::to_vec(&stored).expect("strings are JSON");
        self.put("cluster", b"downgrade", stored);
    }

    fn add_meta(&mut self, view: &dyn ReadView, directory: &Directory) -> Result<(), ExportError> {
        let numbers = StoreNumbers::of(view)?;
        for (name, revision) in [
            ("scheduledCompactRev", numbers.compact_revision),
            ("finishedCompactRev", numbers.finished_compact_revision),
        ] {
            if revision >= 0 {
                let key = metastore_revision_model::Revision::new(revision, 0).to_key(false);
                self.put("meta", name.as_bytes(), key.to_vec());
            }
        }
        let applied = collect_row(view, Table::Meta, APPLIED_KEY)?;
        let applied = applied_position::decode(applied.unwrap_or_default()).map_err(|error| {
            EngineError::Storage(format!("the stored applied position is damaged ({error})"))
        })?;
        if let Some(position) = applied.position {
            // openraft counts entries from 0, etcd from 1.
            let index = position.index + 1;
            self.put("meta", b"consistent_index", index.to_be_bytes().to_vec());
            self.put("meta", b"term", position.term.to_be_bytes().to_vec());
        }
        let ids = |is_learner: bool| {
            let members = directory.members.values();
            members
                .filter(move |member| member.is_learner == is_learner)
                .map(|member| member.id)
                .collect()
        };
        let members = StoredConfState {
            voters: ids(false),
            learners: ids(true),
            auto_leave: false,
        };
        let members = serde_json::to_vec(&members).expect("numbers are JSON");
        self.put("meta", b"confState", members);
        let version = directory.storage_version_of_copies().into_bytes();
        self.put("meta", b"storageVersion", version);
        Ok(())
    }

    fn add_auth(&mut self, view: &dyn ReadView) -> Result<(), ExportError> {
        let revision = AUTH_REVISION_FIRST.to_be_bytes().to_vec();
        self.put("auth", b"authRevision", revision);
        for (key, value) in collect(view, Table::Auth)? {
            if key == AUTH_ENABLED_ROW {
                self.put("auth", b"authEnabled", value.to_vec());
            } else if key == AUTH_REVISION_ROW {
                self.put("auth", b"authRevision", value.to_vec());
            } else if let Some(name) = key.strip_prefix(AUTH_USER_PREFIX) {
                self.put("authUsers", name, value.to_vec());
            } else if let Some(name) = key.strip_prefix(AUTH_ROLE_PREFIX) {
                self.put("authRoles", name, value.to_vec());
            }
        }
        Ok(())
    }
}

fn write<S: PageSink>(
    mut builder: BoltBuilder<S>,
    small: &SmallBuckets,
    view: &dyn ReadView,
) -> Result<Layout, ExportError> {
    for (name, rows) in &small.rows {
        builder.bucket(name)?;
        for (key, value) in rows {
            builder.row(key, value)?;
        }
    }
    write_leases(&mut builder, view)?;
    write_history(&mut builder, view)?;
    Ok(builder.finish()?)
}

fn write_leases<S: PageSink>(
    builder: &mut BoltBuilder<S>,
    view: &dyn ReadView,
) -> Result<(), ExportError> {
    builder.bucket("lease")?;
    let mut outcome = Ok(());
    scan_leases(view, &mut |lease| {
        let stored = StoredLease {
            id: lease.id,
            ttl: lease.granted_ttl,
            remaining_ttl: lease.remaining_ttl,
        };
        if outcome.is_ok() {
            outcome = builder.row(&lease.id.to_be_bytes(), &stored.encode_to_vec());
        }
    })?;
    Ok(outcome?)
}

fn write_history<S: PageSink>(
    builder: &mut BoltBuilder<S>,
    view: &dyn ReadView,
) -> Result<(), ExportError> {
    builder.bucket("key")?;
    let mut outcome = Ok(());
    view.scan_revisions(&mut |revision, tombstone, record| {
        outcome = builder.row(&revision.to_key(tombstone), &record.key_value.0);
        match outcome {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    Ok(outcome?)
}

fn collect(view: &dyn ReadView, table: Table) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
    let mut rows = Vec::new();
    view.scan_rows(table, b"", &mut |key, value| {
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

fn collect_row(
    view: &dyn ReadView,
    table: Table,
    wanted: &[u8],
) -> Result<Option<Bytes>, EngineError> {
    let mut found = None;
    view.scan_rows(table, wanted, &mut |key, value| {
        found = (key == wanted).then(|| Bytes::copy_from_slice(value));
        ControlFlow::Break(())
    })?;
    Ok(found)
}
