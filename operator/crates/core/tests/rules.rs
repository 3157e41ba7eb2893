//! One situation and its one action, rule by rule. What happens over time is in `simulation.rs`.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

use std::time::Duration;

use jiff::Timestamp;
use metastore_operator_api::{
    AuthSpec, AutoGrow, ClusterSpec, CompactTask, JobPhase, LocalReference, MemberState,
    MemberStatus, MoveLeaderTask, NospacePolicy, Phase, RecoverQuorumTask, RetainPolicy, TaskSpec,
    TaskStatus, conditions,
};
use metastore_operator_core::{
    Action, Alarm, AlarmKind, ClaimObservation, Decision, Identity, IdentityChange, ListedMember,
    MemberAnswer, MemberObservation, MemberPhase, Observation, PodObservation, Probe, Start,
    TaskObservation, TaskStep, decide,
};

const HASH: &str = "hash";

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn earlier(seconds: u64) -> Timestamp {
    now().checked_sub(Duration::from_secs(seconds)).unwrap()
}

/// A healthy cluster of members m1, m2, …, whose leader is m1.
fn healthy(replicas: u64) -> (ClusterSpec, Observation) {
    let spec = ClusterSpec {
        replicas: i32::try_from(replicas).unwrap(),
        ..ClusterSpec::default()
    };
    let members = (1..=replicas).map(member).collect();
    let list = (1..=replicas).map(listed).collect();
    let seen = Observation {
        cluster: "c".into(),
        namespace: "n".into(),
        identity: Some(Identity {
            seed: "m1".into(),
            cluster_id: Some(7),
            ..Identity::default()
        }),
        members,
        list: Some(list),
        wanted_template_hash: HASH.into(),
        wanted_storage_bytes: 10 << 30,
        quota_bytes: 9 << 30,
        fresh_name: "c-fresh".into(),
        ..Observation::default()
    };
    (spec, seen)
}

fn listed(id: u64) -> ListedMember {
    ListedMember {
        id,
        name: format!("m{id}"),
        peer_urls: vec![format!("http://m{id}-0.c-peer.n.svc:2380")],
        is_learner: false,
    }
}

fn member(id: u64) -> MemberObservation {
    MemberObservation {
        name: format!("m{id}"),
        wanted_replicas: 1,
        template_hash: HASH.into(),
        phase: MemberPhase::Running,
        recorded_id: Some(id),
        pod: Some(PodObservation {
            is_ready: true,
            template_hash: HASH.into(),
            ..PodObservation::default()
        }),
        claim: Some(ClaimObservation {
            requested_bytes: 10 << 30,
            capacity_bytes: 10 << 30,
            ..ClaimObservation::default()
        }),
        probe: Probe::Answered(MemberAnswer {
            member_id: id,
            cluster_id: 7,
            leader_id: 1,
            version: "1.0.0".into(),
            revision: 100,
            ..MemberAnswer::default()
        }),
        ..MemberObservation::default()
    }
}

fn fail(seen: &mut Observation, id: usize) {
    let member = &mut seen.members[id - 1];
    member.probe = Probe::Failed("no answer".into());
    member.pod.as_mut().unwrap().is_ready = false;
}

fn unhealthy_for(seen: &mut Observation, name: &str, seconds: u64) {
    was_for(seen, name, MemberState::Unhealthy, seconds);
}

/// The last status says so.
fn was_for(seen: &mut Observation, name: &str, state: MemberState, seconds: u64) {
    seen.previous.members.push(MemberStatus {
        name: name.into(),
        state,
        since: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            earlier(seconds),
        )),
        ..MemberStatus::default()
    });
}

fn state_of(decision: &Decision, kind: &str) -> (String, String) {
    let condition = decision
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == kind)
        .unwrap();
    (condition.status.clone(), condition.reason.clone())
}

fn is_wait(decision: &Decision) -> bool {
    matches!(decision.action, Action::Wait(_))
}

#[test]
fn a_healthy_cluster_is_left_alone_and_says_so() {
    let (spec, seen) = healthy(3);
    let decision = decide(&spec, &seen, now());
    assert_eq!(decision.action, Action::Wait(Duration::from_secs(30)));
    assert_eq!(decision.status.phase, Phase::Running);
    assert_eq!(decision.status.ready, "3/3");
    assert_eq!(decision.status.leader.as_deref(), Some("m1"));
    assert_eq!(decision.status.cluster_id.as_deref(), Some("7"));
    for kind in [
        "Accepted",
        "Available",
        "AllMembersReady",
        "AllMembersUpdated",
        "ClusterIDConsistent",
    ] {
        assert_eq!(state_of(&decision, kind).0, "True", "{kind}");
    }
    for kind in ["Progressing", "Degraded", "Paused"] {
        assert_eq!(state_of(&decision, kind).0, "False", "{kind}");
    }
    assert_eq!(
        decision.status.conditions.len(),
        conditions::CLUSTER_CONDITIONS.len()
    );
}

#[test]
fn deciding_again_about_the_own_status_changes_nothing() {
    let (spec, mut seen) = healthy(3);
    let first = decide(&spec, &seen, now());
    seen.previous = first.status.clone();
    let later = now().checked_add(Duration::from_secs(100)).unwrap();
    assert_eq!(decide(&spec, &seen, later).status, first.status);
}

#[test]
fn a_deleted_cluster_keeps_its_data_unless_the_policy_says_otherwise() {
    let (mut spec, mut seen) = healthy(3);
    seen.is_deleting = true;
    assert!(is_wait(&decide(&spec, &seen, now())));
    spec.deletion.policy = RetainPolicy::Delete;
    seen.has_finalizer = true;
    assert_eq!(decide(&spec, &seen, now()).action, Action::DeleteData);
    seen.is_deleting = false;
    spec.deletion.policy = RetainPolicy::Retain;
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::SetFinalizer { present: false }
    );
}

#[test]
fn paused_and_rejected_clusters_are_only_watched() {
    let (mut spec, mut seen) = healthy(1);
    spec.replicas = 3;
    spec.paused = true;
    let decision = decide(&spec, &seen, now());
    assert!(is_wait(&decision));
    assert_eq!(
        state_of(&decision, "Paused"),
        ("True".into(), "Spec".into())
    );
    spec.paused = false;
    seen.rejection = Some(("InvalidOverlay".into(), "no".into()));
    let decision = decide(&spec, &seen, now());
    assert!(is_wait(&decision));
    assert_eq!(
        state_of(&decision, "Accepted"),
        ("False".into(), "InvalidOverlay".into())
    );
    assert_eq!(
        state_of(&decision, "Available").0,
        "True",
        "what runs is looked at"
    );
}

#[test]
fn two_cluster_ids_freeze_everything() {
    let (mut spec, mut seen) = healthy(3);
    spec.replicas = 5;
    if let Probe::Answered(answer) = &mut seen.members[2].probe {
        answer.cluster_id = 8;
    }
    let decision = decide(&spec, &seen, now());
    assert!(is_wait(&decision));
    assert_eq!(state_of(&decision, "ClusterIDConsistent").0, "False");
    assert_eq!(decision.status.phase, Phase::Frozen);
    seen.stale_objects = vec!["Service/c".into()];
    assert!(is_wait(&decide(&spec, &seen, now())));
}

#[test]
fn members_that_only_the_operator_does_not_reach_are_left_alone() {
    let (spec, mut seen) = healthy(3);
    for member in &mut seen.members {
        member.probe = Probe::Failed("no route".into());
    }
    seen.list = None;
    let decision = decide(&spec, &seen, now());
    assert!(is_wait(&decision));
    assert_eq!(
        state_of(&decision, "Available"),
        ("Unknown".into(), "Unreachable".into())
    );
    // A rotation by deleting all Secrets takes the operator's own certificate, too: it is written anew.
    seen.stale_objects = vec!["Secret/c-client-tls".into()];
    let decision = decide(&spec, &seen, now());
    assert_eq!(decision.action, Action::ApplyStaticObjects);
    assert_eq!(state_of(&decision, "Available").0, "Unknown");
}

#[test]
fn a_cluster_is_not_formed_over_the_volume_of_an_earlier_one() {
    let spec = ClusterSpec::default();
    let mut seen = Observation {
        fresh_name: "c-fresh".into(),
        wanted_template_hash: HASH.into(),
        ..Observation::default()
    };
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::CreateIdentity {
            seed: "c-fresh".into()
        }
    );
    seen.orphan_claims = vec!["c-old".into()];
    let decision = decide(&spec, &seen, now());
    assert!(is_wait(&decision), "{:?}", decision.action);
    assert!(decision.why.contains("c-old"), "{}", decision.why);
}

#[test]
fn an_identity_that_was_deleted_is_written_anew_from_what_members_answer() {
    let (spec, mut seen) = healthy(3);
    seen.identity = None;
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::AdoptIdentity { cluster_id: 7 }
    );
    if let Probe::Answered(answer) = &mut seen.members[2].probe {
        answer.cluster_id = 8;
    }
    assert!(is_wait(&decide(&spec, &seen, now())));
}

#[test]
fn a_latched_cluster_is_never_formed_again() {
    let (spec, mut seen) = healthy(1);
    seen.members.clear();
    seen.list = None;
    for _ in 0..2 {
        let decision = decide(&spec, &seen, now());
        assert!(!matches!(
            decision.action,
            Action::CreateMember {
                start: Start::Form,
                ..
            }
        ));
        seen.orphan_claims = vec!["m1".into()];
    }
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::CreateMember {
            name: "m1".into(),
            start: Start::Run
        }
    );
}

#[test]
fn a_sleeping_cluster_stops_its_leader_last() {
    let (mut spec, mut seen) = healthy(3);
    spec.hibernated = true;
    let mut stopped = Vec::new();
    for _ in 0..3 {
        let Action::Scale { name, replicas: 0 } = decide(&spec, &seen, now()).action else {
            panic!("it should stop somebody");
        };
        seen.members
            .iter_mut()
            .find(|m| m.name == name)
            .unwrap()
            .wanted_replicas = 0;
        stopped.push(name);
    }
    assert_eq!(stopped.last().map(String::as_str), Some("m1"));
    let decision = decide(&spec, &seen, now());
    assert!(is_wait(&decision));
    assert_eq!(
        state_of(&decision, "Available"),
        ("False".into(), "Hibernated".into())
    );
}

#[test]
fn a_lost_majority_is_waited_for() {
    let (spec, mut seen) = healthy(3);
    fail(&mut seen, 2);
    fail(&mut seen, 3);
    unhealthy_for(&mut seen, "m2", 100_000);
    unhealthy_for(&mut seen, "m3", 100_000);
    seen.list = None;
    let decision = decide(&spec, &seen, now());
    assert!(is_wait(&decision), "{:?}", decision.action);
    assert_eq!(
        state_of(&decision, "Available"),
        ("False".into(), "QuorumLost".into())
    );
}

fn task(spec: TaskSpec) -> TaskObservation {
    TaskObservation {
        name: "t".into(),
        spec: TaskSpec {
            cluster_ref: LocalReference { name: "c".into() },
            ..spec
        },
        status: TaskStatus::default(),
    }
}

#[test]
fn a_lost_majority_is_given_up_only_with_consent_that_names_the_cluster() {
    let (spec, mut seen) = healthy(3);
    fail(&mut seen, 2);
    fail(&mut seen, 3);
    seen.list = None;
    let recover = |consent: &str, survivor: &str| {
        task(TaskSpec {
            recover_quorum: Some(RecoverQuorumTask {
                accept_data_loss: consent.into(),
                survivor: survivor.into(),
            }),
            ..TaskSpec::default()
        })
    };
    // m4 has no volume any more, and m5 has received less than the others.
    seen.members.push(MemberObservation {
        claim: None,
        probe: Probe::NotAsked,
        ..member(4)
    });
    seen.members.push(member(5));
    for member in &mut seen.members {
        if let Probe::Answered(answer) = &mut member.probe {
            answer.raft_index = 10 - answer.member_id;
        }
    }
    for (consent, survivor) in [("8", "m1"), ("7", "m9"), ("7", "m4"), ("7", "m5")] {
        seen.tasks = vec![recover(consent, survivor)];
        let decision = decide(&spec, &seen, now());
        assert!(
            matches!(
                &decision.action,
                Action::Task {
                    step: TaskStep::Finish {
                        phase: JobPhase::Rejected,
                        ..
                    },
                    ..
                }
            ),
            "{:?}",
            decision.action
        );
    }
    let mut task = recover("7", "m1");
    seen.tasks = vec![task.clone()];
    assert!(matches!(
        decide(&spec, &seen, now()).action,
        Action::Task {
            step: TaskStep::Begin,
            ..
        }
    ));
    task.status.phase = JobPhase::Running;
    seen.tasks = vec![task];
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::UpdateIdentity(IdentityChange::Recovering(Some("m1".into())))
    );
    // Then everybody else is stopped before the survivor is forced.
    seen.identity.as_mut().unwrap().recovering = Some("m1".into());
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::Scale {
            name: "m2".into(),
            replicas: 0
        }
    );
    seen.members.truncate(1);
    // Without a majority its pod is not ready either.
    fail(&mut seen, 1);
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::ForceNewCluster { name: "m1".into() }
    );
}

#[test]
fn a_full_store_is_compacted_then_reclaimed_then_freed() {
    let (mut spec, mut seen) = healthy(3);
    let alarm = Alarm {
        member_id: 2,
        kind: AlarmKind::Nospace,
    };
    seen.alarms = vec![alarm];
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::CompactForSpace { revision: 100 }
    );
    seen.identity.as_mut().unwrap().reclaim_started = Some(earlier(60));
    let mut order = Vec::new();
    for _ in 0..3 {
        let Action::Defragment { name } = decide(&spec, &seen, now()).action else {
            panic!("it should reclaim");
        };
        let member = seen.members.iter_mut().find(|m| m.name == name).unwrap();
        member.defragmented_at = Some(now());
        order.push(name);
    }
    assert_eq!(
        order.last().map(String::as_str),
        Some("m1"),
        "the leader is last"
    );
    assert_eq!(decide(&spec, &seen, now()).action, Action::Disarm(alarm));
    // It did not help: nothing is cleared.
    if let Probe::Answered(answer) = &mut seen.members[0].probe {
        answer.db_size_bytes = 9 << 30;
    }
    assert!(is_wait(&decide(&spec, &seen, now())));
    // A larger quota helps when the members have it, and not before.
    seen.quota_bytes = 90 << 30;
    let set_quota = |seen: &mut Observation, quota: i64| {
        for member in &mut seen.members {
            if let Probe::Answered(answer) = &mut member.probe {
                answer.db_quota_bytes = quota;
            }
        }
    };
    set_quota(&mut seen, 9 << 30);
    assert!(is_wait(&decide(&spec, &seen, now())));
    set_quota(&mut seen, 90 << 30);
    assert_eq!(decide(&spec, &seen, now()).action, Action::Disarm(alarm));
    seen.quota_bytes = 9 << 30;
    spec.recovery.alarms.nospace = NospacePolicy::Manual;
    let decision = decide(&spec, &seen, now());
    assert!(is_wait(&decision));
    assert_eq!(
        state_of(&decision, "StorageHealthy"),
        ("False".into(), "Nospace".into())
    );
}

#[test]
fn volumes_of_a_full_store_grow_step_by_step_up_to_their_limit() {
    let (mut spec, mut seen) = healthy(3);
    spec.storage.auto_grow = Some(AutoGrow {
        max_size: "12Gi".into(),
        step_percent: 15,
    });
    seen.alarms = vec![Alarm {
        member_id: 2,
        kind: AlarmKind::Nospace,
    }];
    seen.identity.as_mut().unwrap().reclaim_started = Some(earlier(60));
    for member in &mut seen.members {
        member.defragmented_at = Some(now());
        if let Probe::Answered(answer) = &mut member.probe {
            answer.db_size_bytes = 9 << 30;
            answer.db_quota_bytes = 9 << 30;
        }
    }
    let grown = |bytes: u64| Action::GrowClaim {
        name: "m1".into(),
        bytes,
    };
    // 15 % of 10 Gi, in whole mebibytes.
    assert_eq!(decide(&spec, &seen, now()).action, grown(11776 << 20));
    // A quota of one's own does not grow, so larger volumes would not help.
    spec.config.quota = Some("9Gi".into());
    assert!(is_wait(&decide(&spec, &seen, now())));
    spec.config.quota = None;

    // The next step only when everybody has the size and the quota of the last one.
    seen.wanted_storage_bytes = 11776 << 20;
    seen.quota_bytes = (11776 << 20) / 10 * 9;
    seen.wanted_template_hash = "larger quota".into();
    let claim_of = |seen: &mut Observation, at: usize, requested: u64, capacity: u64| {
        let claim = seen.members[at].claim.as_mut().unwrap();
        claim.requested_bytes = requested << 20;
        claim.capacity_bytes = capacity << 20;
    };
    claim_of(&mut seen, 0, 11776, 11776);
    let follows = |name: &str| Action::GrowClaim {
        name: name.into(),
        bytes: 11776 << 20,
    };
    assert_eq!(decide(&spec, &seen, now()).action, follows("m2"));
    claim_of(&mut seen, 1, 11776, 11776);
    assert_eq!(decide(&spec, &seen, now()).action, follows("m3"));
    claim_of(&mut seen, 2, 11776, 10240);
    // A full store does not wait for the window.
    spec.maintenance.window = Some(metastore_operator_api::MaintenanceWindow {
        schedule: "0 2 * * *".into(),
        duration: "1h".into(),
        time_zone: "UTC".into(),
    });
    let rolls = Action::Roll { name: "m2".into() };
    assert_eq!(decide(&spec, &seen, now()).action, rolls);
    for member in &mut seen.members {
        member.template_hash = "larger quota".into();
        member.pod.as_mut().unwrap().template_hash = "larger quota".into();
        if let Probe::Answered(answer) = &mut member.probe {
            answer.db_quota_bytes = i64::try_from(seen.quota_bytes).unwrap();
            answer.db_size_bytes = 11 << 30;
        }
    }
    let waits = decide(&spec, &seen, now());
    assert!(
        is_wait(&waits),
        "the volume of m3 has not grown yet: {:?}",
        waits.action
    );
    claim_of(&mut seen, 2, 11776, 11776);
    assert_eq!(decide(&spec, &seen, now()).action, grown(12 << 30));

    // It helped, or it is as large as it may be.
    seen.wanted_storage_bytes = 12 << 30;
    for at in 0..3 {
        claim_of(&mut seen, at, 12 << 10, 12 << 10);
    }
    let decision = decide(&spec, &seen, now());
    assert!(is_wait(&decision), "{:?}", decision.action);
    assert_eq!(
        state_of(&decision, "Degraded"),
        ("True".into(), "Nospace".into())
    );
    for member in &mut seen.members {
        if let Probe::Answered(answer) = &mut member.probe {
            answer.db_size_bytes = 9 << 30;
        }
    }
    assert!(matches!(
        decide(&spec, &seen, now()).action,
        Action::Disarm(_)
    ));
}

#[test]
fn a_member_with_other_data_is_fenced_and_replaced() {
    let (spec, mut seen) = healthy(3);
    seen.alarms = vec![Alarm {
        member_id: 3,
        kind: AlarmKind::Corrupt,
    }];
    // Every member says that it is not ready while the alarm is raised.
    for member in &mut seen.members {
        member.pod.as_mut().unwrap().is_ready = false;
    }
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::Fence { name: "m3".into() }
    );
    seen.members[2].is_fenced = true;
    seen.members[2].wanted_replicas = 0;
    seen.members[2].pod = None;
    seen.members[2].probe = Probe::NotAsked;
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::UpdateIdentity(IdentityChange::ReplacementBegins("m3".into()))
    );
    seen.identity.as_mut().unwrap().replacements = vec![("m3".into(), now())];
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::RemoveMember {
            id: 3,
            name: "m3".into()
        }
    );
}

#[test]
fn replacements_are_limited_by_the_hour() {
    let (spec, mut seen) = healthy(3);
    fail(&mut seen, 3);
    unhealthy_for(&mut seen, "m3", 1000);
    seen.identity.as_mut().unwrap().replacements = vec![("m0".into(), earlier(600))];
    let decision = decide(&spec, &seen, now());
    assert!(is_wait(&decision), "{:?}", decision.action);
    assert_eq!(
        state_of(&decision, "Degraded"),
        ("True".into(), "ReplacementRateLimited".into())
    );
    seen.identity.as_mut().unwrap().replacements = vec![("m0".into(), earlier(4000))];
    assert!(!is_wait(&decide(&spec, &seen, now())));
}

#[test]
fn a_member_that_is_down_for_a_moment_is_not_replaced() {
    let (spec, mut seen) = healthy(3);
    fail(&mut seen, 3);
    unhealthy_for(&mut seen, "m3", 60);
    let decision = decide(&spec, &seen, now());
    assert!(is_wait(&decision), "{:?}", decision.action);
    assert_eq!(
        state_of(&decision, "Degraded"),
        ("True".into(), "MemberDown".into())
    );
    assert_eq!(state_of(&decision, "Available").0, "True");
}

/// The member with this number, in a cluster in which one has been slow for some seconds.
fn slow_for(seconds: u64) -> (ClusterSpec, Observation) {
    let (spec, mut seen) = healthy(3);
    answers_late(&mut seen, 3);
    was_for(&mut seen, "m3", MemberState::Slow, seconds);
    (spec, seen)
}

fn answers_late(seen: &mut Observation, id: usize) {
    let Probe::Answered(answer) = &mut seen.members[id - 1].probe else {
        panic!("it does not answer");
    };
    answer.answer_time = Duration::from_millis(1001);
}

#[test]
fn a_member_that_has_been_slow_for_long_is_replaced_and_the_new_one_is_added_first() {
    let (spec, mut seen) = slow_for(1801);
    let begins = Action::UpdateIdentity(IdentityChange::ReplacementBegins("m3".into()));
    let decision = decide(&spec, &seen, now());
    assert_eq!(decision.action, begins);
    assert_eq!(
        state_of(&decision, "Degraded"),
        ("True".into(), "MemberSlow".into())
    );
    assert_eq!(decision.status.ready, "3/3", "it serves");
    let identity = seen.identity.as_mut().unwrap();
    identity.replacements = vec![("m3".into(), now())];
    let replaces = Action::UpdateIdentity(IdentityChange::Replacing(Some("m3".into())));
    assert_eq!(decide(&spec, &seen, now()).action, replaces);
    seen.identity.as_mut().unwrap().replacing = Some("m3".into());
    let adds = IdentityChange::Pending(Some("c-fresh".into()));
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::UpdateIdentity(adds)
    );

    let (spec, mut seen) = healthy(3);
    was_for(&mut seen, "m2", MemberState::Slow, 1801);
    for (member, index) in [(0, 60_001), (1, 10_000), (2, 60_001)] {
        let Probe::Answered(answer) = &mut seen.members[member].probe else {
            panic!("it does not answer");
        };
        (answer.raft_index, answer.raft_applied_index) = (index, index);
    }
    let begins = Action::UpdateIdentity(IdentityChange::ReplacementBegins("m2".into()));
    assert_eq!(decide(&spec, &seen, now()).action, begins, "it is behind");
}

#[test]
fn a_slow_member_stays_while_the_fault_may_be_another() {
    let waits = |spec: &ClusterSpec, seen: &Observation, why: &str| {
        let decision = decide(spec, seen, now());
        assert!(is_wait(&decision), "{why}: {:?}", decision.action);
        decision
    };
    let (spec, seen) = slow_for(1799);
    waits(&spec, &seen, "not for long enough");
    let (spec, seen) = slow_for(200);
    let decision = waits(&spec, &seen, "for a moment");
    assert_eq!(state_of(&decision, "Degraded").0, "False");

    let (spec, mut seen) = slow_for(2000);
    answers_late(&mut seen, 1);
    waits(&spec, &seen, "another one is slow, too");

    let (spec, mut seen) = slow_for(2000);
    fail(&mut seen, 1);
    waits(&spec, &seen, "another one is down");

    let (spec, mut seen) = slow_for(2000);
    seen.identity.as_mut().unwrap().replacements = vec![("m0".into(), earlier(600))];
    waits(&spec, &seen, "the limit per hour");

    let (mut spec, seen) = slow_for(2000);
    spec.recovery.member_replacement.slow_after = "0s".into();
    waits(&spec, &seen, "nobody wants it");

    let (spec, mut seen) = healthy(3);
    was_for(&mut seen, "m3", MemberState::Slow, 2000);
    let decision = waits(&spec, &seen, "it has caught up");
    assert_eq!(state_of(&decision, "Degraded").0, "False");

    let (spec, mut seen) = healthy(1);
    answers_late(&mut seen, 1);
    was_for(&mut seen, "m1", MemberState::Slow, 2000);
    waits(&spec, &seen, "nobody else says that it is not the machine");
}

#[test]
fn a_task_that_moves_the_leader_anywhere_does_it_once() {
    let (spec, mut seen) = healthy(3);
    seen.tasks = vec![TaskObservation {
        name: "t".into(),
        spec: TaskSpec {
            cluster_ref: LocalReference { name: "c".into() },
            move_leader: Some(MoveLeaderTask::default()),
            ..TaskSpec::default()
        },
        status: TaskStatus {
            phase: JobPhase::Running,
            done_members: vec!["m1".into()],
            ..TaskStatus::default()
        },
    }];
    let step = |seen: &Observation| match decide(&spec, seen, now()).action {
        Action::Task { step, .. } => step,
        other => panic!("{other:?}"),
    };
    assert!(matches!(step(&seen), TaskStep::MoveLeader { from: 1, .. }));
    seen.tasks[0].status.done_members = vec!["m2".into()];
    let TaskStep::Finish { phase, .. } = step(&seen) else {
        panic!("it moves the leader again");
    };
    assert_eq!(phase, JobPhase::Succeeded);
}

#[test]
fn a_clock_that_went_back_makes_nobody_old() {
    let (spec, mut seen) = healthy(3);
    fail(&mut seen, 3);
    seen.previous.members.push(MemberStatus {
        name: "m3".into(),
        state: MemberState::Unhealthy,
        since: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            now().checked_add(Duration::from_secs(100_000)).unwrap(),
        )),
        ..MemberStatus::default()
    });
    assert!(is_wait(&decide(&spec, &seen, now())));
}

#[test]
fn the_voter_that_is_one_too_many_is_not_the_leader() {
    let (mut spec, seen) = healthy(3);
    spec.replicas = 1;
    let Action::RemoveMember { id, .. } = decide(&spec, &seen, now()).action else {
        panic!("it should remove somebody");
    };
    assert_ne!(id, 1);
}

#[test]
fn an_old_address_of_a_member_is_mended_while_everybody_is_well() {
    let (mut spec, mut seen) = healthy(3);
    spec.cluster_domain = "cluster.local".into();
    for (at, name) in ["m1", "m2", "m3"].into_iter().enumerate() {
        let peer_url = format!("http://{name}-0.c-peer.n.svc.cluster.local:2380");
        let update = Action::UpdatePeerUrl {
            id: at as u64 + 1,
            name: name.into(),
            peer_url: peer_url.clone(),
        };
        assert_eq!(decide(&spec, &seen, now()).action, update);
        let mut sick = seen.clone();
        fail(&mut sick, 3);
        assert!(is_wait(&decide(&spec, &sick, now())));
        seen.list.as_mut().unwrap()[at].peer_urls = vec![peer_url];
    }
    assert!(is_wait(&decide(&spec, &seen, now())));
}

#[test]
fn what_others_did_to_a_member_is_undone() {
    // Its configuration is gone, also while there is no majority.
    let (spec, mut seen) = healthy(3);
    seen.members[1].lacks_config = true;
    let written = Action::SetStart {
        name: "m2".into(),
        start: Start::Run,
        member_id: Some(2),
    };
    assert_eq!(decide(&spec, &seen, now()).action, written);
    fail(&mut seen, 2);
    fail(&mut seen, 3);
    seen.list = None;
    assert_eq!(decide(&spec, &seen, now()).action, written);
    // Its StatefulSet has another number of replicas.
    for (is_fenced, found, wanted) in [(false, 0, 1), (false, 2, 1), (true, 1, 0)] {
        let (spec, mut seen) = healthy(3);
        seen.members[1].is_fenced = is_fenced;
        seen.members[1].wanted_replicas = found;
        let scaled = Action::Scale {
            name: "m2".into(),
            replicas: wanted,
        };
        assert_eq!(decide(&spec, &seen, now()).action, scaled);
    }
}

/// An operator that was killed while it deleted the objects of a member goes on with it.
#[test]
fn a_member_that_has_left_does_not_get_its_configuration_back() {
    let (mut spec, mut seen) = healthy(3);
    spec.replicas = 2;
    seen.list.as_mut().unwrap().remove(1);
    seen.members[1].lacks_config = true;
    let decision = decide(&spec, &seen, now());
    let Action::DeleteMember { name, .. } = decision.action else {
        panic!("{:?}", decision.action);
    };
    assert_eq!(name, "m2");
    // Nobody can say who has left: a member must be able to start.
    seen.list = None;
    let decision = decide(&spec, &seen, now());
    let Action::SetStart { name, .. } = decision.action else {
        panic!("{:?}", decision.action);
    };
    assert_eq!(name, "m2");
}

#[test]
fn a_volume_grows_before_members_restart() {
    let (spec, mut seen) = healthy(3);
    seen.wanted_storage_bytes = 20 << 30;
    seen.wanted_template_hash = "other".into();
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::GrowClaim {
            name: "m1".into(),
            bytes: 20 << 30
        }
    );
}

#[test]
fn restarts_wait_for_the_window_and_for_each_other() {
    let (mut spec, mut seen) = healthy(3);
    seen.wanted_template_hash = "other".into();
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::Roll { name: "m2".into() }
    );
    // The Pod of m2 still has the old template: nobody else is touched.
    seen.members[1].template_hash = "other".into();
    assert!(is_wait(&decide(&spec, &seen, now())));
    seen.members[1].pod.as_mut().unwrap().template_hash = "other".into();
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::Roll { name: "m3".into() }
    );
    spec.maintenance.window = Some(metastore_operator_api::MaintenanceWindow {
        // now() is at eight in the morning.
        schedule: "0 2 * * *".into(),
        duration: "1h".into(),
        time_zone: "UTC".into(),
    });
    assert!(is_wait(&decide(&spec, &seen, now())));
    // A member that does not serve restarts at any time: that undoes a bad template.
    fail(&mut seen, 3);
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::Roll { name: "m3".into() }
    );
}

#[test]
fn authentication_is_switched_on_once() {
    let (mut spec, mut seen) = healthy(1);
    spec.auth = AuthSpec {
        enabled: true,
        ..AuthSpec::default()
    };
    seen.is_auth_enabled = Some(false);
    assert_eq!(decide(&spec, &seen, now()).action, Action::EnableAuth);
    seen.is_auth_enabled = None;
    assert!(
        is_wait(&decide(&spec, &seen, now())),
        "nobody knows whether it is on"
    );
    seen.is_auth_enabled = Some(true);
    assert!(is_wait(&decide(&spec, &seen, now())));
    spec.auth.enabled = false;
    assert_eq!(decide(&spec, &seen, now()).action, Action::DisableAuth);
    seen.is_auth_enabled = Some(false);
    assert!(is_wait(&decide(&spec, &seen, now())));
}

#[test]
fn nobody_restarts_for_a_certificate_that_is_not_there() {
    let (spec, mut seen) = healthy(3);
    seen.wanted_template_hash = "with TLS".into();
    seen.certificates.is_enabled = true;
    assert!(is_wait(&decide(&spec, &seen, now())));
    seen.certificates.is_ready = true;
    let action = decide(&spec, &seen, now()).action;
    assert!(matches!(action, Action::Roll { .. }), "{action:?}");
}

#[test]
fn tasks_are_done_step_by_step() {
    let (spec, mut seen) = healthy(3);
    let mut compact = task(TaskSpec {
        compact: Some(CompactTask { revision: 5 }),
        ..TaskSpec::default()
    });
    seen.tasks = vec![compact.clone()];
    let step = |seen: &Observation| match decide(&spec, seen, now()).action {
        Action::Task { step, .. } => step,
        other => panic!("{other:?}"),
    };
    assert_eq!(step(&seen), TaskStep::Begin);
    compact.status.phase = JobPhase::Running;
    seen.tasks = vec![compact];
    assert_eq!(step(&seen), TaskStep::Compact(5));
    let mut lead = task(TaskSpec {
        move_leader: Some(MoveLeaderTask { to: "m3".into() }),
        ..TaskSpec::default()
    });
    lead.status.phase = JobPhase::Running;
    seen.tasks = vec![lead];
    assert_eq!(step(&seen), TaskStep::MoveLeader { from: 1, to: 3 });
    // Not while somebody is missing.
    fail(&mut seen, 2);
    assert!(is_wait(&decide(&spec, &seen, now())));
}

#[test]
fn space_is_given_back_by_one_member_at_a_time_and_not_again_and_again() {
    let (spec, mut seen) = healthy(3);
    for member in &mut seen.members {
        if let Probe::Answered(answer) = &mut member.probe {
            answer.db_size_bytes = 1 << 30;
            answer.db_in_use_bytes = 100 << 20;
        }
    }
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::Defragment { name: "m2".into() }
    );
    for member in &mut seen.members {
        member.defragmented_at = Some(earlier(60));
    }
    assert!(
        is_wait(&decide(&spec, &seen, now())),
        "it did not help: not again within the hour"
    );
}

#[test]
fn a_member_that_has_started_once_never_joins_again() {
    let sealed = Action::SetStart {
        name: "m3".into(),
        start: Start::Run,
        member_id: Some(3),
    };
    let joining = || {
        let (spec, mut seen) = healthy(3);
        seen.members[2].phase = MemberPhase::Joining;
        seen.members[2].recorded_id = None;
        seen.list.as_mut().unwrap()[2].is_learner = true;
        (spec, seen)
    };
    // It answers.
    let (spec, mut seen) = joining();
    assert_eq!(decide(&spec, &seen, now()).action, sealed);
    // It answers, and there is no majority to ask who is a member: its volume could be lost before there is one.
    seen.list = None;
    assert_eq!(decide(&spec, &seen, now()).action, sealed);
    // It answers, and its name is not in the list yet.
    let (spec, mut seen) = joining();
    seen.list.as_mut().unwrap()[2].name = String::new();
    assert_eq!(decide(&spec, &seen, now()).action, sealed);
    // It does not answer, and may never again; the list knows it by name.
    let (spec, mut seen) = joining();
    fail(&mut seen, 3);
    assert_eq!(decide(&spec, &seen, now()).action, sealed);
    // It has never started.
    seen.list.as_mut().unwrap()[2].name = String::new();
    assert_ne!(decide(&spec, &seen, now()).action, sealed);
}

/// m4 was added and its node is lost: it does not answer, and its Pod is as the API server last heard of it.
fn with_a_new_member(
    has_started: bool,
    unattended_since: Option<Timestamp>,
) -> (ClusterSpec, Observation) {
    let (mut spec, mut seen) = healthy(3);
    spec.replicas = 5;
    let mut new = member(4);
    new.probe = Probe::Failed("no answer".into());
    new.pod.as_mut().unwrap().is_ready = false;
    new.pod.as_mut().unwrap().unattended_since = unattended_since;
    let mut in_list = listed(4);
    in_list.is_learner = true;
    if !has_started {
        new.phase = MemberPhase::Joining;
        new.recorded_id = None;
        new.join_list = (1..=4)
            .map(|id| (format!("m{id}"), listed(id).peer_urls[0].clone()))
            .collect();
        in_list.name = String::new();
        seen.identity.as_mut().unwrap().pending = Some("m4".into());
    }
    seen.members.push(new);
    seen.list.as_mut().unwrap().push(in_list);
    (spec, seen)
}

#[test]
fn a_new_member_whose_node_is_lost_is_given_up_for_another() {
    let removal = Action::RemoveMember {
        id: 4,
        name: "m4".into(),
    };
    for has_started in [false, true] {
        // Its node has had the time of unhealthyAfter, five minutes.
        let (spec, mut seen) = with_a_new_member(has_started, Some(earlier(301)));
        let decision = decide(&spec, &seen, now());
        assert_eq!(decision.action, removal);
        assert_eq!(
            state_of(&decision, "Degraded"),
            ("True".into(), "NodeLost".into())
        );
        assert_eq!(state_of(&decision, "Available").0, "True");
        let status = decision.status.members.last().unwrap();
        assert_eq!(status.state, MemberState::Starting);
        let message = status.message.as_deref().unwrap_or_default();
        assert!(message.contains("does not react"), "{message}");
        // Also while a voter is away, for which it stands in.
        fail(&mut seen, 3);
        assert_eq!(decide(&spec, &seen, now()).action, removal);
    }
}

#[test]
fn a_new_member_whose_node_may_still_react_is_waited_for() {
    // Its Pod is being ended and has time left; it has had a minute; its node has taken it up.
    let ahead = now().checked_add(Duration::from_secs(30)).unwrap();
    for unattended_since in [Some(ahead), Some(earlier(60)), None] {
        for has_started in [false, true] {
            let (spec, seen) = with_a_new_member(has_started, unattended_since);
            let decision = decide(&spec, &seen, now());
            assert!(is_wait(&decision), "{:?}", decision.action);
            assert_eq!(state_of(&decision, "Degraded").0, "False");
        }
    }
    // A member that answers runs, whatever became of its kubelet.
    let (spec, mut seen) = with_a_new_member(true, Some(earlier(10_000)));
    seen.members[3].probe = member(4).probe;
    let Probe::Answered(answer) = &mut seen.members[3].probe else {
        panic!("it answers");
    };
    answer.is_learner = true;
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::Promote {
            id: 4,
            name: "m4".into()
        }
    );
}

#[test]
fn the_first_member_may_not_form_again_before_the_cluster_counts_as_formed() {
    let (spec, mut seen) = healthy(1);
    seen.identity.as_mut().unwrap().cluster_id = None;
    seen.members[0].phase = MemberPhase::Forming;
    seen.members[0].recorded_id = None;
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::SetStart {
            name: "m1".into(),
            start: Start::Run,
            member_id: Some(1),
        }
    );
    seen.members[0].phase = MemberPhase::Running;
    seen.members[0].recorded_id = Some(1);
    assert_eq!(
        decide(&spec, &seen, now()).action,
        Action::UpdateIdentity(IdentityChange::Latch(7))
    );
}
