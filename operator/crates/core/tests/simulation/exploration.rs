//! Every fault at every step.
//!
//! From each of some situations the operator goes its way until all is at rest. At each step of that way every fault
//! that could happen happens, in a copy of the world, which then must come to rest, too. The operator's death after each of
//! its calls is one of the faults.
//!
//! `METASTORE_EXPLORATION_WINDOW=STEPS`: a second fault happens at each of that many steps after the first, which takes
//! minutes (default: 0).

use crate::model::{CALM_STEPS, World};
use crate::traced;

/// Longer than a member may be unhealthy in the model.
const LONG_DOWN_STEPS: u32 = 12;
/// A crash.
const SHORT_DOWN_STEPS: u32 = 2;

/// What happens to one member, or to all.
#[derive(Clone, Debug)]
enum Fault {
    Down(String, u32),
    VolumeLost(String),
    VolumeWiped(String),
    SetDeleted(String),
    NodeLost(String),
    NodeBack(String),
    NewTemplate,
    OperatorDies(u32),
}

impl Fault {
    /// Everything that could happen.
    fn all(world: &World) -> Vec<Self> {
        let of_member = |name: &String| {
            [
                Self::Down(name.clone(), SHORT_DOWN_STEPS),
                Self::Down(name.clone(), LONG_DOWN_STEPS),
                Self::VolumeLost(name.clone()),
                Self::VolumeWiped(name.clone()),
                Self::SetDeleted(name.clone()),
                Self::NodeLost(name.clone()),
                Self::NodeBack(name.clone()),
            ]
        };
        let members = world.sets.keys().flat_map(of_member);
        let of_all = [
            Self::NewTemplate,
            Self::OperatorDies(0),
            Self::OperatorDies(1),
        ];
        members.chain(of_all).collect()
    }

    /// Lets it happen. No: it cannot, or it would be too much for any operator.
    fn happens(&self, world: &mut World) -> bool {
        world.note(&format!("{self:?}"));
        match self {
            Self::Down(name, steps) => world.sets.get_mut(name).unwrap().down = *steps,
            Self::VolumeLost(name) => return world.lose_volume(name, false),
            Self::VolumeWiped(name) => return world.lose_volume(name, true),
            Self::SetDeleted(name) => world.delete_set(name),
            Self::NodeLost(name) => {
                return world.sets[name].lost.is_none() && world.lose_node(name);
            }
            Self::NodeBack(name) => {
                let is_lost = world.sets[name].lost.is_some();
                world.bring_node_back(name);
                return is_lost;
            }
            Self::NewTemplate => world.generation += 1,
            Self::OperatorDies(calls) => {
                world.dies_after = Some(*calls);
                return world.can_die_after(*calls);
            }
        }
        true
    }
}

/// Comes to rest from here; along the way, for so many steps, every fault happens in a copy. Returns how many ways
/// there were.
fn explore(label: &str, start: &World, faults: u32, window: usize) -> u64 {
    let mut ways = 1;
    let mut world = start.clone();
    traced(label, &mut world, World::come_to_rest);
    if faults == 0 {
        return ways;
    }
    let mut world = start.clone();
    for _ in 0..window {
        for fault in Fault::all(&world) {
            let mut other = world.clone();
            if fault.happens(&mut other) {
                ways += explore(label, &other, faults - 1, second_window());
            }
        }
        if world.rests() {
            break;
        }
    }
    ways
}

fn second_window() -> usize {
    std::env::var("METASTORE_EXPLORATION_WINDOW")
        .map_or(0, |steps| steps.parse().expect("a number of steps"))
}

fn at_rest(replicas: i32) -> World {
    let mut world = World::new(replicas);
    traced("forming", &mut world, World::come_to_rest);
    world
}

fn explored(label: &str, world: &World) {
    let started = std::time::Instant::now();
    let ways = explore(label, world, 2, CALM_STEPS);
    eprintln!(
        "{label}: {ways} ways, {:.1} s",
        started.elapsed().as_secs_f64()
    );
    assert!(ways > 10, "{label}: only {ways} ways");
}

#[test]
fn forming_survives_every_fault_at_every_step() {
    for replicas in [1, 3] {
        explored(&format!("forming {replicas}"), &World::new(replicas));
    }
}

#[test]
fn growing_and_shrinking_survive_every_fault_at_every_step() {
    for (from, to) in [(1, 3), (3, 5), (5, 3), (3, 1)] {
        let mut world = at_rest(from);
        world.spec.replicas = to;
        explored(&format!("{from} to {to}"), &world);
    }
}

#[test]
fn restarts_and_replacements_survive_every_fault_at_every_step() {
    let mut world = at_rest(3);
    world.generation += 1;
    explored("a roll", &world);
    let mut world = at_rest(3);
    let name = world.sets.keys().next().unwrap().clone();
    assert!(world.lose_volume(&name, false));
    explored("a replacement", &world);
    let mut world = at_rest(3);
    let name = world.sets.keys().next().unwrap().clone();
    assert!(world.lose_node(&name));
    explored("a lost node", &world);
}

/// While a majority is being given up nothing more may be lost, but members crash and the operator dies.
#[test]
fn recovery_of_a_lost_majority_survives_crashes_at_every_step() {
    let mut start = at_rest(3);
    assert!(start.lose_the_majority());
    let mut ways = 0;
    let mut world = start;
    for _ in 0..CALM_STEPS {
        for fault in Fault::all(&world) {
            if !matches!(
                fault,
                Fault::Down(..) | Fault::OperatorDies(_) | Fault::NewTemplate
            ) {
                continue;
            }
            let mut other = world.clone();
            if fault.happens(&mut other) {
                traced("recovery", &mut other, World::come_to_rest);
                ways += 1;
            }
        }
        if world.rests() {
            break;
        }
    }
    assert!(ways > 50, "only {ways} ways");
}
