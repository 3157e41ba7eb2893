//! Peer connections over TCP.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};

use super::frame::MAGIC;
use super::{BoxedStream, Connector, Listener, Negotiation};
use crate::peers::{PeerAddress, PeerHandler};

/// How long sent bytes may stay unacknowledged before the kernel gives the connection up. Without
/// it a call to a machine that vanished would hang for a quarter of an hour.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);
/// How often a peek that found only a part of the magic line is repeated.
const PEEK_INTERVAL: Duration = Duration::from_millis(5);

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_keepalive(true)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(())
}

/// Plain TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect(&self, address: PeerAddress) -> BoxFuture<'static, io::Result<BoxedStream>> {
        Box::pin(async move {
            let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
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
            Ok(Box::pin(negotiate(stream, handler)) as Negotiation)
        })
    }
}

/// Looks at the first bytes without taking them.
async fn negotiate(
    stream: TcpStream,
    handler: Arc<dyn PeerHandler>,
) -> io::Result<Option<BoxedStream>> {
    prepare(&stream)?;
    let mut first = [0_u8; MAGIC.len()];
    loop {
        let length = stream.peek(&mut first).await?;
        if length == 0 {
            return Ok(None);
        }
        if first[..length] != MAGIC[..length] {
            handler.foreign_connection(stream);
            return Ok(None);
        }
        if length == MAGIC.len() {
            break;
        }
        // A peek returns at once while there is anything to see.
        tokio::time::sleep(PEEK_INTERVAL).await;
    }
    let mut stream = stream;
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut first).await?;
    Ok(Some(Box::new(stream)))
}
