//! What members ask each other beside replication: forwarded proposals, leases, promotions.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::future::BoxFuture;
use metastore_consensus::{BoxedStream, PeerError, PeerHandler, ProposeError};
use metastore_proto::etcdserverpb::{
    HashKvRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use prost::Message;
use tokio::sync::mpsc;

use crate::corruption::HashAnswer;
use crate::error::RequestError;
use crate::node::Node;
use crate::version;

/// The calls between members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Method {
    /// Proposes an encoded command; answers one byte, see [`ProposeAnswer`].
    Propose = 1,
    /// Renews a lease: 8 bytes id in, TTL or refusal out.
    LeaseRenew = 2,
    /// `LeaseTimeToLiveRequest` in, `LeaseTimeToLiveResponse` out.
    LeaseTimeToLive = 3,
    /// A change of the members: an encoded `MembershipCommand` in, a [`ChangeAnswer`] out.
    ChangeMembership = 4,
    /// Answers with nothing: the member is there.
    Ping = 5,
    /// The hash of the keys at a revision: `HashKvRequest` in, [`HashAnswer`] out.
    HashKv = 15,
    /// Answers with the version of etcd that the member offers, as text.
    ServerVersion = 16,
}

impl Method {
    fn from_number(number: u32) -> Option<Self> {
        [
            Self::Propose,
            Self::LeaseRenew,
            Self::LeaseTimeToLive,
            Self::ChangeMembership,
            Self::Ping,
            Self::HashKv,
            Self::ServerVersion,
        ]
        .into_iter()
        .find(|method| *method as u32 == number)
    }
}

/// What the leader did with a forwarded proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposeAnswer {
    /// It is committed; the result comes with the local apply.
    Accepted,
    /// It was surely not taken.
    Refused,
    /// Nobody can say.
    Unknown,
}

const ACCEPTED: &[u8] = &[1];
const REFUSED: &[u8] = &[2];

/// Reads the answer of [`Method::Propose`].
pub fn decode_propose_answer(answer: Result<Bytes, PeerError>) -> ProposeAnswer {
    match answer {
        Ok(bytes) if bytes.as_ref() == ACCEPTED => ProposeAnswer::Accepted,
        Ok(bytes) if bytes.as_ref() == REFUSED => ProposeAnswer::Refused,
        Ok(_) => ProposeAnswer::Unknown,
        Err(PeerError::Unreachable { .. } | PeerError::Removed) => ProposeAnswer::Refused,
        Err(_) => ProposeAnswer::Unknown,
    }
}

/// Why the leader did not do a forwarded call.
#[derive(Clone, PartialEq, Message)]
pub struct ChangeAnswer {
    /// Position of the error in `EtcdError::ALL` plus one; 0 when there is none.
    #[prost(uint32, tag = "1")]
    pub error: u32,
    /// The asked member does not lead.
    #[prost(bool, tag = "2")]
    pub not_leader: bool,
    /// Text of an error that etcd has no number for.
    #[prost(string, tag = "3")]
    pub text: String,
    /// TTL of a renewed lease.
    #[prost(int64, tag = "4")]
    pub ttl_seconds: i64,
}

impl ChangeAnswer {
    /// The answer to an error.
    pub fn from_error(error: &RequestError) -> Self {
        match error {
            RequestError::Etcd(error) => Self {
                error: metastore_proto::error_text::EtcdError::ALL
                    .iter()
                    .position(|known| known == error)
                    .and_then(|position| u32::try_from(position + 1).ok())
                    .unwrap_or_default(),
                ..Self::default()
            },
            other => Self {
                text: other.to_string(),
                ..Self::default()
            },
        }
    }

    /// The error that an answer carries.
    pub fn to_error(&self) -> Option<RequestError> {
        let known = usize::try_from(self.error)
            .ok()
            .and_then(|number| number.checked_sub(1))
            .and_then(|position| metastore_proto::error_text::EtcdError::ALL.get(position));
        match known {
            Some(error) => Some(RequestError::Etcd(*error)),
            None if self.text.is_empty() => None,
            None => Some(RequestError::Unknown(self.text.clone())),
        }
    }
}

/// What the process has to do because of its peers.
#[derive(Debug)]
pub enum PeerEvent {
    /// This member was removed from the cluster: end.
    Removed,
    /// Consensus cannot go on: end with an error.
    Fatal(String),
}

/// The peer side of a member. Calls that arrive before the node runs are refused.
pub struct PeerService {
    node: OnceLock<Arc<Node>>,
    events: mpsc::UnboundedSender<PeerEvent>,
    http: mpsc::Sender<BoxedStream>,
}

impl PeerService {
    /// A service that reports to `events` and hands connections that are no peer's to `http`.
    pub fn new(events: mpsc::UnboundedSender<PeerEvent>, http: mpsc::Sender<BoxedStream>) -> Self {
        Self {
            node: OnceLock::new(),
            events,
            http,
        }
    }

    /// Starts to answer for `node`.
    pub fn serve(&self, node: Arc<Node>) {
        // A second call would mean two nodes in one process, which startup does not do.
        let _ = self.node.set(node);
    }
}

fn read_id(body: &Bytes) -> Result<u64, String> {
    let bytes: [u8; 8] = body
        .as_ref()
        .try_into()
        .map_err(|_| format!("an id has 8 bytes, not {}", body.len()))?;
    Ok(u64::from_be_bytes(bytes))
}

async fn answer(node: Arc<Node>, method: Method, body: Bytes) -> Result<Bytes, String> {
    match method {
        Method::Ping => Ok(Bytes::new()),
        Method::ServerVersion => Ok(Bytes::from_static(version::ETCD_VERSION.as_bytes())),
        Method::HashKv => {
            let request = HashKvRequest::decode(body).map_err(|error| error.to_string())?;
            let answer = HashAnswer::from_result(node.hash_kv(request.revision).await);
            Ok(answer.encode_to_vec().into())
        }
        Method::Propose => Ok(Bytes::from_static(
            match node.consensus.propose(body).await {
                Ok(_) => ACCEPTED,
                Err(ProposeError::NotLeader { .. }) => REFUSED,
                Err(ProposeError::Unknown | ProposeError::Stopped) => &[0],
            },
        )),
        Method::LeaseRenew => {
            let id = read_id(&body)?.cast_signed();
            let answer = match node.renew_lease_as_leader(id).await {
                Ok(Some(ttl_seconds)) => ChangeAnswer {
                    ttl_seconds,
                    ..ChangeAnswer::default()
                },
                Ok(None) => ChangeAnswer {
                    not_leader: true,
                    ..ChangeAnswer::default()
                },
                Err(error) => ChangeAnswer::from_error(&error.into()),
            };
            Ok(answer.encode_to_vec().into())
        }
        Method::LeaseTimeToLive => {
            let request = LeaseTimeToLiveRequest::decode(body).map_err(|e| e.to_string())?;
            let response: Option<LeaseTimeToLiveResponse> = node
                .lease_time_to_live_as_leader(&request)
                .await
                .map_err(|error| error.to_string())?;
            response
                .map(|response| response.encode_to_vec().into())
                .ok_or_else(|| "not leader".to_owned())
        }
        Method::ChangeMembership => {
            let answer = match node.change_membership_as_leader(body).await {
                Ok(Some(_)) => ChangeAnswer::default(),
                Ok(None) => ChangeAnswer {
                    not_leader: true,
                    ..ChangeAnswer::default()
                },
                Err(error) => ChangeAnswer::from_error(&error),
            };
            Ok(answer.encode_to_vec().into())
        }
    }
}

impl PeerHandler for PeerService {
    fn call(
        &self,
        _from: u64,
        method: u32,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, String>> {
        let node = self.node.get().cloned();
        Box::pin(async move {
            let method = Method::from_number(method)
                .ok_or_else(|| format!("this version does not know the call {method}"))?;
            let node = node.ok_or("this member is still starting")?;
            answer(node, method, body).await
        })
    }

    fn foreign_connection(&self, stream: BoxedStream) {
        // Full: more HTTP connections wait than anybody needs on the peer port; drop this one.
        let _ = self.http.try_send(stream);
    }

    fn removed(&self) {
        let _ = self.events.send(PeerEvent::Removed);
    }

    fn fatal(&self, message: String) {
        let _ = self.events.send(PeerEvent::Fatal(message));
    }
}
