//! From a configuration to a running member, and back to a stopped one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use metastore_consensus::{
    Consensus, ConsensusOptions, PeerAddress, PeerDirectory, PeerHandler, StartError,
};
use metastore_proto::internal::membership_command::Change;
use metastore_proto::internal::{Bootstrap, MemberRecord, MembershipCommand};
use metastore_raft_log::{LogIdentity, LogOptions, RaftLog, RealDisk};
use metastore_store::engine::EngineError;
use metastore_watch::{Hub, HubOptions};
use prost::Message;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::application::Application;
use crate::auth::{AuthManager, TokenOptionsError, TokenProvider};
use crate::auto_compaction;
use crate::backup::etcd_directory::import_at_start;
use crate::backup::import::ImportError;
use crate::bootstrap::{self, BootstrapError};
use crate::cluster_version;
use crate::compaction;
use crate::config::{Config, Engine, ListenUrl};
use crate::corruption;
use crate::engines::EngineDirectory;
use crate::identity_file::{self, Identity, SeedMember};
use crate::init_daemon;
use crate::lease_manager::LeaseManager;
use crate::listen::{ClientThreads, Traffic};
use crate::listeners::{self, ClientSocket};
use crate::member_directory::MemberDirectory;
use crate::membership;
use crate::memory_lock;
use crate::node::{GRPC_OVERHEAD_BYTES, Node};
use crate::observe::heap_profile;
use crate::observe::log::{self, Level};
use crate::observe::metrics::{LogObserver, METRICS, runtimes};
use crate::observe::traces;
use crate::peer_activity;
use crate::peer_service::{PeerEvent, PeerService};
use crate::peer_transport::{self, PeerDialer};
use crate::space::SpaceGauge;
use crate::tasks;
use crate::tls::TlsError;
use crate::waiters::Waiters;

/// HTTP connections on the peer port that may wait to be served.
const PEER_HTTP_CONNECTIONS_MAX: usize = 256;
/// How long a new member that could serve clients waits for the version of the cluster.
const CLUSTER_VERSION_WAIT_MAX: Duration = Duration::from_millis(500);
/// How often it looks.
const CLUSTER_VERSION_INTERVAL: Duration = Duration::from_millis(5);
/// How long a stopping leader tries to hand over. With the rest of the stop the process ends within
/// 1.5 s.
const HAND_OVER_TIMEOUT: Duration = Duration::from_millis(700);
/// How long a stopping member writes its memory to disk, which only makes the next start faster. What
/// handing over did not need of its own time comes on top.
const FINAL_FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// Bytes of commands since the last snapshot before the next one, unless `--snapshot-count` was set.
/// The memory engine replays them at each start, in less than a second.
const SNAPSHOT_LOG_BYTES: u64 = 32 << 20;
/// The same for RocksDB, which flushes by itself and replays only what it had not flushed. A snapshot
/// flushes everything for the sake of a log that can be purged, so it is as rare as the log may be
/// large.
const ROCKSDB_SNAPSHOT_LOG_BYTES: u64 = 128 << 20;

/// Why a member does not start or has to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Who the member is could not be decided.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// A file or a socket.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Certificates, keys and URLs that do not fit.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A data directory of etcd could not be taken over.
    #[error("cannot import the data directory of etcd: {0}")]
    Import(#[from] ImportError),
    /// The log.
    #[error("cannot open the log: {0}")]
    Log(#[from] metastore_raft_log::LogError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Consensus.
    #[error(transparent)]
    Consensus(#[from] StartError),
    /// Tokens.
    #[error(transparent)]
    Tokens(#[from] TokenOptionsError),
    /// Other members say that this one was removed, before it served clients.
    #[error(
        "this member has been permanently removed from its cluster; delete its data directory, and add \
             it to the cluster again if it is to come back"
    )]
    Removed,
    /// The running member cannot go on.
    #[error("{0}")]
    Fatal(String),
}

struct Peers {
    directory: Arc<MemberDirectory>,
    seeds: Vec<SeedMember>,
}

impl PeerDirectory for Peers {
    fn addresses(&self, member: u64) -> Vec<PeerAddress> {
        let directory = self.directory.current();
        let urls = match directory.members.get(&member) {
            Some(member) => &member.peer_urls,
            None => match self.seeds.iter().find(|seed| seed.id == member) {
                Some(seed) => &seed.peer_urls,
                None => return Vec::new(),
            },
        };
        urls.iter()
            .filter_map(|url| ListenUrl::parse(url).ok())
            .map(|url| peer_transport::address_of(&url))
            .collect()
    }

    fn is_removed(&self, member: u64) -> bool {
        self.directory.current().removed.contains(&member)
    }

    fn is_member(&self, member: u64) -> bool {
        let directory = self.directory.current();
        directory.members.contains_key(&member)
            || (!directory.removed.contains(&member)
                && self.seeds.iter().any(|seed| seed.id == member))
    }
}

fn prepare_data_directory(config: &Config) -> std::io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let directory = config.member_dir();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(|error| {
            std::io::Error::new(
                error.kind(),
                format!(
                    "cannot create data directory {}: {error}",
                    directory.display()
                ),
            )
        })?;
    Ok(directory)
}

/// Whether a directory is missing, empty, or has nothing in it but the lock.
fn holds_no_files(directory: &Path) -> std::io::Result<bool> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    for entry in entries {
        if entry?.metadata()?.len() > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn consensus_options(config: &Config, identity: &Identity) -> ConsensusOptions {
    let mut options = ConsensusOptions::new(identity.cluster_id, identity.member_id);
    options.heartbeat_interval = config.heartbeat_interval;
    options.election_timeout = config.election_timeout;
    options.pre_vote = config.pre_vote;
    options.snapshot_entries = config.snapshot_count;
    options.snapshot_catchup_entries = config.snapshot_catchup_entries;
    options.snapshot_log_bytes = match config.engine {
        _ if config.is_set("snapshot-count") => 0,
        Engine::Memory => SNAPSHOT_LOG_BYTES,
        Engine::RocksDb => ROCKSDB_SNAPSHOT_LOG_BYTES,
    };
    options
}

/// Makes this member the only one of its cluster, whose others are lost: the next entry of its log
/// says so.
fn force_new_cluster(log: &RaftLog, member_id: u64) -> std::io::Result<()> {
    tracing::warn!(
        "local-member-id" = format!("{member_id:x}"),
        "forcing a new cluster: this member becomes the only one, the others are removed"
    );
    let command = MembershipCommand {
        change: Some(Change::ForceSingle(member_id)),
        ..MembershipCommand::default()
    };
    metastore_consensus::force_single_member(log, member_id, command.encode_to_vec().into())
}

fn bootstrap_command(identity: &Identity) -> Option<Bootstrap> {
    identity.forms_cluster.then(|| Bootstrap {
        cluster_id: identity.cluster_id,
        members: identity
            .seeds
            .iter()
            .map(|seed| MemberRecord {
                id: seed.id,
                // A member is "started" once it has published its name itself.
                name: String::new(),
                peer_urls: seed.peer_urls.clone(),
                client_urls: Vec::new(),
                is_learner: false,
            })
            .collect(),
    })
}

/// Runs a member until it is told to stop.
///
/// # Errors
/// See [`RunError`]; its text is for the person who started the program.
pub fn run(config: Config) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("admin")
        .build()?;
    runtimes::register(&runtime);
    runtime.block_on(run_async(config))
}

async fn run_async(mut config: Config) -> Result<(), RunError> {
    // A page of 2 MiB is cleared while a put waits for it: 4 to 6 ms on a virtual machine, several times in a
    // second. Rates and CPU time are the same with pages of 4 KiB.
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay on");
    }
    if config.extensive_metrics {
        METRICS.measure_calls();
    }
    if let Some(options) = &config.traces {
        traces::start(options)
            .map_err(|error| RunError::Fatal(format!("cannot send traces: {error}")))?;
    }
    if config.enable_pprof {
        heap_profile::start();
        tracing::info!(path = "/debug/pprof", "pprof is enabled");
    }
    if config.memory_mlock {
        memory_lock::lock().map_err(RunError::Fatal)?;
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Programs in Go live through these, and the scripts of whoever rotates logs send them.
    let _ignored = [
        signal(SignalKind::user_defined1())?,
        signal(SignalKind::user_defined2())?,
    ];
    let tokens = TokenProvider::from_options(&config.auth_token, config.auth_token_ttl)?;
    let directory = prepare_data_directory(&config)?;
    listeners::generate_certificates(&mut config)?;
    let peer_sockets = listeners::bind_peers(&config)?;
    let client_sockets = listeners::bind_clients(&config)?;
    // As etcd: without authorities of their own, members that were found by DNS are known by the
    // domain.
    let server_name = config
        .discovery_srv
        .clone()
        .filter(|_| config.peer_tls.trusted_ca_file.is_none());
    let dialer = PeerDialer::open(&config.peer_tls, server_name)?;

    let is_new = identity_file::read(&directory)?.is_none();
    import_at_start(&config, is_new)?;
    let mut identity = match identity_file::read(&directory)? {
        Some(identity) => {
            if let Some(discovery) = &config.discovery {
                tracing::warn!(
                    token = discovery.token,
                    "discovery token is ignored since cluster already initialized; valid logs are found"
                );
            }
            identity
        }
        None => {
            // Finding the other members may take for ever.
            let identity = tokio::select! {
                identity = bootstrap::decide(&config, &dialer) => identity?,
                never = listeners::turn_away(&peer_sockets) => match never {},
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
            };
            identity_file::write(&directory, &identity)?;
            identity
        }
    };
    tracing::info!(
        "local-member-id" = format!("{:x}", identity.member_id),
        "cluster-id" = format!("{:x}", identity.cluster_id),
        "data-dir" = %config.data_dir.display(),
        engine = ?config.engine,
        "starting member"
    );

    let log_directory = config
        .wal_dir
        .clone()
        .unwrap_or_else(|| directory.join("log"));
    if identity.log_exists && holds_no_files(&log_directory)? {
        return Err(RunError::Fatal(format!(
            "the log files in {} are gone: they held what this member has acknowledged, and without \
             them it could vote twice; put them back, or remove the member from its cluster, delete \
             {} and add the member again (a member that is alone: restore it from a snapshot)",
            log_directory.display(),
            config.data_dir.display()
        )));
    }
    let log = RaftLog::open(
        Arc::new(RealDisk),
        &log_directory,
        LogIdentity {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
        },
        LogOptions {
            observer: Some(Arc::new(LogObserver)),
            ..LogOptions::default()
        },
    )?;
    let replayed = log.state().last.map(|last| last.index);
    let auth = AuthManager::new(tokens, config.bcrypt_cost, replayed);
    let is_restart = identity.log_exists;
    if !identity.log_exists {
        identity.log_exists = true;
        identity_file::write(&directory, &identity)?;
    }
    if is_restart && config.force_new_cluster {
        force_new_cluster(&log, identity.member_id)?;
    }
    let forms_cluster = identity.forms_cluster && log.state().last.is_none();
    if forms_cluster {
        let voters: BTreeSet<u64> = identity.seeds.iter().map(|seed| seed.id).collect();
        metastore_consensus::form_cluster(&log, identity.member_id, voters)?;
    }
    let engines = EngineDirectory::new(config.engine, &directory)?;
    let waiters = Arc::new(Waiters::new(rand::random()));
    let leases = Arc::new(LeaseManager::new(
        config.election_timeout,
        config.feature_gates.is_enabled("LeaseCheckpoint"),
    ));
    let hub_options = HubOptions {
        fragment_bytes: config.max_request_bytes + GRPC_OVERHEAD_BYTES,
        progress_interval: config.watch_progress_notify_interval,
        ..HubOptions::default()
    };
    let application = Arc::new(Application::open(
        identity.member_id,
        engines,
        waiters,
        leases,
        auth,
        hub_options,
        SpaceGauge::new(config.quota_backend_bytes),
        config.warning_apply_duration,
    )?);

    if let Some(refusal) = application.directory.current().refuses_this_program() {
        return Err(RunError::Fatal(refusal));
    }

    let hash_at_start = if is_restart
        && config
            .feature_gates
            .is_enabled(corruption::INITIAL_CHECK_GATE)
    {
        let hash = application.reader().hash_kv(0);
        Some(hash.map_err(|error| RunError::Fatal(format!("cannot hash the store: {error}")))?)
    } else {
        None
    };

    let (events, mut peer_events) = mpsc::unbounded_channel();
    let (http_sender, http_connections) = mpsc::channel(PEER_HTTP_CONNECTIONS_MAX);
    let peer_service = Arc::new(PeerService::new(events.clone(), http_sender));
    let peers = Arc::new(Peers {
        directory: Arc::clone(&application.directory),
        seeds: identity.seeds.clone(),
    });
    let handler = Arc::clone(&peer_service) as Arc<dyn PeerHandler>;
    let for_listeners = Arc::clone(&handler);
    let consensus = Consensus::start_with_transport(
        consensus_options(&config, &identity),
        log,
        Arc::clone(&application) as _,
        peers,
        Arc::new(dialer),
        move || peer_transport::listeners(peer_sockets, &for_listeners),
        handler,
    )?;
    let (stop, stopping) = watch::channel(false);
    let node = Arc::new(Node::new(
        config,
        identity.member_id,
        identity.cluster_id,
        application,
        consensus,
        stopping,
    ));
    peer_service.serve(Arc::clone(&node));
    if let Some(hash) = hash_at_start
        && let Err(error) = node.check_at_start(hash).await
    {
        tracing::error!(%error, "checkInitialHashKV failed");
        node.consensus.shutdown().await;
        return Err(RunError::Fatal(error.to_string()));
    }
    if forms_cluster {
        node.consensus.campaign().await;
    } else {
        node.consensus.campaign_if_alone().await;
    }

    start_threads(&node, &events)?;
    tokio::spawn(listeners::serve_peer_http(
        Arc::clone(&node),
        http_connections,
    ));
    tokio::spawn(tasks::follow_leadership(
        Arc::clone(&node),
        bootstrap_command(&identity),
    ));
    tokio::spawn(tasks::expire_leases(Arc::clone(&node)));
    tokio::spawn(tasks::report_progress(Arc::clone(&node)));
    tokio::spawn(cluster_version::follow_versions(Arc::clone(&node)));
    tokio::spawn(cluster_version::end_downgrades(Arc::clone(&node)));
    tokio::spawn(corruption::check_periodically(Arc::clone(&node)));
    tokio::spawn(corruption::check_compactions(Arc::clone(&node)));
    tokio::spawn(auto_compaction::run(Arc::clone(&node)));
    tokio::spawn(tasks::watch_space(Arc::clone(&node)));
    tokio::spawn(tasks::watch_files(Arc::clone(&node)));
    tokio::spawn(tasks::defragment_at_start(Arc::clone(&node)));
    tokio::spawn(tasks::expire_tokens(Arc::clone(&node)));
    tokio::spawn(peer_activity::run(Arc::clone(&node)));
    tokio::spawn(membership::give_votes(Arc::clone(&node)));
    let ready = Arc::new(AtomicBool::new(false));
    serve_clients(&node, client_sockets, Arc::clone(&ready))?;

    let outcome = tokio::select! {
        _ = terminate.recv() => { tracing::info!(signal = "terminated", "received signal; shutting down"); Ok(()) }
        _ = interrupt.recv() => { tracing::info!(signal = "interrupt", "received signal; shutting down"); Ok(()) }
        event = peer_events.recv() => match event {
            Some(PeerEvent::Fatal(message)) => Err(RunError::Fatal(message)),
            Some(PeerEvent::Removed) | None => {
                tracing::warn!(
                    "local-member-id" = format!("{:x}", node.member_id),
                    "the member has been permanently removed from the cluster"
                );
                tracing::warn!(
                    "data-dir" = %node.config.data_dir.display(),
                    "data-dir used by this member must be removed"
                );
                // As etcd: an end that was asked for, or a start that failed.
                if ready.load(Ordering::Acquire) {
                    Ok(())
                } else {
                    Err(RunError::Removed)
                }
            }
        },
    };
    log_end(&node.config, "closing etcd server");
    if outcome.is_ok() {
        stop_gently(&node).await;
    }
    stop.send_replace(true);
    node.application.hub.close();
    node.application.compaction.close();
    node.consensus.shutdown().await;
    // It waits for the collector, on whose connection this thread works.
    if traces::is_on() && tokio::task::spawn_blocking(traces::stop).await.is_err() {
        tracing::warn!("the last traces were not sent");
    }
    log_end(&node.config, "closed etcd server");
    outcome
}

/// etcd's lines at the beginning and the end of a stop.
fn log_end(config: &Config, text: &'static str) {
    let urls =
        |urls: &[ListenUrl]| -> Vec<String> { urls.iter().map(ToString::to_string).collect() };
    log::record(
        Level::Info,
        log::here!(),
        text,
        &[
            ("name", config.name.as_str().into()),
            ("data-dir", config.data_dir.display().to_string().into()),
            (
                "advertise-peer-urls",
                urls(&config.initial_advertise_peer_urls).into(),
            ),
            (
                "advertise-client-urls",
                urls(&config.advertise_client_urls).into(),
            ),
        ],
    );
}

fn start_threads(
    node: &Arc<Node>,
    events: &mpsc::UnboundedSender<PeerEvent>,
) -> std::io::Result<()> {
    for (name, body) in [
        ("watch", Hub::run as fn(&Hub) -> Result<(), EngineError>),
        ("watch-catch-up", Hub::run_catch_up),
    ] {
        let hub = node.application.hub.clone();
        let events = events.clone();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if let Err(error) = body(&hub) {
                    // The receiver ends only when the process does.
                    let _ = events.send(PeerEvent::Fatal(format!("watch failed: {error}")));
                }
            })?;
    }
    let application = Arc::clone(&node.application);
    let (batch, pause) = (
        node.config.compaction_batch_limit,
        node.config.compaction_sleep_interval,
    );
    let events = events.clone();
    thread::Builder::new()
        .name("compaction".to_owned())
        .spawn(move || {
            compaction::run(&application, batch, pause, |message| {
                // The receiver ends only when the process does.
                let _ = events.send(PeerEvent::Fatal(message));
            });
        })?;
    Ok(())
}

/// Threads that serve clients when `--client-threads` is 0. One thread saturates more than one core
/// of consensus and storage work, so every second core gets one.
fn client_thread_count(config: &Config) -> usize {
    if config.is_set("client-threads") {
        return config.client_threads;
    }
    thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

/// Serves health and metrics at once, because probes ask a member that is still starting, and the
/// other endpoints when the member is ready.
fn serve_clients(
    node: &Arc<Node>,
    sockets: Vec<ClientSocket>,
    ready: Arc<AtomicBool>,
) -> std::io::Result<()> {
    let threads = Arc::new(ClientThreads::start(
        node,
        client_thread_count(&node.config),
    )?);
    let (metrics, others): (Vec<_>, Vec<_>) = sockets
        .into_iter()
        .partition(|socket| socket.endpoint.traffic == Traffic::Metrics);
    for socket in metrics {
        socket.serve(&threads)?;
    }
    let node = Arc::clone(node);
    tokio::spawn(async move {
        // A member serves clients once its cluster knows it: etcd's "ready".
        tasks::publish(Arc::clone(&node)).await;
        let mut status = node.watch_status();
        if status
            .wait_for(|status| status.leader.is_some())
            .await
            .is_err()
        {
            return;
        }
        wait_for_cluster_version(&node).await;
        ready.store(true, Ordering::Release);
        for socket in others {
            tracing::info!("ready to serve client requests");
            if let Err(error) = socket.serve(&threads) {
                tracing::error!(%error, "failed to listen for clients");
                return;
            }
        }
        init_daemon::notify_ready();
    });
    Ok(())
}

/// Waits for the leader's first decision about the version of a new cluster, which takes it milliseconds when
/// the other members can be asked. Until then nobody can join, and what depends on the version is refused.
async fn wait_for_cluster_version(node: &Node) {
    let decided = async {
        while node.application.directory.current().version().is_none() {
            tokio::time::sleep(CLUSTER_VERSION_INTERVAL).await;
        }
    };
    // Serving matters more: the decision waits for members that may be down.
    let _ = tokio::time::timeout(CLUSTER_VERSION_WAIT_MAX, decided).await;
}

/// Hands the leadership to the follower that has been connected longest, and writes what is in
/// memory to disk.
async fn stop_gently(node: &Arc<Node>) {
    let started = Instant::now();
    if node.is_leader() {
        let status = node.status();
        let target = node
            .consensus
            .progress()
            .into_iter()
            .filter(|peer| peer.id != node.member_id && status.voters.contains(&peer.id))
            .max_by_key(|peer| (peer.matched, node.peers.active_for(peer.id)));
        match target {
            Some(target) => {
                let handed_over = node
                    .consensus
                    .transfer_leader(target.id, HAND_OVER_TIMEOUT)
                    .await;
                match handed_over {
                    Ok(()) => tracing::info!(
                        "new-leader-member-id" = format!("{:x}", target.id),
                        took = ?started.elapsed(),
                        "leadership transfer finished"
                    ),
                    Err(error) => tracing::warn!(%error, "leadership transfer failed"),
                }
            }
            None => tracing::info!("skipped leadership transfer for single voting member cluster"),
        }
    }
    let engine = node.reader().engine();
    let flush = tokio::task::spawn_blocking(move || engine.flush());
    let left = (HAND_OVER_TIMEOUT + FINAL_FLUSH_TIMEOUT).saturating_sub(started.elapsed());
    if tokio::time::timeout(left, flush).await.is_err() {
        tracing::info!("the final flush takes long; the next start replays the log instead");
    }
}
