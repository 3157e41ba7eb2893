//! `/health`, `/livez`, `/readyz`.

use metastore_tests::raw_http::HttpRequest;
use metastore_tests::{Cluster, eventually};

use super::json::compare;
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_answers_as_etcd() {
    within(async {
        let [etcd, ours] = both(&[]).await;
        let mut requests = Vec::new();
        for path in [
            "/health",
            "/health?serializable=true",
            "/health?exclude=NOSPACE&exclude=CORRUPT",
            "/health/",
            "/livez",
            "/livez?verbose",
            "/livez?verbose&exclude=serializable_read",
            "/livez/serializable_read",
            "/livez/serializable_read?verbose",
            "/livez/nothing",
            "/livez/non_learner",
            "/readyz",
            "/readyz?exclude=nothing",
            "/readyz?verbose&exclude=data_corruption&exclude=serializable_read&exclude=non_learner",
            "/readyz/data_corruption?verbose",
            "/readyz/serializable_read?verbose",
            "/readyz/linearizable_read?verbose",
            "/readyz/non_learner?verbose",
            "/readyz/non_learner?verbose&exclude=non_learner",
            "/readyz/nothing",
        ] {
            for method in ["GET", "POST", "HEAD", "OPTIONS"] {
                requests.push(HttpRequest::new(method, path));
            }
        }
        compare(&etcd, &ours, &requests).await;
        // The order of all checks is random in etcd.
        for member in [&etcd, &ours] {
            let request = HttpRequest::new("GET", "/readyz?verbose");
            let answer = request.send(&member.address()).await.text();
            let mut lines: Vec<_> = answer.lines().collect();
            lines.sort_unstable();
            assert_eq!(
                lines,
                [
                    "[+]data_corruption ok",
                    "[+]linearizable_read ok",
                    "[+]non_learner ok",
                    "[+]serializable_read ok",
                    "ok"
                ]
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_leader_is_alive_and_not_ready() {
    within(async {
        let mut cluster = Cluster::start(subject(), 3).await;
        let address = cluster.members[0].address();
        for member in &mut cluster.members[1..] {
            member.kill();
        }
        let limit = Duration::from_secs(30);
        eventually("the leader is missed", limit, || async {
            let answer = HttpRequest::new("GET", "/health").send(&address).await;
            if answer.status == 503 && answer.text().contains("RAFT NO LEADER") {
                return Ok(());
            }
            Err(answer.text())
        })
        .await;
        let answer = HttpRequest::new("GET", "/health").send(&address).await;
        assert_eq!(
            answer.text(),
            "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n"
        );
        for path in ["/health?serializable=true", "/livez"] {
            let answer = HttpRequest::new("GET", path).send(&address).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        }
        let path = "/readyz?exclude=linearizable_read";
        assert_eq!(
            HttpRequest::new("GET", path).send(&address).await.status,
            200
        );
        let answer = HttpRequest::new("GET", "/readyz").send(&address).await;
        assert_eq!(answer.status, 503);
        let text = answer.text();
        assert!(text.contains("[-]linearizable_read failed: "), "{text}");
        assert!(text.contains("[+]serializable_read ok"), "{text}");
    })
    .await;
}
