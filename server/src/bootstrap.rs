//! Who this member is, at its first start: one of the first members, or one that was added.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::future::select_ok;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;

use crate::cluster_version::{self as version, Version};
use crate::config::{
    ClusterState, Config, ConfigError, DiscoverySettings, InitialCluster, ListenUrl, identity,
    same_addresses,
};
use crate::discovery::{DiscoveryError, dns, registry};
use crate::http::{CLUSTER_ID_HEADER, DOWNGRADE_ENABLED_PATH, HttpMember, VERSION_PATH};
use crate::identity_file::{Identity, SeedMember};
use crate::peer_transport::{PeerDialer, address_of};

/// The longest that one peer may take to tell its members.
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(5);
/// More than any list of members needs.
const MEMBERS_BYTES_MAX: usize = 1 << 20;

/// Why a member cannot tell who it is.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The configuration and the cluster contradict each other.
    #[error("{0}")]
    Configuration(String),
    /// No peer told its members.
    #[error("cannot fetch cluster info from peer urls: {0}")]
    Peers(String),
    /// The members were not found.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Decides who a member with an empty data directory is.
///
/// # Errors
/// See [`BootstrapError`].
pub async fn decide(config: &Config, dialer: &PeerDialer) -> Result<Identity, BootstrapError> {
    let (cluster, token) = named_members(config).await?;
    let seeds = seeds_of(&cluster, token);
    match config.initial_cluster_state {
        ClusterState::New => {
            let own = seeds
                .iter()
                .find(|seed| seed.name == config.name)
                .ok_or_else(|| {
                    BootstrapError::Configuration(format!(
                        "couldn't find local name \"{}\" in the initial cluster configuration",
                        config.name
                    ))
                })?
                .id;
            refuse_if_bootstrapped(config, dialer, own, &seeds).await?;
            let seeds = match &config.discovery {
                None => seeds,
                Some(discovery) => discover(discovery, own, &cluster).await?,
            };
            Ok(Identity {
                cluster_id: identity::cluster_id(seeds.iter().map(|seed| seed.id)),
                member_id: own,
                forms_cluster: true,
                log_exists: false,
                seeds,
            })
        }
        ClusterState::Existing if config.discovery.is_some() => Err(BootstrapError::Configuration(
            "discovery URL should not be set when joining existing initial cluster".to_owned(),
        )),
        ClusterState::Existing => join(config, dialer, &cluster, &seeds).await,
    }
}

/// The members that the options name, and the token that makes their ids. With a registry this member
/// knows only itself at first.
async fn named_members(config: &Config) -> Result<(InitialCluster, &str), BootstrapError> {
    let invalid = |error: ConfigError| BootstrapError::Configuration(error.to_string());
    if let Some(discovery) = &config.discovery {
        let own = config.initial_advertise_peer_urls.clone();
        let members = [(config.name.clone(), own)].into();
        return Ok((InitialCluster { members }, &discovery.token));
    }
    let cluster = match &config.discovery_srv {
        Some(domain) => {
            let found = dns::find(config, domain).await?;
            config.check_cluster(&found).map_err(invalid)?
        }
        None => config.initial_cluster().map_err(invalid)?,
    };
    Ok((cluster, &config.initial_cluster_token))
}

fn seeds_of(cluster: &InitialCluster, token: &str) -> Vec<SeedMember> {
    cluster
        .members
        .iter()
        .map(|(name, urls)| SeedMember {
            id: identity::member_id(urls, token),
            name: name.clone(),
            peer_urls: urls.iter().map(ToString::to_string).collect(),
            is_learner: false,
        })
        .collect()
}

/// Waits in the registry for the other members.
async fn discover(
    discovery: &DiscoverySettings,
    own: u64,
    cluster: &InitialCluster,
) -> Result<Vec<SeedMember>, BootstrapError> {
    let found = registry::join(discovery, own, &cluster.to_string()).await?;
    let cluster = InitialCluster::parse(&found).map_err(BootstrapError::Configuration)?;
    if cluster.has_duplicate_url() {
        return Err(BootstrapError::Configuration(format!(
            "discovery cluster {cluster} has duplicate url"
        )));
    }
    Ok(seeds_of(&cluster, &discovery.token))
}

/// A member that lost its data directory must not vote again as if it had never voted: when the
/// cluster runs and knows this member as started, it has to be removed and added anew.
async fn refuse_if_bootstrapped(
    config: &Config,
    dialer: &PeerDialer,
    own: u64,
    seeds: &[SeedMember],
) -> Result<(), BootstrapError> {
    let peers = seeds.iter().filter(|seed| seed.id != own);
    let questions: Vec<_> = peers
        .flat_map(|seed| &seed.peer_urls)
        .map(|url| Box::pin(fetch_members(dialer, url)))
        .collect();
    if questions.is_empty() {
        return Ok(());
    }
    // The first answer counts. A new cluster has nobody who could give one.
    let Ok(((_, members), _)) = select_ok(questions).await else {
        return Ok(());
    };
    let started = members
        .iter()
        .any(|member| member.id == own && !member.client_urls.is_empty());
    if started {
        return Err(BootstrapError::Configuration(format!(
            "member {own:x} has already been bootstrapped (name \"{}\"): its data directory is gone; \
             remove the member from the cluster and add it again",
            config.name
        )));
    }
    Ok(())
}

async fn join(
    config: &Config,
    dialer: &PeerDialer,
    named: &InitialCluster,
    seeds: &[SeedMember],
) -> Result<Identity, BootstrapError> {
    let mut failures = Vec::new();
    for seed in seeds.iter().filter(|seed| seed.name != config.name) {
        for peer_url in &seed.peer_urls {
            match fetch_members(dialer, peer_url).await {
                Ok((cluster_id, members)) => {
                    let identity = identity_among(&config.name, named, cluster_id, &members)?;
                    check_versions(dialer, identity.member_id, &members).await?;
                    return Ok(identity);
                }
                Err(error) => failures.push(format!("{peer_url}: {error}")),
            }
        }
    }
    if failures.is_empty() {
        failures.push("--initial-cluster names no other member".to_owned());
    }
    Err(BootstrapError::Peers(failures.join("; ")))
}

/// Which member of the cluster this one is: the one with the peer URLs that `--initial-cluster` has under its
/// name. Every other member has to be named there, too, as etcd demands.
fn identity_among(
    name: &str,
    named: &InitialCluster,
    cluster_id: u64,
    members: &[HttpMember],
) -> Result<Identity, BootstrapError> {
    if members.len() != named.members.len() {
        return Err(BootstrapError::Configuration(format!(
            "error validating peerURLs: member count is unequal (the cluster has {}, \
             --initial-cluster names {})",
            members.len(),
            named.members.len()
        )));
    }
    let mut own = None;
    for member in members {
        if name_of(member, named)? == name {
            own = Some(member);
        }
    }
    let own = own.ok_or_else(|| {
        BootstrapError::Configuration(format!(
            "error validating peerURLs: no member of the cluster has the peer URLs of {name:?}; add \
             this member with MemberAdd first"
        ))
    })?;
    if !own.name.is_empty() {
        return Err(BootstrapError::Configuration(format!(
            "member {:x} has already been bootstrapped: its data directory is gone; remove the \
             member from the cluster and add it again",
            own.id
        )));
    }
    Ok(Identity {
        cluster_id,
        member_id: own.id,
        forms_cluster: false,
        log_exists: false,
        seeds: members
            .iter()
            .map(|member| SeedMember {
                id: member.id,
                name: member.name.clone(),
                peer_urls: member.peer_urls.clone(),
                is_learner: member.is_learner,
            })
            .collect(),
    })
}

/// The name that `--initial-cluster` gives to a member of the cluster: by the text of its URLs, otherwise by the
/// addresses of their hosts.
fn name_of<'a>(member: &HttpMember, named: &'a InitialCluster) -> Result<&'a str, BootstrapError> {
    let mut urls = member
        .peer_urls
        .iter()
        .map(|url| ListenUrl::parse(url))
        .collect::<Result<Vec<_>, _>>()
        .map_err(BootstrapError::Configuration)?;
    urls.sort_by_cached_key(ToString::to_string);
    if let Some((name, _)) = named.members.iter().find(|(_, named)| **named == urls) {
        return Ok(name);
    }
    let mut reason = String::new();
    for (name, named) in &named.members {
        match same_addresses(&urls, named) {
            Ok(()) => return Ok(name),
            Err(difference) => reason = difference,
        }
    }
    Err(BootstrapError::Configuration(format!(
        "error validating peerURLs: PeerURLs: no match found for existing member ({:x}, [{}]), last \
         resolver error ({reason})",
        member.id,
        member.peer_urls.join(" ")
    )))
}

/// Refuses to join a cluster whose version this program cannot have part in. Members that do not answer
/// may be away, but one has to tell its version.
async fn check_versions(
    dialer: &PeerDialer,
    own: u64,
    members: &[HttpMember],
) -> Result<(), BootstrapError> {
    let others = || members.iter().filter(|member| member.id != own);
    let asked = futures::future::join_all(others().map(|member| fetch_version(dialer, member)));
    let versions = asked.await;
    let asked = others().map(|member| fetch_from(dialer, member, DOWNGRADE_ENABLED_PATH));
    let answers = futures::future::join_all(asked).await;
    let is_downgrading = answers.iter().flatten().any(|answer| answer == "true");
    let allowed = version::joinable(is_downgrading);
    let mut is_known = false;
    for (member, version) in others().zip(versions) {
        let Some(version) = version else { continue };
        if !allowed.contains(&version) {
            tracing::warn!(
                "remote-member-id" = format!("{:x}", member.id),
                "remote-member-cluster-version" = version.to_string(),
                "minimum-cluster-version-supported" = allowed.start().to_string(),
                "maximum-cluster-version-supported" = allowed.end().to_string(),
                "cluster version of remote member is not compatible"
            );
            return Err(incompatible());
        }
        is_known = true;
    }
    if is_known {
        return Ok(());
    }
    tracing::warn!("no other member has told the version of the cluster");
    Err(incompatible())
}

fn incompatible() -> BootstrapError {
    BootstrapError::Configuration("incompatible with current running cluster".to_owned())
}

/// The cluster version that a member tells.
async fn fetch_version(dialer: &PeerDialer, member: &HttpMember) -> Option<Version> {
    #[derive(serde::Deserialize)]
    struct Versions {
        etcdcluster: String,
    }
    let answer = fetch_from(dialer, member, VERSION_PATH).await?;
    let told: Versions = serde_json::from_str(&answer).ok()?;
    match told.etcdcluster.parse() {
        Ok(version) => Some(version),
        Err(()) => {
            tracing::warn!(
                "remote-member-id" = format!("{:x}", member.id),
                "remote-member-cluster-version" = told.etcdcluster,
                "failed to parse cluster version of remote member"
            );
            None
        }
    }
}

/// What the first peer URL of a member that answers says at this path.
async fn fetch_from(dialer: &PeerDialer, member: &HttpMember, path: &str) -> Option<String> {
    for peer_url in &member.peer_urls {
        match fetch(dialer, peer_url, path).await {
            Ok((StatusCode::OK, _, body)) => return String::from_utf8(body.into()).ok(),
            Ok((status, ..)) => {
                tracing::warn!(address = peer_url, path, %status, "failed to reach the peer URL");
            }
            Err(error) => {
                tracing::warn!(
                    address = peer_url,
                    path,
                    error,
                    "failed to reach the peer URL"
                );
            }
        }
    }
    None
}

/// Asks a peer port for the members: the cluster id and the list.
async fn fetch_members(
    dialer: &PeerDialer,
    peer_url: &str,
) -> Result<(u64, Vec<HttpMember>), String> {
    let (_, headers, body) = fetch(dialer, peer_url, "/members").await?;
    let cluster_id = headers
        .get(CLUSTER_ID_HEADER)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .ok_or("the answer names no cluster")?;
    let members: Vec<HttpMember> =
        serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    if members.is_empty() {
        return Err("the cluster is not formed yet".to_owned());
    }
    Ok((cluster_id, members))
}

/// GET of a path at a peer URL.
async fn fetch(
    dialer: &PeerDialer,
    peer_url: &str,
    path: &str,
) -> Result<(StatusCode, HeaderMap, Bytes), String> {
    let url = ListenUrl::parse(peer_url)?;
    let host = if url.is_unix() {
        "localhost"
    } else {
        url.authority()
    };
    let request = Request::get(path)
        .header(header::HOST, host)
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let stream = dialer
            .dial(&address_of(&url))
            .await
            .map_err(|error| error.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        // Its errors reach the request as well.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MEMBERS_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        Ok((parts.status, parts.headers, body))
    };
    tokio::time::timeout(MEMBERS_TIMEOUT, exchange)
        .await
        .map_err(|_| format!("no answer within {MEMBERS_TIMEOUT:?}"))?
}
