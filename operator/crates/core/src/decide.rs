//! One action for what is seen.
//!
//! The rules stand in the order in which they count; the first that has something to do decides. Each is a
//! function of its own that says in its comment why it is safe.

use std::time::Duration;

use jiff::Timestamp;
use metastore_operator_api::conditions::reasons;
use metastore_operator_api::{
    ClusterSpec, ClusterStatus, CorruptPolicy, JobPhase, MemberState, NospacePolicy, RetainPolicy,
    names,
};

use crate::action::{Action, IdentityChange, Start, TaskStep};
use crate::classify::{Class, classify, is_healthy, listed_name, listed_of, member_of};
use crate::observation::{
    AlarmKind, Identity, ListedMember, MemberAnswer, MemberObservation, MemberPhase, Observation,
};
use crate::quorum::{removal_keeps_quorum, stop_keeps_quorum};
use crate::schedule::window_is_open;
use crate::status::status;

/// Until the next look when nothing is to be done.
const IDLE_INTERVAL: Duration = Duration::from_secs(30);
/// Until the next look when something is under way.
const BUSY_INTERVAL: Duration = Duration::from_secs(2);
/// Until the next look after an action: its effect is seen then, and the next step can follow.
const ACTED_INTERVAL: Duration = Duration::from_millis(300);
/// A member that has this many entries still to apply may not be relied upon while another restarts.
const LAG_ENTRIES_MAX: u64 = 10_000;
/// A voter that is further behind is slow. More than what the others write between two answers of one look, and so much
/// that etcd would send it a snapshot.
const SLOW_LAG_ENTRIES: u64 = 50_000;
const _: () = assert!(SLOW_LAG_ENTRIES > LAG_ENTRIES_MAX);
/// A member answers how it is from its memory. One that takes longer than this has no time left to serve.
const SLOW_ANSWER: Duration = Duration::from_secs(1);
/// A member is not defragmented more often because of its free space: it might not help.
const DEFRAGMENT_INTERVAL: Duration = Duration::from_secs(3600);
/// After this time without success, reclaiming of space begins anew.
const RECLAIM_RETRY_INTERVAL: Duration = Duration::from_secs(600);
/// Volumes grow by themselves in whole mebibytes.
const GROWTH_UNIT_BYTES: u64 = 1 << 20;
/// What stands for the hash of a template with which a member is forced to go on alone. It is unlike any other,
/// so that the member restarts once more.
pub const FORCED_TEMPLATE_HASH: &str = "recovering";
/// What is said while Kubernetes calls members ready and none answers the operator.
pub(crate) const UNREACHABLE_TEXT: &str =
    "members are ready, and the operator reaches none: its network or certificate is wrong";
/// Where `unhealthyAfter` cannot be read.
pub(crate) const UNHEALTHY_AFTER: Duration = Duration::from_secs(300);
/// Where `slowAfter` cannot be read.
const SLOW_AFTER: Duration = Duration::from_secs(1800);
/// The window in which replacements are counted.
const REPLACEMENT_WINDOW: Duration = Duration::from_secs(3600);

/// What is to be done, and what is to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The one action.
    pub action: Action,
    /// Why, in words.
    pub why: String,
    /// The status of the cluster, whatever becomes of the action.
    pub status: ClusterStatus,
    /// When to look again at the latest.
    pub requeue_after: Duration,
}

/// An action, why it is taken, and what it is part of.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) action: Action,
    pub(crate) why: String,
    /// Reason of the condition Progressing, and the member.
    pub(crate) operation: Option<(&'static str, Option<String>)>,
    /// Why redundancy or function is reduced beyond what the members show.
    pub(crate) degraded: Option<(&'static str, String)>,
}

impl Step {
    fn new(action: Action, why: impl Into<String>) -> Self {
        Self {
            action,
            why: why.into(),
            operation: None,
            degraded: None,
        }
    }

    fn wait(why: impl Into<String>) -> Self {
        Self::new(Action::Wait(BUSY_INTERVAL), why)
    }

    fn of(mut self, operation: &'static str, member: impl Into<Option<String>>) -> Self {
        self.operation = Some((operation, member.into()));
        self
    }

    fn degraded(mut self, reason: &'static str) -> Self {
        self.degraded = Some((reason, self.why.clone()));
        self
    }
}

/// What the rules look at.
pub(crate) struct Context<'a> {
    pub(crate) spec: &'a ClusterSpec,
    pub(crate) seen: &'a Observation,
    pub(crate) now: Timestamp,
    pub(crate) class: Class,
}

/// Decides. Pure: the same arguments give the same decision.
pub fn decide(spec: &ClusterSpec, seen: &Observation, now: Timestamp) -> Decision {
    let context = Context {
        spec,
        seen,
        now,
        class: classify(seen),
    };
    let step = RULES
        .iter()
        .find_map(|rule| rule(&context))
        .unwrap_or_else(|| Step::new(Action::Wait(IDLE_INTERVAL), "nothing is to be done"));
    let requeue_after = match &step.action {
        Action::Wait(interval) => *interval,
        _ => ACTED_INTERVAL,
    };
    Decision {
        status: status(&context, &step),
        why: step.why,
        action: step.action,
        requeue_after,
    }
}

type Rule = fn(&Context<'_>) -> Option<Step>;

const RULES: &[Rule] = &[
    deletion,
    suspension,
    freeze,
    static_objects,
    unreachable,
    formation,
    hibernation,
    recovery,
    sealing,
    configuration,
    waking,
    reviving,
    quorum_loss,
    corruption,
    full_store,
    pending_member,
    strangers,
    learners,
    bad_voters,
    addresses,
    replacement_bookkeeping,
    too_many_voters,
    volume_growth,
    rolling,
    slow_voters,
    too_few_voters,
    authentication,
    tasks,
    free_space,
];

/// The object is being deleted, or its finalizer does not fit its policy. Only deleting data needs one: a
/// finalizer without need keeps namespaces from going away.
fn deletion(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let deletes = context.spec.deletion.policy == RetainPolicy::Delete;
    if seen.is_deleting {
        let step = match (seen.has_finalizer, deletes) {
            (true, true) => Step::new(Action::DeleteData, "the policy is to delete the data"),
            (true, false) => Step::new(
                Action::SetFinalizer { present: false },
                "the policy is to keep the data",
            ),
            (false, _) => Step::new(
                Action::Wait(IDLE_INTERVAL),
                "the object is being deleted; Kubernetes removes its children",
            ),
        };
        return Some(step);
    }
    (seen.has_finalizer != deletes).then(|| {
        Step::new(
            Action::SetFinalizer { present: deletes },
            "a finalizer is there exactly when the policy is to delete the data",
        )
    })
}

fn suspension(context: &Context<'_>) -> Option<Step> {
    if context.spec.paused || context.seen.is_paused_by_annotation {
        return Some(Step::new(Action::Wait(IDLE_INTERVAL), "paused"));
    }
    let (_, message) = context.seen.rejection.as_ref()?;
    Some(Step::new(
        Action::Wait(IDLE_INTERVAL),
        format!("the spec cannot be followed: {message}"),
    ))
}

/// Something contradicts itself: whatever is done could be done to the wrong data.
fn freeze(context: &Context<'_>) -> Option<Step> {
    (context.class == Class::SplitBrain).then(|| {
        Step::new(
            Action::Wait(IDLE_INTERVAL),
            "members answer with a cluster id that is not the one of this cluster",
        )
        .degraded(reasons::SPLIT_BRAIN_SUSPECTED)
    })
}

/// Kubernetes and the operator contradict each other about the members, so none of them is touched. Only after
/// the static objects: the certificate that is missing may be the operator's own.
fn unreachable(context: &Context<'_>) -> Option<Step> {
    (context.class == Class::Unreachable).then(|| Step::wait(UNREACHABLE_TEXT))
}

fn static_objects(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    if !seen.stale_objects.is_empty() {
        return Some(Step::new(
            Action::ApplyStaticObjects,
            format!("these differ: {}", seen.stale_objects.join(", ")),
        ));
    }
    // A member that starts without its certificate ends at once; one that runs keeps what it has loaded.
    let waits = seen.certificates.is_enabled && !seen.certificates.is_ready;
    (waits && seen.members.is_empty()).then(|| Step::wait("the certificates are not there yet"))
}

/// Forming makes an empty cluster, so it needs three proofs: no identity, no StatefulSet, no volume. A seed
/// that has served can never form again: its configuration says so before its id is latched.
fn formation(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let Some(identity) = &seen.identity else {
        if !seen.members.is_empty() {
            return Some(adoption(seen));
        }
        if let Some(name) = seen.orphan_claims.first() {
            return Some(Step::new(
                Action::Wait(IDLE_INTERVAL),
                format!(
                    "the volume of {name} is from an earlier cluster whose identity is gone; delete the \
                     volumes, or restore the ConfigMap {}",
                    names::identity(&seen.cluster)
                ),
            ));
        }
        return Some(Step::new(
            Action::CreateIdentity {
                seed: seen.fresh_name.clone(),
            },
            "there is no cluster yet",
        ));
    };
    if identity.cluster_id.is_some() {
        return None;
    }
    let Some(seed) = seen.members.iter().find(|m| m.name == identity.seed) else {
        let step = Step::new(
            Action::CreateMember {
                name: identity.seed.clone(),
                start: Start::Form,
            },
            "the first member forms the cluster",
        );
        return Some(step.of(reasons::FORMING, identity.seed.clone()));
    };
    let serving = seed
        .probe
        .answer()
        .filter(|answer| answer.leader_id != 0 && seen.list.is_some());
    let step = if let Some(answer) = serving {
        if seed.phase == MemberPhase::Forming {
            // Before the latch: once the cluster counts as formed, nothing may form it again.
            Step::new(
                Action::SetStart {
                    name: seed.name.clone(),
                    start: Start::Run,
                    member_id: Some(answer.member_id),
                },
                "the first member serves: it must never start without its data",
            )
        } else {
            Step::new(
                Action::UpdateIdentity(IdentityChange::Latch(answer.cluster_id)),
                "the first member serves",
            )
        }
    } else if seed.wanted_replicas == 0 && !context.spec.hibernated {
        Step::new(
            Action::Scale {
                name: seed.name.clone(),
                replicas: 1,
            },
            "the first member is to start",
        )
    } else if seed.lacks_config && seed.phase == MemberPhase::Forming {
        Step::new(
            Action::SetStart {
                name: seed.name.clone(),
                start: Start::Form,
                member_id: None,
            },
            "the configuration of the first member is gone",
        )
    } else if seed.template_hash != seen.wanted_template_hash {
        Step::new(
            Action::Roll {
                name: seed.name.clone(),
            },
            "the first member does not serve yet and has an older template",
        )
    } else {
        Step::wait("the first member does not serve yet")
    };
    Some(step.of(reasons::FORMING, identity.seed.clone()))
}

fn adoption(seen: &Observation) -> Step {
    let mut ids: Vec<_> = seen
        .members
        .iter()
        .filter_map(|member| member.probe.answer())
        .map(|answer| answer.cluster_id)
        .collect();
    ids.dedup();
    match ids.as_slice() {
        [id] => Step::new(
            Action::AdoptIdentity { cluster_id: *id },
            "members run and the identity is gone: they know it",
        ),
        [] => Step::wait("members exist, the identity is gone, and nobody answers who they are"),
        _ => Step::wait("members exist, the identity is gone, and they differ about it"),
    }
}

/// Stopping everybody loses nothing: the volumes stay. Followers first, so that the leader stays one until
/// it is alone.
fn hibernation(context: &Context<'_>) -> Option<Step> {
    if !context.spec.hibernated {
        return None;
    }
    let seen = context.seen;
    let leader = leader_id(seen);
    let mut running: Vec<_> = seen
        .members
        .iter()
        .filter(|member| member.wanted_replicas != 0)
        .collect();
    running.sort_by_key(|member| member.recorded_id == leader && leader.is_some());
    Some(match running.first() {
        Some(member) => Step::new(
            Action::Scale {
                name: member.name.clone(),
                replicas: 0,
            },
            "the cluster is to hibernate",
        ),
        None => Step::new(Action::Wait(IDLE_INTERVAL), "the cluster hibernates"),
    })
}

/// A majority is gone for good and a person named the survivor. All others are stopped and forgotten first,
/// so that none of them can ever meet the new cluster.
fn recovery(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let survivor = identity(seen).recovering.as_ref()?;
    let others = || seen.members.iter().filter(|m| &m.name != survivor);
    let step = if let Some(other) = others().find(|m| m.wanted_replicas != 0) {
        Step::new(
            Action::Scale {
                name: other.name.clone(),
                replicas: 0,
            },
            "only the survivor may run",
        )
    } else if let Some(other) = others().find(|m| m.pod.is_some()) {
        Step::wait(format!("{} still runs", other.name))
    } else if let Some(other) = others().find(|m| !m.is_deleting) {
        Step::new(
            Action::DeleteMember {
                name: other.name.clone(),
                // Their data may be all that is left, whatever the policy says about replaced members.
                deletes_claim: false,
            },
            "the others are forgotten; their volumes stay",
        )
    } else if let Some(name) = seen.orphan_claims.iter().find(|name| *name != survivor) {
        Step::new(
            Action::RetireClaim {
                name: name.clone(),
                deletes_claim: false,
            },
            "the others are forgotten; their volumes stay",
        )
    } else {
        recovery_of_survivor(seen, survivor)
    };
    Some(step.of(reasons::QUORUM_LOST, survivor.clone()))
}

fn recovery_of_survivor(seen: &Observation, survivor: &str) -> Step {
    let Some(member) = seen.members.iter().find(|m| m.name == survivor) else {
        return Step::new(
            Action::CreateMember {
                name: survivor.to_owned(),
                start: Start::Run,
            },
            "the survivor has no StatefulSet",
        );
    };
    let is_alone = seen
        .list
        .as_ref()
        .is_some_and(|list| list.len() == 1 && list.iter().all(|listed| !listed.is_learner));
    if is_alone && member.phase == MemberPhase::Running && is_settled(member) {
        // Before the recovery ends: an open task would give up the majority again when the only member restarts.
        return finished_recovery_task(seen, survivor).unwrap_or_else(|| {
            Step::new(
                Action::UpdateIdentity(IdentityChange::Recovering(None)),
                "the survivor serves alone",
            )
        });
    }
    if is_alone && member.phase == MemberPhase::Recovering {
        // Its next start must not force anything: there may be other members by then.
        return Step::new(
            Action::SetStart {
                name: member.name.clone(),
                start: Start::Run,
                member_id: member.probe.answer().map(|answer| answer.member_id),
            },
            "the survivor serves alone",
        );
    }
    // Both: the phase is written first, because whoever may be forced must never count as one who runs.
    let is_forced =
        member.phase == MemberPhase::Recovering && member.template_hash == FORCED_TEMPLATE_HASH;
    if !is_alone && !is_forced {
        return Step::new(
            Action::ForceNewCluster {
                name: member.name.clone(),
            },
            "the survivor goes on alone",
        );
    }
    if member.wanted_replicas == 0 {
        return Step::new(
            Action::Scale {
                name: member.name.clone(),
                replicas: 1,
            },
            "the survivor is to run",
        );
    }
    Step::wait("the survivor starts")
}

/// Ends the task that named the survivor.
fn finished_recovery_task(seen: &Observation, survivor: &str) -> Option<Step> {
    let task = seen.tasks.iter().find(|task| {
        let wanted = task.spec.recover_quorum.as_ref();
        wanted.is_some_and(|wanted| wanted.survivor == survivor)
            && task.status.phase == JobPhase::Running
    })?;
    Some(Step::new(
        Action::Task {
            name: task.name.clone(),
            step: TaskStep::Finish {
                phase: JobPhase::Succeeded,
                result: format!("{survivor} serves; members are added until there are enough"),
            },
        },
        "the survivor serves alone",
    ))
}

/// A member that has started once may from now on start only with its data. It has, when it answers, or when
/// the cluster knows it by name: the list says so even of a member that will never answer again because its
/// volume is gone, and an answer says so even while there is no majority to ask for the list. Such a member is
/// replaced when its data is lost, and never joins twice.
fn sealing(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    seen.members.iter().find_map(|member| {
        let is_sealed = member.phase == MemberPhase::Running && member.recorded_id.is_some();
        if is_sealed || member.is_deleting {
            return None;
        }
        let answered = member.probe.answer().map(|answer| answer.member_id);
        let answered = answered.filter(|id| *id != 0);
        let id = match &seen.list {
            None => answered?,
            Some(_) => {
                let listed = listed_of(seen, member)?;
                let has_started = answered.map_or(!listed.name.is_empty(), |id| id == listed.id);
                has_started.then_some(listed.id)?
            }
        };
        Some(Step::new(
            Action::SetStart {
                name: member.name.clone(),
                start: Start::Run,
                member_id: Some(id),
            },
            format!(
                "{} is a member: it must never start without its data",
                member.name
            ),
        ))
    })
}

/// A member whose configuration is gone does not start again. That of one that joins is written by `pending_member`;
/// that of one which has left was deleted by `strangers`, who may have been killed in the middle of it.
fn configuration(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let has_left =
        |member: &MemberObservation| seen.list.is_some() && listed_of(seen, member).is_none();
    let member = seen.members.iter().find(|member| {
        member.lacks_config
            && member.phase == MemberPhase::Running
            && !member.is_deleting
            && !has_left(member)
    })?;
    Some(Step::new(
        Action::SetStart {
            name: member.name.clone(),
            start: Start::Run,
            member_id: member.recorded_id,
        },
        format!("the configuration of {} is gone, or not ours", member.name),
    ))
}

/// Every member that is one should run, once: this is also the way out of hibernation, all at once. A second Pod,
/// or one of a fenced member, can only be the work of somebody else.
fn waking(context: &Context<'_>) -> Option<Step> {
    let replicas = |member: &MemberObservation| i32::from(!member.is_fenced);
    let member = context
        .seen
        .members
        .iter()
        .find(|m| m.wanted_replicas != replicas(m) && !m.is_deleting)?;
    let why = match member.is_fenced {
        true => format!("{} is fenced", member.name),
        false => format!("{} is to run, once", member.name),
    };
    Some(Step::new(
        Action::Scale {
            name: member.name.clone(),
            replicas: replicas(member),
        },
        why,
    ))
}

/// A volume without a StatefulSet is a member whose StatefulSet was deleted, or a rest of one that left. The
/// cluster's own list says which; without it, the member is revived, because that may bring the majority back.
fn reviving(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let pending = identity(seen).pending.as_ref();
    let name = seen
        .orphan_claims
        .iter()
        .find(|name| Some(*name) != pending)?;
    let is_member = match &seen.list {
        None => true,
        Some(list) => list
            .iter()
            .any(|listed| listed_name(seen, listed) == Some(name.as_str())),
    };
    Some(if is_member {
        Step::new(
            Action::CreateMember {
                name: name.clone(),
                start: Start::Run,
            },
            format!("{name} has a volume and no StatefulSet"),
        )
    } else {
        Step::new(
            Action::RetireClaim {
                name: name.clone(),
                deletes_claim: deletes_claims(context),
            },
            format!("{name} is no member any more"),
        )
    })
}

/// Without a majority nothing is taken away. A member that does not serve may get a newer template: that is
/// how a bad configuration is undone.
fn quorum_loss(context: &Context<'_>) -> Option<Step> {
    if context.class != Class::QuorumLost {
        return None;
    }
    if let Some(step) = recovery_task(context) {
        return Some(step);
    }
    Some(roll_sick_member(context).unwrap_or_else(|| {
        Step::wait(
            "fewer than a majority of the members serve: waiting for them. If their data is gone for good, a \
             MetaStoreTask with recoverQuorum goes on with one of them",
        )
    }))
}

fn recovery_task(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let task = seen
        .tasks
        .iter()
        .find(|task| task.spec.recover_quorum.is_some())?;
    let wanted = task.spec.recover_quorum.as_ref()?;
    let cluster_id = identity(seen)
        .cluster_id
        .map(|id| format!("{id:x}"))
        .unwrap_or_default();
    let reject = |result: String| {
        Some(Step::new(
            Action::Task {
                name: task.name.clone(),
                step: TaskStep::Finish {
                    phase: JobPhase::Rejected,
                    result,
                },
            },
            "the task must not be done",
        ))
    };
    if wanted.accept_data_loss != cluster_id {
        return reject(format!(
            "acceptDataLoss must be the id of the cluster, {cluster_id}"
        ));
    }
    let Some(survivor) = seen
        .members
        .iter()
        .find(|member| member.name == wanted.survivor)
    else {
        return reject(format!("there is no member {}", wanted.survivor));
    };
    let has_volume = |member: &MemberObservation| {
        let claim = member.claim.as_ref();
        claim.is_some_and(|claim| !claim.is_lost && !claim.is_deleting)
    };
    if !has_volume(survivor) {
        return reject(format!("{} has no volume", wanted.survivor));
    }
    if let Some(better) = better_survivor(seen, survivor) {
        return reject(format!(
            "{better} has received more than {}: it must be the survivor",
            wanted.survivor
        ));
    }
    if task.status.phase == JobPhase::Pending {
        return Some(Step::new(
            Action::Task {
                name: task.name.clone(),
                step: TaskStep::Begin,
            },
            format!("the task {} names a survivor", task.name),
        ));
    }
    Some(
        Step::new(
            Action::UpdateIdentity(IdentityChange::Recovering(Some(wanted.survivor.clone()))),
            format!("the task {} names a survivor", task.name),
        )
        .of(reasons::QUORUM_LOST, wanted.survivor.clone()),
    )
}

/// A member that answers and whose log is longer: going on with the other would throw away what it has.
fn better_survivor<'a>(seen: &'a Observation, survivor: &MemberObservation) -> Option<&'a str> {
    let length = |member: &MemberObservation| member.probe.answer().map(|answer| answer.raft_index);
    let own = length(survivor)?;
    seen.members
        .iter()
        .filter(|member| length(member).is_some_and(|length| length > own))
        .max_by_key(|member| length(member))
        .map(|member| member.name.as_str())
}

/// A member whose data differs is stopped before anybody reads from it, then replaced by `bad_voters`.
fn corruption(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    if context.spec.recovery.alarms.corrupt == CorruptPolicy::Manual {
        return None;
    }
    let list = seen.list.as_ref()?;
    let alarm = seen
        .alarms
        .iter()
        .find(|alarm| alarm.kind == AlarmKind::Corrupt)?;
    let Some(listed) = list.iter().find(|listed| listed.id == alarm.member_id) else {
        return Some(Step::new(
            Action::Disarm(*alarm),
            "the member that raised the alarm is gone",
        ));
    };
    let member = member_of(seen, listed)?;
    let may_stop = removal_keeps_quorum(voters(list).len(), healthy_voters_without(seen, listed));
    (!member.is_fenced && may_stop && may_replace_now(context)).then(|| {
        Step::new(
            Action::Fence {
                name: member.name.clone(),
            },
            format!("the data of {} differs from the others'", member.name),
        )
        .of(reasons::REPLACING_MEMBER, member.name.clone())
    })
}

/// A full store: compact, reclaim member by member with the leader last, clear the alarm when it helped.
fn full_store(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let identity = identity(seen);
    let alarm = seen
        .alarms
        .iter()
        .find(|alarm| alarm.kind == AlarmKind::Nospace);
    let Some(alarm) = alarm else {
        return identity.reclaim_started.map(|_| {
            Step::new(
                Action::UpdateIdentity(IdentityChange::ReclaimEnded),
                "no alarm is raised any more",
            )
        });
    };
    if context.spec.recovery.alarms.nospace == NospacePolicy::Manual
        || context.class != Class::Healthy
    {
        return None;
    }
    let answers = || seen.members.iter().filter_map(|m| m.probe.answer());
    let Some(started) = identity.reclaim_started else {
        let revision = answers().map(|answer| answer.revision).max()?;
        return Some(
            Step::new(
                Action::CompactForSpace { revision },
                "the store is full: history is dropped first",
            )
            .of(reasons::RECLAIMING_SPACE, None),
        );
    };
    let leader = leader_id(seen);
    let mut waiting: Vec<_> = seen
        .members
        .iter()
        .filter(|m| m.defragmented_at.is_none_or(|at| at < started))
        .collect();
    waiting.sort_by_key(|m| m.recorded_id == leader);
    if let Some(member) = waiting.first() {
        return Some(
            Step::new(
                Action::Defragment {
                    name: member.name.clone(),
                },
                "the store is full: space is reclaimed member by member",
            )
            .of(reasons::RECLAIMING_SPACE, member.name.clone()),
        );
    }
    // By the quota with which members run: one that was raised counts when they have restarted.
    let has_room = |answer: &MemberAnswer| {
        let quota_bytes = match u64::try_from(answer.db_quota_bytes) {
            Ok(0) | Err(_) => seen.quota_bytes,
            Ok(own) => own.min(seen.quota_bytes),
        };
        u64::try_from(answer.db_size_bytes).unwrap_or(0) < quota_bytes / 20 * 19
    };
    if answers().all(has_room) {
        return Some(
            Step::new(Action::Disarm(*alarm), "the store is below its quota again")
                .of(reasons::RECLAIMING_SPACE, None),
        );
    }
    if let Some(step) = growth_of_a_full_store(context) {
        return Some(step);
    }
    if is_older(started, RECLAIM_RETRY_INTERVAL, context.now) {
        return Some(
            Step::new(
                Action::UpdateIdentity(IdentityChange::ReclaimEnded),
                "reclaiming space did not help; it is tried again",
            )
            .degraded(reasons::NOSPACE),
        );
    }
    None
}

/// The store is full of data. One volume grows, `volume_growth` lets the others follow, since the largest says how
/// large all should be, and `rolling` gives the members the quota that fits. Only when all of that has happened may
/// it have been too little.
fn growth_of_a_full_store(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let policy = context.spec.storage.auto_grow.as_ref()?;
    if context.spec.config.quota.is_some() {
        return None;
    }
    let size = seen.wanted_storage_bytes;
    let has_grown = |member: &MemberObservation| {
        member.template_hash == seen.wanted_template_hash
            && is_settled(member)
            && member.probe.answer().is_some()
            && member
                .claim
                .as_ref()
                .is_some_and(|claim| claim.requested_bytes >= size && claim.capacity_bytes >= size)
    };
    let step_bytes = size / 100 * u64::from(policy.step_percent);
    let next = (size + step_bytes.max(1)).next_multiple_of(GROWTH_UNIT_BYTES);
    let next = next.min(policy.max_size.units()?);
    if next <= size || !seen.members.iter().all(has_grown) {
        return None;
    }
    let name = seen.members.first()?.name.clone();
    let step = Step::new(
        Action::GrowClaim {
            name: name.clone(),
            bytes: next,
        },
        "the store is full, and reclaiming space did not help: its volumes grow",
    );
    Some(step.of(reasons::GROWING_STORAGE, name))
}

/// A member that is being added. Its name was recorded before the cluster was told, so its StatefulSet is
/// found again after a crash, and never made twice.
fn pending_member(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let name = identity(seen).pending.clone()?;
    let list = seen.list.as_ref()?;
    let listed = list
        .iter()
        .find(|listed| listed_name(seen, listed) == Some(name.as_str()));
    let member = seen.members.iter().find(|member| member.name == name);
    let step = match (listed, member) {
        // The servers refuse a new member while one is down: that one comes back or is replaced first.
        (None, None) if list.len() < target_voters(context) && context.class != Class::Healthy => {
            return None;
        }
        (None, None) if list.len() < target_voters(context) => Step::new(
            Action::AddLearner {
                peer_url: peer_url(context, &name),
                name: name.clone(),
            },
            "the cluster is told about the new member",
        ),
        (None, _) => Step::new(
            Action::UpdateIdentity(IdentityChange::Pending(None)),
            "the new member is wanted no more",
        ),
        (Some(listed), None) if listed.name.is_empty() => Step::new(
            Action::CreateMember {
                start: Start::Join(join_list(seen, list, &name)),
                name: name.clone(),
            },
            "the new member starts",
        ),
        // It was started once and its StatefulSet is gone: `reviving` and `bad_voters` know what to do.
        (Some(_), None) => Step::new(
            Action::UpdateIdentity(IdentityChange::Pending(None)),
            "the new member has started",
        ),
        (Some(listed), Some(member)) => {
            let wanted = join_list(seen, list, &name);
            if member.phase == MemberPhase::Running || !listed.name.is_empty() {
                Step::new(
                    Action::UpdateIdentity(IdentityChange::Pending(None)),
                    "the new member has started",
                )
            } else if member.phase == MemberPhase::Joining && member.join_list != wanted {
                Step::new(
                    Action::SetStart {
                        name: name.clone(),
                        start: Start::Join(wanted),
                        member_id: None,
                    },
                    "the members have changed since the new one was told about them",
                )
            } else if is_left_alone(context, member) {
                Step::new(
                    Action::RemoveMember {
                        id: listed.id,
                        name: name.clone(),
                    },
                    "the node of the new member does not react: another one is tried",
                )
                .degraded(reasons::NODE_LOST)
            } else if is_stuck(context, member) {
                Step::new(
                    Action::RemoveMember {
                        id: listed.id,
                        name: name.clone(),
                    },
                    "the new member does not start",
                )
                .degraded(reasons::LEARNER_STUCK)
            } else if member.template_hash != seen.wanted_template_hash {
                Step::new(
                    Action::Roll { name: name.clone() },
                    "the new member does not start and has an older template",
                )
            } else if context.class == Class::Degraded {
                // A voter that is down must not wait for a member that may never start.
                return None;
            } else {
                Step::wait("the new member starts")
            }
        }
    };
    Some(step.of(growth_reason(seen), name))
}

/// StatefulSets of nobody, and members without one that never started. The list is a linearizable answer that
/// is later than the look at the StatefulSets, so what it does not name is no member.
fn strangers(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let list = seen.list.as_ref()?;
    if let Some(member) = seen
        .members
        .iter()
        .find(|member| !member.is_deleting && listed_of(seen, member).is_none())
    {
        let step = Step::new(
            Action::DeleteMember {
                name: member.name.clone(),
                deletes_claim: deletes_claims(context),
            },
            format!("{} is no member any more", member.name),
        );
        return Some(step.of(reasons::SCALING_IN, member.name.clone()));
    }
    let unstarted = list
        .iter()
        .find(|listed| listed.name.is_empty() && member_of(seen, listed).is_none())?;
    let name = listed_name(seen, unstarted).unwrap_or("unknown").to_owned();
    Some(Step::new(
        Action::RemoveMember {
            id: unstarted.id,
            name,
        },
        "a member was added that nobody will start",
    ))
}

/// A learner is promoted as soon as the server agrees, or removed when it is wanted no more or stuck.
fn learners(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let list = seen.list.as_ref()?;
    // One that never started is the matter of `pending_member`.
    let has_started = |listed: &ListedMember| {
        let is_sealed = |member: &MemberObservation| member.phase == MemberPhase::Running;
        !listed.name.is_empty() || member_of(seen, listed).is_some_and(is_sealed)
    };
    let learner = list
        .iter()
        .find(|listed| listed.is_learner && has_started(listed))?;
    let name = listed_name(seen, learner)?.to_owned();
    let remove = |why: &str| {
        Step::new(
            Action::RemoveMember {
                id: learner.id,
                name: name.clone(),
            },
            why,
        )
    };
    let step = match member_of(seen, learner) {
        _ if voters(list).len() >= target_voters(context) => {
            remove("the learner is wanted no more")
        }
        None => remove("the learner has lost its StatefulSet"),
        Some(member) if member.claim.as_ref().is_none_or(|claim| claim.is_lost) => {
            remove("the learner has lost its volume")
        }
        Some(member) if is_left_alone(context, member) => {
            remove("the node of the learner does not react: another one is tried")
                .degraded(reasons::NODE_LOST)
        }
        Some(member) if is_stuck(context, member) => {
            remove("the learner does not catch up").degraded(reasons::LEARNER_STUCK)
        }
        Some(member) if member.probe.answer().is_some() => Step::new(
            Action::Promote {
                id: learner.id,
                name: name.clone(),
            },
            "the learner is to vote; the server says when it may",
        ),
        // A voter that is down must not wait for a learner that may never answer.
        Some(_) if context.class == Class::Degraded => return None,
        Some(_) => Step::wait("the learner does not answer"),
    };
    Some(step.of(growth_reason(seen), name))
}

/// A voter that does not come back is removed; `too_few_voters` then adds a new one. Adding first would be
/// refused: the servers count the new member as one more that is down. Never when the healthy ones would not
/// be a majority of the rest, and not more often than the limit says.
fn bad_voters(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let policy = &context.spec.recovery.member_replacement;
    let list = seen.list.as_ref()?;
    if !policy.enabled {
        return None;
    }
    let (listed, why) = voters(list)
        .into_iter()
        .find_map(|listed| Some((listed, why_bad(context, listed)?)))?;
    let name = listed_name(seen, listed).unwrap_or("unknown").to_owned();
    if !removal_keeps_quorum(voters(list).len(), healthy_voters_without(seen, listed)) {
        return None;
    }
    let is_recorded = is_being_replaced(context, &name);
    if !is_recorded && !may_replace_now(context) {
        return Some(
            Step::new(
                Action::Wait(IDLE_INTERVAL),
                format!(
                    "{name} should be replaced ({why}), but the limit of {} per hour is reached",
                    policy.max_per_hour
                ),
            )
            .degraded(reasons::REPLACEMENT_RATE_LIMITED),
        );
    }
    let step = if is_recorded {
        Step::new(
            Action::RemoveMember {
                id: listed.id,
                name: name.clone(),
            },
            why,
        )
    } else {
        Step::new(
            Action::UpdateIdentity(IdentityChange::ReplacementBegins(name.clone())),
            why,
        )
    };
    Some(step.of(reasons::REPLACING_MEMBER, name))
}

/// Why a voter will not come back, if so.
fn why_bad(context: &Context<'_>, listed: &ListedMember) -> Option<String> {
    let seen = context.seen;
    if is_healthy(seen, listed) {
        return None;
    }
    let name = listed_name(seen, listed).unwrap_or("a member");
    let Some(member) = member_of(seen, listed) else {
        // With a volume left, `reviving` has brought its StatefulSet back.
        return Some(format!("{name} has neither a StatefulSet nor a volume"));
    };
    if member.is_fenced {
        return Some(format!("{name} is fenced"));
    }
    if member.claim.as_ref().is_none_or(|claim| claim.is_lost) {
        return Some(format!("the volume of {name} is gone"));
    }
    let policy = &context.spec.recovery.member_replacement;
    let limit = policy.unhealthy_after.or(UNHEALTHY_AFTER);
    let since = since_in_state(seen, &member.name, MemberState::Unhealthy)?;
    is_older(since, limit, context.now).then(|| format!("{name} has not served since {since}"))
}

/// The cluster has an older address of a member: its object was deleted and made anew with another `clusterDomain`,
/// and the volumes stayed. Members that restart connect to what the list says.
fn addresses(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    if context.class != Class::Healthy {
        return None;
    }
    let (listed, peer_url) = seen.list.as_ref()?.iter().find_map(|listed| {
        let wanted = peer_url(context, &listed.name);
        let is_old = !listed.name.is_empty() && listed.peer_urls != [wanted.as_str()];
        (is_old && member_of(seen, listed).is_some()).then_some((listed, wanted))
    })?;
    Some(Step::new(
        Action::UpdatePeerUrl {
            id: listed.id,
            name: listed.name.clone(),
            peer_url,
        },
        format!("the cluster has an older address of {}", listed.name),
    ))
}

fn replacement_bookkeeping(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let name = identity(seen).replacing.as_ref()?;
    let list = seen.list.as_ref()?;
    let is_member = list
        .iter()
        .any(|listed| listed_name(seen, listed) == Some(name.as_str()));
    (!is_member).then(|| {
        Step::new(
            Action::UpdateIdentity(IdentityChange::Replacing(None)),
            format!("{name} was replaced"),
        )
    })
}

/// More voters than wanted: the one that is being replaced, else an unhealthy one, else one of the most
/// crowded node, else one with an older template; never the leader before it has handed over.
fn too_many_voters(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let list = seen.list.as_ref()?;
    let voters = voters(list);
    if voters.len() <= usize::try_from(context.spec.replicas).unwrap_or(1) {
        return None;
    }
    // A member that is replaced stays until the new one votes.
    if voters.len() < target_voters(context) {
        return None;
    }
    let leader = leader_id(seen);
    let replacing = identity(seen).replacing.as_deref();
    let victim = voters.iter().copied().min_by_key(|listed| {
        let member = member_of(seen, listed);
        let node = member.and_then(|m| m.pod.as_ref()?.node.clone());
        let crowd = seen
            .members
            .iter()
            .filter(|m| node.is_some() && m.pod.as_ref().and_then(|p| p.node.clone()) == node)
            .count();
        (
            listed_name(seen, listed) != replacing || replacing.is_none(),
            is_healthy(seen, listed),
            usize::MAX - crowd,
            Some(listed.id) == leader,
            member.is_none_or(|m| m.template_hash == seen.wanted_template_hash),
            listed_name(seen, listed).map(ToOwned::to_owned),
        )
    })?;
    let name = listed_name(seen, victim).unwrap_or("unknown").to_owned();
    if !removal_keeps_quorum(voters.len(), healthy_voters_without(seen, victim)) {
        return Some(
            Step::wait("a voter is to be removed, and too few of the others are healthy")
                .of(reasons::SCALING_IN, name),
        );
    }
    let step = match next_leader(context, victim.id) {
        Some(next) if Some(victim.id) == leader => Step::new(
            Action::MoveLeader {
                from: victim.id,
                to: next,
            },
            "the leader is to be removed: it hands over first",
        ),
        _ => Step::new(
            Action::RemoveMember {
                id: victim.id,
                name: name.clone(),
            },
            format!(
                "there are {} voters and {} are wanted",
                voters.len(),
                context.spec.replicas
            ),
        ),
    };
    Some(step.of(reasons::SCALING_IN, name))
}

fn volume_growth(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let member = seen.members.iter().find(|member| {
        member.claim.as_ref().is_some_and(|claim| {
            !claim.is_deleting && claim.requested_bytes < seen.wanted_storage_bytes
        })
    })?;
    Some(
        Step::new(
            Action::GrowClaim {
                name: member.name.clone(),
                bytes: seen.wanted_storage_bytes,
            },
            format!("the volume of {} is to grow", member.name),
        )
        .of(reasons::GROWING_STORAGE, member.name.clone()),
    )
}

/// A new template, member by member: the sick ones without a gate, then followers, the leader last and only
/// after it has handed over. Each healthy one only while all are, so that never more than one is away.
fn rolling(context: &Context<'_>) -> Option<Step> {
    // A member that starts without its certificate ends at once.
    let certificates = &context.seen.certificates;
    if certificates.is_enabled && !certificates.is_ready {
        return None;
    }
    if let Some(step) = roll_sick_member(context) {
        return Some(step);
    }
    let seen = context.seen;
    let list = seen.list.as_ref()?;
    let outdated: Vec<_> = seen
        .members
        .iter()
        .filter(|m| is_outdated(seen, m))
        .collect();
    // Whoever was forced to go on alone starts once more without force, before there are others.
    let was_forced = outdated
        .iter()
        .any(|m| m.template_hash == FORCED_TEMPLATE_HASH);
    // A full store refuses writes, and a larger quota comes with a restart.
    let is_full = seen
        .alarms
        .iter()
        .any(|alarm| alarm.kind == AlarmKind::Nospace);
    let may_roll =
        was_forced || is_full || window_is_open(&context.spec.maintenance.window, context.now);
    if outdated.is_empty() || !may_roll {
        return None;
    }
    let voters = voters(list);
    let gate = context.class == Class::Healthy
        && seen.members.iter().all(is_settled)
        && seen
            .members
            .iter()
            .all(|m| lag_entries(seen, m) <= LAG_ENTRIES_MAX)
        && (voters.len() == 1 || stop_keeps_quorum(voters.len(), voters.len() - 1));
    if !gate {
        return None;
    }
    let leader = leader_id(seen);
    let follower = outdated.iter().find(|m| m.recorded_id != leader);
    let step = match follower {
        Some(member) => Step::new(
            Action::Roll {
                name: member.name.clone(),
            },
            format!("{} has an older template", member.name),
        )
        .of(reasons::ROLLING, member.name.clone()),
        None => {
            let member = outdated[0];
            let from = member.recorded_id?;
            match next_leader(context, from) {
                Some(to) => Step::new(
                    Action::MoveLeader { from, to },
                    "the leader is to restart: it hands over first",
                ),
                None => Step::new(
                    Action::Roll {
                        name: member.name.clone(),
                    },
                    format!("{} has an older template", member.name),
                ),
            }
            .of(reasons::ROLLING, member.name.clone())
        }
    };
    Some(step)
}

/// A member that does not serve has nothing to lose by a restart, and this is how a bad template is undone.
fn roll_sick_member(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let member = seen.members.iter().find(|member| {
        is_outdated(seen, member)
            && is_settled(member)
            && member.probe.answer().is_none()
            && member.pod.as_ref().is_some_and(|pod| !pod.is_ready)
    })?;
    Some(
        Step::new(
            Action::Roll {
                name: member.name.clone(),
            },
            format!("{} does not serve and has an older template", member.name),
        )
        .of(reasons::ROLLING, member.name.clone()),
    )
}

/// A voter that has long been slow and still serves: a new member is added before it is removed. Only while all is well
/// otherwise and no other voter is slow, because then it is not the member.
fn slow_voters(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let policy = &context.spec.recovery.member_replacement;
    let limit = policy.slow_after.or(SLOW_AFTER);
    let voters = voters(seen.list.as_ref()?);
    let is_calm = context.class == Class::Healthy
        && voters.len() == target_voters(context)
        && identity(seen).replacing.is_none()
        && identity(seen).pending.is_none();
    if !policy.enabled || limit.is_zero() || voters.len() < 3 || !is_calm {
        return None;
    }
    let mut slow = seen.members.iter().filter(|m| why_slow(seen, m).is_some());
    let (member, None) = (slow.next()?, slow.next()) else {
        return None;
    };
    let name = &member.name;
    let since = since_in_state(seen, name, MemberState::Slow)?;
    if !is_older(since, limit, context.now) {
        return None;
    }
    let change = if is_being_replaced(context, name) {
        IdentityChange::Replacing(Some(name.clone()))
    } else if may_replace_now(context) {
        IdentityChange::ReplacementBegins(name.clone())
    } else {
        return None;
    };
    let why = format!("{name} has been slow since {since}: a new member is added first");
    let step = Step::new(Action::UpdateIdentity(change), why);
    Some(step.of(reasons::REPLACING_MEMBER, name.clone()))
}

/// Why a member that serves is slow, if it is. The words stay the same while it is so: they stand in the status.
pub(crate) fn why_slow(seen: &Observation, member: &MemberObservation) -> Option<&'static str> {
    let answer = member.probe.answer()?;
    if answer.is_learner {
        None
    } else if lag_entries(seen, member) > SLOW_LAG_ENTRIES {
        Some("it is far behind the others")
    } else if answer.answer_time > SLOW_ANSWER {
        Some("it answers late")
    } else {
        None
    }
}

/// Fewer voters than wanted: a name is recorded first, `pending_member` does the rest.
fn too_few_voters(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let list = seen.list.as_ref()?;
    if list.len() >= target_voters(context) || context.class != Class::Healthy {
        return None;
    }
    Some(
        Step::new(
            Action::UpdateIdentity(IdentityChange::Pending(Some(seen.fresh_name.clone()))),
            format!(
                "there are {} members and {} are wanted",
                list.len(),
                target_voters(context)
            ),
        )
        // Without the name: it is another one in each pass until it is recorded, and so would the status be.
        .of(growth_reason(seen), None),
    )
}

fn authentication(context: &Context<'_>) -> Option<Step> {
    if context.class != Class::Healthy {
        return None;
    }
    match (context.spec.auth.enabled, context.seen.is_auth_enabled) {
        (true, Some(false)) => {
            let step = Step::new(Action::EnableAuth, "authentication is to be on");
            Some(step.of(reasons::ENABLING_AUTH, None))
        }
        (false, Some(true)) => {
            let step = Step::new(Action::DisableAuth, "authentication is to be off");
            Some(step.of(reasons::DISABLING_AUTH, None))
        }
        _ => None,
    }
}

/// The oldest task that is not finished: one step of it.
fn tasks(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let task = seen.tasks.first()?;
    let step = |step: TaskStep, why: &str| {
        Some(Step::new(
            Action::Task {
                name: task.name.clone(),
                step,
            },
            format!("task {}: {why}", task.name),
        ))
    };
    let finish =
        |phase: JobPhase, result: String| step(TaskStep::Finish { phase, result }, "it is over");
    if task.spec.recover_quorum.is_some() {
        // It was handled while there was no majority; now there is one.
        return match task.status.phase {
            JobPhase::Running => finish(
                JobPhase::Succeeded,
                "the cluster serves again; members are added until there are enough".into(),
            ),
            _ => finish(
                JobPhase::Rejected,
                "a majority serves: nothing is to be recovered".into(),
            ),
        };
    }
    if context.class != Class::Healthy {
        return None;
    }
    if task.status.phase == JobPhase::Pending {
        return step(TaskStep::Begin, "it begins");
    }
    let leader = leader_id(seen);
    if task.spec.defrag.is_some() {
        let done = &task.status.done_members;
        let mut waiting: Vec<_> = seen
            .members
            .iter()
            .filter(|member| !done.contains(&member.name))
            .collect();
        waiting.sort_by_key(|member| member.recorded_id == leader);
        return match waiting.first() {
            Some(member) => step(
                TaskStep::Defragment(member.name.clone()),
                "space is reclaimed",
            ),
            None => finish(JobPhase::Succeeded, format!("{} members", done.len())),
        };
    }
    if let Some(compact) = &task.spec.compact {
        return step(TaskStep::Compact(compact.revision), "history is dropped");
    }
    if task.spec.verify_consistency.is_some() {
        return step(TaskStep::VerifyConsistency, "the members' data is compared");
    }
    if let Some(wanted) = &task.spec.move_leader {
        let from = leader?;
        let target = seen.members.iter().find(|m| m.name == wanted.to);
        return match (wanted.to.is_empty(), target.and_then(|m| m.recorded_id)) {
            (false, None) => finish(
                JobPhase::Failed,
                format!("there is no member {}", wanted.to),
            ),
            (false, Some(to)) if to == from => {
                finish(JobPhase::Succeeded, format!("{} leads", wanted.to))
            }
            (false, Some(to)) => step(TaskStep::MoveLeader { from, to }, "the leader hands over"),
            (true, _) if has_handed_over(seen, &task.status.done_members) => finish(
                JobPhase::Succeeded,
                format!("{} leads", seen.leader_name().unwrap_or_default()),
            ),
            (true, _) => match next_leader(context, from) {
                Some(to) => step(TaskStep::MoveLeader { from, to }, "the leader hands over"),
                None => finish(JobPhase::Failed, "there is no other member".into()),
            },
        };
    }
    let wanted = task.spec.replace_member.as_ref()?;
    let is_member = seen.members.iter().any(|m| m.name == wanted.member);
    if !is_member {
        return finish(
            JobPhase::Succeeded,
            format!("{} is no member any more", wanted.member),
        );
    }
    if identity(seen).replacing.as_ref() == Some(&wanted.member) {
        return None;
    }
    Some(
        Step::new(
            Action::UpdateIdentity(IdentityChange::Replacing(Some(wanted.member.clone()))),
            format!("task {}: a new member is added first", task.name),
        )
        .of(reasons::REPLACING_MEMBER, wanted.member.clone()),
    )
}

/// Has another member led since a task that moves the leader began?
fn has_handed_over(seen: &Observation, led_then: &[String]) -> bool {
    let leader = seen.leader_name();
    led_then
        .first()
        .is_some_and(|name| leader.is_some_and(|leader| leader != *name))
}

/// Space that could be given back, one member at a time, the leader last, at most once an hour each.
fn free_space(context: &Context<'_>) -> Option<Step> {
    let seen = context.seen;
    let policy = &context.spec.maintenance.defrag;
    if policy.when_free_percent == 0
        || context.class != Class::Healthy
        || !window_is_open(&context.spec.maintenance.window, context.now)
    {
        return None;
    }
    let min_free_bytes = i64::try_from(policy.min_free_bytes.units()?).ok()?;
    let leader = leader_id(seen);
    let mut candidates: Vec<_> = seen
        .members
        .iter()
        .filter(|member| {
            member
                .defragmented_at
                .is_none_or(|at| is_older(at, DEFRAGMENT_INTERVAL, context.now))
        })
        .filter(|member| {
            member.probe.answer().is_some_and(|answer| {
                let free_bytes = answer.db_size_bytes - answer.db_in_use_bytes;
                free_bytes >= min_free_bytes
                    && free_bytes * 100
                        >= answer.db_size_bytes * i64::from(policy.when_free_percent)
            })
        })
        .collect();
    candidates.sort_by_key(|member| member.recorded_id == leader);
    let member = candidates.first()?;
    Some(
        Step::new(
            Action::Defragment {
                name: member.name.clone(),
            },
            format!("{} could give space back", member.name),
        )
        .of(reasons::RECLAIMING_SPACE, member.name.clone()),
    )
}

// ---------------------------------------------------------------------------------------------
// What the rules ask

/// The identity. Rules after `formation` run only when there is one.
fn identity(seen: &Observation) -> &Identity {
    static NONE: Identity = Identity {
        seed: String::new(),
        token: String::new(),
        cluster_id: None,
        pending: None,
        replacing: None,
        replacements: Vec::new(),
        recovering: None,
        reclaim_started: None,
    };
    seen.identity.as_ref().unwrap_or(&NONE)
}

fn voters(list: &[ListedMember]) -> Vec<&ListedMember> {
    list.iter().filter(|listed| !listed.is_learner).collect()
}

/// How many voters there should be: one more while a healthy one is being replaced.
fn target_voters(context: &Context<'_>) -> usize {
    let wanted = usize::try_from(context.spec.replicas).unwrap_or(1);
    let seen = context.seen;
    let replaces = identity(seen).replacing.as_ref().is_some_and(|name| {
        seen.list.as_ref().is_some_and(|list| {
            list.iter()
                .any(|listed| listed_name(seen, listed) == Some(name.as_str()))
        })
    });
    wanted + usize::from(replaces)
}

fn healthy_voters_without(seen: &Observation, without: &ListedMember) -> usize {
    seen.list.as_deref().map_or(0, |list| {
        voters(list)
            .iter()
            .filter(|listed| listed.id != without.id && is_healthy(seen, listed))
            .count()
    })
}

/// The leader, if the members that answer agree about it.
pub(crate) fn leader_id(seen: &Observation) -> Option<u64> {
    let mut leaders = seen
        .members
        .iter()
        .filter_map(|member| member.probe.answer())
        .map(|answer| answer.leader_id)
        .filter(|id| *id != 0);
    let first = leaders.next()?;
    leaders.all(|id| id == first).then_some(first)
}

/// The healthy voter that should lead instead of `from`: one with the wanted template, then the one whose log
/// is longest.
fn next_leader(context: &Context<'_>, from: u64) -> Option<u64> {
    let seen = context.seen;
    voters(seen.list.as_deref()?)
        .into_iter()
        .filter(|listed| listed.id != from && is_healthy(seen, listed))
        .max_by_key(|listed| {
            let member = member_of(seen, listed);
            (
                member.is_some_and(|m| m.template_hash == seen.wanted_template_hash),
                member
                    .and_then(|m| m.probe.answer())
                    .map(|answer| answer.raft_applied_index),
                listed.id,
            )
        })
        .map(|listed| listed.id)
}

fn is_outdated(seen: &Observation, member: &MemberObservation) -> bool {
    member.template_hash != seen.wanted_template_hash
        && !member.is_deleting
        && member.phase != MemberPhase::Recovering
}

/// Does its Pod run the template that its StatefulSet has?
fn is_settled(member: &MemberObservation) -> bool {
    member.wanted_replicas == 0
        || member
            .pod
            .as_ref()
            .is_some_and(|pod| !pod.is_terminating && pod.template_hash == member.template_hash)
}

fn lag_entries(seen: &Observation, member: &MemberObservation) -> u64 {
    let newest = seen
        .members
        .iter()
        .filter_map(|m| m.probe.answer())
        .map(|answer| answer.raft_index)
        .max()
        .unwrap_or(0);
    member
        .probe
        .answer()
        .map_or(0, |answer| newest.saturating_sub(answer.raft_applied_index))
}

/// Since when a member has been in a state, as the last status says.
fn since_in_state(seen: &Observation, name: &str, state: MemberState) -> Option<Timestamp> {
    seen.previous
        .members
        .iter()
        .find(|member| member.name == name && member.state == state)
        .and_then(|member| member.since.as_ref())
        .map(|since| since.0)
}

/// Has a member that does not vote yet taken too long?
fn is_stuck(context: &Context<'_>, member: &MemberObservation) -> bool {
    let limit = context
        .spec
        .recovery
        .member_replacement
        .learner_stuck_after
        .or(Duration::from_secs(3600));
    context
        .seen
        .previous
        .members
        .iter()
        .find(|previous| previous.name == member.name)
        .filter(|previous| {
            matches!(
                previous.state,
                MemberState::Starting | MemberState::Unhealthy
            )
        })
        .and_then(|previous| previous.since.as_ref())
        .is_some_and(|since| is_older(since.0, limit, context.now))
}

/// Is a member that does not vote yet on a node that is lost? Kubernetes leaves the Pods of such a node as they
/// are, so neither this one nor its StatefulSet would ever try another node. Nothing is risked: it counts for no
/// majority, and its name and its volume are never used again, should the node come back.
fn is_left_alone(context: &Context<'_>, member: &MemberObservation) -> bool {
    let policy = &context.spec.recovery.member_replacement;
    let limit = policy.unhealthy_after.or(UNHEALTHY_AFTER);
    member.probe.answer().is_none()
        && member
            .pod
            .as_ref()
            .and_then(|pod| pod.unattended_since)
            .is_some_and(|since| is_older(since, limit, context.now))
}

/// Was the replacement of this member counted?
fn is_being_replaced(context: &Context<'_>, name: &str) -> bool {
    let mut recent = identity(context.seen).replacements.iter();
    recent.any(|(replaced, at)| replaced == name && !is_older(*at, REPLACEMENT_WINDOW, context.now))
}

fn may_replace_now(context: &Context<'_>) -> bool {
    let recent = identity(context.seen)
        .replacements
        .iter()
        .filter(|(_, at)| !is_older(*at, REPLACEMENT_WINDOW, context.now))
        .count();
    recent
        < usize::try_from(context.spec.recovery.member_replacement.max_per_hour)
            .unwrap_or(usize::MAX)
}

fn deletes_claims(context: &Context<'_>) -> bool {
    context.spec.storage.retain.when_replaced == RetainPolicy::Delete
}

/// A clock that goes back makes nothing older.
pub(crate) fn is_older(since: Timestamp, limit: Duration, now: Timestamp) -> bool {
    now.duration_since(since).unsigned_abs() >= limit && now > since
}

fn growth_reason(seen: &Observation) -> &'static str {
    let identity = identity(seen);
    let has_voted = seen.previous.voters;
    let replaces = identity.replacing.is_some() || has_voted > seen.previous.replicas;
    if replaces {
        reasons::REPLACING_MEMBER
    } else {
        reasons::SCALING_OUT
    }
}

fn peer_url(context: &Context<'_>, name: &str) -> String {
    let seen = context.seen;
    let scheme = match context.spec.tls.peer.mode {
        metastore_operator_api::TlsMode::Disabled => "http",
        metastore_operator_api::TlsMode::Required => "https",
    };
    let host = names::member_host(
        name,
        &seen.cluster,
        &seen.namespace,
        &context.spec.cluster_domain,
    );
    format!("{scheme}://{host}:{}", names::PEER_PORT)
}

/// What a new member must be told: exactly the members that the cluster has, itself included.
fn join_list(seen: &Observation, list: &[ListedMember], name: &str) -> Vec<(String, String)> {
    let mut members: Vec<_> = list
        .iter()
        .filter_map(|listed| {
            let own = listed_name(seen, listed)?;
            let url = listed.peer_urls.first()?.clone();
            Some((own.to_owned(), url))
        })
        .collect();
    members.sort();
    debug_assert!(members.iter().any(|(own, _)| own == name));
    members
}
