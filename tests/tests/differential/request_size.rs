//! The largest requests that are taken.

use metastore_proto::etcdserverpb as pb;
use metastore_tests::client::Client;
use metastore_tests::within;
use tonic::{Code, Status};

use super::*;

const BYTES_MAX: usize = 20_000;
const LEASE: i64 = 0x7fff_0000_0000_0007;

/// What is asked with a value or a key of so many bytes.
type Ask = fn(usize) -> pb::TxnRequest;

fn put(request: pb::PutRequest) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(request)),
    }
}

/// Transactions of one put are sent as puts.
const FORMS: &[(&str, Ask)] = &[
    ("put", |size| {
        single(pb::PutRequest {
            key: "a".into(),
            value: vec![b'v'; size].into(),
            ..Default::default()
        })
    }),
    ("put with everything", |size| {
        single(pb::PutRequest {
            key: "a".into(),
            value: vec![b'v'; size].into(),
            lease: LEASE,
            prev_kv: true,
            ..Default::default()
        })
    }),
    ("put of a long key, without its value", |size| {
        single(pb::PutRequest {
            key: vec![b'k'; size].into(),
            ignore_value: true,
            ignore_lease: true,
            ..Default::default()
        })
    }),
    ("transaction", |size| pb::TxnRequest {
        success: vec![
            put(pb::PutRequest {
                key: "a".into(),
                value: vec![b'v'; size].into(),
                lease: LEASE,
                ..Default::default()
            }),
            put(pb::PutRequest {
                key: "b".into(),
                ..Default::default()
            }),
        ],
        ..Default::default()
    }),
];

fn single(request: pb::PutRequest) -> pb::TxnRequest {
    pb::TxnRequest {
        success: vec![put(request)],
        ..Default::default()
    }
}

async fn ask(client: &Client, mut request: pb::TxnRequest) -> Result<(), Status> {
    if request.success.len() > 1 {
        return client.kv.clone().txn(request).await.map(|_| ());
    }
    match request.success.remove(0).request {
        Some(pb::request_op::Request::RequestPut(put)) => {
            client.kv.clone().put(put).await.map(|_| ())
        }
        other => panic!("not a put: {other:?}"),
    }
}

/// The most bytes that pass; every other answer than `request is too large` passes.
async fn largest(client: &Client, form: Ask) -> usize {
    let (mut passes, mut fails) = (BYTES_MAX - 200, BYTES_MAX);
    while fails - passes > 1 {
        let size = usize::midpoint(passes, fails);
        match ask(client, form(size)).await {
            Err(status) if status.message() == "etcdserver: request is too large" => {
                assert_eq!(status.code(), Code::InvalidArgument);
                fails = size;
            }
            Err(status) if status.message() != "etcdserver: key not found" => panic!("{status}"),
            _ => passes = size,
        }
    }
    passes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_requests_are_as_large_as_etcds() {
    within(TEST_LIMIT, async {
        let flag = format!("--max-request-bytes={BYTES_MAX}");
        let stores = Stores::start(&[&flag]).await;
        let mut found = Vec::new();
        for member in &stores.members {
            let client = member.client();
            let grant = pb::LeaseGrantRequest {
                id: LEASE,
                ttl: 1000,
            };
            client.lease.clone().lease_grant(grant).await.unwrap();
            // Each request of etcd has a number that begins with two bytes of the member's own: one byte more
            // or less, as the member's id will have it.
            let id = client.status().await.unwrap().header.unwrap().member_id;
            let begin = (id & 0xffff) << 48 | 1 << 47;
            let id_bytes = (64 - begin.leading_zeros() as usize).div_ceil(7);
            let mut sizes = Vec::new();
            for (name, form) in FORMS {
                sizes.push((*name, largest(&client, *form).await + id_bytes));
            }
            found.push(sizes);
        }
        for ours in &found[1..] {
            assert_eq!(ours, &found[0], "(left: ours, right: etcd)");
        }
    })
    .await;
}
