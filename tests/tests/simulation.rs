//! A cluster in one process, in virtual time, from one seed: members lose their network, their power
//! and their time, they are added, promoted and removed meanwhile, and clients must not notice more
//! than that it takes longer: their histories stay linearizable, their watches complete, and their
//! leases live as long as they were promised.
//!
//! Real are consensus, the log, the store, the leases and the list of members; the disks, the network, the clocks and the glue between
//! consensus and the store are the simulation's. Each member has a runtime of its own, so that it can
//! end at any moment, as a process does, and stand still while the others go on.
//!
//! `METASTORE_SIMULATION_SEED=N cargo test -p metastore-tests --test simulation` replays one run: the
//! same operations, faults and delays. tokio orders tasks that are ready at the same time by a
//! generator of its own, so a rare failure may need a few repetitions.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::BoxFuture;
use metastore_tests::history::{Change, History};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;

#[path = "simulation/administrator.rs"]
mod administrator;
#[path = "simulation/clients.rs"]
mod clients;
#[path = "simulation/leases.rs"]
mod leases;
#[path = "simulation/machine.rs"]
mod machine;
#[path = "simulation/member.rs"]
mod member;
#[path = "simulation/network.rs"]
mod network;

use administrator::administrator;
use clients::{Shared, client, value_of, watcher};
use leases::{LeaseEnds, tenant};
use member::{Clock, End, FIRST_MEMBERS, MEMBER_ID_MAX, Member, Request, Running};
use metastore_consensus::{ConsensusStatus, MembershipChange};
use network::Network;

/// Seeds that found a fault once.
const SEEDS_THAT_FAILED: &[u64] = &[
    // A leader that had removed itself was asked for another change of the members, and ended.
    10570324205177883808,
];
/// Runs with fresh seeds, unless `METASTORE_SIMULATION_RUNS` says how many.
const FRESH_RUNS: u64 = 12;
/// Runs within which a log that does not sync is found; each finds it more often than not.
const FORGETFUL_RUNS_MAX: u32 = 40;
const CLIENTS: u32 = 5;
const WATCHERS: u32 = 2;
const TENANTS: u32 = 3;
/// Ticks are milliseconds. First faults, and their end.
const FAULTS_BEGIN: u64 = 1_000;
const FAULTS_END: u64 = 10_000;
/// A cluster without faults works again, and all its members are equal, within this time.
const RECOVERY_TICKS_MAX: u64 = 15_000;
/// Acknowledged writes that show that a cluster works.
const SOME_WRITES: u64 = 20;

/// What is to happen at some tick.
#[derive(Clone, Copy, Debug)]
enum Event {
    NextFault,
    Repair { from: u64, to: u64, reset: bool },
    End { member: u64, end: End },
    Start { member: u64 },
    FastDisk { member: u64 },
}

struct Simulation {
    tick: u64,
    random: StdRng,
    network: Network,
    members: BTreeMap<u64, Member>,
    clients: Clock,
    shared: Arc<Shared>,
    events: BTreeMap<u64, Vec<Event>>,
    failures: Arc<Mutex<Vec<String>>>,
    /// What was done to the cluster, for whoever reads about a failure.
    faults: Vec<String>,
    _directory: tempfile::TempDir,
}

impl Simulation {
    /// `forgetful`: the logs acknowledge what they have not synced.
    fn new(seed: u64, forgetful: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let network = Network::new(seed);
        let failures: Arc<Mutex<Vec<String>>> = Arc::default();
        let lease_ends: Arc<LeaseEnds> = Arc::default();
        let mut members = BTreeMap::new();
        for id in 1..=MEMBER_ID_MAX {
            let own = directory.path().join(id.to_string());
            std::fs::create_dir(&own).unwrap();
            let member = Member::new(
                id,
                own,
                network.clone(),
                failures.clone(),
                lease_ends.clone(),
                seed,
                forgetful,
            );
            members.insert(id, member);
        }
        let doors = members.values().map(|member| member.door.clone()).collect();
        let shared = Arc::new(Shared::new(doors, lease_ends));
        let clients = Clock::new(0);
        for id in 0..CLIENTS {
            clients.runtime.spawn(client(shared.clone(), id, seed));
        }
        for id in 0..WATCHERS {
            clients.runtime.spawn(watcher(shared.clone(), id, seed));
        }
        for id in 0..TENANTS {
            clients.runtime.spawn(tenant(shared.clone(), id, seed));
        }
        clients.runtime.spawn(administrator(shared.clone(), seed));
        for id in FIRST_MEMBERS {
            members.get_mut(&id).unwrap().start(0);
        }
        Self {
            tick: 0,
            random: StdRng::seed_from_u64(seed),
            network,
            members,
            clients,
            shared,
            events: BTreeMap::from([(FAULTS_BEGIN, vec![Event::NextFault])]),
            failures,
            faults: Vec::new(),
            _directory: directory,
        }
    }

    fn step(&mut self) -> Result<(), String> {
        self.tick += 1;
        self.shared
            .lease_ends
            .now
            .store(self.tick, Ordering::Relaxed);
        for event in self.events.remove(&self.tick).unwrap_or_default() {
            self.happen(event);
        }
        self.network.tick(self.tick);
        for member in self.members.values() {
            member.run_until(self.tick);
        }
        self.clients.run_until(self.tick);
        self.follow_administrator();
        match self.failures.lock().first() {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }

    /// Starts the processes of new members, and ends those of members that know they were removed.
    fn follow_administrator(&mut self) {
        let starts = std::mem::take(&mut *self.shared.changes.starts.lock());
        for member in starts {
            self.later(1, 300, Event::Start { member });
        }
        let removed =
            |member: &&Member| member.told_removed.load(Ordering::Relaxed) && !member.gone;
        let removed: Vec<u64> = self
            .members
            .values()
            .filter(removed)
            .map(|member| member.id)
            .collect();
        for id in removed {
            self.note(format!("{id} ends: it was removed"));
            if !self.shared.changes.removals.lock().contains(&id) {
                let failure = format!("member {id} was told that it was removed");
                self.failures.lock().push(failure);
            }
            let member = self.members.get_mut(&id).unwrap();
            member.gone = true;
            member.end(End::Killed);
        }
    }

    /// Goes on until something is true.
    fn step_until(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<(), String> {
        let limit = self.tick + RECOVERY_TICKS_MAX;
        while !done(self) {
            if self.tick >= limit {
                return Err(format!(
                    "waited {RECOVERY_TICKS_MAX} ms in vain until {what}"
                ));
            }
            self.step()?;
        }
        Ok(())
    }

    fn later(&mut self, least: u64, most: u64, event: Event) {
        let at = self.tick + self.random.random_range(least..=most);
        self.events.entry(at).or_default().push(event);
    }

    fn note(&mut self, what: String) {
        self.faults.push(format!("{:>6} {what}", self.tick));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::NextFault => {
                if self.tick < FAULTS_END {
                    self.break_something();
                    self.later(100, 900, Event::NextFault);
                }
            }
            Event::Repair { from, to, reset } => {
                self.note(format!("repair {from} -> {to}, reset: {reset}"));
                self.network.repair(from, to, reset);
            }
            Event::End { member, .. } if !self.members[&member].is_up() => {}
            Event::End { member, end } => {
                self.note(format!("end {member}: {end:?}"));
                self.members.get_mut(&member).unwrap().end(end);
                self.later(20, 1_500, Event::Start { member });
            }
            Event::Start { member } if self.members[&member].gone => {}
            Event::Start { member } => {
                self.note(format!("start {member}"));
                let tick = self.tick;
                self.members.get_mut(&member).unwrap().start(tick);
            }
            Event::FastDisk { member } => {
                self.members[&member].disk_delay.store(0, Ordering::Relaxed);
            }
        }
    }

    fn break_something(&mut self) {
        let up: Vec<u64> = self.running();
        if up.is_empty() {
            return;
        }
        let id = up[self.random.random_range(0..up.len())];
        let exists = |other: &&Member| other.id != id && other.exists();
        let others: Vec<u64> = self
            .members
            .values()
            .filter(exists)
            .map(|other| other.id)
            .collect();
        match self.random.random_range(0..7) {
            0 => {
                self.note(format!("isolate {id}"));
                let pairs = others
                    .into_iter()
                    .flat_map(|other| [(id, other), (other, id)])
                    .collect();
                self.cut(pairs);
            }
            1 => {
                self.note(format!("{id} hears nobody"));
                self.cut(others.into_iter().map(|other| (other, id)).collect());
            }
            2 => {
                self.note(format!("nobody hears {id}"));
                self.cut(others.into_iter().map(|other| (id, other)).collect());
            }
            3 => {
                let other = up[self.random.random_range(0..up.len())];
                self.note(format!("cut {id} -> {other}"));
                self.cut(vec![(id, other)]);
            }
            4 => self.end_one(id),
            5 => {
                let until = self.tick + self.random.random_range(50..=2_000);
                self.note(format!("pause {id} until {until}"));
                self.members.get_mut(&id).unwrap().paused_until = until;
            }
            _ => {
                let delay = self.random.random_range(5..=150);
                self.note(format!("disk of {id} is slow: {delay} ms"));
                self.members[&id].disk_delay.store(delay, Ordering::Relaxed);
                self.later(200, 1_500, Event::FastDisk { member: id });
            }
        }
    }

    fn cut(&mut self, pairs: Vec<(u64, u64)>) {
        let duration = self.random.random_range(100..=3_000);
        let reset = self.random.random_bool(0.5);
        for (from, to) in pairs {
            self.network.cut(from, to);
            self.later(duration, duration, Event::Repair { from, to, reset });
        }
    }

    fn end_one(&mut self, id: u64) {
        let member = &self.members[&id];
        if !member.is_up() || member.doomed.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.random.random_bool(0.4) {
            self.happen(Event::End {
                member: id,
                end: End::Killed,
            });
            return;
        }
        // Most often in the middle of a write: the process sees its disk fail before it ends.
        let operations = self.random.random_range(1..=6);
        self.members[&id].disk.lose_power_at_operation(operations);
        self.note(format!("power of {id} fails in {operations} operations"));
        self.later(
            1,
            40,
            Event::End {
                member: id,
                end: End::PowerLost,
            },
        );
    }

    /// Ends all faults that last.
    fn heal(&mut self) {
        self.note("heal".into());
        self.network.repair_all();
        for member in self.members.values_mut() {
            member.paused_until = 0;
            member.disk_delay.store(0, Ordering::Relaxed);
        }
    }

    /// The members whose processes run.
    fn running(&self) -> Vec<u64> {
        let up = |member: &&Member| member.is_up();
        self.members
            .values()
            .filter(up)
            .map(|member| member.id)
            .collect()
    }

    /// Runs something on these members; all must be up.
    fn ask_all<T: Send + 'static>(
        &mut self,
        members: &[u64],
        question: fn(Arc<Running>) -> BoxFuture<'static, T>,
    ) -> Result<Vec<T>, String> {
        let mut answers = Vec::new();
        for id in members {
            let door = &self.members[id].door;
            let (answer, answered) = oneshot::channel();
            let request: Request = Box::new(move |running| {
                Box::pin(async move {
                    // A member that ends meanwhile is found by waiting.
                    let _ = answer.send(question(running).await);
                })
            });
            let door = door.lock();
            let sent = door.as_ref().is_some_and(|door| door.send(request).is_ok());
            assert!(sent, "these members are up");
            answers.push(answered);
        }
        let mut results = Vec::new();
        self.step_until("all members answer", |_| {
            while let Some(first) = answers.first_mut() {
                let Ok(result) = first.try_recv() else {
                    return false;
                };
                results.push(result);
                answers.remove(0);
            }
            true
        })?;
        Ok(results)
    }

    fn run(&mut self) -> Result<String, String> {
        while self.tick < FAULTS_END {
            self.step()?;
        }
        self.shared.changes.stop.store(true, Ordering::Relaxed);
        self.heal();
        // Members that are down start when their time has come.
        self.step_until("all faults have ended", |this| {
            this.events.is_empty() && this.shared.changes.starts.lock().is_empty()
        })?;
        self.heal();
        let before = self.shared.acknowledged.load(Ordering::Relaxed);
        self.step_until("the healed cluster takes writes", |this| {
            this.shared.acknowledged.load(Ordering::Relaxed) >= before + SOME_WRITES
        })?;
        self.shared.stop.store(true, Ordering::Relaxed);
        // The clients' handles are the only others.
        self.step_until("the clients end", |this| {
            Arc::strong_count(&this.shared) == 1
        })?;
        self.step_until("all leases have ended", |this| {
            this.shared.lease_ends.alive() == 0
        })?;
        self.shared.lease_ends.check()?;
        let members = self.equal_members()?;
        self.compare_members(&members)?;
        let removed = self.check_directory(members[0])?;
        self.removed_members_end(&members, &removed)?;
        self.check_history(members[0])
    }

    /// Waits until all members of the cluster have the same log and have applied it, and those that
    /// were added as voters vote.
    fn equal_members(&mut self) -> Result<Vec<u64>, String> {
        let limit = self.tick + RECOVERY_TICKS_MAX;
        loop {
            let running = self.running();
            let states = self.ask_all(&running, |running| {
                Box::pin(async move {
                    let directory = running.machine.members.current();
                    let voters = directory.voters().map(|member| member.id);
                    (running.consensus.status(), voters.collect::<BTreeSet<_>>())
                })
            })?;
            let (states, voters): (Vec<_>, Vec<_>) = states.into_iter().unzip();
            let voters: BTreeMap<u64, _> = running.iter().copied().zip(voters).collect();
            let states: BTreeMap<u64, _> = running.into_iter().zip(states).collect();
            let leaders = states
                .iter()
                .filter(|(id, status)| status.is_leader && voters[id] == status.voters)
                .map(|(_, status)| status);
            if let Some(leader) = leaders.max_by_key(|status| status.term) {
                let members: Vec<u64> = leader.voters.union(&leader.learners).copied().collect();
                let equal = |id| {
                    states.get(id).is_some_and(|status| {
                        status.last_log == leader.last_log && status.applied == leader.last_log
                    })
                };
                if members.iter().all(equal) {
                    return Ok(members);
                }
            }
            if self.tick > limit {
                return Err(format!("members stay apart: {states:#?}"));
            }
        }
    }

    fn compare_members(&mut self, members: &[u64]) -> Result<(), String> {
        let hashes = self.ask_all(members, |running| {
            Box::pin(async move {
                let reader = running.machine.reader();
                let hash = reader.hash_kv(0).expect("the present can be hashed");
                (
                    hash.hash,
                    hash.revision,
                    reader.hash().expect("a memory engine"),
                )
            })
        })?;
        if hashes.iter().any(|hash| *hash != hashes[0]) {
            return Err(format!("members differ: {hashes:?}"));
        }
        Ok(())
    }

    /// The replicated list, which every member has, is what consensus goes by, and has all changes
    /// that were acknowledged. Returns the removed members.
    fn check_directory(&mut self, member: u64) -> Result<BTreeSet<u64>, String> {
        let mut answers = self.ask_all(&[member], |running| {
            Box::pin(async move {
                (
                    running.machine.members.current(),
                    running.consensus.status(),
                )
            })
        })?;
        let (directory, status) = answers.remove(0);
        let voters: BTreeSet<u64> = directory.voters().map(|member| member.id).collect();
        let learners = directory
            .members
            .values()
            .filter(|member| member.is_learner);
        let learners: BTreeSet<u64> = learners.map(|member| member.id).collect();
        if voters != status.voters || learners != status.learners {
            return Err(format!("{directory:?} is not {status:?}"));
        }
        let was_added = |id| directory.members.contains_key(id) || directory.removed.contains(id);
        for change in &*self.shared.changes.acknowledged.lock() {
            let done = match change {
                MembershipChange::AddLearner(id) => was_added(id),
                MembershipChange::Promote(id) => {
                    voters.contains(id) || directory.removed.contains(id)
                }
                MembershipChange::Remove(id) => directory.removed.contains(id),
            };
            if !done {
                return Err(format!("{change:?} is lost: {directory:?}"));
            }
        }
        Ok(directory.removed.clone())
    }

    /// A removed member that reaches a member of the cluster, as its own log knows it, is told so.
    fn removed_members_end(
        &mut self,
        members: &[u64],
        removed: &BTreeSet<u64>,
    ) -> Result<(), String> {
        let others: Vec<u64> = self
            .running()
            .into_iter()
            .filter(|id| removed.contains(id))
            .collect();
        let states = self.ask_all(&others, |running| {
            Box::pin(async move { running.consensus.status() })
        })?;
        let reach = |status: &ConsensusStatus| {
            let mut known = status.voters.union(&status.learners);
            known.any(|id| members.contains(id))
        };
        let told: Vec<u64> = others
            .into_iter()
            .zip(&states)
            .filter(|(_, status)| reach(status))
            .map(|(id, _)| id)
            .collect();
        let what = format!("the removed members {told:?} end");
        self.step_until(&what, |this| told.iter().all(|id| this.members[id].gone))
    }

    fn check_history(&mut self, member: u64) -> Result<String, String> {
        let mut events = self.ask_all(&[member], |running| {
            Box::pin(async move { all_events(&running) })
        })?;
        let events = events.remove(0);
        let operations = std::mem::take(&mut *self.shared.operations.lock());
        let watches = std::mem::take(&mut *self.shared.watches.lock());
        let summary = format!(
            "{} operations, {} changes, {} watched in {} parts, {} faults, {} changes of members, \
             {} leases ended, {} snapshots installed, {} ms",
            operations.len(),
            events.len(),
            watches
                .iter()
                .flat_map(|watch| &watch.responses)
                .map(|response| response.changes.len())
                .sum::<usize>(),
            watches.len(),
            self.faults.len(),
            self.shared.changes.acknowledged.lock().len(),
            self.shared.lease_ends.ended(),
            self.members
                .values()
                .map(|member| member.kept.lock().installed)
                .sum::<u64>(),
            self.tick,
        );
        let history = History {
            operations,
            events,
            watches,
        };
        history.check_operations()?;
        history.check_watches()?;
        Ok(summary)
    }
}

/// The whole life of the store.
fn all_events(running: &Running) -> Vec<Change> {
    let reader = running.machine.reader();
    let scan = reader.events(1, i64::MAX, usize::MAX, &|_| true, false);
    let batches = scan.expect("nothing was compacted").batches;
    let changes = batches
        .into_iter()
        .flat_map(|batch| batch.events)
        .map(|event| {
            let pair = event.key_value.decode().expect("the store's own pair");
            Change {
                revision: event.revision.main,
                key: String::from_utf8(pair.key.to_vec()).expect("a client's key"),
                value: (!event.tombstone).then(|| value_of(&pair.value)),
                created: event.created,
                previous: None,
            }
        });
    changes.collect()
}

fn simulate(seed: u64) {
    let mut simulation = Simulation::new(seed, false);
    match simulation.run() {
        Ok(summary) => println!("seed {seed}: {summary}"),
        Err(failure) => panic!(
            "METASTORE_SIMULATION_SEED={seed} at {} ms: {failure}\nfaults:\n{}",
            simulation.tick,
            simulation.faults.join("\n"),
        ),
    }
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("the variable is a number"))
}

#[test]
fn a_cluster_with_faults_stays_linearizable_and_loses_nothing() {
    if let Some(seed) = number("METASTORE_SIMULATION_SEED") {
        simulate(seed);
        return;
    }
    for seed in SEEDS_THAT_FAILED {
        simulate(*seed);
    }
    for _ in 0..number("METASTORE_SIMULATION_RUNS").unwrap_or(FRESH_RUNS) {
        simulate(rand::random());
    }
}

/// What finds nothing in a log that forgets would find nothing at all.
#[test]
fn the_simulation_finds_a_log_that_does_not_sync() {
    let found = (0..FORGETFUL_RUNS_MAX).any(|_| {
        let seed = rand::random();
        let failure = Simulation::new(seed, true).run().err();
        println!(
            "seed {seed}: {}",
            failure.as_deref().unwrap_or("nothing was found")
        );
        failure.is_some()
    });
    assert!(found, "{FORGETFUL_RUNS_MAX} runs found nothing");
}
