//! Data folders that are used twice, foreign, damaged, read-only or full.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use metastore_tests::programs::subject;
use metastore_tests::{Client, Cluster, Member, MemberBuilder, Program, eventually};

use crate::within;

/// A message for people names what is wrong and does not come from a panic.
fn assert_refused(status: std::process::ExitStatus, log: &str, words: &[&str]) {
    assert!(!status.success(), "it ended with success; log:\n{log}");
    assert!(!log.contains("panicked at"), "it panicked; log:\n{log}");
    let lower = log.to_lowercase();
    assert!(
        words.iter().any(|word| lower.contains(word)),
        "none of {words:?} is in its log:\n{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_one_data_folder_is_refused() {
    within(async {
        let member = Member::start(subject()).await;
        member.client().put("a", "1").await.unwrap();
        if subject() == Program::Etcd {
            return; // etcd waits for the lock instead.
        }
        let second = MemberBuilder::new(subject()).data_folder(member.data_folder());
        let (status, log) = second.run_to_end().await;
        assert_refused(status, &log, &["lock", "in use", "another process"]);
        member.client().put("a", "2").await.unwrap();
        member.assert_log_is_clean();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_folder_of_another_cluster_does_not_mix() {
    within(async {
        let mut stranger = Member::start(subject()).await;
        stranger.client().put("foreign", "1").await.unwrap();
        stranger.terminate().await;

        // Three members are configured; the first one's folder belongs to the stranger.
        let first = MemberBuilder::new(subject())
            .name("m0")
            .data_folder(stranger.data_folder());
        let second = MemberBuilder::new(subject()).name("m1");
        let third = MemberBuilder::new(subject()).name("m2");
        let all: Vec<_> = [&first, &second, &third]
            .map(|builder| (builder.member_name().to_owned(), builder.peer_url()))
            .to_vec();
        let _first = first.initial_cluster(all.clone()).spawn();
        let mut second = second.initial_cluster(all.clone()).spawn();
        let mut third = third.initial_cluster(all).spawn();
        second.ready().await;
        third.ready().await;
        let client = second.client();
        client.put("own", "1").await.unwrap();
        let (foreign, _) = client.get("foreign").await.unwrap();
        assert!(foreign.is_none(), "data of another cluster came in");
        let (own, _) = third.client().get("own").await.unwrap();
        assert!(own.is_some());
    })
    .await;
}

/// The log's files of a member, largest first.
fn log_files(data: &Path) -> Vec<PathBuf> {
    fn walk(folder: &Path, files: &mut Vec<(u64, PathBuf)>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let data = entry.metadata().unwrap();
            if data.is_dir() {
                walk(&path, files);
            } else {
                files.push((data.len(), path));
            }
        }
    }
    let mut folder = data.join("member/wal");
    if !folder.is_dir() {
        folder = data.join("member/log");
    }
    assert!(folder.is_dir(), "no log folder in {}", data.display());
    let mut files = Vec::new();
    walk(&folder, &mut files);
    files.sort_by(|one, other| other.cmp(one));
    files.into_iter().map(|(_, path)| path).collect()
}

/// Damages each log file of a stopped member; the member must refuse to start, or have all data.
async fn damaged_logs(damage: fn(&Path)) {
    const WRITES: usize = 200;
    if subject() == Program::Etcd {
        return; // etcd goes on with what is left, or hangs.
    }
    let mut member = Member::start(subject()).await;
    let client = member.client();
    for number in 0..WRITES {
        client
            .put(format!("k{number}"), "v".repeat(100))
            .await
            .unwrap();
    }
    member.kill();
    for file in log_files(member.data_folder()) {
        damage(&file);
    }
    member.respawn();
    let client = Client::new(&member.endpoint());
    let deadline = std::time::Instant::now() + metastore_tests::deadline(Duration::from_secs(20));
    loop {
        if let Some(status) = member.try_exit() {
            assert!(!status.success(), "{status}");
            let log = member.log();
            assert!(!log.contains("panicked at"), "it panicked:\n{log}");
            let words = ["log", "segment", "wal", "checksum", "corrupt", "crc"];
            let lower = log.to_lowercase();
            assert!(
                words.iter().any(|word| lower.contains(word)),
                "no reason in the log:\n{log}"
            );
            return;
        }
        if let Ok((_, revision)) = client.get("k0").await {
            assert!(
                revision > i64::try_from(WRITES).unwrap(),
                "it serves with {revision} of {} revisions: acknowledged writes are lost",
                WRITES + 1
            );
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "it neither serves nor ends"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_log_is_refused_or_harmless() {
    within(damaged_logs(|file| {
        // Half of what is in use: segments are zeroed in advance.
        let bytes = std::fs::read(file).unwrap();
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |place| place + 1);
        std::fs::OpenOptions::new()
            .write(true)
            .open(file)
            .unwrap()
            .set_len(u64::try_from(used / 2).unwrap())
            .unwrap();
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_log_is_refused_or_harmless() {
    within(damaged_logs(|file| std::fs::write(file, b"").unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_log_is_refused_or_harmless() {
    within(damaged_logs(|file| {
        let text = "this is not a log\n".repeat(10_000);
        std::fs::write(file, text).unwrap();
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_the_log_is_refused_or_harmless() {
    within(damaged_logs(|file| {
        let mut bytes = std::fs::read(file).unwrap();
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |place| place + 1);
        if used > 0 {
            bytes[used / 2] ^= 0x40;
        }
        std::fs::write(file, bytes).unwrap();
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_log_files_are_noticed() {
    within(damaged_logs(|file| std::fs::remove_file(file).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_folder_that_cannot_be_written_is_refused() {
    within(async {
        let blocked = MemberBuilder::new(subject()).data_folder(Path::new("/dev/null/data"));
        let (status, log) = blocked.run_to_end().await;
        assert_refused(status, &log, &["not a directory"]);

        let Some(mount) = SmallDisk::mount("ro,size=16m") else {
            return;
        };
        let read_only = MemberBuilder::new(subject()).data_folder(&mount.folder().join("data"));
        let (status, log) = read_only.run_to_end().await;
        assert_refused(status, &log, &["read-only file system"]);
    })
    .await;
}

/// A file system of its own, in memory. Only root can make one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(folder.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(folder));
        }
        eprintln!("SKIPPED: cannot mount a tmpfs here (needs root): {options} is not tested");
        None
    }

    fn folder(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, options: &str) {
        let done = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(self.folder())
            .status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "remount with {options}"
        );
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the member's files may still be open.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.folder())
            .status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing() {
    const VALUE_BYTES: usize = 200_000;
    const WRITES_MAX: usize = 4000;
    within(async {
        let Some(disk) = SmallDisk::mount("size=400m") else {
            return;
        };
        let builder = MemberBuilder::new(subject()).data_folder(&disk.folder().join("data"));
        let mut member = builder.start().await;
        let client = Client::with_timeout(&member.endpoint(), Duration::from_secs(10));
        let mut acknowledged = 0;
        let failure = loop {
            assert!(acknowledged < WRITES_MAX, "the disk never became full");
            let value = vec![b'x'; VALUE_BYTES];
            match client.put(format!("k{acknowledged:05}"), value).await {
                Ok(_) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        eprintln!("full after {acknowledged} writes of {VALUE_BYTES} bytes: {failure}");
        if let Some(status) = member.try_exit() {
            let log = member.log();
            assert!(!status.success());
            assert_refused(status, &log, &["no space left"]);
        }
        member.kill();

        disk.remount("size=1500m");
        member.restart().await;
        let client = member.client();
        for number in 0..acknowledged {
            let (pair, _) = eventually("the member reads", Duration::from_secs(10), || async {
                client
                    .get(format!("k{number:05}"))
                    .await
                    .map_err(|error| error.to_string())
            })
            .await;
            let pair = pair.unwrap_or_else(|| panic!("acknowledged write {number} is lost"));
            assert_eq!(pair.value.len(), VALUE_BYTES);
        }
        client.put("after", "1").await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_data_is_lost_does_not_vote_with_an_empty_memory() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        cluster.members[0].client().put("a", "1").await.unwrap();
        let victim = (cluster.leader().await + 1) % 3;
        cluster.members[victim].kill();
        std::fs::remove_dir_all(cluster.members[victim].data_folder()).unwrap();
        // With `new` and the old id it would be a member that forgot its vote.
        cluster.members[victim].respawn();
        let other = (victim + 1) % 3;
        let client = cluster.members[other].client();
        client.put("a", "2").await.unwrap();
        let (pair, _) = client.get("a").await.unwrap();
        assert_eq!(pair.unwrap().value, "2");
        eprintln!(
            "the emptied member: {:?}",
            cluster.members[victim].try_exit()
        );
    })
    .await;
}
