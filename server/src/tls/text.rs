//! Go's words for what goes wrong with files and handshakes: people and scripts look for them.

use std::io;
use std::path::Path;

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use super::trust;

/// Go's text for a file that cannot be opened.
#[must_use]
pub fn open_error(path: &Path, error: &io::Error) -> String {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        // A directory can be opened, and fails later.
        io::ErrorKind::IsADirectory => return format!("read {}: is a directory", path.display()),
        _ => error.to_string(),
    };
    format!("open {}: {reason}", path.display())
}

/// What a failed handshake is called, and the alert that ends a connection after it.
#[must_use]
pub fn handshake_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => return "EOF".to_owned(),
        io::ErrorKind::ConnectionReset => return "read: connection reset by peer".to_owned(),
        io::ErrorKind::BrokenPipe => return "write: broken pipe".to_owned(),
        _ => {}
    }
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
    {
        Some(error) => tls_error(error),
        None => error.to_string(),
    }
}

fn tls_error(error: &Error) -> String {
    match error {
        Error::NoCertificatesPresented => "tls: client didn't provide a certificate".to_owned(),
        Error::InvalidMessage(_) => {
            "tls: first record does not look like a TLS handshake".to_owned()
        }
        Error::AlertReceived(alert) => format!("remote error: tls: {}", alert_text(*alert)),
        Error::NoApplicationProtocol => {
            "tls: client requested unsupported application protocols".to_owned()
        }
        Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon) => {
            "tls: no cipher suite supported by both client and server".to_owned()
        }
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => "tls: client offered only unsupported versions".to_owned(),
        // Not among the names that are allowed: see `Trust`.
        Error::InvalidCertificate(CertificateError::NotValidForName) => {
            "client certificate authentication failed".to_owned()
        }
        Error::InvalidCertificate(error) => {
            format!(
                "tls: failed to verify certificate: x509: {}",
                certificate_error(error)
            )
        }
        other => format!("tls: {other}"),
    }
}

fn certificate_error(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "certificate signed by unknown authority".to_owned(),
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            format!("certificate has expired or is not yet valid: {error}")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "certificate specifies an incompatible key usage".to_owned()
        }
        // See `Trust`.
        error if *error == trust::wrong_usage() => {
            "certificate specifies an incompatible key usage".to_owned()
        }
        other => other.to_string(),
    }
}

/// Go's names of the alerts.
fn alert_text(alert: AlertDescription) -> String {
    use AlertDescription as Alert;
    match alert {
        Alert::CloseNotify => "close notify",
        Alert::UnexpectedMessage => "unexpected message",
        Alert::BadRecordMac => "bad record MAC",
        Alert::HandshakeFailure => "handshake failure",
        Alert::BadCertificate => "bad certificate",
        Alert::UnsupportedCertificate => "unsupported certificate",
        Alert::CertificateRevoked => "revoked certificate",
        Alert::CertificateExpired => "expired certificate",
        Alert::CertificateUnknown => "unknown certificate",
        Alert::IllegalParameter => "illegal parameter",
        Alert::UnknownCA => "unknown certificate authority",
        Alert::AccessDenied => "access denied",
        Alert::DecodeError => "error decoding message",
        Alert::DecryptError => "error decrypting message",
        Alert::ProtocolVersion => "protocol version not supported",
        Alert::InsufficientSecurity => "insufficient security level",
        Alert::InternalError => "internal error",
        Alert::UserCanceled => "user canceled",
        Alert::UnrecognisedName => "unrecognized name",
        Alert::CertificateRequired => "certificate required",
        Alert::NoApplicationProtocol => "no application protocol",
        other => return format!("{other:?}"),
    }
    .to_owned()
}
