//! The operator against a small model of Kubernetes and of a cluster, in which things fail.
//!
//! Each step observes, decides and does one action; between steps members crash, lose their data or their
//! StatefulSet, people change the spec, and the operator dies in the middle of an action. Whatever happens:
//! a majority is never given up, a cluster is formed once, the volume of a current member is never deleted;
//! and when nothing fails any more, the wanted state is reached.
//!
//! A failure prints its seed: `SEED=… cargo test -p metastore-operator-core --test simulation`.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use metastore_operator_api::{
    ClusterSpec, ClusterStatus, DurationText, JobPhase, RecoverQuorumTask, RetainPolicy, TaskSpec,
    TaskStatus,
};
use metastore_operator_core::{
    Action, ClaimObservation, Class, FORCED_TEMPLATE_HASH, Identity, IdentityChange, ListedMember,
    MemberAnswer, MemberObservation, MemberPhase, Observation, PodObservation, Probe, Start,
    TaskObservation, TaskStep, classify, decide, quorum,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Steps in which things fail.
const STORM_STEPS: usize = 150;
/// Steps in which everything must come to rest.
const CALM_STEPS: usize = 600;
/// Random histories in one test run.
const HISTORIES: u64 = 1000;

#[derive(Clone, Debug)]
struct Set {
    replicas: i32,
    hash: String,
    pod_hash: String,
    phase: MemberPhase,
    id: Option<u64>,
    fenced: bool,
    join: Vec<(String, String)>,
    start: Start,
    /// It goes on alone when it starts.
    forced: bool,
    /// Steps until the Pod runs again.
    down: u32,
}

#[derive(Clone, Debug, Default)]
struct Volume {
    /// Id of the member whose data it holds; `None` is an empty volume.
    data_of: Option<u64>,
    retired: bool,
}

struct World {
    random: StdRng,
    now: Timestamp,
    spec: ClusterSpec,
    generation: u64,
    status: ClusterStatus,
    identity: Option<Identity>,
    sets: BTreeMap<String, Set>,
    volumes: BTreeMap<String, Volume>,
    list: Vec<ListedMember>,
    leader: Option<u64>,
    formed: u32,
    next_id: u64,
    next_name: u64,
    task: Option<TaskObservation>,
    trace: Vec<String>,
}

impl World {
    fn new(seed: u64, replicas: i32) -> Self {
        let mut spec = ClusterSpec {
            replicas,
            ..ClusterSpec::default()
        };
        spec.recovery.member_replacement.unhealthy_after = DurationText::from("1m");
        spec.recovery.member_replacement.max_per_hour = 100;
        Self {
            random: StdRng::seed_from_u64(seed),
            now: Timestamp::from_second(1_800_000_000).unwrap(),
            spec,
            generation: 0,
            status: ClusterStatus::default(),
            identity: None,
            sets: BTreeMap::new(),
            volumes: BTreeMap::new(),
            list: Vec::new(),
            leader: None,
            formed: 0,
            next_id: 1,
            next_name: 0,
            task: None,
            trace: Vec::new(),
        }
    }

    fn hash(&self) -> String {
        format!("hash-{}", self.generation)
    }

    /// Does the process of this member run with the data of a member of the list?
    fn serves(&self, name: &str) -> Option<u64> {
        let set = self.sets.get(name)?;
        let volume = self.volumes.get(name)?;
        let runs = set.replicas == 1 && set.down == 0;
        volume.data_of.filter(|_| runs)
    }

    fn is_up(&self, id: u64) -> bool {
        self.sets.keys().any(|name| self.serves(name) == Some(id))
    }

    fn voters(&self) -> Vec<u64> {
        self.list
            .iter()
            .filter(|m| !m.is_learner)
            .map(|m| m.id)
            .collect()
    }

    fn has_quorum(&self) -> bool {
        let voters = self.voters();
        let up = voters.iter().filter(|id| self.is_up(**id)).count();
        !voters.is_empty() && up >= quorum(voters.len())
    }

    /// One tick of Kubernetes and of the members.
    fn tick(&mut self) {
        self.now = self.now.checked_add(Duration::from_secs(10)).unwrap();
        for set in self.sets.values_mut() {
            if set.down > 0 {
                set.down -= 1;
                if set.down == 0 {
                    set.pod_hash = set.hash.clone();
                }
            }
        }
        let starts: Vec<_> = self
            .sets
            .iter()
            .filter(|(_, set)| set.replicas == 1 && set.down == 0)
            .map(|(name, set)| (name.clone(), set.start.clone()))
            .collect();
        for (name, start) in starts {
            let is_empty = self.volumes.get(&name).is_some_and(|v| v.data_of.is_none());
            if is_empty {
                self.start_empty(&name, &start);
            }
        }
        let forced: Vec<_> = self
            .sets
            .iter()
            .filter(|(_, set)| set.forced)
            .filter_map(|(name, _)| self.serves(name))
            .collect();
        for id in forced {
            self.list.retain(|listed| listed.id == id);
            self.list[0].is_learner = false;
        }
        if !self
            .leader
            .is_some_and(|id| self.is_up(id) && self.voters().contains(&id))
        {
            self.leader = self.voters().into_iter().find(|id| self.is_up(*id));
        }
        if !self.has_quorum() {
            self.leader = None;
        }
    }

    /// What a server does with an empty volume.
    fn start_empty(&mut self, name: &str, start: &Start) {
        let id = match start {
            Start::Form => {
                self.formed += 1;
                let id = self.next_id;
                self.next_id += 1;
                self.list = vec![ListedMember {
                    id,
                    name: name.to_owned(),
                    peer_urls: vec![url(name)],
                    is_learner: false,
                }];
                id
            }
            Start::Join(told) => {
                let mut known: Vec<_> = self.list.iter().map(|m| m.peer_urls[0].clone()).collect();
                let mut told: Vec<_> = told.iter().map(|(_, url)| url.clone()).collect();
                known.sort();
                told.sort();
                if known != told || !self.has_quorum() {
                    return;
                }
                let Some(own) = self.list.iter_mut().find(|m| m.peer_urls[0] == url(name)) else {
                    return;
                };
                assert!(own.name.is_empty(), "a member joined twice: {name}");
                own.name = name.to_owned();
                own.id
            }
            // It ends: it may start only with its data.
            Start::Run => return,
        };
        self.volumes.get_mut(name).unwrap().data_of = Some(id);
    }

    fn observe(&mut self) -> Observation {
        self.next_name += 1;
        let has_quorum = self.has_quorum();
        let members = self
            .sets
            .iter()
            .map(|(name, set)| {
                let id = self.serves(name);
                let is_listed = id.is_some_and(|id| self.list.iter().any(|m| m.id == id));
                let probe = match id {
                    Some(id) if is_listed => Probe::Answered(MemberAnswer {
                        member_id: id,
                        cluster_id: 7,
                        leader_id: self.leader.unwrap_or(0),
                        is_learner: self.list.iter().any(|m| m.id == id && m.is_learner),
                        version: "1.0.0".into(),
                        ..MemberAnswer::default()
                    }),
                    _ => Probe::Failed("no answer".into()),
                };
                MemberObservation {
                    name: name.clone(),
                    wanted_replicas: set.replicas,
                    template_hash: set.hash.clone(),
                    phase: set.phase,
                    recorded_id: set.id,
                    is_fenced: set.fenced,
                    join_list: set.join.clone(),
                    pod: (set.replicas == 1).then(|| PodObservation {
                        is_ready: is_listed && has_quorum,
                        template_hash: set.pod_hash.clone(),
                        ..PodObservation::default()
                    }),
                    claim: self.volumes.get(name).map(|_| ClaimObservation {
                        requested_bytes: 10 << 30,
                        capacity_bytes: 10 << 30,
                        ..ClaimObservation::default()
                    }),
                    probe,
                    ..MemberObservation::default()
                }
            })
            .collect();
        Observation {
            cluster: "c".into(),
            namespace: "n".into(),
            identity: self.identity.clone(),
            members,
            orphan_claims: self
                .volumes
                .iter()
                .filter(|(name, volume)| !volume.retired && !self.sets.contains_key(*name))
                .map(|(name, _)| name.clone())
                .collect(),
            list: has_quorum.then(|| self.list.clone()),
            wanted_template_hash: self.hash(),
            wanted_storage_bytes: 10 << 30,
            quota_bytes: 9 << 30,
            fresh_name: format!("c-{:05}", self.next_name),
            previous: self.status.clone(),
            tasks: self
                .task
                .iter()
                .filter(|task| !is_over(task))
                .cloned()
                .collect(),
            ..Observation::default()
        }
    }

    /// Does an action as a server and Kubernetes would, and checks what must never be done.
    fn act(&mut self, seen: &Observation, action: &Action) {
        match action {
            Action::Wait(_) | Action::ApplyStaticObjects | Action::SetFinalizer { .. } => {}
            Action::CreateIdentity { seed } => {
                assert!(self.identity.is_none() && self.formed == 0);
                self.identity = Some(Identity {
                    seed: seed.clone(),
                    ..Identity::default()
                });
            }
            Action::UpdateIdentity(change) => self.change_identity(change),
            Action::CreateMember { name, start } => self.create(seen, name, start),
            Action::SetStart {
                name,
                start,
                member_id,
            } => {
                let set = self.sets.get_mut(name).unwrap();
                set.start = start.clone();
                if let Start::Join(told) = start {
                    set.join = told.clone();
                } else {
                    set.phase = MemberPhase::Running;
                    set.id = *member_id;
                    set.forced = false;
                }
            }
            Action::Roll { name } => self.roll(seen, name),
            Action::Scale { name, replicas } => {
                let set = self.sets.get_mut(name).unwrap();
                set.replicas = *replicas;
                set.down = 1;
            }
            Action::DeleteMember {
                name,
                deletes_claim,
            } => {
                self.check_no_member(name, *deletes_claim);
                self.retire(name, *deletes_claim);
                self.sets.remove(name);
            }
            Action::RetireClaim {
                name,
                deletes_claim,
            } => {
                self.check_no_member(name, *deletes_claim);
                self.retire(name, *deletes_claim);
            }
            Action::AddLearner { peer_url, .. } => {
                let all_up = self.voters().iter().all(|id| self.is_up(*id));
                if self.has_quorum() && all_up {
                    let id = self.next_id;
                    self.next_id += 1;
                    self.list.push(ListedMember {
                        id,
                        name: String::new(),
                        peer_urls: vec![peer_url.clone()],
                        is_learner: true,
                    });
                    assert_eq!(
                        self.list.iter().filter(|m| m.is_learner).count(),
                        1,
                        "two learners"
                    );
                }
            }
            Action::Promote { id, .. } => {
                if self.has_quorum() && self.is_up(*id) {
                    self.list
                        .iter_mut()
                        .find(|m| m.id == *id)
                        .unwrap()
                        .is_learner = false;
                }
            }
            Action::MoveLeader { to, .. } => {
                if self.is_up(*to) {
                    self.leader = Some(*to);
                }
            }
            Action::RemoveMember { id, .. } => self.remove(*id),
            Action::ForceNewCluster { name } => {
                let others = self.sets.keys().filter(|other| *other != name);
                assert_eq!(others.count(), 0, "others could meet the new cluster");
                let set = self.sets.get_mut(name).unwrap();
                set.phase = MemberPhase::Recovering;
                set.hash = FORCED_TEMPLATE_HASH.into();
                set.forced = true;
                set.replicas = 1;
                set.down = 2;
            }
            Action::Task { step, .. } => {
                let status = &mut self.task.as_mut().unwrap().status;
                status.phase = match step {
                    TaskStep::Begin => JobPhase::Running,
                    TaskStep::Finish { phase, .. } => *phase,
                    other => panic!("the model does not know {other:?}"),
                };
            }
            other => panic!("the model does not know {other:?}"),
        }
    }

    fn change_identity(&mut self, change: &IdentityChange) {
        let identity = self.identity.as_mut().unwrap();
        match change {
            IdentityChange::Latch(id) => {
                assert!(identity.cluster_id.is_none());
                identity.cluster_id = Some(*id);
            }
            IdentityChange::Pending(name) => identity.pending = name.clone(),
            IdentityChange::Replacing(name) => identity.replacing = name.clone(),
            IdentityChange::ReplacementBegins(name) => {
                identity.replacements.push((name.clone(), self.now));
            }
            IdentityChange::Recovering(name) => {
                identity.recovering = name.clone();
                identity.pending = None;
                identity.replacing = None;
            }
            IdentityChange::ReclaimEnded => identity.reclaim_started = None,
        }
    }

    fn create(&mut self, seen: &Observation, name: &str, start: &Start) {
        if *start == Start::Form {
            let is_latched = self
                .identity
                .as_ref()
                .is_some_and(|i| i.cluster_id.is_some());
            assert!(!is_latched, "formed again");
        }
        // The operator may die between the volume and the StatefulSet.
        if *start != Start::Run {
            self.volumes.entry(name.to_owned()).or_default();
            if self.random.random_bool(0.1) {
                return;
            }
        }
        let phase = match start {
            Start::Form => MemberPhase::Forming,
            Start::Join(_) => MemberPhase::Joining,
            Start::Run => MemberPhase::Running,
        };
        self.sets.insert(
            name.to_owned(),
            Set {
                replicas: 1,
                hash: seen.wanted_template_hash.clone(),
                pod_hash: String::new(),
                phase,
                id: None,
                fenced: false,
                join: match start {
                    Start::Join(told) => told.clone(),
                    _ => Vec::new(),
                },
                start: start.clone(),
                forced: false,
                down: 2,
            },
        );
    }

    fn roll(&mut self, seen: &Observation, name: &str) {
        let id = self.serves(name).filter(|_| self.has_quorum());
        if let Some(id) = id.filter(|id| self.voters().contains(id)) {
            let voters = self.voters();
            let others = voters
                .iter()
                .filter(|v| **v != id && self.is_up(**v))
                .count();
            let settled = self
                .sets
                .iter()
                .all(|(other, set)| other == name || set.hash == set.pod_hash || set.fenced);
            assert!(
                voters.len() == 1 || others >= quorum(voters.len()),
                "a restart took the majority away"
            );
            assert!(settled, "two members restart at once");
        }
        let set = self.sets.get_mut(name).unwrap();
        set.hash = seen.wanted_template_hash.clone();
        set.down = 3;
    }

    fn remove(&mut self, id: u64) {
        if !self.has_quorum() {
            return;
        }
        let is_voter = self.voters().contains(&id);
        if is_voter {
            let others = self.voters();
            let up = others
                .iter()
                .filter(|v| **v != id && self.is_up(**v))
                .count();
            assert!(
                others.len() > 1 && up >= quorum(others.len() - 1),
                "a removal took the majority away"
            );
        }
        self.list.retain(|m| m.id != id);
    }

    /// Deleting what belongs to a current member is the worst that can be done. When a majority is given up,
    /// the others' volumes are put aside, and never deleted.
    fn check_no_member(&self, name: &str, deletes: bool) {
        let survivor = self.identity.as_ref().and_then(|i| i.recovering.clone());
        if survivor.is_some_and(|survivor| survivor != name) && !deletes {
            return;
        }
        let Some(id) = self.volumes.get(name).and_then(|volume| volume.data_of) else {
            return;
        };
        assert!(
            !self.list.iter().any(|m| m.id == id),
            "the volume of the member {name} was given up"
        );
    }

    fn retire(&mut self, name: &str, deletes: bool) {
        if deletes {
            self.volumes.remove(name);
        } else if let Some(volume) = self.volumes.get_mut(name) {
            volume.retired = true;
        }
    }

    /// Something goes wrong, but never so much that a majority is gone for good.
    fn fail(&mut self) {
        let names: Vec<_> = self.sets.keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        let name = names[self.random.random_range(0..names.len())].clone();
        match self.random.random_range(0..10) {
            0..=3 => {
                let steps = self.random.random_range(1..20);
                if let Some(set) = self.sets.get_mut(&name) {
                    set.down = steps;
                }
            }
            4 if self.may_lose(&name) => {
                self.volumes.remove(&name);
                self.trace.push(format!("volume of {name} lost"));
            }
            5 if self.may_lose(&name) => {
                if let Some(volume) = self.volumes.get_mut(&name) {
                    volume.data_of = None;
                }
                self.trace.push(format!("volume of {name} wiped"));
            }
            6 => {
                self.sets.remove(&name);
                self.trace.push(format!("StatefulSet of {name} deleted"));
            }
            7 => self.generation += 1,
            8 => {
                self.spec.replicas = [1, 3, 5][self.random.random_range(0..3)];
                self.trace.push(format!("{} replicas", self.spec.replicas));
            }
            _ => {
                self.spec.storage.retain.when_replaced = if self.random.random_bool(0.5) {
                    RetainPolicy::Retain
                } else {
                    RetainPolicy::Delete
                };
            }
        }
    }

    /// Do the others with data stay a majority, also of a list with one voter less?
    fn may_lose(&self, name: &str) -> bool {
        let Some(id) = self.volumes.get(name).and_then(|volume| volume.data_of) else {
            return false;
        };
        let is_latched = self
            .identity
            .as_ref()
            .is_some_and(|i| i.cluster_id.is_some());
        let voters = self.voters();
        let safe = voters
            .iter()
            .filter(|v| **v != id && self.volumes.values().any(|d| d.data_of == Some(**v)))
            .count();
        is_latched && safe >= quorum(voters.len())
    }

    fn step(&mut self) -> Action {
        self.tick();
        let seen = self.observe();
        let decision = decide(&self.spec, &seen, self.now);
        self.trace
            .push(format!("{:?} {}", decision.action, decision.why));
        self.status = decision.status.clone();
        self.act(&seen, &decision.action);
        assert!(self.formed <= 1, "two clusters were formed");
        decision.action
    }
}

fn is_over(task: &TaskObservation) -> bool {
    !matches!(task.status.phase, JobPhase::Pending | JobPhase::Running)
}

fn url(name: &str) -> String {
    format!("http://{name}-0.c-peer.n.svc:2380")
}

/// Runs one history in a world; panics with its trace.
fn traced(seed: u64, mut world: World, history: impl FnOnce(&mut World)) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| history(&mut world)));
    if let Err(panic) = outcome {
        let from = world.trace.len().saturating_sub(60);
        eprintln!(
            "{}\nlist: {:?}\nSEED={seed}",
            world.trace[from..].join("\n"),
            world.list
        );
        std::panic::resume_unwind(panic);
    }
}

/// Things fail, then nothing does.
fn run(seed: u64) {
    let world = World::new(seed, [1, 3, 5][(seed % 3) as usize]);
    traced(seed, world, |world| {
        for _ in 0..STORM_STEPS {
            if world.random.random_bool(0.2) {
                world.fail();
            }
            world.step();
        }
        let mut idle = 0;
        for _ in 0..CALM_STEPS {
            let action = world.step();
            let is_idle =
                matches!(action, Action::Wait(interval) if interval >= Duration::from_secs(30));
            // While a member is down there is nothing to be done either, until it is down for too long.
            let is_whole = classify(&world.observe()) == Class::Healthy;
            idle = if is_idle && is_whole { idle + 1 } else { 0 };
            if idle > 3 {
                break;
            }
        }
        let seen = world.observe();
        assert_eq!(classify(&seen), Class::Healthy, "it does not come to rest");
        let wanted = usize::try_from(world.spec.replicas).unwrap();
        assert_eq!(world.voters().len(), wanted, "not the wanted voters");
        assert_eq!(world.list.len(), wanted);
        assert_eq!(world.sets.len(), wanted);
        assert!(world.sets.values().all(|set| set.hash == world.hash()));
    });
}

#[test]
fn whatever_fails_the_majority_stays_and_the_wanted_state_is_reached() {
    if let Ok(seed) = std::env::var("SEED") {
        run(seed.parse().expect("SEED is a number"));
        return;
    }
    for seed in 0..HISTORIES {
        run(seed);
    }
}

/// After a storm a majority loses its volumes for good, and a person names the survivor.
fn lose_the_majority(seed: u64) {
    let world = World::new(seed, [3, 5][(seed % 2) as usize]);
    traced(seed, world, |world| {
        for _ in 0..STORM_STEPS {
            if world.random.random_bool(0.1) {
                world.fail();
            }
            world.step();
        }
        let voters = world.voters();
        let names: Vec<_> = world
            .sets
            .keys()
            .filter(|name| {
                let volume = world.volumes.get(*name).and_then(|volume| volume.data_of);
                volume.is_some_and(|id| voters.contains(&id))
            })
            .cloned()
            .collect();
        let Some((survivor, others)) = names.split_first() else {
            return;
        };
        for other in others {
            world.volumes.remove(other);
            world.trace.push(format!("volume of {other} lost"));
        }
        world.task = Some(TaskObservation {
            name: "recover".into(),
            spec: TaskSpec {
                recover_quorum: Some(RecoverQuorumTask {
                    accept_data_loss: "7".into(),
                    survivor: survivor.clone(),
                }),
                ..TaskSpec::default()
            },
            status: TaskStatus::default(),
        });
        world.trace.push(format!("{survivor} shall go on alone"));
        for _ in 0..CALM_STEPS {
            // The operator may die between any two steps, and members may crash; nothing else is lost.
            if world.random.random_bool(0.05)
                && let Some(set) = world.sets.values_mut().next()
            {
                set.down = 3;
            }
            world.step();
        }
        for _ in 0..CALM_STEPS / 4 {
            world.step();
        }
        let seen = world.observe();
        assert_eq!(classify(&seen), Class::Healthy, "it does not come to rest");
        let wanted = usize::try_from(world.spec.replicas).unwrap();
        assert_eq!(world.voters().len(), wanted, "not the wanted voters");
        assert!(world.task.as_ref().is_some_and(is_over), "the task is open");
    });
}

#[test]
fn a_lost_majority_is_recovered_from_the_survivor() {
    if let Ok(seed) = std::env::var("SEED") {
        lose_the_majority(seed.parse().expect("SEED is a number"));
        return;
    }
    for seed in 0..HISTORIES / 4 {
        lose_the_majority(seed);
    }
}

#[test]
fn a_cluster_forms_grows_and_shrinks_without_faults() {
    let mut world = World::new(1, 3);
    for replicas in [3, 5, 1, 7, 3] {
        world.spec.replicas = replicas;
        for _ in 0..120 {
            world.step();
        }
        assert_eq!(world.voters().len(), usize::try_from(replicas).unwrap());
        assert_eq!(classify(&world.observe()), Class::Healthy);
    }
    assert_eq!(world.formed, 1);
}

#[test]
fn a_roll_restarts_the_leader_last_and_after_it_has_handed_over() {
    let mut world = World::new(1, 3);
    for _ in 0..60 {
        world.step();
    }
    let leader = world.leader.unwrap();
    world.generation += 1;
    let mut rolled = Vec::new();
    for _ in 0..60 {
        if let Action::Roll { name } = world.step() {
            rolled.push((
                name.clone(),
                world.volumes[&name].data_of.unwrap(),
                world.leader,
            ));
        }
    }
    assert_eq!(rolled.len(), 3, "each member restarts once");
    assert_eq!(rolled[2].1, leader, "the old leader is the last one");
    assert_ne!(rolled[2].2, Some(leader), "it handed over before");
}
