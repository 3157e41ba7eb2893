//! The unary operations: what one client sends, and what it expects back.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::Uri;
use metastore_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use metastore_proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::body::{KeySpace, Template, random_value};
use super::recorder::{Recorder, Shared};
use super::wire::{self, header_revision};
use super::{KeyOrder, LoadOptions, Operation};
use crate::client::{CallError, Connection, frame};

/// Keys of its own that each client of [`Operation::TxnCas`] goes round.
const CAS_KEYS_PER_CLIENT: usize = 16;

/// Share of reads in [`Operation::Mixed`].
const MIXED_READ_SHARE: f64 = 0.75;

/// One client and its state.
pub struct Worker {
    operation: Operation,
    connection: Connection,
    keys: KeySpace,
    key_order: KeyOrder,
    value_bytes: usize,
    page: u64,
    batch: u64,
    shared: Arc<Shared>,
    random: StdRng,
    put: Uri,
    range: Uri,
    txn: Uri,
    put_body: Template,
    get_body: Template,
    /// First key of the next page, and the revision of the walk; 0: a new walk.
    walk: (u64, i64),
    /// Own keys of a compare-and-swap with their last known mod revisions, and the next of them.
    swap_keys: Vec<(Bytes, i64)>,
    swap_next: usize,
}

impl Worker {
    /// The client with this number.
    pub fn new(
        options: &LoadOptions,
        client: usize,
        connection: Connection,
        shared: &Arc<Shared>,
    ) -> Self {
        let keys = options.keys.clone();
        let serializable = options.operation == Operation::GetSerializable;
        let swap_keys = (0..CAS_KEYS_PER_CLIENT)
            .map(|index| {
                let number = (client * CAS_KEYS_PER_CLIENT + index) as u64;
                (Bytes::from(keys.key(number)), 0)
            })
            .collect();
        let endpoint = connection.endpoint();
        Self {
            operation: options.operation,
            put: endpoint.method("etcdserverpb.KV/Put"),
            range: endpoint.method("etcdserverpb.KV/Range"),
            txn: endpoint.method("etcdserverpb.KV/Txn"),
            put_body: Template::put(&keys, options.value_bytes),
            get_body: Template::get(&keys, serializable),
            connection,
            keys,
            key_order: options.key_order,
            value_bytes: options.value_bytes,
            page: options.page,
            batch: options.batch,
            shared: Arc::clone(shared),
            random: StdRng::from_os_rng(),
            walk: (0, 0),
            swap_keys,
            swap_next: 0,
        }
    }

    /// One call. Returns the number of operations it was, 0 when nothing is left to do.
    pub async fn step(&mut self, recorder: &mut Recorder) -> Result<u64, CallError> {
        match self.operation {
            Operation::Put => self.put().await,
            Operation::Fill => self.fill().await,
            Operation::Get | Operation::GetSerializable => self.get().await,
            Operation::TxnCas => self.compare_and_swap(recorder).await,
            Operation::List => self.list().await,
            Operation::Page => self.read_page(0).await,
            Operation::PageRandom => {
                let first = self
                    .random
                    .random_range(0..self.keys.keys - self.page.min(self.keys.keys - 1));
                self.read_page(first).await
            }
            Operation::Count => self.count().await,
            Operation::Mixed if self.random.random_bool(MIXED_READ_SHARE) => self.get().await,
            Operation::Mixed => self.put().await,
            Operation::Watch | Operation::KeepAlive => {
                unreachable!("these have clients of their own")
            }
        }
    }

    async fn put(&mut self) -> Result<u64, CallError> {
        let key = self.choose_key();
        let body = self.put_body.fill(key, &mut self.random);
        self.connection.call(&self.put, body).await?;
        Ok(1)
    }

    async fn fill(&mut self) -> Result<u64, CallError> {
        let first = self.shared.next.fetch_add(self.batch, Relaxed);
        let end = (first + self.batch).min(self.keys.keys);
        if first >= end {
            return Ok(0);
        }
        if self.batch == 1 {
            let body = self.put_body.fill(first, &mut self.random);
            self.connection.call(&self.put, body).await?;
        } else {
            let success = (first..end)
                .map(|number| {
                    let value =
                        Bytes::from_static(random_value(self.value_bytes, &mut self.random));
                    put_operation(self.keys.key(number).into(), value)
                })
                .collect();
            let request = TxnRequest {
                success,
                ..Default::default()
            };
            self.connection.call(&self.txn, frame(&request)).await?;
        }
        Ok(end - first)
    }

    async fn get(&mut self) -> Result<u64, CallError> {
        let key = self.choose_key();
        let body = self.get_body.fill(key, &mut self.random);
        let answer = self.connection.call(&self.range, body).await?;
        self.expect_values(1, &answer)?;
        Ok(1)
    }

    /// Each client has keys of its own, so a conflict happens only before it knows their revisions.
    async fn compare_and_swap(&mut self, recorder: &mut Recorder) -> Result<u64, CallError> {
        let index = self.swap_next % self.swap_keys.len();
        self.swap_next += 1;
        let (key, expected) = self.swap_keys[index].clone();
        let value = Bytes::from_static(random_value(self.value_bytes, &mut self.random));
        let request = TxnRequest {
            compare: vec![Compare {
                result: CompareResult::Equal.into(),
                target: CompareTarget::Mod.into(),
                key: key.clone(),
                target_union: Some(TargetUnion::ModRevision(expected)),
                ..Default::default()
            }],
            success: vec![put_operation(key.clone(), value)],
            failure: vec![RequestOp {
                request: Some(request_op::Request::RequestRange(RangeRequest {
                    key,
                    ..Default::default()
                })),
            }],
        };
        let answer = self.connection.call(&self.txn, frame(&request)).await?;
        let succeeded = wire::number(&answer, 2) == 1;
        self.swap_keys[index].1 = if succeeded {
            header_revision(&answer)
        } else {
            recorder.conflicts += 1;
            found_mod_revision(&answer)
        };
        Ok(1)
    }

    async fn list(&mut self) -> Result<u64, CallError> {
        let (first, revision) = self.walk;
        let request = self.page_request(first, revision);
        let answer = self.connection.call(&self.range, frame(&request)).await?;
        self.expect_values(self.page.min(self.keys.keys - first), &answer)?;
        let next = first + self.page;
        self.walk = match revision {
            _ if next >= self.keys.keys => (0, 0),
            0 => (next, header_revision(&answer)),
            pinned => (next, pinned),
        };
        Ok(1)
    }

    async fn read_page(&mut self, first: u64) -> Result<u64, CallError> {
        let request = self.page_request(first, 0);
        let answer = self.connection.call(&self.range, frame(&request)).await?;
        self.expect_values(self.page.min(self.keys.keys - first), &answer)?;
        Ok(1)
    }

    async fn count(&mut self) -> Result<u64, CallError> {
        let request = RangeRequest {
            key: self.keys.prefix.clone().into(),
            range_end: self.keys.end().into(),
            count_only: true,
            ..Default::default()
        };
        let answer = self.connection.call(&self.range, frame(&request)).await?;
        let count = wire::number(&answer, 4);
        if count != self.keys.keys {
            return Err(CallError::Unexpected(format!(
                "{count} keys, not {}",
                self.keys.keys
            )));
        }
        Ok(1)
    }

    fn page_request(&self, first: u64, revision: i64) -> RangeRequest {
        RangeRequest {
            key: self.keys.key(first).into(),
            range_end: self.keys.end().into(),
            limit: self.page.cast_signed(),
            revision,
            ..Default::default()
        }
    }

    fn choose_key(&mut self) -> u64 {
        match self.key_order {
            KeyOrder::Random => self.random.random_range(0..self.keys.keys),
            KeyOrder::Sequential => self.shared.next.fetch_add(1, Relaxed) % self.keys.keys,
        }
    }

    /// An answer with fewer bytes than the values alone have is not the answer to the question.
    fn expect_values(&self, values: u64, answer: &Bytes) -> Result<(), CallError> {
        let least = usize::try_from(values)
            .unwrap_or(usize::MAX)
            .saturating_mul(self.value_bytes);
        if answer.len() < least {
            return Err(CallError::Unexpected(format!(
                "{} bytes instead of {values} values; are the keys loaded?",
                answer.len()
            )));
        }
        Ok(())
    }
}

fn put_operation(key: Bytes, value: Bytes) -> RequestOp {
    let put = PutRequest {
        key,
        value,
        ..Default::default()
    };
    RequestOp {
        request: Some(request_op::Request::RequestPut(put)),
    }
}

/// The mod revision of the key that the failure branch read; 0 when there is none.
fn found_mod_revision(answer: &[u8]) -> i64 {
    // TxnResponse.responses → ResponseOp.response_range → RangeResponse.kvs → KeyValue.mod_revision
    let range = wire::bytes(wire::bytes(answer, 3), 1);
    wire::number(wire::bytes(range, 2), 3).cast_signed()
}
