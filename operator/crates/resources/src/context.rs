//! What every builder needs to know.

use metastore_operator_api::{ClusterSpec, TlsMode, names};
use serde_json::{Value, json};

/// A cluster, and what the operator was started with.
#[derive(Clone, Debug)]
pub struct Cluster<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// The uid of its object, for owner references.
    pub uid: &'a str,
    /// What is wanted.
    pub spec: &'a ClusterSpec,
    /// Images.
    pub images: &'a Images,
}

/// Where images come from unless a cluster says otherwise.
#[derive(Clone, Debug)]
pub struct Images {
    /// Repository of the server's image.
    pub server_repository: String,
    /// Its tag where a cluster names no version.
    pub server_version: String,
    /// The operator's own image, for Jobs and restores.
    pub operator_image: String,
}

impl Cluster<'_> {
    /// The image of the server.
    pub fn server_image(&self) -> String {
        let image = &self.spec.image;
        let repository = match image.repository.as_str() {
            "" => &self.images.server_repository,
            repository => repository,
        };
        if image.digest.is_empty() {
            format!("{repository}:{}", self.server_version())
        } else {
            format!("{repository}@{}", image.digest)
        }
    }

    /// The wanted version of the server.
    pub fn server_version(&self) -> &str {
        self.spec
            .version
            .as_deref()
            .unwrap_or(&self.images.server_version)
    }

    /// `http` or `https`: what the operator and its Jobs speak to members.
    pub fn client_scheme(&self) -> &'static str {
        self.spec.tls.client.mode.schemes()[0]
    }

    /// `http` or `https`, between members.
    pub fn peer_scheme(&self) -> &'static str {
        match self.spec.tls.peer.mode {
            TlsMode::Disabled => "http",
            TlsMode::Required => "https",
        }
    }

    /// Host name of a member.
    pub fn host(&self, member: &str) -> String {
        names::member_host(member, self.name, self.namespace, &self.spec.cluster_domain)
    }

    /// Where the other members reach a member.
    pub fn peer_url(&self, member: &str) -> String {
        format!(
            "{}://{}:{}",
            self.peer_scheme(),
            self.host(member),
            names::PEER_PORT
        )
    }

    /// Where the operator's Jobs reach a member.
    pub fn client_url(&self, member: &str) -> String {
        client_url(self.client_scheme(), &self.host(member))
    }

    /// Where clients reach a member: each way that it serves.
    pub fn client_urls(&self, member: &str) -> Vec<String> {
        let host = self.host(member);
        let schemes = self.spec.tls.client.mode.schemes().iter();
        schemes.map(|scheme| client_url(scheme, &host)).collect()
    }

    /// Bytes above which the server refuses writes: what the spec says, or nine tenths of the volume.
    pub fn quota_bytes(&self) -> u64 {
        let quota = self
            .spec
            .config
            .quota
            .as_ref()
            .and_then(|quota| quota.units());
        quota.unwrap_or_else(|| self.spec.storage.size.units().unwrap_or(0) / 10 * 9)
    }

    /// Names of the Secrets with certificates.
    pub fn tls_secrets(&self) -> TlsSecrets {
        let given = self
            .spec
            .tls
            .issuer
            .as_ref()
            .and_then(|issuer| issuer.secrets.as_ref());
        match given {
            Some(given) => TlsSecrets {
                server: given.server.clone(),
                peer: given.peer.clone(),
                client: given.client.clone(),
            },
            None => TlsSecrets {
                server: names::server_secret(self.name),
                peer: names::peer_secret(self.name),
                client: names::client_secret(self.name),
            },
        }
    }

    /// Name of the Secret with the password of `root`.
    pub fn root_secret(&self) -> String {
        match &self.spec.auth.root_secret_ref {
            Some(reference) => reference.name.clone(),
            None => names::root_secret(self.name),
        }
    }

    /// Labels of everything that belongs to the cluster.
    pub fn labels(&self) -> Value {
        json!({
            "app.kubernetes.io/name": "metastore",
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/component": "server",
            "app.kubernetes.io/part-of": "metastore",
            (names::MANAGED_BY_LABEL): names::MANAGED_BY,
            (names::CLUSTER_LABEL): self.name,
        })
    }

    /// Labels of what belongs to one member.
    pub fn member_labels(&self, member: &str) -> Value {
        let mut labels = self.labels();
        labels[names::MEMBER_LABEL] = json!(member);
        labels
    }

    /// What selects the Pods of all members.
    pub fn selector(&self) -> Value {
        json!({
            (names::MANAGED_BY_LABEL): names::MANAGED_BY,
            (names::CLUSTER_LABEL): self.name,
            "app.kubernetes.io/component": "server",
        })
    }

    /// The reference that lets Kubernetes delete a child together with the cluster.
    pub fn owner(&self) -> Value {
        json!([{
            "apiVersion": "metastore.io/v1alpha1",
            "kind": "MetaStoreCluster",
            "name": self.name,
            "uid": self.uid,
            "controller": true,
            "blockOwnerDeletion": true,
        }])
    }

    /// Metadata of a child.
    pub fn metadata(&self, name: &str) -> Value {
        json!({
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels(),
            "ownerReferences": self.owner(),
        })
    }
}

fn client_url(scheme: &str, host: &str) -> String {
    format!("{scheme}://{host}:{}", names::CLIENT_PORT)
}

/// Names of the Secrets with certificates, each with `tls.crt`, `tls.key` and `ca.crt`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsSecrets {
    /// What members show to clients.
    pub server: String,
    /// What members show to each other.
    pub peer: String,
    /// What the operator shows to members.
    pub client: String,
}
