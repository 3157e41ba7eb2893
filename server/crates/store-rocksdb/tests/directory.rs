//! What an operator is told about a directory that cannot be opened or read.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{numbered_batch, numbered_model, open, small_options};
use metastore_revision_model::Revision;
use metastore_store::engine::{Engine, EngineError, Table};
use metastore_store_rocksdb::RocksDbEngine;
use rocksdb::{DB, Options};
use tempfile::TempDir;

/// Makes the test's own binary, started again, try to open a directory and print the error.
const DIRECTORY_VARIABLE: &str = "METASTORE_OPEN_DIRECTORY";

/// A closed database with some files.
fn filled() -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let directory = parent.path().join("db");
    let engine = open(&directory);
    for number in 1..=500 {
        engine
            .write(numbered_batch(number))
            .expect("the batch is written");
    }
    engine.flush().expect("the flush succeeds");
    drop(engine);
    (parent, directory)
}

fn open_error(directory: &Path) -> String {
    match RocksDbEngine::open(directory, &small_options()) {
        Ok(_) => panic!("{} opened", directory.display()),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

fn files(directory: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(directory)
        .expect("the directory reads")
        .map(|entry| entry.expect("the entry reads").path())
        .filter(|path| wanted(&path.file_name().expect("a name").to_string_lossy()))
        .collect();
    found.sort();
    found
}

/// Inverts the middle of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).expect("the file reads");
    let (middle, length) = (bytes.len() / 2, bytes.len().min(64));
    let from = middle - length / 2;
    for byte in &mut bytes[from..from + length] {
        *byte = !*byte;
    }
    fs::write(path, bytes).expect("the file is written");
}

#[test]
fn a_new_directory_is_created_with_its_parents() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let directory = parent.path().join("a/b/c");
    drop(open(&directory));
    open(&directory);
}

#[test]
fn a_second_open_says_that_the_database_is_in_use() {
    let (_parent, directory) = filled();
    let _engine = open(&directory);
    assert_says(
        &open_error(&directory),
        &["in use by another process", "stop the other"],
    );
}

#[test]
fn a_second_process_is_told_that_the_database_is_in_use() {
    if let Ok(directory) = std::env::var(DIRECTORY_VARIABLE) {
        println!("\n{}", open_error(Path::new(&directory)));
        return;
    }
    let (_parent, directory) = filled();
    let _engine = open(&directory);
    let output = Command::new(std::env::current_exe().expect("a test has a binary"))
        .args([
            "--exact",
            "a_second_process_is_told_that_the_database_is_in_use",
            "--nocapture",
        ])
        .env(DIRECTORY_VARIABLE, &directory)
        .output()
        .expect("the binary starts");
    let error = String::from_utf8_lossy(&output.stdout);
    let place = directory.to_string_lossy();
    assert_says(
        &error,
        &["in use by another process", &place, "stop the other"],
    );
}

#[test]
fn a_damaged_manifest_is_refused() {
    let (_parent, directory) = filled();
    for manifest in files(&directory, |name| name.starts_with("MANIFEST")) {
        damage(&manifest);
    }
    let place = directory.to_string_lossy().into_owned();
    assert_says(
        &open_error(&directory),
        &["Corruption", &place, "damaged", "re-add this member"],
    );
}

#[test]
fn a_missing_table_file_is_refused() {
    let (_parent, directory) = filled();
    let tables = files(&directory, |name| name.ends_with(".sst"));
    fs::remove_file(&tables[0]).expect("the file is removed");
    let name = tables[0]
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    assert_says(
        &open_error(&directory),
        &[&name, "missing", "re-add this member"],
    );
}

#[test]
fn a_missing_current_file_is_refused_and_not_taken_for_a_new_database() {
    let (_parent, directory) = filled();
    fs::remove_file(directory.join("CURRENT")).expect("the file is removed");
    assert_says(&open_error(&directory), &["no file CURRENT", "damaged"]);
}

#[test]
fn a_directory_with_other_files_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("thesis.txt"), "years of work").expect("written");
    assert_says(
        &open_error(directory.path()),
        &["thesis.txt", "no database", "not empty"],
    );
    assert_eq!(files(directory.path(), |_| true).len(), 1);
}

#[test]
fn an_empty_file_system_with_its_lost_and_found_is_a_new_directory() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(directory.path().join("lost+found")).expect("created");
    open(directory.path());
}

#[test]
fn a_database_of_another_program_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut options = Options::default();
    options.create_if_missing(true);
    let db = DB::open(&options, directory.path()).expect("it opens");
    db.put(b"theirs", b"theirs").expect("it is written");
    db.flush().expect("it is flushed");
    drop(db);
    assert_says(
        &open_error(directory.path()),
        &["another program", "another directory"],
    );
    let db = DB::open(&options, directory.path()).expect("it still opens");
    assert!(db.get(b"theirs").expect("it reads").is_some());
}

/// Opens a closed database as a later version of this program might have left it.
fn alter(directory: &Path, change: impl FnOnce(&mut DB)) {
    let families = DB::list_cf(&Options::default(), directory).expect("it lists");
    let mut db = DB::open_cf(&Options::default(), directory, families).expect("it opens");
    change(&mut db);
    db.flush().expect("it is flushed");
}

fn write_later_format(db: &mut DB) {
    db.put(b"metastore-rocksdb-format", 2_u32.to_be_bytes())
        .expect("it is written");
}

#[test]
fn a_later_format_is_refused() {
    let (_parent, directory) = filled();
    alter(&directory, write_later_format);
    assert_says(
        &open_error(&directory),
        &["format 2", "reads format 1", "newer version"],
    );
}

#[test]
fn a_later_format_with_more_tables_is_refused() {
    let (_parent, directory) = filled();
    alter(&directory, |db| {
        write_later_format(db);
        db.create_cf("version_index", &Options::default())
            .expect("it is created");
    });
    assert_says(&open_error(&directory), &["format 2", "newer version"]);
}

#[test]
fn a_database_that_lost_a_table_is_refused() {
    let (_parent, directory) = filled();
    alter(&directory, |db| db.drop_cf("lease").expect("it is dropped"));
    assert_says(&open_error(&directory), &["damaged", "missing [\"lease\"]"]);
}

#[test]
fn an_interrupted_creation_is_completed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut options = Options::default();
    options.create_if_missing(true);
    drop(DB::open(&options, directory.path()).expect("it opens"));
    let engine = open(directory.path());
    engine
        .write(numbered_batch(1))
        .expect("the batch is written");
    drop(engine);
    numbered_model(1).assert_equals(&open(directory.path()));
}

#[test]
fn a_file_in_place_of_the_directory_is_refused() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let path = parent.path().join("file");
    fs::write(&path, "").expect("written");
    assert_says(
        &open_error(&path),
        &["Not a directory", &path.to_string_lossy()],
    );
}

#[test]
fn a_damaged_block_is_an_error_and_never_a_wrong_answer() {
    let (_parent, directory) = filled();
    let model = numbered_model(500);
    for table in files(&directory, |name| name.ends_with(".sst")) {
        damage(&table);
    }
    // The damage may lie where opening finds it (a filter, an index) or where only reading does.
    let engine = match RocksDbEngine::open(&directory, &small_options()) {
        Ok(engine) => engine,
        Err(error) => return assert_says(&error.to_string(), &["re-add this member"]),
    };
    let mut errors = Vec::new();
    for (revision, expected) in &model.revisions {
        match engine.get_revision(*revision) {
            Ok(found) => assert_eq!(found.as_ref(), Some(expected)),
            Err(error) => errors.push(error),
        }
    }
    errors.extend(
        engine
            .scan_revisions(
                Revision::NONE,
                Revision::new(i64::MAX, 0),
                &mut |_, _, _| std::ops::ControlFlow::Continue(()),
            )
            .err(),
    );
    let error = errors.last().expect("the damage is found");
    assert!(matches!(error, EngineError::Storage(_)), "{error}");
    let place = directory.to_string_lossy();
    assert_says(
        &error.to_string(),
        &["Corruption", &place, "re-add this member"],
    );
}

#[test]
fn a_copy_into_an_existing_directory_is_refused() {
    let (parent, directory) = filled();
    let engine = open(&directory);
    let error = engine
        .checkpoint(parent.path(), Table::Meta, b"")
        .expect_err("it exists")
        .to_string();
    assert_says(
        &error,
        &["writing a copy into", &parent.path().to_string_lossy()],
    );
}
