//! Builds clusters and waits for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use metastore_raft_log::{LogIdentity, LogOptions, RaftLog, RealDisk};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::network::{CuttableConnector, Network};
use super::toy::{Toy, ToyReply};
use crate::options::ConsensusOptions;
use crate::peers::{PeerAddress, PeerDirectory, PeerHandler};
use crate::transport::tcp::SharedTcpListener;
use crate::transport::{BoxedStream, Listener};
use crate::{Consensus, EntryLog, ProposeError, ReadIndexError, StartError};

pub(super) const CLUSTER: u64 = 0xc1;
/// How long a wait may take; generous, since many tests share few cores.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// Method of [`PeerHandler::call`]: propose the body and answer the index.
pub(super) const FORWARD: u32 = 1;
/// Answers the body.
pub(super) const ECHO: u32 = 2;
/// Never answers.
pub(super) const HANG: u32 = 3;

/// Waits until `probe` gives something, or fails with the reason.
pub(super) async fn eventually<T>(reason: &str, probe: impl FnMut() -> Option<T>) -> T {
    let found = eventually_or_none(probe).await;
    found.unwrap_or_else(|| panic!("still waiting: {reason}"))
}

async fn eventually_or_none<T>(mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = probe();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Fails when the future takes too long.
pub(super) async fn in_time<T>(reason: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("still waiting: {reason}"),
    }
}

/// What a member told its owner.
#[derive(Default)]
pub(super) struct Told {
    consensus: OnceLock<Consensus>,
    pub(super) removed: Mutex<bool>,
    pub(super) fatal: Mutex<Option<String>>,
    pub(super) foreign: Arc<Mutex<Option<Vec<u8>>>>,
}

impl PeerHandler for Told {
    fn call(
        &self,
        _from: u64,
        method: u32,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, String>> {
        let consensus = self.consensus.get().cloned();
        async move {
            match method {
                FORWARD => {
                    let consensus = consensus.ok_or("not started")?;
                    let reply = consensus
                        .propose(body)
                        .await
                        .map_err(|error| error.to_string())?;
                    let index = ToyReply::of(reply).position.index;
                    Ok(Bytes::copy_from_slice(&index.to_le_bytes()))
                }
                ECHO => Ok(body),
                HANG => std::future::pending().await,
                other => Err(format!("no method {other}")),
            }
        }
        .boxed()
    }

    fn foreign_connection(&self, mut stream: BoxedStream) {
        let foreign = self.foreign.clone();
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
                *foreign.lock() = Some(bytes.clone());
            }
        });
    }

    fn removed(&self) {
        *self.removed.lock() = true;
    }

    fn fatal(&self, message: String) {
        *self.fatal.lock() = Some(message);
    }
}

pub(super) struct Directory {
    pub(super) network: Arc<Network>,
    pub(super) toy: Arc<Toy>,
}

impl PeerDirectory for Directory {
    fn addresses(&self, member: u64) -> Vec<PeerAddress> {
        self.network.address(member).into_iter().collect()
    }

    fn is_removed(&self, member: u64) -> bool {
        self.toy.is_removed(member)
    }

    fn is_member(&self, member: u64) -> bool {
        !self.toy.is_removed(member)
    }
}

/// A running member.
pub(super) struct Member {
    pub(super) consensus: Consensus,
    pub(super) toy: Arc<Toy>,
    pub(super) told: Arc<Told>,
}

/// Members that know each other's addresses.
pub(super) struct Cluster {
    pub(super) directory: tempfile::TempDir,
    pub(super) network: Arc<Network>,
    pub(super) members: BTreeMap<u64, Member>,
    options: ConsensusOptions,
}

/// Timers short enough for tests and long enough for a busy machine.
pub(super) fn test_options() -> ConsensusOptions {
    ConsensusOptions {
        heartbeat_interval: Duration::from_millis(100),
        election_timeout: Duration::from_millis(1000),
        ..ConsensusOptions::new(CLUSTER, 0)
    }
}

impl Cluster {
    /// No members yet.
    pub(super) fn new(options: ConsensusOptions) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            network: Arc::default(),
            members: BTreeMap::new(),
            options,
        }
    }

    /// Members 1 to `size`, all voters, with a leader.
    pub(super) async fn of(size: u64, options: ConsensusOptions) -> Self {
        let mut cluster = Self::new(options);
        for member in 1..=size {
            cluster.start(member);
        }
        let voters: BTreeSet<u64> = (1..=size).collect();
        for member in cluster.members.values() {
            let initialized = member.consensus.initialize(voters.clone());
            in_time("a member is initialized", initialized)
                .await
                .unwrap();
        }
        cluster.leader().await;
        cluster
    }

    pub(super) fn start(&mut self, member: u64) {
        self.try_start(member).unwrap();
    }

    pub(super) fn try_start(&mut self, member: u64) -> Result<(), StartError> {
        let directory = self.directory.path().join(member.to_string());
        let started = start_member(&self.options, member, &directory, &self.network)?;
        self.members.insert(member, started);
        Ok(())
    }

    pub(super) async fn stop(&mut self, member: u64) {
        let stopped = self.members.remove(&member).expect("it runs");
        in_time("a member stops", stopped.consensus.shutdown()).await;
        assert_eq!(*stopped.told.fatal.lock(), None);
    }

    pub(super) fn wipe(&self, member: u64) {
        std::fs::remove_dir_all(self.directory.path().join(member.to_string())).unwrap();
    }

    pub(super) fn member(&self, member: u64) -> &Member {
        &self.members[&member]
    }

    pub(super) fn consensus(&self, member: u64) -> &Consensus {
        &self.members[&member].consensus
    }

    /// Waits until all reachable members agree on a leader.
    pub(super) async fn leader(&self) -> u64 {
        self.leader_among(self.members.keys().copied().collect())
            .await
    }

    pub(super) async fn leader_among(&self, members: Vec<u64>) -> u64 {
        let agreed = eventually_or_none(|| {
            let mut named = members
                .iter()
                .map(|member| self.consensus(*member).leader());
            let leader = named.next()??;
            let agreed = named.all(|other| other == Some(leader));
            // A leader that was stopped is named for a while.
            let leads = self.members.get(&leader)?.consensus.is_leader();
            (agreed && leads).then_some(leader)
        })
        .await;
        agreed.unwrap_or_else(|| panic!("no agreement on a leader: {}", self.describe()))
    }

    /// What the members think, for failures.
    fn describe(&self) -> String {
        let mut text = String::new();
        for (id, member) in &self.members {
            text += &format!(
                "\n{id}: {:?}\n   {:?}\n   {:?}",
                member.consensus.status(),
                member.consensus.progress(),
                member.consensus.counters()
            );
        }
        text
    }

    /// Proposes on whatever leads, again until there is a definite result.
    pub(super) async fn propose(&self, command: impl Into<Bytes>) -> ToyReply {
        let command = command.into();
        let deadline = Instant::now() + PATIENCE;
        loop {
            for member in self.members.values() {
                match in_time("a proposal", member.consensus.propose(command.clone())).await {
                    Ok(reply) => return ToyReply::of(reply),
                    Err(ProposeError::NotLeader { .. }) => {}
                    Err(error) => panic!("a proposal failed: {error}"),
                }
            }
            assert!(Instant::now() < deadline, "nobody accepts a proposal");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Proposes `count` commands, many at a time.
    pub(super) async fn propose_many(&self, count: usize) {
        let leader = self.leader().await;
        let consensus = self.consensus(leader);
        let proposals = (0..count).map(|number| consensus.propose(format!("many {number}").into()));
        for result in in_time("many proposals", futures::future::join_all(proposals)).await {
            result.unwrap();
        }
    }

    /// Waits until all members have applied the same commands.
    pub(super) async fn converge(&self) {
        eventually("the members have applied the same", || {
            let mut all = self.members.values().map(|member| member.toy.commands());
            let first = all.next()?;
            let applied: BTreeSet<u64> = self
                .members
                .values()
                .map(|member| member.consensus.applied_index())
                .collect();
            (applied.len() == 1 && all.all(|other| other == first)).then_some(())
        })
        .await;
    }

    /// A linearizable read on a member, repeated while the cluster is unsettled.
    pub(super) async fn read(&self, member: u64) -> Vec<Bytes> {
        let deadline = Instant::now() + PATIENCE;
        let consensus = self.consensus(member);
        loop {
            match in_time("a read index", consensus.read_index()).await {
                Ok(read) => {
                    in_time("a read is applied", consensus.wait_applied(read.index)).await;
                    return self.member(member).toy.commands();
                }
                Err(ReadIndexError::Stopped) => panic!("the member has stopped"),
                Err(_) => assert!(Instant::now() < deadline, "no read index"),
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

pub(super) fn open_log(directory: &Path, member: u64) -> RaftLog {
    let options = LogOptions {
        segment_bytes: 1024 * 1024,
        ..LogOptions::default()
    };
    let identity = LogIdentity {
        cluster_id: CLUSTER,
        member_id: member,
    };
    RaftLog::open(Arc::new(RealDisk), directory, identity, options).unwrap()
}

pub(super) fn start_member(
    options: &ConsensusOptions,
    member: u64,
    directory: &Path,
    network: &Arc<Network>,
) -> Result<Member, StartError> {
    let log = open_log(&directory.join("log"), member);
    start_member_with(options, member, directory, network, log)
}

pub(super) fn start_member_with(
    options: &ConsensusOptions,
    member: u64,
    directory: &Path,
    network: &Arc<Network>,
    log: impl EntryLog,
) -> Result<Member, StartError> {
    let options = ConsensusOptions {
        member_id: member,
        ..options.clone()
    };
    let toy = Arc::new(Toy::open(&directory.join("toy")));
    let told = Arc::new(Told::default());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    network.set_address(
        member,
        PeerAddress::Tcp {
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
            encrypted: false,
        },
    );
    let handler = told.clone();
    let consensus = Consensus::start_with_transport(
        options,
        log,
        toy.clone(),
        Arc::new(Directory {
            network: network.clone(),
            toy: toy.clone(),
        }),
        Arc::new(CuttableConnector {
            network: network.clone(),
            member,
        }),
        move || {
            listener.set_nonblocking(true)?;
            Ok(vec![Box::new(SharedTcpListener {
                listener: tokio::net::TcpListener::from_std(listener)?,
                handler,
            }) as Box<dyn Listener>])
        },
        told.clone(),
    )?;
    let _ = told.consensus.set(consensus.clone());
    Ok(Member {
        consensus,
        toy,
        told,
    })
}
