//! One real server process.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::client::Client;
use crate::patience::eventually;
use crate::programs::Program;

/// A member that is not ready by then never will be. etcd itself needs one to three seconds.
const START_LIMIT: Duration = Duration::from_secs(30);
/// etcd promises to stop in 1.5 s; the rest is for a loaded machine.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// The log line that says that clients are served.
const READY_TEXT: &str = "ready to serve client requests";
/// Lines of a member's log that a failing test shows.
const SHOWN_LOG_LINES: usize = 80;
/// Below the kernel's range for outgoing connections, so that no client takes a port between our
/// choosing it and the server's listening on it.
const FIRST_PORT: u32 = 20_000;
const PORT_COUNT: u32 = 12_000;

/// A port of 127.0.0.1 on which nobody listens.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes that run at the same time start at different places.
    let offset = std::process::id().wrapping_mul(397);
    for _ in 0..PORT_COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST_PORT + offset.wrapping_add(step) % PORT_COUNT;
        let port = u16::try_from(port).expect("below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!(
        "no free port between {FIRST_PORT} and {}",
        FIRST_PORT + PORT_COUNT
    );
}

/// How to start one member.
#[derive(Clone, Debug)]
pub struct MemberBuilder {
    program: Program,
    name: String,
    client_scheme: &'static str,
    client_port: u16,
    peer_scheme: &'static str,
    peer_port: u16,
    /// `name=url` of all initial members; empty for this one alone.
    initial_cluster: Vec<(String, String)>,
    existing: bool,
    finds_members: bool,
    folder: Arc<TempDir>,
    data_folder: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl MemberBuilder {
    /// A member of a cluster of one, with free ports and an empty data folder.
    pub fn new(program: Program) -> Self {
        let folder = Arc::new(
            tempfile::Builder::new()
                .prefix("metastore-test-")
                .tempdir()
                .expect("the folder for temporary files is writable"),
        );
        let data_folder = folder.path().join("data");
        Self {
            program,
            name: "default".into(),
            client_scheme: "http",
            client_port: free_port(),
            peer_scheme: "http",
            peer_port: free_port(),
            initial_cluster: Vec::new(),
            existing: false,
            finds_members: false,
            folder,
            data_folder,
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Sets the member's name.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Adds an argument, in etcd's syntax.
    pub fn flag(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Gives clients an `https` URL. The certificate comes by flags.
    pub fn secure_clients(mut self) -> Self {
        self.client_scheme = "https";
        self
    }

    /// Gives members an `https` URL. The certificate comes by flags.
    pub fn secure_peers(mut self) -> Self {
        self.peer_scheme = "https";
        self
    }

    /// `host:port` of its client URL.
    pub fn client_address(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// `host:port` of its peer URL.
    pub fn peer_address(&self) -> String {
        format!("127.0.0.1:{}", self.peer_port)
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Uses this data folder instead of an own one.
    pub fn data_folder(mut self, folder: &Path) -> Self {
        self.data_folder = folder.to_owned();
        self
    }

    /// Uses another data folder beside the first one.
    pub fn data_folder_name(mut self, name: &str) -> Self {
        self.data_folder = self.folder.path().join(name);
        self
    }

    /// The program that it starts.
    pub fn started_program(&self) -> Program {
        self.program
    }

    /// Starts another program with the same flags.
    pub fn program(mut self, program: Program) -> Self {
        self.program = program;
        self
    }

    /// Sets all initial members (name, peer URL), this one included.
    pub fn initial_cluster(mut self, members: Vec<(String, String)>) -> Self {
        self.initial_cluster = members;
        self
    }

    /// Names no members at all: they are found.
    pub fn without_initial_cluster(mut self) -> Self {
        self.finds_members = true;
        self
    }

    /// Joins a running cluster instead of forming one.
    pub fn joining(mut self, members: Vec<(String, String)>) -> Self {
        self.initial_cluster = members;
        self.existing = true;
        self
    }

    /// The URL that other members use.
    pub fn peer_url(&self) -> String {
        format!("{}://{}", self.peer_scheme, self.peer_address())
    }

    /// The member's name.
    pub fn member_name(&self) -> &str {
        &self.name
    }

    /// All arguments of the command line.
    pub fn command_line(&self) -> Vec<String> {
        let client = format!("{}://{}", self.client_scheme, self.client_address());
        let peer = self.peer_url();
        let initial = if self.initial_cluster.is_empty() {
            format!("{}={peer}", self.name)
        } else {
            let members: Vec<_> = self
                .initial_cluster
                .iter()
                .map(|(name, url)| format!("{name}={url}"))
                .collect();
            members.join(",")
        };
        let mut arguments = vec![
            format!("--name={}", self.name),
            format!("--data-dir={}", self.data_folder.display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={initial}"),
            "--initial-cluster-token=metastore-tests".into(),
            format!(
                "--initial-cluster-state={}",
                if self.existing { "existing" } else { "new" }
            ),
        ];
        if self.finds_members {
            arguments.retain(|argument| !argument.starts_with("--initial-cluster"));
        }
        arguments.extend(self.arguments.iter().cloned());
        arguments
    }

    /// Starts the process without waiting until it serves.
    pub fn spawn(self) -> Member {
        let mut member = Member {
            builder: self,
            child: None,
            starts: 0,
            stopped: false,
            expected_to_fail: false,
        };
        member.launch();
        member
    }

    /// Starts the process and waits until it serves clients.
    pub async fn start(self) -> Member {
        let mut member = self.spawn();
        member.ready().await;
        member
    }

    /// Starts a process that is expected to end by itself; returns how, and all it wrote.
    pub async fn run_to_end(self) -> (ExitStatus, String) {
        let mut member = self.spawn();
        member.expected_to_fail = true;
        let status = member
            .wait_for_exit("it refuses to start", STOP_LIMIT)
            .await;
        (status, member.log())
    }
}

/// A running (or killed, or paused) server process. Dropping it kills the process; when the test is
/// failing, its log is shown.
#[derive(Debug)]
pub struct Member {
    builder: MemberBuilder,
    child: Option<Child>,
    starts: usize,
    stopped: bool,
    expected_to_fail: bool,
}

impl Member {
    /// A member with default options that serves clients.
    pub async fn start(program: Program) -> Self {
        MemberBuilder::new(program).start().await
    }

    /// How it was started.
    pub fn builder(&self) -> &MemberBuilder {
        &self.builder
    }

    /// Its client URL.
    pub fn endpoint(&self) -> String {
        let builder = &self.builder;
        format!("{}://{}", builder.client_scheme, builder.client_address())
    }

    /// `host:port` of its client URL.
    pub fn address(&self) -> String {
        self.builder.client_address()
    }

    /// Its data folder.
    pub fn data_folder(&self) -> &Path {
        &self.builder.data_folder
    }

    /// A new client with a new connection.
    pub fn client(&self) -> Client {
        Client::new(&self.endpoint())
    }

    /// The process id; `None` when it does not run.
    pub fn process_id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Everything that the current process wrote.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.builder
            .folder
            .path()
            .join(format!("log-{}.txt", self.starts))
    }

    fn launch(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.builder.name);
        self.starts += 1;
        self.stopped = false;
        let log = std::fs::File::create(self.log_path()).expect("own folder is writable");
        let child = Command::new(self.builder.program.path())
            .args(self.builder.command_line())
            .envs(self.builder.environment.iter().cloned())
            .current_dir(self.builder.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle can be shared"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "cannot start {}: {error}",
                    self.builder.program.path().display()
                )
            });
        self.child = Some(child);
    }

    /// Waits until the member serves clients.
    pub async fn ready(&mut self) {
        let name = self.builder.name.clone();
        let start = Instant::now();
        loop {
            if self.log().contains(READY_TEXT) {
                return;
            }
            if let Some(status) = self.try_exit() {
                panic!("{name} ended ({status}) before it served clients");
            }
            assert!(
                start.elapsed() < crate::deadline(START_LIMIT),
                "waited {START_LIMIT:?} in vain until {name} logs `{READY_TEXT}`"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Has the process ended? It is forgotten then.
    pub fn try_exit(&mut self) -> Option<ExitStatus> {
        let status = self
            .child
            .as_mut()?
            .try_wait()
            .expect("own child can be waited for")?;
        self.child = None;
        Some(status)
    }

    /// Waits until the process ends by itself.
    pub async fn wait_for_exit(&mut self, reason: &str, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_exit() {
                return status;
            }
            assert!(
                start.elapsed() < crate::deadline(limit),
                "waited {limit:?} in vain until {} ends because {reason}",
                self.builder.name
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let child = self
            .child
            .as_ref()
            .unwrap_or_else(|| panic!("{} runs not", self.builder.name));
        let id = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .expect("a process id");
        kill_process(id, signal).expect("own child can be signalled");
    }

    /// SIGKILL: the process ends at once, with whatever it had not written.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("own child can be killed");
            child.wait().expect("own child can be waited for");
        }
    }

    /// SIGSTOP: the process does nothing until [`resume`](Self::resume), like a paused machine.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
        self.stopped = true;
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
        self.stopped = false;
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_for_exit("it got SIGTERM", STOP_LIMIT).await
    }

    /// Starts the process again with the same flags, ports and data.
    pub async fn restart(&mut self) {
        self.launch();
        self.ready().await;
    }

    /// As [`restart`](Self::restart), without waiting until it serves: a member of a cluster needs
    /// the others for that.
    pub fn respawn(&mut self) {
        self.launch();
    }

    /// Changes the flags of the next start.
    pub fn add_flag(&mut self, argument: &str) {
        self.builder.arguments.push(argument.to_owned());
    }

    /// Waits until the member has answered a linearizable read.
    pub async fn answers(&self) {
        let client = self.client();
        eventually("a linearizable read is answered", START_LIMIT, || async {
            client
                .get("health")
                .await
                .map(drop)
                .map_err(|status| status.to_string())
        })
        .await;
    }

    /// Fails when the log holds a line of a panic, or, for MetaStore, of level `error` or above.
    pub fn assert_log_is_clean(&self) {
        for line in self.log().lines() {
            let bad = line.contains("panicked at")
                || [
                    "\"level\":\"error\"",
                    "\"level\":\"fatal\"",
                    "\"level\":\"panic\"",
                ]
                .iter()
                .any(|level| line.contains(level));
            assert!(!bad, "{} logged: {line}", self.builder.name);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGKILL ends a stopped process too. Errors mean that it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() && !self.expected_to_fail {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(SHOWN_LOG_LINES);
            eprintln!(
                "--- {} {} (start {}), last lines of its log:",
                self.builder.program.name(),
                self.builder.name,
                self.starts
            );
            for line in &lines[from..] {
                eprintln!("{line}");
            }
        }
    }
}

/// The ids of `members`, to compare member lists.
pub fn ids(members: &[metastore_proto::etcdserverpb::Member]) -> BTreeSet<u64> {
    members.iter().map(|member| member.id).collect()
}
