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
use metastore_operator_resources::CONFIG_FILE;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use super::*;

mod lives;
mod members;
mod weather;

use members::{Addresses, Facts, Running};
use weather::{Fault, Weather};

const BODY_BYTES_MAX: usize = 1 << 20;
/// More passes than anything here needs.
const PASSES_MAX: usize = 60;
/// Much longer than the played server takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// The same where it hangs again and again, and where nobody minds if it is called lost too early.
const SHORT_ANSWER_TIMEOUT: Duration = Duration::from_millis(300);

/// What there is: objects by the end of their path, such as `services/c-peer`, and members behind them.
#[derive(Default)]
struct World {
    objects: BTreeMap<String, Value>,
    facts: Facts,
    /// By the names of their Pods.
    running: BTreeMap<String, Running>,
    addresses: Addresses,
}

/// Of which of the changes an operator dies, before it learns that it was made. A death after a call that changed
/// nothing is the one after the change before it.
#[derive(Clone, Copy, Default)]
enum Mortality {
    #[default]
    None,
    /// One operator after the other.
    Each,
    /// Of the one with this number.
    One(usize),
}

#[derive(Default)]
struct Server {
    world: Mutex<World>,
    /// Calls that changed something, and those that might have and did not.
    changes: Mutex<Vec<String>>,
    idle_calls: Mutex<Vec<String>>,
    mortality: Mutex<Mortality>,
    /// Somebody has died.
    death: Notify,
    looks: AtomicU64,
    /// A Pod says something else with each look.
    is_restless: bool,
    /// StatefulSets get Pods, and these members.
    has_members: bool,
    weather: Mutex<Weather>,
}

impl Server {
    /// Notes a change. Does its author die of it?
    fn is_deadly_change(&self, call: String) -> bool {
        let mut changes = self.changes.lock();
        changes.push(call);
        let is_deadly = match *self.mortality.lock() {
            Mortality::None => false,
            Mortality::Each => true,
            Mortality::One(number) => changes.len() == number + 1,
        };
        if is_deadly {
            self.death.notify_one();
        }
        is_deadly
    }

    fn list(&self, plural: &str) -> Value {
        let look = self.looks.fetch_add(1, Ordering::Relaxed);
        let mut world = self.world.lock();
        if self.is_restless
            && let Some(pod) = world.objects.get_mut("pods/c-seed-0")
        {
            let waiting = json!({"reason": "CrashLoopBackOff", "message": format!("look {look}")});
            pod["status"]["containerStatuses"][0]["state"]["waiting"] = waiting;
        }
        let items: Vec<_> = world
            .all(plural)
            .map(|(_, object)| object.clone())
            .collect();
        json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items})
    }

    /// Returns what is there afterwards, and what was changed.
    fn write(
        self: &Arc<Self>,
        method: &Method,
        path: &str,
        is_status: bool,
        body: &Value,
    ) -> (Option<Value>, Option<String>) {
        let mut world = self.world.lock();
        let before = world.objects.get(path).cloned();
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
        let has_changed = before != after;
        match &after {
            Some(object) => world.objects.insert(path.to_owned(), object.clone()),
            None => world.objects.remove(path),
        };
        self.play(&mut world);
        let after = after.or(before);
        if has_changed {
            return (after, Some(call));
        }
        self.idle_calls.lock().push(call);
        (after, None)
    }

    /// What Kubernetes and the members make of it, at once.
    fn play(self: &Arc<Self>, world: &mut World) {
        if self.has_members {
            world.bind_volumes();
            world.make_pods();
            self.start_and_end_members(world);
            world.elect();
            world.show_pods();
        }
    }

    fn start_and_end_members(self: &Arc<Self>, world: &mut World) {
        let World {
            objects,
            facts,
            running,
            ..
        } = world;
        running.retain(|pod, member| {
            let claim = names::claim(pod.strip_suffix("-0").unwrap());
            objects.contains_key(&format!("pods/{pod}"))
                && facts.volumes.get(&claim) == Some(&member.id)
                && facts.list.iter().any(|listed| listed.id == member.id)
        });
        let pods: Vec<_> = world.all("pods").map(|(name, _)| name.to_owned()).collect();
        for pod in pods {
            if world.running.contains_key(&pod) {
                continue;
            }
            let name = pod.strip_suffix("-0").unwrap();
            let claim = names::claim(name);
            let config = &world.objects.get(&format!("configmaps/{name}"));
            let config = config.and_then(|map| map["data"][CONFIG_FILE].as_str());
            let is_bound = world.object(&format!("persistentvolumeclaims/{claim}"))["status"]["phase"]
                == "Bound";
            let (Some(config), true) = (config.map(ToOwned::to_owned), is_bound) else {
                continue;
            };
            if let Some(id) = world.start_with(name, &claim, &config) {
                let member = members::start(self, &mut world.addresses, id);
                world.running.insert(pod, member);
            }
        }
    }
}

impl World {
    fn all(&self, plural: &str) -> impl Iterator<Item = (&str, &Value)> {
        self.objects.iter().filter_map(move |(path, object)| {
            let name = path.strip_prefix(plural)?.strip_prefix('/')?;
            Some((name, object))
        })
    }

    fn object(&self, path: &str) -> Value {
        self.objects.get(path).cloned().unwrap_or_default()
    }

    /// The object at a path, to be changed.
    fn at(&mut self, path: &str) -> &mut Value {
        self.objects.get_mut(path).unwrap()
    }

    /// Volumes are there when they are asked for; what was on one that is not is lost.
    fn bind_volumes(&mut self) {
        for (path, claim) in &mut self.objects {
            if path.starts_with("persistentvolumeclaims/") && claim["status"]["phase"] != "Lost" {
                let size = claim["spec"]["resources"]["requests"]["storage"].clone();
                claim["status"] = json!({"phase": "Bound", "capacity": {"storage": size}});
            }
        }
        let objects = &self.objects;
        self.facts.volumes.retain(|name, id| {
            let claim = objects.get(&format!("persistentvolumeclaims/{name}"));
            let is_deleted = claim.is_none();
            if is_deleted && self.facts.list.iter().any(|member| member.id == *id) {
                let text = format!("the volume of the member {id:x} was deleted");
                self.facts.violations.push(text);
            }
            claim.is_some_and(|claim| claim["status"]["phase"] != "Lost")
        });
    }

    /// A Pod for each StatefulSet with a replica, and a new one when its template changes.
    fn make_pods(&mut self) {
        let hash = |object: &Value| {
            object["metadata"]["annotations"][names::TEMPLATE_HASH_ANNOTATION].clone()
        };
        let wanted: BTreeMap<_, _> = self
            .all("statefulsets")
            .filter(|(_, set)| set["spec"]["replicas"] == 1)
            .map(|(name, set)| (names::pod(name), set["spec"]["template"].clone()))
            .collect();
        let pods: Vec<_> = self
            .all("pods")
            .map(|(name, pod)| (name.to_owned(), hash(pod)))
            .collect();
        for (name, old_hash) in pods {
            if wanted
                .get(&name)
                .is_none_or(|template| hash(template) != old_hash)
            {
                self.objects.remove(&format!("pods/{name}"));
                self.running.remove(&name);
            }
        }
        for (name, template) in wanted {
            let metadata = json!({
                "name": name,
                "labels": template["metadata"]["labels"],
                "annotations": template["metadata"]["annotations"],
            });
            let mut spec = template["spec"].clone();
            spec["nodeName"] = json!(format!("node-of-{name}"));
            let pod = json!({"metadata": metadata, "spec": spec, "status": {}});
            self.objects.entry(format!("pods/{name}")).or_insert(pod);
        }
    }

    /// Where members are, and whether they serve.
    fn show_pods(&mut self) {
        let Self {
            objects,
            facts,
            running,
            ..
        } = self;
        for (path, pod) in objects {
            let Some(name) = path.strip_prefix("pods/") else {
                continue;
            };
            let member = running.get(name);
            let serves = member.is_some() && facts.leader != 0;
            pod["status"] = json!({
                "phase": "Running",
                "startTime": "2026-01-01T00:00:00Z",
                "podIP": member.map(|member| member.address.to_string()),
                "conditions": [{"type": "Ready", "status": if serves { "True" } else { "False" }}],
            });
        }
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
    let fault = {
        let mut weather = server.weather.lock();
        weather.next(request.method().as_str(), request.uri().path())
    };
    match fault {
        Some(Fault::Refused(code)) => return failure(code),
        Some(Fault::Cut) => return cut(),
        Some(Fault::Hangs) => std::future::pending().await,
        None | Some(Fault::Afterwards(_)) => {}
    }
    let response = answer(&server, request).await;
    match fault {
        Some(Fault::Afterwards(0)) => cut(),
        Some(Fault::Afterwards(code)) => failure(code),
        _ => response,
    }
}

fn failure(code: u16) -> Response {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        429 => "TooManyRequests",
        504 => "Timeout",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "status": "Failure", "reason": reason, "code": code,
        "message": format!("refused with {code}"),
    });
    (StatusCode::from_u16(code).unwrap(), axum::Json(status)).into_response()
}

/// The connection ends in the middle of the answer.
fn cut() -> Response {
    let error = std::io::Error::other("cut");
    let body = futures::stream::iter([Ok(axum::body::Bytes::from("{")), Err(error)]);
    axum::body::Body::from_stream(body).into_response()
}

async fn answer(server: &Arc<Server>, request: Request) -> Response {
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
    let or_missing = |object: Option<Value>| {
        object.map_or_else(|| failure(404), |object| axum::Json(object).into_response())
    };
    if parts.method == Method::GET {
        let Some(name) = words.get(1) else {
            return axum::Json(server.list(words[0])).into_response();
        };
        let path = format!("{}/{name}", words[0]);
        return or_missing(server.world.lock().objects.get(&path).cloned());
    }
    let name = words.get(1).copied().or(body["metadata"]["name"].as_str());
    let path = format!("{}/{}", words[0], name.unwrap());
    if parts.method == Method::POST && server.world.lock().objects.contains_key(&path) {
        return failure(409);
    }
    let (object, change) = server.write(&parts.method, &path, words.len() > 2, &body);
    if let Some(change) = change
        && server.is_deadly_change(change)
    {
        // Whoever asked does not learn of it.
        std::future::pending::<()>().await;
    }
    or_missing(object)
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
        let answer_timeout = match server.weather.lock().is_bad() {
            true => SHORT_ANSWER_TIMEOUT,
            false => ANSWER_TIMEOUT,
        };
        let client_port = {
            let mut world = server.world.lock();
            let path = "metastoreclusters/c".to_owned();
            world.objects.entry(path).or_insert(cluster);
            world.addresses.port
        };
        let server = Arc::new(server);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new()
            .fallback(serve)
            .with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let config = kube::Config::new(url.parse().unwrap());
        let client = crate::program::impatient(&config, answer_timeout).unwrap();
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
            client_port,
            client,
        };
        Self { server, context }
    }

    /// One pass. `None`: the operator died in it.
    async fn try_pass(&self) -> Option<anyhow::Result<Requeue>> {
        let object = self.get("metastoreclusters/c");
        let object: MetaStoreCluster = serde_json::from_value(object).unwrap();
        tokio::select! {
            biased;
            () = self.server.death.notified() => None,
            outcome = pass(&object, &self.context) => Some(outcome),
        }
    }

    /// One pass that nothing disturbs. Did the operator live?
    async fn pass(&self) -> bool {
        let outcome = self.try_pass().await;
        outcome.map(|outcome| outcome.unwrap()).is_some()
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
        self.server.world.lock().object(path)
    }

    fn paths(&self, plural: &str) -> Vec<String> {
        let world = self.server.world.lock();
        let all = world.all(plural);
        all.map(|(name, _)| format!("{plural}/{name}")).collect()
    }
}

#[tokio::test]
async fn operators_that_die_of_each_change_make_the_first_member_and_then_write_nothing() {
    let stage = Stage::set(Server {
        mortality: Mutex::new(Mortality::Each),
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
    stage.server.world.lock().at("services/c-peer")["spec"]["clusterIP"] = json!("10.0.0.1");
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
    let objects = stage.server.world.lock().objects.clone();
    let restless = Server {
        mortality: Mutex::new(Mortality::Each),
        is_restless: true,
        ..Server::default()
    };
    let stage = Stage::set(restless).await;
    let mut pod = pod;
    pod["metadata"]["name"] = json!(names::pod(&name));
    {
        let mut world = stage.server.world.lock();
        world.objects = objects;
        world.objects.insert("pods/c-seed-0".to_owned(), pod);
        world.at("metastoreclusters/c")["spec"]["config"]["logLevel"] = json!("warn");
    }
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
