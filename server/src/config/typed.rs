//! The checked configuration, with types that say the unit.

use std::path::PathBuf;
use std::time::Duration;

use super::discovery::DiscoverySettings;
use super::feature_gates::FeatureGates;
use super::options::{OPTIONS, is_legacy};
use super::settings::Settings;
use super::tls::TlsSettings;
use super::url::ListenUrl;
use crate::observe::log::LogOptions;
use crate::observe::traces::TraceOptions;

/// Everything that the options say about one member.
///
/// The options are described in `options.rs`; here stands only what the type does not say. Zeros and
/// empty texts that mean something else are resolved already.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--name`.
    pub name: String,
    /// `--data-dir`, or its default, which depends on the name of the member and of the program.
    pub data_dir: PathBuf,
    /// `--wal-dir`; nothing means inside [`Config::data_dir`].
    pub wal_dir: Option<PathBuf>,
    /// `--snapshot-count`.
    pub snapshot_count: u64,
    /// `--snapshot-catchup-entries`.
    pub snapshot_catchup_entries: u64,
    /// `--heartbeat-interval`.
    pub heartbeat_interval: Duration,
    /// `--election-timeout`.
    pub election_timeout: Duration,
    /// `--pre-vote`.
    pub pre_vote: bool,
    /// `--quota-backend-bytes`; nothing means no limit.
    pub quota_backend_bytes: Option<u64>,
    /// `--max-txn-ops`.
    pub max_txn_ops: usize,
    /// `--max-request-bytes`.
    pub max_request_bytes: usize,
    /// `--max-concurrent-streams`.
    pub max_concurrent_streams: u32,
    /// `--max-learners`.
    pub max_learners: usize,
    /// `--grpc-keepalive-min-time`.
    pub grpc_keepalive_min_time: Duration,
    /// `--grpc-keepalive-interval`; nothing means no pings.
    pub grpc_keepalive_interval: Option<Duration>,
    /// `--grpc-keepalive-timeout`; nothing means that a missing answer has no effect.
    pub grpc_keepalive_timeout: Option<Duration>,

    /// `--listen-peer-urls`, at least one.
    pub listen_peer_urls: Vec<ListenUrl>,
    /// `--listen-client-urls`, at least one.
    pub listen_client_urls: Vec<ListenUrl>,
    /// `--listen-client-http-urls`; when not empty, [`Config::listen_client_urls`] serve gRPC only.
    pub listen_client_http_urls: Vec<ListenUrl>,
    /// `--listen-metrics-urls`.
    pub listen_metrics_urls: Vec<ListenUrl>,
    /// `--socket-reuse-port`.
    pub socket_reuse_port: bool,
    /// `--socket-reuse-address`.
    pub socket_reuse_address: bool,

    /// TLS for clients, on `https` and `unixs` URLs.
    pub client_tls: TlsSettings,
    /// TLS between members.
    pub peer_tls: TlsSettings,
    /// `--self-signed-cert-validity`, in years.
    pub self_signed_cert_validity_years: u64,
    /// `--enable-grpc-gateway`.
    pub enable_grpc_gateway: bool,
    /// `--enable-http-api`.
    pub enable_http_api: bool,
    /// `--cors`: origins, or `*`; empty means every origin.
    pub cors: Vec<String>,
    /// `--host-whitelist`: host names, or `*`; empty means every host.
    pub host_whitelist: Vec<String>,

    /// `--initial-advertise-peer-urls`, sorted.
    pub initial_advertise_peer_urls: Vec<ListenUrl>,
    /// `--advertise-client-urls`, sorted.
    pub advertise_client_urls: Vec<ListenUrl>,
    /// `--initial-cluster` as written, or what follows from name and peer URLs. It is read only when
    /// the member has no data yet: [`Config::initial_cluster`].
    pub initial_cluster_text: String,
    /// `--initial-cluster-state`.
    pub initial_cluster_state: ClusterState,
    /// `--initial-cluster-token`.
    pub initial_cluster_token: String,
    /// `--discovery-token`, `--discovery-endpoints` and what belongs to them; nothing without
    /// endpoints.
    pub discovery: Option<DiscoverySettings>,
    /// `--discovery-srv`: the DNS domain whose SRV records name the members.
    pub discovery_srv: Option<String>,
    /// `--discovery-srv-name`; often empty.
    pub discovery_srv_name: String,
    /// `--strict-reconfig-check`.
    pub strict_reconfig_check: bool,

    /// `--auto-compaction-mode` and `--auto-compaction-retention`.
    pub auto_compaction: AutoCompaction,
    /// `--compaction-batch-limit`.
    pub compaction_batch_limit: usize,
    /// `--compaction-sleep-interval`.
    pub compaction_sleep_interval: Duration,
    /// `--watch-progress-notify-interval`.
    pub watch_progress_notify_interval: Duration,
    /// `--warning-apply-duration`.
    pub warning_apply_duration: Duration,
    /// `--warning-unary-request-duration`.
    pub warning_unary_request_duration: Duration,
    /// `--auth-token`, checked when the member starts.
    pub auth_token: String,
    /// `--auth-token-ttl`; zero means 300 s.
    pub auth_token_ttl: Duration,
    /// `--bcrypt-cost`.
    pub bcrypt_cost: u64,
    /// `--feature-gates`.
    pub feature_gates: FeatureGates,
    /// `--force-new-cluster`.
    pub force_new_cluster: bool,
    /// `--corrupt-check-time`; nothing means never.
    pub corrupt_check_time: Option<Duration>,
    /// `--compact-hash-check-time`, never 0.
    pub compact_hash_check_time: Duration,
    /// `--downgrade-check-time`; nothing means never.
    pub downgrade_check_time: Option<Duration>,
    /// `--bootstrap-defrag-threshold-megabytes`; 0 means never.
    pub bootstrap_defrag_threshold_megabytes: u64,

    /// `--enable-pprof`.
    pub enable_pprof: bool,
    /// The options about distributed tracing; nothing: it is off.
    pub traces: Option<TraceOptions>,
    /// `--metrics=extensive`.
    pub extensive_metrics: bool,
    /// `--log-level`, `--log-format` and `--log-outputs`.
    pub log: LogOptions,

    /// `--engine`.
    pub engine: Engine,
    /// `--client-threads`, never 0.
    pub client_threads: usize,
    /// `--client-max-watches`; 0 means no limit.
    pub client_max_watches: u64,
    /// `--client-max-streams`; 0 means no limit.
    pub client_max_streams: u64,
    /// `--client-max-inflight-bytes`; 0 means no limit.
    pub client_max_inflight_bytes: u64,
    /// `--max-list-bytes`; 0 means no limit.
    pub max_list_bytes: u64,
    /// `--memory-mlock`.
    pub memory_mlock: bool,
    /// `--unsafe-no-fsync`.
    pub unsafe_no_fsync: bool,

    pub(super) settings: Settings,
}

/// Whether the member forms a cluster or joins one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// All members of `--initial-cluster` start together.
    New,
    /// The cluster runs and knows of this member already.
    Existing,
}

/// When the store compacts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Never.
    Off,
    /// It keeps the history of this time.
    Periodic(Duration),
    /// It keeps this many revisions.
    Revision(i64),
}

/// Where the data lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// On disk.
    RocksDb,
    /// In memory; the log and a snapshot file on disk make it durable.
    Memory,
}

/// etcd's quota when nobody sets one: 2 GiB.
const DEFAULT_QUOTA_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// Revisions in one step of a compaction when nobody sets them.
const DEFAULT_COMPACTION_BATCH_LIMIT: usize = 1000;
/// Pause between steps of a compaction when nobody sets it.
const DEFAULT_COMPACTION_SLEEP: Duration = Duration::from_millis(10);
/// Interval of progress notices when nobody sets it.
const DEFAULT_PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
/// Shortest interval of progress notices: below it they would crowd out the events.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Threshold of slow unary requests when nobody sets it.
const DEFAULT_WARNING_UNARY: Duration = Duration::from_millis(300);

/// What `validate` worked out and the settings alone do not tell.
pub(super) struct Resolved {
    pub(super) data_dir: PathBuf,
    pub(super) advertise_peer_urls: Vec<ListenUrl>,
    pub(super) advertise_client_urls: Vec<ListenUrl>,
    pub(super) initial_cluster: String,
    pub(super) auto_compaction: AutoCompaction,
    pub(super) log: LogOptions,
    pub(super) traces: Option<TraceOptions>,
}

impl Config {
    pub(super) fn new(settings: Settings, resolved: Resolved) -> Self {
        let Resolved {
            data_dir,
            advertise_peer_urls,
            advertise_client_urls,
            initial_cluster,
            auto_compaction,
            log,
            traces,
        } = resolved;
        let duration = |name| duration(settings.nanoseconds(name));
        let nonzero = |name| Some(duration(name)).filter(|time| !time.is_zero());
        Self {
            name: settings.text("name"),
            data_dir,
            wal_dir: Some(settings.text("wal-dir"))
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            snapshot_count: settings.unsigned("snapshot-count"),
            snapshot_catchup_entries: settings.unsigned("snapshot-catchup-entries"),
            heartbeat_interval: Duration::from_millis(settings.unsigned("heartbeat-interval")),
            election_timeout: Duration::from_millis(settings.unsigned("election-timeout")),
            pre_vote: settings.boolean("pre-vote"),
            quota_backend_bytes: match settings.signed("quota-backend-bytes") {
                0 => Some(DEFAULT_QUOTA_BYTES),
                bytes => u64::try_from(bytes).ok(),
            },
            max_txn_ops: saturating(settings.unsigned("max-txn-ops")),
            max_request_bytes: saturating(settings.unsigned("max-request-bytes")),
            max_concurrent_streams: match settings.unsigned("max-concurrent-streams") {
                // No limit, as in Go's gRPC.
                0 => u32::MAX,
                streams => u32::try_from(streams).unwrap_or(u32::MAX),
            },
            max_learners: usize::try_from(settings.signed("max-learners")).unwrap_or(0),
            grpc_keepalive_min_time: duration("grpc-keepalive-min-time"),
            grpc_keepalive_interval: nonzero("grpc-keepalive-interval"),
            grpc_keepalive_timeout: nonzero("grpc-keepalive-timeout"),
            listen_peer_urls: settings.urls("listen-peer-urls"),
            listen_client_urls: settings.urls("listen-client-urls"),
            listen_client_http_urls: settings.urls("listen-client-http-urls"),
            listen_metrics_urls: settings.urls("listen-metrics-urls"),
            socket_reuse_port: settings.boolean("socket-reuse-port"),
            socket_reuse_address: settings.boolean("socket-reuse-address"),
            client_tls: TlsSettings::of_clients(&settings),
            peer_tls: TlsSettings::of_peers(&settings),
            self_signed_cert_validity_years: settings.unsigned("self-signed-cert-validity"),
            enable_grpc_gateway: settings.boolean("enable-grpc-gateway"),
            enable_http_api: settings.boolean("enable-http-api"),
            cors: settings.list("cors"),
            host_whitelist: settings.list("host-whitelist"),
            initial_advertise_peer_urls: advertise_peer_urls,
            advertise_client_urls,
            initial_cluster_text: initial_cluster,
            initial_cluster_state: match settings.text("initial-cluster-state").as_str() {
                "existing" => ClusterState::Existing,
                _ => ClusterState::New,
            },
            initial_cluster_token: settings.text("initial-cluster-token"),
            discovery: DiscoverySettings::new(&settings),
            discovery_srv: Some(settings.text("discovery-srv")).filter(|domain| !domain.is_empty()),
            discovery_srv_name: settings.text("discovery-srv-name"),
            strict_reconfig_check: settings.boolean("strict-reconfig-check"),
            auto_compaction,
            compaction_batch_limit: usize::try_from(settings.signed("compaction-batch-limit"))
                .ok()
                .filter(|limit| *limit > 0)
                .unwrap_or(DEFAULT_COMPACTION_BATCH_LIMIT),
            compaction_sleep_interval: nonzero("compaction-sleep-interval")
                .unwrap_or(DEFAULT_COMPACTION_SLEEP),
            watch_progress_notify_interval: nonzero("watch-progress-notify-interval")
                .unwrap_or(DEFAULT_PROGRESS_INTERVAL)
                .max(PROGRESS_INTERVAL_MIN),
            warning_apply_duration: duration("warning-apply-duration"),
            warning_unary_request_duration: nonzero("warning-unary-request-duration")
                .unwrap_or(DEFAULT_WARNING_UNARY),
            auth_token: settings.text("auth-token"),
            auth_token_ttl: Duration::from_secs(settings.unsigned("auth-token-ttl")),
            bcrypt_cost: settings.unsigned("bcrypt-cost"),
            feature_gates: settings.gates(),
            enable_pprof: settings.boolean("enable-pprof"),
            traces,
            extensive_metrics: settings.text("metrics") == "extensive",
            force_new_cluster: settings.boolean("force-new-cluster"),
            corrupt_check_time: nonzero("corrupt-check-time"),
            compact_hash_check_time: duration("compact-hash-check-time"),
            downgrade_check_time: nonzero("downgrade-check-time"),
            bootstrap_defrag_threshold_megabytes: settings
                .unsigned("bootstrap-defrag-threshold-megabytes"),
            log,
            engine: match settings.text("engine").as_str() {
                "memory" => Engine::Memory,
                _ => Engine::RocksDb,
            },
            client_max_watches: settings.unsigned("client-max-watches"),
            client_max_streams: settings.unsigned("client-max-streams"),
            client_max_inflight_bytes: settings.unsigned("client-max-inflight-bytes"),
            max_list_bytes: settings.unsigned("max-list-bytes"),
            client_threads: match saturating(settings.unsigned("client-threads")) {
                0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
                threads => threads,
            },
            memory_mlock: settings.boolean("memory-mlock"),
            unsafe_no_fsync: settings.boolean("unsafe-no-fsync"),
            settings,
        }
    }

    /// The value of every option as it is in effect, by flag name and in the order of `--help`: the
    /// dump at the start. Passwords are left out.
    #[must_use]
    pub fn effective(&self) -> Vec<(&'static str, String)> {
        OPTIONS
            .iter()
            .filter(|option| !is_legacy(option) && !option.name.contains("password"))
            .map(|option| (option.name, self.effective_value(option.name)))
            .collect()
    }

    fn effective_value(&self, name: &'static str) -> String {
        match name {
            "data-dir" => self.data_dir.display().to_string(),
            "initial-cluster" => self.initial_cluster_text.clone(),
            // It may hold a password.
            "discovery-user" => self
                .discovery
                .as_ref()
                .and_then(|discovery| Some(discovery.user.as_ref()?.0.clone()))
                .unwrap_or_default(),
            "initial-advertise-peer-urls" => super::url::join(&self.initial_advertise_peer_urls),
            "advertise-client-urls" => super::url::join(&self.advertise_client_urls),
            "quota-backend-bytes" => match self.quota_backend_bytes {
                Some(bytes) => bytes.to_string(),
                None => "-1".to_owned(),
            },
            "compaction-batch-limit" => self.compaction_batch_limit.to_string(),
            "compaction-sleep-interval" => go_duration(self.compaction_sleep_interval),
            "watch-progress-notify-interval" => go_duration(self.watch_progress_notify_interval),
            "client-threads" => self.client_threads.to_string(),
            _ => self.settings.value(name).to_string(),
        }
    }

    /// True if the option was set by flag, environment or file.
    #[must_use]
    pub fn is_set(&self, name: &'static str) -> bool {
        self.settings.is_set(name)
    }

    /// The directory that holds everything of the member: `<data-dir>/member`.
    #[must_use]
    pub fn member_dir(&self) -> PathBuf {
        self.data_dir.join("member")
    }

    /// Writes the effective configuration as one log line, with the flag names as keys.
    pub fn log_effective(&self) {
        use crate::observe::log;
        let fields: Vec<_> = self
            .effective()
            .into_iter()
            .map(|(name, value)| (name, serde_json::Value::from(value)))
            .collect();
        log::record(
            log::Level::Info,
            log::here!(),
            "effective configuration",
            &fields,
        );
    }
}

/// Negative durations mean "at once" wherever Go takes them.
pub(super) fn duration(nanoseconds: i64) -> Duration {
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
}

fn go_duration(time: Duration) -> String {
    super::value::format_duration(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
}

fn saturating(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
