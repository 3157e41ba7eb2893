//! Certificate authorities and what they sign, as files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate to be signed.
#[derive(Clone, Debug)]
pub struct Request {
    common_name: String,
    hosts: Vec<String>,
    serial: u64,
    expired: bool,
    usages: Vec<ExtendedKeyUsagePurpose>,
}

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A certificate for servers and clients with this common name, valid for 127.0.0.1 and localhost.
pub fn request(common_name: &str) -> Request {
    Request {
        common_name: common_name.to_owned(),
        hosts: vec!["127.0.0.1".into(), "localhost".into()],
        serial: rand::random::<u32>().into(),
        expired: false,
        usages: vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
    }
}

impl Request {
    /// Other host names and addresses; none for a certificate without.
    pub fn hosts(mut self, hosts: &[&str]) -> Self {
        self.hosts = hosts.iter().map(ToString::to_string).collect();
        self
    }

    /// Its validity ended yesterday.
    pub fn expired(mut self) -> Self {
        self.expired = true;
        self
    }

    /// This serial number.
    pub fn serial(mut self, serial: u64) -> Self {
        self.serial = serial;
        self
    }

    /// For servers, not for clients.
    pub fn servers_only(mut self) -> Self {
        self.usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self
    }
}

fn named(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

impl Authority {
    /// Makes an authority of this name.
    pub fn new(name: &str) -> Self {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Its certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes its certificate.
    pub fn write(&self, path: &Path) -> PathBuf {
        replace(path, self.pem.as_bytes());
        path.to_owned()
    }

    /// Signs a certificate and writes it to `<folder>/<name>.pem` and `<name>-key.pem`, replacing
    /// files that are there the way deployment tools do: atomically, one after the other.
    pub fn issue(&self, folder: &Path, name: &str, request: Request) -> Pair {
        let mut params = named(&request.common_name);
        params.serial_number = Some(SerialNumber::from(request.serial));
        params.extended_key_usages = request.usages;
        params.subject_alt_names = request
            .hosts
            .iter()
            .map(|host| match host.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into().expect("a name")),
            })
            .collect();
        let now = SystemTime::now();
        params.not_before = (now - 10 * DAY).into();
        params.not_after = if request.expired {
            (now - DAY).into()
        } else {
            (now + 10 * DAY).into()
        };
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let pair = Pair {
            cert: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}-key.pem")),
        };
        replace(&pair.cert, certificate.pem().as_bytes());
        replace(&pair.key, key.serialize_pem().as_bytes());
        pair
    }

    /// A list of revoked certificates, in DER.
    pub fn revocations(&self, serials: &[u64]) -> Vec<u8> {
        let now = SystemTime::now();
        let params = CertificateRevocationListParams {
            this_update: (now - DAY).into(),
            next_update: (now + DAY).into(),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(*serial),
                    revocation_time: (now - DAY).into(),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params
            .signed_by(&self.issuer)
            .expect("a list")
            .der()
            .to_vec()
    }
}

/// Replaces a file in one step.
pub fn replace(path: &Path, contents: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, contents).expect("own folder is writable");
    std::fs::rename(&new, path).expect("own folder is writable");
}

/// What a TLS client needs: whom it trusts (PEM), and perhaps a certificate of its own.
pub fn client_config(trusted: &[&str], own: Option<&Pair>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for pem in trusted {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
        roots.add(certificate).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the versions of the library")
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(pair) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&pair.cert).expect("a certificate")],
                PrivateKeyDer::from_pem_file(&pair.key).expect("a key"),
            )
            .expect("a certificate with its key"),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}
