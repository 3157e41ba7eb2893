//! What all members share: Services, budget, policies, certificates, monitors.

use metastore_operator_api::{MonitorMode, ServiceType, names};
use serde_json::{Value, json};

use crate::context::Cluster;

/// Which optional APIs the Kubernetes cluster has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Capabilities {
    /// `cert-manager.io/v1`.
    pub cert_manager: bool,
    /// `monitoring.coreos.com/v1`.
    pub prometheus: bool,
}

/// All shared objects. `voters` are those that the cluster has now; `is_formed` says that it has an id.
pub fn shared_objects(
    cluster: &Cluster<'_>,
    voters: usize,
    is_formed: bool,
    capabilities: Capabilities,
) -> Vec<Value> {
    let spec = cluster.spec;
    let mut objects = vec![service_account(cluster), peer_service(cluster)];
    if is_formed {
        // Nobody is led to a member before it is certain which cluster it belongs to.
        objects.push(client_service(cluster));
        objects.push(read_service(cluster));
    }
    let voters = voters.max(usize::try_from(spec.replicas).unwrap_or(1));
    if spec.pdb.enabled && voters > 1 {
        objects.push(disruption_budget(cluster, voters));
    }
    if spec.network_policy.enabled {
        objects.push(network_policy(cluster));
    }
    if capabilities.cert_manager {
        objects.extend(certificates(cluster));
    }
    if capabilities.prometheus && spec.monitoring.pod_monitor == MonitorMode::Auto {
        objects.push(pod_monitor(cluster));
    }
    objects
}

fn service_account(cluster: &Cluster<'_>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": cluster.metadata(cluster.name),
        "automountServiceAccountToken": false,
    })
}

fn port(name: &str, number: u16) -> Value {
    json!({"name": name, "port": number, "targetPort": number, "protocol": "TCP"})
}

fn peer_service(cluster: &Cluster<'_>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": cluster.metadata(&names::peer_service(cluster.name)),
        "spec": {
            "clusterIP": "None",
            // Members must find each other before they can become ready.
            "publishNotReadyAddresses": true,
            "selector": cluster.selector(),
            "ports": [
                port("client", names::CLIENT_PORT),
                port("peer", names::PEER_PORT),
                port("metrics", names::METRICS_PORT),
            ],
        },
    })
}

fn client_service(cluster: &Cluster<'_>) -> Value {
    let service = &cluster.spec.service;
    let service_type = match service.service_type {
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    let mut metadata = cluster.metadata(cluster.name);
    if !service.annotations.is_empty() {
        metadata["annotations"] = json!(service.annotations);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": service_type,
            "selector": cluster.selector(),
            "ports": [port("client", names::CLIENT_PORT)],
        },
    })
}

fn read_service(cluster: &Cluster<'_>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": cluster.metadata(&names::read_service(cluster.name)),
        "spec": {
            "type": "ClusterIP",
            "selector": cluster.selector(),
            "ports": [port("client", names::CLIENT_PORT)],
        },
    })
}

/// The budget keeps a majority. The policy for Pods that are not ready stays Kubernetes' default: a sick one
/// may be drained while the others are a majority, and nothing may be drained when they are not.
fn disruption_budget(cluster: &Cluster<'_>, voters: usize) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": cluster.metadata(cluster.name),
        "spec": {
            "minAvailable": voters / 2 + 1,
            "selector": {"matchLabels": cluster.selector()},
        },
    })
}

fn network_policy(cluster: &Cluster<'_>) -> Value {
    let ports = |numbers: &[u16]| -> Vec<Value> {
        numbers
            .iter()
            .map(|number| json!({"port": number, "protocol": "TCP"}))
            .collect()
    };
    let mut clients = json!({"ports": ports(&[names::CLIENT_PORT, names::METRICS_PORT])});
    let labels = &cluster.spec.network_policy.client_pod_labels;
    if !labels.is_empty() {
        clients["from"] = json!([
            {"podSelector": {"matchLabels": labels}},
            // Backups and the operator.
            {"podSelector": {"matchLabels": {(names::MANAGED_BY_LABEL): names::MANAGED_BY}}},
            {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "metastore-operator"}}},
        ]);
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": cluster.metadata(cluster.name),
        "spec": {
            "podSelector": {"matchLabels": cluster.selector()},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": cluster.selector()}}],
                    "ports": ports(&[names::CLIENT_PORT, names::PEER_PORT, names::METRICS_PORT]),
                },
                clients,
            ],
        },
    })
}

/// Names for which the certificate towards clients is valid.
pub fn server_names(cluster: &Cluster<'_>) -> Vec<String> {
    let mut all = vec!["localhost".to_owned()];
    for service in [cluster.name.to_owned(), names::read_service(cluster.name)] {
        all.push(service.clone());
        all.extend(qualified(cluster, &service));
    }
    all.extend(peer_names(cluster));
    all
}

/// Names for which the certificate between members is valid.
pub fn peer_names(cluster: &Cluster<'_>) -> Vec<String> {
    qualified(cluster, &format!("*.{}", names::peer_service(cluster.name)))
}

fn qualified(cluster: &Cluster<'_>, name: &str) -> Vec<String> {
    let domain = match cluster.spec.cluster_domain.as_str() {
        "" => "cluster.local",
        domain => domain,
    };
    let namespace = cluster.namespace;
    vec![
        format!("{name}.{namespace}"),
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}.svc.{domain}"),
    ]
}

/// Certificates of cert-manager, where the spec asks for them.
fn certificates(cluster: &Cluster<'_>) -> Vec<Value> {
    let tls = &cluster.spec.tls;
    let Some(issuer) = tls
        .issuer
        .as_ref()
        .and_then(|issuer| issuer.cert_manager.as_ref())
    else {
        return Vec::new();
    };
    let secrets = cluster.tls_secrets();
    let make = |secret: &str, dns_names: Vec<String>, usages: &[&str]| {
        let mut spec = json!({
            "secretName": secret,
            "commonName": secret,
            "duration": tls.duration.0,
            "renewBefore": tls.renew_before.0,
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "usages": usages,
            "issuerRef": {"name": issuer.issuer_ref.name, "kind": issuer.issuer_ref.kind},
        });
        if !dns_names.is_empty() {
            spec["dnsNames"] = json!(dns_names);
        }
        json!({
            "apiVersion": "cert-manager.io/v1",
            "kind": "Certificate",
            "metadata": cluster.metadata(secret),
            "spec": spec,
        })
    };
    let both = ["digital signature", "server auth", "client auth"];
    vec![
        make(&secrets.server, server_names(cluster), &both),
        make(&secrets.peer, peer_names(cluster), &both),
        make(
            &secrets.client,
            Vec::new(),
            &["digital signature", "client auth"],
        ),
    ]
}

fn pod_monitor(cluster: &Cluster<'_>) -> Value {
    json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": cluster.metadata(cluster.name),
        "spec": {
            "selector": {"matchLabels": cluster.selector()},
            "podMetricsEndpoints": [{"port": "metrics", "path": "/metrics", "interval": "30s"}],
        },
    })
}
