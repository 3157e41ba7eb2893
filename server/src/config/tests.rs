use std::ffi::OsString;
use std::time::Duration;

use super::*;

fn parse_as(
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<Parsed, ConfigError> {
    Config::from_process(
        [program].iter().chain(arguments).map(OsString::from),
        environment
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value))),
    )
}

fn start(arguments: &[&str], environment: &[(&str, &str)]) -> (Config, Vec<Notice>) {
    match parse_as("metastore", arguments, environment) {
        Ok(Parsed::Start { config, notices }) => (*config, notices),
        other => panic!("{arguments:?} should start: {other:?}"),
    }
}

fn refused(arguments: &[&str], environment: &[(&str, &str)]) -> ConfigError {
    match parse_as("metastore", arguments, environment) {
        Err(error) => error,
        Ok(parsed) => panic!("{arguments:?} should be refused: {parsed:?}"),
    }
}

fn from_file(text: &str) -> Result<Parsed, ConfigError> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("metastore.yml");
    std::fs::write(&path, text).expect("the file can be written");
    parse_as(
        "metastore",
        &["--config-file", path.to_str().expect("UTF-8")],
        &[],
    )
}

#[test]
fn the_defaults_are_those_of_etcd() {
    let (config, _) = start(&[], &[]);
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir.to_str(), Some("default.metastore"));
    assert_eq!(join(&config.listen_client_urls), "http://localhost:2379");
    assert_eq!(join(&config.advertise_client_urls), "http://localhost:2379");
    assert_eq!(join(&config.listen_peer_urls), "http://localhost:2380");
    assert_eq!(config.initial_cluster_text, "default=http://localhost:2380");
    assert_eq!(config.heartbeat_interval, Duration::from_millis(100));
    assert_eq!(config.election_timeout, Duration::from_secs(1));
    assert_eq!(config.quota_backend_bytes, Some(2 * 1024 * 1024 * 1024));
    assert_eq!(config.max_txn_ops, 128);
    assert_eq!(config.max_request_bytes, 1_572_864);
    assert_eq!(config.snapshot_count, 10_000);
    assert_eq!(
        config.watch_progress_notify_interval,
        Duration::from_secs(600)
    );
    assert_eq!(config.compaction_batch_limit, 1000);
    assert_eq!(
        config.grpc_keepalive_interval,
        Some(Duration::from_secs(7200))
    );
    assert_eq!(config.auto_compaction, AutoCompaction::Off);
    assert_eq!(config.engine, Engine::RocksDb);
    assert!(config.client_threads >= 1);
    assert!(config.pre_vote && config.strict_reconfig_check);
    let cluster = config.initial_cluster().expect("valid");
    assert_eq!(
        format!("{:x}", cluster.member_ids("etcd-cluster")["default"]),
        "8e9e05c52164694d"
    );
    assert_eq!(
        format!("{:x}", cluster.cluster_id("etcd-cluster")),
        "cdf818194e3a8c32"
    );
}

#[test]
fn the_default_directory_follows_the_name_of_member_and_program() {
    for (program, arguments, directory) in [
        ("/usr/bin/metastore", &["--name=a"][..], "a.metastore"),
        ("/usr/bin/etcd", &["--name=a"], "a.etcd"),
        ("etcd", &[], "default.etcd"),
        ("etcd", &["--data-dir=/x"], "/x"),
    ] {
        let Ok(Parsed::Start { config, .. }) = parse_as(program, arguments, &[]) else {
            panic!("{program} should start")
        };
        assert_eq!(
            config.data_dir.to_str(),
            Some(directory),
            "{program} {arguments:?}"
        );
    }
}

#[test]
fn zeros_mean_what_etcd_means() {
    let (config, _) = start(
        &["--quota-backend-bytes=-1", "--grpc-keepalive-interval=0"],
        &[],
    );
    assert_eq!(config.quota_backend_bytes, None);
    assert_eq!(config.grpc_keepalive_interval, None);
    let (config, _) = start(&["--watch-progress-notify-interval=1ms"], &[]);
    assert_eq!(
        config.watch_progress_notify_interval,
        Duration::from_millis(100)
    );
}

#[test]
fn a_bad_command_line_ends_with_status_two_and_others_with_one() {
    let error = refused(&["--nmae=a"], &[]);
    assert_eq!(error.exit_code(), 2);
    assert!(
        error
            .to_string()
            .starts_with("flag provided but not defined: -nmae\nUsage:")
    );
    let error = refused(&["serve"], &[]);
    assert_eq!(error.exit_code(), 1);
    assert_eq!(error.to_string(), "\"serve\" is not a valid flag");
    assert_eq!(
        refused(&["--name", "a"], &[("ETCD_NAME", "b")]).exit_code(),
        1
    );
}

#[test]
fn help_and_version_are_printed() {
    let Ok(Parsed::Print { stdout, .. }) = parse_as("metastore", &["--help"], &[]) else {
        panic!("--help prints")
    };
    // envtest looks for this flag before it passes it.
    assert!(stdout.contains("--unsafe-no-fsync"));
    assert!(stdout.contains("--engine 'rocksdb'"));
    let Ok(Parsed::Print { stdout, .. }) = parse_as("metastore", &["--version"], &[]) else {
        panic!("--version prints")
    };
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines[0], "etcd Version: 3.7.3");
    assert!(lines[1].starts_with("Git SHA: "));
    assert!(lines[2].starts_with("Go Version: "));
    assert!(lines[3].starts_with("Go OS/Arch: "));
    assert_eq!(
        lines[4],
        format!("MetaStore Version: {}", crate::version::METASTORE_VERSION)
    );
}

#[test]
fn help_names_every_flag_once() {
    let help = help_text();
    for option in OPTIONS.iter().filter(|option| !is_legacy(option)) {
        let line = format!("  --{} '", option.name);
        assert_eq!(help.matches(&line).count(), 1, "--{}", option.name);
    }
}

#[test]
fn the_environment_sets_what_flags_do_not() {
    let (config, notices) = start(
        &["--heartbeat-interval=50"],
        &[
            ("ETCD_NAME", "a"),
            ("ETCD_WATCH_PROGRESS_NOTIFY_INTERVAL", "5s"),
            ("METASTORE_ENGINE", "memory"),
            ("ETCD_PRE_VOTE", "false"),
            ("ETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK", "true"),
            ("ETCD_NMAE", "x"),
            ("ETCD_DATA_DIR", ""),
            ("METASTORE_PORT", "tcp://10.0.0.1:2379"),
            ("PATH", "/bin"),
        ],
    );
    assert_eq!(config.name, "a");
    assert_eq!(config.engine, Engine::Memory);
    assert!(!config.pre_vote);
    assert!(config.feature_gates.is_enabled("InitialCorruptCheck"));
    assert_eq!(
        config.watch_progress_notify_interval,
        Duration::from_secs(5)
    );
    assert_eq!(config.data_dir.to_str(), Some("a.metastore"));
    let unknown: Vec<_> = notices
        .iter()
        .filter(|notice| notice.message == "unrecognized environment variable")
        .collect();
    assert_eq!(unknown.len(), 1, "{unknown:?}");
    assert_eq!(unknown[0].fields[0].1, "ETCD_NMAE");
}

#[test]
fn the_environment_must_not_contradict_the_flags() {
    let error = refused(&["--name=a"], &[("ETCD_NAME", "a")]);
    assert_eq!(
        error,
        ConfigError::Conflict {
            variable: "ETCD_NAME".to_owned()
        }
    );
    assert!(error.to_string().contains(
        "conflicting environment variable is shadowed by corresponding command-line flag"
    ));
    let error = refused(&[], &[("ETCD_ELECTION_TIMEOUT", "soon")]);
    assert_eq!(
        error.to_string(),
        "invalid value \"soon\" for ETCD_ELECTION_TIMEOUT: parse error"
    );
    // An empty variable counts as unset.
    start(&["--name=a"], &[("ETCD_NAME", "")]);
}

#[test]
fn the_file_replaces_flags_and_environment() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("metastore.yml");
    std::fs::write(&path, "name: file\n").expect("the file can be written");
    let path = path.to_str().expect("UTF-8");
    for (arguments, environment) in [
        (
            &["--config-file", path, "--name=flag"][..],
            &[("ETCD_NAME", "environment")][..],
        ),
        (
            &["--name=flag"],
            &[("ETCD_CONFIG_FILE", path), ("ETCD_PRE_VOTE", "false")],
        ),
    ] {
        let (config, _) = start(arguments, environment);
        assert_eq!(config.name, "file");
        assert!(config.pre_vote);
    }
    let error = refused(&["--config-file=/no/such/file"], &[]);
    assert_eq!(
        error.to_string(),
        "open /no/such/file: no such file or directory"
    );
}

#[test]
fn a_file_with_every_key_of_the_etcd_sample_starts_the_server() {
    // The keys and kinds of values of etcd's own sample, with what it sets.
    let text = "
name: 'default'
data-dir:
wal-dir:
snapshot-count: 10000
heartbeat-interval: 100
election-timeout: 1000
quota-backend-bytes: 0
listen-peer-urls: http://localhost:2380
listen-client-urls: http://localhost:2379
max-snapshots: 5
max-wals: 5
cors:
initial-advertise-peer-urls: http://localhost:2380
advertise-client-urls: http://localhost:2379
discovery:
discovery-fallback: 'proxy'
discovery-proxy:
discovery-srv:
initial-cluster:
initial-cluster-token: 'etcd-cluster'
initial-cluster-state: 'new'
strict-reconfig-check: false
enable-pprof: true
proxy: 'off'
proxy-failure-wait: 5000
proxy-refresh-interval: 30000
proxy-dial-timeout: 1000
proxy-write-timeout: 5000
proxy-read-timeout: 0
client-transport-security:
  # A comment.
  cert-file:
  key-file:
  client-cert-auth: false
  trusted-ca-file:
  auto-tls: false
peer-transport-security:
  cert-file:
  client-cert-auth: false
  auto-tls: false
  allowed-cn:
  allowed-hostname:
self-signed-cert-validity: 1
log-level: debug
logger: zap
log-outputs: [stderr]
force-new-cluster: false
auto-compaction-mode: periodic
auto-compaction-retention: \"1\"
cipher-suites: [
  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
]
tls-min-version: 'TLS1.2'
tls-max-version: 'TLS1.3'
";
    let Ok(Parsed::Start { config, notices }) = from_file(text) else {
        panic!("the sample should start: {:?}", from_file(text))
    };
    assert!(!config.strict_reconfig_check);
    assert_eq!(
        config.auto_compaction,
        AutoCompaction::Periodic(Duration::from_secs(3600))
    );
    let later: Vec<_> = notices
        .iter()
        .filter(|notice| notice.message.contains("has no effect yet"))
        .map(|notice| notice.message.as_str())
        .collect();
    assert!(later.is_empty(), "{later:?}");
    assert!(
        !notices
            .iter()
            .any(|notice| notice.message.contains("unknown key")),
        "{notices:?}"
    );
}

#[test]
fn wrong_settings_are_refused_with_the_texts_of_etcd() {
    for (arguments, text) in [
        (
            &["--listen-client-urls=http://127.0.0.1:2379"][..],
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            &["--listen-peer-urls=http://example.com:2380"],
            "expected IP in URL for binding (http://example.com:2380)",
        ),
        (
            &["--listen-metrics-urls=http://example.com:2381"],
            "expected IP in URL for binding (http://example.com:2381)",
        ),
        (
            &["--initial-advertise-peer-urls=http://:2380"],
            "--initial-advertise-peer-urls \"http://:2380\" must be \"host:port\" (unexpected empty host (http://:2380))",
        ),
        (
            &["--heartbeat-interval=300"],
            "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[300ms]",
        ),
        (
            &["--heartbeat-interval=0"],
            "--heartbeat-interval must be >0 (set to 0ms)",
        ),
        (
            &["--election-timeout=0"],
            "--election-timeout must be >0 (set to 0ms)",
        ),
        (
            &["--election-timeout=50001"],
            "--election-timeout[50001ms] is too long, and should be set less than 50000ms",
        ),
        (
            &["--auto-compaction-mode=daily"],
            "unknown auto-compaction-mode \"daily\"",
        ),
        (
            &["--auto-compaction-mode="],
            "undefined auto-compaction-mode",
        ),
        (
            &["--auto-compaction-retention=soon"],
            "error parsing CompactionRetention: time: invalid duration \"soon\"",
        ),
        (
            &["--discovery-token=x"],
            "both --discovery-token and --discovery-endpoints must be set",
        ),
        (
            &[
                "--initial-cluster=default=http://localhost:2380",
                "--discovery-srv=example.com",
            ],
            "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\"",
        ),
        (
            &["--discovery-fallback=proxy"],
            "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"",
        ),
        (
            &["--compact-hash-check-time=0"],
            "--compact-hash-check-time must be >0 (set to 0s)",
        ),
        (
            &["--logger=capnslog"],
            "--logger=capnslog is removed in v3.5",
        ),
        (&["--logger=x"], "unknown logger option \"x\""),
        (
            &["--log-outputs=default,stdout"],
            "multi logoutput for \"default\" is not supported yet",
        ),
        (
            &["--log-format=xml"],
            "unknown log format: xml, supported values json, console",
        ),
        (
            &["--tls-min-version=TLS1.1"],
            "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)",
        ),
        (
            &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
            "min version (TLS1.3) is greater than max version (TLS1.2)",
        ),
        (
            &["--tls-min-version=TLS1.3", "--cipher-suites=a"],
            "cipher suites cannot be configured when only TLS1.3 is enabled",
        ),
        (
            &["--feature-gates=LeaseCheckpointPersist=true"],
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
        ),
        (&["--cipher-suites=a"], "unexpected TLS cipher suite \"a\""),
    ] {
        let error = refused(arguments, &[]);
        assert_eq!(error.to_string(), text, "{arguments:?}");
        assert_eq!(error.exit_code(), 1);
    }
}

#[test]
fn what_does_not_exist_yet_is_refused_clearly() {
    assert_eq!(
        refused(&["--discovery=http://127.0.0.1:1"], &[]).to_string(),
        "--discovery is not supported yet: v2 discovery (docs/limitations.md)"
    );
    // Their defaults say nothing new.
    start(
        &["--auto-tls=false", "--auth-token=simple", "--cert-file="],
        &[],
    );
    assert!(parse_as("metastore", &["gateway", "start"], &[]).is_err());
}

#[test]
fn the_flags_of_kubeadm_start_the_server() {
    let (config, _) = start(
        &[
            "--name=node",
            "--data-dir=/var/lib/etcd",
            "--listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379",
            "--advertise-client-urls=https://10.0.0.1:2379",
            "--listen-peer-urls=https://10.0.0.1:2380",
            "--initial-advertise-peer-urls=https://10.0.0.1:2380",
            "--initial-cluster=node=https://10.0.0.1:2380",
            "--listen-metrics-urls=http://127.0.0.1:2381",
            "--cert-file=/pki/server.crt",
            "--key-file=/pki/server.key",
            "--trusted-ca-file=/pki/ca.crt",
            "--client-cert-auth=true",
            "--peer-cert-file=/pki/peer.crt",
            "--peer-key-file=/pki/peer.key",
            "--peer-trusted-ca-file=/pki/ca.crt",
            "--peer-client-cert-auth=true",
            "--snapshot-count=10000",
            "--feature-gates=InitialCorruptCheck=true",
            "--watch-progress-notify-interval=5s",
        ],
        &[],
    );
    assert_eq!(config.listen_client_urls.len(), 2);
    assert!(config.client_tls.demands_certificates());
    assert_eq!(
        config.peer_tls.to_string(),
        "cert = /pki/peer.crt, key = /pki/peer.key, client-cert=, client-key=, trusted-ca = /pki/ca.crt, client-cert-auth = true, crl-file = "
    );
    assert_eq!(
        config.watch_progress_notify_interval,
        Duration::from_secs(5)
    );
    config.initial_cluster().expect("valid");
}

#[test]
fn the_initial_cluster_follows_the_name_unless_given() {
    let (config, _) = start(&["--name=a"], &[]);
    assert_eq!(config.initial_cluster_text, "a=http://localhost:2380");
    config.initial_cluster().expect("valid");
    let (config, _) = start(
        &[
            "--name=a",
            "--initial-advertise-peer-urls=http://127.0.0.1:1,http://127.0.0.1:2",
        ],
        &[],
    );
    assert_eq!(
        config.initial_cluster_text,
        "a=http://127.0.0.1:1,a=http://127.0.0.1:2"
    );
}

#[test]
fn the_initial_cluster_must_hold_this_member_as_it_advertises_itself() {
    for (arguments, text) in [
        (
            &["--name=b", "--initial-cluster=a=http://localhost:2380"][..],
            "couldn't find local name \"b\" in the initial cluster configuration",
        ),
        (
            &["--name=a", "--initial-cluster=a=http://127.0.0.1:1"],
            "--initial-cluster has a=http://127.0.0.1:1 but missing from --initial-advertise-peer-urls=http://localhost:2380 (resolved urls: \"http://localhost:2380\" != \"http://127.0.0.1:1\")",
        ),
        (
            &[
                "--name=a",
                "--initial-cluster=a=http://127.0.0.1:1",
                "--initial-advertise-peer-urls=http://127.0.0.1:1,http://127.0.0.1:2",
            ],
            "--initial-advertise-peer-urls has http://127.0.0.1:2 but missing from --initial-cluster=a=http://127.0.0.1:1,a=http://127.0.0.1:2",
        ),
        (
            &["--initial-cluster=default=http://localhost:2380,b=http://localhost:2380"],
            "initial cluster b=http://localhost:2380,default=http://localhost:2380 has duplicate url",
        ),
        (
            &["--initial-cluster=default"],
            "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ",
        ),
    ] {
        let (config, _) = start(arguments, &[]);
        let error = config.initial_cluster().expect_err(text);
        assert_eq!(error.to_string(), text, "{arguments:?}");
    }
    // A joining member has told its URLs already: only the name counts.
    let (config, _) = start(
        &[
            "--name=a",
            "--initial-cluster=a=http://127.0.0.1:1",
            "--initial-cluster-state=existing",
        ],
        &[],
    );
    assert_eq!(config.initial_cluster_state, ClusterState::Existing);
    config.initial_cluster().expect("valid");
}

#[test]
fn every_option_that_is_called_used_is_read() {
    let readers = [
        include_str!("typed.rs"),
        include_str!("validate.rs"),
        include_str!("tls.rs"),
        include_str!("discovery.rs"),
    ];
    for option in OPTIONS
        .iter()
        .filter(|option| option.status == Status::Used)
    {
        let name = format!("\"{}\"", option.name);
        let is_read = option.kind == Kind::FeatureGates
            || readers.iter().any(|reader| reader.contains(&name));
        assert!(is_read, "nobody reads --{}", option.name);
    }
}

#[test]
fn the_dump_names_every_option_and_resolves_defaults() {
    let (config, _) = start(&["--name=a"], &[]);
    let effective: std::collections::BTreeMap<_, _> = config.effective().into_iter().collect();
    assert_eq!(effective["data-dir"], "a.metastore");
    assert_eq!(effective["initial-cluster"], "a=http://localhost:2380");
    assert_eq!(effective["quota-backend-bytes"], "2147483648");
    assert_eq!(effective["watch-progress-notify-interval"], "10m0s");
    assert_eq!(effective["election-timeout"], "1000");
    assert!(!effective.contains_key("discovery-password"));
}

/// Etcd 3.7.3's flags, from its help and its source. A flag that is missing here would stop a manifest.
#[test]
fn every_flag_of_etcd_is_known() {
    let flags = "advertise-client-urls auth-token auth-token-ttl auto-compaction-mode auto-compaction-retention auto-tls backend-batch-interval backend-batch-limit backend-bbolt-freelist-type bcrypt-cost bootstrap-defrag-threshold-megabytes cert-file cipher-suites client-cert-allowed-hostname client-cert-auth client-cert-file client-crl-file client-key-file compact-hash-check-time compaction-batch-limit compaction-sleep-interval corrupt-check-time cors data-dir discovery-cacert discovery-cert discovery-dial-timeout discovery-endpoints discovery-fallback discovery-insecure-skip-tls-verify discovery-insecure-transport discovery-keepalive-time discovery-keepalive-timeout discovery-key discovery-password discovery-request-timeout discovery-srv discovery-srv-name discovery-token discovery-user distributed-tracing-address distributed-tracing-instance-id distributed-tracing-sampling-rate distributed-tracing-service-name downgrade-check-time election-timeout enable-distributed-tracing enable-grpc-gateway enable-log-rotation enable-pprof feature-gates force-new-cluster grpc-keepalive-interval grpc-keepalive-min-time grpc-keepalive-timeout heartbeat-interval host-whitelist initial-advertise-peer-urls initial-cluster initial-cluster-state initial-cluster-token initial-election-tick-advance key-file listen-client-http-urls listen-client-urls listen-metrics-urls listen-peer-urls log-format log-level log-outputs log-rotation-config-json logger max-concurrent-streams max-learners max-request-bytes max-snapshots max-txn-ops max-wals memory-mlock metrics name peer-auto-tls peer-cert-allowed-cn peer-cert-allowed-hostname peer-cert-file peer-client-cert-auth peer-client-cert-file peer-client-key-file peer-crl-file peer-key-file peer-skip-client-san-verification peer-trusted-ca-file pre-vote quota-backend-bytes raft-read-timeout raft-write-timeout self-signed-cert-validity snapshot-catchup-entries snapshot-count socket-reuse-address socket-reuse-port strict-reconfig-check tls-max-version tls-min-version trusted-ca-file unsafe-no-fsync v2-deprecation wal-dir warning-apply-duration warning-unary-request-duration watch-progress-notify-interval cluster-active-size cluster-remove-delay cluster-sync-interval config force max-result-buffer max-retry-attempts peer-heartbeat-interval peer-election-timeout retry-interval snapshot v vv";
    for flag in flags.split(' ') {
        assert!(OPTIONS.iter().any(|option| option.name == flag), "--{flag}");
    }
    // The spellings of 3.5 that 3.6 still had.
    for flag in [
        "experimental-initial-corrupt-check",
        "experimental-corrupt-check-time",
        "experimental-compact-hash-check-enabled",
        "experimental-compact-hash-check-time",
        "experimental-compaction-batch-limit",
        "experimental-compaction-sleep-interval",
        "experimental-watch-progress-notify-interval",
        "experimental-downgrade-check-time",
        "experimental-warning-apply-duration",
        "experimental-warning-unary-request-duration",
        "experimental-memory-mlock",
        "experimental-bootstrap-defrag-threshold-megabytes",
        "experimental-max-learners",
        "experimental-snapshot-catchup-entries",
        "experimental-enable-distributed-tracing",
        "experimental-distributed-tracing-address",
        "experimental-peer-skip-client-san-verification",
        "experimental-enable-lease-checkpoint",
        "experimental-enable-lease-checkpoint-persist",
        "experimental-txn-mode-write-with-shared-buffer",
        "experimental-stop-grpc-service-on-defrag",
        "experimental-set-member-localaddr",
        "experimental-wait-cluster-ready-timeout",
        "experimental-enable-v2v3",
    ] {
        assert!(settings::Target::find(flag).is_some(), "--{flag}");
    }
}

/// Whatever stands on the command line or in the environment gives a configuration or a reason.
#[test]
fn mutated_command_lines_are_read_or_refused() {
    let corpus: [&[u8]; 5] = [
        b"--name=a\n--data-dir\n/x\n--listen-client-urls=http://127.0.0.1:2379,https://[::1]:1\n--advertise-client-urls=http://a:2379",
        b"-heartbeat-interval=100\n-election-timeout\n1000\n--quota-backend-bytes=-1\n--snapshot-count=3",
        b"--initial-cluster=default=http://localhost:2380,b=http://b:2380,b=http://c:2380\n--initial-cluster-state=existing\n--force-new-cluster",
        b"--auto-compaction-mode=revision\n--auto-compaction-retention=1h30m\n--feature-gates=AllAlpha=true,CompactHashCheck=false\n--log-level=debug",
        b"ETCD_NAME=x\nETCD_CERT_FILE=a\nETCD_CIPHER_SUITES=TLS_AES_128_GCM_SHA256\n--auth-token=jwt,sign-method=RS256,ttl=10m",
    ];
    let mut words: Vec<Vec<u8>> = OPTIONS
        .iter()
        .map(|option| format!("\n--{}=", option.name).into_bytes())
        .collect();
    for word in [
        "\n",
        "=",
        ",",
        "-1",
        "0",
        "true",
        "9223372036854775808",
        "1e9h",
        "http://",
        "unix:///x",
        "[::",
        ":0",
        "\nETCD_",
    ] {
        words.push(word.as_bytes().to_vec());
    }
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    crate::mutation::mutated(&corpus, &words, fuzzing::command_line);
}

/// Whatever stands in the configuration file gives a configuration or a reason.
#[test]
fn mutated_files_are_read_or_refused() {
    let corpus: [&[u8]; 4] = [
        b"name: a\ndata-dir: /x\nlisten-client-urls: http://127.0.0.1:2379\nadvertise-client-urls: http://a:1\nquota-backend-bytes: 0\n",
        b"client-transport-security:\n  cert-file: a\n  key-file: b\n  client-cert-auth: true\n  allowed-hostname: [a, b]\npeer-transport-security: {auto-tls: true}\n",
        b"{\"name\": \"a\", \"election-timeout\": 1000, \"feature-gates\": \"AllBeta=true\", \"log-outputs\": [stderr]}",
        b"auto-compaction-retention: \"1h\"\nwatch-progress-notify-interval: 5000000000\ncors: '*'\nanchor: &a {b: *a}\n",
    ];
    let words: [&[u8]; 18] = [
        b"\n  ",
        b": ",
        b"- ",
        b"&a ",
        b"*a",
        b"!!binary ",
        b"|\n",
        b">\n",
        b"'",
        b"\"",
        b"{",
        b"}",
        b"[",
        b"]",
        b"---\n",
        b"null",
        b"0o17",
        b"? ",
    ];
    crate::mutation::mutated(&corpus, &words, fuzzing::file);
}
