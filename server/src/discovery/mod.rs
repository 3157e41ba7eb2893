//! How the members of a new cluster find each other when nobody lists them: through another etcd
//! ([`registry`]) or by DNS ([`dns`]). Both end with the text of an `--initial-cluster`.
//!
//! [`clients`] is the other side: how a proxy finds the members of a cluster by DNS.

pub mod clients;
pub mod dns;
pub mod registry;

/// Why the members were not found.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// Etcd's text for a failed entry into the registry.
    #[error("failed to join discovery cluster ({0})")]
    Join(String),
    /// No SRV record led to this member.
    #[error("{0}")]
    Dns(String),
}
