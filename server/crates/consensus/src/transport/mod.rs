//! How members speak to each other.
//!
//! Each pair of members has separate connections for appends, heartbeats, control calls, snapshots
//! and the application's calls, so that none waits behind another:
//!
//! | channel | carries | module |
//! |---|---|---|
//! | append | pipelined entries, and one more connection for heartbeats | [`append`] |
//! | control | votes, leadership transfer, read index | [`rpc`], [`control`] |
//! | snapshot | one snapshot | [`snapshot`] |
//! | application | forwarded proposals and what else the owner wants | [`rpc`] |
//!
//! Where the bytes go is behind [`Connector`] and [`Listener`]: plain TCP is in [`tcp`]; the owner
//! brings TLS and Unix sockets, the tests a network that can be cut.

pub(crate) mod append;
pub(crate) mod control;
pub(crate) mod dialer;
pub(crate) mod frame;
mod negotiation;
pub(crate) mod network;
pub(crate) mod peers;
pub(crate) mod rpc;
pub(crate) mod server;
pub(crate) mod snapshot;
pub(crate) mod tcp;

use std::io;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::peers::PeerAddress;

pub use negotiation::{Rewound, negotiate};
pub(crate) use peers::Peers;
pub use tcp::{TcpConnector, prepare as prepare_tcp};

/// A connection to another member.
pub trait PeerStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> PeerStream for T {}

/// A connection of any kind.
pub type BoxedStream = Box<dyn PeerStream>;

/// Makes connections to other members.
pub trait Connector: Send + Sync + 'static {
    /// Connects to an address. The caller bounds the time.
    fn connect(&self, address: PeerAddress) -> BoxFuture<'static, io::Result<BoxedStream>>;

    /// What went wrong on the way to a member, or on such a connection, in words for its operator.
    fn describe(&self, error: &io::Error) -> String {
        error.to_string()
    }
}

/// What comes of an accepted connection: a stream behind the magic line of a peer, or `None` when
/// somebody else took it.
pub type Negotiation = BoxFuture<'static, io::Result<Option<BoxedStream>>>;

/// Accepts connections of other members.
pub trait Listener: Send + 'static {
    /// The next connection. What it is finds out the returned future, which must not keep others
    /// waiting and is run with a deadline. Must be safe to cancel.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Negotiation>>;
}

/// The first line of a peer connection, for listeners that look at it themselves.
pub const PEER_MAGIC: &[u8] = frame::MAGIC;
