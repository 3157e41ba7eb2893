//! A naive model of the log, and random requests for both.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use metastore_raft_log::{
    Completion, LogEntry, LogError, LogIdentity, LogOptions, LogPosition, RaftLog,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub const IDENTITY: LogIdentity = LogIdentity {
    cluster_id: 0xc1,
    member_id: 0xa2,
};

pub fn log_directory() -> &'static Path {
    Path::new("/member/log")
}

/// Runs a test with fresh seeds, or with the one of RAFT_LOG_SEED; a failure prints its seed.
pub fn with_seeds(count: u64, test: impl Fn(&mut StdRng)) {
    let run = |seed: u64| {
        struct Print(u64);
        impl Drop for Print {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    eprintln!("replay with RAFT_LOG_SEED={}", self.0);
                }
            }
        }
        let _print = Print(seed);
        test(&mut StdRng::seed_from_u64(seed));
    };
    match std::env::var("RAFT_LOG_SEED") {
        Ok(seed) => run(seed.parse().unwrap()),
        Err(_) => (0..count).for_each(|_| run(rand::random())),
    }
}

/// What one record does.
#[derive(Clone, Debug)]
pub enum Change {
    Entry(LogEntry),
    Vote(Bytes),
    Truncate(Option<LogPosition>),
    Purge(LogPosition),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub purged: Option<LogPosition>,
    pub last: Option<LogPosition>,
    pub vote: Option<Bytes>,
    pub entries: BTreeMap<u64, LogEntry>,
}

impl Model {
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Entry(entry) => {
                self.last = Some(entry.position());
                self.entries.insert(entry.index, entry.clone());
            }
            Change::Vote(vote) => self.vote = Some(vote.clone()),
            Change::Truncate(last_kept) => {
                let next = last_kept.map_or(0, |kept| kept.index + 1);
                if self.entries.split_off(&next).is_empty() {
                    return;
                }
                self.last = *last_kept;
            }
            Change::Purge(up_to) => {
                if self
                    .purged
                    .is_some_and(|purged| purged.index >= up_to.index)
                {
                    return;
                }
                self.purged = Some(*up_to);
                self.entries = self.entries.split_off(&(up_to.index + 1));
                if self.entries.is_empty() {
                    self.last = Some(*up_to);
                }
            }
        }
    }

    pub fn next(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    pub fn first_live(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    /// Position of an entry, or of the end of what was purged.
    pub fn position(&self, index: u64) -> Option<LogPosition> {
        match self.entries.get(&index) {
            Some(entry) => Some(entry.position()),
            None => self.purged.filter(|purged| purged.index == index),
        }
    }

    /// What the log holds, as far as crashes must not change it.
    pub fn of(log: &RaftLog) -> Self {
        let state = log.state();
        let first = state.purged.map_or(0, |purged| purged.index + 1);
        let end = state.last.map_or(0, |last| last.index + 1);
        let entries = log.read(first, end, usize::MAX).unwrap();
        Self {
            purged: state.purged,
            last: state.last,
            vote: state.vote,
            entries: entries
                .into_iter()
                .map(|entry| (entry.index, entry))
                .collect(),
        }
    }

    /// Compares a random read of the log with the same in the model.
    pub fn check_read(&self, log: &RaftLog, random: &mut StdRng) {
        let first = self.first_live();
        let from = random.random_range(first.saturating_sub(2)..=self.next() + 2);
        let to = from + random.random_range(0..20);
        let max_bytes = random.random_range(0..3000);
        let result = log.read(from, to, max_bytes);
        if from >= to {
            assert_eq!(result.unwrap(), []);
        } else if from < first {
            assert!(matches!(result, Err(LogError::Purged { .. })), "{result:?}");
        } else if from >= self.next() {
            assert!(
                matches!(result, Err(LogError::Missing { .. })),
                "{result:?}"
            );
        } else {
            let mut expected = Vec::new();
            let mut bytes = 0;
            for (_, entry) in self.entries.range(from..to) {
                bytes += entry.payload.len();
                if bytes > max_bytes && !expected.is_empty() {
                    break;
                }
                expected.push(entry.clone());
            }
            assert_eq!(result.unwrap(), expected);
        }
    }
}

/// Makes random requests to a log, and tells the model which changes they are.
pub struct Driver {
    pub model: Model,
    /// Changes requested since the model was last known to be what is durable.
    pub changes: Vec<Change>,
    /// The model before these changes.
    pub base: Model,
    /// How many of the changes were acknowledged.
    pub acknowledged: Arc<AtomicUsize>,
    pub term: u64,
}

impl Driver {
    pub fn new(model: Model) -> Self {
        Self {
            base: model.clone(),
            term: model.last.map_or(1, |last| last.term),
            model,
            changes: Vec::new(),
            acknowledged: Arc::default(),
        }
    }

    fn change(&mut self, change: Change) {
        self.model.apply(&change);
        self.changes.push(change);
    }

    /// A completion that counts everything requested so far as acknowledged.
    fn acknowledge(&self) -> Completion {
        let count = self.changes.len();
        let acknowledged = self.acknowledged.clone();
        Box::new(move |result: io::Result<()>| {
            if result.is_ok() {
                let before = acknowledged.fetch_max(count, Ordering::Relaxed);
                assert!(
                    before <= count,
                    "completions in another order than requests"
                );
            }
        })
    }

    pub fn request(&mut self, log: &RaftLog, random: &mut StdRng) {
        match random.random_range(0..100) {
            0..60 => self.append(log, random),
            60..70 => self.vote(log, random),
            70..80 => {
                if let Some(position) = self.random_position(random) {
                    log.save_committed(position);
                }
            }
            80..90 => self.truncate(log, random),
            _ => self.purge(log, random),
        }
    }

    pub fn append(&mut self, log: &RaftLog, random: &mut StdRng) {
        let count = random.random_range(1..6);
        let largest = match random.random_range(0..20) {
            0 => 20_000,
            1..5 => 2_000,
            _ => 100,
        };
        let entries: Vec<LogEntry> = (self.model.next()..)
            .take(count)
            .map(|index| {
                let mut payload = vec![0; random.random_range(0..=largest)];
                random.fill(&mut payload[..]);
                LogEntry {
                    index,
                    term: self.term,
                    payload: payload.into(),
                }
            })
            .collect();
        for entry in &entries {
            self.change(Change::Entry(entry.clone()));
        }
        log.append(entries, self.acknowledge());
    }

    fn vote(&mut self, log: &RaftLog, random: &mut StdRng) {
        self.term += random.random_range(0..2);
        let mut vote = self.term.to_be_bytes().to_vec();
        vote.resize(random.random_range(8..40), 0);
        let vote = Bytes::from(vote);
        self.change(Change::Vote(vote.clone()));
        log.save_vote(vote, self.acknowledge());
    }

    fn random_position(&self, random: &mut StdRng) -> Option<LogPosition> {
        if self.model.next() == 0 {
            return None;
        }
        let first = self.model.first_live().saturating_sub(1);
        let index = random.random_range(first..self.model.next().max(first + 1));
        self.model.position(index)
    }

    fn truncate(&mut self, log: &RaftLog, random: &mut StdRng) {
        let near_end = self.model.next().saturating_sub(random.random_range(0..10));
        let position = match random.random_range(0..10) {
            0 if self.model.purged.is_none() => None,
            0..3 => match self.random_position(random) {
                Some(position) => Some(position),
                None => return,
            },
            _ => match self.model.position(near_end) {
                Some(position) => Some(position),
                None => return,
            },
        };
        self.change(Change::Truncate(position));
        log.truncate_after(position, self.acknowledge());
    }

    fn purge(&mut self, log: &RaftLog, random: &mut StdRng) {
        let position = match random.random_range(0..10) {
            0 => Some(LogPosition {
                term: self.term,
                index: self.model.next() + random.random_range(0..10),
            }),
            _ => self.random_position(random),
        };
        let Some(position) = position else { return };
        self.change(Change::Purge(position));
        log.purge(position, self.acknowledge());
    }

    /// The log was opened again. It must be the base with some of the changes, all acknowledged ones
    /// among them; that is the base from now on.
    pub fn reopened(&mut self, log: &RaftLog) {
        let found = Model::of(log);
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        let mut model = self.base.clone();
        for change in &self.changes[..acknowledged] {
            model.apply(change);
        }
        let mut rest = self.changes[acknowledged..].iter();
        while model != found {
            let Some(change) = rest.next() else {
                let acknowledged_changes = &self.changes[..acknowledged];
                panic!(
                    "the log is not what was acknowledged plus some of the rest\nlog: {}\nall: {}\nlast acknowledged {:?}",
                    summary(&found),
                    summary(&model),
                    acknowledged_changes.last()
                );
            };
            model.apply(change);
        }
        if let Some(committed) = log.state().committed {
            assert!(
                found.last.is_some_and(|last| committed.index <= last.index),
                "a committed hint beyond the end"
            );
        }
        let term = self.term;
        *self = Self::new(found);
        self.term = self.term.max(term);
    }
}

fn summary(model: &Model) -> String {
    format!(
        "purged {:?}, last {:?}, vote {:?}, entries {:?}..={:?}",
        model.purged,
        model.last,
        model.vote,
        model.entries.keys().next(),
        model.entries.keys().next_back()
    )
}

/// Small segments and a small cache, so that everything happens often.
pub fn small_options(random: &mut StdRng) -> LogOptions {
    LogOptions {
        segment_bytes: LogOptions::SEGMENT_BYTES_MIN + 512 * random.random_range(0..40),
        cache_bytes: random.random_range(0..5000),
        ..LogOptions::default()
    }
}
