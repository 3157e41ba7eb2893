//! What can go wrong, and what the caller should do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::types::LogPosition;

/// An error of the log.
///
/// Only [`LogError::Purged`] and [`LogError::Missing`] leave the log usable; after any other the
/// member must stop ([`LogError::is_fatal`]).
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused an operation.
    #[error("raft log: cannot {action} {}{}", path.display(), hint(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process (or another handle in this one) has the log open.
    #[error("raft log: {} is locked: another process uses this data directory; stop it first, or choose another directory", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The log belongs to another cluster or member.
    #[error("raft log: {} belongs to {what} {found:x}, but this is {what} {expected:x}; check the data directory and the cluster settings", path.display())]
    WrongIdentity {
        /// The segment file.
        path: PathBuf,
        /// "cluster" or "member".
        what: &'static str,
        /// Id in the file.
        found: u64,
        /// Id that was asked for.
        expected: u64,
    },
    /// The directory or file was not written by this program.
    #[error("raft log: {} was not written by this program ({reason}); choose an empty directory", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How that was seen.
        reason: &'static str,
    },
    /// The file has a format of a newer version.
    #[error("raft log: {} has format version {found}, this program reads version {expected}; start the version that wrote it", path.display())]
    UnsupportedVersion {
        /// The segment file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Version of this program.
        expected: u32,
    },
    /// Acknowledged data is damaged or missing. It cannot be the trace of an interrupted write, so
    /// nothing is cut off: what was acknowledged might be lost.
    #[error("raft log: {} is damaged at offset {offset}: {reason}. Acknowledged data may be lost, so this member must not start with it: restore this member from a snapshot or re-add it as a learner", path.display())]
    Corrupt {
        /// The segment file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What does not fit.
        reason: String,
    },
    /// The options contradict themselves.
    #[error("raft log: invalid options: {reason}")]
    InvalidOptions {
        /// Which and why.
        reason: &'static str,
    },
    /// The entries asked for were purged: use a snapshot.
    #[error("raft log: entries up to {purged} were purged")]
    Purged {
        /// Last entry that was purged.
        purged: LogPosition,
    },
    /// The entries asked for are beyond the end of the log.
    #[error("raft log: entry {index} is beyond the end of the log ({last:?})")]
    Missing {
        /// Index that was asked for.
        index: u64,
        /// Last entry of the log.
        last: Option<LogPosition>,
    },
    /// The log failed before, or was closed. It stays that way.
    #[error("raft log: not usable: {reason}")]
    Failed {
        /// The first error.
        reason: String,
    },
}

impl LogError {
    /// Whether the member must stop. False: the entries asked for are not there, the log is fine.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Purged { .. } | Self::Missing { .. })
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn corrupt(path: &Path, offset: u64, reason: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            offset,
            reason: reason.into(),
        }
    }

    /// Kind for the `io::Error` that completions get.
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Io { source, .. } => source.kind(),
            Self::Corrupt { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        }
    }

    /// The message with the operating system's reason, for logs and completions.
    pub(crate) fn full_message(&self) -> String {
        match self {
            Self::Io { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }
}

/// What the operator can do about the usual suspects.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            " (the disk is full: free space or enlarge the volume, then start again)"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            " (the file system is read-only: check the mount and the kernel log)"
        }
        io::ErrorKind::PermissionDenied => {
            " (no permission: the directory must be writable by this user)"
        }
        _ => "",
    }
}
