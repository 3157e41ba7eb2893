//! Runs random commands and reads on an engine and on the model, and compares everything.

use std::hash::{BuildHasher, RandomState};

use metastore_proto::EncodedKeyValue;
use metastore_proto::etcdserverpb::request_op::Request as OpRequest;
use metastore_proto::etcdserverpb::{RangeRequest, RequestOp, TxnRequest};
use metastore_proto::internal::Command;
use metastore_proto::internal::command::Request;
use metastore_revision_model::Revision;

use super::{RandomCommands, ReferenceModel, Shape};
use crate::engine::SharedEngine;
use crate::response::{Committed, RevisionEvents};
use crate::shared::{StoreOptions, open};
use crate::{Applier, ReadError, Reader};

/// Environment variable with the seed of a run that is to be repeated.
const SEED_VARIABLE: &str = "METASTORE_STORE_SEED";
/// Commands of one commit.
const BATCH_COMMANDS_MAX: u64 = 6;

/// The seed in `METASTORE_STORE_SEED`, or a new one.
pub fn fresh_seed() -> u64 {
    match std::env::var(SEED_VARIABLE) {
        Ok(seed) => seed.parse().expect("the seed is a number"),
        Err(_) => RandomState::new().hash_one(std::process::id()),
    }
}

/// Runs `steps` rounds of random commands and reads on an empty engine and on the model, and
/// compares every answer, every event, the leases, HashKV, and the state after opening it again.
///
/// # Panics
/// At the first difference. The seed is printed.
pub fn check_engine(engine: SharedEngine, seed: u64, shape: Shape, steps: usize) {
    let _print_seed = PrintSeed(seed);
    let mut random = RandomCommands::new(seed, shape);
    // A cache that is sometimes too small, sometimes off.
    let options = StoreOptions {
        metadata_cache_bytes: [0, 3000, 32 << 20][random.below(3) as usize],
        ..StoreOptions::default()
    };
    let (applier, reader) = open(engine.clone(), options.clone()).expect("the engine is empty");
    let mut run = Run {
        random,
        model: ReferenceModel::new(),
        applier,
        reader,
        wants_previous: false,
    };
    for _ in 0..steps {
        run.step();
        if run.random.one_in(60) {
            let (applier, reader) = open(engine.clone(), options.clone()).expect("it was closed");
            run.applier = applier;
            run.reader = reader;
            run.reader.want_previous(run.wants_previous);
        }
    }
    run.check_collected();
}

/// Says how to repeat a run that fails.
struct PrintSeed(u64);

impl Drop for PrintSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with {SEED_VARIABLE}={}", self.0);
        }
    }
}

struct Run {
    random: RandomCommands,
    model: ReferenceModel,
    applier: Applier,
    reader: Reader,
    wants_previous: bool,
}

impl Run {
    fn step(&mut self) {
        if self.random.one_in(30) {
            self.wants_previous = !self.wants_previous;
            self.reader.want_previous(self.wants_previous);
        }
        self.execute_batch();
        for _ in 0..self.random.below(4) {
            self.check_range();
        }
        match self.random.below(8) {
            0 => self.check_hash(),
            1 => self.check_events(),
            2 => self.check_stream(),
            3 => self.check_read_only_txn(),
            4 => self.check_leases(),
            _ => {}
        }
        if self.random.one_in(3) {
            let records = 1 + self.random.below(20) as usize;
            self.reader
                .collect_garbage_step(records)
                .expect("the engine works");
        }
    }

    fn execute_batch(&mut self) {
        const TERM: u64 = 7;
        let before = self.model.revision();
        let count = 1 + self.random.below(BATCH_COMMANDS_MAX);
        let commands: Vec<Command> = (0..count)
            .map(|_| self.random.command(self.model.revision()))
            .collect();
        if self.random.one_in(2) {
            self.applier
                .prefetch(commands.iter())
                .expect("the engine works");
        }
        for command in &commands {
            let expected = self.model.execute(command, TERM);
            let result = self
                .applier
                .execute(command, TERM)
                .expect("the engine works");
            assert_eq!(result, expected, "{command:?}");
            assert_eq!(self.applier.revision(), self.model.revision());
            // Readers see nothing yet.
            assert_eq!(self.reader.revision(), before);
        }
        let committed = self.applier.commit().expect("the engine works");
        assert_eq!(self.reader.revision(), self.model.revision());
        assert_eq!(
            self.reader.compact_revision(),
            self.model.compact_revision()
        );
        self.check_committed(before, &committed);
    }

    fn check_committed(&self, before: i64, committed: &Committed) {
        assert_eq!(committed.revision, self.model.revision());
        // What was written and compacted in one batch is in the events and not in the model.
        if self.model.compact_revision() <= before {
            self.check_batches(&committed.events, before + 1, self.wants_previous);
        }
    }

    fn check_batches(&self, batches: &[RevisionEvents], from: i64, with_previous: bool) {
        let mut expected = self.model.records_from(from);
        for batch in batches {
            assert!(!batch.events.is_empty());
            for event in &batch.events {
                let record = expected.next().expect("the model has as many events");
                let (main, sub) = record.revision;
                assert_eq!(batch.revision, main);
                assert_eq!(event.revision, Revision::new(main, sub));
                assert_eq!(event.tombstone, record.tombstone);
                assert_eq!(event.key, record.pair.key);
                assert_eq!(event.created, !record.tombstone && record.pair.version == 1);
                let mut shown = record.pair.clone();
                shown.mod_revision = main;
                assert_eq!(event.key_value, EncodedKeyValue::from(&shown));
                let previous = match event.created {
                    true => None,
                    false => self.model.previous_pair(&event.key, main),
                };
                let previous = previous.as_ref().map(EncodedKeyValue::from);
                if with_previous || event.previous_key_value.is_some() {
                    assert_eq!(event.previous_key_value, previous, "{event:?}");
                }
                let looked_up = self.reader.previous_key_value(event.previous);
                assert_eq!(looked_up.expect("the engine works"), previous, "{event:?}");
            }
        }
        assert_eq!(expected.next(), None);
    }

    fn check_range(&mut self) {
        let request = self.random.range_request(self.model.revision());
        let expected = self.model.range(&request);
        let response = etcd_error(self.reader.range(&request));
        assert_eq!(response, expected, "{request:?}");
    }

    fn check_stream(&mut self) {
        let (key, range_end) = self.random.range();
        let request = RangeRequest {
            key,
            range_end,
            limit: self.random.below(9) as i64,
            revision: self.random.some_revision(self.model.revision()),
            keys_only: self.random.one_in(4),
            count_only: self.random.one_in(5),
            ..RangeRequest::default()
        };
        let expected = self.model.range(&request);
        let mut cursor = match etcd_error(self.reader.range_stream_start(&request)) {
            Ok(cursor) => cursor,
            Err(error) => {
                assert_eq!(Err(error), expected, "{request:?}");
                return;
            }
        };
        let expected = expected.expect("the stream began");
        let mut kvs = Vec::new();
        loop {
            let limit = 1 + self.random.below(5) as usize;
            let chunk = cursor.next_chunk(limit).expect("nothing is compacted");
            assert!(chunk.kvs.len() <= limit);
            assert!(chunk.done || !chunk.kvs.is_empty());
            kvs.extend(chunk.kvs);
            if chunk.done {
                assert_eq!(kvs, expected.kvs, "{request:?}");
                assert_eq!(chunk.more, expected.more, "{request:?}");
                assert_eq!(chunk.count, expected.count, "{request:?}");
                assert_eq!(chunk.revision, self.model.revision());
                return;
            }
            assert_eq!((chunk.more, chunk.count, chunk.revision), (false, 0, 0));
        }
    }

    fn check_read_only_txn(&mut self) {
        let revision = self.model.revision();
        let Some(Request::Txn(mut request)) = self.random.command(revision).request else {
            return;
        };
        let mut ranges = || -> Vec<RequestOp> {
            let count = self.random.below(4);
            (0..count)
                .map(|_| RequestOp {
                    request: Some(OpRequest::RequestRange(self.random.range_request(revision))),
                })
                .collect()
        };
        request = TxnRequest {
            success: ranges(),
            failure: ranges(),
            ..request
        };
        let expected = self.model.read_only_txn(&request);
        let response = etcd_error(self.reader.read_only_txn(&request));
        assert_eq!(response, expected, "{request:?}");
    }

    fn check_hash(&mut self) {
        let revision = self.random.some_revision(self.model.revision());
        let expected = self.model.hash_kv(revision);
        let answer = etcd_error(self.reader.hash_kv(revision));
        assert_eq!(
            answer.map(|answer| answer.hash),
            expected,
            "HashKV({revision})"
        );
        if let Ok(answer) = answer {
            assert_eq!(answer.revision, self.model.revision());
            assert_eq!(answer.compact_revision, self.model.compact_revision());
        }
    }

    fn check_events(&mut self) {
        let current = self.model.revision();
        let from = self.random.some_revision(current);
        let with_previous = self.random.one_in(2);
        let max_bytes = self.random.below(200) as usize;
        let everything = |_: &[u8]| true;
        let scan = self
            .reader
            .events(from, i64::MAX, max_bytes, &everything, with_previous);
        if from.max(0) < self.model.compact_revision() {
            assert!(etcd_error(scan).is_err());
            return;
        }
        let mut scan = etcd_error(scan).expect("nothing is compacted");
        let mut batches = Vec::new();
        loop {
            batches.append(&mut scan.batches);
            if scan.next > current {
                break;
            }
            let next = scan.next;
            scan = self
                .reader
                .events(next, i64::MAX, max_bytes, &everything, with_previous)
                .expect("nothing is compacted");
            assert!(scan.next > next, "every scan covers a revision");
        }
        self.check_batches(&batches, from, with_previous);
    }

    fn check_leases(&mut self) {
        let id = self.random.lease_id();
        let lease = self.reader.lease(id).expect("the engine works");
        let times = lease.map(|lease| (lease.granted_ttl, lease.remaining_ttl));
        assert_eq!(times, self.model.leases().get(&id).copied());
        let keys = self.reader.lease_keys(id).expect("the engine works");
        assert_eq!(keys, self.model.lease_keys(id));
        assert_eq!(
            self.reader.leases().expect("the engine works").len(),
            self.model.leases().len()
        );
    }

    /// After all garbage is collected the engine holds exactly the model's records, and `latest`
    /// no tombstone below the compact revision.
    fn check_collected(&mut self) {
        while self
            .reader
            .collect_garbage_step(7)
            .expect("the engine works")
        {}
        assert_eq!(
            self.reader.finished_compact_revision(),
            self.model.compact_revision()
        );
        let mut kept = Vec::new();
        let leases = self.reader.leases().expect("the engine works").len() as u64;
        let mut logical_bytes = leases * crate::lease_rows::LEASE_BYTES as u64;
        let to = Revision::new(i64::MAX, 0);
        let engine = self.reader.engine();
        engine
            .scan_revisions(Revision::NONE, to, &mut |revision, tombstone, record| {
                kept.push(((revision.main, revision.sub), tombstone));
                logical_bytes += crate::compaction::record_bytes(&record) as u64;
                std::ops::ControlFlow::Continue(())
            })
            .expect("the engine works");
        let expected: Vec<_> = self
            .model
            .records_from(0)
            .map(|record| (record.revision, record.tombstone))
            .collect();
        assert_eq!(kept, expected);
        assert_eq!(self.reader.logical_bytes(), logical_bytes);
        // Commits take the collected tombstones out of `latest`.
        for _ in 0..100 {
            self.applier.commit().expect("the engine works");
        }
        self.check_hash();
        let everything = RangeRequest {
            key: b"\0"[..].into(),
            range_end: b"\0"[..].into(),
            count_only: true,
            ..RangeRequest::default()
        };
        let counted = self.reader.range(&everything).expect("it is readable");
        assert_eq!(counted.count, self.model.live().len() as i64);
    }
}

/// The client's view of a result; an error of the engine ends the test.
fn etcd_error<T>(
    result: Result<T, ReadError>,
) -> Result<T, metastore_proto::error_text::EtcdError> {
    match result {
        Ok(answer) => Ok(answer),
        Err(ReadError::Etcd(error)) => Err(error),
        Err(ReadError::Engine(error)) => panic!("the engine failed: {error}"),
    }
}
