//! What a member answers that has lost the others.

use std::collections::BTreeMap;

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt, join_all};
use metastore_proto::etcdserverpb as pb;
use metastore_proto::v3electionpb::election_client::ElectionClient;
use metastore_proto::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use metastore_proto::v3lockpb::lock_client::LockClient;
use metastore_proto::v3lockpb::{LockRequest, UnlockRequest};
use metastore_tests::client::Client;
use metastore_tests::raw_http::HttpRequest;
use metastore_tests::{Cluster, deadline, eventually, within};
use pb::auth_client::AuthClient;
use tonic::Status;

use super::*;

/// etcd's limit of a proposal and of a read with its default election time-out.
const REQUEST_TIME: Duration = Duration::from_secs(7);
/// etcd's reads wait for the one that is under way, too. A busy machine takes longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(40);

/// The requests of a watch that its client keeps open.
fn watch_requests() -> impl futures::Stream<Item = pb::WatchRequest> + Send + 'static {
    let create = pb::WatchCreateRequest {
        key: "a".into(),
        ..Default::default()
    };
    let create = pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
    };
    futures::stream::iter([create]).chain(futures::stream::pending())
}

/// A cluster of three of which one member is left that knows that it has no leader.
async fn left_alone(program: Program) -> Cluster {
    let mut cluster = Cluster::start(program, 3).await;
    cluster.leader().await;
    for member in &mut cluster.members[1..] {
        member.kill();
    }
    let client = cluster.members[0].client();
    eventually("the leader is missed", deadline(ANSWER_LIMIT), || async {
        let status = client.status().await.map_err(|error| error.to_string())?;
        match status.leader {
            0 => Ok(()),
            leader => Err(format!("the leader is {leader:x}")),
        }
    })
    .await;
    cluster
}

/// The requests that need a majority, all at once: code, text, and whether the client waited for the time
/// of a request.
async fn ask_everything(client: &Client) -> BTreeMap<&'static str, String> {
    let (kv, lease) = (client.kv.clone(), client.lease.clone());
    let (members, maintenance) = (client.cluster.clone(), client.maintenance.clone());
    let auth = AuthClient::new(client.channel.clone());
    let locks = LockClient::new(client.channel.clone());
    let elections = ElectionClient::new(client.channel.clone());
    let leader_key = || {
        Some(LeaderKey {
            name: "e".into(),
            key: "e/194".into(),
            rev: 2,
            lease: 404,
        })
    };
    macro_rules! ask {
        ($client:ident . $call:ident ( $request:expr )) => {{
            let mut client = $client.clone();
            async move { client.$call($request).await.map(|_| ()) }.boxed()
        }};
    }
    let calls: Vec<(&'static str, BoxFuture<'static, Result<(), Status>>)> = vec![
        (
            "range",
            ask!(kv.range(pb::RangeRequest {
                key: "a".into(),
                ..Default::default()
            })),
        ),
        (
            "put",
            ask!(kv.put(pb::PutRequest {
                key: "a".into(),
                ..Default::default()
            })),
        ),
        ("txn", ask!(kv.txn(pb::TxnRequest::default()))),
        (
            "compact",
            ask!(kv.compact(pb::CompactionRequest {
                revision: 1,
                ..Default::default()
            })),
        ),
        (
            "grant",
            ask!(lease.lease_grant(pb::LeaseGrantRequest { ttl: 10, id: 0 })),
        ),
        (
            "members",
            ask!(members.member_list(pb::MemberListRequest { linearizable: true })),
        ),
        (
            "alarms",
            ask!(maintenance.alarm(pb::AlarmRequest::default())),
        ),
        (
            "disarm",
            ask!(maintenance.alarm(pb::AlarmRequest {
                action: 2,
                member_id: 0,
                alarm: 1
            })),
        ),
        (
            "auth status",
            ask!(auth.auth_status(pb::AuthStatusRequest {})),
        ),
        ("users", ask!(auth.user_list(pb::AuthUserListRequest {}))),
        (
            "user",
            ask!(auth.user_get(pb::AuthUserGetRequest { name: "u".into() })),
        ),
        ("roles", ask!(auth.role_list(pb::AuthRoleListRequest {}))),
        (
            "role",
            ask!(auth.role_get(pb::AuthRoleGetRequest { role: "r".into() })),
        ),
        (
            "role add",
            ask!(auth.role_add(pb::AuthRoleAddRequest { name: "r".into() })),
        ),
        (
            "user add",
            ask!(auth.user_add(pb::AuthUserAddRequest {
                name: "u".into(),
                password: "p".into(),
                ..Default::default()
            })),
        ),
        ("enable", ask!(auth.auth_enable(pb::AuthEnableRequest {}))),
        (
            "log in",
            ask!(auth.authenticate(pb::AuthenticateRequest {
                name: "u".into(),
                password: "p".into()
            })),
        ),
        (
            "serializable range",
            ask!(kv.range(pb::RangeRequest {
                key: "a".into(),
                serializable: true,
                ..Default::default()
            })),
        ),
        (
            "delete",
            ask!(kv.delete_range(pb::DeleteRangeRequest {
                key: "a".into(),
                ..Default::default()
            })),
        ),
        ("stream", {
            let mut kv = kv.clone();
            async move {
                let request = pb::RangeRequest {
                    key: "a".into(),
                    ..Default::default()
                };
                let mut answers = kv.range_stream(request).await?.into_inner();
                answers.message().await.map(|_| ())
            }
            .boxed()
        }),
        (
            "revoke",
            ask!(lease.lease_revoke(pb::LeaseRevokeRequest { id: 404 })),
        ),
        (
            "time to live",
            ask!(lease.lease_time_to_live(pb::LeaseTimeToLiveRequest {
                id: 404,
                keys: true
            })),
        ),
        (
            "leases",
            ask!(lease.lease_leases(pb::LeaseLeasesRequest {})),
        ),
        ("renewal", {
            let mut lease = lease.clone();
            async move {
                let ids = futures::stream::iter([pb::LeaseKeepAliveRequest { id: 404 }])
                    .chain(futures::stream::pending());
                let mut answers = lease.lease_keep_alive(ids).await?.into_inner();
                answers.message().await.map(|_| ())
            }
            .boxed()
        }),
        (
            "members here",
            ask!(members.member_list(pb::MemberListRequest {
                linearizable: false
            })),
        ),
        (
            "member add",
            ask!(members.member_add(pb::MemberAddRequest {
                peer_ur_ls: vec!["http://127.0.0.1:1".into()],
                is_learner: false
            })),
        ),
        (
            "learner add",
            ask!(members.member_add(pb::MemberAddRequest {
                peer_ur_ls: vec!["http://127.0.0.1:2".into()],
                is_learner: true
            })),
        ),
        (
            "member remove",
            ask!(members.member_remove(pb::MemberRemoveRequest { id: 404 })),
        ),
        (
            "member update",
            ask!(members.member_update(pb::MemberUpdateRequest {
                id: 404,
                peer_ur_ls: vec!["http://127.0.0.1:1".into()]
            })),
        ),
        (
            "member promote",
            ask!(members.member_promote(pb::MemberPromoteRequest { id: 404 })),
        ),
        ("status", ask!(maintenance.status(pb::StatusRequest {}))),
        ("hash", ask!(maintenance.hash(pb::HashRequest {}))),
        (
            "hash of keys",
            ask!(maintenance.hash_kv(pb::HashKvRequest { revision: 0 })),
        ),
        (
            "defragment",
            ask!(maintenance.defragment(pb::DefragmentRequest {})),
        ),
        (
            "move leader",
            ask!(maintenance.move_leader(pb::MoveLeaderRequest { target_id: 404 })),
        ),
        (
            "downgrade check",
            ask!(maintenance.downgrade(pb::DowngradeRequest {
                action: 0,
                version: "3.6.0".into()
            })),
        ),
        (
            "downgrade",
            ask!(maintenance.downgrade(pb::DowngradeRequest {
                action: 1,
                version: "3.6.0".into()
            })),
        ),
        (
            "downgrade end",
            ask!(maintenance.downgrade(pb::DowngradeRequest {
                action: 2,
                version: String::new()
            })),
        ),
        (
            "lock",
            ask!(locks.lock(LockRequest {
                name: "l".into(),
                lease: 0
            })),
        ),
        (
            "lock under a lease",
            ask!(locks.lock(LockRequest {
                name: "l".into(),
                lease: 404
            })),
        ),
        (
            "unlock",
            ask!(locks.unlock(UnlockRequest {
                key: "l/194".into()
            })),
        ),
        (
            "campaign",
            ask!(elections.campaign(CampaignRequest {
                name: "e".into(),
                lease: 0,
                value: "v".into()
            })),
        ),
        (
            "campaign under a lease",
            ask!(elections.campaign(CampaignRequest {
                name: "e".into(),
                lease: 404,
                value: "v".into()
            })),
        ),
        (
            "proclaim",
            ask!(elections.proclaim(ProclaimRequest {
                leader: leader_key(),
                value: "v".into()
            })),
        ),
        (
            "proclaim of nobody",
            ask!(elections.proclaim(ProclaimRequest {
                leader: None,
                value: "v".into()
            })),
        ),
        (
            "leader",
            ask!(elections.leader(LeaderRequest { name: "e".into() })),
        ),
        ("observe", {
            let mut elections = elections.clone();
            async move {
                let request = LeaderRequest { name: "e".into() };
                let mut answers = elections.observe(request).await?.into_inner();
                answers.message().await.map(|_| ())
            }
            .boxed()
        }),
        (
            "resign",
            ask!(elections.resign(ResignRequest {
                leader: leader_key()
            })),
        ),
        ("leader for those who demand one", {
            let mut elections = elections.clone();
            async move {
                let request = LeaderRequest { name: "e".into() };
                elections.leader(demanding(request)).await.map(|_| ())
            }
            .boxed()
        }),
        ("observe for those who demand a leader", {
            let mut elections = elections.clone();
            async move {
                let request = demanding(LeaderRequest { name: "e".into() });
                let mut answers = elections.observe(request).await?.into_inner();
                answers.message().await.map(|_| ())
            }
            .boxed()
        }),
        ("read for those who demand a leader", {
            let mut kv = kv.clone();
            async move {
                let request = pb::RangeRequest {
                    key: "a".into(),
                    serializable: true,
                    ..Default::default()
                };
                kv.range(demanding(request)).await.map(|_| ())
            }
            .boxed()
        }),
        ("watch for those who demand a leader", {
            let mut watch = client.watch.clone();
            async move {
                let mut answers = watch.watch(demanding(watch_requests())).await?.into_inner();
                answers.message().await.map(|_| ())
            }
            .boxed()
        }),
        ("watch", {
            let mut watch = client.watch.clone();
            async move {
                let mut answers = watch.watch(watch_requests()).await?.into_inner();
                answers.message().await.map(|_| ())
            }
            .boxed()
        }),
    ];
    let asked = calls.into_iter().map(|(name, call)| async move {
        let started = Instant::now();
        let result = tokio::time::timeout(deadline(ANSWER_LIMIT), call).await;
        let result = result.unwrap_or_else(|_| Err(Status::unknown("no answer")));
        let waited = started.elapsed() > REQUEST_TIME / 2;
        let shown = match result {
            Ok(()) => "answered".to_owned(),
            Err(refused) => format!("{:?} {}", refused.code(), refused.message()),
        };
        (name, format!("{shown} waited={waited}"))
    });
    join_all(asked).await.into_iter().collect()
}

/// A request of a client that does without an answer of a member without a leader.
fn demanding<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let yes = "true".parse().unwrap();
    request.metadata_mut().insert("hasleader", yes);
    request
}

async fn ask_gateway(address: &str) -> Vec<String> {
    let asked = [
        ("/v3/kv/range", r#"{"key":"YQ=="}"#),
        ("/v3/cluster/member/list", r#"{"linearizable":true}"#),
        ("/v3/maintenance/alarm", "{}"),
        ("/v3/auth/status", "{}"),
        ("/v3/auth/user/list", "{}"),
        ("/v3/auth/role/list", "{}"),
        ("/v3/lock/lock", r#"{"name":"bA=="}"#),
        ("/v3/lock/unlock", r#"{"key":"bC8x"}"#),
        ("/v3/election/campaign", r#"{"name":"ZQ==","lease":"404"}"#),
        (
            "/v3/election/proclaim",
            r#"{"leader":{"name":"ZQ==","key":"ZS8x","rev":"2","lease":"404"}}"#,
        ),
        ("/v3/election/leader", r#"{"name":"ZQ=="}"#),
        ("/v3/election/observe", r#"{"name":"ZQ=="}"#),
        (
            "/v3/election/resign",
            r#"{"leader":{"name":"ZQ==","key":"ZS8x","rev":"2","lease":"404"}}"#,
        ),
    ]
    .map(|(path, body)| async move {
        let answer = HttpRequest::new("POST", path)
            .body(body)
            .send(address)
            .await;
        let text = answer.text();
        // Fields of JSON come in any order; a stream without answers has none.
        let body = serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
        format!("{path}: {} {body}", answer.status)
    });
    join_all(asked).await
}

/// How a counter stands.
async fn counter(address: &str, name: &str) -> f64 {
    let answer = HttpRequest::new("GET", "/metrics").send(address).await;
    let text = answer.text();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_leader_refuses_as_etcd() {
    within(TEST_LIMIT, async {
        let programs = [Program::Etcd, programs::subject()];
        let found = join_all(programs.map(|program| async move {
            let cluster = left_alone(program).await;
            let address = cluster.members[0].address();
            let of = async |name: &str| counter(&address, name).await;
            let (failed, slow, proposals) = (
                "etcd_server_read_indexes_failed_total",
                "etcd_server_slow_read_indexes_total",
                "etcd_server_proposals_failed_total",
            );
            let before = [of(failed).await, of(slow).await, of(proposals).await];
            let answers = ask_everything(&cluster.members[0].client()).await;
            let failed_proposals = of(proposals).await - before[2];
            let gateway = ask_gateway(&address).await;
            let failed = of(failed).await - before[0];
            // How many depends on when reads came.
            let slow = of(slow).await > before[1];
            (answers, failed_proposals, gateway, failed, slow)
        }))
        .await;
        let [etcd, ours] = &found[..] else {
            panic!("two programs")
        };
        assert_eq!(ours, etcd, "(left: ours, right: etcd)");
        assert!(etcd.4, "reads that nobody answers are slow ones");
    })
    .await;
}
