//! Transactions: answered here when they only read what this proxy owns, and else sent with conditions on claims.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use metastore_proto::KeyValue;
use metastore_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use metastore_proto::etcdserverpb::request_op::Request;
use metastore_proto::etcdserverpb::response_op::Response;
use metastore_proto::etcdserverpb::{Compare, RequestOp, ResponseOp, TxnRequest, TxnResponse};
use tonic::Status;

use super::super::cache::Interval;
use super::ownership::{Outcome, Ownership};
use super::{
    Leasing, created_before, is_anonymous, is_plain, operation, pairs, read_answer, read_of,
    unexpected,
};

/// A longer transaction is the cluster's to judge: `--max-txn-ops` by default.
const OPERATIONS_MAX: usize = 128;

/// What a transaction may write, whichever way it goes.
#[derive(Default)]
struct Written {
    /// Each key once.
    keys: Vec<Bytes>,
    ranges: Vec<Interval>,
}

impl Written {
    fn of(request: &TxnRequest) -> Self {
        let mut written = Self::default();
        written.note(request);
        let mut known = HashSet::new();
        written.keys.retain(|key| known.insert(key.clone()));
        written
    }

    fn note(&mut self, request: &TxnRequest) {
        for RequestOp { request } in request.success.iter().chain(&request.failure) {
            match request {
                Some(Request::RequestPut(put)) => self.keys.push(put.key.clone()),
                Some(Request::RequestDeleteRange(delete)) if delete.range_end.is_empty() => {
                    self.keys.push(delete.key.clone());
                }
                Some(Request::RequestDeleteRange(delete)) => self.ranges.push(Interval {
                    key: delete.key.clone(),
                    range_end: delete.range_end.clone(),
                }),
                Some(Request::RequestTxn(txn)) => self.note(txn),
                Some(Request::RequestRange(_)) | None => {}
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ranges.is_empty()
    }

    /// Whether the cluster will refuse it.
    fn has_empty_key(&self) -> bool {
        let first_keys = self.ranges.iter().map(|range| &range.key);
        self.keys.iter().chain(first_keys).any(Bytes::is_empty)
    }

    fn intervals(&self) -> Vec<Interval> {
        let keys = self.keys.iter().map(Interval::of_key);
        keys.chain(self.ranges.iter().cloned()).collect()
    }
}

impl Leasing {
    /// Answers `Txn`.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn txn(
        &self,
        headers: &HeaderMap,
        request: TxnRequest,
    ) -> Result<TxnResponse, Status> {
        let written = Written::of(&request);
        if written.is_empty() {
            let known = match is_anonymous(headers) {
                true => answered(&self.ownership.lock(), &request, Instant::now()),
                false => None,
            };
            return match known {
                Some(answer) => Ok(answer),
                None => self.ask(headers, request).await,
            };
        }
        if written.has_empty_key() {
            return self.ask(headers, request).await;
        }
        loop {
            if let Some(answer) = self.attempt(headers, &request, &written).await? {
                return Ok(answer);
            }
        }
    }

    /// Sends a transaction on the condition that no other proxy owns what it may write. Nothing: one does, and was
    /// asked for it.
    async fn attempt(
        &self,
        headers: &HeaderMap,
        request: &TxnRequest,
        written: &Written,
    ) -> Result<Option<TxnResponse>, Status> {
        let mut range_guards = Vec::new();
        for range in &written.ranges {
            let concerned = self.concerned(range);
            let at = self.take_back(headers, &concerned).await?;
            let (key, range_end) = self.claims_of(&concerned);
            range_guards.push(created_before(key, range_end, at + 1));
        }
        let write = self.begin_write(&written.intervals());
        let mut guards = range_guards;
        let mut failure = Vec::new();
        for key in &written.keys {
            let claim = self.claim_of(key);
            let created = write.created(key);
            guards.push(created_before(claim.clone(), Bytes::new(), created + 1));
            failure.push(read_of(claim, Bytes::new(), true));
        }
        // How our keys are afterwards. A key that is not read, or in a range that is deleted, is given up: the
        // cluster counts these reads, and a transaction that etcd's proxy can send must not be too long for ours.
        let read_back: Vec<&Bytes> = match is_anonymous(headers) && written.ranges.is_empty() {
            true => written
                .keys
                .iter()
                .filter(|key| write.created(key) > 0)
                .take(guards.len().saturating_sub(1).max(1))
                .collect(),
            false => Vec::new(),
        };
        let mut success = vec![operation(Request::RequestTxn(request.clone()))];
        success.extend(
            read_back
                .iter()
                .map(|key| read_of((*key).clone(), Bytes::new(), false)),
        );
        let txn = TxnRequest {
            compare: guards,
            success,
            failure,
        };
        let (write, answer) = write.sent(self.ask(headers, txn).await)?;
        let header = answer.header;
        let mut answers = answer.responses.into_iter();
        if answer.succeeded {
            let done = answers.next().and_then(|answer| answer.response);
            let mut now = Vec::new();
            for key in read_back {
                now.push((key.clone(), pairs(&read_answer(answers.next())?)?.pop()));
            }
            let revision = header.unwrap_or_default().revision;
            write.end(&Outcome::Done(revision, &now));
            let Some(Response::ResponseTxn(mut done)) = done else {
                return Err(unexpected());
            };
            done.header = header;
            return Ok(Some(done));
        }
        let mut claimed = HashMap::new();
        for key in &written.keys {
            if let Some(claim) = pairs(&read_answer(answers.next())?)?.pop() {
                claimed.insert(key.clone(), claim.create_revision);
            }
        }
        let created: HashMap<Bytes, i64> = write
            .claims
            .iter()
            .map(|claim| (claim.key.clone(), claim.created))
            .collect();
        let is_ours = |key: &Bytes| created.get(key) == claimed.get(key);
        let others: Vec<Bytes> = claimed
            .keys()
            .filter(|key| !is_ours(key))
            .cloned()
            .collect();
        let is_single = |key: &Bytes| written.keys.contains(key);
        write.was_refused(|claim| !is_single(&claim.key) || is_ours(&claim.key));
        for key in others {
            self.take_back_one(headers, key).await?;
        }
        Ok(None)
    }
}

/// The answer to a transaction that only reads keys of which everything is known.
fn answered(ownership: &Ownership, request: &TxnRequest, now: Instant) -> Option<TxnResponse> {
    let TxnRequest {
        compare,
        success,
        failure,
    } = request;
    let is_long = [compare.len(), success.len(), failure.len()]
        .iter()
        .any(|count| *count > OPERATIONS_MAX);
    if is_long || (compare.is_empty() && success.is_empty()) {
        return None;
    }
    let mut succeeded = true;
    for compare in compare {
        if compare.key.is_empty() || !compare.range_end.is_empty() {
            return None;
        }
        let pair = ownership.value(&compare.key, now)?;
        succeeded &= holds(compare, pair)?;
    }
    // What the cluster would refuse, it is to refuse: the other branch must be in order, too.
    let branches = [success, failure].map(|branch| {
        let answers = branch.iter().map(|operation| match &operation.request {
            Some(Request::RequestRange(range)) if is_plain(range) => Some(range),
            _ => None,
        });
        answers.collect::<Option<Vec<_>>>()
    });
    let [Some(success), Some(failure)] = branches else {
        return None;
    };
    let header = ownership.newest();
    let responses = if succeeded { success } else { failure }
        .into_iter()
        .map(|range| {
            Some(ResponseOp {
                response: Some(Response::ResponseRange(ownership.answer(range, now)?)),
            })
        })
        .collect::<Option<_>>()?;
    Some(TxnResponse {
        header: Some(header),
        succeeded,
        responses,
    })
}

/// Whether a comparison holds; nothing when it is none that etcd knows.
fn holds(compare: &Compare, pair: Option<&KeyValue>) -> Option<bool> {
    let absent = KeyValue::default();
    let known = pair.unwrap_or(&absent);
    let target = CompareTarget::try_from(compare.target).ok()?;
    let order = match (target, compare.target_union.as_ref()?) {
        // A key that does not exist has no value, not even an empty one.
        (CompareTarget::Value, TargetUnion::Value(_)) if pair.is_none() => return Some(false),
        (CompareTarget::Value, TargetUnion::Value(value)) => known.value.cmp(value),
        (CompareTarget::Version, TargetUnion::Version(version)) => known.version.cmp(version),
        (CompareTarget::Create, TargetUnion::CreateRevision(at)) => known.create_revision.cmp(at),
        (CompareTarget::Mod, TargetUnion::ModRevision(at)) => known.mod_revision.cmp(at),
        (CompareTarget::Lease, TargetUnion::Lease(lease)) => known.lease.cmp(lease),
        _ => return None,
    };
    Some(match CompareResult::try_from(compare.result).ok()? {
        CompareResult::Equal => order.is_eq(),
        CompareResult::NotEqual => order.is_ne(),
        CompareResult::Greater => order.is_gt(),
        CompareResult::Less => order.is_lt(),
    })
}

#[cfg(test)]
mod tests {
    use metastore_proto::etcdserverpb::{DeleteRangeRequest, PutRequest};

    use super::*;

    #[test]
    fn whatever_any_branch_writes_is_guarded() {
        let put = |key: &'static str| {
            operation(Request::RequestPut(PutRequest {
                key: key.into(),
                ..Default::default()
            }))
        };
        let delete = |key: &'static str, range_end: &'static str| {
            operation(Request::RequestDeleteRange(DeleteRangeRequest {
                key: key.into(),
                range_end: range_end.into(),
                ..Default::default()
            }))
        };
        let nested = TxnRequest {
            success: vec![put("a"), delete("b", "")],
            failure: vec![put("a"), delete("c", "d")],
            ..Default::default()
        };
        let request = TxnRequest {
            success: vec![read_of("r".into(), Bytes::new(), false)],
            failure: vec![operation(Request::RequestTxn(nested)), put("e")],
            ..Default::default()
        };
        let written = Written::of(&request);
        assert_eq!(written.keys, ["a", "b", "e"]);
        let range = Interval {
            key: "c".into(),
            range_end: "d".into(),
        };
        assert_eq!(written.ranges, [range]);
    }

    #[test]
    fn comparisons_hold_as_in_the_cluster() {
        let pair = KeyValue {
            key: "k".into(),
            create_revision: 3,
            mod_revision: 5,
            version: 2,
            value: "v".into(),
            lease: 0,
        };
        use CompareResult::{Equal, Greater, Less, NotEqual};
        use CompareTarget::{Create, Lease, Mod, Value, Version};
        for (result, target, value, present, absent) in [
            (Equal, Value, TargetUnion::Value("v".into()), true, false),
            (NotEqual, Value, TargetUnion::Value("w".into()), true, false),
            (Equal, Value, TargetUnion::Value("".into()), false, false),
            (Equal, Version, TargetUnion::Version(0), false, true),
            (Greater, Version, TargetUnion::Version(1), true, false),
            (Equal, Create, TargetUnion::CreateRevision(3), true, false),
            (Less, Mod, TargetUnion::ModRevision(5), false, true),
            (Equal, Lease, TargetUnion::Lease(0), true, true),
        ] {
            let compare = Compare {
                result: result.into(),
                target: target.into(),
                key: "k".into(),
                range_end: Bytes::new(),
                target_union: Some(value),
            };
            assert_eq!(holds(&compare, Some(&pair)), Some(present), "{compare:?}");
            assert_eq!(holds(&compare, None), Some(absent), "{compare:?}");
        }
        let mixed = Compare {
            target: Mod.into(),
            target_union: Some(TargetUnion::Version(1)),
            ..Default::default()
        };
        assert_eq!(holds(&mixed, Some(&pair)), None);
    }
}
