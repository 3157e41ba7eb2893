//! The sub-command `grpc-proxy`, beside etcd's.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use metastore_proto::etcdserverpb as pb;
use metastore_proto::etcdserverpb::auth_client::AuthClient;
use metastore_proto::v3lockpb::lock_client::LockClient;
use metastore_proto::v3lockpb::{LockRequest, UnlockRequest};
use metastore_tests::certificates::{Authority, Pair, client_config, request};
use metastore_tests::client::decode;
use metastore_tests::member::free_port;
use metastore_tests::programs::{subject, tool};
use metastore_tests::{
    Client, Cluster, Member, MemberBuilder, Program, eventually, exposition, http,
};
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Streaming};

use crate::within;

/// Longest wait for something that takes milliseconds.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a proxy's entry outlives it in these tests.
const TTL_SECONDS: &str = "3";

/// A running proxy.
pub struct Proxy {
    pub child: Child,
    pub address: String,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    fn spawn(program: Program, endpoints: &str, flags: &[&str]) -> Self {
        Self::spawn_with_log(program, endpoints, flags, Stdio::null())
    }

    fn spawn_with_log(program: Program, endpoints: &str, flags: &[&str], log: Stdio) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let child = Command::new(program.path())
            .args(["grpc-proxy", "start", "--listen-addr", &address])
            .arg(format!("--advertise-client-url={address}"))
            .arg(format!("--endpoints={endpoints}"))
            .args(flags)
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, address }
    }

    pub async fn start(program: Program, endpoints: &str, flags: &[&str]) -> Self {
        let proxy = Self::spawn(program, endpoints, flags);
        proxy.answers(&proxy.client()).await;
        proxy
    }

    async fn answers(&self, client: &Client) {
        eventually("the proxy answers", LIMIT, || async {
            match client.get("a").await {
                Err(status) if status.code() == Code::Unavailable => Err(status.to_string()),
                _ => Ok(()),
            }
        })
        .await;
    }

    pub fn client(&self) -> Client {
        Client::new(&self.endpoint())
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What etcdctl says, without the address.
    fn control(&self, line: &str) -> String {
        let output = Command::new(tool("etcdctl"))
            .arg("--endpoints")
            .arg(&self.address)
            .arg("--command-timeout=10s")
            .args(line.split(' '))
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        // The client's own log has times.
        let lines = text.lines().filter(|line| !line.starts_with("{\"level\":"));
        let lines: Vec<_> = lines
            .map(|line| line.replace(&self.address, "PROXY"))
            .collect();
        format!("{}\n{}", output.status, lines.join("\n"))
    }
}

/// Both proxies, each in front of a member of its own.
async fn pair(flags: &[&str]) -> [(Proxy, Member); 2] {
    let mut started = Vec::new();
    for program in [Program::Etcd, subject()] {
        let member = Member::start(subject()).await;
        let proxy = Proxy::start(program, &member.address(), flags).await;
        started.push((proxy, member));
    }
    started.try_into().unwrap_or_else(|_| panic!("two of them"))
}

/// Command lines whose output has nothing of its own in it.
const COMMANDS: &[&str] = &[
    "put a 1",
    "get a",
    "put a 2 --prev-kv",
    "get a --consistency=s",
    "put b 3",
    "get a c",
    "get a --prefix --keys-only",
    "get a --from-key --limit=1",
    "get a z --order=DESCEND --count-only",
    "get none",
    "get a --rev=2",
    "get a --rev=100",
    "get a --sort-by=MODIFY --order=ASCEND --prefix",
    "put --ignore-value none",
    "put x y --lease=123",
    "del b --prev-kv",
    "del none",
    "del a z --prev-kv",
    "get a --consistency=s",
    "lease timetolive 7b",
    "lease revoke 7b",
    "lease list",
    "compaction 3",
    "compaction 3",
    "compaction 100",
    "get a --rev=2",
    "member list",
    "role add r",
    "role grant-permission r read k",
    "role get r",
    "role get none",
    "user add u:p",
    "user add u:p",
    "user grant-role u r",
    "user get u",
    "user list",
    "auth status",
    "auth enable",
    "alarm list",
    "move-leader 1",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_answers_as_etcds_does() {
    within(async {
        let [(etcd, _etcd), (ours, _ours)] = pair(&[]).await;
        for line in COMMANDS {
            assert_eq!(ours.control(line), etcd.control(line), "{line}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_a_namespace_are_its_own() {
    within(async {
        for (proxy, member) in pair(&["--namespace=ns/"]).await {
            let (inside, outside) = (proxy.client(), member.client());
            outside.put("a", "outside").await.unwrap();
            outside.put("ns0", "outside").await.unwrap();
            inside.put("a", "inside").await.unwrap();
            let (found, _) = inside.get("a").await.unwrap();
            assert_eq!(found.unwrap().value, "inside");
            let (found, _) = outside.get("ns/a").await.unwrap();
            assert_eq!(found.unwrap().value, "inside");

            // From the first key on, to the end of the namespace.
            let all = pb::RangeRequest {
                key: "\0".into(),
                range_end: "\0".into(),
                ..Default::default()
            };
            let found = inside.kv.clone().range(all).await.unwrap().into_inner();
            let keys: Vec<_> = found.kvs.iter().map(|pair| decode(pair).key).collect();
            assert_eq!(keys, ["a"]);

            let compare = pb::Compare {
                key: "a".into(),
                target: pb::compare::CompareTarget::Value.into(),
                target_union: Some(pb::compare::TargetUnion::Value("inside".into())),
                ..Default::default()
            };
            let delete = pb::DeleteRangeRequest {
                key: "a".into(),
                prev_kv: true,
                ..Default::default()
            };
            let operation = |request| pb::RequestOp {
                request: Some(request),
            };
            let grant = pb::LeaseGrantRequest { ttl: 100, id: 77 };
            inside.lease.clone().lease_grant(grant).await.unwrap();
            let put = pb::PutRequest {
                key: "leased".into(),
                lease: 77,
                ..Default::default()
            };
            let txn = pb::TxnRequest {
                compare: vec![compare],
                success: vec![
                    operation(pb::request_op::Request::RequestDeleteRange(delete)),
                    operation(pb::request_op::Request::RequestPut(put)),
                ],
                failure: Vec::new(),
            };
            let answer = inside.kv.clone().txn(txn).await.unwrap().into_inner();
            assert!(answer.succeeded);
            let Some(pb::response_op::Response::ResponseDeleteRange(deleted)) =
                &answer.responses[0].response
            else {
                panic!("{answer:?}");
            };
            assert_eq!(decode(&deleted.prev_kvs[0]).key, "a");

            let ask = pb::LeaseTimeToLiveRequest { id: 77, keys: true };
            let answer = inside.lease.clone().lease_time_to_live(ask).await.unwrap();
            assert_eq!(answer.into_inner().keys, ["leased"]);

            let mut watch = open(
                &inside,
                pb::WatchCreateRequest {
                    key: "leased".into(),
                    range_end: "\0".into(),
                    start_revision: 1,
                    prev_kv: true,
                    ..Default::default()
                },
            )
            .await;
            outside.put("ns/leased", "new").await.unwrap();
            let events = read(&mut watch, 2).await;
            let keys: Vec<_> = events.iter().map(key).collect();
            assert_eq!(keys, ["leased", "leased"]);
            assert_eq!(decode(events[1].prev_kv.as_ref().unwrap()).key, "leased");

            let empty = inside.put("", "x").await.unwrap_err();
            assert_eq!(empty.message(), "etcdserver: key is not provided");
        }
    })
    .await;
}

fn key(event: &metastore_proto::mvccpb::Event) -> String {
    let pair = decode(event.kv.as_ref().unwrap());
    String::from_utf8(pair.key.to_vec()).unwrap()
}

/// Opens a watch and reads that it was created.
async fn open(client: &Client, create: pb::WatchCreateRequest) -> Answers {
    let mut answers = send(client, vec![RequestUnion::CreateRequest(create)]).await;
    let created = next(&mut answers).await;
    assert!(created.created && !created.canceled, "{created:?}");
    answers
}

/// The answers of a stream of watches.
struct Answers {
    answers: Streaming<pb::WatchResponse>,
    /// The stream ends with this: the library would go on with one whose answers were dropped.
    requests: mpsc::UnboundedSender<pb::WatchRequest>,
}

impl Answers {
    fn ask(&self, request: RequestUnion) {
        let request = pb::WatchRequest {
            request_union: Some(request),
        };
        self.requests.send(request).unwrap();
    }
}

impl std::ops::Deref for Answers {
    type Target = Streaming<pb::WatchResponse>;

    fn deref(&self) -> &Self::Target {
        &self.answers
    }
}

impl std::ops::DerefMut for Answers {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.answers
    }
}

/// Sends requests on a stream that stays open.
async fn send(client: &Client, first: Vec<RequestUnion>) -> Answers {
    let (requests, queue) = mpsc::unbounded_channel();
    for request in first {
        let request = pb::WatchRequest {
            request_union: Some(request),
        };
        requests.send(request).unwrap();
    }
    let answers = client
        .watch
        .clone()
        .watch(UnboundedReceiverStream::new(queue))
        .await;
    Answers {
        answers: answers.unwrap().into_inner(),
        requests,
    }
}

async fn next(answers: &mut Streaming<pb::WatchResponse>) -> pb::WatchResponse {
    let answer = tokio::time::timeout(metastore_tests::deadline(LIMIT), answers.next());
    answer.await.expect("an answer in time").unwrap().unwrap()
}

/// Reads so many events.
async fn read(
    answers: &mut Streaming<pb::WatchResponse>,
    count: usize,
) -> Vec<metastore_proto::mvccpb::Event> {
    let mut events = Vec::new();
    while events.len() < count {
        let answer = next(answers).await;
        assert!(!answer.canceled, "{answer:?}");
        events.extend(answer.events);
    }
    events
}

/// The value of a metric without labels.
fn metric(address: &str, path: &str, name: &str) -> f64 {
    let text = http::get(address, path).text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watches_share_one_and_outlive_their_member() {
    if subject() == Program::Etcd {
        // Its proxy keeps watches of its own.
        return;
    }
    const WATCHES: usize = 20;
    const WRITES: i64 = 30;
    within(async {
        let mut member = Member::start(subject()).await;
        let proxy = Proxy::start(subject(), &member.address(), &[]).await;
        let client = proxy.client();
        let first = client.put("k", "first").await.unwrap();
        let mut watches = Vec::new();
        for number in 0..WATCHES {
            // Some begin in the past, and one in the future.
            let start_revision = match number % 3 {
                0 => 0,
                1 => first,
                _ => first + 2,
            };
            let create = pb::WatchCreateRequest {
                key: "k".into(),
                start_revision,
                ..Default::default()
            };
            watches.push((start_revision, open(&client, create).await));
        }
        let mut revisions = vec![first];
        for number in 0..WRITES {
            if number == WRITES / 2 {
                member.kill();
                member.restart().await;
            }
            let put = || async {
                client
                    .put("k", "x")
                    .await
                    .map_err(|error| error.to_string())
            };
            revisions.push(eventually("the member is back", LIMIT, put).await);
        }
        for (start_revision, watch) in &mut watches {
            let begin = match *start_revision {
                0 => first + 1,
                revision => revision,
            };
            let wanted: Vec<_> = revisions
                .iter()
                .copied()
                .filter(|it| *it >= begin)
                .collect();
            let events = read(watch, wanted.len()).await;
            let seen: Vec<_> = events
                .iter()
                .map(|event| decode(event.kv.as_ref().unwrap()).mod_revision)
                .collect();
            assert_eq!(seen, wanted, "from {start_revision}");
        }
        eventually("one watch is left in the member", LIMIT, || async {
            let watchers = metric(
                &member.address(),
                "/metrics",
                "etcd_debugging_mvcc_watcher_total",
            );
            match watchers == 1.0 {
                true => Ok(()),
                false => Err(format!("{watchers} watchers")),
            }
        })
        .await;
        let coalesced = metric(
            &proxy.address,
            "/proxy/metrics",
            "etcd_grpc_proxy_watchers_coalescing_total",
        );
        assert_eq!(coalesced, (WATCHES - 1) as f64);
        assert!(
            metric(
                &proxy.address,
                "/proxy/metrics",
                "etcd_grpc_proxy_events_coalescing_total",
            ) > 0.0
        );
        drop(watches);
        eventually("no watch is left in the member", LIMIT, || async {
            let watchers = metric(
                &member.address(),
                "/metrics",
                "etcd_debugging_mvcc_watcher_total",
            );
            match watchers == 0.0 {
                true => Ok(()),
                false => Err(format!("{watchers} watchers")),
            }
        })
        .await;
    })
    .await;
}

/// What matters of an answer on a watch's stream.
fn outline(answer: &pb::WatchResponse) -> (i64, bool, bool, i64, String, Vec<String>) {
    let events = answer.events.iter().map(|event| {
        let previous = event.prev_kv.is_some();
        format!("{} {} {previous}", event.r#type().as_str_name(), key(event))
    });
    (
        answer.watch_id,
        answer.created,
        answer.canceled,
        answer.compact_revision,
        answer.cancel_reason.clone(),
        events.collect(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_answered_as_by_etcds_proxy() {
    within(async {
        let mut seen = Vec::new();
        for (proxy, _member) in pair(&[]).await {
            let client = proxy.client();
            let create = RequestUnion::CreateRequest;
            let watch = |key: &'static str| pb::WatchCreateRequest {
                key: key.into(),
                ..Default::default()
            };
            for number in 0..5 {
                client.put("a", number.to_string()).await.unwrap();
            }
            client
                .kv
                .clone()
                .compact(pb::CompactionRequest {
                    revision: 4,
                    physical: true,
                })
                .await
                .unwrap();
            let mut answers = Vec::new();
            // One stream after the other: what the proxies do at the same time has no order.
            let mut both = send(
                &client,
                vec![
                    create(pb::WatchCreateRequest {
                        filters: vec![pb::watch_create_request::FilterType::Noput.into()],
                        ..watch("b")
                    }),
                    create(pb::WatchCreateRequest {
                        prev_kv: true,
                        ..watch("b")
                    }),
                ],
            )
            .await;
            let mut created = [next(&mut both).await, next(&mut both).await];
            created.sort_by_key(|answer| answer.watch_id);
            answers.extend(created.iter().map(outline));
            client.put("b", "1").await.unwrap();
            answers.push(outline(&next(&mut both).await));
            let delete = pb::DeleteRangeRequest {
                key: "b".into(),
                ..Default::default()
            };
            client.kv.clone().delete_range(delete).await.unwrap();
            let mut deleted = [next(&mut both).await, next(&mut both).await];
            deleted.sort_by_key(|answer| answer.watch_id);
            answers.extend(deleted.iter().map(outline));

            let mut past = send(
                &client,
                vec![create(pb::WatchCreateRequest {
                    start_revision: 5,
                    ..watch("a")
                })],
            )
            .await;
            for _ in 0..2 {
                answers.push(outline(&next(&mut past).await));
            }
            let mut compacted = send(
                &client,
                vec![create(pb::WatchCreateRequest {
                    start_revision: 2,
                    ..watch("a")
                })],
            )
            .await;
            let mut last = next(&mut compacted).await;
            if !last.canceled {
                last = next(&mut compacted).await;
            }
            // Etcd's proxy leaves the reason out.
            assert!(last.canceled && last.compact_revision == 4, "{last:?}");

            // Etcd's proxy does not wait for a watch before it ends it, so each request follows an answer.
            let mut canceled = send(&client, vec![create(watch("c"))]).await;
            answers.push(outline(&next(&mut canceled).await));
            for request in [
                RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 }),
                create(watch("c")),
            ] {
                canceled.ask(request);
                answers.push(outline(&next(&mut canceled).await));
            }
            seen.push(answers);
        }
        assert_eq!(seen[1], seen[0]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_with_one_prefix_know_each_other() {
    within(async {
        let member = Member::start(subject()).await;
        let resolver_ttl = format!("--resolver-ttl={TTL_SECONDS}");
        let flags = ["--resolver-prefix=proxies", &resolver_ttl];
        let etcd = Proxy::start(Program::Etcd, &member.address(), &flags).await;
        let ours = Proxy::start(subject(), &member.address(), &flags).await;
        let listed = |client: Client| async move {
            let members = client.members().await.map_err(|error| error.to_string())?;
            let addresses = members.iter().map(|member| member.client_ur_ls[0].clone());
            let names: BTreeSet<_> = members.iter().map(|member| member.name.clone()).collect();
            assert_eq!(names.len(), 1, "both are on this machine: {members:?}");
            Ok::<_, String>(addresses.collect::<BTreeSet<_>>())
        };
        let both: BTreeSet<_> = [&etcd, &ours].map(|proxy| proxy.address.clone()).into();
        for client in [etcd.client(), ours.client()] {
            eventually("the proxies know each other", LIMIT, || {
                let (both, listed) = (&both, listed(client.clone()));
                async move {
                    match listed.await? {
                        found if found == *both => Ok(()),
                        found => Err(format!("{found:?}")),
                    }
                }
            })
            .await;
        }
        // The entries of both are alike.
        let range = pb::RangeRequest {
            key: "proxies/".into(),
            range_end: "proxies0".into(),
            ..Default::default()
        };
        let found = member.client().kv.clone().range(range).await.unwrap();
        let mut entries = found
            .into_inner()
            .kvs
            .iter()
            .map(decode)
            .collect::<Vec<_>>();
        for entry in &mut entries {
            for proxy in [&etcd, &ours] {
                let text = String::from_utf8(entry.value.to_vec()).unwrap();
                entry.value = text.replace(&proxy.address, "ADDRESS").into();
            }
        }
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].value, entries[1].value);

        drop(etcd);
        let client = ours.client();
        eventually("the lost proxy is forgotten", LIMIT, || async {
            match listed(client.clone()).await? {
                found if found.len() == 1 => Ok(()),
                found => Err(format!("{found:?}")),
            }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serializable_read_may_be_kept_and_a_write_ends_that() {
    within(async {
        for (proxy, member) in pair(&[]).await {
            let client = proxy.client();
            client.put("a", "1").await.unwrap();
            let value = |found: (Option<metastore_proto::KeyValue>, i64)| found.0.unwrap().value;
            assert_eq!(value(client.get_serializable("a").await.unwrap()), "1");
            // Past the proxy: as in etcd it does not see that.
            member.client().put("a", "2").await.unwrap();
            assert_eq!(value(client.get_serializable("a").await.unwrap()), "1");
            assert_eq!(value(client.get("a").await.unwrap()), "2");
            assert_eq!(value(client.get_serializable("a").await.unwrap()), "2");
            client.put("a", "3").await.unwrap();
            assert_eq!(value(client.get_serializable("a").await.unwrap()), "3");
            let hits = metric(
                &proxy.address,
                "/proxy/metrics",
                "etcd_grpc_proxy_cache_hits_total",
            );
            assert!(hits >= 2.0, "{hits}");
        }
    })
    .await;
}

/// A token for a user with this password.
pub async fn token(client: &Client, name: &str) -> String {
    let request = pb::AuthenticateRequest {
        name: name.to_owned(),
        password: "secret".to_owned(),
    };
    let mut auth = AuthClient::new(client.channel.clone());
    auth.authenticate(request).await.unwrap().into_inner().token
}

pub fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("token", token.parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_who_their_tokens_say() {
    if subject() == Program::Etcd {
        // Its proxy shows to everybody what one user has read.
        return;
    }
    within(async {
        let member = Member::start(subject()).await;
        let proxy = Proxy::start(subject(), &member.address(), &[]).await;
        for line in [
            "user add root:secret",
            "user grant-role root root",
            "user add u:secret",
            "role add r",
            "role grant-permission r readwrite u",
            "user grant-role u r",
            "put u 1",
            "put v 1",
            "auth enable",
        ] {
            let output = proxy.control(line);
            assert!(output.starts_with("exit status: 0"), "{line}: {output}");
        }
        let client = proxy.client();
        let (root, user) = (token(&client, "root").await, token(&client, "u").await);
        let range = |key: &'static str| pb::RangeRequest {
            key: key.into(),
            serializable: true,
            ..Default::default()
        };
        let mut kv = client.kv.clone();
        // What root has read is not for others.
        kv.range(with_token(range("v"), &root)).await.unwrap();
        kv.range(with_token(range("u"), &user)).await.unwrap();
        let denied = kv.range(with_token(range("v"), &user)).await.unwrap_err();
        assert_eq!(denied.message(), "etcdserver: permission denied");
        let nobody = kv.range(range("v")).await.unwrap_err();
        assert_eq!(nobody.message(), "etcdserver: user name is empty");

        // A watch of root's is not for others either.
        let create = pb::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
                key: "v".into(),
                ..Default::default()
            })),
        };
        let mut opened = Vec::new();
        for token in [&root, &user] {
            let requests = tokio_stream::once(create.clone()).chain(tokio_stream::pending());
            let stream = client
                .watch
                .clone()
                .watch(with_token(requests, token))
                .await;
            let mut answers = stream.unwrap().into_inner();
            opened.push((next(&mut answers).await, answers));
        }
        assert!(opened[0].0.created && !opened[0].0.canceled);
        assert!(opened[1].0.canceled, "{:?}", opened[1].0);
        assert_eq!(opened[1].0.cancel_reason, "etcdserver: permission denied");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_service_is_behind_the_proxy() {
    if subject() == Program::Etcd {
        // Its proxy refuses some calls, and says -1 of a lease that has ended.
        return;
    }
    within(async {
        let member = Member::start(subject()).await;
        let proxy = Proxy::start(subject(), &member.address(), &[]).await;
        let client = proxy.client();
        let grant = pb::LeaseGrantRequest { ttl: 100, id: 5 };
        client.lease.clone().lease_grant(grant).await.unwrap();
        let renewals = tokio_stream::iter([5, 5, 6]).map(|id| pb::LeaseKeepAliveRequest { id });
        let renewals = renewals.chain(tokio_stream::pending());
        let answers = client.lease.clone().lease_keep_alive(renewals).await;
        let mut answers = answers.unwrap().into_inner();
        for ttl in [100, 100, 0] {
            assert_eq!(answers.next().await.unwrap().unwrap().ttl, ttl);
        }

        let mut locks = LockClient::new(client.channel.clone());
        let lock = LockRequest {
            name: "l".into(),
            lease: 5,
        };
        let key = locks.lock(lock).await.unwrap().into_inner().key;
        locks.unlock(UnlockRequest { key }).await.unwrap();

        let mut maintenance = client.maintenance.clone();
        let mut snapshot = maintenance
            .snapshot(pb::SnapshotRequest {})
            .await
            .unwrap()
            .into_inner();
        let mut bytes = 0;
        while let Some(piece) = snapshot.next().await {
            bytes += piece.unwrap().blob.len();
        }
        assert!(bytes > 4096, "{bytes}");
        assert_eq!(
            client.hash_kv(0).await.unwrap().hash,
            member.client().hash_kv(0).await.unwrap().hash
        );
        assert_eq!(client.status().await.unwrap().version, "3.7.3");

        let mut stream = client.kv.clone();
        client.put("a", "1").await.unwrap();
        let range = pb::RangeRequest {
            key: "a".into(),
            ..Default::default()
        };
        let mut pieces = stream.range_stream(range).await.unwrap().into_inner();
        let mut pairs = 0;
        while let Some(piece) = pieces.next().await {
            pairs += piece.unwrap().range_response.map_or(0, |it| it.kvs.len());
        }
        assert_eq!(pairs, 1);

        let large = client.put("large", vec![0; 1_600_000]).await.unwrap_err();
        assert_eq!(large.code(), Code::ResourceExhausted);
        assert!(
            large
                .message()
                .contains("trying to send message larger than max")
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_may_wait_longer_than_pings_are_told_to() {
    within(async {
        let member = Member::start(subject()).await;
        let flags = ["--dial-keepalive-time=1s"];
        let proxy = Proxy::start(subject(), &member.address(), &flags).await;
        let lock = LockRequest {
            name: "l".into(),
            lease: 0,
        };
        let mut direct = LockClient::new(member.client().channel);
        let held = direct.lock(lock.clone()).await.unwrap().into_inner();
        let mut behind = LockClient::new(proxy.client().channel);
        let waiting = tokio::spawn(async move { behind.lock(lock).await });
        // A member hangs up on the third ping that comes within five seconds of the one before.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let key = held.key;
        direct.unlock(UnlockRequest { key }).await.unwrap();
        waiting.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_may_be_lost() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        let endpoints: Vec<_> = cluster.members.iter().map(Member::address).collect();
        let proxy = Proxy::start(subject(), &endpoints.join(","), &[]).await;
        let client = proxy.client();
        client.put("a", "1").await.unwrap();
        let create = pb::WatchCreateRequest {
            key: "a".into(),
            ..Default::default()
        };
        let mut watch = open(&client, create).await;
        for lost in 0..3 {
            cluster.members[lost].kill();
            // Whoever leads now: reads and writes find a member that answers.
            let written = eventually("the others go on", LIMIT, || async {
                client
                    .put("a", "2")
                    .await
                    .map_err(|error| error.to_string())
            })
            .await;
            loop {
                let event = read(&mut watch, 1).await.pop().unwrap();
                if decode(event.kv.as_ref().unwrap()).mod_revision == written {
                    break;
                }
            }
            cluster.members[lost].respawn();
            cluster.members[lost].ready().await;
        }
        for _ in 0..10 {
            client.get("a").await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_proxy_says_of_itself() {
    within(async {
        let mut shown = Vec::new();
        for (proxy, mut member) in pair(&["--enable-pprof"]).await {
            let address = &proxy.address;
            let (health, itself) = (
                http::get(address, "/health"),
                http::get(address, "/proxy/health"),
            );
            for answer in [&health, &itself] {
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert_eq!(answer.text(), r#"{"health":"true","reason":""}"#);
            }
            assert_eq!(http::request(address, "POST", "/health", "").status, 405);
            assert_eq!(http::get(address, "/nothing").status, 404);
            let metrics = http::get(address, "/metrics").text();
            assert!(metrics.contains("\netcd_server_has_leader 1"), "{metrics}");
            let own = exposition::parse(&http::get(address, "/proxy/metrics").text());
            let names: BTreeSet<_> = own
                .iter()
                .filter(|(name, _)| name.starts_with("etcd_grpc_proxy"))
                .map(|(name, family)| (name.clone(), family.kind.clone(), family.help.clone()))
                .collect();
            assert_eq!(http::get(address, "/debug/pprof/cmdline").status, 200);
            // Etcd's proxy keeps watches of its own.
            let is_etcd = shown.is_empty() || subject() == Program::Etcd;
            let kept = if is_etcd { 2.0 } else { 0.0 };
            eventually("the watch of the check is over", LIMIT, || async {
                let name = "etcd_debugging_mvcc_watcher_total";
                match metric(&member.address(), "/metrics", name) {
                    watchers if watchers <= kept => Ok(()),
                    watchers => Err(format!("{watchers} watchers")),
                }
            })
            .await;
            member.kill();
            eventually("the loss shows", LIMIT, || async {
                match http::get(address, "/health").status {
                    503 => Ok(()),
                    other => Err(other.to_string()),
                }
            })
            .await;
            shown.push(names);
        }
        assert_eq!(shown[0].len(), 5);
        assert_eq!(shown[1], shown[0]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_on_both_sides() {
    within(async {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("test authority");
        let ca = authority.write(&folder.path().join("ca.pem"));
        let issue = |name: &str, common_name: &str| -> Pair {
            authority.issue(folder.path(), name, request(common_name))
        };
        let (server, client, nameless) = (
            issue("server", "server"),
            issue("client", "client"),
            issue("nameless", ""),
        );
        let flag = |name: &str, path: &std::path::Path| format!("--{name}={}", path.display());
        let member = MemberBuilder::new(subject())
            .secure_clients()
            .flag(flag("cert-file", &server.cert))
            .flag(flag("key-file", &server.key))
            .flag("--client-cert-auth")
            .flag(flag("trusted-ca-file", &ca))
            .start()
            .await;
        let metrics = format!("127.0.0.1:{}", free_port());
        let mut flags = vec![
            flag("cacert", &ca),
            flag("cert-file", &server.cert),
            flag("key-file", &server.key),
            flag("trusted-ca-file", &ca),
            format!("--metrics-addr=http://{metrics}"),
        ];
        let named = [flag("cert", &client.cert), flag("key", &client.key)];
        let endpoint = format!("https://{}", member.address());
        // The cluster would take all clients for the user of that name.
        let refused = [&flags[..], &named[..]].concat();
        let refused: Vec<&str> = refused.iter().map(String::as_str).collect();
        for program in [Program::Etcd, subject()] {
            let mut proxy = Proxy::spawn(program, &endpoint, &refused);
            let status = eventually("the proxy ends", LIMIT, || {
                let status = proxy.child.try_wait().unwrap();
                async move { status.ok_or_else(|| "it runs".to_owned()) }
            })
            .await;
            assert_eq!(status.code(), Some(1), "{program:?}");
        }
        flags.extend([flag("cert", &nameless.cert), flag("key", &nameless.key)]);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let proxy = Proxy::spawn(subject(), &endpoint, &flags);
        let config = client_config(&[authority.pem()], Some(&client));
        let secure = Client::secure(&proxy.address, config);
        proxy.answers(&secure).await;
        secure.put("a", "1").await.unwrap();
        let without = Client::secure(&proxy.address, client_config(&[authority.pem()], None));
        without.put("a", "2").await.unwrap_err();
        let answer = http::get(&metrics, "/health");
        assert_eq!(answer.text(), r#"{"health":"true","reason":""}"#);
        assert_eq!(http::get(&metrics, "/debug/pprof/").status, 404);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_makes_its_own_certificate() {
    if subject() == Program::Etcd {
        // Its certificate is for no address.
        return;
    }
    within(async {
        let member = Member::start(subject()).await;
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("proxy");
        let data_flag = format!("--data-dir={}", data.display());
        let proxy = Proxy::spawn(subject(), &member.address(), &["--auto-tls", &data_flag]);
        let certificate = data.join("fixtures/proxy/cert.pem");
        let ca = certificate.to_str().unwrap();
        eventually("the proxy answers", LIMIT, || async {
            let output = Command::new(tool("etcdctl"))
                .args(["--endpoints", &proxy.address, "--cacert", ca])
                .args(["put", "a", "1"])
                .output()
                .unwrap();
            match output.status.success() {
                true => Ok(()),
                false => Err(format!("{output:?}")),
            }
        })
        .await;
    })
    .await;
}

/// What a proxy's log has about calls: text, service, method, error and content. Headers and what one of the
/// proxies leaves out are blanked.
fn logged_calls(log: &str) -> Vec<String> {
    fn blank(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    match name.as_str() {
                        "header" | "value" | "password" | "hashedPassword" => *value = "*".into(),
                        _ => blank(value),
                    }
                }
            }
            serde_json::Value::Array(values) => values.iter_mut().for_each(blank),
            _ => {}
        }
    }
    let mut calls = Vec::new();
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = line["msg"].as_str().unwrap_or_default();
        // A health check of the test itself.
        if !text.contains("payload logged as") || line["grpc.method"] == "Check" {
            continue;
        }
        let side = if text.starts_with("received") {
            "request"
        } else {
            "response"
        };
        let content = line[format!("grpc.{side}.content")].as_str().unwrap();
        let mut content: serde_json::Value = serde_json::from_str(content).unwrap_or_default();
        blank(&mut content);
        assert!(
            line["peer.address"]
                .as_str()
                .unwrap()
                .starts_with("127.0.0.1:"),
            "{line}"
        );
        calls.push(format!(
            "{text}: {} {} {} {content}",
            line["grpc.service"],
            line["grpc.method"],
            line[format!("grpc.{side}.error")],
        ));
    }
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_logged_as_by_etcds_proxy_and_without_secrets() {
    within(async {
        let mut logs = Vec::new();
        for program in [Program::Etcd, subject()] {
            let member = Member::start(subject()).await;
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            let proxy = Proxy::spawn_with_log(
                program,
                &member.address(),
                &["--experimental-enable-grpc-logging"],
                std::fs::File::create(&path).unwrap().into(),
            );
            proxy.answers(&proxy.client()).await;
            for line in [
                "put a secret-value",
                "put a secret-value --prev-kv --lease=0",
                "get a b --limit=3 --order=DESCEND",
                "get a --consistency=s",
                "user add u:secret-word",
                "user get none",
                "user list",
                "role add r",
                "role grant-permission r readwrite a --prefix",
                "role get r",
                "del a --prev-kv",
                "lease timetolive 7b",
            ] {
                proxy.control(line);
            }
            drop(proxy);
            logs.push(std::fs::read_to_string(&path).unwrap());
        }
        let [theirs, ours] = [&logs[0], &logs[1]].map(|log| logged_calls(log));
        // How often the test asked until the proxy answered is left out.
        let from_first_put = |calls: Vec<String>| -> Vec<String> {
            calls
                .into_iter()
                .skip_while(|call| !call.contains("\"Put\""))
                .collect()
        };
        let (theirs, ours) = (from_first_put(theirs), from_first_put(ours));
        assert!(theirs.len() >= 24, "{theirs:#?}");
        assert_eq!(ours, theirs, "ours (left), etcd's (right)");
        assert!(logs[0].contains("secret-word"), "{}", logs[0]);
        if subject() == Program::MetaStore {
            for secret in ["secret-value", "c2VjcmV0LXZhbHVl", "secret-word"] {
                assert!(!logs[1].contains(secret), "{}", logs[1]);
            }
        }
    })
    .await;
}

#[test]
fn a_proxy_without_sense_is_refused() {
    for program in [Program::Etcd, subject()] {
        for (arguments, status) in [
            (&["grpc-proxy"][..], 0),
            (&["grpc-proxy", "start", "--help"], 0),
            (&["grpc-proxy", "start", "--no-such-flag"], 1),
            (&["grpc-proxy", "start", "--resolver-prefix=a"], 1),
            (&["grpc-proxy", "start", "--resolver-ttl=1"], 1),
            (&["grpc-proxy", "start", "--tls-min-version=TLS1.1"], 1),
            (
                &[
                    "grpc-proxy",
                    "start",
                    "--cert-file=/none",
                    "--key-file=/none",
                ],
                1,
            ),
            (&["grpc-proxy", "start", "--listen-addr=nonsense"], 1),
            (
                &["grpc-proxy", "start", "--cacert=/none", "--cert=/none"],
                1,
            ),
        ] {
            let output = Command::new(program.path()).args(arguments).output();
            let code = output.unwrap().status.code();
            assert_eq!(code, Some(status), "{program:?} {arguments:?}");
        }
    }
}

/// Names of the flags in a help text.
fn flags_in(program: Program) -> BTreeSet<String> {
    let output = Command::new(program.path())
        .args(["grpc-proxy", "start", "--help"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace()
        .filter_map(|word| word.strip_prefix("--"))
        .map(|word| word.split(['=', '[']).next().unwrap().to_owned())
        .filter(|name| {
            name.chars()
                .all(|letter| letter.is_ascii_lowercase() || letter == '-')
        })
        .collect()
}

#[test]
fn every_flag_of_etcds_proxy_is_known() {
    let missing: Vec<_> = flags_in(Program::Etcd)
        .difference(&flags_in(Program::MetaStore))
        .cloned()
        .collect();
    assert_eq!(missing, Vec::<String>::new());
}
