//! Connections between members: TCP and Unix sockets, plain or with TLS.
//!
//! Consensus knows only streams; here is what it gets them from.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use metastore_consensus::{
    BoxedStream, Connector, Listener, Negotiation, PeerAddress, PeerHandler, negotiate, prepare_tcp,
};
use tokio::net::{TcpStream, UnixStream};

use crate::config::{ListenUrl, TlsSettings};
use crate::listen::sockets::{BoundSocket, Socket, StreamSocket};
use crate::tls::{ClientTls, Endpoint, Remote, ServerTls, TlsError, handshake_error};

/// What the peer listeners offer by ALPN: members offer nothing, HTTP clients speak HTTP/1.1 there.
const PROTOCOLS: &[&str] = &["http/1.1"];

/// Where a peer URL leads.
#[must_use]
pub fn address_of(url: &ListenUrl) -> PeerAddress {
    let encrypted = url.scheme.is_secure();
    match url.socket_path() {
        Some(path) => PeerAddress::Unix {
            path: PathBuf::from(path),
            encrypted,
        },
        None => PeerAddress::Tcp {
            host: url.host.trim_matches(['[', ']']).to_owned(),
            port: url.port,
            encrypted,
        },
    }
}

/// Dials other members.
#[derive(Clone)]
pub struct PeerDialer {
    tls: Arc<ClientTls>,
}

impl PeerDialer {
    /// Reads what the calls to other members need. `server_name` is expected in their certificates
    /// instead of the host of their URL.
    ///
    /// # Errors
    /// Files that cannot be read or used.
    pub fn open(settings: &TlsSettings, server_name: Option<String>) -> Result<Self, TlsError> {
        Ok(Self {
            tls: Arc::new(ClientTls::open(settings)?.expecting(server_name)),
        })
    }

    /// Connects. The caller bounds the time.
    ///
    /// # Errors
    /// When nobody listens there, or the handshake fails.
    pub async fn dial(&self, address: &PeerAddress) -> io::Result<BoxedStream> {
        match address {
            PeerAddress::Tcp {
                host,
                port,
                encrypted,
            } => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(|error| dial_error(address, &error))?;
                prepare_tcp(&stream)?;
                self.encrypt(stream, host, *encrypted).await
            }
            PeerAddress::Unix { path, encrypted } => {
                let stream = UnixStream::connect(path)
                    .await
                    .map_err(|error| dial_error(address, &error))?;
                self.encrypt(stream, "localhost", *encrypted).await
            }
        }
    }

    async fn encrypt<S>(&self, stream: S, host: &str, encrypted: bool) -> io::Result<BoxedStream>
    where
        S: metastore_consensus::PeerStream,
    {
        if !encrypted {
            return Ok(Box::new(stream));
        }
        Ok(Box::new(self.tls.connect(stream, host).await?))
    }
}

impl Connector for PeerDialer {
    fn connect(&self, address: PeerAddress) -> BoxFuture<'static, io::Result<BoxedStream>> {
        let dialer = self.clone();
        Box::pin(async move { dialer.dial(&address).await })
    }

    fn describe(&self, error: &io::Error) -> String {
        handshake_error(error)
    }
}

/// Go's text for a connection that could not be made.
fn dial_error(address: &PeerAddress, error: &io::Error) -> io::Error {
    let network = match address {
        PeerAddress::Tcp { .. } => "tcp",
        PeerAddress::Unix { .. } => "unix",
    };
    let reason = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        // The resolver's errors have no kind; they say what they are.
        _ => error.to_string(),
    };
    io::Error::new(
        error.kind(),
        format!("dial {network} {address}: connect: {reason}"),
    )
}

/// The server's side of TLS between members; nothing when no certificate is given.
///
/// # Errors
/// Files that cannot be read or used.
pub fn server_tls(settings: &TlsSettings) -> Result<Option<Arc<ServerTls>>, TlsError> {
    if settings.is_empty() {
        return Ok(None);
    }
    let tls = ServerTls::open(settings, Endpoint::Peer, PROTOCOLS)?
        .checking_addresses(!settings.skip_client_san_verification);
    Ok(Some(Arc::new(tls)))
}

/// A bound peer URL.
pub struct PeerSocket {
    /// The socket.
    pub socket: BoundSocket,
    /// TLS, if the URL says so.
    pub tls: Option<Arc<ServerTls>>,
}

/// Accepts connections of other members.
struct PeerListener {
    socket: Socket,
    tls: Option<Arc<ServerTls>>,
    handler: Arc<dyn PeerHandler>,
}

/// Makes listeners of bound sockets; to be called in the runtime that shall use them.
///
/// # Errors
/// What the operating system says.
pub fn listeners(
    sockets: Vec<PeerSocket>,
    handler: &Arc<dyn PeerHandler>,
) -> io::Result<Vec<Box<dyn Listener>>> {
    sockets
        .into_iter()
        .map(|PeerSocket { socket, tls }| {
            Ok(Box::new(PeerListener {
                socket: socket.register()?,
                tls,
                handler: Arc::clone(handler),
            }) as Box<dyn Listener>)
        })
        .collect()
}

impl Listener for PeerListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Negotiation>> {
        Box::pin(async move {
            let stream = self.socket.accept().await?;
            let tls = self.tls.clone();
            let handler = Arc::clone(&self.handler);
            Ok(Box::pin(async move {
                let stream = match stream {
                    StreamSocket::Tcp(stream) => {
                        prepare_tcp(&stream)?;
                        let remote = Remote::tcp(stream.peer_addr());
                        decrypt(stream, tls.as_deref(), &remote).await
                    }
                    StreamSocket::Unix(stream) => {
                        decrypt(stream, tls.as_deref(), &Remote::unix()).await
                    }
                };
                match stream {
                    Some(stream) => negotiate(stream, &*handler).await,
                    None => Ok(None),
                }
            }) as Negotiation)
        })
    }
}

async fn decrypt<S>(stream: S, tls: Option<&ServerTls>, remote: &Remote) -> Option<BoxedStream>
where
    S: metastore_consensus::PeerStream,
{
    match tls {
        None => Some(Box::new(stream)),
        Some(tls) => {
            let accepted = tls.accept(stream, remote).await?;
            Some(Box::new(accepted.stream))
        }
    }
}
