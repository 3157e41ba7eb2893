//! `--memory-mlock`: keeps the program's memory from being swapped out.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

const ADVICE: &str = "let it lock as much as it wants (`ulimit -l unlimited`, LimitMEMLOCK=infinity in a unit of \
                      systemd, the capability IPC_LOCK in a container), or leave --memory-mlock out";

/// Locks all pages of this process, those to come too. Pages are locked when they are used first: what is only
/// reserved takes no memory.
///
/// # Errors
/// The system does not let this process lock its memory. A limit, however high, is not enough: the process would
/// end with the first allocation above it.
pub fn lock() -> Result<(), String> {
    let limit = getrlimit(Resource::Memlock).current;
    let is_allowed =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if let (Some(limit), false) = (limit, is_allowed) {
        return Err(format!(
            "cannot lock the memory: this process may lock {limit} bytes; {ADVICE}"
        ));
    }
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
        .map_err(|error| format!("cannot lock the memory: {error}; {ADVICE}"))?;
    tracing::info!("locked the memory of this process");
    Ok(())
}
