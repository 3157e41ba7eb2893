//! What a client connection's certificate says about its client.

use std::sync::Arc;

/// The verified certificate of a client, in the extensions of every request of its connection.
///
/// Only there when the connection is TLS and the client presented a certificate that was verified
/// against `--trusted-ca-file` (`--client-cert-auth`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Common name of the certificate's subject; `None` when it has none. With authentication on, a
    /// request without a token runs as the user of this name.
    pub common_name: Option<Arc<str>>,
}
