//! The digest behind a snapshot: 32 bytes of SHA-256 over the database before it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::FileError;

/// Length of the digest.
pub const DIGEST_BYTES: usize = 32;
/// A database is a multiple of this, so the rest tells whether a digest follows it.
const SECTOR_BYTES: u64 = 512;
const BUFFER_BYTES: usize = 256 * 1024;

/// Whether a file of this length has a digest behind its database, by etcd's rule.
pub fn has_digest(file_bytes: u64) -> bool {
    file_bytes % SECTOR_BYTES == DIGEST_BYTES as u64
}

/// What the digest of a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestCheck {
    /// There is none.
    Absent,
    /// It is the digest of the database.
    Right,
    /// It is another one.
    Wrong {
        /// What stands in the file.
        stored: [u8; DIGEST_BYTES],
        /// What the database gives.
        computed: [u8; DIGEST_BYTES],
    },
}

/// Compares a snapshot's digest with its database. Reads the whole file.
///
/// # Errors
/// [`FileError::Io`].
pub fn check(path: &Path) -> Result<DigestCheck, FileError> {
    let io = |source| FileError::Io {
        verb: "read",
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(io)?;
    let file_bytes = file.seek(SeekFrom::End(0)).map_err(io)?;
    if !has_digest(file_bytes) {
        return Ok(DigestCheck::Absent);
    }
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut left = file_bytes - DIGEST_BYTES as u64;
    while left > 0 {
        let part = usize::try_from(left).map_or(BUFFER_BYTES, |left| left.min(BUFFER_BYTES));
        file.read_exact(&mut buffer[..part]).map_err(io)?;
        hash.update(&buffer[..part]);
        left -= part as u64;
    }
    let mut stored = [0; DIGEST_BYTES];
    file.read_exact(&mut stored).map_err(io)?;
    let computed: [u8; DIGEST_BYTES] = hash.finalize().into();
    Ok(match stored == computed {
        true => DigestCheck::Right,
        false => DigestCheck::Wrong { stored, computed },
    })
}
