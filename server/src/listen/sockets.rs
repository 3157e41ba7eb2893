//! Bound sockets.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::config::ListenUrl;

/// Pause after a failed accept, so that running out of file descriptors does not spin.
pub const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// Connections that the kernel keeps while we are busy.
const BACKLOG: i32 = 4096;
/// How often the kernel asks whether an idle client is still there; etcd's interval.
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// Where a socket is bound.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A path.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(formatter, "{address}"),
            Self::Unix(path) => write!(formatter, "{}", path.display()),
        }
    }
}

impl Address {
    /// Where to bind for a URL.
    ///
    /// # Errors
    /// A host that is no address; the validation of options refuses it before.
    pub fn of(url: &ListenUrl) -> io::Result<Self> {
        if let Some(path) = url.socket_path() {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let address = url.bind_address().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("expected IP in URL for binding ({url})"),
            )
        })?;
        Ok(Self::Tcp(SocketAddr::new(address, url.port)))
    }
}

/// A listening socket that no runtime has yet. The file of a Unix socket goes when it is dropped.
#[derive(Debug)]
pub struct BoundSocket {
    address: Address,
    socket: socket2::Socket,
    file: Option<SocketFile>,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it before.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl BoundSocket {
    /// Binds.
    ///
    /// # Errors
    /// What the operating system says, with the address.
    pub fn bind(address: &Address, reuse_port: bool) -> io::Result<Self> {
        match address {
            Address::Tcp(wanted) => {
                let socket = bind_tcp(*wanted, reuse_port).map_err(|error| {
                    let reason = reason(&error);
                    io::Error::new(error.kind(), format!("listen tcp {wanted}: bind: {reason}"))
                })?;
                let address = socket.local_addr()?.as_socket().unwrap_or(*wanted);
                Ok(Self {
                    address: Address::Tcp(address),
                    socket,
                    file: None,
                })
            }
            Address::Unix(path) => {
                let socket = bind_unix(path).map_err(|error| {
                    io::Error::new(
                        error.kind(),
                        format!("listen unix {}: bind: {}", path.display(), reason(&error)),
                    )
                })?;
                Ok(Self {
                    address: address.clone(),
                    socket,
                    file: Some(SocketFile(path.clone())),
                })
            }
        }
    }

    /// Where it is bound, with the real port.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Ends every connection that comes, for as long as this is polled. Who asks then knows at once that
    /// nobody answers here yet, and need not wait for the time to be over.
    ///
    /// # Errors
    /// Only when no file descriptor is left.
    pub async fn turn_away(&self) -> io::Result<Infallible> {
        let socket = Self {
            address: self.address.clone(),
            socket: self.socket.try_clone()?,
            file: None,
        };
        let socket = socket.register()?;
        loop {
            if socket.accept().await.is_err() {
                tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
            }
        }
    }

    /// Hands the socket to the current runtime.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn register(self) -> io::Result<Socket> {
        let listener = match self.address {
            Address::Tcp(_) => Listener::Tcp(TcpListener::from_std(self.socket.into())?),
            Address::Unix(_) => Listener::Unix(UnixListener::from_std(self.socket.into())?),
        };
        Ok(Socket {
            listener,
            _file: self.file,
        })
    }
}

/// Go's words.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "address already in use".to_owned(),
        io::ErrorKind::AddrNotAvailable => "cannot assign requested address".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        _ => error.to_string(),
    }
}

fn bind_tcp(wanted: SocketAddr, reuse_port: bool) -> io::Result<socket2::Socket> {
    // Go listens for both families when asked for 0.0.0.0; so clients of etcd may come by IPv6.
    if wanted.ip() == IpAddr::from([0, 0, 0, 0]) {
        let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), wanted.port());
        match bind_one(both, reuse_port) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
    bind_one(wanted, reuse_port)
}

fn bind_one(address: SocketAddr, reuse_port: bool) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restarted member must get its port back at once.
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn bind_unix(path: &Path) -> io::Result<socket2::Socket> {
    // A member that was killed left its socket behind; nobody listens on it.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// A listening socket in a runtime.
pub struct Socket {
    listener: Listener,
    _file: Option<SocketFile>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection.
pub enum StreamSocket {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

/// A connection on its way to another runtime.
pub enum DetachedSocket {
    /// Over TCP.
    Tcp(std::net::TcpStream),
    /// Over a Unix socket.
    Unix(std::os::unix::net::UnixStream),
}

impl Socket {
    /// The next connection. Safe to cancel.
    ///
    /// # Errors
    /// No file descriptor is left, or a connection was reset before it was taken: neither ends the
    /// listener.
    pub async fn accept(&self) -> io::Result<StreamSocket> {
        match &self.listener {
            Listener::Tcp(listener) => Ok(StreamSocket::Tcp(listener.accept().await?.0)),
            Listener::Unix(listener) => Ok(StreamSocket::Unix(listener.accept().await?.0)),
        }
    }
}

impl StreamSocket {
    /// Sets the options of a client's connection and takes it from this runtime.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn detach(self) -> io::Result<DetachedSocket> {
        match self {
            Self::Tcp(stream) => {
                stream.set_nodelay(true)?;
                SockRef::from(&stream).set_tcp_keepalive(
                    &TcpKeepalive::new()
                        .with_time(TCP_KEEPALIVE_INTERVAL)
                        .with_interval(TCP_KEEPALIVE_INTERVAL),
                )?;
                Ok(DetachedSocket::Tcp(stream.into_std()?))
            }
            Self::Unix(stream) => Ok(DetachedSocket::Unix(stream.into_std()?)),
        }
    }
}

impl DetachedSocket {
    /// Hands the connection to the current runtime.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn attach(self) -> io::Result<StreamSocket> {
        match self {
            Self::Tcp(stream) => Ok(StreamSocket::Tcp(TcpStream::from_std(stream)?)),
            Self::Unix(stream) => Ok(StreamSocket::Unix(UnixStream::from_std(stream)?)),
        }
    }
}
