//! What state a cluster is in, which says what may be done at all.

use crate::observation::{ListedMember, MemberObservation, Observation};
use crate::quorum::quorum;

/// State of a cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// There is nothing yet.
    Uninitialized,
    /// The seed has not served yet.
    Forming,
    /// A leader, and every voter is well.
    Healthy,
    /// A majority is well, somebody is not.
    Degraded,
    /// No majority answers, and it may come back.
    QuorumLost,
    /// Pods are ready, and the operator reaches none.
    Unreachable,
    /// Two cluster ids, or not ours: nothing may be done.
    SplitBrain,
}

/// State of the cluster that is seen.
pub fn classify(observation: &Observation) -> Class {
    let Some(identity) = &observation.identity else {
        return Class::Uninitialized;
    };
    let answers = || {
        observation
            .members
            .iter()
            .filter_map(|member| member.probe.answer())
    };
    let first_id = answers().next().map(|answer| answer.cluster_id);
    let expected = identity.cluster_id.or(first_id);
    if answers().any(|answer| Some(answer.cluster_id) != expected) {
        return Class::SplitBrain;
    }
    if identity.cluster_id.is_none() {
        return Class::Forming;
    }
    let any_pod_ready = observation
        .members
        .iter()
        .any(|member| member.pod.as_ref().is_some_and(|pod| pod.is_ready));
    if answers().next().is_none() && any_pod_ready {
        return Class::Unreachable;
    }
    let Some(list) = &observation.list else {
        return Class::QuorumLost;
    };
    let voters: Vec<_> = list.iter().filter(|member| !member.is_learner).collect();
    let healthy = voters
        .iter()
        .filter(|voter| is_healthy(observation, voter))
        .count();
    if healthy < quorum(voters.len()) {
        Class::QuorumLost
    } else if healthy < voters.len() {
        Class::Degraded
    } else {
        Class::Healthy
    }
}

/// Does this member of the list serve?
pub(crate) fn is_healthy(observation: &Observation, listed: &ListedMember) -> bool {
    let Some(member) = member_of(observation, listed) else {
        return false;
    };
    let is_corrupt = |alarm: &&crate::Alarm| alarm.kind == crate::AlarmKind::Corrupt;
    // While data is known to differ somewhere, every member says that it is not ready, the good ones too.
    let readiness_counts = !observation.alarms.iter().any(|alarm| is_corrupt(&alarm));
    let leaves = member
        .pod
        .as_ref()
        .is_some_and(|pod| pod.is_terminating || (readiness_counts && !pod.is_ready));
    !leaves
        && member
            .probe
            .answer()
            .is_some_and(|answer| answer.member_id == listed.id && answer.leader_id != 0)
        && !observation
            .alarms
            .iter()
            .filter(is_corrupt)
            .any(|alarm| alarm.member_id == listed.id)
}

/// The StatefulSet of a member of the list: by the id that was recorded or answered, else by name, else, for a
/// member that never started, by address.
pub(crate) fn member_of<'a>(
    observation: &'a Observation,
    listed: &ListedMember,
) -> Option<&'a MemberObservation> {
    observation
        .members
        .iter()
        .find(|member| belongs_together(observation, member, listed))
}

/// The member of the list that a StatefulSet stands for.
pub(crate) fn listed_of<'a>(
    observation: &'a Observation,
    member: &MemberObservation,
) -> Option<&'a ListedMember> {
    observation
        .list
        .as_ref()?
        .iter()
        .find(|listed| belongs_together(observation, member, listed))
}

fn belongs_together(
    observation: &Observation,
    member: &MemberObservation,
    listed: &ListedMember,
) -> bool {
    if let Some(id) = member.recorded_id {
        return id == listed.id;
    }
    if !listed.name.is_empty() {
        return listed.name == member.name;
    }
    listed_name(observation, listed) == Some(member.name.as_str())
}

/// The name of a member: its own, or the one in its address.
pub(crate) fn listed_name<'a>(
    observation: &Observation,
    listed: &'a ListedMember,
) -> Option<&'a str> {
    if !listed.name.is_empty() {
        return Some(&listed.name);
    }
    // http://NAME-0.CLUSTER-peer.…
    let host = listed.peer_urls.first()?.split("://").nth(1)?;
    let suffix = format!("-0.{}-peer.", observation.cluster);
    host.find(&suffix).map(|end| &host[..end])
}
