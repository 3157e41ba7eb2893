//! Limits on what one client may use. etcd has none, so these are ours alone.

use std::time::Duration;

use futures::StreamExt;
use metastore_proto::etcdserverpb as pb;
use metastore_tests::raw_http::HttpRequest;
use metastore_tests::{Client, Member, MemberBuilder, Program, eventually};
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::within;

const SOON: Duration = Duration::from_secs(20);

struct WatchStream {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: tonic::Streaming<pb::WatchResponse>,
}

impl WatchStream {
    async fn open(client: &Client) -> Result<Self, tonic::Status> {
        let (requests, receiver) = mpsc::channel(64);
        let answers = client
            .watch
            .clone()
            .watch(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        Ok(Self { requests, answers })
    }

    async fn ask(&mut self, union: RequestUnion) -> pb::WatchResponse {
        let request = pb::WatchRequest {
            request_union: Some(union),
        };
        self.requests.send(request).await.unwrap();
        let answer = tokio::time::timeout(SOON, self.answers.next()).await;
        answer.expect("an answer in time").unwrap().unwrap()
    }

    /// Whether a watch was created; else why not.
    async fn create(&mut self, start_revision: i64) -> Result<i64, String> {
        let create = pb::WatchCreateRequest {
            key: "a".into(),
            start_revision,
            ..Default::default()
        };
        let answer = self.ask(RequestUnion::CreateRequest(create)).await;
        assert!(answer.created);
        match answer.canceled {
            false => Ok(answer.watch_id),
            true => Err(answer.cancel_reason),
        }
    }

    async fn cancel(&mut self, watch_id: i64) {
        let cancel = pb::WatchCancelRequest { watch_id };
        assert!(self.ask(RequestUnion::CancelRequest(cancel)).await.canceled);
    }
}

const REFUSED: &str = "rpc error: code = ResourceExhausted desc = etcdserver: too many requests";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_of_a_client_are_limited_over_all_its_streams() {
    within(async {
        let member = MemberBuilder::new(Program::MetaStore)
            .flag("--client-max-watches=3")
            .start()
            .await;
        let mut one = WatchStream::open(&member.client()).await.unwrap();
        let mut other = WatchStream::open(&member.client()).await.unwrap();
        let first = one.create(0).await.unwrap();
        one.create(0).await.unwrap();
        let last = other.create(0).await.unwrap();
        for _ in 0..3 {
            assert_eq!(other.create(0).await, Err(REFUSED.to_owned()));
        }
        // A start that cannot be is told as ever, and counts for nothing.
        let error = other.create(-1).await.unwrap_err();
        assert!(error.contains("compacted"), "{error}");
        one.cancel(first).await;
        one.create(0).await.unwrap();
        assert_eq!(one.create(0).await, Err(REFUSED.to_owned()));
        other.cancel(last).await;
        drop(one);
        // What a stream had is free with it.
        tokio::time::sleep(Duration::from_millis(500)).await;
        for _ in 0..3 {
            other.create(0).await.unwrap();
        }
        assert_eq!(other.create(0).await, Err(REFUSED.to_owned()));
        let metrics = metastore_tests::http::get(&member.address(), "/metrics").text();
        assert!(
            metrics.contains("metastore_client_limit_refusals_total{resource=\"watches\"} 5"),
            "{metrics}"
        );
        member.assert_log_is_clean();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_client_are_limited_and_calls_are_not() {
    within(async {
        let member = MemberBuilder::new(Program::MetaStore)
            .flag("--client-max-streams=2")
            .start()
            .await;
        let client = member.client();
        let mut watch = WatchStream::open(&client).await.unwrap();
        watch.create(0).await.unwrap();
        let keep_alive = |client: &Client| {
            let mut lease = client.lease.clone();
            let requests = tokio_stream::pending::<pb::LeaseKeepAliveRequest>();
            async move { lease.lease_keep_alive(requests).await }
        };
        // The stream has begun when its headers are there; the server waits with them for nothing.
        let (sender, receiver) = mpsc::channel(1);
        sender
            .send(pb::LeaseKeepAliveRequest { id: 1 })
            .await
            .unwrap();
        let mut lease = client.lease.clone();
        let mut kept = lease
            .lease_keep_alive(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        kept.next().await.unwrap().unwrap();
        let refused = keep_alive(&member.client()).await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: too many requests");
        let mut snapshot = client.maintenance.clone();
        let refused = snapshot.snapshot(pb::SnapshotRequest {}).await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: too many requests");
        client.put("a", "1").await.unwrap();
        client.get("a").await.unwrap();
        drop((sender, kept));
        eventually("a stream is free again", SOON, || {
            let mut snapshot = client.maintenance.clone();
            async move {
                let answer = snapshot.snapshot(pb::SnapshotRequest {}).await;
                answer.map(drop).map_err(|status| status.to_string())
            }
        })
        .await;
    })
    .await;
}

async fn auth(member: &Member, path: &str, body: &str) -> serde_json::Value {
    let path = format!("/v3/{path}");
    let answer = HttpRequest::new("POST", &path)
        .body(body)
        .send(&member.address())
        .await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

/// With authentication on a client is a user, from wherever it comes: through gRPC or the gateway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_a_user_where_there_are_users() {
    within(async {
        let member = MemberBuilder::new(Program::MetaStore)
            .flag("--bcrypt-cost=4")
            .flag("--client-max-watches=1")
            .start()
            .await;
        for (name, role) in [("root", "root"), ("other", "root")] {
            let body = format!(r#"{{"name":"{name}","password":"pw"}}"#);
            auth(&member, "auth/user/add", &body).await;
            let body = format!(r#"{{"user":"{name}","role":"{role}"}}"#);
            auth(&member, "auth/user/grant", &body).await;
        }
        auth(&member, "auth/enable", "{}").await;
        let mut streams = Vec::new();
        for name in ["root", "other"] {
            let body = format!(r#"{{"name":"{name}","password":"pw"}}"#);
            let token = auth(&member, "auth/authenticate", &body).await["token"].clone();
            let token = token.as_str().unwrap().to_owned();
            let watch = HttpRequest::new("POST", "/v3/watch")
                .header("Authorization", &token)
                .body(r#"{"create_request":{"key":"YQ=="}}"#);
            let mut first = watch.open(&member.address()).await;
            let line = first.line().await.unwrap();
            assert!(
                line.contains("\"created\":true") && !line.contains("canceled"),
                "{line}"
            );
            let mut second = watch.open(&member.address()).await;
            let line = second.line().await.unwrap();
            assert!(line.contains("too many requests"), "{name}: {line}");
            streams.push(first);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_list_waits_for_its_turn_and_is_whole() {
    within(async {
        let member = MemberBuilder::new(Program::MetaStore)
            .flag("--max-list-bytes=1048576")
            .start()
            .await;
        let client = member.client();
        for number in 0..40 {
            let value = vec![b'v'; 25_000];
            client.put(format!("k/{number}"), value).await.unwrap();
        }
        let list = || {
            let mut kv = member.client().kv;
            let request = pb::RangeRequest {
                key: "k/".into(),
                range_end: "k0".into(),
                ..Default::default()
            };
            async move { kv.range(request).await }
        };
        let answers = futures::future::join_all((0..6).map(|_| list())).await;
        for answer in answers {
            let answer = answer.unwrap().into_inner();
            assert_eq!(answer.kvs.len(), 40);
        }
        member.assert_log_is_clean();
    })
    .await;
}
