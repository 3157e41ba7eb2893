//! Files that are read again when they have changed.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::text::open_error;

/// A file that was written less than this ago is read again at the next look: two writes within one
/// tick of the file system's clock cannot be told apart by their times.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// What tells a changed file from an unchanged one; nothing for a file that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp(Option<Facts>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &PathBuf) -> Self {
        Self(std::fs::metadata(path).ok().map(|metadata| Facts {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }))
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let Some(facts) = &self.0 else {
            return true;
        };
        let Ok(seconds) = u64::try_from(facts.changed.0) else {
            return true;
        };
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        now.duration_since(changed)
            .is_ok_and(|age| age > SETTLED_AFTER)
    }
}

type Parse<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync>;

/// The value that some files describe together.
pub(super) struct Watched<T> {
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    current: ArcSwap<Version<T>>,
    reading: Mutex<()>,
}

struct Version<T> {
    stamps: Vec<Stamp>,
    is_settled: bool,
    contents: Vec<Vec<u8>>,
    value: Arc<T>,
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// Go's text for files that cannot be opened, or what `parse` says.
    pub(super) fn open(
        paths: Vec<PathBuf>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let (stamps, is_settled) = look(&paths);
        let contents = read(&paths)?;
        let value = Arc::new(parse(&contents)?);
        Ok(Self {
            paths,
            parse: Box::new(parse),
            current: ArcSwap::from_pointee(Version {
                stamps,
                is_settled,
                contents,
                value,
            }),
            reading: Mutex::new(()),
        })
    }

    /// The value of the files as they are now, or as they were when they could be read last.
    pub(super) fn get(&self) -> Arc<T> {
        let current = self.current.load();
        let (stamps, is_settled) = look(&self.paths);
        if current.is_settled && current.stamps == stamps {
            return Arc::clone(&current.value);
        }
        drop(current);
        self.read_again(stamps, is_settled)
    }

    fn read_again(&self, stamps: Vec<Stamp>, is_settled: bool) -> Arc<T> {
        let _only_one = self.reading.lock();
        let current = self.current.load_full();
        let is_known = current.stamps == stamps;
        let (contents, value) = match read(&self.paths) {
            Ok(contents) if contents == current.contents => (contents, Arc::clone(&current.value)),
            Ok(contents) => match (self.parse)(&contents) {
                Ok(value) => {
                    tracing::info!(files = ?self.paths, "read changed TLS files");
                    (contents, Arc::new(value))
                }
                Err(error) => self.keep(&current, is_known, &error),
            },
            Err(error) => self.keep(&current, is_known, &error),
        };
        self.current.store(Arc::new(Version {
            stamps,
            is_settled,
            contents,
            value: Arc::clone(&value),
        }));
        value
    }

    fn keep(&self, current: &Version<T>, is_known: bool, error: &str) -> (Vec<Vec<u8>>, Arc<T>) {
        if !is_known {
            tracing::warn!(
                files = ?self.paths,
                error,
                "failed to read changed TLS files; going on with what was read before"
            );
        }
        (current.contents.clone(), Arc::clone(&current.value))
    }
}

fn look(paths: &[PathBuf]) -> (Vec<Stamp>, bool) {
    let now = SystemTime::now();
    let stamps: Vec<_> = paths.iter().map(Stamp::of).collect();
    let is_settled = stamps.iter().all(|stamp| stamp.is_settled(now));
    (stamps, is_settled)
}

fn read(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    paths
        .iter()
        .map(|path| std::fs::read(path).map_err(|error| open_error(path, &error)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(contents: &[Vec<u8>]) -> Result<u32, String> {
        String::from_utf8_lossy(&contents[0])
            .parse()
            .map_err(|_| "no number".to_owned())
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("number");
        std::fs::write(&path, "1").expect("written");
        let watched = Watched::open(vec![path.clone()], number).expect("readable");
        assert_eq!(*watched.get(), 1);
        // Same length, within the same tick of the clock.
        std::fs::write(&path, "2").expect("written");
        assert_eq!(*watched.get(), 2);
        std::fs::write(&path, "x").expect("written");
        assert_eq!(*watched.get(), 2);
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(*watched.get(), 2);
        std::fs::write(&path, "3").expect("written");
        assert_eq!(*watched.get(), 3);
    }

    #[test]
    fn a_file_that_cannot_be_read_at_first_is_an_error_in_the_words_of_go() {
        let Err(error) = Watched::open(vec![PathBuf::from("/nowhere/a.pem")], number) else {
            panic!("there is no such file");
        };
        assert_eq!(error, "open /nowhere/a.pem: no such file or directory");
    }
}
