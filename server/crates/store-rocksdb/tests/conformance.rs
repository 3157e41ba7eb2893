//! Every method of the engine against a model in ordered maps.

mod common;

use std::ops::ControlFlow;

use bytes::Bytes;
use common::{
    INLINE_BYTES, Model, break_at, latest_row, numbered_batch, numbered_model, open, record,
    scan_latest, scan_revisions, scan_rows,
};
use metastore_proto::EncodedKeyValue;
use metastore_revision_model::{KeyRange, LatestRow, Revision, RevisionRecord};
use metastore_store::engine::{Direction, Engine, RowParts, Table, WriteBatch};
use proptest::collection::vec;
use proptest::prelude::*;

/// One step of a random test.
#[derive(Debug)]
enum Step {
    Write(WriteBatch),
    Flush,
    CompactFiles,
    Reopen,
    ScanLatest(KeyRange, Direction, usize),
    GetLatest(Vec<Bytes>),
    ScanRevisions(Revision, Revision),
    GetRevisions(Vec<Revision>),
    ScanRows(Table, Bytes, Bytes),
}

/// Few and short keys of telling bytes, so that random keys meet and prefixes overlap.
fn key() -> impl Strategy<Value = Bytes> {
    vec(prop::sample::select(vec![0_u8, 1, b'a', b'b', 0xff]), 0..4).prop_map(Bytes::from)
}

fn value() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..2 * INLINE_BYTES).prop_map(Bytes::from)
}

fn revision() -> impl Strategy<Value = Revision> {
    (0_i64..40, 0_i64..3).prop_map(|(main, sub)| Revision::new(main, sub))
}

fn row() -> impl Strategy<Value = LatestRow> {
    (
        revision(),
        any::<i64>(),
        revision(),
        any::<bool>(),
        prop::option::of(value()),
    )
        .prop_map(
            |(revision, number, previous, tombstone, key_value)| LatestRow {
                revision,
                create_revision: number,
                version: number,
                lease: number,
                previous,
                tombstone,
                key_value: key_value.map(EncodedKeyValue),
            },
        )
}

fn stored_record() -> impl Strategy<Value = RevisionRecord> {
    (revision(), value()).prop_map(|(previous, value)| record(previous, &value))
}

fn table() -> impl Strategy<Value = Table> {
    prop::sample::select(Table::ALL.to_vec())
}

fn batch() -> impl Strategy<Value = WriteBatch> {
    (
        vec((key(), prop::option::weighted(0.7, row())), 0..8),
        vec((revision(), any::<bool>(), stored_record()), 0..8),
        vec((revision(), any::<bool>()), 0..4),
        vec((table(), key(), prop::option::weighted(0.7, value())), 0..8),
    )
        .prop_map(
            |(latest, put_revisions, delete_revisions, rows)| WriteBatch {
                latest,
                put_revisions,
                delete_revisions,
                rows,
            },
        )
}

fn range() -> impl Strategy<Value = KeyRange> {
    (key(), key()).prop_map(|(key, end)| KeyRange::new(key, end))
}

fn step() -> impl Strategy<Value = Step> {
    let direction = prop::sample::select(vec![Direction::Forward, Direction::Backward]);
    prop_oneof![
        8 => batch().prop_map(Step::Write),
        1 => Just(()).prop_map(|()| Step::Flush),
        1 => Just(()).prop_map(|()| Step::CompactFiles),
        1 => Just(()).prop_map(|()| Step::Reopen),
        4 => (range(), direction, 1_usize..10).prop_map(|(range, direction, limit)| Step::ScanLatest(range, direction, limit)),
        2 => vec(key(), 0..10).prop_map(Step::GetLatest),
        2 => (revision(), revision()).prop_map(|(from, to)| Step::ScanRevisions(from, to)),
        2 => vec(revision(), 0..10).prop_map(Step::GetRevisions),
        4 => (table(), key(), key()).prop_map(|(table, prefix, from)| Step::ScanRows(table, prefix, from)),
    ]
}

fn get_latest_both_ways(engine: &dyn Engine, model: &Model, keys: &[Bytes]) {
    let expected: Vec<_> = keys
        .iter()
        .map(|key| model.latest.get(key).cloned())
        .collect();
    let all = engine
        .multi_get_latest(keys, RowParts::All)
        .expect("the rows read");
    assert_eq!(all, expected);
    let metadata = engine
        .multi_get_latest(keys, RowParts::Metadata)
        .expect("the rows read");
    for ((key, expected), metadata) in keys.iter().zip(expected).zip(metadata) {
        let one = engine
            .get_latest(key, RowParts::All)
            .expect("the row reads");
        assert_eq!(one, expected);
        let without_value = expected.map(|row| LatestRow {
            key_value: None,
            ..row
        });
        let metadata = metadata.map(|row| LatestRow {
            key_value: None,
            ..row
        });
        assert_eq!(metadata, without_value);
    }
}

fn get_revisions_both_ways(engine: &dyn Engine, model: &Model, revisions: &[Revision]) {
    let expected: Vec<_> = revisions
        .iter()
        .map(|revision| model.revisions.get(revision).cloned())
        .collect();
    let found = engine
        .multi_get_revisions(revisions)
        .expect("the records read");
    assert_eq!(found, expected);
    for (revision, expected) in revisions.iter().zip(expected) {
        let found = engine.get_revision(*revision).expect("the record reads");
        assert_eq!(found, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_steps_give_what_the_model_gives(steps in vec(step(), 1..120)) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut model = Model::default();
        let mut engine = open(directory.path());
        for step in steps {
            match step {
                Step::Write(batch) => {
                    model.apply(&batch);
                    engine.write(batch).expect("the batch is written");
                }
                Step::Flush => engine.flush().expect("the flush succeeds"),
                Step::CompactFiles => engine.compact_files().expect("the compaction succeeds"),
                Step::Reopen => {
                    drop(engine);
                    engine = open(directory.path());
                }
                Step::ScanLatest(range, direction, limit) => prop_assert_eq!(
                    scan_latest(&engine, &range, direction, limit),
                    model.scan_latest(&range, direction, limit)
                ),
                Step::GetLatest(keys) => get_latest_both_ways(&engine, &model, &keys),
                Step::ScanRevisions(from, to) => prop_assert_eq!(
                    scan_revisions(&engine, from, to),
                    model.scan_revisions(from, to)
                ),
                Step::GetRevisions(revisions) => {
                    get_revisions_both_ways(&engine, &model, &revisions);
                }
                Step::ScanRows(table, prefix, from) => prop_assert_eq!(
                    scan_rows(&engine, table, &prefix, &from),
                    model.scan_rows(table, &prefix, &from)
                ),
            }
        }
        model.assert_equals(&engine);
        drop(engine);
        model.assert_equals(&open(directory.path()));
    }
}

#[test]
fn thousands_of_batches_survive_flushes_compactions_and_a_restart() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let engine = open(directory.path());
    let last = 10_000;
    for number in 1..=last {
        engine
            .write(numbered_batch(number))
            .expect("the batch is written");
    }
    let model = numbered_model(last);
    model.assert_equals(&engine);
    engine.compact_files().expect("the compaction succeeds");
    model.assert_equals(&engine);
    drop(engine);
    model.assert_equals(&open(directory.path()));
}

/// More than two segments of a scan.
const MANY_ROWS: i64 = 25_000;

fn key_of(number: i64) -> Bytes {
    Bytes::from(format!("key-{number:08}"))
}

fn engine_with_many_rows(directory: &std::path::Path) -> impl Engine {
    let engine = open(directory);
    let mut batch = WriteBatch::default();
    for number in 1..=MANY_ROWS {
        let revision = Revision::new(number, 0);
        let row = latest_row(revision, b"value");
        batch.latest.push((key_of(number), Some(row)));
        batch
            .put_revisions
            .push((revision, false, record(Revision::NONE, b"value")));
    }
    engine.write(batch).expect("the batch is written");
    engine
}

#[test]
fn a_scan_of_many_segments_visits_each_row_once_in_order() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let engine = engine_with_many_rows(directory.path());
    let forward = scan_latest(&engine, &KeyRange::all(), Direction::Forward, usize::MAX);
    assert_eq!(forward.len() as i64, MANY_ROWS);
    assert!(forward.is_sorted_by(|a, b| a.0 < b.0));
    let mut backward = scan_latest(&engine, &KeyRange::all(), Direction::Backward, usize::MAX);
    backward.reverse();
    assert_eq!(forward, backward);
    let history = scan_revisions(&engine, Revision::NONE, Revision::new(i64::MAX, 0));
    assert_eq!(history.len() as i64, MANY_ROWS);
}

#[test]
fn rows_that_are_rewritten_while_a_scan_runs_are_visited_once() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let engine = engine_with_many_rows(directory.path());
    for direction in [Direction::Forward, Direction::Backward] {
        let mut visited = Vec::new();
        engine
            .scan_latest(
                &KeyRange::all(),
                direction,
                RowParts::Metadata,
                &mut |key, _| {
                    // Rewrites the rows around the end of a segment, the visited one among them.
                    if visited.len() % 10_000 >= 9_990 {
                        let mut batch = WriteBatch::default();
                        for number in 1..=MANY_ROWS / 100 {
                            let row = latest_row(Revision::new(MANY_ROWS + 1, 0), b"newer");
                            batch.latest.push((key_of(number * 100), Some(row)));
                        }
                        let row = latest_row(Revision::new(MANY_ROWS + 1, 0), b"newer");
                        batch.latest.push((Bytes::copy_from_slice(key), Some(row)));
                        engine.write(batch).expect("the batch is written");
                    }
                    visited.push(Bytes::copy_from_slice(key));
                    ControlFlow::Continue(())
                },
            )
            .expect("the scan succeeds");
        if direction == Direction::Backward {
            visited.reverse();
        }
        let expected: Vec<_> = (1..=MANY_ROWS).map(key_of).collect();
        assert_eq!(visited, expected, "{direction:?}");
    }
}

#[test]
fn a_visitor_that_breaks_ends_the_scan() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let engine = engine_with_many_rows(directory.path());
    let mut visited = 0;
    engine
        .scan_revisions(
            Revision::NONE,
            Revision::new(i64::MAX, 0),
            &mut |_, _, _| {
                visited += 1;
                break_at(visited == 10_000)
            },
        )
        .expect("the scan succeeds");
    assert_eq!(visited, 10_000);
}

#[test]
fn compaction_gives_the_space_of_removed_rows_back() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let engine = open(directory.path());
    let row_count = 20_000;
    for number in 1..=row_count {
        let revision = Revision::new(number, 0);
        // Incompressible, or the files would be small anyway.
        let value: Vec<u8> = (0..128)
            .map(|byte| (((number + 7) * (byte + 3) * 2_654_435_761) >> 13) as u8)
            .collect();
        let mut batch = WriteBatch::default();
        batch
            .put_revisions
            .push((revision, false, record(Revision::NONE, &value)));
        engine.write(batch).expect("the batch is written");
    }
    engine.compact_files().expect("the compaction succeeds");
    let before = engine.size().expect("the size is known").physical_bytes;
    for number in 1..=row_count {
        if number % 100 != 0 {
            let mut batch = WriteBatch::default();
            batch
                .delete_revisions
                .push((Revision::new(number, 0), false));
            engine.write(batch).expect("the batch is written");
        }
    }
    engine.compact_files().expect("the compaction succeeds");
    let after = engine.size().expect("the size is known").physical_bytes;
    assert!(after * 10 < before, "{before} bytes before, {after} after");
    let left = scan_revisions(&engine, Revision::NONE, Revision::new(i64::MAX, 0));
    assert_eq!(left.len() as i64, row_count / 100);
}

#[test]
fn a_view_shows_one_moment_while_rows_are_written_and_removed() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let engine = open(folder.path());
    for number in 1..=120 {
        engine.write(numbered_batch(number)).expect("it is written");
    }
    let end = Revision::new(i64::MAX, 0);
    let before = scan_revisions(&engine, Revision::NONE, end);
    engine
        .with_view(&mut |view| {
            for number in 121..=240 {
                engine.write(numbered_batch(number))?;
            }
            engine.flush()?;
            engine.compact_files()?;
            let mut seen = Vec::new();
            view.scan_revisions(&mut |revision, tombstone, record| {
                seen.push((revision, tombstone, record));
                ControlFlow::Continue(())
            })?;
            assert!(seen == before, "the records of the moment of the view");
            let mut counter = Vec::new();
            view.scan_rows(Table::Meta, b"counter", &mut |_, value| {
                counter.extend_from_slice(value);
                ControlFlow::Continue(())
            })?;
            assert_eq!(counter, 120_i64.to_be_bytes());
            Ok(())
        })
        .expect("the view can be read");
    assert!(scan_revisions(&engine, Revision::NONE, end) != before);
}
