//! Starting and stopping: clients, controllers, the Lease, health and metrics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use arc_swap::ArcSwap;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, watcher};
use kube::{Client, Config, ResourceExt};
use metastore_operator_api::{
    MetaStoreBackup, MetaStoreBackupSchedule, MetaStoreCluster, MetaStoreTask, names,
};
use metastore_operator_core::decide;
use metastore_operator_resources::{Capabilities, Cluster, Images};

use crate::backups;
use crate::lease::{self, Leadership};
use crate::observe::{follow_grown_volumes, observe, uid_of};
use crate::reconcile::{Context, after_error, reconcile};
use crate::settings::{LogFormat, Settings};
use crate::telemetry::Telemetry;

/// After this time an answer of the API server counts as lost. It gives its own requests a minute at most; nothing
/// that a pass asks for takes it that long, and a pass that hangs would be the last of its cluster.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for the Lease: it must be renewed while it is still trusted.
const LEASE_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often optional APIs are looked for: cert-manager may come after the operator.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(60);

/// Sets up the log on standard error.
pub fn init_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new("info,kube_runtime=warn,tower=warn")
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.init(),
    }
}

/// Runs the controllers until a signal.
///
/// # Errors
///
/// When Kubernetes cannot be reached at all, or the definitions are not installed: in words.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let config = Config::infer()
        .await
        .context("no way to the Kubernetes API: neither a kubeconfig nor a service account")?;
    let client = impatient(&config, ANSWER_TIMEOUT)?;
    // Watches are silent for long, and have a limit of their own.
    let watching = Client::try_from(config.clone())?;
    let context = Arc::new(make_context(settings, client.clone()).await?);
    check_definitions(settings, &client).await?;
    let listener = listen(settings.listen)
        .await
        .with_context(|| format!("listening on {}", settings.listen))?;
    let health = serve_health(listener, context.telemetry.clone());
    let background: Vec<BoxFuture<'static, ()>> = vec![
        health.boxed(),
        discover(context.clone()).boxed(),
        follow_leadership(context.clone()).boxed(),
    ];
    for task in background {
        tokio::spawn(task);
    }
    let leases: Option<Api<Lease>> = match settings.lease_namespace.as_str() {
        "" => None,
        namespace => {
            let client = impatient(&config, LEASE_ANSWER_TIMEOUT)?;
            Some(Api::namespaced(client, namespace))
        }
    };
    let holding = leases.clone().map(|api| {
        let leadership = context.leadership.clone();
        tokio::spawn(lease::hold(api, identity(settings), leadership))
    });
    let mut controllers: Vec<BoxFuture<'static, ()>> = Vec::new();
    if settings.namespaces.is_empty() {
        controllers.extend(controllers_in(&context, &watching, None));
    }
    for namespace in &settings.namespaces {
        controllers.extend(controllers_in(&context, &watching, Some(namespace)));
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        namespaces = settings.namespaces.join(","),
        "operator started"
    );
    futures::future::join_all(controllers).await;
    if let (Some(api), Some(holding)) = (leases, holding) {
        holding.abort();
        // Nothing is under way any more: another operator need not wait until the Lease has ended.
        if let Err(error) = lease::release(&api, &identity(settings)).await {
            tracing::warn!(%error, "the Lease was not given back");
        }
    }
    tracing::info!("operator stopped");
    Ok(())
}

/// A client whose calls end when the API server does not answer for so long. Not for watches.
pub(crate) fn impatient(config: &Config, answer_timeout: Duration) -> kube::Result<Client> {
    let mut config = config.clone();
    config.connect_timeout = Some(answer_timeout);
    config.read_timeout = Some(answer_timeout);
    config.write_timeout = Some(answer_timeout);
    // The time in which nobody asked anything does not count.
    config.reset_reader_on_write = true;
    // kube tries a refusal fifteen times in five minutes; a pass ends, says so, and is tried again in three seconds.
    config.default_retry = false;
    Client::try_from(config)
}

async fn make_context(settings: &Settings, client: Client) -> anyhow::Result<Context> {
    let leadership = if settings.lease_namespace.is_empty() {
        Leadership::alone()
    } else {
        Leadership::contested()
    };
    let reporter = Reporter {
        controller: names::FIELD_MANAGER.to_owned(),
        instance: Some(identity(settings)),
    };
    Ok(Context {
        images: Images {
            server_repository: settings.server_repository.clone(),
            server_version: settings.server_version.clone(),
            operator_image: settings.operator_image.clone(),
        },
        leadership,
        telemetry: Arc::new(Telemetry::new()?),
        recorder: Recorder::new(client.clone(), reporter),
        capabilities: ArcSwap::from_pointee(capabilities(&client).await),
        client_port: names::CLIENT_PORT,
        client,
    })
}

fn identity(settings: &Settings) -> String {
    if !settings.identity.is_empty() {
        return settings.identity.clone();
    }
    std::env::var("HOSTNAME").unwrap_or_else(|_| format!("process-{}", std::process::id()))
}

/// Says clearly that the definitions are missing, instead of failing again and again in a watch.
async fn check_definitions(settings: &Settings, client: &Client) -> anyhow::Result<()> {
    let clusters: Api<MetaStoreCluster> = match settings.namespaces.first() {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    match clusters.list(&ListParams::default().limit(1)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Err(anyhow!(
            "the custom resources of metastore.io/v1alpha1 are not installed: apply the files below crds/ \
             with `kubectl apply --server-side`, or install the chart metastore-operator-crds"
        )),
        Err(error) => Err(error).context("listing MetaStoreClusters"),
    }
}

async fn capabilities(client: &Client) -> Capabilities {
    let has = async |group: &str, version: &str| {
        let group = format!("{group}/{version}");
        client
            .list_api_group_resources(&group)
            .await
            .is_ok_and(|list| !list.resources.is_empty())
    };
    Capabilities {
        cert_manager: has("cert-manager.io", "v1").await,
        prometheus: has("monitoring.coreos.com", "v1").await,
    }
}

async fn discover(context: Arc<Context>) {
    loop {
        tokio::time::sleep(DISCOVERY_INTERVAL).await;
        context
            .capabilities
            .store(Arc::new(capabilities(&context.client).await));
    }
}

async fn follow_leadership(context: Arc<Context>) {
    loop {
        context.telemetry.set_leads(context.leadership.is_held());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// `0.0.0.0` means every address of the Pod, of IPv6, too, where the machine has that.
async fn listen(address: SocketAddr) -> std::io::Result<tokio::net::TcpListener> {
    use tokio::net::TcpListener;
    if address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        && let Ok(listener) = TcpListener::bind((Ipv6Addr::UNSPECIFIED, address.port())).await
    {
        return Ok(listener);
    }
    TcpListener::bind(address).await
}

async fn serve_health(listener: tokio::net::TcpListener, telemetry: Arc<Telemetry>) {
    let alive = telemetry.clone();
    let health = move || async move {
        if alive.is_alive() {
            (StatusCode::OK, "ok\n")
        } else {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "no pass has succeeded for ten minutes\n",
            )
        }
    };
    let router = Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/metrics", get(move || async move { telemetry.text() }));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "health and metrics are not served any more");
    }
}

/// The controllers of one namespace, or of all.
fn controllers_in(
    context: &Arc<Context>,
    watching: &Client,
    namespace: Option<&str>,
) -> Vec<BoxFuture<'static, ()>> {
    vec![
        clusters_controller(context, watching, namespace),
        backups::backups_controller(context, watching, namespace),
        backups::schedules_controller(context, watching, namespace),
        backups::tasks_controller(context, watching, namespace),
    ]
}

/// An API in one namespace, or in all.
pub(crate) fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    <K as kube::Resource>::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Only what the operator made.
pub(crate) fn children() -> watcher::Config {
    watcher::Config::default().labels(&format!(
        "{}={}",
        names::MANAGED_BY_LABEL,
        names::MANAGED_BY
    ))
}

fn cluster_of_label<K: kube::Resource>(object: &K) -> Option<ObjectRef<MetaStoreCluster>> {
    let meta = object.meta();
    let name = meta.labels.as_ref()?.get(names::CLUSTER_LABEL)?;
    Some(ObjectRef::new(name).within(meta.namespace.as_deref()?))
}

fn clusters_controller(
    context: &Arc<Context>,
    client: &Client,
    namespace: Option<&str>,
) -> BoxFuture<'static, ()> {
    let controller = Controller::new(
        scoped::<MetaStoreCluster>(client, namespace),
        watcher::Config::default(),
    )
    .watches(
        scoped::<StatefulSet>(client, namespace),
        children(),
        |set| cluster_of_label(&set),
    )
    .watches(scoped::<Pod>(client, namespace), children(), |pod| {
        cluster_of_label(&pod)
    })
    .watches(
        scoped::<MetaStoreTask>(client, namespace),
        watcher::Config::default(),
        |task| {
            let namespace = task.namespace()?;
            Some(ObjectRef::new(&task.spec.cluster_ref.name).within(&namespace))
        },
    )
    .with_config(
        kube::runtime::controller::Config::default()
            .debounce(Duration::from_millis(200))
            .concurrency(8),
    )
    .shutdown_on_signal();
    controller
        .run(reconcile, after_error, context.clone())
        .for_each(|_| async {})
        .boxed()
}

/// The jobs of backups, for their controller.
pub(crate) fn jobs(client: &Client, namespace: Option<&str>) -> Api<Job> {
    scoped(client, namespace)
}

/// The schedules, for their controller.
pub(crate) fn schedules(client: &Client, namespace: Option<&str>) -> Api<MetaStoreBackupSchedule> {
    scoped(client, namespace)
}

/// The backups, for their controllers.
pub(crate) fn all_backups(client: &Client, namespace: Option<&str>) -> Api<MetaStoreBackup> {
    scoped(client, namespace)
}

/// Prints what would be done next for a cluster, and why. `change` is a merge patch of its spec, to try out.
///
/// # Errors
///
/// When Kubernetes cannot be reached, there is no such cluster, or the change makes no valid spec.
pub async fn plan(
    settings: &Settings,
    namespace: &str,
    name: &str,
    change: Option<&str>,
) -> anyhow::Result<()> {
    let client = Client::try_default().await?;
    let context = make_context(settings, client.clone()).await?;
    let api: Api<MetaStoreCluster> = Api::namespaced(client, namespace);
    let mut object = api
        .get_opt(name)
        .await?
        .ok_or_else(|| anyhow!("there is no MetaStoreCluster {namespace}/{name}"))?;
    if let Some(change) = change {
        let change = serde_json::from_str(change).context("the change of the spec is no JSON")?;
        let mut spec = serde_json::to_value(&object.spec)?;
        merge(&mut spec, change);
        object.spec = serde_json::from_value(spec).context("the changed spec is none")?;
    }
    follow_grown_volumes(&context.client, &mut object).await?;
    let uid = uid_of(&object);
    let cluster = Cluster {
        name,
        namespace,
        uid: &uid,
        spec: &object.spec,
        images: &context.images,
    };
    let now = Timestamp::now();
    let seen = observe(&context, &object, &cluster, now).await?;
    let decision = decide(&object.spec, &seen.observation, now);
    println!("next:  {:?}", decision.action);
    println!("why:   {}", decision.why);
    println!(
        "phase: {:?}, ready {}",
        decision.status.phase, decision.status.ready
    );
    for condition in &decision.status.conditions {
        println!(
            "  {:<20} {:<8} {:<24} {}",
            condition.type_, condition.status, condition.reason, condition.message
        );
    }
    Ok(())
}

/// JSON merge patch (RFC 7396).
fn merge(target: &mut serde_json::Value, change: serde_json::Value) {
    let serde_json::Value::Object(change) = change else {
        *target = change;
        return;
    };
    if !target.is_object() {
        *target = serde_json::Value::Object(serde_json::Map::new());
    }
    for (key, value) in change {
        if value.is_null() {
            if let Some(fields) = target.as_object_mut() {
                fields.remove(&key);
            }
        } else {
            merge(&mut target[&key], value);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]
mod tests {
    use serde_json::json;

    /// On a machine without IPv6 it is the address that was asked for.
    #[tokio::test]
    async fn every_address_means_those_of_both_kinds() {
        let listener = super::listen("0.0.0.0:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .unwrap();
        if std::net::TcpListener::bind("[::1]:0").is_ok() {
            tokio::net::TcpStream::connect(("::1", port)).await.unwrap();
        }
        let one = super::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert!(one.local_addr().unwrap().is_ipv4());
    }

    #[test]
    fn a_merge_patch_sets_removes_and_goes_deep() {
        let mut spec = json!({"replicas": 3, "config": {"quota": "1Gi", "logLevel": "info"}});
        super::merge(
            &mut spec,
            json!({"replicas": 5, "config": {"quota": null}, "storage": {"size": "2Gi"}}),
        );
        let wanted =
            json!({"replicas": 5, "config": {"logLevel": "info"}, "storage": {"size": "2Gi"}});
        assert_eq!(spec, wanted);
    }
}
