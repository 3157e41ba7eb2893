//! A model of the engine in ordered maps, and what all tests of this crate build from.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(missing_docs, reason = "test code")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use metastore_proto::EncodedKeyValue;
use metastore_revision_model::{KeyRange, LatestRow, Revision, RevisionRecord};
use metastore_store::engine::{Direction, Engine, RowParts, Table, WriteBatch};
use metastore_store_rocksdb::{RocksDbEngine, RocksDbOptions};

/// Values longer than this are not kept with the latest row in these tests.
pub const INLINE_BYTES: usize = 32;

/// Memory so small that a few thousand rows are flushed and compacted without being asked.
pub fn small_options() -> RocksDbOptions {
    RocksDbOptions {
        memory_bytes: 0,
        inline_bytes: INLINE_BYTES,
        ..RocksDbOptions::default()
    }
}

pub fn open(directory: &Path) -> RocksDbEngine {
    RocksDbEngine::open(directory, &small_options()).expect("the database opens")
}

/// What the engine is to hold.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub latest: BTreeMap<Bytes, LatestRow>,
    pub revisions: BTreeMap<Revision, (bool, RevisionRecord)>,
    pub rows: BTreeMap<(Table, Bytes), Bytes>,
}

impl Model {
    pub fn apply(&mut self, batch: &WriteBatch) {
        for (revision, tombstone, record) in &batch.put_revisions {
            self.revisions
                .insert(*revision, (*tombstone, record.clone()));
        }
        for (revision, _) in &batch.delete_revisions {
            self.revisions.remove(revision);
        }
        for (key, row) in &batch.latest {
            match row {
                Some(row) => self.latest.insert(key.clone(), kept(row.clone())),
                None => self.latest.remove(key),
            };
        }
        for (table, key, value) in &batch.rows {
            match value {
                Some(value) => self.rows.insert((*table, key.clone()), value.clone()),
                None => self.rows.remove(&(*table, key.clone())),
            };
        }
    }

    /// Compares every row of every table, read by scans.
    pub fn assert_equals(&self, engine: &dyn Engine) {
        let all = KeyRange::new(Bytes::new(), Bytes::from_static(b"\0"));
        assert_eq!(
            scan_latest(engine, &all, Direction::Forward, usize::MAX),
            self.scan_latest(&all, Direction::Forward, usize::MAX),
            "latest"
        );
        let (from, to) = (Revision::NONE, Revision::new(i64::MAX, i64::MAX));
        assert_eq!(
            scan_revisions(engine, from, to),
            self.scan_revisions(from, to),
            "revisions"
        );
        for table in Table::ALL {
            assert_eq!(
                scan_rows(engine, table, b"", b""),
                self.scan_rows(table, b"", b""),
                "{}",
                table.name()
            );
        }
    }

    pub fn scan_latest(
        &self,
        range: &KeyRange,
        direction: Direction,
        limit: usize,
    ) -> Vec<(Bytes, LatestRow)> {
        let rows = || {
            self.latest
                .iter()
                .filter(|(key, _)| range.contains(key))
                .map(|(key, row)| (key.clone(), row.clone()))
        };
        match direction {
            Direction::Forward => rows().take(limit).collect(),
            Direction::Backward => rows().rev().take(limit).collect(),
        }
    }

    pub fn scan_revisions(
        &self,
        from: Revision,
        to: Revision,
    ) -> Vec<(Revision, bool, RevisionRecord)> {
        self.revisions
            .iter()
            .filter(|(revision, _)| **revision >= from && **revision <= to)
            .map(|(revision, (tombstone, record))| (*revision, *tombstone, record.clone()))
            .collect()
    }

    pub fn scan_rows(&self, table: Table, prefix: &[u8], from: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.rows
            .iter()
            .filter(|((of, key), _)| {
                *of == table && key.starts_with(prefix) && key.as_ref() >= from
            })
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect()
    }
}

fn kept(mut row: LatestRow) -> LatestRow {
    row.key_value = row
        .key_value
        .filter(|key_value| key_value.0.len() <= INLINE_BYTES);
    row
}

pub fn scan_latest(
    engine: &dyn Engine,
    range: &KeyRange,
    direction: Direction,
    limit: usize,
) -> Vec<(Bytes, LatestRow)> {
    let mut found = Vec::new();
    if limit > 0 {
        engine
            .scan_latest(range, direction, RowParts::All, &mut |key, row| {
                found.push((Bytes::copy_from_slice(key), row));
                break_at(found.len() == limit)
            })
            .expect("the scan succeeds");
    }
    found
}

pub fn scan_revisions(
    engine: &dyn Engine,
    from: Revision,
    to: Revision,
) -> Vec<(Revision, bool, RevisionRecord)> {
    let mut found = Vec::new();
    engine
        .scan_revisions(from, to, &mut |revision, tombstone, record| {
            found.push((revision, tombstone, record));
            ControlFlow::Continue(())
        })
        .expect("the scan succeeds");
    found
}

pub fn scan_rows(
    engine: &dyn Engine,
    table: Table,
    prefix: &[u8],
    from: &[u8],
) -> Vec<(Bytes, Bytes)> {
    let mut found = Vec::new();
    engine
        .scan_rows(table, prefix, from, &mut |key, value| {
            found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        })
        .expect("the scan succeeds");
    found
}

pub fn break_at(end: bool) -> ControlFlow<()> {
    if end {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

pub fn latest_row(revision: Revision, value: &[u8]) -> LatestRow {
    LatestRow {
        revision,
        create_revision: revision.main,
        version: 1,
        lease: 0,
        previous: Revision::NONE,
        tombstone: false,
        key_value: Some(EncodedKeyValue(Bytes::copy_from_slice(value))),
    }
}

pub fn record(previous: Revision, value: &[u8]) -> RevisionRecord {
    RevisionRecord {
        previous,
        key_value: EncodedKeyValue(Bytes::copy_from_slice(value)),
    }
}

/// The row of each table that holds the number of the last batch.
pub const COUNTER: &[u8] = b"counter";

/// Batch number `number`: touches every table, and is the same whenever it is built again.
pub fn numbered_batch(number: i64) -> WriteBatch {
    let mut batch = WriteBatch::default();
    let changes = 1 + number % 3;
    for sub in 0..changes {
        let revision = Revision::new(number, sub);
        // The 64-bit golden ratio spreads the numbers over keys and lengths.
        let spread = (number * 8 + sub) as u64;
        let spread = spread.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let key = Bytes::from(format!("key-{}", spread % 200));
        let value = vec![b'v'; (spread % 700) as usize];
        let tombstone = spread.is_multiple_of(7);
        batch
            .put_revisions
            .push((revision, tombstone, record(Revision::NONE, &value)));
        let row = (!spread.is_multiple_of(11)).then(|| latest_row(revision, &value));
        batch.latest.push((key, row));
    }
    // Something to collect, with survivors in between.
    let old = number - 50;
    if old > 0 && old % 5 != 0 {
        batch.delete_revisions.push((Revision::new(old, 0), false));
    }
    for table in Table::ALL {
        let value = Some(Bytes::copy_from_slice(&number.to_be_bytes()));
        batch.rows.push((table, Bytes::from_static(COUNTER), value));
    }
    batch
}

/// The number of the last batch that the engine holds; asserts that all tables agree.
pub fn counter(engine: &dyn Engine) -> i64 {
    let counters = Table::ALL.map(|table| {
        let row = engine.get_row(table, COUNTER).expect("the row reads");
        row.map_or(0, |row| {
            i64::from_be_bytes(row.as_ref().try_into().expect("eight bytes"))
        })
    });
    assert!(
        counters.iter().all(|counter| *counter == counters[0]),
        "the tables hold different batches: {counters:?}"
    );
    counters[0]
}

/// What the engine is to hold after the batches 1 to `last`.
pub fn numbered_model(last: i64) -> Model {
    let mut model = Model::default();
    for number in 1..=last {
        model.apply(&numbered_batch(number));
    }
    model
}
