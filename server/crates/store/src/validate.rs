//! What makes a request invalid whatever the state is: etcd's checks, in etcd's order.
//!
//! The RPC layer calls these before a command is proposed; the store relies on it.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use metastore_proto::etcdserverpb::request_op::Request;
use metastore_proto::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

use crate::range::{has_revision_filters, is_default_order};

/// The longest time to live that a lease can have, in seconds, as in etcd.
pub const LEASE_TTL_MAX_SECONDS: i64 = 9_000_000_000;

/// Why a range cannot be streamed. etcd answers `Unimplemented` with these texts, so that clients
/// fall back to Range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRefusal {
    /// The range is invalid anyway.
    Invalid(EtcdError),
    /// Code `Unimplemented` with this text.
    Unimplemented(&'static str),
}

/// Checks a Range.
///
/// # Errors
/// The error that the client gets.
pub fn range(request: &RangeRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err()
        || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(EtcdError::InvalidSortOption);
    }
    Ok(())
}

/// Checks a RangeStream.
///
/// # Errors
/// What the client gets.
pub fn range_stream(request: &RangeRequest) -> Result<(), StreamRefusal> {
    range(request).map_err(StreamRefusal::Invalid)?;
    if !is_default_order(request) {
        return Err(StreamRefusal::Unimplemented(
            "RangeStream does not support custom sort orders",
        ));
    }
    if has_revision_filters(request) {
        return Err(StreamRefusal::Unimplemented(
            "RangeStream does not support revision filters",
        ));
    }
    Ok(())
}

/// Checks a Put.
///
/// # Errors
/// The error that the client gets.
pub fn put(request: &PutRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(EtcdError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(EtcdError::LeaseProvided);
    }
    Ok(())
}

/// Checks a DeleteRange.
///
/// # Errors
/// The error that the client gets.
pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), EtcdError> {
    match request.key.is_empty() {
        true => Err(EtcdError::EmptyKey),
        false => Ok(()),
    }
}

/// Checks a LeaseGrant. The id may still be 0 here.
///
/// # Errors
/// The error that the client gets.
pub fn lease_grant(request: &LeaseGrantRequest) -> Result<(), EtcdError> {
    match request.ttl > LEASE_TTL_MAX_SECONDS {
        true => Err(EtcdError::LeaseTTLTooLarge),
        false => Ok(()),
    }
}

/// Checks a Txn. `max_ops` is the largest number of compares, and of operations of a branch;
/// nested transactions get what the outer one leaves.
///
/// # Errors
/// The error that the client gets.
pub fn txn(request: &TxnRequest, max_ops: usize) -> Result<(), EtcdError> {
    txn_operations(request, max_ops)?;
    // After the limit, so that the check of overlaps has a bounded cost.
    overlaps(&request.success)?;
    overlaps(&request.failure)?;
    Ok(())
}

/// Whether the transaction only reads and needs no consensus: all its operations are ranges. A
/// nested transaction is always replicated, as in etcd.
pub fn is_read_only(request: &TxnRequest) -> bool {
    ranges(request).all(|range| range.is_some())
}

/// Whether a read-only transaction may be answered from the local state: all its ranges are
/// serializable, or there is none.
pub fn is_serializable(request: &TxnRequest) -> bool {
    ranges(request).all(|range| range.is_some_and(|range| range.serializable))
}

fn ranges(request: &TxnRequest) -> impl Iterator<Item = Option<&RangeRequest>> {
    let ops = request.success.iter().chain(&request.failure);
    ops.map(|op| match &op.request {
        Some(Request::RequestRange(range)) => Some(range),
        _ => None,
    })
}

fn txn_operations(request: &TxnRequest, max_ops: usize) -> Result<(), EtcdError> {
    let ops = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    let Some(left) = max_ops.checked_sub(ops) else {
        return Err(EtcdError::TooManyOps);
    };
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(EtcdError::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(nested)) => txn_operations(nested, left)?,
            None => return Err(EtcdError::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys that operations put and delete.
#[derive(Default)]
struct Touched {
    puts: HashSet<Bytes>,
    deletes: Intervals,
}

/// Refuses two puts of a key, and a put of a key that the operations before or beside it delete.
fn overlaps(ops: &[RequestOp]) -> Result<Touched, EtcdError> {
    let mut touched = Touched::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            touched.deletes.insert(delete_interval(delete));
        }
    }
    for op in ops {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            touched.add_nested(nested)?;
        }
    }
    for op in ops {
        if let Some(Request::RequestPut(put)) = &op.request {
            touched.add_put(&put.key)?;
        }
    }
    Ok(touched)
}

impl Touched {
    fn add_nested(&mut self, nested: &TxnRequest) -> Result<(), EtcdError> {
        let then = overlaps(&nested.success)?;
        let otherwise = overlaps(&nested.failure)?;
        for key in &then.puts {
            self.add_put(key)?;
        }
        for key in &otherwise.puts {
            // Only one of the two branches runs, so both may put the key.
            match then.puts.contains(key) {
                true if self.deletes.contains(key) => return Err(EtcdError::DuplicateKey),
                true => {}
                false => self.add_put(key)?,
            }
        }
        for interval in then.deletes.0.into_iter().chain(otherwise.deletes.0) {
            self.deletes.insert(interval);
        }
        Ok(())
    }

    fn add_put(&mut self, key: &Bytes) -> Result<(), EtcdError> {
        match self.deletes.contains(key) || !self.puts.insert(key.clone()) {
            true => Err(EtcdError::DuplicateKey),
            false => Ok(()),
        }
    }
}

/// The interval as etcd's check sees it: a `range_end` of `"\0"` is the string, not "everything
/// behind", so that such a delete never overlaps a put. The store executes the two in their order.
fn delete_interval(delete: &DeleteRangeRequest) -> (Bytes, Bytes) {
    let end = match delete.range_end.is_empty() {
        false => delete.range_end.clone(),
        true => {
            let mut end = Vec::with_capacity(delete.key.len() + 1);
            end.extend_from_slice(&delete.key);
            end.push(0);
            end.into()
        }
    };
    (delete.key.clone(), end)
}

/// Half-open intervals of keys, merged where they touch: start → end.
#[derive(Default)]
struct Intervals(BTreeMap<Bytes, Bytes>);

impl Intervals {
    fn insert(&mut self, (mut start, mut end): (Bytes, Bytes)) {
        if start >= end {
            return;
        }
        // Every interval that begins at or before our end and reaches our start becomes part of it.
        while let Some((other_start, other_end)) = self.0.range(..=end.clone()).next_back() {
            if *other_end < start {
                break;
            }
            let other_start = other_start.clone();
            let other_end = self
                .0
                .remove(&other_start)
                .expect("the interval was just found");
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.0.insert(start, end);
    }

    fn contains(&self, key: &Bytes) -> bool {
        let before = self.0.range(..=key.clone()).next_back();
        before.is_some_and(|(_, end)| key < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metastore_proto::etcdserverpb::Compare;

    fn put_op(key: &'static str) -> RequestOp {
        op(Request::RequestPut(PutRequest {
            key: key.into(),
            ..PutRequest::default()
        }))
    }

    fn delete_op(key: &'static str, end: &'static str) -> RequestOp {
        op(Request::RequestDeleteRange(DeleteRangeRequest {
            key: key.into(),
            range_end: end.into(),
            ..DeleteRangeRequest::default()
        }))
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Request::RequestTxn(TxnRequest {
            compare: Vec::new(),
            success,
            failure,
        }))
    }

    fn op(request: Request) -> RequestOp {
        RequestOp {
            request: Some(request),
        }
    }

    fn check(success: Vec<RequestOp>, expected: Result<(), EtcdError>) {
        let request = TxnRequest {
            success,
            ..TxnRequest::default()
        };
        assert_eq!(txn(&request, 128), expected, "{request:?}");
    }

    #[test]
    fn puts_and_deletes_must_not_overlap_in_a_branch() {
        let duplicate = Err(EtcdError::DuplicateKey);
        check(vec![put_op("a"), put_op("b")], Ok(()));
        check(vec![put_op("a"), put_op("a")], duplicate);
        check(vec![put_op("a"), delete_op("a", "")], duplicate);
        check(vec![delete_op("a", "c"), put_op("b")], duplicate);
        check(vec![delete_op("a", "c"), put_op("c")], Ok(()));
        check(vec![delete_op("a", "c"), delete_op("b", "d")], Ok(()));
        check(vec![delete_op("c", "a"), put_op("b")], Ok(()));
        // etcd's check takes the end for a string; what it lets pass we let pass.
        check(vec![delete_op("a", "\0"), put_op("b")], Ok(()));
        check(
            vec![
                delete_op("a", "c"),
                delete_op("e", "g"),
                delete_op("b", "f"),
                put_op("d"),
            ],
            duplicate,
        );
    }

    #[test]
    fn nested_branches_exclude_each_other_and_nothing_else() {
        let duplicate = Err(EtcdError::DuplicateKey);
        check(vec![nested(vec![put_op("a")], vec![put_op("a")])], Ok(()));
        check(
            vec![put_op("a"), nested(vec![put_op("a")], vec![])],
            duplicate,
        );
        check(
            vec![put_op("a"), nested(vec![], vec![put_op("a")])],
            duplicate,
        );
        check(
            vec![delete_op("a", ""), nested(vec![put_op("a")], vec![])],
            duplicate,
        );
        check(
            vec![nested(vec![delete_op("a", "")], vec![]), put_op("a")],
            duplicate,
        );
        check(
            vec![
                nested(vec![put_op("a")], vec![]),
                nested(vec![], vec![put_op("a")]),
            ],
            duplicate,
        );
        // A delete that comes after the put of a sibling is found by no rule of etcd's.
        check(
            vec![
                nested(vec![put_op("a")], vec![]),
                nested(vec![delete_op("a", "")], vec![]),
            ],
            Ok(()),
        );
        check(
            vec![
                nested(vec![delete_op("a", "")], vec![]),
                nested(vec![put_op("a")], vec![]),
            ],
            duplicate,
        );
    }

    #[test]
    fn the_checks_come_in_etcds_order() {
        let empty_compare = Compare::default();
        let many = TxnRequest {
            compare: vec![empty_compare.clone(); 3],
            ..TxnRequest::default()
        };
        assert_eq!(txn(&many, 2), Err(EtcdError::TooManyOps));
        assert_eq!(txn(&many, 3), Err(EtcdError::EmptyKey));
        let no_request = TxnRequest {
            success: vec![put_op("a"), put_op("a"), RequestOp { request: None }],
            ..TxnRequest::default()
        };
        assert_eq!(txn(&no_request, 3), Err(EtcdError::KeyNotFound));
        // The nested transaction gets what is left: 3 - 2.
        let two = || vec![put_op("a"), put_op("b")];
        let outer = TxnRequest {
            success: vec![nested(two(), vec![]), put_op("c")],
            ..TxnRequest::default()
        };
        assert_eq!(txn(&outer, 3), Err(EtcdError::TooManyOps));
        assert_eq!(txn(&outer, 4), Ok(()));
    }

    #[test]
    fn single_requests_are_checked_as_in_etcd() {
        let request = |key: &'static str| RangeRequest {
            key: key.into(),
            ..RangeRequest::default()
        };
        assert_eq!(range(&request("")), Err(EtcdError::EmptyKey));
        assert_eq!(range(&request("a")), Ok(()));
        for (sort_order, sort_target) in [(3, 0), (-1, 0), (0, 5)] {
            let request = RangeRequest {
                sort_order,
                sort_target,
                ..request("a")
            };
            assert_eq!(range(&request), Err(EtcdError::InvalidSortOption));
        }
        let request = |value: &'static str, lease, ignore_value, ignore_lease| PutRequest {
            key: "a".into(),
            value: value.into(),
            lease,
            ignore_value,
            ignore_lease,
            prev_kv: false,
        };
        assert_eq!(put(&request("v", 1, false, false)), Ok(()));
        assert_eq!(
            put(&request("v", 1, true, true)),
            Err(EtcdError::ValueProvided)
        );
        assert_eq!(
            put(&request("", 1, true, true)),
            Err(EtcdError::LeaseProvided)
        );
        assert_eq!(put(&request("", 0, true, true)), Ok(()));
    }

    #[test]
    fn an_empty_transaction_is_read_only_and_serializable() {
        assert!(is_read_only(&TxnRequest::default()));
        assert!(is_serializable(&TxnRequest::default()));
        let outer = TxnRequest {
            success: vec![nested(vec![], vec![])],
            ..TxnRequest::default()
        };
        assert!(!is_read_only(&outer));
    }
}
