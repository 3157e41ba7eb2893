//! From etcd to MetaStore: directories that etcdutl restored, and members of etcd that were stopped.

use std::path::Path;
use std::time::Duration;

use metastore_tests::programs::tool;
use metastore_tests::{Cluster, Member, MemberBuilder, Program, eventually};

use super::{
    Digest, ENGINES, Folder, contents, metastoreutl, restore, run, save, text, try_run, within,
};

async fn filled_etcd() -> Member {
    let etcd = Member::start(Program::Etcd).await;
    contents::fill(&etcd.client()).await;
    etcd
}

fn ours_on(builder: MemberBuilder, data: &Path, engine: &str) -> MemberBuilder {
    builder
        .program(Program::MetaStore)
        .data_folder(data)
        .flag(format!("--engine={engine}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_member_starts_from_a_directory_that_etcdutl_restored() {
    within(async {
        let folder = Folder::new();
        let etcd = filled_etcd().await;
        let expected = Digest::of(&etcd.client()).await;
        let file = folder.path("etcd.db");
        save(&etcd, &file);
        for engine in ENGINES {
            let builder = MemberBuilder::new(Program::MetaStore);
            let data = folder.path(engine);
            restore(&tool("etcdutl"), &file, &builder, &data, &[]);
            let mut ours = ours_on(builder, &data, engine).start().await;
            assert_eq!(Digest::of(&ours.client()).await, expected, "{engine}");
            assert!(data.join("member/etcd-snap/db").is_file(), "{engine}");
            assert!(!data.join("member/snap").exists(), "{engine}");

            let revision = ours.client().put("after", "restore").await.unwrap();
            assert_eq!(revision, expected.revision + 1);
            let after = Digest::of(&ours.client()).await;
            ours.kill();
            ours.restart().await;
            assert_eq!(Digest::of(&ours.client()).await, after, "{engine}");
            ours.assert_log_is_clean();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_directory_of_its_own_is_taken_over_too() {
    within(async {
        let folder = Folder::new();
        let etcd = filled_etcd().await;
        let expected = Digest::of(&etcd.client()).await;
        let file = folder.path("etcd.db");
        save(&etcd, &file);
        let builder = MemberBuilder::new(Program::MetaStore);
        let (data, log) = (folder.path("data"), folder.path("log"));
        let wal_dir = format!("--wal-dir={}", text(&log));
        restore(&tool("etcdutl"), &file, &builder, &data, &[&wal_dir]);
        let mut ours = ours_on(builder, &data, "rocksdb")
            .flag(wal_dir)
            .start()
            .await;
        assert_eq!(Digest::of(&ours.client()).await, expected);
        ours.kill();
        ours.restart().await;
        assert_eq!(Digest::of(&ours.client()).await, expected);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_start_from_one_snapshot() {
    within(async {
        let folder = Folder::new();
        let etcd = filled_etcd().await;
        let expected = Digest::of(&etcd.client()).await;
        let file = folder.path("etcd.db");
        save(&etcd, &file);

        let builders: Vec<_> = (0..3)
            .map(|number| MemberBuilder::new(Program::MetaStore).name(&format!("m{number}")))
            .collect();
        let all: Vec<_> = builders
            .iter()
            .map(|builder| (builder.member_name().to_owned(), builder.peer_url()))
            .collect();
        let cluster: Vec<_> = all
            .iter()
            .map(|(name, url)| format!("{name}={url}"))
            .collect();
        let cluster = format!("--initial-cluster={}", cluster.join(","));
        let mut members = Vec::new();
        for (number, builder) in builders.into_iter().enumerate() {
            let data = folder.path(&format!("m{number}"));
            // Two members by etcd's tool, one by ours: they make the same cluster.
            let program = match number {
                0 => metastoreutl(),
                _ => tool("etcdutl"),
            };
            restore(&program, &file, &builder, &data, &[&cluster]);
            members.push(
                builder
                    .data_folder(&data)
                    .initial_cluster(all.clone())
                    .spawn(),
            );
        }
        for member in &mut members {
            member.ready().await;
        }
        for member in &members {
            assert_eq!(Digest::of(&member.client()).await, expected);
        }
        let revision = members[0].client().put("after", "restore").await.unwrap();
        assert_eq!(revision, expected.revision + 1);
        members[1].kill();
        members[0]
            .client()
            .put("after", "two members")
            .await
            .unwrap();
        members[1].restart().await;
        let after = Digest::of(&members[0].client()).await;
        for member in &members {
            let client = member.client();
            let after = &after;
            eventually("the members agree", Duration::from_secs(30), || async {
                let digest = Digest::of(&client).await;
                match digest == *after {
                    true => Ok(()),
                    false => Err(format!("{digest:?}")),
                }
            })
            .await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_member_of_etcd_goes_on_as_ours() {
    within(async {
        for engine in ENGINES {
            let mut etcd = filled_etcd().await;
            // The last writes are in etcd's log and most likely not in its database.
            for number in 0..20 {
                etcd.client()
                    .put(format!("late/{number}"), "value")
                    .await
                    .unwrap();
            }
            let expected = Digest::of(&etcd.client()).await;
            let ids = etcd.client().status().await.unwrap().header.unwrap();
            etcd.kill();
            let builder = etcd.builder().clone();
            let data = etcd.data_folder().to_owned();
            let ours = ours_on(builder, &data, engine).start().await;
            assert_eq!(Digest::of(&ours.client()).await, expected, "{engine}");
            let header = ours.client().status().await.unwrap().header.unwrap();
            assert_eq!(header.member_id, ids.member_id);
            assert_eq!(header.cluster_id, ids.cluster_id);
            assert!(
                header.raft_term > ids.raft_term,
                "a new election, a new term"
            );
            ours.assert_log_is_clean();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_was_interrupted_is_repeated() {
    within(async {
        let folder = Folder::new();
        let etcd = filled_etcd().await;
        let expected = Digest::of(&etcd.client()).await;
        let file = folder.path("etcd.db");
        save(&etcd, &file);
        let builder = MemberBuilder::new(Program::MetaStore);
        let data = folder.path("data");
        restore(&tool("etcdutl"), &file, &builder, &data, &[]);
        // What a crash leaves between moving the parts and writing the identity.
        for part in ["importing/log", "store/0", "snapshot"] {
            std::fs::create_dir_all(data.join("member").join(part)).unwrap();
        }
        std::fs::write(data.join("member/store/0/CURRENT"), "half").unwrap();
        let mut ours = ours_on(builder, &data, "rocksdb").start().await;
        assert_eq!(Digest::of(&ours.client()).await, expected);
        // A crash after the identity was written leaves etcd's files in their old place.
        ours.kill();
        std::fs::rename(data.join("member/etcd-snap"), data.join("member/snap")).unwrap();
        ours.restart().await;
        assert_eq!(Digest::of(&ours.client()).await, expected);
        assert!(data.join("member/etcd-snap/db").is_file());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrate_copies_a_stopped_member_of_etcd() {
    within(async {
        let folder = Folder::new();
        let mut etcd = filled_etcd().await;
        let expected = Digest::of(&etcd.client()).await;
        etcd.terminate().await;
        let inspected = run(&metastoreutl(), &["inspect", text(etcd.data_folder())]);
        let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
        assert_eq!(inspected["kind"], "data directory of etcd");
        assert_eq!(inspected["revision"], expected.revision);
        assert_eq!(inspected["index"], inspected["appliedIndex"]);
        let data = folder.path("ours");
        run(
            &metastoreutl(),
            &[
                "migrate",
                "--from-etcd",
                text(etcd.data_folder()),
                "--data-dir",
                text(&data),
            ],
        );
        let ours = ours_on(etcd.builder().clone(), &data, "rocksdb")
            .start()
            .await;
        assert_eq!(Digest::of(&ours.client()).await, expected);
        drop(ours);
        // The source is as it was.
        etcd.restart().await;
        assert_eq!(Digest::of(&etcd.client()).await, expected);
        let again = try_run(
            &metastoreutl(),
            &[
                "migrate",
                "--from-etcd",
                text(etcd.data_folder()),
                "--data-dir",
                text(&data),
            ],
        );
        assert!(!again.success);
        assert!(again.stderr.contains("not empty"), "{}", again.stderr);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_cluster_of_etcd_goes_on_as_ours() {
    within(async {
        let mut etcd = Cluster::start(Program::Etcd, 3).await;
        contents::fill(&etcd.members[0].client()).await;
        for number in 0..50 {
            let member = &etcd.members[number % 3];
            let key = format!("late/{number}");
            member.client().put(key, "acknowledged").await.unwrap();
        }
        let expected = Digest::of(&etcd.members[0].client()).await;
        for member in &mut etcd.members {
            member.kill();
        }
        let mut ours: Vec<Member> = etcd
            .members
            .iter()
            .map(|member| {
                let data = member.data_folder().to_owned();
                ours_on(member.builder().clone(), &data, "rocksdb").spawn()
            })
            .collect();
        for member in &mut ours {
            member.ready().await;
        }
        for member in &ours {
            let client = member.client();
            let expected = &expected;
            eventually(
                "the member has everything",
                Duration::from_secs(30),
                || async {
                    let digest = Digest::of(&client).await;
                    match digest == *expected {
                        true => Ok(()),
                        false => Err(format!("{digest:?}, expected {expected:?}")),
                    }
                },
            )
            .await;
            member.assert_log_is_clean();
        }
        let revision = ours[2].client().put("after", "taking over").await.unwrap();
        assert_eq!(revision, expected.revision + 1);
    })
    .await;
}
