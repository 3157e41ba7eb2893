//! Contents that a backup could get wrong.

use bytes::Bytes;
use metastore_proto::etcdserverpb as pb;
use metastore_tests::Client;

/// Keys that are written one by one; enough for trees of two levels.
const KEYS: u32 = 300;
/// Longer than a page of the file.
const LARGE_VALUE_BYTES: usize = 300_000;

async fn put(client: &Client, key: String, value: Bytes, lease: i64) {
    client
        .kv
        .clone()
        .put(pb::PutRequest {
            key: key.into(),
            value,
            lease,
            ..Default::default()
        })
        .await
        .unwrap();
}

async fn delete(client: &Client, key: &str, range_end: &str) {
    client
        .kv
        .clone()
        .delete_range(pb::DeleteRangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(range_end.as_bytes()),
            ..Default::default()
        })
        .await
        .unwrap();
}

async fn grant(client: &Client, id: i64, ttl: i64) {
    client
        .lease
        .clone()
        .lease_grant(pb::LeaseGrantRequest { id, ttl })
        .await
        .unwrap();
}

async fn compact(client: &Client, revision: i64) {
    client
        .kv
        .clone()
        .compact(pb::CompactionRequest {
            revision,
            physical: true,
        })
        .await
        .unwrap();
}

/// Writes, overwrites, deletes, attaches, compacts; leaves history before and behind the compaction.
pub async fn fill(client: &Client) {
    grant(client, 7, 3600).await;
    grant(client, i64::MAX, 7200).await;
    for number in 0..KEYS {
        let value = Bytes::from(vec![b'v'; number as usize * 7 % 500]);
        put(client, format!("key/{:03}", number % 200), value, 0).await;
    }
    put(
        client,
        "large".into(),
        vec![b'x'; LARGE_VALUE_BYTES].into(),
        0,
    )
    .await;
    put(client, "leased/a".into(), "1".into(), 7).await;
    put(client, "leased/b".into(), "2".into(), 7).await;
    put(client, "leased/c".into(), "3".into(), i64::MAX).await;
    put(client, "leased/b".into(), "moved".into(), 0).await;
    delete(client, "key/010", "key/020").await;
    put(client, "key/015".into(), "again".into(), 0).await;
    let deleted_at = put_revision(client).await;
    delete(client, "key/050", "").await;
    // A tombstone stands exactly at the compact revision.
    compact(client, deleted_at + 1).await;
    delete(client, "key/060", "key/070").await;
    put(client, "key/065".into(), "after the compaction".into(), 0).await;
    put(client, "large".into(), "small".into(), i64::MAX).await;
}

async fn put_revision(client: &Client) -> i64 {
    client.put("marker", "").await.unwrap()
}
