//! Whole lives of clusters with members that are played: operators die after each of their calls, to the API server and
//! to members, and the API server is slow, restarts and refuses.

use super::members::{DB_IN_USE, DB_SIZE};
use super::*;
use metastore_proto::etcdserverpb as pb;

/// Passes in which a chapter must end, however often operators die or are disturbed in it.
const CHAPTER_PASSES_MAX: usize = 400;
/// Seeds of the weather that each run tries, beside that of the day.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Something happens, and the operators make something of it.
struct Chapter {
    title: &'static str,
    happens: fn(&mut World),
    is_over: fn(&World) -> bool,
}

const LIFE: &[Chapter] = &[
    Chapter {
        title: "one member forms a cluster",
        happens: |world| {
            let spec = spec(world);
            spec["replicas"] = json!(1);
            spec["progressDeadline"] = json!("10m");
            spec["recovery"]["memberReplacement"]["maxPerHour"] = json!(100);
        },
        is_over: |world| has_voters(world, 1),
    },
    Chapter {
        title: "it grows to three",
        happens: |world| spec(world)["replicas"] = json!(3),
        is_over: |world| has_voters(world, 3),
    },
    Chapter {
        title: "another configuration",
        happens: |world| spec(world)["config"] = json!({"logLevel": "warn"}),
        is_over: |world| has_voters(world, 3) && condition_is(world, "AllMembersUpdated", "True"),
    },
    Chapter {
        title: "the volume of a member is lost",
        happens: |world| {
            let id = follower(world);
            let mut volumes = world.facts.volumes.iter();
            let (claim, _) = volumes.find(|(_, owner)| **owner == id).unwrap();
            let path = format!("persistentvolumeclaims/{claim}");
            world.at(&path)["status"]["phase"] = json!("Lost");
        },
        is_over: |world| {
            let is_lost = |claim: &Value| claim["status"]["phase"] == "Lost";
            has_voters(world, 3)
                && !world
                    .all("persistentvolumeclaims")
                    .any(|(_, claim)| is_lost(claim))
        },
    },
    Chapter {
        title: "the data of a member differs",
        happens: |world| {
            let id = follower(world);
            raise(world, pb::AlarmType::Corrupt, id);
        },
        is_over: |world| has_voters(world, 3) && world.facts.alarms.is_empty(),
    },
    Chapter {
        title: "the store is full",
        happens: |world| {
            for member in world.facts.list.clone() {
                raise(world, pb::AlarmType::Nospace, member.id);
                world.facts.sizes.insert(member.id, DB_SIZE);
            }
            world.facts.revision += 1000;
        },
        is_over: |world| {
            let started = &world.object("configmaps/c-identity")["data"]["reclaimStarted"];
            world.facts.alarms.is_empty()
                && world.facts.compacted == world.facts.revision
                && started.is_null()
                && is_defragmented(world)
        },
    },
    Chapter {
        title: "tasks",
        happens: |world| {
            for member in world.facts.list.clone() {
                world.facts.sizes.insert(member.id, DB_SIZE);
            }
            world.facts.revision += 1000;
            let member = world.facts.list[0].name.clone();
            for (name, task) in [
                ("a", json!({"defrag": {}})),
                ("b", json!({"compact": {"revision": 0}})),
                ("c", json!({"moveLeader": {"to": ""}})),
                ("d", json!({"verifyConsistency": {}})),
                ("e", json!({"replaceMember": {"member": member}})),
            ] {
                let mut spec = task;
                spec["clusterRef"] = json!({"name": "c"});
                let task = json!({
                    "apiVersion": "metastore.io/v1alpha1",
                    "kind": "MetaStoreTask",
                    "metadata": {"name": name, "namespace": "n", "generation": 1},
                    "spec": spec,
                });
                world.objects.insert(format!("metastoretasks/{name}"), task);
            }
        },
        is_over: |world| {
            has_voters(world, 3)
                && world
                    .all("metastoretasks")
                    .all(|(_, task)| task["status"]["phase"] == "Succeeded")
        },
    },
    Chapter {
        title: "authentication",
        happens: |world| spec(world)["auth"] = json!({"enabled": true}),
        is_over: |world| world.facts.auth.is_on,
    },
    Chapter {
        title: "no authentication",
        happens: |world| spec(world)["auth"] = json!({"enabled": false}),
        is_over: |world| !world.facts.auth.is_on,
    },
    Chapter {
        title: "other addresses",
        happens: |world| spec(world)["clusterDomain"] = json!("example"),
        is_over: |world| {
            let is_new = |member: &pb::Member| member.peer_ur_ls[0].ends_with(".svc.example:2380");
            has_voters(world, 3)
                && world.facts.list.iter().all(is_new)
                && condition_is(world, "AllMembersUpdated", "True")
        },
    },
    Chapter {
        title: "it shrinks to one",
        happens: |world| {
            // The one that stays is not known before; a leader that leaves hands over.
            spec(world)["replicas"] = json!(1);
        },
        is_over: |world| has_voters(world, 1) && world.all("persistentvolumeclaims").count() == 1,
    },
];

fn spec(world: &mut World) -> &mut Value {
    &mut world.at("metastoreclusters/c")["spec"]
}

fn has_voters(world: &World, count: usize) -> bool {
    let list = &world.facts.list;
    list.len() == count
        && list
            .iter()
            .all(|member| !member.is_learner && world.runs(member.id))
        && world.all("statefulsets").count() == count
}

fn condition_is(world: &World, kind: &str, status: &str) -> bool {
    let cluster = world.object("metastoreclusters/c");
    let mut conditions = cluster["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    conditions.any(|condition| condition["type"] == kind && condition["status"] == status)
}

fn follower(world: &World) -> u64 {
    let mut list = world.facts.list.iter();
    list.find(|member| member.id != world.facts.leader)
        .unwrap()
        .id
}

fn raise(world: &mut World, kind: pb::AlarmType, member_id: u64) {
    world.facts.alarms.push(pb::AlarmMember {
        member_id,
        alarm: kind as i32,
    });
}

fn is_defragmented(world: &World) -> bool {
    let sizes = &world.facts.sizes;
    world
        .facts
        .list
        .iter()
        .all(|member| sizes.get(&member.id) == Some(&DB_IN_USE))
}

impl Chapter {
    fn begin(&self, stage: &Stage) {
        let mut world = stage.server.world.lock();
        (self.happens)(&mut world);
        let cluster = world.at("metastoreclusters/c");
        let generation = cluster["metadata"]["generation"].as_i64().unwrap();
        cluster["metadata"]["generation"] = json!(generation + 1);
        stage.server.play(&mut world);
    }

    /// Passes until the chapter is over and nothing is left to do. `when` says what disturbs it.
    async fn unfold(&self, stage: &Stage, when: &str) {
        let server = &stage.server;
        server.changes.lock().clear();
        for _ in 0..CHAPTER_PASSES_MAX {
            let changes_before = server.changes.lock().len();
            let outcome = stage.try_pass().await;
            let world = server.world.lock();
            let violations = &world.facts.violations;
            assert!(
                violations.is_empty(),
                "{}, {when}: {violations:?}",
                self.title
            );
            let is_quiet = server.changes.lock().len() == changes_before;
            if matches!(outcome, Some(Ok(_))) && is_quiet && (self.is_over)(&world) {
                assert_eq!(world.facts.formed, 1, "{}, {when}", self.title);
                return;
            }
        }
        let world = server.world.lock();
        panic!(
            "{}, {when}: it does not end: {:#?}\n{:#?}\n{:#}",
            self.title,
            server.changes.lock(),
            world.facts,
            world.object("metastoreclusters/c")["status"],
        );
    }
}

/// What a chapter begins with, to try it again and again.
#[derive(Clone, Default)]
struct Page {
    objects: BTreeMap<String, Value>,
    facts: Facts,
}

impl Page {
    fn of(stage: &Stage) -> Self {
        let world = stage.server.world.lock();
        Self {
            objects: world.objects.clone(),
            facts: world.facts.clone(),
        }
    }

    async fn open(&self, weather: Weather) -> Stage {
        let world = World {
            objects: self.objects.clone(),
            facts: self.facts.clone(),
            ..World::default()
        };
        let stage = Stage::set(Server {
            world: Mutex::new(world),
            weather: Mutex::new(weather),
            has_members: true,
            ..Server::default()
        })
        .await;
        stage.server.play(&mut stage.server.world.lock());
        stage
    }
}

/// Each operator lives until its first change and does not learn what came of it.
#[tokio::test]
async fn operators_that_die_after_each_call_carry_a_cluster_through_its_life() {
    let stage = Page::default().open(Weather::default()).await;
    *stage.server.mortality.lock() = Mortality::Each;
    for chapter in LIFE {
        chapter.begin(&stage);
        chapter
            .unfold(&stage, "each operator dies of its first change")
            .await;
    }
}

/// One operator dies, and the next one lives: for each call of each chapter, to the API server and to members.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_dies_after_any_one_call_is_followed_by_one_that_goes_on() {
    let mut page = Page::default();
    let mut calls = Vec::new();
    for chapter in LIFE {
        let stage = page.open(Weather::default()).await;
        chapter.begin(&stage);
        chapter.unfold(&stage, "nobody dies").await;
        let changes = stage.server.changes.lock().clone();
        for (number, call) in changes.iter().enumerate() {
            let stage = page.open(Weather::default()).await;
            *stage.server.mortality.lock() = Mortality::One(number);
            chapter.begin(&stage);
            chapter
                .unfold(&stage, &format!("an operator dies after {call}"))
                .await;
        }
        calls.extend(changes);
        page = Page::of(&stage);
    }
    for method in [
        "MemberAdd",
        "MemberPromote",
        "MemberRemove",
        "MemberUpdate",
        "MoveLeader",
        "Defragment",
        "Alarm",
        "Compact",
        "UserAdd",
        "RoleAdd",
        "UserGrantRole",
        "AuthEnable",
        "AuthDisable",
    ] {
        let is_so = |call: &String| call.starts_with(&format!("{method} of "));
        assert!(
            calls.iter().any(is_so),
            "nobody died after {method}: {calls:#?}"
        );
    }
}

/// The same life on an API server that is slow, restarts and refuses; nothing is lost, and it ends as it should.
#[tokio::test]
async fn an_api_server_in_bad_weather_loses_nothing() {
    let of_the_day = rand::random::<u32>();
    for seed in SEEDS.into_iter().chain([u64::from(of_the_day)]) {
        println!("seed {seed}");
        let stage = Page::default().open(Weather::bad(seed)).await;
        for chapter in LIFE {
            chapter.begin(&stage);
            chapter.unfold(&stage, &format!("seed {seed}")).await;
        }
    }
}

/// The status says why nothing gets on, while it can be written, and says so no longer when it does.
#[tokio::test]
async fn what_the_api_server_refuses_stands_in_the_status_until_it_does_not() {
    let stage = Page::default().open(Weather::default()).await;
    for chapter in &LIFE[..2] {
        chapter.begin(&stage);
        chapter.unfold(&stage, "nothing happens").await;
    }
    let progressing = || {
        let status = &stage.get("metastoreclusters/c")["status"];
        let conditions = status["conditions"].as_array().unwrap();
        let found = conditions
            .iter()
            .find(|condition| condition["type"] == "Progressing");
        found.unwrap().clone()
    };
    let facts = stage.server.world.lock().facts.clone();
    for (of_method, part, code, reason, words) in [
        (
            "PATCH",
            "/statefulsets/",
            500,
            "StepFailed",
            "refused with 500",
        ),
        (
            "PATCH",
            "/statefulsets/",
            429,
            "StepFailed",
            "refused with 429",
        ),
        ("GET", "/pods", 503, "LookFailed", "refused with 503"),
    ] {
        stage.server.weather.lock().grudge = Some((of_method, part, code));
        spec(&mut stage.server.world.lock())["config"] = json!({"logLevel": format!("error")});
        for _ in 0..5 {
            assert!(stage.try_pass().await.unwrap().is_err());
        }
        let condition = progressing();
        assert_eq!(condition["reason"], reason, "{condition}");
        let message = condition["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert_eq!(stage.server.world.lock().facts, facts);
    }
    stage.server.weather.lock().grudge = None;
    let updated = Chapter {
        title: "it thinks better of it",
        happens: |_| {},
        is_over: |world| condition_is(world, "AllMembersUpdated", "True") && has_voters(world, 3),
    };
    updated.begin(&stage);
    updated.unfold(&stage, "nothing happens").await;
    assert_eq!(progressing()["reason"], "Idle");
}
