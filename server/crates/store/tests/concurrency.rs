//! Readers beside the apply thread, compaction and the garbage collector.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::request_op::Request as Op;
use metastore_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use metastore_proto::internal::Command;
use metastore_proto::internal::command::Request;
use metastore_store::{Applier, MemoryEngine, ReadError, Reader, StoreOptions, open};

/// Live keys, always: each transaction deletes one and creates another.
const LIVE: i64 = 2500;
/// Keys that there can be.
const KEYS: i64 = 2 * LIVE;
const TRANSACTIONS: i64 = 20_000;

fn key(number: i64) -> String {
    // Neighbours move between blocks, so that blocks are split and merged while readers count.
    format!("key-{:05}", number.rem_euclid(KEYS))
}

fn execute(applier: &mut Applier, request: Request) {
    let command = Command {
        request: Some(request),
        ..Command::default()
    };
    let result = applier.execute(&command, 1).expect("the engine works");
    result.expect("the command is possible");
}

fn put_op(number: i64) -> RequestOp {
    RequestOp {
        request: Some(Op::RequestPut(PutRequest {
            key: key(number).into(),
            value: "value".into(),
            ..PutRequest::default()
        })),
    }
}

fn write(applier: &mut Applier) {
    for number in 0..TRANSACTIONS {
        let delete = RequestOp {
            request: Some(Op::RequestDeleteRange(DeleteRangeRequest {
                key: key(number).into(),
                ..DeleteRangeRequest::default()
            })),
        };
        let txn = TxnRequest {
            success: vec![delete, put_op(number + LIVE)],
            ..TxnRequest::default()
        };
        execute(applier, Request::Txn(txn));
        if number % 100 == 99 {
            let compaction = CompactionRequest {
                revision: applier.revision() - 20,
                physical: false,
            };
            execute(applier, Request::Compaction(compaction));
        }
        if number % 3 == 0 {
            applier.commit().expect("the engine works");
        }
    }
    applier.commit().expect("the engine works");
}

fn read(reader: &Reader, round: i64) {
    let limit = [0, 1, 100][(round % 3) as usize];
    let named = round % 2 == 1;
    let revision = if named {
        (reader.revision() - round % 30).max(2)
    } else {
        0
    };
    let request = RangeRequest {
        key: "key-".into(),
        range_end: "key.".into(),
        limit,
        revision,
        count_only: round % 7 == 0,
        ..RangeRequest::default()
    };
    let response = match reader.range(&request) {
        Err(ReadError::Etcd(EtcdError::Compacted)) if named => return,
        response => response.expect("it is readable"),
    };
    assert_eq!(response.count, LIVE, "{request:?}");
    if limit == 0 && !request.count_only {
        assert_eq!(response.kvs.len() as i64, LIVE);
        let current = response.header.expect("a header").revision;
        let at = if named { revision } else { current };
        for pair in &response.kvs {
            let mod_revision = pair.decode().expect("a stored pair").mod_revision;
            assert!(mod_revision <= at, "{mod_revision} is newer than {at}");
        }
    }
}

#[test]
fn readers_see_one_revision_while_everything_moves() {
    let engine = Arc::new(MemoryEngine::new());
    let (mut applier, reader) = open(engine, StoreOptions::default()).expect("it is empty");
    let all = TxnRequest {
        success: (0..LIVE).map(put_op).collect(),
        ..TxnRequest::default()
    };
    execute(&mut applier, Request::Txn(all));
    applier.commit().expect("the engine works");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for first in 0..2 {
            let (reader, done) = (reader.clone(), &done);
            scope.spawn(move || {
                let mut round = first;
                loop {
                    read(&reader, round);
                    round += 1;
                    if done.load(Ordering::Acquire) {
                        break;
                    }
                }
            });
        }
        let (collector, collector_done) = (reader.clone(), &done);
        scope.spawn(move || {
            while !collector_done.load(Ordering::Acquire) {
                collector
                    .collect_garbage_step(50)
                    .expect("the engine works");
                std::thread::yield_now();
            }
        });
        // The flag must be set even if the writer fails, or the readers never end.
        let written = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            write(&mut applier);
        }));
        done.store(true, Ordering::Release);
        written.expect("the writer ends");
    });
    read(&reader, 0);
    reader.hash_kv(0).expect("it is readable");
}
