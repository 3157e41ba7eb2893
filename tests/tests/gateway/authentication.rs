//! The JSON gateway and the plain HTTP API with authentication on.

use metastore_tests::raw_http::{HttpAnswer, HttpRequest};
use metastore_tests::{Member, MemberBuilder, Program};

use super::json::{Store, post};
use super::*;

/// Root, alice who reads `r`..`s` and writes `w`..`x` and both on `b`..`c`, and bob who may nothing.
const USERS: &[(&str, &str)] = &[
    ("auth/user/add", r#"{"name":"root","password":"rootpw"}"#),
    ("auth/user/grant", r#"{"user":"root","role":"root"}"#),
    ("auth/user/add", r#"{"name":"alice","password":"alicepw"}"#),
    ("auth/user/add", r#"{"name":"bob","password":"bobpw"}"#),
    ("auth/role/add", r#"{"name":"role"}"#),
    (
        "auth/role/grant",
        r#"{"name":"role","perm":{"permType":"READ","key":"cg==","range_end":"cw=="}}"#,
    ),
    (
        "auth/role/grant",
        r#"{"name":"role","perm":{"permType":"WRITE","key":"dw==","range_end":"eA=="}}"#,
    ),
    (
        "auth/role/grant",
        r#"{"name":"role","perm":{"permType":"READWRITE","key":"Yg==","range_end":"Yw=="}}"#,
    ),
    ("auth/user/grant", r#"{"user":"alice","role":"role"}"#),
    ("kv/put", r#"{"key":"cjE=","value":"dg=="}"#),
    ("kv/put", r#"{"key":"c2VjcmV0","value":"dg=="}"#),
    ("lease/grant", r#"{"TTL":"600","ID":"255"}"#),
    ("auth/enable", "{}"),
];

/// What everybody asks: keys that alice may read, write, both and none of; every other service.
const CALLS: &[(&str, &str)] = &[
    ("kv/range", r#"{"key":"cjE="}"#),
    ("kv/range", r#"{"key":"cjE=","serializable":true}"#),
    ("kv/range", r#"{"key":"c2VjcmV0"}"#),
    ("kv/range", r#"{"key":"cg==","range_end":"dA=="}"#),
    ("kv/put", r#"{"key":"dzE=","value":"dg=="}"#),
    ("kv/put", r#"{"key":"cjE=","value":"dg=="}"#),
    ("kv/put", r#"{"key":"YjE=","value":"dg==","prev_kv":true}"#),
    ("kv/deleterange", r#"{"key":"dzE="}"#),
    ("kv/deleterange", r#"{"key":"c2VjcmV0"}"#),
    (
        "kv/txn",
        r#"{"compare":[{"key":"c2VjcmV0","target":"VERSION","version":"0"}]}"#,
    ),
    (
        "kv/txn",
        r#"{"success":[{"request_range":{"key":"cjE="}}],"failure":[{"request_put":{"key":"YjI=","value":"dg=="}}]}"#,
    ),
    ("kv/compaction", r#"{"revision":"2"}"#),
    ("lease/grant", r#"{"TTL":"600","ID":"255"}"#),
    ("lease/timetolive", r#"{"ID":"404","keys":true}"#),
    ("kv/lease/timetolive", r#"{"ID":"404"}"#),
    ("lease/leases", "{}"),
    ("lease/revoke", r#"{"ID":"404"}"#),
    ("lease/keepalive", r#"{"ID":"255"}"#),
    ("cluster/member/list", "{}"),
    ("cluster/member/add", r#"{"peerURLs":["nonsense"]}"#),
    ("cluster/member/remove", r#"{"ID":"1"}"#),
    (
        "cluster/member/update",
        r#"{"ID":"1","peerURLs":["http://127.0.0.1:1"]}"#,
    ),
    ("cluster/member/promote", r#"{"ID":"1"}"#),
    ("maintenance/status", "{}"),
    ("maintenance/alarm", "{}"),
    (
        "maintenance/alarm",
        r#"{"action":"DEACTIVATE","alarm":"NOSPACE"}"#,
    ),
    ("maintenance/hash", "{}"),
    ("maintenance/hashkv", "{}"),
    ("maintenance/defragment", "{}"),
    ("maintenance/transfer-leadership", r#"{"targetID":"1"}"#),
    ("maintenance/downgrade", r#"{"action":"CANCEL"}"#),
    ("auth/status", "{}"),
    ("auth/enable", "{}"),
    ("auth/user/list", "{}"),
    ("auth/user/get", r#"{"name":"alice"}"#),
    ("auth/user/get", r#"{"name":"root"}"#),
    ("auth/role/get", r#"{"role":"role"}"#),
    ("auth/role/list", "{}"),
    ("auth/user/delete", r#"{"name":"nobody"}"#),
    (
        "auth/authenticate",
        r#"{"name":"alice","password":"wrong"}"#,
    ),
    (
        "auth/authenticate",
        r#"{"name":"nobody","password":"wrong"}"#,
    ),
    ("election/leader", r#"{"name":"Yg=="}"#),
    ("election/leader", r#"{"name":"c2VjcmV0"}"#),
    ("lock/lock", r#"{"name":"YmxvY2s=","lease":"255"}"#),
    ("lock/lock", r#"{"name":"c2VjcmV0","lease":"255"}"#),
    ("lock/unlock", r#"{"key":"YmxvY2svZmY="}"#),
    ("lock/unlock", r#"{"key":"c2VjcmV0L2Zm"}"#),
];

/// Watches end only when they are refused, so these are asked only by those who may not.
const REFUSED_WATCHES: &[&str] = &[
    r#"{"create_request":{"key":"c2VjcmV0"}}"#,
    r#"{"create_request":{"key":"cg==","range_end":"dA=="}}"#,
];

async fn send(member: &Member, path: &str, body: &str) -> HttpAnswer {
    let request = post(&format!("/v3/{path}"), body);
    request.send(&member.address()).await
}

async fn add_users(member: &Member) {
    for (path, body) in USERS {
        let answer = send(member, path, body).await;
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text());
    }
}

async fn login(member: &Member, name: &str) -> String {
    let body = format!(r#"{{"name":"{name}","password":"{name}pw"}}"#);
    let answer = send(member, "auth/authenticate", &body).await;
    answer.json()["token"].as_str().unwrap().to_owned()
}

/// The headers of everybody: `Authorization` as a bare token and as a bearer's, and the header by
/// which other metadata comes.
async fn everybody(member: &Member) -> Vec<(String, Option<(&'static str, String)>)> {
    let mut everybody: Vec<(String, Option<(&'static str, String)>)> =
        vec![("nobody".to_owned(), None)];
    for name in ["root", "alice", "bob"] {
        let token = login(member, name).await;
        everybody.push((name.to_owned(), Some(("Authorization", token.clone()))));
        if name == "alice" {
            let bearer = ("Authorization", format!("Bearer {token}"));
            everybody.push(("bearer".to_owned(), Some(bearer)));
            let metadata = ("Grpc-Metadata-Token", token);
            everybody.push(("metadata".to_owned(), Some(metadata)));
        }
    }
    for (name, token) in [
        ("unknown", "abcdefghijklmnop.1"),
        ("nonsense", "nonsense"),
        ("empty", ""),
        ("basic", "Basic cm9vdDpyb290cHc="),
    ] {
        everybody.push((name.to_owned(), Some(("Authorization", token.to_owned()))));
    }
    everybody
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_count_in_the_gateway_as_in_etcd() {
    within(async {
        let members = both(&["--bcrypt-cost=4"]).await;
        let mut stores = Vec::new();
        for member in &members {
            add_users(member).await;
            stores.push((Store::new(member), everybody(member).await));
        }
        let mut differences = String::new();
        let people = stores[0].1.len();
        for person in 0..people {
            let name = stores[0].1[person].0.clone();
            let watches = REFUSED_WATCHES.iter().map(|body| ("watch", *body));
            let calls = CALLS.iter().copied();
            for (path, body) in calls.chain(watches.filter(|_| name != "root")) {
                let mut answers = Vec::new();
                for (store, people) in &stores {
                    let request = post(&format!("/v3/{path}"), body);
                    let request = match &people[person].1 {
                        None => request,
                        Some((header, value)) => request.header(header, value),
                    };
                    // A watch that is refused leaves its stream open.
                    let answer = match path {
                        "watch" => store.ask_first_line(&request).await,
                        _ => store.ask(&request).await,
                    };
                    answers.push(answer);
                }
                if answers[0] != answers[1] {
                    differences.push_str(&format!(
                        "\n== {name}: {path} {body}\netcd: {}\nours: {}\n",
                        answers[0], answers[1]
                    ));
                }
            }
        }
        assert!(differences.is_empty(), "{differences}");
    })
    .await;
}

/// The plain HTTP API has no counterpart in etcd: what it must answer stands here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_count_in_the_plain_http_api() {
    within(async {
        let member = MemberBuilder::new(Program::MetaStore)
            .flag("--bcrypt-cost=4")
            .start()
            .await;
        add_users(&member).await;
        let address = member.address();
        let alice = login(&member, "alice").await;
        let bob = login(&member, "bob").await;
        let root = format!("Bearer {}", login(&member, "root").await);
        let lease = "/leases/255";
        // Method, target, then the status for: nobody, a made-up token, bob, alice, root.
        let table: &[(&str, &str, [u16; 5])] = &[
            ("GET", "/kv/r1", [401, 401, 403, 200, 200]),
            ("HEAD", "/kv/r1", [401, 401, 403, 200, 200]),
            ("GET", "/kv/secret", [401, 401, 403, 403, 200]),
            ("GET", "/kv/r-missing", [401, 401, 403, 404, 404]),
            ("GET", "/kv?prefix=r", [401, 401, 403, 200, 200]),
            ("GET", "/kv?prefix=r&values", [401, 401, 403, 200, 200]),
            ("GET", "/kv", [401, 401, 403, 403, 200]),
            ("PUT", "/kv/b1", [401, 401, 403, 201, 204]),
            ("PUT", "/kv/secret", [401, 401, 403, 403, 204]),
            ("DELETE", "/kv/secret2", [401, 401, 403, 403, 404]),
            ("DELETE", "/kv/b1", [401, 401, 403, 204, 404]),
            ("DELETE", "/kv?prefix=b", [401, 401, 403, 200, 200]),
            ("DELETE", "/kv?prefix=s", [401, 401, 403, 403, 200]),
            ("GET", lease, [401, 401, 200, 200, 200]),
            ("GET", "/openapi.json", [200, 200, 200, 200, 200]),
        ];
        let mut wrong = String::new();
        for (method, target, expected) in table {
            let tokens = [
                None,
                Some("abcdefghijklmnop.1"),
                Some(bob.as_str()),
                Some(&alice),
                Some(&root),
            ];
            for (position, token) in tokens.into_iter().enumerate() {
                let request = HttpRequest::new(method, target);
                let request = match *method {
                    "PUT" => request.body("v"),
                    _ => request,
                };
                let request = match token {
                    None => request,
                    Some(token) => request.header("Authorization", token),
                };
                let answer = request.send(&address).await;
                if answer.status != expected[position] {
                    wrong.push_str(&format!(
                        "{method} {target} of number {position}: {} instead of {}: {}\n",
                        answer.status,
                        expected[position],
                        answer.text()
                    ));
                }
                if answer.status == 401 {
                    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
        // Changes as events: refused before they begin, and begun for whoever may.
        for (token, target, expected) in [
            (None, "/kv?prefix=r", 401),
            (Some(&bob), "/kv?prefix=r", 403),
            (Some(&alice), "/kv?prefix=s", 403),
            (Some(&alice), "/kv?prefix=r", 200),
        ] {
            let request = HttpRequest::new("GET", target).header("Accept", "text/event-stream");
            let request = match token {
                None => request,
                Some(token) => request.header("Authorization", token),
            };
            let stream = request.open(&address).await;
            assert_eq!(stream.status, expected, "{target} for {token:?}");
        }
    })
    .await;
}
