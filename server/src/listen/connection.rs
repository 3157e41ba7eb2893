//! One connection of a client: what it speaks, and serving it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metastore_consensus::Rewound;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::ConnectionService;
use super::endpoints::Traffic;
use super::executor::PollFirst;
use super::peer_certificate::PeerCertificate;
use super::sockets::{DetachedSocket, StreamSocket};
use crate::tls::{Accepted, Remote, ServerTls};

/// Flow-control window of one stream. The default of 64 KiB stops a 1.5 MiB put many times.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Flow-control window of a connection: one slow stream must not stop the others.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// The longest that a client may take to say what it speaks, and to send the head of an HTTP/1.1
/// request: etcd's `ReadHeaderTimeout`.
const HEADER_TIMEOUT: Duration = Duration::from_secs(300);
/// Decoded size of the headers of one HTTP/2 request. Tokens are the largest that anybody sends; a
/// compressed header can stand for thousands of times its own size, so there has to be an end.
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
/// Reads of a connection after which the others of its thread get their turn. A client that sends without
/// end is decoded without end otherwise: tokio's own limit is 128 reads, each of which may hold hundreds
/// of requests.
const READS_IN_A_ROW_MAX: u8 = 16;
/// The first bytes of HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// Interval of pings that etcd's option has by default. The kernel's keep-alive finds dead
/// connections much earlier, so pings that rare are left out: they would cost every request a lock.
const PING_INTERVAL_DEFAULT: Duration = Duration::from_secs(2 * 60 * 60);
/// What `--grpc-keepalive-min-time=0` means: etcd then leaves the choice to grpc-go.
const GRPC_PING_INTERVAL_MIN: Duration = Duration::from_secs(5 * 60);

/// Marks the requests of a connection with TLS, in their extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverTls;

/// A socket for clients, as far as its connections have to know.
pub struct ClientEndpoint {
    /// What is served.
    pub traffic: Traffic,
    /// TLS, if it is spoken.
    pub tls: Option<ServerTls>,
    /// Plain text is spoken.
    pub insecure: bool,
    /// A client is who its certificate says: `--client-cert-auth`. Without it a certificate that
    /// `--trusted-ca-file` demands only opens the door, as in etcd.
    pub identifies_clients: bool,
}

/// What the options say about connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// `--max-concurrent-streams`.
    pub max_concurrent_streams: u32,
    /// `--grpc-keepalive-min-time`; zero leaves the choice to gRPC.
    pub ping_interval_min: Duration,
    /// `--grpc-keepalive-interval`; nothing: no pings.
    pub ping_interval: Option<Duration>,
    /// `--grpc-keepalive-timeout`; nothing: no pings.
    pub ping_timeout: Option<Duration>,
}

/// How HTTP connections behave.
pub(super) struct HttpOptions {
    http1: http1::Builder,
    http2: http2::Builder<PollFirst>,
    /// Shortest interval between pings of a client; faster ones end the connection.
    ping_interval_min: Duration,
}

impl HttpOptions {
    pub(super) fn new(options: &ConnectionOptions) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            // As Go writes them: scripts look for `Content-Type`.
            .title_case_headers(true)
            .header_read_timeout(HEADER_TIMEOUT);
        let mut http2 = http2::Builder::new(PollFirst);
        http2
            .timer(TokioTimer::new())
            // Answers to gRPC requests have none in etcd; `HttpService` gives it to all others.
            .auto_date_header(false)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .max_concurrent_streams(options.max_concurrent_streams);
        if let (Some(interval), Some(timeout)) = (options.ping_interval, options.ping_timeout)
            && interval < PING_INTERVAL_DEFAULT
        {
            http2
                .keep_alive_interval(interval)
                .keep_alive_timeout(timeout);
        }
        Self {
            http1,
            http2,
            ping_interval_min: Some(options.ping_interval_min)
                .filter(|interval| !interval.is_zero())
                .unwrap_or(GRPC_PING_INTERVAL_MIN),
        }
    }
}

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tls,
    Http1,
    Http2,
}

/// The protocol that begins so; nothing when more bytes are needed.
fn classify(first: &[u8]) -> Option<Protocol> {
    match first {
        [] => None,
        [TLS_HANDSHAKE, ..] => Some(Protocol::Tls),
        _ if first.starts_with(PREFACE) => Some(Protocol::Http2),
        _ if PREFACE.starts_with(first) => None,
        _ => Some(Protocol::Http1),
    }
}

/// Looks at the first bytes without taking them; nothing when more are needed. To look again would be
/// to look again and again: a peek returns at once while there is anything to see.
async fn peek(stream: &TcpStream) -> io::Result<Option<Protocol>> {
    let mut first = [0; PREFACE.len()];
    match within_header_timeout(stream.peek(&mut first)).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        length => Ok(classify(&first[..length])),
    }
}

/// Reads the first bytes; they are put back in front of the stream.
async fn read_first<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(Protocol, Rewound<S>)> {
    let mut first = Vec::with_capacity(PREFACE.len());
    let protocol = within_header_timeout(async {
        loop {
            if stream.read_buf(&mut first).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(protocol) = classify(&first) {
                return Ok(protocol);
            }
        }
    })
    .await?;
    Ok((protocol, Rewound::new(Bytes::from(first), stream)))
}

async fn within_header_timeout<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(HEADER_TIMEOUT, work).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// What every connection of a thread shares.
pub(crate) struct Serving<S> {
    services: Arc<S>,
    options: HttpOptions,
}

impl<S: ConnectionService> Serving<S> {
    /// Serves so.
    pub(crate) fn new(services: S, options: &ConnectionOptions) -> Self {
        Self {
            services: Arc::new(services),
            options: HttpOptions::new(options),
        }
    }
}

/// Serves a connection to its end.
pub(crate) async fn serve<S: ConnectionService>(
    socket: DetachedSocket,
    endpoint: Arc<ClientEndpoint>,
    serving: Arc<Serving<S>>,
) {
    let result = match socket.attach() {
        Ok(StreamSocket::Tcp(stream)) => serve_tcp(stream, &endpoint, &serving).await,
        Ok(StreamSocket::Unix(stream)) => serve_unix(stream, &endpoint, &serving).await,
        Err(error) => {
            tracing::warn!(%error, "failed to register a connection");
            return;
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, "client connection ended");
    }
}

type Ended = Result<(), String>;

async fn serve_tcp<S: ConnectionService>(
    stream: TcpStream,
    endpoint: &ClientEndpoint,
    serving: &Serving<S>,
) -> Ended {
    let address = stream.peer_addr();
    if endpoint.insecure {
        match peek(&stream).await.map_err(|error| error.to_string())? {
            Some(Protocol::Tls) => {}
            Some(plain) => {
                let remote = address.ok();
                return serve_http(stream, plain, remote, None, endpoint, serving).await;
            }
            // Who sends the first bytes one by one.
            None => return Box::pin(serve_read(stream, address, endpoint, serving)).await,
        }
    }
    serve_tls(stream, &Remote::tcp(address), endpoint, serving).await
}

/// Serves a connection whose first bytes have to be read to know what it speaks.
async fn serve_read<S: ConnectionService>(
    stream: TcpStream,
    address: io::Result<SocketAddr>,
    endpoint: &ClientEndpoint,
    serving: &Serving<S>,
) -> Ended {
    let (protocol, stream) = read_first(stream)
        .await
        .map_err(|error| error.to_string())?;
    match protocol {
        Protocol::Tls => serve_tls(stream, &Remote::tcp(address), endpoint, serving).await,
        plain => serve_http(stream, plain, address.ok(), None, endpoint, serving).await,
    }
}

/// A stream that lets others have their turn.
struct Fair<S> {
    stream: S,
    reads: u8,
}

impl<S> Fair<S> {
    fn new(stream: S) -> Self {
        Self { stream, reads: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Fair<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.reads == READS_IN_A_ROW_MAX {
            this.reads = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
        this.reads = match polled {
            Poll::Ready(_) => this.reads + 1,
            Poll::Pending => 0,
        };
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Fair<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

async fn serve_unix<T, S>(stream: T, endpoint: &ClientEndpoint, serving: &Serving<S>) -> Ended
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: ConnectionService,
{
    if !endpoint.insecure {
        return serve_tls(stream, &Remote::unix(), endpoint, serving).await;
    }
    let (protocol, stream) = read_first(stream)
        .await
        .map_err(|error| error.to_string())?;
    match protocol {
        Protocol::Tls => serve_tls(stream, &Remote::unix(), endpoint, serving).await,
        plain => serve_http(stream, plain, None, None, endpoint, serving).await,
    }
}

async fn serve_tls<T, S>(
    stream: T,
    remote: &Remote,
    endpoint: &ClientEndpoint,
    serving: &Serving<S>,
) -> Ended
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: ConnectionService,
{
    let Some(tls) = &endpoint.tls else {
        return Err(format!("{remote} speaks TLS, which is not spoken here"));
    };
    let Some(Accepted {
        stream,
        common_name,
    }) = tls.accept(stream, remote).await
    else {
        return Ok(());
    };
    let certificate = Secured {
        certificate: common_name
            .filter(|_| endpoint.identifies_clients)
            .map(|name| PeerCertificate {
                common_name: Some(name).filter(|name| !name.is_empty()).map(Arc::from),
            }),
    };
    let secured = Some(certificate);
    let remote = remote.socket_address();
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => {
            serve_http(stream, Protocol::Http2, remote, secured, endpoint, serving).await
        }
        Some(_) => serve_http(stream, Protocol::Http1, remote, secured, endpoint, serving).await,
        None => {
            let (protocol, stream) = read_first(stream)
                .await
                .map_err(|error| error.to_string())?;
            serve_http(stream, protocol, remote, secured, endpoint, serving).await
        }
    }
}

/// What the requests of a connection with TLS are told.
struct Secured {
    certificate: Option<PeerCertificate>,
}

impl Secured {
    fn mark(&self, request: &mut Request<Incoming>) {
        let extensions = request.extensions_mut();
        extensions.insert(OverTls);
        if let Some(certificate) = &self.certificate {
            extensions.insert(certificate.clone());
        }
    }
}

async fn serve_http<T, S>(
    stream: T,
    protocol: Protocol,
    remote: Option<SocketAddr>,
    secured: Option<Secured>,
    endpoint: &ClientEndpoint,
    serving: &Serving<S>,
) -> Ended
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: ConnectionService,
{
    let traffic = endpoint.traffic;
    // As in etcd: on a TLS port that serves HTTP too, another library than gRPC's speaks HTTP/2, and
    // it does not count pings.
    let counts_pings = secured.is_none() || traffic == Traffic::Grpc;
    let services = Arc::clone(&serving.services);
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(secured) = &secured {
            secured.mark(&mut request);
        }
        services
            .call(request, remote, traffic)
            .map(Ok::<_, Infallible>)
    });
    let io = TokioIo::new(Fair::new(stream));
    let options = &serving.options;
    match protocol {
        Protocol::Http2 => {
            let pings = counts_pings.then_some(options.ping_interval_min);
            h2::server::with_ping_interval_min(pings, || {
                options.http2.serve_connection(io, service)
            })
            .await
        }
        Protocol::Http1 if traffic == Traffic::Grpc => {
            return Err("HTTP/1.1 on a port for gRPC".to_owned());
        }
        // A second handshake inside TLS is nonsense, which HTTP/1.1 answers as such.
        Protocol::Http1 | Protocol::Tls => {
            options
                .http1
                .serve_connection(io, service)
                .with_upgrades()
                .await
        }
    }
    .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_protocol() {
        for (first, protocol) in [
            (&b""[..], None),
            (b"P", None),
            (b"PRI * HTTP/2.0\r\n", None),
            (PREFACE, Some(Protocol::Http2)),
            (b"PO", Some(Protocol::Http1)),
            (b"GET / HTTP/1.1", Some(Protocol::Http1)),
            (&[0x16, 3, 1], Some(Protocol::Tls)),
        ] {
            assert_eq!(classify(first), protocol, "{first:?}");
        }
    }
}
