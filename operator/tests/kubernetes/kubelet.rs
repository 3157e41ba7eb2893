//! A kubelet for tests: it runs the containers of Pods as processes of this machine.
//!
//! Each Pod has a loopback address of its own. A container sees the folders of its volumes under other paths
//! than the Pod says, so paths are replaced in arguments, environment and ConfigMaps; and it sees the names of
//! other Pods by a hosts file of its own. The rest is as in Kubernetes: restarts, init containers, readiness,
//! grace periods, updates of mounted ConfigMaps and Secrets, messages of containers that ended.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Container, PersistentVolumeClaim, Pod, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How often it looks at everything.
const INTERVAL: Duration = Duration::from_millis(300);
/// Between restarts of a container that ends by itself.
const RESTART_DELAY: Duration = Duration::from_secs(1);
/// A container that does not end after SIGTERM is killed.
const GRACE: Duration = Duration::from_secs(15);

/// Programs that stand for the commands of images.
#[derive(Clone, Debug)]
pub struct ImagePrograms {
    pub server: PathBuf,
    pub operator: PathBuf,
    pub utility: PathBuf,
}

/// The kubelet.
pub struct Kubelet {
    client: Client,
    folder: PathBuf,
    programs: ImagePrograms,
    pods: BTreeMap<String, Running>,
    next_address: u32,
    shared: Arc<Mutex<Shared>>,
}

/// What tests reach into.
#[derive(Default)]
pub struct Shared {
    /// Pods that must not run, by name: their node is away.
    pub stopped: Vec<String>,
    /// Pods that are new get no attention: the node that they are sent to is lost.
    pub is_lost_to_new_pods: bool,
    /// Folders of volume claims by `namespace/name`.
    pub volumes: BTreeMap<String, PathBuf>,
    /// Process ids of the main containers by Pod name.
    pub processes: BTreeMap<String, u32>,
    /// Ends the kubelet: before its folder goes.
    pub end: Option<tokio::task::AbortHandle>,
}

struct Running {
    uid: String,
    address: String,
    /// Index of the init container that runs or comes next.
    init_index: usize,
    child: Option<Child>,
    ended: Option<(ExitStatus, Instant)>,
    restarts: i32,
    terminating_since: Option<Instant>,
    folder: PathBuf,
    last_status: Value,
    is_ready: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Kubelet {
    /// Starts it as a task.
    pub fn start(client: Client, folder: PathBuf, programs: ImagePrograms) -> Arc<Mutex<Shared>> {
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("hosts"), "127.0.0.1 localhost\n").unwrap();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let mut kubelet = Self {
            client,
            folder,
            programs,
            pods: BTreeMap::new(),
            next_address: 1,
            shared: shared.clone(),
        };
        let task = tokio::spawn(async move {
            loop {
                if let Err(error) = kubelet.look().await {
                    eprintln!("kubelet: {error}");
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
        shared.lock().unwrap().end = Some(task.abort_handle());
        shared
    }

    async fn look(&mut self) -> kube::Result<()> {
        self.bind_claims().await?;
        let all: Api<Pod> = Api::all(self.client.clone());
        let pods = all.list(&ListParams::default()).await?;
        let known: Vec<String> = pods.iter().map(key).collect();
        self.pods.retain(|key, _| known.contains(key));
        for pod in &pods {
            if let Err(error) = self.look_at(pod).await {
                eprintln!("kubelet: {}: {error}", key(pod));
            }
        }
        Ok(())
    }

    /// Plays the provisioner: every claim gets a folder at once, and grows when asked.
    async fn bind_claims(&self) -> kube::Result<()> {
        let all: Api<PersistentVolumeClaim> = Api::all(self.client.clone());
        for claim in all.list(&ListParams::default()).await? {
            let namespace = claim.namespace().unwrap_or_default();
            let uid = claim.uid().unwrap_or_default();
            let folder = self.folder.join("volumes").join(uid);
            fs::create_dir_all(&folder).unwrap();
            let title = format!("{namespace}/{}", claim.name_any());
            self.shared.lock().unwrap().volumes.insert(title, folder);
            let requested = claim.spec.as_ref().and_then(|spec| {
                spec.resources
                    .as_ref()?
                    .requests
                    .as_ref()?
                    .get("storage")
                    .cloned()
            });
            let capacity = claim
                .status
                .as_ref()
                .and_then(|status| status.capacity.as_ref()?.get("storage").cloned());
            if requested.is_some() && requested != capacity {
                let api: Api<PersistentVolumeClaim> =
                    Api::namespaced(self.client.clone(), &namespace);
                let status =
                    json!({"status": {"phase": "Bound", "capacity": {"storage": requested}}});
                api.patch_status(
                    &claim.name_any(),
                    &PatchParams::default(),
                    &Patch::Merge(&status),
                )
                .await?;
            }
        }
        Ok(())
    }

    async fn look_at(&mut self, pod: &Pod) -> kube::Result<()> {
        let key = key(pod);
        let namespace = pod.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let spec = pod.spec.clone().unwrap_or_default();
        if spec.node_name.is_none() {
            if pod.metadata.deletion_timestamp.is_some() {
                return Ok(());
            }
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding",
                "metadata": {"name": pod.name_any(), "namespace": namespace},
                "target": {"apiVersion": "v1", "kind": "Node", "name": "node-1"},
            });
            let _: Value = api
                .create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding)
                .await
                .unwrap_or_default();
            return Ok(());
        }
        let is_known = self.pods.contains_key(&key);
        if self.shared.lock().unwrap().is_lost_to_new_pods && !is_known {
            return Ok(());
        }
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
        let is_over = matches!(phase.as_deref(), Some("Succeeded" | "Failed"));
        if pod.metadata.deletion_timestamp.is_some() {
            return self.terminate(pod, &api).await;
        }
        if is_over {
            return Ok(());
        }
        let uid = pod.uid().unwrap_or_default();
        if self.pods.get(&key).is_none_or(|running| running.uid != uid) {
            self.pods.remove(&key);
            let address = format!(
                "127.77.{}.{}",
                self.next_address / 250,
                1 + self.next_address % 250
            );
            self.next_address += 1;
            let folder = self.folder.join("pods").join(&uid);
            fs::create_dir_all(&folder).unwrap();
            self.pods.insert(
                key.clone(),
                Running {
                    uid,
                    address,
                    init_index: 0,
                    child: None,
                    ended: None,
                    restarts: 0,
                    terminating_since: None,
                    folder,
                    last_status: Value::Null,
                    is_ready: false,
                },
            );
        }
        let Some(mounts) = self.mount(pod).await? else {
            return Ok(());
        };
        let is_stopped = self
            .shared
            .lock()
            .unwrap()
            .stopped
            .contains(&pod.name_any());
        self.write_hosts(pod);
        let hosts = self.folder.join("hosts");
        let programs = self.programs.clone();
        let running = self.pods.get_mut(&key).expect("inserted above");
        running.advance(pod, &mounts, &hosts, &programs, is_stopped);
        running.is_ready = running.probe(pod).await;
        if let Some(child) = &running.child {
            let id = child.id();
            self.shared
                .lock()
                .unwrap()
                .processes
                .insert(pod.name_any(), id);
        }
        let running = self.pods.get_mut(&key).expect("inserted above");
        let status = running.status(pod);
        if status != running.last_status {
            api.patch_status(
                &pod.name_any(),
                &PatchParams::default(),
                &Patch::Merge(json!({"status": status})),
            )
            .await?;
            running.last_status = status;
        }
        Ok(())
    }

    async fn terminate(&mut self, pod: &Pod, api: &Api<Pod>) -> kube::Result<()> {
        let key = key(pod);
        if let Some(running) = self.pods.get_mut(&key)
            && let Some(child) = &mut running.child
            && child.try_wait().is_ok_and(|ended| ended.is_none())
        {
            match running.terminating_since {
                None => {
                    running.terminating_since = Some(Instant::now());
                    signal(child.id(), rustix::process::Signal::TERM);
                }
                Some(since) if since.elapsed() > GRACE => {
                    let _ = child.kill();
                }
                Some(_) => {}
            }
            return Ok(());
        }
        self.pods.remove(&key);
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        let _ = api.delete(&pod.name_any(), &parameters).await;
        Ok(())
    }

    /// Writes the files of ConfigMaps and Secrets; returns where every mount is. `None`: something that the
    /// Pod needs is not there.
    async fn mount(&self, pod: &Pod) -> kube::Result<Option<BTreeMap<String, PathBuf>>> {
        let namespace = pod.namespace().unwrap_or_default();
        let spec = pod.spec.clone().unwrap_or_default();
        let running = &self.pods[&key(pod)];
        let mut folders = BTreeMap::new();
        let mut texts = Vec::new();
        for volume in spec.volumes.iter().flatten() {
            let own = running.folder.join(&volume.name);
            if let Some(source) = &volume.persistent_volume_claim {
                let title = format!("{namespace}/{}", source.claim_name);
                let api: Api<PersistentVolumeClaim> =
                    Api::namespaced(self.client.clone(), &namespace);
                if api.get_opt(&source.claim_name).await?.is_none() {
                    return Ok(None);
                }
                let Some(folder) = self.shared.lock().unwrap().volumes.get(&title).cloned() else {
                    return Ok(None);
                };
                folders.insert(volume.name.clone(), folder);
                continue;
            }
            fs::create_dir_all(&own).unwrap();
            folders.insert(volume.name.clone(), own.clone());
            if let Some(source) = &volume.config_map {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &namespace);
                let Some(map) = api.get_opt(&source.name).await? else {
                    return Ok(None);
                };
                for (file, text) in map.data.unwrap_or_default() {
                    texts.push((own.join(file), text.into_bytes()));
                }
            } else if let Some(source) = &volume.secret {
                let api: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
                let name = source.secret_name.clone().unwrap_or_default();
                let Some(secret) = api.get_opt(&name).await? else {
                    return Ok(None);
                };
                for (file, bytes) in secret.data.unwrap_or_default() {
                    texts.push((own.join(file), bytes.0));
                }
            }
        }
        let mut mounts = BTreeMap::new();
        let containers = spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers);
        for mount in containers.flat_map(|container| container.volume_mounts.iter().flatten()) {
            if let Some(folder) = folders.get(&mount.name) {
                mounts.insert(mount.mount_path.clone(), folder.clone());
            }
        }
        for (path, bytes) in texts {
            let bytes = match String::from_utf8(bytes) {
                Ok(text) => replace(&text, &mounts, &running.address).into_bytes(),
                Err(error) => error.into_bytes(),
            };
            if fs::read(&path).ok().as_deref() != Some(&bytes) {
                let partial = path.with_extension("partial");
                fs::write(&partial, bytes).unwrap();
                fs::rename(&partial, &path).unwrap();
            }
        }
        Ok(Some(mounts))
    }

    /// The names of Pods, as cluster DNS would answer. Written in place: it is mounted elsewhere.
    fn write_hosts(&self, pod: &Pod) {
        let spec = pod.spec.clone().unwrap_or_default();
        let (Some(host), Some(domain)) = (spec.hostname, spec.subdomain) else {
            return;
        };
        let name = format!(
            "{host}.{domain}.{}.svc",
            pod.namespace().unwrap_or_default()
        );
        let line = format!(
            "{} {name} {name}.cluster.local",
            self.pods[&key(pod)].address
        );
        let path = self.folder.join("hosts");
        let old = fs::read_to_string(&path).unwrap();
        if old.lines().any(|found| found == line) {
            return;
        }
        let mut lines: Vec<_> = old
            .lines()
            .filter(|found| !found.contains(&format!(" {name} ")))
            .map(ToOwned::to_owned)
            .collect();
        lines.push(line);
        fs::write(&path, lines.join("\n") + "\n").unwrap();
    }
}

impl Running {
    /// Starts what should run and does not.
    fn advance(
        &mut self,
        pod: &Pod,
        mounts: &BTreeMap<String, PathBuf>,
        hosts: &Path,
        programs: &ImagePrograms,
        is_stopped: bool,
    ) {
        if is_stopped {
            if let Some(child) = &mut self.child {
                let _ = child.kill();
                let _ = child.wait();
            }
            self.child = None;
            return;
        }
        if let Some(child) = &mut self.child {
            let Ok(Some(status)) = child.try_wait() else {
                return;
            };
            self.child = None;
            self.ended = Some((status, Instant::now()));
        }
        let spec = pod.spec.clone().unwrap_or_default();
        let init = spec.init_containers.unwrap_or_default();
        let may_restart = spec.restart_policy.as_deref() != Some("Never");
        if let Some((status, at)) = self.ended {
            if self.init_index < init.len() && status.success() {
                self.init_index += 1;
            } else if !may_restart || at.elapsed() < RESTART_DELAY {
                return;
            } else {
                self.restarts += 1;
            }
            self.ended = None;
        }
        let container = init.get(self.init_index).unwrap_or(&spec.containers[0]);
        self.child = Some(self.spawn(container, mounts, hosts, programs));
    }

    fn spawn(
        &self,
        container: &Container,
        mounts: &BTreeMap<String, PathBuf>,
        hosts: &Path,
        programs: &ImagePrograms,
    ) -> Child {
        let program = match container
            .command
            .as_ref()
            .and_then(|c| c.first())
            .map(String::as_str)
        {
            Some("metastore") => &programs.server,
            Some("metastore-operator") => &programs.operator,
            other => panic!("no program stands for {other:?}"),
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{}.log", container.name)))
            .unwrap();
        let mut command = Command::new("unshare");
        // A mount namespace of its own, in which it sees the names of the Pods.
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command
            .args(["--mount", "sh", "-c"])
            .arg("mount --bind \"$0\" /etc/hosts && exec \"$@\"")
            .arg(hosts)
            .arg(program);
        for argument in container.args.iter().flatten() {
            command.arg(replace(argument, mounts, &self.address));
        }
        command.env("METASTORE_UTILITY", &programs.utility);
        command.env(
            "METASTORE_TERMINATION_LOG",
            self.folder.join("termination-log"),
        );
        if let Some(folder) = mounts.get("/backups") {
            command.env("METASTORE_BACKUP_FOLDER", folder);
        }
        for variable in container.env.iter().flatten() {
            if let Some(value) = &variable.value {
                command.env(&variable.name, replace(value, mounts, &self.address));
            }
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("unshare is there")
    }

    /// The readiness probe, as HTTP.
    async fn probe(&self, pod: &Pod) -> bool {
        if self.child.is_none() {
            return false;
        }
        let spec = pod.spec.clone().unwrap_or_default();
        if self.init_index < spec.init_containers.unwrap_or_default().len() {
            return false;
        }
        let Some(get) = spec.containers[0]
            .readiness_probe
            .as_ref()
            .and_then(|probe| probe.http_get.clone())
        else {
            return true;
        };
        let k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(port) = get.port else {
            return false;
        };
        let address = format!("{}:{port}", self.address);
        let path = get.path.unwrap_or_default();
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(&address).await?;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = vec![0; 32];
            let count = stream.read(&mut answer).await?;
            std::io::Result::Ok(String::from_utf8_lossy(&answer[..count]).contains(" 200 "))
        };
        tokio::time::timeout(Duration::from_secs(2), ask)
            .await
            .is_ok_and(|answer| answer.unwrap_or(false))
    }

    fn status(&self, pod: &Pod) -> Value {
        let spec = pod.spec.clone().unwrap_or_default();
        let name = spec.containers[0].name.clone();
        let never = spec.restart_policy.as_deref() == Some("Never");
        let init = spec.init_containers.unwrap_or_default();
        let initializing = init
            .get(self.init_index)
            .map(|container| container.name.clone());
        let acting = initializing.as_ref().unwrap_or(&name);
        // What it wrote for this, else the end of its log.
        let message = || {
            let log = self.folder.join(format!("{acting}.log"));
            let written = fs::read_to_string(self.folder.join("termination-log"));
            let written = written.ok().filter(|text| !text.is_empty());
            let log = || fs::read_to_string(log).unwrap_or_default();
            let text = written.unwrap_or_else(log);
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(3)..].join("\n")
        };
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        let start = self.last_status["startTime"]
            .as_str()
            .unwrap_or(&now)
            .to_owned();
        let (phase, state) = match (&self.child, &self.ended) {
            (Some(_), _) => ("Running", json!({"running": {"startedAt": start}})),
            (None, Some((status, _))) if never => (
                if status.success() {
                    "Succeeded"
                } else {
                    "Failed"
                },
                json!({"terminated": {
                    "exitCode": status.code().unwrap_or(137),
                    "message": message(),
                    "finishedAt": now,
                }}),
            ),
            (None, Some(_)) => (
                "Running",
                json!({"waiting": {"reason": "CrashLoopBackOff", "message": "restarting"}}),
            ),
            (None, None) => (
                "Pending",
                json!({"waiting": {"reason": "ContainerCreating"}}),
            ),
        };
        let last_state = match &self.ended {
            Some((status, _)) if !never && !status.success() => json!({"terminated": {
                "exitCode": status.code().unwrap_or(137),
                "message": message(),
                "finishedAt": now,
            }}),
            _ => json!({}),
        };
        let container = |name: &str, state: &Value, last_state: &Value| {
            json!({
                "name": name,
                "image": "test",
                "imageID": "test",
                "ready": self.is_ready,
                "restartCount": self.restarts,
                "state": state,
                "lastState": last_state,
            })
        };
        let waits = json!({"waiting": {"reason": "PodInitializing"}});
        let (containers, inits) = match &initializing {
            Some(acting) => (
                vec![container(&name, &waits, &json!({}))],
                vec![container(acting, &state, &last_state)],
            ),
            None => (vec![container(&name, &state, &last_state)], Vec::new()),
        };
        let flag = |is_so: bool| if is_so { "True" } else { "False" };
        let condition = |kind: &str, is_so: bool| json!({"type": kind, "status": flag(is_so)});
        json!({
            "phase": phase,
            "podIP": self.address,
            "podIPs": [{"ip": self.address}],
            "hostIP": "127.0.0.1",
            "startTime": start,
            "conditions": [
                condition("PodScheduled", true),
                condition("Initialized", true),
                condition("ContainersReady", self.is_ready),
                condition("Ready", self.is_ready),
            ],
            "containerStatuses": containers,
            "initContainerStatuses": inits,
        })
    }
}

fn key(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// Paths as the Pod says them become paths of this machine; longer ones first.
fn replace(text: &str, mounts: &BTreeMap<String, PathBuf>, address: &str) -> String {
    let mut text = text.replace("0.0.0.0", address);
    for (mount, folder) in mounts.iter().rev() {
        // `/tmp` would hit every path of this machine that was put in before.
        if mount != "/tmp" {
            text = text.replace(mount.as_str(), &folder.display().to_string());
        }
    }
    text
}

/// Sends a signal to a process.
pub fn signal(id: u32, signal: rustix::process::Signal) {
    if let Some(id) = i32::try_from(id)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process(id, signal);
    }
}
