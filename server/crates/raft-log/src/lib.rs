//! The write-ahead log of one member: entries, votes, truncations and purges in one durable order.
//!
//! Owns the files of the log directory, the thread that writes and syncs them, and the memory in
//! which recent entries stay readable. Never looks into a payload, and knows neither consensus nor
//! the network.
//!
//! ```text
//!  append, save_vote, truncate_after, purge
//!        │ state and cache change at once        read ──► cache ──► sparse index ──► segment files
//!        ▼
//!      queue ──► writer: take all ─► encode ─► one write ─► one fdatasync ─► completions ─► repeat
//! ```
//!
//! # What the log promises
//!
//! * A request whose completion reported success survives any crash, together with everything that
//!   was requested before it. After a crash the log equals the result of a *prefix* of the requests
//!   (within a request of many entries: a prefix of its entries).
//! * A vote and an entry are durable in the order in which they were requested.
//! * Bytes that were damaged after they were acknowledged are never read as data. They are told from
//!   a write that a crash interrupted by whatever valid bytes of a later write follow them; only
//!   damage to the very last write, with nothing after it, looks like an interrupted one.
//! * The first I/O error is the last: everything fails from then on, and an `fdatasync` is never
//!   repeated, because the kernel may have dropped the pages that the failed one did not write.
//!
//! # Limits
//!
//! The queue of requests is bounded by [`LogOptions::queue_bytes_max`], the memory for entries by
//! [`LogOptions::cache_bytes`] plus the queue, and one request group by 8 MiB or one record.
//!
//! The format of the files is described in [`segment`] and [`record`].

mod cache;
mod directory;
mod disk;
mod error;
mod index;
mod log;
pub mod record;
mod recovery;
pub mod segment;
#[cfg(feature = "simulation")]
pub mod simulation;
mod types;
mod writer;

pub use disk::{Disk, DiskFile, DiskLock, RealDisk};
pub use error::LogError;
pub use log::RaftLog;
pub use types::{Completion, LogEntry, LogIdentity, LogOptions, LogPosition, LogState, Observer};

/// The old home of the vocabulary types; use the crate root.
#[doc(hidden)]
pub mod api_sketch {
    pub use crate::types::{Completion, LogEntry, LogPosition, LogState};
}
