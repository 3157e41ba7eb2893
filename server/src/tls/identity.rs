//! The certificate that this member shows, with its key.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureScheme};

use super::files::Watched;

/// A certificate and its key, read again when their files change.
pub(super) struct Identity {
    watched: Watched<CertifiedKey>,
}

impl Identity {
    /// Reads both files.
    ///
    /// # Errors
    /// Go's texts for files that cannot be read or do not fit together.
    pub(super) fn open(cert_file: &Path, key_file: &Path) -> Result<Self, String> {
        let paths: Vec<PathBuf> = vec![cert_file.to_owned(), key_file.to_owned()];
        Ok(Self {
            watched: Watched::open(paths, |contents| parse(&contents[0], &contents[1]))?,
        })
    }
}

fn parse(certificates: &[u8], key: &[u8]) -> Result<CertifiedKey, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificates)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("tls: failed to parse certificate: {error}"))?;
    if chain.is_empty() {
        return Err("tls: failed to find any PEM data in certificate input".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => {
            "tls: failed to find any PEM data in key input".to_owned()
        }
        other => format!("tls: failed to parse private key: {other}"),
    })?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| {
        format!(
            "tls: failed to parse private key: {error} (RSA, ECDSA P-256, ECDSA P-384 and Ed25519 \
             keys are supported)"
        )
    })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err("tls: private key does not match public key".to_owned())
        }
        Err(error) => Err(format!("tls: failed to parse certificate: {error}")),
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Identity")
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.watched.get())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(self.watched.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
