//! metastoreutl beside etcdutl.

use metastore_tests::programs::tool;
use metastore_tests::{MemberBuilder, Program};

use super::{
    Digest, ENGINES, Folder, contents, metastoreutl, our_member, restore, run, save, text, try_run,
    within,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_hash_are_printed_as_by_etcdutl() {
    within(async {
        let folder = Folder::new();
        let ours = our_member("rocksdb").await;
        contents::fill(&ours.client()).await;
        let expected = Digest::of(&ours.client()).await;
        let file = folder.path("ours.db");
        save(&ours, &file);
        for format in ["simple", "json", "table", "fields"] {
            let arguments = ["snapshot", "status", text(&file), "--write-out", format];
            assert_eq!(
                run(&metastoreutl(), &arguments),
                run(&tool("etcdutl"), &arguments),
                "{format}"
            );
        }
        // etcdutl writes into the file that it hashes.
        let copy = folder.path("copy.db");
        for format in ["simple", "json", "table", "fields"] {
            std::fs::copy(&file, &copy).unwrap();
            let arguments = ["hashkv", text(&copy), "-w", format];
            assert_eq!(
                run(&metastoreutl(), &arguments),
                run(&tool("etcdutl"), &arguments),
                "{format}"
            );
        }
        let hash = run(&metastoreutl(), &["hashkv", text(&file), "-w", "json"]);
        let hash: serde_json::Value = serde_json::from_str(&hash).unwrap();
        assert_eq!(hash["hash"], expected.hash);
        assert_eq!(hash["hashRevision"], expected.revision);
        for format in ["protobuf", "nonsense"] {
            let arguments = ["snapshot", "status", text(&file), "--write-out", format];
            let (ours, theirs) = (
                try_run(&metastoreutl(), &arguments),
                try_run(&tool("etcdutl"), &arguments),
            );
            assert_eq!(ours.stderr, theirs.stderr);
            assert!(!ours.success && !theirs.success);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raised_revision_is_the_one_that_etcdutl_makes() {
    within(async {
        let folder = Folder::new();
        let ours = our_member("rocksdb").await;
        contents::fill(&ours.client()).await;
        let before = Digest::of(&ours.client()).await;
        let file = folder.path("ours.db");
        save(&ours, &file);
        let bump = ["--bump-revision=1000", "--mark-compacted"];

        let builder = MemberBuilder::new(Program::Etcd);
        let data = folder.path("etcd");
        restore(&tool("etcdutl"), &file, &builder, &data, &bump);
        let etcd = builder.data_folder(&data).start().await;
        let expected = Digest::of(&etcd.client()).await;
        assert_eq!(expected.revision, before.revision + 1000);
        for engine in ENGINES {
            let builder = MemberBuilder::new(Program::MetaStore).flag(format!("--engine={engine}"));
            let data = folder.path(engine);
            let engine_flag = format!("--engine={engine}");
            let more = [bump[0], bump[1], &engine_flag];
            restore(&metastoreutl(), &file, &builder, &data, &more);
            let mut restored = builder.data_folder(&data).start().await;
            assert_eq!(Digest::of(&restored.client()).await, expected, "{engine}");
            restored.kill();
            restored.restart().await;
            assert_eq!(Digest::of(&restored.client()).await, expected, "{engine}");
        }
        let alone = try_run(
            &metastoreutl(),
            &["snapshot", "restore", text(&file), "--bump-revision=1"],
        );
        assert!(!alone.success);
        assert!(alone.stderr.contains("--mark-compacted required"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_starts_from_a_directory_that_we_made() {
    within(async {
        let folder = Folder::new();
        let ours = our_member("memory").await;
        contents::fill(&ours.client()).await;
        let expected = Digest::of(&ours.client()).await;
        let file = folder.path("ours.db");
        save(&ours, &file);
        let builder = MemberBuilder::new(Program::Etcd);
        let data = folder.path("etcd");
        let peer = builder.peer_url();
        run(
            &metastoreutl(),
            &[
                "migrate",
                "--from-snapshot",
                text(&file),
                &format!("--initial-cluster=default={peer}"),
                &format!("--initial-advertise-peer-urls={peer}"),
                "--data-dir",
                text(&data),
            ],
        );
        let mut etcd = builder.data_folder(&data).start().await;
        assert_eq!(Digest::of(&etcd.client()).await, expected);
        etcd.client().put("after", "migration").await.unwrap();
        let after = Digest::of(&etcd.client()).await;
        etcd.kill();
        etcd.restart().await;
        assert_eq!(Digest::of(&etcd.client()).await, after);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inspect_and_verify_look_at_stopped_members() {
    within(async {
        for engine in ENGINES {
            let folder = Folder::new();
            let mut ours = our_member(engine).await;
            contents::fill(&ours.client()).await;
            let file = folder.path("ours.db");
            save(&ours, &file);
            let header = ours.client().status().await.unwrap().header.unwrap();
            ours.terminate().await;
            let inspected = run(&metastoreutl(), &["inspect", text(ours.data_folder())]);
            let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
            assert_eq!(inspected["memberId"], format!("{:x}", header.member_id));
            assert_eq!(inspected["clusterId"], format!("{:x}", header.cluster_id));
            assert_eq!(inspected["term"], header.raft_term);
            assert_eq!(inspected["engine"], engine);
            if engine == "rocksdb" {
                assert_eq!(inspected["revision"], header.revision);
                let hash = run(&metastoreutl(), &["hashkv", text(ours.data_folder())]);
                let of_file = run(&metastoreutl(), &["hashkv", text(&file)]);
                assert_eq!(hash, of_file);
            }
            for path in [ours.data_folder(), &file] {
                let verified = run(&metastoreutl(), &["verify", text(path)]);
                assert!(verified.ends_with("ok\n"), "{verified}");
            }
            ours.restart().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_snapshots_are_refused_in_plain_words() {
    within(async {
        let folder = Folder::new();
        let ours = our_member("rocksdb").await;
        contents::fill(&ours.client()).await;
        let file = folder.path("ours.db");
        save(&ours, &file);
        let intact = std::fs::read(&file).unwrap();
        let damaged = folder.path("damaged.db");
        let data = folder.path("data");
        let restored = |more: &str| {
            try_run(
                &metastoreutl(),
                &[
                    "snapshot",
                    "restore",
                    text(&damaged),
                    "--data-dir",
                    text(&data),
                    more,
                ],
            )
        };
        // A flipped bit, a missing end, a missing digest, another file.
        let mut flipped = intact.clone();
        flipped[3 * 4096 + 100] ^= 1;
        for (bytes, expected) in [
            (flipped, "expected sha256"),
            (intact[..intact.len() / 2].to_vec(), "snapshot missing hash"),
            (
                intact[..intact.len() - 32].to_vec(),
                "snapshot missing hash",
            ),
            (b"hello".to_vec(), "snapshot missing hash"),
        ] {
            std::fs::write(&damaged, bytes).unwrap();
            let output = restored("--skip-hash-check=false");
            assert!(!output.success);
            assert!(output.stderr.contains(expected), "{}", output.stderr);
            assert!(!data.exists(), "nothing is left of a refused restore");
        }
        for (bytes, expected) in [
            (intact[..intact.len() / 2].to_vec(), "the file ends here"),
            (b"hello".to_vec(), "is no bbolt database"),
        ] {
            std::fs::write(&damaged, bytes).unwrap();
            let output = restored("--skip-hash-check");
            assert!(!output.success);
            assert!(output.stderr.contains(expected), "{}", output.stderr);
        }
        // A start on such a database is refused as well, and changes nothing.
        let builder = MemberBuilder::new(Program::MetaStore);
        let data = folder.path("restored");
        restore(&tool("etcdutl"), &file, &builder, &data, &[]);
        let database = data.join("member/snap/db");
        let bytes = std::fs::read(&database).unwrap();
        // bbolt's file is longer than its pages; a cut has to go deep to do harm.
        std::fs::write(&database, &bytes[..3 * 4096]).unwrap();
        let (status, log) = builder.data_folder(&data).run_to_end().await;
        assert!(!status.success());
        assert!(
            log.contains("cannot import the data directory of etcd"),
            "{log}"
        );
        assert!(database.is_file());
        assert!(!data.join("member/identity.json").exists());
    })
    .await;
}

/// bbolt has no checksums over its data, so a flipped bit in a value is data; everything else is refused
/// in plain words, leaves no half member behind and never ends in a panic or without an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_with_flipped_bits_is_taken_over_or_refused() {
    within(async {
        let folder = Folder::new();
        let ours = our_member("memory").await;
        contents::fill(&ours.client()).await;
        let file = folder.path("ours.db");
        save(&ours, &file);
        let builder = MemberBuilder::new(Program::MetaStore);
        let etcd = folder.path("etcd");
        restore(&tool("etcdutl"), &file, &builder, &etcd, &[]);
        let database = etcd.join("member/snap/db");
        let intact = std::fs::read(&database).unwrap();
        let target = folder.path("target");
        let migrate = || {
            let _ = std::fs::remove_dir_all(&target);
            try_run(
                std::path::Path::new("timeout"),
                &[
                    "60",
                    text(&metastoreutl()),
                    "migrate",
                    "--from-etcd",
                    text(&etcd),
                    "--data-dir",
                    text(&target),
                    "--engine=memory",
                ],
            )
        };
        let output = migrate();
        assert!(output.success, "{}", output.all());
        let check = |what: &str| {
            let output = migrate();
            let said = output.all();
            assert!(!said.contains("panicked"), "{what}: {said}");
            if !output.success {
                assert!(!said.trim().is_empty(), "{what}: no reason, or no end");
                assert!(!target.join("member/identity.json").exists(), "{what}");
            }
            output.success
        };
        // A database of bbolt that is none of etcd's.
        let mut foreign = intact.clone();
        for (name, other) in [(&b"meta"[..], &b"mute"[..]), (b"key", b"kex")] {
            while let Some(at) = foreign.windows(name.len()).position(|found| found == name) {
                foreign[at..at + name.len()].copy_from_slice(other);
            }
        }
        std::fs::write(&database, &foreign).unwrap();
        assert!(!check("a foreign database"));
        for nothing in [&b""[..], b"hello", &[0; 65536], &[0xff; 65536]] {
            std::fs::write(&database, nothing).unwrap();
            assert!(!check("no database"));
        }
        let mut refused = 0;
        for number in 0..60_usize {
            // The heads of pages and their elements matter most.
            let page = number % (intact.len() / 4096).max(1);
            let at = page * 4096 + (number * 7) % 120;
            let mut flipped = intact.clone();
            flipped[at] ^= 1 << (number % 8);
            std::fs::write(&database, &flipped).unwrap();
            refused += usize::from(!check(&format!("bit {} of byte {at}", number % 8)));
        }
        assert!(refused > 0, "no damage was noticed");
        eprintln!("{refused} of 60 refused");
    })
    .await;
}

/// Bytes of all files below a folder that hold data: RocksDB's log of itself grows whenever it is opened.
fn data_bytes_below(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            !["LOG", "MANIFEST", "OPTIONS"]
                .iter()
                .any(|own| name.starts_with(own))
        })
        .map(|entry| match entry.metadata().unwrap() {
            metadata if metadata.is_dir() => data_bytes_below(&entry.path()),
            metadata => metadata.len(),
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_defragmented_without_its_member() {
    const ROUNDS: u8 = 8;
    within(async {
        for engine in ENGINES {
            let mut member = our_member(engine).await;
            let client = member.client();
            let mut last = 0;
            for round in 0..ROUNDS {
                for key in 0..20 {
                    // Values that do not compress.
                    let value: Vec<u8> = (0..20_000).map(|_| rand::random()).collect();
                    last = client.put(format!("{round}/{key}"), value).await.unwrap();
                }
            }
            let delete = metastore_proto::etcdserverpb::DeleteRangeRequest {
                key: "0".into(),
                range_end: "7".into(),
                ..Default::default()
            };
            client.kv.clone().delete_range(delete).await.unwrap();
            let compact = metastore_proto::etcdserverpb::CompactionRequest {
                revision: last + 1,
                physical: true,
            };
            client.kv.clone().compact(compact).await.unwrap();
            let expected = Digest::of(&client).await;
            let data = member.data_folder().to_owned();
            let arguments = ["defrag", "--data-dir", text(&data)];
            assert!(!try_run(&metastoreutl(), &arguments).success, "it runs");
            member.terminate().await;
            let store = data.join("member/store");
            let before = data_bytes_below(&store);
            run(&metastoreutl(), &arguments);
            let after = data_bytes_below(&store);
            assert!(after <= before, "{engine}: {before} bytes, then {after}");
            if engine == "rocksdb" {
                // What is left is one round's values, and what belongs to a store.
                assert!(after < 500_000, "{engine}: {before} bytes, then {after}");
            }
            member.restart().await;
            assert_eq!(Digest::of(&member.client()).await, expected, "{engine}");
        }
        let nowhere = ["defrag", "--data-dir", "/nowhere"];
        assert!(!try_run(&metastoreutl(), &nowhere).success);
    })
    .await;
}
