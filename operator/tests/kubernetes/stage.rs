//! The stage of these tests: an API server on a store, the test's kubelet, the operator with the rights of its
//! chart, and what tests do on it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use metastore_operator_api::MetaStoreCluster;
use metastore_tests::eventually;
use metastore_tests::member::free_port;
use serde_json::Value;

use crate::control_plane::{self, ControlPlane, Process, root};
use crate::kubelet::{ImagePrograms, Kubelet, Shared};

/// Everything that one operation of the operator may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(90);
const LOOK_INTERVAL: Duration = Duration::from_millis(300);
pub const NAMESPACE: &str = "default";

/// The whole stage.
pub struct Stage {
    pub plane: ControlPlane,
    pub client: Client,
    pub shared: Arc<Mutex<Shared>>,
    operators: Vec<(String, Process)>,
    one_namespace: bool,
    operator_config: PathBuf,
    /// etcd's own programs, to compare with.
    pub etcd: PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(kubelet) = self.shared.lock().unwrap().end.take() {
            kubelet.abort();
        }
    }
}

/// etcd's programs, which other tests compare with; the store of the API server, too.
pub fn etcd_programs() -> PathBuf {
    let output = Command::new(root().join("tests/tools/install.sh"))
        .output()
        .expect("the installer runs");
    let text = String::from_utf8(output.stdout).unwrap();
    PathBuf::from(text.lines().last().expect("it prints a folder"))
}

impl Stage {
    /// Why this machine cannot have the stage, if so.
    pub fn why_not() -> Option<String> {
        if control_plane::programs().is_none() {
            return Some("kube-apiserver is built once by `make kubernetes-tools`".to_owned());
        }
        let can_unshare = Command::new("unshare")
            .args(if rustix::process::geteuid().is_root() {
                &["--mount", "true"][..]
            } else {
                &["--map-root-user", "--mount", "true"][..]
            })
            .stderr(std::process::Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        let reason = "this machine does not allow mount namespaces (unshare --mount)";
        (!can_unshare).then(|| reason.to_owned())
    }

    /// Sets the stage, with an operator that looks after all namespaces.
    pub async fn set() -> Self {
        Self::set_for(false).await
    }

    /// Sets the stage, with an operator that looks after one namespace and has no rights elsewhere.
    pub async fn set_for_one_namespace() -> Self {
        Self::set_for(true).await
    }

    async fn set_for(one_namespace: bool) -> Self {
        let server = std::env::var("METASTORE_KUBERNETES_SERVER");
        let server = server.unwrap_or_else(|_| "metastore".to_owned());
        if let Some(reason) = Self::why_not() {
            panic!("{reason}");
        }
        let programs = control_plane::programs().expect("they were there a moment ago");
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
            operators: Vec::new(),
            one_namespace,
            etcd,
        };
        stage.install_chart("metastore-operator-crds", &[]);
        let watched = format!("watch.namespaces={{{NAMESPACE}}}");
        let mut arguments = vec!["--set", "replicas=0", "--namespace", NAMESPACE];
        if one_namespace {
            arguments.extend(["--set", &watched]);
        }
        stage.install_chart("metastore-operator", &arguments);
        stage.grant_operator_its_roles();
        stage.start_operator("first");
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
        let (binding, role, place) = if self.one_namespace {
            ("RoleBinding", "Role", ", namespace: default")
        } else {
            ("ClusterRoleBinding", "ClusterRole", "")
        };
        self.plane
            .apply(&format!(
                "apiVersion: rbac.authorization.k8s.io/v1
kind: {binding}
metadata: {{name: operator-user{place}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {role}, name: test}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: metastore-operator}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: operator-user-lease, namespace: {NAMESPACE}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: test-lease}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: metastore-operator}}]
"
            ))
            .unwrap();
    }

    /// Starts one more operator, under a name.
    pub fn start_operator(&mut self, identity: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metastore-operator"));
        command
            .env("KUBECONFIG", &self.operator_config)
            .args(["--listen", &format!("127.0.0.1:{}", free_port())])
            .args([
                "--lease-namespace",
                NAMESPACE,
                "--identity",
                identity,
                "--log-format",
                "text",
            ]);
        if self.one_namespace {
            command.args(["--namespaces", NAMESPACE]);
        }
        let log = self
            .plane
            .path(&format!("operator-{identity}-{}.log", free_port()));
        let process = Process::start(command, log);
        self.operators.push((identity.to_owned(), process));
    }

    /// Kills an operator in the middle of whatever it does.
    pub fn kill_operator(&mut self, identity: &str) {
        let before = self.operators.len();
        self.operators.retain(|(name, _)| name != identity);
        assert!(
            self.operators.len() < before,
            "there is no operator {identity}"
        );
    }

    /// Asks an operator to end, and waits until it has.
    pub async fn stop_operator(&mut self, identity: &str) {
        let at = self.operators.iter().position(|(name, _)| name == identity);
        let (_, mut process) = self.operators.remove(at.expect("such an operator runs"));
        crate::kubelet::signal(process.id(), rustix::process::Signal::TERM);
        eventually("the operator has ended", LIMIT, || {
            let has_ended = process.has_ended();
            async move {
                if has_ended {
                    Ok(())
                } else {
                    Err("it runs".to_owned())
                }
            }
        })
        .await;
    }

    /// A client with the operator's rights.
    pub async fn operator_client(&self) -> Client {
        self.plane.client(&self.operator_config).await
    }

    pub fn clusters(&self) -> Api<MetaStoreCluster> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub fn apply(&self, yaml: &str) {
        self.plane.apply(yaml).unwrap();
    }

    pub fn patch(&self, name: &str, change: &str) {
        self.kubectl(&["patch", "msc", name, "--type=merge", "--patch", change]);
    }

    /// Changes any object.
    pub fn patch_object(&self, kind: &str, name: &str, change: &Value) {
        let change = change.to_string();
        self.kubectl(&["patch", kind, name, "--type=merge", "--patch", &change]);
    }

    /// Takes the volume of a member away, with its Pod: what is on it is gone for good.
    pub fn lose_volume(&self, member: &str) {
        let claim = format!("{member}-data");
        self.kubectl(&["delete", "pvc", &claim, "--wait=false"]);
        let pod = format!("{member}-0");
        self.kubectl(&["delete", "pod", &pod, "--wait=false"]);
    }

    /// Waits until a condition of a cluster is as wanted, for its current generation.
    pub async fn wait_for(
        &self,
        name: &str,
        what: &str,
        is_so: impl Fn(&MetaStoreCluster) -> bool,
    ) {
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

    /// The end of what the operators have said.
    pub fn operator_log(&self) -> String {
        let tails = self.operators.iter().map(|(_, operator)| operator.tail());
        tails.collect()
    }

    pub fn show_logs(&self, cluster: &str) {
        for (name, operator) in &self.operators {
            eprintln!("--- operator {name}\n{}", operator.tail());
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
    pub async fn addresses(&self, cluster: &str) -> Vec<String> {
        let pods = self.pods(cluster).await;
        pods.into_iter().map(|(_, address)| address).collect()
    }

    /// Names of members, and the addresses of their Pods.
    pub async fn pods(&self, cluster: &str) -> Vec<(String, String)> {
        pods_of(&self.client, cluster).await
    }

    /// Runs kubectl, which must succeed; returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let (ok, text) = self.plane.kubectl(arguments);
        assert!(ok, "kubectl {}: {text}", arguments.join(" "));
        text
    }

    /// An object as JSON; null when it is not there.
    pub fn get(&self, kind: &str, name: &str) -> Value {
        let (_, text) = self.plane.kubectl(&["get", kind, name, "-o", "json"]);
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Waits until an object is as wanted; on failure the logs say why.
    pub async fn wait_for_object(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        is_so: impl Fn(&Value) -> bool,
    ) -> Value {
        let started = Instant::now();
        let waited = eventually(what, LIMIT, || async {
            let object = self.get(kind, name);
            if is_so(&object) {
                return Ok(object);
            }
            // Each look is a process of its own.
            tokio::time::sleep(LOOK_INTERVAL).await;
            Err(object["status"].to_string())
        });
        match futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(waited)).await {
            Ok(object) => {
                eprintln!("  {what}: {:.1} s", started.elapsed().as_secs_f64());
                object
            }
            Err(panic) => {
                self.show_logs(name);
                std::panic::resume_unwind(panic);
            }
        }
    }

    /// Deletes a cluster and waits until its Pods are gone.
    pub async fn delete_cluster(&self, name: &str) {
        self.kubectl(&["delete", "msc", name, "--timeout=60s"]);
        eventually("the Pods are gone", LIMIT, || async {
            match self.addresses(name).await.len() {
                0 => Ok(()),
                count => Err(format!("{count} Pods")),
            }
        })
        .await;
    }

    /// The operators had exactly the rights of their chart, and they were enough: the API server refused none
    /// of their calls.
    pub fn no_call_was_forbidden(&self) {
        let audit = fs::read_to_string(self.plane.path("audit.log")).unwrap();
        let calls: Vec<Value> = audit
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        assert!(calls.len() > 20, "the audit log has {} lines", calls.len());
        let refused: Vec<_> = calls
            .iter()
            .filter(|call| call["responseStatus"]["code"] == 403)
            .map(|call| format!("{} {}", call["verb"], call["requestURI"]))
            .collect();
        assert!(refused.is_empty(), "{}", refused.join("\n"));
    }

    /// Which Pod of a name it is, and how often its container started anew.
    pub async fn incarnation(&self, pod: &str) -> Option<(String, i32)> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let pod = api.get_opt(pod).await.ok().flatten()?;
        let containers = pod.status.clone()?.container_statuses?;
        Some((pod.uid()?, containers.first()?.restart_count))
    }

    /// Waits until a Pod is another one than before, or its container has started anew.
    pub async fn wait_for_restart(&self, pod: &str, before: &Option<(String, i32)>) {
        eventually("the Pod has started anew", LIMIT, || async {
            match self.incarnation(pod).await {
                Some(now) if Some(&now) != before.as_ref() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    pub async fn members(&self, cluster: &str) -> BTreeSet<String> {
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

pub fn condition(cluster: &MetaStoreCluster, kind: &str) -> String {
    let status = cluster.status.clone().unwrap_or_default();
    status
        .conditions
        .into_iter()
        .find(|condition| condition.type_ == kind)
        .map_or_else(|| "missing".to_owned(), |condition| condition.status)
}

pub fn is_running(replicas: i32) -> impl Fn(&MetaStoreCluster) -> bool {
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

/// Names of members, and the addresses of their Pods.
pub async fn pods_of(client: &Client, cluster: &str) -> Vec<(String, String)> {
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let selector = ListParams::default().labels(&format!("metastore.io/cluster={cluster}"));
    let pods = api.list(&selector).await.map(|list| list.items);
    pods.unwrap_or_default()
        .iter()
        .filter_map(|pod| {
            let member = pod.labels().get("metastore.io/member")?.clone();
            Some((member, pod.status.as_ref()?.pod_ip.clone()?))
        })
        .collect()
}

pub fn example(name: &str) -> String {
    fs::read_to_string(root().join("examples/kubernetes").join(name)).unwrap()
}
