//! Which leases have ended.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use crate::limits::{
    CHECKPOINT_INTERVAL, PENDING_REVOKES_MAX, REVOKES_PER_SECOND, revoke_retry_interval,
};

/// Share of the revoke rate that a new leader plans for: piled-up leases must leave room for those
/// that end in the ordinary way.
const TAKEOVER_REVOKES_PER_SECOND: usize = REVOKES_PER_SECOND as usize * 3 / 4;

/// Most revokes that may be offered at once after a quiet time: half a second's worth, as etcd
/// offers in each of its two rounds per second.
const REVOKE_BURST: u32 = REVOKES_PER_SECOND / 2;

/// Heap entries that may be stale before the heap is built anew, beyond one per living lease.
/// Without this, granting and revoking a very long lease in a loop would fill the memory.
const STALE_ENTRIES_MAX: usize = 4096;

const NANOS_PER_REVOKE: u64 = 1_000_000_000 / REVOKES_PER_SECOND as u64;

/// What an [`ExpiryQueue`] is told once.
#[derive(Clone, Debug)]
pub struct ExpiryOptions {
    /// Whether remaining times are checkpointed (etcd's gate `LeaseCheckpoint`, off by default).
    pub checkpoints: bool,
    /// Time between two checkpoints of one lease; default [`CHECKPOINT_INTERVAL`].
    pub checkpoint_interval: Duration,
    /// When an offered lease that still exists is offered again; see
    /// [`revoke_retry_interval`]. 7 s by default.
    pub revoke_retry: Duration,
    /// Offered leases that may be unanswered at a time; default [`PENDING_REVOKES_MAX`].
    pub pending_revokes: usize,
}

impl Default for ExpiryOptions {
    fn default() -> Self {
        Self {
            checkpoints: false,
            checkpoint_interval: CHECKPOINT_INTERVAL,
            revoke_retry: revoke_retry_interval(Duration::from_secs(1)),
            pending_revokes: PENDING_REVOKES_MAX,
        }
    }
}

/// A lease as the store recorded it: what [`ExpiryQueue::load`] starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// The lease.
    pub id: i64,
    /// Its TTL in seconds.
    pub granted_ttl: i64,
    /// The last checkpoint in seconds; 0 when there is none.
    pub remaining_ttl: i64,
}

/// Outcome of [`ExpiryQueue::renew`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease lives on for its full TTL (seconds) from now.
    Renewed {
        /// The granted TTL in seconds: the answer to the client.
        ttl: i64,
    },
    /// A checkpoint is recorded, and a later leader would believe it. Propose a checkpoint of 0 for
    /// this lease, and renew again when it is applied.
    ClearCheckpointFirst,
}

/// Why a lease was not renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    /// Only the leader knows deadlines: ask there.
    #[error("not the leader")]
    NotPrimary,
    /// There is no such lease: answer TTL 0.
    #[error("requested lease not found")]
    NotFound,
    /// The lease has ended and its revoke is under way: wait until it is revoked (then TTL 0) or
    /// until this member is no longer the leader (then ask the new one).
    #[error("lease has expired and is being revoked")]
    Expired,
}

/// The remaining time of a lease, for TimeToLive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemainingTime {
    /// The granted TTL in seconds.
    pub granted_ttl: i64,
    /// Time to the deadline, zero when it has passed; `None` when this member is not the leader and
    /// so cannot know.
    pub remaining: Option<Duration>,
}

/// A lease whose remaining time is to be recorded in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueCheckpoint {
    /// The lease.
    pub id: i64,
    /// Seconds that remain, rounded up.
    pub remaining_ttl: i64,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    granted_ttl: i64,
    /// 0: no checkpoint.
    remaining_ttl: i64,
    /// When it ends. Only meaningful while the queue is primary.
    deadline: Duration,
    /// Set while a revoke of it was offered and not answered: when it will be offered again.
    offered_until: Option<Duration>,
    /// Tells the entry of this lease from stale ones: of an earlier lease with the same id, or from
    /// before a failed revoke.
    generation: u64,
    checkpoint_scheduled: bool,
}

impl Lease {
    fn time_to_live(&self) -> Duration {
        let seconds = if self.remaining_ttl > 0 {
            self.remaining_ttl
        } else {
            self.granted_ttl
        };
        Duration::from_secs(seconds.try_into().unwrap_or(0))
    }
}

/// When to look at a lease again. Ordered by time, then id, so that equal histories give equal
/// orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    at: Duration,
    id: i64,
    generation: u64,
}

/// The deadlines of all leases, and which of them have passed.
///
/// Every member keeps one, fed by what is applied. Only while it is *primary* (between
/// [`promote`](Self::promote) and [`demote`](Self::demote), that is on the leader) does anything
/// expire. `now` is monotonic time since any fixed start, and never goes back.
///
/// A lease never ends earlier than its TTL after its grant, its last renewal or the take-over.
///
/// ```text
/// living ──deadline──► due ──offered by due()──► pending ──revoke()──► gone
///    ▲                                            │ revoke_failed(), or retry time passed
///    └── renew() (not after the deadline)         └──► due
/// ```
#[derive(Debug)]
pub struct ExpiryQueue {
    options: ExpiryOptions,
    primary: bool,
    leases: HashMap<i64, Lease>,
    /// One entry per lease while primary; a renewal does not touch it, the entry moves to the new
    /// deadline when its old time comes. Entries of revoked leases are dropped then.
    expiries: BinaryHeap<Reverse<Entry>>,
    checkpoints: BinaryHeap<Reverse<Entry>>,
    /// Leases that are offered and neither revoked nor failed.
    pending: usize,
    next_generation: u64,
    /// Token bucket of the revoke rate, in nanoseconds of saved-up time.
    revoke_credit: u64,
    revoke_credit_at: Duration,
}

impl ExpiryQueue {
    /// An empty queue that is not primary.
    pub fn new(options: ExpiryOptions) -> Self {
        Self {
            options,
            primary: false,
            leases: HashMap::new(),
            expiries: BinaryHeap::new(),
            checkpoints: BinaryHeap::new(),
            pending: 0,
            next_generation: 0,
            revoke_credit: u64::from(REVOKE_BURST) * NANOS_PER_REVOKE,
            revoke_credit_at: Duration::ZERO,
        }
    }

    /// Replaces everything by the leases of the store: at start and after a snapshot was installed.
    /// The queue is not primary afterwards.
    pub fn load(&mut self, leases: impl IntoIterator<Item = LeaseState>) {
        self.demote();
        self.leases.clear();
        for state in leases {
            self.insert(state, Duration::ZERO);
        }
    }

    /// A lease was granted. On the leader it ends `ttl` seconds after `now`; elsewhere only the id
    /// and the TTL are noted. Granting an id that exists replaces it (the store refuses this
    /// earlier).
    pub fn grant(&mut self, id: i64, ttl: i64, now: Duration) {
        self.revoke(id);
        let state = LeaseState {
            id,
            granted_ttl: ttl,
            remaining_ttl: 0,
        };
        self.insert(state, now);
        if self.primary {
            self.schedule_expiry(id);
            self.schedule_checkpoint(id, now);
        }
    }

    /// The client is alive: the lease ends one full TTL after `now`.
    ///
    /// # Errors
    /// See [`RenewError`]: each variant says what the caller should do.
    pub fn renew(&mut self, id: i64, now: Duration) -> Result<Renewal, RenewError> {
        if !self.primary {
            return Err(RenewError::NotPrimary);
        }
        let lease = self.leases.get_mut(&id).ok_or(RenewError::NotFound)?;
        if lease.deadline <= now {
            return Err(RenewError::Expired);
        }
        if lease.remaining_ttl > 0 {
            return Ok(Renewal::ClearCheckpointFirst);
        }
        // The take-over may have given it more than one TTL; a renewal must not take that back,
        // for the client may have been told so by TimeToLive.
        lease.deadline = lease.deadline.max(now + lease.time_to_live());
        Ok(Renewal::Renewed {
            ttl: lease.granted_ttl,
        })
    }

    /// A lease was revoked, by a client or because it ended. Unknown ids are ignored.
    pub fn revoke(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id)
            && lease.offered_until.is_some()
        {
            self.pending -= 1;
        }
        self.drop_stale_entries();
    }

    /// The revoke of an offered lease did not go through: it is offered again at once.
    pub fn revoke_failed(&mut self, id: i64, now: Duration) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        if lease.offered_until.take().is_some() {
            self.pending -= 1;
            // The entry at the retry time becomes stale, so that there is still one per lease.
            lease.generation = self.next_generation;
            self.next_generation += 1;
            self.expiries.push(Reverse(Entry {
                at: now,
                id,
                generation: lease.generation,
            }));
            self.drop_stale_entries();
        }
    }

    /// A checkpoint was applied: a later leader gives the lease `remaining_ttl` seconds instead of
    /// its full TTL; 0 clears it. Does not change the deadline here. Unknown ids are ignored.
    pub fn checkpoint(&mut self, id: i64, remaining_ttl: i64, now: Duration) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.remaining_ttl = remaining_ttl;
            if self.primary {
                self.schedule_checkpoint(id, now);
            }
        }
    }

    /// This member is the leader now. Every lease gets its full TTL (or what its checkpoint says)
    /// and `extend` on top, because renewals are not replicated and the old leader may just have
    /// answered one; `extend` is the election time-out.
    ///
    /// Leases that would end in a pile are spread out, later only, so that at most three quarters of
    /// the revoke rate are used up by them.
    pub fn promote(&mut self, now: Duration, extend: Duration) {
        self.demote();
        self.primary = true;
        let mut order: Vec<(Duration, i64)> = self
            .leases
            .iter()
            .map(|(id, lease)| (now + extend + lease.time_to_live(), *id))
            .collect();
        if order.len() >= REVOKES_PER_SECOND as usize {
            order.sort_unstable();
            spread(&mut order);
        }
        let mut entries = Vec::with_capacity(order.len());
        for (deadline, id) in order {
            let lease = self.leases.get_mut(&id).expect("ids come from this map");
            lease.deadline = deadline;
            entries.push(Reverse(Entry {
                at: deadline,
                id,
                generation: lease.generation,
            }));
        }
        self.expiries = BinaryHeap::from(entries);
        if self.options.checkpoints {
            let ids: Vec<i64> = self.leases.keys().copied().collect();
            for id in ids {
                self.schedule_checkpoint(id, now);
            }
        }
    }

    /// This member is not the leader any more: nothing ends here, and deadlines are unknown.
    pub fn demote(&mut self) {
        if !self.primary {
            return;
        }
        self.primary = false;
        self.expiries.clear();
        self.checkpoints.clear();
        self.pending = 0;
        for lease in self.leases.values_mut() {
            lease.offered_until = None;
            lease.checkpoint_scheduled = false;
        }
    }

    /// The leases that have ended and whose revoke is to be proposed now: at most `limit`, at most
    /// [`REVOKES_PER_SECOND`] over time, and never more than [`ExpiryOptions::pending_revokes`]
    /// unanswered ones. Call it every 500 ms and whenever a revoke was answered.
    ///
    /// The caller reports each of them by [`revoke`](Self::revoke) (applied) or
    /// [`revoke_failed`](Self::revoke_failed). What is neither is offered again after
    /// [`ExpiryOptions::revoke_retry`]. Empty unless primary.
    pub fn due(&mut self, now: Duration, limit: usize) -> Vec<i64> {
        if !self.primary {
            return Vec::new();
        }
        self.add_revoke_credit(now);
        let mut due = Vec::new();
        while let Some(Reverse(entry)) = self.expiries.peek().copied() {
            if entry.at > now || due.len() == limit {
                break;
            }
            let Some(lease) = self
                .leases
                .get_mut(&entry.id)
                .filter(|lease| lease.generation == entry.generation)
            else {
                self.expiries.pop();
                continue;
            };
            if lease.deadline > now {
                reschedule_top(&mut self.expiries, lease.deadline);
                continue;
            }
            match lease.offered_until {
                Some(until) if until > now => {
                    reschedule_top(&mut self.expiries, until);
                    continue;
                }
                // The time for an answer is over: it may be offered again in its own place.
                Some(_) => {
                    lease.offered_until = None;
                    self.pending -= 1;
                }
                None => {}
            }
            if self.pending >= self.options.pending_revokes || self.revoke_credit < NANOS_PER_REVOKE
            {
                break;
            }
            let again = now + self.options.revoke_retry;
            lease.offered_until = Some(again);
            self.revoke_credit -= NANOS_PER_REVOKE;
            self.pending += 1;
            reschedule_top(&mut self.expiries, again);
            due.push(entry.id);
        }
        due
    }

    /// When [`due`](Self::due) could first return something that it does not return now; `None`
    /// when no lease can end. May be early, never late, apart from the limits of rate and pending
    /// revokes.
    pub fn next_look(&self) -> Option<Duration> {
        self.expiries.peek().map(|Reverse(entry)| entry.at)
    }

    /// The leases whose remaining time is to be recorded now, at most `limit` (see
    /// [`crate::CHECKPOINT_BATCH_MAX`]). Empty when checkpoints are off or this member is not
    /// primary. A lease that was renewed since its last turn is left out until its next.
    pub fn due_checkpoints(&mut self, now: Duration, limit: usize) -> Vec<DueCheckpoint> {
        let mut due = Vec::new();
        while let Some(Reverse(entry)) = self.checkpoints.peek().copied() {
            if entry.at > now || due.len() == limit {
                break;
            }
            self.checkpoints.pop();
            let Some(lease) = self
                .leases
                .get_mut(&entry.id)
                .filter(|lease| lease.generation == entry.generation)
            else {
                continue;
            };
            lease.checkpoint_scheduled = false;
            if lease.deadline <= now {
                continue;
            }
            let remaining_ttl = ceil_seconds(lease.deadline - now);
            if remaining_ttl < lease.granted_ttl {
                due.push(DueCheckpoint {
                    id: entry.id,
                    remaining_ttl,
                });
            }
            // Not only when the checkpoint was applied: a lost proposal must not end the series.
            self.schedule_checkpoint(entry.id, now);
        }
        due
    }

    /// How long a lease still has; `None` when there is no such lease.
    pub fn remaining(&self, id: i64, now: Duration) -> Option<RemainingTime> {
        let lease = self.leases.get(&id)?;
        Some(RemainingTime {
            granted_ttl: lease.granted_ttl,
            remaining: self.primary.then(|| lease.deadline.saturating_sub(now)),
        })
    }

    /// All leases: those that end first come first; by id when this member is not primary.
    pub fn ids_by_expiry(&self) -> Vec<i64> {
        let mut order: Vec<(Duration, i64)> = self
            .leases
            .iter()
            .map(|(id, lease)| {
                let deadline = if self.primary {
                    lease.deadline
                } else {
                    Duration::ZERO
                };
                (deadline, *id)
            })
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(_, id)| id).collect()
    }

    /// Whether there is such a lease.
    pub fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// Number of leases.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is no lease.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Whether leases end here: between [`promote`](Self::promote) and [`demote`](Self::demote).
    pub fn is_primary(&self) -> bool {
        self.primary
    }

    /// Leases that were offered and are neither revoked nor failed.
    pub fn pending_revokes(&self) -> usize {
        self.pending
    }

    fn insert(&mut self, state: LeaseState, now: Duration) {
        let generation = self.next_generation;
        self.next_generation = generation + 1;
        let mut lease = Lease {
            granted_ttl: state.granted_ttl,
            remaining_ttl: state.remaining_ttl,
            deadline: Duration::ZERO,
            offered_until: None,
            generation,
            checkpoint_scheduled: false,
        };
        lease.deadline = now + lease.time_to_live();
        self.leases.insert(state.id, lease);
    }

    fn schedule_expiry(&mut self, id: i64) {
        let lease = &self.leases[&id];
        self.expiries.push(Reverse(Entry {
            at: lease.deadline,
            id,
            generation: lease.generation,
        }));
    }

    fn schedule_checkpoint(&mut self, id: i64, now: Duration) {
        if !self.options.checkpoints {
            return;
        }
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        if lease.checkpoint_scheduled || lease.time_to_live() <= self.options.checkpoint_interval {
            return;
        }
        lease.checkpoint_scheduled = true;
        self.checkpoints.push(Reverse(Entry {
            at: now + self.options.checkpoint_interval,
            id,
            generation: lease.generation,
        }));
    }

    fn add_revoke_credit(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.revoke_credit_at);
        let passed = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        self.revoke_credit = self
            .revoke_credit
            .saturating_add(passed)
            .min(u64::from(REVOKE_BURST) * NANOS_PER_REVOKE);
        self.revoke_credit_at = now;
    }

    /// Rebuilds a heap in which most entries belong to leases that are gone.
    fn drop_stale_entries(&mut self) {
        let bound = 2 * self.leases.len() + STALE_ENTRIES_MAX;
        let leases = &self.leases;
        for heap in [&mut self.expiries, &mut self.checkpoints] {
            if heap.len() > bound {
                heap.retain(|Reverse(entry)| {
                    leases
                        .get(&entry.id)
                        .is_some_and(|lease| lease.generation == entry.generation)
                });
            }
        }
    }
}

/// Moves deadlines, given in order, back so far that no second holds more than
/// [`TAKEOVER_REVOKES_PER_SECOND`] of them.
fn spread(order: &mut [(Duration, i64)]) {
    let mut last_second = VecDeque::with_capacity(TAKEOVER_REVOKES_PER_SECOND);
    for (deadline, _) in order {
        if last_second.len() == TAKEOVER_REVOKES_PER_SECOND {
            let oldest: Duration = last_second.pop_front().expect("it was just full");
            *deadline = (*deadline).max(oldest + Duration::from_secs(1));
        }
        last_second.push_back(*deadline);
    }
}

fn reschedule_top(heap: &mut BinaryHeap<Reverse<Entry>>, at: Duration) {
    if let Some(mut top) = heap.peek_mut() {
        top.0.at = at;
    }
}

fn ceil_seconds(time: Duration) -> i64 {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const EXTEND: Duration = Duration::from_secs(1);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn primary(options: ExpiryOptions) -> ExpiryQueue {
        let mut queue = ExpiryQueue::new(options);
        queue.promote(Duration::ZERO, EXTEND);
        queue
    }

    #[test]
    fn a_lease_is_due_at_its_deadline_and_not_before() {
        let mut queue = primary(ExpiryOptions::default());
        queue.grant(7, 5, seconds(10));
        assert_eq!(queue.next_look(), Some(seconds(15)));
        assert_eq!(queue.due(seconds(15) - Duration::from_nanos(1), 10), []);
        assert_eq!(queue.due(seconds(15), 10), [7]);
    }

    #[test]
    fn a_renewal_gives_the_full_ttl_again() {
        let mut queue = primary(ExpiryOptions::default());
        queue.grant(7, 5, seconds(0));
        assert_eq!(queue.renew(7, seconds(4)), Ok(Renewal::Renewed { ttl: 5 }));
        assert_eq!(queue.due(seconds(8), 10), []);
        assert_eq!(queue.due(seconds(9), 10), [7]);
    }

    #[test]
    fn an_ended_lease_is_not_renewed_even_if_its_revoke_is_still_to_come() {
        let mut queue = primary(ExpiryOptions::default());
        queue.grant(7, 5, seconds(0));
        assert_eq!(queue.renew(7, seconds(5)), Err(RenewError::Expired));
        queue.due(seconds(5), 10);
        queue.revoke(7);
        assert_eq!(queue.renew(7, seconds(5)), Err(RenewError::NotFound));
    }

    #[test]
    fn only_the_primary_renews_and_expires() {
        let mut queue = ExpiryQueue::new(ExpiryOptions::default());
        queue.grant(7, 5, seconds(0));
        assert_eq!(queue.renew(7, seconds(1)), Err(RenewError::NotPrimary));
        assert_eq!(queue.due(seconds(100), 10), []);
        assert_eq!(queue.next_look(), None);
        let unknown = RemainingTime {
            granted_ttl: 5,
            remaining: None,
        };
        assert_eq!(queue.remaining(7, seconds(1)), Some(unknown));
        queue.promote(seconds(100), EXTEND);
        assert_eq!(queue.due(seconds(105), 10), []);
        queue.demote();
        assert_eq!(queue.due(seconds(1000), 10), []);
    }

    #[test]
    fn a_new_leader_gives_every_lease_its_ttl_and_an_election_timeout() {
        let mut queue = ExpiryQueue::new(ExpiryOptions::default());
        queue.load([
            LeaseState {
                id: 1,
                granted_ttl: 10,
                remaining_ttl: 0,
            },
            LeaseState {
                id: 2,
                granted_ttl: 1000,
                remaining_ttl: 20,
            },
        ]);
        queue.promote(seconds(50), EXTEND);
        let remaining = |id| queue.remaining(id, seconds(50)).and_then(|it| it.remaining);
        assert_eq!(remaining(1), Some(seconds(11)));
        assert_eq!(remaining(2), Some(seconds(21)));
        assert_eq!(queue.ids_by_expiry(), [1, 2]);
    }

    #[test]
    fn a_new_leader_spreads_a_pile_of_leases() {
        let mut queue = ExpiryQueue::new(ExpiryOptions::default());
        queue.load((0..10_000).map(|id| LeaseState {
            id,
            granted_ttl: 60,
            remaining_ttl: 0,
        }));
        queue.promote(Duration::ZERO, EXTEND);
        let deadlines: Vec<Duration> = queue
            .ids_by_expiry()
            .into_iter()
            .map(|id| queue.leases[&id].deadline)
            .collect();
        assert_eq!(deadlines[0], seconds(61));
        for pair in deadlines.windows(TAKEOVER_REVOKES_PER_SECOND + 1) {
            assert!(pair[TAKEOVER_REVOKES_PER_SECOND] - pair[0] >= SECOND);
        }
        // 10 000 / 750 = 13 full seconds behind the first.
        assert_eq!(deadlines[9_999], seconds(61 + 13));
    }

    #[test]
    fn a_renewal_clears_a_checkpoint_first() {
        let mut queue = primary(ExpiryOptions::default());
        queue.grant(7, 1000, seconds(0));
        queue.checkpoint(7, 700, seconds(300));
        assert_eq!(
            queue.renew(7, seconds(301)),
            Ok(Renewal::ClearCheckpointFirst)
        );
        queue.checkpoint(7, 0, seconds(302));
        assert_eq!(
            queue.renew(7, seconds(302)),
            Ok(Renewal::Renewed { ttl: 1000 })
        );
        assert_eq!(
            queue.remaining(7, seconds(302)).and_then(|it| it.remaining),
            Some(seconds(1000))
        );
    }

    #[test]
    fn checkpoints_come_every_interval_for_long_leases_only() {
        let mut queue = primary(ExpiryOptions {
            checkpoints: true,
            ..ExpiryOptions::default()
        });
        queue.grant(1, 300, seconds(0));
        queue.grant(2, 1000, seconds(0));
        assert_eq!(queue.due_checkpoints(seconds(299), 10), []);
        let at = |remaining_ttl| {
            vec![DueCheckpoint {
                id: 2,
                remaining_ttl,
            }]
        };
        assert_eq!(queue.due_checkpoints(seconds(300), 10), at(700));
        queue.checkpoint(2, 700, seconds(300));
        assert_eq!(queue.due_checkpoints(seconds(599), 10), []);
        assert_eq!(queue.due_checkpoints(seconds(600), 10), at(400));
        assert_eq!(queue.due_checkpoints(seconds(5000), 10), []);
    }

    #[test]
    fn checkpoints_are_off_by_default() {
        let mut queue = primary(ExpiryOptions::default());
        queue.grant(2, 100_000, seconds(0));
        assert_eq!(queue.due_checkpoints(seconds(5000), 10), []);
    }

    #[test]
    fn checkpoints_come_in_batches() {
        let mut queue = primary(ExpiryOptions {
            checkpoints: true,
            ..ExpiryOptions::default()
        });
        for id in 1..=2500 {
            queue.grant(id, 1000, seconds(0));
        }
        for expected in [1000, 1000, 500, 0] {
            assert_eq!(queue.due_checkpoints(seconds(300), 1000).len(), expected);
        }
    }

    #[test]
    fn revokes_are_limited_in_flight() {
        let mut queue = primary(ExpiryOptions::default());
        for id in 1..=100 {
            queue.grant(id, 2, seconds(0));
        }
        let first = queue.due(seconds(10), 1000);
        assert_eq!(first.len(), PENDING_REVOKES_MAX);
        assert_eq!(queue.due(seconds(10), 1000), []);
        queue.revoke(first[0]);
        assert_eq!(queue.due(seconds(10), 1000).len(), 1);
        assert_eq!(queue.pending_revokes(), PENDING_REVOKES_MAX);
    }

    #[test]
    fn revokes_are_limited_per_second() {
        let mut queue = primary(ExpiryOptions {
            pending_revokes: usize::MAX,
            ..ExpiryOptions::default()
        });
        for id in 1..=10_000 {
            queue.grant(id, 2, seconds(0));
        }
        let mut revoked = 0;
        for tick in 0..20 {
            for id in queue.due(seconds(10) + tick * SECOND / 2, usize::MAX) {
                queue.revoke(id);
                revoked += 1;
            }
            assert!(revoked <= 500 * (tick as usize + 1));
        }
        assert_eq!(revoked, 10_000);
    }

    #[test]
    fn a_failed_revoke_is_offered_again_at_once_and_a_lost_one_later() {
        let mut queue = primary(ExpiryOptions::default());
        queue.grant(7, 2, seconds(0));
        for round in 0..10 {
            let now = seconds(2) + round * Duration::from_millis(10);
            assert_eq!(queue.due(now, 10), [7]);
            assert_eq!(queue.due(now, 10), []);
            queue.revoke_failed(7, now);
            assert_eq!(queue.pending_revokes(), 0);
        }
        assert_eq!(queue.due(seconds(3), 10), [7]);
        assert_eq!(queue.due(seconds(9), 10), []);
        assert_eq!(queue.due(seconds(10), 10), [7]);
        assert_eq!(queue.pending_revokes(), 1);
    }

    #[test]
    fn long_leases_that_come_and_go_leave_no_memory_behind() {
        let mut queue = primary(ExpiryOptions {
            checkpoints: true,
            ..ExpiryOptions::default()
        });
        for id in 0..100_000 {
            queue.grant(id, 1_000_000, seconds(0));
            queue.revoke(id);
        }
        assert!(queue.expiries.len() <= STALE_ENTRIES_MAX + 2);
        assert!(queue.checkpoints.len() <= STALE_ENTRIES_MAX + 2);
    }

    #[test]
    fn renewals_do_not_grow_the_heap() {
        let mut queue = primary(ExpiryOptions::default());
        queue.grant(7, 1_000_000, seconds(0));
        for at in 1..10_000 {
            queue.renew(7, seconds(at)).expect("it lives");
        }
        assert_eq!(queue.expiries.len(), 1);
    }

    #[test]
    fn a_million_leases_are_fine() {
        let mut queue = ExpiryQueue::new(ExpiryOptions::default());
        queue.load((0..1_000_000).map(|id| LeaseState {
            id,
            granted_ttl: 60 + id % 977,
            remaining_ttl: 0,
        }));
        queue.promote(Duration::ZERO, EXTEND);
        for id in 0..1_000_000 {
            queue.renew(id, seconds(30)).expect("it lives");
        }
        assert_eq!(queue.due(seconds(61), 1000), []);
        assert_eq!(queue.len(), 1_000_000);
    }

    mod properties {
        use std::collections::BTreeMap;

        use proptest::prelude::*;

        use super::*;

        #[derive(Clone, Debug)]
        enum Step {
            Advance(u64),
            Grant(i64, i64),
            Renew(i64),
            Revoke(i64),
            Checkpoint(i64, i64),
            Demote,
            Promote,
            /// Take what is due; the flag says whether the revokes go through.
            Expire(bool),
        }

        fn step() -> impl Strategy<Value = Step> {
            let id = 0_i64..8;
            prop_oneof![
                4 => (0_u64..3000).prop_map(Step::Advance),
                3 => (id.clone(), 1_i64..20).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
                4 => id.clone().prop_map(Step::Renew),
                1 => id.clone().prop_map(Step::Revoke),
                1 => (id, 0_i64..10).prop_map(|(id, ttl)| Step::Checkpoint(id, ttl)),
                1 => Just(Step::Demote),
                1 => Just(Step::Promote),
                4 => any::<bool>().prop_map(Step::Expire),
            ]
        }

        #[derive(Clone, Copy)]
        struct Expected {
            ttl: i64,
            remaining: i64,
            /// Promised not to end before.
            alive_until: Duration,
        }

        proptest! {
            #[test]
            fn no_lease_ends_early_and_every_one_ends(steps in prop::collection::vec(step(), 1..120)) {
                let mut queue = ExpiryQueue::new(ExpiryOptions::default());
                let mut expected: BTreeMap<i64, Expected> = BTreeMap::new();
                let mut now = Duration::ZERO;
                let mut primary = false;
                for step in steps {
                    match step {
                        Step::Advance(ms) => now += Duration::from_millis(ms),
                        Step::Grant(id, ttl) => {
                            if let std::collections::btree_map::Entry::Vacant(entry) = expected.entry(id) {
                                entry.insert(Expected {
                                    ttl,
                                    remaining: 0,
                                    alive_until: now + seconds(ttl as u64),
                                });
                                queue.grant(id, ttl, now);
                            }
                        }
                        Step::Renew(id) => match queue.renew(id, now) {
                            Ok(Renewal::Renewed { ttl }) => {
                                let lease = expected.get_mut(&id).expect("renewed, so it exists");
                                prop_assert_eq!(ttl, lease.ttl);
                                prop_assert!(lease.alive_until > now);
                                prop_assert_eq!(lease.remaining, 0);
                                lease.alive_until = lease.alive_until.max(now + seconds(ttl as u64));
                            }
                            Ok(Renewal::ClearCheckpointFirst) => {
                                prop_assert!(expected[&id].remaining > 0);
                            }
                            Err(RenewError::NotFound) => prop_assert!(!expected.contains_key(&id)),
                            Err(RenewError::NotPrimary) => prop_assert!(!primary),
                            Err(RenewError::Expired) => prop_assert!(expected[&id].alive_until <= now),
                        },
                        Step::Revoke(id) => {
                            queue.revoke(id);
                            expected.remove(&id);
                        }
                        Step::Checkpoint(id, remaining) => {
                            queue.checkpoint(id, remaining, now);
                            if let Some(lease) = expected.get_mut(&id) {
                                lease.remaining = remaining;
                            }
                        }
                        Step::Demote => {
                            queue.demote();
                            primary = false;
                        }
                        Step::Promote => {
                            queue.promote(now, EXTEND);
                            primary = true;
                            for lease in expected.values_mut() {
                                let ttl = if lease.remaining > 0 { lease.remaining } else { lease.ttl };
                                lease.alive_until = now + EXTEND + seconds(ttl as u64);
                            }
                        }
                        Step::Expire(goes_through) => {
                            for id in queue.due(now, 3) {
                                prop_assert!(primary);
                                prop_assert!(expected[&id].alive_until <= now, "{} ended early", id);
                                if goes_through {
                                    queue.revoke(id);
                                    expected.remove(&id);
                                } else {
                                    queue.revoke_failed(id, now);
                                }
                            }
                        }
                    }
                    prop_assert_eq!(queue.len(), expected.len());
                }
                queue.promote(now, EXTEND);
                // Longest TTL, extension, and half a second per round of expiry.
                for _ in 0..100 {
                    now += SECOND / 2;
                    for id in queue.due(now, 3) {
                        queue.revoke(id);
                        expected.remove(&id);
                    }
                }
                prop_assert!(queue.is_empty(), "left over: {:?}", queue.ids_by_expiry());
                prop_assert_eq!(queue.pending_revokes(), 0);
                prop_assert!(expected.is_empty());
            }
        }
    }
}
