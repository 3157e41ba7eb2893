//! Makes connections to other members and introduces this one.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metastore_proto::peer;

use super::Connector;
use super::frame::{FrameReader, FrameWriter, MAGIC, PROTOCOL, split};
use crate::counters::Counters;
use crate::error::PeerError;
use crate::peers::{PeerAddress, PeerDirectory, PeerHandler};

/// Time-outs of peer connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// For a connection with its handshake.
    pub(crate) connect: Duration,
    /// For the answer to an append, a vote or another control call.
    pub(crate) answer: Duration,
    /// For the answer to a leadership transfer, before which the target syncs its log.
    pub(crate) transfer: Duration,
    /// For the next sign of life of a snapshot transfer.
    pub(crate) snapshot_progress: Duration,
}

/// Who this member is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
}

/// A connection that was accepted by the member it was meant for.
pub(crate) struct Connection {
    pub(crate) reader: FrameReader,
    pub(crate) writer: FrameWriter,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum DialError {
    /// The member does not answer, or somebody else does.
    Unreachable(String),
    /// This member was removed.
    Removed,
}

impl fmt::Display for DialError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(reason) => formatter.write_str(reason),
            Self::Removed => formatter.write_str("this member was removed from the cluster"),
        }
    }
}

impl std::error::Error for DialError {}

impl DialError {
    pub(crate) fn to_peer_error(&self, member: u64) -> PeerError {
        match self {
            Self::Unreachable(reason) => PeerError::Unreachable {
                member,
                reason: reason.clone(),
            },
            Self::Removed => PeerError::Removed,
        }
    }
}

/// Makes connections; shared by everything that sends.
pub(crate) struct Dialer {
    pub(crate) identity: Identity,
    pub(crate) directory: Arc<dyn PeerDirectory>,
    pub(crate) handler: Arc<dyn PeerHandler>,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) timeouts: Timeouts,
}

impl Dialer {
    /// Connects to a member at the first of its present addresses that works.
    pub(crate) async fn dial(
        &self,
        member: u64,
        channel: peer::Channel,
    ) -> Result<Connection, DialError> {
        let counters = self.counters.peer(member);
        let result = self.try_addresses(member, channel).await;
        match &result {
            Ok(_) => {
                counters.connects.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                counters.connect_failures.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(
                    peer = format_args!("{member:x}"),
                    ?channel,
                    %error,
                    "cannot connect"
                );
            }
        }
        result
    }

    async fn try_addresses(
        &self,
        member: u64,
        channel: peer::Channel,
    ) -> Result<Connection, DialError> {
        if self.directory.is_removed(member) {
            return Err(DialError::Unreachable("the member was removed".into()));
        }
        let mut last = DialError::Unreachable("no address is known".into());
        for address in self.directory.addresses(member) {
            let attempt = self.try_address(member, channel, address.clone());
            last = match tokio::time::timeout(self.timeouts.connect, attempt).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(DialError::Removed)) => return Err(DialError::Removed),
                Ok(Err(DialError::Unreachable(reason))) => {
                    DialError::Unreachable(format!("{address}: {reason}"))
                }
                Err(_) => DialError::Unreachable(format!(
                    "{address}: no answer within {:?}",
                    self.timeouts.connect
                )),
            };
        }
        Err(last)
    }

    async fn try_address(
        &self,
        member: u64,
        channel: peer::Channel,
        address: PeerAddress,
    ) -> Result<Connection, DialError> {
        let unreachable =
            |error: io::Error| DialError::Unreachable(self.connector.describe(&error));
        let stream = self
            .connector
            .connect(address.clone())
            .await
            .map_err(unreachable)?;
        let (mut reader, mut writer) = split(stream, self.counters.peer(member));
        writer.put_raw(MAGIC);
        writer.put(&peer::Hello {
            protocol: PROTOCOL,
            cluster_id: self.identity.cluster_id,
            sender: self.identity.member_id,
            target: member,
            channel: channel.into(),
        });
        writer.flush().await.map_err(unreachable)?;
        let welcome: peer::Welcome = reader
            .expect(self.timeouts.connect)
            .await
            .map_err(unreachable)?;
        self.check_welcome(member, &address, &welcome)?;
        Ok(Connection { reader, writer })
    }

    fn check_welcome(
        &self,
        member: u64,
        address: &PeerAddress,
        welcome: &peer::Welcome,
    ) -> Result<(), DialError> {
        match welcome.refusal() {
            peer::Refusal::Accepted
                if welcome.member == member && welcome.cluster_id == self.identity.cluster_id =>
            {
                Ok(())
            }
            peer::Refusal::Removed => {
                tracing::error!(
                    peer = format_args!("{member:x}"),
                    reason = welcome.reason,
                    "a peer says that this member was removed from the cluster"
                );
                self.handler.removed();
                Err(DialError::Removed)
            }
            peer::Refusal::Stopping => Err(DialError::Unreachable("the member is stopping".into())),
            refusal => {
                tracing::warn!(
                    peer = format_args!("{member:x}"),
                    %address,
                    ?refusal,
                    reason = welcome.reason,
                    our_cluster = format_args!("{:x}", self.identity.cluster_id),
                    their_cluster = format_args!("{:x}", welcome.cluster_id),
                    their_member = format_args!("{:x}", welcome.member),
                    "a peer refuses this member: check the peer URLs and the data directories"
                );
                Err(DialError::Unreachable(format!(
                    "refused ({refusal:?}): {}",
                    welcome.reason
                )))
            }
        }
    }
}
