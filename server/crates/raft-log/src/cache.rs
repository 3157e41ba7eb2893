//! The last entries of the log, in memory.

use std::collections::VecDeque;

use crate::types::LogEntry;

/// What an entry costs beside its payload: the entry itself and the allocation of the payload.
const ENTRY_OVERHEAD_BYTES: usize = 96;

fn cost(entry: &LogEntry) -> usize {
    entry.payload.len() + ENTRY_OVERHEAD_BYTES
}

/// Entries of one append that are not in the files yet.
#[derive(Clone, Copy, Debug)]
struct UnwrittenRun {
    ticket: u64,
    first: u64,
    last: u64,
}

/// A contiguous range of entries up to the end of the log. Entries that are not in the files yet are
/// never dropped.
#[derive(Debug, Default)]
pub(crate) struct EntryCache {
    entries: VecDeque<LogEntry>,
    bytes: usize,
    limit_bytes: usize,
    unwritten: VecDeque<UnwrittenRun>,
}

impl EntryCache {
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            ..Self::default()
        }
    }

    /// First index in memory; None when it holds nothing.
    pub fn first(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.index)
    }

    pub fn get(&self, index: u64) -> Option<&LogEntry> {
        let position = index.checked_sub(self.first()?)?;
        self.entries.get(usize::try_from(position).ok()?)
    }

    /// Copies entries from `from` on to the end of `into`, until `to`, or until their payloads
    /// exhaust the budget. The first entry is taken whatever its size when nothing was read before.
    pub fn collect(&self, from: u64, to: u64, budget: &mut ReadBudget, into: &mut Vec<LogEntry>) {
        let mut index = from;
        while index < to
            && let Some(entry) = self.get(index)
            && budget.take(entry.payload.len())
        {
            into.push(entry.clone());
            index += 1;
        }
    }

    /// Adds the entries of one append.
    pub fn append(&mut self, ticket: u64, entries: &[LogEntry]) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return;
        };
        self.bytes += entries.iter().map(cost).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
        self.unwritten.push_back(UnwrittenRun {
            ticket,
            first: first.index,
            last: last.index,
        });
    }

    /// Forgets entries from `next` on.
    pub fn truncate(&mut self, next: u64) {
        while let Some(entry) = self.entries.back()
            && entry.index >= next
        {
            self.bytes -= cost(entry);
            self.entries.pop_back();
        }
        while self.unwritten.back().is_some_and(|run| run.first >= next) {
            self.unwritten.pop_back();
        }
        if let Some(run) = self.unwritten.back_mut() {
            run.last = run.last.min(next - 1);
        }
    }

    /// Forgets entries before `first`.
    pub fn purge(&mut self, first: u64) {
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.index < first)
        {
            self.drop_front();
        }
        while self.unwritten.front().is_some_and(|run| run.last < first) {
            self.unwritten.pop_front();
        }
    }

    /// All appends up to a ticket are in the files: the oldest entries may be dropped.
    pub fn written(&mut self, ticket: u64) {
        while self
            .unwritten
            .front()
            .is_some_and(|run| run.ticket <= ticket)
        {
            self.unwritten.pop_front();
        }
        let keep_from = self.unwritten.front().map_or(u64::MAX, |run| run.first);
        while self.bytes > self.limit_bytes
            && self
                .entries
                .front()
                .is_some_and(|entry| entry.index < keep_from)
        {
            self.drop_front();
        }
    }

    fn drop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= cost(&entry);
        }
    }
}

/// How much one read may still return: never less than one entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadBudget {
    /// None: used up.
    rest_bytes: Option<usize>,
    started: bool,
}

impl ReadBudget {
    pub fn new(max_bytes: usize) -> Self {
        Self {
            rest_bytes: Some(max_bytes),
            started: false,
        }
    }

    /// Whether an entry with a payload of this size may be returned.
    pub fn take(&mut self, payload_bytes: usize) -> bool {
        self.rest_bytes = self
            .rest_bytes
            .and_then(|rest| rest.checked_sub(payload_bytes));
        let first = !self.started;
        self.started = true;
        first || self.rest_bytes.is_some()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entries(first: u64, count: u64) -> Vec<LogEntry> {
        (first..first + count)
            .map(|index| LogEntry {
                index,
                term: 1,
                payload: Bytes::from_static(b"payload"),
            })
            .collect()
    }

    #[test]
    fn entries_stay_until_they_are_written() {
        let mut cache = EntryCache::new(0);
        cache.append(1, &entries(1, 10));
        cache.append(2, &entries(11, 10));
        cache.written(0);
        assert_eq!(cache.first(), Some(1));
        cache.written(1);
        assert_eq!(cache.first(), Some(11));
        cache.written(2);
        assert_eq!(cache.first(), None);
        assert_eq!(cache.bytes, 0);
    }

    #[test]
    fn entries_that_replace_a_written_suffix_stay_until_they_are_written() {
        let mut cache = EntryCache::new(0);
        cache.append(1, &entries(1, 10));
        cache.truncate(6);
        cache.append(2, &entries(6, 3));
        cache.written(1);
        assert_eq!(cache.first(), Some(6));
        cache.written(2);
        assert_eq!(cache.first(), None);
    }

    #[test]
    fn a_purge_beyond_the_end_empties_the_cache() {
        let mut cache = EntryCache::new(1000);
        cache.append(1, &entries(1, 10));
        cache.purge(50);
        assert_eq!((cache.first(), cache.bytes), (None, 0));
        cache.append(2, &entries(50, 1));
        assert_eq!(cache.get(50).map(|entry| entry.index), Some(50));
    }
}
