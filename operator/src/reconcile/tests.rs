//! Passes against an API server that is played: it keeps objects, merges what is applied, and counts what was written.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, Time};
use kube::runtime::events::Reporter;
use metastore_operator_api::{ClusterSpec, MemberStatus};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use super::*;

const BODY_BYTES_MAX: usize = 1 << 20;
/// More passes than anything here needs.
const PASSES_MAX: usize = 60;

/// Objects by the end of their path, such as `services/c-peer`.
#[derive(Default)]
struct Server {
    objects: Mutex<BTreeMap<String, Value>>,
    /// Calls that changed something, and those that might have and did not.
    changes: Mutex<Vec<String>>,
    idle_calls: Mutex<Vec<String>>,
    is_deadly: bool,
    /// Somebody has changed something in front of a deadly server.
    death: Notify,
    looks: AtomicU64,
    /// A Pod says something else with each look.
    is_restless: bool,
}

impl Server {
    fn list(&self, plural: &str) -> Value {
        let look = self.looks.fetch_add(1, Ordering::Relaxed);
        let mut objects = self.objects.lock();
        if self.is_restless
            && let Some(pod) = objects.get_mut("pods/c-seed-0")
        {
            let waiting = json!({"reason": "CrashLoopBackOff", "message": format!("look {look}")});
            pod["status"]["containerStatuses"][0]["state"]["waiting"] = waiting;
        }
        let prefix = format!("{plural}/");
        let items: Vec<_> = objects
            .iter()
            .filter(|(path, _)| path.starts_with(&prefix))
            .map(|(_, object)| object.clone())
            .collect();
        json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items})
    }

    /// Returns what is there afterwards.
    fn write(&self, method: &Method, path: &str, is_status: bool, body: &Value) -> Option<Value> {
        let mut objects = self.objects.lock();
        let before = objects.get(path).cloned();
        let mut after = before.clone();
        match *method {
            Method::DELETE => after = None,
            Method::PATCH if is_status => {
                if let Some(object) = &mut after {
                    object["status"] = body["status"].clone();
                }
            }
            Method::PATCH => merge(after.get_or_insert_with(|| json!({})), body),
            _ => after = Some(body.clone()),
        }
        let call = format!("{method} {path}{}", if is_status { "/status" } else { "" });
        if before == after {
            self.idle_calls.lock().push(call);
        } else {
            self.changes.lock().push(call);
        }
        match &after {
            Some(object) => objects.insert(path.to_owned(), object.clone()),
            None => objects.remove(path),
        };
        after.or(before)
    }
}

/// As server-side apply does it with objects of which nobody else changes anything.
fn merge(target: &mut Value, change: &Value) {
    match (target, change) {
        (Value::Object(target), Value::Object(change)) => {
            for (key, value) in change {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, change) => *target = change.clone(),
    }
}

async fn serve(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let Some((_, rest)) = path.split_once("/namespaces/n/") else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let words: Vec<_> = rest.split('/').collect();
    if words[0] == "events" {
        return axum::Json(body).into_response();
    }
    let missing = || {
        let status =
            json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404});
        (StatusCode::NOT_FOUND, axum::Json(status)).into_response()
    };
    if parts.method == Method::GET {
        let Some(name) = words.get(1) else {
            return axum::Json(server.list(words[0])).into_response();
        };
        let object = server
            .objects
            .lock()
            .get(&format!("{}/{name}", words[0]))
            .cloned();
        return object.map_or_else(missing, |object| axum::Json(object).into_response());
    }
    let name = words.get(1).copied().or(body["metadata"]["name"].as_str());
    let path = format!("{}/{}", words[0], name.unwrap());
    let changes_before = server.changes.lock().len();
    let object = server.write(&parts.method, &path, words.len() > 2, &body);
    if server.is_deadly && server.changes.lock().len() > changes_before {
        server.death.notify_one();
        // Whoever asked does not learn of it.
        std::future::pending::<()>().await;
    }
    object.map_or_else(missing, |object| axum::Json(object).into_response())
}

struct Stage {
    server: Arc<Server>,
    context: Context,
}

impl Stage {
    async fn set(server: Server) -> Self {
        let cluster = json!({
            "apiVersion": "metastore.io/v1alpha1",
            "kind": "MetaStoreCluster",
            "metadata": {"name": "c", "namespace": "n", "uid": "u", "generation": 1},
            "spec": ClusterSpec { replicas: 3, ..ClusterSpec::default() },
        });
        server
            .objects
            .lock()
            .insert("metastoreclusters/c".to_owned(), cluster);
        let server = Arc::new(server);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new()
            .fallback(serve)
            .with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let reporter = Reporter {
            controller: "test".into(),
            instance: None,
        };
        let context = Context {
            images: Images {
                server_repository: "a".into(),
                server_version: "0.1.0".into(),
                operator_image: "b".into(),
            },
            leadership: Leadership::alone(),
            telemetry: Arc::new(Telemetry::new().unwrap()),
            recorder: Recorder::new(client.clone(), reporter),
            capabilities: ArcSwap::from_pointee(Capabilities::default()),
            client,
        };
        Self { server, context }
    }

    /// One pass, by an operator that dies of its first change where the server is deadly. Did it live?
    async fn pass(&self) -> bool {
        let object = self.get("metastoreclusters/c");
        let object: MetaStoreCluster = serde_json::from_value(object).unwrap();
        tokio::select! {
            biased;
            () = self.server.death.notified() => false,
            outcome = pass(&object, &self.context) => {
                outcome.unwrap();
                true
            }
        }
    }

    /// Passes until one changes nothing.
    async fn settle(&self) {
        for _ in 0..PASSES_MAX {
            let before = self.server.changes.lock().len();
            if self.pass().await && self.server.changes.lock().len() == before {
                return;
            }
        }
        panic!("{:#?}", self.server.changes.lock());
    }

    fn get(&self, path: &str) -> Value {
        self.server
            .objects
            .lock()
            .get(path)
            .cloned()
            .unwrap_or_default()
    }

    fn paths(&self, plural: &str) -> Vec<String> {
        let objects = self.server.objects.lock();
        let prefix = format!("{plural}/");
        objects
            .keys()
            .filter(|path| path.starts_with(&prefix))
            .cloned()
            .collect()
    }
}

#[tokio::test]
async fn operators_that_die_of_each_change_make_the_first_member_and_then_write_nothing() {
    let stage = Stage::set(Server {
        is_deadly: true,
        ..Server::default()
    })
    .await;
    stage.settle().await;
    assert_eq!(stage.paths("statefulsets").len(), 1);
    assert!(stage.get("metastoreclusters/c")["status"]["conditions"].is_array());
    stage.server.idle_calls.lock().clear();
    assert!(
        stage.pass().await,
        "{:?}",
        stage.server.changes.lock().last()
    );
    assert_eq!(*stage.server.idle_calls.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn an_object_that_differs_is_written_and_no_other() {
    let stage = Stage::set(Server::default()).await;
    stage.settle().await;
    stage
        .server
        .objects
        .lock()
        .get_mut("services/c-peer")
        .unwrap()["spec"]["clusterIP"] = json!("10.0.0.1");
    stage.server.changes.lock().clear();
    stage.server.idle_calls.lock().clear();
    stage.settle().await;
    let changes = stage.server.changes.lock().clone();
    assert_eq!(
        changes
            .iter()
            .filter(|call| !call.ends_with("/status"))
            .count(),
        1,
        "{changes:?}"
    );
    assert!(
        changes.contains(&"PATCH services/c-peer".to_owned()),
        "{changes:?}"
    );
    assert_eq!(*stage.server.idle_calls.lock(), Vec::<String>::new());
}

/// The status is another one in each pass, and each operator dies of its first change.
#[tokio::test]
async fn a_member_that_says_something_else_all_the_time_does_not_keep_operators_from_acting() {
    let stage = Stage::set(Server::default()).await;
    stage.settle().await;
    let set = stage.paths("statefulsets").remove(0);
    let name = set.strip_prefix("statefulsets/").unwrap().to_owned();
    let pod = json!({
        "metadata": {"name": "c-seed-0", "labels": {}},
        "status": {"phase": "Running", "containerStatuses": [{
            "name": "metastore", "image": "", "imageID": "", "ready": false, "restartCount": 3, "state": {},
        }]},
    });
    let hash = |stage: &Stage| {
        stage.get(&set)["metadata"]["annotations"][names::TEMPLATE_HASH_ANNOTATION].clone()
    };
    let old = hash(&stage);
    let objects = stage.server.objects.lock().clone();
    let restless = Server {
        is_deadly: true,
        is_restless: true,
        ..Server::default()
    };
    let stage = Stage::set(restless).await;
    *stage.server.objects.lock() = objects;
    let pod_name = names::pod(&name);
    let mut pod = pod;
    pod["metadata"]["name"] = json!(pod_name);
    stage
        .server
        .objects
        .lock()
        .insert("pods/c-seed-0".to_owned(), pod);
    stage
        .server
        .objects
        .lock()
        .get_mut("metastoreclusters/c")
        .unwrap()["spec"]["config"]["logLevel"] = json!("warn");
    for _ in 0..PASSES_MAX {
        stage.pass().await;
        if hash(&stage) != old {
            return;
        }
    }
    panic!("{:#?}", stage.server.changes.lock());
}

#[test]
fn sizes_are_no_news_until_a_minute_has_passed() {
    let member = |revision: i64, name: &str| ClusterStatus {
        members: vec![MemberStatus {
            name: name.into(),
            revision: Some(revision),
            ..MemberStatus::default()
        }],
        ..ClusterStatus::default()
    };
    let first = member(1, "a");
    assert_eq!(News::between(&first, &first), News::Nothing);
    assert_eq!(News::between(&first, &member(2, "a")), News::Numbers);
    assert_eq!(News::between(&first, &member(1, "b")), News::Matters);

    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let written = |seconds_ago: i64, subresource: Option<&str>| ObjectMeta {
        managed_fields: Some(vec![ManagedFieldsEntry {
            manager: Some(names::FIELD_MANAGER.into()),
            subresource: subresource.map(Into::into),
            time: Some(Time(now - SignedDuration::from_secs(seconds_ago))),
            ..ManagedFieldsEntry::default()
        }]),
        ..ObjectMeta::default()
    };
    for (seconds_ago, is_due) in [(0, false), (59, false), (60, true), (-30, false)] {
        let written = written(seconds_ago, Some("status"));
        assert_eq!(numbers_are_due(&written, now), is_due, "{seconds_ago}");
    }
    assert!(
        numbers_are_due(&written(0, None), now),
        "of the object itself"
    );
    assert!(numbers_are_due(&ObjectMeta::default(), now));
}
