//! The plugin `kubectl metastore`: what people do to clusters from day to day. Put it into the PATH.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{Parser, Subcommand};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use metastore_operator_api::{
    BackupSpec, BackupStore, BootstrapSpec, ClusterSpec, CompactTask, DEFAULT_BUMP_REVISION,
    DefragTask, JobPhase, LocalReference, MetaStoreBackup, MetaStoreCluster, MetaStoreTask,
    MoveLeaderTask, PvcStore, RecoverQuorumTask, ReplaceMemberTask, RestoreBootstrap, RetainPolicy,
    TaskSpec, VerifyConsistencyTask, names,
};

/// How often something is looked at that is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Label by which the Pods of the operator are found, as its chart sets it.
const OPERATOR_LABEL: &str = "app.kubernetes.io/name=metastore-operator";

/// Looks at MetaStore clusters, and asks the operator for things.
#[derive(Parser)]
#[command(name = "kubectl metastore", version)]
struct Arguments {
    /// Namespace. Absent: that of the current context.
    #[arg(long, short, global = true)]
    namespace: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Conditions and members of a cluster; all clusters without a name.
    Status {
        /// The cluster.
        cluster: Option<String>,
    },
    /// What the operator would do next for a cluster, and why. Nothing is changed.
    Plan {
        /// The cluster.
        cluster: String,
        /// A change of the spec to try, as kubectl patch --type=merge takes it: `{"replicas": 5}`.
        #[arg(long)]
        spec: Option<String>,
        /// Namespace of the operator, in whose Pod this is decided. Absent: it is looked for everywhere.
        #[arg(long)]
        operator_namespace: Option<String>,
        /// Decide in this process, which must reach the Pods' addresses and read the Secrets.
        #[arg(long)]
        local: bool,
    },
    /// Back up now, into a volume.
    Backup {
        /// The cluster.
        cluster: String,
        /// Name of a volume claim.
        #[arg(long)]
        claim: String,
        /// Wait until the backup is verified.
        #[arg(long)]
        wait: bool,
    },
    /// Make a new cluster from a backup, as the one that was backed up is, if it is still there.
    Restore {
        /// The backup.
        backup: String,
        /// Name of the new cluster.
        #[arg(long)]
        to: String,
        /// Wait until it serves.
        #[arg(long)]
        wait: bool,
    },
    /// Run a command, or a shell, in which etcdctl and metastorectl reach the cluster from this machine.
    Shell {
        /// The cluster.
        cluster: String,
        /// The command; absent: the shell of the user.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Reclaim space on every member, the leader last.
    Defrag {
        /// The cluster.
        cluster: String,
        /// Wait until it is over.
        #[arg(long)]
        wait: bool,
    },
    /// Drop the history below a revision.
    Compact {
        /// The cluster.
        cluster: String,
        /// The revision; absent: the current one.
        #[arg(default_value_t = 0)]
        revision: i64,
        /// Wait until it is over.
        #[arg(long)]
        wait: bool,
    },
    /// Make another member the leader.
    MoveLeader {
        /// The cluster.
        cluster: String,
        /// The member; absent: any follower.
        #[arg(default_value = "")]
        to: String,
        /// Wait until it is over.
        #[arg(long)]
        wait: bool,
    },
    /// Replace a member by a new one.
    Replace {
        /// The cluster.
        cluster: String,
        /// The member.
        member: String,
        /// Wait until it is over.
        #[arg(long)]
        wait: bool,
    },
    /// Compare the data of all members.
    Verify {
        /// The cluster.
        cluster: String,
        /// Wait until it is over.
        #[arg(long)]
        wait: bool,
    },
    /// Go on with one member after the data of a majority was lost for good. What it has not received is lost.
    Recover {
        /// The cluster.
        cluster: String,
        /// The member to go on with: the one with the highest revision.
        #[arg(long)]
        survivor: String,
        /// The id of the cluster, as `status` shows it: you know that data may be lost.
        #[arg(long)]
        accept_data_loss: String,
        /// Wait until it is over.
        #[arg(long)]
        wait: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let client = Client::try_default().await?;
    let namespace = arguments
        .namespace
        .unwrap_or_else(|| client.default_namespace().to_owned());
    let plugin = Plugin { client, namespace };
    match arguments.verb {
        Verb::Status { cluster } => plugin.status(cluster.as_deref()).await?,
        Verb::Plan {
            cluster,
            spec,
            operator_namespace,
            local,
        } => {
            return plugin
                .plan(&cluster, spec.as_deref(), operator_namespace, local)
                .await;
        }
        Verb::Backup {
            cluster,
            claim,
            wait,
        } => plugin.backup(&cluster, &claim, wait).await?,
        Verb::Restore { backup, to, wait } => plugin.restore(&backup, &to, wait).await?,
        Verb::Shell { cluster, command } => return plugin.shell(&cluster, &command).await,
        Verb::Defrag { cluster, wait } => {
            let task = TaskSpec {
                defrag: Some(DefragTask {}),
                ..task(&cluster)
            };
            plugin.ask("defrag", task, wait).await?;
        }
        Verb::Compact {
            cluster,
            revision,
            wait,
        } => {
            let task = TaskSpec {
                compact: Some(CompactTask { revision }),
                ..task(&cluster)
            };
            plugin.ask("compact", task, wait).await?;
        }
        Verb::MoveLeader { cluster, to, wait } => {
            let task = TaskSpec {
                move_leader: Some(MoveLeaderTask { to }),
                ..task(&cluster)
            };
            plugin.ask("move-leader", task, wait).await?;
        }
        Verb::Replace {
            cluster,
            member,
            wait,
        } => {
            let task = TaskSpec {
                replace_member: Some(ReplaceMemberTask { member }),
                ..task(&cluster)
            };
            plugin.ask("replace", task, wait).await?;
        }
        Verb::Verify { cluster, wait } => {
            let task = TaskSpec {
                verify_consistency: Some(VerifyConsistencyTask {}),
                ..task(&cluster)
            };
            plugin.ask("verify", task, wait).await?;
        }
        Verb::Recover {
            cluster,
            survivor,
            accept_data_loss,
            wait,
        } => {
            let task = TaskSpec {
                recover_quorum: Some(RecoverQuorumTask {
                    accept_data_loss,
                    survivor,
                }),
                ..task(&cluster)
            };
            plugin.ask("recover", task, wait).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn task(cluster: &str) -> TaskSpec {
    TaskSpec {
        cluster_ref: LocalReference {
            name: cluster.to_owned(),
        },
        ttl_seconds_after_finished: 86400,
        ..TaskSpec::default()
    }
}

struct Plugin {
    client: Client,
    namespace: String,
}

impl Plugin {
    fn clusters(&self) -> Api<MetaStoreCluster> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn backups(&self) -> Api<MetaStoreBackup> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn cluster(&self, name: &str) -> anyhow::Result<MetaStoreCluster> {
        let namespace = &self.namespace;
        let found = self.clusters().get_opt(name).await?;
        found.ok_or_else(|| anyhow!("there is no MetaStoreCluster {namespace}/{name}"))
    }

    async fn status(&self, name: Option<&str>) -> anyhow::Result<()> {
        let clusters = match name {
            Some(name) => vec![self.cluster(name).await?],
            None => self.clusters().list(&ListParams::default()).await?.items,
        };
        for cluster in clusters {
            show(&cluster);
        }
        Ok(())
    }

    /// Asks the operator itself: it reaches the members and may read their Secrets.
    async fn plan(
        &self,
        cluster: &str,
        spec: Option<&str>,
        operator_namespace: Option<String>,
        local: bool,
    ) -> anyhow::Result<ExitCode> {
        let mut words = vec!["plan", "--namespace", &self.namespace, cluster];
        if let Some(spec) = spec {
            words.extend(["--spec", spec]);
        }
        if local {
            let words = ["metastore-operator"].into_iter().chain(words);
            let settings = metastore_operator::settings::Settings::try_parse_from(words)?;
            let namespace = &self.namespace;
            metastore_operator::program::plan(&settings, namespace, cluster, spec).await?;
            return Ok(ExitCode::SUCCESS);
        }
        let pods: Api<Pod> = match &operator_namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let pods = pods
            .list(&ListParams::default().labels(OPERATOR_LABEL))
            .await
            .context("looking for the operator: --operator-namespace says where it is")?;
        let is_running = |pod: &Pod| {
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
            phase == Some("Running")
        };
        let pod = pods.iter().find(|pod| is_running(pod)).ok_or_else(|| {
            anyhow!("no Pod of the operator runs; --local decides in this process")
        })?;
        let status = Command::new("kubectl")
            .args(["exec", "--container=operator", "--namespace"])
            .arg(pod.namespace().unwrap_or_default())
            .arg(pod.name_any())
            .args(["--", "metastore-operator"])
            .args(words)
            .status()
            .context("kubectl cannot be started")?;
        Ok(code_of(status))
    }

    async fn backup(&self, cluster: &str, claim: &str, wait: bool) -> anyhow::Result<()> {
        let spec = BackupSpec {
            cluster_ref: LocalReference {
                name: cluster.to_owned(),
            },
            store: BackupStore {
                pvc: Some(PvcStore {
                    claim_name: claim.to_owned(),
                    prefix: String::new(),
                }),
                ..BackupStore::default()
            },
            verify: true,
            deletion_policy: RetainPolicy::Retain,
        };
        let mut object = MetaStoreBackup::new("", spec);
        object.metadata.name = None;
        object.metadata.generate_name = Some(format!("{cluster}-"));
        let api = self.backups();
        let name = api
            .create(&PostParams::default(), &object)
            .await?
            .name_any();
        println!("metastorebackup/{name} created");
        if !wait {
            return Ok(());
        }
        loop {
            let status = api.get(&name).await?.status.unwrap_or_default();
            let said = status.conditions.last();
            let said = said.map_or_else(String::new, |condition| condition.message.clone());
            match status.phase {
                JobPhase::Pending | JobPhase::Running | JobPhase::Verifying => {}
                JobPhase::Succeeded => {
                    println!("Succeeded: {said}");
                    return Ok(());
                }
                JobPhase::Failed | JobPhase::Rejected => bail!("{:?}: {said}", status.phase),
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn restore(&self, backup: &str, to: &str, wait: bool) -> anyhow::Result<()> {
        let namespace = &self.namespace;
        let found = self.backups().get_opt(backup).await?;
        let found =
            found.ok_or_else(|| anyhow!("there is no MetaStoreBackup {namespace}/{backup}"))?;
        let source = self
            .clusters()
            .get_opt(&found.spec.cluster_ref.name)
            .await?;
        let mut spec = match source {
            Some(source) => source.spec,
            None => ClusterSpec::default(),
        };
        spec.paused = false;
        spec.hibernated = false;
        spec.bootstrap = BootstrapSpec {
            empty: None,
            restore: Some(RestoreBootstrap {
                backup_ref: Some(LocalReference {
                    name: backup.to_owned(),
                }),
                source: None,
                bump_revision: DEFAULT_BUMP_REVISION,
            }),
        };
        let object = MetaStoreCluster::new(to, spec);
        let api = self.clusters();
        api.create(&PostParams::default(), &object).await?;
        println!("metastorecluster/{to} created");
        if !wait {
            return Ok(());
        }
        loop {
            let status = api.get(to).await?.status.unwrap_or_default();
            let is_so = |kind: &str| {
                let mut conditions = status.conditions.iter();
                conditions.any(|condition| condition.type_ == kind && condition.status == "True")
            };
            if is_so("Available") && is_so("AllMembersReady") {
                println!("metastorecluster/{to} serves: {} ready", status.ready);
                return Ok(());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Makes a task, and says what came of it.
    async fn ask(&self, verb: &str, spec: TaskSpec, wait: bool) -> anyhow::Result<()> {
        let api: Api<MetaStoreTask> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut object = MetaStoreTask::new("", spec);
        object.metadata.name = None;
        object.metadata.generate_name = Some(format!("{}-{verb}-", object.spec.cluster_ref.name));
        let name = api
            .create(&PostParams::default(), &object)
            .await?
            .name_any();
        println!("metastoretask/{name} created");
        if !wait {
            return Ok(());
        }
        loop {
            let status = api.get(&name).await?.status.unwrap_or_default();
            if status.finished_at.is_some() {
                let result = status.result.unwrap_or_default();
                if status.phase != JobPhase::Succeeded {
                    bail!("{:?}: {result}", status.phase);
                }
                println!("Succeeded: {result}");
                return Ok(());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Forwards a port of this machine to the cluster's Service, and starts a command that knows it.
    async fn shell(&self, name: &str, command: &[String]) -> anyhow::Result<ExitCode> {
        let cluster = self.cluster(name).await?;
        let folder = ScratchFolder::new()?;
        let mut options: Vec<(&str, String)> = Vec::new();
        let is_encrypted = cluster.spec.tls.client.mode.is_encrypted();
        if is_encrypted {
            let secret = client_secret(&cluster.spec, name);
            let secret = self.secret(&secret).await?;
            for (key, option) in [
                ("ca.crt", "CACERT"),
                ("tls.crt", "CERT"),
                ("tls.key", "KEY"),
            ] {
                let file = folder.write(key, &secret_value(&secret, key)?)?;
                options.push((option, file.display().to_string()));
            }
        }
        if cluster.spec.auth.enabled {
            let reference = cluster.spec.auth.root_secret_ref.as_ref();
            let secret = reference.map_or_else(|| names::root_secret(name), |r| r.name.clone());
            let password = secret_value(&self.secret(&secret).await?, "password")?;
            options.push(("USER", "root".to_owned()));
            options.push(("PASSWORD", String::from_utf8(password)?));
        }
        let forward = Forward::start(&self.namespace, name)?;
        let scheme = if is_encrypted { "https" } else { "http" };
        options.push((
            "ENDPOINTS",
            format!("{scheme}://localhost:{}", forward.port),
        ));
        let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into());
        let (program, arguments) = match command.split_first() {
            Some((program, arguments)) => (program.as_str(), arguments),
            None => {
                let endpoint = &options[options.len() - 1].1;
                eprintln!(
                    "{name} answers at {endpoint}; etcdctl and metastorectl know it. exit ends this."
                );
                (shell.as_str(), &[][..])
            }
        };
        let mut child = Command::new(program);
        child.args(arguments);
        for (option, value) in &options {
            child.env(format!("ETCDCTL_{option}"), value);
        }
        let status = child
            .status()
            .with_context(|| format!("{program} cannot be started"))?;
        Ok(code_of(status))
    }

    async fn secret(&self, name: &str) -> anyhow::Result<Secret> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = api.get_opt(name).await?;
        found.ok_or_else(|| anyhow!("there is no Secret {}/{name}", self.namespace))
    }
}

/// The Secret with a certificate for clients.
fn client_secret(spec: &ClusterSpec, name: &str) -> String {
    let secrets = spec.tls.issuer.as_ref().and_then(|i| i.secrets.as_ref());
    secrets.map_or_else(
        || names::client_secret(name),
        |secrets| secrets.client.clone(),
    )
}

fn secret_value(secret: &Secret, key: &str) -> anyhow::Result<Vec<u8>> {
    let data = secret.data.as_ref().and_then(|data| data.get(key));
    let data = data.ok_or_else(|| anyhow!("the Secret {} has no {key}", secret.name_any()))?;
    Ok(data.0.clone())
}

fn code_of(status: std::process::ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// A folder for keys that nobody else may read, gone with this program.
struct ScratchFolder(PathBuf);

impl ScratchFolder {
    fn new() -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let name = format!("kubectl-metastore-{:016x}", rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::write(&path, bytes)?;
        Ok(path)
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(Path::new(&self.0));
    }
}

/// `kubectl port-forward`, ended with this program.
struct Forward {
    child: std::process::Child,
    port: u16,
}

impl Forward {
    fn start(namespace: &str, cluster: &str) -> anyhow::Result<Self> {
        use std::io::{BufRead, BufReader};
        let mut child = Command::new("kubectl")
            .args(["port-forward", "--namespace", namespace])
            .arg(format!("service/{cluster}"))
            .arg(format!(":{}", names::CLIENT_PORT))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("kubectl cannot be started")?;
        let output = child.stdout.take().context("kubectl has no output")?;
        let mut lines = BufReader::new(output).lines();
        // Forwarding from 127.0.0.1:41231 -> 2379
        let port = lines.find_map(|line| {
            let line = line.ok()?;
            let (_, rest) = line.split_once("127.0.0.1:")?;
            rest.split_whitespace().next()?.parse().ok()
        });
        // What it says later must be read, or it stops.
        std::thread::spawn(move || lines.for_each(drop));
        let Some(port) = port else {
            let _ = child.kill();
            let _ = child.wait();
            bail!("kubectl port-forward did not say which port it forwards");
        };
        Ok(Self { child, port })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn show(cluster: &MetaStoreCluster) {
    let status = cluster.status.clone().unwrap_or_default();
    println!(
        "{}: {:?}, {} ready, leader {}, id {}",
        cluster.name_any(),
        status.phase,
        status.ready,
        status.leader.as_deref().unwrap_or("unknown"),
        status.cluster_id.as_deref().unwrap_or("unknown"),
    );
    for member in &status.members {
        println!(
            "  {:<28} {:<9} {:<9} revision {:<12} {}",
            member.name,
            format!("{:?}", member.role),
            format!("{:?}", member.state),
            member.revision.unwrap_or(0),
            member.message.as_deref().unwrap_or(""),
        );
    }
    for condition in &status.conditions {
        println!(
            "  {:<20} {:<8} {:<24} {}",
            condition.type_, condition.status, condition.reason, condition.message
        );
    }
}
