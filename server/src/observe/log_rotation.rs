//! A log file that starts anew when it is full: `--enable-log-rotation`.
//!
//! Names, limits and their zeros are those of lumberjack, which etcd uses: `name-<time>.log` beside
//! `name.log`, the oldest removed first. Times in names are UTC, as in the lines.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::Mutex;
use serde::Deserialize;

use super::log::timestamp;

/// Size of a file when none is given, as in lumberjack.
const DEFAULT_MAX_SIZE_MEGABYTES: u64 = 100;
const MEGABYTE: u64 = 1024 * 1024;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// What compressed files end with.
const COMPRESSED: &str = ".gz";
/// Length of the time in the name of a file that was put aside: `2006-01-02T15-04-05.000`.
const TIME_LENGTH: usize = 23;

/// `--log-rotation-config-json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RotationOptions {
    /// Size in megabytes at which a file is put aside. 0: 100.
    #[serde(rename = "maxsize")]
    pub max_size_megabytes: u64,
    /// Days after which files that were put aside are removed. 0: never.
    #[serde(rename = "maxage")]
    pub max_age_days: u64,
    /// Files that were put aside to keep. 0: all.
    #[serde(rename = "maxbackups")]
    pub max_backups: usize,
    /// Accepted; times in names are UTC either way.
    pub localtime: bool,
    /// Whether files that were put aside are compressed.
    pub compress: bool,
}

impl Default for RotationOptions {
    fn default() -> Self {
        Self {
            max_size_megabytes: DEFAULT_MAX_SIZE_MEGABYTES,
            max_age_days: 0,
            max_backups: 0,
            localtime: false,
            compress: false,
        }
    }
}

impl RotationOptions {
    /// Reads the option's text.
    ///
    /// # Errors
    /// A text in etcd's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => {
                format!("invalid log rotation config: {error}")
            }
            _ => format!("improperly formatted log rotation config: {error}"),
        })
    }

    fn max_size_bytes(&self) -> u64 {
        let megabytes = match self.max_size_megabytes {
            0 => DEFAULT_MAX_SIZE_MEGABYTES,
            size => size,
        };
        megabytes.saturating_mul(MEGABYTE)
    }
}

/// The file that lines are appended to.
pub(super) struct RotatingFile {
    files: Arc<LogFiles>,
    current: Mutex<Current>,
}

struct Current {
    file: File,
    bytes: u64,
}

impl RotatingFile {
    /// Opens the file, or creates it and its directory.
    pub(super) fn open(path: &Path, options: RotationOptions) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let rotating = Self {
            current: Mutex::new(Current::open(path)?),
            files: Arc::new(LogFiles {
                path: path.to_owned(),
                options,
                cleaning: Mutex::new(()),
            }),
        };
        rotating.files.start_clean_up();
        Ok(rotating)
    }

    /// Appends a line, which is never split between two files.
    pub(super) fn write(&self, line: &[u8]) -> io::Result<()> {
        let LogFiles { path, options, .. } = &*self.files;
        let mut current = self.current.lock();
        if current.bytes > 0 && current.bytes + line.len() as u64 > options.max_size_bytes() {
            fs::rename(path, self.files.backup_path(SystemTime::now()))?;
            *current = Current::open(path)?;
            self.files.start_clean_up();
        }
        current.bytes += line.len() as u64;
        current.file.write_all(line)
    }
}

/// The files beside the one that is written, which were put aside.
struct LogFiles {
    path: PathBuf,
    options: RotationOptions,
    /// Held by the thread that cleans up.
    cleaning: Mutex<()>,
}

impl LogFiles {
    /// Name without its extension, and the extension with its dot.
    fn name_parts(&self) -> (String, String) {
        let part = |part: Option<&std::ffi::OsStr>| {
            part.map_or(String::new(), |part| part.to_string_lossy().into_owned())
        };
        let extension = part(self.path.extension());
        let dot = if extension.is_empty() { "" } else { "." };
        (part(self.path.file_stem()), format!("{dot}{extension}"))
    }

    fn backup_path(&self, now: SystemTime) -> PathBuf {
        let (stem, extension) = self.name_parts();
        let time = timestamp(now)[..TIME_LENGTH].replace(':', "-");
        self.path
            .with_file_name(format!("{stem}-{time}{extension}"))
    }

    /// Newest first.
    fn backups(&self) -> Vec<PathBuf> {
        let (stem, extension) = self.name_parts();
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut found: Vec<_> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                let plain = name.strip_suffix(COMPRESSED).unwrap_or(&name);
                plain
                    .strip_prefix(&format!("{stem}-"))
                    .and_then(|rest| rest.strip_suffix(&extension))
                    .is_some_and(|time| time.len() == TIME_LENGTH)
            })
            .map(|entry| entry.path())
            .collect();
        found.sort_by(|left, right| right.cmp(left));
        found
    }

    /// Cleans up on a thread of its own: compressing takes long, and lines wait for nothing.
    fn start_clean_up(self: &Arc<Self>) {
        let Self { options, .. } = &**self;
        if options.max_backups == 0 && options.max_age_days == 0 && !options.compress {
            return;
        }
        let files = Arc::clone(self);
        // Without a thread the files stay until the next time.
        let _ = thread::Builder::new()
            .name("log-clean-up".to_owned())
            .spawn(move || files.clean_up());
    }

    /// Removes and compresses what was put aside. What fails is tried again with the next file: a
    /// full log directory must not stop a member.
    fn clean_up(&self) {
        let _cleaning = self.cleaning.lock();
        let days = u32::try_from(self.options.max_age_days).unwrap_or(u32::MAX);
        let oldest = SystemTime::now().checked_sub(DAY.saturating_mul(days));
        for (position, path) in self.backups().into_iter().enumerate() {
            let too_many = self.options.max_backups > 0 && position >= self.options.max_backups;
            let too_old = days > 0
                && fs::metadata(&path)
                    .and_then(|metadata| metadata.modified())
                    .is_ok_and(|changed| oldest.is_some_and(|oldest| changed < oldest));
            if too_many || too_old {
                let _ = fs::remove_file(&path);
            } else if self.options.compress && !path.to_string_lossy().ends_with(COMPRESSED) {
                let _ = compress(&path);
            }
        }
    }
}

impl Current {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
    }
}

fn compress(path: &Path) -> io::Result<()> {
    let mut target = path.as_os_str().to_owned();
    target.push(COMPRESSED);
    let mut encoder = GzEncoder::new(File::create(&target)?, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_put_aside_and_only_some_are_kept() {
        let directory = tempfile::tempdir().expect("temporary files can be written");
        let path = directory.path().join("sub").join("server.log");
        let options = RotationOptions {
            max_size_megabytes: 1,
            max_backups: 2,
            compress: true,
            ..RotationOptions::default()
        };
        let file = RotatingFile::open(&path, options).expect("the directory is made");
        let line = vec![b'x'; 700 * 1024];
        for _ in 0..5 {
            file.write(&line).expect("there is room");
            // The names tell milliseconds.
            std::thread::sleep(Duration::from_millis(5));
        }
        file.files.clean_up();
        let backups = file.files.backups();
        assert_eq!(backups.len(), 2, "{backups:?}");
        assert!(
            backups
                .iter()
                .all(|path| path.to_string_lossy().ends_with(".log.gz")),
            "{backups:?}"
        );
        let current = fs::metadata(&path).expect("it is there").len();
        assert_eq!(current, line.len() as u64);
        drop(file);
        let again = RotatingFile::open(&path, RotationOptions::default()).expect("as before");
        assert_eq!(
            again.current.lock().bytes,
            current,
            "it goes on in the file"
        );
    }

    #[test]
    fn the_option_is_read_as_etcd_reads_it() {
        let parsed = RotationOptions::parse(r#"{"maxsize": 7, "maxbackups": 3}"#);
        assert_eq!(
            parsed,
            Ok(RotationOptions {
                max_size_megabytes: 7,
                max_backups: 3,
                ..RotationOptions::default()
            })
        );
        let bad = RotationOptions::parse(r#"{"maxsize": true}"#).expect_err("no number");
        assert!(bad.starts_with("invalid log rotation config"), "{bad}");
        let worse = RotationOptions::parse("{\"maxsize\"").expect_err("no JSON");
        assert!(worse.starts_with("improperly formatted"), "{worse}");
    }
}
