//! `/debug/vars`, `/debug/pprof/`, and log files that rotate.

use metastore_tests::{Member, MemberBuilder, Program, http};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_and_profiles_are_shown() {
    let member = MemberBuilder::new(Program::MetaStore)
        .flag("--enable-pprof")
        .start()
        .await;
    let answer = http::get(&member.address(), "/debug/vars");
    assert_eq!(answer.status, 200);
    let variables: serde_json::Value = serde_json::from_slice(&answer.body).expect("valid JSON");
    assert_eq!(variables["raft.status"]["raftState"], "StateLeader");
    assert!(variables["file_descriptor_limit"].as_u64() > Some(0));
    let refused = http::request(&member.address(), "POST", "/debug/vars", "");
    assert_eq!((refused.status, refused.header("allow")), (405, "GET"));

    let index = http::get(&member.address(), "/debug/pprof/");
    assert!(index.text().contains("profile"), "{}", index.text());
    let profile = http::get(&member.address(), "/debug/pprof/profile?seconds=1");
    assert_eq!(profile.status, 200, "{}", profile.text());
    // The texts of a profile name what was sampled.
    assert!(profile.text().contains("nanoseconds"));
    // What the test did since the start is enough for a sample or more. The member works meanwhile: names are
    // looked up while samples are taken.
    let client = member.client();
    let load = tokio::spawn(async move {
        loop {
            client.put("k", vec![0; 100_000]).await.unwrap();
        }
    });
    for (name, shown) in [("heap", "inuse_space"), ("allocs", "alloc_space")] {
        let heap = http::get(&member.address(), &format!("/debug/pprof/{name}"));
        assert_eq!(heap.status, 200, "{}", heap.text());
        assert!(heap.text().contains(shown), "{}", heap.text());
        assert!(
            heap.text().contains("metastore_server::"),
            "{}",
            heap.text()
        );
    }
    load.abort();
    for (path, status) in [
        ("/debug/pprof/goroutine", 501),
        ("/debug/pprof/nonsense", 404),
    ] {
        assert_eq!(http::get(&member.address(), path).status, status, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_no_profiles_unless_they_were_asked_for() {
    let member = Member::start(Program::MetaStore).await;
    let answer = http::get(&member.address(), "/debug/pprof/profile?seconds=1");
    assert_eq!(answer.status, 404);
    assert_eq!(http::get(&member.address(), "/debug/vars").status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_goes_to_a_file_that_rotates() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("logs").join("server.log");
    let member = MemberBuilder::new(Program::MetaStore)
        .flag(format!("--log-outputs={},stderr", path.display()))
        .flag("--enable-log-rotation")
        .flag("--log-rotation-config-json={\"maxsize\": 1, \"maxbackups\": 2}")
        .start()
        .await;
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(log.contains("ready to serve client requests"), "{log}");
    drop(member);
    for flags in [
        vec!["--enable-log-rotation"],
        vec![
            "--enable-log-rotation",
            "--log-outputs=a.log",
            "--log-rotation-config-json={\"maxsize\": true}",
        ],
    ] {
        let builder = flags
            .iter()
            .fold(MemberBuilder::new(Program::MetaStore), |builder, flag| {
                builder.flag(*flag)
            });
        let (status, log) = builder.run_to_end().await;
        assert!(!status.success(), "{flags:?}");
        assert!(log.contains("log"), "{log}");
    }
}
