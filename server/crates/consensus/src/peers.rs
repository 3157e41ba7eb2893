//! What consensus asks and tells its owner about other members.

use std::path::PathBuf;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::transport::BoxedStream;

/// Where a member listens for its peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerAddress {
    /// A TCP port.
    Tcp {
        /// Host name or IP address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// Whether the connection is encrypted.
        encrypted: bool,
    },
    /// A Unix socket.
    Unix {
        /// Path of the socket.
        path: PathBuf,
        /// Whether the connection is encrypted.
        encrypted: bool,
    },
}

impl std::fmt::Display for PeerAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => {
                write!(formatter, "[{host}]:{port}")
            }
            Self::Tcp { host, port, .. } => write!(formatter, "{host}:{port}"),
            Self::Unix { path, .. } => write!(formatter, "{}", path.display()),
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
    /// `/members`). Reading it begins with its first byte. Called on the Raft thread.
    fn foreign_connection(&self, stream: BoxedStream);

    /// Another member said that this member was removed from the cluster. May be called more than
    /// once.
    fn removed(&self);

    /// The log or the state machine failed; nothing more will be decided here and the process must
    /// end. Called once, from any thread.
    fn fatal(&self, message: String);
}
