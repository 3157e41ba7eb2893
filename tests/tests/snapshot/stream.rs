//! The messages of Maintenance.Snapshot.

use metastore_proto::etcdserverpb as pb;
use metastore_tests::programs::tool;
use metastore_tests::{Cluster, Member, Program, eventually};
use std::time::Duration;

use super::{Folder, contents, our_member, run, save, text, within};

const CHUNK_BYTES: usize = 32 * 1024;
const DIGEST_BYTES: usize = 32;

async fn messages(member: &Member) -> Vec<pb::SnapshotResponse> {
    let mut stream = member
        .client()
        .maintenance
        .clone()
        .snapshot(pb::SnapshotRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        messages.push(message);
    }
    messages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_cut_and_counted_as_etcds() {
    within(async {
        for member in [
            Member::start(Program::Etcd).await,
            our_member("rocksdb").await,
        ] {
            contents::fill(&member.client()).await;
            let messages = messages(&member).await;
            let (digest, chunks) = messages.split_last().unwrap();
            let total: usize = chunks.iter().map(|message| message.blob.len()).sum();
            assert_eq!(total % 4096, 0);
            let mut sent = 0;
            for (number, message) in chunks.iter().enumerate() {
                sent += message.blob.len();
                let last = number + 1 == chunks.len();
                assert!(
                    last || message.blob.len() == CHUNK_BYTES,
                    "message {number}"
                );
                assert_eq!(message.remaining_bytes, (total - sent) as u64);
                assert_eq!(message.version, "3.7.0");
                assert!(message.header.is_none());
            }
            assert_eq!(digest.blob.len(), DIGEST_BYTES);
            assert_eq!(digest.remaining_bytes, 0);
            assert_eq!(digest.version, "3.7.0");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_gives_a_snapshot_also_without_a_quorum() {
    within(async {
        let mut cluster = Cluster::start(Program::MetaStore, 3).await;
        let revision = cluster.members[0].client().put("a", "b").await.unwrap();
        let folder = Folder::new();
        for member in &cluster.members {
            let client = member.client();
            eventually(
                "the member has applied the put",
                Duration::from_secs(20),
                || async {
                    match client.get_serializable("a").await {
                        Ok((_, seen)) if seen >= revision => Ok(()),
                        other => Err(format!("{other:?}")),
                    }
                },
            )
            .await;
        }
        cluster.members[1].kill();
        cluster.members[2].kill();
        let file = folder.path("alone.db");
        save(&cluster.members[0], &file);
        let status = run(
            &tool("etcdutl"),
            &["snapshot", "status", text(&file), "-w", "json"],
        );
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["revision"], revision);
    })
    .await;
}
