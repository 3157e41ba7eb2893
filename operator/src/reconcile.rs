//! One pass over one cluster: observe, decide, act, write the status.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action as Requeue;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource, ResourceExt};
use metastore_operator_api::conditions::{self, reasons};
use metastore_operator_api::{ClusterStatus, MetaStoreCluster, names};
use metastore_operator_core::{Action, Decision, decide};
use metastore_operator_resources::{Capabilities, Cluster, Images};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::apply::Applier;
use crate::lease::Leadership;
use crate::observe::{Seen, follow_grown_volumes, observe, uid_of};
use crate::telemetry::Telemetry;

/// After an error: soon, because most of them pass.
const ERROR_INTERVAL: Duration = Duration::from_secs(3);
/// While another operator leads.
const STANDBY_INTERVAL: Duration = Duration::from_secs(5);
/// How the message of a refusal by the API server begins.
const REFUSAL: &str = "the API server refuses it: ";
/// Of what went wrong, so much stands in the status.
const MESSAGE_CHARS_MAX: usize = 1000;
/// Numbers in the status that change all the time are written at this interval.
const STATUS_INTERVAL: SignedDuration = SignedDuration::from_secs(60);

/// What all passes share.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) images: Images,
    pub(crate) leadership: Leadership,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) recorder: Recorder,
    pub(crate) capabilities: ArcSwap<Capabilities>,
    /// Where members are called: [`names::CLIENT_PORT`], but for tests.
    pub(crate) client_port: u16,
}

impl Context {
    /// Optional APIs that are there now.
    pub(crate) fn capabilities(&self) -> Capabilities {
        **self.capabilities.load()
    }
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub(crate) struct PassError(#[from] anyhow::Error);

/// One pass.
pub(crate) async fn reconcile(
    object: Arc<MetaStoreCluster>,
    context: Arc<Context>,
) -> Result<Requeue, PassError> {
    if !context.leadership.is_held() {
        let namespace = object.namespace().unwrap_or_default();
        context
            .telemetry
            .cluster_forgotten(&namespace, &object.name_any());
        return Ok(Requeue::requeue(STANDBY_INTERVAL));
    }
    let started = std::time::Instant::now();
    let outcome = pass(&object, &context).await;
    context
        .telemetry
        .pass_ended(started.elapsed(), outcome.is_ok());
    Ok(outcome?)
}

async fn pass(object: &MetaStoreCluster, context: &Context) -> anyhow::Result<Requeue> {
    let name = object.name_any();
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<MetaStoreCluster> = Api::namespaced(context.client.clone(), &namespace);
    // The cache may be behind; what is decided must rest on what is.
    let Some(mut object) = api.get_opt(&name).await? else {
        context.telemetry.cluster_forgotten(&namespace, &name);
        return Ok(Requeue::await_change());
    };
    let now = Timestamp::now();
    let status_before = object.status.clone().unwrap_or_default();
    let looked = look(context, &mut object, now).await;
    let seen = match looked {
        Ok(seen) => seen,
        Err(error) => {
            let error = anyhow::Error::from(error).context("looking at the cluster");
            let status = status_of_failed_look(&status_before, &error, now);
            // The error of the look says more than that of the status, which most likely fails, too.
            if status != status_before {
                let _ = write_status(&api, &name, "MetaStoreCluster", &status).await;
            }
            return Err(error);
        }
    };
    let uid = uid_of(&object);
    let cluster = cluster_of(context, &object, &name, &namespace, &uid);
    let decision = decide(&object.spec, &seen.observation, now);
    if !matches!(decision.action, Action::Wait(_)) {
        tracing::info!(namespace, cluster = name, action = ?decision.action, why = decision.why, "acting");
    }
    let previous = object.status.clone().unwrap_or_default();
    let is_gone = object.metadata.deletion_timestamp.is_some();
    if !is_gone && announces(&decision, &previous) {
        write_status(&api, &name, "MetaStoreCluster", &decision.status).await?;
    }
    if decision.action.is_destructive() && !context.leadership.is_held() {
        tracing::warn!(
            namespace,
            cluster = name,
            "the Lease may be another's by now: not acting"
        );
        return Ok(Requeue::requeue(STANDBY_INTERVAL));
    }
    let applier = Applier {
        context,
        object: &object,
        cluster: &cluster,
        seen: &seen,
        now,
    };
    let outcome = applier.apply(&decision.action).await;
    report(context, &object, &decision, outcome.as_ref().err()).await;
    let status = status_after(&decision, &previous, outcome.as_ref().err(), now);
    context
        .telemetry
        .cluster_seen(&namespace, &name, &status.conditions);
    // After the action: its words and times may be others in each pass, and an operator that is killed by each of
    // its writes must not end here before it has acted.
    let is_due = match News::between(&previous, &status) {
        News::Nothing => false,
        News::Numbers => numbers_are_due(&object.metadata, now),
        News::Matters => true,
    };
    if !is_gone && is_due {
        write_status(&api, &name, "MetaStoreCluster", &status).await?;
    }
    let Err(error) = outcome else {
        return Ok(Requeue::requeue(decision.requeue_after));
    };
    // A learner that has not caught up is no failure of ours.
    if matches!(decision.action, Action::Promote { .. }) {
        tracing::debug!(
            namespace,
            cluster = name,
            error = format!("{error:#}"),
            "not promoted yet"
        );
        return Ok(Requeue::requeue(Duration::from_secs(1)));
    }
    Err(error.context(format!("{:?}", decision.action)))
}

fn cluster_of<'a>(
    context: &'a Context,
    object: &'a MetaStoreCluster,
    name: &'a str,
    namespace: &'a str,
    uid: &'a str,
) -> Cluster<'a> {
    Cluster {
        name,
        namespace,
        uid,
        spec: &object.spec,
        images: &context.images,
    }
}

/// Everything that is seen of a cluster. The object gets the size to which its volumes have grown by themselves.
async fn look(
    context: &Context,
    object: &mut MetaStoreCluster,
    now: Timestamp,
) -> kube::Result<Seen> {
    follow_grown_volumes(&context.client, object).await?;
    let name = object.name_any();
    let namespace = object.namespace().unwrap_or_default();
    let uid = uid_of(object);
    let cluster = cluster_of(context, object, &name, &namespace, &uid);
    observe(context, object, &cluster, now).await
}

/// Must people be told what is done before it is done, because it takes long?
fn announces(decision: &Decision, previous: &ClusterStatus) -> bool {
    let is_long = matches!(
        decision.action,
        Action::CompactForSpace { .. } | Action::Defragment { .. }
    );
    is_long && decision.status.operation != previous.operation
}

/// The status after the attempt. A refusal stays in it until the action succeeds or is wanted no more.
fn status_after(
    decision: &Decision,
    previous: &ClusterStatus,
    error: Option<&anyhow::Error>,
    now: Timestamp,
) -> ClusterStatus {
    let mut status = decision.status.clone();
    let Some(error) = error else {
        return status;
    };
    // A learner that has not caught up is no failure of ours.
    if !matches!(decision.action, Action::Promote { .. }) {
        let message = format!("{}: {error:#}", decision.why);
        explain_progress(&mut status, reasons::STEP_FAILED, message);
    }
    let generation = status.observed_generation.unwrap_or(0);
    let old = previous.conditions.as_slice();
    let refusal = match refusal_of(error) {
        Some(message) => Some(refused(message, generation, old, now)),
        None => old.iter().find(|old| is_refusal(old)).cloned(),
    };
    if let Some(refusal) = refusal {
        set_condition(&mut status, refusal);
    }
    status
}

/// The last status, with the reason why there is no new one.
fn status_of_failed_look(
    previous: &ClusterStatus,
    error: &anyhow::Error,
    now: Timestamp,
) -> ClusterStatus {
    let mut status = previous.clone();
    explain_progress(&mut status, reasons::LOOK_FAILED, format!("{error:#}"));
    if let Some(message) = refusal_of(error) {
        let generation = status.observed_generation.unwrap_or(0);
        let refusal = refused(message, generation, &previous.conditions, now);
        set_condition(&mut status, refusal);
    }
    status
}

/// Why the operation does not get on. It is still the same one: whether the condition is true does not change, nor
/// since when.
fn explain_progress(status: &mut ClusterStatus, reason: &str, message: String) {
    let progressing = |condition: &&mut Condition| condition.type_ == conditions::PROGRESSING;
    let Some(condition) = status.conditions.iter_mut().find(progressing) else {
        return;
    };
    if condition.reason != reasons::PROGRESS_DEADLINE_EXCEEDED {
        condition.reason = reason.to_owned();
        condition.message = message;
    } else if !condition.message.contains(&message) {
        condition.message = format!("{}: {message}", condition.message);
    }
    condition.message = condition.message.chars().take(MESSAGE_CHARS_MAX).collect();
}

/// What is done after an error.
pub(crate) fn after_error<K>(object: Arc<K>, error: &PassError, _: Arc<Context>) -> Requeue
where
    K: Resource,
{
    let meta = object.meta();
    tracing::warn!(
        namespace = meta.namespace,
        name = meta.name,
        error = %error,
        "the pass failed"
    );
    Requeue::requeue(ERROR_INTERVAL)
}

/// One Event for each step that changes something that people care about.
async fn report(
    context: &Context,
    object: &MetaStoreCluster,
    decision: &Decision,
    error: Option<&anyhow::Error>,
) {
    let action = &decision.action;
    context
        .telemetry
        .action_taken(action_name(action), error.is_none());
    let is_quiet = matches!(
        action,
        Action::Wait(_)
            | Action::ApplyStaticObjects
            | Action::SetStart { .. }
            | Action::UpdateIdentity(_)
            | Action::SetFinalizer { .. }
    ) || (matches!(action, Action::Promote { .. }) && error.is_some());
    if is_quiet {
        return;
    }
    let (kind, note) = match error {
        None => (EventType::Normal, decision.why.clone()),
        Some(error) => (EventType::Warning, format!("{}: {error:#}", decision.why)),
    };
    let event = Event {
        type_: kind,
        reason: action_name(action).to_owned(),
        // Kubernetes refuses notes of more than a kilobyte.
        note: Some(note.chars().take(1000).collect()),
        action: action_name(action).to_owned(),
        secondary: None,
    };
    if let Err(error) = context
        .recorder
        .publish(&event, &object.object_ref(&()))
        .await
    {
        tracing::warn!(%error, "an Event was not written");
    }
}

fn action_name(action: &Action) -> &'static str {
    match action {
        Action::Wait(_) => "Wait",
        Action::CreateIdentity { .. } => "CreateIdentity",
        Action::AdoptIdentity { .. } => "AdoptIdentity",
        Action::UpdateIdentity(_) => "UpdateIdentity",
        Action::ApplyStaticObjects => "ApplyStaticObjects",
        Action::CreateMember { .. } => "CreateMember",
        Action::SetStart { .. } => "SetStart",
        Action::Roll { .. } => "Roll",
        Action::ForceNewCluster { .. } => "ForceNewCluster",
        Action::Scale { .. } => "Scale",
        Action::Fence { .. } => "Fence",
        Action::DeleteMember { .. } => "DeleteMember",
        Action::RetireClaim { .. } => "RetireClaim",
        Action::GrowClaim { .. } => "GrowClaim",
        Action::AddLearner { .. } => "AddLearner",
        Action::Promote { .. } => "Promote",
        Action::MoveLeader { .. } => "MoveLeader",
        Action::RemoveMember { .. } => "RemoveMember",
        Action::UpdatePeerUrl { .. } => "UpdatePeerUrl",
        Action::CompactForSpace { .. } => "CompactForSpace",
        Action::Defragment { .. } => "Defragment",
        Action::Disarm(_) => "Disarm",
        Action::EnableAuth => "EnableAuth",
        Action::DisableAuth => "DisableAuth",
        Action::Task { .. } => "Task",
        Action::SetFinalizer { .. } => "SetFinalizer",
        Action::DeleteData => "DeleteData",
    }
}

/// What a status has that the one before it had not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum News {
    Nothing,
    /// Sizes and revisions, which change with every write of a client. Writing them each time would load the API
    /// server and wake this controller again.
    Numbers,
    Matters,
}

impl News {
    fn between(previous: &ClusterStatus, current: &ClusterStatus) -> Self {
        let without_numbers = |status: &ClusterStatus| {
            let mut status = status.clone();
            status.capacity = None;
            for member in &mut status.members {
                member.revision = None;
                member.raft_lag = None;
                member.db_size_bytes = None;
                member.db_in_use_bytes = None;
            }
            status
        };
        if without_numbers(previous) != without_numbers(current) {
            Self::Matters
        } else if previous != current {
            Self::Numbers
        } else {
            Self::Nothing
        }
    }
}

/// Was the status last written long enough ago? The object itself knows, so that an operator that has just started
/// does, too.
fn numbers_are_due(metadata: &ObjectMeta, now: Timestamp) -> bool {
    let written = metadata
        .managed_fields
        .iter()
        .flatten()
        .find(|entry| {
            entry.manager.as_deref() == Some(names::FIELD_MANAGER)
                && entry.subresource.as_deref() == Some("status")
        })
        .and_then(|entry| entry.time.as_ref());
    // The API server's clock may be ahead of ours.
    written.is_none_or(|written| now.duration_since(written.0) >= STATUS_INTERVAL)
}

/// Writes a status as a whole: what is not in it any more goes away.
pub(crate) async fn write_status<K, S>(
    api: &Api<K>,
    name: &str,
    kind: &str,
    status: &S,
) -> kube::Result<()>
where
    K: Clone + DeserializeOwned + Debug,
    S: Serialize,
{
    let body = json!({
        "apiVersion": format!("{}/{}", metastore_operator_api::GROUP, metastore_operator_api::VERSION),
        "kind": kind,
        "metadata": {"name": name},
        "status": status,
    });
    let parameters = PatchParams::apply(names::FIELD_MANAGER).force();
    match api
        .patch_status(name, &parameters, &Patch::Apply(&body))
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

/// What the API server said when it answered "forbidden".
fn refusal_of(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(kube::Error::Api(status)) if status.code == 403 => Some(status.message.clone()),
        _ => None,
    })
}

/// Was this condition written by [`refused`]?
fn is_refusal(condition: &Condition) -> bool {
    condition.type_ == conditions::ACCEPTED
        && [reasons::FORBIDDEN_BY_RBAC, reasons::INVALID_SPEC].contains(&condition.reason.as_str())
        && condition.message.starts_with(REFUSAL)
}

/// The condition Accepted after a refusal. Not every "forbidden" is about roles: admission says it too, such
/// as about a volume whose storage class does not let it grow.
fn refused(message: String, generation: i64, previous: &[Condition], now: Timestamp) -> Condition {
    let is_about_roles = message.contains("User ") && message.contains(" cannot ");
    let reason = if is_about_roles {
        reasons::FORBIDDEN_BY_RBAC
    } else {
        reasons::INVALID_SPEC
    };
    metastore_operator_core::condition(
        conditions::ACCEPTED,
        Some(false),
        reason,
        format!("{REFUSAL}{message}"),
        generation,
        previous,
        now,
    )
}

fn set_condition(status: &mut ClusterStatus, condition: Condition) {
    for old in &mut status.conditions {
        if old.type_ == condition.type_ {
            *old = condition.clone();
        }
    }
}

#[cfg(test)]
mod tests;
