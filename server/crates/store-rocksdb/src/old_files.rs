//! Files that nobody needs any more, removed little by little.
//!
//! Removing a file that has no other name gives its pages and its blocks back at once. For some hundred
//! megabytes that takes tens of milliseconds, in which the syncs of the Raft log wait for the file system
//! and, where freed blocks are told to the device (the mount option `discard`), for the device: 3 to 12 ms
//! for each of RocksDB's files, one after the other.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Bytes that are given back at once.
const STEP_BYTES: u64 = 4 << 20;
/// Between two steps: whoever syncs the log gets its turn.
const PAUSE: Duration = Duration::from_millis(5);

/// The directory of the second names, in that of the database, which RocksDB does not look into.
const NAME: &str = "replaced-files";
const TABLE_SUFFIX: &str = "sst";

/// Second names of the files of a database, so that RocksDB, when it is done with them, frees nothing.
pub(crate) struct OldFiles(PathBuf);

impl OldFiles {
    /// Links every table of the database in `directory`.
    ///
    /// # Errors
    /// The file system does not, or knows no links.
    pub(crate) fn hold(directory: &Path) -> io::Result<Self> {
        let held = Self(directory.join(NAME));
        held.forget()?;
        let linked = held.link_tables_of(directory);
        if linked.is_err() {
            // Those that have a second name already would stay on the disk.
            held.forget()?;
        }
        linked.map(|()| held)
    }

    fn link_tables_of(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir(&self.0)?;
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|it| it == TABLE_SUFFIX)
                && let Some(name) = path.file_name()
            {
                match fs::hard_link(&path, self.0.join(name)) {
                    // An automatic compaction has just removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }

    /// Removes what a process left that ended meanwhile.
    pub(crate) fn remove_leftovers(directory: &Path) -> io::Result<()> {
        Self(directory.join(NAME)).forget()
    }

    /// Removes the names, and the files that have no other one little by little.
    pub(crate) fn release(self) -> io::Result<()> {
        remove_directory_slowly(&self.0)
    }

    fn forget(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Removes a directory of files that others may have links to. Those that end with it are given back in
/// steps of 4 MiB with pauses, so that syncs of other files go on beside it: about a second for each
/// 700 MiB. A file that somebody holds a lock on keeps its content for him. No error when there is none.
///
/// # Errors
/// The file system's. What is left can be removed by calling again.
pub fn remove_directory_slowly(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            remove_directory_slowly(&path)?;
            continue;
        }
        let metadata = entry.metadata()?;
        if metadata.is_file() && metadata.nlink() == 1 && metadata.len() > STEP_BYTES {
            let file = OpenOptions::new().write(true).open(&path)?;
            // Whoever sends it to a follower has a lock and reads on without a name.
            if file.try_lock().is_ok() {
                shrink(&file, metadata.len())?;
            }
        }
        fs::remove_file(&path)?;
    }
    fs::remove_dir(directory)
}

fn shrink(file: &File, mut bytes: u64) -> io::Result<()> {
    while bytes > STEP_BYTES {
        bytes -= STEP_BYTES;
        file.set_len(bytes)?;
        thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn large_file(path: &Path) -> Vec<u8> {
        let content = vec![7; 2 * usize::try_from(STEP_BYTES).unwrap() + 1];
        fs::write(path, &content).unwrap();
        content
    }

    #[test]
    fn files_with_another_name_keep_their_content() {
        let root = tempfile::tempdir().unwrap();
        let old = root.path().join("old");
        fs::create_dir_all(old.join("inner")).unwrap();
        let content = large_file(&old.join("shared"));
        large_file(&old.join("inner/alone"));
        let kept = root.path().join("kept");
        fs::hard_link(old.join("shared"), &kept).unwrap();
        remove_directory_slowly(&old).unwrap();
        assert!(!old.exists());
        assert_eq!(fs::read(&kept).unwrap(), content);
        remove_directory_slowly(&old).unwrap();
    }

    #[test]
    fn a_table_that_cannot_be_held_leaves_no_second_name_of_the_others() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("000007.sst"), "x").unwrap();
        // No file system links directories.
        fs::create_dir(root.path().join("000008.sst")).unwrap();
        assert!(OldFiles::hold(root.path()).is_err());
        assert!(!root.path().join(NAME).exists());
    }

    #[test]
    fn whoever_holds_a_lock_reads_on() {
        let root = tempfile::tempdir().unwrap();
        let old = root.path().join("old");
        fs::create_dir(&old).unwrap();
        let content = large_file(&old.join("sent"));
        let mut sent = File::open(old.join("sent")).unwrap();
        sent.lock_shared().unwrap();
        remove_directory_slowly(&old).unwrap();
        let mut read = Vec::new();
        sent.read_to_end(&mut read).unwrap();
        assert!(read == content, "{} bytes", read.len());
    }

    #[test]
    fn tables_are_held_while_the_database_removes_them() {
        let root = tempfile::tempdir().unwrap();
        let table = root.path().join("000007.sst");
        large_file(&table);
        fs::write(root.path().join("CURRENT"), "").unwrap();
        let held = OldFiles::hold(root.path()).unwrap();
        let names: Vec<_> = fs::read_dir(root.path().join(NAME)).unwrap().collect();
        assert_eq!(names.len(), 1, "only tables are held");
        assert_eq!(fs::metadata(&table).unwrap().nlink(), 2);
        fs::remove_file(&table).unwrap();
        held.release().unwrap();
        assert!(!root.path().join(NAME).exists());
    }

    #[test]
    fn names_that_a_crash_left_are_removed_and_do_not_disturb_the_next_ones() {
        let root = tempfile::tempdir().unwrap();
        let table = root.path().join("000007.sst");
        fs::write(&table, "x").unwrap();
        for _ in 0..2 {
            drop(OldFiles::hold(root.path()).unwrap());
            assert!(root.path().join(NAME).exists(), "as after a crash");
        }
        OldFiles::remove_leftovers(root.path()).unwrap();
        assert!(!root.path().join(NAME).exists());
        assert!(table.exists());
    }
}
