//! The running parts of a member's consensus, all on one runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Config, Raft, SnapshotPolicy, StepDownPolicy};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::apply::{AppliedClock, FatalReporter, StateMachineAdapter};
use crate::consensus::ConsensusStatus;
use crate::counters::Counters;
use crate::entry_log::EntryLog;
use crate::error::StartError;
use crate::leadership::{Contact, Leadership, Role};
use crate::log_adapter::LogAdapter;
use crate::options::ConsensusOptions;
use crate::peers::{PeerDirectory, PeerHandler};
use crate::raft_types::TypeConfig;
use crate::read_index::{ReadIndexRounds, RoundContext};
use crate::runtime::seed_this_thread;
use crate::state_machine::StateMachine;
use crate::transport::control::ControlService;
use crate::transport::dialer::{Dialer, Identity, Timeouts};
use crate::transport::network::NetworkFactory;
use crate::transport::server::PeerServer;
use crate::transport::snapshot::SnapshotService;
use crate::transport::{Connector, Listener, Peers};

pub(crate) type RaftNode = Raft<TypeConfig, StateMachineAdapter>;

/// Least time that an answer of a peer is waited for: a sync of a slow disk.
const ANSWER_TIMEOUT_MIN: Duration = Duration::from_millis(500);
/// Entries that are purged from the log at a time, so that not every entry costs a record.
const PURGE_BATCH_MAX: u64 = 1000;
/// Followers get a snapshot when the entries that they need were purged, never for mere lag.
const LAG_THRESHOLD: u64 = 1 << 40;
/// Longest message to a follower in entries; its bytes are bounded by the log reader.
const APPEND_ENTRIES_MAX: u64 = 1024;
/// Only the transport knows whether a snapshot makes progress; this is openraft's last resort.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// What a member is started with, apart from where it runs.
pub(crate) struct Parts {
    pub(crate) options: ConsensusOptions,
    pub(crate) log: Arc<dyn EntryLog>,
    pub(crate) state_machine: Arc<dyn StateMachine>,
    pub(crate) directory: Arc<dyn PeerDirectory>,
    pub(crate) handler: Arc<dyn PeerHandler>,
    pub(crate) connector: Arc<dyn Connector>,
    /// Whether the state machine gets a thread; a simulation has none.
    pub(crate) apply_thread: bool,
}

/// What the handle keeps of a started member.
pub(crate) struct Node {
    pub(crate) raft: RaftNode,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) applied: Arc<AppliedClock>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) rounds: ReadIndexRounds,
    pub(crate) counters: Arc<Counters>,
    pub(crate) fatal: Arc<FatalReporter>,
    pub(crate) status: watch::Receiver<ConsensusStatus>,
    pub(crate) log: Arc<dyn EntryLog>,
    pub(crate) apply_thread: Option<JoinHandle<()>>,
}

/// openraft's configuration for etcd's two timers.
///
/// openraft's follower campaigns after the leader's lease (its `election_timeout_max`) plus a
/// random time in `[min, max)`. With min = E/3 and max = 2E/3 that is E to 4/3 E after the last
/// contact, where etcd has E to 2E.
pub(crate) fn raft_config(options: &ConsensusOptions) -> Result<Config, StartError> {
    let heartbeat = millis(options.heartbeat_interval);
    let election = millis(options.election_timeout);
    if heartbeat == 0 || election < 5 * heartbeat {
        return Err(StartError::Options(format!(
            "the election timeout ({election} ms) must be at least 5 heartbeat intervals \
             ({heartbeat} ms)"
        )));
    }
    if options.snapshot_entries == 0 {
        return Err(StartError::Options("snapshot_entries must not be 0".into()));
    }
    // openraft skips a heartbeat when it sent something else within this time; a follower must
    // survive the longest gap that this makes.
    let suppression = heartbeat / 2;
    let longest_gap = suppression + heartbeat + heartbeat / 4 + 1;
    let config = Config {
        cluster_name: format!("{:x}", options.cluster_id),
        heartbeat_interval: heartbeat,
        heartbeat_min_interval: Some(if election / 3 > longest_gap {
            suppression
        } else {
            0
        }),
        election_timeout_min: election / 3,
        election_timeout_max: election * 2 / 3,
        enable_pre_vote: Some(options.pre_vote),
        quorum_loss_probe_interval: Some(2 * election),
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        max_payload_entries: APPEND_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: options.snapshot_catchup_entries,
        purge_batch_size: (options.snapshot_entries / 10).clamp(1, PURGE_BATCH_MAX),
        replication_lag_threshold: LAG_THRESHOLD,
        install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
        removed_leader_step_down: StepDownPolicy::After(election / 3),
        api_batch_linger_ms: 0,
        ..Config::default()
    };
    config
        .validate()
        .map_err(|error| StartError::Options(error.to_string()))
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().min(u128::from(u64::MAX)) as u64
}

impl Node {
    /// Starts everything on the current runtime.
    pub(crate) async fn start(
        parts: Parts,
        listeners: Vec<Box<dyn Listener>>,
    ) -> Result<Self, StartError> {
        let Parts {
            options,
            log,
            state_machine,
            directory,
            handler,
            connector,
            apply_thread,
        } = parts;
        let config = Arc::new(raft_config(&options)?);
        if let Some(seed) = options.random_seed {
            seed_this_thread(seed);
        }
        let counters = Arc::new(Counters::default());
        let applied = Arc::new(AppliedClock::default());
        let fatal = Arc::new(FatalReporter::new(handler.clone()));
        let dialer = Arc::new(Dialer {
            identity: Identity {
                cluster_id: options.cluster_id,
                member_id: options.member_id,
            },
            directory,
            handler,
            connector,
            counters: counters.clone(),
            timeouts: timeouts(&options),
        });
        let peers = Arc::new(Peers::new(
            dialer.clone(),
            tokio::runtime::Handle::current(),
        ));
        let (adapter, apply_thread) = if apply_thread {
            let (adapter, thread) = StateMachineAdapter::with_thread(
                state_machine.clone(),
                applied.clone(),
                fatal.clone(),
                counters.clone(),
            )?;
            (adapter, Some(thread))
        } else {
            let adapter = StateMachineAdapter::inline(
                state_machine.clone(),
                applied.clone(),
                fatal.clone(),
                counters.clone(),
            );
            (adapter, None)
        };
        let building = adapter.building();
        let alone = adapter.alone();
        let raft = RaftNode::new(
            options.member_id,
            config,
            NetworkFactory {
                peers: peers.clone(),
            },
            LogAdapter::new(log.clone(), counters.clone()),
            adapter,
        )
        .await
        .map_err(|error| StartError::Storage(error.to_string()))?;
        let contact = Arc::new(Contact::default());
        let leadership = Arc::new(Leadership::new(
            options.member_id,
            options.election_timeout,
            raft.server_metrics(),
            raft.data_metrics(),
            contact.clone(),
            applied.clone(),
        ));
        let rounds = ReadIndexRounds::start(RoundContext {
            member: options.member_id,
            raft: raft.clone(),
            leadership: leadership.clone(),
            peers: peers.clone(),
            counters: counters.clone(),
            timeout: options.election_timeout,
        });
        let server = Arc::new(PeerServer {
            dialer,
            raft: raft.clone(),
            contact: contact.clone(),
            control: Arc::new(ControlService {
                raft: raft.clone(),
                leadership: leadership.clone(),
                rounds: rounds.clone(),
            }),
            snapshots: SnapshotService {
                raft: raft.clone(),
                state_machine,
                counters: counters.clone(),
                progress_timeout: options.snapshot_progress_timeout,
                receiving: Mutex::new(()),
            },
        });
        for listener in listeners {
            tokio::spawn(server.clone().accept(listener));
        }
        let (sender, status) = watch::channel(leadership.status());
        tokio::spawn(
            Caretaker {
                options,
                raft: raft.clone(),
                leadership: leadership.clone(),
                contact,
                applied: applied.clone(),
                peers: peers.clone(),
                counters: counters.clone(),
                fatal: fatal.clone(),
                building,
                alone,
                log: log.clone(),
                snapshot_at_bytes: AtomicU64::new(0),
                sender,
                last_leader: None,
                last_ping: Instant::now(),
            }
            .run(),
        );
        Ok(Self {
            raft,
            leadership,
            applied,
            peers,
            rounds,
            counters,
            fatal,
            status,
            log,
            apply_thread,
        })
    }
}

fn timeouts(options: &ConsensusOptions) -> Timeouts {
    let answer = ANSWER_TIMEOUT_MIN.max(5 * options.heartbeat_interval);
    Timeouts {
        connect: answer.max(options.election_timeout),
        answer,
        transfer: answer + options.election_timeout,
        snapshot_progress: options.snapshot_progress_timeout,
    }
}

/// Does what is to be done now and then: publishes the status, triggers snapshots, looks for the
/// end of the core, and asks whether this member was removed when nobody speaks to it.
struct Caretaker {
    options: ConsensusOptions,
    raft: RaftNode,
    leadership: Arc<Leadership>,
    contact: Arc<Contact>,
    applied: Arc<AppliedClock>,
    peers: Arc<Peers>,
    counters: Arc<Counters>,
    fatal: Arc<FatalReporter>,
    building: Arc<AtomicBool>,
    /// See [`StateMachineAdapter::alone`].
    alone: Arc<AtomicBool>,
    log: Arc<dyn EntryLog>,
    /// [`AppliedClock::payload_bytes`] when the last snapshot was asked for.
    snapshot_at_bytes: AtomicU64,
    sender: watch::Sender<ConsensusStatus>,
    last_leader: Option<u64>,
    last_ping: Instant,
}

impl Caretaker {
    async fn run(mut self) {
        let mut changes = self.raft.server_metrics();
        let mut interval = tokio::time::interval(self.options.heartbeat_interval);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let ended = tokio::select! {
                changed = changes.changed() => changed.is_err(),
                due = interval.tick() => {
                    self.count_late_heartbeat(due);
                    false
                }
            };
            self.leadership.tick();
            self.be_alone(self.leadership.role().sole_voter);
            self.log.write_hints();
            let status = self.leadership.status();
            self.count_leader(&status);
            self.sender.send_if_modified(|published| {
                let changed = *published != status;
                if changed {
                    *published = status;
                }
                changed
            });
            if ended {
                self.report_end();
                return;
            }
            self.trigger_snapshot().await;
            self.ping_when_silent();
        }
    }

    /// What holds this task up holds up heartbeats as well: they share a thread.
    fn count_late_heartbeat(&self, due: Instant) {
        let role = self.leadership.role();
        let late = due.elapsed() > self.options.heartbeat_interval;
        if late && role.leads && !role.sole_voter {
            self.counters
                .late_heartbeats
                .fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Without other voters the core's thread need not be free for heartbeats, so it syncs and
    /// applies by itself: a write is answered after two changes of thread instead of five.
    fn be_alone(&self, alone: bool) {
        if self.alone.swap(alone, Ordering::Relaxed) != alone {
            self.log.set_caller_writes(alone);
        }
    }

    fn count_leader(&mut self, status: &ConsensusStatus) {
        if let Some(leader) = status.leader
            && self.last_leader != Some(leader)
        {
            self.last_leader = Some(leader);
            self.counters.leader_changes.fetch_add(1, Ordering::Relaxed);
            tracing::info!(
                leader = format_args!("{leader:x}"),
                term = status.term,
                "the cluster has a leader"
            );
        }
    }

    /// The core ended. Unless that was asked for this member cannot go on.
    fn report_end(&self) {
        let state = self.raft.metrics().borrow_watched().running_state.clone();
        let reason = match state {
            Ok(()) => "the consensus core ended".to_owned(),
            Err(fatal) => format!("the consensus core ended: {fatal}"),
        };
        self.fatal.report(reason);
    }

    async fn trigger_snapshot(&self) {
        let count = |last: Option<u64>| last.map_or(0, |index| index + 1);
        let entries =
            count(self.applied.index()).saturating_sub(count(self.leadership.snapshot_index()));
        let bytes = self.applied.payload_bytes();
        let since = bytes.saturating_sub(self.snapshot_at_bytes.load(Ordering::Relaxed));
        if entries >= self.options.snapshot_entries
            && since >= self.options.snapshot_log_bytes
            && !self.building.load(Ordering::Acquire)
        {
            self.snapshot_at_bytes.store(bytes, Ordering::Relaxed);
            // Fails only when the core has stopped.
            let _ = self.raft.trigger().snapshot().await;
        }
    }

    /// A learner does not campaign, so nobody would tell it that it was removed.
    fn ping_when_silent(&mut self) {
        self.peers.forget_removed();
        let Role { leads, .. } = self.leadership.role();
        let patience = 2 * self.options.election_timeout;
        let silent = self
            .contact
            .silence()
            .is_none_or(|silence| silence > patience);
        if leads || !silent || self.last_ping.elapsed() < patience {
            return;
        }
        self.last_ping = Instant::now();
        for (member, _) in self.leadership.membership().nodes() {
            if *member != self.options.member_id {
                let (peers, member) = (self.peers.clone(), *member);
                tokio::spawn(async move { peers.ping(member).await });
            }
        }
    }
}
