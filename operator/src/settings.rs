//! Flags and environment of the operator.

use std::net::SocketAddr;

use clap::{Parser, Subcommand, ValueEnum};

/// The Kubernetes operator of MetaStore.
#[derive(Clone, Debug, Parser)]
#[command(name = "metastore-operator", version, about)]
pub struct Settings {
    /// Namespaces to look after, separated by commas. Empty: all of them.
    #[arg(long, env = "METASTORE_OPERATOR_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// Repository of the server's image, for clusters that name none.
    #[arg(
        long,
        env = "METASTORE_OPERATOR_SERVER_REPOSITORY",
        default_value = "ghcr.io/metastore-io/metastore"
    )]
    pub server_repository: String,
    /// Version of the server, for clusters that name none.
    #[arg(long, env = "METASTORE_OPERATOR_SERVER_VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    pub server_version: String,
    /// The operator's own image, for Jobs and restores.
    #[arg(long, env = "METASTORE_OPERATOR_IMAGE", default_value = concat!("ghcr.io/metastore-io/metastore-operator:", env!("CARGO_PKG_VERSION")))]
    pub operator_image: String,
    /// Address of health and metrics.
    #[arg(
        long,
        env = "METASTORE_OPERATOR_LISTEN",
        default_value = "0.0.0.0:8080"
    )]
    pub listen: SocketAddr,
    /// Namespace of the Lease. Empty: this operator is the only one, and takes none.
    #[arg(long, env = "METASTORE_OPERATOR_LEASE_NAMESPACE", default_value = "")]
    pub lease_namespace: String,
    /// Name of this operator among several. Empty: the host name.
    #[arg(long, env = "METASTORE_OPERATOR_IDENTITY", default_value = "")]
    pub identity: String,
    /// Shape of the log.
    #[arg(long, env = "METASTORE_OPERATOR_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Shape of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// What the program does.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Look after clusters.
    Run,
    /// Do the work of a Job, as told in METASTORE_AGENT_SETTINGS.
    Agent {
        /// Which work.
        work: AgentWork,
    },
    /// Print what would be done next for a cluster, and why; change nothing.
    Plan {
        /// The cluster's namespace.
        #[arg(long, short, default_value = "default")]
        namespace: String,
        /// The cluster.
        name: String,
        /// A change of the spec to try, as a JSON merge patch: `{"replicas": 5}`.
        #[arg(long)]
        spec: Option<String>,
    },
}

/// Work of Jobs and init containers.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AgentWork {
    /// Take a snapshot from a member and store it.
    Backup,
    /// Restore an artifact in scratch space and compare its hash.
    Verify,
    /// Delete an artifact.
    Delete,
    /// Fill an empty data directory from an artifact.
    Restore,
}
