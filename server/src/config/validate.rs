//! Checks of the whole configuration, in etcd's order and with etcd's texts.

use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};

use super::options::{Status, find};
use super::settings::Settings;
use super::tls::TlsVersion;
use super::typed::{AutoCompaction, Config, Resolved};
use super::url::{self, ListenUrl, Scheme};
use super::value::{format_duration, parse_duration};
use super::{ConfigError, Notice};
use crate::observe::log::{Format, LogOptions, LogOutput, Threshold};
use crate::observe::log_rotation::RotationOptions;
use crate::observe::traces::TraceOptions;

/// Etcd's text for `--listen-metrics-urls` with `https` and no certificate.
pub const METRICS_NEED_TLS: &str =
    "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url";

/// Etcd's text; scripts look for it.
pub(super) const ADVERTISE_CLIENT_URLS_REQUIRED: &str =
    "--advertise-client-urls is required when --listen-client-urls is set explicitly";

const DEFAULT_NAME: &str = "default";

/// Longest election timeout: etcd's limit.
const ELECTION_MS_MAX: u64 = 50_000;

/// Heartbeats that must fit into an election timeout, so that a follower survives four lost ones.
const HEARTBEATS_PER_ELECTION: u64 = 5;

/// Above this size etcd warns: a quota that large hides a store that grows without bounds.
const QUOTA_WARNING_BYTES: i64 = 8 * 1024 * 1024 * 1024;

/// Above this size etcd warns: one large request delays all others.
const REQUEST_WARNING_BYTES: u64 = 10 * 1024 * 1024;

/// Checks the settings and makes the configuration of them.
pub(super) fn check(
    program: &str,
    settings: Settings,
    has_file: bool,
    notices: &mut Vec<Notice>,
) -> Result<Config, ConfigError> {
    if !has_file && settings.text("discovery-fallback") == "proxy" {
        return Err(ConfigError::invalid(
            "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"",
        ));
    }
    let log = check_log(&settings)?;
    let advertised = Advertised::new(&settings, has_file);
    check_urls(&settings, &advertised)?;
    check_bootstrap_options(&settings)?;
    check_times(&settings)?;
    if advertised.client_urls.is_empty() {
        return Err(ConfigError::invalid(ADVERTISE_CLIENT_URLS_REQUIRED));
    }
    let auto_compaction = check_auto_compaction(&settings)?;
    check_features(&settings, notices)?;
    check_tls(&settings)?;
    check_supported(&settings, notices)?;
    warn_of_sizes(&settings, notices);
    let traces = trace_options(&settings);

    let initial_cluster = advertised.initial_cluster(&settings);
    if let Some(host) = &advertised.default_host {
        notices.push(Notice::info("detected default host for advertise").with("host", host));
    }
    let data_dir = data_dir(program, &settings, notices);
    let Advertised {
        peer_urls,
        client_urls,
        ..
    } = advertised;
    Ok(Config::new(
        settings,
        Resolved {
            data_dir,
            advertise_peer_urls: peer_urls,
            advertise_client_urls: client_urls,
            initial_cluster,
            auto_compaction,
            log,
            traces,
        },
    ))
}

fn check_log(settings: &Settings) -> Result<LogOptions, ConfigError> {
    match settings.text("logger").as_str() {
        "zap" => {}
        "capnslog" => return Err(ConfigError::invalid("--logger=capnslog is removed in v3.5")),
        other => {
            return Err(ConfigError::invalid(format!(
                "unknown logger option {other:?}"
            )));
        }
    }
    let outputs = settings.list("log-outputs");
    // The command line's empty text is one empty name; an empty list in the file keeps the default.
    if outputs.iter().any(String::is_empty) {
        return Err(ConfigError::invalid(
            "open sink \"\": open : no such file or directory",
        ));
    }
    if outputs.len() > 1 && outputs.iter().any(|output| output == "default") {
        return Err(ConfigError::invalid(
            "multi logoutput for \"default\" is not supported yet",
        ));
    }
    let mut outputs: Vec<LogOutput> = outputs
        .iter()
        .map(|output| LogOutput::parse(output))
        .collect();
    if outputs.is_empty() {
        outputs.push(LogOutput::Stderr);
    }
    let rotation = check_rotation(settings, &outputs)?;
    let level = settings.text("log-level");
    let format = settings.text("log-format");
    Ok(LogOptions {
        threshold: Threshold::parse(&level)
            .ok_or_else(|| ConfigError::invalid(format!("unrecognized level: {level:?}")))?,
        format: Format::parse(&format).ok_or_else(|| {
            ConfigError::invalid(format!(
                "unknown log format: {format}, supported values json, console"
            ))
        })?,
        outputs,
        rotation,
    })
}

/// Rotation is for one file.
fn check_rotation(
    settings: &Settings,
    outputs: &[LogOutput],
) -> Result<Option<RotationOptions>, ConfigError> {
    if !settings.boolean("enable-log-rotation") {
        return Ok(None);
    }
    let files = outputs
        .iter()
        .filter(|output| matches!(output, LogOutput::File(_)))
        .count();
    if files > 1 || (files == 0 && outputs.len() == 1) {
        return Err(ConfigError::invalid(
            "--log-outputs requires a single file path when --log-rotate-config-json is defined",
        ));
    }
    RotationOptions::parse(&settings.text("log-rotation-config-json"))
        .map(Some)
        .map_err(ConfigError::invalid)
}

/// The range of the sampling rate is for `check_features`.
fn trace_options(settings: &Settings) -> Option<TraceOptions> {
    settings
        .boolean("enable-distributed-tracing")
        .then(|| TraceOptions {
            address: settings.text("distributed-tracing-address"),
            service_name: settings.text("distributed-tracing-service-name"),
            instance_id: settings.text("distributed-tracing-instance-id"),
            samples_per_million: u32::try_from(
                settings.signed("distributed-tracing-sampling-rate"),
            )
            .unwrap_or(0),
        })
}

/// What the member tells others about itself.
struct Advertised {
    peer_urls: Vec<ListenUrl>,
    client_urls: Vec<ListenUrl>,
    /// The address that replaced `localhost`, if any.
    default_host: Option<String>,
}

impl Advertised {
    /// Takes the advertised URLs from the settings. Where they are the default and the member listens
    /// on all addresses, the address of the machine takes the place of `localhost`.
    fn new(settings: &Settings, has_file: bool) -> Self {
        let mut advertised = Self {
            peer_urls: settings.urls("initial-advertise-peer-urls"),
            client_urls: settings.urls("advertise-client-urls"),
            default_host: None,
        };
        // The default would be wrong for most listeners. In the file etcd keeps it nevertheless.
        if !has_file
            && settings.is_set("listen-client-urls")
            && !settings.is_set("advertise-client-urls")
        {
            advertised.client_urls.clear();
        }
        for (listen, option) in [
            ("listen-peer-urls", "initial-advertise-peer-urls"),
            ("listen-client-urls", "advertise-client-urls"),
        ] {
            let listen = settings.urls(listen);
            let urls = match option {
                "advertise-client-urls" => &mut advertised.client_urls,
                _ => &mut advertised.peer_urls,
            };
            let default = find(option)
                .expect("an option of the table")
                .default_value();
            let is_default = default == super::value::Value::Urls(urls.clone());
            if !is_default || listen.first().is_none_or(|url| url.host != "0.0.0.0") {
                continue;
            }
            if let Some(address) = default_route_address() {
                let host = address.to_string();
                urls[0] = ListenUrl::from_parts(Scheme::Http, &host, listen[0].port);
                advertised.default_host = Some(host);
            }
        }
        advertised
    }

    /// `--initial-cluster`, or what follows from name and peer URLs when only the name was given.
    fn initial_cluster(&self, settings: &Settings) -> String {
        let name = settings.text("name");
        let text = settings.text("initial-cluster");
        let is_default = text
            == find("initial-cluster")
                .expect("an option of the table")
                .default;
        let replaced_peer_host = self.default_host.is_some() && !settings.is_set("initial-cluster");
        if !is_default || (name == DEFAULT_NAME && !replaced_peer_host) {
            return text;
        }
        let name = if name.is_empty() { DEFAULT_NAME } else { &name };
        self.peer_urls
            .iter()
            .map(|url| format!("{name}={url}"))
            .collect::<Vec<_>>()
            .join(",")
    }
}

/// The address of the interface that holds the default route.
///
/// Connecting a UDP socket sends nothing; the system only chooses the route. The address is one of
/// those reserved for documentation, which every default route covers.
fn default_route_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

fn check_urls(settings: &Settings, advertised: &Advertised) -> Result<(), ConfigError> {
    for option in [
        "listen-peer-urls",
        "listen-client-urls",
        "listen-client-http-urls",
        "listen-metrics-urls",
    ] {
        for url in settings.urls(option) {
            if !url.is_unix() && url.bind_address().is_none() {
                return Err(ConfigError::invalid(format!(
                    "expected IP in URL for binding ({url})"
                )));
            }
        }
    }
    for url in &advertised.peer_urls {
        if !url.is_unix() && url.host.is_empty() {
            return Err(ConfigError::invalid(format!(
                "--initial-advertise-peer-urls {:?} must be \"host:port\" (unexpected empty host ({url}))",
                url::join(&advertised.peer_urls)
            )));
        }
    }
    for url in &advertised.client_urls {
        if !url.is_unix() && url.host.is_empty() {
            return Err(ConfigError::invalid(format!(
                "--advertise-client-urls {:?} must be in the format \"host:port\", \"unix:/path/to/socket\" or \"unixs:/path/to/socket\" (unexpected empty host ({url}))",
                url::join(&advertised.client_urls)
            )));
        }
    }
    Ok(())
}

fn check_bootstrap_options(settings: &Settings) -> Result<(), ConfigError> {
    let endpoints = settings.list("discovery-endpoints");
    let uses_dns = !settings.text("discovery-srv").is_empty();
    let uses_discovery = !endpoints.is_empty();
    let initial_cluster = settings.text("initial-cluster");
    // Discovery alone clears the default of --initial-cluster.
    let names_members = !initial_cluster.is_empty()
        && (settings.is_set("initial-cluster") || !(uses_dns || uses_discovery));
    if usize::from(names_members) + usize::from(uses_dns) + usize::from(uses_discovery) > 1 {
        return Err(ConfigError::invalid(
            "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\"",
        ));
    }
    if settings.text("discovery-token").is_empty() == uses_discovery {
        return Err(ConfigError::invalid(
            "both --discovery-token and --discovery-endpoints must be set",
        ));
    }
    if endpoints.iter().any(|endpoint| endpoint.trim().is_empty()) {
        return Err(ConfigError::invalid(
            "--discovery-endpoints must not contain empty endpoints",
        ));
    }
    Ok(())
}

fn check_times(settings: &Settings) -> Result<(), ConfigError> {
    let heartbeat = settings.unsigned("heartbeat-interval");
    let election = settings.unsigned("election-timeout");
    if heartbeat == 0 {
        return Err(ConfigError::invalid(
            "--heartbeat-interval must be >0 (set to 0ms)",
        ));
    }
    if election == 0 {
        return Err(ConfigError::invalid(
            "--election-timeout must be >0 (set to 0ms)",
        ));
    }
    if heartbeat.saturating_mul(HEARTBEATS_PER_ELECTION) > election {
        return Err(ConfigError::invalid(format!(
            "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
        )));
    }
    if election > ELECTION_MS_MAX {
        return Err(ConfigError::invalid(format!(
            "--election-timeout[{election}ms] is too long, and should be set less than {ELECTION_MS_MAX}ms"
        )));
    }
    Ok(())
}

fn check_auto_compaction(settings: &Settings) -> Result<AutoCompaction, ConfigError> {
    let mode = settings.text("auto-compaction-mode");
    match mode.as_str() {
        "periodic" | "revision" => {}
        "" => return Err(ConfigError::invalid("undefined auto-compaction-mode")),
        other => {
            return Err(ConfigError::invalid(format!(
                "unknown auto-compaction-mode {other:?}"
            )));
        }
    }
    let text = settings.text("auto-compaction-retention");
    let text = if text.is_empty() { "0" } else { &text };
    let number = text.parse::<i64>().ok().filter(|number| *number >= 0);
    let nanoseconds = match number {
        Some(number) if mode == "revision" => number,
        Some(hours) => hours.saturating_mul(3_600_000_000_000),
        // Go reads any duration here, also in revision mode: its nanoseconds become revisions.
        None => parse_duration(text).map_err(|_| {
            ConfigError::invalid(format!(
                "error parsing CompactionRetention: time: invalid duration {text:?}"
            ))
        })?,
    };
    Ok(match u64::try_from(nanoseconds) {
        Err(_) | Ok(0) => AutoCompaction::Off,
        Ok(_) if mode == "revision" => AutoCompaction::Revision(nanoseconds),
        Ok(nanoseconds) => AutoCompaction::Periodic(std::time::Duration::from_nanos(nanoseconds)),
    })
}

fn check_features(settings: &Settings, notices: &mut Vec<Notice>) -> Result<(), ConfigError> {
    if settings.boolean("enable-distributed-tracing") {
        let problem = match settings.signed("distributed-tracing-sampling-rate") {
            ..0 => Some("tracing sampling rate must be positive"),
            0..=1_000_000 => None,
            _ => Some("tracing sampling rate must be less than 1000000"),
        };
        if let Some(problem) = problem {
            return Err(ConfigError::invalid(format!(
                "distributed tracing configurition is not valid: ({problem})"
            )));
        }
    }
    let gates = settings.gates();
    if gates.is_enabled("LeaseCheckpoint") && !gates.is_enabled("LeaseCheckpointPersist") {
        notices.push(Notice::warn(
            "Detected that checkpointing is enabled without persistence. Consider enabling feature gate LeaseCheckpointPersist",
        ));
    }
    if gates.is_enabled("LeaseCheckpointPersist") && !gates.is_enabled("LeaseCheckpoint") {
        return Err(ConfigError::invalid(
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
        ));
    }
    let hash_check = settings.nanoseconds("compact-hash-check-time");
    if hash_check <= 0 {
        return Err(ConfigError::invalid(format!(
            "--compact-hash-check-time must be >0 (set to {})",
            format_duration(hash_check)
        )));
    }
    if settings.text("name") == DEFAULT_NAME {
        notices.push(
            Notice::warn(
                "it isn't recommended to use default name, please set a value for --name. Note that etcd might run into issue when multiple members have the same default name",
            )
            .with("name", DEFAULT_NAME),
        );
    }
    Ok(())
}

fn check_tls(settings: &Settings) -> Result<(), ConfigError> {
    let version = |option: &'static str| {
        TlsVersion::parse(&settings.text(option)).map_err(ConfigError::invalid)
    };
    let (oldest, newest) = (version("tls-min-version")?, version("tls-max-version")?);
    if newest.is_some() && oldest > newest {
        return Err(ConfigError::invalid(format!(
            "min version ({}) is greater than max version ({})",
            settings.text("tls-min-version"),
            settings.text("tls-max-version")
        )));
    }
    let suites = settings.list("cipher-suites");
    if oldest == Some(TlsVersion::Tls13) && !suites.is_empty() {
        return Err(ConfigError::invalid(
            "cipher suites cannot be configured when only TLS1.3 is enabled",
        ));
    }
    crate::tls::check_cipher_suite_names(&suites).map_err(ConfigError::invalid)
}

/// Refuses what does not exist yet, and tells of what does nothing.
fn check_supported(settings: &Settings, notices: &mut Vec<Notice>) -> Result<(), ConfigError> {
    for (option, value) in settings.changed() {
        if *value == option.default_value() {
            continue;
        }
        match option.status {
            Status::Used | Status::Ignored(_) => {}
            Status::Unsupported(missing) => {
                return Err(ConfigError::invalid(format!(
                    "--{} is not supported yet: {missing} (docs/limitations.md)",
                    option.name
                )));
            }
        }
    }
    for gate in settings.gates().changed_without_effect() {
        notices.push(Notice::info("feature gate is accepted and has no effect").with("gate", gate));
    }
    if settings
        .list("log-outputs")
        .iter()
        .any(|output| output == "systemd/journal")
    {
        notices.push(Notice::warn(
            "--log-outputs=systemd/journal writes to the standard error output, which systemd puts into the journal",
        ));
    }
    Ok(())
}

fn warn_of_sizes(settings: &Settings, notices: &mut Vec<Notice>) {
    let quota = settings.signed("quota-backend-bytes");
    if quota > QUOTA_WARNING_BYTES {
        notices.push(
            Notice::warn("quota exceeds the maximum value that etcd recommends")
                .with("given-quota-size-bytes", &quota.to_string())
                .with(
                    "recommended-maximum-quota-size-bytes",
                    &QUOTA_WARNING_BYTES.to_string(),
                ),
        );
    }
    let request = settings.unsigned("max-request-bytes");
    if request > REQUEST_WARNING_BYTES {
        notices.push(
            Notice::warn("exceeded recommended request limit")
                .with("max-request-bytes", &request.to_string())
                .with(
                    "recommended-request-bytes",
                    &REQUEST_WARNING_BYTES.to_string(),
                ),
        );
    }
}

/// `--data-dir`, or the default: `<name>.etcd` for a program that stands in for etcd under its name,
/// so that a replaced binary finds no surprise, else `<name>.metastore`.
fn data_dir(program: &str, settings: &Settings, notices: &mut Vec<Notice>) -> PathBuf {
    let directory = settings.text("data-dir");
    if !directory.is_empty() {
        return PathBuf::from(directory);
    }
    let is_etcd = Path::new(program)
        .file_stem()
        .is_some_and(|stem| stem == "etcd");
    let suffix = if is_etcd { "etcd" } else { "metastore" };
    let directory = format!("{}.{suffix}", settings.text("name"));
    notices.push(Notice::warn("'data-dir' was empty; using default").with("data-dir", &directory));
    PathBuf::from(directory)
}
