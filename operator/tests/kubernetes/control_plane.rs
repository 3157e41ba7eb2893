//! A real kube-apiserver and kube-controller-manager on a real store.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use metastore_tests::eventually;
use metastore_tests::member::free_port;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tempfile::TempDir;

/// kube-apiserver needs some seconds when it has the machine for itself.
const START_LIMIT: Duration = Duration::from_secs(120);

/// The controllers that the tests need: no scheduler, no nodes, no volumes; the test's kubelet plays those.
const CONTROLLERS: &str = "statefulset-controller,job-controller,garbage-collector-controller,\
    namespace-controller,serviceaccount-controller,persistentvolumeclaim-protection-controller,\
    disruption-controller";

/// A child that dies with the test.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        let file = File::create(&log).expect("the log can be created");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Kills it.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where the programs are, or `None` when they were not built: `tests/kubernetes/install.sh` builds them.
pub fn programs() -> Option<PathBuf> {
    let script = root().join("tests/kubernetes/install.sh");
    let output = Command::new(script).arg("--check").output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim()))
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the operator is a folder of the repository")
        .to_owned()
}

/// A control plane.
pub struct ControlPlane {
    pub folder: TempDir,
    pub programs: PathBuf,
    port: u16,
    authority: Authority,
    // Dropped in this order: the store last.
    _controllers: Process,
    apiserver: Process,
    apiserver_flags: Vec<String>,
    _store: Process,
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::<String>::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(parameters, key),
        }
    }

    /// A certificate and its key, for a user of a group.
    fn sign(&self, user: &str, group: &str) -> (String, String) {
        let names = vec!["localhost".to_owned(), "kubernetes.default.svc".to_owned()];
        let mut parameters = CertificateParams::new(names).unwrap();
        for address in ["127.0.0.1", "10.96.0.1"] {
            parameters
                .subject_alt_names
                .push(SanType::IpAddress(address.parse().unwrap()));
        }
        parameters.distinguished_name.push(DnType::CommonName, user);
        if !group.is_empty() {
            parameters
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        parameters.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

impl ControlPlane {
    /// Starts it. `store` is a program with etcd's flags.
    pub async fn start(programs: PathBuf, store: &Path) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("metastore-kubernetes-")
            .tempdir()
            .unwrap();
        let authority = Authority::new();
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| fs::write(path(name), text).unwrap();
        let (certificate, key) = authority.sign("kube-apiserver", "");
        write("ca.crt", &authority.pem);
        write("apiserver.crt", &certificate);
        write("apiserver.key", &key);
        let accounts = KeyPair::generate().unwrap();
        write("accounts.key", &accounts.serialize_pem());
        write("accounts.pub", &accounts.public_key_pem());
        // Every call of the operators is written down: no_call_was_forbidden reads it.
        write(
            "audit-policy.yaml",
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
             - {level: Metadata, users: [metastore-operator]}\n- {level: None}\n",
        );

        let (client_port, peer_port, port) = (free_port(), free_port(), free_port());
        let client_url = format!("http://127.0.0.1:{client_port}");
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let mut command = Command::new(store);
        command
            .args(["--name", "store", "--log-level", "warn", "--data-dir"])
            .arg(path("store"))
            .args([
                "--listen-client-urls",
                &client_url,
                "--advertise-client-urls",
                &client_url,
            ])
            .args([
                "--listen-peer-urls",
                &peer_url,
                "--initial-advertise-peer-urls",
                &peer_url,
            ])
            .args(["--initial-cluster", &format!("store={peer_url}")]);
        let store = Process::start(command, path("store.log"));

        let flag = |name: &str, file: &str| format!("--{name}={}", path(file).display());
        let apiserver_flags = vec![
            format!("--etcd-servers={client_url}"),
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={port}"),
            flag("tls-cert-file", "apiserver.crt"),
            flag("tls-private-key-file", "apiserver.key"),
            flag("client-ca-file", "ca.crt"),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
            flag("service-account-key-file", "accounts.pub"),
            flag("service-account-signing-key-file", "accounts.key"),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--authorization-mode=RBAC".into(),
            // As on OpenShift: who owns an object needs a right on the owner's finalizers.
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement".into(),
            "--endpoint-reconciler-type=none".into(),
            flag("audit-policy-file", "audit-policy.yaml"),
            flag("audit-log-path", "audit.log"),
        ];
        let mut command = Command::new(programs.join("kube-apiserver"));
        command.args(&apiserver_flags);
        let mut apiserver = Process::start(command, path("apiserver.log"));

        let plane_folder = folder.path().to_owned();
        let config = |name: &str, user: &str, group: &str| {
            let (certificate, key) = authority.sign(user, group);
            let file = plane_folder.join(name);
            fs::write(&file, kubeconfig(port, &authority.pem, &certificate, &key)).unwrap();
            file
        };
        let admin = config("admin.kubeconfig", "admin", "system:masters");
        let manager = config("manager.kubeconfig", "system:kube-controller-manager", "");
        is_ready(&mut apiserver, &programs, &admin).await;
        let mut command = Command::new(programs.join("kube-controller-manager"));
        command.args([
            format!("--kubeconfig={}", manager.display()),
            "--leader-elect=false".into(),
            flag("root-ca-file", "ca.crt"),
            flag("service-account-private-key-file", "accounts.key"),
            // Each controller has a role of its own; the manager itself may hardly do anything.
            "--use-service-account-credentials=true".into(),
            "--secure-port=0".into(),
            format!("--controllers={CONTROLLERS}"),
            "--kube-api-qps=200".into(),
            "--kube-api-burst=400".into(),
        ]);
        let controllers = Process::start(command, path("controllers.log"));
        Self {
            folder,
            programs,
            port,
            authority,
            _controllers: controllers,
            apiserver,
            apiserver_flags,
            _store: store,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The process of the API server.
    pub fn apiserver_id(&self) -> u32 {
        self.apiserver.id()
    }

    /// Kills the API server in the middle of whatever it does, and starts it again.
    pub async fn restart_apiserver(&mut self) {
        self.apiserver.end();
        let mut command = Command::new(self.programs.join("kube-apiserver"));
        command.args(&self.apiserver_flags);
        self.apiserver = Process::start(command, self.path("apiserver-again.log"));
        let admin = self.path("admin.kubeconfig");
        is_ready(&mut self.apiserver, &self.programs, &admin).await;
    }

    /// A kubeconfig for a user without any group: it may do what roles say.
    pub fn user_config(&self, user: &str) -> PathBuf {
        let (certificate, key) = self.authority.sign(user, "");
        let file = self.path(&format!("{user}.kubeconfig"));
        fs::write(
            &file,
            kubeconfig(self.port, &self.authority.pem, &certificate, &key),
        )
        .unwrap();
        file
    }

    /// A client that may do everything.
    pub async fn admin(&self) -> kube::Client {
        self.client(&self.path("admin.kubeconfig")).await
    }

    /// A client of a user.
    pub async fn client(&self, config: &Path) -> kube::Client {
        let config = kube::config::Kubeconfig::read_from(config).unwrap();
        let config = kube::Config::from_custom_kubeconfig(config, &Default::default())
            .await
            .unwrap();
        kube::Client::try_from(config).unwrap()
    }

    /// Runs kubectl as a user would; returns whether it succeeded, and all that it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> (bool, String) {
        let output = kubectl_command(&self.programs, &self.path("admin.kubeconfig"), arguments)
            .output()
            .expect("kubectl runs");
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.success(), text)
    }

    /// Applies a text, and returns the refusal if there is one.
    pub fn apply(&self, yaml: &str) -> Result<String, String> {
        let file = self.path("apply.yaml");
        fs::write(&file, yaml).unwrap();
        let path = file.display().to_string();
        match self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &path]) {
            (true, text) => Ok(text),
            (false, text) => Err(text),
        }
    }
}

async fn is_ready(apiserver: &mut Process, programs: &Path, admin: &Path) {
    eventually("kube-apiserver is ready", START_LIMIT, || {
        let ended = apiserver.has_ended();
        let tail = if ended {
            apiserver.tail()
        } else {
            String::new()
        };
        async move {
            assert!(!ended, "kube-apiserver ended:\n{tail}");
            let output = kubectl_command(programs, admin, &["get", "--raw", "/readyz"])
                .output()
                .map_err(|error| error.to_string())?;
            if output.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        }
    })
    .await;
}

fn kubectl_command(programs: &Path, config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(programs.join("kubectl"));
    command
        .arg("--kubeconfig")
        .arg(config)
        .arg("--request-timeout=20s")
        .args(arguments);
    command
}

fn kubeconfig(port: u16, authority: &str, certificate: &str, key: &str) -> String {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: test
  cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority-data: {}}}
users:
- name: user
  user: {{client-certificate-data: {}, client-key-data: {}}}
contexts:
- name: test
  context: {{cluster: test, user: user}}
current-context: test
",
        encode(authority),
        encode(certificate),
        encode(key)
    )
}
