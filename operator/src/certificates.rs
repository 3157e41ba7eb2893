//! Certificates: the operator's own authority, and what Secrets hold.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::{Client, api::PostParams};
use metastore_operator_api::conditions::reasons;
use metastore_operator_api::{TlsMode, names};
use metastore_operator_core::CertificatesObservation;
use metastore_operator_resources::{Cluster, peer_names, server_names};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::member_client::TlsFiles;

/// How long the operator's authority is valid: longer than anybody keeps a cluster without a look.
const AUTHORITY_DAYS: i64 = 3650;
/// Certificates begin earlier than now, for nodes whose clock is behind.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// A certificate that the operator makes.
struct Leaf {
    secret: String,
    dns_names: Vec<String>,
    is_server: bool,
}

fn leaves(cluster: &Cluster<'_>) -> Vec<Leaf> {
    let secrets = cluster.tls_secrets();
    let mut leaves = Vec::new();
    if cluster.spec.tls.client.mode.is_encrypted() {
        leaves.push(Leaf {
            secret: secrets.server,
            dns_names: server_names(cluster),
            is_server: true,
        });
        leaves.push(Leaf {
            secret: secrets.client,
            dns_names: Vec::new(),
            is_server: false,
        });
    }
    if cluster.spec.tls.peer.mode == TlsMode::Required {
        leaves.push(Leaf {
            secret: secrets.peer,
            dns_names: peer_names(cluster),
            is_server: true,
        });
    }
    leaves
}

/// Does the operator sign for this cluster?
pub(crate) fn is_own_authority(cluster: &Cluster<'_>) -> bool {
    let issuer = cluster.spec.tls.issuer.as_ref();
    issuer.is_some_and(|issuer| issuer.operator_ca.is_some())
}

/// What is seen of the certificates, and the Secrets that the operator must write.
pub(crate) async fn observe(
    client: &Client,
    cluster: &Cluster<'_>,
    now: Timestamp,
) -> kube::Result<(CertificatesObservation, Vec<String>)> {
    let mut seen = CertificatesObservation {
        is_ready: true,
        ..CertificatesObservation::default()
    };
    let mut stale = Vec::new();
    let api: Api<Secret> = Api::namespaced(client.clone(), cluster.namespace);
    let renew_before = cluster
        .spec
        .tls
        .renew_before
        .or(Duration::from_secs(30 * 86400));
    for leaf in leaves(cluster) {
        seen.is_enabled = true;
        let secret = api.get_opt(&leaf.secret).await?;
        let end = secret
            .as_ref()
            .and_then(|secret| end_of(secret, &leaf.dns_names));
        match end {
            Some(end) => {
                seen.next_expiry = Some(seen.next_expiry.map_or(end, |next| next.min(end)));
                if is_own_authority(cluster) && end.duration_since(now) < signed(renew_before) {
                    stale.push(leaf.secret);
                }
            }
            None if is_own_authority(cluster) => {
                seen.is_ready = false;
                stale.push(leaf.secret);
            }
            None => {
                seen.is_ready = false;
                let problem = format!(
                    "the Secret {} does not hold tls.crt, tls.key and ca.crt for {}",
                    leaf.secret,
                    leaf.dns_names.join(", ")
                );
                seen.problem = Some((reasons::ISSUING.to_owned(), problem));
            }
        }
    }
    Ok((seen, stale))
}

fn signed(duration: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
}

/// When the certificate of a Secret ends; `None` when the Secret is not usable for the names.
fn end_of(secret: &Secret, dns_names: &[String]) -> Option<Timestamp> {
    let data = secret.data.as_ref()?;
    let certificate = &data.get("tls.crt")?.0;
    data.get("tls.key").filter(|key| !key.0.is_empty())?;
    data.get("ca.crt")
        .filter(|authority| !authority.0.is_empty())?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate).ok()?;
    let parsed = pem.parse_x509().ok()?;
    let names: Vec<String> = parsed
        .subject_alternative_name()
        .ok()?
        .map(|extension| {
            extension
                .value
                .general_names
                .iter()
                .filter_map(|name| match name {
                    x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
                    _ => None,
                })
                .collect()
        })
        .unwrap_or_default();
    // A cluster that got another name or domain needs another certificate. Given ones may name members
    // in their own way, so only the wildcard is asked for nothing.
    if !dns_names.is_empty() && names.is_empty() {
        return None;
    }
    Timestamp::from_second(parsed.validity().not_after.timestamp()).ok()
}

/// Writes the authority where it is missing, and the named Secrets.
pub(crate) async fn write(
    client: &Client,
    cluster: &Cluster<'_>,
    stale: &[String],
) -> anyhow::Result<()> {
    let api: Api<Secret> = Api::namespaced(client.clone(), cluster.namespace);
    let (authority_pem, issuer) = authority(&api, cluster).await?;
    let duration = cluster
        .spec
        .tls
        .duration
        .or(Duration::from_secs(90 * 86400));
    for leaf in leaves(cluster) {
        if !stale.contains(&leaf.secret) {
            continue;
        }
        let (certificate, key) = sign(&leaf, &issuer, duration)?;
        let secret = secret_object(
            cluster.metadata(&leaf.secret),
            &[
                ("tls.crt", certificate),
                ("tls.key", key),
                ("ca.crt", authority_pem.clone()),
            ],
        );
        crate::kubernetes::apply(client, &secret).await?;
        tracing::info!(
            secret = leaf.secret,
            namespace = cluster.namespace,
            "certificate signed"
        );
    }
    Ok(())
}

/// A Secret with texts.
pub(crate) fn secret_object(metadata: Value, texts: &[(&str, String)]) -> Value {
    let data: BTreeMap<_, _> = texts
        .iter()
        .map(|(key, text)| (*key, ByteString(text.as_bytes().to_vec())))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "data": data,
    })
}

/// The cluster's authority: the one in its Secret, or a new one. Creating fails when somebody was faster, and
/// then theirs counts.
async fn authority(
    api: &Api<Secret>,
    cluster: &Cluster<'_>,
) -> anyhow::Result<(String, Issuer<'static, KeyPair>)> {
    let name = names::authority_secret(cluster.name);
    let secret = match api.get_opt(&name).await? {
        Some(secret) => secret,
        None => {
            let (certificate, key) = new_authority(cluster)?;
            let mut metadata = cluster.metadata(&name);
            // It survives the cluster, as its volumes do.
            metadata["ownerReferences"] = json!([]);
            let object = secret_object(metadata, &[("ca.crt", certificate), ("ca.key", key)]);
            let secret: Secret = serde_json::from_value(object)?;
            api.create(&PostParams::default(), &secret).await?
        }
    };
    let text = |key: &str| -> anyhow::Result<String> {
        let value = secret.data.as_ref().and_then(|data| data.get(key));
        let bytes = &value
            .ok_or_else(|| anyhow::anyhow!("the Secret {name} has no {key}"))?
            .0;
        Ok(String::from_utf8(bytes.clone())?)
    };
    let certificate = text("ca.crt")?;
    let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&text("ca.key")?)?)?;
    Ok((certificate, issuer))
}

fn new_authority(cluster: &Cluster<'_>) -> anyhow::Result<(String, String)> {
    let mut parameters = CertificateParams::new(Vec::<String>::new())?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    parameters.distinguished_name.push(
        DnType::CommonName,
        format!("{}.{} MetaStore CA", cluster.name, cluster.namespace),
    );
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - CLOCK_SKEW;
    parameters.not_after = now + time::Duration::days(AUTHORITY_DAYS);
    let key = KeyPair::generate()?;
    Ok((parameters.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn sign(
    leaf: &Leaf,
    issuer: &Issuer<'static, KeyPair>,
    duration: Duration,
) -> anyhow::Result<(String, String)> {
    let mut parameters = CertificateParams::new(leaf.dns_names.clone())?;
    parameters.use_authority_key_identifier_extension = true;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Members are clients of each other, and of themselves.
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if leaf.is_server {
        parameters
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
        parameters.subject_alt_names.push(rcgen::SanType::IpAddress(
            std::net::Ipv4Addr::LOCALHOST.into(),
        ));
    }
    // With client certificates the common name would be the user; root needs a password instead.
    parameters
        .distinguished_name
        .push(DnType::CommonName, "metastore");
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - CLOCK_SKEW;
    parameters.not_after = now + duration;
    let key = KeyPair::generate()?;
    Ok((
        parameters.signed_by(&key, issuer)?.pem(),
        key.serialize_pem(),
    ))
}

/// What the operator shows to members, from the client Secret.
pub(crate) async fn client_files(
    client: &Client,
    cluster: &Cluster<'_>,
) -> kube::Result<Option<TlsFiles>> {
    // Also while TLS is being switched off: members that have not restarted yet still speak it.
    if cluster.spec.tls.issuer.is_none() {
        return Ok(None);
    }
    let api: Api<Secret> = Api::namespaced(client.clone(), cluster.namespace);
    let Some(secret) = api.get_opt(&cluster.tls_secrets().client).await? else {
        return Ok(None);
    };
    let data = secret.data.unwrap_or_default();
    let file = |key: &str| {
        data.get(key)
            .map(|value| value.0.clone())
            .unwrap_or_default()
    };
    Ok(Some(TlsFiles {
        authority: file("ca.crt"),
        certificate: file("tls.crt"),
        key: file("tls.key"),
    }))
}
