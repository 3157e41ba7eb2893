//! gRPC clients for one endpoint.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use metastore_proto::KeyValue;
use metastore_proto::etcdserverpb::{
    self as pb, cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient, watch_client::WatchClient,
};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::patience::eventually;

/// Longest wait for a TCP connection: everything is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// All services of one member, on one connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// Range, Put, DeleteRange, Txn, Compact.
    pub kv: KvClient<Channel>,
    /// Watch.
    pub watch: WatchClient<Channel>,
    /// Leases.
    pub lease: LeaseClient<Channel>,
    /// Members.
    pub cluster: ClusterClient<Channel>,
    /// Status, hashes, leadership.
    pub maintenance: MaintenanceClient<Channel>,
    /// The connection itself, for other services.
    pub channel: Channel,
}

impl Client {
    /// A client for `http://host:port` that connects when it is first used, and again when the
    /// connection is lost.
    pub fn new(endpoint: &str) -> Self {
        Self::with_channel(
            Endpoint::from_shared(endpoint.to_owned())
                .expect("fixtures make valid addresses")
                .connect_timeout(CONNECT_TIMEOUT)
                .connect_lazy(),
        )
    }

    /// As [`new`](Self::new), but a call that takes longer than `limit` fails with DeadlineExceeded
    /// or Cancelled (its outcome is unknown then).
    pub fn with_timeout(endpoint: &str, limit: Duration) -> Self {
        Self::with_channel(
            Endpoint::from_shared(endpoint.to_owned())
                .expect("fixtures make valid addresses")
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(limit)
                .connect_lazy(),
        )
    }

    /// A client that speaks TLS to `host:port`, and connects when it is first used.
    pub fn secure(address: &str, config: Arc<ClientConfig>) -> Self {
        let name = address.rsplit_once(':').map_or(address, |(host, _)| host);
        Self::secure_as(address, name, config)
    }

    /// As [`secure`](Self::secure), where the certificate has another name than the address.
    pub fn secure_as(address: &str, name: &str, config: Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from(name.to_owned()).expect("fixtures make valid names");
        let connector = TlsConnector::from(config);
        let target = address.to_owned();
        let connect = tower::service_fn(move |_| {
            let (connector, name, target) = (connector.clone(), name.clone(), target.clone());
            async move {
                let stream = tokio::net::TcpStream::connect(target).await?;
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        Self::with_channel(
            Endpoint::from_shared(format!("http://{address}"))
                .expect("fixtures make valid addresses")
                .connect_timeout(CONNECT_TIMEOUT)
                .connect_with_connector_lazy(connect),
        )
    }

    fn with_channel(channel: Channel) -> Self {
        let limit = usize::MAX;
        Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(limit),
            watch: WatchClient::new(channel.clone()).max_decoding_message_size(limit),
            lease: LeaseClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()).max_decoding_message_size(limit),
            channel,
        }
    }

    /// Puts a key; returns the revision.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<i64, Status> {
        let request = pb::PutRequest {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        };
        Ok(revision(
            self.kv.clone().put(request).await?.into_inner().header,
        ))
    }

    /// Reads a key, linearizably; returns the pair and the store's revision.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<(Option<KeyValue>, i64), Status> {
        let request = pb::RangeRequest {
            key: key.into(),
            ..Default::default()
        };
        let answer = self.kv.clone().range(request).await?.into_inner();
        Ok((answer.kvs.first().map(decode), revision(answer.header)))
    }

    /// Reads a key from this member's own state, which may be old.
    pub async fn get_serializable(
        &self,
        key: impl Into<Bytes>,
    ) -> Result<(Option<KeyValue>, i64), Status> {
        let request = pb::RangeRequest {
            key: key.into(),
            serializable: true,
            ..Default::default()
        };
        let answer = self.kv.clone().range(request).await?.into_inner();
        Ok((answer.kvs.first().map(decode), revision(answer.header)))
    }

    /// Waits until this member's own state has a key.
    ///
    /// # Panics
    ///
    /// When it has not come within `limit`.
    pub async fn until_it_has(&self, key: &'static str, limit: Duration) {
        eventually("the member has the key", limit, || async {
            let (pair, _) = self
                .get_serializable(key)
                .await
                .map_err(|error| error.to_string())?;
            pair.map(drop).ok_or_else(|| "not yet".to_owned())
        })
        .await;
    }

    /// This member's status.
    pub async fn status(&self) -> Result<pb::StatusResponse, Status> {
        Ok(self
            .maintenance
            .clone()
            .status(pb::StatusRequest {})
            .await?
            .into_inner())
    }

    /// The members, as the leader knows them.
    pub async fn members(&self) -> Result<Vec<pb::Member>, Status> {
        let request = pb::MemberListRequest { linearizable: true };
        Ok(self
            .cluster
            .clone()
            .member_list(request)
            .await?
            .into_inner()
            .members)
    }

    /// HashKV at `revision` (0 for the current one).
    pub async fn hash_kv(&self, revision: i64) -> Result<pb::HashKvResponse, Status> {
        let request = pb::HashKvRequest { revision };
        Ok(self
            .maintenance
            .clone()
            .hash_kv(request)
            .await?
            .into_inner())
    }
}

/// The revision of a header; 0 without one.
pub fn revision(header: Option<pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// The fields of a pair.
pub fn decode(pair: &metastore_proto::EncodedKeyValue) -> KeyValue {
    pair.decode().expect("the server sends valid protobuf")
}

/// Did the request certainly have no effect? (Its connection was refused, or it was rejected.)
/// Everything else may have happened, now or later.
pub fn surely_not_done(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::Unimplemented
    )
}
