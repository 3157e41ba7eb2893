//! The JSON gateway: the same HTTP requests to etcd and to MetaStore.

use metastore_tests::eventually;
use metastore_tests::raw_http::{HttpAnswer, HttpRequest};

use super::*;

/// Headers that must be equal; the others belong to the HTTP server.
const COMPARED_HEADERS: [&str; 9] = [
    "content-type",
    "grpc-metadata-content-type",
    "www-authenticate",
    "allow",
    "x-content-type-options",
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "location",
];

/// Fields that differ between two stores for good reasons.
const OWN_FIELDS: [&str; 14] = [
    "cluster_id",
    "member_id",
    "raft_term",
    "ID",
    "leader",
    "dbSize",
    "dbSizeInUse",
    "raftIndex",
    "raftTerm",
    "raftAppliedIndex",
    "hash",
    "memberID",
    "token",
    "storageVersion",
];

/// What MetaStore says of what it does not have yet.
const NOT_YET: [&str; 2] = ["is not implemented by MetaStore yet", "unknown service"];

/// JSON with the fields above blanked and the random spaces of Go's library taken out.
pub fn normal(text: &str, address: &str) -> String {
    let text = text
        .replace("proto:\u{a0}", "proto: ")
        .replace(address, "ADDRESS");
    let mut out = String::with_capacity(text.len());
    let mut quoted = false;
    let mut escaped = false;
    for character in text.chars() {
        let after_comma = !quoted && character == ' ' && out.ends_with(',');
        if !after_comma {
            out.push(character);
        }
        if character == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && character == '\\' && !escaped;
    }
    for field in OWN_FIELDS {
        let name = format!("\"{field}\":\"");
        let number = format!("\"{field}\":");
        let mut rest = std::mem::take(&mut out);
        while let Some(at) = rest.find(&number) {
            let is_text = rest[at..].starts_with(&name);
            let start = at + if is_text { name.len() } else { number.len() };
            let end = rest[start..]
                .find(|character: char| !character.is_ascii_alphanumeric() && character != '.')
                .map_or(rest.len(), |length| start + length);
            // A nested object or a list stays as it is.
            out.push_str(&rest[..start]);
            if end > start {
                out.push('*');
            }
            rest = rest[end..].to_owned();
        }
        out.push_str(&rest);
    }
    out
}

pub fn shown(answer: &HttpAnswer, address: &str) -> String {
    let mut shown = format!("{}", answer.status);
    for name in COMPARED_HEADERS {
        if let Some(value) = answer.header(name) {
            shown.push_str(&format!(" {name}={value}"));
        }
    }
    format!("{shown}\n{}", normal(&answer.text(), address))
}

/// A store that requests go to.
pub struct Store {
    address: String,
    peer_url: String,
}

impl Store {
    pub fn new(member: &Member) -> Self {
        Self {
            address: member.address(),
            peer_url: member.builder().peer_url(),
        }
    }

    /// Status and first line of an answer that does not end.
    pub async fn ask_first_line(&self, request: &HttpRequest) -> String {
        let mut stream = request.open(&self.address).await;
        let line = stream.line().await.unwrap_or_default();
        format!("{}\n{}", stream.status, normal(&line, &self.address))
    }

    pub async fn ask(&self, request: &HttpRequest) -> String {
        let answer = request.send(&self.address).await;
        shown(&answer, &self.address).replace(&self.peer_url, "PEER-URL")
    }
}

/// Sends one request after the other to both and reports every difference.
pub async fn compare(etcd: &Member, ours: &Member, requests: &[HttpRequest]) {
    let (etcd, ours) = (Store::new(etcd), Store::new(ours));
    let mut differences = String::new();
    for request in requests {
        let (theirs, mine) = tokio::join!(etcd.ask(request), ours.ask(request));
        if NOT_YET.iter().any(|text| mine.contains(text)) {
            eprintln!("not compared, MetaStore has it not yet: {}", request.target);
            continue;
        }
        if theirs != mine {
            differences.push_str(&format!(
                "\n== {} {} {:?} {}\netcd: {theirs}\nours: {mine}\n",
                request.method,
                request.target,
                request.headers,
                String::from_utf8_lossy(&request.body[..request.body.len().min(400)]),
            ));
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

pub fn post(path: &str, body: &str) -> HttpRequest {
    HttpRequest::new("POST", path).body(body)
}

/// Path below `/v3/` and body, in this order on one store.
#[rustfmt::skip]
const UNARY: &[(&str, &str)] = &[
    // Key-value
    ("kv/range", r#"{"key":"YQ=="}"#),
    ("kv/put", r#"{"key":"YQ==","value":"Yg=="}"#),
    ("kv/put", r#"{"key":"YQ","value":"_-8","prev_kv":true}"#),
    ("kv/put", r#"{"key":"YQ==","value":"Yg==","prevKv":true}"#),
    ("kv/put", r#"{"key":"Yg==","value":"AAEC/w=="}"#),
    ("kv/range", r#"{"key":"YQ=="}"#),
    ("kv/range", r#"{"key":"YQ==","range_end":"eg=="}"#),
    ("kv/range", r#"{"key":"AA==","range_end":"AA==","limit":"1"}"#),
    ("kv/range", r#"{"key":"AA==","rangeEnd":"AA==","limit":1,"sort_order":"DESCEND","sort_target":"KEY"}"#),
    ("kv/range", r#"{"key":"AA==","range_end":"AA==","sort_order":2,"sort_target":3}"#),
    ("kv/range", r#"{"key":"AA==","range_end":"AA==","count_only":true}"#),
    ("kv/range", r#"{"key":"AA==","range_end":"AA==","keys_only":true}"#),
    ("kv/range", r#"{"key":"YQ==","revision":"2","serializable":true}"#),
    ("kv/range", r#"{"key":"YQ==","revision":100}"#),
    ("kv/range", r#"{"key":"YQ==","sort_order":9}"#),
    ("kv/range", r#"{"key":"YQ==","sort_order":"NOBODY"}"#),
    ("kv/range", ""),
    ("kv/range", "{}"),
    ("kv/range", "null"),
    ("kv/range", "[]"),
    ("kv/range", "\"x\""),
    ("kv/range", "{"),
    ("kv/range", "  \n"),
    ("kv/range", "nonsense"),
    ("kv/range", r#"{"key":"YQ=="} trailing"#),
    ("kv/range", r#"{"key":"YQ=="}{"key":"Yg=="}"#),
    ("kv/range", r#"{"key":"!!"}"#),
    ("kv/range", r#"{"key":"YQ="}"#),
    ("kv/range", r#"{"key":1}"#),
    ("kv/range", r#"{"key":null}"#),
    ("kv/range", r#"{"key":"YQ==","limit":"x"}"#),
    ("kv/range", r#"{"key":"YQ==","limit":1.5}"#),
    ("kv/range", r#"{"key":"YQ==","limit":" 1"}"#),
    ("kv/range", r#"{"key":"YQ==","limit":1e1}"#),
    ("kv/range", r#"{"key":"YQ==","limit":99999999999999999999}"#),
    ("kv/range", r#"{"key":"YQ==","serializable":"true"}"#),
    ("kv/range", r#"{"key":"YQ==","unknown":{"a":[1,2,{}]},"another":null}"#),
    ("kv/range", r#"{"key":"YQ==","key":"Yg=="}"#),
    ("kv/range", r#"{"key":"YQ==",}"#),
    ("kv/range", r#"{"key" "YQ=="}"#),
    ("kv/range", "{\"key\":\"YQ==\",\n  \"limit\": tru}"),
    ("kv/range", "{\"key\":\"\\ud800\"}"),
    ("kv/range", "{\"key\":\"\\x\"}"),
    ("kv/deleterange", r#"{"key":"Yg==","prev_kv":true}"#),
    ("kv/deleterange", r#"{"key":"bm8="}"#),
    ("kv/deleterange", "{}"),
    ("kv/put", "{}"),
    ("kv/put", r#"{"key":"YQ==","lease":"12345"}"#),
    ("kv/put", r#"{"key":"YQ==","ignore_value":true,"value":"YQ=="}"#),
    ("kv/txn", "{}"),
    ("kv/txn", r#"{"compare":[{"target":"CREATE","key":"bmV3","createRevision":"0"}],"success":[{"requestPut":{"key":"bmV3","value":"MQ=="}}],"failure":[{"requestRange":{"key":"bmV3"}}]}"#),
    ("kv/txn", r#"{"compare":[{"result":"EQUAL","target":"CREATE","key":"bmV3","create_revision":0}],"success":[{"request_put":{"key":"bmV3","value":"MQ=="}}],"failure":[{"request_range":{"key":"bmV3"}}]}"#),
    ("kv/txn", r#"{"compare":[{"result":0,"target":3,"key":"bmV3","value":"MQ=="}],"success":[{"request_txn":{"success":[{"request_delete_range":{"key":"bmV3","prev_kv":true}}]}}]}"#),
    ("kv/txn", r#"{"success":[{"request_put":{"key":"YQ=="},"request_range":{"key":"YQ=="}}]}"#),
    ("kv/txn", r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}"#),
    ("kv/txn", r#"{"success":[{}]}"#),
    ("kv/txn", r#"{"success":{}}"#),
    ("kv/txn", r#"{"compare":[{"version":1,"lease":2}]}"#),
    ("kv/compaction", r#"{"revision":"3"}"#),
    ("kv/compaction", r#"{"revision":"3","physical":true}"#),
    ("kv/compaction", r#"{"revision":"1000"}"#),
    ("kv/range", r#"{"key":"YQ==","revision":"2"}"#),
    // Leases, also on their old paths
    ("lease/grant", r#"{"TTL":"60","ID":"4660"}"#),
    ("lease/grant", r#"{"TTL":60,"ID":4660}"#),
    ("lease/grant", r#"{"TTL":"9000000001"}"#),
    ("kv/put", r#"{"key":"bGVhc2Vk","lease":"4660"}"#),
    ("lease/timetolive", r#"{"ID":"4660"}"#),
    ("kv/lease/timetolive", r#"{"ID":"4660","keys":true}"#),
    ("lease/timetolive", r#"{"ID":"1"}"#),
    ("lease/leases", "{}"),
    ("kv/lease/leases", ""),
    ("lease/revoke", r#"{"ID":"1"}"#),
    ("kv/lease/revoke", r#"{"ID":4660}"#),
    ("lease/revoke", r#"{"ID":"4660"}"#),
    // Members
    ("cluster/member/list", "{}"),
    ("cluster/member/list", r#"{"linearizable":true}"#),
    ("cluster/member/add", r#"{"peerURLs":["nonsense"]}"#),
    ("cluster/member/remove", r#"{"ID":"1"}"#),
    ("cluster/member/update", r#"{"ID":"1","peerURLs":["http://127.0.0.1:1"]}"#),
    ("cluster/member/promote", r#"{"ID":"1"}"#),
    // Maintenance
    ("maintenance/status", "{}"),
    ("maintenance/hash", "{}"),
    ("maintenance/hashkv", r#"{"revision":0}"#),
    ("maintenance/hashkv", r#"{"revision":"1000"}"#),
    ("maintenance/alarm", "{}"),
    ("maintenance/alarm", r#"{"action":"GET","alarm":"NOSPACE"}"#),
    ("maintenance/defragment", "{}"),
    ("maintenance/transfer-leadership", r#"{"targetID":"1"}"#),
    ("maintenance/downgrade", r#"{"action":"CANCEL"}"#),
    ("maintenance/downgrade", r#"{"action":0,"version":"x"}"#),
    // Users and roles
    ("auth/status", "{}"),
    ("auth/authenticate", r#"{"name":"root","password":"x"}"#),
    ("auth/enable", "{}"),
    ("auth/disable", "{}"),
    ("auth/user/add", r#"{"name":"u","password":"p"}"#),
    ("auth/user/add", r#"{"name":"u","password":"p"}"#),
    ("auth/user/add", "{}"),
    ("auth/user/get", r#"{"name":"u"}"#),
    ("auth/user/get", r#"{"name":"nobody"}"#),
    ("auth/user/list", "{}"),
    ("auth/user/changepw", r#"{"name":"u","password":"q"}"#),
    ("auth/role/add", r#"{"name":"r"}"#),
    ("auth/role/grant", r#"{"name":"r","perm":{"permType":"READWRITE","key":"YQ==","range_end":"Yg=="}}"#),
    ("auth/role/get", r#"{"role":"r"}"#),
    ("auth/role/list", "{}"),
    ("auth/user/grant", r#"{"user":"u","role":"r"}"#),
    ("auth/user/revoke", r#"{"name":"u","role":"r"}"#),
    ("auth/role/revoke", r#"{"role":"r","key":"YQ==","range_end":"Yg=="}"#),
    ("auth/role/delete", r#"{"role":"r"}"#),
    ("auth/user/delete", r#"{"name":"u"}"#),
    // Locks and elections
    ("lease/grant", r#"{"TTL":"60","ID":"255"}"#),
    ("lock/lock", r#"{"name":"bmFtZQ==","lease":"255"}"#),
    ("lock/lock", r#"{"name":"bmFtZQ==","lease":"9999"}"#),
    ("lock/unlock", r#"{"key":"bmFtZS9mZg=="}"#),
    ("lock/unlock", "{}"),
    ("election/leader", r#"{"name":"c2VhdA=="}"#),
    ("election/campaign", r#"{"name":"c2VhdA==","lease":"255","value":"bWU="}"#),
    ("election/leader", r#"{"name":"c2VhdA=="}"#),
    ("election/proclaim", "{}"),
    ("election/proclaim", r#"{"leader":{"name":"c2VhdA==","key":"c2VhdC9mZg==","rev":"1","lease":"255"},"value":"eA=="}"#),
    ("election/resign", "{}"),
    ("election/resign", r#"{"leader":{"key":"c2VhdC9mZg==","rev":"1"}}"#),
    // Streams of one message
    ("lease/keepalive", r#"{"ID":"255"}"#),
    ("lease/keepalive", r#"{"ID":"1"}"#),
    ("lease/keepalive", "{\"ID\":\"255\"}\n{\"ID\":\"1\"}"),
    ("lease/keepalive", ""),
    // No routes
    ("nothing", "{}"),
    ("kv", "{}"),
    ("kv/range/", "{}"),
    ("kv/RANGE", "{}"),
    ("kv/rangestream", "{}"),
    ("", "{}"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_answers_as_etcd() {
    within(async {
        let [etcd, ours] = both(&[]).await;
        let requests: Vec<_> = UNARY
            .iter()
            .map(|(path, body)| post(&format!("/v3/{path}"), body))
            .collect();
        compare(&etcd, &ours, &requests).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_headers_and_old_paths_answer_as_etcd() {
    within(async {
        let [etcd, ours] = both(&[]).await;
        versions_are_decided([&etcd, &ours]).await;
        let get = |path| HttpRequest::new("GET", path);
        let put = r#"{"key":"YQ==","value":"Yg=="}"#;
        let mut requests = vec![
            get("/v3/kv/range"),
            get("/v3/nothing"),
            get("/"),
            get("/nothing"),
            get("/v2/keys"),
            post("/", "{}"),
            HttpRequest::new("PUT", "/v3/kv/put").body(put),
            HttpRequest::new("DELETE", "/v3/kv/deleterange").body("{}"),
            HttpRequest::new("OPTIONS", "/v3/kv/put"),
            HttpRequest::new("OPTIONS", "/nothing"),
            post("/v3beta/kv/put", put),
            post("/v3alpha/kv/put", put),
            post("/v3/kv/put?x=y", put),
            get("/version"),
            post("/version", ""),
            HttpRequest::new("HEAD", "/version"),
        ];
        for (name, value) in [
            ("Content-Type", "application/json"),
            ("Content-Type", "text/plain"),
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Accept", "application/xml"),
            ("Authorization", "token"),
            ("Authorization", "Bearer token"),
            ("Grpc-Metadata-Hasleader", "true"),
            ("Grpc-Metadata-Token", "token"),
            ("Grpc-Metadata-Trace-Bin", "AAA="),
            ("Grpc-Metadata-Trace-Bin", "AAA"),
            ("Grpc-Metadata-Trace-Bin", "AA=A"),
            ("Grpc-Metadata-Trace-Bin", "AAAA AA"),
            ("Grpc-Metadata-Bin", "A"),
            ("Trace-Bin", "!"),
            ("Grpc-Timeout", "5S"),
            ("Grpc-Timeout", "nonsense"),
            ("Grpc-Timeout", "5"),
            ("Grpc-Timeout", "1n"),
            ("X-HTTP-Method-Override", "GET"),
            ("Origin", "http://a.example"),
        ] {
            requests.push(post("/v3/kv/put", put).header(name, value));
        }
        let form = |path, method, body| {
            post(path, body)
                .header("Content-Type", "application/x-www-form-urlencoded")
                .header("X-HTTP-Method-Override", method)
        };
        for method in ["GET", "delete", "POST", "post", "PATCH", "NOTHING", ""] {
            for path in ["/v3/kv/put", "/v3/nothing", "/version"] {
                requests.push(form(path, method, put));
            }
        }
        for body in ["", "a=%zz", "a;b=c", "a=b&c=%4", "%"] {
            requests.push(form("/v3/kv/range", "POST", body));
            requests.push(form("/v3/kv/range?a=%zz", "PUT", body));
        }
        requests.push(post("/v3/kv/range", "\u{ff}"));
        requests.push(HttpRequest::new("POST", "/v3/kv/range").body(*b"{\"key\":\"\xff\"}"));
        requests.push(HttpRequest::new("POST", "/v3/kv/range").body(*b"{\"\xff\":\"YQ==\"}"));
        compare(&etcd, &ours, &requests).await;
    })
    .await;
}

/// A stream, and what it said.
async fn stream_lines(
    member: &Member,
    request: HttpRequest,
    lines: usize,
    meanwhile: impl AsyncFnOnce(),
) -> Vec<String> {
    let address = member.address();
    let mut stream = request.open(&address).await;
    let mut said = vec![format!(
        "{} {:?}",
        stream.status,
        stream.header("content-type")
    )];
    meanwhile().await;
    for _ in 0..lines {
        let line = stream.line().await.unwrap_or_else(|| "END".into());
        said.push(normal(&line, &address));
    }
    said
}

async fn stream_transcript(member: &Member) -> Vec<String> {
    let client = member.client();
    let mut said = Vec::new();
    let create = r#"{"create_request":{"key":"YQ==","range_end":"Yw==","prev_kv":true}}"#;
    let changes = async || {
        client.put("a", "1").await.unwrap();
        client.put("a", "<2>").await.unwrap();
        client.put("b", "").await.unwrap();
        let body = r#"{"key":"YQ==","range_end":"Yw=="}"#;
        post("/v3/kv/deleterange", body)
            .send(&member.address())
            .await;
    };
    said.extend(stream_lines(member, post("/v3/watch", create), 5, changes).await);
    // From the past, with enumerations by name.
    let past = r#"{"createRequest":{"key":"YQ==","startRevision":"2","filters":["NODELETE"],"watch_id":"7","progress_notify":true}}"#;
    said.extend(stream_lines(member, post("/v3/watch", past), 2, async || {}).await);
    // Two watches in one body.
    let two = format!(
        "{create}\n{}",
        r#"{"create_request":{"key":"eA==","watch_id":5}}"#
    );
    said.extend(stream_lines(member, post("/v3/watch", &two), 2, async || {}).await);
    let refused = r#"{"create_request":{"key":"Yg==","range_end":"YQ=="}}"#;
    said.extend(stream_lines(member, post("/v3/watch", refused), 1, async || {}).await);
    let compacted = r#"{"create_request":{"key":"YQ==","start_revision":1}}"#;
    post("/v3/kv/compaction", r#"{"revision":4}"#)
        .send(&member.address())
        .await;
    said.extend(stream_lines(member, post("/v3/watch", compacted), 2, async || {}).await);
    // Who leads.
    let seat = r#"{"name":"c2VhdA=="}"#;
    post("/v3/lease/grant", r#"{"TTL":60,"ID":255}"#)
        .send(&member.address())
        .await;
    let campaign = r#"{"name":"c2VhdA==","lease":"255","value":"PDE+"}"#;
    post("/v3/election/campaign", campaign)
        .send(&member.address())
        .await;
    said.extend(stream_lines(member, post("/v3/election/observe", seat), 1, async || {}).await);
    // A stream that fails before its first answer.
    let no_token = post("/v3/election/observe", "{\"name\":1}");
    said.extend(stream_lines(member, no_token, 1, async || {}).await);
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_answer_as_etcd() {
    within(async {
        let [etcd, ours] = both(&[]).await;
        assert_equal_transcripts(
            &stream_transcript(&etcd).await,
            &stream_transcript(&ours).await,
        );
    })
    .await;
}

/// A stream of requests whose body is no JSON: etcd says nothing at all, ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_cannot_be_read_is_refused() {
    within(async {
        let ours = Member::start(Program::MetaStore).await;
        for body in ["{", "nonsense", r#"{"create_request":1}"#] {
            let answer = post("/v3/watch", body).send(&ours.address()).await;
            assert_eq!(answer.status, 400, "{}", answer.text());
            assert!(answer.text().starts_with("{\"error\":{\"code\":3,"));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_too_large_is_refused_and_harms_nobody() {
    within(async {
        let ours = Member::start(Program::MetaStore).await;
        let huge = post("/v3/kv/put", &"x".repeat(100 << 20))
            .send(&ours.address())
            .await;
        assert_eq!(huge.status, 429, "{}", huge.text());
        assert!(huge.text().contains("larger than max"), "{}", huge.text());
        // Larger than a message, in JSON that is read.
        let value = "QUJD".repeat(800_000);
        let body = format!(r#"{{"key":"YQ==","value":"{value}"}}"#);
        let large = post("/v3/kv/put", &body).send(&ours.address()).await;
        assert_eq!(large.status, 429, "{}", large.text());
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        let deep = post("/v3/kv/put", &deep).send(&ours.address()).await;
        assert_eq!(deep.status, 400, "{}", deep.text());
        let nested = format!(
            "{}{}",
            r#"{"success":[{"request_txn":"#.repeat(3000),
            "{}}]}".repeat(3000)
        );
        let nested = post("/v3/kv/txn", &nested).send(&ours.address()).await;
        assert_eq!(nested.status, 400, "{}", nested.text());
        let put = r#"{"key":"YQ==","value":"Yg=="}"#;
        assert_eq!(
            post("/v3/kv/put", put).send(&ours.address()).await.status,
            200
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origins_and_hosts_are_checked_as_in_etcd() {
    within(async {
        let flags = [
            "--cors=http://a.example:80,http://b.example:8080",
            "--host-whitelist=good.example,127.0.0.1",
        ];
        let [etcd, ours] = both(&flags).await;
        versions_are_decided([&etcd, &ours]).await;
        let mut requests = Vec::new();
        for path in ["/v3/kv/range", "/version", "/nothing"] {
            for origin in ["http://a.example:80", "http://evil.example:80", "null"] {
                for method in ["GET", "POST", "OPTIONS"] {
                    let request = HttpRequest::new(method, path).body("{}");
                    requests.push(request.header("Origin", origin));
                }
            }
        }
        for host in [
            "good.example",
            "good.example:2379",
            "evil.example:1",
            "[::1]:1",
            "",
        ] {
            requests.push(HttpRequest::new("GET", "/version").header("Host", host));
            requests.push(HttpRequest::new("OPTIONS", "/v3/kv/put").header("Host", host));
        }
        compare(&etcd, &ours, &requests).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_gateway_its_paths_do_not_exist() {
    within(async {
        let [etcd, ours] = both(&["--enable-grpc-gateway=false"]).await;
        let requests = [post("/v3/kv/range", "{}"), post("/v3/watch", "{}")];
        compare(&etcd, &ours, &requests).await;
    })
    .await;
}

/// Waits until `/version` shows what it will go on to show: a leader decides on the cluster's version some moments
/// after its election, and etcd on that of its storage some moments later.
async fn versions_are_decided(members: [&Member; 2]) {
    for member in members {
        let limit = Duration::from_secs(20);
        eventually("the versions are decided", limit, || async {
            let answer = HttpRequest::new("GET", "/version")
                .send(&member.address())
                .await;
            match shown(&answer, &member.address()) {
                text if text.contains(r#""storage":"3.7.0""#) => Ok(()),
                text => Err(text),
            }
        })
        .await;
    }
}

/// What Patroni's `etcd3` module sends while it leads: a lease, the leader key, its renewal, a status
/// key, and the reads between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patroni_sees_what_etcd_shows_it() {
    within(async {
        let [etcd, ours] = both(&[]).await;
        versions_are_decided([&etcd, &ours]).await;
        let leader = "L3NlcnZpY2UvZGIvbGVhZGVy";
        let steps = [
            HttpRequest::new("GET", "/version"),
            post("/v3/maintenance/status", "{}"),
            post("/v3/cluster/member/list", "{}"),
            post("/v3/lease/grant", r#"{"TTL":30,"ID":77}"#),
            post("/v3/kv/txn", &format!(
                r#"{{"compare":[{{"target":"CREATE","create_revision":"0","key":"{leader}"}}],"success":[{{"request_put":{{"key":"{leader}","value":"bm9kZTE=","lease":"77"}}}}],"failure":[]}}"#
            )),
            post("/v3/kv/txn", &format!(
                r#"{{"compare":[{{"target":"CREATE","create_revision":"0","key":"{leader}"}}],"success":[{{"request_put":{{"key":"{leader}","value":"bm9kZTI="}}}}],"failure":[]}}"#
            )),
            post("/v3/kv/range", r#"{"key":"L3NlcnZpY2UvZGIv","range_end":"L3NlcnZpY2UvZGIw","serializable":false}"#),
            post("/v3/lease/keepalive", r#"{"ID":"77"}"#),
            post("/v3/kv/txn", &format!(
                r#"{{"compare":[{{"target":"MOD","mod_revision":"2","key":"{leader}"}}],"success":[{{"request_put":{{"key":"L3NlcnZpY2UvZGIvc3RhdHVz","value":"e30="}}}}],"failure":[]}}"#
            )),
            post("/v3/kv/deleterange", &format!(r#"{{"key":"{leader}"}}"#)),
            post("/v3/lease/revoke", r#"{"ID":"77"}"#),
            post("/v3/lease/keepalive", r#"{"ID":"77"}"#),
        ];
        compare(&etcd, &ours, &steps).await;
    })
    .await;
}

/// What lua-resty-etcd sends for APISIX: numeric enumerations, `Content-Type` and `Authorization`
/// headers, aliases of the lease routes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apisix_sees_what_etcd_shows_it() {
    within(async {
        let [etcd, ours] = both(&[]).await;
        let steps: Vec<_> = [
            ("/v3/kv/put", r#"{"value":"eyJpZCI6MX0=","lease":0,"key":"L2FwaXNpeC9yb3V0ZXMvMQ=="}"#),
            ("/v3/kv/range", r#"{"sort_target":0,"sort_order":0,"key":"L2FwaXNpeC8=","range_end":"L2FwaXNpeDA=","limit":0,"revision":0,"serializable":false,"keys_only":false,"count_only":false,"min_mod_revision":0,"max_mod_revision":0,"min_create_revision":0,"max_create_revision":0}"#),
            ("/v3/lease/grant", r#"{"TTL":10,"ID":99}"#),
            ("/v3/kv/put", r#"{"key":"L2FwaXNpeC9kYXRhX3BsYW5l","value":"MQ==","lease":99,"prev_kv":false,"ignore_value":false,"ignore_lease":false}"#),
            ("/v3/kv/lease/timetolive", r#"{"ID":99,"keys":true}"#),
            ("/v3/lease/keepalive", r#"{"ID":99}"#),
            ("/v3/kv/txn", r#"{"compare":[{"key":"L2FwaXNpeC9yb3V0ZXMvMQ==","target":"CREATE","result":"GREATER","create_revision":0}],"success":[{"requestPut":{"key":"L2FwaXNpeC9yb3V0ZXMvMQ==","value":"e30="}}]}"#),
            ("/v3/kv/deleterange", r#"{"key":"L2FwaXNpeC9yb3V0ZXMvMQ==","prev_kv":true}"#),
            ("/v3/kv/lease/revoke", r#"{"ID":99}"#),
        ]
        .into_iter()
        .map(|(path, body)| post(path, body).header("Content-Type", "application/json"))
        .collect();
        compare(&etcd, &ours, &steps).await;
    })
    .await;
}

/// The bytes that a base64 text stands for.
fn decoded_length(base64: &str) -> usize {
    base64.len() / 4 * 3 - base64.chars().rev().take_while(|end| *end == '=').count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_comes_in_lines_that_end_with_its_digest() {
    within(async {
        for member in both(&[]).await {
            member.client().put("a", "1").await.unwrap();
            let request = post("/v3/maintenance/snapshot", "{}");
            let mut stream = request.open(&member.address()).await;
            assert_eq!(stream.status, 200);
            let mut lengths = Vec::new();
            let mut remaining = Vec::new();
            while let Some(line) = stream.line().await {
                let line: serde_json::Value = serde_json::from_str(&line).unwrap();
                let blob = line["result"]["blob"].as_str().unwrap();
                lengths.push(decoded_length(blob));
                let left = line["result"]["remaining_bytes"].as_str().unwrap_or("0");
                remaining.push(left.parse::<usize>().unwrap());
            }
            assert_eq!(lengths.pop(), Some(32), "a SHA-256");
            assert_eq!(remaining[0], lengths[1..].iter().sum::<usize>());
            assert_eq!(remaining.last(), Some(&0));
        }
    })
    .await;
}

/// Behind an answer that comes first the stream has to be reset, and curl 7.88 then loses the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_over_http2_waits_for_the_body_of_its_request() {
    within(async {
        let member = Member::start(Program::MetaStore).await;
        for (path, status) in [("/nope", 404), ("/v3/nope", 404), ("/version", 405)] {
            let stream = tokio::net::TcpStream::connect(member.address());
            let (client, connection) = h2::client::handshake(stream.await.unwrap()).await.unwrap();
            tokio::spawn(connection);
            let request = http::Request::post(format!("http://{}{path}", member.address()))
                .header("content-length", "5")
                .body(())
                .unwrap();
            let mut client = client.ready().await.unwrap();
            let (mut answer, mut body) = client.send_request(request, false).unwrap();
            let early = tokio::time::timeout(Duration::from_millis(200), &mut answer).await;
            assert!(early.is_err(), "{path}: {early:?}");
            body.send_data("hello".into(), true).unwrap();
            assert_eq!(answer.await.unwrap().status(), status, "{path}");
        }
    })
    .await;
}

/// To the gRPC server etcd's gateway is one client on one connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_requests_to_the_gateway_share_the_streams_of_one_connection() {
    within(async {
        for member in both(&["--max-concurrent-streams=2"]).await {
            let address = member.address();
            let create = || post("/v3/watch", r#"{"create_request":{"key":"YQ=="}}"#);
            let get = || post("/v3/kv/range", r#"{"key":"YQ=="}"#);
            let mut watches = Vec::new();
            for _ in 0..2 {
                let mut stream = create().open(&address).await;
                let line = stream.line().await.unwrap();
                assert!(line.contains("\"created\":true"), "{line}");
                watches.push(stream);
            }
            // Others are served, and a request that waits is served when there is room.
            member.client().put("a", "1").await.unwrap();
            let request = get();
            let answer = request.send(&address);
            tokio::pin!(answer);
            let waited = deadline(Duration::from_secs(1));
            let early = tokio::time::timeout(waited, &mut answer).await;
            assert!(early.is_err(), "{:?}", early.map(|answer| answer.text()));
            watches.pop();
            assert_eq!(answer.await.status, 200);
            assert_eq!(get().send(&address).await.status, 200);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_zero_streams_is_none() {
    within(async {
        for member in both(&["--max-concurrent-streams=0"]).await {
            member.client().put("a", "1").await.unwrap();
            let get = post("/v3/kv/range", r#"{"key":"YQ=="}"#);
            assert_eq!(get.send(&member.address()).await.status, 200);
        }
    })
    .await;
}
