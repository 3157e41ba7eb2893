//! Why a file cannot be read.

use std::io;
use std::path::PathBuf;

/// Why a file cannot be read. None of them goes away by trying again.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is of another kind.
    #[error("{} is no {expected}: {found}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What it looks like instead.
        found: String,
    },
    /// The file contradicts itself.
    #[error("{} is damaged at byte {offset}: {what}; nothing was repaired, take another copy", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the contradiction was met.
        offset: u64,
        /// What it is.
        what: String,
    },
}
