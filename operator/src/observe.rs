//! What is seen of a cluster. A member that does not answer is a fact and no error; only the Kubernetes API
//! itself can make an observation fail.

use std::collections::BTreeMap;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, PersistentVolumeClaim, Pod, Secret};
use kube::api::{Api, ListParams};
use kube::{Client, Resource, ResourceExt};
use metastore_operator_api::conditions::reasons;
use metastore_operator_api::{
    JobPhase, MetaStoreBackup, MetaStoreBackupSchedule, MetaStoreCluster, MetaStoreTask,
    QuantityText, names, quantity_units,
};
use metastore_operator_core::schedule::Schedule;
use metastore_operator_core::{
    BackupsObservation, ClaimObservation, MemberObservation, MemberPhase, Observation,
    PodObservation, Probe, TaskObservation, Version, version_is_reachable,
};
use metastore_operator_resources::{
    CONFIG_FILE, Cluster, MemberStart, SeedRestore, config_map, join_list, shared_objects,
    template_hash,
};

use crate::certificates;
use crate::identity;
use crate::kubernetes;
use crate::member_client::{MemberClient, TlsFiles};
use crate::reconcile::Context;

/// Label of volume claims whose member left the cluster.
pub(crate) const RETIRED_LABEL: &str = "metastore.io/retired";
/// Annotation of StatefulSets: when space was last reclaimed.
pub(crate) const DEFRAGMENTED_ANNOTATION: &str = "metastore.io/defragmented-at";
/// Of what a container said last, so much stands in the status.
const MESSAGE_CHARS_MAX: usize = 400;
/// The finalizer of clusters whose data is deleted with them.
pub(crate) const FINALIZER: &str = "metastore.io/delete-data";

/// What is seen, and how to act on it.
pub(crate) struct Seen {
    pub(crate) observation: Observation,
    /// Clients of members with an address, by name; logged in where authentication is on.
    pub(crate) clients: BTreeMap<String, MemberClient>,
    /// Secrets that the operator must write.
    pub(crate) stale_secrets: Vec<String>,
    /// Where the first member's data comes from.
    pub(crate) restore: Option<SeedRestore>,
}

/// Looks at everything once.
pub(crate) async fn observe(
    context: &Context,
    object: &MetaStoreCluster,
    cluster: &Cluster<'_>,
    now: Timestamp,
) -> kube::Result<Seen> {
    let client = &context.client;
    let selector = ListParams::default().labels(&format!(
        "{}={},{}={}",
        names::CLUSTER_LABEL,
        cluster.name,
        names::MANAGED_BY_LABEL,
        names::MANAGED_BY
    ));
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), cluster.namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), cluster.namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), cluster.namespace);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), cluster.namespace);
    // StatefulSets first: the members' own list is asked later, so what it does not name is no member.
    let sets = sets.list(&selector).await?;
    let (pods, claims, all_maps) = tokio::try_join!(
        pods.list(&selector),
        claims.list(&selector),
        maps.list(&selector)
    )?;
    let identity_map = maps.get_opt(&names::identity(cluster.name)).await?;

    let pods: BTreeMap<_, _> = pods.into_iter().map(|pod| (pod.name_any(), pod)).collect();
    let claims: BTreeMap<_, _> = claims.into_iter().map(|c| (c.name_any(), c)).collect();
    let all_maps: BTreeMap<_, _> = all_maps
        .into_iter()
        .map(|map| (map.name_any(), map))
        .collect();
    let mut members: Vec<_> = sets
        .iter()
        .map(|set| member(set, &pods, &claims, &all_maps))
        .collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    let orphan_claims = claims
        .values()
        .filter(|claim| claim.metadata.deletion_timestamp.is_none())
        .filter(|claim| !claim.labels().contains_key(RETIRED_LABEL))
        .filter_map(|claim| claim.labels().get(names::MEMBER_LABEL).cloned())
        .filter(|name| !members.iter().any(|member| &member.name == name))
        .collect();

    let tls = certificates::client_files(client, cluster).await?;
    let (certificates, stale_secrets) = certificates::observe(client, cluster, now).await?;
    let mut clients = clients_of(context, cluster, &members, &pods, &all_maps, tls.as_ref());
    let is_auth_enabled = log_in(context, cluster, &mut clients).await?;
    probe(&mut members, &clients).await;
    let (list, alarms) = ask_cluster(&members, &clients).await;

    let mut observation = Observation {
        cluster: cluster.name.to_owned(),
        namespace: cluster.namespace.to_owned(),
        generation: object.metadata.generation.unwrap_or(0),
        is_deleting: object.metadata.deletion_timestamp.is_some(),
        has_finalizer: object.finalizers().iter().any(|name| name == FINALIZER),
        is_paused_by_annotation: object
            .annotations()
            .get(names::PAUSED_ANNOTATION)
            .is_some_and(|value| value == "true"),
        identity: identity_map.as_ref().map(identity::read),
        certificates,
        orphan_claims,
        list,
        alarms,
        is_auth_enabled,
        wanted_storage_bytes: cluster.spec.storage.size.units().unwrap_or(0),
        quota_bytes: cluster.quota_bytes(),
        fresh_name: format!("{}-{}", cluster.name, random_text(5)),
        previous: object.status.clone().unwrap_or_default(),
        tasks: tasks(context, cluster).await?,
        backups: backups(context, cluster, now).await?,
        members,
        ..Observation::default()
    };
    match template_hash(cluster) {
        Ok(hash) => observation.wanted_template_hash = hash,
        Err(message) => {
            observation.rejection = Some((reasons::INVALID_OVERLAY.to_owned(), message));
        }
    }
    for member in &mut observation.members {
        let found = all_maps
            .get(&member.name)
            .and_then(|map| map.data.as_ref()?.get(CONFIG_FILE));
        let is_current = member.phase == MemberPhase::Running
            && member.template_hash == observation.wanted_template_hash;
        member.lacks_config = match found {
            None => true,
            Some(found) if is_current => {
                let wanted = config_map(cluster, &member.name, &MemberStart::Run);
                wanted["data"][CONFIG_FILE] != *found
            }
            // One that joins is told anew by its own rule, and an older one gets a newer file with its restart.
            Some(_) => false,
        };
    }
    let restore = match seed_restore(context, cluster).await? {
        Ok(restore) => restore,
        Err(message) => {
            let is_needed = observation
                .identity
                .as_ref()
                .is_none_or(|identity| identity.cluster_id.is_none());
            if is_needed {
                observation.rejection = Some((reasons::INVALID_SPEC.to_owned(), message));
            }
            None
        }
    };
    if let Some(rejection) = rejection(context, cluster, &observation).await? {
        observation.rejection.get_or_insert(rejection);
    }
    observation.stale_objects =
        stale_objects(context, cluster, &observation, &stale_secrets).await?;
    Ok(Seen {
        observation,
        clients,
        stale_secrets,
        restore,
    })
}

/// With `storage.autoGrow` the largest volume says how large all of them are to be, and which quota fits. The spec
/// that is looked at then has that size; it is never written.
pub(crate) async fn follow_grown_volumes(
    client: &Client,
    object: &mut MetaStoreCluster,
) -> kube::Result<()> {
    if object.spec.storage.auto_grow.is_none() {
        return Ok(());
    }
    let namespace = object.namespace().unwrap_or_default();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
    let selector = format!(
        "{}={},{}={},!{RETIRED_LABEL}",
        names::CLUSTER_LABEL,
        object.name_any(),
        names::MANAGED_BY_LABEL,
        names::MANAGED_BY
    );
    let claims = claims
        .list(&ListParams::default().labels(&selector))
        .await?;
    let largest = claims
        .iter()
        .filter(|found| found.metadata.deletion_timestamp.is_none())
        .map(|found| claim(found).requested_bytes)
        .max()
        .unwrap_or(0);
    let size = &mut object.spec.storage.size;
    if size.units().is_none_or(|own| own < largest) {
        *size = QuantityText(bytes_text(largest));
    }
    Ok(())
}

/// Bytes as people write them.
pub(crate) fn bytes_text(bytes: u64) -> String {
    const MEBIBYTE: u64 = 1 << 20;
    match bytes % MEBIBYTE {
        0 => format!("{}Mi", bytes / MEBIBYTE),
        _ => bytes.to_string(),
    }
}

fn member(
    set: &StatefulSet,
    pods: &BTreeMap<String, Pod>,
    claims: &BTreeMap<String, PersistentVolumeClaim>,
    maps: &BTreeMap<String, ConfigMap>,
) -> MemberObservation {
    let name = set.name_any();
    let annotation = |key: &str| set.annotations().get(key).cloned();
    let phase = annotation(names::PHASE_ANNOTATION)
        .map_or(MemberPhase::Running, |text| MemberPhase::parse(&text));
    let join_list = match phase {
        MemberPhase::Joining => maps
            .get(&name)
            .and_then(|map| map.data.as_ref()?.get(CONFIG_FILE))
            .map(|file| join_list(file))
            .unwrap_or_default(),
        _ => Vec::new(),
    };
    MemberObservation {
        wanted_replicas: set
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(1),
        template_hash: annotation(names::TEMPLATE_HASH_ANNOTATION).unwrap_or_default(),
        phase,
        recorded_id: annotation(names::MEMBER_ID_ANNOTATION)
            .and_then(|id| u64::from_str_radix(&id, 16).ok()),
        is_fenced: annotation(names::FENCED_ANNOTATION).is_some_and(|value| value == "true"),
        is_deleting: set.metadata.deletion_timestamp.is_some(),
        join_list,
        lacks_config: false,
        defragmented_at: annotation(DEFRAGMENTED_ANNOTATION).and_then(|time| time.parse().ok()),
        pod: pods.get(&names::pod(&name)).map(pod),
        claim: claims.get(&names::claim(&name)).map(claim),
        probe: Probe::NotAsked,
        name,
    }
}

fn pod(pod: &Pod) -> PodObservation {
    let status = pod.status.as_ref();
    let is_ready = status
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        });
    let waiting_reason = status.and_then(|status| {
        let first = status.init_container_statuses.iter().flatten();
        let then = status.container_statuses.iter().flatten();
        first.chain(then).find_map(why_waiting)
    });
    PodObservation {
        is_ready,
        is_terminating: pod.metadata.deletion_timestamp.is_some(),
        image_tag: pod
            .spec
            .as_ref()
            .and_then(|spec| {
                let mut containers = spec.containers.iter();
                containers.find(|container| container.name == names::SERVER_CONTAINER)
            })
            .and_then(|container| tag_of(container.image.as_deref()?))
            .map(ToOwned::to_owned),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        template_hash: pod
            .annotations()
            .get(names::TEMPLATE_HASH_ANNOTATION)
            .cloned()
            .unwrap_or_default(),
        waiting_reason,
        unattended_since: unattended_since(pod),
    }
}

/// A kubelet says at once that it has a Pod, and ends it in the time that it is given; the time of a deletion has
/// the grace period in it. Told from the Pod alone: the operator may not look at nodes.
fn unattended_since(pod: &Pod) -> Option<Timestamp> {
    if let Some(end) = &pod.metadata.deletion_timestamp {
        return Some(end.0);
    }
    pod.spec.as_ref()?.node_name.as_ref()?;
    let status = pod.status.as_ref();
    if status.is_some_and(|status| status.start_time.is_some()) {
        return None;
    }
    let scheduled = status
        .into_iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "True")
        .and_then(|condition| condition.last_transition_time.clone());
    scheduled
        .or_else(|| pod.creation_timestamp())
        .map(|time| time.0)
}

/// The tag of an image; nothing with a digest. A colon before the last slash is that of a port.
fn tag_of(image: &str) -> Option<&str> {
    let (_, tag) = image
        .rsplit_once('/')
        .unwrap_or(("", image))
        .1
        .split_once(':')?;
    (!tag.contains('@') && !image.contains('@')).then_some(tag)
}

/// Why a container does not run. What it said when it ended says more than that it is being restarted.
fn why_waiting(container: &ContainerStatus) -> Option<String> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.clone()?;
    let ended = container.last_state.as_ref();
    let said = ended.and_then(|state| state.terminated.as_ref()?.message.as_deref());
    let said = said.filter(|text| !text.is_empty());
    let Some(text) = said.or(waiting.message.as_deref()) else {
        return Some(reason);
    };
    let length = text.chars().count();
    let end: String = text
        .chars()
        .skip(length.saturating_sub(MESSAGE_CHARS_MAX))
        .collect();
    Some(format!("{reason}: {}", end.trim()))
}

fn claim(claim: &PersistentVolumeClaim) -> ClaimObservation {
    let requested = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
    let capacity = claim
        .status
        .as_ref()
        .and_then(|status| status.capacity.as_ref()?.get("storage"));
    let phase = claim
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    ClaimObservation {
        requested_bytes: requested.and_then(|q| quantity_units(&q.0)).unwrap_or(0),
        capacity_bytes: capacity.and_then(|q| quantity_units(&q.0)).unwrap_or(0),
        is_lost: phase == Some("Lost"),
        is_deleting: claim.metadata.deletion_timestamp.is_some(),
    }
}

fn clients_of(
    context: &Context,
    cluster: &Cluster<'_>,
    members: &[MemberObservation],
    pods: &BTreeMap<String, Pod>,
    maps: &BTreeMap<String, ConfigMap>,
    tls: Option<&TlsFiles>,
) -> BTreeMap<String, MemberClient> {
    members
        .iter()
        .filter_map(|member| {
            let pod = pods.get(&names::pod(&member.name))?;
            let address = pod.status.as_ref()?.pod_ip.clone()?;
            let address = match address.contains(':') {
                true => format!("[{address}]"),
                false => address,
            };
            // A member that has not restarted yet speaks what its own configuration says; TLS where it can.
            let is_encrypted = maps
                .get(&member.name)
                .and_then(|map| map.data.as_ref()?.get(CONFIG_FILE))
                .map_or(cluster.client_scheme() == "https", |file| {
                    file.contains("listen-client-urls: \"https")
                });
            let (scheme, tls) = if is_encrypted {
                ("https", tls)
            } else {
                ("http", None)
            };
            let url = format!("{scheme}://{address}:{}", context.client_port);
            let client = MemberClient::new(&url, &cluster.host(&member.name), tls).ok()?;
            Some((member.name.clone(), client))
        })
        .collect()
}

/// Logs in as root where the spec asks for authentication, or did so once. `None`: nobody could say whether it
/// is on.
async fn log_in(
    context: &Context,
    cluster: &Cluster<'_>,
    clients: &mut BTreeMap<String, MemberClient>,
) -> kube::Result<Option<bool>> {
    let Some(password) = root_password(context, cluster).await? else {
        return Ok(None);
    };
    for client in clients.values() {
        match client.log_in("root", &password).await {
            Ok(None) => return Ok(Some(false)),
            Ok(Some(token)) => {
                for client in clients.values_mut() {
                    *client = client.with_token(Some(token.clone()));
                }
                return Ok(Some(true));
            }
            Err(_) => {}
        }
    }
    Ok(None)
}

/// The password of root, from its Secret.
pub(crate) async fn root_password(
    context: &Context,
    cluster: &Cluster<'_>,
) -> kube::Result<Option<String>> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), cluster.namespace);
    let secret = api.get_opt(&cluster.root_secret()).await?;
    Ok(secret
        .and_then(|secret| secret.data?.remove("password"))
        .and_then(|bytes| String::from_utf8(bytes.0).ok())
        .filter(|password| !password.is_empty()))
}

async fn probe(members: &mut [MemberObservation], clients: &BTreeMap<String, MemberClient>) {
    let probes = members.iter().map(|member| async {
        match clients.get(&member.name) {
            None => Probe::NotAsked,
            Some(client) => match client.status().await {
                Ok(answer) => Probe::Answered(answer),
                Err(error) => Probe::Failed(error.to_string()),
            },
        }
    });
    let probes = join_all(probes).await;
    for (member, probe) in members.iter_mut().zip(probes) {
        member.probe = probe;
    }
}

/// The cluster's own list and its alarms, from the first member that can say.
async fn ask_cluster(
    members: &[MemberObservation],
    clients: &BTreeMap<String, MemberClient>,
) -> (
    Option<Vec<metastore_operator_core::ListedMember>>,
    Vec<metastore_operator_core::Alarm>,
) {
    // Voters first: a learner refuses such questions.
    let mut askable: Vec<_> = members
        .iter()
        .filter_map(|member| Some((member.probe.answer()?, clients.get(&member.name)?)))
        .collect();
    askable.sort_by_key(|(answer, _)| answer.is_learner);
    for (_, client) in askable {
        if let Ok(list) = client.members().await {
            return (Some(list), client.alarms().await.unwrap_or_default());
        }
    }
    (None, Vec::new())
}

async fn tasks(context: &Context, cluster: &Cluster<'_>) -> kube::Result<Vec<TaskObservation>> {
    let api: Api<MetaStoreTask> = Api::namespaced(context.client.clone(), cluster.namespace);
    let mut tasks: Vec<_> = api
        .list(&ListParams::default())
        .await?
        .into_iter()
        .filter(|task| task.spec.cluster_ref.name == cluster.name)
        .filter(|task| {
            let phase = task
                .status
                .as_ref()
                .map(|status| status.phase)
                .unwrap_or_default();
            matches!(phase, JobPhase::Pending | JobPhase::Running)
        })
        .collect();
    tasks.sort_by_key(|task| {
        (
            task.creation_timestamp().map(|time| time.0),
            task.name_any(),
        )
    });
    Ok(tasks
        .into_iter()
        .map(|task| TaskObservation {
            name: task.name_any(),
            status: task.status.unwrap_or_default(),
            spec: task.spec,
        })
        .collect())
}

async fn backups(
    context: &Context,
    cluster: &Cluster<'_>,
    now: Timestamp,
) -> kube::Result<BackupsObservation> {
    let schedules: Api<MetaStoreBackupSchedule> =
        Api::namespaced(context.client.clone(), cluster.namespace);
    let backups: Api<MetaStoreBackup> = Api::namespaced(context.client.clone(), cluster.namespace);
    let schedules: Vec<_> = schedules
        .list(&ListParams::default())
        .await?
        .into_iter()
        .filter(|s| s.spec.cluster_ref.name == cluster.name && !s.spec.suspend)
        .collect();
    let mut backups: Vec<_> = backups
        .list(&ListParams::default())
        .await?
        .into_iter()
        .filter(|backup| backup.spec.cluster_ref.name == cluster.name)
        .collect();
    backups.sort_by_key(|backup| backup.creation_timestamp().map(|time| time.0));
    let mut seen = BackupsObservation {
        has_schedule: !schedules.is_empty(),
        ..BackupsObservation::default()
    };
    for backup in &backups {
        let Some(status) = &backup.status else {
            continue;
        };
        let is_so = |kind: &str, wanted: &str| {
            status
                .conditions
                .iter()
                .any(|condition| condition.type_ == kind && condition.status == wanted)
        };
        if is_so(metastore_operator_api::conditions::COMPLETE, "True") {
            let made_at = status.finished_at.as_ref().map_or(now, |time| time.0);
            seen.last_complete = Some((backup.name_any(), status.revision.unwrap_or(0), made_at));
            seen.last_failed = None;
            seen.verification_failed = None;
        } else if status.phase == JobPhase::Failed {
            seen.last_failed = Some(backup.name_any());
        }
        if is_so(metastore_operator_api::conditions::VERIFIED, "True") {
            seen.last_verified = Some(backup.name_any());
        } else if is_so(metastore_operator_api::conditions::VERIFIED, "False")
            && status.phase == JobPhase::Failed
        {
            seen.verification_failed = Some(backup.name_any());
        }
    }
    let since = seen.last_complete.as_ref().map(|(_, _, made_at)| *made_at);
    seen.next_due = schedules
        .iter()
        .filter_map(|schedule| {
            let since = since.or(schedule.creation_timestamp().map(|time| time.0))?;
            Schedule::parse(&schedule.spec.schedule, &schedule.spec.time_zone)
                .ok()?
                .next_after(since)
        })
        .min();
    Ok(seen)
}

/// Where the first member's data comes from. The inner error says, in words, what is wrong with the spec.
async fn seed_restore(
    context: &Context,
    cluster: &Cluster<'_>,
) -> kube::Result<Result<Option<SeedRestore>, String>> {
    let Some(restore) = &cluster.spec.bootstrap.restore else {
        return Ok(Ok(None));
    };
    if let Some(source) = &restore.source {
        return Ok(Ok(Some(SeedRestore {
            source: source.clone(),
            bump_revision: restore.bump_revision,
        })));
    }
    let Some(reference) = &restore.backup_ref else {
        return Ok(Err("bootstrap.restore names nothing".into()));
    };
    let api: Api<MetaStoreBackup> = Api::namespaced(context.client.clone(), cluster.namespace);
    let Some(backup) = api.get_opt(&reference.name).await? else {
        return Ok(Err(format!(
            "there is no MetaStoreBackup {}",
            reference.name
        )));
    };
    let artifact = backup
        .status
        .as_ref()
        .and_then(|status| status.artifact.clone());
    Ok(match artifact {
        Some(artifact) => Ok(Some(SeedRestore {
            source: metastore_operator_api::RestoreSource {
                store: backup.spec.store.clone(),
                artifact,
            },
            bump_revision: restore.bump_revision,
        })),
        None => Err(format!("the backup {} is not complete", reference.name)),
    })
}

/// What CEL cannot see.
async fn rejection(
    context: &Context,
    cluster: &Cluster<'_>,
    seen: &Observation,
) -> kube::Result<Option<(String, String)>> {
    let spec = cluster.spec;
    let wants_cert_manager = spec
        .tls
        .issuer
        .as_ref()
        .is_some_and(|issuer| issuer.cert_manager.is_some());
    if wants_cert_manager && !context.capabilities().cert_manager {
        return Ok(Some((
            reasons::CERT_MANAGER_MISSING.to_owned(),
            "tls.issuer.certManager is set, and the API cert-manager.io/v1 is not there".into(),
        )));
    }
    if let Some(window) = &spec.maintenance.window
        && let Err(message) = Schedule::parse(&window.schedule, &window.time_zone)
    {
        return Ok(Some((reasons::INVALID_SPEC.to_owned(), message)));
    }
    if let Some(reference) = spec
        .auth
        .root_secret_ref
        .as_ref()
        .filter(|_| spec.auth.enabled)
        && root_password(context, cluster).await?.is_none()
    {
        return Ok(Some((
            reasons::SECRET_NOT_FOUND.to_owned(),
            format!("the Secret {} has no key password", reference.name),
        )));
    }
    let running = seen
        .members
        .iter()
        // Members answer with the version of the API that they speak; their images have our own.
        .filter_map(|member| Version::parse(member.pod.as_ref()?.image_tag.as_deref()?))
        .min();
    let is_named = spec.version.is_some() && spec.image.digest.is_empty();
    let wanted = Version::parse(cluster.server_version()).filter(|_| is_named);
    if let (Some(running), Some(wanted)) = (running, wanted)
        && !version_is_reachable(running, wanted, spec.upgrade.allow_downgrade)
    {
        return Ok(Some((
            reasons::VERSION_JUMP_REFUSED.to_owned(),
            format!(
                "members run {running}, and {wanted} is neither the same minor version nor the next"
            ),
        )));
    }
    Ok(None)
}

async fn stale_objects(
    context: &Context,
    cluster: &Cluster<'_>,
    seen: &Observation,
    stale_secrets: &[String],
) -> kube::Result<Vec<String>> {
    let mut stale: Vec<_> = stale_secrets
        .iter()
        .map(|name| format!("Secret/{name}"))
        .collect();
    if needs_root_secret(context, cluster).await? {
        stale.push(format!("Secret/{}", cluster.root_secret()));
    }
    for object in wanted_objects(context, cluster, seen) {
        if !kubernetes::is_as_wanted(&context.client, &object).await? {
            stale.push(kubernetes::title(&object));
        }
    }
    Ok(stale)
}

/// Must the operator make a password for root?
pub(crate) async fn needs_root_secret(
    context: &Context,
    cluster: &Cluster<'_>,
) -> kube::Result<bool> {
    let is_ours = cluster.spec.auth.enabled && cluster.spec.auth.root_secret_ref.is_none();
    Ok(is_ours && root_password(context, cluster).await?.is_none())
}

/// The shared objects for what is seen.
pub(crate) fn wanted_objects(
    context: &Context,
    cluster: &Cluster<'_>,
    seen: &Observation,
) -> Vec<serde_json::Value> {
    let voters = seen
        .list
        .as_ref()
        .map_or(usize::try_from(seen.previous.voters).unwrap_or(0), |list| {
            list.iter().filter(|member| !member.is_learner).count()
        });
    let is_formed = seen
        .identity
        .as_ref()
        .is_some_and(|identity| identity.cluster_id.is_some());
    shared_objects(cluster, voters, is_formed, context.capabilities())
}

/// Small letters and digits that nobody guesses or repeats.
pub(crate) fn random_text(length: usize) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..length)
        .map(|_| LETTERS[rand::random_range(0..LETTERS.len())] as char)
        .collect()
}

/// The uid of an object.
pub(crate) fn uid_of<K: Resource>(object: &K) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{bytes_text, tag_of};

    #[test]
    fn bytes_are_written_in_whole_mebibytes_where_they_are() {
        assert_eq!(bytes_text(96 << 20), "96Mi");
        assert_eq!(bytes_text(1_000_000_000), "1000000000");
    }

    #[test]
    fn the_tag_of_an_image_is_told_from_ports_and_digests() {
        for (image, tag) in [
            ("metastore:0.2.0", Some("0.2.0")),
            ("registry:5000/a/metastore:v1.2.3", Some("v1.2.3")),
            ("registry:5000/a/metastore", None),
            ("metastore@sha256:0123", None),
            ("metastore:0.2.0@sha256:0123", None),
        ] {
            assert_eq!(tag_of(image), tag, "{image}");
        }
    }
}
