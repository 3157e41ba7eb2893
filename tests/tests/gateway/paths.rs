//! Paths as Go's mux sees them: redirects, escapes, what is no path at all.

use metastore_tests::member::free_port;
use metastore_tests::raw_http::HttpRequest;

use super::json::{compare, shown};
use super::*;

const PATHS: &[&str] = &[
    "/",
    "//",
    "/.",
    "/..",
    "/v3",
    "/v3/",
    "/v3?x=y",
    "//v3",
    "/v3/kv",
    "//v3/kv/range",
    "/v3//kv/range",
    "/v3/kv/range/",
    "/v3/./kv/range",
    "/v3/x/../kv/range",
    "/v3/kv/range?x=/../y",
    "/v3%2Fkv/range",
    "/v3/kv%2Frange",
    "/v3/kv/r%61nge",
    "/%76%33/kv/range",
    "/%763",
    "/v3beta",
    "/v3beta/",
    "/v3beta//kv/range",
    "//v3beta/kv/range",
    "//health",
    "/health/",
    "/health//",
    "/health/..",
    "/he%61lth",
    "/%2Fhealth",
    "/./version",
    "/version/.",
    "/../version",
    "/metrics/",
    "//livez",
    "/livez/",
    "/livez//serializable_read",
    "/readyz/../livez?verbose",
    "/debug//vars/",
    "/debug",
    "/debug/pprof",
    "/a//b%20c",
    "/a//b?c=d&e='f",
    "/a//(b)!*;,:@&=+$-_.~",
    "/a/./%C3%A4",
    "/%zz",
    "/%",
    "/%4",
    "/a//%zz",
    "/nothing/../nothing",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_are_cleaned_as_by_etcd() {
    within(async {
        let [etcd, ours] = both(&[]).await;
        let mut requests = Vec::new();
        for path in PATHS {
            for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS"] {
                requests.push(HttpRequest::new(method, path).body("{}"));
            }
        }
        // A redirect is answered before anybody looks at the body or the credentials.
        requests.push(
            HttpRequest::new("POST", "/v3//kv/put")
                .header("Authorization", "bad")
                .body("nonsense"),
        );
        compare(&etcd, &ours, &requests).await;
    })
    .await;
}

/// What Go's server says before etcd sees a request: head and body, on ports for clients and for metrics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_answered_before_a_path_is_looked_at_is_etcds() {
    within(async {
        let mut answers = Vec::new();
        for program in [Program::Etcd, subject()] {
            let metrics = format!("127.0.0.1:{}", free_port());
            let member = MemberBuilder::new(program)
                .flag(format!("--listen-metrics-urls=http://{metrics}"))
                .flag("--cors=http://a.example:80")
                .flag("--host-whitelist=b.example")
                .start()
                .await;
            let mut seen = Vec::new();
            for (port, address) in [("client", member.address()), ("metrics", metrics)] {
                for (method, path, headers, body) in [
                    ("OPTIONS", "*", &[][..], ""),
                    ("OPTIONS", "*", &[("Origin", "http://a.example:80")], "body"),
                    ("OPTIONS", "*", &[("Expect", "foo")], ""),
                    ("GET", "*", &[], ""),
                    (
                        "GET",
                        "/version",
                        &[("Expect", "foo"), ("Host", "b.example")],
                        "",
                    ),
                    (
                        "POST",
                        "/v3/kv/range",
                        &[("Expect", "foo"), ("Origin", "http://c.example")],
                        "{}",
                    ),
                    (
                        "GET",
                        "/nothing",
                        &[("Expect", "a, 100-Continue"), ("Host", "b.example")],
                        "",
                    ),
                    (
                        "GET",
                        "/nothing",
                        &[("Expect", ""), ("Host", "b.example")],
                        "",
                    ),
                ] {
                    let mut request = HttpRequest::new(method, path).body(body);
                    for (name, value) in headers {
                        request = request.header(name, value);
                    }
                    let answer = request.send(&address).await;
                    let mut head = answer.headers.clone();
                    head.retain(|(name, _)| name != "date");
                    head.sort_unstable();
                    let shown = format!("{} {head:?} {}", answer.status, answer.text());
                    seen.push(format!("{port}: {method} {path} {headers:?}: {shown}"));
                }
            }
            answers.push(seen);
        }
        assert_equal_transcripts(&answers[0], &answers[1]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_are_cleaned_on_ports_for_metrics_too() {
    within(async {
        let mut answers = Vec::new();
        for program in [Program::Etcd, subject()] {
            let port = free_port();
            let address = format!("127.0.0.1:{port}");
            let _member = MemberBuilder::new(program)
                .flag(format!("--listen-metrics-urls=http://{address}"))
                .start()
                .await;
            let mut seen = Vec::new();
            for path in [
                "//health",
                "/livez/./",
                "/v3",
                "/v3//kv",
                "/%zz",
                "/he%61lth",
            ] {
                let answer = HttpRequest::new("GET", path).send(&address).await;
                seen.push(format!("{path}: {}", shown(&answer, &address)));
            }
            answers.push(seen);
        }
        assert_equal_transcripts(&answers[0], &answers[1]);
    })
    .await;
}

/// The keys of the plain HTTP API may hold anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_the_plain_http_api_are_no_paths() {
    within(async {
        let ours = Member::start(Program::MetaStore).await;
        for key in ["//registry//pods", "a/../b", "./c/", "d%2F..%2Fe"] {
            let target = format!("/kv/{key}");
            let put = HttpRequest::new("PUT", &target).body(key);
            assert_eq!(put.send(&ours.address()).await.status, 201, "{target}");
            let got = HttpRequest::new("GET", &target).send(&ours.address()).await;
            assert_eq!((got.status, got.text().as_str()), (200, key), "{target}");
        }
        let (pair, _) = ours.client().get("//registry//pods").await.unwrap();
        assert!(pair.is_some());
    })
    .await;
}
