//! The memory engine's snapshot file.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use metastore_proto::etcdserverpb::{CompactionRequest, PutRequest, RangeRequest};
use metastore_proto::internal::Command;
use metastore_proto::internal::command::Request;
use metastore_revision_model::Revision;
use metastore_store::engine::ReadView;
use metastore_store::{Applier, Engine, MemoryEngine, Reader, StoreOptions, Table, open};

const FILE: &str = "memory-engine.snapshot";

fn store(engine: MemoryEngine) -> (Arc<MemoryEngine>, Applier, Reader) {
    let engine = Arc::new(engine);
    let (applier, reader) =
        open(engine.clone(), StoreOptions::default()).expect("the engine is sound");
    (engine, applier, reader)
}

fn execute(applier: &mut Applier, request: Request) {
    let command = Command {
        request: Some(request),
        ..Command::default()
    };
    let result = applier.execute(&command, 1).expect("the engine works");
    result.expect("the command is possible");
}

fn put(applier: &mut Applier, key: String, value: &'static str) {
    let request = PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    };
    execute(applier, Request::Put(request));
}

fn compact(applier: &mut Applier, revision: i64) {
    let request = CompactionRequest {
        revision,
        physical: false,
    };
    execute(applier, Request::Compaction(request));
}

fn everything() -> RangeRequest {
    RangeRequest {
        key: b"\0"[..].into(),
        range_end: b"\0"[..].into(),
        ..RangeRequest::default()
    }
}

/// A store with a few thousand records in `directory`.
fn checkpoint_into(directory: &Path) -> Reader {
    let (engine, mut applier, reader) = store(MemoryEngine::new());
    for round in 0..3 {
        for number in 0..1000 {
            put(&mut applier, format!("key-{number}"), "value");
        }
        applier.put_row(Table::Members, "m".into(), format!("{round}").into());
        applier.commit().expect("the engine works");
    }
    let row = engine.checkpoint(directory, Table::Members, b"m");
    assert_eq!(row.expect("the disk works").as_deref(), Some(&b"2"[..]));
    reader
}

#[test]
fn a_checkpoint_brings_back_the_same_store() {
    let directory = tempfile::tempdir().expect("the disk works");
    let before = checkpoint_into(&directory.path().join("new"));
    let engine =
        MemoryEngine::open_checkpoint(&directory.path().join("new")).expect("it was written");
    let (_, mut applier, after) = store(engine);
    assert_eq!(after.revision(), 3001);
    assert_eq!(after.hash().expect("hash"), before.hash().expect("hash"));
    assert_eq!(
        after.hash_kv(1500).expect("hash"),
        before.hash_kv(1500).expect("hash")
    );
    assert_eq!(
        after.range(&everything()).expect("range"),
        before.range(&everything()).expect("range")
    );
    let (old, new) = (before.engine().size(), after.engine().size());
    assert_eq!(new.expect("size"), old.expect("size"));
    let member = after.get_row(Table::Members, b"m").expect("row");
    assert_eq!(member.as_deref(), Some(&b"2"[..]));
    put(&mut applier, "key-1".to_string(), "next");
    assert_eq!(applier.revision(), 3002);
}

#[test]
fn a_checkpoint_is_one_moment_although_records_are_written_and_deleted_meanwhile() {
    let directory = tempfile::tempdir().expect("the disk works");
    let (engine, mut applier, reader) = store(MemoryEngine::new());
    for round in 0..20 {
        for number in 0..200 {
            put(&mut applier, format!("key-{number}"), "value");
        }
        applier.commit().expect("the engine works");
        let path = directory.path().join(format!("{round}"));
        let (revision, hash) = (reader.revision(), reader.hash_kv(0).expect("hash"));
        std::thread::scope(|scope| {
            let written = scope.spawn(|| {
                engine
                    .checkpoint(&path, Table::Meta, b"")
                    .expect("the disk works")
            });
            compact(&mut applier, revision - 50);
            put(&mut applier, "later".to_string(), "value");
            applier.commit().expect("the engine works");
            while reader.collect_garbage_step(100).expect("the engine works") {}
            // Deleted is deleted, also while the checkpoint still needs the record.
            reader.hash_kv(0).expect("hash");
            written.join().expect("the checkpoint was written");
        });
        let restored = MemoryEngine::open_checkpoint(&path).expect("it was written");
        let (_, _, restored) = store(restored);
        // The thread began before the writes, after them, or between.
        let now = restored.hash_kv(revision).expect("hash");
        let expected = match restored.compact_revision() == hash.compact_revision {
            true => hash,
            false => reader.hash_kv(revision).expect("hash"),
        };
        assert_eq!(now.hash, expected.hash);
        let live = restored.hash_kv(0).expect("hash");
        assert!(live.revision == revision || live.revision == revision + 1);
    }
}

#[test]
fn a_damaged_snapshot_is_refused_and_says_what_to_do() {
    let directory = tempfile::tempdir().expect("the disk works");
    let path = directory.path().join("new");
    checkpoint_into(&path);
    let file = path.join(FILE);
    let whole = std::fs::read(&file).expect("it was written");
    let refused = |bytes: &[u8], how: &str| {
        std::fs::write(&file, bytes).expect("the disk works");
        let error = MemoryEngine::open_checkpoint(&path)
            .err()
            .unwrap_or_else(|| panic!("opened although {how}"));
        let text = error.to_string();
        assert!(text.contains("restore the member"), "{how}: {text}");
    };
    for position in (0..whole.len()).step_by(whole.len() / 97) {
        let mut bytes = whole.clone();
        bytes[position] ^= 0x40;
        refused(&bytes, &format!("byte {position} was changed"));
        refused(&whole[..position], &format!("it ends at {position}"));
    }
    let mut longer = whole.clone();
    longer.push(0);
    refused(&longer, "it is too long");
    std::fs::write(&file, &whole).expect("the disk works");
    assert!(MemoryEngine::open_checkpoint(&path).is_ok());
}

fn records_of(view: &dyn ReadView) -> Vec<Revision> {
    let mut revisions = Vec::new();
    view.scan_revisions(&mut |revision, _, _| {
        revisions.push(revision);
        ControlFlow::Continue(())
    })
    .expect("the engine works");
    revisions
}

#[test]
fn views_see_one_moment_while_records_come_and_are_collected() {
    let (engine, mut applier, reader) = store(MemoryEngine::new());
    for number in 0..10 {
        put(&mut applier, format!("key-{}", number % 2), "value");
    }
    applier.commit().expect("the engine works");
    let size = |reader: &Reader| reader.size().expect("the engine works").physical_bytes;
    let full_size = size(&reader);
    let mut later = Vec::new();
    engine
        .with_view(&mut |first| {
            let before = records_of(first);
            assert_eq!(before.len(), 10);
            compact(&mut applier, 11);
            put(&mut applier, "new".into(), "value");
            applier.commit().expect("the engine works");
            while reader.collect_garbage_step(3).expect("the engine works") {}
            assert_eq!(records_of(first), before, "the older view misses nothing");
            engine.with_view(&mut |second| {
                later = records_of(second);
                Ok(())
            })?;
            assert_eq!(
                records_of(first),
                before,
                "the end of a newer view changes nothing"
            );
            Ok(())
        })
        .expect("the engine works");
    assert_eq!(
        later.len(),
        3,
        "two keys that live and the new one: {later:?}"
    );
    assert!(
        size(&reader) < full_size,
        "what was collected is given back when the last view that saw it ends"
    );
}
