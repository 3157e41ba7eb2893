//! `snapshot status`.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;

use metastore_backup_file::BoltFile;
use metastore_proto::KeyValue;
use metastore_revision_model::Revision;
use prost::Message;

use super::print::{Column, Format, print};
use super::{EXIT_ERROR, Failure};
use crate::backup::human_bytes::human_bytes;

/// What etcdutl tells of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SnapshotStatus {
    /// CRC-32C of all names, keys and values.
    pub hash: u32,
    /// Main revision of the last record.
    pub revision: i64,
    /// Live keys.
    pub total_keys: usize,
    /// Bytes of the database.
    pub total_bytes: u64,
    /// Version of the database's layout; empty before 3.6.
    pub version: String,
}

/// Prints the status of a snapshot.
pub(super) fn run(path: &Path, format: Format) -> Result<(), Failure> {
    let status = read(path)?;
    print(
        format,
        &[
            Column {
                heading: "hash",
                field: "Hash",
                json: "hash",
                text: format!("{:x}", status.hash),
                value: status.hash.into(),
            },
            Column {
                heading: "revision",
                field: "Revision",
                json: "revision",
                text: status.revision.to_string(),
                value: status.revision.into(),
            },
            Column {
                heading: "total keys",
                field: "Keys",
                json: "totalKey",
                text: status.total_keys.to_string(),
                value: status.total_keys.into(),
            },
            Column {
                heading: "total size",
                field: "Size",
                json: "totalSize",
                text: human_bytes(status.total_bytes),
                value: status.total_bytes.into(),
            },
            Column {
                heading: "version",
                field: "Version",
                json: "version",
                text: status.version.clone(),
                value: status.version.into(),
            },
        ],
    );
    Ok(())
}

/// Checks and reads a snapshot.
pub(super) fn read(path: &Path) -> Result<SnapshotStatus, Failure> {
    let file = BoltFile::open(path)?;
    let integrity = file.check()?;
    if integrity.count > 0 {
        return Err(Failure {
            text: format!(
                "snapshot file integrity check failed. {} errors found.\n{}",
                integrity.count,
                integrity.problems.join("\n")
            ),
            status: EXIT_ERROR,
        });
    }
    let mut status = SnapshotStatus {
        total_bytes: file.database_bytes(),
        version: file
            .row("meta", b"storageVersion")?
            .map(|version| String::from_utf8_lossy(&version).into_owned())
            .unwrap_or_default(),
        ..SnapshotStatus::default()
    };
    let mut keys = HashSet::new();
    for (name, bucket) in file.buckets() {
        status.hash = crc32c::crc32c_append(status.hash, name);
        let is_history = name == b"key";
        let mut problem = None;
        file.scan(bucket, &mut |key, value| {
            status.hash = crc32c::crc32c_append(status.hash, key);
            status.hash = crc32c::crc32c_append(status.hash, value);
            if is_history {
                match count_key(&mut keys, key, value) {
                    Ok(revision) => status.revision = revision,
                    Err(text) => {
                        problem = Some(text);
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if let Some(text) = problem {
            return Err(Failure {
                text,
                status: EXIT_ERROR,
            });
        }
    }
    status.total_keys = keys.len();
    Ok(status)
}

fn count_key(keys: &mut HashSet<Vec<u8>>, key: &[u8], value: &[u8]) -> Result<i64, String> {
    let Some((revision, tombstone)) = Revision::from_key(key) else {
        return Err(format!("cannot parse revision key: {key:02x?}"));
    };
    let pair = KeyValue::decode(value)
        .map_err(|error| format!("cannot unmarshal value, key: {key:02x?} err: {error}"))?;
    match tombstone {
        true => keys.remove(&pair.key[..]),
        false => keys.insert(pair.key.to_vec()),
    };
    Ok(revision.main)
}
