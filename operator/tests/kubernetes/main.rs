//! The operator on a real Kubernetes API server.
//!
//! Real: kube-apiserver, kube-controller-manager, their store, the operator as a process with exactly the
//! rights of its chart, the members as processes, kubectl and helm. Played by the test: the kubelet, which
//! runs Pods as processes of this machine ([`kubelet`]).
//!
//! `make e2e-kubernetes` runs it; `tests/kubernetes/install.sh` builds the programs once. The variable
//! `METASTORE_KUBERNETES_SERVER` says what the members are: `metastore`, or a real `etcd`, to tell faults of the
//! operator from faults of the server.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

mod control_plane;
mod kubelet;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use metastore_operator_api::MetaStoreCluster;
use metastore_tests::eventually;
use metastore_tests::member::free_port;
use serde_json::Value;

use control_plane::{ControlPlane, Process, root};
use kubelet::{ImagePrograms, Kubelet, Shared};

/// Everything that one operation of the operator may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);
const NAMESPACE: &str = "default";

/// The whole stage.
struct Stage {
    plane: ControlPlane,
    client: Client,
    shared: Arc<Mutex<Shared>>,
    operator: Option<Process>,
    operator_config: PathBuf,
}

/// etcd's programs, which other tests compare with; the store of the API server, too.
fn etcd_programs() -> PathBuf {
    let output = Command::new(root().join("tests/tools/install.sh"))
        .output()
        .expect("the installer runs");
    let text = String::from_utf8(output.stdout).unwrap();
    PathBuf::from(text.lines().last().expect("it prints a folder"))
}

impl Stage {
    /// Sets the stage.
    async fn set() -> Self {
        let server = std::env::var("METASTORE_KUBERNETES_SERVER").expect(
            "METASTORE_KUBERNETES_SERVER is etcd or metastore: `make e2e-kubernetes` sets it",
        );
        let programs = control_plane::programs()
            .expect("kube-apiserver is built once by `make kubernetes-tools`");
        let can_unshare = Command::new("unshare")
            .args(if rustix::process::geteuid().is_root() {
                &["--mount", "true"][..]
            } else {
                &["--map-root-user", "--mount", "true"][..]
            })
            .status()
            .is_ok_and(|status| status.success());
        assert!(
            can_unshare,
            "this machine does not allow mount namespaces (unshare --mount)"
        );
        // One library for cryptography; the second test of a process finds it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let etcd = etcd_programs();
        let own = root().join("target/debug");
        let uses_etcd = match server.as_str() {
            "etcd" => true,
            "metastore" => false,
            other => panic!("METASTORE_KUBERNETES_SERVER={other} is neither etcd nor metastore"),
        };
        let images = ImagePrograms {
            server: if uses_etcd {
                etcd.join("etcd")
            } else {
                own.join("metastore")
            },
            operator: PathBuf::from(env!("CARGO_BIN_EXE_metastore-operator")),
            utility: if uses_etcd {
                etcd.join("etcdutl")
            } else {
                own.join("metastoreutl")
            },
        };
        // Our own server holds the objects of Kubernetes, too.
        let store = images.server.clone();
        let plane = ControlPlane::start(programs, &store).await;
        let client = plane.admin().await;
        let shared = Kubelet::start(client.clone(), plane.path("kubelet"), images);
        plane
            .apply(
                "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
  annotations: {storageclass.kubernetes.io/is-default-class: 'true'}
provisioner: test.metastore.io/folder
allowVolumeExpansion: true
",
            )
            .unwrap();
        let mut stage = Self {
            operator_config: plane.user_config("metastore-operator"),
            plane,
            client,
            shared,
            operator: None,
        };
        stage.install_chart("metastore-operator-crds", &[]);
        stage.install_chart(
            "metastore-operator",
            &["--set", "replicas=0", "--namespace", NAMESPACE],
        );
        stage.grant_operator_its_roles();
        stage.start_operator();
        stage
    }

    /// Renders a chart with helm and applies it, as `helm install` does.
    fn install_chart(&self, chart: &str, arguments: &[&str]) {
        let output = Command::new(self.plane.programs.join("helm"))
            .args(["template", "test"])
            .arg(root().join("charts").join(chart))
            .args(["--skip-tests"])
            .args(arguments)
            .output()
            .expect("helm runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let yaml = String::from_utf8(output.stdout).unwrap();
        self.plane.apply(&yaml).unwrap();
    }

    /// The user of the operator's kubeconfig gets the roles of its service account, and nothing else.
    fn grant_operator_its_roles(&self) {
        self.plane
            .apply(
                "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: operator-user}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: test}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: metastore-operator}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: operator-user, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: test-lease}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: metastore-operator}]
",
            )
            .unwrap();
    }

    fn start_operator(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metastore-operator"));
        command
            .env("KUBECONFIG", &self.operator_config)
            .args(["--listen", &format!("127.0.0.1:{}", free_port())])
            .args([
                "--lease-namespace",
                NAMESPACE,
                "--identity",
                "test",
                "--log-format",
                "text",
            ]);
        let log = self.plane.path(&format!("operator-{}.log", free_port()));
        self.operator = Some(Process::start(command, log));
    }

    fn clusters(&self) -> Api<MetaStoreCluster> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    fn apply(&self, yaml: &str) {
        self.plane.apply(yaml).unwrap();
    }

    fn patch(&self, name: &str, change: &str) {
        let (ok, text) = self.plane.kubectl(&[
            "patch",
            "metastorecluster",
            name,
            "--type=merge",
            "--patch",
            change,
        ]);
        assert!(ok, "{text}");
    }

    /// Waits until a condition of a cluster is as wanted, for its current generation.
    async fn wait_for(&self, name: &str, what: &str, is_so: impl Fn(&MetaStoreCluster) -> bool) {
        let api = self.clusters();
        let started = Instant::now();
        let waited = eventually(what, LIMIT, || async {
            let cluster = api.get(name).await.map_err(|error| error.to_string())?;
            let status = cluster.status.clone().unwrap_or_default();
            let is_current = status.observed_generation == cluster.metadata.generation;
            if is_current && is_so(&cluster) {
                return Ok(());
            }
            let conditions: Vec<_> = status
                .conditions
                .iter()
                .map(|c| format!("{}={} {}", c.type_, c.status, c.message))
                .collect();
            Err(format!("{:?} {}", status.members, conditions.join("\n  ")))
        });
        tokio::pin!(waited);
        // On failure the logs say why.
        let result = std::panic::AssertUnwindSafe(waited);
        match futures::FutureExt::catch_unwind(result).await {
            Ok(()) => eprintln!("  {what}: {:.1} s", started.elapsed().as_secs_f64()),
            Err(panic) => {
                self.show_logs(name);
                std::panic::resume_unwind(panic);
            }
        }
    }

    fn show_logs(&self, cluster: &str) {
        if let Some(operator) = &self.operator {
            eprintln!("--- operator\n{}", operator.tail());
        }
        let pods = self.plane.path("kubelet").join("pods");
        for entry in fs::read_dir(pods).into_iter().flatten().flatten() {
            for log in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                if log
                    .path()
                    .extension()
                    .is_some_and(|extension| extension == "log")
                {
                    let text = fs::read_to_string(log.path()).unwrap_or_default();
                    let lines: Vec<_> = text.lines().rev().take(6).collect();
                    eprintln!(
                        "--- {cluster} {}\n{}",
                        log.path().display(),
                        lines.join("\n")
                    );
                }
            }
        }
    }

    /// Addresses of the members that are ready.
    async fn addresses(&self, cluster: &str) -> Vec<String> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let selector = ListParams::default().labels(&format!("metastore.io/cluster={cluster}"));
        let pods = api.list(&selector).await.unwrap();
        pods.iter()
            .filter(|pod| pod.labels().contains_key("metastore.io/member"))
            .filter_map(|pod| pod.status.as_ref()?.pod_ip.clone())
            .collect()
    }

    /// Which Pod of a name it is, and how often its container started anew.
    async fn incarnation(&self, pod: &str) -> Option<(String, i32)> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let pod = api.get_opt(pod).await.ok().flatten()?;
        let containers = pod.status.clone()?.container_statuses?;
        Some((pod.uid()?, containers.first()?.restart_count))
    }

    /// Waits until a Pod is another one than before, or its container has started anew.
    async fn wait_for_restart(&self, pod: &str, before: &Option<(String, i32)>) {
        eventually("the Pod has started anew", LIMIT, || async {
            match self.incarnation(pod).await {
                Some(now) if Some(&now) != before.as_ref() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    async fn members(&self, cluster: &str) -> BTreeSet<String> {
        let status = self
            .clusters()
            .get(cluster)
            .await
            .unwrap()
            .status
            .unwrap_or_default();
        status
            .members
            .into_iter()
            .map(|member| member.name)
            .collect()
    }
}

fn condition(cluster: &MetaStoreCluster, kind: &str) -> String {
    let status = cluster.status.clone().unwrap_or_default();
    status
        .conditions
        .into_iter()
        .find(|condition| condition.type_ == kind)
        .map_or_else(|| "missing".to_owned(), |condition| condition.status)
}

fn is_running(replicas: i32) -> impl Fn(&MetaStoreCluster) -> bool {
    move |cluster| {
        condition(cluster, "AllMembersReady") == "True"
            && condition(cluster, "AllMembersUpdated") == "True"
            && condition(cluster, "Available") == "True"
            && cluster
                .status
                .as_ref()
                .is_some_and(|status| status.voters == replicas)
    }
}

/// Clients that write all the time, and remember what was acknowledged.
struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    longest_gap_ms: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Writers {
    /// One writer that tries the members in turn, finding them as the client Service would.
    fn start(client: Client, cluster: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let longest_gap_ms = Arc::new(AtomicU64::new(0));
        let selector = ListParams::default().labels(&format!("metastore.io/cluster={cluster}"));
        let (stopped, written, gap) = (stop.clone(), acknowledged.clone(), longest_gap_ms.clone());
        let task = tokio::spawn(async move {
            let api: Api<Pod> = Api::namespaced(client, NAMESPACE);
            let mut number = 0u64;
            let mut last = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let pods = api
                    .list(&selector)
                    .await
                    .map(|list| list.items)
                    .unwrap_or_default();
                let addresses = pods
                    .iter()
                    .filter(|pod| pod.labels().contains_key("metastore.io/member"))
                    .filter_map(|pod| pod.status.as_ref()?.pod_ip.clone());
                for address in addresses {
                    let endpoint = format!("http://{address}:2379");
                    let store =
                        metastore_tests::Client::with_timeout(&endpoint, Duration::from_secs(1));
                    for _ in 0..5 {
                        number += 1;
                        let key = format!("writer/{number:08}");
                        if store.put(key.clone(), key.clone()).await.is_err() {
                            break;
                        }
                        let passed = u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX);
                        gap.fetch_max(passed, Ordering::Relaxed);
                        last = Instant::now();
                        written.lock().unwrap().push(key);
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self {
            stop,
            acknowledged,
            longest_gap_ms,
            task,
        }
    }

    /// The longest time without an acknowledged write since the last call.
    fn take_gap(&self, what: &str) {
        let gap_ms = self.longest_gap_ms.swap(0, Ordering::Relaxed);
        eprintln!("  {what}: no write was acknowledged for at most {gap_ms} ms");
    }

    /// Stops, and looks for every acknowledged write.
    async fn check(self, stage: &Stage, cluster: &str) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let written = self.acknowledged.lock().unwrap().clone();
        assert!(
            written.len() > 20,
            "the writer hardly wrote: {}",
            written.len()
        );
        let addresses = stage.addresses(cluster).await;
        let store = metastore_tests::Client::new(&format!("http://{}:2379", addresses[0]));
        let mut missing = Vec::new();
        for key in &written {
            let (found, _) = store.get(key.clone()).await.unwrap();
            if found.is_none() {
                missing.push(key.clone());
            }
        }
        assert!(
            missing.is_empty(),
            "acknowledged writes are lost: {missing:?}"
        );
        eprintln!("  {} acknowledged writes, all there", written.len());
    }
}

fn example(name: &str) -> String {
    fs::read_to_string(root().join("examples/kubernetes").join(name)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "some minutes long, and it needs kube-apiserver: `make e2e-kubernetes` runs it"]
async fn the_operator_keeps_clusters_alive_on_a_real_api_server() {
    let mut stage = Stage::set().await;
    charts_are_accepted(&stage);
    rules_of_the_definitions(&stage);
    life_of_a_cluster(&mut stage).await;
    secure_cluster(&stage).await;
    backup_and_restore(&stage).await;
    no_call_was_forbidden(&stage);
}

/// All charts: helm's own checks, every switch, unknown values, and whether the API server takes the result.
fn charts_are_accepted(stage: &Stage) {
    eprintln!("charts");
    let helm = |arguments: &[&str], chart: &str| {
        let output = Command::new(stage.plane.programs.join("helm"))
            .args(arguments)
            .arg(root().join("charts").join(chart))
            .output()
            .expect("helm runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text, error)
    };
    let charts: [(&str, &[&str]); 4] = [
        ("metastore-operator-crds", &["keep=false"]),
        (
            "metastore-operator",
            &[
                "networkPolicy.enabled=true",
                "watch.namespaces={default,kube-system}",
                "monitoring.dashboard=true",
                "rbac.aggregateClusterRoles=false",
                "priorityClassName=system-cluster-critical",
                "image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
                "global.imageRegistry=registry.example.com",
                "replicas=2",
            ],
        ),
        (
            "metastore-cluster",
            &[
                "name=other",
                "spec.replicas=5",
                "backups.nightly.schedule=0 3 * * *,backups.nightly.store.pvc.claimName=backups",
            ],
        ),
        (
            "metastore",
            &[
                "replicaCount=5",
                "persistence.enabled=false",
                "networkPolicy.enabled=true",
                "pdb.create=false",
                "service.type=NodePort",
                "quotaBackendBytes=4294967296",
                "autoCompactionRetention=1h",
                "auth.client.secureTransport=true,auth.client.existingSecret=a,auth.client.enableAuthentication=true",
                "auth.peer.secureTransport=true,auth.peer.existingSecret=b",
            ],
        ),
    ];
    for (chart, switches) in charts {
        let (ok, text, error) = helm(&["lint", "--strict"], chart);
        assert!(ok, "{chart}: {text}{error}");
        for switch in switches.iter().chain(&["global.any=thing"]) {
            let (ok, text, error) = helm(
                &[
                    "template",
                    "try",
                    "--namespace",
                    NAMESPACE,
                    "--skip-tests",
                    "--set",
                    switch,
                ],
                chart,
            );
            assert!(ok, "{chart} with {switch}: {error}");
            let file = stage.plane.path("chart.yaml");
            fs::write(&file, &text).unwrap();
            let file = file.display().to_string();
            let (ok, text) = stage.plane.kubectl(&[
                "apply",
                "--server-side",
                "--force-conflicts",
                "--dry-run=server",
                "-f",
                &file,
            ]);
            assert!(ok, "{chart} with {switch}: {text}");
        }
        let (ok, _, error) = helm(&["template", "try", "--set", "nonsense=1"], chart);
        assert!(
            !ok && error.contains("nonsense"),
            "{chart} takes unknown values: {error}"
        );
    }
    // With the Prometheus operator's kinds, which this API server does not know.
    for (chart, switch) in [
        (
            "metastore-operator",
            "monitoring.podMonitor=true,monitoring.prometheusRule=true",
        ),
        (
            "metastore",
            "metrics.podMonitor.enabled=true,metrics.prometheusRule.enabled=true",
        ),
    ] {
        let (ok, text, error) = helm(&["template", "try", "--set", switch], chart);
        assert!(
            ok && text.contains("PrometheusRule") && text.contains("PodMonitor"),
            "{error}"
        );
    }
}

/// Each rule refuses a bad object with its own words.
fn rules_of_the_definitions(stage: &Stage) {
    eprintln!("rules");
    let cluster = |spec: &str| {
        format!(
            "apiVersion: metastore.io/v1alpha1\nkind: MetaStoreCluster\nmetadata: {{name: rules}}\nspec: {spec}\n"
        )
    };
    for (spec, words) in [
        ("{replicas: 2}", "replicas must be 1, 3, 5 or 7"),
        ("{version: latest}", "spec.version"),
        ("{bootstrap: {}}", "exactly one of new and restore"),
        (
            "{bootstrap: {restore: {}}}",
            "exactly one of backupRef and source",
        ),
        (
            "{config: {quota: 20Gi}, storage: {size: 10Gi}}",
            "must not be larger than storage.size",
        ),
        (
            "{config: {extraConfig: {data-dir: /x}}}",
            "extraConfig must not name keys",
        ),
        ("{tls: {client: {mode: Required}}}", "issuer must be set"),
        (
            "{tls: {issuer: {operatorCA: {}, certManager: {issuerRef: {name: a}}}}}",
            "exactly one of certManager",
        ),
        ("{progressDeadline: soon}", "progressDeadline"),
        ("{storage: {size: much}}", "storage.size"),
        ("{deletion: {policy: Maybe}}", "deletion.policy"),
        ("{nonsense: 1}", "nonsense"),
    ] {
        let refusal = stage.plane.apply(&cluster(spec)).unwrap_err();
        assert!(refusal.contains(words), "{spec}: {refusal}");
    }
    // Paused, so that nothing is made of it.
    stage.apply(&cluster("{paused: true, storage: {size: 10Gi}}"));
    for (spec, words) in [
        ("{paused: true, storage: {size: 5Gi}}", "may only grow"),
        (
            "{paused: true, storage: {size: 10Gi, storageClassName: x}}",
            "storageClassName is immutable",
        ),
        (
            "{paused: true, clusterDomain: a.b}",
            "clusterDomain is immutable",
        ),
        (
            "{paused: true, bootstrap: {restore: {backupRef: {name: x}}}}",
            "spec.bootstrap",
        ),
        (
            "{paused: true, tls: {peer: {mode: Required}, issuer: {operatorCA: {}}}}",
            "peer.mode is immutable",
        ),
    ] {
        let refusal = stage.plane.apply(&cluster(spec)).unwrap_err();
        assert!(refusal.contains(words), "{spec}: {refusal}");
    }
    stage.apply(&cluster(
        "{paused: true, storage: {size: 20Gi}, replicas: 5}",
    ));
    let task = |spec: &str| {
        format!(
            "apiVersion: metastore.io/v1alpha1\nkind: MetaStoreTask\nmetadata: {{name: t}}\nspec: {spec}\n"
        )
    };
    let refusal = stage
        .plane
        .apply(&task("{clusterRef: {name: a}}"))
        .unwrap_err();
    assert!(refusal.contains("exactly one of defrag"), "{refusal}");
    let both = task("{clusterRef: {name: a}, defrag: {}, compact: {}}");
    assert!(stage.plane.apply(&both).is_err());
    let backup = "apiVersion: metastore.io/v1alpha1\nkind: MetaStoreBackup\nmetadata: {name: b}\nspec: {clusterRef: {name: a}, store: {}}\n";
    let refusal = stage.plane.apply(backup).unwrap_err();
    assert!(refusal.contains("exactly one of s3"), "{refusal}");
    stage
        .plane
        .kubectl(&["delete", "metastorecluster", "rules"]);
}

/// Forming, growing, rolling, losing a member, losing a volume, shrinking, sleeping, with a writer.
async fn life_of_a_cluster(stage: &mut Stage) {
    eprintln!("life of a cluster");
    stage.apply(&example("cluster.yaml"));
    stage
        .wait_for("example", "three members serve", is_running(3))
        .await;
    let (ok, text) = stage.plane.kubectl(&["get", "msc", "example"]);
    assert!(ok && text.contains("3/3"), "{text}");
    let first_members = stage.members("example").await;
    let writers = Writers::start(stage.client.clone(), "example");

    // Through the scale subresource, as an autoscaler does.
    let (ok, text) = stage
        .plane
        .kubectl(&["scale", "msc", "example", "--replicas=5"]);
    assert!(ok, "{text}");
    stage
        .wait_for("example", "five members serve", is_running(5))
        .await;
    writers.take_gap("growing");
    let (ok, text) = stage
        .plane
        .kubectl(&["scale", "msc", "example", "--replicas=3"]);
    assert!(ok, "{text}");
    stage
        .wait_for("example", "three members are left", is_running(3))
        .await;
    writers.take_gap("shrinking");

    // The operator dies in the middle of a roll and another goes on.
    stage.patch("example", r#"{"spec":{"config":{"logLevel":"warn"}}}"#);
    eventually("the roll has begun", LIMIT, || async {
        let cluster = stage
            .clusters()
            .get("example")
            .await
            .map_err(|e| e.to_string())?;
        match condition(&cluster, "AllMembersUpdated").as_str() {
            "False" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    stage.operator = None;
    stage.start_operator();
    stage
        .wait_for(
            "example",
            "every member has the new configuration",
            is_running(3),
        )
        .await;
    writers.take_gap("rolling");

    // kill -9: the member comes back by itself.
    let name = stage.members("example").await.into_iter().next().unwrap();
    let pod = format!("{name}-0");
    let process = stage.shared.lock().unwrap().processes[&pod];
    let before = stage.incarnation(&pod).await;
    kubelet::signal(process, rustix::process::Signal::KILL);
    stage.wait_for_restart(&pod, &before).await;
    stage
        .wait_for("example", "the killed member serves again", is_running(3))
        .await;
    writers.take_gap("kill -9");

    // A volume is lost: another member takes the place.
    let claim = format!("{name}-data");
    let (ok, text) = stage
        .plane
        .kubectl(&["delete", "pvc", &claim, "--wait=false"]);
    assert!(ok, "{text}");
    let (ok, text) = stage
        .plane
        .kubectl(&["delete", "pod", &pod, "--wait=false"]);
    assert!(ok, "{text}");
    let gone = name.clone();
    stage
        .wait_for(
            "example",
            "a new member has replaced the one without a volume",
            move |cluster| {
                let status = cluster.status.clone().unwrap_or_default();
                is_running(3)(cluster) && status.members.iter().all(|member| member.name != gone)
            },
        )
        .await;
    writers.take_gap("lost volume");
    assert_ne!(stage.members("example").await, first_members);

    // A StatefulSet is deleted by hand: the member comes back with its volume.
    let name = stage.members("example").await.into_iter().next().unwrap();
    let pod = format!("{name}-0");
    let before = stage.incarnation(&pod).await;
    let (ok, text) = stage.plane.kubectl(&["delete", "statefulset", &name]);
    assert!(ok, "{text}");
    stage.wait_for_restart(&pod, &before).await;
    let again = name.clone();
    stage
        .wait_for(
            "example",
            "the deleted StatefulSet is back",
            move |cluster| {
                let status = cluster.status.clone().unwrap_or_default();
                is_running(3)(cluster) && status.members.iter().any(|member| member.name == again)
            },
        )
        .await;
    writers.check(stage, "example").await;

    // Growing a volume, and sleeping.
    stage.patch("example", r#"{"spec":{"storage":{"size":"2Gi"}}}"#);
    let api: Api<k8s_openapi::api::core::v1::PersistentVolumeClaim> =
        Api::namespaced(stage.client.clone(), NAMESPACE);
    eventually("the volumes have grown", LIMIT, || async {
        let selector = ListParams::default().labels("metastore.io/cluster=example");
        let claims = api
            .list(&selector)
            .await
            .map_err(|error| error.to_string())?;
        let sizes: Vec<_> = claims
            .iter()
            .filter_map(|c| {
                c.status
                    .as_ref()?
                    .capacity
                    .as_ref()?
                    .get("storage")
                    .cloned()
            })
            .map(|quantity| quantity.0)
            .collect();
        if sizes.iter().all(|size| size == "2Gi") {
            Ok(())
        } else {
            Err(format!("{sizes:?}"))
        }
    })
    .await;
    stage
        .wait_for("example", "the new quota is there", is_running(3))
        .await;
    stage.patch("example", r#"{"spec":{"hibernated":true}}"#);
    eventually("nobody runs", LIMIT, || async {
        match stage.addresses("example").await.len() {
            0 => Ok(()),
            count => Err(format!("{count} Pods")),
        }
    })
    .await;
    stage.patch("example", r#"{"spec":{"hibernated":false}}"#);
    stage
        .wait_for("example", "everybody is awake", is_running(3))
        .await;

    // A cluster that is deleted leaves its volumes, and one of the same name takes them up.
    let store = first_client(stage, "example").await;
    store.put("kept", "yes").await.unwrap();
    let (ok, text) = stage
        .plane
        .kubectl(&["delete", "msc", "example", "--timeout=60s"]);
    assert!(ok, "{text}");
    eventually("the Pods are gone", LIMIT, || async {
        match stage.addresses("example").await.len() {
            0 => Ok(()),
            count => Err(format!("{count} Pods")),
        }
    })
    .await;
    stage.apply(&example("cluster.yaml").replace("1Gi", "2Gi"));
    stage
        .wait_for("example", "the old data serves again", is_running(3))
        .await;
    let store = first_client(stage, "example").await;
    assert!(
        store.get("kept").await.unwrap().0.is_some(),
        "the data of the old cluster is there"
    );
    let (ok, text) = stage
        .plane
        .kubectl(&["delete", "msc", "example", "--timeout=60s"]);
    assert!(ok, "{text}");
}

async fn first_client(stage: &Stage, cluster: &str) -> metastore_tests::Client {
    let addresses = stage.addresses(cluster).await;
    metastore_tests::Client::new(&format!("http://{}:2379", addresses[0]))
}

/// TLS from the operator's own authority, and authentication.
async fn secure_cluster(stage: &Stage) {
    eprintln!("secure cluster");
    stage.apply(&example("secure-cluster.yaml"));
    stage
        .wait_for("secure", "a member serves with TLS", |cluster| {
            is_running(1)(cluster) && condition(cluster, "CertificatesReady") == "True"
        })
        .await;
    // Who speaks plain text is not answered.
    let addresses = stage.addresses("secure").await;
    let plain = metastore_tests::Client::with_timeout(
        &format!("http://{}:2379", addresses[0]),
        Duration::from_secs(2),
    );
    assert!(
        plain.put("a", "b").await.is_err(),
        "plain text must be refused"
    );
    // A user without a password may not write.
    eventually("authentication is on", LIMIT, || async {
        let (_, text) = stage
            .plane
            .kubectl(&["get", "events.events.k8s.io", "-o", "json"]);
        let events: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let is_on = events["items"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|event| {
                event["reason"] == "EnableAuth"
                    && event["type"] == "Normal"
                    && event["regarding"]["name"] == "secure"
            });
        if is_on {
            Ok(())
        } else {
            Err("no Event".into())
        }
    })
    .await;
    stage.patch("secure", r#"{"spec":{"replicas":3}}"#);
    stage
        .wait_for(
            "secure",
            "three members serve with TLS and authentication",
            is_running(3),
        )
        .await;
    let (ok, text) = stage
        .plane
        .kubectl(&["delete", "msc", "secure", "--timeout=60s"]);
    assert!(ok, "{text}");
}

/// A backup is made, verified, and a new cluster starts from it.
async fn backup_and_restore(stage: &Stage) {
    eprintln!("backup and restore");
    stage.apply(&example("backup.yaml"));
    stage
        .wait_for("source", "one member serves", is_running(1))
        .await;
    let store = first_client(stage, "source").await;
    for number in 0..50 {
        store
            .put(format!("key/{number}"), format!("{number}"))
            .await
            .unwrap();
    }
    let (_, revision) = store.get("key/0").await.unwrap();
    stage.apply(
        "apiVersion: metastore.io/v1alpha1\nkind: MetaStoreBackup\nmetadata: {name: first}\n\
         spec: {clusterRef: {name: source}, store: {pvc: {claimName: backups}}}\n",
    );
    let waited = eventually("the backup is verified", LIMIT, || async {
        let (_, text) = stage.plane.kubectl(&["get", "msb", "first", "-o", "json"]);
        let backup: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        match backup["status"]["phase"].as_str() {
            Some("Succeeded") => Ok(backup),
            _ => Err(backup["status"].to_string()),
        }
    });
    let backup = match futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(waited)).await
    {
        Ok(backup) => backup,
        Err(panic) => {
            stage.show_logs("source");
            std::panic::resume_unwind(panic);
        }
    };
    assert!(backup["status"]["revision"].as_i64() >= Some(revision));
    stage.apply(&example("restored-cluster.yaml"));
    stage
        .wait_for(
            "restored",
            "a cluster serves what was restored",
            is_running(1),
        )
        .await;
    let store = first_client(stage, "restored").await;
    let (found, now) = store.get("key/49").await.unwrap();
    assert!(found.is_some(), "the restored cluster has the data");
    assert!(
        now > revision + 900_000_000,
        "revisions never go back for old clients: {now}"
    );
}

/// The operator had exactly the rights of its chart, and they were enough.
fn no_call_was_forbidden(stage: &Stage) {
    let mut problems = Vec::new();
    for entry in fs::read_dir(stage.plane.folder.path()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("operator-") {
            problems.extend(forbidden_lines(&entry.path()));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

fn forbidden_lines(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .filter(|line| line.to_lowercase().contains("forbidden"))
        .map(ToOwned::to_owned)
        .collect()
}
