//! Bound sockets.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Pause after a failed accept, so that running out of file descriptors does not spin.
pub const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// Connections that the kernel keeps while we are busy.
const BACKLOG: i32 = 4096;

/// Binds a listening socket that does not block.
///
/// # Errors
/// What the operating system says, with the address.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = || -> io::Result<TcpListener> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        // A restarted member must get its port back at once.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    bound().map_err(|error| io::Error::new(error.kind(), format!("listen tcp {address}: {error}")))
}
