//! The configuration file of a member.

use std::collections::BTreeMap;

use metastore_operator_api::{CompactionMode, LogLevel, TlsMode, names};
use serde_json::{Value, json};

use crate::context::Cluster;

/// Name of the file in its ConfigMap.
pub const CONFIG_FILE: &str = "metastore.yaml";
/// Where the ConfigMap is mounted.
pub const CONFIG_FOLDER: &str = "/etc/metastore/config";
/// Where the volume is mounted.
pub const VOLUME_FOLDER: &str = "/var/lib/metastore";
/// The data directory: below the mount point, because file systems keep things of their own there.
pub const DATA_FOLDER: &str = "/var/lib/metastore/data";
/// Where certificates for clients are mounted.
pub const SERVER_TLS_FOLDER: &str = "/etc/metastore/tls/server";
/// Where certificates between members are mounted.
pub const PEER_TLS_FOLDER: &str = "/etc/metastore/tls/peer";
/// Where the operator's own client certificate is mounted in Jobs.
pub const CLIENT_TLS_FOLDER: &str = "/etc/metastore/tls/client";

/// What a member may do when its volume is empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MemberStart {
    /// Form a cluster, alone, with this token.
    Form {
        /// What makes the cluster's id unlike any other's.
        token: String,
    },
    /// Join the cluster of these names and URLs.
    Join {
        /// What the cluster was formed with.
        token: String,
        /// All of its members, the new one included.
        members: Vec<(String, String)>,
    },
    /// Nothing: it has data, or ends at once.
    Run,
    /// It has data, and goes on without the other members.
    ForceNewCluster,
}

/// The configuration without what counts only for an empty volume: a change of it restarts members.
pub fn lasting_config(cluster: &Cluster<'_>, member: &str) -> BTreeMap<String, Value> {
    let spec = cluster.spec;
    let config = &spec.config;
    // The server takes this for every address of the Pod, of IPv6, too.
    let listen = |scheme: &str, port: u16| format!("{scheme}://0.0.0.0:{port}");
    let client_schemes = spec.tls.client.mode.schemes().iter();
    let client_listen: Vec<_> = client_schemes
        .map(|scheme| listen(scheme, names::CLIENT_PORT))
        .collect();
    let milliseconds = |duration: &metastore_operator_api::DurationText, default_ms: u64| {
        let duration = duration.or(std::time::Duration::from_millis(default_ms));
        json!(u64::try_from(duration.as_millis()).unwrap_or(default_ms))
    };
    let mut file = BTreeMap::from([
        ("name".to_owned(), json!(member)),
        ("data-dir".to_owned(), json!(DATA_FOLDER)),
        (
            "listen-client-urls".to_owned(),
            json!(client_listen.join(",")),
        ),
        (
            "listen-peer-urls".to_owned(),
            json!(listen(cluster.peer_scheme(), names::PEER_PORT)),
        ),
        (
            "listen-metrics-urls".to_owned(),
            json!(listen("http", names::METRICS_PORT)),
        ),
        (
            "advertise-client-urls".to_owned(),
            json!(cluster.client_urls(member).join(",")),
        ),
        (
            "initial-advertise-peer-urls".to_owned(),
            json!(cluster.peer_url(member)),
        ),
        (
            "quota-backend-bytes".to_owned(),
            json!(cluster.quota_bytes()),
        ),
        (
            "heartbeat-interval".to_owned(),
            milliseconds(&config.heartbeat_interval, 100),
        ),
        (
            "election-timeout".to_owned(),
            milliseconds(&config.election_timeout, 1000),
        ),
        ("log-level".to_owned(), json!(log_level(config.log_level))),
    ]);
    if config.compaction.retention != "0" {
        let mode = match config.compaction.mode {
            CompactionMode::Periodic => "periodic",
            CompactionMode::Revision => "revision",
        };
        file.insert("auto-compaction-mode".to_owned(), json!(mode));
        file.insert(
            "auto-compaction-retention".to_owned(),
            json!(config.compaction.retention),
        );
    }
    if spec.tls.client.mode.is_encrypted() {
        let mut security = json!({
            "cert-file": format!("{SERVER_TLS_FOLDER}/tls.crt"),
            "key-file": format!("{SERVER_TLS_FOLDER}/tls.key"),
        });
        if spec.tls.client.client_auth {
            security["client-cert-auth"] = json!(true);
            security["trusted-ca-file"] = json!(format!("{SERVER_TLS_FOLDER}/ca.crt"));
        }
        file.insert("client-transport-security".to_owned(), security);
    }
    if spec.tls.peer.mode == TlsMode::Required {
        file.insert(
            "peer-transport-security".to_owned(),
            json!({
                "cert-file": format!("{PEER_TLS_FOLDER}/tls.crt"),
                "key-file": format!("{PEER_TLS_FOLDER}/tls.key"),
                "client-cert-auth": true,
                "trusted-ca-file": format!("{PEER_TLS_FOLDER}/ca.crt"),
                // A Pod's address has another name behind every proxy; the authority is the cluster's own.
                "skip-client-san-verification": true,
            }),
        );
    }
    for (key, text) in &config.extra_config {
        // Texts that are JSON keep their type: numbers, truth values.
        let value = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        file.entry(key.clone()).or_insert(value);
    }
    file
}

fn log_level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    }
}

/// The whole file.
pub fn config_file(cluster: &Cluster<'_>, member: &str, start: &MemberStart) -> String {
    let mut file = lasting_config(cluster, member);
    let own = (member.to_owned(), cluster.peer_url(member));
    let (state, token, members) = match start {
        MemberStart::Form { token } => ("new", token.clone(), vec![own]),
        MemberStart::Join { token, members } => ("existing", token.clone(), members.clone()),
        // A server with an empty volume, that is to join a cluster in which it is alone, finds nobody to
        // ask and ends: a volume that was wiped can neither form a cluster nor vote with forgotten votes.
        MemberStart::Run | MemberStart::ForceNewCluster => (
            "existing",
            "this-member-must-have-its-data".to_owned(),
            vec![own],
        ),
    };
    let members: Vec<_> = members
        .iter()
        .map(|(name, url)| format!("{name}={url}"))
        .collect();
    file.insert("initial-cluster-state".to_owned(), json!(state));
    file.insert("initial-cluster-token".to_owned(), json!(token));
    file.insert("initial-cluster".to_owned(), json!(members.join(",")));
    if *start == MemberStart::ForceNewCluster {
        file.insert("force-new-cluster".to_owned(), json!(true));
    }
    let mut text = String::from("# Written by metastore-operator.\n");
    for (key, value) in file {
        // JSON is YAML.
        text.push_str(&format!("{key}: {value}\n"));
    }
    text
}

/// Reads the names and URLs that a joining member was told, from its file.
pub fn join_list(file: &str) -> Vec<(String, String)> {
    let line = file
        .lines()
        .find_map(|line| line.strip_prefix("initial-cluster: "))
        .and_then(|text| serde_json::from_str::<String>(text).ok())
        .unwrap_or_default();
    line.split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, url)| (name.to_owned(), url.to_owned()))
        .collect()
}
