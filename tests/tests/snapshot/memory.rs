//! A snapshot of any size needs the memory of some pages.
//!
//! `METASTORE_SNAPSHOT_BYTES=1073741824` runs it with a gibibyte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use metastore_proto::etcdserverpb as pb;
use metastore_tests::programs::tool;
use metastore_tests::{Client, Member, MemberBuilder, Program, eventually};

use super::{Digest, Folder, metastoreutl, our_member, restore, save, text, within};

const BYTES_DEFAULT: usize = 64 << 20;
const VALUE_BYTES: usize = 256 << 10;
/// Half of what the store holds: an export that collected it would show.
const GROWTH_BYTES_MAX: u64 = 40 << 20;

/// Most memory of a process that reads a snapshot of any size: what the server takes anyway, and less than
/// [`BYTES_DEFAULT`] more.
const READER_BYTES_MAX: u64 = 200 << 20;
/// How often the memory of a process is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Bytes of memory that a process occupies, of which files that it reads are no part.
fn resident_bytes(member: &Member) -> u64 {
    bytes_of_process(member.process_id().expect("it runs")).expect("it runs")
}

/// The same by the process's id; nothing when it has ended.
fn bytes_of_process(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// Looks at the memory of a process all the time.
struct MemoryWatch {
    stop: Arc<AtomicBool>,
    looking: std::thread::JoinHandle<u64>,
}

impl MemoryWatch {
    fn start(process: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let looking = std::thread::spawn(move || {
            let mut most = 0;
            while !stopped.load(Ordering::Relaxed)
                && let Some(bytes) = bytes_of_process(process)
            {
                most = most.max(bytes);
                std::thread::sleep(LOOK_INTERVAL);
            }
            most
        });
        Self { stop, looking }
    }

    /// The most that was seen.
    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.looking.join().unwrap()
    }
}

fn snapshot_bytes() -> usize {
    std::env::var("METASTORE_SNAPSHOT_BYTES").map_or(BYTES_DEFAULT, |text| {
        text.parse().expect("a number of bytes")
    })
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
        let bytes = snapshot_bytes();
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

/// The other way: a member that takes over what etcdutl restored, and our own restore.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taking_over_a_snapshot_of_etcd_needs_little_memory() {
    within(async {
        let bytes = snapshot_bytes();
        let folder = Folder::new();
        let file = folder.path("etcd.db");
        let expected = {
            let etcd = MemberBuilder::new(Program::Etcd)
                .flag("--quota-backend-bytes=8589934592")
                .start()
                .await;
            fill(&etcd.client(), bytes).await;
            save(&etcd, &file);
            Digest::of(&etcd.client()).await
        };
        assert!(file.metadata().unwrap().len() > bytes as u64);

        let builder = MemberBuilder::new(Program::MetaStore);
        let data = folder.path("by-etcdutl");
        restore(&tool("etcdutl"), &file, &builder, &data, &[]);
        let started = std::time::Instant::now();
        let mut ours = builder.data_folder(&data).spawn();
        let memory = MemoryWatch::start(ours.process_id().expect("it runs"));
        ours.ready().await;
        let took = started.elapsed();
        let digest = Digest::of(&ours.client()).await;
        let most = memory.finish();
        println!(
            "a member took {bytes} bytes over in {took:?}, with {most} bytes of memory at most"
        );
        assert_eq!(digest, expected);
        assert!(
            most < READER_BYTES_MAX,
            "the member took {most} bytes of memory"
        );
        drop(ours);

        let builder = MemberBuilder::new(Program::MetaStore);
        let data = folder.path("by-metastoreutl");
        let peer = builder.peer_url();
        let started = std::time::Instant::now();
        let mut restoring = std::process::Command::new(metastoreutl())
            .args(["snapshot", "restore", text(&file)])
            .arg(format!("--data-dir={}", text(&data)))
            .arg("--name=default")
            .arg(format!("--initial-cluster=default={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let memory = MemoryWatch::start(restoring.id());
        let status = tokio::task::spawn_blocking(move || restoring.wait())
            .await
            .unwrap()
            .unwrap();
        let took = started.elapsed();
        let most = memory.finish();
        println!(
            "metastoreutl restored {bytes} bytes in {took:?}, with {most} bytes of memory at most"
        );
        assert!(status.success());
        assert!(
            most < READER_BYTES_MAX,
            "metastoreutl took {most} bytes of memory"
        );
        let ours = builder.data_folder(&data).start().await;
        assert_eq!(Digest::of(&ours.client()).await, expected);
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
