//! A snapshot of any size needs the memory of some pages.
//!
//! `METASTORE_SNAPSHOT_BYTES=1073741824` runs it with a gibibyte.

use std::time::Duration;

use bytes::Bytes;
use metastore_proto::etcdserverpb as pb;
use metastore_tests::{Client, Member, eventually};

use super::{our_member, within};

const BYTES_DEFAULT: usize = 64 << 20;
const VALUE_BYTES: usize = 256 << 10;
/// Half of what the store holds: an export that collected it would show.
const GROWTH_BYTES_MAX: u64 = 40 << 20;

/// Bytes of memory that a process occupies, of which files that it reads are no part.
fn resident_bytes(member: &Member) -> u64 {
    let id = member.process_id().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("Linux");
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .expect("the kernel tells");
    let kibibytes: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("a number");
    kibibytes * 1024
}

async fn fill(client: &Client, bytes: usize) {
    let mut state = 1u64;
    for number in 0..bytes / VALUE_BYTES {
        // Noise, so that nothing can be compressed away.
        let value: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .take(VALUE_BYTES)
        .collect();
        client
            .put(format!("noise/{number:06}"), Bytes::from(value))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_needs_little_memory_and_holds_nobody_up() {
    within(async {
        let bytes = std::env::var("METASTORE_SNAPSHOT_BYTES")
            .map_or(BYTES_DEFAULT, |text| text.parse().expect("a number of bytes"));
        let member = our_member("rocksdb").await;
        let client = member.client();
        fill(&client, bytes).await;
        let before = resident_bytes(&member);
        let started = std::time::Instant::now();
        let mut stream = client
            .maintenance
            .clone()
            .snapshot(pb::SnapshotRequest {})
            .await
            .unwrap()
            .into_inner();
        let mut received = 0;
        let mut messages = 0u64;
        let mut most = before;
        while let Some(message) = stream.message().await.unwrap() {
            received += message.blob.len();
            messages += 1;
            if messages.is_multiple_of(256) {
                most = most.max(resident_bytes(&member));
                // The member serves meanwhile.
                client.put("meanwhile", "served").await.unwrap();
            }
        }
        most = most.max(resident_bytes(&member));
        let grown = most - before;
        println!(
            "snapshot of {received} bytes in {:?}: {before} bytes of memory before, {grown} more meanwhile",
            started.elapsed()
        );
        assert!(received > bytes, "everything is in it");
        assert!(
            grown < GROWTH_BYTES_MAX,
            "the snapshot of {received} bytes took {grown} bytes of memory"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_ends_when_its_client_leaves() {
    within(async {
        let member = our_member("rocksdb").await;
        let client = member.client();
        fill(&client, 16 << 20).await;
        let mut stream = client
            .maintenance
            .clone()
            .snapshot(pb::SnapshotRequest {})
            .await
            .unwrap()
            .into_inner();
        stream.message().await.unwrap().expect("a first message");
        drop(stream);
        eventually("the member notices", Duration::from_secs(20), || async {
            match member
                .log()
                .contains("the client left before it had the whole")
            {
                true => Ok(()),
                false => Err("nothing is logged".to_owned()),
            }
        })
        .await;
        member.assert_log_is_clean();
    })
    .await;
}
