//! A data directory from which etcd starts, made from a snapshot.
//!
//! As `etcdutl snapshot restore`: the database with other members, a log with one change of the
//! members for each, and etcd's snapshot file in front of it.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;

use metastore_backup_file::etcd_log::NewEtcdLog;
use metastore_backup_file::{BoltBuilder, BoltFile, BuildError, Layout, PageSink};
use metastore_revision_model::Revision;
use serde_json::{Value, json};

use super::etcd_messages::{StoredConfState, StoredMember, member_key};
use super::import::{ImportError, last_revision};

/// Events of etcd's version 2 that a member remembers; its reader wants a place for each.
const EVENT_HISTORY_PLACES: usize = 1000;

/// Who the member is.
#[derive(Clone, Debug)]
pub struct EtcdOutput {
    /// The member.
    pub member_id: u64,
    /// The cluster.
    pub cluster_id: u64,
    /// All members, sorted by id.
    pub members: Vec<StoredMember>,
    /// By how much the revision is raised; the new one is compacted then. 0: it is not.
    pub revision_bump: i64,
}

impl EtcdOutput {
    /// Writes the directory: the database into `snapshot_directory`, the log into `log_directory`.
    /// Both exist and are empty.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn write(
        &self,
        database: &BoltFile,
        snapshot_directory: &Path,
        log_directory: &Path,
    ) -> Result<(), ImportError> {
        let path = snapshot_directory.join("db");
        self.write_database(database, &path)?;
        let log = NewEtcdLog {
            member_id: self.member_id,
            cluster_id: self.cluster_id,
            members: self
                .members
                .iter()
                .map(|member| (member.id, to_json(member)))
                .collect(),
            version_2_store: self.version_2_store(),
        };
        log.write(log_directory, snapshot_directory)?;
        Ok(())
    }

    fn write_database(&self, database: &BoltFile, path: &Path) -> Result<(), ImportError> {
        let failed = |source| ImportError::Io {
            verb: "write",
            path: path.to_owned(),
            source,
        };
        let bumped = match self.revision_bump {
            0 => None,
            bump => Some(Revision::new(last_revision(database)? + bump, 0)),
        };
        let layout = self.fill(BoltBuilder::measure(), database, bumped)?;
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(failed)?;
        let mut out = BufWriter::new(file);
        let sink = |pages: &[u8]| out.write_all(pages);
        let builder = BoltBuilder::write(layout, sink).map_err(build_failed)?;
        self.fill(builder, database, bumped)?;
        out.flush().map_err(failed)?;
        out.get_ref().sync_all().map_err(failed)
    }

    fn fill<S: PageSink>(
        &self,
        mut builder: BoltBuilder<S>,
        database: &BoltFile,
        bumped: Option<Revision>,
    ) -> Result<Layout, ImportError> {
        for (name, bucket) in database.buckets() {
            let name = String::from_utf8_lossy(name);
            builder.bucket(&name).map_err(build_failed)?;
            match &name[..] {
                "members" => self.fill_members(&mut builder)?,
                // As etcdutl does it: the restored cluster has removed nobody.
                "members_removed" => {}
                "meta" => self.fill_meta(&mut builder, database, bumped)?,
                _ => {
                    let mut outcome = Ok(());
                    database.scan(bucket, &mut |key, value| {
                        outcome = builder.row(key, value);
                        Ok(match outcome {
                            Ok(()) => ControlFlow::Continue(()),
                            Err(_) => ControlFlow::Break(()),
                        })
                    })?;
                    outcome.map_err(build_failed)?;
                }
            }
            if let ("key", Some(revision)) = (&name[..], bumped) {
                let row = builder.row(&revision.to_key(false), &[]);
                row.map_err(build_failed)?;
            }
        }
        builder.finish().map_err(build_failed)
    }

    fn fill_members<S: PageSink>(&self, builder: &mut BoltBuilder<S>) -> Result<(), ImportError> {
        let mut rows: Vec<(String, Vec<u8>)> = self
            .members
            .iter()
            .map(|member| (member_key(member.id), to_json(member)))
            .collect();
        rows.sort();
        for (key, value) in rows {
            builder.row(key.as_bytes(), &value).map_err(build_failed)?;
        }
        Ok(())
    }

    fn fill_meta<S: PageSink>(
        &self,
        builder: &mut BoltBuilder<S>,
        database: &BoltFile,
        bumped: Option<Revision>,
    ) -> Result<(), ImportError> {
        let mut rows: std::collections::BTreeMap<Vec<u8>, Vec<u8>> =
            database.rows("meta")?.into_iter().collect();
        let voters = StoredConfState {
            voters: self.members.iter().map(|member| member.id).collect(),
            ..StoredConfState::default()
        };
        let index = self.members.len() as u64;
        rows.insert(b"confState".to_vec(), to_json(&voters));
        rows.insert(b"consistent_index".to_vec(), index.to_be_bytes().to_vec());
        rows.insert(b"term".to_vec(), 1u64.to_be_bytes().to_vec());
        if let Some(revision) = bumped {
            let key = revision.to_key(false).to_vec();
            rows.insert(b"scheduledCompactRev".to_vec(), key);
        }
        for (key, value) in rows {
            builder.row(&key, &value).map_err(build_failed)?;
        }
        Ok(())
    }

    /// The members in the form of etcd's version 2, which its snapshot files still hold.
    fn version_2_store(&self) -> Vec<u8> {
        let node = |path: &str, value: String, children: Value| {
            json!({
                "Path": path,
                "CreatedIndex": 0,
                "ModifiedIndex": 0,
                "ExpireTime": "0001-01-01T00:00:00Z",
                "Value": value,
                "Children": children,
            })
        };
        let mut members = serde_json::Map::new();
        for member in &self.members {
            let id = member_key(member.id);
            let path = format!("/0/members/{id}");
            let attributes = json!({ "peerURLs": member.peer_urls }).to_string();
            let attributes = node(&format!("{path}/raftAttributes"), attributes, Value::Null);
            let children = json!({ "raftAttributes": attributes });
            members.insert(id, node(&path, String::new(), children));
        }
        let members = node("/0/members", String::new(), Value::Object(members));
        let children = json!({
            "0": node("/0", String::new(), json!({ "members": members })),
            "1": node("/1", String::new(), json!({})),
        });
        let queue = json!({
            "Events": vec![Value::Null; EVENT_HISTORY_PLACES],
            "Size": 0,
            "Front": 0,
            "Back": 0,
            "Capacity": EVENT_HISTORY_PLACES,
        });
        let store = json!({
            "Root": node("/", String::new(), children),
            "WatcherHub": {
                "EventHistory": { "Queue": queue, "StartIndex": 0, "LastIndex": 0 },
            },
            "CurrentIndex": 0,
            "Stats": {},
            "CurrentVersion": 2,
        });
        to_json(&store)
    }
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers are JSON")
}

fn build_failed(error: BuildError) -> ImportError {
    ImportError::Refused(format!("cannot build the database: {error}"))
}

/// Makes a directory that must not exist or be empty, durably.
///
/// # Errors
/// [`ImportError::Io`].
pub fn make_directory(path: &Path) -> Result<(), ImportError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => Ok(()),
        })
        .map_err(|source| ImportError::Io {
            verb: "create",
            path: path.to_owned(),
            source,
        })
}
