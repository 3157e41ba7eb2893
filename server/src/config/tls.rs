//! What the options say about TLS.

use std::fmt;
use std::path::{Path, PathBuf};

use super::settings::Settings;

/// A version of TLS that an option can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// `TLS1.2`.
    Tls12,
    /// `TLS1.3`.
    Tls13,
}

impl TlsVersion {
    /// Reads `TLS1.2` or `TLS1.3`; the empty text is nothing.
    ///
    /// # Errors
    /// Etcd's text for other values.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        match text {
            "" => Ok(None),
            "TLS1.2" => Ok(Some(Self::Tls12)),
            "TLS1.3" => Ok(Some(Self::Tls13)),
            _ => Err(format!(
                "unexpected TLS version {text:?} (must be one of: TLS1.2, TLS1.3)"
            )),
        }
    }
}

/// How one side, clients or members, does TLS.
///
/// Files are named here and read by [`crate::tls`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// `--cert-file`: the certificate that the server shows.
    pub cert_file: Option<PathBuf>,
    /// `--key-file`: its key.
    pub key_file: Option<PathBuf>,
    /// `--client-cert-file`: the certificate that this member shows when it calls; nothing means
    /// [`Self::cert_file`].
    pub client_cert_file: Option<PathBuf>,
    /// `--client-key-file`.
    pub client_key_file: Option<PathBuf>,
    /// `--trusted-ca-file`; nothing means the authorities of the system.
    pub trusted_ca_file: Option<PathBuf>,
    /// `--client-cert-auth`.
    pub client_cert_auth: bool,
    /// `--client-crl-file`.
    pub crl_file: Option<PathBuf>,
    /// `--peer-cert-allowed-cn`, `--client-cert-allowed-cn`; empty means any.
    pub allowed_common_names: Vec<String>,
    /// `--client-cert-allowed-hostname`; empty means any.
    pub allowed_hostnames: Vec<String>,
    /// `--peer-skip-client-san-verification`.
    pub skip_client_san_verification: bool,
    /// `--auto-tls`.
    pub auto: bool,
    /// The certificate was generated, so that nobody can check it.
    pub is_self_signed: bool,
    /// `--tls-min-version`; nothing means TLS 1.2.
    pub min_version: Option<TlsVersion>,
    /// `--tls-max-version`; nothing means the newest.
    pub max_version: Option<TlsVersion>,
    /// `--cipher-suites`, Go's names; empty means all.
    pub cipher_suites: Vec<String>,
}

impl TlsSettings {
    /// Neither a certificate nor a key is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cert_file.is_none() && self.key_file.is_none()
    }

    /// Whether those who connect must show a certificate.
    #[must_use]
    pub fn demands_certificates(&self) -> bool {
        self.client_cert_auth || self.trusted_ca_file.is_some()
    }

    /// Uses a generated certificate, as etcd does: everything about the certificates of others is
    /// forgotten, because generated ones cannot be checked.
    pub(crate) fn use_generated(&mut self, cert_file: &Path, key_file: &Path) {
        *self = Self {
            cert_file: Some(cert_file.to_owned()),
            key_file: Some(key_file.to_owned()),
            client_cert_file: Some(cert_file.to_owned()),
            client_key_file: Some(key_file.to_owned()),
            auto: true,
            is_self_signed: true,
            min_version: self.min_version,
            max_version: self.max_version,
            cipher_suites: std::mem::take(&mut self.cipher_suites),
            ..Self::default()
        };
    }

    pub(super) fn of_clients(settings: &Settings) -> Self {
        Self {
            cert_file: path(settings, "cert-file"),
            key_file: path(settings, "key-file"),
            client_cert_file: path(settings, "client-cert-file"),
            client_key_file: path(settings, "client-key-file"),
            trusted_ca_file: path(settings, "trusted-ca-file"),
            client_cert_auth: settings.boolean("client-cert-auth"),
            crl_file: path(settings, "client-crl-file"),
            allowed_common_names: words(settings, "client-cert-allowed-cn"),
            allowed_hostnames: words(settings, "client-cert-allowed-hostname"),
            auto: settings.boolean("auto-tls"),
            ..Self::common(settings)
        }
    }

    pub(super) fn of_peers(settings: &Settings) -> Self {
        Self {
            cert_file: path(settings, "peer-cert-file"),
            key_file: path(settings, "peer-key-file"),
            client_cert_file: path(settings, "peer-client-cert-file"),
            client_key_file: path(settings, "peer-client-key-file"),
            trusted_ca_file: path(settings, "peer-trusted-ca-file"),
            client_cert_auth: settings.boolean("peer-client-cert-auth"),
            crl_file: path(settings, "peer-crl-file"),
            allowed_common_names: words(settings, "peer-cert-allowed-cn"),
            allowed_hostnames: words(settings, "peer-cert-allowed-hostname"),
            skip_client_san_verification: settings.boolean("peer-skip-client-san-verification"),
            auto: settings.boolean("peer-auto-tls"),
            ..Self::common(settings)
        }
    }

    fn common(settings: &Settings) -> Self {
        // `validate` has refused every other text.
        let version = |name| TlsVersion::parse(&settings.text(name)).unwrap_or_default();
        Self {
            min_version: version("tls-min-version"),
            max_version: version("tls-max-version"),
            cipher_suites: words(settings, "cipher-suites"),
            ..Self::default()
        }
    }
}

fn path(settings: &Settings, name: &'static str) -> Option<PathBuf> {
    Some(settings.text(name))
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

fn words(settings: &Settings, name: &'static str) -> Vec<String> {
    let mut words = settings.list(name);
    words.retain(|word| !word.is_empty());
    words
}

/// Etcd's form, for the log line at the start.
impl fmt::Display for TlsSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |path: &Option<PathBuf>| {
            path.as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default()
        };
        write!(
            formatter,
            "cert = {}, key = {}, client-cert={}, client-key={}, trusted-ca = {}, client-cert-auth = {}, crl-file = {}",
            text(&self.cert_file),
            text(&self.key_file),
            text(&self.client_cert_file),
            text(&self.client_key_file),
            text(&self.trusted_ca_file),
            self.client_cert_auth,
            text(&self.crl_file)
        )
    }
}
