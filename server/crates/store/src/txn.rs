//! Transactions: compare everything first, check the chosen path, then execute it.
//!
//! All compares, those of nested transactions too, see the state before the transaction. Then the
//! operations on the chosen path are checked against that state, so that execution cannot fail
//! half-way. Only then something is written, at one revision.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use metastore_proto::etcdserverpb::request_op::Request;
use metastore_proto::etcdserverpb::response_op::Response;
use metastore_proto::etcdserverpb::{
    Compare, RangeRequest, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use metastore_revision_model::KeyRange;

use crate::applier::{Applier, Write, branch, header};
use crate::engine::{Direction, EngineError};
use crate::response::{CommandResponse, CommandResult};
use crate::view::{LiveKey, ScanError, View, Want, scan_live};

/// Which branch each transaction takes, the outer one before its nested ones, in their order.
pub(crate) type Path = Vec<bool>;

/// The state that compares look at.
pub(crate) trait CompareState {
    /// A compare reads now: for the metrics.
    fn count_read(&mut self);

    /// One key.
    fn point(&mut self, key: &[u8], want: Want) -> Result<Option<LiveKey>, ScanError>;

    /// Visits the keys of a range.
    fn scan(
        &mut self,
        range: &KeyRange,
        want: Want,
        visit: &mut dyn FnMut(LiveKey) -> ControlFlow<()>,
    ) -> Result<(), ScanError>;
}

/// Evaluates all compares on the way that they themselves choose.
pub(crate) fn choose_path(
    state: &mut impl CompareState,
    txn: &TxnRequest,
    path: &mut Path,
) -> Result<(), ScanError> {
    let mut succeeded = true;
    for compare in &txn.compare {
        if !holds(state, compare)? {
            succeeded = false;
            break;
        }
    }
    path.push(succeeded);
    for op in branch(txn, succeeded) {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            choose_path(state, nested, path)?;
        }
    }
    Ok(())
}

/// Whether a read at the revision is possible inside a transaction. Unlike outside, a negative
/// revision is an old one, as in etcd.
pub(crate) fn check_range(
    request: &RangeRequest,
    current: i64,
    compacted: i64,
) -> Result<(), EtcdError> {
    match request.revision {
        0 => Ok(()),
        revision if revision > current => Err(EtcdError::FutureRev),
        revision if revision < compacted => Err(EtcdError::Compacted),
        _ => Ok(()),
    }
}

impl Applier {
    pub(crate) fn execute_txn(&mut self, txn: &TxnRequest) -> Result<CommandResult, EngineError> {
        let mut path = Path::new();
        choose_path(self, txn, &mut path).map_err(ScanError::into_engine_error)?;
        let checked = self.check_txn(txn, &mut path.iter())?;
        // Compares and checks are a reading transaction of their own, as in etcd.
        self.tally.finish_command();
        if let Err(error) = checked {
            return Ok(Err(error));
        }
        let mut write = self.begin();
        let mut response = self.run_txn(&mut write, txn, &mut path.iter())?;
        response.header = header(self.finish(write));
        Ok(Ok(CommandResponse::Txn(response)))
    }

    fn check_txn(
        &mut self,
        txn: &TxnRequest,
        path: &mut std::slice::Iter<'_, bool>,
    ) -> Result<Result<(), EtcdError>, EngineError> {
        for op in branch(txn, next_branch(path)) {
            let checked = match &op.request {
                Some(Request::RequestRange(range)) => {
                    check_range(range, self.revision(), self.compact_revision())
                }
                Some(Request::RequestPut(put)) => self.check_put(put)?,
                Some(Request::RequestTxn(nested)) => self.check_txn(nested, path)?,
                Some(Request::RequestDeleteRange(_)) | None => Ok(()),
            };
            if checked.is_err() {
                return Ok(checked);
            }
        }
        Ok(Ok(()))
    }

    fn run_txn(
        &mut self,
        write: &mut Write,
        txn: &TxnRequest,
        path: &mut std::slice::Iter<'_, bool>,
    ) -> Result<TxnResponse, EngineError> {
        let succeeded = next_branch(path);
        let ops = branch(txn, succeeded);
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            let response = match &op.request {
                Some(Request::RequestRange(range)) => {
                    self.tally.ranges += 1;
                    Some(Response::ResponseRange(self.range(write, range)?))
                }
                Some(Request::RequestPut(put)) => {
                    let reads = put.ignore_value || put.ignore_lease || put.prev_kv;
                    self.tally.ranges += u64::from(reads);
                    Some(Response::ResponsePut(self.put(write, put)?))
                }
                Some(Request::RequestDeleteRange(delete)) => Some(Response::ResponseDeleteRange(
                    self.delete_range(write, delete)?,
                )),
                Some(Request::RequestTxn(nested)) => {
                    Some(Response::ResponseTxn(self.run_txn(write, nested, path)?))
                }
                None => None,
            };
            responses.push(ResponseOp { response });
        }
        Ok(TxnResponse {
            // A nested answer has an empty header, as in etcd; the outer one is filled at the end.
            header: Some(ResponseHeader::default()),
            succeeded,
            responses,
        })
    }
}

impl CompareState for Applier {
    fn count_read(&mut self) {
        self.tally.ranges += 1;
    }

    fn point(&mut self, key: &[u8], want: Want) -> Result<Option<LiveKey>, ScanError> {
        let Some(live) = self.live_metadata(key)? else {
            return Ok(None);
        };
        let mut found = LiveKey {
            create_revision: live.create_revision,
            mod_revision: live.revision.main,
            version: live.version,
            lease: live.lease,
            ..LiveKey::default()
        };
        if want == Want::Pair {
            found.key_value = self.pair_at(live.revision)?;
        }
        Ok(Some(found))
    }

    fn scan(
        &mut self,
        range: &KeyRange,
        want: Want,
        visit: &mut dyn FnMut(LiveKey) -> ControlFlow<()>,
    ) -> Result<(), ScanError> {
        let direction = Direction::Forward;
        scan_live(&self.overlay, range, direction, i64::MAX, want, 0, visit)
    }
}

/// The committed state at a revision, for read-only transactions.
pub(crate) struct StateAt<'a, V: View> {
    pub view: &'a V,
    pub revision: i64,
    /// Compares that have read.
    pub reads: u64,
}

impl<V: View> CompareState for StateAt<'_, V> {
    fn count_read(&mut self) {
        self.reads += 1;
    }

    fn point(&mut self, key: &[u8], want: Want) -> Result<Option<LiveKey>, ScanError> {
        crate::view::get_live(self.view, key, self.revision, want)
    }

    fn scan(
        &mut self,
        range: &KeyRange,
        want: Want,
        visit: &mut dyn FnMut(LiveKey) -> ControlFlow<()>,
    ) -> Result<(), ScanError> {
        let direction = Direction::Forward;
        scan_live(self.view, range, direction, self.revision, want, 0, visit)
    }
}

/// The branch of the next transaction on the path.
pub(crate) fn next_branch(path: &mut std::slice::Iter<'_, bool>) -> bool {
    *path
        .next()
        .expect("the path was computed from the same transaction")
}

fn holds(state: &mut impl CompareState, compare: &Compare) -> Result<bool, ScanError> {
    state.count_read();
    let compares_value = compare.target == CompareTarget::Value as i32;
    let want = match compares_value {
        true => Want::Pair,
        false => Want::Metadata,
    };
    let range = KeyRange::new(compare.key.clone(), compare.range_end.clone());
    let mut found = false;
    let mut all_hold = true;
    if range.is_single() {
        if let Some(live) = state.point(&range.start, want)? {
            found = true;
            all_hold = pair_holds(compare, &live);
        }
    } else if !range.is_empty() {
        state.scan(&range, want, &mut |live| {
            found = true;
            all_hold = pair_holds(compare, &live);
            match all_hold {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
    }
    Ok(match found {
        true => all_hold,
        // A missing key has zeros for numbers, but no value that could equal the empty one.
        false => !compares_value && pair_holds(compare, &LiveKey::default()),
    })
}

fn pair_holds(compare: &Compare, live: &LiveKey) -> bool {
    let union = compare.target_union.as_ref();
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => {
            let wanted = match union {
                Some(TargetUnion::Value(value)) => &value[..],
                _ => &[],
            };
            live.value()[..].cmp(wanted)
        }
        Ok(CompareTarget::Create) => live.create_revision.cmp(&match union {
            Some(TargetUnion::CreateRevision(wanted)) => *wanted,
            _ => 0,
        }),
        Ok(CompareTarget::Mod) => live.mod_revision.cmp(&match union {
            Some(TargetUnion::ModRevision(wanted)) => *wanted,
            _ => 0,
        }),
        Ok(CompareTarget::Version) => live.version.cmp(&match union {
            Some(TargetUnion::Version(wanted)) => *wanted,
            _ => 0,
        }),
        Ok(CompareTarget::Lease) => live.lease.cmp(&match union {
            Some(TargetUnion::Lease(wanted)) => *wanted,
            _ => 0,
        }),
        // etcd compares nothing for a target that it does not know, which is equal.
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        // And any result that it does not know holds.
        Err(_) => true,
    }
}
