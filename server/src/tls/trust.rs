//! Whose certificates are accepted.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};

use super::TlsError;
use super::certificate::{Facts, Usage};
use super::files::Watched;
use crate::config::TlsSettings;

/// Certificate authorities.
struct Authorities {
    store: Arc<RootCertStore>,
    certificates: Vec<CertificateDer<'static>>,
    /// Nothing where there are no authorities: then nobody's certificate is good.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl Authorities {
    fn new(
        certificates: Vec<CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store
                .add(certificate.clone())
                .map_err(|error| format!("x509: malformed certificate authority: {error}"))?;
        }
        let store = Arc::new(store);
        let clients = if certificates.is_empty() {
            None
        } else {
            let builder = WebPkiClientVerifier::builder_with_provider(
                Arc::clone(&store),
                Arc::clone(provider),
            );
            let built = builder.build();
            Some(built.map_err(|error| format!("no certificate authority can be used: {error}"))?)
        };
        Ok(Self {
            store,
            certificates,
            clients,
        })
    }

    fn parse(contents: &[u8], provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(contents)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("x509: malformed certificate: {error}"))?;
        if certificates.is_empty() {
            return Err("no certificate authority can be used: there is none in it".to_owned());
        }
        Self::new(certificates, provider)
    }

    /// Those that the system trusts. A small image may have none, which is no fault as long as nobody's
    /// certificate has to be checked with them.
    fn of_system(provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let loaded = rustls_native_certs::load_native_certs();
        // A system has many; one that rustls cannot use must not cost the others.
        let mut store = RootCertStore::empty();
        let usable = loaded
            .certs
            .into_iter()
            .filter(|certificate| store.add(certificate.clone()).is_ok())
            .collect();
        Self::new(usable, provider)
            .map_err(|error| format!("certificate authorities of the system: {error}"))
    }

    /// Go accepts a certificate that is itself among the trusted ones, also when it is the
    /// authority of nobody; webpki does not.
    fn holds(&self, certificate: &CertificateDer<'_>, usage: Usage) -> bool {
        self.certificates.contains(certificate)
            && Facts::read(certificate).is_ok_and(|facts| facts.is_current() && facts.allows(usage))
    }
}

/// Checks the certificates of others; authorities are read again when their file changes.
pub(super) struct Trust {
    authorities: Source,
    allowed: Allowed,
    provider: Arc<CryptoProvider>,
}

enum Source {
    File(Watched<Authorities>),
    System(Box<Authorities>),
    /// Generated certificates: everybody is trusted, only the key is checked.
    Nobody,
}

/// Which of the certificates that an authority signed are welcome.
enum Allowed {
    All,
    CommonNames(Vec<String>),
    HostNames(Vec<String>),
}

impl Trust {
    /// Reads the authorities.
    ///
    /// # Errors
    /// A file that cannot be read, or contradicting settings, with etcd's texts.
    pub(super) fn open(
        settings: &TlsSettings,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let allowed = Allowed::new(settings)?;
        let authorities = if settings.is_self_signed {
            Source::Nobody
        } else if let Some(path) = &settings.trusted_ca_file {
            let provider = Arc::clone(&provider);
            Source::File(
                Watched::open(vec![path.clone()], move |contents| {
                    Authorities::parse(&contents[0], &provider)
                })
                .map_err(|error| {
                    if error.starts_with("open ") {
                        error
                    } else {
                        format!("{}: {error}", path.display())
                    }
                })?,
            )
        } else {
            Source::System(Box::new(Authorities::of_system(&provider)?))
        };
        Ok(Self {
            authorities,
            allowed,
            provider,
        })
    }

    /// Nobody's certificate is checked: `--discovery-insecure-skip-tls-verify`.
    pub(super) fn blind(provider: Arc<CryptoProvider>) -> Self {
        Self {
            authorities: Source::Nobody,
            allowed: Allowed::All,
            provider,
        }
    }

    fn with<R>(&self, use_it: impl FnOnce(Option<&Authorities>) -> R) -> R {
        match &self.authorities {
            Source::File(watched) => use_it(Some(&watched.get())),
            Source::System(authorities) => use_it(Some(authorities)),
            Source::Nobody => use_it(None),
        }
    }
}

impl Allowed {
    fn new(settings: &TlsSettings) -> Result<Self, TlsError> {
        match (
            settings.allowed_common_names.as_slice(),
            settings.allowed_hostnames.as_slice(),
        ) {
            ([], []) => Ok(Self::All),
            (names, []) => Ok(Self::CommonNames(names.to_vec())),
            ([], names) => Ok(Self::HostNames(names.to_vec())),
            (common, hosts) => {
                let quoted = |names: &[String]| {
                    let names: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
                    format!("[{}]", names.join(" "))
                };
                Err(TlsError(format!(
                    "AllowedCNs and AllowedHostnames are mutually exclusive (cns={}, hostnames={})",
                    quoted(common),
                    quoted(hosts)
                )))
            }
        }
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let is_welcome = match self {
            Self::All => true,
            Self::CommonNames(names) => {
                Facts::read(certificate).is_ok_and(|facts| names.contains(&facts.common_name))
            }
            Self::HostNames(names) => names.iter().any(|name| is_valid_for(certificate, name)),
        };
        if is_welcome {
            return Ok(());
        }
        // Of all refusals this one has the alert `bad certificate`, which Go sends. Rustls says itself of
        // a server's name that is not the one that was asked for with more words.
        Err(Error::InvalidCertificate(CertificateError::NotValidForName))
    }
}

/// Rustls chooses the alert by the error, and has other alerts than Go for two of them.
fn with_alert_of_go(error: Error) -> Error {
    match error {
        // `bad certificate` instead of `unsupported certificate`.
        Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => Error::InvalidCertificate(wrong_usage()),
        // An authority of the same name with another key is an unknown one.
        Error::InvalidCertificate(
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
            | CertificateError::BadSignature,
        ) => Error::InvalidCertificate(CertificateError::UnknownIssuer),
        other => other,
    }
}

/// A client's certificate that is not for clients: the error of a wrong name, which has the alert
/// `bad certificate`, for a name that no certificate is ever asked for.
pub(super) fn wrong_usage() -> CertificateError {
    CertificateError::NotValidForNameContext {
        expected: ServerName::try_from("client.usage.invalid").expect("a valid name"),
        presented: Vec::new(),
    }
}

/// Whether a certificate is for this host name or IP address.
pub(super) fn is_valid_for(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(name) = ServerName::try_from(name) else {
        return false;
    };
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|certificate| verify_server_name(&certificate, &name).is_ok())
}

impl fmt::Debug for Trust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Trust")
    }
}

impl ClientCertVerifier for Trust {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // The authorities may change at any time; clients choose by themselves without a hint.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.with(|authorities| {
            let Some(authorities) = authorities else {
                return Ok(ClientCertVerified::assertion());
            };
            if authorities.holds(end_entity, Usage::Client) {
                return Ok(ClientCertVerified::assertion());
            }
            let Some(clients) = &authorities.clients else {
                return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
            };
            clients
                .verify_client_cert(end_entity, intermediates, now)
                .map_err(with_alert_of_go)
        })?;
        self.allowed.check(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.with(|authorities| {
            let Some(authorities) = authorities else {
                return Ok(());
            };
            let certificate = ParsedCertificate::try_from(end_entity)?;
            if !authorities.holds(end_entity, Usage::Server) {
                verify_server_cert_signed_by_trust_anchor(
                    &certificate,
                    &authorities.store,
                    intermediates,
                    now,
                    self.provider.signature_verification_algorithms.all,
                )?;
            }
            verify_server_name(&certificate, server_name)
        })?;
        self.allowed.check(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls12_signature(self, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls13_signature(self, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ClientCertVerifier::supported_verify_schemes(self)
    }
}
