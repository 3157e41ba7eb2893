//! An operator that is killed after each change that it makes, before it learns of it; another one takes its place.
//!
//! It reaches the API server through a proxy, which lets a call through, and when that has changed something, keeps the
//! answer to itself and kills the operator. Calls that find everything as it should be change nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::stage::{Stage, example, is_running};
use crate::writers::{Access, Writer};

const NAME: &str = "example";
/// Of a request and of an answer that is looked into.
const BODY_BYTES_MAX: usize = 16 << 20;
/// Between the death of an operator and the start of the next.
const PAUSE: Duration = Duration::from_millis(50);
/// When the test fails.
const DEATHS_SHOWN: usize = 60;
const LINES_SHOWN: usize = 60;

/// A cluster forms, grows, rolls and shrinks under operators of which each makes one change.
pub async fn operators_that_make_one_change_each(stage: &mut Stage) {
    stage.kill_operator("first");
    let mortals = Mortals::start(stage).await;
    let access = Access::plain();
    stage.apply(&example("cluster.yaml").replace("replicas: 3", "replicas: 1"));
    stage
        .wait_for(NAME, "one member serves", is_running(1))
        .await;
    let writer = Writer::start(stage, &access, NAME, "writer/");
    stage.kubectl(&["scale", "msc", NAME, "--replicas=3"]);
    stage
        .wait_for(NAME, "three members serve", is_running(3))
        .await;
    stage.patch(NAME, r#"{"spec":{"config":{"logLevel":"warn"}}}"#);
    stage
        .wait_for(NAME, "they have the new configuration", is_running(3))
        .await;
    let lost = stage.members(NAME).await.into_iter().next().unwrap();
    stage.lose_volume(&lost);
    stage
        .wait_for(
            NAME,
            "a member without a volume is replaced",
            crate::life::runs_without(&lost),
        )
        .await;
    stage.kubectl(&["scale", "msc", NAME, "--replicas=1"]);
    stage
        .wait_for(NAME, "one member is left", is_running(1))
        .await;
    writer.stop().await.check(stage, &access, NAME).await;
    let deaths = mortals.deaths();
    eprintln!("  {deaths} operators died");
    assert!(deaths > 60, "only {deaths} operators died");
    drop(mortals);
    stage.start_operator("last");
    stage.delete_cluster(NAME).await;
}

#[derive(Default)]
struct Fate {
    operator: Option<Child>,
    /// The calls of which operators died.
    deaths: Vec<String>,
    /// Nobody follows the one that lives.
    is_over: bool,
    /// What versions of objects there have been: an answer with one of them has changed nothing.
    versions: BTreeSet<String>,
}

impl Fate {
    /// Kills the operator that lives. Was there one?
    fn strike(&mut self) -> bool {
        let Some(mut operator) = self.operator.take() else {
            return false;
        };
        let _ = operator.kill();
        let _ = operator.wait();
        true
    }
}

struct Mortals {
    fate: Arc<Mutex<Fate>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    /// What all operators said.
    log: PathBuf,
}

impl Drop for Mortals {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        let mut fate = self.fate.lock().unwrap();
        fate.is_over = true;
        fate.strike();
        if std::thread::panicking() {
            let first = fate.deaths.len().saturating_sub(DEATHS_SHOWN);
            eprintln!("--- operators died of\n{}", fate.deaths[first..].join("\n"));
            let text = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let first = lines.len().saturating_sub(LINES_SHOWN);
            eprintln!("--- operators said\n{}", lines[first..].join("\n"));
        }
    }
}

#[derive(Clone)]
struct Proxy {
    client: kube::Client,
    fate: Arc<Mutex<Fate>>,
}

impl Mortals {
    async fn start(stage: &Stage) -> Self {
        let fate = Arc::new(Mutex::new(Fate::default()));
        let proxy = Proxy {
            // With the operator's own rights.
            client: stage.operator_client().await,
            fate: fate.clone(),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().fallback(pass_on).with_state(proxy);
        let serving = tokio::spawn(async move {
            axum::serve(listener, router)
                .await
                .expect("the proxy serves");
        });
        let config = stage.plane.path("proxy.kubeconfig");
        fs::write(
            &config,
            format!(
                "apiVersion: v1\nkind: Config\nclusters: [{{name: test, cluster: {{server: 'http://{address}'}}}}]\n\
                 contexts: [{{name: test, context: {{cluster: test, user: user}}}}]\nusers: [{{name: user, user: {{}}}}]\n\
                 current-context: test\n"
            ),
        )
        .unwrap();
        let log = stage.plane.path("mortals.log");
        let restarting = tokio::spawn(restart(fate.clone(), config, log.clone()));
        Self {
            fate,
            tasks: vec![serving, restarting],
            log,
        }
    }

    fn deaths(&self) -> usize {
        self.fate.lock().unwrap().deaths.len()
    }
}

/// As soon as an operator is dead, the next one starts.
async fn restart(fate: Arc<Mutex<Fate>>, config: PathBuf, log: PathBuf) {
    loop {
        {
            let mut fate = fate.lock().unwrap();
            if fate.is_over {
                return;
            }
            let is_gone = match &mut fate.operator {
                Some(operator) => matches!(operator.try_wait(), Ok(Some(_))),
                None => true,
            };
            if is_gone {
                let file = fs::File::options()
                    .create(true)
                    .append(true)
                    .open(&log)
                    .unwrap();
                let operator = Command::new(env!("CARGO_BIN_EXE_metastore-operator"))
                    .env("KUBECONFIG", &config)
                    .env("NO_COLOR", "1")
                    // Without a Lease: the next one need not wait until that of the dead has ended.
                    .args([
                        "--lease-namespace",
                        "",
                        "--listen",
                        "127.0.0.1:0",
                        "--log-format",
                        "text",
                    ])
                    .stdin(Stdio::null())
                    .stdout(file.try_clone().unwrap())
                    .stderr(file)
                    .spawn()
                    .expect("the operator starts");
                fate.operator = Some(operator);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn pass_on(State(proxy): State<Proxy>, request: Request) -> Response {
    let method = request.method().clone();
    let may_change = !matches!(method, Method::GET | Method::HEAD);
    let path = request.uri().path().to_owned();
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(header::HOST);
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let request = axum::http::Request::from_parts(parts, kube::client::Body::from(body));
    let answer = match proxy.client.send(request).await {
        Ok(answer) => answer,
        Err(error) => return (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    };
    // An Event is told after the fact.
    if !may_change || !answer.status().is_success() || path.ends_with("/events") {
        return answer.map(Body::new);
    }
    let (mut parts, body) = answer.into_parts();
    // It is one piece now.
    parts.headers.remove(header::TRANSFER_ENCODING);
    let bytes = body.collect_bytes().await.unwrap_or_default();
    let object: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    // Without a version: a deletion.
    let version = object["metadata"]["resourceVersion"].as_str().unwrap_or("");
    let version = format!("{path} {version}");
    let mut fate = proxy.fate.lock().unwrap();
    let has_changed = fate.versions.insert(version.clone()) || object["kind"] == "Status";
    if has_changed && fate.strike() {
        fate.deaths.push(format!("{method} {version}"));
    }
    drop(fate);
    Response::from_parts(parts, Body::from(bytes))
}
