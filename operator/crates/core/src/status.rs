//! The status of a cluster, from what is seen. It is written whatever becomes of the action.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use metastore_operator_api::conditions::{self, reasons};
use metastore_operator_api::{
    BackupSummary, CapacityStatus, CertificatesStatus, ClusterStatus, EndpointsStatus, MemberRole,
    MemberState, MemberStatus, OperationStatus, Phase, names,
};

use crate::classify::{Class, is_healthy, listed_of};
use crate::decide::{
    Context, Step, UNHEALTHY_AFTER, UNREACHABLE_TEXT, is_older, leader_id, why_slow,
};
use crate::observation::{AlarmKind, MemberObservation, MemberPhase, Observation, PodObservation};

/// A certificate that ends sooner should have been renewed long ago.
const EXPIRY_WARNING_HOURS: i64 = 7 * 24;
/// Share of the quota above which people are warned.
const QUOTA_NEAR_PERCENT: i64 = 90;
/// A kubelet says within seconds that it has a Pod, or that the Pod has ended.
const NODE_REACTION: Duration = Duration::from_secs(30);
/// How late a backup may be before people are told.
const BACKUP_GRACE_HOURS: i64 = 1;

pub(crate) fn status(context: &Context<'_>, step: &Step) -> ClusterStatus {
    let seen = context.seen;
    let members: Vec<_> = seen
        .members
        .iter()
        .map(|m| member_status(context, m))
        .collect();
    let ready = members
        .iter()
        .filter(|m| matches!(m.state, MemberState::Ready | MemberState::Slow))
        .count();
    let list = seen.list.as_deref();
    let learners = list.map_or(0, |list| list.iter().filter(|m| m.is_learner).count());
    let voters = list.map_or(0, |list| list.len() - learners);
    let leader = leader_id(seen);
    let mut status = ClusterStatus {
        observed_generation: Some(seen.generation),
        phase: Phase::Pending,
        ready: format!("{ready}/{}", context.spec.replicas),
        cluster_id: seen
            .identity
            .as_ref()
            .and_then(|identity| identity.cluster_id)
            .map(|id| format!("{id:x}")),
        leader: seen
            .members
            .iter()
            .find(|m| m.recorded_id.is_some() && m.recorded_id == leader)
            .map(|m| m.name.clone()),
        version: oldest_version(seen),
        storage_version: seen
            .members
            .iter()
            .filter_map(|m| m.probe.answer())
            .map(|answer| answer.storage_version.clone())
            .find(|version| !version.is_empty()),
        replicas: to_i32(seen.members.len()),
        ready_replicas: to_i32(ready),
        voters: to_i32(voters),
        learners: to_i32(learners),
        selector: format!(
            "{}={},{}={}",
            names::CLUSTER_LABEL,
            seen.cluster,
            names::MANAGED_BY_LABEL,
            names::MANAGED_BY
        ),
        members,
        operation: None,
        capacity: capacity(seen),
        alarms: alarms(seen),
        backup: backup(seen),
        certificates: seen.certificates.is_enabled.then(|| CertificatesStatus {
            next_expiry: seen.certificates.next_expiry.map(Time),
        }),
        endpoints: Some(endpoints(context)),
        conditions: Vec::new(),
    };
    status.operation = operation(context, step);
    status.conditions = all_conditions(context, step, &status);
    status.phase = phase(context, step, &status);
    status
}

fn to_i32(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn member_status(context: &Context<'_>, member: &MemberObservation) -> MemberStatus {
    let seen = context.seen;
    let answer = member.probe.answer();
    let listed = listed_of(seen, member);
    let (state, message) = member_state(context, member);
    let previous = seen.previous.members.iter().find(|m| m.name == member.name);
    let since = previous
        .filter(|previous| previous.state == state)
        .and_then(|previous| previous.since.clone())
        // A clock that went back must not make a failure look old, nor keep it from growing old.
        .filter(|since| since.0 <= context.now)
        .or(Some(Time(to_seconds(context.now))));
    let role = match (answer, listed) {
        (Some(answer), _) if answer.is_learner => MemberRole::Learner,
        (Some(answer), _) if answer.leader_id == answer.member_id => MemberRole::Leader,
        (Some(_), Some(listed)) if !listed.is_learner => MemberRole::Follower,
        (None, Some(listed)) if listed.is_learner => MemberRole::Learner,
        _ => MemberRole::Unknown,
    };
    MemberStatus {
        name: member.name.clone(),
        id: member
            .recorded_id
            .or(answer.map(|answer| answer.member_id))
            .map(|id| format!("{id:x}")),
        role,
        state,
        since,
        version: answer.map(|answer| answer.version.clone()),
        node: member.pod.as_ref().and_then(|pod| pod.node.clone()),
        revision: answer.map(|answer| answer.revision),
        raft_lag: answer.map(|a| a.raft_index.saturating_sub(a.raft_applied_index)),
        db_size_bytes: answer.map(|answer| answer.db_size_bytes),
        db_in_use_bytes: answer.map(|answer| answer.db_in_use_bytes),
        message,
    }
}

fn member_state(
    context: &Context<'_>,
    member: &MemberObservation,
) -> (MemberState, Option<String>) {
    let seen = context.seen;
    if member.is_fenced {
        return (
            MemberState::Fenced,
            Some("stopped until it is replaced".into()),
        );
    }
    if member.wanted_replicas == 0 {
        return (MemberState::Stopped, None);
    }
    let listed = listed_of(seen, member);
    if listed.is_some_and(|listed| is_healthy(seen, listed)) {
        return match why_slow(seen, member) {
            Some(why) => (MemberState::Slow, Some(why.into())),
            None => (MemberState::Ready, None),
        };
    }
    let is_unattended = |pod: &PodObservation| {
        pod.unattended_since
            .is_some_and(|since| is_older(since, NODE_REACTION, context.now))
    };
    let message = match (&member.probe, &member.pod) {
        (_, Some(pod)) if is_unattended(pod) => Some(format!(
            "its node {} does not react",
            pod.node.as_deref().unwrap_or("(unknown)")
        )),
        (_, Some(pod)) if pod.waiting_reason.is_some() => pod.waiting_reason.clone(),
        (crate::Probe::Failed(why), _) => Some(why.clone()),
        (_, None) => Some("it has no Pod".into()),
        (crate::Probe::Answered(answer), _) if answer.leader_id == 0 => {
            Some("it knows no leader".into())
        }
        (_, Some(pod)) if !pod.is_ready => Some("its Pod is not ready".into()),
        _ => None,
    };
    let is_new = member.phase != MemberPhase::Running || listed.is_some_and(|m| m.is_learner);
    if is_new {
        (MemberState::Starting, message)
    } else {
        (MemberState::Unhealthy, message)
    }
}

fn oldest_version(seen: &Observation) -> Option<String> {
    seen.members
        .iter()
        .filter_map(|m| m.probe.answer())
        .map(|answer| answer.version.clone())
        .filter(|version| !version.is_empty())
        .min_by_key(|version| crate::Version::parse(version))
}

fn capacity(seen: &Observation) -> Option<CapacityStatus> {
    let largest = seen
        .members
        .iter()
        .filter_map(|m| m.probe.answer())
        .map(|answer| answer.db_size_bytes)
        .max()?;
    let quota = i64::try_from(seen.quota_bytes).unwrap_or(i64::MAX);
    Some(CapacityStatus {
        quota_bytes: quota,
        db_size_max: format!("{}Mi", (largest + (1 << 20) - 1) >> 20),
        quota_used_percent: if quota > 0 {
            largest.saturating_mul(100) / quota
        } else {
            0
        },
    })
}

fn alarms(seen: &Observation) -> Vec<String> {
    seen.alarms
        .iter()
        .map(|alarm| {
            let kind = match alarm.kind {
                AlarmKind::Nospace => "NOSPACE",
                AlarmKind::Corrupt => "CORRUPT",
            };
            format!("{kind} on {:x}", alarm.member_id)
        })
        .collect()
}

fn backup(seen: &Observation) -> Option<BackupSummary> {
    let (name, revision, made_at) = seen.backups.last_complete.clone()?;
    Some(BackupSummary {
        last_successful: Some(name),
        last_revision: Some(revision),
        recovery_point: Some(Time(made_at)),
        last_verified: seen.backups.last_verified.clone(),
    })
}

fn endpoints(context: &Context<'_>) -> EndpointsStatus {
    let seen = context.seen;
    let scheme = context.spec.tls.client.mode.schemes()[0];
    let address = |service: &str| {
        let domain = match context.spec.cluster_domain.as_str() {
            "" => String::new(),
            domain => format!(".{domain}"),
        };
        format!(
            "{scheme}://{service}.{}.svc{domain}:{}",
            seen.namespace,
            names::CLIENT_PORT
        )
    };
    EndpointsStatus {
        client: address(&seen.cluster),
        read: address(&names::read_service(&seen.cluster)),
    }
}

fn operation(context: &Context<'_>, step: &Step) -> Option<OperationStatus> {
    let (operation, member) = step.operation.as_ref()?;
    let previous = context.seen.previous.operation.as_ref();
    let started_at = previous
        .filter(|previous| previous.operation == *operation && previous.member == *member)
        .and_then(|previous| previous.started_at.clone())
        .or(Some(Time(to_seconds(context.now))));
    Some(OperationStatus {
        operation: (*operation).to_owned(),
        step: step.why.clone(),
        member: member.clone(),
        started_at,
    })
}

// ---------------------------------------------------------------------------------------------
// Conditions

/// A condition before its times are known: is it so, why, and in words.
struct Fact {
    is_so: Option<bool>,
    reason: String,
    message: String,
}

impl Fact {
    fn new(is_so: bool, reason: &str, message: impl Into<String>) -> Self {
        Self {
            is_so: Some(is_so),
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    fn unknown(reason: &str, message: impl Into<String>) -> Self {
        Self {
            is_so: None,
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

fn all_conditions(context: &Context<'_>, step: &Step, status: &ClusterStatus) -> Vec<Condition> {
    conditions::CLUSTER_CONDITIONS
        .iter()
        .map(|kind| {
            let fact = match *kind {
                conditions::ACCEPTED => accepted(context),
                conditions::AVAILABLE => available(context, step),
                conditions::PROGRESSING => progressing(context, status),
                conditions::DEGRADED => degraded(context, step, status),
                conditions::ALL_MEMBERS_READY => all_members_ready(context, status),
                conditions::ALL_MEMBERS_UPDATED => all_members_updated(context),
                conditions::CLUSTER_ID_CONSISTENT => cluster_id_consistent(context),
                conditions::STORAGE_HEALTHY => storage_healthy(context, status),
                conditions::BACKUP_HEALTHY => backup_healthy(context),
                conditions::CERTIFICATES_READY => certificates_ready(context),
                _ => paused(context),
            };
            condition(
                kind,
                fact.is_so,
                &fact.reason,
                fact.message,
                context.seen.generation,
                &context.seen.previous.conditions,
                context.now,
            )
        })
        .collect()
}

/// A condition whose time changes only with its status.
pub fn condition(
    kind: &str,
    is_so: Option<bool>,
    reason: &str,
    message: String,
    generation: i64,
    previous: &[Condition],
    now: Timestamp,
) -> Condition {
    let status = match is_so {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let last_transition_time = previous
        .iter()
        .find(|previous| previous.type_ == kind && previous.status == status)
        .map_or_else(
            || Time(to_seconds(now)),
            |previous| previous.last_transition_time.clone(),
        );
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: Some(generation),
        last_transition_time,
    }
}

/// Kubernetes keeps whole seconds; comparing what was written with what was read needs them too.
pub(crate) fn to_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn accepted(context: &Context<'_>) -> Fact {
    match &context.seen.rejection {
        Some((reason, message)) => Fact::new(false, reason, message.clone()),
        None => Fact::new(true, reasons::AS_EXPECTED, "the spec is followed"),
    }
}

fn available(context: &Context<'_>, step: &Step) -> Fact {
    let seen = context.seen;
    match context.class {
        _ if context.spec.hibernated => Fact::new(
            false,
            reasons::HIBERNATED,
            "every member is stopped on purpose",
        ),
        Class::Uninitialized | Class::Forming => {
            Fact::new(false, reasons::FORMING, step.why.clone())
        }
        Class::Healthy | Class::Degraded => Fact::new(
            true,
            reasons::AS_EXPECTED,
            "a majority of the members serves",
        ),
        Class::Unreachable => Fact::unknown(reasons::UNREACHABLE, UNREACHABLE_TEXT),
        Class::SplitBrain => Fact::unknown(
            reasons::SPLIT_BRAIN_SUSPECTED,
            "members belong to different clusters",
        ),
        Class::QuorumLost => {
            let answers = seen
                .members
                .iter()
                .filter(|m| m.probe.answer().is_some())
                .count();
            let reason = if answers * 2 > seen.members.len() && leader_id(seen).is_none() {
                reasons::NO_LEADER
            } else {
                reasons::QUORUM_LOST
            };
            Fact::new(
                false,
                reason,
                format!("{answers} of {} members answer", seen.members.len()),
            )
        }
    }
}

fn progressing(context: &Context<'_>, status: &ClusterStatus) -> Fact {
    let Some(operation) = &status.operation else {
        return Fact::new(false, reasons::IDLE, "nothing is to be done");
    };
    let limit = context.spec.progress_deadline.or(Duration::from_secs(600));
    let started = operation
        .started_at
        .as_ref()
        .map_or(context.now, |time| time.0);
    if context.now > started && context.now.duration_since(started).unsigned_abs() > limit {
        return Fact::new(
            false,
            reasons::PROGRESS_DEADLINE_EXCEEDED,
            format!(
                "{} since {started}: {}",
                operation.operation, operation.step
            ),
        );
    }
    Fact::new(true, &operation.operation, operation.step.clone())
}

fn degraded(context: &Context<'_>, step: &Step, status: &ClusterStatus) -> Fact {
    let seen = context.seen;
    if let Some((reason, message)) = &step.degraded {
        return Fact::new(true, reason, message.clone());
    }
    let has = |kind| seen.alarms.iter().any(|alarm| alarm.kind == kind);
    if has(AlarmKind::Corrupt) {
        return Fact::new(
            true,
            reasons::CORRUPT,
            "a member's data differs from the others'",
        );
    }
    if has(AlarmKind::Nospace) {
        return Fact::new(
            true,
            reasons::NOSPACE,
            "the store is full and refuses writes",
        );
    }
    let down: Vec<_> = status
        .members
        .iter()
        .filter(|m| matches!(m.state, MemberState::Unhealthy | MemberState::Fenced))
        .map(|m| match &m.message {
            Some(message) => format!("{}: {message}", m.name),
            None => m.name.clone(),
        })
        .collect();
    if !down.is_empty() {
        return Fact::new(true, reasons::MEMBER_DOWN, down.join("; "));
    }
    if context.class == Class::Degraded || context.class == Class::QuorumLost {
        return Fact::new(true, reasons::MEMBER_DOWN, "a member has no StatefulSet");
    }
    let limit = context
        .spec
        .recovery
        .member_replacement
        .unhealthy_after
        .or(UNHEALTHY_AFTER);
    let is_slow = |m: &&MemberStatus| {
        let since = m.since.as_ref().filter(|_| m.state == MemberState::Slow);
        since.is_some_and(|since| is_older(since.0, limit, context.now))
    };
    if let Some(slow) = status.members.iter().find(is_slow) {
        let message = slow.message.as_deref().unwrap_or_default();
        return Fact::new(
            true,
            reasons::MEMBER_SLOW,
            format!("{}: {message}", slow.name),
        );
    }
    Fact::new(false, reasons::AS_EXPECTED, "nothing is reduced")
}

fn all_members_ready(context: &Context<'_>, status: &ClusterStatus) -> Fact {
    let is_so = status.ready_replicas == context.spec.replicas
        && status.voters == context.spec.replicas
        && status.replicas == context.spec.replicas;
    if is_so {
        Fact::new(true, reasons::AS_EXPECTED, "every member serves")
    } else {
        Fact::new(
            false,
            reasons::MEMBERS_NOT_READY,
            format!("{} members are ready", status.ready),
        )
    }
}

fn all_members_updated(context: &Context<'_>) -> Fact {
    let outdated: Vec<_> = context
        .seen
        .members
        .iter()
        .filter(|m| {
            m.template_hash != context.seen.wanted_template_hash
                || m.pod
                    .as_ref()
                    .is_some_and(|pod| pod.template_hash != m.template_hash)
        })
        .map(|m| m.name.as_str())
        .collect();
    if outdated.is_empty() {
        Fact::new(
            true,
            reasons::AS_EXPECTED,
            "every member runs the wanted template",
        )
    } else {
        Fact::new(
            false,
            reasons::MEMBERS_OUTDATED,
            format!("older templates: {}", outdated.join(", ")),
        )
    }
}

fn cluster_id_consistent(context: &Context<'_>) -> Fact {
    match context.class {
        Class::SplitBrain => Fact::new(
            false,
            reasons::SPLIT_BRAIN_SUSPECTED,
            "members answer with a cluster id that is not the one of this cluster; the operator changes \
             nothing until a person has decided",
        ),
        Class::Uninitialized | Class::Forming => {
            Fact::unknown(reasons::FORMING, "there is no cluster yet")
        }
        _ => Fact::new(
            true,
            reasons::AS_EXPECTED,
            "everybody who answers is of this cluster",
        ),
    }
}

fn storage_healthy(context: &Context<'_>, status: &ClusterStatus) -> Fact {
    let seen = context.seen;
    if seen
        .alarms
        .iter()
        .any(|alarm| alarm.kind == AlarmKind::Nospace)
    {
        return Fact::new(
            false,
            reasons::NOSPACE,
            "the store is full and refuses writes",
        );
    }
    let growing: Vec<_> = seen
        .members
        .iter()
        .filter(|m| {
            m.claim.as_ref().is_some_and(|claim| {
                claim.capacity_bytes > 0 && claim.capacity_bytes < claim.requested_bytes
            })
        })
        .map(|m| m.name.as_str())
        .collect();
    if !growing.is_empty() {
        return Fact::new(
            false,
            reasons::GROW_PENDING,
            format!("volumes that have not grown yet: {}", growing.join(", ")),
        );
    }
    match &status.capacity {
        Some(capacity) if capacity.quota_used_percent >= QUOTA_NEAR_PERCENT => Fact::new(
            false,
            reasons::QUOTA_NEAR,
            format!("{} % of the quota are used", capacity.quota_used_percent),
        ),
        Some(_) => Fact::new(true, reasons::AS_EXPECTED, "there is room"),
        None => Fact::unknown(reasons::UNKNOWN, "nobody answers"),
    }
}

fn backup_healthy(context: &Context<'_>) -> Fact {
    let backups = &context.seen.backups;
    if let Some(name) = &backups.verification_failed {
        return Fact::new(
            false,
            reasons::VERIFICATION_FAILED,
            format!("see the backup {name}"),
        );
    }
    if let Some(name) = &backups.last_failed {
        return Fact::new(
            false,
            reasons::BACKUP_FAILED,
            format!("see the backup {name}"),
        );
    }
    if !backups.has_schedule {
        return Fact::unknown(reasons::NO_SCHEDULE, "there is no MetaStoreBackupSchedule");
    }
    let is_late = backups.next_due.is_some_and(|due| {
        context.now > due && context.now.duration_since(due).as_hours() >= BACKUP_GRACE_HOURS
    });
    match (&backups.last_complete, is_late) {
        (_, true) => Fact::new(false, reasons::TOO_OLD, "a backup was due and is not there"),
        (None, false) => Fact::unknown(reasons::UNKNOWN, "there is no backup yet"),
        (Some((name, ..)), false) => Fact::new(
            true,
            reasons::AS_EXPECTED,
            format!("the last backup is {name}"),
        ),
    }
}

fn certificates_ready(context: &Context<'_>) -> Fact {
    let certificates = &context.seen.certificates;
    if !certificates.is_enabled {
        return Fact::new(true, reasons::DISABLED, "TLS is off");
    }
    if let Some((reason, message)) = &certificates.problem {
        return Fact::new(false, reason, message.clone());
    }
    if !certificates.is_ready {
        return Fact::new(
            false,
            reasons::ISSUING,
            "the certificates are not there yet",
        );
    }
    match certificates.next_expiry {
        Some(end) if end.duration_since(context.now).as_hours() < EXPIRY_WARNING_HOURS => {
            Fact::new(
                false,
                reasons::RENEWAL_FAILED,
                format!("a certificate ends at {end}"),
            )
        }
        Some(end) => Fact::new(
            true,
            reasons::AS_EXPECTED,
            format!("the first one ends at {end}"),
        ),
        None => Fact::new(true, reasons::AS_EXPECTED, "they are there"),
    }
}

fn paused(context: &Context<'_>) -> Fact {
    if context.spec.paused {
        Fact::new(true, reasons::SPEC, "spec.paused is set")
    } else if context.seen.is_paused_by_annotation {
        Fact::new(
            true,
            reasons::ANNOTATION,
            "an annotation pauses the cluster",
        )
    } else {
        Fact::new(false, reasons::AS_EXPECTED, "the cluster is looked after")
    }
}

fn phase(context: &Context<'_>, step: &Step, status: &ClusterStatus) -> Phase {
    if context.spec.paused || context.seen.is_paused_by_annotation {
        return Phase::Paused;
    }
    if context.seen.rejection.is_some() {
        return Phase::Rejected;
    }
    if context.spec.hibernated {
        return Phase::Hibernated;
    }
    match context.class {
        Class::Uninitialized => Phase::Pending,
        Class::Forming => Phase::Forming,
        Class::SplitBrain | Class::Unreachable => Phase::Frozen,
        Class::QuorumLost => Phase::Unavailable,
        Class::Degraded if step.operation.is_some() => Phase::Updating,
        Class::Degraded => Phase::Degraded,
        Class::Healthy if step.operation.is_some() => Phase::Updating,
        Class::Healthy if status.ready_replicas < context.spec.replicas => Phase::Updating,
        Class::Healthy => Phase::Running,
    }
}
