//! Whether a certificate is for the address from which its owner connects: what etcd demands of
//! members and of those who read metrics.

use std::net::IpAddr;

use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::RData;
use rustls::pki_types::CertificateDer;

use super::certificate::Facts;
use super::trust::is_valid_for;

/// Checks the alternative names of a certificate against an address. A certificate without any
/// fits everywhere.
///
/// # Errors
/// Go's text.
pub(super) async fn check(certificate: &CertificateDer<'_>, address: IpAddr) -> Result<(), String> {
    let facts = Facts::read(certificate)?;
    if facts.ip_addresses.is_empty() && facts.dns_names.is_empty() {
        return Ok(());
    }
    if !facts.ip_addresses.is_empty() {
        if is_valid_for(certificate, &address.to_string()) {
            return Ok(());
        }
        if facts.dns_names.is_empty() {
            let valid: Vec<_> = facts.ip_addresses.iter().map(IpAddr::to_string).collect();
            return Err(format!(
                "x509: certificate is valid for {}, not {address}",
                valid.join(", ")
            ));
        }
    }
    let (wildcards, names): (Vec<&String>, Vec<&String>) = facts
        .dns_names
        .iter()
        .partition(|name| name.starts_with("*."));
    let problem = match names_of(address).await {
        Ok(found) => {
            let fits = found.iter().any(|name| {
                names.contains(&name)
                    || wildcards
                        .iter()
                        .any(|wildcard| name.ends_with(&wildcard[1..]))
            });
            if fits {
                return Ok(());
            }
            String::new()
        }
        Err(error) => error,
    };
    for name in names {
        if let Ok(mut addresses) = tokio::net::lookup_host((name.as_str(), 0)).await
            && addresses.any(|found| found.ip().to_canonical() == address)
        {
            return Ok(());
        }
    }
    let quoted: Vec<_> = facts
        .dns_names
        .iter()
        .map(|name| format!("{name:?}"))
        .collect();
    let problem = if problem.is_empty() {
        String::new()
    } else {
        format!(" ({problem})")
    };
    Err(format!(
        "tls: \"{address}\" does not match any of DNSNames [{}]{problem}",
        quoted.join(" ")
    ))
}

/// The names of an address: a reverse lookup.
async fn names_of(address: IpAddr) -> Result<Vec<String>, String> {
    let resolver = TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(|error| error.to_string())?;
    let lookup = resolver
        .reverse_lookup(address)
        .await
        .map_err(|error| format!("lookup {address}: {error}"))?;
    Ok(lookup
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::PTR(name) => Some(name.0.to_utf8().trim_end_matches('.').to_owned()),
            _ => None,
        })
        .collect())
}
