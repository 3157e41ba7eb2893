//! HashKV, equal to etcd's for an equal history, and the hash of everything.
//!
//! HashKV(R) with compact revision C is the CRC-32C of the word `key`, then of the revision key and
//! the pair of these records, ascending:
//!
//! * a record in (C, R] always,
//! * a record at or below C when it was live at C and nothing at or below **R** superseded it. When
//!   no key at all is live at R, etcd does not apply the second half, and neither do we. For this a key
//!   that R deleted and wrote again, in one transaction, counts as deleted.
//!
//! So a tombstone at or below C never counts, and the hash does not depend on how far the deletion
//! of dead records came.

use std::collections::HashSet;
use std::ops::ControlFlow;

use metastore_revision_model::{RecordError, Revision, RevisionRecord};

use crate::encoding;
use crate::engine::{Engine, EngineError, Table};

/// What etcd's hash begins with: the name of the bucket.
const BUCKET_NAME: &[u8] = b"key";

/// What a hash is made for. It matters only where no key is live any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A call of HashKV.
    Call,
    /// What etcd hashes while it carries out a compaction at the revision: there a key that was deleted
    /// exactly then still counts as one that is kept.
    Compaction,
}

/// HashKV at `revision` with the compact revision `compacted`, of which `finished` is surely
/// carried out. The caller checks afterwards that the compact revision did not change meanwhile.
pub(crate) fn hash_at(
    engine: &dyn Engine,
    revision: i64,
    compacted: i64,
    finished: i64,
    purpose: Purpose,
) -> Result<u32, EngineError> {
    let initial = crc32c::crc32c(BUCKET_NAME);
    if revision < 0 {
        // Nothing is that old, and a negative number would sort last in a revision key.
        return Ok(initial);
    }
    let superseded = superseded(engine, revision, compacted, finished)?;
    let mut filtered = initial;
    let mut unfiltered = initial;
    let mut any_live = superseded.live_after_compaction > 0
        || (purpose == Purpose::Compaction && superseded.ends_with_tombstone);
    let to = Revision::new(compacted.max(0), i64::MAX);
    scan(engine, Revision::NONE, to, |at, tombstone, record| {
        if tombstone || superseded.at_compaction.contains(&at) {
            return Ok(());
        }
        append(&mut unfiltered, at, false, record);
        if !superseded.at_revision.contains(&at) {
            append(&mut filtered, at, false, record);
            any_live = true;
        }
        Ok(())
    })?;
    let mut hash = if any_live { filtered } else { unfiltered };
    let from = Revision::new(compacted.max(0) + 1, 0);
    let to = Revision::new(revision, i64::MAX);
    scan(engine, from, to, |at, tombstone, record| {
        append(&mut hash, at, tombstone, record);
        Ok(())
    })?;
    Ok(hash)
}

/// Hash of everything that clients can change. Equal before and after a restart, and on members
/// that have collected equally much.
pub(crate) fn hash_all(engine: &dyn Engine) -> Result<u32, EngineError> {
    let mut hash = crc32c::crc32c(BUCKET_NAME);
    let to = Revision::new(i64::MAX, i64::MAX);
    scan(engine, Revision::NONE, to, |at, tombstone, record| {
        append(&mut hash, at, tombstone, record);
        Ok(())
    })?;
    for table in [Table::Lease, Table::Auth, Table::Members, Table::Alarms] {
        hash = crc32c::crc32c_append(hash, table.name().as_bytes());
        engine.scan_rows(table, b"", b"", &mut |key, value| {
            hash = crc32c::crc32c_append(hash, key);
            hash = crc32c::crc32c_append(hash, value);
            ControlFlow::Continue(())
        })?;
    }
    Ok(hash)
}

/// The records at or below the compact revision that something later superseded.
#[derive(Default)]
struct Superseded {
    /// By a record at or below the compact revision that may still be deleted.
    at_compaction: HashSet<Revision>,
    /// By a record behind the compact revision.
    at_revision: HashSet<Revision>,
    /// Keys that were written behind the compact revision and count as live at the hashed one.
    live_after_compaction: i64,
    /// The hashed revision deleted a key.
    ends_with_tombstone: bool,
}

fn superseded(
    engine: &dyn Engine,
    revision: i64,
    compacted: i64,
    finished: i64,
) -> Result<Superseded, EngineError> {
    let mut found = Superseded::default();
    let from = Revision::new(finished.max(0), 0);
    let to = Revision::new(revision, i64::MAX);
    scan(engine, from, to, |at, tombstone, record| {
        let previous = record.previous;
        if at.main <= compacted {
            found.at_compaction.insert(previous);
            return Ok(());
        }
        found.ends_with_tombstone |= tombstone && at.main == revision;
        let created = !tombstone && encoding::fields(&record.key_value)?.version == 1;
        // etcd looks no further than a deletion at the revision, even if the key came back in it.
        let came_back = created && previous.main == revision;
        if !tombstone && !came_back {
            found.live_after_compaction += 1;
        }
        if previous.main > compacted {
            // The record before a creation is a tombstone, which was not live.
            found.live_after_compaction -= i64::from(!created);
        } else if !previous.is_none() {
            found.at_revision.insert(previous);
        }
        Ok(())
    })?;
    Ok(found)
}

fn scan(
    engine: &dyn Engine,
    from: Revision,
    to: Revision,
    mut visit: impl FnMut(Revision, bool, &RevisionRecord) -> Result<(), RecordError>,
) -> Result<(), EngineError> {
    let mut failure = None;
    engine.scan_revisions(from, to, &mut |at, tombstone, record| match visit(
        at, tombstone, &record,
    ) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
    })?;
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

fn append(hash: &mut u32, at: Revision, tombstone: bool, record: &RevisionRecord) {
    *hash = crc32c::crc32c_append(*hash, at.to_key(tombstone).as_bytes());
    *hash = crc32c::crc32c_append(*hash, &record.key_value.0);
}
