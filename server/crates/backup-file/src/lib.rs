//! etcd's files, read and written without etcd.
//!
//! Owns the format of a bbolt database ([`BoltBuilder`], [`BoltFile`]), of etcd's write-ahead log and
//! of the digest behind a snapshot. Knows what stands in a file, not what it means: which buckets a
//! member needs is decided by the server.
//!
//! ```text
//! rows in key order ─► BoltBuilder (measure) ─► Layout ─► BoltBuilder (write) ─► pages, one by one
//! file ─► BoltFile ─► rows in key order
//! ```
//!
//! Both directions need memory for a few pages only, whatever the size of the database. Every byte of
//! a file that is read is checked before it is believed: a damaged or foreign file gives an error.

mod bolt_builder;
mod bolt_file;
mod bolt_page;
pub mod digest;
mod error;
pub mod etcd_log;
#[cfg(test)]
mod tests;

pub use bolt_builder::{BoltBuilder, BuildError, Layout, Measured, PageSink};
pub use bolt_file::{BoltFile, Bucket, Integrity, Row};
pub use bolt_page::PAGE_BYTES;
pub use error::FileError;
