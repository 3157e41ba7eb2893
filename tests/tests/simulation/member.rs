//! A simulated member: a runtime with an own clock, which ends as a process or a machine does.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use std::{io, thread};

use bytes::Bytes;
use futures::future::BoxFuture;
use metastore_consensus::{
    BoxedStream, Consensus, ConsensusOptions, MembershipChange, PeerAddress, PeerDirectory,
    PeerHandler, form_cluster,
};
use metastore_raft_log::simulation::SimulatedDisk;
use metastore_raft_log::{LogIdentity, LogOptions, RaftLog};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::leases::{LeaseEnds, expire_leases, follow_leadership};
use crate::machine::{Kept, Machine};
use crate::network::Network;

/// Those that form the cluster.
pub(crate) const FIRST_MEMBERS: [u64; 3] = [1, 2, 3];
/// Ids are never used again, so a simulation can add members as long as there are some left.
pub(crate) const MEMBER_ID_MAX: u64 = 14;
const CLUSTER: u64 = 0x51;
/// How often a leader looks for members that can have their votes.
const VOTE_INTERVAL: Duration = Duration::from_millis(50);
/// Shorter than in production, so that more happens in a simulated second.
const HEARTBEAT: Duration = Duration::from_millis(30);
pub(crate) const ELECTION_TIMEOUT: Duration = Duration::from_millis(300);
/// Few, so that members which were away for a while need a snapshot.
const SNAPSHOT_ENTRIES: u64 = 150;
const CATCHUP_ENTRIES: u64 = 40;
const SEGMENT_BYTES: u64 = 32 * 1024;
/// Longest wait of a request for a healthy disk, in milliseconds.
const DISK_DELAY_MAX: u64 = 3;

/// A runtime in virtual time that is driven from outside.
pub(crate) struct Clock {
    pub(crate) runtime: Runtime,
    start: Instant,
    start_tick: u64,
}

impl Clock {
    pub(crate) fn new(tick: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let start = runtime.block_on(async { Instant::now() });
        Self {
            runtime,
            start,
            start_tick: tick,
        }
    }

    /// Runs everything up to a tick (a millisecond). When some were skipped the clock jumps first.
    pub(crate) fn run_until(&self, tick: u64) {
        let target = self.start + Duration::from_millis(tick - self.start_tick);
        self.runtime.block_on(async {
            let behind = target - Instant::now();
            if behind > Duration::from_millis(1) {
                tokio::time::advance(behind).await;
            }
            // Virtual time: the others' part of this tick.
            tokio::time::sleep_until(target).await;
        });
    }
}

/// What requests of clients run on.
pub(crate) struct Running {
    pub(crate) consensus: Consensus,
    pub(crate) machine: Arc<Machine>,
}

/// Something to be done by a member, on its own runtime.
pub(crate) type Request = Box<dyn FnOnce(Arc<Running>) -> BoxFuture<'static, ()> + Send>;
/// How clients reach a member; `None` while it is down.
pub(crate) type Door = Arc<Mutex<Option<mpsc::UnboundedSender<Request>>>>;

/// How a member ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The process is killed: what it wrote is there.
    Killed,
    /// The machine loses power: what was not synced is there or not, sector by sector.
    PowerLost,
}

pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) door: Door,
    pub(crate) disk: SimulatedDisk,
    pub(crate) kept: Arc<Mutex<Kept>>,
    /// Milliseconds by which a slow disk delays everything.
    pub(crate) disk_delay: Arc<AtomicU64>,
    /// Set when the disk of this process is about to fail, and with it the process.
    pub(crate) doomed: Arc<AtomicBool>,
    pub(crate) paused_until: u64,
    /// Another member told this one that it was removed.
    pub(crate) told_removed: Arc<AtomicBool>,
    started: bool,
    /// It ended because it was removed, and never comes back.
    pub(crate) gone: bool,
    /// Whether its log acknowledges without a sync: a fault that the simulation must find.
    forgetful: bool,
    lease_ends: Arc<LeaseEnds>,
    ended: Option<End>,
    clock: Option<Clock>,
    directory: PathBuf,
    network: Network,
    failures: Arc<Mutex<Vec<String>>>,
    random: StdRng,
}

impl Member {
    pub(crate) fn new(
        id: u64,
        directory: PathBuf,
        network: Network,
        failures: Arc<Mutex<Vec<String>>>,
        lease_ends: Arc<LeaseEnds>,
        seed: u64,
        forgetful: bool,
    ) -> Self {
        Self {
            id,
            door: Arc::default(),
            disk: SimulatedDisk::new(),
            kept: Arc::default(),
            disk_delay: Arc::default(),
            doomed: Arc::default(),
            paused_until: 0,
            told_removed: Arc::default(),
            started: false,
            gone: false,
            forgetful,
            lease_ends,
            ended: None,
            clock: None,
            directory,
            network,
            failures,
            random: StdRng::seed_from_u64(seed.wrapping_add(id)),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.clock.is_some()
    }

    /// It has started once, and was not removed.
    pub(crate) fn exists(&self) -> bool {
        self.started && !self.gone
    }

    pub(crate) fn run_until(&self, tick: u64) {
        if let Some(clock) = &self.clock
            && tick >= self.paused_until
        {
            clock.run_until(tick);
        }
    }

    pub(crate) fn end(&mut self, end: End) {
        *self.door.lock() = None;
        match end {
            End::Killed => self.network.stop_listening(self.id),
            End::PowerLost => {
                self.network.silence(self.id);
                self.disk.lose_power();
            }
        }
        self.clock = None;
        self.ended = Some(end);
        self.paused_until = 0;
    }

    /// Starts the member, from what its disk has kept. With an empty disk one of the first members
    /// forms the cluster, and another waits until a leader finds it.
    pub(crate) fn start(&mut self, tick: u64) {
        match self.ended.take() {
            Some(End::PowerLost) => {
                let random = &mut self.random;
                self.disk
                    .restart_machine(&mut |choices| random.random_range(0..choices));
            }
            Some(End::Killed) => self.disk.kill_processes(),
            None => {}
        }
        self.started = true;
        self.doomed = Arc::default();
        let clock = Clock::new(tick);
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.door.lock() = Some(sender);
        let parts = Parts {
            id: self.id,
            disk: self.disk.clone(),
            kept: self.kept.clone(),
            directory: self.directory.clone(),
            network: self.network.clone(),
            disk_delay: self.disk_delay.clone(),
            forgetful: self.forgetful,
            lease_ends: self.lease_ends.clone(),
            told: Told {
                member: self.id,
                doomed: self.doomed.clone(),
                removed: self.told_removed.clone(),
                failures: self.failures.clone(),
            },
            seed: self.random.random(),
        };
        let failures = self.failures.clone();
        let id = self.id;
        clock.runtime.spawn(async move {
            let doomed = parts.told.doomed.clone();
            if let Err(error) = parts.run(receiver).await
                && !doomed.load(Ordering::Relaxed)
            {
                failures
                    .lock()
                    .push(format!("member {id} cannot start: {error}"));
            }
        });
        self.clock = Some(clock);
    }
}

struct Parts {
    id: u64,
    disk: SimulatedDisk,
    kept: Arc<Mutex<Kept>>,
    directory: PathBuf,
    network: Network,
    disk_delay: Arc<AtomicU64>,
    forgetful: bool,
    lease_ends: Arc<LeaseEnds>,
    told: Told,
    seed: u64,
}

impl Parts {
    async fn run(self, mut requests: mpsc::UnboundedReceiver<Request>) -> Result<(), String> {
        let identity = LogIdentity {
            cluster_id: CLUSTER,
            member_id: self.id,
        };
        let log_options = LogOptions {
            segment_bytes: SEGMENT_BYTES,
            unsafe_no_sync: self.forgetful,
            ..LogOptions::default()
        };
        let path = PathBuf::from("/log");
        let log = RaftLog::open_stepwise(Arc::new(self.disk), &path, identity, log_options)
            .map_err(|error| error.to_string())?;
        let forms_cluster = FIRST_MEMBERS.contains(&self.id) && log.state().last.is_none();
        if forms_cluster {
            form(&log, self.id).map_err(|error| error.to_string())?;
        }
        tokio::spawn(turn_disk(log.clone(), self.disk_delay, self.seed));
        let machine = Machine::open(self.directory, self.kept, self.lease_ends)
            .map_err(|error| error.to_string())?;
        let machine = Arc::new(machine);
        let options = ConsensusOptions {
            heartbeat_interval: HEARTBEAT,
            election_timeout: ELECTION_TIMEOUT,
            snapshot_entries: SNAPSHOT_ENTRIES,
            snapshot_catchup_entries: CATCHUP_ENTRIES,
            random_seed: Some(self.seed),
            ..ConsensusOptions::new(CLUSTER, self.id)
        };
        let consensus = Consensus::start_here(
            options,
            log,
            machine.clone(),
            Arc::new(Directory(machine.clone())),
            self.network.connector(self.id),
            vec![self.network.listen(self.id)],
            Arc::new(self.told),
        )
        .await
        .map_err(|error| error.to_string())?;
        if forms_cluster {
            consensus.campaign().await;
        }
        let running = Arc::new(Running { consensus, machine });
        tokio::spawn(follow_leadership(running.clone()));
        tokio::spawn(expire_leases(running.clone()));
        tokio::spawn(give_votes(running.clone()));
        while let Some(request) = requests.recv().await {
            tokio::spawn(request(running.clone()));
        }
        Ok(())
    }
}

/// Writes the first membership as a server does before its consensus runs.
fn form(log: &RaftLog, member: u64) -> io::Result<()> {
    // It waits for the disk, which moves only when it is told to.
    thread::scope(|scope| {
        let forming = scope.spawn(|| form_cluster(log, member, FIRST_MEMBERS.into()));
        while !forming.is_finished() {
            if !log.step() {
                thread::yield_now();
            }
        }
        forming.join().expect("forming does not panic")
    })
}

/// Gives the disk a speed of its own.
async fn turn_disk(log: RaftLog, delay: Arc<AtomicU64>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let wait = random.random_range(1..=DISK_DELAY_MAX) + delay.load(Ordering::Relaxed);
        // Virtual time that the disk takes.
        tokio::time::sleep(Duration::from_millis(wait)).await;
        log.step();
    }
}

/// Gives members that were added as voters their votes when they have come, as the server does.
async fn give_votes(running: Arc<Running>) {
    loop {
        // Virtual time between two looks.
        tokio::time::sleep(VOTE_INTERVAL).await;
        let consensus = &running.consensus;
        if !consensus.is_leader() {
            continue;
        }
        let voters = consensus.voters();
        for member in running.machine.members.current().voters() {
            if !voters.contains(&member.id) && consensus.has_caught_up(member.id) == Some(true) {
                let change = MembershipChange::Promote(member.id);
                // Whatever was in the way, there is another time.
                let _ = consensus.change_membership(change, Bytes::new()).await;
            }
        }
    }
}

/// The port is the member.
struct Directory(Arc<Machine>);

impl PeerDirectory for Directory {
    fn addresses(&self, member: u64) -> Vec<PeerAddress> {
        let port = u16::try_from(member).unwrap();
        vec![PeerAddress::Tcp {
            host: "simulated".into(),
            port,
            encrypted: false,
        }]
    }

    fn is_removed(&self, member: u64) -> bool {
        self.0.members.current().removed.contains(&member)
    }

    fn is_member(&self, member: u64) -> bool {
        let directory = self.0.members.current();
        directory.members.contains_key(&member)
    }
}

/// What consensus tells its owner.
struct Told {
    member: u64,
    doomed: Arc<AtomicBool>,
    removed: Arc<AtomicBool>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl PeerHandler for Told {
    fn call(&self, _: u64, _: u32, _: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(std::future::ready(Err(
            "the simulation has no such call".into()
        )))
    }

    fn foreign_connection(&self, _stream: BoxedStream) {}

    fn removed(&self) {
        self.removed.store(true, Ordering::Relaxed);
    }

    fn fatal(&self, message: String) {
        if !self.doomed.load(Ordering::Relaxed) {
            self.failures
                .lock()
                .push(format!("member {} cannot go on: {message}", self.member));
        }
    }
}
