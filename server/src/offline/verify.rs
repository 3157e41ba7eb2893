//! `verify`: everything that can be wrong with a file or directory and can be seen from it alone.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use metastore_backup_file::BoltFile;
use metastore_backup_file::digest::{self, DigestCheck};
use metastore_proto::etcdserverpb::RangeRequest;
use metastore_proto::internal::{Command, MembershipCommand};
use metastore_proto::{KeyValue, authpb, peer};
use metastore_revision_model::{KeyRange, Revision, RevisionRecord};
use metastore_store::engine::{Direction, RowParts, Table};
use prost::Message;

use super::data_directory::OpenDirectory;
use super::{EXIT_ERROR, Failure, hash_kv, status};
use crate::backup::etcd_directory::read_members;
use crate::backup::etcd_messages::StoredLease;

/// Problems that are printed; the rest is counted.
const PROBLEMS_SHOWN_MAX: usize = 50;
/// Records whose predecessors are looked up together.
const LOOKED_UP_TOGETHER: usize = 1024;
/// Bytes of the log that are read together.
const LOG_BYTES: usize = 4 << 20;

/// What was found.
#[derive(Default)]
struct Findings {
    checked: Vec<String>,
    problems: Vec<String>,
    count: usize,
}

impl Findings {
    fn problem(&mut self, text: String) {
        self.count += 1;
        if self.problems.len() < PROBLEMS_SHOWN_MAX {
            self.problems.push(text);
        }
    }

    fn report(self) -> Result<(), Failure> {
        for line in &self.checked {
            println!("{line}");
        }
        if self.count == 0 {
            println!("ok");
            return Ok(());
        }
        Err(Failure {
            text: format!(
                "{} problems found\n{}",
                self.count,
                self.problems.join("\n")
            ),
            status: EXIT_ERROR,
        })
    }
}

/// Verifies a file or a data directory.
pub(super) fn run(path: &Path, wal_directory: Option<&Path>) -> Result<(), Failure> {
    let mut findings = Findings::default();
    if path.is_dir() {
        let directory = OpenDirectory::open(path, wal_directory)?;
        check_log(&directory, &mut findings)?;
        check_store(&directory, &mut findings)?;
    } else {
        check_file(path, &mut findings)?;
    }
    findings.report()
}

/// What is wrong with a data directory.
#[cfg(test)]
pub(super) fn problems_of(path: &Path) -> Result<Vec<String>, Failure> {
    let mut findings = Findings::default();
    let directory = OpenDirectory::open(path, None)?;
    check_log(&directory, &mut findings)?;
    check_store(&directory, &mut findings)?;
    Ok(findings.problems)
}

fn check_file(path: &Path, findings: &mut Findings) -> Result<(), Failure> {
    match digest::check(path)? {
        DigestCheck::Right => findings.checked.push("digest: right".to_owned()),
        DigestCheck::Absent => findings
            .checked
            .push("digest: none (a database, not a snapshot)".to_owned()),
        DigestCheck::Wrong { .. } => findings.problem("the digest is wrong".to_owned()),
    }
    let status = status::read(path)?;
    findings.checked.push(format!(
        "pages: {} bytes in order; hash {:x}",
        status.total_bytes, status.hash
    ));
    let file = BoltFile::open(path)?;
    let mut records = 0u64;
    hash_kv::scan(&file, &mut |at, tombstone, value| {
        records += 1;
        let pair = KeyValue::decode(value)?;
        if !tombstone && !value.is_empty() && pair.mod_revision != at.main {
            findings.problem(format!(
                "the record of revision {at} says that it is of revision {}",
                pair.mod_revision
            ));
        }
        Ok(())
    })?;
    findings.checked.push(format!(
        "history: {records} records up to revision {}",
        status.revision
    ));
    let members = read_members(&file)?;
    let leases = file.rows("lease")?;
    for (_, value) in &leases {
        if let Err(error) = StoredLease::decode(&value[..]) {
            findings.problem(format!("a lease is damaged ({error})"));
        }
    }
    let (users, roles) = (file.rows("authUsers")?, file.rows("authRoles")?);
    for (name, value) in &users {
        if let Err(error) = authpb::User::decode(&value[..]) {
            findings.problem(format!("user {} is damaged ({error})", name.escape_ascii()));
        }
    }
    for (name, value) in &roles {
        if let Err(error) = authpb::Role::decode(&value[..]) {
            findings.problem(format!("role {} is damaged ({error})", name.escape_ascii()));
        }
    }
    findings.checked.push(format!(
        "{} members, {} leases, {} users, {} roles",
        members.members.len(),
        leases.len(),
        users.len(),
        roles.len()
    ));
    Ok(())
}

/// Opening the log has checked its checksums; this reads what is in it.
fn check_log(directory: &OpenDirectory, findings: &mut Findings) -> Result<(), Failure> {
    let state = directory.log.state();
    let mut next = state.purged.map_or(0, |purged| purged.index + 1);
    let end = state.last.map_or(0, |last| last.index + 1);
    let first = next;
    let mut term = state.purged.map_or(0, |purged| purged.term);
    while next < end {
        let entries = directory.log.read(next, end, LOG_BYTES)?;
        for entry in &entries {
            if entry.term < term {
                findings.problem(format!(
                    "entry {} of the log has term {}, the one before it {term}",
                    entry.index, entry.term
                ));
            }
            term = entry.term;
            if let Err(error) = decode_entry(&entry.payload) {
                findings.problem(format!(
                    "entry {} of the log cannot be decoded ({error})",
                    entry.index
                ));
            }
        }
        next = entries.last().map_or(end, |entry| entry.index + 1);
    }
    let applied = directory
        .applied
        .position
        .map_or(0, |position| position.index + 1);
    if applied > end || applied < first {
        findings.problem(format!(
            "the store has applied {applied} entries, the log holds those from {first} to {end}"
        ));
    }
    findings.checked.push(format!(
        "log: entries {first} to {end}, {} of them not yet in the store",
        directory.unapplied()
    ));
    Ok(())
}

fn decode_entry(payload: &Bytes) -> Result<(), prost::DecodeError> {
    let payload = peer::EntryPayload::decode(payload.clone())?;
    match (payload.command, payload.membership) {
        (Some(command), None) => Command::decode(command).map(drop),
        (Some(command), Some(_)) => MembershipCommand::decode(command).map(drop),
        (None, _) => Ok(()),
    }
}

fn check_store(directory: &OpenDirectory, findings: &mut Findings) -> Result<(), Failure> {
    check_history(directory, findings)?;
    let live = check_latest(directory, findings)?;
    check_counts(directory, live, findings)?;
    check_attachments(directory, findings)
}

/// Every record is a pair of its revision, and its predecessor is there or compacted.
fn check_history(directory: &OpenDirectory, findings: &mut Findings) -> Result<(), Failure> {
    let engine = directory.reader.engine();
    let compacted = directory.reader.compact_revision();
    let mut records = 0u64;
    let mut waiting: Vec<(Revision, Revision)> = Vec::new();
    let end = Revision::new(i64::MAX, i64::MAX);
    let mut outcome = Ok(());
    let look_up = |waiting: &mut Vec<(Revision, Revision)>, findings: &mut Findings| {
        let wanted: Vec<Revision> = waiting.iter().map(|(_, previous)| *previous).collect();
        let found = engine.multi_get_revisions(&wanted)?;
        for ((at, previous), found) in waiting.drain(..).zip(found) {
            if found.is_none() && previous.main > compacted {
                findings.problem(format!(
                    "the record of revision {at} names revision {previous} before it, which is missing"
                ));
            }
        }
        Ok::<(), metastore_store::EngineError>(())
    };
    engine.scan_revisions(Revision::NONE, end, &mut |at, tombstone, record| {
        records += 1;
        check_record(at, tombstone, &record, findings);
        if !record.previous.is_none() {
            if record.previous >= at {
                findings.problem(format!(
                    "the record of revision {at} names the later revision {} before it",
                    record.previous
                ));
            }
            waiting.push((at, record.previous));
        }
        if waiting.len() == LOOKED_UP_TOGETHER {
            outcome = look_up(&mut waiting, findings);
        }
        match outcome {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    outcome?;
    look_up(&mut waiting, findings)?;
    findings.checked.push(format!(
        "history: {records} records up to revision {}, compacted to {compacted}",
        directory.reader.revision()
    ));
    Ok(())
}

fn check_record(at: Revision, tombstone: bool, record: &RevisionRecord, findings: &mut Findings) {
    match KeyValue::decode(&record.key_value.0[..]) {
        Err(error) => {
            findings.problem(format!("the record of revision {at} is damaged ({error})"));
        }
        Ok(pair) if !tombstone && !pair.key.is_empty() && pair.mod_revision != at.main => {
            findings.problem(format!(
                "the record of revision {at} says that it is of revision {}",
                pair.mod_revision
            ));
        }
        Ok(_) => {}
    }
}

/// Every newest row is the newest record of its key. Returns the number of live keys.
fn check_latest(directory: &OpenDirectory, findings: &mut Findings) -> Result<i64, Failure> {
    let engine = directory.reader.engine();
    let compacted = directory.reader.compact_revision();
    let mut live = 0;
    let mut outcome = Ok(());
    engine.scan_latest(
        &KeyRange::all(),
        Direction::Forward,
        RowParts::Metadata,
        &mut |key, row| {
            live += i64::from(!row.tombstone);
            let found = match engine.get_revision(row.revision) {
                Ok(found) => found,
                Err(error) => {
                    outcome = Err(error);
                    return ControlFlow::Break(());
                }
            };
            let shown = key.escape_ascii();
            match found {
                None if row.tombstone && row.revision.main <= compacted => {}
                None => findings.problem(format!(
                    "key {shown} was last changed at revision {}, whose record is missing",
                    row.revision
                )),
                Some((tombstone, record)) => {
                    let pair = KeyValue::decode(&record.key_value.0[..]).unwrap_or_default();
                    if pair.key != key || tombstone != row.tombstone || pair.version != row.version
                    {
                        findings.problem(format!(
                            "key {shown} and the record of revision {} contradict each other",
                            row.revision
                        ));
                    }
                }
            }
            ControlFlow::Continue(())
        },
    )?;
    outcome?;
    findings.checked.push(format!("keys: {live} live"));
    Ok(live)
}

fn check_counts(
    directory: &OpenDirectory,
    live: i64,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let all = RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        count_only: true,
        ..RangeRequest::default()
    };
    let counted = directory.reader.range(&all)?.count;
    if counted != live {
        findings.problem(format!(
            "the counted blocks say {counted} keys, there are {live}"
        ));
    }
    Ok(())
}

/// The keys of a lease are those whose newest row names it.
fn check_attachments(directory: &OpenDirectory, findings: &mut Findings) -> Result<(), Failure> {
    let engine = directory.reader.engine();
    let leases: BTreeSet<i64> = directory
        .reader
        .leases()?
        .into_iter()
        .map(|lease| lease.id)
        .collect();
    let mut attached = 0u64;
    let mut outcome = Ok(());
    engine.scan_rows(Table::LeaseKeys, b"", b"", &mut |row, _| {
        attached += 1;
        let Some((id, key)) = row.split_first_chunk::<8>() else {
            findings.problem("a row of an attached key is too short".to_owned());
            return ControlFlow::Continue(());
        };
        let id = i64::from_be_bytes(*id);
        match engine.get_latest(key, RowParts::Metadata) {
            Ok(Some(latest)) if !latest.tombstone && latest.lease == id => {}
            Ok(_) => findings.problem(format!(
                "lease {id:016x} holds key {}, which does not name it",
                key.escape_ascii()
            )),
            Err(error) => {
                outcome = Err(error);
                return ControlFlow::Break(());
            }
        }
        if !leases.contains(&id) {
            findings.problem(format!(
                "keys are attached to lease {id:016x}, which is missing"
            ));
        }
        ControlFlow::Continue(())
    })?;
    outcome?;
    findings
        .checked
        .push(format!("leases: {} with {attached} keys", leases.len()));
    Ok(())
}
