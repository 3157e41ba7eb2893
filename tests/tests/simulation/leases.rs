//! Leases of the simulated cluster: a member's part is the server's, its loops are here; and clients that
//! keep leases alive for a while and remember until when they were promised to live.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use metastore_consensus::ProposeError;
use metastore_proto::etcdserverpb::LeaseGrantRequest;
use metastore_proto::internal::{Command, command};
use metastore_server::lease_leadership;
use metastore_server::lease_manager::Renewed;
use parking_lot::Mutex;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::clients::{Shared, ask};
use crate::member::{ELECTION_TIMEOUT, Running};

const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const REVOKE_LIMIT: Duration = Duration::from_millis(500);
const REVOKES_PER_LOOK: usize = 10;
/// In seconds.
const TTL_MAX: i64 = 3;
const RENEWALS_MAX: u32 = 20;
/// Longest pause between two renewals, in milliseconds.
const RENEW_PAUSE_MAX: u64 = 600;

/// When leases ended, on the clock of the whole simulation: a tick is a millisecond.
#[derive(Default)]
pub(crate) struct LeaseEnds {
    pub(crate) now: AtomicU64,
    first_ends: Mutex<BTreeMap<i64, u64>>,
    /// Until when clients were told that their leases live; 0: nobody may have granted it.
    promises: Mutex<BTreeMap<i64, u64>>,
}

impl LeaseEnds {
    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Some member has applied the end of a lease.
    pub(crate) fn note(&self, id: i64) {
        self.first_ends.lock().entry(id).or_insert(self.now());
    }

    fn promise(&self, id: i64, asked: u64, ttl_seconds: i64) {
        let until = asked + 1000 * ttl_seconds.unsigned_abs();
        let mut promises = self.promises.lock();
        let latest = promises.entry(id).or_default();
        *latest = until.max(*latest);
    }

    /// A lease lives as long as it was promised.
    pub(crate) fn check(&self) -> Result<(), String> {
        let promises = self.promises.lock();
        for (id, ended) in &*self.first_ends.lock() {
            let promised = promises.get(id).copied().unwrap_or_default();
            if *ended < promised {
                return Err(format!(
                    "lease {id} ended at {ended} and was to live until {promised}"
                ));
            }
        }
        Ok(())
    }

    /// Leases that were promised a life, and have not ended.
    pub(crate) fn alive(&self) -> usize {
        let ends = self.first_ends.lock();
        let promises = self.promises.lock();
        promises.keys().filter(|id| !ends.contains_key(id)).count()
    }

    pub(crate) fn ended(&self) -> usize {
        self.first_ends.lock().len()
    }
}

/// As the server's task: the leader judges leases, and nobody else.
pub(crate) async fn follow_leadership(running: Arc<Running>) {
    let mut status = running.consensus.watch_status();
    let mut led_term = None;
    loop {
        let (is_leader, term) = {
            let current = status.borrow_and_update();
            (current.is_leader, current.term)
        };
        if is_leader && led_term != Some(term) {
            led_term = Some(term);
            let running = running.clone();
            tokio::spawn(async move {
                let Running { consensus, machine } = &*running;
                let extend = ELECTION_TIMEOUT;
                lease_leadership::take_over(consensus, &machine.leases, term, extend).await
            });
        } else if !is_leader && led_term.is_some() {
            led_term = None;
            running.machine.leases.demote();
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// As the server's task.
pub(crate) async fn expire_leases(running: Arc<Running>) {
    let Running { consensus, machine } = &*running;
    loop {
        // Virtual time between two looks.
        tokio::time::sleep(LOOK_INTERVAL).await;
        if consensus.is_leader() {
            let term = consensus.term();
            let (limit, count) = (REVOKE_LIMIT, REVOKES_PER_LOOK);
            lease_leadership::revoke_due(consensus, &machine.leases, term, limit, count).await;
        }
    }
}

/// Grants leases, keeps each alive for a while and lets it end, until told to stop.
pub(crate) async fn tenant(shared: Arc<Shared>, number: u32, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed ^ (u64::from(number + 1) << 48));
    let mut id = i64::from(number) << 32;
    while !shared.stop.load(Ordering::Relaxed) {
        id += 1;
        if grant(&shared, &mut random, id).await {
            for _ in 0..random.random_range(0..=RENEWALS_MAX) {
                let pause = random.random_range(1..=RENEW_PAUSE_MAX);
                // Virtual time between two renewals.
                tokio::time::sleep(Duration::from_millis(pause)).await;
                if shared.stop.load(Ordering::Relaxed) || !renew(&shared, &mut random, id).await {
                    break;
                }
            }
        }
        // Virtual time between two leases.
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn grant(shared: &Shared, random: &mut StdRng, id: i64) -> bool {
    let ttl = random.random_range(1..=TTL_MAX);
    let request = command::Request::LeaseGrant(LeaseGrantRequest { id, ttl });
    let command = Command {
        request: Some(request),
        ..Command::default()
    };
    let command = Bytes::from(command.encode_to_vec());
    let asked = shared.lease_ends.now();
    let door = shared.some_door(random);
    let proposal = command.clone();
    let answer = ask(&door, move |running| {
        Box::pin(async move { running.consensus.propose(proposal).await })
    });
    let answer = match answer.await {
        Some(Err(ProposeError::NotLeader {
            leader: Some(leader),
        })) => {
            let door = &shared.doors[leader as usize - 1];
            let answer = ask(door, move |running| {
                Box::pin(async move { running.consensus.propose(command).await })
            });
            answer.await
        }
        other => other,
    };
    let granted = matches!(answer, Some(Ok(_)));
    if granted {
        shared.lease_ends.promise(id, asked, ttl);
    }
    granted
}

/// Asks everybody whether he leads, as a client of the leader's would. Returns whether the lease may
/// still live.
async fn renew(shared: &Shared, random: &mut StdRng, id: i64) -> bool {
    let asked = shared.lease_ends.now();
    let first = random.random_range(0..shared.doors.len());
    for at in 0..shared.doors.len() {
        let door = &shared.doors[(first + at) % shared.doors.len()];
        let answer = ask(door, move |running| {
            Box::pin(async move {
                let Running { consensus, machine } = &*running;
                consensus.wait_applied(consensus.status().committed).await;
                lease_leadership::renew(consensus, &machine.leases, id)
            })
        });
        match answer.await {
            Some(Renewed::Ttl(0) | Renewed::Expired) => return false,
            Some(Renewed::Ttl(ttl)) => {
                shared.lease_ends.promise(id, asked, ttl);
                return true;
            }
            Some(Renewed::ClearCheckpointFirst | Renewed::NotLeader) | None => {}
        }
    }
    true
}
