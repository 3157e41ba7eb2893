//! Every error of etcd's API, raised on etcd and on MetaStore: its code and its text.

use std::collections::BTreeSet;
use std::path::Path;

use metastore_proto::authpb::{Permission, UserAddOptions};
use metastore_proto::error_text::EtcdError as E;
use metastore_proto::etcdserverpb as pb;
use metastore_tests::client::Client;
use metastore_tests::{Cluster, eventually};
use pb::auth_client::AuthClient;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::*;

/// Errors that another test raises, whose function this file has.
const RAISED_ELSEWHERE: &[(E, &str, &str)] = &[
    (E::RequestTooManyRequests, "process/limits.rs", "REFUSED"),
    (E::Timeout, "process.rs", "etcdserver: request timed out"),
    (E::Unhealthy, "process.rs", "etcdserver: unhealthy cluster"),
    (E::NoLeader, "process.rs", "etcdserver: no leader"),
    (
        E::NotSupportedForLearner,
        "process/membership.rs",
        "etcdserver: rpc not supported for learner",
    ),
];

/// Errors that no client can bring about, or only by luck. `docs/limitations.md` gives the reasons.
const NOT_RAISED: &[E] = &[
    E::WatchCanceled,
    E::MemberExist,
    E::ClusterIDMismatch,
    E::AuthOldRevision,
    E::LeaderChanged,
    E::NotCapable,
    E::Stopped,
    E::TimeoutDueToLeaderFail,
    E::TimeoutDueToConnectionLost,
    E::TimeoutWaitAppliedIndex,
    E::ClusterVersionUnavailable,
    E::NoInflightDowngrade,
    E::Canceled,
    E::DeadlineExceeded,
];

/// What was raised on one store.
struct Raised {
    program: Program,
    texts: BTreeSet<&'static str>,
}

impl Raised {
    fn expect<T: std::fmt::Debug>(&mut self, error: E, answer: Result<T, Status>) {
        let status = match answer {
            Ok(answer) => panic!("{:?}: no {error:?}, but {answer:?}", self.program),
            Err(status) => status,
        };
        assert_eq!(
            (status.code() as i32, status.message()),
            (error.code() as i32, error.text()),
            "{:?}: {error:?}",
            self.program
        );
        self.texts.insert(error.text());
    }
}

fn range(key: &'static str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.into(),
        ..Default::default()
    }
}

fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        ..Default::default()
    }
}

fn puts(keys: &[&'static str]) -> pb::TxnRequest {
    let operations = keys.iter().map(|key| pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(put(key))),
    });
    pb::TxnRequest {
        success: operations.collect(),
        ..Default::default()
    }
}

fn alarm(action: pb::alarm_request::AlarmAction, alarm: pb::AlarmType) -> pb::AlarmRequest {
    pb::AlarmRequest {
        action: action.into(),
        member_id: 0,
        alarm: alarm.into(),
    }
}

fn with<T>(message: T, name: &'static str, value: AsciiMetadataValue) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(name, value);
    request
}

async fn raise_of_keys(client: &Client, raised: &mut Raised) {
    let mut kv = client.kv.clone();
    raised.expect(E::EmptyKey, kv.put(put("")).await);
    let missing = pb::PutRequest {
        ignore_value: true,
        ..put("k")
    };
    raised.expect(E::KeyNotFound, kv.put(missing.clone()).await);
    let with_value = pb::PutRequest {
        value: "x".into(),
        ..missing
    };
    raised.expect(E::ValueProvided, kv.put(with_value).await);
    let with_lease = pb::PutRequest {
        ignore_lease: true,
        lease: 5,
        ..put("k")
    };
    raised.expect(E::LeaseProvided, kv.put(with_lease).await);
    raised.expect(E::TooManyOps, kv.txn(puts(&["k"; 129])).await);
    raised.expect(E::DuplicateKey, kv.txn(puts(&["k", "k"])).await);
    let sorted = pb::RangeRequest {
        sort_order: 9,
        ..range("k")
    };
    raised.expect(E::InvalidSortOption, kv.range(sorted).await);
    let version = AsciiMetadataValue::try_from(&b"\xff"[..]).unwrap();
    raised.expect(
        E::InvalidClientAPIVersion,
        kv.range(with(range("k"), "client-api-version", version))
            .await,
    );
    let large = pb::PutRequest {
        value: vec![0; 1_600_000].into(),
        ..put("k")
    };
    raised.expect(E::RequestTooLarge, kv.put(large).await);
    let last = client.put("k", "v").await.unwrap();
    let compact = |revision| pb::CompactionRequest {
        revision,
        physical: false,
    };
    raised.expect(E::FutureRev, kv.compact(compact(last + 9)).await);
    kv.compact(compact(last)).await.unwrap();
    raised.expect(E::Compacted, kv.compact(compact(last)).await);
}

async fn raise_of_leases(client: &Client, raised: &mut Raised) {
    let mut lease = client.lease.clone();
    let grant = |id, ttl| pb::LeaseGrantRequest { id, ttl };
    lease.lease_grant(grant(1, 100)).await.unwrap();
    raised.expect(E::LeaseExist, lease.lease_grant(grant(1, 100)).await);
    raised.expect(
        E::LeaseTTLTooLarge,
        lease.lease_grant(grant(2, 9_000_000_001)).await,
    );
    let revoke = pb::LeaseRevokeRequest { id: 9 };
    raised.expect(E::LeaseNotFound, lease.lease_revoke(revoke).await);
}

async fn raise_of_maintenance(client: &Client, raised: &mut Raised) {
    use pb::AlarmType::{Corrupt, Nospace};
    use pb::alarm_request::AlarmAction::{Activate, Deactivate};
    use pb::downgrade_request::DowngradeAction::{Cancel, Enable, Validate};
    let mut maintenance = client.maintenance.clone();
    for (kind, error) in [(Nospace, E::NoSpace), (Corrupt, E::Corrupt)] {
        maintenance.alarm(alarm(Activate, kind)).await.unwrap();
        raised.expect(error, client.put("k", "v").await);
        maintenance.alarm(alarm(Deactivate, kind)).await.unwrap();
    }
    let transfer = pb::MoveLeaderRequest { target_id: 1 };
    raised.expect(
        E::BadLeaderTransferee,
        maintenance.move_leader(transfer).await,
    );
    let downgrade =
        |action: pb::downgrade_request::DowngradeAction, version: &str| pb::DowngradeRequest {
            action: action.into(),
            version: version.to_owned(),
        };
    raised.expect(
        E::WrongDowngradeVersionFormat,
        maintenance.downgrade(downgrade(Validate, "x")).await,
    );
    raised.expect(
        E::InvalidDowngradeTargetVersion,
        maintenance.downgrade(downgrade(Validate, "3.1.0")).await,
    );
    maintenance
        .downgrade(downgrade(Enable, "3.6.0"))
        .await
        .unwrap();
    raised.expect(
        E::DowngradeInProcess,
        maintenance.downgrade(downgrade(Enable, "3.6.0")).await,
    );
    maintenance.downgrade(downgrade(Cancel, "")).await.unwrap();
}

async fn raise_of_members(client: &Client, own_url: &str, raised: &mut Raised) {
    let mut cluster = client.cluster.clone();
    let add = |url: &str, is_learner| pb::MemberAddRequest {
        peer_ur_ls: vec![url.to_owned()],
        is_learner,
    };
    raised.expect(
        E::MemberBadURLs,
        cluster.member_add(add("nonsense", false)).await,
    );
    raised.expect(
        E::PeerURLExist,
        cluster.member_add(add(own_url, false)).await,
    );
    let remove = pb::MemberRemoveRequest { id: 9 };
    raised.expect(E::MemberNotFound, cluster.member_remove(remove).await);
    let own = client.members().await.unwrap()[0].id;
    let promote = |id| pb::MemberPromoteRequest { id };
    raised.expect(
        E::MemberNotLearner,
        cluster.member_promote(promote(own)).await,
    );
    let learner = cluster.member_add(add("http://127.0.0.1:1", true)).await;
    let learner = learner.unwrap().into_inner().member.unwrap().id;
    raised.expect(
        E::TooManyLearners,
        cluster.member_add(add("http://127.0.0.1:2", true)).await,
    );
    raised.expect(
        E::LearnerNotReady,
        cluster.member_promote(promote(learner)).await,
    );
    let remove = pb::MemberRemoveRequest { id: learner };
    cluster.member_remove(remove).await.unwrap();
    // A second voter that never comes: there is no majority any more, and no third one may be added.
    cluster
        .member_add(add("http://127.0.0.1:3", false))
        .await
        .unwrap();
    raised.expect(
        E::MemberNotEnoughStarted,
        cluster.member_add(add("http://127.0.0.1:4", false)).await,
    );
}

/// The auth service, with a token.
struct Auth(AuthClient<Channel>);

impl Auth {
    async fn add_user(&mut self, name: &str) -> Result<(), Status> {
        let request = pb::AuthUserAddRequest {
            name: name.to_owned(),
            password: "p".to_owned(),
            options: Some(UserAddOptions { no_password: false }),
            ..Default::default()
        };
        self.0.user_add(request).await.map(|_| ())
    }

    async fn add_role(&mut self, name: &str) -> Result<(), Status> {
        let request = pb::AuthRoleAddRequest {
            name: name.to_owned(),
        };
        self.0.role_add(request).await.map(|_| ())
    }

    async fn grant(&mut self, user: &str, role: &str) -> Result<(), Status> {
        let request = pb::AuthUserGrantRoleRequest {
            user: user.to_owned(),
            role: role.to_owned(),
        };
        self.0.user_grant_role(request).await.map(|_| ())
    }

    async fn enable(&mut self) -> Result<(), Status> {
        let request = pb::AuthEnableRequest {};
        self.0.auth_enable(request).await.map(|_| ())
    }

    async fn token(&mut self, name: &str, password: &str) -> Result<AsciiMetadataValue, Status> {
        let request = pb::AuthenticateRequest {
            name: name.to_owned(),
            password: password.to_owned(),
        };
        let answer = self.0.authenticate(request).await?;
        Ok(answer.into_inner().token.parse().unwrap())
    }
}

async fn raise_of_auth(client: &Client, raised: &mut Raised) {
    let mut auth = Auth(AuthClient::new(client.channel.clone()));
    raised.expect(E::AuthNotEnabled, auth.token("u", "p").await);
    raised.expect(E::RootUserNotExist, auth.enable().await);
    raised.expect(E::UserEmpty, auth.add_user("").await);
    raised.expect(E::RoleEmpty, auth.add_role("").await);
    auth.add_user("root").await.unwrap();
    raised.expect(E::RootRoleNotExist, auth.enable().await);
    raised.expect(E::UserAlreadyExist, auth.add_user("root").await);
    auth.add_user("u").await.unwrap();
    auth.add_role("r").await.unwrap();
    raised.expect(E::RoleAlreadyExist, auth.add_role("r").await);
    raised.expect(E::RoleNotFound, auth.grant("u", "none").await);
    raised.expect(E::UserNotFound, auth.grant("none", "r").await);
    let revoke = pb::AuthUserRevokeRoleRequest {
        name: "u".to_owned(),
        role: "r".to_owned(),
    };
    raised.expect(E::RoleNotGranted, auth.0.user_revoke_role(revoke).await);
    let permission = |perm: Option<Permission>| pb::AuthRoleGrantPermissionRequest {
        name: "r".to_owned(),
        perm,
    };
    raised.expect(
        E::PermissionNotGiven,
        auth.0.role_grant_permission(permission(None)).await,
    );
    let revoke = pb::AuthRoleRevokePermissionRequest {
        role: "r".to_owned(),
        key: "k".into(),
        range_end: Default::default(),
    };
    raised.expect(
        E::PermissionNotGranted,
        auth.0.role_revoke_permission(revoke).await,
    );
    auth.add_role("root").await.unwrap();
    auth.grant("root", "root").await.unwrap();
    auth.enable().await.unwrap();

    raised.expect(E::AuthFailed, auth.token("u", "wrong").await);
    let mut kv = client.kv.clone();
    let user = auth.token("u", "p").await.unwrap();
    raised.expect(
        E::PermissionDenied,
        kv.range(with(range("k"), "token", user)).await,
    );
    let nonsense = AsciiMetadataValue::from_static("nonsense");
    raised.expect(
        E::InvalidAuthToken,
        kv.range(with(range("k"), "token", nonsense)).await,
    );
    let root = auth.token("root", "p").await.unwrap();
    let delete = pb::AuthUserDeleteRequest {
        name: "root".to_owned(),
    };
    raised.expect(
        E::InvalidAuthMgmt,
        auth.0.user_delete(with(delete, "token", root)).await,
    );
}

async fn raise_of_followers(program: Program, raised: &mut Raised) {
    let cluster = Cluster::start(program, 3).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % cluster.members.len();
    let client = cluster.members[follower].client();
    let target = client.members().await.unwrap()[0].id;
    let request = pb::MoveLeaderRequest { target_id: target };
    let answer = client.maintenance.clone().move_leader(request).await;
    raised.expect(E::NotLeader, answer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_error_has_the_code_and_the_text_of_etcd() {
    let mut counts = Vec::new();
    for program in [Program::Etcd, programs::subject()] {
        let mut raised = Raised {
            program,
            texts: BTreeSet::new(),
        };
        let start = || MemberBuilder::new(program).flag("--bcrypt-cost=4").start();
        let member = start().await;
        let client = member.client();
        raise_of_keys(&client, &mut raised).await;
        raise_of_leases(&client, &mut raised).await;
        // The cluster has no version before its leader has decided on one.
        eventually("the cluster has a version", TEST_LIMIT, || async {
            let version = metastore_tests::http::get(&member.address(), "/version").text();
            match version.contains("\"etcdcluster\":\"3.7.0\"") {
                true => Ok(()),
                false => Err(version),
            }
        })
        .await;
        raise_of_maintenance(&client, &mut raised).await;
        raise_of_auth(&client, &mut raised).await;
        let member = start().await;
        let url = member.builder().peer_url();
        raise_of_members(&member.client(), &url, &mut raised).await;
        raise_of_followers(program, &mut raised).await;
        counts.push(raised.texts);
    }
    assert_eq!(counts[0], counts[1]);

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let limitations = std::fs::read_to_string(folder.join("../../docs/limitations.md")).unwrap();
    for error in E::ALL {
        let elsewhere = RAISED_ELSEWHERE.iter().find(|(other, _, _)| other == error);
        let known = match (counts[1].contains(error.text()), elsewhere) {
            (true, None) => true,
            (false, Some((_, file, text))) => {
                let test = std::fs::read_to_string(folder.join(file)).unwrap();
                assert!(test.contains(text), "{file} does not raise {error:?}");
                true
            }
            (false, None) => {
                NOT_RAISED.contains(error) && limitations.contains(&format!("`{error}`"))
            }
            (true, Some(_)) => false,
        };
        assert!(
            known,
            "{error:?} is neither raised nor explained, or stands at the wrong place"
        );
    }
}
