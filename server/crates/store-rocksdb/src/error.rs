//! What RocksDB's errors mean for an operator.

use std::path::Path;

use metastore_store::engine::EngineError;

/// What to do with a member whose state cannot be read.
pub(crate) const REPLACE_MEMBER: &str = "keep the directory for analysis, and re-add this member \
     with an empty data directory, or restore the cluster from a snapshot";

/// An error of an operation on an open database.
pub(crate) fn operation_failed(
    action: &str,
    directory: &Path,
    error: &rocksdb::Error,
) -> EngineError {
    EngineError::Storage(format!(
        "{action} in {} failed: {error}: {}",
        directory.display(),
        advice(error.as_ref())
    ))
}

/// What an operator should do about an error, in a clause that ends a message.
fn advice(text: &str) -> String {
    let has = |part: &str| text.contains(part);
    if has("Read-only file system") {
        "the file system is mounted read-only (the kernel does that after disk errors: see its \
         log); mount it writable"
            .into()
    } else if has("Permission denied") || has("Operation not permitted") {
        "the files belong to another user, or the directory forbids writing; give them to the user \
         that runs this program"
            .into()
    } else if has("No space left on device") || has("Disk quota exceeded") {
        "the disk is full; free or add space, then start this member again".into()
    } else if has("Too many open files") {
        "raise the limit of open files (LimitNOFILE, ulimit -n)".into()
    } else if has("Input/output error") {
        format!("the disk reports errors (see the kernel's log); replace it; {REPLACE_MEMBER}")
    } else if text.starts_with("Corruption") || has("No such file or directory") {
        format!("files are damaged or missing; {REPLACE_MEMBER}")
    } else {
        "see the file LOG in that directory".into()
    }
}

/// An error of opening a database.
pub(crate) fn open_failed(directory: &Path, error: &rocksdb::Error) -> EngineError {
    let text = error.as_ref();
    if text.contains("lock file") || text.contains("lock hold by current process") {
        return EngineError::Storage(format!(
            "the database in {} is in use by another process ({error}): stop the other process, \
             or give each member a data directory of its own",
            directory.display()
        ));
    }
    EngineError::Storage(format!(
        "the database in {} cannot be opened: {error}: {}",
        directory.display(),
        advice(error.as_ref())
    ))
}

/// Turns the error of a file operation into the engine's, with what was tried.
pub(crate) fn io_failed(action: &str, path: &Path, source: std::io::Error) -> EngineError {
    EngineError::Io {
        context: format!("{action} {}", path.display()),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages are RocksDB's own: class, action, path, and the operating system's text.
    #[test]
    fn each_class_of_error_says_what_to_do() {
        for (text, expected) in [
            (
                "IO error: While open a file for appending: /d/1.log: Read-only file system",
                "mount it writable",
            ),
            (
                "IO error: While mkdir if missing: /d: Permission denied",
                "give them to the user",
            ),
            (
                "IO error: No space left on device: While appending to file: /d/9.sst: No space left on device",
                "free or add space",
            ),
            (
                "IO error: While open a file: /d/7.sst: Too many open files",
                "LimitNOFILE",
            ),
            (
                "IO error: While pread offset 0 len 53: /d/7.sst: Input/output error",
                "replace it",
            ),
            (
                "IO error: No such file or directory: While open a file: /d/7.sst: No such file or directory",
                "re-add this member",
            ),
            (
                "Corruption: block checksum mismatch: stored = 1, computed = 2",
                "re-add this member",
            ),
            ("Shutdown in progress", "see the file LOG"),
        ] {
            let advice = advice(text);
            assert!(advice.contains(expected), "{text}: {advice}");
        }
    }
}
