//! The operator against a small model of Kubernetes and of a cluster, in which things fail.
//!
//! Each step observes, decides and does one action; between steps members crash, lose their data or their
//! StatefulSet, people change the spec, and the operator dies in the middle of an action. Whatever happens:
//! a majority is never given up, a cluster is formed once, the volume of a current member is never deleted;
//! and when nothing fails any more, the wanted state is reached.
//!
//! A failure prints its seed: `SEED=… cargo test -p metastore-operator-core --test simulation`.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

mod exploration;
mod model;

use metastore_operator_api::RetainPolicy;
use metastore_operator_core::{Action, Class, classify};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::model::World;

/// Steps in which things fail.
const STORM_STEPS: usize = 150;
/// Random histories in one test run.
const HISTORIES: u64 = 1000;

/// Runs one history in a world; panics with its trace.
fn traced(label: &str, world: &mut World, history: impl FnOnce(&mut World)) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| history(world)));
    if let Err(panic) = outcome {
        let from = world.trace.len().saturating_sub(60);
        eprintln!(
            "{}\nlist: {:?}\n{label}",
            world.trace[from..].join("\n"),
            world.list
        );
        std::panic::resume_unwind(panic);
    }
}

/// Steps in which the operator may die and, with a probability, something goes wrong.
fn storm(world: &mut World, random: &mut StdRng, probability: f64) {
    for _ in 0..STORM_STEPS {
        if random.random_bool(probability) {
            fail(world, random);
        }
        may_die(world, random);
        world.step();
    }
}

fn may_die(world: &mut World, random: &mut StdRng) {
    world.dies_after = random.random_bool(0.1).then(|| random.random_range(0..2));
}

/// Something goes wrong, but never so much that a majority is gone for good.
fn fail(world: &mut World, random: &mut StdRng) {
    let names: Vec<_> = world.sets.keys().cloned().collect();
    if names.is_empty() {
        return;
    }
    let name = &names[random.random_range(0..names.len())];
    match random.random_range(0..12) {
        0..=3 => {
            let steps = random.random_range(1..20);
            world.sets.get_mut(name).unwrap().down = steps;
        }
        4 => {
            world.lose_volume(name, false);
        }
        5 => {
            world.lose_volume(name, true);
        }
        6 => world.delete_set(name),
        7 => world.generation += 1,
        8 => {
            world.spec.replicas = [1, 3, 5][random.random_range(0..3)];
            world.note(&format!("{} replicas", world.spec.replicas));
        }
        9 => {
            world.lose_node(name);
        }
        10 => world.bring_node_back(name),
        _ => {
            world.spec.storage.retain.when_replaced = if random.random_bool(0.5) {
                RetainPolicy::Retain
            } else {
                RetainPolicy::Delete
            };
        }
    }
}

/// Runs a history for a seed of the environment, or for many.
fn for_each_seed(histories: u64, history: impl Fn(u64)) {
    if let Ok(seed) = std::env::var("SEED") {
        history(seed.parse().expect("SEED is a number"));
        return;
    }
    for seed in 0..histories {
        history(seed);
    }
}

#[test]
fn whatever_fails_the_majority_stays_and_the_wanted_state_is_reached() {
    for_each_seed(HISTORIES, |seed| {
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World::new([1, 3, 5][(seed % 3) as usize]);
        traced(&format!("SEED={seed}"), &mut world, |world| {
            storm(world, &mut random, 0.2);
            world.come_to_rest();
        });
    });
}

/// After a storm a majority loses its volumes for good, and a person names the survivor.
#[test]
fn a_lost_majority_is_recovered_from_the_survivor() {
    for_each_seed(HISTORIES / 4, |seed| {
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World::new([3, 5][(seed % 2) as usize]);
        traced(&format!("SEED={seed}"), &mut world, |world| {
            storm(world, &mut random, 0.1);
            if !world.lose_the_majority() {
                return;
            }
            for _ in 0..model::CALM_STEPS {
                // The operator may die between any two calls, and members may crash; nothing else is lost.
                if random.random_bool(0.05)
                    && let Some(set) = world.sets.values_mut().next()
                {
                    set.down = 3;
                }
                may_die(world, &mut random);
                world.step();
            }
            world.come_to_rest();
        });
    });
}

/// Steps until it is so; panics with the trace when it takes too many.
fn step_until(world: &mut World, what: &str, steps: usize, is_so: impl Fn(&World) -> bool) {
    for _ in 0..steps {
        if is_so(world) {
            return;
        }
        world.step();
    }
    let from = world.trace.len().saturating_sub(60);
    panic!(
        "not after {steps} steps: {what}\n{}",
        world.trace[from..].join("\n")
    );
}

/// The node of a new member is lost before it has started, or when it has begun to copy: the next one is added
/// long before `learnerStuckAfter`, which is an hour, 360 steps.
#[test]
fn a_lost_node_holds_growth_up_for_as_long_as_a_member_may_be_unhealthy_and_no_longer() {
    for has_started in [false, true] {
        let mut world = World::new(3);
        step_until(&mut world, "three voters", 60, |world| {
            world.voters().len() == 3
        });
        let before: Vec<_> = world.sets.keys().cloned().collect();
        world.spec.replicas = 5;
        let lost = |world: &World| {
            let has_data =
                |name: &str| world.volumes.get(name).is_some_and(|v| v.data_of.is_some());
            let mut names = world.sets.keys();
            names
                .find(|name| !before.contains(name) && has_data(name) == has_started)
                .cloned()
        };
        step_until(&mut world, "a new member", 30, |world| {
            lost(world).is_some()
        });
        let lost = lost(&world).unwrap();
        assert!(world.lose_node(&lost), "its node can be lost");
        step_until(&mut world, "five voters", 60, |world| {
            world.voters().len() == 5 && world.sets.len() == 5
        });
        assert!(!world.sets.contains_key(&lost), "its rest is put away");
    }
}

#[test]
fn a_cluster_forms_grows_and_shrinks_without_faults() {
    let mut world = World::new(3);
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
    let mut world = World::new(3);
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
