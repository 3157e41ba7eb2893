//! Opening a directory: ours, new, foreign, damaged or of a later program.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use bytes::Bytes;
use metastore_store::engine::{EngineError, Table};
use rocksdb::{DB, FlushOptions, InfoLogger, LogLevel, Options};

use crate::error::{REPLACE_MEMBER, io_failed, open_failed};
use crate::options::{DEFAULT, Translated, write_options};

/// The layout that this program writes: which column families there are and how their rows look.
/// Another layout takes another number.
const FORMAT: u32 = 1;
/// Key of the format row, in the default column family.
const FORMAT_KEY: &[u8] = b"metastore-rocksdb-format";
/// What RocksDB itself creates before a database exists, by name or beginning of the name.
const FILES_BEFORE_CURRENT: [&str; 5] = ["LOCK", "LOG", "IDENTITY", "MANIFEST-", "OPTIONS-"];
/// Part of a file system, not of a foreign program.
const LOST_AND_FOUND: &str = "lost+found";

/// Opens the database in `directory`, or creates it where nothing is.
pub(crate) fn open(directory: &Path, options: &Translated) -> Result<DB, EngineError> {
    if !has_database(directory)? {
        return create(directory, options);
    }
    let found: BTreeSet<String> = DB::list_cf(&Options::default(), directory)
        .map_err(|error| open_failed(directory, &error))?
        .into_iter()
        .collect();
    let expected: BTreeSet<String> = options
        .column_families()
        .iter()
        .map(|family| family.name().to_owned())
        .collect();
    if found == expected {
        let db = open_database(directory, options, false)?;
        return match read_format(&db, directory)? {
            Some(format) => check_format(format, directory).map(|()| db),
            // Created, but the program ended before the format row was durable.
            None if is_empty(&db, directory)? => write_format(db, directory),
            None => Err(foreign(directory, &found)),
        };
    }
    // Other column families: the format row says whether they are of a later program. Reading it
    // changes nothing in a directory that may not be ours.
    let db = DB::open_for_read_only(&Options::default(), directory, false)
        .map_err(|error| open_failed(directory, &error))?;
    match read_format(&db, directory)? {
        Some(format) => {
            check_format(format, directory)?;
            let missing: Vec<_> = expected.difference(&found).collect();
            let unknown: Vec<_> = found.difference(&expected).collect();
            Err(EngineError::Storage(format!(
                "the database in {} is damaged: column families missing {missing:?}, unknown \
                 {unknown:?}: {REPLACE_MEMBER}",
                directory.display()
            )))
        }
        None if found.is_subset(&expected) && is_empty(&db, directory)? => {
            drop(db);
            create(directory, options)
        }
        None => Err(foreign(directory, &found)),
    }
}

/// Whether the directory holds a database; an error when it holds anything else.
fn has_database(directory: &Path) -> Result<bool, EngineError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => {
            return Err(io_failed(
                "reading the database directory",
                directory,
                error,
            ));
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry =
            entry.map_err(|error| io_failed("reading the database directory", directory, error))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    if names.iter().any(|name| name == "CURRENT") {
        return Ok(true);
    }
    if names
        .iter()
        .any(|name| name.ends_with(".sst") || name.ends_with(".blob"))
    {
        return Err(EngineError::Storage(format!(
            "the database in {} is damaged: it has table files and no file CURRENT: {REPLACE_MEMBER}",
            directory.display()
        )));
    }
    let belongs_here = |name: &String| {
        name == LOST_AND_FOUND
            || FILES_BEFORE_CURRENT
                .iter()
                .any(|known| name.starts_with(known))
            || name.ends_with(".dbtmp")
    };
    names.retain(|name| !belongs_here(name));
    names.sort();
    match names.first() {
        None => Ok(false),
        Some(name) => Err(EngineError::Storage(format!(
            "{} is no database and not empty (it holds {name:?} and {} more): name an empty or new \
             directory, or the one that this member used before",
            directory.display(),
            names.len() - 1
        ))),
    }
}

/// Reads a row of a database that nobody has opened, and changes nothing in its directory.
pub(crate) fn read_row(
    directory: &Path,
    table: Table,
    key: &[u8],
) -> Result<Option<Bytes>, EngineError> {
    let failed = |error| open_failed(directory, &error);
    let mut options = Options::default();
    // Otherwise RocksDB begins a file LOG in the directory.
    options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Fatal, |_, _| {}));
    let db =
        DB::open_cf_for_read_only(&options, directory, [table.name()], false).map_err(failed)?;
    let family = db
        .cf_handle(table.name())
        .expect("a database is opened with the column families that were asked for");
    let row = db.get_cf(family, key).map_err(failed)?;
    Ok(row.map(Bytes::from))
}

fn create(directory: &Path, options: &Translated) -> Result<DB, EngineError> {
    fs::create_dir_all(directory)
        .map_err(|error| io_failed("creating the database directory", directory, error))?;
    let db = open_database(directory, options, true)?;
    let db = write_format(db, directory)?;
    if let Some(parent) = directory
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        sync_directory(parent)?;
    }
    Ok(db)
}

fn open_database(directory: &Path, options: &Translated, new: bool) -> Result<DB, EngineError> {
    let mut database = options.database.clone();
    database.create_if_missing(new);
    database.create_missing_column_families(new);
    DB::open_cf_descriptors(&database, directory, options.column_families())
        .map_err(|error| open_failed(directory, &error))
}

/// Makes the new database ours, durably, before anything else is written into it.
fn write_format(db: DB, directory: &Path) -> Result<DB, EngineError> {
    db.put_opt(FORMAT_KEY, FORMAT.to_be_bytes(), &write_options())
        .map_err(|error| open_failed(directory, &error))?;
    let mut wait = FlushOptions::default();
    wait.set_wait(true);
    let family = db
        .cf_handle(DEFAULT)
        .expect("every database has its default column family");
    db.flush_cf_opt(family, &wait)
        .map_err(|error| open_failed(directory, &error))?;
    Ok(db)
}

fn read_format(db: &DB, directory: &Path) -> Result<Option<u32>, EngineError> {
    let stored = db
        .get(FORMAT_KEY)
        .map_err(|error| open_failed(directory, &error))?;
    // A row of another length is a later program's too: it keeps the key so that we can tell.
    Ok(stored.map(|bytes| bytes.try_into().map_or(u32::MAX, u32::from_be_bytes)))
}

fn check_format(format: u32, directory: &Path) -> Result<(), EngineError> {
    if format == FORMAT {
        return Ok(());
    }
    Err(EngineError::Storage(format!(
        "the database in {} has format {format} and this program reads format {FORMAT}: it was \
         written by a newer version; start that version again",
        directory.display()
    )))
}

/// Whether no table file of any column family exists: nothing was ever flushed.
fn is_empty(db: &DB, directory: &Path) -> Result<bool, EngineError> {
    db.live_files()
        .map(|files| files.is_empty())
        .map_err(|error| open_failed(directory, &error))
}

fn foreign(directory: &Path, families: &BTreeSet<String>) -> EngineError {
    EngineError::Storage(format!(
        "{} holds a RocksDB database of another program (column families {families:?}): name \
         another directory",
        directory.display()
    ))
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), EngineError> {
    fs::File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(|error| io_failed("syncing the directory", directory, error))
}
