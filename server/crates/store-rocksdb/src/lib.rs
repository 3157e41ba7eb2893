//! The RocksDB engine: the tables of the store as column families of one database.
//!
//! Owns how rows lie on disk, how much memory they may use and what a damaged or foreign directory
//! is told. Knows nothing of what a row means: that is `metastore-store`'s business.
//!
//! ```text
//! write ──> memtables (no WAL) ──atomic flush──> files of all column families, one sequence number
//! ```
//!
//! The Raft log is the only thing that is synced for a change. A crash loses what the memtables
//! held, always as whole batches from the end and in all column families alike, and the applied
//! position in the `meta` table says how much the log has to replay.
//!
//! The library itself is C++ and slow to compile: `build-rocksdb.sh` builds it once for all
//! profiles.

mod engine;
mod error;
mod old_files;
mod open;
mod options;
mod pace;

pub use engine::{MemoryUse, RocksDbEngine};
pub use old_files::remove_directory_slowly;
pub use options::RocksDbOptions;
