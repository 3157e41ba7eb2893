//! The side that is called.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::server::{NoClientAuth, NoServerSessionStorage};
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::Facts;
use super::identity::Identity;
use super::revocation::Revocations;
use super::trust::Trust;
use super::{TlsError, addresses, cipher_suites, text};
use crate::config::{TlsSettings, TlsVersion};

/// How long a handshake may take; etcd's limit.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a connection came in, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `--listen-client-urls` and the others for clients.
    Client,
    /// `--listen-peer-urls`.
    Peer,
}

/// A connection after its handshake.
pub struct Accepted<S> {
    /// The connection.
    pub stream: TlsStream<S>,
    /// Common name of the certificate that the other side showed and an authority vouched for;
    /// nothing when none was demanded.
    pub common_name: Option<String>,
}

/// Does the server's part of handshakes.
pub struct ServerTls {
    acceptor: TlsAcceptor,
    revocations: Option<Revocations>,
    endpoint: Endpoint,
    checks_addresses: bool,
}

/// The crypto library with the suites of the settings.
pub(super) fn provider(settings: &TlsSettings) -> Result<Arc<CryptoProvider>, TlsError> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites = cipher_suites::select(&settings.cipher_suites)?;
    Ok(Arc::new(provider))
}

/// The versions of the settings.
pub(super) fn versions(settings: &TlsSettings) -> Vec<&'static SupportedProtocolVersion> {
    let oldest = settings.min_version.unwrap_or(TlsVersion::Tls12);
    let newest = settings.max_version.unwrap_or(TlsVersion::Tls13);
    [
        (TlsVersion::Tls13, &rustls::version::TLS13),
        (TlsVersion::Tls12, &rustls::version::TLS12),
    ]
    .into_iter()
    .filter(|(version, _)| (oldest..=newest).contains(version))
    .map(|(_, version)| version)
    .collect()
}

/// The two files of a certificate.
pub(super) fn files(settings: &TlsSettings) -> Result<(&Path, &Path), TlsError> {
    match (&settings.cert_file, &settings.key_file) {
        (Some(cert), Some(key)) => Ok((cert, key)),
        (cert, key) => {
            let text = |path: &Option<std::path::PathBuf>| {
                path.as_ref()
                    .map(|path| path.display().to_string())
                    .unwrap_or_default()
            };
            Err(TlsError(format!(
                "KeyFile and CertFile must both be present[key: {}, cert: {}]",
                text(key),
                text(cert)
            )))
        }
    }
}

impl ServerTls {
    /// Reads the files of the settings. `protocols` are offered by ALPN, the best first.
    ///
    /// # Errors
    /// Files that cannot be read or used, with etcd's texts.
    pub fn open(
        settings: &TlsSettings,
        endpoint: Endpoint,
        protocols: &[&str],
    ) -> Result<Self, TlsError> {
        let (cert_file, key_file) = files(settings)?;
        let provider = provider(settings)?;
        let identity = Arc::new(Identity::open(cert_file, key_file)?);
        let demands = settings.demands_certificates();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions(settings))?;
        let builder = if demands {
            builder.with_client_cert_verifier(Arc::new(Trust::open(settings, provider)?))
        } else {
            builder.with_client_cert_verifier(Arc::new(NoClientAuth))
        };
        let mut config = builder.with_cert_resolver(identity);
        config.alpn_protocols = protocols
            .iter()
            .map(|protocol| protocol.as_bytes().to_vec())
            .collect();
        if demands {
            // A resumed session would not check the certificate again.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            revocations: settings.crl_file.as_deref().map(Revocations::new),
            endpoint,
            checks_addresses: false,
        })
    }

    /// Demands that a certificate with alternative names is for the address of its owner.
    #[must_use]
    pub fn checking_addresses(mut self, checks: bool) -> Self {
        self.checks_addresses = checks;
        self
    }

    /// Does the handshake. A connection that fails is logged in etcd's words and dropped.
    pub async fn accept<S>(&self, stream: S, remote: &Remote) -> Option<Accepted<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = self.acceptor.accept(stream);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let is_end = error.kind() == io::ErrorKind::UnexpectedEof;
                self.refuse(remote, &text::handshake_error(&error), None, "", is_end);
                return None;
            }
            Err(_) => {
                self.refuse(remote, "i/o timeout: no TLS handshake", None, "", false);
                return None;
            }
        };
        let (_, connection) = stream.get_ref();
        let Some(chain) = connection
            .peer_certificates()
            .filter(|chain| !chain.is_empty())
        else {
            return Some(Accepted {
                stream,
                common_name: None,
            });
        };
        let facts = Facts::read(&chain[0]).unwrap_or_default();
        let mut problem = None;
        if let (true, Some(address)) = (self.checks_addresses, remote.address) {
            problem = addresses::check(&chain[0], address.ip()).await.err();
        }
        if let (None, Some(revocations)) = (&problem, &self.revocations) {
            problem = revocations.check(chain).err();
        }
        if let Some(problem) = problem {
            let server_name = connection.server_name().unwrap_or_default().to_owned();
            self.refuse(remote, &problem, Some(&facts), &server_name, false);
            return None;
        }
        Some(Accepted {
            stream,
            common_name: Some(facts.common_name),
        })
    }

    fn refuse(
        &self,
        remote: &Remote,
        error: &str,
        facts: Option<&Facts>,
        server_name: &str,
        is_end: bool,
    ) {
        use crate::observe::log;
        // Etcd too says little about those who leave: probes of load balancers do all day.
        let level = if is_end {
            log::Level::Debug
        } else {
            log::Level::Warn
        };
        let message = match self.endpoint {
            Endpoint::Client => "rejected connection on client endpoint",
            Endpoint::Peer => "rejected connection on peer endpoint",
        };
        let mut fields = vec![
            ("remote-addr", remote.text.as_str().into()),
            ("server-name", server_name.into()),
        ];
        if let Some(facts) = facts {
            let addresses: Vec<_> = facts.ip_addresses.iter().map(IpAddr::to_string).collect();
            fields.push(("ip-addresses", addresses.into()));
            fields.push(("dns-names", facts.dns_names.clone().into()));
        }
        fields.push(("error", error.into()));
        log::record(level, log::here!(), message, &fields);
    }
}

/// Who connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    address: Option<SocketAddr>,
    text: String,
}

impl Remote {
    /// The other end of a TCP connection.
    #[must_use]
    pub fn tcp(address: io::Result<SocketAddr>) -> Self {
        match address {
            Ok(address) => {
                // On a socket for both families IPv4 looks like IPv6.
                let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                Self {
                    address: Some(address),
                    text: address.to_string(),
                }
            }
            Err(_) => Self {
                address: None,
                text: String::new(),
            },
        }
    }

    /// The address; a Unix socket has none.
    #[must_use]
    pub const fn socket_address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The other end of a Unix socket, which has no name.
    #[must_use]
    pub fn unix() -> Self {
        Self {
            address: None,
            text: "@".to_owned(),
        }
    }
}

impl std::fmt::Display for Remote {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.text)
    }
}
