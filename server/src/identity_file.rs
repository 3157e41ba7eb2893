//! Who this data directory belongs to: written once, before anything else in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const FILE_NAME: &str = "identity.json";

/// A member that a static bootstrap starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedMember {
    /// Member id.
    pub id: u64,
    /// Name on the command line.
    pub name: String,
    /// Peer URLs.
    pub peer_urls: Vec<String>,
    /// Whether it is a learner.
    #[serde(default)]
    pub is_learner: bool,
}

/// Who a data directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The member.
    pub member_id: u64,
    /// Whether the member was one of the first: then the cluster is formed from `seeds`.
    pub forms_cluster: bool,
    /// Whether the log was made. From then on a start without its files is refused: they held what
    /// this member has acknowledged.
    #[serde(default)]
    pub log_exists: bool,
    /// The members that were known at the first start, to find them before the replicated
    /// directory is here.
    pub seeds: Vec<SeedMember>,
}

fn path(member_directory: &Path) -> PathBuf {
    member_directory.join(FILE_NAME)
}

/// Reads the identity; `None` for a new data directory.
///
/// # Errors
/// When the file cannot be read or is damaged; the text says what to do.
pub fn read(member_directory: &Path) -> io::Result<Option<Identity>> {
    let path = path(member_directory);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(with_path(&error, "read", &path)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{} is damaged ({error}): this data directory cannot be trusted; remove the member \
                 from its cluster, delete the directory and add the member again",
                path.display()
            ),
        )
    })
}

/// Writes the identity durably.
///
/// # Errors
/// When the disk does not take it.
pub fn write(member_directory: &Path, identity: &Identity) -> io::Result<()> {
    let target = path(member_directory);
    let temporary = target.with_extension("tmp");
    let bytes = serde_json::to_vec_pretty(identity).map_err(io::Error::other)?;
    let write = || -> io::Result<()> {
        fs::write(&temporary, &bytes)?;
        fs::File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, &target)?;
        fs::File::open(member_directory)?.sync_all()
    };
    write().map_err(|error| with_path(&error, "write", &target))
}

fn with_path(error: &io::Error, verb: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{verb} {}: {error}", path.display()))
}
