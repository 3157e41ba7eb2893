//! The members that clients are shown, and how proxies know of each other: `--advertise-client-url`,
//! `--resolver-prefix` and `--resolver-ttl`.
//!
//! A proxy with a prefix enters itself there, under a lease, as etcd's package `naming/endpoints` does. All proxies
//! with that prefix are then the members of which `MemberList` tells.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use metastore_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, Member, MemberListResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, WatchCreateRequest,
};
use metastore_proto::mvccpb::event::EventType;
use parking_lot::Mutex;
use prost::Message;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tonic::Status;

use super::namespace::Namespace;
use super::upstream::Upstream;
use crate::observe::metrics::grpc::method;

/// Pause before another attempt; etcd makes one each second.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What the options say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberOptions {
    /// Where clients reach this proxy; empty: clients are shown the members of the cluster.
    pub advertise_url: String,
    /// Where proxies enter themselves; empty: nowhere.
    pub prefix: String,
    /// For how long an entry outlives its proxy.
    pub ttl_seconds: i64,
}

/// An entry in etcd's form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    /// 0: the address is there.
    #[serde(default)]
    op: u8,
    #[serde(default)]
    addr: String,
    /// The name, as JSON inside a string.
    #[serde(default)]
    metadata: Value,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    name: String,
}

impl Entry {
    fn member(&self) -> Result<Member, Status> {
        let metadata = match &self.metadata {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let metadata: Metadata =
            serde_json::from_str(&metadata).map_err(|error| Status::unknown(error.to_string()))?;
        Ok(Member {
            name: metadata.name,
            client_ur_ls: vec![self.addr.clone()],
            ..Default::default()
        })
    }
}

/// Knows the proxies.
pub struct Members {
    upstream: Arc<Upstream>,
    namespace: Namespace,
    options: MemberOptions,
    /// Entries by their keys.
    entries: Mutex<BTreeMap<Bytes, Entry>>,
}

/// This machine's name.
fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

impl Members {
    /// Knows nobody yet.
    pub fn new(upstream: Arc<Upstream>, namespace: Namespace, options: MemberOptions) -> Arc<Self> {
        Arc::new(Self {
            upstream,
            namespace,
            options,
            entries: Mutex::default(),
        })
    }

    /// Enters this proxy and learns of the others, if the options say so.
    pub fn start(self: &Arc<Self>) {
        if self.options.prefix.is_empty() {
            return;
        }
        tokio::spawn(Arc::clone(self).register());
        if !self.options.advertise_url.is_empty() {
            tokio::spawn(Arc::clone(self).learn());
        }
    }

    /// Answers `MemberList`.
    ///
    /// # Errors
    /// The cluster's; an entry that somebody else wrote.
    pub async fn list(&self, headers: &HeaderMap, message: Bytes) -> Result<Bytes, Status> {
        if self.options.advertise_url.is_empty() {
            let path = method::MEMBER_LIST.path();
            return self.upstream.unary(path, headers, message).await;
        }
        let mut members = self
            .entries
            .lock()
            .values()
            .map(Entry::member)
            .collect::<Result<Vec<_>, _>>()?;
        if members.is_empty() {
            members.push(Member {
                name: host_name(),
                client_ur_ls: vec![self.options.advertise_url.clone()],
                ..Default::default()
            });
        }
        let answer = MemberListResponse {
            header: None,
            members,
        };
        Ok(answer.encode_to_vec().into())
    }

    fn folder(&self) -> String {
        format!("{}/", self.options.prefix)
    }

    async fn register(self: Arc<Self>) {
        loop {
            if let Err(error) = self.registered().await {
                tracing::warn!(error = error.message(), "failed to create a session");
            } else {
                tracing::warn!("session expired; possible network partition or server restart");
                tracing::warn!("creating a new session to rejoin");
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Enters this proxy and renews its lease; ends when the lease has.
    async fn registered(&self) -> Result<(), Status> {
        let grant = LeaseGrantRequest {
            ttl: self.options.ttl_seconds,
            ..Default::default()
        };
        let lease: LeaseGrantResponse = self
            .upstream
            .ask(method::LEASE_GRANT.path(), &grant)
            .await?;
        let metadata = Metadata { name: host_name() };
        let entry = Entry {
            op: 0,
            addr: self.options.advertise_url.clone(),
            metadata: serde_json::to_string(&metadata)
                .map_err(|error| Status::internal(error.to_string()))?
                .into(),
        };
        let key = format!("{}{}", self.folder(), self.options.advertise_url);
        let put = PutRequest {
            key: self.namespace.key(key.as_bytes()),
            value: serde_json::to_vec(&entry)
                .map_err(|error| Status::internal(error.to_string()))?
                .into(),
            lease: lease.id,
            ..Default::default()
        };
        let _: PutResponse = self.upstream.ask(method::PUT.path(), &put).await?;
        tracing::info!(
            addr = self.options.advertise_url,
            "lease-ttl" = self.options.ttl_seconds,
            "registered session with lease"
        );
        self.keep_alive(lease.id, lease.ttl).await;
        Ok(())
    }

    /// Renews a lease three times in its life, until it has ended.
    async fn keep_alive(&self, id: i64, ttl: i64) {
        let life = Duration::from_secs(u64::try_from(ttl).unwrap_or(0).max(1));
        let mut renewed = Instant::now();
        while renewed.elapsed() < life {
            tokio::time::sleep(life / 3).await;
            match tokio::time::timeout(life, self.upstream.renew_lease(id)).await {
                Ok(Ok(0)) => return,
                Ok(Ok(_)) => renewed = Instant::now(),
                Ok(Err(error)) => {
                    tracing::debug!(error = error.message(), "failed to renew the lease");
                }
                Err(_) => {}
            }
        }
    }

    async fn learn(self: Arc<Self>) {
        loop {
            let Err(error) = self.follow().await;
            tracing::warn!(
                prefix = self.options.prefix,
                error = error.message(),
                "failed to establish endpoint watch"
            );
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Reads the entries and follows their changes until the watch ends, and says why.
    async fn follow(&self) -> Result<Infallible, Status> {
        let folder = self.folder();
        // '/' + 1: everything below the folder.
        let end = format!("{}0", self.options.prefix);
        let (key, range_end) = (
            self.namespace.key(folder.as_bytes()),
            self.namespace.key(end.as_bytes()),
        );
        let range = RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            ..Default::default()
        };
        let found: RangeResponse = self.upstream.ask(method::RANGE.path(), &range).await?;
        let entries = found
            .kvs
            .iter()
            .filter_map(|pair| pair.decode().ok())
            .filter_map(|pair| Some((pair.key, parse(&pair.value)?)))
            .collect();
        *self.entries.lock() = entries;
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: found.header.map_or(0, |header| header.revision) + 1,
            ..Default::default()
        };
        let mut headers = HeaderMap::new();
        headers.insert("hasleader", http::HeaderValue::from_static("true"));
        let mut watch = self.upstream.watch(&headers, create).await?;
        loop {
            let answer = watch.next().await?;
            if answer.canceled {
                return Err(Status::unavailable(answer.cancel_reason));
            }
            let mut entries = self.entries.lock();
            for event in &answer.events {
                let Some(pair) = event.kv.as_ref().and_then(|pair| pair.decode().ok()) else {
                    continue;
                };
                match event.r#type() {
                    EventType::Put => {
                        if let Some(entry) = parse(&pair.value) {
                            entries.insert(pair.key, entry);
                        }
                    }
                    EventType::Delete => {
                        entries.remove(&pair.key);
                    }
                }
            }
        }
    }
}

fn parse(value: &[u8]) -> Option<Entry> {
    match serde_json::from_slice(value) {
        Ok(entry) => Some(entry),
        Err(error) => {
            tracing::warn!(%error, "unmarshal endpoint update failed");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_form_of_etcd() {
        let text = r#"{"Op":0,"Addr":"10.0.0.1:23790","Metadata":"{\"name\":\"a\"}"}"#;
        let entry = parse(text.as_bytes()).expect("an entry");
        assert_eq!(serde_json::to_string(&entry).expect("JSON"), text);
        let member = entry.member().expect("a member");
        assert_eq!(member.name, "a");
        assert_eq!(member.client_ur_ls, ["10.0.0.1:23790"]);
        assert!(parse(b"nonsense").is_none());
        let foreign = parse(br#"{"Addr":"a"}"#).expect("an entry");
        assert!(foreign.member().is_err());
    }
}
