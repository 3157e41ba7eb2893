//! Proxies that own keys (`grpc-proxy start --experimental-leasing-prefix`), beside etcd's and together with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use metastore_proto::etcdserverpb as pb;
use metastore_proto::etcdserverpb::auth_client::AuthClient;
use metastore_tests::client::{decode, revision};
use metastore_tests::load::{Load, LoadOptions};
use metastore_tests::programs::subject;
use metastore_tests::{Client, Member, Program, deadline, eventually};
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;
use pb::response_op::Response;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use super::grpc_proxy::{Proxy, token, with_token};
use crate::within;

/// Longest wait for something that takes milliseconds.
const LIMIT: Duration = Duration::from_secs(20);
/// A call that takes longer waits for something.
const SHORT: Duration = Duration::from_secs(2);
/// How long a proxy that is gone owns its keys; clientv3's.
const LEASE_LIFE: Duration = Duration::from_secs(60);
/// How long a key that was taken from a proxy is left alone; clientv3's.
const LEFT_ALONE_FOR: Duration = Duration::from_secs(2);
const FLAG: &str = "--experimental-leasing-prefix=claims/";

fn claim(key: &str) -> String {
    format!("claims/{key}")
}

/// Reads through a proxy until it owns the key; returns the lease.
async fn own(proxy: &Client, member: &Client, key: &'static str) -> i64 {
    let claim = claim(key);
    eventually("the proxy owns the key", LIMIT, || async {
        proxy.get(key).await.map_err(|error| error.to_string())?;
        let (claim, _) = member.get(claim.clone()).await.unwrap();
        match claim {
            Some(claim) if claim.value.is_empty() && claim.lease != 0 => Ok(claim.lease),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

async fn value(client: &Client, key: &'static str) -> Option<String> {
    let (pair, _) = client.get(key).await.unwrap();
    pair.map(|pair| String::from_utf8(pair.value.to_vec()).unwrap())
}

async fn range(client: &Client, request: pb::RangeRequest) -> pb::RangeResponse {
    client.kv.clone().range(request).await.unwrap().into_inner()
}

fn read(key: &'static str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.into(),
        ..Default::default()
    }
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    }
}

fn delete(key: &str, range_end: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        ..Default::default()
    }
}

fn operation(request: Request) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(request),
    }
}

fn compare_value(key: &'static str, value: &'static str) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Value.into(),
        key: key.into(),
        target_union: Some(TargetUnion::Value(value.into())),
        ..Default::default()
    }
}

/// Whether a call goes on after [`SHORT`].
async fn waits<T>(call: impl Future<Output = T>) -> bool {
    tokio::time::timeout(SHORT, call).await.is_err()
}

/// Both proxies' programs: which one owns first, and which one comes then.
fn pairs() -> [(Program, Program); 3] {
    [
        (subject(), subject()),
        (Program::Etcd, subject()),
        (subject(), Program::Etcd),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_owned_is_read_without_the_cluster() {
    within(async {
        for program in [Program::Etcd, subject()] {
            let mut member = Member::start(subject()).await;
            let direct = member.client();
            let proxy = Proxy::start(program, &member.address(), &[FLAG]).await;
            let client = proxy.client();
            client.put("k", "1").await.unwrap();
            own(&client, &direct, "k").await;
            own(&client, &direct, "none").await;
            client.put("k", "2").await.unwrap();
            let written = direct.get("k").await.unwrap().0.unwrap();

            member.pause();
            let answer = range(&client, read("k")).await;
            assert_eq!((answer.count, answer.more), (1, false), "{program:?}");
            assert_eq!(decode(&answer.kvs[0]), written, "{program:?}");
            let keys = pb::RangeRequest {
                keys_only: true,
                ..read("k")
            };
            let answer = range(&client, keys).await;
            assert_eq!(decode(&answer.kvs[0]).value, "", "{program:?}");
            let count = pb::RangeRequest {
                count_only: true,
                ..read("k")
            };
            let answer = range(&client, count).await;
            assert_eq!((answer.count, answer.kvs.len()), (1, 0), "{program:?}");
            let newer = pb::RangeRequest {
                min_mod_revision: written.mod_revision + 1,
                ..read("k")
            };
            assert_eq!(range(&client, newer).await.kvs.len(), 0, "{program:?}");
            assert_eq!(range(&client, read("none")).await.count, 0, "{program:?}");

            // A transaction that only reads.
            let txn = pb::TxnRequest {
                compare: vec![compare_value("k", "2")],
                success: vec![operation(Request::RequestRange(read("k")))],
                failure: vec![operation(Request::RequestRange(read("none")))],
            };
            let answer = client.kv.clone().txn(txn).await.unwrap().into_inner();
            assert!(answer.succeeded, "{program:?}");
            let Some(Response::ResponseRange(found)) = &answer.responses[0].response else {
                panic!("{answer:?}");
            };
            assert_eq!(decode(&found.kvs[0]).value, "2", "{program:?}");

            // Everything else needs the cluster.
            assert!(waits(client.get("other")).await, "{program:?}");
            assert!(waits(client.put("k", "3")).await, "{program:?}");
            member.resume();
            eventually("the cluster answers again", LIMIT, || async {
                client
                    .put("k", "4")
                    .await
                    .map_err(|error| error.to_string())
            })
            .await;
            assert_eq!(value(&client, "k").await.as_deref(), Some("4"));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_goes_to_the_proxy_that_writes_it() {
    within(async {
        for (store, (owner, writer)) in [subject(), subject(), subject(), Program::Etcd]
            .into_iter()
            .zip(pairs().into_iter().chain([(subject(), subject())]))
        {
            let case = format!("{owner:?} owns, {writer:?} writes, in {store:?}");
            let member = Member::start(store).await;
            let direct = member.client();
            let first = Proxy::start(owner, &member.address(), &[FLAG]).await;
            let second = Proxy::start(writer, &member.address(), &[FLAG]).await;
            let (owner, writer) = (first.client(), second.client());
            for key in ["k", "l", "m"] {
                direct.put(key, "0").await.unwrap();
                own(&owner, &direct, key).await;
            }
            own(&owner, &direct, "none").await;

            writer.put("k", "1").await.unwrap();
            assert_eq!(value(&owner, "k").await.as_deref(), Some("1"), "{case}");
            // Created where another proxy knows that there is nothing.
            writer.put("none", "1").await.unwrap();
            assert_eq!(value(&owner, "none").await.as_deref(), Some("1"), "{case}");
            // What was not touched is still owned.
            let (claim_of_l, _) = direct.get(claim("l")).await.unwrap();
            assert_eq!(claim_of_l.unwrap().value, "", "{case}");

            let txn = pb::TxnRequest {
                compare: vec![compare_value("l", "0")],
                success: vec![operation(Request::RequestPut(put("l", "2")))],
                failure: vec![operation(Request::RequestDeleteRange(delete("m", "")))],
            };
            let answer = writer.kv.clone().txn(txn).await.unwrap().into_inner();
            assert!(answer.succeeded, "{case}");
            assert_eq!(value(&owner, "l").await.as_deref(), Some("2"), "{case}");

            // Both want the same key, one after the other. A key that was taken is left alone for a while.
            for turn in 0..6 {
                let (here, there) = match turn % 2 {
                    0 => (&owner, &writer),
                    _ => (&writer, &owner),
                };
                own(here, &direct, "k").await;
                let text = format!("turn {turn}");
                there.put("k", text.clone()).await.unwrap();
                assert_eq!(value(here, "k").await, Some(text), "{case}");
            }

            tokio::time::timeout(deadline(LEFT_ALONE_FOR * 4), own(&owner, &direct, "k"))
                .await
                .expect("the key is owned again");
            for key in ["l", "m", "none"] {
                own(&owner, &direct, key).await;
            }
            let deleted = writer.kv.clone().delete_range(delete("k", "n")).await;
            assert_eq!(deleted.unwrap().into_inner().deleted, 3, "{case}");
            for key in ["k", "l", "m"] {
                assert_eq!(value(&owner, key).await, None, "{case} {key}");
            }
            assert_eq!(value(&owner, "none").await.as_deref(), Some("1"), "{case}");
        }
    })
    .await;
}

/// What a program of random operations shows, without revisions: claims have revisions, too.
#[derive(Debug, PartialEq)]
enum Shown {
    Put(Option<(String, String, i64)>),
    Deleted(i64, Vec<(String, String, i64)>),
    Read(i64, Vec<(String, String, i64)>),
    Txn(bool, Vec<Shown>),
    Refused(Code, String),
}

fn plain(pair: &metastore_proto::EncodedKeyValue) -> (String, String, i64) {
    let pair = decode(pair);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&pair.key), text(&pair.value), pair.version)
}

fn shown(answer: &pb::ResponseOp) -> Shown {
    match answer.response.as_ref().unwrap() {
        Response::ResponseRange(range) => {
            Shown::Read(range.count, range.kvs.iter().map(plain).collect())
        }
        Response::ResponsePut(put) => Shown::Put(put.prev_kv.as_ref().map(plain)),
        Response::ResponseDeleteRange(deleted) => Shown::Deleted(
            deleted.deleted,
            deleted.prev_kvs.iter().map(plain).collect(),
        ),
        Response::ResponseTxn(txn) => {
            Shown::Txn(txn.succeeded, txn.responses.iter().map(shown).collect())
        }
    }
}

async fn run(client: &Client, request: &Request) -> Shown {
    let mut kv = client.kv.clone();
    let answer = match request.clone() {
        Request::RequestRange(range) => kv
            .range(range)
            .await
            .map(|answer| Response::ResponseRange(answer.into_inner())),
        Request::RequestPut(put) => kv
            .put(put)
            .await
            .map(|answer| Response::ResponsePut(answer.into_inner())),
        Request::RequestDeleteRange(delete) => kv
            .delete_range(delete)
            .await
            .map(|answer| Response::ResponseDeleteRange(answer.into_inner())),
        Request::RequestTxn(txn) => kv
            .txn(txn)
            .await
            .map(|answer| Response::ResponseTxn(answer.into_inner())),
    };
    match answer {
        Ok(answer) => shown(&pb::ResponseOp {
            response: Some(answer),
        }),
        Err(refused) => Shown::Refused(refused.code(), refused.message().to_owned()),
    }
}

/// Behind the claims, so that ranges without end do not show them.
const KEYS: [&str; 5] = ["m", "n", "o", "p", "q"];

fn random_request(random: &mut StdRng, depth: usize, number: usize) -> Request {
    let key = KEYS[random.random_range(0..KEYS.len())];
    let last = random.random_range(0..KEYS.len());
    let range_end = ["n", "p", "r", "\0", "m"][last];
    match random.random_range(0..if depth > 0 { 16 } else { 13 }) {
        0..5 => Request::RequestRange(pb::RangeRequest {
            keys_only: random.random_bool(0.2),
            count_only: random.random_bool(0.1),
            serializable: false,
            limit: i64::from(random.random_range(0..2)),
            ..read(key)
        }),
        5 => Request::RequestRange(pb::RangeRequest {
            range_end: range_end.into(),
            ..read(key)
        }),
        6..10 => Request::RequestPut(pb::PutRequest {
            prev_kv: random.random_bool(0.3),
            ..put(key, &number.to_string())
        }),
        10 => Request::RequestPut(pb::PutRequest {
            ignore_value: true,
            ..put(key, "")
        }),
        11 => Request::RequestDeleteRange(pb::DeleteRangeRequest {
            prev_kv: random.random_bool(0.5),
            ..delete(key, "")
        }),
        12 => Request::RequestDeleteRange(pb::DeleteRangeRequest {
            prev_kv: random.random_bool(0.5),
            ..delete(key, range_end)
        }),
        _ => {
            let compares = random.random_range(0..3);
            let compare = (0..compares).map(|_| random_compare(random)).collect();
            let mut branch = |count: usize| {
                (0..count)
                    .map(|_| operation(random_request(random, depth - 1, number)))
                    .collect()
            };
            Request::RequestTxn(pb::TxnRequest {
                compare,
                success: branch(2),
                failure: branch(1),
            })
        }
    }
}

fn random_compare(random: &mut StdRng) -> pb::Compare {
    let (target, value) = match random.random_range(0..4) {
        0 => (
            CompareTarget::Version,
            TargetUnion::Version(random.random_range(0..3)),
        ),
        1 => (
            CompareTarget::Create,
            TargetUnion::CreateRevision(random.random_range(0..2)),
        ),
        2 => (CompareTarget::Value, TargetUnion::Value("3".into())),
        _ => (CompareTarget::Lease, TargetUnion::Lease(0)),
    };
    pb::Compare {
        result: random.random_range(0..4),
        target: target.into(),
        key: KEYS[random.random_range(0..KEYS.len())].into(),
        target_union: Some(value),
        ..Default::default()
    }
}

/// Every answer through any of the proxies is the one that the store would give without them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_proxies_that_own_keys_see_what_clients_of_the_store_see() {
    const OPERATIONS: usize = 1500;
    if subject() == Program::Etcd {
        // Its proxy has errors here: counts of deleted keys, comparisons with keys that do not exist, values in
        // answers that are to have keys only, ranges without end.
        return;
    }
    within(async {
        let seed = metastore_tests::seed();
        let mut random = StdRng::seed_from_u64(seed);
        let (member, model) = (
            Member::start(subject()).await,
            Member::start(subject()).await,
        );
        let mut proxies = Vec::new();
        for _ in 0..3 {
            let proxy = Proxy::start(subject(), &member.address(), &[FLAG]).await;
            own(&proxy.client(), &member.client(), "ready").await;
            proxies.push(proxy);
        }
        let clients: Vec<_> = proxies.iter().map(Proxy::client).collect();
        let model = model.client();
        for number in 0..OPERATIONS {
            let request = random_request(&mut random, 2, number);
            // Whoever had the last word often has the next one, so that keys are owned for a while.
            let at = random
                .random_range(0..clients.len() * 3)
                .min(clients.len() - 1);
            let (ours, wanted) = tokio::join!(run(&clients[at], &request), run(&model, &request));
            assert_eq!(
                ours, wanted,
                "SEED={seed} {number} through {at}: {request:?}"
            );
        }
    })
    .await;
}

/// Linearizable, whatever becomes of writes. A proxy of etcd does some writes twice, so it has a test of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_several_proxies_see_one_store() {
    if subject() == Program::Etcd {
        return;
    }
    within(async {
        let mut member = Member::start(subject()).await;
        let first = Proxy::start(subject(), &member.address(), &[FLAG]).await;
        let second = Proxy::start(subject(), &member.address(), &[FLAG]).await;
        own(&first.client(), &member.client(), "ready").await;
        own(&second.client(), &member.client(), "set").await;
        let options = LoadOptions {
            keys: 3,
            pause: Duration::from_millis(2),
            ..Default::default()
        };
        let seed = options.seed;
        let proxies = vec![first.endpoint(), second.endpoint()];
        let load = Load::start_beside(proxies, vec![member.endpoint()], options);
        load.progress(300, "clients write").await;
        // Nobody learns of what is on its way.
        member.kill();
        member.restart().await;
        load.progress(300, "clients write again").await;
        let history = load.stop().await;
        if let Err(mut broken) = history.check_operations_of_caches() {
            broken.truncate(20_000);
            panic!("SEED={seed}: {broken}");
        }
    })
    .await;
}

/// What was acknowledged by one proxy is seen through the other one, which owned the key, and nothing older after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_proxy_has_written_the_other_one_shows() {
    const ROUNDS: u64 = 4;
    const WRITES: u64 = 40;
    const READERS: usize = 3;
    within(async {
        for (reader, writer) in pairs() {
            let case = format!("{reader:?} reads, {writer:?} writes");
            let member = Member::start(subject()).await;
            let direct = member.client();
            let first = Proxy::start(reader, &member.address(), &[FLAG]).await;
            let second = Proxy::start(writer, &member.address(), &[FLAG]).await;
            let written = Arc::new(AtomicU64::new(0));
            let ended = Arc::new(AtomicBool::new(false));
            let readers: Vec<_> = (0..READERS)
                .map(|_| {
                    let (written, ended) = (Arc::clone(&written), Arc::clone(&ended));
                    let (client, case) = (first.client(), case.clone());
                    tokio::spawn(async move {
                        let mut last = 0;
                        while !ended.load(Ordering::SeqCst) {
                            let wanted = written.load(Ordering::SeqCst).max(last);
                            let text = value(&client, "k").await;
                            last = text.map_or(0, |text| text.parse().unwrap());
                            assert!(last >= wanted, "{case}: {last} after {wanted}");
                        }
                        last
                    })
                })
                .collect();
            let client = second.client();
            let mut next = 0;
            for _ in 0..ROUNDS {
                own(&first.client(), &direct, "k").await;
                for _ in 0..WRITES {
                    next += 1;
                    client.put("k", next.to_string()).await.unwrap();
                    written.store(next, Ordering::SeqCst);
                }
            }
            own(&first.client(), &direct, "k").await;
            ended.store(true, Ordering::SeqCst);
            for reader in readers {
                assert_eq!(reader.await.unwrap(), ROUNDS * WRITES, "{case}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_is_gone_owns_its_keys_until_its_lease_ends() {
    within(async {
        for (gone, writer) in pairs() {
            let case = format!("{gone:?} is gone, {writer:?} writes");
            let member = Member::start(subject()).await;
            let direct = member.client();
            let mut first = Proxy::start(gone, &member.address(), &[FLAG]).await;
            let second = Proxy::start(writer, &member.address(), &[FLAG]).await;
            let lease = own(&first.client(), &direct, "k").await;
            first.child.kill().unwrap();
            let writer = second.client();
            let write = tokio::spawn(async move { writer.put("k", "1").await });
            eventually("the key is wanted back", LIMIT, || async {
                let (claim, _) = direct.get(claim("k")).await.unwrap();
                match claim {
                    Some(claim) if claim.value == "REVOKE" && claim.lease == lease => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
            assert!(!write.is_finished(), "{case}");
            let ask = pb::LeaseTimeToLiveRequest {
                id: lease,
                keys: false,
            };
            let life = direct.lease.clone().lease_time_to_live(ask).await.unwrap();
            assert_eq!(
                life.into_inner().granted_ttl,
                i64::try_from(LEASE_LIFE.as_secs()).unwrap(),
                "{case}"
            );
            // Its end, without waiting for it.
            let revoke = pb::LeaseRevokeRequest { id: lease };
            direct.lease.clone().lease_revoke(revoke).await.unwrap();
            tokio::time::timeout(deadline(LIMIT), write)
                .await
                .expect("the write goes on")
                .unwrap()
                .unwrap();
            assert_eq!(value(&direct, "k").await.as_deref(), Some("1"), "{case}");
        }
    })
    .await;
}

/// The life of a lease passes: this takes a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_slept_longer_than_its_lease_shows_nothing_old() {
    if subject() == Program::Etcd {
        // It answers before it notices.
        return;
    }
    within(async {
        let member = Member::start(subject()).await;
        let direct = member.client();
        let first = Proxy::start(subject(), &member.address(), &[FLAG]).await;
        let second = Proxy::start(subject(), &member.address(), &[FLAG]).await;
        let (sleeper, writer) = (first.client(), second.client());
        sleeper.put("k", "old").await.unwrap();
        own(&sleeper, &direct, "k").await;
        let id = Pid::from_raw(i32::try_from(first.child.id()).unwrap()).unwrap();
        kill_process(id, Signal::STOP).unwrap();
        let written = tokio::time::timeout(deadline(LEASE_LIFE + LIMIT), writer.put("k", "new"));
        written.await.expect("the lease ends").unwrap();
        // Asked while it sleeps: the question is the first thing that it finds.
        let read = tokio::spawn(async move { value(&sleeper, "k").await });
        assert!(waits(std::future::pending::<()>()).await);
        kill_process(id, Signal::CONT).unwrap();
        let seen = tokio::time::timeout(deadline(LIMIT), read).await;
        assert_eq!(seen.unwrap().unwrap().as_deref(), Some("new"));
        // It owns keys again, under another lease.
        own(&first.client(), &direct, "k").await;
        writer.put("k", "newer").await.unwrap();
        assert_eq!(value(&first.client(), "k").await.as_deref(), Some("newer"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_whose_lease_is_revoked_owns_keys_under_another_one() {
    if subject() == Program::Etcd {
        // It learns of it when it renews the lease, and shows what it knew until then.
        return;
    }
    within(async {
        let member = Member::start(subject()).await;
        let direct = member.client();
        let proxy = Proxy::start(subject(), &member.address(), &[FLAG]).await;
        let client = proxy.client();
        client.put("k", "1").await.unwrap();
        let lease = own(&client, &direct, "k").await;
        let revoke = pb::LeaseRevokeRequest { id: lease };
        direct.lease.clone().lease_revoke(revoke).await.unwrap();
        // Its claims are gone, and it learns that from its watch.
        direct.put("k", "2").await.unwrap();
        eventually("the proxy forgets what it owned", LIMIT, || async {
            match value(&client, "k").await.as_deref() {
                Some("2") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        client.put("k", "3").await.unwrap();
        assert_eq!(value(&client, "k").await.as_deref(), Some("3"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_whose_lease_may_end_is_not_owned() {
    within(async {
        for program in [Program::Etcd, subject()] {
            let member = Member::start(subject()).await;
            let direct = member.client();
            let proxy = Proxy::start(program, &member.address(), &[FLAG]).await;
            let client = proxy.client();
            own(&client, &direct, "k").await;
            let grant = pb::LeaseGrantRequest { ttl: 600, id: 77 };
            client.lease.clone().lease_grant(grant).await.unwrap();
            let leased = |key| pb::PutRequest {
                lease: 77,
                ..put(key, "leased")
            };
            direct.kv.clone().put(leased("direct")).await.unwrap();
            assert_eq!(value(&client, "direct").await.as_deref(), Some("leased"));
            let (claimed, _) = direct.get(claim("direct")).await.unwrap();
            assert_eq!(claimed, None, "{program:?}");
            if program == Program::Etcd {
                // It shows a key that it owned before for ever.
                continue;
            }
            client.kv.clone().put(leased("k")).await.unwrap();
            assert_eq!(value(&client, "k").await.as_deref(), Some("leased"));
            let revoke = pb::LeaseRevokeRequest { id: 77 };
            direct.lease.clone().lease_revoke(revoke).await.unwrap();
            assert_eq!(value(&client, "k").await, None);
            assert_eq!(value(&client, "direct").await, None);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_are_in_the_namespace() {
    within(async {
        let member = Member::start(subject()).await;
        let direct = member.client();
        let flags = [FLAG, "--namespace=ns/"];
        let etcd = Proxy::start(Program::Etcd, &member.address(), &flags).await;
        let ours = Proxy::start(subject(), &member.address(), &flags).await;
        let mut last = 0;
        for (owner, writer) in [(&etcd, &ours), (&ours, &etcd)] {
            let (owner, writer) = (owner.client(), writer.client());
            last = eventually("the key is owned", LIMIT, || async {
                owner.get("k").await.map_err(|error| error.to_string())?;
                match direct.get("ns/claims/k").await.unwrap().0 {
                    Some(claim) if claim.value.is_empty() && claim.lease != last => Ok(claim.lease),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
            let all = writer.kv.clone().delete_range(delete("k", "l")).await;
            all.unwrap();
            assert_eq!(value(&owner, "k").await, None);
            writer.put("k", "new").await.unwrap();
            assert_eq!(value(&owner, "k").await.as_deref(), Some("new"));
            assert_eq!(value(&direct, "ns/k").await.as_deref(), Some("new"));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_users_read_is_not_kept_and_what_they_write_is_seen() {
    if subject() == Program::Etcd {
        // What it has read once it shows to everybody.
        return;
    }
    within(async {
        let member = Member::start(subject()).await;
        let direct = member.client();
        let proxy = Proxy::start(subject(), &member.address(), &[FLAG]).await;
        let client = proxy.client();
        client.put("k", "0").await.unwrap();
        own(&client, &direct, "k").await;
        let mut auth = AuthClient::new(direct.channel.clone());
        for name in ["root", "u"] {
            let user = pb::AuthUserAddRequest {
                name: name.into(),
                password: "secret".into(),
                ..Default::default()
            };
            auth.user_add(user).await.unwrap();
        }
        let role = pb::AuthUserGrantRoleRequest {
            user: "root".into(),
            role: "root".into(),
        };
        auth.role_add(pb::AuthRoleAddRequest {
            name: "root".into(),
        })
        .await
        .unwrap();
        auth.user_grant_role(role).await.unwrap();
        auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();

        let root = token(&client, "root").await;
        let unknown = token(&client, "u").await;
        let denied = client
            .kv
            .clone()
            .range(with_token(read("k"), &unknown))
            .await
            .unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied);
        let mut written = 0;
        for text in ["1", "2"] {
            let mut kv = client.kv.clone();
            let answer = kv.put(with_token(put("k", text), &root));
            let answer = tokio::time::timeout(deadline(LEASE_LIFE + LIMIT), answer);
            let answer = answer.await.expect("the claim ends").unwrap().into_inner();
            assert!(revision(answer.header) > written);
            written = revision(answer.header);
            let found = client.kv.clone().range(with_token(read("k"), &root)).await;
            let found = found.unwrap().into_inner();
            assert_eq!(decode(&found.kvs[0]).value, text);
        }
        let refused = client.get("k").await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: user name is empty");
    })
    .await;
}
