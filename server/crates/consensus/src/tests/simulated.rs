//! Members without threads, in virtual time, on pipes instead of sockets: what a simulation needs,
//! and the timers without the noise of the machine.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use metastore_raft_log::{LogIdentity, LogOptions, RaftLog, RealDisk};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::cluster::{CLUSTER, Directory, Told, eventually};
use super::network::Network;
use super::toy::Toy;
use crate::peers::PeerAddress;
use crate::transport::{BoxedStream, Connector, Listener, Negotiation};
use crate::{Consensus, ConsensusOptions, PEER_MAGIC};

/// Listeners by port; the port is the member.
#[derive(Default)]
struct Pipes {
    listeners: Mutex<BTreeMap<u16, mpsc::UnboundedSender<DuplexStream>>>,
}

struct PipeConnector(Arc<Pipes>);

impl Connector for PipeConnector {
    fn connect(&self, address: PeerAddress) -> BoxFuture<'static, io::Result<BoxedStream>> {
        let listener = match address {
            PeerAddress::Tcp { port, .. } => self.0.listeners.lock().get(&port).cloned(),
            PeerAddress::Unix { .. } => None,
        };
        Box::pin(async move {
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let (near, far) = duplex(64 * 1024);
            let listener = listener.ok_or_else(refused)?;
            listener.send(far).map_err(|_| refused())?;
            Ok(Box::new(near) as BoxedStream)
        })
    }
}

struct PipeListener(mpsc::UnboundedReceiver<DuplexStream>);

impl Listener for PipeListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Negotiation>> {
        Box::pin(async move {
            let Some(mut stream) = self.0.recv().await else {
                return std::future::pending().await;
            };
            Ok(Box::pin(async move {
                let mut magic = [0; PEER_MAGIC.len()];
                stream.read_exact(&mut magic).await?;
                assert_eq!(magic, PEER_MAGIC);
                Ok(Some(Box::new(stream) as BoxedStream))
            }) as Negotiation)
        })
    }
}

async fn start(
    member: u64,
    directory: &std::path::Path,
    pipes: &Arc<Pipes>,
    network: &Arc<Network>,
    seed: u64,
) -> (Consensus, Arc<Toy>) {
    let port = member as u16;
    let (sender, receiver) = mpsc::unbounded_channel();
    pipes.listeners.lock().insert(port, sender);
    let address = PeerAddress::Tcp {
        host: "pipe".to_owned(),
        port,
        encrypted: false,
    };
    network.set_address(member, address);
    let directory = directory.join(member.to_string());
    let identity = LogIdentity {
        cluster_id: CLUSTER,
        member_id: member,
    };
    let log_options = LogOptions {
        segment_bytes: 64 * 1024,
        ..LogOptions::default()
    };
    let log = RaftLog::open_inline(
        Arc::new(RealDisk),
        &directory.join("log"),
        identity,
        log_options,
    )
    .unwrap();
    let toy = Arc::new(Toy::open(&directory.join("toy")));
    let options = ConsensusOptions {
        random_seed: Some(seed),
        ..ConsensusOptions::new(CLUSTER, member)
    };
    let consensus = Consensus::start_here(
        options,
        log,
        toy.clone(),
        Arc::new(Directory {
            network: network.clone(),
            toy: toy.clone(),
        }),
        Arc::new(PipeConnector(pipes.clone())),
        vec![Box::new(PipeListener(receiver))],
        Arc::new(Told::default()),
    )
    .await
    .unwrap();
    (consensus, toy)
}

/// With the default timers (100 ms, 1 s) a dead leader is replaced not much before one election
/// time-out, mostly before two, and later only when votes were split.
#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_replaced_after_few_election_timeouts() {
    let seed = rand::random();
    let directory = tempfile::tempdir().unwrap();
    let (pipes, network) = (Arc::default(), Arc::default());
    let mut members = BTreeMap::new();
    for member in 1..=3 {
        let started = start(member, directory.path(), &pipes, &network, seed).await;
        members.insert(member, started);
    }
    for (consensus, _) in members.values() {
        consensus.initialize([1, 2, 3].into()).await.unwrap();
    }
    let leader = eventually("a leader", || members[&1].0.leader()).await;
    let reply = members[&leader].0.propose("simulated".into()).await;
    reply.unwrap();
    let contact = Instant::now();
    let (dead, _) = members.remove(&leader).unwrap();
    dead.shutdown().await;
    let survivors: Vec<Consensus> = members.values().map(|(one, _)| one.clone()).collect();
    eventually("another leader", || {
        let mut leaders = survivors.iter().map(Consensus::leader);
        let first = leaders.next()??;
        (first != leader && leaders.all(|other| other == Some(first))).then_some(())
    })
    .await;
    let outage = contact.elapsed();
    assert!(
        (Duration::from_millis(900)..Duration::from_millis(6000)).contains(&outage),
        "no leader for {outage:?}; random_seed = {seed}"
    );
    eventually("the survivors have applied the command", || {
        members
            .values()
            .all(|(_, toy)| toy.commands() == ["simulated"])
            .then_some(())
    })
    .await;
}

/// Longest delay that no timer explains: the clock stands still while anybody works, so whatever waits
/// for a heartbeat (100 ms) shows.
const AT_ONCE: Duration = Duration::from_millis(5);

#[tokio::test(start_paused = true)]
async fn followers_apply_and_read_at_once_and_not_with_the_next_heartbeat() {
    let seed = rand::random();
    let directory = tempfile::tempdir().unwrap();
    let (pipes, network) = (Arc::default(), Arc::default());
    let mut members = BTreeMap::new();
    for member in 1..=3 {
        let started = start(member, directory.path(), &pipes, &network, seed).await;
        members.insert(member, started.0);
    }
    for consensus in members.values() {
        consensus.initialize([1, 2, 3].into()).await.unwrap();
    }
    let leader = eventually("a leader", || {
        let leader = members[&1].leader()?;
        members
            .values()
            .all(|one| one.leader() == Some(leader))
            .then_some(leader)
    })
    .await;
    let mut slowest = [Duration::ZERO; 3];
    for number in 0..30_u64 {
        let started = Instant::now();
        members[&leader].propose("write".into()).await.unwrap();
        slowest[0] = slowest[0].max(started.elapsed());
        let written = members[&leader].status().applied;
        for consensus in members.values() {
            consensus.wait_applied(written).await;
        }
        slowest[1] = slowest[1].max(started.elapsed());
        let started = Instant::now();
        for consensus in members.values() {
            let read = consensus.read_index().await.unwrap();
            consensus.wait_applied(read.index).await;
        }
        slowest[2] = slowest[2].max(started.elapsed());
        // Virtual time, so that the next write comes at another moment between two heartbeats.
        tokio::time::sleep(Duration::from_millis(7 * number % 100)).await;
    }
    assert!(
        slowest.iter().all(|delay| *delay < AT_ONCE),
        "write, apply on all, read on all took up to {slowest:?}; random_seed = {seed}"
    );
}
