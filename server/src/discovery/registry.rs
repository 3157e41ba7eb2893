//! Members through another etcd: `--discovery-token` and `--discovery-endpoints`.
//!
//! ```text
//! /_etcd/registry/<token>/_config/size        how many members the cluster begins with
//! /_etcd/registry/<token>/members/<id>        name=url[,name=url] of one, written by itself
//! ```
//!
//! The first members by the order of their entries form the cluster. The keys are etcd's, so its
//! tools make and show tokens.

use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use metastore_proto::etcdserverpb::auth_client::AuthClient;
use metastore_proto::etcdserverpb::kv_client::KvClient;
use metastore_proto::etcdserverpb::{AuthenticateRequest, PutRequest, RangeRequest, RangeResponse};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::DiscoveryError;
use crate::config::{DiscoverySettings, InitialCluster, TlsSettings};
use crate::tls::ClientTls;

/// How often the registry is asked whether more members have come.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// After so many failures the pause between attempts does not grow any more; etcd's number.
const BACKOFF_DOUBLINGS_MAX: u32 = 8;

const SIZE_NOT_FOUND: &str = "discovery: size key not found";
const BAD_SIZE: &str = "discovery: size key is bad";
const FULL_CLUSTER: &str = "discovery: cluster is full";
const INVALID_URL: &str = "discovery: invalid peer URL";

/// Enters this member (`name=url[,name=url]`) into the registry and waits until all have come.
/// Returns the text of an `--initial-cluster`. A registry that does not answer is asked again for
/// ever, as by etcd.
///
/// # Errors
/// The token is unknown, or its cluster has all its members without this one.
pub async fn join(
    settings: &DiscoverySettings,
    member_id: u64,
    own: &str,
) -> Result<String, DiscoveryError> {
    let registry = Registry::new(settings, member_id).map_err(DiscoveryError::Join)?;
    let result = registry.join(own).await;
    match &result {
        Ok(cluster) => tracing::info!(cluster, "discovery joined cluster successfully"),
        Err(error) => tracing::error!(error, "discovery failed to join cluster"),
    }
    result.map_err(DiscoveryError::Join)
}

struct Registry<'a> {
    settings: &'a DiscoverySettings,
    channels: Vec<Channel>,
    member_id: u64,
}

/// A member's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    key: String,
    urls: String,
    create_revision: i64,
}

/// A registry that answered, but not what is needed.
enum Failure {
    /// Asking again may help.
    Again(String),
    Final(&'static str),
}

impl<'a> Registry<'a> {
    fn new(settings: &'a DiscoverySettings, member_id: u64) -> Result<Self, String> {
        let channels = settings
            .endpoints
            .iter()
            .map(|endpoint| connect(settings, endpoint))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            settings,
            channels,
            member_id,
        })
    }

    fn prefix(&self) -> String {
        format!("/_etcd/registry/{}", self.settings.token.trim_matches('/'))
    }

    fn members_prefix(&self) -> String {
        format!("{}/members/", self.prefix())
    }

    fn own_key(&self) -> String {
        format!("{}{:x}", self.members_prefix(), self.member_id)
    }

    async fn join(&self, own: &str) -> Result<String, String> {
        self.check().await?;
        self.register(own).await;
        let (size, mut entries) = self.check().await?;
        tracing::info!(
            "clusterSize" = size,
            "found-peers" = entries.len(),
            "waiting for peers from discovery service"
        );
        while entries.len() < size {
            tokio::time::sleep(POLL_INTERVAL).await;
            entries = self.check().await?.1;
        }
        tracing::info!(
            "clusterSize" = size,
            "found-peers" = entries.len(),
            "found all needed peers from discovery service"
        );
        initial_cluster(&entries, size)
    }

    /// The size of the cluster and who has come, unless there is no place for this member.
    async fn check(&self) -> Result<(usize, Vec<Entry>), String> {
        let mut failures = 0;
        loop {
            let found = async { Ok((self.size().await?, self.entries().await?)) };
            match found.await {
                Ok((size, entries)) => {
                    let place = entries.iter().position(|entry| entry.key == self.own_key());
                    if place.unwrap_or(entries.len()) >= size {
                        return Err(FULL_CLUSTER.to_owned());
                    }
                    return Ok((size, entries));
                }
                Err(Failure::Final(text)) => return Err(text.to_owned()),
                Err(Failure::Again(error)) => {
                    pause("cluster status check", &error, &mut failures).await;
                }
            }
        }
    }

    async fn register(&self, own: &str) {
        let mut failures = 0;
        loop {
            let request = PutRequest {
                key: self.own_key().into(),
                value: Bytes::copy_from_slice(own.as_bytes()),
                ..PutRequest::default()
            };
            let written = self
                .ask(|mut client, token| {
                    let request = with_token(request.clone(), token);
                    async move { client.put(request).await.map(|_| ()) }
                })
                .await;
            match written {
                Ok(()) => {
                    tracing::info!(
                        "memberKey" = self.own_key(),
                        "memberInfo" = own,
                        "register member itself successfully"
                    );
                    return;
                }
                Err(error) => pause("register member itself", &error, &mut failures).await,
            }
        }
    }

    async fn size(&self) -> Result<usize, Failure> {
        let key = format!("{}/_config/size", self.prefix());
        let answer = self.range(key.into(), Bytes::new()).await?;
        let Some(pair) = answer.kvs.first() else {
            return Err(Failure::Final(SIZE_NOT_FOUND));
        };
        pair.decode()
            .ok()
            .and_then(|pair| std::str::from_utf8(&pair.value).ok()?.parse().ok())
            .filter(|size| *size > 0)
            .ok_or(Failure::Final(BAD_SIZE))
    }

    /// The entries in the order in which they were made.
    async fn entries(&self) -> Result<Vec<Entry>, Failure> {
        let prefix = self.members_prefix();
        let mut end = prefix.clone().into_bytes();
        // '/' + 1: everything below the folder.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let answer = self.range(prefix.into(), end.into()).await?;
        let mut entries: Vec<Entry> = answer
            .kvs
            .iter()
            .filter_map(|pair| pair.decode().ok())
            .filter_map(|pair| {
                let urls = String::from_utf8_lossy(&pair.value).trim().to_owned();
                if !urls.contains('=') {
                    tracing::warn!(
                        "memberInfo" = urls,
                        "invalid peer info returned from discovery service"
                    );
                    return None;
                }
                Some(Entry {
                    key: String::from_utf8_lossy(&pair.key).trim().to_owned(),
                    urls,
                    create_revision: pair.create_revision,
                })
            })
            .collect();
        entries.sort_by_key(|entry| entry.create_revision);
        Ok(entries)
    }

    async fn range(&self, key: Bytes, range_end: Bytes) -> Result<RangeResponse, Failure> {
        let request = RangeRequest {
            key,
            range_end,
            ..RangeRequest::default()
        };
        self.ask(|mut client, token| {
            let request = with_token(request.clone(), token);
            async move { client.range(request).await.map(tonic::Response::into_inner) }
        })
        .await
        .map_err(Failure::Again)
    }

    /// Asks the endpoints in turn until one answers.
    async fn ask<T, F>(
        &self,
        call: impl Fn(KvClient<Channel>, Option<AsciiMetadataValue>) -> F,
    ) -> Result<T, String>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut last = String::from("no endpoint");
        for channel in &self.channels {
            let attempt = async {
                let token = self.authenticate(channel).await?;
                call(KvClient::new(channel.clone()), token).await
            };
            let limit = self.settings.dial_timeout + self.settings.request_timeout;
            match tokio::time::timeout(limit, attempt).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => last = status.message().to_owned(),
                Err(_) => last = "context deadline exceeded".to_owned(),
            }
        }
        Err(last)
    }

    async fn authenticate(&self, channel: &Channel) -> Result<Option<AsciiMetadataValue>, Status> {
        let Some((name, password)) = &self.settings.user else {
            return Ok(None);
        };
        let request = AuthenticateRequest {
            name: name.clone(),
            password: password.clone(),
        };
        let answer = AuthClient::new(channel.clone())
            .authenticate(request)
            .await?
            .into_inner();
        answer
            .token
            .parse()
            .map(Some)
            .map_err(|_| Status::internal("the token is no header value"))
    }
}

fn with_token<T>(message: T, token: Option<AsciiMetadataValue>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token);
    }
    request
}

async fn pause(step: &str, error: &str, failures: &mut u32) {
    *failures = (*failures + 1).min(BACKOFF_DOUBLINGS_MAX);
    let backoff = Duration::from_secs(1 << *failures);
    tracing::warn!(
        reason = step,
        error,
        ?backoff,
        "retry connecting to discovery service"
    );
    tokio::time::sleep(backoff).await;
}

/// A connection that is made at the first request.
fn connect(settings: &DiscoverySettings, endpoint: &str) -> Result<Channel, String> {
    let (scheme, address) = match endpoint.split_once("://") {
        Some((scheme, address)) => (scheme, address),
        None => ("", endpoint),
    };
    let tls = match (scheme, &settings.tls) {
        ("http", _) | ("", None) => None,
        ("https" | "", tls) => Some(open_tls(settings, tls.as_ref())?),
        (other, _) => return Err(format!("discovery endpoint {endpoint}: scheme {other:?}")),
    };
    let host = address
        .rsplit_once(':')
        .map_or(address, |(host, _)| host)
        .trim_matches(['[', ']'])
        .to_owned();
    let target = address.to_owned();
    let connector = tower::service_fn(move |_| {
        let (host, target, tls) = (host.clone(), target.clone(), tls.clone());
        async move {
            let stream = tokio::net::TcpStream::connect(target).await?;
            let stream: metastore_consensus::BoxedStream = match tls {
                None => Box::new(stream),
                Some(tls) => Box::new(tls.connect(stream, &host).await?),
            };
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Ok(Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| format!("discovery endpoint {endpoint}: {error}"))?
        .connect_timeout(settings.dial_timeout)
        .http2_keep_alive_interval(metastore_proto::ping_interval(settings.keepalive_time))
        .keep_alive_timeout(settings.keepalive_timeout)
        .connect_with_connector_lazy(connector))
}

fn open_tls(settings: &DiscoverySettings, tls: Option<&TlsSettings>) -> Result<ClientTls, String> {
    let default = TlsSettings::default();
    let tls = tls.unwrap_or(&default);
    let opened = if settings.skips_verification {
        ClientTls::open_blind(tls)
    } else {
        ClientTls::open(tls)
    };
    Ok(opened.map_err(|error| error.to_string())?.offering(&["h2"]))
}

/// The first members by the order of their entries.
fn initial_cluster(entries: &[Entry], size: usize) -> Result<String, String> {
    let urls: Vec<&str> = entries
        .iter()
        .take(size)
        .map(|entry| entry.urls.as_str())
        .collect();
    let text = urls.join(",");
    match InitialCluster::parse(&text) {
        Ok(_) => Ok(text),
        Err(_) => Err(INVALID_URL.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_members_form_the_cluster() {
        let entry = |urls: &str, create_revision| Entry {
            key: String::new(),
            urls: urls.to_owned(),
            create_revision,
        };
        let entries = [
            entry("a=http://10.0.0.1:1,a=http://10.0.0.1:2", 3),
            entry("b=http://10.0.0.2:1", 4),
            entry("c=http://10.0.0.3:1", 5),
        ];
        assert_eq!(
            initial_cluster(&entries, 2).as_deref(),
            Ok("a=http://10.0.0.1:1,a=http://10.0.0.1:2,b=http://10.0.0.2:1")
        );
        assert_eq!(
            initial_cluster(&[entry("a=b", 1)], 1),
            Err(INVALID_URL.to_owned())
        );
    }
}
