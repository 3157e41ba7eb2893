//! Revoked certificates.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::certificate::{Facts, significant};
use super::files::Watched;

/// Serial numbers of revoked certificates, from a file in DER (as etcd wants it) or PEM.
pub(super) struct Revocations {
    path: PathBuf,
    /// Nothing until the file could be read once.
    watched: ArcSwapOption<Watched<HashSet<Vec<u8>>>>,
}

impl Revocations {
    /// A list that need not exist yet, as in etcd: without it nobody who shows a certificate gets in.
    pub(super) fn new(path: &Path) -> Self {
        let revocations = Self {
            path: path.to_owned(),
            watched: ArcSwapOption::empty(),
        };
        if let Err(error) = revocations.serials() {
            tracing::warn!(
                error,
                "the list of revoked certificates cannot be read; connections with a certificate \
                 are refused until it can"
            );
        }
        revocations
    }

    fn serials(&self) -> Result<Arc<HashSet<Vec<u8>>>, String> {
        if let Some(watched) = &*self.watched.load() {
            return Ok(watched.get());
        }
        let watched = Watched::open(vec![self.path.clone()], |contents| parse(&contents[0]))?;
        let serials = watched.get();
        self.watched.store(Some(Arc::new(watched)));
        Ok(serials)
    }

    /// Refuses a chain with a revoked certificate in it.
    ///
    /// # Errors
    /// Etcd's text.
    pub(super) fn check(&self, chain: &[CertificateDer<'_>]) -> Result<(), String> {
        let serials = self.serials()?;
        for certificate in chain {
            let serial = Facts::read(certificate)?.serial;
            if serials.contains(&serial) {
                let hexadecimal: String = serial.iter().map(|byte| format!("{byte:02x}")).collect();
                return Err(format!(
                    "transport: certificate serial {hexadecimal} revoked"
                ));
            }
        }
        Ok(())
    }
}

fn parse(contents: &[u8]) -> Result<HashSet<Vec<u8>>, String> {
    let lists = if contents.starts_with(b"-----BEGIN") {
        CertificateRevocationListDer::pem_slice_iter(contents)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("x509: malformed crl: {error}"))?
    } else {
        vec![CertificateRevocationListDer::from(contents.to_vec())]
    };
    if lists.is_empty() {
        return Err("x509: malformed crl: no list in the file".to_owned());
    }
    let mut serials = HashSet::new();
    for list in &lists {
        let (_, list) = CertificateRevocationList::from_der(list)
            .map_err(|error| format!("x509: malformed crl: {error}"))?;
        serials.extend(
            list.iter_revoked_certificates()
                .map(|revoked| significant(revoked.raw_serial()).to_vec()),
        );
    }
    Ok(serials)
}
