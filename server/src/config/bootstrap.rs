//! `--initial-cluster`, and the checks of a member that starts without data.
//!
//! A member with data ignores the bootstrap options altogether, as etcd's does: manifests keep them
//! for years, and they are wrong after the first change of the membership.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::ToSocketAddrs;

use super::typed::{ClusterState, Config};
use super::url::{ListenUrl, join};
use super::{ConfigError, identity};

/// The members with which a cluster starts: peer URLs by member name, sorted by text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitialCluster {
    /// Peer URLs by member name.
    pub members: BTreeMap<String, Vec<ListenUrl>>,
}

impl InitialCluster {
    /// Reads `name=URL,name=URL`; a name may appear several times.
    ///
    /// # Errors
    ///
    /// As [`ListenUrl::parse`].
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut members: BTreeMap<String, Vec<ListenUrl>> = BTreeMap::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, url) = part.split_once('=').unwrap_or((part, ""));
            members
                .entry(name.to_owned())
                .or_default()
                .push(ListenUrl::parse(url)?);
        }
        for urls in members.values_mut() {
            urls.sort_by_cached_key(ToString::to_string);
        }
        Ok(Self { members })
    }

    /// The ids of the members by name, which every member computes alike from the same options.
    #[must_use]
    pub fn member_ids(&self, token: &str) -> BTreeMap<String, u64> {
        self.members
            .iter()
            .map(|(name, urls)| (name.clone(), identity::member_id(urls, token)))
            .collect()
    }

    /// The id of the cluster.
    #[must_use]
    pub fn cluster_id(&self, token: &str) -> u64 {
        identity::cluster_id(self.member_ids(token).into_values())
    }

    /// Whether two members, or one twice, have the same URL.
    #[must_use]
    pub fn has_duplicate_url(&self) -> bool {
        let mut seen = BTreeSet::new();
        self.members
            .values()
            .flatten()
            .any(|url| !seen.insert(url.to_string()))
    }
}

impl fmt::Display for InitialCluster {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut pairs: Vec<_> = self
            .members
            .iter()
            .flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")))
            .collect();
        pairs.sort();
        formatter.write_str(&pairs.join(","))
    }
}

impl Config {
    /// Reads and checks `--initial-cluster`. To be called only for a member that has no data.
    ///
    /// Host names are looked up only if the URLs here and in `--initial-advertise-peer-urls` differ as
    /// text: one may be a name of the other.
    ///
    /// # Errors
    ///
    /// Etcd's texts, for example `couldn't find local name "a" in the initial cluster configuration`.
    pub fn initial_cluster(&self) -> Result<InitialCluster, ConfigError> {
        self.check_cluster(&self.initial_cluster_text)
    }

    /// As [`Config::initial_cluster`], for a list of members that came from elsewhere.
    ///
    /// # Errors
    ///
    /// As [`Config::initial_cluster`].
    pub fn check_cluster(&self, text: &str) -> Result<InitialCluster, ConfigError> {
        let cluster = InitialCluster::parse(text).map_err(|error| {
            ConfigError::invalid(format!("error setting up initial cluster: {error}"))
        })?;
        let Some(own) = cluster.members.get(&self.name) else {
            return Err(ConfigError::invalid(format!(
                "couldn't find local name {:?} in the initial cluster configuration",
                self.name
            )));
        };
        if self.initial_cluster_state == ClusterState::New {
            self.check_advertised(own)?;
        }
        if cluster.has_duplicate_url() {
            return Err(ConfigError::invalid(format!(
                "initial cluster {cluster} has duplicate url"
            )));
        }
        Ok(cluster)
    }

    fn check_advertised(&self, own: &[ListenUrl]) -> Result<(), ConfigError> {
        let advertised = &self.initial_advertise_peer_urls;
        let Err(reason) = same_addresses(advertised, own) else {
            return Ok(());
        };
        let name = &self.name;
        let with_name = |urls: &[ListenUrl]| {
            urls.iter()
                .map(|url| format!("{name}={url}"))
                .collect::<Vec<_>>()
                .join(",")
        };
        let missing: Vec<_> = own
            .iter()
            .filter(|url| !advertised.contains(url))
            .cloned()
            .collect();
        if !missing.is_empty() {
            return Err(ConfigError::invalid(format!(
                "--initial-cluster has {} but missing from --initial-advertise-peer-urls={} ({reason})",
                with_name(&missing),
                join(advertised)
            )));
        }
        let missing: Vec<_> = advertised
            .iter()
            .filter(|url| !own.contains(url))
            .cloned()
            .collect();
        if !missing.is_empty() {
            return Err(ConfigError::invalid(format!(
                "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
                join(&missing),
                with_name(advertised)
            )));
        }
        Err(ConfigError::invalid(format!(
            "failed to resolve {} to match --initial-cluster={} ({reason})",
            join(advertised),
            with_name(advertised)
        )))
    }
}

/// Compares two sorted lists as text, then by what their host names stand for.
///
/// # Errors
///
/// Where they differ.
pub fn same_addresses(left: &[ListenUrl], right: &[ListenUrl]) -> Result<(), String> {
    let quoted = |urls: &[ListenUrl]| {
        format!(
            "[{}]",
            urls.iter()
                .map(|url| format!("{:?}", url.to_string()))
                .collect::<Vec<_>>()
                .join(" ")
        )
    };
    if left.len() != right.len() {
        return Err(format!("len({}) != len({})", quoted(left), quoted(right)));
    }
    if left == right {
        return Ok(());
    }
    let mut left: Vec<_> = left.iter().map(resolve).collect::<Result<_, _>>()?;
    let mut right: Vec<_> = right.iter().map(resolve).collect::<Result<_, _>>()?;
    left.sort();
    right.sort();
    match left.iter().zip(&right).find(|(left, right)| left != right) {
        None => Ok(()),
        Some((left, right)) => Err(format!("resolved urls: {left:?} != {right:?}")),
    }
}

fn resolve(url: &ListenUrl) -> Result<String, String> {
    if url.is_unix() || url.bind_address().is_some() {
        return Ok(url.to_string());
    }
    let address = (url.host.as_str(), url.port)
        .to_socket_addrs()
        .map_err(|error| format!("failed to resolve {}: {error}", url.authority()))?
        .next()
        .ok_or_else(|| format!("failed to resolve {}: no address", url.authority()))?;
    Ok(format!("{}://{address}", url.scheme.as_str()))
}
