//! Answers to serializable reads, kept until a call through this proxy changes what they show.
//!
//! As in etcd a kept answer may be arbitrarily old: who writes past the proxy is not seen. Serializable reads
//! promise no more. Unlike etcd's, this cache never keeps an answer that a write overtook on its way.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use parking_lot::Mutex;

/// Answers that are kept; etcd's number.
const ENTRIES_MAX: usize = 2048;
/// Bytes of all kept answers together, so that long lists do not fill the memory.
const BYTES_MAX: usize = 64 << 20;
/// The end of a range that has no end.
const NO_END: &[u8] = b"\0";

/// A key, or a range of keys, with etcd's two fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interval {
    /// The first key.
    pub key: Bytes,
    /// The end; empty: only the key, `\0`: none.
    pub range_end: Bytes,
}

impl Interval {
    /// Only this key.
    pub fn of_key(key: &Bytes) -> Self {
        Self {
            key: key.clone(),
            range_end: Bytes::new(),
        }
    }

    /// Whether it is a range of keys.
    pub fn is_range(&self) -> bool {
        !self.range_end.is_empty()
    }

    /// Whether it has the key.
    pub fn contains(&self, key: &Bytes) -> bool {
        self.overlaps(&Self::of_key(key))
    }

    /// Whether a key is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.begins_before_the_end_of(other) && other.begins_before_the_end_of(self)
    }

    fn begins_before_the_end_of(&self, other: &Self) -> bool {
        match &other.range_end[..] {
            [] => self.key <= other.key,
            NO_END => true,
            end => self.key < end,
        }
    }
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The encoded request, as a serializable one.
    pub encoded: Bytes,
    /// The keys.
    pub interval: Interval,
    /// The revision; 0: the newest.
    pub revision: i64,
}

/// What is kept for a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The answer.
    Answer(Bytes),
    /// Its revision was compacted.
    Compacted,
    /// Nothing.
    Nothing,
}

/// The answers.
#[derive(Default)]
pub struct Cache {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Bytes, Entry>,
    /// Questions by the time of their last use.
    uses: BTreeMap<u64, Bytes>,
    /// Counts uses and reads.
    clock: u64,
    bytes: usize,
    compacted: i64,
    /// Reads on their way, and whether something that they read was changed meanwhile.
    reads: HashMap<u64, (Interval, bool)>,
}

struct Entry {
    question: Question,
    answer: Bytes,
    used: u64,
}

/// A read on its way.
pub struct Read<'a> {
    cache: &'a Cache,
    number: u64,
    question: Question,
}

impl Cache {
    /// What is kept.
    pub fn get(&self, question: &Question) -> Kept {
        let mut state = self.state.lock();
        if question.revision > 0 && question.revision < state.compacted {
            state.remove(&question.encoded);
            return Kept::Compacted;
        }
        match state.used(&question.encoded) {
            Some(answer) => Kept::Answer(answer),
            None => Kept::Nothing,
        }
    }

    /// Notes that a question is being asked. Its answer is kept unless a write comes in between.
    pub fn begin(&self, question: Question) -> Read<'_> {
        let mut state = self.state.lock();
        let number = state.tick();
        state
            .reads
            .insert(number, (question.interval.clone(), false));
        Read {
            cache: self,
            number,
            question,
        }
    }

    /// Forgets the answers that show keys of the interval as they are now.
    pub fn invalidate(&self, changed: &Interval) {
        let mut state = self.state.lock();
        for (interval, is_overtaken) in state.reads.values_mut() {
            *is_overtaken |= interval.overlaps(changed);
        }
        let gone: Vec<Bytes> = state
            .entries
            .values()
            .map(|entry| &entry.question)
            .filter(|question| question.revision == 0 && question.interval.overlaps(changed))
            .map(|question| question.encoded.clone())
            .collect();
        for question in gone {
            state.remove(&question);
        }
    }

    /// Notes a compaction.
    pub fn compact(&self, revision: i64) {
        let mut state = self.state.lock();
        state.compacted = state.compacted.max(revision);
    }

    /// How many answers are kept.
    pub fn size(&self) -> usize {
        self.state.lock().entries.len()
    }
}

impl Read<'_> {
    /// Keeps the answer.
    pub fn answered(self, answer: &Bytes) {
        let mut state = self.cache.state.lock();
        let overtaken = state.reads.get(&self.number).is_none_or(|read| read.1);
        let revision = self.question.revision;
        let is_old = revision != 0 && revision < state.compacted;
        if !overtaken && !is_old && answer.len() <= BYTES_MAX / 64 {
            state.insert(self.question.clone(), answer.clone());
        }
    }
}

impl Drop for Read<'_> {
    fn drop(&mut self) {
        self.cache.state.lock().reads.remove(&self.number);
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn used(&mut self, question: &Bytes) -> Option<Bytes> {
        let now = self.tick();
        let entry = self.entries.get_mut(question)?;
        let before = std::mem::replace(&mut entry.used, now);
        let answer = entry.answer.clone();
        self.uses.remove(&before);
        self.uses.insert(now, question.clone());
        Some(answer)
    }

    fn insert(&mut self, question: Question, answer: Bytes) {
        self.remove(&question.encoded);
        let used = self.tick();
        self.bytes += answer.len();
        self.uses.insert(used, question.encoded.clone());
        let key = question.encoded.clone();
        let entry = Entry {
            question,
            answer,
            used,
        };
        self.entries.insert(key, entry);
        while self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
            let Some((_, oldest)) = self.uses.first_key_value() else {
                return;
            };
            let oldest = oldest.clone();
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, question: &Bytes) {
        if let Some(entry) = self.entries.remove(question) {
            self.uses.remove(&entry.used);
            self.bytes -= entry.answer.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(key: &'static str, range_end: &'static str) -> Interval {
        Interval {
            key: key.into(),
            range_end: range_end.into(),
        }
    }

    fn question(key: &'static str, range_end: &'static str, revision: i64) -> Question {
        Question {
            encoded: format!("{key} {range_end} {revision}").into(),
            interval: interval(key, range_end),
            revision,
        }
    }

    fn keep(cache: &Cache, question: &Question) {
        cache
            .begin(question.clone())
            .answered(&Bytes::from_static(b"answer"));
    }

    fn is_kept(cache: &Cache, question: &Question) -> bool {
        matches!(cache.get(question), Kept::Answer(_))
    }

    #[test]
    fn a_change_ends_the_answers_that_show_it() {
        for (asked, changed, stays) in [
            (("a", ""), ("a", ""), false),
            (("a", ""), ("b", ""), true),
            (("a", "c"), ("b", ""), false),
            (("a", "c"), ("c", ""), true),
            (("a", "c"), ("c", "d"), true),
            (("b", ""), ("a", "\0"), false),
            (("b", "\0"), ("a", ""), true),
            (("b", "\0"), ("x", ""), false),
        ] {
            let cache = Cache::default();
            let question = question(asked.0, asked.1, 0);
            keep(&cache, &question);
            assert!(is_kept(&cache, &question));
            cache.invalidate(&interval(changed.0, changed.1));
            assert_eq!(is_kept(&cache, &question), stays, "{asked:?} {changed:?}");
        }
    }

    #[test]
    fn an_answer_that_a_write_overtook_is_not_kept() {
        let cache = Cache::default();
        let asked = question("a", "", 0);
        let read = cache.begin(asked.clone());
        cache.invalidate(&interval("a", ""));
        read.answered(&Bytes::from_static(b"old"));
        assert_eq!(cache.get(&asked), Kept::Nothing);
        // A read that failed leaves nothing behind.
        drop(cache.begin(asked));
        assert!(cache.state.lock().reads.is_empty());
    }

    #[test]
    fn the_past_does_not_change_until_it_is_compacted() {
        let cache = Cache::default();
        let past = question("a", "", 5);
        keep(&cache, &past);
        cache.invalidate(&interval("a", ""));
        assert!(is_kept(&cache, &past));
        cache.compact(5);
        assert!(is_kept(&cache, &past));
        cache.compact(6);
        assert_eq!(cache.get(&past), Kept::Compacted);
        assert_eq!(cache.size(), 0);
        // The present is not affected.
        let now = question("a", "", 0);
        keep(&cache, &now);
        assert!(is_kept(&cache, &now));
    }

    #[test]
    fn the_answers_that_were_not_used_for_longest_go_first() {
        let cache = Cache::default();
        let first = question("a", "", 0);
        keep(&cache, &first);
        for revision in 1..=ENTRIES_MAX as i64 {
            assert!(is_kept(&cache, &first));
            keep(&cache, &question("b", "", revision));
        }
        assert_eq!(cache.size(), ENTRIES_MAX);
        assert!(is_kept(&cache, &first));
        assert!(!is_kept(&cache, &question("b", "", 1)));
    }
}
