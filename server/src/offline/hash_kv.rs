//! `hashkv`.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

use metastore_backup_file::BoltFile;
use metastore_proto::KeyValue;
use metastore_revision_model::Revision;
use prost::Message;

use super::data_directory::OpenDirectory;
use super::print::{Column, Format, print};
use super::{EXIT_ERROR, Failure};

/// What the hash begins with: the name of the bucket.
const BUCKET: &str = "key";

/// A hash and the revisions that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HashedHistory {
    pub hash: u32,
    pub revision: i64,
    pub compact_revision: i64,
}

/// Prints the hash of a file or a data directory.
pub(super) fn run(path: &Path, revision: i64, format: Format) -> Result<(), Failure> {
    let hashed = match path.is_dir() {
        true => of_directory(path, revision)?,
        false => of_file(&BoltFile::open(path)?, revision)?,
    };
    print(
        format,
        &[
            Column {
                heading: "hash",
                field: "Hash",
                json: "hash",
                text: hashed.hash.to_string(),
                value: hashed.hash.into(),
            },
            Column {
                heading: "hash revision",
                field: "Hash revision",
                json: "hashRevision",
                text: hashed.revision.to_string(),
                value: hashed.revision.into(),
            },
            Column {
                heading: "compact revision",
                field: "Compact revision",
                json: "compactRevision",
                text: hashed.compact_revision.to_string(),
                value: hashed.compact_revision.into(),
            },
        ],
    );
    Ok(())
}

fn of_directory(path: &Path, revision: i64) -> Result<HashedHistory, Failure> {
    let directory = OpenDirectory::open(path, None)?;
    directory.warn_about_unapplied();
    let hash = directory.reader.hash_kv(revision)?;
    Ok(HashedHistory {
        hash: hash.hash,
        revision: hash.hash_revision,
        compact_revision: hash.compact_revision,
    })
}

/// The newest record of a key at the compact revision and at the hashed one.
#[derive(Clone, Copy, Default)]
struct Newest {
    at_compaction: Option<(Revision, bool)>,
    at_revision: Option<(Revision, bool)>,
}

/// The same hash as a member gives: see `server/crates/store/src/hash.rs`. Needs memory for the keys.
pub(super) fn of_file(file: &BoltFile, wanted: i64) -> Result<HashedHistory, Failure> {
    let refused = |text: &str| Failure {
        text: text.to_owned(),
        status: EXIT_ERROR,
    };
    let compact_revision = compact_revision(file)?;
    let mut newest: HashMap<Vec<u8>, Newest> = HashMap::new();
    let mut current = compact_revision.max(1);
    scan(file, &mut |at, tombstone, value| {
        current = current.max(at.main);
        if wanted != 0 && at.main > wanted {
            return Ok(());
        }
        let pair = KeyValue::decode(value)?;
        let newest = newest.entry(pair.key.to_vec()).or_default();
        if at.main <= compact_revision {
            newest.at_compaction = Some((at, tombstone));
        }
        newest.at_revision = Some((at, tombstone));
        Ok(())
    })?;
    if wanted > current {
        return Err(refused("mvcc: required revision is a future revision"));
    }
    if wanted > 0 && wanted < compact_revision {
        return Err(refused("mvcc: required revision has been compacted"));
    }
    let revision = match wanted {
        0 => current,
        wanted => wanted,
    };
    let any_live = newest
        .values()
        .any(|newest| newest.at_revision.is_some_and(|(_, tombstone)| !tombstone));
    let mut hash = crc32c::crc32c(BUCKET.as_bytes());
    scan(file, &mut |at, tombstone, value| {
        if at.main > revision {
            return Ok(());
        }
        if at.main <= compact_revision {
            let key = KeyValue::decode(value)?.key;
            let newest = newest.get(&key[..]).copied().unwrap_or_default();
            let kept = match any_live {
                true => newest.at_revision,
                false => newest.at_compaction,
            };
            if kept != Some((at, false)) {
                return Ok(());
            }
        }
        hash = crc32c::crc32c_append(hash, &at.to_key(tombstone));
        hash = crc32c::crc32c_append(hash, value);
        Ok(())
    })?;
    Ok(HashedHistory {
        hash,
        revision,
        compact_revision,
    })
}

/// The compact revision of a file; -1: never compacted.
pub(super) fn compact_revision(file: &BoltFile) -> Result<i64, Failure> {
    let mut compacted = -1;
    for name in ["scheduledCompactRev", "finishedCompactRev"] {
        let stored = file.row("meta", name.as_bytes())?;
        if let Some((revision, _)) = stored.and_then(|stored| Revision::from_key(&stored)) {
            compacted = compacted.max(revision.main);
        }
    }
    Ok(compacted)
}

/// Visitor of the records of a file.
type RecordVisitor<'a> = dyn FnMut(Revision, bool, &[u8]) -> Result<(), prost::DecodeError> + 'a;

/// Visits the records of a file.
pub(super) fn scan(file: &BoltFile, visit: &mut RecordVisitor<'_>) -> Result<(), Failure> {
    let Some(bucket) = file.bucket(BUCKET) else {
        return Err(Failure {
            text: format!("{} has no bucket `{BUCKET}`", file.path().display()),
            status: EXIT_ERROR,
        });
    };
    let mut problem = None;
    file.scan(bucket, &mut |key, value| {
        problem = match Revision::from_key(key) {
            None => Some(format!("{key:02x?} is no revision")),
            Some((at, tombstone)) => visit(at, tombstone, value)
                .err()
                .map(|error| format!("the record of revision {at} is damaged ({error})")),
        };
        Ok(match problem {
            None => ControlFlow::Continue(()),
            Some(_) => ControlFlow::Break(()),
        })
    })?;
    match problem {
        None => Ok(()),
        Some(text) => Err(Failure {
            text,
            status: EXIT_ERROR,
        }),
    }
}
