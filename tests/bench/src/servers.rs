//! The measured servers: started, restarted and stopped as processes, with etcd's own flags.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use metastore_proto::etcdserverpb::{RangeRequest, RangeResponse, StatusRequest, StatusResponse};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::client::{CallError, Endpoint};
use crate::measure;

/// How often a starting server is asked whether it is ready; bounds the error of a start-up time.
const READY_POLL: Duration = Duration::from_millis(5);

/// Patience with a server that starts: etcd reads all keys first.
const READY_DEADLINE: Duration = Duration::from_secs(180);

/// Patience with one call to a starting server, which may wait for a leader.
const READY_CALL_DEADLINE: Duration = Duration::from_secs(2);

/// Patience with a server that was asked to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// Space quota of the servers, far above what the benchmark stores.
const QUOTA_BYTES: u64 = 8 << 30;

/// Bytes of a server's log that an error shows.
const LOG_TAIL_BYTES: usize = 2000;

/// Why a server could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A process could not be started, or a file not be made.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A call that prepares or ends a measurement failed.
    #[error("{0}")]
    Call(#[from] CallError),
    /// The server did not become ready, or ended.
    #[error("{name} {problem}; the end of its log:\n{log}")]
    NotReady {
        /// Name of the program.
        name: String,
        /// What went wrong.
        problem: String,
        /// The last lines of its log.
        log: String,
    },
}

/// A server program under test.
#[derive(Clone, Debug)]
pub struct Program {
    /// Name in tables.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Arguments after those that every program gets.
    pub arguments: Vec<String>,
}

/// Members of one cluster, on this machine. Dropping it kills them and removes their data.
pub struct Cluster {
    program: Program,
    directory: PathBuf,
    members: Vec<Member>,
}

struct Member {
    name: String,
    client: String,
    peer: String,
    process: Option<Child>,
}

impl Cluster {
    /// Starts `size` members with empty data below `directory` and waits until each of them answers
    /// a linearizable read.
    ///
    /// # Errors
    /// When a member ends or is not ready in time.
    pub async fn start(
        program: &Program,
        directory: &Path,
        size: usize,
    ) -> Result<Self, ServerError> {
        let directory = directory.join(&program.name);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        let ports = free_ports(size * 2)?;
        let members = (0..size)
            .map(|index| Member {
                name: format!("member{index}"),
                client: format!("127.0.0.1:{}", ports[index * 2]),
                peer: format!("127.0.0.1:{}", ports[index * 2 + 1]),
                process: None,
            })
            .collect();
        let mut cluster = Self {
            program: program.clone(),
            directory,
            members,
        };
        cluster.spawn_all()?;
        cluster.until_ready().await?;
        Ok(cluster)
    }

    /// `host:port` of the members, the leader first.
    ///
    /// # Errors
    /// When a member does not answer.
    pub async fn endpoints(&self) -> Result<Vec<String>, ServerError> {
        let mut endpoints = Vec::new();
        for member in &self.members {
            let mut connection = Endpoint::new(&member.client).connect().await?;
            let status: StatusResponse = connection
                .unary("etcdserverpb.Maintenance/Status", &StatusRequest::default())
                .await?;
            let own_id = status.header.map_or(0, |header| header.member_id);
            let position = if status.leader == own_id {
                0
            } else {
                endpoints.len()
            };
            endpoints.insert(position, member.client.clone());
        }
        Ok(endpoints)
    }

    /// Process ids of the running members.
    pub fn pids(&self) -> Vec<u32> {
        self.members
            .iter()
            .filter_map(|member| member.process.as_ref().and_then(Child::id))
            .collect()
    }

    /// Resident memory of all members in bytes: now, and at its highest.
    pub fn resident_bytes(&self) -> (u64, u64) {
        self.pids()
            .into_iter()
            .map(measure::resident_bytes)
            .fold((0, 0), |sum, member| (sum.0 + member.0, sum.1 + member.1))
    }

    /// Bytes allocated on disk for all members.
    pub fn disk_bytes(&self) -> u64 {
        self.members
            .iter()
            .map(|member| measure::disk_bytes(&self.data_directory(member)))
            .sum()
    }

    /// Stops all members with a signal and waits until they have ended.
    ///
    /// # Errors
    /// When one of them does not end.
    pub async fn stop(&mut self, signal: Signal) -> Result<(), ServerError> {
        for member in &self.members {
            let id = member.process.as_ref().and_then(Child::id);
            if let Some(pid) = id.and_then(|id| Pid::from_raw(id.cast_signed())) {
                kill_process(pid, signal).map_err(std::io::Error::from)?;
            }
        }
        for index in 0..self.members.len() {
            if let Some(mut process) = self.members[index].process.take()
                && timeout(STOP_DEADLINE, process.wait()).await.is_err()
            {
                return Err(self.not_ready(index, "did not end when asked to"));
            }
        }
        Ok(())
    }

    /// Starts the stopped members again. Returns the time until all of them answered a linearizable
    /// read.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_again(&mut self) -> Result<Duration, ServerError> {
        let started = Instant::now();
        self.spawn_all()?;
        self.until_ready().await?;
        Ok(started.elapsed())
    }

    fn data_directory(&self, member: &Member) -> PathBuf {
        self.directory.join(&member.name)
    }

    fn log_path(&self, member: &Member) -> PathBuf {
        self.directory.join(format!("{}.log", member.name))
    }

    fn spawn_all(&mut self) -> Result<(), ServerError> {
        let initial_cluster: Vec<String> = self
            .members
            .iter()
            .map(|member| format!("{}=http://{}", member.name, member.peer))
            .collect();
        for index in 0..self.members.len() {
            let member = &self.members[index];
            let log = File::options()
                .create(true)
                .append(true)
                .open(self.log_path(member))?;
            let process = Command::new(&self.program.path)
                .arg(format!("--name={}", member.name))
                .arg(format!(
                    "--data-dir={}",
                    self.data_directory(member).display()
                ))
                .arg(format!("--listen-client-urls=http://{}", member.client))
                .arg(format!("--advertise-client-urls=http://{}", member.client))
                .arg(format!("--listen-peer-urls=http://{}", member.peer))
                .arg(format!(
                    "--initial-advertise-peer-urls=http://{}",
                    member.peer
                ))
                .arg(format!("--initial-cluster={}", initial_cluster.join(",")))
                .arg("--initial-cluster-state=new")
                .arg(format!("--quota-backend-bytes={QUOTA_BYTES}"))
                .arg("--log-level=warn")
                .args(&self.program.arguments)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true)
                .spawn()?;
            self.members[index].process = Some(process);
        }
        Ok(())
    }

    async fn until_ready(&mut self) -> Result<(), ServerError> {
        let deadline = Instant::now() + READY_DEADLINE;
        for index in 0..self.members.len() {
            let endpoint = Endpoint::new(&self.members[index].client);
            loop {
                if let Ok(Ok(())) = timeout(READY_CALL_DEADLINE, answers(&endpoint)).await {
                    break;
                }
                let process = self.members[index].process.as_mut();
                if let Some(Ok(Some(status))) = process.map(Child::try_wait) {
                    return Err(self.not_ready(index, &format!("ended: {status}")));
                }
                if Instant::now() > deadline {
                    return Err(self.not_ready(index, "does not become ready"));
                }
                sleep(READY_POLL).await;
            }
        }
        Ok(())
    }

    fn not_ready(&self, index: usize, problem: &str) -> ServerError {
        let log = fs::read(self.log_path(&self.members[index])).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
        ServerError::NotReady {
            name: format!("{} ({})", self.program.name, self.members[index].name),
            problem: problem.to_owned(),
            log: String::from_utf8_lossy(tail).into_owned(),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                // An error means that it has ended already.
                let _ = process.start_kill();
            }
        }
        // What remains is removed by the next start.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// One linearizable read: answered only by a member that serves.
async fn answers(endpoint: &Endpoint) -> Result<(), CallError> {
    let mut connection = endpoint.connect().await?;
    let request = RangeRequest {
        key: "ready".into(),
        ..Default::default()
    };
    let _: RangeResponse = connection.unary("etcdserverpb.KV/Range", &request).await?;
    Ok(())
}

/// Ports that nobody uses now; all are held until the last is found, so they differ.
fn free_ports(count: usize) -> Result<Vec<u16>, std::io::Error> {
    let listeners: Result<Vec<_>, _> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect();
    listeners?
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}
