//! The most recent revisions, for watchers that are only a little behind.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::{RevisionEvents, memory_bytes};

/// A gap-free run of recent revisions, bounded in events and bytes.
#[derive(Debug)]
pub(crate) struct Ring {
    /// With their bytes. Revisions without events are not in here.
    revisions: VecDeque<(Arc<RevisionEvents>, usize)>,
    /// Every revision from here on that was pushed or covered is in the ring.
    first: i64,
    events: usize,
    bytes: usize,
    events_max: usize,
    bytes_max: usize,
}

impl Ring {
    /// An empty ring that covers revisions from `first` on.
    pub(crate) fn new(first: i64, events_max: usize, bytes_max: usize) -> Self {
        Self {
            revisions: VecDeque::new(),
            first,
            events: 0,
            bytes: 0,
            events_max,
            bytes_max,
        }
    }

    /// Forgets everything; covers revisions from `first` on.
    pub(crate) fn restart(&mut self, first: i64) {
        *self = Self::new(first, self.events_max, self.bytes_max);
    }

    /// Whether every event from this revision on is here.
    pub(crate) fn covers(&self, revision: i64) -> bool {
        revision >= self.first
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn push(&mut self, revision: Arc<RevisionEvents>) {
        let bytes = memory_bytes(&revision);
        self.events += revision.events.len();
        self.bytes += bytes;
        self.revisions.push_back((revision, bytes));
        while self.events > self.events_max || self.bytes > self.bytes_max {
            let Some((oldest, bytes)) = self.revisions.pop_front() else {
                break;
            };
            self.events -= oldest.events.len();
            self.bytes -= bytes;
            self.first = oldest.revision + 1;
        }
    }

    /// Revisions of `from..=to`, about `bytes_max` of them and at least one if there is one; and the
    /// first revision that is not covered by the answer.
    pub(crate) fn read(
        &self,
        from: i64,
        to: i64,
        bytes_max: usize,
    ) -> (Vec<Arc<RevisionEvents>>, i64) {
        debug_assert!(self.covers(from));
        let start = self
            .revisions
            .partition_point(|(revision, _)| revision.revision < from);
        let mut found = Vec::new();
        let mut total = 0;
        for (revision, bytes) in self.revisions.range(start..) {
            if revision.revision > to {
                break;
            }
            total += bytes;
            if total > bytes_max && !found.is_empty() {
                return (found, revision.revision);
            }
            found.push(Arc::clone(revision));
        }
        (found, to + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::StoredEvent;
    use metastore_revision_model::Revision;

    fn revision(number: i64) -> Arc<RevisionEvents> {
        let event = StoredEvent {
            key: "k".into(),
            revision: Revision::new(number, 0),
            tombstone: false,
            created: true,
            key_value: Default::default(),
            previous: Revision::NONE,
            previous_key_value: None,
        };
        Arc::new(RevisionEvents {
            revision: number,
            events: vec![event],
        })
    }

    fn numbers(read: (Vec<Arc<RevisionEvents>>, i64)) -> (Vec<i64>, i64) {
        (read.0.iter().map(|it| it.revision).collect(), read.1)
    }

    #[test]
    fn the_ring_keeps_the_newest_and_knows_what_it_lost() {
        let mut ring = Ring::new(2, 3, usize::MAX);
        assert!(ring.covers(2) && !ring.covers(1));
        for number in 2..=5 {
            ring.push(revision(number));
        }
        assert!(!ring.covers(2) && ring.covers(3));
        assert_eq!(numbers(ring.read(3, 5, usize::MAX)), (vec![3, 4, 5], 6));
        assert_eq!(numbers(ring.read(3, 4, usize::MAX)), (vec![3, 4], 5));
        assert_eq!(numbers(ring.read(4, 5, 1)), (vec![4], 5));
        assert_eq!(numbers(ring.read(6, 5, 1)), (vec![], 6));
        ring.restart(9);
        assert!(ring.covers(9) && !ring.covers(8));
        assert_eq!(ring.bytes(), 0);
    }

    #[test]
    fn a_revision_that_is_too_large_for_the_ring_is_not_kept() {
        let mut ring = Ring::new(2, 100, 10);
        ring.push(revision(2));
        assert!(!ring.covers(2) && ring.covers(3));
    }
}
