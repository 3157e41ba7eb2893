//! Certificates: reads them, checks them, and renews them while connections go on.
//!
//! Owns everything about TLS that is the same for clients and members. Knows no URL and no service;
//! who listens or dials gives a [`TlsSettings`] and gets a [`ServerTls`] or a [`ClientTls`].
//!
//! Every handshake looks whether a file has changed (one `stat` each) and reads it again if so, so a
//! certificate, a key, an authority and a list of revoked certificates can be replaced at any time.
//! A file that cannot be used any more leaves what was read before in place, with a warning: it is
//! most likely in the middle of being replaced.
//!
//! Where etcd's texts come from Go's TLS library, [`text`] says the same in the same words.

mod addresses;
mod certificate;
mod cipher_suites;
mod client;
mod files;
mod identity;
mod revocation;
mod self_signed;
mod server;
mod text;
mod trust;

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

pub use cipher_suites::check_names as check_cipher_suite_names;
pub use client::ClientTls;
pub use self_signed::{generate, hosts_of};
pub use server::{Accepted, Endpoint, Remote, ServerTls};
pub use text::{handshake_error, open_error};

/// The common name in a certificate; empty when it has none.
///
/// # Errors
/// A file that cannot be read, or holds no certificate.
pub fn common_name(cert_file: &Path) -> Result<String, TlsError> {
    let contents = std::fs::read(cert_file).map_err(|error| open_error(cert_file, &error))?;
    let certificate = CertificateDer::from_pem_slice(&contents)
        .map_err(|error| format!("tls: failed to parse certificate: {error}"))?;
    Ok(certificate::Facts::read(&certificate)?.common_name)
}

/// Why TLS cannot be set up: a text for the person who started the program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(pub(crate) String);

impl From<String> for TlsError {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self(error.to_string())
    }
}
