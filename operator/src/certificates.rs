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
/// The authority is replaced so long before its end: longer than any certificate that it signs.
const AUTHORITY_RENEW_BEFORE: Duration = Duration::from_secs(365 * 86400);
/// The pause between the steps of a replacement, where the spec's text is none.
const ROTATION_PAUSE: Duration = Duration::from_secs(86400);
/// Annotation of the authority's Secret: the `rotation` of the spec that was followed last.
const ROTATION_ANNOTATION: &str = "metastore.io/authority-rotation";
/// Annotation of the authority's Secret: when the last step of a replacement was done.
const STEP_ANNOTATION: &str = "metastore.io/authority-step-at";
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
    let authority = match is_own_authority(cluster) {
        true => api.get_opt(&names::authority_secret(cluster.name)).await?,
        false => None,
    };
    let authority = authority
        .as_ref()
        .and_then(|secret| Authority::read(secret).ok());
    for leaf in leaves(cluster) {
        seen.is_enabled = true;
        let secret = api.get_opt(&leaf.secret).await?;
        let end = secret
            .as_ref()
            .and_then(|secret| end_of(secret, &leaf.dns_names));
        match end {
            Some(end) => {
                seen.next_expiry = Some(seen.next_expiry.map_or(end, |next| next.min(end)));
                // Where the authority is lost, its certificates are good until their end.
                let is_of_authority = || {
                    let both = secret.as_ref().zip(authority.as_ref());
                    both.is_none_or(|(secret, authority)| authority.has_signed(secret))
                };
                let is_old = end.duration_since(now) < signed(renew_before);
                if is_own_authority(cluster) && (is_old || !is_of_authority()) {
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
    // A step of its replacement only when all certificates are as the last one wants them.
    let is_due = authority.is_some_and(|authority| authority.next_step(cluster, now).is_some());
    if seen.is_enabled && stale.is_empty() && is_due {
        stale.push(names::authority_secret(cluster.name));
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

/// Writes the authority where it is missing or due for a step, and the named Secrets.
pub(crate) async fn write(
    client: &Client,
    cluster: &Cluster<'_>,
    stale: &[String],
    now: Timestamp,
) -> anyhow::Result<()> {
    let api: Api<Secret> = Api::namespaced(client.clone(), cluster.namespace);
    let authority_name = names::authority_secret(cluster.name);
    let (secret, authority) = authority(&api, cluster).await?;
    if stale.contains(&authority_name) {
        if let Some(step) = authority.next_step(cluster, now) {
            tracing::info!(
                secret = authority_name,
                namespace = cluster.namespace,
                ?step,
                "the authority is being replaced"
            );
            let after = authority.after(step, cluster)?;
            let change = after.change(secret.metadata.resource_version.as_deref(), cluster, now);
            crate::kubernetes::merge(&api, &authority_name, &change).await?;
        }
        return Ok(());
    }
    let issuer = authority.issuer()?;
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
                ("ca.crt", authority.trusted()),
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
) -> anyhow::Result<(Secret, Authority)> {
    let name = names::authority_secret(cluster.name);
    let secret = match api.get_opt(&name).await? {
        Some(secret) => secret,
        None => {
            let (certificate, key) = new_authority(cluster)?;
            let mut metadata = cluster.metadata(&name);
            // It survives the cluster, as its volumes do.
            metadata["ownerReferences"] = json!([]);
            metadata["annotations"] =
                json!({(ROTATION_ANNOTATION): wanted_rotation(cluster).to_string()});
            let object = secret_object(metadata, &[("ca.crt", certificate), ("ca.key", key)]);
            let secret: Secret = serde_json::from_value(object)?;
            api.create(&PostParams::default(), &secret).await?
        }
    };
    let authority = Authority::read(&secret)?;
    Ok((secret, authority))
}

fn wanted_rotation(cluster: &Cluster<'_>) -> i64 {
    let issuer = cluster.spec.tls.issuer.as_ref();
    let own = issuer.and_then(|issuer| issuer.operator_ca.as_ref());
    own.map_or(0, |own| own.rotation)
}

/// The operator's authority of one cluster, as its Secret has it. It is replaced in steps, so that at each
/// moment everybody trusts what anybody shows.
#[derive(Clone, Debug, PartialEq)]
struct Authority {
    /// Signs: certificate and key.
    current: (String, String),
    /// Will sign, and is trusted already.
    next: Option<(String, String)>,
    /// Has signed, and is still trusted.
    previous: Option<String>,
    /// The `rotation` that was followed last.
    rotation: i64,
    /// When the last step was done.
    step_at: Option<Timestamp>,
}

/// A step of the replacement of an authority.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RotationStep {
    /// A new one is trusted, too.
    Introduce,
    /// The new one signs.
    Switch,
    /// The old one is trusted no more.
    Forget,
}

impl Authority {
    fn read(secret: &Secret) -> anyhow::Result<Self> {
        let text = |key: &str| -> anyhow::Result<Option<String>> {
            let value = secret.data.as_ref().and_then(|data| data.get(key));
            Ok(value
                .map(|value| String::from_utf8(value.0.clone()))
                .transpose()?)
        };
        let needed = |key: &str| {
            text(key)?.ok_or_else(|| anyhow::anyhow!("the authority's Secret has no {key}"))
        };
        let annotations = secret.metadata.annotations.clone().unwrap_or_default();
        let annotation = |key: &str| annotations.get(key).map(String::as_str);
        Ok(Self {
            current: (needed("ca.crt")?, needed("ca.key")?),
            next: text("next.crt")?.zip(text("next.key")?),
            previous: text("previous.crt")?,
            rotation: annotation(ROTATION_ANNOTATION)
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
            step_at: annotation(STEP_ANNOTATION).and_then(|text| text.parse().ok()),
        })
    }

    /// The change of its Secret, from the version that was read: two steps at once would lose an authority.
    fn change(&self, read: Option<&str>, cluster: &Cluster<'_>, now: Timestamp) -> Value {
        let bytes = |text: &String| ByteString(text.as_bytes().to_vec());
        let next = |part: fn(&(String, String)) -> &String| self.next.as_ref().map(part).map(bytes);
        json!({
            "metadata": {
                "resourceVersion": read,
                "annotations": {
                    (ROTATION_ANNOTATION): wanted_rotation(cluster).max(self.rotation).to_string(),
                    (STEP_ANNOTATION): now.to_string(),
                },
            },
            // What is null is taken away.
            "data": {
                "ca.crt": bytes(&self.current.0),
                "ca.key": bytes(&self.current.1),
                "next.crt": next(|pair| &pair.0),
                "next.key": next(|pair| &pair.1),
                "previous.crt": self.previous.as_ref().map(bytes),
            },
        })
    }

    /// What is to be done next, if anything.
    fn next_step(&self, cluster: &Cluster<'_>, now: Timestamp) -> Option<RotationStep> {
        let own = cluster.spec.tls.issuer.as_ref()?.operator_ca.as_ref()?;
        let pause = signed(own.rotation_pause.or(ROTATION_PAUSE));
        let is_rested = self
            .step_at
            .is_none_or(|step_at| now.duration_since(step_at) >= pause);
        match (&self.next, &self.previous) {
            (Some(_), _) => is_rested.then_some(RotationStep::Switch),
            (None, Some(_)) => is_rested.then_some(RotationStep::Forget),
            (None, None) => {
                let ends_soon = certificate_end(self.current.0.as_bytes())
                    .is_some_and(|end| end.duration_since(now) < signed(AUTHORITY_RENEW_BEFORE));
                let is_asked_for = own.rotation > self.rotation;
                (ends_soon || is_asked_for).then_some(RotationStep::Introduce)
            }
        }
    }

    fn after(&self, step: RotationStep, cluster: &Cluster<'_>) -> anyhow::Result<Self> {
        let mut after = self.clone();
        match step {
            RotationStep::Introduce => after.next = Some(new_authority(cluster)?),
            RotationStep::Switch => {
                if let Some(next) = after.next.take() {
                    let old = std::mem::replace(&mut after.current, next);
                    after.previous = Some(old.0);
                }
            }
            RotationStep::Forget => after.previous = None,
        }
        Ok(after)
    }

    /// All certificates that are trusted now.
    fn trusted(&self) -> String {
        let next = self.next.as_ref().map(|(certificate, _)| certificate);
        let all = [Some(&self.current.0), next, self.previous.as_ref()];
        all.into_iter().flatten().map(String::as_str).collect()
    }

    fn issuer(&self) -> anyhow::Result<Issuer<'static, KeyPair>> {
        let (certificate, key) = &self.current;
        Ok(Issuer::from_ca_cert_pem(
            certificate,
            KeyPair::from_pem(key)?,
        )?)
    }

    /// Is the certificate of a Secret from the authority that signs now, and does the Secret hold all that is
    /// trusted?
    fn has_signed(&self, secret: &Secret) -> bool {
        let Some(data) = &secret.data else {
            return false;
        };
        let file = |key: &str| data.get(key).map(|value| value.0.as_slice());
        let signer = file("tls.crt").and_then(|certificate| key_ids(certificate)?.signer);
        let own = key_ids(self.current.0.as_bytes()).and_then(|ids| ids.own);
        own.is_some() && signer == own && file("ca.crt") == Some(self.trusted().as_bytes())
    }
}

/// The ids of the keys of a certificate, where it names them.
#[derive(Default)]
struct KeyIds {
    /// Its own key.
    own: Option<Vec<u8>>,
    /// The key that signed it.
    signer: Option<Vec<u8>>,
}

fn key_ids(certificate: &[u8]) -> Option<KeyIds> {
    use x509_parser::extensions::ParsedExtension;
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate).ok()?;
    let parsed = pem.parse_x509().ok()?;
    let mut ids = KeyIds::default();
    for extension in parsed.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => ids.own = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                ids.signer = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            _ => {}
        }
    }
    Some(ids)
}

fn certificate_end(certificate: &[u8]) -> Option<Timestamp> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate).ok()?;
    let parsed = pem.parse_x509().ok()?;
    Timestamp::from_second(parsed.validity().not_after.timestamp()).ok()
}

fn new_authority(cluster: &Cluster<'_>) -> anyhow::Result<(String, String)> {
    let mut parameters = CertificateParams::new(Vec::<String>::new())?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    let now = OffsetDateTime::now_utc();
    // With its time: the old and the new one must not have the same name while both are trusted.
    let name = format!(
        "{}.{} MetaStore CA {}",
        cluster.name,
        cluster.namespace,
        now.unix_timestamp()
    );
    parameters.distinguished_name.push(DnType::CommonName, name);
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]
mod tests {
    use metastore_operator_api::{ClusterSpec, OperatorAuthority, TlsIssuer};
    use metastore_operator_resources::Images;

    use super::*;

    fn with(rotation: i64, look: impl FnOnce(&Cluster<'_>)) {
        let mut spec = ClusterSpec::default();
        spec.tls.issuer = Some(TlsIssuer {
            operator_ca: Some(OperatorAuthority {
                rotation,
                rotation_pause: "1h".into(),
            }),
            ..TlsIssuer::default()
        });
        let images = Images {
            server_repository: "a".into(),
            server_version: "0.1.0".into(),
            operator_image: "b".into(),
        };
        look(&Cluster {
            name: "c",
            namespace: "n",
            uid: "u",
            spec: &spec,
            images: &images,
        });
    }

    fn leaf_secret(authority: &Authority) -> Secret {
        let leaf = Leaf {
            secret: "leaf".into(),
            dns_names: vec!["c.n.svc".into()],
            is_server: true,
        };
        let issuer = authority.issuer().unwrap();
        let (certificate, key) = sign(&leaf, &issuer, Duration::from_secs(3600)).unwrap();
        let texts = [
            ("tls.crt", certificate),
            ("tls.key", key),
            ("ca.crt", authority.trusted()),
        ];
        serde_json::from_value(secret_object(json!({"name": "leaf"}), &texts)).unwrap()
    }

    #[test]
    fn an_authority_is_replaced_in_three_steps_with_pauses() {
        let later = |hours: i64| Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        with(1, |cluster| {
            let first = Authority {
                current: new_authority(cluster).unwrap(),
                next: None,
                previous: None,
                rotation: 0,
                step_at: None,
            };
            // What a Secret keeps is what is read again.
            let step = |before: &Authority, step: RotationStep, hours: i64| {
                let after = before.after(step, cluster).unwrap();
                let mut secret = after.change(None, cluster, later(hours));
                let data = secret["data"].as_object_mut().unwrap();
                data.retain(|_, value| !value.is_null());
                secret["metadata"]["resourceVersion"].take();
                Authority::read(&serde_json::from_value(secret).unwrap()).unwrap()
            };
            assert_eq!(
                first.next_step(cluster, later(0)),
                Some(RotationStep::Introduce)
            );
            let old_leaf = leaf_secret(&first);
            assert!(first.has_signed(&old_leaf));

            let both = step(&first, RotationStep::Introduce, 0);
            assert_eq!(both.next_step(cluster, later(0)), None);
            assert_eq!(
                both.next_step(cluster, later(2)),
                Some(RotationStep::Switch)
            );
            // The same signer, and one more that is trusted: the Secret must be written anew.
            assert_eq!(both.current, first.current);
            assert!(!both.has_signed(&old_leaf));
            assert_eq!(both.trusted().matches("BEGIN CERTIFICATE").count(), 2);

            let switched = step(&both, RotationStep::Switch, 2);
            assert_eq!(switched.next_step(cluster, later(2)), None);
            assert_eq!(
                switched.next_step(cluster, later(4)),
                Some(RotationStep::Forget)
            );
            assert_ne!(switched.current, first.current);
            assert!(
                !switched.has_signed(&leaf_secret(&both)),
                "of the old authority"
            );
            let trusted = both.trusted();
            assert!(
                trusted.contains(&switched.current.0),
                "it was trusted before it signed"
            );
            assert!(switched.trusted().contains(&first.current.0));

            let done = step(&switched, RotationStep::Forget, 4);
            assert_eq!(done.trusted(), switched.current.0);
            assert_eq!(
                done.next_step(cluster, later(100)),
                None,
                "it was done once"
            );
            // And again by itself, before its end.
            let years = 9 * 366 * 24;
            assert_eq!(
                done.next_step(cluster, later(years)),
                Some(RotationStep::Introduce)
            );
        });
    }
}
