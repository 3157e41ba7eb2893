//! What consensus asks and tells its owner about other members.

use bytes::Bytes;
use futures::future::BoxFuture;

/// Where a member listens for its peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddress {
    /// Host name or IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for PeerAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

/// The owner's replicated list of members. Asked at every connect, so it must be a cheap read.
pub trait PeerDirectory: Send + Sync + 'static {
    /// Addresses of a member, from its peer URLs, tried in turn; empty when they are not known.
    fn addresses(&self, member: u64) -> Vec<PeerAddress>;

    /// Whether the member was once a member and was removed. Its connections are refused, and it
    /// is told why.
    fn is_removed(&self, member: u64) -> bool;

    /// Whether the member is one now.
    fn is_member(&self, member: u64) -> bool;
}

/// What the owner does for consensus and for other members.
pub trait PeerHandler: Send + Sync + 'static {
    /// Answers [`crate::Consensus::call_peer`] of another member.
    ///
    /// Called and polled on the Raft thread: it must never block, and work that takes more than
    /// some microseconds belongs on a runtime of the owner.
    fn call(
        &self,
        from: u64,
        method: u32,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, String>>;

    /// A connection on a peer listener that does not speak our protocol (HTTP: `/version`,
    /// `/members`). No byte of it was read. Called on the Raft thread; to use the stream on another
    /// runtime convert it with `into_std` and `from_std`.
    fn foreign_connection(&self, stream: tokio::net::TcpStream);

    /// Another member said that this member was removed from the cluster. May be called more than
    /// once.
    fn removed(&self);

    /// The log or the state machine failed; nothing more will be decided here and the process must
    /// end. Called once, from any thread.
    fn fatal(&self, message: String);
}
