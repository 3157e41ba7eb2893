//! Labels, annotations, ports and names of what the operator makes.

/// The field manager of everything that the operator writes.
pub const FIELD_MANAGER: &str = "metastore-operator";

/// Label: name of the cluster an object belongs to.
pub const CLUSTER_LABEL: &str = "metastore.io/cluster";
/// Label: name of the member an object belongs to.
pub const MEMBER_LABEL: &str = "metastore.io/member";
/// Label on Backups: the schedule that made them.
pub const SCHEDULE_LABEL: &str = "metastore.io/schedule";
/// Label on Jobs and their Pods: what they do (`backup`, `verify`).
pub const PURPOSE_LABEL: &str = "metastore.io/purpose";
/// Label with which every child is found.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "metastore-operator";

/// Annotation on a cluster: `"true"` pauses it as `spec.paused` does.
pub const PAUSED_ANNOTATION: &str = "metastore.io/paused";
/// Annotation on a schedule: a new value starts one backup now.
pub const RUN_NOW_ANNOTATION: &str = "metastore.io/run-now";
/// Annotation on a member's StatefulSet: hash of the template it was made from.
pub const TEMPLATE_HASH_ANNOTATION: &str = "metastore.io/template-hash";
/// Annotation on a member's StatefulSet: its member id, hexadecimal, once known.
pub const MEMBER_ID_ANNOTATION: &str = "metastore.io/member-id";
/// Annotation on a member's StatefulSet: `forming`, `joining` or `running`.
pub const PHASE_ANNOTATION: &str = "metastore.io/phase";
/// Annotation on a member's StatefulSet: `"true"` keeps it at zero replicas until it is replaced.
pub const FENCED_ANNOTATION: &str = "metastore.io/fenced";
/// Annotation on a static object: hash of what the operator applied last.
pub const OBJECT_HASH_ANNOTATION: &str = "metastore.io/object-hash";
/// Annotation on the CRDs: hash of their schema, which the operator compares at its start.
pub const SCHEMA_HASH_ANNOTATION: &str = "metastore.io/schema-hash";

/// Port for clients.
pub const CLIENT_PORT: u16 = 2379;
/// Port for the other members.
pub const PEER_PORT: u16 = 2380;
/// Port for metrics and health, without TLS: a kubelet has no client certificate.
pub const METRICS_PORT: u16 = 2381;

/// Name of the container with the server.
pub const SERVER_CONTAINER: &str = "metastore";

/// The headless Service through which members find each other.
pub fn peer_service(cluster: &str) -> String {
    format!("{cluster}-peer")
}

/// The Service that reads may use: every member that is ready, learners too.
pub fn read_service(cluster: &str) -> String {
    format!("{cluster}-read")
}

/// The ConfigMap that holds what must never be forgotten about a cluster.
pub fn identity(cluster: &str) -> String {
    format!("{cluster}-identity")
}

/// The Secret with the authority that the operator made for a cluster.
pub fn authority_secret(cluster: &str) -> String {
    format!("{cluster}-ca")
}

/// The Secret with the certificate that members show to clients.
pub fn server_secret(cluster: &str) -> String {
    format!("{cluster}-server-tls")
}

/// The Secret with the certificate that members show to each other.
pub fn peer_secret(cluster: &str) -> String {
    format!("{cluster}-peer-tls")
}

/// The Secret with a client certificate, for the operator and for applications.
pub fn client_secret(cluster: &str) -> String {
    format!("{cluster}-client-tls")
}

/// The Secret with the password of `root`, unless the cluster names another.
pub fn root_secret(cluster: &str) -> String {
    format!("{cluster}-root")
}

/// The volume claim of a member.
pub fn claim(member: &str) -> String {
    format!("{member}-data")
}

/// The only Pod of a member.
pub fn pod(member: &str) -> String {
    format!("{member}-0")
}

/// The host name of a member: short without a cluster domain, so that any domain works.
pub fn member_host(member: &str, cluster: &str, namespace: &str, cluster_domain: &str) -> String {
    let short = format!("{}.{}.{namespace}.svc", pod(member), peer_service(cluster));
    match cluster_domain {
        "" => short,
        domain => format!("{short}.{domain}"),
    }
}
