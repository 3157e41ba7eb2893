//! Random commands and reads that reach into the corners: few keys, so that they meet.

use bytes::Bytes;
use metastore_proto::etcdserverpb::compare::TargetUnion;
use metastore_proto::etcdserverpb::request_op::Request as OpRequest;
use metastore_proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseCheckpoint, LeaseCheckpointRequest,
    LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use metastore_proto::internal::command::Request;
use metastore_proto::internal::{Command, LeaseRevokeCommand};

use crate::validate;

/// Operations that a transaction may have; small ones are wanted more than large ones.
const TXN_OPS_MAX: usize = 128;

/// How the keys lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A few dozen keys, so that commands meet on them.
    Narrow,
    /// Thousands of keys, so that counted blocks are split and merged.
    Wide,
}

/// A source of commands and reads; the same seed gives the same ones.
pub struct RandomCommands {
    state: u64,
    shape: Shape,
}

impl RandomCommands {
    /// A source that begins at `seed`.
    pub fn new(seed: u64, shape: Shape) -> Self {
        Self { state: seed, shape }
    }

    /// A number below `bound`, which is not 0. SplitMix64: small, and good enough to find bugs.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A command that passes validation. `revision` is the current one: compactions and reads aim
    /// around it.
    pub fn command(&mut self, revision: i64) -> Command {
        let request = loop {
            let request = self.request(revision);
            let valid = match &request {
                Request::Put(put) => validate::put(put).is_ok(),
                Request::Txn(txn) => validate::txn(txn, TXN_OPS_MAX).is_ok(),
                _ => true,
            };
            if valid {
                break request;
            }
        };
        Command {
            request: Some(request),
            ..Command::default()
        }
    }

    fn request(&mut self, revision: i64) -> Request {
        let kind = self.below(100);
        match (self.shape, kind) {
            (Shape::Wide, 0..40) => return Request::Txn(self.bulk_put()),
            (Shape::Wide, 40..50) => return Request::DeleteRange(self.delete()),
            _ => {}
        }
        match kind {
            0..35 => Request::Put(self.put()),
            35..52 => Request::DeleteRange(self.delete()),
            52..84 => Request::Txn(self.txn(revision, 2)),
            84..88 => Request::Compaction(CompactionRequest {
                revision: self.some_revision(revision),
                physical: false,
            }),
            88..94 => Request::LeaseGrant(LeaseGrantRequest {
                ttl: 1 + self.below(100) as i64,
                id: self.lease_id(),
            }),
            94..98 => Request::LeaseRevoke(LeaseRevokeCommand {
                id: self.lease_id(),
                expired_in_term: self.choose(&[0, 0, 7, 8]),
            }),
            _ => Request::LeaseCheckpoint(LeaseCheckpointRequest {
                checkpoints: vec![LeaseCheckpoint {
                    id: self.lease_id(),
                    remaining_ttl: self.below(100) as i64,
                }],
            }),
        }
    }

    /// Puts of neighbouring keys, many at once.
    fn bulk_put(&mut self) -> TxnRequest {
        let first = self.below(4000);
        let count = 1 + self.below(TXN_OPS_MAX as u64);
        let success = (first..first + count)
            .map(|number| RequestOp {
                request: Some(OpRequest::RequestPut(PutRequest {
                    key: wide_key(number),
                    value: self.value(),
                    ..PutRequest::default()
                })),
            })
            .collect();
        TxnRequest {
            success,
            ..TxnRequest::default()
        }
    }

    fn put(&mut self) -> PutRequest {
        let mut put = PutRequest {
            key: self.key(),
            value: self.value(),
            lease: 0,
            prev_kv: self.one_in(3),
            ignore_value: self.one_in(8),
            ignore_lease: self.one_in(8),
        };
        if put.ignore_value {
            put.value = Bytes::new();
        }
        if !put.ignore_lease && self.one_in(3) {
            put.lease = self.lease_id();
        }
        put
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, mut range_end) = self.range();
        // Deleting everything too often would leave nothing to test with.
        if range_end[..] == *b"\0" && !self.one_in(6) {
            range_end = Bytes::new();
        }
        DeleteRangeRequest {
            key,
            range_end,
            prev_kv: self.one_in(2),
        }
    }

    fn txn(&mut self, revision: i64, depth: u64) -> TxnRequest {
        let ops = |random: &mut Self| {
            let count = random.below(5);
            (0..count)
                .map(|_| random.op(revision, depth))
                .collect::<Vec<_>>()
        };
        let compares = self.below(3);
        TxnRequest {
            compare: (0..compares).map(|_| self.compare(revision)).collect(),
            success: ops(self),
            failure: ops(self),
        }
    }

    fn op(&mut self, revision: i64, depth: u64) -> RequestOp {
        let request = match self.below(10) {
            0..3 => OpRequest::RequestRange(self.range_request(revision)),
            3..7 => OpRequest::RequestPut(self.put()),
            7 if depth > 0 => OpRequest::RequestTxn(self.txn(revision, depth - 1)),
            _ => OpRequest::RequestDeleteRange(self.delete()),
        };
        RequestOp {
            request: Some(request),
        }
    }

    fn compare(&mut self, revision: i64) -> Compare {
        let (key, range_end) = match self.one_in(4) {
            true => self.range(),
            false => (self.key(), Bytes::new()),
        };
        let near = revision - self.below(20) as i64;
        let (target, union) = match self.below(5) {
            0 => (0, TargetUnion::Version(self.below(4) as i64)),
            1 => (1, TargetUnion::CreateRevision(self.choose(&[0, near]))),
            2 => (2, TargetUnion::ModRevision(self.choose(&[0, near]))),
            3 => (3, TargetUnion::Value(self.value())),
            _ => (4, TargetUnion::Lease(self.choose(&[0, 1, 2]))),
        };
        let kind = self.below(40);
        Compare {
            // Now and then an enum that nobody knows, or a target without its field.
            result: if kind == 0 { 9 } else { self.below(4) as i32 },
            target: if kind == 1 { 9 } else { target },
            key,
            range_end,
            target_union: if kind == 2 { None } else { Some(union) },
        }
    }

    /// A Range with any options, around the current revision.
    pub fn range_request(&mut self, revision: i64) -> RangeRequest {
        let (key, range_end) = self.range();
        let mut request = RangeRequest {
            key,
            range_end,
            ..RangeRequest::default()
        };
        if self.one_in(2) {
            request.limit = match self.shape {
                Shape::Narrow => self.below(8) as i64 - 1,
                Shape::Wide => self.below(2000) as i64,
            };
        }
        if self.one_in(3) {
            request.revision = self.some_revision(revision);
        }
        if self.one_in(2) {
            request.sort_order = self.below(3) as i32;
            request.sort_target = self.below(5) as i32;
        }
        request.keys_only = self.one_in(4);
        request.count_only = self.one_in(6);
        if self.one_in(4) {
            for filter in [
                &mut request.min_mod_revision,
                &mut request.max_mod_revision,
                &mut request.min_create_revision,
                &mut request.max_create_revision,
            ] {
                if self.one_in(3) {
                    *filter = revision - self.below(30) as i64;
                }
            }
        }
        request
    }

    /// A revision near the current one, sometimes ahead of it, sometimes far behind, sometimes
    /// negative.
    pub fn some_revision(&mut self, revision: i64) -> i64 {
        match self.below(12) {
            0 => revision + 1 + self.below(2) as i64,
            1 => -(self.below(3) as i64),
            2 => self.below(revision as u64 + 1) as i64,
            3..6 => revision,
            _ => (revision - self.below(25) as i64).max(0),
        }
    }

    /// A key and a range end of every kind.
    pub fn range(&mut self) -> (Bytes, Bytes) {
        let key = self.key();
        match self.below(12) {
            0 => (key, Bytes::from_static(b"\0")),
            1 => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            2..5 => (key, Bytes::new()),
            5 => (key.clone(), key),
            _ => {
                let end = self.key();
                // Mostly the right way round.
                match key > end && !self.one_in(8) {
                    true => (end, key),
                    false => (key, end),
                }
            }
        }
    }

    /// A key.
    pub fn key(&mut self) -> Bytes {
        match self.shape {
            Shape::Wide => {
                let number = self.below(4200);
                wide_key(number)
            }
            Shape::Narrow => {
                let length = 1 + self.below(3);
                (0..length)
                    .map(|_| self.choose(&[0u8, b'a', b'b', b'c', 0xff]))
                    .collect()
            }
        }
    }

    fn value(&mut self) -> Bytes {
        match self.below(12) {
            0 => Bytes::new(),
            // Longer than an engine keeps with the row of `latest`.
            1 => vec![self.below(256) as u8; 1500].into(),
            _ => vec![b'0' + self.below(4) as u8; self.below(4) as usize].into(),
        }
    }

    /// One of a few leases.
    pub fn lease_id(&mut self) -> i64 {
        self.choose(&[1, 2, 3, -4, i64::MAX])
    }
}

fn wide_key(number: u64) -> Bytes {
    format!("key-{number:06}").into()
}
