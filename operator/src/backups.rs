//! Controllers of backups, schedules and finished tasks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, DeleteParams, ListParams, PropagationPolicy};
use kube::runtime::controller::Action as Requeue;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, watcher};
use kube::{Client, ResourceExt};
use metastore_operator_api::conditions::{self, reasons};
use metastore_operator_api::{
    BackupStatus, ConcurrencyPolicy, JobPhase, MemberRole, MemberState, MetaStoreBackup,
    MetaStoreBackupSchedule, MetaStoreCluster, MetaStoreTask, RetainPolicy, ScheduleStatus, names,
};
use metastore_operator_core::condition;
use metastore_operator_core::retention::{KeptBackup, expired};
use metastore_operator_core::schedule::Schedule;
use metastore_operator_resources::{Cluster, JobOwner, backup_job, delete_job, verify_job};
use serde_json::json;

use crate::agent::{BackupReport, VerifyReport};
use crate::kubernetes::{apply, ignore_missing, merge};
use crate::observe::uid_of;
use crate::program::{all_backups, children, jobs, schedules, scoped};
use crate::reconcile::{Context, PassError, after_error, write_status};

/// While a Job runs its end wakes us; this is for an event that got lost.
const JOB_INTERVAL: Duration = Duration::from_secs(15);
/// While the cluster is not there or not healthy.
const WAIT_INTERVAL: Duration = Duration::from_secs(10);
/// The artifact of a deleted backup is given up after this many seconds: a store that is gone must not keep
/// a namespace from going away.
const DELETE_PATIENCE_SECONDS: i64 = 600;
/// The finalizer of backups whose artifact is deleted with them.
const ARTIFACT_FINALIZER: &str = "metastore.io/delete-artifact";

pub(crate) fn backups_controller(
    context: &Arc<Context>,
    client: &Client,
    namespace: Option<&str>,
) -> BoxFuture<'static, ()> {
    Controller::new(all_backups(client, namespace), watcher::Config::default())
        .watches(jobs(client, namespace), children(), |job| {
            let owner = job.owner_references().first()?.name.clone();
            Some(ObjectRef::new(&owner).within(&job.namespace()?))
        })
        .shutdown_on_signal()
        .run(reconcile_backup, after_error, context.clone())
        .for_each(|_| async {})
        .boxed()
}

pub(crate) fn schedules_controller(
    context: &Arc<Context>,
    client: &Client,
    namespace: Option<&str>,
) -> BoxFuture<'static, ()> {
    Controller::new(schedules(client, namespace), watcher::Config::default())
        .watches(
            all_backups(client, namespace),
            watcher::Config::default(),
            |backup| {
                let name = backup.labels().get(names::SCHEDULE_LABEL)?.clone();
                Some(ObjectRef::new(&name).within(&backup.namespace()?))
            },
        )
        .shutdown_on_signal()
        .run(reconcile_schedule, after_error, context.clone())
        .for_each(|_| async {})
        .boxed()
}

/// Deletes tasks that ended long enough ago.
pub(crate) fn tasks_controller(
    context: &Arc<Context>,
    client: &Client,
    namespace: Option<&str>,
) -> BoxFuture<'static, ()> {
    let api: Api<MetaStoreTask> = scoped(client, namespace);
    Controller::new(api, watcher::Config::default())
        .shutdown_on_signal()
        .run(reconcile_task, after_error, context.clone())
        .for_each(|_| async {})
        .boxed()
}

async fn reconcile_task(
    task: Arc<MetaStoreTask>,
    context: Arc<Context>,
) -> Result<Requeue, PassError> {
    if !context.leadership.is_held() {
        return Ok(Requeue::requeue(WAIT_INTERVAL));
    }
    let namespace = task.namespace().unwrap_or_default();
    let api: Api<MetaStoreTask> = Api::namespaced(context.client.clone(), &namespace);
    let clusters: Api<MetaStoreCluster> = Api::namespaced(context.client.clone(), &namespace);
    let status = task.status.clone().unwrap_or_default();
    let Some(finished) = &status.finished_at else {
        let is_orphan = clusters
            .get_opt(&task.spec.cluster_ref.name)
            .await
            .map_err(anyhow::Error::from)?
            .is_none();
        if is_orphan && status.phase == JobPhase::Pending {
            let mut status = status;
            status.result = Some(format!(
                "waiting: there is no MetaStoreCluster {}",
                task.spec.cluster_ref.name
            ));
            if task.status.as_ref() != Some(&status) {
                write_status(&api, &task.name_any(), "MetaStoreTask", &status)
                    .await
                    .map_err(anyhow::Error::from)?;
            }
        }
        return Ok(Requeue::requeue(Duration::from_secs(60)));
    };
    let age = Timestamp::now().duration_since(finished.0).as_secs();
    let left = task.spec.ttl_seconds_after_finished - age;
    if left > 0 {
        return Ok(Requeue::requeue(Duration::from_secs(
            u64::try_from(left).unwrap_or(1),
        )));
    }
    ignore_missing(api.delete(&task.name_any(), &DeleteParams::default()).await)
        .map_err(anyhow::Error::from)?;
    Ok(Requeue::await_change())
}

// ---------------------------------------------------------------------------------------------
// Backups

async fn reconcile_backup(
    backup: Arc<MetaStoreBackup>,
    context: Arc<Context>,
) -> Result<Requeue, PassError> {
    if !context.leadership.is_held() {
        return Ok(Requeue::requeue(WAIT_INTERVAL));
    }
    let pass = BackupPass {
        api: Api::namespaced(
            context.client.clone(),
            &backup.namespace().unwrap_or_default(),
        ),
        name: backup.name_any(),
        namespace: backup.namespace().unwrap_or_default(),
        uid: uid_of(&*backup),
        backup: &backup,
        context: &context,
        now: Timestamp::now(),
    };
    Ok(pass.run().await?)
}

struct BackupPass<'a> {
    backup: &'a MetaStoreBackup,
    context: &'a Context,
    api: Api<MetaStoreBackup>,
    name: String,
    namespace: String,
    uid: String,
    now: Timestamp,
}

/// How a Job stands.
enum JobOutcome {
    Missing,
    Running,
    Succeeded(String),
    Failed(String),
}

impl BackupPass<'_> {
    fn owner(&self) -> JobOwner<'_> {
        JobOwner {
            name: &self.name,
            uid: &self.uid,
            namespace: &self.namespace,
        }
    }

    async fn run(&self) -> anyhow::Result<Requeue> {
        if self.backup.metadata.deletion_timestamp.is_some() {
            return self.delete_artifact().await;
        }
        let wants_finalizer = self.backup.spec.deletion_policy == RetainPolicy::Delete;
        if self.has_finalizer() != wants_finalizer {
            self.set_finalizer(wants_finalizer).await?;
        }
        let status = self.backup.status.clone().unwrap_or_default();
        match status.phase {
            JobPhase::Pending => self.begin(status).await,
            JobPhase::Running => self.watch_backup(status).await,
            JobPhase::Verifying => self.watch_verification(status).await,
            JobPhase::Succeeded | JobPhase::Failed | JobPhase::Rejected => {
                Ok(Requeue::await_change())
            }
        }
    }

    async fn write(&self, mut status: BackupStatus) -> anyhow::Result<()> {
        status.observed_generation = self.backup.metadata.generation;
        if self.backup.status.as_ref() == Some(&status) {
            return Ok(());
        }
        write_status(&self.api, &self.name, "MetaStoreBackup", &status).await?;
        Ok(())
    }

    fn set(
        &self,
        status: &mut BackupStatus,
        kind: &str,
        is_so: bool,
        reason: &str,
        message: String,
    ) {
        let new = condition(
            kind,
            Some(is_so),
            reason,
            message,
            self.backup.metadata.generation.unwrap_or(0),
            &status.conditions,
            self.now,
        );
        status
            .conditions
            .retain(|old: &Condition| old.type_ != kind);
        status.conditions.push(new);
    }

    async fn begin(&self, mut status: BackupStatus) -> anyhow::Result<Requeue> {
        let spec = &self.backup.spec;
        let clusters: Api<MetaStoreCluster> =
            Api::namespaced(self.context.client.clone(), &self.namespace);
        let Some(object) = clusters.get_opt(&spec.cluster_ref.name).await? else {
            let message = format!("there is no MetaStoreCluster {}", spec.cluster_ref.name);
            self.set(
                &mut status,
                conditions::COMPLETE,
                false,
                reasons::UNKNOWN,
                message,
            );
            self.write(status).await?;
            return Ok(Requeue::requeue(WAIT_INTERVAL));
        };
        let seen = object.status.clone().unwrap_or_default();
        // A follower where there is one: the leader has enough to do.
        let member = seen
            .members
            .iter()
            .filter(|member| member.state == MemberState::Ready)
            .min_by_key(|member| (member.role == MemberRole::Leader, member.name.clone()));
        let (Some(member), Some(cluster_id)) = (member, seen.cluster_id.clone()) else {
            let message = format!("no member of {} serves", spec.cluster_ref.name);
            self.set(
                &mut status,
                conditions::COMPLETE,
                false,
                reasons::QUORUM_LOST,
                message,
            );
            self.write(status).await?;
            return Ok(Requeue::requeue(WAIT_INTERVAL));
        };
        // The cluster's id is part of the path: a cluster of the same name never overwrites another's.
        let artifact = format!(
            "{}/{}/{cluster_id}/{}.db",
            self.namespace, spec.cluster_ref.name, self.name
        );
        let uid = uid_of(&object);
        let cluster = Cluster {
            name: &spec.cluster_ref.name,
            namespace: &self.namespace,
            uid: &uid,
            spec: &object.spec,
            images: &self.context.images,
        };
        // An operator that was killed a moment ago may have made it, to read from another member; no Job can be
        // changed.
        if matches!(self.job_outcome("backup").await?, JobOutcome::Missing) {
            let job = backup_job(
                &cluster,
                &self.owner(),
                &spec.store,
                &artifact,
                &member.name,
            );
            apply(&self.context.client, &job).await?;
        }
        status.phase = JobPhase::Running;
        status.cluster_id = Some(cluster_id);
        status.server_version = member.version.clone();
        status.started_at = Some(Time(self.now));
        self.set(
            &mut status,
            conditions::COMPLETE,
            false,
            reasons::UNKNOWN,
            format!("reading from {}", member.name),
        );
        self.write(status).await?;
        Ok(Requeue::requeue(JOB_INTERVAL))
    }

    async fn watch_backup(&self, mut status: BackupStatus) -> anyhow::Result<Requeue> {
        match self.job_outcome("backup").await? {
            JobOutcome::Running => return Ok(Requeue::requeue(JOB_INTERVAL)),
            JobOutcome::Missing => {
                // Deleted by hand, or never created because of a crash: from the beginning.
                status.phase = JobPhase::Pending;
            }
            JobOutcome::Failed(message) => {
                status.phase = JobPhase::Failed;
                self.set(
                    &mut status,
                    conditions::COMPLETE,
                    false,
                    reasons::BACKUP_FAILED,
                    message,
                );
            }
            JobOutcome::Succeeded(text) => {
                let report: BackupReport = serde_json::from_str(&text)
                    .map_err(|error| anyhow!("the Job's report cannot be read: {error}: {text}"))?;
                status.artifact = Some(report.artifact.clone());
                status.size_bytes = i64::try_from(report.size_bytes).ok();
                status.sha256 = Some(report.sha256);
                status.revision = Some(report.revision);
                status.hash_kv = report.hash_kv;
                status.finished_at = Some(Time(self.now));
                let message = format!("{} holds revision {}", report.artifact, report.revision);
                self.set(
                    &mut status,
                    conditions::COMPLETE,
                    true,
                    reasons::AS_EXPECTED,
                    message,
                );
                if self.backup.spec.verify {
                    let job = verify_job(
                        &self.owner(),
                        &self.backup.spec.store,
                        &report.artifact,
                        &self.context.images.operator_image,
                    );
                    apply(&self.context.client, &job).await?;
                    status.phase = JobPhase::Verifying;
                } else {
                    status.phase = JobPhase::Succeeded;
                }
            }
        }
        self.write(status).await?;
        Ok(Requeue::requeue(JOB_INTERVAL))
    }

    async fn watch_verification(&self, mut status: BackupStatus) -> anyhow::Result<Requeue> {
        match self.job_outcome("verify").await? {
            JobOutcome::Running => return Ok(Requeue::requeue(JOB_INTERVAL)),
            JobOutcome::Missing => {
                let artifact = status.artifact.clone().unwrap_or_default();
                let image = &self.context.images.operator_image;
                let job = verify_job(&self.owner(), &self.backup.spec.store, &artifact, image);
                apply(&self.context.client, &job).await?;
                return Ok(Requeue::requeue(JOB_INTERVAL));
            }
            JobOutcome::Failed(message) => {
                status.phase = JobPhase::Failed;
                let reason = reasons::VERIFICATION_FAILED;
                self.set(&mut status, conditions::VERIFIED, false, reason, message);
            }
            JobOutcome::Succeeded(text) => {
                let report: VerifyReport = serde_json::from_str(&text)
                    .map_err(|error| anyhow!("the Job's report cannot be read: {error}: {text}"))?;
                status.phase = JobPhase::Succeeded;
                status.restore_seconds = Some(report.restore_seconds);
                self.set(
                    &mut status,
                    conditions::VERIFIED,
                    true,
                    reasons::AS_EXPECTED,
                    report.message,
                );
            }
        }
        self.write(status).await?;
        Ok(Requeue::await_change())
    }

    /// How the Job stands, with the message that its last Pod left.
    async fn job_outcome(&self, purpose: &str) -> anyhow::Result<JobOutcome> {
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), &self.namespace);
        let name = format!("{}-{purpose}", self.name);
        let Some(job) = api.get_opt(&name).await? else {
            return Ok(JobOutcome::Missing);
        };
        let mut owners = job.owner_references().iter();
        if !owners.any(|owner| owner.uid == self.uid) {
            return Err(anyhow!(
                "the Job {name} is that of an earlier backup of this name: waiting until Kubernetes has removed it"
            ));
        }
        let status = job.status.unwrap_or_default();
        let is_so = |kind: &str| {
            status
                .conditions
                .iter()
                .flatten()
                .any(|condition| condition.type_ == kind && condition.status == "True")
        };
        if is_so("Complete") || status.succeeded.unwrap_or(0) > 0 {
            return Ok(JobOutcome::Succeeded(self.last_message(&name, true).await?));
        }
        if is_so("Failed") {
            return Ok(JobOutcome::Failed(self.last_message(&name, false).await?));
        }
        Ok(JobOutcome::Running)
    }

    async fn last_message(&self, job: &str, of_success: bool) -> anyhow::Result<String> {
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &self.namespace);
        let selector = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job}"));
        let mut messages: Vec<_> = api
            .list(&selector)
            .await?
            .into_iter()
            .filter_map(|pod| {
                let status = pod.status?;
                let container = status.container_statuses?.into_iter().next()?;
                let ended = container.state?.terminated?;
                let wanted = (ended.exit_code == 0) == of_success;
                wanted.then_some((ended.finished_at.map(|time| time.0), ended.message?))
            })
            .collect();
        messages.sort();
        let message = messages.pop().map(|(_, message)| message);
        Ok(message.unwrap_or_else(|| format!("the Job {job} left no message; see its Pods")))
    }

    fn has_finalizer(&self) -> bool {
        self.backup
            .finalizers()
            .iter()
            .any(|name| name == ARTIFACT_FINALIZER)
    }

    async fn set_finalizer(&self, present: bool) -> anyhow::Result<()> {
        let mut all: Vec<_> = self
            .backup
            .finalizers()
            .iter()
            .filter(|name| *name != ARTIFACT_FINALIZER)
            .cloned()
            .collect();
        if present {
            all.push(ARTIFACT_FINALIZER.to_owned());
        }
        let change = json!({"metadata": {
            "finalizers": all,
            "resourceVersion": self.backup.metadata.resource_version,
        }});
        merge(&self.api, &self.name, &change).await?;
        Ok(())
    }

    async fn delete_artifact(&self) -> anyhow::Result<Requeue> {
        if !self.has_finalizer() {
            return Ok(Requeue::await_change());
        }
        let artifact = self
            .backup
            .status
            .as_ref()
            .and_then(|status| status.artifact.clone());
        let since = self
            .backup
            .metadata
            .deletion_timestamp
            .as_ref()
            .map_or(self.now, |t| t.0);
        let is_late = self.now.duration_since(since).as_secs() > DELETE_PATIENCE_SECONDS;
        if let Some(artifact) = artifact.filter(|_| !is_late) {
            match self.job_outcome("delete").await? {
                JobOutcome::Missing => {
                    let image = &self.context.images.operator_image;
                    let job = delete_job(&self.owner(), &self.backup.spec.store, &artifact, image);
                    apply(&self.context.client, &job).await?;
                    return Ok(Requeue::requeue(JOB_INTERVAL));
                }
                JobOutcome::Running => return Ok(Requeue::requeue(JOB_INTERVAL)),
                JobOutcome::Failed(message) => {
                    tracing::warn!(backup = self.name, message, "the artifact was not deleted");
                    return Ok(Requeue::requeue(WAIT_INTERVAL));
                }
                JobOutcome::Succeeded(_) => {}
            }
        }
        self.set_finalizer(false).await?;
        Ok(Requeue::await_change())
    }
}

// ---------------------------------------------------------------------------------------------
// Schedules

async fn reconcile_schedule(
    schedule: Arc<MetaStoreBackupSchedule>,
    context: Arc<Context>,
) -> Result<Requeue, PassError> {
    if !context.leadership.is_held() {
        return Ok(Requeue::requeue(WAIT_INTERVAL));
    }
    Ok(schedule_pass(&schedule, &context).await?)
}

async fn schedule_pass(
    schedule: &MetaStoreBackupSchedule,
    context: &Context,
) -> anyhow::Result<Requeue> {
    if schedule.metadata.deletion_timestamp.is_some() {
        return Ok(Requeue::await_change());
    }
    let now = Timestamp::now();
    let name = schedule.name_any();
    let namespace = schedule.namespace().unwrap_or_default();
    let api: Api<MetaStoreBackupSchedule> = Api::namespaced(context.client.clone(), &namespace);
    let backups: Api<MetaStoreBackup> = Api::namespaced(context.client.clone(), &namespace);
    let spec = &schedule.spec;
    let mut status = schedule.status.clone().unwrap_or_default();
    let generation = schedule.metadata.generation.unwrap_or(0);
    status.observed_generation = Some(generation);
    let timetable = match Schedule::parse(&spec.schedule, &spec.time_zone) {
        Ok(timetable) => timetable,
        Err(message) => {
            let reason = reasons::INVALID_SPEC;
            let ready = condition(
                conditions::READY,
                Some(false),
                reason,
                message,
                generation,
                &status.conditions,
                now,
            );
            status.conditions = vec![ready];
            status.next_schedule_time = None;
            write_schedule(&api, &name, schedule, &status).await?;
            return Ok(Requeue::await_change());
        }
    };
    let selector = ListParams::default().labels(&format!("{}={name}", names::SCHEDULE_LABEL));
    let own = backups.list(&selector).await?.items;
    let is_busy = own.iter().any(|backup| {
        let phase = backup
            .status
            .as_ref()
            .map(|status| status.phase)
            .unwrap_or_default();
        matches!(
            phase,
            JobPhase::Pending | JobPhase::Running | JobPhase::Verifying
        )
    });
    let run_now = schedule
        .annotations()
        .get(names::RUN_NOW_ANNOTATION)
        .cloned();
    let mut is_asked = run_now.is_some() && run_now != status.last_run_now;
    // An operator that was killed a moment ago may have made it.
    let is_of_wish = |backup: &MetaStoreBackup| {
        backup.annotations().get(names::RUN_NOW_ANNOTATION) == run_now.as_ref()
    };
    if is_asked && own.iter().any(is_of_wish) {
        is_asked = false;
        status.last_run_now.clone_from(&run_now);
    }
    let base = status
        .last_schedule_time
        .as_ref()
        .or(schedule.metadata.creation_timestamp.as_ref())
        .map_or(now, |time| time.0);
    let is_first = spec.immediate && status.last_schedule_time.is_none() && own.is_empty();
    let due = timetable.next_after(base).filter(|due| *due <= now);
    let may_run = !is_busy || spec.concurrency_policy == ConcurrencyPolicy::Allow;
    let wants = is_asked || (!spec.suspend && (is_first || due.is_some()));
    if wants && may_run {
        // The name is the minute that was due, so that a crash makes no second one.
        let moment = if is_asked { now } else { due.unwrap_or(now) };
        let backup_name = format!("{name}-{}", moment.strftime("%Y%m%d%H%M%S"));
        let mut object = json!({
            "apiVersion": "metastore.io/v1alpha1",
            "kind": "MetaStoreBackup",
            "metadata": {
                "name": backup_name,
                "namespace": namespace,
                "labels": {
                    (names::SCHEDULE_LABEL): name,
                    (names::CLUSTER_LABEL): spec.cluster_ref.name,
                },
            },
            "spec": {
                "clusterRef": spec.cluster_ref,
                "store": spec.store,
                "verify": spec.verify,
                // Retention decides about the artifact.
                "deletionPolicy": "Delete",
            },
        });
        if is_asked {
            object["metadata"]["annotations"] = json!({(names::RUN_NOW_ANNOTATION): run_now});
        }
        apply(&context.client, &object).await?;
        status.last_run_now = run_now;
    }
    if wants {
        // A time that was skipped because the last backup still ran is over, too.
        status.last_schedule_time = Some(Time(now));
    }
    status.next_schedule_time = if spec.suspend {
        None
    } else {
        timetable.next_after(now).map(Time)
    };
    status.last_successful = newest_complete(&own);
    let (reason, message) = if spec.suspend {
        (reasons::SPEC, "suspended".to_owned())
    } else {
        (reasons::AS_EXPECTED, "backups are made".to_owned())
    };
    let ready = condition(
        conditions::READY,
        Some(!spec.suspend),
        reason,
        message,
        generation,
        &status.conditions,
        now,
    );
    status.conditions = vec![ready];
    write_schedule(&api, &name, schedule, &status).await?;
    prune(&backups, &own, spec, context).await?;
    let until_next = status
        .next_schedule_time
        .as_ref()
        .map_or(Duration::from_secs(300), |next| {
            next.0.duration_since(now).unsigned_abs() + Duration::from_millis(500)
        });
    Ok(Requeue::requeue(until_next.min(Duration::from_secs(300))))
}

async fn write_schedule(
    api: &Api<MetaStoreBackupSchedule>,
    name: &str,
    schedule: &MetaStoreBackupSchedule,
    status: &ScheduleStatus,
) -> kube::Result<()> {
    // Writing what is there already would wake this controller for nothing.
    if schedule.status.as_ref() == Some(status) {
        return Ok(());
    }
    write_status(api, name, "MetaStoreBackupSchedule", status).await
}

fn newest_complete(backups: &[MetaStoreBackup]) -> Option<String> {
    backups
        .iter()
        .filter(|backup| is_complete(backup))
        .max_by_key(|backup| made_at(backup))
        .map(ResourceExt::name_any)
}

fn is_complete(backup: &MetaStoreBackup) -> bool {
    backup.status.as_ref().is_some_and(|status| {
        let is_so = |kind: &str, wanted: &str| {
            status
                .conditions
                .iter()
                .any(|condition| condition.type_ == kind && condition.status == wanted)
        };
        // A backup whose restore failed is none.
        is_so(conditions::COMPLETE, "True") && !is_so(conditions::VERIFIED, "False")
    })
}

fn made_at(backup: &MetaStoreBackup) -> Timestamp {
    let finished = backup
        .status
        .as_ref()
        .and_then(|status| status.finished_at.as_ref());
    finished
        .or(backup.metadata.creation_timestamp.as_ref())
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

async fn prune(
    api: &Api<MetaStoreBackup>,
    own: &[MetaStoreBackup],
    spec: &metastore_operator_api::ScheduleSpec,
    context: &Context,
) -> anyhow::Result<()> {
    let kept: Vec<_> = own
        .iter()
        .filter(|backup| {
            let phase = backup
                .status
                .as_ref()
                .map(|status| status.phase)
                .unwrap_or_default();
            matches!(phase, JobPhase::Succeeded | JobPhase::Failed)
        })
        .map(|backup| KeptBackup {
            name: backup.name_any(),
            made_at: made_at(backup),
            is_complete: is_complete(backup),
        })
        .collect();
    let time_zone = TimeZone::get(&spec.time_zone).unwrap_or(TimeZone::UTC);
    for name in expired(&kept, &spec.retention, &time_zone) {
        if !context.leadership.is_held() {
            return Ok(());
        }
        tracing::info!(backup = name, "no rule keeps this backup");
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        ignore_missing(api.delete(&name, &parameters).await)?;
    }
    Ok(())
}
