//! Backup, restore and the way from etcd to MetaStore and back, with etcd's own tools and a real
//! etcd on the other side. HashKV proves that nothing was lost: it covers every revision, key, value
//! and lease id.

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use metastore_proto::etcdserverpb as pb;
use metastore_tests::programs::tool;
use metastore_tests::{Client, Member, MemberBuilder, Program};
use tempfile::TempDir;

#[path = "snapshot/contents.rs"]
mod contents;
#[path = "snapshot/from_etcd.rs"]
mod from_etcd;
#[path = "snapshot/memory.rs"]
mod memory;
#[path = "snapshot/offline.rs"]
mod offline;
#[path = "snapshot/stream.rs"]
mod stream;
#[path = "snapshot/users.rs"]
mod users;

/// A test that takes longer hangs.
const TEST_LIMIT: Duration = Duration::from_secs(180);
const ENGINES: [&str; 2] = ["rocksdb", "memory"];

async fn within(test: impl Future<Output = ()>) {
    metastore_tests::within(TEST_LIMIT, test).await;
}

/// What a program answered.
struct Output {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Output {
    fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

fn try_run(program: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    Output {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn run(program: &Path, arguments: &[&str]) -> String {
    let output = try_run(program, arguments);
    assert!(
        output.success,
        "{} {arguments:?} failed:\n{}",
        program.display(),
        output.all()
    );
    output.stdout
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test folders have plain names")
}

/// A folder for the files of one test.
struct Folder {
    folder: TempDir,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("metastore-snapshot-")
            .tempdir()
            .unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Our offline tool, which is built together with the server.
fn metastoreutl() -> PathBuf {
    Program::MetaStore.path().with_file_name("metastoreutl")
}

async fn our_member(engine: &str) -> Member {
    MemberBuilder::new(Program::MetaStore)
        .flag(format!("--engine={engine}"))
        .start()
        .await
}

fn save(member: &Member, file: &Path) {
    let endpoints = format!("--endpoints={}", member.endpoint());
    run(
        &tool("etcdctl"),
        &[&endpoints, "snapshot", "save", text(file)],
    );
}

/// `etcdutl snapshot restore` (or ours) for a cluster of the member that `builder` starts.
fn restore(program: &Path, file: &Path, builder: &MemberBuilder, folder: &Path, more: &[&str]) {
    let name = builder.member_name();
    let peer = builder.peer_url();
    let mut arguments = vec![
        "snapshot".to_owned(),
        "restore".to_owned(),
        text(file).to_owned(),
        format!("--name={name}"),
        format!("--initial-cluster={name}={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        "--initial-cluster-token=restored".to_owned(),
        format!("--data-dir={}", text(folder)),
    ];
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(program, &arguments);
}

/// What two stores must agree on.
#[derive(Debug, PartialEq)]
struct Digest {
    hash: u32,
    revision: i64,
    compact_revision: i64,
    leases: Vec<(i64, i64, Vec<Vec<u8>>)>,
}

impl Digest {
    async fn of(client: &Client) -> Self {
        // A hash is of what the member has; a linearizable read makes it wait for everything.
        client.get("anything").await.unwrap();
        let hash = client
            .maintenance
            .clone()
            .hash_kv(pb::HashKvRequest { revision: 0 })
            .await
            .unwrap()
            .into_inner();
        let mut lease_client = client.lease.clone();
        let ids = lease_client
            .lease_leases(pb::LeaseLeasesRequest {})
            .await
            .unwrap()
            .into_inner();
        let mut leases = Vec::new();
        for lease in ids.leases {
            let answer = lease_client
                .lease_time_to_live(pb::LeaseTimeToLiveRequest {
                    id: lease.id,
                    keys: true,
                })
                .await
                .unwrap()
                .into_inner();
            let mut keys: Vec<Vec<u8>> = answer.keys.iter().map(|key| key.to_vec()).collect();
            keys.sort();
            leases.push((lease.id, answer.granted_ttl, keys));
        }
        leases.sort();
        Self {
            hash: hash.hash,
            revision: hash.hash_revision,
            compact_revision: hash.compact_revision,
            leases,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_starts_from_our_snapshot_with_equal_data() {
    within(async {
        for engine in ENGINES {
            let folder = Folder::new();
            let ours = our_member(engine).await;
            contents::fill(&ours.client()).await;
            let expected = Digest::of(&ours.client()).await;
            let file = folder.path("ours.db");
            save(&ours, &file);

            let status = run(
                &tool("etcdutl"),
                &["snapshot", "status", text(&file), "-w", "json"],
            );
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            assert_eq!(status["revision"], expected.revision, "{engine}: {status}");
            assert_eq!(status["version"], "3.7.0", "{engine}: {status}");

            let builder = MemberBuilder::new(Program::Etcd);
            let data = folder.path("etcd");
            restore(&tool("etcdutl"), &file, &builder, &data, &[]);
            let etcd = builder.data_folder(&data).start().await;
            assert_eq!(Digest::of(&etcd.client()).await, expected, "{engine}");
            etcd.client().put("after", "restore").await.unwrap();
            ours.assert_log_is_clean();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_saves_checks_and_restores() {
    within(async {
        let folder = Folder::new();
        let ours = our_member("rocksdb").await;
        ours.client().put("greeting", "hello").await.unwrap();
        let tools = tool("etcdctl").parent().unwrap().to_owned();
        let programs = metastoreutl().parent().unwrap().to_owned();
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/backup.sh");
        let output = Command::new("bash")
            .arg(&example)
            .env("ETCDCTL_ENDPOINTS", ours.endpoint())
            .env(
                "PATH",
                format!(
                    "{}:{}:{}",
                    tools.display(),
                    programs.display(),
                    std::env::var("PATH").unwrap()
                ),
            )
            .current_dir(folder.folder.path())
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{shown}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            folder
                .path("restored.metastore/member/identity.json")
                .is_file()
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_store_can_be_saved_and_restored() {
    within(async {
        for engine in ENGINES {
            let folder = Folder::new();
            let ours = our_member(engine).await;
            let expected = Digest::of(&ours.client()).await;
            let file = folder.path("ours.db");
            save(&ours, &file);
            let builder = MemberBuilder::new(Program::Etcd);
            let data = folder.path("etcd");
            restore(&tool("etcdutl"), &file, &builder, &data, &[]);
            let etcd = builder.data_folder(&data).start().await;
            assert_eq!(Digest::of(&etcd.client()).await, expected, "{engine}");
        }
    })
    .await;
}
