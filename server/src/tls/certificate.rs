//! What a certificate says.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What the server wants to know of a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Common name of the subject; empty when there is none.
    pub(super) common_name: String,
    /// IP addresses among the alternative names.
    pub(super) ip_addresses: Vec<IpAddr>,
    /// Host names among the alternative names.
    pub(super) dns_names: Vec<String>,
    /// Serial number, big endian without leading zeros.
    pub(super) serial: Vec<u8>,
    not_before: i64,
    not_after: i64,
    /// Extended key usages: servers, clients; nothing when the certificate does not restrict them.
    usages: Option<(bool, bool)>,
}

/// What somebody wants to do with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    Server,
    Client,
}

impl Facts {
    /// Reads a certificate.
    pub(super) fn read(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| format!("x509: {error}"))?;
        let mut facts = Self {
            // Go keeps the last one as well.
            common_name: certificate
                .subject()
                .iter_common_name()
                .last()
                .and_then(|name| name.as_str().ok())
                .unwrap_or_default()
                .to_owned(),
            serial: significant(certificate.raw_serial()).to_vec(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            usages: certificate
                .extended_key_usage()
                .ok()
                .flatten()
                .map(|extension| {
                    let usage = extension.value;
                    (
                        usage.any || usage.server_auth,
                        usage.any || usage.client_auth,
                    )
                }),
            ..Self::default()
        };
        if let Ok(Some(extension)) = certificate.subject_alternative_name() {
            for name in &extension.value.general_names {
                match name {
                    GeneralName::DNSName(name) => facts.dns_names.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => facts.ip_addresses.extend(address(bytes)),
                    _ => {}
                }
            }
        }
        Ok(facts)
    }

    /// Whether the certificate is valid now.
    pub(super) fn is_current(&self) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| i64::try_from(since.as_secs()).ok())
            .unwrap_or(i64::MAX);
        (self.not_before..=self.not_after).contains(&now)
    }

    /// Whether the certificate may be used so.
    pub(super) fn allows(&self, usage: Usage) -> bool {
        self.usages.is_none_or(|(server, client)| match usage {
            Usage::Server => server,
            Usage::Client => client,
        })
    }
}

/// A number without its leading zeros.
pub(super) fn significant(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(bytes));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}
