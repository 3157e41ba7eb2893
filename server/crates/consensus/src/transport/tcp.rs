//! Peer connections over TCP.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};

use super::{BoxedStream, Connector, Listener, Negotiation, negotiate};
use crate::peers::{PeerAddress, PeerHandler};

/// How long sent bytes may stay unacknowledged before the kernel gives the connection up. Without
/// it a call to a machine that vanished would hang for a quarter of an hour.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

/// Sets the options of a connection between members.
///
/// # Errors
/// What the operating system says.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_keepalive(true)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(())
}

/// Plain TCP, and nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect(&self, address: PeerAddress) -> BoxFuture<'static, io::Result<BoxedStream>> {
        Box::pin(async move {
            let PeerAddress::Tcp {
                host,
                port,
                encrypted: false,
            } = &address
            else {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("{address} is not plain TCP"),
                ));
            };
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            prepare(&stream)?;
            Ok(Box::new(stream) as BoxedStream)
        })
    }
}

/// A plain TCP listener that hands connections of other protocols to the owner.
pub(crate) struct SharedTcpListener {
    pub(crate) listener: TcpListener,
    pub(crate) handler: Arc<dyn PeerHandler>,
}

impl Listener for SharedTcpListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Negotiation>> {
        Box::pin(async move {
            let (stream, _) = self.listener.accept().await?;
            let handler = self.handler.clone();
            Ok(Box::pin(async move {
                prepare(&stream)?;
                negotiate(Box::new(stream), &*handler).await
            }) as Negotiation)
        })
    }
}
