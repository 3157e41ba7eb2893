//! The side that calls.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::identity::Identity;
use super::server::{files, provider, versions};
use super::trust::Trust;
use super::{TlsError, text};
use crate::config::TlsSettings;

/// Does the client's part of handshakes.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    server_name: Option<String>,
}

impl ClientTls {
    /// For calls to other members: shows the certificate of the settings, trusts their authorities.
    /// Settings without a certificate show none.
    ///
    /// # Errors
    /// Files that cannot be read or used, with etcd's texts.
    pub fn open(settings: &TlsSettings) -> Result<Self, TlsError> {
        let trust = Trust::open(settings, provider(settings)?)?;
        Self::with_trust(settings, trust)
    }

    /// As [`Self::open`], but the server's certificate is not checked.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_blind(settings: &TlsSettings) -> Result<Self, TlsError> {
        let trust = Trust::blind(provider(settings)?);
        Self::with_trust(settings, trust)
    }

    fn with_trust(settings: &TlsSettings, trust: Trust) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider(settings)?)
            .with_protocol_versions(&versions(settings))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(trust));
        let mut config = if settings.is_empty() {
            builder.with_no_client_auth()
        } else {
            let (cert, key) = files(settings)?;
            let (cert, key) = match (&settings.client_cert_file, &settings.client_key_file) {
                (Some(cert), Some(key)) => (cert.as_path(), key.as_path()),
                (None, None) => (cert, key),
                (cert, key) => {
                    let path = |path: &Option<std::path::PathBuf>| {
                        path.as_ref()
                            .map(|path| path.display().to_string())
                            .unwrap_or_default()
                    };
                    return Err(TlsError(format!(
                        "ClientKeyFile and ClientCertFile must both be present or both absent: \
                         key: {}, cert: {}]",
                        path(key),
                        path(cert)
                    )));
                }
            };
            builder.with_client_cert_resolver(Arc::new(Identity::open(cert, key)?))
        };
        // A resumed session would not check the certificate again.
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            server_name: None,
        })
    }

    /// Expects this name in every certificate, whatever the URL says: etcd does so for members that
    /// were found by DNS.
    #[must_use]
    pub fn expecting(mut self, server_name: Option<String>) -> Self {
        self.server_name = server_name;
        self
    }

    /// Offers these protocols by ALPN.
    #[must_use]
    pub fn offering(mut self, protocols: &[&str]) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = protocols
            .iter()
            .map(|protocol| protocol.as_bytes().to_vec())
            .collect();
        self.config = Arc::new(config);
        self
    }

    /// Does the handshake with the server of this name. The caller bounds the time.
    ///
    /// # Errors
    /// In Go's words why the server is not who it should be, or does not want this member.
    pub async fn connect<S>(&self, stream: S, host: &str) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let host = self.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        TlsConnector::from(Arc::clone(&self.config))
            .connect(name, stream)
            .await
            .map_err(|error| io::Error::new(error.kind(), text::handshake_error(&error)))
    }
}
