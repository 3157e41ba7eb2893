//! Somebody who adds, promotes and removes members all the time, and moves the leadership.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use metastore_consensus::{ChangeError, MembershipChange};
use metastore_proto::internal::{MemberRecord, MembershipCommand, membership_command::Change};
use metastore_server::member_directory::Directory;
use parking_lot::Mutex;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::clients::{Shared, ask};
use crate::member::{Door, FIRST_MEMBERS, MEMBER_ID_MAX};

/// Longest pause between two changes, in milliseconds.
const PAUSE_MAX: u64 = 700;
const VOTERS_MAX: usize = 5;
const LEARNERS_MAX: usize = 1;
/// Members asked before a change is given up that nobody wanted to make.
const ATTEMPTS_MAX: u32 = 6;
const RETRY_PAUSE: Duration = Duration::from_millis(25);
const TRANSFER_LIMIT: Duration = Duration::from_millis(500);

/// What the administrator did, and wants to be done.
#[derive(Default)]
pub(crate) struct Changes {
    /// No more changes.
    pub(crate) stop: AtomicBool,
    /// Members whose processes are to be started for the first time.
    pub(crate) starts: Mutex<Vec<u64>>,
    /// Members whose removal was proposed: only they may be removed.
    pub(crate) removals: Mutex<BTreeSet<u64>>,
    /// Changes that a member acknowledged.
    pub(crate) acknowledged: Mutex<Vec<MembershipChange>>,
}

struct Administrator {
    shared: Arc<Shared>,
    random: StdRng,
    last_id: u64,
}

/// The administrator, until it is told to stop.
pub(crate) async fn administrator(shared: Arc<Shared>, seed: u64) {
    let mut administrator = Administrator {
        shared: shared.clone(),
        random: StdRng::seed_from_u64(!seed),
        last_id: FIRST_MEMBERS.len() as u64,
    };
    while !shared.changes.stop.load(Ordering::Relaxed) {
        let pause = administrator.random.random_range(1..=PAUSE_MAX);
        // Virtual time between two changes.
        tokio::time::sleep(Duration::from_millis(pause)).await;
        administrator.change_something().await;
    }
}

impl Administrator {
    async fn change_something(&mut self) {
        let Some(members) = self.members().await else {
            return;
        };
        let voters: Vec<u64> = members.voters().map(|member| member.id).collect();
        let learners = members.members.len() - voters.len();
        let any = self.random.random_range(0..members.members.len());
        let any = *members.members.keys().nth(any).expect("an index in range");
        match self.random.random_range(0..10) {
            0..4 if self.last_id < MEMBER_ID_MAX => {
                let learner = self.random.random_bool(0.5);
                if learner && learners < LEARNERS_MAX || !learner && voters.len() < VOTERS_MAX {
                    self.add(learner).await;
                }
            }
            4..6 => {
                if let Some(learner) = members.members.values().find(|member| member.is_learner) {
                    let id = learner.id;
                    self.change(MembershipChange::Promote(id), Change::Promote(id))
                        .await;
                }
            }
            6..9 => self.remove(any).await,
            _ => self.move_leader(any).await,
        }
    }

    /// Who is a member, by a linearizable read.
    async fn members(&mut self) -> Option<Arc<Directory>> {
        let door = self.shared.some_door(&mut self.random);
        let read = ask(&door, |running| {
            Box::pin(async move {
                let read = running.consensus.read_index().await.ok()?;
                running.consensus.wait_applied(read.index).await;
                Some(running.machine.members.current())
            })
        });
        read.await.flatten()
    }

    async fn add(&mut self, learner: bool) {
        self.last_id += 1;
        let id = self.last_id;
        let record = MemberRecord {
            id,
            is_learner: learner,
            ..MemberRecord::default()
        };
        // A voter gets the log first, as in the server, and its vote from the leader.
        self.change(MembershipChange::AddLearner(id), Change::Add(record))
            .await;
        // It may be one, also when nobody said so.
        self.shared.changes.starts.lock().push(id);
    }

    async fn remove(&mut self, id: u64) {
        self.shared.changes.removals.lock().insert(id);
        self.change(MembershipChange::Remove(id), Change::Remove(id))
            .await;
    }

    /// Asks one member after the other until one makes the change.
    async fn change(&mut self, change: MembershipChange, command: Change) {
        let command = MembershipCommand {
            change: Some(command),
            ..MembershipCommand::default()
        };
        let command = Bytes::from(command.encode_to_vec());
        let mut door = self.shared.some_door(&mut self.random);
        for _ in 0..ATTEMPTS_MAX {
            let command = command.clone();
            let answer = ask(&door, move |running| {
                Box::pin(async move { running.consensus.change_membership(change, command).await })
            });
            match answer.await {
                Some(Ok(_)) => {
                    self.shared.changes.acknowledged.lock().push(change);
                    return;
                }
                Some(Err(ChangeError::NotLeader { leader })) => door = self.door_of(leader),
                Some(Err(ChangeError::InProgress)) => {}
                // Done, impossible by now, or unknown.
                Some(Err(_)) | None => return,
            }
            // Virtual time for an election, or for the change before.
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn move_leader(&mut self, to: u64) {
        let door = self.shared.some_door(&mut self.random);
        let status = ask(&door, |running| {
            Box::pin(async move { running.consensus.status() })
        });
        let Some(status) = status.await else { return };
        let door = self.door_of(status.leader);
        let moved = ask(&door, move |running| {
            Box::pin(async move { running.consensus.transfer_leader(to, TRANSFER_LIMIT).await })
        });
        // It is no promise: the target may be a learner, or away.
        let _outcome = moved.await;
    }

    fn door_of(&mut self, leader: Option<u64>) -> Door {
        match leader {
            Some(leader) => self.shared.doors[leader as usize - 1].clone(),
            None => self.shared.some_door(&mut self.random),
        }
    }
}
