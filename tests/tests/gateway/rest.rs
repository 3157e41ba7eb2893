//! The plain HTTP API. etcd has none, so the answers are checked by themselves.

use std::process::Command;

use metastore_tests::programs::tool;
use metastore_tests::raw_http::{HttpAnswer, HttpRequest};
use metastore_tests::{Member, Program, eventually};

use super::*;

struct Api {
    member: Member,
}

impl Api {
    async fn start() -> Self {
        Self {
            member: Member::start(Program::MetaStore).await,
        }
    }

    async fn send(&self, request: HttpRequest) -> HttpAnswer {
        request.send(&self.member.address()).await
    }

    async fn get(&self, path: &str) -> HttpAnswer {
        self.send(HttpRequest::new("GET", path)).await
    }

    async fn put(&self, path: &str, body: &[u8], headers: &[(&str, &str)]) -> HttpAnswer {
        let request = HttpRequest::new("PUT", path).body(body);
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(name, value)
        });
        self.send(request).await
    }

    async fn delete(&self, path: &str, headers: &[(&str, &str)]) -> HttpAnswer {
        let request = headers.iter().fold(
            HttpRequest::new("DELETE", path),
            |request, (name, value)| request.header(name, value),
        );
        self.send(request).await
    }
}

fn tag(answer: &HttpAnswer) -> String {
    answer.header("etag").expect("an entity tag").to_owned()
}

fn problem(answer: &HttpAnswer, status: u16) -> String {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    problem["detail"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_a_resource_of_raw_bytes() {
    within(async {
        let api = Api::start().await;
        problem(&api.get("/kv/a/b").await, 404);
        let value = b"\0\xff raw\n";
        let created = api.put("/kv/a/b%20c%ff", value, &[]).await;
        assert_eq!(created.status, 201, "{}", created.text());
        assert_eq!(created.header("location"), Some("/kv/a/b%20c%FF"));
        assert_eq!(tag(&created), "\"2\"");
        let found = api.get("/kv/a/b%20c%ff").await;
        assert_eq!((found.status, &found.body[..]), (200, &value[..]));
        assert_eq!(tag(&found), "\"2\"");
        assert_eq!(
            found.header("content-type"),
            Some("application/octet-stream")
        );
        assert_eq!(found.header("metastore-version"), Some("1"));
        let changed = api.put("/kv/a/b%20c%ff", b"", &[]).await;
        assert_eq!((changed.status, tag(&changed)), (204, "\"3\"".into()));
        let old = api.get("/kv/a/b%20c%ff?revision=2").await;
        assert_eq!(&old.body[..], &value[..]);
        let head = HttpRequest::new("HEAD", "/kv/a/b%20c%ff");
        let head = api.send(head).await;
        assert_eq!((head.status, tag(&head)), (200, "\"3\"".into()));
        // The same key for other clients.
        let (pair, _) = api.member.client().get(&b"a/b c\xff"[..]).await.unwrap();
        assert_eq!(pair.unwrap().version, 2);
        let deleted = api.delete("/kv/a/b%20c%ff", &[]).await;
        assert_eq!(
            (deleted.status, deleted.header("metastore-revision")),
            (204, Some("4"))
        );
        problem(&api.delete("/kv/a/b%20c%ff", &[]).await, 404);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_compare_revisions() {
    within(async {
        let api = Api::start().await;
        let refused = api.put("/kv/k", b"x", &[("If-Match", "*")]).await;
        problem(&refused, 412);
        assert_eq!(tag(&refused), "\"0\"");
        let created = api.put("/kv/k", b"1", &[("If-None-Match", "*")]).await;
        assert_eq!(created.status, 201, "{}", created.text());
        let refused = api.put("/kv/k", b"x", &[("If-None-Match", "*")]).await;
        problem(&refused, 412);
        assert_eq!(tag(&refused), tag(&created));
        let changed = api
            .put("/kv/k", b"2", &[("If-Match", &tag(&created))])
            .await;
        assert_eq!(changed.status, 204, "{}", changed.text());
        problem(
            &api.put("/kv/k", b"x", &[("If-Match", &tag(&created))])
                .await,
            412,
        );
        // One of several.
        let several = format!("\"1\", {}", tag(&changed));
        let changed = api.put("/kv/k", b"3", &[("If-Match", &several)]).await;
        assert_eq!(changed.status, 204, "{}", changed.text());
        problem(
            &api.put("/kv/k", b"x", &[("If-None-Match", &tag(&changed))])
                .await,
            412,
        );
        problem(&api.put("/kv/k", b"x", &[("If-Match", "2")]).await, 400);
        let known = HttpRequest::new("GET", "/kv/k").header("If-None-Match", &tag(&changed));
        let known = api.send(known).await;
        assert_eq!((known.status, known.body.len()), (304, 0));
        let refused = HttpRequest::new("GET", "/kv/k").header("If-Match", &tag(&created));
        problem(&api.send(refused).await, 412);
        problem(
            &api.delete("/kv/k", &[("If-Match", &tag(&created))]).await,
            412,
        );
        let deleted = api.delete("/kv/k", &[("If-Match", &tag(&changed))]).await;
        assert_eq!(deleted.status, 204, "{}", deleted.text());
        // "Nobody has made it", said with a tag.
        let created = api.put("/kv/k", b"4", &[("If-Match", "\"0\"")]).await;
        assert_eq!(created.status, 201, "{}", created.text());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_come_in_pages_of_one_state() {
    within(async {
        let api = Api::start().await;
        for number in 0..5 {
            api.put(&format!("/kv/p/{number}"), b"v", &[]).await;
        }
        api.put("/kv/q", b"", &[]).await;
        let first = api.get("/kv?prefix=p/&limit=2").await;
        let page = first.json();
        assert_eq!(page["items"][1]["key"], "p/1");
        assert_eq!(
            (&page["remaining"], &page["revision"]),
            (&3.into(), &7.into())
        );
        let next = page["next"].as_str().unwrap().to_owned();
        assert_eq!(
            first.header("link"),
            Some(format!("<{next}>; rel=\"next\"").as_str())
        );
        // What happens now is not on the next pages.
        api.put("/kv/p/1x", b"", &[]).await;
        api.delete("/kv/p/4", &[]).await;
        let second = api.get(&next).await.json();
        let keys: Vec<_> = second["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| &item["key"])
            .collect();
        assert_eq!(keys, ["p/2", "p/3"]);
        let third = api.get(second["next"].as_str().unwrap()).await.json();
        assert_eq!(third["items"][0]["key"], "p/4");
        assert_eq!(third.get("next"), None);
        let values = api.get("/kv?prefix=p/0&values").await.json();
        assert_eq!(values["items"][0]["value"], "dg==");
        assert_eq!(
            api.get("/kv").await.json()["items"]
                .as_array()
                .unwrap()
                .len(),
            6
        );
        problem(&api.get("/kv?limit=0").await, 400);
        problem(&api.get("/kv?prefiks=p").await, 400);
        problem(&api.get("/kv?prefix=p&after=q").await, 400);
        problem(&api.delete("/kv", &[]).await, 400);
        let deleted = api.delete("/kv?prefix=p/", &[]).await.json();
        assert_eq!(deleted["deleted"], 5);
        assert_eq!(
            api.get("/kv").await.json()["items"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_poll_ends_with_the_change() {
    within(async {
        let api = Api::start().await;
        let address = api.member.address();
        let created = api.put("/kv/k", b"1", &[]).await;
        let poll = |target: &str, tag: &str| {
            let request = HttpRequest::new("GET", target).header("If-None-Match", tag);
            let address = address.clone();
            tokio::spawn(async move { request.send(&address).await })
        };
        let waiting = poll("/kv/k?wait=15", &tag(&created));
        let absent = poll("/kv/new?wait=15", "\"0\"");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!waiting.is_finished() && !absent.is_finished());
        let changed = api.put("/kv/k", b"2", &[]).await;
        let seen = waiting.await.unwrap();
        assert_eq!((seen.status, &seen.body[..]), (200, &b"2"[..]));
        api.put("/kv/new", b"born", &[]).await;
        assert_eq!(absent.await.unwrap().text(), "born");
        let waiting = poll("/kv/k?wait=15", &tag(&changed));
        api.delete("/kv/k", &[]).await;
        problem(&waiting.await.unwrap(), 404);
        // Nothing happens.
        let quiet = HttpRequest::new("GET", "/kv/new")
            .header("If-None-Match", &tag(&api.get("/kv/new").await))
            .header("Prefer", "wait=1");
        let quiet = api.send(quiet).await;
        assert_eq!(quiet.status, 304);
        assert_eq!(quiet.header("preference-applied"), Some("wait=1"));
        // Another state than the client's: no wait.
        assert_eq!(poll("/kv/new?wait=15", "\"1\"").await.unwrap().status, 200);
    })
    .await;
}

/// The next event: its lines up to the empty one.
async fn next_event(stream: &mut metastore_tests::raw_http::HttpStream) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(line) = stream.line().await {
        if line.is_empty() {
            return lines;
        }
        lines.push(line);
    }
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_resume_after_the_last_one_seen() {
    within(async {
        let api = Api::start().await;
        let address = api.member.address();
        let follow =
            |target: &str| HttpRequest::new("GET", target).header("Accept", "text/event-stream");
        let mut stream = follow("/kv?prefix=p/").open(&address).await;
        assert_eq!(stream.status, 200);
        assert_eq!(stream.header("content-type"), Some("text/event-stream"));
        assert_eq!(
            next_event(&mut stream).await,
            ["event: ready", "id: 1", "data: {\"revision\":1}"]
        );
        api.put("/kv/p/a", b"1", &[]).await;
        api.put("/kv/other", b"1", &[]).await;
        api.put("/kv/p/b", b"2", &[]).await;
        api.delete("/kv?prefix=p/", &[]).await;
        let first = next_event(&mut stream).await;
        assert_eq!(first[..2], ["event: put", "id: 2"]);
        assert!(first[2].contains("\"key\":\"p/a\"") && first[2].contains("\"value\":\"MQ==\""));
        assert_eq!(next_event(&mut stream).await[1], "id: 4");
        // Two deletions of one revision: the id comes with the last.
        let gone = next_event(&mut stream).await;
        assert_eq!(
            gone,
            [
                "event: delete",
                "data: {\"key\":\"p/a\",\"mod_revision\":5}"
            ]
        );
        assert_eq!(
            next_event(&mut stream).await[..2],
            ["event: delete", "id: 5"]
        );
        drop(stream);

        let mut again = follow("/kv?prefix=p/")
            .header("Last-Event-ID", "2")
            .open(&address)
            .await;
        assert_eq!(next_event(&mut again).await[..2], ["event: ready", "id: 2"]);
        assert_eq!(next_event(&mut again).await[1], "id: 4");
        let mut one = follow("/kv/other?since=0").open(&address).await;
        next_event(&mut one).await;
        assert_eq!(next_event(&mut one).await[1], "id: 3");
        problem(&api.send(follow("/kv/k?since=x")).await, 400);

        let compact = HttpRequest::new("POST", "/v3/kv/compaction").body(r#"{"revision":"5"}"#);
        api.send(compact).await;
        problem(
            &api.send(follow("/kv?prefix=p/").header("Last-Event-ID", "2"))
                .await,
            410,
        );
        problem(&api.get("/kv/p/a?revision=2").await, 410);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_with_a_time_to_live_ends_by_itself() {
    within(async {
        let api = Api::start().await;
        let created = api.put("/kv/k?ttl=2", b"1", &[]).await;
        assert_eq!(created.status, 201, "{}", created.text());
        assert_eq!(created.header("metastore-lease-ttl"), Some("2"));
        let lease = created.header("metastore-lease").unwrap().to_owned();
        let found = api.get("/kv/k").await;
        assert_eq!(found.header("metastore-lease"), Some(lease.as_str()));
        let limit = Duration::from_secs(20);
        eventually("the key ends with its lease", limit, || async {
            match api.get("/kv/k").await.status {
                404 => Ok(()),
                status => Err(status.to_string()),
            }
        })
        .await;
        problem(&api.get(&format!("/leases/{lease}")).await, 404);

        let granted = api.send(HttpRequest::new("POST", "/leases?ttl=60")).await;
        assert_eq!(granted.status, 201, "{}", granted.text());
        let id = granted.json()["id"].as_str().unwrap().to_owned();
        let address = format!("/leases/{id}");
        assert_eq!(granted.header("location"), Some(address.as_str()));
        assert_eq!(
            api.put(&format!("/kv/a%20b?lease={id}"), b"", &[])
                .await
                .status,
            201
        );
        let lease = api.get(&address).await.json();
        assert_eq!(lease["granted_ttl"], 60);
        assert_eq!(lease["keys"][0], "a%20b");
        let keep = HttpRequest::new("POST", &format!("{address}/keepalive"));
        assert_eq!(api.send(keep.clone()).await.json()["ttl"], 60);
        assert_eq!(api.delete(&address, &[]).await.status, 204);
        assert_eq!(api.get("/kv/a%20b").await.status, 404);
        problem(&api.send(keep).await, 404);
        problem(&api.delete(&address, &[]).await, 404);
        problem(&api.put("/kv/k?lease=12345", b"", &[]).await, 404);
        problem(&api.put("/kv/k?lease=1&ttl=2", b"", &[]).await, 400);
        // A write that is refused leaves no lease behind.
        let leases = HttpRequest::new("POST", "/v3/lease/leases").body("{}");
        let before = api.send(leases.clone()).await.json()["leases"].clone();
        problem(
            &api.put("/kv/k?ttl=60", b"", &[("If-Match", "*")]).await,
            412,
        );
        assert_eq!(api.send(leases).await.json()["leases"], before);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_told_what_is_wrong() {
    within(async {
        let api = Api::start().await;
        problem(&api.get("/kv/").await, 400);
        problem(&api.get("/kv/%zz").await, 400);
        problem(&api.get("/kv/k?revision=-1").await, 400);
        problem(&api.get("/kv/k?revision=100").await, 400);
        problem(&api.get("/kv/k?serializable=maybe").await, 400);
        problem(&api.get("/kv/k?wait=1&wait=2").await, 400);
        let wrong = api.send(HttpRequest::new("POST", "/kv/k")).await;
        problem(&wrong, 405);
        assert_eq!(wrong.header("allow"), Some("GET, HEAD, PUT, DELETE"));
        let large = vec![b'x'; 3 << 20];
        problem(&api.put("/kv/k", &large, &[]).await, 413);
        let preflight = HttpRequest::new("OPTIONS", "/kv/k").header("Origin", "http://a.example");
        let preflight = api.send(preflight).await;
        assert_eq!(preflight.status, 200);
        let allowed = preflight.header("access-control-allow-headers").unwrap();
        assert!(allowed.contains("if-match") && allowed.contains("last-event-id"));
        let description = api.get("/openapi.json").await.json();
        assert_eq!(description["openapi"], "3.1.0");
        assert!(description["paths"]["/kv/{key}"]["put"].is_object());

        let flags = MemberBuilder::new(Program::MetaStore).flag("--enable-http-api=false");
        let without = flags.start().await;
        let request = HttpRequest::new("GET", "/kv/k");
        assert_eq!(
            request.send(&without.address()).await.text(),
            "404 page not found\n"
        );
    })
    .await;
}

/// The scripts of `examples/` that need one member and curl or etcdctl, as a reader runs them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_run_as_written() {
    within(async {
        let member = Member::start(Program::MetaStore).await;
        let tools = tool("etcdctl").parent().unwrap().to_owned();
        let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
        for name in [
            "json-gateway.sh",
            "http-api.sh",
            "first-steps.sh",
            "lock.sh",
            "watch-after-compaction.sh",
            "election.sh",
            "service-discovery.sh",
        ] {
            let script = format!("{}/../examples/{name}", env!("CARGO_MANIFEST_DIR"));
            let mut example = Command::new("bash");
            example
                .arg(&script)
                .env("METASTORE_URL", member.endpoint())
                .env("ETCDCTL_ENDPOINTS", member.endpoint())
                .env("PATH", &path);
            let output = tokio::task::spawn_blocking(move || example.output())
                .await
                .unwrap()
                .unwrap();
            assert!(
                output.status.success(),
                "{name}: {}\n{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    })
    .await;
}
