//! Members that come and go.

use std::time::Duration;

use metastore_proto::etcdserverpb as pb;
use metastore_tests::load::{Load, LoadOptions};
use metastore_tests::member::ids;
use metastore_tests::programs::subject;
use metastore_tests::{Cluster, Member, MemberBuilder, Program, deadline, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{SOME_WRITES, within};

/// etcd refuses changes of the membership until its members have been connected for five seconds.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

async fn remove(cluster: &Cluster, through: usize, id: u64) {
    let client = cluster.members[through].client();
    eventually("the member is removed", CHANGE_LIMIT, || async {
        let request = pb::MemberRemoveRequest { id };
        client
            .cluster
            .clone()
            .member_remove(request)
            .await
            .map_err(|error| error.to_string())
    })
    .await;
}

async fn promote(cluster: &Cluster, id: u64) {
    let client = cluster.members[0].client();
    eventually("the learner is promoted", CHANGE_LIMIT, || async {
        let request = pb::MemberPromoteRequest { id };
        client
            .cluster
            .clone()
            .member_promote(request)
            .await
            .map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_from_one_to_three_and_back_under_load() {
    within(async {
        let mut cluster = Cluster::start(subject(), 1).await;
        let load = Load::start(cluster.endpoints(), LoadOptions::default());
        load.progress(SOME_WRITES, "one member works").await;
        let mut added = Vec::new();
        for learner in [true, false] {
            let (index, id) = cluster.add_member(learner).await;
            if learner {
                let status = cluster.members[index].client().status().await.unwrap();
                assert!(status.is_learner);
                promote(&cluster, id).await;
            }
            load.progress(SOME_WRITES, "the larger cluster works").await;
            added.push((index, id));
        }

        let members = cluster.members[0].client().members().await.unwrap();
        assert_eq!(members.len(), 3);
        assert!(
            members
                .iter()
                .all(|member| !member.is_learner && !member.name.is_empty())
        );

        for (index, id) in added {
            remove(&cluster, 0, id).await;
            let status = cluster.members[index]
                .wait_for_exit("it was removed from the cluster", CHANGE_LIMIT)
                .await;
            eprintln!("the removed member ended with {status}");
            load.progress(SOME_WRITES, "the smaller cluster works")
                .await;
            let left = ids(&cluster.members[0].client().members().await.unwrap());
            assert!(!left.contains(&id));
        }
        load.stop_and_check().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_never_comes_back() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        cluster.members[0].client().put("a", "1").await.unwrap();
        let victim = (cluster.leader().await + 1) % 3;
        let id = cluster.members[victim]
            .client()
            .status()
            .await
            .unwrap()
            .header
            .unwrap()
            .member_id;
        let other = (victim + 1) % 3;
        cluster.members[victim].kill();
        remove(&cluster, other, id).await;

        // It ends by itself, or serves nothing but its own old state; in no case does it join again.
        cluster.members[victim].respawn();
        let client = cluster.members[victim].client();
        let told = eventually(
            "the removed member ends or is refused",
            CHANGE_LIMIT,
            || async {
                match tokio::time::timeout(Duration::from_secs(1), client.put("a", "2")).await {
                    Ok(Ok(revision)) => panic!("a removed member wrote revision {revision}"),
                    Ok(Err(error)) => Ok(error.to_string()),
                    Err(_) => Err("hangs".to_owned()),
                }
            },
        )
        .await;
        eprintln!("a removed member says: {told}");
        let status = cluster.members[victim]
            .wait_for_exit("it was removed while it was down", CHANGE_LIMIT)
            .await;
        assert_eq!(status.code(), Some(1), "a start that failed");
        let (pair, _) = cluster.members[other].client().get("a").await.unwrap();
        assert_eq!(pair.unwrap().value, "1");
        assert_eq!(
            cluster.members[other]
                .client()
                .members()
                .await
                .unwrap()
                .len(),
            2
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_answers_only_serializable_reads() {
    within(async {
        let mut cluster = Cluster::start(subject(), 1).await;
        cluster.members[0].client().put("a", "1").await.unwrap();
        let (index, _) = cluster.add_member(true).await;
        let client = cluster.members[index].client();
        client.until_it_has("a", CHANGE_LIMIT).await;
        let refused = "etcdserver: rpc not supported for learner";
        assert_eq!(client.get("a").await.unwrap_err().message(), refused);
        assert_eq!(client.put("a", "2").await.unwrap_err().message(), refused);
        assert_eq!(client.members().await.unwrap_err().message(), refused);
        assert_eq!(client.hash_kv(0).await.unwrap_err().message(), refused);
        let lease = pb::LeaseGrantRequest { id: 1, ttl: 10 };
        let error = client.lease.clone().lease_grant(lease).await.unwrap_err();
        assert_eq!(error.message(), refused);
        assert!(client.status().await.unwrap().is_learner);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_and_cluster_ids_are_etcds() {
    within(async {
        // The ids are a hash of peer URLs and token: equal flags give equal ids.
        let reference = MemberBuilder::new(metastore_tests::Program::Etcd);
        let own = reference.clone();
        let mut etcd = reference.start().await;
        let wanted = etcd.client().status().await.unwrap().header.unwrap();
        let members = etcd.client().members().await.unwrap();
        etcd.kill();

        let own = own.program(subject()).data_folder_name("own-data");
        let member: Member = own.start().await;
        let got = member.client().status().await.unwrap().header.unwrap();
        assert_eq!(
            (got.cluster_id, got.member_id),
            (wanted.cluster_id, wanted.member_id)
        );
        assert_eq!(member.client().members().await.unwrap(), members);
    })
    .await;
}

/// Members that start together ask each other whether the cluster runs already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_does_not_know_yet_who_it_is_lets_nobody_wait() {
    within(async {
        // This peer listens and never says anything, so the member goes on asking it.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent_url = format!("http://{}", silent.local_addr().unwrap());
        let builder = MemberBuilder::new(Program::MetaStore);
        let cluster = vec![
            (builder.member_name().to_owned(), builder.peer_url()),
            ("silent".to_owned(), silent_url),
        ];
        let peer_address = builder.peer_address();
        let member = builder.initial_cluster(cluster).spawn();
        let (_question, _) = silent.accept().await.unwrap();

        let mut connection = tokio::net::TcpStream::connect(peer_address).await.unwrap();
        let answer = tokio::time::timeout(deadline(Duration::from_secs(2)), async {
            connection
                .write_all(b"GET /members HTTP/1.1\r\n\r\n")
                .await?;
            connection.read(&mut [0; 100]).await
        });
        let answer = answer.await.expect("the connection ends");
        assert!(matches!(answer, Ok(0) | Err(_)), "{answer:?}");
        drop(member);
    })
    .await;
}

/// A peer that tells of a cluster of itself and a second member, and of this version.
async fn fake_peer(joining_url: String, version: &'static str, downgrade: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = format!("http://{}", listener.local_addr().unwrap());
    let members = format!(
        r#"[{{"id":1,"peerURLs":["{own}"],"name":"old","clientURLs":["http://127.0.0.1:1"]}},{{"id":2,"peerURLs":["{joining_url}"]}}]"#
    );
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let members = members.clone();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let length = stream.read(&mut head).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..length]).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default();
                let body = match path {
                    "/members" => members,
                    "/version" => format!(
                        r#"{{"etcdserver":"3.9.0","etcdcluster":"{version}","storage":"3.7.0"}}"#
                    ),
                    "/downgrade/enabled" => downgrade.to_owned(),
                    _ => String::new(),
                };
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nX-Etcd-Cluster-ID: cafe\r\nContent-Type: application/json\r\n\
                     Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    own
}

/// Beside etcd: a member does not join a cluster of a version that it does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_another_version_is_not_joined() {
    within(async {
        for (version, downgrade) in [
            ("3.8.0", "false"),
            ("4.0.0", "false"),
            ("2.3.0", "false"),
            ("not_decided", "false"),
            // While the cluster is being downgraded, who is not older than it stays out.
            ("3.7.0", "true"),
            ("3.6.0", "true"),
        ] {
            for program in [Program::Etcd, subject()] {
                let builder = MemberBuilder::new(program).name("joining");
                let url = builder.peer_url();
                let peer = fake_peer(url.clone(), version, downgrade).await;
                let members = vec![("old".to_owned(), peer), ("joining".to_owned(), url)];
                let (status, log) = builder.joining(members).run_to_end().await;
                assert!(!status.success(), "{program:?} joined {version}");
                assert!(
                    log.contains("incompatible with current running cluster"),
                    "{program:?}, {version}: {log}"
                );
            }
        }
        // One that it knows passes this check: it goes on to be a member.
        let builder = MemberBuilder::new(subject()).name("joining");
        let url = builder.peer_url();
        let peer = fake_peer(url.clone(), "3.7.0", "false").await;
        let members = vec![("old".to_owned(), peer), ("joining".to_owned(), url)];
        let mut member = builder.joining(members).spawn();
        let first_file = match subject() {
            Program::Etcd => "member/wal",
            Program::MetaStore => "member/identity.json",
        };
        eventually("it goes on", Duration::from_secs(20), || async {
            match member.data_folder().join(first_file).exists() {
                true => Ok(()),
                false => Err("it does not know yet who it is".to_owned()),
            }
        })
        .await;
        assert!(member.try_exit().is_none(), "{}", member.log());
        member.kill();
    })
    .await;
}

/// Beside etcd: the addition of a second voter is answered before anybody can start it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_voter_is_added_before_it_runs() {
    within(async {
        for program in [Program::Etcd, subject()] {
            let mut cluster = Cluster::start(program, 1).await;
            let client = cluster.members[0].client();
            client.put("before", "1").await.unwrap();
            let builder = MemberBuilder::new(program).name("m1");
            let add = |url: String| {
                let request = pb::MemberAddRequest {
                    peer_ur_ls: vec![url],
                    is_learner: false,
                };
                let mut members = client.cluster.clone();
                async move { members.member_add(request).await }
            };
            let added =
                tokio::time::timeout(deadline(Duration::from_secs(5)), add(builder.peer_url()))
                    .await
                    .expect("the addition is answered at once")
                    .unwrap()
                    .into_inner();
            assert_eq!(added.members.len(), 2, "{program:?}");
            assert!(added.members.iter().all(|member| !member.is_learner));
            // One more could never be started before the first has.
            let refused = add("http://127.0.0.1:1".to_owned()).await.unwrap_err();
            assert_eq!(
                refused.message(),
                "etcdserver: re-configuration failed due to not enough started members",
                "{program:?}"
            );
            let all = vec![
                ("m0".to_owned(), cluster.members[0].builder().peer_url()),
                ("m1".to_owned(), builder.peer_url()),
            ];
            cluster.members.push(builder.joining(all).start().await);
            let second = cluster.members[1].client();
            eventually("both members write and read", CHANGE_LIMIT, || async {
                second
                    .put("a", "1")
                    .await
                    .map_err(|error| error.to_string())?;
                let (pair, _) = client.get("a").await.map_err(|error| error.to_string())?;
                pair.map(drop).ok_or("it is not there".to_owned())
            })
            .await;
            let (before, _) = second.get("before").await.unwrap();
            assert!(before.is_some(), "{program:?}");
            if program == Program::MetaStore {
                let votes = "the new member has caught up, and votes from now on";
                says(&cluster.members[0], 1, &[votes]).await;
            }
            // It votes: without it nothing is written.
            cluster.members[1].kill();
            let put = client.put("alone", "1");
            let alone = tokio::time::timeout(deadline(Duration::from_secs(3)), put).await;
            assert!(
                !matches!(alone, Ok(Ok(_))),
                "{program:?} needs no second vote"
            );
            cluster.members[1].restart().await;
            eventually("both work again", CHANGE_LIMIT, || async {
                client
                    .put("a", "2")
                    .await
                    .map_err(|error| error.to_string())
            })
            .await;
        }
    })
    .await;
}

/// Beside etcd: a voter that is added while others are down is there to be started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_is_added_while_another_is_down() {
    within(async {
        for program in [Program::Etcd, subject()] {
            let mut cluster =
                Cluster::start_with(program, 3, &["--strict-reconfig-check=false"]).await;
            let down = (cluster.leader().await + 1) % 3;
            cluster.members[down].kill();
            let (index, _) = cluster.add_member(false).await;
            let client = cluster.members[index].client();
            eventually("three of four work", CHANGE_LIMIT, || async {
                client
                    .put("a", "1")
                    .await
                    .map_err(|error| error.to_string())
            })
            .await;
            cluster.members[down].restart().await;
            cluster.assert_equal_hashes().await;
        }
    })
    .await;
}

/// Beside etcd: a member that joins is the one whose URLs `--initial-cluster` has under its name, whatever it
/// advertises, and every other member has to be in there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joining_member_is_who_the_initial_cluster_says() {
    within(async {
        for program in [Program::Etcd, subject()] {
            let cluster = Cluster::start(program, 2).await;
            let builder = MemberBuilder::new(program)
                .name("joining")
                .flag("--initial-advertise-peer-urls=http://127.0.0.1:1");
            let client = cluster.members[0].client();
            let request = pb::MemberAddRequest {
                peer_ur_ls: vec![builder.peer_url()],
                is_learner: true,
            };
            let answer = eventually("the learner is added", CHANGE_LIMIT, || async {
                let mut members = client.cluster.clone();
                let answer = members.member_add(request.clone()).await;
                answer.map_err(|error| error.to_string())
            })
            .await;
            let added = answer.into_inner().member.unwrap();
            let urls = |index: usize| cluster.members[index].builder().peer_url();
            let names = |second: String| {
                vec![
                    ("m0".to_owned(), urls(0)),
                    ("m1".to_owned(), second),
                    ("joining".to_owned(), builder.peer_url()),
                ]
            };
            let wrong = names("http://127.0.0.1:1".to_owned());
            let (status, log) = builder.clone().joining(wrong).run_to_end().await;
            assert!(!status.success(), "{program:?}");
            let reason = "PeerURLs: no match found for existing member";
            assert!(log.contains(reason), "{program:?}: {log}");
            let right = names(urls(1));
            let member = builder.clone().joining(right).start().await;
            let status = member.client().status().await.unwrap();
            assert!(status.is_learner, "{program:?}");
            assert_eq!(status.header.unwrap().member_id, added.id, "{program:?}");
        }
    })
    .await;
}

/// The lines by which runbooks for etcd find a member that is cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_which_member_is_lost_and_when_it_is_back() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        let status = cluster.members[2].client().status().await.unwrap();
        let lost = format!("{:x}", status.header.unwrap().member_id);
        says(&cluster.members[0], 1, &["peer became active", &lost]).await;
        cluster.members[2].kill();
        let inactive = "peer became inactive (message send to peer failed)";
        says(&cluster.members[0], 1, &[inactive, "error", &lost]).await;
        let unhealthy = "prober detected unhealthy status";
        let refused = "connect: connection refused";
        says(&cluster.members[0], 2, &[unhealthy, refused, &lost]).await;
        cluster.members[2].restart().await;
        says(&cluster.members[0], 2, &["peer became active", &lost]).await;
    })
    .await;
}

/// Waits until a log has this many lines with all these texts.
async fn says(member: &Member, times: usize, wanted: &[&str]) {
    let reason = format!("the log has {times} lines with {wanted:?}");
    eventually(&reason, CHANGE_LIMIT, || async {
        let log = member.log();
        let has_all = |line: &&str| wanted.iter().all(|text| line.contains(text));
        let found = log.lines().filter(has_all).count();
        match found >= times {
            true => Ok(()),
            false => Err(format!("{found}")),
        }
    })
    .await;
}
