//! The model: Kubernetes, the members and their cluster, as far as the operator's decisions depend on them.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use metastore_operator_api::{
    ClusterSpec, ClusterStatus, DurationText, JobPhase, RecoverQuorumTask, TaskSpec, TaskStatus,
};
use metastore_operator_core::{
    Action, ClaimObservation, Class, FORCED_TEMPLATE_HASH, Identity, IdentityChange, ListedMember,
    MemberAnswer, MemberObservation, MemberPhase, Observation, PodObservation, Probe, Start,
    TaskObservation, TaskStep, classify, decide, quorum,
};

/// Steps in which everything must come to rest.
pub const CALM_STEPS: usize = 600;
/// Looks at a cluster at rest before it is believed to rest.
const IDLE_LOOKS: usize = 4;

/// A StatefulSet, its Pod and its ConfigMap.
#[derive(Clone, Debug)]
pub struct Set {
    pub replicas: i32,
    pub hash: String,
    pod_hash: String,
    phase: MemberPhase,
    id: Option<u64>,
    fenced: bool,
    join: Vec<(String, String)>,
    start: Start,
    /// Its configuration tells it to go on alone when it starts.
    forced: bool,
    /// Steps until the Pod runs again.
    pub down: u32,
    /// Since when its node is lost: the Pod does not run, and Kubernetes leaves it as it is.
    pub lost: Option<Timestamp>,
}

/// A volume claim.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// Id of the member whose data it holds; `None` is an empty volume.
    pub data_of: Option<u64>,
    retired: bool,
}

/// Everything that there is.
#[derive(Clone)]
pub struct World {
    pub now: Timestamp,
    pub spec: ClusterSpec,
    /// Of the template.
    pub generation: u64,
    status: ClusterStatus,
    pub identity: Option<Identity>,
    pub sets: BTreeMap<String, Set>,
    pub volumes: BTreeMap<String, Volume>,
    pub list: Vec<ListedMember>,
    pub leader: Option<u64>,
    pub formed: u32,
    next_id: u64,
    next_name: u64,
    pub task: Option<TaskObservation>,
    /// The operator dies when its next action has done one call more than this, and has others left to do.
    pub dies_after: Option<u32>,
    /// How often it has died so.
    deaths: u32,
    pub trace: Vec<Rc<str>>,
}

impl World {
    pub fn new(replicas: i32) -> Self {
        let mut spec = ClusterSpec {
            replicas,
            ..ClusterSpec::default()
        };
        spec.recovery.member_replacement.unhealthy_after = DurationText::from("1m");
        spec.recovery.member_replacement.max_per_hour = 100;
        Self {
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
            dies_after: None,
            deaths: 0,
            trace: Vec::new(),
        }
    }

    pub fn note(&mut self, text: &str) {
        self.trace.push(text.into());
    }

    pub fn hash(&self) -> String {
        format!("hash-{}", self.generation)
    }

    /// Does the process of this member run with the data of a member of the list?
    fn serves(&self, name: &str) -> Option<u64> {
        let set = self.sets.get(name)?;
        let volume = self.volumes.get(name)?;
        let runs = set.replicas == 1 && set.down == 0 && set.lost.is_none();
        volume.data_of.filter(|_| runs)
    }

    fn is_up(&self, id: u64) -> bool {
        self.sets.keys().any(|name| self.serves(name) == Some(id))
    }

    pub fn voters(&self) -> Vec<u64> {
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
        let mut forced = Vec::new();
        for (name, set) in &mut self.sets {
            if set.down > 0 && set.lost.is_none() {
                set.down -= 1;
                if set.down == 0 {
                    set.pod_hash = set.hash.clone();
                    if set.forced && set.replicas == 1 {
                        forced.push(name.clone());
                    }
                }
            }
        }
        let starts: Vec<_> = self
            .sets
            .iter()
            .filter(|(_, set)| set.replicas == 1 && set.down == 0 && set.lost.is_none())
            .map(|(name, set)| (name.clone(), set.start.clone()))
            .collect();
        for (name, start) in starts {
            let is_empty = self.volumes.get(&name).is_some_and(|v| v.data_of.is_none());
            if is_empty {
                self.start_empty(&name, &start);
            }
        }
        for name in &forced {
            let Some(id) = self.serves(name) else {
                continue;
            };
            let survivor = self.identity.as_ref().and_then(|i| i.recovering.as_ref());
            assert_eq!(survivor, Some(name), "it goes on alone and nobody wants it");
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

    pub fn observe(&mut self) -> Observation {
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
                    pod: (set.replicas == 1 || set.lost.is_some()).then(|| PodObservation {
                        is_ready: is_listed && has_quorum,
                        is_terminating: set.lost.is_some(),
                        template_hash: set.pod_hash.clone(),
                        unattended_since: set.lost,
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
                // The ConfigMap first.
                set.start = start.clone();
                set.forced = false;
                if self.dies_here() {
                    return;
                }
                let set = self.sets.get_mut(name).unwrap();
                if let Start::Join(told) = start {
                    set.join = told.clone();
                } else {
                    set.phase = MemberPhase::Running;
                    set.id = *member_id;
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
                if !self.dies_here() {
                    self.sets.remove(name);
                }
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
                self.sets.get_mut(name).unwrap().phase = MemberPhase::Recovering;
                if self.dies_here() {
                    return;
                }
                self.sets.get_mut(name).unwrap().forced = true;
                if self.dies_here() {
                    return;
                }
                let set = self.sets.get_mut(name).unwrap();
                set.hash = FORCED_TEMPLATE_HASH.into();
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
        // The ConfigMap is of no account without a StatefulSet.
        if self.dies_here() {
            return;
        }
        if *start != Start::Run {
            self.volumes.entry(name.to_owned()).or_default();
            if self.dies_here() {
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
                lost: None,
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

    /// Takes the volume of a member away, or only what is on it; never so much that a majority is gone for good.
    pub fn lose_volume(&mut self, name: &str, only_data: bool) -> bool {
        if !self.may_lose(name) {
            return false;
        }
        if only_data {
            self.volumes.get_mut(name).unwrap().data_of = None;
            self.note(&format!("volume of {name} wiped"));
        } else {
            self.volumes.remove(name);
            self.note(&format!("volume of {name} lost"));
        }
        true
    }

    pub fn delete_set(&mut self, name: &str) {
        self.sets.remove(name);
        self.note(&format!("StatefulSet of {name} deleted"));
    }

    /// What a member has on a lost node is not there. The node of the first member comes back: until it has
    /// served, nothing may take its place.
    pub fn lose_node(&mut self, name: &str) -> bool {
        let is_latched = self
            .identity
            .as_ref()
            .is_some_and(|i| i.cluster_id.is_some());
        let has_data = self.volumes.get(name).is_some_and(|v| v.data_of.is_some());
        let is_lost = is_latched && (!has_data || self.may_lose(name));
        if is_lost {
            self.sets.get_mut(name).unwrap().lost = Some(self.now);
            self.note(&format!("node of {name} lost"));
        }
        is_lost
    }

    pub fn bring_node_back(&mut self, name: &str) {
        let set = self.sets.get_mut(name).unwrap();
        if set.lost.take().is_some() {
            set.down = 2;
            self.note(&format!("node of {name} is back"));
        }
    }

    /// Do the others with data stay a majority, also of a list with one voter less?
    pub fn may_lose(&self, name: &str) -> bool {
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
            .filter(|v| **v != id)
            .filter(|v| {
                self.volumes.iter().any(|(name, volume)| {
                    let is_lost = self.sets.get(name).is_some_and(|set| set.lost.is_some());
                    volume.data_of == Some(**v) && !is_lost
                })
            })
            .count();
        is_latched && safe >= quorum(voters.len())
    }

    pub fn step(&mut self) -> Action {
        self.tick();
        let seen = self.observe();
        let decision = decide(&self.spec, &seen, self.now);
        self.note(&format!("{:?} {}", decision.action, decision.why));
        self.status = decision.status.clone();
        self.act(&seen, &decision.action);
        assert!(self.formed <= 1, "two clusters were formed");
        // It does not die in a later action: that is a case of its own.
        self.dies_after = None;
        decision.action
    }

    /// After a call that others should follow: does the operator die here?
    fn dies_here(&mut self) -> bool {
        let dies = self.dies_after == Some(0);
        self.dies_after = match self.dies_after {
            Some(calls) if !dies => Some(calls - 1),
            _ => None,
        };
        self.deaths += u32::from(dies);
        dies
    }

    /// Has the next action so many calls that the operator can die after this one?
    pub fn can_die_after(&self, calls: u32) -> bool {
        let mut other = self.clone();
        other.dies_after = Some(calls);
        other.step();
        other.deaths > self.deaths
    }

    /// Nothing fails any more: the wanted state is reached and stays.
    pub fn come_to_rest(&mut self) {
        let mut idle = 0;
        for _ in 0..CALM_STEPS {
            idle = if self.rests() { idle + 1 } else { 0 };
            if idle == IDLE_LOOKS {
                break;
            }
        }
        let seen = self.observe();
        assert_eq!(classify(&seen), Class::Healthy, "it does not come to rest");
        let wanted = usize::try_from(self.spec.replicas).unwrap();
        assert_eq!(self.voters().len(), wanted, "not the wanted voters");
        assert_eq!(self.list.len(), wanted);
        assert_eq!(self.sets.len(), wanted);
        assert!(self.sets.values().all(|set| set.hash == self.hash()));
        assert!(self.task.as_ref().is_none_or(is_over), "the task is open");
    }

    /// One step. Was there nothing to be done, and nobody missing? While a member is down there is nothing to be
    /// done either, until it is down for too long.
    pub fn rests(&mut self) -> bool {
        let action = self.step();
        let is_idle =
            matches!(action, Action::Wait(interval) if interval >= Duration::from_secs(30));
        is_idle && classify(&self.observe()) == Class::Healthy
    }

    /// All volumes but the survivor's are gone for good, and a person names it. Without a member that has data,
    /// there is nobody to name.
    pub fn lose_the_majority(&mut self) -> bool {
        let voters = self.voters();
        let mut names = self
            .sets
            .keys()
            .filter(|name| {
                let volume = self.volumes.get(*name).and_then(|volume| volume.data_of);
                volume.is_some_and(|id| voters.contains(&id))
            })
            .cloned()
            .collect::<Vec<_>>()
            .into_iter();
        let Some(survivor) = names.next() else {
            return false;
        };
        // A person who gives up a majority has deleted the nodes that are lost, and with them their Pods.
        for set in self.sets.values_mut() {
            set.lost = None;
        }
        for other in names {
            self.volumes.remove(&other);
            self.note(&format!("volume of {other} lost"));
        }
        self.task = Some(TaskObservation {
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
        self.note(&format!("{survivor} shall go on alone"));
        true
    }
}

pub fn is_over(task: &TaskObservation) -> bool {
    !matches!(task.status.phase, JobPhase::Pending | JobPhase::Running)
}

fn url(name: &str) -> String {
    format!("http://{name}-0.c-peer.n.svc:2380")
}
