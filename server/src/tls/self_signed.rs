//! Generated certificates: `--auto-tls` and `--peer-auto-tls`.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::TlsError;
use super::certificate::Facts;
use crate::config::ListenUrl;

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A generated certificate on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The certificate.
    pub cert_file: PathBuf,
    /// Its key, readable by the owner only.
    pub key_file: PathBuf,
}

/// The host names and addresses of URLs; a socket's path has none.
#[must_use]
pub fn hosts_of<'a>(urls: impl IntoIterator<Item = &'a ListenUrl>) -> Vec<String> {
    let mut hosts: Vec<String> = urls
        .into_iter()
        .filter(|url| !url.is_unix() && !url.host.is_empty())
        .map(|url| url.host.clone())
        .collect();
    hosts.dedup();
    hosts
}

/// Finds the certificate in a folder, or makes one for these hosts that lives for `years`.
///
/// One that has expired is replaced: nobody who checks it could connect any more.
///
/// # Errors
/// When the folder cannot be written to, and etcd's text for 0 years.
pub fn generate(folder: &Path, hosts: &[String], years: u64) -> Result<Generated, TlsError> {
    let generated = Generated {
        cert_file: folder.join("cert.pem"),
        key_file: folder.join("key.pem"),
    };
    if years == 0 {
        return Err(TlsError(
            "selfSignedCertValidity is invalid,it should be greater than 0".to_owned(),
        ));
    }
    if generated.key_file.exists() && is_current(&generated.cert_file) {
        return Ok(generated);
    }
    let failed = |error: &dyn std::fmt::Display| {
        TlsError(format!(
            "cannot generate a certificate in {}: {error}",
            folder.display()
        ))
    };
    let years = u32::try_from(years).map_err(|error| failed(&error))?;
    let not_after = SystemTime::now()
        .checked_add(YEAR.saturating_mul(years))
        .ok_or_else(|| failed(&"--self-signed-cert-validity is too large"))?;
    tracing::warn!(
        hosts = hosts.join(","),
        years,
        "automatically generate certificates"
    );
    let (certificate, key) = make(hosts, not_after).map_err(|error| failed(&error))?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| failed(&error))?;
    write(&generated.cert_file, &certificate, 0o644).map_err(|error| failed(&error))?;
    tracing::info!(path = %generated.cert_file.display(), "created cert file");
    write(&generated.key_file, &key, 0o600).map_err(|error| failed(&error))?;
    tracing::info!(path = %generated.key_file.display(), "created key file");
    Ok(generated)
}

fn is_current(cert_file: &Path) -> bool {
    CertificateDer::from_pem_file(cert_file)
        .ok()
        .and_then(|certificate| Facts::read(&certificate).ok())
        .is_some_and(|facts| facts.is_current())
}

/// A certificate and its key, both PEM.
fn make(hosts: &[String], not_after: SystemTime) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "etcd");
    params.not_before = SystemTime::now().into();
    params.not_after = not_after.into();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for host in hosts {
        params.subject_alt_names.push(match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.as_str().try_into()?),
        });
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384)?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("fixtures").join("client");
        let hosts = ["127.0.0.1".to_owned(), "a.example".to_owned()];
        let first = generate(&folder, &hosts, 1).expect("generated");
        let text = std::fs::read(&first.cert_file).expect("readable");
        let certificate = CertificateDer::from_pem_slice(&text).expect("a certificate");
        let facts = Facts::read(&certificate).expect("a certificate");
        assert_eq!(facts.dns_names, ["a.example"]);
        assert_eq!(facts.ip_addresses.len(), 1);
        assert_eq!(generate(&folder, &hosts, 1), Ok(first.clone()));
        assert_eq!(std::fs::read(&first.cert_file).expect("readable"), text);
    }

    #[test]
    fn no_life_is_refused_in_the_words_of_etcd() {
        let error = generate(Path::new("/nowhere"), &[], 0).expect_err("no life");
        assert_eq!(
            error.to_string(),
            "selfSignedCertValidity is invalid,it should be greater than 0"
        );
    }
}
