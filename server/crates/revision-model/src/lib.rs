//! Revisions, key ranges and the stored records: the vocabulary of the store.
//!
//! Owns how a revision, a range of keys and a stored record look, in memory and as bytes. Does no
//! I/O, has no clock and knows no engine.
//!
//! ```text
//! revision-model <- store <- { store-rocksdb, watch, lease } <- server
//! ```

mod key_range;
mod record;
mod revision;

pub use key_range::{KeyRange, RangeEnd};
pub use record::{LatestRow, RecordError, RevisionRecord};
pub use revision::{REVISION_KEY_LEN, Revision, RevisionKey, TOMBSTONE_KEY_LEN};
