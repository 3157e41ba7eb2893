//! Which keys this proxy owns and what they hold. Knows no network; times come as arguments.
//!
//! A key is owned by whoever's lease is on the *claim*, the key of the cluster that has the prefix in front. While a
//! proxy owns a key nobody else writes it, so what the proxy knows of it is how it is. That is true as long as
//!
//! * the lease lives: [`Ownership::renewed`] counts from when the renewal was *sent*, so that the proxy stops to
//!   answer before the cluster lets others write;
//! * no write of the proxy itself is on its way: reads go to the cluster meanwhile;
//! * every such write has ended well. A write that may or may not have been done, now or later, was sent on the
//!   condition that the claim is no younger than the one that was known. The claim is given up, and a new one is
//!   younger: what is known with the new claim cannot be overtaken.
//!
//! A key with a lease of its own can end without anybody writing it, so it is never owned.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metastore_proto::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use metastore_proto::{EncodedKeyValue, KeyValue};

use super::super::cache::Interval;

/// For how long a key that another proxy wanted is left alone; etcd's number.
const LEFT_ALONE_FOR: Duration = Duration::from_secs(2);
/// Keys that are owned at most; etcd has no limit. One more, and some other is given back.
pub const OWNED_KEYS_MAX: usize = 16_384;
/// Bytes of what they hold together.
const OWNED_BYTES_MAX: usize = 64 << 20;
/// A longer value is read anew each time.
const VALUE_BYTES_MAX: usize = 1 << 20;
/// Keys that are left alone at most: beyond it, times that are over are looked for.
const LEFT_ALONE_MAX: usize = 4096;

/// A key as it was owned once: another ownership of the same key has another revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The key itself.
    pub key: Bytes,
    /// The revision at which the key of the claim was created.
    pub created: i64,
}

/// The lease under which keys are owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Session {
    lease: i64,
    /// Until then the cluster keeps the lease for certain.
    valid_until: Instant,
    /// Whether this proxy learns of those who want a key back.
    is_watched: bool,
}

#[derive(Debug)]
struct Owned {
    created: i64,
    /// The revision at which the key was seen like this.
    revision: i64,
    /// Nothing: there is no such key.
    pair: Option<KeyValue>,
    /// Writes of this proxy that are on their way.
    writes: usize,
}

#[derive(Debug)]
struct Acquiring {
    ticket: u64,
    /// The last revision at which a claim on the key ended or was wanted back.
    ended_at: i64,
    /// A write of this proxy was sent that may come later.
    is_overtaken: bool,
}

/// What to do about a read.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// This is the answer.
    Answer(RangeResponse),
    /// Claim the key under this lease, and say how it went with the ticket.
    Acquire { lease: i64, ticket: u64 },
    /// The cluster has to be asked.
    Ask,
}

/// A claim that the cluster has accepted.
pub struct Acquired {
    pub claim: Claim,
    pub ticket: u64,
    pub lease: i64,
    pub pair: Option<KeyValue>,
}

/// How a write of this proxy ended.
pub enum Outcome<'a> {
    /// It was not done and never will be.
    NotDone,
    /// It was done at this revision. How each key is now; a claim whose key is missing is given up.
    Done(i64, &'a [(Bytes, Option<KeyValue>)]),
    /// The keys were deleted at this revision.
    Deleted(i64),
    /// Nobody knows.
    Unknown,
}

/// The state.
#[derive(Debug, Default)]
pub struct Ownership {
    session: Option<Session>,
    owned: HashMap<Bytes, Owned>,
    acquiring: HashMap<Bytes, Acquiring>,
    left_alone: HashMap<Bytes, Instant>,
    bytes: usize,
    tickets: u64,
    /// The newest that the cluster was seen to be.
    newest: ResponseHeader,
}

fn size(key: &Bytes, pair: Option<&KeyValue>) -> usize {
    key.len() + pair.map_or(0, |pair| pair.value.len())
}

impl Ownership {
    /// Begins to own keys under a lease.
    pub fn begin_session(&mut self, lease: i64, valid_until: Instant) {
        self.end_session();
        self.session = Some(Session {
            lease,
            valid_until,
            is_watched: false,
        });
    }

    /// From now on this proxy learns of those who want a key back.
    pub fn watched(&mut self) {
        if let Some(session) = &mut self.session {
            session.is_watched = true;
        }
    }

    /// The lease lives on.
    pub fn renewed(&mut self, valid_until: Instant) {
        if let Some(session) = &mut self.session {
            session.valid_until = session.valid_until.max(valid_until);
        }
    }

    /// Owns nothing any more.
    pub fn end_session(&mut self) {
        self.session = None;
        self.owned.clear();
        self.acquiring.clear();
        self.bytes = 0;
    }

    /// The lease of this proxy; 0 when it has none.
    pub fn lease(&self) -> i64 {
        self.session.map_or(0, |session| session.lease)
    }

    /// Notes how new the cluster is.
    pub fn seen(&mut self, header: Option<&ResponseHeader>) {
        if let Some(header) = header
            && header.revision > self.newest.revision
        {
            self.newest = *header;
        }
    }

    /// What is known for certain of a key: nothing, or that it does not exist, or how it is.
    fn known(&self, key: &Bytes, now: Instant) -> Option<Option<&KeyValue>> {
        let session = self.session.as_ref()?;
        let owned = self.owned.get(key)?;
        (now < session.valid_until && owned.writes == 0).then_some(owned.pair.as_ref())
    }

    /// The answer to a read of one key, if the key is known.
    pub fn answer(&self, request: &RangeRequest, now: Instant) -> Option<RangeResponse> {
        let pair = self.known(&request.key, now)?;
        Some(shown(request, pair, self.newest))
    }

    /// The key as it is, to be compared; nothing when it is not known.
    pub fn value(&self, key: &Bytes, now: Instant) -> Option<Option<&KeyValue>> {
        self.known(key, now)
    }

    /// The newest header.
    pub fn newest(&self) -> ResponseHeader {
        self.newest
    }

    /// What to do about a read of one key.
    pub fn step(&mut self, request: &RangeRequest, now: Instant) -> Step {
        if let Some(answer) = self.answer(request, now) {
            return Step::Answer(answer);
        }
        let key = &request.key;
        let Some(session) = self.session else {
            return Step::Ask;
        };
        let may_acquire = session.is_watched
            && now < session.valid_until
            && !request.serializable
            && !self.owned.contains_key(key)
            && !self.acquiring.contains_key(key)
            && self.left_alone.get(key).is_none_or(|until| now >= *until);
        if !may_acquire {
            return Step::Ask;
        }
        self.tickets += 1;
        let ticket = self.tickets;
        self.acquiring.insert(
            key.clone(),
            Acquiring {
                ticket,
                ended_at: 0,
                is_overtaken: false,
            },
        );
        Step::Acquire {
            lease: session.lease,
            ticket,
        }
    }

    /// The cluster has accepted a claim. Returns the claims to give up.
    pub fn acquired(&mut self, acquired: Acquired) -> Vec<Claim> {
        let Acquired {
            claim,
            ticket,
            lease,
            pair,
        } = acquired;
        let Some(acquiring) = self.take_acquiring(&claim.key, ticket) else {
            // It was of another session, whose lease is gone.
            return Vec::new();
        };
        if self.lease() != lease || claim.created <= acquiring.ended_at {
            return Vec::new();
        }
        let too_long = pair
            .as_ref()
            .is_some_and(|pair| pair.value.len() > VALUE_BYTES_MAX || pair.lease != 0);
        if acquiring.is_overtaken || too_long {
            return vec![claim];
        }
        let mut given_up = Vec::new();
        let size = size(&claim.key, pair.as_ref());
        while self.owned.len() >= OWNED_KEYS_MAX || self.bytes + size > OWNED_BYTES_MAX {
            // Any other: which one is not worth keeping count.
            let Some(other) = self.owned.keys().next().cloned() else {
                break;
            };
            given_up.extend(self.forget(&other));
        }
        self.bytes += size;
        let owned = Owned {
            created: claim.created,
            revision: claim.created,
            pair,
            writes: 0,
        };
        self.owned.insert(claim.key, owned);
        given_up
    }

    /// A claim was not accepted, or nobody knows. The key is left alone for a while.
    pub fn not_acquired(&mut self, key: &Bytes, ticket: u64, now: Instant) {
        if self.take_acquiring(key, ticket).is_some() {
            self.leave_alone(key, now);
        }
    }

    fn take_acquiring(&mut self, key: &Bytes, ticket: u64) -> Option<Acquiring> {
        let is_it = self.acquiring.get(key)?.ticket == ticket;
        is_it.then(|| self.acquiring.remove(key)).flatten()
    }

    fn leave_alone(&mut self, key: &Bytes, now: Instant) {
        if self.left_alone.len() >= LEFT_ALONE_MAX {
            self.left_alone.retain(|_, until| now < *until);
        }
        self.left_alone.insert(key.clone(), now + LEFT_ALONE_FOR);
    }

    /// Somebody wants a key whose claim was created at `created`, as the cluster told at revision `at`.
    pub fn wanted_back(&mut self, claim: &Claim, at: i64, now: Instant) {
        self.ended(&claim.key, at);
        self.leave_alone(&claim.key, now);
    }

    /// Every claim on the key that is older than this revision has ended.
    pub fn ended(&mut self, key: &Bytes, at: i64) {
        if self.owned.get(key).is_some_and(|owned| owned.created < at) {
            self.forget(key);
        }
        if let Some(acquiring) = self.acquiring.get_mut(key) {
            acquiring.ended_at = acquiring.ended_at.max(at);
        }
    }

    fn forget(&mut self, key: &Bytes) -> Option<Claim> {
        let (key, owned) = self.owned.remove_entry(key)?;
        self.bytes -= size(&key, owned.pair.as_ref());
        Some(Claim {
            key,
            created: owned.created,
        })
    }

    /// A write of these keys is sent now: reads of them go to the cluster. Returns what this proxy owns of them.
    pub fn begin_write(&mut self, written: &[Interval]) -> Vec<Claim> {
        let mut claims: Vec<Claim> = Vec::new();
        for interval in written {
            if interval.is_range() {
                for (key, acquiring) in &mut self.acquiring {
                    acquiring.is_overtaken |= interval.contains(key);
                }
            }
        }
        let is_written = |key: &Bytes| written.iter().any(|interval| interval.contains(key));
        if written.iter().any(Interval::is_range) {
            for (key, owned) in &mut self.owned {
                if is_written(key) {
                    owned.writes += 1;
                    claims.push(Claim {
                        key: key.clone(),
                        created: owned.created,
                    });
                }
            }
            return claims;
        }
        for interval in written {
            let key = &interval.key;
            if claims.iter().any(|claim| claim.key == key) {
                continue;
            }
            if let Some(owned) = self.owned.get_mut(key) {
                owned.writes += 1;
                claims.push(Claim {
                    key: key.clone(),
                    created: owned.created,
                });
            }
        }
        claims
    }

    /// A write has ended. Returns the claims to give up.
    pub fn end_write(&mut self, claims: Vec<Claim>, outcome: &Outcome<'_>) -> Vec<Claim> {
        let mut given_up = Vec::new();
        for claim in claims {
            let Some(owned) = self.owned.get_mut(&claim.key) else {
                continue;
            };
            if owned.created != claim.created {
                continue;
            }
            owned.writes -= 1;
            let is_kept = match outcome {
                Outcome::NotDone => true,
                Outcome::Unknown => false,
                Outcome::Deleted(revision) => self.changed(&claim.key, *revision, None),
                Outcome::Done(revision, now) => {
                    match now.iter().find(|(key, _)| *key == claim.key) {
                        Some((_, pair)) => self.changed(&claim.key, *revision, pair.as_ref()),
                        None => false,
                    }
                }
            };
            if !is_kept {
                given_up.extend(self.forget(&claim.key));
            }
        }
        given_up
    }

    /// Takes how a key is now; false when it cannot be kept.
    fn changed(&mut self, key: &Bytes, revision: i64, pair: Option<&KeyValue>) -> bool {
        if pair.is_some_and(|pair| pair.lease != 0 || pair.value.len() > VALUE_BYTES_MAX) {
            return false;
        }
        let Some(owned) = self.owned.get_mut(key) else {
            return false;
        };
        // Answers to two writes may come in any order.
        if revision > owned.revision {
            owned.revision = revision;
            self.bytes -= size(key, owned.pair.as_ref());
            self.bytes += size(key, pair);
            owned.pair = pair.cloned();
        }
        true
    }

    /// The claim was not there when a write was refused for its sake.
    pub fn was_lost(&mut self, claim: &Claim) {
        let is_it = |owned: &Owned| owned.created == claim.created;
        if self.owned.get(&claim.key).is_some_and(is_it) {
            self.forget(&claim.key);
        }
    }
}

/// The answer to a read of one key.
pub fn shown(
    request: &RangeRequest,
    pair: Option<&KeyValue>,
    header: ResponseHeader,
) -> RangeResponse {
    let is_within = |revision: i64, min: i64, max: i64| {
        (min == 0 || revision >= min) && (max == 0 || revision <= max)
    };
    let is_asked_for = |pair: &&KeyValue| {
        is_within(
            pair.mod_revision,
            request.min_mod_revision,
            request.max_mod_revision,
        ) && is_within(
            pair.create_revision,
            request.min_create_revision,
            request.max_create_revision,
        )
    };
    let kvs = match request.count_only {
        true => Vec::new(),
        false => pair
            .filter(is_asked_for)
            .map(|pair| match request.keys_only {
                true => EncodedKeyValue::from(&KeyValue {
                    value: Bytes::new(),
                    ..pair.clone()
                }),
                false => EncodedKeyValue::from(pair),
            })
            .into_iter()
            .collect(),
    };
    RangeResponse {
        header: Some(header),
        kvs,
        more: false,
        count: i64::from(pair.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: i64 = 7;

    fn pair(revision: i64, value: &'static str) -> KeyValue {
        KeyValue {
            key: "k".into(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            value: value.into(),
            lease: 0,
        }
    }

    fn read() -> RangeRequest {
        RangeRequest {
            key: "k".into(),
            ..Default::default()
        }
    }

    fn with_session(now: Instant) -> Ownership {
        let mut ownership = Ownership::default();
        ownership.begin_session(LEASE, now + Duration::from_secs(60));
        ownership.watched();
        ownership
    }

    /// Claims the key at a revision, with what the cluster told meanwhile.
    fn acquire(
        ownership: &mut Ownership,
        created: i64,
        now: Instant,
        meanwhile: impl FnOnce(&mut Ownership),
    ) -> Vec<Claim> {
        let Step::Acquire { lease, ticket } = ownership.step(&read(), now) else {
            panic!("may be acquired");
        };
        meanwhile(ownership);
        ownership.acquired(Acquired {
            claim: claim(created),
            ticket,
            lease,
            pair: Some(pair(created - 1, "old")),
        })
    }

    fn claim(created: i64) -> Claim {
        Claim {
            key: "k".into(),
            created,
        }
    }

    fn value(ownership: &Ownership, now: Instant) -> Option<Bytes> {
        let answer = ownership.answer(&read(), now)?;
        let pair = answer.kvs.first()?.decode().expect("a pair");
        Some(pair.value)
    }

    #[test]
    fn an_owned_key_is_answered_until_the_lease_may_have_ended() {
        let now = Instant::now();
        let mut ownership = with_session(now);
        assert!(acquire(&mut ownership, 5, now, |_| {}).is_empty());
        assert_eq!(value(&ownership, now), Some("old".into()));
        let later = now + Duration::from_secs(60);
        assert_eq!(ownership.step(&read(), later), Step::Ask);
        ownership.renewed(later + Duration::from_secs(20));
        assert_eq!(value(&ownership, later), Some("old".into()));
        ownership.end_session();
        assert_eq!(ownership.step(&read(), later), Step::Ask);
        assert_eq!(ownership.bytes, 0);
    }

    #[test]
    fn a_key_that_is_being_written_is_read_from_the_cluster() {
        let now = Instant::now();
        let mut ownership = with_session(now);
        acquire(&mut ownership, 5, now, |_| {});
        let written = [Interval::of_key(&"k".into())];
        let (first, second) = (
            ownership.begin_write(&written),
            ownership.begin_write(&written),
        );
        assert_eq!(first, [claim(5)]);
        let done = |value| [(Bytes::from("k"), Some(value))];
        // The later write is answered first.
        let newer = done(pair(9, "newer"));
        ownership.end_write(second, &Outcome::Done(9, &newer));
        assert_eq!(ownership.step(&read(), now), Step::Ask);
        let new = done(pair(8, "new"));
        ownership.end_write(first, &Outcome::Done(8, &new));
        assert_eq!(value(&ownership, now), Some("newer".into()));
        assert_eq!(ownership.bytes, "knewer".len());
    }

    #[test]
    fn a_write_that_may_come_later_ends_the_ownership() {
        let now = Instant::now();
        let mut ownership = with_session(now);
        acquire(&mut ownership, 5, now, |_| {});
        let range = [Interval {
            key: "a".into(),
            range_end: "z".into(),
        }];
        let claims = ownership.begin_write(&range);
        assert_eq!(ownership.end_write(claims, &Outcome::Unknown), [claim(5)]);
        assert_eq!(ownership.answer(&read(), now), None);
        // A claim that was under way while a range was deleted may show what was before.
        let given_up = acquire(&mut ownership, 9, now, |ownership| {
            ownership.begin_write(&range);
        });
        assert_eq!(given_up, [claim(9)]);
        assert_eq!(ownership.answer(&read(), now), None);
        assert_eq!(ownership.bytes, 0);
    }

    #[test]
    fn a_claim_that_was_wanted_back_before_its_answer_came_is_none() {
        let now = Instant::now();
        let mut ownership = with_session(now);
        acquire(&mut ownership, 5, now, |ownership| {
            ownership.wanted_back(&claim(5), 6, now);
        });
        assert_eq!(ownership.answer(&read(), now), None);
        assert_eq!(ownership.step(&read(), now), Step::Ask, "left alone");
        let later = now + LEFT_ALONE_FOR;
        // What ended is older than the new claim.
        acquire(&mut ownership, 9, later, |ownership| {
            ownership.ended(&"k".into(), 7);
        });
        assert_eq!(value(&ownership, later), Some("old".into()));
        ownership.ended(&"k".into(), 8);
        assert_eq!(value(&ownership, later), Some("old".into()));
        ownership.ended(&"k".into(), 10);
        assert_eq!(ownership.answer(&read(), later), None);
    }

    #[test]
    fn a_claim_of_an_older_session_is_none() {
        let now = Instant::now();
        let mut ownership = with_session(now);
        acquire(&mut ownership, 5, now, |ownership| {
            ownership.begin_session(LEASE + 1, now + Duration::from_secs(60));
            ownership.watched();
            assert!(matches!(ownership.step(&read(), now), Step::Acquire { .. }));
        });
        assert_eq!(ownership.answer(&read(), now), None);
        assert_eq!(ownership.acquiring.len(), 1, "that of the new session");
    }

    #[test]
    fn a_key_with_a_lease_of_its_own_is_not_owned() {
        let now = Instant::now();
        let mut ownership = with_session(now);
        acquire(&mut ownership, 5, now, |_| {});
        let claims = ownership.begin_write(&[Interval::of_key(&"k".into())]);
        let leased = KeyValue {
            lease: 3,
            ..pair(8, "new")
        };
        let done = [("k".into(), Some(leased))];
        let given_up = ownership.end_write(claims, &Outcome::Done(8, &done));
        assert_eq!(given_up, [claim(5)]);
        assert_eq!(ownership.answer(&read(), now), None);
    }

    #[test]
    fn no_more_is_owned_than_fits() {
        let now = Instant::now();
        let mut ownership = with_session(now);
        let mut given_up = 0;
        for number in 0..OWNED_KEYS_MAX + 10 {
            let request = RangeRequest {
                key: number.to_string().into(),
                ..Default::default()
            };
            let Step::Acquire { lease, ticket } = ownership.step(&request, now) else {
                panic!("may be acquired");
            };
            let acquired = Acquired {
                claim: Claim {
                    key: request.key,
                    created: 5,
                },
                ticket,
                lease,
                pair: None,
            };
            given_up += ownership.acquired(acquired).len();
        }
        assert_eq!((ownership.owned.len(), given_up), (OWNED_KEYS_MAX, 10));
    }

    #[test]
    fn an_answer_shows_what_was_asked_for() {
        let known = pair(5, "value");
        let header = ResponseHeader::default();
        let of = |request: RangeRequest| {
            let answer = shown(&request, Some(&known), header);
            let shown = answer
                .kvs
                .first()
                .map(|pair| pair.decode().expect("a pair"));
            (answer.count, shown.map(|pair| pair.value))
        };
        assert_eq!(of(read()), (1, Some("value".into())));
        let count = RangeRequest {
            count_only: true,
            ..read()
        };
        assert_eq!(of(count), (1, None));
        let keys = RangeRequest {
            keys_only: true,
            ..read()
        };
        assert_eq!(of(keys), (1, Some(Bytes::new())));
        let newer = RangeRequest {
            min_mod_revision: 6,
            ..read()
        };
        assert_eq!(of(newer), (1, None));
        let older = RangeRequest {
            max_create_revision: 4,
            ..read()
        };
        assert_eq!(of(older), (1, None));
        assert_eq!(shown(&read(), None, header).count, 0);
    }
}
