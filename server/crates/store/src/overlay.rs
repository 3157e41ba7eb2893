//! The rows of commands that are executed but not committed, over the engine.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use metastore_revision_model::{KeyRange, LatestRow, RangeEnd, Revision, RevisionRecord};

use crate::engine::{Direction, EngineError, LatestVisitor, RowParts, Table, WriteBatch};
use crate::shared::Shared;
use crate::view::View;

/// A key that uncommitted commands changed.
pub(crate) struct ChangedKey {
    /// Its newest row.
    pub row: LatestRow,
    /// Whether the key was live before the first of these commands.
    pub was_live: bool,
}

/// What the next batch will write. Reads see it over the engine, so that each command sees the
/// commands before it.
pub(crate) struct Overlay {
    shared: Arc<Shared>,
    /// The revision that the engine holds.
    pub committed_revision: i64,
    pub keys: BTreeMap<Bytes, ChangedKey>,
    /// New records, in the order of their revisions.
    pub history: Vec<(Revision, bool, RevisionRecord)>,
    pub rows: BTreeMap<(Table, Bytes), Option<Bytes>>,
}

impl Overlay {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            committed_revision: shared.revision(),
            shared,
            keys: BTreeMap::new(),
            history: Vec::new(),
            rows: BTreeMap::new(),
        }
    }

    /// One record of the history, committed or not.
    pub fn revision(
        &self,
        revision: Revision,
    ) -> Result<Option<(bool, RevisionRecord)>, EngineError> {
        if revision.main <= self.committed_revision {
            return self.shared.engine.get_revision(revision);
        }
        let found = self
            .history
            .binary_search_by_key(&revision, |(revision, _, _)| *revision);
        Ok(found.ok().map(|index| {
            let (_, tombstone, record) = &self.history[index];
            (*tombstone, record.clone())
        }))
    }

    pub fn get_row(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        // Only a small part of commands touch rows; most batches have none to look through.
        if !self.rows.is_empty()
            && let Some(changed) = self.rows.get(&(table, Bytes::copy_from_slice(key)))
        {
            return Ok(changed.clone());
        }
        self.shared.engine.get_row(table, key)
    }

    pub fn set_row(&mut self, table: Table, key: Bytes, value: Option<Bytes>) {
        self.rows.insert((table, key), value);
    }

    /// The rows whose keys start with `prefix`, in the order of their keys.
    pub fn scan_rows(
        &self,
        table: Table,
        prefix: &[u8],
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let mut found = BTreeMap::new();
        self.shared
            .engine
            .scan_rows(table, prefix, prefix, &mut |key, value| {
                found.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                ControlFlow::Continue(())
            })?;
        let from = (table, Bytes::copy_from_slice(prefix));
        for ((_, key), value) in self
            .rows
            .range(from..)
            .take_while(|((other, key), _)| *other == table && key.starts_with(prefix))
        {
            match value {
                Some(value) => found.insert(key.clone(), value.clone()),
                None => found.remove(key),
            };
        }
        Ok(found.into_iter().collect())
    }

    /// How many more keys of the range are live now than were committed.
    pub fn live_key_change(&self, range: &KeyRange) -> i64 {
        self.changed_keys(range, Direction::Forward)
            .map(|(_, changed)| i64::from(!changed.row.tombstone) - i64::from(changed.was_live))
            .sum()
    }

    /// Moves everything into a batch.
    pub fn take_batch(&mut self) -> WriteBatch {
        let keys = std::mem::take(&mut self.keys);
        let rows = std::mem::take(&mut self.rows);
        WriteBatch {
            latest: keys
                .into_iter()
                .map(|(key, changed)| (key, Some(changed.row)))
                .collect(),
            put_revisions: std::mem::take(&mut self.history),
            delete_revisions: Vec::new(),
            rows: rows
                .into_iter()
                .map(|((table, key), value)| (table, key, value))
                .collect(),
        }
    }

    fn changed_keys<'a>(
        &'a self,
        range: &KeyRange,
        direction: Direction,
    ) -> Box<dyn Iterator<Item = (&'a Bytes, &'a ChangedKey)> + 'a> {
        if range.is_empty() || self.keys.is_empty() {
            return Box::new(std::iter::empty());
        }
        let start = Bound::Included(range.start.clone());
        let end = match &range.end {
            RangeEnd::Single => Bound::Included(range.start.clone()),
            RangeEnd::Open => Bound::Unbounded,
            RangeEnd::Before(end) => Bound::Excluded(end.clone()),
        };
        let keys = self.keys.range((start, end));
        match direction {
            Direction::Forward => Box::new(keys),
            Direction::Backward => Box::new(keys.rev()),
        }
    }
}

impl View for Overlay {
    fn collected_below(&self) -> i64 {
        self.shared.compact_revision()
    }

    fn latest(&self, key: &[u8], parts: RowParts) -> Result<Option<LatestRow>, EngineError> {
        match self.keys.get(key) {
            Some(changed) => Ok(Some(changed.row.clone())),
            None => self.shared.engine.get_latest(key, parts),
        }
    }

    fn scan(
        &self,
        range: &KeyRange,
        direction: Direction,
        parts: RowParts,
        visit: &mut LatestVisitor<'_>,
    ) -> Result<(), EngineError> {
        let mut changed = self.changed_keys(range, direction).peekable();
        if changed.peek().is_none() {
            return self
                .shared
                .engine
                .scan_latest(range, direction, parts, visit);
        }
        let mut stopped = false;
        self.shared
            .engine
            .scan_latest(range, direction, parts, &mut |key, row| {
                let comes_first = |other: &[u8]| match direction {
                    Direction::Forward => other < key,
                    Direction::Backward => other > key,
                };
                while let Some((other, newer)) = changed.next_if(|(other, _)| comes_first(other)) {
                    if visit(other, newer.row.clone()).is_break() {
                        stopped = true;
                        return ControlFlow::Break(());
                    }
                }
                let row = match changed.next_if(|(other, _)| *other == key) {
                    Some((_, newer)) => newer.row.clone(),
                    None => row,
                };
                let flow = visit(key, row);
                stopped = flow.is_break();
                flow
            })?;
        if !stopped {
            for (key, newer) in changed {
                if visit(key, newer.row.clone()).is_break() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn revisions(
        &self,
        revisions: &[Revision],
    ) -> Result<Vec<Option<(bool, RevisionRecord)>>, EngineError> {
        revisions
            .iter()
            .map(|revision| self.revision(*revision))
            .collect()
    }
}
