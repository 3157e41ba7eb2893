//! The one table of options.
//!
//! Flags, environment variables, keys of the configuration file, `--help`, the reference page and the
//! dump at the start all come from here. The names, kinds and defaults are etcd 3.7's, because
//! manifests, operators and scripts pass them; what an option does here stands in its status.

use super::value::{Kind, Value};

/// The part of `--help` in which an option stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The member and its store.
    Member,
    /// How members find each other.
    Clustering,
    /// TLS and the browser's rules.
    Security,
    /// Users and tokens.
    Auth,
    /// Profiles and metrics.
    Monitoring,
    /// Logs.
    Logging,
    /// OpenTelemetry.
    Tracing,
    /// Checks, limits and intervals.
    Features,
    /// What only MetaStore has.
    MetaStore,
    /// What gives up a promise.
    Unsafe,
}

impl Group {
    /// All groups, in the order of `--help`.
    pub const ALL: &'static [Self] = &[
        Self::Member,
        Self::Clustering,
        Self::Security,
        Self::Auth,
        Self::Monitoring,
        Self::Logging,
        Self::Tracing,
        Self::Features,
        Self::MetaStore,
        Self::Unsafe,
    ];

    /// The headline of `--help`.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Member => "Member",
            Self::Clustering => "Clustering",
            Self::Security => "Security",
            Self::Auth => "Auth",
            Self::Monitoring => "Profiling and Monitoring",
            Self::Logging => "Logging",
            Self::Tracing => "Distributed tracing",
            Self::Features => "Features",
            Self::MetaStore => "MetaStore",
            Self::Unsafe => "Unsafe feature",
        }
    }
}

/// What an option does here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It works.
    Used,
    /// It is accepted and changes nothing, because MetaStore has no use for it; the text says why.
    Ignored(&'static str),
    /// A value other than the default is refused: to run without it would surprise whoever set it.
    Unsupported(&'static str),
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// The flag without dashes; also the key in the configuration file.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// The default, as the command line would write it.
    pub default: &'static str,
    /// The unit, where the kind does not tell it.
    pub unit: &'static str,
    /// What it is for: one sentence.
    pub help: &'static str,
    /// Where it stands in `--help`.
    pub group: Group,
    /// What 0 or the empty value means, where that is not the obvious thing.
    pub empty: &'static str,
    /// What it does here.
    pub status: Status,
    /// The key path in the configuration file if it is not the name, for example
    /// `peer-transport-security.cert-file`.
    pub file_key: &'static str,
}

impl OptionSpec {
    const fn new(
        group: Group,
        name: &'static str,
        kind: Kind,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self {
            name,
            kind,
            default,
            unit: "",
            help,
            group,
            empty: "",
            status: Status::Used,
            file_key: "",
        }
    }

    const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    const fn empty(mut self, meaning: &'static str) -> Self {
        self.empty = meaning;
        self
    }

    const fn ignored(mut self, reason: &'static str) -> Self {
        self.status = Status::Ignored(reason);
        self
    }

    const fn unsupported(mut self, missing: &'static str) -> Self {
        self.status = Status::Unsupported(missing);
        self
    }

    const fn in_file(mut self, key: &'static str) -> Self {
        self.file_key = key;
        self
    }

    /// The default as a value.
    #[must_use]
    pub fn default_value(&self) -> Value {
        // The URL kinds have no text for "none": their empty text means "keep the default".
        if self.default.is_empty() && matches!(self.kind, Kind::Urls) {
            return Value::Urls(Vec::new());
        }
        self.kind
            .parse(self.default)
            .expect("a test parses the default of every option")
    }

    /// The environment variable: `ETCD_` for etcd's options, `METASTORE_` for our own.
    #[must_use]
    pub fn environment_variable(&self) -> String {
        let prefix = if self.group == Group::MetaStore {
            "METASTORE"
        } else {
            "ETCD"
        };
        format!("{prefix}_{}", self.name.to_uppercase().replace('-', "_"))
    }

    /// The path of the key in the configuration file.
    #[must_use]
    pub const fn file_path(&self) -> &'static str {
        if self.file_key.is_empty() {
            self.name
        } else {
            self.file_key
        }
    }
}

/// The option of a name, or of one of its older spellings.
#[must_use]
pub fn find(name: &str) -> Option<&'static OptionSpec> {
    OPTIONS
        .iter()
        .find(|option| option.name == name)
        .or_else(|| {
            let stable = name.strip_prefix("experimental-")?;
            OPTIONS
                .iter()
                .find(|option| option.name == stable && option.group != Group::MetaStore)
        })
}

/// Flags of etcd 3.5 and 3.6 that became feature gates, and the gate of each.
///
/// etcd 3.7 refuses them; older manifests still carry them, so they are accepted here.
pub const FLAGS_THAT_BECAME_GATES: &[(&str, &str)] = &[
    ("experimental-initial-corrupt-check", "InitialCorruptCheck"),
    (
        "experimental-compact-hash-check-enabled",
        "CompactHashCheck",
    ),
    ("experimental-enable-lease-checkpoint", "LeaseCheckpoint"),
    (
        "experimental-enable-lease-checkpoint-persist",
        "LeaseCheckpointPersist",
    ),
    (
        "experimental-txn-mode-write-with-shared-buffer",
        "TxnModeWriteWithSharedBuffer",
    ),
    (
        "experimental-stop-grpc-service-on-defrag",
        "StopGRPCServiceOnDefrag",
    ),
    ("experimental-set-member-localaddr", "SetMemberLocalAddr"),
];

/// The name of the option that holds the gates.
pub const FEATURE_GATES_OPTION: &str = "feature-gates";

const NO_BBOLT: &str = "it tunes bbolt, which MetaStore does not use";
const LEGACY: &str = "it is a flag of an older etcd";

const fn legacy(name: &'static str, kind: Kind) -> OptionSpec {
    OptionSpec::new(Group::Unsafe, name, kind, "", "").ignored(LEGACY)
}

/// Every option of the program, in the order of `--help`.
pub static OPTIONS: &[OptionSpec] = &{
    use Group as G;
    use Kind as K;
    use OptionSpec as O;
    [
        // Member
        O::new(G::Member, "name", K::Text, "default", "Name of this member for people; also its name in --initial-cluster."),
        O::new(G::Member, "data-dir", K::Text, "", "Directory that holds everything the member stores.")
            .empty("`<name>.metastore`, or `<name>.etcd` when the program was started under the name `etcd`"),
        O::new(G::Member, "wal-dir", K::Text, "", "Directory of the log, to put it on a disk of its own.")
            .empty("inside the data directory"),
        O::new(G::Member, "snapshot-count", K::Unsigned, "10000", "Applied entries after which the log may drop what a durable snapshot covers.")
            .unit("entries"),
        O::new(G::Member, "heartbeat-interval", K::Unsigned, "100", "Time between heartbeats of the leader.")
            .unit("ms"),
        O::new(G::Member, "election-timeout", K::Unsigned, "1000", "Time without a heartbeat after which a follower seeks election; at least five heartbeats, at most 50000.")
            .unit("ms"),
        O::new(G::Member, "initial-election-tick-advance", K::Boolean, "true", "Shorten the wait for the first election after a start.")
            .ignored("the first election never waits longer than an election timeout"),
        O::new(G::Member, "listen-peer-urls", K::Urls, "http://localhost:2380", "URLs to listen on for the other members."),
        O::new(G::Member, "listen-client-urls", K::Urls, "http://localhost:2379", "URLs to listen on for clients: gRPC, and HTTP unless --listen-client-http-urls is given."),
        O::new(G::Member, "listen-client-http-urls", K::Urls, "", "URLs to listen on for HTTP only; HTTP then leaves --listen-client-urls.")
            .empty("HTTP is served on --listen-client-urls"),
        O::new(G::Member, "max-snapshots", K::Unsigned, "5", "Snapshot files to keep.")
            .ignored("there are no snapshot files beside the store"),
        O::new(G::Member, "max-wals", K::Unsigned, "5", "Log files to keep.")
            .ignored("the log keeps what --snapshot-catchup-entries asks for and recycles the rest"),
        O::new(G::Member, "memory-mlock", K::Boolean, "false", "Keep the program's memory from being swapped out; needs `ulimit -l unlimited` or CAP_IPC_LOCK."),
        O::new(G::Member, "quota-backend-bytes", K::Signed, "0", "Size of the store above which writes are refused until space is freed.")
            .unit("bytes")
            .empty("0 = 2 GiB; negative = no limit"),
        O::new(G::Member, "backend-bbolt-freelist-type", K::Text, "", "Kind of free list.").ignored(NO_BBOLT),
        O::new(G::Member, "backend-batch-interval", K::Duration, "0s", "Longest time before a commit.").ignored(NO_BBOLT),
        O::new(G::Member, "backend-batch-limit", K::Signed, "0", "Most operations before a commit.").ignored(NO_BBOLT),
        O::new(G::Member, "max-txn-ops", K::Unsigned, "128", "Most operations in one transaction.").unit("operations"),
        O::new(G::Member, "max-request-bytes", K::Unsigned, "1572864", "Largest request of a client.").unit("bytes"),
        O::new(G::Member, "max-concurrent-streams", K::Unsigned32, "4294967295", "Most streams that one connection may have open. All requests to the JSON gateway count as one connection's; those beyond wait.")
            .unit("streams")
            .empty("0 = no limit"),
        O::new(G::Member, "grpc-keepalive-min-time", K::Duration, "5s", "Shortest interval at which a client may ping; faster clients are disconnected.")
            .empty("0 = 5 min"),
        O::new(G::Member, "grpc-keepalive-interval", K::Duration, "2h0m0s", "Interval at which the server pings idle clients.")
            .empty("0 = never"),
        O::new(G::Member, "grpc-keepalive-timeout", K::Duration, "20s", "Time after such a ping before the connection is closed.")
            .empty("0 = never"),
        O::new(G::Member, "socket-reuse-port", K::Boolean, "false", "Set SO_REUSEPORT on listeners.")
            .in_file("socket-options.reuse-port"),
        O::new(G::Member, "socket-reuse-address", K::Boolean, "false", "Set SO_REUSEADDR on listeners.")
            .in_file("socket-options.reuse-address")
            .ignored("listeners always set SO_REUSEADDR"),
        O::new(G::Member, "enable-grpc-gateway", K::Boolean, "true", "Serve the JSON gateway under /v3/."),
        O::new(G::Member, "raft-read-timeout", K::Duration, "5s", "Read timeout of connections between members.")
            .ignored("every call between members has a deadline of its own"),
        O::new(G::Member, "raft-write-timeout", K::Duration, "5s", "Write timeout of connections between members.")
            .ignored("every call between members has a deadline of its own"),
        O::new(G::Member, FEATURE_GATES_OPTION, K::FeatureGates, "", "Switches for features that are not settled."),
        // Clustering
        O::new(G::Clustering, "initial-advertise-peer-urls", K::Urls, "http://localhost:2380", "URLs under which the other members reach this one."),
        O::new(G::Clustering, "initial-cluster", K::Text, "default=http://localhost:2380", "The members with which the cluster starts: name=URL, several separated by commas."),
        O::new(G::Clustering, "initial-cluster-state", K::Choice(&["new", "existing"]), "new", "'new' to form a cluster, 'existing' to join one; without effect once the data directory exists."),
        O::new(G::Clustering, "initial-cluster-token", K::Text, "etcd-cluster", "Text that keeps clusters with equal URLs apart: it goes into the ids of members and cluster."),
        O::new(G::Clustering, "advertise-client-urls", K::Urls, "http://localhost:2379", "URLs under which clients reach this member.")
            .empty("required when --listen-client-urls is given"),
        O::new(G::Clustering, "discovery", K::Text, "", "URL of a v2 discovery service.").unsupported("v2 discovery"),
        O::new(G::Clustering, "discovery-token", K::Text, "", "Token of the cluster in the discovery service.")
            .in_file("discovery-config.token"),
        O::new(G::Clustering, "discovery-endpoints", K::Set, "", "gRPC endpoints of the discovery service.")
            .in_file("discovery-config.client.endpoints"),
        O::new(G::Clustering, "discovery-dial-timeout", K::Duration, "2s", "Time to connect to the discovery service.")
            .in_file("discovery-config.client.dial-timeout"),
        O::new(G::Clustering, "discovery-request-timeout", K::Duration, "5s", "Time for a request to the discovery service.")
            .in_file("discovery-config.client.request-timeout"),
        O::new(G::Clustering, "discovery-keepalive-time", K::Duration, "2s", "Interval of pings to the discovery service. Less than 10s counts as 10s: members hang up on faster ones.")
            .in_file("discovery-config.client.keepalive-time"),
        O::new(G::Clustering, "discovery-keepalive-timeout", K::Duration, "6s", "Time for an answer to such a ping.")
            .in_file("discovery-config.client.keepalive-timeout"),
        O::new(G::Clustering, "discovery-insecure-transport", K::Boolean, "true", "Speak to the discovery service without TLS.")
            .in_file("discovery-config.client.secure.insecure-transport"),
        O::new(G::Clustering, "discovery-insecure-skip-tls-verify", K::Boolean, "false", "Do not check the discovery service's certificate.")
            .in_file("discovery-config.client.secure.insecure-skip-tls-verify"),
        O::new(G::Clustering, "discovery-cert", K::Text, "", "Certificate for the discovery service.")
            .in_file("discovery-config.client.secure.cert"),
        O::new(G::Clustering, "discovery-key", K::Text, "", "Key of that certificate.")
            .in_file("discovery-config.client.secure.key"),
        O::new(G::Clustering, "discovery-cacert", K::Text, "", "Certificate authorities of the discovery service.")
            .in_file("discovery-config.client.secure.cacert"),
        O::new(G::Clustering, "discovery-user", K::Text, "", "User name, or name:password, at the discovery service.")
            .in_file("discovery-config.client.auth.username"),
        O::new(G::Clustering, "discovery-password", K::Text, "", "Password at the discovery service.")
            .in_file("discovery-config.client.auth.password"),
        O::new(G::Clustering, "discovery-fallback", K::Choice(&["exit", "proxy"]), "exit", "What to do when discovery fails.")
            .ignored("only 'exit' exists, as in etcd"),
        O::new(G::Clustering, "discovery-proxy", K::Text, "", "HTTP proxy in front of the v2 discovery service.").unsupported("v2 discovery"),
        O::new(G::Clustering, "discovery-srv", K::Text, "", "DNS domain whose SRV records name the members."),
        O::new(G::Clustering, "discovery-srv-name", K::Text, "", "Service name of those SRV records."),
        O::new(G::Clustering, "strict-reconfig-check", K::Boolean, "true", "Refuse changes of the membership that would cost the quorum."),
        O::new(G::Clustering, "pre-vote", K::Boolean, "true", "Ask before an election, so that a member that was cut off does not disturb the leader when it returns."),
        O::new(G::Clustering, "auto-compaction-retention", K::Text, "0", "History to keep when the store compacts by itself: a duration, or with mode 'revision' a number of revisions.")
            .unit("hours if without a unit").empty("0 = never compact by itself"),
        O::new(G::Clustering, "auto-compaction-mode", K::Text, "periodic", "'periodic' or 'revision': how to read --auto-compaction-retention."),
        O::new(G::Clustering, "v2-deprecation", K::Text, "write-only-drop-data", "Stage at which the v2 store goes away.")
            .ignored("there is no v2 store"),
        // Security
        O::new(G::Security, "cert-file", K::Text, "", "Certificate for clients.").in_file("client-transport-security.cert-file"),
        O::new(G::Security, "key-file", K::Text, "", "Key of that certificate.").in_file("client-transport-security.key-file"),
        O::new(G::Security, "client-cert-auth", K::Boolean, "false", "Demand certificates from clients.").in_file("client-transport-security.client-cert-auth"),
        O::new(G::Security, "client-cert-file", K::Text, "", "Certificate with which the member calls itself.").in_file("client-transport-security.client-cert-file"),
        O::new(G::Security, "client-key-file", K::Text, "", "Key of that certificate.").in_file("client-transport-security.client-key-file"),
        O::new(G::Security, "client-crl-file", K::Text, "", "Revoked certificates of clients.").in_file("client-transport-security.crl-file"),
        O::new(G::Security, "client-cert-allowed-hostname", K::List, "", "Host names that certificates of clients may carry.").in_file("client-transport-security.allowed-hostname"),
        O::new(G::Security, "client-cert-allowed-cn", K::List, "", "Common names that certificates of clients may carry. etcd knows it in the file only.").in_file("client-transport-security.allowed-cn"),
        O::new(G::Security, "trusted-ca-file", K::Text, "", "Certificate authorities of clients.").in_file("client-transport-security.trusted-ca-file"),
        O::new(G::Security, "auto-tls", K::Boolean, "false", "TLS for clients with generated certificates.").in_file("client-transport-security.auto-tls"),
        O::new(G::Security, "peer-cert-file", K::Text, "", "Certificate for the other members.").in_file("peer-transport-security.cert-file"),
        O::new(G::Security, "peer-key-file", K::Text, "", "Key of that certificate.").in_file("peer-transport-security.key-file"),
        O::new(G::Security, "peer-client-cert-auth", K::Boolean, "false", "Demand certificates from the other members.").in_file("peer-transport-security.client-cert-auth"),
        O::new(G::Security, "peer-client-cert-file", K::Text, "", "Certificate with which this member calls the others.").in_file("peer-transport-security.client-cert-file"),
        O::new(G::Security, "peer-client-key-file", K::Text, "", "Key of that certificate.").in_file("peer-transport-security.client-key-file"),
        O::new(G::Security, "peer-trusted-ca-file", K::Text, "", "Certificate authorities of the other members.").in_file("peer-transport-security.trusted-ca-file"),
        O::new(G::Security, "peer-cert-allowed-cn", K::List, "", "Common names that certificates of members may carry.").in_file("peer-transport-security.allowed-cn"),
        O::new(G::Security, "peer-cert-allowed-hostname", K::List, "", "Host names that certificates of members may carry.").in_file("peer-transport-security.allowed-hostname"),
        O::new(G::Security, "peer-auto-tls", K::Boolean, "false", "TLS between members with generated certificates.").in_file("peer-transport-security.auto-tls"),
        O::new(G::Security, "self-signed-cert-validity", K::Unsigned, "1", "Life of generated certificates.").unit("years"),
        O::new(G::Security, "peer-crl-file", K::Text, "", "Revoked certificates of members.").in_file("peer-transport-security.crl-file"),
        O::new(G::Security, "peer-skip-client-san-verification", K::Boolean, "false", "Do not check the host name in certificates of members.").in_file("peer-transport-security.skip-client-san-verification"),
        O::new(G::Security, "cipher-suites", K::List, "", "TLS cipher suites."),
        O::new(G::Security, "tls-min-version", K::Text, "TLS1.2", "Oldest TLS version: TLS1.2 or TLS1.3."),
        O::new(G::Security, "tls-max-version", K::Text, "", "Newest TLS version: TLS1.2 or TLS1.3.").empty("the newest"),
        O::new(G::Security, "cors", K::UrlsOrStar, "*", "Origins from which browsers may use HTTP.")
            .empty("every origin"),
        O::new(G::Security, "host-whitelist", K::Set, "*", "Host names that HTTP requests without TLS may name.")
            .empty("every host"),
        // Auth
        O::new(G::Auth, "auth-token", K::Text, "simple", "Kind of token: 'simple', or 'jwt,sign-method=…,pub-key=…,priv-key=…,ttl=…'."),
        O::new(G::Auth, "bcrypt-cost", K::Unsigned, "10", "Cost of password hashes, 4 to 31; each step doubles their time."),
        O::new(G::Auth, "auth-token-ttl", K::Unsigned, "300", "Life of a simple token after its last use.").unit("s").empty("0 = 300"),
        // Monitoring
        O::new(G::Monitoring, "enable-pprof", K::Boolean, "false", "Serve profiles of the processor's time and of memory under /debug/pprof/."),
        O::new(G::Monitoring, "metrics", K::Text, "basic", "'basic', or 'extensive' for histograms of gRPC calls."),
        O::new(G::Monitoring, "listen-metrics-urls", K::Urls, "", "More URLs to listen on for health and metrics only.")
            .empty("they are served with the other HTTP endpoints only"),
        // Logging
        O::new(G::Logging, "logger", K::Text, "zap", "Only 'zap': structured lines."),
        O::new(G::Logging, "log-outputs", K::Set, "default", "Where to log: 'default', 'stderr', 'stdout' or paths of files."),
        O::new(G::Logging, "log-level", K::Text, "info", "debug, info, warn, error, panic or fatal."),
        O::new(G::Logging, "log-format", K::Text, "json", "json or console."),
        O::new(G::Logging, "enable-log-rotation", K::Boolean, "false", "Rotate the log file: --log-outputs has to name exactly one."),
        O::new(G::Logging, "log-rotation-config-json", K::Text, "{\"maxsize\": 100, \"maxage\": 0, \"maxbackups\": 0, \"localtime\": false, \"compress\": false}", "How to rotate: megabytes of a file, days and number of old files to keep, whether to compress them.")
            .empty("0: 100 megabytes, for ever, all"),
        O::new(G::Logging, "warning-unary-request-duration", K::Duration, "300ms", "Unary requests that take longer are logged."),
        // Tracing
        O::new(G::Tracing, "enable-distributed-tracing", K::Boolean, "false", "Send traces of requests to an OpenTelemetry collector."),
        O::new(G::Tracing, "distributed-tracing-address", K::Text, "localhost:4317", "Address of the collector."),
        O::new(G::Tracing, "distributed-tracing-service-name", K::Text, "etcd", "Service name in traces."),
        O::new(G::Tracing, "distributed-tracing-instance-id", K::Text, "", "Id of this member in traces.")
            .empty("none"),
        O::new(G::Tracing, "distributed-tracing-sampling-rate", K::Signed, "0", "Traces to keep of a million, when the caller has not decided.")
            .empty("0 = only what the caller wants traced"),
        // Features
        O::new(G::Features, "corrupt-check-time", K::Duration, "0s", "Interval of comparisons of the members' data.")
            .empty("0 = never"),
        O::new(G::Features, "compact-hash-check-time", K::Duration, "1m0s", "Interval of comparisons of the members' data at the last compaction, with the gate CompactHashCheck."),
        O::new(G::Features, "compaction-batch-limit", K::Signed, "0", "Revisions that one step of a compaction deletes.")
            .unit("revisions").empty("0 = 1000"),
        O::new(G::Features, "compaction-sleep-interval", K::Duration, "0s", "Pause between the steps of a compaction.")
            .empty("0 = 10 ms"),
        O::new(G::Features, "watch-progress-notify-interval", K::Duration, "0s", "Interval of progress notices to watchers that asked for them; at least 100 ms.")
            .empty("0 = 10 min"),
        O::new(G::Features, "warning-apply-duration", K::Duration, "100ms", "Requests whose execution takes longer are logged."),
        O::new(G::Features, "bootstrap-defrag-threshold-megabytes", K::Unsigned, "0", "Defragment at the start if it frees so much.")
            .unit("MB").empty("0 = never"),
        O::new(G::Features, "max-learners", K::Signed, "1", "Most learners that the cluster may have.").unit("members"),
        O::new(G::Features, "downgrade-check-time", K::Duration, "5s", "Interval of looks whether a downgrade is over.").empty("0 = never"),
        O::new(G::Features, "snapshot-catchup-entries", K::Unsigned, "5000", "Log entries to keep behind a snapshot for slow followers.").unit("entries"),
        // MetaStore
        O::new(G::MetaStore, "engine", K::Choice(&["rocksdb", "memory"]), "rocksdb", "Where the data lives: on disk in RocksDB, or in memory with the log and a snapshot file on disk."),
        O::new(G::MetaStore, "enable-http-api", K::Boolean, "true", "Serve the plain HTTP API under /kv/."),
        O::new(G::MetaStore, "client-threads", K::Unsigned, "0", "Threads that serve clients.").unit("threads").empty("0 = one for every two processors"),
        O::new(G::MetaStore, "client-max-watches", K::Unsigned, "0", "Most watches that one client, a user or else an address, may have.")
            .unit("watches").empty("0 = no limit"),
        O::new(G::MetaStore, "client-max-streams", K::Unsigned, "0", "Most streams (watches, keep-alives, snapshots, observations) that one client may have open.")
            .unit("streams").empty("0 = no limit"),
        O::new(G::MetaStore, "client-max-inflight-bytes", K::Unsigned, "0", "Most bytes that requests of one client and answers that it has not taken yet may have; a single request always passes.")
            .unit("bytes").empty("0 = no limit"),
        O::new(G::MetaStore, "max-list-bytes", K::Unsigned, "0", "Most bytes that all large lists together may have in memory, several times --client-max-inflight-bytes; others wait, at most as long as a request may take.")
            .unit("bytes").empty("0 = no limit"),
        // Unsafe
        O::new(G::Unsafe, "force-new-cluster", K::Boolean, "false", "Start a cluster of one from the data of a member whose cluster lost its majority. Unsafe while another member may still run."),
        O::new(G::Unsafe, "unsafe-no-fsync", K::Boolean, "false", "Do not wait for the disk: a power failure loses acknowledged data.")
            .ignored("every write is synced anyway"),
        // Flags of older versions, which manifests still carry.
        legacy("cluster-active-size", K::Legacy),
        legacy("cluster-remove-delay", K::Legacy),
        legacy("cluster-sync-interval", K::Legacy),
        legacy("config", K::Legacy),
        legacy("force", K::Legacy),
        legacy("max-result-buffer", K::Legacy),
        legacy("max-retry-attempts", K::Legacy),
        legacy("peer-heartbeat-interval", K::Legacy),
        legacy("peer-election-timeout", K::Legacy),
        legacy("retry-interval", K::Legacy),
        legacy("snapshot", K::Legacy),
        legacy("v", K::Legacy),
        legacy("vv", K::Legacy),
        legacy("test.coverprofile", K::Legacy),
        legacy("test.outputdir", K::Legacy),
        legacy("enable-v2", K::Legacy),
        legacy("proxy", K::Text),
        legacy("proxy-failure-wait", K::Text),
        legacy("proxy-refresh-interval", K::Text),
        legacy("proxy-dial-timeout", K::Text),
        legacy("proxy-write-timeout", K::Text),
        legacy("proxy-read-timeout", K::Text),
        legacy("debug", K::Legacy),
        legacy("log-package-levels", K::Text),
        legacy("wait-cluster-ready-timeout", K::Text),
        legacy("enable-v2v3", K::Text),
    ]
};

/// True for the flags of older etcd versions that `--help` does not list.
#[must_use]
pub fn is_legacy(option: &OptionSpec) -> bool {
    option.status == Status::Ignored(LEGACY)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_default_is_a_value_of_its_kind() {
        for option in OPTIONS {
            let value = option.default_value();
            if option.default.is_empty() {
                continue;
            }
            assert_eq!(value.to_string(), option.default, "--{}", option.name);
        }
    }

    #[test]
    fn names_and_places_in_the_file_are_unique() {
        let names: BTreeSet<_> = OPTIONS.iter().map(|option| option.name).collect();
        assert_eq!(names.len(), OPTIONS.len());
        let paths: BTreeSet<_> = OPTIONS.iter().map(OptionSpec::file_path).collect();
        assert_eq!(paths.len(), OPTIONS.len());
    }

    #[test]
    fn help_texts_are_sentences() {
        for option in OPTIONS.iter().filter(|option| !is_legacy(option)) {
            assert!(option.help.ends_with('.'), "--{}", option.name);
        }
    }
}
