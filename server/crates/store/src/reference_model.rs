//! A naive model of the store, written from etcd's behaviour and not from the executor.
//!
//! It keeps every record in one list and answers by going through all of it. Nothing here is fast
//! and nothing is shared with the executor but the message types, so that the two can only agree
//! by being right. [`check_engine`] runs random commands against an engine and the model.

mod check_engine;
mod random_commands;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use metastore_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use metastore_proto::etcdserverpb::request_op::Request as OpRequest;
use metastore_proto::etcdserverpb::response_op::Response as OpResponse;
use metastore_proto::etcdserverpb::{
    CompactionResponse, Compare, DeleteRangeRequest, DeleteRangeResponse, LeaseCheckpointResponse,
    LeaseGrantResponse, LeaseRevokeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use metastore_proto::internal::Command;
use metastore_proto::internal::command::Request;
use metastore_proto::{EncodedKeyValue, KeyValue};

use crate::response::{CommandResponse, CommandResult};

pub use check_engine::{check_engine, fresh_seed};
pub use random_commands::{RandomCommands, Shape};

/// One change of one key.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelRecord {
    /// Main and sub revision.
    pub revision: (i64, i64),
    /// Whether it is a deletion.
    pub tombstone: bool,
    /// The pair; of a deletion only the key.
    pub pair: KeyValue,
}

/// The whole store as a list.
#[derive(Clone, Debug)]
pub struct ReferenceModel {
    /// What etcd would have in its database after it has carried out every compaction.
    records: Vec<ModelRecord>,
    /// The live keys now.
    live: BTreeMap<Bytes, KeyValue>,
    revision: i64,
    compacted: i64,
    leases: BTreeMap<i64, (i64, i64)>,
}

/// Changes of the running command so far.
struct Changes {
    begin: i64,
    count: i64,
}

impl Changes {
    fn now(&self) -> i64 {
        if self.count > 0 {
            self.begin + 1
        } else {
            self.begin
        }
    }
}

impl Default for ReferenceModel {
    fn default() -> Self {
        Self::new()
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..Default::default()
    })
}

impl ReferenceModel {
    /// An empty store.
    pub fn new() -> Self {
        Self {
            records: Vec::new(),
            live: BTreeMap::new(),
            revision: 1,
            compacted: -1,
            leases: BTreeMap::new(),
        }
    }

    /// The current revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The compact revision; -1: never compacted.
    pub fn compact_revision(&self) -> i64 {
        self.compacted
    }

    /// The leases: id → granted and remaining time.
    pub fn leases(&self) -> &BTreeMap<i64, (i64, i64)> {
        &self.leases
    }

    /// The keys that are attached to a lease.
    pub fn lease_keys(&self, id: i64) -> Vec<Bytes> {
        let attached = self.live.iter().filter(|(_, pair)| pair.lease == id);
        attached.map(|(key, _)| key.clone()).collect()
    }

    /// The live keys now.
    pub fn live(&self) -> &BTreeMap<Bytes, KeyValue> {
        &self.live
    }

    /// The records from a revision on, in order.
    pub fn records_from(&self, revision: i64) -> impl Iterator<Item = &ModelRecord> {
        let found = move |record: &&ModelRecord| record.revision.0 >= revision;
        self.records.iter().filter(found)
    }

    /// What a watcher with `prev_kv` gets with a change at `main`.
    pub fn previous_pair(&self, key: &Bytes, main: i64) -> Option<KeyValue> {
        if main <= self.compacted {
            return None;
        }
        let older = |record: &&ModelRecord| record.revision.0 < main && record.pair.key == *key;
        let found = self.records.iter().rev().find(older)?;
        (!found.tombstone).then(|| found.pair.clone())
    }

    /// Executes a command that the RPC layer would let pass.
    pub fn execute(&mut self, command: &Command, term: u64) -> CommandResult {
        let mut changes = Changes {
            begin: self.revision,
            count: 0,
        };
        let response = match command.request.as_ref().expect("a command is set") {
            Request::Put(put) => {
                self.check_put(put)?;
                CommandResponse::Put(self.put(&mut changes, put))
            }
            Request::DeleteRange(delete) => {
                CommandResponse::DeleteRange(self.delete_range(&mut changes, delete))
            }
            Request::Txn(txn) => {
                let resolved = resolve(&self.live, txn);
                self.check(&resolved)?;
                let mut response = self.run(&mut changes, &resolved);
                response.header = header(changes.now());
                CommandResponse::Txn(response)
            }
            Request::Compaction(request) => {
                self.compact(request.revision)?;
                CommandResponse::Compaction(CompactionResponse {
                    header: header(self.revision),
                })
            }
            Request::LeaseGrant(grant) => {
                if self.leases.contains_key(&grant.id) {
                    return Err(EtcdError::LeaseExist);
                }
                self.leases.insert(grant.id, (grant.ttl, 0));
                CommandResponse::LeaseGrant(LeaseGrantResponse {
                    header: header(self.revision),
                    id: grant.id,
                    ttl: grant.ttl,
                    error: String::new(),
                })
            }
            Request::LeaseRevoke(revoke) => {
                if revoke.expired_in_term != 0 && revoke.expired_in_term != term {
                    return Err(EtcdError::LeaderChanged);
                }
                if self.leases.remove(&revoke.id).is_none() {
                    return Err(EtcdError::LeaseNotFound);
                }
                for key in self.lease_keys(revoke.id) {
                    self.write(&mut changes, key, None);
                }
                CommandResponse::LeaseRevoke(LeaseRevokeResponse {
                    header: header(changes.now()),
                })
            }
            Request::LeaseCheckpoint(request) => {
                for checkpoint in &request.checkpoints {
                    if let Some(lease) = self.leases.get_mut(&checkpoint.id) {
                        lease.1 = checkpoint.remaining_ttl;
                    }
                }
                CommandResponse::LeaseCheckpoint(LeaseCheckpointResponse {
                    header: header(self.revision),
                })
            }
            other => panic!("not a command of the store: {other:?}"),
        };
        self.revision = changes.now();
        Ok(response)
    }

    /// Answers a Range.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, EtcdError> {
        if request.revision > self.revision {
            return Err(EtcdError::FutureRev);
        }
        if request.revision > 0 && request.revision < self.compacted {
            return Err(EtcdError::Compacted);
        }
        Ok(self.range_now(self.revision, request))
    }

    /// Answers a transaction that only reads.
    pub fn read_only_txn(&self, request: &TxnRequest) -> Result<TxnResponse, EtcdError> {
        let mut scratch = self.clone();
        let command = Command {
            request: Some(Request::Txn(request.clone())),
            ..Command::default()
        };
        match scratch.execute(&command, 0)? {
            CommandResponse::Txn(response) => Ok(response),
            other => panic!("a transaction answers {other:?}"),
        }
    }

    /// HashKV as etcd computes it: over what its database holds, with its keep set.
    pub fn hash_kv(&self, revision: i64) -> Result<u32, EtcdError> {
        if revision > 0 && revision < self.compacted {
            return Err(EtcdError::Compacted);
        }
        if revision > self.revision {
            return Err(EtcdError::FutureRev);
        }
        let at = if revision == 0 {
            self.revision
        } else {
            revision
        };
        let mut newest = BTreeMap::new();
        for record in self.records.iter().filter(|r| r.revision.0 <= at) {
            // etcd looks no further than a deletion at the revision, even if the key came back in it.
            let is_deleted_then = newest
                .get(&record.pair.key)
                .is_some_and(|found: &&ModelRecord| found.tombstone && found.revision.0 == at);
            if !is_deleted_then {
                newest.insert(&record.pair.key, record);
            }
        }
        let live = newest.values().filter(|record| !record.tombstone);
        let keep: BTreeSet<(i64, i64)> = live.map(|record| record.revision).collect();
        let mut bytes = b"key".to_vec();
        for record in &self.records {
            let (main, sub) = record.revision;
            let below = main <= self.compacted;
            let kept = keep.contains(&record.revision);
            if main > at
                || below && !keep.is_empty() && !kept
                || main == self.compacted && record.tombstone
            {
                continue;
            }
            bytes.extend_from_slice(&main.to_be_bytes());
            bytes.push(b'_');
            bytes.extend_from_slice(&sub.to_be_bytes());
            if record.tombstone {
                bytes.push(b't');
            }
            bytes.extend_from_slice(&EncodedKeyValue::from(&record.pair).0);
        }
        Ok(crc32c::crc32c(&bytes))
    }

    fn live_at(&self, revision: i64) -> BTreeMap<Bytes, KeyValue> {
        let mut live = BTreeMap::new();
        for record in self.records.iter().filter(|r| r.revision.0 <= revision) {
            match record.tombstone {
                true => live.remove(&record.pair.key),
                false => live.insert(record.pair.key.clone(), record.pair.clone()),
            };
        }
        live
    }

    fn compact(&mut self, revision: i64) -> Result<(), EtcdError> {
        if revision <= self.compacted {
            return Err(EtcdError::Compacted);
        }
        if revision > self.revision {
            return Err(EtcdError::FutureRev);
        }
        self.compacted = revision;
        // The newest record of each key at or below the revision stays, unless it is a deletion
        // from before the revision.
        let mut newest = BTreeMap::new();
        for record in self.records.iter().filter(|r| r.revision.0 <= revision) {
            newest.insert(record.pair.key.clone(), record.revision);
        }
        self.records.retain(|record| {
            let (main, _) = record.revision;
            main > revision
                || newest[&record.pair.key] == record.revision
                    && (!record.tombstone || main == revision)
        });
        Ok(())
    }

    fn check_put(&self, put: &PutRequest) -> Result<(), EtcdError> {
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(EtcdError::LeaseNotFound);
        }
        let needs_previous = put.ignore_value || put.ignore_lease;
        if needs_previous && !self.live.contains_key(&put.key) {
            return Err(EtcdError::KeyNotFound);
        }
        Ok(())
    }

    fn put(&mut self, changes: &mut Changes, put: &PutRequest) -> PutResponse {
        let previous = self.live.get(&put.key).cloned();
        let of_previous = previous.clone().unwrap_or_default();
        let value = match put.ignore_value {
            true => of_previous.value,
            false => put.value.clone(),
        };
        let lease = match put.ignore_lease {
            true => of_previous.lease,
            false => put.lease,
        };
        self.write(changes, put.key.clone(), Some((value, lease)));
        PutResponse {
            header: header(changes.now()),
            prev_kv: previous
                .filter(|_| put.prev_kv)
                .map(|pair| EncodedKeyValue::from(&pair)),
        }
    }

    fn delete_range(
        &mut self,
        changes: &mut Changes,
        delete: &DeleteRangeRequest,
    ) -> DeleteRangeResponse {
        let deleted = in_range(&self.live, &delete.key, &delete.range_end);
        for pair in &deleted {
            self.write(changes, pair.key.clone(), None);
        }
        DeleteRangeResponse {
            header: header(changes.now()),
            deleted: deleted.len() as i64,
            prev_kvs: match delete.prev_kv {
                true => deleted.iter().map(EncodedKeyValue::from).collect(),
                false => Vec::new(),
            },
        }
    }

    fn write(&mut self, changes: &mut Changes, key: Bytes, value: Option<(Bytes, i64)>) {
        let main = changes.begin + 1;
        let sub = changes.count;
        changes.count += 1;
        let tombstone = value.is_none();
        let pair = match value {
            Some((value, lease)) => {
                let previous = self.live.get(&key);
                let pair = KeyValue {
                    key: key.clone(),
                    create_revision: previous.map_or(main, |pair| pair.create_revision),
                    mod_revision: main,
                    version: previous.map_or(0, |pair| pair.version) + 1,
                    value,
                    lease,
                };
                self.live.insert(key, pair.clone());
                pair
            }
            None => {
                self.live.remove(&key);
                KeyValue {
                    key,
                    ..KeyValue::default()
                }
            }
        };
        self.records.push(ModelRecord {
            revision: (main, sub),
            tombstone,
            pair,
        });
    }

    fn range_now(&self, current: i64, request: &RangeRequest) -> RangeResponse {
        let live = match request.revision {
            ..=0 => self.live.clone(),
            named if named == current => self.live.clone(),
            named => self.live_at(named),
        };
        let mut pairs = in_range(&live, &request.key, &request.range_end);
        let count = pairs.len() as i64;
        let mut response = RangeResponse {
            header: header(current),
            kvs: Vec::new(),
            more: false,
            count,
        };
        if request.count_only {
            return response;
        }
        let by_value = request.sort_target == SortTarget::Value as i32;
        if request.keys_only && !by_value {
            for pair in &mut pairs {
                pair.lease = 0;
                pair.value = Bytes::new();
            }
        }
        let ascending = request.sort_order == SortOrder::Ascend as i32;
        let unordered = request.sort_order == SortOrder::None as i32;
        let by_key = request.sort_target == SortTarget::Key as i32;
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        let fetches_all = !(unordered || by_key && ascending) || filters != [0; 4];
        if request.limit > 0 && !fetches_all {
            pairs.truncate(request.limit as usize + 1);
        }
        pairs.retain(|pair| {
            let [min_mod, max_mod, min_create, max_create] = filters;
            (max_mod == 0 || pair.mod_revision <= max_mod)
                && (min_mod == 0 || pair.mod_revision >= min_mod)
                && (max_create == 0 || pair.create_revision <= max_create)
                && (min_create == 0 || pair.create_revision >= min_create)
        });
        if !by_key || !unordered {
            let descending = request.sort_order == SortOrder::Descend as i32;
            pairs.sort_by(|a, b| {
                let order = match request.sort_target {
                    0 => a.key.cmp(&b.key),
                    1 => a.version.cmp(&b.version),
                    2 => a.create_revision.cmp(&b.create_revision),
                    3 => a.mod_revision.cmp(&b.mod_revision),
                    _ => a.value.cmp(&b.value),
                };
                if descending { order.reverse() } else { order }
            });
        }
        if request.limit > 0 && pairs.len() > request.limit as usize {
            pairs.truncate(request.limit as usize);
            response.more = true;
        }
        for pair in &mut pairs {
            if request.keys_only {
                pair.value = Bytes::new();
            }
            response.kvs.push(EncodedKeyValue::from(&*pair));
        }
        response
    }

    fn check(&self, txn: &ResolvedTxn) -> Result<(), EtcdError> {
        for op in &txn.ops {
            match op {
                ResolvedOp::Range(range) if range.revision != 0 => {
                    if range.revision > self.revision {
                        return Err(EtcdError::FutureRev);
                    }
                    if range.revision < self.compacted {
                        return Err(EtcdError::Compacted);
                    }
                }
                ResolvedOp::Put(put) => self.check_put(put)?,
                ResolvedOp::Txn(nested) => self.check(nested)?,
                ResolvedOp::Range(_) | ResolvedOp::Delete(_) => {}
            }
        }
        Ok(())
    }

    fn run(&mut self, changes: &mut Changes, txn: &ResolvedTxn) -> TxnResponse {
        let mut responses = Vec::new();
        for op in &txn.ops {
            let response = match op {
                ResolvedOp::Range(range) => {
                    OpResponse::ResponseRange(self.range_now(changes.now(), range))
                }
                ResolvedOp::Put(put) => OpResponse::ResponsePut(self.put(changes, put)),
                ResolvedOp::Delete(delete) => {
                    OpResponse::ResponseDeleteRange(self.delete_range(changes, delete))
                }
                ResolvedOp::Txn(nested) => OpResponse::ResponseTxn(self.run(changes, nested)),
            };
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        TxnResponse {
            header: Some(ResponseHeader::default()),
            succeeded: txn.succeeded,
            responses,
        }
    }
}

/// A transaction whose branches are chosen.
struct ResolvedTxn {
    succeeded: bool,
    ops: Vec<ResolvedOp>,
}

enum ResolvedOp {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(ResolvedTxn),
}

fn resolve(before: &BTreeMap<Bytes, KeyValue>, txn: &TxnRequest) -> ResolvedTxn {
    let succeeded = txn.compare.iter().all(|compare| holds(before, compare));
    let ops = if succeeded {
        &txn.success
    } else {
        &txn.failure
    };
    let resolved = |op: &RequestOp| match op.request.clone().expect("an operation is set") {
        OpRequest::RequestRange(range) => ResolvedOp::Range(range),
        OpRequest::RequestPut(put) => ResolvedOp::Put(put),
        OpRequest::RequestDeleteRange(delete) => ResolvedOp::Delete(delete),
        OpRequest::RequestTxn(nested) => ResolvedOp::Txn(resolve(before, &nested)),
    };
    ResolvedTxn {
        succeeded,
        ops: ops.iter().map(resolved).collect(),
    }
}

fn holds(before: &BTreeMap<Bytes, KeyValue>, compare: &Compare) -> bool {
    let pairs = in_range(before, &compare.key, &compare.range_end);
    if pairs.is_empty() {
        return compare.target != CompareTarget::Value as i32
            && pair_holds(&KeyValue::default(), compare);
    }
    pairs.iter().all(|pair| pair_holds(pair, compare))
}

fn pair_holds(pair: &KeyValue, compare: &Compare) -> bool {
    let union = compare.target_union.clone();
    let order = match (compare.target, union) {
        (0, Some(TargetUnion::Version(wanted))) => pair.version.cmp(&wanted),
        (1, Some(TargetUnion::CreateRevision(wanted))) => pair.create_revision.cmp(&wanted),
        (2, Some(TargetUnion::ModRevision(wanted))) => pair.mod_revision.cmp(&wanted),
        (3, Some(TargetUnion::Value(wanted))) => pair.value.cmp(&wanted),
        (4, Some(TargetUnion::Lease(wanted))) => pair.lease.cmp(&wanted),
        (0, _) => pair.version.cmp(&0),
        (1, _) => pair.create_revision.cmp(&0),
        (2, _) => pair.mod_revision.cmp(&0),
        (3, _) => pair.value.cmp(&Bytes::new()),
        (4, _) => pair.lease.cmp(&0),
        _ => std::cmp::Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Err(_) => true,
    }
}

fn in_range(live: &BTreeMap<Bytes, KeyValue>, key: &Bytes, range_end: &Bytes) -> Vec<KeyValue> {
    let inside = |candidate: &Bytes| match &range_end[..] {
        b"" => candidate == key,
        b"\0" => candidate >= key,
        _ => candidate >= key && candidate < range_end,
    };
    let found = live.iter().filter(|(candidate, _)| inside(candidate));
    found.map(|(_, pair)| pair.clone()).collect()
}
