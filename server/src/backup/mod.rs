//! The store as a database of etcd, and back.
//!
//! ```text
//! engine ─► export ─► bbolt file ─► etcdutl, etcd          (also: Maintenance.Snapshot)
//! bbolt file, etcd's data directory ─► import ─► engine
//! ```

pub mod etcd_directory;
pub mod etcd_entries;
pub mod etcd_messages;
pub mod etcd_output;
pub mod export;
pub mod human_bytes;
pub mod import;
#[cfg(test)]
mod tests;
