//! Files that are built can be read; files that are damaged cannot, and say so.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use crate::{BoltBuilder, BoltFile, Layout, PAGE_BYTES, PageSink};

type Contents = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

fn fill<S: PageSink>(mut builder: BoltBuilder<S>, contents: &Contents) -> Layout {
    for (name, rows) in contents {
        builder.bucket(name).expect("memory takes everything");
        for (key, value) in rows {
            builder.row(key, value).expect("rows are in order");
        }
    }
    builder.finish().expect("both passes got the same rows")
}

fn build(contents: &Contents) -> Vec<u8> {
    let layout = fill(BoltBuilder::measure(), contents);
    let mut file = Vec::new();
    let sink = |pages: &[u8]| {
        assert_eq!(pages.len() % PAGE_BYTES, 0, "whole pages");
        file.extend_from_slice(pages);
        Ok(())
    };
    fill(
        BoltBuilder::write(layout, sink).expect("memory takes everything"),
        contents,
    );
    assert_eq!(file.len() as u64, layout.file_bytes());
    file
}

fn save(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("db");
    std::fs::write(&path, bytes).expect("own folder");
    path
}

fn read(path: &Path) -> Result<Contents, crate::FileError> {
    let file = BoltFile::open(path)?;
    let mut contents = Contents::new();
    for (name, bucket) in file.buckets() {
        let mut rows = BTreeMap::new();
        file.scan(bucket, &mut |key, value| {
            rows.insert(key.to_vec(), value.to_vec());
            Ok(ControlFlow::Continue(()))
        })?;
        contents.insert(String::from_utf8_lossy(name).into_owned(), rows);
    }
    Ok(contents)
}

fn assert_round_trip(contents: &Contents) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = save(folder.path(), &build(contents));
    assert_eq!(&read(&path).expect("an intact file"), contents);
    let integrity = BoltFile::open(&path)
        .and_then(|file| file.check())
        .expect("an intact file");
    assert_eq!(integrity.problems, Vec::<String>::new());
}

fn numbered(count: u32, key_bytes: usize, value_bytes: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    (0..count)
        .map(|number| {
            let mut key = vec![b'k'; key_bytes];
            key.extend_from_slice(&number.to_be_bytes());
            (key, vec![number as u8; value_bytes])
        })
        .collect()
}

#[test]
fn files_of_every_shape_are_read_back() {
    for (count, key_bytes, value_bytes) in [
        (0, 1, 0),
        (1, 1, 0),
        (3, 20, 100),
        (3, 20, 5000),
        (120, 20, 0),
        (10_000, 17, 300),
        (100_000, 17, 0),
        // Branch pages that hold two or three children only.
        (300, 1500, 10),
        (37, 5000, 10),
        (1, 1, 3_000_000),
    ] {
        let contents = Contents::from([
            ("a".to_owned(), numbered(count, key_bytes, value_bytes)),
            ("b".to_owned(), BTreeMap::new()),
            ("c".to_owned(), numbered(2, 1, 1)),
        ]);
        assert_round_trip(&contents);
    }
}

#[test]
fn every_number_of_leaves_gives_a_tree() {
    // One row fills a leaf; 100 children fill a branch: the last branch may be left with one child.
    for count in (95..108).chain(195..210) {
        let contents = Contents::from([("a".to_owned(), numbered(count, 20, 3000))]);
        assert_round_trip(&contents);
    }
}

#[test]
fn rows_out_of_order_are_refused() {
    let mut builder = BoltBuilder::measure();
    builder.bucket("a").expect("nothing to write");
    builder.row(b"b", b"").expect("the first row");
    assert!(builder.row(b"b", b"").is_err());
    assert!(builder.row(b"a", b"").is_err());
    assert!(builder.row(b"", b"").is_err());
    builder.row(b"c", b"").expect("behind the one before");
}

#[test]
fn files_of_other_kinds_are_named() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for (bytes, expected) in [
        (&b""[..], "it has 0 bytes only"),
        (&[7; 9000][..], "it begins with other bytes"),
    ] {
        let path = save(folder.path(), bytes);
        let error = read(&path).expect_err("no database");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = read(&folder.path().join("missing")).expect_err("no file");
    assert!(error.to_string().contains("cannot open"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_contents_are_read_back(
        contents in prop::collection::btree_map(
            "[a-z]{1,9}",
            prop::collection::btree_map(
                prop::collection::vec(any::<u8>(), 1..40),
                prop::collection::vec(any::<u8>(), 0..6000),
                0..60,
            ),
            0..5,
        )
    ) {
        assert_round_trip(&contents);
    }

    /// A damaged file is refused or reads as something else, but never ends the program.
    #[test]
    fn damage_never_panics(
        place in any::<prop::sample::Index>(),
        bits in 1u8..,
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let contents = Contents::from([
            ("key".to_owned(), numbered(400, 17, 60)),
            ("meta".to_owned(), numbered(5, 3, 9)),
        ]);
        let mut bytes = build(&contents);
        let at = place.index(bytes.len());
        bytes[at] ^= bits;
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = save(folder.path(), &bytes);
        let _ = read(&path);
        if let Ok(file) = BoltFile::open(&path) {
            let _ = file.check();
        }
    }
}

mod log {
    use super::*;
    use crate::etcd_log::{EtcdLog, NewEtcdLog};

    fn write(folder: &Path) -> (PathBuf, PathBuf) {
        let (log, snapshots) = (folder.join("wal"), folder.join("snap"));
        std::fs::create_dir_all(&log).expect("own folder");
        std::fs::create_dir_all(&snapshots).expect("own folder");
        let new = NewEtcdLog {
            member_id: 7,
            cluster_id: 9,
            members: vec![(7, b"{\"id\":7}".to_vec()), (8, b"{\"id\":8}".to_vec())],
            version_2_store: b"{}".to_vec(),
        };
        new.write(&log, &snapshots).expect("own folder");
        let file = log.join("0000000000000000-0000000000000000.wal");
        (log, file)
    }

    #[test]
    fn a_log_is_read_back_from_any_index() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (log, _) = write(folder.path());
        for after in 0..=2 {
            let read = EtcdLog::read(&log, after).expect("an intact log");
            assert_eq!((read.member_id, read.cluster_id), (7, 9));
            assert_eq!(read.entries.len() as u64, 2 - after);
            assert_eq!(read.term_at, (after > 0).then_some(1));
            assert_eq!(read.state.commit, Some(2));
            assert_eq!(read.snapshot_index, 2);
            assert!(!read.ends_torn);
        }
    }

    #[test]
    fn damage_is_refused_and_a_torn_end_is_told() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (log, file) = write(folder.path());
        let intact = std::fs::read(&file).expect("own file");
        let end = intact.iter().rposition(|byte| *byte != 0).expect("records") + 1;
        let mut damaged = 0;
        for at in (0..end).step_by(3) {
            let mut bytes = intact.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&file, bytes).expect("own file");
            damaged += usize::from(EtcdLog::read(&log, 0).is_err());
        }
        assert!(damaged > 0, "checksums cover the records");
        std::fs::write(&file, &intact[..end - 9]).expect("own file");
        let read = EtcdLog::read(&log, 0).expect("a log that ends early");
        assert!(read.ends_torn);
        std::fs::remove_file(&file).expect("own file");
        let error = EtcdLog::read(&log, 0).expect_err("no log");
        assert!(
            error.to_string().contains("it has no .wal files"),
            "{error}"
        );
    }
}
