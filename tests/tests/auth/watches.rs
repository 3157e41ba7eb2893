//! Watches that run while users, roles and authentication itself change.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use metastore_proto::etcdserverpb::watch_request::RequestUnion;
use metastore_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use metastore_tests::client::decode;
use tokio::sync::mpsc;

use super::{LIMIT, Stores, USERS, deadline, write_key};
use crate::session::Session;

/// One watch stream.
struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    answers: tonic::Streaming<WatchResponse>,
}

fn creation(key: &'static str) -> WatchRequest {
    let create = WatchCreateRequest {
        key: Bytes::from_static(key.as_bytes()),
        ..WatchCreateRequest::default()
    };
    WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    }
}

impl Stream {
    /// With its first watch: etcd says nothing before that.
    async fn open(session: &mut Session, who: &str, key: &'static str) -> Self {
        let (requests, receiver) = mpsc::channel(8);
        requests.send(creation(key)).await.unwrap();
        let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let answers = session.watch_stream(who, receiver).await.unwrap();
        Self { requests, answers }
    }

    async fn create(&self, key: &'static str) {
        self.requests.send(creation(key)).await.unwrap();
    }

    /// The next answer, in one line.
    async fn next(&mut self) -> String {
        match tokio::time::timeout(deadline(LIMIT), self.answers.next()).await {
            Err(_) => "no answer".to_owned(),
            Ok(None) => "the end".to_owned(),
            Ok(Some(Err(status))) => format!("{:?}: {}", status.code(), status.message()),
            Ok(Some(Ok(answer))) => {
                let keys: Vec<String> = answer
                    .events
                    .iter()
                    .filter_map(|event| event.kv.as_ref())
                    .map(|pair| String::from_utf8_lossy(&decode(pair).key).into_owned())
                    .collect();
                format!(
                    "id {} created {} canceled {} {:?} {keys:?}",
                    answer.watch_id, answer.created, answer.canceled, answer.cancel_reason
                )
            }
        }
    }
}

/// What a stream that watches `r1` saw while the script ran: `create KEY`, `next`, or a line of a session.
async fn seen(session: &mut Session, who: &str, script: &str) -> Vec<String> {
    let mut stream = Stream::open(session, who, "r1").await;
    let mut seen = vec![stream.next().await];
    for line in script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        let answer = match line {
            "next" => stream.next().await,
            "create r1" => {
                stream.create("r1").await;
                stream.next().await
            }
            "create b1" => {
                stream.create("b1").await;
                stream.next().await
            }
            line => session.run(line).await,
        };
        seen.push(format!("{line} -> {answer}"));
    }
    seen
}

async fn compare(stores: &mut Stores, who: &str, script: &str) -> Vec<String> {
    let mut all = Vec::new();
    for session in &mut stores.sessions {
        all.push(seen(session, who, script).await);
    }
    assert_eq!(all[1], all[0], "ours (left), etcd's (right)");
    all.swap_remove(1)
}

/// Permissions are looked at when a watch is created, and never again.
const REVOKED: &str = "
    root: put r1 v
    next
    root: forbid role r s
    none: login root rootpw
    root: put r1 v
    next
    create r1
    root: user-revoke alice role
    none: login root rootpw
    root: put r1 v
    next
    root: user-passwd alice new
    none: login root rootpw
    root: put r1 v
    next
    create b1
    root: user-delete alice
    none: login root rootpw
    root: put r1 v
    next
    create r1
    root: disable
    none: put r1 v
    next
    create b1
    none: put b1 v
    next
";

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_after_its_permission_is_revoked_as_in_etcd() {
    let mut stores = Stores::start(&[]).await;
    stores.run(USERS).await;
    let seen = compare(&mut stores, "alice", REVOKED).await;
    assert!(seen[6].contains("[\"r1\"]"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_a_json_web_token_goes_on_as_in_etcd() {
    let folder = tempfile::tempdir().unwrap();
    let key = write_key(folder.path(), "HS512");
    let flag = format!("--auth-token=jwt,sign-method=HS512,priv-key={key},ttl=1h");
    let mut stores = Stores::start(&[&flag]).await;
    stores.run(USERS).await;
    compare(&mut stores, "alice", REVOKED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_before_authentication_came_on_goes_on_as_in_etcd() {
    let mut stores = Stores::start(&[]).await;
    let mut script = USERS.to_owned();
    script += "
        next
        root: put r1 v
        next
        create b1
    ";
    let seen = compare(&mut stores, "none", &script).await;
    assert!(
        seen.last().unwrap().contains("user name is empty"),
        "{seen:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_a_certificate_goes_on_as_in_etcd() {
    let mut stores = Stores::start_with_certificates(&["root", "alice"]).await;
    stores.run(USERS).await;
    compare(&mut stores, "cn-alice", REVOKED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_while_a_watch_runs_ends_no_watch() {
    let mut stores = Stores::start(&["--auth-token-ttl=1"]).await;
    stores.run(USERS).await;
    let mut all = Vec::new();
    for session in &mut stores.sessions {
        session.run("none: login alice alicepw").await;
        let mut stream = Stream::open(session, "alice", "r1").await;
        let mut seen = vec![stream.next().await];
        // Longer than the token lives; etcd looks for dead ones each second.
        tokio::time::sleep(Duration::from_millis(3500)).await;
        seen.push(session.run("alice: get r1").await);
        session.run("none: login root rootpw").await;
        session.run("root: put r1 v").await;
        seen.push(stream.next().await);
        stream.create("b1").await;
        seen.push(stream.next().await);
        all.push(seen);
    }
    assert_eq!(all[1], all[0], "ours (left), etcd's (right)");
    assert!(all[1][3].contains("invalid auth token"), "{all:?}");
}
